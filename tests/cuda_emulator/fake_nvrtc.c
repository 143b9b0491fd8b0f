/* libfake_nvrtc.so: NVRTC's interface over the system's C compiler. The text is compiled with prelude_host.h in the
 * place of the device prelude; the "cubin" is a shared object for libfake_cuda.so, the "PTX" the same in hexadecimal.
 * $KILN_EMULATOR_KEEP names a folder for the files that are made on the way: they stay there. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

extern char **environ;

enum {
  NVRTC_OK = 0,
  NVRTC_OUT_OF_MEMORY = 1,
  NVRTC_PROGRAM_FAILURE = 2,
  NVRTC_INVALID_INPUT = 3,
  NVRTC_INVALID_PROGRAM = 4,
  NVRTC_INVALID_OPTION = 5,
  NVRTC_COMPILATION = 6
};

/* Another prelude makes other objects: the minor version tells caches so. */
enum { VERSION_MAJOR = 13, VERSION_MINOR_FIRST = 1000 };

typedef struct Buffer {
  char *data;
  size_t size, capacity;
} Buffer;

typedef struct Program {
  Buffer source, log, object, ptx;
  char **header_names, **headers;
  int header_count;
  bool compiled;
} Program;

int nvrtcVersion(int *major, int *minor);
int nvrtcGetNumSupportedArchs(int *count);
int nvrtcGetSupportedArchs(int *archs);
int nvrtcCreateProgram(Program **out_program, const char *source, const char *name, int header_count,
                       const char *const *headers, const char *const *header_names);
int nvrtcDestroyProgram(Program **program);
int nvrtcCompileProgram(Program *program, int option_count, const char *const *options);
int nvrtcGetCUBINSize(Program *program, size_t *size);
int nvrtcGetCUBIN(Program *program, char *out);
int nvrtcGetPTXSize(Program *program, size_t *size);
int nvrtcGetPTX(Program *program, char *out);
int nvrtcGetProgramLogSize(Program *program, size_t *size);
int nvrtcGetProgramLog(Program *program, char *out);
const char *nvrtcGetErrorString(int result);

static void buffer_add(Buffer *buffer, const char *bytes, size_t count) {
  if (buffer->size + count + 1 > buffer->capacity) {
    buffer->capacity = 2 * (buffer->size + count + 1);
    buffer->data = realloc(buffer->data, buffer->capacity);
  }
  memcpy(buffer->data + buffer->size, bytes, count);
  buffer->size += count;
  buffer->data[buffer->size] = '\0';
}

static void buffer_format(Buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void buffer_format(Buffer *buffer, const char *format, ...) {
  char text[4096];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (length > 0) buffer_add(buffer, text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1);
}

static bool read_file(const char *path, Buffer *out) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) return false;
  char bytes[65536];
  for (size_t count; (count = fread(bytes, 1, sizeof bytes, file)) > 0;) buffer_add(out, bytes, count);
  fclose(file);
  return true;
}

static bool write_file(const char *path, const char *data, size_t size) {
  FILE *file = fopen(path, "wb");
  if (file == NULL) return false;
  bool written = fwrite(data, 1, size, file) == size;
  return fclose(file) == 0 && written;
}

/* --- the table of kernels ---------------------------------------------------------------------------- */

/* The text without comments and preprocessor lines, for finding kernels. */
static Buffer strip(const char *text) {
  Buffer plain = {NULL, 0, 0};
  bool line_start = true;
  for (const char *at = text; *at != '\0';) {
    if (at[0] == '/' && at[1] == '*') {
      const char *end = strstr(at + 2, "*/");
      at = end != NULL ? end + 2 : at + strlen(at);
    } else if (at[0] == '/' && at[1] == '/') {
      at += strcspn(at, "\n");
    } else if (line_start && *at == '#') {
      while (*at != '\0' && !(at[0] == '\n' && at[-1] != '\\')) at++;
    } else {
      line_start = *at == '\n' || (line_start && isspace((unsigned char)*at));
      buffer_add(&plain, at++, 1);
    }
  }
  buffer_add(&plain, "", 0);
  return plain;
}

/* "const float *restrict in0" → "const float *restrict": the last identifier is the parameter's name. */
static size_t type_length(const char *parameter, size_t length) {
  while (length > 0 && isspace((unsigned char)parameter[length - 1])) length--;
  while (length > 0 && (isalnum((unsigned char)parameter[length - 1]) || parameter[length - 1] == '_')) length--;
  return length;
}

