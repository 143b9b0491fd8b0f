/* libfake_cuda.so: the functions of the CUDA driver that Kiln uses, over the emulator. Device memory is host memory
 * between guard zones. Work of a stream waits until somebody synchronises with it, as on a device, so that a host that
 * does not wait sees the old values. One lock makes the whole interface safe to call from several threads. */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "blocks.h"
#include "core/cuda_driver.h"

#define EXPORT __attribute__((visibility("default")))

enum {
  GUARD_BYTES = 16384,
  GUARD_VALUE = 0xff,
  POISON_VALUE = 0xff,
  TOTAL_MEMORY_SHIFT = 33,
  MODULE_MAX_KERNELS = 256
};

typedef struct Allocation {
  char *memory; /* of the user's part; guards before and after */
  size_t size;
  struct Allocation *next;
} Allocation;

typedef enum CommandKind {
  COMMAND_TO_DEVICE,
  COMMAND_TO_HOST,
  COMMAND_FILL,
  COMMAND_RECORD,
  COMMAND_LAUNCH
} CommandKind;

typedef struct Command {
  CommandKind kind;
  void *to;
  const void *from;
  size_t size;
  unsigned char value;
  bool owned; /* `from` is a copy made for this command */
  CuEvent event;
  CuFunction function;
  unsigned grid[3], threads, shared_bytes;
  char *arguments; /* values one after the other, each in 8 bytes */
} Command;

typedef struct CommandList {
  Command *items;
  size_t count, capacity;
} CommandList;

