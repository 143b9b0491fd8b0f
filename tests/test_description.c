/* frontend/description: every feature of format 1, every kind of mistake with its whole message, and size. */
#include "description.h"

#include <pthread.h>
#include <time.h>

#include "base/file.h"
#include "support.h"

static bool parse(Fixture *fixture, const char *text, Graph **out_graph) {
  clear_messages(fixture);
  return description_parse("m.json", text, strlen(text), NULL, fixture->arena, fixture->diag, out_graph);
}

static Graph *must_parse(Fixture *fixture, const char *text) {
  Graph *graph = NULL;
  if (!parse(fixture, text, &graph)) fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  check_messages(fixture, "");
  return graph;
}

static void check_value(const Graph *graph, const char *name, OpCode op, const char *shape, Arena *arena) {
  const Node *node = graph_find_value(graph, name);
  if (!node) fail_msg("no value '%s'", name);
  Text text;
  text_init(&text, arena);
  shape_print(&text, &node->shape);
  assert_string_equal(text.data, shape);
  assert_string_equal(op_info(node->op)->name, op_info(op)->name);
}

static const char *layer_names(const Graph *graph, Arena *arena) {
  Text text;
  text_init(&text, arena);
  for (size_t i = 0; i < graph->layer_count; i++) text_format(&text, "%s%s", i ? " " : "", graph->layers[i].name);
  return text.data;
}

static const char *parameter_names(const Graph *graph, Arena *arena) {
  Text text;
  text_init(&text, arena);
  for (size_t i = 0; i < graph->parameter_count; i++) {
    text_format(&text, "%s%s[", i ? " " : "", graph->parameters[i].name);
    shape_print(&text, &graph->parameters[i].shape);
    text_add(&text, "]");
  }
  return text.data;
}

/* Text in single quotes is easier to read in C: ' stands for ". */
static const char *quoted(Fixture *fixture, const char *text) {
  char *copy = arena_string(fixture->arena, text);
  for (char *at = copy; *at; at++) {
    if (*at == '\'') *at = '"';
  }
  return copy;
}

#define HEAD "{'kiln': 1, 'name': 'm', 'inputs': {'x': {'shape': ['N', 3, 8, 8]}}, "

static void layers_are_named_and_chained(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = must_parse(
      fixture,
      quoted(fixture, HEAD
             "'layers': ["
             "{'op': 'conv2d', 'name': 'conv', 'out_channels': 4, 'kernel': [3, 1], 'padding': [1, 0]},"
             "{'op': 'batch_norm', 'name': 'bn', 'momentum': 0.01, 'eps': 0.001}, {'op': 'relu'},"
             "{'op': 'max_pool2d', 'kernel': 2}, {'op': 'linear', 'in': '3', 'out_features': 5, 'bias': false}]}"));
  assert_string_equal(layer_names(graph, fixture->arena), "conv bn 2 3 4");
  assert_string_equal(parameter_names(graph, fixture->arena),
                      "conv.weight[4,3,3,1] conv.bias[4] bn.weight[4] bn.bias[4] bn.running_mean[4] "
                      "bn.running_var[4] 4.weight[5,4]");
  check_value(graph, "conv", OP_CONV2D, "N,4,8,8", fixture->arena);
  check_value(graph, "3", OP_MAX_POOL2D, "N,4,4,4", fixture->arena);
  const Node *bn = graph_find_value(graph, "bn"), *pool = graph_find_value(graph, "3");
  assert_true(bn->attrs.momentum == 0.01 && bn->attrs.eps == 0.001);
  assert_int_equal(pool->attrs.stride.values[1], 2);
  assert_string_equal(bn->path, "layers[1] 'bn'");
  assert_int_equal(graph->output_count, 1);
  assert_string_equal(graph->outputs[0].name, "4");
  assert_int_equal(graph->max_batch, 1);
}

static void padding_has_all_its_forms(void **state) {
  Fixture *fixture = *state;
  static const struct {
    const char *padding;
    int64_t sides[4];
  } forms[] = {{"2", {2, 2, 2, 2}},         {"[1, 2]", {1, 2, 1, 2}}, {"[1, 2, 3, 4]", {1, 2, 3, 4}},
               {"'valid'", {0, 0, 0, 0}},   {"'same'", {1, 2, 2, 2}}, {"'1+1'", {2, 2, 2, 2}},
               {"['2-1', 0]", {1, 0, 1, 0}}};
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    const char *text = arena_format(fixture->arena,
                                    HEAD
                                    "'layers': [{'op': 'conv2d', 'out_channels': 1, "
                                    "'kernel': [4, 5], 'padding': %s}]}",
                                    forms[i].padding);
    const Graph *graph = must_parse(fixture, quoted(fixture, text));
    assert_memory_equal(graph_find_value(graph, "0")->attrs.padding.values, forms[i].sides, sizeof forms[i].sides);
  }
}

