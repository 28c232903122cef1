#define _GNU_SOURCE
#include "kernel.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* One number on every architecture (Linux's tables were unified before 5.1). */
#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

static int answer(long result)
{
    return result < 0 ? -errno : (int)result;
}

static int real_setup(unsigned entries, struct io_uring_params *params)
{
    return answer(syscall(__NR_io_uring_setup, entries, params));
}

static int real_enter(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                      const void *arg, size_t arg_size)
{
    return answer(syscall(__NR_io_uring_enter, ring_fd, to_submit, min_complete, flags, arg,
                          arg_size));
}

static int real_register(int ring_fd, unsigned opcode, void *arg, unsigned nr_args)
{
    return answer(syscall(__NR_io_uring_register, ring_fd, opcode, arg, nr_args));
}

static int keep_from_children(void **address, size_t size, int dontfork)
{
    if (!dontfork || madvise(*address, size, MADV_DONTFORK) == 0)
        return 0;
    int error = -errno;
    munmap(*address, size);
    *address = NULL;
    return error;
}

static int real_map(void **address, size_t size, int ring_fd, uint64_t offset)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_fd,
                        (off_t)offset);
    if (memory == MAP_FAILED)
        return -errno;
    *address = memory;
    return keep_from_children(address, size, 1);
}

static int real_allocate(void **address, size_t size, int dontfork)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    *address = memory;
    return keep_from_children(address, size, dontfork);
}

static void real_unmap(void *address, size_t size)
{
    munmap(address, size);
}

static void real_close(int fd)
{
    close(fd); /* Linux has closed it also where it says EINTR: never again. */
}

static uint64_t real_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* 5.14; parisc and sparc have other numbers, and get no answer */
#endif

static uint64_t real_network_of(int fd)
{
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    return getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) == 0 ? cookie : 0;
}

const struct ut_kernel ut_kernel_real = {
    .setup = real_setup,
    .enter = real_enter,
    .register_op = real_register,
    .map = real_map,
    .allocate = real_allocate,
    .unmap = real_unmap,
    .close_fd = real_close,
    .now_ns = real_now_ns,
    .network_of = real_network_of,
};

const struct ut_kernel *ut_kernel_get_real(void)
{
    return &ut_kernel_real;
}

unsigned ut_fork_count;

static void after_fork_in_child(void)
{
    ut_fork_count++;
}

static void register_fork_handler(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

void ut_kernel_watch_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork_handler);
}
