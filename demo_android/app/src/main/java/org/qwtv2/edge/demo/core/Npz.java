package org.qwtv2.edge.demo.core;

import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.ZipEntry;
import java.util.zip.ZipException;
import java.util.zip.ZipInputStream;

/** Reads NumPy's {@code .npy} and {@code .npz} formats (versions 1 to 3 of the header). */
public final class Npz {
    private static final Pattern DESCR = Pattern.compile("'descr'\\s*:\\s*'([^']*)'");
    private static final Pattern ORDER = Pattern.compile("'fortran_order'\\s*:\\s*(True|False)");
    private static final Pattern SHAPE = Pattern.compile("'shape'\\s*:\\s*\\(([^)]*)\\)");
    private static final byte[] MAGIC = {(byte) 0x93, 'N', 'U', 'M', 'P', 'Y'};
    private static final String SUFFIX = ".npy";
    private static final Map<String, String> DTYPES = new HashMap<>();

    static {
        DTYPES.put("|b1", "bool");
        DTYPES.put("|i1", "int8");
        DTYPES.put("|u1", "uint8");
        DTYPES.put("<i2", "int16");
        DTYPES.put("<i4", "int32");
        DTYPES.put("<i8", "int64");
        DTYPES.put("<f4", "float32");
        DTYPES.put("<f8", "float64");
    }

    private Npz() {}

    /**
     * Every array of an archive, by name and in order.
     *
     * @throws IOException for an archive that is cut short or damaged, or an array of a kind that is not supported.
     */
    public static Map<String, NdArray> read(InputStream stream) throws IOException {
        Map<String, NdArray> arrays = new LinkedHashMap<>();
        ZipInputStream zip = new ZipInputStream(stream);
        for (ZipEntry entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
            String name = entry.getName();
            if (!name.endsWith(SUFFIX)) {
                throw new IOException(name + " in the archive is not an array");
            }
            name = name.substring(0, name.length() - SUFFIX.length());
            arrays.put(name, array(name, Streams.readAll(zip)));
        }
        if (arrays.isEmpty()) {
            throw new ZipException("not an .npz archive, or an empty one");
        }
        return arrays;
    }

    /** One array from the bytes of a {@code .npy} file; {@code name} is for messages. */
    static NdArray array(String name, byte[] file) throws IOException {
        ByteBuffer buffer = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN);
        for (byte b : MAGIC) {
            if (!buffer.hasRemaining() || buffer.get() != b) {
                throw new IOException(name + " is no .npy array");
            }
        }
        if (buffer.remaining() < 6) {
            throw new IOException(name + " is cut short");
        }
        int major = buffer.get();
        buffer.get();
        int length = major == 1 ? buffer.getShort() & 0xffff : buffer.getInt();
        if (major < 1 || major > 3 || length < 0 || length > buffer.remaining()) {
            throw new IOException(name + " has a damaged header, or is of an unknown version (" + major + ")");
        }
        String header = new String(file, buffer.position(), length, StandardCharsets.UTF_8);
        String descr = find(DESCR, header, name);
        String dtype = DTYPES.get(descr);
        if (dtype == null) {
            throw new IOException(name + " has elements of type " + descr + ", which is not supported");
        }
        int[] shape = shape(find(SHAPE, header, name), name);
        byte[] data = new byte[buffer.remaining() - length];
        System.arraycopy(file, buffer.position() + length, data, 0, data.length);
        try {
            NdArray stored = new NdArray(dtype, shape, data);
            return find(ORDER, header, name).equals("True") ? fromFortranOrder(stored) : stored;
        } catch (IllegalArgumentException error) {
            throw new IOException(name + ": " + error.getMessage(), error);
        }
    }

    private static String find(Pattern pattern, String header, String name) throws IOException {
        Matcher matcher = pattern.matcher(header);
        if (!matcher.find()) {
            throw new IOException(name + " has a header that can't be read: " + header.trim());
        }
        return matcher.group(1);
    }

    private static int[] shape(String text, String name) throws IOException {
        String[] words = text.replace(" ", "").split(",");
        int count = words.length == 1 && words[0].isEmpty() ? 0 : words.length;
        int[] shape = new int[count];
        for (int i = 0; i < count; i++) {
            try {
                shape[i] = Integer.parseInt(words[i]);
            } catch (NumberFormatException error) {
                throw new IOException(name + " has the shape (" + text + ")", error);
            }
        }
        return shape;
    }

    /** The same array in C order, from one whose data lie with the first axis running fastest. */
    private static NdArray fromFortranOrder(NdArray stored) {
        int size = stored.size();
        int item = size == 0 ? 0 : stored.data.length / size;
        byte[] out = new byte[stored.data.length];
        int[] index = new int[stored.shape.length];
        for (int to = 0; to < size; to++) {
            int from = 0;
            for (int axis = index.length - 1; axis >= 0; axis--) {
                from = from * stored.shape[axis] + index[axis];
            }
            System.arraycopy(stored.data, from * item, out, to * item, item);
            for (int axis = index.length - 1; axis >= 0 && ++index[axis] == stored.shape[axis]; axis--) {
                index[axis] = 0;
            }
        }
        return new NdArray(stored.dtype, stored.shape, out);
    }
}
