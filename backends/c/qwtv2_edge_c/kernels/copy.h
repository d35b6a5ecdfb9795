#pragma once

#include "kernel.h"

#include <stdint.h>
#include <string.h>

/* Runs of bytes moved from one layout to another, over five axes; steps are in bytes. */
struct copy {
    int32_t run, size[5], from_step[5], to_step[5];
};

KERNEL void copy(const void *from, void *to, const struct copy *p)
{
    const int8_t *source = from;
    int8_t *target = to;
    int32_t at[5] = {0, 0, 0, 0, 0};
    for (;;) {
        const int8_t *s = source;
        int8_t *t = target;
        for (int32_t i = 0; i < p->size[4]; i++, s += p->from_step[4], t += p->to_step[4]) {
            if (p->run == 1) {
                *t = *s;
            } else {
                memcpy(t, s, (size_t)p->run);
            }
        }
        int32_t axis = 3;
        while (axis >= 0 && ++at[axis] == p->size[axis]) {
            source -= (p->size[axis] - 1) * p->from_step[axis];
            target -= (p->size[axis] - 1) * p->to_step[axis];
            at[axis--] = 0;
        }
        if (axis < 0) {
            return;
        }
        source += p->from_step[axis];
        target += p->to_step[axis];
    }
}
