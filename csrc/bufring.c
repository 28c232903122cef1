/*
 * A provided-buffer ring, seen from here
 *
 * The kernel takes buffers from the head, we put them back at the tail. Between
 * the two a buffer is leased. With one-shot receives each cqe leases at most one
 * buffer, and the batch of cqes in which it came gives it back: a lease never
 * outlives a tick. A receive for which there is none answers -ENOBUFS. No byte
 * is lost then, the data is still in the socket: it is back-pressure. engine.c
 * makes few such attempts; a multishot receive ends so where its group is dry.
 *
 * Alignment matters more than anything else here. The kernel's copy is 3 to 4
 * times slower into memory that is 16 but not 32 bytes aligned (65,536 bytes:
 * 6.5-9 us at a page's start, 25 us at 0x10), and a large malloc block starts
 * just there. The pool comes from mmap and buffer sizes are multiples of a
 * page, so that each buffer starts on a page.
 *
 * The ring's entries are application memory, not IOU_PBUF_RING_MMAP
 * (CVE-2024-0582), and not inherited by a forked child.
 */
#include "bufring.h"

#include <errno.h>
#include <string.h>

#include "ut_assert.h"

#define BUFFER_ALIGNMENT 4096u

static void add(struct ut_bufring *bufring, uint16_t bid)
{
    struct io_uring_buf *entry =
        &bufring->entries_memory[bufring->tail & (bufring->entries - 1)];
    /* Not the whole struct: entry 0's last field is the ring's tail. */
    entry->addr = (uint64_t)(uintptr_t)(bufring->buffers + (size_t)bid * bufring->buffer_size);
    entry->len = bufring->buffer_size;
    entry->bid = bid;
    bufring->tail++;
}

int ut_bufring_open(struct ut_bufring *bufring, struct ut_ring *ring, uint16_t bgid,
                    unsigned entries, uint32_t buffer_size, char *pool, uint32_t pool_offset)
{
    UT_ASSERT(entries > 0 && entries <= 32768);
    UT_ASSERT((entries & (entries - 1)) == 0);
    UT_ASSERT(buffer_size % BUFFER_ALIGNMENT == 0);
    UT_ASSERT(pool_offset % BUFFER_ALIGNMENT == 0);

    memset(bufring, 0, sizeof *bufring);
    bufring->entries = entries;
    bufring->entries_size = entries * sizeof(struct io_uring_buf);
    bufring->bgid = bgid;
    bufring->buffer_size = buffer_size;
    bufring->pool_offset = pool_offset;
    bufring->buffers = pool + pool_offset;
    void *memory;
    int error = ring->kernel->allocate(&memory, bufring->entries_size, 1);
    if (error < 0)
        return error;
    bufring->entries_memory = memory;

    struct io_uring_buf_reg registration = {
        .ring_addr = (uint64_t)(uintptr_t)memory,
        .ring_entries = entries,
        .bgid = bgid,
    };
    error = ring->kernel->register_op(ring->fd, IORING_REGISTER_PBUF_RING, &registration, 1);
    if (error < 0) {
        ut_bufring_close(bufring, ring->kernel);
        return error;
    }
    for (unsigned bid = 0; bid < entries; bid++)
        add(bufring, (uint16_t)bid);
    ut_bufring_commit(bufring);
    return 0;
}

void ut_bufring_close(struct ut_bufring *bufring, const struct ut_kernel *kernel)
{
    if (bufring->entries_memory != NULL)
        kernel->unmap(bufring->entries_memory, bufring->entries_size);
    bufring->entries_memory = NULL;
}

uint32_t ut_bufring_lease(struct ut_bufring *bufring, uint16_t bid)
{
    UT_ASSERT(bid < bufring->entries);
    UT_ASSERT(bufring->leased < bufring->entries);
    bufring->leased++;
    return bufring->pool_offset + bid * bufring->buffer_size;
}

void ut_bufring_return(struct ut_bufring *bufring, uint32_t pool_offset)
{
    uint32_t bid = (pool_offset - bufring->pool_offset) / bufring->buffer_size;
    UT_ASSERT(bid < bufring->entries);
    UT_ASSERT(bufring->leased > 0);
    bufring->leased--;
    add(bufring, (uint16_t)bid);
}

void ut_bufring_commit(struct ut_bufring *bufring)
{
    /* The kernel's acquire of the tail makes the entries before it visible. */
    __atomic_store_n(&bufring->entries_memory[0].resv, bufring->tail, __ATOMIC_RELEASE);
}