struct CUctx_st {
  int device;
};
struct CUfunc_st {
  const EmulatorKernel *kernel;
  struct CUmod_st *module;
  int max_dynamic_shared;
};
struct CUmod_st {
  void *library;
  char *shared_begin, *shared_end;
  struct CUfunc_st functions[MODULE_MAX_KERNELS];
};
struct CUstream_st {
  CommandList commands;
  bool capturing;
  struct CUgraph_st *graph;
};
struct CUevent_st {
  bool recorded;
  double seconds;
  CuStream stream;
};
struct CUgraph_st {
  CommandList commands;
};
struct CUgraphExec_st {
  CommandList commands;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Allocation *allocations;
static bool initialized;
static CuResult sticky;                      /* a failed kernel ruins the context */
static char sticky_text[1200], refusal[200]; /* refusal: of the last launch that was refused */
static _Thread_local int context_depth;
static struct CUctx_st primary;
static int retained;

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static CuResult ruin(const char *format, ...) __attribute__((format(printf, 1, 2)));
static CuResult ruin(const char *format, ...) {
  if (sticky != CU_SUCCESS) return sticky;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(sticky_text, sizeof sticky_text, format, arguments);
  va_end(arguments);
  return sticky = CU_LAUNCH_FAILED;
}

/* --- memory ------------------------------------------------------------------------------------------ */

static Allocation *find_allocation(const void *pointer, size_t size) {
  for (Allocation *at = allocations; at != NULL; at = at->next)
    if ((const char *)pointer >= at->memory && (const char *)pointer + size <= at->memory + at->size) return at;
  return NULL;
}

/* Offset from the allocation of the first byte of a guard that has changed, or 0 when none has. */
static long broken_guard(const Allocation *allocation) {
  for (long i = 1; i <= GUARD_BYTES; i++)
    if ((unsigned char)allocation->memory[-i] != GUARD_VALUE) return -i;
  for (size_t i = 0; i < GUARD_BYTES; i++)
    if ((unsigned char)allocation->memory[allocation->size + i] != GUARD_VALUE) return (long)(allocation->size + i);
  return 0;
}

static void check_guards(const char *who) {
  static unsigned char expected[GUARD_BYTES];
  if (expected[0] != GUARD_VALUE) memset(expected, GUARD_VALUE, sizeof expected);
  for (const Allocation *at = allocations; at != NULL; at = at->next) {
    if (memcmp(at->memory - GUARD_BYTES, expected, GUARD_BYTES) == 0 &&
        memcmp(at->memory + at->size, expected, GUARD_BYTES) == 0)
      continue;
    long offset = broken_guard(at);
    if (offset < 0)
      ruin("%s wrote %ld bytes before a buffer of %zu bytes", who, -offset, at->size);
    else
      ruin("%s wrote %ld bytes past the end of a buffer of %zu bytes", who, offset - (long)at->size, at->size);
    return;
  }
}

static CuResult allocate(CuPointer *out_pointer, size_t size) {
  if (size == 0) return CU_INVALID_VALUE;
  if (size > (size_t)1 << TOTAL_MEMORY_SHIFT) return CU_OUT_OF_MEMORY;
  size_t total = size + 2 * GUARD_BYTES;
  char *memory = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return CU_OUT_OF_MEMORY;
  Allocation *allocation = malloc(sizeof *allocation);
  if (allocation == NULL) {
    munmap(memory, total);
    return CU_OUT_OF_MEMORY;
  }
  memset(memory, GUARD_VALUE, GUARD_BYTES);
  memset(memory + GUARD_BYTES, POISON_VALUE, size);
  memset(memory + GUARD_BYTES + size, GUARD_VALUE, GUARD_BYTES);
  *allocation = (Allocation){memory + GUARD_BYTES, size, allocations};
  allocations = allocation;
  *out_pointer = (CuPointer)(uintptr_t)allocation->memory;
  return CU_SUCCESS;
}

static CuResult release(CuPointer pointer) {
  check_guards("somebody");
  for (Allocation **at = &allocations; *at != NULL; at = &(*at)->next) {
    Allocation *allocation = *at;
    if ((CuPointer)(uintptr_t)allocation->memory != pointer) continue;
    *at = allocation->next;
    munmap(allocation->memory - GUARD_BYTES, allocation->size + 2 * GUARD_BYTES);
    free(allocation);
    return sticky;
  }
  return CU_INVALID_VALUE;
}

/* --- commands ---------------------------------------------------------------------------------------- */

static void add_command(CommandList *list, const Command *command) {
  if (list->count == list->capacity) {
    list->capacity = list->capacity > 0 ? 2 * list->capacity : 64;
    list->items = realloc(list->items, list->capacity * sizeof *list->items);
  }
  list->items[list->count++] = *command;
}

static void free_commands(CommandList *list) {
  for (size_t i = 0; i < list->count; i++) {
    free(list->items[i].arguments);
    if (list->items[i].owned) free((void *)(uintptr_t)list->items[i].from);
  }
  free(list->items);
  *list = (CommandList){NULL, 0, 0};
}

static Command copy_command(const Command *command) {
  Command copy = *command;
  if (command->arguments != NULL) {
    size_t size = 8 * (size_t)command->function->kernel->argument_count + 8;
    copy.arguments = malloc(size);
    memcpy(copy.arguments, command->arguments, size);
  }
  if (command->owned) {
    void *data = malloc(command->size + 1);
    memcpy(data, command->from, command->size);
    copy.from = data;
  }
  return copy;
}

static void copy_commands(CommandList *to, const CommandList *from) {
  for (size_t i = 0; i < from->count; i++) {
    Command copy = copy_command(&from->items[i]);
    add_command(to, &copy);
  }
}

static void run_launch(const Command *command) {
  void *arguments[64];
  const CuFunction function = command->function;
  for (int i = 0; i < function->kernel->argument_count; i++) arguments[i] = command->arguments + 8 * i;
  const BlockLaunch launch = {.kernel = function->kernel,
                              .arguments = arguments,
                              .grid = {command->grid[0], command->grid[1], command->grid[2]},
                              .threads = (int)command->threads,
                              .shared_begin = function->module->shared_begin,
                              .shared_end = function->module->shared_end,
                              .dynamic_shared = command->shared_bytes};
  const char *wrong = blocks_run(&launch);
  if (wrong != NULL) ruin("%s", wrong);
  check_guards(function->kernel->name);
}

static void run_command(const Command *command) {
  if (sticky != CU_SUCCESS) return;
  switch (command->kind) {
    case COMMAND_TO_DEVICE:
    case COMMAND_TO_HOST:
      memmove(command->to, command->from, command->size);
      break;
    case COMMAND_FILL:
      memset(command->to, command->value, command->size);
      break;
    case COMMAND_RECORD:
      command->event->recorded = true;
      command->event->seconds = seconds_now();
      break;
    case COMMAND_LAUNCH:
      run_launch(command);
      break;
  }
}

static void run_stream(CuStream stream) {
  CommandList commands = stream->commands;
  stream->commands = (CommandList){NULL, 0, 0};
  for (size_t i = 0; i < commands.count; i++) run_command(&commands.items[i]);
  free_commands(&commands);
}

static CuResult enqueue(CuStream stream, const Command *command) {
  if (stream == NULL || context_depth == 0) return CU_INVALID_CONTEXT;
  if (sticky != CU_SUCCESS) return sticky;
  add_command(stream->capturing ? &stream->graph->commands : &stream->commands, command);
  return CU_SUCCESS;
}

/* --- the interface ----------------------------------------------------------------------------------- */

#define X(member, symbol, parameters) CuResult symbol parameters;
CUDA_DRIVER_FUNCTIONS(X)
#undef X

/* KILN_EMULATOR_DEVICES=0 stands for a driver that finds no GPU. */
static int device_count(void) {
  const char *count = getenv("KILN_EMULATOR_DEVICES");
  return count != NULL ? atoi(count) : 1;
}

EXPORT CuResult cuInit(unsigned flags) {
  if (flags != 0) return CU_INVALID_VALUE;
  if (device_count() == 0) return CU_NO_DEVICE;
  initialized = true;
  return CU_SUCCESS;
}

EXPORT CuResult cuDriverGetVersion(int *out_version) {
  *out_version = 13000;
  return CU_SUCCESS;
}

EXPORT CuResult cuDeviceGetCount(int *out_count) {
  if (!initialized) return CU_NOT_INITIALIZED;
  *out_count = device_count();
  return CU_SUCCESS;
}

EXPORT CuResult cuDeviceGet(CuDevice *out_device, int ordinal) {
  if (ordinal < 0 || ordinal >= device_count()) return CU_INVALID_DEVICE;
  *out_device = ordinal;
  return CU_SUCCESS;
}

EXPORT CuResult cuDeviceGetName(char *name, int size, CuDevice device) {
  snprintf(name, (size_t)size, "Emulated GPU %d", device);
  return CU_SUCCESS;
}

EXPORT CuResult cuDeviceTotalMem_v2(size_t *out_bytes, CuDevice device) {
  (void)device;
  *out_bytes = (size_t)1 << TOTAL_MEMORY_SHIFT;
  return CU_SUCCESS;
}

/* KILN_EMULATOR_ARCH=80 makes another card of it. */
static int architecture(void) {
  const char *arch = getenv("KILN_EMULATOR_ARCH");
  return arch != NULL && atoi(arch) >= 50 ? atoi(arch) : 90;
}

EXPORT CuResult cuDeviceGetAttribute(int *out_value, int attribute, CuDevice device) {
  (void)device;
  switch (attribute) {
    case CU_ATTRIBUTE_CLOCK_RATE:
      *out_value = 1000000;
      return CU_SUCCESS;
    case CU_ATTRIBUTE_MULTIPROCESSORS:
      *out_value = 132;
      return CU_SUCCESS;
    case CU_ATTRIBUTE_L2_BYTES:
      *out_value = 50 << 20;
      return CU_SUCCESS;
    case CU_ATTRIBUTE_MAJOR:
      *out_value = architecture() / 10;
      return CU_SUCCESS;
    case CU_ATTRIBUTE_MINOR:
      *out_value = architecture() % 10;
      return CU_SUCCESS;
    case CU_ATTRIBUTE_SHARED_BYTES_OPTIN:
      *out_value = SHARED_LIMIT;
      return CU_SUCCESS;
  }
  return CU_INVALID_VALUE;
}

EXPORT CuResult cuDevicePrimaryCtxRetain(CuContext *out_context, CuDevice device) {
  if (!initialized) return CU_NOT_INITIALIZED;
  pthread_mutex_lock(&lock);
  primary.device = device;
  retained++;
  pthread_mutex_unlock(&lock);
  *out_context = &primary;
  return CU_SUCCESS;
}

/* The last release destroys the context, and with it what made it unusable. */
EXPORT CuResult cuDevicePrimaryCtxRelease_v2(CuDevice device) {
  (void)device;
  pthread_mutex_lock(&lock);
  CuResult result = retained > 0 ? CU_SUCCESS : CU_INVALID_CONTEXT;
  if (retained > 0 && --retained == 0) sticky = CU_SUCCESS;
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT CuResult cuCtxPushCurrent_v2(CuContext context) {
  if (context != &primary) return CU_INVALID_CONTEXT;
  context_depth++;
  return CU_SUCCESS;
}

EXPORT CuResult cuCtxPopCurrent_v2(CuContext *out_context) {
  if (context_depth == 0) return CU_INVALID_CONTEXT;
  context_depth--;
  *out_context = &primary;
  return CU_SUCCESS;
}

/* --- modules */

/* The size of an ELF file whose section headers stand last, as linkers write them. */
static size_t elf_size(const unsigned char *image) {
  uint64_t headers;
  uint16_t size, count;
  memcpy(&headers, image + 0x28, sizeof headers);
  memcpy(&size, image + 0x3a, sizeof size);
  memcpy(&count, image + 0x3c, sizeof count);
  return headers + (size_t)size * count;
}

static int digit_value(char digit) { return digit <= '9' ? digit - '0' : digit - 'a' + 10; }

static void *open_image(const void *image) {
  static const char text[] = "// fake PTX\n";
  /* a name of its own for each: the dynamic linker takes equal names for the same library */
  const char *root = getenv("TMPDIR");
  char path[256];
  snprintf(path, sizeof path, "%.200s/kiln-module-XXXXXX", root != NULL && root[0] == '/' ? root : "/tmp");
  int file = mkostemp(path, O_CLOEXEC);
  if (file < 0) return NULL;
  bool written = false;
  if (memcmp(image, "\177ELF", 4) == 0) {
    const size_t size = elf_size(image);
    written = write(file, image, size) == (ssize_t)size;
  } else if (strncmp(image, text, strlen(text)) == 0) {
    const char *digits = (const char *)image + strlen(text);
    const size_t size = strlen(digits) / 2;
    char *bytes = malloc(size + 1);
    for (size_t i = 0; i < size; i++)
      bytes[i] = (char)(digit_value(digits[2 * i]) << 4 | digit_value(digits[2 * i + 1]));
    written = write(file, bytes, size) == (ssize_t)size;
    free(bytes);
  }
  close(file);
  void *library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
  unlink(path);
  return library;
}

EXPORT CuResult cuModuleLoadDataEx(CuModule *out_module, const void *image, unsigned option_count, int *options,
                                   void **values) {
  (void)option_count, (void)options, (void)values;
  if (context_depth == 0) return CU_INVALID_CONTEXT;
  pthread_mutex_lock(&lock);
  void *library = open_image(image);
  pthread_mutex_unlock(&lock);
  if (library == NULL) return CU_INVALID_IMAGE;
  KilnEmulator **pointer = dlsym(library, EMULATOR_POINTER_SYMBOL);
  const EmulatorKernel *kernels = dlsym(library, EMULATOR_KERNELS_SYMBOL);
  EmulatorShared *shared;
  void *address = dlsym(library, EMULATOR_SHARED_SYMBOL);
  memcpy(&shared, &address, sizeof shared);
  if (pointer == NULL || kernels == NULL || shared == NULL) {
    dlclose(library);
    return CU_INVALID_IMAGE;
  }
  *pointer = blocks_emulator();
  CuModule module = calloc(1, sizeof *module);
  module->library = library;
  shared(&module->shared_begin, &module->shared_end);
  for (int i = 0; kernels[i].name != NULL && i < MODULE_MAX_KERNELS; i++)
    module->functions[i] = (struct CUfunc_st){&kernels[i], module, SHARED_STATIC_LIMIT};
  *out_module = module;
  return CU_SUCCESS;
}

EXPORT CuResult cuModuleUnload(CuModule module) {
  dlclose(module->library);
  free(module);
  return CU_SUCCESS;
}

EXPORT CuResult cuModuleGetFunction(CuFunction *out_function, CuModule module, const char *name) {
  for (int i = 0; i < MODULE_MAX_KERNELS && module->functions[i].kernel != NULL; i++)
    if (strcmp(module->functions[i].kernel->name, name) == 0) {
      *out_function = &module->functions[i];
      return CU_SUCCESS;
    }
  return CU_NOT_FOUND;
}

/* Without the prelude's own mark at the beginning. Which of a module's kernels has how much is not known: with several
 * of them, a fair share. */
static int static_shared(CuFunction function) {
  enum { MARK = 128 };
  const struct CUmod_st *module = function->module;
  const int size = (int)(module->shared_end - module->shared_begin);
  int kernels = 0;
  while (kernels < MODULE_MAX_KERNELS && module->functions[kernels].kernel != NULL) kernels++;
  return size > MARK ? (size - MARK) / kernels : 0;
}

EXPORT CuResult cuFuncSetAttribute(CuFunction function, int attribute, int value) {
  if (attribute != CU_FUNCTION_MAX_DYNAMIC_SHARED_BYTES || value < 0 || value > SHARED_LIMIT) return CU_INVALID_VALUE;
  function->max_dynamic_shared = value;
  return CU_SUCCESS;
}

EXPORT CuResult cuFuncGetAttribute(int *out_value, int attribute, CuFunction function) {
  *out_value = attribute == CU_FUNCTION_SHARED_BYTES ? static_shared(function) : 0;
  return CU_SUCCESS;
}

/* --- memory */

EXPORT CuResult cuMemGetInfo_v2(size_t *out_free, size_t *out_total) {
  *out_total = *out_free = (size_t)1 << TOTAL_MEMORY_SHIFT;
  return CU_SUCCESS;
}

EXPORT CuResult cuMemAlloc_v2(CuPointer *out_pointer, size_t size) {
  if (context_depth == 0) return CU_INVALID_CONTEXT;
  pthread_mutex_lock(&lock);
  CuResult result = allocate(out_pointer, size);
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT CuResult cuMemFree_v2(CuPointer pointer) {
  pthread_mutex_lock(&lock);
  CuResult result = release(pointer);
  pthread_mutex_unlock(&lock);
  return result;
}

static void *host(CuPointer pointer) { return (void *)(uintptr_t)pointer; }

EXPORT CuResult cuMemcpyHtoDAsync_v2(CuPointer to, const void *from, size_t size, CuStream stream) {
  pthread_mutex_lock(&lock);
  CuResult result = find_allocation(host(to), size) != NULL ? CU_SUCCESS : CU_INVALID_VALUE;
  if (result == CU_SUCCESS && stream != NULL && stream->capturing) result = CU_STREAM_CAPTURE_INVALIDATED;
  if (result == CU_SUCCESS) {
    /* ordinary host memory has been read when the call returns */
    void *data = malloc(size + 1);
    memcpy(data, from, size);
    Command command = {.kind = COMMAND_TO_DEVICE, .to = host(to), .from = data, .size = size, .owned = true};
    result = enqueue(stream, &command);
  }
  pthread_mutex_unlock(&lock);
  return result;
}

static CuResult enqueue_copy(void *to, const void *from, size_t size, CuStream stream) {
  Command command = {.kind = COMMAND_TO_HOST, .to = to, .from = from, .size = size};
  return enqueue(stream, &command);
}

EXPORT CuResult cuMemcpyDtoHAsync_v2(void *to, CuPointer from, size_t size, CuStream stream) {
  pthread_mutex_lock(&lock);
  CuResult result = find_allocation(host(from), size) != NULL ? CU_SUCCESS : CU_INVALID_VALUE;
  if (result == CU_SUCCESS && stream != NULL && stream->capturing) result = CU_STREAM_CAPTURE_INVALIDATED;
  if (result == CU_SUCCESS) result = enqueue_copy(to, host(from), size, stream);
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT CuResult cuMemcpyDtoDAsync_v2(CuPointer to, CuPointer from, size_t size, CuStream stream) {
  pthread_mutex_lock(&lock);
  CuResult result = find_allocation(host(from), size) != NULL && find_allocation(host(to), size) != NULL
                        ? CU_SUCCESS
                        : CU_INVALID_VALUE;
  if (result == CU_SUCCESS) result = enqueue_copy(host(to), host(from), size, stream);
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT CuResult cuMemsetD8Async(CuPointer to, unsigned char value, size_t size, CuStream stream) {
  pthread_mutex_lock(&lock);
  Command command = {.kind = COMMAND_FILL, .to = host(to), .value = value, .size = size};
  CuResult result = find_allocation(host(to), size) != NULL ? enqueue(stream, &command) : CU_INVALID_VALUE;
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT CuResult cuPointerGetAttribute(void *out_value, int attribute, CuPointer pointer) {
  if (attribute != CU_POINTER_MEMORY_TYPE) return CU_INVALID_VALUE;
  pthread_mutex_lock(&lock);
  const bool device = find_allocation(host(pointer), 1) != NULL;
  pthread_mutex_unlock(&lock);
  if (!device) return CU_INVALID_VALUE; /* as the driver says of memory that it has not made */
  *(unsigned *)out_value = CU_MEMORY_DEVICE;
  return CU_SUCCESS;
}

/* --- streams, graphs, events */

EXPORT CuResult cuStreamCreate(CuStream *out_stream, unsigned flags) {
  (void)flags;
  if (context_depth == 0) return CU_INVALID_CONTEXT;
  *out_stream = calloc(1, sizeof **out_stream);
  return CU_SUCCESS;
}

EXPORT CuResult cuStreamDestroy_v2(CuStream stream) {
  pthread_mutex_lock(&lock);
  run_stream(stream);
  pthread_mutex_unlock(&lock);
  free(stream);
  return CU_SUCCESS;
}

EXPORT CuResult cuStreamSynchronize(CuStream stream) {
  pthread_mutex_lock(&lock);
  CuResult result = CU_STREAM_CAPTURE_INVALIDATED;
  if (!stream->capturing) {
    run_stream(stream);
    result = sticky;
  }
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT CuResult cuStreamBeginCapture_v2(CuStream stream, int mode) {
  (void)mode;
  if (stream->capturing) return CU_INVALID_VALUE;
  stream->capturing = true;
  stream->graph = calloc(1, sizeof *stream->graph);
  return CU_SUCCESS;
}

EXPORT CuResult cuStreamEndCapture(CuStream stream, CuGraph *out_graph) {
  if (!stream->capturing) return CU_INVALID_VALUE;
  stream->capturing = false;
  *out_graph = stream->graph;
  stream->graph = NULL;
  return CU_SUCCESS;
}

EXPORT CuResult cuGraphInstantiateWithFlags(CuGraphExec *out_exec, CuGraph graph, unsigned long long flags) {
  (void)flags;
  *out_exec = calloc(1, sizeof **out_exec);
  copy_commands(&(*out_exec)->commands, &graph->commands);
  return CU_SUCCESS;
}

EXPORT CuResult cuGraphLaunch(CuGraphExec exec, CuStream stream) {
  pthread_mutex_lock(&lock);
  CuResult result = sticky;
  if (result == CU_SUCCESS) copy_commands(&stream->commands, &exec->commands);
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT CuResult cuGraphExecDestroy(CuGraphExec exec) {
  free_commands(&exec->commands);
  free(exec);
  return CU_SUCCESS;
}

EXPORT CuResult cuGraphDestroy(CuGraph graph) {
  free_commands(&graph->commands);
  free(graph);
  return CU_SUCCESS;
}

EXPORT CuResult cuEventCreate(CuEvent *out_event, unsigned flags) {
  (void)flags;
  *out_event = calloc(1, sizeof **out_event);
  return CU_SUCCESS;
}

EXPORT CuResult cuEventDestroy_v2(CuEvent event) {
  free(event);
  return CU_SUCCESS;
}

EXPORT CuResult cuEventRecord(CuEvent event, CuStream stream) {
  pthread_mutex_lock(&lock);
  Command command = {.kind = COMMAND_RECORD, .event = event};
  event->recorded = false;
  event->stream = stream;
  CuResult result = enqueue(stream, &command);
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT CuResult cuEventSynchronize(CuEvent event) {
  pthread_mutex_lock(&lock);
  if (event->stream != NULL && !event->recorded) run_stream(event->stream);
  CuResult result = sticky;
  pthread_mutex_unlock(&lock);
  return result;
}

EXPORT CuResult cuEventElapsedTime(float *out_milliseconds, CuEvent start, CuEvent end) {
  if (!start->recorded || !end->recorded) return CU_NOT_READY;
  *out_milliseconds = (float)(1e3 * (end->seconds - start->seconds));
  return CU_SUCCESS;
}

/* --- kernels */

static CuResult refuse(CuResult result, const char *format, ...) __attribute__((format(printf, 2, 3)));
static CuResult refuse(CuResult result, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(refusal, sizeof refusal, format, arguments);
  va_end(arguments);
  return result;
}

static CuResult check_launch(CuFunction function, const Command *command) {
  const int fixed = static_shared(function), dynamic = (int)command->shared_bytes;
  if (command->threads == 0 || command->threads > EMULATOR_MAX_THREADS || command->threads % EMULATOR_WARP != 0)
    return refuse(CU_INVALID_VALUE, "blocks of %u threads", command->threads);
  for (int i = 0; i < 3; i++)
    if (command->grid[i] == 0 || command->grid[i] > (i == 0 ? 0x7fffffffu : 65535u))
      return refuse(CU_INVALID_VALUE, "a grid of %u x %u x %u", command->grid[0], command->grid[1], command->grid[2]);
  if ((int)command->threads > function->kernel->threads)
    return refuse(CU_LAUNCH_OUT_OF_RESOURCES, "%u threads of a kernel for %d", command->threads,
                  function->kernel->threads);
  if (fixed > SHARED_STATIC_LIMIT || fixed + dynamic > SHARED_LIMIT || dynamic > function->max_dynamic_shared)
    return refuse(CU_INVALID_VALUE, "%d bytes of static and %d of dynamic shared memory (%d asked for)", fixed, dynamic,
                  function->max_dynamic_shared);
  return CU_SUCCESS;
}

EXPORT CuResult cuLaunchKernel(CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared_bytes, CuStream stream,
                               void **parameters, void **extra) {
  if (extra != NULL || block_y != 1 || block_z != 1) return CU_INVALID_VALUE;
  Command command = {.kind = COMMAND_LAUNCH, .function = function, .grid = {grid_x, grid_y, grid_z}};
  command.threads = block_x;
  command.shared_bytes = shared_bytes;
  CuResult result = check_launch(function, &command);
  if (result != CU_SUCCESS) return result;
  command.arguments = calloc((size_t)function->kernel->argument_count + 1, 8);
  for (int i = 0; i < function->kernel->argument_count; i++)
    memcpy(command.arguments + 8 * i, parameters[i], (size_t)function->kernel->argument_bytes[i]);
  pthread_mutex_lock(&lock);
  result = enqueue(stream, &command);
  pthread_mutex_unlock(&lock);
  if (result != CU_SUCCESS) free(command.arguments);
  return result;
}

EXPORT CuResult cuGetErrorName(CuResult result, const char **out_name) {
  static const struct {
    CuResult result;
    const char *name;
  } names[] = {{CU_SUCCESS, "CUDA_SUCCESS"},
               {CU_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
               {CU_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
               {CU_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
               {CU_NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
               {CU_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
               {CU_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
               {CU_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
               {CU_NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
               {CU_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
               {CU_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].result == result) {
      *out_name = names[i].name;
      return CU_SUCCESS;
    }
  return CU_INVALID_VALUE;
}

EXPORT CuResult cuGetErrorString(CuResult result, const char **out_text) {
  if (result == CU_LAUNCH_FAILED)
    *out_text = sticky_text;
  else if (result == CU_NO_DEVICE)
    *out_text = "no CUDA-capable device is detected";
  else
    *out_text = refusal[0] != '\0' ? refusal : "refused";
  return CU_SUCCESS;
}
