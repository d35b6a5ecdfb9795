package org.qwtv2.edge.demo.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** {@code app.json}: what the bundled network takes and gives, and which files belong to it. */
public final class AppConfig {
    public static final int SCHEMA_VERSION = 1;

    /** An assets folder that the app can't work with, in words for the screen. */
    public static final class InvalidException extends Exception {
        public InvalidException(String message, Throwable cause) {
            super(message, cause);
        }

        public InvalidException(String message) {
            super(message);
        }
    }

    /** One artifact and what it must compute on each kind of processor. */
    public static final class Format {
        public final String runtime;
        public final String file;
        /** ABI -> numerics whose bytes golden.npz holds. */
        public final Map<String, String> numerics;
        /** ABI -> by how many codes some ops may differ, by declaration. */
        public final Map<String, Integer> declaredLsb;

        Format(JSONObject json) throws JSONException {
            runtime = json.getString("runtime");
            file = json.getString("file");
            Map<String, String> names = new LinkedHashMap<>();
            Map<String, Integer> bounds = new LinkedHashMap<>();
            JSONObject expected = json.getJSONObject("expected");
            for (Iterator<String> abis = expected.keys(); abis.hasNext(); ) {
                String abi = abis.next();
                names.put(abi, expected.getJSONObject(abi).getString("numerics"));
                bounds.put(abi, expected.getJSONObject(abi).getInt("declared_lsb"));
            }
            numerics = Collections.unmodifiableMap(names);
            declaredLsb = Collections.unmodifiableMap(bounds);
        }
    }

    public final String title;
    /** Whether the outputs are scores of classes. */
    public final boolean classes;

    public final List<TensorSpec> inputs;
    public final List<TensorSpec> outputs;
    /** How pixels become the input, null where the network does not take images. */
    public final ImageSpec image;

    public final int samples;
    public final List<Format> formats;
    /** Name of every other asset -> its SHA-256. */
    public final Map<String, String> files;

    private AppConfig(JSONObject json) throws JSONException {
        title = json.getString("title");
        classes = json.getString("task").equals("classes");
        inputs = specs(json.getJSONArray("inputs"));
        outputs = specs(json.getJSONArray("outputs"));
        image = json.isNull("image") ? null : ImageSpec.of(json.getJSONObject("image"));
        samples = json.getInt("samples");
        List<Format> found = new ArrayList<>();
        JSONArray array = json.getJSONArray("formats");
        for (int i = 0; i < array.length(); i++) {
            found.add(new Format(array.getJSONObject(i)));
        }
        formats = Collections.unmodifiableList(found);
        Map<String, String> hashes = new LinkedHashMap<>();
        JSONObject listed = json.getJSONObject("files");
        for (Iterator<String> names = listed.keys(); names.hasNext(); ) {
            String name = names.next();
            hashes.put(name, listed.getJSONObject(name).getString("sha256"));
        }
        files = Collections.unmodifiableMap(hashes);
    }

    private static List<TensorSpec> specs(JSONArray array) throws JSONException {
        List<TensorSpec> out = new ArrayList<>();
        for (int i = 0; i < array.length(); i++) {
            out.add(TensorSpec.of(array.getJSONObject(i)));
        }
        return Collections.unmodifiableList(out);
    }

    /**
     * @throws InvalidException for text that is no JSON, another schema version, or fields that are missing or do not fit.
     */
    public static AppConfig parse(String text) throws InvalidException {
        try {
            JSONObject json = new JSONObject(text);
            int version = json.getInt("schema_version");
            if (version != SCHEMA_VERSION) {
                throw new InvalidException("app.json has schema version " + version + ", this app reads " + SCHEMA_VERSION);
            }
            AppConfig config = new AppConfig(json);
            config.check();
            return config;
        } catch (JSONException error) {
            throw new InvalidException("app.json can't be read: " + error.getMessage(), error);
        }
    }

    private void check() throws InvalidException {
        if (samples < 1 || inputs.isEmpty() || outputs.isEmpty() || formats.isEmpty()) {
            throw new InvalidException("app.json names no samples, inputs, outputs or formats");
        }
        for (Format format : formats) {
            if (!files.containsKey(format.file)) {
                throw new InvalidException("app.json knows no hash of " + format.file);
            }
        }
        if (image != null) {
            image.check(inputs.get(0));
        }
    }

    /** One invocation's inputs: those of sample {@code at} of golden.npz. */
    public List<NdArray> sample(Map<String, NdArray> golden, int at) throws InvalidException {
        return pick(golden, inputs, "", at);
    }

    /** The outputs that {@code numerics} gives for sample {@code at}. */
    public List<NdArray> expected(Map<String, NdArray> golden, String numerics, int at) throws InvalidException {
        return pick(golden, outputs, numerics + "/", at);
    }

    private List<NdArray> pick(Map<String, NdArray> golden, List<TensorSpec> specs, String prefix, int at) throws InvalidException {
        List<NdArray> out = new ArrayList<>();
        for (TensorSpec spec : specs) {
            NdArray all = golden.get(prefix + spec.name);
            int bytes = (int) NdArray.bytes(spec.dtype, spec.shape);
            if (all == null || !all.dtype.equals(spec.dtype) || all.data.length != (long) samples * bytes) {
                throw new InvalidException("golden.npz holds no " + samples + " samples of " + prefix + spec.name);
            }
            out.add(new NdArray(spec.dtype, spec.shape, Arrays.copyOfRange(all.data, at * bytes, (at + 1) * bytes)));
        }
        return out;
    }
}
