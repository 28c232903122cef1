/*
 * What the simulator claims of io_uring, shown on the kernel of this machine.
 *
 * Each claim is a script: it makes requests, lets things happen, and says what came of it. The
 * simulator, without choices, must say just what is written here; and so must Linux, where it
 * can be asked. (What a claim needs of a newer Linux is said with it, and asked first.)
 *
 * What sockets do is not claimed here: the files are the machine's on both sides.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "../bufring.h"
#include "check.h"
#include "sim_inside.h"

#define MS 1000000LL /* ns */
#define SQ 32
#define CQ 64
#define BUFFERS 4
#define BUFFER_SIZE 4096u
#define VERSION(major, minor, patch) ((major) * 1000000 + (minor) * 1000 + (patch))
#define SOON_MS 20000 /* what a busy machine may take for what comes without our doing */
#define CANCELS 1000 /* added to a token: its cancel's */

/* ---- one of the two kernels -------------------------------------------------------- */

static const struct ut_kernel *kernel;
static bool is_real;
static struct ut_ring ring;
static struct ut_bufring buffers;
static void *pool;
static int pair[2];
static char told[8192];
static size_t told_length;

/* On the simulator: of the network without a kernel. */
static bool has_network;

static void make_pair(int type)
{
    type |= SOCK_CLOEXEC | SOCK_NONBLOCK;
    CHECK_EQ(has_network ? sim_pair(AF_UNIX, type, pair) : socketpair(AF_UNIX, type, 0, pair), 0);
}

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    told_length += (size_t)vsnprintf(told + told_length, sizeof told - told_length, format,
                                     arguments);
    va_end(arguments);
    CHECK(told_length < sizeof told);
}

static const char *name_of(int res)
{
    return res < 0 ? strerrorname_np(-res) : "";
}

static struct io_uring_sqe *request(uint8_t opcode, int fd, uint64_t token)
{
    struct io_uring_sqe *sqe = ut_ring_get_sqe(&ring);
    CHECK(sqe != NULL);
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->user_data = token;
    return sqe;
}

static void cancel(uint64_t token)
{
    request(IORING_OP_ASYNC_CANCEL, -1, CANCELS + token)->addr = token;
}

static int enter(unsigned to_submit, unsigned wait, unsigned flags, int64_t timeout_ns)
{
    struct ut_timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    struct io_uring_getevents_arg arg = {0};
    if (timeout_ns >= 0)
        arg.ts = (uint64_t)(uintptr_t)&ts;
    __atomic_store_n(ring.sq_tail, ring.sqe_tail, __ATOMIC_RELEASE);
    return kernel->enter(ring.fd, to_submit, wait, flags | IORING_ENTER_EXT_ARG, &arg, sizeof arg);
}

/* Submits what was prepared; nothing is run. */
static void submit(void)
{
    unsigned count = ut_ring_unsubmitted(&ring);
    CHECK_EQ(enter(count, 0, 0, -1), count);
}

/* Runs deferred work. */
static void run(void)
{
    CHECK_EQ(enter(0, 0, IORING_ENTER_GETEVENTS, -1), 0);
}

/* Says all cqes. */
static void say_cqes(void)
{
    unsigned count = ut_ring_cq_ready(&ring);
    for (unsigned i = 0; i < count; i++) {
        const struct io_uring_cqe *cqe = ut_ring_cqe(&ring, i);
        if (cqe->user_data >= CANCELS)
            say(" c%llu=", (unsigned long long)cqe->user_data - CANCELS);
        else
            say(" %llu=", (unsigned long long)cqe->user_data);
        if (cqe->res < 0)
            say("%s", name_of(cqe->res));
        else
            say("%d", cqe->res);
        say("%s%s%s", cqe->flags & IORING_CQE_F_BUFFER ? "b" : "",
            cqe->flags & IORING_CQE_F_SOCK_NONEMPTY ? "n" : "",
            cqe->flags & IORING_CQE_F_MORE ? "+" : "");
    }
    ut_ring_cq_advance(&ring, count);
    say(" |");
}

static void submit_and_say(void)
{
    submit();
    say_cqes();
}

static void run_and_say(void)
{
    run();
    say_cqes();
}

/* Waits for one cqe at least, however long the kernel takes, and says all. */
static void wait_and_say(void)
{
    int result = enter(0, 1, IORING_ENTER_GETEVENTS, SOON_MS * MS);
    CHECK(result == 0 || result == -EINTR);
    say_cqes();
}

