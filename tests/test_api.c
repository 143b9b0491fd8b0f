/* The public interface, as a host sees it: only kiln.h is used. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "kiln.h"

static const char description[] =
    "{ \"kiln\": 1, \"name\": \"tiny\",\n"
    "  \"inputs\": { \"image\": { \"dtype\": \"f32\", \"shape\": [\"N\", 3, 9, 7] } },\n"
    "  \"layers\": [ { \"op\": \"conv2d\", \"name\": \"conv\", \"out_channels\": 20, \"kernel\": 3, \"padding\": 1 },\n"
    "                { \"op\": \"batch_norm\", \"name\": \"bn\" },\n"
    "                { \"op\": \"relu\", \"name\": \"act\" },\n"
    "                { \"op\": \"adaptive_avg_pool2d\", \"name\": \"pool\", \"output\": 1 },\n"
    "                { \"op\": \"flatten\", \"name\": \"flat\" },\n"
    "                { \"op\": \"linear\", \"name\": \"fc\", \"out_features\": 5 } ],\n"
    "  \"outputs\": [\"fc\"], \"max_batch\": 4 }\n";

enum { IMAGE = 3 * 9 * 7, CLASSES = 5, BATCH = 4 };

/* --- an allocator that counts, and fails when asked to ------------------------------------------------- */
typedef struct Meter {
  long live, calls, fail_at; /* fail_at < 0: never */
} Meter;

static void *meter_allocate(void *context, size_t size, size_t alignment) {
  Meter *meter = context;
  if (meter->calls++ == meter->fail_at) return NULL;
  void *pointer = NULL;
  if (posix_memalign(&pointer, alignment < sizeof(void *) ? sizeof(void *) : alignment, size > 0 ? size : 1) != 0)
    return NULL;
  meter->live += (long)size;
  return pointer;
}

static void meter_release(void *context, void *pointer, size_t size) {
  Meter *meter = context;
  if (pointer == NULL) return;
  meter->live -= (long)size;
  free(pointer);
}

static kiln_model *model_parse(const kiln_host *host) {
  kiln_model *model = NULL;
  kiln_error error;
  kiln_status status = kiln_model_parse(host, "tiny.json", description, strlen(description), NULL, &model, &error);
  if (status != KILN_OK) print_error("%s\n", error.message);
  assert_int_equal(status, KILN_OK);
  return model;
}

static kiln_executable *model_compile(kiln_model *model, const kiln_compile_options *options) {
  kiln_executable *executable = NULL;
  kiln_error error;
  assert_int_equal(kiln_model_init_weights(model, 7, &error), KILN_OK);
  kiln_status status = kiln_compile(model, options, &executable, &error);
  if (status != KILN_OK) print_error("%s\n", error.message);
  assert_int_equal(status, KILN_OK);
  return executable;
}

static void image_fill(float *image, size_t count) {
  for (size_t i = 0; i < count; i++) image[i] = (float)(i * 29 % 83) / 41.0f - 1.0f;
}

static void run_images(const kiln_executable *executable, const kiln_context_options *options, int64_t batch,
                       float *logits) {
  static float image[BATCH * IMAGE];
  image_fill(image, BATCH * IMAGE);
  kiln_context *context = NULL;
  kiln_error error;
  assert_int_equal(kiln_context_create(executable, options, &context, &error), KILN_OK);
  const void *inputs[] = {image};
  void *outputs[] = {logits};
  assert_int_equal(kiln_run(context, batch, inputs, outputs, &error), KILN_OK);
  kiln_context_destroy(context);
}

/* --- tests ---------------------------------------------------------------------------------------------- */

static void ports_are_described(void **state) {
  (void)state;
  kiln_model *model = model_parse(NULL);
  kiln_port port;
  assert_string_equal(kiln_model_name(model), "tiny");
  assert_int_equal(kiln_model_input_count(model), 1);
  assert_int_equal(kiln_model_output_count(model), 1);
  assert_int_equal(kiln_model_input(model, 0, &port), KILN_OK);
  assert_string_equal(port.name, "image");
  assert_int_equal(port.rank, 4);
  assert_int_equal(port.dims[0], -1);
  assert_int_equal(port.dims[3], 7);
  assert_int_equal(port.bytes, IMAGE * 4);
  assert_int_equal(kiln_model_output(model, 0, &port), KILN_OK);
  assert_int_equal(port.dims[1], CLASSES);
  assert_int_equal(kiln_model_output(model, 1, &port), KILN_ERROR_ARGUMENT);
  bool found = false;
  for (size_t i = 0; i < kiln_model_parameter_count(model); i++) {
    assert_int_equal(kiln_model_parameter(model, i, &port), KILN_OK);
    found = found || strcmp(port.name, "bn.running_var") == 0;
  }
  assert_true(found);
  kiln_model_destroy(model);
}

