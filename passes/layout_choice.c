/* Which layout every image is made in: the sum of all kernels and conversions is to be small.
 *
 * A node's cost depends on the form of its value (layout_cost.h) and on those of its operands, each by itself. So the
 * sum has a term for each node and one for each pair of a node and an operand: a table of at most 5 × 5 numbers. For a
 * tree of such terms the least sum is found exactly, from the leaves to the root and back. A graph becomes a forest
 * when every node keeps one of its operands and the forms at the other ends of its remaining edges are taken as they
 * stand. That is repeated, keeping the first image operand of each node in one sweep and the last one in the next, so
 * that the edges left out change. Sweeps begin with what a simple rule gives (vectors' blocks from convolutions on,
 * plain images elsewhere) and with each form wherever it is possible; the smallest sum that was met is taken, of equal
 * ones the first. Time is linear in the number of edges.
 *
 * The model is not exact: another form than the rule's has to promise a gain in every kernel that it changes. */
#include "layout_choice.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "rewrite.h"

enum { SWEEPS = 2, NO_EDGE = -1 };

static const double least_gain = 1.1; /* what the cost of a form that the rule would not take is multiplied by */

/* An operand whose form is not yet known, or of a node whose form is not. */
typedef struct Edge {
  uint32_t from, to;                   /* ids */
  double cost[FORM_COUNT][FORM_COUNT]; /* [form of from][form of to]; infinite where a form is impossible */
} Edge;

typedef struct Choose {
  const Graph *graph;
  CostModel model;
  const bool *prepared;
  unsigned *possible;              /* by id: sets of forms */
  uint8_t *rule;                   /* by id: the form that the rule gives */
  double (*node_cost)[FORM_COUNT]; /* by id */
  Edge *edges;                     /* in the order of the nodes that read */
  size_t edge_count;
  /* of a sweep */
  double (*below)[FORM_COUNT]; /* by id: the node and all that hangs on it */
} Choose;

/* --- the rule ---------------------------------------------------------------------------------------- */

static bool is_block_form(unsigned form) { return form == FORM_BLOCK; }

static uint8_t rule_of(const Choose *choose, const Node *node) {
  const uint8_t *rule = choose->rule;
  if (!(node_forms(node, choose->model.lanes) & FORM_BIT(FORM_BLOCK))) return FORM_PLAIN;
  if (node->op == OP_CONV2D) return FORM_BLOCK;
  if (op_is_elementwise(node->op)) {
    /* a blocked value that is broadcast over a larger plain one does not decide */
    for (int32_t i = 0; i < node->input_count; i++)
      if (shape_equal(&node->inputs[i]->shape, &node->shape) && is_block_form(rule[node->inputs[i]->id]))
        return FORM_BLOCK;
    return FORM_PLAIN;
  }
  for (int32_t i = 0; i < (node->op == OP_CONCAT ? node->op_input_count : 1); i++)
    if (is_block_form(rule[node->inputs[i]->id])) return FORM_BLOCK;
  return FORM_PLAIN;
}

/* --- terms ------------------------------------------------------------------------------------------- */

/* Filters and biases have layouts of their own, and what is prepared is there in any. */
static bool is_image_operand(const Choose *choose, const Node *node, int32_t i) {
  const Node *value = node->inputs[i];
  if (!is_image_value(value) || value->op == OP_PARAMETER || value->op == OP_CONVERT || choose->prepared[value->id])
    return false;
  const bool weights = node->op == OP_CONV2D || node->op == OP_CONV_TRANSPOSE2D;
  return !weights || i == 0 || i >= node->op_input_count;
}

static bool is_open(unsigned forms) { return (forms & (forms - 1)) != 0; }

static unsigned possible_forms(const Choose *choose, const Node *node) {
  const unsigned rule = FORM_BIT(choose->rule[node->id]);
  if (node->op == OP_INPUT || node->op == OP_PARAMETER || node->op == OP_CONVERT || choose->prepared[node->id])
    return rule;
  return node_forms(node, choose->model.lanes);
}

static double weight_of(const Choose *choose, const Node *node, ImageForm form) {
  return form == choose->rule[node->id] ? 1 : least_gain;
}

static void add_node(Choose *choose, const Node *node, const bool *is_output) {
  for (ImageForm form = 0; form < FORM_COUNT; form++) {
    double *cost = &choose->node_cost[node->id][form];
    *cost = INFINITY;
    if (!(choose->possible[node->id] & FORM_BIT(form))) continue;
    *cost = weight_of(choose, node, form) * cost_of_node(&choose->model, node, form);
    if (is_output[node->id]) *cost += cost_of_conversion(&choose->model, &node->shape, form, FORM_PLAIN);
  }
}

