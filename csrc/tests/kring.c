#include "kring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* ---- memory ---------------------------------------------------------------- */

void *kring_pages(size_t size)
{
    size = (size + KRING_PAGE - 1) / KRING_PAGE * KRING_PAGE;
    void *memory = aligned_alloc(KRING_PAGE, size); /* not one of those that tests fail */
    if (memory == NULL)
        abort();
    memset(memory, 0, size);
    return memory;
}

/* A word of shared memory. */
static unsigned *word_at(const struct kring *ring, uint32_t offset)
{
    return (unsigned *)(ring->rings + offset);
}

static unsigned power_of_two(unsigned count)
{
    unsigned power = 1;
    while (power < count)
        power *= 2;
    return power;
}

static void lay_out(struct kring *ring, struct io_uring_params *params)
{
    /* As in struct io_rings: counters first, then cqes, then the SQ's array. */
    struct io_sqring_offsets sq = {.head = 0, .tail = 64, .ring_mask = 256, .ring_entries = 264,
                                   .flags = 276, .dropped = 272};
    struct io_cqring_offsets cq = {.head = 128, .tail = 192, .ring_mask = 260,
                                   .ring_entries = 268, .flags = 280, .overflow = 284,
                                   .cqes = 320};
    sq.array = cq.cqes + params->cq_entries * (uint32_t)sizeof(struct io_uring_cqe);
    params->sq_off = sq;
    params->cq_off = cq;
    ring->rings_size = sq.array + params->sq_entries * sizeof(unsigned);
    ring->rings = kring_pages(ring->rings_size);
    ring->sqes_size = params->sq_entries * sizeof *ring->sqes;
    ring->sqes = kring_pages(ring->sqes_size);
    *word_at(ring, sq.ring_mask) = params->sq_entries - 1;
    *word_at(ring, sq.ring_entries) = params->sq_entries;
    *word_at(ring, cq.ring_mask) = params->cq_entries - 1;
    *word_at(ring, cq.ring_entries) = params->cq_entries;
    /* Close to the wrap of 32 bits, which a real ring reaches after days. */
    *word_at(ring, sq.head) = *word_at(ring, sq.tail) = UINT32_MAX - 2;
    *word_at(ring, cq.head) = *word_at(ring, cq.tail) = UINT32_MAX - 4;
}

void kring_open(struct kring *ring, unsigned entries, struct io_uring_params *params,
                void (*fault)(const char *what))
{
    memset(ring, 0, sizeof *ring);
    params->sq_entries = power_of_two(entries);
    params->cq_entries = params->flags & IORING_SETUP_CQSIZE ? power_of_two(params->cq_entries)
                                                             : 2 * params->sq_entries;
    ring->open = true;
    ring->sq_entries = params->sq_entries;
    ring->cq_entries = params->cq_entries;
    ring->setup_flags = params->flags;
    ring->event_fd = -1;
    ring->fault = fault;
    lay_out(ring, params);
    ring->params = *params;
}

void *kring_part(struct kring *ring, size_t size, uint64_t offset)
{
    if (offset == IORING_OFF_SQ_RING && size <= ring->rings_size)
        return ring->rings;
    if (offset == IORING_OFF_SQES && size <= ring->sqes_size)
        return ring->sqes;
    ring->fault("map beyond the ring");
    return NULL;
}

void kring_free_memory(struct kring *ring)
{
    free(ring->rings);
    free(ring->sqes);
    free(ring->overflow);
    ring->rings = NULL;
    ring->sqes = NULL;
    ring->overflow = NULL;
    ring->overflow_capacity = 0;
}

void kring_free(struct kring *ring)
{
    kring_free_memory(ring);
    for (unsigned i = 0; i < UT_GROUPS; i++)
        free(ring->groups[i]);
    memset(ring, 0, sizeof *ring);
    ring->event_fd = -1;
}

void kring_set_sq_flags(struct kring *ring, unsigned flags)
{
    __atomic_store_n(word_at(ring, ring->params.sq_off.flags), flags, __ATOMIC_RELAXED);
}

/* ---- registrations --------------------------------------------------------- */

