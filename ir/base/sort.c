#include "base/sort.h"

#include <stdbool.h>
#include <string.h>

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

void sort_pointers(const void **items, const void **scratch, size_t count,
                   int (*compare)(const void *a, const void *b)) {
  const void **from = items, **to = scratch;
  for (size_t width = 1; width < count; width *= 2) {
    for (size_t start = 0; start < count; start += 2 * width) {
      const size_t middle = smaller(start + width, count), end = smaller(start + 2 * width, count);
      size_t left = start, right = middle;
      for (size_t at = start; at < end; at++) {
        const bool take_left = right == end || (left < middle && compare(from[left], from[right]) <= 0);
        to[at] = from[take_left ? left++ : right++];
      }
    }
    const void **swap = from;
    from = to;
    to = swap;
  }
  if (from != items) memcpy(items, from, count * sizeof *items);
}
