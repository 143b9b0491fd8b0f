/* The code generator's driver: tables, entry points, linking, headers. Kernels have tests of their own. */
#include <dlfcn.h>
#include <elf.h>
#include <math.h>
#include <sys/wait.h>

#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/Target.h>

#include "base/file.h"
#include "codegen.h"
#include "description.h"
#include "hand_plan.h"
#include "passes.h"
#include "support.h"
#include "texts.h"

enum { WIDTH = 37, MAX_BATCH = 4 };

/* --- a program of several steps ----------------------------------------------------------------------- */

static Target target_of(Fixture *fixture, const char *isa, const char *triple) {
  Target target;
  if (!cpu_target(isa, triple, fixture->arena, fixture->diag, &target))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return target;
}

static PlanTensor placed(const char *name, bool batched, Space space, int64_t place) {
  Shape shape = batched ? (Shape){2, {DIM_BATCH, WIDTH}} : (Shape){1, {WIDTH}};
  bool indexed = space == SPACE_PARAMETER || space == SPACE_INPUT || space == SPACE_OUTPUT;
  PlanTensor tensor = hand_tensor(name, shape, space, indexed ? (int32_t)place : 0);
  if (!indexed) tensor.storage.offset = place;
  return tensor;
}

static PlanKernel binary(Arena *arena, OpCode op, PlanTensor output, PlanTensor a, PlanTensor b) {
  const PlanTensor inputs[] = {a, b};
  return *hand_kernel(arena, op, output, inputs, op_info(op)->kind == OP_KIND_UNARY ? 1 : 2);
}

/* prepare: t = -weight, p = t * t;
 * run: s = exp(p) (one for all images), a = x * p, b = a * p (the same code), y = b + s, hook = relu(a) */
static Plan *small_plan(Fixture *fixture, const char *name, const Target *target) {
  Arena *arena = fixture->arena;
  enum { SLOT = 192 };
  PlanTensor weight = placed("weight", false, SPACE_PARAMETER, 0), t = placed("t", false, SPACE_SCRATCH, 0);
  PlanTensor p = placed("p", false, SPACE_PREPARED, 0), s = placed("s", false, SPACE_WORKSPACE, 0);
  PlanTensor x = placed("x", true, SPACE_INPUT, 0), a = placed("layer.a", true, SPACE_WORKSPACE, 0);
  PlanTensor b = placed("layer.b", true, SPACE_WORKSPACE, SLOT), y = placed("y", true, SPACE_OUTPUT, 0);
  PlanTensor hook = placed("hook.a", true, SPACE_OUTPUT, 1);
  const PlanKernel kernels[] = {
      binary(arena, OP_NEG, t, weight, weight), binary(arena, OP_MUL, p, t, t), binary(arena, OP_EXP, s, p, p),
      binary(arena, OP_MUL, a, x, p),           binary(arena, OP_MUL, b, a, p), binary(arena, OP_ADD, y, b, s),
      binary(arena, OP_RELU, hook, a, a),
  };
  enum { COUNT = sizeof kernels / sizeof *kernels };
  Plan *plan = hand_plan(arena, name, target, arena_copy(arena, kernels, sizeof kernels), MAX_BATCH);
  for (uint32_t i = 0; i < COUNT; i++) plan->kernels[i].code = i == 4 ? 3 : i;
  plan->kernel_count = COUNT;
  plan->prepare_count = 2;
  plan->inputs = arena_new(arena, PlanPort);
  plan->inputs[0] = (PlanPort){"x", DTYPE_F32, x.shape};
  plan->input_count = 1;
  plan->outputs = arena_array(arena, 2, PlanPort);
  plan->outputs[0] = (PlanPort){"y", DTYPE_F32, y.shape};
  plan->outputs[1] = (PlanPort){"hook.a", DTYPE_F32, hook.shape};
  plan->output_count = 2;
  plan->hook_output_count = 1;
  plan->parameters = arena_new(arena, PlanPort);
  plan->parameters[0] = (PlanPort){"weight", DTYPE_F32, weight.shape};
  plan->parameter_count = 1;
  plan->workspace_fixed = SLOT;
  plan->workspace_per_batch = 2 * SLOT;
  plan->prepared_bytes = SLOT;
  plan->prepare_scratch = SLOT;
  return plan;
}

static CpuObjects compiled(Fixture *fixture, const Plan *plan, const CpuOptions *options) {
  CpuObjects objects;
  if (!cpu_compile(plan, options, fixture->arena, fixture->diag, &objects))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return objects;
}

static const kiln_program *loaded(Fixture *fixture, const CpuObjects *objects) {
  const kiln_program *program;
  if (!jit_load(objects, fixture->arena, fixture->diag, &program))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return program;
}

static void linked(Fixture *fixture, const Target *target, const Code *objects, size_t count, const char *soname,
                   const char *path) {
  if (!link_objects(target, objects, count, soname, false, path, fixture->arena, fixture->diag))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
}

typedef struct SmallIo {
  kiln_io head;
  const float *x;
  float *y, *hook;
} SmallIo;

typedef struct SmallRun {
  float weight[WIDTH], x[MAX_BATCH * WIDTH], y[MAX_BATCH * WIDTH], hook[MAX_BATCH * WIDTH];
  const void *parameters[1];
  _Alignas(64) char prepared[192];
  _Alignas(64) char memory[16384];
  kiln_weights weights;
  SmallIo io;
} SmallRun;

static SmallRun *small_run(Fixture *fixture) {
  SmallRun *run = arena_alloc_aligned(fixture->arena, sizeof(SmallRun), 64);
  memset(run, 0, sizeof *run);
  for (int i = 0; i < WIDTH; i++) run->weight[i] = (float)(i - 18) / 16;
  for (int i = 0; i < MAX_BATCH * WIDTH; i++) run->x[i] = (float)(i % 29 - 14) / 8;
  run->parameters[0] = run->weight;
  run->io = (SmallIo){{.batch = MAX_BATCH, .threads = 1}, run->x, run->y, run->hook};
  return run;
}

