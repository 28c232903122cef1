/*
 * Cancellation: every answer of the kernel, in every order.
 *
 * An async cancel is a request. It is answered 0 (found), -ENOENT (too late) or
 * -EALREADY (running, may or may not stop), before or after the operation's own
 * cqe, and that one says done, partly done or -ECANCELED. Linux rarely gives most
 * of the combinations; the engine must count on all of them.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>

#include "engine_tools.h"

enum kind { RECEIVE_BUFFER, RECEIVE_MEMORY, SEND, KINDS };
enum target { DONE, PARTIAL, CANCELED, TARGETS };
#define SIZE 1000

static const char *const kind_names[] = {"receive into a buffer", "receive into memory", "send"};
static const char *const target_names[] = {"done", "partial", "canceled"};
static const int32_t target_res[] = {SIZE, 300, -ECANCELED};
static const int32_t answers[] = {0, -ENOENT, -EALREADY};
static const char *const answer_names[] = {"0", "-ENOENT", "-EALREADY"};
static const uint64_t gaps_ns[] = {0, MS};

/* What is in flight when the cancel comes. An attempt does not wait, so it is there for
 * as long as its cqe lies unread, or for longer on a kernel that is slow. */
enum place { ATTEMPT, POLL, PLACES };
static const char *const place_names[] = {"attempt", "poll"};

static struct {
    enum kind kind;
    enum place place;
    enum target target;
    unsigned answer, target_first, gap;
} now;

static char memory[SIZE];

static int prep(struct ut_engine *engine, int fd)
{
    switch (now.kind) {
    case RECEIVE_BUFFER:
        return ut_prep_recv(engine, fd, 0, SIZE, now.place == POLL);
    case RECEIVE_MEMORY:
        return ut_prep_recv_into(engine, fd, memory, SIZE, 0, now.place == POLL);
    default:
        return ut_prep_send(engine, fd, memory, SIZE, 0);
    }
}

static struct ut_engine *start(struct fake_plan plan, int *slot)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    plan.slow = now.place == ATTEMPT;
    fake_plan_next(plan);
    *slot = prep(engine, 5);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(tools_statistics(engine).in_flight, 1);
    return engine;
}

/* Nothing but the cancel's own cqe may still come, and it is nobody's record. */
static void finish(struct ut_engine *engine)
{
    for (unsigned i = 0; i < 3; i++) {
        struct tools_batch batch = tools_wait_through(engine, 10 * MS);
        CHECK_EQ(batch.records, 0);
    }
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 1);
    tools_close(engine);
}

static void one_order(void)
{
    int slot;
    struct fake_plan plan = {
        .delay_ns = FAKE_NEVER,
        .cancel_answer = answers[now.answer],
        .cancel_res = target_res[now.target],
        .target_first = now.target_first,
        .cancel_gap_ns = gaps_ns[now.gap],
    };
    struct ut_engine *engine = start(plan, &slot);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -EALREADY);
    struct ut_record record = tools_await(engine, slot);
    CHECK_EQ(engine->record_count, 1);
    /* A poll that became ready has taken nothing. */
    CHECK_EQ(record.res, now.place == POLL ? -ECANCELED : target_res[now.target]);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -EALREADY);
    bool has_buffer = now.kind == RECEIVE_BUFFER && record.res > 0;
    CHECK_EQ(record.flags & UT_RECORD_WAITED, now.place == POLL ? UT_RECORD_WAITED : 0);
    record.flags &= ~UT_RECORD_WAITED;
    CHECK_EQ(record.flags, has_buffer ? record.flags | IORING_CQE_F_BUFFER : 0);
    if (has_buffer)
        CHECK(tools_data_is(engine, &record, 5));
    CHECK_EQ(tools_statistics(engine).in_flight, 0);
    finish(engine);
}

static void every_order(void)
{
    char name[200];
    for (now.kind = 0; now.kind < KINDS; now.kind++)
        for (now.answer = 0; now.answer < 3; now.answer++)
            for (now.target = 0; now.target < TARGETS; now.target++)
                for (now.target_first = 0; now.target_first < 2; now.target_first++)
                    for (now.gap = 0; now.gap < 2; now.gap++)
                        for (now.place = 0; now.place < PLACES; now.place++) {
                            snprintf(name, sizeof name,
                                     "%s, %s: cancel %s, target %s, %s first, gap %u",
                                     kind_names[now.kind], place_names[now.place],
                                     answer_names[now.answer], target_names[now.target],
                                     now.target_first ? "target" : "cancel", now.gap);
                            check_run(name, one_order);
                        }
}

static void a_cancel_before_the_submission_costs_nothing(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    int slot = ut_prep_poll(engine, 5, POLLIN, 0);
    CHECK_EQ(tools_statistics(engine).queued, 1);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(fake.enters, 0);
    CHECK_EQ(fake.submitted[IORING_OP_POLL_ADD], 0);
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 0);
    tools_close(engine);
}

static void only_the_dropped_one_of_many_is_not_submitted(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    fake.fallback = (struct fake_plan){.res = POLLIN};
    int slots[5];
    for (int i = 0; i < 5; i++)
        slots[i] = ut_prep_poll(engine, 10 + i, POLLIN, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slots[2]), 0);
    /* The slot goes to another operation, which is submitted once, not twice. */
    CHECK_EQ(ut_prep_poll(engine, 20, POLLIN, 0), slots[2]);
    CHECK_EQ(tools_wait_through(engine, -1).records, 5);
    CHECK_EQ(fake.submitted[IORING_OP_POLL_ADD], 5);
    tools_close(engine);
}

