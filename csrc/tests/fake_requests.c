/*
 * What the fake does with an sqe.
 *
 * A request is an sqe with its plan; a "piece of work" is one cqe of it that has
 * become due. As under DEFER_TASKRUN, pieces become cqes only inside an enter
 * that asks for events, at most FAKE_WORK_MAX of them; until then the SQ shows
 * TASKRUN. An attempt that does not wait is over when its sqe was taken, as in Linux;
 * what its operation is to find is kept beside the requests, under its token. An
 * enter that took fewer sqes than it was given returns at once, without looking at
 * events: so does Linux (io_uring_enter, "if (ret != to_submit)").
 */
#define _GNU_SOURCE
#include "fake_kernel.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "check.h"

struct request {
    struct io_uring_sqe sqe;
    struct fake_plan plan;
    uint64_t due_ns;
    uint64_t order;
    bool stray;    /* a cqe only, nothing behind it */
    bool wakes;    /* no cqe either: it wakes the polls of its sqe's file */
    bool is_poll;  /* follows the next three, not the plan's res and more */
    bool canceled; /* its res is decided */
    bool attempted;
    uint64_t ready_ns;
    uint32_t woken; /* bits to be told besides */
};

/* What stands behind all the requests of one token. */
struct operation {
    uint64_t token;
    unsigned life; /* of the fake: another after each reset */
    struct fake_plan plan;
    uint64_t ready_ns;
    bool attempted;
    int32_t result; /* of its last attempt */
};

static struct request requests[FAKE_REQUESTS_MAX];
static unsigned request_count;
static uint64_t request_order;
static struct operation operations[FAKE_REQUESTS_MAX]; /* by slot */
static unsigned life;
static struct request late[FAKE_REQUESTS_MAX]; /* in flight when the ring was closed */
static unsigned late_count;
static struct fake_plan plans[FAKE_PLANS_MAX];
static unsigned plan_first, plan_count;
static struct fake_enter enters[FAKE_ENTERS_MAX];
static unsigned enter_first, enter_count;

void fake_requests_reset(void)
{
    request_count = late_count = 0;
    life++;
    plan_first = plan_count = enter_first = enter_count = 0;
}

void fake_plan_next(struct fake_plan plan)
{
    if (plan_first == plan_count)
        plan_first = plan_count = 0;
    if (plan_count == FAKE_PLANS_MAX)
        abort();
    plans[plan_count++] = plan;
}

void fake_enter_next(struct fake_enter enter)
{
    if (enter_first == enter_count)
        enter_first = enter_count = 0;
    if (enter_count == FAKE_ENTERS_MAX)
        abort();
    enters[enter_count++] = enter;
}

unsigned fake_in_flight(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < request_count; i++)
        count += !requests[i].stray;
    return count;
}

unsigned fake_in_flight_of(uint8_t opcode)
{
    unsigned count = 0;
    for (unsigned i = 0; i < request_count; i++)
        count += !requests[i].stray && requests[i].sqe.opcode == opcode;
    return count;
}

/* ---- bytes ------------------------------------------------------------------ */

uint8_t fake_byte(int fd, unsigned index)
{
    return (uint8_t)((unsigned)fd * 7 + index);
}

static void fill(uint64_t address, int fd, const char *data, uint32_t size)
{
    uint8_t *memory = (uint8_t *)(uintptr_t)address;
    for (uint32_t i = 0; i < size; i++)
        memory[i] = data != NULL ? (uint8_t)data[i] : fake_byte(fd, i);
}

/* ---- requests ------------------------------------------------------------- */

static void set_sq_flags(void)
{
    unsigned flags = kring_cq_has_overflow(&fake_ring) ? IORING_SQ_CQ_OVERFLOW : 0;
    for (unsigned i = 0; i < request_count; i++)
        if (requests[i].due_ns <= fake.now_ns)
            flags |= IORING_SQ_TASKRUN;
    kring_set_sq_flags(&fake_ring, flags);
}

