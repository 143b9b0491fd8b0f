/* The plan as a table: `--emit=plan`. */
#include "plan.h"

#include <string.h>

/* --- aligned columns ------------------------------------------------------------------------------- */

enum { COLUMN_COUNT = 7 };

typedef struct Row {
  const char *cells[COLUMN_COUNT];
} Row;

/* Rows are collected first: the widths are known only then. */
typedef struct Table {
  Arena *arena;
  Row *rows;
  size_t count, capacity;
} Table;

static Row *add_row(Table *table) {
  if (table->count == table->capacity) {
    const size_t capacity = table->capacity ? table->capacity * 2 : 64;
    Row *rows = arena_array(table->arena, capacity, Row);
    if (table->count) memcpy(rows, table->rows, table->count * sizeof *rows);
    table->rows = rows;
    table->capacity = capacity;
  }
  Row *row = &table->rows[table->count++];
  for (int i = 0; i < COLUMN_COUNT; i++) row->cells[i] = "";
  return row;
}

static void print_table(Text *text, const Table *table) {
  size_t widths[COLUMN_COUNT] = {0};
  for (size_t i = 0; i < table->count; i++) {
    for (int c = 0; c < COLUMN_COUNT; c++) {
      const size_t width = strlen(table->rows[i].cells[c]);
      if (width > widths[c]) widths[c] = width;
    }
  }
  for (size_t i = 0; i < table->count; i++) {
    size_t blanks = 0; /* owed before the next cell, so that no line ends in blanks */
    for (int c = 0; c < COLUMN_COUNT; c++) {
      const char *cell = table->rows[i].cells[c];
      const size_t width = strlen(cell);
      if (width) {
        for (; blanks; blanks--) text_add(text, " ");
        text_add(text, cell);
      }
      blanks += widths[c] - width + 2;
    }
    text_add(text, "\n");
  }
}

/* --- cells ----------------------------------------------------------------------------------------- */

static const char *place_text(Arena *arena, const PlanTensor *tensor) {
  const Storage *storage = &tensor->storage;
  Text text;
  text_init(&text, arena);
  text_add(&text, space_name(storage->space));
  const bool port =
      storage->space == SPACE_PARAMETER || storage->space == SPACE_INPUT || storage->space == SPACE_OUTPUT;
  if (port) text_format(&text, " %d", storage->index);
  if (!port || storage->offset) {
    const bool scaled = storage->space == SPACE_WORKSPACE && shape_batched(&tensor->shape);
    text_format(&text, "+%lld%s", (long long)storage->offset, scaled ? "*N" : "");
  }
  return text.data;
}

static const char *type_text(Arena *arena, const PlanTensor *tensor) {
  Text text;
  text_init(&text, arena);
  text_format(&text, "%s[", data_type_name(tensor->dtype));
  shape_print(&text, &tensor->shape);
  text_add(&text, "] ");
  layout_print(&text, tensor->layout);
  return text.data;
}

static const char *stride_text(Arena *arena, const PlanTensor *tensor) {
  const Storage *storage = &tensor->storage;
  Text text;
  text_init(&text, arena);
  text_add(&text, "stride ");
  for (int32_t i = 0; i < tensor->shape.rank; i++) {
    text_format(&text, "%s%lld", i ? "," : "", (long long)storage->stride[i]);
  }
  if (tensor->shape.rank == 0) text_add(&text, "-");
  if (storage->origin) text_format(&text, " origin %lld", (long long)storage->origin);
  if (storage->halo[0] || storage->halo[1] || storage->halo[2] || storage->halo[3]) {
    text_format(&text, " halo %d,%d,%d,%d", storage->halo[0], storage->halo[1], storage->halo[2], storage->halo[3]);
  }
  return text.data;
}

static const char *choice_text(Arena *arena, const KernelChoice *choice) {
  Text text;
  text_init(&text, arena);
  const char *name = algorithm_name(choice->algorithm);
  text_add(&text, name ? name : "?");
  if (choice->tile_pixels || choice->tile_blocks) {
    text_format(&text, " tile %dx%d", choice->tile_pixels, choice->tile_blocks);
  }
  if (choice->channel_chunk) text_format(&text, " channels %d", choice->channel_chunk);
  if (choice->row_chunk) text_format(&text, " rows %d", choice->row_chunk);
  if (choice->math != MATH_FP32) text_format(&text, " in %s", math_mode_name(choice->math));
  return text.data;
}

