/* One generated CUDA kernel on the emulated device, without a program around it: for tests of kernel generators.
 *
 * Every operand lies in a buffer of its own between inaccessible pages, flush against the one behind it; memory that
 * nothing has written is NaN. */
#ifndef KILN_TESTS_EMULATED_KERNEL_H
#define KILN_TESTS_EMULATED_KERNEL_H

#include "cuda/cuda_emit.h"
#include "eval.h"

/* A node as the code generator sees it, placed by hand. */
typedef struct EmulatedKernel {
  Arena *arena;
  Diag *diag;
  Graph *graph; /* one op, called "y" */
  const Node *node;
  PlanKernel *kernel; /* operands are inputs */
  Target target;
  int64_t max_batch;
  CudaEmit emit; /* text and launches, once generated */
} EmulatedKernel;

/* The kernel of node "y" of the graph in the IR's text form. `last`: images and filters have their channels last,
 * filters in `channel_block` (1: dense); else everything is plain. NULL after printing the messages. */
EmulatedKernel *emulated_kernel(Arena *arena, const char *text, bool last, int32_t channel_block, const char *arch,
                                MathMode math);
/* Keeps images and filters with channels last in 16 bits, where the channels are a multiple of 8. */
void emulated_pack(EmulatedKernel *kernel, DataType element);
/* An empty text for it, to be filled by a generator. */
void emulated_begin(EmulatedKernel *kernel);
/* By the op's own generator. */
bool emulated_generate(EmulatedKernel *kernel);

/* Compiles, and runs twice: with lanes in order and in reverse. Dense values in row-major order of the logical shape.
 * `changed` (may be NULL) replaces the text. On failure returns what happened, else NULL. */
const char *emulated_run(EmulatedKernel *kernel, const char *changed, const TensorList *inputs, int64_t batch,
                         float **out_forward, float **out_reverse);

#endif
