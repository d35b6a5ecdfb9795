#pragma once

#include "kernel.h"
#include "pool.h"

/* Averages over the taps inside the input, rounded to nearest, ties away from zero. Output rows from top to bottom; a row is
   written when all that it needs of the input was read. */
KERNEL void avg_pool2d(const int8_t *x, int8_t *y, const struct window *w)
{
#ifdef QWTV2_CMSIS_NN
    if (arm_avgpool_s8_get_buffer_size(w->output[1], w->channels) <= QWTV2_CMSIS_NN_ROOM && cmsis_nn_pooled(x, y, w, arm_avgpool_s8)) {
        return;
    }
#endif
    for (int32_t i = 0; i < w->images; i++, x += w->input[0] * w->input[1] * w->channels) {
        for (int32_t oy = 0; oy < w->output[0]; oy++) {
            for (int32_t ox = 0; ox < w->output[1]; ox++, y += w->channels) {
                int32_t top, bottom, left, right;
                pool_taps(w, 0, oy, &top, &bottom);
                pool_taps(w, 1, ox, &left, &right);
                const int32_t count = (bottom - top) * (right - left);
                for (int32_t first = 0; first < w->channels; first += POOL_BLOCK) {
                    const int32_t rest = w->channels - first, n = rest < POOL_BLOCK ? rest : POOL_BLOCK;
                    int32_t sums[POOL_BLOCK] = {0};
                    for (int32_t iy = top; iy < bottom; iy++) {
                        for (int32_t ix = left; ix < right; ix++) {
                            const int8_t *at = x + (iy * w->input[1] + ix) * w->channels + first;
                            for (int32_t c = 0; c < n; c++) {
                                sums[c] += at[c];
                            }
                        }
                    }
                    for (int32_t c = 0; c < n; c++) {
                        y[first + c] = (int8_t)((sums[c] > 0 ? sums[c] + count / 2 : sums[c] - count / 2) / count);
                    }
                }
            }
        }
    }
}
