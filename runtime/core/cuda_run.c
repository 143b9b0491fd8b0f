/* Contexts: workspaces, graphs, runs. */
#include "cuda_program.h"

#include <string.h>

enum { GRAPHS_KEPT = 8, EVENT_COUNT = 2 };

/* A recorded run: for one batch size and one set of addresses. */
typedef struct RecordedGraph {
  CuGraphExec exec; /* NULL: free */
  int64_t batch;
  uint64_t used;        /* when it was used last */
  CuPointer *addresses; /* inputs, then outputs */
} RecordedGraph;

struct CudaContext {
  CudaProgram *program;
  int64_t max_batch, bytes;
  CuStream stream;
  CuEvent events[EVENT_COUNT];
  CuPointer workspace, scratch;
  CuPointer *staging;   /* on the device, for inputs and outputs in memory of the host; made when first needed */
  CuPointer *addresses; /* of this run's inputs, then outputs */
  bool *staged;         /* whether they are the staging's */
  CuPointer *states;    /* parameters that run steps change: the caller's, or else copies of them */
  CuPointer *state_copies;
  void **state_hosts; /* of what is copied */
  bool warm; /* every kernel has run: drivers load code when it is first launched, which must not be while recording */
  RecordedGraph graphs[GRAPHS_KEPT];
  uint64_t clock;
  void *bounce; /* a step's output in memory of the host */
  size_t bounce_bytes;
};

/* --- contexts ---------------------------------------------------------------------------------------- */

static size_t port_total(const kiln_program *program) { return (size_t)program->input_count + program->output_count; }

static const kiln_port *port_at(const kiln_program *program, size_t index) {
  return index < program->input_count ? &program->inputs[index] : &program->outputs[index - program->input_count];
}

static size_t port_bytes(const kiln_port *port, int64_t batch) {
  return (size_t)(port->bytes * (port->batched ? batch : 1));
}

static kiln_status fill_context(CudaContext *context, CudaMessage *out_message) {
  const CudaProgram *program = context->program;
  const kiln_program *about = program->tables->program;
  const CudaDriver *driver = program->driver;
  CuResult result = driver->stream_create(&context->stream, CU_STREAM_NON_BLOCKING);
  for (int i = 0; i < EVENT_COUNT && result == CU_SUCCESS; i++) result = driver->event_create(&context->events[i], 0);
  if (result != CU_SUCCESS) return cuda_message(driver, result, out_message, "a stream cannot be made");
  const int64_t workspace = about->workspace_fixed + context->max_batch * about->workspace_per_batch;
  kiln_status status = cuda_device_allocate(program, &context->workspace, workspace, "the workspace", out_message);
  if (status == KILN_OK) status = cuda_create_scratch(program, context->stream, &context->scratch, out_message);
  context->bytes = workspace + program->tables->scratch_bytes;
  return status;
}

kiln_status cuda_context_create(CudaProgram *program, int64_t max_batch, CudaContext **out_context,
                                CudaMessage *out_message) {
  const kiln_program *about = program->tables->program;
  const Allocator *memory = &program->allocator;
  if (!program->ready) return cuda_fail(out_message, KILN_ERROR_WEIGHTS, "the program has no weights yet");
  CudaContext *context = cuda_host_allocate(memory, sizeof *context);
  if (context == NULL) return cuda_out_of_memory(out_message);
  context->program = program;
  context->max_batch = max_batch;
  const size_t ports = port_total(about);
  context->staging = cuda_host_allocate(memory, ports * sizeof *context->staging);
  context->addresses = cuda_host_allocate(memory, ports * sizeof *context->addresses);
  context->staged = cuda_host_allocate(memory, ports * sizeof *context->staged);
  context->states = cuda_host_allocate(memory, about->parameter_count * sizeof *context->states);
  context->state_copies = cuda_host_allocate(memory, about->parameter_count * sizeof *context->state_copies);
  context->state_hosts = cuda_host_allocate(memory, about->parameter_count * sizeof *context->state_hosts);
  bool complete = context->staging != NULL && context->addresses != NULL && context->staged != NULL &&
                  context->states != NULL && context->state_copies != NULL && context->state_hosts != NULL;
  for (size_t i = 0; i < GRAPHS_KEPT; i++) {
    context->graphs[i].addresses = cuda_host_allocate(memory, ports * sizeof(CuPointer));
    complete = complete && context->graphs[i].addresses != NULL;
  }
  kiln_status status = complete ? cuda_enter(program, out_message) : cuda_out_of_memory(out_message);
  if (status == KILN_OK) {
    status = fill_context(context, out_message);
    cuda_leave(program);
  }
  if (status != KILN_OK) {
    cuda_context_destroy(context);
    return status;
  }
  *out_context = context;
  return KILN_OK;
}