static void prepare(SmallRun *run, const kiln_program *program) {
  assert_int_equal(program->prepare(run->parameters, run->prepared, run->memory, NULL), KILN_OK);
  run->weights = (kiln_weights){program, run->prepared, NULL};
}

static void check_results(const SmallRun *run) {
  for (int i = 0; i < run->io.head.batch * WIDTH; i++) {
    float w = run->weight[i % WIDTH], p = w * w, a = run->x[i] * p;
    double y = (double)(a * p) + exp(p);
    if (fabs(run->y[i] - y) > 1e-6 * (1 + fabs(y))) fail_msg("y[%d] is %g, expected %g", i, (double)run->y[i], y);
    if (run->hook[i] != (a > 0 ? a : 0)) fail_msg("hook[%d]", i);
  }
}

/* --- tables ------------------------------------------------------------------------------------------- */

#define OFFSETS(type, ...)                         \
  {                                                \
#type, sizeof(type), { __VA_ARGS__, SIZE_MAX } \
  }
#define AT(field) offsetof(STRUCT, field)

typedef struct TypeCase {
  const char *name;
  size_t size, offsets[40];
} TypeCase;

/* entry.ll writes the structs of kiln_abi.h down once more. */
static void test_types_match_the_abi(void **state) {
  Fixture *fixture = *state;
  static const TypeCase types[] = {
#define STRUCT kiln_call
      OFFSETS(kiln_call, AT(operands), AT(batch), AT(scratch), AT(scratch_stride)),
#undef STRUCT
#define STRUCT kiln_operand
      OFFSETS(kiln_operand, AT(space), AT(index), AT(offset), AT(offset_per_batch)),
#undef STRUCT
#define STRUCT kiln_view
      OFFSETS(kiln_view, AT(dtype), AT(rank), AT(dims), AT(stride), AT(origin), AT(block), AT(block_dim), AT(reserved)),
#undef STRUCT
#define STRUCT kiln_step
      OFFSETS(kiln_step, AT(kernel), AT(name), AT(kind), AT(operands), AT(operand_count), AT(reserved), AT(items),
              AT(items_per_batch), AT(scratch_bytes), AT(flops), AT(flops_per_batch), AT(bytes), AT(bytes_per_batch),
              AT(view)),
#undef STRUCT
#define STRUCT kiln_port
      OFFSETS(kiln_port, AT(name), AT(dtype), AT(rank), AT(dims), AT(bytes), AT(batched), AT(reserved)),
#undef STRUCT
#define STRUCT kiln_io
      OFFSETS(kiln_io, AT(batch), AT(parallel_for), AT(pool), AT(threads), AT(reserved)),
#undef STRUCT
#define STRUCT kiln_weights
      OFFSETS(kiln_weights, AT(program), AT(prepared), AT(parameters)),
#undef STRUCT
#define STRUCT kiln_weights_head
      OFFSETS(kiln_weights_head, AT(magic), AT(identity), AT(prepared_bytes), AT(checksum), AT(reserved)),
#undef STRUCT
#define STRUCT kiln_program
      OFFSETS(kiln_program, AT(abi_version), AT(struct_size), AT(name), AT(kiln_version), AT(isa), AT(triple),
              AT(identity), AT(inputs), AT(outputs), AT(parameters), AT(hooks), AT(input_count), AT(output_count),
              AT(parameter_count), AT(hook_count), AT(prepare_steps), AT(run_steps), AT(prepare_step_count),
              AT(run_step_count), AT(max_batch), AT(max_threads), AT(reserved), AT(workspace_fixed),
              AT(workspace_per_batch), AT(scratch_bytes), AT(prepared_bytes), AT(prepare_scratch), AT(check),
              AT(embedded), AT(prepare), AT(run), AT(metadata)),
#undef STRUCT
  };
  Text text;
  text_init(&text, fixture->arena);
  text_add(&text, "declare i32 @_check()\n");
  for (const char *at = text_entry; *at != '\0'; at++) {
    if (*at != '$') text_add_n(&text, at, 1);
  }
  LLVMContextRef context = LLVMContextCreate();
  LLVMModuleRef module;
  char *message = NULL;
  if (LLVMParseIRInContext(context, LLVMCreateMemoryBufferWithMemoryRangeCopy(text.data, text.size, "entry"), &module,
                           &message))
    fail_msg("%s", message);
  LLVMTargetDataRef layout = LLVMCreateTargetData("e-m:e-i64:64-i128:128-n8:16:32:64-S128");
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    LLVMTypeRef type = LLVMGetTypeByName2(context, types[i].name);
    assert_non_null(type);
    unsigned count = 0;
    for (; types[i].offsets[count] != SIZE_MAX; count++) {
      if (count >= LLVMCountStructElementTypes(type) ||
          LLVMOffsetOfElement(layout, type, count) != types[i].offsets[count])
        fail_msg("%s: field %u", types[i].name, count);
    }
    assert_int_equal(LLVMCountStructElementTypes(type), count);
    assert_int_equal(LLVMABISizeOfType(layout, type), types[i].size);
  }
  LLVMDisposeTargetData(layout);
  LLVMDisposeModule(module);
  LLVMContextDispose(context);
}

