/*
 * What the kernel works on is watched
 *
 * Whoever gives memory to the kernel must leave it alone until the request's last cqe. If he
 * does not, nothing may be seen of it for years: the kernel writes into what is somebody
 * else's by then, or sends what is. So between the engine and the kernel stands another one,
 * by the table that all calls go through. The product is the same to the last byte.
 *
 * - Each request has memory of its own, between protected pages (guard_memory.h): before it is
 *   submitted, all that its sqe points at (data, names, control data, the vectors, a message's
 *   header) is copied, and the sqe is made to point at the copies. With its last cqe what the
 *   kernel has written is copied back, where the engine and its user still wait for it; and
 *   then the copies are protected, for ever. A kernel that writes later has -EFAULT.
 * - Each provided buffer, too, each time that it is put into its ring. The place in the pool
 *   that it stands for is protected meanwhile: so it can be read from its cqe to its return,
 *   and at no other time.
 * - Memory of ut_memory_new() and ut_message_new() (which are the callers of posix_memalign(3))
 *   lies between protected pages as well, and its address is not given again.
 * - Memory that is freed, or unpinned, before its operation's last cqe is a fault at that
 *   moment (guard_operations.c). If the kernel has a request that works on it, the copy is
 *   protected, so that it says -EFAULT. Any -EFAULT of the kernel is a fault.
 * - A `bytes` is not pinned, but kept by whoever sends it. Since a freed one is overwritten
 *   (PYTHONMALLOC=debug), it must be what it was when its request was made, at the last cqe.
 *
 * The kernel behind it is the machine's, or another that is named (guard_over): the simulated one
 * is watched in the same way. A ring keeps the one that it was made by.
 *
 * The rings themselves stay: they are shared for as long as there is a ring. What is closed
 * with requests in it is watched all the same: the kernel ends them when it likes, and their
 * memory is to be given up. In a forked child there is no request.
 *
 * What it costs: two or three system calls and a copy for each request. So no request sends
 * more than 512 KiB of a stream: a short send, as the kernel may make it at any time.
 */
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../kernel.h"
#include "guard_memory.h"
#include "guard_operations.h"

#define BUCKETS 256u
#define GROUPS 8u
#define PAGE 4096u
#define UNWRITTEN 0xa5 /* a byte that the kernel has not written */
/* Bytes. A stream takes a part of what is more: else each part would cost a copy of the whole. */
#define SHORT (512u << 10)

enum direction { READ_BY_KERNEL, WRITTEN_BY_KERNEL, BOTH };

/* One piece of memory of a request. */
struct part {
    char *origin, *copy;
    size_t size;
    enum direction direction;
    bool data;  /* is moved, in the order of the parts */
    bool fixed; /* must not change meanwhile */
    bool gone;  /* its origin was given up too early */
};

struct request {
    struct request *next;
    uint64_t user_data;
    uint8_t opcode;
    uint16_t bgid;
    unsigned count;
    struct part parts[];
};

struct buffer {
    char *origin, *copy; /* copy: NULL if the kernel does not have it */
    uint32_t size;
};

struct group {
    struct io_uring_buf *entries;
    unsigned count;
    uint16_t tail;
    struct buffer buffers[];
};

struct guarded {
    struct guarded *next;
    const struct ut_kernel *kernel; /* that has it */
    int fd;
    struct io_uring_params params;
    char *rings;
    struct io_uring_sqe *sqes;
    unsigned sq_seen, cq_seen;
    struct request *requests[BUCKETS];
    struct group *groups[GROUPS];
};

struct pin {
    struct pin *next;
    const char *memory;
    size_t size;
};

static struct ut_kernel guard_kernel, guard_other;
static const struct ut_kernel *behind = &ut_kernel_real;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct guarded *rings;
static struct request *orphans; /* of rings that were closed */
static struct pin *pins[BUCKETS];
static struct guard_counts counts;

void guard_lock(void)
{
    pthread_mutex_lock(&lock);
}

void guard_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

