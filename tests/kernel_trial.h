/* One kernel compiled from a plan built by hand, run between guard pages in several chunks, against the interpreter. */
#ifndef KILN_TESTS_KERNEL_TRIAL_H
#define KILN_TESTS_KERNEL_TRIAL_H

#include "eval.h"
#include "kiln_abi.h"
#include "op_cases.h"
#include "plan.h"
#include "support.h"

enum { TRIAL_MAX_OPERANDS = 15 };

typedef struct Trial Trial;

/* How values lie in memory. Buffers come from guarded_alloc and end at the last byte that can be touched with `at_end`.
 */
typedef struct TrialMemory {
  void *(*make_buffer)(const PlanTensor *tensor, int64_t batch, bool at_end);
  /* A buffer with a value in it and what kernels may read around it. */
  void *(*make_input)(const PlanTensor *tensor, int64_t batch, const Tensor *value, bool at_end);
  /* The output as a dense tensor of the fixture's arena; checks what kernels have to leave around it. */
  Tensor (*read_output)(const Trial *trial, void *buffer);
  int64_t max_batch;
  /* In how many chunks the work is cut after it was run in one: ends with the largest, which is followed by 0. */
  const int64_t *chunks;
} TrialMemory;

struct Trial {
  Fixture *fixture;
  const char *label;
  const Target *target;
  const TrialMemory *memory;
  Graph *graph; /* of one op */
  Node *node;
  TensorList inputs; /* of the graph, in the order of its inputs and then parameters */
  int64_t batch;
  bool exact;
  double tolerance; /* relative L2; ignored when exact */
  PlanKernel *kernel;
  const kiln_program *program;
};

/* A line of the table of ops; everything but tolerance, inputs and kernel is set. */
Trial trial_start(Fixture *fixture, const Target *target, const TrialMemory *memory, const OpCase *line);
/* The shape at this batch size. */
Shape trial_shape(Shape shape, int64_t batch);
/* Compiles the trial's node with these layouts, its attributes and epilogue. */
void trial_compile(Trial *trial, const PlanTensor *inputs, PlanTensor output);
void trial_fill(Trial *trial, OpCaseFill fill, int64_t batch);
/* Runs in one chunk, compares with the interpreter, then in more chunks, which have to give the same bytes. */
void trial_check(Trial *trial);
/* Calls body for every instruction set that this machine runs. */
void trial_each_target(Fixture *fixture, void (*body)(Fixture *fixture, const Target *target));

#endif
