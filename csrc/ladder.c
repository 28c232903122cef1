/*
 * Waiting is our business, not the kernel's
 *
 * What the kernel does. An operation that finds nothing (-EAGAIN) is given to a poll of
 * io_uring's own, and tried again when that wakes. That poll also wakes for POLLERR,
 * POLLHUP, POLLRDHUP and POLLPRI, whoever wants them, and for whoever was faster. After
 * 128 wake-ups in vain in an operation's whole life (APOLL_MAX_RETRY) it goes to a kernel
 * thread (io-wq), and blocks there: a thread for each. Where such a bit stays set, that
 * takes microseconds. So a peer that half-closes and reads slowly, an error queue that
 * nobody reads, 128 urgent bytes, 128 datagrams with a wrong checksum or another process
 * on the same socket each cost a thread, and under RLIMIT_NPROC the service. What looks
 * at O_NONBLOCK answers -EAGAIN from there, which no user expects; and a retried send to
 * a full UNIX datagram socket runs with a consumed iterator and delivers nothing (up to
 * 6.18 at least). An accept's own poll is exclusive besides: it swallows the wake-up of a
 * connection that it does not take, because its process is busy, stopped or gone.
 *
 * What follows. No operation that may find nothing is ever left to that poll. Each attempt
 * says that it will not wait (MSG_DONTWAIT, RWF_NOWAIT, IORING_ACCEPT_DONTWAIT): it ends
 * within the enter that submits it. (A file that cannot be told so, a FIFO, or before 6.4 any
 * pipe, is not tried at all: -EAGAIN has the caller wait and read it by hand. O_NONBLOCK is
 * no help: to io_uring it means that the file may be retried.) Between attempts we wait
 * ourselves:
 *
 *     TRY -refused-> POLL -ready-> TRY_READY -refused-> WATCH -change-> TRY_CHANGED ...
 *
 * The one-shot POLL is enough nearly always. It is level-triggered: where a bit stays set
 * that is none of ours, it would be ready at once for ever. So after an attempt in vain a
 * WATCH follows, a multishot poll that stays armed beside the attempts and reports what
 * changes; each change is worth one attempt.
 *
 * Ready, and refused. The wanted bit itself may be set while every attempt is refused
 * (sendto to a full UNIX datagram socket, whose sender is writable; TCP short of memory;
 * something that the kernel gives up by itself), and then no change need be told of. Or it
 * was set for what is gone by now: a datagram with a wrong checksum, a connection that
 * somebody else has taken. So after an attempt that was refused although the wanted bit was
 * told, there is a GLANCE, another one-shot poll. If the bit is not set any more, that
 * sleeps until it is: nobody who sends rubbish can have us wait. If it is told at once, and
 * refused again, there is a PAUSE, and then a LOOK. Where nothing is ready no clock runs.
 *
 *     TRY_NEWS -refused-> GLANCE -at once-> TRY_TOLD -refused-> PAUSE -time-> LOOK
 *                           | later                                            |
 *                           +-> TRY_NEWS                 wanted bit: TRY_TOLD <-+
 *
 * A change cuts a pause short, but not while it is young: an attempt in vain may be a
 * change itself. (A refused UNIX datagram gives its memory back, and that wakes whoever
 * waits to write.) Such an echo comes at once, and answering it would be a spin; what is
 * no echo is found by the look, or by the next change.
 *
 * Where many are refused by one receiver they do not pause each for itself: a LINE has one
 * clock for all of them, and gives turns (line.c). To the operation a turn is a pause's end.
 *
 *     TRY_TOLD -refused, and there is a line-> LINE -turn-> LOOK
 *
 * What it costs. A wait is two requests, a poll and an attempt, where the kernel's own was
 * one, and one enter more for a batch of them. A send that can move only when no change
 * tells of it is up to 32 ms late. The file is named by its number at each attempt: a
 * program that closes it behind our back (os.close) and gives the number out again is not
 * seen (design.md, known limits).
 */
#include "ladder.h"

#include "ut_assert.h"

#define PAUSE_FIRST_NS 1000000u /* a millisecond: a tick of other programs' work */
#define PAUSE_DOUBLINGS 5 /* 32 ms: less than 50 ms, what a person or a timeout notices */
_Static_assert(PAUSE_FIRST_NS << PAUSE_DOUBLINGS == UT_PAUSE_LONGEST_NS, "as others know it");
#define PAUSE_FORGOTTEN_NS 64000000u /* two of the longest: it has slept since */

