/* Size arithmetic that cannot wrap. Every product of dimensions goes through here. Each returns false on
 * overflow and then leaves *out alone. */
#ifndef KILN_IR_BASE_CHECKED_H
#define KILN_IR_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool checked_add(int64_t a, int64_t b, int64_t *out) {
  int64_t result;
  if (__builtin_add_overflow(a, b, &result)) return false;
  *out = result;
  return true;
}

static inline bool checked_sub(int64_t a, int64_t b, int64_t *out) {
  int64_t result;
  if (__builtin_sub_overflow(a, b, &result)) return false;
  *out = result;
  return true;
}

static inline bool checked_mul(int64_t a, int64_t b, int64_t *out) {
  int64_t result;
  if (__builtin_mul_overflow(a, b, &result)) return false;
  *out = result;
  return true;
}

/* a rounded up to a multiple of b; a ≥ 0, b > 0, and the result is known to fit. */
static inline int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#endif
