#include "cuda_ride.h"

#include <assert.h>
#include <math.h>

#include "base/checked.h"
#include "stats.h"

static int64_t row_fields(const PlanReduction *reduction) {
  assert(reduction->op == OP_STATS_PARTIAL);
  return STATS_FIELDS + reduction->attrs.bins;
}

/* The sums of warps, "which block is the last", and every reduction's counts. */
static int64_t counts_place(const PlanKernel *kernel, int32_t threads, int32_t reduction) {
  int64_t place = threads / 32 * 8 + 8;
  for (int32_t i = 0; i < reduction; i++) place += round_up(kernel->reductions[i].attrs.bins * 4, 8);
  return place;
}

int64_t cuda_ride_shared_bytes(const PlanKernel *kernel, int32_t threads) {
  return kernel->reduction_count == 0 ? 0 : counts_place(kernel, threads, kernel->reduction_count);
}

void cuda_stats_range(CudaEmit *emit, const Attrs *attrs, const char *name) {
  const StatsRange range = stats_range(attrs);
  int exponent;
  const bool exact = range.low == 0 && frexp(range.scale, &exponent) == 0.5 && exponent > -64 && exponent < 64;
  const int home =
      range.low <= 0 && range.high >= 0 ? (int)fmin((0 - range.low) * range.scale, (double)attrs->bins - 1) : -1;
  cuda_line(emit, 1, "const StatsRange %s = {%.17g, %.17g, %.17g, %s, %d, %d, %d};", name, range.low, range.high,
            range.scale, cuda_float(emit, range.threshold), (int)exact, (int)attrs->bins, home);
}

void cuda_ride_begin(CudaEmit *emit, const PlanKernel *kernel, int32_t threads, const char *memory) {
  if (kernel->reduction_count == 0) return;
  cuda_line(emit, 1, "double *const ride_sums = (double *)(%s);", memory);
  cuda_line(emit, 1, "int *const ride_last = (int *)(ride_sums + %d);", (int)threads / 32);
  for (int32_t i = 0; i < kernel->reduction_count; i++) {
    const int r = (int)i;
    cuda_stats_range(emit, &kernel->reductions[i].attrs, arena_format(emit->arena, "ride%d_range", r));
    cuda_line(emit, 1, "u32 *const ride%d_counts = (u32 *)ride_sums + %lld;", r,
              (long long)counts_place(kernel, threads, i) / 4);
    cuda_line(emit, 1, "StatsTaken ride%d = {0, 0, 0, 0, 0, 0};", r);
    cuda_line(emit, 1, "stats_begin(&ride%d_range, ride%d_counts, %d);", r, r, (int)threads);
  }
}

void cuda_ride_take(CudaEmit *emit, const PlanKernel *kernel, int depth, const char *name, int32_t lanes) {
  if (kernel->reduction_count == 0) return;
  const PlanTensor *output = &kernel->output;
  const char *values = lanes > 1 ? name : arena_format(emit->arena, "&%s", name);
  if (output->layout.element != DTYPE_F32) {
    const char *value = lanes > 1 ? arena_format(emit->arena, "%s[j]", name) : name;
    if (lanes > 1) cuda_line(emit, depth, "for (int j = 0; j < %d; j++)", (int)lanes);
    cuda_line(emit, depth + (lanes > 1 ? 1 : 0), "%s = %s;", value,
              cuda_read(emit, output, cuda_written(emit, output, value)));
  }
  for (int32_t i = 0; i < kernel->reduction_count; i++) {
    const int r = (int)i;
    cuda_line(emit, depth, "stats_take(&ride%d, &ride%d_range, ride%d_counts, %s, %d);", r, r, r, values, (int)lanes);
  }
}

