/* kiln train: a training run. */
#include <math.h>
#include <string.h>

#include "progress.h"
#include "session/train_log.h"
#include "session/train_report.h"
#include "train_options.h"

typedef struct TrainVerb {
  TrainCommand command;
  const char *rate, *schedule, *momenta, *checkpoint, *save, *log, *report, *metric;
  bool one_cycle, resume, json;
  int64_t epochs, checkpoint_every;
  double pct_start, div, div_final, step_every, step_factor; /* NaN: the schedule's default */
  OptionList stats;
} TrainVerb;

/* --- what is told meanwhile ------------------------------------------------------------------------------- */

typedef struct Display {
  const TrainVerb *verb;
  const DataSet *data;
  Progress progress;
  bool accuracy, error_rate, head_printed;
  double started;
} Display;

static void show_progress(void *context, const TrainProgress *progress) {
  Display *display = context;
  char left[48], right[80];
  if (!display->progress.shown) return;
  const double seconds = seconds_now() - display->started;
  snprintf(left, sizeof left, "epoch %lld/%lld", (long long)progress->epoch + 1, (long long)progress->epochs);
  if (progress->to_measure > 0)
    snprintf(right, sizeof right, "measuring %lld of %lld", (long long)progress->measured,
             (long long)progress->to_measure);
  else
    snprintf(right, sizeof right, "loss %.4f  %.0f pictures/s", progress->loss, (double)progress->pictures / seconds);
  progress_show(&display->progress, left, progress->step, progress->steps, right);
}

static void print_cell(const char *format, double value, bool known) {
  if (known)
    printf(format, value);
  else
    printf("  %10s", "-");
}

static void print_epoch(void *context, const TrainEpoch *epoch) {
  Display *display = context;
  char time[32];
  progress_clear(&display->progress);
  if (display->verb->json) return;
  if (!display->head_printed)
    printf("epoch  train_loss  valid_loss%s%s    time\n", display->accuracy ? "    accuracy" : "",
           display->error_rate ? "  error_rate" : "");
  display->head_printed = true;
  const bool measured = epoch->pictures > 0;
  printf("%5lld", (long long)epoch->epoch + 1);
  print_cell("  %10.6f", epoch->train_loss, true);
  print_cell("  %10.6f", epoch->valid_loss, measured);
  if (display->accuracy) print_cell("  %10.4f", epoch->accuracy, measured);
  if (display->error_rate) print_cell("  %10.4f", 1 - epoch->accuracy, measured);
  printf("  %6s\n", duration_text(epoch->seconds, time, sizeof time));
  fflush(stdout);
}

/* --- options ---------------------------------------------------------------------------------------------- */

static bool read_schedule(Tool *tool, const TrainVerb *verb, Schedule *out_schedule) {
  ScheduleKind kind = verb->one_cycle ? SCHEDULE_ONE_CYCLE : SCHEDULE_CONSTANT;
  if (verb->schedule != NULL && (verb->one_cycle || !schedule_parse(verb->schedule, &kind))) {
    tool_usage_error(tool,
                     verb->one_cycle ? "--schedule and --one-cycle exclude each other"
                                     : "--schedule: expected constant, one-cycle, cosine or step, found '%s'",
                     verb->schedule);
    return false;
  }
  Schedule schedule = schedule_default(kind);
  const struct {
    double given, *target;
  } values[] = {{verb->pct_start, &schedule.pct_start},     {verb->div, &schedule.div},
                {verb->div_final, &schedule.div_final},     {verb->step_every, &schedule.step_every},
                {verb->step_factor, &schedule.step_factor}, {verb->command.momentum, &schedule.momentum}};
  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
    if (!isnan(values[i].given)) *values[i].target = values[i].given;
  if (!isnan(verb->command.momentum)) schedule.momentum_high = schedule.momentum_low = verb->command.momentum;
  if (verb->momenta != NULL) {
    const char *comma = strchr(verb->momenta, ',');
    const char *high = comma ? arena_string_n(tool->arena, verb->momenta, (size_t)(comma - verb->momenta)) : "";
    if (comma == NULL || !parse_double(high, &schedule.momentum_high) ||
        !parse_double(comma + 1, &schedule.momentum_low)) {
      tool_usage_error(tool, "--momenta: expected HIGH,LOW such as 0.95,0.85, found '%s'", verb->momenta);
      return false;
    }
  }
  *out_schedule = schedule;
  return schedule_check(&schedule, tool->diag);
}