/* Wrappers that take arguments as cuLaunchKernel does, and the table that names them. */
static void add_kernels(Buffer *source) {
  Buffer plain = strip(source->data), wrappers = {NULL, 0, 0}, table = {NULL, 0, 0};
  const char *at = plain.data;
  while (at != NULL && (at = strstr(at, "KERNEL")) != NULL) {
    if (at > plain.data && (isalnum((unsigned char)at[-1]) || at[-1] == '_')) {
      at += 6;
      continue;
    }
    at += strncmp(at, "KERNEL_BLOCKS", 13) == 0 ? 13 : 6;
    if (*at != '(') continue;
    const char *threads = at + 1, *threads_end = threads + strcspn(threads, ",)"), *name = strchr(threads_end, ')');
    if (name == NULL) break;
    name++;
    name += strspn(name, " \t\r\n");
    size_t name_length = strcspn(name, " \t\r\n(");
    const char *open = strchr(name, '('), *close = open != NULL ? strchr(open, ')') : NULL;
    if (close == NULL) break;
    int count = 0;
    buffer_format(&wrappers, "static void kiln_call_%.*s(void **arguments) { (void)arguments; %.*s(", (int)name_length,
                  name, (int)name_length, name);
    buffer_format(&table, "{\"%.*s\", kiln_call_%.*s, (const int[]){", (int)name_length, name, (int)name_length, name);
    for (const char *parameter = open + 1; parameter < close; count++) {
      size_t length = strcspn(parameter, ",)"), type = type_length(parameter, length);
      buffer_format(&wrappers, "%s*(%.*s*)arguments[%d]", count > 0 ? ", " : "", (int)type, parameter, count);
      buffer_format(&table, "(int)sizeof(%.*s), ", (int)type, parameter);
      parameter += length + 1;
    }
    buffer_format(&wrappers, "); }\n");
    buffer_format(&table, "0}, %d, %.*s},\n", count, (int)(threads_end - threads), threads);
    at = close;
  }
  buffer_format(source,
                "\n#line 1 \"kernel table\"\n"
                "typedef struct { const char *name; void (*call)(void **); const int *bytes; int count, threads; } "
                "kiln_kernel_entry;\n"
                "extern char __start_kiln_shared[], __stop_kiln_shared[];\n"
                "void kiln_emulator_shared(char **begin, char **end) {\n"
                "  *begin = __start_kiln_shared; *end = __stop_kiln_shared;\n}\n");
  if (wrappers.size > 0) buffer_add(source, wrappers.data, wrappers.size);
  buffer_format(source, "const kiln_kernel_entry kiln_emulator_kernels[] = {\n");
  if (table.size > 0) buffer_add(source, table.data, table.size);
  buffer_format(source, "{0, 0, 0, 0, 0}};\n");
  free(plain.data);
  free(wrappers.data);
  free(table.data);
}

/* --- the C compiler ---------------------------------------------------------------------------------- */

static int run_compiler(char *const *arguments, const char *messages) {
  posix_spawn_file_actions_t actions;
  if (posix_spawn_file_actions_init(&actions) != 0) return -1;
  pid_t child;
  int status = -1;
  int error = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (error == 0)
    error = posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, messages, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (error == 0) error = posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  if (error == 0) error = posix_spawnp(&child, arguments[0], &actions, NULL, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return -1;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  return status;
}

/* "op:conv1:12:5: error: text" → "op:conv1(12): error: text", as NVRTC writes it. */
static void add_log(Buffer *log, const char *messages) {
  for (const char *line = messages; *line != '\0';) {
    size_t length = strcspn(line, "\n");
    const char *kind = NULL;
    static const char *const kinds[] = {": error: ", ": warning: ", ": fatal error: "};
    for (size_t i = 0; i < 3 && kind == NULL; i++) {
      const char *found = strstr(line, kinds[i]);
      if (found != NULL && found < line + length) kind = found;
    }
    const char *column = kind;
    while (column != NULL && column > line && isdigit((unsigned char)column[-1])) column--;
    const char *number = column != NULL && column > line + 1 ? column - 1 : NULL; /* at ':' */
    while (number != NULL && number > line && isdigit((unsigned char)number[-1])) number--;
    if (number != NULL && number > line + 1 && number[-1] == ':') {
      buffer_format(log, "%.*s(%.*s)", (int)(number - 1 - line), line, (int)(column - 1 - number), number);
      buffer_add(log, kind, (size_t)(line + length - kind));
      buffer_add(log, "\n", 1);
    } else if (strstr(line, "error") != NULL && strstr(line, "error") < line + length) {
      buffer_add(log, line, length);
      buffer_add(log, "\n", 1);
    }
    line += length + (line[length] == '\n');
  }
}

static bool write_inputs(const Program *program, const char *folder) {
  char path[512];
  for (int i = 0; i < program->header_count; i++) {
    if (strchr(program->header_names[i], '/') != NULL) return false;
    bool prelude = strcmp(program->header_names[i], "kiln_prelude.h") == 0;
    static const char own[] = "#include \"" KILN_EMULATOR_FOLDER "/prelude_host.h\"\n";
    const char *text = prelude ? own : program->headers[i];
    snprintf(path, sizeof path, "%s/%s", folder, program->header_names[i]);
    if (!write_file(path, text, strlen(text))) return false;
  }
  snprintf(path, sizeof path, "%s/kernel.c", folder);
  return write_file(path, program->source.data, program->source.size);
}

static void remove_folder(const Program *program, const char *folder) {
  static const char *const names[] = {"kernel.c", "kernel.so", "messages"};
  char path[512];
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, names[i]);
    unlink(path);
  }
  for (int i = 0; i < program->header_count; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, program->header_names[i]);
    unlink(path);
  }
  rmdir(folder);
}

