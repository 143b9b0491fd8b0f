#include "npy.h"

#include <string.h>

#include "base/checked.h"
#include "base/file.h"

enum { PREFIX_BYTES = 10, HEADER_LIMIT = 1 << 16, DATA_ALIGNMENT = 64 };
static const size_t file_limit = (size_t)1 << 40;
static const char magic[] = "\x93NUMPY";

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "array data is copied as it is");

/* Codes after the byte order mark; NULL where NumPy has no such type. */
static const char *const type_codes[DTYPE_COUNT] = {
    [DTYPE_F32] = "f4", [DTYPE_F64] = "f8", [DTYPE_F16] = "f2", [DTYPE_I64] = "i8",  [DTYPE_I32] = "i4",
    [DTYPE_I16] = "i2", [DTYPE_I8] = "i1",  [DTYPE_U8] = "u1",  [DTYPE_BOOL] = "b1",
};

/* --- header ---------------------------------------------------------------------------------------- */

/* The header is the text of a Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } */
typedef struct Header {
  const char *name, *at, *end;
  Diag *diag;
  DataType dtype;
  Shape shape;
  bool fortran_order;
} Header;

static bool fail(const Header *header, const char *message) {
  diag_error(header->diag, (Location){header->name, 0, 0}, "invalid .npy header: %s", message);
  return false;
}

static void skip_space(Header *header) {
  while (header->at < header->end && (*header->at == ' ' || *header->at == '\n' || *header->at == '\t')) header->at++;
}

/* Takes `c` after white space when it is there. */
static bool take(Header *header, char c) {
  skip_space(header);
  if (header->at == header->end || *header->at != c) return false;
  header->at++;
  return true;
}

static bool take_word(Header *header, const char *word) {
  skip_space(header);
  const size_t length = strlen(word);
  if ((size_t)(header->end - header->at) < length || memcmp(header->at, word, length) != 0) return false;
  header->at += length;
  return true;
}

/* A short string without escapes, in either kind of quotes. */
static bool read_string(Header *header, char *buffer, size_t size) {
  skip_space(header);
  if (header->at == header->end || (*header->at != '\'' && *header->at != '"'))
    return fail(header, "a string is missing");
  const char quote = *header->at++;
  size_t length = 0;
  while (header->at < header->end && *header->at != quote) {
    if (length + 1 >= size) return fail(header, "a string is too long");
    buffer[length++] = *header->at++;
  }
  buffer[length] = '\0';
  if (header->at == header->end) return fail(header, "a string does not end");
  header->at++;
  return true;
}

static bool read_descr(Header *header) {
  const Location location = {header->name, 0, 0};
  char descr[16];
  if (take(header, '[')) {
    diag_error(header->diag, location, "arrays of records are not supported");
    return false;
  }
  if (!read_string(header, descr, sizeof descr)) return false;
  if (descr[0] == '>') {
    diag_error(header->diag, location, "big-endian data '%s' is not supported: save it as '<%s'", descr, descr + 1);
    return false;
  }
  for (DataType type = 0; type < DTYPE_COUNT; type++) {
    const bool order_fits = descr[0] == '<' || (descr[0] == '|' && data_type_bytes(type) == 1);
    if (!type_codes[type] || !order_fits || strcmp(descr + 1, type_codes[type]) != 0) continue;
    header->dtype = type;
    return true;
  }
  diag_error(header->diag, location,
             "element type '%s' is not supported, expected one of f2, f4, f8, i1, i2, i4, i8, u1, b1", descr);
  return false;
}

static bool read_shape(Header *header) {
  if (!take(header, '(')) return fail(header, "the shape is not a tuple");
  Shape shape = {.rank = 0};
  bool comma = true; /* (3) is a number in Python, (3,) a tuple */
  while (!take(header, ')')) {
    if (!comma) return fail(header, "a comma is missing in the shape");
    if (shape.rank == SHAPE_MAX_RANK) {
      diag_error(header->diag, (Location){header->name, 0, 0}, "the array has more than %d dimensions", SHAPE_MAX_RANK);
      return false;
    }
    skip_space(header);
    int64_t dim = 0;
    const char *digits = header->at;
    while (header->at < header->end && *header->at >= '0' && *header->at <= '9') {
      if (!checked_mul(dim, 10, &dim) || !checked_add(dim, *header->at++ - '0', &dim)) {
        return fail(header, "a dimension is too large");
      }
    }
    if (header->at == digits) return fail(header, "a dimension is not a number");
    shape.dims[shape.rank++] = dim;
    comma = take(header, ',');
  }
  if (shape.rank == 1 && !comma) return fail(header, "the shape is not a tuple");
  header->shape = shape;
  return true;
}

static bool read_value(Header *header, int key) {
  switch (key) {
    case 0:
      return read_descr(header);
    case 1:
      header->fortran_order = take_word(header, "True");
      return header->fortran_order || take_word(header, "False") || fail(header, "fortran_order is not True or False");
    default:
      return read_shape(header);
  }
}

static bool read_header(Header *header) {
  static const char *const keys[] = {"descr", "fortran_order", "shape"};
  unsigned seen = 0;
  if (!take(header, '{')) return fail(header, "it does not start with '{'");
  bool comma = true;
  while (!take(header, '}')) {
    char key[32];
    if (!comma) return fail(header, "a comma is missing");
    if (!read_string(header, key, sizeof key)) return false;
    int number = 0;
    while (number < 3 && strcmp(key, keys[number]) != 0) number++;
    if (number == 3) return fail(header, "unknown key");
    if (seen & 1U << number) return fail(header, "a key stands there twice");
    seen |= 1U << number;
    if (!take(header, ':')) return fail(header, "':' is missing after a key");
    if (!read_value(header, number)) return false;
    comma = take(header, ',');
  }
  if (seen != 7) return fail(header, "one of descr, fortran_order, shape is missing");
  skip_space(header);
  return header->at == header->end || fail(header, "text after '}'");
}

