/* Geometry of Winograd's minimal filtering F(m×m, r×r), as passes and code generators both need it.
 *
 * An output tile of m × m numbers comes from A × A input numbers, A = m + r − 1: input and filter tiles are transformed
 * to A × A numbers each, multiplied position by position, summed over channels, and transformed back. Shmuel Winograd,
 * "Arithmetic Complexity of Computations", 1980; Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks",
 * arXiv 1509.09308.
 *
 * With a stride of 2 the image is split into its 2 × 2 phases, the pixels of even and odd rows and columns of the padded
 * image, and so is the filter: each phase of the one with the same phase of the other is a convolution with stride 1,
 * and their sum is the result. So C channels become 4·C ones, number 4c + 2·(row mod 2) + (column mod 2), and a filter
 * of 7×7 one of 4×4, with zeros for the taps that are missing to 8×8.
 *
 * In memory a transformed value is A·A planes, one per position, each followed by a gap of 64 bytes so that equal
 * places of the planes do not fall into the same cache set:
 *   filters:  [K/b][A·A][C][b]                 stride[0]: one block of filters, stride[1]: one channel
 *   tiles:    [N][A·A][tile][C, padded to b]   stride[1]: one block of channels; the halo holds the padding that the
 *                                              tiles cover
 * stride[2] and stride[3] step a row and a column of the A × A positions.
 *   phases:   [N][row/2][column/2][4·C, padded to b]   of the padded image, as far as tiles reach, zeros beyond it;
 *                                              the halo holds the padding. stride[2] and stride[3] step two rows and
 *                                              two columns. All channels are one block. */
#ifndef KILN_IR_WINOGRAD_H
#define KILN_IR_WINOGRAD_H

#include "types.h"

enum { WINOGRAD_GAP_BYTES = 64, WINOGRAD_MAX_SIZE = 6 };

/* F(outputs×outputs, taps×taps) for convolutions with this stride. */
typedef struct WinogradForm {
  int32_t outputs, taps, stride;
} WinogradForm;

/* A; 0 of no form. */
int32_t winograd_size(WinogradForm form);
/* Channels of an image with `channels` ones when it is split into its phases, if it is. */
int64_t winograd_channels(WinogradForm form, int64_t channels);
/* Rows and columns of the filters. */
int32_t winograd_filter_taps(WinogradForm form);

/* The form of a layout of filters, tiles or phases; outputs 0 for all other layouts. */
WinogradForm winograd_form(LayoutKind kind);
/* Whether `winograd_storage` knows the layout; elements have no places of their own there. */
bool layout_is_winograd(LayoutKind kind);
bool layout_is_winograd_tiles(LayoutKind kind);
/* Tiles or phases: images that are made for a reader, with its padding. */
bool layout_is_winograd_image(LayoutKind kind);
Layout winograd_filter_layout(WinogradForm form, int32_t block);
Layout winograd_tiles_layout(WinogradForm form, int32_t block);

/* Tiles of an image. */
typedef struct WinogradGrid {
  int64_t rows, columns;
} WinogradGrid;

/* `padding`: top, left, bottom, right of an input of height × width. */
WinogradGrid winograd_grid(WinogradForm form, int64_t height, int64_t width, const int64_t padding[4]);
/* How far the tiles reach beyond each side of the input: the padding, and what the last tiles have beyond it. Stride 1. */
void winograd_reach(WinogradForm form, int64_t height, int64_t width, const int64_t padding[4], int64_t out_reach[4]);
/* Strides, halo and bytes of a transformed value; `padding` matters to images only. False when the size does not fit. */
bool winograd_storage(Layout layout, const Shape *shape, int64_t element_bytes, const int64_t padding[4],
                      Storage *out_storage);

#endif
