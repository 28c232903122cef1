/*
 * A simulated kernel behind struct ut_kernel: whole programs run on it, unchanged.
 *
 * It has rings, as many as are asked for, and all that io_uring does with a request: it is
 * tried, waits for a wake-up, is tried again, is cancelled, ends; its cqe comes when deferred
 * work is run. Bytes are carried by files (sim_files.c): the machine's own, or those of a
 * network without a kernel (net.h). Time is virtual: it moves when an enter would sleep.
 *
 * Wherever Linux may do one thing or another, a *choice* decides (sim_choices.c). 0 is the
 * plain behaviour: in order, at once, whole, without a fault. So a run is told by its choices,
 * and can be had again, and made shorter.
 *
 * One simulation at a time. Calls may come from any thread; they are made one after the other.
 * The theory is in sim_requests.c (what becomes of a request) and sim.c (rings and time).
 */
#ifndef UT_TESTS_SIM_H
#define UT_TESTS_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "../kernel.h"

#define SIM_NEVER UINT64_MAX
/* IORING_REGISTER_IOWQ_MAX_WORKERS: at most so many threads of the kernel's. */
#define SIM_REGISTER_WORKERS 19

extern const struct ut_kernel ut_kernel_sim;
const struct ut_kernel *sim_table(void); /* the same */

/* ---- what can be chosen ------------------------------------------------------ */

enum sim_choice {
    SIM_ORDER,    /* which of the work that is due is run first, and whose cqe is posted first */
    SIM_DELAY,    /* how late a wake-up is, in virtual time */
    SIM_SHORT,    /* how much of what could be moved is */
    SIM_REFUSE,   /* an attempt that does not wait finds nothing, though there is something: it
                     comes right behind the attempt, or after a while */
    SIM_ENTER,    /* EINTR, EBUSY from a wait */
    SIM_SUBMIT,   /* EAGAIN for want of memory, fewer sqes than were given */
    SIM_BUFFERS,  /* -ENOBUFS although there are buffers */
    SIM_END,      /* a multishot ends with this cqe */
    SIM_CANCEL,   /* what a cancel finds */
    SIM_NETWORK,  /* what the network does; which of it: net_choices */
    SIM_FATAL,    /* ENOMEM, EBADR from enter: the run has lost its ring */
    SIM_STALE,    /* a cqe comes twice, at once or later */
    SIM_CLOCK,    /* the program was held up before it looked at the clock */
    SIM_CHOICES,
};

/* ---- kernels with faults ------------------------------------------------------- */

struct sim_switches {
    bool no_defer_taskrun;      /* before 6.1: setup refuses it */
    bool no_single_issuer;      /* before 6.0 */
    bool accept_waits;          /* before 6.10: no IORING_ACCEPT_DONTWAIT */
    bool pipes_without_nowait;  /* before 6.4: RWF_NOWAIT of a pipe, and of a socket by read(2) */
    bool no_multishot_receive;  /* before 6.0 */
    bool no_inq_of_unix;        /* before 6.17: a UNIX stream does not tell what is left */
    bool reset_is_missed;       /* 6.16: behind data, by an armed multishot receive */
    bool cancel_misses_multishot; /* 6.11: -ENOENT, and it goes on */
    bool refusal_takes_buffer;  /* a refused attempt's cqe has a buffer */
    bool end_is_missed;         /* before 6.18.x: where data and the end came together */
    bool small_cq;              /* the CQ gets as many entries as the SQ */
    bool no_probe;              /* before 5.6: IORING_REGISTER_PROBE is not known */
};

/* ---- a simulation -------------------------------------------------------------- */

struct sim_books {
    uint64_t now_ns;
    uint64_t enters, sqes, cqes, wakes, choices;
    uint32_t rings;        /* open */
    uint32_t in_flight;    /* requests without their last cqe */
    uint32_t given_up;     /* ... that have memory, and whose ring was closed under them */
    uint32_t buffers_out;  /* taken by the kernel and not put back */
    uint32_t mappings;     /* not unmapped */
    uint32_t left_waiting; /* attempts that the kernel's own poll waits for, and may hand over;
                              not connects, multishots, and accepts of before 6.10 */
    uint32_t handed_over;  /* requests given to a thread of the kernel's */
    uint32_t overflows;    /* cqes that did not fit at first */
    uint32_t stale;        /* cqes that no request of the program stands behind */
    uint32_t held;         /* files that requests keep open */
    uint32_t faults;
    uint32_t never_ending; /* waits that nothing could end */
};

/* Begins; the last one is over. `choices`: what is chosen, in turn; past its end 0. */
void sim_open(const struct sim_switches *switches, const uint32_t *choices, uint32_t count);

/* Instead of a list: drawn from a seed, and recorded. Not 0. */
void sim_draw_choices(uint64_t seed);

/* Has only these kinds be chosen: bit n for kind n. */
void sim_allow(uint32_t kinds);

/* How long, in real time, a wait that nothing simulated ends looks at the machine's files. */
void sim_set_patience(unsigned ms);

/* Unconnected sockets are files of the network without a kernel (net.h). Of what may be chosen
 * in it: bit n for the nth of struct net_choices. */
void sim_use_network(uint32_t choices);

/* Gives back what is still open of it. */
void sim_close(void);

void sim_read_books(struct sim_books *books);

/* The choices that were made so far: how many, at most `room` of them written. */
uint32_t sim_choices_made(uint32_t *made, uint32_t room);

/* Fault n, or NULL. */
const char *sim_fault_text(uint32_t index);

/* Virtual time; a look costs none of it. */
uint64_t sim_now_ns(void);

/* Lets time pass without an enter. */
void sim_sleep(uint64_t ns);

/* ---- what happened -------------------------------------------------------------- */

enum sim_happening {
    SIM_NOTE_SETUP,     /* a = SQ entries, b = CQ entries */
    SIM_NOTE_CLOSED,    /* a ring, or a file */
    SIM_NOTE_ENTERED,   /* a = to_submit, b = min_complete, token = until, ns */
    SIM_NOTE_LEFT,      /* a = the enter's answer */
    SIM_NOTE_TAKEN,     /* an sqe: a = opcode, b = ioprio; of a timeout, us */
    SIM_NOTE_TRIED,     /* an attempt: a = its answer */
    SIM_NOTE_ARMED,    /* its poll waits: a = events */
    SIM_NOTE_WOKEN,    /* a = the key */
    SIM_NOTE_POSTED,    /* a cqe: a = res, b = flags */
    SIM_NOTE_HANDED,    /* to a thread of the kernel's */
    SIM_NOTE_CALLED,    /* beside the ring: token = which, a = its answer */
    SIM_NOTE_CHOSEN,    /* not 0: token = kind, a = what, b = of how many */
    SIM_NOTE_SLEPT,     /* token = until when */
    SIM_NOTE_FAULT,     /* token = its number */
    SIM_HAPPENINGS,
};

struct sim_event {
    uint64_t now_ns, token;
    int32_t what, fd, a, b;
};

/* How many of the last events are known: all, of most programs. */
uint32_t sim_trace_length(void);

/* The last events, oldest first: how many, at most `room` of them written. */
uint32_t sim_read_trace(struct sim_event *events, uint32_t room);

/* ---- files that no system call makes --------------------------------------------- */

/* Two connected files of the network. */
int sim_pair(int family, int type, int fds[2]);

#endif
