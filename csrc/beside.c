#define _GNU_SOURCE
#include "beside.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <sys/uio.h>

#ifndef SO_PEERNAME
#define SO_PEERNAME 28 /* asm-generic/socket.h */
#endif
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* 5.14; parisc and sparc have other numbers, and get no answer */
#endif

static struct sockaddr *room_of(struct ut_name *name)
{
    name->length = sizeof name->storage;
    return (struct sockaddr *)&name->storage;
}

/* ---- data ------------------------------------------------------------------ */

int ut_try_send(int fd, const char *data, size_t size)
{
    return ut_kernel_in_use->sendto(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
}

int ut_try_send_to(int fd, const char *data, size_t size, int flags, const char *name,
                   size_t name_length)
{
    /* An address of no bytes is an error, no address is the peer's. */
    const void *to = name_length > 0 ? name : NULL;
    return ut_kernel_in_use->sendto(fd, data, size, flags | MSG_DONTWAIT | MSG_NOSIGNAL, to,
                                    (socklen_t)name_length);
}

int ut_try_recv(int fd, void *memory, size_t size)
{
    return ut_kernel_in_use->recvfrom(fd, memory, size, MSG_DONTWAIT, NULL, NULL);
}

int ut_try_recv_from(int fd, void *memory, size_t size, int flags, struct ut_name *from)
{
    struct sockaddr *room = room_of(from);
    return ut_kernel_in_use->recvfrom(fd, memory, size, flags | MSG_DONTWAIT, room,
                                      &from->length);
}

int ut_try_send_with(int fd, const char *data, size_t size, const char *name, size_t name_length,
                     const char *control, size_t control_size)
{
    /* It reads all of them, though struct msghdr does not say so. */
    struct iovec vector = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr header = {
        .msg_name = (void *)(uintptr_t)name,
        .msg_namelen = (socklen_t)name_length,
        .msg_iov = &vector,
        .msg_iovlen = 1,
        .msg_control = (void *)(uintptr_t)control,
        .msg_controllen = control_size,
    };
    return ut_kernel_in_use->sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
}

int ut_try_sendmsg(int fd, const struct ut_message *message, int flags)
{
    return ut_kernel_in_use->sendmsg(fd, &message->header, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
}

int ut_try_recvmsg(int fd, struct ut_message *message, int flags)
{
    message->header.msg_namelen = sizeof message->name;
    message->header.msg_controllen = message->control_size;
    return ut_kernel_in_use->recvmsg(fd, &message->header, flags | MSG_DONTWAIT);
}

int ut_read(int fd, void *memory, size_t size)
{
    return ut_kernel_in_use->read(fd, memory, size);
}

int ut_write(int fd, const char *data, size_t size)
{
    return ut_kernel_in_use->write(fd, data, size);
}

/* ---- connections ----------------------------------------------------------- */

int ut_try_accept(int fd, int flags, struct ut_name *peer)
{
    int status = ut_kernel_in_use->status_flags(fd);
    if (status < 0)
        return status;
    if (!(status & O_NONBLOCK))
        return -EDEADLK;
    if (peer == NULL)
        return ut_kernel_in_use->accept4(fd, NULL, NULL, flags);
    struct sockaddr *room = room_of(peer);
    return ut_kernel_in_use->accept4(fd, room, &peer->length, flags);
}

int ut_connect(int fd, const char *name, size_t length)
{
    return ut_kernel_in_use->connect(fd, (const struct sockaddr *)(const void *)name,
                                     (socklen_t)length);
}

int ut_shutdown(int fd, int how)
{
    return ut_kernel_in_use->shutdown(fd, how);
}

int ut_close(int fd)
{
    return ut_kernel_in_use->close_fd(fd);
}

/* ---- looks ----------------------------------------------------------------- */

int ut_poll(int fd, int events, int timeout_ms)
{
    struct pollfd file = {.fd = fd, .events = (short)events};
    int count = ut_kernel_in_use->poll(&file, 1, timeout_ms);
    return count < 0 ? count : file.revents;
}

int ut_try_poll(int fd, int events)
{
    return ut_poll(fd, events, 0);
}

int64_t ut_getsockopt(int fd, int level, int option)
{
    int value = 0;
    socklen_t length = sizeof value;
    int error = ut_kernel_in_use->getsockopt(fd, level, option, &value, &length);
    return error < 0 ? error : (int64_t)(uint32_t)value;
}

int ut_setsockopt(int fd, int level, int option, int value)
{
    return ut_kernel_in_use->setsockopt(fd, level, option, &value, sizeof value);
}

int ut_setsockopt_bytes(int fd, int level, int option, const char *value, size_t size)
{
    return ut_kernel_in_use->setsockopt(fd, level, option, value, (socklen_t)size);
}

int ut_own_name(int fd, struct ut_name *name)
{
    struct sockaddr *room = room_of(name);
    return ut_kernel_in_use->getsockname(fd, room, &name->length);
}

int ut_peer_name(int fd, struct ut_name *name)
{
    struct sockaddr *room = room_of(name);
    int error = ut_kernel_in_use->getpeername(fd, room, &name->length);
    if (error != -ENOTCONN)
        return error;
    /* The option still knows it, for who asks for no more bytes than the family's has. */
    struct ut_name own;
    if (ut_own_name(fd, &own) < 0)
        return error;
    if (own.storage.ss_family == AF_INET)
        name->length = sizeof(struct sockaddr_in);
    else if (own.storage.ss_family == AF_INET6)
        name->length = sizeof(struct sockaddr_in6);
    else
        return error;
    return ut_kernel_in_use->getsockopt(fd, SOL_SOCKET, SO_PEERNAME, room, &name->length);
}

int ut_status_flags(int fd)
{
    return ut_kernel_in_use->status_flags(fd);
}

int ut_queued(int fd)
{
    return ut_kernel_in_use->queued(fd);
}

int ut_mode(int fd)
{
    return ut_kernel_in_use->mode(fd);
}

uint64_t ut_network_of(const struct ut_kernel *kernel, int fd)
{
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    int error = kernel->getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length);
    return error < 0 ? 0 : cookie;
}
