#pragma once

#include "cmsis_nn.h"
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

#ifdef QWTV2_CMSIS_NN
typedef arm_cmsis_nn_status cmsis_nn_pool(const cmsis_nn_context *, const cmsis_nn_pool_params *, const cmsis_nn_dims *, const int8_t *,
                                          const cmsis_nn_dims *, const cmsis_nn_dims *, int8_t *);

static inline int cmsis_nn_pooled(const int8_t *x, int8_t *y, const struct window *w, cmsis_nn_pool *pool)
{
    const cmsis_nn_context memory = cmsis_nn_memory();
    const cmsis_nn_pool_params params = {{w->stride[1], w->stride[0]}, {w->pad[1], w->pad[0]}, {-128, 127}};
    const cmsis_nn_dims input = {1, w->input[0], w->input[1], w->channels}, filter = {1, w->kernel[0], w->kernel[1], 1};
    const cmsis_nn_dims output = {1, w->output[0], w->output[1], w->channels};
    return w->images == 1 && pool(&memory, &params, &input, x, &filter, &output, y) == ARM_CMSIS_NN_SUCCESS;
}
#endif
