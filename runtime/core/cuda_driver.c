#include "cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static CudaDriver loaded;
static CudaMessage failure; /* status KILN_OK: `loaded` is complete */

static bool find_functions(void *library, const char *name) {
#define X(member, symbol, parameters)                                                                           \
  {                                                                                                             \
    void *address = dlsym(library, #symbol);                                                                    \
    if (address == NULL) {                                                                                      \
      snprintf(failure.text, sizeof failure.text, "the CUDA driver %s has no function %s: it is too old", name, \
               #symbol);                                                                                        \
      return false;                                                                                             \
    }                                                                                                           \
    memcpy(&loaded.member, &address, sizeof address);                                                           \
  }
  CUDA_DRIVER_FUNCTIONS(X)
#undef X
  return true;
}

/* The library stays open until the process ends: drivers do not like to be unloaded. */
static void open_driver(void) {
  const char *given = getenv("KILN_CUDA_DRIVER");
  const char *name = given != NULL && given[0] != '\0' ? given : "libcuda.so.1";
  failure.status = KILN_ERROR_UNSUPPORTED;
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    const char *reason = dlerror();
    snprintf(failure.text, sizeof failure.text, "no CUDA driver: %s cannot be opened (%s)", name,
             reason != NULL ? reason : "unknown reason");
    return;
  }
  if (!find_functions(library, name)) return;
  CuResult result = loaded.init(0);
  if (result == CU_SUCCESS) result = loaded.driver_version(&loaded.version);
  int count = 0;
  if (result == CU_SUCCESS) result = loaded.device_count(&count);
  if (result == CU_SUCCESS && count == 0) result = CU_NO_DEVICE;
  if (result == CU_SUCCESS)
    failure.status = KILN_OK;
  else {
    cuda_message(&loaded, result, &failure, "the CUDA driver %s finds no GPU", name);
    failure.status = KILN_ERROR_UNSUPPORTED;
  }
}

const CudaDriver *cuda_driver(CudaMessage *out_message) {
  pthread_once(&once, open_driver);
  if (failure.status == KILN_OK) return &loaded;
  if (out_message != NULL) *out_message = failure;
  return NULL;
}

kiln_status cuda_message(const CudaDriver *driver, CuResult result, CudaMessage *out_message, const char *format, ...) {
  const kiln_status status = result == CU_OUT_OF_MEMORY ? KILN_ERROR_MEMORY : KILN_ERROR_INTERNAL;
  if (out_message == NULL) return status;
  const char *name = NULL, *text = NULL;
  if (driver->error_name(result, &name) != CU_SUCCESS || name == NULL) name = "unknown error";
  if (driver->error_text(result, &text) != CU_SUCCESS || text == NULL) text = "no description";
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(out_message->text, sizeof out_message->text, format, arguments);
  va_end(arguments);
  size_t used = length < 0                                  ? 0
                : (size_t)length < sizeof out_message->text ? (size_t)length
                                                            : sizeof out_message->text - 1;
  snprintf(out_message->text + used, sizeof out_message->text - used, ": %s (%s, %d)", text, name, (int)result);
  out_message->status = status;
  return status;
}
