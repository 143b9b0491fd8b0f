/* Reads the text form of a graph: ir/IR.md. A statement ends with its line; after a mistake reading goes on with the
 * next line, so that one run shows all of them. Nothing is sized by a number in the text. */
#include <stddef.h>
#include <string.h>

#include "parser.h"

/* --- values ---------------------------------------------------------------------------------------- */

/* Digits without quotes are an id. */
static bool is_id(const Token *token) {
  return !token->quoted && token->text[strspn(token->text, "0123456789")] == '\0';
}

static Node *find_value(const Parser *parser, const Token *token) {
  if (!is_id(token)) {
    const Node *found = name_map_find(&parser->names, token->text);
    return found ? parser->by_id[found->id] : NULL;
  }
  int64_t id = 0;
  if (!parse_int(token->text, &id) || (uint64_t)id >= parser->by_id_capacity) return NULL;
  return parser->by_id[id];
}

/* A use of a value that stands above. */
bool parser_expect_value(Parser *parser, Node **out_node) {
  const Token token = *parser_token(parser);
  if (token.kind != TOKEN_VALUE) return parser_expected(parser, "a value");
  *out_node = find_value(parser, &token);
  if (!*out_node) {
    /* The definition may be what a line above got wrong. */
    if (parser->failed) parser->statement_failed = true;
    return parser_error(parser, token.location, "%s is not defined above", token_describe(&parser->lexer, &token));
  }
  lexer_next(&parser->lexer);
  return true;
}

typedef struct Definition {
  const char *name; /* NULL: known by its id only */
  uint32_t id;
  Location location;
} Definition;

static bool expect_definition(Parser *parser, Definition *out_definition) {
  const Token token = *parser_token(parser);
  if (token.kind != TOKEN_VALUE) return parser_expected(parser, "a value");
  int64_t id = parser->next_id;
  Location id_location = token.location;
  const bool by_id = is_id(&token);
  if (by_id && (!parse_int(token.text, &id) || id >= ID_LIMIT)) {
    return parser_error(parser, token.location, "expected an id below %d, found '%.80s'", ID_LIMIT, token.text);
  }
  lexer_next(&parser->lexer);
  if (!by_id && parser_accept_sign(parser, '@')) {
    id_location = parser_token(parser)->location;
    if (!parser_expect_integer(parser, 0, ID_LIMIT - 1, &id)) return false;
  }
  if (id >= ID_LIMIT) return parser_error(parser, token.location, "ids end at %d", ID_LIMIT - 1);
  if ((size_t)id < parser->by_id_capacity && parser->by_id[id]) {
    return parser_error(parser, id_location, "id %lld is already taken", (long long)id);
  }
  if (!by_id && name_map_find(&parser->names, token.text)) {
    return parser_error(parser, token.location, "%s is already defined", token_describe(&parser->lexer, &token));
  }
  *out_definition = (Definition){by_id ? NULL : token.text, (uint32_t)id, token.location};
  return true;
}

/* The graph's functions number nodes by next_id: begin_node and end_node put the id of the text there for a while. */
static uint32_t begin_node(Parser *parser, const Definition *definition) {
  const uint32_t next_id = parser->graph->next_id;
  parser->graph->next_id = definition->id;
  return next_id;
}

static void end_node(Parser *parser, const Definition *definition, Node *node, uint32_t next_id) {
  if (parser->graph->next_id < next_id) parser->graph->next_id = next_id;
  parser->next_id = definition->id + 1;
  if (definition->id >= parser->by_id_capacity) {
    size_t capacity = parser->by_id_capacity ? parser->by_id_capacity : 64;
    while (capacity <= definition->id) capacity *= 2;
    Node **by_id = arena_array(parser->arena, capacity, Node *);
    if (parser->by_id_capacity) memcpy(by_id, parser->by_id, parser->by_id_capacity * sizeof(Node *));
    parser->by_id = by_id;
    parser->by_id_capacity = capacity;
  }
  parser->by_id[definition->id] = node;
  node->location = definition->location;
  if (node->name) name_map_add(&parser->names, node->name, node);
}

/* --- types and what follows them ------------------------------------------------------------------- */

bool parser_expect_type(Parser *parser, DataType *out_dtype, Shape *out_shape) {
  const Location location = parser_token(parser)->location;
  const char *word = NULL;
  if (!parser_expect_word(parser, "an element type", &word)) return false;
  if (!data_type_parse(word, out_dtype)) return parser_error(parser, location, "unknown element type '%.80s'", word);
  Shape shape = {0};
  if (!parser_expect_integers(parser, SHAPE_MAX_RANK, true, shape.dims, &shape.rank)) return false;
  for (int32_t i = 0; i < shape.rank; i++) {
    if (shape.dims[i] > 0 || (i == 0 && shape.dims[i] == DIM_BATCH)) continue;
    return parser_error(parser, location, "dimension %d must be at least 1%s", i,
                        i == 0 ? " or N" : "; N may only be the first");
  }
  *out_shape = shape;
  return true;
}

