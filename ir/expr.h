/* Element-wise expressions, written once per op and evaluated by whoever needs them: the interpreter in double,
 * the CPU generator as vector code, the CUDA generator as text. A builder supplies the primitive operations. */
#ifndef KILN_IR_EXPR_H
#define KILN_IR_EXPR_H

/* A value under construction: a number for the interpreter, a handle for a generator. */
typedef union ExprValue {
  double number;
  void *handle;
} ExprValue;

typedef enum ExprUnary { EXPR_NEG, EXPR_ABS, EXPR_SQRT, EXPR_EXP, EXPR_LOG, EXPR_TANH, EXPR_ERF, EXPR_SIGMOID } ExprUnary;
/* EXPR_MAX and EXPR_MIN return the second operand when either is NaN or when they are equal, as `a > b ? a : b`.
 * Write relu as select_greater(a, 0, a, …) or max so that NaN survives: see expr_ops.c. */
typedef enum ExprBinary { EXPR_ADD, EXPR_SUB, EXPR_MUL, EXPR_DIV, EXPR_MAX, EXPR_MIN } ExprBinary;

typedef struct ExprBuilder {
  void *context;
  ExprValue (*constant)(void *context, double value);
  ExprValue (*unary)(void *context, ExprUnary operation, ExprValue a);
  ExprValue (*binary)(void *context, ExprBinary operation, ExprValue a, ExprValue b);
  /* a < b ? yes : no; false when either is NaN */
  ExprValue (*select_less)(void *context, ExprValue a, ExprValue b, ExprValue yes, ExprValue no);
} ExprBuilder;

#endif
