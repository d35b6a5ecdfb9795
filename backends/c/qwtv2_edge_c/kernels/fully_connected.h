#pragma once

#include "kernel.h"
#include "matmul_int8.h"
#include "widen.h"

/* y = x * weights, vector by vector; also a convolution of 1x1 windows. column: room for one vector. */
KERNEL void fully_connected(const int8_t *x, int8_t *y, int16_t *column, int32_t vectors, const struct matmul *m)
{
    for (int32_t v = 0; v < vectors; v++) {
        widen(x + v * m->depth, column, m->depth);
        matmul_int8(column, y + v * m->outputs, m);
    }
}
