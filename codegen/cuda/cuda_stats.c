/* Statistics for hooks: a block of threads per row of ir/stats.h. Counts are integers, and the mean is kept before the
 * distances from it are added up, so that nothing depends on the order. */
#include "stats.h"

#include "cuda_emit.h"

enum { STATS_THREADS = 256 };

/* Declares index[] of the element number `at` of the row's block, and gives the offset in x. */
static const char *element_offset(CudaEmit *emit, int depth, const PlanTensor *x, const StatsBlocks *blocks) {
  const char *index[SHAPE_MAX_RANK] = {NULL};
  if (x->shape.rank == 4) {
    cuda_line(emit, depth,
              "const int c = channel + at %% channels, h = row + at / channels / %lld, w = at / channels %% %lld;",
              (long long)blocks->width, (long long)blocks->width);
    index[0] = "image", index[1] = "c", index[2] = "h", index[3] = "w";
    return cuda_offset(emit, x, index);
  }
  bool whole = !shape_batched(&x->shape) && x->shape.rank < 2;
  int64_t inner = 1;
  cuda_line(emit, depth, "const %s place = row + at;", emit->index);
  for (int32_t d = x->shape.rank - 1; d >= (whole ? 0 : 1); d--) {
    const char *quotient = inner == 1 ? "place" : arena_format(emit->arena, "place / %lld", (long long)inner);
    index[d] = arena_format(emit->arena, "%s %% %lld", quotient, (long long)x->shape.dims[d]);
    inner *= x->shape.dims[d];
  }
  if (!whole) index[0] = "image";
  return cuda_offset(emit, x, index);
}

static void begin_elements(CudaEmit *emit) {
  cuda_line(emit, 1, "for (int at = thread_index(); at < elements; at += %d) {", STATS_THREADS);
}

/* Elements of the block of this row. */
static void emit_block(CudaEmit *emit, const PlanKernel *kernel, const StatsBlocks *blocks) {
  long long per_image = blocks->groups * blocks->chunks;
  cuda_line(emit, 1, "const int block = (int)(block_x() %% %lld);", per_image);
  cuda_line(emit, 1, "const %s image = block_x() / %lld;", emit->index, per_image);
  cuda_line(emit, 1, "const int channel = block / %lld * %d, row = (int)(block %% %lld * %lld);",
            (long long)blocks->chunks, STATS_CHANNELS, (long long)blocks->chunks, (long long)blocks->rows);
  cuda_line(emit, 1, "const int channels = min_int(%lld - channel, %d), rows = min_int((int)(%lld - row), (int)%lld);",
            (long long)blocks->channels, STATS_CHANNELS, (long long)blocks->height, (long long)blocks->rows);
  cuda_line(emit, 1, "const int elements = channels * rows * %lld;", (long long)blocks->width);
  cuda_line(emit, 1, "(void)image;");
  (void)kernel;
}

bool cuda_stats_partial(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *x = &kernel->inputs[0], *y = &kernel->output;
  const StatsBlocks blocks = stats_blocks(&x->shape);
  const StatsRange range = stats_range(&kernel->attrs);
  long long bins = kernel->attrs.bins, per_image = blocks.groups * blocks.chunks;
  cuda_function(emit, kernel, "k_stats_partial", STATS_THREADS);
  cuda_line(emit, 1, "SHARED(8) double shared[%d];", STATS_THREADS / 32);
  cuda_line(emit, 1, "SHARED(4) u32 counts[%lld];", bins);
  emit_block(emit, kernel, &blocks);
  cuda_line(emit, 1, "for (int bin = thread_index(); bin < %lld; bin += %d) counts[bin] = 0;", bins, STATS_THREADS);
  cuda_line(emit, 1, "BLOCK_SYNC();");
  cuda_line(emit, 1, "double sum = 0, near_zero = 0;");
  begin_elements(emit);
  cuda_line(emit, 2, "const double value = in0[%s];", element_offset(emit, 2, x, &blocks));
  cuda_line(emit, 2, "sum += value;");
  cuda_line(emit, 2, "if (value <= %.17g) near_zero++;", range.threshold);
  cuda_line(emit, 2, "if (value >= %.17g && value <= %.17g) {", range.low, range.high);
  cuda_line(emit, 3, "const int bin = (int)((value - %.17g) * %.17g);", range.low, range.scale);
  cuda_line(emit, 3, "atomic_add_u32(&counts[min_int(bin, %lld)], 1);", bins - 1);
  cuda_line(emit, 2, "}");
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "sum = block_sum_f64(sum, shared, %d);", STATS_THREADS);
  cuda_line(emit, 1, "near_zero = block_sum_f64(near_zero, shared, %d);", STATS_THREADS);
  cuda_line(emit, 1, "const double mean = elements > 0 ? sum / elements : 0;");
  cuda_line(emit, 1, "double m2 = 0;");
  begin_elements(emit);
  cuda_line(emit, 2, "const double distance = in0[%s] - mean;", element_offset(emit, 2, x, &blocks));
  cuda_line(emit, 2, "m2 += distance * distance;");
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "m2 = block_sum_f64(m2, shared, %d);", STATS_THREADS);
  const char *const place[] = {shape_batched(&y->shape) || y->shape.dims[0] > 1 ? "image" : "0", "block", "k"};
  cuda_line(emit, 1, "for (int k = thread_index(); k < %lld; k += %d) {", STATS_FIELDS + bins, STATS_THREADS);
  cuda_line(emit, 2, "float value = 0.0f;");
  cuda_line(emit, 2, "if (k >= %d) value = (float)counts[k - %d];", STATS_FIELDS, STATS_FIELDS);
  cuda_line(emit, 2, "if (k == %d) value = (float)elements;", STATS_COUNT);
  cuda_line(emit, 2, "if (k == %d) value = (float)mean;", STATS_MEAN);
  cuda_line(emit, 2, "if (k == %d) value = (float)(mean - (float)mean);", STATS_MEAN_REST);
  cuda_line(emit, 2, "if (k == %d) value = (float)m2;", STATS_M2);
  cuda_line(emit, 2, "if (k == %d) value = (float)near_zero;", STATS_NEAR_ZERO);
  const char *result = cuda_epilogue(emit, 2, kernel, "value", place);
  cuda_line(emit, 2, "y[%s] = %s;", cuda_offset(emit, y, place), result);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 0, "}");
  bool batched = blocks.images == DIM_BATCH;
  cuda_launch(emit, "k_stats_partial", STATS_THREADS, batched ? 0 : blocks.images * per_image, batched ? per_image : 0,
              1);
  return true;
}

