/*
 * What becomes of a request
 *
 * As in Linux 6.18 (io_uring/io_uring.c, poll.c, net.c, rw.c, cancel.c, timeout.c):
 *
 *     submit -try-> ended
 *              | -EAGAIN: its own poll is armed
 *              +-> ARMED -wake-up-> WOKEN -deferred work-> try -> ended, or armed again
 *              |                      (a poll, or a multishot: cqes, and it stays armed)
 *              +-> QUEUED (its poll was ready at once) -deferred work-> try
 *              +-> WORKER, where its poll cannot be armed, or for the 128th time
 *
 * - *A try that must not wait* (MSG_DONTWAIT, RWF_NOWAIT, IORING_ACCEPT_DONTWAIT) ends with its
 *   -EAGAIN; the others are armed. io_arm_poll_handler asks for POLLIN or POLLOUT, with POLLPRI;
 *   POLLERR, POLLHUP, POLLNVAL and POLLRDHUP are always told (IO_POLL_UNMASK).
 * - *A wake-up* whose key has none of these bits is no business of the request's (io_poll_wake).
 *   The first one queues deferred work with the key as result, and takes a one-shot from the
 *   file's queue. When there were more, or no key, the file is asked again
 *   (io_poll_check_events). So a change that has passed by the time the work is run is told all
 *   the same, but to a multishot only if it was alone. Where there is nothing a multishot stays as
 *   it is, and a one-shot begins anew (IOU_POLL_REISSUE). Who came last is told first; of accepts,
 *   which wait exclusively, one, and the first that came.
 * - *One-shot polls* that are ready at once end while they are submitted; multishot ones are
 *   then told by deferred work, and stay armed (EPOLLET).
 * - *A multishot receive* is tried until there is nothing, or its socket says that nothing is
 *   left (msg_inq == 0). Tried at submission, it is then armed, which finds what else there is
 *   (an end of file); tried because of a wake-up, it stays as it is, and waits for the next. So
 *   one that polls first never learns of an end that was there behind data. Where both came as
 *   wake-ups before the work was run, it is tried once more (6.18.x; not in earlier releases).
 * - *A buffer* is chosen before the try, and taken if something came. None: -ENOBUFS, also where
 *   there is nothing to receive; with POLL_FIRST not before the poll.
 * - *A multishot ends* with a cqe that does not fit into the CQ.
 * - *A cancel* answers while it is submitted. It finds what is armed or woken, which ends with
 *   -ECANCELED by deferred work, unread what had woken it; a timeout likewise. What is queued to
 *   be tried, or ended, it does not find, nor a timeout that has fired and is still to be told:
 *   -ENOENT. In a worker: -EALREADY, and it is interrupted; but what waits for a worker is taken
 *   out, and ends with -ECANCELED. A ring's thread has as many workers as were registered.
 * - *Completions* of one submission, or of one run of deferred work, are posted together at its
 *   end (io_submit_flush_completions), or before a multishot's cqe with F_MORE, which is posted
 *   at once.
 *
 * Choices. Deferred work is run in any order, and comes as late as is chosen: a wake-up is some
 * processor's business, and may have been held up there. Completions of one batch come in any
 * order. A cancel may find that its target is just being tried, or has just ended; its target
 * may be told of first. An attempt may be refused (somebody else took it, the kernel was short
 * of memory), but only where the program tries again by itself: one that stays with the kernel
 * would never be woken for what lies there, and Linux does not lose that. What has refused ends
 * later, and wakes who waits for that.
 *
 * What is left out: links, drains, fixed files and buffers, that a worker sends on and on (it tries
 * when its file changes, and what has gone then is a result), completions of the network's own
 * threads, task work of SQPOLL.
 */
#define _GNU_SOURCE
#include "sim_inside.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define ARMS_MAX 128  /* APOLL_MAX_RETRY */
#define LOOPS_MAX 32  /* MULTISHOT_MAX_RETRY */
#define STALE_NS 1000000 /* until a stale cqe comes */
#define VECTORS_MAX 1024 /* UIO_MAXIOV */

/* ---- the list ------------------------------------------------------------------------ */

static struct sim_request *add_request(struct sim_ring *ring, const struct io_uring_sqe *sqe)
{
    struct sim_request *request = calloc(1, sizeof *request);
    if (request == NULL)
        abort();
    request->ring = ring;
    request->sqe = *sqe;
    request->order = sim.order++;
    request->due_ns = SIM_NEVER;
    request->previous = ring->last;
    if (ring->last != NULL)
        ring->last->next = request;
    else
        ring->first = request;
    ring->last = request;
    ring->count++;
    return request;
}

