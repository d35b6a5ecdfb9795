#pragma once

#include "fixed_point.h"

/* 16-bit values times a gain per channel. */
struct channel_scale {
    int32_t rows, channels;
    const int16_t *gains;
    struct scale scale;
    struct codes out;
};