/* What is in a file of a task's, in /proc. */
static void read_task(const char *task, const char *file, char *text, size_t size)
{
    char path[300];
    snprintf(path, sizeof path, "/proc/self/task/%s/%s", task, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
    text[length > 0 ? length : 0] = '\0';
    if (fd >= 0)
        close(fd);
}

/* Whether a thread of the kernel's for this process sleeps, and not for want of work. */
static bool has_sleeping_worker(void)
{
    bool found = false;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    for (struct dirent *task; !found && (task = readdir(tasks)) != NULL;) {
        char stat[100], where[100], state;
        read_task(task->d_name, "stat", stat, sizeof stat);
        read_task(task->d_name, "wchan", where, sizeof where);
        found = sscanf(stat, "%*d (iou-wrk-%*d) %c", &state) == 1 && state == 'S' &&
                strcmp(where, "0") != 0 && strcmp(where, "io_wq_worker") != 0;
    }
    closedir(tasks);
    return found;
}

/* Some, without an enter. */
static void let_time_pass(void)
{
    if (is_real)
        usleep(1000);
    else
        sim_sleep(MS);
}

/* That a thread of the kernel's sleeps in what was handed to it. */
static void await_worker(void)
{
    for (unsigned ms = 0; is_real && !has_sleeping_worker(); ms++) {
        CHECK(ms < SOON_MS);
        usleep(1000);
    }
}

static void receive(uint64_t token, int flags, unsigned how)
{
    struct io_uring_sqe *sqe = request(IORING_OP_RECV, pair[0], token);
    static char memory[65536];
    sqe->addr = (uint64_t)(uintptr_t)memory;
    sqe->len = sizeof memory;
    sqe->op_flags = (uint32_t)flags;
    sqe->ioprio = (uint16_t)how;
}

static void receive_into_buffers(uint64_t token, int flags, unsigned how)
{
    struct io_uring_sqe *sqe = request(IORING_OP_RECV, pair[0], token);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->op_flags = (uint32_t)flags;
    sqe->ioprio = (uint16_t)how;
}

static void send_to_peer(uint64_t token, unsigned size, int flags)
{
    static const char data[1 << 20];
    struct io_uring_sqe *sqe = request(IORING_OP_SEND, pair[0], token);
    sqe->addr = (uint64_t)(uintptr_t)data;
    sqe->len = size;
    sqe->op_flags = (uint32_t)flags;
}

static void ask(uint64_t token, int fd, uint32_t events, bool multishot)
{
    struct io_uring_sqe *sqe = request(IORING_OP_POLL_ADD, fd, token);
    sqe->op_flags = events;
    sqe->len = multishot ? IORING_POLL_ADD_MULTI : 0;
}

static void timeout(uint64_t token, const struct ut_timespec *ts)
{
    struct io_uring_sqe *sqe = request(IORING_OP_TIMEOUT, -1, token);
    sqe->addr = (uint64_t)(uintptr_t)ts;
    sqe->len = 1;
}

static void peer_says(const char *text)
{
    CHECK_EQ(kernel->write(pair[1], text, strlen(text)), strlen(text));
}

static void say_what_is_left(void)
{
    char left[100];
    int size = kernel->recvfrom(pair[0], left, sizeof left, MSG_DONTWAIT, NULL, NULL);
    say(" left: %s%.*s", size == 0 ? "the end" : name_of(size), size > 0 ? size : 0, left);
}

/* ---- claims --------------------------------------------------------------------------- */

struct claim {
    const char *name;
    void (*script)(void);
    unsigned since; /* the release that does so; 0: all that we run on */
    const char *expected;
};

/* An attempt that must not wait is over when it was taken. */
static void attempts(void)
{
    receive(1, MSG_DONTWAIT, 0);
    submit_and_say();
    peer_says("hello");
    receive(2, MSG_DONTWAIT, 0);
    send_to_peer(3, 7, MSG_DONTWAIT);
    submit_and_say();
}

/* One that waits is tried again by deferred work, which a submission does not run. */
static void waiting(void)
{
    receive(1, 0, 0);
    submit_and_say();
    say(" %s", ut_ring_wants_enter(&ring) ? "work" : "no work");
    peer_says("hello");
    say(" %s", ut_ring_wants_enter(&ring) ? "work" : "no work");
    ask(2, pair[1], POLLOUT, false);
    submit_and_say();
    run_and_say();
}

static void short_sends(void)
{
    int size = 8192;
    CHECK_EQ(kernel->setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    send_to_peer(1, 1 << 20, MSG_DONTWAIT);
    send_to_peer(2, 1, MSG_DONTWAIT);
    submit();
    int sent = ut_ring_cqe(&ring, 0)->res;
    say(" %s", sent > 0 && sent < 1 << 20 ? "some" : "all");
    ut_ring_cq_advance(&ring, 1);
    say_cqes();
}

static void one_shot_polls(void)
{
    ask(1, pair[0], POLLIN, false);
    ask(2, pair[0], POLLOUT, false);
    submit_and_say();
    peer_says("x");
    submit_and_say();
    run_and_say();
}

/* Armed with the bit set it is told by deferred work; then of each change, once. */
static void multishot_polls(void)
{
    peer_says("x");
    ask(1, pair[0], POLLIN, true);
    submit_and_say();
    run_and_say();
    run_and_say();
    peer_says("x");
    peer_says("x");
    run_and_say();
    run_and_say();
    kernel->shutdown(pair[1], SHUT_WR);
    run_and_say();
}

/* Who waits for input is not told of room, and the other way round. */
static void directions(void)
{
    static char much[1 << 15];
    ask(1, pair[0], POLLIN, true);
    ask(2, pair[0], POLLOUT, true);
    submit_and_say();
    run_and_say();
    peer_says("x");
    run_and_say();
    CHECK(kernel->write(pair[0], much, sizeof much) > 0);
    CHECK(kernel->read(pair[1], much, sizeof much) > 0);
    run_and_say();
}

/* Errors and ends are told of, asked or not. */
static void unmasked(void)
{
    ask(1, pair[0], 0, false);
    ask(2, pair[0], 0, true);
    submit_and_say();
    peer_says("x");
    run_and_say();
    kernel->shutdown(pair[1], SHUT_WR);
    run_and_say();
    kernel->close_fd(pair[1]);
    pair[1] = -1;
    run_and_say();
}

/* A change that has passed is told all the same. */
static void passed(void)
{
    ask(1, pair[0], POLLIN, false);
    submit();
    peer_says("x");
    say_what_is_left();
    run_and_say();
    ask(2, pair[0], POLLIN, false);
    ask(3, pair[0], POLLIN, true);
    submit();
    peer_says("x");
    peer_says("x");
    say_what_is_left();
    run_and_say(); /* two wake-ups: the multishot looks again, and finds nothing */
    cancel(3);
    submit_and_say();
    run_and_say();
}

static void no_buffers(void)
{
    for (unsigned i = 0; i < BUFFERS; i++) {
        peer_says("x");
        receive_into_buffers(i + 1, MSG_DONTWAIT, 0);
        submit_and_say();
    }
    receive_into_buffers(10, 0, 0);
    receive_into_buffers(11, 0, IORING_RECV_MULTISHOT);
    receive_into_buffers(12, MSG_DONTWAIT, 0);
    submit_and_say();
    receive_into_buffers(13, 0, IORING_RECVSEND_POLL_FIRST);
    submit_and_say();
    peer_says("x");
    run_and_say();
    say_what_is_left();
}

/* A refusal takes no buffer, and neither does the end. */
static void refused_with_buffers(void)
{
    receive_into_buffers(1, MSG_DONTWAIT, 0);
    submit_and_say();
    kernel->shutdown(pair[1], SHUT_WR);
    receive_into_buffers(2, MSG_DONTWAIT, 0);
    submit_and_say();
}

static void nonempty(void)
{
    char large[BUFFER_SIZE + 10];
    memset(large, 'x', sizeof large);
    CHECK_EQ(kernel->write(pair[1], large, sizeof large), sizeof large);
    receive_into_buffers(1, MSG_DONTWAIT, 0);
    receive_into_buffers(2, MSG_DONTWAIT, 0);
    submit_and_say();
}

static void multishot_receive(void)
{
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit_and_say();
    peer_says("hello");
    run_and_say();
    peer_says("a");
    peer_says("b");
    run_and_say();
    kernel->shutdown(pair[1], SHUT_WR);
    run_and_say();
}

static void multishot_out_of_buffers(void)
{
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit_and_say();
    char large[BUFFERS * BUFFER_SIZE + 10];
    memset(large, 'x', sizeof large);
    CHECK_EQ(kernel->write(pair[1], large, sizeof large), sizeof large);
    run_and_say();
    say_what_is_left();
}

/* Data and the end are both there when it is armed. */
static void end_before(void)
{
    peer_says("hello");
    kernel->shutdown(pair[1], SHUT_WR);
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit_and_say();
    run_and_say();
    run_and_say();
}

static void end_after(void)
{
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit_and_say();
    peer_says("hello");
    kernel->shutdown(pair[1], SHUT_WR);
    run_and_say();
    run_and_say();
}

/* One that polls first never learns of an end that was there behind the data (6.17, which is
 * the first to know what is left in a UNIX stream). */
static void end_missed(void)
{
    peer_says("hello");
    kernel->shutdown(pair[1], SHUT_WR);
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT | IORING_RECVSEND_POLL_FIRST);
    submit_and_say();
    run_and_say();
    run_and_say();
    cancel(1);
    submit_and_say();
    run_and_say();
}

/* What does not fit waits in the kernel, and nothing is lost. */
static void overflow(void)
{
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < SQ; i++)
            ask(round * SQ + i, pair[0], POLLOUT, false);
        submit();
    }
    unsigned flags = __atomic_load_n(ring.sq_flags, __ATOMIC_RELAXED);
    unsigned first = ut_ring_cq_ready(&ring);
    ut_ring_cq_advance(&ring, first);
    run();
    say(" %u, then %u, %s", first, ut_ring_cq_ready(&ring),
        flags & IORING_SQ_CQ_OVERFLOW ? "overflow" : "no overflow");
    ut_ring_cq_advance(&ring, ut_ring_cq_ready(&ring));
}

/* A multishot whose cqe does not fit ends with it. */
static void multishot_overflow(void)
{
    ask(99, pair[0], POLLIN, true);
    submit();
    for (unsigned round = 0; round < CQ / SQ; round++) {
        for (unsigned i = 0; i < SQ; i++)
            ask(round * SQ + i, pair[0], POLLOUT, false);
        submit();
    }
    peer_says("x");
    run();
    ut_ring_cq_advance(&ring, ut_ring_cq_ready(&ring));
    run_and_say();
    peer_says("x");
    run_and_say();
}

static void cancels(void)
{
    receive(1, 0, 0);
    submit_and_say();
    cancel(1);
    submit_and_say();
    run_and_say();
    cancel(1);
    cancel(77);
    submit_and_say();
    run_and_say();
}

