/* Runs that take some images at a time through all kernels: to the bit what walking the steps gives, for every batch,
 * number of threads and order of chunks, within the memory that was promised; and which programs may run so. */
#include "core/pool.h"
#include "core/runner.h"
#include "guarded.h"
#include "op_cases.h"
#include "random_graph.h"
#include "run_program.h"
#include "support.h"

/* --- a host ------------------------------------------------------------------------------------------- */

typedef enum Order { ORDER_REVERSED, ORDER_SINGLE, ORDER_POOL } Order;

/* Hands out items from the last one on, or all to the last thread, or to a pool's threads. */
typedef struct Host {
  Order order;
  uint32_t threads;
  Pool *pool;
  int calls;
  int64_t count; /* of the last call */
} Host;

static int host_parallel_for(void *context, kiln_task task, void *job, int64_t count) {
  Host *host = context;
  host->calls++;
  host->count = count;
  if (host->order == ORDER_POOL) return pool_parallel_for(host->pool, task, job, count);
  if (host->order == ORDER_SINGLE) task(job, host->threads - 1, 0, count);
  for (int64_t item = count; host->order == ORDER_REVERSED && item-- > 0;)
    task(job, (uint32_t)(item % host->threads), item, item + 1);
  return 0;
}

/* --- running ------------------------------------------------------------------------------------------ */

typedef struct Case {
  const char *label;
  const kiln_program *program;
  const TestProgram *test;
  kiln_weights weights;
} Case;

static void prepare_case(Case *item) {
  const kiln_program *program = item->program;
  Arena *arena = item->test->arena;
  const void **parameters = arena_array(arena, program->parameter_count, const void *);
  for (uint32_t i = 0; i < program->parameter_count; i++)
    parameters[i] = tensor_find(&item->test->parameters, program->parameters[i].name)->data;
  void *prepared = arena_alloc_aligned(arena, (size_t)program->prepared_bytes + 1, KILN_ALIGNMENT);
  void *scratch = arena_alloc_aligned(arena, (size_t)program_prepare_bytes(program, 1) + 1, KILN_ALIGNMENT);
  assert_int_equal(program->prepare(parameters, prepared, scratch, NULL), KILN_OK);
  item->weights = (kiln_weights){program, prepared, parameters};
}

typedef struct Ports {
  const void **inputs;
  void **outputs;
} Ports;

/* The first images of the inputs and empty outputs, each flush against an inaccessible page. */
static Ports open_ports(const Case *item, int64_t batch) {
  const kiln_program *program = item->program;
  Ports ports = {arena_array(item->test->arena, program->input_count, const void *),
                 arena_array(item->test->arena, program->output_count, void *)};
  for (uint32_t i = 0; i < program->input_count; i++) {
    const kiln_port *port = &program->inputs[i];
    const size_t bytes = (size_t)(port->bytes * (port->batched ? batch : 1));
    void *copy = guarded_alloc(bytes, true);
    memcpy(copy, tensor_find(&item->test->inputs, port->name)->data, bytes);
    ports.inputs[i] = copy;
  }
  for (uint32_t i = 0; i < program->output_count; i++)
    ports.outputs[i] =
        guarded_alloc((size_t)(program->outputs[i].bytes * (program->outputs[i].batched ? batch : 1)), true);
  return ports;
}

static void close_ports(const Case *item, const Ports *ports) {
  for (uint32_t i = 0; i < item->program->input_count; i++) {
    void *copy;
    memcpy(&copy, &ports->inputs[i], sizeof copy);
    guarded_free(copy);
  }
  for (uint32_t i = 0; i < item->program->output_count; i++) guarded_free(ports->outputs[i]);
}

/* NAME_run with a host of so many threads; without one when threads is 0. Returns the chunks that there were, 0: none.
 */
static int64_t run(const Case *item, int64_t batch, Host *host, const Ports *ports) {
  const kiln_program *program = item->program;
  const size_t pointers = program->input_count + program->output_count;
  char *io = arena_alloc(item->test->arena, 1, sizeof(kiln_io) + pointers * sizeof(void *));
  const uint32_t threads = host->threads > 0 ? host->threads : 1;
  const kiln_io head = {batch, host->threads > 0 ? host_parallel_for : NULL, host, threads, 0};
  memcpy(io, &head, sizeof head);
  memcpy(io + sizeof head, ports->inputs, program->input_count * sizeof(void *));
  memcpy(io + sizeof head + program->input_count * sizeof(void *), ports->outputs,
         program->output_count * sizeof(void *));
  void *workspace = guarded_alloc((size_t)program_workspace_bytes(program, batch, threads), true);
  host->calls = 0;
  const int status = program->run(&item->weights, workspace, (const kiln_io *)(const void *)io);
  guarded_free(workspace);
  if (status != KILN_OK) fail_msg("%s: status %d", item->label, status);
  return host->calls == 1 && program->run_step_count > 1 ? host->count : 0;
}

