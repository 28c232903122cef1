/*
 * Echo with io_uring, in plain C: what the ring costs without any language on top
 *
 * The ring and the buffer ring are the engine's own (csrc/ring.h, csrc/bufring.h:
 * SINGLE_ISSUER, DEFER_TASKRUN, page-aligned buffers), everything above them is
 * as small as it can be. Each connection has one multishot receive armed for its
 * whole life. A buffer that comes with data is sent from where it is, without a
 * copy, and returned when the send has completed. A connection has one send in
 * flight; buffers that come meanwhile wait in its queue, first in, first out.
 * All sends that one drain gives rise to are submitted by the next enter, which
 * is also the one that waits.
 *
 * A connection is closed when its receive has terminated and its queue is empty,
 * so nothing is in flight on an fd that is used again, and a token needs no
 * generation.
 */
#define _GNU_SOURCE
#include "echo_common.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>

#include "bufring.h"
#include "ring.h"

#ifndef IORING_RECV_MULTISHOT
#define IORING_RECV_MULTISHOT (1U << 1) /* 6.0 */
#endif

#define SQ_ENTRIES 1024u
#define CQ_ENTRIES 8192u
#define GROUP 0
/* 64 connections with a message each never run dry, and more than that would cycle through
 * more of the cache. A 100 KiB message fits into one buffer: smaller pieces cost two to three
 * times as much. */
#define BUFFERS 64u
#define BUFFER_BYTES (128u << 10)

enum kind { ACCEPT, RECEIVE, SEND, END_OF_INPUT };

/* A buffer with data, on its way back to its peer. */
struct piece {
    uint32_t bytes, sent;
    int next; /* bid of the next one in the connection's queue, or -1 */
};

struct connection {
    int first, last; /* bids; -1: the queue is empty, and no send in flight */
    bool receiving;  /* a receive is armed, or waits for buffers */
    bool broken;     /* a send failed */
};

static struct connection connections[FDS_MAX];
static struct piece pieces[BUFFERS];
static struct ut_ring ring;
static struct ut_bufring bufring;
static char *pool;
static int dry[FDS_MAX]; /* fds whose receive ended for want of buffers */
static unsigned dry_count;

static struct io_uring_sqe *prep(enum kind kind, uint8_t opcode, int fd)
{
    struct io_uring_sqe *sqe;
    while ((sqe = ut_ring_get_sqe(&ring)) == NULL)
        if (ut_ring_enter(&ring, ut_ring_unsubmitted(&ring), 0, 0) < 0)
            die("io_uring_enter");
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->user_data = (uint64_t)fd << 8 | kind;
    return sqe;
}

static void prep_receive(int fd)
{
    struct io_uring_sqe *sqe = prep(RECEIVE, IORING_OP_RECV, fd);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->buf_group = GROUP;
    connections[fd].receiving = true;
}

static void prep_send(int fd)
{
    int bid = connections[fd].first;
    struct io_uring_sqe *sqe = prep(SEND, IORING_OP_SEND, fd);
    sqe->addr = (uint64_t)(uintptr_t)(pool + (size_t)bid * BUFFER_BYTES + pieces[bid].sent);
    sqe->len = pieces[bid].bytes - pieces[bid].sent;
    sqe->op_flags = MSG_NOSIGNAL | MSG_WAITALL;
}

static void prep_accept(int listener)
{
    struct io_uring_sqe *sqe = prep(ACCEPT, IORING_OP_ACCEPT, listener);
    sqe->op_flags = SOCK_CLOEXEC;
}

static void close_if_done(int fd)
{
    if (!connections[fd].receiving && connections[fd].first < 0)
        close(fd);
}

static void on_accept(int listener, int result)
{
    if (result >= 0) {
        connections[result] = (struct connection){.first = -1, .last = -1};
        prep_receive(result);
    } else if (result != -ECONNABORTED && result != -EINTR) {
        errno = -result;
        die("accept");
    }
    prep_accept(listener);
}

