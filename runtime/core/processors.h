/* Processors that threads of this process may run on, by Linux's numbers. */
#ifndef KILN_RUNTIME_CORE_PROCESSORS_H
#define KILN_RUNTIME_CORE_PROCESSORS_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

enum { PROCESSORS_MAX = CPU_SETSIZE };

/* How many threads can run at a time: the processors that the calling thread may run on, or fewer where the quota of a
 * control group (version 2) allows less time. At least 1. */
uint32_t processors_usable(void);
/* The quota of control group `group` ("" or "/a/b") and of those that it belongs to, in processors, rounded up; 0:
 * none. `root` is where groups are mounted: "/sys/fs/cgroup". */
uint32_t processors_quota(const char *root, const char *group);
/* Whether the calling thread may run on it. */
bool processor_allowed(uint32_t processor);

/* Where a thread could run before. */
typedef struct ProcessorStay {
  cpu_set_t before;
  bool moved;
} ProcessorStay;

/* Keeps the calling thread on `processor` until processor_leave. Where it is kept there already, or the system refuses,
 * neither changes anything. */
void processor_enter(uint32_t processor, ProcessorStay *out_stay);
void processor_leave(const ProcessorStay *stay);

#endif
