/* frontend/safetensors: one refusal for every way in which a file can be wrong. */
#include <math.h>

#include "base/file.h"
#include "safetensors.h"
#include "support.h"

/* A file with this header and `data_size` bytes 0, 1, 2, … after it. */
static bool parse(Fixture *fixture, const char *header, size_t data_size, TensorList *tensors) {
  clear_messages(fixture);
  const uint64_t length = strlen(header);
  const size_t size = 8 + length + data_size;
  unsigned char *bytes = arena_alloc(fixture->arena, size, 1);
  memcpy(bytes, &length, 8);
  memcpy(bytes + 8, header, length);
  for (size_t i = 0; i < data_size; i++) bytes[8 + length + i] = (unsigned char)i;
  return safetensors_parse("w", bytes, size, fixture->arena, fixture->diag, tensors);
}

typedef struct Refusal {
  const char *header;
  size_t data_size;
  const char *message;
} Refusal;

#define ENTRY(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void bad_headers_are_refused(void **state) {
  Fixture *fixture = *state;
  static const Refusal refusals[] = {
      {"[]", 0, "w (header):1:1: error: the header: expected an object, found an array"},
      {"{", 0, "w (header):1:2: error: expected a key in quotes or '}', found the end of the text"},
      {"{\"\xFF\":1}", 0, "w (header):1:3: error: invalid UTF-8: byte 0xff"},
      {"{\"a\":7}", 0, "w (header):1:6: error: tensor 'a': expected an object, found a number"},
      {"{\"a\":{\"shape\":[],\"data_offsets\":[0,4]}}", 4, "tensor 'a': the key 'dtype' is missing"},
      {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "tensor 'a': the key 'shape' is missing"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 4, "tensor 'a': the key 'data_offsets' is missing"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"x\":1}}", 4,
       "w (header):1:53: error: tensor 'a': unknown key 'x', expected dtype, shape, data_offsets"},
      {"{\"a\":" ENTRY("F8_E4M3", "[4]", "[0,4]") "}", 4,
       "w (header):1:15: error: tensor 'a': dtype 'F8_E4M3' is unknown or not supported, expected one of F32, F64, "
       "F16, "
       "BF16, I64, I32, I16, I8, U8, BOOL"},
      {"{\"a\":" ENTRY("f32", "[1]", "[0,4]") "}", 4, "dtype 'f32' is unknown"},
      {"{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
       "tensor 'a': dtype: expected a string, found a number"},
      {"{\"a\":" ENTRY("F32", "4", "[0,4]") "}", 4, "tensor 'a': shape: expected an array, found a number"},
      {"{\"a\":" ENTRY("F32", "[-1]", "[0,4]") "}", 4, "tensor 'a': shape: expected an integer from 0 to"},
      {"{\"a\":" ENTRY("F32", "[0.5]", "[0,4]") "}", 4, "expected an integer from 0 to 9007199254740991, found 0.5"},
      {"{\"a\":" ENTRY("F32", "[1e300]", "[0,4]") "}", 4, "found 1e+300"},
      {"{\"a\":" ENTRY("F32", "[1,1,1,1,1,1,1]", "[0,4]") "}", 4,
       "tensor 'a' has 7 dimensions, at most 6 are supported"},
      {"{\"a\":" ENTRY("F32", "[4294967296,4294967296]", "[0,4]") "}", 4,
       "tensor 'a': the size of shape [4294967296,4294967296] overflows"},
      {"{\"a\":" ENTRY("F64", "[2147483648,1073741824]", "[0,0]") "}", 0, "overflows"},
      {"{\"a\":" ENTRY("F32", "[0,4294967296,4294967296]", "[0,0]") "}", 0, "overflows"},
      {"{\"a\":" ENTRY("F32", "[1]", "[0]") "}", 4, "tensor 'a': data_offsets: expected an array of two integers"},
      {"{\"a\":" ENTRY("F32", "[1]", "[0,2,4]") "}", 4, "expected an array of two integers"},
      {"{\"a\":" ENTRY("F32", "[1]", "{}") "}", 4, "expected an array of two integers"},
      {"{\"a\":" ENTRY("F32", "[1]", "[\"0\",4]") "}", 4, "tensor 'a': data_offsets: expected an integer from 0 to"},
      {"{\"a\":" ENTRY("F32", "[1]", "[4,0]") "}", 4, "tensor 'a': ends at byte 0, before its beginning at byte 4"},
      {"{\"a\":" ENTRY("F32", "[2]", "[0,8]") "}", 7, "tensor 'a': ends at byte 8, but the file holds 7 bytes of data"},
      {"{\"a\":" ENTRY("F32", "[2]", "[0,4]") "}", 4, "tensor 'a': F32 [2] needs 8 bytes, data_offsets span 4"},
      {"{\"a\":" ENTRY("U8", "[2]", "[0,2]") ",\"b\":" ENTRY("U8", "[2]", "[3,5]") "}", 5,
       "w: error: tensor 'b' begins at byte 3, expected 2: a hole in the data"},
      {"{\"b\":" ENTRY("U8", "[2]", "[1,3]") "}", 3, "tensor 'b' begins at byte 1, expected 0: a hole in the data"},
      {"{\"b\":" ENTRY("U8", "[2]", "[1,3]") ",\"a\":" ENTRY("U8", "[2]", "[0,2]") "}", 3,
       "w: error: tensor 'b' begins at byte 1, but 'a' ends at byte 2: they overlap"},
      {"{\"a\":" ENTRY("U8", "[2]", "[0,2]") "}", 3,
       "w: error: the file holds 3 bytes of data, the last tensor ends at byte 2"},
      {"{}", 1, "the file holds 1 bytes of data, the last tensor ends at byte 0"},
      {"{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",\"a\":" ENTRY("U8", "[1]", "[1,2]") "}", 2,
       "the key 'a' stands here a second time"},
      {"{\"__metadata__\":[]}", 0, "__metadata__: expected an object, found an array"},
      {"{\"__metadata__\":{\"a\":\"x\",\"b\":1}}", 0, "__metadata__ 'b': expected a string, found a number"},
  };
  for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
    TensorList tensors;
    if (parse(fixture, refusals[i].header, refusals[i].data_size, &tensors)) {
      fail_msg("accepted: %s", refusals[i].header);
    }
    check_message_part(fixture, refusals[i].message);
    assert_int_equal(diag_error_count(fixture->diag), 1);
  }
}

