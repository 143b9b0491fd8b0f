/* How elements are shared out: where the dimension whose neighbours are adjacent in memory is reduced, a block has one
 * result and its threads go along the elements ("rows"); else 32 neighbouring results share a block, and each warp
 * takes every eighth element of all of them ("columns"). Long reductions of few results are cut into parts, a block
 * each; the block that happens to be the last adds up the parts, in their order. */
#include "cuda_reduce.h"

#include <string.h>

#include "base/checked.h"

enum {
  ROW_THREADS = 128,
  COLUMN_THREADS = 256,
  COLUMNS = 32,
  COLUMN_ROWS = COLUMN_THREADS / COLUMNS,
  ROW_PART = 2048, /* least elements of a part */
  COLUMN_PART = 256,
  PARTS = 256,       /* most of a result */
  MANY_BLOCKS = 2048 /* enough for every device: no more parts than that asks for */
};

/* Some dimensions of x, widest stride first. */
typedef struct Dims {
  int32_t list[SHAPE_MAX_RANK], count;
  int64_t size; /* the product of their extents without the batch */
  bool batched;
} Dims;

typedef struct ReducePlan {
  const Reduction *reduction;
  Dims kept, gone;
  bool columns;
  int64_t groups; /* blocks that results need; of an image when batched */
  bool parted;
  int64_t part;  /* elements of a part, when parted */
  int64_t parts; /* most that one result has */
  const char *scratch;
} ReducePlan;

static Dims select_dims(const PlanTensor *x, const bool *reduced, bool wanted) {
  Dims dims = {.size = 1};
  int32_t order[SHAPE_MAX_RANK];
  cuda_order_dims(x, order);
  for (int32_t k = 0; k < x->shape.rank; k++) {
    int32_t d = order[k];
    if (reduced[d] != wanted) continue;
    dims.list[dims.count++] = d;
    if (x->shape.dims[d] == DIM_BATCH)
      dims.batched = true;
    else
      dims.size *= x->shape.dims[d];
  }
  return dims;
}

static ReducePlan make_plan(CudaEmit *emit, const Reduction *reduction) {
  ReducePlan plan = {.reduction = reduction,
                     .kept = select_dims(reduction->x, reduction->reduced, false),
                     .gone = select_dims(reduction->x, reduction->reduced, true)};
  int32_t adjacent = cuda_adjacent_dim(reduction->x);
  plan.columns = adjacent >= 0 && !reduction->reduced[adjacent];
  plan.groups = ceil_div(plan.kept.size, plan.columns ? COLUMNS : 1);
  int64_t most = plan.gone.size * (plan.gone.batched ? emit->max_batch : 1);
  int64_t blocks = plan.groups * (plan.kept.batched ? emit->max_batch : 1);
  int64_t parts = blocks > 0 && blocks < MANY_BLOCKS ? MANY_BLOCKS / blocks : 1;
  if (parts > PARTS) parts = PARTS;
  plan.part = plan.columns ? COLUMN_PART : ROW_PART;
  int64_t least = round_up(ceil_div(most, parts), COLUMN_ROWS);
  if (plan.part < least) plan.part = least;
  plan.parts = most > 0 ? ceil_div(most, plan.part) : 1;
  plan.parted = plan.parts > 1;
  return plan;
}

static const char *count_text(CudaEmit *emit, const Dims *dims) {
  if (!dims->batched) return arena_format(emit->arena, "%lld", (long long)dims->size);
  return cuda_batch(emit, dims->size);
}

const char *cuda_reduced_count(CudaEmit *emit, const Reduction *reduction) {
  Dims gone = select_dims(reduction->x, reduction->reduced, true);
  if (!gone.batched) return arena_format(emit->arena, "%lld.0", (long long)gone.size);
  return arena_format(emit->arena, "((double)batch * %lld.0)", (long long)gone.size);
}

void cuda_reduced_dims(const IntList *dims, int32_t rank, bool reduced[SHAPE_MAX_RANK]) {
  for (int32_t d = 0; d < SHAPE_MAX_RANK; d++) reduced[d] = d > 0 && d < rank && dims->count == 0;
  for (int32_t i = 0; i < dims->count; i++)
    reduced[dims->values[i] < 0 ? dims->values[i] + rank : dims->values[i]] = true;
}

