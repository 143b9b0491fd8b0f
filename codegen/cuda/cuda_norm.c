/* Normalisation and its statistics and gradients. Sums over a channel are kept in f64; what the elements need of them
 * goes through scratch as f32 pairs. */
#include "base/checked.h"
#include "cuda_emit.h"
#include "cuda_reduce.h"
#include "work.h"

/* A vector [C] as something that broadcasts over dimension 1 of a value of this rank. */
static PlanTensor along_channels(const PlanTensor *vector, int32_t rank) {
  PlanTensor result = *vector;
  result.layout = (Layout){LAYOUT_PLAIN, 0};
  result.shape = (Shape){.rank = rank - 1};
  for (int32_t d = 0; d < rank - 1; d++) {
    result.shape.dims[d] = d == 0 ? vector->shape.dims[0] : 1;
    result.storage.stride[d] = d == 0 ? vector->storage.stride[0] : 0;
  }
  return result;
}

/* Loads the lanes of channel vector `input` as `name`. */
static const char *read_channels(CudaEmit *emit, const CudaMap *map, int32_t input, const char *name) {
  const PlanKernel *kernel = map->kernel;
  PlanTensor view = along_channels(&kernel->inputs[input], kernel->output.shape.rank);
  return cuda_map_read(emit, map, 1, &view, input, map->index, name);
}

/* The channel of the current lane. */
static const char *lane_channel(CudaEmit *emit, const CudaMap *map) {
  if (map->lanes == 1 || map->lane_dim != 1) return map->index[1];
  return arena_format(emit->arena, "(%s + lane)", map->index[1]);
}

/* --- sums over a channel -------------------------------------------------------------------------------- */

/* A reduction over all dimensions but the channels. */
typedef struct ChannelSums {
  Reduction reduction;
  int32_t dy, mean, variance; /* inputs; -1: none */
  double eps;
  const char *scratch; /* of two floats per channel */
} ChannelSums;

static Reduction channel_reduction(const PlanKernel *kernel, const char *name, int32_t totals) {
  Reduction reduction = {.kernel = kernel, .name = name, .x = &kernel->inputs[0], .totals = totals};
  for (int32_t d = 0; d < kernel->inputs[0].shape.rank; d++) reduction.reduced[d] = d != 1;
  return reduction;
}

static const char *channel_offset(CudaEmit *emit, const PlanTensor *vector, const char *channel) {
  const char *const index[] = {channel};
  return cuda_offset(emit, vector, index);
}

/* Σ x, Σ x² */
static const char *moment_term(CudaEmit *emit, void *context, int depth, int32_t k, const char *const *index) {
  const ChannelSums *sums = context;
  if (k == 0) cuda_line(emit, depth, "const double x = in0[%s];", cuda_offset(emit, sums->reduction.x, index));
  return k == 0 ? "x" : "x * x";
}

static void emit_moments(CudaEmit *emit, int depth, const ChannelSums *sums, const char *const *totals) {
  cuda_line(emit, depth, "const double count = %s, mean = %s / count;", cuda_reduced_count(emit, &sums->reduction),
            totals[0]);
  cuda_line(emit, depth, "double variance = %s / count - mean * mean;", totals[1]);
  cuda_line(emit, depth, "if (variance < 0) variance = 0; /* by rounding */");
}

static void stats_finish(CudaEmit *emit, void *context, int depth, const char *const *totals,
                         const char *const *index) {
  const ChannelSums *sums = context;
  const PlanKernel *kernel = sums->reduction.kernel;
  const char *place[2] = {"0", index[1]};
  emit_moments(emit, depth, sums, totals);
  cuda_line(emit, depth, "const float first = (float)mean, second = (float)variance;");
  cuda_store(emit, depth, kernel, "first", place);
  place[0] = "1";
  cuda_store(emit, depth, kernel, "second", place);
}

bool cuda_batch_stats(CudaEmit *emit, const PlanKernel *kernel) {
  ChannelSums sums = {.reduction = channel_reduction(kernel, "k_batch_stats", 2)};
  sums.reduction.term = moment_term;
  sums.reduction.finish = stats_finish;
  sums.reduction.context = &sums;
  cuda_reduce(emit, &sums.reduction);
  return true;
}

