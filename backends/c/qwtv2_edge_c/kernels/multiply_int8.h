#pragma once

#include "kernel.h"
#include "multiply.h"

KERNEL void multiply_int8(const int8_t *x, const int8_t *y, int8_t *out, const struct multiply *p)
{
    for (int32_t r = 0; r < run_count(&p->shape); r++, out += p->shape.count) {
        const int8_t *a = x + run_start(r, p->shape.size, p->shape.x_step);
        const int8_t *b = y + run_start(r, p->shape.size, p->shape.y_step);
        for (int32_t i = 0; i < p->shape.count; i++) {
            const int32_t first = a[i * p->shape.x_step[3]] - p->x_zero_point;
            const int32_t second = b[i * p->shape.y_step[3]] - p->y_zero_point;
            out[i] = to_int8(rescale(first * second, p->scale), p->out);
        }
    }
}
