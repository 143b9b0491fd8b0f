/* Winograd's algorithm for 3×3 convolutions with stride 1, and 7×7 ones with stride 2 of images with few channels.
 *
 *   %1 = convert %w : f32[64,64,3,3] oihw32o;  %y = conv2d %x, %1, … choice direct
 *     → %1 = convert %w : f32[64,64,3,3] wino43o32;  %y = conv2d %x, %1, … choice winograd43
 *   where images have few tiles threads divide the filters. A single image is transformed by each of them: what another
 *   core has transformed would take longer to come over than to make. Of a few images the input is transformed in a
 *   step of its own:  %2 = convert %x : f32[N,256,14,14] tiles43c16;  %y = conv2d %2, %1, …
 *   and where reading transformed filters would take longer than making them, these stay as they are:
 *     %1 = convert %w : oihw32o;  %y = conv2d %x, %1, … choice winograd43
 *
 *   %1 = convert %w : f32[64,3,7,7] oihw32o;  %y = conv2d %x, %1, … {stride=[2,2], padding=[3,3,3,3]} choice direct
 *     → %1 = convert %w : f32[64,3,7,7] wino34o32;  %2 = convert %x : f32[N,3,224,224] phases16c;
 *       %y = conv2d %2, %1, … choice winograd34
 *
 * F(4×4,3×3) does a quarter of the multiplications of direct convolution, F(2×2,3×3) four ninths, F(3×3,4×4) of phases
 * a third, but the filters grow by 4, 16/9 and 3: where an image has few tiles, reading them is what takes the time. The
 * cost model counts cycles for an image at the largest batch: multiply-adds, what prefetching does not hide of the
 * reading of filters, and the transforms. Its constants were fitted to measurements of the layers of ResNet-34 on a Xeon
 * with 2 MiB of second-level cache a core.
 *
 * Errors against direct convolution were measured: F(2×2,3×3) stays within its bound, F(4×4,3×3) within six times
 * of it. `strict` therefore allows neither. */
#include "select_winograd.h"

#include <math.h>

#include "base/checked.h"
#include "candidates.h"
#include "rewrite.h"
#include "select_tiles.h"
#include "winograd.h"

/* Cycles that no one has to know exactly: what common cores do. */
static const double multiply_adds_per_cycle = 2; /* of vectors */
static const double bytes_per_cycle = 5;         /* of memory that two cores share; measured: 4 to 9 */
static const double latency = 8;                 /* multiply-adds in flight that keep the units busy */
static const double busy = 0.83;                 /* share of the time that the units are busy in a product */
static const double least_gain = 0.9;            /* of direct's cost; the model is not better than that */
/* a vector's transforms, by m: mostly loads and stores that miss the first-level cache */
static const double input_vector[] = {[2] = 120, [3] = 200, [4] = 290};
static const double output_vector[] = {[2] = 75, [3] = 150, [4] = 175};
static const double filter_vector[] = {[2] = 150, [4] = 260};

enum { FALLBACK_LANES = 16, FALLBACK_CACHE = 1 << 20, SPLIT_BLOCKS = 4, TAPS = 3, PHASES_CHANNELS = 16 };

/* How a convolution would be done. */
typedef struct WinogradPlan {
  WinogradForm form;
  int32_t panel_vectors; /* vectors of filters in a panel */
  int32_t block_tiles;   /* tiles of a register block */
  int32_t group_tiles;   /* tiles that share a pass over the filters */
  bool split;            /* the input's transform is a step of its own */
  bool panels;           /* panels of filters are the items, and every call transforms the input; not when split */
  bool transforms;       /* the kernel transforms the filters; only when split, or with panels */
  int32_t channel_chunk; /* of channels at a time */
  double cost;           /* cycles an image */
} WinogradPlan;

typedef struct Machine {
  const Target *target; /* or NULL */
  int32_t lanes;
  double cache; /* second level, bytes */
} Machine;

static Machine describe_machine(const Target *target) {
  if (target == NULL) return (Machine){NULL, FALLBACK_LANES, FALLBACK_CACHE};
  return (Machine){target, target->vector_lanes, target->l2_bytes > 0 ? (double)target->l2_bytes : FALLBACK_CACHE};
}

