package org.qwtv2.edge.demo.core;

import java.util.Arrays;

/** Percentiles as NumPy gives them by default: linear between neighbours. */
public final class Percentiles {
    private Percentiles() {}

    /**
     * @param values at least one, in any order.
     * @param percents each within 0 and 100.
     * @return one value for each of {@code percents}, in the unit of {@code values}.
     */
    public static double[] of(long[] values, double... percents) {
        if (values.length == 0) {
            throw new IllegalArgumentException("no values");
        }
        long[] sorted = values.clone();
        Arrays.sort(sorted);
        double[] out = new double[percents.length];
        for (int i = 0; i < percents.length; i++) {
            double place = percents[i] / 100 * (sorted.length - 1);
            int below = (int) Math.floor(place);
            int above = Math.min(below + 1, sorted.length - 1);
            double share = place - below;
            double step = (double) sorted[above] - sorted[below];
            // from the nearer end, as NumPy does it, so that the last bit is the same
            out[i] = share < 0.5 ? sorted[below] + step * share : sorted[above] - step * (1 - share);
        }
        return out;
    }
}
