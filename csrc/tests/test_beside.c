/*
 * Calls beside the ring: each goes through the kernel in use, with the flags that keep it
 * from waiting, and tells what that answers. On the fake kernel, and on real sockets.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../beside.h"
#include "check.h"
#include "fake_kernel.h"

/* ---- on the fake kernel --------------------------------------------------- */

static const struct sockaddr_in somebody = {.sin_family = AF_INET, .sin_port = 0x5000};

static void set_up(void)
{
    fake_reset();
    ut_kernel_in_use = &ut_kernel_fake;
    memcpy(&fake.name, &somebody, sizeof somebody);
    fake.name_length = sizeof somebody;
}

/* The only call that was made since set_up(). */
static const struct fake_made *made(enum fake_call call, int fd)
{
    CHECK_EQ(fake.made_count, 1);
    CHECK_EQ(fake.made[0].call, call);
    CHECK_EQ(fake.made[0].fd, fd);
    return &fake.made[0];
}

static bool is_somebody(const struct ut_name *name)
{
    return name->length == sizeof somebody &&
           memcmp(&name->storage, &somebody, sizeof somebody) == 0;
}

static void a_send_does_not_wait_and_raises_no_signal(void)
{
    set_up();
    fake.answers[FAKE_SENDTO] = 3;
    CHECK_EQ(ut_try_send(5, "abcde", 5), 3);
    const struct fake_made *call = made(FAKE_SENDTO, 5);
    CHECK_EQ(call->flags, MSG_DONTWAIT | MSG_NOSIGNAL);
    CHECK_EQ(call->size, 5);
    CHECK(memcmp(call->memory, "abcde", 5) == 0);
    CHECK_EQ(call->name_length, 0);
}

static void a_datagram_has_its_receiver(void)
{
    set_up();
    fake.answers[FAKE_SENDTO] = -ECONNREFUSED;
    CHECK_EQ(ut_try_send_to(5, "abc", 3, 0, (const char *)&somebody, sizeof somebody),
             -ECONNREFUSED);
    const struct fake_made *call = made(FAKE_SENDTO, 5);
    CHECK_EQ(call->flags, MSG_DONTWAIT | MSG_NOSIGNAL);
    CHECK_EQ(call->size, 3);
    CHECK_EQ(call->name_length, sizeof somebody);
    CHECK(call->has_name);
    CHECK(memcmp(&call->name, &somebody, sizeof somebody) == 0);
}

static void without_a_receiver_a_datagram_goes_to_the_peer(void)
{
    set_up();
    fake.answers[FAKE_SENDTO] = 3;
    CHECK_EQ(ut_try_send_to(5, "abc", 3, MSG_CONFIRM, (const char *)&somebody, 0), 3);
    const struct fake_made *call = made(FAKE_SENDTO, 5);
    CHECK_EQ(call->flags, MSG_CONFIRM | MSG_DONTWAIT | MSG_NOSIGNAL);
    CHECK_EQ(call->name_length, 0);
    CHECK(!call->has_name);
}

static void a_message_is_sent_again_and_again(void)
{
    set_up();
    struct ut_message *message = ut_message_new(0, 64, 100);
    CHECK_EQ(ut_message_set_name(message, (const char *)&somebody, sizeof somebody), 0);
    fake.answers[FAKE_SENDMSG] = -EAGAIN;
    for (unsigned i = 0; i < 2; i++) {
        CHECK_EQ(ut_try_sendmsg(5, message, MSG_CONFIRM), -EAGAIN);
        CHECK_EQ(fake.made[i].flags, MSG_CONFIRM | MSG_DONTWAIT | MSG_NOSIGNAL);
        CHECK_EQ(fake.made[i].name_length, sizeof somebody);
        CHECK_EQ(fake.made[i].size, 64);
    }
    ut_message_free(message);
}

static void a_receive_does_not_wait(void)
{
    char memory[7];
    set_up();
    fake.answers[FAKE_RECVFROM] = 4;
    CHECK_EQ(ut_try_recv(5, memory, sizeof memory), 4);
    const struct fake_made *call = made(FAKE_RECVFROM, 5);
    CHECK_EQ(call->flags, MSG_DONTWAIT);
    CHECK_EQ(call->size, sizeof memory);
    CHECK(call->memory == memory);
    CHECK_EQ(call->name_length, 0);
}

