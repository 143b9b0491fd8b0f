#include "bench_variants.h"

#include <string.h>

#include "core/cuda_run.h"
#include "cuda/gemm.h"

enum { REPEATS = 20, SPLIT_VARIANTS = 4, COLUMNS = 6 };

static const int32_t splits[SPLIT_VARIANTS] = {1, 2, 4, 8};

/* Number 0 is the model's own choice. */
typedef struct Variant {
  const char *name;
  int32_t tile, splits; /* as in KernelChoice, see gemm_choose */
  float *times;         /* milliseconds by step */
} Variant;

static void destroy_context(void *context) { kiln_context_destroy(context); }

/* The plan with every matrix product asked to be computed in that way. */
static Plan ask(Arena *arena, const Plan *plan, const Variant *variant) {
  Plan asked = *plan;
  asked.kernels = arena_copy(arena, plan->kernels, plan->kernel_count * sizeof *plan->kernels);
  for (size_t k = plan->prepare_count; k < plan->kernel_count; k++) {
    KernelChoice *choice = &asked.kernels[k].choice;
    if (choice->algorithm != ALGORITHM_DEFAULT) continue;
    choice->tile_pixels = variant->tile;
    choice->row_chunk = variant->splits;
  }
  return asked;
}

static bool time_variant(Tool *tool, const Graph *graph, const Plan *plan, const kiln_compile_options *compile,
                         int64_t batch, const void *const *inputs, void *const *outputs, Variant *variant) {
  const Plan asked = ask(tool->arena, plan, variant);
  kiln_executable *executable = arena_new(tool->arena, kiln_executable);
  kiln_status status;
  kiln_context *context;
  kiln_error error;
  CudaMessage message;
  executable->arena = tool->arena;
  if (!build_executable(graph, &asked, compile, executable, tool->arena, tool->diag, &status)) return false;
  if (kiln_context_create(executable, NULL, &context, &error) != KILN_OK) {
    tool_library_error(tool, &error);
    return false;
  }
  arena_defer(tool->arena, destroy_context, context);
  variant->times = arena_array(tool->arena, executable->program->run_step_count + 1, float);
  if (cuda_context_time_steps(context->cuda, batch, inputs, outputs, REPEATS, variant->times, &message) == KILN_OK)
    return true;
  diag_error(tool->diag, (Location){NULL, 0, 0}, "%s", message.text);
  return false;
}

static size_t list_variants(Arena *arena, const Target *target, Variant **out_variants) {
  size_t count, made = 0;
  const MathMode math = target->arch < 80 ? MATH_FP32 : target->math;
  const GemmTile *tiles = gemm_tiles(math, &count);
  Variant *variants = arena_array(arena, 1 + count + SPLIT_VARIANTS, Variant);
  variants[made++] = (Variant){.name = "the model's"};
  for (size_t i = 0; i < count; i++)
    variants[made++] =
        (Variant){.name = arena_format(arena, "tile %dx%dx%d", (int)tiles[i].m, (int)tiles[i].n, (int)tiles[i].k),
                  .tile = (int32_t)i + 1};
  for (size_t i = 0; i < SPLIT_VARIANTS; i++)
    variants[made++] = (Variant){.name = arena_format(arena, "%d split%s", (int)splits[i], splits[i] == 1 ? "" : "s"),
                                 .splits = splits[i]};
  *out_variants = variants;
  return made;
}

static void print_variants(Tool *tool, const Plan *plan, const Variant *variants, size_t count) {
  const size_t steps = plan->kernel_count - plan->prepare_count;
  const char **cells = arena_array(tool->arena, (steps + 1) * COLUMNS, const char *);
  const char *const head[COLUMNS] = {"value", "op", "us", "best us", "best", "saved"};
  double total = 0, best_total = 0;
  memcpy(cells, head, sizeof head);
  size_t rows = 1;
  for (size_t s = 0; s < steps; s++) {
    const Variant *best = &variants[0];
    for (size_t v = 1; v < count; v++)
      if (variants[v].times[s] < best->times[s]) best = &variants[v];
    const double own = 1e3 * (double)variants[0].times[s], other = 1e3 * (double)best->times[s];
    total += own;
    best_total += other;
    const PlanKernel *kernel = &plan->kernels[plan->prepare_count + s];
    const char **row = &cells[rows++ * COLUMNS];
    row[0] = kernel->name;
    row[1] = op_info(kernel->op)->name;
    row[2] = arena_format(tool->arena, "%.1f", own);
    row[3] = arena_format(tool->arena, "%.1f", other);
    row[4] = best->name;
    row[5] = arena_format(tool->arena, "%.0f %%", own > 0 ? 100 * (1 - other / own) : 0);
  }
  table_print(stdout, tool->arena, cells, rows, COLUMNS, "<<>><>");
  printf("sum of the kernels %.1f us, of the best ones %.1f us\n", total, best_total);
}

bool bench_variants(Tool *tool, const Graph *graph, const Plan *plan, const ModelOptions *options, int64_t batch,
                    const void *const *inputs, void *const *outputs) {
  kiln_compile_options compile;
  Variant *variants;
  if (plan == NULL || plan->target->arch == 0) {
    diag_error(tool->diag, (Location){NULL, 0, 0}, "--variants needs a description and --device cuda");
    return false;
  }
  if (!compile_options(tool, options, &compile)) return false;
  const size_t count = list_variants(tool->arena, plan->target, &variants);
  for (size_t v = 0; v < count; v++)
    if (!time_variant(tool, graph, plan, &compile, batch, inputs, outputs, &variants[v])) return false;
  print_variants(tool, plan, variants, count);
  return true;
}
