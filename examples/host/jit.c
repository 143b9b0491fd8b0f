/* A host program that compiles a description in memory and runs it: uses kiln.h and libkiln.
 *
 *   cc jit.c $(pkg-config --cflags --libs kiln) -o jit
 *   ./jit model.json weights.safetensors [threads]
 *
 * Feeds the same made-up image as compiled.c and prints every output value with all its digits, so that the two can be
 * compared. */
#include <stdio.h>
#include <stdlib.h>

#include <kiln.h>

static int failed(const char *what, const kiln_error *error) {
  fprintf(stderr, "%s: %s\n", what, error->message);
  return 1;
}

static void log_line(void *context, kiln_log_level level, const char *message) {
  (void)context;
  fprintf(stderr, "[%s] %s\n", level == KILN_LOG_WARNING ? "warning" : "info", message);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "Usage: jit MODEL.json WEIGHTS.safetensors [THREADS]\n");
    return 2;
  }
  kiln_host host = {.log = log_line};
  kiln_error error;
  kiln_model *model = NULL;
  kiln_executable *executable = NULL;
  kiln_context *context = NULL;

  if (kiln_model_load(&host, argv[1], NULL, &model, &error)) return failed(argv[1], &error);
  if (kiln_model_load_weights(model, argv[2], &error)) return failed(argv[2], &error);
  kiln_compile_options options = {.max_batch = 2};
  if (kiln_compile(model, &options, &executable, &error)) return failed("compile", &error);
  kiln_model_destroy(model); /* the executable does not need it */

  kiln_context_options run_options = {.threads = argc > 3 ? (uint32_t)atoi(argv[3]) : 1};
  if (kiln_context_create(executable, &run_options, &context, &error)) return failed("context", &error);

  const kiln_program *program = kiln_executable_program(executable);
  const int64_t batch = 2;
  size_t input_floats = (size_t)(program->inputs[0].bytes * batch) / sizeof(float);
  size_t output_floats = (size_t)(program->outputs[0].bytes * batch) / sizeof(float);
  float *input = malloc(input_floats * sizeof *input), *output = malloc(output_floats * sizeof *output);
  if (input == NULL || output == NULL) return 1;
  for (size_t i = 0; i < input_floats; i++) input[i] = (float)(i * 37 % 101) / 100.0f;

  const void *inputs[] = {input};
  void *outputs[] = {output};
  if (kiln_run(context, batch, inputs, outputs, &error)) return failed("run", &error);
  for (size_t i = 0; i < output_floats; i++) printf("%.9g\n", output[i]);

  free(input);
  free(output);
  kiln_context_destroy(context);
  kiln_executable_destroy(executable);
  return 0;
}