static void forget_graphs(CudaContext *context) {
  for (size_t i = 0; i < GRAPHS_KEPT; i++) {
    RecordedGraph *graph = &context->graphs[i];
    if (graph->exec != NULL) context->program->driver->graph_exec_destroy(graph->exec);
    graph->exec = NULL;
    graph->used = 0;
  }
}

static void empty_context(CudaContext *context) {
  const CudaProgram *program = context->program;
  const kiln_program *about = program->tables->program;
  const CudaDriver *driver = program->driver;
  if (context->stream != NULL) driver->stream_synchronize(context->stream);
  forget_graphs(context);
  for (size_t i = 0; context->staging != NULL && i < port_total(about); i++)
    cuda_device_release(program, &context->staging[i]);
  for (size_t i = 0; context->state_copies != NULL && i < about->parameter_count; i++)
    cuda_device_release(program, &context->state_copies[i]);
  cuda_device_release(program, &context->workspace);
  cuda_device_release(program, &context->scratch);
  for (int i = 0; i < EVENT_COUNT; i++)
    if (context->events[i] != NULL) driver->event_destroy(context->events[i]);
  if (context->stream != NULL) driver->stream_destroy(context->stream);
}

void cuda_context_destroy(CudaContext *context) {
  if (context == NULL) return;
  const CudaProgram *program = context->program;
  const kiln_program *about = program->tables->program;
  const Allocator *memory = &program->allocator;
  const size_t ports = port_total(about);
  if (cuda_enter(program, NULL) == KILN_OK) {
    empty_context(context);
    cuda_leave(program);
  }
  for (size_t i = 0; i < GRAPHS_KEPT; i++)
    cuda_host_release(memory, context->graphs[i].addresses, ports * sizeof(CuPointer));
  cuda_host_release(memory, context->staging, ports * sizeof *context->staging);
  cuda_host_release(memory, context->addresses, ports * sizeof *context->addresses);
  cuda_host_release(memory, context->staged, ports * sizeof *context->staged);
  cuda_host_release(memory, context->states, about->parameter_count * sizeof *context->states);
  cuda_host_release(memory, context->state_copies, about->parameter_count * sizeof *context->state_copies);
  cuda_host_release(memory, context->state_hosts, about->parameter_count * sizeof *context->state_hosts);
  cuda_host_release(memory, context->bounce, context->bounce_bytes);
  cuda_host_release(memory, context, sizeof *context);
}

int64_t cuda_context_bytes(const CudaContext *context) { return context->bytes; }

/* --- inputs and outputs ------------------------------------------------------------------------------ */

static bool on_device(const CudaDriver *driver, const void *pointer) {
  unsigned type = 0;
  CuResult result = driver->pointer_attribute(&type, CU_POINTER_MEMORY_TYPE, (CuPointer)(uintptr_t)pointer);
  return result == CU_SUCCESS && type == CU_MEMORY_DEVICE;
}

