/* kiln.h: compile and run convolutional networks from C.
 *
 *   kiln_model *model;  kiln_executable *executable;  kiln_context *context;  kiln_error error;
 *   if (kiln_model_load(NULL, "resnet34.json", NULL, &model, &error) ||
 *       kiln_model_load_weights(model, "resnet34.safetensors", &error) ||
 *       kiln_compile(model, NULL, &executable, &error) ||
 *       kiln_context_create(executable, NULL, &context, &error) ||
 *       kiln_run(context, 1, inputs, outputs, &error))
 *     fprintf(stderr, "%s\n", error.message);
 *
 * Every function returns a kiln_status (kiln_abi.h); 0 is success. The last argument receives status and text of a
 * failure and may be NULL. The library never exits, aborts or prints, and installs no signal handlers.
 *
 * Threading: a model is used by one thread at a time. An executable is immutable: any number of threads may use it
 * at once, each with its own context. A context is used by one thread at a time. */
#ifndef KILN_H
#define KILN_H

#include "kiln_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(KILN_BUILD)
#define KILN_API __attribute__((visibility("default")))
#else
#define KILN_API
#endif

/* "0.1.0" */
KILN_API const char *kiln_version(void);
/* A short name of a status: "out of memory". Static. */
KILN_API const char *kiln_status_text(kiln_status status);

typedef struct kiln_model kiln_model;
typedef struct kiln_executable kiln_executable;
typedef struct kiln_context kiln_context;

/* What went wrong: for mistakes in files all diagnostics, a line each (`file:line:col: error: …`), cut at the
 * buffer's end. */
typedef struct kiln_error {
  kiln_status status;
  char message[8192];
} kiln_error;

/* --- the host's services ------------------------------------------------------------------------------ */

typedef enum kiln_log_level { KILN_LOG_WARNING = 0, KILN_LOG_INFO = 1 } kiln_log_level;

/* All members may be NULL: malloc and free, no log. The struct is copied; functions may be called from any thread
 * that uses an object made with it. Sizes and alignments are in bytes; alignment is a power of two. Memory that
 * LLVM takes while it compiles does not go through the allocator. */
typedef struct kiln_host {
  void *(*allocate)(void *context, size_t size, size_t alignment);
  void (*release)(void *context, void *pointer, size_t size);
  void (*log)(void *context, kiln_log_level level, const char *message);
  void *context;
} kiln_host;

/* --- models ------------------------------------------------------------------------------------------- */

typedef struct kiln_shape {
  const char *input; /* name of an input */
  uint32_t rank;
  int64_t dims[KILN_MAX_RANK]; /* -1 in dims[0]: any batch */
} kiln_shape;

typedef struct kiln_model_options {
  const kiln_shape *shapes; /* replace the shapes that the description gives */
  size_t shape_count;
} kiln_model_options;

/* Reads a description (format 1, frontend/FORMAT.md). KILN_ERROR_INPUT with all diagnostics when it is wrong.
 * `host` and `options` may be NULL. The caller destroys the model. */
KILN_API kiln_status kiln_model_load(const kiln_host *host, const char *path, const kiln_model_options *options,
                                     kiln_model **out_model, kiln_error *error);
/* The same from text of `size` bytes; `name` stands for the file in messages. The text is copied. */
KILN_API kiln_status kiln_model_parse(const kiln_host *host, const char *name, const char *text, size_t size,
                                      const kiln_model_options *options, kiln_model **out_model, kiln_error *error);
KILN_API void kiln_model_destroy(kiln_model *model);

/* Reads parameters by name from a safetensors file; may be called several times, later files win. */
KILN_API kiln_status kiln_model_load_weights(kiln_model *model, const char *path, kiln_error *error);
/* Copies one parameter: dense row-major f32 of exactly the declared shape. */
KILN_API kiln_status kiln_model_set_parameter(kiln_model *model, const char *name, const float *data, uint32_t rank,
                                              const int64_t *dims, kiln_error *error);
/* Kaiming initialisation (arXiv 1502.01852); same seed, same values on every machine. */
KILN_API kiln_status kiln_model_init_weights(kiln_model *model, uint64_t seed, kiln_error *error);

