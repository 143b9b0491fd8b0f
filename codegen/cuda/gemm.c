/* The kernel of a matrix product: what copies operands to shared memory, and the loop over k around the products.
 *
 * Shared memory holds `stages` tiles of a and b; while one is computed with, cp.async fills the others. An operand
 * whose memory runs along k lies in rows of tile.k elements, 64 or 128 bytes, cut into chunks of 16 bytes whose order
 * within a row changes with the row (`swizzle`), so that neither the copies nor the products hit a bank twice. One
 * whose memory runs along m or n lies in tile.k rows of m or n floats and 8 more, for the same end.
 *
 * A thread copies the same places of every tile: the digits of one index, m or k, are found once before the loop, those
 * of the other once for each tile. */
#include "gemm.h"
#include "base/checked.h"

enum {
  OUTSIDE = 1 << 28,   /* further than any image: rows that do not exist are moved there */
  PACKED_THREADS = 512 /* of a multiprocessor: 128 registers each */
};

/* One operand as the text sees it. */
typedef struct Copy {
  const GemmOperand *operand;
  const GemmCopy *how;
  const char *name;          /* "a": prefix of all its names */
  const char *first, *limit; /* of its tile along m or n */
  const char *inner_limit;   /* of k */
  int32_t outer;             /* tile.m or tile.n */
  bool inner_whole;          /* k is a multiple of tile.k */
  bool outer_whole;
  int32_t copies; /* per thread and tile */
} Copy;

/* Floats of a row of shared memory, also where elements are shorter. */
static int32_t pitch(const Copy *copy, const GemmChoice *choice) {
  return copy->how->along_inner ? choice->tile.k * gemm_element_bytes(choice) / 4 : copy->outer + 8;
}

static Copy describe_copy(const GemmText *text, bool left) {
  const GemmProblem *problem = text->problem;
  const GemmTile *tile = &text->choice->tile;
  const GemmOperand *operand = left ? &problem->a : &problem->b;
  Copy copy = {.operand = operand,
               .how = left ? &text->choice->a : &text->choice->b,
               .name = left ? "a" : "b",
               .first = left ? "m_first" : "n_first",
               .limit = left ? "size_m" : "size_n",
               .inner_limit = "size_k",
               .outer = left ? tile->m : tile->n};
  copy.inner_whole = !operand->inner.batched && axis_count(&operand->inner) % tile->k == 0;
  copy.outer_whole = !operand->outer.batched && axis_count(&operand->outer) % copy.outer == 0;
  copy.copies = (int32_t)ceil_div((int64_t)copy.outer * tile->k, (int64_t)copy.how->vector * text->threads);
  return copy;
}

/* --- places ------------------------------------------------------------------------------------------ */

static const char *both(CudaEmit *emit, const char *a, const char *b) {
  if (a == NULL) return b;
  return b == NULL ? a : arena_format(emit->arena, "%s && %s", a, b);
}

static bool checks_image(const GemmOperand *operand) {
  return operand->bounded && operand->padding_mode == PADDING_ZEROS;
}

/* Declares what an index of `axis` contributes, under names that begin with `name` and end with `suffix` ("[i]"). */
static void emit_place(const GemmText *text, int depth, const GemmOperand *operand, const GemmAxis *axis,
                       const char *name, const char *suffix, const char *index, const char *exists) {
  CudaEmit *emit = text->emit;
  const bool declared = suffix[0] != '\0';
  const char *digits = arena_format(emit->arena, "%s_digit", name), *type = declared ? "" : "const int ";
  axis_split(emit, depth, axis, index, digits);
  cuda_line(emit, depth, "%s%s_at%s = %s;", declared ? "" : arena_format(emit->arena, "const %s ", emit->index), name,
            suffix, axis_offset(emit, axis, digits));
  if (operand->bounded) {
    const char *down = axis_down(emit, axis, digits);
    if (checks_image(operand) && exists != NULL)
      down = arena_format(emit->arena, "%s ? %s : -%d", exists, down, OUTSIDE);
    cuda_line(emit, depth, "%s%s_down%s = %s;", type, name, suffix, down);
    cuda_line(emit, depth, "%s%s_right%s = %s;", type, name, suffix, axis_right(emit, axis, digits));
  }
  if (!checks_image(operand) && exists != NULL) cuda_line(emit, depth, "%s%s_is%s = %s;", type, name, suffix, exists);
}

