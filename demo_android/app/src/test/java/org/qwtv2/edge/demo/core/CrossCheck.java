package org.qwtv2.edge.demo.core;

import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** What these classes make of files that Python wrote, for a test in Python to compare with NumPy and with what the SDK reads. */
final class CrossCheck {
    private CrossCheck() {}

    /** Arguments: "read NPZ ASSETS", see {@link #read}; or "job NAME FOLDER WORK OUT": does a job with the network that adds one. */
    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("read")) {
            System.out.println(read(archive(new File(arguments[1])), new File(arguments[2])));
            return;
        }
        Fakes.FakePhone phone = new Fakes.FakePhone();
        Fakes.FakeLoader loader = new Fakes.FakeLoader();
        loader.engine = new Fakes.Increment(phone, 1000);
        System.out.println(new Benchmark(arguments[1], phone, new File(arguments[4]))
                .run(new File(arguments[2]), new File(arguments[3]), loader));
    }

    /** Arrays with a series "ns", two arrays "a" and "b" to compare and any others; and a folder of assets. */
    private static JSONObject read(Map<String, NdArray> arrays, File assets)
            throws IOException, JSONException, AppConfig.InvalidException {
        JSONObject out = new JSONObject().put("arrays", described(arrays));
        JSONArray percentiles = new JSONArray();
        for (double value : Percentiles.of(series(arrays.get("ns")), 0, 10, 50, 90, 99, 100)) {
            percentiles.put(value);
        }
        out.put("percentiles", percentiles);
        out.put("differing", Outputs.differingBytes(arrays.get("a").data, arrays.get("b").data));
        out.put("largest", new JSONArray(Outputs.largest(arrays.get("a"), 5)));
        return out.put("assets", assets(assets, arrays.get("picture")));
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

    /** The samples and the expected outputs of every numerics, and the inputs made of a picture in every orientation. */
    private static JSONObject assets(File folder, NdArray picture) throws IOException, JSONException, AppConfig.InvalidException {
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
        JSONArray inputs = new JSONArray();
        int[] argb = new int[picture.size()];
        picture.buffer().asIntBuffer().get(argb);
        int[] fitted = Pictures.fitted(argb, picture.shape[1], picture.shape[0], config.image.width, config.image.height);
        for (int orientation = 1; orientation <= 8; orientation++) {
            int[] upright = Pictures.upright(fitted, config.image.width, config.image.height, orientation);
            for (boolean invert : new boolean[] {false, true}) {
                inputs.put(Streams.sha256(config.image.tensor(upright, invert, config.inputs.get(0)).data));
            }
        }
        return out.put("pictures", inputs);
    }
}
