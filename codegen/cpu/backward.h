/* What the backward kernels share. */
#ifndef KILN_CODEGEN_CPU_BACKWARD_H
#define KILN_CODEGEN_CPU_BACKWARD_H

#include "emit.h"

/* Keeps the larger of `value` and the float variable `best`, and in the i64 variable `place` where it stands: `at`. A
 * place below 0 means that there is none yet. The first of equal ones stays; NaN counts as the largest. */
void emit_take_larger(Emit *emit, Value value, Value at, Value best, Value place);

#endif
