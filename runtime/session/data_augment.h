/* Random changes of training pictures, composed into one bilinear resampling per picture.
 *
 * All numbers of a picture are drawn from (seed, epoch, index) alone, so that they do not depend on the order or the
 * thread in which pictures are loaded. Geometry: a 3×3 matrix in double takes the centre of an output pixel to a point
 * of the picture, both measured in pixels from a corner, pixel centres at .5; angles and zooms therefore keep pixels
 * square whatever the picture's proportions. Light: logit(p) + brightness, times contrast, on the 256 sample values
 * before they are interpolated. Without changes the result is exactly the cropped picture. */
#ifndef KILN_RUNTIME_SESSION_DATA_AUGMENT_H
#define KILN_RUNTIME_SESSION_DATA_AUGMENT_H

#include "picture.h"

/* What lies beyond the picture's edge: black, the nearest pixel, or the mirrored picture. */
typedef enum AugmentPadding { AUGMENT_REFLECT, AUGMENT_BORDER, AUGMENT_ZEROS } AugmentPadding;

enum { AUGMENT_CHANNELS = 3 };

/* Ranges. {0} changes nothing but takes the crop from the middle; max_zoom below 1 counts as 1. */
typedef struct Augment {
  bool random_crop;    /* where a picture is larger than the crop */
  bool flip;           /* left and right, every second time */
  bool dihedral;       /* one of the eight symmetries of a square; includes flip */
  double max_rotate;   /* degrees, to both sides */
  double max_zoom;     /* from 1 to this, about a random point */
  double max_warp;     /* perspective along each axis: by how much of half the crop's side a corner moves, below 0.5 */
  double max_lighting; /* brightness and contrast, below 1 */
  double affine_probability, lighting_probability; /* of each of rotate, zoom, warp; of each of the other two */
  AugmentPadding padding;
} Augment;

/* flip, 10°, zoom 1.1, warp 0.2, lighting 0.2, probabilities 0.75, random crop, reflection. */
Augment augment_default(void);
/* Reports ranges that make no sense: not finite, negative, a warp of 0.5 or a lighting of 1 and more. */
bool augment_check(const Augment *augment, Diag *diag);
/* Whether {0} would give the same pictures. */
bool augment_is_none(const Augment *augment);

/* The changes of one picture, in the order in which they apply; light is independent of the rest. */
typedef struct AugmentDraw {
  /* From 0 to 1: place of the crop between the left (top) and the right (bottom); below 0: picture_crop_centre's. */
  double crop_x, crop_y;
  bool transpose, flip_x, flip_y; /* in this order */
  double warp_x, warp_y;          /* positive: the right (bottom) side moves away from the viewer */
  double angle;                   /* degrees, counter-clockwise as seen */
  double zoom, zoom_x, zoom_y;    /* about a point given as a share of the crop */
  double brightness, contrast;    /* added to the logit, then multiplied with it */
} AugmentDraw;

AugmentDraw augment_draw_none(void);
/* `epoch` and `index` below 2^32. */
AugmentDraw augment_draw(const Augment *augment, uint64_t seed, int64_t epoch, int64_t index);

/* Where the points of a crop of width × height come from in a picture of the given size, row-major:
 * (x, y, w) = matrix · (column, row, 1), the point is (x/w, y/w). */
void augment_matrix(const AugmentDraw *draw, int32_t picture_width, int32_t picture_height, int32_t width,
                    int32_t height, double out_matrix[9]);
/* The logits of the samples 0/255 … 255/255, black and white kept finite, for augment_light(). */
void augment_logits(double out_logits[256]);
/* What the samples become, from 0 to 1. Call it only when there is a change. */
void augment_light(const AugmentDraw *draw, const double logits[256], double out_values[256]);
/* Resamples into planes out[channel][height][width]; table[channel][sample] is what a sample stands for. A picture of
 * one channel is repeated, others have at least `channels`. A point at infinity or behind the viewer is black. */
void augment_apply(const Picture *picture, const double matrix[9], AugmentPadding padding, const float (*table)[256],
                   int32_t channels, int32_t width, int32_t height, float *out);

/* One augmented picture, of one or three channels: what a loader would make of it at that position. */
Picture augment_picture(const Picture *picture, const Augment *augment, uint64_t seed, int64_t epoch, int64_t index,
                        int32_t width, int32_t height, Arena *arena);

#endif
