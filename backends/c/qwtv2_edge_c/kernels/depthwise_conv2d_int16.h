#pragma once

#include "kernel.h"
#include "depthwise.h"
#include "fixed_point_64.h"

/* As depthwise_conv2d, between 16-bit codes of zero point 0. */
KERNEL void depthwise_conv2d_int16(const int16_t *x, int16_t *y, const struct depthwise_conv2d *p)
{
    const struct window *w = &p->window;
    const int32_t outputs = w->channels * p->multiplicity;
    for (int32_t i = 0; i < w->images; i++, x += w->input[0] * w->input[1] * w->channels) {
        for (int32_t oy = 0; oy < w->output[0]; oy++) {
            for (int32_t ox = 0; ox < w->output[1]; ox++, y += outputs) {
                for (int32_t o = 0; o < outputs; o++) {
                    const int8_t *weights = p->weights + o;
                    int32_t sum = p->bias[o];
                    for (int32_t ky = 0; ky < w->kernel[0]; ky++) {
                        for (int32_t kx = 0; kx < w->kernel[1]; kx++, weights += outputs) {
                            const int32_t iy = tap(w, 0, oy, ky), ix = tap(w, 1, ox, kx);
                            if (inside(w, 0, iy) && inside(w, 1, ix)) {
                                sum += x[(iy * w->input[1] + ix) * w->channels + o / p->multiplicity] * *weights;
                            }
                        }
                    }
                    y[o] = to_int16(requantize_64(sum, p->multiplier[o * p->step], p->shift[o * p->step]), p->out);
                }
            }
        }
    }
}
