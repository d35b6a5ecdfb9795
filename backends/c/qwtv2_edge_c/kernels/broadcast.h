#pragma once

#include <stdint.h>

/* Two operands brought to one shape: runs of count elements inside three axes. Steps are in elements, 0 where an operand
   repeats itself. */
struct broadcast {
    int32_t count, size[3], x_step[4], y_step[4];
};

/* Element of an operand at which run r begins. */
static inline int32_t run_start(int32_t r, const int32_t size[3], const int32_t step[4])
{
    return r / (size[1] * size[2]) * step[0] + r / size[2] % size[1] * step[1] + r % size[2] * step[2];
}

static inline int32_t run_count(const struct broadcast *b)
{
    return b->size[0] * b->size[1] * b->size[2];
}
