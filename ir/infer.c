/* What the shape rules have in common: attribute ranges, operand checks, broadcasting and windows; and which
 * parameters a layer has. */
#include "infer.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "stats.h"

/* --- attribute ranges ------------------------------------------------------------------------------ */

typedef struct IntRange {
  AttrId id;
  int64_t minimum, maximum;
} IntRange;

static const IntRange int_ranges[] = {
    {ATTR_ID_KERNEL, 1, ATTRIBUTE_LIMIT},         {ATTR_ID_STRIDE, 1, ATTRIBUTE_LIMIT},
    {ATTR_ID_PADDING, 0, ATTRIBUTE_LIMIT},        {ATTR_ID_DILATION, 1, ATTRIBUTE_LIMIT},
    {ATTR_ID_OUTPUT_PADDING, 0, ATTRIBUTE_LIMIT}, {ATTR_ID_GROUPS, 1, INT32_MAX},
    {ATTR_ID_OUTPUT, 1, ATTRIBUTE_LIMIT},         {ATTR_ID_SIZE, 0, ATTRIBUTE_LIMIT},
    {ATTR_ID_SCALE, 1, ATTRIBUTE_LIMIT},          {ATTR_ID_BINS, 1, STATS_BINS_MAX},
    {ATTR_ID_START, 0, ELEMENTS_LIMIT},           {ATTR_ID_LENGTH, 1, ELEMENTS_LIMIT},
    {ATTR_ID_DEPTH, 1, ELEMENTS_LIMIT},           {ATTR_ID_PARTS, 0, ELEMENTS_LIMIT},
    {ATTR_ID_STREAM, 0, INT32_MAX},
};

typedef struct FloatRange {
  AttrId id;
  double minimum, maximum;
} FloatRange;

static const FloatRange float_ranges[] = {
    {ATTR_ID_EPS, 0, FLT_MAX},
    {ATTR_ID_MOMENTUM, 0, 1},
    {ATTR_ID_P, 0, 1},
    {ATTR_ID_NEGATIVE_SLOPE, -FLT_MAX, FLT_MAX},
    {ATTR_ID_VALUE, -INFINITY, INFINITY},
    {ATTR_ID_MIN, -INFINITY, INFINITY},
    {ATTR_ID_MAX, -INFINITY, INFINITY},
    {ATTR_ID_LOW, -FLT_MAX, FLT_MAX},
    {ATTR_ID_HIGH, -FLT_MAX, FLT_MAX},
    {ATTR_ID_THRESHOLD, -FLT_MAX, FLT_MAX},
};

/* The integers of an attribute and a word for each, "" when there is only one. */
static size_t attribute_integers(const Node *node, const AttrInfo *info, const int64_t **out_values,
                                 const char *const **out_words) {
  static const char *const none[] = {""};
  static const char *const axes[] = {" height", " width"};
  static const char *const sides[] = {" top", " left", " bottom", " right"};
  const void *field = (const char *)&node->attrs + info->offset;
  switch (info->type) {
    case ATTR_INT:
      *out_values = field;
      *out_words = none;
      return 1;
    case ATTR_INT2:
      *out_values = ((const AttrInt2 *)field)->values;
      *out_words = axes;
      return 2;
    case ATTR_INT4:
      *out_values = ((const AttrInt4 *)field)->values;
      *out_words = sides;
      return 4;
    default:
      return 0;
  }
}

static bool check_integers(const Node *node, Diag *diag) {
  bool valid = true;
  const AttrMask mask = op_info(node->op)->attrs;
  for (size_t i = 0; i < sizeof int_ranges / sizeof int_ranges[0]; i++) {
    const IntRange *range = &int_ranges[i];
    if (!(mask >> range->id & 1)) continue;
    const AttrInfo *info = attr_info(range->id);
    const int64_t *values = NULL;
    const char *const *words = NULL;
    const size_t count = attribute_integers(node, info, &values, &words);
    for (size_t k = 0; k < count; k++) {
      if (values[k] >= range->minimum && values[k] <= range->maximum) continue;
      valid = node_error(diag, node, "%s%s expects a value from %lld to %lld, found %lld", info->name, words[k],
                         (long long)range->minimum, (long long)range->maximum, (long long)values[k]);
      break;
    }
  }
  return valid;
}

