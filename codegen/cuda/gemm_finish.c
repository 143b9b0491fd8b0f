/* From the sums of a tile to the output.
 *
 * With splits, every block leaves its part of the sums in scratch memory and takes a ticket; the one that gets the last
 * ticket adds the parts in the order of k, its own among them, so that the result does not depend on which block it is.
 *
 * Then the sums go through shared memory, so that threads read operands of the epilogue and write the output in the
 * order of memory: 4 neighbours of n at once, or along m where the output is plain. */
#include "base/checked.h"
#include "cuda_ride.h"
#include "gemm.h"

/* --- where results lie ------------------------------------------------------------------------------- */

static const PlanTensor *result_tensor(const GemmProblem *problem, int32_t tensor) {
  return tensor == 0 ? &problem->kernel->output : &problem->kernel->inputs[tensor - 1];
}

static bool is_bias(const GemmProblem *problem, int32_t tensor) { return tensor > 0 && tensor - 1 == problem->bias; }

static bool takes_part(const GemmProblem *problem, int32_t tensor) {
  return tensor == 0 || is_bias(problem, tensor) || tensor - 1 >= problem->kernel->op_input_count;
}

/* Stride of a tensor along a dimension of the output: 0 where it broadcasts. */
static int64_t result_stride(const GemmProblem *problem, int32_t tensor, int32_t dim, int32_t bias_dim) {
  const PlanTensor *own = result_tensor(problem, tensor);
  if (is_bias(problem, tensor)) return dim == bias_dim ? own->storage.stride[0] : 0;
  const int32_t at = dim - (problem->kernel->output.shape.rank - own->shape.rank);
  if (at < 0 || (own->shape.dims[at] == 1 && problem->kernel->output.shape.dims[dim] != 1)) return 0;
  return own->storage.stride[at];
}

static int32_t tensor_count(const GemmProblem *problem) { return 1 + problem->kernel->input_count; }

void gemm_result_begin(GemmProblem *problem) {
  for (int32_t t = 0; t < tensor_count(problem); t++)
    if (takes_part(problem, t)) problem->result.rows[t].offset = result_tensor(problem, t)->storage.origin;
}

void gemm_result_add(GemmProblem *problem, GemmRole role, int32_t dim, int32_t bias_dim, int64_t extent, int64_t step) {
  GemmResult *result = &problem->result;
  GemmAxis *axes = role == GEMM_ROWS ? result->rows : role == GEMM_COLUMNS ? result->columns : result->matrix;
  for (int32_t t = 0; t < tensor_count(problem); t++) {
    const int64_t stride = takes_part(problem, t) ? step * result_stride(problem, t, dim, bias_dim) : 0;
    axis_add(&axes[t], extent, stride, 0, 0);
  }
}

void gemm_result_shift(GemmProblem *problem, int32_t dim, int64_t start) {
  for (int32_t t = 0; t < tensor_count(problem); t++)
    if (takes_part(problem, t) && !is_bias(problem, t))
      problem->result.rows[t].offset += start * result_stride(problem, t, dim, -1);
}

void gemm_result_end(GemmProblem *problem) {
  GemmAxis *axes[GEMM_MAX_TENSORS];
  GemmResult *result = &problem->result;
  GemmAxis *const all[3] = {result->rows, result->columns, result->matrix};
  for (int role = 0; role < 3; role++) {
    /* tensors that take no part have strides of 0, which never keep digits apart */
    for (int32_t t = 0; t < tensor_count(problem); t++) axes[t] = &all[role][t];
    axes_merge(axes, tensor_count(problem));
  }
}

/* --- parts of a sum ---------------------------------------------------------------------------------- */

