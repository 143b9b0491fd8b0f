/* Every name of the device prelude and of the common helpers, on whatever KILN_NVRTC and KILN_CUDA_DRIVER name (the
 * emulated GPU when they are not set): one kernel per name, whose results are compared with those that this test
 * computes by itself. Run on a GPU, it says whether the PTX of prelude_device.h means what prelude_host.h says. */
#include <math.h>

#include "cuda/nvrtc.h"
#include "run_cuda.h"
#include "support.h"
#include "tensor.h"

enum { LANES = 32, INPUTS = 256 };

typedef struct Device {
  const CudaDriver *driver;
  CuContext context;
  CuStream stream;
  int arch;
} Device;

static Device device;

static int open_device(void **state) {
  CudaMessage message;
  CudaDeviceInfo info;
  (void)state;
  test_cuda_open();
  device.driver = cuda_driver(&message);
  if (device.driver == NULL || cuda_device_info(0, &info, &message) != KILN_OK) {
    fprintf(stderr, "%s\n", message.text);
    return -1;
  }
  device.arch = info.arch;
  if (device.driver->context_retain(&device.context, 0) != CU_SUCCESS) return -1;
  if (device.driver->context_push(device.context) != CU_SUCCESS) return -1;
  return device.driver->stream_create(&device.stream, CU_STREAM_NON_BLOCKING) == CU_SUCCESS ? 0 : -1;
}

static int close_device(void **state) {
  CuContext ignored;
  (void)state;
  device.driver->stream_destroy(device.stream);
  device.driver->context_pop(&ignored);
  return device.driver->context_release(0) == CU_SUCCESS ? 0 : -1;
}

/* Runs `body` in a block of 32 threads: `out` has `count` floats, `in` the INPUTS floats of `inputs`; t is the thread.
 */
static void run(Fixture *fixture, const char *body, const float *inputs, float *out, int count) {
  static CudaLaunch launch = {"k", LANES, 0, 1, 0, 1, 1, 1};
  CudaCode code = {.name = "k0", .launches = &launch, .launch_count = 1};
  code.text = arena_format(fixture->arena,
                           "#include \"kiln_prelude.h\"\n#include \"kiln_common.h\"\n#line 1 \"op:helper\"\n"
                           "KERNEL(32) k(float *out, const float *in, int n) {\n"
                           "  DYNAMIC_SHARED(dynamic);\n"
                           "  SHARED(128) float tile[512];\n  const int t = thread_index();\n"
                           "  (void)n; (void)in; (void)dynamic;\n"
                           "  for (int i = t; i < 512; i += 32) tile[i] = 0;\n  BLOCK_SYNC();\n%s}\n",
                           body);
  uint32_t code_of = 0;
  const CudaProgramText program = {&code, 1, &code_of};
  PlanKernel kernel = {.name = "helper"};
  Plan plan = {.kernels = &kernel, .kernel_count = 1};
  Target target;
  const CudaDevice about = {.arch = device.arch};
  if (!cuda_target(NULL, &about, device.arch < 80 ? MATH_FP32 : MATH_TF32, fixture->arena, fixture->diag, &target))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  const NvrtcOptions options = {.arch = target.isa, .threads = 1};
  Code *images;
  if (!nvrtc_compile(&plan, &program, &options, fixture->arena, fixture->diag, &images))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  const CudaDriver *driver = device.driver;
  CuModule module;
  CuFunction function;
  CuPointer to, from;
  const size_t bytes = (size_t)count * sizeof(float);
  assert_int_equal(driver->module_load(&module, images[0].data, 0, NULL, NULL), CU_SUCCESS);
  assert_int_equal(driver->module_function(&function, module, "k"), CU_SUCCESS);
  assert_int_equal(driver->memory_allocate(&to, bytes), CU_SUCCESS);
  assert_int_equal(driver->memory_allocate(&from, INPUTS * sizeof(float)), CU_SUCCESS);
  assert_int_equal(driver->copy_to_device(from, inputs, INPUTS * sizeof(float), device.stream), CU_SUCCESS);
  void *arguments[] = {&to, &from, &count};
  assert_int_equal(driver->launch(function, 1, 1, 1, LANES, 1, 1, 1024, device.stream, arguments, NULL), CU_SUCCESS);
  assert_int_equal(driver->copy_to_host(out, to, bytes, device.stream), CU_SUCCESS);
  CuResult result = driver->stream_synchronize(device.stream);
  CudaMessage message;
  if (result != CU_SUCCESS) {
    cuda_message(driver, result, &message, "%s", body);
    fail_msg("%s", message.text);
  }
  driver->memory_free(to);
  driver->memory_free(from);
  driver->module_unload(module);
}

