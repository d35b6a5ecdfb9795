#pragma once

#include "cmsis_nn_matmul.h"
#include "kernel.h"
#include "matmul_int8.h"

#ifdef QWTV2_CMSIS_NN
/* Without padding the folded bias serves, at an input offset of 0; it is also what the vector kernels call the sum of weights. */
static inline int cmsis_nn_fully_connected(const int8_t *x, int8_t *y, int32_t vectors, const struct matmul *m)
{
    const cmsis_nn_dims input = {vectors, 1, 1, m->depth}, filter = {m->depth, 1, 1, m->outputs}, output = {vectors, 1, 1, m->outputs};
    const cmsis_nn_dims bias = {1, 1, 1, m->outputs};
    const cmsis_nn_context sums = {(int32_t *)m->bias, m->outputs * (int32_t)sizeof *m->bias};
    const cmsis_nn_fc_params params = {0, 0, m->out.zero_point, cmsis_nn_bounds(m->out)};
    if (vectors > 1 && m->step) {
        const cmsis_nn_dims row = {1, 1, vectors, m->depth}, point = {m->outputs, 1, 1, m->depth}, rows = {1, 1, vectors, m->outputs};
        const cmsis_nn_conv_params convolve = {0, m->out.zero_point, {1, 1}, {0, 0}, {1, 1}, params.activation};
        return cmsis_nn_convolve(x, y, &convolve, &row, &point, &rows, m);
    }
    if (m->step) {
        const cmsis_nn_per_channel_quant_params scales = {(int32_t *)m->multiplier, (int32_t *)m->cmsis_nn.shift};
        return arm_fully_connected_per_channel_s8(&sums, &params, &scales, &input, x, &filter, m->weights, &bias, m->bias, &output, y) ==
               ARM_CMSIS_NN_SUCCESS;
    }
    const cmsis_nn_per_tensor_quant_params scale = {m->multiplier[0], m->shift[0]};
    return arm_fully_connected_s8(&sums, &params, &scale, &input, x, &filter, m->weights, &bias, m->bias, &output, y) ==
           ARM_CMSIS_NN_SUCCESS;
}
#endif

/* y = x * weights, vector by vector; also a convolution of 1x1 windows. columns: room for COLUMNS vectors. */
KERNEL void fully_connected(const int8_t *x, int8_t *y, int16_t *columns, int32_t vectors, const struct matmul *m)
{
#ifdef QWTV2_CMSIS_NN
    if (cmsis_nn_fully_connected(x, y, vectors, m)) {
        return;
    }
#endif
    for (int32_t v = 0; v < vectors; v += COLUMNS) {
        const int32_t left = vectors - v, count = left < COLUMNS ? left : COLUMNS;
        for (int32_t c = 0; c < count; c++) {
            widen(x + (v + c) * m->depth, columns + c * m->depth, m->depth);
        }
        matmul_int8(columns, count, y + v * m->outputs, m->outputs, m);
    }
}
