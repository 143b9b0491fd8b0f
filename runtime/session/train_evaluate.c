#include "trainer_internal.h"

/* Buffers of the inference program's outputs, once. */
static void **output_buffers(Trainer *trainer) {
  const kiln_program *program = kiln_executable_program(trainer->inference);
  void **outputs = arena_array(trainer->arena, program->output_count + 1, void *);
  for (uint32_t i = 0; i < program->output_count; i++) {
    const kiln_port *port = &program->outputs[i];
    const int64_t images = port->batched ? trainer->options.batch : 1;
    outputs[i] = arena_alloc_aligned(trainer->arena, (size_t)(port->bytes * images) + 1, KILN_ALIGNMENT);
  }
  return outputs;
}

bool trainer_evaluate(Trainer *trainer, const volatile sig_atomic_t *stop, EvaluateProgress progress, void *context,
                      Diag *diag, Evaluation *out_evaluation) {
  kiln_error error;
  Metrics metrics = {0, 0, 0};
  *out_evaluation = (Evaluation){0, 0, 0};
  if (trainer->valid_loader == NULL) return true;
  if (trainer->evaluate_outputs == NULL) trainer->evaluate_outputs = output_buffers(trainer);
  if (!trainer_store(trainer, diag)) return false;
  if (kiln_executable_prepare(trainer->inference, trainer->model, &error) != KILN_OK)
    return trainer_failed(trainer, &error, diag);
  const int64_t count = data_set_count(trainer->data, DATA_VALID);
  const float *scores = trainer->evaluate_outputs[trainer->output];
  /* after a whole round the loader stands at the first batch again, which may be ready by now */
  if (trainer->valid_underway) data_loader_seek(trainer->valid_loader, 0, 0);
  trainer->valid_underway = true;
  while (metrics.count < count && (stop == NULL || *stop == 0)) {
    DataBatch batch;
    if (!data_loader_next(trainer->valid_loader, &batch, diag)) return false;
    const void *inputs[] = {batch.images};
    if (kiln_run(trainer->inference_context, batch.count, inputs, trainer->evaluate_outputs, &error) != KILN_OK)
      return trainer_failed(trainer, &error, diag);
    metrics_add(&metrics, trainer->loss_op, scores, batch.targets, batch.count, trainer->classes);
    if (progress != NULL) progress(context, metrics.count, count);
  }
  trainer->valid_underway = metrics.count < count;
  if (metrics.count > 0)
    *out_evaluation = (Evaluation){metrics.count, metrics.loss / (double)metrics.count,
                                   (double)metrics.correct / (double)metrics.count};
  return true;
}
