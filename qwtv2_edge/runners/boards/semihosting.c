/* Source of numbers and argument blocks: Arm's "Semihosting for AArch32 and AArch64", release 2.0. */

#include "semihosting.h"

#include <string.h>

enum { SYS_OPEN = 0x01, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };

static int32_t call(uint32_t operation, const uintptr_t *block)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const uintptr_t *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory", "cc");
    return (int32_t)r0;
}

int semihosting_open(const char *name, enum semihosting_mode mode)
{
    const uintptr_t block[] = {(uintptr_t)name, (uintptr_t)mode, strlen(name)};
    return call(SYS_OPEN, block);
}

size_t semihosting_read(int handle, void *data, size_t bytes)
{
    const uintptr_t block[] = {(uintptr_t)handle, (uintptr_t)data, bytes};
    return (size_t)call(SYS_READ, block);
}

size_t semihosting_write(int handle, const void *data, size_t bytes)
{
    const uintptr_t block[] = {(uintptr_t)handle, (uintptr_t)data, bytes};
    return (size_t)call(SYS_WRITE, block);
}

_Noreturn void semihosting_exit(int status)
{
    const uintptr_t block[] = {APPLICATION_EXIT, (uintptr_t)status};
    for (;;)
        call(SYS_EXIT_EXTENDED, block);
}
