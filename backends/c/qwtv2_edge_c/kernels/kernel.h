#pragma once

/* Which of the helpers below are called depends on the network and on the core; Clang would warn of the others. */
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif

/* What C leaves to the compiler and this file relies on: int has 32 bits or more, shifting a negative number right keeps its sign. */
typedef char compiler_is_supported[sizeof(int) >= 4 && -1 >> 1 == -1 ? 1 : -1];

/* One copy of each kernel, however often it is called. */
#if defined(__clang__)
#define KERNEL static __attribute__((noinline))
#elif defined(__GNUC__)
#define KERNEL static __attribute__((noinline, noclone))
#else
#define KERNEL static
#endif
