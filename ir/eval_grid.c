/* The interpreter's grid_sample and its gradients: PyTorch's affine_grid followed by its bilinear grid_sample. */
#include <math.h>

#include "eval.h"

/* A place along an axis, in elements, and how far it moves with the place in [-1, 1]. */
typedef struct GridPlace {
  double at, slope;
} GridPlace;

static double grid_coordinate(int64_t index, int64_t size, bool align_corners) {
  if (align_corners) return size > 1 ? 2 * (double)index / (double)(size - 1) - 1 : 0;
  return (2 * (double)index + 1) / (double)size - 1;
}

static GridPlace reflect(GridPlace place, double low, double span) {
  if (span == 0) return (GridPlace){0, 0};
  const double distance = fabs(place.at - low), rest = fmod(distance, span);
  const bool even = fmod(floor(distance / span), 2) == 0;
  const double slope = place.at < low ? -place.slope : place.slope;
  return even ? (GridPlace){low + rest, slope} : (GridPlace){low + span - rest, -slope};
}

/* From [-1, 1] to elements, brought inside as the padding mode says. */
static GridPlace sample_place(double coordinate, int64_t size, const Attrs *attrs) {
  const bool align = attrs->align_corners;
  const double last = (double)(size - 1);
  GridPlace place = {align ? (coordinate + 1) / 2 * last : ((coordinate + 1) * (double)size - 1) / 2,
                     (align ? last : (double)size) / 2};
  if (attrs->padding_mode == PADDING_ZEROS) return place;
  if (attrs->padding_mode == PADDING_REFLECT)
    place = align ? reflect(place, 0, last) : reflect(place, -0.5, (double)size);
  if (!(place.at > 0)) return (GridPlace){0, 0}; /* also for NaN */
  return place.at < last ? place : (GridPlace){last, 0};
}

/* Where an output pixel of an image comes from. */
typedef struct GridPixel {
  double grid[3]; /* x, y and 1: what theta is multiplied by */
  GridPlace y, x;
  double top, left; /* whole positions, which may be anything */
} GridPixel;

static GridPixel find_pixel(const Attrs *attrs, const double *theta, const Shape *in, const Shape *out, int64_t y,
                            int64_t x) {
  GridPixel pixel = {.grid = {grid_coordinate(x, out->dims[3], attrs->align_corners),
                              grid_coordinate(y, out->dims[2], attrs->align_corners), 1}};
  double to[2] = {0, 0};
  for (int i = 0; i < 2; i++)
    to[i] = theta[3 * i] * pixel.grid[0] + theta[3 * i + 1] * pixel.grid[1] + theta[3 * i + 2];
  pixel.x = sample_place(to[0], in->dims[3], attrs);
  pixel.y = sample_place(to[1], in->dims[2], attrs);
  pixel.top = floor(pixel.y.at);
  pixel.left = floor(pixel.x.at);
  return pixel;
}

/* The element of a plane at one of the four corners; -1 outside. */
static int64_t corner_element(const GridPixel *pixel, const Shape *in, int corner) {
  const double row = pixel->top + (corner >> 1), column = pixel->left + (corner & 1);
  if (!(row >= 0 && row < (double)in->dims[2] && column >= 0 && column < (double)in->dims[3])) return -1;
  return (int64_t)row * in->dims[3] + (int64_t)column;
}

static double corner_weight(double at, double whole, bool second) { return second ? at - whole : 1 - (at - whole); }

static double corner_share(const GridPixel *pixel, int corner) {
  return corner_weight(pixel->y.at, pixel->top, corner >> 1) * corner_weight(pixel->x.at, pixel->left, corner & 1);
}

/* Calls `visit` with every output pixel of every image, and the offset of its first channel's value. */
typedef struct GridVisit {
  const Attrs *attrs;
  const EvalTensor *theta;
  Shape in, out;
  const double *x, *dy;
  double *result;
} GridVisit;