static bool choose_metrics(Tool *tool, const TrainVerb *verb, const Graph *graph, Display *display) {
  display->accuracy = graph->objective.accuracy || !graph->objective.error_rate;
  display->error_rate = graph->objective.error_rate;
  if (verb->metric == NULL) return true;
  display->accuracy = strcmp(verb->metric, "accuracy") == 0;
  display->error_rate = strcmp(verb->metric, "error_rate") == 0;
  if (display->accuracy || display->error_rate) return true;
  tool_usage_error(tool, "--metric: expected accuracy or error_rate, found '%s'", verb->metric);
  return false;
}

static void add_schedule_identity(const TrainVerb *verb, const Schedule *schedule, Text *text) {
  const struct {
    const char *name;
    double value;
  } numbers[] = {{"pct-start", schedule->pct_start},         {"div", schedule->div},
                 {"div-final", schedule->div_final},         {"momentum", schedule->momentum},
                 {"momentum-high", schedule->momentum_high}, {"momentum-low", schedule->momentum_low},
                 {"step-every", schedule->step_every},       {"step-factor", schedule->step_factor}};
  text_format(text, "epochs %lld\nlr %s\nschedule %s\n", (long long)verb->epochs, verb->rate,
              schedule_name(schedule->kind));
  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
    text_format(text, "%s ", numbers[i].name);
    text_add_double(text, numbers[i].value);
    text_add(text, "\n");
  }
}

/* --- results ---------------------------------------------------------------------------------------------- */

typedef struct Facts {
  TrainFact items[24];
  size_t count;
} Facts;

static void add_fact(Facts *facts, const char *name, const char *value) {
  facts->items[facts->count++] = (TrainFact){name, value};
}

/* "one-cycle to 0.1: from 1/25 over 25 %, down to 1/1e+05, momentum 0.95 to 0.85" */
static const char *schedule_text(Tool *tool, const TrainVerb *verb, const Schedule *schedule) {
  Arena *arena = tool->arena;
  switch (schedule->kind) {
    case SCHEDULE_ONE_CYCLE:
      return arena_format(arena,
                          "one-cycle to %s: from 1/%g over %g %% of the batches, down to 1/%g; momentum %g, %g, %g",
                          verb->rate, schedule->div, 100 * schedule->pct_start, schedule->div_final,
                          schedule->momentum_high, schedule->momentum_low, schedule->momentum_high);
    case SCHEDULE_COSINE:
      return arena_format(arena, "to %s over %g %% of the batches, then half a cosine to 1/%g; momentum %g", verb->rate,
                          100 * schedule->pct_start, schedule->div_final, schedule->momentum);
    case SCHEDULE_STEP:
      return arena_format(arena, "%s, times %g after every %g %% of the batches; momentum %g", verb->rate,
                          schedule->step_factor, 100 * schedule->step_every, schedule->momentum);
    case SCHEDULE_CONSTANT:
      break;
  }
  return arena_format(arena, "%s, constant; momentum %g", verb->rate, schedule->momentum);
}

