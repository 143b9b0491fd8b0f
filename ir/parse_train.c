/* The statements of training: what a description says of it, a request, and what a step changes. */
#include <string.h>

#include "parser.h"

static bool accept_loss(Parser *parser, OpCode *out_loss) {
  for (OpCode op = 0; op < OP_COUNT; op++) {
    if (!op_is_loss(op) || !parser_accept_word(parser, op_info(op)->name)) continue;
    *out_loss = op;
    return true;
  }
  return false;
}

bool parser_objective(Parser *parser) {
  Objective *objective = &parser->graph->objective;
  accept_loss(parser, &objective->loss);
  objective->accuracy = parser_accept_word(parser, "accuracy");
  objective->error_rate = parser_accept_word(parser, "error_rate");
  return true;
}

bool parser_train(Parser *parser) {
  TrainRequest *train = arena_new(parser->arena, TrainRequest);
  if (!accept_loss(parser, &train->loss)) return parser_expected(parser, "cross_entropy, mse or bce_with_logits");
  if (!parser_accept_word(parser, "of")) return parser_expected(parser, "of");
  if (!parser_expect_name(parser, "a value's name", &train->of)) return false;
  if (parser_accept_word(parser, optimizer_name(OPTIMIZER_ADAM))) {
    train->optimizer = OPTIMIZER_ADAM;
  } else if (!parser_accept_word(parser, optimizer_name(OPTIMIZER_SGD))) {
    return parser_expected(parser, "sgd or adam");
  }
  train->nesterov = parser_accept_word(parser, "nesterov");
  train->clip = parser_accept_word(parser, "clip");
  train->accumulate = parser_accept_word(parser, "accumulate");
  if (parser_accept_word(parser, "memory_limit") && !parser_expect_integer(parser, 0, INT64_MAX, &train->memory_limit))
    return false;
  parser->graph->train = train;
  return true;
}

bool parser_update(Parser *parser) {
  Graph *graph = parser->graph;
  const Location location = parser_token(parser)->location;
  const char *name = NULL;
  Node *node = NULL;
  if (!parser_expect_name(parser, "a parameter's name", &name) || !parser_expect_sign(parser, '=') ||
      !parser_expect_value(parser, &node))
    return false;
  for (size_t i = 0; i < graph->parameter_count; i++) {
    if (strcmp(graph->parameters[i].name, name) != 0) continue;
    graph_add_update(graph, (int32_t)i, node);
    return true;
  }
  return parser_error(parser, location, "there is no parameter '%.80s'", name);
}

bool parser_slot(Parser *parser) {
  Graph *graph = parser->graph;
  StateSlot slot = {0};
  DataType dtype;
  if (!parser_expect_name(parser, "a name", &slot.name) || !parser_expect_sign(parser, ':') ||
      !parser_expect_type(parser, &dtype, &slot.shape))
    return false;
  if (!parser_accept_word(parser, "offset")) return parser_expected(parser, "offset");
  if (!parser_expect_integer(parser, 0, INT64_MAX, &slot.offset)) return false;
  if (!parser_accept_word(parser, "group")) return parser_expected(parser, "group");
  if (!parser_expect_int32(parser, &slot.group)) return false;
  slot.decayed = parser_accept_word(parser, "decayed");
  graph->slots = parser_grow(parser, graph->slots, graph->slot_count, sizeof *graph->slots);
  graph->slots[graph->slot_count++] = slot;
  return true;
}