/* Woken, and not yet run: it ends without having read. */
static void cancel_of_woken(void)
{
    receive(1, 0, 0);
    submit();
    peer_says("hello");
    cancel(1);
    submit_and_say();
    run_and_say();
    say_what_is_left();
}

/* Its poll was ready at once: it is to be tried by deferred work, and is not found. */
static void cancel_of_queued(void)
{
    peer_says("hello");
    receive(1, 0, IORING_RECVSEND_POLL_FIRST);
    cancel(1);
    submit_and_say();
    run_and_say();
}

static void cancel_of_multishots(void)
{
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    ask(2, pair[0], POLLIN, true);
    submit_and_say();
    peer_says("hello");
    cancel(1);
    cancel(2);
    submit_and_say();
    run_and_say();
    say_what_is_left();
}

static void timeouts(void)
{
    struct ut_timespec soon = {.tv_nsec = 2 * MS}, late = {.tv_sec = 100};
    timeout(1, &soon);
    timeout(2, &late);
    submit_and_say();
    wait_and_say();
    cancel(2);
    submit_and_say();
    run_and_say();
    timeout(3, &soon);
    submit_and_say();
    soon.tv_nsec = 0; /* it was read when it was submitted */
    say(" %s", enter(0, 1, IORING_ENTER_GETEVENTS, 0) == -ETIME ? "not yet" : "at once");
    wait_and_say();
}

/* One that has fired is not found any more, also before it is told of. */
static void cancel_of_fired(void)
{
    struct ut_timespec soon = {.tv_nsec = 1 * MS};
    timeout(1, &soon);
    submit();
    while (!ut_ring_wants_enter(&ring))
        let_time_pass();
    cancel(1);
    submit_and_say();
    run_and_say();
}

/* A wait is told that its time is over only where there is no cqe at all. */
static void waits_for_more(void)
{
    ask(1, pair[0], POLLOUT, false);
    submit();
    say(" %d", enter(0, 2, IORING_ENTER_GETEVENTS, 2 * MS));
    say_cqes();
    say(" %s", name_of(enter(0, 2, IORING_ENTER_GETEVENTS, 2 * MS)));
}

static void waits_with_an_end(void)
{
    say(" %s", name_of(enter(0, 1, IORING_ENTER_GETEVENTS, 2 * MS)));
    receive(1, 0, 0);
    say(" %d", enter(1, 1, IORING_ENTER_GETEVENTS, 2 * MS)); /* hides it */
    say(" %d", enter(0, 0, IORING_ENTER_GETEVENTS, 2 * MS));
    cancel(1);
    submit_and_say();
    run_and_say();
}

static void pieces_of_work(void)
{
    for (unsigned i = 0; i < 25; i++)
        ask(i + 1, pair[0], POLLIN, false);
    submit();
    peer_says("x");
    run();
    unsigned first = ut_ring_cq_ready(&ring);
    run();
    say(" %u %u", first, ut_ring_cq_ready(&ring));
    ut_ring_cq_advance(&ring, ut_ring_cq_ready(&ring));
}

static void *enter_elsewhere(void *unused)
{
    (void)unused;
    say(" %s", name_of(enter(0, 0, IORING_ENTER_GETEVENTS, -1)));
    return NULL;
}

static void other_threads(void)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, enter_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
}

/* An eventfd is written to when work begins to wait, and not for what comes after. */
static void event_fds(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    uint64_t count;
    CHECK_EQ(kernel->register_op(ring.fd, IORING_REGISTER_EVENTFD, &fd, 1), 0);
    receive(1, 0, 0);
    ask(2, pair[0], POLLIN, false);
    submit();
    say(" %s", read(fd, &count, sizeof count) < 0 ? "quiet" : "told");
    peer_says("x");
    say(" %s", read(fd, &count, sizeof count) < 0 ? "quiet" : "told");
    peer_says("x");
    say(" %s", read(fd, &count, sizeof count) < 0 ? "quiet" : "told");
    run();
    ut_ring_cq_advance(&ring, ut_ring_cq_ready(&ring));
    CHECK_EQ(kernel->register_op(ring.fd, IORING_UNREGISTER_EVENTFD, NULL, 0), 0);
    say(" %s", name_of(kernel->register_op(ring.fd, IORING_UNREGISTER_EVENTFD, NULL, 0)));
    close(fd);
}

/* A request holds its file: closed, it lives on, and swallows what comes. */
static void closed_files(void)
{
    receive(1, 0, 0);
    submit_and_say();
    close(pair[0]);
    run_and_say();
    struct pollfd peer = {.fd = pair[1], .events = POLLIN};
    say(" the peer %s", kernel->poll(&peer, 1, 0) > 0 ? "sees it" : "sees nothing");
    peer_says("hello");
    run_and_say();
    say(" the peer %s", kernel->poll(&peer, 1, SOON_MS) > 0 ? "sees it" : "sees nothing");
    pair[0] = -1;
}

/* The number of a closed file is another's, and the request is the first one's. */
static void used_numbers(void)
{
    int other[2];
    receive(1, 0, 0);
    submit();
    int type = SOCK_STREAM | SOCK_NONBLOCK;
    CHECK_EQ(has_network ? sim_pair(AF_UNIX, type, other) : socketpair(AF_UNIX, type, 0, other),
             0);
    CHECK_EQ(dup2(other[0], pair[0]), pair[0]);
    CHECK_EQ(kernel->write(other[1], "other", 5), 5);
    run_and_say();
    peer_says("old");
    run_and_say();
    close(other[0]);
    close(other[1]);
}

static void wrong_files(void)
{
    int ends[2];
    CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    static char memory[10];
    struct io_uring_sqe *sqe = request(IORING_OP_RECV, ends[0], 1);
    sqe->addr = (uint64_t)(uintptr_t)memory;
    sqe->len = sizeof memory;
    ask(2, 9999, POLLIN, false);
    submit_and_say();
    close(ends[0]);
    close(ends[1]);
}

static void pipes(void)
{
    int ends[2];
    static char memory[10];
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    for (uint64_t token = 1; token <= 3; token++) {
        struct io_uring_sqe *sqe = request(IORING_OP_READ, ends[0], token);
        sqe->addr = (uint64_t)(uintptr_t)memory;
        sqe->len = sizeof memory;
        sqe->op_flags = UT_RWF_NOWAIT;
        sqe->off = UINT64_MAX;
        submit_and_say();
        if (token == 1)
            CHECK_EQ(write(ends[1], "hello", 5), 5);
        else if (token == 2)
            close(ends[1]);
    }
    close(ends[0]);
}

static struct sockaddr_un own_name(int fd, socklen_t *length)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    *length = sizeof name;
    CHECK_EQ(bind(fd, (struct sockaddr *)&name, sizeof name.sun_family), 0); /* any */
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&name, length), 0);
    return name;
}

