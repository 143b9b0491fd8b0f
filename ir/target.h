/* What passes may know of the machine that a program is compiled for. Filled by code generators. */
#ifndef KILN_IR_TARGET_H
#define KILN_IR_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "types.h"

typedef struct Target {
  const char *triple; /* "x86_64-pc-linux-gnu" */
  const char *isa;    /* "x86-64-v4", "aarch64": the instructions that the code may use */
  const char *tune;   /* scheduling model, e.g. "znver5"; "generic" for reproducible output */
  int32_t vector_lanes;     /* f32 lanes of the widest vector: 16, 8 or 4 */
  int32_t vector_registers; /* how many of them: 32 or 16 */
  bool fma;                 /* has fused multiply-add */
  bool broadcast_operand;   /* a multiply-add can broadcast a scalar from memory (AVX-512) */
  bool tiles;               /* has tile registers of bf16 products (AMX) that programs may use */
  bool hosts_reductions;    /* kernels can compute reductions of their output besides: see passes/reductions.c */
  int64_t l1_bytes, l2_bytes; /* per core; l2 of a GPU: of the device */
  /* In which order images lie that kernels prefer: LAYOUT_CHANNEL_LAST, or vectors of channels in blocks (any other).
   * With the former, kernels test bounds themselves (values get no halo), and filters are LAYOUT_FILTER_LAST. */
  LayoutKind image_layout;
  MathMode math;           /* of convolutions and matrix products */
  /* How images with channels last are kept between kernels: DTYPE_F32 as they are, or rounded to DTYPE_BF16 or
   * DTYPE_F16, which kernels of the ops in packs[OP_COUNT] read and write. A convolution multiplies what is kept so. */
  DataType image_element;
  const bool *packs;
  /* GPUs; 0 otherwise */
  const char *device;      /* "NVIDIA H200", or NULL */
  int32_t arch;            /* compute capability: 10 * major + minor */
  int32_t multiprocessors;
  int64_t shared_bytes;    /* most shared memory of a block */
  int32_t product_tiles[MATH_COUNT]; /* tiles that matrix products may ask for by number, from 1 */
} Target;

#endif
