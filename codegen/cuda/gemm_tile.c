/* Which tile, how many stages, how many blocks to a sum: a model of the time that a matrix product takes.
 *
 * A multiprocessor works on the products of its blocks one tile of k after the other; a wave is a block on each. Small
 * tiles fill more multiprocessors, large ones read shared memory less often for each product. Where even small tiles
 * leave multiprocessors idle, as in most layers at batch 1, several blocks share the sum of a tile, at the price of
 * passing their parts through memory. All figures are of the published peak rates (NVIDIA, "H100 Tensor Core GPU
 * Architecture") and guesses of the overheads; they are to be set by measuring. */
#include <assert.h>
#include <math.h>

#include "base/checked.h"
#include "cuda_ride.h"
#include "gemm.h"

enum {
  SHARED_LEAST = 48 * 1024, /* bytes for the stages of a block: what every device has */
  SHARED_MOST = 72 * 1024,
  LEAST_STAGES = 2,
  MAX_STAGES = 4,
  MAX_SPLITS = 64,
  MIN_SPLIT_TILES = 4, /* of k, for each part of a sum */
  COPIES_MAX = 8,      /* places that a thread keeps: registers */
  MULTIPROCESSORS_AMPERE = 108,
  MULTIPROCESSORS_HOPPER = 132,
};

static const GemmTile core_tiles[] = {
    {128, 128, 16, 2, 4, 0}, {128, 64, 16, 2, 2, 0}, {64, 128, 16, 2, 2, 0}, {64, 64, 32, 2, 2, 0},
    {128, 32, 16, 4, 1, 0},  {64, 32, 32, 2, 2, 0},  {32, 64, 32, 2, 2, 0},  {32, 32, 32, 2, 2, 0},
};
static const GemmTile scalar_tiles[] = {
    {128, 128, 16, 16, 16, 0}, {128, 64, 16, 16, 16, 0}, {64, 128, 16, 16, 16, 0}, {64, 64, 16, 8, 16, 0},
    {128, 32, 16, 16, 8, 0},   {64, 32, 16, 16, 8, 0},   {32, 64, 16, 8, 16, 0},   {32, 32, 16, 8, 8, 0},
};

const GemmTile *gemm_tiles(MathMode math, size_t *out_count) {
  *out_count = math == MATH_FP32 ? sizeof scalar_tiles / sizeof *scalar_tiles : sizeof core_tiles / sizeof *core_tiles;
  return math == MATH_FP32 ? scalar_tiles : core_tiles;
}

int32_t gemm_threads(const GemmChoice *choice) {
  const int32_t count = choice->tile.threads_m * choice->tile.threads_n;
  return choice->math == MATH_FP32 ? count : 32 * count;
}

int32_t gemm_element_bytes(const GemmChoice *choice) { return choice->packed ? 2 : 4; }

static int64_t operand_floats(const GemmCopy *copy, int32_t outer, int32_t k) {
  return copy->along_inner ? (int64_t)outer * k : (int64_t)(outer + 8) * k;
}

int64_t gemm_stage_floats(const GemmChoice *choice) {
  const GemmTile *tile = &choice->tile;
  const int32_t k = tile->k * gemm_element_bytes(choice) / 4;
  return operand_floats(&choice->a, tile->m, k) + operand_floats(&choice->b, tile->n, k);
}

static DataType element_of(const GemmProblem *problem, const GemmOperand *operand) {
  return problem->kernel->inputs[operand->input].layout.element;
}

bool gemm_packed(const GemmProblem *problem) {
  return element_of(problem, &problem->a) != DTYPE_F32 && element_of(problem, &problem->b) != DTYPE_F32;
}

/* --- how operands are copied ------------------------------------------------------------------------- */

static bool axis_divides(const GemmAxis *axis, int64_t vector, int32_t digits) {
  if (axis->offset % vector != 0) return false;
  for (int32_t d = 0; d < digits; d++)
    if (axis->digits[d].stride % vector != 0) return false;
  return true;
}

static const GemmDigit *last_digit(const GemmAxis *axis) {
  return axis->digit_count > 0 ? &axis->digits[axis->digit_count - 1] : NULL;
}

/* How many neighbours along `run` can be copied at once: their addresses follow each other and are aligned, and they
 * are on the image or off it together. */
static int32_t vector_along(const GemmOperand *operand, const PlanTensor *tensor, const GemmAxis *run,
                            const GemmAxis *other) {
  const GemmDigit *last = last_digit(run);
  if (last == NULL || last->stride != 1 || last->down != 0 || last->right != 0) return 0;
  const int32_t bytes = (int32_t)layout_stored_bytes(tensor->layout, tensor->dtype);
  for (int32_t vector = 16 / bytes; vector > 1; vector /= 2) {
    if (last->extent % vector == 0 && tensor->storage.delta % (bytes * vector) == 0 &&
        axis_divides(run, vector, run->digit_count - 1) && axis_divides(other, vector, other->digit_count) &&
        axis_divides(&operand->matrix, vector, operand->matrix.digit_count) && operand->row_stride % vector == 0 &&
        operand->column_stride % vector == 0)
      return vector;
  }
  return 1;
}

