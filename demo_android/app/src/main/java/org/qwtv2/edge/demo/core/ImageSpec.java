package org.qwtv2.edge.demo.core;

import java.nio.ByteBuffer;
import java.util.Arrays;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** How 8-bit pixels become the network's input: value = (pixel - mean) * scale for each channel. */
public final class ImageSpec {
    /** Red, green and blue parts of grey, in thousandths (ITU-R BT.601). */
    private static final int[] GREY = {299, 587, 114};

    public final int height;
    public final int width;
    public final int channels;
    private final boolean channelsFirst;
    private final double[] mean;
    private final double[] scale;

    ImageSpec(boolean channelsFirst, int height, int width, double[] mean, double[] scale) {
        this.channelsFirst = channelsFirst;
        this.height = height;
        this.width = width;
        this.channels = mean.length;
        this.mean = mean;
        this.scale = scale;
    }

    static ImageSpec of(JSONObject json) throws JSONException {
        return new ImageSpec(
                json.getString("layout").equals("NCHW"),
                json.getInt("height"),
                json.getInt("width"),
                doubles(json.getJSONArray("mean")),
                doubles(json.getJSONArray("scale")));
    }

    private static double[] doubles(JSONArray json) throws JSONException {
        double[] out = new double[json.length()];
        for (int i = 0; i < out.length; i++) {
            out[i] = json.getDouble(i);
        }
        return out;
    }

    void check(TensorSpec input) throws AppConfig.InvalidException {
        int[] shape = channelsFirst ? new int[] {1, channels, height, width} : new int[] {1, height, width, channels};
        boolean zero = false;
        for (double s : scale) {
            zero |= s == 0;
        }
        boolean quantized = input.dtype.equals("int8") && input.scale > 0;
        if (!Arrays.equals(shape, input.shape)
                || scale.length != channels
                || zero
                || !(channels == 1 || channels == 3)
                || !(input.dtype.equals("float32") || quantized)) {
            throw new AppConfig.InvalidException("the image in app.json does not fit the input " + input.name);
        }
    }

    /**
     * The input for one image.
     *
     * @param argb {@code height * width} pixels, row by row, as Android's bitmaps give them.
     * @param invert black for white.
     */
    public NdArray tensor(int[] argb, boolean invert, TensorSpec input) {
        NdArray out = new NdArray(input.dtype, input.shape, new byte[(int) NdArray.bytes(input.dtype, input.shape)]);
        ByteBuffer buffer = out.buffer();
        for (int at = 0; at < argb.length; at++) {
            for (int c = 0; c < channels; c++) {
                int level = level(argb[at], c);
                double value = ((invert ? 255 - level : level) - mean[c]) * scale[c];
                if (input.dtype.equals("int8")) {
                    buffer.put(place(at, c), code(value, input));
                } else {
                    buffer.putFloat(4 * place(at, c), (float) value);
                }
            }
        }
        return out;
    }

    /** Pixels that show an input, the inverse of {@link #tensor}; values beyond black and white are cut off. */
    public int[] pixels(NdArray input, TensorSpec spec) {
        double[] values = input.values();
        int[] argb = new int[height * width];
        for (int at = 0; at < argb.length; at++) {
            int pixel = 0xff;
            for (int c = 0; c < 3; c++) {
                int channel = channels == 1 ? 0 : c;
                double level = spec.real(values[place(at, channel)]) / scale[channel] + mean[channel];
                pixel = pixel << 8 | (int) Math.round(Math.max(0, Math.min(255, level)));
            }
            argb[at] = pixel;
        }
        return argb;
    }

    private int level(int argb, int channel) {
        int[] rgb = {argb >> 16 & 0xff, argb >> 8 & 0xff, argb & 0xff};
        if (channels == 3) {
            return rgb[channel];
        }
        return (GREY[0] * rgb[0] + GREY[1] * rgb[1] + GREY[2] * rgb[2] + 500) / 1000;
    }

    /** The element of pixel {@code at} and a channel. */
    private int place(int at, int channel) {
        return channelsFirst ? channel * height * width + at : at * channels + channel;
    }

    /** A real value as a code: rounded half away from zero, saturated. */
    private static byte code(double value, TensorSpec input) {
        double steps = (float) value / (float) input.scale;
        long rounded = (long) (Math.signum(steps) * Math.floor(Math.abs(steps) + 0.5)) + input.zeroPoint;
        return (byte) Math.max(-128, Math.min(127, rounded));
    }
}
