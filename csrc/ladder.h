/*
 * How an operation that finds nothing waits. A state machine: no I/O.
 */
#ifndef UT_LADDER_H
#define UT_LADDER_H

#include <stdbool.h>
#include <stdint.h>

enum ut_step {
    UT_STEP_TRY,         /* the first attempt */
    UT_STEP_POLL,        /* a one-shot poll */
    UT_STEP_TRY_READY,   /* an attempt after that poll */
    UT_STEP_WATCH,       /* the watch alone: waits for a change */
    UT_STEP_TRY_CHANGED, /* an attempt after a change without the wanted bit */
    UT_STEP_TRY_NEWS,    /* an attempt after a change with the wanted bit, after a while */
    UT_STEP_TRY_NEWS_AGAIN, /* the same, and another change has come since it began */
    UT_STEP_TRY_TOLD,    /* an attempt after a readiness with it, at once after a refusal */
    UT_STEP_TRY_AGAIN,   /* an attempt of another kind, and a change since it began */
    UT_STEP_GLANCE,      /* a one-shot poll beside the watch: was it rubbish? */
    UT_STEP_GLANCE_AGAIN, /* the same, and a change has come since it was asked */
    UT_STEP_PAUSE,       /* a timeout: ready, and refused all the same */
    UT_STEP_PAUSE_AGAIN, /* the same, and there has been a change */
    UT_STEP_PAUSE_CUT,   /* the timeout is being cancelled, because of a change */
    UT_STEP_LOOK,        /* a one-shot poll beside the watch: is it still ready? */
    UT_STEP_LOOK_AGAIN,  /* the same, and a change has come since it was asked */
    UT_STEP_LINE,        /* the watch alone: others try as well, and it waits for its turn */
    UT_STEP_LINE_AGAIN,  /* the same, and there has been a change */
    UT_STEPS,
};

enum ut_step_event {
    UT_STEP_EV_REFUSED, /* the attempt answered -EAGAIN */
    UT_STEP_EV_LINED,   /* the same, and there is a line for that (line.c) */
    UT_STEP_EV_READY,   /* the one-shot poll is over, without the wanted bit */
    UT_STEP_EV_TOLD,    /* the same, with it */
    UT_STEP_EV_NEWS,    /* the same, and not at once */
    UT_STEP_EV_CHANGED, /* a cqe of the watch, without the wanted bit */
    UT_STEP_EV_CHANGED_TOLD, /* the same, with it */
    UT_STEP_EV_CHANGED_NEWS, /* the same, and not at once */
    UT_STEP_EV_ECHO, /* a cqe of the watch while a pause, or its place in a line, is young */
    UT_STEP_EV_TIME, /* the timeout is over, or cancelled */
    UT_STEP_EV_TURN, /* its line lets it try */
    UT_STEP_EVENTS,
};

/* What a step has in the kernel under the operation's own token. */
enum ut_step_request {
    UT_REQUEST_NONE,
    UT_REQUEST_ATTEMPT,
    UT_REQUEST_POLL,
    UT_REQUEST_TIMEOUT,
};

/* The step that an event leads to; UT_STEPS where it cannot happen. */
enum ut_step ut_step_next(enum ut_step step, enum ut_step_event event);
enum ut_step_request ut_step_request(enum ut_step step);
/* poll(2)'s events as an sqe takes them. */
static inline uint32_t ut_poll_events(uint32_t events)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    events = events << 16 | events >> 16; /* poll32_events is word-reversed there */
#endif
    return events;
}

bool ut_step_is_watched(enum ut_step step); /* a multishot poll stays armed beside it */

/* Pauses grow: 1, 2, 4 ... 32 ms, and begin again after a real sleep. Times are
 * CLOCK_MONOTONIC in ns. */
struct ut_pauses {
    uint64_t end_ns, half_ns; /* of the last one */
    uint8_t length;           /* of the next one, as a power of two in ms */
};

#define UT_PAUSE_LONGEST_NS 32000000u

/* Begins the next pause; how long it is. */
uint64_t ut_pause_begin(struct ut_pauses *pauses, uint64_t now_ns);
bool ut_pause_is_young(const struct ut_pauses *pauses, uint64_t now_ns);

/* Whether what began to wait at `began_ns` had to. */
bool ut_sleep_was_long(uint64_t began_ns, uint64_t now_ns);

#endif
