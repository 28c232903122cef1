#define _GNU_SOURCE
#include "net_sides.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_MEMINFO
#define SO_MEMINFO 55
#endif

#include "../ring.h"
#include "check.h"

/* What the real side may take, until it is as ours. An acknowledgement waits for 40 ms; what
 * comes over loopback comes when some processor has the time. */
#define SETTLE_NS 10000000000u
#define CONTROL 400u
#define SAID 400

struct sides_slot sides_slots[SIDES_SLOTS];
struct sides_rules sides_rules;
struct sides_received sides_received;

static struct ut_ring ring;
static bool ring_is_open;
static struct {
    unsigned count, key;        /* ours: wake-ups of the last call */
    unsigned told[8], told_count; /* theirs */
    unsigned woken;
    unsigned owed; /* of several wake-ups: those that were not told, and may be later */
} woken[SIDES_SLOTS];
static uint8_t next_byte;
static uint64_t now_ns; /* of ours */
static char said[SAID][120];
static unsigned said_count;

/* ---- what was done ----------------------------------------------------------- */

void sides_say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (said_count < SAID)
        vsnprintf(said[said_count++], sizeof said[0], format, arguments);
    va_end(arguments);
}

void sides_print(void)
{
    for (unsigned i = 0; i < said_count; i++)
        printf("    %s\n", said[i]);
}

static _Noreturn void differ(const char *what, int slot, long real, long ours)
{
    char text[200];
    snprintf(text, sizeof text, "%s of slot %d: really %ld (%#lx), ours %ld (%#lx)", what, slot,
             real, real, ours, ours);
    sides_print();
    check_failed(__FILE__, __LINE__, text);
}

static int same(const char *what, int slot, long real, long ours)
{
    if (real != ours)
        differ(what, slot, real, ours);
    return (int)ours;
}

static bool is_tcp(int slot)
{
    return sides_slots[slot].family != AF_UNIX && sides_slots[slot].type == SOCK_STREAM;
}

static int answer(long result)
{
    return result < 0 ? -errno : (int)result;
}

/* ---- watches ----------------------------------------------------------------- */

static void note_wake(struct net_file *file, uint32_t key)
{
    for (int i = 0; i < SIDES_SLOTS; i++) {
        if (!sides_slots[i].is_watched || sides_slots[i].file != file ||
            (key != 0 && !(key & SIDES_EVENTS)))
            continue;
        woken[i].count++;
        woken[i].key = key;
    }
}

static void drain(void)
{
    ut_ring_enter(&ring, ut_ring_unsubmitted(&ring), 0, 0);
    unsigned ready = ut_ring_cq_ready(&ring);
    for (unsigned i = 0; i < ready; i++) {
        const struct io_uring_cqe *cqe = ut_ring_cqe(&ring, i);
        if (cqe->user_data >= SIDES_SLOTS)
            continue;
        struct sides_slot *slot = &sides_slots[cqe->user_data];
        if (cqe->res >= 0 && woken[cqe->user_data].told_count < 8)
            woken[cqe->user_data].told[woken[cqe->user_data].told_count++] = (unsigned)cqe->res;
        if (!(cqe->flags & IORING_CQE_F_MORE))
            slot->is_watched = false;
    }
    ut_ring_cq_advance(&ring, ready);
}

static void forget_wakes(void)
{
    for (int i = 0; i < SIDES_SLOTS; i++) {
        if (woken[i].count > 1 || woken[i].told_count > 0)
            woken[i].owed = is_tcp(i) && woken[i].count > woken[i].told_count
                                ? woken[i].count - woken[i].told_count
                                : 0;
        woken[i].count = woken[i].told_count = 0;
        woken[i].woken = 0;
    }
}

static void watch(int slot)
{
    if (sides_rules.no_watches)
        return;
    struct io_uring_sqe *sqe = ut_ring_get_sqe(&ring);
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = sides_slots[slot].real;
    sqe->len = IORING_POLL_ADD_MULTI;
    sqe->op_flags = SIDES_EVENTS;
    sqe->user_data = (uint64_t)slot;
    sides_slots[slot].is_watched = true;
    drain();
    net_poll(sides_slots[slot].file, SIDES_EVENTS); /* as that does */
}

