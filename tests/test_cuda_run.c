/* Programs on a GPU through kiln.h (the emulated one unless KILN_CUDA_DRIVER and KILN_NVRTC say otherwise), against the
 * same programs on this processor. */
#include <math.h>
#include <pthread.h>

#include "kiln.h"
#include "run_cuda.h"
#include "session/session.h"
#include "support.h"

static const char description[] =
    "{\"kiln\": 1, \"name\": \"net\", \"inputs\": {\"image\": {\"dtype\": \"f32\", \"shape\": [\"N\", 3, 10, 9]}},\n"
    " \"layers\": [{\"op\": \"conv2d\", \"name\": \"stem\", \"out_channels\": 16, \"kernel\": 3, \"padding\": 1,\n"
    "   \"bias\": false},\n"
    "  {\"op\": \"batch_norm\", \"name\": \"bn\"}, {\"op\": \"relu\", \"name\": \"act\"},\n"
    "  {\"op\": \"max_pool2d\", \"name\": \"pool\", \"kernel\": 3, \"stride\": 2, \"padding\": 1},\n"
    "  {\"op\": \"conv2d\", \"name\": \"body\", \"out_channels\": 8, \"kernel\": 3, \"stride\": 2, \"padding\": 1},\n"
    "  {\"op\": \"adaptive_avg_pool2d\", \"output\": 1}, {\"op\": \"flatten\"},\n"
    "  {\"op\": \"linear\", \"name\": \"logits\", \"out_features\": 5}], \"outputs\": [\"logits\"]}";

enum { MAX_BATCH = 4, IMAGE = 3 * 10 * 9, CLASSES = 5 };

static kiln_model *model_create(Fixture *fixture) {
  kiln_model *model;
  kiln_error error;
  (void)fixture;
  if (kiln_model_parse(NULL, "net.json", description, strlen(description), NULL, &model, &error) != KILN_OK ||
      kiln_model_init_weights(model, 3, &error) != KILN_OK)
    fail_msg("%s", error.message);
  return model;
}

static kiln_executable *compile_with(const kiln_model *model, const char *device, kiln_precision precision,
                                     kiln_math math) {
  kiln_executable *executable;
  kiln_error error;
  const kiln_compile_options options = {.device = device,
                                        .precision = precision,
                                        .math = math,
                                        .max_batch = MAX_BATCH,
                                        .cache_dir = getenv("KILN_TEST_CACHE")};
  if (kiln_compile(model, &options, &executable, &error) != KILN_OK) fail_msg("%s", error.message);
  return executable;
}

static kiln_executable *compile(const kiln_model *model, const char *device, kiln_precision precision) {
  return compile_with(model, device, precision, KILN_MATH_DEFAULT);
}

static kiln_context *context_create(const kiln_executable *executable) {
  kiln_context *context;
  kiln_error error;
  if (kiln_context_create(executable, NULL, &context, &error) != KILN_OK) fail_msg("%s", error.message);
  return context;
}

static void fill_image(float *image, int64_t batch, uint32_t seed) {
  for (int64_t i = 0; i < batch * IMAGE; i++) {
    seed = seed * 1664525 + 1013904223;
    image[i] = (float)(seed >> 8) * 0x1p-23f - 1;
  }
}

static void run(kiln_context *context, int64_t batch, const void *image, void **outputs) {
  kiln_error error;
  const void *inputs[] = {image};
  if (kiln_run(context, batch, inputs, outputs, &error) != KILN_OK) fail_msg("%s", error.message);
}

static void check_close(const char *what, const float *got, const float *expected, int64_t count, double tolerance) {
  double squares = 0, errors = 0;
  for (int64_t i = 0; i < count; i++) {
    squares += (double)expected[i] * expected[i];
    errors += ((double)got[i] - expected[i]) * ((double)got[i] - expected[i]);
  }
  if (errors == 0) return;
  if (!(sqrt(errors / squares) <= tolerance))
    fail_msg("%s: relative L2 %g, allowed %g", what, sqrt(errors / squares), tolerance);
}

