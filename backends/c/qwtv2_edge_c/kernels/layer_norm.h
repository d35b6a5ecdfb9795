#pragma once

#include "fixed_point.h"

/* Normalisation of rows of 16-bit values; every step but the last ends in 16 bits. scale: (multiplier, shift) of the mean, of
   squares (1 / 2^15), of their mean, of normalised values, of the output. inverse: 1 / sqrt(v), up to inverse_limit. */
struct layer_norm_pass {
    struct scale mean_square, normal;
    const int16_t *inverse;
};

struct layer_norm {
    int32_t rows, columns, centre, passes, inverse_limit;
    struct scale mean, square;
    struct layer_norm_pass pass[2];
    const int16_t *gamma;
    const int32_t *beta;
    struct scale output;
    struct codes out;
};

static inline int32_t within16(int32_t x)
{
    return clamp(x, INT16_MIN, INT16_MAX);
}

/* One row, normalised into row. */
static inline void layer_norm_row(const int16_t *x, int16_t *row, const struct layer_norm *p)
{
    int32_t total = 0;
    for (int32_t i = 0; i < p->columns; i++) {
        total += x[i];
    }
    const int32_t mean = p->centre ? within16(rescale(total, p->mean)) : 0;
    for (int32_t i = 0; i < p->columns; i++) {
        row[i] = (int16_t)within16(x[i] - mean);
    }
    for (int32_t n = 0; n < p->passes; n++) {
        const struct layer_norm_pass *pass = &p->pass[n];
        int32_t squares = 0;
        for (int32_t i = 0; i < p->columns; i++) {
            squares += within16(rescale(row[i] * row[i], p->square));
        }
        const int32_t variance = within16(rescale(squares, pass->mean_square));
        const int32_t inverse = pass->inverse[variance < p->inverse_limit ? variance : p->inverse_limit];
        for (int32_t i = 0; i < p->columns; i++) {
            row[i] = (int16_t)within16(rescale(row[i] * inverse, pass->normal));
        }
    }
}
