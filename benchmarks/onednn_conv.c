/* One convolution, bias and relu by oneDNN, for onednn.py, which builds it:
 *
 *     cc -O2 -o onednn_conv onednn_conv.c -ldnnl
 *
 * oneDNN chooses all layouts (format_tag::any) and, if asked for "auto", the algorithm. Filters are brought into theirs
 * once. The source comes from NCHW and the result goes back there around every run, outside of its time: so the caches
 * are left as Kiln's kernels leave them, which stand between two conversions too. For a network's input, which is given
 * in NCHW, converting the source counts.
 *
 * Files hold f32 values in order: source NCHW, filters OIHW, bias, result NCHW. Written to standard output: oneDNN's
 * version, its name for the implementation, and the median of the runs in milliseconds. Ends with 2 where oneDNN lacks
 * the algorithm for this convolution, and with 1 after any other error. */
#define _POSIX_C_SOURCE 200809L
#include <dnnl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if DNNL_VERSION_MAJOR < 2
#error "oneDNN 2 or newer is needed"
#elif DNNL_VERSION_MAJOR == 2
typedef const dnnl_memory_desc_t *Layout;
#else
typedef const_dnnl_memory_desc_t Layout;
#endif

enum {
  BATCH,
  GROUPS,
  IN_CHANNELS,
  IN_HEIGHT,
  IN_WIDTH,
  OUT_CHANNELS,
  OUT_HEIGHT,
  OUT_WIDTH,
  KERNEL_HEIGHT,
  KERNEL_WIDTH,
  STRIDE_Y,
  STRIDE_X,
  PAD_TOP,
  PAD_LEFT,
  PAD_BOTTOM,
  PAD_RIGHT,
  DILATION_Y,
  DILATION_X,
  INPUT_OF_NETWORK,
  RUNS,
  NUMBER_COUNT
};

enum {
  ALGORITHM = 1,
  SOURCE_FILE,
  WEIGHTS_FILE,
  BIAS_FILE,
  RESULT_FILE,
  FIRST_NUMBER,
  WARM_UP_MS = 50,
  EXIT_LACKING = 2
};

#define CHECK(call) check(call, #call)

static dnnl_engine_t engine;
static dnnl_stream_t stream;

static void fail(const char *what, const char *why) {
  fprintf(stderr, "onednn_conv: %s: %s\n", what, why);
  exit(1);
}

static void check(dnnl_status_t status, const char *call) {
  char why[32];
  if (status == dnnl_success) return;
  snprintf(why, sizeof why, "oneDNN's status %d", (int)status);
  fail(call, why);
}

static Layout layout_create(int rank, const dnnl_dim_t *dims, dnnl_format_tag_t tag) {
#if DNNL_VERSION_MAJOR == 2
  dnnl_memory_desc_t *layout = malloc(sizeof *layout);
  if (layout == NULL) fail("malloc", "out of memory");
  CHECK(dnnl_memory_desc_init_by_tag(layout, rank, dims, dnnl_f32, tag));
#else
  dnnl_memory_desc_t layout;
  CHECK(dnnl_memory_desc_create_with_tag(&layout, rank, dims, dnnl_f32, tag));
#endif
  return layout;
}

/* Memory that oneDNN aligns as it likes. */
static dnnl_memory_t memory_create(Layout layout) {
  dnnl_memory_t memory;
  CHECK(dnnl_memory_create(&memory, layout, engine, DNNL_MEMORY_ALLOCATE));
  return memory;
}

static void *memory_data(dnnl_memory_t memory) {
  void *data;
  CHECK(dnnl_memory_get_data_handle(memory, &data));
  return data;
}

static dnnl_memory_t memory_read(const char *path, Layout layout) {
  const size_t bytes = dnnl_memory_desc_get_size(layout);
  dnnl_memory_t memory = memory_create(layout);
  FILE *file = fopen(path, "rb");
  if (file == NULL) fail(path, "cannot be opened");
  if (fread(memory_data(memory), 1, bytes, file) != bytes || fgetc(file) != EOF) fail(path, "has another size");
  fclose(file);
  return memory;
}

static void memory_write(const char *path, dnnl_memory_t memory, Layout layout) {
  const size_t bytes = dnnl_memory_desc_get_size(layout);
  FILE *file = fopen(path, "wb");
  if (file == NULL) fail(path, "cannot be opened");
  if (fwrite(memory_data(memory), 1, bytes, file) != bytes || fclose(file) != 0) fail(path, "cannot be written");
}

