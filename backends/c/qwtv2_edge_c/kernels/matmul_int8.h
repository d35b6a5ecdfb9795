#pragma once

#include "matmul.h"

static inline void matmul_int8(const int16_t *x, int8_t *y, const struct matmul *m)
{
    const int8_t *w = m->weights;
    int32_t o = 0;
    for (; o + 4 <= m->outputs; o += 4, w += 4 * m->depth) {
        int32_t sums[4];
        dot4(x, w, m->depth, sums);
        for (int32_t i = 0; i < 4; i++) {
            y[o + i] = to_int8(matmul_output(sums[i], o + i, m), m->out);
        }
    }
    for (; o < m->outputs; o++, w += m->depth) {
        y[o] = to_int8(matmul_output(dot(x, w, m->depth), o, m), m->out);
    }
}
