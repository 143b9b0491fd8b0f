/* The text form: graphs printed and parsed, attributes and names, drawings, plans. */
#include "base/file.h"
#include "graph_text.h"
#include "plan.h"

/* --- text form ------------------------------------------------------------------------------------- */

/* Graphs in canonical form: printing gives these very bytes. */
static const char *const canonical[] = {
    "graph \"\" {\n}\n",
    /* windows and normalisation */
    "graph \"windows\" {\n"
    "  input %image : f32[N,4,32,32] {mean=[0.485,0.456,0.406], std=[0.229,0.224,0.225], resize=256}\n"
    "  parameter %w : f32[8,2,3,3] {init=weight, fan_in=18}\n"
    "  parameter %b : f32[8] {init=bias, fan_in=18}\n"
    "  %c = conv2d %image, %w, %b {stride=[2,1], padding=[1,2,1,2], dilation=[1,2], groups=2, padding_mode=reflect}"
    " : f32[N,8,16,32]\n"
    "  parameter %t.w : f32[8,2,3,3] {init=weight, fan_in=18}\n"
    "  %t = conv_transpose2d %c, %t.w {stride=[2,2], output_padding=[1,1]} : f32[N,2,34,66]\n"
    "  %mp = max_pool2d %c {kernel=[3,3], stride=[2,2], padding=[1,1,1,1], ceil_mode=true} : f32[N,8,9,17]\n"
    "  %ap = avg_pool2d %c {kernel=[2,2], padding=[1,1,1,1], count_include_pad=false} : f32[N,8,17,33]\n"
    "  %aa = adaptive_avg_pool2d %c {output=[2,3]} : f32[N,8,2,3]\n"
    "  %us = upsample %c {scale=[2,2], mode=bilinear, align_corners=true} : f32[N,8,32,64]\n"
    "  %up = upsample %c {size=[64,64]} : f32[N,8,64,64]\n"
    "  parameter %g : f32[8] {init=one}\n"
    "  parameter %m : f32[8] {init=zero, trainable=false, buffer=true}\n"
    "  %bn = batch_norm %c, %g, %b, %m, %g {eps=0.001, momentum=0.01, training=true} : f32[N,8,16,32]\n"
    "  %nm = normalize %image {mean=[1,2,3,4], std=[0.5,1,1,1]} : f32[N,4,32,32]\n"
    "  output out = %t\n"
    "}\n",
    /* element-wise, dimensions, reductions, losses */
    "graph \"others\" {\n"
    "  max_batch 16\n"
    "  input %x : f32[N,4,6,6]\n"
    "  input %y : f32[N,24]\n"
    "  %0.a = leaky_relu %x {negative_slope=0.2} : f32[N,4,6,6]\n"
    "  %b = gelu %0.a {approximate=tanh} : f32[N,4,6,6]\n"
    "  %c = clamp %b {min=-1, max=6} : f32[N,4,6,6]\n"
    "  %d = dropout %c {p=0.25} : f32[N,4,6,6]\n"
    "  %e = pad %d {padding=[1,0,1,0], value=-1.5} : f32[N,4,8,6]\n"
    "  %f = concat %x, %d {dim=3} : f32[N,4,6,12]\n"
    "  %g = mean %x {dims=[2,3], keep_dims=true} : f32[N,4,1,1]\n"
    "  %h = flatten %x {start_dim=2, end_dim=3} : f32[N,4,36]\n"
    "  %i = reshape %x {shape=[N,24,6]} : f32[N,24,6]\n"
    "  %j = permute %x {dims=[0,2,3,1]} : f32[N,6,6,4]\n"
    "  %k = matmul %x, %x {transpose=true} : f32[N,4,6,6]\n"
    "  %l = mse %x, %d {reduction=sum} : f32[]\n"
    "}\n",
    /* epilogues, layouts, storage, choices, aliases, ids and names */
    "graph \"a \\\"b\\\" \\\\ \\n\" {\n"
    "  next_id 50\n"
    "  memory {workspace_fixed=64, workspace_per_batch=65536, prepared=9280, prepare_scratch=128}\n"
    "  parameter gone : f32[3] {init=zero, data=[0.1,10,-1e-30]}\n"
    "  input %image : f32[N,16,8,8] @input(stride=[1024,64,8,1], bytes=4096)\n"
    "  %4 = convert %image : f32[N,16,8,8] nchw16c"
    " @workspace(offset=4096, stride=[1600,1600,160,16], origin=176, halo=[1,1,1,1], bytes=6400)\n"
    "  parameter %w@7 : f32[16,16,3,3] oihw16o @prepared(stride=[2304,144,48,16], bytes=9216) layer 0"
    " {init=weight, fan_in=144}\n"
    "  parameter %\"17\" : f32[16] c16 @prepared(offset=9216, stride=[1], bytes=64) {init=bias}\n"
    "  %conv@19 = conv2d %4, %w, %\"17\" {padding=[1,1,1,1]} epilogue [reversed sub %4, leaky_relu "
    "{negative_slope=0.5},"
    " mul %4] : f32[N,16,8,8] nchw16c @workspace(stride=[1024,1024,128,16], bytes=4096)"
    " choice direct(tile_pixels=6, tile_blocks=2, channel_chunk=16, row_chunk=4) layer 0\n"
    "  %\"a b\"@30 = identity %conv : f32[N,16,8,8] nhwc\n"
    "  %\"\" = identity %conv : f32[N,16,8,8] alias %33 choice reference\n"
    "  %33 = identity %conv : f32[N,16,8,8]\n"
    "  parameter %\"-x\" : i64[2] {init=zero, trainable=false, data=[-9223372036854775808,9007199254740993]}\n"
    "  output \"a b\" = %\"a b\"\n"
    "  hook_output conv = %conv\n"
    "  layer conv : conv2d = %conv frozen\n"
    "  layer \"0\" : relu\n"
    "  value block.0 = %33\n"
    "  value \"\xc3\xa9\"\n"
    "  hook \"layer*.conv2\" gradient stats\n"
    "  hook \"body\" activation call\n"
    "  hook \"body\" activation stats\n"
    "  hook \"y\" activation stats {bins=20, low=-1, high=1, threshold=0.1}\n"
    "  group body [\"a*\", \"b\"] frozen freeze_batch_norm\n"
    "  group head [\"c\"]\n"
    "  labels [\"cat\", \"\"]\n"
    "}\n",
    /* ports in another order than their nodes, and nodes without names */
    "graph \"ports\" {\n"
    "  input %b : f32[N,2] {port=1}\n"
    "  input %a : f32[N,2] {port=0}\n"
    "  parameter %2 : f32[2] {init=one, name=\"other\", port=1}\n"
    "  parameter %first : f32[2] {init=one, port=0}\n"
    "  %4 = add %a, %2 : f32[N,2]\n"
    "  %5 = batch_stats %4 : f32[2,2]\n"
    "  %6 = bn_update %first, %5, %4 {dim=0} : f32[2]\n"
    "  update first = %6\n"
    "}\n",
    /* statistics, computed where their input is */
    "graph \"statistics\" {\n"
    "  input %x : f32[N,4,64,64]\n"
    "  %y = relu %x : f32[N,4,64,64]\n"
    "  %2 = stats_partial %y {parts=4} : f32[N,4,45] hosted\n"
    "  %3 = stats_final %2 : f32[43]\n"
    "  output y = %y\n"
    "  hook_output hook.stats.y = %3\n"
    "}\n",
    /* a training step asked for */
    "graph \"request\" {\n"
    "  input %x : f32[N,7]\n"
    "  output x = %x\n"
    "  objective cross_entropy accuracy error_rate\n"
    "  train mse of x sgd nesterov clip accumulate memory_limit 1048576\n"
    "}\n",
    /* and made: parts of the state, values computed where they belong */
    "graph \"step\" {\n"
    "  memory {workspace_fixed=256}\n"
    "  input %x : f32[3]\n"
    "  input %hyper : f32[1,16]\n"
    "  input %rng : i64[2]\n"
    "  input %loss : f32[]\n"
    "  parameter %state : f32[2,8] @parameter(stride=[8,1], bytes=64) {init=zero}\n"
    "  %flat = reshape %state {shape=[16]} : f32[16] @parameter(stride=[1], bytes=64) alias %state\n"
    "  %w = slice %flat {dim=0, start=4, length=3} : f32[3] @parameter(stride=[1], bytes=12, delta=16) alias %state\n"
    "  %d = dropout %w, %rng {p=0.25, stream=2} : f32[3]\n"
    "  %a = add %d, %x : f32[3] @workspace(stride=[1], bytes=12) placed %g\n"
    "  %b = full {value=1, shape=[5]} : f32[5] @workspace(stride=[1], bytes=20, delta=12) placed %g\n"
    "  %g = pack %a, %b : f32[8] @workspace(stride=[1], bytes=32) filled\n"
    "  %new = sgd_step %state, %g, %hyper, %loss {segments=[8], decayed=[3], nesterov=true}"
    " : f32[2,8] @parameter(stride=[8,1], bytes=64) placed %state\n"
    "  %c = add %a, %x : f32[3]\n"
    "  %y = sum_squares %g : f32[1]\n"
    "  output c = %c\n"
    "  update state = %new\n"
    "  slot w : f32[3] offset 4 group 0 decayed\n"
    "  slot v : f32[5] offset 8 group 1\n"
    "  group_rows 1\n"
    "  recompute 3\n"
    "}\n",
    "graph \"accumulation\" {\n"
    "  input %x : f32[3,8]\n"
    "  input %g : f32[8]\n"
    "  input %hyper : f32[1,16]\n"
    "  input %loss : f32[]\n"
    "  %y = sgd_step %x, %g, %hyper, %loss {segments=[8], decayed=[3], accumulate=true} : f32[3,8]\n"
    "}\n",
    /* gradients asked for, and the ops that they need */
    "graph \"gradients\" {\n"
    "  input %class : i64[N]\n"
    "  %1 = one_hot %class {depth=7} : f32[N,7]\n"
    "  %y = slice %1 {start=2, length=3} : f32[N,3]\n"
    "  output y = %y\n"
    "  gradient y class wrt [\"y\"]\n"
    "  gradient \"0\" cotangent input dy wrt [\"x\", \"layer1.0\"] hook\n"
    "  gradient y scalar wrt [\"y\"]\n"
    "}\n",
};