static void declare_places(const GemmText *text, const Copy *copy) {
  CudaEmit *emit = text->emit;
  const int copies = (int)copy->copies;
  cuda_line(emit, 1, "%s %s_at[%d];", emit->index, copy->name, copies);
  if (copy->operand->bounded)
    cuda_line(emit, 1, "int %s_down[%d], %s_right[%d];", copy->name, copies, copy->name, copies);
  if (!checks_image(copy->operand) && !copy->outer_whole) cuda_line(emit, 1, "int %s_is[%d];", copy->name, copies);
}

/* Before the loop: the places along m or n. */
static void emit_outer_places(const GemmText *text, const Copy *copy) {
  CudaEmit *emit = text->emit;
  const GemmTile *tile = &text->choice->tile;
  const char *name = copy->name;
  const int vector = (int)copy->how->vector;
  const char *exists = copy->outer_whole ? NULL : arena_format(emit->arena, "%s_index < %s", name, copy->limit);
  const char *index = arena_format(emit->arena, "%s_index", name);
  if (copy->how->along_inner) {
    const int lanes = (int)tile->k / vector;
    cuda_line(emit, 1, "const int %s_row = thread / %d, %s_k = thread %% %d * %d;", name, lanes, name, lanes, vector);
    declare_places(text, copy);
    cuda_line(emit, 1, "UNROLL");
    cuda_line(emit, 1, "for (int i = 0; i < %d; i++) {", (int)copy->copies);
    cuda_line(emit, 2, "const int %s_index = %s + %s_row + i * %d;", name, copy->first, name,
              (int)text->threads / lanes);
    emit_place(text, 2, copy->operand, &copy->operand->outer, name, "[i]", index, exists);
    cuda_line(emit, 1, "}");
  } else {
    const int lanes = (int)copy->outer / vector;
    cuda_line(emit, 1, "const int %s_row = thread / %d, %s_lane = thread %% %d * %d;", name, lanes, name, lanes,
              vector);
    cuda_line(emit, 1, "const int %s_index = %s + %s_lane;", name, copy->first, name);
    emit_place(text, 1, copy->operand, &copy->operand->outer, name, "", index, exists);
  }
}

/* --- copies ------------------------------------------------------------------------------------------ */

/* Whether place `suffix` of m or n and place `inner` of k meet in an element, or NULL: they do. */
static const char *emit_valid(const GemmText *text, const Copy *copy, const char *outer, const char *inner) {
  CudaEmit *emit = text->emit;
  const GemmOperand *operand = copy->operand;
  const char *name = copy->name;
  const char *valid = copy->inner_whole ? NULL : arena_format(emit->arena, "%s_inner_is%s", name, inner);
  if (checks_image(operand)) {
    const char *form = "(u32)(%s_%s%s + %s_inner_%s%s) < %lldu";
    valid = both(emit, valid,
                 arena_format(emit->arena, form, name, "down", outer, name, "down", inner, (long long)operand->height));
    valid =
        both(emit, valid,
             arena_format(emit->arena, form, name, "right", outer, name, "right", inner, (long long)operand->width));
  } else if (!copy->outer_whole) {
    valid = both(emit, valid, arena_format(emit->arena, "%s_is%s", name, outer));
  }
  return valid;
}