/* The time that reading takes from computing which it could run beside. The closer the memory is to its limit, the less
 * of a prefetch arrives in time: measured were 0.35 of the reading where it takes 0.44 of the time of the computing,
 * 0.4 at 0.5, and all of it where it takes longer. */
static double exposed_reading(double reading, double computing) { return reading * fmin(1, 0.8 * reading / computing); }

double winograd_transforms(WinogradForm form, double tiles, double input_vectors, double output_vectors) {
  return tiles * (input_vector[form.outputs] * input_vectors + output_vector[form.outputs] * output_vectors);
}

/* Two vectors a panel, or three or one where no other division of the output channels fits exactly. Four where
 * multiply-adds are not fused, for the reason that direct convolution has: see layout. */
static int32_t choose_panel(const Machine *machine, int64_t vectors) {
  if (machine->target != NULL && !machine->target->fma && vectors % 4 == 0) return 4;
  if (vectors % 2 == 0) return 2;
  if (vectors % 3 == 0) return 3;
  return vectors == 1 ? 1 : 2;
}

/* Accumulators, a panel's vectors and a broadcast number fill the registers, as in direct convolution. Of
 * nearly equal sizes the one is taken that gives an even number of blocks, for the sake of two threads. */
static int32_t choose_block(const Machine *machine, int32_t vectors, int64_t tiles) {
  const int32_t most = register_tile(machine->target, vectors);
  if (tiles <= most) return most;
  for (int32_t size = most; size > 1 && size > most - 3; size--)
    if (ceil_div(tiles, size) % 2 == 0) return size;
  return most;
}

/* Tiles that share a pass over the filters: those whose transformed inputs and products the cache holds, or twice as
 * many where reading the filters would take longer than the multiplications. When all filters fit as well, nothing is
 * gained by sharing a pass. */
static int64_t choose_group(const Machine *machine, const WinogradPlan *plan, int64_t all_tiles, double tile_bytes,
                            double filter_bytes, double multiply) {
  if (filter_bytes < machine->cache / 2 && all_tiles > plan->block_tiles) return plan->block_tiles;
  double tiles = 1.2 * machine->cache / tile_bytes;
  if (filter_bytes / (tiles * bytes_per_cycle) > multiply) tiles *= 2;
  if (tiles > (double)all_tiles) return all_tiles;
  return tiles < plan->block_tiles ? plan->block_tiles : (int64_t)tiles;
}

/* Of one image, every call transforms the input for itself; of several, that is a step of its own. */
static void divide_filters(WinogradPlan *plan, int64_t batch) {
  plan->panels = batch == 1;
  plan->split = !plan->panels;
}

/* Channels whose transformed filters fit the cache beside the image's tiles and products, and the filters that are
 * fetched meanwhile; they divide all channels. 0: there is no room. */
static int32_t choose_chunk(const Machine *machine, int64_t channels, double channel_bytes, double other_bytes) {
  double room = fmin(0.9 * machine->cache - other_bytes, machine->cache / 6);
  for (int64_t parts = 1; parts <= channels / machine->lanes; parts++) {
    if (channels % parts != 0 || channels / parts % machine->lanes != 0) continue;
    if ((double)(channels / parts) * channel_bytes <= room) return (int32_t)(channels / parts);
  }
  return 0;
}

