/* The emulated GPU itself: that kernels with a planted mistake are stopped with a message, and correct ones compute
 * what they should, in both orders of the threads. KILN_NVRTC and KILN_CUDA_DRIVER name the emulator's libraries. */
#include "core/cuda_driver.h"
#include "cuda/nvrtc.h"
#include "support.h"

typedef struct Device {
  const CudaDriver *driver;
  CuContext context;
  CuStream stream;
  CuModule module;
} Device;

static void device_open(Device *device) {
  CudaMessage message;
  device->driver = cuda_driver(&message);
  if (device->driver == NULL) fail_msg("%s", message.text);
  assert_int_equal(device->driver->context_retain(&device->context, 0), CU_SUCCESS);
  assert_int_equal(device->driver->context_push(device->context), CU_SUCCESS);
  assert_int_equal(device->driver->stream_create(&device->stream, CU_STREAM_NON_BLOCKING), CU_SUCCESS);
}

static void device_close(Device *device) {
  CuContext ignored;
  device->driver->stream_destroy(device->stream);
  device->driver->context_pop(&ignored);
  device->driver->context_release(0);
}

/* Compiles a text of one kernel "k". */
static bool compile(Fixture *fixture, const char *body, Code *out_image) {
  static CudaLaunch launch = {"k", 32, 0, 1, 0, 1, 1, 1};
  CudaCode code = {.name = "k0", .launches = &launch, .launch_count = 1};
  code.text = arena_format(fixture->arena, "#include \"kiln_prelude.h\"\n#line 1 \"op:value\"\n%s", body);
  uint32_t code_of = 0;
  const CudaProgramText program = {&code, 1, &code_of};
  PlanKernel kernel = {.name = "value"};
  Plan plan = {.kernels = &kernel, .kernel_count = 1};
  const NvrtcOptions options = {.arch = "sm_90", .threads = 1};
  Code *images;
  if (!nvrtc_compile(&plan, &program, &options, fixture->arena, fixture->diag, &images)) return false;
  *out_image = images[0];
  return true;
}

/* Runs kernel k(float *out, const float *in, int n) over blocks of `threads` with out[count] and in[count] = 0, 1, 2, …
 * Returns the driver's text of what went wrong, or NULL. */
static const char *run(Fixture *fixture, const char *body, int blocks, int threads, int count, float *out_values) {
  Device device;
  Code image;
  if (!compile(fixture, body, &image)) fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  device_open(&device);
  const CudaDriver *driver = device.driver;
  CuFunction function;
  CuPointer out, in;
  const size_t bytes = (size_t)count * sizeof(float);
  float *values = arena_array(fixture->arena, (size_t)count, float);
  for (int i = 0; i < count; i++) values[i] = (float)i;
  assert_int_equal(driver->module_load(&device.module, image.data, 0, NULL, NULL), CU_SUCCESS);
  assert_int_equal(driver->module_function(&function, device.module, "k"), CU_SUCCESS);
  assert_int_equal(driver->function_set(function, CU_FUNCTION_MAX_DYNAMIC_SHARED_BYTES, 65536), CU_SUCCESS);
  assert_int_equal(driver->memory_allocate(&out, bytes), CU_SUCCESS);
  assert_int_equal(driver->memory_allocate(&in, bytes), CU_SUCCESS);
  assert_int_equal(driver->copy_to_device(in, values, bytes, device.stream), CU_SUCCESS);
  void *arguments[] = {&out, &in, &count};
  assert_int_equal(
      driver->launch(function, (unsigned)blocks, 1, 1, (unsigned)threads, 1, 1, 65536, device.stream, arguments, NULL),
      CU_SUCCESS);
  if (out_values != NULL) driver->copy_to_host(out_values, out, bytes, device.stream);
  CuResult result = driver->stream_synchronize(device.stream);
  const char *text = NULL;
  if (result != CU_SUCCESS) driver->error_text(result, &text);
  text = text != NULL ? arena_string(fixture->arena, text) : NULL;
  driver->memory_free(out);
  driver->memory_free(in);
  driver->module_unload(device.module);
  device_close(&device);
  return text;
}

