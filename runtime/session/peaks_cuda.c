/* Kernels that do nothing but multiply-adds, products of a warp, or reads, made longer until they take a few
 * milliseconds. The best of some runs counts. They go the way of all generated code: NVRTC, driver, events. */
#include "peaks_cuda.h"

#include <math.h>
#include <string.h>

#include "core/cuda_run.h"
#include "cuda/cuda.h"
#include "cuda/nvrtc.h"

enum { THREADS = 256, CHAINS = 8, REPEATS = 5, ROUNDS_MAX = 1 << 16, BLOCKS_EACH = 8 };
/* Milliseconds of a launch: as long as it has to take, and so long that one is enough. */
static const float enough = 2, slow = 50;

/* All kernels have the parameters (float *y, const float *x, int count, int rounds). */
static const char fma_text[] =
    "#include \"kiln_prelude.h\"\n#line 1 \"peaks:fma\"\n"
    "KERNEL(256) k_peak(float *y, const float *x, int count, int rounds) {\n"
    "  const float by = x[0];\n"
    "  float sums[8];\n"
    "  UNROLL\n"
    "  for (int i = 0; i < 8; i++) sums[i] = by + (float)i;\n"
    "  NO_UNROLL\n"
    "  for (int round = 0; round < rounds; round++) {\n"
    "    UNROLL\n"
    "    for (int step = 0; step < 16; step++) {\n"
    "      UNROLL\n"
    "      for (int i = 0; i < 8; i++) sums[i] = sums[i] * by + by;\n"
    "    }\n"
    "  }\n"
    "  float total = 0;\n"
    "  UNROLL\n"
    "  for (int i = 0; i < 8; i++) total += sums[i];\n"
    "  y[block_x() * 256 + thread_index()] = total;\n"
    "  (void)count;\n"
    "}\n";
enum { FMA_STEPS = 16 };

/* With the name of the instruction twice. */
static const char mma_text[] =
    "#include \"kiln_prelude.h\"\n#line 1 \"peaks:%s\"\n"
    "KERNEL(256) k_peak(float *y, const float *x, int count, int rounds) {\n"
    "  const u32 a[4] = {f32_bits(x[0]), f32_bits(x[1]), f32_bits(x[2]), f32_bits(x[3])};\n"
    "  const u32 b[2] = {f32_bits(x[4]), f32_bits(x[5])};\n"
    "  float sums[8][4];\n"
    "  UNROLL\n"
    "  for (int i = 0; i < 8; i++) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = (float)i;\n"
    "  NO_UNROLL\n"
    "  for (int round = 0; round < rounds; round++) {\n"
    "    UNROLL\n"
    "    for (int i = 0; i < 8; i++) %s(sums[i], a, b);\n"
    "  }\n"
    "  float total = 0;\n"
    "  UNROLL\n"
    "  for (int i = 0; i < 8; i++) total += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];\n"
    "  y[block_x() * 256 + thread_index()] = total;\n"
    "  (void)count;\n"
    "}\n";

/* Blocks read neighbouring parts of count * 1024 floats, and another one's in the next round, which a first-level cache
 * does not hold. */
static const char read_text[] =
    "#include \"kiln_prelude.h\"\n#line 1 \"peaks:read\"\n"
    "KERNEL(256) k_peak(float *y, const float *x, int count, int rounds) {\n"
    "  float sums[4] = {0, 0, 0, 0};\n"
    "  NO_UNROLL\n"
    "  for (int round = 0; round < rounds; round++) {\n"
    "    const i64 part = (block_x() + round) % grid_x();\n"
    "    _Pragma(\"unroll 4\")\n"
    "    for (int i = 0; i < count; i++) {\n"
    "      float values[4];\n"
    "      load4(values, x + ((part * count + i) * 256 + thread_index()) * 4);\n"
    "      UNROLL\n"
    "      for (int k = 0; k < 4; k++) sums[k] += values[k];\n"
    "    }\n"
    "  }\n"
    "  y[block_x() * 256 + thread_index()] = sums[0] + sums[1] + sums[2] + sums[3];\n"
    "}\n";

typedef enum PeakKernel { PEAK_FMA, PEAK_READ, PEAK_TF32, PEAK_BF16, PEAK_FP16, PEAK_KERNELS } PeakKernel;

typedef struct Device {
  const CudaDriver *driver;
  int32_t number;
  CudaDeviceInfo info;
  CuStream stream;
  CuEvent start, end;
  CuPointer x, y;
  CuModule modules[PEAK_KERNELS];
  CuFunction functions[PEAK_KERNELS];
  bool retained, entered;
  CudaMessage message;
} Device;