void fake_sleep(uint64_t ns)
{
    fake.now_ns += ns;
    if (fake_ring.open)
        set_sq_flags();
}

static bool receives_bytes(const struct io_uring_sqe *sqe)
{
    return kring_has_bytes(sqe) && kring_takes_input(sqe);
}

static struct operation *known_operation(uint64_t token)
{
    struct operation *operation = &operations[(uint32_t)token % FAKE_REQUESTS_MAX];
    return operation->life == life && operation->token == token ? operation : NULL;
}

int32_t fake_result_of(uint64_t token)
{
    const struct operation *operation = known_operation(token);
    return operation != NULL ? operation->result : FAKE_NO_RESULT;
}

/* One cqe of a request, with its bytes. True if it was the last. As in Linux, the end of a
 * stream ends a multishot receive, and a full CQ ends any multishot operation. */
static bool complete(const struct request *request, int32_t res, bool more)
{
    const struct io_uring_sqe *sqe = &request->sqe;
    uint32_t flags = request->plan.flags;
    uint64_t address = sqe->addr;
    struct operation *operation = request->stray ? NULL : known_operation(sqe->user_data);
    if (kring_has_bytes(sqe) && res > 0) {
        if ((uint32_t)res > sqe->len && !kring_is_multishot(sqe))
            res = (int32_t)sqe->len;
        if (sqe->flags & IOSQE_BUFFER_SELECT && !request->plan.no_buffer) {
            const struct io_uring_buf *buffer = kring_take_buffer(&fake_ring, sqe->buf_group);
            if (buffer == NULL) {
                kring_cq_post(&fake_ring, sqe->user_data, -ENOBUFS, flags);
                if (operation != NULL)
                    operation->result = -ENOBUFS;
                return true;
            }
            if ((uint32_t)res > buffer->len)
                res = (int32_t)buffer->len;
            address = buffer->addr;
            flags |= IORING_CQE_F_BUFFER | (uint32_t)buffer->bid << IORING_CQE_BUFFER_SHIFT;
        }
        if (receives_bytes(sqe) && address != 0)
            fill(address, sqe->fd, request->plan.data, (uint32_t)res);
    }
    more = more && kring_is_multishot(sqe) && kring_cq_has_room(&fake_ring) &&
           (receives_bytes(sqe) ? res > 0 : res >= 0);
    kring_cq_post(&fake_ring, sqe->user_data, res, more ? flags | IORING_CQE_F_MORE : flags);
    if (operation != NULL && !kring_is_wait(sqe))
        operation->result = res;
    for (unsigned copy = 0; !more && copy < request->plan.copies; copy++) {
        kring_cq_post(&fake_ring, sqe->user_data, res, request->plan.flags);
        fake.stale_injected++;
    }
    return !more;
}

static void forget(unsigned index)
{
    requests[index] = requests[--request_count];
}

/* Tells whoever polls the file. */
static void wake(int fd, uint32_t bits)
{
    for (unsigned i = 0; i < request_count; i++) {
        struct request *request = &requests[i];
        if (!request->is_poll || request->canceled || request->sqe.fd != fd)
            continue;
        uint32_t asked = ut_poll_events(request->sqe.op_flags) | KRING_UNMASKED;
        if (bits & asked) {
            request->woken |= bits & asked;
            request->due_ns = fake.now_ns;
        }
    }
}

