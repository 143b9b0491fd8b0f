/* Convolution and its gradients as matrix products. Names: x is the image that windows move over, with R × S filters
 * and C channels; y the image with a place for every window, P × Q with K channels. */
#include "base/checked.h"
#include "gemm.h"

/* Below so many channels of a group, or filters, tiles would be mostly empty. */
enum { GROUP_LEAST = 8, CLASSES_MAX = 4 };

/* Steps along one axis of the image, height or width: position = start + a · window + b · tap. */
typedef struct WindowAxis {
  int64_t windows, taps;
  int64_t start, window_step, tap_step;
  int64_t size; /* of the image */
} WindowAxis;

static bool leaves_image(const WindowAxis *axis) {
  int64_t low = axis->start, high = axis->start;
  const int64_t window = axis->window_step * (axis->windows - 1), tap = axis->tap_step * (axis->taps - 1);
  *(window < 0 ? &low : &high) += window;
  *(tap < 0 ? &low : &high) += tap;
  return axis->windows > 0 && axis->taps > 0 && (low < 0 || high >= axis->size);
}

static WindowAxis window_axis(const Attrs *attrs, int axis, int64_t windows, int64_t taps, int64_t size) {
  return (WindowAxis){.windows = windows,
                      .taps = taps,
                      .start = -attrs->padding.values[axis],
                      .window_step = attrs->stride.values[axis],
                      .tap_step = attrs->dilation.values[axis],
                      .size = size};
}

/* Sets `pixels` (image, window row, window column) and `taps` (filter row, filter column, channel) of an operand that
 * reads `image`, of whose channels a group has `channels`. */
static void add_windows(GemmOperand *operand, const PlanTensor *image, const WindowAxis axes[2], int64_t channels,
                        GemmAxis *pixels, GemmAxis *taps) {
  const int64_t *stride = image->storage.stride;
  const bool spatial = operand->padding_mode == PADDING_ZEROS;
  operand->bounded = leaves_image(&axes[0]) || leaves_image(&axes[1]);
  operand->height = axes[0].size;
  operand->width = axes[1].size;
  operand->matrix.offset = image->storage.origin;
  axis_add(pixels, image->shape.dims[0], stride[0], 0, 0);
  for (int i = 0; i < 2; i++) {
    const int64_t step = spatial || !operand->bounded ? stride[2 + i] : 0;
    const int64_t window = axes[i].window_step, tap = axes[i].tap_step, moves = operand->bounded ? 1 : 0;
    axis_add(pixels, axes[i].windows, window * step, i == 0 ? window * moves : 0, i == 1 ? window * moves : 0);
    axis_add(taps, axes[i].taps, tap * step, i == 0 ? tap * moves : 0, i == 1 ? tap * moves : 0);
    pixels->offset += axes[i].start * step;
    *(i == 0 ? &pixels->down : &pixels->right) = axes[i].start * moves;
  }
  axis_add(taps, channels, stride[1], 0, 0);
  if (operand->bounded && !spatial) {
    operand->row_stride = stride[2];
    operand->column_stride = stride[3];
  }
  axes_merge(&pixels, 1);
  axes_merge(&taps, 1);
}

static void merge_operand(GemmOperand *operand) {
  GemmAxis *const axes[3] = {&operand->outer, &operand->inner, &operand->matrix};
  for (int i = 0; i < 3; i++) axes_merge(&axes[i], 1);
}

static int32_t bias_input(const PlanKernel *kernel) { return kernel->op_input_count > 2 ? 2 : -1; }

/* --- forward ----------------------------------------------------------------------------------------- */

/* m: places of y, n: filters, k: taps of a filter. */
static void conv_problem(const PlanKernel *kernel, GemmProblem *problem) {
  const PlanTensor *x = &kernel->inputs[0], *filter = &kernel->inputs[1], *y = &kernel->output;
  const Attrs *attrs = &kernel->attrs;
  const int64_t groups = attrs->groups, channels = filter->shape.dims[1], filters = y->shape.dims[1] / groups;
  const int64_t *out = y->shape.dims, *stride = filter->storage.stride;
  *problem = (GemmProblem){.kernel = kernel, .function = "k_conv2d", .bias = bias_input(kernel)};
  problem->a = (GemmOperand){.input = 0, .padding_mode = attrs->padding_mode};
  WindowAxis axes[2];
  for (int i = 0; i < 2; i++)
    axes[i] = window_axis(attrs, i, out[2 + i], filter->shape.dims[2 + i], x->shape.dims[2 + i]);
  add_windows(&problem->a, x, axes, channels, &problem->a.outer, &problem->a.inner);
  axis_add(&problem->a.matrix, groups, channels * x->storage.stride[1], 0, 0);

  problem->b = (GemmOperand){.input = 1};
  problem->b.matrix.offset = filter->storage.origin;
  axis_add(&problem->b.outer, filters, stride[0], 0, 0);
  axis_add(&problem->b.inner, filter->shape.dims[2], stride[2], 0, 0);
  axis_add(&problem->b.inner, filter->shape.dims[3], stride[3], 0, 0);
  axis_add(&problem->b.inner, channels, stride[1], 0, 0);
  axis_add(&problem->b.matrix, groups, filters * stride[0], 0, 0);
  merge_operand(&problem->b);

  gemm_result_begin(problem);
  gemm_result_add(problem, GEMM_ROWS, 0, 1, out[0], 1);
  gemm_result_add(problem, GEMM_ROWS, 2, 1, out[2], 1);
  gemm_result_add(problem, GEMM_ROWS, 3, 1, out[3], 1);
  gemm_result_add(problem, GEMM_COLUMNS, 1, 1, filters, 1);
  gemm_result_add(problem, GEMM_MATRIX, 1, 1, groups, filters);
  gemm_result_end(problem);
}