static bool is_exclusive(const struct sim_request *request)
{
    return request->sqe.opcode == IORING_OP_ACCEPT;
}

/* Its file's queue, as the kernel's: who came last is first, but those that wait exclusively are
 * behind all others, and of them the first is first. */
static void enter_queue(struct sim_request *request)
{
    struct sim_file *file = request->file;
    bool is_last = is_exclusive(request);
    request->ahead = is_last ? file->last_waiter : NULL;
    request->behind = is_last ? NULL : file->waiters;
    *(request->ahead != NULL ? &request->ahead->behind : &file->waiters) = request;
    *(request->behind != NULL ? &request->behind->ahead : &file->last_waiter) = request;
    request->is_queued = true;
}

static void leave_queue(struct sim_request *request)
{
    struct sim_file *file = request->file;
    if (!request->is_queued)
        return;
    *(request->ahead != NULL ? &request->ahead->behind : &file->waiters) = request->behind;
    *(request->behind != NULL ? &request->behind->ahead : &file->last_waiter) = request->ahead;
    request->is_queued = false;
}

static void free_request(struct sim_request *request)
{
    struct sim_ring *ring = request->ring;
    ring->strays -= request->is_stray;
    *(request->previous != NULL ? &request->previous->next : &ring->first) = request->next;
    *(request->next != NULL ? &request->next->previous : &ring->last) = request->previous;
    ring->count--;
    if (request->file != NULL) {
        leave_queue(request);
        sim_drop(request->file);
    }
    free(request->message);
    free(request);
}

static struct sim_request *find_request(struct sim_ring *ring, uint64_t user_data)
{
    for (struct sim_request *request = ring->first; request != NULL; request = request->next)
        if (request->sqe.user_data == user_data && request->stage != SIM_RUNNING &&
            !request->is_stray)
            return request;
    return NULL;
}

/* ---- cqes ---------------------------------------------------------------------------- */

static void post(struct sim_ring *ring, uint64_t user_data, int32_t res, uint32_t flags)
{
    sim.books.cqes++;
    sim_note(SIM_NOTE_POSTED, -1, user_data, res, flags);
    kring_cq_post(&ring->k, user_data, res, flags);
}

/* A cqe that is posted when the batch is. */
static void add_cqe(struct sim_ring *ring, uint64_t user_data, int32_t res, uint32_t flags)
{
    if (ring->batch_count == SIM_BATCH_MAX)
        sim_flush_batch(ring);
    ring->batch[ring->batch_count++] = (struct sim_cqe){.user_data = user_data, .res = res,
                                                     .flags = flags};
}

/* A broken kernel tells the same once more: at once, or when the slot may be another's. (Not
 * later of what an operation goes on after: polls, pauses, refusals. Its next request has the
 * same token, and nobody could tell the two apart.) */
static void tell_again(struct sim_ring *ring, const struct sim_cqe *cqe)
{
    /* (Of a buffer there is only one.) */
    uint32_t flags = cqe->flags & (IORING_CQE_F_MORE | IORING_CQE_F_SOCK_NONEMPTY);
    unsigned chosen = sim_choose(SIM_STALE, 8);
    if (chosen == 1) {
        post(ring, cqe->user_data, cqe->res, flags);
    } else if (chosen == 2 && cqe->is_final) {
        struct io_uring_sqe sqe = {.user_data = cqe->user_data};
        struct sim_request *stray = add_request(ring, &sqe);
        stray->is_stray = true;
        stray->res = cqe->res;
        stray->flags = flags;
        stray->stage = SIM_ENDED;
        stray->due_ns = sim.now_ns + STALE_NS;
        ring->strays++;
    } else {
        return;
    }
    sim.books.stale++;
}

void sim_flush_batch(struct sim_ring *ring)
{
    for (unsigned first = 0; first < ring->batch_count; first++) {
        unsigned left = ring->batch_count - first;
        unsigned chosen = first + sim_choose(SIM_ORDER, left < 4 ? left : 4);
        struct sim_cqe cqe = ring->batch[chosen];
        memmove(&ring->batch[first + 1], &ring->batch[first], (chosen - first) * sizeof cqe);
        post(ring, cqe.user_data, cqe.res, cqe.flags);
        if (!cqe.is_stray)
            tell_again(ring, &cqe);
    }
    ring->batch_count = 0;
}

/* The request's last cqe. */
static void end(struct sim_request *request, int32_t res, uint32_t flags)
{
    struct sim_ring *ring = request->ring;
    if (res == -EFAULT)
        sim_fault("a request's memory is not there");
    add_cqe(ring, request->sqe.user_data, res, flags);
    struct sim_cqe *cqe = &ring->batch[ring->batch_count - 1];
    cqe->is_stray = request->is_stray;
    cqe->is_final = res != -EAGAIN && !kring_is_wait(&request->sqe);
    free_request(request);
}

