/* ir/base, ir/types and ir/tensor: the ground everything stands on. */
#include <dirent.h>
#include <fcntl.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/sort.h"
#include "base/text.h"
#include "support.h"
#include "tensor.h"

/* --- arena ----------------------------------------------------------------------------------------- */

static void arena_gives_zeroed_aligned_memory(void **state) {
  Arena *arena = ((Fixture *)*state)->arena;
  for (int round = 0; round < 3; round++) {
    for (size_t size = 0; size < 3000; size += 7) {
      unsigned char *memory = arena_alloc(arena, size, 1);
      assert_int_equal((uintptr_t)memory % 16, 0);
      for (size_t i = 0; i < size; i++) assert_int_equal(memory[i], 0);
      memset(memory, 0xAB, size);
    }
    for (size_t alignment = 1; alignment <= 4096; alignment *= 2) {
      unsigned char *memory = arena_alloc_aligned(arena, 100, alignment);
      assert_int_equal((uintptr_t)memory % alignment, 0);
      memset(memory, 0xCD, 100);
    }
    unsigned char *large = arena_alloc(arena, 1 << 20, 3);
    assert_int_equal(large[3 * (1 << 20) - 1], 0);
    memset(large, 0xEF, 3 << 20);
    arena_reset(arena);
    assert_int_equal(arena_used(arena), 0);
  }
  ((Fixture *)*state)->diag = diag_create(arena);
}

static char release_log[8], *release_at;
static void release_letter(void *object) { *release_at++ = *(const char *)object; }

static void arena_runs_releases_in_reverse(void **state) {
  (void)state;
  Arena *arena = arena_create(NULL);
  release_at = release_log;
  memset(release_log, 0, sizeof release_log);
  arena_defer(arena, release_letter, arena_string(arena, "a"));
  arena_defer(arena, release_letter, arena_string(arena, "b"));
  arena_reset(arena);
  assert_string_equal(release_log, "ba");
  arena_defer(arena, release_letter, arena_string(arena, "c"));
  arena_destroy(arena);
  assert_string_equal(release_log, "bac");
}

/* An allocator that fails after `left` calls and counts what is not given back. */
typedef struct Meter {
  int left, open;
} Meter;

static void *meter_allocate(void *context, size_t size, size_t alignment) {
  Meter *meter = context;
  (void)alignment;
  if (meter->left-- <= 0) return NULL;
  meter->open++;
  return malloc(size);
}

static void meter_release(void *context, void *memory, size_t size) {
  (void)size;
  ((Meter *)context)->open--;
  free(memory);
}

static void count_release(void *object) { ++*(int *)object; }

static void arena_jumps_when_memory_runs_out(void **state) {
  (void)state;
  for (volatile int left = 1; left < 6; left++) {
    static Meter meter;
    meter = (Meter){left, 0};
    const Allocator allocator = {meter_allocate, meter_release, &meter};
    Arena *volatile arena = arena_create(&allocator);
    jmp_buf point;
    volatile int registered = 0;
    static int released; /* changed between setjmp and longjmp */
    released = 0;
    arena_on_failure(arena, &point);
    if (setjmp(point) == 0) {
      for (;;) {
        registered++;
        arena_defer(arena, count_release, &released);
        if (left % 2) arena_alloc(arena, 1000, 1000); /* else the note of a release is what fails */
      }
    }
    arena_destroy(arena);
    assert_int_equal(released, registered);
    assert_int_equal(meter.open, 0);
  }
}

static void arena_overflow_is_out_of_memory(void **state) {
  Arena *arena = ((Fixture *)*state)->arena;
  jmp_buf point;
  volatile int failures = 0;
  const size_t counts[] = {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 16 + 1, SIZE_MAX / 32};
  for (volatile size_t i = 0; i < 4; i++) {
    jmp_buf *previous = arena_on_failure(arena, &point);
    if (setjmp(point) == 0) {
      arena_alloc(arena, counts[i], 16);
    } else {
      failures++;
    }
    arena_on_failure(arena, previous);
  }
  assert_int_equal(failures, 4);
}

static void arena_copies_strings(void **state) {
  Arena *arena = ((Fixture *)*state)->arena;
  assert_string_equal(arena_string(arena, "text"), "text");
  assert_string_equal(arena_string_n(arena, "text", 2), "te");
  assert_string_equal(arena_string_n(arena, "te\0xt", 5), "te");
  assert_string_equal(arena_format(arena, "%s-%d-%.1f", "a", 5, 2.5), "a-5-2.5");
  assert_memory_equal(arena_copy(arena, "abc", 3), "abc", 3);
}

