/* Matrix products of the CUDA code generator on the emulated device, against the interpreter: every numeric mode within
 * its bound, every tile with and without splits, both orders of lanes; and that mistakes planted in the text are seen.
 */
#include <math.h>

#include "cuda/gemm.h"
#include "emulated_kernel.h"
#include "op_cases.h"
#include "support.h"

typedef struct GemmCase {
  const char *name, *text; /* the graph without its head: see graph_text */
  bool plain;              /* also with everything plain */
} GemmCase;

static const GemmCase cases[] = {
    {"1x1",
     "input %x : f32[N,16,7,7]\n parameter %w : f32[40,16,1,1] {init=weight}\n parameter %b : f32[40] {init=bias}\n"
     " %y = conv2d %x, %w, %b epilogue [relu]",
     true},
    {"1x1 s2",
     "input %x : f32[N,32,9,7]\n parameter %w : f32[24,32,1,1] {init=weight}\n %y = conv2d %x, %w {stride=[2,2]}",
     false},
    {"3x3 residual",
     "input %x : f32[N,30,7,7]\n input %r : f32[N,10,7,7]\n parameter %w : f32[10,30,3,3] {init=weight}\n"
     " parameter %b : f32[10] {init=bias}\n %y = conv2d %x, %w, %b {padding=[1,1,1,1]} epilogue [add %r, relu]",
     true},
    {"3x3 s2, wide",
     "input %x : f32[N,36,8,9]\n input %r : f32[1,100,1,1]\n parameter %w : f32[100,36,3,3] {init=weight}\n"
     " %y = conv2d %x, %w {stride=[2,2], padding=[1,1,1,1]} epilogue [mul %r]",
     false},
    {"5x5",
     "input %x : f32[N,6,9,8]\n parameter %w : f32[20,6,5,5] {init=weight}\n %y = conv2d %x, %w {padding=[2,2,2,2]}",
     false},
    {"stem",
     "input %x : f32[N,3,23,21]\n parameter %w : f32[16,3,7,7] {init=weight}\n parameter %b : f32[16] {init=bias}\n"
     " %y = conv2d %x, %w, %b {stride=[2,2], padding=[3,3,3,3]} epilogue [relu]",
     true},
    {"one channel",
     "input %x : f32[N,1,12,12]\n parameter %w : f32[8,1,5,5] {init=weight}\n"
     " %y = conv2d %x, %w {stride=[2,2], padding=[2,2,2,2]}",
     false},
    {"dilation, uneven",
     "input %x : f32[N,8,11,9]\n parameter %w : f32[12,8,3,2] {init=weight}\n"
     " %y = conv2d %x, %w {dilation=[2,3], padding=[2,0,1,3]} epilogue [leaky_relu]",
     false},
    {"groups",
     "input %x : f32[N,48,5,6]\n parameter %w : f32[24,16,3,3] {init=weight}\n parameter %b : f32[24] {init=bias}\n"
     " %y = conv2d %x, %w, %b {groups=3, padding=[1,1,1,1]}",
     true},
    {"few channels of a group",
     "input %x : f32[N,12,9,10]\n parameter %w : f32[18,4,3,3] {init=weight}\n"
     " %y = conv2d %x, %w {groups=3, padding=[1,1,1,1]}",
     false},
    {"depthwise",
     "input %x : f32[N,20,7,9]\n parameter %w : f32[20,1,3,3] {init=weight}\n parameter %b : f32[20] {init=bias}\n"
     " %y = conv2d %x, %w, %b {groups=20, stride=[2,1], padding=[1,1,1,1]} epilogue [relu]",
     true},
    {"reflected",
     "input %x : f32[N,8,7,5]\n parameter %w : f32[5,8,3,3] {init=weight}\n"
     " %y = conv2d %x, %w {padding_mode=reflect, padding=[1,1,1,1]}",
     false},
    {"deep",
     "input %x : f32[N,64,4,4]\n parameter %w : f32[32,64,3,3] {init=weight}\n %y = conv2d %x, %w {padding=[1,1,1,1]}",
     false},
    {"transposed s2",
     "input %x : f32[N,12,5,6]\n parameter %w : f32[12,8,3,3] {init=weight}\n parameter %b : f32[8] {init=bias}\n"
     " %y = conv_transpose2d %x, %w, %b {stride=[2,2], padding=[1,1,1,1], output_padding=[1,0]} epilogue [relu]",
     true},
    {"transposed with gaps",
     "input %x : f32[N,8,4,5]\n parameter %w : f32[8,9,1,1] {init=weight}\n"
     " %y = conv_transpose2d %x, %w {stride=[2,2]} epilogue [relu]",
     false},
    {"transposed, large stride",
     "input %x : f32[N,4,3,4]\n parameter %w : f32[4,3,4,7] {init=weight}\n"
     " %y = conv_transpose2d %x, %w {stride=[5,6], dilation=[1,2]}",
     false},
    {"transposed groups",
     "input %x : f32[N,16,4,6]\n parameter %w : f32[16,8,3,3] {init=weight}\n"
     " %y = conv_transpose2d %x, %w {groups=2, dilation=[2,1], padding=[1,2,0,1]}",
     false},
    {"filter gradient",
     "input %x : f32[N,12,8,9]\n input %d : f32[N,20,4,5]\n"
     " %y = conv2d_grad_weight %x, %d {kernel=[3,3], stride=[2,2], padding=[1,1,1,1]}",
     true},
    {"filter gradient of groups",
     "input %x : f32[N,8,6,6]\n input %d : f32[N,6,6,6]\n"
     " %y = conv2d_grad_weight %x, %d {kernel=[3,3], groups=2, padding=[1,1,1,1]}",
     false},
    {"filter gradient, depthwise",
     "input %x : f32[N,40,9,11]\n input %d : f32[N,40,5,11]\n"
     " %y = conv2d_grad_weight %x, %d {kernel=[3,3], groups=40, stride=[2,1], padding=[1,1,1,1]} epilogue [leaky_relu]",
     true},
    {"filter gradient, depth multiplier",
     "input %x : f32[N,6,23,30]\n input %d : f32[N,12,23,30]\n"
     " %y = conv2d_grad_weight %x, %d {kernel=[3,5], groups=6, padding=[1,2,1,2]}",
     false},
    {"linear",
     "input %x : f32[N,130]\n parameter %w : f32[10,130] {init=weight}\n parameter %b : f32[10] {init=bias}\n"
     " %y = linear %x, %w, %b epilogue [relu]",
     false},
    {"linear of many rows", "input %x : f32[N,21,64]\n parameter %w : f32[36,64] {init=weight}\n %y = linear %x, %w",
     false},
    {"linear gradient", "input %x : f32[N,5,36]\n input %d : f32[N,5,17]\n %y = linear_grad_weight %x, %d", false},
    {"matmul", "input %a : f32[N,3,5,7]\n input %b : f32[N,1,7,10]\n %y = matmul %a, %b", false},
    {"matmul transposed", "input %a : f32[N,37]\n input %b : f32[9,37]\n %y = matmul %a, %b {transpose=true}", false},
};
/* Operands and results in 16 bits, some beside others that stay f32. */
static const GemmCase packed_cases[] = {
    {"packed 1x1",
     "input %x : f32[N,16,7,7]\n parameter %w : f32[40,16,1,1] {init=weight}\n parameter %b : f32[40] {init=bias}\n"
     " %y = conv2d %x, %w, %b epilogue [relu]",
     false},
    {"packed 3x3 residual",
     "input %x : f32[N,40,7,7]\n input %r : f32[N,24,7,7]\n parameter %w : f32[24,40,3,3] {init=weight}\n"
     " parameter %b : f32[24] {init=bias}\n %y = conv2d %x, %w, %b {padding=[1,1,1,1]} epilogue [add %r, relu]",
     false},
    {"packed 3x3 s2 to f32",
     "input %x : f32[N,72,8,9]\n input %r : f32[1,100,1,1]\n parameter %w : f32[100,72,3,3] {init=weight}\n"
     " %y = conv2d %x, %w {stride=[2,2], padding=[1,1,1,1]} epilogue [mul %r]",
     false},
    {"packed groups",
     "input %x : f32[N,48,5,6]\n parameter %w : f32[24,16,3,3] {init=weight}\n parameter %b : f32[24] {init=bias}\n"
     " %y = conv2d %x, %w, %b {groups=3, padding=[1,1,1,1]}",
     false},
    {"packed depthwise",
     "input %x : f32[N,24,7,9]\n parameter %w : f32[24,1,3,3] {init=weight}\n parameter %b : f32[24] {init=bias}\n"
     " %y = conv2d %x, %w, %b {groups=24, stride=[2,1], padding=[1,1,1,1]} epilogue [relu]",
     false},
    {"packed groups of few filters",
     "input %x : f32[N,16,5,6]\n parameter %w : f32[8,8,3,3] {init=weight}\n"
     " %y = conv2d %x, %w {groups=2, padding=[1,1,1,1]}",
     false},
    {"stem to packed",
     "input %x : f32[N,3,23,21]\n parameter %w : f32[16,3,7,7] {init=weight}\n parameter %b : f32[16] {init=bias}\n"
     " %y = conv2d %x, %w, %b {stride=[2,2], padding=[3,3,3,3]} epilogue [relu]",
     false},
    {"packed deep, reflected",
     "input %x : f32[N,64,4,4]\n parameter %w : f32[32,64,3,3] {init=weight}\n"
     " %y = conv2d %x, %w {padding_mode=reflect, padding=[1,1,1,1]}",
     false},
};
enum { PACKED_COUNT = sizeof packed_cases / sizeof *packed_cases };