/* One of several; false if it must be the last: there is no room for it now. */
static bool post_more(struct sim_request *request, int32_t res, uint32_t flags)
{
    struct sim_ring *ring = request->ring;
    if (ring->k.cq_entries - kring_cq_ready(&ring->k) <= ring->batch_count ||
        !kring_cq_has_room(&ring->k) || sim_choose(SIM_END, 4) == 1)
        return false;
    sim_flush_batch(ring);
    post(ring, request->sqe.user_data, res, flags | IORING_CQE_F_MORE);
    return true;
}

/* ---- deferred work --------------------------------------------------------------------- */

/* A moment, a tick of the scheduler's, longer than our pauses begin; and for what comes from
 * outside a busy processor, a slow network. */
static const uint64_t delays_ns[] = {0, 1000, 100000, 3000000, 40000000, 700000000};
#define DELAYS (sizeof delays_ns / sizeof *delays_ns)
#define DELAYS_INSIDE 4

static void queue_work_after(struct sim_request *request, enum sim_stage stage, uint64_t delay_ns)
{
    request->stage = stage;
    request->due_ns = sim.now_ns + delay_ns;
    request->order = sim.order++;
    sim_signal();
}

/* Deferred work because of what has come from outside. */
static void queue_work(struct sim_request *request, enum sim_stage stage)
{
    queue_work_after(request, stage, delays_ns[sim_choose(SIM_DELAY, DELAYS)]);
}

/* ... and because of what the program has asked for: that takes no time to speak of. */
static void queue_own_work(struct sim_request *request, enum sim_stage stage)
{
    queue_work_after(request, stage, delays_ns[sim_choose(SIM_DELAY, DELAYS_INSIDE)]);
}

/* Its last cqe comes as deferred work. */
static void end_later(struct sim_request *request, int32_t res, uint32_t flags)
{
    request->res = res;
    request->flags = flags;
    leave_queue(request);
    queue_own_work(request, SIM_ENDED);
}

uint64_t sim_next_due(const struct sim_ring *ring)
{
    uint64_t due_ns = SIM_NEVER;
    for (const struct sim_request *request = ring->first; request != NULL; request = request->next)
        if (request->due_ns < due_ns)
            due_ns = request->due_ns;
    return due_ns;
}

/* ---- what a request asks for -------------------------------------------------------------- */

static bool must_not_wait(const struct io_uring_sqe *sqe)
{
    switch (sqe->opcode) {
    case IORING_OP_ACCEPT:
        return sqe->ioprio & IORING_ACCEPT_DONTWAIT;
    case IORING_OP_READ:
    case IORING_OP_WRITE:
        return sqe->op_flags & UT_RWF_NOWAIT;
    case IORING_OP_RECV:
    case IORING_OP_SEND:
    case IORING_OP_RECVMSG:
    case IORING_OP_SENDMSG:
        return sqe->op_flags & MSG_DONTWAIT;
    default:
        return false;
    }
}

static uint32_t poll_events(const struct sim_request *request)
{
    const struct io_uring_sqe *sqe = &request->sqe;
    if (sqe->opcode == IORING_OP_POLL_ADD)
        return ut_poll_events(sqe->op_flags) | KRING_UNMASKED;
    uint32_t events = POLLPRI | KRING_UNMASKED | (kring_takes_input(sqe) ? POLLIN : POLLOUT);
    if (sqe->opcode == IORING_OP_RECVMSG && sqe->op_flags & MSG_ERRQUEUE)
        events &= ~(uint32_t)POLLIN; /* REQ_F_CLEAR_POLLIN */
    return events;
}

/* The message of a send or receive, read once: header, vectors and, of a send, the name. */
static int read_message(struct sim_request *request)
{
    const struct io_uring_sqe *sqe = &request->sqe;
    struct msghdr given = {0};
    struct iovec one = {.iov_base = (void *)(uintptr_t)sqe->addr, .iov_len = sqe->len};
    if (sqe->opcode == IORING_OP_SENDMSG || sqe->opcode == IORING_OP_RECVMSG) {
        given = *(const struct msghdr *)(uintptr_t)sqe->addr;
        if (given.msg_iovlen > VECTORS_MAX)
            return -EMSGSIZE;
    } else {
        given.msg_iov = &one;
        given.msg_iovlen = 1;
    }
    size_t vectors_size = given.msg_iovlen * sizeof one;
    size_t name_size = sqe->opcode == IORING_OP_SENDMSG && given.msg_name != NULL
                           ? given.msg_namelen : 0;
    struct msghdr *message = request->message =
        malloc(sizeof *message + vectors_size + name_size);
    if (message == NULL)
        abort();
    *message = given;
    message->msg_iov = (struct iovec *)(message + 1);
    memcpy(message->msg_iov, given.msg_iov, vectors_size);
    if (name_size > 0) {
        message->msg_name = (char *)message->msg_iov + vectors_size;
        memcpy(message->msg_name, given.msg_name, name_size);
    }
    return 0;
}