void guard_fault(const char *format, ...)
{
    va_list arguments;
    counts.faults++;
    va_start(arguments, format);
    guard_report_list(format, arguments);
    va_end(arguments);
}

static struct guarded *ring_of(int fd)
{
    struct guarded *ring = rings;
    while (ring != NULL && ring->fd != fd)
        ring = ring->next;
    return ring;
}

/* The kernel that has a ring, or that any other descriptor is for. */
static const struct ut_kernel *kernel_of(const struct guarded *ring)
{
    return ring != NULL ? ring->kernel : behind;
}

/* ---- pins ------------------------------------------------------------------------- */

static struct pin **pin_at(const void *memory)
{
    struct pin **at = &pins[((uintptr_t)memory >> 4) % BUCKETS];
    while (*at != NULL && (*at)->memory != memory)
        at = &(*at)->next;
    return at;
}

bool guard_is_pinned(const void *memory, size_t size)
{
    const char *at = memory;
    for (unsigned i = 0; i < BUCKETS; i++)
        for (struct pin *pin = pins[i]; pin != NULL; pin = pin->next)
            if (at >= pin->memory && at < pin->memory + pin->size &&
                size <= (size_t)(pin->memory + pin->size - at))
                return true;
    return false;
}

static void give_up(struct request *request, const char *memory, size_t size, const char *how)
{
    for (unsigned i = 0; i < request->count; i++) {
        struct part *part = &request->parts[i];
        if (part->gone || part->origin >= memory + size || memory >= part->origin + part->size)
            continue;
        if (!guard_holds(memory) && (part->fixed || guard_is_pinned(part->origin, part->size)))
            continue; /* others send from it, too: a `bytes` that they keep, or by their own pin */
        guard_fault("memory of %zu bytes was %s while the kernel works on it: opcode %u, "
                    "user_data %#llx",
                    size, how, request->opcode, (unsigned long long)request->user_data);
        part->gone = true;
        guard_retire(part->copy);
    }
}

/* The engine or its user lets go of memory: nobody may be at work on it. */
static void let_go(const void *memory, size_t size, const char *how)
{
    guard_operations_let_go(memory, size, how);
    for (struct guarded *ring = rings; ring != NULL; ring = ring->next)
        for (unsigned i = 0; i < BUCKETS; i++)
            for (struct request *request = ring->requests[i]; request != NULL;
                 request = request->next)
                give_up(request, memory, size, how);
    for (struct request *request = orphans; request != NULL; request = request->next)
        give_up(request, memory, size, how);
}

void guard_pin(const void *memory, size_t size)
{
    guard_lock();
    struct pin *pin = guard_own(sizeof *pin);
    pin->memory = memory;
    pin->size = size;
    struct pin **first = &pins[((uintptr_t)memory >> 4) % BUCKETS];
    pin->next = *first;
    *first = pin;
    guard_unlock();
}

void guard_unpin(const void *memory)
{
    guard_lock();
    struct pin **at = pin_at(memory), *pin = *at;
    if (pin != NULL) {
        *at = pin->next;
        let_go(memory, pin->size, "unpinned");
        guard_drop(pin);
    }
    guard_unlock();
}

/* ---- allocations of the engine ------------------------------------------------------ */

void __real_free(void *memory);
void __wrap_free(void *memory);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t size);

int __wrap_posix_memalign(void **memory, size_t alignment, size_t size)
{
    guard_lock();
    *memory = guard_take(size, alignment);
    guard_unlock();
    return 0;
}

void __wrap_free(void *memory)
{
    if (!guard_holds(memory)) {
        __real_free(memory);
        return;
    }
    guard_lock();
    if (guard_is_open(memory)) {
        let_go(memory, guard_size(memory), "freed");
        guard_retire(memory);
    } else {
        guard_fault("memory was freed twice");
    }
    guard_unlock();
}

/* ---- a request begins ----------------------------------------------------------------- */

