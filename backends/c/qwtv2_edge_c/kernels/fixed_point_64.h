#pragma once

#include "fixed_point.h"

/* A 48-bit sum times a factor: its multiplier rounded to 16 bits, one rounding, ties up. */
static inline int32_t requantize_64(int64_t x, int32_t multiplier, int32_t shift)
{
    const int32_t rounded = multiplier < 0x7fff0000 ? (multiplier + (1 << 15)) >> 16 : 0x7fff;
    const int64_t y = (x * rounded + ((int64_t)1 << (14 - shift))) >> (15 - shift);
    return y > INT32_MAX ? INT32_MAX : y < INT32_MIN ? INT32_MIN : (int32_t)y;
}
