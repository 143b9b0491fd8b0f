/* kiln_common.h of generated CUDA code: helpers in the common subset of C11 and C++17 over the names of kiln_prelude.h. */

DEV int min_int(int a, int b) { return a < b ? a : b; }
DEV int max_int(int a, int b) { return a > b ? a : b; }
DEV float sigmoid_f32(float x) { return 1.0f / (1.0f + expf(-x)); }
/* As EXPR_MAX and EXPR_MIN: the second when either is NaN or both are equal. */
DEV float max_f32(float a, float b) { return a > b ? a : b; }
DEV float min_f32(float a, float b) { return a < b ? a : b; }
/* NaN is larger than all numbers. */
DEV int exceeds_f32(float a, float b) { return a > b || (a != a && b == b); }
/* a when it is greater or NaN: the maximum of numbers, or NaN once there was one. */
DEV float max_or_nan(float best, float a) { return a > best || a != a ? a : best; }

/* The sum over all threads of the block in a fixed order; every thread gets it. `shared` has a place per warp. */
DEV double block_sum_f64(double value, double *shared, int threads) {
  const int thread = thread_index();
  for (int step = 16; step > 0; step >>= 1) value += shfl_xor_f64(value, step);
  BLOCK_SYNC(); /* an earlier sum has been read */
  if (thread % 32 == 0) shared[thread / 32] = value;
  BLOCK_SYNC();
  value = 0;
  for (int warp = 0; warp < threads / 32; warp++) value += shared[warp];
  return value;
}

/* The maximum over all threads of the block, NaN when one of them has NaN. */
DEV float block_max_f32(float value, float *shared, int threads) {
  const int thread = thread_index();
  for (int step = 16; step > 0; step >>= 1) value = max_or_nan(value, shfl_xor_f32(value, step));
  BLOCK_SYNC();
  if (thread % 32 == 0) shared[thread / 32] = value;
  BLOCK_SYNC();
  value = shared[0];
  for (int warp = 1; warp < threads / 32; warp++) value = max_or_nan(value, shared[warp]);
  return value;
}

/* Whether this block is the last of `blocks` that come here with the same counter: it then sees what the others wrote
 * before, if it reads it through volatile pointers. The counter is 0 again. `shared` has room for one number. */
DEV int is_last_block(u32 *counter, int blocks, int *shared) {
  DEVICE_FENCE();
  BLOCK_SYNC();
  if (thread_index() == 0) {
    *shared = atomic_add_u32(counter, 1) + 1 == (u32)blocks;
    if (*shared) *counter = 0;
  }
  BLOCK_SYNC();
  DEVICE_FENCE();
  return *shared;
}

/* The place of the largest value of all threads, the first of equals; a place below 0 stands for no value. `values` and
 * `places` have room for every thread, whose number is a power of two. */
DEV i64 block_first_maximum(float value, i64 place, float *values, i64 *places, int threads) {
  const int thread = thread_index();
  values[thread] = value, places[thread] = place;
  BLOCK_SYNC();
  for (int half = threads / 2; half > 0; half >>= 1) {
    if (thread < half && places[thread + half] >= 0) {
      const float mine = values[thread], other = values[thread + half];
      const int before = !exceeds_f32(mine, other) && places[thread + half] < places[thread];
      if (places[thread] < 0 || exceeds_f32(other, mine) || before)
        values[thread] = other, places[thread] = places[thread + half];
    }
    BLOCK_SYNC();
  }
  return places[0];
}

/* --- statistics: ir/stats.h ---------------------------------------------------------------------------- */
/* `exact`: the range begins at 0 and the scale is a power of two, so that bins are found in f32. `home`: the bin of 0,
 * into which a relu puts so many values that threads count them for themselves; -1: none. */
typedef struct StatsRange {
  double low, high, scale;
  float threshold;
  int exact, bins, home;
} StatsRange;

/* What a thread has taken: sums of distances from its first value, so that squares lose nothing where the spread is
 * small against the mean. */
typedef struct StatsTaken {
  int count, near_zero, home;
  float pivot;
  double sum, squares;
} StatsTaken;

enum { STATS_COUNT, STATS_MEAN, STATS_MEAN_REST, STATS_M2, STATS_NEAR_ZERO, STATS_FIELDS };

/* -1: in no bin. */
DEV int stats_bin(const StatsRange *range, float value) {
  if (!(value >= (float)range->low && value <= (float)range->high)) return -1;
  const int bin = range->exact ? (int)(value * (float)range->scale) : (int)((value - range->low) * range->scale);
  return min_int(bin, range->bins - 1);
}