static bool check_floats(const Node *node, Diag *diag) {
  bool valid = true;
  const AttrMask mask = op_info(node->op)->attrs;
  for (size_t i = 0; i < sizeof float_ranges / sizeof float_ranges[0]; i++) {
    const FloatRange *range = &float_ranges[i];
    if (!(mask >> range->id & 1)) continue;
    const AttrInfo *info = attr_info(range->id);
    double value;
    memcpy(&value, (const char *)&node->attrs + info->offset, sizeof value);
    if (value >= range->minimum && value <= range->maximum) continue;
    char minimum[DOUBLE_TEXT_SIZE], maximum[DOUBLE_TEXT_SIZE], found[DOUBLE_TEXT_SIZE];
    valid = node_error(diag, node, "%s expects a number from %s to %s, found %s", info->name,
                       double_text(range->minimum, minimum), double_text(range->maximum, maximum),
                       double_text(value, found));
  }
  if ((mask & A(MIN)) && node->attrs.min > node->attrs.max) {
    char minimum[DOUBLE_TEXT_SIZE], maximum[DOUBLE_TEXT_SIZE];
    valid = node_error(diag, node, "min %s is greater than max %s", double_text(node->attrs.min, minimum),
                       double_text(node->attrs.max, maximum));
  }
  return valid;
}

/* --- begin and finish ------------------------------------------------------------------------------ */

ShapeText shape_text(const Shape *shape) {
  ShapeText result = {"["};
  size_t used = 1;
  for (int32_t i = 0; i < shape->rank; i++) {
    used += (size_t)snprintf(result.text + used, sizeof result.text - used, "%s%s", i > 0 ? "," : "",
                             dim_text(shape->dims[i]).text);
  }
  result.text[used] = ']';
  return result;
}

ShapeText dim_text(int64_t dim) {
  ShapeText result = {"N"};
  if (dim != DIM_BATCH) snprintf(result.text, sizeof result.text, "%lld", (long long)dim);
  return result;
}

/* False when the value is empty, too large or has a symbolic dimension behind the first. */
static bool check_shape(const Node *node, const char *what, const Shape *shape, Diag *diag) {
  for (int32_t i = 0; i < shape->rank; i++) {
    if (shape->dims[i] == DIM_BATCH && i > 0) {
      return node_error(diag, node, "%s would have the batch dimension N in place %d, but N must stay the first", what,
                        i);
    }
    if (shape->dims[i] <= 0 && shape->dims[i] != DIM_BATCH) {
      return node_error(diag, node, "%s %s is empty: every dimension must be at least 1", what, shape_text(shape).text);
    }
  }
  int64_t count = 0;
  if (!shape_elements(shape, 1, &count) || count >= ELEMENTS_LIMIT) {
    return node_error(diag, node, "%s %s is too large: the limit is 2^40 elements per image", what,
                      shape_text(shape).text);
  }
  return true;
}

bool infer_begin(const Node *node, Diag *diag) {
  const OpInfo *info = op_info(node->op);
  if (node->op_input_count < info->inputs_min || node->op_input_count > info->inputs_max) {
    if (info->inputs_min == info->inputs_max) {
      return node_error(diag, node, "%s expects %d input%s, found %d", info->name, info->inputs_min,
                        info->inputs_min == 1 ? "" : "s", node->op_input_count);
    }
    return node_error(diag, node, "%s expects %d to %d inputs, found %d", info->name, info->inputs_min,
                      info->inputs_max, node->op_input_count);
  }
  for (int32_t i = 0; i < node->op_input_count; i++) {
    const Node *input = node->inputs[i];
    if (op_info(input->op)->kind != OP_KIND_SOURCE) continue;
    char what[256];
    snprintf(what, sizeof what, "operand '%s'", input->name ? input->name : "?");
    if (!check_shape(node, what, &input->shape, diag)) return false;
  }
  const bool integers = check_integers(node, diag);
  return check_floats(node, diag) && integers;
}

bool infer_finish(Node *node, DataType dtype, Shape shape, Diag *diag) {
  if (!check_shape(node, "output", &shape, diag)) return false;
  node->dtype = dtype;
  node->shape = shape;
  return true;
}

