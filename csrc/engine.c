/*
 * Open, submit, wait, drain, close
 *
 * What the kernel does. Under DEFER_TASKRUN nothing completes behind our back:
 * an enter with GETEVENTS submits, runs at most 20 pieces of deferred work (on
 * 6.18; 64 ready receives came as 20 + 20 + 20 + 4), and only then waits. An
 * enter that submitted something answers with that count and hides -ETIME and
 * -EINTR behind it. A CQ that is full overflows into kernel memory; nothing is
 * lost, the next enter brings it.
 *
 * What follows. Operations are queued as they come and submitted together by
 * the next wait: one enter a tick, but for sends in a long one (tick.c). Their sqes are kept in the operation's slot
 * until then, not in the SQ, so that there is no limit of SQ entries, and an
 * operation that is cancelled before its submission is simply forgotten, at no
 * cost to the kernel. While the SQ's flags say that work is left we enter again,
 * up to a bound, or a batch of 64 would become four ticks of the scheduler.
 *
 * What Python sees. cqes become flat records in one array; no callback, and the
 * records, buffers and slots of a batch stay valid until the next wait, which
 * ends the batch by itself. So reading a receive costs no crossing at all.
 *
 * A receive into a provided buffer has its attempt when there is a buffer for it. One that the
 * kernel makes without is an sqe, a cqe and an error for nothing, and whoever is armed again
 * because of it is behind those who came later: with 1,000 connections x 16 KiB that was two
 * attempts of five. So the attempts of an enter are no more than the buffers that are at home,
 * and the others stand, oldest first, until the end of the batch brings some. They bound what
 * a tick receives as well, which keeps it short: other tasks have their turn, and the buffers
 * stay warm. Nothing bounds how often it enters for the polls in front of the attempts: one
 * that is ready must not wait because others, who are tried at once, are as well.
 *
 * Operations that find nothing are not left to the kernel: an attempt that was
 * refused is followed by polls and further attempts, as ladder.c says. Python is
 * told of the last one only, so cqes in between are no records, and a wait that
 * saw nothing else goes on.
 *
 * Opening takes from the kernel a ring, memory for the receive buffers, and a
 * registration for each group of them; what fails is told with its step, and
 * everything before it is given back. Closing gives all back, but for memory that
 * the kernel may still write to: that is given up on purpose.
 *
 * What it costs: a 64-byte copy of each sqe, a few nanoseconds.
 */
#include "engine.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "beside.h"
#include "ut_assert.h"

/* Enters of one wait, beside those that run one piece of work for each operation: a bound for
 * a peer that sends faster than we read. */
#define ENTER_ROUNDS_MAX 16
#define WORK_MAX 20 /* pieces of deferred work that one enter runs, as seen on 6.18 */
/* The kernel had no memory for an operation: how long until we try it again. */
#define RETRY_NS 1000000
#define QUEUE_MIN 64 /* operations of a tick before the queue first grows */

/* ---- opening -------------------------------------------------------------- */

static int open_groups(struct ut_engine *engine, const struct ut_config *config)
{
    const struct ut_kernel *kernel = engine->ring.kernel;
    for (unsigned group = 0; group < UT_GROUPS; group++)
        engine->pool_size +=
            (size_t)config->groups[group].entries * config->groups[group].buffer_size;
    UT_ASSERT(engine->pool_size <= UINT32_MAX);
    void *pool;
    int error = kernel->allocate(&pool, engine->pool_size, 0);
    if (error < 0)
        return error;
    engine->pool = pool;
    uint32_t offset = 0;
    for (unsigned group = 0; group < UT_GROUPS; group++) {
        error = ut_bufring_open(&engine->groups[group], &engine->ring, (uint16_t)group,
                                config->groups[group].entries, config->groups[group].buffer_size,
                                engine->pool, offset);
        if (error < 0)
            return error;
        engine->supplies[group].standing = UT_OP_LIST_EMPTY;
        offset += config->groups[group].entries * config->groups[group].buffer_size;
    }
    return 0;
}

static int open_arrays(struct ut_engine *engine)
{
    engine->record_capacity = engine->ring.cq_entries;
    engine->records = malloc(engine->record_capacity * sizeof *engine->records);
    engine->queue_capacity = QUEUE_MIN;
    engine->queue = malloc(engine->queue_capacity * sizeof *engine->queue);
    return engine->records == NULL || engine->queue == NULL ? -ENOMEM : 0;
}

/* What the ring has taken is not given back at once, so a smaller one is for later. */
static void shrink(struct ut_config *config, const struct ut_ring *ring)
{
    if (ring->sq_entries / 2 < config->sq_entries_min)
        return;
    config->sq_entries = ring->sq_entries / 2;
    config->cq_entries = ring->cq_entries / 2;
}

struct ut_engine *ut_engine_open(const struct ut_kernel *kernel, struct ut_config *config,
                                 int *error, const char **stage)
{
    ut_kernel_watch_forks();
    *stage = "allocate the engine";
    *error = -ENOMEM;
    struct ut_engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return NULL;
    engine->fork_count = ut_fork_count;
    engine->tick.long_ns = config->long_tick_ns;
    *stage = "io_uring_setup";
    *error = ut_ring_open(&engine->ring, kernel, config->sq_entries, config->cq_entries,
                          config->sq_entries_min);
    if (*error == 0) {
        *stage = "allocate the engine";
        *error = open_arrays(engine);
    }
    if (*error == 0) {
        *stage = "register buffer ring";
        *error = open_groups(engine, config);
        if (*error == -ENOMEM)
            shrink(config, &engine->ring);
    }
    if (*error == 0) {
        ut_tick_begin(&engine->tick, kernel->now_ns());
        return engine;
    }
    ut_engine_close(engine, 0);
    return NULL;
}