static void test_describe(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  Plan *plan = small_plan(fixture, "a model/1", &target);
  const CpuOptions options = {.max_threads = 5};
  CpuObjects objects = compiled(fixture, plan, &options);
  assert_string_equal(objects.symbol, "a_model_1");
  assert_int_equal(objects.count, 7); /* six different kernels and the tables */
  const kiln_program *program = loaded(fixture, &objects);
  assert_int_equal(program->abi_version, KILN_ABI_VERSION);
  assert_int_equal(program->struct_size, sizeof(kiln_program));
  assert_string_equal(program->name, "a model/1");
  assert_string_equal(program->kiln_version, KILN_VERSION);
  assert_string_equal(program->isa, target.isa);
  assert_string_equal(program->triple, target.triple);
  assert_int_equal(program->identity, 42);
  assert_int_equal(program->input_count, 1);
  assert_int_equal(program->output_count, 2);
  assert_int_equal(program->hook_count, 1);
  assert_ptr_equal(program->hooks, program->outputs + 1);
  assert_string_equal(program->hooks->name, "hook.a");
  assert_string_equal(program->parameters->name, "weight");
  assert_int_equal(program->inputs->rank, 2);
  assert_int_equal(program->inputs->dims[0], -1);
  assert_int_equal(program->inputs->dims[1], WIDTH);
  assert_int_equal(program->inputs->bytes, 4 * WIDTH);
  assert_int_equal(program->inputs->batched, 1);
  assert_int_equal(program->parameters->batched, 0);
  assert_int_equal(program->max_threads, 5);
  assert_int_equal(program->max_batch, MAX_BATCH);
  assert_int_equal(program->prepare_step_count, 2);
  assert_int_equal(program->run_step_count, 5);
  assert_null(program->embedded);
  assert_int_equal(program->check(), KILN_OK);
  const kiln_step *a = &program->run_steps[1], *b = &program->run_steps[2];
  assert_string_equal(b->name, "layer.b");
  assert_string_equal(b->kind, "mul");
  assert_string_equal(program->metadata, "");
  assert_true(a->kernel == b->kernel);
  assert_int_equal(b->operand_count, 3);
  assert_int_equal(b->operands[0].space, KILN_SPACE_WORKSPACE);
  assert_int_equal(b->operands[0].offset, plan->workspace_fixed);
  assert_int_equal(b->operands[0].offset_per_batch, 192);
  assert_int_equal(b->operands[2].space, KILN_SPACE_PREPARED);
  assert_int_equal(b->items, 0);
  assert_int_equal(b->items_per_batch, 1);
  assert_int_equal(b->view.stride[0], WIDTH);
  assert_int_equal(b->view.block, 1);
  assert_true(b->bytes_per_batch == 2 * 4 * WIDTH && b->bytes == 4 * WIDTH);
}

/* --- running ------------------------------------------------------------------------------------------ */

static int failing_parallel_for(void *pool, kiln_task task, void *context, int64_t count) {
  int *calls = pool;
  if (++*calls == 2) return 77;
  task(context, 1, 0, count);
  return 0;
}

static void test_run(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
  const kiln_program *program = loaded(fixture, &objects);
  SmallRun *run = small_run(fixture);
  prepare(run, program);
  for (run->io.head.batch = 1; run->io.head.batch <= MAX_BATCH; run->io.head.batch++) {
    memset(run->y, 0xFF, sizeof run->y);
    assert_int_equal(program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
    check_results(run);
  }
}

static void test_run_refuses(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
  const kiln_program *program = loaded(fixture, &objects);
  SmallRun *run = small_run(fixture);
  kiln_io *io = &run->io.head;
  prepare(run, program);
  assert_int_equal(program->run(NULL, run->memory, io), KILN_ERROR_ARGUMENT);
  assert_int_equal(program->run(&run->weights, run->memory, NULL), KILN_ERROR_ARGUMENT);
  assert_int_equal(program->run(&run->weights, NULL, io), KILN_ERROR_ARGUMENT);
  assert_int_equal(program->run(&run->weights, run->memory + 32, io), KILN_ERROR_ARGUMENT);
  io->threads = 65;
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_ERROR_ARGUMENT);
  io->threads = 0;
  io->batch = -1;
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_ERROR_BATCH);
  io->batch = MAX_BATCH + 1;
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_ERROR_BATCH);
  io->batch = 0;
  run->y[0] = 123;
  assert_int_equal(program->run(&run->weights, NULL, io), KILN_OK);
  assert_true(run->y[0] == 123);
  io->batch = 1;
  run->io.y = NULL;
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_ERROR_ARGUMENT);
  run->io.y = run->y;
  run->weights.prepared = NULL;
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_ERROR_WEIGHTS);
  run->weights = (kiln_weights){NULL, run->prepared, NULL};
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_ERROR_WEIGHTS);
  run->weights.program = program;
  int calls = 0;
  io->parallel_for = failing_parallel_for;
  io->pool = &calls;
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_OK); /* one thread: not asked */
  io->threads = 2;
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_ERROR_CALLBACK);
  assert_int_equal(calls, 2);
  assert_int_equal(program->prepare(NULL, run->prepared, run->memory, NULL), KILN_ERROR_WEIGHTS);
  assert_int_equal(program->prepare(run->parameters, NULL, run->memory, NULL), KILN_ERROR_ARGUMENT);
  assert_int_equal(program->prepare(run->parameters, run->prepared, NULL, NULL), KILN_ERROR_ARGUMENT);
}

/* --- libraries ---------------------------------------------------------------------------------------- */

typedef struct Library {
  void *handle;
  const kiln_program *program;
} Library;

static void *library_symbol(const Library *library, const char *symbol) { return dlsym(library->handle, symbol); }

#define LIBRARY_FUNCTION(pointer, library, symbol)    \
  do {                                                \
    void *address_ = library_symbol(library, symbol); \
    assert_non_null(address_);                        \
    memcpy(&(pointer), &address_, sizeof address_);   \
  } while (0)

static Library library_load(const char *path, const char *describe_symbol) {
  Library library = {.handle = dlopen(path, RTLD_NOW | RTLD_LOCAL)};
  if (library.handle == NULL) fail_msg("%s", dlerror());
  const kiln_program *(*describe)(void);
  LIBRARY_FUNCTION(describe, &library, describe_symbol);
  library.program = describe();
  return library;
}

