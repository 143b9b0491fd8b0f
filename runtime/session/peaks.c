/* Loops that do nothing but multiply-adds, or nothing but reads, in the widest vectors of a processor level. Each is
 * timed several times, and the best time counts: everything else is disturbance. */
#include "peaks.h"

#include <math.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/pool.h"
#include "core/processors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
  /* Independent ones, which hide the latency of a multiply-add: 4 cycles at two a cycle, or 8 of a product and a sum.
   * With the factor they leave registers free, of the 16 that there are before AVX-512. */
  CHAINS = 12,
  FMA_ROUNDS = 200000,
  REPEATS = 7,
  THREADS_MAX = 64,
  LINE = 64
};

/* Runs `rounds` times CHAINS multiply-adds; the result depends on all of them. Returns the operations of a round. */
typedef int64_t FmaLoop(int64_t rounds, float factor, float *out_sum);
/* Reads `bytes`, a multiple of 8 lines, once. */
typedef uint64_t ReadLoop(const char *data, int64_t bytes);

/* --- loops ------------------------------------------------------------------------------------------- */

/* `TYPE` is a vector of LANES floats; ADD(a, f) is a·f + a for it. */
#define FMA_LOOP(name, attributes, TYPE, LANES, SPLAT, FMA)                      \
  attributes static int64_t name(int64_t rounds, float factor, float *out_sum) { \
    TYPE sums[CHAINS], by = SPLAT(factor);                                       \
    for (int i = 0; i < CHAINS; i++) sums[i] = SPLAT(1.0f + (float)i);           \
    for (int64_t round = 0; round < rounds; round++) {                           \
      for (int i = 0; i < CHAINS; i++) sums[i] = FMA(sums[i], by, by);           \
    }                                                                            \
    float lanes[LANES], total = 0;                                               \
    for (int i = 0; i < CHAINS; i++) {                                           \
      memcpy(lanes, &sums[i], sizeof lanes);                                     \
      for (int k = 0; k < LANES; k++) total += lanes[k];                         \
    }                                                                            \
    *out_sum = total;                                                            \
    return 2 * (int64_t)CHAINS * LANES;                                          \
  }

#define READ_LOOP(name, attributes, TYPE)                                    \
  attributes static uint64_t name(const char *data, int64_t bytes) {         \
    enum { STEP = 8, WORDS = sizeof(TYPE) / sizeof(uint64_t) };              \
    TYPE seen[STEP];                                                         \
    memset(seen, 0, sizeof seen);                                            \
    for (int64_t at = 0; at < bytes; at += STEP * (int64_t)sizeof(TYPE)) {   \
      for (int i = 0; i < STEP; i++) {                                       \
        TYPE value;                                                          \
        memcpy(&value, data + at + i * (int64_t)sizeof(TYPE), sizeof value); \
        seen[i] |= value;                                                    \
      }                                                                      \
    }                                                                        \
    uint64_t words[WORDS], total = 0;                                        \
    for (int i = 0; i < STEP; i++) {                                         \
      memcpy(words, &seen[i], sizeof words);                                 \
      for (size_t k = 0; k < WORDS; k++) total |= words[k];                  \
    }                                                                        \
    return total;                                                            \
  }

typedef uint64_t Words16 __attribute__((vector_size(16)));
typedef float Floats16 __attribute__((vector_size(16)));

static Floats16 splat16(float value) { return (Floats16){value, value, value, value}; }
static Floats16 multiply_add16(Floats16 a, Floats16 b, Floats16 c) { return a * b + c; }

/* Without a fused instruction a product and a sum, where processors have units for them. */
FMA_LOOP(fma_plain, , Floats16, 4, splat16, multiply_add16)
READ_LOOP(read_plain, , Words16)

#if defined(__x86_64__)
typedef uint64_t Words32 __attribute__((vector_size(32)));
typedef uint64_t Words64 __attribute__((vector_size(64)));
#define AVX2   __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f")))
FMA_LOOP(fma_avx2, AVX2, __m256, 8, _mm256_set1_ps, _mm256_fmadd_ps)
READ_LOOP(read_avx2, AVX2, Words32)
FMA_LOOP(fma_avx512, AVX512, __m512, 16, _mm512_set1_ps, _mm512_fmadd_ps)
READ_LOOP(read_avx512, AVX512, Words64)
#endif

typedef struct Loops {
  const char *isa; /* a level as cpu_target names it */
  FmaLoop *fma;
  ReadLoop *read;
} Loops;

/* The last one serves every other level. */
static const Loops all_loops[] = {
#if defined(__x86_64__)
    {"x86-64-v4", fma_avx512, read_avx512},
    {"x86-64-v3", fma_avx2, read_avx2},
#endif
    {NULL, fma_plain, read_plain},
};

static const Loops *find_loops(const char *isa) {
  const Loops *loops = all_loops;
  while (loops->isa != NULL && strcmp(loops->isa, isa) != 0) loops++;
  return loops;
}

/* --- timing ------------------------------------------------------------------------------------------ */

