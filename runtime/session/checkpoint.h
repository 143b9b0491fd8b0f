/* Checkpoints of a training run: a folder of its own that always holds a usable one.
 *
 *   checkpoint-000000000590.kiln   after 590 batches
 *
 * A checkpoint is written beside the others under another name, flushed to disk, renamed, and the folder flushed; only
 * then is the third newest removed. Whatever stops the program or fills the disk in between, one of the newest two is
 * whole. Length and checksum tell. */
#ifndef KILN_RUNTIME_SESSION_CHECKPOINT_H
#define KILN_RUNTIME_SESSION_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/diag.h"

enum { CHECKPOINT_NAME_SIZE = 24, CHECKPOINT_PARTS = 16 };

/* A named run of bytes; names are shorter than CHECKPOINT_NAME_SIZE. */
typedef struct CheckpointPart {
  const char *name;
  const void *data;
  size_t size;
} CheckpointPart;

typedef struct Checkpoint {
  const char *path;
  int64_t step;
  CheckpointPart parts[CHECKPOINT_PARTS];
  size_t count;
} Checkpoint;

/* A folder in use. Locked against a second run until `arena` dies. */
typedef struct CheckpointFolder {
  const char *path;
  int64_t newest, before; /* steps of the usable checkpoints that are kept; -1: not known of any */
} CheckpointFolder;

/* Makes the folder when it is missing (its parent must exist), locks it and removes what a killed run left half
 * written. */
bool checkpoint_folder_open(const char *path, Arena *arena, Diag *diag, CheckpointFolder *out_folder);
/* How many checkpoints the folder holds, usable or not. */
bool checkpoint_count(const CheckpointFolder *folder, Arena *scratch, Diag *diag, size_t *out_count);
/* The newest usable checkpoint; damaged ones that are newer are worth a warning each. *out_found is false when the
 * folder holds none at all; when all are damaged that is an error. */
bool checkpoint_read(CheckpointFolder *folder, Arena *arena, Diag *diag, Checkpoint *out_checkpoint, bool *out_found);
/* Reads one file and checks it. */
bool checkpoint_read_file(const char *path, Arena *arena, Diag *diag, Checkpoint *out_checkpoint);
/* Writes checkpoint->parts; on failure what was there is untouched. */
bool checkpoint_write(CheckpointFolder *folder, const Checkpoint *checkpoint, Arena *scratch, Diag *diag);
/* NULL when there is no such part, or it has not the `size` expected (SIZE_MAX: any). */
const CheckpointPart *checkpoint_part(const Checkpoint *checkpoint, const char *name, size_t size);

#endif
