#pragma once

#include "kernel.h"
#include "reciprocal.h"

struct l2_normalize {
    int32_t rows, columns, zero_point;
};

/* 1 / sqrt(v) for v >= 0, by five steps of Newton's method. */
static inline struct scale inverse_square_root(int32_t v)
{
    struct scale result = {INT32_MAX, 0};
    if (v <= 1) {
        return result;
    }
    int32_t right = 11, x = (int32_t)1 << 28;
    while (v >= (int32_t)1 << 29) {
        v /= 4;
        right++;
    }
    while (v < (int32_t)1 << 27) {
        v *= 4;
        right--;
    }
    const int32_t half = divide_by_power(v >> 1, 1);
    for (int32_t i = 0; i < 5; i++) {
        const int32_t cube = shift_left_saturated(multiply_high(multiply_high(x, x), x), 6);
        x = shift_left_saturated(multiply_high(((int32_t)1 << 28) + ((int32_t)1 << 27), x) - multiply_high(half, cube), 3);
    }
    result.multiplier = multiply_high(x, 1518500250); /* sqrt(2) / 2 */
    if (right < 0) {
        result.multiplier = shift_left(result.multiplier, -right);
        right = 0;
    }
    result.shift = -right;
    return result;
}

/* Rows of unit length, in 128ths. */
KERNEL void l2_normalize(const int8_t *x, int8_t *y, const struct l2_normalize *p)
{
    const struct codes out = {0, -128, 127};
    for (int32_t r = 0; r < p->rows; r++, x += p->columns, y += p->columns) {
        int32_t squares = 0;
        for (int32_t i = 0; i < p->columns; i++) {
            squares += (x[i] - p->zero_point) * (x[i] - p->zero_point);
        }
        const struct scale inverse = inverse_square_root(squares);
        for (int32_t i = 0; i < p->columns; i++) {
            y[i] = to_int8(requantize(x[i] - p->zero_point, inverse.multiplier, inverse.shift + 7), out);
        }
    }
}
