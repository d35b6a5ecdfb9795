#pragma once

#include <stdint.h>
#include <string.h>

/* Columns of 16-bit values times rows of 8-bit weights: COLUMNS of the first and ROWS of the second at once, as many as keep
   a processor's registers busy. widen() makes a column of codes, arrange() one of 16-bit values, in the order that dots() reads. */

#if defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>

enum { COLUMNS = 1, ROWS = 4 };

static inline void arrange(int16_t *column, int32_t n)
{
    (void)column;
    (void)n;
}

static inline void widen(const int8_t *x, int16_t *column, int32_t n)
{
    for (int32_t k = n >> 3; k > 0; k--, x += 8, column += 8) {
        vstrhq_s16(column, vldrbq_s16(x));
    }
    const mve_pred16_t rest = vctp16q((uint32_t)n & 7);
    vstrhq_p_s16(column, vldrbq_z_s16(x, rest), rest);
}

/* Eight products of each row at once; lanes behind the end hold zeros. */
static inline void dots(const int16_t *x, int32_t columns, const int8_t *w, int32_t rows, int32_t n, int32_t sums[COLUMNS * ROWS])
{
    const int8_t *w1 = w + (rows > 1 ? n : 0), *w2 = w + (rows > 2 ? 2 * n : 0), *w3 = w + (rows > 3 ? 3 * n : 0);
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    (void)columns;
    for (int32_t k = n >> 3; k > 0; k--, x += 8, w += 8, w1 += 8, w2 += 8, w3 += 8) {
        const int16x8_t v = vldrhq_s16(x);
        s0 = vmladavaq_s16(s0, v, vldrbq_s16(w));
        s1 = vmladavaq_s16(s1, v, vldrbq_s16(w1));
        s2 = vmladavaq_s16(s2, v, vldrbq_s16(w2));
        s3 = vmladavaq_s16(s3, v, vldrbq_s16(w3));
    }
    if (n & 7) {
        const mve_pred16_t rest = vctp16q((uint32_t)n & 7);
        const int16x8_t v = vldrhq_z_s16(x, rest);
        s0 = vmladavaq_s16(s0, v, vldrbq_z_s16(w, rest));
        s1 = vmladavaq_s16(s1, v, vldrbq_z_s16(w1, rest));
        s2 = vmladavaq_s16(s2, v, vldrbq_z_s16(w2, rest));
        s3 = vmladavaq_s16(s3, v, vldrbq_z_s16(w3, rest));
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

/* Words are loaded as little-endian cores do. */
#elif defined(__ARM_FEATURE_SIMD32) && !defined(__ARM_BIG_ENDIAN)
#include <arm_acle.h>

enum { COLUMNS = 2, ROWS = 2 };

static inline int32_t word(const void *at)
{
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Bytes 0 and 2 of four weights are widened together, then 1 and 3: so values come in the order 0 2 1 3. */
static inline void arrange(int16_t *column, int32_t n)
{
    for (int32_t k = 0; k + 4 <= n; k += 4) {
        const int16_t second = column[k + 1];
        column[k + 1] = column[k + 2];
        column[k + 2] = second;
    }
}

static inline void widen(const int8_t *x, int16_t *column, int32_t n)
{
    int32_t k = 0;
    for (; k + 4 <= n; k += 4) {
        const int32_t x4 = word(x + k), x02 = __sxtb16(x4), x13 = __sxtb16(x4 >> 8);
        memcpy(column + k, &x02, sizeof x02);
        memcpy(column + k + 2, &x13, sizeof x13);
    }
    for (; k < n; k++) {
        column[k] = x[k];
    }
}

/* Two products at once. With one column, or one row, the second sums are of no use. */
static inline void dots(const int16_t *x, int32_t columns, const int8_t *w, int32_t rows, int32_t n, int32_t sums[COLUMNS * ROWS])
{
    const int16_t *y = columns > 1 ? x + n : x;
    const int8_t *v = rows > 1 ? w + n : w;
    int32_t xw = 0, xv = 0, yw = 0, yv = 0;
    int32_t k = n >> 2;
    for (; k > 0; k--, x += 4, y += 4, w += 4, v += 4) {
        const int32_t w4 = word(w), v4 = word(v), x02 = word(x), x13 = word(x + 2);
        const int32_t w02 = __sxtb16(w4), w13 = __sxtb16(w4 >> 8), v02 = __sxtb16(v4), v13 = __sxtb16(v4 >> 8);
        xw = __smlad(x13, w13, __smlad(x02, w02, xw));
        xv = __smlad(x13, v13, __smlad(x02, v02, xv));
        if (columns > 1) {
            const int32_t y02 = word(y), y13 = word(y + 2);
            yw = __smlad(y13, w13, __smlad(y02, w02, yw));
            yv = __smlad(y13, v13, __smlad(y02, v02, yv));
        }
    }
    for (k = n & 3; k > 0; k--, x++, y++, w++, v++) {
        xw += *x * *w;
        xv += *x * *v;
        yw += *y * *w;
        yv += *y * *v;
    }
    sums[0] = xw;
    sums[1] = xv;
    sums[2] = yw;
    sums[3] = yv;
}

#else
enum { COLUMNS = 1, ROWS = 4 };

static inline void arrange(int16_t *column, int32_t n)
{
    (void)column;
    (void)n;
}

static inline void widen(const int8_t *x, int16_t *column, int32_t n)
{
    for (int32_t k = 0; k < n; k++) {
        column[k] = x[k];
    }
}

static inline void dots(const int16_t *x, int32_t columns, const int8_t *w, int32_t rows, int32_t n, int32_t sums[COLUMNS * ROWS])
{
    const int8_t *w1 = w + (rows > 1 ? n : 0), *w2 = w + (rows > 2 ? 2 * n : 0), *w3 = w + (rows > 3 ? 3 * n : 0);
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    (void)columns;
    for (int32_t k = 0; k < n; k++) {
        s0 += x[k] * w[k];
        s1 += x[k] * w1[k];
        s2 += x[k] * w2[k];
        s3 += x[k] * w3[k];
    }
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}
#endif