/* Adds a hook: `pattern` names a value ("body", "layer*.conv2"). The value becomes an extra output "hook.NAME" of
 * executables compiled afterwards. */
KILN_API kiln_status kiln_model_add_hook(kiln_model *model, const char *pattern, kiln_error *error);

typedef enum kiln_hook_kind { KILN_HOOK_ACTIVATION = 0, KILN_HOOK_GRADIENT = 1 } kiln_hook_kind;

typedef enum kiln_hook_action {
  KILN_HOOK_STORE = 0, /* output "hook.NAME" ("hook.grad.NAME" for gradients): the value of the whole batch */
  KILN_HOOK_STATS = 1, /* output "hook.stats.NAME" ("hook.grad.stats.NAME"), f32 [3 + bins], over all elements of the
                          batch: mean, unbiased standard deviation, share of values ≤ threshold, counts of the
                          histogram */
  KILN_HOOK_CALL = 2   /* as STORE, for kiln_context_set_callback */
} kiln_hook_action;

/* `bins` bins of equal width over [low, high] (the last one holds values equal to `high` too; values outside are not
 * counted). A zeroed struct but for the pattern: store the activation. bins = 0: 40 bins over [0, 10] and threshold
 * 0.05, whatever the other three are. At most 254 bins. */
typedef struct kiln_hook {
  const char *pattern;
  kiln_hook_kind kind;
  kiln_hook_action action;
  uint32_t bins;
  float low, high, threshold;
} kiln_hook;

/* The struct and its text are copied. Options that do not fit are reported when the model is compiled. */
KILN_API kiln_status kiln_model_add_hook_with(kiln_model *model, const kiln_hook *hook, kiln_error *error);

KILN_API const char *kiln_model_name(const kiln_model *model);
KILN_API size_t kiln_model_input_count(const kiln_model *model);
KILN_API size_t kiln_model_output_count(const kiln_model *model);
KILN_API size_t kiln_model_parameter_count(const kiln_model *model);
/* Fill *out_port; names live as long as the model. KILN_ERROR_ARGUMENT when `index` is out of range. */
KILN_API kiln_status kiln_model_input(const kiln_model *model, size_t index, kiln_port *out_port);
KILN_API kiln_status kiln_model_output(const kiln_model *model, size_t index, kiln_port *out_port);
KILN_API kiln_status kiln_model_parameter(const kiln_model *model, size_t index, kiln_port *out_port);

/* --- compiling ---------------------------------------------------------------------------------------- */

typedef enum kiln_precision {
  KILN_PRECISION_DEFAULT = 0,
  KILN_PRECISION_STRICT = 1, /* direct algorithms only */
  KILN_PRECISION_FAST = 2
} kiln_precision;

/* How GPUs compute convolutions and matrix products; sums are f32 always. */
typedef enum kiln_math {
  KILN_MATH_DEFAULT = 0, /* by precision: STRICT is FP32, DEFAULT 3XTF32, FAST TF32 */
  KILN_MATH_FP32 = 1,
  KILN_MATH_3XTF32 = 2, /* tensor cores, three products of 11-bit parts: nearly as exact as FP32 */
  KILN_MATH_TF32 = 3,   /* tensor cores, factors rounded to 11 bits */
  KILN_MATH_BF16 = 4,   /* factors rounded to bfloat16 (8 bits) */
  KILN_MATH_FP16 = 5    /* factors rounded to binary16 (11 bits, largest value 65504) */
} kiln_math;

typedef enum kiln_weights_mode {
  KILN_WEIGHTS_EMBED = 0,
  KILN_WEIGHTS_FILE = 1,
  KILN_WEIGHTS_CALLER = 2
} kiln_weights_mode;

