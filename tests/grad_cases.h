/* Checks of gradients by central differences in the double interpreter. */
#ifndef KILN_TESTS_GRAD_CASES_H
#define KILN_TESTS_GRAD_CASES_H

#include "grad.h"
#include "op_cases.h"

/* Scales what the rule of `op` gives its input number `input` by 1.01: a mistake that a check has to find. */
typedef struct PlantedError {
  OpCode op;
  int32_t input;
  bool planted; /* set: there was such a gradient */
} PlantedError;

/* A graph, values for its inputs and parameters in double, and the gradients of Σ cotangent · `of` with respect to some
 * of them. */
typedef struct GradTrial {
  Arena *arena;
  Diag *diag;
  Graph *graph;
  Node *of;
  TensorList inputs, parameters; /* the cotangent is not among them yet */
  Node **targets;                /* inputs and parameters */
  size_t target_count;
} GradTrial;

/* A trial of an op case: every operand that may have a gradient is a target. Values keep away from places where a
 * derivative jumps: those of one operand are all different. False after a report. */
bool grad_trial_of_case(const OpCase *line, int64_t batch, Arena *arena, Diag *diag, GradTrial *out_trial);
/* Adds the input "cotangent", random, and outputs "grad.TARGET" to a copy of the graph. NULL after a report. */
Graph *grad_trial_differentiate(GradTrial *trial, PlantedError *planted, uint64_t seed);
/* Compares the gradients with central differences, each target along several directions. `step`: of the difference. The
 * largest relative error, infinite after a report. */
double grad_trial_error(GradTrial *trial, PlantedError *planted, double step);

#endif
