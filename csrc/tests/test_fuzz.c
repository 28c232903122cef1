/*
 * Random operations on a random kernel, beside a simple model.
 *
 * The model knows little: which operations are under way, and whose memory is whose.
 * That is enough to hold the engine to its promises: each operation ends exactly
 * once, with what its last attempt gave, and never with -EAGAIN; its slot is given out again only after its batch; every buffer comes home;
 * a falsy answer means that the time is over and nothing came. Memory of a receive
 * is freed at its last cqe, so ASAN sees a kernel that writes later.
 *
 * A failure names its seed: run "test_fuzz seed N".
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "draw.h"
#include "engine_tools.h"

#define BLOCKS 10
#define SEEDS_DEFAULT 6000
#define STEPS_MAX 200
#define LIVE_MAX 48
#define FILES 50
#define SLOTS_MAX 1024
#define SIZE_MAX_OF_OPERATION 9000

struct model_op {
    bool live, cancel_asked;
    bool in_batch; /* its last record is in the batch: the slot is taken still */
    int fd;
    uint32_t size;
    char *memory; /* NULL: a provided buffer, or none */
    bool receives;
    bool is_plain;    /* the kernel waits, not the ladder */
    bool is_file;     /* read or write */
    bool is_timeout;
    uint64_t token;
};

static struct model_op ops[SLOTS_MAX];
static struct ut_engine *engine;
static unsigned live_count, leases;
static uint64_t state;

static unsigned draw(unsigned below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(state >> 33) % below;
}

/* A message to one of a few UNIX sockets, so that lines come and go. */
static struct ut_message *message_to_a_receiver(void)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct ut_message *message = ut_message_new(1, 0, 0);
    ut_message_set_vector(message, 0, "x", 1);
    snprintf(name.sun_path, sizeof name.sun_path, "%clog%u", draw(2) ? '/' : 0, draw(2));
    ut_message_set_name(message, (char *)&name, sizeof(sa_family_t) + 5);
    return message;
}

static int prep_one(unsigned kind, struct model_op *op)
{
    switch (kind) {
    case 0:
    case 1:
        return ut_prep_recv(engine, op->fd, draw(UT_GROUPS), op->size, (int)draw(2));
    case 2:
        op->receives = true;
        op->memory = malloc(op->size);
        return ut_prep_recv_into(engine, op->fd, op->memory, op->size, 0, (int)draw(2));
    case 3:
        op->memory = calloc(1, op->size);
        return ut_prep_send(engine, op->fd, op->memory, op->size, 0);
    case 4:
        op->is_plain = true;
        op->size = SIZE_MAX_OF_OPERATION; /* of each cqe: what its buffer holds */
        return ut_prep_recv_multishot(engine, op->fd, draw(UT_GROUPS), (int)draw(2));
    case 5:
        op->is_plain = draw(2);
        return op->is_plain ? tools_accept_multishot(engine, op->fd, 0)
                            : ut_prep_accept_fd(engine, op->fd, 0);
    case 6:
        op->is_file = true;
        return ut_prep_read(engine, op->fd, draw(UT_GROUPS), op->size, (int)draw(2));
    case 7:
        op->is_file = true;
        op->memory = calloc(1, op->size);
        return ut_prep_write(engine, op->fd, op->memory, op->size, 0);
    case 8:
        op->is_plain = op->is_timeout = true;
        return ut_prep_timeout(engine, draw(5000));
    case 9:
    case 10:
    case 11:
        op->memory = (char *)message_to_a_receiver();
        return ut_prep_sendmsg(engine, op->fd, (struct ut_message *)op->memory, 0);
    default:
        op->is_plain = true;
        return ut_prep_poll(engine, op->fd, POLLIN, (int)draw(2));
    }
}

static void prep(void)
{
    struct model_op op = {
        .live = true, .fd = (int)draw(FILES), .size = 1 + draw(SIZE_MAX_OF_OPERATION)};
    int slot = prep_one(draw(13), &op);
    CHECK(slot >= 0 && slot < SLOTS_MAX);
    CHECK(!ops[slot].live && !ops[slot].in_batch);
    op.token = ut_op_at(&engine->ops, (uint32_t)slot)->sqe.user_data;
    ops[slot] = op;
    live_count++;
}

