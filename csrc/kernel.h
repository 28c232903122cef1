/*
 * The kernel seam: every system call goes through this table, those of the ring
 * and those that are made beside it (beside.h).
 *
 * The real kernel stands behind `ut_kernel_real`. Tests put a scripted
 * one in its place, so that orders which Linux rarely gives (a cancel that
 * comes too late, a short write, an overflowing CQ) can be had on demand.
 *
 * All functions return -errno on failure. None retries: what an error means
 * is decided by the caller, in one place.
 *
 * What is not in it, and why, is listed in tests/test_kernel_seam.py.
 */
#ifndef UT_KERNEL_H
#define UT_KERNEL_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

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
    int (*close_fd)(int fd);
    uint64_t (*now_ns)(void); /* CLOCK_MONOTONIC */

    /* Beside the ring: each is the system call of its name, with its arguments. A count is an
     * int, because Linux moves less than 2 GiB at once. */
    int (*sendto)(int fd, const void *data, size_t size, int flags, const struct sockaddr *name,
                  socklen_t length);
    int (*recvfrom)(int fd, void *memory, size_t size, int flags, struct sockaddr *name,
                    socklen_t *length);
    int (*sendmsg)(int fd, const struct msghdr *message, int flags);
    int (*recvmsg)(int fd, struct msghdr *message, int flags);
    int (*accept4)(int fd, struct sockaddr *name, socklen_t *length, int flags);
    int (*connect)(int fd, const struct sockaddr *name, socklen_t length);
    int (*shutdown)(int fd, int how);
    int (*getsockopt)(int fd, int level, int option, void *value, socklen_t *length);
    int (*setsockopt)(int fd, int level, int option, const void *value, socklen_t length);
    int (*getsockname)(int fd, struct sockaddr *name, socklen_t *length);
    int (*getpeername)(int fd, struct sockaddr *name, socklen_t *length);
    int (*read)(int fd, void *memory, size_t size);
    int (*write)(int fd, const void *data, size_t size);
    int (*poll)(struct pollfd *files, unsigned count, int timeout_ms);
    int (*status_flags)(int fd); /* fcntl(F_GETFL) */
    int (*queued)(int fd);       /* ioctl(FIONREAD): bytes that can be received */
    int (*mode)(int fd);         /* fstat: st_mode */
};

extern const struct ut_kernel ut_kernel_real;

/* The one that calls beside the ring go to, and that Python opens its rings on; a ring keeps
 * the one that it was opened on. Written by tests alone. */
extern const struct ut_kernel *ut_kernel_in_use;

/*
 * How often this process is a fork of the one that loaded the library. A ring
 * made at another count belongs to the parent: its mappings do not exist here.
 * pthread_atfork keeps it, for the price of a load; getpid(2) is a system call
 * (0.37 us where we measured), too dear for each operation.
 */
extern unsigned ut_fork_count;
void ut_kernel_watch_forks(void);

#endif
