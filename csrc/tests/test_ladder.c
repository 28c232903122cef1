/*
 * The ladder: its table, its pauses, and the engine that goes by it.
 *
 * The table is written out a second time, from the theory in ladder.c. Over the fake
 * kernel each test counts what a wait costs, in attempts and enters of virtual time, and
 * looks where the ladder has come to rest.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "engine_tools.h"
#include "fail_alloc.h"

#define NO UT_STEPS
#define SECOND (1000 * MS)

/* ---- the table ------------------------------------------------------------ */

static const char *const step_names[] = {
    "TRY",      "POLL",      "TRY_READY", "WATCH",        "TRY_CHANGED", "TRY_NEWS",
    "TRY_NEWS_AGAIN", "TRY_TOLD", "TRY_AGAIN", "GLANCE", "GLANCE_AGAIN", "PAUSE",
    "PAUSE_AGAIN", "PAUSE_CUT", "LOOK", "LOOK_AGAIN", "LINE", "LINE_AGAIN"};
static const char *const event_names[] = {"REFUSED", "LINED",        "READY",        "TOLD", "NEWS",
                                          "CHANGED", "CHANGED_TOLD", "CHANGED_NEWS", "ECHO",
                                          "TIME",    "TURN"};

#define ANY_CHANGE UT_STEP_EVENTS /* CHANGED, CHANGED_TOLD, CHANGED_NEWS */

static const struct {
    enum ut_step step;
    enum ut_step_event event;
    enum ut_step next;
} transitions[] = {
    /* Nearly always: an attempt, a poll, an attempt. */
    {UT_STEP_TRY, UT_STEP_EV_REFUSED, UT_STEP_POLL},
    {UT_STEP_POLL, UT_STEP_EV_READY, UT_STEP_TRY_READY},
    {UT_STEP_POLL, UT_STEP_EV_TOLD, UT_STEP_TRY_READY},
    {UT_STEP_POLL, UT_STEP_EV_NEWS, UT_STEP_TRY_READY},
    /* In vain: only a change is worth another. */
    {UT_STEP_TRY_READY, UT_STEP_EV_REFUSED, UT_STEP_WATCH},
    {UT_STEP_WATCH, UT_STEP_EV_CHANGED, UT_STEP_TRY_CHANGED},
    {UT_STEP_WATCH, UT_STEP_EV_CHANGED_TOLD, UT_STEP_TRY_TOLD},
    {UT_STEP_WATCH, UT_STEP_EV_CHANGED_NEWS, UT_STEP_TRY_NEWS},
    {UT_STEP_TRY_CHANGED, UT_STEP_EV_REFUSED, UT_STEP_WATCH},
    /* Ready for what is gone: asked again, and without a clock. */
    {UT_STEP_TRY_NEWS, UT_STEP_EV_REFUSED, UT_STEP_GLANCE},
    {UT_STEP_GLANCE, UT_STEP_EV_NEWS, UT_STEP_TRY_NEWS},
    {UT_STEP_GLANCE, UT_STEP_EV_READY, UT_STEP_WATCH},
    /* Ready, and refused all the same: pauses. */
    {UT_STEP_GLANCE, UT_STEP_EV_TOLD, UT_STEP_TRY_TOLD},
    {UT_STEP_TRY_TOLD, UT_STEP_EV_REFUSED, UT_STEP_PAUSE},
    {UT_STEP_PAUSE, UT_STEP_EV_TIME, UT_STEP_LOOK},
    {UT_STEP_LOOK, UT_STEP_EV_TOLD, UT_STEP_TRY_TOLD},
    {UT_STEP_LOOK, UT_STEP_EV_NEWS, UT_STEP_TRY_NEWS},
    {UT_STEP_LOOK, UT_STEP_EV_READY, UT_STEP_WATCH},
    /* A change meanwhile is not forgotten. */
    {UT_STEP_TRY_CHANGED, ANY_CHANGE, UT_STEP_TRY_AGAIN},
    {UT_STEP_TRY_TOLD, ANY_CHANGE, UT_STEP_TRY_AGAIN},
    {UT_STEP_TRY_AGAIN, ANY_CHANGE, UT_STEP_TRY_AGAIN},
    {UT_STEP_TRY_AGAIN, UT_STEP_EV_REFUSED, UT_STEP_PAUSE_AGAIN},
    {UT_STEP_PAUSE_AGAIN, UT_STEP_EV_TIME, UT_STEP_LOOK_AGAIN},
    {UT_STEP_LOOK, ANY_CHANGE, UT_STEP_LOOK_AGAIN},
    {UT_STEP_LOOK_AGAIN, ANY_CHANGE, UT_STEP_LOOK_AGAIN},
    {UT_STEP_LOOK_AGAIN, UT_STEP_EV_READY, UT_STEP_TRY_CHANGED},
    {UT_STEP_LOOK_AGAIN, UT_STEP_EV_TOLD, UT_STEP_TRY_TOLD},
    {UT_STEP_LOOK_AGAIN, UT_STEP_EV_NEWS, UT_STEP_TRY_NEWS},
    {UT_STEP_TRY_NEWS, ANY_CHANGE, UT_STEP_TRY_NEWS_AGAIN},
    {UT_STEP_TRY_NEWS_AGAIN, ANY_CHANGE, UT_STEP_TRY_NEWS_AGAIN},
    {UT_STEP_TRY_NEWS_AGAIN, UT_STEP_EV_REFUSED, UT_STEP_GLANCE_AGAIN},
    {UT_STEP_GLANCE, ANY_CHANGE, UT_STEP_GLANCE_AGAIN},
    {UT_STEP_GLANCE_AGAIN, ANY_CHANGE, UT_STEP_GLANCE_AGAIN},
    {UT_STEP_GLANCE_AGAIN, UT_STEP_EV_NEWS, UT_STEP_TRY_NEWS},
    {UT_STEP_GLANCE_AGAIN, UT_STEP_EV_TOLD, UT_STEP_TRY_TOLD},
    {UT_STEP_GLANCE_AGAIN, UT_STEP_EV_READY, UT_STEP_PAUSE_AGAIN},
    /* It cuts a pause short, unless the pause is young. */
    {UT_STEP_PAUSE, UT_STEP_EV_ECHO, UT_STEP_PAUSE_AGAIN},
    {UT_STEP_PAUSE_AGAIN, UT_STEP_EV_ECHO, UT_STEP_PAUSE_AGAIN},
    {UT_STEP_PAUSE, ANY_CHANGE, UT_STEP_PAUSE_CUT},
    {UT_STEP_PAUSE_AGAIN, ANY_CHANGE, UT_STEP_PAUSE_CUT},
    {UT_STEP_PAUSE_CUT, ANY_CHANGE, UT_STEP_PAUSE_CUT},
    {UT_STEP_PAUSE_CUT, UT_STEP_EV_ECHO, UT_STEP_PAUSE_CUT},
    {UT_STEP_PAUSE_CUT, UT_STEP_EV_TIME, UT_STEP_TRY_TOLD},
    /* In a line somebody else's clock runs. */
    {UT_STEP_TRY_TOLD, UT_STEP_EV_LINED, UT_STEP_LINE},
    {UT_STEP_TRY_AGAIN, UT_STEP_EV_LINED, UT_STEP_LINE_AGAIN},
    {UT_STEP_LINE, UT_STEP_EV_TURN, UT_STEP_LOOK},
    {UT_STEP_LINE_AGAIN, UT_STEP_EV_TURN, UT_STEP_LOOK_AGAIN},
    {UT_STEP_LINE, UT_STEP_EV_ECHO, UT_STEP_LINE_AGAIN},
    {UT_STEP_LINE_AGAIN, UT_STEP_EV_ECHO, UT_STEP_LINE_AGAIN},
    {UT_STEP_LINE, ANY_CHANGE, UT_STEP_TRY_TOLD},
    {UT_STEP_LINE_AGAIN, ANY_CHANGE, UT_STEP_TRY_TOLD},
};

