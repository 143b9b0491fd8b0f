/* The rules that every graph obeys between passes; ir/IR.md lists them. The verifier trusts nothing that it has not
 * checked: a rule that others build on ends the check of a node, or of the graph, when it is broken. */
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "graph.h"
#include "name_map.h"
#include "winograd.h"
#include "work.h"

typedef struct Verifier {
  const Graph *graph;
  const char *pass;
  Diag *diag;
  const Node **by_id; /* nodes of the array */
  uint32_t *position; /* in the array, by id */
} Verifier;

enum { SUBJECT_SIZE = 512 };

/* "after fuse: %12 'conv1' (conv2d): rule 'shape'" */
static void describe(const Verifier *verifier, const Node *node, const char *rule, char subject[SUBJECT_SIZE]) {
  const char *op = (unsigned)node->op < OP_COUNT ? op_info(node->op)->name : "?";
  const int length = node->name ? snprintf(subject, SUBJECT_SIZE, "after %s: %%%u '%.300s' (%s): rule '%s'",
                                           verifier->pass, node->id, node->name, op, rule)
                                : snprintf(subject, SUBJECT_SIZE, "after %s: %%%u (%s): rule '%s'", verifier->pass,
                                           node->id, op, rule);
  if (length < 0) subject[0] = '\0';
}

