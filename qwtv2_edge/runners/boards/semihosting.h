/* Files on the machine that runs the emulator, and the end of the emulation, by Arm's semihosting calls. */

#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

#include <stddef.h>
#include <stdint.h>

enum semihosting_mode { SEMIHOSTING_READ = 1 /* "rb" */, SEMIHOSTING_WRITE = 5 /* "wb" */ };

/* A handle, or -1. */
int semihosting_open(const char *name, enum semihosting_mode mode);

/* Bytes that were not read. */
size_t semihosting_read(int handle, void *data, size_t bytes);

/* Bytes that were not written. */
size_t semihosting_write(int handle, const void *data, size_t bytes);

_Noreturn void semihosting_exit(int status);

#endif
