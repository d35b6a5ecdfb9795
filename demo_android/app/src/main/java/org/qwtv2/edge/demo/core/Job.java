package org.qwtv2.edge.demo.core;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.regex.Pattern;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** {@code job.json}: what is to be timed. The app's README describes the fields. */
public final class Job {
    public static final int SCHEMA_VERSION = 1;
    public static final String FILE = "job.json";
    private static final Pattern NAME = Pattern.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}");

    public final String runtime;
    /** Content of the artifact, of the size and hash that the job says. */
    public final byte[] artifact;
    /** One array for each input, first axis = samples times the artifact's own batch. */
    public final List<NdArray> inputs;

    public final int samples;
    public final int threads;
    public final int runs;
    public final double seconds;

    private Job(JSONObject json, File folder) throws JSONException, FailedException {
        runtime = json.getString("runtime");
        samples = atLeastOne(json, "samples");
        threads = atLeastOne(json, "threads");
        runs = atLeastOne(json, "runs");
        seconds = json.getDouble("seconds");
        if (!(seconds > 0 && seconds <= 86400)) {
            throw new FailedException(Failure.BAD_JOB, "seconds is " + seconds);
        }
        JSONObject file = json.getJSONObject("artifact");
        artifact = content(folder, file.getString("file"));
        String hash = Streams.sha256(artifact);
        if (artifact.length != file.getLong("bytes") || !hash.equals(file.getString("sha256"))) {
            throw new FailedException(
                    Failure.HASH_MISMATCH, file.getString("file") + " has " + artifact.length + " bytes, SHA-256 " + hash);
        }
        List<NdArray> arrays = new ArrayList<>();
        JSONArray listed = json.getJSONArray("inputs");
        for (int i = 0; i < listed.length(); i++) {
            arrays.add(input(listed.getJSONObject(i), folder));
        }
        inputs = Collections.unmodifiableList(arrays);
    }

    /** Whether {@code name} can be a job's name and the name of its folder. */
    public static boolean isName(String name) {
        return name != null && NAME.matcher(name).matches();
    }

    /**
     * The job in a folder, with everything it names read.
     *
     * @throws FailedException with BAD_JOB, MISSING_FILE, HASH_MISMATCH or WRONG_SHAPE.
     */
    public static Job read(File folder, String name) throws FailedException {
        String text = new String(content(folder, FILE), StandardCharsets.UTF_8);
        try {
            JSONObject json = new JSONObject(text);
            int version = json.getInt("schema_version");
            if (version != SCHEMA_VERSION) {
                throw new FailedException(
                        Failure.BAD_JOB, "the job has schema version " + version + ", this app reads " + SCHEMA_VERSION);
            }
            if (!json.getString("job").equals(name)) {
                throw new FailedException(Failure.BAD_JOB, "the job in " + folder + " is " + json.getString("job") + ", not " + name);
            }
            return new Job(json, folder);
        } catch (JSONException error) {
            throw new FailedException(Failure.BAD_JOB, FILE + ": " + error.getMessage(), error);
        }
    }

    /** The inputs of invocation {@code at}. */
    public List<NdArray> sample(int at) {
        List<NdArray> out = new ArrayList<>();
        for (NdArray all : inputs) {
            int unit = all.shape[0] / samples;
            out.add(all.rows(at * unit, unit));
        }
        return out;
    }

    private static int atLeastOne(JSONObject json, String key) throws JSONException, FailedException {
        int value = json.getInt(key);
        if (value < 1) {
            throw new FailedException(Failure.BAD_JOB, key + " is " + value + ", must be at least 1");
        }
        return value;
    }

    private NdArray input(JSONObject json, File folder) throws JSONException, FailedException {
        String name = json.getString("file");
        int[] shape = TensorSpec.ints(json.getJSONArray("shape"));
        byte[] data = content(folder, name);
        if (shape.length == 0 || shape[0] == 0 || shape[0] % samples != 0) {
            throw new FailedException(
                    Failure.WRONG_SHAPE, name + " has the shape " + Arrays.toString(shape) + " for " + samples + " samples");
        }
        try {
            return new NdArray(json.getString("dtype"), shape, data);
        } catch (IllegalArgumentException error) {
            throw new FailedException(Failure.WRONG_SHAPE, name + ": " + error.getMessage(), error);
        }
    }

    private static byte[] content(File folder, String name) throws FailedException {
        if (!isName(name)) {
            throw new FailedException(Failure.BAD_JOB, "a job's files lie in its own folder, not at " + name);
        }
        File file = new File(folder, name);
        try {
            return Streams.readFile(file);
        } catch (IOException error) { // missing, or not for this app to read
            throw new FailedException(Failure.MISSING_FILE, "can't read " + file + ": " + error.getMessage(), error);
        }
    }
}
