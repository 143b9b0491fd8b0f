/* The descriptions under examples/: parameter names and totals, shapes, and, where the reference tables are at hand,
 * every row of them. */
#include <ctype.h>

#include "base/file.h"
#include "description.h"
#include "support.h"

static Graph *read_example(Fixture *fixture, const char *name) {
  const char *path = arena_format(fixture->arena, KILN_SOURCE_DIR "/examples/%s.json", name);
  Graph *graph = NULL;
  if (!description_read(path, NULL, fixture->arena, fixture->diag, &graph)) {
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  }
  check_messages(fixture, "");
  assert_string_equal(graph->name, name);
  return graph;
}

static int64_t elements(const Shape *shape) {
  int64_t count = 0;
  assert_true(shape_elements(shape, 1, &count));
  return count;
}

static const char *shape_string(Fixture *fixture, const Shape *shape) {
  Text text;
  text_init(&text, fixture->arena);
  shape_print(&text, shape);
  return text.data;
}

typedef struct Example {
  const char *name;
  int64_t parameters, trainable;
  const char *input, *output;
  const char *names[8]; /* some parameters with their shapes */
} Example;

/* Totals of the torchvision networks: https://pytorch.org/vision/stable/models.html */
static const Example examples[] = {
    {"simple_net", 23581, 23581, "N,784", "N,1", {"0.weight 30,784", "2.bias 1"}},
    {"broken_cnn", 571, 571, "N,1,28,28", "N,1,28,28", {"0.weight 30,1,3,3", "2.weight 1,30,3,3"}},
    {"simple_cnn2", 6722, 6722, "N,1,28,28", "N,2", {"0.0.weight 4,1,3,3", "4.0.bias 2"}},
    {"simple_cnn10", 30282, 30282, "N,1,28,28", "N,10", {"0.0.weight 8,1,5,5", "4.0.weight 10,64,3,3"}},
    {"simple_cnn10_bn",
     30542,
     30542,
     "N,1,28,28",
     "N,10",
     {"0.0.weight 8,1,5,5", "0.0.bias 8", "0.1.weight 8", "0.1.running_mean 8", "4.0.weight 10,64,3,3",
      "4.1.running_var 10"}},
    {"resnet34_pets",
     21831599,
     563951,
     "N,3,352,352",
     "N,37",
     {"conv1.weight 64,3,7,7", "bn1.running_mean 64", "layer1.0.conv1.weight 64,64,3,3",
      "layer2.0.downsample.0.weight 128,64,1,1", "layer4.2.bn2.bias 512", "head.fc1.weight 512,1024",
      "head.bn_final.weight 37"}},
    {"resnet50_products",
     25637484,
     2182572,
     "N,3,300,300",
     "N,44",
     {"conv1.weight 64,3,7,7", "layer1.0.downsample.0.weight 256,64,1,1", "layer3.5.conv3.weight 1024,256,1,1",
      "head.fc2.weight 44,512"}},
    {"edges_rgb", 27, 27, "N,3,352,352", "N,1,350,350", {"edge.weight 1,3,3,3"}},
    {"edges_rgb2", 27, 27, "N,3,352,352", "N,1,350,350", {"edge.weight 1,3,3,3"}},
    {"edges_digit", 54, 54, "N,1,28,28", "N,6,26,26", {"edges.weight 6,1,3,3"}},
    {"resnet18", 11689512, 11689512, "N,3,224,224", "N,1000", {"layer2.0.downsample.1.bias 128", "fc.weight 1000,512"}},
    {"resnet34", 21797672, 21797672, "N,3,224,224", "N,1000", {"layer3.5.conv2.weight 256,256,3,3", "fc.bias 1000"}},
    {"resnet50",
     25557032,
     25557032,
     "N,3,224,224",
     "N,1000",
     {"layer1.0.conv1.weight 64,64,1,1", "layer1.0.downsample.1.running_var 256", "layer4.0.conv2.weight 512,512,3,3",
      "fc.weight 1000,2048"}},
    {"vgg11_bn",
     132868840,
     132868840,
     "N,3,224,224",
     "N,1000",
     {"features.0.weight 64,3,3,3", "features.0.bias 64", "features.25.weight 512,512,3,3",
      "features.26.running_mean 512", "classifier.0.weight 4096,25088", "classifier.6.weight 1000,4096"}},
    {"squeezenet1_1",
     1235496,
     1235496,
     "N,3,224,224",
     "N,1000",
     {"features.0.weight 64,3,3,3", "features.3.squeeze.weight 16,64,1,1", "features.7.expand1x1.bias 128",
      "features.12.expand3x3.weight 256,64,3,3", "classifier.1.weight 1000,512,1,1"}},
    {"mobilenet_v2",
     3504872,
     3504872,
     "N,3,224,224",
     "N,1000",
     {"features.0.0.weight 32,3,3,3", "features.1.conv.0.0.weight 32,1,3,3", "features.1.conv.1.weight 16,32,1,1",
      "features.1.conv.2.running_mean 16", "features.2.conv.0.0.weight 96,16,1,1",
      "features.17.conv.2.weight 320,960,1,1", "features.18.1.bias 1280", "classifier.1.weight 1000,1280"}},
};

