/*
 * Lines: who waits for the same receiver, and whose turn it is. No I/O.
 */
#ifndef UT_LINE_H
#define UT_LINE_H

#include "op.h"

#include <sys/socket.h>
#include <sys/un.h>

/* A UNIX socket by name, as a send says it. */
struct ut_receiver {
    uint64_t network; /* where an abstract name is looked up; 0 for a path */
    socklen_t length;
    struct sockaddr_un name; /* zero beyond its length */
};

struct ut_line {
    struct ut_line *next; /* in its bucket */
    struct ut_receiver receiver;
    unsigned members;     /* operations that it has refused and that are not over */
    struct ut_op_list parked; /* those that wait for their turn, the longest waiting first */
    uint32_t clock;       /* the slot of its timeout, or UT_NO_SLOT */
    bool flows;           /* somebody has got through since the last pause began */
    struct ut_pauses pauses;
    uint64_t pause_ns; /* the length of the last one */
};

#define UT_LINE_BUCKETS 64u
struct ut_lines {
    struct ut_line *buckets[UT_LINE_BUCKETS];
};

/* The receiver that a sendmsg names; false if it names none, or not a UNIX socket. An
 * abstract name lacks its network. */
bool ut_receiver_read(const struct io_uring_sqe *sqe, struct ut_receiver *receiver);
bool ut_receiver_is_abstract(const struct ut_receiver *receiver);

/* The receiver's line, a new one if need be; NULL where there is no memory. */
struct ut_line *ut_line_at(struct ut_lines *lines, const struct ut_receiver *receiver);

/* Frees a line that has neither members nor a clock. */
void ut_line_drop(struct ut_lines *lines, struct ut_line *line);
void ut_lines_close(struct ut_lines *lines);

/* Membership, from an operation's first refusal to its end. */
void ut_line_enter(struct ut_line *line, struct ut_op *op);
void ut_line_leave(const struct ut_op_table *ops, struct ut_op *op, bool sent);

/* At the end of the line, to wait for a turn; and out of it, wherever it stands. */
void ut_line_park(const struct ut_op_table *ops, struct ut_op *op, uint64_t now_ns);
void ut_line_unpark(const struct ut_op_table *ops, struct ut_op *op);

/* The next pause of the whole line begins; how long it is. */
uint64_t ut_line_pause(struct ut_line *line, uint64_t now_ns);

/* How many turns there are when a pause is over, and when a member has got its answer. */
unsigned ut_line_turns(const struct ut_line *line);
#define UT_LINE_TURNS_AFTER_ANSWER 2u

#endif
