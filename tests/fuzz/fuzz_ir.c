/* Any bytes as a graph: what parses must print to text that parses again and prints the same. */
#include <stdlib.h>
#include <string.h>

#include "graph.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *print(const Graph *graph, Arena *arena) {
  Text text;
  text_init(&text, arena);
  graph_print(&text, graph);
  return text.data;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Arena *arena = arena_create(NULL);
  Diag *diag = diag_create(arena);
  Graph *graph = NULL, *again = NULL;
  if (graph_parse("fuzz.ir", (const char *)data, size, arena, diag, &graph)) {
    const char *text = print(graph, arena);
    if (!graph_parse("again.ir", text, strlen(text), arena, diag, &again)) abort();
    if (strcmp(text, print(again, arena)) != 0) abort();
    if (strcmp(text, print(graph_clone(again, arena), arena)) != 0) abort();
    graph_remove_dead(again);
    if (!graph_verify(again, "remove_dead", diag)) abort();
  } else if (diag_error_count(diag) == 0) {
    abort();
  }
  arena_destroy(arena);
  return 0;
}
