/*
 * Whose memory it is, by the engine's own rule
 *
 * Memory belongs to an operation from prep to its last record, or to the cancel that drops it
 * (csrc/README.md). Most of that time the kernel has no request that works on it: attempts end
 * at once, and what waits is a poll. So whoever gives it up too early is seldom punished, and
 * never in a test; but the next attempt may be under way already. Here it is told each time.
 *
 * The functions that prepare, cancel and wait are wrapped by the linker where other files call
 * them, so the engine itself is the same to the last byte.
 *
 * - What is to be received into must be pinned, or memory of the engine's.
 * - Nothing of an operation may be freed or unpinned.
 * - What a `bytes` had in it at prep must be there at the last record: a freed one has been
 *   overwritten by then (PYTHONMALLOC=debug). Looked at are both of its ends.
 */
#include "guard_operations.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "../prep.h"
#include "guard.h"
#include "guard_memory.h"

#define BUCKETS 1024u
#define END_SIZE 4096u /* bytes of each end of a `bytes` */

struct range {
    const char *memory;
    size_t size;
    char *first, *last; /* copies of its ends, or NULL */
};

struct operation {
    struct operation *next;
    const struct ut_engine *engine;
    uint32_t slot;
    const char *name;
    unsigned count;
    struct range ranges[];
};

static struct operation *operations[BUCKETS];

static size_t end_size(const struct range *range)
{
    return range->size < END_SIZE ? range->size : END_SIZE;
}

static struct operation **operation_at(const struct ut_engine *engine, uint32_t slot)
{
    struct operation **at = &operations[slot % BUCKETS];
    while (*at != NULL && ((*at)->slot != slot || (*at)->engine != engine))
        at = &(*at)->next;
    return at;
}

/* ---- an operation's memory -------------------------------------------------------- */

static struct operation *begin(const struct ut_engine *engine, int slot, const char *name,
                               size_t ranges)
{
    struct operation *operation = guard_own(sizeof *operation + ranges * sizeof(struct range));
    operation->engine = engine;
    operation->slot = (uint32_t)slot & ~(uint32_t)UT_SLOT_LEAVES;
    operation->name = name;
    guard_lock();
    struct operation **at = operation_at(engine, operation->slot);
    if (*at != NULL)
        guard_fault("slot %d is given to a %s, and a %s has it", slot, name, (*at)->name);
    operation->next = *at;
    *at = operation;
    return operation; /* locked */
}

static void add(struct operation *operation, const void *memory, size_t size)
{
    if (memory != NULL && size > 0)
        operation->ranges[operation->count++] = (struct range){.memory = memory, .size = size};
}

static void add_received(struct operation *operation, const void *memory, size_t size)
{
    add(operation, memory, size);
    if (size > 0 && !guard_holds(memory) && !guard_is_pinned(memory, size))
        guard_fault("a %s of %zu bytes goes into memory that is not pinned", operation->name,
                    size);
}

static char *copy_of(const char *memory, size_t size)
{
    return memcpy(guard_own(size), memory, size);
}

static void add_sent(struct operation *operation, const void *memory, size_t size)
{
    unsigned before = operation->count;
    add(operation, memory, size);
    if (operation->count == before || guard_holds(memory) || guard_is_pinned(memory, size))
        return;
    struct range *range = &operation->ranges[before];
    range->first = copy_of(range->memory, end_size(range));
    range->last = copy_of(range->memory + size - end_size(range), end_size(range));
}

static void add_message(struct operation *operation, const struct ut_message *message,
                        bool receives)
{
    const struct msghdr *header = &message->header;
    add(operation, message, guard_size(message));
    for (size_t i = 0; i < header->msg_iovlen; i++)
        (receives ? add_received : add_sent)(operation, header->msg_iov[i].iov_base,
                                             header->msg_iov[i].iov_len);
}

static void end(const struct ut_engine *engine, uint32_t slot)
{
    struct operation **at = operation_at(engine, slot), *operation = *at;
    if (operation == NULL)
        return; /* without memory */
    *at = operation->next;
    for (unsigned i = 0; i < operation->count; i++) {
        const struct range *range = &operation->ranges[i];
        size_t size = end_size(range);
        if (range->first != NULL &&
            (memcmp(range->first, range->memory, size) != 0 ||
             memcmp(range->last, range->memory + range->size - size, size) != 0))
            guard_fault("what a %s was to send has changed meanwhile", operation->name);
        guard_drop(range->first);
        guard_drop(range->last);
    }
    guard_drop(operation);
}

