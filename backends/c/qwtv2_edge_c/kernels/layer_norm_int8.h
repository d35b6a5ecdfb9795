#pragma once

#include "kernel.h"
#include "layer_norm.h"

/* row: room for one row. */
KERNEL void layer_norm_int8(const int16_t *x, int8_t *y, int16_t *row, const struct layer_norm *p)
{
    for (int32_t r = 0; r < p->rows; r++, x += p->columns, y += p->columns) {
        layer_norm_row(x, row, p);
        for (int32_t i = 0; i < p->columns; i++) {
            y[i] = to_int8(rescale(row[i] * p->gamma[i] + p->beta[i], p->output), p->out);
        }
    }
}
