/* ut_engine_wait(): when it sleeps, what its answer means, what enter may say. */
#include <errno.h>
#include <poll.h>

#include "engine_tools.h"

static struct ut_engine *engine;

static void set_up(void)
{
    fake_reset();
    engine = tools_open(8, 64);
}

static int poll_with(struct fake_plan plan)
{
    fake_plan_next(plan);
    return ut_prep_poll(engine, 5, POLLIN, 0);
}

/* Ends all that is in flight. */
static void tear_down(void)
{
    for (uint32_t slot = 0; slot < engine->ops.chunk_count * UT_OP_CHUNK; slot++)
        if (ut_op_at(&engine->ops, slot)->state != UT_OP_FREE)
            ut_engine_cancel(engine, slot);
    while (tools_statistics(engine).in_flight > 0)
        CHECK(tools_wait_through(engine, -1).answer > 0);
    tools_close(engine);
}

static void no_time_and_nothing_to_do_is_no_system_call(void)
{
    set_up();
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(fake.enters, 0);
    tear_down();
}

static void falsy_means_that_the_time_is_over(void)
{
    set_up();
    uint64_t start = fake.now_ns;
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, 0);
    CHECK_TIME(fake.now_ns - start, 3 * MS);
    CHECK_EQ(fake.enters, 1);
    tear_down();
}

static void a_submission_hides_the_end_of_the_time_and_it_is_found_all_the_same(void)
{
    set_up();
    poll_with((struct fake_plan){.delay_ns = FAKE_NEVER});
    uint64_t start = fake.now_ns;
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, 0); /* enter said 1, not -ETIME */
    CHECK_TIME(fake.now_ns - start, 3 * MS);
    tear_down();
}

static void a_submission_hides_a_signal_and_it_is_not_taken_for_the_end(void)
{
    set_up();
    poll_with((struct fake_plan){.delay_ns = FAKE_NEVER});
    fake_enter_next((struct fake_enter){.error = -EINTR});
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, -EINTR); /* enter said 1, not -EINTR */
    poll_with((struct fake_plan){.delay_ns = MS});
    fake_enter_next((struct fake_enter){.error = -EINTR});
    CHECK_EQ(tools_wait(engine, -1).answer, -EINTR);
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    tear_down();
}

static void a_signal_in_a_plain_wait(void)
{
    set_up();
    fake_enter_next((struct fake_enter){.error = -EINTR});
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, -EINTR);
    tear_down();
}

static void a_signal_that_comes_with_a_cqe_hides_nothing(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 1, .at_once = true});
    fake_enter_next((struct fake_enter){.error = -EINTR});
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    tear_down();
}

static void the_end_of_the_time_before_its_time_is_not_the_end(void)
{
    set_up();
    fake_enter_next((struct fake_enter){.error = -ETIME});
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, -EINTR);
    tear_down();
}

static void a_cancels_cqe_alone_is_not_nothing(void)
{
    set_up();
    int slot = poll_with((struct fake_plan){.delay_ns = FAKE_NEVER, .cancel_gap_ns = 50 * MS});
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    ut_engine_cancel(engine, (uint32_t)slot);
    struct tools_batch batch = tools_wait(engine, 3 * MS);
    CHECK_EQ(batch.answer, 1LL << 32);
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, 0);
    tear_down();
}

static void a_stale_cqe_alone_is_not_nothing(void)
{
    set_up();
    fake_stray_cqe(99999, 0, 0);
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, 1LL << 32);
    tear_down();
}

static void what_is_in_the_CQ_is_not_slept_over_but_the_queue_is_submitted(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 1, .at_once = true});
    CHECK_EQ(ut_engine_flush(engine), 0);
    poll_with((struct fake_plan){.delay_ns = FAKE_NEVER});
    uint64_t start = fake.now_ns;
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    CHECK_TIME(fake.now_ns, start);
    CHECK_EQ(fake_in_flight(), 1);
    tear_down();
}

static void sixty_four_ready_receives_are_one_batch(void)
{
    set_up();
    engine->record_capacity = 64;
    for (int i = 0; i < 64; i++)
        poll_with((struct fake_plan){.res = 1, .delay_ns = MS});
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    unsigned enters = fake.enters;
    CHECK_EQ(tools_wait(engine, -1).records, 64);
    CHECK_EQ(fake.enters - enters, 4); /* 20 + 20 + 20 + 4 */
    tear_down();
}

static void work_without_end_does_not_hold_a_wait_for_ever(void)
{
    set_up();
    fake_plan_next((struct fake_plan){.res = POLLIN, .more = 1000000});
    int slot = ut_prep_poll(engine, 5, POLLIN, 1);
    struct tools_batch batch = tools_wait(engine, -1);
    CHECK_EQ(batch.records, 64); /* the batch is full; the rest stays in the kernel */
    CHECK(fake.enters <= 16);
    CHECK_EQ(tools_wait(engine, 0).records, 64);
    ut_engine_cancel(engine, (uint32_t)slot);
    while (tools_statistics(engine).in_flight > 0)
        CHECK(tools_wait_through(engine, -1).answer > 0);
    tear_down();
}

