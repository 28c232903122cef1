/* Failing at the nth call of everything, and what a forked child may do. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_tools.h"
#include "fail_alloc.h"

/* The stage that is named when the nth call of the kernel fails. */
static const char *const stages[] = {
    "io_uring_setup",       /* setup */
    "io_uring_setup",       /* map the rings */
    "io_uring_setup",       /* map the sqes */
    "register buffer ring", /* allocate the pool */
    "register buffer ring", "register buffer ring", /* group 0: allocate, register */
    "register buffer ring", "register buffer ring", "register buffer ring",
    "register buffer ring",
};
#define OPEN_CALLS (sizeof stages / sizeof *stages)

static void each_failing_call_of_open_is_named_and_leaves_nothing(void)
{
    static const int errors[] = {-EPERM, -ENOSYS, -ENOMEM, -EINVAL};
    for (unsigned nth = 1; nth <= OPEN_CALLS; nth++) {
        for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++) {
            struct ut_config config = tools_config;
            config.sq_entries_min = config.sq_entries; /* no second try with less */
            int error = 0;
            const char *stage = NULL;
            fake_reset();
            fake.fail_call = nth;
            fake.fail_error = errors[i];
            CHECK(ut_engine_open(&ut_kernel_fake, &config, &error, &stage) == NULL);
            CHECK_EQ(error, errors[i]);
            CHECK(strcmp(stage, stages[nth - 1]) == 0);
            CHECK_EQ(fake.calls, nth);
            CHECK_EQ(fake.mappings, 0);
            CHECK_EQ(fake.fds, 0);
        }
    }
    /* And there are no more calls than these. */
    fake_reset();
    fake.fail_call = OPEN_CALLS + 1;
    tools_close(tools_open(8, 32));
}

static void too_little_for_buffer_rings_halves_the_next_try(void)
{
    for (unsigned nth = 2; nth <= OPEN_CALLS; nth++) { /* 1 is the set-up itself */
        struct ut_config config = tools_config;        /* 8 and 32, at least 2 */
        int error = 0;
        const char *stage = NULL;
        fake_reset();
        fake.setup_entries_max = 4; /* so the ring gets 4 and 16 */
        fake.fail_call = nth + 1;   /* after the refused set-up */
        fake.fail_error = -ENOMEM;
        CHECK(ut_engine_open(&ut_kernel_fake, &config, &error, &stage) == NULL);
        bool of_buffers = strcmp(stages[nth - 1], "register buffer ring") == 0;
        CHECK_EQ(config.sq_entries, of_buffers ? 2 : 8);
        CHECK_EQ(config.cq_entries, of_buffers ? 8 : 32);
    }
    struct ut_config least = tools_config;
    least.sq_entries = least.sq_entries_min;
    int error = 0;
    const char *stage = NULL;
    fake_reset();
    fake.fail_call = OPEN_CALLS;
    fake.fail_error = -ENOMEM;
    CHECK(ut_engine_open(&ut_kernel_fake, &least, &error, &stage) == NULL);
    CHECK_EQ(least.sq_entries, least.sq_entries_min);
}

static void each_failing_allocation_of_open_is_ENOMEM_and_leaves_nothing(void)
{
    unsigned nth = 1;
    for (;; nth++) {
        int error = 0;
        const char *stage = NULL;
        fake_reset();
        fail_alloc_at(nth);
        struct ut_config config = tools_config;
        struct ut_engine *engine = ut_engine_open(&ut_kernel_fake, &config, &error, &stage);
        fail_alloc_at(0);
        if (engine != NULL) {
            tools_close(engine);
            break;
        }
        CHECK_EQ(error, -ENOMEM);
        CHECK(strcmp(stage, "allocate the engine") == 0);
        CHECK_EQ(fake.mappings, 0);
        CHECK_EQ(fake.fds, 0);
    }
    CHECK_EQ(nth, 4); /* engine, records, queue */
}

static int prep_any(struct ut_engine *engine, unsigned which, struct ut_message *message)
{
    static char memory[10];
    switch (which % 10) {
    case 0:
        return ut_prep_recv(engine, 5, 0, 10, 1);
    case 1:
        return ut_prep_recv_into(engine, 5, memory, 10, 0, 1);
    case 2:
        return ut_prep_send(engine, 5, memory, 10, 0);
    case 3:
        return ut_prep_recvmsg(engine, 5, message, 0, 1);
    case 4:
        return ut_prep_sendmsg(engine, 5, message, 0);
    case 5:
        return ut_prep_accept(engine, 5, message, 0, 0);
    case 6:
        return ut_prep_connect(engine, 5, message);
    default:
        return ut_prep_poll(engine, 5, POLLIN, 0);
    }
}

