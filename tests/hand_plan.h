/* Plans built by hand, for tests of the code generator alone: every tensor is a buffer of its own in any layout. */
#ifndef KILN_TESTS_HAND_PLAN_H
#define KILN_TESTS_HAND_PLAN_H

#include "kiln_abi.h"
#include "plan.h"

/* Sets layout, strides, origin and size of a tensor with this halo (NULL: none), and `row_padding` elements after
 * every row of a rank-4 tensor. */
void hand_layout(PlanTensor *tensor, Layout layout, const int32_t *halo, int64_t row_padding);
/* A plain f32 tensor. */
PlanTensor hand_tensor(const char *name, Shape shape, Space space, int32_t index);
/* Offset in elements of a logical element, block and lane resolved. */
int64_t hand_offset(const PlanTensor *tensor, const int64_t *index);
/* The next logical index of a concrete shape, last varies fastest; false after the last one. */
bool hand_next(const Shape *shape, int64_t *index);

/* One kernel `op` over `count` inputs, all in SPACE_INPUT, into output 0. The caller fills in layouts and epilogue. */
PlanKernel *hand_kernel(Arena *arena, OpCode op, PlanTensor output, const PlanTensor *inputs, int32_t count);
/* A plan of one run kernel. */
Plan *hand_plan(Arena *arena, const char *name, const Target *target, PlanKernel *kernel, int64_t max_batch);

#endif
