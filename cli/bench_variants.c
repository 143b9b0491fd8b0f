#include "bench_variants.h"

#include <string.h>

#include "tune.h"

enum { ROUNDS = 11, GPU_ROUNDS = 3 }; /* a round of a GPU is the mean of several runs */

bool bench_variants(Tool *tool, const Graph *graph, const ModelOptions *options, Text *json, bool csv) {
  kiln_compile_options compile;
  TuneResult result;
  if (graph == NULL) {
    tool_usage_error(tool, "--variants needs a description, found a compiled library");
    return false;
  }
  if (!compile_options(tool, options, &compile)) return false;
  const int64_t rounds = compile.device != NULL && strcmp(compile.device, "cpu") != 0 ? GPU_ROUNDS : ROUNDS;
  if (!candidates_measure(tool, graph, &compile, rounds, &result)) return false;
  if (json != NULL) {
    text_add(json, ",");
    candidates_json(json, &result);
  } else if (csv) {
    candidates_csv(&result);
  } else {
    candidates_print(tool, &result);
  }
  return true;
}
