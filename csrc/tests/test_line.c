/*
 * Lines: who is in one, whose turn it is, and what a line of many costs the engine.
 *
 * Over the fake kernel the senders' attempts follow plans; how a real receiver fills and
 * empties is in test_real.c and in the tests of the package.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "engine_tools.h"
#include "fail_alloc.h"

#define SECOND (1000 * MS)
#define SENDERS 200u

/* ---- lines by themselves -------------------------------------------------- */

static struct ut_op_table ops;
static struct ut_lines lines;

static struct ut_op *new_op(void)
{
    uint32_t slot;
    struct ut_op *op = ut_op_new(&ops, &slot);
    CHECK(op != NULL);
    ut_op_step(op, UT_OP_EV_SUBMIT);
    op->wanted = POLLOUT;
    return op;
}

static struct ut_receiver receiver_of(const char *path, size_t length)
{
    struct ut_receiver receiver = {.length = (socklen_t)(sizeof(sa_family_t) + length)};
    receiver.name.sun_family = AF_UNIX;
    memcpy(receiver.name.sun_path, path, length);
    return receiver;
}

static void a_line_is_that_of_a_name(void)
{
    struct ut_receiver a = receiver_of("/log", 5), b = receiver_of("/lop", 5);
    struct ut_receiver longer = receiver_of("/log\0", 6), abstract = receiver_of("\0log", 4);
    struct ut_receiver elsewhere = abstract;
    elsewhere.network = 2;
    CHECK(!ut_receiver_is_abstract(&a));
    CHECK(ut_receiver_is_abstract(&abstract));
    struct ut_receiver *all[] = {&a, &b, &longer, &abstract, &elsewhere};
    struct ut_line *found[5];
    for (unsigned i = 0; i < 5; i++) {
        found[i] = ut_line_at(&lines, all[i]);
        for (unsigned other = 0; other < i; other++)
            CHECK(found[other] != found[i]);
    }
    for (unsigned i = 0; i < 5; i++)
        CHECK(ut_line_at(&lines, all[i]) == found[i]);
    for (unsigned i = 0; i < 4; i++)
        ut_line_drop(&lines, found[i]);
    CHECK(ut_line_at(&lines, &elsewhere) == found[4]);
    ut_lines_close(&lines);
}

static void many_lines_share_buckets(void)
{
    static struct ut_line *found[500];
    char path[8];
    for (unsigned i = 0; i < 500; i++) {
        struct ut_receiver receiver =
            receiver_of(path, (size_t)snprintf(path, sizeof path, "/%u", i));
        found[i] = ut_line_at(&lines, &receiver);
    }
    for (unsigned i = 0; i < 500; i += 2)
        ut_line_drop(&lines, found[i]);
    for (unsigned i = 1; i < 500; i += 2) {
        struct ut_receiver receiver =
            receiver_of(path, (size_t)snprintf(path, sizeof path, "/%u", i));
        CHECK(ut_line_at(&lines, &receiver) == found[i]);
    }
    ut_lines_close(&lines);
}

static void what_a_send_names(void)
{
    struct ut_receiver receiver;
    struct ut_message *message = ut_message_new(1, 0, 0);
    struct io_uring_sqe sqe = {.opcode = IORING_OP_SENDMSG,
                               .addr = (uint64_t)(uintptr_t)&message->header};
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/log"};
    struct sockaddr_storage other = {.ss_family = AF_INET6};
    CHECK_EQ(ut_message_set_name(message, "", 0), 0);
    CHECK(!ut_receiver_read(&sqe, &receiver)); /* to its peer */
    CHECK_EQ(ut_message_set_name(message, (char *)&other, 28), 0);
    CHECK(!ut_receiver_read(&sqe, &receiver));
    CHECK_EQ(ut_message_set_name(message, (char *)&name, sizeof(sa_family_t)), 0);
    CHECK(!ut_receiver_read(&sqe, &receiver)); /* no name */
    CHECK_EQ(ut_message_set_name(message, (char *)&other, sizeof other), 0);
    CHECK(!ut_receiver_read(&sqe, &receiver)); /* longer than any */
    CHECK_EQ(ut_message_set_name(message, (char *)&name, sizeof name), 0);
    CHECK(ut_receiver_read(&sqe, &receiver));
    CHECK_EQ(receiver.length, sizeof name);
    CHECK_EQ(ut_message_set_name(message, (char *)&name, sizeof(sa_family_t) + 4), 0);
    CHECK(ut_receiver_read(&sqe, &receiver));
    CHECK(memcmp(receiver.name.sun_path, "/log\0", 6) == 0);
    sqe.opcode = IORING_OP_SEND;
    CHECK(!ut_receiver_read(&sqe, &receiver));
    ut_message_free(message);
}

