/*
 * One way: as much as the server takes, or as it gives
 *
 * Level-triggered, and one call an event, so that every connection has its turn
 * however fast the other end is. What counts is what the kernel took or gave
 * within the window, in messages of the size that was asked for; between that and
 * the server are only the sockets' buffers. The bytes are not looked at: that
 * would cost this end more than the transfer.
 */
#include "loadgen.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static void take_result(struct load *load, struct connection *connection, ssize_t count)
{
    if (count > 0) {
        if (load->counting)
            load->report.bytes += (uint64_t)count;
        load->report.messages = load->report.bytes / load->options.message_bytes;
    } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
        give_up(load, connection, &load->report.disconnects);
    }
}

static void handle_send(struct load *load, struct connection *connection, uint32_t events)
{
    (void)events; /* an error is what send() says then */
    take_result(load, connection,
                send(connection->fd, load->buffer, RECEIVE_BYTES, MSG_NOSIGNAL));
}

static void handle_receive(struct load *load, struct connection *connection, uint32_t events)
{
    (void)events;
    take_result(load, connection, recv(connection->fd, load->buffer, RECEIVE_BYTES, 0));
}

static int begin(struct load *load, struct connection *connection, uint32_t events,
                 uint64_t deadline_ns)
{
    int result = connect_one(load, AF_INET, SOCK_STREAM, deadline_ns, &connection->fd);
    return result != 0 ? result : watch(load, connection, events);
}

static int begin_send(struct load *load, struct connection *connection, uint64_t deadline_ns)
{
    return begin(load, connection, EPOLLOUT, deadline_ns);
}

static int begin_receive(struct load *load, struct connection *connection, uint64_t deadline_ns)
{
    return begin(load, connection, EPOLLIN, deadline_ns);
}

const struct kind bulk_kinds[2] = {
    {"send", begin_send, handle_send},
    {"receive", begin_receive, handle_receive},
};
