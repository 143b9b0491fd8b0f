/* What cuda_program.c and cuda_run.c share. */
#ifndef KILN_RUNTIME_CORE_CUDA_PROGRAM_H
#define KILN_RUNTIME_CORE_CUDA_PROGRAM_H

#include "cuda_run.h"

struct CudaProgram {
  Allocator allocator;
  const CudaTables *tables;
  const CudaDriver *driver;
  CuDevice device;
  CuContext context;
  bool retained;
  CuModule *modules;
  CuFunction *functions; /* of all launches, in order */
  size_t *first;         /* by step, prepare steps first: index of its first launch */
  size_t launch_count;
  CuPointer prepared;
  CuPointer *parameters; /* those that run steps read, in table order */
  bool ready;            /* has weights */
};

/* Where the spaces of operands begin. */
typedef struct Bases {
  CuPointer workspace, prepared, temporary; /* temporary: of the prepare steps */
  const CuPointer *parameters, *states;     /* states come first where they are not 0; may be NULL */
  const CuPointer *inputs, *outputs;
  CuPointer scratch;
} Bases;

/* --- memory of the host -------------------------------------------------------------------------------- */
/* Zeroed; NULL when there is none. */
void *cuda_host_allocate(const Allocator *allocator, size_t size);
void cuda_host_release(const Allocator *allocator, void *memory, size_t size);

/* --- outcomes: each sets the message and returns its status -------------------------------------------- */
kiln_status cuda_fail(CudaMessage *out_message, kiln_status status, const char *text);
kiln_status cuda_out_of_memory(CudaMessage *out_message);

/* --- the device ------------------------------------------------------------------------------------------ */
/* Makes the program's context the thread's; the host's thread may have one of its own, which it gets back. */
kiln_status cuda_enter(const CudaProgram *program, CudaMessage *out_message);
void cuda_leave(const CudaProgram *program);
kiln_status cuda_device_allocate(const CudaProgram *program, CuPointer *out_pointer, int64_t size, const char *what,
                                 CudaMessage *out_message);
void cuda_device_release(const CudaProgram *program, CuPointer *pointer);
/* Waits for a stream; `what` failed when there is an error. */
kiln_status cuda_synchronize(const CudaProgram *program, CuStream stream, const char *what, CudaMessage *out_message);
/* Copies a parameter's value to *pointer, which is allocated when it is 0. */
kiln_status cuda_upload(const CudaProgram *program, CuPointer *pointer, const kiln_port *port, const void *data,
                        CuStream stream, CudaMessage *out_message);
/* Device memory for kernels' scratch, its counters zero; *out_scratch is 0 when no kernel needs any. */
kiln_status cuda_create_scratch(const CudaProgram *program, CuStream stream, CuPointer *out_scratch,
                                CudaMessage *out_message);

/* --- steps: those that prepare, then those that run ------------------------------------------------------ */
size_t cuda_step_total(const kiln_program *program);
const kiln_step *cuda_step_at(const kiln_program *program, size_t index);
/* 0 when it has no memory. */
CuPointer cuda_operand_address(const kiln_operand *operand, const Bases *bases, int64_t batch);
kiln_status cuda_launch_step(const CudaProgram *program, size_t index, const Bases *bases, int64_t batch,
                             CuStream stream, CudaMessage *out_message);

#endif
