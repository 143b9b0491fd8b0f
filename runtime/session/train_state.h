/* A run at a place between two batches, as a checkpoint keeps it. */
#ifndef KILN_RUNTIME_SESSION_TRAIN_STATE_H
#define KILN_RUNTIME_SESSION_TRAIN_STATE_H

#include "checkpoint.h"
#include "train.h"

/* Stored as it is: eight-byte members only. */
typedef struct TrainPosition {
  int64_t epoch, batch; /* the next; batch = all of an epoch: it is to be measured */
  int64_t step, update; /* done so far */
  int64_t log_size;
  double seconds; /* of the epoch so far */
  double smoothed, smoothed_count;
  int64_t epoch_count, stats_records;
} TrainPosition;

bool train_state_write(CheckpointFolder *folder, Trainer *trainer, const char *identity, const TrainPosition *position,
                       const TrainHistory *history, Diag *diag);
/* Takes state, position and history from a checkpoint. Refuses one of a run with another identity and says what
 * differs. */
bool train_state_read(const Checkpoint *checkpoint, Trainer *trainer, const char *identity, TrainPosition *out_position,
                      TrainHistory *history, Arena *scratch, Diag *diag);

#endif
