#pragma once

#include "fixed_point.h"

/* Codes to another scale, zero point or width. */
struct requantize {
    int32_t count, zero_point;
    struct scale scale;
    struct codes out;
};