static void a_receive_tells_who_it_is_from(void)
{
    char memory[7];
    struct ut_name from;
    set_up();
    CHECK_EQ(ut_try_recv_from(5, memory, sizeof memory, MSG_PEEK, &from), 0);
    const struct fake_made *call = made(FAKE_RECVFROM, 5);
    CHECK_EQ(call->flags, MSG_PEEK | MSG_DONTWAIT);
    CHECK_EQ(call->name_length, sizeof from.storage);
    CHECK(is_somebody(&from));
}

static void a_message_receives_again_and_again(void)
{
    set_up();
    struct ut_message *message = ut_message_new(0, 64, 100);
    fake.answers[FAKE_RECVMSG] = 10;
    for (unsigned i = 0; i < 2; i++) {
        CHECK_EQ(ut_try_recvmsg(5, message, MSG_ERRQUEUE), 10);
        CHECK_EQ(fake.made[i].flags, MSG_ERRQUEUE | MSG_DONTWAIT);
        CHECK_EQ(fake.made[i].name_length, sizeof message->name);
        CHECK_EQ(fake.made[i].size, 64);
        CHECK(fake.made[i].memory == &message->header);
        CHECK_EQ(message->header.msg_namelen, sizeof somebody);
        CHECK_EQ(message->header.msg_controllen, 0);
    }
    ut_message_free(message);
}

static void a_send_with_control_messages_does_not_wait(void)
{
    char control[CMSG_SPACE(4)] = {0};
    set_up();
    fake.answers[FAKE_SENDMSG] = -EAGAIN;
    CHECK_EQ(ut_try_send_with(5, "abc", 3, (const char *)&somebody, sizeof somebody, control,
                              sizeof control),
             -EAGAIN);
    const struct fake_made *call = made(FAKE_SENDMSG, 5);
    CHECK_EQ(call->flags, MSG_DONTWAIT | MSG_NOSIGNAL);
    CHECK_EQ(call->size, sizeof control);
    CHECK_EQ(call->name_length, sizeof somebody);
}

static void nothing_is_accepted_where_it_might_wait(void)
{
    set_up();
    fake.answers[FAKE_STATUS_FLAGS] = O_RDWR;
    CHECK_EQ(ut_try_accept(5, 0, NULL), -EDEADLK);
    made(FAKE_STATUS_FLAGS, 5);
    set_up();
    fake.answers[FAKE_STATUS_FLAGS] = -EBADF;
    CHECK_EQ(ut_try_accept(5, 0, NULL), -EBADF);
    made(FAKE_STATUS_FLAGS, 5);
}

static void what_is_accepted_has_a_name_if_that_is_asked_for(void)
{
    struct ut_name peer;
    set_up();
    fake.answers[FAKE_STATUS_FLAGS] = O_RDWR | O_NONBLOCK;
    fake.answers[FAKE_ACCEPT4] = 9;
    CHECK_EQ(ut_try_accept(5, SOCK_CLOEXEC, &peer), 9);
    CHECK(is_somebody(&peer));
    CHECK_EQ(ut_try_accept(5, SOCK_CLOEXEC, NULL), 9);
    CHECK_EQ(fake.made_count, 4);
    for (unsigned i = 1; i < 4; i += 2) {
        CHECK_EQ(fake.made[i].call, FAKE_ACCEPT4);
        CHECK_EQ(fake.made[i].flags, SOCK_CLOEXEC);
        CHECK_EQ(fake.made[i].name_length, i == 1 ? sizeof peer.storage : 0);
    }
    fake.answers[FAKE_ACCEPT4] = -EAGAIN;
    CHECK_EQ(ut_try_accept(5, SOCK_CLOEXEC, &peer), -EAGAIN);
}

static void connections_begin_and_end(void)
{
    set_up();
    fake.answers[FAKE_CONNECT] = -EINPROGRESS;
    CHECK_EQ(ut_connect(5, (const char *)&somebody, sizeof somebody), -EINPROGRESS);
    CHECK(memcmp(&made(FAKE_CONNECT, 5)->name, &somebody, sizeof somebody) == 0);
    CHECK_EQ(fake.made[0].name_length, sizeof somebody);
    set_up();
    fake.answers[FAKE_SHUTDOWN] = -ENOTCONN;
    CHECK_EQ(ut_shutdown(5, SHUT_WR), -ENOTCONN);
    CHECK_EQ(made(FAKE_SHUTDOWN, 5)->flags, SHUT_WR);
    set_up();
    fake.file = 5;
    fake.answers[FAKE_CLOSE] = -EIO;
    CHECK_EQ(ut_close(5), -EIO);
    made(FAKE_CLOSE, 5);
    CHECK_EQ(fake.faults, 0);
    fake.faults_expected = true;
    CHECK_EQ(ut_close(5), -EBADF); /* and the judge has seen it */
    CHECK_EQ(fake.faults, 1);
    fake.faults = 0;
}