/* Statements over all sums of a thread, each with its number. */
static void each_sum(const GemmText *text, int depth, const char *format) {
  CudaEmit *emit = text->emit;
  const GemmTile *tile = &text->choice->tile;
  const bool scalar = text->choice->math == MATH_FP32;
  const int rows = (int)(tile->m / tile->threads_m) / (scalar ? 1 : 16);
  const int columns = (int)(tile->n / tile->threads_n) / (scalar ? 1 : 8);
  cuda_line(emit, depth, "UNROLL");
  cuda_line(emit, depth, "for (int i = 0; i < %d; i++)", rows);
  cuda_line(emit, depth + 1, "UNROLL");
  cuda_line(emit, depth + 1, "for (int j = 0; j < %d; j++)", columns);
  const char *sum = "sums[i][j]", *number = arena_format(emit->arena, "(i * %d + j)", columns);
  if (!scalar) {
    cuda_line(emit, depth + 2, "UNROLL");
    cuda_line(emit, depth + 2, "for (int r = 0; r < 4; r++)");
    sum = "sums[i][j][r]", number = arena_format(emit->arena, "((i * %d + j) * 4 + r)", columns);
  }
  const char *place = arena_format(emit->arena, "part[%s * %d + thread]", number, (int)text->threads);
  cuda_line(emit, depth + (scalar ? 2 : 3), format, sum, place);
}

static void emit_exchange(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const GemmProblem *problem = text->problem;
  const GemmTile *tile = &text->choice->tile;
  const int splits = (int)text->choice->splits;
  const int64_t tiles_m = (axis_count(&problem->a.outer) + tile->m - 1) / tile->m;
  const int64_t tiles_n = (axis_count(&problem->b.outer) + tile->n - 1) / tile->n;
  const int64_t bytes = tiles_m * tiles_n * axis_count(&problem->result.matrix[0]) * splits * tile->m * tile->n * 4;
  const bool batched = problem->a.outer.batched || problem->result.matrix[0].batched;
  emit->counters = true;
  const char *scratch = cuda_scratch(emit, batched ? 0 : bytes, batched ? bytes : 0);
  const long long floats = (long long)tile->m * tile->n;
  cuda_line(emit, 1, "float *part = (float *)%s + ((i64)block_x() * %d + block_z()) * %lld;", scratch, splits, floats);
  each_sum(text, 1, "%2$s = %1$s;");
  cuda_line(emit, 1, "DEVICE_FENCE();");
  cuda_line(emit, 1, "BLOCK_SYNC();");
  cuda_line(emit, 1, "if (thread == 0) shared[0] = atomic_add_u32((u32 *)scratch + block_x(), 1) == %du;", splits - 1);
  cuda_line(emit, 1, "BLOCK_SYNC();");
  cuda_line(emit, 1, "if (shared[0] == 0) return;");
  cuda_line(emit, 1, "DEVICE_FENCE();");
  cuda_line(emit, 1, "if (thread == 0) ((u32 *)scratch)[block_x()] = 0;");
  cuda_line(emit, 1, "part -= block_z() * %lld;", floats);
  each_sum(text, 1, "%1$s = %2$s;");
  cuda_line(emit, 1, "for (int split = 1; split < %d; split++) {", splits);
  cuda_line(emit, 2, "part += %lld;", floats);
  each_sum(text, 2, "%1$s += %2$s;");
  cuda_line(emit, 1, "}");
}

/* --- epilogue and store ------------------------------------------------------------------------------ */

typedef struct Finish {
  const GemmText *text;
  int32_t lanes;
  bool along_rows; /* neighbouring threads take neighbours of m */
} Finish;

static const GemmDigit *innermost(const GemmAxis *axis) {
  return axis->digit_count > 0 ? &axis->digits[axis->digit_count - 1] : NULL;
}

/* 4 neighbours of n at this tensor: one address apart each (1), the same element (0), or something else. */
static int64_t lane_stride(const GemmProblem *problem, int32_t tensor) {
  const GemmDigit *last = innermost(&problem->result.columns[tensor]);
  return last == NULL ? 0 : last->stride;
}

static bool lanes_aligned(const GemmProblem *problem, int32_t tensor) {
  const GemmAxis *const axes[3] = {&problem->result.rows[tensor], &problem->result.columns[tensor],
                                   &problem->result.matrix[tensor]};
  const PlanTensor *own = result_tensor(problem, tensor);
  if (own->storage.delta % (4 * layout_stored_bytes(own->layout, own->dtype)) != 0) return false;
  for (int role = 0; role < 3; role++) {
    const int32_t digits = axes[role]->digit_count - (role == 1 ? 1 : 0);
    if (axes[role]->offset % 4 != 0) return false;
    for (int32_t d = 0; d < digits; d++)
      if (axes[role]->digits[d].stride % 4 != 0) return false;
  }
  return true;
}

