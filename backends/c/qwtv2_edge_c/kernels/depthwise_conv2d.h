#pragma once

#include "cmsis_nn_depthwise.h"
#include "kernel.h"
#include "outputs.h"
#include "depthwise.h"

/* Channels that are summed side by side. */
enum { DEPTHWISE_BLOCK = 32 };

/* Sums of a window of 3x3 taps that all lie inside the input: tap by tap in registers. */
static inline void depthwise_sums_3x3(const int8_t *x, const int8_t *w, const int32_t *bias, int32_t channels, int32_t line, int32_t n,
                                      int32_t *sums)
{
    const int8_t *x1 = x + line, *x2 = x1 + line, *w1 = w + 3 * channels, *w2 = w1 + 3 * channels;
    const int32_t next = channels, last = 2 * channels;
    for (int32_t c = 0; c < n; c++) {
        sums[c] = bias[c] + x[c] * w[c] + x[c + next] * w[c + next] + x[c + last] * w[c + last] + x1[c] * w1[c] +
                  x1[c + next] * w1[c + next] + x1[c + last] * w1[c + last] + x2[c] * w2[c] + x2[c + next] * w2[c + next] +
                  x2[c + last] * w2[c + last];
    }
}

/* Sums of any window. The bias stands for a zero point under every tap, so padding adds it back. */
static inline void depthwise_sums(const int8_t *x, int32_t oy, int32_t ox, int32_t first, int32_t n, int32_t *sums,
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

/* Whether the window of an output position has 3x3 taps side by side, all inside the input. */
static inline int depthwise_whole_3x3(const struct window *w, int32_t oy, int32_t ox)
{
    return w->kernel[0] == 3 && w->kernel[1] == 3 && w->dilation[0] == 1 && w->dilation[1] == 1 && inside(w, 0, tap(w, 0, oy, 0)) &&
           inside(w, 0, tap(w, 0, oy, 2)) && inside(w, 1, tap(w, 1, ox, 0)) && inside(w, 1, tap(w, 1, ox, 2));
}

/* One filter per channel. Output rows from top to bottom; a row is written when all that it needs of the input was read. */
KERNEL void depthwise_conv2d(const int8_t *x, int8_t *y, const struct depthwise_conv2d *parameters)
{
#ifdef QWTV2_CMSIS_NN
    if (cmsis_nn_depthwise(x, y, parameters)) {
        return;
    }
#endif
    const struct depthwise_conv2d p = *parameters;
    const struct window *w = &p.window;
    const int32_t line = w->input[1] * w->channels;
    for (int32_t i = 0; i < w->images; i++, x += w->input[0] * line) {
        for (int32_t oy = 0; oy < w->output[0]; oy++) {
            for (int32_t ox = 0; ox < w->output[1]; ox++, y += w->channels) {
                const int8_t *at = depthwise_whole_3x3(w, oy, ox) ? x + tap(w, 0, oy, 0) * line + tap(w, 1, ox, 0) * w->channels : 0;
                for (int32_t first = 0; first < w->channels; first += DEPTHWISE_BLOCK) {
                    const int32_t left = w->channels - first, n = left < DEPTHWISE_BLOCK ? left : DEPTHWISE_BLOCK;
                    int32_t sums[DEPTHWISE_BLOCK];
                    if (at) {
                        depthwise_sums_3x3(at + first, p.weights + first, p.bias + first, w->channels, line, n, sums);
                    } else {
                        depthwise_sums(x, oy, ox, first, n, sums, &p);
                    }
                    const int32_t scale = first * p.step;
                    outputs_int8(sums, p.multiplier + scale, p.shift + scale, p.step, n, y + first, p.out);
                }
            }
        }
    }
}
