/* kiln_abi.h: the contract between a compiled Kiln program and whoever runs it.
 *
 * This header stands alone: a host that loads a compiled library needs it (the generated NAME.h includes what
 * it needs of it) and nothing else of Kiln. Version 1. Structs only ever grow at the end, and every table says
 * how large its elements are.
 *
 * A program is data plus code: a table of steps, each a kernel over a number of independent work items, and the
 * places of their operands. NAME_run() walks the table, or walks it for some images at a time (kiln_program.chunk); a
 * tool that wants to time, trace or check single steps walks it itself with the same rules (see kiln_step).
 *
 * Threading: a kiln_program and a prepared-weights blob are read-only after preparation and may be used by any
 * number of threads at once, each with its own workspace. Nothing here allocates, locks or starts threads.
 * Results do not depend on how items are divided among threads. */
#ifndef KILN_ABI_H
#define KILN_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KILN_ABI_VERSION 1

/* Every size and address that the contract calls aligned is aligned to this many bytes. */
#define KILN_ALIGNMENT 64

/* Outcomes of every call, of compiled code and of the library alike. */
typedef enum kiln_status {
  KILN_OK = 0,
  KILN_ERROR_ARGUMENT = 1,    /* a NULL, misaligned or contradictory argument */
  KILN_ERROR_MEMORY = 2,      /* out of memory */
  KILN_ERROR_IO = 3,          /* a file could not be read or written */
  KILN_ERROR_INPUT = 4,       /* the user's file or tensor is wrong; there is a message */
  KILN_ERROR_CPU = 5,         /* this processor lacks instructions that the program was compiled for */
  KILN_ERROR_VERSION = 6,     /* made by an incompatible version of Kiln */
  KILN_ERROR_WEIGHTS = 7,     /* weights are missing, or prepared for another program */
  KILN_ERROR_BATCH = 8,       /* batch below 0 or above the program's maximum */
  KILN_ERROR_CALLBACK = 9,    /* a function of the host failed */
  KILN_ERROR_UNSUPPORTED = 10, /* not available in this build or on this machine */
  KILN_ERROR_INTERNAL = 11    /* a defect of Kiln */
} kiln_status;

/* --- parallel work ----------------------------------------------------------------------------------- */

/* Runs items [begin, end) of a job. `thread` numbers the worker from 0 and selects its scratch memory: no two
 * calls that run at the same time may have the same number. */
typedef void (*kiln_task)(void *context, uint32_t thread, int64_t begin, int64_t end);

/* Supplied by the host: calls task(context, thread, begin, end) so that every item of [0, count) is covered
 * exactly once, with thread < the `threads` given in kiln_io, and returns when all are done: 0, or any other
 * value to stop the program with KILN_ERROR_CALLBACK. Chunks may be of any size and in any order. */
typedef int (*kiln_parallel_for)(void *pool, kiln_task task, void *context, int64_t count);

/* --- kernels ----------------------------------------------------------------------------------------- */

/* What a kernel gets: the addresses of its operands in the order of the step's operand table (the output first,
 * then the inputs, then what it writes besides: partial results of reductions of the output), the run's batch, and
 * scratch memory. */
typedef struct kiln_call {
  void *const *operands;
  int64_t batch;
  void *scratch;          /* of thread 0; NULL when the step needs none */
  int64_t scratch_stride; /* bytes from one thread's scratch to the next one's */
} kiln_call;

/* Computes items [begin, end). Items are independent of each other. */
typedef void (*kiln_kernel)(const kiln_call *call, uint32_t thread, int64_t begin, int64_t end);

/* Where an operand lies. Its address is base(space, index) + offset + batch * offset_per_batch. */
typedef enum kiln_space {
  KILN_SPACE_WORKSPACE = 0, /* base: the caller's workspace */
  KILN_SPACE_PREPARED = 1,  /* base: the prepared-weights blob */
  KILN_SPACE_SCRATCH = 2,   /* base: the prepare phase's temporary memory */
  KILN_SPACE_PARAMETER = 3, /* base: parameter `index` as the caller gave it (prepare phase, or never folded) */
  KILN_SPACE_INPUT = 4,     /* base: input `index` */
  KILN_SPACE_OUTPUT = 5     /* base: output `index`; hook stores are outputs after the model's own */
} kiln_space;

typedef struct kiln_operand {
  uint32_t space; /* kiln_space */
  uint32_t index;
  int64_t offset;
  int64_t offset_per_batch;
} kiln_operand;

/* Element types. Ports are of the first two; values inside programs for GPUs may be of the others. */
typedef enum kiln_dtype { KILN_F32 = 0, KILN_I64 = 1, KILN_BF16 = 2, KILN_F16 = 3 } kiln_dtype;