/* The row or column that a padding mode puts in the place of one that is off the image. */
static void emit_padded(const GemmText *text, const Copy *copy, int depth, const char *way, int64_t size,
                        const char *outer, const char *inner) {
  CudaEmit *emit = text->emit;
  const char *name = copy->name;
  const int last = (int)size - 1;
  cuda_line(emit, depth, "int %s_%s_at = %s_%s%s + %s_inner_%s%s;", name, way, name, way, outer, name, way, inner);
  if (copy->operand->padding_mode == PADDING_REPLICATE)
    cuda_line(emit, depth, "%s_%s_at = max_int(0, min_int(%s_%s_at, %d));", name, way, name, way, last);
  else
    cuda_line(emit, depth, "%s_%s_at = %s_%s_at < 0 ? -%s_%s_at : %s_%s_at > %d ? %d - %s_%s_at : %s_%s_at;", name, way,
              name, way, name, way, name, way, last, 2 * last, name, way, name, way);
}

static void emit_copy(const GemmText *text, const Copy *copy, int depth, const char *to, const char *outer,
                      const char *inner) {
  CudaEmit *emit = text->emit;
  const GemmOperand *operand = copy->operand;
  const char *name = copy->name, *valid = emit_valid(text, copy, outer, inner);
  const char *offset = arena_format(emit->arena, "%s_at%s + %s_inner_at%s", name, outer, name, inner);
  if (operand->bounded && operand->padding_mode != PADDING_ZEROS) {
    emit_padded(text, copy, depth, "down", operand->height, outer, inner);
    emit_padded(text, copy, depth, "right", operand->width, outer, inner);
    offset = arena_format(emit->arena, "%s + %s_down_at * %lld + %s_right_at * %lld", offset, name,
                          (long long)operand->row_stride, name, (long long)operand->column_stride);
  }
  const int bytes = (int)copy->how->vector * gemm_element_bytes(text->choice);
  if (valid == NULL) {
    cuda_line(emit, depth, "cp_async%d(%s, %s_data + (%s), 1);", bytes, to, name, offset);
  } else {
    cuda_line(emit, depth, "const int %s_valid = %s;", name, valid);
    cuda_line(emit, depth, "cp_async%d(%s, %s_data + (%s_valid ? %s : 0), %s_valid);", bytes, to, name, name, offset,
              name);
  }
}

/* In the loop: tile number `next` to stage `fill`. */
static void emit_tile_copies(const GemmText *text, const Copy *copy) {
  CudaEmit *emit = text->emit;
  const GemmTile *tile = &text->choice->tile;
  const char *name = copy->name;
  const int vector = (int)copy->how->vector;
  const char *inner_name = arena_format(emit->arena, "%s_inner", name);
  const char *index = arena_format(emit->arena, "%s_inner", name);
  const char *exists = copy->inner_whole ? NULL : arena_format(emit->arena, "%s_inner < size_k", name);
  /* `exists` is kept apart from the position: a row may be off the image for a filter's row and on it for another */
  const GemmOperand inner_view = {.bounded = copy->operand->bounded, .padding_mode = PADDING_REPLICATE};
  if (copy->how->along_inner) {
    const int lanes = (int)tile->k / vector;
    cuda_line(emit, 3, "const int %s_inner = next * %d + %s_k;", name, (int)tile->k, name);
    emit_place(text, 3, &inner_view, &copy->operand->inner, inner_name, "", index, exists);
    cuda_line(emit, 3, "UNROLL");
    cuda_line(emit, 3, "for (int i = 0; i < %d; i++) {", (int)copy->copies);
    cuda_line(emit, 4, "const int row = %s_row + i * %d;", name, (int)text->threads / lanes);
    const int chunk = 16 / gemm_element_bytes(text->choice);
    const char *within = vector == chunk ? "" : arena_format(emit->arena, " + %s_k %% %d", name, chunk);
    const char *to = arena_format(emit->arena, "&%s_fill[%s_PLACE(row, %s_k / %d)%s]", name, name, name, chunk, within);
    emit_copy(text, copy, 4, to, "[i]", "");
  } else {
    const int lanes = (int)copy->outer / vector;
    cuda_line(emit, 3, "UNROLL");
    cuda_line(emit, 3, "for (int i = 0; i < %d; i++) {", (int)copy->copies);
    cuda_line(emit, 4, "const int row = %s_row + i * %d;", name, (int)text->threads / lanes);
    cuda_line(emit, 4, "const int %s_inner = next * %d + row;", name, (int)tile->k);
    emit_place(text, 4, &inner_view, &copy->operand->inner, inner_name, "", index, exists);
    emit_copy(text, copy, 4, arena_format(emit->arena, "&%s_fill[%s_PLACE(row, %s_lane)]", name, name, name), "", "");
  }
  cuda_line(emit, 3, "}");
}

