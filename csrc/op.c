/*
 * The life of an operation
 *
 *     FREE -new-> QUEUED -submit-> IN_FLIGHT -last cqe-> DONE -release-> FREE
 *                   |                 | cancel             ^
 *                   | cancel          v                    |
 *                   +-> FREE       CANCELING ---last cqe---+
 *
 * An operation that waits by our ladder (ladder.c) makes several requests in a row while
 * it is IN_FLIGHT; its last cqe is that of the attempt that was not refused. Cancelled
 * while none of them is in the kernel, it is dropped.
 *
 * Three rules make this safe against everything the kernel may answer:
 *
 * - The slot is taken until the operation's *last* cqe, also when its task was
 *   cancelled long before. A cancel is a request; the target's cqe decides.
 * - user_data names slot and generation, never an address. A cqe for a slot
 *   that was freed or used again is dropped and counted, never followed.
 * - DONE keeps the slot until the batch of records in which the last cqe came
 *   has been read, so that a record's slot number means one operation only.
 */
#include "op.h"

#include <stdlib.h>
#include <string.h>

#include "ut_assert.h"

#define REFUSED UT_OP_STATES
#define GENERATION_MASK 0x3fffffffu

/* clang-format off */
static const uint8_t next_state[UT_OP_STATES][UT_OP_EVENTS] = {
    /*                   SUBMIT           CANCEL           CQE_MORE         CQE_LAST    DROP        RELEASE */
    [UT_OP_FREE]      = {REFUSED,         REFUSED,         REFUSED,         REFUSED,    REFUSED,    REFUSED},
    [UT_OP_QUEUED]    = {UT_OP_IN_FLIGHT, UT_OP_FREE,      REFUSED,         REFUSED,    REFUSED,    REFUSED},
    [UT_OP_IN_FLIGHT] = {REFUSED,         UT_OP_CANCELING, UT_OP_IN_FLIGHT, UT_OP_DONE, UT_OP_FREE, REFUSED},
    [UT_OP_CANCELING] = {REFUSED,         REFUSED,         UT_OP_CANCELING, UT_OP_DONE, REFUSED,    REFUSED},
    [UT_OP_DONE]      = {REFUSED,         REFUSED,         REFUSED,         REFUSED,    REFUSED,    UT_OP_FREE},
};
/* clang-format on */

enum ut_op_state ut_op_next(enum ut_op_state state, enum ut_op_event event)
{
    UT_ASSERT(state < UT_OP_STATES);
    UT_ASSERT(event < UT_OP_EVENTS);
    return next_state[state][event];
}

void ut_op_step(struct ut_op *op, enum ut_op_event event)
{
    enum ut_op_state next = ut_op_next(op->state, event);
    UT_ASSERT(next != REFUSED);
    op->state = (uint8_t)next;
}

static int add_chunk(struct ut_op_table *table)
{
    uint32_t base = table->chunk_count * UT_OP_CHUNK;
    if (base > UINT32_MAX - 2 * UT_OP_CHUNK)
        return -1;
    struct ut_op **chunks =
        realloc(table->chunks, (table->chunk_count + 1) * sizeof *table->chunks);
    if (chunks == NULL)
        return -1;
    table->chunks = chunks;
    struct ut_op *chunk = calloc(UT_OP_CHUNK, sizeof *chunk);
    if (chunk == NULL)
        return -1;
    chunks[table->chunk_count++] = chunk;
    /* Lowest slot first: a small program stays in a few cache lines. */
    for (uint32_t i = UT_OP_CHUNK; i-- > 0;) {
        chunk[i].next_free = table->first_free;
        table->first_free = base + i;
    }
    return 0;
}

struct ut_op *ut_op_at(const struct ut_op_table *table, uint32_t slot)
{
    return &table->chunks[slot / UT_OP_CHUNK][slot % UT_OP_CHUNK];
}

struct ut_op *ut_op_new(struct ut_op_table *table, uint32_t *slot)
{
    if (table->chunk_count == 0)
        table->first_free = UT_NO_SLOT;
    if (table->first_free == UT_NO_SLOT && add_chunk(table) < 0)
        return NULL;
    *slot = table->first_free;
    struct ut_op *op = ut_op_at(table, *slot);
    UT_ASSERT(op->state == UT_OP_FREE);
    table->first_free = op->next_free;
    table->live++;
    op->state = UT_OP_QUEUED;
    op->wanted = 0;
    op->waited = false;
    op->main = op->watch = UT_REQUEST_ABSENT;
    op->line = NULL;
    op->parked = op->is_clock = op->stands = false;
    memset(&op->sqe, 0, sizeof op->sqe);
    op->sqe.user_data = (uint64_t)op->generation << 32 | *slot;
    return op;
}

void ut_op_list_append(const struct ut_op_table *table, struct ut_op_list *list,
                       struct ut_op *op)
{
    uint32_t slot = (uint32_t)op->sqe.user_data;
    op->previous = list->last;
    op->next = UT_NO_SLOT;
    if (list->last == UT_NO_SLOT)
        list->first = slot;
    else
        ut_op_at(table, list->last)->next = slot;
    list->last = slot;
    list->count++;
}

void ut_op_list_remove(const struct ut_op_table *table, struct ut_op_list *list,
                       struct ut_op *op)
{
    if (op->previous == UT_NO_SLOT)
        list->first = op->next;
    else
        ut_op_at(table, op->previous)->next = op->next;
    if (op->next == UT_NO_SLOT)
        list->last = op->previous;
    else
        ut_op_at(table, op->next)->previous = op->previous;
    list->count--;
}

struct ut_op *ut_op_from_token(const struct ut_op_table *table, uint64_t token)
{
    uint32_t slot = (uint32_t)token;
    if (slot / UT_OP_CHUNK >= table->chunk_count)
        return NULL;
    struct ut_op *op = ut_op_at(table, slot);
    if (op->state == UT_OP_FREE || op->sqe.user_data != token)
        return NULL;
    return op;
}

void ut_op_free(struct ut_op_table *table, uint32_t slot)
{
    struct ut_op *op = ut_op_at(table, slot);
    UT_ASSERT(table->live > 0);
    if (op->state == UT_OP_QUEUED)
        ut_op_step(op, UT_OP_EV_CANCEL);
    else if (op->state == UT_OP_IN_FLIGHT && op->wanted != 0 && op->main != UT_REQUEST_SENT &&
             op->watch != UT_REQUEST_SENT)
        ut_op_step(op, UT_OP_EV_DROP);
    else
        ut_op_step(op, UT_OP_EV_RELEASE);
    op->generation = (op->generation + 1) & GENERATION_MASK;
    op->next_free = table->first_free;
    table->first_free = slot;
    table->live--;
}

void ut_op_table_close(struct ut_op_table *table)
{
    for (unsigned i = 0; i < table->chunk_count; i++)
        free(table->chunks[i]);
    free(table->chunks);
    memset(table, 0, sizeof *table);
}
