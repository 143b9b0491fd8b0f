#include "tables.h"

#include <assert.h>
#include <string.h>

#include <llvm-c/IRReader.h>

#include "base/checked.h"
#include "conv.h"
#include "kiln_abi.h"
#include "texts.h"
#include "winograd.h"

_Static_assert((int)SPACE_WORKSPACE - 1 == (int)KILN_SPACE_WORKSPACE && (int)SPACE_OUTPUT - 1 == (int)KILN_SPACE_OUTPUT,
               "the ABI's spaces are the plan's, without SPACE_NONE");
_Static_assert((int)SHAPE_MAX_RANK == (int)KILN_MAX_RANK, "views hold every shape");

typedef struct Tables {
  LLVMContextRef context;
  LLVMModuleRef module;
  LLVMTypeRef i32, i64, pointer;
  const Plan *plan;
  const KernelWork *work;
  const char *symbol;
  Arena *arena;
} Tables;

const char *kernel_symbol(const char *symbol, uint32_t code, Arena *arena) {
  return arena_format(arena, "%s_k%u", symbol, code);
}

const char *kernel_kind(const PlanKernel *kernel, Arena *arena) {
  static const char *const algorithms[] = {
      [ALGORITHM_DEFAULT] = NULL,          [ALGORITHM_DIRECT] = "direct", [ALGORITHM_DEPTHWISE] = "depthwise",
      [ALGORITHM_REFERENCE] = "reference", [ALGORITHM_PACKED] = "packed",
      [ALGORITHM_WINOGRAD23] = "winograd23", [ALGORITHM_WINOGRAD43] = "winograd43", [ALGORITHM_WINOGRAD34] = "winograd34",
      [ALGORITHM_TILES] = "tiles",
  };
  const char *op = op_info(kernel->op)->name, *algorithm = algorithms[kernel->choice.algorithm];
  if (kernel->pool != NULL)
    return arena_format(arena, "%s/%s+%s", op, algorithm != NULL ? algorithm : "default", op_info(OP_MAX_POOL2D)->name);
  return algorithm != NULL ? arena_format(arena, "%s/%s", op, algorithm) : op;
}

int64_t work_scratch_bytes(const KernelWork *work, size_t count) {
  int64_t most = 0;
  for (size_t i = 0; i < count; i++) {
    int64_t bytes = round_up(work[i].scratch_bytes, KILN_ALIGNMENT);
    if (bytes > most) most = bytes;
  }
  return most;
}

/* --- constants --------------------------------------------------------------------------------------- */

static Value u32(const Tables *tables, uint32_t value) { return LLVMConstInt(tables->i32, value, 0); }
static Value i64(const Tables *tables, int64_t value) {
  return LLVMConstInt(tables->i64, (unsigned long long)value, 1);
}
static Value f64(const Tables *tables, double value) {
  return LLVMConstReal(LLVMDoubleTypeInContext(tables->context), value);
}
static Value null(const Tables *tables) { return LLVMConstNull(tables->pointer); }

static LLVMTypeRef named_type(const Tables *tables, const char *name) {
  LLVMTypeRef type = LLVMGetTypeByName2(tables->context, name);
  assert(type != NULL);
  return type;
}

static Value named_struct(const Tables *tables, const char *type, Value *fields, unsigned count) {
  assert(LLVMCountStructElementTypes(named_type(tables, type)) == count);
  return LLVMConstNamedStruct(named_type(tables, type), fields, count);
}

static Value constant_global(const Tables *tables, const char *name, Value value) {
  Value global = LLVMAddGlobal(tables->module, LLVMTypeOf(value), name);
  LLVMSetInitializer(global, value);
  LLVMSetGlobalConstant(global, 1);
  LLVMSetLinkage(global, LLVMPrivateLinkage);
  LLVMSetUnnamedAddress(global, LLVMGlobalUnnamedAddr);
  return global;
}

static Value string(const Tables *tables, const char *text) {
  Value value = LLVMConstStringInContext2(tables->context, text, strlen(text), 0);
  Value global = constant_global(tables, "text", value);
  LLVMSetAlignment(global, 1);
  return global;
}

static Value array(const Tables *tables, const char *name, const char *type, Value *items, size_t count) {
  if (count == 0) return null(tables);
  return constant_global(tables, name, LLVMConstArray2(named_type(tables, type), items, count));
}