static bool expect_space(Parser *parser, Space *out_space) {
  const Location location = parser_token(parser)->location;
  const char *word = NULL;
  if (!parser_expect_word(parser, "a space", &word)) return false;
  for (Space space = SPACE_NONE; space <= SPACE_OUTPUT; space++) {
    if (strcmp(word, space_name(space)) == 0) {
      *out_space = space;
      return true;
    }
  }
  return parser_error(parser, location, "unknown space '%.80s'", word);
}

static bool parse_storage(Parser *parser, Storage *storage) {
  static const char *const keys[] = {"index", "offset", "stride", "origin", "halo", "bytes", "delta"};
  if (!expect_space(parser, &storage->space)) return false;
  if (!parser_accept_list(parser, '(')) return true;
  for (bool first = true; parser_next_item(parser, &first, ')');) {
    const char *key = NULL;
    Location location;
    bool valid = parser_expect_key(parser, &key, &location);
    if (!valid) return false;
    if (strcmp(key, "index") == 0) {
      valid = parser_expect_int32(parser, &storage->index);
    } else if (strcmp(key, "offset") == 0) {
      valid = parser_expect_integer(parser, INT64_MIN, INT64_MAX, &storage->offset);
    } else if (strcmp(key, "stride") == 0) {
      int32_t count = 0;
      valid = parser_expect_integers(parser, SHAPE_MAX_RANK, false, storage->stride, &count);
    } else if (strcmp(key, "origin") == 0) {
      valid = parser_expect_integer(parser, INT64_MIN, INT64_MAX, &storage->origin);
    } else if (strcmp(key, "halo") == 0) {
      int64_t halo[4] = {0};
      valid = parser_expect_exactly(parser, 4, halo);
      for (int i = 0; i < 4; i++) {
        if (valid && (halo[i] < 0 || halo[i] > INT32_MAX)) valid = parser_error(parser, location, "halo out of range");
        storage->halo[i] = (int32_t)halo[i];
      }
    } else if (strcmp(key, "bytes") == 0) {
      valid = parser_expect_integer(parser, INT64_MIN, INT64_MAX, &storage->bytes);
    } else if (strcmp(key, "delta") == 0) {
      valid = parser_expect_integer(parser, INT64_MIN, INT64_MAX, &storage->delta);
    } else {
      valid = parser_unknown_key(parser, location, key, keys, sizeof keys / sizeof keys[0]);
    }
    if (!valid) return false;
  }
  return !parser->statement_failed;
}

static bool parse_math(Parser *parser, MathMode *out_math) {
  const Location location = parser_token(parser)->location;
  const char *word = NULL;
  if (!parser_expect_string(parser, &word)) return false;
  return math_mode_parse(word, out_math) || parser_error(parser, location, "unknown arithmetic '%.80s'", word);
}

static bool parse_choice(Parser *parser, KernelChoice *choice) {
  static const char *const keys[] = {"tile_pixels", "tile_blocks", "channel_chunk", "row_chunk", "math"};
  int32_t *const fields[] = {&choice->tile_pixels, &choice->tile_blocks, &choice->channel_chunk, &choice->row_chunk};
  const Location word_location = parser_token(parser)->location;
  const char *word = NULL;
  if (!parser_expect_word(parser, "an algorithm", &word)) return false;
  Algorithm algorithm = ALGORITHM_DEFAULT;
  while (algorithm_name(algorithm) && strcmp(algorithm_name(algorithm), word) != 0) algorithm++;
  if (!algorithm_name(algorithm)) return parser_error(parser, word_location, "unknown algorithm '%.80s'", word);
  choice->algorithm = algorithm;
  if (!parser_accept_list(parser, '(')) return true;
  for (bool first = true; parser_next_item(parser, &first, ')');) {
    const char *key = NULL;
    Location location;
    if (!parser_expect_key(parser, &key, &location)) return false;
    size_t at = 0;
    while (at < 5 && strcmp(keys[at], key) != 0) at++;
    if (at == 5) return parser_unknown_key(parser, location, key, keys, 5);
    if (at == 4 ? !parse_math(parser, &choice->math) : !parser_expect_int32(parser, fields[at])) return false;
  }
  return !parser->statement_failed;
}

/* The target may be defined below, so it is looked up at the end. */
static bool parse_alias(Parser *parser, Node *node) {
  if (parser_token(parser)->kind != TOKEN_VALUE) return parser_expected(parser, "a value");
  parser->aliases = parser_grow(parser, parser->aliases, parser->alias_count, sizeof *parser->aliases);
  parser->aliases[parser->alias_count++] = (PendingAlias){node, *parser_token(parser)};
  lexer_next(&parser->lexer);
  return true;
}

