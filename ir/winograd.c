#include "winograd.h"

#include <assert.h>

#include "base/checked.h"

int32_t winograd_size(WinogradForm form) { return form.outputs > 0 ? form.outputs + form.taps - 1 : 0; }

int64_t winograd_channels(WinogradForm form, int64_t channels) { return channels * form.stride * form.stride; }

int32_t winograd_filter_taps(WinogradForm form) { return (form.taps - 1) * form.stride + 1; }

WinogradForm winograd_form(LayoutKind kind) {
  switch (kind) {
    case LAYOUT_FILTER_WINOGRAD2:
    case LAYOUT_TILES_WINOGRAD2:
      return (WinogradForm){2, 3, 1};
    case LAYOUT_FILTER_WINOGRAD4:
    case LAYOUT_TILES_WINOGRAD4:
      return (WinogradForm){4, 3, 1};
    case LAYOUT_FILTER_PHASES:
    case LAYOUT_CHANNEL_PHASES:
      return (WinogradForm){3, 4, 2};
    default:
      return (WinogradForm){0, 0, 0};
  }
}

bool layout_is_winograd(LayoutKind kind) { return winograd_form(kind).outputs > 0; }

bool layout_is_winograd_tiles(LayoutKind kind) {
  return kind == LAYOUT_TILES_WINOGRAD2 || kind == LAYOUT_TILES_WINOGRAD4;
}

bool layout_is_winograd_image(LayoutKind kind) {
  return layout_is_winograd_tiles(kind) || kind == LAYOUT_CHANNEL_PHASES;
}

Layout winograd_filter_layout(WinogradForm form, int32_t block) {
  if (form.stride == 2) return (Layout){LAYOUT_FILTER_PHASES, block};
  assert(form.outputs == 2 || form.outputs == 4);
  return (Layout){form.outputs == 2 ? LAYOUT_FILTER_WINOGRAD2 : LAYOUT_FILTER_WINOGRAD4, block};
}

Layout winograd_tiles_layout(WinogradForm form, int32_t block) {
  assert(form.stride == 1 && (form.outputs == 2 || form.outputs == 4));
  return (Layout){form.outputs == 2 ? LAYOUT_TILES_WINOGRAD2 : LAYOUT_TILES_WINOGRAD4, block};
}

/* Tiles along an axis of `size` numbers with `padding` more. */
static int64_t tiles_along(WinogradForm form, int64_t size, int64_t padding) {
  return ceil_div((size + padding - winograd_filter_taps(form)) / form.stride + 1, form.outputs);
}

WinogradGrid winograd_grid(WinogradForm form, int64_t height, int64_t width, const int64_t padding[4]) {
  return (WinogradGrid){tiles_along(form, height, padding[0] + padding[2]),
                        tiles_along(form, width, padding[1] + padding[3])};
}

void winograd_reach(WinogradForm form, int64_t height, int64_t width, const int64_t padding[4], int64_t out_reach[4]) {
  WinogradGrid grid = winograd_grid(form, height, width, padding);
  out_reach[0] = padding[0];
  out_reach[1] = padding[1];
  out_reach[2] = grid.rows * form.outputs + form.taps - 1 - padding[0] - height;
  out_reach[3] = grid.columns * form.outputs + form.taps - 1 - padding[1] - width;
}

/* The places of all tiles of an image, each with the channels of all its phases. */
static bool phases_storage(Layout layout, const Shape *shape, const int64_t padding[4], Storage *out_storage,
                           int64_t *out_total) {
  const WinogradForm form = winograd_form(layout.kind);
  const WinogradGrid grid = winograd_grid(form, shape->dims[2], shape->dims[3], padding);
  out_storage->stride[1] = out_storage->stride[3] = layout.block;
  if (!checked_mul(grid.columns * form.outputs + form.taps - 1, layout.block, &out_storage->stride[2])) return false;
  if (!checked_mul(grid.rows * form.outputs + form.taps - 1, out_storage->stride[2], &out_storage->stride[0]))
    return false;
  return checked_mul(out_storage->stride[0], shape->dims[0] < 0 ? 1 : shape->dims[0], out_total);
}

static bool transformed_storage(Layout layout, const Shape *shape, int64_t element_bytes, const int64_t padding[4],
                                Storage *out_storage, int64_t *out_total) {
  const WinogradForm form = winograd_form(layout.kind);
  const int64_t *dims = shape->dims, gap = WINOGRAD_GAP_BYTES / element_bytes, size = winograd_size(form);
  int64_t plane, count;
  if (layout_is_winograd_tiles(layout.kind)) {
    WinogradGrid grid = winograd_grid(form, dims[2], dims[3], padding);
    if (!checked_mul(grid.rows, grid.columns, &plane)) return false;
    if (!checked_mul(plane, round_up(dims[1], layout.block), &plane)) return false;
    count = dims[0] < 0 ? 1 : dims[0];
  } else {
    if (!checked_mul(dims[1], (int64_t)layout.block * form.stride * form.stride, &plane)) return false;
    count = ceil_div(dims[0], layout.block);
  }
  if (!checked_add(plane, 2 * gap, &plane)) return false;
  plane = plane / gap * gap;
  if (!checked_mul(plane, size * size, out_total)) return false;
  out_storage->stride[0] = *out_total;
  out_storage->stride[1] = layout.block;
  out_storage->stride[2] = size * plane;
  out_storage->stride[3] = plane;
  return checked_mul(*out_total, count, out_total);
}

bool winograd_storage(Layout layout, const Shape *shape, int64_t element_bytes, const int64_t padding[4],
                      Storage *out_storage) {
  int64_t total;
  *out_storage = (Storage){.space = SPACE_NONE};
  if (layout_is_winograd_image(layout.kind))
    for (int side = 0; side < 4; side++) out_storage->halo[side] = (int32_t)padding[side];
  const bool fits = layout.kind == LAYOUT_CHANNEL_PHASES
                        ? phases_storage(layout, shape, padding, out_storage, &total)
                        : transformed_storage(layout, shape, element_bytes, padding, out_storage, &total);
  return fits && checked_mul(total, element_bytes, &out_storage->bytes);
}