/* The same with filters that the kernel transforms. Every image transforms all of them again. */
static WinogradPlan plan_transforming(const Node *node, WinogradPlan plan, const Machine *machine, int64_t batch) {
  const Node *input = node->inputs[0], *filter = node->inputs[1];
  int64_t channels = input->shape.dims[1], vectors = ceil_div(node->shape.dims[1], machine->lanes);
  const int32_t taps = winograd_filter_taps(plan.form);
  WinogradGrid grid = winograd_grid(plan.form, input->shape.dims[2], input->shape.dims[3], node->attrs.padding.values);
  double tiles = (double)(grid.rows * grid.columns), panel = plan.panel_vectors * machine->lanes;
  double positions = winograd_size(plan.form) * winograd_size(plan.form);
  plan.transforms = true;
  divide_filters(&plan, batch);
  plan.cost = INFINITY;
  plan.channel_chunk =
      choose_chunk(machine, channels, positions * 4 * panel, positions * 4 * tiles * ((double)channels + panel));
  bool fits = filter->layout.block == panel && vectors % plan.panel_vectors == 0 && vectors > plan.panel_vectors;
  if (!fits || plan.channel_chunk == 0) return plan;
  double multiply = positions * tiles * (double)(channels * vectors) / multiply_adds_per_cycle;
  double parallel = fmin(plan.block_tiles, tiles) * plan.panel_vectors;
  if (parallel < latency) multiply *= latency / parallel;
  double filter_bytes = 4 * (double)(taps * taps * channels * vectors * machine->lanes);
  double reading = filter_bytes < machine->cache / 2 ? 0 : filter_bytes / ((double)batch * bytes_per_cycle);
  double making = filter_vector[plan.form.outputs] * (double)(channels * vectors);
  double transforms = winograd_transforms(plan.form, tiles, (double)channels / machine->lanes, (double)vectors);
  double computing = multiply / busy + making;
  plan.cost = computing + exposed_reading(reading, computing) + transforms;
  return plan;
}

static WinogradPlan plan_winograd(const Node *node, WinogradForm form, const Machine *machine, int64_t batch) {
  const Node *input = node->inputs[0];
  const int64_t multiplied = winograd_channels(form, input->shape.dims[1]);
  int64_t channels = round_up(multiplied, machine->lanes), filters = node->shape.dims[1];
  WinogradGrid grid = winograd_grid(form, input->shape.dims[2], input->shape.dims[3], node->attrs.padding.values);
  int64_t tiles = grid.rows * grid.columns, vectors = ceil_div(filters, machine->lanes);
  double positions = winograd_size(form) * winograd_size(form);
  WinogradPlan plan = {.form = form, .panel_vectors = choose_panel(machine, vectors)};
  int64_t padded = round_up(vectors, plan.panel_vectors);
  plan.block_tiles = choose_block(machine, plan.panel_vectors, tiles);
  double filter_bytes = positions * 4 * (double)channels * (double)(padded * machine->lanes);
  double image_tiles = (double)tiles, images = (double)batch;
  const bool few = tiles * batch <= SPLIT_BLOCKS * plan.block_tiles;
  if (form.stride == 1 && few && padded / plan.panel_vectors > 1) divide_filters(&plan, batch);

  double multiply = positions * image_tiles * (double)multiplied * (double)padded / multiply_adds_per_cycle;
  double parallel = fmin(plan.block_tiles, image_tiles * images) * plan.panel_vectors;
  if (parallel < latency) multiply *= latency / parallel;
  double tile_bytes = positions * 4 * (double)(channels + padded * machine->lanes);
  plan.group_tiles =
      (int32_t)choose_group(machine, &plan, tiles * batch, tile_bytes, filter_bytes, multiply / image_tiles);
  double passes = fmax(image_tiles / plan.group_tiles, 1 / images);
  double reading = filter_bytes < machine->cache / 2 ? 0 : filter_bytes * passes / bytes_per_cycle;
  double transforms = winograd_transforms(form, image_tiles, (double)(channels / machine->lanes), (double)vectors);
  plan.cost = multiply / busy + exposed_reading(reading, multiply / busy) + transforms;
  return plan;
}

/* Taps of an image that are not in the padding, which direct convolution leaves out of few rows: see conv_direct.c. */
static double direct_taps(const Node *node) {
  const int64_t *in = node->inputs[0]->shape.dims, *out = node->shape.dims, *padding = node->attrs.padding.values;
  double taps[2];
  for (int d = 0; d < 2; d++) {
    taps[d] = (double)(TAPS * out[2 + d]);
    if (out[2] * out[3] > 4 * node->choice.tile_pixels) continue;
    for (int64_t tap = 0; tap < TAPS; tap++)
      for (int64_t at = 0; at < out[2 + d]; at++)
        if (at + tap < padding[d] || at + tap >= padding[d] + in[2 + d]) taps[d]--;
  }
  return taps[0] * taps[1];
}

