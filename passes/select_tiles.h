/* The third part of `select`: which convolutions are computed in tile registers; see codegen/cpu/conv_tiles.c. */
#ifndef KILN_PASSES_SELECT_TILES_H
#define KILN_PASSES_SELECT_TILES_H

#include "passes.h"

/* Whether a convolution, for which direct convolution has been chosen, can be computed so. `prepared`: by id, what is
 * computed with the weights. */
bool tiles_possible(const Node *node, const PassOptions *options, const bool *prepared);
KernelChoice tiles_choice(const Node *node, const PassOptions *options);
/* Cycles an image at batch `batch`; `exposed`: what prefetching does not hide of reading beside computing. */
double tiles_cost(const Node *node, int64_t batch, double bytes_per_cycle, double (*exposed)(double, double));
Layout tiles_filter_layout(void);

#endif
