/* Traps that other systems fell into: attributes at and past their limits for every op, through the IR's text and
 * through descriptions; floating-point flags of the host; locales with a decimal comma. */
#include <locale.h>
#include <xmmintrin.h>

#include "base/file.h"
#include "description.h"
#include "eval.h"
#include "kiln.h"
#include "op_cases.h"
#include "passes.h"
#include "support.h"

/* --- attributes --------------------------------------------------------------------------------------- */

/* 2^53 + 1 and what wraps in 16, 32 and 64 bits, alone or multiplied by a small number. */
static const char *const integers[] = {"-9223372036854775808",
                                       "-36028797018963968",
                                       "-4294967296",
                                       "-65536",
                                       "-2",
                                       "-1",
                                       "0",
                                       "2",
                                       "3",
                                       "65535",
                                       "65536",
                                       "2147483647",
                                       "2147483648",
                                       "4294967295",
                                       "4294967297",
                                       "9007199254740993",
                                       "36028797018963968",
                                       "4611686018427387904",
                                       "9223372036854775807"};
static const char *const floats[] = {"nan", "inf", "-inf", "-1", "0", "1", "1e308", "-1e308", "5e-324"};
static const char *const words[] = {"true",    "false",    "zeros", "reflect", "replicate", "border", "reflection",
                                    "nearest", "bilinear", "none",  "tanh",    "mean",      "sum",    "nonsense"};
/* Where a value V goes in a text, by type; NULL ends. */
static const char *const places[][10] = {
    [ATTR_INT] = {"V"},
    [ATTR_INT2] = {"[V,1]", "[1,V]", "[V,V]", "[V,2]"},
    [ATTR_INT4] = {"[V,0,0,0]", "[0,V,0,0]", "[0,0,V,0]", "[0,0,0,V]", "[V,V,V,V]", "[V,0,V,0]"},
    [ATTR_FLOAT] = {"V"},
    [ATTR_BOOL] = {"V"},
    [ATTR_ENUM] = {"V"},
    [ATTR_INTS] = {"[V]", "[0,V]", "[N,V]", "[N,V,V]", "[V,V,V,V]", "[N,-1,V]", "[V,V,V,V,V,V,V,V]"},
    [ATTR_FLOATS] = {"[V]", "[V,V,V]"},
};

static const char *const *values_of(AttrType type, size_t *out_count) {
  if (type == ATTR_FLOAT || type == ATTR_FLOATS) return *out_count = sizeof floats / sizeof *floats, floats;
  if (type == ATTR_BOOL || type == ATTR_ENUM) return *out_count = sizeof words / sizeof *words, words;
  return *out_count = sizeof integers / sizeof *integers, integers;
}

static const char *put_value(Arena *arena, const char *place, const char *value) {
  Text text;
  text_init(&text, arena);
  for (; *place; place++) {
    if (*place == 'V')
      text_add(&text, value);
    else
      text_add_n(&text, place, 1);
  }
  return text.data;
}

static const Target target = {.triple = "test",
                              .isa = "test",
                              .tune = "generic",
                              .vector_lanes = 8,
                              .vector_registers = 16,
                              .fma = true,
                              .l1_bytes = 32768,
                              .l2_bytes = 1048576};

static int64_t elements_of(const Graph *graph) {
  int64_t largest = 0, count;
  for (uint32_t i = 0; i < graph->node_count; i++) {
    if (!shape_elements(&graph->nodes[i]->shape, 2, &count)) fail_msg("a shape overflows");
    if (count > largest) largest = count;
  }
  return largest;
}

