/* The fake's memory, set-up and registrations; its operations are in fake_requests.c, the
 * calls beside the ring in fake_beside.c. */
#include "fake_kernel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

#define RING_FD 1000007 /* no process has it */
#define PAGE 4096u
#define MAPPINGS_MAX 64

struct mapping {
    void *address;
    size_t size;
    bool of_ring; /* belongs to the kernel; the others are the application's */
};

struct fake fake;
struct fake_ring fake_ring;
static struct mapping mappings[MAPPINGS_MAX];

void fake_fault(const char *what)
{
    fake.faults++;
    if (!fake.faults_expected)
        fprintf(stderr, "fake kernel: fault: %s\n", what);
}

unsigned fake_draw(unsigned below)
{
    /* xorshift64: the same numbers from the same seed on every machine. */
    fake.random ^= fake.random << 13;
    fake.random ^= fake.random >> 7;
    fake.random ^= fake.random << 17;
    return (unsigned)(fake.random >> 33) % below;
}

unsigned *fake_at(uint32_t offset)
{
    return (unsigned *)(fake_ring.rings + offset);
}

/* ---- memory --------------------------------------------------------------- */

static struct mapping *find_mapping(void *address)
{
    for (unsigned i = 0; i < MAPPINGS_MAX; i++)
        if (mappings[i].address == address)
            return &mappings[i];
    return NULL;
}

static void add_mapping(void *address, size_t size, bool of_ring)
{
    struct mapping *mapping = find_mapping(NULL);
    if (mapping == NULL)
        abort();
    *mapping = (struct mapping){address, size, of_ring};
    fake.mappings++;
}

static bool fails(void)
{
    return ++fake.calls == fake.fail_call;
}

static void *pages(size_t size)
{
    size = (size + PAGE - 1) / PAGE * PAGE;
    void *memory = aligned_alloc(PAGE, size); /* not one of the allocators that tests fail */
    if (memory == NULL)
        abort();
    memset(memory, 0, size);
    return memory;
}

static int fake_map(void **address, size_t size, int ring_fd, uint64_t offset)
{
    if (fails())
        return fake.fail_error;
    if (ring_fd != RING_FD || !fake_ring.open)
        return -EBADF;
    size_t limit = offset == IORING_OFF_SQ_RING ? fake_ring.rings_size
                                                : fake_ring.sq_entries * sizeof *fake_ring.sqes;
    if ((offset != IORING_OFF_SQ_RING && offset != IORING_OFF_SQES) || size > limit) {
        fake_fault("map beyond the ring");
        return -EINVAL;
    }
    *address = offset == IORING_OFF_SQ_RING ? fake_ring.rings : (char *)fake_ring.sqes;
    add_mapping(*address, size, true);
    return 0;
}

static int fake_allocate(void **address, size_t size, int dontfork)
{
    (void)dontfork;
    if (fails())
        return fake.fail_error;
    *address = pages(size);
    add_mapping(*address, size, false);
    return 0;
}

/* The ring's memory lives as long as its fd or a mapping. */
static void free_ring_memory(void)
{
    if (fake_ring.open)
        return;
    if (fake_ring.rings != NULL && find_mapping(fake_ring.rings) == NULL) {
        free(fake_ring.rings);
        fake_ring.rings = NULL;
    }
    if (fake_ring.sqes != NULL && find_mapping(fake_ring.sqes) == NULL) {
        free(fake_ring.sqes);
        fake_ring.sqes = NULL;
    }
}

static void fake_unmap(void *address, size_t size)
{
    struct mapping *mapping = address != NULL ? find_mapping(address) : NULL;
    if (mapping == NULL || mapping->size != size) {
        fake_fault("unmap of what is not mapped");
        return;
    }
    bool of_ring = mapping->of_ring;
    mapping->address = NULL;
    fake.mappings--;
    if (of_ring)
        free_ring_memory();
    else
        free(address);
}

unsigned fake_reclaim(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < MAPPINGS_MAX; i++) {
        if (mappings[i].address != NULL) {
            fake_unmap(mappings[i].address, mappings[i].size);
            count++;
        }
    }
    return count;
}

/* ---- set-up --------------------------------------------------------------- */

static unsigned power_of_two(unsigned count)
{
    unsigned power = 1;
    while (power < count)
        power *= 2;
    return power;
}

static void lay_out(struct io_uring_params *params)
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
    fake_ring.rings_size = sq.array + params->sq_entries * sizeof(unsigned);
    fake_ring.rings = pages(fake_ring.rings_size);
    fake_ring.sqes = pages(params->sq_entries * sizeof *fake_ring.sqes);
    *fake_at(sq.ring_mask) = params->sq_entries - 1;
    *fake_at(sq.ring_entries) = params->sq_entries;
    *fake_at(cq.ring_mask) = params->cq_entries - 1;
    *fake_at(cq.ring_entries) = params->cq_entries;
    /* Close to the wrap of 32 bits, which a real ring reaches after days. */
    *fake_at(sq.head) = *fake_at(sq.tail) = UINT32_MAX - 2;
    *fake_at(cq.head) = *fake_at(cq.tail) = UINT32_MAX - 4;
}

