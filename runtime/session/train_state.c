#include "train_state.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/text.h"

/* --- the tensors of the state ----------------------------------------------------------------------------- */

/* "name floats" per tensor: what the part `state` holds, one after the other. */
static bool state_layout(Trainer *trainer, Text *text, size_t *out_floats, Diag *diag) {
  const kiln_state *state = trainer_state(trainer);
  *out_floats = 0;
  for (size_t i = 0; i < kiln_state_tensor_count(state); i++) {
    kiln_port port;
    float *data;
    if (kiln_state_tensor(state, i, &port, &data) != KILN_OK) {
      diag_error(diag, (Location){NULL, 0, 0}, "internal: tensor %zu of the training state cannot be read", i);
      return false;
    }
    text_format(text, "%s %lld\n", port.name, (long long)port.bytes / 4);
    *out_floats += (size_t)port.bytes / sizeof(float);
  }
  return true;
}

static void state_copy(Trainer *trainer, float *floats, bool out_of_state) {
  const kiln_state *state = trainer_state(trainer);
  for (size_t i = 0; i < kiln_state_tensor_count(state); i++) {
    kiln_port port;
    float *data;
    if (kiln_state_tensor(state, i, &port, &data) != KILN_OK) continue;
    memcpy(out_of_state ? floats : data, out_of_state ? data : floats, (size_t)port.bytes);
    floats += (size_t)port.bytes / sizeof(float);
  }
}

/* --- writing ---------------------------------------------------------------------------------------------- */

static void add_part(Checkpoint *checkpoint, const char *name, const void *data, size_t size) {
  checkpoint->parts[checkpoint->count++] = (CheckpointPart){name, data, size};
}

static const char *stats_names(const TrainHistory *history, Arena *arena) {
  Text text;
  text_init(&text, arena);
  for (size_t i = 0; i < history->stats_count; i++) text_format(&text, "%s\n", history->stats_names[i]);
  return text.data;
}

static size_t stats_bytes(const TrainHistory *history, int64_t records) {
  return (size_t)records * history->stats_count * history->stats_width * sizeof(float);
}

static bool write_parts(CheckpointFolder *folder, Trainer *trainer, const char *identity, const TrainPosition *position,
                        const TrainHistory *history, Arena *scratch, Diag *diag) {
  Text layout;
  size_t floats;
  text_init(&layout, scratch);
  if (!state_layout(trainer, &layout, &floats, diag)) return false;
  float *state = arena_array(scratch, floats, float);
  state_copy(trainer, state, true);
  Checkpoint checkpoint = {.step = position->step};
  add_part(&checkpoint, "identity", identity, strlen(identity));
  add_part(&checkpoint, "position", position, sizeof *position);
  add_part(&checkpoint, "layout", layout.data, layout.size);
  add_part(&checkpoint, "state", state, floats * sizeof *state);
  add_part(&checkpoint, "steps", history->steps, (size_t)history->step_count * sizeof *history->steps);
  add_part(&checkpoint, "epochs", history->epochs, (size_t)history->epoch_count * sizeof *history->epochs);
  const char *names = stats_names(history, scratch);
  add_part(&checkpoint, "statistics names", names, strlen(names));
  add_part(&checkpoint, "statistics", history->stats, stats_bytes(history, history->stats_records));
  return checkpoint_write(folder, &checkpoint, scratch, diag);
}

bool train_state_write(CheckpointFolder *folder, Trainer *trainer, const char *identity, const TrainPosition *position,
                       const TrainHistory *history, Diag *diag) {
  Arena *scratch = arena_create(NULL);
  jmp_buf failure;
  if (scratch == NULL || setjmp(failure) != 0) {
    arena_destroy(scratch);
    diag_error(diag, (Location){folder->path, 0, 0}, "out of memory for a checkpoint");
    return false;
  }
  arena_on_failure(scratch, &failure);
  /* messages go to the caller's collector, whose arena outlives this one */
  const bool good = write_parts(folder, trainer, identity, position, history, scratch, diag);
  arena_destroy(scratch);
  return good;
}

/* --- reading ---------------------------------------------------------------------------------------------- */

static size_t line_length(const char *text) { return strcspn(text, "\n"); }

/* The value on the line of `text` that begins with "name "; NULL. */
static const char *find_value(const char *text, const char *name, size_t length) {
  for (const char *line = text; *line != '\0'; line += line_length(line), line += *line == '\n')
    if (strncmp(line, name, length) == 0 && line[length] == ' ') return line + length + 1;
  return NULL;
}

