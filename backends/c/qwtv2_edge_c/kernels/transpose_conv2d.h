#pragma once

#include "kernel.h"
#include "matmul.h"
#include "window.h"

/* window: input and output as they are, pad: what is cropped at top and left. bias: without a part of the zero point. */
struct transpose_conv2d {
    struct window window;
    int32_t input_zero_point;
    struct matmul matmul;
};

/* Position of the input that reaches an output position through tap k; -1 where none does. */
static inline int32_t transpose_tap(const struct window *w, int32_t axis, int32_t output, int32_t k)
{
    const int32_t at = output + w->pad[axis] - k;
    return at < 0 || at % w->stride[axis] != 0 || at / w->stride[axis] >= w->input[axis] ? -1 : at / w->stride[axis];
}

KERNEL void transpose_conv2d(const int8_t *x, int8_t *y, const struct transpose_conv2d *p)
{
    const struct window *w = &p->window;
    const struct matmul *m = &p->matmul;
    for (int32_t i = 0; i < w->images; i++, x += w->input[0] * w->input[1] * w->channels) {
        for (int32_t oy = 0; oy < w->output[0]; oy++) {
            for (int32_t ox = 0; ox < w->output[1]; ox++, y += m->outputs) {
                for (int32_t o = 0; o < m->outputs; o++) {
                    int32_t sum = m->bias[o];
                    for (int32_t ky = 0; ky < w->kernel[0]; ky++) {
                        const int32_t iy = transpose_tap(w, 0, oy, ky);
                        for (int32_t kx = 0; iy >= 0 && kx < w->kernel[1]; kx++) {
                            const int32_t ix = transpose_tap(w, 1, ox, kx);
                            if (ix >= 0) {
                                const int8_t *at = x + (iy * w->input[1] + ix) * w->channels;
                                const int8_t *weights = m->weights + o * m->depth + (ky * w->kernel[1] + kx) * w->channels;
                                for (int32_t c = 0; c < w->channels; c++) {
                                    sum += (at[c] - p->input_zero_point) * weights[c];
                                }
                            }
                        }
                    }
                    y[o] = to_int8(requantize(sum, m->multiplier[o * m->step], m->shift[o * m->step]), m->out);
                }
            }
        }
    }
}
