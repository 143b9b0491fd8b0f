/* The graph as a picture: `dot -Tsvg`. One box per operation; parameters and what is computed from them alone are
 * shown as a count in the box that reads them. */
#include <string.h>

#include "graph.h"

/* Inside a quoted Graphviz string only the quote and the backslash are special. */
static void add_label_text(Text *text, const char *string) {
  for (; *string; string++) {
    if (*string == '"' || *string == '\\') text_add(text, "\\");
    if ((unsigned char)*string >= 0x20) text_add_n(text, string, 1);
  }
}

static void add_shape_line(Text *text, const Node *node) {
  text_format(text, "\\n%s[", data_type_name(node->dtype));
  shape_print(text, &node->shape);
  text_add(text, "]");
  if (node->layout.kind != LAYOUT_PLAIN) {
    text_add(text, " ");
    layout_print(text, node->layout);
  }
}

static void print_box(Text *text, const Node *node, const bool *prepared) {
  text_format(text, "  n%u [label=\"", node->id);
  if (node->name) {
    add_label_text(text, node->name);
  } else {
    text_format(text, "%%%u", node->id);
  }
  text_format(text, "\\n%s", op_info(node->op)->name);
  for (int32_t i = 0; i < node->epilogue_count; i++) {
    text_format(text, " + %s", op_info(node->epilogue[i].op)->name);
  }
  Text attributes;
  text_init(&attributes, text->arena);
  attrs_print(&attributes, &node->attrs, op_info(node->op)->attrs);
  if (attributes.size) {
    text_add(text, "\\n");
    add_label_text(text, attributes.data);
  }
  add_shape_line(text, node);
  int32_t parameters = 0;
  for (int32_t k = 0; k < node->input_count; k++) parameters += prepared[node->inputs[k]->id];
  if (parameters) text_format(text, "\\n%d parameter%s", parameters, parameters == 1 ? "" : "s");
  text_add(text, node->op == OP_INPUT ? "\", shape=ellipse];\n" : "\"];\n");
}

void graph_print_dot(Text *text, const Graph *graph) {
  const bool *prepared = graph_mark_prepared(graph, text->arena);
  text_add(text, "digraph \"");
  add_label_text(text, graph->name ? graph->name : "");
  text_add(text, "\" {\n  rankdir=TB;\n  node [shape=box, fontname=\"Helvetica\", fontsize=10];\n");
  text_add(text, "  edge [fontname=\"Helvetica\", fontsize=8];\n");
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (prepared[node->id]) continue;
    print_box(text, node, prepared);
    for (int32_t k = 0; k < node->input_count; k++) {
      if (prepared[node->inputs[k]->id]) continue;
      const bool epilogue = k >= node->op_input_count;
      text_format(text, "  n%u -> n%u%s;\n", node->inputs[k]->id, node->id, epilogue ? " [style=dashed]" : "");
    }
  }
  for (size_t i = 0; i < graph->output_count; i++) {
    const GraphOutput *output = &graph->outputs[i];
    /* An output that depends on parameters only has no box of its own. */
    if (prepared[output->node->id]) print_box(text, output->node, prepared);
    text_format(text, "  output%zu [label=\"", i);
    add_label_text(text, output->name);
    text_format(text, "\", shape=ellipse];\n  n%u -> output%zu;\n", output->node->id, i);
  }
  text_add(text, "}\n");
}