static bool is_change(enum ut_step_event event)
{
    return event == UT_STEP_EV_CHANGED || event == UT_STEP_EV_CHANGED_TOLD ||
           event == UT_STEP_EV_CHANGED_NEWS;
}

static enum ut_step case_step;
static enum ut_step_event case_event;

static void one_step_and_event(void)
{
    enum ut_step expected = NO;
    for (unsigned i = 0; i < sizeof transitions / sizeof *transitions; i++)
        if (transitions[i].step == case_step &&
            (transitions[i].event == case_event ||
             (transitions[i].event == ANY_CHANGE && is_change(case_event))))
            expected = transitions[i].next;
    CHECK_EQ(ut_step_next(case_step, case_event), expected);
}

static void every_step_against_every_event(void)
{
    _Static_assert(sizeof step_names / sizeof *step_names == UT_STEPS, "a name for each");
    _Static_assert(sizeof event_names / sizeof *event_names == UT_STEP_EVENTS, "for each");
    char name[60];
    for (case_step = 0; case_step < UT_STEPS; case_step++) {
        for (case_event = 0; case_event < UT_STEP_EVENTS; case_event++) {
            snprintf(name, sizeof name, "%s and %s", step_names[case_step],
                     event_names[case_event]);
            check_run(name, one_step_and_event);
        }
    }
}

static void each_step_has_its_request(void)
{
    for (enum ut_step step = 0; step < UT_STEPS; step++) {
        check_note("%s", step_names[step]);
        enum ut_step_request expected = strncmp(step_names[step], "TRY", 3) == 0 ? UT_REQUEST_ATTEMPT
                                        : strncmp(step_names[step], "PAUSE", 5) == 0
                                            ? UT_REQUEST_TIMEOUT
                                        : step == UT_STEP_WATCH ||
                                                strncmp(step_names[step], "LINE", 4) == 0
                                            ? UT_REQUEST_NONE
                                            : UT_REQUEST_POLL;
        CHECK_EQ(ut_step_request(step), expected);
        /* Once there is a watch it stays. */
        CHECK_EQ(ut_step_is_watched(step),
                 step != UT_STEP_TRY && step != UT_STEP_POLL && step != UT_STEP_TRY_READY);
        for (unsigned i = 0; i < sizeof transitions / sizeof *transitions; i++)
            if (transitions[i].step == step && ut_step_is_watched(step))
                CHECK(ut_step_is_watched(transitions[i].next));
    }
    CHECK_ABORTS(ut_step_next(UT_STEPS, UT_STEP_EV_TIME), "step < UT_STEPS");
    CHECK_ABORTS(ut_step_next(UT_STEP_TRY, UT_STEP_EVENTS), "event < UT_STEP_EVENTS");
    CHECK_ABORTS(ut_step_request(UT_STEPS), "step < UT_STEPS");
}

/* ---- pauses --------------------------------------------------------------- */

static void pauses_grow_to_32_ms_and_begin_again_after_a_sleep(void)
{
    static const uint64_t lengths[] = {1, 2, 4, 8, 16, 32, 32, 32};
    struct ut_pauses pauses = {0};
    uint64_t now_ns = 5000000000u;
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 8; i++) {
            CHECK_EQ(ut_pause_begin(&pauses, now_ns), lengths[i] * MS);
            now_ns += lengths[i] * MS + 64 * MS; /* not forgotten yet */
        }
        now_ns += 1; /* now */
    }
}

static void a_pause_that_was_cut_is_not_forgotten(void)
{
    struct ut_pauses pauses = {0};
    uint64_t now_ns = 5000000000u;
    for (unsigned i = 0; i < 6; i++) {
        uint64_t length_ns = ut_pause_begin(&pauses, now_ns);
        CHECK_EQ(length_ns, MS << i);
        now_ns += length_ns / 2; /* a change that comes as early as one counts */
    }
}

static void a_pause_is_young_for_its_first_half(void)
{
    struct ut_pauses pauses = {0};
    uint64_t now_ns = 5000000000u;
    for (unsigned i = 0; i < 3; i++) {
        uint64_t length_ns = ut_pause_begin(&pauses, now_ns);
        CHECK(ut_pause_is_young(&pauses, now_ns));
        CHECK(ut_pause_is_young(&pauses, now_ns + length_ns / 2 - 1));
        CHECK(!ut_pause_is_young(&pauses, now_ns + length_ns / 2));
        CHECK(!ut_pause_is_young(&pauses, now_ns + length_ns));
        now_ns += length_ns;
    }
}

/* ---- the engine ----------------------------------------------------------- */

static struct ut_engine *engine;

static void set_up(unsigned sq_entries, unsigned cq_entries)
{
    fail_alloc_at(0); /* a test that failed may have left it on */
    fake_reset();
    engine = tools_open(sq_entries, cq_entries);
}

static int recv_with(struct fake_plan plan, int fd)
{
    fake_plan_next(plan);
    int slot = ut_prep_recv(engine, fd, 0, 100, 0);
    CHECK(slot >= 0);
    return slot;
}

static struct ut_op *op_of(int slot)
{
    return ut_op_at(&engine->ops, (uint32_t)slot);
}

static unsigned run_for(uint64_t ns)
{
    return tools_run_for(engine, ns, NULL);
}

static bool rests(int slot, enum ut_step step)
{
    return op_of(slot)->step == step && fake_in_flight_of(IORING_OP_TIMEOUT) == 0;
}

static void cancel_and_close(int slot)
{
    int answer = ut_engine_cancel(engine, (uint32_t)slot);
    CHECK(answer == 0 || answer == 1);
    unsigned records = run_for(100 * MS);
    CHECK_EQ(records, answer);
    CHECK_EQ(engine->lingering, 0);
    tools_close(engine);
}

static void what_is_there_costs_one_attempt_and_one_enter(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10}, 5);
    CHECK_EQ(tools_wait(engine, -1).records, 1);
    CHECK_EQ(tools_record(engine, slot)->flags & UT_RECORD_WAITED, 0);
    CHECK_EQ(fake.enters, 1);
    CHECK_EQ(fake.attempts, 1);
    tools_close(engine);
}

static void what_is_not_there_is_polled_for(void)
{
    for (int poll_first = 0; poll_first < 2; poll_first++) {
        set_up(8, 32);
        fake_plan_next((struct fake_plan){.res = 10, .delay_ns = 5 * MS});
        int slot = ut_prep_recv(engine, 5, 0, 100, poll_first);
        uint64_t start = fake.now_ns;
        struct ut_record record = tools_await(engine, slot);
        CHECK_TIME(fake.now_ns - start, 5 * MS);
        CHECK_EQ(record.res, 10);
        CHECK(record.flags & UT_RECORD_WAITED);
        CHECK(tools_data_is(engine, &record, 5));
        CHECK_EQ(fake.attempts, poll_first ? 1 : 2);
        CHECK_EQ(fake.submitted[IORING_OP_POLL_ADD], 1);
        CHECK_EQ(fake.watches, 0);
        CHECK(fake.enters <= (poll_first ? 2 : 4)); /* attempt; poll; sleep; attempt */
        tools_close(engine);
    }
}