void cuda_store(CudaEmit *emit, int depth, const PlanKernel *kernel, const char *value, const char *const *index) {
  const char *result = cuda_epilogue(emit, depth, kernel, value, index);
  cuda_line(emit, depth, "y[%s] = %s;", cuda_offset(emit, &kernel->output, index),
            cuda_written(emit, &kernel->output, result));
}

/* --- text --------------------------------------------------------------------------------------------- */

/* Declares the index of every dimension of the list from the number `from`. */
static void split_number(CudaEmit *emit, int depth, const PlanTensor *x, const Dims *dims, const char *from,
                         const char **index) {
  int64_t inner = 1;
  for (int32_t k = dims->count - 1; k >= 0; k--) {
    int32_t d = dims->list[k];
    int64_t extent = x->shape.dims[d];
    if (extent == 1) {
      index[d] = "0";
      continue;
    }
    const char *quotient = inner == 1 ? from : arena_format(emit->arena, "%s / %lld", from, (long long)inner);
    if (k > 0) quotient = arena_format(emit->arena, "%s %% %lld", quotient, (long long)extent);
    index[d] = arena_format(emit->arena, "d%d", (int)d);
    cuda_line(emit, depth, "const %s d%d = %s;", emit->index, (int)d, quotient);
    inner *= extent < 0 ? 1 : extent;
  }
}

/* Whether steps of dimension `outer` go on where `extent` steps of `inner` end, in x and all operands of its shape. */
static bool goes_on(const Reduction *reduction, int32_t outer, int32_t inner, int64_t extent) {
  const PlanKernel *kernel = reduction->kernel;
  if (reduction->x->storage.stride[outer] != reduction->x->storage.stride[inner] * extent) return false;
  for (int32_t i = 0; i < kernel->input_count; i++) {
    const PlanTensor *input = &kernel->inputs[i];
    if (!shape_equal(&input->shape, &reduction->x->shape)) continue;
    if (input->storage.stride[outer] != input->storage.stride[inner] * extent) return false;
  }
  return true;
}

/* The same for elements of a result: dimensions that go on in one another count as one, the innermost of them, so that
 * most reductions need no division. */
static void split_elements(CudaEmit *emit, int depth, const Reduction *reduction, const Dims *dims,
                           const char **index) {
  const Shape *shape = &reduction->x->shape;
  int64_t inner = 1;
  for (int32_t k = dims->count - 1; k >= 0; k--) {
    int32_t d = dims->list[k];
    int64_t extent = shape->dims[d];
    index[d] = "0";
    if (extent == 1) continue;
    for (; k > 0 && extent != DIM_BATCH; k--) {
      int32_t outer = dims->list[k - 1];
      if (shape->dims[outer] != 1 && !goes_on(reduction, outer, d, extent)) break;
      index[outer] = "0";
      extent = shape->dims[outer] == DIM_BATCH ? DIM_BATCH : extent * shape->dims[outer];
    }
    const char *number = inner == 1 ? "r" : arena_format(emit->arena, "r / %lld", (long long)inner);
    if (k > 0) number = arena_format(emit->arena, "%s %% %lld", number, (long long)extent);
    index[d] = arena_format(emit->arena, "d%d", (int)d);
    if (strcmp(number, "r") == 0)
      index[d] = "r";
    else
      cuda_line(emit, depth, "const %s d%d = %s;", emit->index, (int)d, number);
    inner *= extent < 0 ? 1 : extent;
  }
}

static const char *total_type(const Reduction *reduction) { return reduction->maximum ? "float" : "double"; }

static void declare_totals(CudaEmit *emit, const Reduction *reduction) {
  for (int32_t k = 0; k < reduction->totals; k++)
    cuda_line(emit, 1, "%s total%d = %s;", total_type(reduction), (int)k, reduction->maximum ? "-F32_INFINITY" : "0");
}

/* "total0 += x;" or the maximum of both. */
static void combine(CudaEmit *emit, int depth, const Reduction *reduction, int32_t k, const char *value) {
  if (reduction->maximum)
    cuda_line(emit, depth, "total%d = max_or_nan(total%d, %s);", (int)k, (int)k, value);
  else
    cuda_line(emit, depth, "total%d += %s;", (int)k, value);
}

