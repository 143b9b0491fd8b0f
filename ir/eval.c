/* The interpreter's driver: gives every value a concrete shape, runs the nodes in order, applies epilogues. */
#include "eval.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "infer.h"

/* --- expressions in double ------------------------------------------------------------------------- */

static ExprValue number(double value) { return (ExprValue){.number = value}; }

static ExprValue eval_constant(void *context, double value) {
  (void)context;
  return number(value);
}

static double sigmoid(double x) {
  if (x >= 0) return 1 / (1 + exp(-x));
  const double e = exp(x);
  return e / (1 + e);
}

static ExprValue eval_unary(void *context, ExprUnary operation, ExprValue a) {
  (void)context;
  switch (operation) {
    case EXPR_NEG:
      return number(-a.number);
    case EXPR_ABS:
      return number(fabs(a.number));
    case EXPR_SQRT:
      return number(sqrt(a.number));
    case EXPR_EXP:
      return number(exp(a.number));
    case EXPR_LOG:
      return number(log(a.number));
    case EXPR_TANH:
      return number(tanh(a.number));
    case EXPR_ERF:
      return number(erf(a.number));
    case EXPR_SIGMOID:
      return number(sigmoid(a.number));
  }
  return a;
}

static ExprValue eval_binary(void *context, ExprBinary operation, ExprValue a, ExprValue b) {
  (void)context;
  switch (operation) {
    case EXPR_ADD:
      return number(a.number + b.number);
    case EXPR_SUB:
      return number(a.number - b.number);
    case EXPR_MUL:
      return number(a.number * b.number);
    case EXPR_DIV:
      return number(a.number / b.number);
    case EXPR_MAX:
      return a.number > b.number ? a : b;
    case EXPR_MIN:
      return a.number < b.number ? a : b;
  }
  return a;
}

static ExprValue eval_select_less(void *context, ExprValue a, ExprValue b, ExprValue yes, ExprValue no) {
  (void)context;
  return a.number < b.number ? yes : no;
}

const ExprBuilder *eval_expr_builder(void) {
  static const ExprBuilder builder = {
      .constant = eval_constant, .unary = eval_unary, .binary = eval_binary, .select_less = eval_select_less};
  return &builder;
}

/* --- element-wise ops and epilogues ---------------------------------------------------------------- */

void eval_strides(const Shape *shape, int64_t out_strides[SHAPE_MAX_RANK]) {
  int64_t stride = 1;
  for (int32_t i = shape->rank - 1; i >= 0; i--) {
    out_strides[i] = stride;
    stride *= shape->dims[i];
  }
}

static int64_t tensor_count(const EvalTensor *tensor) {
  int64_t count = 1;
  for (int32_t i = 0; i < tensor->shape.rank; i++) count *= tensor->shape.dims[i];
  return count;
}

/* Strides of an operand as seen from a shape that it broadcasts to: 0 where it repeats. */
static void broadcast_strides(const Shape *operand, const Shape *shape, int64_t out_strides[SHAPE_MAX_RANK]) {
  int64_t own[SHAPE_MAX_RANK];
  eval_strides(operand, own);
  const int32_t shift = shape->rank - operand->rank;
  for (int32_t i = 0; i < shape->rank; i++) {
    out_strides[i] = i < shift || operand->dims[i - shift] == 1 ? 0 : own[i - shift];
  }
}

/* The next index in row-major order. */
static void next_index(const Shape *shape, int64_t index[SHAPE_MAX_RANK]) {
  for (int32_t i = shape->rank - 1; i >= 0; i--) {
    if (++index[i] < shape->dims[i]) return;
    index[i] = 0;
  }
}

/* output = op(a, b), element by element; `b` is NULL for unary ops, and `output` may be `a` or `b` itself. */
static void apply(OpCode op, const Attrs *attrs, const EvalTensor *a, const EvalTensor *b, EvalTensor *output) {
  ExprValue (*expr)(const ExprBuilder *, const Attrs *, ExprValue, ExprValue) = op_info(op)->expr;
  const ExprBuilder *builder = eval_expr_builder();
  const Shape *shape = &output->shape;
  int64_t strides_a[SHAPE_MAX_RANK], strides_b[SHAPE_MAX_RANK] = {0}, index[SHAPE_MAX_RANK] = {0};
  broadcast_strides(&a->shape, shape, strides_a);
  if (b) broadcast_strides(&b->shape, shape, strides_b);
  const int64_t count = tensor_count(output);
  for (int64_t i = 0; i < count; i++) {
    int64_t at_a = 0, at_b = 0;
    for (int32_t k = 0; k < shape->rank; k++) {
      at_a += index[k] * strides_a[k];
      at_b += index[k] * strides_b[k];
    }
    output->data[i] = expr(builder, attrs, number(a->data[at_a]), number(b ? b->data[at_b] : 0)).number;
    next_index(shape, index);
  }
}

void eval_elementwise(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  apply(node->op, &node->attrs, inputs[0], node->op_input_count > 1 ? inputs[1] : NULL, output);
}

static void apply_epilogue(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  for (int32_t i = 0; i < node->epilogue_count; i++) {
    const EpilogueStep *step = &node->epilogue[i];
    const EvalTensor *operand = step->operand < 0 ? NULL : inputs[step->operand];
    if (step->reversed && operand) {
      apply(step->op, &step->attrs, operand, output, output);
    } else {
      apply(step->op, &step->attrs, output, operand, output);
    }
  }
}

