/* Loads objects into this process through LLVM's ORC. Its linker maps code executable only after it has been
 * written and made read-only. */
#include <string.h>

#include <llvm-c/Core.h>
#include <llvm-c/Error.h>
#include <llvm-c/LLJIT.h>

#include "codegen.h"
#include "kiln_abi.h"
#include "tables.h"

static void dispose_jit(void *jit) { LLVMConsumeError(LLVMOrcDisposeLLJIT(jit)); }

static bool report(Diag *diag, const char *action, LLVMErrorRef error) {
  char *message = LLVMGetErrorMessage(error);
  diag_error(diag, (Location){0}, "internal error: cannot %s: %s", action, message);
  LLVMDisposeErrorMessage(message);
  return false;
}

bool jit_load(const CpuObjects *objects, Arena *arena, Diag *diag, const struct kiln_program **out_program) {
  llvm_initialize();
  LLVMOrcLLJITRef jit = NULL;
  LLVMErrorRef error = LLVMOrcCreateLLJIT(&jit, NULL);
  if (error != NULL) return report(diag, "start the just-in-time linker", error);
  arena_defer(arena, dispose_jit, jit);
  LLVMOrcJITDylibRef library = LLVMOrcLLJITGetMainJITDylib(jit);
  for (size_t i = 0; i < objects->count; i++) {
    const Code *object = &objects->objects[i];
    const char *name = arena_format(arena, "%s.%zu", objects->symbol, i);
    error = LLVMOrcLLJITAddObjectFile(jit, library,
                                      LLVMCreateMemoryBufferWithMemoryRangeCopy(object->data, object->size, name));
    if (error != NULL) return report(diag, "add an object", error);
  }
  LLVMOrcExecutorAddress address = 0;
  error = LLVMOrcLLJITLookup(jit, &address, arena_format(arena, "%s_describe", objects->symbol));
  if (error != NULL) return report(diag, "link a program", error);
  const kiln_program *(*describe)(void);
  const uintptr_t code = (uintptr_t)address;
  memcpy(&describe, &code, sizeof describe);
  *out_program = describe();
  return true;
}
