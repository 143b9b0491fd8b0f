/* What the tests share: an arena with a collector of messages for every test, and checks of the messages. */
#ifndef KILN_TESTS_SUPPORT_H
#define KILN_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* after the four headers it needs */
#include <cmocka.h>

#include "base/diag.h"
#include "base/file.h"

typedef struct Fixture {
  Arena *arena;
  Diag *diag;
  char folder[64]; /* empty, removed with its files when the test ends */
} Fixture;

static inline int fixture_setup(void **state) {
  Fixture *fixture = calloc(1, sizeof(Fixture));
  if (!fixture) return -1;
  fixture->arena = arena_create(NULL);
  fixture->diag = diag_create(fixture->arena);
  snprintf(fixture->folder, sizeof fixture->folder, "/tmp/kiln-test-XXXXXX");
  *state = fixture;
  return mkdtemp(fixture->folder) ? 0 : -1;
}

static inline int fixture_teardown(void **state) {
  Fixture *fixture = *state;
  char command[128];
  snprintf(command, sizeof command, "rm -rf '%s'", fixture->folder);
  const int result = system(command);
  arena_destroy(fixture->arena);
  free(fixture);
  return result;
}

static inline const char *fixture_path(Fixture *fixture, const char *name) {
  return arena_format(fixture->arena, "%s/%s", fixture->folder, name);
}

/* The description of an example. */
static inline char *fixture_example(Fixture *fixture, const char *name) {
  const char *path = arena_format(fixture->arena, KILN_SOURCE_DIR "/examples/%s.json", name);
  void *text;
  size_t size;
  if (!file_read(path, 1 << 20, fixture->arena, fixture->diag, &text, &size)) fail_msg("%s is missing", path);
  return arena_string_n(fixture->arena, text, size);
}

/* All messages so far, exactly. */
static inline void check_messages(Fixture *fixture, const char *expected) {
  assert_string_equal(diag_text(fixture->diag, fixture->arena), expected);
}

/* Part of the messages so far. */
static inline void check_message_part(Fixture *fixture, const char *part) {
  const char *text = diag_text(fixture->diag, fixture->arena);
  if (!strstr(text, part)) fail_msg("expected '%s' in: %s", part, text);
}

/* Forgets the messages. */
static inline void clear_messages(Fixture *fixture) { fixture->diag = diag_create(fixture->arena); }

#define fixture_test(function) cmocka_unit_test_setup_teardown(function, fixture_setup, fixture_teardown)

#endif
