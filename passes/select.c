/* select: how every convolution and matrix product is computed.
 *
 *   %y = conv2d %x, %w : f32[N,64,56,56] nchw16c   →   choice {direct, tile 14 pixels × 2 blocks, 7 rows an item}
 *
 * The layouts leave one algorithm per node; what remains are sizes. A register tile is as large as the registers
 * allow: pixels × blocks accumulators, the vectors of filters, and one broadcast scalar. An item's rows are few enough
 * that one image makes enough items for many threads; of small images fewer, since every item reads its filters. Where
 * all filters stay in the second-level cache and an image does not, an item's rows are so few that their input does.
 * Channels are split where a panel of filters is too large a part of that cache, which also holds the input and the
 * filters that are fetched ahead.
 *
 * Where the options hold measured times of a kernel, the fastest of its candidates is taken instead: see candidates.h.
 *
 * Requires: layout. Guarantees: `choice` of conv2d and linear. */
#include "base/checked.h"
#include "candidates.h"
#include "rewrite.h"
#include "select_winograd.h"
#include "work.h"

enum { ITEMS_PER_IMAGE = 16, PIXELS_MAX = 28, FALLBACK_REGISTERS = 16 };
enum { SMALL_IMAGE_ITEMS = 8, SMALL_IMAGE = 256 /* pixels */ };

/* Beside the accumulators and the filters a register holds the broadcast pixel; with a single block, whose multiply-adds
 * come as fast as pixels, also the next one. Where multiply-adds are not fused, every product has a register of its own
 * until it is added, and LLVM starts several at once: half of the registers are accumulators. */
int32_t register_tile(const Target *target, int32_t blocks) {
  const int32_t registers = target ? target->vector_registers : FALLBACK_REGISTERS, loaded = blocks > 1 ? 1 : 2;
  int32_t pixels = target && !target->fma ? registers / 2 / blocks : (registers - blocks - loaded) / blocks;
  if (pixels > PIXELS_MAX) pixels = PIXELS_MAX;
  return pixels < 1 ? 1 : pixels;
}

/* Rows of an item: a multiple of `tile_rows`, such that `units` times the chunks reach `items`, and chunks are alike
 * where the height allows. */
static int64_t choose_rows(int64_t height, int64_t units, int64_t tile_rows, int64_t items) {
  int64_t chunks = ceil_div(items, units);
  int64_t tiles = ceil_div(height, tile_rows);
  if (chunks > tiles) chunks = tiles;
  return ceil_div(tiles, chunks) * tile_rows;
}

/* Bytes of a panel that the tiles of an item share before they go on to the next channels, which are fetched meanwhile.
 * What comes from beyond the second-level cache arrives in time only if it is asked for shortly before: measured on a
 * Xeon, filters fetched 16 KiB ahead hide two thirds of the reading, 256 KiB ahead less than a half. With a single tap
 * the panel's channels are worth keeping in the first-level cache wherever they come from. */
static int64_t panel_budget(const Target *target, int64_t filter_bytes, int64_t taps) {
  enum { NEAR = 20 << 10 }; /* with the pixels' channels in the first-level cache */
  if (target == NULL || target->l2_bytes <= 0) return INT64_MAX;
  return taps == 1 || filter_bytes > target->l2_bytes / 2 ? NEAR : target->l2_bytes / 8;
}

/* Output rows whose input stays in the second-level cache while all filters go through it; INT64_MAX where there is no
 * need, or where filters that are not there themselves would be read too often. */
static int64_t limit_rows(const Node *node, const Target *target, int64_t units) {
  enum { FAR = 4, ROWS = 8, MUCH = 4 }; /* parts of the cache; see put_rows_outside in codegen/cpu/conv_direct.c */
  const Shape *input = &node->inputs[0]->shape, *filter = &node->inputs[1]->shape;
  const int64_t cache = target ? target->l2_bytes / data_type_bytes(node->dtype) : 0;
  const int64_t image = shape_elements_per_image(input);
  int64_t row, filters, reading, saved;
  if (cache <= 0 || image <= cache / FAR || !shape_elements(filter, 1, &filters)) return INT64_MAX;
  const bool here = filters <= cache / FAR;
  if (!checked_mul(image / input->dims[2], node->attrs.stride.values[0], &row)) return 1;
  const int64_t part = cache / (here ? ROWS : FAR), rows = part > row ? part / row : 1;
  if (here) return rows;
  const bool counted = checked_mul(filters, MUCH * ceil_div(node->shape.dims[2], rows), &reading) &&
                       checked_mul(image, units, &saved);
  return counted && part >= row && reading <= saved ? rows : INT64_MAX;
}