static void add_edge(Choose *choose, const Node *node, int32_t i) {
  const Node *value = node->inputs[i];
  if (!is_open(choose->possible[value->id]) && !is_open(choose->possible[node->id])) return;
  Edge *edge = &choose->edges[choose->edge_count++];
  edge->from = value->id, edge->to = node->id;
  for (ImageForm from = 0; from < FORM_COUNT; from++)
    for (ImageForm to = 0; to < FORM_COUNT; to++) {
      const bool possible =
          (choose->possible[value->id] & FORM_BIT(from)) && (choose->possible[node->id] & FORM_BIT(to));
      edge->cost[from][to] =
          possible ? weight_of(choose, node, to) * cost_of_operand(&choose->model, node, i, from, to) : INFINITY;
    }
}

/* Statistics are taken of blocks of a vector's channels. */
static void restrict_measured(Choose *choose) {
  for (size_t n = 0; n < choose->graph->node_count; n++) {
    const Node *node = choose->graph->nodes[n];
    if (node->op == OP_STATS_PARTIAL || node->op == OP_BATCH_STATS)
      choose->possible[node->inputs[0]->id] &= FORM_BIT(FORM_PLAIN) | FORM_BIT(FORM_BLOCK);
  }
}

static size_t count_operands(const Graph *graph) {
  size_t count = 0;
  for (size_t n = 0; n < graph->node_count; n++) count += (size_t)graph->nodes[n]->input_count;
  return count;
}

static void collect(Choose *choose, Arena *scratch) {
  const Graph *graph = choose->graph;
  const bool *is_output = mark_outputs(graph, scratch);
  for (size_t n = 0; n < graph->node_count; n++) {
    const Node *node = graph->nodes[n];
    const ImageForm fixed = node->op == OP_CONVERT ? form_of(node->layout, choose->model.lanes) : FORM_COUNT;
    choose->rule[node->id] = fixed < FORM_COUNT ? (uint8_t)fixed : rule_of(choose, node);
    choose->possible[node->id] = possible_forms(choose, node);
  }
  restrict_measured(choose);
  for (size_t n = 0; n < graph->node_count; n++) {
    const Node *node = graph->nodes[n];
    add_node(choose, node, is_output);
    for (int32_t i = 0; i < node->input_count; i++)
      if (is_image_operand(choose, node, i)) add_edge(choose, node, i);
  }
}

/* --- sweeps ------------------------------------------------------------------------------------------ */

static double total_of(const Choose *choose, const uint8_t *forms) {
  double sum = 0;
  for (size_t n = 0; n < choose->graph->node_count; n++) {
    const uint32_t id = choose->graph->nodes[n]->id;
    sum += choose->node_cost[id][forms[id]];
  }
  for (size_t e = 0; e < choose->edge_count; e++) {
    const Edge *edge = &choose->edges[e];
    sum += edge->cost[forms[edge->from]][forms[edge->to]];
  }
  return sum;
}

/* Whether edge e is the one that its reader keeps: the first of its edges, or the last. */
static bool is_kept(const Choose *choose, size_t e, bool first) {
  const uint32_t to = choose->edges[e].to;
  return first ? e == 0 || choose->edges[e - 1].to != to : e + 1 == choose->edge_count || choose->edges[e + 1].to != to;
}

static ImageForm cheapest(const double *cost) {
  ImageForm best = 0;
  for (ImageForm form = 1; form < FORM_COUNT; form++)
    if (cost[form] < cost[best]) best = form;
  return best;
}

/* Costs of what is left out, and then of what is kept, from readers to what they read; then forms the other way. */
static void sweep(const Choose *choose, bool first, uint8_t *forms) {
  const Graph *graph = choose->graph;
  double(*below)[FORM_COUNT] = choose->below;
  for (size_t n = 0; n < graph->node_count; n++) {
    const uint32_t id = graph->nodes[n]->id;
    memcpy(below[id], choose->node_cost[id], sizeof below[id]);
  }
  for (size_t e = 0; e < choose->edge_count; e++) {
    const Edge *edge = &choose->edges[e];
    if (is_kept(choose, e, first)) continue;
    for (ImageForm form = 0; form < FORM_COUNT; form++) {
      below[edge->from][form] += edge->cost[form][forms[edge->to]];
      below[edge->to][form] += edge->cost[forms[edge->from]][form];
    }
  }
  for (size_t e = choose->edge_count; e-- > 0;) {
    const Edge *edge = &choose->edges[e];
    if (!is_kept(choose, e, first)) continue;
    for (ImageForm from = 0; from < FORM_COUNT; from++) {
      double least = INFINITY;
      for (ImageForm to = 0; to < FORM_COUNT; to++) least = fmin(least, edge->cost[from][to] + below[edge->to][to]);
      below[edge->from][from] += least;
    }
  }
  size_t e = 0;
  for (size_t n = 0; n < graph->node_count; n++) {
    const uint32_t id = graph->nodes[n]->id;
    double cost[FORM_COUNT];
    memcpy(cost, below[id], sizeof cost);
    for (; e < choose->edge_count && choose->edges[e].to == id; e++)
      for (ImageForm form = 0; is_kept(choose, e, first) && form < FORM_COUNT; form++)
        cost[form] += choose->edges[e].cost[forms[choose->edges[e].from]][form];
    forms[id] = (uint8_t)cheapest(cost);
  }
}

