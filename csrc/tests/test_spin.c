/* The look before a sleep: when it is taken, and that it changes no answer. */
#include <errno.h>
#include <poll.h>

#include "engine_tools.h"

#define US 1000LL /* ns */
#define SHORT_NS (10 * US)

static struct ut_engine *engine;

static int poll_with(struct fake_plan plan)
{
    fake_plan_next(plan);
    return ut_prep_poll(engine, 5, POLLIN, 0);
}

/* An engine that looks, because its last waits were short. */
static void set_up(void)
{
    fake_reset();
    engine = tools_open(8, 32);
    for (int waits = 0; !ut_spin_is_wanted(&engine->spin); waits++) {
        CHECK(waits < 10);
        poll_with((struct fake_plan){.res = 1, .delay_ns = SHORT_NS});
        CHECK_EQ(tools_wait(engine, -1).records, 1);
    }
}

static void tear_down(void)
{
    for (uint32_t slot = 0; slot < UT_OP_CHUNK; slot++)
        if (ut_op_at(&engine->ops, slot)->state != UT_OP_FREE)
            ut_engine_cancel(engine, slot);
    while (tools_statistics(engine).in_flight > 0)
        CHECK(tools_wait_through(engine, -1).answer > 0);
    tools_close(engine);
}

static void a_fresh_engine_does_not_look(void)
{
    struct ut_spin spin = {0};
    CHECK(!ut_spin_is_wanted(&spin));
    ut_spin_miss(&spin); /* no credit to lose */
    CHECK(!ut_spin_is_wanted(&spin));
}

static void short_sleeps_give_credit_and_long_ones_and_misses_take_it(void)
{
    struct ut_spin spin = {0};
    for (int i = 0; i < 1000; i++)
        ut_spin_slept(&spin, SHORT_NS);
    CHECK(ut_spin_is_wanted(&spin));
    int looks = 0;
    for (; ut_spin_is_wanted(&spin); looks++) {
        CHECK(looks < 20); /* an idle server stops soon, however busy it was */
        ut_spin_miss(&spin);
    }
    for (int i = 0; i < 1000; i++)
        ut_spin_slept(&spin, SHORT_NS);
    for (looks = 0; ut_spin_is_wanted(&spin); looks++) {
        CHECK(looks < 20);
        ut_spin_slept(&spin, 100 * MS);
    }
    for (int i = 0; i < 1000; i++)
        ut_spin_hit(&spin);
    CHECK(ut_spin_is_wanted(&spin));
}

static void one_look_in_vain_costs_several_short_sleeps(void)
{
    struct ut_spin spin = {0};
    while (!ut_spin_is_wanted(&spin))
        ut_spin_slept(&spin, SHORT_NS);
    ut_spin_miss(&spin);
    ut_spin_slept(&spin, SHORT_NS);
    CHECK(!ut_spin_is_wanted(&spin));
}

static void looks_in_vain_become_rare_although_sleeps_are_short(void)
{
    struct ut_spin spin = {0};
    int looks = 0;
    for (int waits = 0; waits < 100000; waits++) {
        if (ut_spin_is_wanted(&spin)) {
            looks++;
            ut_spin_miss(&spin);
        }
        ut_spin_slept(&spin, SHORT_NS);
    }
    CHECK(looks < 50);
    while (!ut_spin_is_wanted(&spin))
        ut_spin_slept(&spin, SHORT_NS);
    ut_spin_hit(&spin); /* worth it: trusted again at once */
    CHECK(ut_spin_is_wanted(&spin));
    ut_spin_miss(&spin);
    CHECK(ut_spin_is_wanted(&spin));
}

static void what_comes_soon_is_seen_without_a_sleep(void)
{
    set_up();
    int slot = poll_with((struct fake_plan){.res = 7, .delay_ns = SHORT_NS});
    unsigned enters = fake.enters;
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    CHECK_EQ(tools_record(engine, slot)->res, 7);
    CHECK_EQ(fake.enters - enters, 2); /* one that submits, one that runs the work */
    tear_down();
}

static void what_comes_at_once_needs_one_enter(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 7, .at_once = true});
    unsigned enters = fake.enters;
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    CHECK_EQ(fake.enters - enters, 1);
    tear_down();
}

static void what_comes_late_is_slept_for(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 7, .delay_ns = 5 * MS});
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    tear_down();
}

static void the_time_is_over_after_a_look_in_vain(void)
{
    static const int64_t timeouts_ns[] = {5 * US, 19 * US, 21 * US, 3 * MS};
    for (unsigned i = 0; i < 4; i++) {
        for (int submits = 0; submits < 2; submits++) {
            set_up();
            if (submits)
                poll_with((struct fake_plan){.delay_ns = FAKE_NEVER});
            uint64_t start = fake.now_ns;
            CHECK_EQ(tools_wait(engine, timeouts_ns[i]).answer, 0);
            CHECK_TIME(fake.now_ns - start, timeouts_ns[i]);
            tear_down();
        }
    }
}

static void an_idle_engine_stops_looking(void)
{
    set_up();
    for (int waits = 0; ut_spin_is_wanted(&engine->spin); waits++) {
        CHECK(waits < 20);
        CHECK_EQ(tools_wait(engine, 3 * MS).answer, 0);
    }
    unsigned enters = fake.enters;
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, 0);
    CHECK_EQ(fake.enters - enters, 1);
    tear_down();
}

static void short_times_that_are_over_give_no_credit(void)
{
    fake_reset();
    engine = tools_open(8, 32);
    for (int i = 0; i < 50; i++) {
        poll_with((struct fake_plan){.delay_ns = FAKE_NEVER});
        CHECK_EQ(tools_wait(engine, SHORT_NS).answer, 0);
        CHECK(!ut_spin_is_wanted(&engine->spin));
    }
    tear_down();
}

static void a_signal_after_the_look_ends_the_wait(void)
{
    set_up();
    fake_enter_next((struct fake_enter){.error = -EINTR});
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, -EINTR);
    tear_down();
}

static void no_memory_is_no_look(void)
{
    set_up();
    poll_with((struct fake_plan){.res = 1, .delay_ns = SHORT_NS});
    fake_enter_next((struct fake_enter){.error = -EAGAIN});
    fake_enter_next((struct fake_enter){.error = -EAGAIN});
    CHECK_EQ(tools_wait_through(engine, -1).records, 1);
    tear_down();
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(a_fresh_engine_does_not_look);
    RUN(short_sleeps_give_credit_and_long_ones_and_misses_take_it);
    RUN(one_look_in_vain_costs_several_short_sleeps);
    RUN(looks_in_vain_become_rare_although_sleeps_are_short);
    RUN(what_comes_soon_is_seen_without_a_sleep);
    RUN(what_comes_at_once_needs_one_enter);
    RUN(what_comes_late_is_slept_for);
    RUN(the_time_is_over_after_a_look_in_vain);
    RUN(an_idle_engine_stops_looking);
    RUN(short_times_that_are_over_give_no_credit);
    RUN(a_signal_after_the_look_ends_the_wait);
    RUN(no_memory_is_no_look);
    return CHECK_SUMMARY();
}
