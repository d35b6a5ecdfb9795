package org.qwtv2.edge.demo.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/** What one format gave for the samples of golden.npz, beside what it must give. */
public final class GoldenCheck {
    /** Outputs of every sample. */
    public final List<List<NdArray>> outputs;

    /** Bytes that differ from the expected ones over all samples; -1 where nothing is promised for this processor. */
    public final long differingBytes;

    /** Bytes compared. */
    public final long bytes;

    private GoldenCheck(List<List<NdArray>> outputs, long differingBytes, long bytes) {
        this.outputs = Collections.unmodifiableList(outputs);
        this.differingBytes = differingBytes;
        this.bytes = bytes;
    }

    /**
     * Runs every sample.
     *
     * @param numerics whose bytes are expected, null where nothing is promised.
     */
    public static GoldenCheck run(Engine engine, AppConfig config, Map<String, NdArray> golden, String numerics)
            throws FailedException, AppConfig.InvalidException {
        List<List<NdArray>> outputs = new ArrayList<>();
        long differing = 0;
        long bytes = 0;
        for (int at = 0; at < config.samples; at++) {
            engine.set(config.sample(golden, at));
            engine.invoke();
            List<NdArray> got = engine.outputs();
            outputs.add(got);
            if (numerics != null) {
                List<NdArray> want = config.expected(golden, numerics, at);
                differing += Outputs.differingBytes(want, got);
                for (NdArray array : want) {
                    bytes += array.data.length;
                }
            }
        }
        return new GoldenCheck(outputs, numerics == null ? -1 : differing, bytes);
    }

    /** Bytes in which two formats differ over all samples. */
    public long differingBytes(GoldenCheck other) {
        long count = 0;
        for (int at = 0; at < outputs.size(); at++) {
            count += Outputs.differingBytes(outputs.get(at), other.outputs.get(at));
        }
        return count;
    }

    /** Samples for which two formats name the same class. */
    public int sameClass(GoldenCheck other) {
        int count = 0;
        for (int at = 0; at < outputs.size(); at++) {
            NdArray first = outputs.get(at).get(0);
            NdArray second = other.outputs.get(at).get(0);
            if (Outputs.largest(first, 1).equals(Outputs.largest(second, 1))) {
                count++;
            }
        }
        return count;
    }
}