static void looks_wait_only_if_they_are_told_to(void)
{
    set_up();
    fake.option = POLLIN | POLLHUP;
    fake.answers[FAKE_POLL] = 1;
    CHECK_EQ(ut_try_poll(5, POLLIN), POLLIN | POLLHUP);
    CHECK_EQ(made(FAKE_POLL, 5)->flags, 0);
    CHECK_EQ(fake.made[0].option, POLLIN);
    set_up();
    fake.answers[FAKE_POLL] = -EINTR;
    CHECK_EQ(ut_poll(5, POLLOUT, 70), -EINTR);
    CHECK_EQ(made(FAKE_POLL, 5)->flags, 70);
    CHECK_EQ(fake.made[0].option, POLLOUT);
}

static void options_are_ints_or_bytes(void)
{
    set_up();
    fake.option = -2;
    CHECK_EQ(ut_getsockopt(5, SOL_SOCKET, SO_RCVLOWAT), 0xfffffffe); /* no error */
    CHECK_EQ(made(FAKE_GETSOCKOPT, 5)->option, SO_RCVLOWAT);
    CHECK_EQ(fake.made[0].level, SOL_SOCKET);
    fake.answers[FAKE_GETSOCKOPT] = -ENOPROTOOPT;
    CHECK_EQ(ut_getsockopt(5, SOL_SOCKET, SO_RCVLOWAT), -ENOPROTOOPT);
    set_up();
    CHECK_EQ(ut_setsockopt(5, IPPROTO_TCP, 1, 77), 0);
    CHECK_EQ(fake.option, 77);
    CHECK_EQ(made(FAKE_SETSOCKOPT, 5)->level, IPPROTO_TCP);
    CHECK_EQ(fake.made[0].size, sizeof(int));
    set_up();
    fake.answers[FAKE_SETSOCKOPT] = -EINVAL;
    CHECK_EQ(ut_setsockopt_bytes(5, SOL_SOCKET, SO_LINGER, "12345678", 8), -EINVAL);
    CHECK_EQ(made(FAKE_SETSOCKOPT, 5)->size, 8);
    CHECK(memcmp(fake.made[0].memory, "12345678", 8) == 0);
}

static void names_are_told(void)
{
    struct ut_name name;
    set_up();
    CHECK_EQ(ut_own_name(5, &name), 0);
    made(FAKE_GETSOCKNAME, 5);
    CHECK(is_somebody(&name));
    set_up();
    CHECK_EQ(ut_peer_name(5, &name), 0);
    made(FAKE_GETPEERNAME, 5);
    CHECK(is_somebody(&name));
    set_up();
    fake.answers[FAKE_GETPEERNAME] = -EBADF;
    CHECK_EQ(ut_peer_name(5, &name), -EBADF);
    made(FAKE_GETPEERNAME, 5);
}

static void a_peer_has_a_name_after_a_reset(void)
{
    struct ut_name name;
    set_up();
    fake.answers[FAKE_GETPEERNAME] = -ENOTCONN;
    CHECK_EQ(ut_peer_name(5, &name), 0);
    CHECK_EQ(fake.made_count, 3);
    CHECK_EQ(fake.made[2].call, FAKE_GETSOCKOPT);
    CHECK_EQ(fake.made[2].size, sizeof(struct sockaddr_in));
    CHECK(is_somebody(&name));
    fake.name.ss_family = AF_UNIX;
    CHECK_EQ(ut_peer_name(5, &name), -ENOTCONN);
    fake.answers[FAKE_GETSOCKNAME] = -ENOBUFS;
    CHECK_EQ(ut_peer_name(5, &name), -ENOTCONN);
}