/* Only asked for by hand: batch_stats adds up x itself here. So every number may sweep its part twice. */
bool cuda_plane_moments(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *x = &kernel->inputs[0];
  const int64_t height = x->shape.dims[2], rows = moment_rows(height, kernel->output.shape.dims[2]);
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, -1);
  const char *const index[] = {map.index[0], map.index[1], "row", "column"};
  const char *element = arena_format(emit->arena, "in0[%s]", cuda_offset(emit, x, index));
  cuda_line(emit, 1, "const int first = %s * %lld, last = min_int(first + %lld, %lld);", map.index[2], (long long)rows,
            (long long)rows, (long long)height);
  cuda_line(emit, 1, "double sum = 0, squares = 0;");
  for (int sweep = 0; sweep < 2; sweep++) {
    cuda_line(emit, 1, "for (int row = first; row < last; row++)");
    cuda_line(emit, 2, "for (int column = 0; column < %lld; column++) {", (long long)x->shape.dims[3]);
    cuda_line(emit, 3, sweep == 0 ? "sum += %s;" : "const double distance = %s - mean;", cuda_read(emit, x, element));
    if (sweep == 1) cuda_line(emit, 3, "squares += distance * distance;");
    cuda_line(emit, 2, "}");
    if (sweep == 0)
      cuda_line(emit, 1, "const double mean = sum / ((last - first) * %lld);", (long long)x->shape.dims[3]);
  }
  cuda_line(emit, 1, "value = (float)(%s == 0 ? mean : squares);", map.index[3]);
  cuda_map_end(emit, &map);
  return true;
}

/* --- batch norm ----------------------------------------------------------------------------------------- */

/* Keeps mean and 1 / deviation. */
static void training_finish(CudaEmit *emit, void *context, int depth, const char *const *totals,
                            const char *const *index) {
  const ChannelSums *sums = context;
  emit_moments(emit, depth, sums, totals);
  cuda_line(emit, depth, "float *channels = (float *)%s;", sums->scratch);
  cuda_line(emit, depth, "channels[%s * 2] = (float)mean;", index[1]);
  cuda_line(emit, depth, "channels[%s * 2 + 1] = (float)(1.0 / sqrt(variance + %.17g));", index[1], sums->eps);
}

static const char *channel_scratch(CudaEmit *emit, const PlanKernel *kernel) {
  return cuda_scratch(emit, kernel->inputs[0].shape.dims[1] * 2 * (int64_t)sizeof(float), 0);
}

static void emit_training_sums(CudaEmit *emit, const PlanKernel *kernel, ChannelSums *sums) {
  *sums = (ChannelSums){.reduction = channel_reduction(kernel, "k_batch_norm_sums", 2),
                        .eps = kernel->attrs.eps,
                        .scratch = channel_scratch(emit, kernel)};
  sums->reduction.term = moment_term;
  sums->reduction.finish = training_finish;
  sums->reduction.context = sums;
  cuda_reduce(emit, &sums->reduction);
}

bool cuda_batch_norm(CudaEmit *emit, const PlanKernel *kernel) {
  ChannelSums sums;
  bool training = kernel->attrs.training;
  if (training) emit_training_sums(emit, kernel, &sums);
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, 0);
  if (training) cuda_line(emit, 1, "const float *channels = (const float *)%s;", sums.scratch);
  const char *x = cuda_map_operand(emit, &map, 1, 0);
  const char *weight = read_channels(emit, &map, 1, "weight"), *bias = read_channels(emit, &map, 2, "bias");
  const char *mean = NULL, *variance = NULL;
  if (!training) {
    mean = read_channels(emit, &map, 3, "mean");
    variance = read_channels(emit, &map, 4, "variance");
  }
  int depth = cuda_lanes_begin(emit, &map, 1);
  if (training) {
    const char *channel = lane_channel(emit, &map);
    mean = arena_format(emit->arena, "channels[%s * 2]", channel);
    cuda_line(emit, depth, "const float scale = %s * channels[%s * 2 + 1];", weight, channel);
  } else {
    cuda_line(emit, depth, "const float scale = %s / sqrtf(%s + %s);", weight, variance,
              cuda_float(emit, kernel->attrs.eps));
  }
  cuda_line(emit, depth, "%s = (%s - %s) * scale + %s;", cuda_lane(emit, &map, "value"), x, mean, bias);
  cuda_lanes_end(emit, &map, 1);
  cuda_map_end(emit, &map);
  return true;
}