/* A zeroed struct means: this machine, default precision, max batch of the description, all processors, no cache. */
typedef struct kiln_compile_options {
  const char *cpu;    /* "native", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"; NULL: native */
  const char *triple; /* LLVM target triple; NULL: this machine. Libraries only */
  kiln_precision precision;
  int64_t max_batch; /* 0: as described */
  uint32_t threads;  /* used for compiling and for preparing weights; 0: one per processor, at most 8. Results do not
                        depend on it */
  kiln_weights_mode weights;   /* libraries only */
  const char *disabled_passes; /* "fuse,fold_bn"; NULL: none */
  /* Folder that keeps compiled kernels, so that compiling the same again takes a fraction of the time; made when it is
   * missing, at most 256 MiB. Processes and threads may share it, results are the same with and without it, damaged
   * files are noticed, and a folder that cannot be written is worth a warning only. NULL: none. */
  const char *cache_dir;
  /* Where it runs. NULL or "cpu": this processor; "cuda", "cuda:1", …: an NVIDIA GPU, by number. GPUs need their driver
   * and NVRTC, both found at run time: KILN_ERROR_UNSUPPORTED with the reason when they are missing. Inputs and outputs
   * of kiln_run may then lie in the GPU's memory too, and the program's steps have no kernels of their own. */
  const char *device;
  const char *cuda_arch; /* "sm_90": libraries for GPUs only; NULL: that of the device */
  kiln_math math;        /* GPUs only */
  /* A file of measured times that `kiln tune` has written: kernels are computed in the way that was fastest. Times of
   * another version of Kiln or another machine are left out of account, with a warning. With `locked` other than 0,
   * kernels that the file has no times of are errors; the same file then gives the same program. NULL: none. */
  const char *tuning;
  int locked;
  /* The smallest batch that matters, at most max_batch; 0: 1. Smaller ones run too, but may take as long as this one:
   * where it pays, programs for processors then compute several images at once, one to a lane of a vector. */
  int64_t min_batch;
} kiln_compile_options;

/* Compiles into memory and prepares the weights. All parameters must have values. The executable is independent of
 * the model. `options` may be NULL. */
KILN_API kiln_status kiln_compile(const kiln_model *model, const kiln_compile_options *options,
                                  kiln_executable **out_executable, kiln_error *error);
/* Compiles to a shared library at `path` and its header beside it: libNAME.so → NAME.h. With KILN_WEIGHTS_FILE also
 * NAME.weights. Files are replaced atomically; the same input gives the same bytes. */
KILN_API kiln_status kiln_compile_library(const kiln_model *model, const kiln_compile_options *options,
                                          const char *path, kiln_error *error);
/* Loads a compiled library. `weights`: path of the weights file (mode `file`; NULL: beside the library), or of a
 * safetensors file (mode `caller`). KILN_ERROR_CPU when this processor cannot run it. */
KILN_API kiln_status kiln_open_library(const kiln_host *host, const char *path, const char *weights,
                                       kiln_executable **out_executable, kiln_error *error);
KILN_API void kiln_executable_destroy(kiln_executable *executable);
/* Names, shapes, hooks, steps. Lives as long as the executable. */
KILN_API const kiln_program *kiln_executable_program(const kiln_executable *executable);
/* The prepared weights, for callers that walk the program's steps themselves. On a GPU `prepared` is NULL. */
KILN_API const kiln_weights *kiln_executable_weights(const kiln_executable *executable);

/* --- running ------------------------------------------------------------------------------------------ */

/* A zeroed struct means: one thread, the program's largest batch. */
typedef struct kiln_context_options {
  uint32_t threads;               /* 0 or 1: the caller's thread only */
  kiln_parallel_for parallel_for; /* the host's; NULL: a pool of `threads` owned by the context */
  void *pool;
  int64_t max_batch; /* 0: the program's */
  /* Processors by the system's numbers: thread i of the context's own pool runs on affinity[i]; affinity_count is at
   * least the number of threads, and what stands beyond is not used. Thread 0 is the caller's: it is kept on its
   * processor while a run or a training step lasts, and is then free as before; a caller who keeps it there saves two
   * system calls a run. KILN_ERROR_ARGUMENT for processors that the process may not use, the same one twice, and with
   * `parallel_for`, whose threads are the host's. Without meaning on GPUs. NULL: wherever the system puts them. */
  const uint32_t *affinity;
  size_t affinity_count;
} kiln_context_options;

/* Allocates the workspace (and the pool). The executable must outlive the context. */
KILN_API kiln_status kiln_context_create(const kiln_executable *executable, const kiln_context_options *options,
                                         kiln_context **out_context, kiln_error *error);
