/*
 * System calls beside the ring: made at once, by the kernel in use.
 *
 * What can be done now, and is small, is cheaper by a plain call than by an operation: a
 * send that fits into the socket's buffer, an accept that finds a connection, a look. And
 * some calls are no operation of the ring's at all, or not on every kernel that we run on.
 *
 * Each answers what its system call answers, or -errno. Only ut_poll() waits, and those
 * that say so may: the others have a flag that forbids it, or nothing to wait for.
 */
#ifndef UT_BESIDE_H
#define UT_BESIDE_H

#include "kernel.h"
#include "message.h"

/* A socket's address as the kernel has written it. */
struct ut_name {
    socklen_t length; /* bytes; may exceed the storage */
    struct sockaddr_storage storage;
};

/* ---- data ------------------------------------------------------------------ */

/* Sends what the socket takes now: bytes. No signal is raised. */
int ut_try_send(int fd, const char *data, size_t size);

/* The same, with flags, of a datagram to the packed sockaddr `name`; of no bytes: to the peer. */
int ut_try_send_to(int fd, const char *data, size_t size, int flags, const char *name,
                   size_t name_length);

/* Receives what is there: bytes, 0 at the end of the stream. */
int ut_try_recv(int fd, void *memory, size_t size);

/* The same, with flags, and who it is from. */
int ut_try_recv_from(int fd, void *memory, size_t size, int flags, struct ut_name *from);

/* Sends a message, which may have been tried before. */
int ut_try_sendmsg(int fd, const struct ut_message *message, int flags);

/* The same as ut_try_send_to without flags, with packed control messages. */
int ut_try_send_with(int fd, const char *data, size_t size, const char *name, size_t name_length,
                     const char *control, size_t control_size);

/* Receives a message; one that has received may receive again. */
int ut_try_recvmsg(int fd, struct ut_message *message, int flags);

/* read(2) and write(2), which wait where the file does. */
int ut_read(int fd, void *memory, size_t size);
int ut_write(int fd, const char *data, size_t size);

/* ---- connections ----------------------------------------------------------- */

/* Takes a connection that waits already: its descriptor, and in `peer` (or NULL) whose it is.
 * accept4(2) has no flag for one call, so where the listener does not have O_NONBLOCK, because
 * somebody who shares it has switched that off, nothing is tried: -EDEADLK. */
int ut_try_accept(int fd, int flags, struct ut_name *peer);

/* Connects to the packed sockaddr `name`; waits where the file does. */
int ut_connect(int fd, const char *name, size_t length);
int ut_shutdown(int fd, int how);

/* It is closed whatever the answer is. */
int ut_close(int fd);

/* ---- looks ----------------------------------------------------------------- */

/* What of poll(2)'s events a file has now. */
int ut_try_poll(int fd, int events);

/* The same, after at most `timeout_ms` (< 0: for ever) of waiting for one. */
int ut_poll(int fd, int events, int timeout_ms);

/* An option that is an int, as 32 bits without a sign. */
int64_t ut_getsockopt(int fd, int level, int option);
int ut_setsockopt(int fd, int level, int option, int value);
int ut_setsockopt_bytes(int fd, int level, int option, const char *value, size_t size);

int ut_own_name(int fd, struct ut_name *name);
/* Also of a connection that was reset, as accept(2) gives it. */
int ut_peer_name(int fd, struct ut_name *name);

int ut_status_flags(int fd); /* O_NONBLOCK, O_ACCMODE and others */
int ut_queued(int fd);       /* bytes that can be received */
int ut_mode(int fd);         /* st_mode: what kind of file it is */

/* The number of the network that a socket is in; 0: unknown. */
uint64_t ut_network_of(const struct ut_kernel *kernel, int fd);

#endif
