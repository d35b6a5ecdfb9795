#pragma once

#include <stdint.h>

/* How a window moves over an image: sizes are (height, width), pads are (top, left), images are channels-last. */
struct window {
    int32_t images, input[2], channels, output[2], kernel[2], stride[2], dilation[2], pad[2];
};

/* The row or column of the input that a tap reads; outside the input it is padding. */
static inline int32_t tap(const struct window *w, int32_t axis, int32_t output, int32_t k)
{
    return output * w->stride[axis] + k * w->dilation[axis] - w->pad[axis];
}

static inline int inside(const struct window *w, int32_t axis, int32_t at)
{
    return at >= 0 && at < w->input[axis];
}
