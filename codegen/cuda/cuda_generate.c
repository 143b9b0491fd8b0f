/* The driver of the CUDA generator: every distinct kernel of a plan becomes one text with its launches. */
#include <string.h>

#include "base/checked.h"
#include "cuda_emit.h"
#include "texts.h"

const CudaHeader cuda_headers[CUDA_HEADER_COUNT] = {
    {"kiln_prelude.h", text_prelude_device},
    {"kiln_common.h", text_prelude_common},
};

typedef bool (*Generate)(CudaEmit *emit, const PlanKernel *kernel);

static const Generate generators[OP_COUNT] = {
#define OP(ENUM, name, inputs_min, inputs_max, attributes, layouts, parameters) [OP_##ENUM] = cuda_##name,
#define ELEMENTWISE(ENUM)                                                       [OP_##ENUM] = cuda_elementwise,
#define UNARY(ENUM, name, attributes)                                           ELEMENTWISE(ENUM) ELEMENTWISE(ENUM##_GRAD)
#define BINARY(ENUM, name, attributes)                                          ELEMENTWISE(ENUM)
#define SOURCE(ENUM, name)
#include "ops.def"
#undef OP
#undef UNARY
#undef BINARY
#undef SOURCE
#undef ELEMENTWISE
};

/* --- what a kernel is --------------------------------------------------------------------------------- */

static void print_operand(Text *text, const char *role, const PlanTensor *tensor) {
  text_format(text, " *   %-5s %s[", role, data_type_name(tensor->dtype));
  shape_print(text, &tensor->shape);
  text_add(text, "] ");
  layout_print(text, tensor->layout);
  const int64_t *stride = tensor->storage.stride;
  for (int32_t d = 0; d < tensor->shape.rank; d++)
    text_format(text, "%s%lld", d ? "," : ", strides ", (long long)stride[d]);
  text_add(text, "\n");
}

/* "conv2d {stride=[2,2]} + add + relu" and the operands, as a comment. Names of values are left out: only the #line has
 * one. */
static void print_head(Text *text, const PlanKernel *kernel) {
  Text attributes;
  text_init(&attributes, text->arena);
  attrs_print(&attributes, &kernel->attrs, op_info(kernel->op)->attrs);
  text_format(text, "/* %s", op_info(kernel->op)->name);
  if (attributes.size > 0) text_format(text, " {%s}", attributes.data);
  for (int32_t i = 0; i < kernel->epilogue_count; i++) {
    const EpilogueStep *step = &kernel->epilogue[i];
    text_format(text, " + %s%s", step->reversed ? "reversed " : "", op_info(step->op)->name);
    if (step->operand >= 0) text_format(text, " in%d", (int)step->operand);
  }
  text_add(text, "\n");
  print_operand(text, "y", &kernel->output);
  for (int32_t i = 0; i < kernel->input_count; i++)
    print_operand(text, arena_format(text->arena, "in%d", (int)i), &kernel->inputs[i]);
  for (int32_t i = 0; i < kernel->reduction_count; i++) {
    const PlanReduction *reduction = &kernel->reductions[i];
    print_operand(text, op_info(reduction->op)->name, &reduction->output);
  }
  text_add(text, " */\n#include \"kiln_prelude.h\"\n#include \"kiln_common.h\"\n\n");
}

/* Names of values may hold quotes and backslashes. */
static void print_line(Text *text, const PlanKernel *kernel) {
  text_add(text, "#line 1 \"op:");
  for (const char *at = kernel->name != NULL ? kernel->name : ""; *at; at++)
    text_add_n(text, *at == '"' || *at == '\\' || (unsigned char)*at < ' ' ? "_" : at, 1);
  text_add(text, "\"\n");
}

/* --- index types -------------------------------------------------------------------------------------- */

/* Elements of a buffer for the largest batch; false on overflow. */
static bool buffer_elements(const PlanTensor *tensor, int64_t max_batch, int64_t *out_count) {
  int64_t bytes = tensor->storage.bytes, elements;
  if (!shape_elements(&tensor->shape, max_batch, &elements)) return false;
  if (shape_batched(&tensor->shape) && !checked_mul(bytes, max_batch, &bytes)) return false;
  *out_count = bytes / layout_stored_bytes(tensor->layout, tensor->dtype);
  if (elements > *out_count) *out_count = elements;
  return true;
}

/* Threads beyond the last element and strides past the end count too, hence the margin. */
static const char *choose_index(const PlanKernel *kernel, int64_t max_batch) {
  const int64_t limit = INT32_MAX - (1 << 20);
  int64_t count;
  for (int32_t i = -1; i < kernel->input_count + kernel->reduction_count; i++) {
    const PlanTensor *tensor = i < 0                     ? &kernel->output
                               : i < kernel->input_count ? &kernel->inputs[i]
                                                         : &kernel->reductions[i - kernel->input_count].output;
    if (!buffer_elements(tensor, max_batch, &count) || count > limit) return "i64";
  }
  return "int";
}

/* --- the program -------------------------------------------------------------------------------------- */