enum { CASE_COUNT = sizeof cases / sizeof *cases, MAX_BATCH = 3 };

static const char *graph_text(const char *body, Arena *arena) {
  return arena_format(arena, "graph \"g\" {\n max_batch %d\n %s\n output y = %%y\n}\n", MAX_BATCH, body);
}

/* m, n and k are no multiples of any tile. */
static const char packed_tile_text[] =
    "input %x : f32[N,24,9,9]\n input %r : f32[N,40,9,9]\n parameter %w : f32[40,24,3,3] {init=weight}\n"
    " parameter %b : f32[40] {init=bias}\n %y = conv2d %x, %w, %b {padding=[1,1,1,1]} epilogue [add %r, relu]";
static const char *const tile_texts[] = {
    "input %x : f32[N,20,9,9]\n input %r : f32[N,44,9,9]\n parameter %w : f32[44,20,3,3] {init=weight}\n"
    " parameter %b : f32[44] {init=bias}\n %y = conv2d %x, %w, %b {padding=[1,1,1,1]} epilogue [add %r, relu]",
    "input %x : f32[N,12,9,9]\n input %d : f32[N,36,9,9]\n %y = conv2d_grad_weight %x, %d {kernel=[3,3], "
    "padding=[1,1,1,1]}",
};

/* --- bounds ------------------------------------------------------------------------------------------ */

