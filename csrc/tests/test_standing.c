/* Receives that stand until there is a buffer: how many are tried, in which order, and what
 * becomes of one that is cancelled meanwhile. */
#include <errno.h>

#include "engine_tools.h"

#define BUFFERS 4 /* of group 0 */

static struct ut_engine *engine;

static void set_up(void)
{
    fake_reset();
    engine = tools_open(8, 32);
}

/* A receive on `fd` that finds 10 bytes. */
static int receive(int fd, unsigned group)
{
    fake_plan_next((struct fake_plan){.res = 10});
    int slot = ut_prep_recv(engine, fd, group, 100, 0);
    CHECK(slot >= 0);
    return slot;
}

/* The next batch are the receives of these slots, `count` from `first` on, with their data. */
static void next_are(int first, unsigned count)
{
    CHECK_EQ(tools_wait(engine, -1).records, count);
    for (unsigned i = 0; i < count; i++) {
        CHECK_EQ(engine->records[i].slot, first + (int)i);
        CHECK_EQ(engine->records[i].res, 10);
    }
}

static unsigned standing(unsigned group)
{
    return engine->supplies[group].standing.count;
}

static void they_are_tried_as_buffers_come_home_oldest_first(void)
{
    set_up();
    for (int i = 0; i < 10; i++)
        CHECK_EQ(receive(20 + i, 0), i);
    next_are(0, BUFFERS);
    CHECK_EQ(fake.submitted[IORING_OP_RECV], BUFFERS);
    CHECK_EQ(standing(0), 6);
    CHECK_EQ(tools_statistics(engine).queued, 6);
    next_are(4, BUFFERS);
    next_are(8, 2);
    CHECK_EQ(fake.submitted[IORING_OP_RECV], 10); /* each once */
    tools_close(engine);
}

static void who_comes_later_is_tried_later(void)
{
    set_up();
    for (int i = 0; i < 6; i++)
        receive(20 + i, 0);
    next_are(0, BUFFERS);
    for (int i = 6; i < 9; i++)
        CHECK_EQ(receive(20 + i, 0), i);
    next_are(4, BUFFERS); /* two that stood, and two that came */
    next_are(8, 1);
    tools_close(engine);
}

/* So that its stream's next receive waits for data first, as others have; see stand(). */
static void one_that_stood_says_that_it_has_waited(void)
{
    set_up();
    for (int i = 0; i < 5; i++)
        receive(20 + i, 0);
    next_are(0, BUFFERS);
    for (unsigned i = 0; i < BUFFERS; i++)
        CHECK(!(engine->records[i].flags & UT_RECORD_WAITED));
    next_are(4, 1);
    CHECK(engine->records[0].flags & UT_RECORD_WAITED);
    tools_close(engine);
}

static void a_group_that_is_dry_holds_up_no_other(void)
{
    set_up();
    for (int i = 0; i < 3; i++) /* there are two */
        receive(20 + i, 1);
    receive(30, 0);
    receive(31, 2);
    CHECK_EQ(tools_wait(engine, -1).records, 4);
    CHECK(tools_record(engine, 3) != NULL && tools_record(engine, 4) != NULL);
    CHECK_EQ(standing(1), 1);
    CHECK_EQ(tools_await(engine, 2).res, 10);
    tools_close(engine);
}

static void one_that_the_kernel_never_knew_is_dropped(void)
{
    set_up();
    for (int i = 0; i < 7; i++)
        receive(20 + i, 0);
    next_are(0, BUFFERS);
    CHECK_EQ(ut_engine_cancel(engine, 5), 0);
    CHECK_EQ(standing(0), 2);
    CHECK_EQ(tools_wait(engine, -1).records, 2);
    CHECK_EQ(engine->records[0].slot, 4);
    CHECK_EQ(engine->records[1].slot, 6);
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 0);
    tools_close(engine);
}

