#include "nvrtc.h"

#include <dlfcn.h>
#include <glob.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "jobs.h"
#include "object_cache.h"

/* Names, parameters and results follow NVIDIA's "NVRTC" reference; a result of 0 is success. */
typedef struct _nvrtcProgram *NvrtcProgram;

#define NVRTC_FUNCTIONS(X)                                                                                           \
  X(version, nvrtcVersion, int, (int *out_major, int *out_minor))                                                    \
  X(arch_count, nvrtcGetNumSupportedArchs, int, (int *out_count))                                                    \
  X(archs, nvrtcGetSupportedArchs, int, (int *out_archs))                                                            \
  X(create, nvrtcCreateProgram, int,                                                                                 \
    (NvrtcProgram * out_program, const char *source, const char *name, int header_count, const char *const *headers, \
     const char *const *header_names))                                                                               \
  X(destroy, nvrtcDestroyProgram, int, (NvrtcProgram * program))                                                     \
  X(compile, nvrtcCompileProgram, int, (NvrtcProgram program, int option_count, const char *const *options))         \
  X(cubin_size, nvrtcGetCUBINSize, int, (NvrtcProgram program, size_t * out_size))                                   \
  X(cubin, nvrtcGetCUBIN, int, (NvrtcProgram program, char *out_data))                                               \
  X(ptx_size, nvrtcGetPTXSize, int, (NvrtcProgram program, size_t * out_size))                                       \
  X(ptx, nvrtcGetPTX, int, (NvrtcProgram program, char *out_data))                                                   \
  X(log_size, nvrtcGetProgramLogSize, int, (NvrtcProgram program, size_t * out_size))                                \
  X(log, nvrtcGetProgramLog, int, (NvrtcProgram program, char *out_text))                                            \
  X(error_text, nvrtcGetErrorString, const char *, (int result))

enum { ARCH_MAX = 64, REASON_MAX = 1024, PATH_MAX_LENGTH = 512 };

static struct {
#define X(member, symbol, result, parameters) result(*member) parameters;
  NVRTC_FUNCTIONS(X)
#undef X
  bool found;
  NvrtcInfo info;
  char path[PATH_MAX_LENGTH], reason[REASON_MAX];
  int32_t known_archs[ARCH_MAX];
} nvrtc;

static pthread_once_t nvrtc_once = PTHREAD_ONCE_INIT;

/* --- finding it -------------------------------------------------------------------------------------- */

