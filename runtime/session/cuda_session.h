/* Executables and contexts on GPUs, for the functions of kiln.h. */
#ifndef KILN_RUNTIME_SESSION_CUDA_SESSION_H
#define KILN_RUNTIME_SESSION_CUDA_SESSION_H

#include "cuda_build.h"
#include "session.h"

/* Whether options ask for a GPU; reports a device that there is no such thing as (false then, with an error in diag).
 */
bool cuda_wanted(const kiln_compile_options *options, Diag *diag);
/* The target that the options describe: options->cuda_arch, else the GPU's own. */
bool cuda_session_target(const kiln_compile_options *options, Arena *arena, Diag *diag, Target *out_target);
/* What the options' math and precision come to. */
MathMode cuda_math(const kiln_compile_options *options, int32_t arch);

/* Compiles a plan, loads it and prepares its weights; `parameters` in table order. */
bool cuda_session_build(const Plan *plan, const kiln_compile_options *options, const void *const *parameters,
                        kiln_executable *executable, Arena *scratch, Diag *diag, kiln_status *out_status);

/* Loads a library for GPUs: its code and the parameters (table order; NULL: those that it holds). */
bool cuda_session_open(const kiln_program *program, const void *const *parameters, kiln_executable *executable,
                       Diag *diag, kiln_status *out_status);
/* Whether a program is one for GPUs. */
bool cuda_session_program(const kiln_program *program);

/* Parts of the functions of kiln.h of the same name, for executables on GPUs. Arguments have been checked. */
kiln_status cuda_session_context(kiln_context *context, kiln_error *error);
kiln_status cuda_session_run(kiln_context *context, int64_t batch, const void *const *inputs, void *const *outputs,
                             kiln_error *error);
/* A training state's parameters to the GPU (by parameter, NULL for others), and back to the same places. */
kiln_status cuda_session_set_state(kiln_context *context, void *const *states, kiln_error *error);
kiln_status cuda_session_fetch_state(kiln_context *context, kiln_error *error);
kiln_status cuda_session_run_steps(kiln_context *context, int64_t batch, const void *const *inputs,
                                   void *const *outputs, kiln_observer observe, void *observer_context,
                                   kiln_error *error);

#endif