/* The machine code is the same whether it is loaded from memory or through the system's linker. */
static void test_library_equals_jit(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
  const char *path = fixture_path(fixture, "libnet.so");
#ifdef __x86_64__
  uint32_t before = __builtin_ia32_stmxcsr();
#endif
  linked(fixture, &target, objects.objects, objects.count, "libnet.so", path);
  Library library = library_load(path, "net_describe");
#ifdef __x86_64__
  assert_int_equal(__builtin_ia32_stmxcsr(), before);
#endif
  SmallRun *jit = small_run(fixture), *file = small_run(fixture);
  prepare(jit, loaded(fixture, &objects));
  prepare(file, library.program);
  assert_int_equal(jit->weights.program->run(&jit->weights, jit->memory, &jit->io.head), KILN_OK);
  assert_int_equal(library.program->run(&file->weights, file->memory, &file->io.head), KILN_OK);
  check_results(file);
  assert_memory_equal(jit->y, file->y, sizeof file->y);
  assert_memory_equal(jit->hook, file->hook, sizeof file->hook);
  assert_memory_equal(jit->prepared, file->prepared, sizeof file->prepared);
  /* nothing but the entry points is visible */
  assert_null(library_symbol(&library, "net_k0"));
  assert_null(library_symbol(&library, "net_program"));
  dlclose(library.handle);
}

static void test_rebuilds_are_equal(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "x86-64-v3", "x86_64-pc-linux-gnu");
  Plan *plan = small_plan(fixture, "net", &target);
  const CpuOptions one = {.threads = 1}, three = {.threads = 3};
  CpuObjects a = compiled(fixture, plan, &one), b = compiled(fixture, plan, &three);
  assert_int_equal(a.count, b.count);
  for (size_t i = 0; i < a.count; i++) {
    assert_int_equal(a.objects[i].size, b.objects[i].size);
    assert_memory_equal(a.objects[i].data, b.objects[i].data, a.objects[i].size);
  }
  void *data[2];
  size_t size[2];
  for (int i = 0; i < 2; i++) {
    const char *path = fixture_path(fixture, i == 0 ? "first.so" : "second.so");
    linked(fixture, &target, i == 0 ? a.objects : b.objects, a.count, "libnet.so", path);
    assert_true(file_read(path, 1 << 24, fixture->arena, fixture->diag, &data[i], &size[i]));
  }
  assert_int_equal(size[0], size[1]);
  assert_memory_equal(data[0], data[1], size[0]);
}

static void test_two_programs(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  Plan *plans[2] = {small_plan(fixture, "one", &target), small_plan(fixture, "two", &target)};
  plans[1]->kernels[3].op = plans[1]->kernels[4].op = OP_ADD;
  Library libraries[2];
  for (int i = 0; i < 2; i++) {
    CpuObjects objects = compiled(fixture, plans[i], NULL);
    const char *path = fixture_path(fixture, arena_format(fixture->arena, "%d.so", i));
    linked(fixture, &target, objects.objects, objects.count, "libsame.so", path);
    libraries[i] = library_load(path, arena_format(fixture->arena, "%s_describe", objects.symbol));
  }
  SmallRun *run = small_run(fixture), *other = small_run(fixture);
  prepare(run, libraries[0].program);
  prepare(other, libraries[1].program);
  assert_int_equal(libraries[1].program->run(&other->weights, other->memory, &other->io.head), KILN_OK);
  assert_int_equal(libraries[0].program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
  check_results(run);
  assert_true(other->hook[0] == fmaxf(0, other->x[0] + other->weight[0] * other->weight[0]));
  assert_int_equal(libraries[0].program->run(&other->weights, other->memory, &other->io.head), KILN_ERROR_WEIGHTS);
  for (int i = 0; i < 2; i++) dlclose(libraries[i].handle);
}

/* --- weights ------------------------------------------------------------------------------------------ */

static uint64_t checksum(const char *bytes, size_t size) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001b3);
  return hash;
}

