/* Sends from an offset, and when an enter waits for buffers. */
#include <sys/socket.h>

#include "engine_tools.h"

static struct ut_engine *engine;

/* ---- a send from an offset ------------------------------------------------ */

static void a_send_begins_at_its_offset(void)
{
    static const char data[] = "0123456789";
    fake_reset();
    engine = tools_open(8, 32);
    fake_plan_next((struct fake_plan){.res = 1000});
    int slot = ut_prep_send_from(engine, 5, data, 4, 6, MSG_NOSIGNAL);
    const struct io_uring_sqe *sqe = &ut_op_at(&engine->ops, (uint32_t)slot)->sqe;
    CHECK_EQ(sqe->opcode, IORING_OP_SEND);
    CHECK_EQ(sqe->fd, 5);
    CHECK_EQ(sqe->addr, (uintptr_t)data + 4);
    CHECK_EQ(sqe->len, 6);
    CHECK_EQ(sqe->op_flags, MSG_NOSIGNAL | MSG_DONTWAIT);
    CHECK_EQ(sqe->ioprio, 0);
    CHECK_EQ(tools_await(engine, slot).res, 6);
    tools_close(engine);
}

static void a_short_send_goes_on_where_it_stopped(void)
{
    enum { SIZE = 10000, STEP = 1700 };
    static char data[SIZE];
    fake_reset();
    engine = tools_open(8, 32);
    size_t sent = 0;
    unsigned sends = 0;
    while (sent < SIZE) {
        fake_plan_next((struct fake_plan){.res = STEP});
        int slot = ut_prep_send_from(engine, 5, data, sent, (uint32_t)(SIZE - sent), 0);
        CHECK_EQ(ut_op_at(&engine->ops, (uint32_t)slot)->sqe.addr, (uintptr_t)data + sent);
        sent += (size_t)tools_await(engine, slot).res;
        sends++;
    }
    CHECK_EQ(sent, SIZE);
    CHECK_EQ(sends, (SIZE + STEP - 1) / STEP);
    tools_close(engine);
}

/* ---- rounds of a wait, and buffers ---------------------------------------- */

#define BUFFERS 64u

static void open_with_buffers(void)
{
    struct ut_config config = tools_config;
    config.sq_entries = config.cq_entries = 256;
    config.groups[0].entries = BUFFERS;
    config.groups[1].entries = BUFFERS;
    int error;
    const char *stage;
    fake_reset();
    engine = ut_engine_open(&ut_kernel_fake, &config, &error, &stage);
    CHECK(engine != NULL);
}

/* 100 bytes for each of `count` receives of a group. */
static void prep_many(unsigned count, unsigned group, unsigned more, int multishot)
{
    for (unsigned i = 0; i < count; i++) {
        fake_plan_next((struct fake_plan){.res = 100, .more = more});
        int slot = multishot ? ut_prep_recv_multishot(engine, (int)i, group, 0)
                             : ut_prep_recv(engine, (int)i, group, 4096, 1);
        CHECK_EQ(slot, i);
    }
}

/* Reads batches until `wanted` pieces have come; none may be missing, wrong or refused. */
static unsigned read_all(unsigned wanted)
{
    unsigned pieces = 0, batches = 0;
    while (pieces < wanted) {
        CHECK(tools_wait_through(engine, -1).records > 0);
        CHECK(engine->groups[0].leased <= BUFFERS);
        for (unsigned i = 0; i < engine->record_count; i++) {
            CHECK_EQ(engine->records[i].res, 100);
            CHECK(tools_data_is(engine, &engine->records[i], (int)engine->records[i].slot));
        }
        pieces += engine->record_count;
        batches++;
    }
    CHECK_EQ(pieces, wanted);
    return batches;
}

static void rounds_stop_while_there_are_buffers_for_one_more(void)
{
    open_with_buffers();
    prep_many(150, 0, 0, 1);
    CHECK_EQ(tools_wait(engine, -1).records, 60); /* 20 and 20 and 20; 4 are left */
    CHECK_EQ(fake.enters, 3);
    CHECK_EQ(kring_buffers_home(&fake_ring, 0), 4);
    CHECK_EQ(fake_in_flight(), 90);
    CHECK(ut_ring_wants_enter(&engine->ring)); /* the work waits in the kernel */
    uint64_t start = fake.now_ns;
    CHECK_EQ(tools_wait(engine, 1000 * MS).records, 60);
    CHECK_EQ(tools_wait(engine, 1000 * MS).records, 30);
    CHECK(fake.now_ns - start < MS); /* nobody slept */
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    tools_close(engine);
}

static void no_piece_is_lost_or_refused(void)
{
    open_with_buffers();
    prep_many(100, 0, 9, 1);
    CHECK_EQ(read_all(1000), (1000 + 59) / 60);
    tools_close(engine);
}

static void a_wait_that_must_not_sleep_goes_on_as_well(void)
{
    open_with_buffers();
    prep_many(100, 0, 0, 1);
    CHECK_EQ(tools_wait(engine, 0).records, 60);
    CHECK_EQ(tools_wait(engine, 0).records, 40);
    tools_close(engine);
}

static void what_is_not_submitted_yet_is_submitted_by_the_next_wait(void)
{
    open_with_buffers();
    /* More than the SQ holds: the rest is behind the rounds that stop. */
    prep_many(300, 0, 0, 1);
    CHECK_EQ(read_all(300), 5);
    CHECK_EQ(tools_statistics(engine).queued, 0);
    tools_close(engine);
}

static void larger_buffers_do_not_stop_it(void)
{
    open_with_buffers();
    prep_many(60, 1, 0, 1);
    CHECK_EQ(tools_wait(engine, -1).records, 60);
    CHECK_EQ(fake.enters, 3);
    CHECK_EQ(tools_statistics(engine).leases_out, 60);
    fake_plan_next((struct fake_plan){.res = 100});
    int slot = ut_prep_recv(engine, 5, 1, 4096, 1);
    CHECK_EQ(tools_await(engine, slot).res, 100);
    tools_close(engine);
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(a_send_begins_at_its_offset);
    RUN(a_short_send_goes_on_where_it_stopped);
    RUN(rounds_stop_while_there_are_buffers_for_one_more);
    RUN(no_piece_is_lost_or_refused);
    RUN(a_wait_that_must_not_sleep_goes_on_as_well);
    RUN(what_is_not_submitted_yet_is_submitted_by_the_next_wait);
    RUN(larger_buffers_do_not_stop_it);
    return CHECK_SUMMARY();
}
