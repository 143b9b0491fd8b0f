/* kiln bench: how fast a model runs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "affinity.h"
#include "bench_kernels.h"
#include "bench_train.h"
#include "bench_variants.h"
#include "core/cuda_run.h"
#include "execute.h"
#include "ports.h"
#include "profile.h"
#include "session/cuda_build.h"

typedef struct BenchRequest {
  ModelOptions model;
  const char *path;
  double seconds;
  int64_t run_batch, rounds;
  bool variants, json, csv, kernels, random_weights, serve;
  const char *roofline, *profile;
  StepOptions step;
  const char *inputs;
  double learning_rate, momentum;
} BenchRequest;

typedef struct BenchState {
  kiln_context *context;
  int64_t batch;
  const void **inputs;
  void **outputs;
  const kiln_program *program;
  double compile_seconds, prepare_seconds, median;
  Text json; /* with --json: an object, but for its end */
  int64_t *kernel_samples; /* [round][step] nanoseconds */
  size_t round;
} BenchState;

int compare_double(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double quantile(const double *sorted, size_t count, double q) {
  double position = q * (double)(count - 1);
  size_t low = (size_t)position;
  double fraction = position - (double)low;
  return low + 1 < count ? sorted[low] * (1 - fraction) + sorted[low + 1] * fraction : sorted[low];
}

static double program_flops(const kiln_program *program, int64_t batch) {
  double flops = 0;
  for (uint32_t i = 0; i < program->run_step_count; i++)
    flops += program->run_steps[i].flops + (double)batch * program->run_steps[i].flops_per_batch;
  return flops;
}

static bool run_once(Tool *tool, BenchState *state, double *out_seconds) {
  kiln_error error;
  double started = seconds_now();
  if (kiln_run(state->context, state->batch, state->inputs, state->outputs, &error) != KILN_OK) {
    tool_library_error(tool, &error);
    return false;
  }
  *out_seconds = seconds_now() - started;
  return true;
}

/* A GPU is timed by its own clock, without the copies between its memory and the host's. */
enum { GPU_RUNS = 16, GPU_KERNEL_RUNS = 20 };

static bool gpu_error(Tool *tool, const CudaMessage *message) {
  diag_error(tool->diag, (Location){NULL, 0, 0}, "%s", message->text);
  return false;
}

/* Appends samples: one run of the host, or some of a GPU. */
static bool take_samples(Tool *tool, BenchState *state, double *samples, size_t *count) {
  float times[GPU_RUNS];
  CudaMessage message;
  if (state->context->cuda == NULL) return run_once(tool, state, &samples[(*count)++]);
  if (cuda_context_time(state->context->cuda, state->batch, state->inputs, state->outputs, GPU_RUNS, times, &message) !=
      KILN_OK)
    return gpu_error(tool, &message);
  for (int i = 0; i < GPU_RUNS; i++) samples[(*count)++] = 1e-3 * (double)times[i];
  return true;
}

static int kernel_observer(void *context, uint32_t step, const void *data, int64_t nanoseconds) {
  (void)data;
  BenchState *state = context;
  state->kernel_samples[state->round * state->program->run_step_count + step] = nanoseconds;
  return 0;
}

/* Seconds per kernel: the median over `rounds` stepped runs. */
static bool time_kernels(Tool *tool, BenchState *state, size_t rounds, double *out_medians) {
  size_t steps = state->program->run_step_count;
  state->kernel_samples = arena_array(tool->arena, rounds * steps + 1, int64_t);
  kiln_error error;
  for (state->round = 0; state->round < rounds; state->round++)
    if (kiln_run_steps(state->context, state->batch, state->inputs, state->outputs, kernel_observer, state, &error) !=
        KILN_OK) {
      tool_library_error(tool, &error);
      return false;
    }
  double *samples = arena_array(tool->arena, rounds, double);
  for (size_t s = 0; s < steps; s++) {
    for (size_t r = 0; r < rounds; r++) samples[r] = 1e-9 * (double)state->kernel_samples[r * steps + s];
    qsort(samples, rounds, sizeof *samples, compare_double);
    out_medians[s] = quantile(samples, rounds, 0.5);
  }
  return true;
}

static bool time_gpu_kernels(Tool *tool, BenchState *state, double *out_means) {
  CudaMessage message;
  float *times = arena_array(tool->arena, state->program->run_step_count + 1, float);
  if (cuda_context_time_steps(state->context->cuda, state->batch, state->inputs, state->outputs, GPU_KERNEL_RUNS, times,
                              &message) != KILN_OK)
    return gpu_error(tool, &message);
  for (uint32_t s = 0; s < state->program->run_step_count; s++) out_means[s] = 1e-3 * (double)times[s];
  return true;
}

/* How each run step computes: products as the generator chose, everything else in f32. A library does not tell. */
static bool step_modes(Tool *tool, const kiln_program *program, const Plan *plan, MathMode **out_modes) {
  const uint32_t steps = program->run_step_count;
  MathMode *modes = arena_array(tool->arena, steps + 1, MathMode);
  CudaProductOf *products;
  size_t count;
  *out_modes = modes;
  for (uint32_t s = 0; s < steps; s++) modes[s] = plan == NULL ? MATH_COUNT : MATH_FP32;
  if (plan == NULL) return true;
  if (!cuda_products(plan, tool->arena, tool->diag, &products, &count)) return false;
  for (size_t i = 0; i < count; i++)
    if (products[i].kernel >= plan->prepare_count)
      modes[products[i].kernel - plan->prepare_count] = products[i].product.math;
  return true;
}

static bool gpu_peaks(Tool *tool, BenchState *state, const BenchRequest *request, const Plan *plan,
                      KernelTimes *times) {
  CudaPeaks *peaks = arena_new(tool->arena, CudaPeaks);
  kiln_compile_options compile;
  MathMode *modes;
  int32_t device = 0;
  cuda_device_parse(request->model.device, &device);
  if (!compile_options(tool, &request->model, &compile) || !step_modes(tool, state->program, plan, &modes) ||
      !cuda_peaks_measure(device, compile.cache_dir, tool->arena, tool->diag, peaks))
    return false;
  times->gpu = peaks;
  times->modes = modes;
  return true;
}

static bool bench_kernels(Tool *tool, BenchState *state, const BenchRequest *request, const Plan *plan,
                          const kiln_context_options *options) {
  enum { ROUNDS = 21 };
  double *seconds = arena_array(tool->arena, (size_t)state->program->run_step_count + 1, double);
  const bool gpu = state->context->cuda != NULL;
  if (gpu ? !time_gpu_kernels(tool, state, seconds) : !time_kernels(tool, state, ROUNDS, seconds)) return false;
  Peaks peaks;
  KernelTimes times = {.program = state->program, .batch = state->batch, .seconds = seconds, .run = state->median};
  if (gpu ? !gpu_peaks(tool, state, request, plan, &times)
          : !peaks_measure(state->program->isa, options->threads, options->affinity, tool->diag, &peaks))
    return false;
  if (!gpu) times.peaks = &peaks;
  if (request->kernels && request->json) {
    text_add(&state->json, ",");
    kernel_times_json(&state->json, &times);
  } else if (request->kernels) {
    kernel_times_print(tool, &times, request->csv);
  }
  return request->roofline == NULL || kernel_times_plot(tool, &times, request->roofline);
}

/* For comparisons that interleave two programs: every line of standard input asks for `rounds` runs and is answered by
 * their median in milliseconds. */
static int serve(Tool *tool, BenchState *state, int64_t rounds) {
  double *samples = arena_array(tool->arena, (size_t)rounds + GPU_RUNS, double);
  char line[64];
  while (fgets(line, sizeof line, stdin) != NULL) {
    size_t count = 0;
    while (count < (size_t)rounds)
      if (!take_samples(tool, state, samples, &count)) return EXIT_FAILED;
    qsort(samples, count, sizeof *samples, compare_double);
    printf("%.6f\n", 1e3 * quantile(samples, count, 0.5));
    fflush(stdout);
  }
  return EXIT_OK;
}

static int measure(Tool *tool, const BenchRequest *request, BenchState *state, uint32_t threads, double build_seconds) {
  enum { SAMPLE_LIMIT = 1000000, MINIMUM = 5 };
  double elapsed = 0, first = 0;
  double warm_until = seconds_now() + fmin(0.5, request->seconds / 4);
  for (int i = 0; i < 2 || seconds_now() < warm_until; i++) {
    if (!run_once(tool, state, &elapsed)) return EXIT_FAILED;
    if (i == 0) first = elapsed;
  }
  if (request->serve) return serve(tool, state, request->rounds);
  double *samples = arena_array(tool->arena, SAMPLE_LIMIT + GPU_RUNS, double);
  size_t count = 0;
  bool progress = color_enabled(stderr) && !request->json && !request->csv;
  double started = seconds_now(), shown = started;
  while (count < SAMPLE_LIMIT && (count < MINIMUM || seconds_now() - started < request->seconds)) {
    if (!take_samples(tool, state, samples, &count)) return EXIT_FAILED;
    if (progress && seconds_now() - shown > 0.2) {
      shown = seconds_now();
      fprintf(stderr, "\r%3.0f %%  %zu runs", fmin(100, 100 * (shown - started) / request->seconds), count);
    }
  }
  if (progress) fprintf(stderr, "\r%*s\r", 40, "");
  qsort(samples, count, sizeof *samples, compare_double);
  double median = quantile(samples, count, 0.5), p10 = quantile(samples, count, 0.1),
         p90 = quantile(samples, count, 0.9);
  double flops = program_flops(state->program, state->batch);
  state->median = median;
  /* reading the description and the weights, and the passes */
  double import = build_seconds - state->compile_seconds - state->prepare_seconds;
  if (request->json) {
    text_init(&state->json, tool->arena);
    text_add(&state->json, "{\"model\":");
    text_add_json(&state->json, state->program->name);
    text_format(
        &state->json,
        ",\"isa\":\"%s\",\"batch\":%lld,\"threads\":%u,\"runs\":%zu,\"median_ms\":%.6f,\"p10_ms\":%.6f,\"p90_ms\":%.6f,"
        "\"min_ms\":%.6f,\"gflop\":%.6f,\"gflops\":%.3f,\"build_ms\":%.3f,\"import_ms\":%.3f,\"compile_ms\":%.3f,"
        "\"prepare_ms\":%.3f,\"first_run_ms\":%.3f,\"with_copies_ms\":%.6f",
        state->program->isa, (long long)state->batch, threads, count, 1e3 * median, 1e3 * p10, 1e3 * p90,
        1e3 * samples[0], 1e-9 * flops, 1e-9 * flops / median, 1e3 * build_seconds, 1e3 * import,
        1e3 * state->compile_seconds, 1e3 * state->prepare_seconds, 1e3 * first, 1e3 * elapsed);
    return EXIT_OK;
  }
  if (request->csv) {
    if (request->kernels || request->variants) return EXIT_OK; /* theirs follow */
    fputs("model,isa,batch,threads,runs,median_ms,p10_ms,p90_ms,min_ms,gflop,gflops,build_ms,first_run_ms\n", stdout);
    csv_field(stdout, state->program->name);
    printf(",%s,%lld,%u,%zu,%.6f,%.6f,%.6f,%.6f,%.6f,%.3f,%.3f,%.3f\n", state->program->isa, (long long)state->batch,
           threads, count, 1e3 * median, 1e3 * p10, 1e3 * p90, 1e3 * samples[0], 1e-9 * flops, 1e-9 * flops / median,
           1e3 * build_seconds, 1e3 * first);
    return EXIT_OK;
  }
  printf("%s  %s  batch %lld  %u thread%s  %zu runs\n", state->program->name, state->program->isa,
         (long long)state->batch, threads, threads == 1 ? "" : "s", count);
  printf("median %.3f ms   p10 %.3f   p90 %.3f   min %.3f\n", 1e3 * median, 1e3 * p10, 1e3 * p90, 1e3 * samples[0]);
  printf("%.3f GFLOP   %.1f GFLOP/s   %.1f images/s\n", 1e-9 * flops, 1e-9 * flops / median,
         (double)state->batch / median);
  printf("import %.0f ms   compile %.0f ms   prepare weights %.0f ms   first run %.1f ms\n", 1e3 * import,
         1e3 * state->compile_seconds, 1e3 * state->prepare_seconds, 1e3 * first);
  if (state->context->cuda != NULL)
    printf("with inputs and outputs in the host's memory %.3f ms   device memory %s bytes\n", 1e3 * elapsed,
           grouped(tool->arena, cuda_context_bytes(state->context->cuda)));
  return EXIT_OK;
}

static int bench_body(Tool *tool, void *context) {
  BenchRequest *request = context;
  const TrainRequest *none;
  kiln_context_options options;
  if (!step_request(tool, &request->step, NULL, &none) || !context_options(tool, &request->model, &options))
    return EXIT_FAILED;
  if (request->inputs != NULL) {
    tool_usage_error(tool, "--inputs needs --train");
    return EXIT_FAILED;
  }
  kiln_executable *executable;
  Graph *graph;
  Plan *plan;
  TensorList initial = {NULL, 0};
  if (!is_library(request->path) && request->model.weights == NULL) {
    /* speed does not depend on the values: initial weights will do */
    Graph *described;
    if (!model_open(tool, request->path, &request->model, &described)) return EXIT_FAILED;
    weights_initialise(described, 1, tool->arena, &initial);
  }
  double started = seconds_now();
  if (!executable_open(tool, request->path, &request->model, &initial, 1, &executable, &graph, &plan))
    return graph != NULL && plan == NULL && diag_error_count(tool->diag) == 0 ? EXIT_OK : EXIT_FAILED;
  double build_seconds = seconds_now() - started;
  const kiln_program *program = executable->program;
  BenchState state = {.batch = request->run_batch > 0 ? request->run_batch : program->max_batch,
                      .program = program,
                      .compile_seconds = executable->compile_seconds,
                      .prepare_seconds = executable->prepare_seconds};
  TensorList inputs;
  if (!inputs_random(tool, program->inputs, program->input_count, state.batch, 1, &inputs)) return EXIT_FAILED;
  state.inputs = arena_array(tool->arena, program->input_count + 1, const void *);
  state.outputs = arena_array(tool->arena, program->output_count + 1, void *);
  for (uint32_t i = 0; i < program->input_count; i++) state.inputs[i] = inputs.items[i].data;
  for (uint32_t i = 0; i < program->output_count; i++)
    state.outputs[i] = arena_alloc_aligned(
        tool->arena, (size_t)(program->outputs[i].bytes * (program->outputs[i].batched ? state.batch : 1)) + 1, 64);
  const uint32_t threads = options.threads;
  kiln_error error;
  if (kiln_context_create(executable, &options, &state.context, &error) != KILN_OK) {
    tool_library_error(tool, &error);
    return EXIT_FAILED;
  }
  int code = measure(tool, request, &state, threads, build_seconds);
  if (code == EXIT_OK && (request->kernels || request->roofline != NULL) &&
      !bench_kernels(tool, &state, request, plan, &options))
    code = EXIT_FAILED;
  if (code == EXIT_OK && request->variants &&
      !bench_variants(tool, graph, &request->model, request->json ? &state.json : NULL, request->csv))
    code = EXIT_FAILED;
  if (code == EXIT_OK && request->json && !request->serve) printf("%s}\n", state.json.data);
  const ProfileRun profiled = {executable, &options, state.batch, state.inputs, state.outputs};
  if (code == EXIT_OK && request->profile != NULL && !profile_write(tool, &profiled, request->profile))
    code = EXIT_FAILED;
  kiln_context_destroy(state.context);
  return code;
}

static int bench_train_body(Tool *tool, void *context) {
  const BenchRequest *request = context;
  const TrainBench bench = {.path = request->path,
                            .model = &request->model,
                            .step = &request->step,
                            .inputs = request->inputs,
                            .learning_rate = request->learning_rate,
                            .momentum = request->momentum,
                            .seconds = request->seconds,
                            .run_batch = request->run_batch,
                            .rounds = request->rounds,
                            .json = request->json,
                            .serve = request->serve};
  if (is_library(request->path)) {
    tool_usage_error(tool, "--train: expected a description, found the library %s", request->path);
    return EXIT_FAILED;
  }
  if (request->kernels) {
    tool_usage_error(tool, "--kernels: a training step is timed as a whole");
    return EXIT_FAILED;
  }
  return bench_train(tool, &bench);
}

static int bench_run(int argc, char **argv) {
  BenchRequest request = {.seconds = 2, .rounds = 5, .learning_rate = 0.01, .momentum = 0.9};
  const Option options[] = {
      WEIGHTS_OPTION(request.model){"seconds", 0, OPTION_DOUBLE, &request.seconds, "S", "time to measure (default 2)",
                                    0, 0},
      {"run-batch", 0, OPTION_INT, &request.run_batch, "N", "batch to run (default: the largest compiled for)", 1,
       65536},
      {"kernels", 0, OPTION_FLAG, &request.kernels, NULL,
       "also a table of the kernels: time, rates, and share of what the processor or GPU can do", 0, 0},
      {"variants", 0, OPTION_FLAG, &request.variants, NULL, "also every way to compute each kernel, and what the best would take",
       0, 0},
      {"json", 0, OPTION_FLAG, &request.json, NULL, "print JSON", 0, 0},
      {"csv", 0, OPTION_FLAG, &request.csv, NULL, "print comma-separated values; with --kernels those of the kernels",
       0, 0},
      {"roofline", 0, OPTION_TEXT, &request.roofline, "FILE",
       "plot the kernels under the measured peaks of the processor or GPU, PNG or SVG", 0, 0},
      {"profile", 0, OPTION_TEXT, &request.profile, "FILE",
       "write a run as a Chrome trace, a slice per kernel and thread", 0, 0},
      {"serve", 0, OPTION_FLAG, &request.serve, NULL,
       "answer each line of standard input by the median of some runs in ms", 0, 0},
      {"rounds", 0, OPTION_INT, &request.rounds, "R", "runs per line with --serve (default 5)", 1, 100000},
      {"hook", 0, OPTION_LIST, &request.model.hooks, "VALUE", "with a hook, e.g. 'layer*:activation:stats'", 0, 0},
      STEP_OPTIONS(request.step){"inputs", 0, OPTION_TEXT, &request.inputs, "FILE",
                                 "with --train: safetensors with inputs by name, e.g. image and target", 0, 0},
      {"lr", 0, OPTION_DOUBLE, &request.learning_rate, "R", "with --train: learning rate (default 0.01)", 0, 0},
      {"momentum", 0, OPTION_DOUBLE, &request.momentum, "M", "with --train: momentum or beta1 (default 0.9)", 0, 0},
      SHAPE_OPTION(request.model) COMPILE_OPTIONS(request.model) AFFINITY_OPTION(request.model){.name = NULL}};
  int code = options_parse(&verb_bench, options, argc, argv, 1, 1, &request.path);
  if (code < 0 && request.seconds < 0) {
    fprintf(stderr, "kiln bench: --seconds: expected a number of at least 0, found %g\n", request.seconds);
    return EXIT_USAGE;
  }
  return code >= 0 ? code : tool_run(request.step.train ? bench_train_body : bench_body, &request);
}

const Verb verb_bench = {
    "bench",
    "measure the speed of a model",
    "MODEL|LIBRARY.so [options]",
    "Runs a model, or with --train a training step, on random inputs after a warm-up and prints the median, the spread\n"
    "and the rate. Without --weights the model is initialised with random weights: the speed is the same. On a GPU the\n"
    "times are the device's own, inputs and outputs in its memory; the first run, which also records a graph, and one\n"
    "with copies are told apart.",
    "  kiln bench examples/resnet34.json --threads 2\n  kiln bench examples/resnet34.json --affinity 0,2\n"
    "  kiln bench examples/resnet34.json --batch 16 --kernels\n"
    "  kiln bench libresnet34.so --seconds 5 --json\n"
    "  kiln bench examples/resnet34.json --kernels --csv --roofline roofline.svg\n"
    "  kiln bench examples/simple_cnn10_bn.json --train --batch 64\n"
    "  kiln bench examples/resnet50.json --device cuda --math bf16 --batch 16 --kernels --roofline roofline.svg",
    bench_run};