/* --- the kernel -------------------------------------------------------------------------------------- */

/* The place of a chunk in shared memory: see the head of this file. */
static void define_place(const GemmText *text, const Copy *copy) {
  CudaEmit *emit = text->emit;
  const int32_t floats = pitch(copy, text->choice);
  if (!copy->how->along_inner)
    cuda_line(emit, 0, "#define %s_PLACE(row, lane) ((row) * %d + (lane))", copy->name, (int)floats);
  else if (floats == 16)
    cuda_line(emit, 0, "#define %s_PLACE(row, chunk) ((row) * 16 + ((chunk) ^ ((row) >> 1 & 3)) * 4)", copy->name);
  else
    cuda_line(emit, 0, "#define %s_PLACE(row, chunk) ((row) * 32 + ((chunk) ^ ((row) & 7)) * 4)", copy->name);
}

static void emit_heading(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const GemmProblem *problem = text->problem;
  const GemmChoice *choice = text->choice;
  const GemmTile *tile = &choice->tile;
  cuda_line(
      emit, 0, "/* %s: m %s, n %s, k %s; %s, tile %dx%dx%d, %d stages, %d splits, %lld blocks at the largest batch */",
      op_info(problem->kernel->op)->name, axis_count_text(emit, &problem->a.outer),
      axis_count_text(emit, &problem->b.outer), axis_count_text(emit, &problem->a.inner), math_mode_name(choice->math),
      (int)tile->m, (int)tile->n, (int)tile->k, (int)tile->stages, (int)choice->splits, (long long)choice->blocks);
}

/* Which tile of which product this block computes. The tiles of a row of tiles come first: they read the same part of
 * a, which is the larger operand of a convolution. */
static void emit_block_place(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const GemmProblem *problem = text->problem;
  const GemmTile *tile = &text->choice->tile;
  const long long tiles_n = (long long)ceil_div(axis_count(&problem->b.outer), tile->n);
  cuda_line(emit, 1, "const int thread = thread_index(), lane = thread %% 32, warp = thread / 32;");
  cuda_line(emit, 1, "const int size_m = %s, size_n = %s, size_k = %s;", axis_count_text(emit, &problem->a.outer),
            axis_count_text(emit, &problem->b.outer), axis_count_text(emit, &problem->a.inner));
  cuda_line(emit, 1, "const int tiles_m = (size_m + %d) / %d;", (int)tile->m - 1, (int)tile->m);
  cuda_line(emit, 1, "const int n_first = block_x() %% %lld * %d, rest = block_x() / %lld;", tiles_n, (int)tile->n,
            tiles_n);
  const bool many = problem->a.matrix.batched || axis_count(&problem->result.matrix[0]) > 1;
  if (many || problem->result.matrix[0].batched) {
    cuda_line(emit, 1, "const int m_first = rest %% tiles_m * %d, matrix = rest / tiles_m;", (int)tile->m);
    cuda_line(emit, 1, "if (matrix >= %s) return;", axis_count_text(emit, &problem->result.matrix[0]));
  } else {
    cuda_line(emit, 1, "const int m_first = rest * %d;", (int)tile->m);
    cuda_line(emit, 1, "if (rest >= tiles_m) return;");
  }
}