static bool write_report(Tool *tool, const TrainVerb *verb, const TrainSession *session, const Schedule *schedule,
                         const TrainHistory *history, const Display *display) {
  const TrainCommand *command = &verb->command;
  const TrainerOptions *options = &session->options;
  const bool adam = options->step.optimizer == KILN_OPTIMIZER_ADAM;
  Arena *arena = tool->arena;
  Facts facts = {.count = 0};
  add_fact(&facts, "model", train_session_model_text(tool, session));
  add_fact(&facts, "data", train_session_data_text(tool, session));
  add_fact(&facts, "initial weights", command->init != NULL ? command->init : "random");
  add_fact(&facts, "batch",
           arena_format(arena, "%lld, %lld batches an epoch", (long long)command->batch, (long long)history->batches));
  add_fact(&facts, "learning rate", schedule_text(tool, verb, schedule));
  add_fact(&facts, "optimizer",
           adam ? arena_format(arena, "Adam, beta2 %g, eps %g, decoupled weight decay %g", options->beta2, options->eps,
                               options->weight_decay)
                : arena_format(arena, "SGD%s, weight decay %g", command->nesterov ? ", Nesterov" : "",
                               options->weight_decay));
  if (command->clip > 0) add_fact(&facts, "gradients", arena_format(arena, "clipped to norm %g", command->clip));
  if (command->augment != NULL) add_fact(&facts, "augmentation", command->augment);
  add_fact(&facts, "seed", arena_format(arena, "%lld", (long long)command->seed));
  const Attrs defaults = attrs_default();
  const TrainReport report = {.title = arena_format(arena, "Training of %s", session->graph->name),
                              .facts = facts.items,
                              .fact_count = facts.count,
                              .error_rate = display->error_rate,
                              .low = defaults.low,
                              .high = defaults.high};
  return train_report_write(verb->report, &report, history, arena, tool->diag);
}

static void print_json(Tool *tool, const TrainHistory *history, const TrainOutcome *outcome, double seconds) {
  Text text;
  text_init(&text, tool->arena);
  text_format(&text, "{\"finished\":%s,\"steps\":%lld,\"seconds\":", outcome->result == TRAIN_DONE ? "true" : "false",
              (long long)history->step_count);
  json_number(&text, seconds);
  text_add(&text, ",\"epochs\":[");
  for (int64_t i = 0; i < history->epoch_count; i++) {
    const TrainEpoch *epoch = &history->epochs[i];
    text_format(&text, "%s\n{\"epoch\":%lld,\"train_loss\":", i > 0 ? "," : "", (long long)epoch->epoch + 1);
    json_number(&text, epoch->train_loss);
    text_add(&text, ",\"valid_loss\":");
    json_number(&text, epoch->pictures > 0 ? epoch->valid_loss : NAN);
    text_add(&text, ",\"accuracy\":");
    json_number(&text, epoch->pictures > 0 ? epoch->accuracy : NAN);
    text_add(&text, ",\"seconds\":");
    json_number(&text, epoch->seconds);
    text_add(&text, "}");
  }
  text_add(&text, "]}\n");
  fputs(text.data, stdout);
}

/* After the last epoch: what came out of it, in a line that scripts may compare. */
static void print_result(const TrainHistory *history) {
  if (history->epoch_count == 0) return;
  const TrainEpoch *last = &history->epochs[history->epoch_count - 1];
  double seconds = 0;
  for (int64_t i = 0; i < history->epoch_count; i++) seconds += history->epochs[i].seconds;
  char time[32];
  if (last->pictures > 0)
    printf("accuracy %.4f (%lld of %lld)\n", last->accuracy, llround(last->accuracy * (double)last->pictures),
           (long long)last->pictures);
  fprintf(stderr, "%lld steps in %s\n", (long long)history->step_count, duration_text(seconds, time, sizeof time));
}

static bool save_weights(Tool *tool, const TrainVerb *verb, const TrainSession *session) {
  kiln_error error;
  if (!trainer_store(session->trainer, tool->diag)) return false;
  if (kiln_model_save_weights(session->model, verb->save, &error) == KILN_OK) return true;
  tool_library_error(tool, &error);
  return false;
}

static int finish(Tool *tool, const TrainVerb *verb, const TrainSession *session, const Schedule *schedule,
                  const Display *display, const TrainOutcome *outcome, const TrainHistory *history, int stopped_by) {
  const bool done = outcome->result == TRAIN_DONE;
  if (verb->json) print_json(tool, history, outcome, seconds_now() - display->started);
  if (done && !verb->json) print_result(history);
  if (outcome->result != TRAIN_FAILED && verb->report != NULL &&
      !write_report(tool, verb, session, schedule, history, display))
    return EXIT_FAILED;
  if (done && verb->save != NULL && !save_weights(tool, verb, session)) return EXIT_FAILED;
  if (outcome->result != TRAIN_STOPPED) return done ? EXIT_OK : EXIT_FAILED;
  if (verb->checkpoint != NULL)
    fprintf(stderr, "stopped after %lld of %lld steps; --resume goes on from there\n", (long long)history->step_count,
            (long long)history->step_total);
  else
    fprintf(stderr, "stopped after %lld of %lld steps; nothing is kept without --checkpoint\n",
            (long long)history->step_count, (long long)history->step_total);
  return 128 + stopped_by;
}

