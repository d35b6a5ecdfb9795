package org.qwtv2.edge.demo.core;

/** Pictures of any size, the right way up, as small as the network takes them. */
public final class Pictures {
    private Pictures() {}

    /**
     * The middle of a picture in the proportions of the wanted size. Each pixel is the mean of the square that it covers, by area, of
     * each colour; what is transparent lies on white.
     *
     * @param argb {@code width * height} pixels, row by row, as Android's bitmaps give them.
     * @return {@code wide * high} opaque pixels.
     */
    public static int[] fitted(int[] argb, int width, int height, int wide, int high) {
        double side = Math.min((double) width / wide, (double) height / high);
        double left = (width - wide * side) / 2;
        double top = (height - high * side) / 2;
        int[] out = new int[wide * high];
        for (int i = 0; i < out.length; i++) {
            out[i] = mean(argb, width, height, left + i % wide * side, top + i / wide * side, side);
        }
        return out;
    }

    private static int mean(int[] argb, int width, int height, double left, double top, double side) {
        double right = Math.min(left + side, width);
        double bottom = Math.min(top + side, height);
        double red = 0;
        double green = 0;
        double blue = 0;
        double area = 0;
        for (int y = (int) top; y < bottom; y++) {
            double tall = Math.min(y + 1, bottom) - Math.max(y, top);
            for (int x = (int) left; x < right; x++) {
                double share = tall * (Math.min(x + 1, right) - Math.max(x, left));
                int pixel = argb[y * width + x];
                int alpha = pixel >>> 24;
                red += share * onWhite(pixel >> 16 & 0xff, alpha);
                green += share * onWhite(pixel >> 8 & 0xff, alpha);
                blue += share * onWhite(pixel & 0xff, alpha);
                area += share;
            }
        }
        return 0xff000000 | rounded(red / area) << 16 | rounded(green / area) << 8 | rounded(blue / area);
    }

    private static double onWhite(int level, int alpha) {
        return 255 - (255 - level) * alpha / 255.0;
    }

    private static int rounded(double level) {
        return (int) (level + 0.5);
    }

    /** Whether a picture of this EXIF orientation lies on its side. */
    public static boolean isSideways(int orientation) {
        return orientation >= 5 && orientation <= 8;
    }

    /**
     * A picture turned, and mirrored, as its EXIF orientation says.
     *
     * @param argb pixels as they are stored, {@code width * height}.
     * @param orientation 1 to 8; any other number leaves the picture as it is.
     * @return as many pixels, {@code height * width} for a picture that lies on its side.
     */
    public static int[] upright(int[] argb, int width, int height, int orientation) {
        boolean sideways = isSideways(orientation);
        boolean fromRight = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
        boolean fromBottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
        int wide = sideways ? height : width;
        int[] out = new int[argb.length];
        for (int i = 0; i < out.length; i++) {
            int x = sideways ? i / wide : i % wide;
            int y = sideways ? i % wide : i / wide;
            out[i] = argb[(fromBottom ? height - 1 - y : y) * width + (fromRight ? width - 1 - x : x)];
        }
        return out;
    }
}