/* layout, @storage, alias, choice and layer, in any order, up to the end of the line or a brace. */
static bool parse_suffix(Parser *parser, Node *node) {
  while (!parser_token(parser)->line_start && !parser_at_sign(parser, '{')) {
    const Token token = *parser_token(parser);
    bool valid = true;
    if (parser_accept_sign(parser, '@')) {
      valid = parse_storage(parser, &node->storage);
    } else if (parser_accept_word(parser, "alias")) {
      valid = parse_alias(parser, node);
    } else if (parser_accept_word(parser, "placed")) {
      node->placed = true;
      valid = parse_alias(parser, node);
    } else if (parser_accept_word(parser, "filled")) {
      node->filled = true;
    } else if (parser_accept_word(parser, "hosted")) {
      node->hosted = true;
    } else if (parser_accept_word(parser, "stretch")) {
      int64_t stretch = 0;
      valid = parser_expect_integer(parser, 1, UINT32_MAX, &stretch);
      node->stretch = (uint32_t)stretch;
    } else if (parser_accept_word(parser, "choice")) {
      valid = parse_choice(parser, &node->choice);
    } else if (parser_accept_word(parser, "layer")) {
      int64_t layer = 0;
      valid = parser_expect_integer(parser, 0, LAYER_NONE - 1, &layer);
      node->layer = (uint32_t)layer;
    } else if (token.kind == TOKEN_WORD && layout_parse(token.text, &node->layout)) {
      lexer_next(&parser->lexer);
    } else {
      return parser_expected(parser, "a layout, '@', alias, placed, filled, hosted, stretch, choice, layer or the end of the line");
    }
    if (!valid) return false;
  }
  return true;
}

/* --- ports ----------------------------------------------------------------------------------------- */

/* Keys that inputs and parameters share: name and port. False when the key is another one. */
static bool parse_port_key(Parser *parser, const char *key, const char **out_name, int64_t *out_port, bool *out_valid) {
  if (strcmp(key, "name") == 0) {
    *out_valid = parser_expect_name(parser, "a name", out_name);
  } else if (strcmp(key, "port") == 0) {
    *out_valid = parser_expect_integer(parser, 0, INT32_MAX, out_port);
  } else {
    return false;
  }
  return true;
}

static int64_t implied_port(const int64_t *ports, size_t count) { return count ? ports[count - 1] + 1 : 0; }

static bool parse_input(Parser *parser) {
  static const char *const keys[] = {"name", "port", "mean", "std", "resize"};
  Definition definition;
  DataType dtype = DTYPE_F32;
  Shape shape = {0};
  if (!expect_definition(parser, &definition) || !parser_expect_sign(parser, ':')) return false;
  if (!parser_expect_type(parser, &dtype, &shape)) return false;
  Graph *graph = parser->graph;
  const size_t index = graph->input_count;
  const uint32_t next_id = begin_node(parser, &definition);
  Node *node = graph_add_input(graph, definition.name, dtype, shape);
  end_node(parser, &definition, node, next_id);
  GraphInput *input = &graph->inputs[index];
  input->location = definition.location;
  parser->input_ports = parser_grow(parser, parser->input_ports, index, sizeof *parser->input_ports);
  int64_t *port = &parser->input_ports[index];
  *port = implied_port(parser->input_ports, index);
  if (!parse_suffix(parser, node)) return false;
  bool first = !parser_accept_list(parser, '{');
  const bool listed = !first;
  for (first = true; listed && parser_next_item(parser, &first, '}');) {
    const char *key = NULL;
    Location location;
    bool valid = parser_expect_key(parser, &key, &location);
    if (!valid) return false;
    if (strcmp(key, "mean") == 0) {
      valid = parser_expect_floats(parser, &input->preprocess.mean);
    } else if (strcmp(key, "std") == 0) {
      valid = parser_expect_floats(parser, &input->preprocess.std);
    } else if (strcmp(key, "resize") == 0) {
      valid = parser_expect_integer(parser, 1, INT32_MAX, &input->preprocess.resize);
    } else if (!parse_port_key(parser, key, &input->name, port, &valid)) {
      valid = parser_unknown_key(parser, location, key, keys, sizeof keys / sizeof keys[0]);
    }
    if (!valid) return false;
  }
  if (!input->name)
    return parser_error(parser, definition.location, "an input known by its id only needs {name=\"…\"}");
  return !parser->statement_failed;
}

