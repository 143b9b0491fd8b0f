/* Measured times: every candidate computes the right values, tables decide, files are read with care. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "session/tune.h"
#include "session/tuning_file.h"
#include "support.h"

/* Winograd's algorithm in all its forms, a convolution that only `direct` computes, and a matrix product. */
static const char model_text[] =
    "{ \"kiln\": 1, \"name\": \"tuned\", \"max_batch\": 3,\n"
    "  \"inputs\": { \"x\": { \"shape\": [\"N\", 32, 9, 11] } },\n"
    "  \"layers\": [\n"
    "    { \"op\": \"conv2d\", \"name\": \"three\", \"out_channels\": 128, \"kernel\": 3, \"padding\": 1 },\n"
    "    { \"op\": \"relu\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"wide\", \"out_channels\": 24, \"kernel\": 5, \"stride\": 2, \"padding\": 2 "
    "},\n"
    "    { \"op\": \"flatten\" },\n"
    "    { \"op\": \"linear\", \"name\": \"head\", \"out_features\": 10 } ] }\n";

typedef struct Model {
  Fixture *fixture;
  kiln_model *model;
} Model;

static Model make_model(Fixture *fixture) {
  Model made = {fixture, NULL};
  kiln_error error = {KILN_OK, ""};
  if (kiln_model_parse(NULL, "tuned.json", model_text, strlen(model_text), NULL, &made.model, &error) != KILN_OK ||
      kiln_model_init_weights(made.model, 3, &error) != KILN_OK)
    fail_msg("%s", error.message);
  return made;
}

static bool plan_with(const Model *model, const kiln_compile_options *compile, const Tuning *tuning, Diag *diag,
                      Graph **out_graph, Plan **out_plan) {
  const BuildOptions build = {.compile = compile, .tuning = tuning};
  return build_plan(model->model->graph, &build, model->fixture->arena, diag, out_graph, out_plan);
}

static const Node *first_conv(const Graph *graph) {
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == OP_CONV2D) return graph->nodes[i];
  return NULL;
}

static void check_values(const Model *model, const kiln_compile_options *compile, const Plan *plan, const char *label) {
  Fixture *fixture = model->fixture;
  kiln_executable executable = {.arena = fixture->arena};
  kiln_status status;
  ValueCheck *checks = NULL;
  size_t count = 0;
  const int64_t dims[4] = {3, 32, 9, 11};
  Tensor input = tensor_create(fixture->arena, "x", DTYPE_F32, shape_of(4, dims));
  for (int64_t i = 0; i < tensor_elements(&input); i++) ((float *)input.data)[i] = (float)(i * 37 % 255) / 127 - 1;
  const TensorList inputs = {&input, 1};
  if (!build_executable(model->model->graph, plan, compile, &executable, fixture->arena, fixture->diag, &status) ||
      !verify_values(model->model->graph, plan, &executable, &inputs, 1, 1e-5, fixture->arena, fixture->diag, &checks,
                     &count))
    fail_msg("%s: %s", label, diag_text(fixture->diag, fixture->arena));
  assert_true(count > 0);
  for (size_t i = 0; i < count; i++)
    if (!checks[i].passed) fail_msg("%s: %s has error %g", label, checks[i].name, checks[i].relative_l2);
}

/* --- tables ------------------------------------------------------------------------------------------- */

static Tuning favour(Arena *arena, const KernelOffers *offers, size_t candidate) {
  TuningTime *times = arena_array(arena, offers->count, TuningTime);
  TuningKernel *kernel = arena_new(arena, TuningKernel);
  for (size_t c = 0; c < offers->count; c++) times[c] = (TuningTime){offers->names[c], c == candidate ? 10 : 20};
  *kernel = (TuningKernel){offers->signature, times, offers->count};
  return (Tuning){.kernels = kernel, .kernel_count = 1};
}

/* Each candidate of each kernel, when it was the fastest, is what the plan has, and computes the right values. */
static void test_every_candidate(void **state) {
  Fixture *fixture = *state;
  Arena *arena = fixture->arena;
  const Model model = make_model(fixture);
  const kiln_compile_options compile = {0};
  Graph *graph, *tuned;
  Plan *plan;
  assert_true(plan_with(&model, &compile, NULL, fixture->diag, &graph, &plan));
  size_t kernels = 0, winograd = 0;
  for (size_t i = 0; i < graph->node_count; i++) {
    const KernelOffers *offers = graph->nodes[i]->offers;
    if (offers == NULL) continue;
    kernels++;
    assert_int_equal(offers->taken, 0);
    for (size_t c = 0; c < offers->count; c++) {
      const Tuning tuning = favour(arena, offers, c);
      assert_true(plan_with(&model, &compile, &tuning, fixture->diag, &tuned, &plan));
      for (size_t n = 0; n < tuned->node_count; n++)
        if (tuned->nodes[n]->id == graph->nodes[i]->id && tuned->nodes[n]->offers != NULL)
          assert_int_equal(tuned->nodes[n]->offers->taken, c);
      winograd += strncmp(offers->names[c], "F(", 2) == 0;
      check_values(&model, &compile, plan, offers->names[c]);
    }
  }
  assert_int_equal(kernels, 3);
  assert_true(winograd >= 4);
  kiln_model_destroy(model.model);
}