static bool compile(Program *program, const char *folder) {
  char source[512], object[512], messages[512], include[512];
  snprintf(source, sizeof source, "%s/kernel.c", folder);
  snprintf(object, sizeof object, "%s/kernel.so", folder);
  snprintf(messages, sizeof messages, "%s/messages", folder);
  snprintf(include, sizeof include, "-I%s", folder);
  const char *level = getenv("KILN_EMULATOR_OPTIMIZE"), *compiler = getenv("KILN_EMULATOR_CC");
  char optimize[8] = "-O1";
  if (level != NULL && strlen(level) == 1) optimize[2] = level[0];
  char command[256];
  snprintf(command, sizeof command, "%s", compiler != NULL && compiler[0] != '\0' ? compiler : "cc");
  char *arguments[] = {
      command, (char[]){"-std=gnu11"}, optimize, (char[]){"-fPIC"}, (char[]){"-shared"},
      /* what C++ refuses */
      (char[]){"-Werror=implicit-function-declaration"}, (char[]){"-Werror=incompatible-pointer-types"},
      (char[]){"-Werror=int-conversion"}, (char[]){"-Werror=return-type"}, (char[]){"-Werror=uninitialized"},
      (char[]){"-Wno-unknown-pragmas"}, (char[]){"-ffp-contract=off"}, (char[]){"-fno-strict-aliasing"}, include,
      (char[]){"-o"}, object, source, (char[]){"-lm"}, NULL};
  add_kernels(&program->source);
  if (!write_inputs(program, folder)) {
    buffer_format(&program->log, "fake NVRTC: cannot write to %s\n", folder);
    return false;
  }
  int status = run_compiler(arguments, messages);
  if (status == 0 && read_file(object, &program->object)) return true;
  Buffer text = {NULL, 0, 0};
  if (status == -1)
    buffer_format(&program->log, "fake NVRTC: the C compiler '%s' cannot be started\n", command);
  else if (read_file(messages, &text) && text.size > 0)
    add_log(&program->log, text.data);
  if (program->log.size == 0)
    buffer_format(&program->log, "fake NVRTC: status %d: %s\n", status, text.size ? text.data : "");
  free(text.data);
  return false;
}

/* --- the interface ----------------------------------------------------------------------------------- */

EXPORT int nvrtcVersion(int *major, int *minor) {
  Buffer prelude = {NULL, 0, 0};
  unsigned hash = 5381;
  if (read_file(KILN_EMULATOR_FOLDER "/prelude_host.h", &prelude))
    for (size_t i = 0; i < prelude.size; i++) hash = hash * 33 + (unsigned char)prelude.data[i];
  free(prelude.data);
  *major = VERSION_MAJOR;
  *minor = VERSION_MINOR_FIRST + (int)(hash % 1000000);
  return NVRTC_OK;
}

static const int architectures[] = {70, 75, 80, 86, 89, 90, 100, 120};

EXPORT int nvrtcGetNumSupportedArchs(int *count) {
  *count = sizeof architectures / sizeof *architectures;
  return NVRTC_OK;
}

EXPORT int nvrtcGetSupportedArchs(int *archs) {
  memcpy(archs, architectures, sizeof architectures);
  return NVRTC_OK;
}

