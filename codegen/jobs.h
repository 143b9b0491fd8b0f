/* Independent compilations on several threads. */
#ifndef KILN_CODEGEN_JOBS_H
#define KILN_CODEGEN_JOBS_H

#include "base/diag.h"

/* What a job works with. Its results go to `results`; `scratch` is reset after every job. */
typedef struct JobTools {
  Arena *results, *scratch;
  Diag *diag;
  void *worker; /* what create_worker has made for this thread */
} JobTools;

typedef struct Jobs {
  size_t count;
  /* Does job `number`; false: it failed and has reported why. Called on any thread, in any order. */
  bool (*run)(void *context, size_t number, const JobTools *tools);
  void *context;
  /* What a thread keeps from one job to the next; it goes with the arena. NULL: nothing. */
  void *(*create_worker)(Arena *arena);
  bool stop_early; /* begin no job after one has failed */
} Jobs;

/* Runs the jobs on up to `threads` threads, of which the caller is one. Results live as long as `arena`, messages stand
 * in the order of the jobs. False: a job has failed. Fails `arena` when there is no memory. */
bool jobs_run(const Jobs *jobs, int32_t threads, Arena *arena, Diag *diag);

#endif
