/*
 * Random calls on the network without a kernel: on both sides, and whatever is chosen.
 *
 * What is compared, and what is not, test_net.c says. A failure names its seed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "draw.h"
#include "net_sides.h"

/* Of the seeds that are asked for (of test_fuzz, which is quicker) one of so many. */
#define SEEDS_A_SCRIPT 500

static uint64_t random_state;

static unsigned draw(unsigned below)
{
    return draw_below(&random_state, below);
}

/* A slot that is open; -1: none is. */
static int some_slot(void)
{
    for (int tries = 0; tries < 60; tries++) {
        int slot = (int)draw(SIDES_SLOTS - 1);
        if (sides_slots[slot].is_open)
            return slot;
    }
    return -1;
}

static int free_slot(void)
{
    for (int i = 0; i < SIDES_SLOTS - 1; i++)
        if (!sides_slots[i].is_open)
            return i;
    return -1;
}

static size_t some_size(bool is_small)
{
    static const unsigned sizes[] = {0, 1, 2, 7, 100, 129, 500, 641, 1729, 3777, 5000, 20000,
                                     70000};
    return sizes[draw(is_small ? 8 : 13)];
}

static void some_option(int slot)
{
    switch (draw(6)) {
    case 0:
        if (sides_slots[slot].family == AF_UNIX)
            sides_set(slot, SOL_SOCKET, SO_SNDBUF, (int)(2304u << draw(6)));
        break;
    case 1:
        sides_set(slot, SOL_SOCKET, SO_RCVLOWAT, 1 << draw(8));
        break;
    case 2:
        sides_set(slot, SOL_SOCKET, SO_OOBINLINE, (int)draw(2));
        break;
    case 3:
        if (sides_slots[slot].family == AF_UNIX)
            sides_set(slot, SOL_SOCKET, SO_PASSCRED, (int)draw(2));
        break;
    case 4:
        if (draw(4) == 0)
            sides_linger(slot, 0);
        break;
    default:
        sides_get(slot, SOL_SOCKET, SO_ERROR);
    }
}

static void some_send(int slot, bool is_small)
{
    struct sides_send what = {.size = some_size(is_small), .to = -1};
    if (draw(8) == 0)
        what.flags |= MSG_OOB;
    if (sides_slots[slot].type == SOCK_DGRAM && draw(2) == 0)
        what.to = some_slot();
    if (sides_slots[slot].family == AF_UNIX && draw(6) == 0) {
        what.rights_count = 1 + (int)draw(3);
        for (int i = 0; i < what.rights_count; i++)
            what.rights[i] = -1;
    }
    for (unsigned i = draw(5) == 0 ? 12 : 1; i > 0; i--)
        if (sides_send(slot, what) < 0)
            break;
}

static void some_receive(int slot, bool is_small)
{
    static const int flags[] = {0, 0, 0, 0, MSG_PEEK, MSG_TRUNC, MSG_OOB, MSG_WAITALL,
                                MSG_PEEK | MSG_TRUNC, MSG_OOB | MSG_PEEK, MSG_CMSG_CLOEXEC};
    size_t control = draw(6) == 0 ? draw(60) : 400;
    for (unsigned i = draw(5) == 0 ? 12 : 1; i > 0; i--)
        if (sides_receive_with(slot, some_size(is_small) * (1 + draw(3)),
                               flags[draw(sizeof flags / sizeof *flags)], control) <= 0)
            break;
}