static void one_between_two_of_its_requests_is_dropped(void)
{
    set_up();
    for (int i = 0; i < 6; i++) { /* each has polled when it needs a buffer */
        fake_plan_next((struct fake_plan){.res = 10});
        CHECK_EQ(ut_prep_recv(engine, 20 + i, 0, 100, 1), i);
    }
    CHECK_EQ(tools_wait_through(engine, -1).records, BUFFERS);
    CHECK_EQ(standing(0), 2);
    CHECK_EQ(tools_statistics(engine).in_flight, 2);
    CHECK_EQ(ut_engine_cancel(engine, 4), 0);
    CHECK_EQ(ut_engine_cancel(engine, 4), -ENOENT);
    CHECK_EQ(tools_statistics(engine).in_flight, 1);
    CHECK_EQ(tools_wait_through(engine, -1).records, 1);
    CHECK_EQ(engine->records[0].slot, 5);
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 0);
    tools_close(engine);
}

static void whoever_finds_nothing_leaves_its_buffer_to_the_next(void)
{
    set_up();
    for (int i = 0; i < 10; i++) {
        fake_plan_next((struct fake_plan){.res = 10, .delay_ns = MS});
        CHECK_EQ(ut_prep_recv(engine, 20 + i, 0, 100, 0), i);
    }
    unsigned received = 0;
    for (unsigned waits = 0; received < 10; waits++) {
        CHECK(waits < 10);
        struct tools_batch batch = tools_wait_through(engine, -1);
        CHECK(batch.records <= BUFFERS);
        received += batch.records;
    }
    tools_close(engine);
}

static void an_end_of_file_needs_no_buffer_but_its_turn(void)
{
    set_up();
    for (int i = 0; i < 6; i++) {
        fake_plan_next((struct fake_plan){.res = 0});
        ut_prep_recv(engine, 20 + i, 0, 100, 0);
    }
    /* Nothing is leased by the first four, so all end in one wait. */
    CHECK_EQ(tools_wait(engine, -1).records, 6);
    CHECK_EQ(tools_statistics(engine).leases_out, 0);
    tools_close(engine);
}

static void a_thread_that_wants_to_sleep_is_told(void)
{
    set_up();
    for (int i = 0; i < 5; i++)
        receive(20 + i, 0);
    next_are(0, BUFFERS);
    CHECK_EQ(ut_engine_unsubmitted(engine), 0);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_SOMETHING);
    next_are(4, 1);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_NOTHING);
    tools_close(engine);
}

static void a_wait_without_time_tries_them_too(void)
{
    set_up();
    for (int i = 0; i < 5; i++)
        receive(20 + i, 0);
    next_are(0, BUFFERS);
    CHECK_EQ(tools_wait(engine, 0).records, 1);
    tools_close(engine);
}

/* What a flush brings lies unread in the CQ, and each may have taken a buffer. */
static void a_flush_tries_no_more_than_there_are_buffers(void)
{
    set_up();
    for (int i = 0; i < 6; i++)
        receive(20 + i, 0);
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(fake.submitted[IORING_OP_RECV], BUFFERS);
    next_are(0, BUFFERS);
    next_are(4, 2);
    tools_close(engine);
}

/* Nobody has to be told that the kernel was asked for less than there is. */
static void the_kernel_says_so_all_the_same(void)
{
    set_up();
    struct ut_bufring *group = &engine->groups[0];
    for (int i = 0; i < BUFFERS; i++)
        CHECK(kring_take_buffer(&fake_ring, 0) != NULL);
    CHECK_EQ(tools_await(engine, receive(20, 0)).res, -ENOBUFS);
    for (int i = 0; i < BUFFERS; i++)
        ut_bufring_return(group, ut_bufring_lease(group, (uint16_t)i));
    ut_bufring_commit(group);
    tools_close(engine);
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(they_are_tried_as_buffers_come_home_oldest_first);
    RUN(who_comes_later_is_tried_later);
    RUN(one_that_stood_says_that_it_has_waited);
    RUN(a_group_that_is_dry_holds_up_no_other);
    RUN(one_that_the_kernel_never_knew_is_dropped);
    RUN(one_between_two_of_its_requests_is_dropped);
    RUN(whoever_finds_nothing_leaves_its_buffer_to_the_next);
    RUN(an_end_of_file_needs_no_buffer_but_its_turn);
    RUN(a_thread_that_wants_to_sleep_is_told);
    RUN(a_wait_without_time_tries_them_too);
    RUN(a_flush_tries_no_more_than_there_are_buffers);
    RUN(the_kernel_says_so_all_the_same);
    return CHECK_SUMMARY();
}
