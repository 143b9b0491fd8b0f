#include "run_program.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "codegen.h"
#include "core/loader.h"
#include "core/runner.h"
#include "description.h"
#include "guarded.h"

enum { DEFAULT_MAX_BATCH = 4 };

static bool fail(TestProgram *program, const char *what) {
  const char *text = diag_text(program->diag, program->arena);
  fprintf(stderr, "%s\n%s%s", what, text, *text ? "\n" : "");
  return false;
}

/* --- compiling --------------------------------------------------------------------------------------- */

bool test_program_init(TestProgram *program, Arena *arena, Graph *graph) {
  *program = (TestProgram){.arena = arena, .diag = diag_create(arena), .source = graph};
  if (graph->max_batch <= 1) graph->max_batch = DEFAULT_MAX_BATCH;
  if (!graph_infer(graph, program->diag)) return fail(program, "the graph is wrong");
  return true;
}

bool test_program_parse(TestProgram *program, Arena *arena, const char *text) {
  *program = (TestProgram){.arena = arena, .diag = diag_create(arena)};
  const ImportOptions options = {0};
  Graph *graph = NULL;
  size_t size = strlen(text), blanks = strspn(text, " \t\r\n");
  bool parsed = text[blanks] == '{' ? description_parse("test", text, size, &options, arena, program->diag, &graph)
                                    : graph_parse("test", text, size, arena, program->diag, &graph);
  if (!parsed) return fail(program, "the text does not parse");
  return test_program_init(program, arena, graph);
}

bool test_isa_runnable(const char *isa) {
  Arena *arena = arena_create(NULL);
  Target target;
  bool runnable = cpu_target(isa, NULL, arena, diag_create(arena), &target) && cpu_target_runnable(&target);
  arena_destroy(arena);
  return runnable;
}

bool test_program_compile(TestProgram *program, const char *isa, const char *disabled, Precision precision) {
  Arena *arena = program->arena;
  program->diag = diag_create(arena);
  program->device = NULL;
  program->graph = graph_clone(program->source, arena);
  if (!cpu_target(isa, NULL, arena, program->diag, &program->target)) return fail(program, "unknown target");
  if (program->l2_bytes > 0) program->target.l2_bytes = program->l2_bytes;
  Arena *scratch = arena_create(NULL);
  const PassOptions options = {.target = &program->target,
                               .precision = precision,
                               .disabled = disabled,
                               .scratch = scratch,
                               .image_layout = program->image_layout};
  const PipelineOptions pipeline = {.verify = true};
  bool planned = pipeline_run(program->graph, &options, &pipeline, program->diag, &program->plan);
  arena_destroy(scratch);
  if (!planned) return fail(program, "the passes failed");
  const CpuOptions cpu = {.threads = 1};
  CpuObjects objects;
  if (!cpu_compile(program->plan, &cpu, arena, program->diag, &objects) ||
      !jit_load(&objects, arena, program->diag, &program->program))
    return fail(program, "code generation failed");
  return true;
}

/* --- data -------------------------------------------------------------------------------------------- */

/* SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. */
static uint64_t random_next(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static void fill_tensor(Tensor *tensor, TestFill fill, uint64_t *state, bool positive) {
  int64_t count = tensor_elements(tensor);
  for (int64_t i = 0; i < count; i++) {
    uint64_t bits = random_next(state);
    double value = fill == FILL_INTEGERS ? (double)(bits % 7) - 3 : (double)(bits >> 40) * 0x1p-23 - 1;
    if (tensor->dtype != DTYPE_F32) value = (double)(bits % 3);
    if (positive) value = 0.5 + fabs(value);
    tensor_set(tensor, i, value);
  }
}

static Shape concrete(Shape shape, int64_t batch) {
  if (shape_batched(&shape)) shape.dims[0] = batch;
  return shape;
}

void test_fill(TestProgram *program, TestFill fill, int64_t batch, uint64_t seed) {
  const Graph *graph = program->source;
  Arena *arena = program->arena;
  program->parameters = (TensorList){arena_array(arena, graph->parameter_count, Tensor), graph->parameter_count};
  program->inputs = (TensorList){arena_array(arena, graph->input_count, Tensor), graph->input_count};
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    Tensor *tensor = &program->parameters.items[i];
    *tensor = tensor_create(arena, parameter->name, parameter->dtype, parameter->shape);
    if (parameter->value != NULL)
      memcpy(tensor->data, parameter->value->data, (size_t)tensor_bytes(tensor));
    else
      fill_tensor(tensor, fill, &seed, strstr(parameter->name, "running_var") != NULL);
  }
  for (size_t i = 0; i < graph->input_count; i++) {
    const GraphInput *input = &graph->inputs[i];
    program->inputs.items[i] = tensor_create(arena, input->name, input->dtype, concrete(input->shape, batch));
    fill_tensor(&program->inputs.items[i], fill, &seed, false);
  }
}

