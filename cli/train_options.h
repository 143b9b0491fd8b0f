/* What kiln train and kiln lr-find share: their options, and from these an open trainer. */
#ifndef KILN_CLI_TRAIN_OPTIONS_H
#define KILN_CLI_TRAIN_OPTIONS_H

#include "affinity.h"
#include "data_options.h"
#include "session/train.h"

typedef struct TrainCommand {
  const char *path;
  ModelOptions model;
  DataCommand data;
  int64_t batch, seed, accumulate, memory_limit;
  const char *augment, *optimizer, *loss, *output, *init, *init_mode;
  bool nesterov, keep_last, freeze_batch_norm;
  double momentum, beta2, eps, weight_decay, clip; /* NaN: the default */
  OptionList freeze, unfreeze, init_skip;
} TrainCommand;

#define TRAIN_OPTIONS(o)                                                                                              \
  DATA_OPTIONS((o).data)                                                                                              \
  AUGMENT_OPTION((o).augment){                                                                                        \
      "batch", 'b', OPTION_INT, &(o).batch, "N", "pictures of a step (default: 64)", 1, 65536},                       \
      {"keep-last", 0,                                                                                                \
       OPTION_FLAG, &(o).keep_last,                                                                                   \
       NULL,        "train on an epoch's last batch if not full too (else left out)",                                 \
       0,           0},                                                                                               \
      {"optimizer", 0, OPTION_TEXT, &(o).optimizer, "NAME", "adam (default; decoupled decay) or sgd", 0, 0},          \
      {"momentum", 0, OPTION_DOUBLE, &(o).momentum, "M", "of sgd, or beta1 of adam (default: 0.9)", 0, 0},            \
      {"nesterov", 0, OPTION_FLAG, &(o).nesterov, NULL, "Nesterov's momentum (sgd)", 0, 0},                           \
      {"beta2", 0, OPTION_DOUBLE, &(o).beta2, "B", "of adam (default: 0.99)", 0, 0},                                  \
      {"eps", 0, OPTION_DOUBLE, &(o).eps, "E", "of adam (default: 1e-5)", 0, 0},                                      \
      {"wd", 0, OPTION_DOUBLE, &(o).weight_decay, "W", "weight decay (default: adam 0.01, sgd 0)", 0, 0},             \
      {"clip", 0, OPTION_DOUBLE, &(o).clip, "NORM", "clip the gradients' global norm", 0, 0},                         \
      {"loss", 0, OPTION_TEXT, &(o).loss, "NAME", "cross_entropy, mse or bce_with_logits (default: as described)",    \
       0,      0},                                                                                                    \
      {"loss-of", 0, OPTION_TEXT, &(o).output, "OUTPUT", "what the loss is taken of (default: the first)", 0, 0},     \
      {"init", 'w', OPTION_TEXT, &(o).init, "FILE", "weights to begin with, a safetensors file", 0, 0},               \
      {"init-skip", 0, OPTION_LIST, &(o).init_skip, "PATTERN", "not these from that file, e.g. 'head.*'", 0, 0},      \
      {"init-mode", 0, OPTION_TEXT, &(o).init_mode, "MODE", "other weights: pytorch (default) or kaiming", 0, 0},     \
      {"freeze", 0, OPTION_LIST, &(o).freeze, "GROUP", "do not train a group, but its batch norms", 0, 0},            \
      {"freeze-bn", 0, OPTION_FLAG, &(o).freeze_batch_norm, NULL, "nor its batch norms", 0, 0},                       \
      {"unfreeze", 0, OPTION_LIST, &(o).unfreeze, "GROUP", "train a group that is described as frozen; all", 0, 0},   \
      {"seed", 0, OPTION_INT, &(o).seed, "S", "of weights, order, augmentation, dropout (default: 0)", 0, INT64_MAX}, \
      {"memory-limit", 0, OPTION_INT, &(o).memory_limit, "BYTES", "of a step: cheap values are computed again", 1,    \
       INT64_MAX},                                                                                                    \
      {"threads", 't', OPTION_INT, &(o).model.threads, "T", "threads of a step (default: 1)", 1, 64},                 \
      AFFINITY_OPTION((o).model)                                                                                      \
      {"precision", 0, OPTION_TEXT, &(o).model.precision, "MODE", "strict, default or fast", 0, 0},                   \
      {"cpu", 0, OPTION_TEXT, &(o).model.cpu, "LEVEL", "native, x86-64-v2, x86-64-v3 or x86-64-v4", 0, 0},            \
      {"device", 0, OPTION_TEXT, &(o).model.device, "DEVICE", "cpu (default), cuda or cuda:N, an NVIDIA GPU", 0, 0},  \
      {"math", 0, OPTION_TEXT, &(o).model.math, "MODE", "on GPUs: fp32, 3xtf32, tf32, bf16 or fp16", 0, 0},           \
      SHAPE_OPTION((o).model)

/* The defaults that are not zero. */
TrainCommand train_command_default(void);

/* Lives as long as the tool. */
typedef struct TrainSession {
  Graph *graph;
  kiln_model *model;
  DataSet *data;
  Augment augment;
  TrainerOptions options;
  Trainer *trainer;
  Text identity; /* see TrainRun; the verb adds its own lines */
} TrainSession;

/* Reads model, weights and data, and compiles. `stats`: patterns of values whose statistics are wanted; NULL with
 * `default_stats`: the outputs of the top-level blocks that end in a relu. Warnings are printed at once. */
bool train_session_open(Tool *tool, const TrainCommand *command, const OptionList *stats, bool default_stats,
                        TrainSession *out_session);
/* "simple_cnn10_bn: 30,542 parameters, …" and "60,000 pictures 1x28x28 in 10 classes, …", in the tool's arena. */
const char *train_session_model_text(Tool *tool, const TrainSession *session);
const char *train_session_data_text(Tool *tool, const TrainSession *session);

/* The first SIGINT or SIGTERM sets the flag; the second ends the program. */
const volatile sig_atomic_t *stop_flag_install(void);

#endif
