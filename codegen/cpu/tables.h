/* What the driver of the code generator is made of; the module of constant tables and entry points first of all. */
#ifndef KILN_CODEGEN_CPU_TABLES_H
#define KILN_CODEGEN_CPU_TABLES_H

#include "codegen.h"
#include "emit.h"

/* Builds the module in `context`; the caller sets triple and data layout and disposes of it. `work` holds an entry
 * per kernel of the plan, that of its `code`. NULL after a report. */
LLVMModuleRef tables_build(LLVMContextRef context, const Plan *plan, const KernelWork *work, const char *symbol,
                           const CpuOptions *options, Arena *arena, Diag *diag);
/* Scratch memory of one thread that does for all kernels. */
int64_t work_scratch_bytes(const KernelWork *work, size_t count);
/* "net_k12": the symbol of a kernel's code. */
const char *kernel_symbol(const char *symbol, uint32_t code, Arena *arena);
/* "conv2d/direct": op and algorithm. */
const char *kernel_kind(const PlanKernel *kernel, Arena *arena);

/* Makes LLVM's targets known; may be called by any thread, any number of times. */
void llvm_initialize(void);

#endif
