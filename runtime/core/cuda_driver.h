/* The part of the CUDA driver API that Kiln uses, found in the driver at run time: nothing of CUDA is needed to build,
 * and nothing of it but the driver's library to run. Names, types and numbers follow the "CUDA Driver API" reference.
 */
#ifndef KILN_RUNTIME_CORE_CUDA_DRIVER_H
#define KILN_RUNTIME_CORE_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kiln_abi.h"

typedef int CuDevice;
typedef unsigned long long CuPointer; /* an address of the device */
typedef struct CUctx_st *CuContext;
typedef struct CUmod_st *CuModule;
typedef struct CUfunc_st *CuFunction;
typedef struct CUstream_st *CuStream;
typedef struct CUevent_st *CuEvent;
typedef struct CUgraph_st *CuGraph;
typedef struct CUgraphExec_st *CuGraphExec;

typedef enum CuResult {
  CU_SUCCESS = 0,
  CU_INVALID_VALUE = 1,
  CU_OUT_OF_MEMORY = 2,
  CU_NOT_INITIALIZED = 3,
  CU_NO_DEVICE = 100,
  CU_INVALID_DEVICE = 101,
  CU_INVALID_IMAGE = 200,
  CU_INVALID_CONTEXT = 201,
  CU_NO_BINARY_FOR_GPU = 209,
  CU_NOT_FOUND = 500,
  CU_NOT_READY = 600,
  CU_LAUNCH_OUT_OF_RESOURCES = 701,
  CU_LAUNCH_FAILED = 719,
  CU_STREAM_CAPTURE_INVALIDATED = 901,
  CU_RESULT_LARGEST = 0x7fffffff
} CuResult;

enum {
  CU_ATTRIBUTE_CLOCK_RATE = 13,
  CU_ATTRIBUTE_MULTIPROCESSORS = 16,
  CU_ATTRIBUTE_L2_BYTES = 38,
  CU_ATTRIBUTE_MAJOR = 75,
  CU_ATTRIBUTE_MINOR = 76,
  CU_ATTRIBUTE_SHARED_BYTES_OPTIN = 97,

  CU_FUNCTION_SHARED_BYTES = 1,
  CU_FUNCTION_LOCAL_BYTES = 3,
  CU_FUNCTION_REGISTERS = 4,
  CU_FUNCTION_MAX_DYNAMIC_SHARED_BYTES = 8,

  CU_POINTER_MEMORY_TYPE = 2,
  CU_MEMORY_DEVICE = 2,

  CU_JIT_ERROR_LOG_BUFFER = 5,
  CU_JIT_ERROR_LOG_BUFFER_BYTES = 6,

  CU_STREAM_NON_BLOCKING = 1,
  CU_CAPTURE_THREAD_LOCAL = 1
};

