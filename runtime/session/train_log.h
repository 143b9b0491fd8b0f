/* The log of a run: a JSON object per line, each complete when the next step begins. */
#ifndef KILN_RUNTIME_SESSION_TRAIN_LOG_H
#define KILN_RUNTIME_SESSION_TRAIN_LOG_H

#include "base/diag.h"
#include "base/text.h"

typedef struct TrainLog {
  const char *path; /* NULL: no log; all functions then do nothing */
  int file;
  int64_t size;
} TrainLog;

/* `keep` bytes of an existing file stay: what a checkpoint knows of. The file is closed with `arena`. */
bool train_log_open(const char *path, int64_t keep, Arena *arena, Diag *diag, TrainLog **out_log);
bool train_log_add(TrainLog *log, const char *line, size_t size, Diag *diag);
/* To the disk, so that a checkpoint may count on it. */
bool train_log_flush(TrainLog *log, Diag *diag);

/* A JSON number, or null when it is not finite. */
void json_number(Text *text, double value);

#endif
