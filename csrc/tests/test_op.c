/* Operation slots: every state against every event, tokens and generations. */
#include <stddef.h>
#include <string.h>

#include "../op.h"
#include "check.h"
#include "fail_alloc.h"

#define NO UT_OP_STATES

static const char *const state_names[] = {"FREE", "QUEUED", "IN_FLIGHT", "CANCELING", "DONE"};
static const char *const event_names[] = {"SUBMIT", "CANCEL", "CQE_MORE", "CQE_LAST", "DROP",
                                          "RELEASE"};

/* Written out a second time, from the theory in op.c and not from its table. */
static const struct {
    enum ut_op_state state;
    enum ut_op_event event;
    enum ut_op_state next;
} transitions[] = {
    {UT_OP_QUEUED, UT_OP_EV_SUBMIT, UT_OP_IN_FLIGHT},
    {UT_OP_QUEUED, UT_OP_EV_CANCEL, UT_OP_FREE},
    {UT_OP_IN_FLIGHT, UT_OP_EV_CANCEL, UT_OP_CANCELING},
    {UT_OP_IN_FLIGHT, UT_OP_EV_CQE_MORE, UT_OP_IN_FLIGHT},
    {UT_OP_IN_FLIGHT, UT_OP_EV_CQE_LAST, UT_OP_DONE},
    {UT_OP_IN_FLIGHT, UT_OP_EV_DROP, UT_OP_FREE},
    {UT_OP_CANCELING, UT_OP_EV_CQE_MORE, UT_OP_CANCELING},
    {UT_OP_CANCELING, UT_OP_EV_CQE_LAST, UT_OP_DONE},
    {UT_OP_DONE, UT_OP_EV_RELEASE, UT_OP_FREE},
};

static enum ut_op_state expected(enum ut_op_state state, enum ut_op_event event)
{
    for (unsigned i = 0; i < sizeof transitions / sizeof *transitions; i++)
        if (transitions[i].state == state && transitions[i].event == event)
            return transitions[i].next;
    return NO;
}

static enum ut_op_state case_state;
static enum ut_op_event case_event;

static void one_state_and_event(void)
{
    struct ut_op op = {.state = (uint8_t)case_state};
    enum ut_op_state next = expected(case_state, case_event);
    CHECK_EQ(ut_op_next(case_state, case_event), next);
    if (next == NO) {
        CHECK_ABORTS(ut_op_step(&op, case_event), "broken invariant");
    } else {
        ut_op_step(&op, case_event);
        CHECK_EQ(op.state, next);
    }
}

static void every_state_against_every_event(void)
{
    _Static_assert(sizeof state_names / sizeof *state_names == UT_OP_STATES, "a name for each");
    _Static_assert(sizeof event_names / sizeof *event_names == UT_OP_EVENTS, "a name for each");
    char name[60];
    for (case_state = 0; case_state < UT_OP_STATES; case_state++) {
        for (case_event = 0; case_event < UT_OP_EVENTS; case_event++) {
            strcpy(name, state_names[case_state]);
            strcat(name, " and ");
            strcat(name, event_names[case_event]);
            check_run(name, one_state_and_event);
        }
    }
}

static void asserts_are_on_although_NDEBUG_is_defined(void)
{
#ifndef NDEBUG
    CHECK(!"these tests must be built with -DNDEBUG");
#endif
    CHECK_ABORTS(ut_op_next(UT_OP_STATES, UT_OP_EV_SUBMIT), "state < UT_OP_STATES");
    CHECK_ABORTS(ut_op_next(UT_OP_FREE, UT_OP_EVENTS), "event < UT_OP_EVENTS");
}

static void a_new_operation_is_queued_and_blank(void)
{
    struct ut_op_table table = {0};
    uint32_t slot;
    struct ut_op *op = ut_op_new(&table, &slot);
    CHECK(op != NULL);
    CHECK_EQ(slot, 0);
    CHECK_EQ(op->state, UT_OP_QUEUED);
    CHECK_EQ(table.live, 1);
    memset(&op->sqe.opcode, 0xff, offsetof(struct io_uring_sqe, user_data));
    ut_op_free(&table, slot);
    op = ut_op_new(&table, &slot);
    CHECK_EQ(slot, 0);
    struct io_uring_sqe blank = {.user_data = op->sqe.user_data};
    CHECK(memcmp(&op->sqe, &blank, sizeof blank) == 0);
    ut_op_free(&table, slot);
    ut_op_table_close(&table);
}

static void lowest_slots_first_and_addresses_stay(void)
{
    struct ut_op_table table = {0};
    static struct ut_op *ops[3 * UT_OP_CHUNK];
    uint32_t slot;
    for (uint32_t i = 0; i < 3 * UT_OP_CHUNK; i++) {
        ops[i] = ut_op_new(&table, &slot);
        CHECK_EQ(slot, i);
    }
    CHECK_EQ(table.chunk_count, 3);
    CHECK_EQ(table.live, 3 * UT_OP_CHUNK);
    for (uint32_t i = 0; i < 3 * UT_OP_CHUNK; i++)
        CHECK(ut_op_at(&table, i) == ops[i]);
    for (uint32_t i = 0; i < 3 * UT_OP_CHUNK; i++)
        ut_op_free(&table, i);
    CHECK_EQ(table.live, 0);
    ut_op_table_close(&table);
}

