/* What the parts of the description importer share.
 *
 * Reading goes in two steps. First every definition is checked as it stands in the file, once (blocks.c): keys,
 * ops, types, the syntax of expressions. Then the layers are expanded (expand.c): block instances are walked with
 * an explicit stack, expressions get values, names become nodes, shapes are inferred. A definition that failed the
 * first step is `broken`: the second makes no node for it, and everything that needs its value is silently broken
 * too, so that one mistake gives one message. */
#ifndef KILN_FRONTEND_IMPORTER_H
#define KILN_FRONTEND_IMPORTER_H

#include "description.h"
#include "expression.h"
#include "json.h"
#include "names.h"

enum {
  IMPORT_MAX_LAYERS = 1000000, /* instances of layers and blocks, left-out ones included */
  IMPORT_MAX_BLOCK_DEPTH = 64,
  IMPORT_MAX_PARAMS = 64,   /* of a block */
  IMPORT_MAX_OPERANDS = 12, /* names in one `in` */
  IMPORT_MAX_PATTERNS = 1000,
  IMPORT_MAX_NAME = 255 /* bytes of one written name */
};

typedef struct LayerDef LayerDef;
typedef struct BlockDef BlockDef;

/* A `layers` list as written. */
typedef struct LayerList {
  const char *path; /* "layers", "blocks.stage.layers" */
  LayerDef *items;
  size_t count;
  NameTable names; /* written names -> LayerDef */
} LayerList;

typedef struct ParamDef {
  const char *name;
  bool required;
  int64_t initial;
} ParamDef;

struct BlockDef {
  const char *name;
  const cJSON *item;
  ParamDef *params;
  size_t param_count;
  LayerList list;
  bool broken;
  int32_t mark; /* of the search for recursion */
};

typedef struct AttrDef {
  AttrId id;
  const cJSON *item;
} AttrDef;

struct LayerDef {
  const char *name;  /* as written, or NULL */
  const char *path;  /* "layers[4]" */
  const char *label; /* for messages: "layers[4] 'conv2'" */
  const cJSON *item, *name_item;
  BlockDef *block; /* NULL: an op */
  OpCode op;
  AttrDef *attrs;
  size_t attr_count;
  const cJSON *in, *with, *repeat, *condition;
  bool broken;
};

/* What a name stands for. */
typedef struct NamedValue {
  Node *node;       /* importer->broken: its definition has a mistake */
  const char *kind; /* "layer", "block", "input", "alias", "parameter", "constant" */
  Location location;
} NamedValue;

/* A tensor of the `weights` section. */
typedef struct InlineWeight {
  Tensor tensor;
  const cJSON *item, *shape_item;
  bool used, broken;
} InlineWeight;

typedef struct Importer {
  Json json;
  Arena *arena;
  Diag *diag;
  const ImportOptions *options;
  Graph *graph;
  Node *broken;
  NameTable values;  /* full names -> NamedValue */
  NameTable blocks;  /* -> BlockDef */
  NameTable weights; /* -> InlineWeight */
  LayerList layers;
  bool *reported; /* by number of the JSON value: a mistake inside a block is reported for one instance only */
  size_t reported_capacity;
  bool expanding;
  size_t errors_before; /* errors that were there when the import began */
  bool names_complete;  /* false after a mistake that leaves layers unknown: do not report missing names then */
  Node *last;           /* the value of the last layer */
  size_t layer_capacity, value_name_capacity;
} Importer;

/* Values of the parameters that an expression may use. */
typedef struct Scope {
  const ExpressionVariable *variables;
  size_t count;
  bool known;        /* false: check only */
  const char *label; /* whose expression it is, for messages */
} Scope;

