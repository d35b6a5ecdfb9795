#ifndef START_H
#define START_H

#include <stdint.h>

/* Status with which the emulation ends. */
enum { EXIT_DONE, EXIT_FAULT, EXIT_FILE };

/* Bytes of the stack that have held anything since reset. */
uint32_t stack_used(void);

#endif