/* NULL where both layouts are the same. */
static dnnl_primitive_t reorder_create(Layout from, Layout to) {
  dnnl_primitive_desc_t described;
  dnnl_primitive_t reorder;
  if (dnnl_memory_desc_equal(from, to)) return NULL;
  CHECK(dnnl_reorder_primitive_desc_create(&described, from, engine, to, engine, NULL));
  CHECK(dnnl_primitive_create(&reorder, described));
  CHECK(dnnl_primitive_desc_destroy(described));
  return reorder;
}

static void reorder_run(dnnl_primitive_t reorder, dnnl_memory_t from, dnnl_memory_t to) {
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
  if (reorder == NULL) return;
  CHECK(dnnl_primitive_execute(reorder, stream, 2, arguments));
  CHECK(dnnl_stream_wait(stream));
}

static dnnl_primitive_attr_t relu_attributes(void) {
  dnnl_primitive_attr_t attributes;
  dnnl_post_ops_t after;
  CHECK(dnnl_post_ops_create(&after));
#if DNNL_VERSION_MAJOR == 2
  CHECK(dnnl_post_ops_append_eltwise(after, 1, dnnl_eltwise_relu, 0, 0));
#else
  CHECK(dnnl_post_ops_append_eltwise(after, dnnl_eltwise_relu, 0, 0));
#endif
  CHECK(dnnl_primitive_attr_create(&attributes));
  CHECK(dnnl_primitive_attr_set_post_ops(attributes, after));
  CHECK(dnnl_post_ops_destroy(after));
  return attributes;
}

typedef struct Shape {
  int weights_rank;
  dnnl_dims_t source, weights, bias, result;
} Shape;

static Shape shape_of(const dnnl_dim_t *n) {
  Shape shape = {.source = {n[BATCH], n[IN_CHANNELS], n[IN_HEIGHT], n[IN_WIDTH]},
                 .bias = {n[OUT_CHANNELS]},
                 .result = {n[BATCH], n[OUT_CHANNELS], n[OUT_HEIGHT], n[OUT_WIDTH]}};
  dnnl_dim_t *weights = shape.weights;
  if (n[GROUPS] > 1) *weights++ = n[GROUPS];
  *weights++ = n[OUT_CHANNELS] / n[GROUPS];
  *weights++ = n[IN_CHANNELS] / n[GROUPS];
  *weights++ = n[KERNEL_HEIGHT];
  *weights++ = n[KERNEL_WIDTH];
  shape.weights_rank = (int)(weights - shape.weights);
  return shape;
}

static dnnl_alg_kind_t algorithm_parse(const char *name) {
  if (strcmp(name, "auto") == 0) return dnnl_convolution_auto;
  if (strcmp(name, "direct") == 0) return dnnl_convolution_direct;
  if (strcmp(name, "winograd") != 0) fail(name, "auto, direct or winograd was expected");
  return dnnl_convolution_winograd;
}

static dnnl_primitive_desc_t convolution_describe(const Shape *shape, const dnnl_dim_t *n, dnnl_alg_kind_t algorithm) {
  const dnnl_dims_t strides = {n[STRIDE_Y], n[STRIDE_X]};
  const dnnl_dims_t dilates = {n[DILATION_Y] - 1, n[DILATION_X] - 1}; /* 0: taps side by side */
  const dnnl_dims_t before = {n[PAD_TOP], n[PAD_LEFT]}, after = {n[PAD_BOTTOM], n[PAD_RIGHT]};
  const dnnl_prop_kind_t kind = dnnl_forward_inference;
  dnnl_primitive_attr_t attributes = relu_attributes();
  dnnl_primitive_desc_t described;
  Layout source = layout_create(4, shape->source, dnnl_format_tag_any);
  Layout weights = layout_create(shape->weights_rank, shape->weights, dnnl_format_tag_any);
  Layout bias = layout_create(1, shape->bias, dnnl_a);
  Layout result = layout_create(4, shape->result, dnnl_format_tag_any);
#if DNNL_VERSION_MAJOR == 2
  dnnl_convolution_desc_t convolution;
  CHECK(dnnl_dilated_convolution_forward_desc_init(&convolution, kind, algorithm, source, weights, bias, result,
                                                   strides, dilates, before, after));
  const dnnl_status_t status = dnnl_primitive_desc_create(&described, &convolution, attributes, engine, NULL);
#else
  const dnnl_status_t status = dnnl_convolution_forward_primitive_desc_create(
      &described, engine, kind, algorithm, source, weights, bias, result, strides, dilates, before, after, attributes);
#endif
  if (status == dnnl_unimplemented) exit(EXIT_LACKING);
  check(status, "creating the convolution");
  CHECK(dnnl_primitive_attr_destroy(attributes));
  return described;
}

static Layout chosen_layout(dnnl_primitive_desc_t described, dnnl_query_t what) {
  Layout layout = dnnl_primitive_desc_query_md(described, what, 0);
  if (layout == NULL) fail("dnnl_primitive_desc_query_md", "no layout");
  return layout;
}

