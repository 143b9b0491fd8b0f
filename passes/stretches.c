/* stretches: which kernels of a training step take a large batch some images at a time.
 *
 *   %1 = relu %c : f32[N,8,14,14]                   → … stretch 1
 *   %y = conv2d %1, %w … : f32[N,16,7,7]            → … stretch 1
 *
 * Walking a large batch kernel by kernel, each value has left the second-level cache before its reader begins. A
 * training step cannot take a few images through all kernels, since sums over the batch stand between them, but it can
 * between two such sums: there every image's part of a value depends on the same image's parts of others. Kernels of a
 * stretch compute the first `stretch_images` images one after the other, then the next ones, and threads meet at the
 * stretch's end only. What does not need the stretch's sums is put behind it where it stood in between: gradients of
 * filters, which read the same gradients as those of images do.
 *
 * Each value is kept until the stretch ends, as other threads are behind or ahead: see `memory`.
 *
 * Requires: strides, a batch whose values lie apart from each other (graph_fixes_batch). Guarantees: nodes of a stretch
 * follow each other, but for nodes without a kernel; no kernel of a stretch reads other images of what the stretch makes. */
#include "base/checked.h"
#include "passes.h"
#include "rewrite.h"
#include "work.h"

/* Kernels. Small networks are faster so by 2 to 4 % at batch 512, measured on a Xeon: two kernels gain less than that. */
enum { STRETCH_LEAST = 3, STRETCH_MOST = 8 /* see codegen/cpu/entry.ll */ };

/* Whether an image's part of the value depends on the same image of other values with a batch only, and the kernel's items
 * are those of the first images, then those of the next ones. */
static bool is_image_wise(const Node *node, const Target *target) {
  return shape_batched(&node->shape) && !node_joins_images(node) && node->layout.kind == LAYOUT_BATCH_BLOCK &&
         work_by_image(node, target->l2_bytes);
}

static bool reads(const Node *node, const Node *value) {
  const Node *owner = value->alias ? value->alias : value;
  for (int32_t i = 0; i < node->input_count; i++) {
    const Node *input = node->inputs[i];
    if (input == value || input == owner || input->alias == owner) return true;
  }
  return false;
}

/* Gradients of filters move behind the gradient of the image that follows. What moves is read later only, and nothing is
 * written in place that it reads. */
static void move_filter_gradients(Graph *graph, const Target *target) {
  for (size_t i = 1; i + 1 < graph->node_count; i++) {
    Node *before = graph->nodes[i - 1], *node = graph->nodes[i], *after = graph->nodes[i + 1];
    if (node->op != OP_CONV2D_GRAD_WEIGHT && node->op != OP_LINEAR_GRAD_WEIGHT) continue;
    if ((node->alias && !node->placed) || node->hosted || after->alias || after->hosted || !is_image_wise(before, target) ||
        !is_image_wise(after, target) || !reads(after, before) || reads(after, node))
      continue;
    graph->nodes[i] = after, graph->nodes[i + 1] = node;
  }
}

/* Bytes of an image in what a node reads and makes. */
static double image_bytes(const Node *node) {
  double bytes = (double)node->storage.bytes;
  for (int32_t i = 0; i < node->input_count; i++)
    if (shape_batched(&node->inputs[i]->shape)) bytes += (double)node->inputs[i]->storage.bytes;
  return bytes;
}

typedef struct Stretch {
  size_t first, end; /* nodes */
  int32_t kernels;
  double image; /* bytes */
} Stretch;

static Stretch find_stretch(const Graph *graph, const Target *target, const bool *prepared, size_t first) {
  Stretch stretch = {first, first, 0, 0};
  for (size_t i = first; i < graph->node_count && stretch.kernels < STRETCH_MOST; i++) {
    const Node *node = graph->nodes[i];
    if (!node_has_kernel(node)) continue;
    if (prepared[node->id] || !is_image_wise(node, target)) break;
    stretch.end = i + 1;
    stretch.kernels++;
    stretch.image += image_bytes(node);
  }
  return stretch;
}

/* Images whose part of a stretch half of the second-level cache holds; a multiple of those computed together that divides
 * the batch. */
static int64_t images_at_a_time(const Graph *graph, const Target *target, double image) {
  const int64_t unit = graph_batch_unit(graph) > 1 ? graph_batch_unit(graph) : BATCH_UNIT;
  int64_t images = (int64_t)((double)target->l2_bytes / 2 / image) / unit * unit;
  while (images > unit && graph->max_batch % images != 0) images -= unit;
  return images < unit ? unit : images;
}

bool pass_stretches(Graph *graph, const PassOptions *options, Diag *diag) {
  (void)diag;
  const Target *target = options->target;
  graph->stretch_images = 0;
  if (!target || target->image_layout == LAYOUT_CHANNEL_LAST || target->l2_bytes <= 0 || !graph_fixes_batch(graph))
    return true;
  const bool *prepared = mark_prepare_phase(graph, options->scratch);
  move_filter_gradients(graph, target);
  uint32_t number = 0;
  int64_t fewest = INT64_MAX;
  for (size_t i = 0; i < graph->node_count;) {
    const Stretch stretch = find_stretch(graph, target, prepared, i);
    const bool stays = stretch.image * (double)graph->max_batch < (double)target->l2_bytes / 2;
    if (stretch.kernels < STRETCH_LEAST || stays) {
      i = stretch.end > i ? stretch.end : i + 1;
      continue;
    }
    const int64_t images = images_at_a_time(graph, target, stretch.image);
    if (images < fewest) fewest = images;
    number++;
    for (; i < stretch.end; i++) {
      Node *node = graph->nodes[i];
      if (!node_has_kernel(node)) continue;
      node->stretch = number;
      node_decide(graph, node, "stretches", "with the kernels before or behind it, some images at a time",
                  "all images at once", "The values would not stay in the cache.");
    }
  }
  if (number == 0) return true;
  graph->stretch_images = fewest;
  if (graph->max_batch / fewest > 1 && graph->max_batch % fewest == 0) return true;
  for (size_t i = 0; i < graph->node_count; i++) graph->nodes[i]->stretch = 0;
  graph->stretch_images = 0;
  return true;
}
