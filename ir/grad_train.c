/* The ops that end a training step have no gradients: nothing is differentiated through an update. */
#include "grad.h"

#define NO_GRADIENT(name)                                                                    \
  bool grad_##name(GradContext *context, Node *node, Node *gradient, Node **out_gradients) { \
    (void)gradient;                                                                          \
    (void)out_gradients;                                                                     \
    return gradient_refuse(context, node, "it is the end of a training step");               \
  }

NO_GRADIENT(sgd_step)
NO_GRADIENT(adam_step)
NO_GRADIENT(sum_squares)
NO_GRADIENT(pack)