static void emit_operand_base(const GemmText *text, const Copy *copy) {
  CudaEmit *emit = text->emit;
  const char *digits = arena_format(emit->arena, "%s_matrix", copy->name);
  axis_split(emit, 1, &copy->operand->matrix, "matrix", digits);
  const int input = (int)copy->operand->input;
  cuda_line(emit, 1, "const %s *%s_data = in%d + (%s);", cuda_stored_type(&text->problem->kernel->inputs[input]),
            copy->name, input, axis_offset(emit, &copy->operand->matrix, digits));
}

/* Blocks with block_z() take neighbouring runs of tiles of k. */
static void emit_range(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const int k = (int)text->choice->tile.k, splits = (int)text->choice->splits;
  cuda_line(emit, 1, "const int tiles_k = (size_k + %d) / %d;", k - 1, k);
  if (splits == 1) {
    cuda_line(emit, 1, "const int begin = 0, end = tiles_k;");
  } else {
    cuda_line(emit, 1, "const int run = (tiles_k + %d) / %d, begin = min_int(block_z() * run, tiles_k);", splits - 1,
              splits);
    cuda_line(emit, 1, "const int end = min_int(begin + run, tiles_k);");
  }
}

static void emit_loop(const GemmText *text, const Copy *a, const Copy *b) {
  CudaEmit *emit = text->emit;
  const int stages = (int)text->choice->tile.stages, ahead = stages - 1;
  const GemmTile *tile = &text->choice->tile;
  const long long stage = (long long)gemm_stage_floats(text->choice);
  const long long a_floats = (long long)(a->how->along_inner ? a->outer : tile->k) * pitch(a, text->choice);
  cuda_line(emit, 1, "int fill = 0, use = 0;");
  cuda_line(emit, 1, "for (int tile = begin - %d; tile < end; tile++) {", ahead);
  cuda_line(emit, 2, "const int next = tile + %d;", ahead);
  cuda_line(emit, 2, "if (tile >= begin) {");
  cuda_line(emit, 3, "cp_wait(%d);", ahead - 1);
  cuda_line(emit, 3, "BLOCK_SYNC();");
  cuda_line(emit, 2, "}");
  cuda_line(emit, 2, "if (next < end) {");
  cuda_line(emit, 3, "float *a_fill = shared + fill * %lld, *b_fill = a_fill + %lld;", stage, a_floats);
  emit_tile_copies(text, a);
  emit_tile_copies(text, b);
  cuda_line(emit, 2, "}");
  cuda_line(emit, 2, "cp_commit();");
  cuda_line(emit, 2, "fill = fill == %d ? 0 : fill + 1;", stages - 1);
  cuda_line(emit, 2, "if (tile < begin) continue;");
  cuda_line(emit, 2, "const float *left = shared + use * %lld, *right = left + %lld;", stage, a_floats);
  gemm_multiply(text);
  cuda_line(emit, 2, "use = use == %d ? 0 : use + 1;", stages - 1);
  cuda_line(emit, 1, "}");
}

static int64_t shared_floats(const GemmText *text) {
  const int64_t loop = gemm_stage_floats(text->choice) * text->choice->tile.stages;
  const int64_t finish = gemm_finish_floats(text);
  return loop > finish ? loop : finish;
}

