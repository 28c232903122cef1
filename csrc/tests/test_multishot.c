/* Multishot receives and accepts: many cqes of one slot, and every way in which they end. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "engine_tools.h"

#define NEVER FAKE_NEVER

static struct ut_engine *engine;

static void set_up(unsigned sq_entries, unsigned cq_entries)
{
    fake_reset();
    engine = tools_open(sq_entries, cq_entries);
}

static int recv_with(struct fake_plan plan, int fd)
{
    fake_plan_next(plan);
    int slot = ut_prep_recv_multishot(engine, fd, 0, 0);
    CHECK(slot >= 0);
    return slot;
}

static int accept_with(struct fake_plan plan)
{
    fake_plan_next(plan);
    int slot = tools_accept_multishot(engine, 7, SOCK_CLOEXEC | SOCK_NONBLOCK);
    CHECK(slot >= 0);
    return slot;
}

/* Record i of the batch is a piece of `slot` with its data. */
static bool is_piece(unsigned i, int slot, int32_t size, int fd, bool more)
{
    const struct ut_record *record = &engine->records[i];
    return record->slot == (uint32_t)slot && record->res == size &&
           !(record->flags & IORING_CQE_F_MORE) == !more && tools_data_is(engine, record, fd);
}

static void slot_is_free(int slot)
{
    CHECK_EQ(ut_engine_wait(engine, 0), 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -ENOENT);
}

/* ---- receiving ------------------------------------------------------------ */

static void pieces_of_one_batch_have_a_buffer_each(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .more = 3}, 5);
    CHECK_EQ(tools_wait(engine, -1).records, 4);
    for (unsigned i = 0; i < 4; i++) {
        CHECK(is_piece(i, slot, 10, 5, i < 3));
        for (unsigned other = 0; other < i; other++)
            CHECK(engine->records[i].offset != engine->records[other].offset);
    }
    CHECK_EQ(tools_statistics(engine).leases_out, 4);
    slot_is_free(slot);
    CHECK_EQ(kring_buffers_home(&fake_ring, 0), 4);
    tools_close(engine);
}

static void pieces_of_many_batches_give_their_buffers_back(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 100, .more = 20, .delay_ns = MS}, 5);
    for (unsigned i = 0; i < 21; i++) { /* five times as many as there are buffers */
        CHECK_EQ(tools_wait_through(engine, -1).records, 1);
        CHECK(is_piece(0, slot, 100, 5, i < 20));
        CHECK_EQ(tools_statistics(engine).leases_out, 1);
        CHECK_EQ(tools_statistics(engine).in_flight, i < 20);
    }
    CHECK_EQ(tools_statistics(engine).operations[IORING_OP_RECV], 1);
    slot_is_free(slot);
    tools_close(engine);
}

static void a_piece_is_as_large_as_its_buffer(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 1000000, .more = 1}, 5);
    CHECK_EQ(tools_wait(engine, -1).records, 2);
    CHECK(is_piece(0, slot, 4096, 5, true));
    CHECK(is_piece(1, slot, 4096, 5, false));
    tools_close(engine);
}

static void the_end_of_the_stream_is_the_last_cqe(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 0, .more = 3}, 5);
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    CHECK_EQ(engine->records[0].res, 0);
    CHECK_EQ(engine->records[0].flags, 0);
    slot_is_free(slot);
    tools_close(engine);
}

static void without_a_buffer_it_ends_and_can_be_armed_again(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .more = 9}, 5);
    CHECK_EQ(tools_wait(engine, -1).records, 5);
    for (unsigned i = 0; i < 4; i++)
        CHECK(is_piece(i, slot, 10, 5, true));
    CHECK_EQ(engine->records[4].res, -ENOBUFS);
    CHECK_EQ(engine->records[4].flags, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -EALREADY);
    /* The next wait returns the buffers before it submits. */
    int again = recv_with((struct fake_plan){.res = 10, .more = 3}, 5);
    CHECK(again != slot);
    CHECK_EQ(tools_wait(engine, -1).records, 4);
    CHECK(is_piece(3, again, 10, 5, false));
    tools_close(engine);
}

static void it_shares_its_group_with_one_shot_receives(void)
{
    set_up(8, 32);
    int many = recv_with((struct fake_plan){.res = 10, .more = 1}, 5);
    fake_plan_next((struct fake_plan){.res = 20});
    int once = ut_prep_recv(engine, 6, 0, 100, 0);
    CHECK_EQ(tools_wait(engine, -1).records, 3);
    const struct ut_record *record = tools_record(engine, once);
    CHECK_EQ(record->res, 20);
    CHECK(tools_data_is(engine, record, 6));
    CHECK(tools_data_is(engine, tools_record(engine, many), 5));
    tools_close(engine);
}