/* ---- tries --------------------------------------------------------------------------------- */

/* What a try came to: a result, or -EAGAIN. */
struct found {
    int32_t res;
    uint32_t flags;
    int inq; /* what is left; -1: not known */
};

static const struct found nothing = {.res = -EAGAIN, .inq = -1};

static struct found try_receive(struct sim_request *request)
{
    struct io_uring_sqe *sqe = &request->sqe;
    struct sim_ring *ring = request->ring;
    struct found found = {.inq = -1};
    bool selects = sqe->flags & IOSQE_BUFFER_SELECT;
    struct msghdr message = *request->message;
    struct iovec vector;
    const struct io_uring_buf *buffer = NULL;
    if (selects) {
        buffer = kring_peek_buffer(&ring->k, sqe->buf_group);
        if (buffer == NULL || sim_choose(SIM_BUFFERS, 8) == 1)
            return (struct found){.res = -ENOBUFS, .inq = -1};
        vector.iov_base = (void *)(uintptr_t)buffer->addr;
        vector.iov_len = sqe->len != 0 && sqe->len < buffer->len ? sqe->len : buffer->len;
        message.msg_iov = &vector;
        message.msg_iovlen = 1;
    }
    int flags = (int)sqe->op_flags;
    if (sqe->opcode == IORING_OP_READ)
        found.res = sim_file_read(request->file, message.msg_iov->iov_base,
                                  message.msg_iov->iov_len, must_not_wait(sqe));
    else
        found.res = sim_file_receive(request->file, &message, flags, &found.inq);
    if (sqe->opcode == IORING_OP_RECVMSG && found.res >= 0) {
        struct msghdr *user = (struct msghdr *)(uintptr_t)sqe->addr;
        user->msg_namelen = message.msg_namelen;
        user->msg_controllen = message.msg_controllen;
        user->msg_flags = message.msg_flags;
    }
    if (found.inq > 0)
        found.flags |= IORING_CQE_F_SOCK_NONEMPTY;
    bool refused = found.res == -EAGAIN && must_not_wait(sqe);
    if (buffer != NULL &&
        (found.res > 0 || (refused && sim.switches.refusal_takes_buffer))) {
        kring_take_buffer(&ring->k, sqe->buf_group);
        found.flags |= IORING_CQE_F_BUFFER | (uint32_t)buffer->bid << IORING_CQE_BUFFER_SHIFT;
    }
    return found;
}

static struct found try_connect(struct sim_request *request)
{
    int res = sim_file_connect(request->file, (struct sockaddr *)&request->name,
                               (socklen_t)request->sqe.off);
    if (res == -EINPROGRESS)
        request->in_progress = true;
    if (res == -EAGAIN || res == -EINPROGRESS)
        return nothing;
    if (request->in_progress && (res == -EISCONN || res == -EBADFD))
        res = sim_file_error(request->file);
    return (struct found){.res = res, .inq = -1};
}

/* A UNIX datagram that its receiver refuses has been copied already: the next try is of nothing
 * (as of 6.18). */
static struct found try_send(struct sim_request *request)
{
    int res = sim_file_send(request->file, request->message, (int)request->sqe.op_flags);
    if (res == -EAGAIN && !must_not_wait(&request->sqe) && sim_file_was_copied(request->file))
        request->message->msg_iovlen = 0;
    return (struct found){.res = res, .inq = -1};
}

