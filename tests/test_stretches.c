/* Stretches of a training step: some images at a time through several kernels give what all images at once give, to the
 * bit, for every batch, thread count and order of the host's work; libraries and step-by-step runs alike. */
#include <string.h>

#include "kiln.h"
#include "support.h"

enum { MAX_BATCH = 512, PIXELS = 28 * 28, CLASSES = 10, STEPS = 3, MAX_THREADS = 3 };

static const char network[] =
    "{ \"kiln\": 1, \"name\": \"small\", \"inputs\": { \"image\": { \"shape\": [\"N\", 1, 28, 28] } },\n"
    "  \"layers\": [\n"
    "    { \"op\": \"conv2d\", \"name\": \"a\", \"out_channels\": 6, \"kernel\": 3, \"padding\": 1 },\n"
    "    { \"op\": \"relu\", \"name\": \"ra\" },\n"
    "    { \"op\": \"avg_pool2d\", \"name\": \"pa\", \"kernel\": 3, \"stride\": 1, \"padding\": 1 },\n"
    "    { \"op\": \"conv2d\", \"name\": \"b\", \"out_channels\": 6, \"kernel\": 3, \"padding\": 1 },\n"
    "    { \"op\": \"silu\", \"name\": \"rb\" },\n"
    "    { \"op\": \"avg_pool2d\", \"name\": \"pb\", \"kernel\": 3, \"stride\": 1, \"padding\": 1 },\n"
    "    { \"op\": \"avg_pool2d\", \"name\": \"pc\", \"kernel\": 2, \"stride\": 2 },\n"
    "    { \"op\": \"conv2d\", \"name\": \"c\", \"out_channels\": 18, \"kernel\": 3, \"stride\": 2, \"padding\": 1 },\n"
    "    { \"op\": \"relu\", \"name\": \"rc\" },\n"
    "    { \"op\": \"conv2d\", \"name\": \"d\", \"out_channels\": 10, \"kernel\": 7 },\n"
    "    { \"op\": \"flatten\", \"name\": \"logits\" } ],\n"
    "  \"outputs\": [\"logits\"], \"max_batch\": 512 }";

#define CHECK(call)                                               \
  do {                                                            \
    kiln_error error = {KILN_OK, ""};                             \
    if ((call) != KILN_OK) fail_msg("%s: %s", #call, error.message); \
  } while (0)

typedef struct Data {
  float image[MAX_BATCH * PIXELS], hyper[KILN_HYPER_COUNT];
  int64_t target[MAX_BATCH];
} Data;

static Data *make_data(Fixture *fixture) {
  Data *data = arena_new(fixture->arena, Data);
  for (int i = 0; i < MAX_BATCH * PIXELS; i++) data->image[i] = (float)((i * 7919LL) % 1009) / 505 - 1;
  for (int i = 0; i < MAX_BATCH; i++) data->target[i] = i * 7 % CLASSES;
  data->hyper[KILN_HYPER_LEARNING_RATE] = 0.05f;
  data->hyper[KILN_HYPER_MOMENTUM] = 0.9f;
  return data;
}

typedef struct Result {
  float *state;
  size_t count;
  float losses[STEPS];
} Result;

static const void *input_of(const Data *data, const char *name) {
  if (strcmp(name, "image") == 0) return data->image;
  return strcmp(name, "target") == 0 ? (const void *)data->target : data->hyper;
}

/* Calls a task for single parts, the last ones first, with changing thread numbers. */
static int backwards(void *pool, kiln_task task, void *context, int64_t count) {
  const uint32_t *threads = pool;
  for (int64_t i = count; i-- > 0;) task(context, (uint32_t)(i % *threads), i, i + 1);
  return 0;
}

static Result train(Fixture *fixture, kiln_executable *step, const kiln_model *model, const Data *data, int64_t batch,
                    uint32_t threads, bool in_reverse) {
  const kiln_context_options options = {
      .threads = threads, .parallel_for = in_reverse ? backwards : NULL, .pool = &threads};
  const kiln_program *program = kiln_executable_program(step);
  kiln_context *context = NULL;
  kiln_state *state = NULL;
  Result result = {NULL, 0, {0}};
  const void *inputs[3];
  for (uint32_t i = 0; i < program->input_count; i++) inputs[i] = input_of(data, program->inputs[i].name);
  CHECK(kiln_context_create(step, &options, &context, &error));
  CHECK(kiln_state_create(step, model, &state, &error));
  for (int s = 0; s < STEPS; s++)
    CHECK(kiln_train_step(context, state, batch, inputs, (void *[]){&result.losses[s]}, &error));
  kiln_port port;
  float *values;
  for (size_t i = 0; kiln_state_tensor(state, i, &port, NULL) == KILN_OK; i++)
    result.count += (size_t)port.bytes / sizeof(float);
  result.state = arena_array(fixture->arena, result.count, float);
  size_t at = 0;
  for (size_t i = 0; kiln_state_tensor(state, i, &port, &values) == KILN_OK; i++) {
    memcpy(result.state + at, values, (size_t)port.bytes);
    at += (size_t)port.bytes / sizeof(float);
  }
  kiln_state_destroy(state);
  kiln_context_destroy(context);
  return result;
}

static void check_same(const Result *a, const Result *b, int64_t batch, uint32_t threads, const char *what) {
  assert_int_equal(a->count, b->count);
  if (memcmp(a->losses, b->losses, sizeof a->losses) != 0 || memcmp(a->state, b->state, a->count * sizeof(float)) != 0)
    fail_msg("batch %d, %u threads, %s: other results", (int)batch, threads, what);
}

static kiln_model *open_model(void) {
  kiln_model *model = NULL;
  CHECK(kiln_model_parse(NULL, "small.json", network, strlen(network), NULL, &model, &error));
  CHECK(kiln_model_init_weights(model, 3, &error));
  return model;
}

static uint32_t longest_stretch(const kiln_program *program) {
  uint32_t longest = 0;
  for (uint32_t s = 0; s < program->run_step_count; s++) {
    const uint32_t length = program->run_steps[s].stretch;
    assert_true(length <= KILN_MAX_STRETCH && s + length <= program->run_step_count);
    if (length > longest) longest = length;
  }
  return longest;
}

static void test_results(void **state) {
  static const int64_t batches[] = {MAX_BATCH, MAX_BATCH / 2, 97, 1};
  Fixture *fixture = *state;
  kiln_model *model = open_model();
  kiln_executable *together = NULL, *apart = NULL;
  const kiln_compile_options without = {.threads = 1, .disabled_passes = "stretches"};
  CHECK(kiln_compile_training(model, NULL, NULL, &together, &error));
  CHECK(kiln_compile_training(model, NULL, &without, &apart, &error));
  const kiln_program *program = kiln_executable_program(together);
  assert_int_equal(longest_stretch(kiln_executable_program(apart)), 1);
  if (program->stretch_images == 0) { /* all of it stays in the cache */
    print_message("the second-level cache is too large here: skipped\n");
    skip();
  }
  assert_true(longest_stretch(program) >= 3);
  assert_int_equal(MAX_BATCH % program->stretch_images, 0);
  const Data *data = make_data(fixture);
  for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
    const Result expected = train(fixture, apart, model, data, batches[i], 1, false);
    for (uint32_t threads = 1; threads <= MAX_THREADS; threads++) {
      const Result found = train(fixture, together, model, data, batches[i], threads, false);
      check_same(&expected, &found, batches[i], threads, "own threads");
    }
    const Result found = train(fixture, together, model, data, batches[i], 2, true);
    check_same(&expected, &found, batches[i], 2, "a host's, backwards");
  }
  kiln_executable_destroy(together);
  kiln_executable_destroy(apart);
  kiln_model_destroy(model);
}

