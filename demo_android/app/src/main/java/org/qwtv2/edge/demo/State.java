package org.qwtv2.edge.demo;

import android.graphics.Bitmap;
import java.util.Collections;
import java.util.List;

/** Everything on the main screen, as it is at one moment. */
final class State {
    /** What the phone is doing, empty when it waits. */
    final String busy;
    /** What keeps the app from working at all, empty where nothing does. */
    final String problem;
    /** What went wrong with the last picture, empty where nothing did. */
    final String notice;

    final String title;
    /** Whether the network takes pictures, and whether it takes grey ones. */
    final boolean takesPhotos;

    final boolean grey;
    /** What is classified; the bitmap is null where it can't be shown. */
    final Bitmap picture;

    final String caption;
    final List<Format> formats;
    /** Of the two formats with each other, empty where there is one. */
    final String agreement;

    State(String busy, String problem, String notice, String title, boolean takesPhotos, boolean grey, Bitmap picture,
            String caption, List<Format> formats, String agreement) {
        this.busy = busy;
        this.problem = problem;
        this.notice = notice;
        this.title = title;
        this.takesPhotos = takesPhotos;
        this.grey = grey;
        this.picture = picture;
        this.caption = caption;
        this.formats = Collections.unmodifiableList(formats);
        this.agreement = agreement;
    }

    /** One format's card. */
    static final class Format {
        /** What is known of the bytes of golden.npz. */
        enum Badge { NONE, EXACT, DIFFERS }

        final String title;
        final Badge badge;
        /** Empty until every sample was compared. */
        final String badgeText;
        /** Top classes or values, and latency; or what failed. */
        final String text;

        Format(String title, Badge badge, String badgeText, String text) {
            this.title = title;
            this.badge = badge;
            this.badgeText = badgeText;
            this.text = text;
        }
    }
}