/* What is accepted must be within the limits, plannable or refused, and small models computable. */
static void check_accepted(Fixture *fixture, const OpCase *line, Graph *graph) {
  enum { COMPUTABLE = 1 << 16 };
  const int64_t elements = elements_of(graph);
  if (elements > INT64_C(1) << 42)
    fail_msg("%s: %lld elements", op_case_label(line, fixture->arena), (long long)elements);
  if (elements <= COMPUTABLE) {
    TensorList inputs, parameters;
    EvalResult result;
    op_case_fill(graph, 2, OP_CASE_FLOATS, 1, fixture->arena, &inputs, &parameters);
    if (!graph_eval(graph, &inputs, &parameters, fixture->arena, fixture->diag, &result))
      fail_msg("%s: %s", op_case_label(line, fixture->arena), diag_text(fixture->diag, fixture->arena));
  }
  Arena *scratch = arena_create(NULL);
  const PassOptions options = {.target = &target, .scratch = scratch};
  const PipelineOptions pipeline = {.verify = true};
  Plan *plan = NULL;
  clear_messages(fixture);
  if (!pipeline_run(graph, &options, &pipeline, fixture->diag, &plan) && diag_error_count(fixture->diag) == 0)
    fail_msg("%s: no plan and no message", op_case_label(line, fixture->arena));
  arena_destroy(scratch);
}

typedef struct Tally {
  size_t accepted, refused;
} Tally;

static void try_attribute(Fixture *fixture, const OpCase *base, AttrId id, Tally *tally) {
  const AttrInfo *info = attr_info(id);
  size_t value_count;
  const char *const *values = values_of(info->type, &value_count);
  for (const char *const *place = places[info->type]; *place; place++) {
    for (size_t v = 0; v < value_count; v++) {
      Fixture round = {.arena = arena_create(NULL)};
      round.diag = diag_create(round.arena);
      const char *own = arena_format(round.arena, "%s=", info->name);
      const bool alone = base->attributes[0] == '\0' || strstr(base->attributes, own) != NULL;
      const char *attributes = arena_format(round.arena, "%s%s%s%s", alone ? "" : base->attributes, alone ? "" : ", ",
                                            own, put_value(round.arena, *place, values[v]));
      const OpCase line = {base->op, base->operands, attributes, false};
      Graph *graph = op_case_graph(&line, 2, round.arena, round.diag);
      if (graph) {
        tally->accepted++;
        check_accepted(&round, &line, graph);
      } else {
        tally->refused++;
        if (diag_error_count(round.diag) == 0) fail_msg("%s: refused silently", op_case_label(&line, fixture->arena));
      }
      arena_destroy(round.arena);
    }
  }
}

/* Every attribute of every op with every value, in one small case of the op. */
static void attributes_of_every_op_have_limits(void **state) {
  Fixture *fixture = *state;
  for (OpCode op = 0; op < OP_COUNT; op++) {
    const OpInfo *info = op_info(op);
    const OpCase *base = NULL;
    for (size_t i = 0; i < op_case_count(); i++)
      if (strcmp(op_case(i)->op, info->name) == 0 &&
          (base == NULL || strlen(op_case(i)->operands) < strlen(base->operands)))
        base = op_case(i);
    if (base == NULL) continue;
    for (int id = 0; id < ATTR_ID_COUNT; id++) {
      if (!(info->attrs >> id & 1) || attr_info((AttrId)id)->import_only) continue;
      Tally tally = {0, 0};
      try_attribute(fixture, base, (AttrId)id, &tally);
      if (tally.refused == 0) fail_msg("%s of %s takes every value", attr_info((AttrId)id)->name, info->name);
    }
  }
}

/* Parameters are inputs of the op, but a layer does not name them. */
static bool layer_takes_two(const OpInfo *info) {
  ParameterSpec specs[PARAMETER_SPEC_MAX];
  const Attrs attrs = attrs_default();
  return info->inputs_min == 2 && info->parameters(&attrs, &(Shape){4, {DIM_BATCH, 4, 6, 6}}, specs) == 0;
}

