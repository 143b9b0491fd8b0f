/* Drives code generation: a module per distinct kernel, or per some that are small, one per distinct routine of these,
 * one with the tables, each translated on its own. */
#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include <llvm-c/Analysis.h>
#include <llvm-c/BitWriter.h>
#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>
#include <llvm-c/Transforms/PassBuilder.h>

#include "base/checked.h"
#include "batch.h"
#include "codegen.h"
#include "conv.h"
#include "emit.h"
#include "jobs.h"
#include "kiln_abi.h"
#include "object_cache.h"
#include "tables.h"

typedef bool CpuEmit(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);

static CpuEmit *const emitters[OP_COUNT] = {
#define OP(ENUM, name, inputs_min, inputs_max, attributes, layouts, parameters) [OP_##ENUM] = cpu_##name,
#define UNARY(ENUM, name, attributes)                                           [OP_##ENUM] = cpu_elementwise, [OP_##ENUM##_GRAD] = cpu_elementwise,
#define BINARY(ENUM, name, attributes)                                          [OP_##ENUM] = cpu_elementwise,
#define SOURCE(ENUM, name)
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE
};

typedef enum OutputKind { OUTPUT_OBJECT, OUTPUT_ASSEMBLY, OUTPUT_IR } OutputKind;

/* Ways to translate a module. Tables: code that every processor of the architecture runs. Prepare kernels run once:
 * LLVM's quickest translation takes a seventh of the time of the default one, and copying weights is as fast. The entry
 * points of a program that stays in this process only walk the tables: a quarter of the time. Prepare kernels' way also
 * serves kernels that leave what takes the time to routines. */
typedef enum MachineKind { MACHINE_RUN, MACHINE_PREPARE, MACHINE_TABLES, MACHINE_KIND_COUNT } MachineKind;

/* The target machines of a worker, made when first used: what LLVM derives from a target is kept in them. */
typedef struct Machines {
  LLVMTargetMachineRef items[MACHINE_KIND_COUNT];
} Machines;

/* A routine of one or more kernels: see emit.h. It is translated by the thread that has added it to the list. */
typedef struct Routine {
  const char *name;
  Code code;
  bool listed; /* among the program's codes */
  struct Routine *next;
} Routine;

typedef struct RoutineList {
  pthread_mutex_t lock;
  Routine *first;
} RoutineList;

/* One module on its way through LLVM. Its LLVM objects belong to `arena`, its result to the arena of its worker. */
typedef struct Unit {
  const Plan *plan;
  const char *symbol;
  OutputKind kind;
  bool in_process;          /* of CpuOptions */
  const PlanKernel *kernel; /* NULL: the tables */
  ObjectCache *cache;       /* may be NULL */
  Machines *machines;
  RoutineList *routine_list;
  bool quick;         /* of a run step, translated as prepare kernels are */
  KernelWork work;    /* result */
  Code code;          /* result: object or text, in `results` */
  Routine **routines; /* result: those that the kernel calls */
  size_t routine_count;
  Arena *arena, *results;
  Diag *diag;
  LLVMContextRef context;
  LLVMModuleRef module;
  LLVMTargetMachineRef machine;
} Unit;

static bool internal_error(Unit *unit, const char *stage, const char *message) {
  Location location = unit->kernel != NULL ? unit->kernel->location : (Location){0};
  diag_error(unit->diag, location, "internal error: %s of '%s' failed: %s", stage,
             unit->kernel != NULL ? unit->kernel->name : unit->symbol, message);
  return false;
}

/* --- LLVM -------------------------------------------------------------------------------------------- */

static void dispose_context(void *context) { LLVMContextDispose(context); }
static void dispose_module(void *module) { LLVMDisposeModule(module); }
static void dispose_builder(void *builder) { LLVMDisposeBuilder(builder); }

/* Without a handler LLVM prints and, on errors, exits. */
static void handle_diagnostic(LLVMDiagnosticInfoRef info, void *context) {
  Unit *unit = context;
  if (LLVMGetDiagInfoSeverity(info) != LLVMDSError) return;
  char *text = LLVMGetDiagInfoDescription(info);
  internal_error(unit, "translation", text);
  LLVMDisposeMessage(text);
}

