#pragma once

#include <stdint.h>

static inline void widen(const int8_t *x, int16_t *y, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        y[i] = x[i];
    }
}