/* The same from a description, with values of every JSON type too. */
static void keys_of_every_op_have_limits(void **state) {
  (void)state;
  static const char *const others[] = {"null",
                                       "{}",
                                       "[]",
                                       "\"\"",
                                       "\"$x\"",
                                       "\"1/0\"",
                                       "\"9223372036854775807+1\"",
                                       "[[[[1]]]]",
                                       "[1,2,3,4,5,6,7,8,9]",
                                       "1e300",
                                       "-0.0",
                                       "1.5",
                                       "\"N\"",
                                       "[\"N\",\"N\"]"};
  enum { OTHERS = sizeof others / sizeof *others, INTEGERS = sizeof integers / sizeof *integers };
  size_t count;
  const char *const *names = op_names(&count);
  for (size_t n = 0; n < count; n++) {
    const OpInfo *info = op_info(op_find(names[n]));
    for (int id = 0; id < ATTR_ID_COUNT; id++) {
      if (!(info->attrs >> id & 1)) continue;
      size_t refused = 0;
      for (size_t v = 0; v < OTHERS + INTEGERS; v++) {
        Arena *arena = arena_create(NULL);
        Diag *diag = diag_create(arena);
        const char *name = attr_info((AttrId)id)->name, *value = v < OTHERS ? others[v] : integers[v - OTHERS];
        const bool window = (info->attrs & A(KERNEL)) && id != ATTR_ID_KERNEL;
        const bool channels = (info->attrs & A(OUT_CHANNELS)) && id != ATTR_ID_OUT_CHANNELS;
        const bool features = (info->attrs & A(OUT_FEATURES)) && id != ATTR_ID_OUT_FEATURES;
        const char *text =
            arena_format(arena,
                         "{\"kiln\":1,\"name\":\"m\",\"inputs\":{\"x\":{\"shape\":[\"N\",4,6,6]}},\"layers\":[{\"op\":"
                         "\"%s\",\"in\":[%s],"
                         "%s%s%s\"%s\":%s}]}",
                         names[n], layer_takes_two(info) ? "\"x\",\"x\"" : "\"x\"", window ? "\"kernel\":2," : "",
                         channels ? "\"out_channels\":2," : "", features ? "\"out_features\":2," : "", name, value);
        Graph *graph = NULL;
        const bool good = description_parse("m.json", text, strlen(text), NULL, arena, diag, &graph);
        if (good)
          elements_of(graph);
        else
          refused++;
        if (good != (diag_error_count(diag) == 0)) fail_msg("%s: %d with %s", text, good, diag_text(diag, arena));
        const bool integral = attr_info((AttrId)id)->type <= ATTR_INT4 || attr_info((AttrId)id)->type == ATTR_INTS;
        if (integral && good && strlen(value) > 10) fail_msg("accepted: %s", text);
        arena_destroy(arena);
      }
      if (refused == 0) fail_msg("%s of %s takes every value", attr_info((AttrId)id)->name, names[n]);
    }
  }
}

/* --- the host's state ----------------------------------------------------------------------------------- */

static const char description[] =
    "{ \"kiln\": 1, \"name\": \"trap\", \"inputs\": { \"x\": { \"shape\": [\"N\", 3, 6, 5],\n"
    "  \"preprocess\": { \"mean\": [0.5, 0.25, 0.125], \"std\": [1.5, 2.5, 3.5] } } },\n"
    "  \"layers\": [ { \"op\": \"conv2d\", \"out_channels\": 4, \"kernel\": 3 }, { \"op\": \"batch_norm\", \"eps\": "
    "0.00123 },\n"
    "              { \"op\": \"leaky_relu\", \"negative_slope\": 0.125 }, { \"op\": \"gelu\" }, { \"op\": \"softmax\" "
    "} ] }";

enum { IMAGE = 3 * 6 * 5, RESULT = 4 * 4 * 3 };

typedef struct Product {
  float results[2][RESULT]; /* compiled in memory, and from the library */
  void *library, *header;
  size_t library_size, header_size;
} Product;

static void run_program(const kiln_executable *executable, float *result) {
  static float image[IMAGE];
  for (int i = 0; i < IMAGE; i++) image[i] = (float)(i * 29 % 83) / 41.0f - 1.0f;
  kiln_context *context;
  kiln_error error;
  assert_int_equal(kiln_context_create(executable, NULL, &context, &error), KILN_OK);
  const void *inputs[] = {image};
  void *outputs[] = {result};
  assert_int_equal(kiln_run(context, 1, inputs, outputs, &error), KILN_OK);
  kiln_context_destroy(context);
}

