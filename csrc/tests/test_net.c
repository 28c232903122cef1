/*
 * The network without a kernel, beside the real one: each claim, on both.
 *
 * Stories are here; random calls on a few sockets of one kind are in test_net_scripts.c. Of both
 * sides every answer is compared, errno, flags, names, control messages and each byte; and after
 * each call, of every socket, poll(2)'s bits, FIONREAD, TCP's state, and who was woken with which
 * key (net_sides.h). The limits of UNIX sockets and of UDP's receivers are hit at the same byte.
 *
 * What is not the same by design is not compared, but what must hold on both:
 *   TCP's limits: how much a full connection holds, and how much must be read until its writer
 *   is told, depend on the layout of Linux's buffers and on its timers. Both take a part of a
 *   large send, then refuse; are not writable then; tell nobody when a tenth has been read;
 *   and tell when all has been.
 *   Wake-ups of TCP that come together: the real ones may be told one by one, and later. All
 *   its sockets have TCP_NODELAY, and are made to acknowledge at once.
 *   SIOCOUTQ of TCP: what is not acknowledged at this moment.
 *
 * What is not shown on the real kernel:
 *   choices (delays, losses, short sends, order, no memory): it cannot be told to make them.
 *   Whatever is chosen, streams must bring all bytes in order, datagrams come whole, nobody
 *   wait for ever, and the books balance.
 *   Another process on the same file: it is a receive by another descriptor, which the kernel
 *   does not tell from ours.
 *   A connect that nobody answers: it takes a minute, and a network.
 *   A sender of UDP whose memory is full: loopback is never slow.
 *   Which of several SO_REUSEPORT listeners is taken: a hash of the port.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/net_tstamp.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "net_sides.h"

/* ---- stories: what the scripts may have met, said out loud ------------------- */

static void story(void)
{
    CHECK_EQ(sides_begin(), 0);
}

static struct sides_send some(size_t size, int flags, int to)
{
    return (struct sides_send){.size = size, .flags = flags, .to = to};
}

static void a_half_close_leaves_the_other_half(void)
{
    for (int family = AF_UNIX; family <= AF_INET; family++) {
        story();
        sides_pair(0, 1, family, SOCK_STREAM);
        CHECK_EQ(sides_write(0, 10), 10);
        CHECK_EQ(sides_shutdown(0, SHUT_WR), 0);
        CHECK(sides_bits(1) & POLLRDHUP);
        CHECK(!(sides_bits(1) & POLLHUP));
        CHECK_EQ(sides_receive(1, 100, 0), 10);
        CHECK_EQ(sides_receive(1, 100, 0), 0);
        CHECK_EQ(sides_receive(1, 100, 0), 0);
        CHECK_EQ(sides_write(0, 1), -EPIPE);
        CHECK_EQ(sides_write(1, 5), 5);
        CHECK_EQ(sides_receive(0, 100, 0), 5);
        CHECK_EQ(sides_shutdown(1, SHUT_WR), 0);
        CHECK(sides_bits(0) & POLLHUP);
        CHECK(sides_bits(1) & POLLHUP);
        CHECK_EQ(sides_receive(0, 100, 0), 0);
        sides_end();
    }
}

static void who_shuts_his_reading_goes_on_to_receive_by_tcp(void)
{
    story();
    sides_pair(0, 1, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_shutdown(1, SHUT_RD), 0);
    CHECK_EQ(sides_receive(1, 10, 0), 0);
    CHECK_EQ(sides_write(0, 10), 10);
    CHECK_EQ(sides_receive(1, 100, 0), 10);
    CHECK_EQ(sides_receive(1, 100, 0), 0);
    sides_end();
    story();
    sides_pair(0, 1, AF_UNIX, SOCK_STREAM);
    CHECK_EQ(sides_shutdown(1, SHUT_RD), 0);
    CHECK_EQ(sides_write(0, 10), -EPIPE);
    sides_end();
}

static void a_reset_comes_behind_the_data(void)
{
    for (int way = 0; way < 2; way++) {
        story();
        sides_pair(0, 1, AF_INET, SOCK_STREAM);
        CHECK_EQ(sides_write(1, 3), 3);
        CHECK_EQ(sides_write(0, 100), 100);
        if (way == 0) { /* with bytes unread */
            sides_close(0);
        } else {
            CHECK_EQ(sides_receive(0, 10, 0), 3);
            sides_linger(0, 0);
            sides_close(0);
        }
        CHECK(sides_woken(1) & POLLERR);
        CHECK(sides_bits(1) & POLLERR);
        CHECK_EQ(sides_receive(1, 60, 0), 60);
        CHECK_EQ(sides_receive(1, 60, 0), 40);
        CHECK_EQ(sides_receive(1, 60, 0), -ECONNRESET);
        CHECK_EQ(sides_receive(1, 60, 0), 0);
        CHECK_EQ(sides_write(1, 1), -EPIPE);
        sides_end();
    }
}

static void a_reset_takes_what_was_not_yet_sent(void)
{
    story();
    sides_pair(0, 1, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_write(0, 100), 100);
    sides_linger(1, 0);
    sides_close(1);
    CHECK_EQ(sides_write(0, 1), -ECONNRESET);
    CHECK_EQ(sides_write(0, 1), -EPIPE);
    sides_end();
}

static void bytes_for_who_has_closed_reset(void)
{
    story();
    sides_pair(0, 1, AF_INET, SOCK_STREAM);
    sides_close(1);
    CHECK(!(sides_bits(0) & POLLERR));
    CHECK_EQ(sides_write(0, 1), 1);
    CHECK(sides_bits(0) & POLLERR);
    CHECK_EQ(sides_receive(0, 10, 0), 0); /* whose end it has seen: no error tells it */
    CHECK_EQ(sides_write(0, 1), -EPIPE);
    CHECK_EQ(sides_write(0, 1), -EPIPE);
    sides_end();
}

static void bytes_for_who_has_shut_both_reset_both(void)
{
    for (int is_urgent = 0; is_urgent < 2; is_urgent++) {
        story();
        sides_pair(0, 1, AF_INET, SOCK_STREAM);
        CHECK_EQ(sides_shutdown(0, SHUT_RDWR), 0);
        CHECK_EQ(sides_send(1, some(5, is_urgent ? MSG_OOB : 0, -1)), 5);
        /* The mark has come, though what it stands in has not. */
        CHECK_EQ((sides_bits(0) & POLLPRI) != 0, is_urgent);
        CHECK_EQ(sides_get(0, SOL_SOCKET, SO_ERROR), ECONNRESET);
        CHECK_EQ(sides_get(1, SOL_SOCKET, SO_ERROR), EPIPE);
        CHECK_EQ(sides_shutdown(0, SHUT_RDWR), -ENOTCONN);
        sides_end();
    }
}