static GemmCopy choose_copy(const GemmOperand *operand, const PlanKernel *kernel) {
  const PlanTensor *tensor = &kernel->inputs[operand->input];
  const int32_t inner = vector_along(operand, tensor, &operand->inner, &operand->outer);
  const int32_t outer = vector_along(operand, tensor, &operand->outer, &operand->inner);
  if (inner > 0 || outer > 0)
    return (GemmCopy){.along_inner = inner >= outer, .vector = inner >= outer ? inner : outer};
  /* pixels of a plain image: neighbours in memory, though not always on the image together */
  const GemmDigit *last = last_digit(&operand->outer), *last_inner = last_digit(&operand->inner);
  const bool run = last != NULL && (last_inner == NULL || last->stride < last_inner->stride);
  return (GemmCopy){.along_inner = !run, .vector = 1};
}

/* --- the model --------------------------------------------------------------------------------------- */

/* Multiply-adds of a multiprocessor in a cycle: what these kernels may hope for. */
static double products_per_cycle(MathMode math) {
  switch (math) {
    case MATH_FP32:
      return 100;
    case MATH_3XTF32:
      return 200;
    case MATH_TF32:
      return 600;
    default:
      return 1100;
  }
}

/* Cycles of a block for a tile of k that nobody else shares the multiprocessor with: one step waits for the other. */
static double step_latency(const GemmChoice *choice) {
  const double barrier = 60, load = 60, product = 35, quad = 60;
  const double k = choice->tile.k;
  switch (choice->math) {
    case MATH_FP32:
      return barrier + k / 4 * quad;
    case MATH_3XTF32:
      return barrier + k / 8 * (load + 3 * product);
    case MATH_TF32:
      return barrier + k / 8 * (load + product);
    default:
      return barrier + k / 16 * (load + product);
  }
}

/* Blocks that a multiprocessor works on side by side. */
static int64_t residents(const GemmChoice *choice, const Target *target) {
  enum { REGISTERS = 65536, BESIDE_SCALARS = 64, BESIDE_FRAGMENTS = 112, BESIDE_PACKED = 64, THREADS = 1536, MOST = 8 };
  const int64_t threads = gemm_threads(choice), sums = (int64_t)choice->tile.m * choice->tile.n / threads;
  const int64_t shared = (target->shared_bytes > 0 ? target->shared_bytes : 160 * 1024) /
                         (gemm_stage_floats(choice) * choice->tile.stages * 4);
  const int64_t registers = sums + (choice->math == MATH_FP32 ? BESIDE_SCALARS
                                    : choice->packed          ? BESIDE_PACKED
                                                              : BESIDE_FRAGMENTS);
  const int64_t limits[4] = {shared, REGISTERS / (threads * registers), THREADS / threads, MOST};
  int64_t least = MOST;
  for (int i = 0; i < 4; i++) least = limits[i] < least ? limits[i] : least;
  return least < 1 ? 1 : least;
}

static double greater(double a, double b) { return a > b ? a : b; }

static void estimate(const GemmProblem *problem, const Target *target, int64_t max_batch, GemmChoice *choice) {
  const GemmTile *tile = &choice->tile;
  const int64_t m = axis_most(&problem->a.outer, max_batch), n = axis_count(&problem->b.outer);
  const int64_t k = axis_most(&problem->a.inner, max_batch);
  const int64_t processors = target->multiprocessors > 0 ? target->multiprocessors
                             : target->arch >= 90        ? MULTIPROCESSORS_HOPPER
                                                         : MULTIPROCESSORS_AMPERE;
  const double start = 1500, exchange = 2500; /* cycles of a block before and after its loop, and for a shared sum */
  const double bytes_per_cycle = 28;          /* of a multiprocessor, to and from the second-level cache */
  choice->blocks =
      ceil_div(m, tile->m) * ceil_div(n, tile->n) * axis_most(&problem->result.matrix[0], max_batch) * choice->splits;
  choice->waves = (double)choice->blocks / (double)processors;
  const double tiles_k = (double)ceil_div(ceil_div(k, tile->k), choice->splits);
  /* the more products to a float read from shared memory, the nearer to the peak */
  const double area = (double)tile->m * tile->n, reuse = area / (tile->m + tile->n);
  const double rate = products_per_cycle(choice->math) * reuse / (reuse + (choice->math == MATH_FP32 ? 8 : 16));
  const double copies = 4.0 * tile->k * (tile->m / choice->a.vector + tile->n / choice->b.vector) / 128;
  const double traffic = (double)gemm_element_bytes(choice) * tile->k * (tile->m + tile->n) / bytes_per_cycle;
  const double step = greater(area * tile->k / rate, greater(copies, traffic)), latency = step_latency(choice);
  const int64_t each = ceil_div(choice->blocks, processors), together = residents(choice, target),
                rest = each % together;
  const double full = tiles_k * greater((double)together * step, latency) + start;
  const double last = rest > 0 ? tiles_k * greater((double)rest * step, latency) + start : 0;
  choice->cycles = (double)(each / together) * full + last;
  if (choice->splits > 1) choice->cycles += exchange + area * 4 * (choice->splits + 1) / bytes_per_cycle;
}

