/* The trainer's parts, for the files that implement trainer.h. */
#ifndef KILN_RUNTIME_SESSION_TRAINER_INTERNAL_H
#define KILN_RUNTIME_SESSION_TRAINER_INTERNAL_H

#include "trainer.h"

struct Trainer {
  Arena *arena;
  kiln_model *model;
  const DataSet *data;
  TrainerOptions options;
  OpCode loss_op;
  size_t output;   /* of the model: what is trained */
  int64_t classes; /* scores of a picture */

  kiln_executable *step, *inference;
  kiln_context *step_context, *inference_context;
  kiln_state *state;
  DataLoader *train_loader, *valid_loader; /* valid_loader: NULL without pictures for validation */
  bool valid_underway;                     /* valid_loader may not stand at its first batch */

  size_t groups;
  const void **inputs; /* of the step, in table order */
  void **outputs;
  uint32_t image_input, target_input;
  float *hyper, *expanded_targets;
  const float *loss;
  int64_t *random; /* NULL: no dropout */
  DataBatch batch; /* of the last step */
  TrainerStats stats;
  void **evaluate_outputs; /* of the inference program; NULL: not yet made */
};

/* Reports what a function of kiln.h said. Always false. */
bool trainer_failed(const Trainer *trainer, const kiln_error *error, Diag *diag);

#endif
