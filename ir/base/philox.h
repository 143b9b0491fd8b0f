/* Philox4x32-10, a counter-based random number generator: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as
 * easy as 1, 2, 3", SC 2011. Word i of a stream is a function of the key and i alone, so that results do not depend
 * on the order or the number of threads. */
#ifndef KILN_IR_BASE_PHILOX_H
#define KILN_IR_BASE_PHILOX_H

#include <stdint.h>

/* Four words from a 128-bit counter and a 64-bit key, each least significant word first. */
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out_words[4]);

#endif
