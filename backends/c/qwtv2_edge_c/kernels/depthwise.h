#pragma once

#include "cmsis_nn.h"
#include "fixed_point.h"
#include "window.h"

/* weights: kernel height * kernel width rows of channels * multiplicity. step: as in matmul. Output channel o reads input
   channel o / multiplicity. */
struct depthwise_conv2d {
    struct window window;
    int32_t multiplicity, input_zero_point, step;
    const int8_t *weights;
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    struct codes out;
#ifdef QWTV2_CMSIS_NN
    struct cmsis_nn cmsis_nn;
#endif
};
