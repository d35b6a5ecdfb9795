#pragma once

#include "cmsis_nn.h"
#include "fixed_point.h"

/* Vectors of 16-bit values times a matrix of 8-bit weights: what convolutions and fully connected layers come down to.
   The bias of each output holds the part that the input's zero point adds, so that codes are multiplied as they are. */

/* weights: outputs rows of depth. step: 1 where each output has a scale of its own, 0 where all share one. */
struct matmul {
    int32_t depth, outputs, step;
    const int8_t *weights;
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    struct codes out;
#ifdef QWTV2_CMSIS_NN
    struct cmsis_nn cmsis_nn;
#endif
};