/* The numbers of data=[…], row-major. They are collected before memory is taken for the shape. */
static bool parse_data(Parser *parser, Parameter *parameter) {
  const Location location = parser_token(parser)->location;
  if (!parser_expect_sign(parser, '[')) return false;
  const bool exact = parameter->dtype == DTYPE_I64;
  double *numbers = NULL;
  int64_t *integers = NULL;
  size_t count = 0;
  for (bool first = true; parser_next_item(parser, &first, ']'); count++) {
    if (exact) {
      integers = parser_grow(parser, integers, count, sizeof *integers);
      if (!parser_expect_integer(parser, INT64_MIN, INT64_MAX, &integers[count])) return false;
    } else {
      numbers = parser_grow(parser, numbers, count, sizeof *numbers);
      if (!parser_expect_double(parser, &numbers[count])) return false;
    }
  }
  if (parser->statement_failed) return false;
  int64_t elements = 0;
  if (!shape_elements(&parameter->shape, 1, &elements) || elements < 0 || (uint64_t)elements != count) {
    return parser_error(parser, location, "data has %zu numbers, the shape has %lld elements", count,
                        (long long)elements);
  }
  Tensor *tensor = arena_new(parser->arena, Tensor);
  *tensor = tensor_create(parser->arena, parameter->name, parameter->dtype, parameter->shape);
  for (size_t i = 0; i < count; i++) {
    if (exact) {
      ((int64_t *)tensor->data)[i] = integers[i];
    } else {
      tensor_set(tensor, (int64_t)i, numbers[i]);
    }
  }
  parameter->value = tensor;
  parameter->inline_value = true;
  return true;
}

static bool parse_init(Parser *parser, InitKind *out_init) {
  static const char *const names[] = {
      [INIT_WEIGHT] = "weight", [INIT_BIAS] = "bias", [INIT_ZERO] = "zero", [INIT_ONE] = "one"};
  const Location location = parser_token(parser)->location;
  const char *word = NULL;
  if (!parser_expect_word(parser, "weight, bias, zero or one", &word)) return false;
  for (InitKind init = INIT_WEIGHT; init <= INIT_ONE; init++) {
    if (strcmp(word, names[init]) == 0) {
      *out_init = init;
      return true;
    }
  }
  return parser_error(parser, location, "init expects one of weight, bias, zero, one, found '%.80s'", word);
}

static bool parse_parameter_key(Parser *parser, Parameter *parameter, int64_t *port) {
  static const char *const keys[] = {"init", "fan_in", "trainable", "buffer", "data", "name", "port"};
  const char *key = NULL;
  Location location;
  bool valid = false;
  if (!parser_expect_key(parser, &key, &location)) return false;
  if (strcmp(key, "init") == 0) return parse_init(parser, &parameter->init);
  if (strcmp(key, "fan_in") == 0) return parser_expect_integer(parser, 0, INT64_MAX, &parameter->fan_in);
  if (strcmp(key, "trainable") == 0) return parser_expect_boolean(parser, &parameter->trainable);
  if (strcmp(key, "buffer") == 0) return parser_expect_boolean(parser, &parameter->buffer);
  if (strcmp(key, "data") == 0) return parse_data(parser, parameter);
  if (parse_port_key(parser, key, &parameter->name, port, &valid)) return valid;
  return parser_unknown_key(parser, location, key, keys, sizeof keys / sizeof keys[0]);
}

/* A parameter that no node reads any more stands without a percent sign. */
static bool parse_parameter(Parser *parser) {
  Graph *graph = parser->graph;
  const bool has_node = parser_token(parser)->kind == TOKEN_VALUE;
  Definition definition = {.location = parser_token(parser)->location, .id = graph->next_id};
  Parameter parameter = {.trainable = true, .layer = LAYER_NONE, .location = definition.location};
  if (has_node ? !expect_definition(parser, &definition)
               : !parser_expect_name(parser, "a parameter", &definition.name)) {
    return false;
  }
  parameter.name = definition.name;
  if (!parser_expect_sign(parser, ':') || !parser_expect_type(parser, &parameter.dtype, &parameter.shape)) return false;
  const size_t index = graph->parameter_count;
  const uint32_t next_id = begin_node(parser, &definition);
  Node *node = graph_add_parameter(graph, &parameter);
  if (has_node) {
    end_node(parser, &definition, node, next_id);
  } else {
    graph->node_count--;
    graph->next_id = next_id;
    graph->parameters[index].node = NULL;
  }
  parser->parameter_ports = parser_grow(parser, parser->parameter_ports, index, sizeof *parser->parameter_ports);
  int64_t *port = &parser->parameter_ports[index];
  *port = implied_port(parser->parameter_ports, index);
  if (!parse_suffix(parser, node)) return false;
  Parameter *added = &graph->parameters[index];
  added->layer = node->layer;
  const bool listed = parser_accept_list(parser, '{');
  for (bool first = true; listed && parser_next_item(parser, &first, '}');) {
    if (!parse_parameter_key(parser, added, port)) return false;
  }
  if (!added->name) {
    return parser_error(parser, definition.location, "a parameter known by its id only needs {name=\"…\"}");
  }
  return !parser->statement_failed;
}

