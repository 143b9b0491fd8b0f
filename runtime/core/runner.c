#include "runner.h"

#include <time.h>

int64_t program_workspace_bytes(const kiln_program *program, int64_t batch, uint32_t threads) {
  return program->workspace_fixed + batch * program->workspace_per_batch +
         (int64_t)(threads ? threads : 1) * program->scratch_bytes;
}

int64_t program_prepare_bytes(const kiln_program *program, uint32_t threads) {
  return program->prepare_scratch + (int64_t)(threads ? threads : 1) * program->scratch_bytes;
}

static int64_t clock_nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

typedef struct Job {
  kiln_kernel kernel;
  kiln_call call;
} Job;

static void job_task(void *context, uint32_t thread, int64_t begin, int64_t end) {
  const Job *job = context;
  job->kernel(&job->call, thread, begin, end);
}

static const void *operand_base(const kiln_operand *operand, const kiln_weights *weights, void *workspace,
                                const void *const *inputs, void *const *outputs) {
  switch (operand->space) {
    case KILN_SPACE_WORKSPACE:
      return workspace;
    case KILN_SPACE_PREPARED:
      return weights->prepared;
    case KILN_SPACE_PARAMETER:
      return weights->parameters ? weights->parameters[operand->index] : NULL;
    case KILN_SPACE_INPUT:
      return inputs[operand->index];
    case KILN_SPACE_OUTPUT:
      return outputs[operand->index];
    default:
      return NULL;
  }
}

kiln_status program_run_steps(const kiln_weights *weights, void *workspace, const kiln_io *io,
                              const void *const *inputs, void *const *outputs, StepObserver observe, void *context) {
  const kiln_program *program = weights->program;
  int64_t batch = io->batch;
  if (batch < 0 || batch > program->max_batch) return KILN_ERROR_BATCH;
  if (batch == 0) return KILN_OK;
  char *scratch = (char *)workspace + program->workspace_fixed + batch * program->workspace_per_batch;
  for (uint32_t s = 0; s < program->run_step_count; s++) {
    const kiln_step *step = &program->run_steps[s];
    void *operands[KILN_MAX_OPERANDS];
    for (uint32_t i = 0; i < step->operand_count; i++) {
      const kiln_operand *operand = &step->operands[i];
      uintptr_t base = (uintptr_t)operand_base(operand, weights, workspace, inputs, outputs);
      if (base == 0) return KILN_ERROR_WEIGHTS;
      operands[i] = (void *)(base + (uintptr_t)(operand->offset + batch * operand->offset_per_batch));
    }
    Job job = {step->kernel, {operands, batch, scratch, program->scratch_bytes}};
    int64_t items = step->items + batch * step->items_per_batch;
    int64_t started = clock_nanoseconds();
    if (io->parallel_for != NULL && io->threads > 1) {
      if (io->parallel_for(io->pool, job_task, &job, items) != 0) return KILN_ERROR_CALLBACK;
    } else {
      step->kernel(&job.call, 0, 0, items);
    }
    int64_t finished = clock_nanoseconds();
    if (observe != NULL && observe(context, s, operands[0], finished - started) != 0) return KILN_ERROR_CALLBACK;
  }
  return KILN_OK;
}
