#pragma once

#include "matmul.h"
#include "window.h"

/* depth of matmul: kernel height * kernel width * channels / groups; its outputs are those of one group. */
struct conv2d {
    struct window window;
    int32_t groups, input_zero_point;
    struct matmul matmul;
};

/* The matrix of the next group. */
static inline void next_group(struct matmul *m)
{
    m->weights += m->outputs * m->depth;
    m->bias += m->outputs;
    m->multiplier += m->outputs * m->step;
    m->shift += m->outputs * m->step;
}
