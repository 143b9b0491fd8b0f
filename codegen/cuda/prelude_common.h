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
