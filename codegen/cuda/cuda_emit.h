/* What kernel generators (cuda_X) share: lines of text, operands, addresses, epilogues, and the frame of kernels that
 * compute each element of the output by itself. Generated names: y is the output, in0, in1, … the inputs in the order
 * of kernel->inputs, ride0_rows, … the results of its reductions; scratch and batch are arguments too. */
#ifndef KILN_CODEGEN_CUDA_CUDA_EMIT_H
#define KILN_CODEGEN_CUDA_CUDA_EMIT_H

#include "cuda.h"

enum { CUDA_MAX_LAUNCHES = 8 };

typedef struct CudaEmit {
  Arena *arena;
  const Target *target;
  Diag *diag;
  int64_t max_batch;   /* of the program: batch is never more */
  const char *index;   /* "int" where it holds every element offset and count of the kernel, else "i64" */
  int32_t temporaries; /* named so far: t0, t1, … */
  int32_t indent;      /* of lines, beside their depth */
  /* the result */
  Text text;
  CudaLaunch launches[CUDA_MAX_LAUNCHES];
  size_t launch_count;
  int64_t scratch, scratch_per_image; /* bytes that its launches share, beside the counters */
  bool counters;
} CudaEmit;

/* Every op has one: adds the functions of the kernel to emit->text and their launches in order. False after a report.
 */
#define OP(ENUM, name, inputs_min, inputs_max, attributes, layouts, parameters) \
  bool cuda_##name(CudaEmit *emit, const PlanKernel *kernel);
#define UNARY(ENUM, name, attributes)
#define BINARY(ENUM, name, attributes)
#define SOURCE(ENUM, name)
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE
bool cuda_elementwise(CudaEmit *emit, const PlanKernel *kernel);
/* Declares the constant `name` of stats_take and its like in prelude_common.h. */
void cuda_stats_range(CudaEmit *emit, const Attrs *attrs, const char *name);