static void check_failure(Fixture *fixture, const char *body, int threads, const char *expected) {
  const char *text = run(fixture, body, 1, threads, 256, NULL);
  if (text == NULL) fail_msg("the kernel ran; expected: %s", expected);
  if (strstr(text, expected) == NULL) fail_msg("expected '%s' in: %s", expected, text);
}

/* --- correct kernels --------------------------------------------------------------------------------- */

static void check_both_orders(Fixture *fixture, const char *body, int blocks, int threads, int count,
                              const float *expected) {
  static const char *const orders[] = {"forward", "reverse"};
  for (int o = 0; o < 2; o++) {
    float *values = arena_array(fixture->arena, (size_t)count, float);
    setenv("KILN_EMULATOR_ORDER", orders[o], 1);
    const char *text = run(fixture, body, blocks, threads, count, values);
    unsetenv("KILN_EMULATOR_ORDER");
    if (text != NULL) fail_msg("%s: %s", orders[o], text);
    for (int i = 0; i < count; i++)
      if (values[i] != expected[i]) fail_msg("%s: [%d] is %g, expected %g", orders[o], i, values[i], expected[i]);
  }
}

static void test_plain_loop(void **state) {
  Fixture *fixture = *state;
  float expected[1000];
  for (int i = 0; i < 1000; i++) expected[i] = 2 * (float)i;
  check_both_orders(fixture,
                    "KERNEL(128) k(float *out, const float *in, int n) {\n"
                    "  int i = block_x() * 128 + thread_index();\n"
                    "  if (i < n) out[i] = 2 * in[i];\n}\n",
                    8, 128, 1000, expected);
}

static void test_block_reverses(void **state) {
  Fixture *fixture = *state;
  float expected[256];
  for (int i = 0; i < 256; i++) expected[i] = (float)(255 - i) + 32 * 7;
  check_both_orders(fixture,
                    "KERNEL(256) k(float *out, const float *in, int n) {\n"
                    "  SHARED(16) float tile[256];\n"
                    "  DYNAMIC_SHARED(more);\n"
                    "  float *sums = (float *)more, v;\n"
                    "  int t = thread_index();\n"
                    "  cp_async4(&tile[t], &in[t], 1);\n  cp_commit();\n  cp_wait(0);\n  BLOCK_SYNC();\n"
                    "  v = shfl_f32((float)t, 7);\n"
                    "  sums[t] = 0;\n"
                    "  for (int i = 0; i < 32; i++) sums[t] += shfl_xor_f32(v - (float)(t & ~31), 1);\n"
                    "  out[t] = tile[255 - t] + sums[t];\n}\n",
                    1, 256, 256, expected);
}