static void select_direct(Graph *graph, Node *node, const PassOptions *options) {
  const Target *target = options->target;
  KernelChoice *choice = &node->choice;
  const Shape *filter = &node->inputs[1]->shape;
  const int32_t lanes = work_lanes(node->layout, node->inputs[1]->layout.block, choice);
  int64_t height = node->shape.dims[2], width = node->shape.dims[3];
  *choice = (KernelChoice){.algorithm = ALGORITHM_DIRECT, .tile_blocks = node->inputs[1]->layout.block / lanes};
  choice->tile_pixels = register_tile(target, choice->tile_blocks);
  int64_t tile_rows = choice->tile_pixels / width;
  if (tile_rows < 1) tile_rows = 1;
  if (tile_rows > height) tile_rows = height;
  int64_t units = ceil_div(ceil_div(node->shape.dims[1], lanes), choice->tile_blocks);
  const int64_t items = height * width <= SMALL_IMAGE ? SMALL_IMAGE_ITEMS : ITEMS_PER_IMAGE;
  int64_t rows = choose_rows(height, units, tile_rows, items);
  const int64_t limit = limit_rows(node, target, units);
  if (units > 1 && rows > limit) rows = round_up(limit, tile_rows);
  choice->row_chunk = (int32_t)rows;

  int64_t panel_row = filter->dims[2] * filter->dims[3] * choice->tile_blocks * lanes * data_type_bytes(node->dtype);
  int64_t channels = filter->dims[1], taps = filter->dims[2] * filter->dims[3];
  int64_t budget = panel_budget(target, panel_row * channels * units, taps);
  int64_t chunk = channels;
  if (panel_row > 0 && channels > budget / panel_row) {
    int64_t chunks = ceil_div(channels, budget / panel_row < lanes ? lanes : budget / panel_row);
    chunk = round_up(ceil_div(channels, chunks), lanes);
  }
  choice->channel_chunk = (int32_t)chunk;
  node_decide(
      graph, node, "select",
      arena_format(graph->arena, "direct, tile of %d pixels by %d blocks, %d rows an item, %d channels at a time",
                   (int)choice->tile_pixels, (int)choice->tile_blocks, (int)choice->row_chunk,
                   (int)choice->channel_chunk),
      NULL, "The tile fills the vector registers.");
}

static int64_t tile_rows_of(const Node *node, int32_t pixels) {
  const int64_t rows = pixels / node->shape.dims[3];
  return rows < 1 ? 1 : rows > node->shape.dims[2] ? node->shape.dims[2] : rows;
}

static void add_direct(CandidateList *list, Arena *arena, const Node *node, KernelChoice choice) {
  const int64_t height = node->shape.dims[2], tile_rows = tile_rows_of(node, choice.tile_pixels);
  int64_t rows = round_up(choice.row_chunk, tile_rows);
  if (rows > round_up(height, tile_rows)) rows = round_up(height, tile_rows);
  choice.row_chunk = (int32_t)rows;
  candidates_add(list,
                 arena_format(arena, "direct, tile of %d pixels, %d rows an item, %d channels at a time",
                              (int)choice.tile_pixels, (int)choice.row_chunk, (int)choice.channel_chunk),
                 choice, -1);
}

