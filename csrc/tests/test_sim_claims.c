/*
 * What the simulator claims of io_uring, shown on the kernel of this machine.
 *
 * Each claim is a script: it makes requests, lets things happen, and says what came of it. The
 * simulator, without choices, must say just what is written here; and so must Linux, where it
 * can be asked. (What a claim needs of a newer Linux is said with it, and asked first.)
 *
 * What sockets do is not claimed here: the files are the machine's on both sides, or those of the
 * network without a kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "sim_scripts.h"

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

static void nonempty(void)
{
    char large[BUFFER_SIZE + 10];
    memset(large, 'x', sizeof large);
    CHECK_EQ(kernel->write(pair[1], large, sizeof large), sizeof large);
    receive_into_buffers(1, MSG_DONTWAIT, 0);
    receive_into_buffers(2, MSG_DONTWAIT, 0);
    submit_and_say();
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
    say(" %s", name_of(enter(0, 1, IORING_ENTER_GETEVENTS, 1000000)));
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

/* A UNIX listener that is shut down tells that there is somebody, and nobody is there. An accept
 * that waits is tried again and again, until a thread has it: who waits in accept(2) is told. */
static void accept_of_shut(void)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length;
    own_name(listener, &length);
    CHECK_EQ(listen(listener, 1), 0);
    request(IORING_OP_ACCEPT, listener, 1);
    submit_and_say();
    kernel->shutdown(listener, SHUT_RD);
    wait_and_say();
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

/* An urgent byte ends a receive, and what lies behind it is something that is left: else who has
 * been told of all of it together would wait for more. */
static void input_behind_urgent(void)
{
    connect_over_loopback();
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit_and_say();
    peer_says("hello");
    CHECK_EQ(kernel->sendto(pair[1], "!", 1, MSG_OOB, NULL, 0), 1);
    peer_says("all");
    run_and_say();
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
    {"an accept of a listener that is shut down", accept_of_shut, 0,
     " | 1=EINVAL |"},
    {"shut down", shut_down, 0,
     " | 1=0 |"},
    {"reset behind data", reset_behind_data, VERSION(6, 17, 0), " 1=5b+ 1=ECONNRESET | |"},
    {"full receivers", full_receivers, 0, " | | 1=0 | 1 empty, 0 full"},
    {"end behind data", end_behind_data, 0, " 1=5bn 2=0n |"},
    {"input behind an urgent byte", input_behind_urgent, VERSION(6, 17, 0),
     " | 1=5bn+ 1=3b+ |"},
    {"order", order, VERSION(6, 18, 0),
     " 1=4 2=5b+ 3=4 | c2=0 | 2=ECANCELED |"},
};

static const struct claim *claim;

static void claims_it(void)
{
    sim_open(NULL, NULL, 0);
    if (has_network)
        sim_use_network(0);
    open_all(&ut_kernel_sim);
    claim->script();
    close_all();
    sim_close();
    check_told(claim->expected);
}

static void is_so(void)
{
    open_all(&ut_kernel_real);
    claim->script();
    close_all();
    check_told(claim->expected);
}

int main(void)
{
    for (unsigned i = 0; i < sizeof claims / sizeof *claims; i++) {
        claim = &claims[i];
        check_run(claim->name, claims_it);
        has_network = true;
        check_run(claim->name, claims_it);
        has_network = false;
        if (!can_be_shown())
            continue;
        if (linux_release() >= claim->since)
            check_run(claim->name, is_so);
        else
            printf("test_sim_claims.c: not shown here: %s, of Linux %u.%u.%u\n", claim->name,
                   claim->since / 1000000, claim->since / 1000 % 1000, claim->since % 1000);
    }
    return CHECK_SUMMARY();
}