/* One cqe of a poll, if there is something to tell. True if it was the last. */
static bool complete_poll(struct request *request)
{
    const struct io_uring_sqe *sqe = &request->sqe;
    const struct fake_plan *plan = &request->plan;
    bool is_ready = fake.now_ns >= request->ready_ns;
    uint32_t bits = plan->sticky | request->woken;
    if (is_ready)
        bits |= ut_poll_events(sqe->op_flags);
    bool is_watch = sqe->user_data & UT_TOKEN_WATCH;
    int32_t error = !is_watch                ? plan->poll_error
                    : fake.watch_error != 0 ? fake.watch_error
                                            : plan->watch_error;
    int32_t res = error != 0 ? error : (int32_t)bits;
    /* A poll that a test asked for tells what was planned. (That of an operation which
     * polls first does so too; no bit of it matters there.) */
    bool is_planned = error == 0 && !kring_is_multishot(sqe) && !request->attempted &&
                      plan->sticky == 0 && (plan->res > 0 || sqe->op_flags == 0);
    if (is_planned)
        res = plan->res;
    request->woken = 0;
    request->due_ns = is_ready ? FAKE_NEVER : request->ready_ns;
    if (res == 0 && !is_planned)
        return false;
    bool ends = fake.watches_end && (fake.random == 0 || fake_draw(3) == 0);
    bool more = kring_is_multishot(sqe) && res > 0 && kring_cq_has_room(&fake_ring) && !ends;
    kring_cq_post(&fake_ring, sqe->user_data, res, more ? IORING_CQE_F_MORE : 0);
    return !more;
}

static void run_piece(unsigned index)
{
    struct request *request = &requests[index];
    if (request->wakes) {
        int fd = request->sqe.fd;
        uint32_t bits = request->woken;
        forget(index);
        wake(fd, bits);
        return;
    }
    if (request->is_poll && !request->canceled) {
        if (complete_poll(request))
            forget(index);
        return;
    }
    bool more = request->plan.more > 0;
    if (complete(request, request->plan.res, more)) {
        forget(index);
        return;
    }
    request->plan.more--;
    request->due_ns =
        request->plan.delay_ns == FAKE_NEVER ? FAKE_NEVER : fake.now_ns + request->plan.delay_ns;
}

/* The request that is due, and for longest; UINT_MAX if there is none. */
static unsigned next_piece(void)
{
    unsigned best = UINT32_MAX, due = 0;
    for (unsigned i = 0; i < request_count; i++) {
        const struct request *request = &requests[i];
        if (request->due_ns > fake.now_ns)
            continue;
        due++;
        if (fake.random != 0 ? best == UINT32_MAX || fake_draw(due) == 0
                             : best == UINT32_MAX || request->due_ns < requests[best].due_ns ||
                                   (request->due_ns == requests[best].due_ns &&
                                    request->order < requests[best].order))
            best = i;
    }
    return best;
}

static struct request *add_request(const struct io_uring_sqe *sqe, struct fake_plan plan)
{
    if (request_count == FAKE_REQUESTS_MAX)
        abort();
    struct request *request = &requests[request_count++];
    *request = (struct request){.sqe = *sqe, .plan = plan, .order = request_order++};
    request->due_ns = plan.delay_ns == FAKE_NEVER ? FAKE_NEVER : fake.now_ns + plan.delay_ns;
    return request;
}

/* A cqe that comes after `delay_ns`, as deferred work. */
static void post_later(uint64_t user_data, int32_t res, uint32_t flags, uint64_t delay_ns)
{
    struct io_uring_sqe sqe = {.user_data = user_data, .opcode = IORING_OP_NOP};
    struct fake_plan plan = {.res = res, .flags = flags, .delay_ns = delay_ns};
    add_request(&sqe, plan)->stray = true;
}

void fake_wake_later(uint64_t delay_ns, int fd, uint32_t bits)
{
    struct io_uring_sqe sqe = {.fd = fd, .opcode = IORING_OP_NOP};
    struct request *request = add_request(&sqe, (struct fake_plan){.delay_ns = delay_ns});
    request->stray = request->wakes = true;
    request->woken = bits;
    set_sq_flags();
}

void fake_fail_watches(int32_t error)
{
    fake.watch_error = error;
    for (unsigned i = 0; i < request_count && error != 0; i++)
        if (requests[i].is_poll && requests[i].sqe.user_data & UT_TOKEN_WATCH)
            requests[i].due_ns = fake.now_ns;
    set_sq_flags();
}

void fake_stray_cqe(uint64_t user_data, int32_t res, uint32_t flags)
{
    post_later(user_data, res, flags, 0);
    fake.stale_injected++;
    set_sq_flags();
}

