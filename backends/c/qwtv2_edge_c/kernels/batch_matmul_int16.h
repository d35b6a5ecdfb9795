#pragma once

#include "kernel.h"
#include "fixed_point_64.h"
#include "matrices.h"

/* As batch_matmul, between 16-bit codes of zero point 0. */
KERNEL void batch_matmul_int16(const int16_t *x, const int16_t *y, int16_t *out, const struct batch_matmul *p)
{
    for (int32_t b = 0; b < p->batches; b++, y += p->depth * p->columns) {
        for (int32_t r = 0; r < p->rows; r++, x += p->depth) {
            for (int32_t c = 0; c < p->columns; c++) {
                const int16_t *at = y + c * p->y_step[1];
                int64_t sum = 0;
                for (int32_t k = 0; k < p->depth; k++) {
                    sum += x[k] * at[k * p->y_step[0]];
                }
                *out++ = to_int16(requantize_64(sum, p->scale.multiplier, p->scale.shift), p->out);
            }
        }
    }
}
