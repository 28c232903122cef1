/*
 * An engine's beginning and end
 *
 * Opening takes from the kernel a ring, memory for the receive buffers, and a
 * registration for each group of them; what fails is told with its step, and
 * everything before it is given back. Closing gives all back, but for memory that
 * the kernel may still write to: that is given up on purpose.
 */
#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ut_assert.h"

#define QUEUE_MIN 64 /* operations of a tick before the queue first grows */

static int open_groups(struct ut_engine *engine, const struct ut_config *config)
{
    const struct ut_kernel *kernel = engine->ring.kernel;
    for (unsigned group = 0; group < UT_GROUPS; group++)
        engine->pool_size +=
            (size_t)config->groups[group].entries * config->groups[group].buffer_size;
    UT_ASSERT(engine->pool_size <= UINT32_MAX);
    void *pool;
    int error = kernel->allocate(&pool, engine->pool_size, 0);
    if (error < 0)
        return error;
    engine->pool = pool;
    uint32_t offset = 0;
    for (unsigned group = 0; group < UT_GROUPS; group++) {
        error = ut_bufring_open(&engine->groups[group], &engine->ring, (uint16_t)group,
                                config->groups[group].entries, config->groups[group].buffer_size,
                                engine->pool, offset);
        if (error < 0)
            return error;
        offset += config->groups[group].entries * config->groups[group].buffer_size;
    }
    return 0;
}

static int open_arrays(struct ut_engine *engine)
{
    engine->record_capacity = engine->ring.cq_entries;
    engine->records = calloc(engine->record_capacity, sizeof *engine->records);
    engine->queue_capacity = QUEUE_MIN;
    engine->queue = malloc(engine->queue_capacity * sizeof *engine->queue);
    return engine->records == NULL || engine->queue == NULL ? -ENOMEM : 0;
}

/* What the ring has taken is not given back at once, so a smaller one is for later. */
static void shrink(struct ut_config *config, const struct ut_ring *ring)
{
    if (ring->sq_entries / 2 < config->sq_entries_min)
        return;
    config->sq_entries = ring->sq_entries / 2;
    config->cq_entries = ring->cq_entries / 2;
}

struct ut_engine *ut_engine_open(const struct ut_kernel *kernel, struct ut_config *config,
                                 int *error, const char **stage)
{
    ut_kernel_watch_forks();
    *stage = "allocate the engine";
    *error = -ENOMEM;
    struct ut_engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return NULL;
    engine->fork_count = ut_fork_count;
    *stage = "io_uring_setup";
    *error = ut_ring_open(&engine->ring, kernel, config->sq_entries, config->cq_entries,
                          config->sq_entries_min);
    if (*error == 0) {
        *stage = "allocate the engine";
        *error = open_arrays(engine);
    }
    if (*error == 0) {
        *stage = "register buffer ring";
        *error = open_groups(engine, config);
        if (*error == -ENOMEM)
            shrink(config, &engine->ring);
    }
    if (*error == 0)
        return engine;
    ut_engine_close(engine, 0);
    return NULL;
}

int ut_engine_open_boxed(const struct ut_kernel *kernel, struct ut_config *config,
                         struct ut_engine **box, const char **stage)
{
    int error;
    *box = ut_engine_open(kernel, config, &error, stage);
    return *box != NULL ? 0 : error;
}

void ut_engine_close_boxed(struct ut_engine **box)
{
    if (*box != NULL)
        ut_engine_close(*box, 0);
    *box = NULL;
}

int ut_engine_close(struct ut_engine *engine, int leak)
{
    const struct ut_kernel *kernel = engine->ring.kernel;
    if (ut_engine_is_foreign(engine)) {
        if (engine->ring.fd >= 0)
            kernel->close_fd(engine->ring.fd); /* the mappings do not exist here */
        engine->ring.fd = -1;
        return 1;
    }
    bool leaked = leak || engine->in_flight > 0;
    ut_ring_close(&engine->ring);
    if (leaked)
        return 1; /* the kernel may write to buffers until it has cancelled all */
    for (unsigned group = 0; group < UT_GROUPS; group++)
        ut_bufring_close(&engine->groups[group], kernel);
    if (engine->pool != NULL)
        kernel->unmap(engine->pool, engine->pool_size);
    ut_lines_close(&engine->lines);
    ut_op_table_close(&engine->ops);
    free(engine->queue);
    free(engine->records);
    free(engine);
    return 0;
}

int ut_engine_register_eventfd(struct ut_engine *engine, int event_fd)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD; /* it would signal the parent's ring to us */
    const struct ut_kernel *kernel = engine->ring.kernel;
    int fd = engine->ring.fd;
    int error = kernel->register_op(fd, IORING_UNREGISTER_EVENTFD, NULL, 0);
    if (error < 0 && error != -ENXIO)
        return error; /* ENXIO: there was none */
    return kernel->register_op(fd, IORING_REGISTER_EVENTFD, &event_fd, 1);
}

int ut_engine_look(struct ut_engine *engine)
{
    if (ut_engine_is_foreign(engine))
        return -EOWNERDEAD;
    struct ut_ring *ring = &engine->ring;
    /* Whoever adds work puts it on the list and then looks for an eventfd; we have
     * registered one and now look at the list. Both need a full barrier between. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    engine->enters++;
    int result = ut_ring_enter(ring, 0, 0, 0);
    if (result < 0 && result != -EINTR && result != -EBUSY)
        return result;
    if (result < 0 || engine->pending_error < 0 || ut_ring_cq_ready(ring) > 0 ||
        ut_ring_wants_enter(ring))
        return UT_LOOK_SOMETHING;
    if (ut_ring_unsubmitted(ring) > 0)
        return UT_LOOK_NO_MEMORY;
    return engine->queue_length > 0 ? UT_LOOK_SOMETHING : UT_LOOK_NOTHING;
}

void ut_engine_statistics(const struct ut_engine *engine, struct ut_statistics *out)
{
    memset(out, 0, sizeof *out);
    out->enters = engine->enters;
    out->cqes = engine->cqes;
    out->stale_cqes = engine->stale_cqes;
    out->queued = engine->queued;
    out->in_flight = engine->in_flight + engine->lingering;
    if (!ut_engine_is_foreign(engine))
        out->unread_cqes = ut_ring_cq_ready(&engine->ring);
    for (unsigned group = 0; group < UT_GROUPS; group++)
        out->leases_out += engine->groups[group].leased;
    memcpy(out->operations, engine->operations, sizeof out->operations);
}