static bool has_parameter(Fixture *fixture, const Graph *graph, const char *expected) {
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    const char *shape = shape_string(fixture, &parameter->shape);
    if (strcmp(arena_format(fixture->arena, "%s %s", parameter->name, shape), expected) == 0) return true;
  }
  return false;
}

static void networks_have_their_parameters(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
    const Example *example = &examples[i];
    const Graph *graph = read_example(fixture, example->name);
    int64_t all = 0, trainable = 0;
    for (size_t k = 0; k < graph->parameter_count; k++) {
      const Parameter *parameter = &graph->parameters[k];
      if (!parameter->buffer) all += elements(&parameter->shape);
      if (parameter->trainable) trainable += elements(&parameter->shape);
    }
    assert_int_equal(all, example->parameters);
    assert_int_equal(trainable, example->trainable);
    assert_string_equal(shape_string(fixture, &graph->inputs[0].shape), example->input);
    assert_string_equal(shape_string(fixture, &graph->outputs[0].node->shape), example->output);
    for (int k = 0; k < 8 && example->names[k]; k++) {
      if (!has_parameter(fixture, graph, example->names[k])) fail_msg("%s: no %s", example->name, example->names[k]);
    }
  }
}

static int64_t layer_parameters(const Graph *graph, size_t layer, bool *out_trainable) {
  int64_t count = 0;
  *out_trainable = false;
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    if (parameter->layer != layer || parameter->buffer) continue;
    count += elements(&parameter->shape);
    *out_trainable |= parameter->trainable;
  }
  return count;
}

static void simple_cnn2_has_its_layers(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = read_example(fixture, "simple_cnn2");
  static const int64_t counts[] = {40, 296, 1168, 4640, 578}, sizes[] = {14, 7, 4, 2, 1};
  size_t found = 0;
  for (size_t i = 0; i < graph->layer_count; i++) {
    bool trainable;
    const Node *node = graph->layers[i].node;
    if (node->op != OP_CONV2D) continue;
    assert_true(found < 5);
    assert_int_equal(layer_parameters(graph, i, &trainable), counts[found]);
    assert_int_equal(node->shape.dims[2], sizes[found]);
    assert_int_equal(node->shape.dims[3], sizes[found++]);
  }
  assert_int_equal(found, 5);
}

