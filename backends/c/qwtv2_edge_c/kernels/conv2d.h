#pragma once

#include "cmsis_nn_matmul.h"
#include "kernel.h"
#include "convolution.h"
#include "matmul_int8.h"

/* The codes under one window, row by row; padding holds the zero point. channels: of one group, from first on. */
static inline void conv2d_codes(const int8_t *x, int8_t *codes, int32_t oy, int32_t ox, int32_t first, int32_t channels,
                                const struct conv2d *p)
{
    const struct window *w = &p->window;
    const int32_t row = w->kernel[1] * channels, left = tap(w, 1, ox, 0);
    const int whole = w->dilation[1] == 1 && channels == w->channels && left >= 0 && left + w->kernel[1] <= w->input[1];
    for (int32_t ky = 0; ky < w->kernel[0]; ky++, codes += row) {
        const int32_t iy = tap(w, 0, oy, ky);
        if (!inside(w, 0, iy)) {
            memset(codes, p->input_zero_point, (size_t)row);
            continue;
        }
        const int8_t *line = x + iy * w->input[1] * w->channels + first;
        if (whole) {
            memcpy(codes, line + left * channels, (size_t)row);
            continue;
        }
        for (int32_t kx = 0; kx < w->kernel[1]; kx++) {
            const int32_t ix = tap(w, 1, ox, kx);
            if (inside(w, 1, ix)) {
                memcpy(codes + kx * channels, line + ix * w->channels, (size_t)channels);
            } else {
                memset(codes + kx * channels, p->input_zero_point, (size_t)channels);
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

/* Output rows from top to bottom; a row is written when all that it needs of the input was read. columns, codes: room for
   COLUMNS windows of 16-bit values, and for one of codes. */
KERNEL void conv2d(const int8_t *x, int8_t *y, int16_t *columns, int8_t *codes, const struct conv2d *p)
{
#ifdef QWTV2_CMSIS_NN
    if (cmsis_nn_conv2d(x, y, p)) {
        return;
    }
#endif
    const struct window *w = &p->window;
    const int32_t channels = w->channels / p->groups, outputs = p->matmul.outputs * p->groups, depth = p->matmul.depth;
    for (int32_t i = 0; i < w->images; i++, x += w->input[0] * w->input[1] * w->channels) {
        for (int32_t oy = 0; oy < w->output[0]; oy++, y += w->output[1] * outputs) {
            for (int32_t ox = 0; ox < w->output[1]; ox += COLUMNS) {
                const int32_t left = w->output[1] - ox, count = left < COLUMNS ? left : COLUMNS;
                struct matmul group = p->matmul;
                for (int32_t g = 0; g < p->groups; g++, next_group(&group)) {
                    for (int32_t c = 0; c < count; c++) {
                        conv2d_codes(x, codes, oy, ox + c, g * channels, channels, p);
                        widen(codes, columns + c * depth, depth);
                    }
                    matmul_int8(columns, count, y + ox * outputs + g * group.outputs, outputs, &group);
                }
            }
        }
    }
}
