/* The threads that a program runs with: --threads and --affinity. */
#ifndef KILN_CLI_AFFINITY_H
#define KILN_CLI_AFFINITY_H

#include "common.h"

/* A row for the option tables, of verbs that run programs; ends in a comma. */
#define AFFINITY_OPTION(o)                                                                            \
  {"affinity", 0, OPTION_TEXT, &(o).affinity, "LIST",                                                 \
   "processors to run on, the i-th for the i-th thread: 0,2 or 0-3 or 0-6:2; without --threads, all", \
   0,          0},

/* Fills threads and affinity of a context of the model's device, and warns when there are more threads than this
 * process can run at a time. False after a report. */
bool context_options(Tool *tool, const ModelOptions *options, kiln_context_options *out_options);

#endif