static void blocks_repeat_and_choose(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = must_parse(
      fixture,
      quoted(fixture,
             HEAD "'blocks': {"
                  "'unit': {'params': {'out': null, 'wide': false}, 'layers': ["
                  "  {'op': 'conv2d', 'name': 'conv', 'out_channels': '$out*(1+$wide)', 'kernel': 1, 'bias': '!$wide'},"
                  "  {'op': 'relu', 'if': '$wide && $out > 2'},"
                  "  {'op': 'identity', 'name': 'side', 'in': '@in', 'if': false},"
                  "  {'op': 'concat', 'name': 'both', 'in': ['conv', 'side']}]},"
                  "'pair': {'layers': [{'block': 'unit', 'with': {'out': 2}}, {'block': 'unit', 'with': {'out': 3, "
                  "'wide': true}}]}},"
                  "'layers': [{'block': 'pair', 'name': 'p'},"
                  "  {'block': 'unit', 'name': 'r', 'repeat': 2, 'with': {'out': '$index+1'}},"
                  "  {'op': 'relu', 'repeat': 2}, {'op': 'tanh', 'name': 'none', 'repeat': 0},"
                  "  {'op': 'add', 'in': ['none', '3']}, {'op': 'relu', 'in': 'p.1.both'}]}"));
  assert_string_equal(layer_names(graph, fixture->arena),
                      "p.0.conv p.0.both p.1.conv p.1.1 p.1.both r.0.conv r.0.both r.1.conv r.1.both 3 4 5 6");
  check_value(graph, "p.0", OP_CONCAT, "N,5,8,8", fixture->arena);
  check_value(graph, "p", OP_CONCAT, "N,11,8,8", fixture->arena);
  check_value(graph, "r.0", OP_CONCAT, "N,12,8,8", fixture->arena);
  check_value(graph, "r", OP_CONCAT, "N,14,8,8", fixture->arena);
  const Node *sum = graph_find_value(graph, "5"), *last = graph_find_value(graph, "4");
  assert_ptr_equal(sum->inputs[0], last);
  assert_ptr_equal(sum->inputs[1], graph_find_value(graph, "3"));
  assert_ptr_equal(graph_find_value(graph, "r.0.both")->inputs[1], graph_find_value(graph, "p"));
  assert_ptr_equal(graph_find_value(graph, "6")->inputs[0], graph_find_value(graph, "p"));
  assert_string_equal(graph_find_value(graph, "p.1.conv")->path, "blocks.unit.layers[0] 'p.1.conv'");
  assert_true(graph_find_value(graph, "p.1.conv")->attrs.bias); /* what only the description has is reset */
  assert_int_equal(graph_find_value(graph, "p.1.conv")->input_count, 2);
}

static void blocks_take_several_inputs(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = must_parse(
      fixture,
      quoted(fixture,
             HEAD "'blocks': {"
                  "'join': {'layers': [{'op': 'relu', 'in': '@in.1'}, {'op': 'concat', 'in': ['@in.0', '0', 'x']}]}},"
                  "'layers': [{'op': 'relu', 'name': 'a'}, {'block': 'join', 'name': 'j', 'in': ['x', 'a']}]}"));
  const Node *join = graph_find_value(graph, "j");
  assert_string_equal(join->inputs[0]->name, "x");
  assert_string_equal(join->inputs[1]->name, "j.0");
  assert_string_equal(join->inputs[2]->name, "x");
}

