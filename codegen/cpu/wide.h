/* Beside emit.h, for kernels that add up many numbers: sums and coordinates in double, maxima that keep NaN.
 *
 * Sums are taken in double and rounded once at the end: a sum of n numbers is then off by one rounding of the result
 * instead of up to n, in a fixed order, whatever the shape. emit_fadd, emit_fmul, emit_reduce_add, emit_get and
 * emit_set work on doubles as they do on floats. */
#ifndef KILN_CODEGEN_CPU_WIDE_H
#define KILN_CODEGEN_CPU_WIDE_H

#include "emit.h"

/* double, or <lanes x double> */
LLVMTypeRef wide_type(Emit *emit, int32_t lanes);
Value wide_constant(Emit *emit, int32_t lanes, double value);
Value wide_splat(Emit *emit, Value scalar, int32_t lanes);
Value wide_from_float(Emit *emit, Value value, int32_t lanes);
Value wide_to_float(Emit *emit, Value value, int32_t lanes);
Value wide_from_int(Emit *emit, Value value);
/* The integer part of a scalar; 0 ≤ value < 2^62, else the result is undefined. */
Value wide_to_int(Emit *emit, Value value);

/* The larger one, NaN when either is. Floats or doubles, any number of lanes. */
Value emit_maximum(Emit *emit, Value a, Value b);
Value emit_reduce_maximum(Emit *emit, Value vector, int32_t lanes);

/* --- reductions -------------------------------------------------------------------------------------- */
/* A sum (in double) or a maximum (in f32) over values that come in any number of lanes: `lanes` at a time into a
 * vector, the others one by one. */
typedef struct Reduction {
  bool maximum;
  int32_t lanes; /* of the vector; 1: only scalars come */
  Value vector, scalar;
} Reduction;

Reduction reduction_begin(Emit *emit, bool maximum, int32_t lanes);
/* `value`: f32 with the reduction's lanes or one; for sums also doubles. */
void reduction_add(Emit *emit, const Reduction *reduction, Value value, int32_t lanes);
/* Sums: a double, maxima: a float; one lane. */
Value reduction_end(Emit *emit, const Reduction *reduction);
/* The same without the last step: all lanes of the vector. For reductions that only vectors came to. */
Value reduction_vector(Emit *emit, const Reduction *reduction);
/* Adds `count` adjacent floats. */
void reduction_add_run(Emit *emit, const Reduction *reduction, Value base, Value offset, int64_t count);

#endif
