#include <math.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "train_log.h"
#include "train_state.h"

enum { STATS_RECORDS_MAX = 2000 }; /* more columns than a plot of them has */

typedef struct Loop {
  Trainer *trainer;
  const TrainRun *run;
  TrainHistory *history;
  Arena *arena;
  Arena *scratch; /* reset after every step */
  Diag *diag;
  TrainLog *log;
  CheckpointFolder folder;
  TrainPosition position;
  Smoother smoother;
  double *rates;      /* of the step at hand */
  double epoch_start; /* on seconds_now's clock, less what the epoch took before a resumption */
  int64_t pictures;
  int64_t saved_epoch; /* of the last checkpoint, whose step the outcome has */
  TrainOutcome outcome;
} Loop;

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool stop_wanted(const Loop *loop) { return loop->run->stop != NULL && *loop->run->stop != 0; }

/* --- history and log -------------------------------------------------------------------------------------- */

static void history_init(Loop *loop) {
  TrainHistory *history = loop->history;
  const TrainerStats *stats = trainer_stats(loop->trainer);
  const int64_t batches = trainer_batches(loop->trainer), total = batches * loop->run->epochs;
  const int64_t every = ceil_div(total, STATS_RECORDS_MAX), records = ceil_div(total, every);
  *history = (TrainHistory){.step_total = total,
                            .batches = batches,
                            .stats_every = every,
                            .stats_count = stats->count,
                            .stats_width = stats->width,
                            .stats_names = stats->names};
  history->steps = arena_array(loop->arena, (size_t)total, TrainStep);
  history->epochs = arena_array(loop->arena, (size_t)loop->run->epochs, TrainEpoch);
  history->stats = arena_array(loop->arena, (size_t)records * stats->count * stats->width, float);
}

static void record_stats(Loop *loop) {
  TrainHistory *history = loop->history;
  const TrainerStats *stats = trainer_stats(loop->trainer);
  if (loop->position.step % history->stats_every != 0) return;
  float *at = history->stats + (size_t)history->stats_records * stats->count * stats->width;
  for (size_t i = 0; i < stats->count; i++) memcpy(at + i * stats->width, stats->values[i], stats->width * sizeof *at);
  history->stats_records++;
}

static bool log_step(Loop *loop, const TrainStep *step) {
  if (loop->log->path == NULL) return true;
  Text line;
  text_init(&line, loop->scratch);
  text_format(&line, "{\"event\":\"step\",\"epoch\":%lld,\"step\":%lld,\"loss\":", (long long)loop->position.epoch + 1,
              (long long)loop->position.step + 1);
  json_number(&line, step->loss);
  text_add(&line, ",\"smoothed\":");
  json_number(&line, smoother_value(&loop->smoother));
  text_add(&line, ",\"rates\":[");
  for (size_t i = 0; i < trainer_groups(loop->trainer); i++) {
    if (i > 0) text_add(&line, ",");
    json_number(&line, loop->rates[i]);
  }
  text_add(&line, "],\"momentum\":");
  json_number(&line, step->momentum);
  text_add(&line, "}\n");
  return train_log_add(loop->log, line.data, line.size, loop->diag);
}

static bool log_epoch(Loop *loop, const TrainEpoch *epoch) {
  if (loop->log->path == NULL) return true;
  Text line;
  text_init(&line, loop->scratch);
  text_format(&line, "{\"event\":\"epoch\",\"epoch\":%lld,\"train_loss\":", (long long)epoch->epoch + 1);
  json_number(&line, epoch->train_loss);
  if (epoch->pictures > 0) {
    text_add(&line, ",\"valid_loss\":");
    json_number(&line, epoch->valid_loss);
    text_add(&line, ",\"accuracy\":");
    json_number(&line, epoch->accuracy);
  }
  text_format(&line, ",\"pictures\":%lld,\"seconds\":", (long long)epoch->pictures);
  json_number(&line, round(epoch->seconds * 1e3) / 1e3);
  text_add(&line, "}\n");
  return train_log_add(loop->log, line.data, line.size, loop->diag);
}