/* One block: threads share the rows for the moments, and take a bin each for the counts. */
bool cuda_stats_final(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *x = &kernel->inputs[0];
  long long per_image = x->shape.dims[1], bins = x->shape.dims[2] - STATS_FIELDS;
  const char *field[STATS_FIELDS];
  for (int k = 0; k < STATS_FIELDS; k++) {
    const char *const index[] = {arena_format(emit->arena, "row / %lld", per_image),
                                 arena_format(emit->arena, "row %% %lld", per_image),
                                 arena_format(emit->arena, "%d", k)};
    field[k] = arena_format(emit->arena, "in0[%s]", cuda_offset(emit, x, index));
  }
  cuda_function(emit, kernel, "k_stats_final", STATS_THREADS);
  cuda_line(emit, 1, "SHARED(8) double shared[%d];", STATS_THREADS / 32);
  if (shape_batched(&x->shape))
    cuda_line(emit, 1, "const %s rows = %s;", emit->index, cuda_batch(emit, per_image));
  else
    cuda_line(emit, 1, "const %s rows = %lld;", emit->index, (long long)x->shape.dims[0] * per_image);
  cuda_line(emit, 1, "double count = 0, sum = 0, near_zero = 0, m2 = 0;");
  cuda_line(emit, 1, "for (%s row = thread_index(); row < rows; row += %d) {", emit->index, STATS_THREADS);
  cuda_line(emit, 2, "const double row_count = %s;", field[STATS_COUNT]);
  cuda_line(emit, 2, "count += row_count;");
  cuda_line(emit, 2, "sum += row_count * ((double)%s + %s);", field[STATS_MEAN], field[STATS_MEAN_REST]);
  cuda_line(emit, 2, "near_zero += %s;", field[STATS_NEAR_ZERO]);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "count = block_sum_f64(count, shared, %d);", STATS_THREADS);
  cuda_line(emit, 1, "sum = block_sum_f64(sum, shared, %d);", STATS_THREADS);
  cuda_line(emit, 1, "near_zero = block_sum_f64(near_zero, shared, %d);", STATS_THREADS);
  cuda_line(emit, 1, "const double mean = sum / count;");
  cuda_line(emit, 1, "for (%s row = thread_index(); row < rows; row += %d) {", emit->index, STATS_THREADS);
  cuda_line(emit, 2, "const double distance = (double)%s + %s - mean;", field[STATS_MEAN], field[STATS_MEAN_REST]);
  cuda_line(emit, 2, "m2 += %s + (double)%s * distance * distance;", field[STATS_M2], field[STATS_COUNT]);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "m2 = block_sum_f64(m2, shared, %d);", STATS_THREADS);
  cuda_line(emit, 1, "for (int k = thread_index(); k < %lld; k += %d) {", STATS_RESULT_FIELDS + bins, STATS_THREADS);
  cuda_line(emit, 2, "double total = 0;");
  const char *const bin[] = {arena_format(emit->arena, "row / %lld", per_image),
                             arena_format(emit->arena, "row %% %lld", per_image),
                             arena_format(emit->arena, "k + %d", STATS_FIELDS - STATS_RESULT_FIELDS)};
  cuda_line(emit, 2, "if (k >= %d)", STATS_RESULT_FIELDS);
  cuda_line(emit, 3, "for (%s row = 0; row < rows; row++) total += in0[%s];", emit->index, cuda_offset(emit, x, bin));
  cuda_line(emit, 2, "if (k == %d) total = mean;", STATS_RESULT_MEAN);
  cuda_line(emit, 2, "if (k == %d) total = sqrt(m2 / (count - 1));", STATS_RESULT_STD);
  cuda_line(emit, 2, "if (k == %d) total = near_zero / count;", STATS_RESULT_NEAR_ZERO);
  cuda_line(emit, 2, "const float value = (float)total;");
  const char *const place[] = {"k"};
  const char *result = cuda_epilogue(emit, 2, kernel, "value", place);
  cuda_line(emit, 2, "y[%s] = %s;", cuda_offset(emit, &kernel->output, place), result);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 0, "}");
  cuda_launch(emit, "k_stats_final", STATS_THREADS, 1, 0, 1);
  return true;
}
