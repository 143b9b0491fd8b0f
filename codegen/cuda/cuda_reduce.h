/* Sums and maxima over some dimensions of a value, for all kernels that need one.
 *
 * Results never depend on timing: a block adds up a fixed share of the elements in a fixed order, and where several
 * blocks work on one result, a second launch combines their parts in order. Sums are kept in f64. */
#ifndef KILN_CODEGEN_CUDA_CUDA_REDUCE_H
#define KILN_CODEGEN_CUDA_CUDA_REDUCE_H

#include "cuda_emit.h"

enum { REDUCE_MAX_TOTALS = 2 };

typedef struct Reduction {
  const PlanKernel *kernel;
  const char *name;    /* of the functions: "k_mean" gives k_mean, or k_mean_parts and k_mean */
  const PlanTensor *x; /* over whose elements it runs */
  bool reduced[SHAPE_MAX_RANK];
  int32_t totals; /* how many are made at once */
  bool maximum;   /* of f32, NaN wins; else sums */
  /* An expression of what the element at `index` (one per dimension of x) adds to total k; may add statements. */
  const char *(*term)(CudaEmit *emit, void *context, int depth, int32_t k, const char *const *index);
  /* Statements that store what follows from the totals (names) of the result at `index`; those of reduced dimensions
   * are NULL. */
  void (*finish)(CudaEmit *emit, void *context, int depth, const char *const *totals, const char *const *index);
  void *context;
} Reduction;

void cuda_reduce(CudaEmit *emit, const Reduction *reduction);
/* An expression for the number of elements that make up one result, as a double. */
const char *cuda_reduced_count(CudaEmit *emit, const Reduction *reduction);
/* Statements that apply the kernel's epilogue to the float `value` at `index` of the output and store it. */
void cuda_store(CudaEmit *emit, int depth, const PlanKernel *kernel, const char *value, const char *const *index);
/* Sets reduced[] from a list of dimensions; none: all but the first. */
void cuda_reduced_dims(const IntList *dims, int32_t rank, bool reduced[SHAPE_MAX_RANK]);
/* adaptive_avg_pool2d or adaptive_max_pool2d with one window. */
bool cuda_pool_all(CudaEmit *emit, const PlanKernel *kernel, bool maximum);

#endif
