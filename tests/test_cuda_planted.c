/* Mistakes that a kernel generator could make, planted into generated CUDA text: the emulated GPU has to stop the
 * kernel, or its result has to be wrong where test_cuda_kernels looks. The text as it was generated gives the right
 * result. */
#include <math.h>

#include "base/checked.h"
#include "cuda/cuda.h"
#include "cuda/nvrtc.h"
#include "op_cases.h"
#include "run_cuda.h"
#include "stats.h"
#include "support.h"

enum { BATCH = 3, MAX_OPERANDS = 4 };

typedef struct Mistake {
  OpCase line;
  const char *what, *right, *wrong; /* every `right` in the text becomes `wrong` */
  const char *riding;               /* a graph in the place of the line: the statistics of its output ride */
} Mistake;

#define RIDING(input, op)                                   \
  "graph \"g\" {\n max_batch 3\n input %x : " input "\n" op \
  " %p = stats_partial %y {low=-4, bins=30}\n"              \
  " output y = %y\n output p = %p\n}\n"
static const char relu_riding[] = RIDING("f32[N,8,40,41]", " %y = relu %x\n");
static const char linear_riding[] = RIDING("f32[N,20]", " input %w : f32[600,20]\n %y = linear %x, %w\n");

/* The text with the mistake in it. */
static const char *plant(const char *text, const Mistake *mistake, Arena *arena) {
  Text planted;
  size_t length = strlen(mistake->right), count = 0;
  text_init(&planted, arena);
  for (const char *found; (found = strstr(text, mistake->right)); text = found + length, count++) {
    text_add_n(&planted, text, (size_t)(found - text));
    text_add(&planted, mistake->wrong);
  }
  if (count == 0) fail_msg("%s: no '%s' in the text:\n%s", mistake->what, mistake->right, text);
  text_add(&planted, text);
  return planted.data;
}

/* A device's memory for every operand and for scratch. */
typedef struct Run {
  TestProgram program;
  const CudaDriver *driver;
  CuContext context;
  CuStream stream;
  CuPointer operands[MAX_OPERANDS], scratch;
  size_t sizes[MAX_OPERANDS];
  int32_t operand_count;
} Run;

static size_t operand_bytes(const PlanTensor *tensor) {
  return (size_t)(tensor->storage.bytes * (shape_batched(&tensor->shape) ? BATCH : 1));
}

static const PlanTensor *operand_tensor(const PlanKernel *kernel, int32_t operand) {
  const int32_t reduction = operand - 1 - kernel->input_count;
  return operand == 0    ? &kernel->output
         : reduction < 0 ? &kernel->inputs[operand - 1]
                         : &kernel->reductions[reduction].output;
}

static void open_run(Run *run, const CudaCode *code) {
  CudaMessage message;
  const PlanKernel *kernel = &run->program.plan->kernels[0];
  run->driver = cuda_driver(&message);
  if (run->driver == NULL) fail_msg("%s", message.text);
  assert_int_equal(run->driver->context_retain(&run->context, 0), CU_SUCCESS);
  assert_int_equal(run->driver->context_push(run->context), CU_SUCCESS);
  assert_int_equal(run->driver->stream_create(&run->stream, CU_STREAM_NON_BLOCKING), CU_SUCCESS);
  run->operand_count = 1 + kernel->input_count + kernel->reduction_count;
  assert_true(run->operand_count <= MAX_OPERANDS);
  for (int32_t i = 0; i < run->operand_count; i++) {
    const PlanTensor *tensor = operand_tensor(kernel, i);
    run->sizes[i] = operand_bytes(tensor);
    assert_int_equal(run->driver->memory_allocate(&run->operands[i], run->sizes[i]), CU_SUCCESS);
    if (i == 0 || i > kernel->input_count) continue;
    const Tensor *value = tensor_find(&run->program.inputs, tensor->name);
    assert_non_null(value);
    run->driver->copy_to_device(run->operands[i], value->data, run->sizes[i], run->stream);
  }
  const size_t scratch = (size_t)(CUDA_COUNTER_BYTES + code->scratch + BATCH * code->scratch_per_image);
  char *zeros = arena_array(run->program.arena, scratch, char);
  assert_int_equal(run->driver->memory_allocate(&run->scratch, scratch), CU_SUCCESS);
  run->driver->copy_to_device(run->scratch, zeros, scratch, run->stream);
}

static void close_run(Run *run) {
  CuContext ignored;
  for (int32_t i = 0; i < run->operand_count; i++) run->driver->memory_free(run->operands[i]);
  run->driver->memory_free(run->scratch);
  run->driver->stream_destroy(run->stream);
  run->driver->context_pop(&ignored);
  run->driver->context_release(0);
}

