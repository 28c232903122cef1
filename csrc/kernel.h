/*
 * The kernel seam: every system call of the engine goes through this table.
 *
 * The real kernel stands behind `ut_kernel_real`. Test builds put a scripted
 * one in its place, so that orders which Linux rarely gives (a cancel that
 * comes too late, a short write, an overflowing CQ) can be had on demand.
 *
 * All functions return -errno on failure. None retries: what an error means
 * is decided by the caller, in one place.
 */
#ifndef UT_KERNEL_H
#define UT_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#include "uapi.h"

struct ut_kernel {
    int (*setup)(unsigned entries, struct io_uring_params *params);
    int (*enter)(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                 const void *arg, size_t arg_size);
    int (*register_op)(int ring_fd, unsigned opcode, void *arg, unsigned nr_args);
    /* Maps part of the ring, not inherited by a forked child (MADV_DONTFORK). */
    int (*map)(void **address, size_t size, int ring_fd, uint64_t offset);
    /* Page-aligned anonymous memory; `dontfork` as in map(). */
    int (*allocate)(void **address, size_t size, int dontfork);
    void (*unmap)(void *address, size_t size);
    void (*close_fd)(int fd);
    uint64_t (*now_ns)(void); /* CLOCK_MONOTONIC */
    uint64_t (*network_of)(int fd); /* a socket's: another number for each; 0: unknown */
};

extern const struct ut_kernel ut_kernel_real;
const struct ut_kernel *ut_kernel_get_real(void); /* its address, for cffi */

/*
 * How often this process is a fork of the one that loaded the library. A ring
 * made at another count belongs to the parent: its mappings do not exist here.
 * pthread_atfork keeps it, for the price of a load; getpid(2) is a system call
 * (0.37 us where we measured), too dear for each operation.
 */
extern unsigned ut_fork_count;
void ut_kernel_watch_forks(void);

#endif
