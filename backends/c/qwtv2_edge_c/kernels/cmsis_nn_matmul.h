#pragma once

#include "matmul.h"

#ifdef QWTV2_CMSIS_NN
static inline cmsis_nn_activation cmsis_nn_bounds(struct codes out)
{
    const cmsis_nn_activation bounds = {out.low + out.zero_point, out.high + out.zero_point};
    return bounds;
}

/* A convolution of windows under params, where each output has a scale of its own; 0 where that is not so or memory is short. */
static inline int cmsis_nn_convolve(const int8_t *x, int8_t *y, const cmsis_nn_conv_params *params, const cmsis_nn_dims *input,
                                    const cmsis_nn_dims *filter, const cmsis_nn_dims *output, const struct matmul *m)
{
    const cmsis_nn_context memory = cmsis_nn_memory();
    const cmsis_nn_per_channel_quant_params scales = {(int32_t *)m->multiplier, (int32_t *)m->cmsis_nn.shift};
    const cmsis_nn_dims bias = {1, 1, 1, output->c};
    if (!m->step || arm_convolve_wrapper_s8_get_buffer_size(params, input, filter, output) > memory.size) {
        return 0;
    }
    return arm_convolve_wrapper_s8(&memory, params, &scales, input, x, filter, m->weights, &bias, m->cmsis_nn.bias, output, y) ==
           ARM_CMSIS_NN_SUCCESS;
}
#endif