/* Runs the code's launches; false when the device stops one. */
static bool launch(Run *run, const CudaCode *code, const Code *image) {
  CuModule module;
  void *arguments[MAX_OPERANDS + 2];
  int batch = BATCH;
  for (int32_t i = 0; i < run->operand_count; i++) arguments[i] = &run->operands[i];
  arguments[run->operand_count] = &run->scratch;
  arguments[run->operand_count + 1] = &batch;
  assert_int_equal(run->driver->module_load(&module, image->data, 0, NULL, NULL), CU_SUCCESS);
  CuResult result = CU_SUCCESS;
  for (size_t l = 0; l < code->launch_count && result == CU_SUCCESS; l++) {
    const CudaLaunch *each = &code->launches[l];
    const int64_t blocks = ceil_div(each->work + BATCH * each->work_per_image, each->work_per_block);
    CuFunction function;
    assert_int_equal(run->driver->module_function(&function, module, each->function), CU_SUCCESS);
    result =
        run->driver->launch(function, (unsigned)blocks, (unsigned)each->grid_y, (unsigned)each->grid_z,
                            (unsigned)each->threads, 1, 1, (unsigned)each->shared_bytes, run->stream, arguments, NULL);
  }
  if (result == CU_SUCCESS) result = run->driver->stream_synchronize(run->stream);
  run->driver->module_unload(module);
  return result == CU_SUCCESS;
}

/* What test_cuda_kernels tells apart: integers that have to be met, and numbers near enough. */
static bool is_right(const Run *run, bool exact) {
  EvalResult expected;
  TestProgram program = run->program;
  assert_true(test_program_eval(&program, program.source, &expected));
  const EvalTensor *wanted = &expected.values[program.source->outputs[0].node->id];
  const size_t count = run->sizes[0] / sizeof(float);
  float *values = arena_array(program.arena, count, float);
  double errors = 0, squares = 0;
  run->driver->copy_to_host(values, run->operands[0], run->sizes[0], run->stream);
  if (run->driver->stream_synchronize(run->stream) != CU_SUCCESS) return false;
  for (size_t i = 0; i < count; i++) {
    if (!isfinite(values[i]) || (exact && (double)values[i] != wanted->data[i])) return false;
    errors += ((double)values[i] - wanted->data[i]) * ((double)values[i] - wanted->data[i]);
    squares += wanted->data[i] * wanted->data[i];
  }
  return sqrt(errors) <= 1e-6 * sqrt(squares);
}

/* Numbers of elements, of those near zero and of those in each bin: whole ones, which rows share out as they like. */
static bool statistics_are_right(const Run *run) {
  const TestProgram *program = &run->program;
  const PlanKernel *kernel = &program->plan->kernels[0];
  const int64_t *dims = kernel->reductions[0].output.shape.dims, fields = dims[2];
  const size_t rows = (size_t)(BATCH * dims[1]), bytes = rows * (size_t)fields * sizeof(float);
  float *values = arena_array(program->arena, bytes / sizeof(float), float);
  EvalResult expected;
  TestProgram source = *program;
  run->driver->copy_to_host(values, run->operands[1 + kernel->input_count], bytes, run->stream);
  if (run->driver->stream_synchronize(run->stream) != CU_SUCCESS) return false;
  assert_true(test_program_eval(&source, source.source, &expected));
  const EvalTensor *wanted = &expected.values[source.source->outputs[1].node->id];
  const int64_t wanted_rows = wanted->shape.dims[0] * wanted->shape.dims[1];
  for (int64_t k = 0; k < fields; k++) {
    double found = 0, sum = 0;
    if (k == STATS_MEAN || k == STATS_MEAN_REST || k == STATS_M2) continue;
    for (size_t row = 0; row < rows; row++) found += (double)values[row * (size_t)fields + (size_t)k];
    for (int64_t row = 0; row < wanted_rows; row++) sum += wanted->data[row * fields + k];
    if (found != sum) return false;
  }
  return true;
}

static bool counters_are_zero(const Run *run) {
  static char counters[CUDA_COUNTER_BYTES];
  run->driver->copy_to_host(counters, run->scratch, sizeof counters, run->stream);
  if (run->driver->stream_synchronize(run->stream) != CU_SUCCESS) return false;
  for (size_t i = 0; i < sizeof counters; i++)
    if (counters[i] != 0) return false;
  return true;
}