/* Any batch in any order: graphs are recorded, found again and dropped. */
static void test_batches(void **state) {
  kiln_model *model = model_create(*state);
  kiln_executable *gpu = compile(model, "cuda", KILN_PRECISION_STRICT),
                  *cpu = compile(model, NULL, KILN_PRECISION_STRICT);
  kiln_context *on_gpu = context_create(gpu), *on_cpu = context_create(cpu);
  static const int64_t batches[] = {1, 4, 2, 3, 1, 2, 4};
  float image[MAX_BATCH * IMAGE], got[MAX_BATCH * CLASSES], expected[MAX_BATCH * CLASSES];
  for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
    memset(got, 0xff, sizeof got);
    fill_image(image, batches[i], (uint32_t)i + 1);
    run(on_gpu, batches[i], image, (void *[]){got});
    run(on_cpu, batches[i], image, (void *[]){expected});
    check_close("logits", got, expected, batches[i] * CLASSES, 2e-6);
    if (batches[i] < MAX_BATCH) assert_true(isnan(got[batches[i] * CLASSES])); /* nothing is written past the batch */
  }
  kiln_context_destroy(on_gpu);
  kiln_context_destroy(on_cpu);
  kiln_executable_destroy(gpu);
  kiln_executable_destroy(cpu);
  kiln_model_destroy(model);
}

static void test_order_of_threads(void **state) {
  kiln_model *model = model_create(*state);
  kiln_executable *gpu = compile(model, "cuda", KILN_PRECISION_DEFAULT);
  kiln_context *context = context_create(gpu);
  float image[MAX_BATCH * IMAGE], forward[MAX_BATCH * CLASSES], reverse[MAX_BATCH * CLASSES];
  fill_image(image, MAX_BATCH, 5);
  run(context, MAX_BATCH, image, (void *[]){forward});
  setenv("KILN_EMULATOR_ORDER", "reverse", 1);
  run(context, MAX_BATCH, image, (void *[]){reverse});
  unsetenv("KILN_EMULATOR_ORDER");
  assert_memory_equal(forward, reverse, sizeof forward);
  kiln_context_destroy(context);
  kiln_executable_destroy(gpu);
  kiln_model_destroy(model);
}

/* Inputs and outputs in the device's memory are used where they are; the results are the same bits. */
static void test_device_memory(void **state) {
  kiln_model *model = model_create(*state);
  kiln_executable *gpu = compile(model, "cuda", KILN_PRECISION_DEFAULT);
  kiln_context *context = context_create(gpu);
  float image[MAX_BATCH * IMAGE], expected[MAX_BATCH * CLASSES], got[MAX_BATCH * CLASSES];
  fill_image(image, MAX_BATCH, 6);
  run(context, MAX_BATCH, image, (void *[]){expected});
  const CudaDriver *driver = cuda_driver(NULL);
  CuContext device, ignored;
  CuStream stream;
  assert_int_equal(driver->context_retain(&device, 0), CU_SUCCESS);
  assert_int_equal(driver->context_push(device), CU_SUCCESS);
  assert_int_equal(driver->stream_create(&stream, CU_STREAM_NON_BLOCKING), CU_SUCCESS);
  /* the second pair is not aligned: it is copied */
  for (CuPointer shift = 0; shift <= 4; shift += 4) {
    CuPointer in, out;
    assert_int_equal(driver->memory_allocate(&in, sizeof image + 4), CU_SUCCESS);
    assert_int_equal(driver->memory_allocate(&out, sizeof got + 4), CU_SUCCESS);
    driver->copy_to_device(in + shift, image, sizeof image, stream);
    driver->stream_synchronize(stream);
    run(context, MAX_BATCH, (const void *)(uintptr_t)(in + shift), (void *[]){(void *)(uintptr_t)(out + shift)});
    driver->copy_to_host(got, out + shift, sizeof got, stream);
    driver->stream_synchronize(stream);
    assert_memory_equal(got, expected, sizeof got);
    driver->memory_free(in);
    driver->memory_free(out);
  }
  driver->stream_destroy(stream);
  driver->context_pop(&ignored);
  driver->context_release(0);
  kiln_context_destroy(context);
  kiln_executable_destroy(gpu);
  kiln_model_destroy(model);
}