/* Decides for every port whether its memory is used in place. */
static kiln_status place_ports(CudaContext *context, const void *const *inputs, void *const *outputs,
                               CudaMessage *out_message) {
  const CudaProgram *program = context->program;
  const kiln_program *about = program->tables->program;
  for (size_t i = 0; i < port_total(about); i++) {
    const void *given = i < about->input_count ? inputs[i] : outputs[i - about->input_count];
    context->staged[i] = (uintptr_t)given % KILN_ALIGNMENT != 0 || !on_device(program->driver, given);
    context->addresses[i] = (CuPointer)(uintptr_t)given;
    if (!context->staged[i]) continue;
    if (context->staging[i] == 0) {
      const kiln_port *port = port_at(about, i);
      const int64_t bytes = (int64_t)port_bytes(port, context->max_batch);
      kiln_status status = cuda_device_allocate(program, &context->staging[i], bytes, port->name, out_message);
      if (status != KILN_OK) return status;
      context->bytes += bytes;
    }
    context->addresses[i] = context->staging[i];
  }
  return KILN_OK;
}

static kiln_status copy_inputs(CudaContext *context, int64_t batch, const void *const *inputs,
                               CudaMessage *out_message) {
  const CudaProgram *program = context->program;
  const kiln_program *about = program->tables->program;
  const CudaDriver *driver = program->driver;
  for (size_t i = 0; i < about->input_count; i++) {
    const size_t bytes = port_bytes(&about->inputs[i], batch);
    if (!context->staged[i] || bytes == 0) continue;
    CuResult result =
        on_device(driver, inputs[i])
            ? driver->copy_on_device(context->addresses[i], (CuPointer)(uintptr_t)inputs[i], bytes, context->stream)
            : driver->copy_to_device(context->addresses[i], inputs[i], bytes, context->stream);
    if (result != CU_SUCCESS)
      return cuda_message(driver, result, out_message, "copying input '%s' to the device", about->inputs[i].name);
  }
  return KILN_OK;
}

static kiln_status copy_output(const CudaContext *context, uint32_t index, int64_t batch, void *output,
                               CudaMessage *out_message) {
  const CudaProgram *program = context->program;
  const kiln_program *about = program->tables->program;
  const CudaDriver *driver = program->driver;
  const size_t place = about->input_count + index, bytes = port_bytes(&about->outputs[index], batch);
  if (!context->staged[place] || bytes == 0) return KILN_OK;
  CuResult result =
      on_device(driver, output)
          ? driver->copy_on_device((CuPointer)(uintptr_t)output, context->addresses[place], bytes, context->stream)
          : driver->copy_to_host(output, context->addresses[place], bytes, context->stream);
  if (result == CU_SUCCESS) return KILN_OK;
  return cuda_message(driver, result, out_message, "copying output '%s' from the device", about->outputs[index].name);
}

static Bases run_bases(const CudaContext *context) {
  const CudaProgram *program = context->program;
  return (Bases){.workspace = context->workspace,
                 .prepared = program->prepared,
                 .parameters = program->parameters,
                 .states = context->states,
                 .inputs = context->addresses,
                 .outputs = context->addresses + program->tables->program->input_count,
                 .scratch = context->scratch};
}

/* --- graphs ------------------------------------------------------------------------------------------ */

static kiln_status launch_all(const CudaContext *context, int64_t batch, CudaMessage *out_message) {
  const CudaProgram *program = context->program;
  const kiln_program *about = program->tables->program;
  const Bases bases = run_bases(context);
  kiln_status status = KILN_OK;
  for (size_t s = about->prepare_step_count; s < cuda_step_total(about) && status == KILN_OK; s++)
    status = cuda_launch_step(program, s, &bases, batch, context->stream, out_message);
  return status;
}

static kiln_status record_graph(CudaContext *context, int64_t batch, RecordedGraph *recorded,
                                CudaMessage *out_message) {
  const CudaDriver *driver = context->program->driver;
  CuGraph graph = NULL;
  CuResult result = driver->capture_begin(context->stream, CU_CAPTURE_THREAD_LOCAL);
  if (result != CU_SUCCESS) return cuda_message(driver, result, out_message, "a CUDA graph cannot be recorded");
  kiln_status status = launch_all(context, batch, out_message);
  result = driver->capture_end(context->stream, &graph);
  if (status == KILN_OK && result != CU_SUCCESS)
    status = cuda_message(driver, result, out_message, "a CUDA graph cannot be recorded");
  if (status == KILN_OK) {
    result = driver->graph_instantiate(&recorded->exec, graph, 0);
    if (result != CU_SUCCESS) {
      recorded->exec = NULL;
      status = cuda_message(driver, result, out_message, "the CUDA graph of batch %lld", (long long)batch);
    }
  }
  if (graph != NULL) driver->graph_destroy(graph);
  return status;
}

