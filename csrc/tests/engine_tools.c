#include "engine_tools.h"

#include <errno.h>

const struct ut_config tools_config = {
    .sq_entries = 8,
    .cq_entries = 32,
    .sq_entries_min = 2,
    .groups = {{4, 4096}, {2, 8192}, {1, 4096}},
};

struct ut_engine *tools_leaked[TOOLS_LEAKED_MAX];

struct ut_engine *tools_open(unsigned sq_entries, unsigned cq_entries)
{
    struct ut_config config = tools_config;
    config.sq_entries = sq_entries;
    config.cq_entries = cq_entries;
    int error;
    const char *stage;
    struct ut_engine *engine = ut_engine_open(&ut_kernel_fake, &config, &error, &stage);
    CHECK(engine != NULL);
    return engine;
}

struct tools_batch tools_wait(struct ut_engine *engine, int64_t timeout_ns)
{
    struct tools_batch batch = {.answer = ut_engine_wait(engine, timeout_ns)};
    if (batch.answer > 0) {
        batch.seen = (unsigned)(batch.answer >> 32);
        batch.records = (unsigned)batch.answer;
        CHECK(batch.seen > 0);
        CHECK(batch.records <= batch.seen);
        CHECK_EQ(batch.records, engine->record_count);
    }
    return batch;
}

struct tools_batch tools_wait_through(struct ut_engine *engine, int64_t timeout_ns)
{
    for (;;) {
        struct tools_batch batch = tools_wait(engine, timeout_ns);
        if (batch.answer != -EINTR)
            return batch;
    }
}

unsigned tools_run_for(struct ut_engine *engine, uint64_t ns, void (*look)(void))
{
    uint64_t end_ns = fake.now_ns + ns;
    unsigned records = 0;
    while (fake.now_ns < end_ns) {
        struct tools_batch batch = tools_wait(engine, (int64_t)(end_ns - fake.now_ns));
        CHECK(batch.answer >= 0 || batch.answer == -EINTR);
        if (batch.answer == 0)
            CHECK(fake.now_ns >= end_ns); /* 0 means that the time is over */
        records += batch.records;
        if (look != NULL)
            look();
    }
    return records;
}

const struct ut_record *tools_record(const struct ut_engine *engine, int slot)
{
    for (unsigned i = 0; i < engine->record_count; i++)
        if (engine->records[i].slot == (uint32_t)slot)
            return &engine->records[i];
    return NULL;
}

struct ut_record tools_await(struct ut_engine *engine, int slot)
{
    for (;;) {
        struct tools_batch batch = tools_wait_through(engine, -1);
        CHECK(batch.answer > 0);
        for (unsigned i = 0; i < engine->record_count; i++) {
            const struct ut_record *record = &engine->records[i];
            if (record->slot == (uint32_t)slot && !(record->flags & IORING_CQE_F_MORE))
                return *record;
        }
    }
}

bool tools_data_is(const struct ut_engine *engine, const struct ut_record *record, int fd)
{
    const uint8_t *data = (const uint8_t *)engine->pool + record->offset;
    if (!(record->flags & IORING_CQE_F_BUFFER))
        return false;
    for (int32_t i = 0; i < record->res; i++)
        if (data[i] != fake_byte(fd, (unsigned)i))
            return false;
    return true;
}

struct ut_statistics tools_statistics(const struct ut_engine *engine)
{
    struct ut_statistics statistics;
    ut_engine_statistics(engine, &statistics);
    return statistics;
}

void tools_close(struct ut_engine *engine)
{
    CHECK(ut_engine_wait(engine, 0) >= 0);
    CHECK_EQ(engine->record_count, 0);
    struct ut_statistics statistics = tools_statistics(engine);
    CHECK_EQ(statistics.in_flight, 0);
    CHECK_EQ(statistics.queued, 0);
    CHECK_EQ(statistics.leases_out, 0);
    CHECK_EQ(statistics.stale_cqes, fake.stale_injected);
    CHECK_EQ(engine->ops.live, 0);
    CHECK_EQ(fake_in_flight(), 0);
    for (unsigned group = 0; group < UT_GROUPS; group++)
        CHECK_EQ(kring_buffers_home(&fake_ring, group), engine->groups[group].entries);
    CHECK_EQ(ut_engine_close(engine, 0), 0);
}

void tools_close_leaking(struct ut_engine *engine)
{
    static unsigned count;
    CHECK(count < TOOLS_LEAKED_MAX);
    tools_leaked[count++] = engine;
    CHECK_EQ(ut_engine_close(engine, 0), 1);
    CHECK_EQ(fake.fds, 0);
    /* What stays mapped: the pool and one buffer ring a group; not the ring. */
    CHECK_EQ(fake.mappings, 1 + UT_GROUPS);
    fake_write_late();
    CHECK_EQ(fake_reclaim(), 1 + UT_GROUPS);
}

int tools_accept_multishot(struct ut_engine *engine, int fd, int flags)
{
    struct io_uring_sqe *sqe;
    uint32_t slot;
    int error = ut_engine_new_op(engine, 0, false, &sqe, &slot);
    if (error < 0)
        return error;
    sqe->opcode = IORING_OP_ACCEPT;
    sqe->ioprio = IORING_ACCEPT_MULTISHOT;
    sqe->fd = fd;
    sqe->op_flags = (uint32_t)flags;
    return (int)slot;
}
