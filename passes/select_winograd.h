/* The second half of `select`: which convolutions are computed by Winograd's algorithm. */
#ifndef KILN_PASSES_SELECT_WINOGRAD_H
#define KILN_PASSES_SELECT_WINOGRAD_H

#include "passes.h"

/* Requires a choice of every convolution; changes it, and the layouts of its filters and its input, where Winograd's
 * algorithm costs less and the precision allows its error. */
bool select_winograd(Graph *graph, const PassOptions *options, Diag *diag);

#endif