static struct fake_plan random_plan(const struct io_uring_sqe *sqe)
{
    static const int32_t errors[] = {-ECONNRESET, -EPIPE, -ENOBUFS, -EBADF, -ENOMEM, 0};
    static const uint32_t bits[] = {POLLERR, POLLRDHUP, POLLHUP, POLLPRI};
    struct fake_plan plan = {0};
    bool is_poll = sqe->opcode == IORING_OP_POLL_ADD; /* it may be a receive's first request */
    uint32_t length = kring_is_multishot(sqe) || is_poll ? 5000 : sqe->len > 0 ? sqe->len : 1;
    plan.res = fake_draw(4) > 0 ? 1 + (int32_t)fake_draw(length) : errors[fake_draw(6)];
    plan.delay_ns = fake_draw(3) == 0 ? 0 : fake_draw(2) ? fake_draw(5000) : FAKE_NEVER;
    plan.at_once = fake_draw(6) == 0;
    plan.flags = fake_draw(2) ? IORING_CQE_F_SOCK_NONEMPTY : 0;
    if (kring_is_multishot(sqe))
        plan.more = fake_draw(4);
    plan.copies = fake_draw(20) == 0;
    plan.cancel_answer = (int32_t[]){0, -ENOENT, -EALREADY}[fake_draw(3)];
    plan.cancel_res = fake_draw(2) ? -ECANCELED : 1 + (int32_t)fake_draw(length);
    /* Only what ends by itself may be missed by a cancel. */
    plan.cancel_too_late = plan.delay_ns != FAKE_NEVER && fake_draw(4) == 0;
    plan.target_first = fake_draw(2);
    plan.cancel_gap_ns = fake_draw(2) ? 0 : fake_draw(3000);
    plan.slow = fake_draw(4) == 0;
    plan.refusals = fake_draw(3) > 0 ? 0 : 1 + fake_draw(5);
    plan.refused_buffer = fake_draw(4) == 0;
    plan.sticky = fake_draw(3) > 0 ? 0 : bits[fake_draw(4)] & KRING_UNMASKED;
    plan.echo = fake_draw(4) > 0 ? 0 : POLLIN | POLLOUT;
    if (plan.sticky != 0 && fake.is_calm)
        plan.echo = 0;
    plan.poll_error = fake_draw(40) == 0 ? -ENOMEM : 0;
    plan.watch_error = fake_draw(40) == 0 ? -ENOMEM : 0;
    return plan;
}

static struct fake_plan plan_for(const struct io_uring_sqe *sqe)
{
    if (sqe->opcode == IORING_OP_TIMEOUT) /* it keeps its time */
        return fake.random != 0 ? random_plan(sqe) : (struct fake_plan){0};
    if (plan_first < plan_count)
        return plans[plan_first++];
    return fake.random != 0 ? random_plan(sqe) : fake.fallback;
}

/* The operation that a request belongs to; its plan is taken by the first of them. */
static struct operation *operation_of(const struct io_uring_sqe *sqe)
{
    uint64_t token = sqe->user_data & ~UT_TOKEN_WATCH;
    struct operation *operation = known_operation(token);
    if (operation == NULL) {
        struct fake_plan plan = plan_for(sqe);
        operation = &operations[(uint32_t)token % FAKE_REQUESTS_MAX];
        *operation = (struct operation){
            .token = token, .life = life, .plan = plan, .result = FAKE_NO_RESULT};
        operation->ready_ns = plan.delay_ns == FAKE_NEVER ? FAKE_NEVER
                                                          : fake.now_ns + plan.delay_ns;
    }
    return operation;
}

/* ---- submission ----------------------------------------------------------- */

