#pragma once

#include "broadcast.h"
#include "fixed_point.h"

/* Sum of 8-bit or 16-bit operands, each times a whole number, in 32 bits; a 16-bit result. */
struct add_int16 {
    struct broadcast shape;
    int32_t x_zero_point, y_zero_point, x_factor, y_factor;
    struct scale sum;
    struct codes out;
};
