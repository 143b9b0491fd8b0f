#include "types.h"

#include <assert.h>
#include <string.h>

#include "base/checked.h"

/* --- element types --------------------------------------------------------------------------------- */

const char *data_type_name(DataType type) {
  static const char *const names[] = {
#define X(enumerator, name, tensor_name, bytes) [enumerator] = name,
      DATA_TYPES(X)
#undef X
  };
  return (unsigned)type < DTYPE_COUNT ? names[type] : "?";
}

int64_t data_type_bytes(DataType type) {
  static const int8_t sizes[] = {
#define X(enumerator, name, tensor_name, bytes) [enumerator] = bytes,
      DATA_TYPES(X)
#undef X
  };
  assert((unsigned)type < DTYPE_COUNT);
  return sizes[type];
}

bool data_type_parse(const char *name, DataType *out_type) {
  for (DataType type = 0; type < DTYPE_COUNT; type++) {
    if (strcmp(name, data_type_name(type)) == 0) {
      *out_type = type;
      return true;
    }
  }
  return false;
}

/* --- arithmetic ------------------------------------------------------------------------------------ */

static const char *const math_modes[MATH_COUNT] = {
    [MATH_FP32] = "fp32", [MATH_3XTF32] = "3xtf32", [MATH_TF32] = "tf32", [MATH_BF16] = "bf16", [MATH_FP16] = "fp16",
};

const char *math_mode_name(MathMode math) { return (unsigned)math < MATH_COUNT ? math_modes[math] : "?"; }

bool math_mode_parse(const char *name, MathMode *out_math) {
  for (int math = 0; math < MATH_COUNT; math++) {
    if (strcmp(name, math_modes[math]) != 0) continue;
    *out_math = (MathMode)math;
    return true;
  }
  return false;
}

/* --- shapes ---------------------------------------------------------------------------------------- */

Shape shape_of(int32_t rank, const int64_t *dims) {
  assert(rank >= 0 && rank <= SHAPE_MAX_RANK);
  Shape shape = {.rank = rank};
  for (int32_t i = 0; i < rank; i++) shape.dims[i] = dims[i];
  return shape;
}

bool shape_equal(const Shape *a, const Shape *b) {
  if (a->rank != b->rank) return false;
  for (int32_t i = 0; i < a->rank; i++) {
    if (a->dims[i] != b->dims[i]) return false;
  }
  return true;
}

bool shape_batched(const Shape *shape) { return shape->rank > 0 && shape->dims[0] == DIM_BATCH; }

bool shape_elements(const Shape *shape, int64_t batch, int64_t *out_count) {
  int64_t count = 1;
  bool empty = false;
  for (int32_t i = 0; i < shape->rank; i++) {
    const int64_t dim = i == 0 && shape->dims[0] == DIM_BATCH ? batch : shape->dims[i];
    if (dim < 0) return false;
    if (dim == 0) {
      empty = true;
    } else if (!checked_mul(count, dim, &count)) {
      return false;
    }
  }
  *out_count = empty ? 0 : count;
  return true;
}

int64_t shape_elements_per_image(const Shape *shape) {
  int64_t count = 0;
  const bool fits = shape_elements(shape, 1, &count);
  assert(fits);
  (void)fits;
  return count;
}

void shape_print(Text *text, const Shape *shape) {
  for (int32_t i = 0; i < shape->rank; i++) {
    if (i > 0) text_add(text, ",");
    if (i == 0 && shape->dims[0] == DIM_BATCH) {
      text_add(text, "N");
    } else {
      text_format(text, "%lld", (long long)shape->dims[i]);
    }
  }
}

/* --- layouts --------------------------------------------------------------------------------------- */

/* A name is prefix, block, suffix; layouts without a block have a prefix only. */
typedef struct LayoutName {
  const char *prefix, *suffix;
  bool blocked;
} LayoutName;