static void test_round_trip(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof canonical / sizeof canonical[0]; i++) {
    Graph *graph = NULL;
    if (!graph_parse("test.ir", canonical[i], strlen(canonical[i]), fixture->arena, fixture->diag, &graph)) {
      fail_msg("graph %zu: %s", i, diag_text(fixture->diag, fixture->arena));
    }
    assert_string_equal(graph_text(graph, fixture->arena), canonical[i]);
  }
}

/* The graphs above show every attribute of the intermediate form away from its default. */
static void test_all_attributes_shown(void **state) {
  (void)state;
  for (AttrId id = 0; id < ATTR_ID_COUNT; id++) {
    if (attr_info(id)->import_only) continue;
    char key[64];
    snprintf(key, sizeof key, "%s=", attr_info(id)->name);
    bool found = false;
    for (size_t i = 0; i < sizeof canonical / sizeof canonical[0]; i++) found = found || strstr(canonical[i], key);
    if (!found) fail_msg("no graph of the round trip has %s", key);
  }
}

static void test_types_may_be_left_out(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = must_parse(fixture,
                                  "# a comment\n"
                                  "graph \"short\" { # another\n"
                                  "  input %x:f32[N,3,8,8]\n"
                                  "  %y = max_pool2d %x {kernel=[2,2],\n"
                                  "     stride=[2,2]}\n"
                                  "  output y = %y }\n");
  assert_string_equal(graph_text(graph, fixture->arena),
                      "graph \"short\" {\n"
                      "  input %x : f32[N,3,8,8]\n"
                      "  %y = max_pool2d %x {kernel=[2,2], stride=[2,2]} : f32[N,3,4,4]\n"
                      "  output y = %y\n"
                      "}\n");
}