enum { KILN_MAX_RANK = 6 };

/* The value that a step produces, for tools: logical element (i0, i1, …) of image n lies at
 *   operand 0 + element size * (origin + Σ index[d] * stride[d] + lane)
 * where for block > 1 dimension `block_dim` is split: index[d] = i / block, lane = i % block.
 * Rank 0 also stands for a value of which no element is in memory as such (Winograd's transformed tiles). */
typedef struct kiln_view {
  uint32_t dtype; /* kiln_dtype */
  uint32_t rank;
  int64_t dims[KILN_MAX_RANK]; /* -1: the batch */
  int64_t stride[KILN_MAX_RANK];
  int64_t origin;
  int64_t block; /* 1: not blocked */
  uint32_t block_dim;
  uint32_t reserved;
} kiln_view;

/* One kernel launch. Items: items + batch * items_per_batch. */
typedef struct kiln_step {
  kiln_kernel kernel;
  const char *name; /* of the value that it makes: layer1.0.conv1 */
  const char *kind; /* op and algorithm: "conv2d/direct" */
  const kiln_operand *operands; /* the output, inputs, results of reductions of the output */
  uint32_t operand_count;       /* at most KILN_MAX_OPERANDS */
  /* Above 1: this step and the following ones, so many in all, read of each other's results the same images only. They
   * may be run for kiln_program.stretch_images images, then for the next ones: of s images from number n on, items
   * n * items_per_batch … (n + s) * items_per_batch − 1 of each step, in order. At most KILN_MAX_STRETCH. */
  uint32_t stretch;
  int64_t items, items_per_batch;
  int64_t scratch_bytes;  /* per thread, a multiple of KILN_ALIGNMENT */
  double flops, flops_per_batch;
  double bytes, bytes_per_batch; /* read and written, each operand once */
  kiln_view view;         /* of the output */
} kiln_step;

enum { KILN_MAX_OPERANDS = 16, KILN_MAX_STRETCH = 8 };

/* --- the program ------------------------------------------------------------------------------------- */

/* What a program does with a port besides its kind. */
typedef enum kiln_role {
  KILN_ROLE_PLAIN = 0,
  KILN_ROLE_STATE = 1 /* a parameter that a training step changes: the caller's memory must be writable */
} kiln_role;

/* An input, output, parameter or hook. Dense, row-major. */
typedef struct kiln_port {
  const char *name;
  uint32_t dtype; /* kiln_dtype */
  uint32_t rank;
  int64_t dims[KILN_MAX_RANK]; /* -1: the batch */
  int64_t bytes;               /* of one image when batched, else of the whole */
  uint32_t batched;
  uint32_t role; /* kiln_role */
} kiln_port;

/* The head of every NAME_io struct; after it stand the pointers to the inputs, then the outputs (a NULL output
 * is not allowed), each in table order. Inputs and outputs need the alignment of their element only. */
typedef struct kiln_io {
  int64_t batch;                  /* 0 … max_batch; 0 does nothing */
  kiln_parallel_for parallel_for; /* NULL: one thread, the caller's */
  void *pool;                     /* handed to parallel_for */
  uint32_t threads;               /* upper bound of thread numbers; 0 means 1; at most max_threads */
  uint32_t reserved;
} kiln_io;

/* Prepared weights of one program; see NAME.h for how to get them. Filled by the functions below only. */
typedef struct kiln_weights {
  const struct kiln_program *program;
  const void *prepared;           /* the blob, aligned */
  const void *const *parameters;  /* parameters that run steps read directly, or NULL */
} kiln_weights;

/* A training step keeps the parameters that it trains in one parameter, "state", f32 [rows, P]: row 0 holds them, the
 * next ones the optimiser's moments (SGD: momentum; Adam: first and second), and with accumulated gradients the last one
 * these. A slot is a trained parameter's place in every row; rows are 0 between slots. */
typedef struct kiln_slot {
  const char *name; /* "layer1.0.conv1.weight" */
  uint32_t rank;
  uint32_t group; /* row of the input "hyper" */
  int64_t dims[KILN_MAX_RANK];
  int64_t offset;   /* elements from the row's begin */
  uint32_t decayed; /* weight decay applies */
  uint32_t reserved;
} kiln_slot;

/* Columns of the input `hyper` of a training step. Weight decay is for parameters of two or more dimensions only: biases and batch norms are not
 * decayed. A column that the optimiser does not use is not read. */
