/* A program of seven steps on 37 numbers an image, for tests of everything around kernels: prepare steps, scratch,
 * fixed and per-image workspace, steps with the same code, a hook. */
#ifndef KILN_TESTS_SMALL_PROGRAM_H
#define KILN_TESTS_SMALL_PROGRAM_H

#include "codegen.h"
#include "kiln_abi.h"
#include "plan.h"
#include "support.h"

enum { SMALL_WIDTH = 37, SMALL_MAX_BATCH = 4, SMALL_PREPARED = 192 };

/* Each of these fails the test with the messages when it does not succeed. */
Target target_of(Fixture *fixture, const char *isa, const char *triple);
CpuObjects compiled(Fixture *fixture, const Plan *plan, const CpuOptions *options);
const kiln_program *loaded(Fixture *fixture, const CpuObjects *objects);
void linked(Fixture *fixture, const Target *target, const Code *objects, size_t count, const char *soname,
            const char *path);

PlanTensor small_tensor(const char *name, bool batched, Space space, int64_t place);
/* prepare: t = -weight, p = t * t;
 * run: s = exp(p) (one for all images), a = x * p, b = a * p (the same code), y = b + s, hook = relu(a) */
Plan *small_plan(Fixture *fixture, const char *name, const Target *target);

typedef struct SmallIo {
  kiln_io head;
  const float *x;
  float *y, *hook;
} SmallIo;

/* Everything that a run needs. */
typedef struct SmallRun {
  float weight[SMALL_WIDTH], x[SMALL_MAX_BATCH * SMALL_WIDTH], y[SMALL_MAX_BATCH * SMALL_WIDTH],
      hook[SMALL_MAX_BATCH * SMALL_WIDTH];
  const void *parameters[1];
  _Alignas(64) char prepared[SMALL_PREPARED];
  _Alignas(64) char memory[16384];
  kiln_weights weights;
  SmallIo io;
} SmallRun;

SmallRun *small_run(Fixture *fixture);
void small_prepare(SmallRun *run, const kiln_program *program);
void small_check(const SmallRun *run);

#endif
