/* Any bytes as a graph: what parses must print to text that parses again and prints the same. */
#include <string.h>

#include "fuzz.h"
#include "graph.h"

static const char *print(const Graph *graph, Arena *arena) {
  Text text;
  text_init(&text, arena);
  graph_print(&text, graph);
  return text.data;
}

static bool parse(const uint8_t *data, size_t size, Arena *arena, Diag *diag) {
  Graph *graph = NULL, *again = NULL;
  if (!graph_parse("fuzz.ir", (const char *)data, size, arena, diag, &graph)) return false;
  const char *text = print(graph, arena);
  if (!graph_parse("again.ir", text, strlen(text), arena, diag, &again)) __builtin_trap();
  if (strcmp(text, print(again, arena)) != 0) __builtin_trap();
  if (strcmp(text, print(graph_clone(again, arena), arena)) != 0) __builtin_trap();
  graph_remove_dead(again);
  if (!graph_verify(again, "remove_dead", diag)) __builtin_trap();
  return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return fuzz_parse(parse, data, size); }
