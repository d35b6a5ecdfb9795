#pragma once

#include <stdint.h>

/* Fixed-point steps that the kernels share. */

/* What a result becomes: zero_point is added, low and high are its bounds before that. */
struct codes {
    int32_t zero_point, low, high;
};

/* A factor multiplier / 2^(31 - shift). */
struct scale {
    int32_t multiplier, shift;
};

/* a * b / 2^31, to the nearest, ties up; a and b are not both -2^31. */
static inline int32_t multiply_high(int32_t a, int32_t b)
{
    return (int32_t)(((int64_t)a * b + ((int32_t)1 << 30)) >> 31);
}

/* x / 2^n, to the nearest, ties away from zero; x > -2^31, 0 <= n <= 31. */
static inline int32_t divide_by_power(int32_t x, int32_t n)
{
    return n == 0 ? x : (((x - (x < 0)) >> (n - 1)) + 1) >> 1;
}

static inline int32_t shift_left(int32_t x, int32_t n)
{
    return (int32_t)((uint32_t)x << n);
}

/* x times a factor multiplier / 2^(31 - shift), rounded at both steps as TFLite Micro does. */
static inline int32_t requantize(int32_t x, int32_t multiplier, int32_t shift)
{
    return shift > 0 ? multiply_high(shift_left(x, shift), multiplier) : divide_by_power(multiply_high(x, multiplier), -shift);
}

static inline int32_t rescale(int32_t x, struct scale by)
{
    return requantize(x, by.multiplier, by.shift);
}

static inline int32_t clamp(int32_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : x;
}

static inline int8_t to_int8(int32_t x, struct codes out)
{
    return (int8_t)(clamp(x, out.low, out.high) + out.zero_point);
}

static inline int16_t to_int16(int32_t x, struct codes out)
{
    return (int16_t)(clamp(x, out.low, out.high) + out.zero_point);
}
