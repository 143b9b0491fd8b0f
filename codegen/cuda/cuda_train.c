/* The end of a training step: optimisers over the flat state, the gradients' norm, joining gradients; and dropout. The
 * output may be the input state itself: a thread reads its elements before it writes them. See ir/eval_train.c for the
 * formulas' sources. */
#include "cuda_emit.h"
#include "train.h"

enum { STATE, GRADIENT, HYPER, LOSS, NORM };
enum { TRAIN_THREADS = 256 };

static const char *scalar(CudaEmit *emit, const PlanKernel *kernel, int32_t input) {
  const char *none[SHAPE_MAX_RANK] = {NULL};
  return arena_format(emit->arena, "in%d[%s]", (int)input, cuda_offset(emit, &kernel->inputs[input], none));
}

/* "i < 100 ? 0 : i < 250 ? 1 : 2" */
static const char *group_of(CudaEmit *emit, const IntList *ends) {
  Text text;
  text_init(&text, emit->arena);
  for (int32_t g = 0; g + 1 < ends->count; g++)
    text_format(&text, "i < %lld ? %d : ", (long long)ends->values[g], (int)g);
  text_format(&text, "%d", (int)ends->count - 1);
  return text.data;
}

/* Whether element i is decayed: groups' decayed elements come first in each. */
static const char *is_decayed(CudaEmit *emit, const Attrs *attrs) {
  Text text;
  int64_t begin = 0;
  text_init(&text, emit->arena);
  for (int32_t g = 0; g < attrs->segments.count; g++) {
    if (attrs->decayed.values[g] > begin)
      text_format(&text, "%s(i >= %lld && i < %lld)", text.size > 0 ? " || " : "", (long long)begin,
                  (long long)attrs->decayed.values[g]);
    begin = attrs->segments.values[g];
  }
  return text.size > 0 ? text.data : "0";
}

static const char *hyper(CudaEmit *emit, const PlanKernel *kernel, const char *group, int column) {
  const char *const index[] = {group, arena_format(emit->arena, "%d", column)};
  return arena_format(emit->arena, "in%d[%s]", HYPER, cuda_offset(emit, &kernel->inputs[HYPER], index));
}

static const char *state_at(CudaEmit *emit, const PlanTensor *state, int64_t row) {
  const char *const index[] = {arena_format(emit->arena, "%lld", (long long)row), "i"};
  return cuda_offset(emit, state, index);
}

static void load_state(CudaEmit *emit, const PlanKernel *kernel) {
  static const char *const names[] = {"parameter", "moment1", "moment2", "accumulated"};
  int32_t rows = (int32_t)kernel->output.shape.dims[0];
  for (int32_t row = 0; row < rows; row++) {
    bool last = kernel->attrs.accumulate && row == rows - 1;
    cuda_line(emit, 1, "float %s = in0[%s];", names[last ? 3 : row], state_at(emit, &kernel->inputs[STATE], row));
  }
}

static void store_state(CudaEmit *emit, const PlanKernel *kernel) {
  static const char *const names[] = {"parameter", "moment1", "moment2", "accumulated"};
  int32_t rows = (int32_t)kernel->output.shape.dims[0];
  for (int32_t row = 0; row < rows; row++) {
    bool last = kernel->attrs.accumulate && row == rows - 1;
    cuda_line(emit, 1, "y[%s] = %s;", state_at(emit, &kernel->output, row), names[last ? 3 : row]);
  }
}

static void emit_sgd(CudaEmit *emit, const PlanKernel *kernel) {
  cuda_line(emit, 2, "const float momentum = %s;", hyper(emit, kernel, "group", HYPER_MOMENTUM));
  cuda_line(emit, 2, "const float direction = gradient * scale + decay * parameter;");
  cuda_line(emit, 2, "moment1 = momentum * moment1 + direction;");
  cuda_line(emit, 2, "parameter -= rate * %s;",
            kernel->attrs.nesterov ? "(direction + momentum * moment1)" : "moment1");
}

static void emit_adam(CudaEmit *emit, const PlanKernel *kernel) {
  cuda_line(emit, 2, "const float beta1 = %s, beta2 = %s;", hyper(emit, kernel, "group", HYPER_MOMENTUM),
            hyper(emit, kernel, "group", HYPER_BETA2));
  cuda_line(emit, 2, "const float correction1 = %s, correction2 = %s;", hyper(emit, kernel, "group", HYPER_CORRECTION1),
            hyper(emit, kernel, "group", HYPER_CORRECTION2));
  cuda_line(emit, 2, "const float scaled = gradient * scale;");
  cuda_line(emit, 2, "moment1 = beta1 * moment1 + (1.0f - beta1) * scaled;");
  cuda_line(emit, 2, "moment2 = beta2 * moment2 + (1.0f - beta2) * scaled * scaled;");
  cuda_line(emit, 2, "const float deviation = sqrtf(moment2) / sqrtf(correction2) + %s;",
            hyper(emit, kernel, "group", HYPER_EPS));
  cuda_line(emit, 2, "parameter = parameter * (1.0f - rate * decay) - rate / correction1 * moment1 / deviation;");
}