static void every_kind_waits_by_the_ladder(void)
{
    static char memory[100];
    for (unsigned kind = 0; kind < 9; kind++) {
        check_note("kind %u", kind);
        set_up(8, 32);
        struct ut_message *message = ut_message_new(1, 0, 100);
        fake_plan_next((struct fake_plan){.res = 40, .delay_ns = 5 * MS});
        int slot = kind == 0   ? ut_prep_recv(engine, 5, 0, 100, 0)
                   : kind == 1 ? ut_prep_recv_into(engine, 5, memory, 100, 0, 0)
                   : kind == 2 ? ut_prep_send(engine, 5, memory, 100, 0)
                   : kind == 3 ? ut_prep_read(engine, 5, 0, 100, 0)
                   : kind == 4 ? ut_prep_write(engine, 5, memory, 100, 0)
                   : kind == 5 ? ut_prep_recvmsg(engine, 5, message, 0, 0)
                   : kind == 6 ? ut_prep_sendmsg(engine, 5, message, 0)
                   : kind == 7 ? ut_prep_accept(engine, 5, message, 0, 0)
                               : ut_prep_accept_fd(engine, 5, 0);
        struct ut_record record = tools_await(engine, slot);
        CHECK_EQ(record.res, 40);
        CHECK_EQ(fake.attempts, 2);
        CHECK_EQ(fake.submitted[IORING_OP_POLL_ADD], 1);
        ut_message_free(message);
        tools_close(engine);
    }
}

static void a_bit_that_stays_set_ends_in_a_sleeping_watch(void)
{
    static const uint32_t bits[] = {POLLERR, POLLRDHUP, POLLHUP, POLLERR | POLLHUP | POLLRDHUP};
    for (unsigned i = 0; i < 4; i++) {
        set_up(8, 32);
        int slot = recv_with((struct fake_plan){.res = 10, .sticky = bits[i],
                                                .delay_ns = 2 * SECOND}, 5);
        CHECK_EQ(run_for(SECOND), 0);
        CHECK(rests(slot, UT_STEP_WATCH));
        CHECK_EQ(fake_in_flight_of(IORING_OP_POLL_ADD), 1);
        CHECK(fake.attempts <= 3); /* the first, after the poll, after the watch's first word */
        CHECK(fake.enters <= 8);
        unsigned enters = fake.enters;
        CHECK_EQ(run_for(SECOND / 2), 0);
        CHECK_EQ(fake.enters, enters + 1); /* the sleep itself */
        CHECK_EQ(tools_await(engine, slot).res, 10);
        CHECK_EQ(run_for(MS), 0);
        CHECK_EQ(engine->lingering, 0);
        tools_close(engine);
    }
}

static void ready_and_refused_for_ever_is_tried_every_32_ms(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.refusals = FAKE_ALWAYS}, 5);
    unsigned attempts[6], before = 0;
    for (unsigned i = 0; i < 6; i++) { /* 1, 2, 4 ... 32 ms, from the third attempt on */
        CHECK_EQ(run_for(MS << i), 0);
        attempts[i] = fake.attempts - before;
        before = fake.attempts;
        CHECK(attempts[i] <= (i == 0 ? 4 : 2));
        CHECK(attempts[i] >= (i == 0 ? 3 : 1));
    }
    CHECK_EQ(op_of(slot)->pauses.length, 5);
    unsigned enters = fake.enters;
    CHECK_EQ(run_for(SECOND), 0);
    CHECK(fake.attempts - before >= 29 && fake.attempts - before <= 32);
    CHECK(fake.enters - enters <= 5 * 32);
    CHECK_EQ(fake_in_flight_of(IORING_OP_TIMEOUT), 1);
    cancel_and_close(slot);
}

static void refused_for_a_while_goes_on_when_it_can(void)
{
    for (unsigned refusals = 1; refusals < 9; refusals++) {
        set_up(8, 32);
        int slot = recv_with((struct fake_plan){.res = 10, .refusals = refusals}, 5);
        uint64_t start = fake.now_ns;
        CHECK_EQ(tools_await(engine, slot).res, 10);
        CHECK_EQ(fake.attempts, refusals + 1);
        CHECK(fake.now_ns - start <= (1u << refusals) * (uint64_t)MS);
        CHECK_EQ(run_for(MS), 0);
        tools_close(engine);
    }
}

/* The wanted bit is told by the attempt itself: that is no reason for another. */
static void an_echo_does_not_spin(void)
{
    for (unsigned told = 0; told < 2; told++) { /* writable beside it, or in truth not */
        set_up(8, 32);
        static char data[10];
        fake_plan_next((struct fake_plan){.refusals = FAKE_ALWAYS, .echo = POLLOUT,
                                          .sticky = told ? 0 : POLLERR,
                                          .delay_ns = told ? 0 : FAKE_NEVER});
        int slot = ut_prep_send(engine, 5, data, 10, 0);
        CHECK_EQ(run_for(SECOND), 0);
        CHECK(fake.attempts >= 20 && fake.attempts <= 80);
        CHECK(fake.enters <= 600);
        cancel_and_close(slot);
    }
}

/* The wanted bit is told for what is gone by the time of the attempt (datagrams with a wrong
 * checksum): what comes next is not kept waiting, however often it was so. */
static void rubbish_makes_nobody_wait(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .delay_ns = 405 * MS}, 5);
    for (unsigned i = 1; i <= 200; i++)
        fake_wake_later(i * 2 * MS, 5, POLLIN);
    uint64_t start = fake.now_ns;
    CHECK_EQ(tools_await(engine, slot).res, 10);
    CHECK(fake.now_ns - start < 405 * MS + MS / 2);
    CHECK_EQ(fake.submitted[IORING_OP_TIMEOUT], 0);
    CHECK(fake.attempts <= 2 * 200 + 3);
    CHECK_EQ(run_for(MS), 0);
    tools_close(engine);
}

static void an_echo_where_nothing_stays_set_comes_to_rest(void)
{
    set_up(8, 32);
    static char data[10];
    /* Ready for a moment, refused, and the refusal itself is told. */
    fake_plan_next((struct fake_plan){.echo = POLLOUT, .delay_ns = FAKE_NEVER});
    int slot = ut_prep_send(engine, 5, data, 10, 0);
    fake_wake_later(MS, 5, POLLOUT);
    fake_wake_later(2 * MS, 5, POLLOUT);
    CHECK_EQ(run_for(SECOND), 0);
    CHECK(rests(slot, UT_STEP_LOOK_AGAIN) || rests(slot, UT_STEP_LOOK));
    CHECK(fake.attempts <= 8);
    unsigned enters = fake.enters;
    CHECK_EQ(run_for(SECOND), 0);
    CHECK_EQ(fake.enters, enters + 1);
    cancel_and_close(slot);
}

/* Runs until a pause of 32 ms has just begun. */
static void come_to_a_long_pause(int slot)
{
    run_for(100 * MS);
    uint64_t end_ns = op_of(slot)->pauses.end_ns;
    while (op_of(slot)->pauses.end_ns == end_ns)
        tools_wait(engine, 100 * MS);
    CHECK_EQ(op_of(slot)->pauses.end_ns - op_of(slot)->pauses.half_ns, 16 * MS);
    CHECK_EQ(op_of(slot)->step, UT_STEP_PAUSE);
}

