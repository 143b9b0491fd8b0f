/* PyTorch's results against compiled code: every forward case through the just-in-time path, step by step between guard
 * pages, and again from a shared library that was linked and opened like any other. */
#include <string.h>

#include "golden_cases.h"
#include "run_program.h"
#include "support.h"

/* The stored results are rounded to float: 2^-24 each. */
static const double tolerance = 1e-6;

enum { FORWARD_CASES = 41 };

static void check_outputs(const GoldenCase *golden, const char *what, const TensorList *outputs, Arena *arena) {
  for (size_t i = 0; i < golden->expected.count; i++) {
    const Tensor *expected = &golden->expected.items[i];
    double error = tensor_error(tensor_find(outputs, expected->name), expected, arena);
    if (error > tolerance) fail_msg("%s, %s: '%s' differs by %g", golden->name, what, expected->name, error);
  }
}

static void check_library(Fixture *fixture, TestProgram *program, const GoldenCase *golden, int64_t batch,
                          const TensorList *expected) {
  const char *path = fixture_path(fixture, arena_format(fixture->arena, "lib%s.so", golden->name));
  TensorList outputs;
  const kiln_program *library = test_program_link(program, path);
  if (library == NULL || !test_library_run(program, library, batch, &outputs)) fail_msg("%s: no result", golden->name);
  check_outputs(golden, "library", &outputs, fixture->arena);
  for (size_t i = 0; i < outputs.count; i++) {
    if (memcmp(outputs.items[i].data, expected->items[i].data, (size_t)tensor_bytes(&outputs.items[i])) != 0)
      fail_msg("%s: the library's '%s' is not bit-equal", golden->name, outputs.items[i].name);
  }
}

static void check_case(Fixture *fixture, const GoldenCase *golden) {
  TestProgram program;
  TestRun run;
  if (!test_program_init(&program, fixture->arena, golden->graph) ||
      !test_program_compile(&program, "native", NULL, PRECISION_DEFAULT))
    fail_msg("%s does not compile", golden->name);
  program.inputs = golden->inputs;
  program.parameters = golden->parameters;
  int64_t batch = golden->inputs.items[0].shape.dims[0];
  if (!test_program_run(&program, batch, 2, true, &run)) fail_msg("%s does not run", golden->name);
  check_outputs(golden, "just in time", &run.outputs, fixture->arena);
  check_library(fixture, &program, golden, batch, &run.outputs);
}

static void test_golden(void **state) {
  Fixture *fixture = *state;
  GoldenSet set;
  if (!golden_open(fixture->arena, fixture->diag, &set)) {
    check_messages(fixture, "");
    print_message("no golden cases here: skipped\n");
    skip();
  }
  size_t checked = 0;
  for (size_t i = 0; i < golden_count(&set); i++) {
    GoldenCase golden;
    GoldenStatus status = golden_load(&set, i, fixture->arena, fixture->diag, &golden);
    if (status == GOLDEN_BROKEN) fail_msg("%s", diag_text(fixture->diag, fixture->arena));
    if (status == GOLDEN_OTHER) continue;
    check_case(fixture, &golden);
    checked++;
  }
  print_message("%zu golden cases\n", checked);
  assert_true(checked >= FORWARD_CASES);
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(test_golden)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