/* Of |error| / Σ|a||b|. u is half a unit in the last place of f32, and 8 u what sums in f32 may add (README,
 * precision); each operand is rounded once, to 11 bits of tf32 and fp16 or 8 of bf16. 3xtf32 leaves out the product of
 * the two rests, each at most 2^-11 of its operand, and rounds both. */
static double mode_bound(MathMode math) {
  const double u = 0x1p-24, sums = 8 * u;
  switch (math) {
    case MATH_FP32:
      return sums;
    case MATH_3XTF32:
      return sums + 3 * 0x1p-22;
    case MATH_BF16:
      return sums + 2.01 * 0x1p-9;
    default:
      return sums + 2.01 * 0x1p-12 * 2;
  }
}

/* Of values in 16 bits: operands of the epilogue and the result are rounded once more each. */
static double packed_bound(MathMode math) {
  return mode_bound(math) + (math == MATH_BF16 ? 2.01 * 0x1p-9 : 2.01 * 0x1p-12);
}

static DataType packed_element(MathMode math) { return math == MATH_BF16 ? DTYPE_BF16 : DTYPE_F16; }

/* And at least this much, somewhere in many values: or the mode is not what it says. */
static double mode_least(MathMode math) {
  return math == MATH_BF16 ? 0x1p-14 : math == MATH_TF32 || math == MATH_FP16 ? 0x1p-17 : 0;
}

