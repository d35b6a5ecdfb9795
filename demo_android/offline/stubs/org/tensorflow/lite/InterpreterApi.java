package org.tensorflow.lite;

import java.util.Map;

public interface InterpreterApi extends AutoCloseable {
    class Options {
        public Options setNumThreads(int threads) { return this; }
        public Options setUseXNNPACK(boolean use) { return this; }
    }

    void runForMultipleInputsOutputs(Object[] inputs, Map<Integer, Object> outputs);
    void allocateTensors();
    int getInputTensorCount();
    Tensor getInputTensor(int index);
    int getOutputTensorCount();
    Tensor getOutputTensor(int index);
    @Override
    void close();
}
