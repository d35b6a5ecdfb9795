#pragma once

#include "kernel.h"
#include "broadcast.h"
#include "fixed_point.h"

/* Sum of codes of three scales, or difference where sign is -1: both operands times 2^20 come to a common scale first. */
struct add {
    struct broadcast shape;
    int32_t x_zero_point, y_zero_point, sign;
    struct scale x, y, sum;
    struct codes out;
};

KERNEL void add(const int8_t *x, const int8_t *y, int8_t *out, const struct add *p)
{
    for (int32_t r = 0; r < run_count(&p->shape); r++, out += p->shape.count) {
        const int8_t *a = x + run_start(r, p->shape.size, p->shape.x_step);
        const int8_t *b = y + run_start(r, p->shape.size, p->shape.y_step);
        for (int32_t i = 0; i < p->shape.count; i++) {
            const int32_t first = rescale((a[i * p->shape.x_step[3]] - p->x_zero_point) * (1 << 20), p->x);
            const int32_t second = rescale((b[i * p->shape.y_step[3]] - p->y_zero_point) * (1 << 20), p->y);
            out[i] = to_int8(rescale(first + p->sign * second, p->sum), p->out);
        }
    }
}
