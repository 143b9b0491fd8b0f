/* plan_build: the graph after `memory` → the list of kernels that code generators read.
 *
 * Every node that is neither a source nor an alias becomes a kernel; those of the prepare phase come first. Kernels
 * that differ only in names and places share their code: a signature holds all that code may depend on. */
#include <math.h>
#include <string.h>

#include "kiln_abi.h"
#include "passes.h"
#include "rewrite.h"

/* --- hashing ----------------------------------------------------------------------------------------- */

/* FNV-1a 64, a byte at a time, so that it is the same on every machine. */
static uint64_t hash_word(uint64_t hash, uint64_t word) {
  for (int i = 0; i < 8; i++) hash = (hash ^ ((word >> (8 * i)) & 0xff)) * UINT64_C(0x100000001b3);
  return hash;
}

static uint64_t hash_words(uint64_t hash, const uint64_t *words, size_t count) {
  for (size_t i = 0; i < count; i++) hash = hash_word(hash, words[i]);
  return hash;
}

static uint64_t hash_string(uint64_t hash, const char *string) {
  for (; string && *string; string++) hash = (hash ^ (unsigned char)*string) * UINT64_C(0x100000001b3);
  return hash_word(hash, 0);
}

static const uint64_t hash_start = UINT64_C(0xcbf29ce484222325);

/* Attributes that code may depend on: those of the op, but not what only the description uses. */
static AttrMask code_attrs(OpCode op) {
  AttrMask mask = op_info(op)->attrs;
  for (int id = 0; id < ATTR_ID_COUNT; id++)
    if (attr_info((AttrId)id)->import_only) mask &= ~(UINT64_C(1) << id);
  return mask;
}

/* --- signatures -------------------------------------------------------------------------------------- */

typedef struct Signature {
  Arena *arena;
  uint64_t *words;
  size_t count, capacity;
  bool aligned; /* code depends on how far operands are aligned */
} Signature;

static void sign(Signature *signature, uint64_t word) {
  if (signature->count == signature->capacity) {
    size_t capacity = signature->capacity ? signature->capacity * 2 : 256;
    uint64_t *grown = arena_array(signature->arena, capacity, uint64_t);
    if (signature->count) memcpy(grown, signature->words, signature->count * sizeof *grown);
    signature->words = grown;
    signature->capacity = capacity;
  }
  signature->words[signature->count++] = word;
}

static void sign_shape(Signature *signature, const Shape *shape) {
  sign(signature, (uint64_t)shape->rank);
  for (int32_t d = 0; d < shape->rank; d++) sign(signature, (uint64_t)shape->dims[d]);
}

static void sign_tensor(Signature *signature, const PlanTensor *tensor) {
  sign(signature, tensor->dtype);
  sign_shape(signature, &tensor->shape);
  sign(signature, tensor->layout.kind);
  sign(signature, (uint64_t)tensor->layout.block);
  if (tensor->layout.element != DTYPE_F32) sign(signature, tensor->layout.element);
  const Storage *storage = &tensor->storage;
  for (int32_t d = 0; d < tensor->shape.rank; d++) sign(signature, (uint64_t)storage->stride[d]);
  sign(signature, (uint64_t)storage->origin);
  for (int side = 0; side < 4; side++) sign(signature, (uint64_t)storage->halo[side]);
  sign(signature, (uint64_t)storage->bytes);
  if (signature->aligned) sign(signature, (uint64_t)(storage->delta % KILN_ALIGNMENT));
}

static void sign_kernel(Signature *signature, const PlanKernel *kernel) {
  signature->count = 0;
  sign(signature, kernel->op);
  sign(signature, attrs_hash(&kernel->attrs, code_attrs(kernel->op)));
  const KernelChoice *choice = &kernel->choice;
  sign(signature, choice->algorithm);
  sign(signature, (uint64_t)choice->tile_pixels);
  sign(signature, (uint64_t)choice->tile_blocks);
  sign(signature, (uint64_t)choice->channel_chunk);
  sign(signature, (uint64_t)choice->row_chunk);
  if (choice->math != MATH_FP32) sign(signature, choice->math);
  sign_tensor(signature, &kernel->output);
  sign(signature, (uint64_t)kernel->op_input_count);
  sign(signature, (uint64_t)kernel->input_count);
  for (int32_t i = 0; i < kernel->input_count; i++) sign_tensor(signature, &kernel->inputs[i]);
  sign(signature, (uint64_t)kernel->epilogue_count);
  for (int32_t i = 0; i < kernel->epilogue_count; i++) {
    const EpilogueStep *step = &kernel->epilogue[i];
    sign(signature, step->op);
    sign(signature, (uint64_t)(int64_t)step->operand);
    sign(signature, step->reversed);
    sign(signature, attrs_hash(&step->attrs, code_attrs(step->op)));
  }
  for (int32_t i = 0; i < kernel->reduction_count; i++) {
    const PlanReduction *reduction = &kernel->reductions[i];
    sign(signature, reduction->op);
    sign(signature, attrs_hash(&reduction->attrs, code_attrs(reduction->op)));
    sign_tensor(signature, &reduction->output);
  }
  if (kernel->pool) {
    sign(signature, attrs_hash(&kernel->pool->attrs, code_attrs(OP_MAX_POOL2D)));
    sign_tensor(signature, &kernel->pool->made);
  }
}

