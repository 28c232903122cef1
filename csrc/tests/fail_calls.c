#include "fail_calls.h"

#include <errno.h>
#include <stddef.h>

#define CALLS (sizeof(struct ut_kernel) / sizeof(void (*)(void)))
#define PLACE(name) (offsetof(struct ut_kernel, name) / sizeof(void (*)(void)))
/* Returns from the function where the call is to fail. */
#define FAIL(name)                           \
    do {                                     \
        int fail_error = count(PLACE(name)); \
        if (fail_error != 0)                 \
            return fail_error;               \
    } while (0)

static const struct ut_kernel *behind;
static unsigned made[CALLS];
static unsigned failed;
static int64_t mapped;
/* What is to fail. */
static struct plan {
    unsigned place, first, times;
    int error;
} plans[FAIL_CALLS_MAX];

void fail_calls_at(unsigned place, unsigned nth, unsigned times, int error)
{
    for (unsigned i = 0; i < FAIL_CALLS_MAX; i++)
        __atomic_store_n(&plans[i].times, 0, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < CALLS; i++)
        __atomic_store_n(&made[i], 0, __ATOMIC_RELAXED);
    __atomic_store_n(&failed, 0, __ATOMIC_RELAXED);
    fail_calls_also(place, nth, times, error);
}

void fail_calls_also(unsigned place, unsigned nth, unsigned times, int error)
{
    struct plan *plan = plans;
    while (__atomic_load_n(&plan->times, __ATOMIC_RELAXED) != 0)
        if (++plan == plans + FAIL_CALLS_MAX)
            return;
    plan->place = place;
    plan->first = nth;
    plan->error = error;
    __atomic_store_n(&plan->times, times, __ATOMIC_RELEASE);
}

unsigned fail_calls_made(unsigned place)
{
    return __atomic_load_n(&made[place], __ATOMIC_RELAXED);
}

unsigned fail_calls_failed(void)
{
    return __atomic_load_n(&failed, __ATOMIC_RELAXED);
}

int64_t fail_calls_mapped(void)
{
    return __atomic_load_n(&mapped, __ATOMIC_RELAXED);
}

/* 0, or what this call is to answer; never `not`. */
static int count_but(unsigned place, int not)
{
    unsigned number = __atomic_add_fetch(&made[place], 1, __ATOMIC_RELAXED);
    for (const struct plan *plan = plans; plan < plans + FAIL_CALLS_MAX; plan++) {
        unsigned times = __atomic_load_n(&plan->times, __ATOMIC_ACQUIRE);
        if (times == 0 || place != plan->place || plan->error == not)
            continue;
        if (number < plan->first || number - plan->first >= times)
            continue;
        __atomic_add_fetch(&failed, 1, __ATOMIC_RELAXED);
        return -plan->error;
    }
    return 0;
}

static int count(unsigned place)
{
    return count_but(place, 0);
}

static int count_mapped(int error, size_t size)
{
    if (error >= 0)
        __atomic_add_fetch(&mapped, (int64_t)size, __ATOMIC_RELAXED);
    return error;
}

/* ---- the ring's own ---------------------------------------------------------- */

static int call_setup(unsigned entries, struct io_uring_params *params)
{
    FAIL(setup);
    return behind->setup(entries, params);
}

static int call_enter(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                      const void *arg, size_t arg_size)
{
    /* EAGAIN: no memory for an sqe. */
    int error = count_but(PLACE(enter), to_submit == 0 ? EAGAIN : 0);
    if (error != 0)
        return error;
    return behind->enter(ring_fd, to_submit, min_complete, flags, arg, arg_size);
}

static int call_register(int ring_fd, unsigned opcode, void *arg, unsigned nr_args)
{
    FAIL(register_op);
    return behind->register_op(ring_fd, opcode, arg, nr_args);
}

static int call_map(void **address, size_t size, int ring_fd, uint64_t offset)
{
    FAIL(map);
    return count_mapped(behind->map(address, size, ring_fd, offset), size);
}