int ut_engine_open_boxed(const struct ut_kernel *kernel, struct ut_config *config,
                         struct ut_engine **box, const char **stage)
{
    int error;
    *box = ut_engine_open(kernel, config, &error, stage);
    return *box != NULL ? 0 : error;
}

/* ---- the queue ------------------------------------------------------------ */

/* Entries that one operation may have in the queue at once, stale ones included. By the
 * ladder: twice its request and its watch, and a cancel of each of the four. */
#define ENTRIES_PLAIN 2
#define ENTRIES_LADDERED 8

/* Room for one more operation, and for all that those which live may still queue: a
 * cancel, or a next request, must never fail for want of memory. */
static int reserve(struct ut_engine *engine)
{
    size_t needed = engine->queue_length + ENTRIES_PLAIN * engine->ops.live +
                    ENTRIES_LADDERED * (engine->laddered + 1);
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

static void push(struct ut_engine *engine, uint64_t token)
{
    UT_ASSERT(engine->queue_length < engine->queue_capacity);
    engine->queue[engine->queue_length++] = token;
}

int ut_engine_new_op(struct ut_engine *engine, uint8_t wanted, bool poll_first,
                     struct io_uring_sqe **sqe, uint32_t *slot)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    if (reserve(engine) < 0)
        return -ENOMEM;
    struct ut_op *op = ut_op_new(&engine->ops, slot);
    if (op == NULL)
        return -ENOMEM;
    if (wanted != 0) {
        op->wanted = wanted;
        op->step = poll_first ? UT_STEP_POLL : UT_STEP_TRY;
        op->waited = poll_first;
        op->pauses = (struct ut_pauses){0};
        engine->laddered++;
    }
    push(engine, op->sqe.user_data);
    engine->queued++;
    *sqe = &op->sqe;
    return 0;
}

/* ---- provided buffers, and those that wait for one ------------------------- */

/* Whether it is a multishot receive, which takes buffers as it likes. */
static bool takes_buffers(const struct ut_op *op)
{
    return op->wanted == 0 && op->sqe.flags & IOSQE_BUFFER_SELECT;
}

/* Of an operation whose next request is an attempt that takes a buffer; else NULL. */
static struct ut_supply *supply_of(struct ut_engine *engine, const struct ut_op *op)
{
    if (op->wanted == 0 || !(op->sqe.flags & IOSQE_BUFFER_SELECT) ||
        ut_step_request(op->step) != UT_REQUEST_ATTEMPT)
        return NULL;
    UT_ASSERT(op->sqe.buf_group < UT_GROUPS);
    return &engine->supplies[op->sqe.buf_group];
}

/* Whether one more attempt would find a buffer, also if all that are under way take one. */
static bool has_buffer(const struct ut_engine *engine, const struct ut_supply *supply)
{
    const struct ut_bufring *group = &engine->groups[supply - engine->supplies];
    return group->leased + supply->attempts < group->entries;
}

static void stand(struct ut_engine *engine, struct ut_supply *supply, struct ut_op *op)
{
    ut_op_list_append(&engine->ops, &supply->standing, op);
    op->stands = true;
    /* Who stands before its data is there is ahead of those who have waited for theirs. So its
     * stream's next receive waits first, like theirs. */
    op->waited = true;
}

static void stand_no_more(struct ut_engine *engine, struct ut_op *op)
{
    struct ut_supply *supply = &engine->supplies[op->sqe.buf_group];
    ut_op_list_remove(&engine->ops, &supply->standing, op);
    op->stands = false;
}

static bool anybody_stands(const struct ut_engine *engine)
{
    for (unsigned group = 0; group < UT_GROUPS; group++)
        if (engine->supplies[group].standing.count > 0)
            return true;
    return false;
}

static void free_op(struct ut_engine *engine, uint32_t slot)
{
    struct ut_op *op = ut_op_at(&engine->ops, slot);
    if (op->stands)
        stand_no_more(engine, op);
    if (op->wanted != 0)
        engine->laddered--;
    ut_op_free(&engine->ops, slot);
}

static void leave_line(struct ut_engine *engine, struct ut_op *op, bool sent, unsigned turns);

/* Cancels an operation in flight that waits by the ladder; as ut_engine_cancel(). */
static int cancel_laddered(struct ut_engine *engine, struct ut_op *op, uint32_t slot)
{
    uint64_t token = op->sqe.user_data;
    if (op->line != NULL)
        leave_line(engine, op, false, 0);
    if (op->stands)
        stand_no_more(engine, op);
    if (op->main == UT_REQUEST_QUEUED)
        op->main = UT_REQUEST_ABSENT;
    if (op->watch == UT_REQUEST_QUEUED)
        op->watch = UT_REQUEST_ABSENT;
    if (op->main == UT_REQUEST_ABSENT && op->watch == UT_REQUEST_ABSENT) {
        engine->in_flight--;
        free_op(engine, slot);
        return 0;
    }
    ut_op_step(op, UT_OP_EV_CANCEL);
    if (op->main == UT_REQUEST_SENT)
        push(engine, token | UT_TOKEN_CANCEL);
    if (op->watch == UT_REQUEST_SENT)
        push(engine, token | UT_TOKEN_WATCH | UT_TOKEN_CANCEL);
    return 1;
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
        free_op(engine, slot);
        return 0;
    case UT_OP_IN_FLIGHT:
        if (op->is_clock)
            return -ENOENT;
        if (op->wanted != 0)
            return cancel_laddered(engine, op, slot);
        ut_op_step(op, UT_OP_EV_CANCEL);
        push(engine, op->sqe.user_data | UT_TOKEN_CANCEL);
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
    sqe->user_data = token | UT_TOKEN_CANCEL;
}