static MachineKind machine_kind(const Unit *unit) {
  if (unit->kernel == NULL) return MACHINE_TABLES;
  bool quick = unit->quick || (size_t)(unit->kernel - unit->plan->kernels) < unit->plan->prepare_count;
  return quick ? MACHINE_PREPARE : MACHINE_RUN;
}

static bool is_quick(const Unit *unit) {
  const MachineKind kind = machine_kind(unit);
  return kind == MACHINE_PREPARE || (kind == MACHINE_TABLES && unit->in_process);
}

static const char *cpu_name(const Unit *unit) {
  if (strncmp(unit->plan->target->triple, "x86_64", 6) != 0) return "generic";
  return machine_kind(unit) == MACHINE_TABLES ? "x86-64" : unit->plan->target->isa;
}

static const char *feature_names(const Unit *unit) {
  return strncmp(unit->plan->target->triple, "x86_64", 6) == 0 ? "" : "+neon";
}

static void dispose_machines(void *argument) {
  const Machines *machines = argument;
  for (int kind = 0; kind < MACHINE_KIND_COUNT; kind++) {
    if (machines->items[kind] != NULL) LLVMDisposeTargetMachine(machines->items[kind]);
  }
}

static bool open_machine(Unit *unit) {
  LLVMTargetMachineRef *machine = &unit->machines->items[machine_kind(unit)];
  unit->machine = *machine;
  if (unit->machine != NULL) return true;
  const char *triple = unit->plan->target->triple;
  LLVMTargetRef llvm_target;
  char *message = NULL;
  if (LLVMGetTargetFromTriple(triple, &llvm_target, &message)) {
    internal_error(unit, "target selection", message);
    LLVMDisposeMessage(message);
    return false;
  }
  LLVMCodeGenOptLevel level = is_quick(unit) ? LLVMCodeGenLevelNone : LLVMCodeGenLevelDefault;
  *machine = LLVMCreateTargetMachine(llvm_target, triple, cpu_name(unit), feature_names(unit), level, LLVMRelocPIC,
                                     LLVMCodeModelDefault);
  unit->machine = *machine;
  return unit->machine != NULL || internal_error(unit, "target selection", "no target machine");
}

static void set_target(Unit *unit) {
  LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(unit->machine);
  LLVMSetModuleDataLayout(unit->module, layout);
  LLVMDisposeTargetData(layout);
  LLVMSetTarget(unit->module, unit->plan->target->triple);
}

static bool run_passes(Unit *unit) {
#ifndef NDEBUG
  char *fault = NULL;
  bool broken = LLVMVerifyModule(unit->module, LLVMReturnStatusAction, &fault);
  if (broken) internal_error(unit, "verification", fault);
  LLVMDisposeMessage(fault);
  if (broken) return false;
#endif
  LLVMPassBuilderOptionsRef options = LLVMCreatePassBuilderOptions();
  LLVMErrorRef error = LLVMRunPasses(unit->module, "function(mem2reg)", unit->machine, options);
  LLVMDisposePassBuilderOptions(options);
  if (error == NULL) return true;
  char *message = LLVMGetErrorMessage(error);
  internal_error(unit, "optimisation", message);
  LLVMDisposeErrorMessage(message);
  return false;
}

/* Writes the module's object or text to unit->code. */
static bool translate_module(Unit *unit) {
  if (!run_passes(unit)) return false;
  if (unit->kind == OUTPUT_IR) {
    char *text = LLVMPrintModuleToString(unit->module);
    unit->code = (Code){arena_string(unit->results, text), strlen(text)};
    LLVMDisposeMessage(text);
    return true;
  }
  LLVMCodeGenFileType type = unit->kind == OUTPUT_OBJECT ? LLVMObjectFile : LLVMAssemblyFile;
  LLVMMemoryBufferRef buffer = NULL;
  char *message = NULL;
  if (LLVMTargetMachineEmitToMemoryBuffer(unit->machine, unit->module, type, &message, &buffer)) {
    internal_error(unit, "translation", message);
    LLVMDisposeMessage(message);
    return false;
  }
  size_t size = LLVMGetBufferSize(buffer);
  unit->code = (Code){arena_copy(unit->results, LLVMGetBufferStart(buffer), size), size};
  LLVMDisposeMemoryBuffer(buffer);
  return diag_error_count(unit->diag) == 0;
}

