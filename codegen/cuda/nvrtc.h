/* CUDA C text to machine code, through NVRTC, which is found at run time.
 *
 * Searched in this order: $KILN_NVRTC alone when it is set; libnvrtc.so.13, .12, .11.2 and libnvrtc.so where the system
 * looks for libraries; the same in $CUDA_HOME, $CUDA_PATH and /usr/local/cuda*, folders lib64 and lib. Once found it
 * stays open. No GPU is needed. */
#ifndef KILN_CODEGEN_CUDA_NVRTC_H
#define KILN_CODEGEN_CUDA_NVRTC_H

#include "codegen.h"
#include "cuda.h"

typedef struct NvrtcInfo {
  const char *path; /* as it was opened */
  int32_t major, minor;
  const int32_t *archs; /* 10 * major + minor of the compute capabilities that it compiles for, rising */
  size_t arch_count;
} NvrtcInfo;

/* NULL when there is none: *out_reason (may be NULL) then says so; both live as long as the process. */
const NvrtcInfo *nvrtc_info(const char **out_reason);

typedef struct NvrtcOptions {
  const char *arch;      /* "sm_90a", as in Target.isa */
  bool ptx;              /* PTX, which newer GPUs of the same kind can run too, instead of machine code */
  int32_t threads;       /* as in CpuOptions */
  const char *cache_dir; /* as in CpuOptions; the folder may be the same */
} NvrtcOptions;

/* Compiles all texts of a program, in parallel: out_images[i] is that of program->codes[i], machine code or PTX (whose
 * terminating zero is counted), in `arena`. PTX comes also when this NVRTC does not know the architecture but an older
 * one; that is worth a warning. False after a report. */
bool nvrtc_compile(const Plan *plan, const CudaProgramText *program, const NvrtcOptions *options, Arena *arena,
                   Diag *diag, Code **out_images);

#endif
