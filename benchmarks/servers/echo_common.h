/*
 * What both C echo servers have in common: the listener, and the first line of
 * output. They end at the end of their standard input, like every server here;
 * each watches it in its own loop, because a second thread would make every
 * system call on a file dearer (the kernel then counts references to it).
 */
#ifndef ECHO_COMMON_H
#define ECHO_COMMON_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* Connections are found by their fd. Above every limit that a benchmark asks for. */
#define FDS_MAX 65536
#define BACKLOG 4096 /* the kernel cuts it to net.core.somaxconn, 4096 since 5.4 */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void allow_many_connections(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        die("getrlimit");
    limit.rlim_cur = limit.rlim_max < FDS_MAX ? limit.rlim_max : FDS_MAX;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        die("setrlimit");
}

/* Listens on a free port of 127.0.0.1 and prints the port. `type` may hold SOCK_NONBLOCK. */
static int listen_and_announce(int type)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int one = 1;

    allow_many_connections();
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | type, 0);
    /* Accepted sockets inherit it. */
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
        bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, BACKLOG) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

#endif