/* The first line: what the run is. */
static bool log_head(Loop *loop) {
  if (loop->log->path == NULL) return true;
  Text line;
  text_init(&line, loop->scratch);
  text_add(&line, "{\"event\":\"run\"");
  for (const char *at = loop->run->identity; *at != '\0';) {
    const size_t length = strcspn(at, "\n"), name = strcspn(at, " \n");
    const size_t skip = name < length ? name + 1 : length;
    text_add(&line, ",");
    text_add_json(&line, arena_string_n(loop->scratch, at, name));
    text_add(&line, ":");
    text_add_json(&line, arena_string_n(loop->scratch, at + skip, length - skip));
    at += length + (at[length] == '\n');
  }
  text_format(&line, ",\"batches\":%lld,\"steps\":%lld}\n", (long long)loop->history->batches,
              (long long)loop->history->step_total);
  return train_log_add(loop->log, line.data, line.size, loop->diag);
}

/* --- checkpoints ------------------------------------------------------------------------------------------ */

static bool save_checkpoint(Loop *loop) {
  const bool same = loop->position.step == loop->outcome.checkpoint_step && loop->position.epoch == loop->saved_epoch;
  if (loop->run->checkpoint == NULL || same) return true;
  if (!train_log_flush(loop->log, loop->diag)) return false;
  TrainPosition *position = &loop->position;
  position->log_size = loop->log->size;
  position->seconds = seconds_now() - loop->epoch_start;
  position->smoothed = loop->smoother.average;
  position->smoothed_count = (double)loop->smoother.count;
  position->epoch_count = loop->history->epoch_count;
  position->stats_records = loop->history->stats_records;
  if (!train_state_write(&loop->folder, loop->trainer, loop->run->identity, position, loop->history, loop->diag))
    return false;
  loop->outcome.checkpoint_step = position->step;
  loop->saved_epoch = position->epoch;
  return true;
}

/* Opens the folder, and goes to where its newest checkpoint stands when the run is to be resumed. */
static bool open_checkpoints(Loop *loop) {
  const TrainRun *run = loop->run;
  size_t count;
  if (run->checkpoint == NULL) return true;
  if (!checkpoint_folder_open(run->checkpoint, loop->arena, loop->diag, &loop->folder) ||
      !checkpoint_count(&loop->folder, loop->arena, loop->diag, &count))
    return false;
  if (!run->resume && count > 0) {
    diag_error(loop->diag, (Location){run->checkpoint, 0, 0},
               "holds checkpoints of an earlier run: give --resume to go on with it, or another folder");
    return false;
  }
  if (!run->resume) return true;
  Checkpoint checkpoint;
  bool found;
  if (!checkpoint_read(&loop->folder, loop->arena, loop->diag, &checkpoint, &found)) return false;
  if (!found) return true;
  if (!train_state_read(&checkpoint, loop->trainer, run->identity, &loop->position, loop->history, loop->arena,
                        loop->diag))
    return false;
  loop->outcome.resumed_step = loop->outcome.checkpoint_step = loop->position.step;
  loop->saved_epoch = loop->position.epoch;
  loop->smoother.average = loop->position.smoothed;
  loop->smoother.count = (int64_t)loop->position.smoothed_count;
  return true;
}

/* --- the run ---------------------------------------------------------------------------------------------- */

static void tell_progress(Loop *loop, int64_t measured, int64_t to_measure) {
  const TrainEvents *events = &loop->run->events;
  if (events->progress == NULL) return;
  const TrainProgress progress = {.epoch = loop->position.epoch,
                                  .epochs = loop->run->epochs,
                                  .step = loop->position.step,
                                  .steps = loop->history->step_total,
                                  .pictures = loop->pictures,
                                  .loss = smoother_value(&loop->smoother),
                                  .measured = measured,
                                  .to_measure = to_measure};
  events->progress(events->context, &progress);
}

static void tell_measured(void *context, int64_t done, int64_t count) { tell_progress(context, done, count); }

/* Batches that the update with batch `step` is the mean of: fewer for the last of a run. */
static int64_t accumulated(const Loop *loop, int64_t step) {
  const int64_t first = step - step % loop->run->accumulate, left = loop->history->step_total - first;
  return left < loop->run->accumulate ? left : loop->run->accumulate;
}