static void whoever_is_taken_out_the_order_stays(void)
{
    for (unsigned out = 0; out < 4; out++) {
        struct ut_receiver receiver = receiver_of("/log", 5);
        struct ut_line *line = ut_line_at(&lines, &receiver);
        struct ut_op *parked[4];
        for (unsigned i = 0; i < 4; i++) {
            parked[i] = new_op();
            ut_line_enter(line, parked[i]);
            ut_line_park(&ops, parked[i], 0);
        }
        ut_line_unpark(&ops, parked[out]);
        CHECK_EQ(line->parked.count, 3);
        ut_line_park(&ops, parked[out], 0); /* at the end */
        for (unsigned i = 0; i < 4; i++) {
            unsigned expected = i == 3 ? out : i + (i >= out);
            CHECK(ut_op_at(&ops, line->parked.first) == parked[expected]);
            ut_line_leave(&ops, parked[expected], false);
        }
        CHECK_EQ(line->parked.first, UT_NO_SLOT);
        CHECK_EQ(line->parked.last, UT_NO_SLOT);
        ut_line_drop(&lines, line);
    }
    ut_op_table_close(&ops);
}

static void a_line_pauses_as_the_ladder_does(void)
{
    struct ut_receiver receiver = receiver_of("/log", 5);
    struct ut_line *line = ut_line_at(&lines, &receiver);
    struct ut_op *op = new_op();
    ut_line_enter(line, op);
    uint64_t now_ns = SECOND;
    for (unsigned i = 0; i < 8; i++) {
        uint64_t expected_ns = (uint64_t)MS << (i < 5 ? i : 5);
        CHECK_EQ(ut_line_pause(line, now_ns), expected_ns);
        CHECK_EQ(ut_line_turns(line), i < 5 ? 2 : 16);
        ut_line_park(&ops, op, now_ns);
        CHECK(ut_pause_is_young(&op->pauses, now_ns + expected_ns / 2 - 1));
        CHECK(!ut_pause_is_young(&op->pauses, now_ns + expected_ns / 2));
        ut_line_unpark(&ops, op);
        now_ns += expected_ns;
    }
    ut_line_leave(&ops, op, true); /* somebody has got through */
    CHECK_EQ(ut_line_pause(line, now_ns), MS);
    CHECK_EQ(ut_line_pause(line, now_ns + MS), 2 * MS);
    ut_line_drop(&lines, line);
    ut_op_table_close(&ops);
}

/* ---- the engine ----------------------------------------------------------- */

static struct ut_engine *engine;
static struct ut_message *messages[SENDERS];
static int slots[SENDERS];
static bool over[SENDERS];

static void set_up(void)
{
    fail_alloc_at(0);
    fake_reset();
    engine = tools_open(64, 512);
    memset(over, 0, sizeof over);
}

static void start(unsigned index, struct fake_plan plan, const char *path, size_t length, int fd)
{
    struct ut_receiver receiver = receiver_of(path, length);
    messages[index] = ut_message_new(1, 0, 0);
    ut_message_set_vector(messages[index], 0, "x", 1);
    ut_message_set_name(messages[index], (char *)&receiver.name, receiver.length);
    fake_plan_next(plan);
    slots[index] = ut_prep_sendmsg(engine, fd, messages[index], 0);
    CHECK(slots[index] >= 0);
}

static void start_all(unsigned count, struct fake_plan plan)
{
    for (unsigned i = 0; i < count; i++)
        start(i, plan, "/log", 5, 5 + (int)i);
}