static void make_absolute(const TensorList *list) {
  for (size_t i = 0; i < list->count; i++)
    for (int64_t j = 0; j < tensor_elements(&list->items[i]); j++)
      tensor_set(&list->items[i], j, fabs(tensor_get(&list->items[i], j)));
}

void test_make_absolute(TestProgram *program) {
  make_absolute(&program->parameters);
  make_absolute(&program->inputs);
}

bool test_program_eval(TestProgram *program, const Graph *graph, EvalResult *out_result) {
  if (graph_eval(graph, &program->inputs, &program->parameters, program->arena, program->diag, out_result)) return true;
  return fail(program, "the interpreter failed");
}

double test_excess(const Tensor *actual, const EvalTensor *expected, const EvalTensor *magnitude, double tolerance) {
  double worst = -INFINITY;
  for (int64_t i = 0; i < tensor_elements(actual); i++) {
    double value = tensor_get(actual, i), bound = tolerance * (magnitude != NULL ? magnitude->data[i] : 1);
    bool same = value == expected->data[i] || (isnan(value) && isnan(expected->data[i]));
    double excess = same ? -bound : fabs(value - expected->data[i]) - bound;
    if (isnan(excess)) excess = INFINITY;
    if (excess > worst) worst = excess;
  }
  return worst;
}

double test_relative_error(const Tensor *actual, const EvalTensor *expected) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < tensor_elements(actual); i++) {
    double error = tensor_get(actual, i) - expected->data[i];
    difference += error * error;
    norm += expected->data[i] * expected->data[i];
  }
  return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

/* --- running ----------------------------------------------------------------------------------------- */

/* Where operands live between steps. */
typedef struct Home {
  char *base[KILN_SPACE_OUTPUT + 1]; /* the spaces without an index */
  const TensorList *parameters, *inputs;
  TensorList outputs;
  const TestProgram *program;
  int64_t batch;
} Home;

/* Memory of one or several overlapping operands, and its guarded stand-in while a step runs. */
typedef struct Piece {
  char *home, *guarded;
  size_t size;
  bool written;
} Piece;

static char *operand_address(const Home *home, const kiln_operand *operand) {
  const kiln_program *program = home->program->program;
  char *base = NULL;
  const Tensor *tensor = NULL;
  switch (operand->space) {
    case KILN_SPACE_PARAMETER:
      tensor = tensor_find(home->parameters, program->parameters[operand->index].name);
      break;
    case KILN_SPACE_INPUT:
      tensor = tensor_find(home->inputs, program->inputs[operand->index].name);
      break;
    case KILN_SPACE_OUTPUT:
      tensor = &home->outputs.items[operand->index];
      break;
    default:
      base = home->base[operand->space];
  }
  if (tensor != NULL) base = tensor->data;
  return base == NULL ? NULL : base + operand->offset + home->batch * operand->offset_per_batch;
}

static size_t operand_bytes(const PlanTensor *tensor, int64_t batch) {
  if (!shape_batched(&tensor->shape)) return (size_t)tensor->storage.bytes;
  if (tensor->layout.kind == LAYOUT_BATCH_BLOCK) batch = round_up(batch, tensor->layout.block);
  return (size_t)(tensor->storage.bytes * batch - tensor->storage.delta); /* part of a larger value: up to its end */
}

