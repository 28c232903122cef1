/*
 * Submit, wait, drain
 *
 * What the kernel does. Under DEFER_TASKRUN nothing completes behind our back:
 * an enter with GETEVENTS submits, runs at most 20 pieces of deferred work (on
 * 6.18; 64 ready receives came as 20 + 20 + 20 + 4), and only then waits. An
 * enter that submitted something answers with that count and hides -ETIME and
 * -EINTR behind it. A CQ that is full overflows into kernel memory; nothing is
 * lost, the next enter brings it.
 *
 * What follows. Operations are queued as they come and submitted together by
 * the next wait: one enter a tick. Their sqes are kept in the operation's slot
 * until then, not in the SQ, so that there is no limit of SQ entries, and an
 * operation that is cancelled before its submission is simply forgotten, at no
 * cost to the kernel. While the SQ's flags say that work is left we enter again,
 * up to a bound, or a batch of 64 would become four ticks of the scheduler.
 *
 * What Python sees. cqes become flat records in one array; no callback, and the
 * records, buffers and slots of a batch stay valid until the next wait, which
 * ends the batch by itself. So reading a receive costs no crossing at all.
 *
 * What it costs: a 64-byte copy of each sqe, a few nanoseconds.
 */
#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ut_assert.h"

/* Enters of one wait, each running 20 pieces of work: enough for a batch of 320
 * receives, and a bound for a peer that sends faster than we read. */
#define ENTER_ROUNDS_MAX 16
#define WORK_MAX 20 /* pieces of deferred work that one enter runs, as seen on 6.18 */
/* The kernel had no memory for an operation: how long until we try it again. */
#define RETRY_NS 1000000

/* ---- the queue ------------------------------------------------------------ */

/* Room for one more operation, and a cancel for each one that lives: a cancel
 * must never fail for want of memory. */
static int reserve(struct ut_engine *engine)
{
    size_t needed = engine->queue_length + engine->ops.live + 2;
    if (needed <= engine->queue_capacity)
        return 0;
    size_t capacity = engine->queue_capacity * 2;
    while (capacity < needed)
        capacity *= 2;
    uint64_t *queue = realloc(engine->queue, capacity * sizeof *queue);
    if (queue == NULL)
        return -ENOMEM;
    engine->queue = queue;
    engine->queue_capacity = capacity;
    return 0;
}

int ut_engine_new_op(struct ut_engine *engine, struct io_uring_sqe **sqe, uint32_t *slot)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    if (reserve(engine) < 0)
        return -ENOMEM;
    struct ut_op *op = ut_op_new(&engine->ops, slot);
    if (op == NULL)
        return -ENOMEM;
    engine->queue[engine->queue_length++] = op->sqe.user_data;
    engine->queued++;
    *sqe = &op->sqe;
    return 0;
}

int ut_engine_cancel(struct ut_engine *engine, uint32_t slot)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    if (slot / UT_OP_CHUNK >= engine->ops.chunk_count)
        return -ENOENT;
    struct ut_op *op = ut_op_at(&engine->ops, slot);
    switch (op->state) {
    case UT_OP_QUEUED:
        engine->queued--;
        ut_op_free(&engine->ops, slot);
        return 0;
    case UT_OP_IN_FLIGHT:
        UT_ASSERT(engine->queue_length < engine->queue_capacity);
        ut_op_step(op, UT_OP_EV_CANCEL);
        engine->queue[engine->queue_length++] = op->sqe.user_data | UT_TOKEN_CANCEL;
        return 1;
    case UT_OP_CANCELING:
    case UT_OP_DONE:
        return -EALREADY;
    default:
        return -ENOENT; /* whoever asked was late: no reason to take the process down */
    }
}

static void prep_cancel(struct io_uring_sqe *sqe, uint64_t token)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->addr = token & ~UT_TOKEN_CANCEL;
    sqe->user_data = token;
}

/* Moves one entry of the queue into the SQ. False if the SQ is full. */
static bool submit_one(struct ut_engine *engine, uint64_t token)
{
    struct ut_op *op = ut_op_from_token(&engine->ops, token & ~UT_TOKEN_CANCEL);
    enum ut_op_state wanted = token & UT_TOKEN_CANCEL ? UT_OP_CANCELING : UT_OP_QUEUED;
    if (op == NULL || op->state != wanted)
        return true; /* dropped, or over before its cancel left */
    struct io_uring_sqe *sqe = ut_ring_get_sqe(&engine->ring);
    if (sqe == NULL)
        return false;
    if (token & UT_TOKEN_CANCEL) {
        prep_cancel(sqe, token);
    } else {
        *sqe = op->sqe;
        ut_op_step(op, UT_OP_EV_SUBMIT);
        engine->queued--;
        engine->in_flight++;
    }
    engine->operations[sqe->opcode]++;
    return true;
}