static void end(struct model_op *op)
{
    CHECK(op->live);
    op->live = false;
    live_count--;
    free(op->memory);
    op->memory = NULL;
}

/* What an attempt says that is followed by another, without its flag. */
static bool fake_refuses(int32_t result)
{
    return result == -EINVAL || result == -EOPNOTSUPP;
}

/* An operation of the ladder ends with what its last attempt gave. If that was nothing: as
 * cancelled, or with the error of a poll, or of a file that cannot be asked. */
static void check_result(const struct model_op *op, int32_t res)
{
    int32_t result = fake_result_of(op->token);
    if (op->is_timeout)
        CHECK(res == -ETIME || (res == -ECANCELED && op->cancel_asked));
    if (op->is_plain)
        return;
    bool found = result != FAKE_NO_RESULT && result != -ECANCELED;
    if (found) /* not lost, whatever was asked meanwhile */
        CHECK_EQ(res, result);
    else if (res == -EAGAIN)
        CHECK(op->is_file && fake.no_nowait);
    else
        CHECK(res == -ENOMEM || (res == -ECANCELED && op->cancel_asked));
}

static void cancel(uint32_t slot)
{
    int answer = ut_engine_cancel(engine, slot);
    if (answer == 0) {
        int32_t result = fake_result_of(ops[slot].token);
        CHECK(!ops[slot].cancel_asked);
        CHECK(result == FAKE_NO_RESULT || result == -ECANCELED || fake_refuses(result));
        end(&ops[slot]);
    } else {
        CHECK_EQ(answer, ops[slot].cancel_asked ? -EALREADY : 1);
        ops[slot].cancel_asked = true;
    }
}

static void cancel_some(bool all)
{
    for (uint32_t slot = 0; slot < engine->ops.chunk_count * UT_OP_CHUNK; slot++)
        if (ops[slot].live && (all ? !ops[slot].cancel_asked : draw(6) == 0))
            cancel(slot);
}

static void read_record(const struct ut_record *record)
{
    CHECK(record->slot < SLOTS_MAX);
    struct model_op *op = &ops[record->slot];
    CHECK(op->live);
    if (record->flags & IORING_CQE_F_BUFFER) {
        leases++;
        CHECK(record->res > 0 && (uint32_t)record->res <= op->size);
        CHECK(tools_data_is(engine, record, op->fd));
    }
    if (op->receives)
        for (int32_t i = 0; i < record->res; i++)
            CHECK_EQ((uint8_t)op->memory[i], fake_byte(op->fd, (unsigned)i));
    if (record->flags & IORING_CQE_F_MORE)
        return;
    check_result(op, record->res);
    op->in_batch = true;
    end(op);
}

static void wait(int64_t timeout_ns)
{
    uint64_t start = fake.now_ns, cqes = engine->cqes;
    for (unsigned i = 0; i < SLOTS_MAX; i++)
        ops[i].in_batch = false;
    leases = 0;
    struct tools_batch batch = tools_wait(engine, timeout_ns);
    if (batch.answer < 0) {
        if (batch.answer != -EBADR) { /* that may be an earlier wait's, told late */
            CHECK_EQ(batch.answer, -EINTR);
            CHECK(timeout_ns != 0);
        }
        CHECK_EQ(engine->record_count, 0);
        return;
    }
    CHECK(engine->cqes - cqes >= batch.seen); /* steps are not counted */
    if (batch.answer == 0)
        CHECK(timeout_ns >= 0 && fake.now_ns - start >= (uint64_t)timeout_ns);
    for (unsigned i = 0; i < batch.records; i++)
        read_record(&engine->records[i]);
}

static void check_counts(void)
{
    struct ut_statistics statistics = tools_statistics(engine);
    CHECK_EQ(statistics.queued + statistics.in_flight, live_count + engine->lingering);
    CHECK_EQ(statistics.leases_out, leases);
    CHECK(statistics.stale_cqes <= fake.stale_injected);
}