KILN_API void kiln_context_destroy(kiln_context *context);
/* Runs a batch. `inputs` and `outputs` hold a pointer per port in table order (hook stores after the outputs), dense
 * row-major, of batch * port.bytes each (port.bytes when not batched). Allocates nothing. */
KILN_API kiln_status kiln_run(kiln_context *context, int64_t batch, const void *const *inputs, void *const *outputs,
                              kiln_error *error);
/* Called during kiln_run, by its thread, right after the step that makes a hooked value: `value` describes it, `data`
 * is its output's memory, dense, of value->bytes per image when batched. A non-zero result stops the run at that step
 * with KILN_ERROR_CALLBACK; outputs that later steps make are then not written. */
typedef int (*kiln_callback)(void *callback_context, const kiln_port *value, int64_t batch, const void *data);
/* Sets the function that kiln_run calls with every hooked value, including statistics and gradients; NULL: none. The
 * run then takes the steps one at a time, with the same results. */
KILN_API kiln_status kiln_context_set_callback(kiln_context *context, kiln_callback callback, void *callback_context,
                                               kiln_error *error);
/* Walks the steps one at a time and calls `observe` after each: for timing, tracing and checking. `step` indexes
 * program->run_steps; `data` is the address of the step's output (see kiln_view). A non-zero result stops the run
 * with KILN_ERROR_CALLBACK. */
typedef int (*kiln_observer)(void *observer_context, uint32_t step, const void *data, int64_t nanoseconds);
KILN_API kiln_status kiln_run_steps(kiln_context *context, int64_t batch, const void *const *inputs,
                                    void *const *outputs, kiln_observer observe, void *observer_context,
                                    kiln_error *error);

/* --- training ----------------------------------------------------------------------------------------- */

/* A training step is one compiled program: forward pass, loss, backward pass and update of the parameters, which it
 * changes in place in a kiln_state.
 *
 *   kiln_train_options train = {.optimizer = KILN_OPTIMIZER_ADAM};
 *   if (kiln_compile_training(model, &train, NULL, &step, &error) ||
 *       kiln_context_create(step, NULL, &context, &error) || kiln_state_create(step, model, &state, &error)) …
 *   for (…) {  inputs: the model's, then target, hyper and, with dropout, rng; outputs: loss, …
 *     kiln_train_step(context, state, batch, inputs, outputs, &error);
 *   }
 *   kiln_state_store(state, model, &error);          the trained values are the model's
 *   kiln_executable_prepare(inference, model, &error);  … and those of a program compiled earlier
 *
 * Inputs of the program, in table order: the model's; "target": the classes, i64 [N], for cross_entropy, else f32 of
 * the output's shape; "hyper": f32 [groups][KILN_HYPER_COUNT], a row of numbers per group of layers, in the
 * description's order (one row without groups); and, when the model has dropout, "rng": i64 [2], seed and step. The
 * same seed and step drop the same elements. Outputs: "loss", f32 scalar, of this batch before the update; with `clip`
 * also "grad_norm", the global norm of the gradients before clipping; then the hooks'. Gradient hooks give gradients
 * of the loss. When the loss is not finite the step changes nothing; with `clip` an infinite norm leaves the parameters
 * as they are too.
 *
 * Batch norms that are trained use the mean and biased variance of the batch and update the running ones with the
 * unbiased variance, as in PyTorch. A channel of a single value (one image of one pixel), which PyTorch refuses, has
 * variance 0: its result is the bias, and what stands before it gets no gradient, but for rounding. */

typedef enum kiln_loss {
  KILN_LOSS_DESCRIBED = 0, /* the description's `train` section; cross_entropy without one */
  KILN_LOSS_CROSS_ENTROPY = 1,
  KILN_LOSS_MSE = 2,
  KILN_LOSS_BCE_WITH_LOGITS = 3
} kiln_loss;

typedef enum kiln_optimizer {
  KILN_OPTIMIZER_SGD = 0, /* as torch.optim.SGD: momentum, coupled decay, no dampening */
  KILN_OPTIMIZER_ADAM = 1 /* with decoupled decay, as torch.optim.AdamW (arXiv 1711.05101) */
} kiln_optimizer;

