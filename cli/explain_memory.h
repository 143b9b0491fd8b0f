/* kiln explain --memory: what lies where in the workspace, and from when to when. */
#ifndef KILN_CLI_EXPLAIN_MEMORY_H
#define KILN_CLI_EXPLAIN_MEMORY_H

#include "common.h"

/* Prints the values that live in the workspace while the program runs. `picture`: a PNG or SVG of the part that grows
 * with the batch, over the kernels; NULL: none. False after a report. */
bool memory_explain(Tool *tool, const Plan *plan, const char *picture);

#endif
