/* Strict JSON with positions, on top of cJSON.
 *
 * cJSON alone accepts duplicate keys, `01`, `1.`, `1e999`, trailing text, control bytes and invalid UTF-8, and
 * keeps no positions. json_parse() first scans the text by RFC 8259, which refuses all of these with line and
 * column and records where every value and key starts; then cJSON builds the tree. Values are visited in the
 * same order by both, so the k-th value of the tree has the k-th recorded position: its number is kept in
 * cJSON's otherwise unused `valueint`. */
#ifndef KILN_FRONTEND_JSON_H
#define KILN_FRONTEND_JSON_H

#include <cjson/cJSON.h>

#include "base/diag.h"

enum { JSON_MAX_DEPTH = 64 };

typedef struct Json {
  const cJSON *root;
  const char *file;
  /* positions of values and of their keys, by number; columns count bytes from 1 */
  const Location *value_locations;
  const Location *key_locations;
} Json;

/* `text` of `size` bytes, NUL-terminated at text[size]. The tree lives as long as `arena`. */
bool json_parse(const char *file, const char *text, size_t size, Arena *arena, Diag *diag, Json *out_json);

Location json_location(const Json *json, const cJSON *item);     /* where the value starts */
Location json_key_location(const Json *json, const cJSON *item); /* where its key starts (its value in arrays) */
/* Member by exact, case-sensitive name, or NULL. */
const cJSON *json_member(const cJSON *object, const char *name);
/* Largest magnitude of an integer: 2^53 itself is also what 2^53 + 1 is rounded to (RFC 8259, section 6). */
#define JSON_INTEGER_LIMIT ((INT64_C(1) << 53) - 1)
/* An integer in [minimum, maximum]: integral and within JSON_INTEGER_LIMIT. Otherwise reports at the item:
 * "<what>: expected an integer from 1 to 65535, found 1.5". */
bool json_integer(const Json *json, const cJSON *item, const char *what, int64_t minimum, int64_t maximum, Diag *diag,
                  int64_t *out_value);
/* What kind of value it is, for messages: "a string", "an object", … */
const char *json_kind(const cJSON *item);

#endif