bool cuda_conv2d(CudaEmit *emit, const PlanKernel *kernel) {
  const int64_t groups = kernel->attrs.groups;
  if (groups > 1 &&
      (kernel->inputs[1].shape.dims[1] < GROUP_LEAST || kernel->output.shape.dims[1] / groups < GROUP_LEAST))
    return gemm_conv_direct(emit, kernel);
  GemmProblem problem;
  conv_problem(kernel, &problem);
  return gemm_emit(emit, &problem);
}

/* --- transposed -------------------------------------------------------------------------------------- */

static int64_t greatest_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

/* The outputs whose position leaves the same rest by the stride are reached by the same taps, at neighbouring inputs:
 * each such class is a convolution of its own, without gaps. */
typedef struct Class {
  int64_t rest;
  int64_t first, step; /* taps */
  WindowAxis axis;     /* along the input */
} Class;

static Class find_class(const Attrs *attrs, int axis, int64_t rest, int64_t kernel, int64_t input, int64_t output) {
  const int64_t stride = attrs->stride.values[axis], dilation = attrs->dilation.values[axis];
  const int64_t at = rest + attrs->padding.values[axis];
  Class class = {.rest = rest, .step = stride / greatest_divisor(stride, dilation)};
  class.axis =
      (WindowAxis){.windows = output > rest ? ceil_div(output - rest, stride) : 0, .window_step = 1, .size = input};
  while (class.first < kernel && (at - class.first * dilation) % stride != 0) class.first++;
  if (class.first < kernel) class.axis.taps = ceil_div(kernel - class.first, class.step);
  if (class.axis.taps > 0) class.axis.start = (at - class.first * dilation) / stride;
  class.axis.tap_step = -(class.step * dilation / stride);
  return class;
}

/* m: places of the class in the output, n: output channels, k: taps of the class and input channels. */
static void transpose_problem(const PlanKernel *kernel, const Class classes[2], GemmProblem *problem) {
  const PlanTensor *x = &kernel->inputs[0], *filter = &kernel->inputs[1], *y = &kernel->output;
  const Attrs *attrs = &kernel->attrs;
  const int64_t groups = attrs->groups, channels = x->shape.dims[1] / groups, filters = filter->shape.dims[1];
  const int64_t *stride = filter->storage.stride;
  *problem = (GemmProblem){.kernel = kernel, .bias = bias_input(kernel)};
  problem->a = (GemmOperand){.input = 0, .padding_mode = PADDING_ZEROS};
  const WindowAxis axes[2] = {classes[0].axis, classes[1].axis};
  const bool empty = axes[0].taps == 0 || axes[1].taps == 0;
  add_windows(&problem->a, x, axes, channels, &problem->a.outer, &problem->a.inner);
  axis_add(&problem->a.matrix, groups, channels * x->storage.stride[1], 0, 0);

  problem->b = (GemmOperand){.input = 1};
  problem->b.matrix.offset = filter->storage.origin + classes[0].first * stride[2] + classes[1].first * stride[3];
  axis_add(&problem->b.outer, filters, stride[1], 0, 0);
  axis_add(&problem->b.inner, axes[0].taps, classes[0].step * stride[2], 0, 0);
  axis_add(&problem->b.inner, axes[1].taps, classes[1].step * stride[3], 0, 0);
  axis_add(&problem->b.inner, channels, stride[0], 0, 0);
  axis_add(&problem->b.matrix, groups, channels * stride[0], 0, 0);
  merge_operand(&problem->b);
  if (empty) { /* no tap reaches it: a sum of nothing */
    problem->a.inner = problem->b.inner = (GemmAxis){.digits = {{.stride = 1}}, .digit_count = 1};
    problem->b.matrix.offset = 0;
  }

  gemm_result_begin(problem);
  gemm_result_add(problem, GEMM_ROWS, 0, 1, y->shape.dims[0], 1);
  for (int i = 0; i < 2; i++) {
    gemm_result_add(problem, GEMM_ROWS, 2 + i, 1, axes[i].windows, attrs->stride.values[i]);
    gemm_result_shift(problem, 2 + i, classes[i].rest);
  }
  gemm_result_add(problem, GEMM_COLUMNS, 1, 1, filters, 1);
  gemm_result_add(problem, GEMM_MATRIX, 1, 1, groups, filters);
  gemm_result_end(problem);
}