static void unread_bytes_reset_a_unix_stream_after_the_data(void)
{
    story();
    sides_pair(0, 1, AF_UNIX, SOCK_STREAM);
    CHECK_EQ(sides_write(1, 3), 3);
    CHECK_EQ(sides_write(0, 100), 100);
    sides_close(0);
    CHECK_EQ(sides_receive(1, 200, 0), 100);
    CHECK_EQ(sides_receive(1, 200, 0), -ECONNRESET);
    CHECK_EQ(sides_receive(1, 200, 0), 0);
    CHECK_EQ(sides_write(1, 1), -EPIPE);
    sides_end();
}

/* Linux's: what waits for more looks at the error, takes it, and tells what it has. */
static void a_receive_that_wants_more_loses_the_error(void)
{
    for (int waits = 0; waits < 2; waits++) {
        story();
        sides_pair(0, 1, AF_UNIX, SOCK_STREAM);
        CHECK_EQ(sides_write(1, 3), 3);
        CHECK_EQ(sides_write(0, 100), 100);
        sides_close(0);
        CHECK_EQ(sides_receive(1, 200, waits ? MSG_WAITALL : 0), 100);
        CHECK_EQ((sides_bits(1) & POLLERR) != 0, !waits);
        CHECK_EQ(sides_receive(1, 200, 0), waits ? 0 : -ECONNRESET);
        sides_end();
    }
}

static void an_urgent_byte_stops_a_receive_and_is_skipped(void)
{
    for (int family = AF_UNIX; family <= AF_INET; family++) {
        story();
        sides_pair(0, 1, family, SOCK_STREAM);
        CHECK_EQ(sides_send(0, some(6, MSG_OOB, -1)), 6);
        CHECK(sides_bits(1) & POLLPRI);
        CHECK_EQ(sides_write(0, 4), 4);
        CHECK_EQ(sides_mark(1), 0);
        CHECK_EQ(sides_receive(1, 100, 0), 5);
        CHECK_EQ(sides_mark(1), 1);
        CHECK_EQ(sides_receive(1, 100, MSG_OOB | MSG_PEEK), 1);
        CHECK_EQ(sides_receive(1, 100, MSG_OOB), 1);
        CHECK(!(sides_bits(1) & POLLPRI));
        CHECK_EQ(sides_receive(1, 100, MSG_OOB), -EINVAL);
        CHECK_EQ(sides_receive(1, 100, 0), 4);
        CHECK_EQ(sides_mark(1), 0);
        /* Not read beside the stream: thrown away. */
        CHECK_EQ(sides_send(0, some(1, MSG_OOB, -1)), 1);
        CHECK_EQ(sides_write(0, 2), 2);
        CHECK_EQ(sides_receive(1, 100, 0), 2);
        CHECK(!(sides_bits(1) & POLLPRI));
        /* In line: a byte like others, but for the mark. */
        CHECK_EQ(sides_set(1, SOL_SOCKET, SO_OOBINLINE, 1), 0);
        CHECK_EQ(sides_send(0, some(3, MSG_OOB, -1)), 3);
        CHECK_EQ(sides_receive(1, 100, 0), 2);
        CHECK_EQ(sides_receive(1, 100, 0), 1);
        sides_end();
    }
}

static void a_lone_urgent_byte_is_readable_where_nothing_is(void)
{
    story();
    sides_pair(0, 1, AF_UNIX, SOCK_STREAM);
    CHECK_EQ(sides_send(0, some(1, MSG_OOB, -1)), 1);
    CHECK_EQ(sides_receive(1, 10, MSG_OOB), 1);
    CHECK(sides_bits(1) & POLLIN); /* its segment is still there, empty */
    CHECK_EQ(sides_receive(1, 10, 0), -EAGAIN);
    CHECK(!(sides_bits(1) & POLLIN));
    sides_end();
    story();
    sides_pair(0, 1, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_send(0, some(1, MSG_OOB, -1)), 1);
    CHECK(!(sides_bits(1) & POLLIN)); /* TCP knows better: a receive would skip it */
    CHECK(sides_bits(1) & POLLPRI);
    CHECK(sides_woken(1) != 0);
    CHECK_EQ(sides_receive(1, 10, 0), -EAGAIN);
    sides_end();
}

static void low_water_counts_for_tcp_only(void)
{
    story();
    sides_pair(0, 1, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_set(1, SOL_SOCKET, SO_RCVLOWAT, 10), 0);
    CHECK_EQ(sides_write(0, 9), 9);
    CHECK(!(sides_bits(1) & POLLIN));
    CHECK_EQ(sides_woken(1), 0);
    CHECK_EQ(sides_write(0, 1), 1);
    CHECK(sides_bits(1) & POLLIN);
    CHECK(sides_woken(1) & POLLIN);
    CHECK_EQ(sides_receive(1, 3, 0), 3);
    CHECK(!(sides_bits(1) & POLLIN));
    CHECK_EQ(sides_receive(1, 30, 0), 7); /* it is no limit for a receive that does not wait */
    CHECK_EQ(sides_write(0, 5), 5);
    CHECK_EQ(sides_set(1, SOL_SOCKET, SO_RCVLOWAT, 2), 0);
    CHECK(sides_woken(1) & POLLIN);
    sides_end();
    story();
    sides_pair(0, 1, AF_UNIX, SOCK_STREAM);
    CHECK_EQ(sides_set(1, SOL_SOCKET, SO_RCVLOWAT, 10), 0);
    CHECK_EQ(sides_write(0, 9), 9);
    CHECK(sides_bits(1) & POLLIN);
    sides_end();
}

/* At the real side, a ms each: what comes over loopback comes when some processor has the time. */
#define LOOKS_MAX 10000

static int send_from(int side, int slot, size_t *place, size_t size)
{
    static char data[1 << 20];
    for (size_t i = 0; i < size; i++)
        data[i] = sides_byte_at(*place + i);
    int sent = sides_one_send(side, slot, data, size);
    *place += sent > 0 ? (size_t)sent : 0;
    return sent;
}

static int receive_to(int side, int slot, size_t *place, size_t room)
{
    static char data[1 << 20];
    int got = sides_one_receive(side, slot, data, room);
    for (int i = 0; i < got; i++)
        CHECK_EQ(data[i], sides_byte_at(*place + (size_t)i));
    *place += got > 0 ? (size_t)got : 0;
    return got;
}

/* Writable is who has taken two thirds of his memory at most. */
static void check_writable(int side)
{
    size_t before, taken, limit;
    for (int tries = 0; tries < 20; tries++) {
        sides_one_memory(side, 0, &before, &limit);
        bool is_writable = (sides_one_bits(side, 0) & POLLOUT) != 0;
        sides_one_memory(side, 0, &taken, &limit);
        if (taken != before)
            continue; /* the real one has moved between the looks */
        CHECK_EQ(is_writable, taken < limit && limit - taken >= taken / 2);
        return;
    }
}

