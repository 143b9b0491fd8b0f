/* Hooks through the public interface: statistics against PyTorch's, on every layout and number of threads, and what
 * hooks may not change. */
#include <math.h>
#include <string.h>

#include "codegen.h"
#include "eval.h"
#include "golden_cases.h"
#include "kiln.h"
#include "passes.h"
#include "support.h"

/* `same` is plain; `copy` is channel-blocked, its last block is not full, and it has a halo for `next`. Both hold the
 * input's values. */
static const char copies[] =
    "{ \"kiln\": 1, \"name\": \"copies\", \"max_batch\": 6,\n"
    "  \"inputs\": { \"x\": { \"shape\": [\"N\", %d, %d, %d] } },\n"
    "  \"layers\": [ { \"op\": \"identity\", \"name\": \"same\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"copy\", \"out_channels\": %d, \"kernel\": 1, \"bias\": false },\n"
    "    { \"op\": \"conv2d\", \"name\": \"next\", \"out_channels\": 3, \"kernel\": 3, \"padding\": 1 } ],\n"
    "  \"hooks\": [ %s ] }\n";

static const char *const stats_of_both =
    "{ \"value\": \"same\", \"action\": \"stats\" },"
    "{ \"value\": \"copy\", \"action\": \"stats\" }";

enum { MAX_PORTS = 96, BINS = 40, FIELDS = 3 + BINS };

#define MUST(call)                                                                \
  do {                                                                            \
    kiln_error must_error = {KILN_OK, ""};                                        \
    kiln_error *error = &must_error;                                              \
    if ((call) != KILN_OK) fail_msg("line %d: %s", __LINE__, must_error.message); \
  } while (0)

/* --- models ------------------------------------------------------------------------------------------- */

static kiln_model *make_copies(Fixture *fixture, int channels, int height, int width, const char *hooks) {
  const char *text = arena_format(fixture->arena, copies, channels, height, width, channels, hooks);
  kiln_model *model = NULL;
  MUST(kiln_model_parse(NULL, "copies.json", text, strlen(text), NULL, &model, error));
  MUST(kiln_model_init_weights(model, 3, error));
  float *identity = arena_array(fixture->arena, (size_t)(channels * channels), float);
  for (int i = 0; i < channels; i++) identity[i * channels + i] = 1;
  const int64_t dims[] = {channels, channels, 1, 1};
  MUST(kiln_model_set_parameter(model, "copy.weight", identity, 4, dims, error));
  return model;
}

typedef struct Outputs {
  float *data[MAX_PORTS];
  size_t bytes[MAX_PORTS];
  uint32_t count;
} Outputs;

static Outputs make_outputs(Fixture *fixture, const kiln_program *program, int64_t batch) {
  Outputs outputs = {.count = program->output_count};
  assert_true(program->output_count <= MAX_PORTS);
  for (uint32_t i = 0; i < program->output_count; i++) {
    const kiln_port *port = &program->outputs[i];
    outputs.bytes[i] = (size_t)(port->bytes * (port->batched ? batch : 1));
    outputs.data[i] = arena_alloc_aligned(fixture->arena, outputs.bytes[i], 64);
    memset(outputs.data[i], 0xff, outputs.bytes[i]);
  }
  return outputs;
}

static Outputs run(Fixture *fixture, kiln_executable *executable, const float *x, int64_t batch, uint32_t threads) {
  kiln_context_options options = {.threads = threads};
  kiln_context *context = NULL;
  Outputs outputs = make_outputs(fixture, kiln_executable_program(executable), batch);
  MUST(kiln_context_create(executable, &options, &context, error));
  static const int64_t classes[] = {1, 4, 0, 2, 3, 1};
  MUST(kiln_run(context, batch, (const void *const[]){x, classes}, (void *const *)outputs.data, error));
  kiln_context_destroy(context);
  return outputs;
}

static kiln_executable *compile(const kiln_model *model, const char *cpu) {
  kiln_compile_options options = {.cpu = cpu, .threads = 1};
  kiln_executable *executable = NULL;
  MUST(kiln_compile(model, &options, &executable, error));
  return executable;
}

static float *make_input(Fixture *fixture, int64_t count) {
  float *x = arena_array(fixture->arena, (size_t)count, float);
  uint32_t state = 1;
  for (int64_t i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    float value = (float)(state >> 8) / (float)(1 << 24);
    x[i] = state % 3 == 0 ? 0 : 14 * value - 2;
  }
  return x;
}