static void unwatch(int slot)
{
    if (!sides_slots[slot].is_watched)
        return;
    struct io_uring_sqe *sqe = ut_ring_get_sqe(&ring);
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_ASYNC_CANCEL;
    sqe->addr = (uint64_t)slot;
    sqe->user_data = 1000;
    for (int i = 0; i < 100 && sides_slots[slot].is_watched; i++)
        drain();
    CHECK(!sides_slots[slot].is_watched);
}

/* ---- after each call --------------------------------------------------------- */

static unsigned real_bits(int slot)
{
    struct pollfd look = {.fd = sides_slots[slot].real, .events = (short)SIDES_EVENTS};
    poll(&look, 1, 0);
    return (unsigned)look.revents & SIDES_EVENTS;
}

static unsigned our_bits(int slot)
{
    return net_poll(sides_slots[slot].file, SIDES_EVENTS) & SIDES_EVENTS;
}

static unsigned compared(unsigned bits)
{
    return sides_rules.no_writing ? bits & ~(unsigned)NET_KEY_WRITE : bits;
}

static int real_queued(int slot)
{
    int value = -1;
    return ioctl(sides_slots[slot].real, FIONREAD, &value) < 0 ? -errno : value;
}

/* An acknowledgement that waits for company is sent now. */
static void acknowledge(void)
{
    int one = 1;
    for (int i = 0; i < SIDES_SLOTS; i++)
        if (sides_slots[i].is_open && is_tcp(i))
            setsockopt(sides_slots[i].real, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
}

static int real_state(int slot)
{
    struct tcp_info info = {.tcpi_state = 0};
    socklen_t length = sizeof info;
    getsockopt(sides_slots[slot].real, IPPROTO_TCP, TCP_INFO, &info, &length);
    return info.tcpi_state;
}

static int our_state(int slot)
{
    static const int states[] = {
        [NET_CLOSED] = TCP_CLOSE, [NET_LISTENING] = TCP_LISTEN, [NET_SYN_SENT] = TCP_SYN_SENT,
        [NET_ESTABLISHED] = TCP_ESTABLISHED, [NET_FIN_WAIT] = TCP_FIN_WAIT1,
        [NET_FIN_TAKEN] = TCP_FIN_WAIT2, [NET_CLOSE_WAIT] = TCP_CLOSE_WAIT,
        [NET_CLOSING] = TCP_CLOSING, [NET_LAST_ACK] = TCP_LAST_ACK};
    return states[sides_slots[slot].file->state];
}

/* What is seen of the slots; the first that differs, with the values, or -1. */
static int difference(const char **what, long *real, long *ours)
{
    for (int i = 0; i < SIDES_SLOTS; i++) {
        if (!sides_slots[i].is_open)
            continue;
        *what = "bits";
        *real = sides_rules.no_bits ? 0 : compared(real_bits(i));
        *ours = sides_rules.no_bits ? 0 : compared(our_bits(i));
        if (*real != *ours)
            return i;
        *what = "FIONREAD";
        *real = sides_rules.no_queued ? 0 : real_queued(i);
        *ours = sides_rules.no_queued ? 0 : net_queued(sides_slots[i].file);
        if (*real != *ours)
            return i;
        if (is_tcp(i)) {
            *what = "state";
            *real = real_state(i);
            *ours = our_state(i);
            if (*real != *ours)
                return i;
        }
        if (!sides_slots[i].is_watched || sides_rules.no_wakes)
            continue;
        *what = "wake-ups";
        *ours = woken[i].count > 0;
        *real = woken[i].told_count;
        if (*real > 1 && (unsigned)*real <= woken[i].count)
            *real = 1; /* of several the first has been told by itself */
        if (*ours == 0 && (unsigned)*real <= woken[i].owed)
            continue;
        if (*real != *ours)
            return i;
        *what = "key";
        *ours = woken[i].told_count > 1 ? our_bits(i) : woken[i].woken;
        *real = woken[i].told_count > 0 ? woken[i].told[woken[i].told_count - 1] : 0;
        if (*real != *ours)
            return i;
    }
    return -1;
}

static void settle(void)
{
    uint64_t end_ns = ut_kernel_real.now_ns() + SETTLE_NS;
    const char *what = "";
    long real = 0, ours = 0;
    for (int i = 0; i < SIDES_SLOTS; i++) {
        if (woken[i].count == 0 || !sides_slots[i].is_watched)
            continue;
        bool is_one = woken[i].count == 1 && woken[i].key != 0;
        woken[i].woken = is_one ? woken[i].key & SIDES_EVENTS : our_bits(i);
        if (woken[i].woken == 0)
            woken[i].count = 0; /* several, and nothing is there: nothing is told */
    }
    for (;;) {
        acknowledge();
        drain();
        int slot = difference(&what, &real, &ours);
        if (slot < 0) {
            drain(); /* what has come since it was looked at */
            slot = difference(&what, &real, &ours);
        }
        if (slot < 0)
            return;
        if (ut_kernel_real.now_ns() > end_ns)
            differ(what, slot, real, ours);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
}

unsigned sides_bits(int slot)
{
    return our_bits(slot);
}

unsigned sides_woken(int slot)
{
    return woken[slot].woken;
}

/* ---- begin, end -------------------------------------------------------------- */

void sides_forget(void)
{
    for (int i = 0; i < SIDES_SLOTS; i++) {
        if (!sides_slots[i].is_open)
            continue;
        close(sides_slots[i].real);
        close(sides_slots[i].ours);
    }
    memset(sides_slots, 0, sizeof sides_slots);
    if (ring_is_open)
        ut_ring_close(&ring);
    ring_is_open = false;
    net_reset();
}

int sides_begin(void)
{
    sides_forget();
    memset(&net_choices, 0, sizeof net_choices);
    net_choose = NULL;
    net_wake = note_wake;
    sides_rules = (struct sides_rules){.no_wakes = false};
    next_byte = 0;
    now_ns = 0;
    said_count = 0;
    forget_wakes();
    ring_is_open = ut_ring_open(&ring, &ut_kernel_real, 64, 1024, 64) >= 0;
    return ring_is_open ? 0 : -1;
}

void sides_end(void)
{
    for (int i = 0; i < SIDES_SLOTS; i++)
        if (sides_slots[i].is_open)
            sides_close(i);
    struct net_books books;
    net_advance(NET_NEVER - 1);
    net_read_books(&books);
    CHECK_EQ(books.files, 0);
    CHECK_EQ(books.rights, 0);
    CHECK_EQ(books.bytes_sent, books.bytes_received + books.bytes_lost + books.bytes_stolen +
                                   books.bytes_queued);
    CHECK_EQ(books.bytes_queued, 0);
    ut_ring_close(&ring);
    ring_is_open = false;
    net_reset();
}

/* ---- calls ------------------------------------------------------------------- */

static void fill_slot(int slot, int family, int type, int real, int ours)
{
    int one = 1;
    struct sides_slot *to = &sides_slots[slot];
    CHECK(!to->is_open && real >= 0 && ours >= 0);
    *to = (struct sides_slot){.is_open = true, .family = family, .type = type, .real = real,
                              .ours = ours, .file = net_of(ours)};
    CHECK(to->file != NULL);
    if (is_tcp(slot)) {
        /* What the real side does by time is not compared. */
        setsockopt(real, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(real, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
    }
    watch(slot);
}

void sides_open(int slot, int family, int type)
{
    sides_say("%d = socket(%d, %d)", slot, family, type);
    forget_wakes();
    int kind = type | SOCK_NONBLOCK | SOCK_CLOEXEC;
    fill_slot(slot, family, type, socket(family, kind, 0), socket(family, kind, 0));
    forget_wakes();
    settle();
}

void sides_pair(int slot, int other, int family, int type)
{
    int real[2], ours[2], kind = type | SOCK_NONBLOCK | SOCK_CLOEXEC;
    if (family != AF_UNIX) {
        int listener = SIDES_SLOTS - 1;
        if (type == SOCK_STREAM) {
            sides_open(listener, family, type);
            CHECK_EQ(sides_bind(listener), 0);
            CHECK_EQ(sides_listen(listener, 5), 0);
            sides_open(slot, family, type);
            CHECK_EQ(sides_connect(slot, listener), -EINPROGRESS);
            CHECK_EQ(sides_connect(slot, listener), 0);
            CHECK_EQ(sides_accept(listener, other), 0);
            sides_close(listener);
            return;
        }
        sides_open(slot, family, type);
        sides_open(other, family, type);
        CHECK_EQ(sides_bind(slot), 0);
        CHECK_EQ(sides_bind(other), 0);
        CHECK_EQ(sides_connect(slot, other), 0);
        CHECK_EQ(sides_connect(other, slot), 0);
        return;
    }
    sides_say("%d, %d = socketpair(%d, %d)", slot, other, family, type);
    forget_wakes();
    CHECK_EQ(socketpair(family, kind, 0, real), 0);
    CHECK_EQ(net_pair(family, kind, ours), 0);
    fill_slot(slot, family, type, real[0], ours[0]);
    fill_slot(other, family, type, real[1], ours[1]);
    forget_wakes();
    settle();
}

static socklen_t some_name(int family, struct sockaddr_storage *storage)
{
    memset(storage, 0, sizeof *storage);
    storage->ss_family = (sa_family_t)family;
    if (family == AF_INET)
        ((struct sockaddr_in *)storage)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (family == AF_INET6)
        ((struct sockaddr_in6 *)storage)->sin6_addr = in6addr_loopback;
    return family == AF_UNIX ? sizeof(sa_family_t)
                             : family == AF_INET ? sizeof(struct sockaddr_in)
                                                 : sizeof(struct sockaddr_in6);
}

int sides_bind(int slot)
{
    struct sockaddr_storage name;
    socklen_t length = some_name(sides_slots[slot].family, &name);
    sides_say("bind(%d)", slot);
    forget_wakes();
    int real = answer(bind(sides_slots[slot].real, (struct sockaddr *)&name, length));
    int ours = net_bind(sides_slots[slot].file, (struct sockaddr *)&name, length);
    same("bind", slot, real, ours);
    settle();
    return ours;
}

static void names_of(int slot, struct net_name *real, struct net_name *ours)
{
    real->length = ours->length = sizeof real->at;
    CHECK_EQ(getsockname(sides_slots[slot].real, &real->at.any, &real->length), 0);
    CHECK_EQ(net_getsockname(sides_slots[slot].file, &ours->at.any, &ours->length), 0);
}

int sides_bind_to(int slot, int other)
{
    struct net_name real_name, our_name;
    names_of(other, &real_name, &our_name);
    sides_say("bind(%d, name of %d)", slot, other);
    forget_wakes();
    int real = answer(bind(sides_slots[slot].real, &real_name.at.any, real_name.length));
    int ours = net_bind(sides_slots[slot].file, &our_name.at.any, our_name.length);
    same("bind", slot, real, ours);
    settle();
    return ours;
}

int sides_listen(int slot, int backlog)
{
    sides_say("listen(%d, %d)", slot, backlog);
    forget_wakes();
    int real = answer(listen(sides_slots[slot].real, backlog));
    int ours = net_listen(sides_slots[slot].file, backlog);
    same("listen", slot, real, ours);
    settle();
    return ours;
}

int sides_connect(int slot, int other)
{
    struct net_name real_name = {.at.any.sa_family = AF_UNSPEC, .length = sizeof real_name.at};
    struct net_name our_name = real_name;
    sides_say("connect(%d, %d)", slot, other);
    if (other >= 0)
        names_of(other, &real_name, &our_name);
    forget_wakes();
    int real = answer(connect(sides_slots[slot].real, &real_name.at.any, real_name.length));
    int ours = net_connect(sides_slots[slot].file, &our_name.at.any, our_name.length);
    same("connect", slot, real, ours);
    sides_slots[slot].was_connected = true;
    sides_slots[slot].was_disconnected |= other < 0;
    settle();
    return ours;
}

int sides_accept(int slot, int into)
{
    struct net_name real_name = {.length = sizeof real_name.at}, our_name = real_name;
    sides_say("%d = accept(%d)", into, slot);
    forget_wakes();
    int flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
    int real = answer(
        accept4(sides_slots[slot].real, &real_name.at.any, &real_name.length, flags));
    int ours = net_accept4(sides_slots[slot].file, &our_name.at.any, &our_name.length, flags);
    if (real < 0 || ours < 0) {
        same("accept", slot, real < 0 ? real : 0, ours < 0 ? ours : 0);
        settle();
        return ours;
    }
    settle();
    same("length of the accepted name", slot, real_name.length, our_name.length);
    fill_slot(into, sides_slots[slot].family, sides_slots[slot].type, real, ours);
    sides_slots[into].was_connected = true;
    forget_wakes();
    settle();
    return 0;
}

int sides_shutdown(int slot, int how)
{
    sides_say("shutdown(%d, %d)", slot, how);
    forget_wakes();
    int real = answer(shutdown(sides_slots[slot].real, how));
    int ours = net_shutdown(sides_slots[slot].file, how);
    same("shutdown", slot, real, ours);
    settle();
    return ours;
}

void sides_close(int slot)
{
    sides_say("close(%d)", slot);
    unwatch(slot);
    forget_wakes();
    sides_slots[slot].is_open = false;
    int real = answer(close(sides_slots[slot].real));
    int ours = net_close(sides_slots[slot].ours);
    same("close", slot, real, ours);
    settle();
}

int sides_set(int slot, int level, int option, int value)
{
    sides_say("setsockopt(%d, %d, %d, %d)", slot, level, option, value);
    forget_wakes();
    int real = answer(
        setsockopt(sides_slots[slot].real, level, option, &value, sizeof value));
    int ours = net_setsockopt(sides_slots[slot].file, level, option, &value, sizeof value);
    same("setsockopt", slot, real, ours);
    settle();
    return ours;
}

int sides_get(int slot, int level, int option)
{
    int real_value = 0, our_value = 0;
    socklen_t real_length = sizeof real_value, our_length = sizeof our_value;
    sides_say("getsockopt(%d, %d, %d)", slot, level, option);
    forget_wakes();
    int real = answer(
        getsockopt(sides_slots[slot].real, level, option, &real_value, &real_length));
    int ours = net_getsockopt(sides_slots[slot].file, level, option, &our_value, &our_length);
    same("getsockopt", slot, real, ours);
    same("the option", slot, real_value, our_value);
    settle();
    return our_value;
}

int sides_linger(int slot, int seconds)
{
    struct linger linger = {.l_onoff = seconds >= 0, .l_linger = seconds > 0 ? seconds : 0};
    sides_say("linger(%d, %d)", slot, seconds);
    int real = answer(setsockopt(sides_slots[slot].real, SOL_SOCKET, SO_LINGER, &linger,
                                 sizeof linger));
    int ours = net_setsockopt(sides_slots[slot].file, SOL_SOCKET, SO_LINGER, &linger,
                              sizeof linger);
    return same("linger", slot, real, ours);
}

int sides_mark(int slot)
{
    int real_value = -1, our_value = -1;
    sides_say("SIOCATMARK(%d)", slot);
    int real = answer(ioctl(sides_slots[slot].real, SIOCATMARK, &real_value));
    int ours = net_ioctl(sides_slots[slot].file, SIOCATMARK, &our_value);
    same("SIOCATMARK", slot, real, ours);
    same("the mark", slot, real_value, our_value);
    return our_value;
}

/* Whose name it is: a slot; -1: nobody's here; -2: none. */
static int whose(bool is_real, const struct net_name *name)
{
    if (name->length <= sizeof(sa_family_t))
        return -2;
    for (int i = 0; i < SIDES_SLOTS; i++) {
        struct net_name names[2];
        /* A TCP socket that was disconnected says a port that it has not any more. */
        bool has_old_name = sides_slots[i].was_disconnected && is_tcp(i);
        if (!sides_slots[i].is_open || has_old_name)
            continue;
        names_of(i, &names[0], &names[1]);
        const struct net_name *own = &names[is_real ? 0 : 1];
        if (own->length == name->length && memcmp(&own->at, &name->at, own->length) == 0)
            return i;
    }
    return -1;
}

int sides_names(int slot)
{
    struct net_name real_name = {.length = sizeof real_name.at}, our_name = real_name;
    sides_say("names(%d)", slot);
    names_of(slot, &real_name, &our_name);
    same("length of the name", slot, real_name.length, our_name.length);
    same("the name", slot, whose(true, &real_name), whose(false, &our_name));
    real_name.length = our_name.length = sizeof real_name.at;
    int real = answer(
        getpeername(sides_slots[slot].real, &real_name.at.any, &real_name.length));
    int ours = net_getpeername(sides_slots[slot].file, &our_name.at.any, &our_name.length);
    same("getpeername", slot, real, ours);
    if (ours < 0)
        return ours;
    same("length of the peer's name", slot, real_name.length, our_name.length);
    return same("the peer's name", slot, whose(true, &real_name), whose(false, &our_name));
}

/* Behind those that are there already. */
static void add_control(struct msghdr *message, char *control, int level, int type,
                        const void *data, size_t size)
{
    struct cmsghdr *header = (struct cmsghdr *)(control + message->msg_controllen);
    header->cmsg_level = level;
    header->cmsg_type = type;
    header->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(header), data, size);
    message->msg_control = control;
    message->msg_controllen += CMSG_SPACE(size);
}

int sides_send(int slot, struct sides_send what)
{
    struct net_name real_name = {.length = 0}, our_name = {.length = 0};
    char *data = malloc(what.size + 1);
    CHECK(data != NULL);
    sides_say("send(%d, %zu bytes from %d, flags %#x, to %d, %d descriptors)", slot, what.size,
              next_byte, (unsigned)what.flags, what.to, what.rights_count);
    for (size_t i = 0; i < what.size; i++)
        data[i] = (char)(next_byte + i * 7);
    if (what.to >= 0)
        names_of(what.to, &real_name, &our_name);
    int results[2] = {0, 0}, plain = what.rights_count > 0 ? eventfd(0, EFD_CLOEXEC) : -1;
    forget_wakes();
    for (int side = 0; side < 2; side++) {
        struct net_name *name = side == 0 ? &real_name : &our_name;
        char control[CONTROL] = "";
        struct iovec parts[2] = {{.iov_base = data, .iov_len = what.size / 3},
                                 {.iov_base = data + what.size / 3,
                                  .iov_len = what.size - what.size / 3}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2,
                                 .msg_name = name->length > 0 ? &name->at : NULL,
                                 .msg_namelen = name->length};
        if (what.rights_count > 0) {
            message.msg_control = control;
            message.msg_controllen = CMSG_SPACE((size_t)what.rights_count * sizeof(int));
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN((size_t)what.rights_count * sizeof(int));
            for (int i = 0; i < what.rights_count; i++) {
                int passed = what.rights[i], fd = plain;
                if (passed >= 0)
                    fd = side == 0 ? sides_slots[passed].real : sides_slots[passed].ours;
                memcpy(CMSG_DATA(header) + (size_t)i * sizeof fd, &fd, sizeof fd);
            }
        }
        if (what.has_credentials) {
            struct ucred own = {.pid = getpid(), .uid = getuid(), .gid = getgid()};
            add_control(&message, control, SOL_SOCKET, SCM_CREDENTIALS, &own, sizeof own);
        }
        if (what.source != NULL) {
            struct in_pktinfo asked = {.ipi_spec_dst.s_addr = inet_addr(what.source)};
            add_control(&message, control, IPPROTO_IP, IP_PKTINFO, &asked, sizeof asked);
        }
        if (side == 0)
            results[side] = answer(sendmsg(sides_slots[slot].real, &message,
                                           what.flags | MSG_DONTWAIT | MSG_NOSIGNAL));
        else
            results[side] = net_sendmsg(sides_slots[slot].file, &message,
                                        what.flags | MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    free(data);
    if (plain >= 0)
        close(plain);
    same("send", slot, results[0], results[1]);
    if (results[0] > 0)
        next_byte = (uint8_t)(next_byte + results[0] * 7);
    settle();
    return results[1];
}

void sides_later(uint64_t ns)
{
    sides_say("%llu ns later", (unsigned long long)ns);
    forget_wakes();
    nanosleep(&(struct timespec){.tv_sec = (time_t)(ns / 1000000000),
                                 .tv_nsec = (long)(ns % 1000000000)}, NULL);
    net_advance(now_ns += ns);
    settle();
}

bool sides_bad_datagram(int slot, size_t size)
{
    struct net_name real, ours;
    unsigned char packet[1000] = "";
    sides_say("a datagram of %zu bytes with a wrong checksum to %d", size, slot);
    int raw = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_UDP);
    if (raw < 0)
        return false;
    names_of(slot, &real, &ours);
    uint16_t length = htons((uint16_t)(8 + size)), from = htons(9), sum = htons(0xbad1);
    memcpy(packet, &from, 2);
    memcpy(packet + 2, &real.at.v4.sin_port, 2);
    memcpy(packet + 4, &length, 2);
    memcpy(packet + 6, &sum, 2);
    real.at.v4.sin_port = 0;
    forget_wakes();
    CHECK_EQ(sendto(raw, packet, 8 + size, 0, &real.at.any, real.length), 8 + (int)size);
    close(raw);
    net_bad_datagram(sides_slots[slot].file, size);
    settle();
    return true;
}

void sides_blocking(int slot, bool is_blocking)
{
    sides_say("blocking(%d, %d)", slot, is_blocking);
    for (int side = 0; side < 2; side++) {
        int fd = side == 0 ? sides_slots[slot].real : sides_slots[slot].ours;
        int flags = fcntl(fd, F_GETFL);
        fcntl(fd, F_SETFL, is_blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
    }
}

int sides_write(int slot, size_t size)
{
    return sides_send(slot, (struct sides_send){.size = size, .to = -1});
}

static int receive(bool is_real, int slot, size_t room, int flags, size_t control_room,
                   struct sides_received *to)
{
    char control[CONTROL] = "";
    struct net_name name = {.length = sizeof name.at};
    struct iovec parts[2] = {{.iov_base = to->data, .iov_len = room / 2},
                             {.iov_base = to->data + room / 2, .iov_len = room - room / 2}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_name = &name.at,
                             .msg_namelen = name.length, .msg_control = control,
                             .msg_controllen = control_room};
    if (control_room == 0)
        message.msg_control = NULL;
    memset(to->data, 0, room);
    if (is_real)
        to->result = answer(recvmsg(sides_slots[slot].real, &message, flags | MSG_DONTWAIT));
    else
        to->result = net_recvmsg(sides_slots[slot].file, &message, flags | MSG_DONTWAIT);
    to->flags = message.msg_flags;
    memset(to->messages, 0, sizeof to->messages);
    to->rights = 0;
    to->control = message.msg_controllen;
    if (to->result < 0) {
        to->control = 0;
        to->flags = 0;
        to->from = -2;
        return to->result;
    }
    name.length = message.msg_namelen;
    to->from = whose(is_real, &name);
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
         header = CMSG_NXTHDR(&message, header)) {
        size_t size = header->cmsg_len - CMSG_LEN(0);
        char *at = to->messages + ((char *)header - control);
        memcpy(at, header, sizeof *header);
        bool is_stamp = header->cmsg_level == SOL_SOCKET && header->cmsg_type == SO_TIMESTAMPING;
        bool has_rights = header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS;
        if (!is_stamp && !has_rights)
            memcpy(at + CMSG_LEN(0), CMSG_DATA(header), size);
        if (!has_rights)
            continue;
        int count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + (size_t)i * sizeof fd, sizeof fd);
            if (is_real)
                close(fd);
            else
                net_close(fd);
        }
        to->rights += count;
    }
    return to->result;
}

int sides_receive_with(int slot, size_t room, int flags, size_t control)
{
    static struct sides_received real;
    sides_say("receive(%d, %zu, flags %#x, control %zu)", slot, room, (unsigned)flags, control);
    CHECK(room <= sizeof real.data);
    forget_wakes();
    receive(true, slot, room, flags, control, &real);
    receive(false, slot, room, flags, control, &sides_received);
    same("receive", slot, real.result, sides_received.result);
    same("flags of the receive", slot, real.flags, sides_received.flags);
    same("sender", slot, real.from, sides_received.from);
    same("descriptors", slot, real.rights, sides_received.rights);
    same("control bytes", slot, (long)real.control, (long)sides_received.control);
    for (size_t i = 0; i < CONTROL; i++)
        if (real.messages[i] != sides_received.messages[i])
            differ("a byte of its control messages", slot, real.messages[i],
                   sides_received.messages[i]);
    for (size_t i = 0; i < room; i++)
        if (real.data[i] != sides_received.data[i])
            differ("a byte", slot, real.data[i], sides_received.data[i]);
    settle();
    return sides_received.result;
}

int sides_receive(int slot, size_t room, int flags)
{
    return sides_receive_with(slot, room, flags, CONTROL);
}

/* ---- one side ---------------------------------------------------------------- */

int sides_one_send(int side, int slot, const char *data, size_t size)
{
    struct iovec part = {.iov_base = (char *)data, .iov_len = size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (side == 1)
        return net_sendmsg(sides_slots[slot].file, &message, MSG_DONTWAIT);
    acknowledge();
    return answer(sendmsg(sides_slots[slot].real, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
}

int sides_one_receive(int side, int slot, char *data, size_t room)
{
    struct iovec part = {.iov_base = data, .iov_len = room};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (side == 1)
        return net_recvmsg(sides_slots[slot].file, &message, MSG_DONTWAIT);
    return answer(recvmsg(sides_slots[slot].real, &message, MSG_DONTWAIT));
}

unsigned sides_one_bits(int side, int slot)
{
    return side == 0 ? real_bits(slot) : our_bits(slot);
}

int sides_one_queued(int side, int slot)
{
    return side == 0 ? real_queued(slot) : net_queued(sides_slots[slot].file);
}

void sides_one_memory(int side, int slot, size_t *taken, size_t *limit)
{
    uint32_t info[9] = {0};
    socklen_t length = sizeof info;
    struct net_file *file = sides_slots[slot].file;
    if (side == 0)
        getsockopt(sides_slots[slot].real, SOL_SOCKET, SO_MEMINFO, info, &length);
    *taken = side == 0 ? info[SK_MEMINFO_WMEM_QUEUED] : file->memory;
    *limit = side == 0 ? info[SK_MEMINFO_SNDBUF]
                       : (size_t)net_option(file, SOL_SOCKET, SO_SNDBUF);
}

unsigned sides_one_woken(int side, int slot)
{
    unsigned keys = 0;
    if (side == 0) {
        acknowledge();
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        drain();
        for (unsigned i = 0; i < woken[slot].told_count; i++)
            keys |= woken[slot].told[i];
        woken[slot].told_count = 0;
    } else if (woken[slot].count > 0) {
        keys = woken[slot].key;
        woken[slot].count = 0;
    }
    return keys;
}

/* ---- what stands in the way ----------------------------------------------------- */

const char *sides_obstacle(void)
{
    struct utsname system;
    unsigned major = 0, minor = 0;
    uname(&system);
    if (sscanf(system.release, "%u.%u", &major, &minor) != 2 || major * 1000 + minor < 6018)
        return "its claims are of Linux 6.18 and later";
    if (sysconf(_SC_PAGESIZE) != 4096)
        return "what a message costs is reckoned for pages of 4 KiB";
    if (sides_begin() < 0)
        return "no io_uring here";
    sides_end();
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int result = bind(fd, (struct sockaddr *)&here, sizeof here);
    close(fd);
    return result < 0 ? "no IPv6 here" : NULL;
}

char sides_byte_at(size_t place)
{
    return (char)(place * 7 + place / 251);
}
