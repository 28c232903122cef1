/* Long ticks: what leaves before they end, and what that comes to. */
#include <errno.h>
#include <poll.h>

#include "engine_tools.h"

#define FD 7

static struct ut_engine *engine;

static void open_engine(unsigned sq_entries, unsigned cq_entries)
{
    fake_reset();
    engine = tools_open(sq_entries, cq_entries);
    fake.fallback = (struct fake_plan){.res = 5};
    engine->tick.long_ns = MS;
    ut_tick_begin(&engine->tick, fake.now_ns);
}

static void set_up(void)
{
    open_engine(8, 32);
}

static void tear_down(void)
{
    for (uint32_t slot = 0; slot < engine->ops.chunk_count * UT_OP_CHUNK; slot++)
        if (ut_op_at(&engine->ops, slot)->state != UT_OP_FREE)
            ut_engine_cancel(engine, slot);
    while (tools_statistics(engine).in_flight > 0)
        CHECK(tools_wait_through(engine, -1).answer > 0);
    tools_close(engine);
}

/* As Python does it: what leaves is submitted. */
static int enter(int slot)
{
    CHECK(slot >= 0);
    if (slot & UT_SLOT_LEAVES)
        ut_engine_submit(engine);
    return slot & ~UT_SLOT_LEAVES;
}

static int prep_send(void)
{
    return enter(ut_prep_send(engine, FD, "bytes", 5, 0));
}

static int prep_late_send(void)
{
    fake_sleep(2 * MS);
    return prep_send();
}

/* ---- the state machine ----------------------------------------------------------------------- */

static void time_is_long_from_its_bound_on(void)
{
    struct ut_tick tick = {.long_ns = MS};
    ut_tick_begin(&tick, 5 * MS);
    CHECK(!ut_tick_is_long(&tick, 6 * MS - 1));
    CHECK(ut_tick_is_long(&tick, 6 * MS));
    CHECK(!ut_tick_leaves(&tick, 6 * MS - 1));
    CHECK(ut_tick_leaves(&tick, 6 * MS));
}

static void without_a_bound_nothing_is_long(void)
{
    struct ut_tick tick = {0};
    CHECK(!ut_tick_is_long(&tick, UINT64_MAX));
    CHECK(!ut_tick_leaves(&tick, UINT64_MAX));
    ut_tick_end(&tick, UINT64_MAX);
    CHECK(!ut_tick_leaves(&tick, UINT64_MAX));
}

static void a_few_leave_at_once_after_time_that_was_long(void)
{
    for (int at_its_end = 0; at_its_end < 2; at_its_end++) {
        struct ut_tick tick = {.long_ns = MS};
        if (at_its_end)
            ut_tick_end(&tick, 3 * MS);
        else
            CHECK(ut_tick_leaves(&tick, 3 * MS));
        unsigned left = 0;
        for (int i = 0; i < 100; i++) {
            ut_tick_begin(&tick, 3 * MS);
            left += ut_tick_leaves(&tick, 3 * MS);
            ut_tick_end(&tick, 3 * MS); /* a short tick is no reason */
        }
        CHECK_EQ(left, UT_TICK_SENDS);
    }
}

static void where_many_send_only_what_is_late_leaves(void)
{
    for (unsigned asked = 0; asked < 2 * UT_TICK_SENDS; asked++) {
        struct ut_tick tick = {.long_ns = MS};
        ut_tick_begin(&tick, 0);
        for (unsigned i = 0; i < asked; i++)
            CHECK(!ut_tick_leaves(&tick, MS / 2));
        CHECK(ut_tick_leaves(&tick, MS));
        ut_tick_begin(&tick, MS);
        CHECK_EQ(ut_tick_leaves(&tick, MS), asked < UT_TICK_SENDS);
    }
}

/* ---- what leaves ------------------------------------------------------------------------------- */

static void in_a_short_tick_all_wait_for_its_end(void)
{
    fake_sleep(MS / 2);
    int slot = prep_send();
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 0);
    CHECK_EQ(ut_engine_leaves(engine), 0);
    unsigned enters = fake.enters;
    tools_await(engine, slot);
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 1);
    CHECK(fake.enters > enters);
}

static void in_a_long_tick_a_send_leaves_at_once(void)
{
    unsigned enters = fake.enters;
    fake_plan_next((struct fake_plan){.res = 5, .at_once = true});
    fake_sleep(2 * MS);
    int slot = prep_send();
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 1);
    CHECK_EQ(fake.enters, enters + 1);
    struct ut_statistics now = tools_statistics(engine);
    CHECK_EQ(now.queued, 0);
    CHECK_EQ(now.in_flight, 1); /* told by the next wait alone */
    CHECK_EQ(now.unread_cqes, 1);
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    CHECK_EQ(tools_record(engine, slot)->res, 5);
}

