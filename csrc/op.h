/*
 * Operations: one slot for each, from prep to its last cqe.
 */
#ifndef UT_OP_H
#define UT_OP_H

#include "ladder.h"
#include "uapi.h"

enum ut_op_state {
    UT_OP_FREE,
    UT_OP_QUEUED,    /* prepared; the kernel does not know it */
    UT_OP_IN_FLIGHT, /* submitted; its last cqe was not seen */
    UT_OP_CANCELING, /* in flight, and we asked the kernel to cancel it */
    UT_OP_DONE,      /* last cqe seen; the slot waits for its batch's end */
    UT_OP_STATES,
};

enum ut_op_event {
    UT_OP_EV_SUBMIT,
    UT_OP_EV_CANCEL,
    UT_OP_EV_CQE_MORE, /* a cqe with F_MORE: another will come */
    UT_OP_EV_CQE_LAST,
    UT_OP_EV_DROP, /* between two of its requests: the kernel has none */
    UT_OP_EV_RELEASE,
    UT_OP_EVENTS,
};

/* Where one of an operation's requests is. */
enum ut_request_state {
    UT_REQUEST_ABSENT,
    UT_REQUEST_QUEUED, /* the kernel does not know it */
    UT_REQUEST_SENT,
};

struct ut_line;

struct ut_op {
    struct io_uring_sqe sqe; /* of the operation, and of each attempt of it */
    uint32_t generation;     /* 30 bits; another for each use of the slot */
    uint32_t next_free;
    uint8_t state;
    /* Of an operation that waits by our ladder (see ladder.c): */
    uint8_t wanted; /* the poll bit that it waits for; 0: not by the ladder */
    uint8_t step;
    uint8_t main;  /* the step's own request */
    uint8_t watch; /* the multishot poll beside it */
    bool waited;   /* an attempt was refused, or it polled first */
    struct ut_pauses pauses;
    uint64_t sleep_ns; /* when it began to wait after the last refusal, or pause */
    struct ut_timespec timeout; /* of a timeout, until it is submitted */
    /* Of one that waits for a receiver, like others (see line.c): */
    struct ut_line *line; /* or whose clock this is */
    bool parked;   /* until it has a turn */
    bool is_clock; /* nobody's operation: the timeout of a line */
    /* Of one whose next attempt waits for a provided buffer: */
    bool stands;
    uint32_t next, previous; /* behind and before it where it is parked or stands; UT_NO_SLOT */
};

/* user_data = generation << 32 | slot. Bit 63 marks a cqe that answers an async
 * cancel, and is nobody's result; bit 62 one of an operation's watch. */
#define UT_TOKEN_CANCEL (1ULL << 63)
#define UT_TOKEN_WATCH (1ULL << 62)
#define UT_TOKEN_MARKS (UT_TOKEN_CANCEL | UT_TOKEN_WATCH)
#define UT_NO_SLOT UINT32_MAX

/* What an event makes of a state; UT_OP_STATES where it cannot happen. */
enum ut_op_state ut_op_next(enum ut_op_state state, enum ut_op_event event);

/* Slots come in chunks, so that an operation's address never changes. */
#define UT_OP_CHUNK 256u
struct ut_op_table {
    struct ut_op **chunks;
    unsigned chunk_count;
    uint32_t first_free;
    unsigned live; /* slots that are not free */
};

/* A fresh operation in state QUEUED, its sqe zeroed but for user_data; NULL when
 * there is no memory. */
struct ut_op *ut_op_new(struct ut_op_table *table, uint32_t *slot);
struct ut_op *ut_op_at(const struct ut_op_table *table, uint32_t slot);

/* The operation that a token names, or NULL if the slot is free, has been used
 * again since, or was never given out. */
struct ut_op *ut_op_from_token(const struct ut_op_table *table, uint64_t token);

/* Operations that wait for the same thing, first in, first out. One is in at most one list. */
struct ut_op_list {
    uint32_t first, last; /* slots, or UT_NO_SLOT */
    unsigned count;
};
#define UT_OP_LIST_EMPTY ((struct ut_op_list){UT_NO_SLOT, UT_NO_SLOT, 0})
void ut_op_list_append(const struct ut_op_table *table, struct ut_op_list *list,
                       struct ut_op *op);
void ut_op_list_remove(const struct ut_op_table *table, struct ut_op_list *list,
                       struct ut_op *op);

/* Moves the state along the table. An event that cannot happen is our bug. */
void ut_op_step(struct ut_op *op, enum ut_op_event event);

/* Gives the slot back, under another generation; from DONE, from QUEUED if the
 * operation was dropped before the kernel knew it, or from IN_FLIGHT between two
 * of its requests. */
void ut_op_free(struct ut_op_table *table, uint32_t slot);
void ut_op_table_close(struct ut_op_table *table);

#endif
