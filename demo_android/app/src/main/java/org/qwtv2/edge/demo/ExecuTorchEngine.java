package org.qwtv2.edge.demo;

import java.io.File;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.pytorch.executorch.DType;
import org.pytorch.executorch.EValue;
import org.pytorch.executorch.ExecutorchRuntimeException.ExecutorchInvalidArgumentException;
import org.pytorch.executorch.Module;
import org.pytorch.executorch.Tensor;
import org.qwtv2.edge.demo.core.Engine;
import org.qwtv2.edge.demo.core.FailedException;
import org.qwtv2.edge.demo.core.Failure;
import org.qwtv2.edge.demo.core.NdArray;

/** A {@code .pte} program in ExecuTorch, method {@code forward}. */
final class ExecuTorchEngine implements Engine {
    private final Module module;
    private EValue[] inputs = {};
    private EValue[] outputs = {};

    ExecuTorchEngine(File artifact, int threads) {
        module = Module.load(artifact.getPath(), Module.LOAD_MODE_MMAP, threads);
        module.loadMethod("forward"); // as part of loading; otherwise the first invocation would do it
    }

    @Override
    public String runtime() {
        return "ExecuTorch, XNNPACK delegate where the program names it";
    }

    @Override
    public Map<String, String> versions() {
        return Collections.singletonMap("executorch-android", BuildConfig.EXECUTORCH_VERSION);
    }

    @Override
    public void set(List<NdArray> arrays) throws FailedException {
        inputs = new EValue[arrays.size()];
        for (int i = 0; i < inputs.length; i++) {
            inputs[i] = EValue.from(tensor(arrays.get(i)));
        }
    }

    static Tensor tensor(NdArray array) throws FailedException {
        long[] shape = new long[array.shape.length];
        for (int i = 0; i < shape.length; i++) {
            shape[i] = array.shape[i];
        }
        ByteBuffer data = ByteBuffer.allocateDirect(array.data.length).order(ByteOrder.LITTLE_ENDIAN);
        data.put(array.data);
        ((Buffer) data).rewind(); // ByteBuffer's own rewind() is missing from Android before 9
        switch (array.dtype) {
            case "int8":
                return Tensor.fromBlob(data, shape);
            case "uint8":
                return Tensor.fromBlobUnsigned(data, shape);
            case "int32":
                return Tensor.fromBlob(data.asIntBuffer(), shape);
            case "int64":
                return Tensor.fromBlob(data.asLongBuffer(), shape);
            case "float32":
                return Tensor.fromBlob(data.asFloatBuffer(), shape);
            case "float64":
                return Tensor.fromBlob(data.asDoubleBuffer(), shape);
            default:
                throw new FailedException(Failure.WRONG_SHAPE, "ExecuTorch's Java interface takes no " + array.dtype + " tensors");
        }
    }

    @Override
    public void invoke() throws FailedException {
        try {
            outputs = module.forward(inputs);
        } catch (RuntimeException error) {
            throw failed(error);
        }
        if (outputs.length == 0) {
            throw new FailedException(Failure.RUN_FAILED, "the program gave no outputs");
        }
    }

    static FailedException failed(RuntimeException error) {
        boolean inputs = error instanceof ExecutorchInvalidArgumentException; // the program's own check of them
        return new FailedException(inputs ? Failure.WRONG_SHAPE : Failure.RUN_FAILED, String.valueOf(error.getMessage()), error);
    }

    @Override
    public List<NdArray> outputs() throws FailedException {
        List<NdArray> arrays = new ArrayList<>();
        for (EValue value : outputs) {
            if (!value.isTensor()) {
                throw new FailedException(Failure.RUN_FAILED, "the program gave an output that is no tensor");
            }
            arrays.add(array(value.toTensor()));
        }
        return arrays;
    }

    static NdArray array(Tensor tensor) throws FailedException {
        long[] sizes = tensor.shape();
        int[] shape = new int[sizes.length];
        for (int i = 0; i < shape.length; i++) {
            shape[i] = (int) sizes[i];
        }
        int size = (int) tensor.numel();
        ByteBuffer out;
        DType dtype = tensor.dtype();
        switch (dtype) {
            case INT8:
                return new NdArray("int8", shape, tensor.getDataAsByteArray());
            case UINT8:
                return new NdArray("uint8", shape, tensor.getDataAsUnsignedByteArray());
            case INT32:
                out = littleEndian(4 * size);
                out.asIntBuffer().put(tensor.getDataAsIntArray());
                return new NdArray("int32", shape, out.array());
            case INT64:
                out = littleEndian(8 * size);
                out.asLongBuffer().put(tensor.getDataAsLongArray());
                return new NdArray("int64", shape, out.array());
            case FLOAT:
                out = littleEndian(4 * size);
                out.asFloatBuffer().put(tensor.getDataAsFloatArray());
                return new NdArray("float32", shape, out.array());
            case DOUBLE:
                out = littleEndian(8 * size);
                out.asDoubleBuffer().put(tensor.getDataAsDoubleArray());
                return new NdArray("float64", shape, out.array());
            default:
                throw new FailedException(Failure.RUN_FAILED, "ExecuTorch's Java interface gives no " + dtype + " tensors");
        }
    }

    private static ByteBuffer littleEndian(int bytes) {
        return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    @Override
    public void close() {
        module.destroy();
    }
}