static void run_steps(const Case *item, int64_t batch, const Ports *ports) {
  const kiln_io head = {.batch = batch, .threads = 1};
  void *workspace = guarded_alloc((size_t)program_workspace_bytes(item->program, batch, 1), true);
  assert_int_equal(program_run_steps(&item->weights, workspace, &head, ports->inputs, ports->outputs, NULL, NULL),
                   KILN_OK);
  guarded_free(workspace);
}

static void compare(const Case *item, int64_t batch, const Host *host, const Ports *found, const Ports *expected) {
  for (uint32_t i = 0; i < item->program->output_count; i++) {
    const kiln_port *port = &item->program->outputs[i];
    if (memcmp(found->outputs[i], expected->outputs[i], (size_t)(port->bytes * (port->batched ? batch : 1))) != 0)
      fail_msg("%s, batch %d, %u threads, order %d: '%s' differs", item->label, (int)batch, host->threads,
               (int)host->order, port->name);
  }
}

/* All batches from 1 on and all hosts. Returns how many runs were in chunks. */
static int check_case(Case *item, int64_t most, int64_t step) {
  static const uint32_t threads[] = {0, 2, 3, 7};
  int chunked = 0;
  prepare_case(item);
  for (int64_t batch = 1; batch <= most; batch += batch < 4 ? 1 : step) {
    Ports expected = open_ports(item, batch);
    run_steps(item, batch, &expected);
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++)
      for (Order order = ORDER_REVERSED; order <= (threads[t] == 0 ? ORDER_REVERSED : ORDER_POOL); order++) {
        Host host = {.order = order, .threads = threads[t]};
        if (order == ORDER_POOL) host.pool = pool_create(host.threads, NULL);
        Ports found = open_ports(item, batch);
        chunked += run(item, batch, &host, &found) > 1;
        compare(item, batch, &host, &found, &expected);
        close_ports(item, &found);
        pool_destroy(host.pool);
      }
    close_ports(item, &expected);
  }
  return chunked;
}

/* --- examples ----------------------------------------------------------------------------------------- */

static void compile_example(Fixture *fixture, TestProgram *program, const char *name, int64_t most, bool blocked,
                            int64_t l2_bytes) {
  assert_true(test_program_parse(program, fixture->arena, fixture_example(fixture, name)));
  program->source->max_batch = most;
  program->source->batch_blocked = blocked;
  program->l2_bytes = l2_bytes;
  assert_true(test_program_compile(program, "native", NULL, PRECISION_DEFAULT));
  test_fill(program, FILL_FLOATS, most, 7);
}

static void examples_run_in_chunks(void **state) {
  static const char *const names[] = {"simple_net", "simple_cnn2", "simple_cnn10_bn", "broken_cnn"};
  enum { MOST = 71, STEP = 5 };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    for (int blocked = 0; blocked <= 1; blocked++) {
      void *own = NULL;
      assert_int_equal(fixture_setup(&own), 0);
      Fixture *fixture = own;
      TestProgram program;
      compile_example(fixture, &program, names[i], MOST, blocked, i == 0 ? 208 << 10 : 288 << 10);
      const kiln_program *made = program.program;
      assert_true(made->chunk > 0 && made->chunk < MOST && made->chunk % made->batch_unit == 0);
      assert_true(blocked ? made->batch_unit > 1 : made->batch_unit == 1);
      Case item = {.label = names[i], .program = made, .test = &program};
      const int chunked = check_case(&item, MOST, STEP);
      if (chunked < 20) fail_msg("%s: only %d runs were in chunks", names[i], chunked);
      assert_int_equal(fixture_teardown(&own), 0);
    }
  (void)state;
}

static void a_library_runs_in_chunks(void **state) {
  Fixture *fixture = *state;
  for (int blocked = 0; blocked <= 1; blocked++) {
    TestProgram program;
    compile_example(fixture, &program, "simple_cnn10_bn", 64, blocked, 288 << 10);
    const char *path = fixture_path(fixture, blocked ? "libblocked.so" : "libplain.so");
    Case item = {.label = path, .program = test_program_link(&program, path), .test = &program};
    assert_non_null(item.program);
    assert_true(check_case(&item, 64, 15) > 0);
  }
}