/* The loop of a thread over its elements of [begin, end). */
static void emit_elements(CudaEmit *emit, int depth, const ReducePlan *plan, const char *first, int step,
                          const char **index) {
  const Reduction *reduction = plan->reduction;
  cuda_line(emit, depth, "for (%s r = begin + %s; r < end; r += %d) {", emit->index, first, step);
  split_elements(emit, depth + 1, reduction, &plan->gone, index);
  for (int32_t k = 0; k < reduction->totals; k++)
    combine(emit, depth + 1, reduction, k, reduction->term(emit, reduction->context, depth + 1, k, index));
  cuda_line(emit, depth, "}");
}

static void finish(CudaEmit *emit, const ReducePlan *plan, const char **index) {
  const Reduction *reduction = plan->reduction;
  const char *names[REDUCE_MAX_TOTALS];
  for (int32_t k = 0; k < reduction->totals; k++) names[k] = arena_format(emit->arena, "total%d", (int)k);
  for (int32_t k = 0; k < plan->gone.count; k++) index[plan->gone.list[k]] = NULL;
  reduction->finish(emit, reduction->context, 1, names, index);
}

/* --- parts -------------------------------------------------------------------------------------------- */

static const char *part_place(CudaEmit *emit, const ReducePlan *plan, const char *part, const char *result, int32_t k) {
  return arena_format(emit->arena, "parts[((i64)%s * results + %s) * %d + %d]", part, result,
                      (int)plan->reduction->totals, (int)k);
}

/* Keeps the totals of this part where `condition` holds, and goes on in the last block only, with new totals. */
static void emit_handover(CudaEmit *emit, const ReducePlan *plan, const char *condition, const char *result) {
  const Reduction *reduction = plan->reduction;
  const char *type = total_type(reduction);
  cuda_line(emit, 1, "volatile %s *parts = (volatile %s *)%s;", type, type, plan->scratch);
  cuda_line(emit, 1, "if (%s) {", condition);
  for (int32_t k = 0; k < reduction->totals; k++)
    cuda_line(emit, 2, "%s = total%d;", part_place(emit, plan, "part", result, k), (int)k);
  cuda_line(emit, 1, "}");
  cuda_line(emit, 1, "if (!is_last_block((u32 *)scratch + group, part_count, &last)) return;");
  for (int32_t k = 0; k < reduction->totals; k++)
    cuda_line(emit, 1, "total%d = %s;", (int)k, reduction->maximum ? "-F32_INFINITY" : "0");
}

static void add_parts(CudaEmit *emit, int depth, const ReducePlan *plan, const char *first, int step,
                      const char *result) {
  cuda_line(emit, depth, "for (int other = %s; other < part_count; other += %d) {", first, step);
  for (int32_t k = 0; k < plan->reduction->totals; k++)
    combine(emit, depth + 1, plan->reduction, k, part_place(emit, plan, "other", result, k));
  cuda_line(emit, depth, "}");
}

/* Blocks along x have results, or parts when those grow with the batch; the others go along y. */
static void emit_share(CudaEmit *emit, const ReducePlan *plan) {
  bool parts_along_x = plan->parted && plan->gone.batched;
  cuda_line(emit, 1, "const %s results = %s, elements = %s;", emit->index, count_text(emit, &plan->kept),
            count_text(emit, &plan->gone));
  cuda_line(emit, 1, "(void)results;");
  if (!plan->parted) {
    cuda_line(emit, 1, "const %s group = block_x(), begin = 0, end = elements;", emit->index);
    return;
  }
  cuda_line(emit, 1, "const %s part = %s, group = %s;", emit->index, parts_along_x ? "block_x()" : "block_y()",
            parts_along_x ? "block_y()" : "block_x()");
  cuda_line(emit, 1, "const int part_count = %s;",
            parts_along_x ? "grid_x()" : arena_format(emit->arena, "%lld", (long long)plan->parts));
  cuda_line(emit, 1, "const %s begin = part * %lld;", emit->index, (long long)plan->part);
  cuda_line(emit, 1, "const %s end = begin + %lld < elements ? begin + %lld : elements;", emit->index,
            (long long)plan->part, (long long)plan->part);
}

