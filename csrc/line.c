/*
 * Many who wait for one receiver
 *
 * What the kernel does. A send to a UNIX datagram socket by name is refused while the
 * receiver's queue is full, and poll(2) of the sender knows nothing of it: it says that the
 * sender can be written to, and no change is told when there is room. So somebody must try
 * (ladder.c: pauses). The queue counts messages, so it is full for all senders alike.
 * (A socket that is connected is polled for the receiver's sake as well, and has no part
 * in this; nor has one whose own buffer is full: poll tells of that.)
 *
 * What follows. A thousand that try 31 times a second for themselves take a fifth of a
 * core to find out the same. Who is refused by the same receiver stands in one line, with
 * one clock. Its pauses are the ladder's, 1 to 32 ms. When one is over the longest waiting
 * ones have their turn: each looks whether it can still be written to, tries, and stands
 * at the end of the line again if it is refused. When one has its answer, sent or an error,
 * two others have a turn at once: so room for many fills in a few rounds, and what is tried
 * in vain is bounded, two for each answer and one turn's.
 *
 * Nobody leads, so nobody can strand the others by being cancelled or closed, or by filling
 * its own buffer. The one promise is that the clock runs while anybody is parked.
 *
 * After the longest pause more have a turn, one after the other. A line is a guess that
 * what refuses one refuses all; it is wrong for a sender to which the receiver has connected
 * meanwhile, or that has been shut down. (A change of a parked one's own socket is worth a
 * turn of its own, but not while that is young, as in ladder.c: then it may be the echo of
 * its own attempt.) Going round, each finds out by itself, 1,000 of them in 2 s.
 *
 * Names are compared byte by byte. A relative path means the same to all, since they are
 * tried by one thread; an abstract one belongs to the network of the sender's socket.
 *
 * What it costs. A receiver, not a sender, costs 31 tries a second and what goes round,
 * 500 a second at most. Who has a turn in vain waits for the others' turns before its next;
 * the line moves as fast as before.
 */
#include "line.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "ut_assert.h"

#define TURNS_SHORT 2u /* after a short pause, when it was just found to be full */
#define TURNS_LONG 16u /* after the longest: a line of so many is tried as often as one */

/* ---- names ---------------------------------------------------------------- */

#define PATH_AT offsetof(struct sockaddr_un, sun_path)

bool ut_receiver_read(const struct io_uring_sqe *sqe, struct ut_receiver *receiver)
{
    memset(receiver, 0, sizeof *receiver);
    if (sqe->opcode != IORING_OP_SENDMSG)
        return false;
    const struct msghdr *header = (const struct msghdr *)(uintptr_t)sqe->addr;
    if (header->msg_name == NULL || header->msg_namelen <= PATH_AT ||
        header->msg_namelen > sizeof receiver->name)
        return false;
    receiver->length = header->msg_namelen;
    memcpy(&receiver->name, header->msg_name, receiver->length);
    return receiver->name.sun_family == AF_UNIX;
}

bool ut_receiver_is_abstract(const struct ut_receiver *receiver)
{
    return receiver->name.sun_path[0] == '\0';
}

static bool is_same(const struct ut_receiver *a, const struct ut_receiver *b)
{
    return a->network == b->network && a->length == b->length &&
           memcmp(&a->name, &b->name, a->length) == 0;
}

static struct ut_line **bucket_of(struct ut_lines *lines, const struct ut_receiver *receiver)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (socklen_t i = 0; i < receiver->length; i++)
        hash = (hash ^ ((const uint8_t *)&receiver->name)[i]) * 16777619u;
    return &lines->buckets[(hash ^ hash >> 16) % UT_LINE_BUCKETS];
}

/* ---- lines ---------------------------------------------------------------- */

struct ut_line *ut_line_at(struct ut_lines *lines, const struct ut_receiver *receiver)
{
    struct ut_line **bucket = bucket_of(lines, receiver);
    for (struct ut_line *line = *bucket; line != NULL; line = line->next)
        if (is_same(&line->receiver, receiver))
            return line;
    struct ut_line *line = calloc(1, sizeof *line);
    if (line == NULL)
        return NULL;
    line->receiver = *receiver;
    line->parked = UT_OP_LIST_EMPTY;
    line->clock = UT_NO_SLOT;
    line->next = *bucket;
    *bucket = line;
    return line;
}

void ut_line_drop(struct ut_lines *lines, struct ut_line *line)
{
    UT_ASSERT(line->members == 0 && line->parked.count == 0 && line->clock == UT_NO_SLOT);
    struct ut_line **link = bucket_of(lines, &line->receiver);
    while (*link != line)
        link = &(*link)->next;
    *link = line->next;
    free(line);
}

void ut_lines_close(struct ut_lines *lines)
{
    for (unsigned i = 0; i < UT_LINE_BUCKETS; i++) {
        while (lines->buckets[i] != NULL) {
            struct ut_line *line = lines->buckets[i];
            lines->buckets[i] = line->next;
            free(line);
        }
    }
}

/* ---- members -------------------------------------------------------------- */

void ut_line_enter(struct ut_line *line, struct ut_op *op)
{
    UT_ASSERT(op->line == NULL);
    op->line = line;
    line->members++;
}

void ut_line_leave(const struct ut_op_table *ops, struct ut_op *op, bool sent)
{
    struct ut_line *line = op->line;
    if (op->parked)
        ut_line_unpark(ops, op);
    op->line = NULL;
    line->members--;
    line->flows |= sent;
}

void ut_line_park(const struct ut_op_table *ops, struct ut_op *op, uint64_t now_ns)
{
    struct ut_line *line = op->line;
    UT_ASSERT(!op->parked);
    op->parked = true;
    ut_op_list_append(ops, &line->parked, op);
    /* What comes sooner than this may be an echo of the attempt that was refused. */
    op->pauses.half_ns = now_ns + line->pause_ns / 2;
}

void ut_line_unpark(const struct ut_op_table *ops, struct ut_op *op)
{
    struct ut_line *line = op->line;
    UT_ASSERT(op->parked);
    op->parked = false;
    ut_op_list_remove(ops, &line->parked, op);
}

/* ---- turns ---------------------------------------------------------------- */

uint64_t ut_line_pause(struct ut_line *line, uint64_t now_ns)
{
    if (line->flows)
        line->pauses.length = 0;
    line->flows = false;
    line->pause_ns = ut_pause_begin(&line->pauses, now_ns);
    return line->pause_ns;
}

unsigned ut_line_turns(const struct ut_line *line)
{
    return line->pause_ns < UT_PAUSE_LONGEST_NS ? TURNS_SHORT : TURNS_LONG;
}