static void emit_kernel(const GemmText *text, int64_t floats) {
  CudaEmit *emit = text->emit;
  const Copy a = describe_copy(text, true), b = describe_copy(text, false);
  emit_heading(text);
  define_place(text, &a);
  define_place(text, &b);
  /* told that one block is enough, ptxas does not spill for the sake of more; fragments that nothing has to be made of
   * leave room for PACKED_THREADS without spills */
  const PlanKernel *kernel = text->problem->kernel;
  const bool light = text->choice->packed && kernel->reduction_count == 0;
  cuda_function_blocks(emit, kernel, text->problem->function, text->threads,
                       light ? PACKED_THREADS / text->threads : 1);
  if (floats * 4 <= 48 * 1024) {
    cuda_line(emit, 1, "SHARED(128) float shared[%lld];", (long long)floats);
  } else {
    cuda_line(emit, 1, "DYNAMIC_SHARED(bytes);");
    cuda_line(emit, 1, "float *shared = (float *)bytes;");
  }
  emit_block_place(text);
  emit_operand_base(text, &a);
  emit_operand_base(text, &b);
  emit_range(text);
  emit_outer_places(text, &a);
  emit_outer_places(text, &b);
  gemm_declare_sums(text);
  emit_loop(text, &a, &b);
  gemm_finish(text);
  cuda_line(emit, 0, "}");
  cuda_line(emit, 0, "#undef a_PLACE");
  cuda_line(emit, 0, "#undef b_PLACE");
}

/* The grid holds a block per tile. With a batched m the number of tiles is a rounded quotient, which the launch can
 * only bound: some blocks more may start, and leave at once. */
static void add_launch(const GemmText *text, int64_t shared_bytes) {
  const GemmProblem *problem = text->problem;
  const GemmChoice *choice = text->choice;
  const int64_t m = axis_count(&problem->a.outer), tiles_m = ceil_div(m, choice->tile.m);
  const int64_t tiles_n = ceil_div(axis_count(&problem->b.outer), choice->tile.n);
  const GemmAxis *matrix = &problem->result.matrix[0];
  const int64_t matrices = axis_count(matrix);
  int64_t work = 0, per_image = 0, per_block = 1;
  if (problem->a.outer.batched) {
    per_image = m * tiles_n * matrices;
    work = (choice->tile.m - 1) * tiles_n * matrices;
    per_block = choice->tile.m;
  } else if (matrix->batched) {
    per_image = tiles_m * tiles_n * matrices;
  } else {
    work = tiles_m * tiles_n * matrices;
  }
  CudaLaunch *launch = cuda_launch(text->emit, problem->function, text->threads, work, per_image, per_block);
  CudaProduct *product = arena_new(text->emit->arena, CudaProduct);
  *product = (CudaProduct){.math = choice->math,
                           .tile_m = choice->tile.m,
                           .tile_n = choice->tile.n,
                           .tile_k = choice->tile.k,
                           .stages = choice->tile.stages,
                           .splits = choice->splits,
                           .threads = text->threads,
                           .blocks = choice->blocks};
  launch->product = product;
  launch->grid_z = choice->splits;
  launch->shared_bytes = (int32_t)shared_bytes;
}

bool gemm_emit_choice(CudaEmit *emit, const GemmProblem *problem, const GemmChoice *choice) {
  const GemmText text = {.emit = emit, .problem = problem, .choice = choice, .threads = gemm_threads(choice)};
  const int64_t floats = shared_floats(&text);
  emit_kernel(&text, floats);
  add_launch(&text, floats * 4 <= 48 * 1024 ? 0 : floats * 4);
  return true;
}

static bool index_fits(int64_t count) { return count < INT32_MAX - 4096; }

bool gemm_emit(CudaEmit *emit, GemmProblem *problem) {
  const int64_t batch = emit->max_batch > 0 ? emit->max_batch : 1;
  const PlanKernel *kernel = problem->kernel;
  int64_t matrices = axis_most(&problem->result.matrix[0], batch);
  if (!index_fits(axis_most(&problem->a.outer, batch)) || !index_fits(axis_most(&problem->a.inner, batch)) ||
      !index_fits(axis_most(&problem->b.outer, batch)) || !index_fits(matrices)) {
    diag_error(emit->diag, kernel->location, "'%s': a matrix product of more than 2^31 rows, columns or products",
               kernel->name);
    return false;
  }
  const GemmChoice choice = gemm_choose(problem, emit->target, batch);
  return gemm_emit_choice(emit, problem, &choice);
}
