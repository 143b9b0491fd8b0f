/* frontend/weights: binding by name, and initial values that are the same everywhere; base/philox. */
#include <math.h>

#include "base/philox.h"
#include "description.h"
#include "support.h"

static const char model[] =
    "{\"kiln\": 1, \"name\": \"m\", \"inputs\": {\"x\": {\"shape\": [\"N\", 64, 4, 4]}},\n"
    " \"layers\": [{\"op\": \"conv2d\", \"name\": \"conv\", \"out_channels\": 32, \"kernel\": 3, \"bias\": false},\n"
    " {\"op\": \"batch_norm\", \"name\": \"bn\"}]}";

static Graph *read_model(Fixture *fixture) {
  Graph *graph = NULL;
  assert_true(description_parse("m.json", model, strlen(model), NULL, fixture->arena, fixture->diag, &graph));
  return graph;
}

static Tensor *find(TensorList *list, const char *name) {
  for (size_t i = 0; i < list->count; i++) {
    if (strcmp(list->items[i].name, name) == 0) return &list->items[i];
  }
  fail_msg("no tensor '%s'", name);
  return NULL;
}

/* kat_vectors of Random123: philox 4x32 10. */
static void philox_gives_the_published_words(void **state) {
  (void)state;
  static const struct {
    uint32_t counter[4], key[2], words[4];
  } vectors[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
    uint32_t words[4];
    philox(vectors[i].counter, vectors[i].key, words);
    assert_memory_equal(words, vectors[i].words, sizeof words);
  }
}

static void initial_values_follow_kaiming(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = read_model(fixture);
  TensorList tensors;
  weights_initialise(graph, 7, fixture->arena, &tensors);
  assert_int_equal(tensors.count, 5);
  const Tensor *weight = find(&tensors, "conv.weight");
  const int64_t count = tensor_elements(weight);
  assert_int_equal(count, 32 * 64 * 9);
  const double deviation = sqrt(2.0 / (64 * 9));
  double sum = 0, squares = 0, largest = 0;
  int64_t inside = 0;
  for (int64_t i = 0; i < count; i++) {
    const double value = tensor_get(weight, i) / deviation;
    sum += value;
    squares += value * value;
    inside += fabs(value) < 1;
    if (fabs(value) > largest) largest = fabs(value);
  }
  assert_true(fabs(sum / (double)count) < 0.03); /* 4 standard errors */
  assert_true(fabs(squares / (double)count - 1) < 0.05);
  assert_true(fabs((double)inside / (double)count - 0.682689) < 0.014);
  assert_true(largest > 3.2 && largest < 6);
  for (int i = 0; i < 32; i++) {
    assert_true(tensor_get(find(&tensors, "bn.weight"), i) == 1 && tensor_get(find(&tensors, "bn.bias"), i) == 0);
    assert_true(tensor_get(find(&tensors, "bn.running_mean"), i) == 0);
    assert_true(tensor_get(find(&tensors, "bn.running_var"), i) == 1);
  }
}

/* Number i of a stream is the normal quantile of (word + 1/2)/2^32: checked through the error function. */
static void initial_values_are_quantiles(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = read_model(fixture);
  TensorList tensors;
  weights_initialise(graph, UINT64_C(0x123456789abcdef0), fixture->arena, &tensors);
  const Tensor *weight = find(&tensors, "conv.weight");
  uint64_t stream = UINT64_C(0xcbf29ce484222325);
  for (const char *at = weight->name; *at; at++) stream = (stream ^ (unsigned char)*at) * UINT64_C(0x100000001b3);
  const double deviation = sqrt(2.0 / (64 * 9));
  for (uint32_t block = 0; block < 4000; block++) {
    const uint32_t counter[4] = {block, 0, (uint32_t)stream, (uint32_t)(stream >> 32)};
    const uint32_t key[2] = {0x9abcdef0, 0x12345678};
    uint32_t words[4];
    philox(counter, key, words);
    for (int k = 0; k < 4; k++) {
      const double probability = (words[k] + 0.5) * 0x1p-32;
      const double value = tensor_get(weight, block * 4 + k) / deviation;
      const double found = 0.5 * erfc(-value * M_SQRT1_2);
      const double density = exp(-value * value / 2) * 0.3989422804014327;
      assert_true(fabs(found - probability) < 1e-15 + 1e-7 * density * (1 + fabs(value)));
    }
  }
}

