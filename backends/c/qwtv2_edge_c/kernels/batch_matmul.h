#pragma once

#include "dots.h"
#include "kernel.h"
#include "matrices.h"

/* Codes are multiplied as they are; what their zero points add is known from the sums of rows and columns:
   sum (x - zx) * (y - zy) = sum x * y - zx * sum y - zy * sum x + depth * zx * zy.
   offsets: room for one per column; vectors: for COLUMNS rows of x; turned: for y, where its columns do not lie together. */
KERNEL void batch_matmul(const int8_t *x, const int8_t *y, int8_t *out, int32_t *offsets, int16_t *vectors, int8_t *turned,
                         const struct batch_matmul *parameters)
{
    const struct batch_matmul p = *parameters;
    for (int32_t b = 0; b < p.batches; b++, y += p.depth * p.columns) {
        const int8_t *columns = p.y_step[0] == 1 ? y : turned;
        for (int32_t c = 0; c < p.columns; c++) {
            int32_t sum = 0;
            for (int32_t k = 0; k < p.depth; k++) {
                const int8_t code = y[c * p.y_step[1] + k * p.y_step[0]];
                sum += code;
                if (columns != y) {
                    turned[c * p.depth + k] = code;
                }
            }
            offsets[c] = p.x_zero_point * (p.depth * p.y_zero_point - sum);
        }
        for (int32_t r = 0; r < p.rows; r += COLUMNS) {
            const int32_t below = p.rows - r, count = below < COLUMNS ? below : COLUMNS;
            int32_t row_offsets[COLUMNS];
            for (int32_t i = 0; i < count; i++, x += p.depth) {
                int32_t sum = 0;
                for (int32_t k = 0; k < p.depth; k++) {
                    sum += x[k];
                }
                row_offsets[i] = p.y_zero_point * sum;
                widen(x, vectors + i * p.depth, p.depth);
            }
            for (int32_t c = 0; c < p.columns; c += ROWS) {
                const int32_t left = p.columns - c, some = left < ROWS ? left : ROWS;
                int32_t sums[COLUMNS * ROWS];
                dots(vectors, count, columns + c * p.depth, some, p.depth, sums);
                for (int32_t i = 0; i < count; i++) {
                    for (int32_t j = 0; j < some; j++) {
                        sums[i * ROWS + j] += offsets[c + j] - row_offsets[i];
                        out[i * p.columns + c + j] = to_int8(rescale(sums[i * ROWS + j], p.scale), p.out);
                    }
                }
            }
            out += count * p.columns;
        }
    }
}
