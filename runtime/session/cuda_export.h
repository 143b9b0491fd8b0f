/* Programs for GPUs as shared libraries. */
#ifndef KILN_RUNTIME_SESSION_CUDA_EXPORT_H
#define KILN_RUNTIME_SESSION_CUDA_EXPORT_H

#include "cuda_build.h"
#include "kiln.h"

/* Objects of a program: its tables and entry points SYMBOL_run, …, its code, its parameters when they are given, and
 * the launcher. `host` is the processor that launches. */
bool cuda_export_objects(const CudaTables *tables, const char *symbol, const void *const *parameters,
                         const Target *host, Arena *arena, Diag *diag, Code **out_objects, size_t *out_count);
/* Compiles a plan for a GPU, machine code for its target and PTX for newer ones, and writes the library. */
bool cuda_export_library(const Plan *plan, const kiln_compile_options *options, const void *const *parameters,
                         const char *path, Arena *scratch, Diag *diag);
/* The library's header. */
void cuda_export_header(Text *text, const Plan *plan, bool embedded);

#endif