/* Signatures hold attributes as hashes only; code is shared only when they are equal indeed. */
static bool same_attrs(const PlanKernel *a, const PlanKernel *b) {
  if (!attrs_equal(&a->attrs, &b->attrs, code_attrs(a->op))) return false;
  for (int32_t i = 0; i < a->epilogue_count; i++)
    if (!attrs_equal(&a->epilogue[i].attrs, &b->epilogue[i].attrs, code_attrs(a->epilogue[i].op))) return false;
  for (int32_t i = 0; i < a->reduction_count; i++)
    if (!attrs_equal(&a->reductions[i].attrs, &b->reductions[i].attrs, code_attrs(a->reductions[i].op))) return false;
  if (a->pool) return attrs_equal(&a->pool->attrs, &b->pool->attrs, code_attrs(OP_MAX_POOL2D));
  return true;
}

/* Kernels with code of their own, by signature: open addressing. */
typedef struct CodeSlot {
  const uint64_t *words; /* NULL: empty */
  size_t count;
  uint64_t hash;
  uint32_t kernel;
} CodeSlot;

/* Sets code of all kernels and returns a hash over all signatures. */
static uint64_t share_code(Plan *plan, Arena *scratch) {
  size_t capacity = 16;
  while (capacity < plan->kernel_count * 2) capacity *= 2;
  CodeSlot *slots = arena_array(scratch, capacity, CodeSlot);
  const bool aligned = plan->target && plan->target->image_layout == LAYOUT_CHANNEL_LAST;
  Signature signature = {.arena = scratch, .aligned = aligned};
  uint64_t all = hash_start;
  for (size_t k = 0; k < plan->kernel_count; k++) {
    PlanKernel *kernel = &plan->kernels[k];
    sign_kernel(&signature, kernel);
    uint64_t hash = hash_words(hash_start, signature.words, signature.count);
    all = hash_word(all, hash);
    kernel->code = (uint32_t)k;
    size_t slot = (size_t)hash & (capacity - 1);
    for (; slots[slot].words; slot = (slot + 1) & (capacity - 1)) {
      const CodeSlot *other = &slots[slot];
      if (other->hash != hash || other->count != signature.count) continue;
      if (memcmp(other->words, signature.words, signature.count * sizeof(uint64_t))) continue;
      if (!same_attrs(&plan->kernels[other->kernel], kernel)) continue;
      kernel->code = other->kernel;
      break;
    }
    if (!slots[slot].words)
      slots[slot] = (CodeSlot){arena_copy(scratch, signature.words, signature.count * sizeof(uint64_t)),
                               signature.count, hash, (uint32_t)k};
  }
  return all;
}

/* --- kernels ----------------------------------------------------------------------------------------- */

static const char *value_name(const Graph *graph, const Node *node) {
  return node->name ? node->name : arena_format(graph->arena, "%%%u", node->id);
}

static PlanTensor plan_tensor(const Graph *graph, const Node *node) {
  return (PlanTensor){value_name(graph, node), node->dtype, node->shape, node->layout, node->storage};
}

static double elements(const Shape *shape, int32_t first_dim) {
  double product = 1;
  for (int32_t d = first_dim; d < shape->rank; d++) product *= shape->dims[d] < 0 ? 1 : (double)shape->dims[d];
  return product;
}

/* Multiply-adds count two; other ops count an operation per element. Per image when the work grows with the batch. */
static double count_flops(const Node *node) {
  double output = elements(&node->shape, 0), steps = output * node->epilogue_count;
  const Shape *first = node->input_count ? &node->inputs[0]->shape : &node->shape;
  switch (node->op) {
    case OP_CONV2D:
    case OP_LINEAR:
      return 2 * output * elements(&node->inputs[1]->shape, 1) + steps;
    case OP_CONV_TRANSPOSE2D:
      return 2 * elements(first, 0) * elements(&node->inputs[1]->shape, 1) + steps;
    case OP_MATMUL:
      return 2 * output * (double)first->dims[first->rank - 1] + steps;
    default:
      return fmax(output, elements(first, 0)) + steps;
  }
}

