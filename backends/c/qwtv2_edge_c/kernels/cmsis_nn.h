#pragma once

#include <stdint.h>

/* Where QWTV2_CMSIS_NN is defined, kernels ask CMSIS-NN first. It does not promise the order in which it reads and writes, so
   activations lie apart then, and it gets memory of its own. */
#ifdef QWTV2_CMSIS_NN
#include <arm_nnfunctions.h>

#ifndef QWTV2_CMSIS_NN_ROOM
#define QWTV2_CMSIS_NN_ROOM 4096
#endif
static union {
    int8_t bytes[QWTV2_CMSIS_NN_ROOM];
    int64_t aligned;
} cmsis_nn_room;

static inline cmsis_nn_context cmsis_nn_memory(void)
{
    const cmsis_nn_context memory = {cmsis_nn_room.bytes, QWTV2_CMSIS_NN_ROOM};
    return memory;
}
#endif

/* Constants that CMSIS-NN wants otherwise than the kernels here: a bias without the part of the zero point, shifts in 32 bits. */
struct cmsis_nn {
    const int32_t *bias, *shift;
};