/* A zeroed struct means: the described loss of the first output, SGD, no clipping. */
typedef struct kiln_train_options {
  kiln_loss loss;
  kiln_optimizer optimizer;
  const char *output;  /* value that the loss is taken of; NULL: the first output */
  uint32_t nesterov;   /* SGD: Nesterov's momentum */
  uint32_t clip;       /* compute the global norm, and clip by it */
  uint32_t accumulate; /* keep a sum of gradients over several steps */
  uint32_t reserved;
  int64_t memory_limit; /* bytes of workspace: cheap values are computed again in the backward pass rather than kept
                           when it would be exceeded; 0: none */
} kiln_train_options;

/* Freezes a group of the description, or trains it again: its convolutions and linear layers, and with
 * `batch_norm` its batch norms too, which then use their running statistics. Counts for what is compiled afterwards. */
KILN_API kiln_status kiln_model_set_frozen(kiln_model *model, const char *group, uint32_t frozen, uint32_t batch_norm,
                                           kiln_error *error);
/* Copies a parameter's value: f32 of exactly its shape. KILN_ERROR_WEIGHTS when it has none. */
KILN_API kiln_status kiln_model_get_parameter(const kiln_model *model, const char *name, float *out_data,
                                              kiln_error *error);
/* Writes all parameters that have values to a safetensors file, atomically. */
KILN_API kiln_status kiln_model_save_weights(const kiln_model *model, const char *path, kiln_error *error);

/* Compiles a training step of the model: what is not frozen is trained. Parameters of frozen layers must have values
 * and are kept in the executable. Options may be NULL. The executable's program is run by kiln_train_step only. */
KILN_API kiln_status kiln_compile_training(const kiln_model *model, const kiln_train_options *train,
                                           const kiln_compile_options *options, kiln_executable **out_executable,
                                           kiln_error *error);
/* The same to a shared library and its header, whose weights (frozen layers only) are handled as those of
 * kiln_compile_library. */
KILN_API kiln_status kiln_compile_training_library(const kiln_model *model, const kiln_train_options *train,
                                                   const kiln_compile_options *options, const char *path,
                                                   kiln_error *error);

/* What a training step changes: trained parameters, moments of the optimiser, running statistics. Used by one thread
 * at a time. */
typedef struct kiln_state kiln_state;

/* Takes the values of the model's parameters; the moments are 0. The executable must outlive the state. `model` NULL:
 * all is 0. */
KILN_API kiln_status kiln_state_create(const kiln_executable *executable, const kiln_model *model,
                                       kiln_state **out_state, kiln_error *error);
KILN_API void kiln_state_destroy(kiln_state *state);
/* Copies the model's values in again; the moments stay. */
KILN_API kiln_status kiln_state_load(kiln_state *state, const kiln_model *model, kiln_error *error);
/* Copies the trained parameters and running statistics to the model. */
KILN_API kiln_status kiln_state_store(const kiln_state *state, kiln_model *model, kiln_error *error);
/* Named tensors of the state, with PyTorch's names: trained parameters, then running statistics; after them, for
 * checkpoints, "momentum.NAME" (SGD), "moment1.NAME" and "moment2.NAME" (Adam), and "accumulated.NAME". `out_data` is
 * the tensor's place in the state, dense: read or write it between steps (on a GPU: before
 * the next one; ask again after it). KILN_ERROR_ARGUMENT when out of range. */
KILN_API size_t kiln_state_tensor_count(const kiln_state *state);
KILN_API kiln_status kiln_state_tensor(const kiln_state *state, size_t index, kiln_port *out_port, float **out_data);

/* One step over a batch of 1 … max_batch. Allocates nothing. */
KILN_API kiln_status kiln_train_step(kiln_context *context, kiln_state *state, int64_t batch,
                                     const void *const *inputs, void *const *outputs, kiln_error *error);

/* Prepares the weights of an executable that kiln_compile made again, from the model's present values: the model must
 * have the same parameters. No context of the executable may be running. */
KILN_API kiln_status kiln_executable_prepare(kiln_executable *executable, const kiln_model *model, kiln_error *error);

#ifdef __cplusplus
}
#endif
#endif