static void batches_and_threads_agree(void **state) {
  (void)state;
  kiln_model *model = model_parse(NULL);
  kiln_executable *executable = model_compile(model, NULL);
  kiln_model_destroy(model);
  float whole[BATCH * CLASSES], part[BATCH * CLASSES];
  run_images(executable, NULL, BATCH, whole);
  for (int i = 0; i < BATCH * CLASSES; i++) assert_true(whole[i] == whole[i]);
  assert_true(whole[0] != whole[1]);
  for (int64_t batch = 1; batch < BATCH; batch++) {
    run_images(executable, NULL, batch, part);
    assert_memory_equal(part, whole, (size_t)batch * CLASSES * sizeof(float));
  }
  static const uint32_t threads[] = {2, 3, 7};
  for (size_t i = 0; i < 3; i++) {
    kiln_context_options options = {.threads = threads[i]};
    run_images(executable, &options, BATCH, part);
    assert_memory_equal(part, whole, sizeof whole);
  }
  kiln_executable_destroy(executable);
}

/* Runs one item at a time, last first, under falling thread numbers. */
static int backwards(void *pool, kiln_task task, void *context, int64_t count) {
  int64_t *calls = pool;
  for (int64_t i = count - 1; i >= 0; i--) task(context, (uint32_t)(i % 3), i, i + 1);
  *calls += count;
  return 0;
}

static int refuses(void *pool, kiln_task task, void *context, int64_t count) {
  (void)pool;
  (void)task;
  (void)context;
  (void)count;
  return 1;
}

static void host_parallel_for_is_used(void **state) {
  (void)state;
  kiln_model *model = model_parse(NULL);
  kiln_executable *executable = model_compile(model, NULL);
  kiln_model_destroy(model);
  float expected[BATCH * CLASSES], got[BATCH * CLASSES];
  run_images(executable, NULL, BATCH, expected);
  int64_t calls = 0;
  kiln_context_options options = {.threads = 3, .parallel_for = backwards, .pool = &calls};
  run_images(executable, &options, BATCH, got);
  assert_true(calls > 0);
  assert_memory_equal(got, expected, sizeof expected);

  kiln_context *context = NULL;
  kiln_error error;
  options.parallel_for = refuses;
  assert_int_equal(kiln_context_create(executable, &options, &context, &error), KILN_OK);
  static float image[BATCH * IMAGE];
  const void *inputs[] = {image};
  void *outputs[] = {got};
  assert_int_equal(kiln_run(context, 1, inputs, outputs, &error), KILN_ERROR_CALLBACK);
  assert_non_null(strstr(error.message, "host"));
  kiln_context_destroy(context);
  kiln_executable_destroy(executable);
}

