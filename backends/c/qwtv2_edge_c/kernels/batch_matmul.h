#pragma once

#include "kernel.h"
#include "matrices.h"

KERNEL void batch_matmul(const int8_t *x, const int8_t *y, int8_t *out, const struct batch_matmul *p)
{
    for (int32_t b = 0; b < p->batches; b++, y += p->depth * p->columns) {
        for (int32_t r = 0; r < p->rows; r++, x += p->depth) {
            for (int32_t c = 0; c < p->columns; c++) {
                const int8_t *at = y + c * p->y_step[1];
                int32_t sum = 0;
                for (int32_t k = 0; k < p->depth; k++) {
                    sum += (x[k] - p->x_zero_point) * (at[k * p->y_step[0]] - p->y_zero_point);
                }
                *out++ = to_int8(rescale(sum, p->scale), p->out);
            }
        }
    }
}
