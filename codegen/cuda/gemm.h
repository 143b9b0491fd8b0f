/* Matrix products on the GPU: one family of kernels for convolution, its gradients, linear and matmul.
 *
 *   y[m,n] = epilogue(bias + Σ_k a[m,k] · b[n,k])
 *
 * A convolution is never unfolded in memory: m, n and k are flat indices whose digits (image, row, column, filter row,
 * …) are found again by the kernel, and each digit moves the address by a fixed stride. What lies outside of an image
 * is filled in as zeros while it is copied to shared memory. An axis describes such an index; an operand has an axis
 * along m or n, one along k, and one for which of several products (groups, stacked matrices) is meant. */
#ifndef KILN_CODEGEN_CUDA_GEMM_H
#define KILN_CODEGEN_CUDA_GEMM_H

#include "cuda_emit.h"

/* --- axes -------------------------------------------------------------------------------------------- */
enum { GEMM_MAX_DIGITS = SHAPE_MAX_RANK };

typedef struct GemmDigit {
  int64_t extent;      /* of the batch: 1, that is of one image */
  int64_t stride;      /* elements */
  int64_t down, right; /* rows and columns of a bounded image that a step moves */
} GemmDigit;

/* Digits outermost first. */
typedef struct GemmAxis {
  GemmDigit digits[GEMM_MAX_DIGITS];
  int32_t digit_count;
  bool batched;                /* digit 0 goes on with every image: its extent is that of one */
  int64_t offset, down, right; /* of index 0 */
} GemmAxis;

/* Adds an innermost digit. DIM_BATCH is an extent too, for the first one. */
void axis_add(GemmAxis *axis, int64_t extent, int64_t stride, int64_t down, int64_t right);
/* Joins neighbouring digits that all axes walk through evenly. The axes have digits of the same extents. */
void axes_merge(GemmAxis *const *axes, int32_t count);
int64_t axis_count(const GemmAxis *axis); /* of one image when batched */
int64_t axis_most(const GemmAxis *axis, int64_t max_batch);
const char *axis_count_text(CudaEmit *emit, const GemmAxis *axis);
/* Declares the digits of the int expression `index` (a name, or what binds as tight) as `prefix`_0, … */
void axis_split(CudaEmit *emit, int depth, const GemmAxis *axis, const char *index, const char *prefix);
/* Expressions of the digits: offset in elements, and rows or columns moved. */
const char *axis_offset(CudaEmit *emit, const GemmAxis *axis, const char *prefix);
const char *axis_down(CudaEmit *emit, const GemmAxis *axis, const char *prefix);
const char *axis_right(CudaEmit *emit, const GemmAxis *axis, const char *prefix);

/* --- problems ---------------------------------------------------------------------------------------- */
typedef struct GemmOperand {
  int32_t input;
  GemmAxis outer;  /* m or n */
  GemmAxis inner;  /* k */
  GemmAxis matrix; /* which product */
  /* Elements off the image of height × width are zeros, or with another padding mode those that it names; then the
   * digits' strides leave out the rows and columns, whose own are given here. */
  bool bounded;
  AttrWord padding_mode;
  int64_t height, width, row_stride, column_stride;
} GemmOperand;

/* Where results go and epilogue operands are: tensor 0 is the output, tensor 1 + i is input i. */
enum { GEMM_MAX_TENSORS = 1 + CUDA_MAX_OPERANDS };

typedef struct GemmResult {
  GemmAxis rows[GEMM_MAX_TENSORS], columns[GEMM_MAX_TENSORS], matrix[GEMM_MAX_TENSORS];
} GemmResult;

/* Of what a dimension of the output is a digit. */
typedef enum GemmRole { GEMM_ROWS, GEMM_COLUMNS, GEMM_MATRIX } GemmRole;

typedef struct GemmProblem {
  const PlanKernel *kernel;
  const char *function; /* a name, unique in the text */
  GemmOperand a, b;
  GemmResult result;
  int32_t bias; /* the input that is added along one of the output's dimensions; -1: none */
} GemmProblem;

/* Starts with the origins of the result's tensors; then digits follow, outermost first, each a step along dimension
 * `dim` of the output. The bias runs along dimension `bias_dim`. */