/* --- statistics --------------------------------------------------------------------------------------- */

/* Two passes in double. */
static void reference(const float *x, int64_t count, int bins, float low, float high, float threshold, double *out) {
  double sum = 0, squares = 0, near = 0;
  memset(out, 0, sizeof(double) * (size_t)(3 + bins));
  for (int64_t i = 0; i < count; i++) {
    sum += (double)x[i];
    near += x[i] <= threshold;
    if (!(x[i] >= low && x[i] <= high)) continue;
    int bin = (int)(((double)x[i] - (double)low) * ((double)bins / ((double)high - (double)low)));
    out[3 + (bin < bins ? bin : bins - 1)]++;
  }
  out[0] = sum / (double)count;
  for (int64_t i = 0; i < count; i++) squares += ((double)x[i] - out[0]) * ((double)x[i] - out[0]);
  out[1] = sqrt(squares / (double)(count - 1));
  out[2] = near / (double)count;
}

static void check_stats(const char *what, const float *found, const double *expected, int bins) {
  for (int i = 0; i < 3; i++)
    if (!(fabs((double)found[i] - expected[i]) <= 1e-6 * fabs(expected[i])))
      fail_msg("%s: field %d is %.9g, expected %.9g", what, i, (double)found[i], expected[i]);
  for (int i = 0; i < bins; i++)
    if ((double)found[3 + i] != expected[3 + i])
      fail_msg("%s: bin %d holds %g, expected %g", what, i, (double)found[3 + i], expected[3 + i]);
}

static void same_bits(const char *what, const Outputs *a, const Outputs *b, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    if (a->bytes[i] != b->bytes[i] || memcmp(a->data[i], b->data[i], a->bytes[i]) != 0)
      fail_msg("%s: output %u is not bit-equal", what, i);
}

static void interpreter_agrees(Fixture *fixture, const Tensor *x, const double *expected) {
  static const char text[] =
      "graph \"stats\" {\n  input %x : f32[N,8,5,5]\n  %p = stats_partial %x\n"
      "  %s = stats_final %p\n  output s = %s\n}\n";
  Graph *graph = NULL;
  EvalResult result;
  TensorList inputs = {arena_array(fixture->arena, 1, Tensor), 1};
  inputs.items[0] = *x;
  if (!graph_parse("stats.ir", text, strlen(text), fixture->arena, fixture->diag, &graph) ||
      !graph_infer(graph, fixture->diag) || !graph_eval(graph, &inputs, NULL, fixture->arena, fixture->diag, &result))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  float found[FIELDS];
  for (int i = 0; i < FIELDS; i++) found[i] = (float)result.values[graph->outputs[0].node->id].data[i];
  check_stats("interpreter", found, expected, BINS);
}

static void library_agrees(Fixture *fixture, const kiln_model *model, const float *x, int64_t batch,
                           const Outputs *expected) {
  const char *path = fixture_path(fixture, "libcopies.so");
  kiln_executable *library = NULL;
  MUST(kiln_compile_library(model, NULL, path, error));
  MUST(kiln_open_library(NULL, path, NULL, &library, error));
  Outputs found = run(fixture, library, x, batch, 2);
  same_bits("library", &found, expected, expected->count);
  kiln_executable_destroy(library);
}

static void statistics_are_pytorchs(void **state) {
  static const char *const names[] = {"mean", "std", "near_zero"};
  Fixture *fixture = *state;
  GoldenSet set;
  if (!golden_open(fixture->arena, fixture->diag, &set)) {
    print_message("no golden cases here: skipped\n");
    skip();
  }
  for (size_t i = 0; i < golden_count(&set); i++) {
    if (strcmp(golden_name(&set, i), "activation_stats") != 0) continue;
    TensorList tensors;
    assert_true(golden_tensors(&set, i, fixture->arena, fixture->diag, &tensors));
    const Tensor *x = tensor_find(&tensors, "x"), *counts = tensor_find(&tensors, "hist");
    double expected[FIELDS];
    for (int k = 0; k < 3; k++) expected[k] = tensor_get(tensor_find(&tensors, names[k]), 0);
    for (int k = 0; k < BINS; k++) expected[3 + k] = tensor_get(counts, k);
    interpreter_agrees(fixture, x, expected);
    kiln_model *model = make_copies(fixture, 8, 5, 5, stats_of_both);
    kiln_executable *executable = compile(model, NULL);
    const kiln_program *program = kiln_executable_program(executable);
    assert_int_equal(program->hook_count, 2);
    assert_string_equal(program->hooks[0].name, "hook.stats.same");
    assert_string_equal(program->hooks[1].name, "hook.stats.copy");
    assert_int_equal(program->hooks[1].rank, 1);
    assert_int_equal(program->hooks[1].dims[0], FIELDS);
    assert_int_equal(program->hooks[1].batched, 0);
    Outputs outputs = run(fixture, executable, x->data, 6, 1);
    check_stats("plain", outputs.data[1], expected, BINS);
    check_stats("blocked", outputs.data[2], expected, BINS);
    library_agrees(fixture, model, x->data, 6, &outputs);
    kiln_executable_destroy(executable);
    kiln_model_destroy(model);
    return;
  }
  fail_msg("there is no case activation_stats");
}