/* Zeroes the block's counts: a barrier has to follow. */
DEV void stats_begin(const StatsRange *range, u32 *counts, int threads) {
  for (int bin = thread_index(); bin < range->bins; bin += threads) counts[bin] = 0;
}

DEV void stats_take(StatsTaken *taken, const StatsRange *range, u32 *counts, const float *values, int lanes) {
  float sum = 0, squares = 0;
  if (taken->count == 0) taken->pivot = values[0];
  UNROLL
  for (int i = 0; i < lanes; i++) {
    const float distance = values[i] - taken->pivot;
    const int bin = stats_bin(range, values[i]);
    sum += distance;
    squares += distance * distance;
    taken->near_zero += values[i] <= range->threshold;
    if (bin == range->home)
      taken->home++;
    else if (bin >= 0)
      atomic_add_u32(&counts[bin], 1);
  }
  taken->count += lanes;
  taken->sum += sum;
  taken->squares += squares;
}

DEV float stats_field(int k, double count, double mean, double m2, double near_zero) {
  if (k == STATS_COUNT) return (float)count;
  if (k == STATS_MEAN) return (float)mean;
  if (k == STATS_MEAN_REST) return (float)(mean - (float)mean);
  return k == STATS_M2 ? (float)(m2 < 0 ? 0 : m2) : (float)near_zero; /* below 0 by rounding */
}

/* Leaves the row of what the block's threads have taken at `row`. `shared` has a place per warp. */
DEV void stats_row(const StatsTaken *taken, const StatsRange *range, u32 *counts, double *shared, int threads,
                   volatile float *row) {
  const double own = taken->count, count = block_sum_f64(own, shared, threads);
  const double sum = block_sum_f64(own * taken->pivot + taken->sum, shared, threads);
  const double near_zero = block_sum_f64(taken->near_zero, shared, threads);
  const double home = block_sum_f64(taken->home, shared, threads);
  const double mean = count > 0 ? sum / count : 0, shift = taken->pivot - mean;
  const double m2 =
      block_sum_f64(own > 0 ? taken->squares + shift * (2 * taken->sum + own * shift) : 0, shared, threads);
  for (int k = thread_index(); k < STATS_FIELDS + range->bins; k += threads) {
    float value = stats_field(k, count, mean, m2, near_zero);
    if (k >= STATS_FIELDS) value = k - STATS_FIELDS == range->home ? (float)home : (float)counts[k - STATS_FIELDS];
    row[k] = value;
  }
}

/* The row of `count` rows that stand one after the other, in their order. */
DEV void stats_merge(volatile const float *rows, int count, const StatsRange *range, u32 *counts, double *shared,
                     int threads, volatile float *row) {
  const int fields = STATS_FIELDS + range->bins, thread = thread_index();
  double elements = 0, sum = 0, near_zero = 0, m2 = 0;
  stats_begin(range, counts, threads);
  for (int i = thread; i < count; i += threads) {
    volatile const float *from = rows + (i64)i * fields;
    const double own = from[STATS_COUNT];
    elements += own;
    sum += own * ((double)from[STATS_MEAN] + from[STATS_MEAN_REST]);
    near_zero += from[STATS_NEAR_ZERO];
  }
  elements = block_sum_f64(elements, shared, threads);
  sum = block_sum_f64(sum, shared, threads);
  near_zero = block_sum_f64(near_zero, shared, threads);
  const double mean = sum / elements;
  for (int i = thread; i < count; i += threads) {
    volatile const float *from = rows + (i64)i * fields;
    const double distance = (double)from[STATS_MEAN] + from[STATS_MEAN_REST] - mean;
    m2 += from[STATS_M2] + from[STATS_COUNT] * distance * distance;
  }
  for (int i = thread; i < count * range->bins; i += threads) {
    const int from = i / range->bins, bin = i % range->bins;
    atomic_add_u32(&counts[bin], (u32)rows[(i64)from * fields + STATS_FIELDS + bin]);
  }
  m2 = block_sum_f64(m2, shared, threads);
  for (int k = thread; k < fields; k += threads)
    row[k] = k < STATS_FIELDS ? stats_field(k, elements, mean, m2, near_zero) : (float)counts[k - STATS_FIELDS];
}

DEV void stats_clear(const StatsRange *range, int threads, volatile float *row) {
  for (int k = thread_index(); k < STATS_FIELDS + range->bins; k += threads) row[k] = 0;
}

/* Word 0 of Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
DEV u32 philox_word(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
  for (int round = 0; round < 10; round++) {
    const u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
    c0 = (u32)(b >> 32) ^ c1 ^ k0;
    c2 = (u32)(a >> 32) ^ c3 ^ k1;
    c1 = (u32)b;
    c3 = (u32)a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}
