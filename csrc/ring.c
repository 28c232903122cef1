/*
 * A ring, seen from one thread
 *
 * The set-up flags are not a ladder: SINGLE_ISSUER, DEFER_TASKRUN and
 * TASKRUN_FLAG are required, because without DEFER_TASKRUN a cancel behaves
 * differently (a receive may complete between its data's arrival and our
 * cancel) and every test would have to be had twice. A kernel without them is
 * refused here with its -EINVAL, and the caller falls back to epoll.
 *
 * Under DEFER_TASKRUN a completion is produced only while *we* are inside
 * io_uring_enter(GETEVENTS). So an enter that submits asks for events too, but for
 * the one in the middle of a tick, behind which nothing is to complete that was there
 * before it (ut_ring_submit(); see tick.c), and the SQ's flags tell when one is worth its 0.7 us: TASKRUN (work is waiting)
 * or CQ_OVERFLOW (cqes that did not fit are held by the kernel; none is lost,
 * IORING_FEAT_NODROP, which we require).
 *
 * Memory order: the kernel writes cq_tail and sq_head and reads cq_head and
 * sq_tail. A store-release on what we write pairs with the kernel's acquire; a
 * load-acquire on what it writes makes the entries before it visible. sq_flags
 * is a hint that a later enter or wait corrects, so it is read relaxed.
 */
#include "ring.h"

#include <errno.h>
#include <string.h>

#include "ut_assert.h"

#define SETUP_FLAGS                                                           \
    (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |                \
     IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP | \
     IORING_SETUP_CQSIZE)

#define FEATURES_REQUIRED                                                     \
    (IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | \
     IORING_FEAT_FAST_POLL | IORING_FEAT_EXT_ARG)

static int setup_with_less(struct ut_ring *ring, struct io_uring_params *params,
                           unsigned sq_entries, unsigned cq_entries, unsigned sq_entries_min)
{
    for (;;) {
        memset(params, 0, sizeof *params);
        params->flags = SETUP_FLAGS;
        params->cq_entries = cq_entries;
        int fd = ring->kernel->setup(sq_entries, params);
        /* Some kernels count rings against RLIMIT_MEMLOCK; a smaller one may fit. */
        if (fd != -ENOMEM || sq_entries / 2 < sq_entries_min)
            return fd;
        sq_entries /= 2;
        cq_entries /= 2;
    }
}

