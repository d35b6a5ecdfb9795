#pragma once

#include "kernel.h"
#include "reduce.h"

KERNEL void reduce_max_int16(const int16_t *x, int16_t *y, const struct reduce *r)
{
    for (int32_t i = 0; i < r->kept[0]; i++) {
        for (int32_t j = 0; j < r->kept[1]; j++) {
            const int16_t *from = x + i * r->kept_step[0] + j * r->kept_step[1];
            int16_t largest = *from;
            for (int32_t k = 0; k < r->reduced[0]; k++) {
                for (int32_t l = 0; l < r->reduced[1]; l++) {
                    const int16_t v = from[k * r->reduced_step[0] + l * r->reduced_step[1]];
                    largest = v > largest ? v : largest;
                }
            }
            *y++ = largest;
        }
    }
}
