/* The vocabulary of values: element types, shapes, layouts, storage. Small structs, copied freely. */
#ifndef KILN_IR_TYPES_H
#define KILN_IR_TYPES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/text.h"

/* --- element types --------------------------------------------------------------------------------- */
/* X(enumerator, text name, safetensors name, bytes) */
#define DATA_TYPES(X)            \
  X(DTYPE_F32, "f32", "F32", 4)  \
  X(DTYPE_F64, "f64", "F64", 8)  \
  X(DTYPE_F16, "f16", "F16", 2)  \
  X(DTYPE_BF16, "bf16", "BF16", 2) \
  X(DTYPE_I64, "i64", "I64", 8)  \
  X(DTYPE_I32, "i32", "I32", 4)  \
  X(DTYPE_I16, "i16", "I16", 2)  \
  X(DTYPE_I8, "i8", "I8", 1)     \
  X(DTYPE_U8, "u8", "U8", 1)     \
  X(DTYPE_BOOL, "bool", "BOOL", 1)

typedef enum DataType {
#define X(enumerator, name, tensor_name, bytes) enumerator,
  DATA_TYPES(X)
#undef X
  DTYPE_COUNT
} DataType;

const char *data_type_name(DataType type);
int64_t data_type_bytes(DataType type);
bool data_type_parse(const char *name, DataType *out_type);

/* --- arithmetic ------------------------------------------------------------------------------------ */
/* How matrix products are computed; sums are always f32. MATH_3XTF32 adds three products of 11-bit parts and is nearly
 * as exact as MATH_FP32. */
typedef enum MathMode { MATH_FP32, MATH_3XTF32, MATH_TF32, MATH_BF16, MATH_FP16, MATH_COUNT } MathMode;

/* "fp32", "3xtf32", "tf32", "bf16", "fp16". */
const char *math_mode_name(MathMode math);
bool math_mode_parse(const char *name, MathMode *out_math);

/* --- shapes ---------------------------------------------------------------------------------------- */
enum { SHAPE_MAX_RANK = 6 };

/* The one symbolic dimension. It is printed N, stands only in dims[0], and a compiled program accepts any
 * value of it from 1 (0 gives empty outputs) to its declared maximum. */
#define DIM_BATCH INT64_C(-1)

/* Logical dimensions, outermost first, NCHW order whatever the storage. Rank 0 is a scalar. */
typedef struct Shape {
  int32_t rank;
  int64_t dims[SHAPE_MAX_RANK];
} Shape;

Shape shape_of(int32_t rank, const int64_t *dims);
bool shape_equal(const Shape *a, const Shape *b);
bool shape_batched(const Shape *shape); /* dims[0] is DIM_BATCH */
/* Elements with DIM_BATCH counted as `batch`; false on overflow or another negative dimension. A zero among the
 * dimensions does not hide an overflow of the others: strides must fit as well. */
bool shape_elements(const Shape *shape, int64_t batch, int64_t *out_count);
/* Elements of one image: DIM_BATCH counted as 1. The verifier has checked that it fits. */
int64_t shape_elements_per_image(const Shape *shape);
/* "N,64,56,56" (brackets are the caller's). */
void shape_print(Text *text, const Shape *shape);