enum {
  KILN_HYPER_LEARNING_RATE = 0,
  KILN_HYPER_MOMENTUM = 1, /* SGD: momentum; Adam: beta1 */
  KILN_HYPER_BETA2 = 2,
  KILN_HYPER_EPS = 3,
  KILN_HYPER_WEIGHT_DECAY = 4,
  KILN_HYPER_CORRECTION1 = 5, /* 1 − beta1^t, t counting updates from 1 */
  KILN_HYPER_CORRECTION2 = 6, /* 1 − beta2^t */
  /* the three below are read from row 0 */
  KILN_HYPER_GRADIENT_SCALE = 7, /* factor of the gradients, before clipping: 1, or 1/k for k accumulated batches */
  KILN_HYPER_APPLY = 8,          /* accumulate: 0 adds the gradients only, 1 adds and updates. Else not read */
  KILN_HYPER_CLIP_NORM = 9,      /* clip: largest norm, as torch.nn.utils.clip_grad_norm_; 0: not clipped */
  KILN_HYPER_COUNT = 16
};

typedef struct kiln_program {
  uint32_t abi_version; /* KILN_ABI_VERSION of the maker */
  uint32_t struct_size; /* sizeof(kiln_program) of the maker */
  const char *name;
  const char *kiln_version;
  const char *isa;    /* "x86-64-v3", "aarch64": instructions needed */
  const char *triple; /* LLVM target triple */
  uint64_t identity;  /* of the plan: prepared weights carry it */

  const kiln_port *inputs, *outputs, *parameters, *hooks;
  uint32_t input_count, output_count, parameter_count, hook_count;
  const kiln_step *prepare_steps, *run_steps;
  uint32_t prepare_step_count, run_step_count;

  int64_t max_batch;
  uint32_t max_threads; /* upper bound of kiln_io.threads that the workspace is sized for */
  uint32_t reserved;
  /* Workspace for batch B: workspace_fixed + B * workspace_per_batch + threads * scratch_bytes. */
  int64_t workspace_fixed, workspace_per_batch, scratch_bytes;
  int64_t prepared_bytes; /* size of the prepared blob */
  int64_t prepare_scratch; /* temporary memory of the prepare phase */

  /* KILN_OK, or KILN_ERROR_CPU when this processor cannot run the program. Compiled for the baseline. */
  int (*check)(void);
  /* Embedded prepared weights, or NULL. Programs for GPUs (triple nvptx64…): what their launcher needs; their steps have
   * no kernels, `prepare` answers KILN_ERROR_UNSUPPORTED, and weights come from the functions of NAME.h. */
  const void *embedded;
  /* Parameters → blob. `parameters` in table order, `prepared` of prepared_bytes and `scratch` of prepare_scratch
   * bytes plus threads * scratch_bytes, both aligned. `io` gives the threads (its batch is ignored) or is NULL. */
  int (*prepare)(const void *const *parameters, void *prepared, void *scratch, const kiln_io *io);
  int (*run)(const kiln_weights *weights, void *workspace, const kiln_io *io);
  /* What tools want to know besides, as JSON: {"inputs": {NAME: {"mean": […], "std": […], "resize": n}},
   * "labels": […]}; how a picture becomes an input, and what classes are called. */
  const char *metadata;
  /* Of a training step, else NULL and 0. */
  const kiln_slot *slots;
  uint32_t slot_count;
  uint32_t group_count; /* rows of "hyper" */
  /* Not 0: every step computes every image by itself, and NAME_run may take up to this many images at a time through
   * all steps, each thread its own, in its own part of the workspace, without waiting for the others in between. It does
   * so with larger batches that divide evenly. Results are those of walking the steps, to the bit. */
  uint32_t chunk;
  /* Images that kernels compute together: values of the workspace have room for batch + batch_unit − 1 images, which
   * workspace_fixed and the offsets include. At least 1. */
  uint32_t batch_unit;
  /* Images that NAME_run takes through a stretch of steps at a time, each thread its own, when they divide the batch. So
   * values stay in the cache between steps of a training step, whose sums over the batch do not allow chunks. 0: there
   * are no stretches. Results are those of walking the steps, to the bit. */
  uint32_t stretch_images;
  uint32_t reserved2;
} kiln_program;

/* A weights file (mode `file`): this head, then prepared_bytes bytes. Little-endian. */
typedef struct kiln_weights_head {
  char magic[8]; /* "KILNWTS1" */
  uint64_t identity;
  int64_t prepared_bytes;
  uint64_t checksum; /* FNV-1a 64 of the blob */
  uint8_t reserved[32];
} kiln_weights_head;

#ifdef __cplusplus
}
#endif
#endif
