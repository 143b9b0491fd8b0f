/* Where bilinear and nearest upsampling look, for the op and its gradient. */
#ifndef KILN_CODEGEN_CUDA_CUDA_RESAMPLE_H
#define KILN_CODEGEN_CUDA_CUDA_RESAMPLE_H

#include "cuda_emit.h"

/* Statements that declare from which of `in` elements output place `place` of `out` is blended: AXIS0 (nearest), or
 * AXIS0, AXIS1 and AXIS_weight, the share of AXIS1 (bilinear). */
void cuda_blend_place(CudaEmit *emit, int depth, const Attrs *attrs, const char *axis, const char *place, int64_t in,
                      int64_t out);

#endif
