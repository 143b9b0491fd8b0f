/* What the convolution kernels share. */
#ifndef KILN_CODEGEN_CPU_CONV_H
#define KILN_CODEGEN_CPU_CONV_H

#include "emit.h"

/* The numbers of a convolution or transposed convolution, by name. */
typedef struct ConvShape {
  int64_t images; /* DIM_BATCH: given at run time */
  int64_t channels, height, width;
  int64_t filters, out_height, out_width;
  int64_t groups;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t dilation_height, dilation_width;
  int64_t pad_top, pad_left;
} ConvShape;

ConvShape conv_shape(const PlanKernel *kernel);
/* Whether the input's halo covers every element that a window touches; reports otherwise. */
bool conv_check_halo(const PlanKernel *kernel, const ConvShape *shape, Diag *diag);

/* The output's channels in blocks or last; see conv_direct.c. */
bool cpu_conv_direct(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* One input channel for one filter, channels in blocks or last. */
bool cpu_conv_depthwise(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* 3×3 with stride 1, filters transformed; see conv_winograd.c. */
bool cpu_conv_winograd(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* Products of bf16 parts in tile registers; see conv_tiles.c. */
bool cpu_conv_tiles(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* Whether a kernel uses tile registers. */
bool conv_uses_tiles(const PlanKernel *kernel);
/* convert of filters into the layout that it reads. */
bool cpu_convert_tiles(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* Few filters, everything plain, the input's halo as wide as the padding; see conv_rows.c. */
bool conv_takes_rows(const PlanKernel *kernel);
bool cpu_conv_rows(Emit *emit, const PlanKernel *kernel, KernelWork *out_work);
/* Any shape, everything plain. */
bool cpu_conv_reference(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);

/* Channels last are counted by vectors in items, and by themselves in addresses: the index of vector number `block`. */
Value conv_channel_index(Emit *emit, const PlanTensor *tensor, Value block, int32_t lanes);
/* emit_halo of row `y`, of which the vectors of all channels are part when channels are last: once, with the first. */
void conv_halo(Emit *emit, const PlanTensor *output, Value n, Value block, Value y);

/* Sums of some rows of a block of output channels, that wait in memory: vectors, `pitch` elements to a row. */
typedef struct ConvSums {
  Value start[4]; /* index of the first one in the output, as for emit_epilogue; the column is NULL */
  Value rows;
  Value address;
  int64_t pitch;
  Value bias; /* address of what is added; NULL: none */
} ConvSums;

/* How sums are taken through the epilogue. */
typedef struct ConvFinish {
  bool apart; /* by a routine; else by code in the kernel */
  EmitRoutine routine;
  int32_t lanes;
} ConvFinish;

/* Before all else in the kernel. */
ConvFinish conv_finish_begin(Emit *emit, bool biased, int32_t lanes);
/* Takes sums through the epilogue into the output. */
void conv_finish_rows(Emit *emit, const ConvFinish *finish, const ConvSums *sums);

/* Whether the output may lie over an operand. */
bool conv_output_is_shared(const PlanKernel *kernel);

/* The work of a kernel with `per_image` items an image. */
KernelWork work_per_image(int64_t images, int64_t per_image);

#endif