static bool broken(const Verifier *verifier, const Node *node, const char *rule, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static bool broken(const Verifier *verifier, const Node *node, const char *rule, const char *format, ...) {
  char subject[SUBJECT_SIZE], message[512];
  describe(verifier, node, rule, subject);
  va_list arguments;
  va_start(arguments, format);
  if (format_v(message, sizeof message, format, arguments) < 0) message[0] = '\0';
  va_end(arguments);
  diag_error(verifier->diag, node->location, "%s: %s", subject, message);
  return false;
}

static bool graph_broken(const Verifier *verifier, const char *rule, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static bool graph_broken(const Verifier *verifier, const char *rule, const char *format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  if (format_v(message, sizeof message, format, arguments) < 0) message[0] = '\0';
  va_end(arguments);
  diag_error(verifier->diag, (Location){.file = verifier->graph->file}, "after %s: graph: rule '%s': %s",
             verifier->pass, rule, message);
  return false;
}

/* --- the array ------------------------------------------------------------------------------------- */

static bool check_ids(Verifier *verifier) {
  const Graph *graph = verifier->graph;
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (!node) return graph_broken(verifier, "id", "place %zu of the array has no node", i);
    if (node->id >= graph->next_id) {
      return broken(verifier, node, "id", "ids must be below next_id %u", graph->next_id);
    }
    if (verifier->by_id[node->id]) {
      return broken(verifier, node, "id", "places %u and %zu of the array have the same id",
                    verifier->position[node->id], i);
    }
    verifier->by_id[node->id] = node;
    verifier->position[node->id] = (uint32_t)i;
  }
  return true;
}

static bool in_array(const Verifier *verifier, const Node *node) {
  return node->id < verifier->graph->next_id && verifier->by_id[node->id] == node;
}

static bool check_names(Verifier *verifier) {
  NameMap map;
  name_map_init(&map, verifier->graph->arena);
  bool valid = true;
  for (size_t i = 0; i < verifier->graph->node_count; i++) {
    const Node *node = verifier->graph->nodes[i];
    const Node *first = node->name ? name_map_add(&map, node->name, node) : NULL;
    if (first) valid = broken(verifier, node, "name", "%%%u has the same name", first->id);
  }
  return valid;
}

/* --- nodes ----------------------------------------------------------------------------------------- */

static bool check_inputs(const Verifier *verifier, const Node *node) {
  const OpInfo *info = op_info(node->op);
  if (node->op_input_count < info->inputs_min || node->op_input_count > info->inputs_max) {
    return broken(verifier, node, "arity", "expected %d to %d inputs, found %d", info->inputs_min, info->inputs_max,
                  node->op_input_count);
  }
  if (node->input_count < node->op_input_count) {
    return broken(verifier, node, "arity", "%d inputs cannot hold the operation's own %d", node->input_count,
                  node->op_input_count);
  }
  for (int32_t k = 0; k < node->input_count; k++) {
    const Node *input = node->inputs[k];
    if (!input) return broken(verifier, node, "input", "input %d is missing", k);
    if (!in_array(verifier, input)) {
      return broken(verifier, node, "input", "input %d is %%%u, which is not in the graph", k, input->id);
    }
    if (verifier->position[input->id] >= verifier->position[node->id]) {
      return broken(verifier, node, "order", "input %d is %%%u, which stands at place %u, not before place %u", k,
                    input->id, verifier->position[input->id], verifier->position[node->id]);
    }
  }
  return true;
}

static bool check_shape(const Verifier *verifier, const Node *node) {
  const Shape *shape = &node->shape;
  if ((unsigned)node->dtype >= DTYPE_COUNT) return broken(verifier, node, "dtype", "no element type is set");
  if (shape->rank < 0 || shape->rank > SHAPE_MAX_RANK) {
    return broken(verifier, node, "shape", "the rank must be from 0 to %d, found %d", SHAPE_MAX_RANK, shape->rank);
  }
  for (int32_t i = 0; i < shape->rank; i++) {
    if (shape->dims[i] == DIM_BATCH && i > 0) {
      return broken(verifier, node, "batch", "dimension %d is N, which may only be the first", i);
    }
    if (shape->dims[i] <= 0 && shape->dims[i] != DIM_BATCH) {
      return broken(verifier, node, "shape", "dimension %d must be at least 1, found %lld", i,
                    (long long)shape->dims[i]);
    }
  }
  int64_t bytes = 0;
  if (!shape_elements(shape, verifier->graph->max_batch, &bytes) ||
      !checked_mul(bytes, data_type_bytes(node->dtype), &bytes)) {
    return broken(verifier, node, "shape", "the value is too large: its size in bytes overflows");
  }
  return true;
}

/* The rule of the op itself, on a copy: attributes in range, operands that fit, and the type and shape that follow. */
static bool check_operation(const Verifier *verifier, const Node *node) {
  char subject[SUBJECT_SIZE];
  Node copy = *node;
  copy.path = subject;
  const OpInfo *info = op_info(node->op);
  if (info->infer) {
    describe(verifier, node, "operation", subject);
    if (!info->infer(&copy, verifier->diag)) return false;
  }
  if (copy.dtype != node->dtype) {
    return broken(verifier, node, "dtype", "the operation gives %s, but %s is noted", data_type_name(copy.dtype),
                  data_type_name(node->dtype));
  }
  if (!shape_equal(&copy.shape, &node->shape)) {
    Text found, expected;
    text_init(&found, verifier->graph->arena);
    text_init(&expected, verifier->graph->arena);
    shape_print(&found, &node->shape);
    shape_print(&expected, &copy.shape);
    return broken(verifier, node, "shape", "the operation gives [%s], but [%s] is noted", expected.data, found.data);
  }
  for (int32_t i = 0; i < node->epilogue_count; i++) {
    if ((unsigned)node->epilogue[i].op >= OP_COUNT) {
      return broken(verifier, node, "epilogue", "step %d has no valid operation", i);
    }
  }
  describe(verifier, node, "epilogue", subject);
  return node_check_epilogue(&copy, verifier->diag);
}

static bool check_port(const Verifier *verifier, const Node *node) {
  const Graph *graph = verifier->graph;
  if (node->op != OP_INPUT && node->op != OP_PARAMETER) return true;
  const bool input = node->op == OP_INPUT;
  const size_t count = input ? graph->input_count : graph->parameter_count;
  if (node->port < 0 || (size_t)node->port >= count) {
    return broken(verifier, node, "port", "there are %zu ports, found index %d", count, node->port);
  }
  const Node *owner = input ? graph->inputs[node->port].node : graph->parameters[node->port].node;
  if (owner != node) return broken(verifier, node, "port", "port %d belongs to another node", node->port);
  const DataType dtype = input ? graph->inputs[node->port].dtype : graph->parameters[node->port].dtype;
  const Shape *shape = input ? &graph->inputs[node->port].shape : &graph->parameters[node->port].shape;
  if (dtype != node->dtype || !shape_equal(shape, &node->shape)) {
    return broken(verifier, node, "port", "port %d has another type or shape", node->port);
  }
  return true;
}

/* --- layout and storage ---------------------------------------------------------------------------- */

static bool check_layout(const Verifier *verifier, const Node *node) {
  static const struct {
    int32_t rank; /* -1: any */
    bool blocked;
  } rules[] = {
      [LAYOUT_PLAIN] = {-1, false},          [LAYOUT_CHANNEL_BLOCK] = {4, true},
      [LAYOUT_CHANNEL_LAST] = {4, false},    [LAYOUT_FILTER_BLOCK] = {4, true},
      [LAYOUT_MATRIX_BLOCK] = {2, true},     [LAYOUT_VECTOR_BLOCK] = {1, true},
      [LAYOUT_FILTER_WINOGRAD2] = {4, true}, [LAYOUT_FILTER_WINOGRAD4] = {4, true},
      [LAYOUT_TILES_WINOGRAD2] = {4, true},  [LAYOUT_TILES_WINOGRAD4] = {4, true},
      [LAYOUT_FILTER_PHASES] = {4, true},    [LAYOUT_CHANNEL_PHASES] = {4, true},
      [LAYOUT_FILTER_LAST] = {4, true},      [LAYOUT_FILTER_HALVES] = {4, true},
      [LAYOUT_FILTER_TILES] = {4, true},     [LAYOUT_FILTER_THIRDS] = {4, true},
      [LAYOUT_BATCH_BLOCK] = {-1, true},
  };
  const Layout layout = node->layout;
  if ((unsigned)layout.kind >= sizeof rules / sizeof rules[0]) {
    return broken(verifier, node, "layout", "there is no layout %d", (int)layout.kind);
  }
  if (rules[layout.kind].blocked ? layout.block < 1 || layout.block > 1024 : layout.block != 0) {
    return broken(verifier, node, "layout", "the block size must be %s, found %d",
                  rules[layout.kind].blocked ? "from 1 to 1024" : "0", layout.block);
  }
  if (rules[layout.kind].rank >= 0 && rules[layout.kind].rank != node->shape.rank) {
    return broken(verifier, node, "layout", "the layout is for %d dimensions, found %d", rules[layout.kind].rank,
                  node->shape.rank);
  }
  if (layout.element == DTYPE_F32) return true;
  if (layout.element != DTYPE_BF16 && layout.element != DTYPE_F16)
    return broken(verifier, node, "layout", "elements are kept as f32, bf16 or f16, not as data type %d",
                  (int)layout.element);
  if (node->dtype != DTYPE_F32 || node->op == OP_INPUT || node->op == OP_PARAMETER ||
      (layout.kind != LAYOUT_CHANNEL_LAST && layout.kind != LAYOUT_FILTER_LAST))
    return broken(verifier, node, "layout", "only f32 values with channels last that kernels make are kept as %s",
                  data_type_name(layout.element));
  return true;
}

/* The first and last element that an image occupies, counted from the start of the buffer. False on overflow. */
static bool storage_extent(const Node *node, int64_t *out_first, int64_t *out_last) {
  const Storage *storage = &node->storage;
  const LayoutKind kind = node->layout.kind;
  int64_t first = storage->origin, last = storage->origin;
  for (int32_t d = 0; d < node->shape.rank; d++) {
    int64_t count = node->shape.dims[d] == DIM_BATCH ? 1 : node->shape.dims[d];
    const bool image = layout_is_winograd_image(kind), filter = layout_is_winograd(kind) && !image;
    const bool split = ((kind == LAYOUT_CHANNEL_BLOCK || image) && d == 1) ||
                       ((kind == LAYOUT_FILTER_BLOCK || layout_parts(node->layout) > 0 || kind == LAYOUT_FILTER_TILES ||
                         kind == LAYOUT_MATRIX_BLOCK ||
                         kind == LAYOUT_BATCH_BLOCK || filter) &&
                        d == 0);
    if (kind == LAYOUT_CHANNEL_PHASES && d >= 2)
      count = ceil_div(count, winograd_form(kind).stride);
    else if (layout_is_winograd(kind) && d >= 2)
      count = winograd_size(winograd_form(kind));
    if (split) count = ceil_div(count, node->layout.block);
    int64_t span = 0, *end = storage->stride[d] < 0 ? &first : &last;
    if (!checked_mul(count - 1, storage->stride[d], &span) || !checked_add(*end, span, end)) return false;
    if (split && !checked_add(last, node->layout.block - 1, &last)) return false;
  }
  *out_first = first;
  *out_last = last;
  return true;
}

static bool check_space(const Verifier *verifier, const Node *node) {
  const Graph *graph = verifier->graph;
  const Storage *storage = &node->storage;
  const bool batched = shape_batched(&node->shape);
  int64_t limit = INT64_MAX;
  size_t ports = SIZE_MAX;
  switch (storage->space) {
    case SPACE_NONE:
      return true;
    case SPACE_WORKSPACE:
      limit = batched && !graph_fixes_batch(graph) ? graph->workspace_per_batch : graph->workspace_fixed;
      break;
    case SPACE_PREPARED:
      limit = graph->prepared_bytes;
      break;
    case SPACE_SCRATCH:
      limit = graph->prepare_scratch;
      break;
    case SPACE_PARAMETER:
      ports = graph->parameter_count;
      break;
    case SPACE_INPUT:
      ports = graph->input_count;
      break;
    case SPACE_OUTPUT:
      ports = graph->output_count;
      break;
    default:
      return broken(verifier, node, "storage", "there is no space %d", (int)storage->space);
  }
  if (storage->index < 0 || (ports != SIZE_MAX && (size_t)storage->index >= ports)) {
    return broken(verifier, node, "storage", "there is no %s %d", space_name(storage->space), storage->index);
  }
  /* Before `memory` has laid out the spaces there is nothing to lie outside of. */
  if (!graph->workspace_fixed && !graph->workspace_per_batch && !graph->prepared_bytes && !graph->prepare_scratch) {
    limit = INT64_MAX;
  }
  int64_t end = 0;
  if (storage->offset < 0 || storage->bytes < 0 || storage->delta < 0 ||
      !checked_add(storage->offset, storage->bytes, &end) || end > limit) {
    return broken(verifier, node, "storage", "%lld bytes at offset %lld of the %s are outside its %lld bytes",
                  (long long)storage->bytes, (long long)storage->offset, space_name(storage->space), (long long)limit);
  }
  return true;
}

static bool check_storage(const Verifier *verifier, const Node *node) {
  const Storage *storage = &node->storage;
  if (!check_space(verifier, node)) return false;
  for (int i = 0; i < 4; i++) {
    if (storage->halo[i] < 0) {
      return broken(verifier, node, "storage", "the halo must not be negative, found %d", storage->halo[i]);
    }
  }
  if (storage->space != SPACE_NONE) {
    int64_t first = 0, last = 0, end = 0, bytes = storage->bytes;
    /* images that lie side by side share their bytes */
    bool shared = node->layout.kind == LAYOUT_BATCH_BLOCK && shape_batched(&node->shape);
    if (shared && !checked_mul(bytes, node->layout.block, &bytes)) bytes = INT64_MAX;
    if (!storage_extent(node, &first, &last) || first < 0 || !checked_add(last, 1, &end) ||
        !checked_mul(end, layout_stored_bytes(node->layout, node->dtype), &end) || end > bytes) {
      return broken(verifier, node, "storage", "elements %lld to %lld lie outside the buffer of %lld bytes",
                    (long long)first, (long long)last, (long long)storage->bytes);
    }
  }
  const Node *alias = node->alias;
  if (!alias) return true;
  if (alias == node || !in_array(verifier, alias)) {
    return broken(verifier, node, "alias", "the value shares the storage of %%%u, which is %s", alias->id,
                  alias == node ? "itself" : "not in the graph");
  }
  if (alias->storage.space != storage->space || alias->storage.index != storage->index ||
      alias->storage.offset != storage->offset) {
    return broken(verifier, node, "alias", "the value shares the storage of %%%u, but lies elsewhere", alias->id);
  }
  int64_t first = 0, last = 0, end = 0;
  if (storage->delta > 0 && storage->space != SPACE_NONE &&
      (!storage_extent(node, &first, &last) || !checked_add(last, 1, &end) ||
       !checked_mul(end, layout_stored_bytes(node->layout, node->dtype), &end) ||
       !checked_add(end, storage->delta, &end) || end > alias->storage.bytes)) {
    return broken(verifier, node, "alias", "the value reaches beyond the %lld bytes of %%%u that it is part of",
                  (long long)alias->storage.bytes, alias->id);
  }
  return true;
}

/* What a hosted pool reads is nowhere else. */
static bool check_hosted_pool(const Verifier *verifier, const Node *node) {
  const Graph *graph = verifier->graph;
  const Node *host = node->inputs[0];
  StripWork work;
  if (!work_pools(node, &work))
    return broken(verifier, node, "hosted", "the kernel of %%%u does not work in strips of rows", host->id);
  size_t readers = 0;
  for (size_t i = 0; i < graph->node_count; i++)
    for (int32_t j = 0; j < graph->nodes[i]->input_count; j++) readers += graph->nodes[i]->inputs[j] == host;
  for (size_t i = 0; i < graph->output_count; i++) readers += graph->outputs[i].node == host;
  if (readers != 1) return broken(verifier, node, "hosted", "%%%u is read by others, too", host->id);
  if (host->storage.space != SPACE_NONE)
    return broken(verifier, node, "hosted", "%%%u has a place, which nothing writes", host->id);
  return true;
}

/* A hosted reduction leaves a row per item of its host. */
static bool check_hosted(const Verifier *verifier, const Node *node) {
  if (!node->hosted) return true;
  if (node->op == OP_MAX_POOL2D) return check_hosted_pool(verifier, node);
  if (node->op != OP_STATS_PARTIAL && node->op != OP_PLANE_MOMENTS)
    return broken(verifier, node, "hosted", "no kernel can compute this operation besides its own");
  const Node *host = node->inputs[0];
  const int64_t parts = node->op == OP_PLANE_MOMENTS ? work_moment_parts(host) : work_parts(host);
  if (!node_has_kernel(host) || parts == 0)
    return broken(verifier, node, "hosted", "the kernel of %%%u cannot compute reductions", host->id);
  if (node->attrs.parts != parts) {
    return broken(verifier, node, "hosted", "the kernel of %%%u has %lld parts, found %lld", host->id,
                  (long long)parts, (long long)node->attrs.parts);
  }
  return true;
}

/* Nodes of a stretch have a part per image, and follow each other but for those without a kernel. */
static bool check_stretches(const Verifier *verifier) {
  const Graph *graph = verifier->graph;
  uint32_t current = 0, largest = 0;
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (!node_has_kernel(node) && node->stretch == 0) continue;
    if (node->stretch != 0 && (!shape_batched(&node->shape) || !node_has_kernel(node)))
      return broken(verifier, node, "stretch", "only kernels of values with a batch compute some images at a time");
    if (node->stretch != current && node->stretch != 0 && node->stretch <= largest)
      return broken(verifier, node, "stretch", "other kernels stand between those of stretch %u", node->stretch);
    current = node->stretch;
    if (current > largest) largest = current;
  }
  if (largest > 0 && graph->stretch_images < 1)
    return graph_broken(verifier, "stretch", "there are stretches, but stretch_images is %lld",
                        (long long)graph->stretch_images);
  return true;
}

