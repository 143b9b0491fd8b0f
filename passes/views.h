/* Values that lie inside others: see views.c. */
#ifndef KILN_PASSES_VIEWS_H
#define KILN_PASSES_VIEWS_H

#include "passes.h"

/* Where the kernel of a node writes: `into` another value's memory, `delta` bytes from its begin, or from a channel on.
 * NULL: its own. */
typedef struct Placement {
  Node *into;
  int64_t delta;
  int64_t channel; /* its first channel, or block of channels, in a `concat`, whose strides it has; -1: in no concat */
} Placement;

/* Decides what is computed straight into a value that joins it, or into the parameter that it updates; where that is
 * not possible, inserts copies. Placements by id, in options->scratch; NULL after a report. */
Placement *views_place(Graph *graph, const PassOptions *options, Diag *diag);
/* Bytes from the first element of the node's input to the node's, when the node is nothing but a contiguous part of a
 * dense plain input; -1: it is not. */
int64_t views_slice_offset(const Node *node);

#endif
