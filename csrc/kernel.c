#define _GNU_SOURCE
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
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

static int real_close(int fd)
{
    return answer(close(fd)); /* Linux has closed it also where it says EINTR: never again. */
}

static uint64_t real_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- beside the ring ------------------------------------------------------ */

static int real_sendto(int fd, const void *data, size_t size, int flags,
                       const struct sockaddr *name, socklen_t length)
{
    return answer(sendto(fd, data, size, flags, name, length));
}

static int real_recvfrom(int fd, void *memory, size_t size, int flags, struct sockaddr *name,
                         socklen_t *length)
{
    return answer(recvfrom(fd, memory, size, flags, name, length));
}

static int real_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return answer(sendmsg(fd, message, flags));
}

static int real_recvmsg(int fd, struct msghdr *message, int flags)
{
    return answer(recvmsg(fd, message, flags));
}

static int real_accept4(int fd, struct sockaddr *name, socklen_t *length, int flags)
{
    return answer(accept4(fd, name, length, flags));
}

static int real_connect(int fd, const struct sockaddr *name, socklen_t length)
{
    return answer(connect(fd, name, length));
}

static int real_shutdown(int fd, int how)
{
    return answer(shutdown(fd, how));
}

static int real_getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    return answer(getsockopt(fd, level, option, value, length));
}

static int real_setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
    return answer(setsockopt(fd, level, option, value, length));
}

static int real_getsockname(int fd, struct sockaddr *name, socklen_t *length)
{
    return answer(getsockname(fd, name, length));
}

static int real_getpeername(int fd, struct sockaddr *name, socklen_t *length)
{
    return answer(getpeername(fd, name, length));
}

static int real_read(int fd, void *memory, size_t size)
{
    return answer(read(fd, memory, size));
}

static int real_write(int fd, const void *data, size_t size)
{
    return answer(write(fd, data, size));
}

static int real_poll(struct pollfd *files, unsigned count, int timeout_ms)
{
    return answer(poll(files, count, timeout_ms));
}

static int real_status_flags(int fd)
{
    return answer(fcntl(fd, F_GETFL));
}

static int real_queued(int fd)
{
    int bytes = 0;
    int error = answer(ioctl(fd, FIONREAD, &bytes));
    return error < 0 ? error : bytes;
}

static int real_mode(int fd)
{
    struct stat status;
    int error = answer(fstat(fd, &status));
    return error < 0 ? error : (int)status.st_mode;
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
    .sendto = real_sendto,
    .recvfrom = real_recvfrom,
    .sendmsg = real_sendmsg,
    .recvmsg = real_recvmsg,
    .accept4 = real_accept4,
    .connect = real_connect,
    .shutdown = real_shutdown,
    .getsockopt = real_getsockopt,
    .setsockopt = real_setsockopt,
    .getsockname = real_getsockname,
    .getpeername = real_getpeername,
    .read = real_read,
    .write = real_write,
    .poll = real_poll,
    .status_flags = real_status_flags,
    .queued = real_queued,
    .mode = real_mode,
};

const struct ut_kernel *ut_kernel_in_use = &ut_kernel_real;

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
