/* The thin layer between kernels and LLVM: loops, addresses, vectors of floats. Kernel generators (cpu_X) use only
 * this header and the plan. All indices are i64; all float data is f32. Constants fold as they are built, so that
 * fixed shapes become constant strides.
 *
 * Values that change in a loop live in variables (allocas); mem2reg is the only clean-up pass that runs. */
#ifndef KILN_CODEGEN_CPU_EMIT_H
#define KILN_CODEGEN_CPU_EMIT_H

#include <llvm-c/Core.h>

#include "plan.h"

typedef LLVMValueRef Value;

typedef struct Emit {
  Arena *arena;
  const Target *target;
  LLVMContextRef context;
  LLVMModuleRef module;
  LLVMBuilderRef builder;
  Value function;
  LLVMTypeRef f32, i64, i32, i1, pointer, void_type;
  /* the kernel's arguments, valid in every cpu_X */
  const PlanKernel *kernel;
  Value output;  /* address of operand 0: start of the output's buffer (origin not added) */
  Value *inputs; /* addresses of the inputs, same order as kernel->inputs */
  Value *reductions; /* addresses of the results of kernel->reductions */
  struct Reductions *riding; /* the state of reductions.c; NULL: the kernel computes none */
  Value batch, thread, begin, end, scratch; /* scratch: of this thread */
  int64_t max_batch; /* of the program: batch is never more */
  const char *symbol; /* that those of routines begin with */
  bool quick; /* set by a cpu_X that has all loops that take time in routines: the kernel itself is translated quickly */
  Value operands; /* address of the kernel's table of operands */
  LLVMModuleRef kernel_module;
  const struct RoutineModule *routines; /* that are complete, the last one first */
} Emit;

typedef struct RoutineModule {
  LLVMModuleRef module;
  const char *name;
  const struct RoutineModule *before;
} RoutineModule;

/* What a kernel tells about itself. */
typedef struct KernelWork {
  int64_t items, items_per_batch; /* work items: items + batch * items_per_batch */
  int64_t scratch_bytes;          /* per thread */
} KernelWork;

/* Every op has one: emits the body of the kernel for items [begin, end) and says how many there are. False after a
 * report. The layout pass has made sure that operands have layouts that the op takes. */
#define OP(ENUM, name, inputs_min, inputs_max, attributes, layouts, parameters) \
  bool cpu_##name(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);
#define UNARY(ENUM, name, attributes)
#define BINARY(ENUM, name, attributes)
#define SOURCE(ENUM, name)
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE
bool cpu_elementwise(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag);

/* --- integers ---------------------------------------------------------------------------------------- */
Value emit_int(Emit *emit, int64_t value);
Value emit_add(Emit *emit, Value a, Value b);
Value emit_add_int(Emit *emit, Value a, int64_t b);
Value emit_sub(Emit *emit, Value a, Value b);
Value emit_mul_int(Emit *emit, Value a, int64_t b);
Value emit_div_int(Emit *emit, Value a, int64_t b); /* a ≥ 0, b > 0: quotient */
Value emit_mod_int(Emit *emit, Value a, int64_t b); /* a ≥ 0, b > 0: remainder */
Value emit_min(Emit *emit, Value a, Value b);       /* signed */
Value emit_max(Emit *emit, Value a, Value b);
/* Splits a linear index by the given extents, last varies fastest; out_digits[0] is not reduced. */
void emit_split(Emit *emit, Value index, int count, const int64_t *extents, Value *out_digits);

/* --- control ----------------------------------------------------------------------------------------- */
/* for (index = begin; index < end; index += step), skipped when begin ≥ end. */
typedef struct EmitLoop {
  Value index, end;
  int64_t step;
  bool hidden; /* LLVM does not see that the index counts */
  LLVMBasicBlockRef body, exit;
} EmitLoop;

EmitLoop emit_loop_begin(Emit *emit, Value begin, Value end, int64_t step, const char *name);
/* The same with constant bounds and at least one trip: no test before the first one. */
EmitLoop emit_loop_count(Emit *emit, int64_t count, int64_t step, const char *name);
/* The same for a loop around much other code. LLVM does not see that the index counts: it then looks for no addresses
 * that could step along with it, which takes long and gains nothing there. No instruction comes of this. */
EmitLoop emit_loop_outer(Emit *emit, Value begin, Value end, int64_t step, const char *name);
void emit_loop_end(Emit *emit, EmitLoop *loop);

