#include "cuda_emit.h"

#include <assert.h>
#include <ctype.h>
#include <math.h>
#include <string.h>

#include "base/checked.h"

enum { LINE_MAX_TEXT = 120 };

/* --- lines ------------------------------------------------------------------------------------------- */

void cuda_line(CudaEmit *emit, int depth, const char *format, ...) {
  for (int i = 0; i < depth + emit->indent; i++) text_add(&emit->text, "  ");
  va_list arguments;
  va_start(arguments, format);
  text_format_v(&emit->text, format, arguments);
  va_end(arguments);
  text_add(&emit->text, "\n");
}

const char *cuda_type(DataType type) { return type == DTYPE_I64 ? "i64" : "float"; }

const char *cuda_stored_type(const PlanTensor *tensor) {
  return tensor->layout.element != DTYPE_F32 ? "u16" : cuda_type(tensor->dtype);
}

static const char *apply(CudaEmit *emit, DataType element, const char *bf16, const char *f16, const char *value) {
  if (element == DTYPE_F32) return value;
  return arena_format(emit->arena, "%s(%s)", element == DTYPE_BF16 ? bf16 : f16, value);
}

const char *cuda_read(CudaEmit *emit, const PlanTensor *tensor, const char *place) {
  return apply(emit, tensor->layout.element, "bf2f", "h2f", place);
}

const char *cuda_written(CudaEmit *emit, const PlanTensor *tensor, const char *value) {
  return apply(emit, tensor->layout.element, "f2bf", "f2h", value);
}

const char *cuda_vector_suffix(const PlanTensor *tensor) {
  return tensor->layout.element == DTYPE_F32 ? "" : tensor->layout.element == DTYPE_BF16 ? "_bf16" : "_f16";
}

const char *cuda_int(CudaEmit *emit, const char *expression) {
  if (strcmp(emit->index, "int") == 0) return expression;
  return arena_format(emit->arena, "(int)%s", expression);
}

const char *cuda_batch(CudaEmit *emit, int64_t factor) {
  const char *wide = strcmp(emit->index, "int") == 0 ? "" : "(i64)";
  if (factor == 1) return arena_format(emit->arena, "%sbatch", wide);
  return arena_format(emit->arena, "%sbatch * %lld", wide, (long long)factor);
}

const char *cuda_thread_number(CudaEmit *emit, int32_t threads) {
  const char *wide = strcmp(emit->index, "int") == 0 ? "" : "(i64)";
  return arena_format(emit->arena, "%sblock_x() * %d + thread_index()", wide, (int)threads);
}

static void begin_function(CudaEmit *emit, const PlanKernel *kernel, const char *bounds, const char *function) {
  Text head;
  text_init(&head, emit->arena);
  text_format(&head, "%s %s(%s *__restrict__ y, ", bounds, function, cuda_stored_type(&kernel->output));
  size_t line = 0;
  const int32_t inputs = kernel->input_count, operands = inputs + kernel->reduction_count;
  for (int32_t i = 0; i <= operands; i++) {
    const char *argument = "void *__restrict__ scratch, int batch) {";
    if (i < inputs)
      argument =
          arena_format(emit->arena, "const %s *__restrict__ in%d, ", cuda_stored_type(&kernel->inputs[i]), (int)i);
    else if (i < operands)
      argument = arena_format(emit->arena, "float *__restrict__ ride%d_rows, ", (int)(i - inputs));
    if (head.size - line + strlen(argument) > LINE_MAX_TEXT) {
      head.data[--head.size] = 0; /* the blank before the break */
      text_add(&head, "\n    ");
      line = head.size - 4;
    }
    text_add(&head, argument);
  }
  if (emit->launch_count > 0) text_add(&emit->text, "\n"); /* between functions */
  cuda_line(emit, 0, "%s", head.data);
  cuda_line(emit, 1, "(void)scratch, (void)batch;");
}

void cuda_function(CudaEmit *emit, const PlanKernel *kernel, const char *function, int32_t threads) {
  begin_function(emit, kernel, arena_format(emit->arena, "KERNEL(%d)", (int)threads), function);
}

void cuda_function_blocks(CudaEmit *emit, const PlanKernel *kernel, const char *function, int32_t threads,
                          int32_t blocks) {
  begin_function(emit, kernel, arena_format(emit->arena, "KERNEL_BLOCKS(%d, %d)", (int)threads, (int)blocks), function);
}