static void dispose_buffer(void *buffer) { LLVMDisposeMemoryBuffer(buffer); }

/* All that the object depends on: what is done to the module, and the module itself. OBJECT_FORMAT counts changes of
 * the former that the text does not show. */
static Code object_key(const Unit *unit) {
  enum { OBJECT_FORMAT = 2 };
  unsigned major, minor, patch;
  LLVMGetVersion(&major, &minor, &patch);
  const char *head = arena_format(unit->arena, "object %d, Kiln %s, LLVM %u.%u.%u, %s, %s, %s, %s\n", OBJECT_FORMAT,
                                  KILN_VERSION, major, minor, patch, unit->plan->target->triple, cpu_name(unit),
                                  feature_names(unit), is_quick(unit) ? "quick" : "default");
  LLVMMemoryBufferRef module = LLVMWriteBitcodeToMemoryBuffer(unit->module);
  arena_defer(unit->arena, dispose_buffer, module);
  size_t head_size = strlen(head), size = LLVMGetBufferSize(module);
  char *key = arena_array(unit->arena, head_size + size, char);
  memcpy(key, head, head_size);
  memcpy(key + head_size, LLVMGetBufferStart(module), size);
  return (Code){key, head_size + size};
}

static bool translate(Unit *unit) {
  if (unit->cache == NULL || unit->kind != OUTPUT_OBJECT) return translate_module(unit);
  const Code key = object_key(unit);
  if (object_cache_load(unit->cache, &key, unit->arena, unit->results, &unit->code)) return true;
  if (!translate_module(unit)) return false;
  object_cache_store(unit->cache, &key, &unit->code, unit->arena);
  return true;
}

static void open_context(Unit *unit) {
  unit->context = LLVMContextCreate();
  arena_defer(unit->arena, dispose_context, unit->context);
  LLVMContextSetDiagnosticHandler(unit->context, handle_diagnostic, unit);
}

/* --- kernels ----------------------------------------------------------------------------------------- */

static void add_attribute(LLVMContextRef context, Value function, const char *name, const char *value) {
  LLVMAttributeRef attribute =
      LLVMCreateStringAttribute(context, name, (unsigned)strlen(name), value, (unsigned)strlen(value));
  LLVMAddAttributeAtIndex(function, (LLVMAttributeIndex)LLVMAttributeFunctionIndex, attribute);
}

static Value add_kernel_function(Unit *unit, Emit *emit) {
  LLVMTypeRef parameters[] = {emit->pointer, emit->i32, emit->i64, emit->i64};
  static const char *const names[] = {"call", "thread", "begin", "end"};
  Value function = LLVMAddFunction(emit->module, kernel_symbol(unit->symbol, unit->kernel->code, unit->arena),
                                   LLVMFunctionType(emit->void_type, parameters, 4, 0));
  for (unsigned i = 0; i < 4; i++) LLVMSetValueName2(LLVMGetParam(function, i), names[i], strlen(names[i]));
  LLVMSetVisibility(function, LLVMHiddenVisibility);
  unsigned nounwind = LLVMGetEnumAttributeKindForName("nounwind", strlen("nounwind"));
  LLVMAddAttributeAtIndex(function, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
                          LLVMCreateEnumAttribute(unit->context, nounwind, 0));
  const Target *target = unit->plan->target;
  add_attribute(unit->context, function, "frame-pointer", "none");
  if (strcmp(target->tune, "generic") != 0) add_attribute(unit->context, function, "tune-cpu", target->tune);
  if (conv_uses_tiles(unit->kernel)) add_attribute(unit->context, function, "target-features", "+amx-tile,+amx-bf16");
  /* LLVM prefers 256 bits even where the code says <16 x float> */
  if (target->vector_lanes == 16) add_attribute(unit->context, function, "prefer-vector-width", "512");
  return function;
}

static Value load_field(Emit *emit, LLVMTypeRef type, Value base, size_t offset, const char *name) {
  Value distance = emit_int(emit, (int64_t)offset);
  Value address = LLVMBuildGEP2(emit->builder, LLVMInt8TypeInContext(emit->context), base, &distance, 1, "");
  return LLVMBuildLoad2(emit->builder, type, address, name);
}

