/* Axes of matrix products: flat indices and the digits that they are made of. */
#include <assert.h>
#include <string.h>

#include "base/checked.h"
#include "gemm.h"

void axis_add(GemmAxis *axis, int64_t extent, int64_t stride, int64_t down, int64_t right) {
  if (extent == DIM_BATCH) {
    assert(axis->digit_count == 0);
    axis->batched = true;
    extent = 1;
  } else if (extent == 1) {
    return;
  }
  assert(axis->digit_count < GEMM_MAX_DIGITS);
  axis->digits[axis->digit_count++] = (GemmDigit){extent, stride, down, right};
}

static bool digits_even(const GemmDigit *outer, const GemmDigit *inner) {
  return outer->stride == inner->extent * inner->stride && outer->down == inner->extent * inner->down &&
         outer->right == inner->extent * inner->right;
}

void axes_merge(GemmAxis *const *axes, int32_t count) {
  for (int32_t digit = axes[0]->digit_count - 2; digit >= 0; digit--) {
    bool even = true;
    for (int32_t i = 0; i < count; i++)
      even = even && digits_even(&axes[i]->digits[digit], &axes[i]->digits[digit + 1]);
    for (int32_t i = 0; even && i < count; i++) {
      GemmAxis *axis = axes[i];
      GemmDigit *merged = &axis->digits[digit];
      const int64_t extent = merged->extent;
      *merged = axis->digits[digit + 1];
      merged->extent *= extent;
      for (int32_t d = digit + 1; d + 1 < axis->digit_count; d++) axis->digits[d] = axis->digits[d + 1];
      axis->digit_count--;
    }
  }
}

int64_t axis_count(const GemmAxis *axis) {
  int64_t count = 1;
  for (int32_t d = 0; d < axis->digit_count; d++) count *= axis->digits[d].extent;
  return count;
}

int64_t axis_most(const GemmAxis *axis, int64_t max_batch) {
  return axis->batched ? axis_count(axis) * max_batch : axis_count(axis);
}

const char *axis_count_text(CudaEmit *emit, const GemmAxis *axis) {
  const long long count = (long long)axis_count(axis);
  if (!axis->batched) return arena_format(emit->arena, "%lld", count);
  return count == 1 ? "batch" : arena_format(emit->arena, "(batch * %lld)", count);
}

/* Divisions by constants are cheaper without a sign. */
void axis_split(CudaEmit *emit, int depth, const GemmAxis *axis, const char *index, const char *prefix) {
  if (axis->digit_count == 0) return;
  const char *rest = arena_format(emit->arena, "(u32)%s", index);
  for (int32_t d = axis->digit_count - 1; d > 0; d--) {
    const long long extent = (long long)axis->digits[d].extent;
    cuda_line(emit, depth, "const u32 %s_over%d = %s / %lldu;", prefix, (int)d, rest, extent);
    cuda_line(emit, depth, "const int %s_%d = (int)(%s - %s_over%d * %lldu);", prefix, (int)d, rest, prefix, (int)d,
              extent);
    rest = arena_format(emit->arena, "%s_over%d", prefix, (int)d);
  }
  if (axis->digit_count == 1)
    cuda_line(emit, depth, "const int %s_0 = %s;", prefix, index);
  else
    cuda_line(emit, depth, "const int %s_0 = (int)%s;", prefix, rest);
}

typedef enum AxisTerm { TERM_STRIDE, TERM_DOWN, TERM_RIGHT } AxisTerm;

static int64_t digit_term(const GemmDigit *digit, AxisTerm term) {
  return term == TERM_STRIDE ? digit->stride : term == TERM_DOWN ? digit->down : digit->right;
}

static const char *axis_sum(CudaEmit *emit, const GemmAxis *axis, const char *prefix, AxisTerm term, int64_t start) {
  const char *cast = term == TERM_STRIDE && strcmp(emit->index, "i64") == 0 ? "(i64)" : "";
  Text text;
  text_init(&text, emit->arena);
  for (int32_t d = 0; d < axis->digit_count; d++) {
    const long long factor = (long long)digit_term(&axis->digits[d], term);
    if (factor == 0) continue;
    if (text.size > 0) text_add(&text, " + ");
    text_format(&text, "%s%s_%d", cast, prefix, (int)d);
    if (factor != 1) text_format(&text, " * %lld", factor);
  }
  if (text.size == 0) {
    text_format(&text, "%lld", (long long)start);
  } else if (start != 0) {
    text_format(&text, start < 0 ? " - %lld" : " + %lld", (long long)(start < 0 ? -start : start));
  }
  return text.data;
}

const char *axis_offset(CudaEmit *emit, const GemmAxis *axis, const char *prefix) {
  return axis_sum(emit, axis, prefix, TERM_STRIDE, axis->offset);
}
const char *axis_down(CudaEmit *emit, const GemmAxis *axis, const char *prefix) {
  return axis_sum(emit, axis, prefix, TERM_DOWN, axis->down);
}
const char *axis_right(CudaEmit *emit, const GemmAxis *axis, const char *prefix) {
  return axis_sum(emit, axis, prefix, TERM_RIGHT, axis->right);
}
