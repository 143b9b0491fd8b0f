/* The products of a stage: a warp's tile by tensor cores, or a thread's tile by fused multiply-adds.
 *
 * Tensor cores: shared memory holds f32, and a fragment of m16n8k8 takes element (row g, column t) and its neighbours 4
 * columns and 8 rows on, with g = lane / 4 and t = lane % 4. "ldmatrix" moves 8 rows of 16 bytes, which are as well 4
 * f32 as 8 halves, and gives lane (g, t) just that element. bf16 and fp16 use m16n8k16, which wants columns 2t, 2t + 1,
 * 2t + 8 and 2t + 9: it is given those of two tf32 fragments instead, t, t + 4, t + 8 and t + 12. Both operands are
 * permuted alike, and a sum does not mind. Operands that are kept in 16 bits lie in shared memory as they are, and the
 * same "ldmatrix" at the same addresses gives fragments of m16n8k16 in their own order.
 *
 * 3xtf32 cuts an operand into its rounding to tf32 and the rounded rest, and leaves out the product of the rests:
 * Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak
 * performance" (arXiv 2203.03341), without their correction for the rounding of the sums. */
#include "gemm.h"

static bool is_half(MathMode math) { return math == MATH_BF16 || math == MATH_FP16; }

/* Fragments or sums of a thread along m and n. */
static int32_t count_m(const GemmChoice *choice) {
  const int32_t rows = choice->tile.m / choice->tile.threads_m;
  return choice->math == MATH_FP32 ? rows : rows / 16;
}

static int32_t count_n(const GemmChoice *choice) {
  const int32_t columns = choice->tile.n / choice->tile.threads_n;
  return choice->math == MATH_FP32 ? columns : columns / 8;
}

void gemm_declare_sums(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const GemmTile *tile = &text->choice->tile;
  const int rows = (int)count_m(text->choice), columns = (int)count_n(text->choice);
  if (text->choice->math == MATH_FP32) {
    cuda_line(emit, 1, "const int thread_m = thread / %d, thread_n = thread %% %d;", (int)tile->threads_n,
              (int)tile->threads_n);
    cuda_line(emit, 1, "float sums[%d][%d];", rows, columns);
    cuda_line(emit, 1, "UNROLL");
    cuda_line(emit, 1, "for (int i = 0; i < %d; i++)", rows);
    cuda_line(emit, 2, "UNROLL");
    cuda_line(emit, 2, "for (int j = 0; j < %d; j++) sums[i][j] = 0;", columns);
    return;
  }
  cuda_line(emit, 1, "const int warp_m = warp / %d * %d, warp_n = warp %% %d * %d;", (int)tile->threads_n,
            (int)(tile->m / tile->threads_m), (int)tile->threads_n, (int)(tile->n / tile->threads_n));
  cuda_line(emit, 1, "float sums[%d][%d][4];", rows, columns);
  cuda_line(emit, 1, "UNROLL");
  cuda_line(emit, 1, "for (int i = 0; i < %d; i++)", rows);
  cuda_line(emit, 2, "UNROLL");
  cuda_line(emit, 2, "for (int j = 0; j < %d; j++)", columns);
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int r = 0; r < 4; r++) sums[i][j][r] = 0;");
}

/* --- fused multiply-adds ----------------------------------------------------------------------------- */

/* Row i of a thread: 4 neighbours of every 4 * threads rows where memory runs along m, else every `threads`-th; so that
 * the threads of a warp read different banks. */
static const char *own_row(const GemmText *text, bool left, const char *i) {
  const GemmTile *tile = &text->choice->tile;
  const int threads = (int)(left ? tile->threads_m : tile->threads_n);
  const char *thread = left ? "thread_m" : "thread_n";
  if ((left ? text->choice->a : text->choice->b).along_inner)
    return arena_format(text->emit->arena, "%s + (%s) * %d", thread, i, threads);
  return arena_format(text->emit->arena, "(%s) / 4 * %d + %s * 4 + (%s) %% 4", i, 4 * threads, thread, i);
}

