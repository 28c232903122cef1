/*
 * A network without a kernel: sockets whose queues are ours.
 *
 * A file here is what Linux calls a struct sock: buffers with limits, a state, an error, an
 * error queue. Streams (TCP over IPv4 and IPv6, UNIX), listeners, UNIX datagrams and
 * seqpackets, and UDP answer as Linux 6.18 does, byte for byte and bit for bit of poll(2);
 * test_net.c runs each claim on both. Nothing here waits, knows a ring, or looks at a clock.
 *
 * Numbers. A file stands behind a real socket, its placeholder, that no byte ever goes
 * through. The placeholder is what the program holds, binds, dups, passes and closes, and it
 * keeps what we would only keep a second time: the name that it is bound to, whether it
 * listens and for how many, every socket option. So the standard library's own calls work,
 * and an option is refused as Linux refuses it. A file lives as long as a descriptor of its
 * placeholder is open (also one under way in SCM_RIGHTS) or somebody holds it: it is closed
 * by net_close(), or when net_sweep() finds that the last descriptor is gone.
 *
 * Not made: no routing (what is not loopback is a black hole, or has no route); no congestion, no
 * lost segments: one arrives, or arrives later, in order. Each file says more of that.
 */
#ifndef UT_TESTS_NET_H
#define UT_TESTS_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

struct net_file;

#define NET_NEVER UINT64_MAX

/* ---- what the user of this file gives ---------------------------------------- */

/* Called where Linux calls wake_up_poll() on the file's queue, with Linux's key, also where
 * nothing has become ready. Key 0: a wake-up without a key, which everybody takes for his.
 * Whoever waits looks with net_poll(), as a wait queue's function would. Must not call back
 * into this file: note it, and act after the call is over. */
extern void (*net_wake)(struct net_file *file, uint32_t key);

/* One of 0..below-1; 0 is the plain behaviour. NULL: always 0. */
extern unsigned (*net_choose)(unsigned below);

/* What may be chosen; all false: nothing is ever asked. */
struct net_choices {
    bool delays;     /* segments and connections are under way for a time */
    bool shorts;     /* a stream takes less of a send than it could, and gives less of a receive */
    bool order;      /* datagrams of several senders overtake each other; UDP of one as well */
    bool losses;     /* UDP: a datagram is lost, or comes twice, or with a wrong checksum */
    bool strangers;  /* another process on the same file takes first what has just come */
    bool no_buffers; /* -ENOBUFS or -ENOMEM where Linux may */
};
extern struct net_choices net_choices;

/* Forgets all files (their placeholders stay open, and are nobody's), and the time. */
void net_reset(void);

/* ---- files ------------------------------------------------------------------- */

/* The file of a descriptor; found at the first call: NULL if it is no socket, or of a kind
 * that is not made here, or if the placeholder is really connected. */
struct net_file *net_of(int fd);

/* A file that a request holds is not closed before it is dropped, as a struct file. */
void net_hold(struct net_file *file);
void net_drop(struct net_file *file);

/* close(2): the placeholder's number is closed, and the file if it was the last. */
int net_close(int fd);

/* Closes files whose descriptors were all closed behind our back. */
void net_sweep(void);

/* Two connected files, as socketpair(2) makes them; of AF_INET and AF_INET6 as well. `type`
 * with SOCK_CLOEXEC and SOCK_NONBLOCK. */
int net_pair(int family, int type, int fds[2]);

/* One open descriptor of its placeholder; -1: there is none any more. */
int net_number(const struct net_file *file);

/* ---- calls: each as its system call answers it, or -errno; none waits -------- */

int net_sendmsg(struct net_file *file, const struct msghdr *message, int flags);
int net_recvmsg(struct net_file *file, struct msghdr *message, int flags);

size_t net_length(const struct msghdr *message); /* bytes of its buffers */

/* The new descriptor; `flags` as accept4's. */
int net_accept4(struct net_file *file, struct sockaddr *name, socklen_t *length, int flags);

/* -EINPROGRESS, -EALREADY of TCP; -EAGAIN of a UNIX listener whose backlog is full. */
int net_connect(struct net_file *file, const struct sockaddr *name, socklen_t length);

int net_bind(struct net_file *file, const struct sockaddr *name, socklen_t length);
int net_listen(struct net_file *file, int backlog);
int net_shutdown(struct net_file *file, int how);
int net_getsockopt(struct net_file *file, int level, int option, void *value, socklen_t *length);
int net_setsockopt(struct net_file *file, int level, int option, const void *value,
                   socklen_t length);
int net_getsockname(struct net_file *file, struct sockaddr *name, socklen_t *length);
int net_getpeername(struct net_file *file, struct sockaddr *name, socklen_t *length);

/* ioctl: FIONREAD, SIOCOUTQ, SIOCATMARK. */
int net_ioctl(struct net_file *file, unsigned long request, int *value);
int net_queued(struct net_file *file); /* FIONREAD */
bool net_has_end(const struct net_file *file); /* TCP: the peer's end has come (SOCK_DONE) */

/* The kernel's sock_error(), which io_uring's connect asks, too: -errno, once; or 0. */
int net_take_error(struct net_file *file);

/* What the file's poll function tells: POLL* bits, also those that were not asked for. It
 * marks the file as Linux does (no space: tell me), and a UNIX datagram's as a sender that
 * waits for its receiver, if `events` has POLLOUT. */
uint32_t net_poll(struct net_file *file, uint32_t events);

/* ---- time: of its own, moved by its user ------------------------------------- */

void net_advance(uint64_t now_ns); /* what is due arrives, in order; also sweeps */
uint64_t net_next_ns(void);        /* when something arrives; NET_NEVER: nothing is under way */

/* ---- the world outside ------------------------------------------------------- */

/* A datagram with a wrong checksum comes to a UDP file. */
void net_bad_datagram(struct net_file *file, size_t size);

/* Another process on the file takes what lies there: a connection, a datagram, or up to
 * `size` bytes of a stream; how many bytes (a connection: 1), or -EAGAIN. */
int net_stranger(struct net_file *file, size_t size);

/* The connection is reset by its peer, although nobody closed it. */
void net_reset_by_peer(struct net_file *file);

/* ---- books ------------------------------------------------------------------- */

struct net_books {
    unsigned files;          /* not yet closed */
    unsigned held;           /* of them: without a descriptor */
    unsigned rights;         /* descriptors under way */
    uint64_t bytes_sent;     /* taken by any send */
    uint64_t bytes_received; /* given by any receive, peeks not counted */
    uint64_t bytes_lost;     /* thrown away: by a reset, a close, a lost datagram */
    uint64_t bytes_stolen;   /* taken by strangers */
    uint64_t bytes_queued;   /* in all queues and under way: sent - received - lost - stolen */
    uint64_t wakes;
};
void net_read_books(struct net_books *books);

#endif
