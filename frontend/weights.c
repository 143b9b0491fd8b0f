/* Parameter values: from tensors by name, or initial ones. */
#include <math.h>
#include <string.h>

#include "base/philox.h"
#include "description.h"
#include "names.h"

/* --- binding ----------------------------------------------------------------------------------------- */

static const char *shape_text(Arena *arena, const Shape *shape) {
  Text text;
  text_init(&text, arena);
  text_add(&text, "[");
  shape_print(&text, shape);
  text_add(&text, "]");
  return text.data;
}

static bool is_float(DataType type) {
  return type == DTYPE_F32 || type == DTYPE_F64 || type == DTYPE_F16 || type == DTYPE_BF16;
}

/* The tensor as the parameter's type; NULL: they do not go together. */
static const Tensor *convert(Arena *arena, const Tensor *tensor, DataType dtype) {
  if (tensor->dtype == dtype) return tensor;
  if (dtype != DTYPE_F32 || !is_float(tensor->dtype)) return NULL;
  Tensor *result = arena_new(arena, Tensor);
  *result = tensor_create(arena, tensor->name, dtype, tensor->shape);
  const int64_t count = tensor_elements(tensor);
  for (int64_t i = 0; i < count; i++) tensor_set(result, i, tensor_get(tensor, i));
  return result;
}

static bool bind(Graph *graph, Parameter *parameter, const Tensor *tensor, Location location, Diag *diag) {
  if (!shape_equal(&tensor->shape, &parameter->shape)) {
    diag_error(diag, location, "'%s': the model expects shape %s, the file has %s", parameter->name,
               shape_text(graph->arena, &parameter->shape), shape_text(graph->arena, &tensor->shape));
    return false;
  }
  const Tensor *value = convert(graph->arena, tensor, parameter->dtype);
  if (!value) {
    diag_error(diag, location, "'%s': the model expects %s, the file has %s", parameter->name,
               data_type_name(parameter->dtype), data_type_name(tensor->dtype));
    return false;
  }
  parameter->value = value;
  parameter->inline_value = false;
  return true;
}

/* PyTorch counts batches in a tensor beside the running statistics; nothing uses it. */
static bool is_batch_counter(const char *name) {
  static const char suffix[] = "num_batches_tracked";
  const size_t length = strlen(name);
  return length >= sizeof suffix - 1 && strcmp(name + length - (sizeof suffix - 1), suffix) == 0;
}

static void warn_unknown(Graph *graph, const NameTable *parameters, const TensorList *tensors, Location location,
                         Diag *diag) {
  enum { SHOWN = 10 };
  Text list;
  text_init(&list, graph->arena);
  size_t count = 0;
  for (size_t i = 0; i < tensors->count; i++) {
    const char *name = tensors->items[i].name;
    if (is_batch_counter(name) || names_find(parameters, name)) continue;
    if (count < SHOWN) text_format(&list, "%s'%s'", count ? ", " : "", name);
    count++;
  }
  if (count == 0) return;
  if (count > SHOWN) text_format(&list, " and %zu more", count - SHOWN);
  diag_warning(diag, location, "%zu tensor%s the model does not use: %s", count, count == 1 ? "" : "s", list.data);
}

bool weights_bind(Graph *graph, const TensorList *tensors, const char *file, bool allow_missing, Diag *diag) {
  const Location location = {file, 0, 0};
  NameTable by_name, parameters;
  names_init(&by_name, graph->arena);
  names_init(&parameters, graph->arena);
  for (size_t i = 0; i < tensors->count; i++) {
    if (!names_find(&by_name, tensors->items[i].name)) names_add(&by_name, tensors->items[i].name, &tensors->items[i]);
  }
  bool good = true;
  for (size_t i = 0; i < graph->parameter_count; i++) {
    Parameter *parameter = &graph->parameters[i];
    names_add(&parameters, parameter->name, parameter);
    const NameSlot *slot = names_find(&by_name, parameter->name);
    if (slot) {
      good &= bind(graph, parameter, slot->value, location, diag);
    } else if (!parameter->value && !allow_missing) {
      diag_error(diag, location, "no tensor '%s', which the model needs with shape %s", parameter->name,
                 shape_text(graph->arena, &parameter->shape));
      good = false;
    }
  }
  warn_unknown(graph, &parameters, tensors, location, diag);
  return good;
}

/* --- initial values ---------------------------------------------------------------------------------- */

/* Natural logarithm with basic operations only, so that every machine gives the same bits; x is normal and > 0.
 * x = m 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1)/(m + 1), |s| < 0.172: eleven terms of
 * the series reach the last bits of a double. */
static double portable_log(double x) {
  int exponent;
  double m = frexp(x, &exponent);
  if (m < 0.70710678118654752) {
    m *= 2;
    exponent--;
  }
  const double s = (m - 1) / (m + 1), square = s * s;
  double sum = 0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * square + 1.0 / k;
  return 2 * s * sum + exponent * 0.69314718055994530942;
}

static double polynomial(const double coefficients[8], double x) {
  double sum = 0;
  for (int i = 7; i >= 0; i--) sum = sum * x + coefficients[i];
  return sum;
}