static void note_what_is_over(void)
{
    for (unsigned i = 0; i < SENDERS; i++)
        over[i] |= !over[i] && tools_record(engine, slots[i]) != NULL;
}

/* How many were over in that time. */
static unsigned run_for(uint64_t ns)
{
    return tools_run_for(engine, ns, note_what_is_over);
}

static void end_all(unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (!over[i])
            CHECK(ut_engine_cancel(engine, (uint32_t)slots[i]) >= 0);
    run_for(100 * MS);
    for (unsigned i = 0; i < UT_LINE_BUCKETS; i++)
        CHECK(engine->lines.buckets[i] == NULL);
    for (unsigned i = 0; i < count; i++)
        ut_message_free(messages[i]);
    tools_close(engine);
}

static const struct fake_plan full = {.refusals = FAKE_ALWAYS, .echo = POLLOUT};

static void many_have_one_clock(void)
{
    set_up();
    start_all(SENDERS, full);
    CHECK_EQ(run_for(SECOND), 0);
    CHECK_EQ(fake_in_flight_of(IORING_OP_TIMEOUT), 1);
    unsigned attempts = fake.attempts, timeouts = fake.submitted[IORING_OP_TIMEOUT];
    CHECK_EQ(run_for(SECOND), 0);
    CHECK(fake.submitted[IORING_OP_TIMEOUT] - timeouts <= 32);
    CHECK(fake.submitted[IORING_OP_TIMEOUT] - timeouts >= 29);
    CHECK(fake.attempts - attempts <= 32 * 17);
    CHECK(fake.attempts - attempts >= 29 * 16);
    end_all(SENDERS);
}

static void each_has_its_turn(void)
{
    set_up();
    start_all(SENDERS, full);
    CHECK_EQ(run_for(SECOND), 0);
    uint64_t before_ns[SENDERS];
    for (unsigned i = 0; i < SENDERS; i++)
        before_ns[i] = ut_op_at(&engine->ops, (uint32_t)slots[i])->sleep_ns;
    CHECK_EQ(run_for((SENDERS / 16 + 1) * 33 * MS), 0);
    for (unsigned i = 0; i < SENDERS; i++)
        CHECK(ut_op_at(&engine->ops, (uint32_t)slots[i])->sleep_ns > before_ns[i]);
    end_all(SENDERS);
}

static void each_receiver_has_its_own_clock(void)
{
    set_up();
    start(0, full, "/log", 5, 5);
    start(1, full, "/other", 7, 6);
    start(2, full, "\0log", 4, 7);
    start(3, full, "\0log", 4, FAKE_FD_ELSEWHERE);
    start(4, full, "\0log", 4, 8); /* in the line of the third */
    CHECK_EQ(run_for(SECOND), 0);
    CHECK_EQ(fake_in_flight_of(IORING_OP_TIMEOUT), 4);
    end_all(5);
}

static void an_answer_gives_two_others_their_turn(void)
{
    set_up();
    for (unsigned i = 0; i < SENDERS; i++) /* refused 3 times each before it stands there */
        start(i, (struct fake_plan){.res = 1, .refusals = 3}, "/log", 5, 5 + (int)i);
    uint64_t start_ns = fake.now_ns;
    unsigned records = 0;
    while (records < SENDERS)
        records += run_for(MS);
    CHECK(fake.now_ns - start_ns <= 40 * MS); /* and not 200 turns of 2 after each pause */
    memset(over, 1, sizeof over);
    end_all(SENDERS);
}

/* Whoever is cancelled, whenever: the clock runs as long as somebody is parked. */
static void a_cancel_strands_nobody(void)
{
    for (unsigned gap_us = 0; gap_us < 3000; gap_us += 70) {
        check_note("every %u us", gap_us);
        set_up();
        start_all(20, full);
        run_for(100 * MS);
        for (unsigned i = 0; i < 19; i++) {
            unsigned victim = i * 7 % 20;
            CHECK(ut_engine_cancel(engine, (uint32_t)slots[victim]) >= 0);
            over[victim] = true;
            if (gap_us > 0)
                run_for((uint64_t)gap_us * 1000);
        }
        run_for(100 * MS);
        CHECK_EQ(fake_in_flight_of(IORING_OP_TIMEOUT), 1);
        unsigned attempts = fake.attempts;
        run_for(100 * MS);
        CHECK(fake.attempts - attempts >= 2);
        end_all(20);
    }
}

