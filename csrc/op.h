/*
 * Operations: one slot for each, from prep to its last cqe.
 */
#ifndef UT_OP_H
#define UT_OP_H

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
    UT_OP_EV_RELEASE,
    UT_OP_EVENTS,
};

struct ut_op {
    struct io_uring_sqe sqe;
    uint32_t generation; /* 31 bits; another for each use of the slot */
    uint8_t state;
    uint32_t next_free;
};

/* user_data = generation << 32 | slot. Bit 63 marks a cqe that answers an async
 * cancel, and is nobody's result. */
#define UT_TOKEN_CANCEL (1ULL << 63)
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

/* Moves the state along the table. An event that cannot happen is our bug. */
void ut_op_step(struct ut_op *op, enum ut_op_event event);

/* Gives the slot back, under another generation; from DONE, or from QUEUED if
 * the operation was dropped before the kernel knew it. */
void ut_op_free(struct ut_op_table *table, uint32_t slot);
void ut_op_table_close(struct ut_op_table *table);

#endif
