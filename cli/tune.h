/* What `kiln tune` and `kiln bench --variants` share: measuring with a progress bar, and the table of candidates. */
#ifndef KILN_CLI_TUNE_H
#define KILN_CLI_TUNE_H

#include "common.h"
#include "session/tune.h"

/* Measures all candidates of the model's kernels. */
bool candidates_measure(Tool *tool, const Graph *graph, const kiln_compile_options *compile, int64_t rounds,
                        TuneResult *out_result);
/* All candidates of all kernels with their times, the one that is taken marked, and what the best ones would save. */
void candidates_print(Tool *tool, const TuneResult *result);
/* The same as members of a JSON object: "variants", "taken_us", "best_us". */
void candidates_json(Text *text, const TuneResult *result);
/* The same as comma-separated values. */
void candidates_csv(const TuneResult *result);

#endif
