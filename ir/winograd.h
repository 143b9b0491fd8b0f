/* Geometry of Winograd's minimal filtering F(m×m, 3×3), as passes and code generators both need it.
 *
 * An output tile of m × m numbers comes from A × A input numbers, A = m + 2: input and filter tiles are transformed to
 * A × A numbers each, multiplied position by position, summed over channels, and transformed back. Shmuel Winograd,
 * "Arithmetic Complexity of Computations", 1980; Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks",
 * arXiv 1509.09308.
 *
 * In memory a transformed value is A·A planes, one per position, each followed by a gap of 64 bytes so that equal
 * places of the planes do not fall into the same cache set: filters:  [K/b][A·A][C][b]                 stride[0]: one
 * block of filters, stride[1]: one channel tiles:    [N][A·A][tile][C, padded to b]   stride[1]: one block of channels;
 * the halo holds the padding that the tiles cover stride[2] and stride[3] step a row and a column of the A × A
 * positions. */
#ifndef KILN_IR_WINOGRAD_H
#define KILN_IR_WINOGRAD_H

#include "types.h"

enum { WINOGRAD_TAPS = 3, WINOGRAD_GAP_BYTES = 64 };

/* m of a layout of transformed filters or tiles; 0 for all other layouts. */
int32_t winograd_outputs(LayoutKind kind);
bool layout_is_winograd_tiles(LayoutKind kind);
Layout winograd_filter_layout(int32_t outputs, int32_t block);
Layout winograd_tiles_layout(int32_t outputs, int32_t block);

/* Tiles of an image. */
typedef struct WinogradGrid {
  int64_t rows, columns;
} WinogradGrid;

/* `padding`: top, left, bottom, right of an input of height × width. */
WinogradGrid winograd_grid(int32_t outputs, int64_t height, int64_t width, const int64_t padding[4]);
/* How far the tiles reach beyond each side of the input: the padding, and what the last tiles have beyond it. */
void winograd_reach(int32_t outputs, int64_t height, int64_t width, const int64_t padding[4], int64_t out_reach[4]);
/* Strides, halo and bytes of a transformed value; `padding` matters to tiles only. False when the size does not fit. */
bool winograd_storage(Layout layout, const Shape *shape, int64_t element_bytes, const int64_t padding[4],
                      Storage *out_storage);

#endif