/* --- decisions --------------------------------------------------------------------------------------- */

/* What the node costs in each form as everything around it stands. */
static void add_costs_around(const Choose *choose, const uint8_t *forms, double (*around)[FORM_COUNT]) {
  for (size_t n = 0; n < choose->graph->node_count; n++) {
    const uint32_t id = choose->graph->nodes[n]->id;
    memcpy(around[id], choose->node_cost[id], sizeof around[id]);
  }
  for (size_t e = 0; e < choose->edge_count; e++) {
    const Edge *edge = &choose->edges[e];
    for (ImageForm form = 0; form < FORM_COUNT; form++) {
      around[edge->from][form] += edge->cost[form][forms[edge->to]];
      around[edge->to][form] += edge->cost[forms[edge->from]][form];
    }
  }
}

static void decide(Graph *graph, Node *node, const Choose *choose, ImageForm form, double *around) {
  const double cost = around[form];
  around[form] = INFINITY;
  const ImageForm other = cheapest(around);
  const int32_t lanes = choose->model.lanes;
  node_decide(graph, node, "layout", form_name(form, lanes), form_name(other, lanes),
              form == choose->rule[node->id] ? "Kernels and conversions of the whole graph cost least so."
                                             : "Kernels and conversions of the whole graph cost less so.");
  Decision *decision = node->decisions;
  while (decision->next) decision = decision->next;
  decision->cost = rint(cost);
  decision->rejected_cost = rint(around[other]);
  decision->unit = "cycles an image";
}

static void decide_all(Graph *graph, const Choose *choose, const uint8_t *forms, Arena *scratch) {
  double(*around)[FORM_COUNT] = arena_alloc(scratch, graph->next_id, sizeof *around);
  add_costs_around(choose, forms, around);
  for (size_t n = 0; n < graph->node_count; n++) {
    Node *node = graph->nodes[n];
    if (is_open(choose->possible[node->id])) decide(graph, node, choose, forms[node->id], around[node->id]);
  }
}

/* --- choice ------------------------------------------------------------------------------------------ */

/* ImageForm `wanted` wherever it is possible. */
static void start_from(const Choose *choose, ImageForm wanted, uint8_t *forms) {
  for (size_t n = 0; n < choose->graph->node_count; n++) {
    const uint32_t id = choose->graph->nodes[n]->id;
    forms[id] = choose->possible[id] & FORM_BIT(wanted) ? (uint8_t)wanted : choose->rule[id];
  }
}

static void improve(const Choose *choose, uint8_t *forms, uint8_t *best, double *least) {
  for (int i = 0; i < SWEEPS; i++) {
    sweep(choose, i % 2 == 0, forms);
    const double total = total_of(choose, forms);
    if (!(total < *least)) continue;
    *least = total;
    memcpy(best, forms, choose->graph->next_id);
  }
}

LayoutChoice layout_choose(Graph *graph, const PassOptions *options, int32_t lanes, const bool *prepared) {
  Arena *scratch = options->scratch;
  const size_t ids = graph->next_id;
  Choose choose = {.graph = graph, .model = cost_model(graph, options, lanes), .prepared = prepared};
  choose.possible = arena_array(scratch, ids, unsigned);
  choose.rule = arena_array(scratch, ids, uint8_t);
  choose.node_cost = arena_alloc(scratch, ids, sizeof *choose.node_cost);
  choose.below = arena_alloc(scratch, ids, sizeof *choose.below);
  choose.edges = arena_array(scratch, count_operands(graph), Edge);
  collect(&choose, scratch);
  uint8_t *best = arena_copy(scratch, choose.rule, ids), *forms = arena_copy(scratch, best, ids);
  const bool stays = options->training || graph->update_count > 0;
  if (options->image_layout) {
    start_from(&choose, form_of(*options->image_layout, lanes), best);
  } else if (!stays && choose.edge_count > 0) {
    double least = total_of(&choose, best);
    improve(&choose, forms, best, &least);
    for (ImageForm form = 0; form < FORM_COUNT; form++) {
      start_from(&choose, form, forms);
      improve(&choose, forms, best, &least);
    }
    decide_all(graph, &choose, best, scratch);
  }
  return (LayoutChoice){choose.model, best};
}
