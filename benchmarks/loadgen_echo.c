/*
 * Ping-pong: one message, all of it back, the next one
 *
 * A connection is registered once, for both directions, edge-triggered. At every
 * event it sends until its message is out or the socket is full, and receives
 * until a read is short. A read asks for one byte more than is missing: a whole
 * reply is then a short read, which under edge triggering means that the socket
 * is empty, and a server that sends too much is found out.
 *
 * Sending and receiving go on side by side, since a large message does not fit
 * into the two sockets' buffers and the echo comes back before all of it is out.
 *
 * The same over UDP: a datagram that is lost is a connection that stalls.
 */
#include "loadgen.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

void start_message(struct load *load, struct connection *connection)
{
    connection->shift = (connection->shift + 1) % PATTERN_SHIFTS;
    connection->sent = 0;
    connection->received = 0;
    connection->started_ns = monotonic_ns();
    if (!connection->waiting)
        load->waiting++;
    connection->waiting = true;
}

/* Sends until the message is out or the socket is full. False: the connection was given up. */
bool send_more(struct load *load, struct connection *connection)
{
    uint32_t size = load->options.message_bytes;
    const uint8_t *message = expected_bytes(load, connection);
    while (connection->waiting && connection->sent < size) {
        ssize_t count = send(connection->fd, message + connection->sent, size - connection->sent,
                             MSG_NOSIGNAL);
        if (count >= 0) {
            connection->sent += (uint32_t)count;
        } else if (errno == EAGAIN) {
            return true;
        } else if (errno != EINTR) {
            give_up(load, connection, &load->report.disconnects);
            return false;
        }
    }
    return true;
}

/* Takes bytes as part of the reply. False: they are not what was sent. */
static bool take_reply(struct load *load, struct connection *connection, uint32_t count)
{
    uint32_t missing = connection->waiting ? connection->sent - connection->received : 0;
    if (count > missing)
        return false;
    const uint8_t *expected = expected_bytes(load, connection) + connection->received;
    if (memcmp(expected, load->buffer, count) != 0)
        return false;
    connection->received += count;
    return true;
}

static void end_message(struct load *load, struct connection *connection)
{
    count_message(load, connection);
    connection->waiting = false;
    load->waiting--;
}

/* Receives until the socket is empty. False: the connection was given up. */
static bool receive_more(struct load *load, struct connection *connection)
{
    for (;;) {
        uint32_t missing =
            connection->waiting ? load->options.message_bytes - connection->received : 0;
        uint32_t ask = missing < RECEIVE_BYTES ? missing + 1 : RECEIVE_BYTES;
        ssize_t count = recv(connection->fd, load->buffer, ask, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN)
            return true;
        if (count <= 0) {
            give_up(load, connection, &load->report.disconnects);
            return false;
        }
        if (!take_reply(load, connection, (uint32_t)count)) {
            give_up(load, connection, &load->report.mismatches);
            return false;
        }
        if (connection->received == load->options.message_bytes)
            end_message(load, connection);
        if ((uint32_t)count < ask)
            return true;
    }
}

static void handle_echo(struct load *load, struct connection *connection, uint32_t events)
{
    if ((events & EPOLLOUT) && !send_more(load, connection))
        return;
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !receive_more(load, connection))
        return;
    if (!connection->waiting && load->sending) {
        start_message(load, connection);
        send_more(load, connection);
    }
}

/* The first EPOLLOUT starts the first message. */
static int begin(struct load *load, struct connection *connection, int family, int type,
                 uint64_t deadline_ns)
{
    int result = connect_one(load, family, type, deadline_ns, &connection->fd);
    return result != 0 ? result : watch(load, connection, EPOLLIN | EPOLLOUT | EPOLLET);
}

static int begin_tcp(struct load *load, struct connection *connection, uint64_t deadline_ns)
{
    return begin(load, connection, AF_INET, SOCK_STREAM, deadline_ns);
}

static int begin_unix(struct load *load, struct connection *connection, uint64_t deadline_ns)
{
    return begin(load, connection, AF_UNIX, SOCK_STREAM, deadline_ns);
}

static int begin_udp(struct load *load, struct connection *connection, uint64_t deadline_ns)
{
    return begin(load, connection, AF_INET, SOCK_DGRAM, deadline_ns);
}

const struct kind echo_kinds[3] = {
    {"echo", begin_tcp, handle_echo},
    {"unix", begin_unix, handle_echo},
    {"udp", begin_udp, handle_echo},
};
