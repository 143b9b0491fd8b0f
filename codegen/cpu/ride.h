/* Reductions that ride in the kernel of their input (PlanKernel.reductions). A kernel that can take them along calls
 * these functions at fixed points; without reductions they do nothing, and no code comes of them.
 *
 *   ride_begin                      before the loop over items
 *     ride_item                       an item begins
 *       … emit_epilogue …               makes values
 *       ride_take                       where all values that were made since the last time are at hand
 *       ride_row                        now and then
 *     ride_item_end                   the item is done
 *
 * What a reduction does with values is said by the functions of its op: see ride.c. */
#ifndef KILN_CODEGEN_CPU_RIDE_H
#define KILN_CODEGEN_CPU_RIDE_H

#include "emit.h"

/* `scratch_bytes`: what the kernel itself uses of its scratch memory. `vectors`: how many at most are taken between
 * two calls of ride_row. Returns the scratch memory of both. */
int64_t ride_begin(Emit *emit, int64_t scratch_bytes, int64_t vectors);
void ride_item(Emit *emit);
/* A value as it is stored, in 1 or the output's vector's lanes: called by emit_epilogue. */
void ride_note(Emit *emit, Value value, int32_t lanes);
/* Takes up what was noted. `block`: the block of channels to which all of it belongs, when the output is blocked. */
void ride_take(Emit *emit, Value block);
void ride_row(Emit *emit);
/* `item`: its number in the kernel. */
void ride_item_end(Emit *emit, Value item);

#endif
