#include "small_program.h"

#include <math.h>

#include "hand_plan.h"

Target target_of(Fixture *fixture, const char *isa, const char *triple) {
  Target target;
  if (!cpu_target(isa, triple, fixture->arena, fixture->diag, &target))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return target;
}

PlanTensor small_tensor(const char *name, bool batched, Space space, int64_t place) {
  Shape shape = batched ? (Shape){2, {DIM_BATCH, SMALL_WIDTH}} : (Shape){1, {SMALL_WIDTH}};
  bool indexed = space == SPACE_PARAMETER || space == SPACE_INPUT || space == SPACE_OUTPUT;
  PlanTensor tensor = hand_tensor(name, shape, space, indexed ? (int32_t)place : 0);
  if (!indexed) tensor.storage.offset = place;
  return tensor;
}

static PlanKernel binary(Arena *arena, OpCode op, PlanTensor output, PlanTensor a, PlanTensor b) {
  const PlanTensor inputs[] = {a, b};
  return *hand_kernel(arena, op, output, inputs, op_info(op)->kind == OP_KIND_UNARY ? 1 : 2);
}

Plan *small_plan(Fixture *fixture, const char *name, const Target *target) {
  Arena *arena = fixture->arena;
  enum { SLOT = 192 };
  PlanTensor weight = small_tensor("weight", false, SPACE_PARAMETER, 0), t = small_tensor("t", false, SPACE_SCRATCH, 0);
  PlanTensor p = small_tensor("p", false, SPACE_PREPARED, 0), s = small_tensor("s", false, SPACE_WORKSPACE, 0);
  PlanTensor x = small_tensor("x", true, SPACE_INPUT, 0), a = small_tensor("layer.a", true, SPACE_WORKSPACE, 0);
  PlanTensor b = small_tensor("layer.b", true, SPACE_WORKSPACE, SLOT), y = small_tensor("y", true, SPACE_OUTPUT, 0);
  PlanTensor hook = small_tensor("hook.a", true, SPACE_OUTPUT, 1);
  const PlanKernel kernels[] = {
      binary(arena, OP_NEG, t, weight, weight), binary(arena, OP_MUL, p, t, t), binary(arena, OP_EXP, s, p, p),
      binary(arena, OP_MUL, a, x, p),           binary(arena, OP_MUL, b, a, p), binary(arena, OP_ADD, y, b, s),
      binary(arena, OP_RELU, hook, a, a),
  };
  enum { COUNT = sizeof kernels / sizeof *kernels };
  Plan *plan = hand_plan(arena, name, target, arena_copy(arena, kernels, sizeof kernels), SMALL_MAX_BATCH);
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

CpuObjects compiled(Fixture *fixture, const Plan *plan, const CpuOptions *options) {
  CpuObjects objects;
  if (!cpu_compile(plan, options, fixture->arena, fixture->diag, &objects))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return objects;
}

const kiln_program *loaded(Fixture *fixture, const CpuObjects *objects) {
  const kiln_program *program;
  if (!jit_load(objects, fixture->arena, fixture->diag, &program))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return program;
}

void linked(Fixture *fixture, const Target *target, const Code *objects, size_t count, const char *soname,
            const char *path) {
  if (!link_objects(target, objects, count, soname, false, path, fixture->arena, fixture->diag))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
}

SmallRun *small_run(Fixture *fixture) {
  SmallRun *run = arena_alloc_aligned(fixture->arena, sizeof(SmallRun), 64);
  memset(run, 0, sizeof *run);
  for (int i = 0; i < SMALL_WIDTH; i++) run->weight[i] = (float)(i - 18) / 16;
  for (int i = 0; i < SMALL_MAX_BATCH * SMALL_WIDTH; i++) run->x[i] = (float)(i % 29 - 14) / 8;
  run->parameters[0] = run->weight;
  run->io = (SmallIo){{.batch = SMALL_MAX_BATCH, .threads = 1}, run->x, run->y, run->hook};
  return run;
}

void small_prepare(SmallRun *run, const kiln_program *program) {
  assert_int_equal(program->prepare(run->parameters, run->prepared, run->memory, NULL), KILN_OK);
  run->weights = (kiln_weights){program, run->prepared, NULL};
}

void small_check(const SmallRun *run) {
  for (int i = 0; i < run->io.head.batch * SMALL_WIDTH; i++) {
    float w = run->weight[i % SMALL_WIDTH], p = w * w, a = run->x[i] * p;
    double y = (double)(a * p) + exp(p);
    if (fabs(run->y[i] - y) > 1e-6 * (1 + fabs(y))) fail_msg("y[%d] is %g, expected %g", i, (double)run->y[i], y);
    if (run->hook[i] != (a > 0 ? a : 0)) fail_msg("hook[%d]", i);
  }
}