static void test_embedded_weights(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  Plan *plan = small_plan(fixture, "net", &target);
  SmallRun *run = small_run(fixture);
  CpuObjects plain = compiled(fixture, plan, NULL);
  prepare(run, loaded(fixture, &plain));
  const CpuOptions options = {.embed = true};
  CpuObjects objects = compiled(fixture, plan, &options);
  Code *all = arena_array(fixture->arena, objects.count + 1, Code);
  memcpy(all, objects.objects, objects.count * sizeof *all);
  assert_true(elf_blob(&target, "net_embedded_weights", run->prepared, sizeof run->prepared, fixture->arena,
                       fixture->diag, &all[objects.count]));
  const char *path = fixture_path(fixture, "libnet.so");
  linked(fixture, &target, all, objects.count + 1, "libnet.so", path);
  Library library = library_load(path, "net_describe");
  assert_non_null(library.program->embedded);
  assert_int_equal((uintptr_t)library.program->embedded % KILN_ALIGNMENT, 0);
  assert_memory_equal(library.program->embedded, run->prepared, sizeof run->prepared);
  assert_null(library_symbol(&library, "net_embedded_weights"));
  int (*weights_embedded)(kiln_weights *);
  LIBRARY_FUNCTION(weights_embedded, &library, "net_weights_embedded");
  assert_int_equal(weights_embedded(&run->weights), KILN_OK);
  assert_int_equal(library.program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
  check_results(run);
  dlclose(library.handle);
}

static void test_weights_file(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
  const char *path = fixture_path(fixture, "libnet.so");
  linked(fixture, &target, objects.objects, objects.count, "libnet.so", path);
  Library library = library_load(path, "net_describe");
  int (*weights_open)(kiln_weights *, const void *, size_t), (*weights_embedded)(kiln_weights *);
  LIBRARY_FUNCTION(weights_open, &library, "net_weights_open");
  LIBRARY_FUNCTION(weights_embedded, &library, "net_weights_embedded");
  int (*weights_prepare)(kiln_weights *, const void *const *, void *, void *, const kiln_io *);
  LIBRARY_FUNCTION(weights_prepare, &library, "net_weights_prepare");
  SmallRun *run = small_run(fixture);
  assert_int_equal(weights_embedded(&run->weights), KILN_ERROR_WEIGHTS);
  assert_int_equal(weights_prepare(&run->weights, run->parameters, run->prepared, run->memory, NULL), KILN_OK);
  assert_ptr_equal(run->weights.program, library.program);
  assert_int_equal(library.program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
  check_results(run);

  enum { SIZE = sizeof(kiln_weights_head) + sizeof run->prepared };
  char *file = arena_alloc_aligned(fixture->arena, SIZE, KILN_ALIGNMENT);
  kiln_weights_head head = {.identity = 42, .prepared_bytes = sizeof run->prepared};
  memcpy(head.magic, "KILNWTS1", sizeof head.magic);
  head.checksum = checksum(run->prepared, sizeof run->prepared);
  memcpy(file, &head, sizeof head);
  memcpy(file + sizeof head, run->prepared, sizeof run->prepared);
  memset(&run->weights, 0, sizeof run->weights);
  assert_int_equal(weights_open(&run->weights, file, SIZE), KILN_OK);
  assert_int_equal(library.program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
  check_results(run);
  assert_int_equal(weights_open(NULL, file, SIZE), KILN_ERROR_ARGUMENT);
  assert_int_equal(weights_open(&run->weights, NULL, SIZE), KILN_ERROR_ARGUMENT);
  assert_int_equal(weights_open(&run->weights, file + 1, SIZE), KILN_ERROR_ARGUMENT);
  assert_int_equal(weights_open(&run->weights, file, SIZE - 1), KILN_ERROR_WEIGHTS);
  assert_int_equal(weights_open(&run->weights, file, 3), KILN_ERROR_WEIGHTS);
  /* a flipped bit anywhere but in the reserved bytes */
  for (size_t i = 0; i < SIZE; i++) {
    if (i >= offsetof(kiln_weights_head, reserved) && i < sizeof head) continue;
    file[i] ^= 4;
    assert_int_equal(weights_open(&run->weights, file, SIZE), KILN_ERROR_WEIGHTS);
    file[i] ^= 4;
  }
  assert_int_equal(weights_open(&run->weights, file, SIZE), KILN_OK);
  dlclose(library.handle);
}

/* --- objects ------------------------------------------------------------------------------------------ */

/* Calls visit for every undefined symbol. Returns e_machine. */
static int object_undefined(const Code *object, void (*visit)(void *context, const char *name), void *context) {
  const char *data = object->data;
  const Elf64_Ehdr *head = object->data;
  const Elf64_Shdr *sections = (const void *)(data + head->e_shoff);
  for (unsigned i = 0; i < head->e_shnum; i++) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const Elf64_Sym *symbols = (const void *)(data + sections[i].sh_offset);
    const char *strings = data + sections[sections[i].sh_link].sh_offset;
    for (size_t s = 1; s < sections[i].sh_size / sizeof *symbols; s++) {
      if (symbols[s].st_shndx == SHN_UNDEF) visit(context, strings + symbols[s].st_name);
    }
  }
  return head->e_machine;
}

static void refuse_symbol(void *context, const char *name) {
  fail_msg("%s refers to '%s'", (const char *)context, name);
}

static void allow_kernels(void *context, const char *name) {
  (void)context;
  if (strncmp(name, "net_k", 5) != 0) fail_msg("tables refer to '%s'", name);
}

/* A kernel calls nothing: no libm, no memcpy. Every element-wise op, because they hold all of the mathematics. */
static void test_no_calls(void **state) {
  Fixture *fixture = *state;
  static const char *const isas[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"};
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
    Target target = target_of(fixture, isas[i], NULL);
    int machine = strcmp(isas[i], "aarch64") == 0 ? EM_AARCH64 : EM_X86_64;
    for (OpCode op = 0; op < OP_COUNT; op++) {
      if (!op_is_elementwise(op)) continue;
      const PlanTensor x[] = {placed("x", true, SPACE_INPUT, 0), placed("b", true, SPACE_INPUT, 1)};
      PlanKernel *kernel = hand_kernel(fixture->arena, op, placed("y", true, SPACE_OUTPUT, 0), x,
                                       op_info(op)->kind == OP_KIND_UNARY ? 1 : 2);
      CpuObjects objects = compiled(fixture, hand_plan(fixture->arena, "net", &target, kernel, 1), NULL);
      assert_int_equal(objects.count, 2);
      assert_int_equal(object_undefined(&objects.objects[0], refuse_symbol, arena_string(fixture->arena, isas[i])),
                       machine);
      object_undefined(&objects.objects[1], allow_kernels, NULL);
    }
  }
}

/* Bytes that the largest frame of the assembly takes. */
static long largest_frame(const char *assembly) {
  long largest = 0;
  for (const char *at = assembly; (at = strstr(at, "subq\t$")) != NULL; at++) {
    char *end;
    long bytes = strtol(at + strlen("subq\t$"), &end, 10);
    if (strncmp(end, ", %rsp", 6) == 0 && bytes > largest) largest = bytes;
  }
  return largest;
}

static void test_stack_frames(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "x86-64-v4", "x86_64-linux-gnu");
  Text text;
  text_init(&text, fixture->arena);
  assert_true(cpu_print(small_plan(fixture, "net", &target), NULL, true, fixture->arena, fixture->diag, &text));
  assert_non_null(strstr(text.data, "# layer.a: mul(f32[N,37] plain, f32[37] plain) -> f32[N,37] plain\n"));
  assert_true(largest_frame("\tsubq\t$17000, %rsp\n") == 17000);
  assert_true(largest_frame(text.data) <= 16384);
}

/* The kernels of whole networks: their frames are small, and they call nothing. */
static void test_networks(void **state) {
  Fixture *fixture = *state;
  static const char *const names[] = {"simple_cnn10_bn", "mobilenet_v2", "resnet34_pets"};
  static const char *const isas[] = {"x86-64-v2", "x86-64-v4"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    for (size_t t = 0; t < sizeof isas / sizeof *isas; t++) {
      const ImportOptions import = {0};
      const char *path = arena_format(fixture->arena, KILN_SOURCE_DIR "/examples/%s.json", names[i]);
      Graph *graph;
      Plan *plan;
      Target target = target_of(fixture, isas[t], "x86_64-linux-gnu");
      Arena *scratch = arena_create(NULL);
      const PassOptions options = {.target = &target, .scratch = scratch};
      const PipelineOptions pipeline = {0};
      Text text;
      text_init(&text, fixture->arena);
      if (!description_read(path, &import, fixture->arena, fixture->diag, &graph) ||
          !pipeline_run(graph, &options, &pipeline, fixture->diag, &plan) ||
          !cpu_print(plan, NULL, true, fixture->arena, fixture->diag, &text))
        fail_msg("%s", diag_text(fixture->diag, fixture->arena));
      arena_destroy(scratch);
      if (largest_frame(text.data) > 16384) fail_msg("%s: a frame of %ld bytes", names[i], largest_frame(text.data));
      char *tables = strstr(text.data, "# tables and entry points");
      assert_non_null(tables);
      *tables = '\0';
      const char *call = strstr(text.data, "\tcall");
      if (call != NULL) fail_msg("%s for %s: %.40s", names[i], isas[t], call);
    }
  }
}

static void test_print_ir(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "aarch64", NULL);
  Text text;
  text_init(&text, fixture->arena);
  Plan *plan = small_plan(fixture, "net", &target);
  plan->kernels[0].name = "a\nb";
  assert_true(cpu_print(plan, NULL, false, fixture->arena, fixture->diag, &text));
  assert_non_null(strstr(text.data, "; a?b: neg("));
  assert_non_null(strstr(text.data, "define hidden void @net_k3(ptr %call, i32 %thread, i64 %begin, i64 %end)"));
  assert_non_null(strstr(text.data, "define i32 @net_run("));
}

