/* What training is done with: a compiled step and its state, the inference program that measures progress, and loaders
 * of both parts of the data. The loops over it stand in train.h and in the learning-rate finder. */
#ifndef KILN_RUNTIME_SESSION_TRAINER_H
#define KILN_RUNTIME_SESSION_TRAINER_H

#include <signal.h>

#include "data.h"
#include "kiln.h"
#include "ops.h"

/* Everything is only read, and must stay valid as long as the trainer. */
typedef struct TrainerOptions {
  int64_t batch;
  bool keep_last;          /* train on the last batch of an epoch too when it is not full */
  kiln_train_options step; /* loss and output resolved by trainer_compile */
  kiln_compile_options compile;
  double beta2, eps, weight_decay, clip_norm; /* clip_norm is used when step.clip is set */
  int64_t accumulate;                         /* batches for an update */
  uint64_t seed;                              /* of order, augmentation and dropout */
  const Augment *augment;                     /* NULL: none */
  uint32_t threads;
  const uint32_t *affinity; /* of kiln_context_options */
  size_t affinity_count;
  int64_t workers;          /* of each loader; 0: the step's threads fill its batches in between */
  const char *const *stats; /* patterns of values whose statistics every step gives */
  size_t stats_count;
} TrainerOptions;

typedef struct Trainer Trainer;

/* Compiles and allocates. The model's parameters have values; it is changed by trainer_store only, but must not be used
 * otherwise as long as the trainer lives, which is as long as `arena`. */
bool trainer_compile(kiln_model *model, const TrainerOptions *options, Arena *arena, Diag *diag, Trainer **out_trainer);
/* Gives the compiled trainer its data, once and before everything else. Reports data that does not fit the model. */
bool trainer_attach(Trainer *trainer, const DataSet *data, Diag *diag);

/* Batches of an epoch, and groups with a learning rate of their own. */
int64_t trainer_batches(const Trainer *trainer);
size_t trainer_groups(const Trainer *trainer);

/* What changes from step to step. `rates` has one for each group. */
typedef struct StepSettings {
  const double *rates;
  double momentum; /* SGD: momentum; Adam: beta1 */
  int64_t step;    /* batches so far: with the seed, the key of dropout */
  int64_t update;  /* updates so far, with this one; from 1 */
  int64_t scale;   /* batches that this update is the mean of */
  bool apply;      /* false: only adds the gradients up */
} StepSettings;

/* Takes the next batch of the training part. A loss that is not finite is no failure here: the state is
 * then unchanged. */
bool trainer_step(Trainer *trainer, const StepSettings *settings, Diag *diag, double *out_loss);
/* The next batch is `batch` of `epoch`. */
void trainer_seek(Trainer *trainer, int64_t epoch, int64_t batch);
/* Repeats the last step, whose loss was not finite, value by value, and reports which is the first with elements that
 * are not finite. Always returns false. */
bool trainer_explain(Trainer *trainer, int64_t step, Diag *diag);

/* Statistics of the last step: f32 [width] each, as KILN_HOOK_STATS says. */
typedef struct TrainerStats {
  const char *const *names;
  const float *const *values;
  size_t count, width;
} TrainerStats;
const TrainerStats *trainer_stats(const Trainer *trainer);

typedef struct Evaluation {
  int64_t count; /* pictures */
  double loss;   /* mean over the pictures */
  double accuracy;
} Evaluation;

/* Measures the present state on the validation part. Stops early, with *out_evaluation undefined and `true`, when *stop
 * becomes non-zero. `progress` (may be NULL) is told after every batch. */
typedef void (*EvaluateProgress)(void *context, int64_t done, int64_t count);
bool trainer_evaluate(Trainer *trainer, const volatile sig_atomic_t *stop, EvaluateProgress progress, void *context,
                      Diag *diag, Evaluation *out_evaluation);

/* Copies what was trained to the model. */
bool trainer_store(Trainer *trainer, Diag *diag);
kiln_state *trainer_state(const Trainer *trainer);
/* The step's program, for its name and instruction set. */
const kiln_program *trainer_program(const Trainer *trainer);

/* --- metrics -------------------------------------------------------------------------------------------- */

/* Sums over pictures, in double and in their order. */
typedef struct Metrics {
  int64_t count, correct;
  double loss;
} Metrics;

/* Adds `count` pictures of `classes` scores each. `loss` is OP_CROSS_ENTROPY, OP_MSE or OP_BCE_WITH_LOGITS; for the
 * last two the target is 1 at the picture's class and 0 elsewhere, or with one score the class itself. */
void metrics_add(Metrics *metrics, OpCode loss, const float *scores, const int64_t *targets, int64_t count,
                 int64_t classes);
/* The same targets as numbers, as mse and bce_with_logits take them. */
void targets_expand(const int64_t *targets, int64_t count, int64_t classes, float *out_values);

#endif