static PlanKernel plan_kernel(const Graph *graph, const Node *node) {
  PlanKernel kernel = {.name = value_name(graph, node),
                       .node_id = node->id,
                       .op = node->op,
                       .attrs = node->attrs,
                       .choice = node->choice,
                       .output = plan_tensor(graph, node),
                       .inputs = arena_array(graph->arena, (size_t)node->input_count, PlanTensor),
                       .input_count = node->input_count,
                       .op_input_count = node->op_input_count,
                       .epilogue = node->epilogue,
                       .epilogue_count = node->epilogue_count,
                       .location = node->location,
                       .stretch = node->stretch};
  bool batched = shape_batched(&node->shape);
  for (int32_t i = 0; i < node->input_count; i++) {
    kernel.inputs[i] = plan_tensor(graph, node->inputs[i]);
    batched = batched || shape_batched(&node->inputs[i]->shape);
  }
  *(batched ? &kernel.flops : &kernel.flops_fixed) = count_flops(node);
  return kernel;
}

/* From here on the kernel is one that makes the pool's value. */
static void build_pool(const Graph *graph, const Node *node, PlanKernel *host) {
  PlanPool *pool = arena_new(graph->arena, PlanPool);
  *pool = (PlanPool){node->attrs, host->node_id, host->output};
  host->pool = pool;
  host->name = value_name(graph, node);
  host->node_id = node->id;
  host->output = plan_tensor(graph, node);
  *(shape_batched(&node->shape) ? &host->flops : &host->flops_fixed) += count_flops(node);
}

/* Gives every reduction or pool that is hosted to the kernel of its input. */
static void build_hosted(Plan *plan, const Graph *graph, Arena *scratch) {
  PlanKernel **hosts = arena_array(scratch, graph->next_id, PlanKernel *);
  for (size_t k = 0; k < plan->kernel_count; k++) hosts[plan->kernels[k].node_id] = &plan->kernels[k];
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (!node->hosted) continue;
    PlanKernel *host = hosts[node->inputs[0]->id];
    if (node->op == OP_MAX_POOL2D)
      build_pool(graph, node, host);
    else
      host->reduction_count++;
  }
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    if (!node->hosted || node->op == OP_MAX_POOL2D) continue;
    PlanKernel *host = hosts[node->inputs[0]->id];
    if (!host->reductions) {
      host->reductions = arena_array(plan->arena, (size_t)host->reduction_count, PlanReduction);
      host->reduction_count = 0;
    }
    host->reductions[host->reduction_count++] = (PlanReduction){node->op, node->attrs, plan_tensor(graph, node)};
  }
}

static void build_kernels(Plan *plan, const Graph *graph, Arena *scratch) {
  const bool *prepared = mark_prepare_phase(graph, scratch);
  plan->kernels = arena_array(plan->arena, graph->node_count, PlanKernel);
  for (int phase = 0; phase < 2; phase++) {
    for (size_t i = 0; i < graph->node_count; i++) {
      const Node *node = graph->nodes[i];
      if (!node_has_kernel(node) || prepared[node->id] != (phase == 0)) continue;
      plan->kernels[plan->kernel_count++] = plan_kernel(graph, node);
    }
    if (phase == 0) plan->prepare_count = plan->kernel_count;
  }
  build_hosted(plan, graph, scratch);
}

static void build_ports(Plan *plan, const Graph *graph) {
  plan->inputs = arena_array(plan->arena, graph->input_count, PlanPort);
  plan->outputs = arena_array(plan->arena, graph->output_count, PlanPort);
  plan->parameters = arena_array(plan->arena, graph->parameter_count, PlanPort);
  for (; plan->input_count < graph->input_count; plan->input_count++) {
    const GraphInput *input = &graph->inputs[plan->input_count];
    plan->inputs[plan->input_count] = (PlanPort){input->name, input->dtype, input->shape};
  }
  for (; plan->output_count < graph->output_count; plan->output_count++) {
    const GraphOutput *output = &graph->outputs[plan->output_count];
    plan->outputs[plan->output_count] = (PlanPort){output->name, output->node->dtype, output->node->shape};
  }
  for (; plan->parameter_count < graph->parameter_count; plan->parameter_count++) {
    const Parameter *parameter = &graph->parameters[plan->parameter_count];
    plan->parameters[plan->parameter_count] =
        (PlanPort){.name = parameter->name, .dtype = parameter->dtype, .shape = parameter->shape};
  }
  for (size_t i = 0; i < graph->update_count; i++) plan->parameters[graph->updates[i].parameter].state = true;
}

