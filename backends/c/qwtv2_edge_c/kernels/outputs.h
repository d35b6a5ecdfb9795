#pragma once

#include "fixed_point.h"

/* Sums of n channels to codes, a factor each; step 0: one factor for all. */

#if defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>

/* requantize() of four sums. */
static inline int32x4_t requantize4(int32x4_t x, int32x4_t multiplier, int32x4_t shift)
{
    const int32x4_t right = vminq_s32(shift, vdupq_n_s32(0));
    const int32x4_t high = vqrdmulhq_s32(vshlq_s32(x, vmaxq_s32(shift, vdupq_n_s32(0))), multiplier);
    const int32x4_t away = vshrq_n_s32(vandq_s32(high, right), 31); /* -1 for what is negative and shifted */
    return vrshlq_s32(vaddq_s32(high, away), right);
}

static inline void store4(int8_t *y, int32x4_t x, struct codes out)
{
    const int32x4_t bounded = vminq_s32(vmaxq_s32(x, vdupq_n_s32(out.low)), vdupq_n_s32(out.high));
    vstrbq_s32(y, vaddq_s32(bounded, vdupq_n_s32(out.zero_point)));
}
#endif

static inline void outputs_int8(const int32_t *sums, const int32_t *multiplier, const int8_t *shift, int32_t step, int32_t n, int8_t *y,
                                struct codes out)
{
    int32_t i = 0;
#if defined(__ARM_FEATURE_MVE)
    for (; step != 0 && i + 4 <= n; i += 4) {
        store4(y + i, requantize4(vldrwq_s32(sums + i), vldrwq_s32(multiplier + i), vldrbq_s32(shift + i)), out);
    }
#endif
    for (; i < n; i++) {
        y[i] = to_int8(requantize(sums[i], multiplier[i * step], shift[i * step]), out);
    }
}
