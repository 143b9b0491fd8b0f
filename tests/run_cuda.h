/* Test programs on the emulated GPU. Needs nothing of CUDA; with KILN_NVRTC and KILN_CUDA_DRIVER unset, test_cuda_open
 * chooses the emulator's libraries that were built beside the test.
 *
 *   TestProgram program; TestRun run;
 *   test_cuda_open();
 *   test_program_parse(&program, arena, text) && test_cuda_compile(&program, "sm_90", MATH_FP32, NULL,
 * PRECISION_DEFAULT) test_fill(&program, FILL_INTEGERS, 2, 1); test_program_run(&program, 2, 1, false, &run)   every
 * operand of a step in device memory of its own, watched at both ends test_program_eval, test_excess as always */
#ifndef KILN_TESTS_RUN_CUDA_H
#define KILN_TESTS_RUN_CUDA_H

#include "core/cuda_run.h"
#include "run_program.h"

/* Makes the emulator this process's GPU; before anything else asks for one. */
void test_cuda_open(void);

/* As test_program_compile, for a GPU. test_program_run then runs the steps there (chunks and at_end mean nothing). */
bool test_cuda_compile(TestProgram *program, const char *arch, MathMode math, const char *disabled,
                       Precision precision);
/* The same for a plan of the caller's: hand-made or with settings that the passes would not choose. */
bool test_cuda_load(TestProgram *program, Plan *plan);
/* The program as data, after either of the two. */
const CudaTables *test_cuda_tables(const TestProgram *program);

/* Runs the whole program through cuda_run.h: one graph, memory of the host in and out. Outputs in port order. */
bool test_cuda_run(TestProgram *program, int64_t batch, TensorList *out_outputs);

#endif