static Finish choose_finish(const GemmText *text) {
  const GemmProblem *problem = text->problem;
  Finish finish = {.text = text, .lanes = 1};
  const GemmDigit *column = innermost(&problem->result.columns[0]), *row = innermost(&problem->result.rows[0]);
  if (column != NULL && column->stride == 1 && column->extent % 4 == 0 && lanes_aligned(problem, 0)) finish.lanes = 4;
  if (row != NULL && (column == NULL || row->stride < column->stride)) finish.along_rows = true;
  return finish;
}

/* The offset of a tensor's element at the digits of this place. */
static const char *place_offset(const GemmText *text, int32_t tensor) {
  CudaEmit *emit = text->emit;
  const GemmResult *result = &text->problem->result;
  const GemmAxis *const axes[3] = {&result->rows[tensor], &result->columns[tensor], &result->matrix[tensor]};
  static const char *const names[3] = {"row", "column", "product"};
  Text sum;
  text_init(&sum, emit->arena);
  for (int role = 0; role < 3; role++) {
    const char *term = axis_offset(emit, axes[role], names[role]);
    if (term[0] == '0' && term[1] == '\0') continue;
    text_format(&sum, sum.size > 0 ? " + %s" : "%s", term);
  }
  return sum.size > 0 ? sum.data : "0";
}

/* Declares in%d_v[lanes] before the loop over lanes, or just the offset. */
static void load_operand(const Finish *finish, int depth, int32_t input) {
  CudaEmit *emit = finish->text->emit;
  const GemmProblem *problem = finish->text->problem;
  const int32_t tensor = input + 1;
  const int64_t stride = lane_stride(problem, tensor);
  const int at = (int)input;
  const PlanTensor *own = &problem->kernel->inputs[input];
  const char *type = cuda_type(own->dtype);
  cuda_line(emit, depth, "const %s in%d_at = %s;", emit->index, at, place_offset(finish->text, tensor));
  if (finish->lanes == 1 || stride == 0) {
    cuda_line(emit, depth, "const %s in%d_v = %s;", type, at,
              cuda_read(emit, own, arena_format(emit->arena, "in%d[in%d_at]", at, at)));
  } else if (stride == 1 && own->dtype == DTYPE_F32 && lanes_aligned(problem, tensor)) {
    cuda_line(emit, depth, "float in%d_v[4];", at);
    cuda_line(emit, depth, "load4%s(in%d_v, in%d + in%d_at);", cuda_vector_suffix(own), at, at, at);
  } else {
    const char *place = arena_format(emit->arena, "in%d[in%d_at + j * %lld]", at, at, (long long)stride);
    cuda_line(emit, depth, "%s in%d_v[4];", type, at);
    cuda_line(emit, depth, "UNROLL");
    cuda_line(emit, depth, "for (int j = 0; j < 4; j++) in%d_v[j] = %s;", at, cuda_read(emit, own, place));
  }
}

static const char *operand_value(CudaEmit *emit, void *context, int32_t input) {
  const Finish *finish = context;
  const bool array = finish->lanes > 1 && lane_stride(finish->text->problem, input + 1) != 0;
  return arena_format(emit->arena, array ? "in%d_v[j]" : "in%d_v", (int)input);
}