static struct found try_once(struct sim_request *request)
{
    struct io_uring_sqe *sqe = &request->sqe;
    bool polls_first = sqe->opcode != IORING_OP_ACCEPT && sqe->opcode != IORING_OP_CONNECT &&
                       sqe->ioprio & IORING_RECVSEND_POLL_FIRST;
    if (polls_first && !request->polled)
        return nothing;
    switch (must_not_wait(sqe) ? sim_choose(SIM_REFUSE, 4) : 0) {
    case 1:
        sim_file_echo(request->file);
        return nothing;
    case 2:
        sim_file_tell(request->file);
        return nothing;
    default:
        break;
    }
    switch (sqe->opcode) {
    case IORING_OP_RECV:
    case IORING_OP_RECVMSG:
    case IORING_OP_READ:
        return try_receive(request);
    case IORING_OP_SEND:
    case IORING_OP_SENDMSG:
        return try_send(request);
    case IORING_OP_WRITE:
        return (struct found){
            .res = sim_file_write(request->file, (const void *)(uintptr_t)sqe->addr, sqe->len,
                                  must_not_wait(sqe)),
            .inq = -1};
    case IORING_OP_ACCEPT:
        return (struct found){
            .res = sim_file_accept(request->file, (struct sockaddr *)(uintptr_t)sqe->addr,
                                   (socklen_t *)(uintptr_t)sqe->off, (int)sqe->op_flags),
            .inq = -1};
    case IORING_OP_CONNECT:
        return try_connect(request);
    default:
        return (struct found){.res = -EINVAL, .inq = -1};
    }
}

/* ---- polls, and what is armed ----------------------------------------------------------------- */

/* Its thread begins with it: it waits there, until its file changes. */
static void enter_worker(struct sim_request *request)
{
    request->has_worker = true;
    request->ring->workers++;
    enter_queue(request);
    sim_file_await(request->file, request->events);
}

/* It is over there; the next that waits for a worker has this one. */
static void leave_worker(struct sim_request *request)
{
    struct sim_ring *ring = request->ring;
    if (!request->has_worker)
        return;
    request->has_worker = false;
    ring->workers--;
    for (struct sim_request *next = ring->first; next != NULL; next = next->next)
        if (next->stage == SIM_WORKER && !next->has_worker && next != request) {
            enter_worker(next);
            queue_own_work(next, SIM_WORKER); /* it is tried first */
            return;
        }
}

static void hand_over(struct sim_request *request)
{
    leave_queue(request);
    request->stage = SIM_WORKER;
    request->due_ns = SIM_NEVER;
    request->events = poll_events(request);
    sim.books.handed_over++;
    sim_note(SIM_NOTE_HANDED, request->sqe.fd, request->sqe.user_data, request->sqe.opcode, 0);
    /* What looks at O_NONBLOCK finds it there. */
    uint8_t opcode = request->sqe.opcode;
    bool looks = opcode == IORING_OP_SENDMSG || opcode == IORING_OP_RECVMSG ||
                 opcode == IORING_OP_ACCEPT;
    if (looks && sim_file_is_nonblocking(request->file)) {
        end_later(request, -EAGAIN, 0);
    } else if (request->ring->workers < request->ring->workers_max) {
        enter_worker(request);
        if (opcode == IORING_OP_ACCEPT)
            queue_own_work(request, SIM_WORKER); /* the first that waits in its call */
    }
}

/* Has it wait for a wake-up of its file. */
static void await(struct sim_request *request, uint32_t events)
{
    request->stage = SIM_ARMED;
    request->due_ns = SIM_NEVER;
    request->events = events;
    request->key = 0;
    request->wakes = 0;
    leave_queue(request);
    enter_queue(request);
    sim_note(SIM_NOTE_ARMED, request->sqe.fd, request->sqe.user_data, events, request->arms);
    sim_file_await(request->file, events);
}

/* Whether a wake-up with this key is any business of its: io_poll_wake. */
static bool is_told(const struct sim_request *request, uint32_t key)
{
    return key == 0 || key & request->events & ~(uint32_t)POLLPRI; /* IO_ASYNC_POLL_COMMON */
}

static void wake_request(struct sim_request *request, uint32_t key)
{
    sim.books.wakes++;
    if (request->wakes < 2) /* that there were more makes no difference */
        sim_note(SIM_NOTE_WOKEN, request->sqe.fd, request->sqe.user_data, key, request->wakes);
    if (request->wakes++ > 0)
        return;
    request->key = key & request->events;
    if (key != 0 && !kring_is_multishot(&request->sqe))
        leave_queue(request);
    queue_work(request, SIM_WOKEN);
}

void sim_wake(struct sim_file *file, uint32_t key)
{
    struct sim_request *next;
    bool is_enough = false; /* of exclusive ones one is woken */
    for (struct sim_request *request = file->waiters; request != NULL && !is_enough;
         request = next) {
        next = request->behind;
        if (request->stage == SIM_WORKER) {
            if (key == 0 || key & request->events)
                queue_work(request, SIM_WORKER);
        } else if (is_told(request, key)) {
            is_enough = is_exclusive(request);
            wake_request(request, key);
        }
    }
}