static void cancel_request(uint64_t target, uint64_t user_data)
{
    unsigned index = 0;
    while (index < request_count &&
           (requests[index].stray || requests[index].sqe.user_data != target))
        index++;
    if (index == request_count) {
        kring_cq_post(&fake_ring, user_data, -ENOENT, 0);
        return;
    }
    struct request request = requests[index];
    const struct fake_plan *plan = &request.plan;
    /* A watch waits for nothing that could be too late. */
    bool goes_on = plan->cancel_too_late && !(request.sqe.user_data & UT_TOKEN_WATCH);
    if (request.canceled || goes_on) {
        kring_cq_post(&fake_ring, user_data, plan->cancel_answer, 0);
        return;
    }
    int32_t res = plan->cancel_res != 0 ? plan->cancel_res : -ECANCELED;
    if (plan->target_first) {
        forget(index);
        complete(&request, res, false);
        post_later(user_data, plan->cancel_answer, 0, plan->cancel_gap_ns);
    } else {
        kring_cq_post(&fake_ring, user_data, plan->cancel_answer, 0);
        requests[index].plan.res = res;
        requests[index].plan.more = 0;
        requests[index].canceled = true;
        requests[index].due_ns = fake.now_ns + plan->cancel_gap_ns;
    }
}

/* How an sqe that must find its answer at once says so. */
enum patience { WAITS, DOES_NOT_WAIT, IS_REFUSED };

static enum patience patience_of(const struct io_uring_sqe *sqe, int32_t *error)
{
    bool is_file = sqe->opcode == IORING_OP_READ || sqe->opcode == IORING_OP_WRITE;
    if (sqe->opcode == IORING_OP_ACCEPT) {
        *error = -EINVAL;
        if (sqe->ioprio & IORING_ACCEPT_DONTWAIT)
            return fake.accept_waits ? IS_REFUSED : DOES_NOT_WAIT;
        return WAITS;
    }
    if (!is_file)
        return sqe->op_flags & MSG_DONTWAIT ? DOES_NOT_WAIT : WAITS;
    *error = -EOPNOTSUPP;
    if (!(sqe->op_flags & UT_RWF_NOWAIT))
        return WAITS; /* O_NONBLOCK or not */
    return fake.no_nowait ? IS_REFUSED : DOES_NOT_WAIT;
}

static void refuse(const struct io_uring_sqe *sqe, struct operation *operation)
{
    uint32_t flags = 0;
    fake.refused++;
    if (operation->plan.refused_buffer && sqe->flags & IOSQE_BUFFER_SELECT) {
        const struct io_uring_buf *buffer = kring_take_buffer(&fake_ring, sqe->buf_group);
        if (buffer != NULL)
            flags = IORING_CQE_F_BUFFER | (uint32_t)buffer->bid << IORING_CQE_BUFFER_SHIFT;
    }
    kring_cq_post(&fake_ring, sqe->user_data, -EAGAIN, flags);
    for (unsigned i = 0; i < request_count && operation->plan.echo != 0; i++) {
        struct request *request = &requests[i];
        if (request->sqe.user_data != (operation->token | UT_TOKEN_WATCH) || request->canceled)
            continue;
        request->woken |=
            operation->plan.echo & (ut_poll_events(request->sqe.op_flags) | KRING_UNMASKED);
        request->due_ns = fake.now_ns;
    }
}

/* An attempt that does not wait: its cqe is there when its sqe was taken. */
static void attempt(const struct io_uring_sqe *sqe, struct operation *operation)
{
    struct fake_plan *plan = &operation->plan;
    fake.attempts++;
    operation->attempted = true;
    if (plan->slow && plan->refusals == 0) {
        add_request(sqe, *plan);
        return;
    }
    bool is_ready = fake.now_ns >= operation->ready_ns;
    if (is_ready && plan->refusals == 0) {
        struct request request = {.sqe = *sqe, .plan = *plan};
        complete(&request, plan->res, false);
        return;
    }
    if (is_ready && plan->refusals != FAKE_ALWAYS)
        plan->refusals--;
    refuse(sqe, operation);
}

