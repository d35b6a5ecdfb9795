#pragma once

#include "kernel.h"

#include <stdint.h>
#include <string.h>

/* Rows of a table, bytes each. An index outside it takes the nearest row. */
KERNEL void embedding(const int32_t *indices, void *y, int32_t count, const void *table, int32_t entries, int32_t bytes)
{
    const int8_t *from = table;
    int8_t *to = y;
    for (int32_t i = 0; i < count; i++) {
        const int32_t row = indices[i] < 0 ? 0 : indices[i] < entries ? indices[i] : entries - 1;
        memcpy(to + i * bytes, from + row * bytes, (size_t)bytes);
    }
}