/* Sends, until there is no room. */
static void fill_peer(void)
{
    int size = 8192;
    CHECK_EQ(kernel->setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    static char data[1 << 16];
    while (kernel->sendto(pair[0], data, sizeof data, MSG_DONTWAIT, NULL, 0) > 0)
        ;
}

/* A send to a full peer whose poll tells something at once, always: its end. */
static void hand_over(void)
{
    fill_peer();
    kernel->shutdown(pair[1], SHUT_WR);
    send_to_peer(1, 5, 0);
    submit();
    for (unsigned i = 0; i < 200; i++)
        run();
    say_cqes();
    say(" %s", ut_ring_wants_enter(&ring) ? "work" : "no work");
    await_worker();
    cancel(1);
    submit_and_say();
    wait_and_say();
}

/* Where there are threads enough it is in one; else it waits for one, and can be taken out. */
static void hand_over_of_two(void)
{
    unsigned most[2] = {0, 1}, ignored[2];
    CHECK_EQ(kernel->register_op(ring.fd, SIM_REGISTER_WORKERS, most, 2), 0);
    fill_peer();
    kernel->shutdown(pair[1], SHUT_WR);
    send_to_peer(1, 5, 0);
    send_to_peer(2, 5, 0);
    submit();
    for (unsigned i = 0; i < 200; i++)
        run();
    say_cqes();
    await_worker();
    cancel(2);
    submit_and_say();
    wait_and_say();
    cancel(1);
    submit_and_say();
    wait_and_say();
    memcpy(ignored, most, sizeof ignored); /* of this thread's, in Linux: other rings have it too */
    CHECK_EQ(kernel->register_op(ring.fd, SIM_REGISTER_WORKERS, ignored, 2), 0);
}

static void hand_over_of_nonblocking(void)
{
    fill_peer();
    kernel->shutdown(pair[1], SHUT_WR);
    static char data[5];
    struct iovec vector = {.iov_base = data, .iov_len = sizeof data};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    request(IORING_OP_SENDMSG, pair[0], 1)->addr = (uint64_t)(uintptr_t)&message;
    submit();
    for (unsigned i = 0; i < 130; i++)
        run();
    wait_and_say();
}

/* A message is read when it is submitted, and its lengths are written when it is over. */
static void messages(void)
{
    static char memory[100], control[64];
    struct sockaddr_storage name;
    struct iovec vector = {.iov_base = memory, .iov_len = sizeof memory};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_name = &name,
                             .msg_namelen = sizeof name, .msg_control = control,
                             .msg_controllen = sizeof control};
    request(IORING_OP_RECVMSG, pair[0], 1)->addr = (uint64_t)(uintptr_t)&message;
    submit_and_say();
    vector.iov_len = 1;
    peer_says("hello");
    run_and_say();
    say(" %u %zu %d", message.msg_namelen, message.msg_controllen, message.msg_flags);
}

static void accept_connections(void)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t length;
    struct sockaddr_un name = own_name(listener, &length);
    struct io_uring_sqe *sqe = request(IORING_OP_CONNECT, client, 1);
    sqe->addr = (uint64_t)(uintptr_t)&name;
    sqe->off = length;
    submit_and_say();
    CHECK_EQ(listen(listener, 1), 0);
    request(IORING_OP_ACCEPT, listener, 2)->ioprio = IORING_ACCEPT_DONTWAIT;
    request(IORING_OP_ACCEPT, listener, 3)->op_flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
    submit_and_say();
    sqe = request(IORING_OP_CONNECT, client, 4);
    sqe->addr = (uint64_t)(uintptr_t)&name;
    sqe->off = length;
    submit_and_say();
    run();
    CHECK_EQ(ut_ring_cq_ready(&ring), 1);
    int accepted = ut_ring_cqe(&ring, 0)->res;
    say(" %s", fcntl(accepted, F_GETFD) == FD_CLOEXEC ? "accepted" : "not accepted");
    ut_ring_cq_advance(&ring, 1);
    close(accepted);
    close(client);
    close(listener);
}

/* Of accepts that wait one is told, and if that is cancelled nobody is. */
static void exclusive_accepts(void)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t length;
    struct sockaddr_un name = own_name(listener, &length);
    CHECK_EQ(listen(listener, 1), 0);
    request(IORING_OP_ACCEPT, listener, 1);
    request(IORING_OP_ACCEPT, listener, 2);
    submit_and_say();
    CHECK_EQ(kernel->connect(client, (struct sockaddr *)&name, length), 0);
    cancel(1);
    submit_and_say();
    run_and_say();
    ask(3, listener, POLLIN, false);
    submit_and_say();
    cancel(2);
    submit_and_say();
    run_and_say();
    close(client);
    close(listener);
}

static void shut_down(void)
{
    receive(1, 0, 0);
    submit_and_say();
    kernel->shutdown(pair[0], SHUT_RD);
    run_and_say();
}

/* Tried at submission, a multishot's cqes are before those of others in the same one. */
static void order(void)
{
    peer_says("hello");
    ask(1, pair[0], POLLOUT, false);
    receive_into_buffers(2, 0, IORING_RECV_MULTISHOT);
    ask(3, pair[0], POLLOUT, false);
    submit_and_say();
    cancel(2);
    submit_and_say();
    run_and_say();
}

static void connect_over_loopback(void)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof name;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&name, length), 0);
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&name, &length), 0);
    close(pair[1]);
    pair[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int connected = kernel->connect(pair[1], (struct sockaddr *)&name, length);
    CHECK(connected == 0 || (has_network && connected == -EINPROGRESS));
    close(pair[0]);
    pair[0] = kernel->accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    CHECK(pair[0] >= 0);
    close(listener);
}

