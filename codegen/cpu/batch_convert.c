/* convert between plain and batch-blocked values, and reshape of the latter.
 *
 * Neighbours of a plain image are columns; of a batch-blocked one the same column of b images. Squares of images ×
 * columns are transposed in registers. Images behind the last one repeat it, in both directions: writing its numbers
 * once more to where they are does no harm. */
#include "batch.h"
#include "move.h"

#include "base/checked.h"

/* Columns that lie next to each other in an image and a block apart in a block. */
typedef struct Strip {
  const PlanTensor *plain;
  int32_t block;
  int64_t columns;
  Value image;      /* the block's first image */
  Value plain_at;   /* offset of column 0 in image 0 */
  Value blocked_at; /* offset of column 0, lane 0 */
  bool to_blocked;
} Strip;

static Value image_offset(Emit *emit, const Strip *strip, int64_t lane, Value column) {
  Value last = emit_add_int(emit, emit->batch, -1);
  Value image = emit_min(emit, emit_add_int(emit, strip->image, lane), last);
  Value offset = emit_add(emit, strip->plain_at, emit_mul_int(emit, image, strip->plain->storage.stride[0]));
  return emit_add(emit, offset, column);
}

/* Columns [column, column + side) of images [lane, lane + side). */
static void convert_square(Emit *emit, const Strip *strip, Value column, int32_t lane, int32_t side) {
  enum { MAX_SIDE = 16 };
  Value rows[MAX_SIDE];
  Value blocked = emit_add(emit, strip->blocked_at, emit_mul_int(emit, column, strip->block));
  for (int32_t i = 0; i < side; i++) {
    Value from = strip->to_blocked ? image_offset(emit, strip, lane + i, column)
                                   : emit_add_int(emit, blocked, (int64_t)i * strip->block + lane);
    rows[i] = emit_load(emit, emit->inputs[0], from, side);
  }
  if (side > 1) move_transpose(emit, rows, side);
  for (int32_t i = 0; i < side; i++) {
    Value to = strip->to_blocked ? emit_add_int(emit, blocked, (int64_t)i * strip->block + lane)
                                 : image_offset(emit, strip, lane + i, column);
    emit_store(emit, emit->output, to, rows[i]);
  }
}

static void convert_strip(Emit *emit, const Strip *strip) {
  int32_t side = strip->block;
  while (side > strip->columns || side > emit->target->vector_lanes) side /= 2;
  EmitLoop square = emit_loop_begin(emit, emit_int(emit, 0), emit_int(emit, strip->columns), side, "square");
  /* a last square moves back over the one before it */
  Value column = emit_min(emit, square.index, emit_int(emit, strip->columns - side));
  for (int32_t lane = 0; lane < strip->block; lane += side) convert_square(emit, strip, column, lane, side);
  emit_loop_end(emit, &square);
}

static bool has_gaps(const PlanTensor *tensor, int64_t inner) {
  int64_t step = inner;
  for (int32_t d = tensor->shape.rank - 1; d >= 1; d--) {
    if (tensor->storage.stride[d] != step && tensor->shape.dims[d] != 1) return true;
    step *= tensor->shape.dims[d];
  }
  return false;
}

