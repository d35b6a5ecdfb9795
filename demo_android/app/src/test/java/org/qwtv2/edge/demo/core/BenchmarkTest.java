package org.qwtv2.edge.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

public class BenchmarkTest {
    @Rule
    public final TemporaryFolder temporary = new TemporaryFolder();

    private final Fakes.FakePhone phone = new Fakes.FakePhone();
    private final Fakes.FakeLoader loader = new Fakes.FakeLoader();
    private File folder;
    private File work;
    private File out;
    private JSONObject job;

    @Before
    public void aGoodJob() throws IOException, JSONException {
        folder = temporary.newFolder("job");
        work = temporary.newFolder("work");
        out = temporary.newFolder("out");
        byte[] artifact = {7, 7, 7};
        Streams.writeAtomic(new File(folder, "model.tflite"), artifact);
        Streams.writeAtomic(new File(folder, "x.bin"), new byte[] {1, 2, 3, 4, 5, 6});
        job = new JSONObject("{'schema_version': 1, 'job': 'j-1', 'runtime': 'litert', 'samples': 3, 'threads': 2, 'runs': 4,"
                + "'seconds': 10, 'inputs': [{'file': 'x.bin', 'dtype': 'int8', 'shape': [3, 2]}]}");
        job.put("artifact", new JSONObject().put("file", "model.tflite").put("bytes", 3).put("sha256", Streams.sha256(artifact)));
        loader.engine = new Fakes.Increment(phone, 100);
    }

    private JSONObject run() throws IOException, JSONException {
        Streams.writeAtomic(new File(folder, Job.FILE), job.toString().getBytes(StandardCharsets.UTF_8));
        new Benchmark("j-1", phone, out).run(folder, work, loader);
        assertEquals("the artifact's copy is gone", 0, work.list().length);
        return result();
    }

    private JSONObject result() throws IOException, JSONException {
        return new JSONObject(new String(Streams.readFile(new File(out, Benchmark.FILE)), StandardCharsets.UTF_8));
    }

    private void fails(String code, String word) throws IOException, JSONException {
        JSONObject error = run().getJSONObject("error");
        assertEquals(code, error.getString("code"));
        assertTrue(error.getString("message"), error.getString("message").contains(word));
        assertTrue(result().getBoolean("complete"));
    }

    @Test
    public void aWholeJob() throws IOException, JSONException {
        JSONObject result = run();
        assertTrue(result.getBoolean("complete"));
        assertTrue(result.isNull("error"));
        assertEquals(1, result.getInt("schema_version"));
        assertEquals("j-1", result.getString("job"));
        assertEquals("increment", result.getString("runtime"));
        assertEquals("3", result.getJSONObject("versions").getString("fake"));
        assertEquals("arm64-v8a", result.getString("abi"));
        assertEquals("Maker Phone", result.getString("model"));
        assertEquals("1.2", result.getString("app_version"));
        assertEquals(42, result.getInt("pid"));
        assertEquals(2, result.getInt("threads"));
        assertEquals(100, result.getLong("first_ns"));
        assertEquals("[100,100,100,100]", result.getJSONArray("ns").toString());
        assertEquals(4096, result.getLong("peak_rss_bytes"));
        assertEquals("[0,0]", result.getJSONArray("thermal_status").toString());
        JSONObject output = result.getJSONArray("outputs").getJSONObject(0);
        assertEquals("[3,2]", output.getJSONArray("shape").toString());
        assertEquals("int8", output.getString("dtype"));
        assertArrayEquals(new byte[] {2, 3, 4, 5, 6, 7}, Streams.readFile(new File(out, output.getString("file"))));
        assertArrayEquals(new byte[] {7, 7, 7}, loader.loaded);
        assertTrue(((Fakes.Increment) loader.engine).closed);
        assertEquals("first, four timed, two other samples", 7, ((Fakes.Increment) loader.engine).invocations);
    }

    @Test
    public void theLimitOfTimeEndsTheSeries() throws IOException, JSONException {
        job.put("runs", 1000).put("seconds", 3.5);
        loader.engine = new Fakes.Increment(phone, 1_000_000_000L);
        assertEquals(4, run().getJSONArray("ns").length());
        assertEquals("[0,1]", result().getJSONArray("thermal_status").toString());
        job.put("seconds", 0.3);
        loader.engine = new Fakes.Increment(phone, 100_000_000L);
        assertEquals("within a block too", 3, run().getJSONArray("ns").length());
    }

    @Test
    public void partOfTheResultIsThereAfterEverySecond() throws IOException, JSONException {
        final List<Integer> counts = new ArrayList<>();
        job.put("runs", 6);
        loader.engine = new Fakes.Increment(phone, 400_000_000L) {
            @Override
            public void invoke() throws FailedException {
                try {
                    if (new File(out, Benchmark.FILE).exists()) {
                        assertFalse(result().getBoolean("complete"));
                        counts.add(result().getJSONArray("ns").length());
                    }
                } catch (IOException | JSONException error) {
                    throw new AssertionError(error);
                }
                super.invoke();
            }
        };
        assertEquals(6, run().getJSONArray("ns").length());
        assertEquals("after three in 1.2 s, and six", "[0, 0, 0, 3, 3, 3, 6, 6]", counts.toString());
    }