static void reset_behind_data(void)
{
    struct linger at_once = {.l_onoff = 1};
    connect_over_loopback();
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit();
    peer_says("hello");
    CHECK_EQ(kernel->setsockopt(pair[1], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    kernel->close_fd(pair[1]);
    pair[1] = -1;
    struct pollfd look = {.fd = pair[0]};
    CHECK_EQ(kernel->poll(&look, 1, SOON_MS), 1);
    run_and_say();
    run_and_say();
}

/* A datagram to a full receiver, by its name: who sends can always write, so it is tried again
 * at once, until a thread has it. The first try has given the bytes away: what is sent in the
 * end is empty. */
static void full_receivers(void)
{
    static char data[10] = "123456789", received[10];
    socklen_t length;
    close(pair[0]);
    close(pair[1]);
    pair[0] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    pair[1] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un name = own_name(pair[1], &length);
    struct sockaddr *to = (struct sockaddr *)&name;
    while (kernel->sendto(pair[0], "x", 1, MSG_DONTWAIT, to, length) == 1)
        ;
    struct iovec vector = {.iov_base = data, .iov_len = 9};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_name = &name,
                             .msg_namelen = length};
    request(IORING_OP_SENDMSG, pair[0], 1)->addr = (uint64_t)(uintptr_t)&message;
    submit_and_say();
    for (unsigned i = 0; i < 130; i++)
        run();
    say_cqes();
    await_worker();
    unsigned empty = 0, full = 0;
    for (unsigned round = 0; round < 2; round++) {
        int size;
        while ((size = kernel->recvfrom(pair[1], received, sizeof received, MSG_DONTWAIT, NULL,
                                        NULL)) >= 0) {
            empty += size == 0;
            full += size == 9;
        }
        if (round == 0)
            wait_and_say();
    }
    say(" %u empty, %u full", empty, full);
}

/* An end of a TCP stream is something that is left. */
static void end_behind_data(void)
{
    connect_over_loopback();
    peer_says("hello");
    kernel->shutdown(pair[1], SHUT_WR);
    receive_into_buffers(1, MSG_DONTWAIT, 0);
    receive_into_buffers(2, MSG_DONTWAIT, 0);
    submit_and_say();
}

static const struct claim claims[] = {
    {"attempts", attempts, 0,
     " 1=EAGAIN | 2=5 3=7 |"},
    {"waiting", waiting, 0,
     " | no work work 2=4 | 1=5 |"},
    {"short sends", short_sends, 0,
     " some 2=EAGAIN |"},
    {"one-shot polls", one_shot_polls, 0,
     " 2=4 | | 1=1 |"},
    {"multishot polls", multishot_polls, 0,
     " | 1=1+ | | 1=1+ | | 1=8193+ |"},
    {"directions", directions, 0,
     " | 2=4+ | 1=1+ | 2=4+ |"},
    {"unmasked", unmasked, 0,
     " | | 2=8192+ 1=8192 | 2=8208+ |"},
    {"a change that has passed", passed, 0,
     " left: x 1=1 | left: xx 2=1 | c3=0 | 3=ECANCELED |"},
    {"no buffers", no_buffers, 0,
     " 1=1b | 2=1b | 3=1b | 4=1b | 10=ENOBUFS 11=ENOBUFS 12=ENOBUFS | | 13=ENOBUFS | left: x"},
    {"refused with buffers", refused_with_buffers, 0,
     " 1=EAGAIN | 2=0 |"},
    {"nonempty", nonempty, VERSION(6, 17, 0),
     " 1=4096bn 2=10b |"},
    {"multishot receive", multishot_receive, 0,
     " | 1=5b+ | 1=2b+ | 1=0 |"},
    {"multishot receive out of buffers", multishot_out_of_buffers, VERSION(6, 17, 0),
     " | 1=4096bn+ 1=4096bn+ 1=4096bn+ 1=4096bn+ 1=ENOBUFS | left: xxxxxxxxxx"},
    {"end before", end_before, 0,
     " 1=5b+ | 1=0 | |"},
    {"end after", end_after, VERSION(6, 18, 44),
     " | 1=5b+ 1=0 | |"},
    {"end missed", end_missed, VERSION(6, 17, 0),
     " | 1=5b+ | | c1=0 | 1=ECANCELED |"},
    {"overflow", overflow, 0,
     " 64, then 32, overflow"},
    {"multishot overflow", multishot_overflow, 0,
     " 99=1 | |"},
    {"cancels", cancels, 0,
     " | c1=0 | 1=ECANCELED | c1=ENOENT c77=ENOENT | |"},
    {"cancel of woken", cancel_of_woken, 0,
     " c1=0 | 1=ECANCELED | left: hello"},
    {"cancel of queued", cancel_of_queued, 0,
     " c1=ENOENT | 1=5 |"},
    {"cancel of multishots", cancel_of_multishots, 0,
     " | c1=0 c2=0 | 2=ECANCELED 1=ECANCELED | left: hello"},
    {"timeouts", timeouts, 0,
     " | 1=ETIME | c2=0 | 2=ECANCELED | | not yet 3=ETIME |"},
    {"cancel of a timeout that has fired", cancel_of_fired, 0,
     " c1=ENOENT | 1=ETIME |"},
    {"waits for more", waits_for_more, 0,
     " 0 1=4 | ETIME"},
    {"waits with an end", waits_with_an_end, 0,
     " ETIME 1 0 c1=0 | 1=ECANCELED |"},
    {"pieces of work", pieces_of_work, 0,
     " 20 25"},
    {"other threads", other_threads, 0,
     " EEXIST"},
    {"event fds", event_fds, 0,
     " quiet told quiet ENXIO"},
    {"closed files", closed_files, 0,
     " | | the peer sees nothing 1=5 | the peer sees it"},
    {"used numbers", used_numbers, 0,
     " | 1=3 |"},
    {"wrong files", wrong_files, 0,
     " 1=ENOTSOCK 2=EBADF |"},
    {"pipes", pipes, VERSION(6, 4, 0),
     " 1=EAGAIN | 2=5 | 3=0 |"},
    {"hand-over", hand_over, 0,
     " | no work c1=EALREADY | 1=EINTR |"},
    {"hand-over of nonblocking", hand_over_of_nonblocking, 0,
     " 1=EAGAIN |"},
    {"hand-over of two", hand_over_of_two, 0,
     " | c2=0 | 2=ECANCELED | c1=EALREADY | 1=EINTR |"},
    {"messages", messages, 0,
     " | 1=5 | 0 0 0"},
    {"accepts", accept_connections, VERSION(6, 10, 0),
     " 1=ECONNREFUSED | 2=EAGAIN | 4=0 | accepted"},
    {"exclusive accepts", exclusive_accepts, 0,
     " | c1=0 | 1=ECANCELED | 3=1 | c2=0 | 2=ECANCELED |"},
    {"shut down", shut_down, 0,
     " | 1=0 |"},
    {"reset behind data", reset_behind_data, VERSION(6, 17, 0), " 1=5b+ 1=ECONNRESET | |"},
    {"full receivers", full_receivers, 0, " | | 1=0 | 1 empty, 0 full"},
    {"end behind data", end_behind_data, 0, " 1=5bn 2=0n |"},
    {"order", order, VERSION(6, 18, 0),
     " 1=4 2=5b+ 3=4 | c2=0 | 2=ECANCELED |"},
};

/* ---- random scripts --------------------------------------------------------------------- */

#define RANDOM_SCRIPTS 300
/* Of the seeds that are asked for (of test_fuzz, which is quicker) one of so many. */
#define SEEDS_A_SCRIPT 20
#define RANDOM_STEPS 60
#define TOKENS 200

static uint64_t random_state;
static unsigned leased[BUFFERS], leased_count;

static unsigned draw(unsigned below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 33) % below;
}

/* Says all cqes, and notes the buffers that came. */
static void say_and_lease(void)
{
    unsigned count = ut_ring_cq_ready(&ring);
    for (unsigned i = 0; i < count; i++) {
        const struct io_uring_cqe *cqe = ut_ring_cqe(&ring, i);
        if (cqe->flags & IORING_CQE_F_BUFFER)
            leased[leased_count++] =
                ut_bufring_lease(&buffers, (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT));
    }
    say_cqes();
}

static void return_buffers(void)
{
    while (leased_count > 0)
        ut_bufring_return(&buffers, leased[--leased_count]);
    ut_bufring_commit(&buffers);
}

/* One thing that a program, or a peer, may do. */
static void random_step(uint64_t token)
{
    static const uint32_t events[] = {POLLIN, POLLOUT, POLLIN | POLLOUT, 0};
    static const unsigned how[] = {0, 0, IORING_RECVSEND_POLL_FIRST};
    char bytes[8];
    unsigned size = 1 + draw(3);
    switch (draw(14)) {
    case 0:
    case 1:
        say(" w%d", kernel->sendto(pair[1], "abcd", size, MSG_NOSIGNAL | MSG_DONTWAIT, NULL, 0));
        break;
    case 2:
        say(" r%d", kernel->recvfrom(pair[0], bytes, size, MSG_DONTWAIT, NULL, NULL));
        break;
    case 3:
        say(" p%d", kernel->recvfrom(pair[1], bytes, size, MSG_DONTWAIT, NULL, NULL));
        break;
    case 4:
        receive(token, draw(2) ? MSG_DONTWAIT : 0, how[draw(3)]);
        break;
    case 5:
        receive_into_buffers(token, draw(2) ? MSG_DONTWAIT : 0, how[draw(3)]);
        break;
    case 6:
        receive_into_buffers(token, 0, IORING_RECV_MULTISHOT | how[draw(3)]);
        break;
    case 7:
        ask(token, pair[0], events[draw(4)], false);
        break;
    case 8:
        ask(token, pair[0], events[draw(4)], true);
        break;
    case 9:
        cancel(draw((unsigned)token + 1));
        break;
    case 10:
        send_to_peer(token, size, draw(2) ? MSG_DONTWAIT : 0);
        break;
    case 11:
        if (draw(8) == 0)
            say(" s%d", kernel->shutdown(pair[draw(2)], draw(3)));
        break;
    case 12:
        return_buffers();
        break;
    default:
        submit();
        if (draw(2))
            run();
        say_and_lease();
    }
}

