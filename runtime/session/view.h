/* Reading values where a program keeps them: see kiln_view. */
#ifndef KILN_RUNTIME_SESSION_VIEW_H
#define KILN_RUNTIME_SESSION_VIEW_H

#include "kiln_abi.h"
#include "tensor.h"

/* The element at `index`, in elements from the step's output. */
static inline int64_t view_offset(const kiln_view *view, const int64_t *index) {
  int64_t offset = view->origin;
  for (uint32_t d = 0; d < view->rank; d++) {
    int64_t position = index[d];
    if (view->block > 1 && d == view->block_dim) {
      offset += position % view->block;
      position /= view->block;
    }
    offset += position * view->stride[d];
  }
  return offset;
}

static inline double view_read(const kiln_view *view, const void *data, int64_t offset) {
  if (view->dtype == KILN_I64) return (double)((const int64_t *)data)[offset];
  if (view->dtype == KILN_BF16) return bfloat_to_double(((const uint16_t *)data)[offset]);
  if (view->dtype == KILN_F16) return half_to_double(((const uint16_t *)data)[offset]);
  return (double)((const float *)data)[offset];
}

#endif