/* Figures are Linux's own here, and ours are ours: what both must show. */
static void fill_and_drain(int side, size_t send_limit, size_t receive_limit)
{
    size_t sent = 0, received = 0;
    /* By and by, as long as that goes; then at once. */
    for (int tries = 0; tries < 200; tries++) {
        int result = send_from(side, 0, &sent, send_limit / 20);
        CHECK(result > 0 || result == -EAGAIN);
        check_writable(side);
    }
    while (received < sent) {
        CHECK(receive_to(side, 1, &received, receive_limit) != 0);
        sides_one_woken(side, 0);
    }
    for (int round = 0; round < 2; round++) {
        size_t before = sent - received;
        int first = send_from(side, 0, &sent, 1 << 20);
        CHECK(first > 0 && first < 1 << 20); /* short */
        /* As long as an acknowledgement may wait. */
        int enough = side == 0 ? 50 : 2;
        for (int refused = 0, tries = 0; refused < enough && tries < LOOKS_MAX; tries++) {
            bool is_full = send_from(side, 0, &sent, 1 << 20) == -EAGAIN;
            sides_one_woken(side, 0); /* which gives the real one time to take more */
            refused = is_full && !(sides_one_bits(side, 0) & POLLOUT) ? refused + 1 : 0;
        }
        CHECK_EQ(send_from(side, 0, &sent, 1 << 20), -EAGAIN);
        size_t full = sent - received;
        CHECK(full >= send_limit / 2 && full <= 2 * send_limit + 2 * receive_limit);
        CHECK(before < full);
        CHECK(!(sides_one_bits(side, 0) & POLLOUT));
        sides_one_woken(side, 0);
        /* A little room is no news, not even to the sender's kernel. */
        int queued = sides_one_queued(side, 1);
        size_t read = received;
        while (received + full < sent + full / 10)
            CHECK(receive_to(side, 1, &received, full / 40 + 1) > 0);
        CHECK(!(sides_one_woken(side, 0) & POLLOUT));
        CHECK(!(sides_one_bits(side, 0) & POLLOUT));
        CHECK_EQ(sides_one_queued(side, 1), queued - (int)(received - read));
        unsigned woken = 0;
        for (int idle = 0; received < sent && idle < LOOKS_MAX;) {
            int got = receive_to(side, 1, &received, full / 40 + 1);
            CHECK(got > 0 || got == -EAGAIN);
            if (got == -EAGAIN || !(woken & POLLOUT))
                woken |= sides_one_woken(side, 0);
            idle = got > 0 ? 0 : idle + 1;
            check_writable(side);
        }
        CHECK_EQ(received, sent);
        CHECK(woken & POLLOUT);
        CHECK(sides_one_bits(side, 0) & POLLOUT);
    }
}

static void what_tcp_takes_and_whom_it_tells_of_room(void)
{
    static const int limits[][2] = {{4608, 4608}, {16384, 16384}, {65536, 65536}};
    for (unsigned i = 0; i < sizeof limits / sizeof *limits; i++)
        for (int side = 0; side < 2; side++) {
            check_note("limits %d, %d, side %d", limits[i][0], limits[i][1], side);
            story();
            sides_open(2, AF_INET, SOCK_STREAM);
            CHECK_EQ(sides_set(2, SOL_SOCKET, SO_RCVBUF, limits[i][1]), 0);
            CHECK_EQ(sides_bind(2), 0);
            CHECK_EQ(sides_listen(2, 1), 0);
            sides_open(0, AF_INET, SOCK_STREAM);
            CHECK_EQ(sides_set(0, SOL_SOCKET, SO_SNDBUF, limits[i][0]), 0);
            sides_connect(0, 2);
            CHECK_EQ(sides_accept(2, 1), 0);
            CHECK_EQ(sides_get(1, SOL_SOCKET, SO_RCVBUF), 2 * limits[i][1]); /* inherited */
            fill_and_drain(side, 2 * (size_t)limits[i][0], 2 * (size_t)limits[i][1]);
            sides_rules.no_wakes = true;
            sides_end();
        }
}

static void nobody_listens(void)
{
    story();
    sides_open(0, AF_INET, SOCK_STREAM);
    sides_open(1, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_bind(1), 0);
    CHECK(sides_bits(0) & POLLHUP);
    CHECK_EQ(sides_connect(0, 1), -EINPROGRESS);
    CHECK(sides_bits(0) & POLLERR);
    CHECK_EQ(sides_connect(0, 1), -ECONNREFUSED);
    CHECK_EQ(sides_connect(0, 1), -EINPROGRESS); /* and once more */
    CHECK_EQ(sides_get(0, SOL_SOCKET, SO_ERROR), ECONNREFUSED);
    CHECK_EQ(sides_connect(0, 1), -ECONNABORTED);
    sides_end();
    story();
    sides_open(0, AF_UNIX, SOCK_STREAM);
    sides_open(1, AF_UNIX, SOCK_STREAM);
    CHECK_EQ(sides_bind(1), 0);
    CHECK_EQ(sides_connect(0, 1), -ECONNREFUSED);
    sides_end();
}

static void a_backlog_takes_one_more_and_no_more(void)
{
    story();
    sides_open(0, AF_UNIX, SOCK_STREAM);
    CHECK_EQ(sides_bind(0), 0);
    CHECK_EQ(sides_listen(0, 1), 0);
    for (int i = 1; i < 4; i++)
        sides_open(i, AF_UNIX, SOCK_STREAM);
    CHECK_EQ(sides_connect(1, 0), 0);
    CHECK_EQ(sides_connect(2, 0), 0);
    CHECK_EQ(sides_connect(3, 0), -EAGAIN);
    CHECK_EQ(sides_write(1, 5), 5); /* before anybody has accepted it */
    CHECK_EQ(sides_accept(0, 4), 0);
    CHECK_EQ(sides_receive(4, 10, 0), 5);
    CHECK_EQ(sides_connect(3, 0), 0);
    sides_end();
}

/* The real one sends its SYN again after a second. */
static void a_full_backlog_of_tcp_drops_and_is_tried_again(void)
{
    story();
    sides_open(0, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_bind(0), 0);
    CHECK_EQ(sides_listen(0, 0), 0);
    sides_open(1, AF_INET, SOCK_STREAM);
    sides_open(2, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_connect(1, 0), -EINPROGRESS);
    CHECK_EQ(sides_connect(2, 0), -EINPROGRESS);
    CHECK_EQ(sides_connect(2, 0), -EALREADY);
    CHECK(!(sides_bits(2) & (POLLOUT | POLLERR | POLLHUP)));
    CHECK_EQ(sides_write(2, 1), -EAGAIN);
    CHECK_EQ(sides_accept(0, 3), 0);
    CHECK_EQ(net_next_ns(), 1000000000);
    sides_later(1000000000);
    CHECK(sides_bits(2) & POLLOUT);
    CHECK_EQ(sides_connect(2, 0), 0);
    CHECK_EQ(sides_accept(0, 4), 0);
    sides_end();
}

