/*
 * One io_uring instance: set-up, the SQ, the CQ, enter. No policy.
 */
#ifndef UT_RING_H
#define UT_RING_H

#include <stdbool.h>

#include "kernel.h"

struct ut_ring {
    const struct ut_kernel *kernel;
    int fd;
    unsigned setup_flags;
    unsigned features;
    unsigned enter_flags; /* IORING_ENTER_NO_IOWAIT where the kernel has it */
    unsigned sq_entries, cq_entries;

    /* Shared with the kernel. */
    unsigned *sq_head, *sq_tail, *sq_flags;
    unsigned *cq_head, *cq_tail;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;

    unsigned sq_mask, cq_mask;
    unsigned sqe_tail; /* prepared up to here; published by ut_ring_enter() */

    void *rings, *sqe_memory;
    size_t rings_size, sqe_size;
};

/* Opens a ring whose only submitter is the calling thread; halves both sizes on
 * -ENOMEM down to `sq_entries_min`. Returns 0 or -errno. */
int ut_ring_open(struct ut_ring *ring, const struct ut_kernel *kernel, unsigned sq_entries,
                 unsigned cq_entries, unsigned sq_entries_min);

/* Closes the fd, then unmaps. The kernel cancels what is in flight, but not at
 * once: drain first, or leave the operations' memory alone for ever. */
void ut_ring_close(struct ut_ring *ring);

/* The next free sqe, not zeroed, or NULL when the SQ is full. */
struct io_uring_sqe *ut_ring_get_sqe(struct ut_ring *ring);

/* How many sqes ut_ring_get_sqe() can still give before the next enter. */
unsigned ut_ring_sq_room(const struct ut_ring *ring);

/* How many prepared sqes the kernel has not consumed. */
unsigned ut_ring_unsubmitted(const struct ut_ring *ring);

/* True if the kernel has something for us that only an enter brings out. */
bool ut_ring_wants_enter(const struct ut_ring *ring);

/* Submits `to_submit` of the prepared sqes and runs deferred task work; waits for
 * `wait_nr` cqes at most `timeout_ns` (< 0: for ever). Returns the number of sqes
 * that were consumed, or -errno. */
int ut_ring_enter(struct ut_ring *ring, unsigned to_submit, unsigned wait_nr,
                  int64_t timeout_ns);

/* Submits `to_submit` of them and does no more: no task work is run, no cqe waited for. What
 * completes at once has its cqe in the CQ. Returns as ut_ring_enter(). */
int ut_ring_submit(struct ut_ring *ring, unsigned to_submit);

/* The CQ, for one drain: read ready cqes from head on, then advance. */
unsigned ut_ring_cq_ready(const struct ut_ring *ring);
const struct io_uring_cqe *ut_ring_cqe(const struct ut_ring *ring, unsigned index);
void ut_ring_cq_advance(struct ut_ring *ring, unsigned count);

#endif