/* --- operands -------------------------------------------------------------------------------------- */

bool infer_expect_type(const Node *node, int32_t index, const char *what, DataType dtype, Diag *diag) {
  const DataType found = node->inputs[index]->dtype;
  if (found == dtype) return true;
  return node_error(diag, node, "%s expects %s values, found %s", what, data_type_name(dtype), data_type_name(found));
}

bool infer_expect_rank(const Node *node, int32_t index, const char *what, int32_t rank, Diag *diag) {
  const Shape *shape = &node->inputs[index]->shape;
  if (shape->rank == rank) return true;
  return node_error(diag, node, "%s expects %d dimensions, found %d: %s", what, rank, shape->rank,
                    shape_text(shape).text);
}

bool infer_expect_vector(const Node *node, int32_t index, const char *what, int64_t count, Diag *diag) {
  if (!infer_expect_type(node, index, what, DTYPE_F32, diag)) return false;
  const Shape *shape = &node->inputs[index]->shape;
  if (shape->rank == 1 && shape->dims[0] == count) return true;
  return node_error(diag, node, "%s expects shape [%lld], found %s", what, (long long)count, shape_text(shape).text);
}

bool infer_dim(const Node *node, const char *what, int64_t dim, int32_t rank, Diag *diag, int32_t *out_dim) {
  if (rank == 0)
    return node_error(diag, node, "%s %lld: the input is a scalar and has no dimensions", what, (long long)dim);
  if (dim < -rank || dim >= rank) {
    return node_error(diag, node, "%s expects a value from %d to %d for %d dimensions, found %lld", what, -rank,
                      rank - 1, rank, (long long)dim);
  }
  *out_dim = (int32_t)(dim < 0 ? dim + rank : dim);
  return true;
}

bool infer_broadcast(const Shape *a, const Shape *b, Shape *out_shape) {
  Shape shape = {.rank = a->rank > b->rank ? a->rank : b->rank};
  for (int32_t i = 0; i < shape.rank; i++) {
    const int32_t in_a = i - (shape.rank - a->rank), in_b = i - (shape.rank - b->rank);
    const int64_t dim_a = in_a < 0 ? 1 : a->dims[in_a], dim_b = in_b < 0 ? 1 : b->dims[in_b];
    if (dim_a != dim_b && dim_a != 1 && dim_b != 1) return false;
    shape.dims[i] = dim_a == 1 ? dim_b : dim_a;
  }
  *out_shape = shape;
  return true;
}

bool infer_elementwise(Node *node, Diag *diag) {
  if (!infer_begin(node, diag)) return false;
  Shape shape = node->inputs[0]->shape;
  for (int32_t i = 0; i < node->op_input_count; i++) {
    if (!infer_expect_type(node, i, i == 0 ? "input" : "second input", DTYPE_F32, diag)) return false;
    const Shape *operand = &node->inputs[i]->shape;
    if (!infer_broadcast(&shape, operand, &shape)) {
      return node_error(diag, node, "shapes %s and %s do not broadcast", shape_text(&shape).text,
                        shape_text(operand).text);
    }
  }
  return infer_finish(node, DTYPE_F32, shape, diag);
}

/* --- windows --------------------------------------------------------------------------------------- */

bool infer_window(const Node *node, const Window *window, bool ceil_mode, Diag *diag, int64_t *out_size) {
  int64_t padded = 0, extent = 0;
  if (!checked_add(window->size, window->padding_before, &padded) ||
      !checked_add(padded, window->padding_after, &padded) ||
      !checked_mul(window->kernel - 1, window->dilation, &extent) || !checked_add(extent, 1, &extent)) {
    return node_error(diag, node, "window sizes along the %s overflow", window->axis);
  }
  if (extent > padded) {
    return node_error(diag, node, "kernel %s %lld with dilation %lld covers %lld, but the padded input has only %lld",
                      window->axis, (long long)window->kernel, (long long)window->dilation, (long long)extent,
                      (long long)padded);
  }
  const int64_t room = padded - extent, stride = window->stride;
  int64_t count = (ceil_mode ? ceil_div(room, stride) : room / stride) + 1;
  int64_t last_start = 0;
  if (!checked_mul(count - 1, stride, &last_start)) {
    return node_error(diag, node, "window sizes along the %s overflow", window->axis);
  }
  if (ceil_mode && last_start >= window->size + window->padding_before) count--;
  *out_size = count;
  return true;
}