const char *cuda_float(CudaEmit *emit, double value) {
  const float single = (float)value;
  if (isnan(single)) return "F32_NAN";
  if (isinf(single)) return single > 0 ? "F32_INFINITY" : "(-F32_INFINITY)";
  /* 9 digits name every f32 */
  const char *digits = arena_format(emit->arena, "%.9g", (double)single);
  const char *point = strpbrk(digits, ".e") != NULL ? "" : ".0";
  return arena_format(emit->arena, single < 0 || signbit(single) ? "(%s%sf)" : "%s%sf", digits, point);
}

/* --- launches ---------------------------------------------------------------------------------------- */

CudaLaunch *cuda_launch(CudaEmit *emit, const char *function, int32_t threads, int64_t work, int64_t work_per_image,
                        int64_t work_per_block) {
  assert(emit->launch_count < CUDA_MAX_LAUNCHES && threads % 32 == 0 && work_per_block > 0);
  CudaLaunch *launch = &emit->launches[emit->launch_count++];
  *launch = (CudaLaunch){.function = function,
                         .threads = threads,
                         .work = work,
                         .work_per_image = work_per_image,
                         .work_per_block = work_per_block,
                         .grid_y = 1,
                         .grid_z = 1};
  return launch;
}

const char *cuda_scratch(CudaEmit *emit, int64_t bytes, int64_t bytes_per_image) {
  enum { SCRATCH_ALIGNMENT = 256 };
  const char *place =
      arena_format(emit->arena, "((char *)scratch + %lld", (long long)(CUDA_COUNTER_BYTES + emit->scratch));
  if (emit->scratch_per_image > 0)
    place = arena_format(emit->arena, "%s + (i64)batch * %lld", place, (long long)emit->scratch_per_image);
  emit->scratch += round_up(bytes, SCRATCH_ALIGNMENT);
  emit->scratch_per_image += round_up(bytes_per_image, SCRATCH_ALIGNMENT);
  return arena_format(emit->arena, "%s)", place);
}

/* --- addresses --------------------------------------------------------------------------------------- */

static bool is_name(const char *expression) {
  for (; *expression; expression++)
    if (!isalnum((unsigned char)*expression) && *expression != '_') return false;
  return true;
}

/* Adds "index * stride" to a sum. */
static void add_term(Text *sum, const char *index, int64_t stride) {
  if (index == NULL || stride == 0 || strcmp(index, "0") == 0) return;
  if (sum->size > 0) text_add(sum, " + ");
  text_format(sum, is_name(index) ? "%s" : "(%s)", index);
  if (stride != 1) text_format(sum, " * %lld", (long long)stride);
}

static const char *finish_sum(Text *sum, int64_t constant) {
  if (sum->size == 0) {
    text_format(sum, "%lld", (long long)constant);
  } else if (constant != 0) {
    text_format(sum, " + %lld", (long long)constant);
  }
  return sum->data;
}

const char *cuda_offset(CudaEmit *emit, const PlanTensor *tensor, const char *const *index) {
  assert(tensor->layout.kind == LAYOUT_PLAIN || tensor->layout.kind == LAYOUT_CHANNEL_LAST ||
         tensor->layout.kind == LAYOUT_FILTER_LAST);
  Text sum;
  text_init(&sum, emit->arena);
  for (int32_t dim = 0; dim < tensor->shape.rank; dim++) add_term(&sum, index[dim], tensor->storage.stride[dim]);
  return finish_sum(&sum, tensor->storage.origin);
}

const char *cuda_broadcast_offset(CudaEmit *emit, const PlanTensor *operand, const Shape *output,
                                  const char *const *index) {
  const char *own[SHAPE_MAX_RANK] = {NULL};
  int32_t shift = output->rank - operand->shape.rank;
  assert(shift >= 0);
  for (int32_t dim = 0; dim < operand->shape.rank; dim++)
    if (operand->shape.dims[dim] != 1) own[dim] = index[dim + shift];
  return cuda_offset(emit, operand, own);
}

int64_t cuda_elements_per_image(const Shape *shape) { return shape_elements_per_image(shape); }

/* --- expressions ------------------------------------------------------------------------------------- */

typedef struct ExprContext {
  ExprBuilder builder; /* first: its context points at this struct */
  CudaEmit *emit;
  int depth;
} ExprContext;

