#include "kernel_trial.h"

#include <math.h>

#include "codegen.h"
#include "guarded.h"
#include "hand_plan.h"

Trial trial_start(Fixture *fixture, const Target *target, const TrialMemory *memory, const OpCase *line) {
  Trial trial = {.fixture = fixture, .target = target, .memory = memory, .exact = line->exact};
  trial.label = op_case_label(line, fixture->arena);
  trial.graph = op_case_graph(line, memory->max_batch, fixture->arena, fixture->diag);
  if (trial.graph == NULL) fail_msg("%s: %s", trial.label, diag_text(fixture->diag, fixture->arena));
  trial.node = trial.graph->outputs[0].node;
  return trial;
}

Shape trial_shape(Shape shape, int64_t batch) {
  if (shape_batched(&shape)) shape.dims[0] = batch;
  return shape;
}

void trial_compile(Trial *trial, const PlanTensor *inputs, PlanTensor output) {
  Arena *arena = trial->fixture->arena;
  Diag *diag = trial->fixture->diag;
  const Node *node = trial->node;
  assert_true(node->input_count <= TRIAL_MAX_OPERANDS);
  trial->kernel = hand_kernel(arena, node->op, output, inputs, node->input_count);
  trial->kernel->op_input_count = node->op_input_count;
  trial->kernel->attrs = node->attrs;
  trial->kernel->epilogue = node->epilogue;
  trial->kernel->epilogue_count = node->epilogue_count;
  CpuObjects objects;
  Plan *plan = hand_plan(arena, "net", trial->target, trial->kernel, trial->memory->max_batch);
  if (!cpu_compile(plan, NULL, arena, diag, &objects) || !jit_load(&objects, arena, diag, &trial->program))
    fail_msg("%s on %s: %s", trial->label, trial->target->isa, diag_text(diag, arena));
}

void trial_fill(Trial *trial, OpCaseFill fill, int64_t batch) {
  TensorList inputs, parameters;
  Arena *arena = trial->fixture->arena;
  trial->batch = batch;
  op_case_fill(trial->graph, batch, fill, 7, arena, &inputs, &parameters);
  trial->inputs = (TensorList){arena_array(arena, inputs.count + parameters.count, Tensor), 0};
  for (size_t i = 0; i < inputs.count; i++) trial->inputs.items[trial->inputs.count++] = inputs.items[i];
  for (size_t i = 0; i < parameters.count; i++) trial->inputs.items[trial->inputs.count++] = parameters.items[i];
}

/* Runs the last chunk first, each with its own thread number. */
static int run_backwards(void *pool, kiln_task task, void *context, int64_t count) {
  int64_t chunks = *(const int64_t *)pool;
  for (int64_t chunk = chunks; chunk-- > 0;)
    task(context, (uint32_t)chunk, count * chunk / chunks, count * (chunk + 1) / chunks);
  return 0;
}

static Tensor run_once(const Trial *trial, int64_t chunks, int64_t threads, bool at_end) {
  const PlanKernel *kernel = trial->kernel;
  const TrialMemory *memory = trial->memory;
  struct {
    kiln_io io;
    void *ports[TRIAL_MAX_OPERANDS + 1];
  } call = {
      .io = {.batch = trial->batch, .threads = (uint32_t)threads, .parallel_for = run_backwards, .pool = &chunks}};
  for (int32_t i = 0; i < kernel->input_count; i++) {
    const Tensor *value = tensor_find(&trial->inputs, kernel->inputs[i].name);
    assert_non_null(value);
    call.ports[i] = memory->make_input(&kernel->inputs[i], trial->batch, value, at_end);
  }
  void *output = call.ports[kernel->input_count] = memory->make_buffer(&kernel->output, trial->batch, at_end);
  const kiln_weights weights = {.program = trial->program};
  char *scratch = guarded_alloc((size_t)(trial->program->scratch_bytes * threads), true);
  assert_int_equal(trial->program->run(&weights, scratch, &call.io), KILN_OK);
  guarded_free(scratch);
  Tensor result = memory->read_output(trial, output);
  for (int32_t i = 0; i <= kernel->input_count; i++) guarded_free(call.ports[i]);
  return result;
}

static void compare(const Trial *trial, const Tensor *actual, const EvalTensor *expected) {
  double squares = 0, errors = 0;
  for (int64_t i = 0; i < tensor_elements(actual); i++) {
    double value = tensor_get(actual, i), wanted = expected->data[i];
    bool same = value == wanted || (isnan(value) && isnan(wanted));
    if (!same && (trial->exact || !isfinite(value) || !isfinite(wanted)))
      fail_msg("%s on %s, batch %d: element %d is %.9g, expected %.9g", trial->label, trial->target->isa,
               (int)trial->batch, (int)i, value, wanted);
    if (!isfinite(wanted)) continue;
    squares += wanted * wanted;
    errors += (value - wanted) * (value - wanted);
  }
  if (sqrt(errors) > trial->tolerance * sqrt(squares) + 1e-30)
    fail_msg("%s on %s, batch %d: relative error %g", trial->label, trial->target->isa, (int)trial->batch,
             sqrt(errors / squares));
}

void trial_check(Trial *trial) {
  Fixture *fixture = trial->fixture;
  const int64_t *chunks = trial->memory->chunks;
  int64_t threads = 1;
  for (const int64_t *at = chunks; *at > 0; at++) threads = *at;
  EvalResult expected;
  if (!graph_eval(trial->graph, &trial->inputs, &trial->inputs, fixture->arena, fixture->diag, &expected))
    fail_msg("%s: %s", trial->label, diag_text(fixture->diag, fixture->arena));
  Tensor whole = run_once(trial, 1, threads, true);
  compare(trial, &whole, &expected.values[trial->node->id]);
  for (; *chunks > 0; chunks++) {
    Tensor parts = run_once(trial, *chunks, threads, *chunks == threads);
    if (memcmp(whole.data, parts.data, (size_t)tensor_bytes(&whole)) != 0)
      fail_msg("%s on %s, batch %d: %d chunks give another result", trial->label, trial->target->isa, (int)trial->batch,
               (int)*chunks);
  }
}

void trial_each_target(Fixture *fixture, void (*body)(Fixture *fixture, const Target *target)) {
  static const char *const isas[] = {"x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64"};
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
    Target target;
    assert_true(cpu_target(isas[i], NULL, fixture->arena, fixture->diag, &target));
    if (cpu_target_runnable(&target)) body(fixture, &target);
  }
}