static double milliseconds_now(void) {
  struct timespec now;
  if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) fail("clock_gettime", "failed");
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

typedef struct Run {
  dnnl_primitive_t convolution, reorder_source, reorder_result; /* reorders: NULL where there is nothing to do */
  dnnl_memory_t given, source, weights, bias, result, returned; /* given and returned are NCHW */
  bool count_source;
} Run;

/* Milliseconds of what counts. */
static double run_once(const Run *run) {
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, run->source},
                                       {DNNL_ARG_WEIGHTS, run->weights},
                                       {DNNL_ARG_BIAS, run->bias},
                                       {DNNL_ARG_DST, run->result}};
  double started = milliseconds_now();
  reorder_run(run->reorder_source, run->given, run->source);
  if (!run->count_source) started = milliseconds_now();
  CHECK(dnnl_primitive_execute(run->convolution, stream, 4, arguments));
  CHECK(dnnl_stream_wait(stream));
  const double elapsed = milliseconds_now() - started;
  reorder_run(run->reorder_result, run->result, run->returned);
  return elapsed;
}

static int compare_double(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median_time(const Run *run, size_t runs) {
  double *samples = calloc(runs, sizeof *samples);
  if (samples == NULL) fail("calloc", "out of memory");
  const double warm_until = milliseconds_now() + WARM_UP_MS;
  while (milliseconds_now() < warm_until) run_once(run);
  for (size_t i = 0; i < runs; i++) samples[i] = run_once(run);
  qsort(samples, runs, sizeof *samples, compare_double);
  const double median = (samples[(runs - 1) / 2] + samples[runs / 2]) / 2;
  free(samples);
  return median;
}

static void read_numbers(char **arguments, dnnl_dim_t *numbers) {
  for (int i = 0; i < NUMBER_COUNT; i++) {
    char *end;
    numbers[i] = strtoll(arguments[i], &end, 10);
    if (end == arguments[i] || *end != '\0' || numbers[i] < 0) fail(arguments[i], "a number was expected");
  }
  if (numbers[GROUPS] < 1 || numbers[RUNS] < 1) fail("groups and runs", "must be positive");
}

int main(int count, char **arguments) {
  dnnl_dim_t numbers[NUMBER_COUNT];
  if (count != FIRST_NUMBER + NUMBER_COUNT)
    fail("arguments", "an algorithm, 4 files and 20 numbers were expected, see the source");
  read_numbers(&arguments[FIRST_NUMBER], numbers);
  CHECK(dnnl_engine_create(&engine, dnnl_cpu, 0));
  CHECK(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));

  const Shape shape = shape_of(numbers);
  dnnl_primitive_desc_t described = convolution_describe(&shape, numbers, algorithm_parse(arguments[ALGORITHM]));
  Layout given = layout_create(4, shape.source, dnnl_nchw), returned = layout_create(4, shape.result, dnnl_nchw);
  Layout filters = layout_create(shape.weights_rank, shape.weights, shape.weights_rank == 5 ? dnnl_goihw : dnnl_oihw);
  Layout source = chosen_layout(described, dnnl_query_src_md),
         weights = chosen_layout(described, dnnl_query_weights_md);
  Layout result = chosen_layout(described, dnnl_query_dst_md);

  Run run = {.reorder_source = reorder_create(given, source),
             .reorder_result = reorder_create(result, returned),
             .given = memory_read(arguments[SOURCE_FILE], given),
             .bias = memory_read(arguments[BIAS_FILE], layout_create(1, shape.bias, dnnl_a)),
             .result = memory_create(result),
             .count_source = numbers[INPUT_OF_NETWORK] != 0};
  run.source = run.reorder_source == NULL ? run.given : memory_create(source);
  run.returned = run.reorder_result == NULL ? run.result : memory_create(returned);
  dnnl_primitive_t pack = reorder_create(filters, weights);
  run.weights = memory_read(arguments[WEIGHTS_FILE], filters);
  if (pack != NULL) {
    dnnl_memory_t packed = memory_create(weights);
    reorder_run(pack, run.weights, packed);
    run.weights = packed;
  }
  CHECK(dnnl_primitive_create(&run.convolution, described));

  run_once(&run);
  memory_write(arguments[RESULT_FILE], run.returned, returned);
  const double median = median_time(&run, (size_t)numbers[RUNS]);
  const char *implementation;
  CHECK(dnnl_primitive_desc_query(described, dnnl_query_impl_info_str, 0, &implementation));
  const dnnl_version_t *version = dnnl_version();
  printf("%d.%d.%d %s %.6f\n", version->major, version->minor, version->patch, implementation, median);
  return 0;
}
