/* The second half of `select`: which convolutions are computed by Winograd's algorithm. */
#ifndef KILN_PASSES_SELECT_WINOGRAD_H
#define KILN_PASSES_SELECT_WINOGRAD_H

#include "passes.h"

/* Most pixels, or transformed tiles, of a register tile with `blocks` ≥ 1 vectors of output channels each. `target` may
 * be NULL. */
int32_t register_tile(const Target *target, int32_t blocks);

/* Requires a choice of every convolution; changes it, and the layouts of its filters and its input, where Winograd's
 * algorithm costs less and the precision allows its error, or where another candidate was measured to be faster. */
bool select_winograd(Graph *graph, const PassOptions *options, Diag *diag);

/* Cycles of the transforms of `tiles` tiles of an image, whose pixels have so many vectors of channels before and after. */
double winograd_transforms(WinogradForm form, double tiles, double input_vectors, double output_vectors);

/* PANELS: every call transforms the images that its panels of filters are multiplied with. TRANSFORMING: split, and
 * TRANSFORMING_PANELS: with panels, with filters that the kernel transforms, half of the channels at a time where that
 * fits. */
typedef enum WinogradSplit {
  WINOGRAD_SPLIT_AS_PLANNED,
  WINOGRAD_SPLIT_ALWAYS,
  WINOGRAD_SPLIT_NEVER,
  WINOGRAD_PANELS,
  WINOGRAD_TRANSFORMING,
  WINOGRAD_TRANSFORMING_PANELS
} WinogradSplit;

/* The same for every convolution that can be computed by this one of Winograd's algorithms, whatever it costs.
 * WINOGRAD34 knows no split. For tests and measurements, after a `select` with strict precision. */
bool select_winograd_always(Graph *graph, const PassOptions *options, Algorithm algorithm, WinogradSplit split,
                            Diag *diag);

#endif