typedef struct Operands {
  TensorList graph_inputs, parameters, all;
} Operands;

static Operands make_operands(const Graph *graph, int64_t batch, Arena *arena) {
  Operands operands;
  op_case_fill(graph, batch, OP_CASE_FLOATS, 5, arena, &operands.graph_inputs, &operands.parameters);
  const size_t inputs = operands.graph_inputs.count, parameters = operands.parameters.count;
  operands.all = (TensorList){arena_array(arena, inputs + parameters, Tensor), inputs + parameters};
  for (size_t i = 0; i < inputs + parameters; i++)
    operands.all.items[i] = i < inputs ? operands.graph_inputs.items[i] : operands.parameters.items[i - inputs];
  return operands;
}

static void make_absolute(const Operands *operands) {
  for (size_t i = 0; i < operands->all.count; i++) {
    Tensor *tensor = &operands->all.items[i];
    for (int64_t k = 0; k < tensor_elements(tensor); k++) tensor_set(tensor, k, fabs(tensor_get(tensor, k)));
  }
}

static int64_t element_count(const EvalTensor *tensor) {
  int64_t count = 1;
  for (int32_t d = 0; d < tensor->shape.rank; d++) count *= tensor->shape.dims[d];
  return count;
}

/* Largest |found − expected| / Σ|a||b|; infinite for NaN. Where nothing is summed, found must be exact. */
static double worst_error(const float *found, const EvalTensor *expected, const EvalTensor *magnitude) {
  double most = 0;
  for (int64_t i = 0; i < element_count(expected); i++) {
    const double error = fabs((double)found[i] - expected->data[i]);
    const double ratio = magnitude->data[i] > 0 ? error / magnitude->data[i] : error > 0 ? INFINITY : error;
    if (!(ratio <= most)) most = isnan(ratio) ? INFINITY : ratio;
  }
  return most;
}

/* Runs the kernel as generated and returns its worst error; fails where lanes in reverse give other bits. */
static double run_checked(EmulatedKernel *kernel, const char *name, int64_t batch) {
  Arena *arena = kernel->arena;
  const Operands operands = make_operands(kernel->graph, batch, arena);
  float *forward, *reverse;
  const char *failure = emulated_run(kernel, NULL, &operands.all, batch, &forward, &reverse);
  if (failure != NULL) fail_msg("%s: %s", name, failure);
  EvalResult expected, magnitude;
  assert_true(graph_eval(kernel->graph, &operands.graph_inputs, &operands.parameters, arena, kernel->diag, &expected));
  make_absolute(&operands);
  assert_true(graph_eval(kernel->graph, &operands.graph_inputs, &operands.parameters, arena, kernel->diag, &magnitude));
  const EvalTensor *values = &expected.values[kernel->node->id];
  if (memcmp(forward, reverse, (size_t)element_count(values) * sizeof *forward) != 0)
    fail_msg("%s: the order of lanes changes the result", name);
  return worst_error(forward, values, &magnitude.values[kernel->node->id]);
}

static double run_case(Fixture *fixture, const GemmCase *test, bool last, const char *arch, MathMode math,
                       int64_t batch) {
  EmulatedKernel *kernel = emulated_kernel(fixture->arena, graph_text(test->text, fixture->arena), last, 4, arch, math);
  assert_non_null(kernel);
  assert_true(emulated_generate(kernel));
  const double error = run_checked(kernel, test->name, batch);
  if (error > mode_bound(math))
    fail_msg("%s in %s, %s: error %g, bound %g", test->name, math_mode_name(math), last ? "channels last" : "plain",
             error, mode_bound(math));
  arena_reset(fixture->arena);
  return error;
}