/* Rows of the last dimension, or, when nothing has gaps, pieces of whole images. */
bool batch_convert(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  enum { PIECE = 256 /* columns of a unit */ };
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  Strip strip = {.block = batch_block(kernel), .to_blocked = out->layout.kind == LAYOUT_BATCH_BLOCK};
  const PlanTensor *blocked = strip.to_blocked ? out : in;
  strip.plain = strip.to_blocked ? in : out;
  int32_t rank = out->shape.rank;
  if (strip.plain->layout.kind != LAYOUT_PLAIN || out->dtype != DTYPE_F32 || kernel->epilogue_count > 0 || rank < 2 ||
      !shape_batched(&out->shape) || (strip.plain->storage.stride[rank - 1] != 1 && out->shape.dims[rank - 1] != 1)) {
    diag_error(diag, kernel->location, "'%s': convert to or from batch-blocked takes plain f32 values", kernel->name);
    return false;
  }
  int64_t elements = shape_elements_per_image(&out->shape);
  bool whole = !has_gaps(blocked, strip.block) && !has_gaps(strip.plain, 1);
  int64_t extents[SHAPE_MAX_RANK], units = 1;
  int32_t digits = whole ? 2 : rank - 1;
  for (int32_t d = 0; d < digits; d++) extents[d] = out->shape.dims[d];
  if (whole) extents[1] = ceil_div(elements, PIECE);
  for (int32_t d = 1; d < digits; d++) units *= extents[d];
  *out_work = work_per_image(DIM_BATCH, units);

  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "unit");
  Value index[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, digits, extents, index);
  Value block = index[0];
  strip.image = emit_mul_int(emit, block, strip.block);
  if (whole) {
    Split pieces = split_even(elements, PIECE);
    Value start = split_start(emit, &pieces, index[1]);
    index[1] = NULL;
    strip.blocked_at = emit_add(emit, emit_offset(emit, blocked, index), emit_mul_int(emit, start, strip.block));
    strip.plain_at = emit_add_int(emit, start, strip.plain->storage.origin);
    for (int part = 0; part < 2; part++) {
      if ((part == 0 ? pieces.wide : pieces.tiles - pieces.wide) == 0) continue;
      EmitIf chosen = {NULL, NULL};
      Value wide = emit_less(emit, start, emit_int(emit, pieces.wide * (pieces.narrow + 1)));
      if (pieces.wide > 0) chosen = emit_if(emit, part == 0 ? wide : LLVMBuildNot(emit->builder, wide, ""), "piece");
      strip.columns = pieces.narrow + (part == 0);
      convert_strip(emit, &strip);
      if (pieces.wide > 0) emit_end_if(emit, &chosen);
    }
  } else {
    if (rank == 4 && strip.to_blocked) emit_halo(emit, index[0], index[1], index[2]);
    strip.blocked_at = emit_offset(emit, blocked, index);
    index[0] = NULL;
    strip.plain_at = emit_offset(emit, strip.plain, index);
    strip.columns = out->shape.dims[rank - 1];
    convert_strip(emit, &strip);
  }
  emit_loop_end(emit, &item);
  return true;
}

/* The place of element number `flat` of an image. */
static void flat_index(Emit *emit, const Shape *shape, Value flat, Value *index) {
  for (int32_t d = shape->rank - 1; d > 1; d--) {
    index[d] = emit_mod_int(emit, flat, shape->dims[d]);
    flat = emit_div_int(emit, flat, shape->dims[d]);
  }
  index[1] = flat;
}

/* The same elements of the same images in another shape: where one of both has a halo. A unit is an element. */
bool batch_reshape(Emit *emit, const PlanKernel *kernel, KernelWork *out_work, Diag *diag) {
  (void)diag;
  const PlanTensor *in = &kernel->inputs[0], *out = &kernel->output;
  int64_t elements = shape_elements_per_image(&out->shape);
  *out_work = work_per_image(DIM_BATCH, elements);
  EmitLoop item = emit_loop_begin(emit, emit->begin, emit->end, 1, "unit");
  Value digits[2], from[SHAPE_MAX_RANK] = {NULL}, to[SHAPE_MAX_RANK] = {NULL};
  emit_split(emit, item.index, 2, (const int64_t[]){1, elements}, digits);
  from[0] = to[0] = digits[0];
  flat_index(emit, &in->shape, digits[1], from);
  flat_index(emit, &out->shape, digits[1], to);
  Value value = emit_load(emit, emit->inputs[0], emit_offset(emit, in, from), in->layout.block);
  emit_store(emit, emit->output, emit_offset(emit, out, to), emit_epilogue(emit, value, to, in->layout.block));
  if (out->shape.rank == 4) {
    EmitIf first = emit_if(emit, emit_equal(emit, to[3], emit_int(emit, 0)), "row");
    emit_halo(emit, to[0], to[1], to[2]);
    emit_end_if(emit, &first);
  }
  emit_loop_end(emit, &item);
  return true;
}