/* --- messages -------------------------------------------------------------------------------------- */

static void diag_formats_places(void **state) {
  Fixture *fixture = *state;
  diag_error(fixture->diag, (Location){"model.json", 41, 18}, "expects %d, found %d", 64, 128);
  diag_warning(fixture->diag, (Location){"a.png", 0, 0}, "odd");
  diag_note(fixture->diag, (Location){NULL, 0, 0}, "see there");
  diag_error(fixture->diag, (Location){"b", 3, 0}, "line only");
  check_messages(fixture,
                 "model.json:41:18: error: expects 64, found 128\na.png: warning: odd\nnote: see there\n"
                 "b:3: error: line only\n");
  assert_int_equal(diag_error_count(fixture->diag), 2);
}

static void diag_shows_control_bytes(void **state) {
  Fixture *fixture = *state;
  diag_error(fixture->diag, (Location){"a\nb", 1, 1}, "name '%s'", "x\ny\x1b[31m\x7f\xff\xc2\x9b ä");
  check_messages(fixture, "a\\x0ab:1:1: error: name 'x\\x0ay\\x1b[31m\\x7f\\xff\\xc2\\x9b ä'\n");
}

static void diag_stops_at_the_limit(void **state) {
  Fixture *fixture = *state;
  for (int i = 0; i < DIAG_LIMIT + 3; i++) {
    assert_int_equal(diag_full(fixture->diag), i >= DIAG_LIMIT);
    diag_error(fixture->diag, (Location){"f", 1, 1}, "error %d", i);
    diag_note(fixture->diag, (Location){"f", 1, 1}, "note %d", i);
  }
  assert_int_equal(diag_error_count(fixture->diag), DIAG_LIMIT + 3);
  assert_int_equal(diag_message_count(fixture->diag), 2 * DIAG_LIMIT);
  check_message_part(fixture, "note 19\nnote: 3 more errors not shown\n");
}

/* --- text ------------------------------------------------------------------------------------------ */

static void check_double(Arena *arena, double value, const char *expected) {
  Text text;
  text_init(&text, arena);
  text_add_double(&text, value);
  assert_string_equal(text.data, expected);
  double back;
  assert_true(parse_double(text.data, &back));
  assert_true(back == value || (isnan(back) && isnan(value)));
}

static void check_doubles(Arena *arena) {
  check_double(arena, 0.1, "0.1");
  check_double(arena, 1e-5, "1e-05");
  check_double(arena, -3, "-3");
  check_double(arena, 30, "30");
  check_double(arena, -0.0, "-0");
  check_double(arena, 1.0 / 3, "0.3333333333333333");
  check_double(arena, 0.1 + 0.2, "0.30000000000000004");
  check_double(arena, 5e-324, "5e-324");
  check_double(arena, 1.7976931348623157e308, "1.7976931348623157e+308");
  check_double(arena, (double)0.1F, "0.10000000149011612");
  check_double(arena, HUGE_VAL, "inf");
  check_double(arena, -HUGE_VAL, "-inf");
  check_double(arena, (double)NAN, "nan");
}

static void doubles_are_shortest_and_read_back(void **state) {
  Arena *arena = ((Fixture *)*state)->arena;
  check_doubles(arena);
  uint64_t bits = 88172645463325252U;
  for (int i = 0; i < 2000; i++) {
    bits ^= bits << 13, bits ^= bits >> 7, bits ^= bits << 17;
    double value, back;
    memcpy(&value, &bits, sizeof value);
    if (!isfinite(value)) continue;
    char buffer[DOUBLE_TEXT_SIZE];
    assert_true(parse_double(double_text(value, buffer), &back));
    assert_true(back == value);
  }
}

/* Switches to a locale with a decimal comma, compiled into the test's folder. */
static bool use_comma_locale(Fixture *fixture) {
  char command[160];
  snprintf(command, sizeof command, "localedef -i de_DE -f UTF-8 '%s/de_DE.UTF-8' >/dev/null 2>&1", fixture->folder);
  return system(command) == 0 && setenv("LOCPATH", fixture->folder, 1) == 0 && setlocale(LC_ALL, "de_DE.UTF-8");
}