/* Several groups of channels, the last one not full, and several chunks of rows. */
static void threads_and_layouts_do_not_matter(void **state) {
  enum { CHANNELS = 37, HEIGHT = 61, WIDTH = 43, IMAGE = CHANNELS * HEIGHT * WIDTH, BATCH = 3 };
  static const char *const isas[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4", NULL};
  static const uint32_t threads[] = {2, 3, 7};
  Fixture *fixture = *state;
  float *x = make_input(fixture, (int64_t)IMAGE * BATCH);
  double expected[FIELDS];
  kiln_model *model = make_copies(fixture, CHANNELS, HEIGHT, WIDTH, stats_of_both);
  for (size_t isa = 0; isa < sizeof isas / sizeof *isas; isa++) {
    kiln_compile_options options = {.cpu = isas[isa], .threads = 1};
    kiln_executable *executable = NULL;
    if (kiln_compile(model, &options, &executable, NULL) != KILN_OK) continue; /* not this machine's */
    for (int64_t batch = 1; batch <= BATCH; batch += 2) {
      Outputs outputs = run(fixture, executable, x, batch, 1);
      reference(x, IMAGE * batch, BINS, 0, 10, 0.05f, expected);
      check_stats("plain", outputs.data[1], expected, BINS);
      check_stats("blocked", outputs.data[2], expected, BINS);
      for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        Outputs other = run(fixture, executable, x, batch, threads[i]);
        same_bits("threads", &outputs, &other, outputs.count);
      }
    }
    kiln_executable_destroy(executable);
  }
  kiln_model_destroy(model);
}

static void options_are_used(void **state) {
  enum { CHANNELS = 20, SIDE = 9, COUNT = CHANNELS * SIDE * SIDE, FEW = 7 };
  Fixture *fixture = *state;
  float *x = make_input(fixture, COUNT);
  double expected[FIELDS];
  kiln_model *model = make_copies(fixture, CHANNELS, SIDE, SIDE,
                                  "{ \"value\": \"same\", \"action\": \"stats\", \"bins\": 7, \"range\": [-1.5, 3],"
                                  " \"threshold\": 1 }");
  const kiln_hook hook = {"copy", KILN_HOOK_ACTIVATION, KILN_HOOK_STATS, FEW, -1.5f, 3, 1};
  MUST(kiln_model_add_hook_with(model, &hook, error));
  kiln_executable *executable = compile(model, NULL);
  Outputs outputs = run(fixture, executable, x, 1, 1);
  reference(x, COUNT, FEW, -1.5f, 3, 1, expected);
  check_stats("description", outputs.data[1], expected, FEW);
  check_stats("interface", outputs.data[2], expected, FEW);
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
}

/* Values at the limits of the range and of bins, and values that are no numbers. */
static void edges_are_counted_like_histc(void **state) {
  enum { COUNT = 16 };
  static const float x[COUNT] = {0,  0.25f, 0.24999999f, 9.75f, 10,         10.000001f, -1e-30f,   INFINITY,
                                 -1, NAN,   0.05f,       5,     4.9999995f, 1e30f,      -INFINITY, 0.05000001f};
  Fixture *fixture = *state;
  kiln_model *model = make_copies(fixture, 1, 4, 4, stats_of_both);
  kiln_executable *executable = compile(model, NULL);
  Outputs outputs = run(fixture, executable, x, 1, 1);
  const float *found = outputs.data[1] + 3;
  float total = 0;
  for (int i = 0; i < BINS; i++) total += found[i];
  assert_true(total == 9);
  assert_true(found[0] == 4 && found[1] == 1 && found[19] == 1 && found[20] == 1 && found[39] == 2);
  assert_true(isnan(outputs.data[1][0]) && isnan(outputs.data[1][1]));
  assert_true(outputs.data[1][2] == 5.0f / COUNT);
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
}