/* --- the graph ------------------------------------------------------------------------------------- */

static bool check_outputs(const Verifier *verifier) {
  const Graph *graph = verifier->graph;
  NameMap map;
  name_map_init(&map, graph->arena);
  bool valid = true;
  if (graph->hook_output_count > graph->output_count) {
    valid = graph_broken(verifier, "output", "%zu of %zu outputs cannot be hooks", graph->hook_output_count,
                         graph->output_count);
  }
  for (size_t i = 0; i < graph->output_count; i++) {
    const GraphOutput *output = &graph->outputs[i];
    if (!output->name) {
      valid = graph_broken(verifier, "output", "output %zu has no name", i);
    } else if (name_map_add(&map, output->name, output)) {
      valid = graph_broken(verifier, "output", "two outputs are named '%s'", output->name);
    }
    if (!output->node || !in_array(verifier, output->node)) {
      valid = graph_broken(verifier, "output", "output %zu '%s' has no value in the graph", i,
                           output->name ? output->name : "?");
    }
  }
  return valid;
}

static bool check_ports(const Verifier *verifier) {
  const Graph *graph = verifier->graph;
  NameMap inputs, parameters;
  name_map_init(&inputs, graph->arena);
  name_map_init(&parameters, graph->arena);
  bool valid = true;
  for (size_t i = 0; i < graph->input_count; i++) {
    const GraphInput *input = &graph->inputs[i];
    if (!input->name || name_map_add(&inputs, input->name, input)) {
      valid = graph_broken(verifier, "port", "input %zu needs a name of its own", i);
    }
    if (!input->node || !in_array(verifier, input->node) || input->node->op != OP_INPUT) {
      valid =
          graph_broken(verifier, "port", "input %zu '%s' has no node in the graph", i, input->name ? input->name : "?");
    }
  }
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    if (!parameter->name || name_map_add(&parameters, parameter->name, parameter)) {
      valid = graph_broken(verifier, "port", "parameter %zu needs a name of its own", i);
    }
    if (parameter->layer != LAYER_NONE && parameter->layer >= graph->layer_count) {
      valid = graph_broken(verifier, "layer", "parameter %zu belongs to layer %u of %zu", i, parameter->layer,
                           graph->layer_count);
    }
  }
  return valid;
}

