/* frontend/json: what RFC 8259 forbids, and what cJSON alone lets through. */
#include <math.h>

#include "base/text.h"
#include "json.h"
#include "support.h"

static bool parse_n(Fixture *fixture, const char *text, size_t size, Json *json) {
  clear_messages(fixture);
  const char *copy = arena_string_n(fixture->arena, "", 0);
  if (size) {
    char *bytes = arena_alloc(fixture->arena, size + 1, 1);
    memcpy(bytes, text, size);
    copy = bytes;
  }
  return json_parse("m.json", copy, size, fixture->arena, fixture->diag, json);
}

static bool parse(Fixture *fixture, const char *text, Json *json) { return parse_n(fixture, text, strlen(text), json); }

typedef struct Refusal {
  const char *text, *place, *message;
} Refusal;

static void bad_texts_are_refused(void **state) {
  Fixture *fixture = *state;
  static const Refusal refusals[] = {
      {"", "1:1", "expected a value, found the end of the text"},
      {"  \n ", "2:2", "expected a value, found the end of the text"},
      {"{\"a\":01}", "1:6", "a number must not start with 0"},
      {"[-012]", "1:2", "a number must not start with 0"},
      {"[1.]", "1:4", "expected a digit after the decimal point, found ']'"},
      {"[.5]", "1:2", "expected a value, found '.'"},
      {"[+1]", "1:2", "expected a value, found '+'"},
      {"[-]", "1:3", "expected a digit, found ']'"},
      {"[1e]", "1:4", "expected a digit of the exponent, found ']'"},
      {"[1e+]", "1:5", "expected a digit of the exponent, found ']'"},
      {"[1e999]", "1:2", "the number 1e999 is too large"},
      {"[-1e999]", "1:2", "the number -1e999 is too large"},
      {"[NaN]", "1:2", "expected a value, found 'N'"},
      {"[Infinity]", "1:2", "expected a value, found 'I'"},
      {"[0x10]", "1:3", "expected ',' or ']', found 'x'"},
      {"{} x", "1:4", "expected nothing after the value, found 'x'"},
      {"{}{}", "1:3", "expected nothing after the value, found '{'"},
      {"[1,]", "1:4", "expected a value, found ']'"},
      {"[,1]", "1:2", "expected a value, found ','"},
      {"[1 2]", "1:4", "expected ',' or ']', found '2'"},
      {"[1}", "1:3", "expected ',' or ']', found '}'"},
      {"{\"a\":1,}", "1:8", "expected a key in quotes, found '}'"},
      {"{a:1}", "1:2", "expected a key in quotes or '}', found 'a'"},
      {"{1:1}", "1:2", "expected a key in quotes or '}', found '1'"},
      {"{\"a\" 1}", "1:6", "expected ':' after the key, found '1'"},
      {"{\"a\":}", "1:6", "expected a value, found '}'"},
      {"{\"a\":1\n \"b\":2}", "2:2", "expected ',' or '}', found '\"'"},
      {"[tru]", "1:2", "expected a value, found 't'"},
      {"[true1]", "1:6", "expected ',' or ']', found '1'"},
      {"['a']", "1:2", "expected a value, found '''"},
      {"// c\n1", "1:1", "expected a value, found '/'"},
      {"[\"a", "1:2", "this string does not end"},
      {"[\"a\\", "1:4", "invalid escape in a string"},
      {"[\"a\nb\"]", "1:4", "a control byte in a string must be escaped"},
      {"[\"\\x\"]", "1:3", "invalid escape in a string"},
      {"[\"\\u12g4\"]", "1:3", "\\u needs four hexadecimal digits"},
      {"[\"\\u0000\"]", "1:3", "\\u0000 is not allowed in a string"},
      {"{\"a\\u0000\":1}", "1:4", "\\u0000 is not allowed in a string"},
      {"[\"\\ud800\"]", "1:3", "a lone high surrogate in a string"},
      {"[\"\\ud800\\u0041\"]", "1:3", "a lone high surrogate in a string"},
      {"[\"\\ud800\\ud800\"]", "1:3", "a lone high surrogate in a string"},
      {"[\"\\udc00\"]", "1:3", "a lone low surrogate in a string"},
      {"[\n\"ok\xFF\"]", "2:4", "invalid UTF-8: byte 0xff"},
      {"[\"\xC0\x80\"]", "1:3", "invalid UTF-8: byte 0xc0"},
      {"\xEF\xBB\xBF{}", "1:1", "the text starts with a byte order mark: remove it"},
      {"[\x01]", "1:2", "expected a value, found byte 0x01"},
      {"[1, \xC3\xA4]", "1:5", "expected a value, found '\xC3\xA4'"},
      {"[1\v]", "1:3", "expected ',' or ']', found byte 0x0b"},
      {"[", "1:2", "expected a value, found the end of the text"},
      {"{", "1:2", "expected a key in quotes or '}', found the end of the text"},
      {"[111111111111111111111111111111111111111111111111111111111111111111]", "1:2",
       "a number of 66 characters: at most 63 are accepted"},
  };
  for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
    Json json;
    if (parse(fixture, refusals[i].text, &json)) fail_msg("accepted: %s", refusals[i].text);
    check_messages(fixture,
                   arena_format(fixture->arena, "m.json:%s: error: %s\n", refusals[i].place, refusals[i].message));
  }
  Json json;
  assert_false(parse_n(fixture, "[1]\0", 4, &json));
  check_messages(fixture, "m.json:1:4: error: expected nothing after the value, found byte 0x00\n");
}

