/* PyTorch's results against compiled code: every forward case through the just-in-time path, step by step between guard
 * pages, and again from a shared library that was linked and opened like any other. */
#include <string.h>

#include "codegen.h"
#include "core/loader.h"
#include "core/runner.h"
#include "golden_cases.h"
#include "run_program.h"
#include "support.h"

/* The stored results are rounded to float: 2^-24 each. */
static const double tolerance = 1e-6;

enum { FORWARD_CASES = 41 };

static void check_outputs(const GoldenCase *golden, const char *what, const TensorList *outputs, Arena *arena) {
  for (size_t i = 0; i < golden->expected.count; i++) {
    const Tensor *expected = &golden->expected.items[i], *found = tensor_find(outputs, expected->name);
    if (found == NULL || !shape_equal(&found->shape, &expected->shape))
      fail_msg("%s: no output '%s' of the right shape", golden->name, expected->name);
    double *values = arena_array(arena, (size_t)tensor_elements(found), double);
    for (int64_t k = 0; k < tensor_elements(found); k++) values[k] = tensor_get(found, k);
    double error = relative_error(values, expected);
    if (error > tolerance) fail_msg("%s, %s: '%s' differs by %g", golden->name, what, expected->name, error);
  }
}

static void *aligned_memory(Arena *arena, int64_t bytes) {
  return arena_alloc_aligned(arena, (size_t)(bytes > 0 ? bytes : 1), KILN_ALIGNMENT);
}

/* Runs a whole program as a host would: NAME_prepare, then NAME_run. */
static TensorList run_library(const kiln_program *program, const GoldenCase *golden, int64_t batch,
                              const TensorList *shapes, Arena *arena) {
  const void **parameters = arena_array(arena, program->parameter_count, const void *);
  for (uint32_t i = 0; i < program->parameter_count; i++)
    parameters[i] = tensor_find(&golden->parameters, program->parameters[i].name)->data;
  void *prepared = aligned_memory(arena, program->prepared_bytes);
  void *temporary = aligned_memory(arena, program_prepare_bytes(program, 1));
  assert_int_equal(program->prepare(parameters, prepared, temporary, NULL), KILN_OK);

  TensorList outputs = {arena_array(arena, program->output_count, Tensor), program->output_count};
  char *io = arena_alloc(arena, 1, sizeof(kiln_io) + (program->input_count + program->output_count) * sizeof(void *));
  const kiln_io head = {.batch = batch, .threads = 1};
  memcpy(io, &head, sizeof head);
  const void **ports = (const void **)(void *)(io + sizeof head);
  for (uint32_t i = 0; i < program->input_count; i++)
    ports[i] = tensor_find(&golden->inputs, program->inputs[i].name)->data;
  for (uint32_t i = 0; i < program->output_count; i++) {
    const Tensor *shape = tensor_find(shapes, program->outputs[i].name);
    outputs.items[i] = tensor_create(arena, shape->name, shape->dtype, shape->shape);
    ports[program->input_count + i] = outputs.items[i].data;
  }
  const kiln_weights weights = {.program = program, .prepared = prepared, .parameters = parameters};
  void *workspace = aligned_memory(arena, program_workspace_bytes(program, batch, 1));
  assert_int_equal(program->run(&weights, workspace, (const kiln_io *)(const void *)io), KILN_OK);
  return outputs;
}

static void check_library(Fixture *fixture, const TestProgram *program, const GoldenCase *golden, int64_t batch,
                          const TensorList *expected) {
  Arena *arena = fixture->arena;
  CpuObjects objects;
  const char *path = fixture_path(fixture, arena_format(arena, "lib%s.so", golden->name));
  kiln_status status = KILN_OK;
  const kiln_program *library = NULL;
  if (cpu_compile(program->plan, NULL, arena, fixture->diag, &objects) &&
      link_objects(&program->target, objects.objects, objects.count, NULL, false, path, arena, fixture->diag))
    library = library_open(path, arena, fixture->diag, &status);
  if (library == NULL) fail_msg("%s: %s", golden->name, diag_text(fixture->diag, arena));
  TensorList outputs = run_library(library, golden, batch, expected, arena);
  check_outputs(golden, "library", &outputs, arena);
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