typedef struct Thread {
  const kiln_executable *executable;
  pthread_t handle;
  float image[MAX_BATCH * IMAGE], out[MAX_BATCH * CLASSES];
} Thread;

static void *thread_main(void *argument) {
  Thread *thread = argument;
  kiln_context *context = context_create(thread->executable);
  for (int64_t batch = 1; batch <= MAX_BATCH; batch++) run(context, batch, thread->image, (void *[]){thread->out});
  kiln_context_destroy(context);
  return NULL;
}

static void test_two_contexts(void **state) {
  kiln_model *model = model_create(*state);
  kiln_executable *gpu = compile(model, "cuda:0", KILN_PRECISION_DEFAULT);
  Thread threads[2];
  float expected[MAX_BATCH * CLASSES];
  for (int i = 0; i < 2; i++) {
    threads[i].executable = gpu;
    fill_image(threads[i].image, MAX_BATCH, (uint32_t)i + 20);
    assert_int_equal(pthread_create(&threads[i].handle, NULL, thread_main, &threads[i]), 0);
  }
  for (int i = 0; i < 2; i++) pthread_join(threads[i].handle, NULL);
  kiln_context *context = context_create(gpu);
  for (int i = 0; i < 2; i++) {
    run(context, MAX_BATCH, threads[i].image, (void *[]){expected});
    assert_memory_equal(threads[i].out, expected, sizeof expected);
  }
  kiln_context_destroy(context);
  kiln_executable_destroy(gpu);
  kiln_model_destroy(model);
}

/* --- hooks and gradients ----------------------------------------------------------------------------- */

typedef struct Calls {
  int count, stop_at;
  float body[MAX_BATCH * 8 * 3 * 3];
  const char *names[8];
} Calls;

static int note_call(void *context, const kiln_port *value, int64_t batch, const void *data) {
  Calls *calls = context;
  calls->names[calls->count++] = value->name;
  if (strcmp(value->name, "hook.body") == 0) memcpy(calls->body, data, (size_t)(batch * value->bytes));
  return calls->count == calls->stop_at;
}

