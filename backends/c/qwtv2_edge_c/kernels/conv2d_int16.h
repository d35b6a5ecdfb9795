#pragma once

#include "kernel.h"
#include "convolution.h"
#include "matmul_int16.h"

/* As conv2d, between 16-bit codes of zero point 0. */
KERNEL void conv2d_int16(const int16_t *x, int16_t *y, int16_t *column, const struct conv2d *p)
{
    const struct window *w = &p->window;
    const int32_t channels = w->channels / p->groups;
    for (int32_t i = 0; i < w->images; i++, x += w->input[0] * w->input[1] * w->channels) {
        for (int32_t oy = 0; oy < w->output[0]; oy++) {
            for (int32_t ox = 0; ox < w->output[1]; ox++) {
                struct matmul group = p->matmul;
                for (int32_t g = 0; g < p->groups; g++, y += group.outputs, next_group(&group)) {
                    int16_t *at = column;
                    for (int32_t ky = 0; ky < w->kernel[0]; ky++) {
                        for (int32_t kx = 0; kx < w->kernel[1]; kx++, at += channels) {
                            const int32_t iy = tap(w, 0, oy, ky), ix = tap(w, 1, ox, kx);
                            const int here = inside(w, 0, iy) && inside(w, 1, ix);
                            for (int32_t c = 0; c < channels; c++) {
                                at[c] = here ? x[(iy * w->input[1] + ix) * w->channels + g * channels + c] : 0;
                            }
                        }
                    }
                    arrange(column, group.depth);
                    matmul_int16(column, 1, y, group.outputs, &group);
                }
            }
        }
    }
}