/* A difference that is noise changes nothing; without a time of the model's choice the others count; what is not
 * offered does not. */
static void test_table_rules(void **state) {
  Fixture *fixture = *state;
  const Model model = make_model(fixture);
  const kiln_compile_options compile = {0}, strict = {.precision = KILN_PRECISION_STRICT};
  Graph *graph, *tuned;
  Plan *plan;
  assert_true(plan_with(&model, &compile, NULL, fixture->diag, &graph, &plan));
  const KernelOffers *offers = first_conv(graph)->offers;
  assert_non_null(offers);
  const TuningTime close[] = {{offers->names[0], 100}, {offers->names[1], 99}};
  const TuningTime other[] = {{offers->names[1], 99}, {offers->names[2], 98}};
  const TuningTime unknown[] = {{"by magic", 1}};
  const struct {
    const TuningTime *times;
    size_t count, taken;
  } cases[] = {{close, 2, 0}, {other, 2, 2}, {unknown, 1, 0}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const TuningKernel kernel = {offers->signature, cases[i].times, cases[i].count};
    const Tuning tuning = {.kernels = &kernel, .kernel_count = 1};
    assert_true(plan_with(&model, &compile, &tuning, fixture->diag, &tuned, &plan));
    assert_int_equal(first_conv(tuned)->offers->taken, cases[i].taken);
  }
  assert_true(plan_with(&model, &strict, NULL, fixture->diag, &tuned, &plan));
  const KernelOffers *fewer = first_conv(tuned)->offers;
  for (size_t c = 0; c < fewer->count; c++) assert_memory_equal(fewer->names[c], "direct", 6);
  kiln_model_destroy(model.model);
}

/* --- files -------------------------------------------------------------------------------------------- */

static const char *write_text(Fixture *fixture, const char *name, const char *text) {
  const char *path = fixture_path(fixture, name);
  const FilePiece piece = {text, strlen(text)};
  assert_true(file_write(path, &piece, 1, fixture->diag));
  return path;
}

/* A table that a file brings is used, says so, and makes another program; `locked` names all that is missing. */
static void test_file(void **state) {
  Fixture *fixture = *state;
  Arena *arena = fixture->arena;
  const Model model = make_model(fixture);
  kiln_compile_options compile = {0};
  Graph *graph, *tuned;
  Plan *plan, *other;
  assert_true(plan_with(&model, &compile, NULL, fixture->diag, &graph, &plan));
  const Node *conv = first_conv(graph);
  const size_t unusual = conv->offers->count - 1;
  const Tuning tuning = favour(arena, conv->offers, unusual);
  const char *path = write_text(fixture, "file", "");
  assert_true(tuning_write(path, plan->target, 1, &tuning, arena, fixture->diag));
  compile.tuning = path;
  assert_true(plan_with(&model, &compile, NULL, fixture->diag, &tuned, &other));
  assert_int_equal(first_conv(tuned)->offers->taken, unusual);
  assert_true(plan->identity != other->identity);
  Text text;
  text_init(&text, arena);
  explain_print(&text, tuned);
  assert_non_null(strstr(text.data, arena_format(arena, "select: measured: %s, 10 us", conv->offers->names[unusual])));
  check_values(&model, &compile, other, "from a file");
  compile.locked = 1;
  Diag *diag = diag_create(arena);
  assert_false(plan_with(&model, &compile, NULL, diag, &tuned, &other));
  const char *missing = diag_text(diag, arena);
  if (diag_error_count(diag) != 2 || strstr(missing, "'head' (linear) was not measured: ") == NULL ||
      strstr(missing, "'wide' (conv2d) was not measured: ") == NULL)
    fail_msg("%s", missing);
  kiln_model_destroy(model.model);
}

