/* Layouts of images: every op in each of them against the interpreter, and which ones are chosen. */
#include "codegen.h"
#include "eval.h"
#include "run_program.h"
#include "support.h"

static const char *const isas[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4"};
enum { ISA_COUNT = sizeof isas / sizeof *isas };

/* --- every layout against the interpreter -------------------------------------------------------------- */

typedef struct Net {
  const char *name, *text;
  bool exact; /* with small integers */
} Net;

static const Net nets[] = {
    {"residual",
     "graph \"residual\" {\n"
     "  input %x : f32[N,3,11,13]\n"
     "  parameter %w1 : f32[24,3,3,3]\n  parameter %b1 : f32[24]\n"
     "  parameter %w2 : f32[24,24,3,3]\n  parameter %w3 : f32[24,24,1,1]\n  parameter %b3 : f32[24]\n"
     "  %a = conv2d %x, %w1, %b1 {padding=[1,1,1,1]} : f32[N,24,11,13]\n"
     "  %r = relu %a : f32[N,24,11,13]\n"
     "  %c = conv2d %r, %w2 {padding=[1,1,1,1]} : f32[N,24,11,13]\n"
     "  %s = add %c, %r : f32[N,24,11,13]\n"
     "  %t = relu %s : f32[N,24,11,13]\n"
     "  %y = conv2d %t, %w3, %b3 {stride=[2,2]} : f32[N,24,6,7]\n"
     "  output y = %y\n  output s = %s\n}\n",
     true},
    {"groups",
     "graph \"groups\" {\n"
     "  input %x : f32[N,32,9,10]\n"
     "  parameter %w1 : f32[32,1,3,3]\n  parameter %b1 : f32[32]\n"
     "  parameter %w2 : f32[48,8,3,2]\n  parameter %w3 : f32[48,12,1,1]\n  parameter %w4 : f32[48,1,5,5]\n"
     "  %a = conv2d %x, %w1, %b1 {padding=[1,1,1,1], groups=32} : f32[N,32,9,10]\n"
     "  %r = relu %a : f32[N,32,9,10]\n"
     "  %c = conv2d %r, %w2 {padding=[1,1,1,0], groups=4} : f32[N,48,9,10]\n"
     "  %d = conv2d %c, %w3 {groups=4} : f32[N,48,9,10]\n"
     "  %e = conv2d %d, %w4 {padding=[2,2,2,2], stride=[2,2], groups=48} : f32[N,48,5,5]\n"
     "  output y = %e\n}\n",
     true},
    {"pools",
     "graph \"pools\" {\n"
     "  input %x : f32[N,20,15,14]\n"
     "  parameter %w : f32[36,20,1,1]\n  parameter %l : f32[10,36]\n  parameter %w2 : f32[20,36,3,3]\n"
     "  %p = max_pool2d %x {kernel=[3,3], stride=[2,2], padding=[1,1,1,1]} : f32[N,20,8,7]\n"
     "  %c = conv2d %p, %w : f32[N,36,8,7]\n"
     "  %q = max_pool2d %c {kernel=[2,2], stride=[2,2]} : f32[N,36,4,3]\n"
     "  %v = avg_pool2d %c {kernel=[2,2], stride=[2,1], padding=[1,0,0,0]} : f32[N,36,4,6]\n"
     "  %u = conv2d %v, %w2 {padding=[1,1,1,1]} : f32[N,20,4,6]\n"
     "  %g = adaptive_max_pool2d %q {output=[1,1]} : f32[N,36,1,1]\n"
     "  %h = adaptive_max_pool2d %u {output=[2,3]} : f32[N,20,2,3]\n"
     "  %f = flatten %g : f32[N,36]\n"
     "  %y = linear %f, %l : f32[N,10]\n"
     "  output y = %y\n  output h = %h\n}\n",
     true},
    {"joined",
     "graph \"joined\" {\n"
     "  input %x : f32[N,16,6,7]\n"
     "  parameter %w1 : f32[16,16,1,1]\n  parameter %w2 : f32[24,16,3,3]\n  parameter %w3 : f32[12,40,3,3]\n"
     "  parameter %scale : f32[12,1,1]\n"
     "  %a = conv2d %x, %w1 : f32[N,16,6,7]\n"
     "  %b = conv2d %a, %w2 {padding=[1,1,1,1]} : f32[N,24,6,7]\n"
     "  %c = concat %a, %b {dim=1} : f32[N,40,6,7]\n"
     "  %i = identity %c : f32[N,40,6,7]\n"
     "  %d = conv2d %i, %w3 {padding=[1,1,1,1]} : f32[N,12,6,7]\n"
     "  %e = mul %d, %scale : f32[N,12,6,7]\n"
     "  %g = adaptive_max_pool2d %e {output=[1,1]} : f32[N,12,1,1]\n"
     "  %m = mul %e, %g : f32[N,12,6,7]\n"
     "  %n = neg %m : f32[N,12,6,7]\n"
     "  %k = concat %m, %n, %x {dim=1} : f32[N,40,6,7]\n"
     "  %y = conv2d %k, %w3 {padding=[1,1,1,1]} : f32[N,12,6,7]\n"
     "  output y = %y\n}\n",
     false},
    {"permuted",
     "graph \"permuted\" {\n"
     "  input %p : f32[N,10,12,3]\n"
     "  parameter %w1 : f32[16,3,3,3]\n  parameter %b1 : f32[16]\n  parameter %w2 : f32[8,16,1,1]\n"
     "  parameter %w3 : f32[8,3,5,5]\n"
     "  %x = permute %p {dims=[0,3,1,2]} : f32[N,3,10,12]\n"
     "  %a = conv2d %x, %w1, %b1 {padding=[1,1,1,1]} : f32[N,16,10,12]\n"
     "  %r = relu %a : f32[N,16,10,12]\n"
     "  %b = conv2d %r, %w2 : f32[N,8,10,12]\n"
     "  %i = identity %x : f32[N,3,10,12]\n"
     "  %c = conv2d %i, %w3 {padding=[2,2,2,2]} : f32[N,8,10,12]\n"
     "  %d = add %b, %c : f32[N,8,10,12]\n"
     "  %y = permute %d {dims=[0,2,3,1]} : f32[N,10,12,8]\n"
     "  %z = permute %b {dims=[0,2,3,1]} : f32[N,10,12,8]\n"
     "  output y = %y\n  output z = %z\n  output x = %x\n}\n",
     true},
    {"resized",
     "graph \"resized\" {\n"
     "  input %x : f32[N,8,5,6]\n"
     "  parameter %w1 : f32[20,8,3,3]\n  parameter %w2 : f32[4,20,3,3]\n"
     "  %a = conv2d %x, %w1 {padding=[1,1,1,1]} : f32[N,20,5,6]\n"
     "  %u = upsample %a {scale=[2,2]} : f32[N,20,10,12]\n"
     "  %p = pad %u {padding=[1,2,0,1]} : f32[N,20,11,15]\n"
     "  %b = conv2d %p, %w2 {padding=[1,1,1,1]} : f32[N,4,11,15]\n"
     "  %s = sigmoid %b : f32[N,4,11,15]\n"
     "  output y = %s\n}\n",
     false},
};
enum { NET_COUNT = sizeof nets / sizeof *nets };

static void check_run(TestProgram *program, const Net *net, const char *label, bool integers, int32_t chunks) {
  EvalResult expected;
  TestRun run;
  test_fill(program, integers ? FILL_INTEGERS : FILL_FLOATS, 2, 5);
  assert_true(test_program_eval(program, program->source, &expected));
  if (!test_program_run(program, 2, chunks, chunks > 1, &run)) fail_msg("%s %s: does not run", net->name, label);
  for (size_t i = 0; i < program->source->output_count; i++) {
    const EvalTensor *value = &expected.values[program->source->outputs[i].node->id];
    const Tensor *found = &run.outputs.items[i];
    if (integers && net->exact && test_excess(found, value, NULL, 0) > 0)
      fail_msg("%s %s: output %d differs", net->name, label, (int)i);
    const double error = test_relative_error(found, value);
    if (!(error <= 2e-6)) fail_msg("%s %s: output %d differs by %g", net->name, label, (int)i, error);
  }
}

/* With the optional passes and, with `twice`, also without them, which leaves more kernels. */
static void check_layout(Fixture *fixture, const Net *net, const char *isa, const Layout *layout, bool twice) {
  static const char *const disabled[] = {NULL, "fuse,fold_bn,simplify"};
  Text name;
  text_init(&name, fixture->arena);
  layout_print(&name, *layout);
  for (size_t i = 0; i < (twice ? 2 : 1); i++) {
    TestProgram program = {0};
    const char *label =
        arena_format(fixture->arena, "for %s in %s, without %s", isa, name.data, disabled[i] ? disabled[i] : "nothing");
    assert_true(test_program_parse(&program, fixture->arena, net->text));
    program.image_layout = layout;
    if (!test_program_compile(&program, isa, disabled[i], PRECISION_STRICT))
      fail_msg("%s %s: does not compile", net->name, label);
    check_run(&program, net, label, true, 1);
    check_run(&program, net, label, false, 3);
  }
}

static int32_t lanes_of(Fixture *fixture, const char *isa) {
  Target target;
  assert_true(cpu_target(isa, NULL, fixture->arena, fixture->diag, &target));
  return target.vector_lanes;
}

static void test_every_layout(void **state) {
  Fixture *fixture = *state;
  for (int isa = 0; isa < ISA_COUNT; isa++) {
    if (!test_isa_runnable(isas[isa])) continue;
    const int32_t lanes = lanes_of(fixture, isas[isa]);
    for (size_t n = 0; n < NET_COUNT; n++) {
      const Layout plain = {LAYOUT_PLAIN, 0}, last = {LAYOUT_CHANNEL_LAST, 0};
      const bool twice = isa == 1;
      check_layout(fixture, &nets[n], isas[isa], &plain, twice);
      check_layout(fixture, &nets[n], isas[isa], &last, twice);
      for (int32_t block = lanes; block >= 4; block /= 2) {
        const Layout blocks = {LAYOUT_CHANNEL_BLOCK, block};
        check_layout(fixture, &nets[n], isas[isa], &blocks, twice);
      }
      arena_reset(fixture->arena);
      fixture->diag = diag_create(fixture->arena);
    }
  }
}

/* --- the choice ---------------------------------------------------------------------------------------- */

static TestProgram compile_choice(Fixture *fixture, const char *isa, const char *text) {
  TestProgram program = {0};
  assert_true(test_program_parse(&program, fixture->arena, text));
  assert_true(test_program_compile(&program, isa, NULL, PRECISION_DEFAULT));
  return program;
}

static const Node *find_value(const TestProgram *program, const char *name) {
  for (size_t i = 0; i < program->graph->node_count; i++) {
    const Node *node = program->graph->nodes[i];
    if (node->name && strcmp(node->name, name) == 0) return node;
  }
  fail_msg("no value '%s'", name);
  return NULL;
}

static void check_chosen(Fixture *fixture, const TestProgram *program, const char *name, const char *layout) {
  Text text;
  text_init(&text, fixture->arena);
  layout_print(&text, find_value(program, name)->layout);
  if (strcmp(text.data, layout) != 0) fail_msg("%s: expected %s, found %s", name, layout, text.data);
}

/* Kernels that only move images. */
static size_t count_moves(const TestProgram *program) {
  size_t count = 0;
  for (size_t k = 0; k < program->plan->kernel_count; k++) {
    const PlanKernel *kernel = &program->plan->kernels[k];
    count += (kernel->op == OP_CONVERT || kernel->op == OP_PERMUTE) && shape_batched(&kernel->output.shape);
  }
  return count;
}

/* One filter on a large picture: vectors along rows, and nothing to convert. */
static void test_few_filters(void **state) {
  static const char text[] =
      "graph \"edges\" {\n  input %x : f32[N,3,352,352]\n  parameter %w : f32[1,3,3,3]\n"
      "  %y = conv2d %x, %w : f32[N,1,350,350]\n  output y = %y\n}\n";
  Fixture *fixture = *state;
  for (int isa = 0; isa < ISA_COUNT; isa++) {
    const TestProgram program = compile_choice(fixture, isas[isa], text);
    check_chosen(fixture, &program, "y", "plain");
    assert_int_equal(count_moves(&program), 0);
  }
}

/* Eight channels do not fill a vector of sixteen: half as many bytes, as many instructions. */
static void test_half_vectors(void **state) {
  static const char text[] =
      "graph \"narrow\" {\n  input %x : f32[N,3,200,200]\n  parameter %w1 : f32[8,3,3,3]\n"
      "  parameter %w2 : f32[8,8,3,3]\n  parameter %w3 : f32[64,8,3,3]\n"
      "  %a = conv2d %x, %w1 {stride=[2,2]} : f32[N,8,99,99]\n  %b = conv2d %a, %w2 : f32[N,8,97,97]\n"
      "  %y = conv2d %b, %w3 {stride=[2,2]} : f32[N,64,48,48]\n  %z = adaptive_avg_pool2d %y {output=[1,1]} : "
      "f32[N,64,1,1]\n  output z = %z\n}\n";
  Fixture *fixture = *state;
  const TestProgram program = compile_choice(fixture, "x86-64-v4", text);
  check_chosen(fixture, &program, "a", "nchw8c");
  check_chosen(fixture, &program, "b", "nchw8c");
  check_chosen(fixture, &program, "y", "nchw16c"); /* reads blocks of 8 as they are */
  assert_int_equal(count_moves(&program), 0);
}

/* Pictures and results in [N,H,W,C]: neither is moved. */
static void test_channels_last(void **state) {
  static const char text[] =
      "graph \"camera\" {\n  input %p : f32[N,64,64,4]\n  parameter %w1 : f32[16,4,1,1]\n"
      "  parameter %w2 : f32[16,16,1,1]\n"
      "  %x = permute %p {dims=[0,3,1,2]} : f32[N,4,64,64]\n  %a = conv2d %x, %w1 : f32[N,16,64,64]\n"
      "  %b = conv2d %a, %w2 : f32[N,16,64,64]\n  %y = permute %b {dims=[0,2,3,1]} : f32[N,64,64,16]\n"
      "  output y = %y\n}\n";
  Fixture *fixture = *state;
  for (int isa = 0; isa < ISA_COUNT; isa++) {
    const TestProgram program = compile_choice(fixture, isas[isa], text);
    check_chosen(fixture, &program, "x", "nhwc");
    check_chosen(fixture, &program, "b", "nhwc");
    assert_int_equal(count_moves(&program), 0);
  }
}

/* Wide channels throughout: whole vectors' blocks from the first convolution on. */
static void test_residual_networks(void **state) {
  static const char text[] =
      "graph \"blocks\" {\n  input %x : f32[N,3,112,112]\n  parameter %w1 : f32[64,3,7,7]\n"
      "  parameter %w2 : f32[64,64,3,3]\n  parameter %w3 : f32[128,64,1,1]\n  parameter %l : f32[10,128]\n"
      "  %a = conv2d %x, %w1 {stride=[2,2], padding=[3,3,3,3]} : f32[N,64,56,56]\n  %r = relu %a : f32[N,64,56,56]\n"
      "  %m = max_pool2d %r {kernel=[3,3], stride=[2,2], padding=[1,1,1,1]} : f32[N,64,28,28]\n"
      "  %b = conv2d %m, %w2 {padding=[1,1,1,1]} : f32[N,64,28,28]\n  %s = add %b, %m : f32[N,64,28,28]\n"
      "  %c = conv2d %s, %w3 {stride=[2,2]} : f32[N,128,14,14]\n"
      "  %g = adaptive_avg_pool2d %c {output=[1,1]} : f32[N,128,1,1]\n  %f = flatten %g : f32[N,128]\n"
      "  %y = linear %f, %l : f32[N,10]\n  output y = %y\n}\n";
  static const char *const blocks[] = {"nchw4c", "nchw8c", "nchw16c"};
  static const char *const values[] = {"r", "m", "s", "c", "g"};
  Fixture *fixture = *state;
  for (int isa = 0; isa < ISA_COUNT; isa++) {
    const TestProgram program = compile_choice(fixture, isas[isa], text);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) check_chosen(fixture, &program, values[i], blocks[isa]);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_every_layout),  fixture_test(test_few_filters),       fixture_test(test_half_vectors),
      fixture_test(test_channels_last), fixture_test(test_residual_networks),
  };
  return cmocka_run_group_tests_name("layouts", tests, NULL, NULL);
}
