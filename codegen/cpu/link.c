/* The system's linker, started with an argument vector (no shell) in a private folder whose files have fixed names:
 * no name that a user chose stands on its command line except behind -soname=. */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "codegen.h"

extern char **environ;

enum { MESSAGE_LIMIT = 2000, OUTPUT_LIMIT_SHIFT = 34 /* 16 GiB */ };

typedef struct Link {
  Arena *arena;
  Diag *diag;
  Location place; /* the library that is being made */
  char *folder;
  size_t object_count;
  bool calls_libc; /* functions that are missing are found when the library is loaded */
} Link;

static const char *member(const Link *link, const char *name) {
  return arena_format(link->arena, "%s/%s", link->folder, name);
}

static void remove_folder(void *argument) {
  const Link *link = argument;
  if (link->folder == NULL) return;
  static const char *const fixed[] = {"out.so", "messages"};
  char path[256];
  for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
    snprintf(path, sizeof path, "%s/%s", link->folder, fixed[i]);
    unlink(path);
  }
  for (size_t i = 0; i < link->object_count; i++) {
    snprintf(path, sizeof path, "%s/%zu.o", link->folder, i);
    unlink(path);
  }
  rmdir(link->folder);
}

/* --- the linker --------------------------------------------------------------------------------------- */

static const char *const x86_linkers[] = {"ld.lld-19", "ld.lld", "ld", NULL};
static const char *const aarch64_linkers[] = {"ld.lld-19", "ld.lld", "aarch64-linux-gnu-ld", NULL};

/* Exit status of the linker, or -1 when it could not be started. Its messages go to a file of the folder. */
static int run_linker(const Link *link, const char *linker, char *const *arguments) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  if (posix_spawn_file_actions_init(&actions) != 0) return -1;
  if (posix_spawnattr_init(&attributes) != 0) {
    posix_spawn_file_actions_destroy(&actions);
    return -1;
  }
  pid_t child = -1;
  int error = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (error == 0)
    error = posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, member(link, "messages"),
                                             O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (error == 0) error = posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  if (error == 0) error = posix_spawnp(&child, linker, &actions, &attributes, arguments, environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return -1;
  int status;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  /* 127: what an exec that failed after the fork looks like */
  if (WIFEXITED(status)) return WEXITSTATUS(status) == 127 ? -1 : WEXITSTATUS(status);
  return 128 + WTERMSIG(status);
}

static const char *messages(const Link *link) {
  void *data;
  size_t size;
  Diag *ignored = diag_create(link->arena);
  if (!file_read(member(link, "messages"), (size_t)1 << 20, link->arena, ignored, &data, &size) || size == 0)
    return "no message";
  return arena_string_n(link->arena, data, size < MESSAGE_LIMIT ? size : MESSAGE_LIMIT);
}

static char **build_arguments(const Link *link, const char *soname, bool relocatable) {
  static const char *const shared[] = {
      "-shared", "--build-id=none", "--hash-style=gnu", "-z", "noexecstack", "-z", "relro", "-z",
      "now",     "--no-undefined" /* last: not for all */};
  enum { SHARED_COUNT = sizeof shared / sizeof *shared };
  const char **arguments = arena_array(link->arena, SHARED_COUNT + link->object_count + 8, const char *);
  size_t count = 1; /* [0]: the linker */
  if (relocatable) {
    arguments[count++] = "-r";
  } else {
    const size_t options = link->calls_libc ? SHARED_COUNT - 1 : SHARED_COUNT;
    for (size_t i = 0; i < options; i++) arguments[count++] = shared[i];
    if (soname != NULL) arguments[count++] = arena_format(link->arena, "-soname=%s", soname);
  }
  arguments[count++] = "-o";
  arguments[count++] = member(link, "out.so");
  for (size_t i = 0; i < link->object_count; i++)
    arguments[count++] = member(link, arena_format(link->arena, "%zu.o", i));
  /* posix_spawn takes char *const * and promises not to write */
  return (char **)(void *)arguments;
}