static void no_memory_for_an_operation_loses_no_other(void)
{
    enum { MANY = 2 * UT_OP_CHUNK };
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    struct ut_message *message = ut_message_new(1, 0, 100);
    fake.fallback = (struct fake_plan){.res = 1};
    unsigned made = 0, refused = 0;
    for (unsigned i = 0; made < MANY; i++) {
        fail_alloc_always();
        int slot = prep_any(engine, i, message);
        if (slot < 0) {
            CHECK_EQ(slot, -ENOMEM);
            refused++;
            fail_alloc_at(0);
            slot = prep_any(engine, i, message);
        }
        CHECK_EQ(slot, made);
        made++;
    }
    fail_alloc_always(); /* from here on nothing may need memory */
    CHECK(refused >= 3); /* two chunks; a longer queue */
    CHECK_EQ(tools_statistics(engine).queued, MANY);
    unsigned ended = 0;
    while (ended < MANY) {
        struct tools_batch batch = tools_wait_through(engine, -1);
        CHECK(batch.answer > 0);
        ended += batch.records;
    }
    CHECK_EQ(ended, MANY);
    tools_close(engine);
    fail_alloc_at(0);
    ut_message_free(message);
}

static void cancels_need_no_memory(void)
{
    enum { MANY = 300 };
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(ut_prep_poll(engine, 5, POLLIN, 0), i);
    fail_alloc_always();
    while (tools_statistics(engine).queued > 0)
        CHECK_EQ(tools_wait(engine, 0).answer, 0);
    for (uint32_t slot = 0; slot < MANY; slot++)
        CHECK_EQ(ut_engine_cancel(engine, slot), 1);
    while (tools_wait_through(engine, MS).answer != 0)
        ;
    tools_close(engine);
    fail_alloc_at(0);
}

static void each_failing_allocation_of_a_message_is_NULL(void)
{
    fail_alloc_at(1);
    CHECK(ut_message_new(1, 10, 10) == NULL);
    fail_alloc_at(1);
    CHECK(ut_memory_new(10) == NULL);
    fail_alloc_at(0);
}

/* Runs `child` in a fork; its answer is the child's exit status. */
static int in_child(int (*child)(struct ut_engine *), struct ut_engine *engine)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(child(engine));
    int status = 1;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    return status;
}

static int child_is_refused_everywhere(struct ut_engine *engine)
{
    unsigned enters = fake.enters, calls = fake.calls, mappings = fake.mappings;
    if (ut_prep_poll(engine, 5, POLLIN, 0) != -EOWNERDEAD)
        return 2;
    if (ut_engine_cancel(engine, 0) != -EOWNERDEAD)
        return 3;
    if (ut_engine_wait(engine, 0) != -EOWNERDEAD || ut_engine_wait(engine, -1) != -EOWNERDEAD)
        return 4;
    if (ut_engine_flush(engine) != -EOWNERDEAD)
        return 5;
    if (ut_engine_register_eventfd(engine, 1) != -EOWNERDEAD)
        return 6;
    if (ut_engine_look(engine) != -EOWNERDEAD)
        return 11;
    if (tools_statistics(engine).in_flight != 1)
        return 7;
    if (fake.enters != enters || fake.calls != calls)
        return 8;
    if (ut_engine_close(engine, 0) != 1 || fake.fds != 0)
        return 9;
    return fake.mappings == mappings ? 0 : 10; /* the child has none of them to unmap */
}

static int child_opens_its_own(struct ut_engine *engine)
{
    (void)engine;
    fake_reset();
    fake.fallback = (struct fake_plan){.res = 1};
    struct ut_engine *own = tools_open(8, 32);
    ut_prep_poll(own, 5, POLLIN, 0);
    if (tools_wait(own, -1).records != 1)
        return 2;
    tools_close(own);
    return 0;
}

static void a_forked_child_is_refused_and_may_open_its_own(void)
{
    fake_reset();
    struct ut_engine *engine = tools_open(8, 32);
    fake_plan_next((struct fake_plan){.res = 3, .delay_ns = MS});
    int slot = ut_prep_poll(engine, 5, POLLIN, 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(in_child(child_is_refused_everywhere, engine), 0);
    CHECK_EQ(in_child(child_opens_its_own, engine), 0);
    CHECK_EQ(tools_await(engine, slot).res, 3); /* the parent goes on as before */
    tools_close(engine);
}

int main(void)
{
    check_after_each = fake_check_books;
    RUN(each_failing_call_of_open_is_named_and_leaves_nothing);
    RUN(too_little_for_buffer_rings_halves_the_next_try);
    RUN(each_failing_allocation_of_open_is_ENOMEM_and_leaves_nothing);
    RUN(no_memory_for_an_operation_loses_no_other);
    RUN(cancels_need_no_memory);
    RUN(each_failing_allocation_of_a_message_is_NULL);
    RUN(a_forked_child_is_refused_and_may_open_its_own);
    return CHECK_SUMMARY();
}