/* Wide layers use their weights for all images before the next ones, and batch norm's items are channels: these kernels
 * are in no stretch. */
static void test_wide_layers(void **state) {
  static const int64_t dims[] = {-1, 3, 64, 64};
  enum { BATCH = 32, INPUT = BATCH * 3 * 64 * 64 };
  Fixture *fixture = *state;
  kiln_shape shape = {.input = "image", .rank = 4};
  memcpy(shape.dims, dims, sizeof dims);
  const kiln_model_options options = {.shapes = &shape, .shape_count = 1};
  kiln_model *model = NULL;
  CHECK(kiln_model_load(NULL, KILN_SOURCE_DIR "/examples/resnet18.json", &options, &model, &error));
  CHECK(kiln_model_init_weights(model, 3, &error));
  assert_true(INPUT <= MAX_BATCH * PIXELS);
  const Data *data = make_data(fixture);
  Result results[2];
  for (int i = 0; i < 2; i++) {
    const kiln_compile_options compile = {
        .max_batch = BATCH, .threads = 2, .disabled_passes = i == 0 ? NULL : "stretches"};
    kiln_executable *step = NULL;
    CHECK(kiln_compile_training(model, NULL, &compile, &step, &error));
    results[i] = train(fixture, step, model, data, BATCH, 2, false);
    kiln_executable_destroy(step);
  }
  check_same(&results[0], &results[1], BATCH, 2, "resnet18");
  kiln_model_destroy(model);
}

/* Sums over the batch end a stretch, and two kernels are none. */
static void test_batch_norm_has_none(void **state) {
  (void)state;
  kiln_model *model = NULL;
  kiln_executable *step = NULL;
  CHECK(kiln_model_load(NULL, KILN_SOURCE_DIR "/examples/simple_cnn10_bn.json", NULL, &model, &error));
  CHECK(kiln_model_init_weights(model, 3, &error));
  CHECK(kiln_compile_training(model, NULL, &(kiln_compile_options){.max_batch = MAX_BATCH}, &step, &error));
  assert_int_equal(longest_stretch(kiln_executable_program(step)), 1);
  kiln_executable_destroy(step);
  kiln_model_destroy(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_results),
      fixture_test(test_wide_layers),
      fixture_test(test_batch_norm_has_none),
  };
  return cmocka_run_group_tests_name("stretches", tests, NULL, NULL);
}
