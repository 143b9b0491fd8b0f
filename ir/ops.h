/* The op table in C: enumerators, facts and rules of every op, generated from ir/ops.def. */
#ifndef KILN_IR_OPS_H
#define KILN_IR_OPS_H

#include "attrs.h"
#include "base/diag.h"
#include "expr.h"
#include "types.h"

typedef enum OpCode {
#define OP(ENUM, name, inputs_min, inputs_max, attributes, layouts, parameters) OP_##ENUM,
#define UNARY(ENUM, name, attributes) OP_##ENUM, OP_##ENUM##_GRAD,
#define BINARY(ENUM, name, attributes) OP_##ENUM,
#define SOURCE(ENUM, name) OP_##ENUM,
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE
  OP_COUNT
} OpCode;

typedef enum OpKind { OP_KIND_SOURCE, OP_KIND_UNARY, OP_KIND_BINARY, OP_KIND_OTHER } OpKind;
typedef enum OpLayouts { LAYOUTS_PLAIN, LAYOUTS_IMAGE, LAYOUTS_OWN } OpLayouts;

struct Node;
struct EvalTensor;
struct GradContext;

/* How a parameter starts when a model is initialised. */
typedef enum InitKind { INIT_WEIGHT /* Kaiming, by fan_in */, INIT_BIAS /* by fan_in */, INIT_ZERO, INIT_ONE } InitKind;

/* A parameter that a layer of an op has: its name is the layer's plus "." plus suffix. */
typedef struct ParameterSpec {
  const char *suffix; /* "weight", "bias", "running_mean", … as in PyTorch's state dict */
  Shape shape;
  InitKind init;
  int64_t fan_in;
  bool trainable; /* false for running statistics */
  bool buffer;    /* not a parameter in PyTorch's sense: not counted in "params" */
} ParameterSpec;

enum { PARAMETER_SPEC_MAX = 4 };

typedef struct OpInfo {
  const char *name;
  OpKind kind;
  int32_t inputs_min, inputs_max; /* all inputs, parameters included, epilogue operands not */
  AttrMask attrs;
  OpLayouts layouts;
  /* Checks inputs and attributes; sets dtype and shape. Reports with node_error() and returns false otherwise. */
  bool (*infer)(struct Node *node, Diag *diag);
  /* The naive interpreter: one plain loop nest in double. Shapes are concrete. */
  void (*eval)(const struct Node *node, const struct EvalTensor *const *inputs, struct EvalTensor *output);
  /* UNARY, BINARY: the value; `b` is unused by unary ops. */
  ExprValue (*expr)(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b);
  /* Builds the gradients of the op's inputs from that of its result: out_gradients[i] for the inputs that need one,
   * see ir/grad.h. False after a report. */
  bool (*grad)(struct GradContext *context, struct Node *node, struct Node *gradient, struct Node **out_gradients);
  /* Parameters of a layer with these attributes on this input; returns how many were written. The caller has
   * checked nothing: dimensions may be wrong, infer() will say so. */
  size_t (*parameters)(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]);
} OpInfo;

const OpInfo *op_info(OpCode op);
/* OP_COUNT when there is none of that name. */
OpCode op_find(const char *name);
/* Names of all ops that a description may use, for "did you mean". */
const char *const *op_names(size_t *out_count);

/* Whether an image's part of the node's value may depend on other images, or on which or how many there are. Only values
 * without a batch do so besides: what else has a batch is computed image by image. */
bool node_joins_images(const struct Node *node);
static inline bool op_is_elementwise(OpCode op) {
  OpKind kind = op_info(op)->kind;
  return kind == OP_KIND_UNARY || kind == OP_KIND_BINARY;
}

/* Declarations of every rule named by the table. */
#define OP(ENUM, name, inputs_min, inputs_max, attributes, layouts, parameters)                                 \
  bool infer_##name(struct Node *node, Diag *diag);                                                             \
  void eval_##name(const struct Node *node, const struct EvalTensor *const *inputs, struct EvalTensor *output); \
  bool grad_##name(struct GradContext *context, struct Node *node, struct Node *gradient, struct Node **out_gradients);
#define UNARY(ENUM, name, attributes)                                                                     \
  ExprValue expr_##name(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b);        \
  ExprValue expr_##name##_grad(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b);
#define BINARY(ENUM, name, attributes)                                                             \
  ExprValue expr_##name(const ExprBuilder *builder, const Attrs *attrs, ExprValue a, ExprValue b); \
  bool grad_##name(struct GradContext *context, struct Node *node, struct Node *gradient, struct Node **out_gradients);
#define SOURCE(ENUM, name)
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE
/* Shared by all rows UNARY, and by the ops that these make: second derivatives are not built. */
bool grad_unary(struct GradContext *context, struct Node *node, struct Node *gradient, struct Node **out_gradients);
bool grad_unary_grad(struct GradContext *context, struct Node *node, struct Node *gradient,
                     struct Node **out_gradients);
bool infer_elementwise(struct Node *node, Diag *diag);
void eval_elementwise(const struct Node *node, const struct EvalTensor *const *inputs, struct EvalTensor *output);
size_t no_parameters(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]);
size_t parameters_conv2d(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]);
size_t parameters_conv_transpose2d(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]);
size_t parameters_linear(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]);
size_t parameters_batch_norm(const Attrs *attrs, const Shape *input, ParameterSpec out_specs[PARAMETER_SPEC_MAX]);

#endif