static void visit_pixels(const GridVisit *visit,
                         void (*take)(const GridVisit *visit, int64_t image, const GridPixel *pixel, int64_t offset)) {
  const int64_t channels = visit->out.dims[1], height = visit->out.dims[2], width = visit->out.dims[3];
  for (int64_t n = 0; n < visit->out.dims[0]; n++) {
    for (int64_t y = 0; y < height; y++) {
      for (int64_t x = 0; x < width; x++) {
        const GridPixel pixel = find_pixel(visit->attrs, visit->theta->data + n * 6, &visit->in, &visit->out, y, x);
        take(visit, n, &pixel, (n * channels * height + y) * width + x);
      }
    }
  }
}

static int64_t plane_size(const Shape *shape) { return shape->dims[2] * shape->dims[3]; }

static void take_sample(const GridVisit *visit, int64_t image, const GridPixel *pixel, int64_t offset) {
  for (int64_t c = 0; c < visit->in.dims[1]; c++) {
    const double *plane = visit->x + (image * visit->in.dims[1] + c) * plane_size(&visit->in);
    double sum = 0;
    for (int corner = 0; corner < 4; corner++) {
      const int64_t element = corner_element(pixel, &visit->in, corner);
      if (element >= 0) sum += corner_share(pixel, corner) * plane[element];
    }
    visit->result[offset + c * plane_size(&visit->out)] = sum;
  }
}

void eval_grid_sample(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const GridVisit visit = {.attrs = &node->attrs,
                           .theta = inputs[1],
                           .in = inputs[0]->shape,
                           .out = output->shape,
                           .x = inputs[0]->data,
                           .result = output->data};
  visit_pixels(&visit, take_sample);
}

static void scatter_gradient(const GridVisit *visit, int64_t image, const GridPixel *pixel, int64_t offset) {
  for (int64_t c = 0; c < visit->in.dims[1]; c++) {
    double *plane = visit->result + (image * visit->in.dims[1] + c) * plane_size(&visit->in);
    for (int corner = 0; corner < 4; corner++) {
      const int64_t element = corner_element(pixel, &visit->in, corner);
      if (element >= 0) plane[element] += corner_share(pixel, corner) * visit->dy[offset + c * plane_size(&visit->out)];
    }
  }
}

void eval_grid_sample_grad_input(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const GridVisit visit = {.attrs = &node->attrs,
                           .theta = inputs[1],
                           .in = output->shape,
                           .out = inputs[0]->shape,
                           .dy = inputs[0]->data,
                           .result = output->data};
  visit_pixels(&visit, scatter_gradient);
}

static void add_theta_gradient(const GridVisit *visit, int64_t image, const GridPixel *pixel, int64_t offset) {
  double slope[2] = {0, 0}; /* of the loss, along x and y */
  for (int64_t c = 0; c < visit->in.dims[1]; c++) {
    const double *plane = visit->x + (image * visit->in.dims[1] + c) * plane_size(&visit->in);
    const double gradient = visit->dy[offset + c * plane_size(&visit->out)];
    for (int corner = 0; corner < 4; corner++) {
      const int64_t element = corner_element(pixel, &visit->in, corner);
      if (element < 0) continue;
      const double value = plane[element] * gradient;
      slope[0] += (corner & 1 ? value : -value) * corner_weight(pixel->y.at, pixel->top, corner >> 1);
      slope[1] += (corner >> 1 ? value : -value) * corner_weight(pixel->x.at, pixel->left, corner & 1);
    }
  }
  for (int i = 0; i < 6; i++)
    visit->result[image * 6 + i] += slope[i / 3] * (i < 3 ? pixel->x.slope : pixel->y.slope) * pixel->grid[i % 3];
}

void eval_grid_sample_grad_theta(const Node *node, const EvalTensor *const *inputs, EvalTensor *output) {
  const GridVisit visit = {.attrs = &node->attrs,
                           .theta = inputs[1],
                           .in = inputs[0]->shape,
                           .out = inputs[2]->shape,
                           .x = inputs[0]->data,
                           .dy = inputs[2]->data,
                           .result = output->data};
  visit_pixels(&visit, add_theta_gradient);
}
