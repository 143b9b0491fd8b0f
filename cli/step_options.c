#include "step_options.h"

#include <string.h>

static bool find_word(Tool *tool, const char *option, const char *given, const char *const *words, size_t count,
                      size_t *out_index) {
  Text list;
  text_init(&list, tool->arena);
  for (size_t i = 0; i < count; i++) {
    if (given == NULL || strcmp(words[i], given) == 0) {
      *out_index = i;
      return true;
    }
    text_format(&list, "%s%s", i == 0 ? "" : i + 1 == count ? " or " : ", ", words[i]);
  }
  tool_usage_error(tool, "%s: expected %s, found '%s'", option, list.data, given);
  return false;
}

bool step_request(Tool *tool, const StepOptions *options, const Graph *graph, const TrainRequest **out_request) {
  static const char *const losses[] = {"cross_entropy", "mse", "bce_with_logits"};
  static const char *const optimizers[] = {"sgd", "adam"};
  static const kiln_loss loss_values[] = {KILN_LOSS_CROSS_ENTROPY, KILN_LOSS_MSE, KILN_LOSS_BCE_WITH_LOGITS};
  *out_request = NULL;
  if (!options->train) {
    if (!options->optimizer && !options->loss && !options->of && !options->nesterov && !options->clip &&
        !options->accumulate && options->memory_limit == 0)
      return true;
    tool_usage_error(tool, "options of a training step need --train");
    return false;
  }
  size_t loss = 0, optimizer = 0;
  if (!find_word(tool, "--loss", options->loss, losses, 3, &loss) ||
      !find_word(tool, "--optimizer", options->optimizer, optimizers, 2, &optimizer))
    return false;
  const kiln_train_options train = {.loss = options->loss != NULL ? loss_values[loss] : KILN_LOSS_DESCRIBED,
                                    .optimizer = optimizer == 1 ? KILN_OPTIMIZER_ADAM : KILN_OPTIMIZER_SGD,
                                    .output = options->of,
                                    .nesterov = options->nesterov,
                                    .clip = options->clip,
                                    .accumulate = options->accumulate,
                                    .memory_limit = options->memory_limit};
  TrainRequest *request = arena_new(tool->arena, TrainRequest);
  *out_request = request;
  return train_request(graph, &train, tool->diag, request);
}
