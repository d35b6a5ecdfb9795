#pragma once

#include "depthwise.h"

#ifdef QWTV2_CMSIS_NN
static inline int cmsis_nn_depthwise(const int8_t *x, int8_t *y, const struct depthwise_conv2d *p)
{
    const struct window *w = &p->window;
    const int32_t outputs = w->channels * p->multiplicity;
    const cmsis_nn_dw_conv_params params = {
        -p->input_zero_point,
        p->out.zero_point,
        p->multiplicity,
        {w->stride[1], w->stride[0]},
        {w->pad[1], w->pad[0]},
        {w->dilation[1], w->dilation[0]},
        {p->out.low + p->out.zero_point, p->out.high + p->out.zero_point},
    };
    const cmsis_nn_context memory = cmsis_nn_memory();
    const cmsis_nn_per_channel_quant_params scales = {(int32_t *)p->multiplier, (int32_t *)p->cmsis_nn.shift};
    const cmsis_nn_dims input = {w->images, w->input[0], w->input[1], w->channels};
    const cmsis_nn_dims filter = {1, w->kernel[0], w->kernel[1], outputs};
    const cmsis_nn_dims output = {w->images, w->output[0], w->output[1], outputs};
    const cmsis_nn_dims bias = {1, 1, 1, outputs};
    if (!p->step || w->images != 1 || arm_depthwise_conv_wrapper_s8_get_buffer_size(&params, &input, &filter, &output) > memory.size) {
        return 0;
    }
    return arm_depthwise_conv_wrapper_s8(&memory, &params, &scales, &input, x, &filter, p->weights, &bias, p->cmsis_nn.bias, &output,
                                         y) == ARM_CMSIS_NN_SUCCESS;
}
#endif
