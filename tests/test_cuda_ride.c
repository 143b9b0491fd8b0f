/* Reductions that ride in the kernels of their inputs, on the emulated GPU: the same values as without them, the same
 * statistics as the interpreter's, the same bits whichever way threads and blocks run. */
#include <math.h>

#include "run_cuda.h"
#include "support.h"

/* A product that is split, with an epilogue and two reductions; a depthwise convolution; an element-wise op; a
 * transposed convolution; a pool, whose kernel takes nothing along; a plain product. */
static const char producers[] =
    "graph \"producers\" {\n max_batch %d\n input %x : f32[N,32,11,9]\n"
    " parameter %w1 : f32[36,32,3,3] {init=weight}\n parameter %b1 : f32[36] {init=bias}\n"
    " parameter %w2 : f32[36,1,3,3] {init=weight}\n parameter %w3 : f32[36,10,1,1] {init=weight}\n"
    " parameter %w4 : f32[520,10] {init=weight}\n"
    " %conv = conv2d %x, %w1, %b1 {padding=[1,1,1,1]}\n %a = relu %conv\n"
    " %b = conv2d %a, %w2 {groups=36, padding=[1,1,1,1]}\n %c = tanh %b\n"
    " %d = conv_transpose2d %c, %w3\n %e = adaptive_avg_pool2d %d {output=[1,1]}\n"
    " %row = flatten %e\n %f = linear %row, %w4\n"
    " %pa = stats_partial %a\n %sa = stats_final %pa\n"
    " %qa = stats_partial %a {bins=7, low=-1, high=2.5, threshold=-0.5}\n %ta = stats_final %qa\n"
    " %pb = stats_partial %b {bins=9, low=-3, high=1}\n %sb = stats_final %pb\n"
    " %pc = stats_partial %c {bins=3, low=0.5, high=1}\n %sc = stats_final %pc\n"
    " %pd = stats_partial %d\n %sd = stats_final %pd\n"
    " %pe = stats_partial %e\n %se = stats_final %pe\n"
    " %pf = stats_partial %f {bins=254, low=-8, high=8}\n %sf = stats_final %pf\n"
    " output f = %f\n output d = %d\n"
    " output sa = %sa\n output ta = %ta\n output sb = %sb\n output sc = %sc\n output sd = %sd\n output se = %se\n"
    " output sf = %sf\n}\n";
enum { VALUES = 2, OUTPUTS = 9, RIDING = 6 };

static const char *const arch = "sm_90";

static size_t count_kernels(const TestProgram *program, OpCode op) {
  size_t count = 0;
  for (size_t k = 0; k < program->plan->kernel_count; k++) count += program->plan->kernels[k].op == op;
  return count;
}

static void compile(TestProgram *program, Arena *arena, MathMode math, int max_batch, const char *disabled) {
  /* a format of the test's own */
  const char *text = strchr(producers, '%');
  text = arena_format(arena, "%.*s%d%s", (int)(text - producers), producers, max_batch, text + 2);
  assert_true(test_program_parse(program, arena, text));
  assert_true(test_cuda_compile(program, arch, math, disabled, PRECISION_DEFAULT));
  assert_int_equal(count_kernels(program, OP_STATS_PARTIAL), disabled == NULL ? 1 : RIDING + 1);
}

static void run(TestProgram *program, int64_t batch, TestRun *out_run) {
  test_fill(program, FILL_FLOATS, batch, 3);
  assert_true(test_program_run(program, batch, 1, false, out_run));
  assert_int_equal(out_run->outputs.count, OUTPUTS);
}

static void same_bits(const char *what, const TestRun *a, const TestRun *b, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (memcmp(a->outputs.items[i].data, b->outputs.items[i].data, (size_t)tensor_bytes(&a->outputs.items[i])) != 0)
      fail_msg("%s: output %s has other bits", what, a->outputs.items[i].name);
}

/* Counts exactly, but for values that rounding may move across a limit; the rest nearly. */
static void check_stats(TestProgram *program, const TestRun *run, const EvalResult *expected) {
  for (size_t i = VALUES; i < OUTPUTS; i++) {
    const Tensor *got = &run->outputs.items[i];
    const EvalTensor *wanted = &expected->values[program->source->outputs[i].node->id];
    double moved = 0;
    for (int64_t k = 0; k < tensor_elements(got); k++) {
      const double value = tensor_get(got, k);
      if (k >= 3)
        moved += fabs(value - wanted->data[k]);
      else if (!(fabs(value - wanted->data[k]) <= 1e-5 * fabs(wanted->data[k]) + (k == 0 ? 1e-7 : 0)))
        fail_msg("%s, batch %d: field %d is %.9g, expected %.9g", got->name, (int)run->batch, (int)k, value,
                 wanted->data[k]);
    }
    if (moved > 2) fail_msg("%s, batch %d: counts differ by %g", got->name, (int)run->batch, moved);
  }
}

static void test_riding(void **state) {
  Fixture *fixture = *state;
  TestProgram riding = {0}, apart = {0};
  compile(&riding, fixture->arena, MATH_FP32, 3, NULL);
  compile(&apart, fixture->arena, MATH_FP32, 3, "reductions");
  bool split = false;
  const CudaTables *tables = test_cuda_tables(&riding);
  for (size_t k = 0; k < riding.plan->kernel_count; k++)
    for (size_t l = 0; l < tables->launches[k].count; l++)
      split = split || (riding.plan->kernels[k].reduction_count > 0 && tables->launches[k].items[l].grid_z > 1);
  assert_true(split);
  for (int64_t batch = 1; batch <= 3; batch++) {
    TestRun with, without, reverse;
    EvalResult expected;
    run(&riding, batch, &with);
    run(&apart, batch, &without);
    same_bits("riding", &with, &without, VALUES);
    assert_true(test_program_eval(&riding, riding.source, &expected));
    check_stats(&riding, &with, &expected);
    check_stats(&riding, &without, &expected);
    setenv("KILN_EMULATOR_ORDER", "reverse", 1);
    run(&riding, batch, &reverse);
    unsetenv("KILN_EMULATOR_ORDER");
    same_bits("threads in reverse", &with, &reverse, OUTPUTS);
  }
}

/* Tensor cores, and tiles and runs of threads for so many images that a few of them leave rows without a block. */
static void test_tensor_cores(void **state) {
  Fixture *fixture = *state;
  TestProgram riding = {0}, apart = {0};
  TestRun with, without;
  compile(&riding, fixture->arena, MATH_3XTF32, 1000, NULL);
  compile(&apart, fixture->arena, MATH_3XTF32, 1000, "reductions");
  EvalResult expected;
  for (int64_t batch = 2; batch <= 3; batch++) {
    run(&riding, batch, &with);
    run(&apart, batch, &without);
    same_bits("riding", &with, &without, VALUES);
    assert_true(test_program_eval(&riding, riding.source, &expected));
    check_stats(&riding, &with, &expected);
  }
}

int main(void) {
  test_cuda_open();
  const struct CMUnitTest tests[] = {fixture_test(test_riding), fixture_test(test_tensor_cores)};
  return cmocka_run_group_tests_name("cuda_ride", tests, NULL, NULL);
}
