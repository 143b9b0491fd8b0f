/* Integer expressions of block parameters: "$out*4", "$kernel/2", "$stride != 1 || $index == 0".
 *
 *   expression = integers, $names, parentheses, unary - + !, and by falling precedence
 *                * / %    + -    < <= > >=    == !=    &&    ||
 *
 * Values are 64-bit integers; division truncates towards zero and % has the sign of the dividend, as in C;
 * comparisons and logic give 1 or 0, and && and || leave out the operand that they do not need. */
#ifndef KILN_FRONTEND_EXPRESSION_H
#define KILN_FRONTEND_EXPRESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { EXPRESSION_MAX_DEPTH = 32 /* of parentheses and unary operators */ };

typedef struct ExpressionVariable {
  const char *name; /* without the $ */
  int64_t value;
} ExpressionVariable;

typedef struct ExpressionError {
  size_t offset; /* byte of the text where the mistake stands */
  char message[160];
} ExpressionError;

/* Overflow, division by zero, unknown names and bad syntax are errors. With `out_value` NULL only syntax and names
 * are checked: values are not known yet. */
bool expression_evaluate(const char *text, const ExpressionVariable *variables, size_t count, int64_t *out_value,
                         ExpressionError *out_error);

#endif
