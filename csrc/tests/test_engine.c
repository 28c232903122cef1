/* Operations in, records out: the queue, buffers, overflow, the books. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "engine_tools.h"

static struct ut_engine *engine;

static void set_up(unsigned sq_entries, unsigned cq_entries)
{
    fake_reset();
    engine = tools_open(sq_entries, cq_entries);
}

static int recv_with(struct fake_plan plan, int fd, uint32_t size)
{
    fake_plan_next(plan);
    int slot = ut_prep_recv(engine, fd, 0, size, 0);
    CHECK(slot >= 0);
    return slot;
}

static void a_receive_brings_its_data_in_a_buffer(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 100, .flags = IORING_CQE_F_SOCK_NONEMPTY}, 5,
                         200);
    struct tools_batch batch = tools_wait(engine, -1);
    CHECK_EQ(batch.seen, 1);
    const struct ut_record *record = tools_record(engine, slot);
    CHECK_EQ(record->res, 100);
    CHECK(record->flags & IORING_CQE_F_SOCK_NONEMPTY);
    CHECK(tools_data_is(engine, record, 5));
    CHECK_EQ(tools_statistics(engine).leases_out, 1);
    tools_close(engine);
}

static void each_group_has_its_own_place_in_the_pool(void)
{
    set_up(8, 32);
    int slots[UT_GROUPS];
    for (unsigned group = 0; group < UT_GROUPS; group++) {
        fake_plan_next((struct fake_plan){.res = 1000000});
        slots[group] = ut_prep_recv(engine, 5, group, 1000000, 0);
    }
    CHECK_EQ(tools_wait(engine, -1).records, 3);
    static const uint32_t begins[] = {0, 4 * 4096, 4 * 4096 + 2 * 8192};
    for (unsigned group = 0; group < UT_GROUPS; group++) {
        const struct ut_record *record = tools_record(engine, slots[group]);
        CHECK_EQ(record->res, tools_config.groups[group].buffer_size); /* all of the buffer */
        CHECK_EQ(record->offset, begins[group]);
        CHECK(tools_data_is(engine, record, 5));
    }
    tools_close(engine);
}

static void end_of_file_takes_no_buffer(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 0}, 5, 200);
    tools_wait(engine, -1);
    CHECK_EQ(tools_record(engine, slot)->res, 0);
    CHECK_EQ(tools_record(engine, slot)->flags, 0);
    CHECK_EQ(tools_statistics(engine).leases_out, 0);
    tools_close(engine);
}

static void a_short_send_says_so(void)
{
    static char data[5000];
    set_up(8, 32);
    fake_plan_next((struct fake_plan){.res = 1234});
    int slot = ut_prep_send(engine, 5, data, sizeof data, 0);
    CHECK_EQ(tools_await(engine, slot).res, 1234);
    tools_close(engine);
}

static void no_buffer_is_an_answer_and_the_batchs_end_brings_them_back(void)
{
    set_up(8, 32);
    for (int i = 0; i < 4; i++)
        recv_with((struct fake_plan){.res = 10}, 20 + i, 100);
    int multishot = ut_prep_recv_multishot(engine, 24, 0, 0);
    fake_plan_next((struct fake_plan){.res = 10});
    CHECK_EQ(tools_wait(engine, -1).records, 5);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(engine->records[i].res, 10);
    CHECK_EQ(tools_record(engine, multishot)->res, -ENOBUFS);
    CHECK_EQ(tools_statistics(engine).leases_out, 4);
    CHECK_EQ(kring_buffers_home(&fake_ring, 0), 0);
    /* Armed again at once: the next wait returns the buffers before it submits. */
    int slot = recv_with((struct fake_plan){.res = 10, .at_once = true}, 24, 100);
    CHECK_EQ(tools_await(engine, slot).res, 10);
    CHECK_EQ(kring_buffers_home(&fake_ring, 0), 3);
    tools_close(engine);
}

static void more_operations_than_the_SQ_has_entries(void)
{
    set_up(4, 64);
    fake.fallback = (struct fake_plan){.res = POLLIN};
    for (int i = 0; i < 50; i++)
        CHECK_EQ(ut_prep_poll(engine, i, POLLIN, 0), i);
    unsigned ended = 0;
    while (ended < 50) {
        struct tools_batch batch = tools_wait_through(engine, -1);
        CHECK(batch.answer > 0);
        for (unsigned i = 0; i < batch.records; i++)
            CHECK_EQ(engine->records[i].slot, ended + i); /* oldest first */
        ended += batch.records;
    }
    CHECK_EQ(tools_statistics(engine).operations[IORING_OP_POLL_ADD], 50);
    tools_close(engine);
}

