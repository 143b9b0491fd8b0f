/* kiln lr-find: how the loss depends on the learning rate. */
#include <math.h>
#include <string.h>

#include "progress.h"
#include "session/train_log.h"
#include "session/train_report.h"
#include "train_options.h"

typedef struct FinderVerb {
  TrainCommand command;
  double low, high, factor;
  int64_t steps;
  const char *plot;
  bool json;
} FinderVerb;

static void show_progress(void *context, const TrainProgress *progress) {
  Progress *bar = context;
  char right[32];
  snprintf(right, sizeof right, "loss %.4f", progress->loss);
  progress_show(bar, "sweep", progress->step, progress->steps, right);
}

static void print_json(Tool *tool, const FinderResult *result) {
  Text text;
  text_init(&text, tool->arena);
  text_add(&text, "{\"steepest\":");
  json_number(&text, result->found ? result->suggestion.steepest_rate : NAN);
  text_add(&text, ",\"tenth_of_lowest\":");
  json_number(&text, result->found ? result->suggestion.tenth_rate : NAN);
  text_format(&text, ",\"diverged\":%s,\"points\":[", result->diverged ? "true" : "false");
  for (size_t i = 0; i < result->count; i++) {
    text_add(&text, i > 0 ? ",[" : "[");
    json_number(&text, result->rates[i]);
    text_add(&text, ",");
    json_number(&text, result->losses[i]);
    text_add(&text, "]");
  }
  text_add(&text, "]}\n");
  fputs(text.data, stdout);
}

static void print_text(const FinderVerb *verb, const FinderResult *result) {
  printf("%zu of %lld batches%s\n", result->count, (long long)verb->steps,
         result->diverged ? ": the loss grew past the limit" : "");
  if (!result->found) {
    printf("the loss never fell: no suggestion\n");
    return;
  }
  printf("steepest         %.2e\n", result->suggestion.steepest_rate);
  printf("lowest / 10      %.2e\n", result->suggestion.tenth_rate);
}

static int find_body(Tool *tool, void *context) {
  FinderVerb *verb = context;
  static const OptionList no_stats;
  TrainSession session;
  if (!(verb->low > 0) || !(verb->high > verb->low) || !(verb->factor > 1)) {
    tool_usage_error(tool, "expected 0 < --low < --high and --stop above 1, found %g, %g and %g", verb->low, verb->high,
                     verb->factor);
    return EXIT_FAILED;
  }
  if (!train_session_open(tool, &verb->command, &no_stats, false, &session)) return EXIT_FAILED;
  double *relative = arena_array(tool->arena, trainer_groups(session.trainer), double);
  for (size_t i = 0; i < trainer_groups(session.trainer); i++) relative[i] = 1;
  Progress progress;
  progress_begin(&progress);
  const volatile sig_atomic_t *stop = stop_flag_install();
  const FinderRun run = {.low = verb->low,
                         .high = verb->high,
                         .steps = verb->steps,
                         .factor = verb->factor,
                         .relative = relative,
                         .momentum = isnan(verb->command.momentum) ? 0.9 : verb->command.momentum,
                         .stop = stop,
                         .events = {.progress = show_progress, .context = &progress}};
  FinderResult result;
  const bool good = train_find_rate(session.trainer, &run, tool->arena, tool->diag, &result);
  progress_clear(&progress);
  if (!good) return EXIT_FAILED;
  if (result.stopped) return 128 + (int)*stop;
  if (verb->json)
    print_json(tool, &result);
  else
    print_text(verb, &result);
  if (verb->plot == NULL) return EXIT_OK;
  return finder_plot_write(verb->plot, session.graph->name, &result, tool->arena, tool->diag) ? EXIT_OK : EXIT_FAILED;
}

static int find_run(int argc, char **argv) {
  FinderVerb verb = {.command = train_command_default(), .low = 1e-7, .high = 10, .factor = 4, .steps = 100};
  const Option options[] = {
      {"low", 0, OPTION_DOUBLE, &verb.low, "RATE", "where the sweep begins (default: 1e-7)", 0, 0},
      {"high", 0, OPTION_DOUBLE, &verb.high, "RATE", "where it ends (default: 10)", 0, 0},
      {"steps", 0, OPTION_INT, &verb.steps, "N", "batches (default: 100)", 10, 100000},
      {"stop", 0, OPTION_DOUBLE, &verb.factor, "F", "end at this many times the best smoothed loss (default: 4)", 0, 0},
      {"plot", 0, OPTION_TEXT, &verb.plot, "FILE", "draw the losses, PNG or SVG", 0, 0},
      TRAIN_OPTIONS(verb.command){"json", 0, OPTION_FLAG, &verb.json, NULL, "print JSON", 0, 0},
      {.name = NULL}};
  int code = options_parse(&verb_lr_find, options, argc, argv, 1, 1, &verb.command.path);
  return code >= 0 ? code : tool_run(find_body, &verb);
}

const Verb verb_lr_find = {
    "lr-find",
    "find a learning rate",
    "MODEL --data DIR [options]",
    "Trains for a hundred batches while the rate grows from 1e-7 to 10, and draws the smoothed loss over the rate\n"
    "(Smith, arXiv 1506.01186). Suggested are the rate at which the loss falls fastest, and a tenth of the rate at "
    "which\n"
    "it is lowest. No weights are written.",
    "  kiln lr-find examples/simple_cnn10_bn.json --data /usr/share/datasets/fashion-mnist --batch 512 --plot "
    "rates.png",
    find_run};