static void deferred_work_is_run_without_any_time(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 1, .delay_ns = MS});
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    unsigned enters = fake.enters;
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(fake.enters, enters); /* the flags show nothing: no system call */
    fake_sleep(MS);
    CHECK_EQ(tools_wait(engine, 0).records, 1);
    tear_down();
}

static void a_partial_submission_is_completed(void)
{
    set_up();
    fake.fallback = (struct fake_plan){.res = 1, .delay_ns = 5 * MS};
    for (int i = 0; i < 6; i++)
        ut_prep_poll(engine, 5, POLLIN, 0);
    fake_enter_next((struct fake_enter){.submit_max = 2});
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, -EINTR); /* not the end, and no sleep */
    CHECK_EQ(fake_in_flight(), 2);
    uint64_t start = fake.now_ns;
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, 0);
    CHECK_TIME(fake.now_ns - start, 3 * MS);
    CHECK_EQ(fake_in_flight(), 6);
    CHECK(tools_wait(engine, -1).records > 0);
    tear_down();
}

static void a_partial_submission_without_time_is_completed_at_once(void)
{
    set_up();
    for (int i = 0; i < 6; i++)
        ut_prep_poll(engine, 5, POLLIN, 0);
    fake_enter_next((struct fake_enter){.submit_max = 2});
    fake_enter_next((struct fake_enter){.submit_max = 1});
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(fake_in_flight(), 6);
    CHECK_EQ(fake.enters, 3);
    tear_down();
}

static void no_memory_for_a_request_keeps_it_for_later(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 1});
    fake_enter_next((struct fake_enter){.error = -EAGAIN});
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(fake_in_flight(), 0);
    CHECK_EQ(tools_statistics(engine).in_flight, 1); /* ours no more, in the SQ */
    CHECK_EQ(tools_wait(engine, 0).records, 1);
    tear_down();
}

static void no_memory_for_a_request_is_tried_again_within_the_time(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 1, .delay_ns = MS});
    fake_enter_next((struct fake_enter){.error = -EAGAIN});
    uint64_t start = fake.now_ns;
    CHECK_EQ(tools_wait_through(engine, -1).records, 1);
    CHECK_TIME(fake.now_ns - start, 2 * MS); /* one for the retry, one for the plan */
    tear_down();
}

/* The kernel's memory comes back only when its completions are run. */
static void deferred_work_is_run_while_there_is_no_memory(int64_t timeout_ns, int operations)
{
    set_up();
    fake.requests_max = 4;
    fake.fallback = (struct fake_plan){.res = 1, .delay_ns = MS};
    for (int i = 0; i < operations; i++)
        ut_prep_poll(engine, 5, POLLIN, 0);
    int ended = 0;
    for (int calls = 0; ended < operations; calls++) {
        CHECK(calls < 10 * operations);
        struct tools_batch batch = tools_wait(engine, timeout_ns);
        CHECK(batch.answer >= 0 || batch.answer == -EINTR);
        ended += (int)batch.records;
        if (timeout_ns == 0)
            fake_sleep(MS);
    }
    CHECK_EQ(ended, operations);
    tear_down();
}

static void no_memory_and_no_time(void)
{
    deferred_work_is_run_while_there_is_no_memory(0, 6);
    deferred_work_is_run_while_there_is_no_memory(0, 100);
}

static void no_memory_and_a_wait(void)
{
    deferred_work_is_run_while_there_is_no_memory(-1, 6);
    deferred_work_is_run_while_there_is_no_memory(100 * MS, 6);
}

static void no_memory_and_more_operations_than_the_SQ_has_entries(void)
{
    deferred_work_is_run_while_there_is_no_memory(-1, 100);
    deferred_work_is_run_while_there_is_no_memory(100 * MS, 100);
}

static void no_memory_at_all_sleeps_and_does_not_spin(void)
{
    set_up();
    fake.requests_max = 1;
    poll_with((struct fake_plan){.delay_ns = 500 * MS});
    for (int i = 0; i < 20; i++)
        ut_prep_poll(engine, 5, POLLIN, 0);
    while (tools_wait(engine, 1000 * MS).answer == -EINTR)
        ;
    CHECK(fake.enters < 3 * 500 + 100); /* one try each millisecond */
    fake.requests_max = 0;
    tear_down();
}

static void a_flush_without_memory_runs_work_and_does_not_insist(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 1, .delay_ns = MS});
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    fake.requests_max = 1;
    poll_with((struct fake_plan){.delay_ns = FAKE_NEVER});
    unsigned enters = fake.enters;
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(fake.enters - enters, 1);
    fake_sleep(MS);
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(tools_statistics(engine).unread_cqes, 1);
    CHECK_EQ(fake_in_flight(), 1); /* the second */
    fake.requests_max = 0;
    tear_down();
}

