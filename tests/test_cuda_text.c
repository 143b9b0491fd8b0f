/* The CUDA text of the example networks, of training steps, gradients and hooks: the same from run to run, C that a C
 * compiler takes with the emulator's prelude, with sound launches; and CUDA that NVRTC takes, where there is one. That
 * it computes the right values is for test_cuda_kernels. */
#include "cuda/cuda.h"

#include "base/checked.h"
#include "cuda/nvrtc.h"
#include "description.h"
#include "passes.h"
#include "support.h"

enum { MAX_BATCH = 16 };

/* What is asked of a graph beside its outputs. */
typedef enum Extra { EXTRA_NONE, EXTRA_TRAIN_SGD, EXTRA_TRAIN_ADAM, EXTRA_HOOK, EXTRA_GRADIENT } Extra;

typedef struct Example {
  const char *name; /* of examples/NAME.json */
  Extra extra;
} Example;

static const Example examples[] = {
    {"simple_net", EXTRA_NONE},
    {"simple_cnn10", EXTRA_NONE},
    {"simple_cnn10_bn", EXTRA_NONE},
    {"edges_rgb2", EXTRA_NONE},
    {"mobilenet_v2", EXTRA_NONE},
    {"resnet18", EXTRA_NONE},
    {"resnet50", EXTRA_NONE},
    {"squeezenet1_1", EXTRA_NONE},
    {"vgg11_bn", EXTRA_NONE},
    {"simple_cnn10_bn", EXTRA_TRAIN_SGD},
    {"simple_cnn10_bn", EXTRA_TRAIN_ADAM},
    {"resnet18", EXTRA_TRAIN_SGD},
    {"resnet18", EXTRA_HOOK},
    {"resnet18", EXTRA_GRADIENT},
    {"simple_cnn10", EXTRA_GRADIENT},
};

enum { EXAMPLE_COUNT = sizeof examples / sizeof *examples };

static void ask(Graph *graph, Extra extra, Arena *arena, Diag *diag) {
  static const Hook hook = {.pattern = "layer*", .kind = HOOK_ACTIVATION, .action = HOOK_STATS};
  static const char *const wrt[] = {"image"};
  bool done = true;
  if (extra == EXTRA_TRAIN_SGD || extra == EXTRA_TRAIN_ADAM)
    done =
        graph_request_training(graph,
                               &(TrainRequest){.loss = OP_CROSS_ENTROPY,
                                               .of = graph->outputs[0].name,
                                               .optimizer = extra == EXTRA_TRAIN_SGD ? OPTIMIZER_SGD : OPTIMIZER_ADAM,
                                               .clip = extra == EXTRA_TRAIN_ADAM,
                                               .accumulate = extra == EXTRA_TRAIN_ADAM},
                               diag);
  if (extra == EXTRA_HOOK) graph->hooks = arena_copy(arena, &hook, sizeof hook), graph->hook_count = 1;
  if (extra == EXTRA_GRADIENT)
    done = graph_request_gradient(graph,
                                  &(GradientRequest){.of = graph->outputs[0].name,
                                                     .seed = GRADIENT_OF_CLASS,
                                                     .wrt = arena_copy(arena, wrt, sizeof wrt),
                                                     .wrt_count = 1},
                                  diag);
  if (!done) fail_msg("%s", diag_text(diag, arena));
}

static Plan *plan_graph(Graph *graph, bool training, const char *arch, MathMode math, Arena *arena) {
  Diag *diag = diag_create(arena);
  Plan *plan = NULL;
  Target *target = arena_new(arena, Target);
  Arena *scratch = arena_create(NULL);
  bool done = cuda_target(arch, NULL, math, arena, diag, target);
  const PassOptions options = {
      .target = target, .precision = PRECISION_DEFAULT, .training = training, .scratch = scratch};
  const PipelineOptions pipeline = {.verify = true};
  done = done && pipeline_run(graph, &options, &pipeline, diag, &plan);
  arena_destroy(scratch);
  if (!done) fail_msg("%s", diag_text(diag, arena));
  return plan;
}

static Plan *plan_example(const Example *example, const char *arch, MathMode math, Arena *arena) {
  Graph *graph = NULL;
  Diag *diag = diag_create(arena);
  const char *path = arena_format(arena, KILN_SOURCE_DIR "/examples/%s.json", example->name);
  if (!description_read(path, NULL, arena, diag, &graph)) fail_msg("%s", diag_text(diag, arena));
  graph->max_batch = MAX_BATCH;
  ask(graph, example->extra, arena, diag);
  bool training = example->extra == EXTRA_TRAIN_SGD || example->extra == EXTRA_TRAIN_ADAM;
  return plan_graph(graph, training, arch, math, arena);
}

