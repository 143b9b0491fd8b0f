/* kiln bench --variants: the other ways to compute a model's kernels. */
#ifndef KILN_CLI_BENCH_VARIANTS_H
#define KILN_CLI_BENCH_VARIANTS_H

#include "common.h"

/* Measures every candidate of every kernel, as `kiln tune` does, and prints them with the one that is taken and how far
 * the whole is from the best; or adds them to an object of JSON, unless that is NULL; or prints comma-separated values.
 * `graph` is as described, with values of all parameters. */
bool bench_variants(Tool *tool, const Graph *graph, const ModelOptions *options, Text *json, bool csv);

#endif