static void everything_that_others_wait_for_does(void)
{
    struct ut_message *message = ut_message_new(1, 0, 0);
    fake_sleep(2 * MS);
    enter(ut_prep_write(engine, FD, "bytes", 5, 0));
    fake_sleep(2 * MS);
    enter(ut_prep_sendmsg(engine, FD, message, 0));
    fake_sleep(2 * MS);
    enter(ut_prep_connect(engine, FD, message));
    CHECK_EQ(fake.submitted[IORING_OP_WRITE], 1);
    CHECK_EQ(fake.submitted[IORING_OP_SENDMSG], 1);
    CHECK_EQ(fake.submitted[IORING_OP_CONNECT], 1);
    while (tools_statistics(engine).in_flight > 0)
        tools_wait_through(engine, -1);
    ut_message_free(message);
}

static void what_is_sent_beside_the_ring_is_told_so(void)
{
    unsigned enters = fake.enters;
    fake_sleep(2 * MS);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(ut_engine_leaves(engine), 1); /* no enter has come in between */
    CHECK_EQ(fake.enters, enters);
    CHECK(tools_wait(engine, 0).answer == 0);
    unsigned left = 0;
    for (unsigned i = 0; i < UT_TICK_SENDS + 3; i++)
        left += (unsigned)ut_engine_leaves(engine);
    CHECK_EQ(left, UT_TICK_SENDS);
}

static void the_rest_of_a_refused_send_waits(void)
{
    fake_sleep(2 * MS);
    ut_prep_send_from(engine, FD, "bytes", 1, 4, 0);
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 0);
}

static void receives_and_polls_wait_and_keep_their_order(void)
{
    ut_prep_recv(engine, FD, 0, 100, 0);
    prep_send();
    int dropped = prep_send();
    ut_prep_poll(engine, 5, POLLIN, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)dropped), 0);
    prep_late_send();
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 2);
    CHECK_EQ(fake.submitted[IORING_OP_RECV], 0);
    CHECK_EQ(fake.submitted[IORING_OP_POLL_ADD], 0);
    fake_sleep(2 * MS);
    ut_prep_recv(engine, FD + 1, 0, 100, 0);
    CHECK_EQ(fake.submitted[IORING_OP_RECV], 0); /* it asks for nothing either */
    prep_send();
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 3);
    CHECK_EQ(ut_engine_unsubmitted(engine), 4); /* with the one that was dropped */
    unsigned records = 0;
    while (records < 6)
        records += tools_wait_through(engine, -1).records;
    CHECK_EQ(records, 6);
    CHECK_EQ(fake.submitted[IORING_OP_RECV], 2);
    CHECK_EQ(fake.submitted[IORING_OP_POLL_ADD], 1);
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 3);
}

static void what_is_taken_back_at_once_was_never_sent(void)
{
    fake_sleep(2 * MS);
    int slot = ut_prep_send(engine, FD, "bytes", 5, 0);
    CHECK(slot & UT_SLOT_LEAVES);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)(slot & ~UT_SLOT_LEAVES)), 0);
    ut_engine_submit(engine);
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 0);
}

static void work_that_waits_is_not_run(void)
{
    int poll = ut_prep_poll(engine, 5, POLLIN, 0);
    fake.fallback = (struct fake_plan){.res = 1, .delay_ns = MS};
    CHECK_EQ(tools_wait(engine, 0).records, 0);
    fake.fallback = (struct fake_plan){.res = 5, .at_once = true};
    prep_late_send(); /* what was polled for is there by now */
    CHECK_EQ(tools_statistics(engine).unread_cqes, 1);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)poll), 1);
    unsigned records = 0;
    while (records < 2)
        records += tools_wait_through(engine, -1).records;
}

static void after_a_long_tick_a_few_leave_at_once(void)
{
    fake_sleep(2 * MS);
    CHECK_EQ(tools_wait(engine, 0).records, 0);
    for (unsigned i = 0; i < UT_TICK_SENDS + 3; i++)
        prep_send();
    CHECK_EQ(fake.submitted[IORING_OP_SEND], UT_TICK_SENDS);
}

static void a_sleep_is_no_long_tick(void)
{
    CHECK_EQ(tools_wait(engine, 50 * MS).answer, 0);
    prep_send();
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 0);
}

