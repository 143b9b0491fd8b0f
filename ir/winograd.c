#include "winograd.h"

#include <assert.h>

#include "base/checked.h"

int32_t winograd_outputs(LayoutKind kind) {
  switch (kind) {
    case LAYOUT_FILTER_WINOGRAD2:
    case LAYOUT_TILES_WINOGRAD2:
      return 2;
    case LAYOUT_FILTER_WINOGRAD4:
    case LAYOUT_TILES_WINOGRAD4:
      return 4;
    default:
      return 0;
  }
}

bool layout_is_winograd_tiles(LayoutKind kind) {
  return kind == LAYOUT_TILES_WINOGRAD2 || kind == LAYOUT_TILES_WINOGRAD4;
}

Layout winograd_filter_layout(int32_t outputs, int32_t block) {
  assert(outputs == 2 || outputs == 4);
  return (Layout){outputs == 2 ? LAYOUT_FILTER_WINOGRAD2 : LAYOUT_FILTER_WINOGRAD4, block};
}

Layout winograd_tiles_layout(int32_t outputs, int32_t block) {
  assert(outputs == 2 || outputs == 4);
  return (Layout){outputs == 2 ? LAYOUT_TILES_WINOGRAD2 : LAYOUT_TILES_WINOGRAD4, block};
}

WinogradGrid winograd_grid(int32_t outputs, int64_t height, int64_t width, const int64_t padding[4]) {
  int64_t out_height = height + padding[0] + padding[2] - (WINOGRAD_TAPS - 1);
  int64_t out_width = width + padding[1] + padding[3] - (WINOGRAD_TAPS - 1);
  return (WinogradGrid){ceil_div(out_height, outputs), ceil_div(out_width, outputs)};
}

void winograd_reach(int32_t outputs, int64_t height, int64_t width, const int64_t padding[4], int64_t out_reach[4]) {
  WinogradGrid grid = winograd_grid(outputs, height, width, padding);
  out_reach[0] = padding[0];
  out_reach[1] = padding[1];
  out_reach[2] = grid.rows * outputs + WINOGRAD_TAPS - 1 - padding[0] - height;
  out_reach[3] = grid.columns * outputs + WINOGRAD_TAPS - 1 - padding[1] - width;
}

bool winograd_storage(Layout layout, const Shape *shape, int64_t element_bytes, const int64_t padding[4],
                      Storage *out_storage) {
  const int64_t *dims = shape->dims, gap = WINOGRAD_GAP_BYTES / element_bytes;
  int64_t size = winograd_outputs(layout.kind) + WINOGRAD_TAPS - 1, plane, count, total;
  bool tiles = layout_is_winograd_tiles(layout.kind);
  *out_storage = (Storage){.space = SPACE_NONE};
  if (tiles) {
    WinogradGrid grid = winograd_grid(winograd_outputs(layout.kind), dims[2], dims[3], padding);
    if (!checked_mul(grid.rows, grid.columns, &plane)) return false;
    if (!checked_mul(plane, round_up(dims[1], layout.block), &plane)) return false;
    for (int side = 0; side < 4; side++) out_storage->halo[side] = (int32_t)padding[side];
    count = dims[0] < 0 ? 1 : dims[0];
  } else {
    if (!checked_mul(dims[1], layout.block, &plane)) return false;
    count = ceil_div(dims[0], layout.block);
  }
  if (!checked_add(plane, 2 * gap, &plane)) return false;
  plane = plane / gap * gap;
  if (!checked_mul(plane, size * size, &total)) return false;
  out_storage->stride[0] = total;
  out_storage->stride[1] = layout.block;
  out_storage->stride[2] = size * plane;
  out_storage->stride[3] = plane;
  return checked_mul(total, count, &total) && checked_mul(total, element_bytes, &out_storage->bytes);
}
