/*
 * Echo with epoll, in plain C: what readiness costs without any language on top
 *
 * Level-triggered, one thread, one hot buffer for all connections: recv(2), then
 * send(2) at once. Only what the socket does not take is copied and kept, and
 * the connection is not read until that is out.
 */
#define _GNU_SOURCE /* accept4 */
#include "echo_common.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#define EVENTS_PER_WAIT 256
#define BUFFER_BYTES (128u << 10) /* a 100 KiB message in one piece */
/* Alignment of what the kernel copies from and to; below 32 its copy is 3 to 4 times slower. */
#define BUFFER_ALIGN 4096u

struct connection {
    char *rest; /* what could not be sent yet, or NULL; ours */
    size_t rest_bytes, rest_sent;
};

static struct connection connections[FDS_MAX];
static char buffer[BUFFER_BYTES] __attribute__((aligned(BUFFER_ALIGN)));
static int epoll_fd;

static void watch(int operation, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event) != 0)
        die("epoll_ctl");
}

static void drop(int fd)
{
    free(connections[fd].rest);
    memset(&connections[fd], 0, sizeof connections[fd]);
    close(fd); /* takes it out of the epoll set too */
}

static void accept_all(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
        watch(EPOLL_CTL_ADD, fd, EPOLLIN);
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
        die("accept4");
}

/* Keeps what is left of a message until the socket takes more. */
static void keep(int fd, const char *data, size_t bytes)
{
    struct connection *connection = &connections[fd];
    connection->rest = malloc(bytes);
    if (connection->rest == NULL)
        die("malloc");
    memcpy(connection->rest, data, bytes);
    connection->rest_bytes = bytes;
    connection->rest_sent = 0;
    watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
}

static void echo(int fd)
{
    ssize_t count = recv(fd, buffer, sizeof buffer, 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (count <= 0) {
        drop(fd);
        return;
    }
    ssize_t sent = send(fd, buffer, (size_t)count, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR)
        drop(fd);
    else if (sent < count)
        keep(fd, buffer + (sent < 0 ? 0 : sent), (size_t)(count - (sent < 0 ? 0 : sent)));
}

static void send_rest(int fd)
{
    struct connection *connection = &connections[fd];
    ssize_t sent = send(fd, connection->rest + connection->rest_sent,
                        connection->rest_bytes - connection->rest_sent, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            drop(fd);
        return;
    }
    connection->rest_sent += (size_t)sent;
    if (connection->rest_sent == connection->rest_bytes) {
        free(connection->rest);
        memset(connection, 0, sizeof *connection);
        watch(EPOLL_CTL_MOD, fd, EPOLLIN);
    }
}

int main(void)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die("epoll_create1");
    int listener = listen_and_announce(SOCK_NONBLOCK);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN);
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS_PER_WAIT, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO)
                return 0;
            if (fd == listener)
                accept_all(listener);
            else if (connections[fd].rest != NULL)
                send_rest(fd);
            else
                echo(fd);
        }
    }
}