static void numbers_ignore_the_locale(void **state) {
  Fixture *fixture = *state;
  if (!use_comma_locale(fixture)) skip(); /* no locale sources on this machine */
  char buffer[16];
  snprintf(buffer, sizeof buffer, "%.1f", 0.5);
  check_doubles(fixture->arena);
  const char *formatted = arena_format(fixture->arena, "%.1f", 0.5);
  setlocale(LC_ALL, "C");
  assert_string_equal(buffer, "0,5");
  assert_string_equal(formatted, "0.5");
}

static void numbers_are_parsed_strictly(void **state) {
  (void)state;
  static const char *const bad[] = {"",  " 1",  "1 ",  "0x10",  "1e",    "e5",     ".",   "1,5", "infinity",
                                    "+", "--1", "1e+", "1.2.3", "1e999", "-1e999", "NaN", "1e5x"};
  double value;
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    if (parse_double(bad[i], &value)) fail_msg("accepted '%s'", bad[i]);
  }
  assert_true(parse_double("+1.5e+2", &value) && value == 150);
  assert_true(parse_double(".5", &value) && value == 0.5);
  int64_t integer;
  assert_true(parse_int("-9223372036854775808", &integer) && integer == INT64_MIN);
  assert_true(parse_int("9223372036854775807", &integer) && integer == INT64_MAX);
  assert_false(parse_int("9223372036854775808", &integer));
  assert_false(parse_int("-9223372036854775809", &integer));
  assert_false(parse_int("", &integer));
  assert_false(parse_int("1.0", &integer));
  assert_false(parse_int(" 1", &integer));
}

static void text_grows_and_escapes(void **state) {
  Text text;
  text_init(&text, ((Fixture *)*state)->arena);
  text_add_json(&text, "a\"b\\c\n\x01ä/");
  assert_string_equal(text.data, "\"a\\\"b\\\\c\\n\\u0001ä/\"");
  text_init(&text, text.arena);
  for (int i = 0; i < 1000; i++) text_format(&text, "%d,", i % 10);
  assert_int_equal(text.size, 2000);
  text_format(&text, "%5000d", 7);
  assert_int_equal(text.size, 7000);
  assert_int_equal(strlen(text.data), 7000);
  assert_int_equal(text.data[6999], '7');
}

static void utf8_is_strict(void **state) {
  (void)state;
  static const char *const bad[] = {"\x80",
                                    "\xC0\x80",
                                    "\xC1\xBF",
                                    "\xE0\x80\x80",
                                    "\xED\xA0\x80",
                                    "\xF0\x80\x80\x80",
                                    "\xF4\x90\x80\x80",
                                    "\xF5\x80\x80\x80",
                                    "\xE2\x82",
                                    "\xFF",
                                    "\xC3("};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(utf8_valid(bad[i], strlen(bad[i])));
  const char *good = "aä€😀\xEF\xBF\xBF\xF4\x8F\xBF\xBF";
  assert_true(utf8_valid(good, strlen(good)));
  assert_int_equal(utf8_prefix("ab\xC3", 3), 2);
}

static void patterns_match(void **state) {
  (void)state;
  assert_true(pattern_match("layer*.conv2", "layer1.0.conv2"));
  assert_false(pattern_match("layer*.conv2", "layer1.0.conv1"));
  assert_true(pattern_match("*", ""));
  assert_true(pattern_match("*a*b", "xxaxxabxb"));
  assert_false(pattern_match("body", "body2"));
  assert_true(pattern_match("l?yer", "läyer"));
  assert_false(pattern_match("?", ""));
  char name[2001] = "", pattern[101] = "";
  memset(name, 'a', 2000);
  for (int i = 0; i < 98; i += 2) memcpy(pattern + i, "*a", 2);
  pattern[98] = 'b';
  assert_false(pattern_match(pattern, name)); /* exponential when every star is tried again */
}

static void nearest_words_are_found(void **state) {
  (void)state;
  static const char *const words[] = {"kernel", "stride", "padding", "out_channels", "in", "if"};
  const size_t count = sizeof words / sizeof words[0];
  assert_string_equal(nearest_word("kernal", words, count), "kernel");
  assert_string_equal(nearest_word("strdie", words, count), "stride");
  assert_string_equal(nearest_word("out_chanels", words, count), "out_channels");
  assert_string_equal(nearest_word("kernel_size", words, count), "kernel");
  assert_string_equal(nearest_word("out", words, count), "out_channels");
  assert_null(nearest_word("momentum", words, count));
  assert_null(nearest_word("", words, count));
  assert_null(nearest_word("x", words, count));
}

static int compare_bytes(const void *a, const void *b) { return *(const char *)a - *(const char *)b; }