static int shell(const char *command) {
  int status = system(command);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_cross_library(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "aarch64", "aarch64-linux-gnu");
  CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
  const char *path = fixture_path(fixture, "libnet.so");
  linked(fixture, &target, objects.objects, objects.count, "libnet.so", path);
  void *data;
  size_t size;
  assert_true(file_read(path, 1 << 24, fixture->arena, fixture->diag, &data, &size));
  Elf64_Ehdr head;
  memcpy(&head, data, sizeof head);
  assert_int_equal(head.e_machine, EM_AARCH64);
  assert_int_equal(head.e_type, ET_DYN);
}

/* --- processors --------------------------------------------------------------------------------------- */

static void write_file(const char *path, const char *text) {
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs(text, file);
  assert_int_equal(fclose(file), 0);
}

/* A host program in C, run under an emulated processor without AVX-512. */
static void test_refused_by_older_processor(void **state) {
  Fixture *fixture = *state;
  if (shell("command -v qemu-x86_64 >/dev/null && command -v cc >/dev/null") != 0) {
    print_message("no qemu-x86_64 or cc: skipped\n");
    skip();
  }
  static const char *const isas[] = {"x86-64-v3", "x86-64-v4"};
  static const int expected[] = {KILN_OK, KILN_ERROR_CPU};
  const char *source = fixture_path(fixture, "host.c"), *host = fixture_path(fixture, "host");
  write_file(source,
             "#include <dlfcn.h>\n"
             "int main(int count, char **arguments) {\n"
             "  void *library = dlopen(arguments[1], RTLD_NOW);\n"
             "  if (count < 2 || !library) return 100;\n"
             "  int (*check)(void) = (int (*)(void))dlsym(library, \"net_check\");\n"
             "  int (*weights)(void *, const void *, unsigned long) =\n"
             "      (int (*)(void *, const void *, unsigned long))dlsym(library, \"net_weights_open\");\n"
             "  static _Alignas(64) char file[64];\n"
             "  char result[24];\n"
             "  int status = check();\n"
             "  if (status && weights(result, file, 64) != status) return 101;\n"
             "  return status;\n"
             "}\n");
  if (shell(arena_format(fixture->arena, "cc -o '%s' '%s' -ldl", host, source)) != 0) fail_msg("cc failed");
  for (int i = 0; i < 2; i++) {
    Target target = target_of(fixture, isas[i], "x86_64-linux-gnu");
    CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
    const char *path = fixture_path(fixture, arena_format(fixture->arena, "%s.so", isas[i]));
    linked(fixture, &target, objects.objects, objects.count, NULL, path);
    int status = shell(arena_format(fixture->arena, "qemu-x86_64 -cpu Haswell '%s' '%s' 2>/dev/null", host, path));
    assert_int_equal(status, expected[i]);
    /* the oldest processor has neither */
    status = shell(arena_format(fixture->arena, "qemu-x86_64 -cpu core2duo '%s' '%s' 2>/dev/null", host, path));
    assert_int_equal(status, KILN_ERROR_CPU);
  }
}