/* Around the model's choice: other items, other parts of the channels, and a tile that divides a row evenly. */
void candidates_direct(CandidateList *list, Graph *graph, const Node *node) {
  const KernelChoice model = node->choice;
  const int64_t channels = node->inputs[1]->shape.dims[1], width = node->shape.dims[3];
  const int64_t half =
      round_up(ceil_div(model.channel_chunk, 2), work_lanes(node->layout, node->inputs[1]->layout.block, &model));
  if (node->shape.dims[2] < 1 || width < 1 || node->shape.dims[2] > INT32_MAX / 2) return;
  KernelChoice other = model;
  add_direct(list, graph->arena, node, model);
  other.row_chunk = model.row_chunk > 1 ? model.row_chunk / 2 : 1;
  add_direct(list, graph->arena, node, other);
  other.row_chunk = 2 * model.row_chunk;
  add_direct(list, graph->arena, node, other);
  other = model;
  other.channel_chunk = (int32_t)channels;
  if (channels <= INT32_MAX) add_direct(list, graph->arena, node, other);
  other.channel_chunk = (int32_t)half;
  if (half < channels) add_direct(list, graph->arena, node, other);
  other = model;
  other.tile_pixels = (int32_t)ceil_div(width, ceil_div(width, model.tile_pixels));
  if (width > model.tile_pixels) add_direct(list, graph->arena, node, other);
  other.tile_pixels = model.tile_pixels > 2 ? model.tile_pixels - 2 : 1;
  add_direct(list, graph->arena, node, other);
}

static void select_conv2d(Graph *graph, Node *node, const PassOptions *options) {
  const Node *input = node->inputs[0];
  if (node->layout.kind == LAYOUT_BATCH_BLOCK) return;
  if (node->layout.kind == LAYOUT_PLAIN || node->inputs[1]->layout.kind != LAYOUT_FILTER_BLOCK) {
    node->choice = (KernelChoice){.algorithm = ALGORITHM_REFERENCE};
    const bool rows = node->layout.kind == LAYOUT_PLAIN && node->inputs[0]->layout.kind == LAYOUT_PLAIN &&
                      work_along_rows(&node->attrs, &node->inputs[1]->shape, &node->shape);
    node_decide(graph, node, "select", rows ? "reference, vectors along rows" : "reference", "direct",
                "The layout is plain.");
  } else if (node->attrs.groups > 1 && node->attrs.groups == input->shape.dims[1] &&
             node->attrs.groups == node->shape.dims[1]) {
    node->choice = (KernelChoice){.algorithm = ALGORITHM_DEPTHWISE, .tile_blocks = 1};
    node_decide(graph, node, "select", "depthwise", "direct",
                "A filter sees one channel: nothing is summed over channels.");
  } else {
    select_direct(graph, node, options);
  }
}

static void add_packed(CandidateList *list, Arena *arena, KernelChoice choice, int32_t pixels) {
  choice.tile_pixels = pixels < 1 ? 1 : pixels;
  candidates_add(list, arena_format(arena, "packed, tile of %d rows", (int)choice.tile_pixels), choice, -1);
}

/* Tiles of fewer rows where there are as many. */
static void tune_linear(Graph *graph, Node *node, const PassOptions *options, Diag *diag) {
  const int32_t most = node->choice.tile_pixels;
  const int64_t rows = largest_batch(graph, node);
  CandidateList list = {.count = 0};
  add_packed(&list, graph->arena, node->choice, most);
  if (rows > 1) add_packed(&list, graph->arena, node->choice, most / 2);
  if (rows > 1) add_packed(&list, graph->arena, node->choice, most - 1);
  node->choice = list.items[candidates_take(graph, node, &list, options, diag)].choice;
}

static void select_linear(Graph *graph, Node *node, const PassOptions *options, Diag *diag) {
  enum { UNIT_VECTORS = 4 }; /* vectors of features of an item, see codegen */
  if (node->layout.kind == LAYOUT_BATCH_BLOCK) return;
  int32_t lanes = options->target && options->target->vector_lanes > 0 ? options->target->vector_lanes : 1;
  int32_t blocks = node->inputs[1]->layout.kind == LAYOUT_MATRIX_BLOCK ? node->inputs[1]->layout.block / lanes : 1;
  node->choice = (KernelChoice){.algorithm = ALGORITHM_PACKED, .tile_blocks = blocks < 1 ? 1 : blocks};
  node->choice.tile_pixels = register_tile(options->target, blocks < UNIT_VECTORS ? UNIT_VECTORS : blocks);
  node_decide(graph, node, "select",
              arena_format(graph->arena, "packed, tile of %d rows", (int)node->choice.tile_pixels), NULL,
              "The tile fills the vector registers.");
  tune_linear(graph, node, options, diag);
}

