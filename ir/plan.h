/* The plan: the target-neutral list of kernels that code generators turn into machine code. It is the last form
 * of the graph, with everything decided: order, storage, algorithm. Generators read the plan and nothing else. */
#ifndef KILN_IR_PLAN_H
#define KILN_IR_PLAN_H

#include "graph.h"
#include "target.h"

typedef struct PlanTensor {
  const char *name;
  DataType dtype;
  Shape shape;
  Layout layout;
  Storage storage; /* fully placed */
} PlanTensor;

/* A reduction of a kernel's output that the kernel computes besides, of values as it makes them. */
typedef struct PlanReduction {
  OpCode op;
  Attrs attrs;
  PlanTensor output; /* a row per item of the kernel */
} PlanReduction;

/* A max pool that the kernel of a convolution computes as it makes its value, which is not stored: see ir/work.h. */
typedef struct PlanPool {
  Attrs attrs;
  uint32_t node_id; /* of the convolution */
  PlanTensor made;  /* its value; without a place */
} PlanPool;

typedef struct PlanKernel {
  const char *name; /* of the value */
  uint32_t node_id; /* of the node in the graph, for comparing with the interpreter */
  OpCode op;
  Attrs attrs;
  KernelChoice choice;
  PlanTensor output;
  PlanTensor *inputs; /* the op's own first, then epilogue operands */
  int32_t input_count, op_input_count;
  EpilogueStep *epilogue;
  int32_t epilogue_count;
  PlanReduction *reductions;
  int32_t reduction_count;
  const PlanPool *pool; /* `output`, name and node_id are the pool's; NULL: there is none */
  Location location;
  /* Index of the first kernel of the plan (counting prepare, then run) that needs exactly the same code: same op,
   * attributes, shapes, layouts, strides, epilogue, reductions. Equal to its own index when it is the first. */
  uint32_t code;
  double flops, flops_fixed; /* per image; independent of the batch */
  uint32_t stretch; /* not 0: of the kernels of this number, some images at a time may be computed: Plan.stretch_images */
} PlanKernel;

typedef struct PlanPort {
  const char *name;
  DataType dtype;
  Shape shape;
  bool state; /* a parameter that run steps change */
} PlanPort;

typedef struct Plan {
  Arena *arena;
  const char *name; /* the model's */
  const Target *target;
  int64_t max_batch;
  PlanKernel *kernels; /* prepare kernels first */
  size_t kernel_count, prepare_count;
  PlanPort *inputs, *outputs, *parameters;
  size_t input_count, output_count, parameter_count;
  size_t hook_output_count; /* the last outputs */
  bool fixed_batch;         /* batched values of the workspace lie in its fixed part, for max_batch images */
  int32_t batch_unit;       /* images that kernels compute together; the fixed part ends with room for so many, less one */
  const StateSlot *slots;   /* of a training step: what lies where in a row of the parameter `state` */
  size_t slot_count;
  int32_t group_rows; /* rows of `hyper`; 0: no training step */
  int64_t workspace_fixed, workspace_per_batch, prepared_bytes, prepare_scratch;
  const char *metadata; /* JSON, see kiln_program.metadata; never NULL */
  uint64_t identity; /* hash of everything above: names the prepared weights that fit */
  int64_t stretch_images; /* 0: there are no stretches */
  int64_t chunk;     /* images that a thread may take through all kernels of a run at a time; 0: no such way */
} Plan;

/* What the kernel's op itself makes: its output, unless that is pooled. */
const PlanTensor *plan_made(const PlanKernel *kernel);
/* A table of kernels with buffers, for `--emit=plan`. */
void plan_print(Text *text, const Plan *plan);

#endif
