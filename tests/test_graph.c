/* Graphs: verifier, inference, changes, and graphs of 100,000 nodes on a small stack. */
#include <pthread.h>
#include <time.h>

#include "graph_text.h"

/* --- verifier -------------------------------------------------------------------------------------- */

static const char verified[] =
    "graph \"v\" {\n"
    "  max_batch 2\n"
    "  memory {workspace_per_batch=4096}\n"
    "  input %x : f32[N,16,2,2]\n"
    "  parameter %w : f32[16,16,1,1] {init=weight}\n"
    "  %c = conv2d %x, %w epilogue [add %x] : f32[N,16,2,2] nchw16c"
    " @workspace(stride=[64,64,32,16], bytes=256) layer 0\n"
    "  %r = relu %c\n"
    "  output r = %r\n"
    "  layer c : conv2d = %c\n"
    "}\n";

enum { X, W, C, R };

static void break_id(Graph *g) { g->nodes[R]->id = g->nodes[C]->id; }
static void break_id_range(Graph *g) { g->next_id = 3; }
static void break_order(Graph *g) {
  Node *node = g->nodes[R];
  g->nodes[R] = g->nodes[C];
  g->nodes[C] = node;
}
static void break_input(Graph *g) { g->nodes[R]->inputs[0] = NULL; }
static void break_membership(Graph *g) { g->nodes[R]->inputs[0] = node_clone(g, g->nodes[C]); }
static void break_arity(Graph *g) { g->nodes[R]->op_input_count = 0; }
static void break_op(Graph *g) { g->nodes[R]->op = OP_COUNT; }
static void break_stride(Graph *g) { g->nodes[C]->attrs.stride.values[1] = 0; }
static void break_wide_stride(Graph *g) { g->nodes[C]->attrs.stride.values[1] = 65536; }
static void break_dilation(Graph *g) { g->nodes[C]->attrs.dilation.values[0] = 0; }
static void break_groups(Graph *g) { g->nodes[C]->attrs.groups = 0; }
static void break_padding(Graph *g) { g->nodes[C]->attrs.padding.values[0] = INT64_C(1) << 55; }
static void break_dtype(Graph *g) { g->nodes[R]->dtype = DTYPE_I64; }
static void break_shape(Graph *g) { g->nodes[R]->shape.dims[3] = 3; }
static void break_batch(Graph *g) { g->nodes[R]->shape.dims[1] = DIM_BATCH; }
static void break_rank(Graph *g) { g->nodes[R]->shape.rank = 7; }
static void break_size(Graph *g) { g->max_batch = INT64_MAX / 8; }
static void break_max_batch(Graph *g) { g->max_batch = 0; }
static void break_port(Graph *g) { g->nodes[W]->port = 1; }
static void break_port_shape(Graph *g) { g->parameters[0].shape.dims[0] = 8; }
static void break_port_node(Graph *g) { g->inputs[0].node = NULL; }
static void break_name(Graph *g) { g->nodes[R]->name = "c"; }
static void break_output(Graph *g) { g->outputs[0].node = NULL; }
static void break_output_name(Graph *g) { graph_add_output(g, "r", g->nodes[C]); }
static void break_hook_outputs(Graph *g) { g->hook_output_count = 2; }
static void break_epilogue_op(Graph *g) { g->nodes[C]->epilogue[0].op = OP_CONCAT; }
static void break_epilogue_operand(Graph *g) { g->nodes[C]->epilogue[0].operand = 0; }
static void break_epilogue_shape(Graph *g) { node_add_epilogue(g, g->nodes[R], OP_ADD, NULL, g->nodes[W], false); }
static void break_epilogue_count(Graph *g) { g->nodes[C]->epilogue_count = 0; }
static void break_layout(Graph *g) { g->nodes[R]->layout = (Layout){LAYOUT_VECTOR_BLOCK, 16}; }
static void break_block(Graph *g) { g->nodes[C]->layout.block = 0; }
static void break_space(Graph *g) { g->nodes[C]->storage.offset = 4096; }
static void break_extent(Graph *g) { g->nodes[C]->storage.stride[2] = 48; }
static void break_origin(Graph *g) { g->nodes[C]->storage.origin = -1; }
static void break_index(Graph *g) { g->nodes[R]->storage = (Storage){.space = SPACE_OUTPUT, .index = 1}; }
static void break_halo(Graph *g) { g->nodes[C]->storage.halo[2] = -1; }
static void break_alias(Graph *g) { g->nodes[R]->alias = g->nodes[C]; }
static void break_alias_self(Graph *g) { g->nodes[R]->alias = g->nodes[R]; }
static void break_update(Graph *g) { graph_add_update(g, 0, g->nodes[R]); }
static void break_update_parameter(Graph *g) { graph_add_update(g, 3, g->nodes[R]); }
static void break_hosted(Graph *g) { g->nodes[R]->hosted = true; }
static void break_layer(Graph *g) { g->nodes[C]->layer = 1; }

