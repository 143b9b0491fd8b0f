/* The outcome of operations that can fail for reasons outside the input's text. The numbers are part of the
 * public ABI (include/kiln_abi.h, KILN_STATUS_*) and never change. */
#ifndef KILN_IR_BASE_STATUS_H
#define KILN_IR_BASE_STATUS_H

#include "kiln_abi.h"

typedef kiln_status Status;

#endif
