/* The fake's memory, set-up and registrations; its operations are in fake_requests.c, the
 * calls beside the ring in fake_beside.c. */
#include "fake_kernel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "draw.h"

#define RING_FD 1000007 /* no process has it */
#define MAPPINGS_MAX 64

struct mapping {
    void *address;
    size_t size;
    bool of_ring; /* belongs to the kernel; the others are the application's */
};

struct fake fake;
struct kring fake_ring;
static struct mapping mappings[MAPPINGS_MAX];

void fake_fault(const char *what)
{
    fake.faults++;
    if (!fake.faults_expected)
        fprintf(stderr, "fake kernel: fault: %s\n", what);
}

unsigned fake_draw(unsigned below)
{
    return draw_below(&fake.random, below);
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

static int fake_map(void **address, size_t size, int ring_fd, uint64_t offset)
{
    if (fails())
        return fake.fail_error;
    if (ring_fd != RING_FD || !fake_ring.open)
        return -EBADF;
    *address = kring_part(&fake_ring, size, offset);
    if (*address == NULL)
        return -EINVAL;
    add_mapping(*address, size, true);
    return 0;
}

static int fake_allocate(void **address, size_t size, int dontfork)
{
    (void)dontfork;
    if (fails())
        return fake.fail_error;
    *address = kring_pages(size);
    add_mapping(*address, size, false);
    return 0;
}

/* The ring's memory lives as long as its fd or a mapping. */
static void free_ring_memory(void)
{
    bool is_mapped = fake_ring.rings != NULL && (find_mapping(fake_ring.rings) != NULL ||
                                                 find_mapping(fake_ring.sqes) != NULL);
    if (!fake_ring.open && !is_mapped && fake_ring.rings != NULL)
        kring_free_memory(&fake_ring);
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
    params->features = fake.features;
    kring_free(&fake_ring);
    kring_open(&fake_ring, entries, params, fake_fault);
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

static int fake_register(int ring_fd, unsigned opcode, void *arg, unsigned nr_args)
{
    if (fails())
        return fake.fail_error;
    if (ring_fd != RING_FD || !fake_ring.open)
        return -EBADF;
    return kring_register(&fake_ring, opcode, arg, nr_args, fake.opcodes_missing);
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
    kring_free(&fake_ring);
    memset(&fake, 0, sizeof fake);
    fake.now_ns = 1000000000;
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