static void a_change_cuts_a_pause_in_its_later_half(void)
{
    for (unsigned later = 0; later < 2; later++) {
        set_up(8, 32);
        int slot = recv_with((struct fake_plan){.res = 10, .refusals = FAKE_ALWAYS}, 5);
        come_to_a_long_pause(slot);
        unsigned attempts = fake.attempts;
        uint64_t start = fake.now_ns;
        fake_wake_later(later ? 17 * MS : 15 * MS, 5, POLLIN);
        while (fake.attempts == attempts)
            tools_wait(engine, 100 * MS);
        CHECK(fake.now_ns - start < (later ? 18 : 33) * (uint64_t)MS);
        CHECK(fake.now_ns - start >= (later ? 17 : 31) * (uint64_t)MS);
        CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], later);
        cancel_and_close(slot);
    }
}

static void many_changes_cut_a_pause_once(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.refusals = FAKE_ALWAYS, .cancel_gap_ns = MS}, 5);
    come_to_a_long_pause(slot);
    for (unsigned i = 0; i < 10; i++)
        fake_wake_later(17 * MS + i * 50000, 5, POLLIN);
    unsigned attempts = fake.attempts;
    run_for(18 * MS - 100000);
    CHECK_EQ(fake.attempts, attempts);
    CHECK_EQ(op_of(slot)->step, UT_STEP_PAUSE_CUT);
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 1);
    run_for(MS);
    CHECK_EQ(fake.attempts, attempts + 1);
    cancel_and_close(slot);
}

static void each_change_is_worth_one_attempt(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.sticky = POLLRDHUP, .delay_ns = FAKE_NEVER}, 5);
    run_for(MS);
    CHECK(rests(slot, UT_STEP_WATCH));
    for (unsigned i = 0; i < 300; i++) { /* more than the kernel's own poll has patience for */
        unsigned attempts = fake.attempts;
        fake_wake_later(MS, 5, POLLERR);
        run_for(2 * MS);
        CHECK_EQ(fake.attempts, attempts + 1);
        CHECK(rests(slot, UT_STEP_WATCH));
    }
    cancel_and_close(slot);
}

/* ---- a watch that ends ---------------------------------------------------- */

static void a_watch_that_ends_is_armed_again(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .sticky = POLLERR,
                                            .delay_ns = 50 * MS}, 5);
    CHECK_EQ(run_for(MS), 0);
    CHECK(rests(slot, UT_STEP_WATCH));
    unsigned watches = fake.watches;
    fake.watches_end = true;
    fake_wake_later(MS, 5, POLLERR);
    while (fake.watches == watches) /* it has ended, and another is there */
        tools_wait(engine, 5 * MS);
    fake.watches_end = false;
    CHECK_EQ(tools_await(engine, slot).res, 10);
    CHECK_EQ(run_for(MS), 0);
    CHECK_EQ(engine->lingering, 0);
    tools_close(engine);
}

static void an_error_of_the_watch_alone_ends_the_operation(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.sticky = POLLERR, .delay_ns = FAKE_NEVER,
                                            .watch_error = -ENOMEM}, 5);
    CHECK_EQ(tools_await(engine, slot).res, -ENOMEM);
    CHECK_EQ(engine->lingering, 0); /* its last cqe was seen */
    tools_close(engine);
}

static void an_error_of_the_poll_ends_the_operation(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.poll_error = -EBADF, .delay_ns = FAKE_NEVER}, 5);
    CHECK_EQ(tools_await(engine, slot).res, -EBADF);
    CHECK_EQ(fake.attempts, 1);
    tools_close(engine);
}

/* A watch that cannot be had is no reason to ask for it again and again. */
static void an_error_of_the_watch_beside_a_request_does_not_spin(void)
{
    for (unsigned during_look = 0; during_look < 2; during_look++) {
        set_up(8, 32);
        struct fake_plan plan = {.res = 10, .echo = POLLIN, .delay_ns = 600 * MS};
        if (!during_look)
            plan = (struct fake_plan){.res = 10, .refusals = 12};
        int slot = recv_with(plan, 5);
        if (during_look) {
            fake_wake_later(MS, 5, POLLIN);
            fake_wake_later(2 * MS, 5, POLLIN);
            run_for(200 * MS);
            CHECK(rests(slot, UT_STEP_LOOK_AGAIN) || rests(slot, UT_STEP_LOOK));
        } else {
            come_to_a_long_pause(slot);
        }
        unsigned enters = fake.enters, watches = fake.watches;
        fake_fail_watches(-ENOMEM);
        CHECK_EQ(run_for(20 * MS), 0);
        CHECK(fake.enters - enters <= 4);
        CHECK_EQ(fake.watches, watches);
        fake_fail_watches(0);
        CHECK_EQ(tools_await(engine, slot).res, 10);
        CHECK_EQ(run_for(MS), 0);
        tools_close(engine);
    }
}

/* ---- buffers -------------------------------------------------------------- */

static void a_refusal_with_a_buffer_puts_it_back(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .refusals = 20, .refused_buffer = true}, 5);
    while (fake.refused < 20) {
        CHECK(tools_wait(engine, 50 * MS).records == 0);
        CHECK_EQ(tools_statistics(engine).leases_out, 0);
        CHECK_EQ(kring_buffers_home(&fake_ring, 0), 4);
    }
    struct ut_record record = tools_await(engine, slot);
    CHECK_EQ(record.res, 10);
    CHECK(tools_data_is(engine, &record, 5));
    CHECK_EQ(kring_buffers_home(&fake_ring, 0), 3);
    run_for(MS);
    CHECK_EQ(kring_buffers_home(&fake_ring, 0), 4);
    tools_close(engine);
}

static void a_cancelled_refusal_with_a_buffer_puts_it_back(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.refused_buffer = true, .delay_ns = FAKE_NEVER}, 5);
    CHECK_EQ(ut_engine_flush(engine), 0); /* its cqe lies unread */
    CHECK_EQ(kring_buffers_home(&fake_ring, 0), 3);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
    CHECK_EQ(kring_buffers_home(&fake_ring, 0), 4);
    tools_close(engine);
}

/* ---- cancelling ----------------------------------------------------------- */

static unsigned reached[UT_STEPS][3]; /* by cancels: the step, and where its request was */
static struct fake_plan case_plan;
static unsigned case_waits;
static bool case_is_send; /* to a receiver: it stands in a line where the others pause */
static enum { FREE, STUCK_IN_QUEUE, STUCK_IN_SQ, STUCK } case_is_stuck;