static void options_that_do_not_fit_are_reported(void **state) {
  Fixture *fixture = *state;
  const kiln_hook wrong[] = {{"copy", KILN_HOOK_ACTIVATION, KILN_HOOK_STATS, 255, 0, 1, 0},
                             {"copy", KILN_HOOK_ACTIVATION, KILN_HOOK_STATS, 4, 1, 1, 0},
                             {"copy", KILN_HOOK_ACTIVATION, KILN_HOOK_STATS, 4, 0, 1, 0}};
  static const char *const parts[] = {"bins expects a value from 1 to 254, found 255",
                                      "low expects a number below high, found 1 and 1",
                                      "another hook asks for statistics of 'copy' with other options"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    kiln_model *model = make_copies(fixture, 2, 3, 3, stats_of_both);
    kiln_error failure;
    kiln_executable *executable = NULL;
    MUST(kiln_model_add_hook_with(model, &wrong[i], error));
    if (i < 2) {
      kiln_model_destroy(model);
      model = make_copies(fixture, 2, 3, 3, "");
      MUST(kiln_model_add_hook_with(model, &wrong[i], error));
    }
    assert_int_equal(kiln_compile(model, NULL, &executable, &failure), KILN_ERROR_INPUT);
    if (strstr(failure.message, parts[i]) == NULL) fail_msg("expected '%s' in: %s", parts[i], failure.message);
    kiln_model_destroy(model);
  }
}

/* --- statistics that ride ----------------------------------------------------------------------------- */

/* Direct, depthwise and Winograd convolutions, and element-wise kernels, on sizes that fill no tile, block or vector.
 */
static const char producers[] =
    "{ \"kiln\": 1, \"name\": \"producers\", \"max_batch\": 3,\n"
    "  \"inputs\": { \"x\": { \"shape\": [\"N\", 3, 45, 61] } },\n"
    "  \"layers\": [ { \"op\": \"conv2d\", \"name\": \"stem\", \"out_channels\": 37, \"kernel\": 3, \"stride\": 1 },\n"
    "    { \"op\": \"relu\", \"name\": \"r0\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"plain\", \"out_channels\": 40, \"kernel\": 3, \"padding\": 1 },\n"
    "    { \"op\": \"relu\", \"name\": \"r1\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"deep\", \"out_channels\": 40, \"kernel\": 3, \"padding\": 1, \"groups\": 40 "
    "},\n"
    "    { \"op\": \"sigmoid\", \"name\": \"r2\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"half\", \"out_channels\": 19, \"kernel\": 5, \"stride\": 2 },\n"
    "    { \"op\": \"tanh\", \"name\": \"r3\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"wide\", \"out_channels\": 330, \"kernel\": 1 },\n"
    "    { \"op\": \"max_pool2d\", \"name\": \"pool\", \"kernel\": 3, \"stride\": 3 },\n"
    "    { \"op\": \"conv2d\", \"name\": \"last\", \"out_channels\": 330, \"kernel\": 3, \"padding\": 1 } ],\n"
    "  \"hooks\": [ { \"value\": \"*\", \"action\": \"stats\", \"range\": [%s] } ] }\n";

enum { PRODUCERS = 11, PRODUCER_IMAGE = 3 * 45 * 61 };

static uint32_t count_steps(const kiln_program *program, const char *kind) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < program->run_step_count; i++) count += strcmp(program->run_steps[i].kind, kind) == 0;
  return count;
}