/* --- reading --------------------------------------------------------------------------------------- */

/* Copies elements from Fortran order (first index fastest) to C order (last index fastest): counts up the index in
 * C order and moves the source along by its strides. */
static void copy_fortran(unsigned char *to, const unsigned char *from, const Shape *shape, int64_t count,
                         int64_t bytes) {
  int64_t strides[SHAPE_MAX_RANK], index[SHAPE_MAX_RANK] = {0};
  int64_t stride = bytes;
  for (int32_t i = 0; i < shape->rank; i++) {
    strides[i] = stride;
    stride *= shape->dims[i];
  }
  for (int64_t done = 0; done < count; done++) {
    memcpy(to, from, (size_t)bytes);
    to += bytes;
    for (int32_t i = shape->rank - 1; i >= 0; i--) {
      if (++index[i] < shape->dims[i]) {
        from += strides[i];
        break;
      }
      from -= strides[i] * (shape->dims[i] - 1);
      index[i] = 0;
    }
  }
}

/* Finds the header's text and the start of the data. */
static bool find_header(Header *header, const unsigned char *bytes, size_t size, size_t *out_start) {
  const Location location = {header->name, 0, 0};
  if (size < PREFIX_BYTES || memcmp(bytes, magic, sizeof magic - 1) != 0) {
    diag_error(header->diag, location, "not a .npy file");
    return false;
  }
  const unsigned version = bytes[6];
  if (version < 1 || version > 3 || bytes[7] != 0) {
    diag_error(header->diag, location, ".npy version %u.%u is not supported, expected 1.0, 2.0 or 3.0", version,
               bytes[7]);
    return false;
  }
  const size_t prefix = version == 1 ? PREFIX_BYTES : PREFIX_BYTES + 2;
  size_t length = bytes[8] | (size_t)bytes[9] << 8;
  if (version > 1 && size >= prefix) length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
  if (size < prefix || length > size - prefix) {
    diag_error(header->diag, location, "the file ends inside the .npy header");
    return false;
  }
  if (length > HEADER_LIMIT) {
    diag_error(header->diag, location, "the .npy header has %zu bytes, more than the limit of %d", length,
               HEADER_LIMIT);
    return false;
  }
  header->at = (const char *)bytes + prefix;
  header->end = header->at + length;
  *out_start = prefix + length;
  return true;
}

bool npy_parse(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag, Tensor *out_tensor) {
  Header header = {.name = name, .diag = diag};
  const Location location = {name, 0, 0};
  size_t start;
  if (!find_header(&header, bytes, size, &start) || !read_header(&header)) return false;
  int64_t count, needed;
  if (!shape_elements(&header.shape, 1, &count) || !checked_mul(count, data_type_bytes(header.dtype), &needed)) {
    diag_error(diag, location, "the size of the array overflows");
    return false;
  }
  if ((uint64_t)needed != size - start) {
    Text shape;
    text_init(&shape, arena);
    shape_print(&shape, &header.shape);
    diag_error(diag, location, "%s [%s] needs %lld bytes, the file holds %zu", data_type_name(header.dtype), shape.data,
               (long long)needed, size - start);
    return false;
  }
  Tensor tensor = tensor_create(arena, name, header.dtype, header.shape);
  const unsigned char *data = (const unsigned char *)bytes + start;
  if (header.fortran_order) {
    copy_fortran(tensor.data, data, &header.shape, count, data_type_bytes(header.dtype));
  } else if (needed > 0) {
    memcpy(tensor.data, data, (size_t)needed);
  }
  *out_tensor = tensor;
  return true;
}

bool npy_read(const char *path, Arena *arena, Diag *diag, Tensor *out_tensor) {
  void *bytes;
  size_t size;
  return file_read(path, file_limit, arena, diag, &bytes, &size) &&
         npy_parse(path, bytes, size, arena, diag, out_tensor);
}

/* --- writing --------------------------------------------------------------------------------------- */

bool npy_write(const char *path, const Tensor *tensor, Arena *scratch, Diag *diag) {
  const char *code = type_codes[tensor->dtype];
  if (!code) {
    diag_error(diag, (Location){path, 0, 0}, ".npy has no element type %s", data_type_name(tensor->dtype));
    return false;
  }
  Text header;
  text_init(&header, scratch);
  text_add_n(&header, magic, sizeof magic - 1);
  text_add_n(&header, "\x01\x00\x00\x00", 4); /* version 1.0, length: below */
  text_format(&header, "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
              data_type_bytes(tensor->dtype) == 1 ? '|' : '<', code);
  for (int32_t i = 0; i < tensor->shape.rank; i++) {
    text_format(&header, "%s%lld", i ? ", " : "", (long long)tensor->shape.dims[i]);
  }
  text_add(&header, tensor->shape.rank == 1 ? ",), }" : "), }");
  while ((header.size + 1) % DATA_ALIGNMENT != 0) text_add(&header, " ");
  text_add(&header, "\n");
  const size_t length = header.size - PREFIX_BYTES; /* below 256 + 64 for six dimensions */
  header.data[8] = (char)(length & 0xFF);
  header.data[9] = (char)(length >> 8);
  const FilePiece pieces[] = {{header.data, header.size}, {tensor->data, (size_t)tensor_bytes(tensor)}};
  return file_write(path, pieces, 2, diag);
}
