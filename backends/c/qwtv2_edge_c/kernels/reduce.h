#pragma once

#include <stdint.h>

/* Which elements come together: along kept axes results lie, in the output's order; along reduced axes they are gathered.
   Steps are in elements of the input. */
struct reduce {
    int32_t kept[2], kept_step[2], reduced[2], reduced_step[2];
};
