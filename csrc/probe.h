/*
 * What this kernel can do, found out by doing it.
 */
#ifndef UT_PROBE_H
#define UT_PROBE_H

#include "engine.h"

struct ut_probe {
    int error;         /* 0, or -errno of the step that failed */
    const char *stage; /* that step, or the last one */
    unsigned setup_flags, features;
    unsigned sq_entries, cq_entries;
    uint8_t opcodes[256]; /* 1 where the kernel has it */
    unsigned opcode_count;
};

/* Makes a ring of `config` (NULL: a small one; what a run gets can differ under a small
 * RLIMIT_MEMLOCK), polls and then receives over a socket pair into a provided buffer,
 * cancels a second receive, and takes all down again. Sleeps for no more than
 * `timeout_ns` in each of the two steps; -ETIME is a kernel that was looked at after
 * that, and had not answered. */
void ut_probe_run(const struct ut_kernel *kernel, struct ut_config *config,
                  int64_t timeout_ns, struct ut_probe *out);

/* Makes a ring of these sizes, nothing but that, and closes it: 0 or -errno. A ring that is
 * larger than a limit tells whether the kernel counts rings against that limit. */
int ut_probe_setup(const struct ut_kernel *kernel, unsigned sq_entries, unsigned cq_entries);

#endif