static int fake_setup(unsigned entries, struct io_uring_params *params)
{
    if (fails())
        return fake.fail_error;
    if (fake_ring.open)
        return -EMFILE;
    if (entries == 0 || (params->flags & fake.setup_flags_refused))
        return -EINVAL;
    if (fake.setup_entries_max > 0 && entries > fake.setup_entries_max)
        return -ENOMEM;
    params->sq_entries = power_of_two(entries);
    params->cq_entries = params->flags & IORING_SETUP_CQSIZE ? power_of_two(params->cq_entries)
                                                             : 2 * params->sq_entries;
    params->features = fake.features;
    fake_ring.open = true;
    fake_ring.sq_entries = params->sq_entries;
    fake_ring.cq_entries = params->cq_entries;
    fake_ring.setup_flags = params->flags;
    lay_out(params);
    fake_ring.params = *params;
    fake.fds++;
    return RING_FD;
}

static int fake_close(int fd)
{
    if (fd != RING_FD)
        return fake_close_file(fd);
    if (!fake_ring.open) {
        fake_fault("close of what is not open");
        return -EBADF;
    }
    fake_requests_close();
    fake_ring.open = false;
    fake.fds--;
    free_ring_memory();
    return 0;
}

/* ---- registrations -------------------------------------------------------- */

static int register_probe(struct io_uring_probe *probe)
{
    probe->last_op = UT_OPCODES - 1;
    probe->ops_len = UT_OPCODES;
    for (unsigned i = 0; i < UT_OPCODES; i++) {
        probe->ops[i].op = (uint8_t)i;
        probe->ops[i].flags = fake.opcodes_missing >> i & 1 ? 0 : IO_URING_OP_SUPPORTED;
    }
    return 0;
}

static int register_group(const struct io_uring_buf_reg *registration)
{
    if (registration->bgid >= UT_GROUPS || registration->ring_entries > 32768 ||
        power_of_two(registration->ring_entries) != registration->ring_entries ||
        registration->ring_addr % PAGE != 0 || registration->flags != 0)
        return -EINVAL;
    struct fake_group *group = &fake.groups[registration->bgid];
    if (group->ring != NULL)
        return -EEXIST;
    memset(group, 0, sizeof *group);
    group->ring = (struct io_uring_buf *)(uintptr_t)registration->ring_addr;
    group->entries = registration->ring_entries;
    return 0;
}

static int fake_register(int ring_fd, unsigned opcode, void *arg, unsigned nr_args)
{
    if (fails())
        return fake.fail_error;
    if (ring_fd != RING_FD || !fake_ring.open)
        return -EBADF;
    switch (opcode) {
    case IORING_REGISTER_PROBE:
        return nr_args > UT_PROBE_OPS ? -EINVAL : register_probe(arg);
    case IORING_REGISTER_PBUF_RING:
        return nr_args != 1 ? -EINVAL : register_group(arg);
    case IORING_REGISTER_EVENTFD:
        if (fake.event_fd >= 0)
            return -EBUSY;
        fake.event_fd = *(int *)arg;
        return 0;
    case IORING_UNREGISTER_EVENTFD:
        if (fake.event_fd < 0)
            return -ENXIO;
        fake.event_fd = -1;
        return 0;
    default:
        return -EINVAL;
    }
}

/* Looking at the clock takes time, or who looks until it is late would look for ever. */
static uint64_t fake_now_ns(void)
{
    fake_sleep(FAKE_CLOCK_NS);
    return fake.now_ns;
}

const struct ut_kernel ut_kernel_fake = {
    .setup = fake_setup,
    .enter = fake_enter_ring,
    .register_op = fake_register,
    .map = fake_map,
    .allocate = fake_allocate,
    .unmap = fake_unmap,
    .close_fd = fake_close,
    .now_ns = fake_now_ns,
    .sendto = fake_sendto,
    .recvfrom = fake_recvfrom,
    .sendmsg = fake_sendmsg,
    .recvmsg = fake_recvmsg,
    .accept4 = fake_accept4,
    .connect = fake_connect,
    .shutdown = fake_shutdown,
    .getsockopt = fake_getsockopt,
    .setsockopt = fake_setsockopt,
    .getsockname = fake_getsockname,
    .getpeername = fake_getpeername,
    .read = fake_read,
    .write = fake_write,
    .poll = fake_poll,
    .status_flags = fake_status_flags,
    .queued = fake_queued,
    .mode = fake_mode,
};

/* ---- between tests -------------------------------------------------------- */

void fake_reset(void)
{
    if (fake_ring.open) {
        fake_requests_close();
        fake_ring.open = false;
    }
    fake_reclaim();
    free_ring_memory();
    memset(&fake_ring, 0, sizeof fake_ring);
    memset(&fake, 0, sizeof fake);
    fake.now_ns = 1000000000;
    fake.event_fd = -1;
    fake.fail_error = -ENOMEM;
    fake.fallback.delay_ns = FAKE_NEVER;
    fake.features = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE |
                    IORING_FEAT_FAST_POLL | IORING_FEAT_EXT_ARG | IORING_FEAT_NO_IOWAIT;
    fake_requests_reset();
}

void fake_check_books(void)
{
    unsigned faults = fake.faults, mapped = fake.mappings, fds = fake.fds;
    fake_reset();
    CHECK_EQ(faults, 0);
    CHECK_EQ(mapped, 0);
    CHECK_EQ(fds, 0);
}
