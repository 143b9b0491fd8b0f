/* From a plan for a GPU to a program that runtime/core/cuda_run.h runs. */
#ifndef KILN_RUNTIME_SESSION_CUDA_BUILD_H
#define KILN_RUNTIME_SESSION_CUDA_BUILD_H

#include "codegen.h"
#include "core/cuda_run.h"
#include "cuda/cuda.h"

/* "cuda" and "cuda:1" name GPUs 0 and 1; false for "cpu", NULL and anything else. */
bool cuda_device_parse(const char *name, int32_t *out_device);
/* Fills the target for a GPU of this machine. False after a report: no driver, no such GPU. */
bool cuda_device_target(int32_t device, MathMode math, Arena *arena, Diag *diag, Target *out_target);

/* The program as data, a copy in `arena` that needs neither of the others: `images` as nvrtc_compile gives them. */
bool cuda_tables_build(const Plan *plan, const CudaProgramText *text, const Code *images, Arena *arena, Diag *diag,
                       CudaTables **out_tables);

/* Generates and compiles a plan for a GPU; the program is in `arena`. */
bool cuda_tables_compile(const Plan *plan, int32_t threads, const char *cache_dir, Arena *scratch, Arena *arena,
                         Diag *diag, CudaTables **out_tables);

#endif
