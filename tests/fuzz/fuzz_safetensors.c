/* safetensors_parse on any bytes: no crash, no leak, and whatever is accepted lies inside the input. */
#include "fuzz.h"
#include "safetensors.h"

static bool parse(const uint8_t *data, size_t size, Arena *arena, Diag *diag) {
  TensorList tensors;
  if (!safetensors_parse("input", data, size, arena, diag, &tensors)) return false;
  for (size_t i = 0; i < tensors.count; i++) {
    const int64_t count = tensor_elements(&tensors.items[i]);
    if (count > 0) tensor_get(&tensors.items[i], count - 1);
  }
  return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return fuzz_parse(parse, data, size); }