static void more_operations_than_one_wait_submits(void)
{
    set_up(4, 64);
    for (int i = 0; i < 500; i++)
        ut_prep_poll(engine, i, POLLIN, 0);
    /* Nothing completes, and not all is submitted: not the time is over. */
    CHECK_EQ(tools_wait(engine, MS).answer, -EINTR);
    CHECK(tools_statistics(engine).queued > 0);
    uint64_t start = fake.now_ns;
    CHECK_EQ(tools_wait_through(engine, MS).answer, 0);
    CHECK_TIME(fake.now_ns - start, MS);
    CHECK_EQ(tools_statistics(engine).queued, 0);
    CHECK_EQ(fake_in_flight(), 500);
    for (uint32_t slot = 0; slot < 500; slot++)
        ut_engine_cancel(engine, slot);
    while (tools_wait_through(engine, MS).answer != 0)
        ;
    tools_close(engine);
}

static void five_thousand_queued_and_dropped_cost_no_enter(void)
{
    set_up(8, 32);
    for (uint32_t round = 0; round < 5000; round++) {
        int slot = ut_prep_poll(engine, 5, POLLIN, 0);
        CHECK_EQ(slot, 0); /* the same slot again and again */
        CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 0);
    }
    for (int i = 0; i < 5000; i++)
        CHECK(ut_prep_poll(engine, 5, POLLIN, 0) >= 0);
    for (uint32_t slot = 0; slot < 5000; slot++)
        CHECK_EQ(ut_engine_cancel(engine, slot), 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(fake.enters, 0);
    CHECK_EQ(engine->queue_length, 0);
    CHECK(engine->queue_capacity <= 32768);
    tools_close(engine);
}

static void an_overflowing_CQ_loses_nothing(void)
{
    set_up(64, 64);
    fake.fallback = (struct fake_plan){.res = POLLIN, .delay_ns = MS};
    for (int i = 0; i < 200; i++)
        ut_prep_poll(engine, i, POLLIN, 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    fake_sleep(MS);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(ut_engine_flush(engine), 0); /* nobody drains: the CQ overflows */
    CHECK(fake_ring.overflows > 0);
    CHECK(*engine->ring.sq_flags & IORING_SQ_CQ_OVERFLOW);
    unsigned ended = 0;
    while (ended < 200) {
        struct tools_batch batch = tools_wait_through(engine, 0);
        CHECK(batch.answer > 0);
        CHECK(batch.records <= engine->record_capacity);
        ended += batch.records;
    }
    CHECK_EQ(ended, 200);
    CHECK_EQ(*engine->ring.sq_flags & IORING_SQ_CQ_OVERFLOW, 0);
    tools_close(engine);
}

static void stale_tokens_are_counted_and_not_followed(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 5, .copies = 2}, 5, 100);
    uint64_t token = ut_op_at(&engine->ops, (uint32_t)slot)->sqe.user_data;
    CHECK_EQ(tools_wait(engine, -1).records, 1); /* and two that came twice */
    CHECK_EQ(tools_statistics(engine).stale_cqes, 2);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_prep_poll(engine, 5, POLLIN, 0), slot);
    fake_stray_cqe(token, 5, 0);                 /* the slot's last user */
    fake_stray_cqe(token + (1ULL << 32), 5, 0);  /* this one, before its submission: */
    CHECK_EQ(tools_statistics(engine).queued, 1);
    CHECK_EQ(ut_engine_flush(engine), 0);        /* (it is in flight when we look) */
    fake_stray_cqe(1000000, 5, 0);               /* nobody */
    fake_stray_cqe(UT_TOKEN_CANCEL | 77, -ENOENT, 0); /* cancels are never looked up */
    fake.stale_injected -= 2;
    struct tools_batch batch = tools_wait(engine, -1);
    CHECK_EQ(batch.seen, 4);
    CHECK_EQ(batch.records, 1);
    CHECK_EQ(tools_statistics(engine).stale_cqes, 4);
    CHECK_EQ(fake_in_flight(), 1); /* the forged cqe ended it for us */
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_engine_close(engine, 0), 0);
}

static void a_cqe_for_a_queued_operation_is_stale(void)
{
    set_up(8, 32);
    int slot = ut_prep_poll(engine, 5, POLLIN, 0);
    uint64_t token = ut_op_at(&engine->ops, (uint32_t)slot)->sqe.user_data;
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 0);
    fake_stray_cqe(token, 5, 0);
    fake_stray_cqe(token + (1ULL << 32), 5, 0);
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(ut_prep_poll(engine, 5, POLLIN, 0), slot);
    struct tools_batch batch = tools_wait(engine, 0);
    CHECK_EQ(batch.records, 0);
    CHECK_EQ(tools_statistics(engine).stale_cqes, 2);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    tools_await(engine, slot);
    tools_close(engine);
}

static void a_multishot_keeps_its_slot_until_the_last_cqe(void)
{
    set_up(8, 32);
    fake_plan_next((struct fake_plan){.res = POLLIN, .more = 2});
    int slot = ut_prep_poll(engine, 5, POLLIN, 1);
    struct tools_batch batch = tools_wait(engine, -1);
    CHECK_EQ(batch.records, 3); /* two that go on and the last, in one batch */
    CHECK_EQ(ut_prep_poll(engine, 5, POLLIN, 0), slot + 1); /* not before the batch ends */
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot + 1), 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(engine->ops.live, 0);
    tools_close(engine);
}

