/*
 * One ut_prep_* for each opcode: takes a slot, fills its sqe, nothing else.
 *
 * Each returns the operation's slot, or -ENOMEM, or -EOWNERDEAD in a forked
 * child. With the slot of what others wait for comes UT_SLOT_LEAVES where the tick is long
 * (tick.c): a send, a write, a connect. Memory that is passed in belongs to the kernel until the operation's
 * last cqe; the caller keeps it.
 *
 * What may find nothing is attempted without waiting, and waits by the engine's ladder
 * (ladder.c): it never answers -EAGAIN, and is never left to the kernel's threads.
 */
#ifndef UT_PREP_H
#define UT_PREP_H

#include "engine.h"
#include "message.h"

/* Receives at most `size` bytes into a buffer of `group`. With `poll_first` there is no
 * attempt before a poll has found data: one in vain less on an idle socket. */
int ut_prep_recv(struct ut_engine *engine, int fd, unsigned group, uint32_t size, int poll_first);

/* Receives until it is cancelled, or the stream ends, or a cqe has no F_MORE: each cqe is
 * one buffer of `group`. Where there is none left it ends with -ENOBUFS. */
int ut_prep_recv_multishot(struct ut_engine *engine, int fd, unsigned group, int poll_first);

/* Receives into the caller's memory. */
int ut_prep_recv_into(struct ut_engine *engine, int fd, void *memory, uint32_t size, int flags,
                      int poll_first);
int ut_prep_send(struct ut_engine *engine, int fd, const char *data, uint32_t size, int flags);

/* The same as ut_prep_send from `data + offset`: what a short send has left. */
int ut_prep_send_from(struct ut_engine *engine, int fd, const char *data, size_t offset,
                      uint32_t size, int flags);

/* read(2) into a buffer of `group`, write(2), both at the file's own position. The last
 * argument of a write has no meaning; it gives it the form of ut_prep_send. Of a file that
 * cannot be told not to wait (no FMODE_NOWAIT; a FIFO, or before 6.4 any pipe) the answer is
 * -EAGAIN: the caller waits and reads it himself. */
int ut_prep_read(struct ut_engine *engine, int fd, unsigned group, uint32_t size, int poll_first);
int ut_prep_write(struct ut_engine *engine, int fd, const char *data, uint32_t size, int unused);

int ut_prep_recvmsg(struct ut_engine *engine, int fd, struct ut_message *message, int flags,
                    int poll_first);
int ut_prep_sendmsg(struct ut_engine *engine, int fd, struct ut_message *message, int flags);

/* The peer's address goes into `message`. */
int ut_prep_accept(struct ut_engine *engine, int fd, struct ut_message *message, int flags,
                   int poll_first);
/* Without the address. */
int ut_prep_accept_fd(struct ut_engine *engine, int fd, int flags);
/* Connects to the name in `message`. */
int ut_prep_connect(struct ut_engine *engine, int fd, struct ut_message *message);

int ut_prep_poll(struct ut_engine *engine, int fd, uint32_t events, int multishot);

/* Is over after `timeout_ns` with -ETIME; the wait goes on meanwhile. */
int ut_prep_timeout(struct ut_engine *engine, int64_t timeout_ns);

#endif