static void the_rest_is_passed_on(void)
{
    char memory[8];
    set_up();
    fake.answers[FAKE_READ] = 8;
    CHECK_EQ(ut_read(5, memory, sizeof memory), 8);
    CHECK(made(FAKE_READ, 5)->memory == memory);
    CHECK_EQ(fake.made[0].size, sizeof memory);
    set_up();
    fake.answers[FAKE_WRITE] = -EPIPE;
    CHECK_EQ(ut_write(5, "abc", 3), -EPIPE);
    CHECK_EQ(made(FAKE_WRITE, 5)->size, 3);
    set_up();
    fake.answers[FAKE_STATUS_FLAGS] = O_WRONLY;
    CHECK_EQ(ut_status_flags(5), O_WRONLY);
    made(FAKE_STATUS_FLAGS, 5);
    set_up();
    fake.answers[FAKE_QUEUED] = 123;
    CHECK_EQ(ut_queued(5), 123);
    made(FAKE_QUEUED, 5);
    set_up();
    fake.answers[FAKE_MODE] = S_IFSOCK;
    CHECK_EQ(ut_mode(5), S_IFSOCK);
    made(FAKE_MODE, 5);
}

/* ---- on real sockets ------------------------------------------------------ */

static int pair[2];

static void open_pair(void)
{
    fake_reset();
    ut_kernel_in_use = &ut_kernel_real;
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0); /* blocking ones */
}

static void close_pair(void)
{
    close(pair[0]);
    close(pair[1]);
}

static void what_fits_is_sent_whole(void)
{
    char answer[10];
    open_pair();
    CHECK_EQ(ut_try_send(pair[0], "whole", 5), 5);
    CHECK_EQ(ut_try_recv(pair[1], answer, sizeof answer), 5);
    CHECK(memcmp(answer, "whole", 5) == 0);
    CHECK_EQ(ut_try_send(pair[0], "", 0), 0);
    close_pair();
}

static void what_does_not_fit_is_sent_in_part_and_then_refused(void)
{
    enum { SIZE = 16 << 20 };
    char *data = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (char)(i * 7 >> 3);
    open_pair();
    int sent = ut_try_send(pair[0], data, SIZE);
    CHECK(sent > 0 && sent < SIZE);
    CHECK_EQ(ut_try_send(pair[0], data + sent, (size_t)(SIZE - sent)), -EAGAIN);
    char *arrived = malloc(SIZE);
    int count = 0, piece;
    while ((piece = ut_try_recv(pair[1], arrived + count, SIZE - (size_t)count)) > 0)
        count += piece;
    CHECK_EQ(piece, -EAGAIN); /* and it does not wait */
    CHECK_EQ(count, sent);
    CHECK(memcmp(arrived, data, (size_t)count) == 0);
    CHECK(ut_try_send(pair[0], data + sent, (size_t)(SIZE - sent)) > 0); /* there is room again */
    free(arrived);
    free(data);
    close_pair();
}

static void a_send_to_nobody_is_an_error_and_no_signal(void)
{
    open_pair();
    close(pair[1]);
    CHECK_EQ(ut_try_send(pair[0], "x", 1), -EPIPE); /* SIGPIPE would have ended us */
    pair[1] = -1;
    close_pair();
    CHECK_EQ(ut_try_send(-1, "x", 1), -EBADF);
}

static void a_receive_finds_data_the_end_or_nothing(void)
{
    char answer[4];
    open_pair();
    CHECK_EQ(ut_try_recv(pair[0], answer, sizeof answer), -EAGAIN);
    CHECK_EQ(write(pair[1], "abcdef", 6), 6);
    CHECK_EQ(shutdown(pair[1], SHUT_WR), 0);
    CHECK_EQ(ut_try_recv(pair[0], answer, sizeof answer), 4);
    CHECK(memcmp(answer, "abcd", 4) == 0);
    CHECK_EQ(ut_try_recv(pair[0], answer, sizeof answer), 2);
    CHECK_EQ(ut_try_recv(pair[0], answer, sizeof answer), 0);
    CHECK_EQ(ut_try_recv(pair[0], answer, sizeof answer), 0);
    CHECK_EQ(ut_try_recv(-1, answer, sizeof answer), -EBADF);
    close_pair();
}

