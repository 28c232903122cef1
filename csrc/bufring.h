/*
 * A provided-buffer ring: memory from which the kernel picks at completion.
 */
#ifndef UT_BUFRING_H
#define UT_BUFRING_H

#include "ring.h"

struct ut_bufring {
    struct io_uring_buf *entries_memory;
    size_t entries_size; /* bytes of entries_memory */
    unsigned entries;    /* a power of two */
    uint16_t bgid;
    uint16_t tail; /* ours; the kernel sees it after a commit */
    uint32_t buffer_size;
    uint32_t pool_offset; /* bytes from the pool's start to buffer 0 */
    char *buffers;
    unsigned leased;
};

/* Registers `entries` buffers of `buffer_size` bytes, which start at `pool` +
 * `pool_offset`, as group `bgid`, and fills the ring. Returns 0 or -errno. */
int ut_bufring_open(struct ut_bufring *bufring, struct ut_ring *ring, uint16_t bgid,
                    unsigned entries, uint32_t buffer_size, char *pool, uint32_t pool_offset);

/* Unmaps the ring's entries; the ring itself must be closed already. */
void ut_bufring_close(struct ut_bufring *bufring, const struct ut_kernel *kernel);

/* The kernel has put data into buffer `bid`: ours until it is returned. Gives
 * its place as an offset into the pool. */
uint32_t ut_bufring_lease(struct ut_bufring *bufring, uint16_t bid);

/* Puts the buffer back; the kernel may use it after the next commit. */
void ut_bufring_return(struct ut_bufring *bufring, uint32_t pool_offset);
void ut_bufring_commit(struct ut_bufring *bufring);

#endif