    @Test
    public void whatWasMeasuredStaysWhenTheRuntimeFails() throws IOException, JSONException {
        loader.engine = new Fakes.Increment(phone, 1_100_000_000L) {
            @Override
            public void invoke() throws FailedException {
                if (invocations == 3) {
                    throw new FailedException(Failure.RUN_FAILED, "kernel 5 failed");
                }
                super.invoke();
            }
        };
        fails("run_failed", "kernel 5 failed");
        assertEquals(2, result().getJSONArray("ns").length());
        assertEquals(0, result().getJSONArray("outputs").length());
        assertTrue(((Fakes.Increment) loader.engine).closed);
    }

    @Test
    public void leavingTheScreen() throws IOException, JSONException {
        phone.cancelled = true;
        fails("interrupted", "left the screen");
    }

    @Test
    public void outOfMemory() throws IOException, JSONException {
        loader.error = new OutOfMemoryError("no 3 GB");
        fails("out_of_memory", "no 3 GB");
    }

    @Test
    public void loaderFailures() throws IOException, JSONException {
        loader.failure = new FailedException(Failure.LOAD_FAILED, "not a model");
        fails("load_failed", "not a model");
        loader.failure = new FailedException(Failure.UNSUPPORTED_RUNTIME, "no onnx");
        fails("unsupported_runtime", "no onnx");
    }

    @Test
    public void theRuntimeRefusesTheInput() throws IOException, JSONException {
        job.getJSONArray("inputs").getJSONObject(0).put("dtype", "uint8");
        fails("wrong_shape", "takes int8");
    }

    @Test
    public void badJobs() throws IOException, JSONException {
        String good = job.toString();
        for (String[] change : new String[][] {
            {"samples", "0"}, {"threads", "-1"}, {"runs", "0"}, {"seconds", "0"}, {"schema_version", "2"}, {"inputs", "1"}
        }) {
            job = new JSONObject(good).put(change[0], Integer.parseInt(change[1]));
            fails("bad_job", change[0].replace('_', ' '));
        }
        job = new JSONObject(good).put("job", "other");
        fails("bad_job", "other");
        job = new JSONObject(good).put("runs", (1L << 32) + 4);
        fails("bad_job", "too large");
        job = new JSONObject(good);
        job.getJSONArray("inputs").getJSONObject(0).put("shape", new JSONArray("[3.5, 2]"));
        fails("bad_job", "3.5");
        job = new JSONObject(good).put("threads", 100_000);
        fails("bad_job", "at most 64");
        job = new JSONObject(good).put("inputs", new JSONArray());
        fails("bad_job", "inputs is empty");
        job = new JSONObject(good);
        job.remove("runtime");
        fails("bad_job", "runtime");
        job = new JSONObject(good);
        job.getJSONObject("artifact").put("file", "../secret");
        fails("bad_job", "../secret");
    }

    @Test
    public void noJson() throws IOException, JSONException {
        char[] brackets = new char[200_000];
        Arrays.fill(brackets, '[');
        for (String text : new String[] {"{", "{\"job\":" + new String(brackets)}) {
            Streams.writeAtomic(new File(folder, Job.FILE), text.getBytes(StandardCharsets.UTF_8));
            assertTrue(new Benchmark("j-1", phone, out).run(folder, work, loader).startsWith("bad_job"));
            assertEquals("bad_job", result().getJSONObject("error").getString("code"));
        }
    }

    @Test
    public void missingFiles() throws IOException, JSONException {
        assertTrue(new File(folder, "x.bin").delete());
        fails("missing_file", "x.bin");
        assertTrue(new File(folder, "model.tflite").delete());
        fails("missing_file", "model.tflite");
        assertTrue(new File(folder, "model.tflite").mkdir());
        fails("missing_file", "model.tflite");
        assertTrue(new Benchmark("j-1", phone, out).run(new File(folder, "none"), work, loader).startsWith("missing_file"));
    }

    @Test
    public void noRoomForTheArtifact() throws IOException, JSONException {
        assertTrue(work.delete());
        Streams.writeAtomic(new File(folder, Job.FILE), job.toString().getBytes(StandardCharsets.UTF_8));
        assertTrue(new Benchmark("j-1", phone, out).run(folder, work, loader).startsWith("load_failed: can't copy"));
        assertTrue(result().getBoolean("complete"));
    }

    @Test
    public void damagedArtifacts() throws IOException, JSONException {
        Streams.writeAtomic(new File(folder, "model.tflite"), new byte[] {7, 7, 8});
        fails("hash_mismatch", "3 bytes");
        Streams.writeAtomic(new File(folder, "model.tflite"), new byte[] {7, 7, 7});
        job.getJSONObject("artifact").put("bytes", 4);
        fails("hash_mismatch", "3 bytes");
    }

    @Test
    public void wrongShapes() throws IOException, JSONException {
        JSONObject input = job.getJSONArray("inputs").getJSONObject(0);
        input.put("shape", new JSONArray("[3, 3]"));
        fails("wrong_shape", "takes 9 bytes, got 6");
        input.put("shape", new JSONArray("[2, 3]"));
        fails("wrong_shape", "for 3 samples");
        input.put("shape", new JSONArray("[]"));
        fails("wrong_shape", "for 3 samples");
        input.put("shape", new JSONArray("[3, 2]")).put("dtype", "float17");
        fails("wrong_shape", "float17");
    }

    @Test
    public void namesOfJobs() {
        assertTrue(Job.isName("20260101-ab_c.1"));
        for (String name : new String[] {null, "", ".", "..", "a/b", "-x", "a b"}) {
            assertFalse(String.valueOf(name), Job.isName(name));
        }
    }
}