static void a_look_tells_what_is_so_now(void)
{
    char answer[4];
    open_pair();
    CHECK_EQ(ut_try_poll(pair[0], POLLIN), 0);
    CHECK_EQ(ut_try_poll(pair[0], POLLOUT), POLLOUT);
    CHECK_EQ(write(pair[1], "x", 1), 1);
    CHECK_EQ(ut_try_poll(pair[0], POLLIN), POLLIN);
    CHECK_EQ(ut_try_recv(pair[0], answer, sizeof answer), 1);
    CHECK_EQ(ut_try_poll(pair[0], POLLIN), 0); /* whatever was told before */
    close(pair[1]);
    pair[1] = -1;
    CHECK(ut_try_poll(pair[0], POLLIN) & POLLHUP); /* though nobody has asked for it */
    CHECK_EQ(ut_try_poll(1 << 20, POLLIN), POLLNVAL);
    close_pair();
}

static int listener, client;

/* A listener of IPv4 and a connection that waits there. */
static void open_listener(void)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    fake_reset();
    ut_kernel_in_use = &ut_kernel_real;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&name, sizeof name), 0);
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&name, &length), 0);
    CHECK_EQ(ut_connect(client, (const char *)&name, length), 0);
}

static void a_reset_peer_is_the_one_that_was_accepted(void)
{
    struct ut_name accepted, peer, own;
    struct linger at_once = {1, 0};
    open_listener();
    CHECK_EQ(ut_own_name(client, &own), 0);
    int fd = ut_try_accept(listener, SOCK_CLOEXEC, &accepted);
    CHECK(fd >= 0);
    CHECK_EQ(ut_try_accept(listener, SOCK_CLOEXEC, NULL), -EAGAIN);
    CHECK_EQ(accepted.length, sizeof(struct sockaddr_in));
    CHECK(memcmp(&accepted.storage, &own.storage, own.length) == 0);
    CHECK_EQ(ut_setsockopt_bytes(client, SOL_SOCKET, SO_LINGER, (char *)&at_once,
                                 sizeof at_once), 0);
    CHECK_EQ(ut_close(client), 0);
    CHECK(ut_poll(fd, 0, 10000) & POLLERR);
    CHECK_EQ(ut_getsockopt(fd, SOL_SOCKET, SO_ERROR), ECONNRESET);
    CHECK_EQ(ut_peer_name(fd, &peer), 0); /* getpeername(2) has forgotten it */
    CHECK_EQ(peer.length, sizeof(struct sockaddr_in));
    CHECK(memcmp(&peer.storage, &own.storage, own.length) == 0);
    CHECK_EQ(ut_close(fd), 0);
    CHECK_EQ(ut_close(fd), -EBADF);
    CHECK_EQ(ut_close(listener), 0);
}

static void a_blocking_listener_is_not_touched(void)
{
    open_listener();
    CHECK_EQ(fcntl(listener, F_SETFL, 0), 0);
    CHECK_EQ(ut_try_accept(listener, 0, NULL), -EDEADLK);
    CHECK_EQ(ut_try_poll(listener, POLLIN), POLLIN); /* it is still there */
    CHECK_EQ(ut_try_accept(-1, 0, NULL), -EBADF);
    close(client);
    close(listener);
}

static void a_datagram_goes_back_to_its_sender(void)
{
    char data[8];
    struct ut_name name, from;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    fake_reset();
    ut_kernel_in_use = &ut_kernel_real;
    int there = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int here = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(there, (struct sockaddr *)&any, sizeof any), 0);
    CHECK_EQ(bind(here, (struct sockaddr *)&any, sizeof any), 0);
    CHECK_EQ(ut_own_name(here, &name), 0);
    CHECK_EQ(ut_try_send_to(there, "ask", 3, 0, (char *)&name.storage, name.length), 3);
    CHECK_EQ(ut_queued(here), 3);
    CHECK_EQ(ut_try_recv_from(here, data, sizeof data, 0, &from), 3);
    CHECK_EQ(ut_own_name(there, &name), 0);
    CHECK_EQ(from.length, name.length);
    CHECK(memcmp(&from.storage, &name.storage, name.length) == 0);
    CHECK_EQ(ut_try_recv_from(here, data, sizeof data, 0, &from), -EAGAIN);
    CHECK_EQ(ut_try_send_to(here, "answer", 6, 0, (char *)&name.storage, name.length), 6);
    struct ut_message *message = ut_message_new(0, 0, sizeof data);
    CHECK_EQ(ut_try_recvmsg(there, message, 0), 6);
    CHECK(memcmp(message->data, "answer", 6) == 0);
    CHECK_EQ(ut_try_recvmsg(there, message, 0), -EAGAIN);
    ut_message_free(message);
    char control[CMSG_SPACE(sizeof(struct in_pktinfo))] = {0};
    struct cmsghdr *header = (struct cmsghdr *)(void *)control;
    struct in_pktinfo info = {.ipi_spec_dst.s_addr = htonl(INADDR_LOOPBACK + 1)};
    header->cmsg_len = CMSG_LEN(sizeof info);
    header->cmsg_level = IPPROTO_IP;
    header->cmsg_type = IP_PKTINFO;
    memcpy(CMSG_DATA(header), &info, sizeof info);
    int everywhere = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(ut_try_send_with(everywhere, "from", 4, (char *)&name.storage, name.length, control,
                              sizeof control),
             4);
    CHECK_EQ(ut_try_recv_from(there, data, sizeof data, 0, &from), 4);
    CHECK_EQ(((struct sockaddr_in *)&from.storage)->sin_addr.s_addr, info.ipi_spec_dst.s_addr);
    close(everywhere);
    close(here);
    close(there);
}

