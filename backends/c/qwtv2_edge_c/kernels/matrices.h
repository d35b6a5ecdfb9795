#pragma once

#include "fixed_point.h"

/* Products of matrices of activations, rows * depth and depth * columns. y_step: from one element of y to the next along its
   depth, and along its columns. */
struct batch_matmul {
    int32_t batches, rows, depth, columns, y_step[2], x_zero_point, y_zero_point;
    struct scale scale;
    struct codes out;
};
