/* Runs the network over every sample of the file "inputs" and writes "outputs": a sample's codes, port after port.
 *
 * "network.h" is written beside this file: NETWORK_RUN, and NETWORK_INPUTS and NETWORK_OUTPUTS, which call their argument with
 * (function that gives the address, element type, elements) for every port.
 */

#include "network.h"

#include "semihosting.h"
#include "start.h"
#include "trace.h"

#define DECLARE(function, type, count) type *function(void);
NETWORK_INPUTS(DECLARE)
NETWORK_OUTPUTS(DECLARE)
void NETWORK_RUN(void);

__attribute__((noinline)) void trace_mark(void)
{
    __asm__ volatile("");
}

#define READ(function, type, count) missing += semihosting_read(inputs, function(), sizeof(type) * count);
#define WRITE(function, type, count) missing += semihosting_write(outputs, function(), sizeof(type) * count);

int main(void)
{
    const int inputs = semihosting_open("inputs", SEMIHOSTING_READ);
    const int outputs = semihosting_open("outputs", SEMIHOSTING_WRITE);
    const int stack = semihosting_open("stack", SEMIHOSTING_WRITE);
    if (inputs < 0 || outputs < 0 || stack < 0)
        return EXIT_FILE;
    for (;;) {
        size_t missing = 0;
        NETWORK_INPUTS(READ)
        if (missing)
            break; /* the end */
        NETWORK_RUN();
        trace_mark();
        NETWORK_OUTPUTS(WRITE)
        if (missing)
            return EXIT_FILE;
    }
    const uint32_t used = stack_used();
    return semihosting_write(stack, &used, sizeof used) ? EXIT_FILE : EXIT_DONE;
}