static Value dims(const Tables *tables, int32_t rank, const int64_t *values) {
  Value items[KILN_MAX_RANK];
  for (int32_t dim = 0; dim < KILN_MAX_RANK; dim++) items[dim] = i64(tables, dim < rank ? values[dim] : 0);
  return LLVMConstArray2(tables->i64, items, KILN_MAX_RANK);
}

static uint32_t abi_dtype(DataType type) { return type == DTYPE_I64 ? KILN_I64 : KILN_F32; }

static int64_t image_bytes(const Shape *shape, DataType type) {
  return shape_elements_per_image(shape) * data_type_bytes(type);
}

/* --- rows -------------------------------------------------------------------------------------------- */

static Value port(const Tables *tables, const PlanPort *port_) {
  Value fields[] = {
      string(tables, port_->name),
      u32(tables, abi_dtype(port_->dtype)),
      u32(tables, (uint32_t)port_->shape.rank),
      dims(tables, port_->shape.rank, port_->shape.dims),
      i64(tables, image_bytes(&port_->shape, port_->dtype)),
      u32(tables, shape_batched(&port_->shape)),
      u32(tables, port_->state ? KILN_ROLE_STATE : KILN_ROLE_PLAIN),
  };
  return named_struct(tables, "kiln_port", fields, sizeof fields / sizeof fields[0]);
}

static Value ports(const Tables *tables, const char *name, const PlanPort *list, size_t count) {
  Value *items = arena_array(tables->arena, count, Value);
  for (size_t i = 0; i < count; i++) items[i] = port(tables, &list[i]);
  return array(tables, name, "kiln_port", items, count);
}

/* A batched value of the workspace lies in the per-image part, whose offsets grow with the batch: for as many images as
 * kernels may write beside those of the batch. */
static Value operand(const Tables *tables, const PlanTensor *tensor) {
  const Storage *storage = &tensor->storage;
  const Plan *plan = tables->plan;
  assert(storage->space != SPACE_NONE);
  bool per_image = storage->space == SPACE_WORKSPACE && shape_batched(&tensor->shape) && !plan->fixed_batch;
  const int64_t more = plan->batch_unit > 1 ? plan->batch_unit - 1 : 0;
  const int64_t first = plan->workspace_fixed - more * plan->workspace_per_batch + more * storage->offset;
  Value fields[] = {
      u32(tables, (uint32_t)storage->space - 1),
      u32(tables, (uint32_t)storage->index),
      i64(tables, (per_image ? first : storage->offset) + storage->delta),
      i64(tables, per_image ? storage->offset : 0),
  };
  return named_struct(tables, "kiln_operand", fields, sizeof fields / sizeof fields[0]);
}

static Value view(const Tables *tables, const PlanTensor *tensor) {
  int32_t block = emit_lane_block(tensor), block_dim = block > 1 ? emit_lane_dim(tensor) : 0;
  int64_t strides[SHAPE_MAX_RANK] = {0};
  for (int32_t dim = 0; dim < tensor->shape.rank; dim++) strides[dim] = tensor->storage.stride[dim];
  if (tensor->layout.kind == LAYOUT_VECTOR_BLOCK) strides[0] = block;
  /* a transformed value has none of its elements in memory */
  int32_t rank = layout_is_winograd(tensor->layout.kind) ? 0 : tensor->shape.rank;
  Value fields[] = {
      u32(tables, abi_dtype(tensor->dtype)),
      u32(tables, (uint32_t)rank),
      dims(tables, rank, tensor->shape.dims),
      dims(tables, rank, strides),
      i64(tables, tensor->storage.origin),
      i64(tables, block),
      u32(tables, (uint32_t)block_dim),
      u32(tables, 0),
  };
  return named_struct(tables, "kiln_view", fields, sizeof fields / sizeof fields[0]);
}

static void count_bytes(const PlanTensor *tensor, double *fixed, double *per_image) {
  double bytes = (double)image_bytes(&tensor->shape, tensor->dtype);
  *(shape_batched(&tensor->shape) ? per_image : fixed) += bytes;
}