static int register_probe(struct io_uring_probe *probe, uint32_t opcodes_missing)
{
    probe->last_op = UT_OPCODES - 1;
    probe->ops_len = UT_OPCODES;
    for (unsigned i = 0; i < UT_OPCODES; i++) {
        probe->ops[i].op = (uint8_t)i;
        probe->ops[i].flags = opcodes_missing >> i & 1 ? 0 : IO_URING_OP_SUPPORTED;
    }
    return 0;
}

static int register_group(struct kring *ring, const struct io_uring_buf_reg *registration)
{
    if (registration->bgid >= UT_GROUPS || registration->ring_entries > 32768 ||
        power_of_two(registration->ring_entries) != registration->ring_entries ||
        registration->ring_addr % KRING_PAGE != 0 || registration->flags != 0)
        return -EINVAL;
    struct kring_group **group = &ring->groups[registration->bgid];
    if (*group != NULL)
        return -EEXIST;
    *group = kring_pages(sizeof **group);
    (*group)->ring = (struct io_uring_buf *)(uintptr_t)registration->ring_addr;
    (*group)->entries = registration->ring_entries;
    return 0;
}

int kring_register(struct kring *ring, unsigned opcode, void *arg, unsigned nr_args,
                   uint32_t opcodes_missing)
{
    switch (opcode) {
    case IORING_REGISTER_PROBE:
        return nr_args > UT_PROBE_OPS ? -EINVAL : register_probe(arg, opcodes_missing);
    case IORING_REGISTER_PBUF_RING:
        return nr_args != 1 ? -EINVAL : register_group(ring, arg);
    case IORING_REGISTER_EVENTFD:
        if (ring->event_fd >= 0)
            return -EBUSY;
        ring->event_fd = *(int *)arg;
        return 0;
    case IORING_UNREGISTER_EVENTFD:
        if (ring->event_fd < 0)
            return -ENXIO;
        ring->event_fd = -1;
        return 0;
    default:
        return -EINVAL;
    }
}

/* ---- the SQ ---------------------------------------------------------------- */

bool kring_next_sqe(struct kring *ring, struct io_uring_sqe *sqe)
{
    const struct io_sqring_offsets *at = &ring->params.sq_off;
    unsigned tail = __atomic_load_n(word_at(ring, at->tail), __ATOMIC_ACQUIRE);
    unsigned head = *word_at(ring, at->head);
    if (tail - head > ring->sq_entries)
        ring->fault("more sqes than the SQ has");
    if (head == tail)
        return false;
    unsigned index = word_at(ring, at->array)[head & (ring->sq_entries - 1)];
    if (index != (head & (ring->sq_entries - 1)))
        ring->fault("the SQ's array is not the identity");
    *sqe = ring->sqes[index];
    memset(&ring->sqes[index], 0xee, sizeof *sqe); /* FEAT_SUBMIT_STABLE: read once */
    __atomic_store_n(word_at(ring, at->head), head + 1, __ATOMIC_RELEASE);
    return true;
}

bool kring_is_multishot(const struct io_uring_sqe *sqe)
{
    switch (sqe->opcode) {
    case IORING_OP_RECV:
        return sqe->ioprio & IORING_RECV_MULTISHOT;
    case IORING_OP_ACCEPT:
        return sqe->ioprio & IORING_ACCEPT_MULTISHOT;
    case IORING_OP_POLL_ADD:
        return sqe->len & IORING_POLL_ADD_MULTI;
    default:
        return false;
    }
}

bool kring_is_wait(const struct io_uring_sqe *sqe)
{
    return sqe->opcode == IORING_OP_POLL_ADD || sqe->opcode == IORING_OP_TIMEOUT;
}

bool kring_takes_input(const struct io_uring_sqe *sqe)
{
    return sqe->opcode == IORING_OP_RECV || sqe->opcode == IORING_OP_READ ||
           sqe->opcode == IORING_OP_RECVMSG || sqe->opcode == IORING_OP_ACCEPT;
}

bool kring_has_bytes(const struct io_uring_sqe *sqe)
{
    return sqe->opcode == IORING_OP_RECV || sqe->opcode == IORING_OP_READ ||
           sqe->opcode == IORING_OP_SEND || sqe->opcode == IORING_OP_WRITE;
}

