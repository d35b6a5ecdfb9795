package org.qwtv2.edge.demo.core;

import java.util.Arrays;

/** Times invocations. */
public final class Timing {
    private Timing() {}

    /** A clock and a wish to stop. */
    public interface Clock {
        /** Nanoseconds of a clock that never goes back. */
        long nanoTime();

        /** Whether whoever asked for the run has gone. */
        boolean cancelled();
    }

    /**
     * Nanoseconds of each of up to {@code runs} invocations; fewer, but at least one, where the clock passes {@code deadline}.
     *
     * @throws FailedException of the runtime, or {@link Failure#INTERRUPTED}.
     */
    public static long[] series(Engine engine, Clock clock, int runs, long deadline) throws FailedException {
        long[] ns = new long[Math.min(runs, 1 << 10)];
        int count = 0;
        while (count < runs) {
            if (clock.cancelled()) {
                throw new FailedException(Failure.INTERRUPTED, "the app left the screen, or a newer job came");
            }
            if (count == ns.length) {
                ns = Arrays.copyOf(ns, 2 * count);
            }
            long start = clock.nanoTime();
            engine.invoke();
            long end = clock.nanoTime();
            ns[count++] = end - start;
            if (end - deadline >= 0) {
                break;
            }
        }
        return Arrays.copyOf(ns, count);
    }
}
