/* Statistics for hooks, where they do not ride: a block of threads per row of ir/stats.h; then one for all rows. */
#include "stats.h"

#include "cuda_emit.h"

enum {
  STATS_THREADS = 256,
  FINAL_THREADS = 512 /* of one block, which has all rows */
};

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

/* Elements of the block of this row. */
static void emit_block(CudaEmit *emit, const StatsBlocks *blocks) {
  long long per_image = blocks->groups * blocks->chunks;
  cuda_line(emit, 1, "const int block = (int)(block_x() %% %lld);", per_image);
  cuda_line(emit, 1, "const %s image = block_x() / %lld;", emit->index, per_image);
  cuda_line(emit, 1, "const int channel = block / %lld * %d, row = (int)(block %% %lld * %lld);",
            (long long)blocks->chunks, STATS_CHANNELS, (long long)blocks->chunks, (long long)blocks->rows);
  cuda_line(emit, 1, "const int channels = min_int(%lld - channel, %d), rows = min_int((int)(%lld - row), (int)%lld);",
            (long long)blocks->channels, STATS_CHANNELS, (long long)blocks->height, (long long)blocks->rows);
  cuda_line(emit, 1, "const int elements = channels * rows * %lld;", (long long)blocks->width);
  cuda_line(emit, 1, "(void)image;");
}

bool cuda_stats_partial(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *x = &kernel->inputs[0], *y = &kernel->output;
  const StatsBlocks blocks = stats_blocks(&x->shape);
  long long bins = kernel->attrs.bins, per_image = blocks.groups * blocks.chunks;
  cuda_function(emit, kernel, "k_stats_partial", STATS_THREADS);
  cuda_line(emit, 1, "SHARED(8) double shared[%d];", STATS_THREADS / 32);
  cuda_line(emit, 1, "SHARED(4) u32 counts[%lld];", bins);
  cuda_line(emit, 1, "SHARED(4) float row_fields[%lld];", STATS_FIELDS + bins);
  emit_block(emit, &blocks);
  cuda_stats_range(emit, &kernel->attrs, "range");
  cuda_line(emit, 1, "StatsTaken taken = {0, 0, 0, 0, 0, 0};");
  cuda_line(emit, 1, "stats_begin(&range, counts, %d);", STATS_THREADS);
  cuda_line(emit, 1, "BLOCK_SYNC();");
  cuda_line(emit, 1, "for (int at = thread_index(); at < elements; at += %d) {", STATS_THREADS);
  const char *element = arena_format(emit->arena, "in0[%s]", element_offset(emit, 2, x, &blocks));
  cuda_line(emit, 2, "const float value = %s;", cuda_read(emit, x, element));
  cuda_line(emit, 2, "stats_take(&taken, &range, counts, &value, 1);");
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "stats_row(&taken, &range, counts, shared, %d, row_fields);", STATS_THREADS);
  const char *const place[] = {shape_batched(&y->shape) || y->shape.dims[0] > 1 ? "image" : "0", "block", "k"};
  /* every thread reads the fields that it has written */
  cuda_line(emit, 1, "for (int k = thread_index(); k < %lld; k += %d) {", STATS_FIELDS + bins, STATS_THREADS);
  const char *result = cuda_epilogue(emit, 2, kernel, "row_fields[k]", place);
  cuda_line(emit, 2, "y[%s] = %s;", cuda_offset(emit, y, place), result);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 0, "}");
  bool batched = blocks.images == DIM_BATCH;
  cuda_launch(emit, "k_stats_partial", STATS_THREADS, batched ? 0 : blocks.images * per_image, batched ? per_image : 0,
              1);
  return true;
}

/* Threads share the rows. For the moments each takes some of them; for the counts the bins lie side by side, and as
 * many threads share one as there is room for. Whole numbers, as the counts are, do not mind the order in doubles. */