static void wrong_arguments_are_refused(void **state) {
  (void)state;
  kiln_error error;
  kiln_model *model = NULL;
  kiln_executable *executable = NULL;
  kiln_context *context = NULL;
  assert_int_equal(kiln_model_load(NULL, NULL, NULL, &model, &error), KILN_ERROR_ARGUMENT);
  assert_int_equal(kiln_model_load(NULL, "/nonexistent/model.json", NULL, &model, &error), KILN_ERROR_INPUT);
  assert_non_null(strstr(error.message, "/nonexistent/model.json"));
  assert_int_equal(kiln_model_load(NULL, "/nonexistent/model.json", NULL, &model, NULL), KILN_ERROR_INPUT);
  assert_int_equal(kiln_model_parse(NULL, "bad.json", "{\"kiln\": 1,\n \"layers\": [ { \"op\": \"conv3d\" } ] }", 44,
                                    NULL, &model, &error),
                   KILN_ERROR_INPUT);
  assert_non_null(strstr(error.message, "bad.json:2:"));
  assert_int_equal(kiln_compile(NULL, NULL, &executable, &error), KILN_ERROR_ARGUMENT);
  assert_int_equal(kiln_open_library(NULL, "/nonexistent.so", NULL, &executable, &error), KILN_ERROR_IO);

  model = model_parse(NULL);
  assert_int_equal(kiln_compile(model, NULL, &executable, &error), KILN_ERROR_WEIGHTS);
  assert_non_null(strstr(error.message, "conv.weight"));
  kiln_compile_options options = {.cpu = "pentium"};
  assert_int_equal(kiln_compile(model, &options, &executable, &error), KILN_ERROR_INPUT);
  assert_non_null(strstr(error.message, "pentium"));
  float value = 0;
  int64_t dims[] = {1};
  assert_int_equal(kiln_model_set_parameter(model, "nothing", &value, 1, dims, &error), KILN_ERROR_ARGUMENT);
  assert_int_not_equal(kiln_model_set_parameter(model, "bn.weight", &value, 1, dims, &error), KILN_OK);
  assert_non_null(strstr(error.message, "bn.weight"));
  assert_int_equal(kiln_model_add_hook(model, "nowhere*", &error), KILN_ERROR_INPUT);

  executable = model_compile(model, NULL);
  kiln_context_options many = {.threads = 100000};
  assert_int_equal(kiln_context_create(executable, &many, &context, &error), KILN_ERROR_ARGUMENT);
  assert_int_equal(kiln_context_create(executable, NULL, &context, &error), KILN_OK);
  static float image[BATCH * IMAGE], logits[BATCH * CLASSES];
  const void *inputs[] = {image}, *no_inputs[] = {NULL};
  void *outputs[] = {logits};
  assert_int_equal(kiln_run(context, 5, inputs, outputs, &error), KILN_ERROR_BATCH);
  assert_int_equal(kiln_run(context, -1, inputs, outputs, &error), KILN_ERROR_BATCH);
  assert_int_equal(kiln_run(context, 1, no_inputs, outputs, &error), KILN_ERROR_ARGUMENT);
  assert_non_null(strstr(error.message, "image"));
  assert_int_equal(kiln_run(context, 0, inputs, outputs, &error), KILN_OK);
  kiln_context_destroy(context);
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
  kiln_context_destroy(NULL);
  kiln_executable_destroy(NULL);
  kiln_model_destroy(NULL);
}