/* Declares name[4][4]: 4 rows from `first` on of 4 neighbours of k from 4 * quad on. */
static void emit_quad(const GemmText *text, int depth, bool left, const char *name, const char *first) {
  CudaEmit *emit = text->emit;
  const GemmTile *tile = &text->choice->tile;
  const char *from = left ? "left" : "right", *place = left ? "a_PLACE" : "b_PLACE";
  cuda_line(emit, depth, "UNROLL");
  cuda_line(emit, depth, "for (int r = 0; r < 4; r++) {");
  if ((left ? text->choice->a : text->choice->b).along_inner) {
    const char *row = own_row(text, left, arena_format(emit->arena, "%s + r", first));
    cuda_line(emit, depth + 1, "load4(%s[r], %s + %s(%s, quad));", name, from, place, row);
  } else {
    const int threads = (int)(left ? tile->threads_m : tile->threads_n);
    const char *thread = left ? "thread_m" : "thread_n";
    cuda_line(emit, depth + 1, "float line[4];");
    cuda_line(emit, depth + 1, "load4(line, %s + %s(quad * 4 + r, (%s) * %d + %s * 4));", from, place, first, threads,
              thread);
    cuda_line(emit, depth + 1, "%s[0][r] = line[0], %s[1][r] = line[1], %s[2][r] = line[2], %s[3][r] = line[3];", name,
              name, name, name);
  }
  cuda_line(emit, depth, "}");
}

static void multiply_scalars(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const int rows = (int)count_m(text->choice), columns = (int)count_n(text->choice);
  cuda_line(emit, 2, "NO_UNROLL"); /* or loads of the next one take the registers of the sums */
  cuda_line(emit, 2, "for (int quad = 0; quad < %d; quad++) {", (int)text->choice->tile.k / 4);
  cuda_line(emit, 3, "float b[%d][4];", columns);
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int j = 0; j < %d; j += 4) {", columns);
  emit_quad(text, 4, false, "(b + j)", "j");
  cuda_line(emit, 3, "}");
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int i = 0; i < %d; i += 4) {", rows);
  cuda_line(emit, 4, "float a[4][4];");
  emit_quad(text, 4, true, "a", "i");
  cuda_line(emit, 4, "UNROLL");
  cuda_line(emit, 4, "for (int k = 0; k < 4; k++)");
  cuda_line(emit, 5, "UNROLL");
  cuda_line(emit, 5, "for (int r = 0; r < 4; r++)");
  cuda_line(emit, 6, "UNROLL");
  cuda_line(emit, 6, "for (int j = 0; j < %d; j++) sums[i + r][j] += a[r][k] * b[j][k];", columns);
  cuda_line(emit, 3, "}");
  cuda_line(emit, 2, "}");
}

/* --- tensor cores ------------------------------------------------------------------------------------ */

/* Sets a[i][4] to the bits of fragment i of 8 columns of k from 8 * step on. */
static void emit_left_fragment(const GemmText *text, int depth, const char *name, const char *step) {
  CudaEmit *emit = text->emit;
  if (text->choice->a.along_inner) {
    cuda_line(emit, depth, "ldsm_x4(%s, left + a_PLACE(warp_m + i * 16 + lane %% 16, (%s) * 2 + lane / 16));", name,
              step);
    return;
  }
  cuda_line(emit, depth, "UNROLL");
  cuda_line(emit, depth, "for (int r = 0; r < 4; r++)");
  cuda_line(
      emit, depth + 1,
      "%s[r] = f32_bits(left[a_PLACE((%s) * 8 + lane %% 4 + r / 2 * 4, warp_m + i * 16 + lane / 4 + r %% 2 * 8)]);",
      name, step);
}

/* Sets name[0 … 3] to fragments j and j + 1 of b: two registers each. */
static void emit_right_fragment(const GemmText *text, int depth, const char *name, const char *step) {
  CudaEmit *emit = text->emit;
  if (text->choice->b.along_inner) {
    cuda_line(emit, depth,
              "ldsm_x4(%s, right + b_PLACE(warp_n + j * 8 + lane / 16 * 8 + lane %% 8, (%s) * 2 + lane / 8 %% 2));",
              name, step);
    return;
  }
  cuda_line(emit, depth, "UNROLL");
  cuda_line(emit, depth, "for (int r = 0; r < 4; r++)");
  cuda_line(
      emit, depth + 1,
      "%s[r] = f32_bits(right[b_PLACE((%s) * 8 + lane %% 4 + r %% 2 * 4, warp_n + j * 8 + r / 2 * 8 + lane / 4)]);",
      name, step);
}

