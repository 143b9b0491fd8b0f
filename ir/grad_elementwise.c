/* Derivatives of element-wise ops. Those of one operand are expressions, like the ops themselves; those of two are
 * built from other ops. */
#include <math.h>

#include "grad.h"

/* --- one operand: f'(x) ---------------------------------------------------------------------------- */

static ExprValue constant(const ExprBuilder *builder, double value) {
  return builder->constant(builder->context, value);
}

static ExprValue unary(const ExprBuilder *builder, ExprUnary operation, ExprValue a) {
  return builder->unary(builder->context, operation, a);
}

static ExprValue add(const ExprBuilder *builder, ExprValue a, ExprValue b) {
  return builder->binary(builder->context, EXPR_ADD, a, b);
}

static ExprValue sub(const ExprBuilder *builder, ExprValue a, ExprValue b) {
  return builder->binary(builder->context, EXPR_SUB, a, b);
}

static ExprValue mul(const ExprBuilder *builder, ExprValue a, ExprValue b) {
  return builder->binary(builder->context, EXPR_MUL, a, b);
}

static ExprValue select_less(const ExprBuilder *builder, ExprValue a, ExprValue b, ExprValue yes, ExprValue no) {
  return builder->select_less(builder->context, a, b, yes, no);
}

static ExprValue derivative_relu(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  (void)attrs;
  return select_less(builder, constant(builder, 0), x, constant(builder, 1), constant(builder, 0));
}

static ExprValue derivative_leaky_relu(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  const ExprValue slope = constant(builder, attrs->negative_slope);
  return select_less(builder, constant(builder, 0), x, constant(builder, 1), slope);
}

static ExprValue derivative_sigmoid(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  (void)attrs;
  const ExprValue s = unary(builder, EXPR_SIGMOID, x);
  return mul(builder, s, sub(builder, constant(builder, 1), s));
}

static ExprValue derivative_tanh(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  (void)attrs;
  const ExprValue t = unary(builder, EXPR_TANH, x);
  return sub(builder, constant(builder, 1), mul(builder, t, t));
}

/* Φ(x) + x·φ(x), and the derivative of the approximation with tanh. */
static ExprValue derivative_gelu(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  const double sqrt_half = 0.70710678118654752440, sqrt_2_over_pi = 0.79788456080286535588;
  const ExprValue half = constant(builder, 0.5), one = constant(builder, 1), square = mul(builder, x, x);
  if (attrs->approximate == APPROXIMATE_TANH) {
    const ExprValue cubic = mul(builder, constant(builder, 0.044715), square);
    const ExprValue inner = mul(builder, mul(builder, constant(builder, sqrt_2_over_pi), x), add(builder, one, cubic));
    const ExprValue t = unary(builder, EXPR_TANH, inner);
    const ExprValue slope =
        mul(builder, constant(builder, sqrt_2_over_pi), add(builder, one, mul(builder, constant(builder, 3), cubic)));
    const ExprValue bend = mul(builder, sub(builder, one, mul(builder, t, t)), slope);
    return mul(builder, half, add(builder, add(builder, one, t), mul(builder, x, bend)));
  }
  const ExprValue e = unary(builder, EXPR_ERF, mul(builder, x, constant(builder, sqrt_half)));
  const ExprValue bell = unary(builder, EXPR_EXP, mul(builder, constant(builder, -0.5), square));
  const ExprValue density = mul(builder, constant(builder, 0.5 * sqrt_2_over_pi), bell);
  return add(builder, mul(builder, half, add(builder, one, e)), mul(builder, x, density));
}

static ExprValue derivative_silu(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  (void)attrs;
  const ExprValue s = unary(builder, EXPR_SIGMOID, x), one = constant(builder, 1);
  return mul(builder, s, add(builder, one, mul(builder, x, sub(builder, one, s))));
}

static ExprValue derivative_clamp(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  const ExprValue zero = constant(builder, 0);
  ExprValue value = constant(builder, 1);
  if (attrs->min > -INFINITY) value = select_less(builder, x, constant(builder, attrs->min), zero, value);
  if (attrs->max < INFINITY) value = select_less(builder, constant(builder, attrs->max), x, zero, value);
  return value;
}

static ExprValue derivative_exp(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  (void)attrs;
  return unary(builder, EXPR_EXP, x);
}

static ExprValue derivative_log(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  (void)attrs;
  return builder->binary(builder->context, EXPR_DIV, constant(builder, 1), x);
}

