/* What the kernels that only move data share. */
#ifndef KILN_CODEGEN_CPU_MOVE_H
#define KILN_CODEGEN_CPU_MOVE_H

#include "emit.h"

/* The input's elements at the same indices of an output of the same shape and layout; halos may differ, epilogues
 * apply, any element type. */
void move_rows(Emit *emit, const PlanKernel *kernel, KernelWork *out_work);
/* The elements from dimension `first` on follow each other without gaps in row-major order. */
bool move_is_dense(const PlanTensor *tensor, int32_t first);
/* Copies floats [begin, end) from inputs[0] + from to output + to. */
void move_run(Emit *emit, Value from, Value to, Value begin, Value end);
/* Transposes lanes × lanes numbers in registers; lanes is a power of two, at most 16. */
void move_transpose(Emit *emit, Value *rows, int32_t lanes);

#endif
