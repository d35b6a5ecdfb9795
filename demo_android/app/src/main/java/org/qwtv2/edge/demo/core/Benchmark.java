package org.qwtv2.edge.demo.core;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** Runs one job and keeps {@code result.json} up to date while it does. */
public final class Benchmark {
    public static final int SCHEMA_VERSION = 1;
    public static final String FILE = "result.json";
    /** Between two writings of the result. */
    private static final long BLOCK_NS = 1_000_000_000L;

    /** What the phone tells about itself. */
    public interface Phone extends Timing.Clock {
        String appVersion();

        /** Of the processor this process was built for, as Android calls it. */
        String abi();

        String model();

        int pid();

        /** 0 (none) to 6 (shutdown), -1 where it is not known. */
        int thermalStatus();

        /** Largest resident set of this process so far, 0 where it is not known. */
        long peakRssBytes();
    }

    private final String name;
    private final Phone phone;
    private final File out;
    private final JSONObject result = new JSONObject();
    private final JSONArray ns = new JSONArray();

    /**
     * @param name the job's; see {@link Job#isName}.
     * @param out folder for the result; it is there and empty.
     */
    public Benchmark(String name, Phone phone, File out) {
        this.name = name;
        this.phone = phone;
        this.out = out;
    }

    /**
     * Does the job; whatever goes wrong in it ends up in the result.
     *
     * @param folder of the job.
     * @param work folder of this app's own, for the artifact that is loaded.
     * @return the error's text, "" where there was none.
     * @throws IOException where the result itself can't be written.
     */
    public String run(File folder, File work, Engine.Loader loader) throws IOException {
        try {
            begin();
            FailedException failed = null;
            try {
                measure(Job.read(folder, name), work, loader);
            } catch (FailedException error) {
                failed = error;
            } catch (OutOfMemoryError error) {
                failed = new FailedException(Failure.OUT_OF_MEMORY, String.valueOf(error.getMessage()), error);
            } catch (RuntimeException error) {
                failed = new FailedException(Failure.RUN_FAILED, error.toString(), error);
            }
            if (failed != null) {
                result.put("error", new JSONObject().put("code", failed.failure.code()).put("message", failed.getMessage()));
            }
            result.put("complete", true);
            write();
            return failed == null ? "" : failed.failure.code() + ": " + failed.getMessage();
        } catch (JSONException error) {
            throw new AssertionError(error); // only values that JSON can hold are put
        }
    }

    private void begin() throws JSONException {
        result.put("schema_version", SCHEMA_VERSION).put("job", name).put("app_version", phone.appVersion());
        result.put("complete", false).put("error", JSONObject.NULL);
        result.put("runtime", "").put("versions", new JSONObject());
        result.put("abi", phone.abi()).put("model", phone.model()).put("threads", 0);
        result.put("load_ns", 0).put("first_ns", 0).put("ns", ns).put("outputs", new JSONArray());
        result.put("peak_rss_bytes", phone.peakRssBytes());
        int before = phone.thermalStatus();
        result.put("thermal_status", new JSONArray().put(before).put(before)).put("pid", phone.pid());
    }

    private void measure(Job job, File work, Engine.Loader loader) throws FailedException, IOException, JSONException {
        result.put("threads", job.threads);
        File artifact = new File(work, "artifact");
        try {
            job.copyArtifact(artifact);
            long start = phone.nanoTime();
            try (Engine engine = loader.load(job.runtime, artifact, job.threads)) {
                result.put("load_ns", phone.nanoTime() - start);
                measure(job, engine);
            }
        } finally {
            artifact.delete();
        }
    }

    private void measure(Job job, Engine engine) throws FailedException, IOException, JSONException {
        JSONObject versions = new JSONObject();
        for (Map.Entry<String, String> version : engine.versions().entrySet()) {
            versions.put(version.getKey(), version.getValue());
        }
        result.put("runtime", engine.runtime()).put("versions", versions);
        engine.set(job.sample(0));
        result.put("first_ns", Timing.series(engine, phone, 1, phone.nanoTime())[0]);
        List<List<NdArray>> outputs = new ArrayList<>();
        add(outputs, engine.outputs());
        write();
        time(job, engine);
        for (int i = 1; i < job.samples; i++) {
            engine.set(job.sample(i));
            Timing.series(engine, phone, 1, phone.nanoTime());
            add(outputs, engine.outputs());
        }
        save(outputs);
    }

    private void time(Job job, Engine engine) throws FailedException, IOException, JSONException {
        long end = phone.nanoTime() + (long) (job.seconds * 1e9);
        while (ns.length() < job.runs) {
            long block = phone.nanoTime() + BLOCK_NS;
            for (long one : Timing.series(engine, phone, job.runs - ns.length(), block - end < 0 ? block : end)) {
                ns.put(one);
            }
            write();
            if (phone.nanoTime() - end >= 0) {
                return;
            }
        }
    }

    private static void add(List<List<NdArray>> outputs, List<NdArray> sample) {
        for (int i = 0; i < sample.size(); i++) {
            if (i == outputs.size()) {
                outputs.add(new ArrayList<NdArray>());
            }
            outputs.get(i).add(sample.get(i));
        }
    }

    private void save(List<List<NdArray>> outputs) throws IOException, JSONException {
        JSONArray listed = new JSONArray();
        for (int i = 0; i < outputs.size(); i++) {
            NdArray all = NdArray.join(outputs.get(i));
            String file = "output_" + i + ".bin";
            Streams.writeAtomic(new File(out, file), all.data);
            JSONArray shape = new JSONArray();
            for (int n : all.shape) {
                shape.put(n);
            }
            listed.put(new JSONObject().put("file", file).put("dtype", all.dtype).put("shape", shape));
        }
        result.put("outputs", listed);
    }

    /** Writes the result as it is now. */
    private void write() throws IOException, JSONException {
        result.put("peak_rss_bytes", phone.peakRssBytes());
        result.getJSONArray("thermal_status").put(1, phone.thermalStatus());
        Streams.writeAtomic(new File(out, FILE), (result.toString(1) + "\n").getBytes(StandardCharsets.UTF_8));
    }
}
