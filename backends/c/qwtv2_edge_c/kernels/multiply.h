#pragma once

#include "broadcast.h"
#include "fixed_point.h"

/* Products of codes less their zero points, times one factor. */
struct multiply {
    struct broadcast shape;
    int32_t x_zero_point, y_zero_point;
    struct scale scale;
    struct codes out;
};