static void test_hooks(void **state) {
  kiln_model *model = model_create(*state);
  kiln_error error;
  kiln_executable *plain = compile(model, "cuda", KILN_PRECISION_STRICT);
  const kiln_hook stats = {.pattern = "act", .action = KILN_HOOK_STATS},
                  gradient = {.pattern = "body", .kind = KILN_HOOK_GRADIENT};
  assert_int_equal(kiln_model_add_hook(model, "body", &error), KILN_OK);
  assert_int_equal(kiln_model_add_hook_with(model, &stats, &error), KILN_OK);
  assert_int_equal(kiln_model_add_hook_with(model, &gradient, &error), KILN_OK);
  kiln_executable *gpu = compile(model, "cuda", KILN_PRECISION_STRICT),
                  *cpu = compile(model, NULL, KILN_PRECISION_STRICT);
  const kiln_program *program = kiln_executable_program(gpu);
  assert_int_equal(program->input_count, 2); /* the image and the class */
  assert_int_equal(program->output_count, 4);
  float image[2 * IMAGE], storage[2][4][2 * 8 * 3 * 3] = {{{0}}}, bare[2 * CLASSES];
  int64_t classes[] = {1, 3};
  fill_image(image, 2, 9);
  const void *inputs[] = {image, classes};
  kiln_executable *executables[] = {gpu, cpu};
  for (int i = 0; i < 2; i++) {
    kiln_context *context = context_create(executables[i]);
    void *outputs[4];
    for (int o = 0; o < 4; o++) outputs[o] = storage[i][o];
    if (kiln_run(context, 2, inputs, outputs, &error) != KILN_OK) fail_msg("%s", error.message);
    kiln_context_destroy(context);
  }
  for (uint32_t o = 0; o < 4; o++) {
    const kiln_port *port = &program->outputs[o];
    const int64_t count = (port->batched ? 2 : 1) * port->bytes / 4;
    check_close(port->name, storage[0][o], storage[1][o], count, 1e-5);
  }
  /* a hook changes nothing */
  kiln_context *context = context_create(plain);
  run(context, 2, image, (void *[]){bare});
  assert_memory_equal(bare, storage[0][0], sizeof bare);
  kiln_context_destroy(context);

  /* the same through a callback */
  Calls calls = {.count = 0, .stop_at = -1};
  void *outputs[4];
  float again[4][2 * 8 * 3 * 3];
  for (int o = 0; o < 4; o++) outputs[o] = again[o];
  context = context_create(gpu);
  kiln_context_set_callback(context, note_call, &calls, &error);
  if (kiln_run(context, 2, inputs, outputs, &error) != KILN_OK) fail_msg("%s", error.message);
  assert_int_equal(calls.count, 3);
  for (uint32_t o = 0; o < 4; o++)
    if (strcmp(program->outputs[o].name, "hook.body") == 0)
      assert_memory_equal(calls.body, storage[0][o], (size_t)(2 * program->outputs[o].bytes));
  for (int o = 0; o < 4; o++)
    assert_memory_equal(again[o], storage[0][o],
                        (size_t)((program->outputs[o].batched ? 2 : 1) * program->outputs[o].bytes));
  calls = (Calls){.count = 0, .stop_at = 1};
  assert_int_equal(kiln_run(context, 2, inputs, outputs, &error), KILN_ERROR_CALLBACK);
  assert_non_null(strstr(error.message, "the callback stopped the run at 'hook."));
  kiln_context_destroy(context);
  kiln_executable_destroy(gpu);
  kiln_executable_destroy(cpu);
  kiln_executable_destroy(plain);
  kiln_model_destroy(model);
}

/* The same where images are kept in 16 bits: who reads a value does not decide how it is kept. */
static void test_hooks_in_bf16(void **state) {
  kiln_model *model = model_create(*state);
  kiln_error error;
  float image[2 * IMAGE], bare[2 * CLASSES], got[2 * CLASSES], body[2 * 8 * 3 * 3], stats[4096],
      gradient[2 * 8 * 3 * 3];
  const kiln_hook taken = {.pattern = "act", .action = KILN_HOOK_STATS},
                  wanted = {.pattern = "body", .kind = KILN_HOOK_GRADIENT};
  kiln_executable *plain = compile_with(model, "cuda", KILN_PRECISION_DEFAULT, KILN_MATH_BF16);
  assert_int_equal(kiln_model_add_hook(model, "body", &error), KILN_OK);
  assert_int_equal(kiln_model_add_hook_with(model, &taken, &error), KILN_OK);
  assert_int_equal(kiln_model_add_hook_with(model, &wanted, &error), KILN_OK);
  kiln_executable *hooked = compile_with(model, "cuda", KILN_PRECISION_DEFAULT, KILN_MATH_BF16),
                  *exact = compile(model, NULL, KILN_PRECISION_STRICT);
  const kiln_program *program = kiln_executable_program(hooked);
  int64_t classes[] = {1, 3};
  void *outputs[] = {got, NULL, NULL, NULL};
  for (uint32_t o = 1; o < program->output_count; o++) {
    const char *name = program->outputs[o].name;
    assert_true((size_t)program->outputs[o].bytes <= sizeof stats);
    outputs[o] = strcmp(name, "hook.body") == 0 ? body : strstr(name, "grad") != NULL ? gradient : stats;
  }
  fill_image(image, 2, 9);
  kiln_context *context = context_create(plain);
  run(context, 2, image, (void *[]){bare});
  kiln_context_destroy(context);
  const void *inputs[] = {image, classes};
  context = context_create(hooked);
  if (kiln_run(context, 2, inputs, outputs, &error) != KILN_OK) fail_msg("%s", error.message);
  kiln_context_destroy(context);
  assert_memory_equal(bare, got, sizeof bare);
  float near[2 * 8 * 3 * 3], slope[2 * 8 * 3 * 3];
  memcpy(near, body, sizeof near);
  memcpy(slope, gradient, sizeof slope);
  context = context_create(exact);
  if (kiln_run(context, 2, inputs, outputs, &error) != KILN_OK) fail_msg("%s", error.message);
  kiln_context_destroy(context);
  check_close("body in bf16", near, body, 2 * 8 * 3 * 3, 3e-2);
  check_close("its gradient", slope, gradient, 2 * 8 * 3 * 3, 3e-2);
  kiln_executable_destroy(plain);
  kiln_executable_destroy(hooked);
  kiln_executable_destroy(exact);
  kiln_model_destroy(model);
}

