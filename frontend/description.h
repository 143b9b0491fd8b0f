/* Descriptions (format 1, see frontend/FORMAT.md) to graphs. */
#ifndef KILN_FRONTEND_DESCRIPTION_H
#define KILN_FRONTEND_DESCRIPTION_H

#include "graph.h"

/* A change of an input's shape given by the user: `--shape image=1x3x352x352`. dims[0] may be DIM_BATCH. */
typedef struct ShapeOverride {
  const char *input;
  Shape shape;
} ShapeOverride;

typedef struct ImportOptions {
  const ShapeOverride *shapes;
  size_t shape_count;
} ImportOptions;

/* Reads and checks a description. The graph it makes is verified and has all shapes inferred; parameters are
 * declared with their shapes, initialisation and PyTorch names. All mistakes are reported, up to the limit. */
bool description_read(const char *path, const ImportOptions *options, Arena *arena, Diag *diag, Graph **out_graph);
bool description_parse(const char *file, const char *text, size_t size, const ImportOptions *options, Arena *arena,
                       Diag *diag, Graph **out_graph);

/* Binds tensors to the graph's parameters by name: sets Parameter.value. Reports missing names, and wrong shapes
 * or types with both; f16, bf16 and f64 are converted to f32. Names in the file that the graph does not know are
 * listed in one warning, except `num_batches_tracked`. With `allow_missing`, parameters without a tensor stay unbound;
 * those with a value in the description may be missing in any case. `tensors` must live as long as the graph. */
bool weights_bind(Graph *graph, const TensorList *tensors, const char *file, bool allow_missing, Diag *diag);
/* Initial values for all parameters: same seed, same bytes on every machine (Philox4x32-10).
 * Kaiming (He et al., arXiv 1502.01852): weights normal with standard deviation sqrt(2 / fan_in), biases and
 * running means 0, batch-norm weights and running variances 1. */
void weights_initialise(const Graph *graph, uint64_t seed, Arena *arena, TensorList *out_tensors);

typedef enum InitMode {
  INIT_MODE_KAIMING, /* as weights_initialise */
  INIT_MODE_PYTORCH  /* PyTorch's default of convolutions and linear layers: weights and biases uniform over ±1/sqrt(fan_in)
                        (kaiming_uniform_ with a = sqrt(5)); batch norms as above */
} InitMode;

void weights_initialise_as(const Graph *graph, uint64_t seed, InitMode mode, Arena *arena, TensorList *out_tensors);

#endif
