/* What must hold of every graph after the passes and of its plan. Checks fail the running test. */
#ifndef KILN_TESTS_PLAN_CHECKS_H
#define KILN_TESTS_PLAN_CHECKS_H

#include "eval.h"
#include "passes.h"
#include "support.h"

/* Values of nodes with the same id, and outputs at the same position, agree to 1e-9 of the value's largest element.
 * `original` is the graph that gave `expected`; `what` and `seed` name the case in the message. */
void check_result(const Graph *graph, const Graph *original, const EvalResult *expected, const EvalResult *found,
                  const char *what, uint64_t seed);
/* Memory: every kernel finds its inputs as they were written, and does not write over them. Aliases, halos, phases,
 * shared code, and outputs as the caller expects them. */
void check_plan(const Graph *graph, const Plan *plan, Arena *arena);

#endif