static Value kernel_function(const Tables *tables, uint32_t code) {
  const char *name = kernel_symbol(tables->symbol, code, tables->arena);
  Value function = LLVMGetNamedFunction(tables->module, name);
  if (function != NULL) return function;
  LLVMTypeRef parameters[] = {tables->pointer, tables->i32, tables->i64, tables->i64};
  LLVMTypeRef type = LLVMFunctionType(LLVMVoidTypeInContext(tables->context), parameters, 4, 0);
  function = LLVMAddFunction(tables->module, name, type);
  LLVMSetVisibility(function, LLVMHiddenVisibility);
  return function;
}

/* Steps from number `first` on that may run some images at a time: those of a stretch, if all divide their items by
 * images. */
static uint32_t stretch_length(const Tables *tables, size_t first) {
  const Plan *plan = tables->plan;
  const uint32_t stretch = plan->kernels[first].stretch;
  size_t end = first;
  if (stretch == 0 || (first > 0 && plan->kernels[first - 1].stretch == stretch)) return 1;
  for (; end < plan->kernel_count && plan->kernels[end].stretch == stretch; end++)
    if (tables->work[end].items != 0 || tables->work[end].items_per_batch == 0) return 1;
  return (uint32_t)(end - first);
}

static Value step(const Tables *tables, size_t number) {
  const PlanKernel *kernel = &tables->plan->kernels[number];
  const KernelWork *work = &tables->work[number];
  Value operands[KILN_MAX_OPERANDS];
  uint32_t count = 0;
  double bytes_fixed = 0, bytes_per_image = 0;
  count_bytes(&kernel->output, &bytes_fixed, &bytes_per_image);
  operands[count++] = operand(tables, &kernel->output);
  for (int32_t i = 0; i < kernel->input_count; i++) {
    count_bytes(&kernel->inputs[i], &bytes_fixed, &bytes_per_image);
    operands[count++] = operand(tables, &kernel->inputs[i]);
  }
  for (int32_t i = 0; i < kernel->reduction_count; i++) {
    count_bytes(&kernel->reductions[i].output, &bytes_fixed, &bytes_per_image);
    operands[count++] = operand(tables, &kernel->reductions[i].output);
  }
  Value fields[] = {
      kernel_function(tables, kernel->code),
      string(tables, kernel->name),
      string(tables, kernel_kind(kernel, tables->arena)),
      array(tables, "operands", "kiln_operand", operands, count),
      u32(tables, count),
      u32(tables, stretch_length(tables, number)),
      i64(tables, work->items),
      i64(tables, work->items_per_batch),
      i64(tables, round_up(work->scratch_bytes, KILN_ALIGNMENT)),
      f64(tables, kernel->flops_fixed),
      f64(tables, kernel->flops),
      f64(tables, bytes_fixed),
      f64(tables, bytes_per_image),
      view(tables, &kernel->output),
  };
  return named_struct(tables, "kiln_step", fields, sizeof fields / sizeof fields[0]);
}

/* --- the program ------------------------------------------------------------------------------------- */

static Value function_named(const Tables *tables, const char *suffix) {
  Value function = LLVMGetNamedFunction(tables->module, arena_format(tables->arena, "%s_%s", tables->symbol, suffix));
  assert(function != NULL);
  return function;
}

static Value embedded_weights(const Tables *tables) {
  const char *name = arena_format(tables->arena, "%s_embedded_weights", tables->symbol);
  Value global = LLVMAddGlobal(tables->module, LLVMInt8TypeInContext(tables->context), name);
  LLVMSetVisibility(global, LLVMHiddenVisibility);
  LLVMSetGlobalConstant(global, 1);
  return global;
}

/* Where trained parameters lie in the state. */
static Value slots(const Tables *tables) {
  const Plan *plan = tables->plan;
  Value *items = arena_array(tables->arena, plan->slot_count, Value);
  for (size_t i = 0; i < plan->slot_count; i++) {
    const StateSlot *slot = &plan->slots[i];
    Value fields[] = {
        string(tables, slot->name),
        u32(tables, (uint32_t)slot->shape.rank),
        u32(tables, (uint32_t)slot->group),
        dims(tables, slot->shape.rank, slot->shape.dims),
        i64(tables, slot->offset),
        u32(tables, slot->decayed),
        u32(tables, 0),
    };
    items[i] = named_struct(tables, "kiln_slot", fields, sizeof fields / sizeof fields[0]);
  }
  return array(tables, "slots", "kiln_slot", items, plan->slot_count);
}