typedef struct Rule {
  void (*damage)(Graph *graph);
  const char *message;
} Rule;

static const Rule rules[] = {
    {break_id, "rule 'id': places 2 and 3 of the array have the same id"},
    {break_id_range, "rule 'id': ids must be below next_id 3"},
    {break_order, "%3 'r' (relu): rule 'order': input 0 is %2, which stands at place 3, not before place 2"},
    {break_input, "%3 'r' (relu): rule 'input': input 0 is missing"},
    {break_membership, "rule 'input': input 0 is %4, which is not in the graph"},
    {break_arity, "rule 'arity': expected 1 to 1 inputs, found 0"},
    {break_op, "rule 'op': there is no operation"},
    {break_stride, "%2 'c' (conv2d): rule 'operation': stride width expects a value from 1 to 65535, found 0"},
    {break_wide_stride, "rule 'operation': stride width expects a value from 1 to 65535, found 65536"},
    {break_dilation, "rule 'operation': dilation height expects"},
    {break_groups, "rule 'operation': groups expects"},
    {break_padding, "rule 'operation': padding top expects"},
    {break_dtype, "rule 'dtype': the operation gives f32, but i64 is noted"},
    {break_shape, "rule 'shape': the operation gives [N,16,2,2], but [N,16,2,3] is noted"},
    {break_batch, "rule 'batch': dimension 1 is N, which may only be the first"},
    {break_rank, "rule 'shape': the rank must be from 0 to 6, found 7"},
    {break_size, "rule 'shape': the value is too large"},
    {break_max_batch, "rule 'batch': the maximum batch must be at least 1, found 0"},
    {break_port, "rule 'port': there are 1 ports, found index 1"},
    {break_port_shape, "rule 'port': port 0 has another type or shape"},
    {break_port_node, "rule 'port': port 0 belongs to another node"},
    {break_name, "%3 'c' (relu): rule 'name': %2 has the same name"},
    {break_output, "graph: rule 'output': output 0 'r' has no value in the graph"},
    {break_output_name, "graph: rule 'output': two outputs are named 'r'"},
    {break_hook_outputs, "graph: rule 'output': 2 of 1 outputs cannot be hooks"},
    {break_epilogue_op, "rule 'epilogue': epilogue step 0: concat is not an element-wise operation"},
    {break_epilogue_operand, "rule 'epilogue': epilogue step 0: the operand of add must be input 2 of 3, found 0"},
    {break_epilogue_shape, "rule 'epilogue': epilogue step 0: operand [16,16,1,1] of add does not broadcast"},
    {break_epilogue_count,
     "rule 'epilogue': the epilogue uses 0 operands, but the node has 1 inputs besides its own 2"},
    {break_layout, "rule 'layout': the layout is for 1 dimensions, found 4"},
    {break_block, "rule 'layout': the block size must be from 1 to 1024, found 0"},
    {break_space, "rule 'storage': 256 bytes at offset 4096 of the workspace are outside its 4096 bytes"},
    {break_extent, "rule 'storage': elements 0 to 79 lie outside the buffer of 256 bytes"},
    {break_origin, "rule 'storage': elements -1 to 62 lie outside the buffer of 256 bytes"},
    {break_index, "rule 'storage': there is no output 1"},
    {break_halo, "rule 'storage': the halo must not be negative, found -1"},
    {break_alias, "rule 'alias': the value shares the storage of %2, but lies elsewhere"},
    {break_alias_self, "rule 'alias': the value shares the storage of %3, which is itself"},
    {break_hosted, "%3 'r' (relu): rule 'hosted': no kernel can compute this operation besides its own"},
    {break_update, "%3 'r' (relu): rule 'update': 'w' is not updated by an operation that takes it first"},
    {break_update_parameter, "graph: rule 'update': there is no parameter 3"},
    {break_layer, "rule 'layer': the node belongs to layer 1 of 1"},
};

