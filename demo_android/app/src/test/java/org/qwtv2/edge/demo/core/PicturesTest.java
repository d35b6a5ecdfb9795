package org.qwtv2.edge.demo.core;

import static org.junit.Assert.assertArrayEquals;

import org.junit.Test;

public class PicturesTest {
    private static int[] grey(int... levels) {
        int[] argb = new int[levels.length];
        for (int i = 0; i < argb.length; i++) {
            argb[i] = 0xff000000 | levels[i] * 0x010101;
        }
        return argb;
    }

    @Test
    public void aPictureOfTheRightSizeStaysAsItIs() {
        int[] picture = grey(1, 2, 3, 4, 5, 6);
        assertArrayEquals(picture, Pictures.fitted(picture, 3, 2, 3, 2));
    }

    @Test
    public void eachPixelIsTheMeanOfWhatItCovers() {
        assertArrayEquals(grey(3), Pictures.fitted(grey(0, 4, 8, 0), 2, 2, 1, 1));
        assertArrayEquals("a half is rounded up", grey(3), Pictures.fitted(grey(0, 4, 6, 0), 2, 2, 1, 1));
        // squares of one and a half pixels: (10 + 40 / 2) / 1.5 and (40 / 2 + 70) / 1.5
        assertArrayEquals(
                grey(20, 60, 20, 60), Pictures.fitted(grey(10, 40, 70, 10, 40, 70, 10, 40, 70), 3, 3, 2, 2));
        assertArrayEquals("a small picture gets larger pixels", grey(7, 7, 7, 7), Pictures.fitted(grey(7), 1, 1, 2, 2));
    }

    @Test
    public void theMiddleIsKept() {
        assertArrayEquals(grey(20), Pictures.fitted(grey(10, 20, 30), 3, 1, 1, 1));
        assertArrayEquals(grey(20), Pictures.fitted(grey(10, 20, 30), 1, 3, 1, 1));
        assertArrayEquals("half a pixel at each side", grey(15), Pictures.fitted(grey(10, 20), 2, 1, 1, 1));
    }

    @Test
    public void coloursAreTakenApartAndTransparencyIsWhite() {
        int[] checks = {0xfffe0000, 0xff008040, 0xff008040, 0xfffe0000};
        assertArrayEquals(new int[] {0xff7f4020}, Pictures.fitted(checks, 2, 2, 1, 1));
        assertArrayEquals(new int[] {0xffffffff, 0xffff7f7f}, Pictures.fitted(new int[] {0x00000000, 0x80ff0000}, 2, 1, 2, 1));
    }

    @Test
    public void orientationsOfExif() {
        int[] stored = {1, 2, 3, 4, 5, 6}; // two rows of three
        int[][] upright = {
            {1, 2, 3, 4, 5, 6}, {3, 2, 1, 6, 5, 4}, {6, 5, 4, 3, 2, 1}, {4, 5, 6, 1, 2, 3},
            {1, 4, 2, 5, 3, 6}, {4, 1, 5, 2, 6, 3}, {6, 3, 5, 2, 4, 1}, {3, 6, 2, 5, 1, 4}
        };
        for (int orientation = 1; orientation <= 8; orientation++) {
            assertArrayEquals("" + orientation, upright[orientation - 1], Pictures.upright(stored, 3, 2, orientation));
        }
        assertArrayEquals(stored, Pictures.upright(stored, 3, 2, 0));
        assertArrayEquals(stored, Pictures.upright(stored, 3, 2, 9));
    }
}