static void who_has_gone_before_he_is_accepted_is_accepted(void)
{
    for (int family = AF_UNIX; family <= AF_INET; family++)
        for (int is_reset = 0; is_reset < 2; is_reset++) {
            story();
            sides_open(0, family, SOCK_STREAM);
            CHECK_EQ(sides_bind(0), 0);
            CHECK_EQ(sides_listen(0, 3), 0);
            sides_open(1, family, SOCK_STREAM);
            sides_connect(1, 0);
            CHECK_EQ(sides_write(1, 4), 4);
            if (is_reset)
                sides_linger(1, 0);
            sides_close(1);
            CHECK(sides_bits(0) & POLLIN);
            CHECK_EQ(sides_accept(0, 2), 0);
            CHECK_EQ(sides_receive(2, 10, 0), 4);
            CHECK_EQ(sides_receive(2, 10, 0), is_reset && family == AF_INET ? -ECONNRESET : 0);
            sides_names(2);
            sides_end();
        }
}

static void a_listener_that_goes_resets_who_waits(void)
{
    for (int family = AF_UNIX; family <= AF_INET; family++) {
        story();
        sides_open(0, family, SOCK_STREAM);
        CHECK_EQ(sides_bind(0), 0);
        CHECK_EQ(sides_listen(0, 3), 0);
        sides_open(1, family, SOCK_STREAM);
        sides_connect(1, 0);
        sides_close(0);
        CHECK(sides_bits(1) & POLLERR);
        CHECK_EQ(sides_receive(1, 10, 0), -ECONNRESET);
        sides_end();
    }
}

static void a_listener_that_is_shut_listens_no_more(void)
{
    story();
    sides_open(0, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_bind(0), 0);
    CHECK_EQ(sides_listen(0, 3), 0);
    sides_open(1, AF_INET, SOCK_STREAM);
    sides_connect(1, 0);
    CHECK_EQ(sides_shutdown(0, SHUT_RD), 0);
    CHECK_EQ(sides_accept(0, 2), -EINVAL);
    CHECK_EQ(sides_get(1, SOL_SOCKET, SO_ERROR), ECONNRESET);
    sides_end();
}

static void fast_open_without_a_cookie_is_a_plain_connect(void)
{
    story();
    sides_open(0, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_bind(0), 0);
    CHECK_EQ(sides_listen(0, 3), 0);
    sides_open(1, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_set(1, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1), 0);
    CHECK_EQ(sides_connect(1, 0), -EINPROGRESS);
    CHECK_EQ(sides_connect(1, 0), 0);
    CHECK_EQ(sides_write(1, 5), 5);
    CHECK_EQ(sides_accept(0, 2), 0);
    CHECK_EQ(sides_receive(2, 10, 0), 5);
    sides_end();
}

static void a_connect_forgets_an_error(void)
{
    story();
    sides_pair(0, 1, AF_INET, SOCK_STREAM);
    sides_open(2, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_bind(2), 0);
    CHECK_EQ(sides_listen(2, 1), 0);
    CHECK_EQ(sides_connect(0, -1), 0);
    CHECK(sides_bits(0) & POLLERR);
    CHECK_EQ(sides_connect(0, 2), -EINPROGRESS);
    CHECK(!(sides_bits(0) & POLLERR));
    CHECK_EQ(sides_connect(0, 2), 0);
    sides_end();
}

static void what_is_disconnected_can_be_connected_again(void)
{
    story();
    sides_pair(0, 1, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_write(0, 5), 5);
    CHECK_EQ(sides_connect(0, -1), 0);
    CHECK_EQ(sides_get(0, SOL_SOCKET, SO_ERROR), ECONNRESET);
    CHECK_EQ(sides_receive(1, 10, 0), 5);
    CHECK_EQ(sides_receive(1, 10, 0), -ECONNRESET);
    sides_open(2, AF_INET, SOCK_STREAM);
    CHECK_EQ(sides_bind(2), 0);
    CHECK_EQ(sides_listen(2, 1), 0);
    CHECK_EQ(sides_connect(0, 2), -EINPROGRESS);
    CHECK_EQ(sides_connect(0, 2), 0);
    CHECK_EQ(sides_accept(2, 3), 0);
    CHECK_EQ(sides_write(0, 7), 7);
    CHECK_EQ(sides_receive(3, 10, 0), 7);
    sides_end();
}

/* ---- datagrams --------------------------------------------------------------- */

static void one_full_receiver_refuses_all_and_wakes_all(void)
{
    story();
    sides_open(0, AF_UNIX, SOCK_DGRAM);
    CHECK_EQ(sides_bind(0), 0);
    for (int i = 1; i < 5; i++) {
        sides_open(i, AF_UNIX, SOCK_DGRAM);
        CHECK_EQ(sides_connect(i, 0), 0);
    }
    for (int i = 0; i < 11; i++)
        CHECK_EQ(sides_write(1, 10), 10);
    for (int i = 1; i < 5; i++) {
        CHECK_EQ(sides_write(i, 10), -EAGAIN);
        CHECK(!(sides_bits(i) & POLLOUT));
    }
    CHECK_EQ(sides_receive(0, 100, 0), 10);
    for (int i = 1; i < 5; i++)
        CHECK(sides_woken(i) & POLLOUT); /* all of them, and there is room for one */
    CHECK_EQ(sides_write(3, 10), 10);
    for (int i = 1; i < 5; i++)
        CHECK_EQ(sides_write(i, 10), -EAGAIN);
    sides_end();
}

static void an_attempt_alone_stands_in_the_line(void)
{
    story();
    sides_open(0, AF_UNIX, SOCK_DGRAM);
    CHECK_EQ(sides_bind(0), 0);
    for (int i = 1; i < 4; i++) {
        sides_open(i, AF_UNIX, SOCK_DGRAM);
        CHECK_EQ(sides_connect(i, 0), 0);
    }
    sides_rules.no_bits = true; /* from now on nobody looks */
    for (int i = 0; i < 11; i++)
        CHECK_EQ(sides_write(2, 10), 10);
    CHECK_EQ(sides_write(1, 10), -EAGAIN);
    CHECK_EQ(sides_receive(0, 100, 0), 10);
    CHECK(sides_woken(1) & POLLOUT);
    CHECK_EQ(sides_woken(3), 0); /* has neither looked nor tried */
    CHECK_EQ(sides_receive(0, 100, 0), 10);
    CHECK_EQ(sides_woken(1), 0); /* once is enough */
    sides_end();
}

