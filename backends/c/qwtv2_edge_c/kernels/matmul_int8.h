#pragma once

#include "dots.h"
#include "matmul.h"
#include "outputs.h"

/* columns: count vectors of depth, one behind the other, arranged. Results of one vector lie together, stride from one to the next. */
static inline void matmul_int8(const int16_t *columns, int32_t count, int8_t *y, int32_t stride, const struct matmul *p)
{
    const struct matmul m = *p;
    const int8_t *w = m.weights;
    int32_t scale = 0;
    for (int32_t o = 0; o < m.outputs; o += ROWS, w += ROWS * m.depth) {
        const int32_t left = m.outputs - o, rows = left < ROWS ? left : ROWS;
        int32_t sums[COLUMNS * ROWS];
        dots(columns, count, w, rows, m.depth, sums);
        for (int32_t c = 0; c < count; c++) {
            for (int32_t r = 0; r < rows; r++) {
                sums[c * ROWS + r] += m.bias[o + r];
            }
            outputs_int8(sums + c * ROWS, m.multiplier + scale, m.shift + scale, m.step, rows, y + c * stride + o, m.out);
        }
        scale += rows * m.step;
    }
}
