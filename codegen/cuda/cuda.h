/* The CUDA code generator: plan in, CUDA C text and lists of launches out; compiling the text is nvrtc.h's.
 *
 * The text is in the common subset of C11 and C++17 over the names of prelude_device.h, so that it also compiles for a
 * CPU with tests/cuda_emulator/prelude_host.h. It depends on the plan's kernel and target alone: same plan, same text.
 */
#ifndef KILN_CODEGEN_CUDA_CUDA_H
#define KILN_CODEGEN_CUDA_CUDA_H

#include "codegen.h"
#include "plan.h"

/* --- targets ----------------------------------------------------------------------------------------- */
/* What is known of a device; all but `arch` may be 0. */
typedef struct CudaDevice {
  const char *name; /* "NVIDIA H200"; NULL: no device in particular */
  int32_t arch;     /* compute capability: 10 * major + minor */
  int32_t multiprocessors;
  int64_t shared_bytes; /* most dynamic shared memory of a block */
  int64_t l2_bytes;
} CudaDevice;

/* Fills `out_target` for "sm_80", "sm_90", "sm_90a", … or NULL: that of `device`. Names, numbers and layouts are those
 * of a typical device of the architecture where `device` is NULL or leaves them 0. The least is sm_70. */
bool cuda_target(const char *arch, const CudaDevice *device, MathMode math, Arena *arena, Diag *diag,
                 Target *out_target);

/* --- text -------------------------------------------------------------------------------------------- */
/* Every kernel function has the parameters
 *     (T *out, const T0 *in0, …, const Tk *ink, float *reduction0, …, void *scratch, int batch)
 * with pointers to the starts of the buffers in the order of the plan kernel's operands (origins not added), each
 * aligned to at least 64 bytes, or as far as its storage.delta allows. All launches of a kernel get the same arguments,
 * in order, one after the other.
 *
 * `scratch` is device memory that all kernels of a program share, one at a time. It begins with CUDA_COUNTERS u32 that
 * are 0 when a kernel begins and must be 0 when it ends (tickets, "which block is the last"); the bytes that a CudaCode
 * asks for follow, undefined. It is never NULL when a kernel has asked for scratch or set `counters`. */
enum { CUDA_COUNTERS = 16384, CUDA_COUNTER_BYTES = CUDA_COUNTERS * 4, CUDA_MAX_OPERANDS = 16 };

typedef struct CudaLaunch {
  const char *function; /* "k_max_pool2d", unique in its text */
  int32_t threads;      /* of a block: a multiple of 32, at most 1024; blocks are one-dimensional */
  int32_t shared_bytes; /* dynamic shared memory, 0 … 227 KiB; static memory (at most 48 KiB) is not in it */
  /* grid x = ceil((work + batch * work_per_image) / work_per_block); a launch with grid x = 0 is left out */
  int64_t work, work_per_image, work_per_block;
  int32_t grid_y, grid_z;     /* at least 1 */
  const CudaProduct *product; /* of tiles of a matrix product: what was chosen; else NULL */
} CudaLaunch;

/* What one plan kernel (and those that share its code) became. */
typedef struct CudaCode {
  uint32_t kernel;  /* index of the first kernel of the plan with this code */
  const char *name; /* "k12_conv2d", for file names, dumps and messages; unique in the program */
  const char *text; /* begins with #include "kiln_prelude.h" */
  CudaLaunch *launches;
  size_t launch_count;                /* 0 for a kernel of an empty value */
  int64_t scratch, scratch_per_image; /* bytes beside the counters: scratch + batch * scratch_per_image */
  bool counters;
} CudaCode;

typedef struct CudaProgramText {
  CudaCode *codes;
  size_t code_count;
  uint32_t *code_of; /* by kernel of the plan: index into codes */
} CudaProgramText;

/* Headers that the text includes, for nvrtcCreateProgram; the emulator's NVRTC puts its own in the place of
 * "kiln_prelude.h". */
typedef struct CudaHeader {
  const char *name, *text;
} CudaHeader;
enum { CUDA_HEADER_COUNT = 2 };
extern const CudaHeader cuda_headers[CUDA_HEADER_COUNT];

/* The text and launches of every distinct kernel. False after a report. */
bool cuda_generate(const Plan *plan, Arena *arena, Diag *diag, CudaProgramText *out_program);
/* All of it as one readable text, for --emit=cuda. */
void cuda_print(Text *text, const Plan *plan, const CudaProgramText *program);

#endif
