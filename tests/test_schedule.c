/* runtime/session/schedule: rates and momenta over a run, rates of groups, the learning-rate finder's arithmetic. */
#include "session/schedule.h"

#include <math.h>

#include "golden_cases.h"
#include "support.h"

static void check_near(double found, double expected, double tolerance) {
  if (!(fabs(found - expected) <= tolerance * (fabs(expected) + 1e-300)))
    fail_msg("found %.17g, expected %.17g", found, expected);
}

/* --- schedules ------------------------------------------------------------------------------------------ */

/* The rates and momenta that PyTorch's and fastai's formula gives in double, rounded to f32. */
static void test_one_cycle_golden(void **state) {
  Fixture *fixture = *state;
  GoldenSet set;
  if (!golden_open(fixture->arena, fixture->diag, &set)) skip();
  TensorList tensors = {NULL, 0};
  for (size_t i = 0; i < golden_count(&set); i++)
    if (strcmp(golden_name(&set, i), "one_cycle") == 0)
      assert_true(golden_tensors(&set, i, fixture->arena, fixture->diag, &tensors));
  const Tensor *rate = tensor_find(&tensors, "rate"), *momentum = tensor_find(&tensors, "momentum");
  assert_non_null(rate);
  assert_non_null(momentum);
  const Schedule schedule = schedule_default(SCHEDULE_ONE_CYCLE);
  const int64_t steps = tensor_elements(rate);
  assert_int_equal(steps, 100);
  for (int64_t step = 0; step < steps; step++) {
    const SchedulePoint point = schedule_at(&schedule, step, steps);
    assert_true((float)(0.06 * point.factor) == ((const float *)rate->data)[step]);
    assert_true((float)point.momentum == ((const float *)momentum->data)[step]);
  }
}

static void test_one_cycle_ends(void **state) {
  (void)state;
  Schedule schedule = schedule_default(SCHEDULE_ONE_CYCLE);
  check_near(schedule_at(&schedule, 0, 10).factor, 1.0 / 25, 1e-15);
  schedule.pct_start = 0;
  check_near(schedule_at(&schedule, 0, 10).factor, 1, 1e-15);
  schedule.pct_start = 1;
  check_near(schedule_at(&schedule, 5, 10).factor, (1 + 1.0 / 25) / 2, 1e-15);
  schedule.pct_start = 0.8;
  check_near(schedule_at(&schedule, 80, 100).factor, 1, 1e-15);
  check_near(schedule_at(&schedule, 80, 100).momentum, 0.85, 1e-15);
  check_near(schedule_at(&schedule, 90, 100).factor, (1 + 1e-5) / 2, 1e-12);
}

static void test_other_kinds(void **state) {
  (void)state;
  const Schedule constant = schedule_default(SCHEDULE_CONSTANT);
  check_near(schedule_at(&constant, 7, 9).factor, 1, 0);
  check_near(schedule_at(&constant, 7, 9).momentum, 0.9, 0);
  Schedule cosine = schedule_default(SCHEDULE_COSINE);
  cosine.pct_start = 0.2;
  check_near(schedule_at(&cosine, 0, 100).factor, 0, 0);
  check_near(schedule_at(&cosine, 5, 100).factor, 0.25, 1e-15);
  check_near(schedule_at(&cosine, 20, 100).factor, 1, 1e-15);
  check_near(schedule_at(&cosine, 60, 100).factor, (1 + 1e-5) / 2, 1e-12);
  const Schedule step = schedule_default(SCHEDULE_STEP);
  static const double expected[] = {1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01};
  for (int64_t i = 0; i < 9; i++) check_near(schedule_at(&step, i, 9).factor, expected[i], 1e-12);
}

static void test_names_and_checks(void **state) {
  Fixture *fixture = *state;
  ScheduleKind kind;
  assert_true(schedule_parse("one-cycle", &kind) && kind == SCHEDULE_ONE_CYCLE);
  assert_true(schedule_parse(schedule_name(SCHEDULE_STEP), &kind) && kind == SCHEDULE_STEP);
  assert_false(schedule_parse("onecycle", &kind));
  Schedule schedule = schedule_default(SCHEDULE_ONE_CYCLE);
  assert_true(schedule_check(&schedule, fixture->diag));
  check_messages(fixture, "");
  schedule.pct_start = 1.5;
  schedule.div = NAN;
  schedule.momentum_high = 1;
  assert_false(schedule_check(&schedule, fixture->diag));
  check_messages(fixture,
                 "error: --pct-start: expected a share from 0 to 1, found 1.5\n"
                 "error: --div: expected at least 1, found nan\n"
                 "error: --momenta: expected two values from 0 to below 1, found 1\n");
}