/* --- updates --------------------------------------------------------------------------------------- */

/* Ops that read an element before they write it. */
static bool updates_in_place(OpCode op) { return op == OP_SGD_STEP || op == OP_ADAM_STEP || op == OP_BN_UPDATE; }

/* Whether a kernel that reads the node reads memory of `parameter`: storage says so once it is laid out, before that
 * all that may become a view counts. */
static bool reads_memory_of(const Node *node, const Node *parameter, const bool *derived) {
  if (node == parameter || (node->alias == parameter && !node->placed)) return true;
  if (node->storage.bytes > 0 || node->input_count != 1) return false;
  const bool view = node->op == OP_RESHAPE || node->op == OP_SLICE || node->op == OP_FLATTEN || node->op == OP_IDENTITY;
  return view && derived[node->inputs[0]->id];
}

static bool check_update(const Verifier *verifier, const Update *update, bool *derived) {
  const Graph *graph = verifier->graph;
  if (update->parameter < 0 || (size_t)update->parameter >= graph->parameter_count)
    return graph_broken(verifier, "update", "there is no parameter %d", update->parameter);
  const Node *node = update->node, *parameter = graph->parameters[update->parameter].node;
  const char *name = graph->parameters[update->parameter].name;
  if (!node || !in_array(verifier, node) || !parameter || !in_array(verifier, parameter))
    return graph_broken(verifier, "update", "the update of '%s' has no value in the graph", name);
  if (!updates_in_place(node->op) || node->inputs[0] != parameter)
    return broken(verifier, node, "update", "'%s' is not updated by an operation that takes it first", name);
  memset(derived, 0, graph->next_id * sizeof *derived);
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *reader = graph->nodes[i];
    derived[reader->id] = reads_memory_of(reader, parameter, derived);
    for (int32_t k = 0; i > verifier->position[node->id] && k < reader->input_count; k++) {
      if (derived[reader->inputs[k]->id])
        return broken(verifier, reader, "update", "it reads '%s', which %%%u has changed by then", name, node->id);
    }
  }
  return true;
}

