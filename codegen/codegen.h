/* Code generators: plan in, machine code out. */
#ifndef KILN_CODEGEN_CODEGEN_H
#define KILN_CODEGEN_CODEGEN_H

#include "plan.h"

/* --- targets ----------------------------------------------------------------------------------------- */
/* Fills `out_target` for `isa`: "native" (the best level that this machine has), "x86-64-v2", "-v3", "-v4",
 * "aarch64" (or NULL: native, or the triple's baseline), and `triple` (NULL: this machine). Unknown names are
 * reported with the list of known ones. */
bool cpu_target(const char *isa, const char *triple, Arena *arena, Diag *diag, Target *out_target);
/* Whether this machine can run it. */
bool cpu_target_runnable(const Target *target);

/* --- compiling --------------------------------------------------------------------------------------- */
typedef struct Code {
  void *data;
  size_t size;
} Code;

enum { CPU_DEFAULT_MAX_THREADS = 64 };

typedef struct CpuOptions {
  int32_t threads;      /* compile kernels on this many threads; 0: as many as there are processors, at most 8 */
  uint32_t max_threads; /* kiln_program.max_threads; 0: CPU_DEFAULT_MAX_THREADS */
  bool embed;           /* the program refers to the symbol NAME_embedded_weights */
  bool in_process;      /* for jit_load: entry points are compiled quickly, and are not as quick themselves */
  const char *cache_dir; /* folder that keeps objects from run to run, see codegen/cpu/object_cache.h; NULL: none */
} CpuOptions;

/* Relocatable objects of a program: one per distinct kernel, and one with the tables and the entry points
 * NAME_describe, NAME_run, NAME_prepare, …. All symbols are prefixed by the plan's symbol name. Same plan, same
 * bytes. */
typedef struct CpuObjects {
  Code *objects;
  size_t count;
  const char *symbol; /* the prefix: the model's name made into a C identifier */
  int64_t scratch_bytes; /* kiln_program.scratch_bytes */
} CpuObjects;

/* How many threads `threads` stands for in CpuOptions. */
int32_t cpu_threads(int32_t threads);
bool cpu_compile(const Plan *plan, const CpuOptions *options, Arena *arena, Diag *diag, CpuObjects *out_objects);
/* The same as text: LLVM IR or assembly of all modules, one after the other. */
bool cpu_print(const Plan *plan, const CpuOptions *options, bool assembly, Arena *arena, Diag *diag, Text *out_text);

/* A C identifier from a model name: letters, digits and '_'; a leading digit gets '_' before it. */
const char *symbol_from_name(const char *name, Arena *arena);

/* --- GPUs -------------------------------------------------------------------------------------------- */
/* How the CUDA generator computes a convolution, one of its gradients or a matrix product. */
typedef struct CudaProduct {
  MathMode math;                  /* MATH_FP32 where the device has no other */
  int32_t tile_m, tile_n, tile_k; /* of a block; k: between two barriers. tile_m 0: no tiles, a thread for a result */
  int32_t stages;                 /* of shared memory */
  int32_t splits;                 /* blocks that share the sum of a tile */
  int32_t threads;                /* of a block */
  int64_t blocks;                 /* at the largest batch */
} CudaProduct;

typedef struct CudaProductOf {
  uint32_t kernel;      /* index in the plan; a kernel may have several */
  const char *function; /* of the text; NULL without tiles */
  CudaProduct product;
} CudaProductOf;

/* What the generator chose for a plan for a GPU, in the order of the kernels. False after a report. */
bool cuda_products(const Plan *plan, Arena *arena, Diag *diag, CudaProductOf **out_products, size_t *out_count);

/* --- ahead of time ----------------------------------------------------------------------------------- */
/* A relocatable ELF object with one read-only hidden symbol (NAME_embedded_weights), aligned to 64. */
bool elf_blob(const Target *target, const char *symbol, const void *data, size_t size, Arena *arena, Diag *diag, Code *out_object);
/* Links objects into a shared library (or, with `relocatable`, into one object) through the system's linker, started
 * with an argument vector in a private folder, and writes it to `path` atomically. */
bool link_objects(const Target *target, const Code *objects, size_t count, const char *soname, bool relocatable,
                  const char *path, Arena *arena, Diag *diag);
/* The same for objects that call the C library, which every process that loads the library has. */
bool link_host_objects(const Target *target, const Code *objects, size_t count, const char *soname, const char *path,
                       Arena *arena, Diag *diag);
/* The text of NAME.h: stands alone together with kiln_abi.h's contents, which are included in it. */
typedef enum WeightsMode { WEIGHTS_EMBED, WEIGHTS_FILE, WEIGHTS_CALLER } WeightsMode;
void header_print(Text *text, const Plan *plan, const CpuObjects *objects, WeightsMode mode, uint32_t max_threads);

/* LLVM IR text to an object for the baseline processor of `target`. */
bool ir_object(const char *text, const Target *target, Arena *arena, Diag *diag, Code *out_object);

/* --- just in time ------------------------------------------------------------------------------------ */
/* Loads objects into this process. The result's lifetime is that of `arena`. *out_program is what NAME_describe()
 * returns. */
struct kiln_program;
bool jit_load(const CpuObjects *objects, Arena *arena, Diag *diag, const struct kiln_program **out_program);

#endif
