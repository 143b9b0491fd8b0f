/* runtime/session/npy: reading, refusals, writing. */
#include <math.h>

#include "base/file.h"
#include "session/npy.h"
#include "support.h"

/* A file of the given format version with this header and `data_size` bytes 0, 1, 2, … after it. */
static bool parse(Fixture *fixture, int version, const char *header, size_t data_size, Tensor *tensor) {
  clear_messages(fixture);
  Text text;
  text_init(&text, fixture->arena);
  text_add_n(&text, "\x93NUMPY", 6);
  const size_t length = strlen(header);
  const char prefix[] = {(char)version, 0, (char)(length & 0xFF), (char)(length >> 8), 0, 0};
  text_add_n(&text, prefix, version == 1 ? 4 : 6);
  text_add(&text, header);
  for (size_t i = 0; i < data_size; i++) text_add_n(&text, (const char[]){(char)i}, 1);
  return npy_parse("a", arena_copy(fixture->arena, text.data, text.size), text.size, fixture->arena, fixture->diag,
                   tensor);
}

static void arrays_are_read(void **state) {
  Fixture *fixture = *state;
  Tensor tensor;
  for (int version = 1; version <= 3; version++) {
    assert_true(
        parse(fixture, version, "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }   \n", 6, &tensor));
    assert_int_equal(tensor.dtype, DTYPE_U8);
    assert_int_equal(tensor.shape.rank, 2);
    for (int64_t i = 0; i < 6; i++) assert_int_equal(tensor_get(&tensor, i), i);
  }
  assert_true(parse(fixture, 1, "{\"shape\":(3,),\"descr\":\"<i2\",\"fortran_order\":False}", 6, &tensor));
  assert_int_equal(tensor.dtype, DTYPE_I16);
  assert_int_equal(tensor_get(&tensor, 1), 0x0302);
  assert_true(parse(fixture, 1, "{'descr': '<f8', 'fortran_order': False, 'shape': (), }", 8, &tensor));
  assert_int_equal(tensor.shape.rank, 0);
  assert_true(parse(fixture, 1, "{'descr': '<f4', 'fortran_order': True, 'shape': (3, 0, 2), }", 0, &tensor));
  assert_int_equal(tensor_elements(&tensor), 0);
}

static void fortran_order_is_converted(void **state) {
  Fixture *fixture = *state;
  Tensor tensor;
  assert_true(parse(fixture, 1, "{'descr': '|i1', 'fortran_order': True, 'shape': (2, 3, 4), }", 24, &tensor));
  for (int64_t i = 0; i < 2; i++) {
    for (int64_t j = 0; j < 3; j++) {
      for (int64_t k = 0; k < 4; k++) {
        assert_int_equal(tensor_get(&tensor, (i * 3 + j) * 4 + k), i + 2 * j + 6 * k);
      }
    }
  }
}

#define SHAPE(text) "{'descr': '<f4', 'fortran_order': False, 'shape': " text ", }"
#define DESCR(text) "{'descr': " text ", 'fortran_order': False, 'shape': (1,), }"