static void step(int family, int type, bool is_small)
{
    int slot = some_slot(), unused = free_slot(), other = some_slot();
    unsigned what = draw(100);
    if (slot < 0)
        what = 0;
    if (what < 5) {
        if (unused >= 0)
            sides_open(unused, family, type);
    } else if (what < 10) {
        /* A TCP socket that is over may be bound again, which its placeholder does not know. */
        if (family == AF_UNIX || type == SOCK_DGRAM || !sides_slots[slot].was_connected)
            sides_bind(slot);
    } else if (what < 14) {
        if (type != SOCK_DGRAM)
            sides_listen(slot, (int)draw(3));
    } else if (what < 24) {
        if ((type == SOCK_DGRAM || family != AF_UNIX) && draw(8) == 0)
            sides_connect(slot, -1);
        else if (family == AF_UNIX || other != slot)
            sides_connect(slot, other);
    } else if (what < 32) {
        if (unused >= 0)
            sides_accept(slot, unused);
    } else if (what < 62) {
        /* Disconnected, UDP takes another port: by chance the same one, on one side only. */
        if (family == AF_UNIX || type == SOCK_STREAM || !sides_slots[slot].was_disconnected)
            some_send(slot, is_small);
    } else if (what < 85) {
        some_receive(slot, is_small);
    } else if (what < 88) {
        sides_shutdown(slot, (int)draw(3));
    } else if (what < 90) {
        sides_close(slot);
    } else if (what < 93) {
        some_option(slot);
    } else if (what < 95) {
        /* A TCP socket that was disconnected still says a port that it has given back. */
        if (type != SOCK_STREAM || !sides_slots[slot].was_disconnected)
            sides_names(slot);
    } else {
        if (type == SOCK_STREAM)
            sides_mark(slot);
    }
}

static void script(uint64_t seed, int family, int type)
{
    random_state = draw_state(seed);
    for (int i = 0; i < 10; i++)
        draw(2);
    check_note("seed %llu of %d, %d", (unsigned long long)seed, family, type);
    CHECK_EQ(sides_begin(), 0);
    bool is_small = family != AF_UNIX || draw(2) == 0;
    sides_open(0, family, type);
    sides_bind(0);
    if (type != SOCK_DGRAM)
        sides_listen(0, (int)draw(3));
    sides_pair(1, 2, family, type);
    for (int i = 0; i < 40; i++)
        step(family, type, is_small);
    sides_end();
}

static unsigned seeds = 40;
static uint64_t first_seed;

static void scripts(int family, int type)
{
    for (uint64_t seed = first_seed; seed < first_seed + seeds; seed++)
        script(seed, family, type);
}

static void unix_streams(void)
{
    scripts(AF_UNIX, SOCK_STREAM);
}

static void unix_datagrams(void)
{
    scripts(AF_UNIX, SOCK_DGRAM);
}

static void unix_seqpackets(void)
{
    scripts(AF_UNIX, SOCK_SEQPACKET);
}

static void tcp_over_ipv4(void)
{
    scripts(AF_INET, SOCK_STREAM);
}

static void tcp_over_ipv6(void)
{
    scripts(AF_INET6, SOCK_STREAM);
}

static void udp_over_ipv4(void)
{
    scripts(AF_INET, SOCK_DGRAM);
}

static void udp_over_ipv6(void)
{
    scripts(AF_INET6, SOCK_DGRAM);
}

/* ---- choices: of ours alone; the kernel does not let itself be told ---------- */

static void all_choices(uint64_t seed)
{
    random_state = draw_state(seed);
    for (int i = 0; i < 10; i++)
        draw(2);
    sides_forget();
    net_wake = NULL;
    net_choose = draw;
    net_choices = (struct net_choices){.delays = true, .shorts = true, .no_buffers = true,
                                       .order = true, .losses = true};
}

static uint64_t clock_ns;

/* Lets what is under way arrive, if something is. */
static bool let_arrive(void)
{
    if (net_next_ns() == NET_NEVER)
        return false;
    clock_ns = net_next_ns();
    net_advance(clock_ns);
    return true;
}

static void check_balance(void)
{
    struct net_books books;
    while (let_arrive())
        ;
    net_read_books(&books);
    CHECK_EQ(books.files, 0);
    CHECK_EQ(books.rights, 0);
    CHECK_EQ(books.bytes_queued, 0);
    CHECK_EQ(books.bytes_sent, books.bytes_received + books.bytes_lost + books.bytes_stolen);
    net_choose = NULL;
    net_choices = (struct net_choices){.delays = false};
    net_reset();
}