/* Every example of the specification is canonical text. */
static void test_specification(void **state) {
  Fixture *fixture = *state;
  static const char fence[] = "\n```ir\n";
  void *data = NULL;
  size_t size = 0, count = 0;
  const char *path = KILN_SOURCE_DIR "/ir/IR.md";
  if (!file_read(path, 1 << 20, fixture->arena, fixture->diag, &data, &size)) {
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  }
  for (const char *at = strstr(data, fence); at; at = strstr(at, fence), count++) {
    at += strlen(fence);
    const char *end = strstr(at, "```");
    assert_non_null(end);
    const char *example = arena_string_n(fixture->arena, at, (size_t)(end - at));
    assert_string_equal(graph_text(must_parse(fixture, example), fixture->arena), example);
  }
  assert_true(count >= 6);
}

typedef struct BadText {
  const char *source, *messages;
} BadText;

static const BadText bad_texts[] = {
    {"", "t.ir:1:1: error: expected 'graph', found the end of the file\n"},
    {"graph {\n}", "t.ir:1:7: error: expected a string, found '{'\n"},
    {"graph \"g\" {\n} x", "t.ir:2:3: error: expected the end of the file, found 'x'\n"},
    {"graph \"g\" {\n  inptu %x : f32[2]\n}", "t.ir:2:3: error: unknown statement 'inptu'; did you mean 'input'?\n"},
    {"graph \"g\" {\n  input %x : f32[2,N]\n}",
     "t.ir:2:14: error: dimension 1 must be at least 1; N may only be the first\n"},
    {"graph \"g\" {\n  input %x : f33[2]\n}", "t.ir:2:14: error: unknown element type 'f33'\n"},
    {"graph \"g\" {\n  %y = relu %x\n}", "t.ir:2:13: error: value '%x' is not defined above\n"},
    {"graph \"g\" {\n  input %x : f32[2]\n  input %x : f32[2]\n}", "t.ir:3:9: error: value '%x' is already defined\n"},
    {"graph \"g\" {\n  input %x@4 : f32[2]\n  %4 = relu %x\n}", "t.ir:3:3: error: id 4 is already taken\n"},
    {"graph \"g\" {\n  input %x@4194304 : f32[2]\n}",
     "t.ir:2:12: error: expected an integer from 0 to 4194303, found '4194304'\n"},
    {"graph \"g\" {\n  input %x : f32[2]\n  %y = rellu %x\n  %z = relu %y\n  %q = tanh %x {p=1}\n}",
     "t.ir:3:8: error: unknown operation 'rellu'; did you mean 'relu'?\n"
     "t.ir:5:17: error: tanh has no attribute 'p'\n"},
    {"graph \"g\" {\n  input %x : f32[2]\n  %y = clamp %x {min=1, min=2}\n}",
     "t.ir:3:25: error: attribute 'min' stands twice\n"},
    {"graph \"g\" {\n  input %x : f32[2]\n  %y = gelu %x {approximate=sin}\n}",
     "t.ir:3:29: error: approximate expects one of none, tanh, found 'sin'\n"},
    {"graph \"g\" {\n  input %x : f32[2]\n  %y = relu %x : f32[3]\n}",
     "t.ir:3:18: error: expected the type that relu gives, f32[2], found f32[3]\n"},
    {"graph \"g\" {\n  input %x : f32[2]\n  %y = relu %x epilogue [flatten]\n}",
     "t.ir:3:26: error: an epilogue takes element-wise operations, found 'flatten'\n"},
    {"graph \"g\" {\n  input %x : f32[1,4]\n  input %z : f32[3,4]\n  %y = relu %x epilogue [add %z]\n}",
     "t.ir:4:3: error: 'y': epilogue step 0: operand [3,4] of add does not broadcast to [1,4]\n"},
    {"graph \"g\" {\n  input %x : f32[N,4,64,64]\n  %y = relu %x\n  %2 = stats_partial %y {parts=5} hosted\n}",
     "t.ir:4:3: error: after parse: %2 (stats_partial): rule 'hosted': the kernel of %1 has 4 parts, found 5\n"},
    {"graph \"g\" {\n  input %x : f32[2,64,64]\n  %2 = stats_partial %x {parts=64} hosted\n}",
     "t.ir:3:3: error: after parse: %2 (stats_partial): rule 'hosted': the kernel of %0 cannot compute reductions\n"},
    {"graph \"g\" {\n  input %x : f32[2]\n  %y = relu %x alias %z\n}", "t.ir:3:22: error: value '%z' is not defined\n"},
    {"graph \"g\" {\n  parameter %w : f32[2] {data=[1,2,3]}\n}",
     "t.ir:2:31: error: data has 3 numbers, the shape has 2 elements\n"},
    {"graph \"g\" {\n  parameter %w : f32[99999999,99999999] {data=[1]}\n}",
     "t.ir:2:47: error: data has 1 numbers, the shape has 9999999800000001 elements\n"},
    {"graph \"g\" {\n  input %x : f32[2] {port=3}\n}", "t.ir: error: input 3 of 1 is out of range\n"},
    {"graph \"g\" {\n  \"\\q\"\n}", "t.ir:2:3: error: unknown escape in a string\n"},
    {"graph \"g\" {\n  hook \"a\nb\" x y\n}",
     "t.ir:2:8: error: the string does not end on its line\n"
     "t.ir:3:1: error: unknown statement 'b'\n"},
    {"graph \"g\" {\n  $\n}", "t.ir:2:3: error: unexpected character '$'\n"},
    {"graph \"\xff\" {\n}", "t.ir:1:8: error: byte 0xff is not valid UTF-8\n"},
    {"graph \"g\" {\n  hook_output h = %x\n",
     "t.ir:2:19: error: value '%x' is not defined above\n"
     "t.ir:3:1: error: expected '}', found the end of the file\n"},
};