/* --- operations ------------------------------------------------------------------------------------ */

static bool expect_operation(Parser *parser, OpCode *out_op) {
  const Location location = parser_token(parser)->location;
  const char *word = NULL;
  if (!parser_expect_word(parser, "an operation", &word)) return false;
  *out_op = op_find(word);
  if (*out_op < OP_COUNT && op_info(*out_op)->kind != OP_KIND_SOURCE) return true;
  size_t count = 0;
  const char *const *names = op_names(&count);
  const char *near = nearest_word(word, names, count);
  return parser_error(parser, location, "unknown operation '%.80s'%s%s%s", word, near ? "; did you mean '" : "",
                      near ? near : "", near ? "'?" : "");
}

/* epilogue [add %5, relu, reversed sub %6] */
static bool parse_epilogue(Parser *parser, Node *node) {
  if (!parser_accept_word(parser, "epilogue")) return true;
  if (!parser_expect_sign(parser, '[')) return false;
  for (bool first = true; parser_next_item(parser, &first, ']');) {
    const Location location = parser_token(parser)->location;
    const bool reversed = parser_at_word(parser, "reversed");
    if (reversed) lexer_next(&parser->lexer);
    OpCode op = OP_COUNT;
    Node *operand = NULL;
    Attrs attrs = attrs_default();
    if (!expect_operation(parser, &op)) return false;
    if (!op_is_elementwise(op)) {
      return parser_error(parser, location, "an epilogue takes element-wise operations, found '%s'", op_info(op)->name);
    }
    if (op_info(op)->kind == OP_KIND_BINARY && !parser_expect_value(parser, &operand)) return false;
    if (!parser_attributes(parser, op, &attrs)) return false;
    node_add_epilogue(parser->graph, node, op, &attrs, operand, reversed);
  }
  return !parser->statement_failed;
}

static bool parse_operation(Parser *parser) {
  Definition definition;
  OpCode op = OP_COUNT;
  if (!expect_definition(parser, &definition) || !parser_expect_sign(parser, '=') || !expect_operation(parser, &op)) {
    return false;
  }
  Node **inputs = NULL;
  int32_t count = 0;
  const bool any = !parser_token(parser)->line_start && parser_token(parser)->kind == TOKEN_VALUE;
  for (bool more = any; more; more = parser_accept_sign(parser, ',')) {
    inputs = parser_grow(parser, inputs, (size_t)count, sizeof *inputs);
    if (!parser_expect_value(parser, &inputs[count++])) return false;
  }
  const uint32_t next_id = begin_node(parser, &definition);
  Node *node = graph_add(parser->graph, op, definition.name, inputs, count);
  end_node(parser, &definition, node, next_id);
  if (!parser_attributes(parser, op, &node->attrs) || !parse_epilogue(parser, node)) return false;
  if (!parser_token(parser)->line_start && parser_at_sign(parser, ':')) {
    lexer_next(&parser->lexer);
    parser->types = parser_grow(parser, parser->types, parser->type_count, sizeof *parser->types);
    DeclaredType *type = &parser->types[parser->type_count];
    *type = (DeclaredType){.node = node, .location = parser_token(parser)->location};
    if (!parser_expect_type(parser, &type->dtype, &type->shape)) return false;
    parser->type_count++;
  }
  return parse_suffix(parser, node);
}

/* --- the other statements -------------------------------------------------------------------------- */

static bool parse_output(Parser *parser, bool hook) {
  Graph *graph = parser->graph;
  const Location location = parser_token(parser)->location;
  const char *name = NULL;
  Node *node = NULL;
  if (!parser_expect_name(parser, "a name", &name) || !parser_expect_sign(parser, '=') || !parser_expect_value(parser, &node))
    return false;
  if (!hook && graph->hook_output_count) return parser_error(parser, location, "outputs stand before hook outputs");
  graph_add_output(graph, name, node);
  graph->outputs[graph->output_count - 1].location = location;
  graph->hook_output_count += hook;
  return true;
}

static bool parse_optional_value(Parser *parser, Node **out_node) {
  if (parser_token(parser)->line_start || !parser_accept_sign(parser, '=')) return true;
  return parser_expect_value(parser, out_node);
}

static bool parse_layer(Parser *parser) {
  Graph *graph = parser->graph;
  Layer layer = {0};
  if (!parser_expect_name(parser, "a name", &layer.name) || !parser_expect_sign(parser, ':')) return false;
  if (!parser_expect_name(parser, "an operation", &layer.op) || !parse_optional_value(parser, &layer.node))
    return false;
  layer.frozen = parser_accept_word(parser, "frozen");
  graph->layers = parser_grow(parser, graph->layers, graph->layer_count, sizeof *graph->layers);
  graph->layers[graph->layer_count++] = layer;
  return true;
}

