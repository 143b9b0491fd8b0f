/* Graphs written as text. */
#ifndef KILN_TESTS_GRAPH_TEXT_H
#define KILN_TESTS_GRAPH_TEXT_H

#include "graph.h"
#include "support.h"

static inline const char *graph_text(const Graph *graph, Arena *arena) {
  Text text;
  text_init(&text, arena);
  graph_print(&text, graph);
  return text.data;
}

static inline Graph *must_parse(Fixture *fixture, const char *source) {
  Graph *graph = NULL;
  if (!graph_parse("test.ir", source, strlen(source), fixture->arena, fixture->diag, &graph))
    fail_msg("%s", diag_text(fixture->diag, fixture->arena));
  return graph;
}

#endif
