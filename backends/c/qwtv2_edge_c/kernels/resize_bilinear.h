#pragma once

#include "kernel.h"

#include <stdint.h>

/* Between which two rows or columns an output position lies; high_weight: in 1024ths. */
struct between {
    int16_t low, high, high_weight;
};

struct resize_bilinear {
    int32_t images, input[2], output[2], channels;
    const struct between *rows, *columns;
};

KERNEL void resize_bilinear(const int8_t *x, int8_t *y, const struct resize_bilinear *p)
{
    for (int32_t i = 0; i < p->images; i++, x += p->input[0] * p->input[1] * p->channels) {
        for (int32_t r = 0; r < p->output[0]; r++) {
            const struct between row = p->rows[r];
            for (int32_t k = 0; k < p->output[1]; k++) {
                const struct between column = p->columns[k];
                const int8_t *low = x + (row.low * p->input[1] + column.low) * p->channels;
                const int8_t *high = x + (row.high * p->input[1] + column.low) * p->channels;
                const int32_t right = (column.high - column.low) * p->channels;
                for (int32_t c = 0; c < p->channels; c++) {
                    const int32_t top = low[c] * (1024 - column.high_weight) + low[c + right] * column.high_weight;
                    const int32_t bottom = high[c] * (1024 - column.high_weight) + high[c + right] * column.high_weight;
                    const int32_t total = top * (1024 - row.high_weight) + bottom * row.high_weight;
                    const int32_t half = 1 << 19;
                    const int32_t code = (total > 0 ? total + half : total - half) / (1 << 20);
                    *y++ = (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
                }
            }
        }
    }
}