static void a_flush_submits_and_does_not_touch_the_batch(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10}, 5, 100);
    tools_wait(engine, -1);
    for (int i = 0; i < 20; i++) {
        fake_plan_next((struct fake_plan){.res = 10});
        ut_prep_send(engine, 6, "0123456789", 10, 0);
    }
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(tools_statistics(engine).queued, 0);
    CHECK_EQ(engine->record_count, 1);
    CHECK(tools_data_is(engine, tools_record(engine, slot), 5));
    CHECK(tools_wait(engine, 0).records > 0); /* no enter needed: they are in the CQ */
    while (tools_statistics(engine).in_flight > 0)
        tools_wait_through(engine, -1);
    tools_close(engine);
}

static void a_flush_of_nothing_still_runs_deferred_work(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .slow = true, .delay_ns = MS}, 5, 100);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    fake_sleep(MS);
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(tools_statistics(engine).unread_cqes, 1);
    unsigned enters = fake.enters;
    CHECK_EQ(tools_wait(engine, 5 * MS).records, 1); /* and does not sleep */
    CHECK_EQ(fake.enters, enters);
    CHECK(tools_record(engine, slot) != NULL);
    tools_close(engine);
}

static void a_flush_reports_what_it_cannot_do(void)
{
    set_up(8, 32);
    fake_enter_next((struct fake_enter){.error = -EEXIST});
    CHECK_EQ(ut_engine_flush(engine), -EEXIST);
    fake_enter_next((struct fake_enter){.error = -EINTR});
    CHECK_EQ(ut_engine_flush(engine), 0);
    tools_close(engine);
}

static void statistics_count(void)
{
    set_up(8, 32);
    static char data[10];
    fake.fallback = (struct fake_plan){.res = 3};
    ut_prep_send(engine, 5, data, 10, 0);
    ut_prep_write(engine, 5, data, 10, 0);
    ut_prep_read(engine, 5, 1, 10, 0);
    CHECK_EQ(tools_statistics(engine).queued, 3);
    tools_wait(engine, -1);
    struct ut_statistics statistics = tools_statistics(engine);
    CHECK_EQ(statistics.enters, fake.enters);
    CHECK_EQ(statistics.cqes, 3);
    CHECK_EQ(statistics.queued, 0);
    CHECK_EQ(statistics.operations[IORING_OP_SEND], 1);
    CHECK_EQ(statistics.operations[IORING_OP_WRITE], 1);
    CHECK_EQ(statistics.operations[IORING_OP_READ], 1);
    tools_close(engine);
}

static void closing_with_operations_in_flight_leaks_and_says_so(void)
{
    set_up(8, 32);
    static char memory[500];
    recv_with((struct fake_plan){.slow = true, .delay_ns = FAKE_NEVER}, 5, 100);
    fake_plan_next((struct fake_plan){.slow = true, .delay_ns = FAKE_NEVER});
    ut_prep_recv_into(engine, 6, memory, sizeof memory, 0, 0);
    ut_prep_poll(engine, 7, POLLIN, 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    tools_close_leaking(engine);
    CHECK_EQ(fake.late_writes, 2); /* into memory that is still there */
}

static void closing_with_operations_only_queued_leaks_nothing(void)
{
    set_up(8, 32);
    ut_prep_poll(engine, 7, POLLIN, 0);
    CHECK_EQ(ut_engine_close(engine, 0), 0);
}

static void closing_inside_a_batch_leaks_nothing(void)
{
    set_up(8, 32);
    recv_with((struct fake_plan){.res = 10}, 5, 100);
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    CHECK_EQ(ut_engine_close(engine, 0), 0);
}

static void an_eventfd_is_registered_with_the_ring(void)
{
    set_up(8, 32);
    CHECK_EQ(ut_engine_register_eventfd(engine, 42), 0);
    CHECK_EQ(fake_ring.event_fd, 42);
    tools_close(engine);
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(a_receive_brings_its_data_in_a_buffer);
    RUN(each_group_has_its_own_place_in_the_pool);
    RUN(end_of_file_takes_no_buffer);
    RUN(a_short_send_says_so);
    RUN(no_buffer_is_an_answer_and_the_batchs_end_brings_them_back);
    RUN(more_operations_than_the_SQ_has_entries);
    RUN(more_operations_than_one_wait_submits);
    RUN(five_thousand_queued_and_dropped_cost_no_enter);
    RUN(an_overflowing_CQ_loses_nothing);
    RUN(stale_tokens_are_counted_and_not_followed);
    RUN(a_cqe_for_a_queued_operation_is_stale);
    RUN(a_multishot_keeps_its_slot_until_the_last_cqe);
    RUN(a_flush_submits_and_does_not_touch_the_batch);
    RUN(a_flush_of_nothing_still_runs_deferred_work);
    RUN(a_flush_reports_what_it_cannot_do);
    RUN(statistics_count);
    RUN(closing_with_operations_in_flight_leaks_and_says_so);
    RUN(closing_with_operations_only_queued_leaks_nothing);
    RUN(closing_inside_a_batch_leaks_nothing);
    RUN(an_eventfd_is_registered_with_the_ring);
    return CHECK_SUMMARY();
}
