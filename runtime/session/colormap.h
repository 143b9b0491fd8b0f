/* Colour maps: from a number to a colour that a reader can order by eye. */
#ifndef KILN_RUNTIME_SESSION_COLORMAP_H
#define KILN_RUNTIME_SESSION_COLORMAP_H

#include <stdint.h>

enum { COLORMAP_SIZE = 256 };

typedef enum Colormap { COLORMAP_MAGMA, COLORMAP_VIRIDIS } Colormap;

/* Entry `index` as 0xRRGGBB; indices outside 0 … 255 take the nearest end. */
uint32_t colormap_entry(Colormap map, int64_t index);
/* The colour of `fraction` in [0, 1], as 0xRRGGBB: 256 steps of equal width, as matplotlib divides the range. Values
 * outside take the nearest end, NaN the first entry. */
uint32_t colormap_at(Colormap map, double fraction);

#endif