static bool emit_step(CudaEmit *emit, const PlanKernel *kernel, const char *function,
                      void (*update)(CudaEmit *emit, const PlanKernel *kernel)) {
  const Attrs *attrs = &kernel->attrs;
  int64_t length = kernel->output.shape.dims[1];
  const char *const place[] = {"i"};
  bool clipped = kernel->op_input_count > NORM;
  cuda_function(emit, kernel, function, TRAIN_THREADS);
  cuda_line(emit, 1, "const %s i = %s;", emit->index, cuda_thread_number(emit, TRAIN_THREADS));
  cuda_line(emit, 1, "if (i >= %lld) return;", (long long)length);
  load_state(emit, kernel);
  cuda_line(emit, 1, "const float gradient = in1[%s];", cuda_offset(emit, &kernel->inputs[GRADIENT], place));
  cuda_line(emit, 1, "const int group = %s, decayed = %s;", group_of(emit, &attrs->segments), is_decayed(emit, attrs));
  cuda_line(emit, 1, "const float rate = %s, decay = decayed ? %s : 0.0f;",
            hyper(emit, kernel, "group", HYPER_LEARNING_RATE), hyper(emit, kernel, "group", HYPER_WEIGHT_DECAY));
  cuda_line(emit, 1, "int valid = fabsf(%s) < F32_INFINITY; /* else the step is left out */",
            scalar(emit, kernel, LOSS));
  cuda_line(emit, 1, "float scale = %s;", hyper(emit, kernel, "0", HYPER_GRADIENT_SCALE));
  if (clipped) {
    cuda_line(emit, 1, "const float norm = %s, limit = %s;", scalar(emit, kernel, NORM),
              hyper(emit, kernel, "0", HYPER_CLIP_NORM));
    cuda_line(emit, 1, "if (!(fabsf(norm) < F32_INFINITY)) valid = 0;");
    cuda_line(emit, 1, "if (limit > 0.0f) scale *= min_f32(1.0f, limit / (norm + 1e-6f));");
  }
  if (attrs->accumulate) cuda_line(emit, 1, "const int apply = %s != 0.0f;", hyper(emit, kernel, "0", HYPER_APPLY));
  cuda_line(emit, 1, attrs->accumulate ? "if (valid && apply) {" : "if (valid) {");
  update(emit, kernel);
  cuda_line(emit, 1, "}");
  if (attrs->accumulate) cuda_line(emit, 1, "if (valid) accumulated = apply ? 0.0f : gradient;");
  store_state(emit, kernel);
  cuda_line(emit, 0, "}");
  cuda_launch(emit, function, TRAIN_THREADS, length, 0, TRAIN_THREADS);
  return true;
}

bool cuda_sgd_step(CudaEmit *emit, const PlanKernel *kernel) { return emit_step(emit, kernel, "k_sgd_step", emit_sgd); }
bool cuda_adam_step(CudaEmit *emit, const PlanKernel *kernel) {
  return emit_step(emit, kernel, "k_adam_step", emit_adam);
}

/* A block per chunk. */
bool cuda_sum_squares(CudaEmit *emit, const PlanKernel *kernel) {
  const int64_t count = kernel->inputs[0].shape.dims[0], chunks = kernel->output.shape.dims[0];
  const char *const at[] = {"i"}, *const chunk[] = {"chunk"};
  cuda_function(emit, kernel, "k_sum_squares", TRAIN_THREADS);
  cuda_line(emit, 1, "SHARED(8) double shared[%d];", TRAIN_THREADS / 32);
  cuda_line(emit, 1, "const %s chunk = block_x();", emit->index);
  cuda_line(emit, 1, "const %s begin = chunk * %d;", emit->index, TRAIN_CHUNK);
  cuda_line(emit, 1, "const %s end = begin + %d < %lld ? begin + %d : %lld;", emit->index, TRAIN_CHUNK,
            (long long)count, TRAIN_CHUNK, (long long)count);
  cuda_line(emit, 1, "double sum = 0;");
  cuda_line(emit, 1, "for (%s i = begin + thread_index(); i < end; i += %d) {", emit->index, TRAIN_THREADS);
  cuda_line(emit, 2, "const double x = in0[%s];", cuda_offset(emit, &kernel->inputs[0], at));
  cuda_line(emit, 2, "sum += x * x;");
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "sum = block_sum_f64(sum, shared, %d);", TRAIN_THREADS);
  cuda_line(emit, 1, "if (thread_index() != 0) return;");
  cuda_line(emit, 1, "const float value = (float)sum;");
  const char *result = cuda_epilogue(emit, 1, kernel, "value", chunk);
  cuda_line(emit, 1, "y[%s] = %s;", cuda_offset(emit, &kernel->output, chunk), result);
  cuda_line(emit, 0, "}");
  cuda_launch(emit, "k_sum_squares", TRAIN_THREADS, chunks, 0, 1);
  return true;
}

