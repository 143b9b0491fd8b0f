#include "emulated_kernel.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"
#include "cuda_emulator/blocks.h"
#include "guarded.h"
#include "hand_plan.h"

/* fake_nvrtc.c, linked in. */
typedef struct Program Program;
int nvrtcCreateProgram(Program **out_program, const char *source, const char *name, int header_count,
                       const char *const *headers, const char *const *header_names);
int nvrtcCompileProgram(Program *program, int option_count, const char *const *options);
int nvrtcGetCUBINSize(Program *program, size_t *size);
int nvrtcGetCUBIN(Program *program, char *out);
int nvrtcGetProgramLogSize(Program *program, size_t *size);
int nvrtcGetProgramLog(Program *program, char *out);
int nvrtcDestroyProgram(Program **program);

/* --- kernels ----------------------------------------------------------------------------------------- */

static void place_last(PlanTensor *tensor, LayoutKind kind, int32_t block) {
  const int64_t *dims = tensor->shape.dims;
  int64_t *stride = tensor->storage.stride;
  tensor->layout = (Layout){kind, kind == LAYOUT_FILTER_LAST ? block : 0};
  stride[1] = 1;
  stride[3] = round_up(dims[1], block);
  stride[2] = stride[3] * dims[3];
  stride[0] = stride[2] * dims[2];
  tensor->storage.bytes = stride[0] * (dims[0] == DIM_BATCH ? 1 : dims[0]) * 4;
}

static PlanTensor place(const Node *node, bool last, int32_t block, bool filter, int32_t index) {
  PlanTensor tensor =
      hand_tensor(node->name, node->shape, index < 0 ? SPACE_OUTPUT : SPACE_INPUT, index < 0 ? 0 : index);
  tensor.dtype = node->dtype;
  if (last && node->shape.rank == 4)
    place_last(&tensor, filter ? LAYOUT_FILTER_LAST : LAYOUT_CHANNEL_LAST, filter ? block : 1);
  return tensor;
}

static bool is_filter(const Node *node, int32_t input) {
  return input == 1 && (node->op == OP_CONV2D || node->op == OP_CONV_TRANSPOSE2D);
}

EmulatedKernel *emulated_kernel(Arena *arena, const char *text, bool last, int32_t channel_block, const char *arch,
                                MathMode math) {
  EmulatedKernel *kernel = arena_new(arena, EmulatedKernel);
  *kernel = (EmulatedKernel){.arena = arena, .diag = diag_create(arena)};
  if (!cuda_target(arch, NULL, math, arena, kernel->diag, &kernel->target) ||
      !graph_parse(NULL, text, strlen(text), arena, kernel->diag, &kernel->graph) ||
      !graph_infer(kernel->graph, kernel->diag)) {
    fprintf(stderr, "%s", diag_text(kernel->diag, arena));
    return NULL;
  }
  Node *node = graph_find_value(kernel->graph, "y");
  kernel->node = node;
  kernel->max_batch = kernel->graph->max_batch;
  PlanTensor *inputs = arena_array(arena, (size_t)node->input_count, PlanTensor);
  for (int32_t i = 0; i < node->input_count; i++)
    inputs[i] = place(node->inputs[i], last, channel_block, is_filter(node, i), i);
  const bool filter = node->op == OP_CONV2D_GRAD_WEIGHT;
  kernel->kernel = hand_kernel(arena, node->op, place(node, last, 1, filter, -1), inputs, node->input_count);
  kernel->kernel->attrs = node->attrs;
  kernel->kernel->op_input_count = node->op_input_count;
  kernel->kernel->epilogue = node->epilogue;
  kernel->kernel->epilogue_count = node->epilogue_count;
  kernel->kernel->choice.math = math;
  return kernel;
}

static void pack(PlanTensor *tensor, DataType element) {
  if ((tensor->layout.kind != LAYOUT_CHANNEL_LAST && tensor->layout.kind != LAYOUT_FILTER_LAST) ||
      tensor->shape.dims[1] % 8 != 0)
    return;
  tensor->layout.element = element;
  tensor->storage.bytes /= 2;
}

void emulated_pack(EmulatedKernel *kernel, DataType element) {
  pack(&kernel->kernel->output, element);
  for (int32_t i = 0; i < kernel->kernel->input_count; i++) pack(&kernel->kernel->inputs[i], element);
}

void emulated_begin(EmulatedKernel *kernel) {
  kernel->emit = (CudaEmit){.arena = kernel->arena,
                            .target = &kernel->target,
                            .diag = kernel->diag,
                            .max_batch = kernel->max_batch,
                            .index = "int"};
  text_init(&kernel->emit.text, kernel->arena);
  text_add(&kernel->emit.text, "#include \"kiln_prelude.h\"\n#include \"kiln_common.h\"\n#line 1 \"op:y\"\n");
}