static void prep_poll(struct io_uring_sqe *sqe, const struct ut_op *op, uint64_t token)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = op->sqe.fd;
    sqe->len = token & UT_TOKEN_WATCH ? IORING_POLL_ADD_MULTI : 0;
    sqe->op_flags = ut_poll_events(op->wanted);
    sqe->user_data = token;
}

static void prep_timeout(struct io_uring_sqe *sqe, struct ut_op *op, uint64_t token)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_TIMEOUT;
    sqe->fd = -1;
    sqe->addr = (uint64_t)(uintptr_t)&op->timeout;
    sqe->len = 1;
    sqe->user_data = token;
}

/* An accept that would wait: its kernel has no flag that forbids it. */
static bool needs_a_cancel(const struct ut_op *op)
{
    return op->sqe.opcode == IORING_OP_ACCEPT && !(op->sqe.ioprio & IORING_ACCEPT_DONTWAIT) &&
           ut_step_request(op->step) == UT_REQUEST_ATTEMPT;
}

static struct io_uring_sqe *next_sqe(struct ut_engine *engine)
{
    struct io_uring_sqe *sqe = ut_ring_get_sqe(&engine->ring);
    UT_ASSERT(sqe != NULL);
    return sqe;
}

/* The request of the step that an operation is at. */
static void submit_step(struct ut_engine *engine, struct ut_op *op)
{
    struct io_uring_sqe *sqe = next_sqe(engine);
    uint64_t token = op->sqe.user_data;
    struct ut_supply *supply = supply_of(engine, op);
    if (supply != NULL)
        supply->attempts++;
    switch (ut_step_request(op->step)) {
    case UT_REQUEST_POLL:
        prep_poll(sqe, op, token);
        break;
    case UT_REQUEST_TIMEOUT:
        prep_timeout(sqe, op, token);
        break;
    default:
        *sqe = op->sqe;
    }
    op->main = UT_REQUEST_SENT;
    engine->operations[sqe->opcode]++;
    /* An accept that would wait does so for no longer than it takes to submit this one
     * behind it. A wake-up that its exclusive wait swallows meanwhile is made good by the
     * poll that follows: that one looks again. Its entry is ahead of any later request's. */
    if (needs_a_cancel(op))
        push(engine, token | UT_TOKEN_CANCEL);
}

/* An operation's own request, its first or its next. */
static void submit_main(struct ut_engine *engine, struct ut_op *op)
{
    bool first = op->state == UT_OP_QUEUED;
    if (first) {
        ut_op_step(op, UT_OP_EV_SUBMIT);
        engine->queued--;
        engine->in_flight++;
    }
    if (op->wanted != 0) {
        submit_step(engine, op);
        return;
    }
    engine->multishots += takes_buffers(op);
    *next_sqe(engine) = op->sqe;
    engine->operations[op->sqe.opcode]++;
}

/* Moves one entry of the queue into the SQ. False if the SQ is full. */
static bool submit_one(struct ut_engine *engine, uint64_t token)
{
    struct ut_op *op = ut_op_from_token(&engine->ops, token & ~UT_TOKEN_MARKS);
    if (ut_ring_sq_room(&engine->ring) == 0)
        return false;
    if (token & UT_TOKEN_CANCEL) {
        bool watch = token & UT_TOKEN_WATCH; /* also of an operation that is over */
        bool sent = op != NULL && (op->wanted != 0 ? op->main == UT_REQUEST_SENT
                                                   : op->state == UT_OP_CANCELING);
        if (watch || sent) {
            prep_cancel(next_sqe(engine), token);
            engine->operations[IORING_OP_ASYNC_CANCEL]++;
        }
        return true; /* else over before its cancel left */
    }
    if (op == NULL)
        return true; /* dropped */
    if (token & UT_TOKEN_WATCH) {
        if (op->watch == UT_REQUEST_QUEUED) {
            prep_poll(next_sqe(engine), op, token);
            op->watch = UT_REQUEST_SENT;
            engine->operations[IORING_OP_POLL_ADD]++;
        }
        return true;
    }
    bool first = op->state == UT_OP_QUEUED;
    if (op->stands || (!first && op->main != UT_REQUEST_QUEUED))
        return true; /* there is another entry, or was */
    struct ut_supply *supply = supply_of(engine, op);
    if (supply != NULL && !has_buffer(engine, supply))
        stand(engine, supply, op);
    else
        submit_main(engine, op);
    return true;
}

/* Those that stand go first, as far as there are buffers for them. */
static void submit_standing(struct ut_engine *engine)
{
    for (unsigned group = 0; group < UT_GROUPS; group++) {
        struct ut_supply *supply = &engine->supplies[group];
        while (supply->standing.count > 0 && has_buffer(engine, supply) &&
               ut_ring_sq_room(&engine->ring) > 0) {
            struct ut_op *op = ut_op_at(&engine->ops, supply->standing.first);
            stand_no_more(engine, op);
            submit_main(engine, op);
        }
    }
}