static CudaProgramText generate(const Plan *plan, Arena *arena) {
  CudaProgramText program;
  Diag *diag = diag_create(arena);
  if (!cuda_generate(plan, arena, diag, &program)) fail_msg("%s", diag_text(diag, arena));
  return program;
}

/* --- launches ------------------------------------------------------------------------------------------- */

static void check_launch(const CudaCode *code, const CudaLaunch *launch) {
  const int64_t blocks =
      ceil_div(launch->work + MAX_BATCH * launch->work_per_image, launch->work_per_block); /* at the largest batch */
  const char *head = strstr(code->text, launch->function);
  if (head == NULL) fail_msg("%s: no function %s", code->name, launch->function);
  assert_in_range(launch->threads, 32, 1024);
  assert_int_equal(launch->threads % 32, 0);
  assert_in_range(launch->grid_y, 1, 65535);
  assert_in_range(launch->grid_z, 1, 65535);
  assert_in_range(launch->shared_bytes, 0, 227 * 1024);
  if (blocks < 1 || blocks > INT32_MAX)
    fail_msg("%s: %s has %lld blocks", code->name, launch->function, (long long)blocks);
}

static void test_launches(void **state) {
  (void)state;
  for (size_t i = 0; i < EXAMPLE_COUNT; i++) {
    Arena *arena = arena_create(NULL);
    const Plan *plan = plan_example(&examples[i], "sm_90a", MATH_3XTF32, arena);
    const CudaProgramText program = generate(plan, arena);
    assert_true(program.code_count > 0 && program.code_count <= plan->kernel_count);
    for (size_t k = 0; k < plan->kernel_count; k++)
      assert_int_equal(program.codes[program.code_of[k]].kernel, plan->kernels[k].code);
    for (size_t c = 0; c < program.code_count; c++) {
      assert_true(program.codes[c].launch_count > 0);
      for (size_t l = 0; l < program.codes[c].launch_count; l++)
        check_launch(&program.codes[c], &program.codes[c].launches[l]);
    }
    arena_destroy(arena);
  }
}

/* --- same plan, same text ------------------------------------------------------------------------------- */

static void test_deterministic(void **state) {
  (void)state;
  for (size_t i = 0; i < EXAMPLE_COUNT; i++) {
    Arena *arenas[2] = {arena_create(NULL), arena_create(NULL)};
    Text texts[2];
    for (int k = 0; k < 2; k++) {
      const Plan *plan = plan_example(&examples[i], "sm_80", MATH_TF32, arenas[k]);
      const CudaProgramText program = generate(plan, arenas[k]);
      text_init(&texts[k], arenas[k]);
      cuda_print(&texts[k], plan, &program);
    }
    assert_string_equal(texts[0].data, texts[1].data);
    assert_null(strstr(texts[0].data, "0x7f")); /* nor addresses */
    for (int k = 0; k < 2; k++) arena_destroy(arenas[k]);
  }
}

/* Lines are not so long that a person could not read them. */
static void test_readable(void **state) {
  (void)state;
  enum { LINE = 200 };
  for (size_t i = 0; i < EXAMPLE_COUNT; i++) {
    Arena *arena = arena_create(NULL);
    const CudaProgramText program = generate(plan_example(&examples[i], "sm_90a", MATH_3XTF32, arena), arena);
    for (size_t c = 0; c < program.code_count; c++)
      for (const char *line = program.codes[c].text, *end; *line; line = *end ? end + 1 : end) {
        end = line + strcspn(line, "\n");
        if (end - line > LINE && strncmp(line, "#line", 5) != 0)
          fail_msg("%s: a line of %d characters: %.*s", program.codes[c].name, (int)(end - line), (int)(end - line),
                   line);
      }
    arena_destroy(arena);
  }
}

/* --- C ---------------------------------------------------------------------------------------------------- */

/* All kernels of a program as one file: functions get their code's number, headers are included once. */
static void add_code(Text *text, const CudaCode *code, size_t number) {
  for (const char *line = code->text, *end; *line; line = *end ? end + 1 : end) {
    end = line + strcspn(line, "\n");
    const char *name = strncmp(line, "KERNEL", 6) == 0 ? strstr(line, ") k_") : NULL;
    if (strncmp(line, "#include", 8) == 0 || strncmp(line, "#line", 5) == 0) {
      text_add(text, "\n");
      continue;
    }
    if (name != NULL) {
      text_add_n(text, line, (size_t)(name + 2 - line));
      text_format(text, "k%zu_", number);
      line = name + 4;
    }
    text_add_n(text, line, (size_t)(end - line));
    text_add(text, "\n");
  }
}