/* Everything that a host does with a model. */
static Product *make_product(Fixture *fixture, const char *name) {
  Product *product = arena_new(fixture->arena, Product);
  kiln_model *model;
  kiln_executable *executable;
  kiln_error error;
  const char *path = fixture_path(fixture, arena_format(fixture->arena, "lib%s.so", name));
  assert_int_equal(kiln_model_parse(NULL, "m.json", description, strlen(description), NULL, &model, &error), KILN_OK);
  assert_int_equal(kiln_model_init_weights(model, 1, &error), KILN_OK);
  assert_int_equal(kiln_compile(model, NULL, &executable, &error), KILN_OK);
  run_program(executable, product->results[0]);
  kiln_executable_destroy(executable);
  const kiln_compile_options options = {.weights = KILN_WEIGHTS_FILE};
  if (kiln_compile_library(model, &options, path, &error) != KILN_OK) fail_msg("%s", error.message);
  if (kiln_open_library(NULL, path, NULL, &executable, &error) != KILN_OK) fail_msg("%s", error.message);
  run_program(executable, product->results[1]);
  kiln_executable_destroy(executable);
  kiln_model_destroy(model);
  assert_true(file_read(path, 1 << 24, fixture->arena, fixture->diag, &product->library, &product->library_size));
  assert_true(file_read(fixture_path(fixture, arena_format(fixture->arena, "%s.h", name)), 1 << 20, fixture->arena,
                        fixture->diag, &product->header, &product->header_size));
  return product;
}

static unsigned short x87_control(void) {
  unsigned short word;
  __asm__ volatile("fnstcw %0" : "=m"(word));
  return word;
}

/* A library linked with -ffast-math would set flush-to-zero for the whole host (exception flags may be raised). */
static void floating_point_modes_are_left_alone(void **state) {
  Fixture *fixture = *state;
  const unsigned modes = ~(unsigned)_MM_EXCEPT_MASK;
  const unsigned before = _mm_getcsr();
  const unsigned short x87_before = x87_control();
  make_product(fixture, "plain");
  assert_int_equal(_mm_getcsr() & modes, before & modes);
  assert_int_equal(x87_control(), x87_before);
  const volatile float smallest = 1e-40f;
  assert_true(smallest * 1.0f != 0.0f);
}

static void a_decimal_comma_changes_nothing(void **state) {
  Fixture *fixture = *state;
  char command[160];
  snprintf(command, sizeof command, "localedef -i de_DE -f UTF-8 '%s/de_DE.UTF-8' >/dev/null 2>&1", fixture->folder);
  if (system(command) != 0 || setenv("LOCPATH", fixture->folder, 1) != 0)
    skip(); /* no locale sources on this machine */
  Product *plain = make_product(fixture, "first");
  assert_non_null(setlocale(LC_ALL, "de_DE.UTF-8"));
  char shown[8];
  snprintf(shown, sizeof shown, "%.1f", 0.5);
  Product *comma = make_product(fixture, "second");
  setlocale(LC_ALL, "C");
  assert_string_equal(shown, "0,5");
  assert_memory_equal(plain->results, comma->results, sizeof plain->results);
  assert_memory_equal(plain->results[0], plain->results[1], sizeof plain->results[0]);
  assert_int_equal(plain->library_size, comma->library_size);
  assert_memory_equal(plain->library, comma->library, plain->library_size);
  assert_int_equal(plain->header_size, comma->header_size);
  assert_memory_equal(plain->header, comma->header, plain->header_size);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(attributes_of_every_op_have_limits),
      fixture_test(keys_of_every_op_have_limits),
      fixture_test(floating_point_modes_are_left_alone),
      fixture_test(a_decimal_comma_changes_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