/* --- training ---------------------------------------------------------------------------------------- */

enum { STEPS = 4 };

typedef struct Training {
  kiln_executable *step;
  kiln_context *context;
  kiln_state *state;
  float losses[STEPS];
} Training;

static void training_create(const kiln_model *model, const char *device, kiln_optimizer optimizer, Training *training) {
  kiln_error error;
  const kiln_train_options train = {.optimizer = optimizer, .clip = 1};
  const kiln_compile_options options = {.device = device,
                                        .precision = KILN_PRECISION_STRICT,
                                        .max_batch = MAX_BATCH,
                                        .cache_dir = getenv("KILN_TEST_CACHE")};
  if (kiln_compile_training(model, &train, &options, &training->step, &error) != KILN_OK) fail_msg("%s", error.message);
  training->context = context_create(training->step);
  if (kiln_state_create(training->step, model, &training->state, &error) != KILN_OK) fail_msg("%s", error.message);
}

static void training_destroy(Training *training) {
  kiln_context_destroy(training->context);
  kiln_state_destroy(training->state);
  kiln_executable_destroy(training->step);
}

/* What a step is given. */
typedef struct StepInputs {
  float image[MAX_BATCH * IMAGE], hyper[KILN_HYPER_COUNT];
  int64_t target[MAX_BATCH];
} StepInputs;

static void fill_step(StepInputs *inputs, int step) {
  float *hyper = inputs->hyper;
  memset(hyper, 0, sizeof inputs->hyper);
  fill_image(inputs->image, MAX_BATCH, (uint32_t)step + 40);
  for (int i = 0; i < MAX_BATCH; i++) inputs->target[i] = (step + 2 * i) % CLASSES;
  hyper[KILN_HYPER_LEARNING_RATE] = 0.01f;
  hyper[KILN_HYPER_MOMENTUM] = 0.9f;
  hyper[KILN_HYPER_BETA2] = 0.99f;
  hyper[KILN_HYPER_EPS] = 1e-5f;
  hyper[KILN_HYPER_WEIGHT_DECAY] = 0.01f;
  hyper[KILN_HYPER_CORRECTION1] = 1 - powf(0.9f, (float)step + 1);
  hyper[KILN_HYPER_CORRECTION2] = 1 - powf(0.99f, (float)step + 1);
  hyper[KILN_HYPER_GRADIENT_SCALE] = 1;
  hyper[KILN_HYPER_CLIP_NORM] = 5;
}