/* The kernel's arguments, as cpu_X finds them in Emit. */
static void load_arguments(Emit *emit) {
  Value call = LLVMGetParam(emit->function, 0);
  emit->operands = load_field(emit, emit->pointer, call, offsetof(kiln_call, operands), "operands");
  emit_load_operands(emit);
  emit->batch = load_field(emit, emit->i64, call, offsetof(kiln_call, batch), "batch");
  emit->thread = LLVMBuildZExt(emit->builder, LLVMGetParam(emit->function, 1), emit->i64, "thread.wide");
  emit->begin = LLVMGetParam(emit->function, 2);
  emit->end = LLVMGetParam(emit->function, 3);
  Value scratch = load_field(emit, emit->pointer, call, offsetof(kiln_call, scratch), "scratch.first");
  Value stride = load_field(emit, emit->i64, call, offsetof(kiln_call, scratch_stride), "scratch.stride");
  Value distance = LLVMBuildMul(emit->builder, stride, emit->thread, "");
  emit->scratch = LLVMBuildGEP2(emit->builder, LLVMInt8TypeInContext(emit->context), scratch, &distance, 1, "scratch");
}

/* Every item leaves a row; moments of planes have no rows, and are made by batch-blocked convolutions. */
static bool reductions_fit(const Emit *emit, const PlanKernel *kernel, const KernelWork *work) {
  if (kernel->reduction_count == 0) return true;
  if (kernel->reductions[0].op == OP_PLANE_MOMENTS)
    return kernel->reduction_count == 1 && kernel->op == OP_CONV2D && batch_block(kernel) > 0;
  if (emit->riding == NULL) return false;
  for (int32_t i = 0; i < kernel->reduction_count; i++) {
    const Shape *shape = &kernel->reductions[i].output.shape;
    const bool batched = shape_batched(shape);
    if (work->items_per_batch != (batched ? shape->dims[1] : 0)) return false;
    if (work->items != (batched ? 0 : shape->dims[0] * shape->dims[1])) return false;
  }
  return true;
}

/* The routine of this name; `out_new`: it was not in the list, and the caller translates it. */
static Routine *find_routine(const Unit *unit, const char *name, bool *out_new) {
  RoutineList *list = unit->routine_list;
  Routine *added = arena_new(unit->results, Routine); /* no memory is asked for while the list is locked */
  added->name = arena_string(unit->results, name);
  pthread_mutex_lock(&list->lock);
  Routine *found = list->first;
  while (found != NULL && strcmp(found->name, name) != 0) found = found->next;
  *out_new = found == NULL;
  if (*out_new) {
    added->next = list->first;
    list->first = found = added;
  }
  pthread_mutex_unlock(&list->lock);
  return found;
}

static bool compile_routines(Unit *unit, const RoutineModule *last) {
  for (const RoutineModule *at = last; at != NULL; at = at->before) unit->routine_count++;
  unit->routines = arena_array(unit->results, unit->routine_count, Routine *);
  size_t place = unit->routine_count;
  for (const RoutineModule *at = last; at != NULL; at = at->before) {
    bool is_new;
    Routine *routine = unit->routines[--place] = find_routine(unit, at->name, &is_new);
    if (!is_new) continue;
    Unit part = *unit;
    part.module = at->module;
    if (!translate(&part)) return false;
    routine->code = part.code;
  }
  return true;
}

static bool build_kernel(Unit *unit) {
  LLVMContextRef context = unit->context;
  Emit emit = {
      .arena = unit->arena,
      .target = unit->plan->target,
      .context = context,
      .module = unit->module,
      .builder = LLVMCreateBuilderInContext(context),
      .f32 = LLVMFloatTypeInContext(context),
      .i64 = LLVMInt64TypeInContext(context),
      .i32 = LLVMInt32TypeInContext(context),
      .i1 = LLVMInt1TypeInContext(context),
      .pointer = LLVMPointerTypeInContext(context, 0),
      .void_type = LLVMVoidTypeInContext(context),
      .kernel = unit->kernel,
      .max_batch = unit->plan->max_batch,
      .symbol = unit->symbol,
      .kernel_module = unit->module,
  };
  arena_defer(unit->arena, dispose_builder, emit.builder);
  emit.function = add_kernel_function(unit, &emit);
  LLVMPositionBuilderAtEnd(emit.builder, LLVMAppendBasicBlockInContext(context, emit.function, "entry"));
  load_arguments(&emit);
  CpuEmit *const emitter = emitters[unit->kernel->op];
  if (emitter == NULL) return internal_error(unit, "code generation", "the op has no code");
  bool batched = batch_block(unit->kernel) > 0;
  if (!(batched ? batch_emit : emitter)(&emit, unit->kernel, &unit->work, unit->diag)) return false;
  if (!reductions_fit(&emit, unit->kernel, &unit->work))
    return internal_error(unit, "code generation", "the kernel does not compute reductions, or has other items");
  assert(unit->work.items >= 0 && unit->work.items_per_batch >= 0 && unit->work.scratch_bytes >= 0);
  LLVMBuildRetVoid(emit.builder);
  if (!compile_routines(unit, emit.routines)) return false;
  unit->quick = emit.quick;
  return open_machine(unit);
}

