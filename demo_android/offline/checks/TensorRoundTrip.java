package org.qwtv2.edge.demo;

import java.util.Arrays;
import java.util.Random;
import org.qwtv2.edge.demo.core.NdArray;

/** Every dtype through ExecuTorch's own tensors and back. */
final class TensorRoundTrip {
    private TensorRoundTrip() {}

    public static void main(String[] arguments) throws Exception {
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
}
