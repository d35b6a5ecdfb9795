#pragma once

#include "fixed_point.h"

/* x plus y times a gain per channel, as whole multiples of one small step; a 16-bit result. */
struct channel_add {
    int32_t rows, channels, x_zero_point, x_factor;
    const int32_t *y_factors;
    struct scale sum;
    struct codes out;
};
