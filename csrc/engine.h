/*
 * The engine: operations in, flat records out. One engine is one ring.
 *
 * Everything runs on the thread that opened the engine: there is no function here
 * that another thread may call. See engine.c for the theory.
 */
#ifndef UT_ENGINE_H
#define UT_ENGINE_H

#include "bufring.h"
#include "line.h"
#include "op.h"
#include "ring.h"
#include "spin.h"
#include "tick.h"

/* What Python reads for each cqe that belongs to an operation. 16 bytes, read in
 * one sweep (struct.iter_unpack: 52 ns a record, against 184 for cdata fields). */
struct ut_record {
    uint32_t slot;
    int32_t res;
    uint32_t flags;  /* IORING_CQE_F_*, UT_RECORD_*; the slot lives on if F_MORE is set */
    uint32_t offset; /* with F_BUFFER: where in the pool the data is */
};
_Static_assert(sizeof(struct ut_record) == 16, "Python reads 16-byte records");

/* The operation did not end with its first attempt, or stood for a buffer. (No cqe has this bit: above the
 * kernel's flags, below the buffer's number.) */
#define UT_RECORD_WAITED (1U << 14)
/* `_hot` has given it to whom it is for (csrc/hot/route.c). Of the same kind. */
#define UT_RECORD_TAKEN (1U << 13)

#define UT_GROUPS 3

/* Who takes a group's buffers. */
struct ut_supply {
    struct ut_op_list standing; /* those whose next attempt waits for a buffer */
    unsigned attempts; /* since the CQ was last read: each may have taken a buffer */
};

struct ut_statistics {
    uint64_t enters;
    uint64_t cqes;
    uint64_t stale_cqes;
    uint32_t queued;    /* operations that the kernel does not know yet */
    uint32_t in_flight; /* operations submitted, and watches, whose last cqe was not seen */
    uint32_t leases_out;
    uint32_t unread_cqes; /* in the CQ */
    uint64_t operations[UT_OPCODES];
};

struct ut_engine {
    struct ut_ring ring;
    struct ut_bufring groups[UT_GROUPS];
    struct ut_supply supplies[UT_GROUPS];
    unsigned multishots; /* in the kernel, with provided buffers */
    struct ut_op_table ops;
    char *pool;
    size_t pool_size;

    /* Tokens to be submitted, oldest first. UT_TOKEN_WATCH marks an operation's
     * watch, UT_TOKEN_CANCEL an async cancel of what the rest names. An entry
     * whose operation was dropped meanwhile is recognized by its generation and
     * passed over. */
    uint64_t *queue;
    size_t queue_length, queue_capacity;
    size_t passed; /* entries that have been looked at and may wait for the end of the tick */
    unsigned laddered; /* live operations that wait by the ladder, clocks of lines as well */
    struct ut_lines lines;

    struct ut_record *records;
    unsigned record_count, record_capacity;
    unsigned fork_count;
    struct ut_spin spin;
    struct ut_tick tick;
    uint32_t in_flight, queued;
    uint32_t lingering; /* watches of operations that are over; their cancels are under way */
    bool stepped;       /* a cqe has moved an operation to its next request */
    bool woken;         /* one came that was no attempt in vain */
    bool accept_waits;  /* no IORING_ACCEPT_DONTWAIT here: before 6.10 */
    bool accept_does_not_wait; /* seen to work */
    int pending_error; /* -EBADR that came together with cqes: the next wait's answer */
    uint64_t enters, failed_enters, cqes, stale_cqes;
    uint64_t operations[UT_OPCODES];
};

struct ut_group_config {
    unsigned entries;     /* a power of two */
    uint32_t buffer_size; /* bytes, a multiple of 4096 */
};

struct ut_config {
    unsigned sq_entries, cq_entries;
    unsigned sq_entries_min; /* halved on -ENOMEM down to this */
    struct ut_group_config groups[UT_GROUPS];
    uint64_t long_tick_ns; /* see tick.c; 0: no tick is long */
};

/* NULL on failure, with -errno in `*error` and the step in `*stage`. Where there was
 * memory for the ring and then not for its buffer rings, the sizes in `*config` are
 * halved, if they may be: to be tried with once the kernel has taken the ring apart. */