static void bad_lengths_are_refused(void **state) {
  Fixture *fixture = *state;
  TensorList tensors;
  static const struct {
    uint64_t length;
    size_t size;
    const char *message;
  } cases[] = {
      {0, 0, "w: error: a safetensors file has at least 8 bytes, found 0\n"},
      {0, 7, "w: error: a safetensors file has at least 8 bytes, found 7\n"},
      {100000001, 64, "w: error: the header has 100000001 bytes, more than the limit of 100000000: not a"},
      {UINT64_MAX, 64, "w: error: the header has 18446744073709551615 bytes, more than the limit of 100000000: not a"},
      {57, 64, "w: error: the header has 57 bytes, but only 56 follow its length\n"},
      {0, 8, "w (header):1:1: error: expected a value, found the end of the text\n"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    clear_messages(fixture);
    unsigned char *bytes = arena_alloc(fixture->arena, cases[i].size, 1);
    memcpy(bytes, &cases[i].length, cases[i].size < 8 ? cases[i].size : 8);
    assert_false(safetensors_parse("w", bytes, cases[i].size, fixture->arena, fixture->diag, &tensors));
    check_message_part(fixture, cases[i].message);
  }
}

static void all_mistakes_are_reported_at_once(void **state) {
  Fixture *fixture = *state;
  TensorList tensors;
  assert_false(parse(fixture, "{\"a\":1,\"b\":2,\"c\":{\"x\":1}}", 0, &tensors));
  assert_int_equal(diag_error_count(fixture->diag), 6);
}

static void unusual_but_valid_files_are_read(void **state) {
  Fixture *fixture = *state;
  TensorList tensors;
  assert_true(parse(fixture, "  \n{}  ", 0, &tensors));
  assert_int_equal(tensors.count, 0);
  assert_true(parse(fixture, "{\"__metadata__\":{\"format\":\"pt\"}}", 0, &tensors));
  assert_int_equal(tensors.count, 0);
  assert_true(
      parse(fixture,
            " {\"z\":" ENTRY("U8", "[2]", "[4,6]") ",\"empty\":" ENTRY("F32", "[0,7]", "[4,4]") ",\"scalar\":" ENTRY(
                "F32", "[]", "[0,4]") ",\"\":" ENTRY("BF16", "[1]", "[6,8]") "}  ",
            8, &tensors));
  assert_int_equal(tensors.count, 4);
  static const char *const names[] = {"scalar", "empty", "z", ""};
  for (size_t i = 0; i < 4; i++) {
    assert_string_equal(tensors.items[i].name, names[i]);
    assert_non_null(tensors.items[i].data);
    assert_int_equal((uintptr_t)tensors.items[i].data % 8, 0);
  }
  assert_int_equal(tensors.items[0].shape.rank, 0);
  assert_int_equal(tensor_elements(&tensors.items[1]), 0);
  assert_int_equal(tensor_get(&tensors.items[2], 1), 5);
}

static void tensors_are_aligned_wherever_they_stand(void **state) {
  Fixture *fixture = *state;
  TensorList tensors;
  for (int spaces = 0; spaces < 8; spaces++) {
    const char *header = arena_format(fixture->arena, "%*s{\"a\":" ENTRY("F64", "[2]", "[0,16]") "}", spaces, "");
    assert_true(parse(fixture, header, 16, &tensors));
    assert_int_equal((uintptr_t)tensors.items[0].data % 8, 0);
    assert_memory_equal(tensors.items[0].data, "\0\1\2\3\4\5\6\7", 8);
  }
}

static void written_files_read_back(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "w.safetensors");
  Tensor items[DTYPE_COUNT + 2];
  const Shape shape = shape_of(2, (const int64_t[]){3, 5});
  for (DataType type = 0; type < DTYPE_COUNT; type++) {
    items[type] = tensor_create(fixture->arena, data_type_name(type), type, shape);
    for (int64_t i = 0; i < 15; i++) tensor_set(&items[type], i, (double)(i % 7));
  }
  tensor_set(&items[DTYPE_F32], 3, (double)NAN);
  tensor_set(&items[DTYPE_F64], 4, -HUGE_VAL);
  items[DTYPE_COUNT] = tensor_create(fixture->arena, "a \"name\"\n\\ ä", DTYPE_F32, shape_of(1, (const int64_t[]){0}));
  items[DTYPE_COUNT + 1] = tensor_create(fixture->arena, "scalar", DTYPE_F32, shape_of(0, NULL));
  const TensorList list = {items, DTYPE_COUNT + 2};
  assert_true(safetensors_write(path, &list, fixture->arena, fixture->diag));
  void *first, *second;
  size_t size, size2;
  assert_true(file_read(path, SIZE_MAX, fixture->arena, fixture->diag, &first, &size));
  assert_true(safetensors_write(path, &list, fixture->arena, fixture->diag));
  assert_true(file_read(path, SIZE_MAX, fixture->arena, fixture->diag, &second, &size2));
  assert_int_equal(size, size2);
  assert_memory_equal(first, second, size);
  uint64_t length;
  memcpy(&length, first, 8);
  assert_int_equal((8 + length) % 64, 0);

  TensorList back;
  assert_true(safetensors_read(path, fixture->arena, fixture->diag, &back));
  assert_int_equal(back.count, list.count);
  for (size_t i = 0; i < back.count; i++) {
    assert_string_equal(back.items[i].name, items[i].name);
    assert_int_equal(back.items[i].dtype, items[i].dtype);
    assert_true(shape_equal(&back.items[i].shape, &items[i].shape));
    assert_memory_equal(back.items[i].data, items[i].data, (size_t)tensor_bytes(&items[i]));
  }
  check_messages(fixture, "");
}

