/* infer: dtypes and shapes of all values.
 *
 * Requires: inputs and parameters have shapes. Guarantees: every node has a dtype and a shape, and all rules of its
 * op hold; otherwise each mistake is reported at its node. */
#include "passes.h"

bool pass_infer(Graph *graph, const PassOptions *options, Diag *diag) {
  (void)options;
  return graph_infer(graph, diag);
}