/* --- the driver ------------------------------------------------------------------------------------ */

typedef struct Interpreter {
  const Graph *graph;
  const TensorList *inputs, *parameters;
  Arena *arena;
  Diag *diag;
  EvalResult *result;
} Interpreter;

static Location file_location(const Graph *graph) { return (Location){.file = graph->file}; }

/* The batch is what the batched inputs agree on. */
static bool find_batch(Interpreter *interpreter) {
  const Graph *graph = interpreter->graph;
  bool known = false, valid = true;
  interpreter->result->batch = 1;
  for (size_t i = 0; i < graph->input_count; i++) {
    const GraphInput *input = &graph->inputs[i];
    const Tensor *tensor = tensor_find(interpreter->inputs, input->name);
    if (!tensor) {
      diag_error(interpreter->diag, file_location(graph), "input '%s' is missing", input->name);
      valid = false;
      continue;
    }
    if (!shape_batched(&input->shape) || tensor->shape.rank == 0) continue;
    const int64_t batch = tensor->shape.dims[0];
    if (known && batch != interpreter->result->batch) {
      diag_error(interpreter->diag, file_location(graph), "input '%s' has batch %lld, others have %lld", input->name,
                 (long long)batch, (long long)interpreter->result->batch);
      valid = false;
    }
    interpreter->result->batch = batch;
    known = true;
  }
  return valid;
}

static Shape concrete_shape(const Shape *shape, int64_t batch) {
  Shape concrete = *shape;
  if (shape_batched(shape)) concrete.dims[0] = batch;
  return concrete;
}

/* Room for a node's value. */
static bool allocate(Interpreter *interpreter, const Node *node, EvalTensor *out_tensor) {
  int64_t count = 0, bytes = 0;
  if (!shape_elements(&node->shape, interpreter->result->batch, &count) ||
      !checked_mul(count, (int64_t)sizeof(double), &bytes)) {
    return node_error(interpreter->diag, node, "value %s is too large for a batch of %lld",
                      shape_text(&node->shape).text, (long long)interpreter->result->batch);
  }
  out_tensor->shape = concrete_shape(&node->shape, interpreter->result->batch);
  out_tensor->data = arena_array(interpreter->arena, (size_t)count, double);
  return true;
}

static bool load(Interpreter *interpreter, const char *what, const char *name, const Tensor *tensor,
                 EvalTensor *output) {
  if (!shape_equal(&tensor->shape, &output->shape)) {
    diag_error(interpreter->diag, file_location(interpreter->graph), "%s '%s' expects shape %s, found %s", what, name,
               shape_text(&output->shape).text, shape_text(&tensor->shape).text);
    return false;
  }
  const int64_t count = tensor_count(output);
  for (int64_t i = 0; i < count; i++) output->data[i] = tensor_get(tensor, i);
  return true;
}

static bool load_parameter(Interpreter *interpreter, const Node *node, EvalTensor *output) {
  const Parameter *parameter = &interpreter->graph->parameters[node->port];
  const Tensor *tensor = interpreter->parameters ? tensor_find(interpreter->parameters, parameter->name) : NULL;
  if (!tensor) tensor = parameter->value;
  if (!tensor) {
    diag_error(interpreter->diag, file_location(interpreter->graph), "parameter '%s' has no value", parameter->name);
    return false;
  }
  return load(interpreter, "parameter", parameter->name, tensor, output);
}

static bool load_input(Interpreter *interpreter, const Node *node, EvalTensor *output) {
  const char *name = interpreter->graph->inputs[node->port].name;
  return load(interpreter, "input", name, tensor_find(interpreter->inputs, name), output);
}

/* Runs a node whose inputs have been computed; one without a value marks those behind it as not computable. */
static bool run_node(Interpreter *interpreter, const Node *node, const EvalTensor **inputs) {
  EvalTensor *values = interpreter->result->values;
  for (int32_t i = 0; i < node->input_count; i++) {
    inputs[i] = &values[node->inputs[i]->id];
    if (!inputs[i]->data) return false;
  }
  EvalTensor output;
  if (!allocate(interpreter, node, &output)) return false;
  if (node->op == OP_INPUT) {
    if (!load_input(interpreter, node, &output)) return false;
  } else if (node->op == OP_PARAMETER) {
    if (!load_parameter(interpreter, node, &output)) return false;
  } else {
    op_info(node->op)->eval(node, inputs, &output);
    apply_epilogue(node, inputs, &output);
  }
  values[node->id] = output;
  return true;
}

bool graph_eval(const Graph *graph, const TensorList *inputs, const TensorList *parameters, Arena *arena, Diag *diag,
                EvalResult *out_result) {
  *out_result = (EvalResult){.values = arena_array(arena, graph->next_id, EvalTensor), .count = graph->next_id};
  Interpreter interpreter = {graph, inputs, parameters, arena, diag, out_result};
  if (!find_batch(&interpreter)) return false;
  int32_t most = 0;
  for (size_t i = 0; i < graph->node_count; i++) {
    if (graph->nodes[i]->input_count > most) most = graph->nodes[i]->input_count;
  }
  const EvalTensor **operands = arena_alloc(arena, (size_t)most, sizeof *operands);
  bool valid = true;
  for (size_t i = 0; i < graph->node_count; i++) {
    if (!run_node(&interpreter, graph->nodes[i], operands)) valid = false;
  }
  return valid;
}