/* A poll, or the watch, of an operation. */
static void start_poll(const struct io_uring_sqe *sqe, const struct operation *operation)
{
    struct fake_plan plan = operation->plan;
    if (operation->attempted || kring_is_multishot(sqe))
        plan.cancel_res = 0;
    plan.copies = 0;
    struct request *request = add_request(sqe, plan);
    request->is_poll = true;
    request->attempted = operation->attempted;
    request->ready_ns = operation->ready_ns;
    bool tells = plan.sticky != 0 || plan.poll_error != 0 || plan.watch_error != 0 ||
                 (kring_is_multishot(sqe) && fake.watch_error != 0) ||
                 fake.now_ns >= request->ready_ns;
    request->due_ns = tells ? fake.now_ns : request->ready_ns;
    if (tells && plan.at_once)
        run_piece(request_count - 1);
}

static void start_timeout(const struct io_uring_sqe *sqe, const struct operation *operation)
{
    struct fake_plan plan = operation->plan; /* of its cancel */
    plan.res = -ETIME; /* it keeps its time, whatever is planned */
    plan.delay_ns = kring_timespec(&fake_ring, sqe->addr);
    plan.cancel_res = 0;
    plan.more = plan.copies = 0;
    plan.flags = 0;
    add_request(sqe, plan);
}

static void start_request(const struct io_uring_sqe *sqe)
{
    fake.submitted[sqe->opcode % UT_OPCODES]++;
    if (!kring_is_acceptable(sqe)) {
        fake_fault("an sqe that Linux refuses");
        kring_cq_post(&fake_ring, sqe->user_data, -EINVAL, 0);
        return;
    }
    if (sqe->opcode == IORING_OP_ASYNC_CANCEL) {
        cancel_request(sqe->addr, sqe->user_data);
        return;
    }
    for (unsigned i = 0; i < request_count; i++)
        if (!requests[i].stray && requests[i].sqe.user_data == sqe->user_data)
            fake_fault("two operations with one token");
    int32_t error = 0;
    enum patience patience = kring_is_attempt(sqe) ? patience_of(sqe, &error) : WAITS;
    if (patience == IS_REFUSED) {
        kring_cq_post(&fake_ring, sqe->user_data, error, 0);
        return;
    }
    struct operation *operation = operation_of(sqe);
    bool is_watch = sqe->user_data & UT_TOKEN_WATCH;
    fake.watches += is_watch;
    if (patience == DOES_NOT_WAIT) {
        attempt(sqe, operation);
    } else if (sqe->opcode == IORING_OP_POLL_ADD && (is_watch || !kring_is_multishot(sqe))) {
        start_poll(sqe, operation);
    } else if (sqe->opcode == IORING_OP_TIMEOUT) {
        start_timeout(sqe, operation);
    } else {
        /* (-EINVAL may have meant the flag.) */
        bool may_wait = sqe->opcode == IORING_OP_ACCEPT &&
                        (fake.accept_waits || operation->result == -EINVAL);
        if (kring_is_attempt(sqe) && !may_wait)
            fake_fault("an attempt that waits");
        struct request *request = add_request(sqe, operation->plan);
        if (kring_is_attempt(sqe)) { /* an accept of an old kernel */
            bool found = operation->plan.refusals == 0;
            operation->plan.refusals -= !found && operation->plan.refusals != FAKE_ALWAYS;
            operation->attempted = true;
            request->due_ns = found ? operation->ready_ns : FAKE_NEVER;
            request->plan.cancel_too_late &= found;
            request->plan.copies = 0;
            if (fake.now_ns >= request->due_ns)
                run_piece(request_count - 1);
        } else if (operation->plan.at_once) {
            run_piece(request_count - 1);
        }
    }
}

static unsigned take_sqes(unsigned wanted)
{
    unsigned taken = 0;
    struct io_uring_sqe sqe;
    while (taken < wanted && (fake.requests_max == 0 || request_count < fake.requests_max) &&
           kring_next_sqe(&fake_ring, &sqe)) {
        start_request(&sqe);
        taken++;
    }
    return taken;
}

/* ---- enter ---------------------------------------------------------------- */