/* Whatever is chosen, a stream brings all of it, in order, and nobody waits for ever. */
static void a_stream(uint64_t seed, int family)
{
    int fds[2];
    char data[5000];
    size_t sent = 0, received = 0, total = 1 + draw(100000);
    check_note("seed %llu of %d", (unsigned long long)seed, family);
    CHECK_EQ(net_pair(family, SOCK_STREAM | SOCK_CLOEXEC, fds), 0);
    struct net_file *from = net_of(fds[0]), *to = net_of(fds[1]);
    int limit = 1024 << draw(6);
    net_setsockopt(from, SOL_SOCKET, SO_SNDBUF, &limit, sizeof limit);
    limit = 1024 << draw(6);
    if (draw(2) == 0)
        net_setsockopt(to, SOL_SOCKET, SO_RCVBUF, &limit, sizeof limit);
    bool has_end = false;
    for (unsigned refused = 0; !has_end;) {
        struct iovec part = {.iov_base = data, .iov_len = 1 + draw(sizeof data)};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        int result = -EAGAIN;
        if (draw(2) == 0 && sent < total) {
            if (part.iov_len > total - sent)
                part.iov_len = total - sent;
            for (size_t i = 0; i < part.iov_len; i++)
                data[i] = sides_byte_at(sent + i);
            result = net_sendmsg(from, &message, 0);
            CHECK(result > 0 || result == -EAGAIN || result == -ENOBUFS);
            sent += result > 0 ? (size_t)result : 0;
            if (sent == total)
                CHECK_EQ(net_shutdown(from, SHUT_WR), 0);
        } else if (draw(3) > 0) {
            result = net_recvmsg(to, &message, 0);
            CHECK(result >= 0 || result == -EAGAIN);
            for (int i = 0; i < result; i++)
                CHECK_EQ(data[i], sides_byte_at(received + (size_t)i));
            received += result > 0 ? (size_t)result : 0;
            has_end = result == 0;
        } else {
            let_arrive();
        }
        refused = result > 0 ? 0 : refused + 1;
        CHECK(refused < 300); /* somebody waits for ever */
    }
    CHECK_EQ(received, total);
    CHECK_EQ(net_close(fds[0]), 0);
    CHECK_EQ(net_close(fds[1]), 0);
}

static void streams_arrive_whatever_is_chosen(void)
{
    static const int families[] = {AF_UNIX, AF_INET, AF_INET6};
    for (uint64_t seed = first_seed; seed < first_seed + seeds; seed++)
        for (int i = 0; i < 3; i++) {
            all_choices(seed * 3 + (uint64_t)i);
            a_stream(seed, families[i]);
            check_balance();
        }
}