/* --- verb ------------------------------------------------------------------------------------------------- */

static int train_body(Tool *tool, void *context) {
  TrainVerb *verb = context;
  TrainSession session;
  Display display = {.verb = verb};
  Schedule schedule;
  if (verb->rate == NULL) {
    tool_usage_error(tool, "--lr is missing; kiln lr-find draws how the loss depends on it");
    return EXIT_FAILED;
  }
  if (verb->resume && verb->checkpoint == NULL) {
    tool_usage_error(tool, "--resume needs --checkpoint DIR");
    return EXIT_FAILED;
  }
  double probe;
  if (!read_schedule(tool, verb, &schedule) || !rates_parse(verb->rate, 1, tool->diag, &probe)) {
    tool->wrong_usage = true;
    return EXIT_FAILED;
  }
  if (!train_session_open(tool, &verb->command, &verb->stats, verb->report != NULL, &session)) return EXIT_FAILED;
  if (!choose_metrics(tool, verb, session.graph, &display)) return EXIT_FAILED;
  double *rates = arena_array(tool->arena, trainer_groups(session.trainer), double);
  if (!rates_parse(verb->rate, trainer_groups(session.trainer), tool->diag, rates)) return EXIT_FAILED;
  add_schedule_identity(verb, &schedule, &session.identity);
  if (!verb->json)
    printf("%s\n%s\n", train_session_model_text(tool, &session), train_session_data_text(tool, &session));
  fflush(stdout);
  const volatile sig_atomic_t *stop = stop_flag_install();
  const TrainRun run = {.epochs = verb->epochs,
                        .schedule = schedule,
                        .rates = rates,
                        .accumulate = verb->command.accumulate,
                        .batch = verb->command.batch,
                        .log = verb->log,
                        .checkpoint = verb->checkpoint,
                        .checkpoint_every = verb->checkpoint_every,
                        .resume = verb->resume,
                        .identity = session.identity.data,
                        .stop = stop,
                        .events = {show_progress, print_epoch, &display}};
  TrainHistory history = {.step_count = 0};
  progress_begin(&display.progress);
  display.started = seconds_now();
  const TrainOutcome outcome = train_run(session.trainer, &run, tool->arena, tool->diag, &history);
  progress_clear(&display.progress);
  if (outcome.resumed_step >= 0)
    fprintf(stderr, "resumed after %lld of %lld steps\n", (long long)outcome.resumed_step,
            (long long)history.step_total);
  return finish(tool, verb, &session, &schedule, &display, &outcome, &history, (int)*stop);
}

