#pragma once

#include "kernel.h"

#include <stdint.h>

/* Position of the first largest entry along the middle one of three axes. */
KERNEL void argmax_int8(const int8_t *x, int32_t *y, int32_t outer, int32_t size, int32_t inner)
{
    for (int32_t o = 0; o < outer; o++, x += size * inner) {
        for (int32_t i = 0; i < inner; i++) {
            int32_t best = 0;
            for (int32_t k = 1; k < size; k++) {
                best = x[k * inner + i] > x[best * inner + i] ? k : best;
            }
            *y++ = best;
        }
    }
}