static bool worked(Device *device, CuResult result, const char *what) {
  if (result == CU_SUCCESS) return true;
  cuda_message(device->driver, result, &device->message, "the GPU's peaks: %s", what);
  return false;
}

static void device_close(void *context) {
  Device *device = context;
  const CudaDriver *driver = device->driver;
  CuContext ignored;
  if (device->entered) {
    for (int i = 0; i < PEAK_KERNELS; i++)
      if (device->modules[i] != NULL) driver->module_unload(device->modules[i]);
    if (device->x != 0) driver->memory_free(device->x);
    if (device->y != 0) driver->memory_free(device->y);
    if (device->start != NULL) driver->event_destroy(device->start);
    if (device->end != NULL) driver->event_destroy(device->end);
    if (device->stream != NULL) driver->stream_destroy(device->stream);
    driver->context_pop(&ignored);
  }
  if (device->retained) driver->context_release(device->number);
}

static int32_t block_count(const Device *device) {
  return (device->info.multiprocessors > 0 ? device->info.multiprocessors : 1) * BLOCKS_EACH;
}

static bool device_open(Device *device, int64_t bytes) {
  const CudaDriver *driver = device->driver;
  CuContext context;
  if (!worked(device, driver->context_retain(&context, device->number), "the device cannot be used")) return false;
  device->retained = true;
  if (!worked(device, driver->context_push(context), "the device cannot be used")) return false;
  device->entered = true;
  const size_t out_bytes = (size_t)block_count(device) * THREADS * sizeof(float);
  /* small numbers in every format, with bits set: zeros would draw less power */
  return worked(device, driver->stream_create(&device->stream, CU_STREAM_NON_BLOCKING), "no stream") &&
         worked(device, driver->event_create(&device->start, 0), "no event") &&
         worked(device, driver->event_create(&device->end, 0), "no event") &&
         worked(device, driver->memory_allocate(&device->x, (size_t)bytes), "no memory") &&
         worked(device, driver->memory_allocate(&device->y, out_bytes), "no memory") &&
         worked(device, driver->memory_fill(device->x, 0x3c, (size_t)bytes, device->stream),
                "memory cannot be filled") &&
         worked(device, driver->stream_synchronize(device->stream), "memory cannot be filled");
}

/* --- code -------------------------------------------------------------------------------------------- */

static bool compile(Device *device, const char *cache_dir, Arena *arena, Diag *diag) {
  static const char *const names[PEAK_KERNELS] = {[PEAK_FMA] = "fma",
                                                  [PEAK_READ] = "read",
                                                  [PEAK_TF32] = "mma_tf32",
                                                  [PEAK_BF16] = "mma_bf16",
                                                  [PEAK_FP16] = "mma_f16"};
  const size_t count = device->info.arch >= 80 ? PEAK_KERNELS : PEAK_TF32;
  CudaLaunch launch = {
      .function = "k_peak", .threads = THREADS, .work = 1, .work_per_block = 1, .grid_y = 1, .grid_z = 1};
  CudaCode codes[PEAK_KERNELS];
  uint32_t code_of[PEAK_KERNELS] = {0};
  for (size_t i = 0; i < count; i++) {
    const char *text = i == PEAK_FMA    ? fma_text
                       : i == PEAK_READ ? read_text
                                        : arena_format(arena, mma_text, names[i], names[i]);
    codes[i] = (CudaCode){.name = names[i], .text = text, .launches = &launch, .launch_count = 1};
  }
  const CudaProgramText program = {codes, count, code_of};
  PlanKernel kernel = {.name = "peaks"};
  const Plan plan = {.name = "peaks", .kernels = &kernel, .kernel_count = 1};
  const NvrtcOptions options = {
      .arch = arena_format(arena, "sm_%d", (int)device->info.arch), .threads = 0, .cache_dir = cache_dir};
  Code *images;
  if (!nvrtc_compile(&plan, &program, &options, arena, diag, &images)) return false;
  for (size_t i = 0; i < count; i++)
    if (!worked(device, device->driver->module_load(&device->modules[i], images[i].data, 0, NULL, NULL),
                "code is not accepted") ||
        !worked(device, device->driver->module_function(&device->functions[i], device->modules[i], "k_peak"),
                "a kernel is missing"))
      return false;
  return true;
}

/* --- timing ------------------------------------------------------------------------------------------ */