static char *add_part(struct request *request, void *origin, size_t size,
                      enum direction direction)
{
    if (origin == NULL || size == 0)
        return origin;
    struct part *part = &request->parts[request->count++];
    *part = (struct part){.origin = origin, .size = size, .direction = direction};
    part->copy = guard_take(size, 1);
    if (guard_holds(origin) && !guard_is_open(origin)) {
        guard_fault("request %#llx of opcode %u begins on memory that was freed",
                    (unsigned long long)request->user_data, request->opcode);
        part->gone = true;
        guard_retire(part->copy);
    } else if (direction == WRITTEN_BY_KERNEL) {
        memset(part->copy, UNWRITTEN, size);
    } else {
        memcpy(part->copy, origin, size);
    }
    return part->copy;
}

static char *add_data(struct request *request, void *origin, size_t size, enum direction direction)
{
    unsigned before = request->count;
    char *copy = add_part(request, origin, size, direction);
    if (request->count > before) {
        struct part *part = &request->parts[before];
        part->data = true;
        part->fixed = direction == READ_BY_KERNEL && !guard_is_pinned(origin, part->size);
    }
    return copy;
}

static struct msghdr *add_message(struct request *request, struct msghdr *message, bool receives)
{
    enum direction direction = receives ? WRITTEN_BY_KERNEL : READ_BY_KERNEL;
    enum direction beside = receives ? BOTH : READ_BY_KERNEL;
    struct msghdr *header = (void *)add_part(request, message, sizeof *message, READ_BY_KERNEL);
    if (request->parts[0].gone)
        return header;
    struct iovec *vectors = (void *)add_part(
        request, message->msg_iov, message->msg_iovlen * sizeof *vectors, READ_BY_KERNEL);
    header->msg_name = add_part(request, message->msg_name, message->msg_namelen, beside);
    header->msg_control = add_part(request, message->msg_control, message->msg_controllen, beside);
    header->msg_iov = vectors;
    for (size_t i = 0; i < message->msg_iovlen; i++)
        vectors[i].iov_base = add_data(request, message->msg_iov[i].iov_base,
                                       message->msg_iov[i].iov_len, direction);
    return header;
}

static struct request *new_request(const struct io_uring_sqe *sqe, size_t parts)
{
    struct request *request = guard_own(sizeof *request + parts * sizeof request->parts[0]);
    request->user_data = sqe->user_data;
    request->opcode = sqe->opcode;
    request->bgid = sqe->buf_group;
    return request;
}

/* Whether a send may be short. */
static bool is_stream(int fd)
{
    int type;
    socklen_t length = sizeof type;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type == SOCK_STREAM;
}

#define MESSAGE_PARTS 4 /* beside its data */

/* Has the sqe point at copies. NULL if it points at nothing. */
static struct request *begin(struct io_uring_sqe *sqe)
{
    struct request *request;
    void *memory = (void *)(uintptr_t)sqe->addr;
    switch (sqe->opcode) {
    case IORING_OP_NOP:
    case IORING_OP_POLL_ADD:
    case IORING_OP_ASYNC_CANCEL:
        return NULL;
    case IORING_OP_RECV:
    case IORING_OP_READ:
        request = new_request(sqe, 1); /* also of one that gets a buffer: whose it is */
        if (!(sqe->flags & IOSQE_BUFFER_SELECT))
            memory = add_data(request, memory, sqe->len, WRITTEN_BY_KERNEL);
        break;
    case IORING_OP_SEND:
    case IORING_OP_WRITE:
        request = new_request(sqe, 1);
        if (sqe->len > SHORT && is_stream(sqe->fd))
            sqe->len = SHORT;
        memory = add_data(request, memory, sqe->len, READ_BY_KERNEL);
        break;
    case IORING_OP_RECVMSG:
    case IORING_OP_SENDMSG: {
        struct msghdr *message = memory;
        bool lost = guard_holds(message) && !guard_is_open(message);
        request = new_request(sqe, MESSAGE_PARTS + (lost ? 0 : message->msg_iovlen));
        memory = add_message(request, message, sqe->opcode == IORING_OP_RECVMSG);
        break;
    }
    case IORING_OP_ACCEPT: {
        if (memory == NULL)
            return NULL;
        request = new_request(sqe, 2);
        socklen_t *length = (void *)(uintptr_t)sqe->off;
        bool lost = guard_holds(length) && !guard_is_open(length);
        memory = add_part(request, memory, lost ? 1 : *length, BOTH);
        sqe->off = (uint64_t)(uintptr_t)add_part(request, length, sizeof *length, BOTH);
        break;
    }
    case IORING_OP_CONNECT:
        request = new_request(sqe, 1);
        memory = add_part(request, memory, sqe->off, READ_BY_KERNEL);
        break;
    case IORING_OP_TIMEOUT:
        request = new_request(sqe, 1);
        memory = add_part(request, memory, sizeof(struct ut_timespec), READ_BY_KERNEL);
        break;
    default:
        guard_report("what an sqe of opcode %u points at is not known here", sqe->opcode);
        abort();
    }
    sqe->addr = (uint64_t)(uintptr_t)memory;
    counts.requests++;
    return request;
}