static bool parse_value_name(Parser *parser) {
  Graph *graph = parser->graph;
  ValueName value = {0};
  if (!parser_expect_name(parser, "a name", &value.name) || !parse_optional_value(parser, &value.node)) return false;
  graph->value_names = parser_grow(parser, graph->value_names, graph->value_name_count, sizeof *graph->value_names);
  graph->value_names[graph->value_name_count++] = value;
  return true;
}

/* The place of a word among others; false with a message when it is none of them. */
static bool expect_choice(Parser *parser, const char *const *words, size_t count, const char *what, size_t *out_index) {
  for (size_t i = 0; i < count; i++) {
    if (parser_accept_word(parser, words[i])) {
      *out_index = i;
      return true;
    }
  }
  return parser_expected(parser, what);
}

static bool parse_hook(Parser *parser) {
  static const char *const kinds[] = {[HOOK_ACTIVATION] = "activation", [HOOK_GRADIENT] = "gradient"};
  static const char *const actions[] = {[HOOK_STORE] = "store", [HOOK_STATS] = "stats", [HOOK_CALL] = "call"};
  Graph *graph = parser->graph;
  Hook hook = {.location = parser_token(parser)->location};
  size_t kind = 0, action = 0;
  if (!parser_expect_name(parser, "a pattern", &hook.pattern) ||
      !expect_choice(parser, kinds, 2, "activation or gradient", &kind) ||
      !expect_choice(parser, actions, 3, "store, stats or call", &action)) {
    return false;
  }
  hook.kind = (HookKind)kind;
  hook.action = (HookAction)action;
  if (hook.action == HOOK_STATS) {
    Attrs attrs = attrs_default();
    if (!parser_attributes(parser, OP_STATS_PARTIAL, &attrs)) return false;
    hook.stats = (HookStats){attrs.bins, attrs.low, attrs.high, attrs.threshold};
  }
  graph->hooks = parser_grow(parser, graph->hooks, graph->hook_count, sizeof *graph->hooks);
  graph->hooks[graph->hook_count++] = hook;
  return true;
}

static bool parse_gradient(Parser *parser) {
  static const char *const seeds[] = {[GRADIENT_OF_CLASS] = "class",
                                      [GRADIENT_OF_SCALAR] = "scalar",
                                      [GRADIENT_WITH_COTANGENT] = "cotangent"};
  Graph *graph = parser->graph;
  GradientRequest request = {.location = parser_token(parser)->location};
  size_t seed = 0;
  if (!parser_expect_name(parser, "a name", &request.of) ||
      !expect_choice(parser, seeds, 3, "class, scalar or cotangent", &seed)) {
    return false;
  }
  request.seed = (GradientSeed)seed;
  if (parser_accept_word(parser, "input") && !parser_expect_name(parser, "a name", &request.input)) return false;
  if (!parser_accept_word(parser, "wrt")) return parser_expected(parser, "wrt");
  if (!parser_expect_strings(parser, &request.wrt, &request.wrt_count)) return false;
  request.hook = parser_accept_word(parser, "hook");
  graph->gradients = parser_grow(parser, graph->gradients, graph->gradient_count, sizeof *graph->gradients);
  graph->gradients[graph->gradient_count++] = request;
  return true;
}

static bool parse_group(Parser *parser) {
  Graph *graph = parser->graph;
  Group group = {.location = parser_token(parser)->location};
  if (!parser_expect_name(parser, "a name", &group.name)) return false;
  if (!parser_expect_strings(parser, &group.patterns, &group.pattern_count)) return false;
  group.frozen = parser_accept_word(parser, "frozen");
  group.freeze_batch_norm = parser_accept_word(parser, "freeze_batch_norm");
  graph->groups = parser_grow(parser, graph->groups, graph->group_count, sizeof *graph->groups);
  graph->groups[graph->group_count++] = group;
  return true;
}

static bool parse_memory(Parser *parser) {
  static const char *const keys[] = {"workspace_fixed", "workspace_per_batch", "prepared", "prepare_scratch"};
  Graph *graph = parser->graph;
  int64_t *const fields[] = {&graph->workspace_fixed, &graph->workspace_per_batch, &graph->prepared_bytes,
                             &graph->prepare_scratch};
  if (!parser_expect_sign(parser, '{')) return false;
  for (bool first = true; parser_next_item(parser, &first, '}');) {
    const char *key = NULL;
    Location location;
    if (!parser_expect_key(parser, &key, &location)) return false;
    size_t at = 0;
    while (at < 4 && strcmp(keys[at], key) != 0) at++;
    if (at == 4) return parser_unknown_key(parser, location, key, keys, 4);
    if (!parser_expect_integer(parser, 0, INT64_MAX, fields[at])) return false;
  }
  return !parser->statement_failed;
}