static Outputs run_producers(Fixture *fixture, const char *isa, const char *range, const char *disabled, const float *x,
                             bool *out_runs) {
  static const uint32_t threads[] = {2, 3, 7};
  const char *text = arena_format(fixture->arena, producers, range);
  kiln_compile_options options = {.cpu = isa, .threads = 1, .disabled_passes = disabled};
  kiln_executable *executable = NULL;
  kiln_model *model = NULL;
  Outputs outputs = {.count = 0};
  MUST(kiln_model_parse(NULL, "producers.json", text, strlen(text), NULL, &model, error));
  MUST(kiln_model_init_weights(model, 5, error));
  *out_runs = kiln_compile(model, &options, &executable, NULL) == KILN_OK;
  if (*out_runs) {
    const kiln_program *program = kiln_executable_program(executable);
    assert_int_equal(program->hook_count, PRODUCERS);
    /* the pool's own, where rows are short, the depthwise convolution's, and where vectors are, the last one's */
    uint32_t separate = count_steps(program, "stats_partial");
    assert_true(disabled != NULL ? separate == PRODUCERS : separate >= 1 && separate <= 3);
    outputs = run(fixture, executable, x, 3, 1);
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
      Outputs other = run(fixture, executable, x, 3, threads[i]);
      same_bits("threads", &outputs, &other, outputs.count);
    }
  }
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
  return outputs;
}

/* What rides in its input's kernel finds what a kernel of its own finds, and changes nothing else. */
static void riding_changes_no_values(void **state) {
  static const char *const isas[] = {"x86-64-v2", "x86-64-v3", NULL}, *const ranges[] = {"0, 2.5", "-1, 3"};
  Fixture *fixture = *state;
  float *x = make_input(fixture, PRODUCER_IMAGE * 3);
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
    for (size_t range = 0; range < (isas[i] == NULL ? 2 : 1); range++) {
      bool runs = true;
      Outputs riding = run_producers(fixture, isas[i], ranges[range], NULL, x, &runs);
      if (!runs) continue; /* not this machine's */
      Outputs apart = run_producers(fixture, isas[i], ranges[range], "reductions", x, &runs);
      assert_true(runs);
      same_bits("riding", &riding, &apart, 1);
      for (uint32_t hook = 1; hook < riding.count; hook++) {
        double expected[FIELDS];
        for (int k = 0; k < FIELDS; k++) expected[k] = (double)apart.data[hook][k];
        check_stats(arena_format(fixture->arena, "hook %u", hook), riding.data[hook], expected, BINS);
      }
    }
  }
}

/* --- gradients ---------------------------------------------------------------------------------------- */

static const char classifier[] =
    "{ \"kiln\": 1, \"name\": \"classifier\", \"max_batch\": 3,\n"
    "  \"inputs\": { \"x\": { \"shape\": [\"N\", 3, 13, 11] } },\n"
    "  \"layers\": [ { \"op\": \"conv2d\", \"name\": \"a\", \"out_channels\": 20, \"kernel\": 3 }, { \"op\": \"relu\", "
    "\"name\": \"r\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"b\", \"out_channels\": 7, \"kernel\": 3 },\n"
    "    { \"op\": \"adaptive_avg_pool2d\", \"name\": \"p\", \"output\": 1 }, { \"op\": \"flatten\", \"name\": \"f\" "
    "},\n"
    "    { \"op\": \"linear\", \"name\": \"logits\", \"out_features\": 5 } ],\n"
    "  \"hooks\": [ %s ] }\n";

static kiln_executable *compile_classifier(Fixture *fixture, const char *hooks, kiln_model **out_model) {
  const char *text = arena_format(fixture->arena, classifier, hooks);
  MUST(kiln_model_parse(NULL, "classifier.json", text, strlen(text), NULL, out_model, error));
  MUST(kiln_model_init_weights(*out_model, 5, error));
  return compile(*out_model, NULL);
}

#define GRADIENT(value, action) "{ \"value\": \"" value "\", \"kind\": \"gradient\", \"action\": \"" action "\" }"