/* Names every line of the run's identity that the checkpoint's does not have like this. */
static bool check_identity(const Checkpoint *checkpoint, const char *now, Arena *scratch, Diag *diag) {
  const CheckpointPart *part = checkpoint_part(checkpoint, "identity", SIZE_MAX);
  const char *then = arena_string_n(scratch, part != NULL ? part->data : "", part != NULL ? part->size : 0);
  if (strcmp(then, now) == 0) return true;
  size_t differing = 0;
  for (const char *line = now; *line != '\0'; line += line_length(line), line += *line == '\n') {
    const size_t name = strcspn(line, " \n");
    const char *value = line + name + (line[name] == ' '), *other = find_value(then, line, name);
    const size_t size = line_length(value), other_size = other != NULL ? line_length(other) : 0;
    if (other != NULL && size == other_size && memcmp(value, other, size) == 0) continue;
    differing++;
    diag_error(diag, (Location){checkpoint->path, 0, 0}, "was made with %.*s %.*s, this run has %.*s", (int)name, line,
               (int)other_size, other != NULL ? other : "", (int)size, value);
  }
  if (differing == 0) diag_error(diag, (Location){checkpoint->path, 0, 0}, "was made by a run with other options");
  return false;
}

static const void *part_data(const Checkpoint *checkpoint, const char *name, size_t size, Diag *diag) {
  const CheckpointPart *part = checkpoint_part(checkpoint, name, size);
  if (part != NULL) return part->data;
  diag_error(diag, (Location){checkpoint->path, 0, 0}, "has no part '%s' of %zu bytes, which this run needs", name,
             size);
  return NULL;
}

/* Statistics never change a run: one that is resumed with others has none of the time before. */
static void read_stats(const Checkpoint *checkpoint, TrainHistory *history, int64_t records, Arena *scratch) {
  const char *names = stats_names(history, scratch);
  const CheckpointPart *found = checkpoint_part(checkpoint, "statistics names", strlen(names));
  const CheckpointPart *part = checkpoint_part(checkpoint, "statistics", stats_bytes(history, records));
  const bool same = found != NULL && part != NULL && memcmp(found->data, names, found->size) == 0;
  const size_t floats = stats_bytes(history, records) / sizeof(float);
  for (size_t i = 0; i < floats && !same; i++) history->stats[i] = NAN;
  if (same && floats > 0) memcpy(history->stats, part->data, floats * sizeof(float));
  history->stats_records = records;
}

bool train_state_read(const Checkpoint *checkpoint, Trainer *trainer, const char *identity, TrainPosition *out_position,
                      TrainHistory *history, Arena *scratch, Diag *diag) {
  Text layout;
  size_t floats;
  TrainPosition position;
  text_init(&layout, scratch);
  if (!check_identity(checkpoint, identity, scratch, diag) || !state_layout(trainer, &layout, &floats, diag))
    return false;
  const void *data = part_data(checkpoint, "position", sizeof position, diag);
  const char *found_layout = part_data(checkpoint, "layout", layout.size, diag);
  if (data == NULL || found_layout == NULL) return false;
  memcpy(&position, data, sizeof position);
  if (memcmp(found_layout, layout.data, layout.size) != 0 || position.step < 0 || position.step > history->step_total ||
      position.epoch_count < 0 || position.epoch_count > history->step_total / history->batches ||
      position.stats_records < 0 || position.stats_records > ceil_div(history->step_total, history->stats_every)) {
    diag_error(diag, (Location){checkpoint->path, 0, 0}, "does not fit this run's network");
    return false;
  }
  const size_t step_bytes = (size_t)position.step * sizeof *history->steps;
  const size_t epoch_bytes = (size_t)position.epoch_count * sizeof *history->epochs;
  const void *state = part_data(checkpoint, "state", floats * sizeof(float), diag);
  const void *steps = part_data(checkpoint, "steps", step_bytes, diag);
  const void *epochs = part_data(checkpoint, "epochs", epoch_bytes, diag);
  if (state == NULL || steps == NULL || epochs == NULL) return false;
  state_copy(trainer, arena_copy(scratch, state, floats * sizeof(float)), false);
  memcpy(history->steps, steps, step_bytes);
  memcpy(history->epochs, epochs, epoch_bytes);
  read_stats(checkpoint, history, position.stats_records, scratch);
  history->step_count = position.step;
  history->epoch_count = position.epoch_count;
  *out_position = position;
  return true;
}