/* Numbers that are hard to round, with both signs, zeros, infinities, NaN, halves and subnormals of the small types. */
static void fill_inputs(float *inputs) {
  static const float special[] = {0,        -0.0f,          INFINITY,      -INFINITY,   NAN,     1,      -1,
                                  65504,    65519,          65520,         -65520,      1e-7f,   -1e-7f, 6.1e-5f,
                                  5.96e-8f, 2.98e-8f,       1.00390625f,   1.01171875f, 3.4e38f, 1e-38f, 2048.5f,
                                  2049,     1.00048828125f, 1.00146484375f};
  uint32_t state = 12345;
  for (int i = 0; i < INPUTS; i++) {
    state = state * 1664525 + 1013904223;
    inputs[i] = (size_t)i < sizeof special / sizeof *special
                    ? special[i]
                    : ((float)(state >> 8) * 0x1p-23f - 1) * (float)(1 << i % 12);
  }
}

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* Equal bits, or both NaN. */
static void check_bits(const char *what, const float *got, const float *expected, int count) {
  for (int i = 0; i < count; i++)
    if (bits_of(got[i]) != bits_of(expected[i]) && !(isnan(got[i]) && isnan(expected[i])))
      fail_msg("%s: [%d] is %g (%08x), expected %g (%08x)", what, i, got[i], bits_of(got[i]), expected[i],
               bits_of(expected[i]));
}

typedef float Expected(float value);

static float expect_bf16(float value) { return (float)bfloat_to_double(bfloat_from_double(value)); }
static float expect_f16(float value) { return (float)half_to_double(half_from_double(value)); }
/* To 10 bits behind the point, ties away from zero. */
static float expect_tf32(float value) {
  if (!isfinite(value)) return value;
  uint32_t bits = (bits_of(value) + 0x1000) & ~UINT32_C(0x1fff);
  memcpy(&value, &bits, sizeof value);
  return value;
}
static float expect_same(float value) { return value; }

static void test_conversions(void **state) {
  Fixture *fixture = *state;
  static const struct {
    const char *name, *expression;
    Expected *expected;
    bool tensor_cores;
  } cases[] = {
      {"f2bf", "bf2f(f2bf(v))", expect_bf16, false},
      {"f2h", "h2f(f2h(v))", expect_f16, false},
      {"to_tf32", "bits_f32(to_tf32(v))", expect_tf32, true},
      {"bits", "bits_f32(f32_bits(v))", expect_same, false},
      {"pack_bf16 low", "bf2f((u16)(pack_bf16(v, 1) & 0xffff))", expect_bf16, false},
      {"pack_bf16 high", "bf2f((u16)(pack_bf16(1, v) >> 16))", expect_bf16, false},
      {"pack_f16 low", "h2f((u16)(pack_f16(v, 1) & 0xffff))", expect_f16, false},
      {"pack_f16 high", "h2f((u16)(pack_f16(1, v) >> 16))", expect_f16, false},
  };
  float inputs[INPUTS], out[INPUTS], expected[INPUTS];
  fill_inputs(inputs);
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    if (cases[c].tensor_cores && device.arch < 80) continue;
    run(fixture,
        arena_format(fixture->arena, "  for (int i = t; i < 256; i += 32) { const float v = in[i]; out[i] = %s; }\n",
                     cases[c].expression),
        inputs, out, INPUTS);
    for (int i = 0; i < INPUTS; i++) expected[i] = cases[c].expected(inputs[i]);
    check_bits(cases[c].name, out, expected, INPUTS);
  }
}

static void test_constants_and_indices(void **state) {
  Fixture *fixture = *state;
  float inputs[INPUTS] = {0}, out[LANES * 2], expected[LANES * 2];
  run(fixture,
      "  out[t] = t == 0 ? F32_INFINITY : t == 1 ? F32_NAN : (float)t;\n"
      "  out[32 + t] = (float)(block_x() + block_y() + block_z() + grid_x());\n",
      inputs, out, LANES * 2);
  for (int t = 0; t < LANES; t++) expected[t] = (float)t, expected[LANES + t] = 1;
  expected[0] = INFINITY, expected[1] = NAN;
  check_bits("constants", out, expected, LANES * 2);
}