/* Comes to a state after some waits, cancels, and holds the engine to its word. */
static void one_cancel(void)
{
    set_up(2, 32);
    fake_plan_next(case_plan);
    fake_wake_later(3 * MS, 5, POLLIN | POLLOUT); /* for what is gone by then */
    fake_wake_later(9 * MS / 2, 5, POLLIN | POLLOUT);
    fake_wake_later(6 * MS, 5, POLLERR);
    static const struct sockaddr_un receiver = {.sun_family = AF_UNIX, .sun_path = "/log"};
    struct ut_message *message = ut_message_new(1, 0, 0);
    ut_message_set_name(message, (const char *)&receiver, sizeof receiver);
    int slot = case_is_send ? ut_prep_sendmsg(engine, 5, message, 0)
                            : ut_prep_recv(engine, 5, 0, 100, case_plan.more > 0);
    struct ut_op *op = op_of(slot);
    uint64_t token = op->sqe.user_data;
    unsigned ended = 0;
    if (case_waits == 0)
        CHECK_EQ(ut_engine_flush(engine), 0); /* the first cqe lies unread */
    for (unsigned i = 0; i < case_waits && ended == 0; i++) {
        if (i % 3 == 2)
            CHECK_EQ(ut_engine_flush(engine), 0);
        fake_sleep(100000);
        ended += tools_wait(engine, i % 2 ? 400000 : 0).records;
    }
    int fillers[2] = {-1, -1};
    if (case_is_stuck != FREE) { /* the kernel takes nothing any more */
        fake.requests_max = 1;
        for (unsigned i = 0; i < 2 && case_is_stuck == STUCK_IN_QUEUE; i++)
            fillers[i] = ut_prep_poll(engine, 7, POLLIN, 0); /* and the SQ is full */
        for (unsigned i = 0; i < 8 && ended == 0 && op->main != UT_REQUEST_QUEUED; i++) {
            if (case_is_stuck == STUCK_IN_SQ && ut_ring_unsubmitted(&engine->ring) > 0) {
                if (case_waits % 2)
                    break;
                fake_wake_later(0, 5, POLLERR); /* a change beside what is stuck */
            }
            ended += tools_wait(engine, 0).records;
            fake_sleep(500000);
        }
        if (case_waits % 2 == 0 && ended == 0) {
            fake_wake_later(0, 5, POLLERR);
            ended += tools_wait(engine, 0).records;
        }
    }
    if (ended == 0) {
        if (op->state == UT_OP_IN_FLIGHT)
            reached[op->step][op->main]++;
        int answer = ut_engine_cancel(engine, (uint32_t)slot);
        if (answer == 1)
            CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), -EALREADY);
        int32_t given = fake_result_of(token);
        CHECK(answer == 0 || answer == 1);
        if (answer == 0)
            CHECK_EQ(given, FAKE_NO_RESULT);
        fake.requests_max = 0;
        for (unsigned waits = 0; waits < 30; waits++) {
            CHECK(tools_wait(engine, 5 * MS).answer >= -EINTR);
            for (unsigned i = 0; i < engine->record_count; i++) {
                if (engine->records[i].slot != (uint32_t)slot || fillers[0] == slot)
                    continue;
                ended++;
                given = fake_result_of(token);
                CHECK_EQ(engine->records[i].res,
                         given == FAKE_NO_RESULT ? -ECANCELED : given);
                if (given > 0 && !case_is_send)
                    CHECK(tools_data_is(engine, &engine->records[i], 5));
            }
        }
        CHECK_EQ(ended, answer);
    }
    for (unsigned i = 0; i < 2; i++)
        if (fillers[i] >= 0)
            ut_engine_cancel(engine, (uint32_t)fillers[i]);
    fake.requests_max = 0;
    run_for(100 * MS);
    CHECK_EQ(engine->lingering, 0);
    tools_close(engine);
    ut_message_free(message);
}

static void a_cancel_at_every_step_and_in_every_order(void)
{
    static const struct fake_plan plans[] = {
        {.res = 10, .delay_ns = FAKE_NEVER},
        {.res = 10, .delay_ns = FAKE_NEVER, .more = 1}, /* (polls first) */
        {.res = 10, .delay_ns = 4 * MS},
        {.res = 10, .delay_ns = FAKE_NEVER, .sticky = POLLERR},
        {.res = 10, .refusals = FAKE_ALWAYS},
        {.res = 10, .refusals = FAKE_ALWAYS, .echo = POLLIN},
        {.res = 10, .refusals = 7},
        {.res = 10, .slow = true, .delay_ns = 2 * MS},
        {.res = 10, .slow = true, .delay_ns = 2 * MS, .more = 1},
        {.res = 10, .delay_ns = FAKE_NEVER, .echo = POLLIN},
        {.res = 10, .delay_ns = FAKE_NEVER, .echo = POLLIN, .sticky = POLLERR},
    };
    static const int32_t answers[] = {0, -ENOENT, -EALREADY};
    for (unsigned p = 0; p < 2 * sizeof plans / sizeof *plans; p++) {
        case_is_send = p % 2;
        for (unsigned order = 0; order < 24; order++) {
            for (case_is_stuck = FREE; case_is_stuck < STUCK; case_is_stuck++) {
                for (case_waits = 0; case_waits < 24; case_waits++) {
                    case_plan = plans[p / 2];
                    case_plan.cancel_answer = answers[order % 3];
                    case_plan.target_first = order / 3 % 2;
                    case_plan.cancel_gap_ns = order / 6 % 2 ? 0 : MS;
                    case_plan.cancel_too_late = order / 12 && case_plan.delay_ns != FAKE_NEVER;
                    case_plan.cancel_res = order / 12 ? 10 : 0;
                    check_note("plan %u, order %u, %u waits, stuck %u", p, order, case_waits,
                               case_is_stuck);
                    one_cancel();
                }
            }
        }
    }
    for (enum ut_step step = 0; step < UT_STEPS; step++) {
        check_note("%s", step_names[step]);
        enum ut_step_request request = ut_step_request(step);
        if (request == UT_REQUEST_NONE)
            CHECK(reached[step][UT_REQUEST_ABSENT] > 0);
        else
            CHECK(reached[step][UT_REQUEST_SENT] > 0);
        /* The first request is not queued any more in flight; a pause follows an attempt that
         * the kernel took, so its timeout finds room as well, but for one test below. A
         * glance takes no other way than a look, and comes too late to find no room here. */
        if (step == UT_STEP_GLANCE || step == UT_STEP_GLANCE_AGAIN)
            continue;
        if (request == UT_REQUEST_POLL || (request == UT_REQUEST_ATTEMPT && step != UT_STEP_TRY))
            CHECK(reached[step][UT_REQUEST_QUEUED] > 0);
    }
}

static void data_beside_a_cancel_is_delivered(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10}, 5);
    CHECK_EQ(ut_engine_flush(engine), 0); /* the attempt has found it; nobody looked */
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    struct ut_record record = tools_await(engine, slot);
    CHECK_EQ(record.res, 10);
    CHECK(tools_data_is(engine, &record, 5));
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 0);
    tools_close(engine);
}

/* ---- what lingers --------------------------------------------------------- */

/* An operation that ended with its watch armed; the watch answers a cancel after 5 ms. */
static int end_beside_a_watch(void)
{
    static char memory[100];
    fake_plan_next((struct fake_plan){.res = 10, .sticky = POLLERR, .delay_ns = 2 * MS,
                                      .cancel_gap_ns = 5 * MS});
    int slot = ut_prep_recv_into(engine, 5, memory, sizeof memory, 0, 0);
    CHECK_EQ(tools_await(engine, slot).res, 10);
    CHECK_EQ(engine->lingering, 1);
    return slot;
}

static void a_watch_is_cancelled_when_its_operation_is_over(void)
{
    set_up(8, 32);
    end_beside_a_watch();
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 1); /* before the wait has answered */
    CHECK_EQ(tools_statistics(engine).in_flight, 1);
    CHECK_EQ(engine->in_flight, 0);
    for (unsigned i = 0; i < 4; i++) {
        fake_wake_later(MS / 2, 5, POLLERR); /* it tells no more, or nobody hears it */
        CHECK_EQ(run_for(MS), 0);
    }
    CHECK_EQ(run_for(5 * MS), 0);
    CHECK_EQ(engine->lingering, 0);
    CHECK_EQ(tools_statistics(engine).in_flight, 0);
    CHECK_EQ(tools_statistics(engine).stale_cqes, 0);
    tools_close(engine);
}

