#pragma once

#include <string.h>

#include "kernel.h"
#include "matmul_int16.h"

/* As fully_connected, between 16-bit codes. */
KERNEL void fully_connected_int16(const int16_t *x, int16_t *y, int16_t *column, int32_t vectors, const struct matmul *m)
{
    for (int32_t v = 0; v < vectors; v++) {
        memcpy(column, x + v * m->depth, (size_t)m->depth * sizeof *column);
        arrange(column, m->depth);
        matmul_int16(column, 1, y + v * m->outputs, m->outputs, m);
    }
}