static void random_script(void)
{
    static const int types[] = {SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    close(pair[0]);
    close(pair[1]);
    make_pair(types[draw(4)]);
    leased_count = 0;
    for (uint64_t token = 1; token <= RANDOM_STEPS; token++) {
        random_step(token);
        if (ut_ring_sq_room(&ring) == 0)
            submit();
    }
    submit();
    run();
    say_and_lease();
    for (uint64_t token = 1; token <= RANDOM_STEPS; token++) {
        cancel(token);
        if (ut_ring_sq_room(&ring) == 0)
            submit();
    }
    submit();
    run();
    say_and_lease();
}

/* ---- choices and switches ----------------------------------------------------------- */

struct variant {
    const char *name;
    void (*script)(void);
    enum sim_choice kind;
    uint32_t choices[8]; /* until a 99 */
    struct sim_switches switches;
    const char *expected;
};
#define END 99

static void two_attempts(void)
{
    receive(1, MSG_DONTWAIT, 0);
    send_to_peer(2, 7, MSG_DONTWAIT);
    submit_and_say();
}

static void late_again(void)
{
    two_attempts();
    run_and_say();
    wait_and_say();
}

static void late(void)
{
    receive(1, 0, 0);
    submit();
    peer_says("hello");
    say(" %s", ut_ring_wants_enter(&ring) ? "work" : "no work");
    run_and_say();
    uint64_t before_ns = sim_now_ns();
    wait_and_say();
    say(" after %llu us", (unsigned long long)(sim_now_ns() - before_ns) / 1000);
}

static void refused(void)
{
    peer_says("hello");
    receive(1, MSG_DONTWAIT, 0);
    ask(2, pair[0], POLLIN, true);
    submit_and_say();
    run_and_say(); /* what is there */
    wait_and_say(); /* what had refused has ended */
}

static void waits(void)
{
    ask(1, pair[0], POLLIN, false);
    submit();
    for (unsigned i = 0; i < 3; i++)
        say(" %s", name_of(enter(0, 1, IORING_ENTER_GETEVENTS, 2 * MS)));
}

static void submissions(void)
{
    for (unsigned i = 0; i < 5; i++)
        ask(i + 1, pair[0], POLLOUT, false);
    for (unsigned i = 0; i < 3; i++) {
        int taken = enter(ut_ring_unsubmitted(&ring), 0, IORING_ENTER_GETEVENTS, -1);
        if (taken < 0)
            say(" %s", name_of(taken));
        else
            say(" %d", taken);
    }
    say_cqes();
}

static void fatal(void)
{
    say(" %s", name_of(enter(0, 0, IORING_ENTER_GETEVENTS, -1)));
}

static void cancel_while_there_is_data(void)
{
    receive(1, 0, 0);
    submit();
    peer_says("hello");
    cancel(1);
    submit_and_say();
    run_and_say();
    say_what_is_left();
}

static void cancel_of_idle(void)
{
    receive(1, 0, 0);
    submit();
    cancel(1);
    submit_and_say();
    run_and_say();
}

static void cancel_of_woken_multishot(void)
{
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit();
    peer_says("hello");
    cancel(1);
    submit_and_say();
    run_and_say();
    say_what_is_left();
}

static void accept_without_flag(void)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length;
    own_name(listener, &length);
    CHECK_EQ(listen(listener, 1), 0);
    request(IORING_OP_ACCEPT, listener, 1)->ioprio = IORING_ACCEPT_DONTWAIT;
    request(IORING_OP_ACCEPT, listener, 2);
    submit_and_say();
    cancel(2);
    submit_and_say();
    run_and_say();
    close(listener);
}

static const struct variant variants[] = {
    {"in order", two_attempts, SIM_ORDER, {END}, {0}, " 1=EAGAIN 2=7 |"},
    {"out of order", two_attempts, SIM_ORDER, {1, END}, {0}, " 2=7 1=EAGAIN |"},
    {"more than there is is less", two_attempts, SIM_ORDER, {3, END}, {0}, " 2=7 1=EAGAIN |"},
    {"late", late, SIM_DELAY, {3, END}, {0}, " no work | 1=5 | after 3000 us"},
    {"short", two_attempts, SIM_SHORT, {0, 2, END}, {0}, " 1=EAGAIN 2=3 |"},
    {"refused", refused, SIM_REFUSE, {1, END}, {0}, " 1=EAGAIN | 2=1+ | 2=1+ |"},
    {"interrupted", waits, SIM_ENTER, {1, 2, END}, {0}, " EINTR EBUSY ETIME"},
    {"submitted in part", submissions, SIM_SUBMIT, {1, 3, 2, END}, {0},
     " EAGAIN 3 1 1=4 2=4 3=4 4=4 |"},
    {"no buffers", multishot_receive, SIM_BUFFERS, {0, 0, 1, END}, {0},
     " | 1=5b+ | 1=ENOBUFS | |"},
    {"a multishot that ends", multishot_receive, SIM_END, {1, END}, {0}, " | 1=5b | | |"},
    {"a poll that ends", multishot_polls, SIM_END, {0, 1, END}, {0},
     " | 1=1+ | | 1=1 | | |"},
    {"a cancel too late", cancel_while_there_is_data, SIM_CANCEL, {1, END}, {0},
     " c1=ENOENT | 1=5 | left: EAGAIN"},
    {"a cancel just in time", cancel_of_idle, SIM_CANCEL, {1, END}, {0},
     " c1=0 | 1=ECANCELED |"},
    {"a cancel of what runs", cancel_while_there_is_data, SIM_CANCEL, {2, END}, {0},
     " c1=EALREADY | 1=5 | left: EAGAIN"},
    {"a cancel that interrupts", cancel_of_idle, SIM_CANCEL, {2, END}, {0},
     " c1=EALREADY | 1=ECANCELED |"},
    {"the target first", cancel_of_idle, SIM_CANCEL, {3, END}, {0}, " 1=ECANCELED c1=0 | |"},
    {"a cancel after the work", cancel_of_woken_multishot, SIM_CANCEL, {4, END}, {0},
     " 1=5b+ c1=0 | 1=ECANCELED | left: EAGAIN"},
    {"no memory", fatal, SIM_FATAL, {1, END}, {0}, " ENOMEM"},
    {"a lost cqe", fatal, SIM_FATAL, {2, END}, {0}, " EBADR"},
    {"a cqe again, later", late_again, SIM_STALE, {2, 2, END}, {0}, " 1=EAGAIN 2=7 | | 2=7 |"},
    {"a cqe twice", two_attempts, SIM_STALE, {1, END}, {0}, " 1=EAGAIN 1=EAGAIN 2=7 |"},

    {"before 6.10", accept_without_flag, SIM_CHOICES, {END}, {.accept_waits = true},
     " 1=EINVAL | c2=0 | 2=ECANCELED |"},
    {"before 6.4", pipes, SIM_CHOICES, {END}, {.pipes_without_nowait = true},
     " 1=EOPNOTSUPP | 2=EOPNOTSUPP | 3=EOPNOTSUPP |"},
    {"before 6.0", multishot_receive, SIM_CHOICES, {END}, {.no_multishot_receive = true},
     " 1=EINVAL | | | |"},
    {"before 6.17", end_missed, SIM_CHOICES, {END}, {.no_inq_of_unix = true},
     " | 1=5b+ 1=0 | | c1=ENOENT | |"},
    {"without the cure of 6.18", end_after, SIM_CHOICES, {END}, {.end_is_missed = true},
     " | 1=5b+ | |"},
    {"6.16 without a reset", multishot_receive, SIM_CHOICES, {END}, {.reset_loses_data = true},
     " | 1=5b+ | 1=2b+ | 1=0 |"},
    {"a reset behind data", reset_behind_data, SIM_CHOICES, {END}, {0},
     " 1=5b+ 1=ECONNRESET | |"},
    {"6.16", reset_behind_data, SIM_CHOICES, {END}, {.reset_loses_data = true},
     " 1=ECONNRESET | |"},
    {"6.11", cancel_of_woken_multishot, SIM_CHOICES, {END}, {.cancel_misses_multishot = true},
     " c1=ENOENT | 1=5b+ | left: EAGAIN"},
    {"a refusal with a buffer", refused_with_buffers, SIM_CHOICES, {END},
     {.refusal_takes_buffer = true}, " 1=EAGAINb | 2=0 |"},
};