/* The normal quantile of p, 0 < p < 1: algorithm AS 241 (Wichura, Applied Statistics 37, 1988), PPND16. One word of
 * the generator gives one number, whose place in the stream is thus its index. */
static double normal_quantile(double p) {
  static const double a[8] = {3.3871328727963666080e0,  1.3314166789178437745e+2, 1.9715909503065514427e+3,
                              1.3731693765509461125e+4, 4.5921953931549871457e+4, 6.7265770927008700853e+4,
                              3.3430575583588128105e+4, 2.5090809287301226727e+3};
  static const double b[8] = {1.0,
                              4.2313330701600911252e+1,
                              6.8718700749205790830e+2,
                              5.3941960214247511077e+3,
                              2.1213794301586595867e+4,
                              3.9307895800092710610e+4,
                              2.8729085735721942674e+4,
                              5.2264952788528545610e+3};
  static const double c[8] = {1.42343711074968357734e0,  4.63033784615654529590e0, 5.76949722146069140550e0,
                              3.64784832476320460504e0,  1.27045825245236838258e0, 2.41780725177450611770e-1,
                              2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static const double d[8] = {1.0,
                              2.05319162663775882187e0,
                              1.67638483018380384940e0,
                              6.89767334985100004550e-1,
                              1.48103976427480074590e-1,
                              1.51986665636164571966e-2,
                              5.47593808499534494600e-4,
                              1.05075007164441684324e-9};
  static const double e[8] = {6.65790464350110377720e0,  5.46378491116411436990e0,  1.78482653991729133580e0,
                              2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                              2.71155556874348757815e-5, 2.01033439929228813265e-7};
  static const double f[8] = {1.0,
                              5.99832206555887937690e-1,
                              1.36929880922735805310e-1,
                              1.48753612908506148525e-2,
                              7.86869131145613259100e-4,
                              1.84631831751005468180e-5,
                              1.42151175831644588870e-7,
                              2.04426310338993978564e-15};
  const double q = p - 0.5;
  if (fabs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * polynomial(a, r) / polynomial(b, r);
  }
  const double r = sqrt(-portable_log(q < 0 ? p : 1 - p));
  const double x =
      r <= 5 ? polynomial(c, r - 1.6) / polynomial(d, r - 1.6) : polynomial(e, r - 5) / polynomial(f, r - 5);
  return q < 0 ? -x : x;
}

/* FNV-1a: a parameter's stream follows from its name, whatever stands beside it in the model. */
static uint64_t stream_of(const char *name) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (; *name; name++) hash = (hash ^ (unsigned char)*name) * UINT64_C(0x100000001b3);
  return hash;
}

typedef double (*Distribution)(double p);

/* The quantile of p, 0 < p < 1, of a uniform distribution over [-1, 1]. */
static double uniform_quantile(double p) { return 2 * p - 1; }

static void fill_random(Tensor *tensor, uint64_t seed, Distribution quantile, double scale) {
  float *data = tensor->data;
  const uint64_t stream = stream_of(tensor->name);
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  const int64_t count = tensor_elements(tensor);
  for (int64_t i = 0; i < count; i += 4) {
    const uint64_t block = (uint64_t)i / 4;
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    uint32_t words[4];
    philox(counter, key, words);
    for (int64_t k = 0; k < 4 && i + k < count; k++) {
      data[i + k] = (float)(scale * quantile((words[k] + 0.5) * 0x1p-32));
    }
  }
}

static void initialise(const Parameter *parameter, uint64_t seed, InitMode mode, Tensor *tensor) {
  const double fan_in = (double)(parameter->fan_in > 0 ? parameter->fan_in : 1);
  const bool is_random = parameter->dtype == DTYPE_F32 &&
                         (parameter->init == INIT_WEIGHT || (parameter->init == INIT_BIAS && mode == INIT_MODE_PYTORCH));
  if (parameter->inline_value) {
    memcpy(tensor->data, parameter->value->data, (size_t)tensor_bytes(tensor));
  } else if (is_random && mode == INIT_MODE_PYTORCH) {
    fill_random(tensor, seed, uniform_quantile, 1 / sqrt(fan_in));
  } else if (is_random) {
    fill_random(tensor, seed, normal_quantile, sqrt(2 / fan_in));
  } else if (parameter->init == INIT_ONE) {
    const int64_t count = tensor_elements(tensor);
    for (int64_t k = 0; k < count; k++) tensor_set(tensor, k, 1);
  }
}

void weights_initialise_as(const Graph *graph, uint64_t seed, InitMode mode, Arena *arena, TensorList *out_tensors) {
  out_tensors->items = arena_array(arena, graph->parameter_count, Tensor);
  out_tensors->count = graph->parameter_count;
  for (size_t i = 0; i < graph->parameter_count; i++) {
    const Parameter *parameter = &graph->parameters[i];
    out_tensors->items[i] = tensor_create(arena, parameter->name, parameter->dtype, parameter->shape);
    initialise(parameter, seed, mode, &out_tensors->items[i]);
  }
}

void weights_initialise(const Graph *graph, uint64_t seed, Arena *arena, TensorList *out_tensors) {
  weights_initialise_as(graph, seed, INIT_MODE_KAIMING, arena, out_tensors);
}