static void fill_program(const Tables *tables, const CpuOptions *options) {
  const Plan *plan = tables->plan;
  Value *steps = arena_array(tables->arena, plan->kernel_count, Value);
  for (size_t i = 0; i < plan->kernel_count; i++) steps[i] = step(tables, i);
  size_t run_count = plan->kernel_count - plan->prepare_count, hooks = plan->hook_output_count;
  Value outputs = ports(tables, "outputs", plan->outputs, plan->output_count);
  Value first_hook = i64(tables, (int64_t)(plan->output_count - hooks));
  Value fields[] = {
      u32(tables, KILN_ABI_VERSION),
      u32(tables, sizeof(kiln_program)),
      string(tables, plan->name),
      string(tables, KILN_VERSION),
      string(tables, plan->target->isa),
      string(tables, plan->target->triple),
      i64(tables, (int64_t)plan->identity),
      ports(tables, "inputs", plan->inputs, plan->input_count),
      outputs,
      ports(tables, "parameters", plan->parameters, plan->parameter_count),
      hooks > 0 ? LLVMConstGEP2(named_type(tables, "kiln_port"), outputs, &first_hook, 1) : null(tables),
      u32(tables, (uint32_t)plan->input_count),
      u32(tables, (uint32_t)plan->output_count),
      u32(tables, (uint32_t)plan->parameter_count),
      u32(tables, (uint32_t)hooks),
      array(tables, "prepare_steps", "kiln_step", steps, plan->prepare_count),
      array(tables, "run_steps", "kiln_step", steps + plan->prepare_count, run_count),
      u32(tables, (uint32_t)plan->prepare_count),
      u32(tables, (uint32_t)run_count),
      i64(tables, plan->max_batch),
      u32(tables, options->max_threads != 0 ? options->max_threads : CPU_DEFAULT_MAX_THREADS),
      u32(tables, 0),
      i64(tables, plan->workspace_fixed),
      i64(tables, plan->workspace_per_batch),
      i64(tables, work_scratch_bytes(tables->work, plan->kernel_count)),
      i64(tables, plan->prepared_bytes),
      i64(tables, plan->prepare_scratch),
      function_named(tables, "check"),
      options->embed ? embedded_weights(tables) : null(tables),
      function_named(tables, "prepare"),
      function_named(tables, "run"),
      string(tables, plan->metadata != NULL ? plan->metadata : ""),
      slots(tables),
      u32(tables, (uint32_t)plan->slot_count),
      u32(tables, (uint32_t)plan->group_rows),
      u32(tables, (uint32_t)plan->chunk),
      u32(tables, plan->batch_unit > 1 ? (uint32_t)plan->batch_unit : 1),
      u32(tables, (uint32_t)plan->stretch_images),
      u32(tables, 0),
  };
  Value program = LLVMGetNamedGlobal(tables->module, arena_format(tables->arena, "%s_program", tables->symbol));
  LLVMSetInitializer(program, named_struct(tables, "kiln_program", fields, sizeof fields / sizeof fields[0]));
}

/* Feature bits of the psABI's levels, as $_check compares them: see entry_x86.ll for the order. */
static void fill_needs(const Tables *tables) {
  enum {
    V2_LEAF_1 = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23,     /* sse3 ssse3 cx16 sse4.1 sse4.2 popcnt */
    V3_LEAF_1 = V2_LEAF_1 | 1 << 12 | 1 << 22 | 1 << 27 | 1 << 28 | 1 << 29, /* fma movbe osxsave avx f16c */
    V3_LEAF_7 = 1 << 3 | 1 << 5 | 1 << 8,                                    /* bmi1 avx2 bmi2 */
    LAHF = 1 << 0,
    LZCNT = 1 << 5,
    YMM_SAVED = 1 << 1 | 1 << 2,
    ZMM_SAVED = YMM_SAVED | 1 << 5 | 1 << 6 | 1 << 7,
    TILES = 1 << 22 | 1 << 24, /* amx-bf16 amx-tile */
    TILES_SAVED = 1 << 17 | 1 << 18,
  };
  bool tiles = false;
  for (size_t i = 0; i < tables->plan->kernel_count; i++) tiles |= conv_uses_tiles(&tables->plan->kernels[i]);
  const uint32_t v4_leaf_7 = V3_LEAF_7 | 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31; /* f dq cd bw vl */
  const char *isa = tables->plan->target->isa;
  bool v4 = strcmp(isa, "x86-64-v4") == 0, v3 = v4 || strcmp(isa, "x86-64-v3") == 0;
  Value fields[] = {
      u32(tables, v3 ? V3_LEAF_1 : V2_LEAF_1),
      u32(tables, v4   ? v4_leaf_7
                  : v3 ? V3_LEAF_7
                       : 0),
      u32(tables, v3 ? LAHF | LZCNT : LAHF),
      u32(tables, (tiles ? TILES_SAVED : 0) | (v4   ? ZMM_SAVED
                                               : v3 ? YMM_SAVED
                                                    : 0)),
      u32(tables, tiles ? TILES : 0),
  };
  Value needs = LLVMGetNamedGlobal(tables->module, arena_format(tables->arena, "%s_needs", tables->symbol));
  LLVMSetInitializer(needs, LLVMConstStructInContext(tables->context, fields, sizeof fields / sizeof fields[0], 0));
}