/* --- rates of groups ------------------------------------------------------------------------------------ */

static void test_rates(void **state) {
  Fixture *fixture = *state;
  double rates[3];
  assert_true(rates_parse("0.1", 3, fixture->diag, rates));
  for (size_t i = 0; i < 3; i++) check_near(rates[i], 0.1, 0);
  assert_true(rates_parse("slice(1e-6,1e-4)", 3, fixture->diag, rates));
  check_near(rates[0], 1e-6, 1e-15);
  check_near(rates[1], 1e-5, 1e-12);
  check_near(rates[2], 1e-4, 0);
  assert_true(rates_parse("slice(1e-6, 1e-3)", 2, fixture->diag, rates));
  check_near(rates[0], 1e-6, 1e-15);
  check_near(rates[1], 1e-3, 0);
  assert_true(rates_parse("slice(0.01)", 3, fixture->diag, rates));
  check_near(rates[0], 0.001, 1e-15);
  check_near(rates[1], 0.001, 1e-15);
  check_near(rates[2], 0.01, 0);
  assert_true(rates_parse("slice(1e-6,1e-4)", 1, fixture->diag, rates));
  check_near(rates[0], 1e-4, 0);
  check_messages(fixture, "");
  static const char *const wrong[] = {"",           "slice()",      "slice(1e-3",   "slice(,1)",  "slice(1,)",
                                      "slice(0,1)", "slice(1,2,3)", "slice(1e-3)x", "-1",         "0",
                                      "inf",        "1e-3 ",        "slice(nan,1)", "slice(1,2))"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    clear_messages(fixture);
    if (rates_parse(wrong[i], 3, fixture->diag, rates)) fail_msg("'%s' was taken", wrong[i]);
    check_message_part(fixture, "--lr: expected a positive rate, slice(LOW,HIGH) or slice(HIGH), found '");
  }
}

/* --- finder --------------------------------------------------------------------------------------------- */

static void test_sweep(void **state) {
  (void)state;
  check_near(sweep_rate(1e-7, 10, 0, 100), 1e-7, 1e-12);
  check_near(sweep_rate(1e-7, 10, 99, 100), 10, 1e-12);
  check_near(sweep_rate(1e-7, 10, 50, 101), 1e-3, 1e-12);
}

static void test_smoother(void **state) {
  (void)state;
  Smoother smoother = {.beta = 0.98};
  assert_true(isnan(smoother_value(&smoother)));
  check_near(smoother_add(&smoother, 2.5), 2.5, 1e-13);
  /* (0.98·0.02·2.5 + 0.02·1.5) / (1 − 0.98²) */
  check_near(smoother_add(&smoother, 1.5), 0.079 / 0.0396, 1e-12);
  for (int i = 0; i < 5000; i++) smoother_add(&smoother, 1);
  check_near(smoother_value(&smoother), 1, 1e-12);
}

/* A loss that falls as a logistic curve around 1e-3, is smallest a little later and then explodes. */
static void test_suggestion(void **state) {
  (void)state;
  enum { COUNT = 100 };
  double rates[COUNT], losses[COUNT];
  for (int i = 0; i < COUNT; i++) {
    rates[i] = sweep_rate(1e-7, 10, i, COUNT);
    const double decade = log10(rates[i]);
    losses[i] = 2.3 - 1.5 / (1 + exp(-4 * (decade + 3))) + exp(4 * (decade + 1));
  }
  SweepSuggestion suggestion;
  assert_true(sweep_suggest(rates, losses, COUNT, &suggestion));
  assert_true(suggestion.steepest_rate > 0.5e-3 && suggestion.steepest_rate < 2e-3);
  assert_true(suggestion.tenth_rate == rates[suggestion.minimum] / 10);
  assert_true(suggestion.minimum > suggestion.steepest);
  for (int i = 0; i < COUNT; i++) losses[i] = i;
  assert_false(sweep_suggest(rates, losses, COUNT, &suggestion));
  assert_false(sweep_suggest(rates, losses, 0, &suggestion));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_one_cycle_golden), fixture_test(test_one_cycle_ends), fixture_test(test_other_kinds),
      fixture_test(test_names_and_checks), fixture_test(test_rates),          fixture_test(test_sweep),
      fixture_test(test_smoother),         fixture_test(test_suggestion)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