bool emulated_generate(EmulatedKernel *kernel) {
  Plan *plan = hand_plan(kernel->arena, "y", &kernel->target, kernel->kernel, kernel->max_batch);
  CudaProgramText program;
  if (!cuda_generate(plan, kernel->arena, kernel->diag, &program)) {
    fprintf(stderr, "%s", diag_text(kernel->diag, kernel->arena));
    return false;
  }
  const CudaCode *code = &program.codes[0];
  emulated_begin(kernel);
  kernel->emit.text.size = 0;
  text_add(&kernel->emit.text, code->text);
  memcpy(kernel->emit.launches, code->launches, code->launch_count * sizeof *code->launches);
  kernel->emit.launch_count = code->launch_count;
  kernel->emit.scratch = code->scratch;
  kernel->emit.scratch_per_image = code->scratch_per_image;
  kernel->emit.counters = code->counters;
  return true;
}

/* --- modules ----------------------------------------------------------------------------------------- */

typedef struct Module {
  void *library;
  const EmulatorKernel *kernels;
  char *shared_begin, *shared_end;
} Module;

static const char *load(Arena *arena, const char *bytes, size_t size, Module *out_module) {
  const int file = memfd_create("kiln-test-kernel", MFD_CLOEXEC);
  if (file < 0 || write(file, bytes, size) != (ssize_t)size) return "cannot write the kernel's library";
  out_module->library = dlopen(arena_format(arena, "/proc/self/fd/%d", file), RTLD_NOW | RTLD_LOCAL);
  close(file);
  if (out_module->library == NULL) return arena_string(arena, dlerror());
  KilnEmulator **pointer = dlsym(out_module->library, EMULATOR_POINTER_SYMBOL);
  *pointer = blocks_emulator();
  out_module->kernels = dlsym(out_module->library, EMULATOR_KERNELS_SYMBOL);
  EmulatorShared *shared;
  void *address = dlsym(out_module->library, EMULATOR_SHARED_SYMBOL);
  memcpy(&shared, &address, sizeof shared);
  shared(&out_module->shared_begin, &out_module->shared_end);
  return NULL;
}

static const char *compile(Arena *arena, const char *text, Module *out_module) {
  Program *program = NULL;
  const char *headers[CUDA_HEADER_COUNT], *names[CUDA_HEADER_COUNT];
  for (int i = 0; i < CUDA_HEADER_COUNT; i++) headers[i] = cuda_headers[i].text, names[i] = cuda_headers[i].name;
  const char *const options[] = {"--gpu-architecture=sm_90"};
  size_t size = 0;
  if (nvrtcCreateProgram(&program, text, "kernel", CUDA_HEADER_COUNT, headers, names) != 0) return "no program";
  const char *failure = NULL;
  if (nvrtcCompileProgram(program, 1, options) != 0) {
    nvrtcGetProgramLogSize(program, &size);
    char *log = arena_alloc(arena, size + 1, 1);
    nvrtcGetProgramLog(program, log);
    failure = log;
  } else {
    nvrtcGetCUBINSize(program, &size);
    char *bytes = arena_alloc(arena, size, 1);
    nvrtcGetCUBIN(program, bytes);
    failure = load(arena, bytes, size, out_module);
  }
  nvrtcDestroyProgram(&program);
  return failure;
}

static const char *launch(Arena *arena, const Module *module, const CudaLaunch *what, void **arguments, int64_t batch) {
  const EmulatorKernel *kernel = module->kernels;
  while (kernel->name != NULL && strcmp(kernel->name, what->function) != 0) kernel++;
  if (kernel->name == NULL) return arena_format(arena, "no kernel '%s'", what->function);
  const BlockLaunch run = {
      .kernel = kernel,
      .arguments = arguments,
      .grid = {(unsigned)ceil_div(what->work + batch * what->work_per_image, what->work_per_block),
               (unsigned)what->grid_y, (unsigned)what->grid_z},
      .threads = (int)what->threads,
      .shared_begin = module->shared_begin,
      .shared_end = module->shared_end,
      .dynamic_shared = (size_t)what->shared_bytes,
  };
  return run.grid[0] > 0 ? blocks_run(&run) : NULL;
}

/* --- running ----------------------------------------------------------------------------------------- */

static Shape concrete(const PlanTensor *tensor, int64_t batch) {
  Shape shape = tensor->shape;
  if (shape_batched(&shape)) shape.dims[0] = batch;
  return shape;
}

static size_t buffer_bytes(const PlanTensor *tensor, int64_t batch) {
  return (size_t)(tensor->storage.bytes * (shape_batched(&tensor->shape) ? batch : 1));
}

/* A view lies `delta` bytes behind an aligned address. */
static char *allocate_buffer(const PlanTensor *tensor, int64_t batch) {
  const int64_t delta = tensor->storage.delta, bytes = (int64_t)buffer_bytes(tensor, batch) + delta;
  return guarded_alloc((size_t)(delta == 0 ? bytes : round_up(bytes, 16)), true);
}

