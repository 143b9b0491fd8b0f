/* Where in a picture a layer responds: maps from activations and gradients, drawn over the picture. */
#ifndef KILN_RUNTIME_SESSION_HEATMAP_H
#define KILN_RUNTIME_SESSION_HEATMAP_H

#include "picture.h"
#include "plot.h"

/* Opacity of the colours over the picture. */
#define HEATMAP_OPACITY 0.6

/* Both take [C,H,W], or [N,C,H,W] of which image `index` is meant (0 for rank 3), and give an F32 map [H,W]. */

/* Mean over the channels. */
bool heatmap_activation(const Tensor *activation, int64_t index, Arena *arena, Diag *diag, Tensor *out_map);
/* Grad-CAM (Selvaraju et al., arXiv 1610.02391): relu of the sum over the channels of activation times the mean of the
 * channel's gradient. The two have the same shape. */
bool heatmap_grad_cam(const Tensor *activation, const Tensor *gradient, int64_t index, Arena *arena, Diag *diag,
                      Tensor *out_map);

/* An RGB picture of `picture`'s size: a map [H,W], bilinearly enlarged (cell edges on picture edges, as with
 * align_corners=False), its smallest to largest finite value in magma, over the picture (alpha over white). The
 * colours have `opacity` from 0 to 1. A map of one value is all lowest; values that are not finite count as the
 * smallest, and a map without a finite value is an error. */
bool heatmap_overlay(const Picture *picture, const Tensor *map, double opacity, Arena *arena, Diag *diag,
                     Picture *out_picture);

/* A sheet: the picture itself, then every map over it with its name as caption. The figure lives in `arena`; `title`
 * and the maps' names are used, not copied. `columns` 0 chooses. */
bool heatmap_sheet(const char *title, const Picture *picture, const Tensor *maps, size_t count, size_t columns,
                   Arena *arena, Diag *diag, Figure *out_figure);

#endif
