/*
 * One ut_prep_* for each opcode: takes a slot, fills its sqe, nothing else.
 *
 * Each returns the operation's slot, or -ENOMEM, or -EOWNERDEAD in a forked
 * child. Memory that is passed in belongs to the kernel until the operation's
 * last cqe; the caller keeps it.
 */
#ifndef UT_PREP_H
#define UT_PREP_H

#include "engine.h"
#include "message.h"

/* Receives at most `size` bytes into a buffer of `group`. With `poll_first` the
 * kernel waits for data before it tries: one failed attempt less on an idle
 * socket, and no buffer is taken until there is something to put into it. */
int ut_prep_recv(struct ut_engine *engine, int fd, unsigned group, uint32_t size, int poll_first);

/* Receives until it is cancelled, or the stream ends, or a cqe has no F_MORE: each cqe is
 * one buffer of `group`. Where there is none left it ends with -ENOBUFS. */
int ut_prep_recv_multishot(struct ut_engine *engine, int fd, unsigned group, int poll_first);

/* Receives into the caller's memory. */
int ut_prep_recv_into(struct ut_engine *engine, int fd, void *memory, uint32_t size, int flags,
                      int poll_first);
int ut_prep_send(struct ut_engine *engine, int fd, const char *data, uint32_t size, int flags);

/* Sends at once what the socket takes now: bytes, or -errno. No operation, and nothing
 * to wait for: for data that is small against the socket's buffer. */
int ut_try_send(int fd, const char *data, size_t size);

/* Receives at once what is there: bytes, 0 at the end of the stream, or -errno. */
int ut_try_recv(int fd, void *memory, size_t size);

/* The same as ut_prep_send from `data + offset`: what a short send has left. */
int ut_prep_send_from(struct ut_engine *engine, int fd, const char *data, size_t offset,
                      uint32_t size, int flags);

/* read(2) into a buffer of `group`, write(2), both at the file's own position. The last
 * argument has no meaning; it gives them the form of ut_prep_recv and ut_prep_send. */
int ut_prep_read(struct ut_engine *engine, int fd, unsigned group, uint32_t size, int unused);
int ut_prep_write(struct ut_engine *engine, int fd, const char *data, uint32_t size, int unused);

int ut_prep_recvmsg(struct ut_engine *engine, int fd, struct ut_message *message, int flags,
                    int poll_first);
int ut_prep_sendmsg(struct ut_engine *engine, int fd, struct ut_message *message, int flags);

/* The peer's address goes into `message`. */
int ut_prep_accept(struct ut_engine *engine, int fd, struct ut_message *message, int flags);
/* Without the address; with `multishot` until it is cancelled or a cqe has no F_MORE. */
int ut_prep_accept_fd(struct ut_engine *engine, int fd, int flags, int multishot);
/* Connects to the name in `message`. */
int ut_prep_connect(struct ut_engine *engine, int fd, struct ut_message *message);

int ut_prep_poll(struct ut_engine *engine, int fd, uint32_t events, int multishot);

#endif