static void a_full_CQ_answers_EBUSY_and_is_drained(void)
{
    set_up();
    fake_enter_next((struct fake_enter){.error = -EBUSY});
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, -EINTR);
    CHECK_EQ(ut_engine_flush(engine), 0);
    tear_down();
}

static void other_errors_come_back(void)
{
    static const int errors[] = {-EBADF, -EEXIST, -EBADR, -EOPNOTSUPP, -EINVAL};
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++) {
        set_up();
        fake_enter_next((struct fake_enter){.error = errors[i]});
        CHECK_EQ(tools_wait(engine, 3 * MS).answer, errors[i]);
        if (errors[i] != -EBADR) { /* which comes from the wait only */
            fake_enter_next((struct fake_enter){.error = errors[i]});
            poll_with((struct fake_plan){.res = 1});
            CHECK_EQ(tools_wait(engine, 0).answer, errors[i]);
        }
        tear_down();
    }
}

/* The kernel had no memory for a cqe, and that operation never ends. Other cqes come with
 * the answer: they are delivered, and the loss is told by the next wait, once. */
static void a_lost_cqe_is_told_though_others_came_with_it(void)
{
    static const int64_t timeouts[] = {-1, 3 * MS, 0}; /* from the sleep; from running work */
    for (unsigned i = 0; i < sizeof timeouts / sizeof *timeouts; i++) {
        set_up();
        poll_with((struct fake_plan){.res = 1, .delay_ns = MS});
        poll_with((struct fake_plan){.delay_ns = FAKE_NEVER});
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
        fake_sleep(MS);
        fake_enter_next((struct fake_enter){.error = -EBADR, .with_cqes = true});
        CHECK_EQ(tools_wait(engine, timeouts[i]).records, 1);
        CHECK_EQ(tools_wait(engine, 3 * MS).answer, -EBADR);
        CHECK_EQ(tools_wait(engine, 3 * MS).answer, 0);
        tear_down();
    }
}

static void the_longest_time_is_no_overflow(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 1, .delay_ns = MS});
    CHECK_EQ(tools_wait(engine, INT64_MAX).records, 1);
    tear_down();
}

static void what_found_no_memory_is_not_submitted(void)
{
    set_up();
    poll_with((struct fake_plan){.delay_ns = FAKE_NEVER});
    CHECK_EQ(ut_engine_unsubmitted(engine), 1);
    fake_enter_next((struct fake_enter){.error = -EAGAIN});
    tools_wait(engine, 0);
    CHECK_EQ(ut_engine_unsubmitted(engine), 1);
    CHECK_EQ(fake_in_flight(), 0);
    tools_wait(engine, 0);
    CHECK_EQ(ut_engine_unsubmitted(engine), 0);
    CHECK_EQ(fake_in_flight(), 1);
    ut_engine_cancel(engine, 0);
    CHECK_EQ(ut_engine_unsubmitted(engine), 1);
    tools_await(engine, 0);
    tools_close(engine);
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(no_time_and_nothing_to_do_is_no_system_call);
    RUN(falsy_means_that_the_time_is_over);
    RUN(a_submission_hides_the_end_of_the_time_and_it_is_found_all_the_same);
    RUN(a_submission_hides_a_signal_and_it_is_not_taken_for_the_end);
    RUN(a_signal_in_a_plain_wait);
    RUN(a_signal_that_comes_with_a_cqe_hides_nothing);
    RUN(the_end_of_the_time_before_its_time_is_not_the_end);
    RUN(a_cancels_cqe_alone_is_not_nothing);
    RUN(a_stale_cqe_alone_is_not_nothing);
    RUN(what_is_in_the_CQ_is_not_slept_over_but_the_queue_is_submitted);
    RUN(sixty_four_ready_receives_are_one_batch);
    RUN(work_without_end_does_not_hold_a_wait_for_ever);
    RUN(deferred_work_is_run_without_any_time);
    RUN(a_partial_submission_is_completed);
    RUN(a_partial_submission_without_time_is_completed_at_once);
    RUN(no_memory_for_a_request_keeps_it_for_later);
    RUN(no_memory_for_a_request_is_tried_again_within_the_time);
    RUN(no_memory_and_no_time);
    RUN(no_memory_and_a_wait);
    RUN(no_memory_and_more_operations_than_the_SQ_has_entries);
    RUN(no_memory_at_all_sleeps_and_does_not_spin);
    RUN(a_flush_without_memory_runs_work_and_does_not_insist);
    RUN(a_full_CQ_answers_EBUSY_and_is_drained);
    RUN(other_errors_come_back);
    RUN(a_lost_cqe_is_told_though_others_came_with_it);
    RUN(the_longest_time_is_no_overflow);
    RUN(what_found_no_memory_is_not_submitted);
    return CHECK_SUMMARY();
}