/* Statistics of gradients are those of the gradients that are stored; both may be had of one value. */
static void gradients_have_statistics(void **state) {
  enum { BATCH = 3, COUNT_A = BATCH * 20 * 11 * 9, COUNT_B = BATCH * 7 * 9 * 7, WHOLE = BATCH * 3 * 13 * 11 };
  static const char *const names[] = {"hook.grad.a", "hook.grad.stats.b", "hook.grad.stats.a"};
  Fixture *fixture = *state;
  kiln_model *stored_model, *model;
  float *x = make_input(fixture, WHOLE);
  double expected[FIELDS];
  kiln_executable *plain = compile_classifier(fixture, GRADIENT("a", "store") "," GRADIENT("b", "call"), &stored_model);
  Outputs stored = run(fixture, plain, x, BATCH, 1);
  kiln_executable *executable =
      compile_classifier(fixture, GRADIENT("b", "stats") "," GRADIENT("a", "store") "," GRADIENT("a", "stats"), &model);
  const kiln_program *program = kiln_executable_program(executable);
  assert_int_equal(program->hook_count, 3);
  Outputs outputs = run(fixture, executable, x, BATCH, 2);
  same_bits("scores", &outputs, &stored, 1);
  for (uint32_t i = 0; i < 3; i++) {
    const char *name = program->hooks[i].name;
    if (strcmp(name, names[0]) == 0) {
      assert_memory_equal(outputs.data[1 + i], stored.data[1], stored.bytes[1]);
    } else if (strcmp(name, names[1]) == 0) {
      reference(stored.data[2], COUNT_B, BINS, 0, 10, 0.05f, expected);
      check_stats(name, outputs.data[1 + i], expected, BINS);
    } else {
      assert_string_equal(name, names[2]);
      reference(stored.data[1], COUNT_A, BINS, 0, 10, 0.05f, expected);
      check_stats(name, outputs.data[1 + i], expected, BINS);
    }
  }
  kiln_executable_destroy(plain);
  kiln_executable_destroy(executable);
  kiln_model_destroy(stored_model);

  const kiln_hook other = {"b", KILN_HOOK_GRADIENT, KILN_HOOK_STATS, 7, -1, 1, 0};
  kiln_error failure;
  MUST(kiln_model_add_hook_with(model, &other, error));
  assert_int_equal(kiln_compile(model, NULL, &executable, &failure), KILN_ERROR_INPUT);
  assert_non_null(strstr(failure.message, "another hook asks for statistics of 'b' with other options"));
  kiln_model_destroy(model);
}

/* --- what hooks may not change ------------------------------------------------------------------------ */

static const char residual[] =
    "{ \"kiln\": 1, \"name\": \"residual\", \"max_batch\": 2,\n"
    "  \"inputs\": { \"x\": { \"shape\": [\"N\", 16, 14, 14] } },\n"
    "  \"layers\": [ { \"op\": \"conv2d\", \"name\": \"a\", \"out_channels\": 16, \"kernel\": 3, \"padding\": 1 },\n"
    "    { \"op\": \"batch_norm\", \"name\": \"bn\" }, { \"op\": \"relu\", \"name\": \"r\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"b\", \"out_channels\": 16, \"kernel\": 3, \"padding\": 1 },\n"
    "    { \"op\": \"add\", \"name\": \"sum\", \"in\": [\"b\", \"r\"] }, { \"op\": \"relu\", \"name\": \"out\" } ] }\n";

static void outputs_stay_bit_equal(void **state) {
  enum { COUNT = 2 * 16 * 14 * 14 };
  static const char *const patterns[] = {"bn", "r", "b", "sum", "out"};
  Fixture *fixture = *state;
  float *x = make_input(fixture, COUNT);
  Outputs expected = {.count = 0};
  for (int hooks = 0; hooks <= 5; hooks++) {
    kiln_model *model = NULL;
    MUST(kiln_model_parse(NULL, "residual.json", residual, strlen(residual), NULL, &model, error));
    MUST(kiln_model_init_weights(model, 5, error));
    if (hooks > 0) {
      const kiln_hook hook = {.pattern = patterns[hooks - 1], .action = KILN_HOOK_STATS};
      MUST(kiln_model_add_hook_with(model, &hook, error));
    }
    kiln_executable *executable = compile(model, NULL);
    Outputs outputs = run(fixture, executable, x, 2, 1);
    if (hooks == 0) expected = outputs;
    same_bits(hooks > 0 ? patterns[hooks - 1] : "", &outputs, &expected, 1);
    kiln_executable_destroy(executable);
    kiln_model_destroy(model);
  }
}

typedef struct ExampleHooks {
  const char *name, *pattern;
  int64_t dims[3]; /* of the image; 0: as described */
} ExampleHooks;

static Outputs run_example(Fixture *fixture, const ExampleHooks *example, kiln_hook_action action, bool hooked,
                           const float *x, uint32_t threads) {
  const char *path = arena_format(fixture->arena, KILN_SOURCE_DIR "/examples/%s.json", example->name);
  kiln_shape shape = {"image", 4, {-1, example->dims[0], example->dims[1], example->dims[2]}};
  const kiln_model_options options = {&shape, example->dims[0] > 0};
  const kiln_hook hook = {.pattern = example->pattern, .action = action};
  kiln_model *model = NULL;
  MUST(kiln_model_load(NULL, path, &options, &model, error));
  MUST(kiln_model_init_weights(model, 2, error));
  if (hooked) MUST(kiln_model_add_hook_with(model, &hook, error));
  kiln_executable *executable = compile(model, NULL);
  Outputs outputs = run(fixture, executable, x, 1, threads);
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
  return outputs;
}