#define NO UT_STEPS

/* clang-format off */
static const uint8_t next_step[UT_STEPS][UT_STEP_EVENTS] = {
    /*                          REFUSED                  LINED                    READY                    TOLD                     NEWS                     CHANGED                  CHANGED_TOLD             CHANGED_NEWS             ECHO                     TIME                     TURN */
    [UT_STEP_TRY]             = {UT_STEP_POLL,            NO,                      NO,                      NO,                      NO,                      NO,                      NO,                      NO,                      NO,                      NO,                      NO},
    [UT_STEP_POLL]            = {NO,                      NO,                      UT_STEP_TRY_READY,       UT_STEP_TRY_READY,       UT_STEP_TRY_READY,       NO,                      NO,                      NO,                      NO,                      NO,                      NO},
    [UT_STEP_TRY_READY]       = {UT_STEP_WATCH,           NO,                      NO,                      NO,                      NO,                      NO,                      NO,                      NO,                      NO,                      NO,                      NO},
    [UT_STEP_WATCH]           = {NO,                      NO,                      NO,                      NO,                      NO,                      UT_STEP_TRY_CHANGED,     UT_STEP_TRY_TOLD,        UT_STEP_TRY_NEWS,        NO,                      NO,                      NO},
    [UT_STEP_TRY_CHANGED]     = {UT_STEP_WATCH,           NO,                      NO,                      NO,                      NO,                      UT_STEP_TRY_AGAIN,       UT_STEP_TRY_AGAIN,       UT_STEP_TRY_AGAIN,       NO,                      NO,                      NO},
    [UT_STEP_TRY_NEWS]        = {UT_STEP_GLANCE,          NO,                      NO,                      NO,                      NO,                      UT_STEP_TRY_NEWS_AGAIN,  UT_STEP_TRY_NEWS_AGAIN,  UT_STEP_TRY_NEWS_AGAIN,  NO,                      NO,                      NO},
    [UT_STEP_TRY_NEWS_AGAIN]  = {UT_STEP_GLANCE_AGAIN,    NO,                      NO,                      NO,                      NO,                      UT_STEP_TRY_NEWS_AGAIN,  UT_STEP_TRY_NEWS_AGAIN,  UT_STEP_TRY_NEWS_AGAIN,  NO,                      NO,                      NO},
    [UT_STEP_TRY_TOLD]        = {UT_STEP_PAUSE,           UT_STEP_LINE,            NO,                      NO,                      NO,                      UT_STEP_TRY_AGAIN,       UT_STEP_TRY_AGAIN,       UT_STEP_TRY_AGAIN,       NO,                      NO,                      NO},
    [UT_STEP_TRY_AGAIN]       = {UT_STEP_PAUSE_AGAIN,     UT_STEP_LINE_AGAIN,      NO,                      NO,                      NO,                      UT_STEP_TRY_AGAIN,       UT_STEP_TRY_AGAIN,       UT_STEP_TRY_AGAIN,       NO,                      NO,                      NO},
    [UT_STEP_GLANCE]          = {NO,                      NO,                      UT_STEP_WATCH,           UT_STEP_TRY_TOLD,        UT_STEP_TRY_NEWS,        UT_STEP_GLANCE_AGAIN,    UT_STEP_GLANCE_AGAIN,    UT_STEP_GLANCE_AGAIN,    NO,                      NO,                      NO},
    [UT_STEP_GLANCE_AGAIN]    = {NO,                      NO,                      UT_STEP_PAUSE_AGAIN,     UT_STEP_TRY_TOLD,        UT_STEP_TRY_NEWS,        UT_STEP_GLANCE_AGAIN,    UT_STEP_GLANCE_AGAIN,    UT_STEP_GLANCE_AGAIN,    NO,                      NO,                      NO},
    [UT_STEP_PAUSE]           = {NO,                      NO,                      NO,                      NO,                      NO,                      UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_AGAIN,     UT_STEP_LOOK,            NO},
    [UT_STEP_PAUSE_AGAIN]     = {NO,                      NO,                      NO,                      NO,                      NO,                      UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_AGAIN,     UT_STEP_LOOK_AGAIN,      NO},
    [UT_STEP_PAUSE_CUT]       = {NO,                      NO,                      NO,                      NO,                      NO,                      UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,       UT_STEP_PAUSE_CUT,       UT_STEP_TRY_TOLD,        NO},
    [UT_STEP_LOOK]            = {NO,                      NO,                      UT_STEP_WATCH,           UT_STEP_TRY_TOLD,        UT_STEP_TRY_NEWS,        UT_STEP_LOOK_AGAIN,      UT_STEP_LOOK_AGAIN,      UT_STEP_LOOK_AGAIN,      NO,                      NO,                      NO},
    [UT_STEP_LOOK_AGAIN]      = {NO,                      NO,                      UT_STEP_TRY_CHANGED,     UT_STEP_TRY_TOLD,        UT_STEP_TRY_NEWS,        UT_STEP_LOOK_AGAIN,      UT_STEP_LOOK_AGAIN,      UT_STEP_LOOK_AGAIN,      NO,                      NO,                      NO},
    [UT_STEP_LINE]            = {NO,                      NO,                      NO,                      NO,                      NO,                      UT_STEP_TRY_TOLD,        UT_STEP_TRY_TOLD,        UT_STEP_TRY_TOLD,        UT_STEP_LINE_AGAIN,      NO,                      UT_STEP_LOOK},
    [UT_STEP_LINE_AGAIN]      = {NO,                      NO,                      NO,                      NO,                      NO,                      UT_STEP_TRY_TOLD,        UT_STEP_TRY_TOLD,        UT_STEP_TRY_TOLD,        UT_STEP_LINE_AGAIN,      NO,                      UT_STEP_LOOK_AGAIN},
};