static const uint32_t wakes[] = {POLLIN, POLLOUT, POLLERR, POLLIN | POLLOUT | POLLHUP};

static void step(void)
{
    unsigned what = draw(100);
    if (what < 45 && live_count < LIVE_MAX)
        prep();
    else if (what < 55)
        cancel_some(false);
    else if (what < 62)
        CHECK_EQ(ut_engine_flush(engine), 0);
    else if (what < 65)
        fake_stray_cqe(0x3ffffff0ULL << 32 | draw(64), (int32_t)draw(10), draw(4));
    else if (what < 69)
        fake_sleep(draw(3000));
    else if (what < 70)
        fake_sleep(draw(40000000)); /* as long as pauses are */
    else if (what < 75)
        fake_wake_later(draw(3000), (int)draw(FILES), wakes[draw(4)]);
    else
        wait(draw(2) ? 0 : (int64_t)draw(4000));
    check_counts();
}

/* What is left waits for what never comes: then no clock runs, and nobody enters. */
static void come_to_rest(void)
{
    uint64_t random = fake.random;
    fake.random = 0; /* no errors of enter, no new plans */
    fake.watches_end = false;
    for (unsigned waits = 0; waits < 500; waits++) {
        wait(5 * MS);
        check_counts();
    }
    CHECK_EQ(fake_in_flight_of(IORING_OP_TIMEOUT), 0);
    CHECK_EQ(engine->lingering, 0);
    unsigned enters = fake.enters;
    wait(1000 * MS);
    CHECK(fake.enters - enters <= 1);
    fake.random = random;
}

/* The end: cancel all, and every operation must come to its last cqe. */
static void drain(void)
{
    for (unsigned waits = 0; live_count > 0; waits++) {
        CHECK(waits < 5000);
        cancel_some(true);
        if (live_count > 0)
            wait(-1);
        check_counts();
    }
    for (unsigned waits = 0; tools_wait(engine, 40 * MS).answer != 0; waits++)
        CHECK(waits < 1000); /* cqes of cancels, strays, and clocks that run out */
    fake.random = 0;
    tools_close(engine);
    CHECK_EQ(fake.faults, 0);
    CHECK_EQ(fake.mappings, 0);
}

static void run_seed(unsigned seed)
{
    check_note("seed %u", seed);
    memset(ops, 0, sizeof ops);
    live_count = leases = 0;
    state = seed + 1;
    fake_reset();
    unsigned sq_entries = 2u << draw(4);
    engine = tools_open(sq_entries, sq_entries << draw(4));
    if (draw(4) == 0)
        fake.requests_max = 2 + draw(20);
    fake.accept_waits = draw(4) == 0;
    fake.no_nowait = draw(4) == 0;
    fake.watches_end = draw(4) == 0;
    fake.is_calm = draw(2);
    fake.random = draw_state(seed);
    for (unsigned steps = 1 + draw(STEPS_MAX); steps > 0; steps--)
        step();
    if (fake.requests_max > 0)
        fake.requests_max = 5 * LIVE_MAX; /* watches, and the cancels beside their targets */
    if (fake.is_calm && fake.requests_max == 0)
        come_to_rest();
    drain();
}

static unsigned seed_first, seed_count;

static void a_block_of_seeds(void)
{
    for (unsigned i = 0; i < seed_count; i++)
        run_seed(seed_first + i);
    seed_first += seed_count;
}

int main(int argc, char **argv)
{
    check_after_each = fake_check_books;
    if (argc == 3 && strcmp(argv[1], "seed") == 0) {
        seed_first = (unsigned)strtoul(argv[2], NULL, 10);
        seed_count = 1;
        RUN(a_block_of_seeds);
        return CHECK_SUMMARY();
    }
    seed_count = (argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : SEEDS_DEFAULT) / BLOCKS;
    for (unsigned block = 0; block < BLOCKS; block++) {
        seed_first = block * seed_count;
        RUN(a_block_of_seeds);
    }
    return CHECK_SUMMARY();
}