/* Moves the queue into the SQ, as far as there is room, and buffers. */
static void fill_sq(struct ut_engine *engine)
{
    submit_standing(engine);
    size_t moved = 0;
    while (moved < engine->queue_length && submit_one(engine, engine->queue[moved]))
        moved++;
    engine->queue_length -= moved;
    if (engine->queue_length > 0 && moved > 0)
        memmove(engine->queue, engine->queue + moved,
                engine->queue_length * sizeof *engine->queue);
    engine->passed = 0;
}

/* Somebody else waits for it, and it has not begun. */
static bool is_awaited_elsewhere(const struct ut_op *op)
{
    return op != NULL && op->state == UT_OP_QUEUED &&
           (op->wanted == POLLOUT || op->sqe.opcode == IORING_OP_CONNECT);
}

/* Moves what others wait for into the SQ, as far as there is room; the rest keeps its order.
 * Not so receives: nobody sees when they begin, and each that finds data takes a buffer, which
 * comes home with the end of a batch only. */
static void fill_sq_early(struct ut_engine *engine)
{
    size_t kept = engine->passed, at = engine->passed;
    for (; at < engine->queue_length && ut_ring_sq_room(&engine->ring) > 0; at++) {
        uint64_t token = engine->queue[at];
        bool is_request = !(token & UT_TOKEN_MARKS);
        if (is_request && is_awaited_elsewhere(ut_op_from_token(&engine->ops, token)))
            (void)submit_one(engine, token);
        else
            engine->queue[kept++] = token;
    }
    engine->passed = kept;
    if (kept < at)
        memmove(engine->queue + kept, engine->queue + at,
                (engine->queue_length - at) * sizeof *engine->queue);
    engine->queue_length -= at - kept;
}

/* ---- the CQ --------------------------------------------------------------- */

/* A cqe that Python is told of. */
static void record(struct ut_engine *engine, struct ut_op *op, int32_t res, uint32_t flags)
{
    struct ut_record *record = &engine->records[engine->record_count++];
    record->slot = (uint32_t)op->sqe.user_data;
    record->res = res;
    record->flags = op->waited ? flags | UT_RECORD_WAITED : flags;
    record->offset = 0;
    if (flags & IORING_CQE_F_BUFFER) {
        UT_ASSERT(op->sqe.buf_group < UT_GROUPS);
        record->offset = ut_bufring_lease(&engine->groups[op->sqe.buf_group],
                                          (uint16_t)(flags >> IORING_CQE_BUFFER_SHIFT));
    }
}

static void finish(struct ut_engine *engine, struct ut_op *op, int32_t res, uint32_t flags)
{
    record(engine, op, res, flags);
    UT_ASSERT(!op->stands);
    if (takes_buffers(op))
        engine->multishots--;
    if (op->line != NULL)
        leave_line(engine, op, res >= 0, UT_LINE_TURNS_AFTER_ANSWER);
    if (op->watch == UT_REQUEST_SENT) {
        engine->lingering++;
        if (op->state != UT_OP_CANCELING)
            push(engine, op->sqe.user_data | UT_TOKEN_WATCH | UT_TOKEN_CANCEL);
    }
    op->main = op->watch = UT_REQUEST_ABSENT;
    ut_op_step(op, UT_OP_EV_CQE_LAST);
    engine->in_flight--;
}

/* An attempt was refused with a buffer in its hand, as some kernels do. */
static void put_back(struct ut_engine *engine, const struct ut_op *op, uint32_t flags)
{
    if (!(flags & IORING_CQE_F_BUFFER))
        return;
    struct ut_bufring *group = &engine->groups[op->sqe.buf_group];
    uint16_t bid = (uint16_t)(flags >> IORING_CQE_BUFFER_SHIFT);
    ut_bufring_return(group, ut_bufring_lease(group, bid));
    ut_bufring_commit(group);
}

/* Has an operation's next step begin. */
static void advance(struct ut_engine *engine, struct ut_op *op, enum ut_step_event event)
{
    uint64_t token = op->sqe.user_data;
    enum ut_step before = op->step, step = ut_step_next(before, event);
    UT_ASSERT(step < UT_STEPS);
    op->step = (uint8_t)step;
    op->waited = true;
    engine->stepped = true;
    if (step == UT_STEP_PAUSE_CUT && before != UT_STEP_PAUSE_CUT) {
        if (op->main == UT_REQUEST_QUEUED) {
            /* The kernel knows of no timeout. Its entry is the attempt's from now on: a
             * second one would be taken for a request that comes later. */
            advance(engine, op, UT_STEP_EV_TIME);
            return;
        }
        push(engine, token | UT_TOKEN_CANCEL);
    }
    if (op->parked && ut_step_request(step) != UT_REQUEST_NONE)
        ut_line_unpark(&engine->ops, op);
    bool begins = event == UT_STEP_EV_REFUSED || event == UT_STEP_EV_READY;
    if (begins && ut_step_request(step) == UT_REQUEST_TIMEOUT) {
        uint64_t pause_ns = ut_pause_begin(&op->pauses, engine->ring.kernel->now_ns());
        op->timeout = (struct ut_timespec){.tv_nsec = (int64_t)pause_ns};
    }
    if (event == UT_STEP_EV_REFUSED || event == UT_STEP_EV_LINED || event == UT_STEP_EV_TIME ||
        event == UT_STEP_EV_TURN)
        if (ut_step_is_watched(step))
            op->sleep_ns = engine->ring.kernel->now_ns();
    /* Never armed because of its own cqe: it might end at once again, and again. */
    bool of_watch = event == UT_STEP_EV_CHANGED || event == UT_STEP_EV_CHANGED_TOLD ||
                    event == UT_STEP_EV_CHANGED_NEWS || event == UT_STEP_EV_ECHO;
    if (ut_step_is_watched(step) && op->watch == UT_REQUEST_ABSENT && !of_watch) {
        op->watch = UT_REQUEST_QUEUED;
        push(engine, token | UT_TOKEN_WATCH);
    }
    if (ut_step_request(step) != UT_REQUEST_NONE && op->main == UT_REQUEST_ABSENT) {
        op->main = UT_REQUEST_QUEUED;
        push(engine, token);
    }
}