static ExprValue derivative_sqrt(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  (void)attrs;
  return builder->binary(builder->context, EXPR_DIV, constant(builder, 0.5), unary(builder, EXPR_SQRT, x));
}

static ExprValue derivative_abs(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  (void)attrs;
  const ExprValue zero = constant(builder, 0);
  const ExprValue positive = select_less(builder, zero, x, constant(builder, 1), zero);
  return select_less(builder, x, zero, constant(builder, -1), positive);
}

static ExprValue derivative_neg(const ExprBuilder *builder, const Attrs *attrs, ExprValue x) {
  (void)attrs;
  (void)x;
  return constant(builder, -1);
}

/* expr_X_grad: f'(x) · dy. */
#define UNARY(ENUM, name, attributes)                                                                      \
  ExprValue expr_##name##_grad(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b) { \
    return mul(builder, derivative_##name(builder, attrs, a), b);                                          \
  }
#define OP(ENUM, name, inputs_min, inputs_max, attributes, layouts, parameters)
#define BINARY(ENUM, name, attributes)
#define SOURCE(ENUM, name)
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE

static OpCode grad_op(OpCode op) {
  switch (op) {
#define UNARY(ENUM, name, attributes) \
  case OP_##ENUM:                     \
    return OP_##ENUM##_GRAD;
#define OP(ENUM, name, inputs_min, inputs_max, attributes, layouts, parameters)
#define BINARY(ENUM, name, attributes)
#define SOURCE(ENUM, name)
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE
    default:
      return OP_COUNT;
  }
}

/* The result has the sign of the operand and is 0 where that is: then the derivative may be taken from the result, so
 * that the operand need not be kept, and the op can still join the kernel that makes its operand. */
static bool keeps_sign(const Node *node) {
  return node->op == OP_RELU || (node->op == OP_LEAKY_RELU && node->attrs.negative_slope >= 0);
}

bool grad_unary(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *at = keeps_sign(node) ? node : node->inputs[0];
  out_gradients[0] = gradient_make(context, grad_op(node->op), &node->attrs, (Node *const[]){at, gradient}, 2);
  return !context->failed;
}

bool grad_unary_grad(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  (void)gradient;
  (void)out_gradients;
  return gradient_refuse(context, node, "second derivatives are not supported");
}

/* --- two operands ---------------------------------------------------------------------------------- */

/* Gives an operand its gradient, summed over what was broadcast. */
static void give(GradContext *context, const Node *node, int32_t input, Node *gradient, Node **out_gradients) {
  out_gradients[input] = gradient_unbroadcast(context, gradient, &node->inputs[input]->shape);
}

bool grad_add(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  for (int32_t i = 0; i < 2; i++) {
    if (gradient_needed(context, node, i)) give(context, node, i, gradient, out_gradients);
  }
  return !context->failed;
}

bool grad_sub(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  if (gradient_needed(context, node, 0)) give(context, node, 0, gradient, out_gradients);
  if (gradient_needed(context, node, 1)) {
    /* negated last: by then there are fewer elements */
    give(context, node, 1, gradient, out_gradients);
    out_gradients[1] = gradient_unary(context, OP_NEG, out_gradients[1]);
  }
  return !context->failed;
}

bool grad_mul(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  for (int32_t i = 0; i < 2; i++) {
    if (!gradient_needed(context, node, i)) continue;
    give(context, node, i, gradient_binary(context, OP_MUL, gradient, node->inputs[1 - i]), out_gradients);
  }
  return !context->failed;
}

/* (a/b)' = a'/b − b'·(a/b)/b */
bool grad_div(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  Node *share = gradient_binary(context, OP_DIV, gradient, node->inputs[1]);
  if (gradient_needed(context, node, 0)) give(context, node, 0, share, out_gradients);
  if (gradient_needed(context, node, 1)) {
    give(context, node, 1, gradient_binary(context, OP_MUL, share, node), out_gradients);
    out_gradients[1] = gradient_unary(context, OP_NEG, out_gradients[1]);
  }
  return !context->failed;
}

bool grad_bn_scale(GradContext *context, Node *node, Node *gradient, Node **out_gradients) {
  if (gradient_needed(context, node, 1)) {
    return gradient_refuse(context, node, "there is none with respect to a running variance");
  }
  Node *scaled = gradient_make(context, OP_BN_SCALE, &node->attrs, (Node *const[]){gradient, node->inputs[1]}, 2);
  give(context, node, 0, scaled, out_gradients);
  return !context->failed;
}