void guard_operations_let_go(const void *memory, size_t size, const char *how)
{
    const char *start = memory;
    for (unsigned i = 0; i < BUCKETS; i++)
        for (struct operation *operation = operations[i]; operation != NULL;
             operation = operation->next)
            for (unsigned j = 0; j < operation->count; j++) {
                const struct range *range = &operation->ranges[j];
                if (start >= range->memory + range->size || range->memory >= start + size)
                    continue;
                if (!guard_holds(memory) &&
                    (range->first != NULL || guard_is_pinned(range->memory, range->size)))
                    continue; /* others send from it: a `bytes` that they keep, or their own pin */
                guard_fault("memory of %zu bytes was %s before the last cqe of a %s", size, how,
                            operation->name);
                break;
            }
}

void guard_operations_forget(void)
{
    memset(operations, 0, sizeof operations);
}

/* ---- what other files call -------------------------------------------------------------- */

#define WRAP(type, name, ...)        \
    type __real_##name(__VA_ARGS__); \
    type __wrap_##name(__VA_ARGS__); \
    type __wrap_##name(__VA_ARGS__)

WRAP(int, ut_prep_recv_into, struct ut_engine *engine, int fd, void *memory, uint32_t size,
     int flags, int poll_first)
{
    int slot = __real_ut_prep_recv_into(engine, fd, memory, size, flags, poll_first);
    if (slot >= 0) {
        add_received(begin(engine, slot, "recv", 1), memory, size);
        guard_unlock();
    }
    return slot;
}

WRAP(int, ut_prep_send, struct ut_engine *engine, int fd, const char *data, uint32_t size,
     int flags)
{
    int slot = __real_ut_prep_send(engine, fd, data, size, flags);
    if (slot >= 0) {
        add_sent(begin(engine, slot, "send", 1), data, size);
        guard_unlock();
    }
    return slot;
}

WRAP(int, ut_prep_send_from, struct ut_engine *engine, int fd, const char *data, size_t offset,
     uint32_t size, int flags)
{
    int slot = __real_ut_prep_send_from(engine, fd, data, offset, size, flags);
    if (slot >= 0) {
        add_sent(begin(engine, slot, "send", 1), data + offset, size);
        guard_unlock();
    }
    return slot;
}

WRAP(int, ut_prep_write, struct ut_engine *engine, int fd, const char *data, uint32_t size,
     int unused)
{
    int slot = __real_ut_prep_write(engine, fd, data, size, unused);
    if (slot >= 0) {
        add_sent(begin(engine, slot, "write", 1), data, size);
        guard_unlock();
    }
    return slot;
}

WRAP(int, ut_prep_recvmsg, struct ut_engine *engine, int fd, struct ut_message *message,
     int flags, int poll_first)
{
    int slot = __real_ut_prep_recvmsg(engine, fd, message, flags, poll_first);
    if (slot >= 0) {
        size_t ranges = 1 + message->header.msg_iovlen;
        add_message(begin(engine, slot, "recvmsg", ranges), message, true);
        guard_unlock();
    }
    return slot;
}

WRAP(int, ut_prep_sendmsg, struct ut_engine *engine, int fd, struct ut_message *message,
     int flags)
{
    int slot = __real_ut_prep_sendmsg(engine, fd, message, flags);
    if (slot >= 0) {
        size_t ranges = 1 + message->header.msg_iovlen;
        add_message(begin(engine, slot, "sendmsg", ranges), message, false);
        guard_unlock();
    }
    return slot;
}

WRAP(int, ut_prep_accept, struct ut_engine *engine, int fd, struct ut_message *message,
     int flags, int poll_first)
{
    int slot = __real_ut_prep_accept(engine, fd, message, flags, poll_first);
    if (slot >= 0) {
        add(begin(engine, slot, "accept", 1), message, guard_size(message));
        guard_unlock();
    }
    return slot;
}

WRAP(int, ut_prep_connect, struct ut_engine *engine, int fd, struct ut_message *message)
{
    int slot = __real_ut_prep_connect(engine, fd, message);
    if (slot >= 0) {
        add(begin(engine, slot, "connect", 1), message, guard_size(message));
        guard_unlock();
    }
    return slot;
}

WRAP(int, ut_engine_cancel, struct ut_engine *engine, uint32_t slot)
{
    int result = __real_ut_engine_cancel(engine, slot);
    if (result == 0) { /* dropped: no cqe will come */
        guard_lock();
        end(engine, slot);
        guard_unlock();
    }
    return result;
}

WRAP(int64_t, ut_engine_wait, struct ut_engine *engine, int64_t timeout_ns)
{
    int64_t answer = __real_ut_engine_wait(engine, timeout_ns);
    if (answer == -EOWNERDEAD)
        return answer;
    guard_lock();
    for (unsigned i = 0; i < engine->record_count; i++)
        if (!(engine->records[i].flags & IORING_CQE_F_MORE))
            end(engine, engine->records[i].slot);
    guard_unlock();
    return answer;
}
