package org.qwtv2.edge.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Map;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
import org.junit.Test;

public class NpzTest {
    private static byte[] npy(int major, String header, byte... data) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        byte[] text = (header + "\n").getBytes(StandardCharsets.UTF_8);
        out.write(0x93);
        for (int b : new int[] {'N', 'U', 'M', 'P', 'Y', major, 0, text.length & 255, text.length >> 8}) {
            out.write(b);
        }
        for (int i = 2; i < (major == 1 ? 2 : 4); i++) {
            out.write(0);
        }
        out.write(text, 0, text.length);
        out.write(data, 0, data.length);
        return out.toByteArray();
    }

    private static String header(String descr, boolean fortran, String shape) {
        return "{'descr': '" + descr + "', 'fortran_order': " + (fortran ? "True" : "False") + ", 'shape': " + shape + ", }";
    }

    private static void refused(String word, byte[] file) {
        try {
            Npz.array("x", file);
        } catch (IOException error) {
            assertTrue(error.getMessage(), error.getMessage().contains(word));
            return;
        }
        fail("it was read");
    }

    @Test
    public void everyVersionOfTheHeader() throws IOException {
        for (int major = 1; major <= 3; major++) {
            NdArray array = Npz.array("x", npy(major, header("|i1", false, "(2, 3)"), new byte[] {1, 2, 3, 4, 5, 6}));
            assertEquals("int8", array.dtype);
            assertArrayEquals(new int[] {2, 3}, array.shape);
            assertArrayEquals(new byte[] {1, 2, 3, 4, 5, 6}, array.data);
        }
    }

    @Test
    public void fortranOrderIsTurned() throws IOException {
        NdArray array = Npz.array("x", npy(1, header("<i2", true, "(2, 3)"), new byte[] {1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6, 0}));
        assertArrayEquals(new double[] {1, 2, 3, 4, 5, 6}, array.values(), 0);
    }

    @Test
    public void scalarsAndEmptyArrays() throws IOException {
        assertArrayEquals(new int[0], Npz.array("x", npy(1, header("|u1", false, "()"), (byte) 200)).shape);
        assertEquals(200, Npz.array("x", npy(1, header("|u1", false, "()"), (byte) 200)).values()[0], 0);
        assertEquals(0, Npz.array("x", npy(1, header("<f4", false, "(0, 4)"))).size());
    }

    @Test
    public void whatCanNotBeRead() {
        byte[] good = npy(1, header("|i1", false, "(2, 3)"), new byte[6]);
        refused("no .npy", new byte[0]);
        refused("no .npy", "PK and so on".getBytes(StandardCharsets.UTF_8));
        refused("cut short", Arrays.copyOf(good, 8));
        refused("damaged header", Arrays.copyOf(good, 20));
        refused("takes 6 bytes, got 5", Arrays.copyOf(good, good.length - 1));
        refused("unknown version", npy(9, header("|i1", false, "(1,)"), new byte[1]));
        refused("|O", npy(1, header("|O", false, "(1,)"), new byte[8]));
        refused(">f4", npy(1, header(">f4", false, "(1,)"), new byte[4]));
        refused("can't be read", npy(1, "{}"));
        refused("too large", npy(1, header("<f8", false, "(2147483647, 2147483647, 2147483647)")));
        refused("shape", npy(1, header("|i1", false, "(99999999999,)")));
    }

    @Test
    public void archivesKeepNamesAndOrder() throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        try (ZipOutputStream zip = new ZipOutputStream(out)) {
            for (String name : new String[] {"x", "litert-xnnpack@aarch64/head:0"}) {
                zip.putNextEntry(new ZipEntry(name + ".npy"));
                zip.write(npy(1, header("|i1", false, "(1,)"), (byte) name.length()));
            }
        }
        Map<String, NdArray> arrays = Npz.read(new ByteArrayInputStream(out.toByteArray()));
        assertEquals("[x, litert-xnnpack@aarch64/head:0]", arrays.keySet().toString());
        assertEquals(29, arrays.get("litert-xnnpack@aarch64/head:0").data[0]);
    }

    @Test(expected = IOException.class)
    public void textIsNoArchive() throws IOException {
        Npz.read(new ByteArrayInputStream("version https://".getBytes(StandardCharsets.UTF_8)));
    }
}
