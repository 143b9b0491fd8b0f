#include "processors.h"

#include <stdio.h>
#include <string.h>

enum { LINE_MAX_BYTES = 4096 };

/* --- control groups ---------------------------------------------------------------------------------- */

/* Processors' time a group has, in processors; 0: all. cpu.max holds "QUOTA PERIOD" in microseconds, or "max PERIOD".
 */
static uint32_t group_quota(const char *root, const char *group) {
  char path[2 * LINE_MAX_BYTES];
  long long quota, period;
  if (snprintf(path, sizeof path, "%s%s/cpu.max", root, group) >= (int)sizeof path) return 0;
  FILE *file = fopen(path, "re");
  if (file == NULL) return 0;
  const bool limited = fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0;
  fclose(file);
  if (!limited) return 0;
  const long long processors = quota / period + (quota % period != 0);
  return processors < PROCESSORS_MAX ? (uint32_t)processors : PROCESSORS_MAX;
}

/* "/user.slice/session.scope": the line of version 2 in /proc/self/cgroup is "0::PATH". */
static bool read_group(char group[LINE_MAX_BYTES]) {
  FILE *file = fopen("/proc/self/cgroup", "re");
  bool found = false;
  if (file == NULL) return false;
  while (!found && fgets(group, LINE_MAX_BYTES, file) != NULL) found = strncmp(group, "0::/", 4) == 0;
  fclose(file);
  if (!found) return false;
  memmove(group, group + 3, strlen(group + 3) + 1);
  group[strcspn(group, "\n")] = '\0';
  return true;
}

uint32_t processors_quota(const char *root, const char *group) {
  char path[LINE_MAX_BYTES];
  uint32_t least = 0;
  if (snprintf(path, sizeof path, "%s", group) >= (int)sizeof path) return 0;
  for (char *end = path + strlen(path); end != NULL; end = strrchr(path, '/')) {
    *end = '\0';
    const uint32_t quota = group_quota(root, path);
    if (quota != 0 && (least == 0 || quota < least)) least = quota;
  }
  return least;
}

/* --- processors -------------------------------------------------------------------------------------- */

/* Fails on machines with more than PROCESSORS_MAX. */
static bool read_allowed(cpu_set_t *out_set) { return sched_getaffinity(0, sizeof *out_set, out_set) == 0; }

uint32_t processors_usable(void) {
  cpu_set_t set;
  char group[LINE_MAX_BYTES];
  const uint32_t allowed = read_allowed(&set) ? (uint32_t)CPU_COUNT(&set) : PROCESSORS_MAX;
  const uint32_t quota = read_group(group) ? processors_quota("/sys/fs/cgroup", group) : 0;
  return quota != 0 && quota < allowed ? quota : allowed;
}

bool processor_allowed(uint32_t processor) {
  cpu_set_t set;
  return processor < PROCESSORS_MAX && read_allowed(&set) && CPU_ISSET(processor, &set);
}

void processor_enter(uint32_t processor, ProcessorStay *out_stay) {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(processor, &only);
  out_stay->moved = read_allowed(&out_stay->before) && !CPU_EQUAL(&only, &out_stay->before) &&
                    sched_setaffinity(0, sizeof only, &only) == 0;
}

void processor_leave(const ProcessorStay *stay) {
  if (stay->moved) sched_setaffinity(0, sizeof stay->before, &stay->before);
}
