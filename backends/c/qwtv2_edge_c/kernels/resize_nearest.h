#pragma once

#include "kernel.h"

#include <stdint.h>
#include <string.h>

/* rows, columns: where each row and column of the output comes from. bytes: of one position. */
struct resize_nearest {
    int32_t images, input[2], output[2], bytes;
    const int16_t *rows, *columns;
};

KERNEL void resize_nearest(const void *x, void *y, const struct resize_nearest *p)
{
    const int8_t *from = x;
    int8_t *to = y;
    for (int32_t i = 0; i < p->images; i++, from += p->input[0] * p->input[1] * p->bytes) {
        for (int32_t r = 0; r < p->output[0]; r++) {
            for (int32_t c = 0; c < p->output[1]; c++, to += p->bytes) {
                memcpy(to, from + (p->rows[r] * p->input[1] + p->columns[c]) * p->bytes, (size_t)p->bytes);
            }
        }
    }
}
