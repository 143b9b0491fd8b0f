/* Attributes of nodes: one flat struct, described by ir/attrs.def. A node uses only those its op's row names;
 * the others keep their defaults, so that structs compare and hash whole. */
#ifndef KILN_IR_ATTRS_H
#define KILN_IR_ATTRS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/text.h"

/* Values of ENUM attributes; each attribute takes the words listed for it in attrs.c. */
typedef enum AttrWord {
  PADDING_ZEROS, /* padding_mode: zeros, reflect, replicate; grid_sample also border, reflection */
  PADDING_REFLECT,
  PADDING_REPLICATE,
  MODE_NEAREST, /* mode: nearest, bilinear */
  MODE_BILINEAR,
  APPROXIMATE_NONE, /* approximate: none, tanh */
  APPROXIMATE_TANH,
  REDUCTION_MEAN, /* reduction: mean, sum, none */
  REDUCTION_SUM,
  REDUCTION_NONE,
  ATTR_WORD_COUNT
} AttrWord;

enum { ATTR_LIST_MAX = 8 };

typedef struct IntList {
  int32_t count;
  int64_t values[ATTR_LIST_MAX];
} IntList;

typedef struct FloatList {
  int32_t count;
  double values[ATTR_LIST_MAX];
} FloatList;

typedef int64_t AttrInt;
typedef struct { int64_t values[2]; } AttrInt2;
typedef struct { int64_t values[4]; } AttrInt4;

typedef enum AttrType { ATTR_INT, ATTR_INT2, ATTR_INT4, ATTR_FLOAT, ATTR_BOOL, ATTR_ENUM, ATTR_INTS, ATTR_FLOATS } AttrType;

#define ATTR_CTYPE_INT    int64_t
#define ATTR_CTYPE_INT2   AttrInt2
#define ATTR_CTYPE_INT4   AttrInt4
#define ATTR_CTYPE_FLOAT  double
#define ATTR_CTYPE_BOOL   bool
#define ATTR_CTYPE_ENUM   AttrWord
#define ATTR_CTYPE_INTS   IntList
#define ATTR_CTYPE_FLOATS FloatList

typedef struct Attrs {
#define ATTR(NAME, type, field, initial) ATTR_CTYPE_##type field;
#define ATTR_IMPORT ATTR
#include "attrs.def"
#undef ATTR
#undef ATTR_IMPORT
} Attrs;

typedef enum AttrId {
#define ATTR(NAME, type, field, initial) ATTR_ID_##NAME,
#define ATTR_IMPORT ATTR
#include "attrs.def"
#undef ATTR
#undef ATTR_IMPORT
  ATTR_ID_COUNT
} AttrId;

_Static_assert(ATTR_ID_COUNT <= 64, "attribute masks are 64 bits");

/* A set of attributes, for the op table: A(KERNEL) | A(STRIDE). */
typedef uint64_t AttrMask;
#define A(NAME) (UINT64_C(1) << ATTR_ID_##NAME)

typedef struct AttrInfo {
  const char *name;
  AttrType type;
  size_t offset;
  bool import_only;
} AttrInfo;

const AttrInfo *attr_info(AttrId id);
/* Id of a name, or ATTR_ID_COUNT. */
AttrId attr_find(const char *name);
/* All defaults. */
Attrs attrs_default(void);
bool attrs_equal(const Attrs *a, const Attrs *b, AttrMask mask);
uint64_t attrs_hash(const Attrs *attrs, AttrMask mask);
/* "stride=[2,2], padding=[1,1,1,1]": those of `mask` that differ from their default, in table order. */
void attrs_print(Text *text, const Attrs *attrs, AttrMask mask);
/* Words of an ENUM attribute: NULL-terminated names and their values. */
size_t attr_words(AttrId id, const char *const **out_names, const AttrWord **out_values);
bool attr_word_parse(AttrId id, const char *name, AttrWord *out_word);
const char *attr_word_name(AttrId id, AttrWord word);

#endif