/* Whole networks, on odd sizes too: hooks on blocks or on everything. */
static void examples_stay_bit_equal(void **state) {
  static const ExampleHooks examples[] = {{"simple_cnn10_bn", "*", {0, 0, 0}},
                                          {"simple_net", "*", {0, 0, 0}},
                                          {"resnet18", "layer?.?", {3, 65, 97}},
                                          {"mobilenet_v2", "features.?", {3, 97, 65}}};
  enum { LARGEST = 3 * 97 * 97 };
  static const uint32_t threads[] = {2, 7};
  Fixture *fixture = *state;
  float *x = make_input(fixture, LARGEST);
  for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
    Outputs expected = run_example(fixture, &examples[i], KILN_HOOK_STORE, false, x, 1);
    for (size_t k = 0; k < 2; k++) {
      kiln_hook_action action = k == 0 ? KILN_HOOK_STATS : KILN_HOOK_STORE;
      Outputs found = run_example(fixture, &examples[i], action, true, x, threads[k]);
      assert_true(found.count > 2);
      same_bits(examples[i].name, &found, &expected, 1);
    }
  }
}

static Plan *plan_without(Fixture *fixture, const Target *target, const char *omitted) {
  static const char text[] =
      "graph \"g\" {\n  input %x : f32[N,16,9,9]\n  parameter %w : f32[16,16,3,3] {init=weight}\n"
      "  %c = conv2d %x, %w {padding=[1,1,1,1]}\n  %y = relu %c\n  output y = %y\n}\n";
  Graph *graph = NULL;
  Plan *plan = NULL;
  PassOptions options = {.target = target, .scratch = arena_create(NULL)};
  assert_true(graph_parse("g.ir", text, strlen(text), fixture->arena, fixture->diag, &graph));
  size_t count;
  const char *const *names = pass_names(&count);
  for (size_t i = 0; i < count; i++)
    if (strcmp(names[i], omitted) != 0) assert_true(pipeline_run_list(graph, names[i], &options, fixture->diag));
  arena_reset(options.scratch);
  assert_true(plan_build(graph, &options, fixture->diag, &plan));
  arena_destroy(options.scratch);
  return plan;
}

/* Without hooks the code is what a compiler without the passes makes. */
static void no_hooks_no_change(void **state) {
  static const char *const omitted[] = {"", "hooks", "reductions", "autodiff"};
  Fixture *fixture = *state;
  Target target;
  CpuObjects objects[2];
  assert_true(cpu_target("native", NULL, fixture->arena, fixture->diag, &target));
  for (size_t k = 0; k < sizeof omitted / sizeof *omitted; k++) {
    CpuObjects *made = &objects[k == 0 ? 0 : 1];
    assert_true(cpu_compile(plan_without(fixture, &target, omitted[k]), NULL, fixture->arena, fixture->diag, made));
    if (k == 0) continue;
    assert_int_equal(objects[0].count, made->count);
    for (size_t i = 0; i < made->count; i++) {
      assert_int_equal(objects[0].objects[i].size, made->objects[i].size);
      assert_memory_equal(objects[0].objects[i].data, made->objects[i].data, made->objects[i].size);
    }
  }
}

/* --- stored values ------------------------------------------------------------------------------------ */

typedef struct StoredImage {
  int channels, height, width;
} StoredImage;

/* A blocked value with a halo is handed out as it is: blocks that are not full, rows shorter and longer than a vector,
 * images of one chunk of pixels and of several. */
