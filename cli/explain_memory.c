/* Lifetimes are read off the plan: a value lives from the kernel that writes it to the last one that reads its place
 * before somebody else writes there. */
#include "explain_memory.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "kiln_abi.h"
#include "session/plot.h"

typedef struct Life {
  const char *name;
  int64_t offset, bytes; /* rounded up as places are */
  size_t first, last;    /* kernels of a run */
  bool per_image;
} Life;

typedef struct Lives {
  Life *items;
  size_t count, steps;
} Lives;

static void add_life(Lives *lives, const PlanTensor *tensor, size_t step) {
  if (tensor->storage.space != SPACE_WORKSPACE) return;
  lives->items[lives->count++] =
      (Life){tensor->name, tensor->storage.offset,       round_up(tensor->storage.bytes, KILN_ALIGNMENT), step,
             step,         shape_batched(&tensor->shape)};
}

/* The value whose place this is: the last one that was written there. */
static void extend_life(Lives *lives, const PlanTensor *tensor, size_t step) {
  if (tensor->storage.space != SPACE_WORKSPACE) return;
  for (size_t i = lives->count; i-- > 0;) {
    Life *life = &lives->items[i];
    if (life->per_image != shape_batched(&tensor->shape) || tensor->storage.offset < life->offset ||
        tensor->storage.offset >= life->offset + life->bytes)
      continue;
    life->last = step;
    return;
  }
}

static Lives collect_lives(Tool *tool, const Plan *plan) {
  size_t capacity = plan->kernel_count;
  for (size_t k = 0; k < plan->kernel_count; k++) capacity += (size_t)plan->kernels[k].reduction_count;
  Lives lives = {arena_array(tool->arena, capacity + 1, Life), 0, plan->kernel_count - plan->prepare_count};
  for (size_t k = plan->prepare_count; k < plan->kernel_count; k++) {
    const PlanKernel *kernel = &plan->kernels[k];
    const size_t step = k - plan->prepare_count;
    for (int32_t i = 0; i < kernel->input_count; i++) extend_life(&lives, &kernel->inputs[i], step);
    add_life(&lives, &kernel->output, step);
    for (int32_t i = 0; i < kernel->reduction_count; i++) add_life(&lives, &kernel->reductions[i].output, step);
  }
  return lives;
}

/* The most bytes that are alive at one kernel, and which one that is. */
static int64_t most_alive(const Lives *lives, bool per_image, size_t *out_step) {
  int64_t most = 0;
  *out_step = 0;
  for (size_t step = 0; step < lives->steps; step++) {
    int64_t alive = 0;
    for (size_t i = 0; i < lives->count; i++) {
      const Life *life = &lives->items[i];
      if (life->per_image == per_image && life->first <= step && step <= life->last) alive += life->bytes;
    }
    if (alive > most) most = alive, *out_step = step;
  }
  return most;
}

static const char *kernel_name(const Plan *plan, size_t step) { return plan->kernels[plan->prepare_count + step].name; }

static void print_part(Tool *tool, const Plan *plan, const Lives *lives, bool per_image, int64_t size) {
  int64_t sum = 0;
  size_t at;
  const int64_t most = most_alive(lives, per_image, &at);
  for (size_t i = 0; i < lives->count; i++)
    if (lives->items[i].per_image == per_image) sum += lives->items[i].bytes;
  if (sum == 0) return;
  printf("workspace %s: %s bytes; a buffer for every value: %s; no plan can take less than %s, at '%s'\n",
         per_image ? "per image" : "fixed", grouped(tool->arena, size), grouped(tool->arena, sum),
         grouped(tool->arena, most), kernel_name(plan, at));
}

static void print_lives(Tool *tool, const Plan *plan, const Lives *lives) {
  enum { COLUMNS = 5 };
  const char **cells = arena_array(tool->arena, (lives->count + 1) * COLUMNS, const char *);
  const char *const head[COLUMNS] = {"value", "offset", "bytes", "kernels", "last read by"};
  memcpy(cells, head, sizeof head);
  for (size_t i = 0; i < lives->count; i++) {
    const Life *life = &lives->items[i];
    const char **row = &cells[(i + 1) * COLUMNS];
    row[0] = life->name;
    row[1] = arena_format(tool->arena, "%lld%s", (long long)life->offset, life->per_image ? " * N" : "");
    row[2] = arena_format(tool->arena, "%lld%s", (long long)life->bytes, life->per_image ? " * N" : "");
    row[3] = arena_format(tool->arena, "%zu to %zu", life->first, life->last);
    row[4] = life->last > life->first ? kernel_name(plan, life->last) : "-";
  }
  table_print(stdout, tool->arena, cells, lives->count + 1, COLUMNS, "<>>><");
}

/* A cell per kernel and part of the arena, in the colour of the value that lies there; free memory is gray. */
static bool draw_lives(Tool *tool, const Plan *plan, const Lives *lives, const char *path) {
  enum { ROWS = 240, COLOURS = 12 };
  const double unit = (double)plan->workspace_per_batch / ROWS;
  double *values = arena_array(tool->arena, ROWS * lives->steps + 1, double);
  for (size_t i = 0; i < ROWS * lives->steps; i++) values[i] = NAN;
  for (size_t i = 0; i < lives->count; i++) {
    const Life *life = &lives->items[i];
    if (!life->per_image) continue;
    const size_t low = (size_t)((double)life->offset / unit),
                 high = (size_t)ceil((double)(life->offset + life->bytes) / unit);
    for (size_t row = low; row < high && row < ROWS; row++)
      for (size_t step = life->first; step <= life->last; step++)
        values[row * lives->steps + step] = (double)(i * 5 % COLOURS);
  }
  const double mebibyte = 1024 * 1024;
  PlotPanel panel = {.kind = PANEL_MATRIX,
                     .title = arena_format(tool->arena, "%s: %s bytes of workspace per image", plan->name,
                                           grouped(tool->arena, plan->workspace_per_batch)),
                     .x = {.label = "kernel", .low = 0, .high = (double)lives->steps},
                     .y = {.label = "offset, MiB", .low = 0, .high = (double)plan->workspace_per_batch / mebibyte},
                     .matrix = {.values = values, .rows = ROWS, .columns = lives->steps, .label = "value, by colour"}};
  Figure figure = {.panels = &panel, .panel_count = 1, .columns = 1, .panel_width = 720, .panel_height = 420};
  return figure_write(&figure, path, tool->arena, tool->diag);
}

bool memory_explain(Tool *tool, const Plan *plan, const char *picture) {
  const Lives lives = collect_lives(tool, plan);
  print_part(tool, plan, &lives, true, plan->workspace_per_batch);
  print_part(tool, plan, &lives, false, plan->workspace_fixed);
  if (lives.count == 0) puts("no value lies in the workspace");
  print_lives(tool, plan, &lives);
  if (picture == NULL) return true;
  if (plan->workspace_per_batch == 0) {
    diag_error(tool->diag, (Location){0}, "--svg: no part of the workspace grows with the batch: nothing to draw");
    return false;
  }
  return draw_lives(tool, plan, &lives, picture);
}
