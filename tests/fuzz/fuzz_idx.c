/* IDX arrays, plain and compressed. */
#include "session/data_idx.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Arena *arena = arena_create(NULL);
  if (!arena) return 0;
  jmp_buf point;
  arena_on_failure(arena, &point);
  if (setjmp(point) == 0) {
    Diag *diag = diag_create(arena);
    IdxArray array;
    const bool good = idx_parse("input", data, size, arena, diag, &array);
    if (good != (diag_error_count(diag) == 0)) __builtin_trap();
    uint64_t sum = 0;
    for (int64_t i = 0; good && i < array.count; i++) sum += array.values[i];
    if (sum > (uint64_t)INT64_MAX) __builtin_trap();
    diag_text(diag, arena);
  }
  arena_destroy(arena);
  return 0;
}
