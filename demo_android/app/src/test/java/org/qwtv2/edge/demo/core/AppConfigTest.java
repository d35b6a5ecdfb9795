package org.qwtv2.edge.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import org.json.JSONException;
import org.json.JSONObject;
import org.junit.Test;

public class AppConfigTest {
    static final String TEXT = "{'schema_version': 1, 'title': 'Net', 'kind': 'image', 'task': 'classes',"
            + "'inputs': [{'name': 'x', 'shape': [1, 1, 2, 2], 'dtype': 'int8', 'scale': 0.5, 'zero_point': -128}],"
            + "'outputs': [{'name': 'y', 'shape': [1, 1, 2, 2], 'dtype': 'int8', 'scale': 2.0, 'zero_point': 1}],"
            + "'image': {'layout': 'NCHW', 'height': 2, 'width': 2, 'channels': 1, 'mean': [0], 'scale': [0.5]}, 'samples': 2,"
            + "'formats': [{'runtime': 'litert', 'file': 'model.tflite',"
            + "'expected': {'arm64-v8a': {'numerics': 'n@aarch64', 'declared_lsb': 1}}}],"
            + "'files': {'model.tflite': {'bytes': 3, 'sha256': 'abc'}}}";

    private static void refused(String word, String text) {
        try {
            AppConfig.parse(text);
        } catch (AppConfig.InvalidException error) {
            assertTrue(error.getMessage(), error.getMessage().contains(word));
            return;
        }
        fail("it was read");
    }

    private static String with(String key, Object value) throws JSONException {
        return new JSONObject(TEXT).put(key, value).toString();
    }

    /** The network that adds one to every code: two samples, of which the second is promised wrongly in one byte. */
    static Map<String, NdArray> golden() {
        Map<String, NdArray> golden = new HashMap<>();
        golden.put("x", Fakes.int8(new int[] {2, 1, 2, 2}, 1, 2, 3, 4, 5, 6, 7, 8));
        golden.put("n@aarch64/y", Fakes.int8(new int[] {2, 1, 2, 2}, 2, 3, 4, 5, 6, 7, 8, 0));
        return golden;
    }

    @Test
    public void fields() throws AppConfig.InvalidException {
        AppConfig config = AppConfig.parse(TEXT);
        assertEquals("Net", config.title);
        assertTrue(config.classes);
        assertEquals("n@aarch64", config.formats.get(0).numerics.get("arm64-v8a"));
        assertEquals(1, (int) config.formats.get(0).declaredLsb.get("arm64-v8a"));
        assertNull(config.formats.get(0).numerics.get("armeabi-v7a"));
        assertEquals("abc", config.files.get("model.tflite"));
        assertEquals(4.0, config.outputs.get(0).real(3), 0);
    }

    @Test
    public void whatDoesNotFit() throws JSONException {
        refused("can't be read", "");
        refused("can't be read", "{}");
        refused("schema version 2", with("schema_version", 2));
        refused("no samples", with("samples", 0));
        refused("no hash of model.tflite", with("files", new JSONObject()));
        refused("does not fit", TEXT.replace("'height': 2", "'height': 3"));
        refused("does not fit", TEXT.replace("NCHW", "NHWC").replace("'x', 'shape': [1, 1, 2, 2]", "'x', 'shape': [1, 1, 2, 4]"));
        refused("does not fit", TEXT.replace("'scale': [0.5]", "'scale': [0]"));
        refused("does not fit", TEXT.replace("'mean': [0]", "'mean': [0, 0]"));
    }

    @Test
    public void samplesOfTheArchive() throws AppConfig.InvalidException {
        AppConfig config = AppConfig.parse(TEXT);
        assertArrayEquals(new byte[] {5, 6, 7, 8}, config.sample(golden(), 1).get(0).data);
        assertArrayEquals(new byte[] {2, 3, 4, 5}, config.expected(golden(), "n@aarch64", 0).get(0).data);
        Map<String, NdArray> wrong = golden();
        wrong.put("x", Fakes.int8(new int[] {1, 4}, 1, 2, 3, 4));
        for (Map<String, NdArray> archive : Arrays.asList(wrong, Collections.<String, NdArray>emptyMap())) {
            try {
                config.sample(archive, 0);
                fail("it was read");
            } catch (AppConfig.InvalidException error) {
                assertTrue(error.getMessage().contains("no 2 samples of x"));
            }
        }
    }

    @Test
    public void goldenCheckCountsEveryByteOfEverySample() throws Exception {
        AppConfig config = AppConfig.parse(TEXT);
        Engine engine = new Fakes.Increment(new Fakes.FakePhone(), 1);
        GoldenCheck check = GoldenCheck.run(engine, config, golden(), "n@aarch64");
        assertEquals(1, check.differingBytes);
        assertEquals(8, check.bytes);
        GoldenCheck unknown = GoldenCheck.run(engine, config, golden(), null);
        assertEquals(-1, unknown.differingBytes);
        assertEquals(0, check.differingBytes(unknown));
        assertEquals(2, check.sameClass(unknown));
    }

    @Test
    public void pixelsAndBack() throws AppConfig.InvalidException {
        AppConfig config = AppConfig.parse(TEXT);
        int[] grey = {0xff000000, 0xffffffff, 0xff404040, 0xff010101};
        TensorSpec input = config.inputs.get(0);
        NdArray tensor = config.image.tensor(grey, false, input);
        assertArrayEquals(new byte[] {-128, 127, -64, -127}, tensor.data);
        assertArrayEquals(grey, config.image.pixels(tensor, input));
        assertArrayEquals(new byte[] {127, -128, 63, 126}, config.image.tensor(grey, true, input).data);
        assertEquals(-128 + 76, config.image.tensor(new int[] {0xffff0000, 0, 0, 0}, false, input).data[0]);
    }

    @Test
    public void channelsFirstAndLast() throws AppConfig.InvalidException {
        int[] rgb = {0xff010203, 0xff040506};
        for (boolean first : new boolean[] {true, false}) {
            int[] shape = first ? new int[] {1, 3, 1, 2} : new int[] {1, 1, 2, 3};
            ImageSpec image = new ImageSpec(first, 1, 2, new double[] {1, 2, 3}, new double[] {1, 10, 100});
            TensorSpec input = new TensorSpec("x", "float32", shape, 0, 0);
            image.check(input);
            NdArray tensor = image.tensor(rgb, false, input);
            double[] expected = first ? new double[] {0, 3, 0, 30, 0, 300} : new double[] {0, 0, 0, 3, 30, 300};
            assertArrayEquals(expected, tensor.values(), 0);
            assertArrayEquals(rgb, image.pixels(tensor, input));
        }
    }
}
