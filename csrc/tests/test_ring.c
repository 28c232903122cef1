/* One ring: the set-up's sizes and refusals, the SQ, the CQ, enter. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "fake_kernel.h"

static struct ut_ring ring;

static void set_up(unsigned sq_entries, unsigned cq_entries)
{
    fake_reset();
    CHECK_EQ(ut_ring_open(&ring, &ut_kernel_fake, sq_entries, cq_entries, 2), 0);
}

static struct io_uring_sqe *prep_poll(uint64_t user_data)
{
    struct io_uring_sqe *sqe = ut_ring_get_sqe(&ring);
    if (sqe != NULL) {
        memset(sqe, 0, sizeof *sqe);
        sqe->opcode = IORING_OP_POLL_ADD;
        sqe->user_data = user_data;
    }
    return sqe;
}

static void the_required_flags_are_asked_for(void)
{
    set_up(8, 32);
    unsigned flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                     IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP |
                     IORING_SETUP_CQSIZE;
    CHECK_EQ(fake_ring.setup_flags, flags);
    CHECK_EQ(ring.setup_flags, flags);
    CHECK_EQ(ring.sq_entries, 8);
    CHECK_EQ(ring.cq_entries, 32);
    CHECK_EQ(ring.enter_flags, IORING_ENTER_NO_IOWAIT);
    ut_ring_close(&ring);
    ut_ring_close(&ring); /* twice does no harm */
}

static void a_kernel_without_NO_IOWAIT_is_not_asked_for_it(void)
{
    fake_reset();
    fake.features &= ~IORING_FEAT_NO_IOWAIT;
    CHECK_EQ(ut_ring_open(&ring, &ut_kernel_fake, 8, 8, 8), 0);
    CHECK_EQ(ring.enter_flags, 0);
    ut_ring_close(&ring);
}

static void a_refused_flag_is_a_failure_and_no_lesser_ring(void)
{
    fake_reset();
    fake.setup_flags_refused = IORING_SETUP_DEFER_TASKRUN;
    CHECK_EQ(ut_ring_open(&ring, &ut_kernel_fake, 8, 8, 8), -EINVAL);
    CHECK_EQ(fake.calls, 1);
    ut_ring_close(&ring);
}

static void each_required_feature_is_required(void)
{
    static const unsigned features[] = {IORING_FEAT_SINGLE_MMAP, IORING_FEAT_NODROP,
                                        IORING_FEAT_SUBMIT_STABLE, IORING_FEAT_FAST_POLL,
                                        IORING_FEAT_EXT_ARG};
    for (unsigned i = 0; i < sizeof features / sizeof *features; i++) {
        fake_reset();
        fake.features &= ~features[i];
        CHECK_EQ(ut_ring_open(&ring, &ut_kernel_fake, 8, 8, 8), -EOPNOTSUPP);
        CHECK_EQ(fake.fds, 0);
    }
}

static void no_memory_halves_the_ring_down_to_a_minimum(void)
{
    fake_reset();
    fake.setup_entries_max = 16;
    CHECK_EQ(ut_ring_open(&ring, &ut_kernel_fake, 64, 256, 16), 0);
    CHECK_EQ(ring.sq_entries, 16);
    CHECK_EQ(ring.cq_entries, 64);
    CHECK_EQ(fake.calls, 3 + 2); /* setup three times, map twice */
    ut_ring_close(&ring);

    fake_reset();
    fake.setup_entries_max = 16;
    CHECK_EQ(ut_ring_open(&ring, &ut_kernel_fake, 64, 256, 32), -ENOMEM);
    CHECK_EQ(fake.calls, 2);
}

static void each_failing_call_leaves_nothing_behind(void)
{
    for (unsigned nth = 1; nth <= 3; nth++) { /* setup, map, map */
        fake_reset();
        fake.fail_call = nth;
        fake.fail_error = -EPERM;
        CHECK_EQ(ut_ring_open(&ring, &ut_kernel_fake, 8, 8, 8), -EPERM);
        CHECK_EQ(fake.calls, nth);
        CHECK_EQ(fake.mappings, 0);
        CHECK_EQ(fake.fds, 0);
        ut_ring_close(&ring);
    }
}

static void the_SQ_gives_as_many_sqes_as_it_has(void)
{
    set_up(4, 16);
    for (unsigned i = 0; i < 4; i++) {
        CHECK_EQ(ut_ring_unsubmitted(&ring), i);
        CHECK(prep_poll(i) != NULL);
    }
    CHECK(ut_ring_get_sqe(&ring) == NULL);
    CHECK_EQ(ut_ring_enter(&ring, 3, 0, 0), 3);
    CHECK_EQ(ut_ring_unsubmitted(&ring), 1);
    CHECK_EQ(fake_in_flight(), 3);
    for (unsigned i = 0; i < 3; i++)
        CHECK(prep_poll(4 + i) != NULL); /* past the wrap of 32 bits */
    CHECK(ut_ring_get_sqe(&ring) == NULL);
    CHECK_EQ(ut_ring_enter(&ring, 4, 0, 0), 4);
    CHECK_EQ(ut_ring_unsubmitted(&ring), 0);
    CHECK_EQ(fake_in_flight(), 7);
    ut_ring_close(&ring);
}

static void what_one_enter_leaves_the_next_submits(void)
{
    set_up(4, 16);
    for (unsigned i = 0; i < 4; i++)
        prep_poll(i);
    fake_enter_next((struct fake_enter){.submit_max = 1});
    fake_enter_next((struct fake_enter){.error = -EAGAIN});
    CHECK_EQ(ut_ring_enter(&ring, 4, 0, 0), 1);
    CHECK_EQ(ut_ring_unsubmitted(&ring), 3);
    CHECK_EQ(ut_ring_enter(&ring, 3, 0, 0), -EAGAIN);
    CHECK_EQ(ut_ring_unsubmitted(&ring), 3);
    CHECK_EQ(ut_ring_enter(&ring, 3, 0, 0), 3);
    CHECK_EQ(ut_ring_unsubmitted(&ring), 0);
    ut_ring_close(&ring);
}

