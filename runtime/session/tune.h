/* Measuring: how long every candidate of every kernel takes in the model that it belongs to. */
#ifndef KILN_RUNTIME_SESSION_TUNE_H
#define KILN_RUNTIME_SESSION_TUNE_H

#include "session.h"

typedef struct TuneOptions {
  const kiln_compile_options *compile; /* `tuning` counts for what is taken, not for what is measured */
  int64_t rounds;                      /* runs of each program, of which the median counts */
  /* Called before each program is measured; may be NULL. */
  void (*progress)(void *context, size_t done, size_t total);
  void *context;
} TuneOptions;

/* A kernel of the program that the options ask for. */
typedef struct TunedKernel {
  const char *name;
  OpCode op;
  const KernelOffers *offers; /* offers->taken: what these options take */
  const double *times;        /* microseconds by candidate, with a conversion of the input and a pool behind it where there are such */
} TunedKernel;

typedef struct TuneResult {
  const Target *target;
  const TunedKernel *kernels; /* those with several candidates */
  size_t kernel_count;
  double others; /* microseconds of the kernels with one */
} TuneResult;

/* Candidates are measured within the whole model, so that weights and values are as near or far as they will be when it
 * runs: for every number c a program is built in which all kernels take their candidate c, and is run in turns with the
 * program of the model's choices, whose times tell how fast the machine was meanwhile. Inputs are random numbers. The
 * graph's parameters have values; whatever they are, the times are the same. Everything in `arena`. */
bool tune_measure(const Graph *graph, const TuneOptions *options, Arena *arena, Diag *diag, TuneResult *out_result);
/* The times as a table: kernels of the same signature once, by their mean. */
Tuning tune_table(const TuneResult *result, Arena *arena);

#endif