static void set_reason(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void set_reason(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  format_v(nvrtc.reason, sizeof nvrtc.reason, format, arguments);
  va_end(arguments);
}

static const char *find_functions(void *library) {
#define X(member, symbol, result, parameters)        \
  {                                                  \
    void *address = dlsym(library, #symbol);         \
    if (address == NULL) return #symbol;             \
    memcpy(&nvrtc.member, &address, sizeof address); \
  }
  NVRTC_FUNCTIONS(X)
#undef X
  return NULL;
}

static int compare_int(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

/* Whether the search is over. */
static bool try_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL || strlen(path) >= sizeof nvrtc.path) return false;
  const char *missing = find_functions(library);
  int major = 0, minor = 0, count = 0;
  if (missing != NULL) {
    set_reason("NVRTC %s has no function %s: it is too old", path, missing);
    dlclose(library);
    return false;
  }
  if (nvrtc.version(&major, &minor) != 0 || nvrtc.arch_count(&count) != 0 || count < 1 || count > ARCH_MAX ||
      nvrtc.archs(nvrtc.known_archs) != 0) {
    set_reason("NVRTC %s does not say what it compiles for", path);
    dlclose(library);
    return false;
  }
  qsort(nvrtc.known_archs, (size_t)count, sizeof *nvrtc.known_archs, compare_int);
  memcpy(nvrtc.path, path, strlen(path) + 1);
  nvrtc.info = (NvrtcInfo){nvrtc.path, major, minor, nvrtc.known_archs, (size_t)count};
  return nvrtc.found = true;
}

static const char *const library_names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"};
enum { LIBRARY_NAME_COUNT = sizeof library_names / sizeof *library_names };

static bool try_folder(const char *folder) {
  static const char *const parts[] = {"lib64", "lib"};
  for (size_t p = 0; p < 2; p++)
    for (size_t i = 0; i < LIBRARY_NAME_COUNT; i++) {
      char path[PATH_MAX_LENGTH];
      const size_t length = strlen(folder) + strlen(parts[p]) + strlen(library_names[i]) + 3;
      if (length > sizeof path) continue;
      strcpy(path, folder);
      strcat(strcat(strcat(strcat(path, "/"), parts[p]), "/"), library_names[i]);
      if (try_library(path)) return true;
    }
  return false;
}

static bool try_toolkits(void) {
  static const char *const variables[] = {"CUDA_HOME", "CUDA_PATH"};
  for (size_t i = 0; i < 2; i++) {
    const char *folder = getenv(variables[i]);
    if (folder != NULL && folder[0] == '/' && try_folder(folder)) return true;
  }
  glob_t found;
  bool done = false;
  if (glob("/usr/local/cuda*", 0, NULL, &found) != 0) return false;
  /* the newest first */
  for (size_t i = found.gl_pathc; i > 0 && !done; i--) done = try_folder(found.gl_pathv[i - 1]);
  globfree(&found);
  return done;
}

static void open_nvrtc(void) {
  const char *given = getenv("KILN_NVRTC");
  if (given != NULL && given[0] != '\0') {
    if (!try_library(given) && nvrtc.reason[0] == '\0') {
      const char *why = dlerror();
      set_reason("no NVRTC: KILN_NVRTC=%s cannot be opened (%s)", given, why != NULL ? why : "unknown reason");
    }
    return;
  }
  for (size_t i = 0; i < LIBRARY_NAME_COUNT; i++)
    if (try_library(library_names[i])) return;
  if (!try_toolkits() && nvrtc.reason[0] == '\0')
    set_reason("no NVRTC: none of libnvrtc.so.13, .12, .11.2 found; install it or set KILN_NVRTC to its path");
}

const NvrtcInfo *nvrtc_info(const char **out_reason) {
  pthread_once(&nvrtc_once, open_nvrtc);
  if (out_reason != NULL) *out_reason = nvrtc.found ? "" : nvrtc.reason;
  return nvrtc.found ? &nvrtc.info : NULL;
}

/* --- one text ---------------------------------------------------------------------------------------- */

enum { OPTION_COUNT = 3, LOG_LINES = 6 };

typedef struct Unit {
  const Plan *plan;
  const CudaCode *code;
  const char *const *options;
  bool ptx;
  ObjectCache *cache; /* may be NULL */
  Code image;         /* result, in `results` */
  Arena *results, *scratch;
  Diag *diag;
} Unit;

/* All that the image depends on. IMAGE_FORMAT counts changes that the text and the options do not show. */
static Code image_key(const Unit *unit) {
  enum { IMAGE_FORMAT = 1 };
  Text key;
  text_init(&key, unit->scratch);
  text_format(&key, "cuda image %d, Kiln %s, NVRTC %d.%d, %s", IMAGE_FORMAT, KILN_VERSION, nvrtc.info.major,
              nvrtc.info.minor, unit->ptx ? "ptx" : "cubin");
  for (size_t i = 0; i < OPTION_COUNT; i++) text_format(&key, " %s", unit->options[i]);
  text_add(&key, "\n");
  for (size_t i = 0; i < CUDA_HEADER_COUNT; i++) text_add(&key, cuda_headers[i].text);
  text_add(&key, unit->code->text);
  return (Code){key.data, key.size};
}

static void destroy_program(void *argument) {
  NvrtcProgram program = argument;
  nvrtc.destroy(&program);
}

/* The first lines of the log; the text of the kernel is ours, so an error in it is too. */
static bool report_log(const Unit *unit, NvrtcProgram program, int result) {
  const PlanKernel *kernel = &unit->plan->kernels[unit->code->kernel];
  size_t size = 0;
  char *log = NULL;
  diag_error(unit->diag, kernel->location, "internal error: the CUDA code of '%s' (%s) does not compile: %s",
             kernel->name, unit->code->name, nvrtc.error_text(result));
  if (nvrtc.log_size(program, &size) != 0 || size <= 1) return false;
  log = arena_array(unit->scratch, size + 1, char);
  if (nvrtc.log(program, log) != 0) return false;
  int lines = 0;
  for (char *line, *rest = log; lines < LOG_LINES && (line = strtok_r(rest, "\n", &rest)) != NULL;) {
    if (strstr(line, "error") == NULL) continue;
    diag_note(unit->diag, kernel->location, "%s", line);
    lines++;
  }
  return false;
}

static bool take_image(Unit *unit, NvrtcProgram program) {
  size_t size = 0;
  int result = unit->ptx ? nvrtc.ptx_size(program, &size) : nvrtc.cubin_size(program, &size);
  if (result != 0 || size == 0) return report_log(unit, program, result);
  char *data = arena_alloc_aligned(unit->results, size, 64);
  result = unit->ptx ? nvrtc.ptx(program, data) : nvrtc.cubin(program, data);
  unit->image = (Code){data, size};
  return result == 0 || report_log(unit, program, result);
}

static bool compile_unit(Unit *unit) {
  Code key = {NULL, 0};
  if (unit->cache != NULL) {
    key = image_key(unit);
    if (object_cache_load(unit->cache, &key, unit->scratch, unit->results, &unit->image)) return true;
  }
  const char *names[CUDA_HEADER_COUNT], *texts[CUDA_HEADER_COUNT];
  for (size_t i = 0; i < CUDA_HEADER_COUNT; i++) {
    names[i] = cuda_headers[i].name;
    texts[i] = cuda_headers[i].text;
  }
  NvrtcProgram program;
  int result = nvrtc.create(&program, unit->code->text, "kernel.cu", CUDA_HEADER_COUNT, texts, names);
  if (result != 0) {
    diag_error(unit->diag, (Location){0}, "NVRTC cannot make a program: %s", nvrtc.error_text(result));
    return false;
  }
  arena_defer(unit->scratch, destroy_program, program);
  result = nvrtc.compile(program, OPTION_COUNT, unit->options);
  if (result != 0) return report_log(unit, program, result);
  if (!take_image(unit, program)) return false;
  if (unit->cache != NULL) object_cache_store(unit->cache, &key, &unit->image, unit->scratch);
  return true;
}

/* --- all of them ------------------------------------------------------------------------------------- */

static bool run_unit(void *units, size_t number, const JobTools *tools) {
  Unit *unit = (Unit *)units + number;
  unit->results = tools->results;
  unit->scratch = tools->scratch;
  unit->diag = tools->diag;
  return compile_unit(unit);
}

/* "sm_90a" → 90 */
static int32_t arch_number(const char *arch) {
  const char *digits = strchr(arch, '_');
  return digits != NULL ? (int32_t)strtol(digits + 1, NULL, 10) : 0;
}

/* --gpu-architecture, and whether it has to be PTX. */
static const char *choose_arch(const NvrtcOptions *options, Arena *arena, Diag *diag, bool *out_ptx) {
  const NvrtcInfo *info = &nvrtc.info;
  const int32_t wanted = arch_number(options->arch);
  int32_t best = 0;
  for (size_t i = 0; i < info->arch_count; i++)
    if (info->archs[i] <= wanted) best = info->archs[i];
  *out_ptx = options->ptx || best != wanted;
  if (best == wanted) {
    const char *suffix = strchr(options->arch, '_') + 1;
    return arena_format(arena, "--gpu-architecture=%s_%s", options->ptx ? "compute" : "sm", suffix);
  }
  if (best == 0) {
    diag_error(diag, (Location){0}, "NVRTC %d.%d (%s) cannot compile for %s: sm_%d is the oldest that it knows",
               (int)info->major, (int)info->minor, info->path, options->arch, (int)info->archs[0]);
    return NULL;
  }
  diag_warning(diag, (Location){0}, "NVRTC %d.%d (%s) does not know %s: the code is PTX for compute_%d",
               (int)info->major, (int)info->minor, info->path, options->arch, (int)best);
  return arena_format(arena, "--gpu-architecture=compute_%d", (int)best);
}

bool nvrtc_compile(const Plan *plan, const CudaProgramText *program, const NvrtcOptions *options, Arena *arena,
                   Diag *diag, Code **out_images) {
  const char *reason;
  bool ptx;
  if (nvrtc_info(&reason) == NULL) {
    diag_error(diag, (Location){0}, "%s", reason);
    return false;
  }
  const char *arch = choose_arch(options, arena, diag, &ptx);
  if (arch == NULL) return false;
  /* a fast-math option would change results; fused multiply-adds are on by default */
  const char *const compile_options[OPTION_COUNT] = {arch, "--std=c++17", "-default-device"};
  Unit *units = arena_array(arena, program->code_count, Unit);
  size_t count = 0;
  ObjectCache *cache = options->cache_dir != NULL ? object_cache_create(options->cache_dir, arena) : NULL;
  Code *images = arena_array(arena, program->code_count + 1, Code);
  size_t *unit_of = arena_array(arena, program->code_count + 1, size_t);
  for (size_t i = 0; i < program->code_count; i++) {
    if (program->codes[i].launch_count == 0) continue;
    unit_of[i] = count;
    units[count++] = (Unit){plan, &program->codes[i], compile_options, ptx, cache};
  }
  const Jobs jobs = {.count = count, .run = run_unit, .context = units, .stop_early = true};
  const bool done = jobs_run(&jobs, cpu_threads(options->threads), arena, diag);
  if (cache != NULL) object_cache_finish(cache, OBJECT_CACHE_BYTES, arena, diag);
  if (!done) return false;
  for (size_t i = 0; i < program->code_count; i++)
    if (program->codes[i].launch_count > 0) images[i] = units[unit_of[i]].image;
  *out_images = images;
  return true;
}
