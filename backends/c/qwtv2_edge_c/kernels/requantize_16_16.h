#pragma once

#include "kernel.h"
#include "requantize.h"

KERNEL void requantize_16_16(const int16_t *x, int16_t *y, const struct requantize *p)
{
    for (int32_t i = 0; i < p->count; i++) {
        y[i] = to_int16(rescale(x[i] - p->zero_point, p->scale), p->out);
    }
}