static void edge_kernels_are_right(void **state) {
  Fixture *fixture = *state;
  static const struct {
    const char *name;
    double rows[9];
  } kernels[] = {{"edges_rgb", {0, -5.0 / 3, 1, -5.0 / 3, -5.0 / 3, 1, 1, 1, 1}},
                 {"edges_rgb2", {12, 2, 1, 2, 2, 1, 1, 1, 1}}};
  for (int i = 0; i < 2; i++) {
    const Tensor *value = read_example(fixture, kernels[i].name)->parameters[0].value;
    for (int k = 0; k < 27; k++) assert_true((float)tensor_get(value, k) == (float)(kernels[i].rows[k % 9] / 6));
  }
  const Tensor *digit = read_example(fixture, "edges_digit")->parameters[0].value;
  static const double patches[2][9] = {{0, 0, 0, 142, 155, 246, 254, 254, 254}, {254, 75, 0, 254, 153, 0, 247, 53, 0}};
  static const double expected[2] = {762, -29};
  for (int i = 0; i < 2; i++) {
    double sum = 0;
    for (int k = 0; k < 9; k++) sum += tensor_get(digit, 18 + k) * patches[i][k];
    assert_true(sum == expected[i]);
  }
}

static void the_body_has_a_name(void **state) {
  Fixture *fixture = *state;
  const Graph *pets = read_example(fixture, "resnet34_pets"), *products = read_example(fixture, "resnet50_products");
  assert_string_equal(shape_string(fixture, &graph_find_value(pets, "body")->shape), "N,512,11,11");
  assert_string_equal(shape_string(fixture, &graph_find_value(products, "body")->shape), "N,2048,10,10");
  assert_int_equal(pets->group_count, 3);
  const Node *pool = graph_find_value(pets, "head.pool");
  assert_int_equal(pool->inputs[0]->op, OP_ADAPTIVE_MAX_POOL2D);
  assert_int_equal(pool->inputs[1]->op, OP_ADAPTIVE_AVG_POOL2D);
  assert_true(graph_find_value(pets, "head.bn_final")->attrs.momentum == 0.01);
  assert_true(graph_find_value(pets, "head.bn1")->attrs.momentum == 0.1);
}

static void resnets_take_other_sizes(void **state) {
  Fixture *fixture = *state;
  static const char *const names[] = {"resnet34_pets", "resnet50_products", "resnet18"};
  const ShapeOverride change = {"image", {.rank = 4, .dims = {2, 3, 64, 96}}};
  const ImportOptions options = {&change, 1};
  for (int i = 0; i < 3; i++) {
    Graph *graph;
    const char *path = arena_format(fixture->arena, KILN_SOURCE_DIR "/examples/%s.json", names[i]);
    assert_true(description_read(path, &options, fixture->arena, fixture->diag, &graph));
    assert_int_equal(graph->outputs[0].node->shape.dims[0], 2);
    assert_string_equal(shape_string(fixture, &graph_find_value(graph, "layer4")->shape),
                        i == 1 ? "2,2048,2,3" : "2,512,2,3");
  }
}

/* --- reference tables -------------------------------------------------------------------------------- */

typedef struct Row {
  const char *kind, *output, *parameters, *trainable;
} Row;

typedef struct Rows {
  Row items[256];
  size_t count;
} Rows;

static const char *module_name(const Node *node) {
  switch (node->op) {
    case OP_CONV2D:
      return "Conv2d";
    case OP_BATCH_NORM:
      return node->shape.rank == 4 ? "BatchNorm2d" : "BatchNorm1d";
    case OP_RELU:
      return "ReLU";
    case OP_MAX_POOL2D:
      return "MaxPool2d";
    case OP_ADAPTIVE_AVG_POOL2D:
      return "AdaptiveAvgPool2d";
    case OP_ADAPTIVE_MAX_POOL2D:
      return "AdaptiveMaxPool2d";
    case OP_FLATTEN:
      return "Flatten";
    case OP_DROPOUT:
      return "Dropout";
    case OP_LINEAR:
      return "Linear";
    default:
      return NULL; /* sums and concatenations are no modules there */
  }
}

static const char *row_output(Fixture *fixture, const Shape *shape) {
  Text text;
  text_init(&text, fixture->arena);
  for (int32_t i = 1; i < shape->rank; i++) text_format(&text, "%s%lld", i > 1 ? "x" : "", (long long)shape->dims[i]);
  return text.data;
}