bool cuda_stats_final(CudaEmit *emit, const PlanKernel *kernel) {
  const PlanTensor *x = &kernel->inputs[0];
  long long per_image = x->shape.dims[1], bins = x->shape.dims[2] - STATS_FIELDS;
  int across = 32;
  while (across < STATS_RESULT_FIELDS + bins && across < FINAL_THREADS) across *= 2;
  const char *field[STATS_FIELDS];
  for (int k = 0; k < STATS_FIELDS; k++) {
    const char *const index[] = {arena_format(emit->arena, "row / %lld", per_image),
                                 arena_format(emit->arena, "row %% %lld", per_image),
                                 arena_format(emit->arena, "%d", k)};
    field[k] = arena_format(emit->arena, "in0[%s]", cuda_offset(emit, x, index));
  }
  cuda_function(emit, kernel, "k_stats_final", FINAL_THREADS);
  cuda_line(emit, 1, "SHARED(8) double shared[%d];", FINAL_THREADS / 32);
  cuda_line(emit, 1, "SHARED(8) double totals[%d];", FINAL_THREADS);
  if (shape_batched(&x->shape))
    cuda_line(emit, 1, "const %s rows = %s;", emit->index, cuda_batch(emit, per_image));
  else
    cuda_line(emit, 1, "const %s rows = %lld;", emit->index, (long long)x->shape.dims[0] * per_image);
  cuda_line(emit, 1, "double count = 0, sum = 0, near_zero = 0, m2 = 0;");
  cuda_line(emit, 1, "for (%s row = thread_index(); row < rows; row += %d) {", emit->index, FINAL_THREADS);
  cuda_line(emit, 2, "const double row_count = %s;", field[STATS_COUNT]);
  cuda_line(emit, 2, "count += row_count;");
  cuda_line(emit, 2, "sum += row_count * ((double)%s + %s);", field[STATS_MEAN], field[STATS_MEAN_REST]);
  cuda_line(emit, 2, "near_zero += %s;", field[STATS_NEAR_ZERO]);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "count = block_sum_f64(count, shared, %d);", FINAL_THREADS);
  cuda_line(emit, 1, "sum = block_sum_f64(sum, shared, %d);", FINAL_THREADS);
  cuda_line(emit, 1, "near_zero = block_sum_f64(near_zero, shared, %d);", FINAL_THREADS);
  cuda_line(emit, 1, "const double mean = sum / count;");
  cuda_line(emit, 1, "for (%s row = thread_index(); row < rows; row += %d) {", emit->index, FINAL_THREADS);
  cuda_line(emit, 2, "const double distance = (double)%s + %s - mean;", field[STATS_MEAN], field[STATS_MEAN_REST]);
  cuda_line(emit, 2, "m2 += %s + (double)%s * distance * distance;", field[STATS_M2], field[STATS_COUNT]);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "m2 = block_sum_f64(m2, shared, %d);", FINAL_THREADS);
  const char *const bin_place[] = {arena_format(emit->arena, "row / %lld", per_image),
                                   arena_format(emit->arena, "row %% %lld", per_image),
                                   arena_format(emit->arena, "bin + %d", STATS_FIELDS)};
  cuda_line(emit, 1, "const int lane = thread_index() %% %d, slice = thread_index() / %d;", across, across);
  cuda_line(emit, 1, "for (int first = 0; first < %lld; first += %d) {", STATS_RESULT_FIELDS + bins, across);
  cuda_line(emit, 2, "const int k = first + lane, bin = k - %d;", STATS_RESULT_FIELDS);
  cuda_line(emit, 2, "double result = 0;");
  cuda_line(emit, 2, "for (%s row = slice; bin >= 0 && bin < %lld && row < rows; row += %d)", emit->index, bins,
            FINAL_THREADS / across);
  cuda_line(emit, 3, "result += in0[%s];", cuda_offset(emit, x, bin_place));
  cuda_line(emit, 2, "totals[thread_index()] = result;");
  cuda_line(emit, 2, "BLOCK_SYNC();");
  cuda_line(emit, 2, "if (slice == 0 && k < %lld) {", STATS_RESULT_FIELDS + bins);
  cuda_line(emit, 3, "for (int s = 1; s < %d; s++) result += totals[s * %d + lane];", FINAL_THREADS / across, across);
  cuda_line(emit, 3, "if (k == %d) result = mean;", STATS_RESULT_MEAN);
  cuda_line(emit, 3, "if (k == %d) result = sqrt(m2 / (count - 1));", STATS_RESULT_STD);
  cuda_line(emit, 3, "if (k == %d) result = near_zero / count;", STATS_RESULT_NEAR_ZERO);
  cuda_line(emit, 3, "const float value = (float)result;");
  const char *const place[] = {"k"};
  const char *stored = cuda_epilogue(emit, 3, kernel, "value", place);
  cuda_line(emit, 3, "y[%s] = %s;", cuda_offset(emit, &kernel->output, place), stored);
  cuda_line(emit, 2, "}");
  cuda_line(emit, 2, "BLOCK_SYNC();");
  cuda_line(emit, 1, "}");
  cuda_line(emit, 0, "}");
  cuda_launch(emit, "k_stats_final", FINAL_THREADS, 1, 0, 1);
  return true;
}
