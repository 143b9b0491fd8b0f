/* Shared by the files of the graph's parser. Functions return false after a mistake has been reported; what they
 * were to fill is then undefined. "accept" reads a token only when it is there, "expect" demands it. */
#ifndef KILN_IR_PARSER_H
#define KILN_IR_PARSER_H

#include "graph.h"
#include "lexer.h"
#include "name_map.h"

/* Tables are indexed by id, so ids must not be arbitrarily far apart. */
enum { ID_LIMIT = 1 << 22 };

/* A type as written, to be compared with what the operation gives. */
typedef struct DeclaredType {
  Node *node;
  DataType dtype;
  Shape shape;
  Location location;
} DeclaredType;

/* A storage may be shared with a value that is defined later. */
typedef struct PendingAlias {
  Node *node;
  Token target;
} PendingAlias;

typedef struct Parser {
  Lexer lexer;
  Arena *arena;
  Diag *diag;
  Graph *graph;
  NameMap names;
  Node **by_id;
  size_t by_id_capacity;
  uint32_t next_id; /* of a definition that gives none */
  DeclaredType *types;
  size_t type_count;
  PendingAlias *aliases;
  size_t alias_count;
  int64_t *input_ports, *parameter_ports; /* as written, or implied; in order of appearance */
  bool statement_failed;
  bool failed;
} Parser;

/* Reports the first mistake of a statement only: the others follow from it. Always false. */
bool parser_error(Parser *parser, Location location, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* "expected <what>, found …" at the current token. Always false. */
bool parser_expected(Parser *parser, const char *what);
/* "unknown name …; did you mean …?" Always false. */
bool parser_unknown_key(Parser *parser, Location location, const char *key, const char *const *known, size_t count);

/* The current token. */
const Token *parser_token(const Parser *parser);
bool parser_at_sign(const Parser *parser, char sign);
bool parser_at_word(const Parser *parser, const char *word);
bool parser_accept_sign(Parser *parser, char sign);
/* A word that does not begin a new statement. */
bool parser_accept_word(Parser *parser, const char *word);
/* The opening sign of a list that is on the same line. */
bool parser_accept_list(Parser *parser, char open);
bool parser_expect_sign(Parser *parser, char sign);
bool parser_expect_word(Parser *parser, const char *what, const char **out_word);
/* A name, with or without quotes. */
bool parser_expect_name(Parser *parser, const char *what, const char **out_name);
bool parser_expect_string(Parser *parser, const char **out_string);
bool parser_expect_integer(Parser *parser, int64_t minimum, int64_t maximum, int64_t *out_value);
bool parser_expect_int32(Parser *parser, int32_t *out_value);
bool parser_expect_double(Parser *parser, double *out_value);
bool parser_expect_boolean(Parser *parser, bool *out_value);

/* Separates the items of a list that ends with `close`: true when one more follows. The opening sign has been read;
 * *first is true before the first call. */
bool parser_next_item(Parser *parser, bool *first, char close);
/* One item of a list in braces: a name and '='. */
bool parser_expect_key(Parser *parser, const char **out_key, Location *out_location);
/* [a,b,c] of at most `limit` integers; N stands for DIM_BATCH when `batch`. */
bool parser_expect_integers(Parser *parser, int32_t limit, bool batch, int64_t *out_values, int32_t *out_count);
bool parser_expect_exactly(Parser *parser, int32_t wanted, int64_t *out_values);
bool parser_expect_floats(Parser *parser, FloatList *out_list);
bool parser_expect_strings(Parser *parser, const char ***out_strings, size_t *out_count);
/* A value that has been defined, by name or number. */
bool parser_expect_value(Parser *parser, Node **out_node);
/* f32[N,8] */
bool parser_expect_type(Parser *parser, DataType *out_dtype, Shape *out_shape);
/* The rest of the statements `objective`, `train`, `update` and `slot`. */
bool parser_objective(Parser *parser);
bool parser_train(Parser *parser);
bool parser_update(Parser *parser);
bool parser_slot(Parser *parser);
/* {stride=[2,2], …} of an op; the braces may be missing. */
bool parser_attributes(Parser *parser, OpCode op, Attrs *attrs);

/* `items` with room for one more where there was room for `count` rounded up to a power of two. */
void *parser_grow(Parser *parser, void *items, size_t count, size_t size);

#endif
