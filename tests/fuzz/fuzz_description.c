/* description_parse on any text: no crash, no leak, and either a graph that verifies or a message. */
#include "description.h"
#include "fuzz.h"

/* Bombs are a matter of test_description: here they would only cost time. */
static bool is_bomb(const uint8_t *data, size_t size) {
  size_t digits = 0;
  for (size_t i = 0; i < size; i++) {
    digits = data[i] >= '0' && data[i] <= '9' ? digits + 1 : 0;
    if (digits > 3) return true;
  }
  return false;
}

static bool parse(const uint8_t *data, size_t size, Arena *arena, Diag *diag) {
  Graph *graph = NULL;
  if (!description_parse("input", (const char *)data, size, NULL, arena, diag, &graph)) return false;
  if (!graph_verify(graph, "fuzz", diag)) __builtin_trap();
  return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  return is_bomb(data, size) ? 0 : fuzz_parse(parse, data, size);
}
