#include "tune.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/cuda_run.h"
#include "winograd.h"

enum { GPU_REPEATS = 5, WARM_UP = 2 };

/* A program that is built and ready to run. */
typedef struct Program {
  Arena *arena;
  Graph *graph;
  Plan *plan;
  kiln_executable executable;
  kiln_context *context;
  const void **inputs;
  void **outputs;
  double *samples; /* [step][round] microseconds */
} Program;

typedef struct Tuner {
  const Graph *graph;
  const TuneOptions *options;
  Arena *arena; /* the caller's */
  Diag *diag;
  size_t rounds;
} Tuner;

static void destroy_arena(void *arena) { arena_destroy(arena); }

static bool library_error(Tuner *tuner, const kiln_error *error) {
  error_report(error, tuner->arena, tuner->diag);
  return false;
}

/* --- programs ---------------------------------------------------------------------------------------- */

/* Numbers in [-1,1), from a linear congruential generator (Knuth, volume 2, section 3.3.4); classes are 0. */
static void *random_values(const kiln_port *port, int64_t batch, Arena *arena) {
  const size_t bytes = (size_t)(port->bytes * (port->batched ? batch : 1));
  void *data = arena_alloc_aligned(arena, bytes + 1, KILN_ALIGNMENT);
  uint64_t state = 1;
  memset(data, 0, bytes);
  for (size_t i = 0; port->dtype == KILN_F32 && i < bytes / sizeof(float); i++) {
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    ((float *)data)[i] = (float)((double)(state >> 40) / (1 << 23) - 1);
  }
  return data;
}

static void make_ports(Program *program) {
  const kiln_program *own = program->executable.program;
  program->inputs = arena_array(program->arena, own->input_count + 1, const void *);
  program->outputs = arena_array(program->arena, own->output_count + 1, void *);
  for (uint32_t i = 0; i < own->input_count; i++)
    program->inputs[i] = random_values(&own->inputs[i], own->max_batch, program->arena);
  for (uint32_t i = 0; i < own->output_count; i++) {
    const int64_t images = own->outputs[i].batched ? own->max_batch : 1;
    program->outputs[i] =
        arena_alloc_aligned(program->arena, (size_t)(own->outputs[i].bytes * images) + 1, KILN_ALIGNMENT);
  }
}

static void program_close(Program *program) {
  if (program->context != NULL) kiln_context_destroy(program->context);
  program->context = NULL;
  arena_reset(program->arena);
}

/* `tuning`: what the kernels are to take. The program's memory goes with program_close, at the latest with the tuner's
 * arena. */
static bool program_open(Tuner *tuner, const Tuning *tuning, Program *program) {
  const kiln_compile_options *compile = tuner->options->compile;
  const BuildOptions build = {.compile = compile, .tuning = tuning};
  kiln_status status = KILN_ERROR_INPUT;
  kiln_error error;
  program->context = NULL;
  if (!build_plan(tuner->graph, &build, program->arena, tuner->diag, &program->graph, &program->plan)) return false;
  program->executable = (kiln_executable){.arena = program->arena};
  if (!build_executable(tuner->graph, program->plan, compile, &program->executable, program->arena, tuner->diag,
                        &status))
    return false;
  const kiln_context_options context = {.threads = compile->threads > 0 ? compile->threads : 1};
  if (kiln_context_create(&program->executable, &context, &program->context, &error) != KILN_OK)
    return library_error(tuner, &error);
  make_ports(program);
  program->samples =
      arena_array(program->arena, (program->executable.program->run_step_count + 1) * tuner->rounds, double);
  return true;
}

static bool program_init(Tuner *tuner, Program *program) {
  *program = (Program){.arena = arena_create(NULL)};
  if (program->arena == NULL) {
    diag_error(tuner->diag, (Location){tuner->graph->file, 0, 0}, "out of memory");
    return false;
  }
  arena_defer(tuner->arena, destroy_arena, program->arena);
  jmp_buf *point = arena_on_failure(tuner->arena, NULL);
  arena_on_failure(tuner->arena, point);
  arena_on_failure(program->arena, point);
  return true;
}

/* --- timing ------------------------------------------------------------------------------------------ */

typedef struct Sampling {
  double *samples;
  size_t rounds, round;
} Sampling;

static int observe(void *context, uint32_t step, const void *data, int64_t nanoseconds) {
  const Sampling *sampling = context;
  (void)data;
  sampling->samples[step * sampling->rounds + sampling->round] = 1e-3 * (double)nanoseconds;
  return 0;
}

static bool gpu_round(Tuner *tuner, Program *program, size_t round) {
  const kiln_program *own = program->executable.program;
  float *times = arena_array(program->arena, own->run_step_count + 1, float);
  CudaMessage message;
  if (cuda_context_time_steps(program->context->cuda, own->max_batch, program->inputs, program->outputs, GPU_REPEATS,
                              times, &message) != KILN_OK) {
    diag_error(tuner->diag, (Location){NULL, 0, 0}, "%s", message.text);
    return false;
  }
  for (uint32_t s = 0; s < own->run_step_count; s++)
    program->samples[s * tuner->rounds + round] = 1e3 * (double)times[s];
  return true;
}