/* ---- lines; the theory is in line.c ---------------------------------------- */

/* Has the line's clock run for its next pause, if it does not run. False if there is no
 * memory for one. */
static bool start_clock(struct ut_engine *engine, struct ut_line *line)
{
    if (line->clock == UT_NO_SLOT) {
        uint32_t slot;
        struct ut_op *fresh = reserve(engine) < 0 ? NULL : ut_op_new(&engine->ops, &slot);
        if (fresh == NULL)
            return false;
        fresh->wanted = POLLOUT; /* (no poll is made: a pause is its only step) */
        fresh->step = UT_STEP_PAUSE;
        fresh->is_clock = true;
        fresh->line = line;
        engine->laddered++;
        ut_op_step(fresh, UT_OP_EV_SUBMIT);
        line->clock = slot;
    }
    struct ut_op *clock = ut_op_at(&engine->ops, line->clock);
    if (clock->main == UT_REQUEST_ABSENT) {
        uint64_t pause_ns = ut_line_pause(line, engine->ring.kernel->now_ns());
        clock->timeout = (struct ut_timespec){.tv_nsec = (int64_t)pause_ns};
        clock->main = UT_REQUEST_QUEUED;
        push(engine, clock->sqe.user_data);
    }
    return true;
}

/* Gives up a line that nobody is a member of, once its clock has run out. */
static void drop_if_empty(struct ut_engine *engine, struct ut_line *line)
{
    if (line->members > 0)
        return;
    if (line->clock != UT_NO_SLOT) {
        if (ut_op_at(&engine->ops, line->clock)->main != UT_REQUEST_ABSENT)
            return;
        free_op(engine, line->clock);
        line->clock = UT_NO_SLOT;
    }
    ut_line_drop(&engine->lines, line);
}

/* Gives the longest waiting ones their turn. */
static void give_turns(struct ut_engine *engine, struct ut_line *line, unsigned turns)
{
    for (; turns > 0 && line->parked.count > 0; turns--)
        advance(engine, ut_op_at(&engine->ops, line->parked.first), UT_STEP_EV_TURN);
}

/* An operation's membership ends; others have a turn because of it. */
static void leave_line(struct ut_engine *engine, struct ut_op *op, bool sent, unsigned turns)
{
    struct ut_line *line = op->line;
    ut_line_leave(&engine->ops, op, sent);
    give_turns(engine, line, turns);
    drop_if_empty(engine, line);
}

/* Makes an operation that was refused a member of its receiver's line, and sees to it that
 * the line's clock runs. False if it has to wait by itself. */
static bool enter_line(struct ut_engine *engine, struct ut_op *op)
{
    if (op->line == NULL) {
        struct ut_receiver receiver;
        if (!ut_receiver_read(&op->sqe, &receiver))
            return false;
        if (ut_receiver_is_abstract(&receiver))
            receiver.network = ut_network_of(engine->ring.kernel, op->sqe.fd);
        struct ut_line *line = ut_line_at(&engine->lines, &receiver);
        if (line == NULL)
            return false;
        ut_line_enter(line, op);
    }
    if (start_clock(engine, op->line))
        return true;
    leave_line(engine, op, false, 0);
    return false;
}

/* A line's pause is over. */
static void take_clock(struct ut_engine *engine, struct ut_op *clock)
{
    struct ut_line *line = clock->line;
    engine->stepped = true;
    give_turns(engine, line, ut_line_turns(line));
    /* Else whoever is parked next has it run: it begins anew if it has moved. */
    if (line->parked.count > 0)
        (void)start_clock(engine, line);
    drop_if_empty(engine, line);
}

/* An attempt was refused. */
static void take_refusal(struct ut_engine *engine, struct ut_op *op)
{
    bool may_line = ut_step_next(op->step, UT_STEP_EV_LINED) != UT_STEPS;
    if (!may_line || !enter_line(engine, op)) {
        advance(engine, op, UT_STEP_EV_REFUSED);
        return;
    }
    advance(engine, op, UT_STEP_EV_LINED);
    ut_line_park(&engine->ops, op, engine->ring.kernel->now_ns());
}

/* ---- steps ----------------------------------------------------------------- */

/* The kernel refused the flag that keeps an attempt from waiting: what to do without it.
 * `again`: the attempt is to be made once more. Else the answer that is meant. */
static int32_t without_flag(struct ut_engine *engine, struct ut_op *op, int32_t res, bool *again)
{
    struct io_uring_sqe *sqe = &op->sqe;
    *again = false;
    if (sqe->opcode == IORING_OP_ACCEPT) {
        bool has_flag = sqe->ioprio & IORING_ACCEPT_DONTWAIT;
        if (res != -EINVAL) {
            engine->accept_does_not_wait |= has_flag;
            engine->accept_waits |= !has_flag;
        } else if (has_flag && !engine->accept_does_not_wait) {
            sqe->ioprio = 0;
            *again = true;
        }
        /* The cancel that went with it (submit_step). */
        return !has_flag && res == -ECANCELED ? -EAGAIN : res;
    }
    bool is_file = sqe->opcode == IORING_OP_READ || sqe->opcode == IORING_OP_WRITE;
    /* A file without FMODE_NOWAIT: FIFOs, terminals; before 6.4 pipes, and sockets by
     * read(2). Without the flag it would wait by the kernel's own poll, O_NONBLOCK or not
     * (that counts as FMODE_NOWAIT there). So the caller must wait, and read it by hand. */
    return is_file && res == -EOPNOTSUPP ? -EAGAIN : res;
}

