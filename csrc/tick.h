/*
 * How long a tick may hold back what others wait for. A state machine: no I/O.
 */
#ifndef UT_TICK_H
#define UT_TICK_H

#include <stdbool.h>
#include <stdint.h>

/* Sends that leave as they are queued, after time that was long in which there were fewer. */
#define UT_TICK_SENDS 8

struct ut_tick {
    uint64_t long_ns;  /* what is long; 0: nothing is */
    uint64_t since_ns; /* nothing has waited before that: an enter was over then */
    unsigned asked;    /* sends since then */
    unsigned sends;    /* how many more leave as they are queued */
};

/* An enter is over, which has taken along whatever others wait for. */
void ut_tick_begin(struct ut_tick *tick, uint64_t now_ns);

/* The tick is over: its enter comes now. */
void ut_tick_end(struct ut_tick *tick, uint64_t now_ns);

/* True if it is long by now. */
bool ut_tick_is_long(const struct ut_tick *tick, uint64_t now_ns);

/* Something that others wait for was queued: true if it is to leave now. */
bool ut_tick_leaves(struct ut_tick *tick, uint64_t now_ns);

#endif