/* --- modes ------------------------------------------------------------------------------------------- */

static void check_mode(Fixture *fixture, MathMode math, size_t step) {
  double most = 0;
  for (size_t i = 0; i < CASE_COUNT; i += step) {
    const double error = run_case(fixture, &cases[i], true, "sm_90a", math, i % 2 == 0 ? MAX_BATCH : 1);
    most = error > most ? error : most;
  }
  if (most < mode_least(math)) fail_msg("%s: an error of %g is too small to be true", math_mode_name(math), most);
}

static void test_fp32(void **state) { check_mode(*state, MATH_FP32, 1); }
static void test_3xtf32(void **state) { check_mode(*state, MATH_3XTF32, 1); }
static void test_tf32(void **state) { check_mode(*state, MATH_TF32, 3); }
static void test_bf16(void **state) { check_mode(*state, MATH_BF16, 3); }
static void test_fp16(void **state) { check_mode(*state, MATH_FP16, 4); }

static void test_packed(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < PACKED_COUNT; i++) {
    const GemmCase *test = &packed_cases[i];
    const MathMode math = i % 2 == 0 ? MATH_BF16 : MATH_FP16;
    EmulatedKernel *kernel =
        emulated_kernel(fixture->arena, graph_text(test->text, fixture->arena), true, 8, "sm_90a", math);
    assert_non_null(kernel);
    emulated_pack(kernel, packed_element(math));
    assert_true(emulated_generate(kernel));
    const double error = run_checked(kernel, test->name, i % 3 == 0 ? MAX_BATCH : 1);
    if (error > packed_bound(math)) fail_msg("%s: error %g, bound %g", test->name, error, packed_bound(math));
    arena_reset(fixture->arena);
  }
}

static void test_plain_layouts(void **state) {
  for (size_t i = 0; i < CASE_COUNT; i++)
    if (cases[i].plain) run_case(*state, &cases[i], false, "sm_80", i % 2 == 0 ? MATH_3XTF32 : MATH_FP32, 2);
}

/* Parts of larger values begin anywhere: copies and stores of 16 bytes must not be taken for granted. */
static void test_views(void **state) {
  Fixture *fixture = *state;
  static const int64_t deltas[] = {4, 8, 12};
  for (int64_t shift = 0; shift < 3; shift++) {
    EmulatedKernel *kernel =
        emulated_kernel(fixture->arena, graph_text(tile_texts[0], fixture->arena), true, 4, "sm_90", MATH_3XTF32);
    assert_non_null(kernel);
    kernel->kernel->output.storage.delta = deltas[shift];
    for (int32_t i = 0; i < kernel->kernel->input_count; i++)
      kernel->kernel->inputs[i].storage.delta = deltas[(shift + i) % 3];
    assert_true(emulated_generate(kernel));
    const double error = run_checked(kernel, "views", 2);
    if (error > mode_bound(MATH_3XTF32)) fail_msg("views: error %g", error);
    arena_reset(fixture->arena);
  }
}

/* Without copies in the background and without tensor cores. */
static void test_old_devices(void **state) {
  run_case(*state, &cases[2], true, "sm_75", MATH_FP32, 2);
  run_case(*state, &cases[13], true, "sm_70", MATH_FP32, 2);
}

/* --- tiles ------------------------------------------------------------------------------------------- */