/* Whether an attempt found nothing. A send to a socket that is still connecting says so in
 * its own words (TCP_FASTOPEN_CONNECT): it is writable when it is connected. */
static bool is_refusal(int32_t res)
{
    return res == -EAGAIN || res == -EINPROGRESS || res == -EALREADY;
}

static void take_attempt(struct ut_engine *engine, struct ut_op *op,
                         const struct io_uring_cqe *cqe)
{
    bool canceling = op->state == UT_OP_CANCELING, again;
    int32_t res = without_flag(engine, op, cqe->res, &again);
    if (!again && !is_refusal(cqe->res) && cqe->res == res) {
        engine->woken = true;
        finish(engine, op, res, cqe->flags);
        return;
    }
    put_back(engine, op, cqe->flags);
    if (canceling) {
        finish(engine, op, -ECANCELED, 0);
    } else if (again) {
        op->main = UT_REQUEST_QUEUED;
        push(engine, op->sqe.user_data);
        engine->stepped = true;
    } else if (cqe->res == -EOPNOTSUPP) {
        finish(engine, op, res, 0);
    } else {
        take_refusal(engine, op);
    }
}

/* Whether an operation has waited since it was last refused. */
static bool has_slept(const struct ut_engine *engine, const struct ut_op *op)
{
    return ut_sleep_was_long(op->sleep_ns, engine->ring.kernel->now_ns());
}

/* What a one-shot poll has told. */
static enum ut_step_event readiness(const struct ut_engine *engine, const struct ut_op *op,
                                    int32_t res)
{
    if (!(res & op->wanted))
        return UT_STEP_EV_READY;
    if (op->step == UT_STEP_POLL)
        return UT_STEP_EV_TOLD; /* the first: nothing was refused with the bit set */
    return has_slept(engine, op) ? UT_STEP_EV_NEWS : UT_STEP_EV_TOLD;
}

/* The request of an operation's step is over. */
static void take_step(struct ut_engine *engine, struct ut_op *op, const struct io_uring_cqe *cqe)
{
    enum ut_step_request request = ut_step_request(op->step);
    op->main = UT_REQUEST_ABSENT;
    if (request == UT_REQUEST_ATTEMPT) {
        take_attempt(engine, op, cqe);
        return;
    }
    engine->woken = true;
    if (op->is_clock)
        take_clock(engine, op);
    else if (op->state == UT_OP_CANCELING)
        finish(engine, op, -ECANCELED, 0);
    else if (request == UT_REQUEST_TIMEOUT)
        advance(engine, op, UT_STEP_EV_TIME);
    else if (cqe->res < 0)
        finish(engine, op, cqe->res, 0);
    else
        advance(engine, op, readiness(engine, op, cqe->res));
}

static void take_watch(struct ut_engine *engine, struct ut_op *op, const struct io_uring_cqe *cqe)
{
    bool last = !(cqe->flags & IORING_CQE_F_MORE);
    if (op == NULL || op->watch != UT_REQUEST_SENT) { /* its operation is over */
        if (last && engine->lingering == 0)
            engine->stale_cqes++;
        else
            engine->lingering -= last;
        return;
    }
    engine->woken = true;
    if (last)
        op->watch = UT_REQUEST_ABSENT;
    if (op->state == UT_OP_CANCELING) {
        if (last && op->main == UT_REQUEST_ABSENT)
            finish(engine, op, -ECANCELED, 0);
    } else if (cqe->res < 0 && op->main == UT_REQUEST_ABSENT) {
        finish(engine, op, cqe->res, 0);
    } else {
        /* One that ended by itself, as with a full CQ, counts as told: then there is a pause
         * between one and the next, or a bit that stays set would make it a spin. */
        bool told = last || cqe->res & op->wanted;
        bool pauses = op->parked || ut_step_request(op->step) == UT_REQUEST_TIMEOUT;
        bool echo = pauses && ut_pause_is_young(&op->pauses, engine->ring.kernel->now_ns());
        advance(engine, op,
                echo   ? UT_STEP_EV_ECHO
                : !told               ? UT_STEP_EV_CHANGED
                : has_slept(engine, op) ? UT_STEP_EV_CHANGED_NEWS
                                        : UT_STEP_EV_CHANGED_TOLD);
    }
}

/* Takes one cqe. False if it was only a step of an operation that goes on. */
static bool take_cqe(struct ut_engine *engine, const struct io_uring_cqe *cqe)
{
    uint64_t user_data = cqe->user_data;
    if (user_data & UT_TOKEN_CANCEL)
        return true; /* 0, -ENOENT, -EALREADY: the target's own cqe decides */
    unsigned before = engine->record_count;
    struct ut_op *op = ut_op_from_token(&engine->ops, user_data & ~UT_TOKEN_MARKS);
    if (op != NULL && op->state != UT_OP_IN_FLIGHT && op->state != UT_OP_CANCELING)
        op = NULL;
    if (user_data & UT_TOKEN_WATCH) {
        take_watch(engine, op, cqe);
        return engine->record_count > before;
    }
    if (op == NULL || (op->wanted != 0 && op->main != UT_REQUEST_SENT)) {
        engine->stale_cqes++;
        return true;
    }
    if (op->wanted != 0) {
        take_step(engine, op, cqe);
        return engine->record_count > before;
    }
    engine->woken = true;
    if (cqe->flags & IORING_CQE_F_MORE) {
        record(engine, op, cqe->res, cqe->flags);
        ut_op_step(op, UT_OP_EV_CQE_MORE);
    } else {
        finish(engine, op, cqe->res, cqe->flags);
    }
    return true;
}