/* From f32 bits to what the mode multiplies. */
static void convert_fragment(const GemmText *text, int depth, const char *big, const char *small, const char *bits) {
  CudaEmit *emit = text->emit;
  cuda_line(emit, depth, "UNROLL");
  if (text->choice->math == MATH_3XTF32) {
    cuda_line(emit, depth, "for (int r = 0; r < 4; r++) {");
    cuda_line(emit, depth + 1, "%s[r] = to_tf32(bits_f32(%s[r]));", big, bits);
    cuda_line(emit, depth + 1, "%s[r] = to_tf32(bits_f32(%s[r]) - bits_f32(%s[r]));", small, bits, big);
    cuda_line(emit, depth, "}");
  } else {
    cuda_line(emit, depth, "for (int r = 0; r < 4; r++) %s[r] = to_tf32(bits_f32(%s[r]));", big, bits);
  }
}

static void pack_fragment(const GemmText *text, int depth, const char *to, const char *even, const char *odd,
                          int second) {
  CudaEmit *emit = text->emit;
  const char *pack = text->choice->math == MATH_BF16 ? "pack_bf16" : "pack_f16";
  /* of a, registers r and r + 2 hold the same row; of b, registers r and r + 1 the same column */
  for (int half = 0; half < 2; half++) {
    const char *from = half == 0 ? even : odd;
    for (int r = 0; r < 2; r++) {
      const int low = second == 2 ? r : 2 * r, place = second == 2 ? half * 2 + r : r * 2 + half;
      cuda_line(emit, depth, "%s[%d] = %s(bits_f32(%s[%d]), bits_f32(%s[%d]));", to, place, pack, from, low, from,
                low + second);
    }
  }
}

static void multiply_fragments(const GemmText *text, const char *product, const char *a, const char *b) {
  CudaEmit *emit = text->emit;
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int i = 0; i < %d; i++)", (int)count_m(text->choice));
  cuda_line(emit, 4, "UNROLL");
  cuda_line(emit, 4, "for (int j = 0; j < %d; j++) %s(sums[i][j], %s[i], &%s[j / 2][j %% 2 * 2]);",
            (int)count_n(text->choice), product, a, b);
}

static void multiply_halves(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const int rows = (int)count_m(text->choice), columns = (int)count_n(text->choice);
  cuda_line(emit, 2, "UNROLL");
  cuda_line(emit, 2, "for (int step = 0; step < %d; step += 2) {", (int)text->choice->tile.k / 8);
  cuda_line(emit, 3, "u32 a[%d][4], b[%d][4];", rows, columns / 2);
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int i = 0; i < %d; i++) {", rows);
  cuda_line(emit, 4, "u32 first[4], second[4];");
  emit_left_fragment(text, 4, "first", "step");
  emit_left_fragment(text, 4, "second", "step + 1");
  pack_fragment(text, 4, "a[i]", "first", "second", 2);
  cuda_line(emit, 3, "}");
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int j = 0; j < %d; j += 2) {", columns);
  cuda_line(emit, 4, "u32 first[4], second[4];");
  emit_right_fragment(text, 4, "first", "step");
  emit_right_fragment(text, 4, "second", "step + 1");
  pack_fragment(text, 4, "b[j / 2]", "first", "second", 1);
  cuda_line(emit, 3, "}");
  multiply_fragments(text, text->choice->math == MATH_BF16 ? "mma_bf16" : "mma_f16", "a", "b");
  cuda_line(emit, 2, "}");
}

/* The addresses are those of f32: a chunk of 16 bytes is half of the k of a product, where those hold a quarter. */
static void multiply_packed(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const int rows = (int)count_m(text->choice), columns = (int)count_n(text->choice);
  cuda_line(emit, 2, "UNROLL");
  cuda_line(emit, 2, "for (int step = 0; step < %d; step++) {", (int)text->choice->tile.k / 16);
  cuda_line(emit, 3, "u32 a[%d][4], b[%d][4];", rows, columns / 2);
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int i = 0; i < %d; i++)", rows);
  emit_left_fragment(text, 4, "a[i]", "step");
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int j = 0; j < %d; j += 2)", columns);
  emit_right_fragment(text, 4, "b[j / 2]", "step");
  multiply_fragments(text, text->choice->math == MATH_BF16 ? "mma_bf16" : "mma_f16", "a", "b");
  cuda_line(emit, 2, "}");
}