static void add_with_symbol(Text *text, const char *source, const char *symbol) {
  for (const char *mark; (mark = strchr(source, '$')) != NULL; source = mark + 1) {
    text_add_n(text, source, (size_t)(mark - source));
    text_add(text, symbol);
  }
  text_add(text, source);
}

/* A training step: runs with the caller's state for parameters. Its pointers come first in the table. */
static const char step_entry[] =
    "define i32 @$_step(ptr %weights, ptr %state, ptr %workspace, ptr %io) {\n"
    "  %own = alloca %kiln_weights, align 16\n"
    "  %no_weights = icmp eq ptr %weights, null\n"
    "  br i1 %no_weights, label %argument, label %given\n"
    "given:\n"
    "  %copy = load %kiln_weights, ptr %weights\n"
    "  %with_state = insertvalue %kiln_weights %copy, ptr %state, 2\n"
    "  store %kiln_weights %with_state, ptr %own\n"
    "  %status = call i32 @$_run(ptr %own, ptr %workspace, ptr %io)\n"
    "  ret i32 %status\n"
    "argument:\n"
    "  ret i32 1                                         ; KILN_ERROR_ARGUMENT\n"
    "}\n";

LLVMModuleRef tables_build(LLVMContextRef context, const Plan *plan, const KernelWork *work, const char *symbol,
                           const CpuOptions *options, Arena *arena, Diag *diag) {
  for (size_t i = 0; i < plan->kernel_count; i++) {
    const PlanKernel *kernel = &plan->kernels[i];
    const int32_t operands = 1 + kernel->input_count + kernel->reduction_count;
    if (operands <= KILN_MAX_OPERANDS) continue;
    diag_error(diag, kernel->location, "'%s' has %d operands after fusion, at most %d are possible", kernel->name,
               operands, KILN_MAX_OPERANDS);
    return NULL;
  }
  bool x86 = strncmp(plan->target->triple, "x86_64", 6) == 0;
  Text text;
  text_init(&text, arena);
  add_with_symbol(&text, text_entry, symbol);
  add_with_symbol(&text, x86 ? text_entry_x86 : "define i32 @$_check() {\n  ret i32 0\n}\n", symbol);
  if (plan->slot_count > 0) add_with_symbol(&text, step_entry, symbol);
  LLVMMemoryBufferRef buffer = LLVMCreateMemoryBufferWithMemoryRangeCopy(text.data, text.size, "entry.ll");
  LLVMModuleRef module;
  char *message = NULL;
  if (LLVMParseIRInContext(context, buffer, &module, &message)) {
    diag_error(diag, (Location){0}, "internal error: entry points do not parse: %s", message);
    LLVMDisposeMessage(message);
    return NULL;
  }
  Tables tables = {
      .context = context,
      .module = module,
      .i32 = LLVMInt32TypeInContext(context),
      .i64 = LLVMInt64TypeInContext(context),
      .pointer = LLVMPointerTypeInContext(context, 0),
      .plan = plan,
      .work = work,
      .symbol = symbol,
      .arena = arena,
  };
  fill_program(&tables, options);
  if (x86) fill_needs(&tables);
  return module;
}