typedef struct EmitIf {
  LLVMBasicBlockRef otherwise, done;
} EmitIf;

EmitIf emit_if(Emit *emit, Value condition, const char *name); /* condition is i1 */
void emit_else(Emit *emit, EmitIf *branch);
void emit_end_if(Emit *emit, EmitIf *branch);
Value emit_less(Emit *emit, Value a, Value b); /* signed, i1 */
Value emit_equal(Emit *emit, Value a, Value b);
Value emit_and(Emit *emit, Value a, Value b);
Value emit_select(Emit *emit, Value condition, Value yes, Value no);

/* Runs body(lanes, index) over [0, count): once per full vector with lanes = the target's (or `lanes`), then for the
 * rest one element at a time with lanes = 1. Never touches memory past count. */
typedef void (*EmitVectorBody)(Emit *emit, void *context, int32_t lanes, Value index);
void emit_vector_loop(Emit *emit, int64_t count, int32_t lanes, EmitVectorBody body, void *context);

/* A function of its own, for the body of inner loops: LLVM's loop passes take time that grows steeply with the depth of
 * loops and the number of addresses in one function. Between begin and end all code goes into it; it sees its arguments
 * only, some pointers and then some i64, and returns nothing.
 *
 * It is also a module of its own, which kernels that have the same routine share, so that it is translated once: its
 * symbol is `name` and a hash of what it does. But a routine that is begun within another is part of that one. */
typedef struct EmitRoutine {
  Value function, caller;
  LLVMTypeRef type;
  LLVMModuleRef caller_module; /* NULL: of a routine within another */
  LLVMBasicBlockRef call_site;
  Value operands, output, *inputs, *reductions, scratch; /* of the caller */
  bool part;
} EmitRoutine;

EmitRoutine emit_routine_begin(Emit *emit, const char *name, unsigned pointers, unsigned integers,
                               Value *out_arguments);
/* Sets emit->output, inputs and reductions from emit->operands. */
void emit_load_operands(Emit *emit);
/* A routine that sees the kernel's operands and scratch memory as well, where emit says. */
EmitRoutine emit_part_begin(Emit *emit, const char *name, unsigned integers, Value *out_arguments);
void emit_routine_end(Emit *emit, const EmitRoutine *routine);
void emit_routine_call(Emit *emit, const EmitRoutine *routine, const Value *arguments);

/* --- variables --------------------------------------------------------------------------------------- */
/* A variable in the function's entry block. */
Value emit_variable(Emit *emit, LLVMTypeRef type, const char *name);
Value emit_get(Emit *emit, LLVMTypeRef type, Value variable);
void emit_set(Emit *emit, Value variable, Value value);
/* Ends a step of sums, vectors in `count` variables: what was added so far is computed before anything is loaded that
 * follows. LLVM's scheduler else loads the next step's operands among this one's multiply-adds, and so many values are
 * then alive that sums which just fit the registers are spilled in every step. No instruction comes of this. */
void emit_step(Emit *emit, int32_t lanes, const Value *variables, size_t count);
/* Keeps the register of a broadcast until here, which a single multiply-add has used: LLVM would add into it, so that
 * the sum moves from register to register. Nothing where the multiply-add can broadcast itself, or is not fused. */
void emit_keep(Emit *emit, int32_t lanes, Value broadcast);

/* --- floats: `lanes` = 1 is a scalar, else <lanes x float> ------------------------------------------- */
LLVMTypeRef emit_float_type(Emit *emit, int32_t lanes);
Value emit_float(Emit *emit, int32_t lanes, double value); /* every lane */
Value emit_splat(Emit *emit, Value scalar, int32_t lanes);
Value emit_fadd(Emit *emit, Value a, Value b);
Value emit_fsub(Emit *emit, Value a, Value b);
Value emit_fmul(Emit *emit, Value a, Value b);
Value emit_fdiv(Emit *emit, Value a, Value b);
/* a*b+c: fused when the target has it, two roundings otherwise. */
Value emit_fma(Emit *emit, Value a, Value b, Value c);
Value emit_fmax(Emit *emit, Value a, Value b); /* a > b ? a : b */
Value emit_fmin(Emit *emit, Value a, Value b); /* a < b ? a : b */
Value emit_fselect_less(Emit *emit, Value a, Value b, Value yes, Value no);
Value emit_reduce_add(Emit *emit, Value vector, int32_t lanes); /* pairwise, fixed order */
Value emit_reduce_max(Emit *emit, Value vector, int32_t lanes);
/* exp, log, tanh, erf, sigmoid, sqrt on scalars and vectors alike; documented errors in math.c. */
Value emit_math(Emit *emit, ExprUnary operation, Value a, int32_t lanes);

