/* The third part of `select`: which convolutions are computed in tile registers; see codegen/cpu/conv_tiles.c. */
#ifndef KILN_PASSES_SELECT_TILES_H
#define KILN_PASSES_SELECT_TILES_H

#include "passes.h"

/* Whether a convolution, for which direct convolution has been chosen, can be computed so. `prepared`: by id, what is
 * computed with the weights. */
bool tiles_possible(const Node *node, const PassOptions *options, const bool *prepared);
KernelChoice tiles_choice(const Node *node, const PassOptions *options);
/* Cycles an image; `exposed`: what prefetching does not hide of reading beside computing. */
double tiles_cost(const Node *node, Precision precision, double bytes_per_cycle, double (*exposed)(double, double));
/* Numbers are of two or three parts, by the error that may be added: see conv_tiles.c. */
Layout tiles_filter_layout(const Node *node, Precision precision);

#endif
