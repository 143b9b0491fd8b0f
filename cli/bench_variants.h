/* kiln bench --variants: other tiles and splits of a GPU's matrix products. */
#ifndef KILN_CLI_BENCH_VARIANTS_H
#define KILN_CLI_BENCH_VARIANTS_H

#include "execute.h"

/* Compiles the plan once for every tile and some numbers of splits, times each kernel of each, and prints for every
 * kernel what the model's choice takes and what the best one does. */
bool bench_variants(Tool *tool, const Graph *graph, const Plan *plan, const ModelOptions *options, int64_t batch,
                    const void *const *inputs, void *const *outputs);

#endif