/* The only arithmetic that packed operands are for. */
static MathMode packed_math(const GemmProblem *problem) {
  return element_of(problem, &problem->a) == DTYPE_BF16 ? MATH_BF16 : MATH_FP16;
}

/* Bytes for the stages, so that a multiprocessor has room for three blocks where it can. */
static int64_t stage_bytes(const Target *target) {
  const int64_t third = target->shared_bytes / 3;
  return third < SHARED_LEAST ? SHARED_LEAST : third > SHARED_MOST ? SHARED_MOST : third;
}

bool gemm_choose_tile(const GemmProblem *problem, const Target *target, int64_t max_batch, const GemmTile *tile,
                      int32_t splits, GemmChoice *out_choice) {
  GemmChoice choice = {.math = problem->kernel->choice.math, .tile = *tile, .splits = splits};
  if (target->arch < 80) choice.math = MATH_FP32;
  choice.a = choose_copy(&problem->a, problem->kernel);
  choice.b = choose_copy(&problem->b, problem->kernel);
  GemmTile *own = &choice.tile;
  choice.packed = gemm_packed(problem);
  if (choice.packed && (choice.math != packed_math(problem) || choice.a.vector < 8 || choice.b.vector < 8 ||
                        !choice.a.along_inner || !choice.b.along_inner))
    return false;
  if (choice.packed)
    own->k *= 2; /* as many bytes */
  else if (!choice.a.along_inner || !choice.b.along_inner || choice.a.vector < 4 || choice.b.vector < 4)
    own->k = 16;
  const int64_t stages = stage_bytes(target) / (gemm_stage_floats(&choice) * 4);
  own->stages = (int32_t)(stages < MAX_STAGES ? stages : MAX_STAGES);
  if (own->stages < LEAST_STAGES) own->stages = LEAST_STAGES;
  const KernelChoice *asked = &problem->kernel->choice;
  if (asked->algorithm == ALGORITHM_DEFAULT && asked->channel_chunk >= LEAST_STAGES &&
      asked->channel_chunk <= MAX_STAGES && asked->channel_chunk * gemm_stage_floats(&choice) * 4 <= SHARED_MOST)
    own->stages = asked->channel_chunk;
  const int64_t threads = gemm_threads(&choice);
  if ((int64_t)own->m * own->k > COPIES_MAX * threads * choice.a.vector ||
      (int64_t)own->n * own->k > COPIES_MAX * threads * choice.b.vector)
    return false;
  estimate(problem, target, max_batch, &choice);
  if (splits > 1 && choice.blocks / splits > RIDE_FIRST_COUNTER) return false;
  *out_choice = choice;
  return true;
}

/* A plan may ask for a tile (by its number from 1) and a number of splits, as whoever times variants does; also for a
 * number of stages, see gemm_choose_tile. */
static bool asked_for(const KernelChoice *asked, size_t tile, int32_t splits) {
  if (asked->algorithm != ALGORITHM_DEFAULT) return true;
  return (asked->tile_pixels == 0 || asked->tile_pixels == (int32_t)tile + 1) &&
         (asked->row_chunk == 0 || asked->row_chunk == splits);
}

static GemmChoice choose(const GemmProblem *problem, const Target *target, int64_t max_batch, bool any) {
  const MathMode math = target->arch < 80 ? MATH_FP32 : problem->kernel->choice.math;
  size_t count;
  const GemmTile *tiles = gemm_tiles(math, &count);
  GemmChoice best = {.cycles = INFINITY};
  for (size_t i = 0; i < count; i++) {
    const int64_t k = axis_most(&problem->a.inner, max_batch);
    const int64_t tiles_k = ceil_div(k, tiles[i].k * (gemm_packed(problem) ? 2 : 1));
    for (int32_t splits = 1; splits <= MAX_SPLITS; splits++) {
      GemmChoice choice;
      if (splits > 1 && tiles_k / splits < MIN_SPLIT_TILES) break;
      if (!any && !asked_for(&problem->kernel->choice, i, splits)) continue;
      if (gemm_choose_tile(problem, target, max_batch, &tiles[i], splits, &choice) && choice.cycles < best.cycles)
        best = choice;
    }
  }
  return best;
}

GemmChoice gemm_choose(const GemmProblem *problem, const Target *target, int64_t max_batch) {
  GemmChoice best = choose(problem, target, max_batch, false);
  /* what was asked for does not do for this problem */
  if (isinf(best.cycles)) best = choose(problem, target, max_batch, true);
  assert(!isinf(best.cycles)); /* values are packed so that their runs can be copied: passes/layout_channel_last.c */
  return best;
}