/* The address of a row of the result. */
static const char *row_address(CudaEmit *emit, const PlanKernel *kernel, int32_t reduction, const char *row) {
  const PlanTensor *output = &kernel->reductions[reduction].output;
  const long long parts = (long long)output->shape.dims[1];
  const char *const index[3] = {arena_format(emit->arena, "(i64)%s / %lld", row, parts),
                                arena_format(emit->arena, "%s %% %lld", row, parts), NULL};
  assert(output->storage.stride[2] == 1);
  return arena_format(emit->arena, "ride%d_rows + (%s)", (int)reduction, cuda_offset(emit, output, index));
}

static const char *row_count(CudaEmit *emit, const PlanReduction *reduction) {
  const Shape *shape = &reduction->output.shape;
  if (shape_batched(shape)) return arena_format(emit->arena, "batch * %lld", (long long)shape->dims[1]);
  return arena_format(emit->arena, "%lld", (long long)(shape->dims[0] * shape->dims[1]));
}

static void end_reduction(CudaEmit *emit, const PlanKernel *kernel, int32_t reduction, int32_t threads) {
  const int r = (int)reduction, t = (int)threads;
  const long long fields = (long long)row_fields(&kernel->reductions[reduction]);
  cuda_line(emit, 2, "stats_merge(ride%d_parts + (i64)ride_run * ride_length * %lld, ride_blocks, &ride%d_range,", r,
            fields, r);
  cuda_line(emit, 2, "            ride%d_counts, ride_sums, %d, %s);", r, t,
            row_address(emit, kernel, reduction, "ride_run"));
}

/* Runs have one length but for the last one, and a counter and a row each. All reductions of a kernel have as many
 * rows: as its output has parts. */
void cuda_ride_end(CudaEmit *emit, const PlanKernel *kernel, int32_t threads, const RideBlocks *blocks) {
  const int t = (int)threads;
  if (kernel->reduction_count == 0) return;
  emit->counters = true;
  cuda_line(emit, 1, "const int ride_rows = %s, ride_all = %s, ride_block = %s;",
            row_count(emit, &kernel->reductions[0]), blocks->count, blocks->block);
  cuda_line(emit, 1, "const int ride_most = min_int(ride_rows, %d);", RIDE_COUNTERS);
  cuda_line(emit, 1, "const int ride_length = (ride_all + ride_most - 1) / ride_most;");
  cuda_line(emit, 1, "const int ride_runs = (ride_all + ride_length - 1) / ride_length;");
  cuda_line(emit, 1, "const int ride_run = ride_block / ride_length;");
  cuda_line(emit, 1, "const int ride_blocks = min_int(ride_length, ride_all - ride_run * ride_length);");
  for (int32_t i = 0; i < kernel->reduction_count; i++) {
    const int r = (int)i;
    const int64_t fields = row_fields(&kernel->reductions[i]);
    const char *scratch = cuda_scratch(emit, blocks->most * fields * 4, blocks->most_per_image * fields * 4);
    cuda_line(emit, 1, "volatile float *const ride%d_parts = (volatile float *)%s;", r, scratch);
    cuda_line(emit, 1,
              "volatile float *const ride%d_own = ride_blocks == 1 ? %s : ride%d_parts + (i64)ride_block * %lld;", r,
              row_address(emit, kernel, i, "ride_run"), r, (long long)fields);
    cuda_line(emit, 1, "stats_row(&ride%d, &ride%d_range, ride%d_counts, ride_sums, %d, ride%d_own);", r, r, r, t, r);
  }
  cuda_line(emit, 1, "if (ride_blocks > 1) {");
  cuda_line(emit, 2, "if (!is_last_block((u32 *)scratch + %d + ride_run, ride_blocks, ride_last)) return;",
            RIDE_FIRST_COUNTER);
  for (int32_t i = 0; i < kernel->reduction_count; i++) end_reduction(emit, kernel, i, threads);
  cuda_line(emit, 1, "}");
  for (int32_t i = 0; i < kernel->reduction_count; i++) {
    cuda_line(emit, 1, "for (int row = ride_run + ride_runs; row < ride_rows; row += ride_runs)");
    cuda_line(emit, 2, "stats_clear(&ride%d_range, %d, %s);", (int)i, t, row_address(emit, kernel, i, "row"));
  }
}