/* --- memory: `offset` counts elements of f32 --------------------------------------------------------- */
Value emit_address(Emit *emit, Value base, Value offset);
Value emit_load(Emit *emit, Value base, Value offset, int32_t lanes); /* alignment of one element */
void emit_store(Emit *emit, Value base, Value offset, Value value);
Value emit_load_strided(Emit *emit, Value base, Value offset, int64_t stride, int32_t lanes); /* lane by lane */
void emit_store_strided(Emit *emit, Value base, Value offset, int64_t stride, Value value, int32_t lanes);
/* The same value in a register, but LLVM does not see how it was computed: for an address from which much is loaded or
 * stored at constant distances. Loop strength reduction takes time that grows with the square of the accesses of a loop
 * whose addresses have terms in common, and instruction selection looks through the terms of each access for bits that
 * are known. Where a loop's body does much with each address of many, nothing is won by that. A constant vector that
 * much is computed with is looked through as well. No instruction comes of this. */
Value emit_opaque(Emit *emit, Value value);
/* Asks for the cache line at `base` + `offset` to be fetched into the second-level cache, or also into the first. The
 * address may be outside of all buffers. */
void emit_prefetch_line(Emit *emit, Value base, Value offset, bool first_level);
/* i64 elements, scalar (argmax results, class indices). */
Value emit_load_i64(Emit *emit, Value base, Value offset);
void emit_store_i64(Emit *emit, Value base, Value offset, Value value);

/* --- tensors ----------------------------------------------------------------------------------------- */
/* Offset of logical element index[] (rank of the tensor; a NULL Value means 0), origin included. For blocked layouts
 * the split dimension's index counts *blocks* and the offset is of lane 0. */
Value emit_offset(Emit *emit, const PlanTensor *tensor, const Value *index);
/* Offset of a logical element whatever the layout (divides by the block): for slow, general code. */
Value emit_offset_element(Emit *emit, const PlanTensor *tensor, const Value *index);

/* The dimension over which vectors of this tensor run: the last one, or the channels of CHANNEL_BLOCK and
 * CHANNEL_LAST, or the split one of the other blocked layouts; and how many of its elements make an index step of
 * emit_offset (1 when not blocked). */
int32_t emit_lane_dim(const PlanTensor *tensor);
int32_t emit_lane_block(const PlanTensor *tensor);
/* Lanes of the vectors in which kernels of blocked values, or values with channels last, take a pixel's channels: the
 * block, or the widest vector that divides the channels. */
int32_t emit_channel_lanes(Emit *emit, const PlanTensor *tensor);
/* Loads what stands at `index` of `output` from an operand that broadcasts to it, whatever the two layouts: lanes run
 * over the output's lane dimension. Reads nothing outside the operand. `index` as for emit_epilogue. */
Value emit_load_broadcast(Emit *emit, const PlanTensor *operand, Value base, const PlanTensor *output,
                          const Value *index, int32_t lanes);

/* Applies the kernel's epilogue to a value. `index` is the logical position of lane 0 in the output (blocked: the
 * split dimension counts blocks, lanes run over the channels of the block; plain: lanes run over the last
 * dimension, or the channels where these are last). Operands are loaded with broadcasting by shape. */
Value emit_epilogue(Emit *emit, Value value, const Value *index, int32_t lanes);
/* The same for a kernel that finds the operands of the epilogue itself: load(…, i) gives kernel->inputs[i]. */
typedef Value (*EmitOperandLoad)(Emit *emit, void *context, int32_t input);
Value emit_epilogue_with(Emit *emit, Value value, int32_t lanes, EmitOperandLoad load, void *context);
/* The builder over `lanes` lanes, for expr_X. */
const ExprBuilder *emit_expr_builder(Emit *emit, int32_t lanes);
/* Zeroes the halo of an output around row `y` of (n, block): its left and right columns, and with the first and last row
 * the rows above and below. Every kernel that writes rows calls it once per row; with channels last `block` is NULL. */
void emit_halo(Emit *emit, Value n, Value block, Value y);
/* The same for rows [begin, end). */
void emit_halo_rows(Emit *emit, Value n, Value block, Value begin, Value end);

#endif