/* Not to be written to at its turn: it sleeps until it is, and the others go on. */
static void a_full_buffer_of_its_own_leaves_the_line(void)
{
    set_up();
    start_all(3, full);
    start(3, (struct fake_plan){.delay_ns = FAKE_NEVER, .sticky = POLLERR, .echo = POLLOUT}, "/log",
          5, 50);
    CHECK_EQ(run_for(SECOND), 0);
    CHECK_EQ(fake_in_flight_of(IORING_OP_TIMEOUT), 1);
    for (unsigned i = 0; i < 3; i++)
        CHECK(ut_op_at(&engine->ops, (uint32_t)slots[i])->parked);
    end_all(4);
}

static void a_change_is_worth_a_turn_of_its_own(void)
{
    set_up();
    start_all(SENDERS, (struct fake_plan){.refusals = FAKE_ALWAYS});
    CHECK_EQ(run_for(SECOND), 0);
    struct ut_line *line = ut_op_at(&engine->ops, (uint32_t)slots[0])->line;
    struct ut_op *last = ut_op_at(&engine->ops, line->parked.last);
    run_for(17 * MS); /* it is not young any more */
    CHECK(last->parked);
    uint64_t slept_ns = last->sleep_ns;
    fake_wake_later(0, last->sqe.fd, POLLOUT);
    run_for(MS);
    CHECK(last->sleep_ns > slept_ns);
    end_all(SENDERS);
}

static void without_memory_each_pauses_for_itself(void)
{
    for (unsigned nth = 1; nth < 3; nth++) {
        set_up();
        start_all(2, full);
        fail_alloc_at(nth);
        CHECK_EQ(run_for(SECOND), 0);
        fail_alloc_at(0);
        CHECK(fake_in_flight_of(IORING_OP_TIMEOUT) >= 1);
        end_all(2);
    }
}

static void a_clock_is_nobodys_operation(void)
{
    set_up();
    start_all(2, full);
    CHECK_EQ(run_for(100 * MS), 0);
    struct ut_line *line = ut_op_at(&engine->ops, (uint32_t)slots[0])->line;
    CHECK_EQ(ut_engine_cancel(engine, line->clock), -ENOENT);
    CHECK_EQ(tools_statistics(engine).in_flight, 2);
    end_all(2);
}

static void closing_beside_a_clock_gives_up_nothing(void)
{
    set_up();
    start_all(2, full);
    CHECK_EQ(run_for(100 * MS), 0);
    for (unsigned i = 0; i < 2; i++)
        CHECK(ut_engine_cancel(engine, (uint32_t)slots[i]) >= 0);
    while (tools_statistics(engine).in_flight > 0)
        tools_wait(engine, 0);
    tools_wait(engine, 0);
    CHECK_EQ(fake_in_flight_of(IORING_OP_TIMEOUT), 1);
    CHECK_EQ(ut_engine_close(engine, 0), 0);
    for (unsigned i = 0; i < 2; i++)
        ut_message_free(messages[i]);
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(a_line_is_that_of_a_name);
    RUN(many_lines_share_buckets);
    RUN(what_a_send_names);
    RUN(whoever_is_taken_out_the_order_stays);
    RUN(a_line_pauses_as_the_ladder_does);
    RUN(many_have_one_clock);
    RUN(each_has_its_turn);
    RUN(each_receiver_has_its_own_clock);
    RUN(an_answer_gives_two_others_their_turn);
    RUN(a_cancel_strands_nobody);
    RUN(a_full_buffer_of_its_own_leaves_the_line);
    RUN(a_change_is_worth_a_turn_of_its_own);
    RUN(without_memory_each_pauses_for_itself);
    RUN(a_clock_is_nobodys_operation);
    RUN(closing_beside_a_clock_gives_up_nothing);
    return CHECK_SUMMARY();
}
