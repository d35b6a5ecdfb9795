#pragma once

#include "kernel.h"
#include "channel_add.h"

KERNEL void channel_add_int16(const int16_t *x, const int8_t *y, int16_t *out, const struct channel_add *p)
{
    for (int32_t r = 0; r < p->rows; r++, x += p->channels, y += p->channels, out += p->channels) {
        for (int32_t c = 0; c < p->channels; c++) {
            const int32_t total = (x[c] - p->x_zero_point) * p->x_factor + y[c] * p->y_factors[c];
            out[c] = to_int16(rescale(total, p->sum), p->out);
        }
    }
}
