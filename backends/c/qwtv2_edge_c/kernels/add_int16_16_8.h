#pragma once

#include "kernel.h"
#include "add_int16.h"

KERNEL void add_int16_16_8(const int16_t *x, const int8_t *y, int16_t *out, const struct add_int16 *p)
{
    for (int32_t r = 0; r < run_count(&p->shape); r++, out += p->shape.count) {
        const int16_t *a = x + run_start(r, p->shape.size, p->shape.x_step);
        const int8_t *b = y + run_start(r, p->shape.size, p->shape.y_step);
        for (int32_t i = 0; i < p->shape.count; i++) {
            const int32_t first = (a[i * p->shape.x_step[3]] - p->x_zero_point) * p->x_factor;
            const int32_t second = (b[i * p->shape.y_step[3]] - p->y_zero_point) * p->y_factor;
            out[i] = to_int16(rescale(first + second, p->sum), p->out);
        }
    }
}