static void test_verifier(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
    clear_messages(fixture);
    Graph *graph = must_parse(fixture, verified);
    rules[i].damage(graph);
    if (graph_verify(graph, "fuse", fixture->diag)) fail_msg("not noticed: %s", rules[i].message);
    check_message_part(fixture, "after fuse: ");
    check_message_part(fixture, rules[i].message);
  }
}

/* --- inference ------------------------------------------------------------------------------------- */

/* A reader of the parameter, or of what may become a view of it, stands behind the update. */
static void test_late_reader(void **state) {
  Fixture *fixture = *state;
  static const char *const late[] = {"%state", "%flat", "%w"};
  for (size_t i = 0; i < sizeof late / sizeof *late; i++) {
    const char *text = arena_format(fixture->arena,
                                    "graph \"g\" {\n"
                                    "  input %%g : f32[2]\n"
                                    "  input %%stats : f32[2,2]\n"
                                    "  input %%x : f32[N,2]\n"
                                    "  parameter %%state : f32[2] {init=zero}\n"
                                    "  %%flat = reshape %%state {shape=[2,1]} : f32[2,1]\n"
                                    "  %%w = slice %%flat {dim=0} : f32[1,1]\n"
                                    "  %%new = bn_update %%state, %%stats, %%x {dim=0} : f32[2]\n"
                                    "  %%y = relu %s\n"
                                    "  output y = %%y\n"
                                    "  update state = %%new\n"
                                    "}\n",
                                    late[i]);
    Graph *graph = NULL;
    clear_messages(fixture);
    if (graph_parse("t.ir", text, strlen(text), fixture->arena, fixture->diag, &graph))
      fail_msg("a late reader of %s is not noticed", late[i]);
    check_message_part(fixture, "%7 'y' (relu): rule 'update': it reads 'state', which %6 has changed by then");
  }
}

static void test_infer_goes_on(void **state) {
  Fixture *fixture = *state;
  Graph *graph = graph_create(fixture->arena, "errors");
  Node *x = graph_add_input(graph, "x", DTYPE_F32, shape_of(2, (const int64_t[]){DIM_BATCH, 4}));
  Node *y = graph_add_input(graph, "y", DTYPE_F32, shape_of(2, (const int64_t[]){DIM_BATCH, 3}));
  Node *bad = graph_add(graph, OP_ADD, "bad", (Node *[]){x, y}, 2);
  Node *after = graph_add(graph, OP_MAX_POOL2D, "after", &bad, 1); /* wrong too, but only for want of a shape */
  graph_add(graph, OP_RELU, "after2", &after, 1);
  Node *bad2 = graph_add(graph, OP_ADD, NULL, (Node *[]){y, x}, 2);
  bad2->path = "layers[4] 'conv2'";
  bad2->location = (Location){"model.json", 41, 18};
  assert_false(graph_infer(graph, fixture->diag));
  check_messages(fixture,
                 "error: 'bad': shapes [N,4] and [N,3] do not broadcast\n"
                 "model.json:41:18: error: layers[4] 'conv2': shapes [N,3] and [N,4] do not broadcast\n");
}