static void a_full_CQ_ends_it_and_loses_nothing(void)
{
    set_up(2, 2);
    int slot = recv_with((struct fake_plan){.res = 10, .more = 3}, 5);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(ut_engine_flush(engine), 0); /* nobody drains */
    CHECK_EQ(fake_ring.overflows, 1);
    CHECK_EQ(fake_in_flight(), 0);
    CHECK_EQ(tools_wait(engine, 0).records, 2);
    CHECK(is_piece(0, slot, 10, 5, true));
    CHECK(is_piece(1, slot, 10, 5, true));
    CHECK_EQ(tools_statistics(engine).in_flight, 1); /* as far as we know */
    CHECK_EQ(tools_wait_through(engine, -1).records, 1);
    CHECK(is_piece(0, slot, 10, 5, false));
    slot_is_free(slot);
    tools_close(engine);
}

/* ---- cancelling ----------------------------------------------------------- */

static void a_cancel_of_an_idle_one(void)
{
    for (int target_first = 0; target_first < 2; target_first++) {
        set_up(8, 32);
        int slot = recv_with((struct fake_plan){.delay_ns = NEVER, .target_first = target_first},
                             5);
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
        CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
        CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -EALREADY);
        CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
        slot_is_free(slot);
        tools_close(engine);
    }
}

static void a_cancel_before_its_submission(void)
{
    set_up(8, 32);
    int slot = ut_prep_recv_multishot(engine, 5, 0, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 0);
    slot_is_free(slot);
    CHECK_EQ(fake.enters, 0);
    tools_close(engine);
}

static void a_cancel_between_its_cqes(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .more = 5, .delay_ns = MS}, 5);
    CHECK_EQ(tools_wait_through(engine, -1).records, 1);
    CHECK(is_piece(0, slot, 10, 5, true));
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1); /* its piece is read still */
    CHECK(is_piece(0, slot, 10, 5, true));
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
    CHECK_EQ(engine->record_count, 1);
    slot_is_free(slot);
    tools_close(engine);
}

/* Data wins: it comes in the operation's last cqe, or in cqes before that. */
static void a_cancel_that_races_with_data(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.delay_ns = NEVER, .cancel_res = 10}, 5);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_await(engine, slot).res, 10);
    CHECK(is_piece(0, slot, 10, 5, false));
    slot_is_free(slot);

    struct fake_plan late = {.res = 10, .more = 2, .delay_ns = MS, .cancel_too_late = true,
                             .cancel_answer = -EALREADY};
    slot = recv_with(late, 5);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -EALREADY);
        while (tools_wait_through(engine, -1).records == 0)
            ; /* the cancel's own cqe */
        CHECK(is_piece(0, slot, 10, 5, i < 2));
    }
    slot_is_free(slot);
    tools_close(engine);
}

static void a_cancel_in_the_batch_of_the_last_cqe(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .more = 1}, 5);
    CHECK_EQ(tools_wait(engine, -1).records, 2);
    /* Whoever reads the first of the two does not know of the second. */
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -EALREADY);
    CHECK(is_piece(1, slot, 10, 5, false));
    slot_is_free(slot);
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 0);
    tools_close(engine);
}

static void a_cancel_while_the_last_cqe_lies_unread(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .more = 1}, 5);
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(tools_statistics(engine).unread_cqes, 2);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_wait(engine, 0).records, 2);
    CHECK(is_piece(1, slot, 10, 5, false));
    slot_is_free(slot);
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 0); /* over before it left */
    tools_close(engine);
}

/* A cancel for the slot's last user must not end the next one. */
static void a_cancel_is_never_anothers(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 0}, 5);
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_wait(engine, 0).records, 1);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(recv_with((struct fake_plan){.res = 10, .delay_ns = MS}, 6), slot);
    CHECK_EQ(tools_await(engine, slot).res, 10);
    tools_close(engine);
}

/* ---- accepting ------------------------------------------------------------ */

static void an_accept_gives_one_descriptor_after_the_other(void)
{
    set_up(8, 32);
    int slot = accept_with((struct fake_plan){.res = 40, .more = 2, .delay_ns = MS});
    CHECK_EQ(ut_op_at(&engine->ops, (uint32_t)slot)->sqe.ioprio, IORING_ACCEPT_MULTISHOT);
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(tools_wait_through(engine, -1).records, 1);
        CHECK_EQ(engine->records[0].slot, slot);
        CHECK_EQ(engine->records[0].res, 40);
        CHECK_EQ(engine->records[0].flags, i < 2 ? IORING_CQE_F_MORE : 0);
    }
    slot_is_free(slot);
    tools_close(engine);
}

static void an_accept_that_fails_is_over(void)
{
    set_up(8, 32);
    int slot = accept_with((struct fake_plan){.res = -EMFILE, .more = 2});
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    CHECK_EQ(engine->records[0].res, -EMFILE);
    CHECK_EQ(engine->records[0].flags, 0);
    slot_is_free(slot);
    tools_close(engine);
}

