/* A progress bar on standard error, when that is a terminal. */
#ifndef KILN_CLI_PROGRESS_H
#define KILN_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Progress {
  bool shown; /* standard error is a terminal */
  bool drawn;
  double started, last; /* times */
  int64_t first;        /* what was done when it started: does not count for the time left */
} Progress;

void progress_begin(Progress *progress);
/* Draws at most ten times a second: "left [=====>    ]  57 %  right  0:03 left". */
void progress_show(Progress *progress, const char *left, int64_t done, int64_t total, const char *right);
/* Removes the bar, before other output and at the end. */
void progress_clear(Progress *progress);
/* "8.2 s", "2:05", "1:02:03" */
const char *duration_text(double seconds, char *buffer, int size);

#endif