/* "c == 0 ? 0.485f : c == 1 ? 0.456f : 0.406f" */
static const char *choose_constant(CudaEmit *emit, const char *channel, const FloatList *list, bool inverse) {
  Text text;
  text_init(&text, emit->arena);
  for (int32_t i = 0; i < list->count; i++) {
    if (i + 1 < list->count) text_format(&text, "%s == %d ? ", channel, (int)i);
    text_add(&text, cuda_float(emit, inverse ? 1 / list->values[i] : list->values[i]));
    if (i + 1 < list->count) text_add(&text, " : ");
  }
  return text.data;
}

bool cuda_normalize(CudaEmit *emit, const PlanKernel *kernel) {
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, 0);
  const char *x = cuda_map_operand(emit, &map, 1, 0);
  int depth = cuda_lanes_begin(emit, &map, 1);
  const char *channel = lane_channel(emit, &map);
  cuda_line(emit, depth, "const float mean = %s;", choose_constant(emit, channel, &kernel->attrs.mean, false));
  cuda_line(emit, depth, "const float scale = %s;", choose_constant(emit, channel, &kernel->attrs.std, true));
  cuda_line(emit, depth, "%s = (%s - mean) * scale;", cuda_lane(emit, &map, "value"), x);
  cuda_lanes_end(emit, &map, 1);
  cuda_map_end(emit, &map);
  return true;
}

/* Elements of a channel of x, all images together. */
static const char *channel_count(CudaEmit *emit, const PlanTensor *x) {
  long long count = cuda_elements_per_image(&x->shape) / (x->shape.dims[1] > 0 ? x->shape.dims[1] : 1);
  return arena_format(emit->arena, shape_batched(&x->shape) ? "((double)batch * %lld.0)" : "%lld.0", count);
}

bool cuda_bn_update(CudaEmit *emit, const PlanKernel *kernel) {
  const double momentum = kernel->attrs.momentum;
  bool variance = kernel->attrs.dim == 1;
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, -1);
  const char *const place[] = {variance ? "1" : "0", map.index[0]};
  cuda_line(emit, 1, "const float running = in0[%s];", cuda_offset(emit, &kernel->inputs[0], map.index));
  cuda_line(emit, 1, "double measured = in1[%s];", cuda_offset(emit, &kernel->inputs[1], place));
  if (variance) {
    cuda_line(emit, 1, "const double count = %s;", channel_count(emit, &kernel->inputs[2]));
    cuda_line(emit, 1, "if (count > 1) measured *= count / (count - 1); /* unbiased */");
  }
  cuda_line(emit, 1, "value = (float)(running * %.17g + %.17g * measured);", 1 - momentum, momentum);
  if (kernel->op_input_count > 3) {
    const char *loss = cuda_offset(emit, &kernel->inputs[3], (const char *const[SHAPE_MAX_RANK]){NULL});
    cuda_line(emit, 1, "if (!(fabsf(in3[%s]) < F32_INFINITY)) value = running; /* the step is left out */", loss);
  }
  cuda_map_end(emit, &map);
  return true;
}

/* --- gradients ------------------------------------------------------------------------------------------ */