static uint64_t hash_bytes(const void *data, size_t size) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * UINT64_C(0x100000001b3);
  return hash;
}

/* The bytes are part of the contract: this value must not change, on any machine. */
static void initial_values_never_change(void **state) {
  Fixture *fixture = *state;
  const Graph *graph = read_model(fixture);
  TensorList first, second, other;
  weights_initialise(graph, 1, fixture->arena, &first);
  weights_initialise(graph, 1, fixture->arena, &second);
  weights_initialise(graph, 2, fixture->arena, &other);
  const size_t size = (size_t)tensor_bytes(&first.items[0]);
  assert_memory_equal(first.items[0].data, second.items[0].data, size);
  assert_memory_not_equal(first.items[0].data, other.items[0].data, size);
  assert_int_equal(hash_bytes(first.items[0].data, size), UINT64_C(0xade02a68fe617ec8));
}

static void tensors_are_bound_by_name(void **state) {
  Fixture *fixture = *state;
  Graph *graph = read_model(fixture);
  TensorList tensors;
  weights_initialise(graph, 3, fixture->arena, &tensors);
  assert_true(weights_bind(graph, &tensors, "w.safetensors", false, fixture->diag));
  check_messages(fixture, "");
  for (size_t i = 0; i < graph->parameter_count; i++) {
    assert_string_equal(graph->parameters[i].value->name, graph->parameters[i].name);
  }
}

static void other_float_types_are_converted(void **state) {
  Fixture *fixture = *state;
  static const DataType types[] = {DTYPE_F16, DTYPE_BF16, DTYPE_F64};
  for (int i = 0; i < 3; i++) {
    Graph *graph = read_model(fixture);
    Tensor half = tensor_create(fixture->arena, "bn.weight", types[i], (Shape){.rank = 1, .dims = {32}});
    for (int k = 0; k < 32; k++) tensor_set(&half, k, k * 0.25 - 2);
    const TensorList tensors = {&half, 1};
    assert_true(weights_bind(graph, &tensors, "w.safetensors", true, fixture->diag));
    const Parameter *parameter = &graph->parameters[1];
    assert_int_equal(parameter->value->dtype, DTYPE_F32);
    for (int k = 0; k < 32; k++) assert_true(((float *)parameter->value->data)[k] == (float)(k * 0.25 - 2));
    assert_null(graph->parameters[0].value);
  }
}

static void mismatches_are_reported_together(void **state) {
  Fixture *fixture = *state;
  Graph *graph = read_model(fixture);
  Tensor items[] = {
      tensor_create(fixture->arena, "conv.weight", DTYPE_F32, (Shape){.rank = 4, .dims = {32, 64, 1, 1}}),
      tensor_create(fixture->arena, "bn.weight", DTYPE_I64, (Shape){.rank = 1, .dims = {32}}),
      tensor_create(fixture->arena, "bn.bias", DTYPE_F32, (Shape){.rank = 1, .dims = {32}}),
      tensor_create(fixture->arena, "bn.num_batches_tracked", DTYPE_I64, (Shape){0}),
      tensor_create(fixture->arena, "fc.weight", DTYPE_F32, (Shape){.rank = 1, .dims = {1}}),
      tensor_create(fixture->arena, "fc.bias", DTYPE_F32, (Shape){.rank = 1, .dims = {1}}),
  };
  const TensorList tensors = {items, 6};
  assert_false(weights_bind(graph, &tensors, "w.safetensors", false, fixture->diag));
  check_messages(fixture,
                 "w.safetensors: error: 'conv.weight': the model expects shape [32,64,3,3], the file has [32,64,1,1]\n"
                 "w.safetensors: error: 'bn.weight': the model expects f32, the file has i64\n"
                 "w.safetensors: error: no tensor 'bn.running_mean', which the model needs with shape [32]\n"
                 "w.safetensors: error: no tensor 'bn.running_var', which the model needs with shape [32]\n"
                 "w.safetensors: warning: 2 tensors the model does not use: 'fc.weight', 'fc.bias'\n");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(philox_gives_the_published_words), fixture_test(initial_values_follow_kaiming),
      fixture_test(initial_values_are_quantiles),     fixture_test(initial_values_never_change),
      fixture_test(tensors_are_bound_by_name),        fixture_test(other_float_types_are_converted),
      fixture_test(mismatches_are_reported_together),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