static struct request **request_at(struct guarded *ring, uint64_t user_data)
{
    struct request **at = &ring->requests[user_data % BUCKETS];
    while (*at != NULL && (*at)->user_data != user_data)
        at = &(*at)->next;
    return at;
}

static unsigned *shared(const struct guarded *ring, uint32_t offset)
{
    return (unsigned *)(ring->rings + offset);
}

static void begin_requests(struct guarded *ring)
{
    unsigned tail = *shared(ring, ring->params.sq_off.tail);
    unsigned mask = *shared(ring, ring->params.sq_off.ring_mask);
    for (; ring->sq_seen != tail; ring->sq_seen++) {
        struct io_uring_sqe *sqe = &ring->sqes[ring->sq_seen & mask];
        struct request *request = begin(sqe);
        if (request == NULL)
            continue;
        struct request **at = request_at(ring, request->user_data);
        if (*at != NULL)
            guard_fault("two requests of user_data %#llx, of opcodes %u and %u, are in flight",
                        (unsigned long long)request->user_data, (*at)->opcode, request->opcode);
        request->next = *at;
        *at = request;
    }
}

/* ---- provided buffers -------------------------------------------------------------------- */

static void protect(const struct buffer *buffer, int protection)
{
    if (mprotect(buffer->origin, buffer->size, protection) != 0) {
        guard_report("a buffer cannot be protected: errno %d", errno);
        abort();
    }
}

/* The kernel gets what was put into the buffer rings, each at another address. */
static void give_buffers(struct guarded *ring)
{
    for (unsigned i = 0; i < GROUPS; i++) {
        struct group *group = ring->groups[i];
        if (group == NULL)
            continue;
        uint16_t tail = group->entries[0].resv;
        for (; group->tail != tail; group->tail++) {
            struct io_uring_buf *entry = &group->entries[group->tail & (group->count - 1)];
            struct buffer *buffer = &group->buffers[entry->bid];
            if (buffer->copy != NULL)
                guard_fault("buffer %u of group %u was put back, and the kernel has it", entry->bid,
                            i);
            buffer->origin = (char *)(uintptr_t)entry->addr;
            buffer->size = entry->len;
            buffer->copy = guard_take(entry->len, 1);
            entry->addr = (uint64_t)(uintptr_t)buffer->copy;
            protect(buffer, PROT_NONE);
        }
    }
}

static void take_buffer(struct guarded *ring, unsigned bgid, unsigned bid)
{
    struct group *group = bgid < GROUPS ? ring->groups[bgid] : NULL;
    struct buffer *buffer = group != NULL && bid < group->count ? &group->buffers[bid] : NULL;
    if (buffer == NULL || buffer->copy == NULL) {
        guard_fault("the kernel has filled buffer %u of group %u, which is not its own", bid, bgid);
        return;
    }
    protect(buffer, PROT_READ | PROT_WRITE);
    memcpy(buffer->origin, buffer->copy, buffer->size);
    guard_retire(buffer->copy);
    buffer->copy = NULL;
    counts.buffers++;
}