static const uint8_t requests[UT_STEPS] = {
    [UT_STEP_TRY]             = UT_REQUEST_ATTEMPT,
    [UT_STEP_POLL]            = UT_REQUEST_POLL,
    [UT_STEP_TRY_READY]       = UT_REQUEST_ATTEMPT,
    [UT_STEP_WATCH]           = UT_REQUEST_NONE,
    [UT_STEP_TRY_CHANGED]     = UT_REQUEST_ATTEMPT,
    [UT_STEP_TRY_NEWS]        = UT_REQUEST_ATTEMPT,
    [UT_STEP_TRY_NEWS_AGAIN]  = UT_REQUEST_ATTEMPT,
    [UT_STEP_TRY_TOLD]        = UT_REQUEST_ATTEMPT,
    [UT_STEP_TRY_AGAIN]       = UT_REQUEST_ATTEMPT,
    [UT_STEP_GLANCE]          = UT_REQUEST_POLL,
    [UT_STEP_GLANCE_AGAIN]    = UT_REQUEST_POLL,
    [UT_STEP_PAUSE]           = UT_REQUEST_TIMEOUT,
    [UT_STEP_PAUSE_AGAIN]     = UT_REQUEST_TIMEOUT,
    [UT_STEP_PAUSE_CUT]       = UT_REQUEST_TIMEOUT,
    [UT_STEP_LOOK]            = UT_REQUEST_POLL,
    [UT_STEP_LOOK_AGAIN]      = UT_REQUEST_POLL,
    [UT_STEP_LINE]            = UT_REQUEST_NONE,
    [UT_STEP_LINE_AGAIN]      = UT_REQUEST_NONE,
};
/* clang-format on */

enum ut_step ut_step_next(enum ut_step step, enum ut_step_event event)
{
    UT_ASSERT(step < UT_STEPS);
    UT_ASSERT(event < UT_STEP_EVENTS);
    return next_step[step][event];
}

enum ut_step_request ut_step_request(enum ut_step step)
{
    UT_ASSERT(step < UT_STEPS);
    return requests[step];
}

bool ut_step_is_watched(enum ut_step step)
{
    return step >= UT_STEP_WATCH;
}

uint64_t ut_pause_begin(struct ut_pauses *pauses, uint64_t now_ns)
{
    if (now_ns > pauses->end_ns + PAUSE_FORGOTTEN_NS) /* (one that was cut ends later) */
        pauses->length = 0;
    uint64_t pause_ns = (uint64_t)PAUSE_FIRST_NS << pauses->length;
    if (pauses->length < PAUSE_DOUBLINGS)
        pauses->length++;
    pauses->half_ns = now_ns + pause_ns / 2;
    pauses->end_ns = now_ns + pause_ns;
    return pause_ns;
}

bool ut_pause_is_young(const struct ut_pauses *pauses, uint64_t now_ns)
{
    return now_ns < pauses->half_ns;
}

bool ut_sleep_was_long(uint64_t began_ns, uint64_t now_ns)
{
    return now_ns - began_ns >= PAUSE_FIRST_NS;
}