static ExprValue statement(ExprContext *expr, const char *expression) {
  CudaEmit *emit = expr->emit;
  char *name = arena_format(emit->arena, "t%d", (int)emit->temporaries++);
  cuda_line(emit, expr->depth, "const float %s = %s;", name, expression);
  return (ExprValue){.handle = name};
}

/* Handles are never changed: the struct has no pointer to const. */
static ExprValue expr_constant(void *context, double value) {
  ExprContext *expr = context;
  return (ExprValue){.handle = arena_string(expr->emit->arena, cuda_float(expr->emit, value))};
}

static ExprValue expr_unary(void *context, ExprUnary operation, ExprValue a) {
  static const char *const forms[] = {
      [EXPR_NEG] = "-%s",      [EXPR_ABS] = "fabsf(%s)",  [EXPR_SQRT] = "sqrtf(%s)", [EXPR_EXP] = "expf(%s)",
      [EXPR_LOG] = "logf(%s)", [EXPR_TANH] = "tanhf(%s)", [EXPR_ERF] = "erff(%s)",   [EXPR_SIGMOID] = "sigmoid_f32(%s)",
  };
  ExprContext *expr = context;
  const char *form = forms[operation], *hole = strstr(form, "%s"), *operand = a.handle;
  return statement(expr, arena_format(expr->emit->arena, "%.*s%s%s", (int)(hole - form), form, operand, hole + 2));
}

static ExprValue expr_binary(void *context, ExprBinary operation, ExprValue a, ExprValue b) {
  static const char *const operators[] = {[EXPR_ADD] = "+", [EXPR_SUB] = "-", [EXPR_MUL] = "*", [EXPR_DIV] = "/"};
  ExprContext *expr = context;
  Arena *arena = expr->emit->arena;
  const char *left = a.handle, *right = b.handle;
  if (operation == EXPR_MAX || operation == EXPR_MIN)
    return statement(expr, arena_format(arena, "%s_f32(%s, %s)", operation == EXPR_MAX ? "max" : "min", left, right));
  return statement(expr, arena_format(arena, "%s %s %s", left, operators[operation], right));
}

static ExprValue expr_select_less(void *context, ExprValue a, ExprValue b, ExprValue yes, ExprValue no) {
  ExprContext *expr = context;
  return statement(expr, arena_format(expr->emit->arena, "%s < %s ? %s : %s", (const char *)a.handle,
                                      (const char *)b.handle, (const char *)yes.handle, (const char *)no.handle));
}

const ExprBuilder *cuda_expr_builder(CudaEmit *emit, int depth) {
  ExprContext *expr = arena_new(emit->arena, ExprContext);
  *expr = (ExprContext){.emit = emit, .depth = depth};
  expr->builder = (ExprBuilder){expr, expr_constant, expr_unary, expr_binary, expr_select_less};
  return &expr->builder;
}

const char *cuda_epilogue_with(CudaEmit *emit, int depth, const PlanKernel *kernel, const char *value,
                               CudaOperandLoad load, void *context) {
  const ExprBuilder *builder = cuda_expr_builder(emit, depth);
  ExprValue v = {.handle = arena_string(emit->arena, value)}, none = {.handle = NULL};
  for (int32_t i = 0; i < kernel->epilogue_count; i++) {
    const EpilogueStep *step = &kernel->epilogue[i];
    const OpInfo *info = op_info(step->op);
    if (step->operand < 0) {
      v = info->expr(builder, &step->attrs, v, none);
      continue;
    }
    ExprValue operand = {.handle = arena_string(emit->arena, load(emit, context, step->operand))};
    v = step->reversed ? info->expr(builder, &step->attrs, operand, v) : info->expr(builder, &step->attrs, v, operand);
  }
  return v.handle;
}

typedef struct ElementPlace {
  const PlanKernel *kernel;
  const char *const *index;
} ElementPlace;

static const char *load_element(CudaEmit *emit, void *context, int32_t input) {
  const ElementPlace *place = context;
  const PlanKernel *kernel = place->kernel;
  const PlanTensor *tensor = &kernel->inputs[input];
  return cuda_read(emit, tensor,
                   arena_format(emit->arena, "in%d[%s]", (int)input,
                                cuda_broadcast_offset(emit, tensor, &kernel->output.shape, place->index)));
}

const char *cuda_epilogue(CudaEmit *emit, int depth, const PlanKernel *kernel, const char *value,
                          const char *const *index) {
  ElementPlace place = {kernel, index};
  return cuda_epilogue_with(emit, depth, kernel, value, load_element, &place);
}
