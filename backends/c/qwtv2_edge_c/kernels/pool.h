#pragma once

#include "window.h"

/* Channels that are gathered side by side. */
enum { POOL_BLOCK = 32 };

/* Taps first to last - 1 of one axis lie inside the input. */
static inline void pool_taps(const struct window *w, int32_t axis, int32_t output, int32_t *first, int32_t *last)
{
    const int32_t start = tap(w, axis, output, 0), end = start + w->kernel[axis];
    *first = start < 0 ? 0 : start;
    *last = end > w->input[axis] ? w->input[axis] : end;
}