static void cqes_come_in_order_across_the_wrap(void)
{
    set_up(8, 8);
    uint64_t next = 0, expected = 0;
    for (unsigned round = 0; round < 5; round++) {
        for (unsigned i = 0; i < 7; i++) {
            fake_plan_next((struct fake_plan){.res = (int32_t)next});
            prep_poll(next++);
        }
        CHECK_EQ(ut_ring_enter(&ring, 7, 7, -1), 7);
        CHECK_EQ(ut_ring_cq_ready(&ring), 7);
        for (unsigned i = 0; i < 7; i++, expected++) {
            CHECK_EQ(ut_ring_cqe(&ring, i)->user_data, expected);
            CHECK_EQ(ut_ring_cqe(&ring, i)->res, expected);
        }
        ut_ring_cq_advance(&ring, 7);
        CHECK_EQ(ut_ring_cq_ready(&ring), 0);
    }
    CHECK_ABORTS(ut_ring_cq_advance(&ring, 1), "count <= ut_ring_cq_ready");
    ut_ring_close(&ring);
}

static void the_SQ_flags_say_when_an_enter_is_worth_it(void)
{
    set_up(8, 8);
    fake_plan_next((struct fake_plan){.delay_ns = 1000});
    prep_poll(1);
    ut_ring_enter(&ring, 1, 0, 0);
    CHECK(!ut_ring_wants_enter(&ring));
    fake_sleep(1000);
    CHECK(ut_ring_wants_enter(&ring)); /* deferred work */
    CHECK_EQ(ut_ring_cq_ready(&ring), 0);
    ut_ring_enter(&ring, 0, 0, 0);
    CHECK(!ut_ring_wants_enter(&ring));
    CHECK_EQ(ut_ring_cq_ready(&ring), 1);

    for (unsigned i = 0; i < 8; i++) {
        fake_plan_next((struct fake_plan){0});
        prep_poll(i);
    }
    ut_ring_enter(&ring, 8, 0, 0);
    CHECK(ut_ring_wants_enter(&ring)); /* one cqe did not fit */
    CHECK_EQ(ut_ring_cq_ready(&ring), 8);
    ut_ring_cq_advance(&ring, 8);
    ut_ring_enter(&ring, 0, 0, 0);
    CHECK_EQ(ut_ring_cq_ready(&ring), 1);
    CHECK(!ut_ring_wants_enter(&ring));
    ut_ring_close(&ring);
}

static void the_wait_ends_with_its_time(void)
{
    set_up(4, 4);
    uint64_t start = fake.now_ns;
    CHECK_EQ(ut_ring_enter(&ring, 0, 1, 3500000000), -ETIME);
    CHECK_EQ(fake.now_ns - start, 3500000000);
    CHECK_EQ(ut_ring_enter(&ring, 0, 0, 1000), 0); /* nothing to wait for: no sleep */
    CHECK_EQ(ut_ring_enter(&ring, 0, 1, 0), -ETIME);
    CHECK_EQ(fake.now_ns - start, 3500000000);
    CHECK_EQ(ut_ring_enter(&ring, 0, 1, 86400 * 1000000000LL), -ETIME); /* a day */
    CHECK_EQ(fake.now_ns - start, 86400 * 1000000000LL + 3500000000);
    start = fake.now_ns - 3500000000;
    fake_plan_next((struct fake_plan){.delay_ns = 5});
    prep_poll(1);
    CHECK_EQ(ut_ring_enter(&ring, 1, 1, INT64_MAX), 1);
    CHECK_EQ(fake.now_ns - start, 3500000005);
    ut_ring_close(&ring);
}

static void the_real_table_answers_with_minus_errno(void)
{
    fake_reset();
    const struct ut_kernel *real = &ut_kernel_real;
    void *memory = NULL;
    CHECK_EQ(real->map(&memory, 4096, -1, IORING_OFF_SQ_RING), -EBADF);
    CHECK_EQ(real->allocate(&memory, SIZE_MAX / 2, 0), -ENOMEM);
    CHECK(memory == NULL);
    CHECK(real->setup(0, NULL) < 0);
    CHECK(real->enter(-1, 0, 0, 0, NULL, 0) < 0);
    CHECK(real->register_op(-1, 0, NULL, 0) < 0);
    CHECK_EQ(real->allocate(&memory, 5000, 1), 0);
    CHECK_EQ((uintptr_t)memory % 4096, 0);
    memset(memory, 1, 5000);
    real->unmap(memory, 5000);
    uint64_t now = real->now_ns();
    CHECK(real->now_ns() >= now);
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(the_required_flags_are_asked_for);
    RUN(a_kernel_without_NO_IOWAIT_is_not_asked_for_it);
    RUN(a_refused_flag_is_a_failure_and_no_lesser_ring);
    RUN(each_required_feature_is_required);
    RUN(no_memory_halves_the_ring_down_to_a_minimum);
    RUN(each_failing_call_leaves_nothing_behind);
    RUN(the_SQ_gives_as_many_sqes_as_it_has);
    RUN(what_one_enter_leaves_the_next_submits);
    RUN(cqes_come_in_order_across_the_wrap);
    RUN(the_SQ_flags_say_when_an_enter_is_worth_it);
    RUN(the_wait_ends_with_its_time);
    RUN(the_real_table_answers_with_minus_errno);
    return CHECK_SUMMARY();
}
