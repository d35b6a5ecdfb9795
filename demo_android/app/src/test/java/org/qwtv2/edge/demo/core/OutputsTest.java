package org.qwtv2.edge.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Collections;
import org.junit.Test;

public class OutputsTest {
    private static NdArray floats(float... values) {
        ByteBuffer buffer = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        for (float value : values) {
            buffer.putFloat(value);
        }
        return new NdArray("float32", new int[] {1, values.length}, buffer.array());
    }

    @Test
    public void percentilesLieBetweenNeighbours() {
        long[] values = {40, 10, 30, 20};
        assertArrayEquals(new double[] {10, 25, 37, 39.7, 40}, Percentiles.of(values, 0, 50, 90, 99, 100), 1e-12);
        assertArrayEquals(new long[] {40, 10, 30, 20}, values);
        assertArrayEquals("to the last bit", new double[] {6.4, 8.200000000000001}, Percentiles.of(new long[] {1, 10}, 60, 80), 0);
        assertArrayEquals(new double[] {7, 7}, Percentiles.of(new long[] {7}, 0, 99), 0);
    }

    @Test(expected = IllegalArgumentException.class)
    public void percentilesOfNothing() {
        Percentiles.of(new long[0], 50);
    }

    @Test
    public void everyByteCounts() {
        assertEquals(0, Outputs.differingBytes(new byte[] {1, 2}, new byte[] {1, 2}));
        assertEquals(1, Outputs.differingBytes(new byte[] {1, 2}, new byte[] {1, 3}));
        assertEquals(3, Outputs.differingBytes(new byte[] {9, 2, 3, 4}, new byte[] {1, 2}));
        NdArray one = Fakes.int8(new int[] {1}, 5);
        assertEquals(1, Outputs.differingBytes(Arrays.asList(one, one), Collections.singletonList(one)));
    }

    @Test
    public void minusZeroIsAnotherByteButNoLessAClass() {
        assertEquals(1, Outputs.differingBytes(floats(0f).data, floats(-0f).data));
        assertEquals("[0, 1]", Outputs.largest(floats(-0f, 0f), 2).toString());
    }

    @Test
    public void theEarlierOfEqualClassesComesFirst() {
        assertEquals("[2, 1, 3]", Outputs.largest(floats(1, 5, 7, 5), 3).toString());
        assertEquals("[1, 0]", Outputs.largest(floats(Float.NaN, -3), 5).toString());
        assertEquals("[1, 2, 0]", Outputs.largest(Fakes.int8(new int[] {3}, -128, 127, 0), 3).toString());
    }

    @Test
    public void labels() {
        assertEquals("[cat, , Гусь]", Outputs.labels("cat \r\n\r\nГусь\n\n").toString());
        assertEquals("[]", Outputs.labels("").toString());
    }

    @Test
    public void rowsAndTheirJoin() {
        NdArray all = Fakes.int8(new int[] {3, 2}, 1, 2, 3, 4, 5, 6);
        assertArrayEquals(new byte[] {3, 4}, all.rows(1, 1).data);
        NdArray joined = NdArray.join(Arrays.asList(all.rows(2, 1), all.rows(0, 2)));
        assertArrayEquals(new int[] {3, 2}, joined.shape);
        assertArrayEquals(new byte[] {5, 6, 1, 2, 3, 4}, joined.data);
        NdArray scalar = Fakes.int8(new int[0], 9);
        assertArrayEquals(new int[] {2}, NdArray.join(Arrays.asList(scalar, scalar)).shape);
    }
}