static void multiply_tf32(const GemmText *text) {
  CudaEmit *emit = text->emit;
  const int rows = (int)count_m(text->choice), columns = (int)count_n(text->choice);
  const bool split = text->choice->math == MATH_3XTF32;
  cuda_line(emit, 2, "UNROLL");
  cuda_line(emit, 2, "for (int step = 0; step < %d; step++) {", (int)text->choice->tile.k / 8);
  cuda_line(emit, 3, "u32 a[%d][4], b[%d][4];", rows, columns / 2);
  if (split) cuda_line(emit, 3, "u32 a_rest[%d][4], b_rest[%d][4];", rows, columns / 2);
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int i = 0; i < %d; i++) {", rows);
  cuda_line(emit, 4, "u32 bits[4];");
  emit_left_fragment(text, 4, "bits", "step");
  convert_fragment(text, 4, "a[i]", "a_rest[i]", "bits");
  cuda_line(emit, 3, "}");
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int j = 0; j < %d; j += 2) {", columns);
  cuda_line(emit, 4, "u32 bits[4];");
  emit_right_fragment(text, 4, "bits", "step");
  convert_fragment(text, 4, "b[j / 2]", "b_rest[j / 2]", "bits");
  cuda_line(emit, 3, "}");
  /* one kind of product after the other: those of a kind do not wait for each other */
  if (split) {
    multiply_fragments(text, "mma_tf32", "a_rest", "b");
    multiply_fragments(text, "mma_tf32", "a", "b_rest");
  }
  multiply_fragments(text, "mma_tf32", "a", "b");
  cuda_line(emit, 2, "}");
}

void gemm_multiply(const GemmText *text) {
  if (text->choice->math == MATH_FP32)
    multiply_scalars(text);
  else if (text->choice->packed)
    multiply_packed(text);
  else if (is_half(text->choice->math))
    multiply_halves(text);
  else
    multiply_tf32(text);
}

/* --- sums to shared memory --------------------------------------------------------------------------- */

/* The sums go through shared memory `passes` times, as many rows at once as its stages have room for. */
int32_t gemm_pass_pitch(const GemmText *text) { return text->choice->tile.n + 8; }

int32_t gemm_passes(const GemmText *text) {
  const GemmTile *tile = &text->choice->tile;
  const int32_t unit = text->choice->math == MATH_FP32 ? 4 : 1;
  const int64_t room = gemm_stage_floats(text->choice) * tile->stages;
  int32_t passes = 1;
  while ((int64_t)tile->m / passes * gemm_pass_pitch(text) > room && count_m(text->choice) / (passes * 2) >= unit)
    passes *= 2;
  return passes;
}

/* Row of the tile that stands in row `local` of a pass. */
const char *gemm_pass_row(const GemmText *text, int32_t pass, const char *local) {
  const GemmTile *tile = &text->choice->tile;
  const int rows = (int)(tile->m / gemm_passes(text));
  if (text->choice->math == MATH_FP32 || gemm_passes(text) == 1)
    return arena_format(text->emit->arena, pass == 0 ? "%s" : "%s + %d", local, (int)pass * rows);
  const int each = (int)(count_m(text->choice) / gemm_passes(text)) * 16, warp_rows = (int)(tile->m / tile->threads_m);
  return arena_format(text->emit->arena, "%s / %d * %d + %s %% %d + %d", local, each, warp_rows, local, each,
                      (int)pass * each);
}

void gemm_stage_sums(const GemmText *text, int32_t pass) {
  CudaEmit *emit = text->emit;
  const GemmTile *tile = &text->choice->tile;
  const int passes = (int)gemm_passes(text), rows = (int)count_m(text->choice) / passes, first = (int)pass * rows;
  const int columns = (int)count_n(text->choice), pitch = (int)gemm_pass_pitch(text);
  cuda_line(emit, 1, "UNROLL");
  cuda_line(emit, 1, "for (int i = 0; i < %d; i++)", rows);
  cuda_line(emit, 2, "UNROLL");
  if (text->choice->math == MATH_FP32) {
    cuda_line(emit, 2, "for (int j = 0; j < %d; j++)", columns);
    cuda_line(emit, 3, "shared[(%s) * %d + %s] = sums[%d + i][j];", own_row(text, true, "i"), pitch,
              own_row(text, false, "j"), first);
    return;
  }
  const int warp_rows = (int)(tile->m / tile->threads_m);
  cuda_line(emit, 2, "for (int j = 0; j < %d; j++)", columns);
  cuda_line(emit, 3, "UNROLL");
  cuda_line(emit, 3, "for (int r = 0; r < 4; r++)");
  const char *row = passes == 1 ? "warp_m" : arena_format(emit->arena, "warp_m / %d * %d", warp_rows, rows * 16);
  cuda_line(emit, 4,
            "shared[(%s + i * 16 + lane / 4 + r / 2 * 8) * %d + warp_n + j * 8 + lane %% 4 * 2 + r %% 2] = sums[%d + "
            "i][j][r];",
            row, pitch, first);
}
