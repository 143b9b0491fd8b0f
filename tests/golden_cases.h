/* The golden cases: results that PyTorch computed in double precision, kept outside the repository as an index of
 * cases and a safetensors file for each. Any executor can be tested with them: a case is a graph, its operands, and
 * the values that its outputs must have. */
#ifndef KILN_TESTS_GOLDEN_CASES_H
#define KILN_TESTS_GOLDEN_CASES_H

#include "graph.h"
#include "json.h"

typedef struct GoldenSet {
  const char *folder;
  Json index;
  const cJSON *cases;
} GoldenSet;

/* One case. The batch is symbolic in the graph; max_batch is that of the inputs. Parameters stand in the graph
 * (Parameter.value) and in `parameters`. */
typedef struct GoldenCase {
  const char *name;
  Graph *graph; /* inferred */
  TensorList inputs, parameters;
  TensorList expected; /* by name of the graph's output, in its order */
} GoldenCase;

typedef enum GoldenStatus {
  GOLDEN_READY,
  GOLDEN_OTHER, /* not the forward pass of an op or network: a schedule, a training run, … */
  GOLDEN_BROKEN /* reported */
} GoldenStatus;

/* Opens the index under the folder named by the environment variable KILN_SHARED, by default ../shared beside the
 * sources. False without a message when there is none. */
bool golden_open(Arena *arena, Diag *diag, GoldenSet *out_set);
size_t golden_count(const GoldenSet *set);
GoldenStatus golden_load(const GoldenSet *set, size_t index, Arena *arena, Diag *diag, GoldenCase *out_case);
const char *golden_name(const GoldenSet *set, size_t index);
/* The whole file of a case, for those that golden_load does not build. */
bool golden_tensors(const GoldenSet *set, size_t index, Arena *arena, Diag *diag, TensorList *out_tensors);

/* ‖found − expected‖ / ‖expected‖; infinite when one of them is not finite. */
double relative_error(const double *found, const Tensor *expected);
/* The same of a tensor; infinite when it is NULL or of another shape. */
double tensor_error(const Tensor *found, const Tensor *expected, Arena *arena);

#endif