/* --- layouts --------------------------------------------------------------------------------------- */
/* How a value's elements are ordered in memory. PLAIN is row-major in logical order. */
typedef enum LayoutKind {
  LAYOUT_PLAIN,        /* "plain": row-major; any rank */
  LAYOUT_CHANNEL_BLOCK, /* "nchw16c": [N][C/b][H][W][b], rank 4; C padded up to a multiple of b */
  LAYOUT_CHANNEL_LAST, /* "nhwc": [N][H][W][C], rank 4 */
  LAYOUT_FILTER_BLOCK, /* "oihw32o": filters [K,C,R,S] as [K/b][C][R][S][b], K padded with zeros */
  LAYOUT_MATRIX_BLOCK, /* "oi32o": matrix [K,C] as [K/b][C][b], K padded with zeros */
  LAYOUT_VECTOR_BLOCK, /* "c16": vector [C] padded with zeros to a multiple of b */
  LAYOUT_FILTER_WINOGRAD2, /* "wino23o32": filters [K,C,3,3] transformed for F(2×2,3×3); see winograd.h */
  LAYOUT_FILTER_WINOGRAD4, /* "wino43o32": the same for F(4×4,3×3) */
  LAYOUT_TILES_WINOGRAD2,  /* "tiles23c16": an image cut into overlapping tiles, each transformed for F(2×2,3×3) */
  LAYOUT_TILES_WINOGRAD4,  /* "tiles43c16": the same for F(4×4,3×3) */
  LAYOUT_FILTER_PHASES,  /* "wino34o32": filters [K,C,7,7] of stride 2, their phases transformed for F(3×3,4×4) */
  LAYOUT_CHANNEL_PHASES, /* "phases16c": a padded image whose 2 × 2 phases are channels, C ≤ b/4 */
  LAYOUT_FILTER_HALVES, /* "bf16x2o32": filters [K,C,R,S], K and C multiples of 32, as [K/32][C/32][R][S] tiles of bf16
                           halves of their numbers: see codegen/cpu/conv_tiles.c */
  LAYOUT_FILTER_THIRDS, /* "bf16x3o32": the same with three parts of a number, which are all of its bits */
  LAYOUT_FILTER_TILES, /* "f32o16": the same filters as [K/16][C/32][R][S] tiles of f32, [32][16], split by kernels */
  LAYOUT_BATCH_BLOCK, /* "n16chw": [N/b][…][b], b images side by side; any rank from 1, the first dimension the batch */
  LAYOUT_FILTER_LAST, /* "ohwi4": filters [K,C,R,S] as [K][R][S][C], C padded with zeros to a multiple of b */
} LayoutKind;

/* `element` is how f32 elements are kept: DTYPE_F32 as they are, DTYPE_BF16 and DTYPE_F16 rounded to the nearest
 * ("nhwc_bf16"). What a kernel reads is what was rounded; it computes in f32 all the same. */
typedef struct Layout {
  LayoutKind kind;
  int32_t block; /* b; 0 for PLAIN and CHANNEL_LAST */
  DataType element;
} Layout;

/* The type of a value's elements in memory, and its size. */
/* Numbers of bf16 that stand for one of f32: 2 or 3; 0: elements are whole. */
int32_t layout_parts(Layout layout);
DataType layout_stored_type(Layout layout, DataType type);
int64_t layout_stored_bytes(Layout layout, DataType type);
bool layout_equal(Layout a, Layout b);
void layout_print(Text *text, Layout layout);
bool layout_parse(const char *name, Layout *out_layout);

/* --- storage --------------------------------------------------------------------------------------- */
/* Where a value lives when the program runs. */
typedef enum Space {
  SPACE_NONE,      /* not placed yet, or erased by fusion */
  SPACE_WORKSPACE, /* the caller's workspace; offset is in the fixed or the per-image part, see below */
  SPACE_PREPARED,  /* the prepared-weights blob: written once by the prepare steps, then read-only */
  SPACE_SCRATCH,   /* temporary memory of the prepare steps */
  SPACE_PARAMETER, /* the caller's parameter number `index`, as loaded */
  SPACE_INPUT,     /* the caller's input number `index` */
  SPACE_OUTPUT,    /* the caller's output number `index` */
} Space;

const char *space_name(Space space);

/* Filled by the passes `strides` and `memory`. Strides are in elements.
 * CHANNEL_BLOCK: stride[1] steps one *block* of channels; the b lanes of a block are adjacent.
 * FILTER_BLOCK and MATRIX_BLOCK: stride[0] steps one block of filters, whose b lanes are adjacent.
 * BATCH_BLOCK: stride[0] steps one block of images, whose b lanes are adjacent; `bytes` is an image's share of its block,
 * and memory is there for whole blocks. Lanes behind the last image repeat it: they are as finite as what they repeat,
 * and only sums over the batch leave them out. Programs for training only.
 * Element [0,0,0,0] lies at `offset` bytes + origin elements: the halo lies before it.
 * A batched value in SPACE_WORKSPACE lives in the per-image part: its address for batch B is
 *   workspace + fixed_bytes + B * offset, images at distance stride[0]; so a small batch uses a compact arena. */
typedef struct Storage {
  Space space;
  int32_t index;
  int64_t offset;                  /* bytes */
  int64_t stride[SHAPE_MAX_RANK];  /* elements */
  int64_t origin;                  /* elements from the start of the buffer to logical [n=0, 0, 0, 0] */
  int32_t halo[4];                 /* zero elements around H and W: top, left, bottom, right */
  int64_t bytes;                   /* buffer size; of one image when batched */
  int64_t delta;                   /* bytes from there to a view of a part; whatever the batch */
} Storage;

#endif