static void test_input_shape(void **state) {
  Fixture *fixture = *state;
  Graph *graph = must_parse(fixture, "graph \"g\" {\n  input %image : f32[N,3,8,8]\n  %y = relu %image\n}\n");
  Shape shape = shape_of(4, (const int64_t[]){1, 3, 352, 352});
  assert_true(graph_set_input_shape(graph, "image", &shape, fixture->diag));
  assert_true(graph_infer(graph, fixture->diag));
  assert_true(graph_verify(graph, "test", fixture->diag));
  assert_int_equal(graph_find_value(graph, "y")->shape.dims[2], 352);
  assert_false(graph_set_input_shape(graph, "imag", &shape, fixture->diag));
  shape.dims[2] = 0;
  assert_false(graph_set_input_shape(graph, "image", &shape, fixture->diag));
  shape.rank = 3;
  assert_false(graph_set_input_shape(graph, "image", &shape, fixture->diag));
  check_messages(fixture,
                 "test.ir: error: the model has no input 'imag'; did you mean 'image'?\n"
                 "test.ir:2:9: error: input 'image': dimension 2 of the given shape must be at least 1, found 0\n"
                 "test.ir:2:9: error: input 'image' has 4 dimensions, the given shape has 3\n");
}

/* --- changes --------------------------------------------------------------------------------------- */

static void test_replace(void **state) {
  Fixture *fixture = *state;
  Graph *graph = must_parse(fixture,
                            "graph \"g\" {\n  input %x : f32[N,2]\n  %a = relu %x\n  %b = tanh %a\n  %c = add %a, %b\n"
                            "  output a = %a\n  output c = %c\n  layer a : relu = %a\n  value v = %a\n}\n");
  /* b takes the place of its own input and goes on reading it. */
  graph_replace(graph, graph_find_value(graph, "a"), graph->nodes[2]);
  assert_string_equal(graph_text(graph, fixture->arena),
                      "graph \"g\" {\n  input %x : f32[N,2]\n  %a = relu %x : f32[N,2]\n  %b = tanh %a : f32[N,2]\n"
                      "  %c = add %b, %b : f32[N,2]\n  output a = %b\n  output c = %c\n  layer a : relu = %b\n"
                      "  value v = %b\n}\n");
}

static void test_install_and_remove_dead(void **state) {
  Fixture *fixture = *state;
  Graph *graph =
      must_parse(fixture,
                 "graph \"g\" {\n  input %x : f32[N,2]\n  input %unused : f32[N,2]\n"
                 "  parameter %p : f32[2] {init=one}\n  %a = identity %x\n  %b = identity %a\n"
                 "  %c = identity %b\n  %d = add %c, %p\n  %e = relu %c\n  output e = %e\n  value v = %c\n}\n");
  Node **replacement = arena_array(fixture->arena, graph->next_id, Node *);
  for (uint32_t id = 3; id <= 5; id++) replacement[id] = graph->nodes[id]->inputs[0];
  graph_install(graph, graph->nodes, graph->node_count, replacement);
  graph_remove_dead(graph);
  assert_true(graph_verify(graph, "test", fixture->diag));
  assert_string_equal(graph_text(graph, fixture->arena),
                      "graph \"g\" {\n  parameter p : f32[2] {init=one}\n  input %x : f32[N,2]\n"
                      "  input %unused : f32[N,2]\n  %e@7 = relu %x : f32[N,2]\n  output e = %e\n  value v = %x\n}\n");
}

static void test_uses_and_prepared(void **state) {
  Fixture *fixture = *state;
  Graph *graph = must_parse(fixture,
                            "graph \"g\" {\n  input %x : f32[N,2]\n  parameter %p : f32[2] {init=one}\n  %a = exp %p\n"
                            "  %b = add %a, %p\n  %c = add %x, %b\n  output c = %c\n  output d = %c\n}\n");
  const uint32_t *uses = graph_count_uses(graph, fixture->arena);
  const bool *prepared = graph_mark_prepared(graph, fixture->arena);
  static const uint32_t expected_uses[] = {1, 2, 1, 1, 2};
  static const bool expected_prepared[] = {false, true, true, true, false};
  for (size_t i = 0; i < 5; i++) {
    assert_int_equal(uses[i], expected_uses[i]);
    assert_int_equal(prepared[i], expected_prepared[i]);
  }
}