static bool time_once(Device *device, PeakKernel kernel, int32_t count, int32_t rounds, float *out_milliseconds) {
  const CudaDriver *driver = device->driver;
  void *parameters[] = {&device->y, &device->x, &count, &rounds};
  return worked(device, driver->event_record(device->start, device->stream), "events") &&
         worked(device,
                driver->launch(device->functions[kernel], (unsigned)block_count(device), 1, 1, THREADS, 1, 1, 0,
                               device->stream, parameters, NULL),
                "a kernel cannot be started") &&
         worked(device, driver->event_record(device->end, device->stream), "events") &&
         worked(device, driver->event_synchronize(device->end), "a kernel failed") &&
         worked(device, driver->event_elapsed(out_milliseconds, device->start, device->end), "events");
}

/* Rounds a second of all blocks together. */
static bool round_rate(Device *device, PeakKernel kernel, int32_t count, double *out_rate) {
  int32_t rounds = 1;
  float taken = 0;
  if (!time_once(device, kernel, count, rounds, &taken)) return false; /* the first launch loads the code */
  for (;;) {
    if (!time_once(device, kernel, count, rounds, &taken)) return false;
    if (taken >= enough || rounds >= ROUNDS_MAX) break;
    rounds *= 2;
  }
  float best = taken;
  for (int i = 1; i < REPEATS && best < slow; i++) {
    if (!time_once(device, kernel, count, rounds, &taken)) return false;
    best = fminf(best, taken);
  }
  *out_rate = best > 0 ? (double)rounds / (1e-3 * (double)best) : 0;
  return true;
}

/* Bytes a second at which about `bytes` are read again and again. */
static bool read_rate(Device *device, int64_t bytes, double *out_rate) {
  const int64_t step = (int64_t)block_count(device) * THREADS * 16, count = bytes / step > 0 ? bytes / step : 1;
  if (!round_rate(device, PEAK_READ, (int32_t)count, out_rate)) return false;
  *out_rate *= (double)(count * step);
  return true;
}

static bool measure(Device *device, int64_t bytes, CudaPeaks *peaks) {
  static const struct {
    MathMode math;
    PeakKernel kernel;
    double operations, products; /* of an instruction; of them for a useful one */
  } modes[] = {{MATH_TF32, PEAK_TF32, 2.0 * 16 * 8 * 8, 1},
               {MATH_3XTF32, PEAK_TF32, 2.0 * 16 * 8 * 8, 3},
               {MATH_BF16, PEAK_BF16, 2.0 * 16 * 8 * 16, 1},
               {MATH_FP16, PEAK_FP16, 2.0 * 16 * 8 * 16, 1}};
  const double threads = (double)block_count(device) * THREADS, warps = threads / 32;
  double rates[PEAK_KERNELS] = {0};
  for (int kernel = 0; kernel < PEAK_KERNELS; kernel++)
    if (kernel != PEAK_READ && device->functions[kernel] != NULL &&
        !round_rate(device, (PeakKernel)kernel, 0, &rates[kernel]))
      return false;
  peaks->fma = peaks->math[MATH_FP32] = 2.0 * CHAINS * FMA_STEPS * threads * rates[PEAK_FMA];
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
    peaks->math[modes[i].math] = modes[i].operations / modes[i].products * CHAINS * warps * rates[modes[i].kernel];
  peaks->l2_bytes = device->info.l2_bytes;
  /* a quarter of the second-level cache: each of its halves may keep a copy */
  if (peaks->l2_bytes > 0 && !read_rate(device, peaks->l2_bytes / 4, &peaks->l2)) return false;
  return read_rate(device, bytes, &peaks->memory);
}

bool cuda_peaks_measure(int32_t number, const char *cache_dir, Arena *arena, Diag *diag, CudaPeaks *out_peaks) {
  const int64_t least = (int64_t)64 << 20;
  Device *device = arena_new(arena, Device);
  device->number = number;
  device->driver = cuda_driver(&device->message);
  bool done = device->driver != NULL && cuda_device_info(number, &device->info, &device->message) == KILN_OK;
  if (done) {
    /* far more than the second-level cache holds */
    const int64_t step = (int64_t)block_count(device) * THREADS * 16, l2 = device->info.l2_bytes;
    const int64_t bytes = ((4 * l2 > least ? 4 * l2 : least) / step + 1) * step;
    *out_peaks = (CudaPeaks){.name = arena_string(arena, device->info.name)};
    const size_t before = diag_error_count(diag);
    done = device_open(device, bytes) && compile(device, cache_dir, arena, diag) && measure(device, bytes, out_peaks);
    device_close(device);
    if (!done && diag_error_count(diag) > before) return false;
  }
  if (!done) diag_error(diag, (Location){0}, "%s", device->message.text);
  return done;
}
