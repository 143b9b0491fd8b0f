/* What the files of the pass `train` share: train.c makes the step, train_state.c lays out what it changes. */
#ifndef KILN_PASSES_TRAIN_STEP_H
#define KILN_PASSES_TRAIN_STEP_H

#include "passes.h"
#include "rewrite.h"

/* Every parameter begins at a multiple of this many elements of a row of the state. */
enum { STATE_ALIGNMENT = 16 };

/* An update of running statistics. */
typedef struct BatchNorm {
  Node *running, *stats, *x, *norm;
  int64_t row; /* of stats: 0 mean, 1 variance */
} BatchNorm;

typedef struct TrainState {
  Graph *graph;
  const TrainRequest *request;
  Diag *diag;
  Arena *scratch;
  Node *of, *target, *hyper, *rng; /* rng may be NULL */
  Node *loss, *norm;               /* norm: NULL without clipping */
  Node **targets, **gradients;     /* trained parameters, then hooked values; gradients that are 0 are NULL */
  size_t trained_count, target_count;
  bool *batch_norm; /* by id below norm_ids: a batch norm that is trained */
  uint32_t norm_ids;
  bool *cancelled; /* by id of nodes before the gradients: a parameter whose gradient is 0 */
  Node **stats;    /* by id of their input, below stats_ids */
  uint32_t stats_ids;
  BatchNorm *updates;
  size_t update_count;
  Node *state, *flat; /* the parameter, and all its elements in a row */
  int64_t row;        /* elements of a row */
  size_t *order;      /* slot → target */
  bool *slot_of;      /* by id: a trained parameter */
  IntList segments, decayed;
} TrainState;

/* Gives every trained parameter its slot, and adds the parameter `state`. */
bool train_lay_out_state(TrainState *state);
/* Trained parameters become views of the state. */
bool train_slice_parameters(TrainState *state, Rewrite *rewrite);
/* Packs the gradients and ends the step with the update. Sets state->norm. */
bool train_update_state(TrainState *state, Rewrite *rewrite);
/* Parameters that the step does not read are no parameters of the program; `state` becomes the first one, other updated
 * ones follow. */
void train_drop_parameters(TrainState *state);

#endif