/* What the step does not write must not look written. Of a part of a joined value only its own channels are poisoned. */
static void poison(const Home *home, const PlanKernel *kernel, char *output) {
  const PlanTensor *tensor = &kernel->output;
  const Graph *graph = home->program->graph;
  const Node *node = NULL;
  for (size_t i = 0; i < graph->node_count && !node; i++)
    if (graph->nodes[i]->id == kernel->node_id) node = graph->nodes[i];
  if (!node || !node->placed || node->alias->op != OP_CONCAT) {
    memset(output, 0xFF, operand_bytes(tensor, home->batch));
    return;
  }
  const int64_t block = tensor->layout.block > 1 ? tensor->layout.block : 1;
  const int64_t bytes = tensor->shape.dims[1] / block * tensor->storage.stride[1] * 4;
  for (int64_t n = 0; n < home->batch; n++) memset(output + n * tensor->storage.stride[0] * 4, 0xFF, (size_t)bytes);
}

/* Merges the range into the pieces it overlaps. */
static void pieces_add(Piece *pieces, size_t *count, char *home, size_t size, bool written) {
  Piece piece = {.home = home, .size = size, .written = written};
  for (size_t i = 0; i < *count;) {
    char *end = piece.home + piece.size, *other_end = pieces[i].home + pieces[i].size;
    if (pieces[i].home >= end || piece.home >= other_end) {
      i++;
      continue;
    }
    if (pieces[i].home < piece.home) piece.home = pieces[i].home;
    piece.size = (size_t)((other_end > end ? other_end : end) - piece.home);
    piece.written = piece.written || pieces[i].written;
    pieces[i] = pieces[--*count];
    i = 0;
  }
  pieces[(*count)++] = piece;
}

static char *piece_address(const Piece *pieces, size_t count, const char *home) {
  for (size_t i = 0; i < count; i++)
    if (home >= pieces[i].home && home < pieces[i].home + pieces[i].size)
      return pieces[i].guarded + (home - pieces[i].home);
  return NULL;
}

static void run_items(const kiln_step *step, const kiln_call *call, int32_t chunks) {
  int64_t items = step->items + call->batch * step->items_per_batch;
  for (int32_t chunk = chunks; chunk-- > 0;) {
    int64_t begin = items * chunk / chunks, end = items * (chunk + 1) / chunks;
    if (begin < end) step->kernel(call, (uint32_t)chunk, begin, end);
  }
}

/* With the pieces copied to memory of the device and back. */
static bool run_on_device(const TestDevice *device, size_t kernel, const kiln_call *call, uint32_t operand_count,
                          const Piece *pieces, size_t count) {
  Piece copies[KILN_MAX_OPERANDS];
  void *operands[KILN_MAX_OPERANDS];
  for (size_t i = 0; i < count; i++) {
    copies[i] = (Piece){.home = pieces[i].guarded, .size = pieces[i].size};
    copies[i].guarded = device->allocate(device->context, pieces[i].size);
    device->write(device->context, copies[i].guarded, pieces[i].guarded, pieces[i].size);
  }
  for (uint32_t i = 0; i < operand_count; i++) operands[i] = piece_address(copies, count, call->operands[i]);
  const kiln_call moved = {operands, call->batch, NULL, 0};
  bool done = device->launch(device->context, kernel, &moved);
  for (size_t i = 0; i < count; i++) {
    device->read(device->context, copies[i].home, copies[i].guarded, copies[i].size);
    device->release(device->context, copies[i].guarded);
  }
  return done;
}

/* The output, inputs and results of reductions of the output. */
static const PlanTensor *step_tensor(const PlanKernel *kernel, int32_t operand) {
  if (operand == 0) return &kernel->output;
  const int32_t reduction = operand - 1 - kernel->input_count;
  return reduction < 0 ? &kernel->inputs[operand - 1] : &kernel->reductions[reduction].output;
}