static void sorting_is_stable(void **state) {
  (void)state;
  const char *letters = "dbacbdaebc";
  const void *items[10], *scratch[10];
  for (size_t count = 0; count <= 10; count++) {
    for (size_t i = 0; i < count; i++) items[i] = letters + i;
    sort_pointers(items, scratch, count, compare_bytes);
    for (size_t i = 1; i < count; i++) {
      const char *before = items[i - 1], *here = items[i];
      assert_true(*before < *here || (*before == *here && before < here));
    }
  }
}

/* --- files ----------------------------------------------------------------------------------------- */

static size_t count_files(const char *folder) {
  DIR *directory = opendir(folder);
  assert_non_null(directory);
  size_t count = 0;
  for (const struct dirent *entry; (entry = readdir(directory));) {
    count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
  }
  closedir(directory);
  return count;
}

static void files_are_replaced_and_read(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "file");
  for (int round = 0; round < 2; round++) {
    const FilePiece pieces[] = {{"abc", 3}, {NULL, 0}, {"defg", (size_t)round + 1}};
    assert_true(file_write(path, pieces, 3, fixture->diag));
    void *data;
    size_t size;
    assert_true(file_read(path, 100, fixture->arena, fixture->diag, &data, &size));
    assert_int_equal(size, 4 + round);
    assert_string_equal(data, round ? "abcde" : "abcd");
    assert_int_equal((uintptr_t)data % 64, 0);
    assert_int_equal(count_files(fixture->folder), 1);
  }
}

static void replacing_keeps_the_mode_and_the_link(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "file"), *link_path = fixture_path(fixture, "link");
  const FilePiece piece = {"abc", 3};
  assert_true(file_write(path, &piece, 1, fixture->diag));
  assert_int_equal(chmod(path, 0640), 0);
  assert_int_equal(symlink("file", link_path), 0);
  assert_true(file_write(link_path, &piece, 1, fixture->diag));
  struct stat status;
  assert_int_equal(lstat(link_path, &status), 0);
  assert_true(S_ISLNK(status.st_mode));
  assert_int_equal(stat(path, &status), 0);
  assert_int_equal(status.st_mode & 0777, 0640);
}

static void check_read_error(Fixture *fixture, const char *path, size_t limit, const char *message) {
  void *data;
  size_t size;
  clear_messages(fixture);
  assert_false(file_read(path, limit, fixture->arena, fixture->diag, &data, &size));
  check_messages(fixture, arena_format(fixture->arena, "%s: error: %s\n", path, message));
}

static void reading_reports(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "file"), *fifo = fixture_path(fixture, "fifo");
  check_read_error(fixture, path, 10, "cannot open the file: No such file or directory");
  check_read_error(fixture, fixture->folder, 10, "is a folder, expected a file");
  assert_int_equal(mkfifo(fifo, 0600), 0);
  check_read_error(fixture, fifo, 10, "is not a regular file");
  const FilePiece piece = {"abcdef", 6};
  assert_true(file_write(path, &piece, 1, fixture->diag));
  check_read_error(fixture, path, 5, "the file has 6 bytes, more than the limit of 5");
}

static void check_write_error(Fixture *fixture, const char *path, const char *message) {
  const FilePiece piece = {"abc", 3};
  clear_messages(fixture);
  assert_false(file_write(path, &piece, 1, fixture->diag));
  check_messages(fixture, arena_format(fixture->arena, "%s: error: %s\n", path, message));
}

static void writing_reports(void **state) {
  Fixture *fixture = *state;
  check_write_error(fixture, fixture_path(fixture, "none/file"), "cannot open the folder: No such file or directory");
  check_write_error(fixture, fixture->folder, "cannot replace it: Is a directory");
  check_write_error(fixture, "/dev/null", "cannot replace it: not a regular file: Invalid argument");
  check_write_error(fixture, "", "cannot write the file: No such file or directory");
  assert_int_equal(count_files(fixture->folder), 0);
}

static void failed_writing_leaves_the_old_file(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "file");
  const FilePiece old = {"old", 3};
  assert_true(file_write(path, &old, 1, fixture->diag));
  struct rlimit limit, small;
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
  small = limit;
  small.rlim_cur = 1000;
  void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
  const FilePiece large = {arena_alloc(fixture->arena, 5000, 1), 5000};
  const bool written = file_write(path, &large, 1, fixture->diag);
  setrlimit(RLIMIT_FSIZE, &limit);
  signal(SIGXFSZ, handler);
  assert_false(written);
  check_message_part(fixture, "cannot write the file: File too large");
  void *data;
  size_t size;
  assert_true(file_read(path, 100, fixture->arena, fixture->diag, &data, &size));
  assert_string_equal(data, "old");
  assert_int_equal(count_files(fixture->folder), 1);
}

