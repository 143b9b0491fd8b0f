/* What stands behind the entry points of a library that `kiln compile --target cuda` makes: with cuda_run.c and
 * cuda_driver.c one object that is linked into every such library. It needs the C library and, at run time, the driver.
 */
#ifndef KILN_RUNTIME_CORE_CUDA_LIBRARY_H
#define KILN_RUNTIME_CORE_CUDA_LIBRARY_H

#include "cuda_run.h"

/* A library as data; kiln_program.embedded points at it in programs for GPUs. */
typedef struct CudaLibrary {
  const CudaTables *tables;
  const unsigned char *embedded;   /* values of the parameters, or NULL */
  const int64_t *embedded_offsets; /* by parameter, from there; negative: no step reads it. NULL with `embedded` */
} CudaLibrary;

/* The triple of programs for GPUs begins with this. */
#define CUDA_TRIPLE "nvptx64"

/* Pointers to the embedded values in out_parameters[parameter_count]; false when there are none. */
bool cuda_library_parameters(const CudaLibrary *library, const void **out_parameters);

/* The entry points, each a kiln_status. Weights are on GPU 0: `prepared` of *out_weights is not memory of theirs. */
int kiln_cuda_weights_embedded(const CudaLibrary *library, kiln_weights *out_weights);
int kiln_cuda_weights_prepare(const CudaLibrary *library, kiln_weights *out_weights, const void *const *parameters);
/* Frees what the weights and all runs with them have taken. */
void kiln_cuda_weights_release(kiln_weights *weights);
/* `workspace` only tells runs that go on at the same time apart; nothing is read or written there. */
int kiln_cuda_run(const CudaLibrary *library, const kiln_weights *weights, void *workspace, const kiln_io *io);
/* A run of a training step. `state` points at the addresses of the parameters that it changes, which come first in the
 * table: in memory of the device used in place, else copied there before the step and back after it. */
int kiln_cuda_step(const CudaLibrary *library, const kiln_weights *weights, void *const *state, void *workspace,
                   const kiln_io *io);
/* The reason of this thread's last failure; "" when there was none. */
const char *kiln_cuda_message(void);

#endif