static int train_run_verb(int argc, char **argv) {
  TrainVerb verb = {.command = train_command_default(),
                    .epochs = 1,
                    .pct_start = NAN,
                    .div = NAN,
                    .div_final = NAN,
                    .step_every = NAN,
                    .step_factor = NAN};
  const Option options[] = {
      {"epochs", 'e', OPTION_INT, &verb.epochs, "N", "passes over the training pictures (default: 1)", 1, 100000},
      {"lr", 0, OPTION_TEXT, &verb.rate, "RATE", "highest rate; slice(LOW,HIGH) or slice(HIGH) by groups", 0, 0},
      {"one-cycle", 0, OPTION_FLAG, &verb.one_cycle, NULL, "one-cycle schedule of rate and momentum", 0, 0},
      {"schedule", 0, OPTION_TEXT, &verb.schedule, "KIND", "constant (default), one-cycle, cosine or step", 0, 0},
      {"pct-start", 0, OPTION_DOUBLE, &verb.pct_start, "P", "share of the run that the rate rises (0.25; cosine 0.05)",
       0, 0},
      {"div", 0, OPTION_DOUBLE, &verb.div, "D", "one-cycle begins at the highest rate / D (default: 25)", 0, 0},
      {"div-final", 0, OPTION_DOUBLE, &verb.div_final, "D", "and ends at / D (default: 1e5); cosine too", 0, 0},
      {"momenta", 0, OPTION_TEXT, &verb.momenta, "HIGH,LOW", "of one-cycle (default: 0.95,0.85)", 0, 0},
      {"step-every", 0, OPTION_DOUBLE, &verb.step_every, "P", "step: share of the run between steps (default: 1/3)", 0,
       0},
      {"step-factor", 0, OPTION_DOUBLE, &verb.step_factor, "F", "step: multiplies the rate (default: 0.1)", 0, 0},
      {"accumulate", 0, OPTION_INT, &verb.command.accumulate, "N", "batches for an update (default: 1)", 1, 65536},
      TRAIN_OPTIONS(verb.command){"checkpoint", 0, OPTION_TEXT, &verb.checkpoint, "DIR",
                                  "keep the newest two states of the run here", 0, 0},
      {"checkpoint-every", 0, OPTION_INT, &verb.checkpoint_every, "N", "batches; default: after every epoch", 1,
       INT64_MAX},
      {"resume", 0, OPTION_FLAG, &verb.resume, NULL, "go on from the newest of them", 0, 0},
      {"save", 'o', OPTION_TEXT, &verb.save, "FILE", "write the trained weights, a safetensors file", 0, 0},
      {"log", 0, OPTION_TEXT, &verb.log, "FILE", "write every step and epoch, a line of JSON each", 0, 0},
      {"report", 0, OPTION_TEXT, &verb.report, "DIR", "write plots (PNG, SVG) and index.html there", 0, 0},
      {"stats", 0, OPTION_LIST, &verb.stats, "PATTERN", "values whose statistics the report shows", 0, 0},
      {"metric", 0, OPTION_TEXT, &verb.metric, "NAME", "accuracy or error_rate (default: as described)", 0, 0},
      {"json", 0, OPTION_FLAG, &verb.json, NULL, "print JSON at the end", 0, 0},
      {.name = NULL}};
  int code = options_parse(&verb_train, options, argc, argv, 1, 1, &verb.command.path);
  return code >= 0 ? code : tool_run(train_body, &verb);
}

const Verb verb_train = {
    "train",
    "train a model on labelled pictures",
    "MODEL --data DIR --lr RATE [options]",
    "Compiles a training step (forward, loss, backward, update) and runs it over the pictures. The same seed gives "
    "the\n"
    "same weights, bit by bit, whatever --threads and --workers are. SIGINT and SIGTERM end the run after the step at\n"
    "hand with a checkpoint (exit 130 or 143); --resume goes on as if nothing had happened. A loss that is not finite\n"
    "ends the run with the step and the first value that was not. Pictures that make no full batch at the end of an\n"
    "epoch are left out of it, in every epoch others; --keep-last trains on them too. Threads: without a core left "
    "for\n"
    "--workers, those of the step prepare its batches.\n"
    "\n" AUGMENT_HELP,
    "  kiln train examples/simple_cnn10_bn.json --data /usr/share/datasets/fashion-mnist --epochs 5 --batch 512 --lr "
    "0.1 "
    "\\\n"
    "    --one-cycle --save w.safetensors --report report/\n"
    "  kiln train examples/resnet34_pets.json --data pets/ --pattern '^(.*)_[0-9]+[.]jpg$' --init resnet34.safetensors "
    "\\\n"
    "    --init-skip 'head.*' --shape image=N,3,224,224 --resize 256 --augment default --epochs 3 --lr 1e-2 "
    "--one-cycle "
    "\\\n"
    "    --pct-start 0.8 --checkpoint run/\n"
    "  kiln train … --threads 2 --affinity 0-1 --workers 1\n"
    "  kiln train … --checkpoint run/ --resume\n"
    "  kiln train … --unfreeze all --lr 'slice(1e-6,1e-4)' --init stage1.safetensors",
    train_run_verb};