struct ut_engine *ut_engine_open(const struct ut_kernel *kernel, struct ut_config *config,
                                 int *error, const char **stage);

/* The same, into a box that has an owner before there is an engine in it: Python
 * may be interrupted as soon as the call returns. 0 or -errno. */
int ut_engine_open_boxed(const struct ut_kernel *kernel, struct ut_config *config,
                         struct ut_engine **box, const char **stage);
void ut_engine_close_boxed(struct ut_engine **box); /* nothing if the box is empty */

/* Closes the ring. If operations are still in flight, or `leak` is set, the
 * memory that the kernel may still write to is given up on purpose; the answer
 * says whether that happened. In a forked child only the ring's fd is closed. */
int ut_engine_close(struct ut_engine *engine, int leak);

/* Ends the last batch (its buffers go home, its slots become free), submits what
 * is queued, waits for a cqe at most `timeout_ns` (0: not at all; < 0: for ever)
 * and drains. Returns cqes seen << 32 | records, 0 only if the time is over and
 * nothing came; -EINTR to have signal handlers run, then call again with the
 * time that is left; -EOWNERDEAD in a forked child; else -errno of enter. */
int64_t ut_engine_wait(struct ut_engine *engine, int64_t timeout_ns);

/* Submits what is queued and runs task work, without waiting or draining: so
 * that the kernel lets go of a file before it is closed. Returns 0 or -errno. */
int ut_engine_flush(struct ut_engine *engine);

/* Something that others wait for is to be sent, by the ring or beside it: 1 if it is to leave
 * now, and not with the rest of its tick; see tick.c. */
int ut_engine_leaves(struct ut_engine *engine);

/* Submits what is queued and others wait for, and does no more: no task work is run and nothing
 * drained. What that comes to, an error too, is the next wait's. */
void ut_engine_submit(struct ut_engine *engine);

/* Of a slot that a preparing function returns: the tick is long, and ut_engine_submit() is to be
 * called; unless its task is cancelled, who will take it back before it was ever submitted. */
#define UT_SLOT_LEAVES (1 << 30)

/* Asks for the operation's end. 0: it was only queued, is dropped, and no cqe
 * will come. 1: an async cancel is queued, the operation's last cqe decides.
 * -EALREADY: asked before, or its last cqe is already in the batch. -ENOENT: no
 * operation has this slot (any more). */
int ut_engine_cancel(struct ut_engine *engine, uint32_t slot);

/* Signals the eventfd when deferred work begins to wait for an enter. Called again it
 * registers anew: of signals that are made inside another eventfd's wake-up the kernel
 * keeps one for each registration. */
int ut_engine_register_eventfd(struct ut_engine *engine, int event_fd);

/* Enters, without submitting or draining: is there anything that a thread which sleeps
 * on the eventfd would not be told of? One of these, or -errno. */
enum {
    UT_LOOK_NOTHING,   /* it may sleep */
    UT_LOOK_SOMETHING, /* the next wait brings something */
    UT_LOOK_NO_MEMORY, /* operations found no memory: nobody tells when there is some */
};
int ut_engine_look(struct ut_engine *engine);

/* Entries that wait to be submitted, cancels included. Behind a wait: 0, but where the kernel
 * had no memory for them. */
size_t ut_engine_unsubmitted(const struct ut_engine *engine);

void ut_engine_statistics(const struct ut_engine *engine, struct ut_statistics *out);

/* The engine belongs to the process that this one was forked from. */
static inline bool ut_engine_is_foreign(const struct ut_engine *engine)
{
    return engine->fork_count != ut_fork_count;
}

/* For prep.c: a queued operation with an empty sqe, its slot in `*slot`. With `wanted`
 * (POLLIN or POLLOUT) it waits by the ladder, and its sqe must be one that does not wait;
 * 0: the kernel waits. `poll_first`: without a first attempt.
 * Returns 0, -ENOMEM or -EOWNERDEAD. */
int ut_engine_new_op(struct ut_engine *engine, uint8_t wanted, bool poll_first,
                     struct io_uring_sqe **sqe, uint32_t *slot);

#endif