bool kring_is_attempt(const struct io_uring_sqe *sqe)
{
    switch (sqe->opcode) {
    case IORING_OP_RECV:
    case IORING_OP_ACCEPT:
        return !kring_is_multishot(sqe);
    case IORING_OP_SEND:
    case IORING_OP_RECVMSG:
    case IORING_OP_SENDMSG:
    case IORING_OP_READ:
    case IORING_OP_WRITE:
        return true;
    default:
        return false;
    }
}

bool kring_is_acceptable(const struct io_uring_sqe *sqe)
{
    bool ok = sqe->personality == 0 && sqe->file_index == 0 && sqe->addr3 == 0 && sqe->pad == 0;
    switch (sqe->opcode) {
    case IORING_OP_ASYNC_CANCEL:
        return ok && sqe->flags == 0 && sqe->off == 0 && sqe->len == 0 && sqe->op_flags == 0;
    case IORING_OP_POLL_ADD:
        return ok && sqe->addr == 0 && sqe->off == 0 && (sqe->len & ~IORING_POLL_ADD_MULTI) == 0;
    case IORING_OP_ACCEPT:
        return ok && sqe->len == 0 && sqe->buf_group == 0 &&
               (sqe->ioprio & ~(IORING_ACCEPT_MULTISHOT | IORING_ACCEPT_DONTWAIT)) == 0 &&
               (sqe->op_flags & ~(uint32_t)(SOCK_CLOEXEC | SOCK_NONBLOCK)) == 0;
    case IORING_OP_TIMEOUT:
        return ok && sqe->addr != 0 && sqe->off == 0 && sqe->len == 1 && sqe->op_flags == 0;
    case IORING_OP_CONNECT:
        return ok && sqe->len == 0 && sqe->op_flags == 0 && sqe->buf_group == 0;
    case IORING_OP_RECV:
        if (kring_is_multishot(sqe) && (!(sqe->flags & IOSQE_BUFFER_SELECT) || sqe->len != 0 ||
                                        sqe->op_flags & MSG_WAITALL))
            return false;
        return ok && sqe->off == 0 &&
               (sqe->ioprio & ~(IORING_RECVSEND_POLL_FIRST | IORING_RECV_MULTISHOT)) == 0;
    case IORING_OP_SEND:
    case IORING_OP_RECVMSG:
    case IORING_OP_SENDMSG:
        return ok && sqe->off == 0 && (sqe->ioprio & ~IORING_RECVSEND_POLL_FIRST) == 0;
    case IORING_OP_READ:
    case IORING_OP_WRITE:
        return ok && sqe->ioprio == 0;
    default:
        return false;
    }
}

bool kring_is_acceptable_enter(unsigned flags, const void *arg, size_t arg_size)
{
    unsigned known = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG | IORING_ENTER_NO_IOWAIT;
    const struct io_uring_getevents_arg *wait = arg;
    return (flags & ~known) == 0 && arg_size == sizeof *wait && wait->sigmask == 0;
}

uint64_t kring_timespec(struct kring *ring, uint64_t address)
{
    const struct ut_timespec *ts = (const struct ut_timespec *)(uintptr_t)address;
    if (ts->tv_sec < 0 || ts->tv_nsec < 0 || ts->tv_nsec > 999999999)
        ring->fault("a timespec that Linux refuses");
    return (uint64_t)ts->tv_sec * 1000000000u + (uint64_t)ts->tv_nsec;
}

uint64_t kring_end_of_wait(struct kring *ring, const struct io_uring_getevents_arg *arg,
                           uint64_t now_ns)
{
    if (arg->ts == 0)
        return KRING_NEVER;
    uint64_t ns = kring_timespec(ring, arg->ts);
    return ns > KRING_NEVER - 1 - now_ns ? KRING_NEVER - 1 : now_ns + ns;
}

/* ---- the CQ ---------------------------------------------------------------- */

bool kring_cq_has_overflow(const struct kring *ring)
{
    return ring->overflow_first < ring->overflow_count;
}

unsigned kring_cq_ready(const struct kring *ring)
{
    const struct io_cqring_offsets *at = &ring->params.cq_off;
    return *word_at(ring, at->tail) - __atomic_load_n(word_at(ring, at->head), __ATOMIC_ACQUIRE);
}