/* io_arm_poll_handler: after a try that found nothing. */
static void arm(struct sim_request *request)
{
    uint32_t events = poll_events(request);
    if (!sim_file_can_poll(request->file) || ++request->arms >= ARMS_MAX) {
        hand_over(request);
        return;
    }
    request->polled = true;
    uint8_t opcode = request->sqe.opcode;
    if (!kring_is_multishot(&request->sqe) && opcode != IORING_OP_CONNECT &&
        !(opcode == IORING_OP_ACCEPT && sim.switches.accept_waits))
        sim.books.left_waiting++;
    await(request, events);
    request->stage = SIM_RUNNING; /* a change of before is in what it finds now */
    uint32_t found = sim_file_poll(request->file, events) & events;
    if (request->wakes > 0) {
        found = found != 0 ? found : request->key;
        request->wakes = 0;
    }
    request->due_ns = SIM_NEVER;
    if (found == 0) {
        request->stage = SIM_ARMED;
    } else if (kring_is_multishot(&request->sqe)) {
        request->stage = SIM_ARMED; /* not one-shot: it stays, and work is queued */
        wake_request(request, found);
    } else {
        leave_queue(request);
        queue_own_work(request, SIM_QUEUED);
    }
}

/* A poll that is submitted. */
static void start_poll(struct sim_request *request)
{
    uint32_t events = poll_events(request);
    if (sim_file_can_poll(request->file))
        await(request, events);
    uint32_t found = sim_file_poll(request->file, events) & events;
    if (!kring_is_multishot(&request->sqe) && found != 0)
        end(request, (int32_t)found, 0);
    else if (found != 0)
        wake_request(request, found);
    else if (!sim_file_can_poll(request->file))
        end(request, -EINVAL, 0);
}

/* ---- multishots -------------------------------------------------------------------------------- */

/* How a round of a multishot went. */
enum round { ROUND_ENDED, ROUND_WAITS, ROUND_AGAIN };

static enum round receive_round(struct sim_request *request)
{
    for (;;) {
        struct found found = try_once(request);
        if (found.res == -EAGAIN)
            return ROUND_WAITS;
        if (found.res <= 0 || !post_more(request, found.res, found.flags)) {
            end(request, found.res, found.flags);
            return ROUND_ENDED;
        }
        if (found.inq == 0)
            return ROUND_WAITS;
        if (request->loops++ >= LOOPS_MAX) {
            request->loops = 0;
            return ROUND_AGAIN;
        }
    }
}

static enum round accept_round(struct sim_request *request)
{
    for (;;) {
        struct found found = try_once(request);
        if (found.res == -EAGAIN)
            return ROUND_WAITS;
        if (found.res < 0 || !post_more(request, found.res, found.flags)) {
            end(request, found.res, found.flags);
            return ROUND_ENDED;
        }
    }
}

static enum round multishot_round(struct sim_request *request)
{
    return request->sqe.opcode == IORING_OP_ACCEPT ? accept_round(request)
                                                   : receive_round(request);
}

/* ---- issue --------------------------------------------------------------------------------------- */

/* Tries a request, at its submission or after its poll: io_queue_sqe. */
static void issue(struct sim_request *request)
{
    leave_queue(request);
    request->stage = SIM_RUNNING;
    request->due_ns = SIM_NEVER;
    if (kring_is_multishot(&request->sqe)) {
        if (multishot_round(request) != ROUND_ENDED)
            arm(request);
        return;
    }
    struct found found = try_once(request);
    sim_note(SIM_NOTE_TRIED, request->sqe.fd, request->sqe.user_data, found.res, 0);
    if (found.res != -EAGAIN || must_not_wait(&request->sqe))
        end(request, found.res, found.flags);
    else
        arm(request);
}

/* A woken request's deferred work: io_poll_check_events. */
static void check_events(struct sim_request *request)
{
    bool is_poll = request->sqe.opcode == IORING_OP_POLL_ADD;
    bool is_multishot = kring_is_multishot(&request->sqe);
    if (request->canceled) {
        end(request, -ECANCELED, 0);
        return;
    }
    uint32_t found = request->wakes == 1 ? request->key : 0;
    unsigned wakes = request->wakes;
    request->wakes = 0;
    request->stage = SIM_ARMED;
    request->due_ns = SIM_NEVER;
    if (found == 0)
        found = sim_file_poll(request->file, request->events) & request->events;
    if (found == 0) { /* in vain */
        if (!is_multishot && is_poll)
            start_poll(request);
        else if (!is_multishot)
            issue(request);
        return;
    }
    if (!is_multishot) {
        if (is_poll)
            end(request, (int32_t)found, 0);
        else
            issue(request);
    } else if (is_poll) {
        if (!post_more(request, (int32_t)found, 0))
            end(request, (int32_t)found, 0);
    } else {
        enum round round = multishot_round(request);
        bool ended_too = found & (POLLHUP | POLLRDHUP) && wakes > 1 &&
                         !(sim.switches.reset_is_missed && found & POLLERR);
        if (round == ROUND_AGAIN) {
            wake_request(request, 0);
        } else if (round == ROUND_WAITS && ended_too && !sim.switches.end_is_missed) {
            request->wakes++;
            check_events(request);
        }
    }
}