/* `stages`: how many are asked for; 0: as modelled. */
static void check_tile(Fixture *fixture, const char *text, MathMode math, const GemmTile *tile, int32_t splits,
                       int32_t stages) {
  Arena *arena = fixture->arena;
  const bool packed = text == packed_tile_text;
  EmulatedKernel *kernel = emulated_kernel(arena, graph_text(text, arena), true, 4, "sm_80", math);
  assert_non_null(kernel);
  if (packed) emulated_pack(kernel, packed_element(math));
  GemmProblem problem;
  GemmChoice choice;
  assert_true(gemm_problem(kernel->kernel, &problem));
  PlanKernel asking = *kernel->kernel;
  asking.choice.channel_chunk = stages;
  problem.kernel = &asking;
  if (!gemm_choose_tile(&problem, &kernel->target, MAX_BATCH, tile, splits, &choice)) return;
  if (stages > 0) assert_int_equal(choice.tile.stages, stages);
  emulated_begin(kernel);
  assert_true(gemm_emit_choice(&kernel->emit, &problem, &choice));
  const char *name =
      arena_format(arena, "tile %dx%d in %s, %d splits", (int)tile->m, (int)tile->n, math_mode_name(math), (int)splits);
  const double error = run_checked(kernel, name, 2), bound = packed ? packed_bound(math) : mode_bound(math);
  if (error > bound) fail_msg("%s: error %g, bound %g", name, error, bound);
  arena_reset(arena);
}

static void test_tiles(void **state) {
  static const MathMode modes[] = {MATH_FP32, MATH_3XTF32, MATH_BF16};
  for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
    size_t count;
    const GemmTile *tiles = gemm_tiles(modes[m], &count);
    for (size_t i = 0; i < count; i++) {
      const char *text = modes[m] == MATH_BF16 && i > 1 ? packed_tile_text : tile_texts[(i + m) % 2];
      check_tile(*state, text, modes[m], &tiles[i], i % 2 == 0 ? 1 : 3, 0);
    }
  }
}

/* More parts than tiles of k: the last ones are empty. */
static void test_empty_splits(void **state) {
  size_t count;
  const GemmTile *tiles = gemm_tiles(MATH_TF32, &count);
  check_tile(*state, tile_texts[0], MATH_3XTF32, &tiles[3], 16, 0);
}

static void test_stages(void **state) {
  size_t count;
  const GemmTile *tiles = gemm_tiles(MATH_TF32, &count);
  for (int32_t stages = 2; stages <= 4; stages++) check_tile(*state, tile_texts[0], MATH_3XTF32, &tiles[7], 1, stages);
}

/* --- planted mistakes -------------------------------------------------------------------------------- */

typedef struct Mistake {
  const char *name;
  const char *right, *wrong; /* in the text; the first occurrence behind `after` */
  const char *after;
} Mistake;

static const Mistake mistakes[] = {
    {"no barrier before a stage is read", "BLOCK_SYNC();", ";", "cp_wait"},
    {"no barrier before sums are stored", "BLOCK_SYNC();", ";", "cp_wait(0)"},
    {"no barrier after sums are staged", "BLOCK_SYNC();", ";", "shared[(warp_m"},
    {"a wait for one group too few", "cp_wait(2)", "cp_wait(3)", ""},
    {"the last wait is missing", "cp_wait(2)", "(void)0", ""},
    {"another swizzle for reading", "(step) * 2 + lane / 16)", "((step) * 2 + lane / 16) ^ (lane / 2 % 2))", "ldsm_x4"},
    {"a chunk off in reading", "lane / 16)", "lane / 8 % 2)", "ldsm_x4"},
    {"one row too many", "m < size_m", "m <= size_m", ""},
    {"the image is a row too high", ") < 9u", ") < 10u", "a_valid"},
    {"a tap is off", "a_inner_digit_1 * 52", "a_inner_digit_1 * 48", ""},
    {"rows are not told from their neighbours", "a_row + i * ", "a_row + 1 + i * ", "const int row"},
};

static const char *plant(const char *text, const Mistake *mistake, Arena *arena) {
  const char *from = strstr(text, mistake->after), *at = from != NULL ? strstr(from, mistake->right) : NULL;
  if (at == NULL) return NULL;
  return arena_format(arena, "%.*s%s%s", (int)(at - text), text, mistake->wrong, at + strlen(mistake->right));
}

/* Small, but with tails of m and n, more tiles of k than stages, and the last one in the stage that the sums overwrite.
 */