/* Units that are one module; the last one gets its code. */
typedef struct Batch {
  Unit *units;
  size_t count;
} Batch;

static bool compile_batch(const Batch *batch) {
  Unit *first = batch->units, *last = first + batch->count - 1;
  open_context(first);
  const char *name = kernel_symbol(first->symbol, first->kernel->code, first->arena);
  first->module = LLVMModuleCreateWithNameInContext(name, first->context);
  arena_defer(first->arena, dispose_module, first->module);
  if (!open_machine(first)) return false;
  set_target(first);
  for (Unit *unit = first; unit <= last; unit++) {
    unit->context = first->context, unit->module = first->module;
    if (!open_machine(unit) || !build_kernel(unit)) return false;
  }
  return translate(last);
}

static bool compile_tables(Unit *unit, const KernelWork *work, const CpuOptions *options) {
  open_context(unit);
  unit->module = tables_build(unit->context, unit->plan, work, unit->symbol, options, unit->arena, unit->diag);
  if (unit->module == NULL) return false;
  arena_defer(unit->arena, dispose_module, unit->module);
  LLVMSetModuleIdentifier(unit->module, unit->symbol, strlen(unit->symbol));
  LLVMSetSourceFileName(unit->module, unit->symbol, strlen(unit->symbol));
  if (!open_machine(unit)) return false;
  set_target(unit);
  return translate(unit);
}

/* --- threads ----------------------------------------------------------------------------------------- */

static void *create_machines(Arena *arena) {
  Machines *machines = arena_new(arena, Machines);
  arena_defer(arena, dispose_machines, machines);
  return machines;
}

static bool run_batch(void *queue, size_t number, const JobTools *tools) {
  const Batch *batch = (const Batch *)queue + number;
  for (size_t i = 0; i < batch->count; i++) {
    Unit *unit = &batch->units[i];
    unit->arena = tools->scratch;
    unit->results = tools->results;
    unit->machines = tools->worker;
    unit->diag = tools->diag;
  }
  return compile_batch(batch);
}

int32_t cpu_threads(int32_t threads) {
  enum { DEFAULT_THREADS_LIMIT = 8 };
  if (threads > 0) return threads;
  cpu_set_t set; /* the processors that this process may use; not readable on a machine with more than 1024 */
  int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : DEFAULT_THREADS_LIMIT;
  return count > DEFAULT_THREADS_LIMIT ? DEFAULT_THREADS_LIMIT : count;
}

/* --- programs ---------------------------------------------------------------------------------------- */

/* Those of the run steps first, each a module: they take long, and the many small ones fill what threads have left at
 * the end. These are some to a module, as a module by itself takes LLVM as long as a small kernel. */
static Batch *queue_units(Unit *units, size_t count, Arena *arena, size_t *out_count) {
  enum { SMALL_UNITS = 8 };
  Batch *queue = arena_array(arena, count, Batch);
  size_t queued = 0, small = 0;
  while (small < count && machine_kind(&units[small]) != MACHINE_RUN) small++;
  for (size_t i = small; i < count; i++) queue[queued++] = (Batch){&units[i], 1};
  for (size_t i = 0; i < small; i += SMALL_UNITS)
    queue[queued++] = (Batch){&units[i], small - i < SMALL_UNITS ? small - i : SMALL_UNITS};
  *out_count = queued;
  return queue;
}

static void destroy_lock(void *lock) { pthread_mutex_destroy(lock); }

