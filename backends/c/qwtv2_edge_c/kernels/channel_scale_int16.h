#pragma once

#include "kernel.h"
#include "channel_scale.h"

KERNEL void channel_scale_int16(const int16_t *x, int16_t *y, const struct channel_scale *p)
{
    for (int32_t r = 0; r < p->rows; r++, x += p->channels, y += p->channels) {
        for (int32_t c = 0; c < p->channels; c++) {
            y[c] = to_int16(rescale(x[c] * p->gains[c], p->scale), p->out);
        }
    }
}
