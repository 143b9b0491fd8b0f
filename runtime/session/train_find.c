#include <math.h>

#include "train.h"

static bool stop_wanted(const FinderRun *run) { return run->stop != NULL && *run->stop != 0; }

bool train_find_rate(Trainer *trainer, const FinderRun *run, Arena *arena, Diag *diag, FinderResult *out_result) {
  const size_t groups = trainer_groups(trainer);
  double *rates = arena_array(arena, groups, double), best = INFINITY;
  FinderResult result = {.rates = arena_array(arena, (size_t)run->steps, double),
                         .losses = arena_array(arena, (size_t)run->steps, double)};
  Smoother smoother = {.beta = 0.98};
  trainer_seek(trainer, 0, 0);
  for (int64_t step = 0; step < run->steps && !result.diverged; step++) {
    if (stop_wanted(run)) {
      result.stopped = true;
      break;
    }
    const double rate = sweep_rate(run->low, run->high, step, run->steps);
    for (size_t i = 0; i < groups; i++) rates[i] = rate * run->relative[i];
    const StepSettings settings = {
        .rates = rates, .momentum = run->momentum, .step = step, .update = step + 1, .scale = 1, .apply = true};
    double loss;
    if (!trainer_step(trainer, &settings, diag, &loss)) return false;
    result.diverged = !isfinite(loss);
    if (result.diverged) break;
    const double smoothed = smoother_add(&smoother, loss);
    result.rates[result.count] = rate;
    result.losses[result.count++] = smoothed;
    best = fmin(best, smoothed);
    result.diverged = smoothed > run->factor * best;
    const TrainProgress progress = {.epochs = 1, .step = step + 1, .steps = run->steps, .loss = smoothed};
    if (run->events.progress != NULL) run->events.progress(run->events.context, &progress);
  }
  result.found = sweep_suggest(result.rates, result.losses, result.count, &result.suggestion);
  *out_result = result;
  return true;
}
