/* frontend/expression: values, precedence, and where mistakes are. */
#include "expression.h"

#include "support.h"

static const ExpressionVariable variables[] = {{"out", 64}, {"kernel", 5}, {"in", 16}, {"index", 0}};

static bool evaluate(const char *text, int64_t *out_value, ExpressionError *error) {
  return expression_evaluate(text, variables, 4, out_value, error);
}

static void expressions_have_values(void **state) {
  (void)state;
  static const struct {
    const char *text;
    int64_t value;
  } cases[] = {
      {"$out", 64},
      {"$kernel/2", 2},
      {"$in*4+1", 65},
      {" ( 1 + 2 ) * 3 ", 9},
      {"1+2*3", 7},
      {"10-4-3", 3},
      {"100/10/5", 2},
      {"-7/2", -3},
      {"-7%3", -1},
      {"7%-3", 1},
      {"--3", 3},
      {"+3", 3},
      {"!0 + !5", 1},
      {"!!7", 1},
      {"2*-3", -6},
      {"1 < 2 == 1", 1},
      {"3 > 2 && 2 >= 2 && 1 <= 0", 0},
      {"1 != 2 || 1/0", 1},
      {"0 && 1/0", 0},
      {"0 && 1/0 || 1", 1},
      {"1 || 0 && 1/0", 1},
      {"$index == 0 && $out > 8", 1},
      {"9223372036854775807", INT64_MAX},
      {"-9223372036854775807-1", INT64_MIN},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int64_t value = 12345;
    ExpressionError error;
    if (!evaluate(cases[i].text, &value, &error)) fail_msg("%s: %s", cases[i].text, error.message);
    if (value != cases[i].value) fail_msg("%s is %lld", cases[i].text, (long long)value);
  }
}

static void mistakes_have_a_place(void **state) {
  (void)state;
  static const struct {
    const char *text;
    size_t offset;
    const char *message;
  } cases[] = {
      {"", 0, "expected a number, '$name' or '(', found the end of the expression"},
      {"$", 1, "expected a parameter's name after '$', found the end of the expression"},
      {"1 +", 3, "expected a number, '$name' or '(', found the end of the expression"},
      {"same", 0, "expected a number, '$name' or '(', found 'same'"},
      {"1 2", 2, "expected an operator, found '2'"},
      {"(1", 2, "expected an operator or ')', found the end of the expression"},
      {"1)", 1, "expected an operator, found ')'"},
      {"1 = 2", 2, "expected an operator, found '='"},
      {"2*$kernl", 2, "no parameter is named 'kernl'; did you mean '$kernel'?"},
      {"$zzz", 0, "no parameter is named 'zzz'"},
      {"1 + 4/($kernel-5)", 5, "division by zero"},
      {"1%0", 1, "division by zero"},
      {"9223372036854775808", 0, "the number is too large"},
      {"9223372036854775807+1", 19, "the result does not fit 64 bits"},
      {"2*(-9223372036854775807-1)", 1, "the result does not fit 64 bits"},
      {"-(-9223372036854775807-1)", 0, "the result does not fit 64 bits"},
      {"(-9223372036854775807-1)/-1", 24, "the result does not fit 64 bits"},
      {"(-9223372036854775807-1)%-1", 24, "the result does not fit 64 bits"},
      {"1\n", 1, "expected an operator, found '\n'"},
      {"1 \xc3\xb7 2", 2, "expected an operator, found '\xc3\xb7'"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int64_t value;
    ExpressionError error;
    if (evaluate(cases[i].text, &value, &error)) fail_msg("accepted: %s", cases[i].text);
    assert_string_equal(error.message, cases[i].message);
    assert_int_equal(error.offset, cases[i].offset);
  }
}

static void checking_needs_no_values(void **state) {
  (void)state;
  ExpressionError error;
  assert_true(evaluate("1/($kernel-$kernel) + 9223372036854775807*2", NULL, &error));
  assert_false(evaluate("1/$nothing", NULL, &error));
  assert_int_equal(error.offset, 2);
}

static void nesting_has_a_limit(void **state) {
  (void)state;
  char text[200];
  ExpressionError error;
  int64_t value;
  for (int depth = EXPRESSION_MAX_DEPTH; depth <= EXPRESSION_MAX_DEPTH + 1; depth++) {
    memset(text, '(', (size_t)depth);
    text[depth] = '1';
    memset(text + depth + 1, ')', (size_t)depth);
    text[2 * depth + 1] = '\0';
    assert_int_equal(evaluate(text, &value, &error), depth == EXPRESSION_MAX_DEPTH);
  }
  memset(text, '-', sizeof text - 2);
  strcpy(text + sizeof text - 2, "1");
  assert_false(evaluate(text, &value, &error));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(expressions_have_values),
      cmocka_unit_test(mistakes_have_a_place),
      cmocka_unit_test(checking_needs_no_values),
      cmocka_unit_test(nesting_has_a_limit),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