static double direct_cost(const Node *node, const Machine *machine, int64_t batch) {
  const int64_t *out = node->shape.dims;
  double channels = (double)node->inputs[0]->shape.dims[1];
  double vectors = (double)ceil_div(out[1], machine->lanes), taps = TAPS * TAPS;
  double multiply = direct_taps(node) * channels * vectors / multiply_adds_per_cycle;
  double filter_bytes = taps * channels * vectors * machine->lanes * 4;
  double reading = filter_bytes < machine->cache / 2 ? 0 : filter_bytes / ((double)batch * bytes_per_cycle);
  return multiply / busy + exposed_reading(reading, multiply / busy);
}

/* A direct convolution whose filters the prepare phase can transform. */
static bool may_transform(const Node *node, const Machine *machine, const bool *prepared) {
  if (node->op != OP_CONV2D || node->choice.algorithm != ALGORITHM_DIRECT || node->attrs.groups != 1) return false;
  const Node *input = node->inputs[0], *filter = node->inputs[1];
  if (node->layout.kind != LAYOUT_CHANNEL_BLOCK || node->layout.block != machine->lanes) return false;
  for (int32_t d = 1; d < 4; d++)
    if (node->shape.dims[d] < 1) return false;
  if (filter->op != OP_CONVERT || !prepared[filter->id] || filter->inputs[0]->layout.kind != LAYOUT_PLAIN) return false;
  int64_t elements, bound = (int64_t)1 << 40; /* so that nothing below overflows */
  return shape_elements(&node->shape, 1, &elements) && elements < bound &&
         shape_elements(&filter->shape, 1, &elements) && elements < bound &&
         shape_elements(&input->shape, 1, &elements) && elements < bound;
}

/* 7×7, stride 2, an image of few channels. */
static bool takes_phases(const Node *node, const Machine *machine, const bool *prepared) {
  const WinogradForm form = algorithm_winograd_form(ALGORITHM_WINOGRAD34);
  if (!may_transform(node, machine, prepared)) return false;
  const Node *input = node->inputs[0], *filter = node->inputs[1];
  for (int d = 0; d < 2; d++)
    if (filter->shape.dims[2 + d] != winograd_filter_taps(form) || node->attrs.stride.values[d] != form.stride ||
        node->attrs.dilation.values[d] != 1)
      return false;
  return input->layout.kind == LAYOUT_PLAIN && winograd_channels(form, input->shape.dims[1]) <= PHASES_CHANNELS;
}

/* 3×3, stride 1, all channels blocked. */
static bool takes_winograd(const Node *node, const Machine *machine, const bool *prepared) {
  if (!may_transform(node, machine, prepared)) return false;
  const Node *input = node->inputs[0], *filter = node->inputs[1];
  const Attrs *attrs = &node->attrs;
  for (int d = 0; d < 2; d++)
    if (filter->shape.dims[2 + d] != TAPS || attrs->stride.values[d] != 1 || attrs->dilation.values[d] != 1)
      return false;
  return layout_equal(input->layout, node->layout) && input->shape.dims[1] >= machine->lanes;
}

/* "F(2x2,3x3)" */
static const char *form_name(Arena *arena, WinogradForm form) {
  return arena_format(arena, "F(%dx%d,%dx%d)%s", (int)form.outputs, (int)form.outputs, (int)form.taps, (int)form.taps,
                      form.stride > 1 ? " of phases" : "");
}

static void decide(Graph *graph, Node *node, const WinogradPlan *plan, double direct, bool chosen) {
  Arena *arena = graph->arena;
  const char *name = arena_format(arena, "Winograd %s", form_name(arena, plan->form));
  const char *bound = plan->form.outputs == 2 ? "8" : "48";
  const char *chosen_text = "direct", *reason = "The gain is too small.";
  if (chosen) {
    chosen_text = arena_format(arena, "%s, register blocks of %d tiles by %d vectors, %d tiles a pass%s", name,
                               (int)plan->block_tiles, (int)plan->panel_vectors, (int)plan->group_tiles,
                               plan->split    ? ", input transformed in a step of its own"
                               : plan->panels ? ", threads divide the filters"
                                              : "");
    if (plan->transforms)
      chosen_text = arena_format(arena, "%s, filters transformed in the kernel, %d channels at a time", chosen_text,
                                 (int)plan->channel_chunk);
    reason = arena_format(arena,
                          "Error of an output is at most %s u sum|a||b|, u = 2^-24 (direct: 8)%s; "
                          "--precision strict excludes it.",
                          bound, plan->form.outputs == 2 ? "" : ", relative L2 error at most 1e-5");
  }
  node_decide(graph, node, "select", chosen_text, chosen ? "direct" : name, reason);
  Decision *decision = node->decisions;
  while (decision->next) decision = decision->next;
  decision->cost = rint(chosen ? plan->cost : direct);
  decision->rejected_cost = rint(chosen ? direct : plan->cost);
  decision->unit = "cycles an image";
}

