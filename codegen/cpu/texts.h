/* Files of the source tree that the compiler carries along, as C strings. The build makes them from the files named
 * in CMakeLists.txt. */
#ifndef KILN_CODEGEN_CPU_TEXTS_H
#define KILN_CODEGEN_CPU_TEXTS_H

extern const char text_kiln_abi[];  /* include/kiln_abi.h */
extern const char text_entry[];     /* codegen/cpu/entry.ll */
extern const char text_entry_x86[]; /* codegen/cpu/entry_x86.ll */
extern const char text_prelude_device[]; /* codegen/cuda/prelude_device.h */
extern const char text_prelude_common[]; /* codegen/cuda/prelude_common.h */

#endif
