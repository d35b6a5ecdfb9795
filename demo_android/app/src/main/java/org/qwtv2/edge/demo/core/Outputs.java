package org.qwtv2.edge.demo.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;

/** What can be said of the outputs of runs. */
public final class Outputs {
    private Outputs() {}

    /** How many bytes differ; bytes that only one of the two has count as different. */
    public static long differingBytes(byte[] a, byte[] b) {
        int common = Math.min(a.length, b.length);
        long count = Math.max(a.length, b.length) - common;
        for (int i = 0; i < common; i++) {
            if (a[i] != b[i]) {
                count++;
            }
        }
        return count;
    }

    /** The same over several outputs. */
    public static long differingBytes(List<NdArray> a, List<NdArray> b) {
        long count = 0;
        for (int i = 0; i < Math.max(a.size(), b.size()); i++) {
            byte[] none = {};
            count += differingBytes(i < a.size() ? a.get(i).data : none, i < b.size() ? b.get(i).data : none);
        }
        return count;
    }

    /** The places of the {@code k} largest elements, largest first, the earlier of equal ones first, NaN last. */
    public static List<Integer> largest(NdArray output, int k) {
        final double[] values = output.values();
        List<Integer> places = new ArrayList<>();
        for (int i = 0; i < values.length; i++) {
            places.add(i);
        }
        Collections.sort(places, new Comparator<Integer>() {
            @Override
            public int compare(Integer a, Integer b) {
                boolean noA = Double.isNaN(values[a]);
                boolean noB = Double.isNaN(values[b]);
                return noA || noB ? Boolean.compare(noA, noB) : Double.compare(values[b] + 0.0, values[a] + 0.0);
            }
        });
        return places.subList(0, Math.min(k, places.size()));
    }

    /** Class names, one per line; empty lines at the end do not count. */
    public static List<String> labels(String text) {
        List<String> names = new ArrayList<>(Arrays.asList(text.replace("\r", "").split("\n")));
        for (int i = 0; i < names.size(); i++) {
            names.set(i, names.get(i).trim());
        }
        while (!names.isEmpty() && names.get(names.size() - 1).isEmpty()) {
            names.remove(names.size() - 1);
        }
        return names;
    }
}
