/* The statements that ask for training: what a description says of it, and a request. */
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