static void test_memory(void **state) {
  Fixture *fixture = *state;
  float inputs[INPUTS], out[INPUTS], expected[INPUTS];
  for (int i = 0; i < INPUTS; i++) inputs[i] = (float)(i * 3 + 1);
  run(fixture,
      "  float four[4];\n  float *more = (float *)dynamic;\n  u32 *count = (u32 *)(tile + 256);\n"
      "  for (int i = t; i < 64; i += 32) { load4(four, in + 4 * i); store4(out + 4 * i, four); }\n"
      "  BLOCK_SYNC();\n"
      "  if (t == 0) *count = 5;\n  BLOCK_SYNC();\n"
      "  atomic_add_u32(count, (u32)t);\n  more[t] = in[t];\n  DEVICE_FENCE();\n  BLOCK_SYNC();\n"
      "  if (t == 0) out[0] = (float)*count;\n  out[200 + t] = more[31 - t];\n",
      inputs, out, INPUTS);
  memcpy(expected, inputs, sizeof expected);
  expected[0] = 5 + 31 * 16;
  for (int t = 0; t < LANES; t++) expected[200 + t] = inputs[31 - t];
  check_bits("memory", out, expected, INPUTS);
}

/* Values that either 16 bits hold, and one that is rounded. */
static void test_packed_vectors(void **state) {
  Fixture *fixture = *state;
  float inputs[INPUTS], out[INPUTS], expected[INPUTS];
  for (int i = 0; i < INPUTS; i++) inputs[i] = (float)(i - 100) * 0.5f;
  inputs[7] = 1.0f + 0x1p-12f;
  memcpy(expected, inputs, sizeof expected);
  expected[7] = 1;
  static const char *const names[] = {"bf16", "f16"};
  for (int n = 0; n < 2; n++) {
    run(fixture,
        arena_format(
            fixture->arena,
            "  float four[4];\n  u16 *half = (u16 *)tile;\n"
            "  for (int i = t; i < %d; i += 32) { load4(four, in + 4 * i); store4_%s(half + 4 * i, four); }\n"
            "  BLOCK_SYNC();\n"
            "  for (int i = t; i < %d; i += 32) { load4_%s(four, half + 4 * i); store4(out + 4 * i, four); }\n",
            INPUTS / 4, names[n], INPUTS / 4, names[n]),
        inputs, out, INPUTS);
    check_bits(names[n], out, expected, INPUTS);
  }
}

static void test_async_copies(void **state) {
  Fixture *fixture = *state;
  static const int floats[] = {4, 2, 1};
  float inputs[INPUTS], out[LANES * 8], expected[LANES * 8];
  for (int i = 0; i < INPUTS; i++) inputs[i] = (float)i + 0.5f;
  for (int c = 0; c < 3; c++) {
    const int n = floats[c];
    run(fixture,
        arena_format(fixture->arena,
                     "  cp_async%d(&tile[t * %d], &in[t * %d], t %% 3 != 0);\n  cp_commit();\n"
                     "  cp_async%d(&tile[128 + t * %d], &in[t * %d], t %% 3 == 0);\n  cp_commit();\n"
                     "  cp_wait(1);\n  BLOCK_SYNC();\n"
                     "  for (int i = t; i < %d; i += 32) out[i] = tile[i];\n"
                     "  cp_wait(0);\n  BLOCK_SYNC();\n"
                     "  for (int i = t; i < %d; i += 32) out[%d + i] = tile[128 + i];\n",
                     4 * n, n, n, 4 * n, n, n, LANES * n, LANES * n, LANES * n),
        inputs, out, 2 * LANES * n);
    for (int i = 0; i < LANES * n; i++) {
      expected[i] = i / n % 3 != 0 ? inputs[i] : 0;
      expected[LANES * n + i] = i / n % 3 == 0 ? inputs[i] : 0;
    }
    check_bits("cp_async", out, expected, 2 * LANES * n);
  }
}