/* ---- a request ends ------------------------------------------------------------------------ */

static void bring_back(const struct request *request, size_t left)
{
    for (unsigned i = 0; i < request->count; i++) {
        const struct part *part = &request->parts[i];
        size_t size = part->data && part->size > left ? left : part->size;
        if (part->data)
            left -= size;
        if (!part->gone && part->direction != READ_BY_KERNEL)
            memcpy(part->origin, part->copy, size);
    }
    if (request->opcode == IORING_OP_RECVMSG && !request->parts[0].gone) {
        struct msghdr *message = (void *)request->parts[0].origin;
        const struct msghdr *copy = (void *)request->parts[0].copy;
        message->msg_namelen = copy->msg_namelen;
        message->msg_controllen = copy->msg_controllen;
        message->msg_flags = copy->msg_flags;
    }
}

static void end(struct request *request)
{
    for (unsigned i = 0; i < request->count; i++) {
        const struct part *part = &request->parts[i];
        if (part->gone)
            continue;
        if (part->fixed && memcmp(part->origin, part->copy, part->size) != 0)
            guard_fault("what request %#llx of opcode %u was to send has changed meanwhile",
                        (unsigned long long)request->user_data, request->opcode);
        guard_retire(part->copy);
    }
    guard_drop(request);
}

static void take_cqes(struct guarded *ring)
{
    unsigned tail = __atomic_load_n(shared(ring, ring->params.cq_off.tail), __ATOMIC_ACQUIRE);
    unsigned mask = *shared(ring, ring->params.cq_off.ring_mask);
    const struct io_uring_cqe *cqes = (void *)(ring->rings + ring->params.cq_off.cqes);
    for (; ring->cq_seen != tail; ring->cq_seen++) {
        const struct io_uring_cqe *cqe = &cqes[ring->cq_seen & mask];
        struct request **at = request_at(ring, cqe->user_data), *request = *at;
        if (cqe->res == -EFAULT)
            guard_fault("request %#llx of opcode %d was answered -EFAULT",
                        (unsigned long long)cqe->user_data, request != NULL ? request->opcode : -1);
        if (request == NULL)
            continue;
        if (cqe->flags & IORING_CQE_F_BUFFER)
            take_buffer(ring, request->bgid, cqe->flags >> IORING_CQE_BUFFER_SHIFT);
        if (cqe->res >= 0)
            bring_back(request, (size_t)cqe->res);
        if (!(cqe->flags & IORING_CQE_F_MORE)) {
            *at = request->next;
            end(request);
        }
    }
}

/* ---- the table --------------------------------------------------------------------------------- */

static int guard_setup(unsigned entries, struct io_uring_params *params)
{
    const struct ut_kernel *kernel = behind;
    int fd = kernel->setup(entries, params);
    if (fd < 0)
        return fd;
    struct guarded *ring = guard_own(sizeof *ring);
    ring->kernel = kernel;
    ring->fd = fd;
    ring->params = *params;
    guard_lock();
    ring->next = rings;
    rings = ring;
    guard_unlock();
    return fd;
}

static struct guarded *locked_ring_of(int fd)
{
    guard_lock();
    struct guarded *ring = ring_of(fd);
    guard_unlock();
    return ring; /* only its own thread closes it */
}

static int guard_map(void **address, size_t size, int ring_fd, uint64_t offset)
{
    struct guarded *ring = locked_ring_of(ring_fd);
    int error = kernel_of(ring)->map(address, size, ring_fd, offset);
    guard_lock();
    if (error == 0 && ring != NULL && offset == IORING_OFF_SQ_RING) {
        ring->rings = *address;
        ring->sq_seen = *shared(ring, ring->params.sq_off.tail);
        ring->cq_seen = *shared(ring, ring->params.cq_off.tail);
    } else if (error == 0 && ring != NULL && offset == IORING_OFF_SQES) {
        ring->sqes = *address;
    }
    guard_unlock();
    return error;
}