static struct fake_enter next_enter(void)
{
    static const int errors[] = {-EAGAIN, -EINTR, -EBUSY, -EBADR, 0, 0};
    struct fake_enter none = {0};
    if (enter_first < enter_count)
        return enters[enter_first++];
    if (fake.random == 0 || fake_draw(4) > 0)
        return none;
    return (struct fake_enter){.error = errors[fake_draw(6)],
                               .submit_max = fake_draw(3) ? 0 : 1 + fake_draw(3)};
}

static void run_work(void)
{
    unsigned index;
    for (unsigned piece = 0; piece < FAKE_WORK_MAX; piece++) {
        if ((index = next_piece()) == UINT32_MAX)
            break;
        run_piece(index);
    }
    kring_cq_flush(&fake_ring);
}

/* Runs work and sleeps until there are `min_complete` cqes or `until_ns` is past. */
static int wait_events(unsigned min_complete, uint64_t until_ns, int error, bool with_cqes)
{
    for (;;) {
        run_work();
        if (with_cqes && kring_cq_ready(&fake_ring) > 0)
            return error;
        if (kring_cq_ready(&fake_ring) >= min_complete)
            return 0;
        if (error != 0)
            return error; /* as if a signal had come just now */
        uint64_t due_ns = FAKE_NEVER;
        for (unsigned i = 0; i < request_count; i++)
            if (requests[i].due_ns < due_ns)
                due_ns = requests[i].due_ns;
        if (due_ns == FAKE_NEVER && until_ns == FAKE_NEVER) {
            fprintf(stderr, "fake kernel: this wait would never end%s\n", check_noted());
            abort();
        }
        if (due_ns > until_ns) {
            fake.now_ns = until_ns > fake.now_ns ? until_ns : fake.now_ns;
            return -ETIME;
        }
        fake.now_ns = due_ns > fake.now_ns ? due_ns : fake.now_ns;
    }
}

int fake_enter_ring(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                    const void *arg, size_t arg_size)
{
    fake.enters++;
    if (!fake_ring.open)
        return -EBADF;
    if (!kring_is_acceptable_enter(flags, arg, arg_size) || ring_fd < 0)
        fake_fault("an enter that Linux refuses");
    struct fake_enter script = next_enter();
    bool waits = script.error == -EINTR || script.error == -EBUSY || script.error == -EBADR ||
                 script.error == -ETIME;
    if (script.error != 0 && !waits && (script.error != -EAGAIN || to_submit > 0))
        return script.error;
    unsigned wanted = to_submit;
    if (script.submit_max > 0 && script.submit_max < wanted)
        wanted = script.submit_max;
    unsigned taken = take_sqes(wanted);
    int result = taken < to_submit && taken == 0 ? -EAGAIN : (int)taken;
    if (taken == to_submit && flags & IORING_ENTER_GETEVENTS) {
        uint64_t until_ns = kring_end_of_wait(&fake_ring, arg, fake.now_ns);
        int ended =
            wait_events(min_complete, until_ns, waits ? script.error : 0, script.with_cqes);
        result = taken > 0 ? (int)taken : ended;
    }
    set_sq_flags();
    return result;
}

/* ---- after the end -------------------------------------------------------- */

void fake_requests_close(void)
{
    for (unsigned i = 0; i < request_count; i++)
        if (!requests[i].stray)
            late[late_count++] = requests[i];
    request_count = 0;
}

void fake_write_late(void)
{
    for (unsigned i = 0; i < late_count; i++) {
        const struct io_uring_sqe *sqe = &late[i].sqe;
        const struct io_uring_buf *buffer =
            sqe->flags & IOSQE_BUFFER_SELECT ? kring_take_buffer(&fake_ring, sqe->buf_group) : NULL;
        uint64_t address = buffer != NULL ? buffer->addr : sqe->addr;
        if (receives_bytes(sqe) && address != 0) {
            fill(address, sqe->fd, NULL, sqe->len);
            fake.late_writes++;
        }
    }
    late_count = 0;
}
