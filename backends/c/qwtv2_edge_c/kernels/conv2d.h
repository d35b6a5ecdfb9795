#pragma once

#include "cmsis_nn_matmul.h"
#include "kernel.h"
#include "convolution.h"
#include "matmul_int8.h"
#include "widen.h"

/* The codes under one window, row by row; padding holds the zero point. channels: of one group, from first on. */
static inline void conv2d_column(const int8_t *x, int16_t *column, int32_t oy, int32_t ox, int32_t first, int32_t channels,
                                 const struct conv2d *p)
{
    const struct window *w = &p->window;
    const int32_t row = w->kernel[1] * channels, left = tap(w, 1, ox, 0);
    const int whole = w->dilation[1] == 1 && channels == w->channels && left >= 0 && left + w->kernel[1] <= w->input[1];
    for (int32_t ky = 0; ky < w->kernel[0]; ky++, column += row) {
        const int32_t iy = tap(w, 0, oy, ky);
        const int8_t *line = x + iy * w->input[1] * w->channels + first;
        if (!inside(w, 0, iy)) {
            fill_column(column, p->input_zero_point, row);
        } else if (whole) {
            widen(line + left * channels, column, row);
        } else {
            for (int32_t kx = 0; kx < w->kernel[1]; kx++) {
                const int32_t ix = tap(w, 1, ox, kx);
                if (inside(w, 1, ix)) {
                    widen(line + ix * w->channels, column + kx * channels, channels);
                } else {
                    fill_column(column + kx * channels, p->input_zero_point, channels);
                }
            }
        }
    }
}

#ifdef QWTV2_CMSIS_NN
static inline int cmsis_nn_conv2d(const int8_t *x, int8_t *y, const struct conv2d *p)
{
    const struct window *w = &p->window;
    const struct matmul *m = &p->matmul;
    const int32_t outputs = m->outputs * p->groups;
    const cmsis_nn_conv_params params = {
        -p->input_zero_point,
        m->out.zero_point,
        {w->stride[1], w->stride[0]},
        {w->pad[1], w->pad[0]},
        {w->dilation[1], w->dilation[0]},
        cmsis_nn_bounds(m->out),
    };
    const cmsis_nn_dims input = {w->images, w->input[0], w->input[1], w->channels};
    const cmsis_nn_dims filter = {outputs, w->kernel[0], w->kernel[1], w->channels / p->groups};
    const cmsis_nn_dims output = {w->images, w->output[0], w->output[1], outputs};
    return cmsis_nn_convolve(x, y, &params, &input, &filter, &output, m);
}
#endif

/* Output rows from top to bottom; a row is written when all that it needs of the input was read. column: room for one window. */
KERNEL void conv2d(const int8_t *x, int8_t *y, int16_t *column, const struct conv2d *p)
{
#ifdef QWTV2_CMSIS_NN
    if (cmsis_nn_conv2d(x, y, p)) {
        return;
    }
#endif
    const struct window *w = &p->window;
    const int32_t channels = w->channels / p->groups;
    for (int32_t i = 0; i < w->images; i++, x += w->input[0] * w->input[1] * w->channels) {
        for (int32_t oy = 0; oy < w->output[0]; oy++) {
            for (int32_t ox = 0; ox < w->output[1]; ox++) {
                struct matmul group = p->matmul;
                for (int32_t g = 0; g < p->groups; g++, y += group.outputs, next_group(&group)) {
                    conv2d_column(x, column, oy, ox, g * channels, channels, p);
                    matmul_int8(column, y, &group);
                }
            }
        }
    }
}