static bool run_step(Loop *loop) {
  TrainPosition *position = &loop->position;
  const SchedulePoint point = schedule_at(&loop->run->schedule, position->step, loop->history->step_total);
  const int64_t scale = accumulated(loop, position->step);
  const size_t groups = trainer_groups(loop->trainer);
  for (size_t i = 0; i < groups; i++) loop->rates[i] = loop->run->rates[i] * point.factor;
  const StepSettings settings = {.rates = loop->rates,
                                 .momentum = point.momentum,
                                 .step = position->step,
                                 .update = position->update + 1,
                                 .scale = scale,
                                 .apply = position->step % loop->run->accumulate == scale - 1};
  double loss;
  if (!trainer_step(loop->trainer, &settings, loop->diag, &loss)) return false;
  if (!isfinite(loss)) return trainer_explain(loop->trainer, position->step, loop->diag);
  TrainStep *step = &loop->history->steps[position->step];
  *step = (TrainStep){loss, loop->rates[groups - 1], point.momentum};
  smoother_add(&loop->smoother, loss);
  record_stats(loop);
  if (!log_step(loop, step)) return false;
  arena_reset(loop->scratch);
  position->step++;
  position->batch++;
  position->update += settings.apply;
  loop->history->step_count = position->step;
  loop->pictures += loop->run->batch;
  tell_progress(loop, 0, 0);
  return true;
}

/* Steps of the epoch at hand that are left; leaves early when the run is to stop. */
static bool run_steps(Loop *loop) {
  const int64_t every = loop->run->checkpoint_every;
  while (loop->position.batch < loop->history->batches && !stop_wanted(loop)) {
    if (!run_step(loop)) return false;
    if (every > 0 && loop->position.step % every == 0 && !save_checkpoint(loop)) return false;
  }
  return true;
}

/* Measures and closes the epoch. False with the position unchanged when the run is to stop meanwhile. */
static bool finish_epoch(Loop *loop) {
  Evaluation evaluation;
  TrainPosition *position = &loop->position;
  if (!trainer_evaluate(loop->trainer, loop->run->stop, tell_measured, loop, loop->diag, &evaluation)) {
    loop->outcome.result = TRAIN_FAILED;
    return false;
  }
  if (stop_wanted(loop)) return false;
  const TrainEpoch epoch = {.epoch = position->epoch,
                            .pictures = evaluation.count,
                            .train_loss = smoother_value(&loop->smoother),
                            .valid_loss = evaluation.loss,
                            .accuracy = evaluation.accuracy,
                            .seconds = seconds_now() - loop->epoch_start};
  loop->history->epochs[loop->history->epoch_count++] = epoch;
  if (!log_epoch(loop, &epoch)) {
    loop->outcome.result = TRAIN_FAILED;
    return false;
  }
  position->epoch++;
  position->batch = 0;
  loop->epoch_start = seconds_now();
  if (loop->run->events.epoch != NULL) loop->run->events.epoch(loop->run->events.context, &epoch);
  return true;
}

static TrainResult run_epochs(Loop *loop) {
  loop->outcome.result = TRAIN_DONE;
  while (loop->position.epoch < loop->run->epochs) {
    if (!run_steps(loop)) return TRAIN_FAILED;
    const bool finished = !stop_wanted(loop) && finish_epoch(loop);
    if (loop->outcome.result == TRAIN_FAILED || !save_checkpoint(loop)) return TRAIN_FAILED;
    if (!finished) return TRAIN_STOPPED;
  }
  return TRAIN_DONE;
}

static void destroy_scratch(void *scratch) { arena_destroy(scratch); }

TrainOutcome train_run(Trainer *trainer, const TrainRun *run, Arena *arena, Diag *diag, TrainHistory *out_history) {
  Loop loop = {.trainer = trainer,
               .run = run,
               .history = out_history,
               .arena = arena,
               .scratch = arena_create(NULL),
               .diag = diag,
               .smoother = {.beta = 0.98},
               .outcome = {TRAIN_FAILED, -1, -1}};
  jmp_buf *point = arena_on_failure(arena, NULL);
  arena_on_failure(arena, point);
  if (loop.scratch == NULL) arena_fail(arena);
  arena_defer(arena, destroy_scratch, loop.scratch);
  arena_on_failure(loop.scratch, point);
  history_init(&loop);
  loop.rates = arena_array(arena, trainer_groups(trainer), double);
  if (!open_checkpoints(&loop) || !train_log_open(run->log, loop.position.log_size, arena, diag, &loop.log))
    return loop.outcome;
  if (loop.log->size == 0 && !log_head(&loop)) return loop.outcome;
  /* after the last batch of an epoch the loader stands before the next one's first */
  const bool whole = loop.position.batch == out_history->batches;
  trainer_seek(trainer, loop.position.epoch + whole, whole ? 0 : loop.position.batch);
  for (int64_t i = 0; i < out_history->epoch_count; i++)
    if (run->events.epoch != NULL) run->events.epoch(run->events.context, &out_history->epochs[i]);
  loop.epoch_start = seconds_now() - loop.position.seconds;
  loop.outcome.result = run_epochs(&loop);
  return loop.outcome;
}