static void train(Training *training, int first, int last) {
  StepInputs given;
  float norm;
  kiln_error error;
  for (int step = first; step < last; step++) {
    fill_step(&given, step);
    const void *inputs[] = {given.image, given.target, given.hyper};
    void *outputs[] = {&training->losses[step], &norm};
    if (kiln_train_step(training->context, training->state, MAX_BATCH, inputs, outputs, &error) != KILN_OK)
      fail_msg("%s", error.message);
  }
}

static void compare_states(const kiln_state *a, const kiln_state *b, double tolerance) {
  assert_int_equal(kiln_state_tensor_count(a), kiln_state_tensor_count(b));
  for (size_t i = 0; i < kiln_state_tensor_count(a); i++) {
    kiln_port port;
    float *x, *y;
    assert_int_equal(kiln_state_tensor(a, i, &port, &x), KILN_OK);
    assert_int_equal(kiln_state_tensor(b, i, NULL, &y), KILN_OK);
    if (tolerance == 0)
      assert_memory_equal(x, y, (size_t)port.bytes);
    else
      check_close(port.name, x, y, port.bytes / 4, tolerance);
  }
}

/* The same losses and values as on the processor; and the state may move to the host and back between any steps. */
static void check_training(Fixture *fixture, kiln_optimizer optimizer) {
  kiln_model *model = model_create(fixture);
  Training gpu, cpu, moved;
  kiln_error error;
  training_create(model, "cuda", optimizer, &gpu);
  training_create(model, "cuda", optimizer, &moved);
  training_create(model, NULL, optimizer, &cpu);
  train(&gpu, 0, STEPS);
  train(&cpu, 0, STEPS);
  check_close("losses", gpu.losses, cpu.losses, STEPS, 1e-5);
  compare_states(gpu.state, cpu.state, 2e-4);
  /* with the values fetched, and a context of its own for the rest */
  train(&moved, 0, 2);
  assert_int_equal(kiln_state_store(moved.state, model, &error), KILN_OK);
  train(&moved, 2, 3);
  kiln_context_destroy(moved.context);
  moved.context = context_create(moved.step);
  train(&moved, 3, STEPS);
  compare_states(gpu.state, moved.state, 0);
  /* the trained values, as another program's weights */
  kiln_executable *inference = compile(model, "cuda", KILN_PRECISION_STRICT);
  kiln_context *context = context_create(inference);
  float image[IMAGE], before[CLASSES], after[CLASSES];
  fill_image(image, 1, 3);
  run(context, 1, image, (void *[]){before});
  assert_int_equal(kiln_state_store(gpu.state, model, &error), KILN_OK);
  if (kiln_executable_prepare(inference, model, &error) != KILN_OK) fail_msg("%s", error.message);
  run(context, 1, image, (void *[]){after});
  assert_memory_not_equal(before, after, sizeof before);
  kiln_context_destroy(context);
  kiln_executable_destroy(inference);
  inference = compile(model, NULL, KILN_PRECISION_STRICT);
  context = context_create(inference);
  run(context, 1, image, (void *[]){before});
  check_close("after training", after, before, CLASSES, 1e-5);
  kiln_context_destroy(context);
  kiln_executable_destroy(inference);
  training_destroy(&gpu);
  training_destroy(&moved);
  training_destroy(&cpu);
  kiln_model_destroy(model);
}

static void test_training_sgd(void **state) { check_training(*state, KILN_OPTIMIZER_SGD); }
static void test_training_adam(void **state) { check_training(*state, KILN_OPTIMIZER_ADAM); }