static void point_into_rings(struct ut_ring *ring, const struct io_uring_params *params)
{
    char *base = ring->rings;
    ring->sq_head = (unsigned *)(base + params->sq_off.head);
    ring->sq_tail = (unsigned *)(base + params->sq_off.tail);
    ring->sq_flags = (unsigned *)(base + params->sq_off.flags);
    ring->sq_mask = *(unsigned *)(base + params->sq_off.ring_mask);
    ring->cq_head = (unsigned *)(base + params->cq_off.head);
    ring->cq_tail = (unsigned *)(base + params->cq_off.tail);
    ring->cq_mask = *(unsigned *)(base + params->cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(base + params->cq_off.cqes);
    ring->sqes = ring->sqe_memory;

    /* Entry i of the SQ is always sqe i: written once, never looked at again. */
    unsigned *array = (unsigned *)(base + params->sq_off.array);
    for (unsigned i = 0; i < params->sq_entries; i++)
        array[i] = i;
    ring->sqe_tail = *ring->sq_tail;
}

int ut_ring_open(struct ut_ring *ring, const struct ut_kernel *kernel, unsigned sq_entries,
                 unsigned cq_entries, unsigned sq_entries_min)
{
    struct io_uring_params params;

    UT_ASSERT(sq_entries >= sq_entries_min);
    UT_ASSERT(cq_entries >= sq_entries);
    memset(ring, 0, sizeof *ring);
    ring->kernel = kernel;
    ring->fd = setup_with_less(ring, &params, sq_entries, cq_entries, sq_entries_min);
    if (ring->fd < 0)
        return ring->fd;
    ring->setup_flags = params.flags;
    ring->features = params.features;
    ring->sq_entries = params.sq_entries;
    ring->cq_entries = params.cq_entries;

    int error = -EOPNOTSUPP;
    if ((params.features & FEATURES_REQUIRED) != FEATURES_REQUIRED)
        goto fail;
    /* Without it an idle wait counts as iowait, and users see a busy core. */
    if (params.features & IORING_FEAT_NO_IOWAIT)
        ring->enter_flags = IORING_ENTER_NO_IOWAIT;

    size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    ring->rings_size = sq_size > cq_size ? sq_size : cq_size; /* FEAT_SINGLE_MMAP */
    ring->sqe_size = params.sq_entries * sizeof(struct io_uring_sqe);
    error = kernel->map(&ring->rings, ring->rings_size, ring->fd, IORING_OFF_SQ_RING);
    if (error < 0)
        goto fail;
    error = kernel->map(&ring->sqe_memory, ring->sqe_size, ring->fd, IORING_OFF_SQES);
    if (error < 0)
        goto fail;
    point_into_rings(ring, &params);
    return 0;

fail:
    ut_ring_close(ring);
    return error;
}

void ut_ring_close(struct ut_ring *ring)
{
    if (ring->fd >= 0)
        ring->kernel->close_fd(ring->fd);
    ring->fd = -1;
    if (ring->sqe_memory != NULL)
        ring->kernel->unmap(ring->sqe_memory, ring->sqe_size);
    if (ring->rings != NULL)
        ring->kernel->unmap(ring->rings, ring->rings_size);
    ring->sqe_memory = ring->rings = NULL;
}

struct io_uring_sqe *ut_ring_get_sqe(struct ut_ring *ring)
{
    unsigned head = __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
    if (ring->sqe_tail - head >= ring->sq_entries)
        return NULL;
    return &ring->sqes[ring->sqe_tail++ & ring->sq_mask];
}

unsigned ut_ring_sq_room(const struct ut_ring *ring)
{
    return ring->sq_entries - ut_ring_unsubmitted(ring);
}

unsigned ut_ring_unsubmitted(const struct ut_ring *ring)
{
    return ring->sqe_tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
}

bool ut_ring_wants_enter(const struct ut_ring *ring)
{
    unsigned flags = __atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED);
    return (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

static int enter(struct ut_ring *ring, unsigned to_submit, unsigned wait_nr, unsigned flags,
                 const struct io_uring_getevents_arg *arg)
{
    __atomic_store_n(ring->sq_tail, ring->sqe_tail, __ATOMIC_RELEASE);
    return ring->kernel->enter(ring->fd, to_submit, wait_nr,
                               flags | IORING_ENTER_EXT_ARG | ring->enter_flags, arg, sizeof *arg);
}

int ut_ring_submit(struct ut_ring *ring, unsigned to_submit)
{
    static const struct io_uring_getevents_arg none;
    return enter(ring, to_submit, 0, 0, &none);
}

int ut_ring_enter(struct ut_ring *ring, unsigned to_submit, unsigned wait_nr,
                  int64_t timeout_ns)
{
    struct ut_timespec ts;
    struct io_uring_getevents_arg arg;

    memset(&arg, 0, sizeof arg);
    if (wait_nr > 0 && timeout_ns >= 0) {
        ts.tv_sec = timeout_ns / 1000000000;
        ts.tv_nsec = timeout_ns % 1000000000;
        arg.ts = (uint64_t)(uintptr_t)&ts;
    }
    return enter(ring, to_submit, wait_nr, IORING_ENTER_GETEVENTS, &arg);
}

unsigned ut_ring_cq_ready(const struct ut_ring *ring)
{
    return __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) - *ring->cq_head;
}

const struct io_uring_cqe *ut_ring_cqe(const struct ut_ring *ring, unsigned index)
{
    return &ring->cqes[(*ring->cq_head + index) & ring->cq_mask];
}

void ut_ring_cq_advance(struct ut_ring *ring, unsigned count)
{
    UT_ASSERT(count <= ut_ring_cq_ready(ring));
    __atomic_store_n(ring->cq_head, *ring->cq_head + count, __ATOMIC_RELEASE);
}