/* Σ dy, Σ dy·x̂; a lone total is the second of them. */
static const char *gradient_term(CudaEmit *emit, void *context, int depth, int32_t k, const char *const *index) {
  const ChannelSums *sums = context;
  const PlanKernel *kernel = sums->reduction.kernel;
  if (k == 0) {
    cuda_line(emit, depth, "const double gradient = in%d[%s];", (int)sums->dy,
              cuda_offset(emit, &kernel->inputs[sums->dy], index));
    cuda_line(emit, depth, "const double inverse = 1.0 / sqrt((double)in%d[%s] + %.17g);", (int)sums->variance,
              channel_offset(emit, &kernel->inputs[sums->variance], index[1]), sums->eps);
    cuda_line(emit, depth, "const double normalized = ((double)in0[%s] - in%d[%s]) * inverse;",
              cuda_offset(emit, sums->reduction.x, index), (int)sums->mean,
              channel_offset(emit, &kernel->inputs[sums->mean], index[1]));
  }
  return k == 0 && sums->reduction.totals == 2 ? "gradient" : "gradient * normalized";
}

static void weight_finish(CudaEmit *emit, void *context, int depth, const char *const *totals,
                          const char *const *index) {
  const ChannelSums *sums = context;
  cuda_line(emit, depth, "const float value = (float)%s;", totals[0]);
  cuda_store(emit, depth, sums->reduction.kernel, "value", &index[1]);
}

bool cuda_batch_norm_grad_weight(CudaEmit *emit, const PlanKernel *kernel) {
  ChannelSums sums = {.reduction = channel_reduction(kernel, "k_batch_norm_grad_weight", 1),
                      .mean = 1,
                      .variance = 2,
                      .dy = 3,
                      .eps = kernel->attrs.eps};
  sums.reduction.term = gradient_term;
  sums.reduction.finish = weight_finish;
  sums.reduction.context = &sums;
  cuda_reduce(emit, &sums.reduction);
  return true;
}

/* Keeps the means of dy and of dy·x̂. */
static void input_finish(CudaEmit *emit, void *context, int depth, const char *const *totals,
                         const char *const *index) {
  const ChannelSums *sums = context;
  cuda_line(emit, depth, "float *channels = (float *)%s;", sums->scratch);
  cuda_line(emit, depth, "const double count = %s;", cuda_reduced_count(emit, &sums->reduction));
  cuda_line(emit, depth, "channels[%s * 2] = (float)(%s / count);", index[1], totals[0]);
  cuda_line(emit, depth, "channels[%s * 2 + 1] = (float)(%s / count);", index[1], totals[1]);
}

/* Ioffe and Szegedy, arXiv 1502.03167: dx = weight/deviation · (dy − mean(dy) − x̂·mean(dy·x̂)). */
bool cuda_batch_norm_grad_input(CudaEmit *emit, const PlanKernel *kernel) {
  ChannelSums sums = {.reduction = channel_reduction(kernel, "k_batch_norm_grad_sums", 2),
                      .mean = 2,
                      .variance = 3,
                      .dy = 4,
                      .eps = kernel->attrs.eps,
                      .scratch = channel_scratch(emit, kernel)};
  sums.reduction.term = gradient_term;
  sums.reduction.finish = input_finish;
  sums.reduction.context = &sums;
  cuda_reduce(emit, &sums.reduction);
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, 0);
  cuda_line(emit, 1, "const float *channels = (const float *)%s;", sums.scratch);
  const char *x = cuda_map_operand(emit, &map, 1, 0), *dy = cuda_map_operand(emit, &map, 1, 4);
  const char *weight = read_channels(emit, &map, 1, "weight"), *mean = read_channels(emit, &map, 2, "mean");
  const char *variance = read_channels(emit, &map, 3, "variance");
  int depth = cuda_lanes_begin(emit, &map, 1);
  const char *channel = lane_channel(emit, &map);
  cuda_line(emit, depth, "const float inverse = 1.0f / sqrtf(%s + %s);", variance, cuda_float(emit, kernel->attrs.eps));
  cuda_line(emit, depth, "const float normalized = (%s - %s) * inverse;", x, mean);
  cuda_line(emit, depth, "%s = %s * inverse * (%s - channels[%s * 2] - normalized * channels[%s * 2 + 1]);",
            cuda_lane(emit, &map, "value"), weight, dy, channel, channel);
  cuda_lanes_end(emit, &map, 1);
  cuda_map_end(emit, &map);
  return true;
}