/* State in memory of the device is used in place: as libraries of steps use it, which graphs must not outlive. */
static void test_state_on_device(void **state) {
  kiln_model *model = model_create(*state);
  Training training;
  training_create(model, "cuda", KILN_OPTIMIZER_SGD, &training);
  const kiln_program *program = kiln_executable_program(training.step);
  const CudaDriver *driver = cuda_driver(NULL);
  CuContext device, ignored;
  CuStream stream;
  assert_int_equal(driver->context_retain(&device, 0), CU_SUCCESS);
  assert_int_equal(driver->context_push(device), CU_SUCCESS);
  assert_int_equal(driver->stream_create(&stream, CU_STREAM_NON_BLOCKING), CU_SUCCESS);
  enum { PLACES = 8 };
  CuPointer memory[2][PLACES] = {{0}};
  void *first[PLACES] = {NULL};
  assert_true(program->parameter_count <= PLACES);
  for (uint32_t p = 0; p < program->parameter_count; p++) {
    const kiln_port *port = &program->parameters[p];
    if (port->role != KILN_ROLE_STATE) continue;
    assert_int_equal(kiln_state_tensor_count(training.state) > 0, 1);
    first[p] = calloc(1, (size_t)port->bytes);
    for (int64_t i = 0; i < port->bytes / 4; i++) ((float *)first[p])[i] = 0.5f + 0.01f * (float)(i % 7);
    for (int m = 0; m < 2; m++) {
      assert_int_equal(driver->memory_allocate(&memory[m][p], (size_t)port->bytes), CU_SUCCESS);
      driver->copy_to_device(memory[m][p], first[p], (size_t)port->bytes, stream);
    }
  }
  driver->stream_synchronize(stream);
  /* runs over one state, the other, and one in memory of the host */
  float losses[3][3], norm;
  CudaMessage message;
  for (int m = 0; m < 3; m++) {
    void *places[PLACES];
    for (int p = 0; p < PLACES; p++) places[p] = m < 2 ? (void *)(uintptr_t)memory[m][p] : first[p];
    assert_int_equal(cuda_context_set_state(training.context->cuda, places, &message), KILN_OK);
    for (int step = 0; step < 3; step++) {
      StepInputs given;
      fill_step(&given, step);
      const void *inputs[] = {given.image, given.target, given.hyper};
      void *outputs[] = {&losses[m][step], &norm};
      assert_int_equal(cuda_context_run(training.context->cuda, MAX_BATCH, inputs, outputs, &message), KILN_OK);
    }
    assert_int_equal(cuda_context_fetch_state(training.context->cuda, &message), KILN_OK);
  }
  assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
  assert_memory_equal(losses[0], losses[2], sizeof losses[0]);
  assert_true(losses[0][0] != losses[0][1]);
  for (uint32_t p = 0; p < program->parameter_count; p++) {
    if (first[p] == NULL) continue;
    const size_t bytes = (size_t)program->parameters[p].bytes;
    for (int m = 0; m < 2; m++) {
      float *values = malloc(bytes);
      driver->copy_to_host(values, memory[m][p], bytes, stream);
      driver->stream_synchronize(stream);
      assert_memory_equal(values, first[p], bytes);
      free(values);
      driver->memory_free(memory[m][p]);
    }
    free(first[p]);
  }
  driver->stream_destroy(stream);
  driver->context_pop(&ignored);
  driver->context_release(0);
  training_destroy(&training);
  kiln_model_destroy(model);
}

/* --- failures ---------------------------------------------------------------------------------------- */

static void check_refused(const kiln_model *model, const kiln_compile_options *options, kiln_status status,
                          const char *part) {
  kiln_executable *executable;
  kiln_error error;
  assert_int_equal(kiln_compile(model, options, &executable, &error), status);
  if (strstr(error.message, part) == NULL) fail_msg("expected '%s' in: %s", part, error.message);
}

/* A workspace that no device has is refused with the sizes, and nothing is lost. */
static void check_too_large(const kiln_model *model) {
  kiln_executable *executable;
  kiln_context *context = NULL;
  kiln_error error;
  const kiln_compile_options options = {
      .device = "cuda", .max_batch = 20000000, .cache_dir = getenv("KILN_TEST_CACHE")};
  if (kiln_compile(model, &options, &executable, &error) != KILN_OK) fail_msg("%s", error.message);
  assert_int_equal(kiln_context_create(executable, NULL, &context, &error), KILN_ERROR_MEMORY);
  if (strstr(error.message, "bytes of device memory for the workspace, of which") == NULL)
    fail_msg("%s", error.message);
  kiln_executable_destroy(executable);
}

