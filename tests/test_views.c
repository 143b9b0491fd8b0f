/* Values that are computed inside others: the same numbers as the interpreter's, between guard pages, and where they
 * can and cannot be. */
#include "run_program.h"
#include "support.h"

typedef struct ViewCase {
  const char *label, *text;
  bool joined; /* the first concat or pack has no kernel */
} ViewCase;

#define FIRE(body)                                                \
  "graph \"fire\" {\n  max_batch 3\n  input %x : f32[N,16,7,6]\n" \
  "  parameter %a.w : f32[16,16,1,1] {init=weight}\n"             \
  "  parameter %b.w : f32[32,16,3,3] {init=weight}\n"             \
  "  parameter %b.bias : f32[32] {init=bias}\n"                   \
  "  parameter %c.w : f32[16,48,3,3] {init=weight}\n" body "}\n"

static const ViewCase cases[] = {
    {"two convolutions into a third with padding",
     FIRE("  %a = conv2d %x, %a.w\n  %a1 = relu %a\n"
          "  %b = conv2d %x, %b.w, %b.bias {padding=[1,1,1,1]}\n  %b1 = relu %b\n"
          "  %j = concat %a1, %b1 {dim=1}\n  %c = conv2d %j, %c.w {padding=[1,1,1,1]}\n  output c = %c\n"),
     true},
    {"a piece that another convolution reads with more padding",
     FIRE("  parameter %d.w : f32[16,16,5,5] {init=weight}\n"
          "  %a = conv2d %x, %a.w\n  %b = conv2d %x, %b.w, %b.bias {padding=[1,1,1,1]}\n"
          "  %d = conv2d %a, %d.w {padding=[2,2,2,2]}\n  %j = concat %b, %a {dim=1}\n"
          "  %c = conv2d %j, %c.w {padding=[1,1,1,1]}\n  %y = add %c, %d\n  output c = %y\n"),
     true},
    {"pools, joined for the output",
     "graph \"pools\" {\n  max_batch 3\n  input %x : f32[N,5,6,7]\n"
     "  %m = max_pool2d %x {kernel=[2,2], stride=[2,2]}\n  %a = avg_pool2d %x {kernel=[2,2], stride=[2,2]}\n"
     "  %j = concat %m, %a {dim=1}\n  output y = %j\n}\n",
     true},
    {"rows of linear layers",
     "graph \"rows\" {\n  max_batch 3\n  input %x : f32[N,6]\n  parameter %v : f32[7,6] {init=weight}\n"
     "  parameter %w : f32[3,6] {init=weight}\n  %a = linear %x, %v\n  %b = linear %x, %w\n"
     "  %j = concat %a, %b {dim=1}\n  %y = tanh %j\n  %s = sum %y {dims=[1]}\n  output y = %s\n}\n",
     true},
    {"one value twice",
     "graph \"twice\" {\n  max_batch 3\n  input %x : f32[N,4]\n  %a = tanh %x\n  %j = concat %a, %a {dim=1}\n"
     "  output y = %j\n}\n",
     false},
    {"an input",
     "graph \"input\" {\n  max_batch 3\n  input %x : f32[N,4]\n  %a = tanh %x\n"
     "  %j = concat %a, %x {dim=1}\n  output y = %j\n}\n",
     false},
    {"a piece that is an output",
     "graph \"output\" {\n  max_batch 3\n  input %x : f32[N,4]\n  %a = tanh %x\n  %b = exp %x\n"
     "  %j = concat %a, %b {dim=1}\n  output y = %j\n  output a = %a\n}\n",
     false},
    {"channels that do not fill a block",
     "graph \"odd\" {\n  max_batch 3\n  input %x : f32[N,16,5,5]\n  parameter %v : f32[17,16,1,1] {init=weight}\n"
     "  parameter %w : f32[31,16,1,1] {init=weight}\n  %a = conv2d %x, %v\n  %b = conv2d %x, %w\n"
     "  %j = concat %a, %b {dim=1}\n  output y = %j\n}\n",
     false},
    {"parts and wholes of one value",
     "graph \"pack\" {\n  max_batch 3\n  input %x : f32[24]\n  input %z : f32[2,3]\n  %a = tanh %x\n"
     "  %p = slice %a {dim=0, start=3, length=7}\n  %b = exp %z\n  %r = reshape %b {shape=[6]}\n  %q = neg %p\n"
     "  %g = pack %a, %r, %q, %p, %x\n  %y = abs %g\n  output y = %y\n}\n",
     true},
};

static bool is_joined(const Graph *graph) {
  for (size_t i = 0; i < graph->node_count; i++)
    if (graph->nodes[i]->op == OP_CONCAT || graph->nodes[i]->op == OP_PACK) return graph->nodes[i]->filled;
  fail_msg("nothing is joined");
  return false;
}

static void check_case(const ViewCase *view, int64_t batch, int32_t chunks) {
  Arena *arena = arena_create(NULL);
  TestProgram program;
  TestRun run;
  EvalResult expected;
  if (!test_program_parse(&program, arena, view->text) ||
      !test_program_compile(&program, "native", NULL, PRECISION_STRICT))
    fail_msg("%s does not compile", view->label);
  if (is_joined(program.graph) != view->joined) fail_msg("%s: joined in place: %d", view->label, !view->joined);
  test_fill(&program, FILL_FLOATS, batch, 11);
  if (!test_program_run(&program, batch, chunks, chunks > 1, &run) ||
      !test_program_eval(&program, program.source, &expected))
    fail_msg("%s does not run", view->label);
  for (size_t i = 0; i < run.outputs.count; i++) {
    const EvalTensor *value = &expected.values[program.source->outputs[i].node->id];
    const double excess = test_excess(&run.outputs.items[i], value, NULL, 1e-4);
    if (excess > 0) fail_msg("%s, batch %d: output %zu is off by %g", view->label, (int)batch, i, excess);
  }
  arena_destroy(arena);
}

static void test_joined(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int64_t batch = 1; batch <= 3; batch += 2) check_case(&cases[i], batch, (int32_t)batch);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_joined)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