static void write_file(Fixture *fixture, const char *name, const char *content) {
  FILE *file = fopen(fixture_path(fixture, name), "w");
  assert_non_null(file);
  assert_true(fputs(content, file) >= 0);
  assert_int_equal(fclose(file), 0);
}

static void check_c(Fixture *fixture, const CudaProgramText *program, const char *label) {
  Text text;
  text_init(&text, fixture->arena);
  text_add(&text, "#include \"kiln_prelude.h\"\n#include \"kiln_common.h\"\n");
  for (size_t c = 0; c < program->code_count; c++) add_code(&text, &program->codes[c], c);
  write_file(fixture, "kiln_common.h", cuda_headers[1].text);
  write_file(fixture, "kernels.c", text.data);
  const char *command =
      arena_format(fixture->arena,
                   "cc -std=c11 -fsyntax-only -Wall -Wextra -Werror -Wno-unused -Wno-unknown-pragmas -D_GNU_SOURCE"
                   " -include " KILN_SOURCE_DIR "/tests/cuda_emulator/prelude_host.h -I%s %s/kernels.c",
                   fixture->folder, fixture->folder);
  write_file(fixture, "kiln_prelude.h", "");
  if (system(command) != 0) fail_msg("%s: the text is no C", label);
}

static void test_c(void **state) {
  Fixture *fixture = *state;
  for (size_t i = 0; i < EXAMPLE_COUNT; i++) {
    const CudaProgramText program =
        generate(plan_example(&examples[i], "sm_90a", MATH_3XTF32, fixture->arena), fixture->arena);
    check_c(fixture, &program, examples[i].name);
  }
}

/* --- CUDA ------------------------------------------------------------------------------------------------- */

static void check_cuda(const Plan *plan, const char *arch, Arena *arena) {
  const CudaProgramText program = generate(plan, arena);
  const NvrtcOptions options = {.arch = arch};
  Diag *diag = diag_create(arena);
  Code *images;
  if (!nvrtc_compile(plan, &program, &options, arena, diag, &images)) fail_msg("%s", diag_text(diag, arena));
}

/* A training step with the compiler itself: static shared memory and PTX are right for the architecture. Every op is
 * for test_cuda_budget. */
static void test_nvrtc(void **state) {
  static const char *const archs[] = {"sm_80", "sm_90a"};
  (void)state;
  const char *reason;
  if (nvrtc_info(&reason) == NULL) {
    print_message("no NVRTC: %s\n", reason);
    skip();
  }
  for (int a = 0; a < 2; a++) {
    Arena *arena = arena_create(NULL);
    const Example step = {"simple_cnn10_bn", EXTRA_TRAIN_ADAM};
    check_cuda(plan_example(&step, archs[a], MATH_TF32, arena), archs[a], arena);
    arena_destroy(arena);
  }
}

/* --- targets ---------------------------------------------------------------------------------------------- */

static void test_targets(void **state) {
  Fixture *fixture = *state;
  Target target;
  assert_true(cuda_target("sm_90a", NULL, MATH_BF16, fixture->arena, fixture->diag, &target));
  assert_string_equal(target.isa, "sm_90a");
  assert_int_equal(target.arch, 90);
  assert_int_equal(target.image_layout, LAYOUT_CHANNEL_LAST);
  const CudaDevice newer = {.name = "NVIDIA X", .arch = 121, .multiprocessors = 9, .shared_bytes = 1000, .l2_bytes = 7};
  assert_true(cuda_target(NULL, &newer, MATH_FP32, fixture->arena, fixture->diag, &target));
  assert_string_equal(target.isa, "sm_120");
  assert_int_equal(target.multiprocessors, 9);
  assert_int_equal(target.shared_bytes, 1000);
  assert_false(cuda_target("sm_60", NULL, MATH_FP32, fixture->arena, fixture->diag, &target));
  check_message_part(fixture, "unknown GPU architecture 'sm_60': expected one of sm_70");
  assert_false(cuda_target("sm_75", NULL, MATH_TF32, fixture->arena, fixture->diag, &target));
  check_message_part(fixture, "GPU architecture sm_75 does not compute in tf32: expected fp32");
  const CudaDevice old = {.name = "NVIDIA Y", .arch = 61};
  assert_false(cuda_target(NULL, &old, MATH_FP32, fixture->arena, fixture->diag, &target));
  check_message_part(fixture, "the GPU 'NVIDIA Y' has compute capability 6.1: at least 7.0 is needed");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(test_launches), fixture_test(test_deterministic), fixture_test(test_readable),
      fixture_test(test_c),        fixture_test(test_nvrtc),         fixture_test(test_targets),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