/* --- reporting and reading (read.c) ------------------------------------------------------------------ */
/* At the place of a value, of its key. Both return false. */
bool import_error(Importer *importer, const cJSON *item, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool import_key_error(Importer *importer, const cJSON *item, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* While layers are expanded, where one definition may be instantiated thousands of times, a value gets one message
 * only: whether it had it, and to note that it has. */
bool import_reported(const Importer *importer, const cJSON *item);
void import_set_reported(Importer *importer, const cJSON *item);
/* No mistake was found so far: references can be trusted. */
bool import_clean(const Importer *importer);
void import_note(Importer *importer, Location location, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The key is a comment, allowed in every object. */
bool import_comment(const cJSON *member);
/* Reports members whose key is not among `keys`. `label` may be "". */
bool import_check_keys(Importer *importer, const cJSON *object, const char *label, const char *const *keys,
                       size_t count);
/* "; did you mean 'conv2d'?" or "". In the arena. */
const char *import_suggestion(Importer *importer, const char *word, const char *const *candidates, size_t count);
/* Reports unless the item has the type; the first of these also that it is there: "missing key". */
bool import_require(Importer *importer, const cJSON *object, const char *key, const char *label,
                    const cJSON **out_item);
bool import_is_object(Importer *importer, const cJSON *item, const char *what);
bool import_is_array(Importer *importer, const cJSON *item, const char *what);
bool import_is_string(Importer *importer, const cJSON *item, const char *what);
bool import_bool(Importer *importer, const cJSON *item, const char *what, bool *out_value);
/* A string that can be a name of the IR: letters, digits, '_', '-' and inner single '.'. */
bool import_is_name(Importer *importer, const cJSON *item, const char *name, const char *what);
/* A JSON integer, boolean or expression within [minimum, maximum]; `what` follows the scope's label. With the
 * values not known, *out_value is `minimum` for expressions. */
bool import_integer(Importer *importer, const cJSON *item, const Scope *scope, const char *what, int64_t minimum,
                    int64_t maximum, int64_t *out_value);
/* Shape of a list of integers from 1, with "N" first when `batch` is allowed. */
bool import_shape(Importer *importer, const cJSON *item, const char *what, bool batch, Shape *out_shape);
/* "[1,3,224,224]" */
const char *import_shape_text(Importer *importer, const Shape *shape);
/* A count of elements, for allocation: length of an array or object. */
size_t import_size(const cJSON *container);

/* --- definitions (blocks.c, attributes.c) ------------------------------------------------------------- */
void import_blocks(Importer *importer, const cJSON *blocks);
void import_layer_list(Importer *importer, const BlockDef *block, const cJSON *array, LayerList *list);
/* Attributes of a layer from its definition; also the defaults that depend on others. */
bool import_attributes(Importer *importer, const LayerDef *def, const Scope *scope, Attrs *out_attrs);

/* --- layers (expand.c) ------------------------------------------------------------------------------- */
void import_expand(Importer *importer);
/* Registers a value's full name; reports when it is taken. `item` is where it is written. */
bool import_register(Importer *importer, const cJSON *item, const char *label, const char *name, const char *kind,
                     Node *node);
/* importer->broken when a mistake may be why the name of a value is not known, else NULL: its block is broken, or
 * some names could not be read at all. */
Node *import_find_broken(const Importer *importer, const char *prefix, const char *name);
void import_add_value_name(Importer *importer, const char *name, Node *node);

/* --- the other sections (sections.c, training.c) ---------------------------------------------------------- */
void import_inputs(Importer *importer, const cJSON *inputs);
void import_weights(Importer *importer, const cJSON *weights);
void import_check_weights(Importer *importer, const cJSON *weights); /* after the layers: each must be used */
void import_aliases(Importer *importer, const cJSON *aliases);
void import_outputs(Importer *importer, const cJSON *outputs);
void import_groups(Importer *importer, const cJSON *groups);
void import_hooks(Importer *importer, const cJSON *hooks);
void import_labels(Importer *importer, const cJSON *labels);
void import_train(Importer *importer, const cJSON *train);

#endif