static void more_than_the_queues_hold(void)
{
    tear_down();
    open_engine(2, 4);
    fake.fallback = (struct fake_plan){.res = 5, .at_once = true};
    for (int i = 0; i < 20; i++)
        prep_send();
    prep_late_send();
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 21);
    unsigned records = 0;
    while (records < 21)
        records += tools_wait_through(engine, -1).records;
    CHECK_EQ(records, 21);
}

/* ---- what it comes to --------------------------------------------------------------------------- */

static void what_has_left_can_only_be_asked_to_end(void)
{
    fake.fallback = (struct fake_plan){.res = 5, .delay_ns = FAKE_NEVER};
    int kept = prep_send();
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)kept), 0);
    int slot = prep_late_send();
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
}

static void what_is_done_is_told_whoever_has_cancelled_it(void)
{
    fake_plan_next((struct fake_plan){.res = 5, .at_once = true});
    int slot = prep_late_send();
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_await(engine, slot).res, 5);
}

static void a_refused_one_waits_by_the_ladder(void)
{
    fake_plan_next((struct fake_plan){.res = 5, .delay_ns = 10 * MS});
    int slot = prep_late_send();
    CHECK_EQ(fake.submitted[IORING_OP_POLL_ADD], 0); /* begins with the next wait */
    struct ut_record record = tools_await(engine, slot);
    CHECK_EQ(record.res, 5);
    CHECK(record.flags & UT_RECORD_WAITED);
}

static void an_enter_that_fails_leaves_it_to_the_wait(void)
{
    static const int errors[] = {-EAGAIN, -ENOMEM, -EPERM, -EIO};
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++) {
        engine->tick.sends = 0;
        prep_send();
        fake_enter_next((struct fake_enter){.error = errors[i]});
        prep_late_send();
        CHECK_EQ(tools_statistics(engine).queued, 0);
        CHECK_EQ(ut_engine_unsubmitted(engine), 2);
        unsigned records = 0;
        while (records < 2)
            records += tools_wait_through(engine, -1).records;
    }
}

static void what_was_not_taken_is_left_to_the_wait(void)
{
    prep_send();
    prep_send();
    fake_enter_next((struct fake_enter){.submit_max = 1});
    prep_late_send();
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 1);
    unsigned records = 0;
    while (records < 3)
        records += tools_wait_through(engine, -1).records;
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 3);
}

static void the_child_of_a_fork_sends_nothing(void)
{
    fake_sleep(2 * MS);
    ut_fork_count++;
    CHECK_EQ(ut_prep_send(engine, FD, "bytes", 5, 0), -EOWNERDEAD);
    ut_engine_submit(engine);
    CHECK_EQ(ut_engine_leaves(engine), -EOWNERDEAD);
    ut_fork_count--;
    CHECK_EQ(fake.submitted[IORING_OP_SEND], 0);
}

static void (*test)(void);

static void on_an_engine(void)
{
    set_up();
    test();
    tear_down();
}

/* RUN(), on an engine of its own. */
#define RUN_ON_ENGINE(name) (test = name, check_run(#name, on_an_engine))

int main(void)
{
    check_after_each = fake_check_books;
    RUN(time_is_long_from_its_bound_on);
    RUN(without_a_bound_nothing_is_long);
    RUN(a_few_leave_at_once_after_time_that_was_long);
    RUN(where_many_send_only_what_is_late_leaves);
    RUN_ON_ENGINE(in_a_short_tick_all_wait_for_its_end);
    RUN_ON_ENGINE(in_a_long_tick_a_send_leaves_at_once);
    RUN_ON_ENGINE(everything_that_others_wait_for_does);
    RUN_ON_ENGINE(what_is_sent_beside_the_ring_is_told_so);
    RUN_ON_ENGINE(the_rest_of_a_refused_send_waits);
    RUN_ON_ENGINE(receives_and_polls_wait_and_keep_their_order);
    RUN_ON_ENGINE(what_is_taken_back_at_once_was_never_sent);
    RUN_ON_ENGINE(work_that_waits_is_not_run);
    RUN_ON_ENGINE(after_a_long_tick_a_few_leave_at_once);
    RUN_ON_ENGINE(a_sleep_is_no_long_tick);
    RUN_ON_ENGINE(more_than_the_queues_hold);
    RUN_ON_ENGINE(what_has_left_can_only_be_asked_to_end);
    RUN_ON_ENGINE(what_is_done_is_told_whoever_has_cancelled_it);
    RUN_ON_ENGINE(a_refused_one_waits_by_the_ladder);
    RUN_ON_ENGINE(an_enter_that_fails_leaves_it_to_the_wait);
    RUN_ON_ENGINE(what_was_not_taken_is_left_to_the_wait);
    RUN_ON_ENGINE(the_child_of_a_fork_sends_nothing);
    return CHECK_SUMMARY();
}
