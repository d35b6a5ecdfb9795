#pragma once

#include "kernel.h"
#include "broadcast.h"

/* The smaller code of each pair. */
KERNEL void minimum(const int8_t *x, const int8_t *y, int8_t *out, const struct broadcast *p)
{
    for (int32_t r = 0; r < run_count(p); r++, out += p->count) {
        const int8_t *a = x + run_start(r, p->size, p->x_step);
        const int8_t *b = y + run_start(r, p->size, p->y_step);
        for (int32_t i = 0; i < p->count; i++) {
            const int8_t first = a[i * p->x_step[3]], second = b[i * p->y_step[3]];
            out[i] = first < second ? first : second;
        }
    }
}
