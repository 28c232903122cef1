/* The probe names the step that failed, on the fake kernel; and it runs on this one. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../probe.h"
#include "check.h"
#include "fail_alloc.h"
#include "fake_kernel.h"

#define TIMEOUT_NS 1000000000LL

static struct ut_probe probe;

/* A kernel on which everything works. */
static void set_up(void)
{
    fake_reset();
    fake_plan_next((struct fake_plan){.res = 5, .data = "probe"}); /* the receive */
    fake_plan_next((struct fake_plan){.res = 5});                  /* the send */
}

static void run(void)
{
    ut_probe_run(&ut_kernel_fake, NULL, TIMEOUT_NS, &probe);
}

/* The same where the probe's operation may still be in flight at its end. */
static void run_leaking(void)
{
    check_leak_begin();
    run();
    check_leak_end();
    CHECK_EQ(fake.fds, 0);
    CHECK(fake_reclaim() > 0);
}

static void check_outcome(int error, const char *stage)
{
    if (probe.error != error || strcmp(probe.stage, stage) != 0)
        printf("probe: %d at '%s'\n", probe.error, probe.stage);
    CHECK_EQ(probe.error, error);
    CHECK(strcmp(probe.stage, stage) == 0);
}

static void a_kernel_that_has_all(void)
{
    set_up();
    run();
    check_outcome(0, "async cancel");
    CHECK_EQ(probe.setup_flags, fake_ring.setup_flags);
    CHECK_EQ(probe.features, fake.features);
    CHECK_EQ(probe.sq_entries, 8);
    CHECK_EQ(probe.cq_entries, 32);
    CHECK_EQ(probe.opcode_count, UT_OPCODES);
    CHECK_EQ(probe.opcodes[IORING_OP_RECV], 1);
    CHECK_EQ(probe.opcodes[UT_OPCODES], 0);
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 1);
}

static void each_denied_call_is_named(void)
{
    static const struct {
        unsigned calls;
        const char *stage;
    } stages[] = {{3, "io_uring_setup"}, {7, "register buffer ring"}, {1, "list the opcodes"}};
    static const int errors[] = {-EPERM, -ENOSYS, -EOPNOTSUPP, -EINVAL, -ENOMEM};
    unsigned nth = 0;
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned call = 0; call < stages[i].calls; call++) {
            nth++;
            for (unsigned e = 0; e < sizeof errors / sizeof *errors; e++) {
                set_up();
                fake.fail_call = nth;
                fake.fail_error = errors[e];
                run();
                check_outcome(errors[e], stages[i].stage);
                CHECK_EQ(fake.mappings, 0);
                CHECK_EQ(fake.fds, 0);
            }
        }
    }
    set_up();
    fake.fail_call = nth + 1;
    run();
    check_outcome(0, "async cancel");
}

static void a_denied_enter_is_named(void)
{
    set_up();
    for (int i = 0; i < FAKE_ENTERS_MAX; i++)
        fake_enter_next((struct fake_enter){.error = -EPERM});
    run_leaking();
    check_outcome(-EPERM, "receive into a provided buffer");
}

/* Nothing is given up where the kernel can be asked to let go. */
static void an_enter_that_fails_once_costs_no_memory(void)
{
    static const int errors[] = {-EPERM, -ENOMEM};
    for (unsigned e = 0; e < sizeof errors / sizeof *errors; e++) {
        int failed = 0;
        for (int good = 0; good < 8; good++) {
            set_up();
            for (int i = 0; i < good; i++)
                fake_enter_next((struct fake_enter){.error = 0});
            fake_enter_next((struct fake_enter){.error = errors[e]});
            run();
            CHECK_EQ(fake.mappings, 0);
            CHECK_EQ(fake.fds, 0);
            CHECK(probe.error == 0 || probe.error == errors[e]);
            failed += probe.error != 0;
        }
        CHECK(failed > 0);
    }
}

static void a_missing_flag_or_feature(void)
{
    set_up();
    fake.setup_flags_refused = IORING_SETUP_DEFER_TASKRUN;
    run();
    check_outcome(-EINVAL, "io_uring_setup");
    set_up();
    fake.features &= ~IORING_FEAT_EXT_ARG;
    run();
    check_outcome(-EOPNOTSUPP, "io_uring_setup");
}

static void each_missing_opcode(void)
{
    static const uint8_t opcodes[] = {
        IORING_OP_POLL_ADD, IORING_OP_SENDMSG,      IORING_OP_RECVMSG, IORING_OP_ACCEPT,
        IORING_OP_CONNECT,  IORING_OP_ASYNC_CANCEL, IORING_OP_READ,    IORING_OP_WRITE,
        IORING_OP_SEND,     IORING_OP_RECV};
    for (unsigned i = 0; i < sizeof opcodes; i++) {
        set_up();
        fake.opcodes_missing = 1u << opcodes[i];
        run();
        check_outcome(-EOPNOTSUPP, "list the opcodes");
        CHECK_EQ(probe.opcode_count, UT_OPCODES - 1);
    }
}

/* The receive follows `plan`, the send works. */
static void receive_follows(struct fake_plan plan, int error)
{
    fake_reset();
    fake_plan_next(plan);
    fake_plan_next((struct fake_plan){.res = 5});
    run();
    CHECK_EQ(fake.mappings, 0);
    check_outcome(error, "receive into a provided buffer");
}