static void test_bad_texts(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof bad_texts / sizeof bad_texts[0]; i++) {
    Graph *graph = NULL;
    clear_messages(fixture);
    const char *source = bad_texts[i].source;
    if (graph_parse("t.ir", source, strlen(source), fixture->arena, fixture->diag, &graph)) {
      fail_msg("accepted: %s", source);
    }
    check_messages(fixture, bad_texts[i].messages);
  }
}

/* Every prefix of a text, and every text with one byte changed, gives a graph or messages. */
static void test_damaged_texts(void **state) {
  Fixture *fixture = *state;
  const char *source = canonical[3];
  const size_t size = strlen(source);
  char *damaged = arena_alloc(fixture->arena, size, 1);
  Arena *arena = arena_create(NULL);
  for (size_t i = 0; i < size; i++) {
    for (int way = 0; way < 3; way++) {
      memcpy(damaged, source, size);
      if (way == 1) damaged[i] ^= 0x15;
      if (way == 2) damaged[i] = "{}[]()%\"@=,:0-"[i % 14];
      Diag *diag = diag_create(arena);
      Graph *graph = NULL;
      const bool valid = graph_parse("t.ir", damaged, way == 0 ? i : size, arena, diag, &graph);
      assert_true(valid == (diag_error_count(diag) == 0));
      arena_reset(arena);
    }
  }
  arena_destroy(arena);
}

