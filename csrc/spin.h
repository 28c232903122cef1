/*
 * Whether to look for a moment longer before going to sleep. A state machine: no I/O.
 */
#ifndef UT_SPIN_H
#define UT_SPIN_H

#include <stdbool.h>
#include <stdint.h>

/* How long a look may take: about what going to sleep and being woken costs. */
#define UT_SPIN_NS 20000

struct ut_spin {
    unsigned credit;
    unsigned misses; /* looks in vain since the last that was not */
};

/* True if the last waits were so short that sleeping was a waste. */
bool ut_spin_is_wanted(const struct ut_spin *spin);

/* What happened: something came during a look; nothing did; a sleep was over after
 * `slept_ns` because something came. */
void ut_spin_hit(struct ut_spin *spin);
void ut_spin_miss(struct ut_spin *spin);
void ut_spin_slept(struct ut_spin *spin, uint64_t slept_ns);

#endif