static void who_names_a_full_receiver_is_writable_and_refused(void)
{
    story();
    sides_open(0, AF_UNIX, SOCK_DGRAM);
    CHECK_EQ(sides_bind(0), 0);
    sides_open(1, AF_UNIX, SOCK_DGRAM);
    for (int i = 0; i < 11; i++)
        CHECK_EQ(sides_send(1, some(10, 0, 0)), 10);
    CHECK_EQ(sides_send(1, some(10, 0, 0)), -EAGAIN);
    CHECK(sides_bits(1) & POLLOUT);
    CHECK(sides_woken(1) & POLLOUT); /* by its own attempt: an echo */
    CHECK_EQ(sides_receive(0, 100, 0), 10);
    CHECK_EQ(sides_send(1, some(10, 0, 0)), 10);
    sides_end();
}

static void a_pair_of_datagrams_has_no_limit_but_memory(void)
{
    story();
    sides_pair(0, 1, AF_UNIX, SOCK_DGRAM);
    CHECK_EQ(sides_set(0, SOL_SOCKET, SO_SNDBUF, 20000), 0);
    int sent = 0;
    while (sides_write(0, 100) == 100)
        sent++;
    CHECK_EQ(sent, 40000 / 768 + 1);
    CHECK(!(sides_bits(0) & POLLOUT));
    int read = 0;
    while (!(sides_bits(0) & POLLOUT)) {
        CHECK_EQ(sides_receive(1, 100, 0), 100);
        read++;
    }
    CHECK(sides_woken(0) & POLLOUT);
    CHECK(read >= sent * 3 / 4); /* only a quarter may be taken */
    CHECK_EQ(sides_send(0, some(40000, 0, -1)), -EMSGSIZE);
    sides_end();
}

static void a_receiver_that_dies_is_lost_once(void)
{
    story();
    sides_open(0, AF_UNIX, SOCK_DGRAM);
    CHECK_EQ(sides_bind(0), 0);
    sides_open(1, AF_UNIX, SOCK_DGRAM);
    CHECK_EQ(sides_connect(1, 0), 0);
    for (int i = 0; i < 11; i++)
        CHECK_EQ(sides_write(1, 10), 10);
    CHECK_EQ(sides_write(1, 10), -EAGAIN);
    sides_close(0);
    CHECK(sides_woken(1) & POLLOUT);
    CHECK(sides_bits(1) & POLLOUT);
    CHECK_EQ(sides_write(1, 10), -ECONNREFUSED);
    CHECK_EQ(sides_write(1, 10), -ENOTCONN);
    sides_end();
}

static void who_connects_elsewhere_resets_his_old_peer(void)
{
    story();
    for (int i = 0; i < 3; i++) {
        sides_open(i, AF_UNIX, SOCK_DGRAM);
        CHECK_EQ(sides_bind(i), 0);
    }
    CHECK_EQ(sides_connect(0, 1), 0);
    CHECK_EQ(sides_connect(1, 0), 0);
    CHECK_EQ(sides_send(2, some(1, 0, 0)), -EPERM); /* they are a pair */
    CHECK_EQ(sides_write(1, 10), 10);
    CHECK_EQ(sides_connect(0, 2), 0);
    CHECK_EQ(sides_receive(0, 10, 0), -EAGAIN); /* what the old one had sent is lost */
    CHECK_EQ(sides_receive(1, 10, 0), -ECONNRESET);
    sides_end();
}

static void descriptors_and_credentials_are_passed(void)
{
    story();
    sides_pair(0, 1, AF_UNIX, SOCK_STREAM);
    sides_pair(2, 3, AF_UNIX, SOCK_STREAM);
    struct sides_send what = {.size = 5, .to = -1, .rights = {2, -1}, .rights_count = 2};
    CHECK_EQ(sides_send(0, what), 5);
    CHECK_EQ(sides_write(0, 4), 4);
    sides_close(2); /* but it lies in the message */
    CHECK_EQ(sides_write(3, 1), 1);
    CHECK(!(sides_bits(3) & POLLHUP));
    CHECK_EQ(sides_receive(1, 3, MSG_PEEK), 3);
    CHECK_EQ(sides_received.rights, 2);
    CHECK_EQ(sides_receive(1, 100, 0), 5); /* it ends behind what brought them */
    CHECK_EQ(sides_received.rights, 2);
    CHECK(sides_bits(3) & POLLHUP); /* now it is closed, unread */
    CHECK_EQ(sides_receive(3, 1, 0), -ECONNRESET);
    CHECK_EQ(sides_receive(1, 100, 0), 4);
    CHECK_EQ(sides_send(0, what = (struct sides_send){.size = 3, .to = -1, .rights = {-1, -1, -1},
                                                      .rights_count = 3}), 3);
    CHECK_EQ(sides_receive_with(1, 10, 0, CMSG_LEN(2 * sizeof(int))), 3);
    CHECK_EQ(sides_received.rights, 2);
    CHECK(sides_received.flags & MSG_CTRUNC);
    CHECK_EQ(sides_send(0, what), 3);
    CHECK_EQ(sides_receive_with(1, 10, 0, 0), 3);
    CHECK_EQ(sides_received.flags, MSG_CTRUNC);
    CHECK_EQ(sides_set(1, SOL_SOCKET, SO_PASSCRED, 1), 0);
    CHECK_EQ(sides_write(0, 3), 3);
    CHECK_EQ(sides_receive(1, 10, 0), 3);
    CHECK_EQ(sides_received.control, CMSG_SPACE(sizeof(struct ucred)));
    sides_end();
}

static void credentials_are_given_or_added(void)
{
    for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++) {
        story();
        sides_pair(0, 1, AF_UNIX, type);
        struct sides_send what = {.size = 3, .to = -1, .has_credentials = true};
        CHECK_EQ(sides_send(0, what), 3); /* given, but nobody has asked */
        CHECK_EQ(sides_write(0, 4), 4);   /* none */
        CHECK_EQ(sides_set(1, SOL_SOCKET, SO_PASSCRED, 1), 0);
        CHECK_EQ(sides_write(0, 5), 5); /* added */
        CHECK_EQ(sides_receive(1, 100, 0), 3);
        CHECK_EQ(sides_receive(1, 100, 0), 4); /* a stream glues no different writers */
        CHECK_EQ(sides_received.control, CMSG_SPACE(sizeof(struct ucred))); /* of nobody */
        CHECK_EQ(sides_receive(1, 100, 0), 5);
        what.rights_count = 1;
        what.rights[0] = -1;
        CHECK_EQ(sides_send(0, what), 3);
        CHECK_EQ(sides_receive_with(1, 100, 0, 40), 3);
        CHECK(sides_received.flags & MSG_CTRUNC);
        if (type == SOCK_STREAM) {
            CHECK_EQ(sides_shutdown(0, SHUT_WR), 0);
            CHECK_EQ(sides_receive(1, 100, 0), 0); /* of no bytes at all: zeros */
            CHECK_EQ(sides_received.control, CMSG_SPACE(sizeof(struct ucred)));
        }
        sides_end();
    }
}