/* "conv2d {stride=[2,2]} + add + relu + max_pool2d {kernel=[2,2]}" */
static const char *operation_text(Arena *arena, const PlanKernel *kernel) {
  Text text, attributes;
  text_init(&text, arena);
  text_init(&attributes, arena);
  text_add(&text, op_info(kernel->op)->name);
  attrs_print(&attributes, &kernel->attrs, op_info(kernel->op)->attrs);
  if (attributes.size) text_format(&text, " {%s}", attributes.data);
  for (int32_t i = 0; i < kernel->epilogue_count; i++) {
    text_format(&text, " + %s", op_info(kernel->epilogue[i].op)->name);
  }
  if (kernel->pool) {
    text_init(&attributes, arena);
    attrs_print(&attributes, &kernel->pool->attrs, op_info(OP_MAX_POOL2D)->attrs);
    text_format(&text, " + %s {%s}", op_info(OP_MAX_POOL2D)->name, attributes.data);
  }
  return text.data;
}

static void add_operand(Table *table, const char *role, const PlanTensor *tensor) {
  Row *row = add_row(table);
  row->cells[1] = role;
  row->cells[2] = tensor->name ? tensor->name : "-";
  row->cells[3] = type_text(table->arena, tensor);
  row->cells[4] = place_text(table->arena, tensor);
  row->cells[5] = stride_text(table->arena, tensor);
}

static void add_kernel(Table *table, const PlanKernel *kernel, size_t index) {
  Row *row = add_row(table);
  row->cells[0] = arena_format(table->arena, "%zu", index);
  row->cells[1] = "=>";
  row->cells[2] = kernel->name ? kernel->name : arena_format(table->arena, "%%%u", kernel->node_id);
  row->cells[3] = type_text(table->arena, &kernel->output);
  row->cells[4] = place_text(table->arena, &kernel->output);
  row->cells[5] = stride_text(table->arena, &kernel->output);
  row->cells[6] = arena_format(table->arena, "%s; %s; code %u", operation_text(table->arena, kernel),
                               choice_text(table->arena, &kernel->choice), kernel->code);
  for (int32_t i = 0; i < kernel->input_count; i++) {
    add_operand(table, i < kernel->op_input_count ? "<-" : "<+", &kernel->inputs[i]);
  }
  for (int32_t i = 0; i < kernel->reduction_count; i++) {
    add_operand(table, "->", &kernel->reductions[i].output);
    table->rows[table->count - 1].cells[6] = op_info(kernel->reductions[i].op)->name;
  }
}

/* --- the plan -------------------------------------------------------------------------------------- */

static void print_ports(Text *text, const char *title, const PlanPort *ports, size_t count, size_t hooks) {
  for (size_t i = 0; i < count; i++) {
    text_format(text, "%s %zu: %s %s[", i + hooks >= count ? "hook output" : title, i, ports[i].name,
                data_type_name(ports[i].dtype));
    shape_print(text, &ports[i].shape);
    text_add(text, "]\n");
  }
}

static void print_kernels(Text *text, const Plan *plan, const char *title, size_t begin, size_t end) {
  Table table = {.arena = text->arena};
  double flops = 0, flops_fixed = 0;
  for (size_t i = begin; i < end; i++) {
    add_kernel(&table, &plan->kernels[i], i);
    flops += plan->kernels[i].flops;
    flops_fixed += plan->kernels[i].flops_fixed;
  }
  text_format(text, "\n%s: %zu kernel%s, %.6g flops per image, %.6g fixed\n", title, end - begin,
              end - begin == 1 ? "" : "s", flops, flops_fixed);
  print_table(text, &table);
}

const PlanTensor *plan_made(const PlanKernel *kernel) { return kernel->pool ? &kernel->pool->made : &kernel->output; }

void plan_print(Text *text, const Plan *plan) {
  size_t codes = 0;
  for (size_t i = 0; i < plan->kernel_count; i++) codes += plan->kernels[i].code == i;
  text_format(text, "plan %s, maximum batch %lld, identity %016llx\n", plan->name, (long long)plan->max_batch,
              (unsigned long long)plan->identity);
  if (plan->target) {
    text_format(text, "target %s %s, tuned for %s\n", plan->target->triple, plan->target->isa, plan->target->tune);
  }
  text_format(text, "workspace %lld bytes + %lld per image, prepared %lld bytes, scratch of preparation %lld bytes\n",
              (long long)plan->workspace_fixed, (long long)plan->workspace_per_batch, (long long)plan->prepared_bytes,
              (long long)plan->prepare_scratch);
  if (plan->chunk > 0) text_format(text, "up to %lld images at a time through all kernels of a run\n", (long long)plan->chunk);
  text_format(text, "%zu kernels, %zu distinct codes\n", plan->kernel_count, codes);
  print_ports(text, "input", plan->inputs, plan->input_count, 0);
  print_ports(text, "parameter", plan->parameters, plan->parameter_count, 0);
  print_ports(text, "output", plan->outputs, plan->output_count, plan->hook_output_count);
  print_kernels(text, plan, "prepare", 0, plan->prepare_count);
  print_kernels(text, plan, "run", plan->prepare_count, plan->kernel_count);
}
