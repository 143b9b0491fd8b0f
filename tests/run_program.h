/* Compiles a graph for an instruction set, runs its steps one by one in guarded memory and hands out every value.
 * The driver of all tests that compare generated code with the interpreter.
 *
 * Every operand of every step lies in a buffer of its own between inaccessible pages while the step runs, so that a
 * kernel that leaves its operand by one element faults. Memory that nothing has written is NaN. */
#ifndef KILN_TESTS_RUN_PROGRAM_H
#define KILN_TESTS_RUN_PROGRAM_H

#include "eval.h"
#include "graph.h"
#include "kiln_abi.h"
#include "passes.h"
#include "plan.h"
#include "tensor.h"

struct kiln_call;

/* Where steps run when not on this processor: see run_cuda.h. */
typedef struct TestDevice {
  void *context;
  char *(*allocate)(void *context, size_t size); /* of the device; the emulator watches it at both ends */
  void (*release)(void *context, char *memory);
  void (*write)(void *context, char *to, const char *from, size_t size);
  void (*read)(void *context, char *to, const char *from, size_t size);
  bool (*launch)(void *context, size_t kernel, const struct kiln_call *call); /* `kernel` of the plan */
} TestDevice;

typedef struct TestProgram {
  Arena *arena;
  Diag *diag;
  Target target;
  Graph *source; /* as given: types inferred, no other pass run */
  Graph *graph;  /* after all passes */
  Plan *plan;
  const struct kiln_program *program;
  TensorList parameters, inputs; /* set by the caller or by test_fill */
  int64_t l2_bytes;              /* what the passes take the second-level cache for; 0: what it is */
  const Layout *image_layout;    /* as in PassOptions */
  const TestDevice *device;      /* NULL: this processor */
} TestProgram;

/* Reads a description (text that starts with '{') or the text form of the IR. Batched graphs accept up to 4 images
 * unless the text says otherwise. Prints the diagnostics to standard error and returns false on failure. */
bool test_program_parse(TestProgram *program, Arena *arena, const char *text);
/* The same from a graph that the caller built in `arena`. */
bool test_program_init(TestProgram *program, Arena *arena, Graph *graph);
/* Runs the passes on a copy of the source, compiles and loads. `isa`: "native", "x86-64-v2", …; `disabled` as in
 * PassOptions. May be called again with other settings. */
bool test_program_compile(TestProgram *program, const char *isa, const char *disabled, Precision precision);
/* Whether this machine runs code for it: tests skip the others. */
bool test_isa_runnable(const char *isa);

typedef enum TestFill {
  FILL_INTEGERS, /* −3 … 3: sums of products stay exact in f32 */
  FILL_FLOATS    /* uniform in [−1, 1) */
} TestFill;

/* Makes inputs for `batch` images and all parameters without a value. Running variances are positive; I64 inputs are
 * 0 … 2. The same seed gives the same numbers. */
void test_fill(TestProgram *program, TestFill fill, int64_t batch, uint64_t seed);
/* Replaces every number of inputs and parameters by its absolute value: Σ|a||b| for error bounds. */
void test_make_absolute(TestProgram *program);

typedef struct TestRun {
  int64_t batch;
  TensorList outputs; /* in port order, f32 or i64, dense */
  TensorList values;  /* one per run step, dense, read through kiln_view; names are those of the steps */
} TestRun;

/* Prepares and runs `batch` images (the batch of program->inputs). `chunks`: every step's items are run in this many
 * pieces, the last piece first, each with its own thread number and scratch (1: in order, on thread 0). `at_end`:
 * buffers lie flush against the guard after them, otherwise against the one before. */
bool test_program_run(TestProgram *program, int64_t batch, int32_t chunks, bool at_end, TestRun *out_run);

/* A poisoned tensor for every output. */
TensorList test_outputs_create(const struct kiln_program *program, int64_t batch, Arena *arena);

/* Links the program as a shared library and opens it; it is closed with the arena. NULL on failure. */
const struct kiln_program *test_program_link(TestProgram *program, const char *path);
/* Runs a library of the program as a host would, NAME_prepare and then NAME_run, in one thread. Outputs in port order.
 */
bool test_library_run(TestProgram *program, const struct kiln_program *library, int64_t batch, TensorList *out_outputs);

/* The interpreter's values of `graph` (program->source or ->graph) for the program's inputs and parameters. */
bool test_program_eval(TestProgram *program, const Graph *graph, EvalResult *out_result);

/* Largest |actual − expected| − tolerance·magnitude over all elements, NaN counting as infinite; `magnitude` NULL
 * means 1 everywhere. Not positive: all within tolerance. */
double test_excess(const Tensor *actual, const EvalTensor *expected, const EvalTensor *magnitude, double tolerance);
/* The L2 norm of the difference by that of what is expected; where that is 0, of the difference alone. */
double test_relative_error(const Tensor *actual, const EvalTensor *expected);

#endif
