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

/* Blocked output; see conv_direct.c. */
bool cpu_conv_direct(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* One input channel for one filter, everything blocked. */
bool cpu_conv_depthwise(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* 3×3 with stride 1, filters transformed; see conv_winograd.c. */
bool cpu_conv_winograd(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* Products of bf16 halves in tile registers; see conv_tiles.c. */
bool cpu_conv_tiles(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* Whether a kernel uses tile registers. */
bool conv_uses_tiles(const PlanKernel *kernel);
/* convert of filters into the layout that it reads. */
bool cpu_convert_halves(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
/* Any shape, everything plain. */
bool cpu_conv_reference(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);

/* The work of a kernel with `per_image` items an image. */
KernelWork work_per_image(int64_t images, int64_t per_image);

#endif
