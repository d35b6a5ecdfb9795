package org.qwtv2.edge.demo.core;

import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
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
    /** More than any phone has cores; a runtime that is told to make thousands ends the process. */
    private static final int MOST_THREADS = 64;

    private static final Pattern NAME = Pattern.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}");

    public final String runtime;
    /** One array for each input, first axis = samples times the artifact's own batch. */
    public final List<NdArray> inputs;

    public final int samples;
    public final int threads;
    public final int runs;
    public final double seconds;

    private final File artifact;
    private final long artifactBytes;
    private final String artifactHash;

    private Job(JSONObject json, File folder) throws JSONException, FailedException {
        runtime = json.getString("runtime");
        samples = atLeastOne(json, "samples");
        threads = atLeastOne(json, "threads");
        if (threads > MOST_THREADS) {
            throw new FailedException(Failure.BAD_JOB, "threads is " + threads + ", must be at most " + MOST_THREADS);
        }
        runs = atLeastOne(json, "runs");
        seconds = json.getDouble("seconds");
        if (!(seconds > 0 && seconds <= 86400)) {
            throw new FailedException(Failure.BAD_JOB, "seconds is " + seconds);
        }
        JSONObject file = json.getJSONObject("artifact");
        artifact = file(folder, file.getString("file"));
        artifactBytes = file.getLong("bytes");
        artifactHash = file.getString("sha256");
        List<NdArray> arrays = new ArrayList<>();
        JSONArray listed = json.getJSONArray("inputs");
        for (int i = 0; i < listed.length(); i++) {
            arrays.add(input(listed.getJSONObject(i), folder));
        }
        if (arrays.isEmpty()) { // ExecuTorch would take inputs of its own making
            throw new FailedException(Failure.BAD_JOB, "inputs is empty");
        }
        inputs = Collections.unmodifiableList(arrays);
    }

    /**
     * Copies the artifact, so that what was hashed is what is loaded.
     *
     * @throws FailedException with MISSING_FILE, HASH_MISMATCH, or LOAD_FAILED where there is no room for it.
     */
    void copyArtifact(File to) throws FailedException {
        String hash;
        try (InputStream stream = open(artifact)) {
            hash = Streams.writeAtomic(to, stream);
        } catch (IOException error) {
            throw new FailedException(Failure.LOAD_FAILED, "can't copy " + artifact + ": " + error.getMessage(), error);
        }
        if (to.length() != artifactBytes || !hash.equals(artifactHash)) {
            throw new FailedException(
                    Failure.HASH_MISMATCH, artifact.getName() + " has " + to.length() + " bytes, SHA-256 " + hash);
        }
    }

    /** Whether {@code name} can be a job's name and the name of its folder. */
    public static boolean isName(String name) {
        return name != null && NAME.matcher(name).matches();
    }

    /**
     * The job in a folder, with its inputs read.
     *
     * @throws FailedException with BAD_JOB, MISSING_FILE or WRONG_SHAPE.
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
        } catch (StackOverflowError error) { // the parser calls itself for each bracket
            throw new FailedException(Failure.BAD_JOB, FILE + " is nested too deep", error);
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
        int value = TensorSpec.whole(json.getDouble(key));
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

    private static File file(File folder, String name) throws FailedException {
        if (!isName(name)) {
            throw new FailedException(Failure.BAD_JOB, "a job's files lie in its own folder, not at " + name);
        }
        File file = new File(folder, name);
        if (!file.isFile()) { // a pipe would be waited for, a device read without end
            throw new FailedException(Failure.MISSING_FILE, file + " is no file that this app can see");
        }
        return file;
    }

    private static InputStream open(File file) throws FailedException {
        try {
            return new FileInputStream(file);
        } catch (IOException error) { // gone by now, or not for this app to read
            throw new FailedException(Failure.MISSING_FILE, "can't read " + file + ": " + error.getMessage(), error);
        }
    }

    private static byte[] content(File folder, String name) throws FailedException {
        File file = file(folder, name);
        try {
            return Streams.readFile(file);
        } catch (IOException error) {
            throw new FailedException(Failure.MISSING_FILE, "can't read " + file + ": " + error.getMessage(), error);
        }
    }
}