/* A freestanding host, because no C library for the machine is at hand. */
static void test_runs_on_emulated_aarch64(void **state) {
  Fixture *fixture = *state;
  if (shell("command -v qemu-aarch64 >/dev/null && command -v clang-19 >/dev/null") != 0) {
    print_message("no qemu-aarch64 or clang-19: skipped\n");
    skip();
  }
  Target target = target_of(fixture, NULL, "aarch64-linux-gnu");
  Plan *plan = small_plan(fixture, "net", &target);
  CpuObjects objects = compiled(fixture, plan, NULL);
  assert_true(link_objects(&target, objects.objects, objects.count, NULL, true, fixture_path(fixture, "net.o"),
                           fixture->arena, fixture->diag));
  Text header;
  text_init(&header, fixture->arena);
  header_print(&header, plan, &objects, WEIGHTS_CALLER, 0);
  write_file(fixture_path(fixture, "net.h"), header.data);
  /* y = x * w^4 + exp(w^2) with w = -1 */
  write_file(fixture_path(fixture, "host.c"),
             "#include \"net.h\"\n"
             "static _Alignas(64) char prepared[NET_PREPARED_SIZE], memory[NET_WORKSPACE_SIZE(2, 1) + 4096];\n"
             "static float w[NET_X_ELEMENTS], x[2 * NET_X_ELEMENTS], y[2 * NET_X_ELEMENTS], hook[2 * NET_X_ELEMENTS];\n"
             "static int host(void) {\n"
             "  for (int i = 0; i < NET_X_ELEMENTS; i++) w[i] = -1;\n"
             "  for (int i = 0; i < 2 * NET_X_ELEMENTS; i++) x[i] = (float)(i - 30);\n"
             "  kiln_weights weights;\n"
             "  net_parameters parameters;\n"
             "  parameters.weight = w;\n"
             "  int status = net_weights_prepare(&weights, &parameters, prepared, memory, 0);\n"
             "  static net_io io;\n"
             "  io.head.batch = 2, io.x = x, io.y = y, io.hook_a = hook;\n"
             "  if (status == KILN_OK) status = net_run(&weights, memory, &io);\n"
             "  for (int i = 0; i < 2 * NET_X_ELEMENTS; i++) {\n"
             "    float error = y[i] - (x[i] + 2.7182818f);\n"
             "    if (error > 1e-5f || error < -1e-5f) return 50;\n"
             "    if (hook[i] != (x[i] > 0 ? x[i] : 0)) return 51;\n"
             "  }\n"
             "  return status;\n"
             "}\n"
             "void _start(void) {\n"
             "  register long status __asm__(\"x0\") = host();\n"
             "  register long call __asm__(\"x8\") = 93;\n"
             "  __asm__ volatile(\"svc 0\" : : \"r\"(status), \"r\"(call));\n"
             "}\n");
  int status =
      shell(arena_format(fixture->arena,
                         "cd '%s' && clang-19 --target=aarch64-linux-gnu -ffreestanding -fno-builtin -nostdlib "
                         "-static -fuse-ld=lld -o host host.c net.o",
                         fixture->folder));
  assert_int_equal(status, 0);
  assert_int_equal(shell(arena_format(fixture->arena, "qemu-aarch64 '%s/host'", fixture->folder)), KILN_OK);
}

static void test_targets(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "x86-64-v2", NULL);
  assert_int_equal(target.vector_lanes, 4);
  assert_false(target.fma);
  assert_string_equal(target.tune, "generic");
  target = target_of(fixture, NULL, "aarch64-linux-gnu");
  assert_string_equal(target.isa, "aarch64");
  target = target_of(fixture, NULL, NULL);
  assert_true(cpu_target_runnable(&target));
  static const struct {
    const char *isa, *triple, *message;
  } wrong[] = {
      {"x86-64-v9", NULL,
       "error: unknown cpu 'x86-64-v9': expected one of native, x86-64-v2, x86-64-v3, x86-64-v4, aarch64"},
      {NULL, "riscv64-linux-gnu",
       "error: unknown target triple 'riscv64-linux-gnu': expected x86_64-linux-gnu or aarch64-linux-gnu"},
      {NULL, "x86_64-w64-windows-gnu",
       "error: unknown target triple 'x86_64-w64-windows-gnu': expected x86_64-linux-gnu or aarch64-linux-gnu"},
      {"aarch64", "x86_64-linux-gnu", "error: cpu 'aarch64' does not go with triple 'x86_64-linux-gnu'"},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    clear_messages(fixture);
    assert_false(cpu_target(wrong[i].isa, wrong[i].triple, fixture->arena, fixture->diag, &target));
    check_message_part(fixture, wrong[i].message);
  }
}

/* --- names and headers -------------------------------------------------------------------------------- */

static void test_hostile_names(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  static const char *const names[] = {"@x", "-o", ";id", "a\nb", "*/ #error", "", "9", "$(id)", "\"quoted\\", "%s%n"};
  static const char *const symbols[] = {"_x", "_o", "_id", "a_b", "____error", "_", "_9", "__id_", "_quoted_", "_s_n"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    CpuObjects objects = compiled(fixture, small_plan(fixture, names[i], &target), NULL);
    assert_string_equal(objects.symbol, symbols[i]);
    const char *path = fixture_path(fixture, "hostile.so");
    linked(fixture, &target, objects.objects, objects.count, names[i], path);
    Library library = library_load(path, arena_format(fixture->arena, "%s_describe", objects.symbol));
    assert_string_equal(library.program->name, names[i]);
    dlclose(library.handle);
  }
}