static RoutineList *create_routine_list(Arena *arena) {
  RoutineList *list = arena_new(arena, RoutineList);
  pthread_mutex_init(&list->lock, NULL);
  arena_defer(arena, destroy_lock, &list->lock);
  return list;
}

/* Kernels in plan order, the tables last. Memory of intermediate results is `scratch`'s; the codes' too. */
static bool compile_plan(const Plan *plan, const CpuOptions *options, OutputKind kind, const char *symbol,
                         Arena *scratch, Diag *diag, Unit **out_units, size_t *out_count, int64_t *out_scratch_bytes) {
  llvm_initialize();
  ObjectCache *cache = options->cache_dir != NULL ? object_cache_create(options->cache_dir, scratch) : NULL;
  Unit *units = arena_array(scratch, plan->kernel_count + 1, Unit);
  Unit **unit_of = arena_array(scratch, plan->kernel_count, Unit *);
  RoutineList *routines = create_routine_list(scratch);
  size_t count = 0;
  for (size_t i = 0; i < plan->kernel_count; i++) {
    assert(plan->kernels[i].code <= i);
    if (plan->kernels[i].code < i) continue;
    unit_of[i] = &units[count++];
    *unit_of[i] = (Unit){.plan = plan, .symbol = symbol, .kind = kind, .kernel = &plan->kernels[i], .cache = cache};
    unit_of[i]->routine_list = routines;
  }
  Jobs jobs = {.run = run_batch, .create_worker = create_machines};
  jobs.context = queue_units(units, count, scratch, &jobs.count);
  if (!jobs_run(&jobs, cpu_threads(options->threads), scratch, diag)) return false;
  KernelWork *work = arena_array(scratch, plan->kernel_count, KernelWork);
  for (size_t i = 0; i < plan->kernel_count; i++) work[i] = unit_of[plan->kernels[i].code]->work;
  Unit *tables = &units[count++];
  *tables = (Unit){.plan = plan,
                   .symbol = symbol,
                   .kind = kind,
                   .in_process = options->in_process,
                   .cache = cache,
                   .arena = scratch,
                   .results = scratch,
                   .diag = diag,
                   .machines = create_machines(scratch)};
  if (!compile_tables(tables, work, options)) return false;
  if (cache != NULL) object_cache_finish(cache, OBJECT_CACHE_BYTES, scratch, diag);
  *out_units = units;
  *out_count = count;
  *out_scratch_bytes = work_scratch_bytes(work, plan->kernel_count);
  return true;
}

/* An arena for one compilation: LLVM's objects go with it. Failure of it is failure of `arena`. */
static Arena *scratch_create(Arena *arena) {
  Arena *scratch = arena_create(NULL);
  if (scratch == NULL) arena_fail(arena);
  return scratch;
}

typedef struct Request {
  const Plan *plan;
  const CpuOptions *options;
  OutputKind kind;
  const char *symbol;
  Arena *arena;
  Diag *diag;
  CpuObjects *objects; /* results: one of the two */
  Text *text;
} Request;

/* What is linked, or printed. */
typedef struct Piece {
  const Unit *unit;
  const char *routine; /* NULL: all of the unit but its routines */
  const Code *code;    /* empty: of a unit whose code a later one has */
} Piece;

/* Routines before the first kernel that calls them. */
static Piece *list_pieces(Unit *units, size_t count, Arena *arena, size_t *out_count) {
  size_t limit = count, pieces = 0;
  for (size_t i = 0; i < count; i++) limit += units[i].routine_count;
  Piece *list = arena_array(arena, limit, Piece);
  for (size_t i = 0; i < count; i++) {
    for (size_t k = 0; k < units[i].routine_count; k++) {
      Routine *routine = units[i].routines[k];
      if (routine->listed) continue;
      routine->listed = true;
      list[pieces++] = (Piece){&units[i], routine->name, &routine->code};
    }
    list[pieces++] = (Piece){&units[i], NULL, &units[i].code};
  }
  *out_count = pieces;
  return list;
}

