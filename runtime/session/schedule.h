/* Learning rates over a run, and the rows of scalars that an optimiser's step takes.
 *
 * A schedule says, before every batch, which part of a group's highest rate holds and what the momentum is; all in
 * double precision from the batch's number alone, so that a resumed run goes on exactly where it was. */
#ifndef KILN_RUNTIME_SESSION_SCHEDULE_H
#define KILN_RUNTIME_SESSION_SCHEDULE_H

#include "base/arena.h"
#include "base/diag.h"

typedef enum ScheduleKind {
  SCHEDULE_CONSTANT,
  SCHEDULE_ONE_CYCLE, /* Smith, "A disciplined approach to neural network hyper-parameters", arXiv 1803.09820, with
                         cosine halves: up from 1/div over pct_start of the batches, then down to 1/div_final; the
                         momentum runs the other way, momentum_high → momentum_low → momentum_high */
  SCHEDULE_COSINE,    /* linear from 0 over pct_start of the batches, then half a cosine down to 1/div_final */
  SCHEDULE_STEP       /* multiplied by step_factor after every step_every of the run (0.3: after 30 %, 60 %, 90 %) */
} ScheduleKind;

typedef struct Schedule {
  ScheduleKind kind;
  double pct_start;                   /* 0 … 1 */
  double div, div_final;              /* ≥ 1 */
  double momentum;                    /* of the kinds that leave it alone */
  double momentum_high, momentum_low; /* of one-cycle */
  double step_every, step_factor;
} Schedule;

typedef struct SchedulePoint {
  double factor; /* of the highest rate */
  double momentum;
} SchedulePoint;

/* Defaults of a kind: pct_start 0.25 (one-cycle) or 0.05 (cosine), div 25, div_final 1e5, momenta 0.95 and 0.85, steps
 * of 1/3 by 0.1, momentum 0.9. */
Schedule schedule_default(ScheduleKind kind);
/* "constant", "one-cycle", "cosine", "step" */
const char *schedule_name(ScheduleKind kind);
bool schedule_parse(const char *name, ScheduleKind *out_kind);
/* Reports values outside of their range, by the names of the command line's options. */
bool schedule_check(const Schedule *schedule, Diag *diag);
/* Before batch `step` of `steps` (both counted over the whole run); 0 ≤ step < steps. */
SchedulePoint schedule_at(const Schedule *schedule, int64_t step, int64_t steps);

/* --- rates of groups ------------------------------------------------------------------------------------ */

/* The highest rate of each of `count` groups from "0.1" (all), "slice(lo,hi)" (geometric from the first group to the
 * last) or "slice(hi)" (hi/10 for all but the last). One group gets hi. Rates are positive and finite. */
bool rates_parse(const char *text, size_t count, Diag *diag, double *out_rates);

/* --- learning-rate finder ------------------------------------------------------------------------------- */

/* low · (high/low)^(step/(steps−1)); steps ≥ 2. */
double sweep_rate(double low, double high, int64_t step, int64_t steps);

/* An exponentially smoothed series, de-biased as the first values would otherwise be drawn towards 0:
 * average ← β·average + (1−β)·x; value = average / (1 − β^count). */
typedef struct Smoother {
  double beta, average;
  int64_t count;
} Smoother;

double smoother_add(Smoother *smoother, double value);
/* NaN before the first value. */
double smoother_value(const Smoother *smoother);

/* Where to learn, from a sweep's smoothed losses: the rate at which the loss falls fastest per decade, and a tenth of
 * the rate of its minimum. The slope is that of a straight line through seven neighbours, so that a wiggle does not
 * win. `steepest` and `minimum` are indices. False when the loss never falls. */
typedef struct SweepSuggestion {
  size_t steepest, minimum;
  double steepest_rate, tenth_rate;
} SweepSuggestion;

bool sweep_suggest(const double *rates, const double *losses, size_t count, SweepSuggestion *out_suggestion);

#endif
