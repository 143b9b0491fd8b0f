/* Runs a program's steps one by one, with the same rules as the generated NAME_run when it does not take images in
 * chunks: for tools that time or check single steps. */
#ifndef KILN_RUNTIME_CORE_RUNNER_H
#define KILN_RUNTIME_CORE_RUNNER_H

#include "kiln_abi.h"

/* After each step: its number, its output's address (operand 0 of kiln_view) and its duration. Non-zero stops. */
typedef int (*StepObserver)(void *context, uint32_t step, const void *data, int64_t nanoseconds);

/* `inputs` and `outputs` in table order. Returns a kiln_status. */
kiln_status program_run_steps(const kiln_weights *weights, void *workspace, const kiln_io *io,
                              const void *const *inputs, void *const *outputs, StepObserver observe, void *context);

/* Bytes of workspace for a batch and a number of threads. */
int64_t program_workspace_bytes(const kiln_program *program, int64_t batch, uint32_t threads);
/* Bytes of temporary memory for program->prepare. */
int64_t program_prepare_bytes(const kiln_program *program, uint32_t threads);

#endif