static bool run_step(Home *home, const kiln_step *step, const PlanKernel *kernel, int32_t chunks, bool at_end) {
  Piece pieces[KILN_MAX_OPERANDS];
  void *operands[KILN_MAX_OPERANDS];
  size_t count = 0;
  const uint32_t inputs = (uint32_t)kernel->input_count, planned = 1 + inputs + (uint32_t)kernel->reduction_count;
  if (step->operand_count != planned || step->operand_count > KILN_MAX_OPERANDS) {
    fprintf(stderr, "step '%s' has %u operands, the plan's kernel %u\n", step->name, step->operand_count, planned);
    return false;
  }
  for (uint32_t i = 0; i < step->operand_count; i++) {
    const PlanTensor *tensor = step_tensor(kernel, (int32_t)i);
    size_t size = operand_bytes(tensor, home->batch);
    operands[i] = operand_address(home, &step->operands[i]);
    if (operands[i] == NULL && size > 0) {
      fprintf(stderr, "step '%s': operand %u has no memory\n", step->name, i);
      return false;
    }
    if (size > 0) pieces_add(pieces, &count, operands[i], size, i == 0 || i > inputs);
  }
  const TestDevice *device = home->program->device;
  for (size_t i = 0; i < count; i++) {
    pieces[i].guarded = guarded_alloc(pieces[i].size, at_end);
    memcpy(pieces[i].guarded, pieces[i].home, pieces[i].size);
  }
  for (uint32_t i = 0; i < step->operand_count; i++) operands[i] = piece_address(pieces, count, operands[i]);
  bool in_place = false;
  size_t output_size = operand_bytes(&kernel->output, home->batch);
  for (uint32_t i = 1; i <= inputs; i++) {
    char *begin = operands[i], *output = operands[0];
    size_t size = operand_bytes(&kernel->inputs[i - 1], home->batch);
    in_place = in_place || (begin != NULL && begin < output + output_size && output < begin + size);
  }
  if (!in_place && output_size > 0) poison(home, kernel, operands[0]);
  for (uint32_t i = 1 + inputs; i < planned; i++)
    memset(operands[i], 0xFF, operand_bytes(step_tensor(kernel, (int32_t)i), home->batch));

  bool clean = true;
  int64_t stride = round_up(step->scratch_bytes, KILN_ALIGNMENT);
  char *scratch = stride > 0 ? guarded_alloc((size_t)(stride * chunks), at_end) : NULL;
  const kiln_call call = {operands, home->batch, scratch, stride};
  if (device != NULL)
    clean = run_on_device(device, (size_t)(kernel - home->program->plan->kernels), &call, step->operand_count, pieces,
                          count);
  else
    run_items(step, &call, chunks);
  guarded_free(scratch);

  for (size_t i = 0; i < count; i++) {
    if (pieces[i].written) {
      memcpy(pieces[i].home, pieces[i].guarded, pieces[i].size);
    } else if (memcmp(pieces[i].home, pieces[i].guarded, pieces[i].size) != 0) {
      fprintf(stderr, "step '%s' changed an input\n", step->name);
      clean = false;
    }
    guarded_free(pieces[i].guarded);
  }
  return clean;
}

/* The logical elements of a step's output, dense. */
static Tensor read_view(Arena *arena, const kiln_step *step, const char *address, int64_t batch) {
  const kiln_view *view = &step->view;
  Shape shape = {.rank = (int32_t)view->rank};
  for (uint32_t d = 0; d < view->rank; d++) shape.dims[d] = view->dims[d] == -1 ? batch : view->dims[d];
  static const DataType types[] = {DTYPE_F32, DTYPE_I64, DTYPE_BF16, DTYPE_F16};
  DataType dtype = types[view->dtype];
  size_t size = (size_t)data_type_bytes(dtype);
  Tensor tensor = tensor_create(arena, step->name, dtype, shape);
  int64_t count = tensor_elements(&tensor), index[SHAPE_MAX_RANK];
  for (int64_t i = 0; i < count; i++) {
    int64_t rest = i, offset = view->origin;
    for (int32_t d = shape.rank - 1; d >= 0; d--) {
      index[d] = rest % shape.dims[d];
      rest /= shape.dims[d];
    }
    for (int32_t d = 0; d < shape.rank; d++) {
      bool split = view->block > 1 && (uint32_t)d == view->block_dim;
      offset += (split ? index[d] / view->block : index[d]) * view->stride[d] + (split ? index[d] % view->block : 0);
    }
    memcpy((char *)tensor.data + (size_t)i * size, address + (size_t)offset * size, size);
  }
  return tensor;
}

static char *poisoned(Arena *arena, int64_t bytes) {
  char *memory = arena_alloc_aligned(arena, (size_t)bytes + KILN_ALIGNMENT, KILN_ALIGNMENT);
  memset(memory, 0xFF, (size_t)bytes + KILN_ALIGNMENT);
  return memory;
}

