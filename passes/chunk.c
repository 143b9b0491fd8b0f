/* chunk: whether runs may take some images at a time through all kernels.
 *
 *   %a = conv2d %image …;  %b = conv2d %a …;  output logits : f32[N,10], 96 KiB an image      → chunk 10
 *
 * Walking a large batch kernel by kernel, each value has left the first caches before its reader begins, and all
 * threads wait for the last one after every kernel. Where no image depends on another, a thread can take a few images
 * through all kernels, in a part of the workspace that stays in its second-level cache, and threads meet once at the
 * end. What it costs is that prepared weights are read again for every chunk: they have to stay in that cache too.
 * kiln_program.chunk is the most images of a chunk; NAME_run (codegen/cpu/entry.ll) divides a batch evenly among the
 * threads.
 *
 * Requires: memory. Guarantees: `chunk` of the graph is not 0 only if every kernel of a run makes a value with a part
 * per image that depends on that image alone. */
#include "base/checked.h"
#include "passes.h"
#include "rewrite.h"

/* Kernels of a run, each of which computes each image by itself; else `*out_obstacle` is one that does not. */
static size_t count_kernels(const Graph *graph, const PassOptions *options, const Node **out_obstacle) {
  const bool *prepared = mark_prepare_phase(graph, options->scratch);
  size_t count = 0;
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (prepared[node->id] || !(node_has_kernel(node) || node->hosted)) continue;
    count++;
    if (!shape_batched(&node->shape) || node_joins_images(node)) *out_obstacle = node;
  }
  return count;
}

/* Bytes of an image in the caller's memory. */
static int64_t port_bytes(const Graph *graph) {
  int64_t bytes = 0, total = 0;
  for (size_t i = 0; i < graph->input_count + graph->output_count; i++) {
    const Node *node = i < graph->input_count ? graph->inputs[i].node : graph->outputs[i - graph->input_count].node;
    if (node == NULL || !shape_batched(&node->shape)) continue;
    if (!checked_mul(shape_elements_per_image(&node->shape), data_type_bytes(node->dtype), &bytes) ||
        !checked_add(total, bytes, &total))
      return INT64_MAX;
  }
  return total;
}

/* Half of the second-level cache is for the images, a multiple of those that kernels compute together. Where not even
 * so few fit, as few as possible are still better than all. */
static int64_t images_at_a_time(const Graph *graph, const Target *target) {
  enum { MOST = 1 << 16 };
  const int64_t unit = graph_batch_unit(graph);
  int64_t image;
  if (!checked_add(port_bytes(graph), graph->workspace_per_batch, &image)) return unit;
  const int64_t fitting = target->l2_bytes / 2 / (image > 0 ? image : 1) / unit * unit;
  return fitting < unit ? unit : fitting > MOST ? MOST : fitting;
}

bool pass_chunk(Graph *graph, const PassOptions *options, Diag *diag) {
  (void)diag;
  const Target *target = options->target;
  graph->chunk = 0;
  if (!target || target->image_layout == LAYOUT_CHANNEL_LAST || graph_fixes_batch(graph) || graph->max_batch <= 1 ||
      !graph->output_count)
    return true;
  Node *output = graph->outputs[0].node;
  const Node *obstacle = NULL;
  static const char *const chosen = "all images kernel by kernel", *const other = "some images at a time";
  if (count_kernels(graph, options, &obstacle) < 2) return true;
  if (obstacle) {
    node_decide(graph, output, "chunk", chosen, other,
                arena_format(graph->arena, "'%s' is not computed image by image.",
                             obstacle->name ? obstacle->name : op_info(obstacle->op)->name));
    return true;
  }
  if (graph->prepared_bytes > target->l2_bytes / 2) {
    node_decide(graph, output, "chunk", chosen, other,
                arena_format(graph->arena, "%lld bytes of prepared weights would be read again for every chunk.",
                             (long long)graph->prepared_bytes));
    return true;
  }
  graph->chunk = images_at_a_time(graph, target);
  node_decide(graph, output, "chunk",
              arena_format(graph->arena, "up to %lld image%s at a time through all kernels", (long long)graph->chunk,
                           graph->chunk == 1 ? "" : "s"),
              chosen, "Their values stay in the second-level cache, beside the weights, and threads meet once.");
  return true;
}
