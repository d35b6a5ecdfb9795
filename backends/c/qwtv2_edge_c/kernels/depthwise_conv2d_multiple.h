#pragma once

#include "cmsis_nn_depthwise.h"
#include "kernel.h"
#include "depthwise.h"

/* As depthwise_conv2d, several output channels for each of the input. */
KERNEL void depthwise_conv2d_multiple(const int8_t *x, int8_t *y, const struct depthwise_conv2d *p)
{
#ifdef QWTV2_CMSIS_NN
    if (cmsis_nn_depthwise(x, y, p)) {
        return;
    }
#endif
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
                            const int here = inside(w, 0, iy) && inside(w, 1, ix);
                            const int32_t at = (iy * w->input[1] + ix) * w->channels + o / p->multiplicity;
                            sum += (here ? x[at] : p->input_zero_point) * *weights;
                        }
                    }
                    y[o] = to_int8(requantize(sum, p->multiplier[o * p->step], p->shift[o * p->step]), p->out);
                }
            }
        }
    }
}