TensorList test_outputs_create(const kiln_program *program, int64_t batch, Arena *arena) {
  TensorList outputs = {arena_array(arena, program->output_count, Tensor), program->output_count};
  for (uint32_t i = 0; i < program->output_count; i++) {
    const kiln_port *port = &program->outputs[i];
    Shape shape = {.rank = (int32_t)port->rank};
    for (uint32_t d = 0; d < port->rank; d++) shape.dims[d] = port->dims[d] == -1 ? batch : port->dims[d];
    outputs.items[i] = tensor_create(arena, port->name, port->dtype == KILN_I64 ? DTYPE_I64 : DTYPE_F32, shape);
    memset(outputs.items[i].data, 0xFF, (size_t)tensor_bytes(&outputs.items[i]));
  }
  return outputs;
}

bool test_program_run(TestProgram *test, int64_t batch, int32_t chunks, bool at_end, TestRun *out_run) {
  const kiln_program *program = test->program;
  const Plan *plan = test->plan;
  Arena *arena = test->arena;
  if (program->prepare_step_count + program->run_step_count != plan->kernel_count ||
      program->prepare_step_count != plan->prepare_count)
    return fail(test, "the program's steps are not the plan's kernels");
  Home home = {.parameters = &test->parameters, .inputs = &test->inputs, .program = test, .batch = batch};
  home.base[KILN_SPACE_WORKSPACE] = poisoned(arena, program->workspace_fixed + batch * program->workspace_per_batch);
  home.base[KILN_SPACE_PREPARED] = poisoned(arena, program->prepared_bytes);
  home.base[KILN_SPACE_SCRATCH] = poisoned(arena, program->prepare_scratch);
  *out_run = (TestRun){.batch = batch};
  home.outputs = test_outputs_create(program, batch, arena);
  out_run->values = (TensorList){arena_array(arena, program->run_step_count, Tensor), program->run_step_count};
  for (uint32_t i = 0; i < program->prepare_step_count; i++)
    if (!run_step(&home, &program->prepare_steps[i], &plan->kernels[i], chunks, at_end)) return false;
  for (uint32_t i = 0; i < program->run_step_count; i++) {
    const kiln_step *step = &program->run_steps[i];
    if (!run_step(&home, step, &plan->kernels[plan->prepare_count + i], chunks, at_end)) return false;
    out_run->values.items[i] = read_view(arena, step, operand_address(&home, &step->operands[0]), batch);
  }
  out_run->outputs = home.outputs;
  return true;
}

/* --- as a library ------------------------------------------------------------------------------------ */

const kiln_program *test_program_link(TestProgram *program, const char *path) {
  CpuObjects objects;
  kiln_status status = KILN_OK;
  const kiln_program *library = NULL;
  if (cpu_compile(program->plan, NULL, program->arena, program->diag, &objects) &&
      link_objects(&program->target, objects.objects, objects.count, NULL, false, path, program->arena, program->diag))
    library = library_open(path, program->arena, program->diag, &status);
  if (library == NULL) fail(program, "no library");
  return library;
}

bool test_library_run(TestProgram *test, const kiln_program *program, int64_t batch, TensorList *out_outputs) {
  Arena *arena = test->arena;
  const void **parameters = arena_array(arena, program->parameter_count, const void *);
  for (uint32_t i = 0; i < program->parameter_count; i++)
    parameters[i] = tensor_find(&test->parameters, program->parameters[i].name)->data;
  void *prepared = poisoned(arena, program->prepared_bytes);
  void *temporary = poisoned(arena, program_prepare_bytes(program, 1));
  if (program->prepare(parameters, prepared, temporary, NULL) != KILN_OK)
    return fail(test, "the library does not prepare");

  *out_outputs = test_outputs_create(program, batch, arena);
  char *io = arena_alloc(arena, 1, sizeof(kiln_io) + (program->input_count + program->output_count) * sizeof(void *));
  const kiln_io head = {.batch = batch, .threads = 1};
  memcpy(io, &head, sizeof head);
  const void **ports = (const void **)(void *)(io + sizeof head);
  for (uint32_t i = 0; i < program->input_count; i++)
    ports[i] = tensor_find(&test->inputs, program->inputs[i].name)->data;
  for (uint32_t i = 0; i < program->output_count; i++) ports[program->input_count + i] = out_outputs->items[i].data;
  const kiln_weights weights = {.program = program, .prepared = prepared, .parameters = parameters};
  void *workspace = poisoned(arena, program_workspace_bytes(program, batch, 1));
  if (program->run(&weights, workspace, (const kiln_io *)(const void *)io) == KILN_OK) return true;
  return fail(test, "the library does not run");
}
