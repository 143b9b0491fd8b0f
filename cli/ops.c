/* kiln ops: what a description may use. */
#include "common.h"

typedef struct OpsRequest {
  const char *name;
} OpsRequest;

static const char *const type_names[] = {"integer",
                                         "integer or [height, width]",
                                         "integer, [height, width] or [top, left, bottom, right]",
                                         "number",
                                         "true or false",
                                         "word",
                                         "list of integers",
                                         "list of numbers"};

static void print_attribute(Tool *tool, AttrId id) {
  const AttrInfo *info = attr_info(id);
  printf("  %-18s %s", info->name, type_names[info->type]);
  if (info->type == ATTR_ENUM) {
    const char *const *names;
    const AttrWord *values;
    size_t count = attr_words(id, &names, &values);
    for (size_t i = 0; i < count; i++) printf("%s%s", i == 0 ? ": " : ", ", names[i]);
  }
  Attrs initial = attrs_default();
  if (info->type == ATTR_INT || info->type == ATTR_FLOAT) {
    Text text;
    text_init(&text, tool->arena);
    const char *field = (const char *)&initial + info->offset;
    text_add_double(&text, info->type == ATTR_INT ? (double)*(const int64_t *)(const void *)field
                                                  : *(const double *)(const void *)field);
    if (!info->import_only) printf(" (default %s)", text.data);
  }
  printf("\n");
}

static int ops_body(Tool *tool, void *context) {
  OpsRequest *request = context;
  size_t count;
  const char *const *names = op_names(&count);
  if (request->name != NULL) {
    OpCode op = op_find(request->name);
    if (op == OP_COUNT) {
      const char *near = nearest_word(request->name, names, count);
      diag_error(tool->diag, (Location){NULL, 0, 0}, "there is no op '%s'%s%s%s", request->name,
                 near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
      return EXIT_FAILED;
    }
    printf("%s\n", op_info(op)->name);
    for (int id = 0; id < ATTR_ID_COUNT; id++)
      if (op_info(op)->attrs >> id & 1) print_attribute(tool, (AttrId)id);
    return EXIT_OK;
  }
  for (size_t i = 0; i < count; i++) {
    const OpInfo *info = op_info(op_find(names[i]));
    printf("%-24s", info->name);
    const char *gap = "";
    for (int id = 0; id < ATTR_ID_COUNT; id++)
      if (info->attrs >> id & 1) {
        printf("%s%s", gap, attr_info((AttrId)id)->name);
        gap = ", ";
      }
    printf("\n");
  }
  return EXIT_OK;
}

static int ops_run(int argc, char **argv) {
  OpsRequest request = {NULL};
  const Option options[] = {{.name = NULL}};
  int code = options_parse(&verb_ops, options, argc, argv, 0, 1, &request.name);
  return code >= 0 ? code : tool_run(ops_body, &request);
}

const Verb verb_ops = {
    "ops",
    "list the ops and their attributes",
    "[OP]",
    "Lists every op that a layer of a description may have, with its attributes; with OP, that op's attributes with\n"
    "types and defaults.",
    "  kiln ops\n  kiln ops conv2d",
    ops_run};
