#pragma once

#include "cmsis_nn.h"
#include "fixed_point.h"

/* One vector of 16-bit values times a matrix of 8-bit weights: what convolutions and fully connected layers come down to.
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

/* Four rows at once: each value of x is read once for four products. */
static inline void dot4(const int16_t *x, const int8_t *w, int32_t n, int32_t sums[4])
{
    const int8_t *w1 = w + n, *w2 = w1 + n, *w3 = w2 + n;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (int32_t k = 0; k < n; k++) {
        s0 += x[k] * w[k];
        s1 += x[k] * w1[k];
        s2 += x[k] * w2[k];
        s3 += x[k] * w3[k];
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

static inline int32_t dot(const int16_t *x, const int8_t *w, int32_t n)
{
    int32_t sum = 0;
    for (int32_t k = 0; k < n; k++) {
        sum += x[k] * w[k];
    }
    return sum;
}

static inline int32_t matmul_output(int32_t sum, int32_t o, const struct matmul *m)
{
    return requantize(sum + m->bias[o], m->multiplier[o * m->step], m->shift[o * m->step]);
}