static void a_receive_that_does_not_work(void)
{
    receive_follows((struct fake_plan){.res = -EOPNOTSUPP}, -EOPNOTSUPP);
    receive_follows((struct fake_plan){.res = -EINVAL}, -EINVAL);
    receive_follows((struct fake_plan){.res = 4, .data = "prob"}, -EOPNOTSUPP);
    receive_follows((struct fake_plan){.res = 5, .data = "other"}, -EOPNOTSUPP);
    receive_follows((struct fake_plan){.res = 5, .no_buffer = true}, -EOPNOTSUPP);
    receive_follows((struct fake_plan){.res = 0}, -EOPNOTSUPP);
}

static void a_receive_that_never_ends_costs_the_timeout_and_no_more(void)
{
    uint64_t before = 1000000000; /* the fake's clock after a reset */
    receive_follows((struct fake_plan){.delay_ns = FAKE_NEVER}, -ETIME);
    CHECK_TIME(fake.now_ns - before, TIMEOUT_NS);
}

static void each_step_has_the_timeout_for_itself(void)
{
    fake_reset();
    uint64_t before = fake.now_ns;
    fake_plan_next((struct fake_plan){.res = 5, .data = "probe", .delay_ns = TIMEOUT_NS / 2});
    fake_plan_next((struct fake_plan){.res = 5});
    fake_plan_next((struct fake_plan){
        .delay_ns = FAKE_NEVER, .cancel_too_late = true, .cancel_answer = -EALREADY});
    run_leaking();
    check_outcome(-ETIME, "async cancel");
    CHECK_TIME(fake.now_ns - before, TIMEOUT_NS / 2 + TIMEOUT_NS);
}

/* The fake kernel, seen by a process that is stopped once, for longer than the timeout:
 * at the nth of its looks at the clock and of its enters (before them, and after). */
static unsigned pause_moments, pause_at;

static void moment(void)
{
    if (++pause_moments == pause_at)
        fake_sleep(TIMEOUT_NS + TIMEOUT_NS / 5);
}

static uint64_t pausing_now_ns(void)
{
    moment();
    return ut_kernel_fake.now_ns();
}

static int pausing_enter(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                         const void *arg, size_t arg_size)
{
    moment();
    int result =
        ut_kernel_fake.enter(ring_fd, to_submit, min_complete, flags, arg, arg_size);
    moment();
    return result;
}

static void a_pause_at_any_moment_is_not_a_kernel_that_does_not_answer(void)
{
    struct ut_kernel kernel = ut_kernel_fake;
    kernel.now_ns = pausing_now_ns;
    kernel.enter = pausing_enter;
    pause_at = 0;
    do {
        set_up();
        pause_at++;
        pause_moments = 0;
        ut_probe_run(&kernel, NULL, TIMEOUT_NS, &probe);
        check_outcome(0, "async cancel");
    } while (pause_at <= pause_moments);
    CHECK(pause_at > 8);
}

static void a_bare_ring_is_made_and_closed(void)
{
    fake_reset();
    CHECK_EQ(ut_probe_setup(&ut_kernel_fake, 8, 16), 0);
    CHECK_EQ(fake_ring.cq_entries, 16);
    CHECK_EQ(fake.fds, 0);
    fake.setup_entries_max = 4;
    CHECK_EQ(ut_probe_setup(&ut_kernel_fake, 8, 16), -ENOMEM);
    CHECK_EQ(fake.fds, 0);
}

static void a_signal_does_not_spoil_the_probe(void)
{
    set_up();
    for (int i = 0; i < 5; i++)
        fake_enter_next((struct fake_enter){.error = -EINTR});
    run();
    check_outcome(0, "async cancel");
}

static void a_cancel_that_does_not_work(void)
{
    set_up();
    fake_plan_next((struct fake_plan){.delay_ns = FAKE_NEVER, .cancel_res = 3});
    run();
    check_outcome(0, "async cancel"); /* its poll was ready meanwhile, and has taken nothing */

    set_up();
    fake_plan_next((struct fake_plan){
        .delay_ns = FAKE_NEVER, .cancel_too_late = true, .cancel_answer = -EINVAL});
    run_leaking();
    check_outcome(-ETIME, "async cancel");
}

static void each_failing_allocation(void)
{
    unsigned nth = 0;
    do {
        set_up();
        fail_alloc_at(++nth);
        run();
        if (fail_alloc_happened())
            CHECK_EQ(probe.error, -ENOMEM);
    } while (fail_alloc_happened());
    fail_alloc_at(0);
    check_outcome(0, "async cancel");
    CHECK(nth > 4);
}

static void this_kernel(void)
{
    ut_probe_run(&ut_kernel_real, NULL, TIMEOUT_NS, &probe);
    CHECK(probe.error <= 0);
    CHECK(probe.stage != NULL);
    if (probe.error != 0) {
        printf("(this kernel denies io_uring: %s at '%s')\n", strerror(-probe.error),
               probe.stage);
        return;
    }
    check_outcome(0, "async cancel");
    CHECK_EQ(probe.opcodes[IORING_OP_RECV], 1);
    CHECK_EQ(probe.sq_entries, 8);
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(a_kernel_that_has_all);
    RUN(each_denied_call_is_named);
    RUN(a_denied_enter_is_named);
    RUN(an_enter_that_fails_once_costs_no_memory);
    RUN(a_missing_flag_or_feature);
    RUN(each_missing_opcode);
    RUN(a_receive_that_does_not_work);
    RUN(a_receive_that_never_ends_costs_the_timeout_and_no_more);
    RUN(each_step_has_the_timeout_for_itself);
    RUN(a_pause_at_any_moment_is_not_a_kernel_that_does_not_answer);
    RUN(a_bare_ring_is_made_and_closed);
    RUN(a_signal_does_not_spoil_the_probe);
    RUN(a_cancel_that_does_not_work);
    RUN(each_failing_allocation);
    RUN(this_kernel);
    return CHECK_SUMMARY();
}
