/* The frame of kernels that compute each element of the output by itself. Threads follow the order of the output in
 * memory, so that neighbours write neighbours; where everything is aligned for it a thread takes four elements and
 * reads and writes 16 bytes at a time, or 8 of values kept in 16 bits. */
#include <assert.h>
#include <string.h>

#include "base/checked.h"

#include "cuda_ride.h"

enum {
  MAP_THREADS = 128,
  VECTOR_LANES = 4,
  TURNS = 16,        /* items of a thread at most, where reductions ride: a block costs as much as some items */
  BLOCKS_LEAST = 512 /* while there are fewer, threads take fewer items */
};

int32_t cuda_adjacent_dim(const PlanTensor *tensor) {
  for (int32_t dim = tensor->shape.rank - 1; dim >= 0; dim--)
    if (tensor->storage.stride[dim] == 1 && tensor->shape.dims[dim] > 1) return dim;
  return -1;
}

/* Vectors along `dim` are at multiples of their size wherever the other indices are. */
static bool takes_vectors(const PlanTensor *tensor, int32_t dim) {
  if (tensor->dtype != DTYPE_F32 || dim < 0 || dim >= tensor->shape.rank) return false;
  if (tensor->storage.stride[dim] != 1 || tensor->shape.dims[dim] % VECTOR_LANES != 0) return false;
  if (tensor->storage.origin % VECTOR_LANES != 0) return false;
  if (tensor->storage.delta % (VECTOR_LANES * layout_stored_bytes(tensor->layout, tensor->dtype)) != 0) return false;
  for (int32_t d = 0; d < tensor->shape.rank; d++)
    if (d != dim && tensor->shape.dims[d] != 1 && tensor->storage.stride[d] % VECTOR_LANES != 0) return false;
  return true;
}

static int32_t choose_lanes(const PlanKernel *kernel, int32_t lane_dim, int32_t vector_inputs) {
  if (vector_inputs < 0 || !takes_vectors(&kernel->output, lane_dim)) return 1;
  for (int32_t i = 0; i < vector_inputs; i++)
    if (!takes_vectors(&kernel->inputs[i], lane_dim)) return 1;
  return VECTOR_LANES;
}

void cuda_order_dims(const PlanTensor *tensor, int32_t order[SHAPE_MAX_RANK]) {
  for (int32_t d = 0; d < tensor->shape.rank; d++) {
    int32_t at = d;
    for (; at > 0 && tensor->shape.dims[order[at - 1]] != DIM_BATCH &&
           (tensor->shape.dims[d] == DIM_BATCH || tensor->storage.stride[order[at - 1]] < tensor->storage.stride[d]);
         at--)
      order[at] = order[at - 1];
    order[at] = d;
  }
}

static void name_dims(CudaEmit *emit, const Shape *shape, const char **names) {
  static const char *const image[] = {"n", "c", "h", "w"};
  for (int32_t d = 0; d < shape->rank; d++)
    names[d] = shape->rank == 4 ? image[d] : arena_format(emit->arena, "i%d", (int)d);
}

/* "const int h = item / 56 % 56;" for every dimension of more than one element; the others get the index "0". */
static void emit_indices(CudaEmit *emit, CudaMap *map) {
  const Shape *shape = &map->kernel->output.shape;
  int32_t order[SHAPE_MAX_RANK];
  cuda_order_dims(&map->kernel->output, order);
  name_dims(emit, shape, map->index);
  int64_t inner = 1;
  const char *texts[SHAPE_MAX_RANK] = {NULL};
  bool outermost = true;
  int32_t first = 0;
  while (first < shape->rank && shape->dims[order[first]] == 1) first++;
  for (int32_t k = shape->rank - 1; k >= 0; k--) {
    int32_t d = order[k];
    int64_t extent = shape->dims[d], lanes = d == map->lane_dim ? map->lanes : 1;
    if (extent == 1) {
      map->index[d] = "0";
      continue;
    }
    outermost = k == first;
    const char *quotient = inner == 1 ? "item" : arena_format(emit->arena, "item / %lld", (long long)inner);
    int64_t count = extent == DIM_BATCH ? 1 : extent / lanes;
    if (!outermost) quotient = arena_format(emit->arena, "%s %% %lld", quotient, (long long)count);
    if (lanes > 1) quotient = arena_format(emit->arena, "%s * %d", quotient, (int)lanes);
    texts[d] = arena_format(emit->arena, "const %s %s = %s;", emit->index, map->index[d], quotient);
    inner *= count;
  }
  for (int32_t d = 0; d < shape->rank; d++)
    if (texts[d] != NULL) cuda_line(emit, 1, "%s", texts[d]);
}