static Class kernel_class(const PlanKernel *kernel, int axis, int64_t rest) {
  return find_class(&kernel->attrs, axis, rest, kernel->inputs[1].shape.dims[2 + axis],
                    kernel->inputs[0].shape.dims[2 + axis], kernel->output.shape.dims[2 + axis]);
}

bool cuda_conv_transpose2d(CudaEmit *emit, const PlanKernel *kernel) {
  const int64_t *stride = kernel->attrs.stride.values, groups = kernel->attrs.groups;
  const int64_t channels = kernel->inputs[0].shape.dims[1] / groups, filters = kernel->inputs[1].shape.dims[1];
  if (stride[0] > CLASSES_MAX || stride[1] > CLASSES_MAX / stride[0] ||
      (groups > 1 && (channels < GROUP_LEAST || filters < GROUP_LEAST)))
    return gemm_conv_transpose_direct(emit, kernel);
  for (int64_t down = 0; down < stride[0]; down++) {
    for (int64_t right = 0; right < stride[1]; right++) {
      const Class classes[2] = {kernel_class(kernel, 0, down), kernel_class(kernel, 1, right)};
      if (classes[0].axis.windows == 0 || classes[1].axis.windows == 0) continue;
      GemmProblem problem;
      transpose_problem(kernel, classes, &problem);
      problem.function = arena_format(emit->arena, "k_conv_transpose2d_%d%d", (int)down, (int)right);
      if (!gemm_emit(emit, &problem)) return false;
    }
  }
  return true;
}

/* --- gradient of the filters ------------------------------------------------------------------------- */

/* m: filters, n: taps of a filter, k: places of y. */
static void grad_weight_problem(const PlanKernel *kernel, GemmProblem *problem) {
  const PlanTensor *x = &kernel->inputs[0], *dy = &kernel->inputs[1], *dw = &kernel->output;
  const Attrs *attrs = &kernel->attrs;
  const int64_t groups = attrs->groups, channels = dw->shape.dims[1], filters = dw->shape.dims[0] / groups;
  const int64_t *stride = dy->storage.stride, *taps = dw->shape.dims;
  *problem = (GemmProblem){.kernel = kernel, .function = "k_conv2d_grad_weight", .bias = -1};
  problem->a = (GemmOperand){.input = 1};
  problem->a.matrix.offset = dy->storage.origin;
  axis_add(&problem->a.outer, filters, stride[1], 0, 0);
  axis_add(&problem->a.inner, dy->shape.dims[0], stride[0], 0, 0);
  axis_add(&problem->a.inner, dy->shape.dims[2], stride[2], 0, 0);
  axis_add(&problem->a.inner, dy->shape.dims[3], stride[3], 0, 0);
  axis_add(&problem->a.matrix, groups, filters * stride[1], 0, 0);
  merge_operand(&problem->a);

  problem->b = (GemmOperand){.input = 0, .padding_mode = PADDING_ZEROS};
  WindowAxis axes[2];
  for (int i = 0; i < 2; i++) axes[i] = window_axis(attrs, i, dy->shape.dims[2 + i], taps[2 + i], x->shape.dims[2 + i]);
  add_windows(&problem->b, x, axes, channels, &problem->b.inner, &problem->b.outer);
  axis_add(&problem->b.matrix, groups, channels * x->storage.stride[1], 0, 0);

  gemm_result_begin(problem);
  gemm_result_add(problem, GEMM_ROWS, 0, -1, filters, 1);
  gemm_result_add(problem, GEMM_COLUMNS, 2, -1, taps[2], 1);
  gemm_result_add(problem, GEMM_COLUMNS, 3, -1, taps[3], 1);
  gemm_result_add(problem, GEMM_COLUMNS, 1, -1, channels, 1);
  gemm_result_add(problem, GEMM_MATRIX, 0, -1, groups, filters);
  gemm_result_end(problem);
}

bool cuda_conv2d_grad_weight(CudaEmit *emit, const PlanKernel *kernel) {
  if (gemm_takes_depthwise_gradient(kernel)) return gemm_depthwise_gradient(emit, kernel);
  GemmProblem problem;
  grad_weight_problem(kernel, &problem);
  return gemm_emit(emit, &problem);
}

bool gemm_conv_problem(const PlanKernel *kernel, GemmProblem *out_problem) {
  if (kernel->op == OP_CONV2D) {
    conv_problem(kernel, out_problem);
  } else if (kernel->op == OP_CONV2D_GRAD_WEIGHT) {
    grad_weight_problem(kernel, out_problem);
  } else if (kernel->op == OP_CONV_TRANSPOSE2D) {
    const Class classes[2] = {kernel_class(kernel, 0, 0), kernel_class(kernel, 1, 0)};
    transpose_problem(kernel, classes, out_problem);
  } else {
    return false;
  }
  return true;
}