EXPORT int nvrtcCreateProgram(Program **out_program, const char *source, const char *name, int header_count,
                              const char *const *headers, const char *const *header_names) {
  (void)name;
  if (source == NULL || out_program == NULL) return NVRTC_INVALID_INPUT;
  Program *program = calloc(1, sizeof *program);
  buffer_add(&program->source, source, strlen(source));
  program->headers = calloc((size_t)header_count + 1, sizeof(char *));
  program->header_names = calloc((size_t)header_count + 1, sizeof(char *));
  program->header_count = header_count;
  for (int i = 0; i < header_count; i++) {
    program->headers[i] = strdup(headers[i]);
    program->header_names[i] = strdup(header_names[i]);
  }
  *out_program = program;
  return NVRTC_OK;
}

EXPORT int nvrtcDestroyProgram(Program **program) {
  for (int i = 0; i < (*program)->header_count; i++) {
    free((*program)->headers[i]);
    free((*program)->header_names[i]);
  }
  free((*program)->headers);
  free((*program)->header_names);
  free((*program)->source.data);
  free((*program)->log.data);
  free((*program)->object.data);
  free((*program)->ptx.data);
  free(*program);
  *program = NULL;
  return NVRTC_OK;
}

EXPORT int nvrtcCompileProgram(Program *program, int option_count, const char *const *options) {
  for (int i = 0; i < option_count; i++)
    if (options[i] == NULL || options[i][0] != '-') return NVRTC_INVALID_OPTION;
  const char *keep = getenv("KILN_EMULATOR_KEEP"), *root = keep != NULL ? keep : getenv("TMPDIR");
  char folder[256];
  snprintf(folder, sizeof folder, "%.200s/kiln-fake-nvrtc-XXXXXX", root != NULL && root[0] == '/' ? root : "/tmp");
  if (mkdtemp(folder) == NULL) return NVRTC_PROGRAM_FAILURE;
  program->compiled = compile(program, folder);
  if (keep == NULL) remove_folder(program, folder);
  return program->compiled ? NVRTC_OK : NVRTC_COMPILATION;
}

EXPORT int nvrtcGetCUBINSize(Program *program, size_t *size) {
  if (!program->compiled) return NVRTC_INVALID_PROGRAM;
  *size = program->object.size;
  return NVRTC_OK;
}

EXPORT int nvrtcGetCUBIN(Program *program, char *out) {
  if (!program->compiled) return NVRTC_INVALID_PROGRAM;
  memcpy(out, program->object.data, program->object.size);
  return NVRTC_OK;
}

static void make_ptx(Program *program) {
  if (program->ptx.size > 0) return;
  static const char digits[] = "0123456789abcdef";
  buffer_format(&program->ptx, "// fake PTX\n");
  for (size_t i = 0; i < program->object.size; i++) {
    unsigned char byte = (unsigned char)program->object.data[i];
    buffer_add(&program->ptx, (const char[]){digits[byte >> 4], digits[byte & 15]}, 2);
  }
}

EXPORT int nvrtcGetPTXSize(Program *program, size_t *size) {
  if (!program->compiled) return NVRTC_INVALID_PROGRAM;
  make_ptx(program);
  *size = program->ptx.size + 1;
  return NVRTC_OK;
}

EXPORT int nvrtcGetPTX(Program *program, char *out) {
  if (!program->compiled) return NVRTC_INVALID_PROGRAM;
  make_ptx(program);
  memcpy(out, program->ptx.data, program->ptx.size + 1);
  return NVRTC_OK;
}

EXPORT int nvrtcGetProgramLogSize(Program *program, size_t *size) {
  *size = program->log.size + 1;
  return NVRTC_OK;
}

EXPORT int nvrtcGetProgramLog(Program *program, char *out) {
  memcpy(out, program->log.size > 0 ? program->log.data : "", program->log.size + 1);
  return NVRTC_OK;
}

EXPORT const char *nvrtcGetErrorString(int result) {
  static const char *const names[] = {"NVRTC_SUCCESS",
                                      "NVRTC_ERROR_OUT_OF_MEMORY",
                                      "NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
                                      "NVRTC_ERROR_INVALID_INPUT",
                                      "NVRTC_ERROR_INVALID_PROGRAM",
                                      "NVRTC_ERROR_INVALID_OPTION",
                                      "NVRTC_ERROR_COMPILATION"};
  return result >= 0 && result < (int)(sizeof names / sizeof *names) ? names[result] : "NVRTC_ERROR unknown";
}