/* Whatever the batch is: where parts of a sum end does not depend on it. */
static int32_t choose_turns(const CudaEmit *emit, const PlanKernel *kernel, int64_t items) {
  if (kernel->reduction_count == 0) return 1;
  if (shape_batched(&kernel->output.shape)) items *= emit->max_batch;
  const int64_t turns = items / (BLOCKS_LEAST * MAP_THREADS);
  return turns < 1 ? 1 : turns > TURNS ? TURNS : (int32_t)turns;
}

/* Threads stay for the reductions, so that a loop goes round what each of them makes. */
static void begin_riding(CudaEmit *emit, const CudaMap *map, const char *items) {
  cuda_line(emit, 1, "SHARED(8) unsigned char ride_memory[%lld];",
            (long long)cuda_ride_shared_bytes(map->kernel, MAP_THREADS));
  cuda_ride_begin(emit, map->kernel, MAP_THREADS, "ride_memory");
  cuda_line(emit, 1, "BLOCK_SYNC();");
  cuda_line(emit, 1, "for (int turn = 0; turn < %d; turn++) {", (int)map->turns);
  emit->indent++;
  const char *block = strcmp(emit->index, "int") == 0 ? "block_x()" : "(i64)block_x()";
  cuda_line(emit, 1, "const %s item = (%s * %d + turn) * %d + thread_index();", emit->index, block, (int)map->turns,
            MAP_THREADS);
  cuda_line(emit, 1, "if (item >= %s) break;", items);
}

static void end_riding(CudaEmit *emit, const CudaMap *map) {
  const int64_t each = (int64_t)MAP_THREADS * map->turns;
  const bool batched = shape_batched(&map->kernel->output.shape);
  cuda_ride_take(emit, map->kernel, 1, "value", map->lanes);
  emit->indent--;
  cuda_line(emit, 1, "}");
  const int64_t most = ceil_div(map->items, each);
  const RideBlocks blocks = {"block_x()", "grid_x()", batched ? 0 : most, batched ? most : 0};
  cuda_ride_end(emit, map->kernel, MAP_THREADS, &blocks);
}

void cuda_map_begin(CudaEmit *emit, CudaMap *map, const PlanKernel *kernel, int32_t vector_inputs) {
  const PlanTensor *output = &kernel->output;
  *map = (CudaMap){.kernel = kernel, .function = arena_format(emit->arena, "k_%s", op_info(kernel->op)->name)};
  map->lane_dim = cuda_adjacent_dim(output);
  map->lanes = choose_lanes(kernel, map->lane_dim, vector_inputs);
  map->items = cuda_elements_per_image(&output->shape) / map->lanes;
  map->turns = choose_turns(emit, kernel, map->items);
  const bool batched = shape_batched(&output->shape);
  const char *items = batched ? cuda_batch(emit, map->items) : arena_format(emit->arena, "%lld", (long long)map->items);
  cuda_function(emit, kernel, map->function, MAP_THREADS);
  if (kernel->reduction_count > 0) {
    begin_riding(emit, map, items);
  } else {
    cuda_line(emit, 1, "const %s item = %s;", emit->index, cuda_thread_number(emit, MAP_THREADS));
    cuda_line(emit, 1, "if (item >= %s) return;", items);
  }
  emit_indices(emit, map);
  if (map->lanes > 1)
    cuda_line(emit, 1, "float value[%d];", (int)map->lanes);
  else
    cuda_line(emit, 1, "%s value;", cuda_type(output->dtype));
  cuda_launch(emit, map->function, MAP_THREADS, batched ? 0 : map->items, batched ? map->items : 0,
              (int64_t)MAP_THREADS * map->turns);
}

int cuda_lanes_begin(CudaEmit *emit, const CudaMap *map, int depth) {
  if (map->lanes == 1) return depth;
  cuda_line(emit, depth, "UNROLL");
  cuda_line(emit, depth, "for (int lane = 0; lane < %d; lane++) {", (int)map->lanes);
  return depth + 1;
}

void cuda_lanes_end(CudaEmit *emit, const CudaMap *map, int depth) {
  if (map->lanes > 1) cuda_line(emit, depth, "}");
}