/* The graph of this batch and the ports' addresses; the one that was used longest ago makes room for a new one. */
static kiln_status find_graph(CudaContext *context, int64_t batch, CuGraphExec *out_exec, CudaMessage *out_message) {
  const CudaProgram *program = context->program;
  const size_t bytes = port_total(program->tables->program) * sizeof(CuPointer);
  RecordedGraph *place = &context->graphs[0];
  for (size_t i = 0; i < GRAPHS_KEPT; i++) {
    RecordedGraph *graph = &context->graphs[i];
    if (graph->exec != NULL && graph->batch == batch && memcmp(graph->addresses, context->addresses, bytes) == 0) {
      graph->used = ++context->clock;
      *out_exec = graph->exec;
      return KILN_OK;
    }
    if (graph->used < place->used) place = graph;
  }
  if (place->exec != NULL) program->driver->graph_exec_destroy(place->exec);
  place->exec = NULL;
  kiln_status status = record_graph(context, batch, place, out_message);
  if (status != KILN_OK) return status;
  place->batch = batch;
  place->used = ++context->clock;
  memcpy(place->addresses, context->addresses, bytes);
  *out_exec = place->exec;
  return KILN_OK;
}

/* The first run of a context goes without a graph. */
static kiln_status launch_warm(CudaContext *context, int64_t batch, bool *out_done, CudaMessage *out_message) {
  *out_done = !context->warm;
  if (context->warm) return KILN_OK;
  context->warm = true;
  return launch_all(context, batch, out_message);
}

static kiln_status launch_graph(CudaContext *context, CuGraphExec exec, CudaMessage *out_message) {
  CuResult result = context->program->driver->graph_launch(exec, context->stream);
  return result == CU_SUCCESS ? KILN_OK
                              : cuda_message(context->program->driver, result, out_message, "running the program");
}

static kiln_status run_within(CudaContext *context, int64_t batch, const void *const *inputs, void *const *outputs,
                              CudaMessage *out_message) {
  const kiln_program *about = context->program->tables->program;
  CuGraphExec exec;
  bool done = false;
  kiln_status status = place_ports(context, inputs, outputs, out_message);
  if (status == KILN_OK) status = copy_inputs(context, batch, inputs, out_message);
  if (status == KILN_OK) status = launch_warm(context, batch, &done, out_message);
  if (status == KILN_OK && !done) status = find_graph(context, batch, &exec, out_message);
  if (status == KILN_OK && !done) status = launch_graph(context, exec, out_message);
  for (uint32_t i = 0; i < about->output_count && status == KILN_OK; i++)
    status = copy_output(context, i, batch, outputs[i], out_message);
  /* also after a failure: nothing of the caller's may be in use when this returns */
  kiln_status finished = cuda_synchronize(context->program, context->stream, "the program failed on the GPU",
                                          status == KILN_OK ? out_message : NULL);
  return status == KILN_OK ? finished : status;
}

static kiln_status check_batch(const CudaContext *context, int64_t batch, CudaMessage *out_message) {
  if (batch >= 1 && batch <= context->max_batch) return KILN_OK;
  return cuda_fail(out_message, KILN_ERROR_BATCH, "the batch is larger than the context's, or less than 1");
}

kiln_status cuda_context_run(CudaContext *context, int64_t batch, const void *const *inputs, void *const *outputs,
                             CudaMessage *out_message) {
  kiln_status status = check_batch(context, batch, out_message);
  if (status == KILN_OK) status = cuda_enter(context->program, out_message);
  if (status != KILN_OK) return status;
  status = run_within(context, batch, inputs, outputs, out_message);
  cuda_leave(context->program);
  return status;
}

/* --- step by step ------------------------------------------------------------------------------------ */

static int64_t element_bytes(uint32_t dtype) { return dtype == KILN_I64 ? 8 : dtype == KILN_F32 ? 4 : 2; }