/* Fragments as PTX describes them: D = A × B with A[i][k] = i + k, B[k][j] = k == j. */
static void test_matrix_products(void **state) {
  Fixture *fixture = *state;
  float expected[128];
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) expected[8 * i + j] = (float)(i + j);
  static const char *const bodies[] = {
      "  u32 a[4], b[2];\n"
      "  for (int i = 0; i < 4; i++) { int r = g + i % 2 * 8, c = 2 * q + i / 2 * 8;\n"
      "    a[i] = pack_bf16((float)(r + c), (float)(r + c + 1)); }\n"
      "  for (int i = 0; i < 2; i++) { int r = 2 * q + i * 8; b[i] = pack_bf16(r == g, r + 1 == g); }\n"
      "  mma_bf16(d, a, b);\n",
      "  u32 a[4], b[2];\n"
      "  for (int i = 0; i < 4; i++) { int r = g + i % 2 * 8, c = 2 * q + i / 2 * 8;\n"
      "    a[i] = pack_f16((float)(r + c), (float)(r + c + 1)); }\n"
      "  for (int i = 0; i < 2; i++) { int r = 2 * q + i * 8; b[i] = pack_f16(r == g, r + 1 == g); }\n"
      "  mma_f16(d, a, b);\n",
      "  u32 a[4], b[2];\n"
      "  for (int i = 0; i < 4; i++) a[i] = to_tf32((float)(g + i % 2 * 8 + q + i / 2 * 4));\n"
      "  for (int i = 0; i < 2; i++) b[i] = to_tf32(q + i * 4 == g);\n"
      "  mma_tf32(d, a, b);\n",
      /* the same fragments through shared memory: rows of 16 elements, matrices in the order of mma's registers */
      "  SHARED(16) u16 rows[16 * 16];\n  u32 a[4], b[2];\n"
      "  for (int i = 0; i < 8; i++) { int e = thread_index() * 8 + i; rows[e] = f2bf((float)(e / 16 + e % 16)); }\n"
      "  BLOCK_SYNC();\n"
      "  ldsm_x4(a, rows + thread_index() % 16 * 16 + thread_index() / 16 * 8);\n"
      "  for (int i = 0; i < 2; i++) { int r = 2 * q + i * 8; b[i] = pack_bf16(r == g, r + 1 == g); }\n"
      "  mma_bf16(d, a, b);\n",
  };
  for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
    check_both_orders(fixture,
                      arena_format(fixture->arena,
                                   "KERNEL(32) k(float *out, const float *in, int n) {\n"
                                   "  int g = thread_index() / 4, q = thread_index() %% 4;\n"
                                   "  float d[4] = {0, 0, 0, 0};\n"
                                   "  (void)in; (void)n;\n%s"
                                   "  out[8 * g + 2 * q] = d[0]; out[8 * g + 2 * q + 1] = d[1];\n"
                                   "  out[8 * g + 64 + 2 * q] = d[2]; out[8 * g + 64 + 2 * q + 1] = d[3];\n}\n",
                                   bodies[i]),
                      1, 32, 128, expected);
}

/* --- planted mistakes -------------------------------------------------------------------------------- */

static void test_divergent_barrier(void **state) {
  check_failure(*state,
                "KERNEL(64) k(float *out, const float *in, int n) {\n"
                "  (void)in; (void)n; (void)out;\n"
                "  if (thread_index() < 40) BLOCK_SYNC();\n}\n",
                64, "op:value:3: a barrier that thread 40 does not reach: it has ended");
}

static void test_different_barriers(void **state) {
  check_failure(*state,
                "KERNEL(64) k(float *out, const float *in, int n) {\n"
                "  (void)in; (void)n; (void)out;\n"
                "  if (thread_index() < 32)\n    BLOCK_SYNC();\n  else\n    BLOCK_SYNC();\n}\n",
                64, "op:value:6: threads wait at different barriers: thread 0 at op:value:4");
}

static void test_divergent_collective(void **state) {
  check_failure(*state,
                "KERNEL(32) k(float *out, const float *in, int n) {\n"
                "  (void)in; (void)n; (void)out;\n"
                "  if (thread_index() != 5) WARP_SYNC();\n}\n",
                32, "a collective that thread 5 of the warp does not reach");
}

static void test_write_past_the_end(void **state) {
  check_failure(*state,
                "KERNEL(32) k(float *out, const float *in, int n) {\n"
                "  (void)in; out[n + thread_index()] = 1;\n}\n",
                32, "k wrote 0 bytes past the end of a buffer of 1024 bytes");
  check_failure(*state,
                "KERNEL(32) k(float *out, const float *in, int n) {\n"
                "  (void)in; (void)n; out[thread_index() - 1] = 1;\n}\n",
                32, "k wrote 1 bytes before a buffer of 1024 bytes");
}

static void test_wild_address(void **state) {
  check_failure(*state,
                "KERNEL(32) k(float *out, const float *in, int n) {\n"
                "  (void)in; (void)n; WARP_SYNC();\n  out[thread_index() * (i64)100000000000] = 1;\n}\n",
                32, "an invalid address read or written");
}

static void test_misaligned_copy(void **state) {
  check_failure(*state,
                "KERNEL(32) k(float *out, const float *in, int n) {\n"
                "  SHARED(16) float tile[64];\n  (void)n; (void)out;\n"
                "  cp_async16(&tile[thread_index()], in, 1);\n}\n",
                32, "op:value:4: cp.async: an address is not aligned");
}