static void duplicate_keys_are_refused(void **state) {
  Fixture *fixture = *state;
  Json json;
  assert_false(parse(fixture, "{\"a\":1,\n \"b\":{\"c\":1,\"c\":2}, \"\\u0061\":3}", &json));
  check_messages(fixture,
                 "m.json:2:13: error: the key 'c' stands here a second time\nm.json:2:7: note: the first is here\n"
                 "m.json:2:21: error: the key 'a' stands here a second time\nm.json:1:2: note: the first is here\n");
  assert_true(parse(fixture, "{\"a\":1,\"A\":2,\"\":3,\"b\":{\"a\":1}}", &json));
}

static void many_keys_take_no_quadratic_time(void **state) {
  Fixture *fixture = *state;
  Text text;
  text_init(&text, fixture->arena);
  for (int i = 0; i < 100000; i++) text_format(&text, "%s\"k%d\":%d", i ? "," : "{", i, i);
  text_add(&text, ",\"k77\":0}");
  Json json;
  assert_false(parse_n(fixture, text.data, text.size, &json));
  check_message_part(fixture, "the key 'k77' stands here a second time");
}

static void nesting_is_limited(void **state) {
  Fixture *fixture = *state;
  char text[2 * JSON_MAX_DEPTH + 8];
  Json json;
  memset(text, '[', JSON_MAX_DEPTH);
  memset(text + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
  assert_true(parse_n(fixture, text, 2 * JSON_MAX_DEPTH, &json));
  memset(text, '[', sizeof text);
  assert_false(parse_n(fixture, text, sizeof text, &json));
  check_messages(fixture, "m.json:1:65: error: nested deeper than 64 levels\n");
  char *bomb = arena_alloc(fixture->arena, 5000000, 1);
  for (size_t i = 0; i + 5 <= 5000000; i += 5) memcpy(bomb + i, "{\"a\":", 5);
  assert_false(parse_n(fixture, bomb, 5000000, &json));
  check_messages(fixture, "m.json:1:321: error: nested deeper than 64 levels\n");
}

static void check_place(Location location, uint32_t line, uint32_t column) {
  assert_string_equal(location.file, "m.json");
  assert_int_equal(location.line, line);
  assert_int_equal(location.column, column);
}

static void places_are_kept(void **state) {
  Fixture *fixture = *state;
  Json json;
  assert_true(parse(
      fixture, " {\n  \"a\": [1, {}, [ ] ],\r\n\t\"b\\n\" : {\"c\":\n\"\\ud83d\\ude00\"}, \"d\": null }\n", &json));
  check_place(json_location(&json, json.root), 1, 2);
  const cJSON *a = json_member(json.root, "a");
  check_place(json_key_location(&json, a), 2, 3);
  check_place(json_location(&json, a), 2, 8);
  check_place(json_location(&json, a->child), 2, 9);
  check_place(json_key_location(&json, a->child), 2, 9);
  check_place(json_location(&json, a->child->next), 2, 12);
  check_place(json_location(&json, a->child->next->next), 2, 16);
  const cJSON *b = json_member(json.root, "b\n"), *c = json_member(b, "c"), *d = json_member(json.root, "d");
  check_place(json_key_location(&json, b), 3, 2);
  check_place(json_key_location(&json, c), 3, 11);
  check_place(json_location(&json, c), 4, 1);
  assert_string_equal(c->valuestring, "😀");
  check_place(json_key_location(&json, d), 4, 18);
  check_place(json_location(&json, d), 4, 23);
  assert_null(json_member(json.root, "A"));
  assert_null(json_member(a, "a"));
}

static void values_of_all_kinds_are_read(void **state) {
  Fixture *fixture = *state;
  Json json;
  assert_true(parse(fixture, "[{}, [], \"s\", -0.5e-3, true, false, null]", &json));
  static const char *const kinds[] = {"an object", "an array", "a string", "a number", "true", "false", "null"};
  const cJSON *item = json.root->child;
  for (size_t i = 0; i < 7; i++, item = item->next) assert_string_equal(json_kind(item), kinds[i]);
  assert_true(json.root->child->next->next->next->valuedouble == -0.5e-3);
  assert_true(parse(fixture, "\"alone\"", &json));
  assert_string_equal(json.root->valuestring, "alone");
}

static void integers_are_checked(void **state) {
  Fixture *fixture = *state;
  Json json;
  assert_true(parse(fixture, "[1, 1.5, 0, 65535, 65536, \"7\", 1e300, -0.0, 9007199254740991, 1e3, "
                    "9007199254740993, -9007199254740993]", &json));
  static const char *const messages[] = {
      NULL, "1.5", "0", NULL, "65536", "a string", "1e+300", "-0", "9007199254740991", NULL};
  const cJSON *item = json.root->child;
  for (size_t i = 0; i < 10; i++, item = item->next) {
    clear_messages(fixture);
    int64_t value = -1;
    const bool good = json_integer(&json, item, "kernel", 1, 65535, fixture->diag, &value);
    assert_int_equal(good, messages[i] == NULL);
    if (good) {
      assert_int_equal(value, (int64_t)item->valuedouble);
    } else {
      check_message_part(fixture, arena_format(fixture->arena,
                                               "kernel: expected an integer from 1 to 65535, found %s\n", messages[i]));
    }
  }
  int64_t value;
  const cJSON *large = cJSON_GetArrayItem(json.root, 8);
  assert_true(json_integer(&json, large, "size", 0, INT64_MAX, fixture->diag, &value));
  assert_true(value == INT64_C(9007199254740991));
  /* 2^53 + 1 has been rounded to 2^53 by now: neither is taken */
  for (int i = 10; i < 12; i++) {
    clear_messages(fixture);
    assert_false(json_integer(&json, cJSON_GetArrayItem(json.root, i), "size", INT64_MIN, INT64_MAX, fixture->diag, &value));
    check_message_part(fixture, "size: expected an integer from -9007199254740991 to 9007199254740991, found ");
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(bad_texts_are_refused),
      fixture_test(duplicate_keys_are_refused),
      fixture_test(many_keys_take_no_quadratic_time),
      fixture_test(nesting_is_limited),
      fixture_test(places_are_kept),
      fixture_test(values_of_all_kinds_are_read),
      fixture_test(integers_are_checked),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
