/* Along one dimension: softmax, log_softmax, argmax; and the losses, which are made of the same sums. */
#include <string.h>

#include "cuda_emit.h"
#include "cuda_reduce.h"

/* A line is what one position of all dimensions but `dim` stands for. Where the lines' elements are adjacent, or few
 * lines are neighbours, a warp or block takes a line; else a thread does, and neighbouring threads neighbouring lines.
 */
typedef struct Lines {
  const PlanTensor *x;
  int32_t dim;
  int64_t size, per_image; /* elements of a line; lines of an image, or all */
  bool batched;
  const char *index[SHAPE_MAX_RANK]; /* of the line; [dim] is NULL */
} Lines;

static int32_t dim_of(const PlanKernel *kernel) {
  int64_t dim = kernel->attrs.dim;
  return (int32_t)(dim < 0 ? dim + kernel->inputs[0].shape.rank : dim);
}

static Lines find_lines(const PlanTensor *x, int32_t dim) {
  Lines lines = {.x = x, .dim = dim, .per_image = 1, .batched = shape_batched(&x->shape) && dim != 0};
  lines.size = x->shape.dims[dim];
  for (int32_t d = 0; d < x->shape.rank; d++)
    if (d != dim && x->shape.dims[d] != DIM_BATCH) lines.per_image *= x->shape.dims[d];
  return lines;
}

/* Declares the indices of line `number`, in the order of x in memory. */
static void split_lines(CudaEmit *emit, Lines *lines, const char *number) {
  int32_t order[SHAPE_MAX_RANK], list[SHAPE_MAX_RANK], count = 0;
  cuda_order_dims(lines->x, order);
  for (int32_t k = 0; k < lines->x->shape.rank; k++)
    if (order[k] != lines->dim) list[count++] = order[k];
  int64_t inner = 1;
  for (int32_t k = count - 1; k >= 0; k--) {
    int32_t d = list[k];
    int64_t extent = lines->x->shape.dims[d];
    lines->index[d] = extent == 1 ? "0" : arena_format(emit->arena, "d%d", (int)d);
    if (extent == 1) continue;
    const char *quotient = inner == 1 ? number : arena_format(emit->arena, "%s / %lld", number, (long long)inner);
    if (k > 0) quotient = arena_format(emit->arena, "%s %% %lld", quotient, (long long)extent);
    cuda_line(emit, 1, "const %s d%d = %s;", emit->index, (int)d, quotient);
    inner *= extent < 0 ? 1 : extent;
  }
  lines->index[lines->dim] = NULL;
}

/* Offset of element `at` of the line in a tensor of x's shape. */
static const char *line_offset(CudaEmit *emit, const Lines *lines, const PlanTensor *tensor, const char *at) {
  const char *index[SHAPE_MAX_RANK];
  memcpy(index, lines->index, sizeof index);
  index[lines->dim] = at;
  return cuda_offset(emit, tensor, index);
}

/* The size as text: that of a batched dimension is known at run time. */
static const char *line_size(CudaEmit *emit, const Lines *lines) {
  if (lines->size == DIM_BATCH) return "batch";
  return arena_format(emit->arena, "%lld", (long long)lines->size);
}

static int32_t block_threads(const Lines *lines) {
  enum { WARP_LINE = 128, BLOCK_THREADS = 128 };
  return lines->size >= 0 && lines->size <= WARP_LINE ? 32 : BLOCK_THREADS;
}

static void launch_lines(CudaEmit *emit, const Lines *lines, const char *function, int32_t threads, int64_t per_block) {
  cuda_launch(emit, function, threads, lines->batched ? 0 : lines->per_image, lines->batched ? lines->per_image : 0,
              per_block);
}

/* --- softmax -------------------------------------------------------------------------------------------- */

static void store_softmax(CudaEmit *emit, int depth, const PlanKernel *kernel, const Lines *lines, bool logarithm) {
  const char *index[SHAPE_MAX_RANK];
  memcpy(index, lines->index, sizeof index);
  index[lines->dim] = "k";
  cuda_line(emit, depth, "const float shifted = in0[%s] - maximum;", line_offset(emit, lines, lines->x, "k"));
  cuda_line(emit, depth, "const float value = %s;", logarithm ? "shifted - normalizer" : "expf(shifted) * normalizer");
  cuda_store(emit, depth, kernel, "value", index);
}

