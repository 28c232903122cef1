/*
 * What another thread is told of by an eventfd, and what only a look tells: first on the
 * fake, then on the kernel of this machine.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../probe.h"
#include "engine_tools.h"

#define SIGNAL_MS 2000 /* one that was put off came after 16 ms, 32 at most */

/* ---- the fake ----------------------------------------------------------------- */

static void it_may_sleep_when_nothing_came(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_NOTHING);
    fake_plan_next((struct fake_plan){.res = 1, .delay_ns = MS});
    int slot = ut_prep_poll(engine, 5, POLLIN, 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_NOTHING);
    fake_sleep(MS);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_SOMETHING);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_SOMETHING); /* it takes nothing away */
    CHECK_EQ(tools_wait(engine, 0).records, 1);
    CHECK(tools_record(engine, slot) != NULL);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_NOTHING);
    tools_close(engine);
}

static void it_submits_nothing(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    fake.fallback = (struct fake_plan){.res = 1};
    ut_prep_poll(engine, 5, POLLIN, 0);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_SOMETHING); /* queued: the next wait brings it */
    CHECK_EQ(tools_statistics(engine).queued, 1);
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    tools_close(engine);
}

static void operations_without_memory_are_told_apart(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    fake.requests_max = 1;
    fake_plan_next((struct fake_plan){.res = 1, .delay_ns = MS});
    fake_plan_next((struct fake_plan){.res = 2});
    ut_prep_poll(engine, 5, POLLIN, 0);
    int second = ut_prep_poll(engine, 6, POLLIN, 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_NO_MEMORY);
    fake_sleep(MS);
    CHECK_EQ(tools_await(engine, second).res, 2);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_NOTHING);
    tools_close(engine);
}

static void errors_are_told(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    fake_enter_next((struct fake_enter){.error = -EEXIST});
    CHECK_EQ(ut_engine_look(engine), -EEXIST);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_NOTHING);
    engine->pending_error = -EBADR; /* came together with cqes */
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_SOMETHING);
    CHECK_EQ(tools_wait(engine, 0).answer, -EBADR);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_NOTHING);
    tools_close(engine);
}

static void an_eventfd_can_be_registered_anew(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    CHECK_EQ(ut_engine_register_eventfd(engine, 42), 0);
    CHECK_EQ(ut_engine_register_eventfd(engine, 43), 0);
    CHECK_EQ(fake_ring.event_fd, 43);
    tools_close(engine);
}

/* ---- this machine's kernel ---------------------------------------------------- */

static struct ut_engine *engine;
static int event_fd;

static void set_up(void)
{
    struct ut_config config = tools_config;
    int error;
    const char *stage;
    engine = ut_engine_open(&ut_kernel_real, &config, &error, &stage);
    CHECK(engine != NULL);
    event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK_EQ(ut_engine_register_eventfd(engine, event_fd), 0);
}

static void tear_down(void)
{
    CHECK_EQ(ut_engine_close(engine, 0), 0);
    close(event_fd);
}

static void prepare(void)
{
    uint64_t count;
    if (read(event_fd, &count, sizeof count) > 0)
        CHECK_EQ(ut_engine_register_eventfd(engine, event_fd), 0);
    CHECK_EQ(ut_engine_look(engine), UT_LOOK_NOTHING);
}

static bool is_signalled(void)
{
    struct pollfd poll_fd = {.fd = event_fd, .events = POLLIN};
    return poll(&poll_fd, 1, SIGNAL_MS) == 1;
}

static void add(int fd, uint64_t value)
{
    CHECK_EQ(write(fd, &value, sizeof value), sizeof value);
}

static void take(int fd)
{
    uint64_t value;
    CHECK_EQ(read(fd, &value, sizeof value), sizeof value);
}

/* Rounds of a poll on `watched`, which a write to `written`, an eventfd, ends. */
static void wake_inside_an_eventfd(int watched, int written)
{
    for (int round = 0; round < 20; round++) {
        int slot = ut_prep_poll(engine, watched, POLLIN, 0);
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
        prepare();
        add(written, 1);
        CHECK(is_signalled());
        CHECK_EQ(ut_engine_look(engine), UT_LOOK_SOMETHING);
        CHECK_EQ(tools_wait(engine, 0).records, 1);
        CHECK(tools_record(engine, slot) != NULL);
        take(written);
    }
}

static void each_wake_inside_an_eventfd_signals(void)
{
    set_up();
    int other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    wake_inside_an_eventfd(other, other);
    close(other);
    tear_down();
}

static void each_wake_inside_an_epoll_of_an_eventfd_signals(void)
{
    set_up();
    int other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, other, &event), 0);
    wake_inside_an_eventfd(epoll, other);
    close(epoll);
    close(other);
    tear_down();
}

/* Two wakes that are put off, and one that is not, behind each other in one sleep. */
static void what_stands_behind_a_signal_that_was_put_off_is_told(void)
{
    int pair[2];
    set_up();
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    int one = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int two = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (int round = 0; round < 20; round++) {
        unsigned records = 0;
        ut_prep_poll(engine, one, POLLIN, 0);
        ut_prep_poll(engine, two, POLLIN, 0);
        ut_prep_recv(engine, pair[0], 0, 10, 1);
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
        prepare();
        add(one, 1);
        add(two, 1);
        CHECK_EQ(write(pair[1], "x", 1), 1);
        while (records < 3) {
            CHECK(is_signalled());
            records += tools_wait(engine, 0).records;
        }
        CHECK_EQ(records, 3);
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
        take(one);
        take(two);
    }
    close(one);
    close(two);
    close(pair[0]);
    close(pair[1]);
    tear_down();
}

/* The host takes work without a look at the eventfd, so that signals are used up while
 * nobody sleeps. */
static void signals_that_nobody_slept_for_use_nothing_up(void)
{
    set_up();
    int other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (int round = 0; round < 20; round++) {
        for (int busy = 0; busy < 3; busy++) {
            ut_prep_poll(engine, other, POLLIN, 0);
            CHECK_EQ(tools_wait(engine, 0).answer, 0);
            add(other, 1);
            CHECK_EQ(tools_wait(engine, 0).records, 1);
            take(other);
        }
        ut_prep_poll(engine, other, POLLIN, 0);
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
        prepare();
        add(other, 1);
        CHECK(is_signalled());
        CHECK_EQ(tools_wait(engine, 0).records, 1);
        take(other);
    }
    close(other);
    tear_down();
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(it_may_sleep_when_nothing_came);
    RUN(it_submits_nothing);
    RUN(operations_without_memory_are_told_apart);
    RUN(errors_are_told);
    RUN(an_eventfd_can_be_registered_anew);
    check_after_each = NULL;
    struct ut_probe probe;
    ut_probe_run(&ut_kernel_real, NULL, 1000 * MS, &probe);
    if (probe.error != 0) {
        printf("test_look.c: on the fake alone: %s: %s\n", probe.stage, strerror(-probe.error));
        return CHECK_SUMMARY();
    }
    RUN(each_wake_inside_an_eventfd_signals);
    RUN(each_wake_inside_an_epoll_of_an_eventfd_signals);
    RUN(what_stands_behind_a_signal_that_was_put_off_is_told);
    RUN(signals_that_nobody_slept_for_use_nothing_up);
    return CHECK_SUMMARY();
}
