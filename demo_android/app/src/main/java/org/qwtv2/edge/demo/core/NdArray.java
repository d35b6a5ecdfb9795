package org.qwtv2.edge.demo.core;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** A tensor as its bytes: little-endian, in C order. */
public final class NdArray {
    private static final Map<String, Integer> ITEM_SIZES = new HashMap<>();

    static {
        for (String name : new String[] {"bool", "int8", "uint8"}) {
            ITEM_SIZES.put(name, 1);
        }
        ITEM_SIZES.put("int16", 2);
        for (String name : new String[] {"int32", "float32"}) {
            ITEM_SIZES.put(name, 4);
        }
        for (String name : new String[] {"int64", "float64"}) {
            ITEM_SIZES.put(name, 8);
        }
    }

    /** NumPy's name of the element type. */
    public final String dtype;

    public final int[] shape;
    public final byte[] data;

    /**
     * @throws IllegalArgumentException for an unknown dtype, or data of another size than dtype and shape say.
     */
    public NdArray(String dtype, int[] shape, byte[] data) {
        long expected = bytes(dtype, shape);
        if (expected != data.length) {
            throw new IllegalArgumentException(
                    dtype + " " + Arrays.toString(shape) + " takes " + expected + " bytes, got " + data.length);
        }
        this.dtype = dtype;
        this.shape = shape.clone();
        this.data = data;
    }

    /** Bytes of a tensor; throws IllegalArgumentException for an unknown dtype or a negative size. */
    public static long bytes(String dtype, int[] shape) {
        Integer itemSize = ITEM_SIZES.get(dtype);
        if (itemSize == null) {
            throw new IllegalArgumentException("unknown dtype " + dtype);
        }
        long size = itemSize;
        for (int n : shape) {
            if (n < 0) {
                throw new IllegalArgumentException("negative size in shape " + Arrays.toString(shape));
            }
            if (n > 0 && size > Long.MAX_VALUE / n) {
                throw new IllegalArgumentException("too large a shape " + Arrays.toString(shape));
            }
            size *= n;
        }
        return size;
    }

    /** Number of elements. */
    public int size() {
        return data.length / ITEM_SIZES.get(dtype);
    }

    /** Rows {@code first} to {@code first + count} of the first axis. */
    public NdArray rows(int first, int count) {
        int rowBytes = shape[0] == 0 ? 0 : data.length / shape[0];
        int[] part = shape.clone();
        part[0] = count;
        return new NdArray(dtype, part, Arrays.copyOfRange(data, first * rowBytes, (first + count) * rowBytes));
    }

    /** Arrays of one dtype and, but for the first axis, one shape, joined along that axis; scalars become a row of them. */
    public static NdArray join(List<NdArray> parts) {
        boolean scalars = parts.get(0).shape.length == 0;
        int rows = 0;
        int bytes = 0;
        for (NdArray part : parts) {
            rows += scalars ? 1 : part.shape[0];
            bytes += part.data.length;
        }
        ByteBuffer all = ByteBuffer.allocate(bytes);
        for (NdArray part : parts) {
            all.put(part.data);
        }
        int[] shape = scalars ? new int[1] : parts.get(0).shape.clone();
        shape[0] = rows;
        return new NdArray(parts.get(0).dtype, shape, all.array());
    }

    /** A buffer over the data, in its byte order. */
    public ByteBuffer buffer() {
        return ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN);
    }

    /** Every element as a double; exact but for int64 beyond 53 bits. */
    public double[] values() {
        ByteBuffer buffer = buffer();
        double[] out = new double[size()];
        for (int i = 0; i < out.length; i++) {
            out[i] = next(buffer);
        }
        return out;
    }

    private double next(ByteBuffer buffer) {
        switch (dtype) {
            case "float32":
                return buffer.getFloat();
            case "float64":
                return buffer.getDouble();
            case "int16":
                return buffer.getShort();
            case "int32":
                return buffer.getInt();
            case "int64":
                return buffer.getLong();
            case "uint8":
                return buffer.get() & 0xff;
            default:
                return buffer.get();
        }
    }
}
