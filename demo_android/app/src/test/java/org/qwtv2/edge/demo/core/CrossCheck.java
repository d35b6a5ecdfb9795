package org.qwtv2.edge.demo.core;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** What these classes make of files that Python wrote, as JSON, so that a test in Python can compare it with NumPy. */
final class CrossCheck {
    private CrossCheck() {}

    /** Arguments: an .npz with a series "ns", two arrays "a" and "b" to compare and any others; and a folder of assets. */
    public static void main(String[] arguments) throws Exception {
        Map<String, NdArray> arrays = archive(new File(arguments[0]));
        JSONObject out = new JSONObject().put("arrays", described(arrays));
        JSONArray percentiles = new JSONArray();
        for (double value : Percentiles.of(series(arrays.get("ns")), 0, 10, 50, 90, 99, 100)) {
            percentiles.put(value);
        }
        out.put("percentiles", percentiles);
        out.put("differing", Outputs.differingBytes(arrays.get("a").data, arrays.get("b").data));
        out.put("largest", new JSONArray(Outputs.largest(arrays.get("a"), 5)));
        out.put("assets", assets(new File(arguments[1])));
        System.out.println(out);
    }

    private static Map<String, NdArray> archive(File file) throws IOException {
        return Npz.read(new ByteArrayInputStream(Streams.readFile(file)));
    }

    private static long[] series(NdArray array) {
        double[] values = array.values();
        long[] out = new long[values.length];
        for (int i = 0; i < out.length; i++) {
            out[i] = (long) values[i];
        }
        return out;
    }

    private static JSONObject described(Map<String, NdArray> arrays) throws JSONException {
        JSONObject out = new JSONObject();
        for (Map.Entry<String, NdArray> entry : arrays.entrySet()) {
            NdArray array = entry.getValue();
            JSONArray shape = new JSONArray();
            for (int n : array.shape) {
                shape.put(n);
            }
            out.put(entry.getKey(), new JSONObject()
                    .put("dtype", array.dtype).put("shape", shape).put("sha256", Streams.sha256(array.data)));
        }
        return out;
    }

    /** The samples and the expected outputs of every numerics, and the input made of a picture of rising levels. */
    private static JSONObject assets(File folder) throws IOException, JSONException, AppConfig.InvalidException {
        AppConfig config = AppConfig.parse(new String(Streams.readFile(new File(folder, "app.json")), StandardCharsets.UTF_8));
        Map<String, NdArray> golden = archive(new File(folder, "golden.npz"));
        JSONObject out = new JSONObject().put("inputs", new JSONArray());
        for (int at = 0; at < config.samples; at++) {
            out.getJSONArray("inputs").put(Streams.sha256(config.sample(golden, at).get(0).data));
            for (AppConfig.Format format : config.formats) {
                for (String numerics : format.numerics.values()) {
                    if (!out.has(numerics)) {
                        out.put(numerics, new JSONArray());
                    }
                    out.getJSONArray(numerics).put(Streams.sha256(config.expected(golden, numerics, at).get(0).data));
                }
            }
        }
        int[] argb = new int[config.image.width * config.image.height];
        for (int i = 0; i < argb.length; i++) {
            argb[i] = 0x010101 * (i % 256);
        }
        return out.put("picture", Streams.sha256(config.image.tensor(argb, false, config.inputs.get(0)).data));
    }
}
