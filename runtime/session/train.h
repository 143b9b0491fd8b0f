/* A training run: epochs of steps under a schedule, measured after each, logged, kept in checkpoints, resumable. */
#ifndef KILN_RUNTIME_SESSION_TRAIN_H
#define KILN_RUNTIME_SESSION_TRAIN_H

#include "schedule.h"
#include "trainer.h"

/* --- history -------------------------------------------------------------------------------------------- */

typedef struct TrainStep {
  double loss, rate, momentum; /* rate: the last group's */
} TrainStep;

typedef struct TrainEpoch {
  int64_t epoch;     /* from 0 */
  int64_t pictures;  /* that were measured; 0: there are none for validation */
  double train_loss; /* smoothed, β = 0.98, de-biased */
  double valid_loss, accuracy;
  double seconds; /* of training and measuring */
} TrainEpoch;

/* Room for the whole run from the beginning. Statistics are kept of every `stats_every`-th step: record r of value v is
 * stats[(r · stats_count + v) · stats_width …]. */
typedef struct TrainHistory {
  TrainStep *steps;
  int64_t step_count, step_total, batches; /* batches of an epoch */
  TrainEpoch *epochs;
  int64_t epoch_count;
  float *stats;
  int64_t stats_records, stats_every;
  size_t stats_count, stats_width;
  const char *const *stats_names;
} TrainHistory;

/* --- a run ---------------------------------------------------------------------------------------------- */

typedef struct TrainProgress {
  int64_t epoch, epochs, step, steps; /* steps: of the whole run; `step` counts those done */
  int64_t pictures;                   /* trained on since the run was started or resumed */
  double loss;                        /* smoothed */
  int64_t measured, to_measure;       /* while measuring, else 0 */
} TrainProgress;

/* Called by the loop's thread; members may be NULL. A resumed run tells the epochs of before first. */
typedef struct TrainEvents {
  void (*progress)(void *context, const TrainProgress *progress);
  void (*epoch)(void *context, const TrainEpoch *epoch);
  void *context;
} TrainEvents;

typedef struct TrainRun {
  int64_t epochs;
  Schedule schedule;
  const double *rates; /* the highest of each group */
  int64_t accumulate;  /* batches for an update, at least 1 */
  int64_t batch;
  const char *log;          /* JSON lines; NULL: none */
  const char *checkpoint;   /* folder; NULL: none */
  int64_t checkpoint_every; /* batches; 0: after every epoch only */
  bool resume;
  /* What the run's results depend on, a line "name value" each: a checkpoint of a run that differs is refused. */
  const char *identity;
  /* Becomes non-zero when the run is to stop after the step at hand. */
  const volatile sig_atomic_t *stop;
  TrainEvents events;
} TrainRun;

typedef enum TrainResult { TRAIN_DONE, TRAIN_STOPPED, TRAIN_FAILED } TrainResult;

typedef struct TrainOutcome {
  TrainResult result;
  int64_t resumed_step;    /* the checkpoint's that the run went on from; -1: from the beginning */
  int64_t checkpoint_step; /* of the last checkpoint written; -1: none */
} TrainOutcome;

/* TRAIN_FAILED has been reported. `history` is filled in every case. Does not store into the model. */
TrainOutcome train_run(Trainer *trainer, const TrainRun *run, Arena *arena, Diag *diag, TrainHistory *out_history);

/* --- learning-rate finder ------------------------------------------------------------------------------- */

typedef struct FinderRun {
  double low, high; /* rates */
  int64_t steps;
  double factor;          /* stops when the smoothed loss passes this many times its best */
  const double *relative; /* of each group: its rate as a share of the sweep's */
  double momentum;
  const volatile sig_atomic_t *stop;
  TrainEvents events;
} FinderRun;

typedef struct FinderResult {
  double *rates, *losses; /* smoothed losses */
  size_t count;
  bool diverged; /* ended by `factor` or a loss that was not finite */
  bool stopped;
  bool found; /* there is a suggestion */
  SweepSuggestion suggestion;
} FinderResult;

/* The trainer's state has changed afterwards; the model has not. */
bool train_find_rate(Trainer *trainer, const FinderRun *run, Arena *arena, Diag *diag, FinderResult *out_result);

#endif