static void reading_without_memory_closes_the_file(void **state) {
  Fixture *fixture = *state;
  const char *path = fixture_path(fixture, "file");
  const FilePiece large = {arena_alloc(fixture->arena, 100000, 1), 100000};
  assert_true(file_write(path, &large, 1, fixture->diag));
  static Meter meter = {2, 0};
  const Allocator allocator = {meter_allocate, meter_release, &meter};
  Arena *volatile arena = arena_create(&allocator);
  const int before = open("/dev/null", O_RDONLY);
  close(before);
  jmp_buf point;
  volatile bool failed = false;
  arena_on_failure(arena, &point);
  if (setjmp(point) == 0) {
    for (;;) {
      void *data;
      size_t size;
      if (!file_read(path, SIZE_MAX, arena, fixture->diag, &data, &size)) break;
    }
  } else {
    failed = true;
  }
  assert_true(failed);
  const int after = open("/dev/null", O_RDONLY);
  close(after);
  assert_int_equal(after, before);
  arena_destroy(arena);
}

/* --- types and tensors ----------------------------------------------------------------------------- */

static void check_element(Arena *arena, const char *name, LayoutKind kind, int32_t block, DataType element) {
  Layout layout;
  assert_true(layout_parse(name, &layout));
  assert_true(layout_equal(layout, (Layout){kind, block, element}));
  assert_int_equal(layout_stored_bytes(layout, DTYPE_F32), element == DTYPE_F32 ? 4 : 2);
  Text text;
  text_init(&text, arena);
  layout_print(&text, layout);
  assert_string_equal(text.data, name);
}

static void check_layout(Arena *arena, const char *name, LayoutKind kind, int32_t block) {
  check_element(arena, name, kind, block, DTYPE_F32);
}

static void layouts_round_trip(void **state) {
  Arena *arena = ((Fixture *)*state)->arena;
  check_layout(arena, "plain", LAYOUT_PLAIN, 0);
  check_layout(arena, "nchw16c", LAYOUT_CHANNEL_BLOCK, 16);
  check_layout(arena, "nchw8c", LAYOUT_CHANNEL_BLOCK, 8);
  check_layout(arena, "nhwc", LAYOUT_CHANNEL_LAST, 0);
  check_layout(arena, "oihw32o", LAYOUT_FILTER_BLOCK, 32);
  check_layout(arena, "oi32o", LAYOUT_MATRIX_BLOCK, 32);
  check_layout(arena, "c16", LAYOUT_VECTOR_BLOCK, 16);
  check_element(arena, "nhwc_bf16", LAYOUT_CHANNEL_LAST, 0, DTYPE_BF16);
  check_element(arena, "ohwi8_f16", LAYOUT_FILTER_LAST, 8, DTYPE_F16);
  static const char *const bad[] = {"",      "nchw", "nchw16", "nchw0c", "nchw016c", "nchw99999999999c",
                                    "nhwc1", "c",    "c16x",   "nhwc_",  "nhwc_f32", "nhwc_bf16x"};
  Layout layout;
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(layout_parse(bad[i], &layout));
}

static void shapes_count_and_print(void **state) {
  Text text;
  text_init(&text, ((Fixture *)*state)->arena);
  const Shape shape = shape_of(4, (const int64_t[]){DIM_BATCH, 64, 56, 56});
  shape_print(&text, &shape);
  assert_string_equal(text.data, "N,64,56,56");
  assert_true(shape_batched(&shape));
  int64_t count;
  assert_true(shape_elements(&shape, 2, &count) && count == 2 * 64 * 56 * 56);
  assert_true(shape_elements(&shape, 0, &count) && count == 0);
  assert_int_equal(shape_elements_per_image(&shape), 64 * 56 * 56);
  const Shape huge = shape_of(3, (const int64_t[]){INT64_C(1) << 40, INT64_C(1) << 40, 0});
  assert_false(shape_elements(&huge, 1, &count));
  const Shape negative = shape_of(2, (const int64_t[]){3, -1});
  assert_false(shape_elements(&negative, 1, &count));
  const Shape scalar = shape_of(0, NULL);
  assert_true(shape_elements(&scalar, 1, &count) && count == 1);
  DataType type;
  assert_true(data_type_parse("bf16", &type) && type == DTYPE_BF16);
  assert_false(data_type_parse("F32", &type));
}

