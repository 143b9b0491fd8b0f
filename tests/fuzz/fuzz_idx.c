/* IDX arrays, plain and compressed. */
#include "fuzz.h"
#include "session/data_idx.h"

static bool parse(const uint8_t *data, size_t size, Arena *arena, Diag *diag) {
  IdxArray array;
  if (!idx_parse("input", data, size, arena, diag, &array)) return false;
  uint64_t sum = 0;
  for (int64_t i = 0; i < array.count; i++) sum += array.values[i];
  if (sum > (uint64_t)INT64_MAX) __builtin_trap();
  return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return fuzz_parse(parse, data, size); }
