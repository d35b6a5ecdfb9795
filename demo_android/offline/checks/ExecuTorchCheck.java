package org.qwtv2.edge.demo;

import java.util.Arrays;
import java.util.Random;
import org.pytorch.executorch.ExecutorchRuntimeException;
import org.qwtv2.edge.demo.core.Failure;
import org.qwtv2.edge.demo.core.NdArray;

/** What ExecuTorch's own classes do without their native library. */
final class ExecuTorchCheck {
    private ExecuTorchCheck() {}

    public static void main(String[] arguments) throws Exception {
        tensors();
        errors();
    }

    /** Every dtype through ExecuTorch's tensors and back. */
    private static void tensors() throws Exception {
        String[] dtypes = {"int8", "uint8", "int32", "int64", "float32", "float64"};
        for (String dtype : dtypes) {
            int[] shape = {2, 1, 3};
            byte[] data = new byte[(int) NdArray.bytes(dtype, shape)];
            new Random(1).nextBytes(data);
            NdArray back = ExecuTorchEngine.array(ExecuTorchEngine.tensor(new NdArray(dtype, shape, data)));
            if (!back.dtype.equals(dtype) || !Arrays.equals(back.shape, shape) || !Arrays.equals(back.data, data)) {
                throw new AssertionError(dtype + " comes back as " + back.dtype + " " + Arrays.toString(back.data));
            }
        }
        System.out.println(dtypes.length + " dtypes pass through ExecuTorch's tensors unchanged");
    }

    /** Errors as the native library has them made. */
    private static void errors() {
        int[] codes = {ExecutorchRuntimeException.INVALID_ARGUMENT, ExecutorchRuntimeException.MEMORY_ALLOCATION_FAILED};
        Failure[] kinds = {Failure.WRONG_SHAPE, Failure.RUN_FAILED};
        for (int i = 0; i < codes.length; i++) {
            Failure kind = ExecuTorchEngine.failed(ExecutorchRuntimeException.makeExecutorchException(codes[i], "why")).failure;
            if (kind != kinds[i]) {
                throw new AssertionError("error " + codes[i] + " is " + kind);
            }
        }
        System.out.println(codes.length + " kinds of ExecuTorch's errors are told apart");
    }
}
