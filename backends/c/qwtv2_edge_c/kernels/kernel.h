#pragma once

/* One copy of each kernel, however often it is called. */
#if defined(__GNUC__) && !defined(__clang__)
#define KERNEL static __attribute__((noinline, noclone))
#elif defined(__clang__)
#define KERNEL static __attribute__((noinline))
#else
#define KERNEL static
#endif