typedef struct Trial {
  Pool *pool;
  const Loops *loops;
  char *data;
  int64_t bytes, passes;                          /* of each thread */
  int64_t operations;                             /* of a round */
  float sums[THREADS_MAX * LINE / sizeof(float)]; /* a line each */
} Trial;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void run_fma(void *context, uint32_t thread, int64_t begin, int64_t end) {
  Trial *trial = context;
  for (int64_t item = begin; item < end; item++) {
    float *sum = &trial->sums[thread * LINE / sizeof(float)];
    int64_t operations = trial->loops->fma(FMA_ROUNDS, 0.5f, sum);
    if (item == 0) trial->operations = operations;
  }
}

static void run_read(void *context, uint32_t thread, int64_t begin, int64_t end) {
  Trial *trial = context;
  uint64_t seen = 0;
  for (int64_t item = begin; item < end; item++)
    for (int64_t pass = 0; pass < trial->passes; pass++)
      seen |= trial->loops->read(trial->data + item * trial->bytes, trial->bytes);
  trial->sums[thread * LINE / sizeof(float)] = (float)(seen & 1);
}

static double best_time(Trial *trial, kiln_task task) {
  double best = INFINITY;
  for (int i = 0; i < REPEATS; i++) {
    double started = now();
    pool_parallel_for(trial->pool, task, trial, pool_threads(trial->pool));
    best = fmin(best, now() - started);
  }
  return best;
}

static double fma_rate(Trial *trial) {
  double time = best_time(trial, run_fma);
  return (double)(trial->operations * FMA_ROUNDS * pool_threads(trial->pool)) / time;
}

/* Reads `bytes` in all, each thread its own part, as often as takes a few milliseconds. */
static double read_rate(Trial *trial, int64_t bytes) {
  const int64_t step = 8 * LINE, least = 64 << 20; /* bytes of a thread */
  trial->bytes = bytes / pool_threads(trial->pool) / step * step;
  if (trial->bytes == 0) return 0;
  trial->passes = trial->bytes < least ? least / trial->bytes : 1;
  double time = best_time(trial, run_read);
  return (double)trial->bytes * (double)trial->passes * pool_threads(trial->pool) / time;
}

/* --- the machine ------------------------------------------------------------------------------------- */

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* More than the last level holds, but not too much of a small machine's memory. */
static int64_t memory_bytes(const Peaks *peaks) {
  const int64_t most = smaller((int64_t)1 << 30, (int64_t)sysconf(_SC_PHYS_PAGES) / 8 * sysconf(_SC_PAGESIZE));
  return smaller(larger(2 * peaks->l3_bytes, (int64_t)128 << 20), most);
}

static void measure(Trial *trial, Peaks *peaks, Arena *arena) {
  const int64_t threads = peaks->threads, whole = memory_bytes(peaks);
  trial->data = arena_alloc_aligned(arena, (size_t)whole, LINE);
  memset(trial->data, 1, (size_t)whole); /* pages that were never written are all the same one */
  peaks->flops = fma_rate(trial);
  if (peaks->l2_bytes > 0) peaks->l2 = read_rate(trial, smaller(peaks->l2_bytes / 2 * threads, whole));
  /* four times what the second level holds, or half of the third */
  if (peaks->l3_bytes > 0)
    peaks->l3 =
        read_rate(trial, smaller(larger(4 * peaks->l2_bytes * threads, 1 << 20), smaller(peaks->l3_bytes / 2, whole)));
  peaks->memory = read_rate(trial, whole);
}

static void destroy_pool(void *pool) { pool_destroy(pool); }

static void measure_all(const Loops *loops, Pool *pool, Arena *arena, Peaks *peaks) {
  Trial *trial = arena_new(arena, Trial);
  trial->pool = pool;
  trial->loops = loops;
  peaks->l2_bytes = larger(sysconf(_SC_LEVEL2_CACHE_SIZE), 0);
  peaks->l3_bytes = larger(sysconf(_SC_LEVEL3_CACHE_SIZE), 0);
  measure(trial, peaks, arena);
}

bool peaks_measure(const char *isa, uint32_t threads, const uint32_t *affinity, Diag *diag, Peaks *out_peaks) {
  if (threads < 1 || threads > THREADS_MAX) {
    diag_error(diag, (Location){0}, "the machine's peaks: expected 1 to %d threads, found %u", THREADS_MAX, threads);
    return false;
  }
  Arena *arena = arena_create(NULL);
  Pool *pool = arena != NULL ? pool_create_on(threads, affinity, NULL) : NULL;
  volatile bool done = false;
  jmp_buf failure;
  ProcessorStay stay = {.moved = false};
  if (affinity != NULL) processor_enter(affinity[0], &stay);
  if (pool != NULL) {
    arena_defer(arena, destroy_pool, pool);
    if (setjmp(failure) == 0) {
      arena_on_failure(arena, &failure);
      *out_peaks = (Peaks){.threads = threads};
      measure_all(find_loops(isa), pool, arena, out_peaks);
      done = true;
    }
  }
  processor_leave(&stay);
  if (arena != NULL) arena_destroy(arena);
  if (!done) diag_error(diag, (Location){0}, "the machine's peaks: out of memory or threads");
  return done;
}

double peaks_rate(const Peaks *peaks, double bytes) {
  if (peaks->l2 > 0 && bytes <= (double)peaks->l2_bytes * peaks->threads) return peaks->l2;
  if (peaks->l3 > 0 && bytes <= (double)peaks->l3_bytes) return peaks->l3;
  return peaks->memory;
}