static bool run_round(Tuner *tuner, Program *program, size_t round) {
  Sampling sampling = {program->samples, tuner->rounds, round};
  kiln_error error;
  if (program->context->cuda != NULL) return gpu_round(tuner, program, round);
  if (kiln_run_steps(program->context, program->executable.program->max_batch, program->inputs, program->outputs,
                     observe, &sampling, &error) != KILN_OK)
    return library_error(tuner, &error);
  return true;
}

/* Rounds of both in turns, after some that do not count. `b` may be NULL. */
static bool run_rounds(Tuner *tuner, Program *a, Program *b) {
  const bool host = a->context->cuda == NULL;
  for (size_t r = 0; r < tuner->rounds + (host ? WARM_UP : 0); r++) {
    const size_t round = r % tuner->rounds; /* the first ones are overwritten */
    if (!run_round(tuner, a, round) || (b != NULL && !run_round(tuner, b, round))) return false;
  }
  return true;
}

static int compare_double(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Sorts the numbers. */
static double median(double *numbers, size_t count) {
  qsort(numbers, count, sizeof *numbers, compare_double);
  return count % 2 == 1 ? numbers[count / 2] : (numbers[count / 2 - 1] + numbers[count / 2]) / 2;
}

static double *medians(const Tuner *tuner, const Program *program) {
  const size_t steps = program->executable.program->run_step_count;
  double *times = arena_array(tuner->arena, steps + 1, double);
  for (size_t s = 0; s < steps; s++) {
    double *samples = arena_copy(tuner->arena, &program->samples[s * tuner->rounds], tuner->rounds * sizeof *samples);
    times[s] = median(samples, tuner->rounds);
  }
  return times;
}

/* --- kernels ----------------------------------------------------------------------------------------- */

/* The step that computes a node, or -1. */
static int64_t step_of(const Program *program, uint32_t id) {
  const Plan *plan = program->plan;
  for (size_t k = plan->prepare_count; k < plan->kernel_count; k++)
    if (plan->kernels[k].node_id == id || (plan->kernels[k].pool && plan->kernels[k].pool->node_id == id))
      return (int64_t)(k - plan->prepare_count);
  return -1;
}

static const Node *node_of(const Program *program, uint32_t id) {
  for (size_t i = 0; i < program->graph->node_count; i++)
    if (program->graph->nodes[i]->id == id) return program->graph->nodes[i];
  return NULL;
}

/* The step of a max pool that reads the node and that another way of computing it might include, or -1. */
static int64_t pool_step(const Program *program, const Node *node) {
  for (size_t i = 0; i < program->graph->node_count; i++) {
    const Node *pool = program->graph->nodes[i];
    if (pool->op == OP_MAX_POOL2D && !pool->hosted && pool->inputs[0] == node) return step_of(program, pool->id);
  }
  return -1;
}

/* The time of a kernel, of the step that brings its input into the layout or the halo that it takes, and of the pool
 * behind it, which some kernels include; step s takes times[s * stride]. */
static double kernel_time(const Program *program, const double *times, size_t stride, uint32_t id) {
  const Node *node = node_of(program, id);
  const int64_t step = step_of(program, id);
  if (node == NULL || step < 0) return (double)NAN;
  double time = times[(size_t)step * stride];
  const Node *input = node->input_count > 0 ? node->inputs[0] : NULL;
  const int64_t before = input != NULL && input->op == OP_CONVERT ? step_of(program, input->id) : -1;
  const int64_t behind = pool_step(program, node);
  if (before >= 0) time += times[(size_t)before * stride];
  return behind >= 0 ? time + times[(size_t)behind * stride] : time;
}

static size_t list_kernels(const Tuner *tuner, const Program *program, TunedKernel **out_kernels, uint32_t **out_ids) {
  const Graph *graph = program->graph;
  TunedKernel *kernels = arena_array(tuner->arena, graph->node_count + 1, TunedKernel);
  uint32_t *ids = arena_array(tuner->arena, graph->node_count + 1, uint32_t);
  size_t count = 0;
  for (size_t i = 0; i < graph->node_count; i++) {
    const Node *node = graph->nodes[i];
    const int64_t step = node->offers != NULL ? step_of(program, node->id) : -1;
    if (step < 0) continue;
    const PlanKernel *kernel = &program->plan->kernels[program->plan->prepare_count + (size_t)step];
    kernels[count] = (TunedKernel){plan_made(kernel)->name, node->op, node->offers, NULL};
    ids[count++] = node->id;
  }
  *out_kernels = kernels;
  *out_ids = ids;
  return count;
}

/* What the options take, whose table was left out of account so far. */
static bool find_taken(Tuner *tuner, TunedKernel *kernels, size_t count, const uint32_t *ids) {
  const BuildOptions build = {.compile = tuner->options->compile};
  Program taken;
  if (tuner->options->compile->tuning == NULL) return true;
  if (!program_init(tuner, &taken) ||
      !build_plan(tuner->graph, &build, taken.arena, tuner->diag, &taken.graph, &taken.plan))
    return false;
  for (size_t k = 0; k < count; k++) {
    const Node *node = node_of(&taken, ids[k]);
    if (node != NULL && node->offers != NULL) kernels[k].offers = node->offers;
  }
  return true; /* the offers live as long as the tuner's arena */
}

static double sum_of_others(const Program *program, const double *times, const uint32_t *ids, size_t count) {
  double sum = 0;
  for (uint32_t s = 0; s < program->executable.program->run_step_count; s++) sum += times[s];
  for (size_t k = 0; k < count; k++) sum -= kernel_time(program, times, 1, ids[k]);
  return sum;
}

/* How a kernel's time in `other` compares with that in `base`, round by round: what slows the machine down for a while
 * slows both. */
static double median_ratio(const Tuner *tuner, const Program *base, const Program *other, uint32_t id) {
  double *ratios = arena_array(tuner->arena, tuner->rounds, double);
  for (size_t r = 0; r < tuner->rounds; r++) {
    const double usual = kernel_time(base, base->samples + r, tuner->rounds, id);
    ratios[r] = usual > 0 ? kernel_time(other, other->samples + r, tuner->rounds, id) / usual : 1;
  }
  return median(ratios, tuner->rounds);
}

/* Candidate number `number` of all kernels, into times[kernel][number]. */
static bool measure_candidate(Tuner *tuner, Program *base, Program *other, size_t number, const uint32_t *ids,
                              const TunedKernel *kernels, size_t count, double *const *times) {
  const Tuning forced = {.forced = number};
  if (!program_open(tuner, &forced, other) || !run_rounds(tuner, base, other)) return false;
  for (size_t k = 0; k < count; k++)
    if (number < kernels[k].offers->count) times[k][number] = times[k][0] * median_ratio(tuner, base, other, ids[k]);
  program_close(other);
  return true;
}

bool tune_measure(const Graph *graph, const TuneOptions *options, Arena *arena, Diag *diag, TuneResult *out_result) {
  Tuner tuner = {graph, options, arena, diag, options->rounds > 0 ? (size_t)options->rounds : 1};
  static const Tuning untuned = {.forced = 0};
  Program base, other;
  TunedKernel *kernels;
  uint32_t *ids;
  size_t most = 1;
  if (!program_init(&tuner, &base) || !program_init(&tuner, &other) || !program_open(&tuner, &untuned, &base))
    return false;
  const size_t count = list_kernels(&tuner, &base, &kernels, &ids);
  double **times = arena_array(arena, count + 1, double *);
  for (size_t k = 0; k < count; k++) {
    times[k] = arena_array(arena, kernels[k].offers->count, double);
    if (kernels[k].offers->count > most) most = kernels[k].offers->count;
  }
  if (options->progress != NULL) options->progress(options->context, 0, most);
  bool done = run_rounds(&tuner, &base, NULL);
  if (done) {
    const double *model = medians(&tuner, &base);
    for (size_t k = 0; k < count; k++) times[k][0] = kernel_time(&base, model, 1, ids[k]);
    out_result->others = sum_of_others(&base, model, ids, count);
  }
  for (size_t c = 1; done && c < most; c++) {
    if (options->progress != NULL) options->progress(options->context, c, most);
    done = measure_candidate(&tuner, &base, &other, c, ids, kernels, count, times);
  }
  for (size_t k = 0; k < count; k++) kernels[k].times = times[k];
  done = done && find_taken(&tuner, kernels, count, ids);
  if (base.context != NULL) kiln_context_destroy(base.context);
  if (other.context != NULL) kiln_context_destroy(other.context);
  out_result->target = base.plan->target;
  out_result->kernels = kernels;
  out_result->kernel_count = count;
  return done;
}

/* --- tables ------------------------------------------------------------------------------------------ */

Tuning tune_table(const TuneResult *result, Arena *arena) {
  TuningKernel *table = arena_array(arena, result->kernel_count + 1, TuningKernel);
  Tuning tuning = {.kernels = table};
  for (size_t k = 0; k < result->kernel_count; k++) {
    const KernelOffers *offers = result->kernels[k].offers;
    if (tuning_find(&tuning, offers->signature) != NULL) continue;
    TuningTime *times = arena_array(arena, offers->count, TuningTime);
    for (size_t c = 0; c < offers->count; c++) {
      size_t same = 0;
      times[c].candidate = offers->names[c];
      for (size_t other = k; other < result->kernel_count; other++) {
        if (strcmp(result->kernels[other].offers->signature, offers->signature) != 0) continue;
        times[c].microseconds += result->kernels[other].times[c];
        same++;
      }
      times[c].microseconds /= (double)same;
      if (!(times[c].microseconds > 1e-3)) times[c].microseconds = 1e-3; /* the clock's grain; files hold no zeros */
    }
    table[tuning.kernel_count++] = (TuningKernel){offers->signature, times, offers->count};
  }
  return tuning;
}