static const char *normalizer(bool logarithm) { return logarithm ? "(float)log(sum)" : "(float)(1.0 / sum)"; }

/* A thread per line. */
static void softmax_threads(CudaEmit *emit, const PlanKernel *kernel, Lines *lines, const char *function,
                            bool logarithm) {
  enum { THREADS = 128 };
  const char *size = line_size(emit, lines), *x;
  cuda_function(emit, kernel, function, THREADS);
  cuda_line(emit, 1, "const %s line = %s;", emit->index, cuda_thread_number(emit, THREADS));
  if (lines->batched)
    cuda_line(emit, 1, "if (line >= %s) return;", cuda_batch(emit, lines->per_image));
  else
    cuda_line(emit, 1, "if (line >= %lld) return;", (long long)lines->per_image);
  split_lines(emit, lines, "line");
  x = line_offset(emit, lines, lines->x, "k");
  cuda_line(emit, 1, "float maximum = -F32_INFINITY;");
  cuda_line(emit, 1, "for (int k = 0; k < %s; k++) maximum = max_or_nan(maximum, in0[%s]);", size, x);
  cuda_line(emit, 1, "double sum = 0;");
  cuda_line(emit, 1, "for (int k = 0; k < %s; k++) sum += expf(in0[%s] - maximum);", size, x);
  cuda_line(emit, 1, "const float normalizer = %s;", normalizer(logarithm));
  cuda_line(emit, 1, "for (int k = 0; k < %s; k++) {", size);
  store_softmax(emit, 2, kernel, lines, logarithm);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 0, "}");
  launch_lines(emit, lines, function, THREADS, THREADS);
}

/* Statements that set maximum and sum of the block's line; `scratch_type` is what the block shares. */
static void emit_line_sums(CudaEmit *emit, const Lines *lines, int32_t threads) {
  const char *size = line_size(emit, lines), *x = line_offset(emit, lines, lines->x, "k");
  cuda_line(emit, 1, "float maximum = -F32_INFINITY;");
  cuda_line(emit, 1, "for (int k = thread_index(); k < %s; k += %d) maximum = max_or_nan(maximum, in0[%s]);", size,
            (int)threads, x);
  cuda_line(emit, 1, "maximum = block_max_f32(maximum, shared_maxima, %d);", (int)threads);
  cuda_line(emit, 1, "double sum = 0;");
  cuda_line(emit, 1, "for (int k = thread_index(); k < %s; k += %d) sum += expf(in0[%s] - maximum);", size,
            (int)threads, x);
  cuda_line(emit, 1, "sum = block_sum_f64(sum, shared_sums, %d);", (int)threads);
}

static void declare_shared(CudaEmit *emit, int32_t threads) {
  cuda_line(emit, 1, "SHARED(8) float shared_maxima[%d];", (int)threads / 32);
  cuda_line(emit, 1, "SHARED(8) double shared_sums[%d];", (int)threads / 32);
}

/* A block per line. */
static void softmax_blocks(CudaEmit *emit, const PlanKernel *kernel, Lines *lines, const char *function,
                           bool logarithm) {
  int32_t threads = block_threads(lines);
  cuda_function(emit, kernel, function, threads);
  declare_shared(emit, threads);
  cuda_line(emit, 1, "const %s line = block_x();", emit->index);
  split_lines(emit, lines, "line");
  emit_line_sums(emit, lines, threads);
  cuda_line(emit, 1, "const float normalizer = %s;", normalizer(logarithm));
  cuda_line(emit, 1, "for (int k = thread_index(); k < %s; k += %d) {", line_size(emit, lines), (int)threads);
  store_softmax(emit, 2, kernel, lines, logarithm);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 0, "}");
  launch_lines(emit, lines, function, threads, 1);
}

static bool emit_softmax(CudaEmit *emit, const PlanKernel *kernel, bool logarithm) {
  Lines lines = find_lines(&kernel->inputs[0], dim_of(kernel));
  const char *function = logarithm ? "k_log_softmax" : "k_softmax";
  if (cuda_adjacent_dim(lines.x) == lines.dim || lines.dim == 0)
    softmax_blocks(emit, kernel, &lines, function, logarithm);
  else
    softmax_threads(emit, kernel, &lines, function, logarithm);
  return true;
}