static void comment_piece(Text *text, const Piece *piece, bool assembly) {
  const PlanKernel *kernel = piece->unit->kernel;
  Text line;
  text_init(&line, text->arena);
  if (kernel == NULL) {
    text_format(&line, "tables and entry points of %s", piece->unit->plan->name);
  } else if (piece->routine != NULL) {
    text_format(&line, "%s: a routine of %s, maybe of others too", piece->routine, kernel->name);
  } else {
    text_format(&line, "%s: %s(", kernel->name, kernel_kind(kernel, text->arena));
    for (int32_t i = 0; i <= kernel->input_count; i++) {
      const PlanTensor *tensor = i < kernel->input_count ? &kernel->inputs[i] : &kernel->output;
      text_add(&line, i == kernel->input_count ? ") -> " : i > 0 ? ", " : "");
      text_format(&line, "%s[", data_type_name(tensor->dtype));
      shape_print(&line, &tensor->shape);
      text_add(&line, "] ");
      layout_print(&line, tensor->layout);
    }
    for (int32_t i = 0; i < kernel->epilogue_count; i++)
      text_format(&line, "%s %s", i == 0 ? " then" : ",", op_info(kernel->epilogue[i].op)->name);
  }
  /* a name may hold anything, also the end of the comment */
  for (char *at = line.data; *at != '\0'; at++) {
    if ((unsigned char)*at < ' ') *at = '?';
  }
  text_format(text, "%s %s\n", assembly ? "#" : ";", line.data);
}

static bool request_run(const Request *request, Arena *scratch) {
  Unit *units;
  size_t count;
  int64_t scratch_bytes;
  if (!compile_plan(request->plan, request->options, request->kind, request->symbol, scratch, request->diag, &units,
                    &count, &scratch_bytes))
    return false;
  const Piece *pieces = list_pieces(units, count, scratch, &count);
  if (request->objects != NULL) {
    Code *codes = arena_array(request->arena, count, Code);
    size_t filled = 0;
    for (size_t i = 0; i < count; i++) {
      const Code *code = pieces[i].code;
      if (code->size > 0) codes[filled++] = (Code){arena_copy(request->arena, code->data, code->size), code->size};
    }
    *request->objects = (CpuObjects){codes, filled, request->symbol, scratch_bytes};
  } else {
    for (size_t i = 0; i < count; i++) {
      comment_piece(request->text, &pieces[i], request->kind == OUTPUT_ASSEMBLY);
      if (pieces[i].code->size == 0) continue;
      text_add_n(request->text, pieces[i].code->data, pieces[i].code->size);
      text_add(request->text, "\n");
    }
  }
  return true;
}

/* Runs out of memory in either arena end here, so that threads and LLVM's objects never leak. */
static bool request_guarded(const Request *request) {
  Arena *scratch = scratch_create(request->arena);
  jmp_buf failure;
  jmp_buf *before = arena_on_failure(request->arena, &failure);
  if (setjmp(failure)) {
    arena_destroy(scratch);
    arena_on_failure(request->arena, before);
    arena_fail(request->arena);
  }
  arena_on_failure(scratch, &failure);
  bool done = request_run(request, scratch);
  arena_destroy(scratch);
  arena_on_failure(request->arena, before);
  return done;
}

bool cpu_compile(const Plan *plan, const CpuOptions *options, Arena *arena, Diag *diag, CpuObjects *out_objects) {
  static const CpuOptions defaults;
  Request request = {
      .plan = plan,
      .options = options != NULL ? options : &defaults,
      .kind = OUTPUT_OBJECT,
      .symbol = symbol_from_name(plan->name, arena),
      .arena = arena,
      .diag = diag,
      .objects = out_objects,
  };
  return request_guarded(&request);
}

bool cpu_print(const Plan *plan, const CpuOptions *options, bool assembly, Arena *arena, Diag *diag, Text *out_text) {
  static const CpuOptions defaults;
  Request request = {
      .plan = plan,
      .options = options != NULL ? options : &defaults,
      .kind = assembly ? OUTPUT_ASSEMBLY : OUTPUT_IR,
      .symbol = symbol_from_name(plan->name, arena),
      .arena = arena,
      .diag = diag,
      .text = out_text,
  };
  return request_guarded(&request);
}

const char *symbol_from_name(const char *name, Arena *arena) {
  bool digit = name[0] >= '0' && name[0] <= '9';
  char *symbol = arena_format(arena, "%s%s", digit || name[0] == '\0' ? "_" : "", name);
  for (char *at = symbol; *at != '\0'; at++) {
    bool letter = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9');
    if (!letter) *at = '_';
  }
  return symbol;
}