static void an_accept_is_cancelled(void)
{
    set_up(8, 32);
    int slot = accept_with((struct fake_plan){.res = 40, .more = 5, .delay_ns = MS});
    CHECK_EQ(tools_wait_through(engine, -1).records, 1);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
    slot_is_free(slot);
    tools_close(engine);
}

static void a_full_CQ_ends_an_accept_and_loses_no_descriptor(void)
{
    set_up(2, 2);
    int slot = accept_with((struct fake_plan){.res = 40, .more = 9});
    CHECK_EQ(ut_engine_flush(engine), 0);
    unsigned accepted = 0;
    for (bool ended = false; !ended;) {
        CHECK(tools_wait_through(engine, -1).records > 0);
        for (unsigned i = 0; i < engine->record_count; i++, accepted++)
            ended = !(engine->records[i].flags & IORING_CQE_F_MORE);
    }
    CHECK_EQ(accepted, 3);
    slot_is_free(slot);
    tools_close(engine);
}

static void a_one_shot_accept_is_over_at_once(void)
{
    set_up(8, 32);
    fake_plan_next((struct fake_plan){.res = 40});
    int slot = ut_prep_accept_fd(engine, 7, SOCK_CLOEXEC);
    const struct io_uring_sqe *sqe = &ut_op_at(&engine->ops, (uint32_t)slot)->sqe;
    CHECK_EQ(sqe->ioprio, IORING_ACCEPT_DONTWAIT);
    CHECK_EQ(sqe->op_flags, SOCK_CLOEXEC);
    CHECK_EQ(sqe->addr, 0);
    CHECK_EQ(sqe->off, 0);
    CHECK_EQ(tools_await(engine, slot).res, 40);
    CHECK_EQ(engine->records[0].flags, 0);
    slot_is_free(slot);
    tools_close(engine);
}

/* ---- what Linux refuses --------------------------------------------------- */

static void the_fake_refuses_what_linux_refuses(void)
{
    static const struct {
        uint16_t ioprio;
        uint32_t len, op_flags;
        uint8_t flags, opcode;
    } wrong[] = {
        {IORING_RECV_MULTISHOT, 0, 0, 0, IORING_OP_RECV}, /* no buffer to be picked */
        {IORING_RECV_MULTISHOT, 100, 0, IOSQE_BUFFER_SELECT, IORING_OP_RECV},
        {IORING_RECV_MULTISHOT, 0, MSG_WAITALL, IOSQE_BUFFER_SELECT, IORING_OP_RECV},
        {IORING_RECV_MULTISHOT, 100, 0, 0, IORING_OP_SEND},
        {1u << 9, 0, 0, 0, IORING_OP_ACCEPT},
        {IORING_ACCEPT_MULTISHOT, 0, MSG_DONTWAIT, 0, IORING_OP_ACCEPT},
        {IORING_ACCEPT_MULTISHOT, 16, 0, 0, IORING_OP_ACCEPT},
    };
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        check_note("sqe %u", i);
        set_up(8, 32);
        fake.faults_expected = true;
        int slot = ut_prep_recv_multishot(engine, 5, 0, 0);
        struct io_uring_sqe *sqe = &ut_op_at(&engine->ops, (uint32_t)slot)->sqe;
        sqe->opcode = wrong[i].opcode;
        sqe->ioprio = wrong[i].ioprio;
        sqe->len = wrong[i].len;
        sqe->op_flags = wrong[i].op_flags;
        sqe->flags = wrong[i].flags;
        CHECK_EQ(tools_await(engine, slot).res, -EINVAL);
        CHECK_EQ(fake.faults, 1);
        fake.faults = 0;
        tools_close(engine);
    }
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(pieces_of_one_batch_have_a_buffer_each);
    RUN(pieces_of_many_batches_give_their_buffers_back);
    RUN(a_piece_is_as_large_as_its_buffer);
    RUN(the_end_of_the_stream_is_the_last_cqe);
    RUN(without_a_buffer_it_ends_and_can_be_armed_again);
    RUN(it_shares_its_group_with_one_shot_receives);
    RUN(a_full_CQ_ends_it_and_loses_nothing);
    RUN(a_cancel_of_an_idle_one);
    RUN(a_cancel_before_its_submission);
    RUN(a_cancel_between_its_cqes);
    RUN(a_cancel_that_races_with_data);
    RUN(a_cancel_in_the_batch_of_the_last_cqe);
    RUN(a_cancel_while_the_last_cqe_lies_unread);
    RUN(a_cancel_is_never_anothers);
    RUN(an_accept_gives_one_descriptor_after_the_other);
    RUN(an_accept_that_fails_is_over);
    RUN(an_accept_is_cancelled);
    RUN(a_full_CQ_ends_an_accept_and_loses_no_descriptor);
    RUN(a_one_shot_accept_is_over_at_once);
    RUN(the_fake_refuses_what_linux_refuses);
    return CHECK_SUMMARY();
}