/* A buffer has gone round: give it back, and the next receive that ran dry its turn. */
static void return_first(struct connection *connection)
{
    int bid = connection->first;
    connection->first = pieces[bid].next;
    ut_bufring_return(&bufring, (uint32_t)bid * BUFFER_BYTES);
}

static void on_data(int fd, uint16_t bid, uint32_t bytes)
{
    struct connection *connection = &connections[fd];
    ut_bufring_lease(&bufring, bid);
    pieces[bid] = (struct piece){.bytes = bytes, .next = -1};
    if (connection->first >= 0) {
        pieces[connection->last].next = bid;
        connection->last = bid;
        return;
    }
    connection->first = connection->last = bid;
    if (connection->broken)
        return_first(connection);
    else
        prep_send(fd);
}

static void on_receive(int fd, int result, uint32_t flags)
{
    if (result > 0)
        on_data(fd, (uint16_t)(flags >> IORING_CQE_BUFFER_SHIFT), (uint32_t)result);
    if (flags & IORING_CQE_F_MORE)
        return;
    if (result > 0) {
        prep_receive(fd); /* the kernel ended it for reasons of its own */
    } else if (result == -ENOBUFS) {
        dry[dry_count++] = fd;
    } else {
        connections[fd].receiving = false;
        close_if_done(fd);
    }
}

static void on_send(int fd, int result)
{
    struct connection *connection = &connections[fd];
    struct piece *piece = &pieces[connection->first];
    if (result < 0) {
        connection->broken = true;
        shutdown(fd, SHUT_RDWR); /* ends the receive */
        while (connection->first >= 0)
            return_first(connection);
    } else if ((piece->sent += (uint32_t)result) == piece->bytes) {
        return_first(connection);
    }
    if (connection->first >= 0)
        prep_send(fd);
    else
        close_if_done(fd);
}

static void drain(void)
{
    unsigned count = ut_ring_cq_ready(&ring);
    for (unsigned i = 0; i < count; i++) {
        const struct io_uring_cqe *cqe = ut_ring_cqe(&ring, i);
        int fd = (int)(cqe->user_data >> 8);
        switch ((enum kind)(cqe->user_data & 0xff)) {
        case ACCEPT: on_accept(fd, cqe->res); break;
        case RECEIVE: on_receive(fd, cqe->res, cqe->flags); break;
        case SEND: on_send(fd, cqe->res); break;
        case END_OF_INPUT: exit(0);
        }
    }
    ut_ring_cq_advance(&ring, count);
    ut_bufring_commit(&bufring);
    /* A quarter of the buffers must be home, or a re-arm fails again at once. */
    while (dry_count > 0 && bufring.leased <= BUFFERS * 3 / 4)
        prep_receive(dry[--dry_count]);
}

int main(void)
{
    void *memory;
    if ((errno = -ut_ring_open(&ring, &ut_kernel_real, SQ_ENTRIES, CQ_ENTRIES, 64)) != 0)
        die("io_uring_setup");
    if ((errno = -ut_kernel_real.allocate(&memory, (size_t)BUFFERS * BUFFER_BYTES, 1)) != 0)
        die("buffers");
    pool = memory;
    if ((errno = -ut_bufring_open(&bufring, &ring, GROUP, BUFFERS, BUFFER_BYTES, pool, 0)) != 0)
        die("buffer ring");
    prep_accept(listen_and_announce(0));
    prep(END_OF_INPUT, IORING_OP_POLL_ADD, STDIN_FILENO)->op_flags = POLLIN | POLLHUP;
    for (;;) {
        int result = ut_ring_enter(&ring, ut_ring_unsubmitted(&ring), 1, -1);
        if (result < 0 && result != -EINTR) {
            errno = -result;
            die("io_uring_enter");
        }
        drain();
    }
}
