/*
 * What the fake does with an sqe.
 *
 * A request is an sqe with its plan; a "piece of work" is one cqe of it that has
 * become due. As under DEFER_TASKRUN, pieces become cqes only inside an enter
 * that asks for events, at most FAKE_WORK_MAX of them; until then the SQ shows
 * TASKRUN. An enter that took fewer sqes than it was given returns at once,
 * without looking at events: so does Linux (io_uring_enter, "if (ret != to_submit)").
 */
#include "fake_kernel.h"

#include <errno.h>
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
    bool stray; /* a cqe only, nothing behind it */
};

static struct request requests[FAKE_REQUESTS_MAX];
static unsigned request_count;
static uint64_t request_order;
static struct request late[FAKE_REQUESTS_MAX]; /* in flight when the ring was closed */
static unsigned late_count;
static struct fake_plan plans[FAKE_PLANS_MAX];
static unsigned plan_first, plan_count;
static struct fake_enter enters[FAKE_ENTERS_MAX];
static unsigned enter_first, enter_count;

void fake_requests_reset(void)
{
    request_count = late_count = 0;
    fake_cq_reset();
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

/* ---- requests ------------------------------------------------------------- */

static void set_sq_flags(void)
{
    unsigned flags = fake_cq_has_overflow() ? IORING_SQ_CQ_OVERFLOW : 0;
    for (unsigned i = 0; i < request_count; i++)
        if (requests[i].due_ns <= fake.now_ns)
            flags |= IORING_SQ_TASKRUN;
    __atomic_store_n(fake_at(fake_ring.params.sq_off.flags), flags, __ATOMIC_RELAXED);
}

void fake_sleep(uint64_t ns)
{
    fake.now_ns += ns;
    if (fake_ring.open)
        set_sq_flags();
}

static bool moves_bytes(uint8_t opcode)
{
    return opcode == IORING_OP_RECV || opcode == IORING_OP_SEND || opcode == IORING_OP_READ ||
           opcode == IORING_OP_WRITE;
}

static bool receives(uint8_t opcode)
{
    return opcode == IORING_OP_RECV || opcode == IORING_OP_READ;
}

static bool is_multishot(const struct io_uring_sqe *sqe)
{
    switch (sqe->opcode) {
    case IORING_OP_RECV:
        return sqe->ioprio & IORING_RECV_MULTISHOT;
    case IORING_OP_ACCEPT:
        return sqe->ioprio & IORING_ACCEPT_MULTISHOT;
    case IORING_OP_POLL_ADD:
        return sqe->len & IORING_POLL_ADD_MULTI;
    default:
        return false;
    }
}

/* One cqe of a request, with its bytes. True if it was the last. As in Linux, the end of a
 * stream ends a multishot receive, and a full CQ ends any multishot operation. */
static bool complete(const struct request *request, int32_t res, bool more)
{
    const struct io_uring_sqe *sqe = &request->sqe;
    uint32_t flags = request->plan.flags;
    uint64_t address = sqe->addr;
    if (moves_bytes(sqe->opcode) && res > 0) {
        if ((uint32_t)res > sqe->len && !is_multishot(sqe))
            res = (int32_t)sqe->len;
        if (sqe->flags & IOSQE_BUFFER_SELECT && !request->plan.no_buffer) {
            const struct io_uring_buf *buffer = fake_take_buffer(sqe->buf_group);
            if (buffer == NULL) {
                fake_cq_post(sqe->user_data, -ENOBUFS, flags);
                return true;
            }
            if ((uint32_t)res > buffer->len)
                res = (int32_t)buffer->len;
            address = buffer->addr;
            flags |= IORING_CQE_F_BUFFER | (uint32_t)buffer->bid << IORING_CQE_BUFFER_SHIFT;
        }
        if (receives(sqe->opcode) && address != 0)
            fake_fill(address, sqe->fd, request->plan.data, (uint32_t)res);
    }
    more = more && is_multishot(sqe) && fake_cq_has_room() &&
           (receives(sqe->opcode) ? res > 0 : res >= 0);
    fake_cq_post(sqe->user_data, res, more ? flags | IORING_CQE_F_MORE : flags);
    for (unsigned copy = 0; !more && copy < request->plan.copies; copy++) {
        fake_cq_post(sqe->user_data, res, request->plan.flags);
        fake.stale_injected++;
    }
    return !more;
}

static void forget(unsigned index)
{
    requests[index] = requests[--request_count];
}

static void run_piece(unsigned index)
{
    struct request *request = &requests[index];
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

void fake_stray_cqe(uint64_t user_data, int32_t res, uint32_t flags)
{
    post_later(user_data, res, flags, 0);
    fake.stale_injected++;
    set_sq_flags();
}

static struct fake_plan random_plan(const struct io_uring_sqe *sqe)
{
    static const int32_t errors[] = {-ECONNRESET, -EPIPE, -ENOBUFS, -EBADF, -ENOMEM, 0};
    struct fake_plan plan = {0};
    uint32_t length = is_multishot(sqe) ? 5000 : sqe->len > 0 ? sqe->len : 1;
    plan.res = fake_draw(4) > 0 ? 1 + (int32_t)fake_draw(length) : errors[fake_draw(6)];
    plan.delay_ns = fake_draw(3) == 0 ? 0 : fake_draw(2) ? fake_draw(5000) : FAKE_NEVER;
    plan.at_once = fake_draw(6) == 0;
    plan.flags = fake_draw(2) ? IORING_CQE_F_SOCK_NONEMPTY : 0;
    if (is_multishot(sqe))
        plan.more = fake_draw(4);
    plan.copies = fake_draw(20) == 0;
    plan.cancel_answer = (int32_t[]){0, -ENOENT, -EALREADY}[fake_draw(3)];
    plan.cancel_res = fake_draw(2) ? -ECANCELED : 1 + (int32_t)fake_draw(length);
    /* Only what ends by itself may be missed by a cancel. */
    plan.cancel_too_late = plan.delay_ns != FAKE_NEVER && fake_draw(4) == 0;
    plan.target_first = fake_draw(2);
    plan.cancel_gap_ns = fake_draw(2) ? 0 : fake_draw(3000);
    return plan;
}

static struct fake_plan plan_for(const struct io_uring_sqe *sqe)
{
    if (sqe->opcode == IORING_OP_TIMEOUT) { /* it keeps its time, whatever is planned */
        const struct ut_timespec *ts = (const struct ut_timespec *)(uintptr_t)sqe->addr;
        uint64_t ns = (uint64_t)ts->tv_sec * 1000000000u + (uint64_t)ts->tv_nsec;
        return (struct fake_plan){.res = -ETIME, .delay_ns = ns};
    }
    if (plan_first < plan_count)
        return plans[plan_first++];
    return fake.random != 0 ? random_plan(sqe) : fake.fallback;
}

/* ---- submission ----------------------------------------------------------- */

/* The checks of Linux's prep functions for what we use. */
static bool is_acceptable(const struct io_uring_sqe *sqe)
{
    bool ok = sqe->personality == 0 && sqe->file_index == 0 && sqe->addr3 == 0 && sqe->pad == 0;
    switch (sqe->opcode) {
    case IORING_OP_ASYNC_CANCEL:
        return ok && sqe->flags == 0 && sqe->off == 0 && sqe->len == 0 && sqe->op_flags == 0;
    case IORING_OP_POLL_ADD:
        return ok && sqe->addr == 0 && sqe->off == 0 && (sqe->len & ~IORING_POLL_ADD_MULTI) == 0;
    case IORING_OP_ACCEPT:
        return ok && sqe->len == 0 && sqe->buf_group == 0 &&
               (sqe->ioprio & ~(IORING_ACCEPT_MULTISHOT | IORING_ACCEPT_DONTWAIT)) == 0 &&
               (sqe->op_flags & ~(uint32_t)(SOCK_CLOEXEC | SOCK_NONBLOCK)) == 0;
    case IORING_OP_TIMEOUT:
        return ok && sqe->addr != 0 && sqe->off == 0 && sqe->len == 1 && sqe->op_flags == 0;
    case IORING_OP_CONNECT:
        return ok && sqe->len == 0 && sqe->op_flags == 0 && sqe->buf_group == 0;
    case IORING_OP_RECV:
        if (is_multishot(sqe) && (!(sqe->flags & IOSQE_BUFFER_SELECT) || sqe->len != 0 ||
                                  sqe->op_flags & MSG_WAITALL))
            return false;
        return ok && sqe->off == 0 &&
               (sqe->ioprio & ~(IORING_RECVSEND_POLL_FIRST | IORING_RECV_MULTISHOT)) == 0;
    case IORING_OP_SEND:
    case IORING_OP_RECVMSG:
    case IORING_OP_SENDMSG:
        return ok && sqe->off == 0 && (sqe->ioprio & ~IORING_RECVSEND_POLL_FIRST) == 0;
    case IORING_OP_READ:
    case IORING_OP_WRITE:
        return ok && sqe->ioprio == 0;
    default:
        return false;
    }
}

static void cancel_request(uint64_t target, uint64_t user_data)
{
    unsigned index = 0;
    while (index < request_count &&
           (requests[index].stray || requests[index].sqe.user_data != target))
        index++;
    if (index == request_count) {
        fake_cq_post(user_data, -ENOENT, 0);
        return;
    }
    struct request request = requests[index];
    const struct fake_plan *plan = &request.plan;
    if (plan->cancel_too_late) {
        fake_cq_post(user_data, plan->cancel_answer, 0);
        return;
    }
    int32_t res = plan->cancel_res != 0 ? plan->cancel_res : -ECANCELED;
    if (plan->target_first) {
        forget(index);
        complete(&request, res, false);
        post_later(user_data, plan->cancel_answer, 0, plan->cancel_gap_ns);
    } else {
        fake_cq_post(user_data, plan->cancel_answer, 0);
        requests[index].plan.res = res;
        requests[index].plan.more = 0;
        requests[index].plan.cancel_too_late = true;
        requests[index].due_ns = fake.now_ns + plan->cancel_gap_ns;
    }
}

static void start_request(const struct io_uring_sqe *sqe)
{
    fake.submitted[sqe->opcode % UT_OPCODES]++;
    if (!is_acceptable(sqe)) {
        fake_fault("an sqe that Linux refuses");
        fake_cq_post(sqe->user_data, -EINVAL, 0);
        return;
    }
    if (sqe->opcode == IORING_OP_ASYNC_CANCEL) {
        cancel_request(sqe->addr, sqe->user_data);
        return;
    }
    for (unsigned i = 0; i < request_count; i++)
        if (!requests[i].stray && requests[i].sqe.user_data == sqe->user_data)
            fake_fault("two operations with one token");
    if (add_request(sqe, plan_for(sqe))->plan.at_once)
        run_piece(request_count - 1);
}

static unsigned take_sqes(unsigned wanted)
{
    const struct io_sqring_offsets *at = &fake_ring.params.sq_off;
    unsigned taken = 0;
    unsigned tail = __atomic_load_n(fake_at(at->tail), __ATOMIC_ACQUIRE);
    if (tail - *fake_at(at->head) > fake_ring.sq_entries)
        fake_fault("more sqes than the SQ has");
    while (taken < wanted && *fake_at(at->head) != tail) {
        if (fake.requests_max > 0 && request_count >= fake.requests_max)
            break;
        unsigned head = *fake_at(at->head);
        unsigned index = fake_at(at->array)[head & (fake_ring.sq_entries - 1)];
        if (index != (head & (fake_ring.sq_entries - 1)))
            fake_fault("the SQ's array is not the identity");
        struct io_uring_sqe sqe = fake_ring.sqes[index];
        memset(&fake_ring.sqes[index], 0xee, sizeof sqe); /* FEAT_SUBMIT_STABLE: read once */
        __atomic_store_n(fake_at(at->head), head + 1, __ATOMIC_RELEASE);
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
    return (struct fake_enter){errors[fake_draw(6)], fake_draw(3) ? 0 : 1 + fake_draw(3)};
}

static void run_work(void)
{
    unsigned index;
    for (unsigned piece = 0; piece < FAKE_WORK_MAX; piece++) {
        if ((index = next_piece()) == UINT32_MAX)
            break;
        run_piece(index);
    }
    fake_cq_flush();
}

/* Runs work and sleeps until there are `min_complete` cqes or `until_ns` is past. */
static int wait_events(unsigned min_complete, uint64_t until_ns, int error)
{
    for (;;) {
        run_work();
        if (fake_cq_ready() >= min_complete)
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

static uint64_t end_of_wait(const struct io_uring_getevents_arg *arg)
{
    const struct ut_timespec *ts = (const struct ut_timespec *)(uintptr_t)arg->ts;
    if (ts == NULL)
        return FAKE_NEVER;
    if (ts->tv_sec < 0 || ts->tv_nsec < 0 || ts->tv_nsec > 999999999)
        fake_fault("a timespec that Linux refuses");
    uint64_t ns = (uint64_t)ts->tv_sec * 1000000000u + (uint64_t)ts->tv_nsec;
    return ns > FAKE_NEVER - 1 - fake.now_ns ? FAKE_NEVER - 1 : fake.now_ns + ns;
}

int fake_enter_ring(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                    const void *arg, size_t arg_size)
{
    unsigned known = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG | IORING_ENTER_NO_IOWAIT;
    const struct io_uring_getevents_arg *wait = arg;
    fake.enters++;
    if (!fake_ring.open)
        return -EBADF;
    if (flags & ~known || arg_size != sizeof *wait || wait->sigmask != 0 || ring_fd < 0)
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
        int ended = wait_events(min_complete, end_of_wait(wait), waits ? script.error : 0);
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
            sqe->flags & IOSQE_BUFFER_SELECT ? fake_take_buffer(sqe->buf_group) : NULL;
        uint64_t address = buffer != NULL ? buffer->addr : sqe->addr;
        if (receives(sqe->opcode) && address != 0) {
            fake_fill(address, sqe->fd, NULL, sqe->len);
            fake.late_writes++;
        }
    }
    late_count = 0;
}