const char *cuda_lane(CudaEmit *emit, const CudaMap *map, const char *name) {
  return map->lanes > 1 ? arena_format(emit->arena, "%s[lane]", name) : name;
}

void cuda_map_load(CudaEmit *emit, const CudaMap *map, int depth, int32_t input, const char *name, const char *offset) {
  const PlanTensor *tensor = &map->kernel->inputs[input];
  if (map->lanes == 1) {
    const char *place = arena_format(emit->arena, "in%d[%s]", (int)input, offset);
    cuda_line(emit, depth, "const %s %s = %s;", cuda_type(tensor->dtype), name, cuda_read(emit, tensor, place));
    return;
  }
  cuda_line(emit, depth, "float %s[%d];", name, (int)map->lanes);
  cuda_line(emit, depth, "load4%s(%s, in%d + %s);", cuda_vector_suffix(tensor), name, (int)input, offset);
}

const char *cuda_map_read(CudaEmit *emit, const CudaMap *map, int depth, const PlanTensor *tensor, int32_t input,
                          const char *const *index, const char *name) {
  const Shape *shape = &map->kernel->output.shape;
  const char *offset = cuda_broadcast_offset(emit, tensor, shape, index);
  int32_t own = map->lane_dim - (shape->rank - tensor->shape.rank); /* the lane dimension as the tensor counts */
  bool single = map->lanes == 1 || own < 0 || tensor->shape.dims[own] == 1;
  if (single) {
    const char *place = arena_format(emit->arena, "in%d[%s]", (int)input, offset);
    cuda_line(emit, depth, "const %s %s = %s;", cuda_type(tensor->dtype), name, cuda_read(emit, tensor, place));
    return name;
  }
  cuda_line(emit, depth, "float %s[%d];", name, (int)map->lanes);
  if (takes_vectors(tensor, own)) {
    cuda_line(emit, depth, "load4%s(%s, in%d + %s);", cuda_vector_suffix(tensor), name, (int)input, offset);
  } else {
    long long stride = tensor->storage.stride[own];
    const char *place = arena_format(emit->arena, "in%d[%s + lane * %lld]", (int)input, offset, stride);
    cuda_line(emit, depth, "UNROLL");
    cuda_line(emit, depth, "for (int lane = 0; lane < %d; lane++) %s[lane] = %s;", (int)map->lanes, name,
              cuda_read(emit, tensor, place));
  }
  return arena_format(emit->arena, "%s[lane]", name);
}

const char *cuda_map_operand(CudaEmit *emit, const CudaMap *map, int depth, int32_t input) {
  const char *name = arena_format(emit->arena, "e%d", (int)input);
  return cuda_map_read(emit, map, depth, &map->kernel->inputs[input], input, map->index, name);
}

typedef struct LoadedOperands {
  const char *names[CUDA_MAX_OPERANDS];
} LoadedOperands;

static const char *loaded_operand(CudaEmit *emit, void *context, int32_t input) {
  (void)emit;
  const LoadedOperands *operands = context;
  return operands->names[input];
}

/* Loads stand before the loop over lanes, which holds the arithmetic only. */
static void emit_map_epilogue(CudaEmit *emit, const CudaMap *map) {
  const PlanKernel *kernel = map->kernel;
  LoadedOperands operands = {{NULL}};
  if (kernel->epilogue_count == 0) return;
  for (int32_t i = 0; i < kernel->epilogue_count; i++) {
    int32_t input = kernel->epilogue[i].operand;
    if (input >= 0 && operands.names[input] == NULL) operands.names[input] = cuda_map_operand(emit, map, 1, input);
  }
  int depth = cuda_lanes_begin(emit, map, 1);
  const char *value = cuda_lane(emit, map, "value");
  cuda_line(emit, depth, "%s = %s;", value, cuda_epilogue_with(emit, depth, kernel, value, loaded_operand, &operands));
  cuda_lanes_end(emit, map, 1);
}

void cuda_map_end(CudaEmit *emit, CudaMap *map) {
  emit_map_epilogue(emit, map);
  const PlanTensor *output = &map->kernel->output;
  const char *offset = cuda_offset(emit, output, map->index);
  if (map->lanes > 1)
    cuda_line(emit, 1, "store4%s(y + %s, value);", cuda_vector_suffix(output), offset);
  else
    cuda_line(emit, 1, "y[%s] = %s;", offset, cuda_written(emit, output, "value"));
  if (map->kernel->reduction_count > 0) end_riding(emit, map);
  cuda_line(emit, 0, "}");
}
