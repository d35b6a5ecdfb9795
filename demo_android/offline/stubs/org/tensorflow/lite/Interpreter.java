package org.tensorflow.lite;

import java.io.File;
import java.util.Map;

public final class Interpreter implements InterpreterApi {
    public static class Options extends InterpreterApi.Options {}

    public Interpreter(File model, Options options) {}
    @Override
    public void runForMultipleInputsOutputs(Object[] inputs, Map<Integer, Object> outputs) {}
    @Override
    public void allocateTensors() {}
    @Override
    public int getInputTensorCount() { return 0; }
    @Override
    public Tensor getInputTensor(int index) { return null; }
    @Override
    public int getOutputTensorCount() { return 0; }
    @Override
    public Tensor getOutputTensor(int index) { return null; }
    @Override
    public void close() {}
}