static void test_bad_files(void **state) {
  Fixture *fixture = *state;
  Arena *arena = fixture->arena;
  Target target;
  assert_true(cpu_target("native", NULL, arena, fixture->diag, &target));
  const char *head = arena_format(arena, "{\"format\":1,\"kiln\":\"%s\",\"machine\":\"%s\",\"threads\":1}\n",
                                  kiln_version(), tuning_machine(&target, arena));
  const struct {
    const char *text, *message;
  } cases[] = {
      {"", ":1:1: error: expected times that 'kiln tune' has written, found an empty file"},
      {"[]\n", ":1:1: error: expected an object, found an array"},
      {"{\"format\":1}\n", ":1:1: error: expected \"format\", \"kiln\" and \"machine\""},
      {arena_format(arena, "%s{\"kernel\":\"a\",\"times\":{\"b\":1}}\n{\"kernel\":\"c\",\"tim", head), ":3:"},
      {arena_format(arena, "%s{\"times\":{}}\n", head), ":2:1: error: \"kernel\": expected"},
      {arena_format(arena, "%s{\"kernel\":\"a\",\"times\":[1]}\n", head), ":2:1: error: \"times\": expected"},
      {arena_format(arena, "%s{\"kernel\":\"a\",\"times\":{\"b\":-1}}\n", head), ":2:1: error: time of 'b'"},
      {arena_format(arena, "%s{\"kernel\":\"a\",\"times\":{\"b\":\"x\"}}\n", head), "microseconds, found a string"},
      {arena_format(arena, "%s\n", head), ":2:"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *path = write_text(fixture, "bad", cases[i].text);
    Diag *diag = diag_create(arena);
    Tuning tuning;
    if (tuning_read(path, &target, arena, diag, &tuning)) fail_msg("case %zu was read", i);
    if (strstr(diag_text(diag, arena), cases[i].message) == NULL) fail_msg("case %zu: %s", i, diag_text(diag, arena));
  }
}

/* Times of another machine or version are worth one warning, and nothing else. */
static void test_other_machines(void **state) {
  Fixture *fixture = *state;
  Arena *arena = fixture->arena;
  Target target;
  assert_true(cpu_target("native", NULL, arena, fixture->diag, &target));
  const char *kernel = "{\"kernel\":\"a\",\"times\":{\"b\":1}}\n";
  const char *texts[] = {
      arena_format(arena, "{\"format\":1,\"kiln\":\"%s\",\"machine\":\"abacus\"}\n%s", kiln_version(), kernel),
      arena_format(arena, "{\"format\":1,\"kiln\":\"0.0.1\",\"machine\":\"%s\"}\n%s", tuning_machine(&target, arena),
                   kernel),
      arena_format(arena, "{\"format\":2,\"kiln\":\"0.0.1\",\"machine\":\"\"}\n%s", kernel)};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    const char *path = write_text(fixture, "other", texts[i]);
    Diag *diag = diag_create(arena);
    Tuning tuning;
    assert_true(tuning_read(path, &target, arena, diag, &tuning));
    assert_int_equal(tuning.kernel_count, 0);
    assert_int_equal(diag_message_count(diag), 1);
    assert_int_equal(diag_message(diag, 0)->severity, SEVERITY_WARNING);
  }
}

/* --- measuring ---------------------------------------------------------------------------------------- */

static void test_measure(void **state) {
  Fixture *fixture = *state;
  Arena *arena = fixture->arena;
  const Model model = make_model(fixture);
  const kiln_compile_options compile = {0};
  const TuneOptions options = {.compile = &compile, .rounds = 2};
  TuneResult result;
  Tuning read;
  assert_true(tune_measure(model.model->graph, &options, arena, fixture->diag, &result));
  assert_int_equal(result.kernel_count, 3);
  for (size_t k = 0; k < result.kernel_count; k++)
    for (size_t c = 0; c < result.kernels[k].offers->count; c++) assert_true(result.kernels[k].times[c] > 0);
  const Tuning table = tune_table(&result, arena);
  assert_int_equal(table.kernel_count, 3);
  const char *path = write_text(fixture, "measured", "");
  assert_true(tuning_write(path, result.target, 1, &table, arena, fixture->diag));
  assert_true(tuning_read(path, result.target, arena, fixture->diag, &read));
  assert_int_equal(read.kernel_count, 3);
  for (size_t k = 0; k < 3; k++)
    for (size_t t = 0; t < table.kernels[k].time_count; t++) {
      const TuningTime *time = &table.kernels[k].times[t];
      const TuningKernel *found = tuning_find(&read, table.kernels[k].signature);
      assert_non_null(found);
      assert_true(fabs(tuning_time(found, time->candidate) - time->microseconds) < 1e-3);
    }
  kiln_model_destroy(model.model);
}

/* New times replace old ones of the same candidate; all others stay. */
static void test_merge(void **state) {
  Fixture *fixture = *state;
  const TuningTime old_times[] = {{"x", 1}, {"y", 2}}, new_times[] = {{"y", 3}};
  const TuningKernel old_kernels[] = {{"a", old_times, 2}, {"b", old_times, 1}};
  const TuningKernel new_kernels[] = {{"a", new_times, 1}, {"c", new_times, 1}};
  const Tuning old = {.kernels = old_kernels, .kernel_count = 2}, fresh = {.kernels = new_kernels, .kernel_count = 2};
  const Tuning merged = tuning_merge(&old, &fresh, fixture->arena);
  assert_int_equal(merged.kernel_count, 3);
  assert_true(tuning_time(tuning_find(&merged, "a"), "x") == 1);
  assert_true(tuning_time(tuning_find(&merged, "a"), "y") == 3);
  assert_true(tuning_time(tuning_find(&merged, "b"), "x") == 1);
  assert_true(isnan(tuning_time(tuning_find(&merged, "b"), "y")));
  assert_true(tuning_time(tuning_find(&merged, "c"), "y") == 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_every_candidate), fixture_test(test_table_rules),    fixture_test(test_file),
      fixture_test(test_bad_files),       fixture_test(test_other_machines), fixture_test(test_measure),
      fixture_test(test_merge),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
