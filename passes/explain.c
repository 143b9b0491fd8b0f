/* What the passes decided, node by node, for people and for machines. */
#include <math.h>

#include "passes.h"

static void add_value_name(Text *text, const Node *node) {
  if (node->name)
    text_add(text, node->name);
  else
    text_format(text, "%%%u", node->id);
}

static void add_cost(Text *text, const char *before, double cost, const char *unit) {
  if (isnan(cost) || !unit) return;
  text_add(text, before);
  text_add_double(text, cost);
  text_format(text, " %s", unit);
}

static void print_decision(Text *text, const Decision *decision) {
  text_format(text, "  %s: %s", decision->pass, decision->chosen);
  add_cost(text, ", ", decision->cost, decision->unit);
  if (decision->rejected) {
    text_format(text, "; rejected: %s", decision->rejected);
    add_cost(text, ", ", decision->rejected_cost, decision->unit);
  }
  if (decision->reason) text_format(text, ". %s", decision->reason);
  text_add(text, "\n");
}

void explain_print(Text *text, const Graph *graph) {
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (!node->decisions) continue;
    add_value_name(text, node);
    text_format(text, " (%s", op_info(node->op)->name);
    for (int32_t s = 0; s < node->epilogue_count; s++) text_format(text, " + %s", op_info(node->epilogue[s].op)->name);
    text_add(text, ")");
    if (node->location.line) text_format(text, " line %u", node->location.line);
    text_add(text, "\n");
    for (const Decision *decision = node->decisions; decision; decision = decision->next)
      print_decision(text, decision);
  }
}

static void add_json_field(Text *text, const char *key, const char *value) {
  if (!value) return;
  text_format(text, ", \"%s\": ", key);
  text_add_json(text, value);
}

static void add_json_cost(Text *text, const char *key, double cost) {
  if (!isfinite(cost)) return;
  text_format(text, ", \"%s\": ", key);
  text_add_double(text, cost);
}

static void print_decision_json(Text *text, const Decision *decision) {
  text_add(text, "{\"pass\": ");
  text_add_json(text, decision->pass);
  add_json_field(text, "chosen", decision->chosen);
  add_json_field(text, "rejected", decision->rejected);
  add_json_field(text, "reason", decision->reason);
  if (decision->unit) {
    add_json_cost(text, "cost", decision->cost);
    add_json_cost(text, "rejected_cost", decision->rejected_cost);
    add_json_field(text, "unit", decision->unit);
  }
  text_add(text, "}");
}

void explain_print_json(Text *text, const Graph *graph) {
  text_add(text, "{\"model\": ");
  text_add_json(text, graph->name ? graph->name : "");
  text_add(text, ", \"nodes\": [");
  const char *separator = "\n";
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (!node->decisions) continue;
    text_format(text, "%s  {\"id\": %u", separator, node->id);
    add_json_field(text, "name", node->name);
    add_json_field(text, "op", op_info(node->op)->name);
    if (node->location.line)
      text_format(text, ", \"line\": %u, \"column\": %u", node->location.line, node->location.column);
    text_add(text, ", \"decisions\": [");
    for (const Decision *decision = node->decisions; decision; decision = decision->next) {
      if (decision != node->decisions) text_add(text, ", ");
      print_decision_json(text, decision);
    }
    text_add(text, "]}");
    separator = ",\n";
  }
  text_add(text, "\n]}\n");
}