static void small_floats_convert(void **state) {
  (void)state;
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const double half = half_to_double((uint16_t)bits), bfloat = bfloat_to_double((uint16_t)bits);
    if (!isnan(half)) assert_int_equal(half_from_double(half), bits);
    if (!isnan(bfloat)) assert_int_equal(bfloat_from_double(bfloat), bits);
    const uint32_t wide = bits << 16;
    float expected;
    memcpy(&expected, &wide, sizeof expected);
    if (!isnan(expected)) assert_true((double)expected == bfloat);
  }
  assert_true(half_to_double(0x3C00) == 1 && half_to_double(0x7BFF) == 65504 && half_to_double(1) == 0x1p-24);
  assert_int_equal(half_from_double(65519.99), 0x7BFF);
  assert_int_equal(half_from_double(65520), 0x7C00);
  assert_int_equal(half_from_double(0x1p-25), 0);   /* a tie goes to even */
  assert_int_equal(half_from_double(0x1.8p-24), 2); /* so does this one */
  assert_int_equal(half_from_double(0x1.00001p-25), 1);
  assert_int_equal(half_from_double(1 + 0x1p-11), 0x3C00);
  assert_int_equal(half_from_double(1 + 0x1p-11 + 0x1p-40), 0x3C01); /* float in between would round it away */
  assert_int_equal(half_from_double(-1e300), 0xFC00);
  assert_int_equal(half_from_double(1e-300), 0);
  assert_int_equal(bfloat_from_double(1e39), 0x7F80);
  assert_true(isnan(half_to_double(half_from_double((double)NAN))));
}

static void tensors_round_and_saturate(void **state) {
  Arena *arena = ((Fixture *)*state)->arena;
  static const struct {
    DataType type;
    double value, expected;
  } cases[] = {
      {DTYPE_I8, 200, 127},      {DTYPE_I8, -200, -128},         {DTYPE_U8, -1, 0},
      {DTYPE_U8, 2.5, 2},        {DTYPE_I16, 40000, 32767},      {DTYPE_I32, 1e10, 2147483647},
      {DTYPE_I64, 1e30, 0x1p63}, {DTYPE_I64, -1e30, -0x1p63},    {DTYPE_I32, (double)NAN, 0},
      {DTYPE_BOOL, 0.5, 1},      {DTYPE_F32, 0.1, (double)0.1F}, {DTYPE_F64, 0.1, 0.1},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    Tensor tensor = tensor_create(arena, "t", cases[i].type, shape_of(1, (const int64_t[]){3}));
    tensor_set(&tensor, 1, cases[i].value);
    assert_true(tensor_get(&tensor, 1) == cases[i].expected);
    assert_true(tensor_get(&tensor, 0) == 0 && tensor_get(&tensor, 2) == 0);
    assert_int_equal(tensor_bytes(&tensor), 3 * data_type_bytes(cases[i].type));
  }
  const TensorList list = {(Tensor[]){{.name = "a"}, {.name = "b"}}, 2};
  assert_ptr_equal(tensor_find(&list, "b"), &list.items[1]);
  assert_null(tensor_find(&list, "c"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      fixture_test(arena_gives_zeroed_aligned_memory),
      fixture_test(arena_runs_releases_in_reverse),
      fixture_test(arena_jumps_when_memory_runs_out),
      fixture_test(arena_overflow_is_out_of_memory),
      fixture_test(arena_copies_strings),
      fixture_test(diag_formats_places),
      fixture_test(diag_shows_control_bytes),
      fixture_test(diag_stops_at_the_limit),
      fixture_test(doubles_are_shortest_and_read_back),
      fixture_test(numbers_ignore_the_locale),
      fixture_test(numbers_are_parsed_strictly),
      fixture_test(text_grows_and_escapes),
      fixture_test(utf8_is_strict),
      fixture_test(patterns_match),
      fixture_test(nearest_words_are_found),
      fixture_test(sorting_is_stable),
      fixture_test(files_are_replaced_and_read),
      fixture_test(replacing_keeps_the_mode_and_the_link),
      fixture_test(reading_reports),
      fixture_test(writing_reports),
      fixture_test(failed_writing_leaves_the_old_file),
      fixture_test(reading_without_memory_closes_the_file),
      fixture_test(layouts_round_trip),
      fixture_test(shapes_count_and_print),
      fixture_test(small_floats_convert),
      fixture_test(tensors_round_and_saturate),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