void gemm_result_begin(GemmProblem *problem);
void gemm_result_add(GemmProblem *problem, GemmRole role, int32_t dim, int32_t bias_dim, int64_t extent, int64_t step);
/* Moves index 0 of a dimension. */
void gemm_result_shift(GemmProblem *problem, int32_t dim, int64_t start);
void gemm_result_end(GemmProblem *problem);

/* --- kernels ----------------------------------------------------------------------------------------- */
typedef struct GemmTile {
  int32_t m, n, k;              /* of a block; k: between two barriers */
  int32_t threads_m, threads_n; /* warps, or for MATH_FP32 threads, along m and n */
  int32_t stages;               /* of shared memory: one is computed with while the others are filled */
} GemmTile;

/* How an operand goes to shared memory. */
typedef struct GemmCopy {
  bool along_inner; /* neighbours of k lie side by side, else neighbours of m or n */
  int32_t vector;   /* elements that are copied at once: 4, 2 or 1; 8 of 16 bits */
} GemmCopy;

typedef struct GemmChoice {
  MathMode math; /* MATH_FP32 where the device has no other */
  bool packed;   /* both operands are kept in the 16 bits that are multiplied, in runs of 8 along k */
  GemmTile tile;
  GemmCopy a, b;
  int32_t splits; /* blocks that share the sum of a tile */
  int64_t blocks; /* at the largest batch */
  double waves;   /* blocks per multiprocessor */
  double cycles;  /* what the model says */
} GemmChoice;

/* From the shape and the target alone. */
GemmChoice gemm_choose(const GemmProblem *problem, const Target *target, int64_t max_batch);
/* For one tile; false when the problem does not take it. */
bool gemm_choose_tile(const GemmProblem *problem, const Target *target, int64_t max_batch, const GemmTile *tile,
                      int32_t splits, GemmChoice *out_choice);
/* The tiles that there are. */
const GemmTile *gemm_tiles(MathMode math, size_t *out_count);
int32_t gemm_threads(const GemmChoice *choice);
/* Bytes of an operand's element, in memory and in shared memory. */
int32_t gemm_element_bytes(const GemmChoice *choice);
/* Whether the operands are kept in 16 bits. */
bool gemm_packed(const GemmProblem *problem);
int64_t gemm_stage_floats(const GemmChoice *choice);

/* Text and launch of one function. */
bool gemm_emit(CudaEmit *emit, GemmProblem *problem);
bool gemm_emit_choice(CudaEmit *emit, const GemmProblem *problem, const GemmChoice *choice);

/* --- parts of the text ------------------------------------------------------------------------------- */
typedef struct GemmText {
  CudaEmit *emit;
  const GemmProblem *problem;
  const GemmChoice *choice;
  int32_t threads;
} GemmText;

/* The thread's sums, 0; and the products of a stage at `left` and `right` in shared memory, added to them. */
void gemm_declare_sums(const GemmText *text);
void gemm_multiply(const GemmText *text);
/* The sums go to shared memory in some passes: statements of one, its rows of gemm_pass_pitch floats, and the
 * expression of the tile's row that stands in row `local`. */
int32_t gemm_passes(const GemmText *text);
void gemm_stage_sums(const GemmText *text, int32_t pass);
int32_t gemm_pass_pitch(const GemmText *text);
const char *gemm_pass_row(const GemmText *text, int32_t pass, const char *local);
/* From the sums to the output, with splits, bias and epilogue. */
void gemm_finish(const GemmText *text);
/* Shared memory that this takes, in floats. */
int64_t gemm_finish_floats(const GemmText *text);

/* --- problems of ops --------------------------------------------------------------------------------- */
/* Convolutions for which tiles would be mostly empty: a thread per result; see gemm_direct.c. */
bool gemm_conv_direct(CudaEmit *emit, const PlanKernel *kernel);
bool gemm_conv_transpose_direct(CudaEmit *emit, const PlanKernel *kernel);
/* The same for the filters' gradient. */
bool gemm_takes_depthwise_gradient(const PlanKernel *kernel);
bool gemm_depthwise_gradient(CudaEmit *emit, const PlanKernel *kernel);

/* The problem of a convolution or matrix product, for tables of choices. A transposed convolution has several, of which
 * this is the first. */
bool gemm_problem(const PlanKernel *kernel, GemmProblem *out_problem);
bool gemm_conv_problem(const PlanKernel *kernel, GemmProblem *out_problem);

#endif
