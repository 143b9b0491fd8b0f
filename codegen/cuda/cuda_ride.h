/* Reductions that ride in the kernel of their input (PlanKernel.reductions): what a block makes goes by while it is in
 * registers, and leaves a row of partial results.
 *
 *   cuda_ride_begin             by all threads of a block, before it makes values; a barrier has to follow
 *     cuda_ride_take              values of this thread
 *   cuda_ride_end               by all threads of the block
 *
 * Blocks come in runs, as many as the reduction has rows or fewer; the block of a run that happens to be the last adds
 * up the run's rows in their order, so that nothing depends on the order of blocks. Rows that no run is for are zeros.
 * Without reductions nothing comes of these functions. */
#ifndef KILN_CODEGEN_CUDA_CUDA_RIDE_H
#define KILN_CODEGEN_CUDA_CUDA_RIDE_H

#include "cuda_emit.h"

/* The last of a kernel's counters are for runs; those before are the kernel's own. */
enum { RIDE_COUNTERS = 4096, RIDE_FIRST_COUNTER = CUDA_COUNTERS - RIDE_COUNTERS };

/* Shared memory, a multiple of 8. */
int64_t cuda_ride_shared_bytes(const PlanKernel *kernel, int32_t threads);
/* `memory`: an expression of its address, aligned to 8. */
void cuda_ride_begin(CudaEmit *emit, const PlanKernel *kernel, int32_t threads, const char *memory);
/* `name`: of an array of as many floats as `lanes`, or of a float for 1, as the epilogue made them; they become what is
 * read of the output. */
void cuda_ride_take(CudaEmit *emit, const PlanKernel *kernel, int depth, const char *name, int32_t lanes);
/* Expressions of the block's number and of how many there are, and the most that there may be: in all, or of an image.
 */
typedef struct RideBlocks {
  const char *block, *count;
  int64_t most, most_per_image;
} RideBlocks;

void cuda_ride_end(CudaEmit *emit, const PlanKernel *kernel, int32_t threads, const RideBlocks *blocks);

#endif