static void a_watch_is_cancelled_at_once_though_buffers_are_short(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .sticky = POLLERR, .delay_ns = 2 * MS}, 5);
    CHECK_EQ(tools_await(engine, slot).res, 10);
    CHECK_EQ(engine->groups[0].leased, 1); /* so there is no further round */
    CHECK_EQ(fake.submitted[IORING_OP_ASYNC_CANCEL], 1);
    CHECK_EQ(run_for(10 * MS), 0);
    CHECK_EQ(engine->lingering, 0);
    tools_close(engine);
}

static void a_slot_is_used_again_while_a_watch_lingers(void)
{
    set_up(8, 32);
    int slot = end_beside_a_watch();
    CHECK_EQ(tools_wait(engine, 0).records, 0);
    for (unsigned i = 0; i < 3; i++) {
        int next = recv_with((struct fake_plan){.res = 20, .sticky = POLLERR,
                                                .delay_ns = MS}, 6);
        CHECK_EQ(next, slot);
        CHECK_EQ(tools_await(engine, next).res, 20);
        CHECK_EQ(tools_wait(engine, 0).records, 0);
    }
    CHECK_EQ(run_for(20 * MS), 0);
    CHECK_EQ(engine->lingering, 0);
    CHECK_EQ(tools_statistics(engine).stale_cqes, 0);
    tools_close(engine);
}

static void late_words_of_a_watch_are_nobodys(void)
{
    set_up(4, 4);
    int slot = recv_with((struct fake_plan){.res = 10, .sticky = POLLERR, .delay_ns = 2 * MS}, 5);
    run_for(MS);
    CHECK_EQ(op_of(slot)->step, UT_STEP_WATCH);
    fake_sleep(MS);
    CHECK_EQ(ut_engine_flush(engine), 0); /* told, unread */
    CHECK_EQ(tools_await(engine, slot).res, 10);
    fake_wake_later(0, 5, POLLERR);
    CHECK_EQ(run_for(10 * MS), 0);
    CHECK_EQ(engine->lingering, 0);
    CHECK_EQ(tools_statistics(engine).stale_cqes, 0);
    tools_close(engine);
}

static void a_watchs_last_word_twice_is_counted_once(void)
{
    set_up(8, 32);
    int slot = end_beside_a_watch();
    uint64_t watch = op_of(slot)->sqe.user_data | UT_TOKEN_WATCH;
    CHECK_EQ(run_for(10 * MS), 0);
    CHECK_EQ(tools_statistics(engine).in_flight, 0);
    fake_stray_cqe(watch, -ECANCELED, 0);
    CHECK_EQ(run_for(MS), 0);
    CHECK_EQ(tools_statistics(engine).in_flight, 0);
    CHECK_EQ(tools_statistics(engine).stale_cqes, 1);
    tools_close(engine);
}

/* ---- small rings, full rings, a kernel without memory --------------------- */

static const struct fake_plan mixed[] = {
    {.res = 10},
    {.res = 10, .delay_ns = MS},
    {.res = 10, .refusals = 3},
    {.res = 10, .sticky = POLLERR, .delay_ns = 3 * MS},
    {.res = 10, .refusals = 2, .echo = POLLIN, .refused_buffer = true},
    {.res = -ECONNRESET, .delay_ns = 2 * MS},
};

/* Many operations of all kinds; each ends once, with what was planned. */
static void many_end(unsigned count)
{
    static unsigned ended[600];
    memset(ended, 0, sizeof ended);
    fake.fallback = (struct fake_plan){.res = -EIO};
    for (unsigned i = 0; i < count; i++) {
        fake_plan_next(mixed[i % 6]);
        CHECK_EQ(ut_prep_recv_into(engine, (int)i, NULL, 100, 0, 0), i);
    }
    fail_alloc_always(); /* from here on nothing may need memory */
    unsigned all = 0;
    for (unsigned waits = 0; all < count; waits++) {
        CHECK(waits < 100 * count);
        struct tools_batch batch = tools_wait(engine, 100 * MS);
        CHECK(batch.answer >= 0 || batch.answer == -EINTR);
        for (unsigned i = 0; i < batch.records; i++) {
            const struct ut_record *record = &engine->records[i];
            CHECK_EQ(record->res, mixed[record->slot % 6].res);
            CHECK_EQ(ended[record->slot]++, 0);
            all++;
        }
    }
    fail_alloc_at(0);
    run_for(100 * MS);
    CHECK_EQ(engine->lingering, 0);
    tools_close(engine);
}

static void rings_of_all_sizes(void)
{
    static const unsigned sizes[][2] = {{1, 1}, {1, 2}, {2, 2}, {2, 64}, {4, 4}, {64, 64}};
    for (unsigned i = 0; i < 6; i++) {
        check_note("%u and %u entries", sizes[i][0], sizes[i][1]);
        fake_reset();
        struct ut_config config = tools_config;
        config.sq_entries = config.sq_entries_min = sizes[i][0];
        config.cq_entries = sizes[i][1];
        int error;
        const char *stage;
        engine = ut_engine_open(&ut_kernel_fake, &config, &error, &stage);
        CHECK(engine != NULL);
        many_end(200);
    }
}

static void a_CQ_that_overflows(void)
{
    set_up(64, 64);
    fake.fallback = (struct fake_plan){.res = 10, .delay_ns = MS, .refusals = 3};
    for (unsigned i = 0; i < 300; i++)
        ut_prep_recv_into(engine, 5, NULL, 100, 0, 0);
    unsigned all = 0;
    while (all < 300) {
        fake_sleep(3 * MS);
        for (unsigned i = 0; i < 3; i++)
            CHECK_EQ(ut_engine_flush(engine), 0); /* nobody drains */
        all += tools_wait(engine, 0).records;
    }
    CHECK(fake_ring.overflows > 0);
    CHECK_EQ(all, 300);
    run_for(100 * MS);
    CHECK_EQ(engine->lingering, 0);
    tools_close(engine);
}

static void enters_that_go_wrong(void)
{
    static const struct fake_enter wrong[] = {
        {.error = -EAGAIN}, {.error = -EINTR}, {.error = -EBUSY}, {.submit_max = 1},
        {.error = -EINTR, .submit_max = 1}};
    for (unsigned first = 0; first < 6; first++) {
        set_up(8, 32);
        for (unsigned i = 0; i < 60; i++)
            fake_enter_next(first < 5 ? wrong[first] : wrong[i % 5]);
        many_end(60);
    }
}

static void a_kernel_without_memory(void)
{
    set_up(8, 32);
    fake.requests_max = 40; /* the watches of all, and a few more */
    many_end(60);
}

/* ---- the queue ------------------------------------------------------------ */

static unsigned entries_of(uint64_t token)
{
    unsigned count = 0;
    for (size_t i = 0; i < engine->queue_length; i++)
        count += engine->queue[i] == token;
    return count;
}

/* A pause whose timeout is only queued is cut: its entry in the queue is the attempt's. With
 * two, the second would submit what comes next ahead of its time, and a cancel between them
 * would hit it. */
/* One wait in which the kernel takes `first` sqes, and then one more; then it has no
 * memory. */
static void wait_and_take(unsigned first)
{
    fake.requests_max = 0;
    if (first > 0)
        fake_enter_next((struct fake_enter){.submit_max = first});
    fake_enter_next((struct fake_enter){.submit_max = 1});
    for (unsigned i = 0; i < 16; i++)
        fake_enter_next((struct fake_enter){.error = -EAGAIN});
    CHECK_EQ(tools_wait(engine, 0).records, 0);
    fake.requests_max = 1;
    for (unsigned i = 0; i < 18; i++)
        CHECK_EQ(ut_engine_flush(engine), 0); /* what is left of the script */
}

