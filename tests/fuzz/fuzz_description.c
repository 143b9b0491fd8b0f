/* description_parse on any text: no crash, no leak, and either a graph that verifies or a message. */
#include "description.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Bombs are a matter of test_description: here they would only cost time. */
static bool is_bomb(const uint8_t *data, size_t size) {
  size_t digits = 0;
  for (size_t i = 0; i < size; i++) {
    digits = data[i] >= '0' && data[i] <= '9' ? digits + 1 : 0;
    if (digits > 3) return true;
  }
  return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Arena *arena = is_bomb(data, size) ? NULL : arena_create(NULL);
  if (!arena) return 0;
  jmp_buf point;
  arena_on_failure(arena, &point);
  if (setjmp(point) == 0) {
    Diag *diag = diag_create(arena);
    Graph *graph = NULL;
    const bool good = description_parse("input", (const char *)data, size, NULL, arena, diag, &graph);
    if (good != (diag_error_count(diag) == 0)) __builtin_trap();
    if (good && !graph_verify(graph, "fuzz", diag)) __builtin_trap();
    diag_text(diag, arena);
  }
  arena_destroy(arena);
  return 0;
}
