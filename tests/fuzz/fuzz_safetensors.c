/* safetensors_parse on any bytes: no crash, no leak, and whatever is accepted lies inside the input. */
#include "safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Arena *arena = arena_create(NULL);
  if (!arena) return 0;
  jmp_buf point;
  arena_on_failure(arena, &point);
  if (setjmp(point) == 0) {
    Diag *diag = diag_create(arena);
    TensorList tensors;
    const bool good = safetensors_parse("input", data, size, arena, diag, &tensors);
    if (good != (diag_error_count(diag) == 0)) __builtin_trap();
    for (size_t i = 0; good && i < tensors.count; i++) {
      const int64_t count = tensor_elements(&tensors.items[i]);
      if (count > 0) tensor_get(&tensors.items[i], count - 1);
    }
    diag_text(diag, arena);
  }
  arena_destroy(arena);
  return 0;
}