static bool apply(Rewrite *rewrite, Node *node, const WinogradPlan *plan, bool filter_shared) {
  int32_t lanes = node->layout.block;
  Node *filter = node->inputs[1];
  if (!plan->transforms) {
    if (filter_shared) filter = rewrite_make(rewrite, OP_CONVERT, NULL, &filter->inputs[0], 1, node);
    if (!filter) return false;
    filter->layout = winograd_filter_layout(plan->form, plan->panel_vectors * lanes);
    node->inputs[1] = filter;
  }
  if (plan->split || plan->form.stride > 1) {
    const int64_t channels = winograd_channels(plan->form, node->inputs[0]->shape.dims[1]);
    Node *image = rewrite_make(rewrite, OP_CONVERT, NULL, &node->inputs[0], 1, node);
    if (!image) return false;
    image->layout = plan->split ? winograd_tiles_layout(plan->form, lanes)
                                : (Layout){LAYOUT_CHANNEL_PHASES, (int32_t)round_up(channels, lanes), DTYPE_F32};
    node->inputs[0] = image;
  }
  node->choice = (KernelChoice){.algorithm = winograd_algorithm(plan->form),
                                .tile_pixels = plan->block_tiles,
                                .tile_blocks = plan->panel_vectors,
                                .channel_chunk = plan->channel_chunk,
                                .row_chunk = plan->panels ? 0 : plan->group_tiles};
  return true;
}

typedef struct WinogradState {
  Rewrite rewrite;
  Machine machine;
  const bool *prepared;
  const uint32_t *uses;
} WinogradState;

static void state_init(WinogradState *state, Graph *graph, const PassOptions *options, Diag *diag) {
  state->machine = describe_machine(options->target);
  state->prepared = mark_prepare_phase(graph, options->scratch);
  state->uses = graph_count_uses(graph, options->scratch);
  rewrite_init(&state->rewrite, graph, options->scratch, diag);
}

/* F(2×2,3×3) and F(4×4,3×3), each with items of tiles, with items of filters, and there with filters that the kernel
 * transforms; see winograd_plans. */
enum { PLAN_COUNT = 6 };

static int winograd_plans(const Node *node, const Machine *machine, int64_t batch, WinogradPlan *out_plans) {
  for (int p = 0; p < PLAN_COUNT; p++) {
    const Algorithm algorithm = p & 1 ? ALGORITHM_WINOGRAD43 : ALGORITHM_WINOGRAD23;
    const WinogradPlan planned = plan_winograd(node, algorithm_winograd_form(algorithm), machine, batch);
    out_plans[p] = planned;
    if (p >= 4) {
      out_plans[p] = plan_transforming(node, planned, machine, batch);
      continue;
    }
    const bool divides = planned.split || planned.panels;
    out_plans[p].split = out_plans[p].panels = false;
    if (p >= 2) divide_filters(&out_plans[p], batch);
    if (divides != (p >= 2)) out_plans[p].cost = INFINITY; /* measuring may find otherwise */
  }
  return PLAN_COUNT;
}

/* F(3×3,4×4), one way. Sums over so few channels are stored soon: blocks of few tiles by many vectors load fewer numbers
 * for them, and two blocks a pass keep what is multiplied in the first-level cache. */