bool infer_reflection(const Node *node, const char *axis, int64_t size, int64_t before, int64_t after, Diag *diag) {
  const int64_t larger = before > after ? before : after;
  if (larger < size) return true;
  return node_error(diag, node, "reflection padding along the %s must be less than the input's %lld, found %lld", axis,
                    (long long)size, (long long)larger);
}

/* --- parameters of layers -------------------------------------------------------------------------- */

/* A dimension of the input that an op is described by; 0 when it is not there, for infer() to complain about. */
static int64_t known_dim(const Shape *shape, int32_t dim) {
  return dim >= 0 && dim < shape->rank && shape->dims[dim] > 0 ? shape->dims[dim] : 0;
}

static int64_t not_negative(int64_t value) { return value < 0 ? 0 : value; }

static ParameterSpec parameter_spec(const char *suffix, Shape shape, InitKind init, int64_t fan_in) {
  return (ParameterSpec){.suffix = suffix, .shape = shape, .init = init, .fan_in = fan_in, .trainable = true};
}

static size_t weight_and_bias(Shape weight, int64_t fan_in, bool bias, int64_t outputs,
                              ParameterSpec out_specs[PARAMETER_SPEC_MAX]) {
  out_specs[0] = parameter_spec("weight", weight, INIT_WEIGHT, fan_in);
  if (!bias) return 1;
  out_specs[1] = parameter_spec("bias", shape_of(1, &outputs), INIT_BIAS, fan_in);
  return 2;
}

/* Filters [outer, inner, kernel height, kernel width]; PyTorch takes all but the first as fan-in, for transposed
 * convolution too. */
static size_t filter_parameters(const Attrs *attrs, int64_t outer, int64_t inner, int64_t outputs,
                                ParameterSpec out_specs[PARAMETER_SPEC_MAX]) {
  const int64_t height = not_negative(attrs->kernel.values[0]), width = not_negative(attrs->kernel.values[1]);
  int64_t fan_in = 0;
  if (!checked_mul(inner, height, &fan_in) || !checked_mul(fan_in, width, &fan_in)) fan_in = 0;
  const Shape weight = shape_of(4, (const int64_t[]){outer, inner, height, width});
  return weight_and_bias(weight, fan_in, attrs->bias, outputs, out_specs);
}

size_t no_parameters(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]) {
  (void)attrs;
  (void)input;
  (void)out_specs;
  return 0;
}

size_t parameters_conv2d(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]) {
  const int64_t groups = attrs->groups < 1 ? 1 : attrs->groups, outputs = not_negative(attrs->out_channels);
  return filter_parameters(attrs, outputs, known_dim(input, 1) / groups, outputs, out_specs);
}

size_t parameters_conv_transpose2d(const Attrs *attrs, const Shape *input,
                                   ParameterSpec out_specs[PARAMETER_SPEC_MAX]) {
  const int64_t groups = attrs->groups < 1 ? 1 : attrs->groups, outputs = not_negative(attrs->out_channels);
  return filter_parameters(attrs, known_dim(input, 1), outputs / groups, outputs, out_specs);
}

size_t parameters_linear(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]) {
  const int64_t features = known_dim(input, input->rank - 1), outputs = not_negative(attrs->out_features);
  return weight_and_bias(shape_of(2, (const int64_t[]){outputs, features}), features, attrs->bias, outputs, out_specs);
}

size_t parameters_batch_norm(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]) {
  (void)attrs;
  const int64_t channels = known_dim(input, 1);
  const Shape shape = shape_of(1, &channels);
  out_specs[0] = parameter_spec("weight", shape, INIT_ONE, 0);
  out_specs[1] = parameter_spec("bias", shape, INIT_ZERO, 0);
  out_specs[2] = parameter_spec("running_mean", shape, INIT_ZERO, 0);
  out_specs[3] = parameter_spec("running_var", shape, INIT_ONE, 0);
  for (size_t i = 2; i < 4; i++) {
    out_specs[i].trainable = false;
    out_specs[i].buffer = true;
  }
  return 4;
}