static bool call_linker(const Link *link, const Target *target, const char *soname, bool relocatable) {
  bool x86 = strncmp(target->triple, "x86_64", 6) == 0;
  const char *const *linkers = x86 ? x86_linkers : aarch64_linkers;
  char **arguments = build_arguments(link, soname, relocatable);
  for (; *linkers != NULL; linkers++) {
    arguments[0] = arena_string(link->arena, *linkers);
    int status = run_linker(link, *linkers, arguments);
    if (status == 0) return true;
    if (status < 0) continue;
    diag_error(link->diag, link->place, "the linker %s failed with status %d: %s", *linkers, status, messages(link));
    return false;
  }
  diag_error(link->diag, link->place, "no linker for %s found: install ld.lld-19, ld.lld or %s", target->triple,
             x86 ? "ld" : "aarch64-linux-gnu-ld");
  return false;
}

/* --- files -------------------------------------------------------------------------------------------- */

static bool create_folder(Link *link) {
  const char *root = getenv("TMPDIR");
  if (root == NULL || root[0] != '/' || strlen(root) > 128) root = "/tmp";
  char *folder = arena_format(link->arena, "%s/kiln-link-XXXXXX", root);
  if (mkdtemp(folder) == NULL) {
    diag_error(link->diag, link->place, "cannot create a temporary folder in %s: %s", root, strerror(errno));
    return false;
  }
  link->folder = folder;
  return true;
}

/* A plain file of the private folder: what file_write does for its safety is not needed here. */
static bool write_object(const Link *link, size_t index, const Code *object) {
  const char *path = member(link, arena_format(link->arena, "%zu.o", index));
  int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  size_t written = 0;
  while (file >= 0 && written < object->size) {
    ssize_t step = write(file, (const char *)object->data + written, object->size - written);
    if (step < 0 && errno == EINTR) continue;
    if (step <= 0) break;
    written += (size_t)step;
  }
  int error = errno;
  if (file >= 0 && close(file) != 0 && written == object->size) written = SIZE_MAX, error = errno;
  if (file >= 0 && written == object->size) return true;
  diag_error(link->diag, link->place, "cannot write a temporary file in %s: %s", link->folder, strerror(error));
  return false;
}

static bool link_in_folder(Link *link, const Target *target, const Code *objects, const char *soname, bool relocatable,
                           const char *path) {
  if (!create_folder(link)) return false;
  for (size_t i = 0; i < link->object_count; i++) {
    if (!write_object(link, i, &objects[i])) return false;
  }
  if (!call_linker(link, target, soname, relocatable)) return false;
  FilePiece piece;
  void *data;
  if (!file_read(member(link, "out.so"), (size_t)1 << OUTPUT_LIMIT_SHIFT, link->arena, link->diag, &data, &piece.size))
    return false;
  piece.data = data;
  return file_write(path, &piece, 1, link->diag);
}

static bool link_all(const Target *target, const Code *objects, size_t count, const char *soname, bool relocatable,
                     bool calls_libc, const char *path, Arena *arena, Diag *diag) {
  /* an arena of its own: the folder goes with it, also when memory runs out */
  Arena *scratch = arena_create(NULL);
  if (scratch == NULL) arena_fail(arena);
  /* messages go to the caller's arena, which may run out as well */
  jmp_buf failure;
  jmp_buf *before = arena_on_failure(arena, &failure);
  if (setjmp(failure)) {
    arena_destroy(scratch);
    arena_on_failure(arena, before);
    arena_fail(arena);
  }
  arena_on_failure(scratch, &failure);
  Link *link = arena_new(scratch, Link);
  *link = (Link){scratch, diag, {path, 0, 0}, NULL, count, calls_libc};
  arena_defer(scratch, remove_folder, link);
  bool done = link_in_folder(link, target, objects, soname, relocatable, path);
  arena_destroy(scratch);
  arena_on_failure(arena, before);
  return done;
}

bool link_objects(const Target *target, const Code *objects, size_t count, const char *soname, bool relocatable,
                  const char *path, Arena *arena, Diag *diag) {
  return link_all(target, objects, count, soname, relocatable, false, path, arena, diag);
}

bool link_host_objects(const Target *target, const Code *objects, size_t count, const char *soname, const char *path,
                       Arena *arena, Diag *diag) {
  return link_all(target, objects, count, soname, false, true, path, arena, diag);
}