static void add_launch(CudaEmit *emit, const ReducePlan *plan, const char *function) {
  int64_t group = plan->columns ? COLUMNS : 1;
  int32_t threads = plan->columns ? COLUMN_THREADS : ROW_THREADS;
  if (plan->parted && plan->gone.batched) {
    cuda_launch(emit, function, threads, 0, plan->gone.size, plan->part)->grid_y = (int32_t)plan->groups;
    return;
  }
  CudaLaunch *launch = cuda_launch(emit, function, threads, plan->kept.batched ? 0 : plan->kept.size,
                                   plan->kept.batched ? plan->kept.size : 0, group);
  if (plan->parted) launch->grid_y = (int32_t)plan->parts;
}

/* --- rows and columns --------------------------------------------------------------------------------- */

static void sum_block(CudaEmit *emit, const Reduction *reduction) {
  for (int32_t k = 0; k < reduction->totals; k++)
    cuda_line(emit, 1, "total%d = %s(total%d, shared, %d);", (int)k,
              reduction->maximum ? "block_max_f32" : "block_sum_f64", (int)k, ROW_THREADS);
}

static void emit_rows(CudaEmit *emit, const ReducePlan *plan) {
  const Reduction *reduction = plan->reduction;
  const char *index[SHAPE_MAX_RANK] = {NULL};
  cuda_function(emit, reduction->kernel, reduction->name, ROW_THREADS);
  cuda_line(emit, 1, "SHARED(8) %s shared[%d];", total_type(reduction), ROW_THREADS / 32);
  if (plan->parted) cuda_line(emit, 1, "SHARED(4) int last;");
  emit_share(emit, plan);
  split_number(emit, 1, reduction->x, &plan->kept, "group", index);
  declare_totals(emit, reduction);
  emit_elements(emit, 1, plan, "thread_index()", ROW_THREADS, index);
  sum_block(emit, reduction);
  if (plan->parted) {
    emit_handover(emit, plan, "thread_index() == 0", "group");
    add_parts(emit, 1, plan, "thread_index()", ROW_THREADS, "group");
    sum_block(emit, reduction);
  }
  cuda_line(emit, 1, "if (thread_index() != 0) return;");
  finish(emit, plan, index);
  cuda_line(emit, 0, "}");
}

/* The first row's threads get the totals of all rows. */
static void sum_rows(CudaEmit *emit, const Reduction *reduction) {
  for (int32_t k = 0; k < reduction->totals; k++)
    cuda_line(emit, 1, "shared[%d][row][column] = total%d;", (int)k, (int)k);
  cuda_line(emit, 1, "BLOCK_SYNC();");
  cuda_line(emit, 1, "for (int other = 1; row == 0 && other < %d; other++) {", COLUMN_ROWS);
  for (int32_t k = 0; k < reduction->totals; k++)
    combine(emit, 2, reduction, k, arena_format(emit->arena, "shared[%d][other][column]", (int)k));
  cuda_line(emit, 1, "}");
}

static void emit_columns(CudaEmit *emit, const ReducePlan *plan) {
  const Reduction *reduction = plan->reduction;
  const char *index[SHAPE_MAX_RANK] = {NULL};
  cuda_function(emit, reduction->kernel, reduction->name, COLUMN_THREADS);
  cuda_line(emit, 1, "SHARED(8) %s shared[%d][%d][%d]; /* total, row, column */", total_type(reduction),
            (int)reduction->totals, COLUMN_ROWS, COLUMNS);
  if (plan->parted) cuda_line(emit, 1, "SHARED(4) int last;");
  emit_share(emit, plan);
  cuda_line(emit, 1, "const int column = thread_index() %% %d, row = thread_index() / %d;", COLUMNS, COLUMNS);
  cuda_line(emit, 1, "const int inside = group * %d + column < results;", COLUMNS);
  cuda_line(emit, 1, "const %s result = inside ? group * %d + column : 0;", emit->index, COLUMNS);
  split_number(emit, 1, reduction->x, &plan->kept, "result", index);
  declare_totals(emit, reduction);
  cuda_line(emit, 1, "if (inside) {");
  emit_elements(emit, 2, plan, "row", COLUMN_ROWS, index);
  cuda_line(emit, 1, "}");
  sum_rows(emit, reduction);
  if (plan->parted) {
    emit_handover(emit, plan, "row == 0 && inside", "result");
    cuda_line(emit, 1, "if (inside) {");
    add_parts(emit, 2, plan, "row", COLUMN_ROWS, "result");
    cuda_line(emit, 1, "}");
    sum_rows(emit, reduction);
  }
  cuda_line(emit, 1, "if (row != 0 || !inside) return;");
  finish(emit, plan, index);
  cuda_line(emit, 0, "}");
}