/* Bytes from a step's operand 0 to the end of the last element that its view reaches; 0 when it has none. */
static int64_t view_bytes(const kiln_view *view, int64_t batch) {
  int64_t last = view->origin;
  for (uint32_t d = 0; d < view->rank; d++) {
    const int64_t extent = view->dims[d] < 0 ? batch : view->dims[d];
    if (extent <= 0) return 0;
    const bool split = view->block > 1 && d == view->block_dim;
    last += split ? (extent - 1) / view->block * view->stride[d] : (extent - 1) * view->stride[d];
  }
  return (last + (view->block > 1 ? view->block : 1)) * element_bytes(view->dtype);
}

static kiln_status grow_bounce(CudaContext *context, size_t bytes, CudaMessage *out_message) {
  const Allocator *memory = &context->program->allocator;
  if (bytes <= context->bounce_bytes) return KILN_OK;
  cuda_host_release(memory, context->bounce, context->bounce_bytes);
  context->bounce_bytes = 0;
  context->bounce = cuda_host_allocate(memory, bytes);
  if (context->bounce == NULL) return cuda_out_of_memory(out_message);
  context->bounce_bytes = bytes;
  return KILN_OK;
}

/* The step's value in `bounce`, and in the caller's memory when it is an output. */
static kiln_status fetch_value(CudaContext *context, const kiln_step *step, const Bases *bases, int64_t batch,
                               void *const *outputs, CudaMessage *out_message) {
  const CudaDriver *driver = context->program->driver;
  const kiln_operand *operand = &step->operands[0];
  const int64_t bytes = view_bytes(&step->view, batch);
  kiln_status status = grow_bounce(context, (size_t)bytes, out_message);
  if (status != KILN_OK) return status;
  if (bytes > 0) {
    CuResult result = driver->copy_to_host(context->bounce, cuda_operand_address(operand, bases, batch), (size_t)bytes,
                                           context->stream);
    if (result != CU_SUCCESS)
      return cuda_message(driver, result, out_message, "copying '%s' from the device", step->name);
  }
  if (operand->space == KILN_SPACE_OUTPUT)
    status = copy_output(context, operand->index, batch, outputs[operand->index], out_message);
  return status;
}

static kiln_status run_step(CudaContext *context, size_t index, int64_t batch, void *const *outputs,
                            float *out_milliseconds, CudaMessage *out_message) {
  const CudaProgram *program = context->program;
  const CudaDriver *driver = program->driver;
  const kiln_step *step = cuda_step_at(program->tables->program, index);
  const Bases bases = run_bases(context);
  CuResult result = driver->event_record(context->events[0], context->stream);
  kiln_status status = KILN_OK;
  if (result == CU_SUCCESS) status = cuda_launch_step(program, index, &bases, batch, context->stream, out_message);
  if (status != KILN_OK) return status;
  if (result == CU_SUCCESS) result = driver->event_record(context->events[1], context->stream);
  if (result != CU_SUCCESS) return cuda_message(driver, result, out_message, "timing '%s'", step->name);
  status = fetch_value(context, step, &bases, batch, outputs, out_message);
  if (status != KILN_OK) return status;
  status = cuda_synchronize(program, context->stream, step->name, out_message);
  if (status != KILN_OK) return status;
  result = driver->event_elapsed(out_milliseconds, context->events[0], context->events[1]);
  return result == CU_SUCCESS ? KILN_OK : cuda_message(driver, result, out_message, "timing '%s'", step->name);
}

static kiln_status run_steps_within(CudaContext *context, int64_t batch, const void *const *inputs,
                                    void *const *outputs, StepObserver observe, void *observer_context,
                                    CudaMessage *out_message) {
  const kiln_program *about = context->program->tables->program;
  kiln_status status = place_ports(context, inputs, outputs, out_message);
  if (status == KILN_OK) status = copy_inputs(context, batch, inputs, out_message);
  for (uint32_t s = 0; s < about->run_step_count && status == KILN_OK; s++) {
    float milliseconds = 0;
    status = run_step(context, about->prepare_step_count + s, batch, outputs, &milliseconds, out_message);
    if (status != KILN_OK || observe == NULL) continue;
    if (observe(observer_context, s, context->bounce, (int64_t)(1e6 * (double)milliseconds)) != 0)
      status = cuda_fail(out_message, KILN_ERROR_CALLBACK, "the observer stopped the run");
  }
  context->program->driver->stream_synchronize(context->stream);
  return status;
}

