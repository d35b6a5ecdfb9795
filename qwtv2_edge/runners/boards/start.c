/* From reset to main on Cortex-M4, M7, M33 and M55, and what is left to say after a fault.
 *
 * The memory protection unit leaves flash, which is RAM on some boards, read-only, RAM writable, and nothing else: some boards
 * ignore accesses to addresses without memory. The stack lies at the bottom of RAM, so that it faults when it overflows; it is
 * painted, so that main can tell how much of it was used.
 */

#include <stdint.h>

#include "semihosting.h"
#include "start.h"

/* of the linker script */
extern uint32_t stack_bottom[], stack_top[], data_start[], data_end[], bss_start[], bss_end[];
extern const uint32_t data_image[], vectors_origin[], vectors_size[], flash_origin[], flash_size[], ram_origin[], ram_size[];

int main(void);
void reset(void);
void fault(void);

#define REGISTER(address) (*(volatile uint32_t *)(address))

enum { PAINT = 0x5157a55a };

static void paint_stack(void)
{
    uint32_t *here;
    __asm__ volatile("mov %0, sp" : "=r"(here));
    for (uint32_t *p = stack_bottom; p < here; p++)
        *p = PAINT;
}

uint32_t stack_used(void)
{
    const uint32_t *p = stack_bottom;
    while (p < stack_top && *p == PAINT)
        p++;
    return (uint32_t)((uintptr_t)stack_top - (uintptr_t)p);
}

#define VALUE(symbol) ((uint32_t)(uintptr_t)symbol)

static void protect(void)
{
#if __ARM_ARCH == 7
    /* RBAR: address, region; RASR: execute never, access, cacheable, log2 of the bytes less one, enable */
    const uint32_t flash = VALUE(vectors_size) + VALUE(flash_size);
    REGISTER(0xe000ed9c) = VALUE(vectors_origin) | 1u << 4 | 0;
    REGISTER(0xe000eda0) = 6u << 24 | 1u << 17 | (uint32_t)(30 - __builtin_clz(flash)) << 1 | 1;
    REGISTER(0xe000ed9c) = VALUE(ram_origin) | 1u << 4 | 1;
    REGISTER(0xe000eda0) = 1u << 28 | 3u << 24 | 3u << 16 | (uint32_t)(30 - __builtin_clz(VALUE(ram_size))) << 1 | 1;
#else
    /* MAIR0: normal memory, not cached; RNR: region; RBAR: address, read-only, execute never; RLAR: last block, enable */
    REGISTER(0xe000edc0) = 0x44;
    REGISTER(0xe000ed98) = 0;
    REGISTER(0xe000ed9c) = VALUE(flash_origin) | 2u << 1;
    REGISTER(0xe000eda0) = ((VALUE(flash_origin) + VALUE(flash_size) - 1) & ~31u) | 1;
    REGISTER(0xe000ed98) = 1;
    REGISTER(0xe000ed9c) = VALUE(ram_origin) | 1;
    REGISTER(0xe000eda0) = ((VALUE(ram_origin) + VALUE(ram_size) - 1) & ~31u) | 1;
#endif
    REGISTER(0xe000ed94) = 1; /* MPU_CTRL: on, no access to what no region holds */
    __asm__ volatile("dsb\n isb");
}

void reset(void)
{
    REGISTER(0xe000ed14) |= 1u << 4;    /* CCR.DIV_0_TRP: a division by zero faults, it does not give zero */
    REGISTER(0xe000ed24) |= 7u << 16;   /* SHCSR: memory, bus and usage faults have handlers of their own */
    REGISTER(0xe000ed88) |= 0xfu << 20; /* CPACR: the coprocessors that are FPU and MVE */
    __asm__ volatile("dsb\n isb");
    protect();
    paint_stack();
    const uint32_t *from = data_image;
    for (uint32_t *to = data_start; to < data_end;)
        *to++ = *from++;
    for (uint32_t *p = bss_start; p < bss_end;)
        *p++ = 0;
    semihosting_exit(main());
}

/* What is written to the file "fault". */
struct report {
    uint32_t exception; /* its number */
    uint32_t status;    /* CFSR */
    uint32_t data;      /* MMFAR */
    uint32_t bus;       /* BFAR */
    uint32_t pc;        /* of the instruction that faulted; 0 where the registers were not saved */
};

/* frame: the registers that the processor saved: r0-r3, r12, lr, pc, xpsr */
__attribute__((used)) static void tell(const uint32_t *frame)
{
    const int readable = frame >= stack_bottom && frame + 8 <= stack_top;
    const struct report report = {
        .exception = REGISTER(0xe000ed04) & 0x1ff,
        .status = REGISTER(0xe000ed28),
        .data = REGISTER(0xe000ed34),
        .bus = REGISTER(0xe000ed38),
        .pc = readable ? frame[6] : 0,
    };
    const int file = semihosting_open("fault", SEMIHOSTING_WRITE);
    semihosting_write(file, &report, sizeof report);
    semihosting_exit(EXIT_FAULT);
}

__attribute__((naked)) void fault(void)
{
    /* the frame is where the stack pointer was; a new stack lets this end even after an overflow */
    __asm__ volatile("mov r0, sp\n"
                     "ldr r1, =stack_top\n"
                     "mov sp, r1\n"
                     "b tell\n");
}

__attribute__((section(".vectors"), used)) static void *const vectors[] = {
    stack_top, (void *)reset, (void *)fault, (void *)fault, /* top of stack, reset, NMI, hard fault */
    (void *)fault, (void *)fault, (void *)fault, (void *)fault, /* memory, bus, usage and secure fault */
    (void *)fault, (void *)fault, (void *)fault, (void *)fault, /* reserved; SVCall */
    (void *)fault, (void *)fault, (void *)fault, (void *)fault, /* debug, reserved, PendSV, SysTick */
};