static void sections_are_read(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = must_parse(
      fixture,
      quoted(fixture,
             "{'kiln': 1, 'name': 'm_1', 'comment': ['any', 1], 'inputs': {"
             "'image': {'dtype': 'f32', 'shape': ['N', 2, 4, 4], 'preprocess': {'mean': [0.5, 0.25], 'std': [1, 2], "
             "'resize': 9}},"
             "'index': {'dtype': 'i64', 'shape': [3], 'comment': null}},"
             "'layers': [{'op': 'conv2d', 'name': 'c', 'in': 'image', 'out_channels': 1, 'kernel': 3, 'bias': false},"
             "  {'op': 'batch_norm', 'name': 'n'}, {'op': 'mul', 'name': 's', 'in': ['n', 'half']}, {'op': 'flatten'}],"
             "'weights': {'half': {'shape': [1], 'data': [0.5]}, 'c.weight': {'shape': [1, 2, 3, 3],"
             "  'data': [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18.5]}},"
             "'aliases': {'body': 'n'}, 'outputs': ['s', {'features': 'body', 'flat': '3'}],"
             "'groups': [{'name': 'a', 'layers': ['c', 'n'], 'frozen': true}, {'name': 'b', 'layers': ['*']}],"
             "'hooks': [{'value': 'body'}, {'value': '?', 'kind': 'gradient', 'action': 'call'}],"
             "'train': {'loss': 'mse', 'metrics': []}, 'labels': ['one', 'two', 'three', 'four'], 'max_batch': 32}"));
  assert_string_equal(graph->name, "m_1");
  assert_int_equal(graph->input_count, 2);
  assert_int_equal(graph->inputs[0].preprocess.mean.count, 2);
  assert_true(graph->inputs[0].preprocess.std.values[1] == 2);
  assert_int_equal(graph->inputs[0].preprocess.resize, 9);
  assert_int_equal(graph->inputs[1].dtype, DTYPE_I64);
  assert_int_equal(graph->max_batch, 32);
  assert_int_equal(graph->output_count, 3);
  assert_string_equal(graph->outputs[1].name, "features");
  assert_string_equal(graph->outputs[1].node->name, "n");
  assert_int_equal(graph->group_count, 2);
  assert_int_equal(graph->hook_count, 2);
  assert_int_equal(graph->hooks[1].kind, HOOK_GRADIENT);
  assert_int_equal(graph->hooks[1].action, HOOK_CALL);
  assert_int_equal(graph->label_count, 4);
  assert_string_equal(graph->labels[3], "four");
  const Parameter *filter = &graph->parameters[0];
  assert_string_equal(filter->name, "c.weight");
  assert_true(filter->inline_value && tensor_get(filter->value, 17) == 18.5);
  assert_false(filter->trainable);
  assert_true(graph->layers[0].frozen && !graph->layers[1].frozen);
  assert_true(graph->parameters[1].trainable); /* a batch norm of a frozen group */
  const Node *constant = graph_find_value(graph, "s")->inputs[1];
  const Parameter *half = &graph->parameters[constant->port];
  assert_true(half->buffer && !half->trainable && half->layer == LAYER_NONE && tensor_get(half->value, 0) == 0.5);
}

static void labels_come_from_a_file(void **state) {
  Fixture *fixture = *state;
  const char *text = quoted(fixture, HEAD
                            "'layers': [{'op': 'flatten'}, {'op': 'linear', 'out_features': 3}],"
                            "'labels': 'names.txt'}");
  const char *path = fixture_path(fixture, "m.json");
  Graph *graph;
  assert_false(description_parse(path, text, strlen(text), NULL, fixture->arena, fixture->diag, &graph));
  check_message_part(fixture, "note: labels are to be read from this file");
  clear_messages(fixture);
  const FilePiece piece = {"a cat\r\ndog\nb\xc3\xa4r", 15};
  assert_true(file_write(fixture_path(fixture, "names.txt"), &piece, 1, fixture->diag));
  assert_true(description_parse(path, text, strlen(text), NULL, fixture->arena, fixture->diag, &graph));
  assert_int_equal(graph->label_count, 3);
  assert_string_equal(graph->labels[0], "a cat");
  assert_string_equal(graph->labels[2], "b\xc3\xa4r");
}

static void shapes_are_overridden(void **state) {
  Fixture *fixture = *state;
  const char *text = quoted(fixture, HEAD "'layers': [{'op': 'conv2d', 'out_channels': 2, 'kernel': 3}]}");
  ShapeOverride change = {"x", {.rank = 4, .dims = {5, 1, 9, 7}}};
  const ImportOptions options = {&change, 1};
  Graph *graph;
  assert_true(description_parse("m.json", text, strlen(text), &options, fixture->arena, fixture->diag, &graph));
  check_value(graph, "0", OP_CONV2D, "5,2,7,5", fixture->arena);
  assert_string_equal(parameter_names(graph, fixture->arena), "0.weight[2,1,3,3] 0.bias[2]");
  change.input = "y";
  assert_false(description_parse("m.json", text, strlen(text), &options, fixture->arena, fixture->diag, &graph));
  check_message_part(fixture, "the model has no input 'y'");
}

typedef struct Mistake {
  const char *text, *messages;
} Mistake;

