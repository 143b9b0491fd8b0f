/* Pictures and .npy arrays, told apart by their first bytes. */
#include <string.h>

#include "fuzz.h"
#include "session/npy.h"
#include "session/picture.h"

static bool parse(const uint8_t *data, size_t size, Arena *arena, Diag *diag) {
  if (size > 0 && data[0] == 0x93) {
    Tensor tensor;
    if (!npy_parse("input", data, size, arena, diag, &tensor)) return false;
    const int64_t count = tensor_elements(&tensor);
    if (count > 0) tensor_get(&tensor, count - 1);
    return true;
  }
  Picture picture;
  if (!picture_parse("input", data, size, arena, diag, &picture)) return false;
  picture_resize(&picture, 3, 2, arena);
  return true;
}

/* A few bytes can ask for millions of pixels, whose time says nothing. */
static bool too_large(const uint8_t *data, size_t size) {
  return size >= 24 && memcmp(data + 12, "IHDR", 4) == 0 &&
         (data[16] || data[17] || data[18] > 3 || data[20] || data[21] || data[22] > 3);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  return too_large(data, size) ? 0 : fuzz_parse(parse, data, size);
}
