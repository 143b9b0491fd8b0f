/* What the verbs that compile or explain a training step have in common. */
#ifndef KILN_CLI_STEP_OPTIONS_H
#define KILN_CLI_STEP_OPTIONS_H

#include "common.h"

typedef struct StepOptions {
  bool train, nesterov, clip, accumulate;
  const char *optimizer, *loss, *of;
  int64_t memory_limit;
} StepOptions;

#define STEP_OPTIONS(o)                                                                                             \
  {"train", 0, OPTION_FLAG, &(o).train, NULL, "a training step: forward, loss, backward, update of a state", 0, 0}, \
      {"optimizer", 0, OPTION_TEXT, &(o).optimizer, "NAME", "of the step: sgd (default) or adam", 0, 0},            \
      {"loss",    0,      OPTION_TEXT,                                                                              \
       &(o).loss, "NAME", "of the step: cross_entropy, mse or bce_with_logits (default: the description's)",        \
       0,         0},                                                                                               \
      {"loss-of", 0, OPTION_TEXT, &(o).of, "VALUE", "what the loss is taken of (default: the first output)", 0, 0}, \
      {"nesterov", 0, OPTION_FLAG, &(o).nesterov, NULL, "sgd with Nesterov's momentum", 0, 0},                      \
      {"clip", 0, OPTION_FLAG, &(o).clip, NULL, "measure the gradients' norm and clip by it", 0, 0},                \
      {"accumulate", 0, OPTION_FLAG, &(o).accumulate, NULL, "gradients may be added up over several steps", 0, 0},  \
      {"memory-limit",                                                                                              \
       0,                                                                                                           \
       OPTION_INT,                                                                                                  \
       &(o).memory_limit,                                                                                           \
       "BYTES",                                                                                                     \
       "of workspace: cheap values are computed again rather than kept",                                            \
       1,                                                                                                           \
       INT64_MAX},

/* The request that the options make, or NULL without --train; false after a report. */
bool step_request(Tool *tool, const StepOptions *options, const Graph *graph, const TrainRequest **out_request);

#endif
