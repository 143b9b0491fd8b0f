/* The objects behind kiln.h, and what the program uses of them beyond the public interface. */
#ifndef KILN_RUNTIME_SESSION_SESSION_H
#define KILN_RUNTIME_SESSION_SESSION_H

#include "codegen.h"
#include "core/pool.h"
#include "description.h"
#include "kiln.h"
#include "passes.h"

struct kiln_model {
  Arena *arena;
  kiln_host host;
  Allocator allocator;
  Graph *graph; /* as described; compiling works on a clone */
  Tensor **trained; /* values that kiln_state_store made, by parameter; or NULL */
};

struct CudaProgram;
struct CudaContext;

struct kiln_executable {
  Arena *arena;
  kiln_host host;
  Allocator allocator;
  const kiln_program *program;
  kiln_weights weights;
  const void **parameters;                 /* those that run steps read, in table order */
  void *blob;                              /* the prepared weights when they are this executable's own, or NULL */
  struct CudaProgram *cuda;                /* on a GPU; NULL: on this processor */
  double compile_seconds, prepare_seconds; /* how long it took to generate and link code, and to convert the weights */
};

struct kiln_context {
  const kiln_executable *executable;
  Allocator allocator;
  void *workspace;
  size_t workspace_bytes;
  int64_t max_batch;
  Pool *pool; /* own pool, or NULL */
  int64_t processor;   /* that the calling thread is kept on while it runs; -1: none */
  int64_t alone_batch; /* up to it one thread of the own pool does all: see alone_batch() */
  kiln_io io;
  kiln_callback callback; /* NULL: none */
  void *callback_context;
  void *io_block; /* kiln_io followed by the port pointers, as NAME_run expects it */
  size_t io_bytes;
  kiln_state *resident;     /* the state whose values this context has on its GPU, or NULL */
  struct CudaContext *cuda; /* of an executable on a GPU, which uses none of workspace, pool and io_block */
};

/* --- operations ---------------------------------------------------------------------------------------- */
/* Every entry of the library runs its body between these: an arena for temporaries, diagnostics, and a place to go
 * when memory runs out. `body` returns false when it has reported; its status is then operation.status (INPUT unless
 * it sets another). `keep` is an arena to destroy when the operation fails, or NULL; out-of-memory in it is caught too.
 */
typedef struct Operation {
  Arena *scratch;
  Diag *diag;
  Arena *keep;
  kiln_status status;
} Operation;

typedef bool (*OperationBody)(Operation *operation, void *context);

kiln_status operation_run(const kiln_host *host, Arena *keep, OperationBody body, void *context, kiln_error *error);
kiln_status error_set(kiln_error *error, kiln_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The other way round: a diagnostic for each line, which may begin with "FILE: error: ". */
void error_report(const kiln_error *error, Arena *arena, Diag *diag);
Allocator host_allocator(const kiln_host *host);

/* --- building ------------------------------------------------------------------------------------------ */
typedef struct BuildOptions {
  const kiln_compile_options *compile;
  const PipelineOptions *pipeline; /* dumps, stop; may be NULL */
  const TrainRequest *train;       /* a training step; NULL: inference */
  const Tuning *tuning;            /* measured times; NULL: those of the file that `compile` names, if any */
} BuildOptions;

/* What the options ask for; NULL: the defaults. */
bool train_request(const Graph *graph, const kiln_train_options *options, Diag *diag, TrainRequest *out_request);

/* Clones the graph, runs the passes, makes the plan (NULL when the pipeline was stopped). Everything in `arena`. */
bool build_plan(const Graph *graph, const BuildOptions *options, Arena *arena, Diag *diag, Graph **out_graph,
                Plan **out_plan);
/* Compiles a plan for this process and prepares weights from the graph's parameter values into `executable`. */
bool build_executable(const Graph *graph, const Plan *plan, const kiln_compile_options *options,
                      kiln_executable *executable, Arena *scratch, Diag *diag, kiln_status *out_status);
/* The prepared blob of a plan, computed on this machine whatever the plan's target is. */
bool build_prepared(const Graph *graph, const Plan *plan, const kiln_compile_options *options, Arena *arena, Diag *diag,
                    void **out_blob);
/* Writes library and header (and weights file); `path` as in kiln_compile_library. */
bool build_library(const Graph *graph, const Plan *plan, const kiln_compile_options *options, const char *path,
                   Arena *scratch, Diag *diag);
/* kiln_weights_head.checksum of a blob. */
uint64_t weights_checksum(const void *data, size_t size);
/* "libNAME.so" → "NAME"; other names lose their ending only. Without the folder. */
const char *library_base_name(const char *path, Arena *arena);

/* --- running ------------------------------------------------------------------------------------------- */
/* kiln_run with other weights than the executable's. */
kiln_status context_run(kiln_context *context, const kiln_weights *weights, int64_t batch, const void *const *inputs,
                        void *const *outputs, kiln_error *error);

/* Takes the values of the context's resident state back from the GPU, before the context goes. */
void state_leave(kiln_context *context);
/* What a training step runs with: the executable's prepared weights, and the state's own parameters. */
kiln_weights state_weights(const kiln_state *state);

/* --- checking against the interpreter ------------------------------------------------------------------- */
typedef struct ValueCheck {
  const char *name, *kind;
  double relative_l2;   /* ‖got − expected‖ / ‖expected‖ */
  double largest_error; /* max |got − expected| */
  double largest_value; /* max |expected| */
  bool compared;        /* false: the value has no counterpart in the described graph */
  bool passed;
} ValueCheck;

/* Runs a compiled plan step by step on `inputs` and compares the value of every step that exists in the described
 * graph with the interpreter's. A value passes when relative_l2 ≤ tolerance. */
bool verify_values(const Graph *graph, const Plan *plan, const kiln_executable *executable, const TensorList *inputs,
                   uint32_t threads, double tolerance, Arena *arena, Diag *diag, ValueCheck **out_checks,
                   size_t *out_count);

#endif