/* A worker's file has changed. Who waits in accept(2) is told that a UNIX listener is shut down;
 * who does not finds nobody there. */
static void work(struct sim_request *request)
{
    struct found found = try_once(request);
    request->due_ns = SIM_NEVER;
    if (found.res == -EAGAIN && request->sqe.opcode == IORING_OP_ACCEPT &&
        sim_file_poll(request->file, POLLRDHUP) & POLLRDHUP)
        found.res = -EINVAL;
    if (found.res == -EAGAIN)
        return;
    leave_worker(request);
    end(request, found.res, found.flags);
}

/* The piece of deferred work that is next; NULL: none is due. */
static struct sim_request *next_piece(const struct sim_ring *ring)
{
    struct sim_request *due[4];
    unsigned count = 0;
    for (struct sim_request *request = ring->first; request != NULL; request = request->next) {
        if (request->due_ns > sim.now_ns)
            continue;
        unsigned at = count < 4 ? count++ : 4;
        while (at > 0 && (due[at - 1]->due_ns > request->due_ns ||
                          (due[at - 1]->due_ns == request->due_ns &&
                           due[at - 1]->order > request->order))) {
            if (at < 4)
                due[at] = due[at - 1];
            at--;
        }
        if (at < 4)
            due[at] = request;
    }
    return count == 0 ? NULL : due[sim_choose(SIM_ORDER, count)];
}

unsigned sim_run_work(struct sim_ring *ring, unsigned pieces)
{
    unsigned done = 0;
    for (; done < pieces; done++) {
        struct sim_request *request = next_piece(ring);
        if (request == NULL)
            break;
        switch (request->stage) {
        case SIM_WOKEN:
            check_events(request);
            break;
        case SIM_QUEUED:
            if (request->canceled)
                end(request, -ECANCELED, 0);
            else
                issue(request);
            break;
        case SIM_TIMER:
            end(request, -ETIME, 0);
            break;
        case SIM_ENDED:
            /* (A stray of a token that is in use again could not be told from its own.) */
            if (request->is_stray && find_request(ring, request->sqe.user_data) != NULL)
                free_request(request);
            else
                end(request, request->res, request->flags);
            break;
        case SIM_WORKER:
            work(request);
            break;
        default:
            abort();
        }
    }
    sim_flush_batch(ring);
    return done;
}

/* ---- cancels -------------------------------------------------------------------------------------- */

/* The target is being tried just now, on another processor: whether that ends it. */
static bool ends_just_now(struct sim_request *target)
{
    if (target->sqe.opcode == IORING_OP_POLL_ADD || kring_is_multishot(&target->sqe))
        return false;
    enum sim_stage stage = target->stage;
    target->stage = SIM_RUNNING;
    struct found found = try_once(target);
    if (found.res == -EAGAIN) {
        target->stage = stage;
        return false;
    }
    end_later(target, found.res, found.flags);
    return true;
}

