#include "safetensors.h"

#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/sort.h"
#include "json.h"

/* The format's own limit of the header; the size limit of a file is only there to be finite. */
enum { LENGTH_BYTES = 8, HEADER_LIMIT = 100000000, DATA_ALIGNMENT = 64 };
static const size_t file_limit = (size_t)1 << 46;

/* Tensor data is little-endian and used in place. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors data is used in place");

static const char metadata_name[] = "__metadata__";

static const char *const dtype_names[] = {
#define X(enumerator, name, tensor_name, bytes) [enumerator] = tensor_name,
    DATA_TYPES(X)
#undef X
};

/* --- reading --------------------------------------------------------------------------------------- */

typedef struct Reader {
  const char *name;
  Json json;
  const unsigned char *data; /* after the header */
  int64_t data_size;
  Arena *arena;
  Diag *diag;
} Reader;

/* A tensor and its place in the data. */
typedef struct Entry {
  Tensor tensor;
  int64_t begin, end;
} Entry;

static bool read_dtype(const Reader *reader, const cJSON *item, const char *name, DataType *out_dtype) {
  if (!cJSON_IsString(item)) {
    diag_error(reader->diag, json_location(&reader->json, item), "tensor '%s': dtype: expected a string, found %s",
               name, json_kind(item));
    return false;
  }
  for (DataType type = 0; type < DTYPE_COUNT; type++) {
    if (strcmp(item->valuestring, dtype_names[type]) == 0) {
      *out_dtype = type;
      return true;
    }
  }
  Text known;
  text_init(&known, reader->arena);
  for (DataType type = 0; type < DTYPE_COUNT; type++) text_format(&known, "%s%s", type ? ", " : "", dtype_names[type]);
  diag_error(reader->diag, json_location(&reader->json, item),
             "tensor '%s': dtype '%s' is unknown or not supported, expected one of %s", name, item->valuestring,
             known.data);
  return false;
}

static bool read_shape(const Reader *reader, const cJSON *item, const char *name, Shape *out_shape) {
  if (!cJSON_IsArray(item)) {
    diag_error(reader->diag, json_location(&reader->json, item), "tensor '%s': shape: expected an array, found %s",
               name, json_kind(item));
    return false;
  }
  const int rank = cJSON_GetArraySize(item);
  if (rank > SHAPE_MAX_RANK) {
    diag_error(reader->diag, json_location(&reader->json, item),
               "tensor '%s' has %d dimensions, at most %d are supported", name, rank, SHAPE_MAX_RANK);
    return false;
  }
  const char *what = arena_format(reader->arena, "tensor '%s': shape", name);
  Shape shape = {.rank = rank};
  int32_t axis = 0;
  for (const cJSON *dim = item->child; dim; dim = dim->next) {
    if (!json_integer(&reader->json, dim, what, 0, INT64_MAX, reader->diag, &shape.dims[axis++])) return false;
  }
  *out_shape = shape;
  return true;
}

static bool read_offsets(const Reader *reader, const cJSON *item, const char *name, Entry *entry) {
  const Location location = json_location(&reader->json, item);
  if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2) {
    diag_error(reader->diag, location, "tensor '%s': data_offsets: expected an array of two integers", name);
    return false;
  }
  const char *what = arena_format(reader->arena, "tensor '%s': data_offsets", name);
  if (!json_integer(&reader->json, item->child, what, 0, INT64_MAX, reader->diag, &entry->begin) ||
      !json_integer(&reader->json, item->child->next, what, 0, INT64_MAX, reader->diag, &entry->end)) {
    return false;
  }
  if (entry->end < entry->begin) {
    diag_error(reader->diag, location, "tensor '%s': ends at byte %lld, before its beginning at byte %lld", name,
               (long long)entry->end, (long long)entry->begin);
    return false;
  }
  if (entry->end > reader->data_size) {
    diag_error(reader->diag, location, "tensor '%s': ends at byte %lld, but the file holds %lld bytes of data", name,
               (long long)entry->end, (long long)reader->data_size);
    return false;
  }
  return true;
}

static bool check_size(const Reader *reader, const cJSON *item, const Entry *entry) {
  const Tensor *tensor = &entry->tensor;
  Text shape;
  text_init(&shape, reader->arena);
  shape_print(&shape, &tensor->shape);
  int64_t bytes = 0;
  if (!shape_elements(&tensor->shape, 1, &bytes) || !checked_mul(bytes, data_type_bytes(tensor->dtype), &bytes)) {
    diag_error(reader->diag, json_location(&reader->json, item), "tensor '%s': the size of shape [%s] overflows",
               tensor->name, shape.data);
    return false;
  }
  if (bytes != entry->end - entry->begin) {
    diag_error(reader->diag, json_location(&reader->json, item),
               "tensor '%s': %s [%s] needs %lld bytes, data_offsets span %lld", tensor->name,
               dtype_names[tensor->dtype], shape.data, (long long)bytes, (long long)(entry->end - entry->begin));
    return false;
  }
  return true;
}