static const LayoutName layout_names[] = {
    [LAYOUT_PLAIN] = {"plain", "", false},       [LAYOUT_CHANNEL_BLOCK] = {"nchw", "c", true},
    [LAYOUT_CHANNEL_LAST] = {"nhwc", "", false}, [LAYOUT_FILTER_BLOCK] = {"oihw", "o", true},
    [LAYOUT_MATRIX_BLOCK] = {"oi", "o", true},   [LAYOUT_VECTOR_BLOCK] = {"c", "", true},
    [LAYOUT_FILTER_WINOGRAD2] = {"wino23o", "", true},  [LAYOUT_FILTER_WINOGRAD4] = {"wino43o", "", true},
    [LAYOUT_TILES_WINOGRAD2] = {"tiles23c", "", true},  [LAYOUT_TILES_WINOGRAD4] = {"tiles43c", "", true},
    [LAYOUT_FILTER_PHASES] = {"wino34o", "", true},     [LAYOUT_CHANNEL_PHASES] = {"phases", "c", true},
    [LAYOUT_FILTER_HALVES] = {"bf16x2o", "", true},     [LAYOUT_FILTER_THIRDS] = {"bf16x3o", "", true},
    [LAYOUT_FILTER_TILES] = {"f32o", "", true},
    [LAYOUT_FILTER_LAST] = {"ohwi", "", true},
    [LAYOUT_BATCH_BLOCK] = {"n", "chw", true},
};

enum { LAYOUT_COUNT = sizeof layout_names / sizeof layout_names[0], LARGEST_BLOCK = 1024 };

int32_t layout_parts(Layout layout) {
  return layout.kind == LAYOUT_FILTER_HALVES ? 2 : layout.kind == LAYOUT_FILTER_THIRDS ? 3 : 0;
}

DataType layout_stored_type(Layout layout, DataType type) {
  return layout.element != DTYPE_F32 ? layout.element : type;
}

int64_t layout_stored_bytes(Layout layout, DataType type) { return data_type_bytes(layout_stored_type(layout, type)); }

bool layout_equal(Layout a, Layout b) { return a.kind == b.kind && a.block == b.block && a.element == b.element; }

void layout_print(Text *text, Layout layout) {
  const LayoutName *name = &layout_names[layout.kind];
  text_add(text, name->prefix);
  if (name->blocked) text_format(text, "%d%s", layout.block, name->suffix);
  if (layout.element != DTYPE_F32) text_format(text, "_%s", data_type_name(layout.element));
}

/* "" or "_bf16", "_f16" */
static bool parse_element(const char *name, DataType *out_element) {
  *out_element = DTYPE_F32;
  if (*name == '\0') return true;
  return *name == '_' && data_type_parse(name + 1, out_element) &&
         (*out_element == DTYPE_BF16 || *out_element == DTYPE_F16);
}

bool layout_parse(const char *name, Layout *out_layout) {
  for (int kind = 0; kind < LAYOUT_COUNT; kind++) {
    const LayoutName *form = &layout_names[kind];
    const size_t prefix = strlen(form->prefix);
    if (strncmp(name, form->prefix, prefix) != 0) continue;
    const char *at = name + prefix;
    int32_t block = 0;
    if (form->blocked) {
      if (*at < '1' || *at > '9') continue;
      while (*at >= '0' && *at <= '9' && block <= LARGEST_BLOCK) block = block * 10 + (*at++ - '0');
      if (block > LARGEST_BLOCK) continue;
    }
    const size_t suffix = strlen(form->suffix);
    DataType element;
    if (strncmp(at, form->suffix, suffix) != 0 || !parse_element(at + suffix, &element)) continue;
    *out_layout = (Layout){(LayoutKind)kind, block, element};
    return true;
  }
  return false;
}

/* --- storage --------------------------------------------------------------------------------------- */

const char *space_name(Space space) {
  static const char *const names[] = {
      [SPACE_NONE] = "none",       [SPACE_WORKSPACE] = "workspace", [SPACE_PREPARED] = "prepared",
      [SPACE_SCRATCH] = "scratch", [SPACE_PARAMETER] = "parameter", [SPACE_INPUT] = "input",
      [SPACE_OUTPUT] = "output",
  };
  return (unsigned)space < sizeof names / sizeof names[0] ? names[space] : "?";
}