/* --- pack ----------------------------------------------------------------------------------------------- */

/* Expressions of an input's digits, row-major, from a place in it. */
static const char *digits_offset(CudaEmit *emit, const PlanTensor *input, const char *place) {
  const char *index[SHAPE_MAX_RANK] = {NULL};
  int64_t inner = 1;
  for (int32_t d = input->shape.rank - 1; d >= 0; d--) {
    const char *quotient = inner == 1 ? place : arena_format(emit->arena, "%s / %lld", place, (long long)inner);
    index[d] = d == 0 ? quotient : arena_format(emit->arena, "%s %% %lld", quotient, (long long)input->shape.dims[d]);
    inner *= input->shape.dims[d];
  }
  return cuda_offset(emit, input, index);
}

/* A binary search over the inputs [first, last), which begin at begins[]. */
static void emit_search(CudaEmit *emit, int depth, const PlanKernel *kernel, const int64_t *begins, int32_t first,
                        int32_t last) {
  if (last - first == 1) {
    cuda_line(emit, depth, "const %s place = i0 - %lld;", emit->index, (long long)begins[first]);
    cuda_line(emit, depth, "value = in%d[%s];", (int)first, digits_offset(emit, &kernel->inputs[first], "place"));
    return;
  }
  int32_t middle = first + (last - first) / 2;
  cuda_line(emit, depth, "if (i0 < %lld) {", (long long)begins[middle]);
  emit_search(emit, depth + 1, kernel, begins, first, middle);
  cuda_line(emit, depth, "} else {");
  emit_search(emit, depth + 1, kernel, begins, middle, last);
  cuda_line(emit, depth, "}");
}

bool cuda_pack(CudaEmit *emit, const PlanKernel *kernel) {
  int64_t *begins = arena_array(emit->arena, (size_t)kernel->op_input_count, int64_t), begin = 0;
  for (int32_t i = 0; i < kernel->op_input_count; i++) {
    begins[i] = begin;
    begin += cuda_elements_per_image(&kernel->inputs[i].shape);
  }
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, -1);
  if (kernel->output.shape.dims[0] == 1) cuda_line(emit, 1, "const int i0 = 0;");
  emit_search(emit, 1, kernel, begins, 0, kernel->op_input_count);
  cuda_map_end(emit, &map);
  return true;
}

/* --- dropout -------------------------------------------------------------------------------------------- */

/* An element's place in row-major order, whatever the layout, is its counter. */
static const char *row_major(CudaEmit *emit, const CudaMap *map) {
  const Shape *shape = &map->kernel->output.shape;
  Text text;
  int64_t step = 1;
  text_init(&text, emit->arena);
  for (int32_t d = shape->rank - 1; d >= 0; d--) {
    const char *lane = map->lanes > 1 && d == map->lane_dim ? " + lane" : "";
    text_format(&text, "%s(u64)(%s%s) * %lldu", text.size > 0 ? " + " : "", map->index[d], lane, (long long)step);
    step *= shape->dims[d] < 0 ? 1 : shape->dims[d];
  }
  return text.size > 0 ? text.data : "0";
}

bool cuda_dropout(CudaEmit *emit, const PlanKernel *kernel) {
  if (kernel->op_input_count == 1) return cuda_identity(emit, kernel);
  const double p = kernel->attrs.p;
  const uint64_t threshold = dropout_threshold(p);
  const char *first = cuda_offset(emit, &kernel->inputs[1], (const char *const[]){"0"});
  const char *second = cuda_offset(emit, &kernel->inputs[1], (const char *const[]){"1"});
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, 0);
  cuda_line(emit, 1, "const u64 seed = (u64)in1[%s], step = (u64)in1[%s];", first, second);
  const char *x = cuda_map_operand(emit, &map, 1, 0);
  int depth = cuda_lanes_begin(emit, &map, 1);
  const char *value = cuda_lane(emit, &map, "value");
  if (threshold > UINT32_MAX) {
    cuda_line(emit, depth, "(void)seed, (void)step, (void)%s;", x);
    cuda_line(emit, depth, "%s = 0.0f;", value);
  } else {
    cuda_line(emit, depth, "const u64 place = %s;", row_major(emit, &map));
    cuda_line(
        emit, depth,
        "const u32 word = philox_word((u32)place, (u32)(place >> 32), %lluu, (u32)(seed >> 32), (u32)seed, (u32)step);",
        (unsigned long long)(uint32_t)kernel->attrs.stream);
    cuda_line(emit, depth, "%s = word >= %lluu ? %s * %s : 0.0f;", value, (unsigned long long)threshold, x,
              cuda_float(emit, 1 / (1 - p)));
  }
  cuda_lanes_end(emit, &map, 1);
  cuda_map_end(emit, &map);
  return true;
}
