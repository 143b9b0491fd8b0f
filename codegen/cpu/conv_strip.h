/* Convolutions with a max pool behind them, in strips: see passes/pools.c and StripWork of ir/work.h. */
#ifndef KILN_CODEGEN_CPU_CONV_STRIP_H
#define KILN_CODEGEN_CPU_CONV_STRIP_H

#include "conv.h"
#include "work.h"

typedef struct ConvStrip {
  StripWork work;
  PlanTensor
      rows; /* the convolution's value with the strides of a strip: of one image, row 0 is the first that is kept */
  int64_t place; /* elements from the start of scratch memory */
  int64_t elements;
  EmitRoutine pool; /* a part of the kernel: image, strip */
} ConvStrip;

/* Requires a kernel with a pool. The strip has no place yet. False after a report. */
bool strip_init(ConvStrip *strip, const PlanKernel *kernel, Diag *diag);
/* Address that the row of the strip number `number` of an image which has number `row` in the image, at column `x` of
 * block `block`, has. */
Value strip_address(Emit *emit, const ConvStrip *strip, Value number, Value block, Value row, Value x);
/* The last rows of the strip before become those that are kept. */
void strip_keep(Emit *emit, const ConvStrip *strip);
/* Makes the part `pool`. */
void strip_pool_part(Emit *emit, ConvStrip *strip);

/* Rows [begin, end) of the pool's output, halo included, of the convolution's rows: `source` is where row 0, column 0,
 * block 0 of the image would be. */
void pool_strip(Emit *emit, const PlanTensor *rows, Value source, Value image, Value begin, Value end);

#endif