/* Whether the kernel of the mistake's op runs and is right, with the mistake or without. */
static bool survives(const Mistake *mistake, bool planted) {
  Arena *arena = arena_create(NULL);
  Run run = {.program = {0}};
  CudaProgramText text;
  Code *images;
  Diag *diag = diag_create(arena);
  Graph *graph = NULL;
  if (mistake->riding == NULL)
    graph = op_case_graph(&mistake->line, BATCH, arena, diag);
  else if (!graph_parse("riding", mistake->riding, strlen(mistake->riding), arena, diag, &graph))
    graph = NULL;
  if (graph == NULL) fail_msg("%s", diag_text(diag, arena));
  assert_true(test_program_init(&run.program, arena, graph));
  assert_true(test_cuda_compile(&run.program, "sm_90", MATH_FP32, NULL, PRECISION_STRICT));
  assert_int_equal(run.program.plan->kernel_count, 1);
  op_case_fill(graph, BATCH, OP_CASE_INTEGERS, 7, arena, &run.program.inputs, &run.program.parameters);
  assert_true(cuda_generate(run.program.plan, arena, diag, &text));
  if (planted) text.codes[0].text = plant(text.codes[0].text, mistake, arena);
  const NvrtcOptions options = {.arch = "sm_90", .threads = 1};
  if (!nvrtc_compile(run.program.plan, &text, &options, arena, diag, &images)) fail_msg("%s", diag_text(diag, arena));
  open_run(&run, &text.codes[0]);
  bool right = launch(&run, &text.codes[0], &images[0]) && is_right(&run, mistake->line.exact);
  if (mistake->riding != NULL) right = right && statistics_are_right(&run) && counters_are_zero(&run);
  close_run(&run);
  arena_destroy(arena);
  return right;
}

static void test_mistakes(void **state) {
  static const Mistake mistakes[] = {
      {{"sum", "x:f32[N,40,140]", "dims=[0,1]", true}, "no barrier before sums are shared", "  BLOCK_SYNC();\n", ""},
      {{"permute", "x:f32[N,20,37]", "dims=[0,2,1]", true}, "no barrier in a transpose", "  BLOCK_SYNC();\n", ""},
      {{"permute", "x:f32[N,20,37]", "dims=[0,2,1]", true}, "rows of a square overlap", "tile[32][33]", "tile[32][31]"},
      {{"permute", "x:f32[N,20,37]", "dims=[0,2,1]", true}, "a bound too far", " >= 37", " > 37"},
      {{"neg", "x:f32[N,5,7]", "", true}, "an element too many", "if (item >= ", "if (item > "},
      {{"max_pool2d", "x:f32[N,6,14,13]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1]", true},
       "a column too many",
       "column >= 13",
       "column > 13"},
      {{"max_pool2d", "x:f32[N,6,14,13]", "kernel=[3,3], stride=[2,2], padding=[1,1,1,1]", true},
       "columns before the first",
       "column < 0 || ",
       ""},
      {{"sum", "x:f32[N,3,70,61]", "dims=[0,2,3]", true},
       "the last block but one adds up",
       "part_count, &last",
       "part_count - 1, &last"},
      {{"sum", "x:f32[N,3,70,61]", "dims=[0,2,3]", true}, "parts that overlap", "? begin + 2048", "? begin + 2049"},
      {{"softmax", "x:f32[N,1000]", "", false},
       "a line that is cut short",
       "k < 1000; k += 128) sum",
       "k < 999; k += 128) sum"},
      {.what = "no barrier before values are counted",
       .right = "  BLOCK_SYNC();\n",
       .wrong = "",
       .riding = relu_riding},
      {.what = "the last block of a run but one adds up",
       .right = "ride_blocks, ride_last",
       .wrong = "ride_blocks - 1, ride_last",
       .riding = relu_riding},
      {.what = "the last run is taken to be as long as the others",
       .right = "min_int(ride_length, ride_all - ride_run * ride_length)",
       .wrong = "ride_length",
       .riding = relu_riding},
      {.what = "rows without a block are left as they are",
       .right = "row = ride_run + ride_runs",
       .wrong = "row = ride_rows",
       .riding = relu_riding},
      {.what = "a run waits for blocks that there are not",
       .right = "ride_all = tiles_m",
       .wrong = "ride_all = 1 + tiles_m",
       .riding = linear_riding},
  };
  (void)state;
  for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
    if (!survives(&mistakes[i], false)) fail_msg("%s: wrong before anything was planted", mistakes[i].what);
    if (survives(&mistakes[i], true)) fail_msg("%s: not noticed", mistakes[i].what);
  }
}

int main(void) {
  test_cuda_open();
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_mistakes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