static bool generate_code(const Plan *plan, size_t index, Arena *arena, Diag *diag, CudaCode *out_code) {
  const PlanKernel *kernel = &plan->kernels[index];
  const char *op = op_info(kernel->op)->name;
  CudaEmit *emit = arena_new(arena, CudaEmit);
  *emit = (CudaEmit){.arena = arena,
                     .target = plan->target,
                     .diag = diag,
                     .max_batch = plan->max_batch > 1 ? plan->max_batch : 1,
                     .index = choose_index(kernel, plan->max_batch > 1 ? plan->max_batch : 1)};
  text_init(&emit->text, arena);
  print_head(&emit->text, kernel);
  print_line(&emit->text, kernel);
  bool empty = cuda_elements_per_image(&kernel->output.shape) == 0;
  if (!empty && !generators[kernel->op](emit, kernel)) return false;
  *out_code = (CudaCode){
      .kernel = (uint32_t)index,
      .name = arena_format(arena, "k%zu_%s", index, op),
      .text = emit->text.data,
      .launches = arena_copy(arena, emit->launches, emit->launch_count * sizeof *emit->launches),
      .launch_count = emit->launch_count,
      .scratch = emit->scratch,
      .scratch_per_image = emit->scratch_per_image,
      .counters = emit->counters,
  };
  return true;
}

bool cuda_generate(const Plan *plan, Arena *arena, Diag *diag, CudaProgramText *out_program) {
  CudaProgramText program = {arena_array(arena, plan->kernel_count, CudaCode), 0,
                             arena_array(arena, plan->kernel_count, uint32_t)};
  for (size_t k = 0; k < plan->kernel_count; k++) {
    const PlanKernel *kernel = &plan->kernels[k];
    const int operands = (int)(1 + kernel->input_count + kernel->reduction_count);
    if (operands > CUDA_MAX_OPERANDS) {
      diag_error(diag, kernel->location, "'%s': a kernel takes at most %d operands, found %d", kernel->name,
                 CUDA_MAX_OPERANDS, operands);
      return false;
    }
    if (kernel->code != k) {
      program.code_of[k] = program.code_of[kernel->code];
      continue;
    }
    program.code_of[k] = (uint32_t)program.code_count;
    if (!generate_code(plan, k, arena, diag, &program.codes[program.code_count])) return false;
    program.code_count++;
  }
  *out_program = program;
  return true;
}

/* "12544 + 784 * batch" */
static bool is_product(OpCode op) {
  return op == OP_CONV2D || op == OP_CONV_TRANSPOSE2D || op == OP_CONV2D_GRAD_WEIGHT || op == OP_LINEAR ||
         op == OP_LINEAR_GRAD_WEIGHT || op == OP_MATMUL;
}

bool cuda_products(const Plan *plan, Arena *arena, Diag *diag, CudaProductOf **out_products, size_t *out_count) {
  CudaProgramText program;
  if (!cuda_generate(plan, arena, diag, &program)) return false;
  CudaProductOf *products = arena_array(arena, plan->kernel_count * CUDA_MAX_LAUNCHES, CudaProductOf);
  size_t count = 0;
  for (uint32_t k = 0; k < plan->kernel_count; k++) {
    const CudaCode *code = &program.codes[program.code_of[k]];
    const PlanKernel *kernel = &plan->kernels[k];
    const size_t before = count;
    for (size_t l = 0; l < code->launch_count; l++) {
      const CudaLaunch *launch = &code->launches[l];
      if (launch->product != NULL) products[count++] = (CudaProductOf){k, launch->function, *launch->product};
    }
    if (count == before && is_product(kernel->op) && code->launch_count > 0)
      products[count++] = (CudaProductOf){.kernel = k, .product = {.math = MATH_FP32}};
  }
  *out_products = products;
  *out_count = count;
  return true;
}

static void print_work(Text *text, const CudaLaunch *launch) {
  if (launch->work_per_image == 0)
    text_format(text, "%lld", (long long)launch->work);
  else if (launch->work == 0)
    text_format(text, "%lld * batch", (long long)launch->work_per_image);
  else
    text_format(text, "%lld + %lld * batch", (long long)launch->work, (long long)launch->work_per_image);
}

void cuda_print(Text *text, const Plan *plan, const CudaProgramText *program) {
  text_format(text, "/* %s for %s: %zu kernels in %zu texts\n *\n", plan->name,
              plan->target != NULL ? plan->target->isa : "a GPU", plan->kernel_count, program->code_count);
  for (size_t k = 0; k < plan->kernel_count; k++)
    text_format(text, " * %s %3zu  %-24s %s\n", k < plan->prepare_count ? "prepare" : "run    ", k,
                program->codes[program->code_of[k]].name, plan->kernels[k].name);
  text_add(text, " */\n");
  for (size_t i = 0; i < program->code_count; i++) {
    const CudaCode *code = &program->codes[i];
    text_format(text, "\n/* === %s.cu\n", code->name);
    for (size_t l = 0; l < code->launch_count; l++) {
      const CudaLaunch *launch = &code->launches[l];
      text_format(text, " * %s: %d threads a block, ceil((", launch->function, (int)launch->threads);
      print_work(text, launch);
      text_format(text, ") / %lld) x %d x %d blocks, %d bytes of shared memory\n", (long long)launch->work_per_block,
                  (int)launch->grid_y, (int)launch->grid_z, (int)launch->shared_bytes);
    }
    text_format(text, " * scratch: %lld bytes + %lld per image */\n%s", (long long)code->scratch,
                (long long)code->scratch_per_image, code->text);
  }
}