static void test_clone(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof canonical / sizeof canonical[0]; i++) {
    Arena *first = arena_create(NULL);
    Graph *graph = NULL;
    assert_true(graph_parse("t.ir", canonical[i], strlen(canonical[i]), first, diag_create(first), &graph));
    if (graph->node_count) node_decide(graph, graph->nodes[0], "fuse", "yes", NULL, "why not");
    Graph *clone = graph_clone(graph, fixture->arena);
    arena_destroy(first);
    assert_string_equal(graph_text(clone, fixture->arena), canonical[i]);
    if (clone->node_count) assert_string_equal(clone->nodes[0]->decisions->reason, "why not");
    /* Growing a clone must not write behind its arrays. */
    if (clone->output_count) graph_add_output(clone, "one more", clone->outputs[0].node);
    assert_true(graph_verify(clone, "clone", fixture->diag));
  }
}

/* --- attributes ------------------------------------------------------------------------------------ */

static void test_attributes(void **state) {
  (void)state;
  const Attrs defaults = attrs_default();
  Attrs other = defaults;
  const AttrMask mask = A(STRIDE) | A(MIN) | A(DIMS) | A(OUT_CHANNELS);
  assert_true(attrs_equal(&defaults, &other, mask));
  assert_true(attrs_hash(&defaults, mask) == attrs_hash(&other, mask));
  other.dims.values[3] = 7;   /* behind the list's end */
  other.out_channels = 9;     /* of the description only */
  other.kernel.values[0] = 3; /* not in the mask */
  assert_true(attrs_equal(&defaults, &other, mask));
  assert_true(attrs_hash(&defaults, mask) == attrs_hash(&other, mask));
  other.stride.values[1] = 2;
  assert_false(attrs_equal(&defaults, &other, mask));
  assert_true(attrs_hash(&defaults, mask) != attrs_hash(&other, mask));
  other = defaults;
  other.value = -0.0;
  assert_false(attrs_equal(&defaults, &other, A(VALUE)));
  AttrWord word = PADDING_ZEROS;
  assert_true(attr_word_parse(ATTR_ID_PADDING_MODE, "border", &word) && word == PADDING_REPLICATE);
  assert_true(attr_word_parse(ATTR_ID_PADDING_MODE, "reflection", &word) && word == PADDING_REFLECT);
  assert_false(attr_word_parse(ATTR_ID_REDUCTION, "border", &word));
  assert_string_equal(attr_word_name(ATTR_ID_PADDING_MODE, PADDING_REPLICATE), "replicate");
}