static void mistakes_are_reported(void **state) {
  Fixture *fixture = *state;
  static const Mistake mistakes[] = {
      /* the file as a whole */
      {"[]", "m.json:1:1: error: a description is an object, found an array\n"},
      {"{\"kiln\": 2, \"name\": \"m\"}",
       "m.json:1:10: error: kiln: format 2 is not known, this version reads format 1\n"},
      {"{\"name\": \"m\"}", "m.json:1:1: error: missing key 'kiln': a description starts with {\"kiln\": 1\n"},
      {"{\"kiln\": 1, \"kiln\": 1}",
       "m.json:1:13: error: the key 'kiln' stands here a second time\n"
       "m.json:1:2: note: the first is here\n"},
      {"{\"kiln\": 1, \"name\": \"1m\", \"inputs\": {}, \"layers\": []}",
       "m.json:1:21: error: name: '1m' cannot begin the names of C functions: letters, digits and '_', at most 100\n"
       "m.json:1:37: error: inputs: a model needs at least one input\n"
       "m.json:1:51: error: layers: the list is empty\n"},
      /* unknown keys and ops, with the nearest name */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"conv2d\", \"name\": \"c\", \"out_chanels\": 4, \"kernel_size\": 3, \"out_channels\": "
       "4, \"kernel\": 3}]}",
       "m.json:2:43: error: layers[0] 'c': unknown key 'out_chanels' of conv2d; did you mean 'out_channels'?\n"
       "m.json:2:61: error: layers[0] 'c': unknown key 'kernel_size' of conv2d; did you mean 'kernel'?\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"conv2\", \"name\": \"c\"}, {\"op\": \"relu\"}],\n"
       " \"output\": [\"c\"]}",
       "m.json:3:2: error: unknown key 'output'; did you mean 'outputs'?\n"
       "m.json:2:20: error: layers[0] 'c': unknown op 'conv2'; did you mean 'conv2d'?\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"convert\"}]}",
       "m.json:2:20: error: layers[0]: unknown op 'convert'\n"},
      /* wrong types and values, all in one run */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"conv2d\", \"out_channels\": 4.5, \"kernel\": [3], \"stride\": 0,\n"
       "  \"padding\": \"big\", \"bias\": 1, \"groups\": true, \"padding_mode\": \"mirror\"},\n"
       " {\"op\": 3}, {\"op\": \"relu\", \"in\": 4}, 7], \"max_batch\": 0}",
       "m.json:2:46: error: layers[0]: out_channels: expected an integer from 1 to 2147483647, found 4.5\n"
       "m.json:2:61: error: layers[0]: kernel: expected an integer or [height, width], found a list of 1\n"
       "m.json:2:76: error: layers[0]: stride: expected an integer from 1 to 65535, found 0\n"
       "m.json:3:15: error: layers[0]: padding: expected a number, '$name' or '(', found 'big'\n"
       "m.json:3:29: error: layers[0]: bias: expected true, false or an expression, found a number\n"
       "m.json:3:42: error: layers[0]: groups: expected an integer or an expression, found true\n"
       "m.json:3:64: error: layers[0]: padding_mode: expected zeros, reflect, replicate, border or reflection, found "
       "'mirror'\n"
       "m.json:4:9: error: layers[1]: op: expected a string, found a number\n"
       "m.json:4:34: error: layers[2]: in: expected a name or a list of names, found a number\n"
       "m.json:4:38: error: layers[3]: expected an object, found a number\n"
       "m.json:4:55: error: max_batch: expected an integer from 1 to 1048576, found 0\n"},
      /* missing keys */
      {"{\"kiln\": 1, \"layers\": [{\"op\": \"conv2d\"}, {\"name\": \"q\"}, {\"op\": \"relu\", \"block\": \"b\"}]}",
       "m.json:1:1: error: missing key 'name'\n"
       "m.json:1:1: error: missing key 'inputs'\n"
       "m.json:1:24: error: layers[0]: conv2d needs 'kernel'\n"
       "m.json:1:24: error: layers[0]: conv2d needs 'out_channels'\n"
       "m.json:1:42: error: layers[1] 'q': missing key 'op' (or 'block')\n"
       "m.json:1:72: error: layers[2]: has both 'op' and 'block'\n"},
      /* names */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"relu\", \"name\": \"a\"}, {\"op\": \"relu\", \"name\": \"a\"}, {\"op\": \"relu\", "
       "\"name\": \"x\"},\n"
       " {\"op\": \"relu\", \"name\": \"b/c\"}, {\"op\": \"relu\", \"name\": \"\"}]}",
       "m.json:2:65: error: layers[1] 'a': the name is taken\n"
       "m.json:2:36: note: the first is layers[0] 'a'\n"
       "m.json:3:25: error: layers[3]: name: 'b/c' is not a name: it may have letters, digits, '_', and inside also "
       "'-' and single '.'\n"
       "m.json:3:56: error: layers[4]: name: the name is empty\n"
       "m.json:2:94: error: layers[2] 'x': the name 'x' is taken\n"
       "m.json:1:42: note: the first is this input\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"batch_norm\", \"name\": \"a\"}, {\"op\": \"relu\", \"name\": \"a.weight\"}]}",
       "m.json:2:71: error: layers[1] 'a.weight': the name 'a.weight' is taken\n"
       "m.json:2:13: note: the first is this parameter\n"},
      /* references */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"relu\", \"name\": \"first\"}, {\"op\": \"add\", \"in\": [\"first\", \"frist\"]}]}",
       "m.json:2:76: error: layers[1]: in: no value is named 'frist'; did you mean 'first'?\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"relu\", \"name\": \"first\"}], \"outputs\": [\"fist\"], \"aliases\": {\"a\": \"b\"}}",
       "m.json:2:85: error: aliases.a: no value is named 'b'\n"
       "m.json:2:59: error: outputs[0]: no value is named 'fist'; did you mean 'first'?\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"add\", \"name\": \"a\", \"in\": [\"x\", \"a\"]}]}",
       "m.json:2:52: error: layers[0] 'a': in: makes a cycle: a -> a\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"add\", \"name\": \"a\", \"in\": [\"x\", \"c\"]}, {\"op\": \"relu\", \"name\": \"b\", "
       "\"in\": \"a\"},\n"
       " {\"op\": \"relu\", \"name\": \"c\"}]}",
       "m.json:2:52: error: layers[0] 'a': in: makes a cycle: a -> c -> b -> a\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"relu\", \"name\": \"a\", \"in\": \"b\"}, {\"op\": \"relu\", \"name\": \"b\", \"in\": "
       "\"x\"}]}",
       "m.json:2:47: error: layers[0] 'a': in: 'b' stands later (layers[1] 'b'): a layer can only use values before "
       "it\n"},
      /* a forward reference inside a block hides a value outside */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"blocks\": {\"b\": {\"layers\": [{\"op\": \"relu\", \"in\": \"r\"}, {\"op\": \"relu\", \"name\": \"r\", "
       "\"in\": \"@in\"}]}},\n"
       " \"layers\": [{\"op\": \"relu\", \"name\": \"r\"}, {\"block\": \"b\"}]}",
       "m.json:2:51: error: blocks.b.layers[0]: in: 'r' stands later (blocks.b.layers[1] 'r'): a layer can only use "
       "values before it\n"},
      /* '@in' */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"blocks\": {\"b\": {\"layers\": [{\"op\": \"add\", \"in\": [\"@in.0\", \"@in.2\"]}]}, \"d\": {\"layers\": "
       "[{\"op\": \"relu\"}]}},\n"
       " \"layers\": [{\"op\": \"relu\", \"in\": \"@in\"}, {\"block\": \"b\", \"in\": [\"x\", \"x\"]}, {\"block\": "
       "\"d\", \"in\": [\"x\", \"x\"]}]}",
       "m.json:3:34: error: layers[0]: in: '@in' is a block's own input and stands only in blocks\n"
       "m.json:2:60: error: blocks.b.layers[0]: in: there is no '@in.2': the block has 2 inputs\n"
       "m.json:2:90: error: blocks.d.layers[0]: missing key 'in': the block has 2 inputs, '@in.0' to '@in.1'\n"},
      /* numbers of inputs */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"add\", \"name\": \"s\"}, {\"op\": \"conv2d\", \"in\": [\"x\", \"x\"], "
       "\"out_channels\": 1, \"kernel\": 1}]}",
       "m.json:2:13: error: layers[0] 's': add takes 2 inputs, found 1\n"
       "m.json:2:64: error: layers[1] '1': conv2d takes 1 input, found 2\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 2]}, \"y\": {\"shape\": [\"N\", 2]}}, "
       "\"layers\": [{\"op\": \"relu\"}]}",
       "m.json:1:101: error: layers[0]: missing key 'in': the model has 2 inputs\n"},
      /* blocks */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"blocks\": {\"a\": {\"layers\": [{\"block\": \"b\"}]}, \"b\": {\"layers\": [{\"block\": \"a\", \"name\": "
       "\"again\"}]}},\n"
       " \"layers\": [{\"block\": \"a\"}]}",
       "m.json:2:65: error: blocks.b.layers[0] 'again': block 'a' contains itself: a -> b -> a\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"blocks\": {\"b\": {\"params\": {\"out\": null, \"k\": \"3\", \"index\": 1}}, \"e\": {\"layers\": []}, "
       "\"f\": {\"leyers\": 1}},\n"
       " \"layers\": [{\"block\": \"c\"}, {\"op\": \"relu\", \"with\": {}}]}",
       "m.json:2:48: error: blocks.b.params.k: expected an integer, true, false, or null (to be given), found a "
       "string\n"
       "m.json:2:53: error: blocks.b.params: '$index' is the number of a repeated layer and cannot be a parameter\n"
       "m.json:2:94: error: blocks.f: unknown key 'leyers'; did you mean 'layers'?\n"
       "m.json:2:18: error: blocks.b: missing key 'layers'\n"
       "m.json:2:83: error: blocks.e.layers: the list is empty\n"
       "m.json:2:93: error: blocks.f: missing key 'layers'\n"
       "m.json:3:23: error: layers[0]: unknown block 'c'\n"
       "m.json:3:44: error: layers[1]: 'with' is for blocks only\n"},
      /* expressions */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"blocks\": {\"b\": {\"params\": {\"out\": null, \"k\": 3}, \"layers\": [\n"
       "  {\"op\": \"conv2d\", \"out_channels\": \"$uot\", \"kernel\": \"$k/0\", \"padding\": \"$k +* 2\"}]}},\n"
       " \"layers\": [{\"block\": \"b\", \"with\": {\"out\": 4}}, {\"block\": \"b\", \"with\": {\"oot\": 4}},\n"
       "  {\"op\": \"relu\", \"repeat\": \"$index\"}]}",
       "m.json:3:37: error: blocks.b.layers[0]: out_channels: no parameter is named 'uot'; did you mean '$out'?\n"
       "m.json:3:78: error: blocks.b.layers[0]: padding: expected a number, '$name' or '(', found '*'\n"
       "m.json:4:73: error: layers[1]: block 'b' has no parameter 'oot'; did you mean 'out'?\n"
       "m.json:4:72: error: layers[1]: block 'b' needs the parameter 'out'\n"
       "m.json:5:29: error: layers[2]: repeat: '$index': there are no parameters here\n"},
      /* a mistake in a block is reported for its first instance */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"blocks\": {\"b\": {\"params\": {\"k\": 3}, \"layers\": [{\"op\": \"conv2d\", \"out_channels\": \"8/$k\", "
       "\"kernel\": \"$k\"}]}},\n"
       " \"layers\": [{\"block\": \"b\", \"repeat\": 3, \"name\": \"s\", \"with\": {\"k\": \"$index\"}}]}",
       "m.json:2:85: error: blocks.b.layers[0] 's.0.0': out_channels: division by zero\n"
       "m.json:2:101: error: blocks.b.layers[0] 's.0.0': kernel: expected an integer from 1 to 65535, found \"$k\" = "
       "0\n"},
      /* 2^53 + 1 is not a double: cJSON has rounded it */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"blocks\": {\"b\": {\"params\": {\"k\": 9007199254740993}, \"layers\": [{\"op\": \"relu\"}]}},\n"
       " \"layers\": [{\"op\": \"relu\", \"if\": 9007199254740993}, {\"op\": \"add\", \"in\": [\"x\", \"w\"]}],\n"
       " \"weights\": {\"w\": {\"dtype\": \"i64\", \"shape\": [1], \"data\": [-9007199254740993]}}}",
       "m.json:4:59: error: weights.w: data[0]: -9007199254740992 does not fit i64\n"
       "m.json:2:35: error: blocks.b.params.k: expected an integer from -9007199254740991 to 9007199254740991, found "
       "9007199254740992\n"
       "m.json:3:34: error: layers[0]: if: expected an integer from -9007199254740991 to 9007199254740991, found "
       "9007199254740992\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"relu\", \"if\": \"9223372036854775807 + 1\"}, {\"op\": \"relu\", \"repeat\": "
       "\"1/(2-2)\"}, {\"op\": \"relu\", \"repeat\": -1}]}",
       "m.json:2:124: error: layers[2]: repeat: expected an integer from 0 to 1000000, found -1\n"
       "m.json:2:55: error: layers[0] '0': if: the result does not fit 64 bits\n"
       "m.json:2:89: error: layers[1]: repeat: division by zero\n"},
      /* padding */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"conv2d\", \"out_channels\": 2, \"kernel\": 3, \"padding\": \"same\", \"stride\": 2},\n"
       " {\"op\": \"max_pool2d\", \"kernel\": 2, \"padding\": \"same\"}, {\"op\": \"pad\", \"padding\": [1, 2, 3]}]}",
       "m.json:3:47: error: layers[1]: padding: 'same' is for conv2d only\n"
       "m.json:3:81: error: layers[2]: padding: expected an integer, [height, width] or [top, left, bottom, right], "
       "found a list of 3\n"
       "m.json:2:73: error: layers[0] '0': padding 'same' needs stride 1, found [2,2]\n"},
      /* shapes: what depends on a mistake is silent */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"conv2d\", \"name\": \"c\", \"out_channels\": 4, \"kernel\": 9}, {\"op\": \"relu\"},\n"
       " {\"op\": \"linear\", \"name\": \"l\", \"out_features\": 3, \"in\": \"x\"}, {\"op\": \"add\", \"in\": [\"x\", "
       "\"l\"]}]}",
       "m.json:2:13: error: layers[0] 'c': kernel height 9 with dilation 1 covers 9, but the padded input has only 8\n"
       "m.json:3:63: error: layers[3] '3': shapes [N,3,8,8] and [N,3,8,3] do not broadcast\n"},
      /* inline weights */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"conv2d\", \"name\": \"c\", \"out_channels\": 1, \"kernel\": 1}],\n"
       " \"weights\": {\"c.weight\": {\"shape\": [1, 3], \"data\": [1, 2, 3]}, \"c.bias\": {\"shape\": [1], \"data\": "
       "[1, 2]},\n"
       "  \"d\": {\"shape\": [1], \"data\": [\"a\"]}, \"e\": {\"shape\": [1], \"data\": [1e39]}}}",
       "m.json:3:97: error: weights.c.bias: data: shape [1] needs 1 numbers, found 2\n"
       "m.json:4:32: error: weights.d: data[0]: expected a number, found a string\n"
       "m.json:4:68: error: weights.e: data[0]: 1e+39 does not fit f32\n"
       "m.json:3:36: error: weights.c.weight: shape: layers[0] 'c' expects [1,3,1,1], found [1,3]\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"conv2d\", \"name\": \"c\", \"out_channels\": 1, \"kernel\": 1}],\n"
       " \"weights\": {\"c.wieght\": {\"shape\": [1], \"data\": [1]}}}",
       "m.json:3:14: error: weights.c.wieght: no parameter has this name and no 'in' uses it; did you mean "
       "'c.weight'?\n"},
      /* groups, hooks, labels and training */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"conv2d\", \"name\": \"c\", \"out_channels\": 1, \"kernel\": 1}],\n"
       " \"groups\": [{\"name\": \"g\", \"layers\": [\"d*\"], \"forzen\": true}, {\"name\": \"g\", \"layers\": []}],\n"
       " \"hooks\": [{\"value\": \"c\", \"kind\": \"activations\"}], \"train\": {\"los\": 1, \"loss\": \"cross\", "
       "\"metrics\": [\"acc\"]},\n"
       " \"labels\": 4}",
       "m.json:3:45: error: groups[0]: unknown key 'forzen'; did you mean 'frozen'?\n"
       "m.json:3:71: error: groups[1]: the name 'g' is taken by groups[0]\n"
       "m.json:4:35: error: hooks[0]: kind: expected 'activation' or 'gradient', found 'activations'\n"
       "m.json:5:12: error: labels: expected a list of strings or a file's name, found a number\n"
       "m.json:4:62: error: train: unknown key 'los'; did you mean 'loss'?\n"
       "m.json:4:80: error: train: loss: expected 'cross_entropy', 'mse' or 'bce_with_logits', found 'cross'\n"
       "m.json:4:101: error: train: metrics: expected 'accuracy' or 'error_rate', found 'acc'\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"conv2d\", \"name\": \"c\", \"out_channels\": 1, \"kernel\": 1}, {\"op\": "
       "\"batch_norm\", \"name\": \"n\"}],\n"
       " \"groups\": [{\"name\": \"g\", \"layers\": [\"c\"]}], \"labels\": \"../secret\"}",
       "m.json:3:12: error: groups: layer 'n' has parameters and is in no group\n"
       "m.json:3:56: error: labels: '../secret' is not the name of a file beside the description\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"layers\": [{\"op\": \"relu\", \"name\": \"conv\"}], \"hooks\": [{\"value\": \"cnv\"}, {\"value\": \"x*\"}]}",
       "m.json:2:66: error: hooks[0]: no value matches 'cnv'; did you mean 'conv'?\n"},
      /* inputs */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"dtype\": \"f31\", \"shape\": [\"N\"]}, \"y\": "
       "{\"shape\": [3, \"N\"]}, \"z\": {\"shape\": [0]},\n"
       " \"w\": {}, \"a b\": {\"shape\": [1]}}, \"layers\": [{\"op\": \"relu\", \"in\": \"x\"}]}",
       "m.json:1:52: error: inputs.x: unknown dtype 'f31'; did you mean 'f32'?\n"
       "m.json:1:95: error: inputs.y: shape: 'N' stands only in the first place\n"
       "m.json:1:118: error: inputs.z: shape: expected an integer from 1 to 2147483647, found 0\n"
       "m.json:2:7: error: inputs.w: missing key 'shape'\n"
       "m.json:2:18: error: inputs.a b: 'a b' is not a name: it may have letters, digits, '_', and inside also '-' and "
       "single '.'\n"},
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8],\n"
       " \"preprocess\": {\"mean\": [1], \"std\": [0], \"size\": 3}}}, \"layers\": [{\"op\": \"relu\"}]}",
       "m.json:2:42: error: inputs.x: preprocess: unknown key 'size'; did you mean 'resize'?\n"
       "m.json:2:38: error: inputs.x: preprocess.std: a standard deviation must be more than 0\n"},
      /* bombs */
      {"{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 3, 8, 8]}},\n"
       " \"blocks\": {\"a\": {\"layers\": [{\"op\": \"relu\", \"repeat\": 1000}]}, \"b\": {\"layers\": [{\"block\": "
       "\"a\", \"repeat\": 1000}]}},\n"
       " \"layers\": [{\"block\": \"b\", \"repeat\": 1000}]}",
       "m.json:2:81: error: blocks.b.layers[0]: the model has more than 1000000 layers\n"},
  };
  for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
    Graph *graph = NULL;
    if (parse(fixture, mistakes[i].text, &graph)) fail_msg("accepted: %s", mistakes[i].text);
    check_messages(fixture, mistakes[i].messages);
  }
}