static const char mistaken_text[] =
    "input %x : f32[N,52,9,9]\n parameter %w : f32[44,52,2,2] {init=weight}\n parameter %b : f32[44] {init=bias}\n"
    " %y = conv2d %x, %w, %b {padding=[1,1,1,1]} epilogue [relu]";

static void test_mistakes_are_seen(void **state) {
  Fixture *fixture = *state;
  Arena *arena = fixture->arena;
  const GemmTile tile = {32, 32, 16, 2, 2, 0};
  EmulatedKernel *kernel = emulated_kernel(arena, graph_text(mistaken_text, arena), true, 1, "sm_80", MATH_TF32);
  assert_non_null(kernel);
  GemmProblem problem;
  GemmChoice choice;
  assert_true(gemm_problem(kernel->kernel, &problem));
  assert_true(gemm_choose_tile(&problem, &kernel->target, MAX_BATCH, &tile, 1, &choice));
  emulated_begin(kernel);
  assert_true(gemm_emit_choice(&kernel->emit, &problem, &choice));
  const Operands operands = make_operands(kernel->graph, 1, arena);
  EvalResult expected;
  assert_true(graph_eval(kernel->graph, &operands.graph_inputs, &operands.parameters, arena, kernel->diag, &expected));
  const EvalTensor *values = &expected.values[kernel->node->id];
  float *right, *right_reverse;
  const char *failure = emulated_run(kernel, NULL, &operands.all, 1, &right, &right_reverse);
  if (failure != NULL) fail_msg("without mistakes: %s", failure);
  for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
    const char *changed = plant(kernel->emit.text.data, &mistakes[i], arena);
    if (changed == NULL) fail_msg("%s: the text has no place for it:\n%s", mistakes[i].name, kernel->emit.text.data);
    const size_t bytes = (size_t)element_count(values) * sizeof *right;
    float *forward, *reverse;
    failure = emulated_run(kernel, changed, &operands.all, 1, &forward, &reverse);
    if (failure != NULL && strstr(failure, "error: ")) fail_msg("%s: %s", mistakes[i].name, failure);
    if (failure == NULL && memcmp(forward, right, bytes) == 0 && memcmp(reverse, right, bytes) == 0)
      fail_msg("%s: not seen", mistakes[i].name);
  }
}

/* --- text -------------------------------------------------------------------------------------------- */

/* What text and launches promise the runtime, for all cases. */
static void test_text(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < CASE_COUNT; i++) {
    const char *graph = graph_text(cases[i].text, fixture->arena);
    EmulatedKernel *kernel = emulated_kernel(fixture->arena, graph, true, 4, "sm_90a", MATH_3XTF32);
    EmulatedKernel *again = emulated_kernel(fixture->arena, graph, true, 4, "sm_90a", MATH_3XTF32);
    assert_true(emulated_generate(kernel) && emulated_generate(again));
    assert_string_equal(kernel->emit.text.data, again->emit.text.data);
    assert_non_null(strstr(kernel->emit.text.data, "#line 1 \"op:y\""));
    assert_true(kernel->emit.launch_count > 0);
    for (size_t l = 0; l < kernel->emit.launch_count; l++) {
      const CudaLaunch *launch = &kernel->emit.launches[l];
      assert_true(launch->threads % 32 == 0 && launch->threads <= 1024 && launch->grid_z <= 65535);
      assert_non_null(strstr(kernel->emit.text.data, launch->function));
    }
    arena_reset(fixture->arena);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_fp32),
      fixture_test(test_3xtf32),
      fixture_test(test_tf32),
      fixture_test(test_bf16),
      fixture_test(test_fp16),
      fixture_test(test_packed),
      fixture_test(test_plain_layouts),
      fixture_test(test_views),
      fixture_test(test_old_devices),
      fixture_test(test_tiles),
      fixture_test(test_empty_splits),
      fixture_test(test_stages),
      fixture_test(test_mistakes_are_seen),
      fixture_test(test_text),
  };
  return cmocka_run_group_tests_name("cuda_gemm", tests, NULL, NULL);
}