static void garbage_is_found(void)
{
    story();
    sides_pair(0, 1, AF_UNIX, SOCK_STREAM);
    sides_pair(2, 3, AF_UNIX, SOCK_STREAM);
    CHECK_EQ(sides_send(0, (struct sides_send){.size = 1, .to = -1, .rights = {0, 1, 2},
                                               .rights_count = 3}), 1);
    /* Linux looks when any process closes a UNIX socket: until we do, all is possible. */
    sides_rules = (struct sides_rules){.no_bits = true, .no_wakes = true};
    sides_close(2);
    sides_close(0);
    sides_close(1); /* reached only by what lies in its own queue */
    sides_open(4, AF_UNIX, SOCK_STREAM);
    CHECK(!(sides_bits(3) & POLLHUP));
    sides_rules = (struct sides_rules){.no_wakes = true};
    sides_close(4);
    CHECK(sides_bits(3) & POLLHUP);
    sides_end();
}

static void seqpackets_keep_their_ends(void)
{
    story();
    sides_pair(0, 1, AF_UNIX, SOCK_SEQPACKET);
    CHECK_EQ(sides_write(0, 10), 10);
    CHECK_EQ(sides_write(0, 0), 0);
    CHECK_EQ(sides_write(0, 20), 20);
    CHECK_EQ(sides_receive(1, 5, 0), 5);
    CHECK(sides_received.flags & MSG_TRUNC);
    CHECK_EQ(sides_receive(1, 50, 0), 0);
    CHECK_EQ(sides_receive(1, 5, MSG_TRUNC | MSG_PEEK), 20);
    CHECK_EQ(sides_receive(1, 50, 0), 20);
    CHECK_EQ(sides_receive(1, 50, 0), -EAGAIN);
    CHECK_EQ(sides_shutdown(0, SHUT_WR), 0);
    CHECK_EQ(sides_receive(1, 50, 0), 0);
    CHECK_EQ(sides_write(0, 10), -EPIPE);
    sides_end();
}

/* ---- UDP --------------------------------------------------------------------- */

static void nobody_at_a_port_is_told_once(void)
{
    story();
    sides_open(0, AF_INET, SOCK_DGRAM);
    sides_open(1, AF_INET, SOCK_DGRAM);
    CHECK_EQ(sides_bind(1), 0);
    CHECK_EQ(sides_connect(0, 1), 0);
    CHECK_EQ(sides_write(0, 3), 3);
    CHECK_EQ(sides_woken(0) & POLLOUT, POLLOUT); /* each send wakes its own writers */
    sides_close(1);
    for (int way = 0; way < 3; way++) {
        CHECK_EQ(sides_write(0, 3), 3);
        CHECK(sides_bits(0) & POLLERR);
        if (way == 0)
            CHECK_EQ(sides_write(0, 3), -ECONNREFUSED);
        else if (way == 1)
            CHECK_EQ(sides_receive(0, 10, 0), -ECONNREFUSED);
        else
            CHECK_EQ(sides_get(0, SOL_SOCKET, SO_ERROR), ECONNREFUSED);
        CHECK(!(sides_bits(0) & POLLERR));
        CHECK_EQ(sides_receive(0, 10, 0), -EAGAIN);
    }
    sides_end();
}

static void who_is_not_connected_is_not_told_unless_he_asks(void)
{
    story();
    sides_open(0, AF_INET, SOCK_DGRAM);
    sides_open(1, AF_INET, SOCK_DGRAM);
    sides_open(2, AF_INET, SOCK_DGRAM);
    CHECK_EQ(sides_bind(1), 0);
    CHECK_EQ(sides_connect(2, 1), 0); /* it takes nothing from others: nobody is there for 0 */
    CHECK_EQ(sides_connect(1, 2), 0);
    CHECK_EQ(sides_send(0, some(3, 0, 1)), 3);
    CHECK(!(sides_bits(0) & POLLERR));
    CHECK_EQ(sides_set(0, IPPROTO_IP, IP_RECVERR, 1), 0);
    CHECK_EQ(sides_send(0, some(3, 0, 1)), 3);
    CHECK_EQ(sides_send(0, some(4, 0, 1)), -ECONNREFUSED);
    for (int i = 0; i < 3; i++) {
        CHECK(sides_bits(0) & POLLERR); /* for ever: nobody reads the queue */
        CHECK_EQ(sides_receive(0, 10, 0), -EAGAIN);
    }
    CHECK_EQ(sides_receive(0, 10, MSG_ERRQUEUE), 3);
    CHECK_EQ(sides_received.from, 1);
    CHECK(!(sides_bits(0) & POLLERR));
    CHECK_EQ(sides_receive(0, 10, MSG_ERRQUEUE), -EAGAIN);
    sides_end();
}

static void stamps_that_nobody_reads_are_an_error_for_ever(void)
{
    for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++) {
        story();
        sides_pair(0, 1, AF_INET, type);
        int flags = SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE |
                    SOF_TIMESTAMPING_OPT_TSONLY;
        CHECK_EQ(sides_set(0, SOL_SOCKET, SO_TIMESTAMPING, flags), 0);
        CHECK_EQ(sides_write(0, 3), 3);
        CHECK(sides_woken(0) & POLLERR);
        CHECK_EQ(sides_write(0, 4), 4);
        for (int i = 0; i < 3; i++) {
            CHECK_EQ(sides_receive(0, 10, 0), -EAGAIN); /* no error of the socket's */
            CHECK(sides_bits(0) & POLLERR);
        }
        CHECK_EQ(sides_receive(0, 10, MSG_ERRQUEUE), 0);
        CHECK(sides_bits(0) & POLLERR);
        CHECK_EQ(sides_receive(0, 10, MSG_ERRQUEUE), 0);
        CHECK(!(sides_bits(0) & POLLERR));
        sides_end();
    }
}

