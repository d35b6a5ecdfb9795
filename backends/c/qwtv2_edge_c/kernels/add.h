#pragma once

#include "cmsis_nn.h"
#include "kernel.h"
#include "outputs.h"
#include "broadcast.h"
#include "fixed_point.h"

/* Sum of codes of three scales, or difference where sign is -1: both operands times 2^20 come to a common scale first. */
struct add {
    struct broadcast shape;
    int32_t x_zero_point, y_zero_point, sign;
    struct scale x, y, sum;
    struct codes out;
};

#ifdef QWTV2_CMSIS_NN
static inline int cmsis_nn_add(const int8_t *x, const int8_t *y, int8_t *out, const struct add *p)
{
    const struct broadcast *b = &p->shape;
    if (p->sign != 1 || run_count(b) != 1 || b->x_step[3] != 1 || b->y_step[3] != 1) {
        return 0;
    }
    return arm_elementwise_add_s8(x, y, -p->x_zero_point, p->x.multiplier, p->x.shift, -p->y_zero_point, p->y.multiplier, p->y.shift,
                                  20, out, p->out.zero_point, p->sum.multiplier, p->sum.shift, p->out.low + p->out.zero_point,
                                  p->out.high + p->out.zero_point, b->count) == ARM_CMSIS_NN_SUCCESS;
}
#endif

#if defined(__ARM_FEATURE_MVE)
/* Four codes of one operand at the common scale. */
static inline int32x4_t add_operand4(const int8_t *x, int32_t zero_point, struct scale by)
{
    const int32x4_t centred = vsubq_s32(vldrbq_s32(x), vdupq_n_s32(zero_point));
    return requantize4(vshlq_n_s32(centred, 20), vdupq_n_s32(by.multiplier), vdupq_n_s32(by.shift));
}
#endif

KERNEL void add(const int8_t *x, const int8_t *y, int8_t *out, const struct add *parameters)
{
#ifdef QWTV2_CMSIS_NN
    if (cmsis_nn_add(x, y, out, parameters)) {
        return;
    }
#endif
    const struct add p = *parameters;
    for (int32_t r = 0; r < run_count(&p.shape); r++, out += p.shape.count) {
        const int8_t *a = x + run_start(r, p.shape.size, p.shape.x_step);
        const int8_t *b = y + run_start(r, p.shape.size, p.shape.y_step);
        int32_t i = 0;
#if defined(__ARM_FEATURE_MVE)
        if (p.shape.x_step[3] == 1 && p.shape.y_step[3] == 1) {
            for (; i + 4 <= p.shape.count; i += 4, a += 4, b += 4) {
                const int32x4_t first = add_operand4(a, p.x_zero_point, p.x), second = add_operand4(b, p.y_zero_point, p.y);
                const int32x4_t total = vaddq_s32(first, vmulq_n_s32(second, p.sign));
                store4(out + i, requantize4(total, vdupq_n_s32(p.sum.multiplier), vdupq_n_s32(p.sum.shift)), p.out);
            }
        }
#endif
        for (; i < p.shape.count; i++, a += p.shape.x_step[3], b += p.shape.y_step[3]) {
            const int32_t first = rescale((*a - p.x_zero_point) * (1 << 20), p.x);
            const int32_t second = rescale((*b - p.y_zero_point) * (1 << 20), p.y);
            out[i] = to_int8(rescale(first + p.sign * second, p.sum), p.out);
        }
    }
}