/* A wait for too few groups leaves poison. */
static void test_weak_wait(void **state) {
  Fixture *fixture = *state;
  static const char body[] =
      "KERNEL(32) k(float *out, const float *in, int n) {\n"
      "  SHARED(16) float tile[64];\n  int t = thread_index(); (void)n;\n"
      "  cp_async4(&tile[t], &in[t], 1); cp_commit();\n"
      "  cp_async4(&tile[t + 32], &in[t + 32], t < 8); cp_commit();\n"
      "  cp_wait(%d); out[t] = tile[t]; out[t + 32] = tile[t + 32];\n"
      "  if (t < 32) for (int i = 64; i < n; i += 32) out[t + i] = 0;\n}\n";
  float values[256];
  assert_null(run(fixture, arena_format(fixture->arena, body, 1), 1, 32, 256, values));
  assert_true(values[3] == 3 && values[40] != values[40]);
  assert_null(run(fixture, arena_format(fixture->arena, body, 0), 1, 32, 256, values));
  assert_true(values[3] == 3 && values[35] == 35 && values[40] == 0);
}

/* Without the barrier the other half of the block has not written yet, in either order. */
static void test_missing_barrier(void **state) {
  Fixture *fixture = *state;
  static const char body[] =
      "KERNEL(64) k(float *out, const float *in, int n) {\n"
      "  SHARED(16) float tile[64];\n  int t = thread_index(); (void)n;\n"
      "  tile[t] = in[t];\n  out[t] = tile[63 - t];\n"
      "  for (int i = t + 64; i < n; i += 64) out[i] = 0;\n}\n";
  float values[256];
  assert_null(run(fixture, body, 1, 64, 256, values));
  assert_true(values[0] != values[0] && values[63] == 0);
}

static void test_uncompilable(void **state) {
  Fixture *fixture = *state;
  Code image;
  assert_false(compile(fixture, "KERNEL(32) k(float *out) {\n  out[0] = nowhere;\n}\n", &image));
  check_message_part(fixture, "internal error: the CUDA code of 'value' (k0) does not compile");
  check_message_part(fixture, "op:value(2): error: ");
}

static void test_launch_limits(void **state) {
  Fixture *fixture = *state;
  Device device;
  Code image;
  assert_true(compile(fixture, "KERNEL(64) k(float *out) {\n  out[0] = 1;\n}\n", &image));
  device_open(&device);
  CuFunction function;
  CuPointer out = 0;
  void *arguments[] = {&out};
  const CudaDriver *driver = device.driver;
  assert_int_equal(driver->module_load(&device.module, image.data, 0, NULL, NULL), CU_SUCCESS);
  assert_int_equal(driver->module_function(&function, device.module, "none"), CU_NOT_FOUND);
  assert_int_equal(driver->module_function(&function, device.module, "k"), CU_SUCCESS);
  assert_int_equal(driver->launch(function, 1, 1, 1, 128, 1, 1, 0, device.stream, arguments, NULL),
                   CU_LAUNCH_OUT_OF_RESOURCES);
  assert_int_equal(driver->launch(function, 0, 1, 1, 64, 1, 1, 0, device.stream, arguments, NULL), CU_INVALID_VALUE);
  assert_int_equal(driver->launch(function, 1, 1, 1, 64, 1, 1, 65536, device.stream, arguments, NULL),
                   CU_INVALID_VALUE); /* more than 48 KiB of dynamic memory must be asked for */
  driver->module_unload(device.module);
  device_close(&device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_plain_loop),         fixture_test(test_block_reverses),
      fixture_test(test_matrix_products),    fixture_test(test_divergent_barrier),
      fixture_test(test_different_barriers), fixture_test(test_divergent_collective),
      fixture_test(test_write_past_the_end), fixture_test(test_wild_address),
      fixture_test(test_misaligned_copy),    fixture_test(test_weak_wait),
      fixture_test(test_missing_barrier),    fixture_test(test_uncompilable),
      fixture_test(test_launch_limits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