static void a_wrong_checksum_wakes_for_nothing(void)
{
    story();
    sides_rules.no_queued = true;
    sides_open(0, AF_INET, SOCK_DGRAM);
    CHECK_EQ(sides_bind(0), 0);
    if (!sides_bad_datagram(0, 200)) {
        sides_end();
        return; /* only root may send one: the rest of the story is nobody's here */
    }
    CHECK(sides_woken(0) & POLLIN);
    CHECK(sides_bits(0) & POLLIN);
    CHECK_EQ(sides_receive(0, 100, 0), -EAGAIN);
    CHECK(!(sides_bits(0) & POLLIN));
    CHECK(sides_bad_datagram(0, 69));
    sides_open(1, AF_INET, SOCK_DGRAM);
    CHECK_EQ(sides_send(1, some(5, 0, 0)), 5);
    CHECK_EQ(sides_receive(0, 100, 0), 5); /* it is passed over */
    CHECK(sides_bad_datagram(0, 68)); /* small enough to be summed by whoever brings it */
    CHECK_EQ(sides_woken(0), 0);
    sides_blocking(0, true); /* then poll(2) looks itself */
    CHECK(sides_bad_datagram(0, 69));
    CHECK(!(sides_bits(0) & POLLIN));
    sides_rules.no_queued = false; /* and so does FIONREAD */
    sides_blocking(0, false);
    CHECK(sides_bad_datagram(0, 69));
    CHECK(!(sides_bits(0) & POLLIN));
    sides_end();
}

static void udp_is_cut_and_says_where_it_was_sent(void)
{
    for (int family = AF_INET; family <= AF_INET6; family += AF_INET6 - AF_INET) {
        story();
        sides_open(0, family, SOCK_DGRAM);
        sides_open(1, family, SOCK_DGRAM);
        CHECK_EQ(sides_bind(0), 0);
        CHECK_EQ(family == AF_INET ? sides_set(0, IPPROTO_IP, IP_PKTINFO, 1)
                                   : sides_set(0, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1), 0);
        CHECK_EQ(sides_send(1, some(100, 0, 0)), 100);
        CHECK_EQ(sides_send(1, some(0, 0, 0)), 0);
        CHECK_EQ(sides_receive(0, 10, 0), 10);
        CHECK(sides_received.flags & MSG_TRUNC);
        CHECK_EQ(sides_received.control, family == AF_INET
                                             ? CMSG_SPACE(sizeof(struct in_pktinfo))
                                             : CMSG_SPACE(sizeof(struct in6_pktinfo)));
        CHECK(sides_bits(0) & POLLIN);
        CHECK_EQ(sides_receive(0, 10, 0), 0); /* an empty one is one */
        CHECK(!(sides_bits(0) & POLLIN));
        CHECK_EQ(sides_send(1, some(65507 + 30, 0, 0)), -EMSGSIZE);
        if (family == AF_INET) {
            struct sides_send what = {.size = 3, .to = 0, .source = "127.0.0.9"};
            CHECK_EQ(sides_send(1, what), 3);
            CHECK_EQ(sides_receive(0, 10, 0), 3);
            CHECK_EQ(sides_received.from, -1); /* from another address than 1's own */
        }
        sides_end();
    }
}

static void a_full_receiver_of_udp_loses(void)
{
    static const int sizes[] = {0, 1, 100, 500, 1000, 4000, 10000, 30000, 65507};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        story();
        sides_open(0, AF_INET, SOCK_DGRAM);
        sides_open(1, AF_INET, SOCK_DGRAM);
        CHECK_EQ(sides_bind(0), 0);
        CHECK_EQ(sides_set(0, SOL_SOCKET, SO_RCVBUF, 40000), 0);
        for (int j = 0; j < 100; j++)
            CHECK_EQ(sides_send(1, some((size_t)sizes[i], 0, 0)), sizes[i]);
        int got = 0;
        while (sides_receive(0, 70000, 0) >= 0)
            got++;
        CHECK(got >= 1 && got < 100);
        sides_end();
    }
}

static void who_fits_best_gets_it(void)
{
    story();
    sides_open(0, AF_INET, SOCK_DGRAM);
    sides_open(1, AF_INET, SOCK_DGRAM);
    sides_open(2, AF_INET, SOCK_DGRAM);
    CHECK_EQ(sides_bind(0), 0);
    CHECK_EQ(sides_bind(1), 0);
    CHECK_EQ(sides_bind(2), 0);
    CHECK_EQ(sides_connect(0, 1), 0);
    CHECK_EQ(sides_send(1, some(3, 0, 0)), 3);
    CHECK_EQ(sides_send(2, some(4, 0, 0)), 4); /* it is not for him */
    CHECK_EQ(sides_receive(0, 10, 0), 3);
    CHECK_EQ(sides_receive(0, 10, 0), -EAGAIN);
    /* Another at the same port gets what is not for him. */
    sides_open(3, AF_INET, SOCK_DGRAM);
    sides_open(4, AF_INET, SOCK_DGRAM);
    CHECK_EQ(sides_set(3, SOL_SOCKET, SO_REUSEPORT, 1), 0);
    CHECK_EQ(sides_set(4, SOL_SOCKET, SO_REUSEPORT, 1), 0);
    CHECK_EQ(sides_bind(3), 0);
    CHECK_EQ(sides_bind_to(4, 3), 0);
    CHECK_EQ(sides_connect(4, 1), 0);
    CHECK_EQ(sides_send(1, some(5, 0, 3)), 5);
    CHECK_EQ(sides_receive(3, 10, 0), -EAGAIN);
    CHECK_EQ(sides_receive(4, 10, 0), 5);
    CHECK_EQ(sides_send(2, some(6, 0, 3)), 6);
    CHECK_EQ(sides_receive(4, 10, 0), -EAGAIN);
    CHECK_EQ(sides_receive(3, 10, 0), 6);
    /* Port 0 is any port. */
    sides_open(5, AF_INET, SOCK_DGRAM);
    sides_open(6, AF_INET, SOCK_DGRAM);
    CHECK_EQ(sides_bind(5), 0);
    CHECK_EQ(sides_connect(5, 6), 0);
    CHECK_EQ(sides_names(5), -ENOTCONN);
    CHECK_EQ(sides_send(2, some(7, 0, 5)), 7);
    CHECK_EQ(sides_receive(5, 10, 0), 7);
    CHECK_EQ(sides_connect(0, -1), 0);
    CHECK_EQ(sides_send(2, some(4, 0, 0)), -EINVAL); /* it has no port any more */
    CHECK_EQ(sides_bind(0), 0);
    CHECK_EQ(sides_send(2, some(4, 0, 0)), 4);
    CHECK_EQ(sides_receive(0, 10, 0), 4);
    sides_end();
}

/* ---- ours alone ------------------------------------------------------------------ */

static unsigned told_choices[6];
static unsigned told_choice;

static unsigned choose_as_told(unsigned below)
{
    unsigned choice = told_choice < 6 ? told_choices[told_choice] : 0;
    told_choice++;
    CHECK(choice < below);
    return choice;
}