static void a_cancel_that_comes_too_late_is_not_submitted(void)
{
    int slot;
    struct ut_engine *engine = start((struct fake_plan){.res = 7, .delay_ns = MS}, &slot);
    CHECK_EQ(tools_await(engine, slot).res, 7);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -EALREADY);
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 0);
    tools_close(engine);
}

static void a_queued_cancel_whose_target_ends_first_is_dropped(void)
{
    int slot;
    struct ut_engine *engine = start((struct fake_plan){.res = 7, .delay_ns = MS}, &slot);
    /* Its cqe is in the CQ, brought by a flush, but we have not looked. */
    fake_sleep(MS);
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(tools_statistics(engine).unread_cqes, 1);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    struct tools_batch batch = tools_wait(engine, -1);
    CHECK_EQ(batch.records, 1);
    CHECK_EQ(tools_record(engine, slot)->res, 7);
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 0);
    tools_close(engine);
}

static void a_late_answer_does_not_reach_the_slots_next_user(void)
{
    int slot;
    struct fake_plan plan = {
        .delay_ns = FAKE_NEVER, .target_first = true, .cancel_gap_ns = 5 * MS};
    struct ut_engine *engine = start(plan, &slot);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
    CHECK_EQ(tools_wait(engine, 0).answer, 0); /* ends the batch */
    fake_plan_next((struct fake_plan){.res = 9, .slow = true, .delay_ns = 20 * MS});
    CHECK_EQ(prep(engine, 6), slot);
    struct tools_batch batch = tools_wait_through(engine, -1); /* the cancel's late cqe */
    CHECK_EQ(batch.seen, 1);
    CHECK_EQ(batch.records, 0);
    CHECK_EQ(tools_statistics(engine).in_flight, 1);
    CHECK_EQ(tools_await(engine, slot).res, 9);
    tools_close(engine);
}

static void a_cancel_that_finds_nothing_leaves_the_operation_alone(void)
{
    int slot;
    struct fake_plan plan = {
        .res = 11, .delay_ns = 5 * MS, .cancel_too_late = true, .cancel_answer = -EALREADY};
    struct ut_engine *engine = start(plan, &slot);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    struct tools_batch batch = tools_wait(engine, MS);
    CHECK_EQ(batch.seen, 1);
    CHECK_EQ(batch.records, 0);
    CHECK_EQ(tools_statistics(engine).in_flight, 1); /* its slot is still taken */
    CHECK_EQ(tools_await(engine, slot).res, 11);
    tools_close(engine);
}

static void a_multishot_goes_on_until_its_last_cqe(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    fake_plan_next((struct fake_plan){.res = POLLIN, .more = 3, .delay_ns = MS});
    int slot = ut_prep_poll(engine, 5, POLLIN, 1);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(tools_wait_through(engine, -1).records, 1);
        CHECK(tools_record(engine, slot)->flags & IORING_CQE_F_MORE);
    }
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    struct ut_record record = tools_await(engine, slot);
    CHECK_EQ(record.res, -ECANCELED);
    CHECK((record.flags & IORING_CQE_F_MORE) == 0);
    tools_close(engine);
}

static void many_cancels_at_once_need_no_memory(void)
{
    enum { MANY = 1000 };
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    for (int i = 0; i < MANY; i++)
        CHECK(ut_prep_poll(engine, 5, POLLIN, 0) >= 0);
    while (tools_statistics(engine).queued > 0)
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(fake_in_flight(), MANY);
    for (uint32_t slot = 0; slot < MANY; slot++)
        CHECK_EQ(ut_engine_cancel(engine, slot), 1);
    unsigned ended = 0;
    while (ended < MANY) {
        struct tools_batch batch = tools_wait_through(engine, -1);
        for (unsigned i = 0; i < batch.records; i++)
            CHECK_EQ(engine->records[i].res, -ECANCELED);
        ended += batch.records;
    }
    CHECK_EQ(ended, MANY);
    while (tools_wait_through(engine, MS).answer != 0)
        ; /* the cancels' own cqes */
    tools_close(engine);
}

static void a_cancel_of_a_slot_that_nobody_has(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    CHECK_EQ(ut_engine_cancel(engine, 0), -ENOENT); /* no slot was ever given out */
    int slot = ut_prep_poll(engine, 5, POLLIN, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot + 1), -ENOENT);
    CHECK_EQ(ut_engine_cancel(engine, UT_OP_CHUNK), -ENOENT);
    CHECK_EQ(ut_engine_cancel(engine, UINT32_MAX), -ENOENT); /* an index of -1 */
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -ENOENT);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(fake.enters, 0); /* nothing was queued for them */
    tools_close(engine);
}

int main(void)
{
    check_after_each = fake_check_books;
    every_order();
    now.kind = RECEIVE_BUFFER;
    now.place = ATTEMPT;
    RUN(a_cancel_before_the_submission_costs_nothing);
    RUN(only_the_dropped_one_of_many_is_not_submitted);
    RUN(a_cancel_that_comes_too_late_is_not_submitted);
    RUN(a_queued_cancel_whose_target_ends_first_is_dropped);
    RUN(a_late_answer_does_not_reach_the_slots_next_user);
    RUN(a_cancel_that_finds_nothing_leaves_the_operation_alone);
    RUN(a_multishot_goes_on_until_its_last_cqe);
    RUN(many_cancels_at_once_need_no_memory);
    RUN(a_cancel_of_a_slot_that_nobody_has);
    return CHECK_SUMMARY();
}