static void bad_arrays_are_refused(void **state) {
  Fixture *fixture = *state;
  static const struct {
    int version;
    const char *header;
    size_t data_size;
    const char *message;
  } refusals[] = {
      {4, SHAPE("(1,)"), 4, ".npy version 4.0 is not supported, expected 1.0, 2.0 or 3.0"},
      {0, SHAPE("(1,)"), 4, ".npy version 0.0 is not supported"},
      {1, "", 0, "invalid .npy header: it does not start with '{'"},
      {1, "{", 0, "invalid .npy header: a string is missing"},
      {1, "{'descr", 0, "invalid .npy header: a string does not end"},
      {1, "{'descr' '<f4'}", 0, "invalid .npy header: ':' is missing after a key"},
      {1, "{'descr': '<f4' 'shape': ()}", 0, "invalid .npy header: a comma is missing"},
      {1, "{'descr': '<f4', 'shape': (), }", 4, "one of descr, fortran_order, shape is missing"},
      {1, "{'descr': '<f4', 'descr': '<f4', }", 4, "invalid .npy header: a key stands there twice"},
      {1, "{'other': 1}", 4, "invalid .npy header: unknown key"},
      {1, SHAPE("(1,)") " x", 4, "invalid .npy header: text after '}'"},
      {1, "{'descr': '<f4', 'fortran_order': 0, 'shape': ()}", 4, "fortran_order is not True or False"},
      {1, DESCR("'>f4'"), 4, "big-endian data '>f4' is not supported: save it as '<f4'"},
      {1, DESCR("'<u4'"), 4, "element type '<u4' is not supported, expected one of f2, f4, f8, i1, i2, i4, i8, u1, b1"},
      {1, DESCR("'<c8'"), 8, "element type '<c8' is not supported"},
      {1, DESCR("'|f4'"), 4, "element type '|f4' is not supported"},
      {1, DESCR("'|O'"), 8, "element type '|O' is not supported"},
      {1, DESCR("''"), 4, "element type '' is not supported"},
      {1, DESCR("[('a', '<f4')]"), 4, "arrays of records are not supported"},
      {1, DESCR("'<f4444444444444444444'"), 4, "a string is too long"},
      {1, SHAPE("3"), 12, "the shape is not a tuple"},
      {1, SHAPE("(3)"), 12, "the shape is not a tuple"},
      {1, SHAPE("(3 3)"), 36, "a comma is missing in the shape"},
      {1, SHAPE("(-1,)"), 4, "a dimension is not a number"},
      {1, SHAPE("(1.0,)"), 4, "a comma is missing in the shape"},
      {1, SHAPE("(,)"), 4, "a dimension is not a number"},
      {1, SHAPE("(99999999999999999999,)"), 4, "a dimension is too large"},
      {1, SHAPE("(4294967296,4294967296)"), 4, "the size of the array overflows"},
      {1, SHAPE("(0,4294967296,4294967296)"), 0, "the size of the array overflows"},
      {1, SHAPE("(4611686018427387904,)"), 0, "the size of the array overflows"},
      {1, SHAPE("(1,1,1,1,1,1,1)"), 4, "the array has more than 6 dimensions"},
      {1, SHAPE("(2,)"), 7, "f32 [2] needs 8 bytes, the file holds 7"},
      {1, SHAPE("(2,)"), 9, "f32 [2] needs 8 bytes, the file holds 9"},
  };
  for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
    Tensor tensor;
    if (parse(fixture, refusals[i].version, refusals[i].header, refusals[i].data_size, &tensor)) {
      fail_msg("accepted: %s", refusals[i].header);
    }
    check_message_part(fixture, refusals[i].message);
    assert_int_equal(diag_error_count(fixture->diag), 1);
  }
}

static void truncated_arrays_are_refused(void **state) {
  Fixture *fixture = *state;
  static const char file[] = "\x93NUMPY\x02\x00\x40\x00\x00\x00{'descr'";
  for (size_t size = 0; size < sizeof file; size++) {
    clear_messages(fixture);
    Tensor tensor;
    assert_false(npy_parse("a", arena_copy(fixture->arena, file, size), size, fixture->arena, fixture->diag, &tensor));
    check_messages(fixture,
                   size < 10 ? "a: error: not a .npy file\n" : "a: error: the file ends inside the .npy header\n");
  }
}

static void written_arrays_read_back(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "a.npy");
  for (int32_t rank = 0; rank <= SHAPE_MAX_RANK; rank++) {
    const Shape shape = shape_of(rank, (const int64_t[]){3, 1, 2, 5, 1, 2});
    for (DataType type = 0; type < DTYPE_COUNT; type++) {
      if (type == DTYPE_BF16) continue;
      Tensor tensor = tensor_create(fixture->arena, "t", type, shape), back;
      for (int64_t i = 0; i < tensor_elements(&tensor); i++) tensor_set(&tensor, i, (double)(i % 100));
      assert_true(npy_write(path, &tensor, fixture->arena, fixture->diag));
      assert_true(npy_read(path, fixture->arena, fixture->diag, &back));
      assert_int_equal(back.dtype, type);
      assert_true(shape_equal(&back.shape, &shape));
      assert_memory_equal(back.data, tensor.data, (size_t)tensor_bytes(&tensor));
    }
  }
  const Tensor tensor = tensor_create(fixture->arena, "t", DTYPE_BF16, shape_of(0, NULL));
  assert_false(npy_write(path, &tensor, fixture->arena, fixture->diag));
  check_messages(fixture, arena_format(fixture->arena, "%s: error: .npy has no element type bf16\n", path));
}

/* What numpy.save() writes, byte for byte. */
static void written_bytes_equal_numpy(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "a.npy");
  Tensor tensor = tensor_create(fixture->arena, "t", DTYPE_F32, shape_of(1, (const int64_t[]){2}));
  tensor_set(&tensor, 0, 1);
  assert_true(npy_write(path, &tensor, fixture->arena, fixture->diag));
  char expected[136];
  memset(expected, ' ', 128);
  memcpy(expected, "\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 67);
  expected[127] = '\n';
  memcpy(expected + 128, "\x00\x00\x80\x3f\x00\x00\x00\x00", 8);
  void *bytes;
  size_t size;
  assert_true(file_read(path, 1000, fixture->arena, fixture->diag, &bytes, &size));
  assert_int_equal(size, sizeof expected);
  assert_memory_equal(bytes, expected, sizeof expected);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(arrays_are_read),          fixture_test(fortran_order_is_converted),
      fixture_test(bad_arrays_are_refused),   fixture_test(truncated_arrays_are_refused),
      fixture_test(written_arrays_read_back), fixture_test(written_bytes_equal_numpy),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