/* Reads the CQ into the batch; the number of cqes seen, steps of operations not counted. */
static unsigned drain(struct ut_engine *engine)
{
    unsigned ready = ut_ring_cq_ready(&engine->ring);
    unsigned room = engine->record_capacity - engine->record_count;
    unsigned count = ready < room ? ready : room;
    unsigned seen = 0;
    for (unsigned i = 0; i < count; i++)
        seen += take_cqe(engine, ut_ring_cqe(&engine->ring, i));
    if (count > 0)
        ut_ring_cq_advance(&engine->ring, count);
    engine->cqes += count;
    if (count == ready && ut_ring_unsubmitted(&engine->ring) == 0)
        for (unsigned group = 0; group < UT_GROUPS; group++)
            engine->supplies[group].attempts = 0; /* each has its answer */
    return seen;
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
            free_op(engine, record->slot);
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
    int result = ut_ring_enter(&engine->ring, to_submit, wait_nr, timeout_ns);
    engine->failed_enters += result < 0;
    return result;
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
    return engine->multishots > 0 && small->leased > 0 &&
           small->entries - small->leased < WORK_MAX;
}

/* Enters while the kernel has work for us, without sleeping. 0 or -errno; -EAGAIN
 * if operations find no memory: they stay in the SQ. */
static int run_work(struct ut_engine *engine, unsigned *seen)
{
    bool no_memory = false;
    unsigned rounds = ENTER_ROUNDS_MAX + engine->in_flight / WORK_MAX;
    for (unsigned round = 0; round < rounds; round++) {
        fill_sq(engine);
        /* An enter that submits less than it was told runs no work, and it is the
         * work that gives memory back: then one that submits nothing. */
        unsigned to_submit = no_memory ? 0 : ut_ring_unsubmitted(&engine->ring);
        if (to_submit == 0 && !ut_ring_wants_enter(&engine->ring))
            return no_memory ? -EAGAIN : 0;
        if (engine->record_count == engine->record_capacity || is_short_of_buffers(engine))
            return 0;
        int result = enter(engine, to_submit, 0, 0);
        *seen += drain(engine);
        no_memory = result == -EAGAIN && to_submit > 0;
        if (result < 0 && !no_memory && result != -EINTR && result != -EBUSY && result != -ETIME)
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
static bool look(struct ut_engine *engine, int64_t timeout_ns, unsigned *seen)
{
    /* Attempts in vain come back at once, and are followed by polls. */
    for (int round = 0; round < ENTER_ROUNDS_MAX; round++) {
        unsigned to_submit = ut_ring_unsubmitted(&engine->ring);
        if (to_submit == 0)
            break;
        if (enter(engine, to_submit, 0, 0) < 0)
            return false; /* the enter that sleeps finds out why */
        *seen += drain(engine);
        if (*seen > 0) {
            ut_spin_hit(&engine->spin);
            return true;
        }
        fill_sq(engine);
    }
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

/* One enter that submits and sleeps, and what it brought. */
static int sleep_once(struct ut_engine *engine, int64_t timeout_ns, unsigned *seen)
{
    if (ut_spin_is_wanted(&engine->spin) && look(engine, timeout_ns, seen)) {
        *seen += drain(engine);
        return 0;
    }
    unsigned to_submit = ut_ring_unsubmitted(&engine->ring);
    uint64_t start = engine->ring.kernel->now_ns();
    engine->woken = false;
    int result = enter(engine, to_submit, 1, timeout_ns);
    *seen += drain(engine);
    if (engine->woken)
        ut_spin_slept(&engine->spin, engine->ring.kernel->now_ns() - start);
    if (result == -EAGAIN && to_submit > 0) {
        result = sleep_for_memory(engine, timeout_ns);
        *seen += drain(engine);
    }
    return result;
}

/* As ut_engine_wait(), which keeps the time: it is called now. */
static int64_t wait(struct ut_engine *engine, int64_t timeout_ns, uint64_t now)
{
    release_batch(engine);
    if (engine->pending_error < 0) {
        int error = engine->pending_error;
        engine->pending_error = 0;
        return error;
    }
    engine->stepped = false;
    unsigned seen = drain(engine); /* what an earlier flush brought */

    fill_sq(engine);
    if (timeout_ns != 0 && seen == 0 && engine->queue_length == 0 && !anybody_stands(engine)) {
        int result = sleep_once(engine, timeout_ns, &seen);
        if (seen == 0 && !engine->stepped) {
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
    if (engine->lingering > 0 &&
        (engine->queue_length > 0 || ut_ring_unsubmitted(&engine->ring) > 0))
        (void)ut_engine_flush(engine); /* the kernel lets go of files that may be closed now */
    if (error < 0 && seen == 0)
        return error;
    keep_error(engine, error);
    if (timeout_ns != 0 && seen == 0)
        return -EINTR; /* operations have begun their next step, or there are more than the SQ takes; now sleep */
    return answer(engine, seen);
}

int64_t ut_engine_wait(struct ut_engine *engine, int64_t timeout_ns)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    const struct ut_kernel *kernel = engine->ring.kernel;
    uint64_t now = kernel->now_ns();
    ut_tick_end(&engine->tick, now);
    int64_t answer = wait(engine, timeout_ns, now);
    ut_tick_begin(&engine->tick, kernel->now_ns());
    return answer;
}

/* ---- in a long tick; the theory is in tick.c -------------------------------- */

void ut_engine_submit(struct ut_engine *engine)
{
    if (ut_engine_is_foreign(engine))
        return;
    /* As often as the SQ is filled. What it refuses is there for the next wait, which tells
     * why; its cqes are, too. */
    for (;;) {
        fill_sq_early(engine);
        unsigned to_submit = ut_ring_unsubmitted(&engine->ring);
        bool is_full = ut_ring_sq_room(&engine->ring) == 0;
        engine->enters++;
        int result = ut_ring_submit(&engine->ring, to_submit);
        engine->failed_enters += result < 0;
        if (!is_full || result < 0 || (unsigned)result < to_submit)
            break;
    }
    ut_tick_begin(&engine->tick, engine->ring.kernel->now_ns());
}

int ut_engine_leaves(struct ut_engine *engine)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    return ut_tick_leaves(&engine->tick, engine->ring.kernel->now_ns());
}

int ut_engine_flush(struct ut_engine *engine)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    bool no_memory = false; /* as in run_work() */
    for (int round = 0; round < ENTER_ROUNDS_MAX; round++) {
        fill_sq(engine);
        unsigned to_submit = no_memory ? 0 : ut_ring_unsubmitted(&engine->ring);
        if (round > 0 && to_submit == 0 && !ut_ring_wants_enter(&engine->ring))
            break;
        int result = enter(engine, to_submit, 0, 0);
        if (result == -EBUSY)
            break; /* the CQ is full: only a drain helps, and that is the next wait's */
        no_memory = result == -EAGAIN && to_submit > 0;
        if (result < 0 && !no_memory && result != -EINTR && result != -ETIME)
            return result;
    }
    return 0;
}

/* ---- what a thread that sleeps on an eventfd is told of -------------------- */

int ut_engine_register_eventfd(struct ut_engine *engine, int event_fd)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD; /* it would signal the parent's ring to us */
    const struct ut_kernel *kernel = engine->ring.kernel;
    int fd = engine->ring.fd;
    int error = kernel->register_op(fd, IORING_UNREGISTER_EVENTFD, NULL, 0);
    if (error < 0 && error != -ENXIO)
        return error; /* ENXIO: there was none */
    return kernel->register_op(fd, IORING_REGISTER_EVENTFD, &event_fd, 1);
}

int ut_engine_look(struct ut_engine *engine)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    struct ut_ring *ring = &engine->ring;
    /* Whoever adds work puts it on the list and then looks for an eventfd; we have
     * registered one and now look at the list. Both need a full barrier between. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    engine->enters++;
    int result = ut_ring_enter(ring, 0, 0, 0);
    if (result < 0 && result != -EINTR && result != -EBUSY)
        return result;
    if (result < 0 || engine->pending_error < 0 || ut_ring_cq_ready(ring) > 0 ||
        ut_ring_wants_enter(ring))
        return UT_LOOK_SOMETHING;
    if (ut_ring_unsubmitted(ring) > 0)
        return UT_LOOK_NO_MEMORY;
    return engine->queue_length > 0 || anybody_stands(engine) ? UT_LOOK_SOMETHING
                                                               : UT_LOOK_NOTHING;
}

size_t ut_engine_unsubmitted(const struct ut_engine *engine)
{
    if (ut_engine_is_foreign(engine))
        return 0;
    return engine->queue_length + ut_ring_unsubmitted(&engine->ring);
}

/* ---- counts, and the end --------------------------------------------------- */

void ut_engine_statistics(const struct ut_engine *engine, struct ut_statistics *out)
{
    memset(out, 0, sizeof *out);
    out->enters = engine->enters;
    out->cqes = engine->cqes;
    out->stale_cqes = engine->stale_cqes;
    out->queued = engine->queued;
    out->in_flight = engine->in_flight + engine->lingering;
    if (!ut_engine_is_foreign(engine))
        out->unread_cqes = ut_ring_cq_ready(&engine->ring);
    for (unsigned group = 0; group < UT_GROUPS; group++)
        out->leases_out += engine->groups[group].leased;
    memcpy(out->operations, engine->operations, sizeof out->operations);
}

int ut_engine_close(struct ut_engine *engine, int leak)
{
    const struct ut_kernel *kernel = engine->ring.kernel;
    if (ut_engine_is_foreign(engine)) {
        if (engine->ring.fd >= 0)
            kernel->close_fd(engine->ring.fd); /* the mappings do not exist here */
        engine->ring.fd = -1;
        return 1;
    }
    bool leaked = leak || engine->in_flight > 0;
    ut_ring_close(&engine->ring);
    if (leaked)
        return 1; /* the kernel may write to buffers until it has cancelled all */
    for (unsigned group = 0; group < UT_GROUPS; group++)
        ut_bufring_close(&engine->groups[group], kernel);
    if (engine->pool != NULL)
        kernel->unmap(engine->pool, engine->pool_size);
    ut_lines_close(&engine->lines);
    ut_op_table_close(&engine->ops);
    free(engine->queue);
    free(engine->records);
    free(engine);
    return 0;
}

void ut_engine_close_boxed(struct ut_engine **box)
{
    if (*box != NULL)
        ut_engine_close(*box, 0);
    *box = NULL;
}
