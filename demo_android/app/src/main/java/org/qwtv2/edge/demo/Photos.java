package org.qwtv2.edge.demo;

import android.content.ContentResolver;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.graphics.Matrix;
import android.media.ExifInterface;
import android.net.Uri;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import org.qwtv2.edge.demo.core.ImageSpec;

/** Pictures of any size, the right way up, as small as the network takes them. */
final class Photos {
    /** EXIF orientation -> clockwise degrees; the mirrored ones (2, 4, 5, 7) are mirrored first. */
    private static final int[] DEGREES = {0, 0, 0, 180, 180, 270, 90, 90, 270};

    /** Pixels of the shorter side that decoding keeps, where the picture has them. */
    private static final int SMALLEST = 512;

    private Photos() {}

    /**
     * The middle of the picture behind {@code uri}, {@code spec.width} by {@code spec.height} pixels.
     *
     * @throws IOException in words, whatever it is that fails: the provider, the permission or the file.
     */
    static Bitmap read(ContentResolver resolver, Uri uri, ImageSpec spec) throws IOException {
        try {
            BitmapFactory.Options options = new BitmapFactory.Options();
            options.inJustDecodeBounds = true;
            try (InputStream stream = open(resolver, uri)) {
                BitmapFactory.decodeStream(stream, null, options);
            }
            if (options.outWidth <= 0 || options.outHeight <= 0) {
                throw new IOException("this is no picture that Android can read");
            }
            // so that memory stays small for any camera, and yet there is something left to average over
            int wanted = Math.max(SMALLEST, 2 * Math.max(spec.width, spec.height));
            options.inSampleSize = 1;
            while (Math.min(options.outWidth, options.outHeight) / (2 * options.inSampleSize) >= wanted) {
                options.inSampleSize *= 2;
            }
            options.inJustDecodeBounds = false;
            Bitmap decoded;
            try (InputStream stream = open(resolver, uri)) {
                decoded = BitmapFactory.decodeStream(stream, null, options);
            }
            if (decoded == null) {
                throw new IOException("the picture is damaged");
            }
            return fitted(decoded, orientation(resolver, uri), spec);
        } catch (SecurityException error) {
            throw new IOException("the other app no longer shares this picture", error);
        } catch (FileNotFoundException error) {
            throw new IOException("the picture is gone: " + error.getMessage(), error);
        } catch (IllegalStateException | IllegalArgumentException | UnsupportedOperationException error) { // a provider's fault
            throw new IOException("the app that holds the picture failed: " + error.getMessage(), error);
        }
    }

    private static InputStream open(ContentResolver resolver, Uri uri) throws IOException {
        InputStream stream = resolver.openInputStream(uri);
        if (stream == null) {
            throw new FileNotFoundException("its provider has stopped");
        }
        return stream;
    }

    private static int orientation(ContentResolver resolver, Uri uri) throws IOException {
        try (InputStream stream = open(resolver, uri)) {
            int found = new ExifInterface(stream).getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL);
            return found >= 0 && found < DEGREES.length ? found : ExifInterface.ORIENTATION_NORMAL;
        } catch (FileNotFoundException error) {
            throw error;
        } catch (IOException error) {
            return ExifInterface.ORIENTATION_NORMAL; // formats without EXIF: the picture is as it is stored
        }
    }

    /** Turned upright, cut to the input's proportions around the middle, scaled to its size. */
    private static Bitmap fitted(Bitmap bitmap, int orientation, ImageSpec spec) {
        Matrix turn = new Matrix();
        if (orientation == 2 || orientation == 4 || orientation == 5 || orientation == 7) {
            turn.postScale(-1, 1);
        }
        turn.postRotate(DEGREES[orientation]);
        Bitmap upright = Bitmap.createBitmap(bitmap, 0, 0, bitmap.getWidth(), bitmap.getHeight(), turn, true);
        double zoom = Math.min((double) upright.getWidth() / spec.width, (double) upright.getHeight() / spec.height);
        int width = Math.max(1, (int) (spec.width * zoom));
        int height = Math.max(1, (int) (spec.height * zoom));
        int left = (upright.getWidth() - width) / 2;
        int top = (upright.getHeight() - height) / 2;
        Bitmap part = Bitmap.createBitmap(upright, left, top, width, height);
        while (width >= 2 * spec.width && height >= 2 * spec.height) { // by halves: one big step would leave most pixels out
            width /= 2;
            height /= 2;
            part = Bitmap.createScaledBitmap(part, width, height, true);
        }
        return Bitmap.createScaledBitmap(part, spec.width, spec.height, true);
    }

    /** The pixels of a bitmap of the input's size, row by row. */
    static int[] pixels(Bitmap bitmap) {
        int[] argb = new int[bitmap.getWidth() * bitmap.getHeight()];
        bitmap.getPixels(argb, 0, bitmap.getWidth(), 0, 0, bitmap.getWidth(), bitmap.getHeight());
        return argb;
    }
}
