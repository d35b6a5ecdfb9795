#pragma once

#include "kernel.h"
#include "sum.h"

KERNEL void sum_int16(const int16_t *x, int16_t *y, const struct sum *p)
{
    const struct reduce *r = &p->axes;
    for (int32_t i = 0; i < r->kept[0]; i++) {
        for (int32_t j = 0; j < r->kept[1]; j++) {
            const int16_t *from = x + i * r->kept_step[0] + j * r->kept_step[1];
            int32_t total = -p->offset;
            for (int32_t k = 0; k < r->reduced[0]; k++) {
                for (int32_t l = 0; l < r->reduced[1]; l++) {
                    total += from[k * r->reduced_step[0] + l * r->reduced_step[1]];
                }
            }
            *y++ = to_int16(rescale(total, p->scale), p->out);
        }
    }
}