bool cuda_softmax(CudaEmit *emit, const PlanKernel *kernel) { return emit_softmax(emit, kernel, false); }
bool cuda_log_softmax(CudaEmit *emit, const PlanKernel *kernel) { return emit_softmax(emit, kernel, true); }

/* --- argmax --------------------------------------------------------------------------------------------- */

bool cuda_argmax(CudaEmit *emit, const PlanKernel *kernel) {
  Lines lines = find_lines(&kernel->inputs[0], dim_of(kernel));
  int32_t threads = block_threads(&lines), rank = 0;
  cuda_function(emit, kernel, "k_argmax", threads);
  cuda_line(emit, 1, "SHARED(8) float values[%d];", (int)threads);
  cuda_line(emit, 1, "SHARED(8) i64 places[%d];", (int)threads);
  cuda_line(emit, 1, "const %s line = block_x();", emit->index);
  split_lines(emit, &lines, "line");
  cuda_line(emit, 1, "float best = -F32_INFINITY;");
  cuda_line(emit, 1, "int place = -1;");
  cuda_line(emit, 1, "for (int k = thread_index(); k < %s; k += %d) {", line_size(emit, &lines), (int)threads);
  cuda_line(emit, 2, "const float x = in0[%s];", line_offset(emit, &lines, lines.x, "k"));
  cuda_line(emit, 2, "if (place < 0 || exceeds_f32(x, best)) best = x, place = k;");
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "const i64 first = block_first_maximum(best, place, values, places, %d);", (int)threads);
  const char *index[SHAPE_MAX_RANK];
  for (int32_t d = 0; d < lines.x->shape.rank; d++) {
    if (d != lines.dim) index[rank++] = lines.index[d];
    if (d == lines.dim && kernel->attrs.keep_dims) index[rank++] = "0";
  }
  cuda_line(emit, 1, "if (thread_index() == 0) y[%s] = first;", cuda_offset(emit, &kernel->output, index));
  cuda_line(emit, 0, "}");
  launch_lines(emit, &lines, "k_argmax", threads, 1);
  return true;
}

/* --- losses --------------------------------------------------------------------------------------------- */

/* The block that happens to be the last adds up the rows' losses. */
static void sum_rows(CudaEmit *emit, const PlanKernel *kernel, const Lines *rows, int32_t threads) {
  const char *none[SHAPE_MAX_RANK] = {NULL};
  if (rows->batched)
    cuda_line(emit, 1, "const int rows = batch;");
  else
    cuda_line(emit, 1, "const int rows = %lld;", (long long)rows->per_image);
  cuda_line(emit, 1, "if (!is_last_block((u32 *)scratch, rows, &last)) return;");
  cuda_line(emit, 1, "sum = 0;");
  cuda_line(emit, 1, "for (int row = thread_index(); row < rows; row += %d) sum += losses[row];", (int)threads);
  cuda_line(emit, 1, "sum = block_sum_f64(sum, shared_sums, %d);", (int)threads);
  cuda_line(emit, 1, "if (thread_index() != 0) return;");
  cuda_line(emit, 1, "const float value = (float)(sum%s);",
            kernel->attrs.reduction == REDUCTION_MEAN ? " / (double)rows" : "");
  cuda_store(emit, 1, kernel, "value", none);
}

