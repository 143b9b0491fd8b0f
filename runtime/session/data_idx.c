#include "data_idx.h"

#include <string.h>
#define ZLIB_CONST
#include <zlib.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/text.h"

static const size_t file_limit = (size_t)8 << 30;

enum {
  TYPE_U8 = 0x08,
  HEADER_MAX = 4 + 4 * IDX_MAX_RANK,
  /* A deflate stream cannot grow by more than 1032 times (zlib.net/zlib_tech.html). */
  DEFLATE_RATIO = 1032
};

/* --- header ---------------------------------------------------------------------------------------- */

static uint32_t read_u32(const uint8_t *at) {
  return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Bytes of the header that begins with these four, 0 after reporting. */
static size_t header_size(const char *name, const uint8_t start[4], Diag *diag) {
  const Location location = {name, 0, 0};
  if (start[0] != 0 || start[1] != 0) {
    diag_error(diag, location, "not an IDX file: expected two zero bytes, found %02x %02x", start[0], start[1]);
    return 0;
  }
  if (start[2] != TYPE_U8) {
    diag_error(diag, location, "IDX: expected elements of type 08 (unsigned bytes), found type %02x", start[2]);
    return 0;
  }
  if (start[3] < 1 || start[3] > IDX_MAX_RANK) {
    diag_error(diag, location, "IDX: expected from 1 to %d dimensions, found %d", IDX_MAX_RANK, start[3]);
    return 0;
  }
  return 4 + 4 * (size_t)start[3];
}

/* Reads a whole header. */
static bool parse_header(const char *name, const uint8_t *header, Diag *diag, IdxArray *out_array) {
  IdxArray array = {.rank = header[3], .count = 1};
  for (int32_t d = 0; d < array.rank; d++) {
    array.dims[d] = read_u32(header + 4 + 4 * d);
    if (!checked_mul(array.count, array.dims[d], &array.count)) {
      diag_error(diag, (Location){name, 0, 0}, "IDX: the product of the dimensions is too large");
      return false;
    }
  }
  *out_array = array;
  return true;
}

static const char *dims_text(const IdxArray *array, Arena *arena) {
  Text text;
  text_init(&text, arena);
  for (int32_t d = 0; d < array->rank; d++) text_format(&text, "%s%lld", d > 0 ? " × " : "", (long long)array->dims[d]);
  return text.data;
}

static void report_short(const char *name, Diag *diag) {
  diag_error(diag, (Location){name, 0, 0}, "IDX: the file ends inside the header");
}

/* --- plain files ----------------------------------------------------------------------------------- */

static bool parse_plain(const char *name, const uint8_t *bytes, size_t size, Arena *arena, Diag *diag,
                        IdxArray *out_array) {
  const size_t header = size < 4 ? 4 : header_size(name, bytes, diag);
  if (header == 0) return false;
  if (size < header) {
    report_short(name, diag);
    return false;
  }
  if (!parse_header(name, bytes, diag, out_array)) return false;
  if ((uint64_t)out_array->count != size - header) {
    diag_error(diag, (Location){name, 0, 0}, "IDX: expected %s = %lld bytes after the header, found %zu",
               dims_text(out_array, arena), (long long)out_array->count, size - header);
    return false;
  }
  out_array->values = bytes + header;
  return true;
}

/* --- gzip ------------------------------------------------------------------------------------------ */

/* A gzip file being read: one or more members, of which zlib checks length and checksum. zlib's memory comes from the
 * arena, so that nothing is left when that runs out in between. */
typedef struct Gzip {
  const char *name;
  Diag *diag;
  z_stream stream;
  const uint8_t *next; /* input that zlib has not been given yet */
  size_t left;
  bool ended; /* at the end of a member */
} Gzip;

static void *gzip_allocate(void *arena, unsigned count, unsigned size) { return arena_alloc(arena, count, size); }

static void gzip_release(void *arena, void *memory) {
  (void)arena;
  (void)memory;
}

static void gzip_begin(Gzip *gzip, Arena *arena) {
  enum { WINDOW_BITS = 15, GZIP_FORMAT = 16 };
  gzip->stream = (z_stream){.zalloc = gzip_allocate, .zfree = gzip_release, .opaque = arena};
  if (inflateInit2(&gzip->stream, WINDOW_BITS + GZIP_FORMAT) != Z_OK) arena_fail(arena);
}

/* zlib counts bytes in 32 bits. */
static unsigned clip(size_t size) { return size < (1U << 30) ? (unsigned)size : 1U << 30; }

/* Up to `size` bytes; fewer only at the end of the data. −1 after reporting. */
static int64_t gzip_read(Gzip *gzip, uint8_t *out, size_t size) {
  z_stream *stream = &gzip->stream;
  size_t done = 0;
  while (done < size) {
    if (gzip->ended) {
      if (gzip->left == 0 && stream->avail_in == 0) break;
      inflateReset(stream);
      gzip->ended = false;
    }
    if (stream->avail_in == 0) {
      stream->next_in = gzip->next;
      stream->avail_in = clip(gzip->left);
      gzip->next += stream->avail_in;
      gzip->left -= stream->avail_in;
    }
    const unsigned room = clip(size - done);
    stream->next_out = out + done;
    stream->avail_out = room;
    const int code = inflate(stream, Z_NO_FLUSH);
    done += room - stream->avail_out;
    if (code == Z_STREAM_END) {
      gzip->ended = true;
    } else if (code == Z_BUF_ERROR && stream->avail_in == 0 && gzip->left == 0) {
      diag_error(gzip->diag, (Location){gzip->name, 0, 0}, "gzip: the file ends too early");
      return -1;
    } else if (code != Z_OK) {
      diag_error(gzip->diag, (Location){gzip->name, 0, 0}, "gzip: %s", stream->msg ? stream->msg : "damaged data");
      return -1;
    }
  }
  return (int64_t)done;
}

/* The values, in memory that the compressed size has shown to be plausible. */
static bool gzip_values(Gzip *gzip, size_t compressed, Arena *arena, IdxArray *array) {
  const Location location = {gzip->name, 0, 0};
  if ((uint64_t)array->count / DEFLATE_RATIO > compressed) {
    diag_error(gzip->diag, location, "IDX: expected %s = %lld bytes, but %zu bytes of gzip cannot hold so many",
               dims_text(array, arena), (long long)array->count, compressed);
    return false;
  }
  uint8_t *values = arena_alloc(arena, (size_t)array->count, 1);
  uint8_t more;
  const int64_t found = gzip_read(gzip, values, (size_t)array->count);
  /* one byte further: also reads and checks the end of the file */
  const int64_t rest = found < 0 ? -1 : gzip_read(gzip, &more, 1);
  if (rest < 0) return false;
  if (found != array->count || rest != 0) {
    diag_error(gzip->diag, location, "IDX: expected %s = %lld bytes after the header, found %s%lld",
               dims_text(array, arena), (long long)array->count, rest > 0 ? "more than " : "", (long long)found);
    return false;
  }
  array->values = values;
  return true;
}

static bool parse_gzip(const char *name, const uint8_t *bytes, size_t size, Arena *arena, Diag *diag,
                       IdxArray *out_array) {
  Gzip gzip = {.name = name, .diag = diag, .next = bytes, .left = size};
  gzip_begin(&gzip, arena);
  uint8_t header[HEADER_MAX];
  int64_t found = gzip_read(&gzip, header, 4);
  if (found < 0) return false;
  const size_t wanted = found < 4 ? 4 : header_size(name, header, diag);
  if (wanted == 0) return false;
  if (found == 4) {
    const int64_t rest = gzip_read(&gzip, header + 4, wanted - 4);
    if (rest < 0) return false;
    found += rest;
  }
  if ((size_t)found < wanted || found == 4) {
    report_short(name, diag);
    return false;
  }
  return parse_header(name, header, diag, out_array) && gzip_values(&gzip, size, arena, out_array);
}

/* --- files ----------------------------------------------------------------------------------------- */

static bool is_gzip(const uint8_t *bytes, size_t size) { return size >= 2 && bytes[0] == 0x1F && bytes[1] == 0x8B; }

bool idx_parse(const char *name, const void *bytes, size_t size, Arena *arena, Diag *diag, IdxArray *out_array) {
  return is_gzip(bytes, size) ? parse_gzip(name, bytes, size, arena, diag, out_array)
                              : parse_plain(name, bytes, size, arena, diag, out_array);
}

bool idx_read(const char *path, Arena *arena, Diag *diag, IdxArray *out_array) {
  void *bytes;
  size_t size;
  return file_read(path, file_limit, arena, diag, &bytes, &size) &&
         idx_parse(path, bytes, size, arena, diag, out_array);
}
