/*
 * Short connections: connect, one exchange, the server closes, connect again
 *
 * Two kinds. `accept`: the server sends one byte, an x, as soon as it has
 * accepted. `ask`: a message is sent, and the server sends it back. Then it closes,
 * and the end of file ends the exchange, whose latency is counted from connect(2).
 * So many connections as were asked for are under way at any time.
 *
 * The server closes first and keeps the pair of addresses for a minute. One address
 * has 28,000 ports, so clients come from 100 of them.
 */
#include "loadgen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24 /* Linux 4.2: connect(2) chooses the port, by both ends */
#endif

#define SOURCES 100u
#define FIRST_SOURCE 0x7f000101u /* 127.0.1.1 */

static const uint8_t accept_answer[] = {'x'};

static int open_socket(const struct load *load, uint32_t number)
{
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_in source = {.sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl(FIRST_SOURCE + number % SOURCES)};
    struct sockaddr_in server = {.sin_family = AF_INET,
                                 .sin_port = htons(load->options.port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0)
        return -errno;
    if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
        bind(fd, (struct sockaddr *)&source, sizeof source) != 0 ||
        (connect(fd, (struct sockaddr *)&server, sizeof server) != 0 && errno != EINPROGRESS)) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

/* The next connection of this place. Returns 0 or -errno. */
static int start(struct load *load, struct connection *connection)
{
    start_message(load, connection);
    uint32_t number = connection->shift + (uint32_t)(connection - load->connections);
    connection->fd = open_socket(load, number);
    if (connection->fd < 0)
        return connection->fd;
    return watch(load, connection, EPOLLIN | EPOLLOUT | EPOLLET);
}

static int begin(struct load *load, struct connection *connection, uint64_t deadline_ns)
{
    (void)deadline_ns; /* connecting is a part of what is measured, and no wait here */
    return start(load, connection);
}

static void end_exchange(struct load *load, struct connection *connection)
{
    count_message(load, connection);
    close(connection->fd); /* takes it out of the epoll set too */
    connection->fd = -1;
    connection->waiting = false;
    load->waiting--;
    if (load->sending && start(load, connection) != 0)
        give_up(load, connection, &load->report.disconnects);
}

static void receive_answer(struct load *load, struct connection *connection,
                           const uint8_t *answer, uint32_t size)
{
    for (;;) {
        ssize_t count = recv(connection->fd, load->buffer, RECEIVE_BYTES, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN)
            return;
        if (count == 0 && connection->received == size) {
            end_exchange(load, connection);
            return;
        }
        if (count <= 0) {
            give_up(load, connection, &load->report.disconnects);
            return;
        }
        if ((uint64_t)count > size - connection->received ||
            memcmp(answer + connection->received, load->buffer, (size_t)count) != 0) {
            give_up(load, connection, &load->report.mismatches);
            return;
        }
        connection->received += (uint32_t)count;
    }
}

static void handle_accept(struct load *load, struct connection *connection, uint32_t events)
{
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive_answer(load, connection, accept_answer, sizeof accept_answer);
}

static void handle_ask(struct load *load, struct connection *connection, uint32_t events)
{
    if ((events & EPOLLOUT) && !send_more(load, connection))
        return;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive_answer(load, connection, expected_bytes(load, connection),
                       load->options.message_bytes);
}

const struct kind short_kinds[2] = {
    {"accept", begin, handle_accept},
    {"ask", begin, handle_ask},
};
