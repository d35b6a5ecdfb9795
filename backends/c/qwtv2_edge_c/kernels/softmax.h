#pragma once

#include "cmsis_nn.h"
#include "kernel.h"
#include "reciprocal.h"

/* entries of exponentials[d]: e^(-scale * d) in 31 bits for a code d below its row's largest; 0 from there on. */
struct softmax {
    int32_t rows, columns, entries;
    const int32_t *exponentials;
#ifdef QWTV2_CMSIS_NN
    int32_t multiplier, shift, least;
#endif
};

static inline int32_t softmax_exponential(int32_t below, const struct softmax *p)
{
    return below < p->entries ? p->exponentials[below] : 0;
}

KERNEL void softmax(const int8_t *x, int8_t *y, const struct softmax *p)
{
#ifdef QWTV2_CMSIS_NN
    arm_softmax_s8(x, p->rows, p->columns, p->multiplier, p->shift, p->least, y);
#else
    for (int32_t r = 0; r < p->rows; r++, x += p->columns, y += p->columns) {
        int32_t largest = -128, sum = 0, headroom = 0;
        for (int32_t i = 0; i < p->columns; i++) {
            largest = x[i] > largest ? x[i] : largest;
        }
        for (int32_t i = 0; i < p->columns; i++) {
            sum += divide_by_power(softmax_exponential(largest - x[i], p), 12);
        }
        while (((uint32_t)sum << headroom & 0x80000000u) == 0) {
            headroom++;
        }
        /* sum = 2^(12 - headroom) * (1 + f), f in 31 bits; the reciprocal is of (1 + f) / 2 */
        const int32_t f = (int32_t)(((uint32_t)sum << headroom) - 0x80000000u);
        const int32_t inverse = reciprocal((int32_t)(((int64_t)f + INT32_MAX + 1) / 2)), right = 35 - headroom;
        for (int32_t i = 0; i < p->columns; i++) {
            const int32_t product = multiply_high(inverse, softmax_exponential(largest - x[i], p));
            const int32_t code = (right > 31 ? 0 : divide_by_power(product, right)) - 128;
            y[i] = (int8_t)(code > 127 ? 127 : code);
        }
    }
#endif
}