kiln_status cuda_context_run_steps(CudaContext *context, int64_t batch, const void *const *inputs, void *const *outputs,
                                   StepObserver observe, void *observer_context, CudaMessage *out_message) {
  kiln_status status = check_batch(context, batch, out_message);
  if (status == KILN_OK) status = cuda_enter(context->program, out_message);
  if (status != KILN_OK) return status;
  status = run_steps_within(context, batch, inputs, outputs, observe, observer_context, out_message);
  cuda_leave(context->program);
  return status;
}

/* --- timing ------------------------------------------------------------------------------------------ */

static kiln_status time_graph(CudaContext *context, CuGraphExec exec, CuEvent *events, uint32_t repeats,
                              float *out_times, CudaMessage *out_message) {
  const CudaDriver *driver = context->program->driver;
  CuResult result = CU_SUCCESS;
  for (uint32_t i = 0; i <= repeats && result == CU_SUCCESS; i++) result = driver->event_create(&events[i], 0);
  if (result == CU_SUCCESS) result = driver->event_record(events[0], context->stream);
  for (uint32_t i = 0; i < repeats && result == CU_SUCCESS; i++) {
    result = driver->graph_launch(exec, context->stream);
    if (result == CU_SUCCESS) result = driver->event_record(events[i + 1], context->stream);
  }
  CuResult finished = driver->stream_synchronize(context->stream);
  if (result == CU_SUCCESS) result = finished;
  for (uint32_t i = 0; i < repeats && result == CU_SUCCESS; i++)
    result = driver->event_elapsed(&out_times[i], events[i], events[i + 1]);
  for (uint32_t i = 0; i <= repeats; i++)
    if (events[i] != NULL) driver->event_destroy(events[i]);
  return result == CU_SUCCESS ? KILN_OK : cuda_message(driver, result, out_message, "timing the program");
}

kiln_status cuda_context_time(CudaContext *context, int64_t batch, const void *const *inputs, void *const *outputs,
                              uint32_t repeats, float *out_times, CudaMessage *out_message) {
  const Allocator *memory = &context->program->allocator;
  CuGraphExec exec;
  bool done;
  kiln_status status = check_batch(context, batch, out_message);
  if (status == KILN_OK) status = cuda_enter(context->program, out_message);
  if (status != KILN_OK) return status;
  const size_t bytes = ((size_t)repeats + 1) * sizeof(CuEvent);
  CuEvent *events = cuda_host_allocate(memory, bytes);
  if (events == NULL) status = cuda_out_of_memory(out_message);
  if (status == KILN_OK) status = place_ports(context, inputs, outputs, out_message);
  if (status == KILN_OK) status = copy_inputs(context, batch, inputs, out_message);
  if (status == KILN_OK) status = launch_warm(context, batch, &done, out_message);
  if (status == KILN_OK) status = find_graph(context, batch, &exec, out_message);
  if (status == KILN_OK) status = time_graph(context, exec, events, repeats, out_times, out_message);
  cuda_host_release(memory, events, bytes);
  cuda_leave(context->program);
  return status;
}

