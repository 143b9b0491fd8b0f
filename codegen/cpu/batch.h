/* Kernels of batch-blocked values (LAYOUT_BATCH_BLOCK): b images lie side by side, so that a vector is one element of b
 * images, whatever the number of channels. Weights stay plain; a kernel reads them number by number.
 *
 * Lanes behind the last image repeat that image. Kernels compute them like the others; sums over the batch mask them.
 * Work is counted in images, as everywhere, but done in blocks: see batch_map_items. */
#ifndef KILN_CODEGEN_CPU_BATCH_H
#define KILN_CODEGEN_CPU_BATCH_H

#include "conv.h"
#include "emit.h"

/* The block size b when an operand is batch-blocked, else 0. */
int32_t batch_block(const PlanKernel *kernel);
/* Emits such a kernel; the counterpart of the table of cpu_X. */
bool batch_emit(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);

/* Blocks of images: ceil(batch / b). */
Value batch_blocks(Emit *emit, int32_t block);
/* Items [begin, end) of a kernel with m items an image become units of one with m units a block, in emit->begin and
 * emit->end: unit u belongs to block u / m. Any partition of the items gives a partition of the units. */
void batch_map_items(Emit *emit, int32_t block);
/* <b x i1>: which lanes of block number `at` are images. */
Value batch_mask(Emit *emit, int32_t block, Value at);
/* `value` where the mask holds, else zeros. */
Value batch_keep(Emit *emit, Value mask, Value value, int32_t lanes);

/* `count` cut into `tiles` pieces of at most `limit`, sizes differing by at most one: the first `wide` pieces have
 * narrow + 1. */
typedef struct Split {
  int64_t tiles, narrow, wide;
} Split;

Split split_even(int64_t count, int64_t limit);
/* Where piece number `at` begins. */
Value split_start(Emit *emit, const Split *split, Value at);

/* Registers that a tile may use for sums and operands. */
int64_t batch_registers(const Emit *emit);
/* The same value; loads that are emitted later stay behind its computation in the code. Without it LLVM gathers the
 * loads of a whole block at its begin, keeps what the registers cannot hold on the stack, and doubles the time of a
 * tile. No instruction comes of this. */
Value batch_in_order(Emit *emit, Value value);
/* Adds the lanes of each of `count` ≤ lanes vectors, which change: lane i of the result is the sum of vector i. */
Value batch_sum_lanes(Emit *emit, Value *vectors, int32_t count, int32_t lanes);

/* --- moments of planes ------------------------------------------------------------------------------- */
/* A kernel that makes batch-blocked planes row by row leaves their plane_moments besides, if they are asked for. Some
 * channels' sums are taken at a time, in the thread's scratch memory. */
typedef struct PlaneMoments {
  Emit *emit;
  const PlanTensor *tensor; /* NULL: they are not asked for */
  Value base, memory;
  int32_t lanes;
  int64_t parts, rows, height, width; /* rows of each part but the last one */
} PlaneMoments;

/* `*scratch_bytes`: what the kernel itself uses; room for `channels` at a time is added. */
PlaneMoments moments_open(Emit *emit, int64_t channels, int64_t *scratch_bytes);
/* Rows [begin, end) of a part. */
void moments_rows(const PlaneMoments *moments, Value part, Value *out_begin, Value *out_end);
/* Elements of `channels` adjacent channels × `columns`, channel by channel. They are the first ones of their part when
 * `starts`, an i1, holds; NULL: they are not. */
void moments_take(const PlaneMoments *moments, const Value *elements, int64_t channels, int64_t columns, Value starts);
/* The part of the channels that begin with `channel` is done. */
void moments_store(const PlaneMoments *moments, int64_t channels, Value block, Value channel, Value part);
/* Σ(x − shift) and Σ(x − shift)² over all images, doubles, from the moments of x, which are input `input`. */
void moments_add_up(Emit *emit, const PlanTensor *x, int32_t input, Value channel, Value *out_shift, Value *out_sums);

/* --- kernels ----------------------------------------------------------------------------------------- */
typedef bool BatchKernel(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
BatchKernel batch_conv2d, batch_conv_transpose2d, batch_conv2d_grad_weight;
BatchKernel batch_linear, batch_matmul, batch_linear_grad_weight;
BatchKernel batch_batch_norm, batch_batch_stats, batch_batch_norm_grad_input, batch_batch_norm_grad_weight, batch_sum;
BatchKernel batch_convert, batch_reshape;

#endif
