/* Buffers that fault on the first byte outside: for tests of generated code. */
#ifndef KILN_TESTS_GUARDED_H
#define KILN_TESTS_GUARDED_H

#include <stdbool.h>
#include <stddef.h>

/* `bytes` of memory between inaccessible pages, filled with 0xFF (a NaN in every float type). With `at_end` its last
 * byte is the last one that can be touched, so that reads past the end fault; its alignment is then the largest power
 * of two that divides `bytes` (round up sizes that need more). Otherwise it starts at the first accessible byte,
 * aligned to a page. Never NULL: ends the test program when there is no memory. Not thread-safe. */
void *guarded_alloc(size_t bytes, bool at_end);
/* NULL is allowed. */
void guarded_free(void *pointer);

#endif
