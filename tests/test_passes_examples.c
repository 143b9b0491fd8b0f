/* The example descriptions through all passes: same outputs as the description, and sound plans. Pictures are shrunk
 * so that the interpreter is quick; models with very many parameters are only planned. */
#include <dirent.h>

#include "base/sort.h"
#include "description.h"
#include "plan_checks.h"

enum { PICTURE = 32, PARAMETERS_EVALUATED = 12000000, EXAMPLES_MAX = 100 };

static const Target target = {.triple = "test",
                              .isa = "test",
                              .tune = "generic",
                              .vector_lanes = 8,
                              .vector_registers = 16,
                              .fma = true,
                              .l1_bytes = 32768,
                              .l2_bytes = 1048576};

static int compare_names(const void *a, const void *b) { return strcmp(a, b); }

static size_t list_examples(Arena *arena, const void *names[EXAMPLES_MAX]) {
  const void *spare[EXAMPLES_MAX];
  size_t count = 0;
  DIR *folder = opendir(KILN_SOURCE_DIR "/examples");
  assert_non_null(folder);
  for (struct dirent *entry; (entry = readdir(folder)) && count < EXAMPLES_MAX;) {
    size_t length = strlen(entry->d_name);
    if (length > 5 && !strcmp(entry->d_name + length - 5, ".json")) names[count++] = arena_string(arena, entry->d_name);
  }
  closedir(folder);
  sort_pointers(names, spare, count, compare_names);
  return count;
}

static double noise(uint64_t index) {
  uint64_t value = (index + 1) * UINT64_C(0x9e3779b97f4a7c15);
  value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  return (double)(value >> 40) / (1 << 24);
}

/* Values as of a trained model: statistics and biases that are not trivial. */
static TensorList make_parameters(const Graph *graph, Arena *arena, int64_t *out_count) {
  TensorList list;
  weights_initialise(graph, 1, arena, &list);
  *out_count = 0;
  for (size_t i = 0; i < list.count; i++) {
    Tensor *tensor = &list.items[i];
    *out_count += tensor_elements(tensor);
    if (tensor->shape.rank != 1) continue;
    for (int64_t k = 0; k < tensor_elements(tensor); k++) tensor_set(tensor, k, 0.5 + noise((uint64_t)(k * 31) + i));
  }
  return list;
}

static TensorList make_inputs(const Graph *graph, Arena *arena) {
  TensorList list = {arena_array(arena, graph->input_count, Tensor), graph->input_count};
  for (size_t i = 0; i < list.count; i++) {
    Shape shape = graph->inputs[i].shape;
    if (shape_batched(&shape)) shape.dims[0] = 1;
    list.items[i] = tensor_create(arena, graph->inputs[i].name, graph->inputs[i].dtype, shape);
    for (int64_t k = 0; k < tensor_elements(&list.items[i]); k++) tensor_set(&list.items[i], k, noise((uint64_t)k));
  }
  return list;
}

static Graph *read_example(Fixture *fixture, const char *path) {
  Graph *graph = NULL;
  if (!description_read(path, NULL, fixture->arena, fixture->diag, &graph))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  Shape shape = graph->inputs[0].shape;
  if (shape.rank != 4 || shape.dims[2] <= 64) return graph;
  shape.dims[2] = shape.dims[3] = PICTURE;
  const ShapeOverride change = {graph->inputs[0].name, shape};
  const ImportOptions options = {&change, 1};
  if (!description_read(path, &options, fixture->arena, fixture->diag, &graph))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return graph;
}

static void check_example(const char *name) {
  void *state = NULL;
  assert_int_equal(fixture_setup(&state), 0);
  Fixture *fixture = state;
  Graph *graph = read_example(fixture, arena_format(fixture->arena, "%s/examples/%s", KILN_SOURCE_DIR, name));
  Graph *original = graph_clone(graph, fixture->arena);
  PassOptions options = {.target = &target};
  PipelineOptions pipeline = {.verify = true};
  Plan *plan = NULL;
  if (!pipeline_run(graph, &options, &pipeline, fixture->diag, &plan))
    fail_msg("%s: %s", name, diag_text(fixture->diag, fixture->arena));
  check_plan(graph, plan, fixture->arena);

  int64_t count;
  TensorList parameters = make_parameters(original, fixture->arena, &count);
  print_message("%-28s %4zu nodes, %3zu kernels a run, %lld bytes of workspace an image\n", name, original->node_count,
                plan->kernel_count - plan->prepare_count, (long long)plan->workspace_per_batch);
  if (count <= PARAMETERS_EVALUATED) {
    TensorList inputs = make_inputs(original, fixture->arena);
    EvalResult expected, found;
    if (!graph_eval(original, &inputs, &parameters, fixture->arena, fixture->diag, &expected) ||
        !graph_eval(graph, &inputs, &parameters, fixture->arena, fixture->diag, &found))
      fail_msg("%s: %s", name, diag_text(fixture->diag, fixture->arena));
    check_result(graph, original, &expected, &found, name, 0);
  }
  assert_int_equal(fixture_teardown(&state), 0);
}

static void examples_keep_their_values(void **state) {
  Fixture *fixture = *state;
  const void *names[EXAMPLES_MAX];
  size_t count = list_examples(fixture->arena, names);
  assert_true(count > 0);
  for (size_t i = 0; i < count; i++) check_example(names[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {fixture_test(examples_keep_their_values)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
