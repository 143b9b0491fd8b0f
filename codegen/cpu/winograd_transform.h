/* The transforms of Winograd's algorithm, F(2×2,3×3), F(4×4,3×3) and F(3×3,4×4); see winograd_transform.c. */
#ifndef KILN_CODEGEN_CPU_WINOGRAD_TRANSFORM_H
#define KILN_CODEGEN_CPU_WINOGRAD_TRANSFORM_H

#include "conv.h"
#include "winograd.h"

/* GgGᵀ of the same channel of `lanes` filters: nine vectors of taps at `taps`, `tap_stride` elements apart, to A × A
 * vectors at `output`, `plane` elements apart; scaled as winograd_output_tile expects it. F(2×2,3×3), F(4×4,3×3). */
void winograd_filter_tile(Emit *emit, int32_t outputs, int32_t lanes, Value taps, int64_t tap_stride, Value output,
                          int64_t plane);
/* BᵀdB of one tile of `lanes` channels: reads A × A vectors at `input` (strides of `tensor`), writes them to `output`,
 * `plane` elements apart. */
void winograd_input_tile(Emit *emit, WinogradForm form, int32_t lanes, const PlanTensor *tensor, Value input,
                         Value output, int64_t plane);
/* AᵀmA of one tile of one block: reads A × A vectors at `products`, `plane` elements apart; out_values[i * m + j] is
 * the tile's output in row i, column j. */
void winograd_output_tile(Emit *emit, WinogradForm form, int32_t lanes, Value products, int64_t plane,
                          Value *out_values);
/* convert into a transformed layout. */
bool winograd_convert(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);

#endif
