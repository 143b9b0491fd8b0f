/* The value of every element-wise op, once for all who compute it. Comparisons are written so that NaN survives:
 * select_less is false for NaN, hence NaN must be what the "no" side gives. */
#include <math.h>

#include "ops.h"

static ExprValue constant(const ExprBuilder *builder, double value) {
  return builder->constant(builder->context, value);
}

static ExprValue unary(const ExprBuilder *builder, ExprUnary operation, ExprValue a) {
  return builder->unary(builder->context, operation, a);
}

static ExprValue binary(const ExprBuilder *builder, ExprBinary operation, ExprValue a, ExprValue b) {
  return builder->binary(builder->context, operation, a, b);
}

static ExprValue add(const ExprBuilder *builder, ExprValue a, ExprValue b) { return binary(builder, EXPR_ADD, a, b); }
static ExprValue mul(const ExprBuilder *builder, ExprValue a, ExprValue b) { return binary(builder, EXPR_MUL, a, b); }

static ExprValue select_less(const ExprBuilder *builder, ExprValue a, ExprValue b, ExprValue yes, ExprValue no) {
  return builder->select_less(builder->context, a, b, yes, no);
}

/* Ops that are one primitive. */
#define UNARY_PRIMITIVE(name, operation)                                                            \
  ExprValue expr_##name(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b) { \
    (void)attrs;                                                                                    \
    (void)b;                                                                                        \
    return unary(builder, operation, a);                                                            \
  }
#define BINARY_PRIMITIVE(name, operation)                                                           \
  ExprValue expr_##name(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b) { \
    (void)attrs;                                                                                    \
    return binary(builder, operation, a, b);                                                        \
  }

UNARY_PRIMITIVE(sigmoid, EXPR_SIGMOID)
UNARY_PRIMITIVE(tanh, EXPR_TANH)
UNARY_PRIMITIVE(exp, EXPR_EXP)
UNARY_PRIMITIVE(log, EXPR_LOG)
UNARY_PRIMITIVE(sqrt, EXPR_SQRT)
UNARY_PRIMITIVE(abs, EXPR_ABS)
UNARY_PRIMITIVE(neg, EXPR_NEG)
BINARY_PRIMITIVE(add, EXPR_ADD)
BINARY_PRIMITIVE(sub, EXPR_SUB)
BINARY_PRIMITIVE(mul, EXPR_MUL)
BINARY_PRIMITIVE(div, EXPR_DIV)

ExprValue expr_relu(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b) {
  (void)attrs;
  (void)b;
  const ExprValue zero = constant(builder, 0);
  return select_less(builder, a, zero, zero, a);
}

ExprValue expr_leaky_relu(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b) {
  (void)b;
  const ExprValue scaled = mul(builder, a, constant(builder, attrs->negative_slope));
  return select_less(builder, a, constant(builder, 0), scaled, a);
}

/* Hendrycks and Gimpel, arXiv 1606.08415: x·Φ(x), and its approximation with tanh. */
ExprValue expr_gelu(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b) {
  (void)b;
  const double sqrt_half = 0.70710678118654752440, sqrt_2_over_pi = 0.79788456080286535588;
  ExprValue t;
  if (attrs->approximate == APPROXIMATE_TANH) {
    const ExprValue cube = mul(builder, mul(builder, a, a), a);
    const ExprValue inner = add(builder, a, mul(builder, constant(builder, 0.044715), cube));
    t = unary(builder, EXPR_TANH, mul(builder, constant(builder, sqrt_2_over_pi), inner));
  } else {
    t = unary(builder, EXPR_ERF, mul(builder, a, constant(builder, sqrt_half)));
  }
  return mul(builder, mul(builder, constant(builder, 0.5), a), add(builder, constant(builder, 1), t));
}

ExprValue expr_silu(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b) {
  (void)attrs;
  (void)b;
  return mul(builder, a, unary(builder, EXPR_SIGMOID, a));
}

ExprValue expr_clamp(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b) {
  (void)b;
  ExprValue value = a;
  if (attrs->min > -INFINITY) {
    const ExprValue minimum = constant(builder, attrs->min);
    value = select_less(builder, value, minimum, minimum, value);
  }
  if (attrs->max < INFINITY) {
    const ExprValue maximum = constant(builder, attrs->max);
    value = select_less(builder, maximum, value, maximum, value);
  }
  return value;
}

ExprValue expr_bn_scale(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b) {
  const ExprValue deviation = unary(builder, EXPR_SQRT, add(builder, b, constant(builder, attrs->eps)));
  return binary(builder, EXPR_DIV, a, deviation);
}
