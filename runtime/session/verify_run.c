/* `kiln verify`: every value of a compiled program against the interpreter. */
#include <math.h>
#include <string.h>

#include "eval.h"
#include "session.h"
#include "view.h"

typedef struct VerifyState {
  const kiln_program *program;
  const Plan *plan;
  const EvalResult *expected;
  int64_t batch;
  double tolerance;
  ValueCheck *checks;
} VerifyState;

static int compare_step(void *context, uint32_t step, const void *data, int64_t nanoseconds) {
  (void)nanoseconds;
  VerifyState *state = context;
  const kiln_step *info = &state->program->run_steps[step];
  const PlanKernel *kernel = &state->plan->kernels[state->plan->prepare_count + step];
  ValueCheck *check = &state->checks[step];
  *check = (ValueCheck){.name = info->name, .kind = info->kind, .passed = true};
  if (kernel->node_id >= state->expected->count) return 0;
  const EvalTensor *expected = &state->expected->values[kernel->node_id];
  const kiln_view *view = &info->view;
  if (expected->data == NULL || expected->shape.rank != (int32_t)view->rank) return 0;
  int64_t index[KILN_MAX_RANK] = {0}, count = 1;
  for (uint32_t d = 0; d < view->rank; d++) count *= expected->shape.dims[d];
  double error_squares = 0, squares = 0;
  for (int64_t i = 0; i < count; i++) {
    double want = expected->data[i], got = view_read(view, data, view_offset(view, index));
    if (isfinite(want) || isfinite(got)) { /* equal infinities and NaNs agree */
      double difference = fabs(got - want);
      if (!(difference <= check->largest_error)) check->largest_error = difference; /* keeps NaN */
      if (fabs(want) > check->largest_value) check->largest_value = fabs(want);
      error_squares += difference * difference;
      squares += want * want;
    } else if (isnan(want) != isnan(got) || (!isnan(want) && want != got)) {
      check->largest_error = INFINITY;
      error_squares = INFINITY;
    }
    for (int32_t d = (int32_t)view->rank - 1; d >= 0 && ++index[d] == expected->shape.dims[d]; d--) index[d] = 0;
  }
  check->compared = true;
  check->relative_l2 = error_squares == 0 ? 0 : squares > 0 ? sqrt(error_squares / squares) : INFINITY;
  check->passed = check->relative_l2 <= state->tolerance;
  return 0;
}

bool verify_values(const Graph *graph, const Plan *plan, const kiln_executable *executable, const TensorList *inputs,
                   uint32_t threads, double tolerance, Arena *arena, Diag *diag, ValueCheck **out_checks,
                   size_t *out_count) {
  EvalResult expected;
  if (!graph_eval(graph, inputs, NULL, arena, diag, &expected)) return false;
  const kiln_program *program = executable->program;
  const void **in = arena_array(arena, program->input_count + 1, const void *);
  void **out = arena_array(arena, program->output_count + 1, void *);
  for (uint32_t i = 0; i < program->input_count; i++) in[i] = tensor_find(inputs, program->inputs[i].name)->data;
  for (uint32_t i = 0; i < program->output_count; i++) {
    const kiln_port *port = &program->outputs[i];
    out[i] = arena_alloc_aligned(arena, (size_t)(port->bytes * (port->batched ? expected.batch : 1)), KILN_ALIGNMENT);
  }
  VerifyState state = {program,        plan,      &expected,
                       expected.batch, tolerance, arena_array(arena, program->run_step_count + 1, ValueCheck)};
  kiln_context *context;
  kiln_error error;
  kiln_context_options options = {.threads = threads, .max_batch = expected.batch};
  kiln_status status = kiln_context_create(executable, &options, &context, &error);
  if (status == KILN_OK) {
    status = kiln_run_steps(context, expected.batch, in, out, compare_step, &state, &error);
    kiln_context_destroy(context);
  }
  if (status != KILN_OK) {
    diag_error(diag, (Location){graph->file, 0, 0}, "%s", error.message);
    return false;
  }
  *out_checks = state.checks;
  *out_count = program->run_step_count;
  return true;
}
