/* Included before the network's own file where its instructions are counted. */

#ifndef TRACE_H
#define TRACE_H

/* The emulator tells how many instructions were executed whenever it comes here: before each node and behind the last. */
void trace_mark(void);

#define QWTV2_TRACE(node) trace_mark()

#endif
