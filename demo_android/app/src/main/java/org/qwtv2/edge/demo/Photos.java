package org.qwtv2.edge.demo;

import android.content.ContentResolver;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.media.ExifInterface;
import android.net.Uri;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import org.qwtv2.edge.demo.core.ImageSpec;
import org.qwtv2.edge.demo.core.Pictures;

/** Pictures that other apps hold. */
final class Photos {
    /** Pixels of the shorter side that decoding keeps, where the picture has them. */
    private static final int SMALLEST = 512;

    private Photos() {}

    /**
     * The middle of the picture behind {@code uri}, {@code spec.height * spec.width} pixels, row by row.
     *
     * @throws IOException in words, whatever it is that fails: the provider, the permission or the file.
     */
    static int[] read(ContentResolver resolver, Uri uri, ImageSpec spec) throws IOException {
        try {
            Bitmap decoded = decoded(resolver, uri, Math.max(SMALLEST, 2 * Math.max(spec.width, spec.height)));
            int orientation = orientation(resolver, uri);
            boolean sideways = Pictures.isSideways(orientation);
            int wide = sideways ? spec.height : spec.width;
            int high = sideways ? spec.width : spec.height;
            return Pictures.upright(
                    Pictures.fitted(pixels(decoded), decoded.getWidth(), decoded.getHeight(), wide, high), wide, high, orientation);
        } catch (SecurityException error) {
            throw new IOException("the other app no longer shares this picture", error);
        } catch (FileNotFoundException error) {
            throw new IOException("the picture is gone: " + error.getMessage(), error);
        } catch (IllegalStateException | IllegalArgumentException | UnsupportedOperationException error) { // a provider's fault
            throw new IOException("the app that holds the picture failed: " + error.getMessage(), error);
        }
    }

    /** The picture as it is stored, halved by the decoder while its shorter side keeps {@code wanted} pixels: memory stays small. */
    private static Bitmap decoded(ContentResolver resolver, Uri uri, int wanted) throws IOException {
        BitmapFactory.Options options = new BitmapFactory.Options();
        options.inJustDecodeBounds = true;
        try (InputStream stream = open(resolver, uri)) {
            BitmapFactory.decodeStream(stream, null, options);
        }
        if (options.outWidth <= 0 || options.outHeight <= 0) {
            throw new IOException("this is no picture that Android can read");
        }
        options.inSampleSize = 1;
        while (Math.min(options.outWidth, options.outHeight) / (2 * options.inSampleSize) >= wanted) {
            options.inSampleSize *= 2;
        }
        options.inJustDecodeBounds = false;
        try (InputStream stream = open(resolver, uri)) {
            Bitmap decoded = BitmapFactory.decodeStream(stream, null, options);
            if (decoded == null) {
                throw new IOException("the picture is damaged");
            }
            return decoded;
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
            return new ExifInterface(stream).getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL);
        } catch (FileNotFoundException error) {
            throw error;
        } catch (IOException error) {
            return ExifInterface.ORIENTATION_NORMAL; // formats without EXIF: the picture is as it is stored
        }
    }

    private static int[] pixels(Bitmap bitmap) {
        int[] argb = new int[bitmap.getWidth() * bitmap.getHeight()];
        bitmap.getPixels(argb, 0, bitmap.getWidth(), 0, 0, bitmap.getWidth(), bitmap.getHeight());
        return argb;
    }
}