static void mistakes_end_at_the_limit(void **state) {
  Fixture *fixture = *state;
  Text text;
  text_init(&text, fixture->arena);
  text_add(&text, HEAD "'layers': [{'op': 'relu'}");
  for (int i = 0; i < 1000; i++) text_add(&text, ", {'op': 'rleu'}");
  text_add(&text, "]}");
  Graph *graph;
  assert_false(parse(fixture, quoted(fixture, text.data), &graph));
  assert_int_equal(diag_message_count(fixture->diag), DIAG_LIMIT);
}

static void blocks_are_nested_to_a_limit(void **state) {
  Fixture *fixture = *state;
  for (int levels = 64; levels <= 65; levels++) {
    Text text;
    text_init(&text, fixture->arena);
    text_add(&text, HEAD "'layers': [{'block': 'b1'}], 'blocks': {");
    for (int i = 1; i < levels; i++) text_format(&text, "'b%d': {'layers': [{'block': 'b%d'}]}, ", i, i + 1);
    text_format(&text, "'b%d': {'layers': [{'op': 'relu'}]}}}", levels);
    Graph *graph;
    assert_int_equal(parse(fixture, quoted(fixture, text.data), &graph), levels == 64);
  }
  check_message_part(fixture, "blocks are nested deeper than 64 levels");
}

