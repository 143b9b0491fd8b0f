/* linear, its gradient, and matmul as matrix products. */
#include "gemm.h"

static void merge_operand(GemmOperand *operand) {
  GemmAxis *const axes[3] = {&operand->outer, &operand->inner, &operand->matrix};
  for (int i = 0; i < 3; i++) axes_merge(&axes[i], 1);
}

/* Digits of the dimensions [first, end) of a tensor. */
static void add_dims(GemmAxis *axis, const PlanTensor *tensor, int32_t first, int32_t end) {
  for (int32_t d = first; d < end; d++) axis_add(axis, tensor->shape.dims[d], tensor->storage.stride[d], 0, 0);
}

static GemmOperand operand_of(const PlanKernel *kernel, int32_t input) {
  GemmOperand operand = {.input = input};
  operand.matrix.offset = kernel->inputs[input].storage.origin;
  return operand;
}

/* --- linear ------------------------------------------------------------------------------------------ */

/* m: rows of x, n: output features, k: input features. */
static void linear_problem(const PlanKernel *kernel, GemmProblem *problem) {
  const PlanTensor *x = &kernel->inputs[0], *weight = &kernel->inputs[1], *y = &kernel->output;
  const int32_t last = y->shape.rank - 1;
  *problem = (GemmProblem){.kernel = kernel, .function = "k_linear", .bias = kernel->op_input_count > 2 ? 2 : -1};
  problem->a = operand_of(kernel, 0);
  problem->b = operand_of(kernel, 1);
  add_dims(&problem->a.outer, x, 0, last);
  add_dims(&problem->a.inner, x, last, last + 1);
  add_dims(&problem->b.outer, weight, 0, 1);
  add_dims(&problem->b.inner, weight, 1, 2);
  gemm_result_begin(problem);
  for (int32_t d = 0; d < last; d++) gemm_result_add(problem, GEMM_ROWS, d, last, y->shape.dims[d], 1);
  gemm_result_add(problem, GEMM_COLUMNS, last, last, y->shape.dims[last], 1);
  gemm_result_end(problem);
  merge_operand(&problem->a);
  merge_operand(&problem->b);
}

/* m: output features, n: input features, k: rows. */
static void linear_grad_weight_problem(const PlanKernel *kernel, GemmProblem *problem) {
  const PlanTensor *x = &kernel->inputs[0], *dy = &kernel->inputs[1];
  const int32_t last = x->shape.rank - 1;
  *problem = (GemmProblem){.kernel = kernel, .function = "k_linear_grad_weight", .bias = -1};
  problem->a = operand_of(kernel, 1);
  problem->b = operand_of(kernel, 0);
  add_dims(&problem->a.outer, dy, last, last + 1);
  add_dims(&problem->a.inner, dy, 0, last);
  add_dims(&problem->b.outer, x, last, last + 1);
  add_dims(&problem->b.inner, x, 0, last);
  gemm_result_begin(problem);
  gemm_result_add(problem, GEMM_ROWS, 0, -1, kernel->output.shape.dims[0], 1);
  gemm_result_add(problem, GEMM_COLUMNS, 1, -1, kernel->output.shape.dims[1], 1);
  gemm_result_end(problem);
  merge_operand(&problem->a);
  merge_operand(&problem->b);
}

bool cuda_linear(CudaEmit *emit, const PlanKernel *kernel) {
  GemmProblem problem;
  linear_problem(kernel, &problem);
  return gemm_emit(emit, &problem);
}

bool cuda_linear_grad_weight(CudaEmit *emit, const PlanKernel *kernel) {
  GemmProblem problem;
  linear_grad_weight_problem(kernel, &problem);
  return gemm_emit(emit, &problem);
}

/* --- matmul ------------------------------------------------------------------------------------------ */

/* One right matrix serves all left ones, which then are one tall matrix. */
static bool shares_right(const PlanKernel *kernel) {
  const Shape *a = &kernel->inputs[0].shape, *b = &kernel->inputs[1].shape, *out = &kernel->output.shape;
  if (a->rank != out->rank) return false;
  for (int32_t d = 0; d < out->rank - 2; d++)
    if (a->dims[d] != out->dims[d]) return false;
  for (int32_t d = 0; d < b->rank - 2; d++)
    if (b->dims[d] != 1) return false;
  return true;
}

static void add_matrices(GemmOperand *operand, const PlanTensor *tensor, const Shape *out) {
  for (int32_t d = 0; d < out->rank - 2; d++) {
    const int32_t at = d - (out->rank - tensor->shape.rank);
    const bool broadcast = at < 0 || (tensor->shape.dims[at] == 1 && out->dims[d] != 1);
    axis_add(&operand->matrix, out->dims[d], broadcast ? 0 : tensor->storage.stride[at], 0, 0);
  }
}

static void matmul_problem(const PlanKernel *kernel, GemmProblem *problem) {
  const PlanTensor *a = &kernel->inputs[0], *b = &kernel->inputs[1];
  const Shape *out = &kernel->output.shape;
  const int32_t rank = out->rank, a_rank = a->shape.rank, b_rank = b->shape.rank;
  const bool shared = shares_right(kernel);
  *problem = (GemmProblem){.kernel = kernel, .function = "k_matmul", .bias = -1};
  problem->a = operand_of(kernel, 0);
  problem->b = operand_of(kernel, 1);
  if (!shared) {
    add_matrices(&problem->a, a, out);
    add_matrices(&problem->b, b, out);
  }
  add_dims(&problem->a.outer, a, shared ? 0 : a_rank - 2, a_rank - 1);
  add_dims(&problem->a.inner, a, a_rank - 1, a_rank);
  const int32_t column = kernel->attrs.transpose ? b_rank - 2 : b_rank - 1,
                inner = kernel->attrs.transpose ? b_rank - 1 : b_rank - 2;
  add_dims(&problem->b.outer, b, column, column + 1);
  add_dims(&problem->b.inner, b, inner, inner + 1);
  gemm_result_begin(problem);
  for (int32_t d = 0; d < rank - 2; d++)
    gemm_result_add(problem, shared ? GEMM_ROWS : GEMM_MATRIX, d, -1, out->dims[d], 1);
  gemm_result_add(problem, GEMM_ROWS, rank - 2, -1, out->dims[rank - 2], 1);
  gemm_result_add(problem, GEMM_COLUMNS, rank - 1, -1, out->dims[rank - 1], 1);
  gemm_result_end(problem);
  merge_operand(&problem->a);
  merge_operand(&problem->b);
}

bool cuda_matmul(CudaEmit *emit, const PlanKernel *kernel) {
  GemmProblem problem;
  matmul_problem(kernel, &problem);
  return gemm_emit(emit, &problem);
}

bool gemm_problem(const PlanKernel *kernel, GemmProblem *out_problem) {
  switch (kernel->op) {
    case OP_LINEAR:
      linear_problem(kernel, out_problem);
      return true;
    case OP_LINEAR_GRAD_WEIGHT:
      linear_grad_weight_problem(kernel, out_problem);
      return true;
    case OP_MATMUL:
      matmul_problem(kernel, out_problem);
      return true;
    default:
      return gemm_conv_problem(kernel, out_problem);
  }
}
