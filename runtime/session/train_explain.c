#include <math.h>

#include "core/runner.h"
#include "session.h"
#include "trainer_internal.h"
#include "view.h"

/* The first value with an element that is not finite. */
typedef struct Search {
  const kiln_program *program;
  int64_t batch;
  uint32_t step; /* UINT32_MAX: none yet */
  int64_t count, total;
  double value;
  int64_t index[KILN_MAX_RANK]; /* of the first such element */
} Search;

static int search_step(void *context, uint32_t step, const void *data, int64_t nanoseconds) {
  (void)nanoseconds;
  Search *search = context;
  const kiln_view *view = &search->program->run_steps[step].view;
  int64_t index[KILN_MAX_RANK] = {0}, dims[KILN_MAX_RANK] = {0}, total = 1, count = 0;
  for (uint32_t d = 0; d < view->rank; d++) total *= dims[d] = view->dims[d] < 0 ? search->batch : view->dims[d];
  if (view->rank == 0 || view->dtype == KILN_I64) return 0;
  for (int64_t i = 0; i < total; i++) {
    const double value = view_read(view, data, view_offset(view, index));
    if (!isfinite(value) && count++ == 0) {
      search->value = value;
      for (uint32_t d = 0; d < view->rank; d++) search->index[d] = index[d];
    }
    for (int32_t d = (int32_t)view->rank - 1; d >= 0 && ++index[d] == dims[d]; d--) index[d] = 0;
  }
  search->step = count > 0 ? step : UINT32_MAX;
  search->count = count;
  search->total = total;
  return count > 0;
}

static size_t first_not_finite(const float *values, size_t count) {
  size_t i = 0;
  while (i < count && isfinite(values[i])) i++;
  return i;
}

static bool report(const Trainer *trainer, int64_t step, Diag *diag, const char *cause) {
  diag_error(
      diag, (Location){trainer->model->graph->file, 0, 0},
      "the loss of step %lld (batch %lld of epoch %lld) is not finite: %s; the weights are those before the step",
      (long long)step + 1, (long long)trainer->batch.number + 1, (long long)trainer->batch.epoch + 1, cause);
  return false;
}

/* What went into the step was bad already. */
static const char *bad_operand(const Trainer *trainer) {
  const DataBatch *batch = &trainer->batch;
  const size_t pixels = (size_t)shape_elements_per_image(&trainer->model->graph->inputs[0].shape);
  const size_t found = first_not_finite(batch->images, (size_t)batch->count * pixels);
  if (found < (size_t)batch->count * pixels)
    return arena_format(
        trainer->arena, "picture '%s' holds %g",
        data_set_picture_name(trainer->data, DATA_TRAIN, batch->indices[found / pixels], trainer->arena),
        (double)batch->images[found]);
  for (size_t i = 0; i < kiln_state_tensor_count(trainer->state); i++) {
    kiln_port port;
    float *data;
    if (kiln_state_tensor(trainer->state, i, &port, &data) != KILN_OK) continue;
    const size_t count = (size_t)port.bytes / sizeof *data, at = first_not_finite(data, count);
    if (at < count)
      return arena_format(trainer->arena, "'%s' holds %g at element %zu", port.name, (double)data[at], at);
  }
  return NULL;
}

bool trainer_explain(Trainer *trainer, int64_t step, Diag *diag) {
  const char *operand = bad_operand(trainer);
  if (operand != NULL) return report(trainer, step, diag, operand);
  const kiln_weights weights = state_weights(trainer->state);
  Search search = {.program = weights.program, .batch = trainer->batch.count, .step = UINT32_MAX};
  kiln_context *context = trainer->step_context;
  context->io.batch = search.batch;
  program_run_steps(&weights, context->workspace, &context->io, trainer->inputs, trainer->outputs, search_step,
                    &search);
  if (search.step == UINT32_MAX) return report(trainer, step, diag, "all values before it are finite");
  const kiln_step *found = &search.program->run_steps[search.step];
  Text place;
  text_init(&place, trainer->arena);
  for (uint32_t d = 0; d < found->view.rank; d++)
    text_format(&place, d > 0 ? ",%lld" : "%lld", (long long)search.index[d]);
  return report(trainer, step, diag,
                arena_format(trainer->arena,
                             "the first value that is not is '%s' (%s): %lld of %lld elements, [%s] is %g", found->name,
                             found->kind, (long long)search.count, (long long)search.total, place.data, search.value));
}