enum { CHAIN = 100000, STACK = 256 * 1024 };

typedef struct Chain {
  Fixture *fixture;
  const char *text;
  bool valid;
} Chain;

static void *import_chain(void *argument) {
  Chain *chain = argument;
  Graph *graph = NULL;
  chain->valid = parse(chain->fixture, chain->text, &graph) && graph->layer_count == CHAIN;
  return NULL;
}

/* Reports seconds of processor time, so that a busy machine does not fail the test. */
static double import_on_small_stack(Chain *chain) {
  pthread_attr_t attributes;
  pthread_t thread;
  assert_int_equal(pthread_attr_init(&attributes), 0);
  assert_int_equal(pthread_attr_setstacksize(&attributes, STACK), 0);
  const clock_t start = clock();
  assert_int_equal(pthread_create(&thread, &attributes, import_chain, chain), 0);
  assert_int_equal(pthread_join(thread, NULL), 0);
  const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
  pthread_attr_destroy(&attributes);
  return seconds;
}

static void long_chains_need_no_stack(void **state) {
  Fixture *fixture = *state;
  Text text;
  text_init(&text, fixture->arena);
  text_add(&text, HEAD "'layers': [");
  for (int i = 0; i < CHAIN; i++) text_format(&text, "%s{'op': 'relu', 'name': 'r%d'}", i ? ", " : "", i);
  text_add(&text, "]}");
  Chain chain = {.fixture = fixture, .text = quoted(fixture, text.data)};
  const double seconds = import_on_small_stack(&chain);
  assert_true(chain.valid);
#if defined(__SANITIZE_ADDRESS__) || !defined(NDEBUG)
  assert_true(seconds < 10); /* unoptimised or instrumented code */
#else
  assert_true(seconds < 2);
#endif
  /* the same backwards: one cycle of 100,000 layers */
  text_init(&text, fixture->arena);
  text_add(&text, HEAD "'layers': [");
  for (int i = 0; i < CHAIN; i++) {
    text_format(&text, "%s{'op': 'relu', 'name': 'r%d', 'in': 'r%d'}", i ? ", " : "", i, (i + 1) % CHAIN);
  }
  text_add(&text, "]}");
  chain.text = quoted(fixture, text.data);
  import_on_small_stack(&chain);
  assert_false(chain.valid);
  check_message_part(fixture, "in: makes a cycle: r0 -> r1 -> r2");
}