static void check_not_written(Fixture *fixture, Tensor *items, size_t count, const char *message) {
  clear_messages(fixture);
  const TensorList list = {items, count};
  const char *path = fixture_path(fixture, "bad");
  assert_false(safetensors_write(path, &list, fixture->arena, fixture->diag));
  check_message_part(fixture, message);
  assert_int_not_equal(access(path, F_OK), 0);
}

static void bad_lists_are_not_written(void **state) {
  Fixture *fixture = *state;
  const Shape shape = shape_of(1, (const int64_t[]){1});
  Tensor items[3];
  for (int i = 0; i < 3; i++) items[i] = tensor_create(fixture->arena, i == 1 ? "b" : "a", DTYPE_F32, shape);
  check_not_written(fixture, items, 3, "two tensors have the name 'a'");
  items[0].name = "__metadata__";
  check_not_written(fixture, items, 1, "a tensor cannot be stored under the name '__metadata__'");
  items[0].name = "\xFF";
  check_not_written(fixture, items, 1, "a tensor cannot be stored under the name '\\xff'");
  items[0].name = "n";
  items[0].shape.dims[0] = DIM_BATCH;
  check_not_written(fixture, items, 1, "tensor 'n': its shape cannot be stored");
}

static void missing_files_are_reported(void **state) {
  Fixture *fixture = *state;
  TensorList tensors;
  assert_false(safetensors_read("/none/w", fixture->arena, fixture->diag, &tensors));
  check_messages(fixture, "/none/w: error: cannot open the file: No such file or directory\n");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(bad_headers_are_refused),
      fixture_test(bad_lengths_are_refused),
      fixture_test(all_mistakes_are_reported_at_once),
      fixture_test(unusual_but_valid_files_are_read),
      fixture_test(tensors_are_aligned_wherever_they_stand),
      fixture_test(written_files_read_back),
      fixture_test(bad_lists_are_not_written),
      fixture_test(missing_files_are_reported),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