/* What is sent later does not arrive earlier, also where both are due at once. */
static void nothing_overtakes(void)
{
    int fds[2], limit = 4608;
    char data[5000] = "";
    struct iovec part = {.iov_base = data, .iov_len = 2304};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    net_reset();
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct net_file *from = net_of(fds[0]), *to = net_of(fds[1]);
    CHECK_EQ(net_setsockopt(to, SOL_SOCKET, SO_RCVBUF, &limit, sizeof limit), 0);
    net_tcp_join(from, to);
    /* A segment and its acknowledgement at once; the window that a receive opens, and what
     * still fits into the old one, in 10 us; what then fits into the new one, at once. */
    memcpy(told_choices, (unsigned[]){0, 0, 2, 2, 2, 0}, sizeof told_choices);
    told_choice = 0;
    net_choices.delays = true;
    net_choose = choose_as_told;
    CHECK_EQ(net_sendmsg(from, &message, 0), 2304);
    CHECK_EQ(net_recvmsg(to, &message, 0), 2304);
    part.iov_len = 3000;
    CHECK_EQ(net_sendmsg(from, &message, 0), 3000);
    CHECK_EQ(net_queued(to), 0);
    CHECK_EQ(told_choice, 5);
    net_advance(net_next_ns());
    CHECK_EQ(net_queued(to), 3000);
    net_choices.delays = false;
    net_choose = NULL;
    CHECK_EQ(net_close(fds[0]), 0);
    CHECK_EQ(net_close(fds[1]), 0);
    net_reset();
}

static void what_is_silent_is_given_up(void)
{
    net_reset();
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), error = 0;
    struct net_file *file = net_of(fd);
    socklen_t length = sizeof error;
    struct sockaddr_in nowhere = {.sin_family = AF_INET, .sin_port = 1,
                                  .sin_addr.s_addr = htonl(0xc0000201)};
    CHECK_EQ(net_connect(file, (struct sockaddr *)&nowhere, sizeof nowhere), -EINPROGRESS);
    CHECK_EQ(net_poll(file, POLLOUT), 0);
    CHECK(net_next_ns() != NET_NEVER);
    net_advance(net_next_ns());
    CHECK(net_poll(file, POLLOUT) & POLLERR);
    CHECK_EQ(net_getsockopt(file, SOL_SOCKET, SO_ERROR, &error, &length), 0);
    CHECK_EQ(error, ETIMEDOUT);
    CHECK_EQ(net_close(fd), 0);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    nowhere.sin_addr.s_addr = htonl(0x08080808);
    CHECK_EQ(net_connect(net_of(fd), (struct sockaddr *)&nowhere, sizeof nowhere), -ENETUNREACH);
    CHECK_EQ(net_close(fd), 0);
    net_reset();
}

static void a_file_lives_as_long_as_a_number_or_a_hold(void)
{
    int fds[2];
    net_reset();
    CHECK_EQ(net_pair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, fds), 0);
    struct net_file *file = net_of(fds[0]), *other = net_of(fds[1]);
    int copy = dup(fds[0]);
    CHECK(net_of(copy) == file);
    close(fds[0]);
    CHECK(!(net_poll(other, POLLIN) & POLLHUP));
    net_hold(file); /* a request is under way on it */
    close(copy);
    CHECK(!(net_poll(other, POLLIN) & POLLHUP));
    net_drop(file);
    CHECK(net_poll(other, POLLIN) & POLLHUP);
    int pipe_ends[2];
    CHECK_EQ(pipe(pipe_ends), 0);
    CHECK(net_of(pipe_ends[0]) == NULL);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    int host[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, host), 0);
    CHECK(net_of(host[0]) == NULL); /* really connected: the kernel's own */
    close(host[0]);
    close(host[1]);
    close(fds[1]);
    net_sweep();
    net_reset();
}

static void a_reset_may_come_from_nowhere(void)
{
    int fds[2];
    char byte;
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    net_reset();
    CHECK_EQ(net_pair(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, fds), 0);
    CHECK_EQ(net_sendmsg(net_of(fds[1]), &message, 0), 1);
    net_reset_by_peer(net_of(fds[0]));
    CHECK_EQ(net_recvmsg(net_of(fds[0]), &message, 0), 1);
    CHECK_EQ(net_recvmsg(net_of(fds[0]), &message, 0), -ECONNRESET);
    CHECK_EQ(net_close(fds[0]), 0);
    CHECK_EQ(net_close(fds[1]), 0);
    net_reset();
}

int main(void)
{
    const char *why = sides_obstacle();
    if (why != NULL) {
        printf("test_net.c: skipped: %s\n", why);
        return CHECK_SKIP_STATUS;
    }
    RUN(a_half_close_leaves_the_other_half);
    RUN(who_shuts_his_reading_goes_on_to_receive_by_tcp);
    RUN(a_reset_comes_behind_the_data);
    RUN(a_reset_takes_what_was_not_yet_sent);
    RUN(bytes_for_who_has_closed_reset);
    RUN(bytes_for_who_has_shut_both_reset_both);
    RUN(unread_bytes_reset_a_unix_stream_after_the_data);
    RUN(a_receive_that_wants_more_loses_the_error);
    RUN(an_urgent_byte_stops_a_receive_and_is_skipped);
    RUN(a_lone_urgent_byte_is_readable_where_nothing_is);
    RUN(low_water_counts_for_tcp_only);
    RUN(nobody_listens);
    RUN(a_backlog_takes_one_more_and_no_more);
    RUN(a_full_backlog_of_tcp_drops_and_is_tried_again);
    RUN(who_has_gone_before_he_is_accepted_is_accepted);
    RUN(a_listener_that_goes_resets_who_waits);
    RUN(a_listener_that_is_shut_listens_no_more);
    RUN(fast_open_without_a_cookie_is_a_plain_connect);
    RUN(a_connect_forgets_an_error);
    RUN(what_is_disconnected_can_be_connected_again);
    RUN(one_full_receiver_refuses_all_and_wakes_all);
    RUN(an_attempt_alone_stands_in_the_line);
    RUN(who_names_a_full_receiver_is_writable_and_refused);
    RUN(a_pair_of_datagrams_has_no_limit_but_memory);
    RUN(a_receiver_that_dies_is_lost_once);
    RUN(who_connects_elsewhere_resets_his_old_peer);
    RUN(descriptors_and_credentials_are_passed);
    RUN(credentials_are_given_or_added);
    RUN(garbage_is_found);
    RUN(seqpackets_keep_their_ends);
    RUN(nobody_at_a_port_is_told_once);
    RUN(who_is_not_connected_is_not_told_unless_he_asks);
    RUN(stamps_that_nobody_reads_are_an_error_for_ever);
    RUN(a_wrong_checksum_wakes_for_nothing);
    RUN(udp_is_cut_and_says_where_it_was_sent);
    RUN(a_full_receiver_of_udp_loses);
    RUN(who_fits_best_gets_it);
    RUN(what_tcp_takes_and_whom_it_tells_of_room);
    RUN(a_reset_may_come_from_nowhere);
    RUN(nothing_overtakes);
    RUN(what_is_silent_is_given_up);
    RUN(a_file_lives_as_long_as_a_number_or_a_hold);
    return CHECK_SUMMARY();
}