static void what_a_file_is_and_how_it_was_opened(void)
{
    int ends[2];
    uint64_t count = 5;
    fake_reset();
    ut_kernel_in_use = &ut_kernel_real;
    CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    CHECK(S_ISFIFO(ut_mode(ends[0])));
    CHECK_EQ(ut_status_flags(ends[0]) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
    CHECK_EQ(ut_status_flags(ends[1]) & O_ACCMODE, O_WRONLY);
    CHECK_EQ(ut_mode(-1), -EBADF);
    CHECK_EQ(ut_status_flags(-1), -EBADF);
    CHECK_EQ(ut_queued(-1), -EBADF);
    close(ends[0]);
    close(ends[1]);
    int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK_EQ(ut_read(event, &count, sizeof count), -EAGAIN);
    CHECK_EQ(ut_write(event, (const char *)&count, sizeof count), 8);
    count = 0;
    CHECK_EQ(ut_read(event, &count, sizeof count), 8);
    CHECK_EQ(count, 5);
    close(event);
}

static void a_wait_for_a_file_is_over_in_time(void)
{
    open_pair();
    uint64_t start = ut_kernel_real.now_ns();
    CHECK_EQ(ut_poll(pair[0], POLLIN, 20), 0);
    CHECK(ut_kernel_real.now_ns() - start >= 20000000);
    CHECK_EQ(ut_shutdown(pair[1], SHUT_WR), 0);
    CHECK_EQ(ut_poll(pair[0], POLLIN, -1) & POLLIN, POLLIN);
    CHECK_EQ(ut_shutdown(-1, SHUT_WR), -EBADF);
    close_pair();
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(a_send_does_not_wait_and_raises_no_signal);
    RUN(a_datagram_has_its_receiver);
    RUN(without_a_receiver_a_datagram_goes_to_the_peer);
    RUN(a_message_is_sent_again_and_again);
    RUN(a_receive_does_not_wait);
    RUN(a_receive_tells_who_it_is_from);
    RUN(a_message_receives_again_and_again);
    RUN(a_send_with_control_messages_does_not_wait);
    RUN(nothing_is_accepted_where_it_might_wait);
    RUN(what_is_accepted_has_a_name_if_that_is_asked_for);
    RUN(connections_begin_and_end);
    RUN(looks_wait_only_if_they_are_told_to);
    RUN(options_are_ints_or_bytes);
    RUN(names_are_told);
    RUN(a_peer_has_a_name_after_a_reset);
    RUN(the_rest_is_passed_on);
    RUN(what_fits_is_sent_whole);
    RUN(what_does_not_fit_is_sent_in_part_and_then_refused);
    RUN(a_send_to_nobody_is_an_error_and_no_signal);
    RUN(a_receive_finds_data_the_end_or_nothing);
    RUN(a_look_tells_what_is_so_now);
    RUN(a_reset_peer_is_the_one_that_was_accepted);
    RUN(a_blocking_listener_is_not_touched);
    RUN(a_datagram_goes_back_to_its_sender);
    RUN(what_a_file_is_and_how_it_was_opened);
    RUN(a_wait_for_a_file_is_over_in_time);
    return CHECK_SUMMARY();
}
