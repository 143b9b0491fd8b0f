/* The code generator's driver: tables, entry points, dumps, targets. Kernels and libraries have tests of their own. */
#include <elf.h>
#include <math.h>

#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/Target.h>

#include "description.h"
#include "hand_plan.h"
#include "passes.h"
#include "small_program.h"
#include "texts.h"

/* --- tables ------------------------------------------------------------------------------------------- */

#define OFFSETS(type, ...)                            \
  {                                                   \
    "" #type, sizeof(type), { __VA_ARGS__, SIZE_MAX } \
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
      OFFSETS(kiln_step, AT(kernel), AT(name), AT(kind), AT(operands), AT(operand_count), AT(stretch), AT(items),
              AT(items_per_batch), AT(scratch_bytes), AT(flops), AT(flops_per_batch), AT(bytes), AT(bytes_per_batch),
              AT(view)),
#undef STRUCT
#define STRUCT kiln_port
      OFFSETS(kiln_port, AT(name), AT(dtype), AT(rank), AT(dims), AT(bytes), AT(batched), AT(role)),
#undef STRUCT
#define STRUCT kiln_slot
      OFFSETS(kiln_slot, AT(name), AT(rank), AT(group), AT(dims), AT(offset), AT(decayed), AT(reserved)),
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
              AT(embedded), AT(prepare), AT(run), AT(metadata), AT(slots), AT(slot_count), AT(group_count),
              AT(chunk), AT(batch_unit), AT(stretch_images), AT(reserved2)),
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
  assert_int_equal(objects.count, 6); /* four kernels, two that prepare in one, and the tables */
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
  assert_int_equal(program->inputs->dims[1], SMALL_WIDTH);
  assert_int_equal(program->inputs->bytes, 4 * SMALL_WIDTH);
  assert_int_equal(program->inputs->batched, 1);
  assert_int_equal(program->parameters->batched, 0);
  assert_int_equal(program->max_threads, 5);
  assert_int_equal(program->max_batch, SMALL_MAX_BATCH);
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
  assert_int_equal(b->view.stride[0], SMALL_WIDTH);
  assert_int_equal(b->view.block, 1);
  assert_true(b->bytes_per_batch == 2 * 4 * SMALL_WIDTH && b->bytes == 4 * SMALL_WIDTH);
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
  small_prepare(run, program);
  for (run->io.head.batch = 1; run->io.head.batch <= SMALL_MAX_BATCH; run->io.head.batch++) {
    memset(run->y, 0xFF, sizeof run->y);
    assert_int_equal(program->run(&run->weights, run->memory, &run->io.head), KILN_OK);
    small_check(run);
  }
}

static void test_run_refuses(void **state) {
  Fixture *fixture = *state;
  Target target = target_of(fixture, "native", NULL);
  CpuObjects objects = compiled(fixture, small_plan(fixture, "net", &target), NULL);
  const kiln_program *program = loaded(fixture, &objects);
  SmallRun *run = small_run(fixture);
  kiln_io *io = &run->io.head;
  small_prepare(run, program);
  assert_int_equal(program->run(NULL, run->memory, io), KILN_ERROR_ARGUMENT);
  assert_int_equal(program->run(&run->weights, run->memory, NULL), KILN_ERROR_ARGUMENT);
  assert_int_equal(program->run(&run->weights, NULL, io), KILN_ERROR_ARGUMENT);
  assert_int_equal(program->run(&run->weights, run->memory + 32, io), KILN_ERROR_ARGUMENT);
  io->threads = 65;
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_ERROR_ARGUMENT);
  io->threads = 0;
  io->batch = -1;
  assert_int_equal(program->run(&run->weights, run->memory, io), KILN_ERROR_BATCH);
  io->batch = SMALL_MAX_BATCH + 1;
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
      const PlanTensor x[] = {small_tensor("x", true, SPACE_INPUT, 0), small_tensor("b", true, SPACE_INPUT, 1)};
      PlanKernel *kernel = hand_kernel(fixture->arena, op, small_tensor("y", true, SPACE_OUTPUT, 0), x,
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

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_types_match_the_abi),
      fixture_test(test_describe),
      fixture_test(test_run),
      fixture_test(test_run_refuses),
      fixture_test(test_no_calls),
      fixture_test(test_stack_frames),
      fixture_test(test_networks),
      fixture_test(test_print_ir),
      fixture_test(test_targets),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