/* In a residual block one ReLU module serves all activations: only the last one, of the sum, is its row. */
static bool is_reused(const Node *node) {
  const bool residual = strncmp(node->name, "layer", 5) == 0 && isdigit((unsigned char)node->name[5]);
  return node->op == OP_RELU && residual && node->inputs[0]->op != OP_ADD;
}

static void model_rows(Fixture *fixture, const Graph *graph, Rows *with_parameters, Rows *without) {
  with_parameters->count = without->count = 0;
  for (size_t i = 0; i < graph->layer_count; i++) {
    const Node *node = graph->layers[i].node;
    const char *kind = module_name(node);
    bool trainable;
    const int64_t count = layer_parameters(graph, i, &trainable);
    if (!kind || is_reused(node)) continue;
    Rows *rows = count ? with_parameters : without;
    assert_true(rows->count < 256);
    rows->items[rows->count++] =
        (Row){kind, row_output(fixture, &node->shape), arena_format(fixture->arena, "%lld", (long long)count),
              trainable ? "yes" : "no"};
  }
}

static bool table_rows(Fixture *fixture, const char *file, Rows *with_parameters, Rows *without) {
  const char *folder = getenv("KILN_SHARED");
  const char *path =
      arena_format(fixture->arena, "%s/expected/%s", folder ? folder : KILN_SOURCE_DIR "/../shared", file);
  void *data;
  size_t size;
  with_parameters->count = without->count = 0;
  if (access(path, R_OK) != 0) return false;
  assert_true(file_read(path, 1 << 20, fixture->arena, fixture->diag, &data, &size));
  char *lines = NULL, *fields = NULL;
  strtok_r(data, "\n", &lines); /* the heading */
  for (char *line = strtok_r(NULL, "\n", &lines); line; line = strtok_r(NULL, "\n", &lines)) {
    const Row row = {strtok_r(line, "\t", &fields), strtok_r(NULL, "\t", &fields), strtok_r(NULL, "\t", &fields),
                     strtok_r(NULL, "\t", &fields)};
    Rows *rows = strcmp(row.parameters, "0") == 0 ? without : with_parameters;
    assert_true(row.trainable && rows->count < 256);
    rows->items[rows->count++] = row;
  }
  return true;
}

static void compare_rows(const Rows *found, const Rows *expected) {
  for (size_t i = 0; i < found->count && i < expected->count; i++) {
    assert_string_equal(found->items[i].kind, expected->items[i].kind);
    assert_string_equal(found->items[i].output, expected->items[i].output);
    assert_string_equal(found->items[i].parameters, expected->items[i].parameters);
    assert_string_equal(found->items[i].trainable, expected->items[i].trainable);
  }
  assert_int_equal(found->count, expected->count);
}

/* Rows with parameters agree one by one and in order. So do those without, taken by themselves: a table lists a reused
 * module where it was defined, which may be before or after its last use. */
static void rows_equal_the_tables(void **state) {
  Fixture *fixture = *state;
  static const char *const pairs[][2] = {{"resnet34_pets", "resnet34_pets37_352.tsv"},
                                         {"resnet50_products", "resnet50_products44_300.tsv"}};
  for (int i = 0; i < 2; i++) {
    Rows with_parameters, without, expected_with, expected_without;
    if (!table_rows(fixture, pairs[i][1], &expected_with, &expected_without)) skip();
    model_rows(fixture, read_example(fixture, pairs[i][0]), &with_parameters, &without);
    compare_rows(&with_parameters, &expected_with);
    compare_rows(&without, &expected_without);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(networks_have_their_parameters), fixture_test(simple_cnn2_has_its_layers),
      fixture_test(edge_kernels_are_right),         fixture_test(the_body_has_a_name),
      fixture_test(resnets_take_other_sizes),       fixture_test(rows_equal_the_tables),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