static void random_programs_run_in_chunks(void **state) {
  enum { GRAPHS = 24, MOST = 21 };
  int chunked = 0;
  for (uint64_t seed = 1; seed <= GRAPHS; seed++) {
    void *own = NULL;
    assert_int_equal(fixture_setup(&own), 0);
    Fixture *fixture = own;
    TensorList inputs;
    TestProgram program;
    Graph *graph = random_graph(seed, fixture->arena, &inputs);
    graph->max_batch = MOST;
    graph->batch_blocked = seed % 2 == 0;
    assert_true(test_program_init(&program, fixture->arena, graph));
    program.l2_bytes = 128 << 10;
    assert_true(test_program_compile(&program, seed % 3 == 0 ? "x86-64-v2" : "native", NULL, PRECISION_DEFAULT));
    test_fill(&program, FILL_FLOATS, MOST, seed);
    Case item = {arena_format(fixture->arena, "random graph %d", (int)seed), program.program, &program, {0}};
    chunked += check_case(&item, MOST, 6);
    assert_int_equal(fixture_teardown(&own), 0);
  }
  assert_true(chunked > 100);
  (void)state;
}

/* --- how a batch is divided ---------------------------------------------------------------------------- */

typedef struct Division {
  uint32_t threads;
  int64_t batch, chunks; /* 0: step by step */
} Division;

/* With a second-level cache for `chunk` images. */
static void check_divisions(Fixture *fixture, bool blocked, uint32_t chunk, const Division *list, size_t count) {
  TestProgram program;
  compile_example(fixture, &program, "broken_cnn", 71, blocked, 1 << 20);
  const int64_t image =
      program.program->workspace_per_batch + program.program->inputs[0].bytes + program.program->outputs[0].bytes;
  compile_example(fixture, &program, "broken_cnn", 71, blocked, 2 * (int64_t)chunk * image);
  assert_int_equal(program.program->chunk, chunk);
  Case item = {.label = "divisions", .program = program.program, .test = &program};
  prepare_case(&item);
  for (size_t i = 0; i < count; i++) {
    Host host = {.order = ORDER_REVERSED, .threads = list[i].threads};
    Ports ports = open_ports(&item, list[i].batch);
    const int64_t found = run(&item, list[i].batch, &host, &ports);
    if (found != list[i].chunks)
      fail_msg("batch %d, %u threads: %d chunks", (int)list[i].batch, list[i].threads, (int)found);
    close_ports(&item, &ports);
  }
}

/* As large as they may be, as many for each thread; not where a thread would have nothing to do for long. */
static void batches_are_divided_evenly(void **state) {
  static const Division single[] = {{2, 1, 0},   {2, 2, 2}, {2, 7, 0},   {2, 8, 2}, {2, 9, 0}, {2, 15, 4},
                                    {2, 64, 10}, {3, 9, 3}, {3, 64, 11}, {7, 7, 7}, {7, 8, 0}, {7, 64, 13}};
  static const Division sixteen[] = {{2, 16, 0}, {2, 17, 2}, {2, 32, 2}, {2, 48, 0},
                                     {2, 64, 4}, {3, 48, 3}, {3, 64, 0}, {7, 64, 0}};
  Fixture *fixture = *state;
  if (!test_isa_runnable("x86-64-v4")) skip();
  check_divisions(fixture, false, 7, single, sizeof single / sizeof *single);
  check_divisions(fixture, true, 16, sixteen, sizeof sixteen / sizeof *sixteen);
}

/* --- which programs may ------------------------------------------------------------------------------- */

static uint32_t chunk_of(Fixture *fixture, const char *text, const char *disabled) {
  TestProgram program;
  assert_true(test_program_parse(&program, fixture->arena, text));
  assert_true(test_program_compile(&program, "native", disabled, PRECISION_DEFAULT));
  return program.program->chunk;
}