static void queue_a_pause_and(bool cancel)
{
    enum { FILLERS = 4 };
    set_up(2, 32);
    int slot = recv_with((struct fake_plan){.refusals = FAKE_ALWAYS}, 5), fillers[FILLERS];
    struct ut_op *op = op_of(slot);
    come_to_a_long_pause(slot);
    fake.requests_max = 1;
    fake_sleep(32 * MS);
    while (op->step == UT_STEP_PAUSE)
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(op->step, UT_STEP_LOOK); /* in the SQ */
    for (unsigned i = 0; i < 2; i++)
        fillers[i] = ut_prep_poll(engine, 7, POLLIN, 0);
    wait_and_take(0); /* the look, which tells it; the attempt is behind the fillers */
    CHECK_EQ(op->step, UT_STEP_TRY_TOLD);
    CHECK_EQ(op->main, UT_REQUEST_QUEUED);
    for (unsigned i = 2; i < FILLERS; i++)
        fillers[i] = ut_prep_poll(engine, 7, POLLIN, 0);
    wait_and_take(2); /* two fillers; the attempt, which is refused */
    CHECK_EQ(op->step, UT_STEP_PAUSE);
    CHECK_EQ(op->main, UT_REQUEST_QUEUED);
    CHECK_EQ(entries_of(op->sqe.user_data), 1);
    unsigned attempts = fake.attempts;
    if (cancel) {
        CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1); /* there is the watch still */
        fake.requests_max = 0;
        CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
        CHECK_EQ(fake_in_flight_of(IORING_OP_TIMEOUT), 0);
    } else {
        fake_wake_later(17 * MS, 5, POLLIN);
        fake_sleep(17 * MS);
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
        CHECK_EQ(op->step, UT_STEP_TRY_TOLD);
        CHECK_EQ(entries_of(op->sqe.user_data), 1);
        fake.requests_max = 0;
        CHECK_EQ(run_for(5 * MS), 0);
        CHECK_EQ(op->step, UT_STEP_PAUSE);
    }
    CHECK_EQ(fake.attempts, attempts + !cancel);
    for (unsigned i = 0; i < FILLERS; i++)
        ut_engine_cancel(engine, (uint32_t)fillers[i]);
    CHECK_EQ(run_for(5 * MS), FILLERS);
    if (cancel)
        tools_close(engine);
    else
        cancel_and_close(slot);
}

static void a_pause_that_is_only_queued_is_cut_in_its_place(void)
{
    queue_a_pause_and(false);
}

static void a_pause_that_is_only_queued_is_cancelled(void)
{
    queue_a_pause_and(true);
}

/* Everything that each of many operations may queue at once, with no memory to be had. */
static void the_queue_holds_whatever_comes(void)
{
    enum { MANY = 100 };
    for (unsigned variant = 0; variant < 4; variant++) {
        check_note("variant %u", variant);
        set_up(2, 256);
        fake.fallback = (struct fake_plan){.refusals = FAKE_ALWAYS, .cancel_gap_ns = MS,
                                           .echo = variant & 1 ? POLLIN : 0,
                                           .sticky = variant & 2 ? POLLERR : 0};
        for (int i = 0; i < MANY; i++)
            ut_prep_recv_into(engine, 5, NULL, 100, 0, 0);
        fail_alloc_always();
        for (unsigned round = 0; round < 300; round++) {
            fake_wake_later(round % 7 * MS, 5, POLLIN);
            if (round % 3 == 0)
                fake.requests_max = round % 2; /* no memory, and memory again */
            fake.watches_end = round % 5 == 0;
            CHECK_EQ(ut_engine_flush(engine), 0);
            fake_sleep(round % 4 * MS);
            CHECK_EQ(tools_wait(engine, 0).records, 0);
            CHECK(engine->queue_length <= MANY * 6);
        }
        fake.watches_end = false;
        fake.requests_max = 1;
        for (uint32_t slot = 0; slot < MANY; slot++)
            CHECK(ut_engine_cancel(engine, slot) >= 0);
        CHECK(engine->queue_length <= MANY * 8);
        fake.requests_max = 0;
        run_for(300 * MS);
        fail_alloc_at(0);
        CHECK_EQ(engine->ops.live, 0);
        CHECK_EQ(engine->lingering, 0);
        tools_close(engine);
    }
}

/* ---- old kernels, and files without nowait -------------------------------- */

static int accept_with(struct fake_plan plan)
{
    fake_plan_next(plan);
    return ut_prep_accept_fd(engine, 5, 0);
}

static void an_old_kernels_accept_goes_with_its_cancel(void)
{
    static const unsigned sizes[] = {1, 2, 8};
    for (unsigned i = 0; i < 3; i++) {
        check_note("%u entries", sizes[i]);
        fake_reset();
        struct ut_config config = tools_config;
        config.sq_entries = config.sq_entries_min = sizes[i];
        int error;
        const char *stage;
        engine = ut_engine_open(&ut_kernel_fake, &config, &error, &stage);
        fake.accept_waits = true;
        uint64_t start = fake.now_ns;
        CHECK_EQ(tools_await(engine, accept_with((struct fake_plan){
                                         .res = 40, .delay_ns = 5 * MS})).res, 40);
        CHECK_TIME(fake.now_ns - start, 5 * MS);
        CHECK(engine->accept_waits);
        CHECK_EQ(fake.submitted[IORING_OP_ACCEPT], 3); /* refused flag; in vain; found */
        run_for(MS);
        /* Known from now on; one that is there is not lost to its own cancel. */
        CHECK_EQ(tools_await(engine, accept_with((struct fake_plan){.res = 41})).res, 41);
        CHECK_EQ(fake.submitted[IORING_OP_ACCEPT], 4);
        run_for(MS);
        /* Sleeps in a poll, not in an accept. */
        int slot = accept_with((struct fake_plan){.delay_ns = FAKE_NEVER});
        run_for(MS);
        CHECK_EQ(fake_in_flight_of(IORING_OP_ACCEPT), 0);
        CHECK_EQ(fake_in_flight_of(IORING_OP_POLL_ADD), 1);
        cancel_and_close(slot);
    }
}

static void EINVAL_of_the_listener_itself_is_told(void)
{
    for (unsigned old = 0; old < 2; old++) {
        for (unsigned seen = 0; seen < 2; seen++) {
            set_up(8, 32);
            fake.accept_waits = old;
            if (seen)
                CHECK_EQ(tools_await(engine, accept_with((struct fake_plan){.res = 40})).res, 40);
            struct fake_plan plan = {.res = -EINVAL};
            CHECK_EQ(tools_await(engine, accept_with(plan)).res, -EINVAL);
            run_for(MS);
            CHECK_EQ(engine->accept_waits, old && seen);
            /* And it spoils nothing for the next. */
            CHECK_EQ(tools_await(engine, accept_with((struct fake_plan){
                                             .res = 42, .delay_ns = MS})).res, 42);
            run_for(MS);
            tools_close(engine);
        }
    }
}

static void a_file_without_nowait_is_not_waited_for(void)
{
    static char data[10];
    for (unsigned writes = 0; writes < 2; writes++) {
        for (unsigned poll_first = 0; poll_first < 2 - writes; poll_first++) {
            set_up(8, 32);
            fake.no_nowait = true;
            fake_plan_next((struct fake_plan){.res = 10, .delay_ns = 5 * MS});
            int slot = writes ? ut_prep_write(engine, 5, data, 10, 0)
                              : ut_prep_read(engine, 5, 0, 10, (int)poll_first);
            CHECK_EQ(tools_await(engine, slot).res, -EAGAIN);
            CHECK_EQ(fake.attempts, 0);
            run_for(MS);
            tools_close(engine);
        }
    }
}

