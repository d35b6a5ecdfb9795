package org.qwtv2.edge.demo.core;

import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** An input or output of the network: real value = scale * (code - zero point) where it holds codes. */
public final class TensorSpec {
    public final String name;
    public final String dtype;
    public final int[] shape;
    /** 0 where elements are real values themselves. */
    public final double scale;

    public final int zeroPoint;

    public TensorSpec(String name, String dtype, int[] shape, double scale, int zeroPoint) {
        this.name = name;
        this.dtype = dtype;
        this.shape = shape;
        this.scale = scale;
        this.zeroPoint = zeroPoint;
    }

    static TensorSpec of(JSONObject json) throws JSONException {
        return new TensorSpec(
                json.getString("name"),
                json.getString("dtype"),
                ints(json.getJSONArray("shape")),
                json.optDouble("scale", 0),
                json.optInt("zero_point", 0));
    }

    static int[] ints(JSONArray json) throws JSONException {
        int[] out = new int[json.length()];
        for (int i = 0; i < out.length; i++) {
            out[i] = whole(json.getDouble(i));
        }
        return out;
    }

    /** A number as an int; JSON's own conversion cuts off what does not fit. */
    static int whole(double number) throws JSONException {
        if (number != (int) number) {
            throw new JSONException(number + " is no whole number, or too large a one");
        }
        return (int) number;
    }

    /** The real value behind an element. */
    public double real(double element) {
        return scale == 0 ? element : scale * (element - zeroPoint);
    }
}