static bool read_entry(const Reader *reader, const cJSON *item, Entry *out_entry) {
  static const char *const keys[] = {"dtype", "shape", "data_offsets"};
  const char *name = item->string;
  if (!cJSON_IsObject(item)) {
    diag_error(reader->diag, json_location(&reader->json, item), "tensor '%s': expected an object, found %s", name,
               json_kind(item));
    return false;
  }
  bool good = true;
  for (const cJSON *member = item->child; member; member = member->next) {
    bool known = false;
    for (size_t i = 0; i < 3; i++) known = known || strcmp(member->string, keys[i]) == 0;
    if (!known) {
      diag_error(reader->diag, json_key_location(&reader->json, member),
                 "tensor '%s': unknown key '%s', expected dtype, shape, data_offsets", name, member->string);
      good = false;
    }
  }
  const cJSON *values[3];
  for (size_t i = 0; i < 3; i++) {
    values[i] = json_member(item, keys[i]);
    if (!values[i]) {
      diag_error(reader->diag, json_location(&reader->json, item), "tensor '%s': the key '%s' is missing", name,
                 keys[i]);
      good = false;
    }
  }
  if (!good) return false;
  *out_entry = (Entry){.tensor.name = arena_string(reader->arena, name)};
  return read_dtype(reader, values[0], name, &out_entry->tensor.dtype) &&
         read_shape(reader, values[1], name, &out_entry->tensor.shape) &&
         read_offsets(reader, values[2], name, out_entry) && check_size(reader, item, out_entry);
}

static bool check_metadata(const Reader *reader, const cJSON *item) {
  if (!cJSON_IsObject(item)) {
    diag_error(reader->diag, json_location(&reader->json, item), "__metadata__: expected an object, found %s",
               json_kind(item));
    return false;
  }
  bool good = true;
  for (const cJSON *member = item->child; member; member = member->next) {
    if (cJSON_IsString(member)) continue;
    diag_error(reader->diag, json_location(&reader->json, member), "__metadata__ '%s': expected a string, found %s",
               member->string, json_kind(member));
    good = false;
  }
  return good;
}

static int compare_places(const void *a, const void *b) {
  const Entry *left = a, *right = b;
  if (left->begin != right->begin) return left->begin < right->begin ? -1 : 1;
  return left->end < right->end ? -1 : left->end > right->end;
}

/* The sorted tensors must cover the data without a hole or an overlap. */
static bool check_cover(const Reader *reader, const void *const *entries, size_t count) {
  const Location location = {reader->name, 0, 0};
  int64_t covered = 0;
  for (size_t i = 0; i < count; i++) {
    const Entry *entry = entries[i];
    if (entry->begin > covered) {
      diag_error(reader->diag, location, "tensor '%s' begins at byte %lld, expected %lld: a hole in the data",
                 entry->tensor.name, (long long)entry->begin, (long long)covered);
      return false;
    }
    if (entry->begin < covered) {
      const Entry *before = entries[i - 1];
      diag_error(reader->diag, location, "tensor '%s' begins at byte %lld, but '%s' ends at byte %lld: they overlap",
                 entry->tensor.name, (long long)entry->begin, before->tensor.name, (long long)before->end);
      return false;
    }
    covered = entry->end;
  }
  if (covered != reader->data_size) {
    diag_error(reader->diag, location, "the file holds %lld bytes of data, the last tensor ends at byte %lld",
               (long long)reader->data_size, (long long)covered);
    return false;
  }
  return true;
}

static bool read_header(Reader *reader, TensorList *out_tensors) {
  const cJSON *root = reader->json.root;
  if (!cJSON_IsObject(root)) {
    diag_error(reader->diag, json_location(&reader->json, root), "the header: expected an object, found %s",
               json_kind(root));
    return false;
  }
  const size_t limit = (size_t)cJSON_GetArraySize(root);
  Entry *entries = arena_array(reader->arena, limit, Entry);
  size_t count = 0;
  bool good = true;
  for (const cJSON *item = root->child; item && !diag_full(reader->diag); item = item->next) {
    if (strcmp(item->string, metadata_name) == 0) {
      good = check_metadata(reader, item) && good;
    } else if (read_entry(reader, item, &entries[count])) {
      count++;
    } else {
      good = false;
    }
  }
  if (!good) return false;
  const void **order = arena_array(reader->arena, count, const void *);
  const void **scratch = arena_array(reader->arena, count, const void *);
  for (size_t i = 0; i < count; i++) order[i] = &entries[i];
  sort_pointers(order, scratch, count, compare_places);
  if (!check_cover(reader, order, count)) return false;

  Tensor *tensors = arena_array(reader->arena, count, Tensor);
  for (size_t i = 0; i < count; i++) {
    const Entry *entry = order[i];
    tensors[i] = entry->tensor;
    const unsigned char *data = reader->data + entry->begin;
    const size_t size = (size_t)(entry->end - entry->begin);
    if ((uintptr_t)data % 8 != 0 || size == 0) {
      tensors[i].data = arena_alloc_aligned(reader->arena, size, DATA_ALIGNMENT);
      if (size) memcpy(tensors[i].data, data, size);
    } else {
      tensors[i].data = (void *)(uintptr_t)data; /* the reader's buffer; the caller decides who may write */
    }
  }
  *out_tensors = (TensorList){tensors, count};
  return true;
}