static kiln_status time_step(CudaContext *context, size_t index, int64_t batch, uint32_t repeats, float *out_time,
                             CudaMessage *out_message) {
  const CudaDriver *driver = context->program->driver;
  const Bases bases = run_bases(context);
  const char *name = cuda_step_at(context->program->tables->program, index)->name;
  kiln_status status = cuda_launch_step(context->program, index, &bases, batch, context->stream, out_message);
  if (status != KILN_OK) return status;
  CuResult result = driver->event_record(context->events[0], context->stream);
  for (uint32_t i = 0; i < repeats && result == CU_SUCCESS && status == KILN_OK; i++)
    status = cuda_launch_step(context->program, index, &bases, batch, context->stream, out_message);
  if (status != KILN_OK) return status;
  if (result == CU_SUCCESS) result = driver->event_record(context->events[1], context->stream);
  if (result == CU_SUCCESS) result = driver->stream_synchronize(context->stream);
  if (result == CU_SUCCESS) result = driver->event_elapsed(out_time, context->events[0], context->events[1]);
  if (result != CU_SUCCESS) return cuda_message(driver, result, out_message, "timing '%s'", name);
  *out_time /= (float)repeats;
  return KILN_OK;
}

kiln_status cuda_context_time_steps(CudaContext *context, int64_t batch, const void *const *inputs,
                                    void *const *outputs, uint32_t repeats, float *out_times,
                                    CudaMessage *out_message) {
  const kiln_program *about = context->program->tables->program;
  kiln_status status = check_batch(context, batch, out_message);
  if (status == KILN_OK) status = cuda_enter(context->program, out_message);
  if (status != KILN_OK) return status;
  status = place_ports(context, inputs, outputs, out_message);
  if (status == KILN_OK) status = copy_inputs(context, batch, inputs, out_message);
  for (uint32_t s = 0; s < about->run_step_count && status == KILN_OK; s++)
    status = time_step(context, about->prepare_step_count + s, batch, repeats, &out_times[s], out_message);
  context->program->driver->stream_synchronize(context->stream);
  cuda_leave(context->program);
  return status;
}

/* --- state ------------------------------------------------------------------------------------------- */

/* Where each state is during a run. Graphs hold the addresses of the last ones. */
static kiln_status place_states(CudaContext *context, void *const *states, CudaMessage *out_message) {
  const CudaProgram *program = context->program;
  const kiln_program *about = program->tables->program;
  bool moved = false;
  for (uint32_t i = 0; i < about->parameter_count; i++) {
    const kiln_port *port = &about->parameters[i];
    const bool given = states[i] != NULL && port->bytes > 0;
    const bool in_place = given && (uintptr_t)states[i] % KILN_ALIGNMENT == 0 && on_device(program->driver, states[i]);
    CuPointer place = in_place ? (CuPointer)(uintptr_t)states[i] : 0;
    context->state_hosts[i] = given && !in_place ? states[i] : NULL;
    if (context->state_hosts[i] != NULL) {
      kiln_status status =
          cuda_upload(program, &context->state_copies[i], port, states[i], context->stream, out_message);
      if (status != KILN_OK) return status;
      place = context->state_copies[i];
    }
    moved = moved || place != context->states[i];
    context->states[i] = place;
  }
  if (moved) forget_graphs(context);
  return cuda_synchronize(program, context->stream, "copying the state", out_message);
}

static kiln_status fetch_states(const CudaContext *context, CudaMessage *out_message) {
  const CudaProgram *program = context->program;
  const kiln_program *about = program->tables->program;
  for (uint32_t i = 0; i < about->parameter_count; i++) {
    const kiln_port *port = &about->parameters[i];
    if (context->state_hosts[i] == NULL) continue;
    CuResult result = program->driver->copy_to_host(context->state_hosts[i], context->states[i], (size_t)port->bytes,
                                                    context->stream);
    if (result != CU_SUCCESS)
      return cuda_message(program->driver, result, out_message, "copying '%s' from the device", port->name);
  }
  return cuda_synchronize(program, context->stream, "copying the state", out_message);
}

kiln_status cuda_context_set_state(CudaContext *context, void *const *states, CudaMessage *out_message) {
  kiln_status status = cuda_enter(context->program, out_message);
  if (status != KILN_OK) return status;
  status = place_states(context, states, out_message);
  cuda_leave(context->program);
  return status;
}

kiln_status cuda_context_fetch_state(CudaContext *context, CudaMessage *out_message) {
  kiln_status status = cuda_enter(context->program, out_message);
  if (status != KILN_OK) return status;
  status = fetch_states(context, out_message);
  cuda_leave(context->program);
  return status;
}