static void cancel(struct sim_ring *ring, const struct io_uring_sqe *sqe)
{
    struct sim_request *target = find_request(ring, sqe->addr);
    bool is_receive = target != NULL && target->sqe.opcode == IORING_OP_RECV;
    if (target != NULL && target->canceled && target->stage == SIM_WOKEN) {
        add_cqe(ring, sqe->user_data, 0, 0); /* it can still be found */
        return;
    }
    if (target == NULL || target->stage == SIM_QUEUED ||
        target->stage == SIM_ENDED ||
        (sim.switches.cancel_misses_multishot && is_receive && kring_is_multishot(&target->sqe))) {
        add_cqe(ring, sqe->user_data, -ENOENT, 0);
        return;
    }
    if (target->stage == SIM_WORKER) {
        bool has_begun = target->has_worker && sim_choose(SIM_CANCEL, 2) == 0;
        leave_worker(target);
        end_later(target, has_begun ? -EINTR : -ECANCELED, 0);
        add_cqe(ring, sqe->user_data, has_begun ? -EALREADY : 0, 0);
        return;
    }
    if (target->stage == SIM_TIMER && target->due_ns <= sim.now_ns) {
        /* It has fired; or its interrupt is not quite over. */
        add_cqe(ring, sqe->user_data, sim_choose(SIM_CANCEL, 2) == 0 ? -ENOENT : -EALREADY, 0);
        return;
    }
    if (target->stage == SIM_TIMER) {
        end_later(target, -ECANCELED, 0);
        add_cqe(ring, sqe->user_data, 0, 0);
        return;
    }
    switch (sim_choose(SIM_CANCEL, 5)) {
    case 1: /* it has just ended */
        if (ends_just_now(target)) {
            add_cqe(ring, sqe->user_data, -ENOENT, 0);
            return;
        }
        break;
    case 2: /* it is being tried, and ends; or it is interrupted */
        if (!ends_just_now(target))
            end_later(target, -ECANCELED, 0);
        add_cqe(ring, sqe->user_data, -EALREADY, 0);
        return;
    case 3: /* it is told of first */
        end(target, -ECANCELED, 0);
        add_cqe(ring, sqe->user_data, 0, 0);
        return;
    case 4: /* a wake-up has just come, and was dealt with before */
        if (target->stage == SIM_WOKEN && kring_is_multishot(&target->sqe)) {
            uint64_t token = target->sqe.user_data;
            check_events(target);
            if (find_request(ring, token) == NULL) {
                add_cqe(ring, sqe->user_data, -ENOENT, 0);
                return;
            }
        }
        break;
    default:
        break;
    }
    target->canceled = true;
    target->wakes++; /* a wake-up has nothing to queue any more */
    if (target->stage == SIM_ARMED || target->due_ns > sim.now_ns)
        queue_own_work(target, SIM_WOKEN); /* sooner than a wake-up that has not come yet */
    add_cqe(ring, sqe->user_data, 0, 0);
}

/* ---- submission -------------------------------------------------------------------------------------- */

/* What this kernel does not know: an errno, or 0. */
static int unknown(const struct io_uring_sqe *sqe)
{
    const struct sim_switches *switches = &sim.switches;
    if (sqe->opcode == IORING_OP_ACCEPT && switches->accept_waits &&
        sqe->ioprio & IORING_ACCEPT_DONTWAIT)
        return -EINVAL;
    if (sqe->opcode == IORING_OP_RECV && switches->no_multishot_receive &&
        sqe->ioprio & IORING_RECV_MULTISHOT)
        return -EINVAL;
    return 0;
}

void sim_request_start(struct sim_ring *ring, const struct io_uring_sqe *sqe)
{
    sim.books.sqes++;
    int64_t said = sqe->ioprio;
    if (sqe->opcode == IORING_OP_TIMEOUT)
        said = (int64_t)(kring_timespec(&ring->k, sqe->addr) / 1000);
    sim_note(SIM_NOTE_TAKEN, sqe->fd, sqe->user_data, sqe->opcode, said);
    int error = unknown(sqe);
    if (error == 0 && !kring_is_acceptable(sqe)) {
        sim_fault("an sqe that Linux refuses");
        error = -EINVAL;
    }
    if (error < 0) {
        add_cqe(ring, sqe->user_data, error, 0);
        return;
    }
    if (sqe->opcode == IORING_OP_ASYNC_CANCEL) {
        cancel(ring, sqe);
        return;
    }
    if (find_request(ring, sqe->user_data) != NULL)
        sim_fault("two operations with one token");
    struct sim_request *request = add_request(ring, sqe);
    if (sqe->opcode == IORING_OP_TIMEOUT) {
        uint64_t ns = kring_timespec(&ring->k, sqe->addr);
        request->stage = SIM_TIMER;
        request->due_ns = sim.now_ns + ns + delays_ns[sim_choose(SIM_DELAY, DELAYS_INSIDE)];
        return;
    }
    struct sim_file *file = sim_file_of(sqe->fd);
    if (file == NULL) {
        end(request, -EBADF, 0);
        return;
    }
    request->file = sim_hold(file);
    switch (sqe->opcode) {
    case IORING_OP_POLL_ADD:
        start_poll(request);
        return;
    case IORING_OP_RECV:
    case IORING_OP_SEND:
    case IORING_OP_RECVMSG:
    case IORING_OP_SENDMSG:
    case IORING_OP_READ:
        error = read_message(request);
        break;
    case IORING_OP_CONNECT:
        if (sqe->off > sizeof request->name)
            error = -EINVAL;
        else
            memcpy(&request->name, (const void *)(uintptr_t)sqe->addr, sqe->off);
        break;
    default:
        break;
    }
    if (error < 0)
        end(request, error, 0);
    else
        issue(request);
}

void sim_requests_forget(struct sim_ring *ring)
{
    while (ring->first != NULL) {
        sim.books.given_up += !kring_is_wait(&ring->first->sqe) && !ring->first->is_stray;
        free_request(ring->first);
    }
}