void cuda_reduce(CudaEmit *emit, const Reduction *reduction) {
  ReducePlan plan = make_plan(emit, reduction);
  if (plan.parted) {
    int64_t bytes = plan.parts * plan.kept.size * reduction->totals * (reduction->maximum ? 4 : 8);
    plan.scratch = cuda_scratch(emit, plan.kept.batched ? 0 : bytes, plan.kept.batched ? bytes : 0);
    emit->counters = true;
  }
  if (plan.columns)
    emit_columns(emit, &plan);
  else
    emit_rows(emit, &plan);
  add_launch(emit, &plan, reduction->name);
}

/* --- mean, sum, max ----------------------------------------------------------------------------------- */

typedef struct Simple {
  Reduction reduction;
  bool keep_dims, mean;
} Simple;

static const char *simple_term(CudaEmit *emit, void *context, int depth, int32_t k, const char *const *index) {
  const Simple *simple = context;
  (void)depth, (void)k;
  const PlanTensor *x = simple->reduction.x;
  return cuda_read(emit, x, arena_format(emit->arena, "in0[%s]", cuda_offset(emit, x, index)));
}

static void simple_finish(CudaEmit *emit, void *context, int depth, const char *const *totals,
                          const char *const *index) {
  const Simple *simple = context;
  const Reduction *reduction = &simple->reduction;
  const char *out[SHAPE_MAX_RANK] = {NULL};
  int32_t rank = 0;
  for (int32_t d = 0; d < reduction->x->shape.rank; d++) {
    if (!reduction->reduced[d])
      out[rank++] = index[d];
    else if (simple->keep_dims)
      out[rank++] = "0";
  }
  const char *divisor = simple->mean ? arena_format(emit->arena, " / %s", cuda_reduced_count(emit, reduction)) : "";
  cuda_line(emit, depth, "const float value = (float)(%s%s);", totals[0], divisor);
  cuda_store(emit, depth, reduction->kernel, "value", out);
}

static bool reduce_simple(CudaEmit *emit, const PlanKernel *kernel, bool mean, bool maximum) {
  Simple simple = {.keep_dims = kernel->attrs.keep_dims, .mean = mean};
  simple.reduction = (Reduction){.kernel = kernel,
                                 .name = arena_format(emit->arena, "k_%s", op_info(kernel->op)->name),
                                 .x = &kernel->inputs[0],
                                 .totals = 1,
                                 .maximum = maximum,
                                 .term = simple_term,
                                 .finish = simple_finish,
                                 .context = &simple};
  cuda_reduced_dims(&kernel->attrs.dims, kernel->inputs[0].shape.rank, simple.reduction.reduced);
  cuda_reduce(emit, &simple.reduction);
  return true;
}

bool cuda_mean(CudaEmit *emit, const PlanKernel *kernel) { return reduce_simple(emit, kernel, true, false); }
bool cuda_sum(CudaEmit *emit, const PlanKernel *kernel) { return reduce_simple(emit, kernel, false, false); }
bool cuda_max(CudaEmit *emit, const PlanKernel *kernel) { return reduce_simple(emit, kernel, false, true); }

/* The whole image as one window: what adaptive pools to 1x1 are. */
bool cuda_pool_all(CudaEmit *emit, const PlanKernel *kernel, bool maximum) {
  PlanKernel whole = *kernel;
  whole.attrs.dims = (IntList){2, {2, 3}};
  whole.attrs.keep_dims = true;
  return reduce_simple(emit, &whole, !maximum, maximum);
}