static bool parse_next_id(Parser *parser) {
  int64_t next_id = 0;
  if (!parser_expect_integer(parser, parser->graph->next_id, ID_LIMIT, &next_id)) return false;
  parser->graph->next_id = (uint32_t)next_id;
  return true;
}

static bool parse_run_output(Parser *parser) { return parse_output(parser, false); }
static bool parse_hook_output(Parser *parser) { return parse_output(parser, true); }
static bool parse_batch_blocked(Parser *parser) { return parser->graph->batch_blocked = true; }
static bool parse_group_rows(Parser *parser) { return parser_expect_int32(parser, &parser->graph->group_rows); }

static bool parse_labels(Parser *parser) {
  return parser_expect_strings(parser, &parser->graph->labels, &parser->graph->label_count);
}

/* Statements that begin with a word: what reads the rest, or the field of the graph that an integer sets. */
static const struct {
  const char *word;
  bool (*parse)(Parser *);
  size_t field;
  int64_t least, most;
} statements[] = {
    {"input", parse_input, 0, 0, 0},
    {"parameter", parse_parameter, 0, 0, 0},
    {"output", parse_run_output, 0, 0, 0},
    {"hook_output", parse_hook_output, 0, 0, 0},
    {"layer", parse_layer, 0, 0, 0},
    {"value", parse_value_name, 0, 0, 0},
    {"hook", parse_hook, 0, 0, 0},
    {"group", parse_group, 0, 0, 0},
    {"labels", parse_labels, 0, 0, 0},
    {"next_id", parse_next_id, 0, 0, 0},
    {"memory", parse_memory, 0, 0, 0},
    {"gradient", parse_gradient, 0, 0, 0},
    {"update", parser_update, 0, 0, 0},
    {"objective", parser_objective, 0, 0, 0},
    {"train", parser_train, 0, 0, 0},
    {"slot", parser_slot, 0, 0, 0},
    {"group_rows", parse_group_rows, 0, 0, 0},
    {"batch_blocked", parse_batch_blocked, 0, 0, 0},
    {"max_batch", NULL, offsetof(Graph, max_batch), 1, INT64_MAX},
    {"min_batch", NULL, offsetof(Graph, min_batch), 1, INT64_MAX},
    {"recompute", NULL, offsetof(Graph, recompute), 0, INT64_MAX},
    {"chunk", NULL, offsetof(Graph, chunk), 0, INT32_MAX},
    {"stretch_images", NULL, offsetof(Graph, stretch_images), 0, INT32_MAX},
};
enum { STATEMENT_COUNT = sizeof statements / sizeof *statements };

static bool parse_statement(Parser *parser) {
  const Token token = *parser_token(parser);
  if (token.kind == TOKEN_VALUE) return parse_operation(parser);
  const char *word = NULL, *known[STATEMENT_COUNT];
  if (!parser_expect_word(parser, "a statement or '}'", &word)) return false;
  for (size_t i = 0; i < STATEMENT_COUNT; i++) {
    known[i] = statements[i].word;
    if (strcmp(word, known[i]) != 0) continue;
    if (statements[i].parse != NULL) return statements[i].parse(parser);
    int64_t *field = (int64_t *)(void *)((char *)parser->graph + statements[i].field);
    return parser_expect_integer(parser, statements[i].least, statements[i].most, field);
  }
  const char *near = nearest_word(word, known, STATEMENT_COUNT);
  return parser_error(parser, token.location, "unknown statement '%.80s'%s%s%s", word, near ? "; did you mean '" : "",
                      near ? near : "", near ? "'?" : "");
}

/* --- the whole ------------------------------------------------------------------------------------- */

/* Puts ports in the order that was written. Every index must occur once. */
static bool order_ports(Parser *parser, const char *what, const int64_t *ports, void *items, size_t count,
                        size_t size) {
  char *ordered = arena_alloc(parser->arena, count, size);
  bool *taken = arena_array(parser->arena, count, bool);
  for (size_t i = 0; i < count; i++) {
    if ((uint64_t)ports[i] >= count || taken[ports[i]]) {
      return parser_error(parser, (Location){.file = parser->lexer.file}, "%s %lld of %zu %s", what,
                          (long long)ports[i], count, (uint64_t)ports[i] >= count ? "is out of range" : "stands twice");
    }
    taken[ports[i]] = true;
    memcpy(ordered + (size_t)ports[i] * size, (const char *)items + i * size, size);
  }
  if (count) memcpy(items, ordered, count * size);
  return true;
}

