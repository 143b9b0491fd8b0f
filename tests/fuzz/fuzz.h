/* What the fuzzers of parsers share. */
#ifndef KILN_TESTS_FUZZ_H
#define KILN_TESTS_FUZZ_H

#include "base/diag.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Parses the input into the arena and touches all of the result; false with messages when the input is refused. */
typedef bool FuzzParse(const uint8_t *data, size_t size, Arena *arena, Diag *diag);

/* Running out of memory is no fault; an input that is refused without a message, or taken with one, is. */
static inline int fuzz_parse(FuzzParse *parse, const uint8_t *data, size_t size) {
  Arena *arena = arena_create(NULL);
  if (!arena) return 0;
  jmp_buf point;
  arena_on_failure(arena, &point);
  if (setjmp(point) == 0) {
    Diag *diag = diag_create(arena);
    if (parse(data, size, arena, diag) != (diag_error_count(diag) == 0)) __builtin_trap();
    diag_text(diag, arena);
  }
  arena_destroy(arena);
  return 0;
}

#endif