static int phases_plans(const Node *node, const Machine *machine, int64_t batch, WinogradPlan *out_plans) {
  enum { WIDE_VECTORS = 4, WIDE_REGISTERS = 32, GROUP_BLOCKS = 2 };
  WinogradPlan *plan = &out_plans[0];
  *plan = plan_winograd(node, algorithm_winograd_form(ALGORITHM_WINOGRAD34), machine, batch);
  const bool many = machine->target == NULL || machine->target->vector_registers >= WIDE_REGISTERS;
  if (many && ceil_div(node->shape.dims[1], machine->lanes) % WIDE_VECTORS == 0) {
    plan->panel_vectors = WIDE_VECTORS;
    plan->block_tiles = register_tile(machine->target, WIDE_VECTORS);
  }
  plan->group_tiles = GROUP_BLOCKS * plan->block_tiles;
  return 1;
}

static const char *plan_name(Arena *arena, const WinogradPlan *plan) {
  const char *name =
      arena_format(arena, "%s, blocks of %d tiles by %d vectors, %d tiles a pass%s", form_name(arena, plan->form),
                   (int)plan->block_tiles, (int)plan->panel_vectors, (int)plan->group_tiles,
                   plan->split    ? ", input apart"
                   : plan->panels ? ", filters divided"
                                  : "");
  return plan->transforms
             ? arena_format(arena, "%s, filters in the kernel, %d channels", name, (int)plan->channel_chunk)
             : name;
}

/* The best plan by cost, or -1 when direct convolution is to stay; what was decided is noted. */
static int prefer_winograd(WinogradState *state, Node *node, const WinogradPlan *plans, int count, double direct) {
  int best = 0;
  for (int p = 1; p < count; p++)
    if (plans[p].cost < plans[best].cost) best = p;
  const bool chosen = plans[best].cost < least_gain * direct;
  decide(state->rewrite.graph, node, &plans[best], direct, chosen);
  return chosen ? best : -1;
}

enum { TILES_PLAN = PLAN_COUNT };

/* Multiply-adds of any filter. */
static double any_direct_cost(const Node *node, const Machine *machine, int64_t batch) {
  const int64_t *out = node->shape.dims, *filter = node->inputs[1]->shape.dims;
  const double vectors = (double)ceil_div(out[1], machine->lanes), taps = (double)(filter[1] * filter[2] * filter[3]);
  const double multiply = (double)(out[2] * out[3]) * taps * vectors / (multiply_adds_per_cycle * busy);
  return multiply + exposed_reading(taps * (double)filter[0] * 4 / ((double)batch * bytes_per_cycle), multiply);
}

/* Adds tile registers to what can be done; `cost`: of what the model has chosen so far. */
static void offer_tiles(CandidateList *list, Graph *graph, Node *node, const PassOptions *options, double cost) {
  const double tiles = tiles_cost(node, options->precision, bytes_per_cycle, exposed_reading);
  const KernelChoice choice = tiles_choice(node, options);
  const bool halves = tiles_filter_layout(node, options->precision).kind == LAYOUT_FILTER_HALVES;
  const char *name = arena_format(graph->arena, "%s of bf16 in tile registers, %d rows an item",
                                  halves ? "halves" : "thirds", (int)choice.row_chunk);
  candidates_add(list, name, choice, TILES_PLAN);
  const bool chosen = tiles < least_gain * cost;
  node_decide(
      graph, node, "select", chosen ? name : "without tile registers", chosen ? NULL : name,
      !chosen ? "The gain is too small."
      : halves
          ? "Error of an output is at most 512 u sum|a||b|, u = 2^-24, measured 480 over the root of the products' "
            "number; --precision default takes thirds."
          : "Error of an output is at most 8 u sum|a||b|, u = 2^-24; --precision strict excludes it.");
  Decision *decision = node->decisions;
  while (decision->next) decision = decision->next;
  decision->cost = rint(chosen ? tiles : cost);
  decision->rejected_cost = rint(chosen ? cost : tiles);
  decision->unit = "cycles an image";
  if (chosen) candidates_prefer(list, list->count - 1);
}

static bool apply_tiles(Rewrite *rewrite, Node *node, KernelChoice choice, Precision precision, bool filter_shared) {
  Node *filter = node->inputs[1];
  if (filter_shared) filter = rewrite_make(rewrite, OP_CONVERT, NULL, &filter->inputs[0], 1, node);
  if (!filter) return false;
  filter->layout = tiles_filter_layout(node, precision);
  node->inputs[1] = filter;
  node->choice = choice;
  return true;
}