static void test_refusals(void **state) {
  kiln_model *model = model_create(*state);
  check_refused(model, &(kiln_compile_options){.device = "cuda:999"}, KILN_ERROR_INPUT, "there is no GPU 999");
  check_too_large(model);
  check_refused(model, &(kiln_compile_options){.device = "cuda:x"}, KILN_ERROR_INPUT,
                "device: expected cpu, cuda or cuda:N, found 'cuda:x'");
  check_refused(model, &(kiln_compile_options){.device = "cuda", .math = (kiln_math)77}, KILN_ERROR_INPUT,
                "77 is not a value of kiln_math");
  kiln_model_destroy(model);
  kiln_error error;
  assert_int_equal(kiln_model_parse(NULL, "net.json", description, strlen(description), NULL, &model, &error), KILN_OK);
  check_refused(model, &(kiln_compile_options){.device = "cuda"}, KILN_ERROR_WEIGHTS, "has no value");
  kiln_model_destroy(model);
}

static void test_math_modes(void **state) {
  kiln_model *model = model_create(*state);
  static const double tolerances[] = {[KILN_MATH_FP32] = 2e-6,
                                      [KILN_MATH_3XTF32] = 4e-6,
                                      [KILN_MATH_TF32] = 4e-3,
                                      [KILN_MATH_BF16] = 4e-2,
                                      [KILN_MATH_FP16] = 4e-3};
  kiln_executable *cpu = compile(model, NULL, KILN_PRECISION_STRICT);
  kiln_context *on_cpu = context_create(cpu);
  float image[MAX_BATCH * IMAGE], got[MAX_BATCH * CLASSES], expected[MAX_BATCH * CLASSES];
  fill_image(image, MAX_BATCH, 8);
  run(on_cpu, MAX_BATCH, image, (void *[]){expected});
  for (int math = KILN_MATH_FP32; math <= KILN_MATH_FP16; math++) {
    kiln_executable *gpu;
    kiln_error error;
    const kiln_compile_options options = {
        .device = "cuda", .math = (kiln_math)math, .max_batch = MAX_BATCH, .cache_dir = getenv("KILN_TEST_CACHE")};
    if (kiln_compile(model, &options, &gpu, &error) != KILN_OK) fail_msg("%s", error.message);
    kiln_context *context = context_create(gpu);
    run(context, MAX_BATCH, image, (void *[]){got});
    check_close(math_mode_name((MathMode)(math - 1)), got, expected, MAX_BATCH * CLASSES, tolerances[math]);
    kiln_context_destroy(context);
    kiln_executable_destroy(gpu);
  }
  kiln_context_destroy(on_cpu);
  kiln_executable_destroy(cpu);
  kiln_model_destroy(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_batches),         fixture_test(test_order_of_threads),
      fixture_test(test_device_memory),   fixture_test(test_two_contexts),
      fixture_test(test_hooks),           fixture_test(test_refusals),
      fixture_test(test_math_modes),      fixture_test(test_training_sgd),
      fixture_test(test_training_adam),   fixture_test(test_hooks_in_bf16),
      fixture_test(test_state_on_device),
  };
  char folder[] = "/tmp/kiln-cuda-run-XXXXXX";
  test_cuda_open();
  /* many tests compile the same kernels */
  if (mkdtemp(folder) == NULL) return 1;
  setenv("KILN_TEST_CACHE", folder, 0);
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  char command[64];
  snprintf(command, sizeof command, "rm -rf %s", folder);
  return system(command) == 0 ? failed : 1;
}