static bool is_product(OpCode op) {
  return op == OP_CONV2D || op == OP_CONV_TRANSPOSE2D || op == OP_CONV2D_GRAD_WEIGHT || op == OP_LINEAR ||
         op == OP_LINEAR_GRAD_WEIGHT || op == OP_MATMUL;
}

/* The code generator's model chooses tile, splits and stages unless it is asked for one of them. */
static void tune_product(Graph *graph, Node *node, const PassOptions *options, Diag *diag) {
  static const int32_t splits[] = {1, 2, 4, 8}, stages[] = {2, 3, 4};
  const KernelChoice model = node->choice;
  CandidateList list = {.count = 0};
  candidates_add(&list, "as modelled", model, -1);
  for (int32_t tile = 1; tile <= options->target->product_tiles[model.math]; tile++) {
    KernelChoice choice = model;
    choice.tile_pixels = tile;
    candidates_add(&list, arena_format(graph->arena, "tile %d", (int)tile), choice, -1);
  }
  for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
    KernelChoice choice = model;
    choice.row_chunk = splits[i];
    candidates_add(&list, arena_format(graph->arena, "splits %d", (int)splits[i]), choice, -1);
  }
  for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
    KernelChoice choice = model;
    choice.channel_chunk = stages[i];
    candidates_add(&list, arena_format(graph->arena, "stages %d", (int)stages[i]), choice, -1);
  }
  node->choice = list.items[candidates_take(graph, node, &list, options, diag)].choice;
}

/* Targets with channels last compute all products in one way, whose tiles their code generator chooses; what has to be
 * settled is the arithmetic. What weights are prepared with is exact. */
static void select_math(Graph *graph, const PassOptions *options, Diag *diag) {
  const bool *prepared = mark_prepare_phase(graph, options->scratch);
  const MathMode wanted = options->precision == PRECISION_STRICT ? MATH_FP32 : options->target->math;
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (!is_product(node->op)) continue;
    node->choice = (KernelChoice){.math = prepared[node->id] ? MATH_FP32 : wanted};
    node_decide(graph, node, "select", arena_format(graph->arena, "products in %s", math_mode_name(node->choice.math)),
                NULL, "As asked for.");
    if (!prepared[node->id]) tune_product(graph, node, options, diag);
  }
}

/* Products of batch-blocked values have one algorithm; what is left to choose is how a training step rounds sums. */
static void select_sums(Graph *graph, Node *node, const PassOptions *options) {
  const Node *input = node->input_count ? node->inputs[0] : NULL;
  if (options->precision != PRECISION_STRICT || !is_product(node->op) || input->layout.kind != LAYOUT_BATCH_BLOCK ||
      !graph_fixes_batch(graph))
    return;
  node->choice.algorithm = ALGORITHM_REFERENCE;
  node_decide(graph, node, "select", "the most exact sums", "f32 in longer runs",
              "Strict precision: rounding of one step decides which side of a relu's 0 the next one falls on.");
}

static bool select_vectors(Graph *graph, const PassOptions *options, Diag *diag) {
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    select_sums(graph, node, options);
    if (node->op == OP_CONV2D) select_conv2d(graph, node, options);
    if (node->op == OP_LINEAR) select_linear(graph, node, options, diag);
  }
  return select_winograd(graph, options, diag);
}

/* Kernels without times are reported on the way. */
bool pass_select(Graph *graph, const PassOptions *options, Diag *diag) {
  const size_t errors = diag_error_count(diag);
  if (options->target && options->target->image_layout == LAYOUT_CHANNEL_LAST)
    select_math(graph, options, diag);
  else if (!select_vectors(graph, options, diag))
    return false;
  return diag_error_count(diag) == errors;
}