static void test_shuffles(void **state) {
  Fixture *fixture = *state;
  float inputs[INPUTS], out[LANES * 5], expected[LANES * 5];
  for (int i = 0; i < INPUTS; i++) inputs[i] = (float)(i * i);
  run(fixture,
      "  WARP_SYNC();\n"
      "  out[t] = shfl_xor_f32(in[t], 5);\n  out[32 + t] = (float)(shfl_xor_f64((double)in[t] * 1e9, 16) / 1e9);\n"
      "  out[64 + t] = (float)shfl_xor_u32((u32)t + 7u, 1);\n"
      "  out[96 + t] = (float)(shfl_xor_i64((i64)t << 40, 31) >> 40);\n  out[128 + t] = shfl_f32(in[t], 9);\n",
      inputs, out, LANES * 5);
  for (int t = 0; t < LANES; t++) {
    expected[t] = inputs[t ^ 5];
    expected[32 + t] = inputs[t ^ 16];
    expected[64 + t] = (float)((t ^ 1) + 7);
    expected[96 + t] = (float)(t ^ 31);
    expected[128 + t] = inputs[9];
  }
  check_bits("shuffles", out, expected, LANES * 5);
}

static void test_block_reductions(void **state) {
  Fixture *fixture = *state;
  float inputs[INPUTS], out[LANES * 3], expected[LANES * 3], sum = 0;
  for (int i = 0; i < INPUTS; i++) inputs[i] = (float)((i * 37) % 101 - 50);
  run(fixture,
      "  double *places = (double *)dynamic;\n  float *maxima = (float *)dynamic;\n"
      "  const double s = block_sum_f64((double)in[t], places, 32);\n  BLOCK_SYNC();\n"
      "  const float m = block_max_f32(in[t], maxima, 32);\n  BLOCK_SYNC();\n"
      "  const float nan = block_max_f32(t == 20 ? F32_NAN : in[t], maxima, 32);\n"
      "  out[t] = (float)s;\n  out[32 + t] = m;\n  out[64 + t] = nan;\n",
      inputs, out, LANES * 3);
  float largest = inputs[0];
  for (int t = 0; t < LANES; t++) {
    sum += inputs[t];
    if (inputs[t] > largest) largest = inputs[t];
  }
  for (int t = 0; t < LANES; t++) expected[t] = sum, expected[32 + t] = largest, expected[64 + t] = NAN;
  check_bits("block reductions", out, expected, LANES * 3);
}

/* --- matrix products --------------------------------------------------------------------------------- */

/* A[i][k] = (3i + 5k) mod 7 − 3 and B[k][j] = (2k + 3j) mod 5 − 2: exact in every format, and no two places alike
 * enough for a wrong fragment to go unnoticed. */
static int a_at(int i, int k) { return (3 * i + 5 * k + i * k) % 7 - 3; }
static int b_at(int k, int j) { return (2 * k + 3 * j + k * j) % 5 - 2; }

static void check_product(const char *name, const float *out, int depth) {
  float expected[128];
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) {
      int sum = 1; /* d is not zero before */
      for (int k = 0; k < depth; k++) sum += a_at(i, k) * b_at(k, j);
      expected[8 * i + j] = (float)sum;
    }
  check_bits(name, out, expected, 128);
}

#define PRODUCT_HEAD                                                                     \
  "  const int g = t / 4, q = t % 4;\n  float d[4] = {1, 1, 1, 1};\n  u32 a[4], b[2];\n" \
  "#define A(i, k) (float)((3 * (i) + 5 * (k) + (i) * (k)) % 7 - 3)\n"                   \
  "#define B(k, j) (float)((2 * (k) + 3 * (j) + (k) * (j)) % 5 - 2)\n"
#define PRODUCT_TAIL                                              \
  "  out[8 * g + 2 * q] = d[0], out[8 * g + 2 * q + 1] = d[1];\n" \
  "  out[8 * g + 64 + 2 * q] = d[2], out[8 * g + 64 + 2 * q + 1] = d[3];\n"
#define B_16(pack) \
  "  for (int i = 0; i < 2; i++) { const int k = 2 * q + 8 * i; b[i] = " pack "(B(k, g), B(k + 1, g)); }\n"
#define A_16(pack)                                                                        \
  "  for (int i = 0; i < 4; i++) { const int r = g + i % 2 * 8, k = 2 * q + i / 2 * 8;\n" \
  "    a[i] = " pack "(A(r, k), A(r, k + 1)); }\n"