/* Appending to a copy whose count is no power of two must not write over what lies behind. */
static void test_clone_grows(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = must_parse(fixture,
                                  "graph \"g\" {\n  input %x : f32[N,2]\n  parameter %p : f32[2] {init=one}\n"
                                  "  %y = add %x, %p\n  output a = %x\n  output b = %y\n  output c = %x\n}\n");
  Graph *clone = graph_clone(graph, fixture->arena);
  graph_add_output(clone, "d", clone->outputs[1].node);
  assert_true(graph_verify(clone, "clone", fixture->diag));
  assert_string_equal(graph_text(clone, fixture->arena),
                      "graph \"g\" {\n  input %x : f32[N,2]\n  parameter %p : f32[2] {init=one}\n"
                      "  %y = add %x, %p : f32[N,2]\n  output a = %x\n  output b = %y\n  output c = %x\n"
                      "  output d = %y\n}\n");
}

/* --- long graphs ----------------------------------------------------------------------------------- */

enum { CHAIN = 100000, SMALL_STACK = 256 * 1024 };

/* Seconds of processor time; sanitizers slow everything down several times. */
#ifndef __has_feature
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || __has_feature(address_sanitizer) || \
    __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
static const double chain_limit = 40;
#else
static const double chain_limit = 5;
#endif

typedef struct ChainResult {
  const char *failure;
  double seconds;
} ChainResult;

/* Processor time: a busy machine must not fail the test. */
static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void *run_chain(void *argument) {
  ChainResult *result = argument;
  const double begin = now();
  Arena *arena = arena_create(NULL);
  Diag *diag = diag_create(arena);
  Graph *graph = graph_create(arena, "chain"), *parsed = NULL;
  Node *node = graph_add_input(graph, "x", DTYPE_F32, shape_of(2, (const int64_t[]){DIM_BATCH, 4}));
  Node *const input = node;
  for (int i = 0; i < CHAIN; i++) {
    node = graph_add(graph, i % 2 ? OP_IDENTITY : OP_RELU, arena_format(arena, "v%d", i), &node, 1);
    graph_add(graph, OP_TANH, NULL, &node, 1);
  }
  graph_add_output(graph, "y", node);
  Text text, again;
  text_init(&text, arena);
  text_init(&again, arena);
  if (!graph_infer(graph, diag)) result->failure = "infer";
  if (!graph_verify(graph, "test", diag)) result->failure = "verify";
  graph_remove_dead(graph);
  if (graph->node_count != CHAIN + 1) result->failure = "remove_dead";
  graph_print(&text, graph);
  if (!graph_parse("chain.ir", text.data, text.size, arena, diag, &parsed)) {
    result->failure = "parse";
  } else {
    graph_print(&again, parsed);
    if (strcmp(text.data, again.data) != 0) result->failure = "round trip";
  }
  Graph *clone = graph_clone(graph, arena);
  if (!graph_verify(clone, "clone", diag)) result->failure = "clone";
  /* The longest chain of replacements there can be. */
  Node **replacement = arena_array(arena, clone->next_id, Node *);
  for (size_t i = 1; i < clone->node_count; i++) replacement[clone->nodes[i]->id] = clone->nodes[i]->inputs[0];
  graph_install(clone, clone->nodes, clone->node_count, replacement);
  graph_remove_dead(clone);
  if (clone->node_count != 1 || clone->outputs[0].node->id != input->id) result->failure = "install";
  arena_destroy(arena);
  result->seconds = now() - begin;
  return NULL;
}

static void test_long_chain(void **state) {
  (void)state;
  pthread_attr_t attributes;
  pthread_t thread;
  ChainResult result = {0};
  assert_int_equal(pthread_attr_init(&attributes), 0);
  assert_int_equal(pthread_attr_setstacksize(&attributes, SMALL_STACK), 0);
  assert_int_equal(pthread_create(&thread, &attributes, run_chain, &result), 0);
  assert_int_equal(pthread_join(thread, NULL), 0);
  pthread_attr_destroy(&attributes);
  if (result.failure) fail_msg("%s failed", result.failure);
  if (result.seconds > chain_limit) fail_msg("a chain of %d nodes took %.2f s", CHAIN, result.seconds);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_verifier),          fixture_test(test_late_reader), fixture_test(test_infer_goes_on),
      fixture_test(test_input_shape),       fixture_test(test_replace),     fixture_test(test_install_and_remove_dead),
      fixture_test(test_uses_and_prepared), fixture_test(test_clone_grows), fixture_test(test_long_chain),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