static void programs_that_join_images_do_not(void **state) {
  Fixture *fixture = *state;
  static const char head[] = "graph \"g\" {\n  max_batch 32\n  input %x : f32[N,3,6,6]\n";
  static const char *const joining[] = {
      "%y = mean %x {dims=[0]} : f32[3,6,6]\n output y = %y\n",
      ("%s = sum %x {dims=[0,2,3]} : f32[3]\n"
       "%t = reshape %s {shape=[3,1,1]} : f32[3,1,1]\n %y = add %x, %t : f32[N,3,6,6]\n output y = %y\n"),
      "%y = relu %x : f32[N,3,6,6]\n output y = %y\n hook \"y\" activation stats\n value y = %y\n",
      "input %k : f32[3,1,1]\n %l = exp %k : f32[3,1,1]\n %y = mul %x, %l : f32[N,3,6,6]\n output y = %y\n",
      "input %k : f32[3,1,1]\n %l = exp %k : f32[3,1,1]\n %y = exp %x : f32[N,3,6,6]\n output y = %y\n output l = %l\n",
      "input %r : i64[2]\n %y = dropout %x, %r : f32[N,3,6,6]\n output y = %y\n"};
  for (size_t i = 0; i < sizeof joining / sizeof *joining; i++)
    if (chunk_of(fixture, arena_format(fixture->arena, "%s%s}\n", head, joining[i]), "simplify") != 0)
      fail_msg("joins images, and is not noticed: %s", joining[i]);
  const char *alone =
      "%s = softmax %x {dim=1} : f32[N,3,6,6]\n %y = softmax %s {dim=2} : f32[N,3,6,6]\n output y = %y\n";
  assert_int_not_equal(chunk_of(fixture, arena_format(fixture->arena, "%s%s}\n", head, alone), NULL), 0);
  assert_int_equal(chunk_of(fixture, arena_format(fixture->arena, "%s%s}\n", head, alone), "chunk"), 0);
  const char *single = "%y = exp %x : f32[N,3,6,6]\n output y = %y\n";
  assert_int_equal(chunk_of(fixture, arena_format(fixture->arena, "%s%s}\n", head, single), NULL), 0);
}

/* The operands of a line with only image number `image` of all that have a batch. */
static TensorList single_image(const TensorList *list, const Graph *graph, int64_t image, Arena *arena) {
  TensorList result = {arena_array(arena, list->count, Tensor), list->count};
  for (size_t i = 0; i < list->count; i++) {
    const Tensor *whole = &list->items[i];
    result.items[i] = *whole;
    for (size_t k = 0; k < graph->input_count; k++) {
      if (strcmp(graph->inputs[k].name, whole->name) != 0 || !shape_batched(&graph->inputs[k].shape)) continue;
      Shape shape = whole->shape;
      const size_t bytes = (size_t)(tensor_bytes(whole) / shape.dims[0]);
      shape.dims[0] = 1;
      result.items[i] = tensor_create(arena, whole->name, whole->dtype, shape);
      memcpy(result.items[i].data, (const char *)whole->data + (size_t)image * bytes, bytes);
    }
  }
  return result;
}

/* The interpreter agrees: what is said to be computed image by image is the same for an image alone. */
static void ops_join_images_as_declared(void **state) {
  enum { BATCH = 3 };
  Fixture *fixture = *state;
  int independent = 0, joining = 0;
  for (size_t i = 0; i < op_case_count(); i++) {
    Graph *graph = op_case_graph(op_case(i), BATCH, fixture->arena, fixture->diag);
    const Node *node = graph->outputs[0].node;
    TensorList inputs, parameters;
    EvalResult all, one;
    op_case_fill(graph, BATCH, OP_CASE_FLOATS, 3, fixture->arena, &inputs, &parameters);
    if (!shape_batched(&node->shape) || !graph_eval(graph, &inputs, &parameters, fixture->arena, fixture->diag, &all))
      continue;
    bool same = true;
    for (int64_t image = 0; image < BATCH; image++) {
      const TensorList alone = single_image(&inputs, graph, image, fixture->arena);
      assert_true(graph_eval(graph, &alone, &parameters, fixture->arena, fixture->diag, &one));
      const int64_t count = shape_elements_per_image(&node->shape);
      same = same && memcmp(one.values[node->id].data, all.values[node->id].data + image * count,
                            (size_t)count * sizeof(double)) == 0;
    }
    if (!same && !node_joins_images(node)) fail_msg("%s joins images", op_case_label(op_case(i), fixture->arena));
    independent += same;
    joining += node_joins_images(node);
  }
  assert_true(independent > 50 && joining > 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(examples_run_in_chunks),           fixture_test(a_library_runs_in_chunks),
      fixture_test(random_programs_run_in_chunks),    fixture_test(batches_are_divided_evenly),
      fixture_test(programs_that_join_images_do_not), fixture_test(ops_join_images_as_declared)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