bool kring_cq_has_room(const struct kring *ring)
{
    return !kring_cq_has_overflow(ring) && kring_cq_ready(ring) < ring->cq_entries;
}

static void write_cqe(struct kring *ring, const struct io_uring_cqe *cqe)
{
    const struct io_cqring_offsets *at = &ring->params.cq_off;
    struct io_uring_cqe *cqes = (struct io_uring_cqe *)(ring->rings + at->cqes);
    unsigned tail = *word_at(ring, at->tail);
    cqes[tail & (ring->cq_entries - 1)] = *cqe;
    __atomic_store_n(word_at(ring, at->tail), tail + 1, __ATOMIC_RELEASE);
}

static void grow_overflow(struct kring *ring)
{
    unsigned capacity = ring->overflow_capacity > 0 ? 2 * ring->overflow_capacity : 256;
    if (capacity > KRING_OVERFLOW_MAX)
        abort();
    struct io_uring_cqe *larger = kring_pages(capacity * sizeof *larger);
    if (ring->overflow != NULL)
        memcpy(larger, ring->overflow, ring->overflow_count * sizeof *larger);
    free(ring->overflow);
    ring->overflow = larger;
    ring->overflow_capacity = capacity;
}

void kring_cq_post(struct kring *ring, uint64_t user_data, int32_t res, uint32_t flags)
{
    struct io_uring_cqe cqe = {user_data, res, flags};
    if (kring_cq_has_room(ring)) {
        write_cqe(ring, &cqe);
        return;
    }
    if (ring->overflow_count == ring->overflow_capacity)
        grow_overflow(ring);
    ring->overflow[ring->overflow_count++] = cqe;
    ring->overflows++;
}

void kring_cq_flush(struct kring *ring)
{
    while (ring->overflow_first < ring->overflow_count &&
           kring_cq_ready(ring) < ring->cq_entries)
        write_cqe(ring, &ring->overflow[ring->overflow_first++]);
    if (ring->overflow_first == ring->overflow_count)
        ring->overflow_first = ring->overflow_count = 0;
}

/* ---- provided buffers ------------------------------------------------------- */

/* Looks at what was put back since the last time. */
static void look_at_tail(const struct kring *ring, struct kring_group *group)
{
    uint16_t tail = __atomic_load_n(&group->ring[0].resv, __ATOMIC_ACQUIRE);
    for (; group->tail != tail; group->tail++) {
        const struct io_uring_buf *entry = &group->ring[group->tail & (group->entries - 1)];
        if (entry->bid >= group->entries)
            ring->fault("a buffer id beyond the group");
        else if (group->known[entry->bid] && !group->out[entry->bid])
            ring->fault("a buffer was returned twice");
        if (entry->bid < group->entries) {
            group->known[entry->bid] = true;
            group->out[entry->bid] = false;
        }
    }
    if ((uint16_t)(group->tail - group->head) > group->entries)
        ring->fault("more buffers than entries");
}

unsigned kring_buffers_home(struct kring *ring, unsigned index)
{
    struct kring_group *group = ring->groups[index];
    if (group == NULL)
        return 0;
    look_at_tail(ring, group);
    return (uint16_t)(group->tail - group->head);
}

unsigned kring_buffers_out(struct kring *ring, unsigned index)
{
    struct kring_group *group = ring->groups[index];
    unsigned count = 0;
    if (group == NULL)
        return 0;
    look_at_tail(ring, group);
    for (unsigned bid = 0; bid < group->entries; bid++)
        count += group->out[bid];
    return count;
}

const struct io_uring_buf *kring_peek_buffer(struct kring *ring, unsigned index)
{
    struct kring_group *group = index < UT_GROUPS ? ring->groups[index] : NULL;
    if (group == NULL)
        return NULL;
    look_at_tail(ring, group);
    return group->head == group->tail ? NULL : &group->ring[group->head & (group->entries - 1)];
}

const struct io_uring_buf *kring_take_buffer(struct kring *ring, unsigned index)
{
    const struct io_uring_buf *entry = kring_peek_buffer(ring, index);
    if (entry != NULL) {
        struct kring_group *group = ring->groups[index];
        group->head++;
        group->out[entry->bid] = true;
    }
    return entry;
}
