#include "runs.h"

#include "conv.h"

KernelWork split_kept(Emit *emit, const Shape *shape, const bool *skipped, Value item, Value *index) {
  int64_t extents[SHAPE_MAX_RANK], per_image = 1;
  Value digits[SHAPE_MAX_RANK];
  int32_t dims[SHAPE_MAX_RANK], count = 0;
  for (int32_t d = 0; d < shape->rank; d++) {
    if (skipped[d]) continue;
    dims[count] = d, extents[count] = shape->dims[d];
    if (count++ > 0) per_image *= shape->dims[d];
  }
  if (count == 0) return (KernelWork){.items = 1};
  emit_split(emit, item, count, extents, digits);
  for (int32_t i = 0; i < count; i++) index[dims[i]] = digits[i];
  return work_per_image(extents[0], per_image);
}

int32_t dim_from_front(int64_t dim, int32_t rank) { return (int32_t)(dim < 0 ? dim + rank : dim); }

Value emit_extent(Emit *emit, int64_t extent) { return extent == DIM_BATCH ? emit->batch : emit_int(emit, extent); }

/* Whether stepping over the end of dimension `dim` leads to the next element. */
static bool is_dense_at(const PlanTensor *tensor, int32_t dim, int64_t step) {
  return tensor == NULL || tensor->storage.stride[dim] == step;
}

Runs runs_begin(Emit *emit, const PlanTensor *a, const PlanTensor *b, int32_t first, const bool *chosen, bool by_rows,
                Value *index) {
  const Shape *shape = &a->shape;
  Runs runs = {.dim = -1, .count = 1};
  int32_t end = shape->rank; /* dimensions from here on are the run's */
  while (end > first && (chosen == NULL || chosen[end - 1]) && shape->dims[end - 1] != DIM_BATCH &&
         is_dense_at(a, end - 1, runs.count) && is_dense_at(b, end - 1, runs.count)) {
    end--;
    runs.dim = shape->rank - 1;
    runs.count *= shape->dims[end];
    index[end] = NULL;
    if (by_rows) break;
  }
  for (int32_t d = first; d < end; d++) {
    if (chosen != NULL && !chosen[d]) continue;
    EmitLoop *loop = &runs.loops[runs.loop_count++];
    *loop = emit_loop_begin(emit, emit_int(emit, 0), emit_extent(emit, shape->dims[d]), 1, "along");
    index[d] = loop->index;
  }
  return runs;
}

void runs_end(Emit *emit, Runs *runs) {
  while (runs->loop_count > 0) emit_loop_end(emit, &runs->loops[--runs->loop_count]);
}