/* --- lines ------------------------------------------------------------------------------------------- */
/* A line indented by 2 * depth; a newline is added. */
void cuda_line(CudaEmit *emit, int depth, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* "KERNEL(threads) function(float *__restrict__ y, const float *__restrict__ in0, …, void *scratch, int batch) {" and
 * the line that keeps unused arguments quiet. The caller closes the brace. */
void cuda_function(CudaEmit *emit, const PlanKernel *kernel, const char *function, int32_t threads);
/* The same with KERNEL_BLOCKS(threads, blocks). */
void cuda_function_blocks(CudaEmit *emit, const PlanKernel *kernel, const char *function, int32_t threads,
                          int32_t blocks);
/* "float", "i64" */
const char *cuda_type(DataType type);
/* Operands may be kept in 16 bits (Layout.element). The type of their elements in memory ("u16"); expressions that read
 * the element `place` ("in0[i]") and that make of `value` what is stored; the suffix of load4 and store4 ("_bf16"). */
const char *cuda_stored_type(const PlanTensor *tensor);
const char *cuda_read(CudaEmit *emit, const PlanTensor *tensor, const char *place);
const char *cuda_written(CudaEmit *emit, const PlanTensor *tensor, const char *value);
const char *cuda_vector_suffix(const PlanTensor *tensor);
/* The same number as a float literal: "0.5f", "-F32_INFINITY". */
const char *cuda_float(CudaEmit *emit, double value);

/* An index expression as an int, which it fits. */
const char *cuda_int(CudaEmit *emit, const char *expression);
/* "batch * 150528" in the index type. */
const char *cuda_batch(CudaEmit *emit, int64_t factor);
/* The thread's number among those of all blocks of `threads`. */
const char *cuda_thread_number(CudaEmit *emit, int32_t threads);

/* --- launches ---------------------------------------------------------------------------------------- */
/* Adds a launch with grid_y = grid_z = 1 and no dynamic shared memory; returns it for changes. */
CudaLaunch *cuda_launch(CudaEmit *emit, const char *function, int32_t threads, int64_t work, int64_t work_per_image,
                        int64_t work_per_block);
/* Reserves bytes of scratch; returns the expression of their address, a `char *` aligned to 256: "((char *)scratch +
 * 65536)". The places of per-image bytes depend on the batch. */
const char *cuda_scratch(CudaEmit *emit, int64_t bytes, int64_t bytes_per_image);

/* --- addresses --------------------------------------------------------------------------------------- */
/* Expressions. index[dim] is one (of emit->index) or NULL for 0; the result includes the origin and has no operators
 * that bind looser than '+'. */
const char *cuda_offset(CudaEmit *emit, const PlanTensor *tensor, const char *const *index);
/* Offset in `operand` of the element that stands at `index` of a value of shape `output` to which it broadcasts. */
const char *cuda_broadcast_offset(CudaEmit *emit, const PlanTensor *operand, const Shape *output,
                                  const char *const *index);
/* Every element of the shape, the batch not counted: 1 image. */
int64_t cuda_elements_per_image(const Shape *shape);

/* --- expressions ------------------------------------------------------------------------------------- */
/* A builder of statements at `depth`: "const float t3 = t1 + t2;". Handles are names or literals (const char *). */
const ExprBuilder *cuda_expr_builder(CudaEmit *emit, int depth);
/* Applies the kernel's epilogue to the expression `value`: adds statements and returns the result's name (or `value`).
 * load(context, i) gives an expression of the element of kernel->inputs[i]. */
typedef const char *(*CudaOperandLoad)(CudaEmit *emit, void *context, int32_t input);
const char *cuda_epilogue_with(CudaEmit *emit, int depth, const PlanKernel *kernel, const char *value,
                               CudaOperandLoad load, void *context);
/* The same for the element at `index` of the output, with operands read one by one. */
const char *cuda_epilogue(CudaEmit *emit, int depth, const PlanKernel *kernel, const char *value,
                          const char *const *index);

/* --- kernels of one result per element ---------------------------------------------------------------- */
/* The frame: a thread per element of the output, or per `lanes` neighbours of dimension lane_dim. Between begin and end
 * the generator adds statements at depth 1 that set value[0 … lanes - 1]; index[dim] are the names of the variables
 * with the logical position of the first lane ("n", "c", "h", "w" for rank 4, else "i0", …). */
typedef struct CudaMap {
  const PlanKernel *kernel;
  const char *function;
  int32_t lanes, lane_dim; /* lane_dim is -1 for scalars */
  int32_t turns;           /* items of a thread; 1 without reductions */
  int64_t items;           /* of an image when batched */
  const char *index[SHAPE_MAX_RANK];
} CudaMap;

/* `vector_inputs`: how many of the op's inputs, from the first, the body reads in vectors along lane_dim at offsets
 * whose other terms are multiples of the strides: they too must allow it for lanes to be 4. -1: never more than 1. */
void cuda_map_begin(CudaEmit *emit, CudaMap *map, const PlanKernel *kernel, int32_t vector_inputs);
/* Epilogue, store and launch. */
void cuda_map_end(CudaEmit *emit, CudaMap *map);
/* A loop over the lanes, if there are several; returns the depth inside. `name` of the current lane: "value[lane]", or
 * "value" where there is one. */
int cuda_lanes_begin(CudaEmit *emit, const CudaMap *map, int depth);
void cuda_lanes_end(CudaEmit *emit, const CudaMap *map, int depth);
const char *cuda_lane(CudaEmit *emit, const CudaMap *map, const char *name);
/* Statements that load the lanes at the offset expression `offset` of input `input` into the new array `name`. */
void cuda_map_load(CudaEmit *emit, const CudaMap *map, int depth, int32_t input, const char *name, const char *offset);
/* The same kernel with dimensions that follow each other in the memory of all operands alike made one. For kernels
 * whose operands broadcast to the output element by element. */
PlanKernel cuda_merge_dims(CudaEmit *emit, const PlanKernel *kernel);
/* Loads what stands at `index` (dimensions of the output, to which `tensor` broadcasts, in any layout) of input
 * `input`, seen as `tensor`, into the new variable or array `name`; returns what to write for it in a loop over the
 * lanes. */
const char *cuda_map_read(CudaEmit *emit, const CudaMap *map, int depth, const PlanTensor *tensor, int32_t input,
                          const char *const *index, const char *name);
/* The same for input `input` at the map's place, into "e<input>". */
const char *cuda_map_operand(CudaEmit *emit, const CudaMap *map, int depth, int32_t input);
/* The dimension whose neighbours are adjacent in memory; -1 when there is none of more than one element. */
int32_t cuda_adjacent_dim(const PlanTensor *tensor);
/* Dimensions from the one with the widest strides to the one with the narrowest; the batch comes first. */
void cuda_order_dims(const PlanTensor *tensor, int32_t out_order[SHAPE_MAX_RANK]);

#endif