/* Moves the queue into the SQ, as far as there is room. */
static void fill_sq(struct ut_engine *engine)
{
    size_t moved = 0;
    while (moved < engine->queue_length && submit_one(engine, engine->queue[moved]))
        moved++;
    engine->queue_length -= moved;
    if (engine->queue_length > 0 && moved > 0)
        memmove(engine->queue, engine->queue + moved,
                engine->queue_length * sizeof *engine->queue);
}

/* ---- the CQ --------------------------------------------------------------- */

static void record_cqe(struct ut_engine *engine, const struct io_uring_cqe *cqe)
{
    if (cqe->user_data & UT_TOKEN_CANCEL)
        return; /* 0, -ENOENT, -EALREADY: the target's own cqe decides */
    struct ut_op *op = ut_op_from_token(&engine->ops, cqe->user_data);
    if (op == NULL || (op->state != UT_OP_IN_FLIGHT && op->state != UT_OP_CANCELING)) {
        engine->stale_cqes++;
        return;
    }
    struct ut_record *record = &engine->records[engine->record_count++];
    record->slot = (uint32_t)cqe->user_data;
    record->res = cqe->res;
    record->flags = cqe->flags;
    record->offset = 0;
    if (cqe->flags & IORING_CQE_F_BUFFER) {
        UT_ASSERT(op->sqe.buf_group < UT_GROUPS);
        record->offset = ut_bufring_lease(&engine->groups[op->sqe.buf_group],
                                          (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT));
    }
    if (cqe->flags & IORING_CQE_F_MORE) {
        ut_op_step(op, UT_OP_EV_CQE_MORE);
    } else {
        ut_op_step(op, UT_OP_EV_CQE_LAST);
        engine->in_flight--;
    }
}

/* Reads the CQ into the batch; the number of cqes seen. */
static unsigned drain(struct ut_engine *engine)
{
    unsigned ready = ut_ring_cq_ready(&engine->ring);
    unsigned room = engine->record_capacity - engine->record_count;
    unsigned count = ready < room ? ready : room;
    for (unsigned i = 0; i < count; i++)
        record_cqe(engine, ut_ring_cqe(&engine->ring, i));
    if (count > 0)
        ut_ring_cq_advance(&engine->ring, count);
    engine->cqes += count;
    return count;
}

/* The batch has been read: its buffers go home, its slots become free. */
static void release_batch(struct ut_engine *engine)
{
    bool dirty[UT_GROUPS] = {false};
    for (unsigned i = 0; i < engine->record_count; i++) {
        const struct ut_record *record = &engine->records[i];
        if (record->flags & IORING_CQE_F_BUFFER) {
            unsigned group = ut_op_at(&engine->ops, record->slot)->sqe.buf_group;
            ut_bufring_return(&engine->groups[group], record->offset);
            dirty[group] = true;
        }
        if (!(record->flags & IORING_CQE_F_MORE))
            ut_op_free(&engine->ops, record->slot);
    }
    engine->record_count = 0;
    for (unsigned group = 0; group < UT_GROUPS; group++)
        if (dirty[group])
            ut_bufring_commit(&engine->groups[group]);
}

/* ---- wait ----------------------------------------------------------------- */

static int enter(struct ut_engine *engine, unsigned to_submit, unsigned wait_nr,
                 int64_t timeout_ns)
{
    engine->enters++;
    return ut_ring_enter(&engine->ring, to_submit, wait_nr, timeout_ns);
}

/* The kernel had no memory for a cqe, so an operation never ends: that must not be lost
 * because other cqes came. The next wait tells. */
static void keep_error(struct ut_engine *engine, int error)
{
    if (error == -EBADR)
        engine->pending_error = error;
}

static int64_t answer(const struct ut_engine *engine, unsigned seen)
{
    return (int64_t)seen << 32 | engine->record_count;
}

/* Whether one more enter could run out of the small buffers. The work waits in the kernel
 * until the batch gives them back: that is cheaper than -ENOBUFS, which ends a multishot. */
static bool is_short_of_buffers(const struct ut_engine *engine)
{
    const struct ut_bufring *small = &engine->groups[0];
    return small->leased > 0 && small->entries - small->leased < WORK_MAX;
}

/* Enters while the kernel has work for us, without sleeping. 0 or -errno; -EAGAIN
 * if operations find no memory: they stay in the SQ. */
static int run_work(struct ut_engine *engine, unsigned *seen)
{
    bool starved = false;
    for (int round = 0; round < ENTER_ROUNDS_MAX; round++) {
        fill_sq(engine);
        /* An enter that submits less than it was told runs no work, and it is the
         * work that gives memory back: then one that submits nothing. */
        unsigned to_submit = starved ? 0 : ut_ring_unsubmitted(&engine->ring);
        if (to_submit == 0 && !ut_ring_wants_enter(&engine->ring))
            return starved ? -EAGAIN : 0;
        if (engine->record_count == engine->record_capacity || is_short_of_buffers(engine))
            return 0;
        int result = enter(engine, to_submit, 0, 0);
        *seen += drain(engine);
        starved = result == -EAGAIN && to_submit > 0;
        if (result < 0 && !starved && result != -EINTR && result != -EBUSY && result != -ETIME)
            return result;
    }
    return 0;
}