bool safetensors_parse(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag,
                       TensorList *out_tensors) {
  const Location location = {name, 0, 0};
  if (size < LENGTH_BYTES) {
    diag_error(diag, location, "a safetensors file has at least 8 bytes, found %zu", size);
    return false;
  }
  uint64_t length;
  memcpy(&length, bytes, LENGTH_BYTES);
  if (length > HEADER_LIMIT) {
    diag_error(diag, location, "the header has %llu bytes, more than the limit of %d: not a safetensors file?",
               (unsigned long long)length, HEADER_LIMIT);
    return false;
  }
  if (length > size - LENGTH_BYTES) {
    diag_error(diag, location, "the header has %llu bytes, but only %zu follow its length", (unsigned long long)length,
               size - LENGTH_BYTES);
    return false;
  }
  Reader reader = {.name = name, .arena = arena, .diag = diag};
  reader.data = (const unsigned char *)bytes + LENGTH_BYTES + length;
  reader.data_size = (int64_t)(size - LENGTH_BYTES - length);
  char *text = arena_alloc(arena, (size_t)length + 1, 1);
  memcpy(text, (const char *)bytes + LENGTH_BYTES, (size_t)length);
  /* Lines and columns of messages are those of the header, not of the file. */
  const char *header_name = arena_format(arena, "%s (header)", name);
  return json_parse(header_name, text, (size_t)length, arena, diag, &reader.json) && read_header(&reader, out_tensors);
}

bool safetensors_read(const char *path, Arena *arena, Diag *diag, TensorList *out_tensors) {
  void *bytes;
  size_t size;
  return file_read(path, file_limit, arena, diag, &bytes, &size) &&
         safetensors_parse(path, bytes, size, arena, diag, out_tensors);
}

/* --- writing --------------------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b) {
  return strcmp(((const Tensor *)a)->name, ((const Tensor *)b)->name);
}

static bool check_names(const char *path, const TensorList *tensors, Arena *scratch, Diag *diag) {
  const Location location = {path, 0, 0};
  const void **order = arena_array(scratch, tensors->count, const void *);
  const void **spare = arena_array(scratch, tensors->count, const void *);
  for (size_t i = 0; i < tensors->count; i++) {
    const char *name = tensors->items[i].name;
    if (strcmp(name, metadata_name) == 0 || !utf8_valid(name, strlen(name))) {
      diag_error(diag, location, "a tensor cannot be stored under the name '%s'", name);
      return false;
    }
    order[i] = &tensors->items[i];
  }
  sort_pointers(order, spare, tensors->count, compare_names);
  for (size_t i = 1; i < tensors->count; i++) {
    if (compare_names(order[i - 1], order[i]) != 0) continue;
    diag_error(diag, location, "two tensors have the name '%s'", ((const Tensor *)order[i])->name);
    return false;
  }
  return true;
}

bool safetensors_write(const char *path, const TensorList *tensors, Arena *scratch, Diag *diag) {
  const Location location = {path, 0, 0};
  if (!check_names(path, tensors, scratch, diag)) return false;
  Text header;
  text_init(&header, scratch);
  text_add(&header, "{");
  FilePiece *pieces = arena_array(scratch, tensors->count + 2, FilePiece);
  int64_t offset = 0;
  for (size_t i = 0; i < tensors->count; i++) {
    const Tensor *tensor = &tensors->items[i];
    int64_t bytes = 0, end = 0;
    if (!shape_elements(&tensor->shape, 1, &bytes) || !checked_mul(bytes, data_type_bytes(tensor->dtype), &bytes) ||
        !checked_add(offset, bytes, &end) || shape_batched(&tensor->shape)) {
      diag_error(diag, location, "tensor '%s': its shape cannot be stored", tensor->name);
      return false;
    }
    if (i > 0) text_add(&header, ",");
    text_add_json(&header, tensor->name);
    text_format(&header, ":{\"dtype\":\"%s\",\"shape\":[", dtype_names[tensor->dtype]);
    shape_print(&header, &tensor->shape);
    text_format(&header, "],\"data_offsets\":[%lld,%lld]}", (long long)offset, (long long)end);
    pieces[i + 2] = (FilePiece){tensor->data, (size_t)bytes};
    offset = end;
  }
  text_add(&header, "}");
  while ((LENGTH_BYTES + header.size) % DATA_ALIGNMENT != 0) text_add(&header, " ");
  if (header.size > HEADER_LIMIT) {
    diag_error(diag, location, "%zu tensors need a header of %zu bytes, more than the limit of %d", tensors->count,
               header.size, HEADER_LIMIT);
    return false;
  }
  const uint64_t length = header.size;
  pieces[0] = (FilePiece){&length, LENGTH_BYTES};
  pieces[1] = (FilePiece){header.data, header.size};
  return file_write(path, pieces, tensors->count + 2, diag);
}