/* The processors that the calling thread may run on. */
static int processor_count(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

static int count_in_callback(void *seen, const kiln_port *value, int64_t batch, const void *data) {
  (void)value, (void)batch, (void)data;
  *(int *)seen = processor_count();
  return 0;
}

static int count_in_step(void *seen, uint32_t step, const void *data, int64_t nanoseconds) {
  (void)step, (void)data, (void)nanoseconds;
  *(int *)seen = processor_count();
  return 0;
}

static void affinity_holds_while_it_runs(void **state) {
  (void)state;
  cpu_set_t set;
  uint32_t processors[CPU_SETSIZE], count = 0;
  assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
  for (uint32_t i = CPU_SETSIZE; i-- > 0;)
    if (CPU_ISSET(i, &set)) processors[count++] = i;
  const uint32_t threads = count < 4 ? count : 4;
  kiln_error error;
  kiln_model *model = model_parse(NULL);
  assert_int_equal(kiln_model_add_hook(model, "conv", &error), KILN_OK);
  kiln_executable *executable = model_compile(model, NULL);
  kiln_context *context = NULL;
  static float image[BATCH * IMAGE], logits[BATCH * CLASSES], hooked[BATCH * IMAGE * 20];
  const void *inputs[] = {image};
  void *outputs[] = {logits, hooked};
  for (uint32_t t = 1; t <= threads; t++) {
    const kiln_context_options options = {.threads = t, .affinity = processors, .affinity_count = count};
    int seen = 0;
    assert_int_equal(kiln_context_create(executable, &options, &context, &error), KILN_OK);
    assert_int_equal(kiln_run(context, BATCH, inputs, outputs, &error), KILN_OK);
    assert_int_equal(processor_count(), count);
    assert_int_equal(kiln_run_steps(context, BATCH, inputs, outputs, count_in_step, &seen, &error), KILN_OK);
    assert_int_equal(seen, 1);
    assert_int_equal(kiln_context_set_callback(context, count_in_callback, &seen, &error), KILN_OK);
    seen = 0;
    assert_int_equal(kiln_run(context, BATCH, inputs, outputs, &error), KILN_OK);
    assert_int_equal(seen, 1);
    assert_int_equal(processor_count(), count);
    kiln_context_destroy(context);
  }
  const uint32_t twice[] = {processors[0], processors[0]}, nowhere[] = {CPU_SETSIZE};
  int calls = 0;
  const kiln_context_options wrong[] = {
      {.threads = 2, .affinity = twice, .affinity_count = 2},
      {.threads = 2, .affinity = processors, .affinity_count = 1},
      {.threads = 1, .affinity = nowhere, .affinity_count = 1},
      {.threads = 1, .parallel_for = backwards, .pool = &calls, .affinity = processors, .affinity_count = 1}};
  static const char *const messages[] = {"twice", "each of 2 threads", "may not use", "parallel_for"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    assert_int_equal(kiln_context_create(executable, &wrong[i], &context, &error), KILN_ERROR_ARGUMENT);
    assert_non_null(strstr(error.message, messages[i]));
  }
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
}

/* One whole life with the host's allocator; false when some step failed for want of memory. */
static bool live(const kiln_host *host) {
  kiln_error error;
  kiln_model *model = NULL;
  kiln_executable *executable = NULL;
  kiln_context *context = NULL;
  static float image[BATCH * IMAGE], logits[BATCH * CLASSES];
  const void *inputs[] = {image};
  void *outputs[] = {logits};
  kiln_status status = kiln_model_parse(host, "tiny.json", description, strlen(description), NULL, &model, &error);
  if (status == KILN_OK) status = kiln_model_init_weights(model, 7, &error);
  if (status == KILN_OK) status = kiln_compile(model, NULL, &executable, &error);
  kiln_context_options options = {.threads = 2};
  if (status == KILN_OK) status = kiln_context_create(executable, &options, &context, &error);
  if (status == KILN_OK) status = kiln_run(context, BATCH, inputs, outputs, &error);
  kiln_context_destroy(context);
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
  if (status != KILN_OK) assert_int_equal(status, KILN_ERROR_MEMORY);
  return status == KILN_OK;
}

static void failing_allocations_leak_nothing(void **state) {
  (void)state;
  Meter meter = {0, 0, -1};
  kiln_host host = {meter_allocate, meter_release, NULL, &meter};
  assert_true(live(&host));
  assert_int_equal(meter.live, 0);
  long calls = meter.calls;
  assert_true(calls > 3);
  for (long fail = 0; fail < calls; fail++) {
    meter = (Meter){0, 0, fail};
    assert_false(live(&host));
    assert_int_equal(meter.live, 0);
  }
}

static void two_models_live_in_one_process(void **state) {
  (void)state;
  kiln_model *model = model_parse(NULL);
  kiln_executable *first = model_compile(model, NULL);
  kiln_compile_options options = {.disabled_passes = "fuse,fold_bn", .max_batch = 4, .threads = 2};
  kiln_executable *second = model_compile(model, &options);
  float a[BATCH * CLASSES], b[BATCH * CLASSES];
  run_images(first, NULL, BATCH, a);
  run_images(second, NULL, BATCH, b);
  for (int i = 0; i < BATCH * CLASSES; i++) assert_true(a[i] - b[i] < 1e-4f && b[i] - a[i] < 1e-4f);
  kiln_executable_destroy(first);
  run_images(second, NULL, BATCH, a);
  assert_memory_equal(a, b, sizeof a);
  kiln_executable_destroy(second);
  kiln_model_destroy(model);
}

static void hooks_become_outputs(void **state) {
  (void)state;
  kiln_error error;
  kiln_model *model = model_parse(NULL);
  kiln_executable *plain = model_compile(model, NULL);
  assert_int_equal(kiln_model_add_hook(model, "conv", &error), KILN_OK);
  kiln_executable *hooked = model_compile(model, NULL);
  const kiln_program *program = kiln_executable_program(hooked);
  assert_int_equal(program->hook_count, 1);
  assert_int_equal(program->output_count, 2);
  assert_string_equal(program->outputs[1].name, "hook.conv");
  assert_int_equal(program->outputs[1].bytes, 20 * 9 * 7 * 4);
  static float image[IMAGE], expected[BATCH * CLASSES], logits[CLASSES], kept[20 * 9 * 7];
  run_images(plain, NULL, 1, expected);
  image_fill(image, IMAGE);
  kiln_context *context = NULL;
  assert_int_equal(kiln_context_create(hooked, NULL, &context, &error), KILN_OK);
  const void *inputs[] = {image};
  void *outputs[] = {logits, kept};
  assert_int_equal(kiln_run(context, 1, inputs, outputs, &error), KILN_OK);
  bool negative = false; /* before batch norm and relu */
  for (int i = 0; i < 20 * 9 * 7; i++) negative = negative || kept[i] < 0;
  assert_true(negative);
  for (int i = 0; i < CLASSES; i++) assert_true(logits[i] - expected[i] < 1e-5f && expected[i] - logits[i] < 1e-5f);
  kiln_context_destroy(context);
  kiln_executable_destroy(hooked);
  kiln_executable_destroy(plain);
  kiln_model_destroy(model);
}

static void library_round_trip(void **state) {
  (void)state;
  char folder[] = "/tmp/kiln-api-XXXXXX";
  assert_non_null(mkdtemp(folder));
  char path[128], header[128], weights[128];
  snprintf(path, sizeof path, "%s/libtiny.so", folder);
  snprintf(header, sizeof header, "%s/tiny.h", folder);
  snprintf(weights, sizeof weights, "%s/tiny.weights", folder);
  kiln_error error;
  kiln_model *model = model_parse(NULL);
  kiln_executable *jit = model_compile(model, NULL), *library = NULL;
  float expected[BATCH * CLASSES], got[BATCH * CLASSES];
  run_images(jit, NULL, BATCH, expected);
  static const kiln_weights_mode modes[] = {KILN_WEIGHTS_EMBED, KILN_WEIGHTS_FILE};
  for (size_t i = 0; i < 2; i++) {
    kiln_compile_options options = {.weights = modes[i]};
    kiln_status status = kiln_compile_library(model, &options, path, &error);
    if (status != KILN_OK) print_error("%s\n", error.message);
    assert_int_equal(status, KILN_OK);
    assert_int_equal(access(header, R_OK), 0);
    assert_int_equal(access(weights, R_OK), i == 0 ? -1 : 0);
    status = kiln_open_library(NULL, path, NULL, &library, &error);
    if (status != KILN_OK) print_error("%s\n", error.message);
    assert_int_equal(status, KILN_OK);
    run_images(library, NULL, BATCH, got);
    assert_memory_equal(got, expected, sizeof expected);
    kiln_executable_destroy(library);
  }
  /* every damage to the weights file is noticed */
  FILE *file = fopen(weights, "r+b");
  assert_non_null(file);
  assert_int_equal(fseek(file, -1, SEEK_END), 0);
  int last = fgetc(file);
  assert_int_equal(fseek(file, -1, SEEK_END), 0);
  fputc(last ^ 1, file);
  fclose(file);
  assert_int_equal(kiln_open_library(NULL, path, NULL, &library, &error), KILN_ERROR_WEIGHTS);
  assert_int_equal(truncate(weights, 40), 0);
  assert_int_equal(kiln_open_library(NULL, path, NULL, &library, &error), KILN_ERROR_WEIGHTS);
  unlink(weights);
  assert_int_equal(kiln_open_library(NULL, path, NULL, &library, &error), KILN_ERROR_WEIGHTS);
  unlink(path);
  unlink(header);
  rmdir(folder);
  kiln_executable_destroy(jit);
  kiln_model_destroy(model);
}

static char logged[512];

static void log_keep(void *context, kiln_log_level level, const char *message) {
  (void)context;
  (void)level;
  snprintf(logged, sizeof logged, "%s", message);
}

static void warnings_go_to_the_logger(void **state) {
  (void)state;
  kiln_host host = {.log = log_keep};
  char path[] = "/tmp/kiln-api-XXXXXX";
  int file = mkstemp(path);
  assert_true(file >= 0);
  /* a safetensors file with one tensor that the model does not know */
  static const char header[] = "{\"stranger\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
  uint64_t length = sizeof header - 1;
  assert_int_equal(write(file, &length, 8), 8);
  assert_int_equal(write(file, header, length), (ssize_t)length);
  assert_int_equal(write(file, "\0\0\0\0", 4), 4);
  close(file);
  kiln_error error;
  kiln_model *model = model_parse(&host);
  assert_int_equal(kiln_model_load_weights(model, path, &error), KILN_OK);
  assert_non_null(strstr(logged, "stranger"));
  kiln_model_destroy(model);
  unlink(path);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(ports_are_described),
      cmocka_unit_test(batches_and_threads_agree),
      cmocka_unit_test(host_parallel_for_is_used),
      cmocka_unit_test(wrong_arguments_are_refused),
      cmocka_unit_test(affinity_holds_while_it_runs),
      cmocka_unit_test(failing_allocations_leak_nothing),
      cmocka_unit_test(two_models_live_in_one_process),
      cmocka_unit_test(hooks_become_outputs),
      cmocka_unit_test(library_round_trip),
      cmocka_unit_test(warnings_go_to_the_logger),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