static uint64_t hash_ports(uint64_t hash, const PlanPort *ports, size_t count) {
  hash = hash_word(hash, count);
  for (size_t i = 0; i < count; i++) {
    hash = hash_word(hash_string(hash, ports[i].name), ports[i].dtype);
    hash = hash_word(hash, (uint64_t)ports[i].shape.rank);
    for (int32_t d = 0; d < ports[i].shape.rank; d++) hash = hash_word(hash, (uint64_t)ports[i].shape.dims[d]);
  }
  return hash;
}

static uint64_t hash_place(uint64_t hash, const Storage *storage) {
  hash = hash_word(hash, storage->space);
  hash = hash_word(hash, (uint64_t)storage->index);
  return hash_word(hash, (uint64_t)(storage->offset + storage->delta));
}

static uint64_t plan_identity(const Plan *plan, uint64_t signatures) {
  uint64_t hash = hash_string(hash_word(hash_start, signatures), plan->name);
  hash = hash_string(hash, plan->target ? plan->target->isa : "");
  hash = hash_ports(hash, plan->inputs, plan->input_count);
  hash = hash_ports(hash, plan->outputs, plan->output_count);
  hash = hash_ports(hash, plan->parameters, plan->parameter_count);
  for (size_t k = 0; k < plan->kernel_count; k++) {
    const PlanKernel *kernel = &plan->kernels[k];
    hash = hash_place(hash, &kernel->output.storage);
    for (int32_t i = 0; i < kernel->input_count; i++) hash = hash_place(hash, &kernel->inputs[i].storage);
    for (int32_t i = 0; i < kernel->reduction_count; i++)
      hash = hash_place(hash, &kernel->reductions[i].output.storage);
  }
  const int64_t sizes[] = {(int64_t)plan->prepare_count, (int64_t)plan->hook_output_count, plan->max_batch,
                           plan->workspace_fixed,        plan->workspace_per_batch,        plan->prepared_bytes,
                           plan->prepare_scratch};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) hash = hash_word(hash, (uint64_t)sizes[i]);
  return hash;
}

static void add_numbers(Text *text, const char *key, const FloatList *list) {
  if (list->count == 0) return;
  text_format(text, "%s\"%s\": [", text->data[text->size - 1] == '{' ? "" : ", ", key);
  for (int32_t i = 0; i < list->count; i++) {
    if (i > 0) text_add(text, ", ");
    text_add_double(text, list->values[i]);
  }
  text_add(text, "]");
}

/* See kiln_program.metadata. */
static const char *metadata_text(const Graph *graph) {
  Text text;
  text_init(&text, graph->arena);
  text_add(&text, "{\"inputs\": {");
  for (size_t i = 0; i < graph->input_count; i++) {
    const Preprocess *preprocess = &graph->inputs[i].preprocess;
    if (i > 0) text_add(&text, ", ");
    text_add_json(&text, graph->inputs[i].name);
    text_add(&text, ": {");
    add_numbers(&text, "mean", &preprocess->mean);
    add_numbers(&text, "std", &preprocess->std);
    if (preprocess->resize > 0)
      text_format(&text, "%s\"resize\": %lld", text.data[text.size - 1] == '{' ? "" : ", ", (long long)preprocess->resize);
    text_add(&text, "}");
  }
  text_add(&text, "}, \"labels\": [");
  for (size_t i = 0; i < graph->label_count; i++) {
    if (i > 0) text_add(&text, ", ");
    text_add_json(&text, graph->labels[i]);
  }
  text_add(&text, "]}");
  return text.data;
}

bool plan_build(Graph *graph, const PassOptions *options, Diag *diag, Plan **out_plan) {
  (void)diag;
  Plan *plan = arena_new(graph->arena, Plan);
  *plan = (Plan){.arena = graph->arena,
                 .name = graph->name,
                 .metadata = metadata_text(graph),
                 .target = options->target,
                 .max_batch = graph->max_batch > 1 ? graph->max_batch : 1,
                 .hook_output_count = graph->hook_output_count,
                 .fixed_batch = graph_fixes_batch(graph),
                 .batch_unit = graph_batch_unit(graph),
                 .slots = graph->slots,
                 .slot_count = graph->slot_count,
                 .group_rows = graph->group_rows,
                 .workspace_fixed = graph->workspace_fixed,
                 .workspace_per_batch = graph->workspace_per_batch,
                 .prepared_bytes = graph->prepared_bytes,
                 .prepare_scratch = graph->prepare_scratch};
  build_kernels(plan, graph, options->scratch);
  build_ports(plan, graph);
  plan->stretch_images = graph->stretch_images;
  plan->chunk = graph->chunk;
  plan->identity = plan_identity(plan, share_code(plan, options->scratch));
  *out_plan = plan;
  return true;
}
