/* Stable merge sort of pointers: O(n log n) comparisons on any input, no recursion, no memory of its own. */
#ifndef KILN_IR_BASE_SORT_H
#define KILN_IR_BASE_SORT_H

#include <stddef.h>

/* Sorts items[0..count); `scratch` has room for as many. compare(a, b) is negative, 0 or positive. */
void sort_pointers(const void **items, const void **scratch, size_t count,
                   int (*compare)(const void *a, const void *b));

#endif