/* Compiles the header alone, and a host that uses all of it; runs the host. */
static void check_header(Fixture *fixture, WeightsMode mode, const char *acquire) {
  Target target = target_of(fixture, "native", NULL);
  Plan *plan = small_plan(fixture, "net", &target);
  plan->name = "*/ bad \\\n name";
  plan->parameters[0].name = "int";
  const CpuOptions options = {.embed = mode == WEIGHTS_EMBED};
  plan->name = "net";
  CpuObjects objects = compiled(fixture, plan, &options);
  SmallRun *run = small_run(fixture);
  CpuObjects plain = compiled(fixture, plan, NULL);
  prepare(run, loaded(fixture, &plain));
  Code *all = arena_array(fixture->arena, objects.count + 1, Code);
  memcpy(all, objects.objects, objects.count * sizeof *all);
  assert_true(elf_blob(&target, "net_embedded_weights", run->prepared, sizeof run->prepared, fixture->arena,
                       fixture->diag, &all[objects.count]));
  linked(fixture, &target, all, objects.count + 1, "libnet.so", fixture_path(fixture, "libnet.so"));
  plan->name = "*/ bad \\\n name";
  Text header;
  text_init(&header, fixture->arena);
  header_print(&header, plan, &objects, mode, 0);
  write_file(fixture_path(fixture, "net.h"), header.data);
  write_file(fixture_path(fixture, "use.cpp"),
             "#include \"net.h\"\n#include \"net.h\"\nint f() { return net_check(); }\n");
  write_file(fixture_path(fixture, "host.c"),
             arena_format(fixture->arena,
                          "#include \"net.h\"\n#include <stdlib.h>\n"
                          "int main(void) {\n"
                          "  static float x[2 * NET_X_ELEMENTS], y[2 * NET_Y_ELEMENTS], h[2 * NET_HOOK_A_ELEMENTS];\n"
                          "  x[0] = x[NET_X_ELEMENTS] = 2;\n"
                          "  kiln_weights weights;\n"
                          "  void *workspace = aligned_alloc(NET_ALIGNMENT, NET_WORKSPACE_SIZE(2, 1));\n"
                          "  int status = KILN_OK;\n"
                          "%s"
                          "  net_io io = {.head = {.batch = 2}, .x = x, .y = y, .hook_a = h};\n"
                          "  if (status == KILN_OK) status = net_run(&weights, workspace, &io);\n"
                          "  if (net_describe()->max_batch != NET_MAX_BATCH) return 50;\n"
                          "  if (NET_PREPARED_SIZE != net_describe()->prepared_bytes) return 51;\n"
                          "  if (h[0] != h[NET_X_ELEMENTS] || h[0] == 0) return 52;\n"
                          "  free(workspace);\n"
                          "  return status;\n"
                          "}\n",
                          acquire));
  const char *folder = fixture->folder;
  int status = shell(arena_format(fixture->arena,
                                  "cd '%s' && cc -std=c11 -Wall -Wextra -Wpedantic -Wno-sign-compare -Werror -o host "
                                  "host.c ./libnet.so && LD_LIBRARY_PATH=. ./host",
                                  folder));
  assert_int_equal(status, 0);
  if (shell("command -v c++ >/dev/null") != 0) return;
  status = shell(
      arena_format(fixture->arena, "cd '%s' && c++ -std=c++11 -Wall -Wextra -Werror -c -o use.o use.cpp", folder));
  assert_int_equal(status, 0);
}

static void test_headers(void **state) {
  Fixture *fixture = *state;
  if (shell("command -v cc >/dev/null") != 0) {
    print_message("no cc: skipped\n");
    skip();
  }
  check_header(fixture, WEIGHTS_EMBED, "  status = net_weights_embedded(&weights);\n");
  check_header(fixture, WEIGHTS_CALLER,
               "  static float w[37];\n"
               "  for (int i = 0; i < 37; i++) w[i] = 1;\n"
               "  net_parameters parameters = {.int_2 = w};\n"
               "  void *prepared = aligned_alloc(NET_ALIGNMENT, NET_PREPARED_SIZE);\n"
               "  void *scratch = aligned_alloc(NET_ALIGNMENT, NET_PREPARE_SIZE(1));\n"
               "  status = net_weights_prepare(&weights, &parameters, prepared, scratch, NULL);\n");
  check_header(fixture, WEIGHTS_FILE,
               "  static _Alignas(64) char file[64];\n"
               "  if (net_weights_open(&weights, file, sizeof file) != KILN_ERROR_WEIGHTS) return 53;\n"
               "  return 0;\n");
}

/* A linker that fails or is missing is reported, and leaves nothing behind. */
static void test_link_errors(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  const Code garbage = {arena_string(fixture->arena, "not an object"), 13};
  char *temporary = arena_format(fixture->arena, "%s/tmp", fixture->folder);
  assert_int_equal(shell(arena_format(fixture->arena, "mkdir '%s'", temporary)), 0);
  setenv("TMPDIR", temporary, 1);
  assert_false(
      link_objects(&target, &garbage, 1, "x", false, fixture_path(fixture, "x.so"), fixture->arena, fixture->diag));
  check_message_part(fixture, "the linker ");
  clear_messages(fixture);
  const char *path = getenv("PATH");
  char *kept = arena_string(fixture->arena, path);
  setenv("PATH", "/nowhere", 1);
  assert_false(
      link_objects(&target, &garbage, 1, "x", false, fixture_path(fixture, "x.so"), fixture->arena, fixture->diag));
  setenv("PATH", kept, 1);
  check_message_part(fixture, "no linker for ");
  unsetenv("TMPDIR");
  assert_int_equal(shell(arena_format(fixture->arena, "rmdir '%s'", temporary)), 0);
  assert_int_equal(access(fixture_path(fixture, "x.so"), F_OK), -1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_types_match_the_abi),
      fixture_test(test_describe),
      fixture_test(test_run),
      fixture_test(test_run_refuses),
      fixture_test(test_library_equals_jit),
      fixture_test(test_rebuilds_are_equal),
      fixture_test(test_two_programs),
      fixture_test(test_embedded_weights),
      fixture_test(test_weights_file),
      fixture_test(test_no_calls),
      fixture_test(test_stack_frames),
      fixture_test(test_networks),
      fixture_test(test_print_ir),
      fixture_test(test_cross_library),
      fixture_test(test_refused_by_older_processor),
      fixture_test(test_runs_on_emulated_aarch64),
      fixture_test(test_targets),
      fixture_test(test_hostile_names),
      fixture_test(test_headers),
      fixture_test(test_link_errors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
