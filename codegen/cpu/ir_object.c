/* LLVM IR text to a relocatable object of the baseline processor: for tables and entry points that other generators
 * write. */
#include <string.h>

#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/TargetMachine.h>

#include "codegen.h"
#include "tables.h"

static void dispose_context(void *context) { LLVMContextDispose(context); }
static void dispose_module(void *module) { LLVMDisposeModule(module); }
static void dispose_machine(void *machine) { LLVMDisposeTargetMachine(machine); }

static bool fail(Diag *diag, const char *action, char *message) {
  diag_error(diag, (Location){0}, "internal error: %s: %s", action, message != NULL ? message : "no reason given");
  LLVMDisposeMessage(message);
  return false;
}

static bool translate(const char *text, const Target *target, Arena *scratch, Arena *arena, Diag *diag,
                      Code *out_object) {
  char *message = NULL;
  LLVMTargetRef llvm_target;
  if (LLVMGetTargetFromTriple(target->triple, &llvm_target, &message)) return fail(diag, "target selection", message);
  const bool x86 = strncmp(target->triple, "x86_64", 6) == 0;
  LLVMTargetMachineRef machine = LLVMCreateTargetMachine(llvm_target, target->triple, x86 ? "x86-64" : "generic", "",
                                                         LLVMCodeGenLevelDefault, LLVMRelocPIC, LLVMCodeModelDefault);
  if (machine == NULL) return fail(diag, "target selection", NULL);
  arena_defer(scratch, dispose_machine, machine);
  LLVMContextRef context = LLVMContextCreate();
  arena_defer(scratch, dispose_context, context);
  LLVMMemoryBufferRef source = LLVMCreateMemoryBufferWithMemoryRangeCopy(text, strlen(text), "tables.ll");
  LLVMModuleRef module;
  if (LLVMParseIRInContext(context, source, &module, &message)) return fail(diag, "tables do not parse", message);
  arena_defer(scratch, dispose_module, module);
  LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(machine);
  LLVMSetModuleDataLayout(module, layout);
  LLVMDisposeTargetData(layout);
  LLVMSetTarget(module, target->triple);
  LLVMMemoryBufferRef object = NULL;
  if (LLVMTargetMachineEmitToMemoryBuffer(machine, module, LLVMObjectFile, &message, &object))
    return fail(diag, "translation of tables", message);
  const size_t size = LLVMGetBufferSize(object);
  *out_object = (Code){arena_copy(arena, LLVMGetBufferStart(object), size), size};
  LLVMDisposeMemoryBuffer(object);
  return true;
}

bool ir_object(const char *text, const Target *target, Arena *arena, Diag *diag, Code *out_object) {
  llvm_initialize();
  Arena *scratch = arena_create(NULL);
  if (scratch == NULL) arena_fail(arena);
  bool done = translate(text, target, scratch, arena, diag, out_object);
  arena_destroy(scratch);
  return done;
}