static const struct variant *variant;
static const struct claim *claim;

static void open_simulation(void)
{
    if (variant == NULL) {
        sim_open(NULL, NULL, 0);
        return;
    }
    unsigned count = 0;
    while (variant->choices[count] != END)
        count++;
    sim_open(&variant->switches, variant->choices, count);
    sim_allow(1u << variant->kind);
}

static void run_script(const struct ut_kernel *table)
{
    kernel = table;
    is_real = table == &ut_kernel_real;
    told_length = 0;
    told[0] = '\0';
    if (!is_real)
        open_simulation();
    if (has_network)
        sim_use_network(0);
    if (variant != NULL)
        sim_allow(0); /* what follows is no part of it */
    CHECK_EQ(ut_ring_open(&ring, kernel, SQ, CQ, SQ), 0);
    CHECK_EQ(kernel->allocate(&pool, BUFFERS * BUFFER_SIZE, 0), 0);
    CHECK_EQ(ut_bufring_open(&buffers, &ring, 0, BUFFERS, BUFFER_SIZE, pool, 0), 0);
    make_pair(SOCK_STREAM);
    if (variant != NULL)
        sim_allow(1u << variant->kind);
    (variant != NULL ? variant->script : claim->script)();
    if (variant != NULL)
        sim_allow(0);
    close(pair[0]);
    close(pair[1]);
    ut_ring_close(&ring);
    ut_bufring_close(&buffers, kernel);
    kernel->unmap(pool, BUFFERS * BUFFER_SIZE);
    if (!is_real)
        sim_close();
}

static void check_told(void)
{
    const char *expected = variant != NULL ? variant->expected : claim->expected;
    if (strcmp(told, expected) != 0)
        printf("%s said:%s\n", is_real ? "Linux" : has_network ? "the network" : "the simulator",
               told);
    CHECK(strcmp(told, expected) == 0);
}

static void claims_it(void)
{
    run_script(&ut_kernel_sim);
    check_told();
}

/* The same, with sockets of the network without a kernel. */
static void claims_it_of_a_network(void)
{
    has_network = true;
    run_script(&ut_kernel_sim);
    check_told();
}

static void is_so(void)
{
    run_script(&ut_kernel_real);
    check_told();
}

static uint64_t script_seed;

/* Random scripts have the same answers on both kernels, down to the order of cqes. (With the
 * network's sockets. Of the machine's own the simulator is told by epoll, which merges. TCP's
 * segments arrive a little later now and then, on a machine.) */
static void answers_are_the_same(void)
{
    static char expected[sizeof told];
    random_state = script_seed * 2654435761u + 1;
    run_script(&ut_kernel_real);
    strcpy(expected, told);
    has_network = true;
    random_state = script_seed * 2654435761u + 1;
    run_script(&ut_kernel_sim);
    if (strcmp(told, expected) != 0)
        printf("seed %llu, Linux:%s\nthe network:%s\n", (unsigned long long)script_seed,
               expected, told);
    CHECK(strcmp(told, expected) == 0);
}

static void run_random_scripts(uint64_t first, unsigned count)
{
    static const struct claim random_claim = {"random scripts", random_script, 0, NULL};
    claim = &random_claim;
    for (script_seed = first; script_seed < first + count; script_seed++) {
        check_run(claim->name, answers_are_the_same);
        has_network = false;
    }
}

static unsigned linux_release(void)
{
    struct utsname found;
    unsigned major = 0, minor = 0, patch = 0;
    uname(&found);
    sscanf(found.release, "%u.%u.%u", &major, &minor, &patch);
    return VERSION(major, minor, patch);
}

static void run_claims(uint64_t first, unsigned scripts)
{
    struct ut_ring probe;
    int error = ut_ring_open(&probe, &ut_kernel_real, SQ, CQ, SQ);
    if (error == 0)
        ut_ring_close(&probe);
    else
        printf("test_sim.c: the claims are not shown: no io_uring here: %s\n", strerror(-error));
    if (error == 0 && linux_release() >= VERSION(6, 18, 44))
        run_random_scripts(first, scripts);
    for (unsigned i = 0; i < sizeof claims / sizeof *claims; i++) {
        claim = &claims[i];
        check_run(claim->name, claims_it);
        check_run(claim->name, claims_it_of_a_network);
        has_network = false;
        if (error == 0 && linux_release() >= claim->since)
            check_run(claim->name, is_so);
    }
}

/* ---- books, and what is drawn ---------------------------------------------------------- */

static struct sim_books books(void)
{
    struct sim_books found;
    sim_read_books(&found);
    return found;
}

static void begin(void)
{
    kernel = &ut_kernel_sim;
    is_real = false;
    told_length = 0;
    sim_open(NULL, NULL, 0);
    CHECK_EQ(ut_ring_open(&ring, kernel, SQ, CQ, SQ), 0);
    CHECK_EQ(kernel->allocate(&pool, BUFFERS * BUFFER_SIZE, 0), 0);
    CHECK_EQ(ut_bufring_open(&buffers, &ring, 0, BUFFERS, BUFFER_SIZE, pool, 0), 0);
    make_pair(SOCK_STREAM);
}

static void close_all(void)
{
    close(pair[0]);
    close(pair[1]);
    ut_ring_close(&ring);
    ut_bufring_close(&buffers, kernel);
    kernel->unmap(pool, BUFFERS * BUFFER_SIZE);
}

static void the_books_balance(void)
{
    begin();
    peer_says("hello");
    receive_into_buffers(1, MSG_DONTWAIT, 0);
    receive(2, 0, 0);
    submit();
    CHECK_EQ(books().rings, 1);
    CHECK_EQ(books().in_flight, 1);
    CHECK_EQ(books().held, 1);
    CHECK_EQ(books().buffers_out, 1);
    CHECK_EQ(books().mappings, 4);
    CHECK_EQ(books().sqes, 2);
    ut_bufring_lease(&buffers, 0);
    ut_bufring_return(&buffers, 0);
    ut_bufring_commit(&buffers);
    cancel(2);
    submit();
    run();
    CHECK_EQ(books().in_flight, 0);
    CHECK_EQ(books().buffers_out, 0);
    close_all();
    CHECK_EQ(books().rings, 0);
    CHECK_EQ(books().mappings, 0);
    CHECK_EQ(books().held, 0);
    CHECK_EQ(books().given_up, 0);
    CHECK_EQ(books().faults, 0);
    sim_close();
}

static void a_ring_may_be_closed_too_early(void)
{
    begin();
    receive(1, 0, 0);
    submit();
    close_all();
    CHECK_EQ(books().given_up, 1);
    sim_close();
}

static void workers_are_counted(void)
{
    begin();
    hand_over();
    CHECK_EQ(books().handed_over, 1);
    close_all();
    sim_close();
}

static void what_is_left_to_the_kernels_own_poll_is_counted(void)
{
    begin();
    ask(1, pair[0], POLLIN, false);
    receive(2, 0, 0);
    submit();
    CHECK_EQ(books().left_waiting, 1);
    receive(3, MSG_DONTWAIT, 0);
    submit();
    CHECK_EQ(books().left_waiting, 1);
    close_all();
    sim_close();
}

static void expect_fault(const char *text)
{
    CHECK_EQ(books().faults, 1);
    CHECK(strcmp(sim_fault_text(0), text) == 0);
    CHECK(sim_fault_text(1) == NULL);
    sim_close();
}

static void two_operations_with_one_token(void)
{
    begin();
    receive(1, 0, 0);
    ask(1, pair[0], POLLIN, false);
    submit();
    close_all();
    expect_fault("two operations with one token");
}