static void stored_values_are_the_values(void **state) {
  static const StoredImage images[] = {{37, 61, 43}, {20, 14, 14}, {33, 7, 7}, {5, 3, 2}};
  static const char *const isas[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4", NULL};
  static const uint32_t threads[] = {1, 2, 3, 7};
  enum { BATCH = 3 };
  Fixture *fixture = *state;
  for (size_t k = 0; k < sizeof images / sizeof *images; k++) {
    const StoredImage *image = &images[k];
    const int64_t count = (int64_t)image->channels * image->height * image->width;
    float *x = make_input(fixture, count * BATCH);
    kiln_model *model = make_copies(fixture, image->channels, image->height, image->width,
                                    "{ \"value\": \"copy\", \"action\": \"store\" }");
    for (size_t isa = 0; isa < sizeof isas / sizeof *isas; isa++) {
      kiln_compile_options options = {.cpu = isas[isa], .threads = 1};
      kiln_executable *executable = NULL;
      if (kiln_compile(model, &options, &executable, NULL) != KILN_OK) continue; /* not this machine's */
      for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        const int64_t batch = threads[i] % 2 ? BATCH : 1;
        Outputs outputs = run(fixture, executable, x, batch, threads[i]);
        assert_int_equal(outputs.count, 2);
        assert_int_equal(outputs.bytes[1], (size_t)(count * batch) * sizeof(float));
        assert_memory_equal(outputs.data[1], x, outputs.bytes[1]);
      }
      kiln_executable_destroy(executable);
    }
    kiln_model_destroy(model);
  }
}

/* --- callbacks ---------------------------------------------------------------------------------------- */

typedef struct Calls {
  const char *names[MAX_PORTS];
  float first[MAX_PORTS];
  size_t count, stop_at; /* stop_at: which call fails, from 1 */
} Calls;

static int note_call(void *context, const kiln_port *value, int64_t batch, const void *data) {
  Calls *calls = context;
  assert_int_equal(batch, 2);
  memcpy(&calls->first[calls->count], data, sizeof(float));
  calls->names[calls->count++] = value->name;
  return calls->count == calls->stop_at;
}

static void callbacks_come_as_values_are_made(void **state) {
  Fixture *fixture = *state;
  float *x = make_input(fixture, 2 * 2 * 5 * 5);
  kiln_model *model = make_copies(fixture, 2, 5, 5, "{ \"value\": \"copy\", \"action\": \"call\" }");
  const kiln_hook hook = {.pattern = "same", .action = KILN_HOOK_STATS};
  MUST(kiln_model_add_hook_with(model, &hook, error));
  kiln_executable *executable = compile(model, NULL);
  Outputs quiet = run(fixture, executable, x, 2, 1);
  Outputs outputs = make_outputs(fixture, kiln_executable_program(executable), 2);
  kiln_context *context = NULL;
  Calls calls = {.count = 0};
  MUST(kiln_context_create(executable, NULL, &context, error));
  MUST(kiln_context_set_callback(context, note_call, &calls, error));
  MUST(kiln_run(context, 2, (const void *const[]){x}, (void *const *)outputs.data, error));
  same_bits("with callbacks", &outputs, &quiet, quiet.count);
  assert_int_equal(calls.count, 2);
  assert_string_equal(calls.names[0], "hook.stats.same");
  assert_string_equal(calls.names[1], "hook.copy");
  assert_true(calls.first[1] == x[0]);

  /* the output of the step behind the one that stopped stays as it was */
  kiln_error failure;
  calls = (Calls){.stop_at = 2};
  memset(outputs.data[0], 0xff, outputs.bytes[0]);
  assert_int_equal(kiln_run(context, 2, (const void *const[]){x}, (void *const *)outputs.data, &failure),
                   KILN_ERROR_CALLBACK);
  assert_non_null(strstr(failure.message, "hook.copy"));
  assert_int_equal(calls.count, 2);
  assert_true(isnan(outputs.data[0][0]));
  MUST(kiln_context_set_callback(context, NULL, NULL, error));
  MUST(kiln_run(context, 2, (const void *const[]){x}, (void *const *)outputs.data, error));
  same_bits("afterwards", &outputs, &quiet, quiet.count);
  kiln_context_destroy(context);
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(statistics_are_pytorchs),
                                     fixture_test(threads_and_layouts_do_not_matter),
                                     fixture_test(options_are_used),
                                     fixture_test(edges_are_counted_like_histc),
                                     fixture_test(options_that_do_not_fit_are_reported),
                                     fixture_test(riding_changes_no_values),
                                     fixture_test(gradients_have_statistics),
                                     fixture_test(outputs_stay_bit_equal),
                                     fixture_test(examples_stay_bit_equal),
                                     fixture_test(no_hooks_no_change),
                                     fixture_test(stored_values_are_the_values),
                                     fixture_test(callbacks_come_as_values_are_made)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