/* One convolution: what can be done, what the model would do, what was measured. */
static bool select_node(WinogradState *state, Node *node, const PassOptions *options, Diag *diag) {
  Graph *graph = state->rewrite.graph;
  CandidateList list = {.count = 0};
  WinogradPlan plans[PLAN_COUNT];
  const bool shared = state->uses[node->inputs[1]->id] > 1;
  double cost = any_direct_cost(node, &state->machine, largest_batch(graph, node));
  candidates_direct(&list, graph, node);
  const bool winograd = takes_winograd(node, &state->machine, state->prepared);
  if (options->precision != PRECISION_STRICT && (winograd || takes_phases(node, &state->machine, state->prepared))) {
    const int64_t batch = largest_batch(graph, node);
    const int count = winograd ? winograd_plans(node, &state->machine, batch, plans)
                               : phases_plans(node, &state->machine, batch, plans);
    const double direct = winograd ? direct_cost(node, &state->machine, batch) : cost;
    const int preferred = prefer_winograd(state, node, plans, count, direct);
    for (int p = 0; p < count; p++) {
      if (plans[p].transforms && isinf(plans[p].cost)) continue; /* the kernel cannot */
      candidates_add(&list, plan_name(graph->arena, &plans[p]), node->choice, p);
      if (p == preferred) candidates_prefer(&list, list.count - 1);
    }
    if (preferred >= 0) cost = plans[preferred].cost;
  }
  if (tiles_possible(node, options, state->prepared)) offer_tiles(&list, graph, node, options, cost);
  if (list.count == 0) return true;
  const Candidate *candidate = &list.items[candidates_take(graph, node, &list, options, diag)];
  node->choice = candidate->choice;
  if (candidate->plan == TILES_PLAN)
    return apply_tiles(&state->rewrite, node, candidate->choice, options->precision, shared);
  return candidate->plan < 0 || apply(&state->rewrite, node, &plans[candidate->plan], shared);
}

bool select_winograd(Graph *graph, const PassOptions *options, Diag *diag) {
  WinogradState state;
  state_init(&state, graph, options, diag);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (node->op == OP_CONV2D && node->choice.algorithm == ALGORITHM_DIRECT &&
        !select_node(&state, node, options, diag))
      return false;
    rewrite_append(&state.rewrite, node);
  }
  rewrite_finish(&state.rewrite);
  return true;
}

bool select_winograd_always(Graph *graph, const PassOptions *options, Algorithm algorithm, WinogradSplit split,
                            Diag *diag) {
  const WinogradForm form = algorithm_winograd_form(algorithm);
  WinogradState state;
  state_init(&state, graph, options, diag);
  for (size_t i = 0; i < graph->node_count; i++) {
    Node *node = graph->nodes[i];
    if (form.stride > 1 ? takes_phases(node, &state.machine, state.prepared)
                        : takes_winograd(node, &state.machine, state.prepared)) {
      int64_t batch = largest_batch(graph, node);
      WinogradPlan plan = plan_winograd(node, form, &state.machine, batch);
      if (split == WINOGRAD_TRANSFORMING || split == WINOGRAD_TRANSFORMING_PANELS) {
        plan.panel_vectors = node->inputs[1]->layout.block / state.machine.lanes;
        plan.block_tiles = choose_block(&state.machine, plan.panel_vectors, plan.block_tiles);
        plan = plan_transforming(node, plan, &state.machine, batch);
        plan.channel_chunk = plan.channel_chunk / 2 / state.machine.lanes * state.machine.lanes;
      }
      if (split != WINOGRAD_SPLIT_AS_PLANNED && form.stride == 1) {
        plan.panels = split == WINOGRAD_PANELS || split == WINOGRAD_TRANSFORMING_PANELS;
        plan.split = split == WINOGRAD_SPLIT_ALWAYS || split == WINOGRAD_TRANSFORMING;
      }
      if (!apply(&state.rewrite, node, &plan, state.uses[node->inputs[1]->id] > 1)) return false;
    }
    rewrite_append(&state.rewrite, node);
  }
  rewrite_finish(&state.rewrite);
  return true;
}