static bool check_updates(const Verifier *verifier) {
  const Graph *graph = verifier->graph;
  bool *derived = graph->update_count ? arena_array(graph->arena, graph->next_id, bool) : NULL;
  bool valid = true;
  for (size_t i = 0; i < graph->update_count; i++) {
    for (size_t k = 0; k < i; k++) {
      if (graph->updates[k].parameter == graph->updates[i].parameter)
        valid = graph_broken(verifier, "update", "parameter %d is updated twice", graph->updates[i].parameter);
    }
    if (!check_update(verifier, &graph->updates[i], derived)) valid = false;
  }
  return valid;
}

bool graph_verify(const Graph *graph, const char *pass, Diag *diag) {
  Verifier verifier = {.graph = graph,
                       .pass = pass,
                       .diag = diag,
                       .by_id = arena_array(graph->arena, graph->next_id, const Node *),
                       .position = arena_array(graph->arena, graph->next_id, uint32_t)};
  if (graph->max_batch < 1) {
    return graph_broken(&verifier, "batch", "the maximum batch must be at least 1, found %lld",
                        (long long)graph->max_batch);
  }
  if (graph->min_batch < 1 || graph->min_batch > graph->max_batch) {
    return graph_broken(&verifier, "batch", "the minimum batch must be from 1 to the maximum %lld, found %lld",
                        (long long)graph->max_batch, (long long)graph->min_batch);
  }
  if (!check_ids(&verifier)) return false;
  bool valid = check_names(&verifier);
  /* A node whose operands or shape cannot be trusted ends the check: rules would read them. */
  for (size_t i = 0; i < graph->node_count && !diag_full(diag); i++) {
    const Node *node = graph->nodes[i];
    if ((unsigned)node->op >= OP_COUNT) {
      return broken(&verifier, node, "op", "there is no operation %d", (int)node->op);
    }
    if (!check_inputs(&verifier, node) || !check_shape(&verifier, node)) return false;
    if (!check_operation(&verifier, node)) valid = false;
    if (!check_port(&verifier, node)) valid = false;
    if (node->layer != LAYER_NONE && node->layer >= graph->layer_count) {
      valid = broken(&verifier, node, "layer", "the node belongs to layer %u of %zu", node->layer, graph->layer_count);
    }
    if (!check_layout(&verifier, node) || !check_hosted(&verifier, node) || !check_storage(&verifier, node))
      valid = false;
  }
  if (!check_outputs(&verifier)) valid = false;
  if (valid && !check_stretches(&verifier)) valid = false;
  if (!check_ports(&verifier)) valid = false;
  if (!check_updates(&verifier)) valid = false;
  return valid;
}