static void test_op_names(void **state) {
  (void)state;
  size_t count = 0;
  const char *const *names = op_names(&count);
  for (size_t i = 0; i < count; i++) {
    assert_true(op_find(names[i]) < OP_COUNT);
    assert_string_not_equal(names[i], "convert");
    assert_string_not_equal(names[i], "input");
  }
  /* sources and what passes make; backward ops; ends of training steps; a gradient for each element-wise op of one
   * operand */
  assert_int_equal(count, OP_COUNT - 9 - 18 - 4 - 12);
  assert_int_equal(op_find("bn_scale"), OP_BN_SCALE);
  assert_int_equal(op_find("conv"), OP_COUNT);
}

/* --- pictures and tables --------------------------------------------------------------------------- */

static void test_dot(void **state) {
  Fixture *fixture = *state;
  const Graph *graph =
      must_parse(fixture,
                 "graph \"d\" {\n  input %x : f32[N,3,8,8]\n  parameter %w : f32[4,3,3,3] {init=weight}\n"
                 "  %\"a\\\"b\" = conv2d %x, %w {stride=[2,2]} epilogue [relu]\n"
                 "  output y = %\"a\\\"b\"\n}\n");
  Text text;
  text_init(&text, fixture->arena);
  graph_print_dot(&text, graph);
  assert_string_equal(text.data,
                      "digraph \"d\" {\n  rankdir=TB;\n  node [shape=box, fontname=\"Helvetica\", fontsize=10];\n"
                      "  edge [fontname=\"Helvetica\", fontsize=8];\n"
                      "  n0 [label=\"x\\ninput\\nf32[N,3,8,8]\", shape=ellipse];\n"
                      "  n2 [label=\"a\\\"b\\nconv2d + relu\\nstride=[2,2]\\nf32[N,4,3,3]\\n1 parameter\"];\n"
                      "  n0 -> n2;\n  output0 [label=\"y\", shape=ellipse];\n  n2 -> output0;\n}\n");
}

static void test_plan_table(void **state) {
  Fixture *fixture = *state;
  const Shape image = shape_of(2, (const int64_t[]){DIM_BATCH, 4});
  PlanTensor input = {.name = "x", .shape = image, .storage = {.space = SPACE_INPUT, .stride = {4, 1}}};
  EpilogueStep step = {.op = OP_RELU, .attrs = attrs_default(), .operand = -1};
  PlanKernel kernels[] = {
      {.name = "y",
       .op = OP_LEAKY_RELU,
       .attrs = attrs_default(),
       .output = {.name = "y", .shape = image, .storage = {.space = SPACE_WORKSPACE, .offset = 64, .stride = {4, 1}}},
       .inputs = &input,
       .input_count = 1,
       .op_input_count = 1,
       .epilogue = &step,
       .epilogue_count = 1,
       .flops = 8},
  };
  kernels[0].attrs.negative_slope = 0.5;
  PlanPort port = {.name = "x", .shape = image};
  const Plan plan = {.arena = fixture->arena,
                     .name = "net",
                     .max_batch = 16,
                     .kernels = kernels,
                     .kernel_count = 1,
                     .inputs = &port,
                     .input_count = 1,
                     .workspace_per_batch = 128,
                     .identity = 0xabc};
  Text text;
  text_init(&text, fixture->arena);
  plan_print(&text, &plan);
  assert_string_equal(
      text.data,
      "plan net, maximum batch 16, identity 0000000000000abc\n"
      "workspace 0 bytes + 128 per image, prepared 0 bytes, scratch of preparation 0 bytes\n"
      "1 kernels, 1 distinct codes\n"
      "input 0: x f32[N,4]\n"
      "\nprepare: 0 kernels, 0 flops per image, 0 fixed\n"
      "\nrun: 1 kernel, 8 flops per image, 0 fixed\n"
      "0  =>  y  f32[N,4] plain  workspace+64*N  stride 4,1  leaky_relu {negative_slope=0.5} + relu; default; code 0\n"
      "   <-  x  f32[N,4] plain  input 0         stride 4,1\n");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_round_trip),
      fixture_test(test_all_attributes_shown),
      fixture_test(test_types_may_be_left_out),
      fixture_test(test_specification),
      fixture_test(test_bad_texts),
      fixture_test(test_damaged_texts),
      fixture_test(test_clone),
      fixture_test(test_attributes),
      fixture_test(test_op_names),
      fixture_test(test_dot),
      fixture_test(test_plan_table),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
