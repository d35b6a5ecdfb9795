#pragma once

/* One copy of each kernel, however often it is called. */
#if defined(__GNUC__)
#define KERNEL static __attribute__((noinline))
#else
#define KERNEL static
#endif