/* X(member, symbol, parameters): every function returns a CuResult. */
#define CUDA_DRIVER_FUNCTIONS(X)                                                                                       \
  X(init, cuInit, (unsigned flags))                                                                                    \
  X(driver_version, cuDriverGetVersion, (int *out_version))                                                            \
  X(device_count, cuDeviceGetCount, (int *out_count))                                                                  \
  X(device_get, cuDeviceGet, (CuDevice * out_device, int ordinal))                                                     \
  X(device_name, cuDeviceGetName, (char *name, int size, CuDevice device))                                             \
  X(device_memory, cuDeviceTotalMem_v2, (size_t * out_bytes, CuDevice device))                                         \
  X(device_attribute, cuDeviceGetAttribute, (int *out_value, int attribute, CuDevice device))                          \
  X(context_retain, cuDevicePrimaryCtxRetain, (CuContext * out_context, CuDevice device))                              \
  X(context_release, cuDevicePrimaryCtxRelease_v2, (CuDevice device))                                                  \
  X(context_push, cuCtxPushCurrent_v2, (CuContext context))                                                            \
  X(context_pop, cuCtxPopCurrent_v2, (CuContext * out_context))                                                        \
  X(module_load, cuModuleLoadDataEx,                                                                                   \
    (CuModule * out_module, const void *image, unsigned option_count, int *options, void **values))                    \
  X(module_unload, cuModuleUnload, (CuModule module))                                                                  \
  X(module_function, cuModuleGetFunction, (CuFunction * out_function, CuModule module, const char *name))              \
  X(function_set, cuFuncSetAttribute, (CuFunction function, int attribute, int value))                                 \
  X(function_get, cuFuncGetAttribute, (int *out_value, int attribute, CuFunction function))                            \
  X(memory_info, cuMemGetInfo_v2, (size_t * out_free, size_t * out_total))                                             \
  X(memory_allocate, cuMemAlloc_v2, (CuPointer * out_pointer, size_t size))                                            \
  X(memory_free, cuMemFree_v2, (CuPointer pointer))                                                                    \
  X(copy_to_device, cuMemcpyHtoDAsync_v2, (CuPointer to, const void *from, size_t size, CuStream stream))              \
  X(copy_to_host, cuMemcpyDtoHAsync_v2, (void *to, CuPointer from, size_t size, CuStream stream))                      \
  X(copy_on_device, cuMemcpyDtoDAsync_v2, (CuPointer to, CuPointer from, size_t size, CuStream stream))                \
  X(memory_fill, cuMemsetD8Async, (CuPointer to, unsigned char value, size_t size, CuStream stream))                   \
  X(pointer_attribute, cuPointerGetAttribute, (void *out_value, int attribute, CuPointer pointer))                     \
  X(stream_create, cuStreamCreate, (CuStream * out_stream, unsigned flags))                                            \
  X(stream_destroy, cuStreamDestroy_v2, (CuStream stream))                                                             \
  X(stream_synchronize, cuStreamSynchronize, (CuStream stream))                                                        \
  X(capture_begin, cuStreamBeginCapture_v2, (CuStream stream, int mode))                                               \
  X(capture_end, cuStreamEndCapture, (CuStream stream, CuGraph * out_graph))                                           \
  X(graph_instantiate, cuGraphInstantiateWithFlags, (CuGraphExec * out_exec, CuGraph graph, unsigned long long flags)) \
  X(graph_launch, cuGraphLaunch, (CuGraphExec exec, CuStream stream))                                                  \
  X(graph_exec_destroy, cuGraphExecDestroy, (CuGraphExec exec))                                                        \
  X(graph_destroy, cuGraphDestroy, (CuGraph graph))                                                                    \
  X(event_create, cuEventCreate, (CuEvent * out_event, unsigned flags))                                                \
  X(event_destroy, cuEventDestroy_v2, (CuEvent event))                                                                 \
  X(event_record, cuEventRecord, (CuEvent event, CuStream stream))                                                     \
  X(event_synchronize, cuEventSynchronize, (CuEvent event))                                                            \
  X(event_elapsed, cuEventElapsedTime, (float *out_milliseconds, CuEvent start, CuEvent end))                          \
  X(launch, cuLaunchKernel,                                                                                            \
    (CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,       \
     unsigned block_z, unsigned shared_bytes, CuStream stream, void **parameters, void **extra))                       \
  X(error_name, cuGetErrorName, (CuResult result, const char **out_name))                                              \
  X(error_text, cuGetErrorString, (CuResult result, const char **out_text))

typedef struct CudaDriver {
#define X(member, symbol, parameters) CuResult(*member) parameters;
  CUDA_DRIVER_FUNCTIONS(X)
#undef X
  int version; /* 13000: CUDA 13.0, the newest that the driver supports */
} CudaDriver;

/* What went wrong, for people. */
typedef struct CudaMessage {
  kiln_status status;
  char text[1000];
} CudaMessage;

/* Opens the driver ($KILN_CUDA_DRIVER, else libcuda.so.1; never libcuda.so, which may be a stub of the toolkit) and
 * initialises it; the first call does the work for all threads of the process. NULL when there is none or it finds no
 * GPU: *out_message says why, and that status is KILN_ERROR_UNSUPPORTED. */
const CudaDriver *cuda_driver(CudaMessage *out_message);

/* A message "WHAT: driver's text (NAME)"; always returns its status: MEMORY for CU_OUT_OF_MEMORY, else INTERNAL. */
kiln_status cuda_message(const CudaDriver *driver, CuResult result, CudaMessage *out_message, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
