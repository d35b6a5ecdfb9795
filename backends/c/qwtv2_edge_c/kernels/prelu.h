#pragma once

#include "kernel.h"
#include "fixed_point.h"

/* Codes times a slope per channel where they are below the zero point. */
struct prelu {
    int32_t rows, channels, zero_point, slope_zero_point;
    const int8_t *slopes;
    struct scale above, below;
    struct codes out;
};

KERNEL void prelu(const int8_t *x, int8_t *y, const struct prelu *p)
{
    for (int32_t r = 0; r < p->rows; r++, x += p->channels, y += p->channels) {
        for (int32_t c = 0; c < p->channels; c++) {
            const int32_t v = x[c] - p->zero_point, slope = p->slopes[c] - p->slope_zero_point;
            y[c] = to_int8(v >= 0 ? rescale(v, p->above) : rescale(v * slope, p->below), p->out);
        }
    }
}