static int guard_register(int ring_fd, unsigned opcode, void *arg, unsigned nr_args)
{
    struct guarded *ring = locked_ring_of(ring_fd);
    int result = kernel_of(ring)->register_op(ring_fd, opcode, arg, nr_args);
    if (result < 0 || opcode != IORING_REGISTER_PBUF_RING)
        return result;
    const struct io_uring_buf_reg *registration = arg;
    unsigned count = registration->ring_entries;
    guard_lock();
    if (ring != NULL && registration->bgid < GROUPS) {
        struct group *group = guard_own(sizeof *group + count * sizeof group->buffers[0]);
        group->entries = (void *)(uintptr_t)registration->ring_addr;
        group->count = count;
        ring->groups[registration->bgid] = group;
    }
    guard_unlock();
    return result;
}

static int guard_enter(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                       const void *arg, size_t arg_size)
{
    guard_lock();
    struct guarded *ring = ring_of(ring_fd);
    bool is_whole = ring != NULL && ring->rings != NULL && ring->sqes != NULL;
    if (is_whole) {
        take_cqes(ring);
        give_buffers(ring);
        begin_requests(ring);
    }
    guard_unlock();
    int result =
        kernel_of(ring)->enter(ring_fd, to_submit, min_complete, flags, arg, arg_size);
    if (is_whole) { /* only its own thread closes it */
        int error = errno;
        guard_lock();
        take_cqes(ring);
        guard_unlock();
        errno = error;
    }
    return result;
}

/* What is in flight stays with the kernel, until it likes; else nothing does. */
static void forget(struct guarded *ring)
{
    bool idle = true;
    for (unsigned i = 0; i < BUCKETS; i++)
        idle = idle && ring->requests[i] == NULL;
    for (unsigned i = 0; i < GROUPS; i++)
        for (unsigned bid = 0; idle && ring->groups[i] != NULL && bid < ring->groups[i]->count;
             bid++)
            if (ring->groups[i]->buffers[bid].copy != NULL)
                guard_retire(ring->groups[i]->buffers[bid].copy);
    for (unsigned i = 0; i < BUCKETS; i++)
        while (ring->requests[i] != NULL) {
            struct request *request = ring->requests[i];
            ring->requests[i] = request->next;
            request->next = orphans;
            orphans = request;
        }
    for (unsigned i = 0; i < GROUPS; i++)
        guard_drop(ring->groups[i]);
    guard_drop(ring);
}

static int guard_close(int fd)
{
    guard_lock();
    struct guarded **at = &rings;
    while (*at != NULL && (*at)->fd != fd)
        at = &(*at)->next;
    struct guarded *ring = *at;
    const struct ut_kernel *kernel = kernel_of(ring);
    if (ring != NULL) {
        *at = ring->next;
        forget(ring);
    }
    guard_unlock();
    return kernel->close_fd(fd);
}

void guard_count(struct guard_counts *out)
{
    guard_lock();
    *out = counts;
    guard_unlock();
}

/* ---- its beginning ------------------------------------------------------------------------------ */

static void before_fork(void)
{
    guard_lock();
}

static void after_fork_in_parent(void)
{
    guard_unlock();
}

static void after_fork_in_child(void)
{
    rings = NULL; /* the kernel has nothing of this process's */
    orphans = NULL;
    guard_operations_forget();
    guard_unlock();
}

static void stand_before(struct ut_kernel *table, const struct ut_kernel *kernel)
{
    *table = *kernel;
    table->setup = guard_setup;
    table->map = guard_map;
    table->register_op = guard_register;
    table->enter = guard_enter;
    table->close_fd = guard_close;
}

const struct ut_kernel *guard_over(const struct ut_kernel *kernel)
{
    guard_lock();
    behind = kernel != NULL ? kernel : &ut_kernel_real;
    if (kernel != NULL)
        stand_before(&guard_other, kernel);
    guard_unlock();
    return kernel != NULL ? &guard_other : &guard_kernel;
}

__attribute__((constructor)) static void stand_before_the_machines(void)
{
    stand_before(&guard_kernel, &ut_kernel_real);
    ut_kernel_in_use = &guard_kernel;
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}
