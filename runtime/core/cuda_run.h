/* Runs compiled CUDA programs. Stands on the driver alone: the same code is part of libraries that `kiln compile`
 * makes.
 *
 * A CudaProgram is a program on a device: its modules and its weights. It is immutable once its weights are there, and
 * any number of threads may use it, each with a CudaContext of its own, which holds the workspace, a stream and the
 * CUDA graphs. Memory of the host comes from the allocator, in 64-byte alignment. */
#ifndef KILN_RUNTIME_CORE_CUDA_RUN_H
#define KILN_RUNTIME_CORE_CUDA_RUN_H

#include "base/arena.h"
#include "cuda_driver.h"
#include "kiln_abi.h"
#include "runner.h"

/* --- what a code generator hands over ------------------------------------------------------------------ */

typedef struct CudaImage {
  const void *data; /* machine code, or PTX with its terminating zero */
  size_t size;
  const void *ptx; /* for GPUs that cannot run `data`; or NULL */
} CudaImage;

/* A kernel launch: see CudaLaunch in codegen/cuda/cuda.h. */
typedef struct CudaRunLaunch {
  uint32_t image; /* whose function it is */
  int32_t threads, shared_bytes, grid_y, grid_z;
  uint32_t reserved;
  const char *function;
  int64_t work, work_per_image, work_per_block;
} CudaRunLaunch;

typedef struct CudaStepLaunches {
  const CudaRunLaunch *items;
  uint64_t count;
} CudaStepLaunches;

/* A program as data. The steps of `program` have no kernels of their own: `launches` holds those of the prepare steps
 * and after them those of the run steps. Everything outlives what is made of it. */
typedef struct CudaTables {
  const kiln_program *program;
  const CudaImage *images;
  const CudaStepLaunches *launches;
  uint32_t image_count;
  int32_t arch;          /* of the images: 10 * major + minor */
  int64_t counter_bytes; /* the scratch's beginning, zero before and after each kernel */
  int64_t scratch_bytes; /* all of the scratch, for the largest batch; 0: no kernel needs any */
} CudaTables;

/* --- devices ------------------------------------------------------------------------------------------- */

typedef struct CudaDeviceInfo {
  char name[128];
  int32_t arch, multiprocessors; /* arch: 10 * major + minor */
  int64_t shared_bytes;          /* most dynamic shared memory of a block */
  int64_t l2_bytes, memory_bytes;
} CudaDeviceInfo;

/* The number of devices; a negative number and a message when there is no driver or no GPU. */
int32_t cuda_device_count(CudaMessage *out_message);
kiln_status cuda_device_info(int32_t device, CudaDeviceInfo *out_info, CudaMessage *out_message);

/* --- programs ------------------------------------------------------------------------------------------ */

typedef struct CudaProgram CudaProgram;
typedef struct CudaContext CudaContext;

/* Loads the code onto a device. `allocator` may be NULL. Its weights have to be given before it runs. */
kiln_status cuda_program_create(const CudaTables *tables, int32_t device, const Allocator *allocator,
                                CudaProgram **out_program, CudaMessage *out_message);
/* NULL is allowed. All contexts are gone. */
void cuda_program_destroy(CudaProgram *program);
/* Copies parameters (host memory, table order; NULL for those that no step reads) to the device and runs the prepare
 * steps there. May be called again with other values while no context runs. */
kiln_status cuda_program_prepare(CudaProgram *program, const void *const *parameters, CudaMessage *out_message);

/* --- running ------------------------------------------------------------------------------------------- */

/* `max_batch` is at most the program's. */
kiln_status cuda_context_create(CudaProgram *program, int64_t max_batch, CudaContext **out_context,
                                CudaMessage *out_message);
void cuda_context_destroy(CudaContext *context);
/* Bytes of device memory that the context has taken. */
int64_t cuda_context_bytes(const CudaContext *context);

/* Runs a batch of 1 … max_batch and waits for it. Inputs and outputs are in table order, each in memory of the host or
 * of the device (used in place when aligned to KILN_ALIGNMENT). After the context's first run, the first of a batch
 * size, or with other device addresses, records a CUDA graph; the last few are kept. */
kiln_status cuda_context_run(CudaContext *context, int64_t batch, const void *const *inputs, void *const *outputs,
                             CudaMessage *out_message);
/* The same one step at a time. `observe` gets the step's output in memory of the host and the time that its kernels
 * took on the device; an output of the program that the step writes is in the caller's memory by then. */
kiln_status cuda_context_run_steps(CudaContext *context, int64_t batch, const void *const *inputs, void *const *outputs,
                                   StepObserver observe, void *observer_context, CudaMessage *out_message);
/* Parameters that run steps change (training): addresses by parameter, NULL for others; table order. In memory of the
 * device, aligned to KILN_ALIGNMENT, they are used in place; others are copied to the device by this call and back by
 * cuda_context_fetch_state. */
kiln_status cuda_context_set_state(CudaContext *context, void *const *states, CudaMessage *out_message);
kiln_status cuda_context_fetch_state(CudaContext *context, CudaMessage *out_message);
/* Runs the graph `repeats` times after the inputs were copied, without copying between: milliseconds on the device per
 * run, by events, into out_times[repeats]. */
kiln_status cuda_context_time(CudaContext *context, int64_t batch, const void *const *inputs, void *const *outputs,
                              uint32_t repeats, float *out_times, CudaMessage *out_message);
/* Runs all steps once, and each of them `repeats` times more in a row: milliseconds per run by step. Values that steps
 * change in place are meaningless afterwards. */
kiln_status cuda_context_time_steps(CudaContext *context, int64_t batch, const void *const *inputs,
                                    void *const *outputs, uint32_t repeats, float *out_times, CudaMessage *out_message);

#endif