bool cuda_cross_entropy(CudaEmit *emit, const PlanKernel *kernel) {
  Lines rows = find_lines(&kernel->inputs[0], 1);
  bool each = kernel->attrs.reduction == REDUCTION_NONE;
  int32_t threads = block_threads(&rows);
  cuda_function(emit, kernel, "k_cross_entropy", threads);
  declare_shared(emit, threads);
  if (!each) cuda_line(emit, 1, "SHARED(4) int last;");
  cuda_line(emit, 1, "const %s line = block_x();", emit->index);
  split_lines(emit, &rows, "line");
  emit_line_sums(emit, &rows, threads);
  if (each)
    cuda_line(emit, 1, "if (thread_index() != 0) return;");
  else
    cuda_line(emit, 1, "volatile double *losses = (volatile double *)%s;",
              rows.batched ? cuda_scratch(emit, 0, 8) : cuda_scratch(emit, rows.per_image * 8, 0));
  cuda_line(emit, 1, "const i64 target = in1[%s];", cuda_offset(emit, &kernel->inputs[1], rows.index));
  cuda_line(emit, 1, "double loss = F32_NAN; /* of what is no class */");
  cuda_line(emit, 1, "if (target >= 0 && target < %lld) loss = maximum + log(sum) - in0[%s];", (long long)rows.size,
            line_offset(emit, &rows, rows.x, "target"));
  if (each) {
    cuda_line(emit, 1, "const float value = (float)loss;");
    cuda_store(emit, 1, kernel, "value", rows.index);
  } else {
    cuda_line(emit, 1, "if (thread_index() == 0) losses[line] = loss;");
    sum_rows(emit, kernel, &rows, threads);
    emit->counters = true;
  }
  cuda_line(emit, 0, "}");
  launch_lines(emit, &rows, "k_cross_entropy", threads, 1);
  return true;
}

/* Losses of an element and its target. */
typedef struct PairLoss {
  Reduction reduction;
  const char *form; /* over x and target */
} PairLoss;

static const char *pair_term(CudaEmit *emit, void *context, int depth, int32_t k, const char *const *index) {
  const PairLoss *loss = context;
  const PlanKernel *kernel = loss->reduction.kernel;
  (void)k;
  cuda_line(emit, depth, "const float x = in0[%s];", cuda_offset(emit, &kernel->inputs[0], index));
  cuda_line(emit, depth, "const float target = in1[%s];", cuda_offset(emit, &kernel->inputs[1], index));
  return loss->form;
}

static void pair_finish(CudaEmit *emit, void *context, int depth, const char *const *totals, const char *const *index) {
  const PairLoss *loss = context;
  const PlanKernel *kernel = loss->reduction.kernel;
  const char *none[SHAPE_MAX_RANK] = {NULL};
  (void)index;
  if (kernel->attrs.reduction == REDUCTION_MEAN)
    cuda_line(emit, depth, "const float value = (float)(%s / %s);", totals[0],
              cuda_reduced_count(emit, &loss->reduction));
  else
    cuda_line(emit, depth, "const float value = (float)%s;", totals[0]);
  cuda_store(emit, depth, kernel, "value", none);
}

static bool emit_pair_loss(CudaEmit *emit, const PlanKernel *kernel, const char *form) {
  const char *name = arena_format(emit->arena, "k_%s", op_info(kernel->op)->name);
  if (kernel->attrs.reduction != REDUCTION_NONE) {
    PairLoss loss = {.form = form};
    loss.reduction = (Reduction){.kernel = kernel,
                                 .name = name,
                                 .x = &kernel->inputs[0],
                                 .totals = 1,
                                 .term = pair_term,
                                 .finish = pair_finish,
                                 .context = &loss};
    for (int32_t d = 0; d < kernel->inputs[0].shape.rank; d++) loss.reduction.reduced[d] = true;
    cuda_reduce(emit, &loss.reduction);
    return true;
  }
  CudaMap map;
  cuda_map_begin(emit, &map, kernel, 0);
  const char *x = cuda_map_operand(emit, &map, 1, 0), *target = cuda_map_operand(emit, &map, 1, 1);
  int depth = cuda_lanes_begin(emit, &map, 1);
  cuda_line(emit, depth, "const float x = %s, target = %s;", x, target);
  cuda_line(emit, depth, "%s = %s;", cuda_lane(emit, &map, "value"), form);
  cuda_lanes_end(emit, &map, 1);
  cuda_map_end(emit, &map);
  return true;
}

bool cuda_mse(CudaEmit *emit, const PlanKernel *kernel) {
  return emit_pair_loss(emit, kernel, "(x - target) * (x - target)");
}

/* -t log s(x) - (1 - t) log(1 - s(x)), without overflow. */
bool cuda_bce_with_logits(CudaEmit *emit, const PlanKernel *kernel) {
  return emit_pair_loss(emit, kernel, "max_f32(x, 0.0f) - x * target + log1pf(expf(-fabsf(x)))");
}