static void a_socket_that_does_not_support_it_says_so(void)
{
    set_up(8, 32);
    CHECK_EQ(tools_await(engine, recv_with((struct fake_plan){.res = -EOPNOTSUPP}, 5)).res,
             -EOPNOTSUPP);
    tools_close(engine);
}

/* ---- timeouts ------------------------------------------------------------- */

static void a_timeout_is_over_at_its_time(void)
{
    static const int64_t times_ns[] = {0, 1, MS, 2500 * MS, 86400 * SECOND};
    for (unsigned i = 0; i < 5; i++) {
        set_up(8, 32);
        uint64_t start = fake.now_ns;
        CHECK_EQ(tools_await(engine, ut_prep_timeout(engine, times_ns[i])).res, -ETIME);
        CHECK_TIME(fake.now_ns - start, times_ns[i]);
        tools_close(engine);
    }
    set_up(8, 32);
    int slot = ut_prep_timeout(engine, SECOND);
    CHECK_EQ(run_for(MS), 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
    run_for(MS);
    tools_close(engine);
}

/* ---- what a wait answers -------------------------------------------------- */

static void steps_alone_are_not_the_end_of_the_time(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.delay_ns = FAKE_NEVER}, 5);
    uint64_t start = fake.now_ns;
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, -EINTR); /* its first attempt was refused */
    CHECK(fake.now_ns - start < MS);
    CHECK_EQ(tools_wait(engine, 3 * MS).answer, 0);
    CHECK_TIME(fake.now_ns - start, 3 * MS);
    CHECK_EQ(fake.enters, 3); /* attempt; poll; sleep */
    cancel_and_close(slot);
}

static void steps_alone_are_nothing_to_a_wait_without_time(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .delay_ns = MS}, 5);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(op_of(slot)->step, UT_STEP_POLL); /* it was all submitted */
    CHECK_EQ(fake_in_flight_of(IORING_OP_POLL_ADD), 1);
    fake_sleep(MS);
    CHECK_EQ(tools_wait(engine, 0).records, 1); /* the poll and the attempt in one wait */
    tools_close(engine);
}

static void a_signal_among_steps(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.res = 10, .delay_ns = MS}, 5);
    for (unsigned i = 0; i < 6; i++)
        fake_enter_next((struct fake_enter){.error = -EINTR});
    CHECK_EQ(tools_await(engine, slot).res, 10);
    tools_close(engine);
}

static void steps_beside_records_hide_nothing(void)
{
    set_up(8, 32);
    int waits = recv_with((struct fake_plan){.delay_ns = FAKE_NEVER}, 5);
    fake_plan_next((struct fake_plan){.res = 10});
    int found = ut_prep_recv_into(engine, 6, NULL, 100, 0, 0);
    struct tools_batch batch = tools_wait(engine, -1);
    CHECK_EQ(batch.seen, 1);
    CHECK_EQ(batch.records, 1);
    CHECK_EQ(tools_record(engine, found)->res, 10);
    CHECK_EQ(fake_in_flight_of(IORING_OP_POLL_ADD), 1); /* the other polls already */
    cancel_and_close(waits);
}

static void a_flush_sends_both_cancels(void)
{
    set_up(8, 32);
    int slot = recv_with((struct fake_plan){.refusals = FAKE_ALWAYS}, 5);
    run_for(100 * MS);
    CHECK_EQ(fake_in_flight(), 2);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(ut_engine_flush(engine), 0);
    CHECK_EQ(fake_in_flight(), 0); /* the kernel has let go of the file */
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
    run_for(MS);
    tools_close(engine);
}

/* ---- closing -------------------------------------------------------------- */

static void closing_beside_a_lingering_watch_gives_up_nothing(void)
{
    set_up(8, 32);
    end_beside_a_watch();
    CHECK_EQ(tools_wait(engine, 0).records, 0);
    CHECK_EQ(engine->lingering, 1);
    CHECK_EQ(ut_engine_close(engine, 0), 0);
}

static void closing_with_attempts_in_flight_gives_up_memory(void)
{
    set_up(8, 32);
    recv_with((struct fake_plan){.slow = true, .delay_ns = FAKE_NEVER}, 5);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    tools_close_leaking(engine);
    CHECK_EQ(fake.late_writes, 1);
}

int main(void)
{
    check_after_each = fake_check_books;
    every_step_against_every_event();
    RUN(each_step_has_its_request);
    RUN(pauses_grow_to_32_ms_and_begin_again_after_a_sleep);
    RUN(a_pause_that_was_cut_is_not_forgotten);
    RUN(a_pause_is_young_for_its_first_half);
    RUN(what_is_there_costs_one_attempt_and_one_enter);
    RUN(what_is_not_there_is_polled_for);
    RUN(every_kind_waits_by_the_ladder);
    RUN(a_bit_that_stays_set_ends_in_a_sleeping_watch);
    RUN(ready_and_refused_for_ever_is_tried_every_32_ms);
    RUN(refused_for_a_while_goes_on_when_it_can);
    RUN(an_echo_does_not_spin);
    RUN(rubbish_makes_nobody_wait);
    RUN(an_echo_where_nothing_stays_set_comes_to_rest);
    RUN(a_change_cuts_a_pause_in_its_later_half);
    RUN(many_changes_cut_a_pause_once);
    RUN(each_change_is_worth_one_attempt);
    RUN(a_watch_that_ends_is_armed_again);
    RUN(an_error_of_the_watch_alone_ends_the_operation);
    RUN(an_error_of_the_poll_ends_the_operation);
    RUN(an_error_of_the_watch_beside_a_request_does_not_spin);
    RUN(a_refusal_with_a_buffer_puts_it_back);
    RUN(a_cancelled_refusal_with_a_buffer_puts_it_back);
    RUN(a_cancel_at_every_step_and_in_every_order);
    RUN(data_beside_a_cancel_is_delivered);
    RUN(a_watch_is_cancelled_when_its_operation_is_over);
    RUN(a_watch_is_cancelled_at_once_though_buffers_are_short);
    RUN(a_slot_is_used_again_while_a_watch_lingers);
    RUN(late_words_of_a_watch_are_nobodys);
    RUN(a_watchs_last_word_twice_is_counted_once);
    RUN(rings_of_all_sizes);
    RUN(a_CQ_that_overflows);
    RUN(enters_that_go_wrong);
    RUN(a_kernel_without_memory);
    RUN(a_pause_that_is_only_queued_is_cut_in_its_place);
    RUN(a_pause_that_is_only_queued_is_cancelled);
    RUN(the_queue_holds_whatever_comes);
    RUN(an_old_kernels_accept_goes_with_its_cancel);
    RUN(EINVAL_of_the_listener_itself_is_told);
    RUN(a_file_without_nowait_is_not_waited_for);
    RUN(a_socket_that_does_not_support_it_says_so);
    RUN(a_timeout_is_over_at_its_time);
    RUN(steps_alone_are_not_the_end_of_the_time);
    RUN(steps_alone_are_nothing_to_a_wait_without_time);
    RUN(a_signal_among_steps);
    RUN(steps_beside_records_hide_nothing);
    RUN(a_flush_sends_both_cancels);
    RUN(closing_beside_a_lingering_watch_gives_up_nothing);
    RUN(closing_with_attempts_in_flight_gives_up_memory);
    return CHECK_SUMMARY();
}