static void the_format_document_is_accepted(void **state) {
  Fixture *fixture = *state;
  void *data;
  size_t size;
  assert_true(file_read(KILN_SOURCE_DIR "/frontend/FORMAT.md", 1 << 20, fixture->arena, fixture->diag, &data, &size));
  int count = 0;
  static const char fence[] = "```json\n";
  for (const char *at = strstr(data, fence); at; at = strstr(at, fence)) {
    at += strlen(fence);
    const char *end = strstr(at, "```");
    assert_non_null(end);
    if (strncmp(at, "{ \"kiln\": 1", 11) == 0) {
      must_parse(fixture, arena_string_n(fixture->arena, at, (size_t)(end - at)));
      count++;
    }
    at = end;
  }
  assert_int_equal(count, 9);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(layers_are_named_and_chained),
      fixture_test(padding_has_all_its_forms),
      fixture_test(blocks_repeat_and_choose),
      fixture_test(blocks_take_several_inputs),
      fixture_test(sections_are_read),
      fixture_test(labels_come_from_a_file),
      fixture_test(shapes_are_overridden),
      fixture_test(mistakes_are_reported),
      fixture_test(mistakes_end_at_the_limit),
      fixture_test(blocks_are_nested_to_a_limit),
      fixture_test(long_chains_need_no_stack),
      fixture_test(the_format_document_is_accepted),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