/* Operations find no memory. Sleeps until something in flight ends, or it is time to
 * try them again. */
static int sleep_for_memory(struct ut_engine *engine, int64_t timeout_ns)
{
    if (timeout_ns < 0 || timeout_ns > RETRY_NS)
        timeout_ns = RETRY_NS;
    int result = enter(engine, 0, 1, timeout_ns);
    return result == -ETIME || result == -EBUSY ? -EINTR : result;
}

/* Submits and looks for a moment; see spin.c. True if something came. */
static bool look(struct ut_engine *engine, int64_t timeout_ns)
{
    unsigned to_submit = ut_ring_unsubmitted(&engine->ring);
    if (to_submit > 0 && enter(engine, to_submit, 0, 0) < 0)
        return false; /* the enter that sleeps finds out why */
    uint64_t look_ns = UT_SPIN_NS;
    if (timeout_ns >= 0 && (uint64_t)timeout_ns < look_ns)
        look_ns = (uint64_t)timeout_ns;
    uint64_t start = engine->ring.kernel->now_ns();
    do {
        if (ut_ring_cq_ready(&engine->ring) > 0) {
            ut_spin_hit(&engine->spin);
            return true;
        }
        if (ut_ring_wants_enter(&engine->ring)) {
            ut_spin_hit(&engine->spin);
            return enter(engine, 0, 0, 0) >= 0 && ut_ring_cq_ready(&engine->ring) > 0;
        }
    } while (engine->ring.kernel->now_ns() - start < look_ns);
    ut_spin_miss(&engine->spin);
    return false;
}

/* One enter that submits and sleeps. */
static int sleep_once(struct ut_engine *engine, int64_t timeout_ns)
{
    if (ut_spin_is_wanted(&engine->spin) && look(engine, timeout_ns))
        return 0;
    unsigned to_submit = ut_ring_unsubmitted(&engine->ring);
    uint64_t start = engine->ring.kernel->now_ns();
    int result = enter(engine, to_submit, 1, timeout_ns);
    if (ut_ring_cq_ready(&engine->ring) > 0)
        ut_spin_slept(&engine->spin, engine->ring.kernel->now_ns() - start);
    if (result == -EAGAIN && to_submit > 0)
        return sleep_for_memory(engine, timeout_ns);
    return result;
}

int64_t ut_engine_wait(struct ut_engine *engine, int64_t timeout_ns)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    release_batch(engine);
    if (engine->pending_error < 0) {
        int error = engine->pending_error;
        engine->pending_error = 0;
        return error;
    }
    unsigned seen = drain(engine); /* what an earlier flush brought */

    fill_sq(engine);
    if (timeout_ns != 0 && seen == 0 && engine->queue_length == 0) {
        uint64_t now = timeout_ns > 0 ? engine->ring.kernel->now_ns() : 0;
        int result = sleep_once(engine, timeout_ns);
        seen += drain(engine);
        if (seen == 0) {
            bool over = timeout_ns > 0 &&
                        engine->ring.kernel->now_ns() - now >= (uint64_t)timeout_ns;
            if (result >= 0 || result == -ETIME)
                return over ? 0 : -EINTR; /* a submission hid what ended the wait */
            if (result == -EBUSY)
                return -EINTR;
            return result;
        }
        keep_error(engine, result);
    }
    int error = run_work(engine, &seen);
    if (error == -EAGAIN) {
        error = timeout_ns != 0 && seen == 0 ? sleep_for_memory(engine, timeout_ns) : 0;
        seen += drain(engine);
    }
    if (error < 0 && seen == 0)
        return error;
    keep_error(engine, error);
    if (timeout_ns != 0 && seen == 0)
        return -EINTR; /* more was queued than the SQ takes; now sleep */
    return answer(engine, seen);
}

int ut_engine_flush(struct ut_engine *engine)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    bool starved = false; /* as in run_work() */
    for (int round = 0; round < ENTER_ROUNDS_MAX; round++) {
        fill_sq(engine);
        unsigned to_submit = starved ? 0 : ut_ring_unsubmitted(&engine->ring);
        if (round > 0 && to_submit == 0 && !ut_ring_wants_enter(&engine->ring))
            break;
        int result = enter(engine, to_submit, 0, 0);
        if (result == -EBUSY)
            break; /* the CQ is full: only a drain helps, and that is the next wait's */
        starved = result == -EAGAIN && to_submit > 0;
        if (result < 0 && !starved && result != -EINTR && result != -ETIME)
            return result;
    }
    return 0;
}