static void a_token_names_one_use_of_a_slot(void)
{
    struct ut_op_table table = {0};
    uint32_t slot, again;
    struct ut_op *op = ut_op_new(&table, &slot);
    uint64_t token = op->sqe.user_data;
    CHECK(ut_op_from_token(&table, token) == op);
    ut_op_free(&table, slot);
    CHECK(ut_op_from_token(&table, token) == NULL); /* free */
    op = ut_op_new(&table, &again);
    CHECK_EQ(again, slot);
    CHECK(ut_op_from_token(&table, token) == NULL); /* used again */
    CHECK(ut_op_from_token(&table, op->sqe.user_data) == op);
    CHECK(ut_op_from_token(&table, op->sqe.user_data + UT_OP_CHUNK) == NULL); /* no such slot */
    CHECK(ut_op_from_token(&table, op->sqe.user_data + 1) == NULL); /* never given out */
    CHECK(ut_op_from_token(&table, UINT64_MAX) == NULL);
    ut_op_free(&table, again);
    ut_op_table_close(&table);
}

static void a_token_of_an_empty_table_is_nobody(void)
{
    struct ut_op_table table = {0};
    CHECK(ut_op_from_token(&table, 0) == NULL);
}

static void the_generation_wraps_at_30_bits(void)
{
    struct ut_op_table table = {0};
    uint32_t slot;
    struct ut_op *op = ut_op_new(&table, &slot);
    ut_op_free(&table, slot);
    op->generation = 0x3fffffff;
    CHECK(ut_op_new(&table, &slot) == op);
    uint64_t token = op->sqe.user_data;
    CHECK_EQ(token >> 32, 0x3fffffff);
    CHECK((token & UT_TOKEN_MARKS) == 0); /* bits 63 and 62 mark cancels and watches only */
    ut_op_free(&table, slot);
    CHECK(ut_op_new(&table, &slot) == op);
    CHECK_EQ(op->sqe.user_data >> 32, 0);
    CHECK(ut_op_from_token(&table, token) == NULL);
    ut_op_free(&table, slot);
    ut_op_table_close(&table);
}

static void an_operation_in_flight_cannot_be_freed(void)
{
    struct ut_op_table table = {0};
    uint32_t slot;
    struct ut_op *op = ut_op_new(&table, &slot);
    ut_op_step(op, UT_OP_EV_SUBMIT);
    CHECK_ABORTS(ut_op_free(&table, slot), "next != REFUSED");
    ut_op_step(op, UT_OP_EV_CANCEL);
    CHECK_ABORTS(ut_op_free(&table, slot), "next != REFUSED");
    ut_op_step(op, UT_OP_EV_CQE_LAST);
    ut_op_free(&table, slot);
    CHECK_ABORTS(ut_op_free(&table, slot), "broken invariant"); /* twice */
    ut_op_table_close(&table);
}

/* Between two requests of the ladder nothing of it is in the kernel. */
static void an_operation_between_its_requests_can_be_freed(void)
{
    struct ut_op_table table = {0};
    uint32_t slot;
    struct ut_op *op = ut_op_new(&table, &slot);
    ut_op_step(op, UT_OP_EV_SUBMIT);
    op->wanted = 1;
    op->main = UT_REQUEST_SENT;
    CHECK_ABORTS(ut_op_free(&table, slot), "next != REFUSED");
    op->main = UT_REQUEST_QUEUED;
    op->watch = UT_REQUEST_SENT;
    CHECK_ABORTS(ut_op_free(&table, slot), "next != REFUSED");
    op->watch = UT_REQUEST_QUEUED;
    ut_op_free(&table, slot);
    CHECK_EQ(op->state, UT_OP_FREE);
    ut_op_table_close(&table);
}

static void no_memory_for_a_chunk_loses_nothing(void)
{
    struct ut_op_table table = {0};
    uint32_t slot, count = 0;
    for (unsigned nth = 1; nth <= 2; nth++) { /* the list of chunks; the chunk */
        fail_alloc_at(nth);
        CHECK(ut_op_new(&table, &slot) == NULL);
        CHECK(fail_alloc_happened());
    }
    for (; count < UT_OP_CHUNK; count++)
        CHECK(ut_op_new(&table, &slot) != NULL);
    for (unsigned nth = 1; nth <= 2; nth++) {
        fail_alloc_at(nth);
        CHECK(ut_op_new(&table, &slot) == NULL);
        CHECK_EQ(table.live, count);
    }
    fail_alloc_at(0);
    CHECK(ut_op_new(&table, &slot) != NULL);
    CHECK_EQ(slot, count++);
    while (count-- > 0)
        ut_op_free(&table, count);
    ut_op_table_close(&table);
}

int main(void)
{
    every_state_against_every_event();
    RUN(asserts_are_on_although_NDEBUG_is_defined);
    RUN(a_new_operation_is_queued_and_blank);
    RUN(lowest_slots_first_and_addresses_stay);
    RUN(a_token_names_one_use_of_a_slot);
    RUN(a_token_of_an_empty_table_is_nobody);
    RUN(the_generation_wraps_at_30_bits);
    RUN(an_operation_in_flight_cannot_be_freed);
    RUN(an_operation_between_its_requests_can_be_freed);
    RUN(no_memory_for_a_chunk_loses_nothing);
    return CHECK_SUMMARY();
}