/* Callers, listeners, closes and resets in any order, at any time. */
static void connections_end_whatever_is_chosen(void)
{
    for (uint64_t seed = first_seed; seed < first_seed + seeds; seed++) {
        int fds[12], count = 0;
        check_note("seed %llu", (unsigned long long)seed);
        all_choices(seed);
        net_choices.strangers = draw(2) == 0;
        struct net_name name = {.length = sizeof name.at.v4};
        for (int i = 0; i < 150; i++) {
            struct net_file *file = count > 0 ? net_of(fds[draw((unsigned)count)]) : NULL;
            char data[3000] = "";
            struct iovec part = {.iov_base = data, .iov_len = 1 + draw(sizeof data)};
            struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
            unsigned what = draw(12);
            if (what < 3 && count < 12) {
                int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
                CHECK(fd >= 0);
                fds[count++] = fd;
                file = net_of(fd);
                struct sockaddr_in here = {.sin_family = AF_INET,
                                           .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
                if (draw(3) == 0) {
                    CHECK_EQ(net_bind(file, (struct sockaddr *)&here, sizeof here), 0);
                    CHECK_EQ(net_listen(file, (int)draw(3)), 0);
                    name.length = sizeof name.at;
                    net_getsockname(file, &name.at.any, &name.length);
                } else if (name.at.v4.sin_port != 0) {
                    net_connect(file, &name.at.any, name.length);
                }
            } else if (what < 4 && file != NULL && count < 12) {
                int fd = net_accept4(file, NULL, NULL, SOCK_CLOEXEC);
                if (fd >= 0)
                    fds[count++] = fd;
            } else if (what < 7 && file != NULL) {
                net_sendmsg(file, &message, draw(6) == 0 ? MSG_OOB : 0);
            } else if (what < 9 && file != NULL) {
                net_recvmsg(file, &message, 0);
            } else if (what == 9 && file != NULL) {
                net_shutdown(file, (int)draw(3));
            } else if (what == 10 && count > 0 && draw(2) == 0) {
                unsigned which = draw((unsigned)count);
                struct linger now = {.l_onoff = 1};
                if (draw(4) == 0)
                    setsockopt(fds[which], SOL_SOCKET, SO_LINGER, &now, sizeof now);
                if (draw(2) == 0)
                    net_close(fds[which]);
                else
                    close(fds[which]); /* behind its back */
                fds[which] = fds[--count];
            } else {
                let_arrive();
            }
            if (file != NULL && draw(4) == 0)
                net_poll(file, POLLIN | POLLOUT);
        }
        while (count > 0)
            net_close(fds[--count]);
        check_balance();
    }
}

/* A datagram comes whole or not at all, as often as the network likes. */
static void datagrams_come_whole_whatever_is_chosen(void)
{
    for (uint64_t seed = first_seed; seed < first_seed + seeds; seed++) {
        static const int kinds[][2] = {{AF_INET, SOCK_DGRAM}, {AF_UNIX, SOCK_DGRAM},
                                       {AF_UNIX, SOCK_SEQPACKET}};
        int fds[2];
        check_note("seed %llu", (unsigned long long)seed);
        all_choices(seed);
        const int *kind = kinds[draw(3)];
        net_choices.strangers = draw(2) == 0;
        CHECK_EQ(net_pair(kind[0], kind[1] | SOCK_CLOEXEC, fds), 0);
        struct net_file *from = net_of(fds[0]), *to = net_of(fds[1]);
        for (int i = 0; i < 200; i++) {
            char data[1000];
            struct iovec part = {.iov_base = data, .iov_len = 1 + draw(sizeof data - 1)};
            struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
            unsigned what = draw(3);
            if (what == 0) {
                memset(data, (int)(part.iov_len % 251), part.iov_len);
                int result = net_sendmsg(from, &message, 0);
                CHECK(result == (int)part.iov_len || result == -EAGAIN || result == -ENOBUFS);
            } else if (what == 1) {
                part.iov_len = sizeof data;
                int result = net_recvmsg(to, &message, 0);
                CHECK(result > 0 || result == -EAGAIN);
                for (int j = 0; j < result; j++)
                    CHECK_EQ((unsigned char)data[j], result % 251);
            } else {
                let_arrive();
            }
        }
        CHECK_EQ(net_close(fds[0]), 0);
        CHECK_EQ(net_close(fds[1]), 0);
        check_balance();
    }
}

/* `seed N`: that one of each kind; `N`: more of them. */
int main(int argc, char **argv)
{
    const char *why = sides_obstacle();
    if (why != NULL) {
        printf("test_net_scripts.c: skipped: %s\n", why);
        return CHECK_SKIP_STATUS;
    }
    if (argc == 3 && strcmp(argv[1], "seed") == 0) {
        first_seed = strtoull(argv[2], NULL, 10);
        seeds = 1;
    } else if (argc == 2) {
        seeds = 1 + (unsigned)strtoul(argv[1], NULL, 10) / SEEDS_A_SCRIPT;
    }
    RUN(streams_arrive_whatever_is_chosen);
    RUN(connections_end_whatever_is_chosen);
    RUN(datagrams_come_whole_whatever_is_chosen);
    RUN(unix_streams);
    RUN(unix_datagrams);
    RUN(unix_seqpackets);
    RUN(udp_over_ipv4);
    RUN(udp_over_ipv6);
    RUN(tcp_over_ipv4);
    RUN(tcp_over_ipv6);
    return CHECK_SUMMARY();
}
