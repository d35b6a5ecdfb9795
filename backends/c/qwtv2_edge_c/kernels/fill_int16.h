#pragma once

#include "kernel.h"

#include <stdint.h>

KERNEL void fill_int16(int16_t *y, int16_t value, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        y[i] = value;
    }
}
