/* A run as a trace: which thread was busy with which kernel, and when. */
#ifndef KILN_CLI_PROFILE_H
#define KILN_CLI_PROFILE_H

#include "common.h"

/* What a run needs, batch ≤ program->max_batch. */
typedef struct ProfileRun {
  const kiln_executable *executable;
  const kiln_context_options *options; /* threads and affinity */
  int64_t batch;
  const void *const *inputs;
  void *const *outputs;
} ProfileRun;

/* Runs twice, the first time to warm up, and writes the second run to `path` in Chrome's trace event format, which
 * chrome://tracing and ui.perfetto.dev show. False after a report. */
bool profile_write(Tool *tool, const ProfileRun *run, const char *path);

#endif