static void test_products(void **state) {
  Fixture *fixture = *state;
  float inputs[INPUTS] = {0}, out[128];
  if (device.arch < 80) skip();
  run(fixture, PRODUCT_HEAD A_16("pack_bf16") B_16("pack_bf16") "  mma_bf16(d, a, b);\n" PRODUCT_TAIL, inputs, out,
      128);
  check_product("mma_bf16", out, 16);
  run(fixture, PRODUCT_HEAD A_16("pack_f16") B_16("pack_f16") "  mma_f16(d, a, b);\n" PRODUCT_TAIL, inputs, out, 128);
  check_product("mma_f16", out, 16);
  run(fixture,
      PRODUCT_HEAD
      "  for (int i = 0; i < 4; i++) a[i] = to_tf32(A(g + i % 2 * 8, q + i / 2 * 4));\n"
      "  for (int i = 0; i < 2; i++) b[i] = to_tf32(B(q + i * 4, g));\n"
      "  mma_tf32(d, a, b);\n" PRODUCT_TAIL,
      inputs, out, 128);
  check_product("mma_tf32", out, 8);
}

static void test_fragment_loads(void **state) {
  Fixture *fixture = *state;
  float inputs[INPUTS] = {0}, out[128];
  if (device.arch < 80) skip();
  run(fixture,
      PRODUCT_HEAD
      "  u16 *rows = (u16 *)tile;\n"
      "  for (int e = t; e < 256; e += 32) rows[e] = f2bf(A(e / 16, e % 16));\n  BLOCK_SYNC();\n"
      "  ldsm_x4(a, rows + t % 16 * 16 + t / 16 * 8);\n" B_16("pack_bf16") "  mma_bf16(d, a, b);\n" PRODUCT_TAIL,
      inputs, out, 128);
  check_product("ldsm_x4", out, 16);
  run(fixture,
      PRODUCT_HEAD
      "  u16 *rows = (u16 *)tile;\n  u32 both[4];\n"
      "  for (int e = t; e < 256; e += 32) rows[e] = f2bf(B(e / 16, e % 16));\n  BLOCK_SYNC();\n"
      "  ldsm_x4_trans(both, rows + t % 16 * 16 + t / 16 * 8);\n  b[0] = both[0], b[1] = both[1];\n" A_16(
          "pack_bf16") "  mma_bf16(d, a, b);\n" PRODUCT_TAIL,
      inputs, out, 128);
  check_product("ldsm_x4_trans", out, 16);
}

static void test_common_helpers(void **state) {
  Fixture *fixture = *state;
  float inputs[INPUTS], out[LANES * 6], expected[LANES * 6];
  fill_inputs(inputs);
  run(fixture,
      "  const float v = in[t], w = in[31 - t];\n"
      "  out[t] = max_f32(v, w);\n  out[32 + t] = min_f32(v, w);\n  out[64 + t] = max_or_nan(v, w);\n"
      "  out[96 + t] = (float)min_int(t, 7);\n  out[128 + t] = (float)max_int(t, 7);\n"
      "  out[160 + t] = sigmoid_f32((float)t - 16);\n",
      inputs, out, LANES * 6);
  for (int t = 0; t < LANES; t++) {
    const float v = inputs[t], w = inputs[31 - t];
    expected[t] = v > w ? v : w;
    expected[32 + t] = v < w ? v : w;
    expected[64 + t] = w > v || isnan(w) ? w : v;
    expected[96 + t] = t < 7 ? (float)t : 7;
    expected[128 + t] = t > 7 ? (float)t : 7;
    const double sigmoid = 1 / (1 + exp(16 - t));
    if (fabs((double)out[160 + t] - sigmoid) > 3e-7 * sigmoid) fail_msg("sigmoid_f32(%d) is %g", t - 16, out[160 + t]);
  }
  check_bits("common helpers", out, expected, LANES * 5);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_conversions),      fixture_test(test_constants_and_indices),
      fixture_test(test_memory),           fixture_test(test_packed_vectors),
      fixture_test(test_async_copies),     fixture_test(test_shuffles),
      fixture_test(test_block_reductions), fixture_test(test_products),
      fixture_test(test_fragment_loads),   fixture_test(test_common_helpers),
  };
  return cmocka_run_group_tests(tests, open_device, close_device);
}