static void emit_store_pass(const Finish *finish, int32_t pass) {
  const GemmText *text = finish->text;
  CudaEmit *emit = text->emit;
  const GemmProblem *problem = text->problem;
  const PlanKernel *kernel = problem->kernel;
  const int rows = (int)(text->choice->tile.m / gemm_passes(text)), lanes = (int)finish->lanes;
  const int across = (int)text->choice->tile.n / lanes, pitch = (int)gemm_pass_pitch(text);
  cuda_line(emit, 1, "for (int at = thread; at < %d; at += %d) {", rows * across, (int)text->threads);
  if (finish->along_rows)
    cuda_line(emit, 2, "const int local = at %% %d, lane_n = at / %d * %d;", rows, rows, lanes);
  else
    cuda_line(emit, 2, "const int local = at / %d, lane_n = at %% %d * %d;", across, across, lanes);
  cuda_line(emit, 2, "const int m = m_first + %s, n = n_first + lane_n;", gemm_pass_row(text, pass, "local"));
  cuda_line(emit, 2, "if (m < size_m && n < size_n) {");
  axis_split(emit, 3, &problem->result.rows[0], "m", "row");
  axis_split(emit, 3, &problem->result.columns[0], "n", "column");
  const char *value = "value";
  if (lanes > 1) {
    cuda_line(emit, 3, "float values[4];");
    cuda_line(emit, 3, "load4(values, shared + local * %d + lane_n);", pitch);
    value = "values[j]";
  } else {
    cuda_line(emit, 3, "const float value = shared[local * %d + lane_n];", pitch);
  }
  if (problem->bias >= 0) load_operand(finish, 3, problem->bias);
  for (int32_t i = kernel->op_input_count; i < kernel->input_count; i++) load_operand(finish, 3, i);
  const int depth = lanes > 1 ? 4 : 3;
  if (lanes > 1) {
    cuda_line(emit, 3, "UNROLL");
    cuda_line(emit, 3, "for (int j = 0; j < 4; j++) {");
  }
  Finish context = *finish;
  if (problem->bias >= 0) {
    cuda_line(emit, depth, "const float biased = %s + %s;", value, operand_value(emit, &context, problem->bias));
    value = "biased";
  }
  value = cuda_epilogue_with(emit, depth, kernel, value, operand_value, &context);
  if (lanes > 1) {
    cuda_line(emit, 4, "values[j] = %s;", value);
    cuda_line(emit, 3, "}");
    cuda_line(emit, 3, "store4%s(y + (%s), values);", cuda_vector_suffix(&kernel->output), place_offset(text, 0));
    cuda_ride_take(emit, kernel, 3, "values", lanes);
  } else if (kernel->reduction_count > 0) {
    cuda_line(emit, 3, "float result = %s;", value);
    cuda_line(emit, 3, "y[%s] = %s;", place_offset(text, 0), cuda_written(emit, &kernel->output, "result"));
    cuda_ride_take(emit, kernel, 3, "result", 1);
  } else {
    cuda_line(emit, 3, "y[%s] = %s;", place_offset(text, 0), cuda_written(emit, &kernel->output, value));
  }
  cuda_line(emit, 2, "}");
  cuda_line(emit, 1, "}");
}

static int64_t staged_floats(const GemmText *text) {
  return (int64_t)text->choice->tile.m / gemm_passes(text) * gemm_pass_pitch(text);
}

int64_t gemm_finish_floats(const GemmText *text) {
  return round_up(staged_floats(text), 2) + cuda_ride_shared_bytes(text->problem->kernel, text->threads) / 4;
}

/* Tiles and not blocks: those that share a sum end in one of them, and some more may start. */
static void end_riding(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const GemmProblem *problem = text->problem;
  const GemmTile *tile = &text->choice->tile;
  const GemmAxis *matrix = &problem->result.matrix[0];
  const int64_t tiles_n = ceil_div(axis_count(&problem->b.outer), tile->n);
  const int64_t most = ceil_div(axis_count(&problem->a.outer), tile->m) * tiles_n * axis_count(matrix);
  const bool batched = problem->a.outer.batched || matrix->batched;
  const RideBlocks blocks = {
      .block = "block_x()",
      .count = arena_format(emit->arena, "tiles_m * %lld * %s", (long long)tiles_n, axis_count_text(emit, matrix)),
      .most = batched ? 0 : most,
      .most_per_image = batched ? most : 0};
  cuda_ride_end(emit, problem->kernel, text->threads, &blocks);
}

void gemm_finish(const GemmText *text) {
  CudaEmit *emit = text->emit;
  cuda_line(emit, 1, "cp_wait(0);");
  cuda_line(emit, 1, "BLOCK_SYNC();");
  if (text->choice->splits > 1) emit_exchange(text);
  axis_split(emit, 1, &text->problem->result.matrix[0], "matrix", "product");
  const Finish finish = choose_finish(text);
  cuda_ride_begin(emit, text->problem->kernel, text->threads,
                  arena_format(emit->arena, "shared + %lld", (long long)round_up(staged_floats(text), 2)));
  for (int32_t pass = 0; pass < gemm_passes(text); pass++) {
    if (pass > 0 || text->choice->splits > 1) cuda_line(emit, 1, "BLOCK_SYNC();");
    gemm_stage_sums(text, pass);
    cuda_line(emit, 1, "BLOCK_SYNC();");
    emit_store_pass(&finish, pass);
  }
  end_riding(text);
}
