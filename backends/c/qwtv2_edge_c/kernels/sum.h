#pragma once

#include "fixed_point.h"
#include "reduce.h"

/* Sums times a factor, which is that of a mean where it holds one over their count. offset: count * zero point of the input. */
struct sum {
    struct reduce axes;
    int32_t offset;
    struct scale scale;
    struct codes out;
};
