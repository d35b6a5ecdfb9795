#pragma once

#include "fixed_point.h"

/* x * 2^n, held inside 32 bits; n > 0. */
static inline int32_t shift_left_saturated(int32_t x, int32_t n)
{
    const int64_t wide = (int64_t)x * ((int64_t)1 << n);
    return wide > INT32_MAX ? INT32_MAX : wide < INT32_MIN ? INT32_MIN : (int32_t)wide;
}

/* 2^30 / d for d in [2^30, 2^31), as a fraction of 2^31: 48/17 - 32/17 * d, then three steps of Newton's method. */
static inline int32_t reciprocal(int32_t d)
{
    int32_t x = 1515870810 + multiply_high(d, -1010580540);
    for (int32_t i = 0; i < 3; i++) {
        x += shift_left_saturated(multiply_high(x, ((int32_t)1 << 29) - multiply_high(d, x)), 2);
    }
    return shift_left_saturated(x, 1);
}