static void a_buffer_returned_twice(void)
{
    begin();
    for (unsigned i = 0; i < 2; i++) {
        peer_says("hello");
        receive_into_buffers(i + 1, MSG_DONTWAIT, 0);
        submit();
        ut_bufring_lease(&buffers, (uint16_t)i);
    }
    ut_bufring_return(&buffers, 0);
    ut_bufring_return(&buffers, 0);
    ut_bufring_commit(&buffers);
    CHECK_EQ(books().buffers_out, 1);
    close_all();
    expect_fault("a buffer was returned twice");
}

static void what_is_not_ours(void)
{
    begin();
    kernel->unmap(&ring, sizeof ring);
    close_all();
    expect_fault("unmap of what is not mapped");
    begin();
    CHECK_EQ(kernel->close_fd(9999), -EBADF);
    close_all();
    expect_fault("close of what is not open");
    begin();
    request(IORING_OP_RECV, pair[0], 1)->off = 1;
    submit();
    close_all();
    expect_fault("an sqe that Linux refuses");
}

/* Whatever stops this process meanwhile. */
static int wait_through(int64_t timeout_ns)
{
    int result;
    do
        result = enter(0, 1, IORING_ENTER_GETEVENTS, timeout_ns);
    while (result == -EINTR);
    return result;
}

static void memory_that_is_not_there(void)
{
    begin();
    void *gone;
    CHECK_EQ(kernel->allocate(&gone, BUFFER_SIZE, 0), 0);
    kernel->unmap(gone, BUFFER_SIZE);
    struct io_uring_sqe *sqe = request(IORING_OP_RECV, pair[0], 1);
    sqe->addr = (uint64_t)(uintptr_t)gone;
    sqe->len = BUFFER_SIZE;
    submit();
    peer_says("hello");
    run_and_say();
    CHECK(strcmp(told, " 1=EFAULT |") == 0);
    close_all();
    expect_fault("a request's memory is not there");
}

static void a_ring_that_outlives_its_simulation(void)
{
    begin();
    struct ut_ring late = ring;
    close_all();
    sim_close();
    CHECK_EQ(kernel->close_fd(STDOUT_FILENO), 0);
    ut_ring_close(&late);
    CHECK(fcntl(STDOUT_FILENO, F_GETFD) >= 0);
}

static void a_wait_that_would_never_end(void)
{
    begin();
    sim_set_patience(5);
    receive(1, 0, 0);
    CHECK_EQ(enter(1, 1, IORING_ENTER_GETEVENTS, -1), 1); /* hides what its wait says */
    CHECK_EQ(wait_through(-1), -EDEADLK);
    CHECK(books().never_ending >= 1);
    /* One of a day is told, some times, as over. */
    uint64_t before_ns = sim_now_ns();
    CHECK_EQ(wait_through(86400000 * MS), -ETIME);
    CHECK(sim_now_ns() - before_ns >= 86400000 * MS);
    while (wait_through(86400000 * MS) == -ETIME)
        CHECK(books().never_ending < 10);
    CHECK_EQ(wait_through(86400000 * MS), -EDEADLK);
    close_all();
    sim_close();
}

static void *write_later(void *unused)
{
    usleep(20000);
    CHECK_EQ(write(pair[1], "x", 1), 1);
    return unused;
}

static void somebody_outside(void)
{
    begin();
    sim_set_patience(SOON_MS);
    pthread_t thread;
    receive(1, 0, 0);
    submit();
    CHECK_EQ(pthread_create(&thread, NULL, write_later, NULL), 0);
    uint64_t before_ns = sim_now_ns();
    CHECK_EQ(wait_through(-1), 0);
    CHECK_EQ(ut_ring_cq_ready(&ring), 1);
    CHECK_EQ(sim_now_ns(), before_ns);
    pthread_join(thread, NULL);
    close_all();
    CHECK_EQ(books().faults, 0);
    sim_close();
}

static void two_rings_on_one_file(void)
{
    begin();
    struct ut_ring first = ring, second;
    CHECK_EQ(ut_ring_open(&second, kernel, SQ, CQ, SQ), 0);
    ask(1, pair[0], POLLIN, false);
    submit();
    first = ring;
    ring = second;
    ask(2, pair[0], POLLIN, false);
    submit();
    peer_says("x");
    CHECK(ut_ring_wants_enter(&first));
    CHECK(ut_ring_wants_enter(&ring));
    run_and_say();
    second = ring;
    ring = first;
    run_and_say();
    CHECK(strcmp(told, " 2=1 | 1=1 |") == 0);
    ut_ring_close(&second);
    close_all();
    CHECK_EQ(books().faults, 0);
    sim_close();
}

#define DRAWN 200

/* What was drawn is had again by its list; kinds that are not allowed take nothing from it. */
static void drawn_choices_are_recorded(void)
{
    uint32_t first[DRAWN], again[DRAWN];
    unsigned different = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        unsigned values[DRAWN];
        sim_open(NULL, NULL, 0);
        sim_draw_choices(seed);
        sim_allow(~(1u << SIM_END));
        for (unsigned i = 0; i < DRAWN; i++) {
            CHECK_EQ(sim_choose(SIM_END, 5), 0);
            values[i] = sim_choose(i % SIM_END, 2 + i % 5);
            CHECK(values[i] < 2 + i % 5);
        }
        uint32_t count = sim_choices_made(first, DRAWN);
        CHECK(count <= DRAWN);
        CHECK(count == 0 || first[count - 1] != 0);
        sim_close();
        sim_open(NULL, first, count);
        for (unsigned i = 0; i < DRAWN; i++)
            CHECK_EQ(sim_choose(i % SIM_END, 2 + i % 5), values[i]);
        CHECK_EQ(sim_choices_made(again, DRAWN), count);
        CHECK(memcmp(first, again, count * sizeof *first) == 0);
        sim_close();
        different += count > 0;
    }
    CHECK(different >= 18); /* a seed may allow nothing */
}

static void run_books(void)
{
    RUN(the_books_balance);
    RUN(a_ring_may_be_closed_too_early);
    RUN(workers_are_counted);
    RUN(what_is_left_to_the_kernels_own_poll_is_counted);
    RUN(two_operations_with_one_token);
    RUN(a_buffer_returned_twice);
    RUN(what_is_not_ours);
    RUN(memory_that_is_not_there);
    RUN(a_ring_that_outlives_its_simulation);
    RUN(a_wait_that_would_never_end);
    RUN(somebody_outside);
    RUN(two_rings_on_one_file);
    RUN(drawn_choices_are_recorded);
}

static void an_old_kernel_refuses_rings(void)
{
    struct sim_switches switches = {.no_defer_taskrun = true};
    sim_open(&switches, NULL, 0);
    CHECK_EQ(ut_ring_open(&ring, &ut_kernel_sim, SQ, CQ, SQ), -EINVAL);
    sim_close();
}

static void run_variants(void)
{
    for (unsigned i = 0; i < sizeof variants / sizeof *variants; i++) {
        variant = &variants[i];
        check_run(variant->name, claims_it);
    }
    variant = NULL;
    RUN(an_old_kernel_refuses_rings);
}

int main(int argc, char **argv)
{
    uint64_t first = 1;
    unsigned scripts = RANDOM_SCRIPTS;
    if (argc == 3 && strcmp(argv[1], "seed") == 0) {
        first = strtoul(argv[2], NULL, 10);
        scripts = 1;
    } else if (argc == 2) {
        scripts = 1 + (unsigned)strtoul(argv[1], NULL, 10) / SEEDS_A_SCRIPT;
    }
    run_claims(first, scripts);
    run_variants();
    run_books();
    return CHECK_SUMMARY();
}
