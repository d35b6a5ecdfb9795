#pragma once

#include "cmsis_nn_depthwise.h"
#include "kernel.h"
#include "depthwise.h"

/* Channels that are summed side by side. */
enum { DEPTHWISE_BLOCK = 32 };

/* n sums of one window, from channel first on. The bias stands for a zero point under every tap, so padding adds it back. */
static inline void depthwise_sums(const int8_t *x, int32_t oy, int32_t ox, int32_t first, int32_t n, int32_t sums[DEPTHWISE_BLOCK],
                                  const struct depthwise_conv2d *p)
{
    const struct window *w = &p->window;
    const int8_t *weights = p->weights + first;
    for (int32_t c = 0; c < n; c++) {
        sums[c] = p->bias[first + c];
    }
    for (int32_t ky = 0; ky < w->kernel[0]; ky++) {
        const int32_t iy = tap(w, 0, oy, ky);
        for (int32_t kx = 0; kx < w->kernel[1]; kx++, weights += w->channels) {
            const int32_t ix = tap(w, 1, ox, kx);
            if (inside(w, 0, iy) && inside(w, 1, ix)) {
                const int8_t *at = x + (iy * w->input[1] + ix) * w->channels + first;
                for (int32_t c = 0; c < n; c++) {
                    sums[c] += at[c] * weights[c];
                }
            } else {
                for (int32_t c = 0; c < n; c++) {
                    sums[c] += p->input_zero_point * weights[c];
                }
            }
        }
    }
}

/* One filter per channel. Output rows from top to bottom; a row is written when all that it needs of the input was read. */
KERNEL void depthwise_conv2d(const int8_t *x, int8_t *y, const struct depthwise_conv2d *p)
{
#ifdef QWTV2_CMSIS_NN
    if (cmsis_nn_depthwise(x, y, p)) {
        return;
    }
#endif
    const struct window *w = &p->window;
    for (int32_t i = 0; i < w->images; i++, x += w->input[0] * w->input[1] * w->channels) {
        for (int32_t oy = 0; oy < w->output[0]; oy++) {
            for (int32_t ox = 0; ox < w->output[1]; ox++, y += w->channels) {
                for (int32_t first = 0; first < w->channels; first += DEPTHWISE_BLOCK) {
                    const int32_t left = w->channels - first, n = left < DEPTHWISE_BLOCK ? left : DEPTHWISE_BLOCK;
                    int32_t sums[DEPTHWISE_BLOCK];
                    depthwise_sums(x, oy, ox, first, n, sums, p);
                    for (int32_t c = 0; c < n; c++) {
                        const int32_t at = (first + c) * p->step;
                        y[first + c] = to_int8(requantize(sums[c], p->multiplier[at], p->shift[at]), p->out);
                    }
                }
            }
        }
    }
}
