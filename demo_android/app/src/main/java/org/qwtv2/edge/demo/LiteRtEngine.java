package org.qwtv2.edge.demo;

import java.io.File;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.qwtv2.edge.demo.core.Engine;
import org.qwtv2.edge.demo.core.FailedException;
import org.qwtv2.edge.demo.core.Failure;
import org.qwtv2.edge.demo.core.NdArray;
import org.tensorflow.lite.Interpreter;
import org.tensorflow.lite.Tensor;

/** A {@code .tflite} file in LiteRT's interpreter with the XNNPACK delegate. */
final class LiteRtEngine implements Engine {
    private final Interpreter interpreter;
    private final Object[] inputs;
    private final Map<Integer, Object> outputs = new HashMap<>();

    LiteRtEngine(File artifact, int threads) {
        Interpreter.Options options = new Interpreter.Options();
        options.setNumThreads(threads);
        options.setUseXNNPACK(true);
        interpreter = new Interpreter(artifact, options);
        interpreter.allocateTensors();
        inputs = new Object[interpreter.getInputTensorCount()];
        for (int i = 0; i < inputs.length; i++) {
            inputs[i] = buffer(interpreter.getInputTensor(i));
        }
        for (int i = 0; i < interpreter.getOutputTensorCount(); i++) {
            outputs.put(i, buffer(interpreter.getOutputTensor(i)));
        }
    }

    private static ByteBuffer buffer(Tensor tensor) {
        return ByteBuffer.allocateDirect(tensor.numBytes()).order(ByteOrder.nativeOrder());
    }

    /** As a Buffer: ByteBuffer's own rewind() is missing from Android before 9. */
    private static ByteBuffer rewound(Object buffer) {
        ((Buffer) buffer).rewind();
        return (ByteBuffer) buffer;
    }

    private static String dtype(Tensor tensor) {
        return tensor.dataType().name().toLowerCase(Locale.ROOT);
    }

    @Override
    public String runtime() {
        return "LiteRT interpreter, XNNPACK delegate";
    }

    @Override
    public Map<String, String> versions() {
        return Collections.singletonMap("litert", BuildConfig.LITERT_VERSION);
    }

    @Override
    public void set(List<NdArray> arrays) throws FailedException {
        if (arrays.size() != inputs.length) {
            throw new FailedException(
                    Failure.WRONG_SHAPE, "the artifact has " + inputs.length + " inputs, the job gives " + arrays.size());
        }
        for (int i = 0; i < inputs.length; i++) {
            NdArray array = arrays.get(i);
            Tensor tensor = interpreter.getInputTensor(i);
            if (!array.dtype.equals(dtype(tensor)) || !Arrays.equals(array.shape, tensor.shape())) {
                throw new FailedException(
                        Failure.WRONG_SHAPE,
                        "input " + i + " is " + dtype(tensor) + " " + Arrays.toString(tensor.shape()) + ", the job gives "
                                + array.dtype + " " + Arrays.toString(array.shape));
            }
            rewound(inputs[i]).put(array.data);
        }
    }

    @Override
    public void invoke() throws FailedException {
        for (Object input : inputs) {
            rewound(input);
        }
        for (Object output : outputs.values()) {
            rewound(output);
        }
        try {
            interpreter.runForMultipleInputsOutputs(inputs, outputs);
        } catch (RuntimeException error) {
            throw new FailedException(Failure.RUN_FAILED, String.valueOf(error.getMessage()), error);
        }
    }

    @Override
    public List<NdArray> outputs() {
        List<NdArray> arrays = new ArrayList<>();
        for (int i = 0; i < outputs.size(); i++) {
            ByteBuffer buffer = rewound(outputs.get(i));
            byte[] data = new byte[buffer.capacity()];
            buffer.get(data);
            Tensor tensor = interpreter.getOutputTensor(i);
            arrays.add(new NdArray(dtype(tensor), tensor.shape(), data));
        }
        return arrays;
    }

    @Override
    public void close() {
        interpreter.close();
    }
}