/* No layout that is placed here has lanes. */
static int64_t element_offset(const PlanTensor *tensor, const int64_t *index) {
  int64_t offset = tensor->storage.origin;
  for (int32_t d = 0; d < tensor->shape.rank; d++) offset += index[d] * tensor->storage.stride[d];
  return offset;
}

/* Filters' padding is zeros. */
static void write_operand(const PlanTensor *tensor, const Tensor *value, void *buffer) {
  int64_t index[SHAPE_MAX_RANK] = {0}, at = 0;
  Tensor stored = {.dtype = layout_stored_type(tensor->layout, DTYPE_F32), .data = buffer};
  if (tensor->layout.kind == LAYOUT_FILTER_LAST) memset(buffer, 0, buffer_bytes(tensor, 1));
  do {
    tensor_set(&stored, element_offset(tensor, index), tensor_get(value, at++));
  } while (hand_next(&value->shape, index));
}

static const Tensor *find_input(const TensorList *inputs, const char *name) {
  for (size_t i = 0; i < inputs->count; i++)
    if (strcmp(inputs->items[i].name, name) == 0) return &inputs->items[i];
  return NULL;
}

static const char *run_launches(EmulatedKernel *kernel, const Module *module, void **arguments, u32 *counters,
                                int64_t batch) {
  const char *failure = NULL;
  for (size_t i = 0; i < kernel->emit.launch_count && failure == NULL; i++)
    failure = launch(kernel->arena, module, &kernel->emit.launches[i], arguments, batch);
  for (int i = 0; i < CUDA_COUNTERS && failure == NULL; i++)
    if (counters[i] != 0) failure = arena_format(kernel->arena, "counter %d is left at %u", i, counters[i]);
  return failure;
}

static float *read_output(Arena *arena, const PlanTensor *tensor, int64_t batch, void *buffer) {
  const Tensor stored = {.dtype = layout_stored_type(tensor->layout, DTYPE_F32), .data = buffer};
  const Shape shape = concrete(tensor, batch);
  int64_t elements = 0, index[SHAPE_MAX_RANK] = {0}, at = 0;
  shape_elements(&shape, batch, &elements);
  float *values = arena_array(arena, (size_t)elements, float);
  do {
    values[at++] = (float)tensor_get(&stored, element_offset(tensor, index));
  } while (hand_next(&shape, index));
  return values;
}

/* The arguments are addresses of the buffers' addresses, and of the batch. */
static const char *run_once(EmulatedKernel *kernel, const Module *module, const TensorList *inputs, int64_t batch,
                            float **out_values) {
  const PlanKernel *plan = kernel->kernel;
  const int count = (int)plan->input_count;
  void *owners[CUDA_MAX_OPERANDS + 2], *buffers[CUDA_MAX_OPERANDS + 2], *arguments[CUDA_MAX_OPERANDS + 3];
  for (int i = 0; i <= count; i++) {
    const PlanTensor *tensor = i == 0 ? &plan->output : &plan->inputs[i - 1];
    char *owner = owners[i] = allocate_buffer(tensor, batch);
    buffers[i] = owner + tensor->storage.delta;
    if (i > 0) write_operand(tensor, find_input(inputs, tensor->name), buffers[i]);
  }
  const int64_t scratch = CUDA_COUNTER_BYTES + kernel->emit.scratch + batch * kernel->emit.scratch_per_image;
  u32 *counters = owners[count + 1] = buffers[count + 1] = guarded_alloc((size_t)scratch, true);
  memset(counters, 0, CUDA_COUNTER_BYTES);
  int images = (int)batch;
  for (int i = 0; i <= count + 1; i++) arguments[i] = &buffers[i];
  arguments[count + 2] = &images;
  const char *failure = run_launches(kernel, module, arguments, counters, batch);
  if (failure == NULL)
    *out_values = read_output(kernel->arena, &plan->output, batch, buffers[0]);
  else
    failure = arena_string(kernel->arena, failure);
  for (int i = 0; i <= count + 1; i++) guarded_free(owners[i]);
  return failure;
}

const char *emulated_run(EmulatedKernel *kernel, const char *changed, const TensorList *inputs, int64_t batch,
                         float **out_forward, float **out_reverse) {
  Module module = {0};
  const char *failure = compile(kernel->arena, changed != NULL ? changed : kernel->emit.text.data, &module);
  for (int reverse = 0; reverse < 2 && failure == NULL; reverse++) {
    setenv("KILN_EMULATOR_ORDER", reverse ? "reverse" : "forward", 1);
    failure = run_once(kernel, &module, inputs, batch, reverse ? out_reverse : out_forward);
  }
  if (module.library != NULL) dlclose(module.library);
  return failure;
}