static bool finish_ports(Parser *parser) {
  Graph *graph = parser->graph;
  const char **updated = arena_array(parser->arena, graph->update_count, const char *);
  for (size_t i = 0; i < graph->update_count; i++) updated[i] = graph->parameters[graph->updates[i].parameter].name;
  if (!order_ports(parser, "input", parser->input_ports, graph->inputs, graph->input_count, sizeof *graph->inputs) ||
      !order_ports(parser, "parameter", parser->parameter_ports, graph->parameters, graph->parameter_count,
                   sizeof *graph->parameters)) {
    return false;
  }
  for (size_t i = 0; i < graph->input_count; i++) graph->inputs[i].node->port = (int32_t)i;
  for (size_t i = 0; i < graph->parameter_count; i++) {
    if (graph->parameters[i].node) graph->parameters[i].node->port = (int32_t)i;
    for (size_t k = 0; k < graph->update_count; k++)
      if (updated[k] == graph->parameters[i].name) graph->updates[k].parameter = (int32_t)i;
  }
  return true;
}

static bool finish_aliases(Parser *parser) {
  for (size_t i = 0; i < parser->alias_count; i++) {
    const PendingAlias *alias = &parser->aliases[i];
    alias->node->alias = find_value(parser, &alias->target);
    if (!alias->node->alias) {
      parser_error(parser, alias->target.location, "%s is not defined", token_describe(&parser->lexer, &alias->target));
      parser->statement_failed = false;
    }
  }
  return !parser->failed;
}

static bool compare_types(Parser *parser) {
  for (size_t i = 0; i < parser->type_count; i++) {
    const DeclaredType *type = &parser->types[i];
    const Node *node = type->node;
    if (type->dtype == node->dtype && shape_equal(&type->shape, &node->shape)) continue;
    Text found, given;
    text_init(&found, parser->arena);
    text_init(&given, parser->arena);
    shape_print(&found, &type->shape);
    shape_print(&given, &node->shape);
    parser_error(parser, type->location, "expected the type that %s gives, %s[%s], found %s[%s]",
                 op_info(node->op)->name, data_type_name(node->dtype), given.data, data_type_name(type->dtype),
                 found.data);
    parser->statement_failed = false;
  }
  return !parser->failed;
}

static bool parse_graph(Parser *parser) {
  const char *name = NULL;
  if (!parser_at_word(parser, "graph")) return parser_expected(parser, "'graph'");
  lexer_next(&parser->lexer);
  if (!parser_expect_string(parser, &name) || !parser_expect_sign(parser, '{')) return false;
  parser->graph->name = name;
  while (!parser_at_sign(parser, '}') && parser_token(parser)->kind != TOKEN_END && !diag_full(parser->diag)) {
    parser->statement_failed = false;
    const char *begin = parser->lexer.at;
    if (!parser_token(parser)->line_start) parser_expected(parser, "the end of the line");
    if (!parser->statement_failed && parse_statement(parser) && !parser_token(parser)->line_start &&
        !parser_at_sign(parser, '}')) {
      parser_expected(parser, "the end of the line");
    }
    if (parser->statement_failed && parser->lexer.at == begin) lexer_next(&parser->lexer);
    while (parser->statement_failed && !parser_token(parser)->line_start) lexer_next(&parser->lexer);
  }
  parser->statement_failed = false;
  if (diag_full(parser->diag)) return false;
  if (!parser_expect_sign(parser, '}')) return false;
  return parser_token(parser)->kind == TOKEN_END || parser_expected(parser, "the end of the file");
}

static bool check_encoding(const char *file, const char *source, size_t size, Diag *diag) {
  const size_t valid = utf8_prefix(source, size);
  if (valid == size) return true;
  Location location = {file, 1, 1};
  for (size_t i = 0; i < valid; i++) {
    location.column++;
    if (source[i] != '\n') continue;
    location.line++;
    location.column = 1;
  }
  diag_error(diag, location, "byte 0x%02x is not valid UTF-8", (unsigned)(unsigned char)source[valid]);
  return false;
}

bool graph_parse(const char *file, const char *source, size_t size, Arena *arena, Diag *diag, Graph **out_graph) {
  const char *name = file ? arena_string(arena, file) : NULL;
  if (!check_encoding(name, source, size, diag)) return false;
  Parser parser = {.arena = arena, .diag = diag, .graph = graph_create(arena, NULL)};
  parser.graph->file = name;
  name_map_init(&parser.names, arena);
  lexer_init(&parser.lexer, arena, name, source, size);
  parse_graph(&parser);
  if (parser.failed || diag_full(diag)) return false;
  if (!finish_ports(&parser) || !finish_aliases(&parser)) return false;
  if (!graph_infer(parser.graph, diag) || !compare_types(&parser)) return false;
  if (!graph_verify(parser.graph, "parse", diag)) return false;
  *out_graph = parser.graph;
  return true;
}