static int call_allocate(void **address, size_t size, int dontfork)
{
    FAIL(allocate);
    return count_mapped(behind->allocate(address, size, dontfork), size);
}

static void call_unmap(void *address, size_t size)
{
    __atomic_sub_fetch(&mapped, (int64_t)size, __ATOMIC_RELAXED);
    behind->unmap(address, size);
}

static int call_close(int fd)
{
    int error = behind->close_fd(fd);
    FAIL(close_fd);
    return error;
}

static uint64_t call_now_ns(void)
{
    return behind->now_ns();
}

/* ---- beside the ring --------------------------------------------------------- */

static int call_sendto(int fd, const void *data, size_t size, int flags,
                       const struct sockaddr *name, socklen_t length)
{
    FAIL(sendto);
    return behind->sendto(fd, data, size, flags, name, length);
}

static int call_recvfrom(int fd, void *memory, size_t size, int flags, struct sockaddr *name,
                         socklen_t *length)
{
    FAIL(recvfrom);
    return behind->recvfrom(fd, memory, size, flags, name, length);
}

static int call_sendmsg(int fd, const struct msghdr *message, int flags)
{
    FAIL(sendmsg);
    return behind->sendmsg(fd, message, flags);
}

static int call_recvmsg(int fd, struct msghdr *message, int flags)
{
    FAIL(recvmsg);
    return behind->recvmsg(fd, message, flags);
}

static int call_accept4(int fd, struct sockaddr *name, socklen_t *length, int flags)
{
    FAIL(accept4);
    return behind->accept4(fd, name, length, flags);
}

static int call_connect(int fd, const struct sockaddr *name, socklen_t length)
{
    FAIL(connect);
    return behind->connect(fd, name, length);
}

static int call_shutdown(int fd, int how)
{
    FAIL(shutdown);
    return behind->shutdown(fd, how);
}

static int call_getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    FAIL(getsockopt);
    return behind->getsockopt(fd, level, option, value, length);
}

static int call_setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
    FAIL(setsockopt);
    return behind->setsockopt(fd, level, option, value, length);
}

static int call_getsockname(int fd, struct sockaddr *name, socklen_t *length)
{
    FAIL(getsockname);
    return behind->getsockname(fd, name, length);
}

static int call_getpeername(int fd, struct sockaddr *name, socklen_t *length)
{
    FAIL(getpeername);
    return behind->getpeername(fd, name, length);
}

static int call_read(int fd, void *memory, size_t size)
{
    FAIL(read);
    return behind->read(fd, memory, size);
}

static int call_write(int fd, const void *data, size_t size)
{
    FAIL(write);
    return behind->write(fd, data, size);
}

static int call_poll(struct pollfd *files, unsigned number, int timeout_ms)
{
    FAIL(poll);
    return behind->poll(files, number, timeout_ms);
}

static int call_status_flags(int fd)
{
    FAIL(status_flags);
    return behind->status_flags(fd);
}

static int call_queued(int fd)
{
    FAIL(queued);
    return behind->queued(fd);
}

static int call_mode(int fd)
{
    FAIL(mode);
    return behind->mode(fd);
}

static const struct ut_kernel table = {
    .setup = call_setup,
    .enter = call_enter,
    .register_op = call_register,
    .map = call_map,
    .allocate = call_allocate,
    .unmap = call_unmap,
    .close_fd = call_close,
    .now_ns = call_now_ns,
    .sendto = call_sendto,
    .recvfrom = call_recvfrom,
    .sendmsg = call_sendmsg,
    .recvmsg = call_recvmsg,
    .accept4 = call_accept4,
    .connect = call_connect,
    .shutdown = call_shutdown,
    .getsockopt = call_getsockopt,
    .setsockopt = call_setsockopt,
    .getsockname = call_getsockname,
    .getpeername = call_getpeername,
    .read = call_read,
    .write = call_write,
    .poll = call_poll,
    .status_flags = call_status_flags,
    .queued = call_queued,
    .mode = call_mode,
};

const struct ut_kernel *fail_calls_over(const struct ut_kernel *real)
{
    behind = real;
    return &table;
}
