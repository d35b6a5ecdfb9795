package org.qwtv2.edge.demo.core;

import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/** Stand-ins for the phone and its runtimes. */
final class Fakes {
    private Fakes() {}

    static NdArray int8(int[] shape, int... values) {
        byte[] data = new byte[values.length];
        for (int i = 0; i < data.length; i++) {
            data[i] = (byte) values[i];
        }
        return new NdArray("int8", shape, data);
    }

    /** A clock that only moves when it is told to, and whatever else a phone tells. */
    static class FakePhone implements Benchmark.Phone {
        long now = 5;
        boolean cancelled;

        @Override
        public long nanoTime() {
            return now;
        }

        @Override
        public boolean cancelled() {
            return cancelled;
        }

        @Override
        public String appVersion() {
            return "1.2";
        }

        @Override
        public String abi() {
            return "arm64-v8a";
        }

        @Override
        public String model() {
            return "Maker Phone";
        }

        @Override
        public int pid() {
            return 42;
        }

        @Override
        public int thermalStatus() {
            return now > 1000 ? 1 : 0;
        }

        @Override
        public long peakRssBytes() {
            return 4096;
        }
    }

    /** Adds one to every int8 code; each invocation takes {@code ns} of the phone's time. */
    static class Increment implements Engine {
        final FakePhone phone;
        final long ns;
        int invocations;
        boolean closed;
        private List<NdArray> inputs;

        Increment(FakePhone phone, long ns) {
            this.phone = phone;
            this.ns = ns;
        }

        @Override
        public String runtime() {
            return "increment";
        }

        @Override
        public Map<String, String> versions() {
            return Collections.singletonMap("fake", "3");
        }

        @Override
        public void set(List<NdArray> arrays) throws FailedException {
            if (!arrays.get(0).dtype.equals("int8")) {
                throw new FailedException(Failure.WRONG_SHAPE, "takes int8");
            }
            inputs = arrays;
        }

        @Override
        public void invoke() throws FailedException {
            invocations++;
            phone.now += ns;
        }

        @Override
        public List<NdArray> outputs() {
            List<NdArray> out = new ArrayList<>();
            for (NdArray input : inputs) {
                byte[] data = input.data.clone();
                for (int i = 0; i < data.length; i++) {
                    data[i]++;
                }
                out.add(new NdArray(input.dtype, input.shape, data));
            }
            return out;
        }

        @Override
        public void close() {
            closed = true;
        }
    }

    /** Always gives the same engine, or throws what it holds. */
    static final class FakeLoader implements Engine.Loader {
        Engine engine;
        FailedException failure;
        Error error;
        byte[] loaded;

        @Override
        public Engine load(String runtime, File artifact, int threads) throws FailedException {
            if (failure != null) {
                throw failure;
            }
            if (error != null) {
                throw error;
            }
            try {
                loaded = Streams.readFile(artifact);
            } catch (IOException missing) {
                throw new AssertionError(missing);
            }
            return engine;
        }
    }
}
