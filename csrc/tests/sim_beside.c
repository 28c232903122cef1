/* The simulator's calls beside the ring: each is the system call of its name, of a file of the
 * machine's or of the network's. A poll with a timeout sleeps in virtual time. */
#define _GNU_SOURCE
#include "sim_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum call {
    SENDTO, RECVFROM, SENDMSG, RECVMSG, ACCEPT4, CONNECT, SHUTDOWN, GETSOCKOPT, SETSOCKOPT,
    GETSOCKNAME, GETPEERNAME, READ, WRITE, POLL, STATUS_FLAGS, QUEUED, MODE, CLOSE,
};

/* Its answer. What it has changed is told to who waits, before something else changes. */
static int made(enum call call, int fd, long result)
{
    int answer = result < 0 ? -errno : (int)result;
    sim_lock();
    sim_note(SIM_NOTE_CALLED, fd, call, answer, 0);
    (void)sim_files_look(0);
    sim_unlock();
    return answer;
}

/* The network's file of a descriptor; NULL: the machine's. Locks if there is one, until told(). */
static struct net_file *net(int fd)
{
    if (!sim.has_network)
        return NULL;
    sim_lock();
    struct net_file *file = net_of(fd);
    if (file == NULL)
        sim_unlock();
    return file;
}

static int told(enum call call, int fd, int answer)
{
    uint64_t next_ns = net_next_ns();
    if (next_ns < sim.next_due_ns)
        sim.next_due_ns = next_ns;
    sim_note(SIM_NOTE_CALLED, fd, call, answer, 0);
    sim_unlock();
    return answer;
}

/* Nobody waits here: a call that Linux would have wait is one too many. */
static int at_once(int fd, int flags, int answer)
{
    if (answer == -EAGAIN && !(flags & MSG_DONTWAIT) && !(fcntl(fd, F_GETFL) & O_NONBLOCK))
        sim_fault("a call beside the ring that waits");
    return answer;
}

int sim_sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct net_file *file = net(fd);
    if (file != NULL)
        return told(SENDMSG, fd, at_once(fd, flags, net_sendmsg(file, message, flags)));
    return made(SENDMSG, fd, sendmsg(fd, message, flags));
}

int sim_recvmsg(int fd, struct msghdr *message, int flags)
{
    struct net_file *file = net(fd);
    if (file == NULL)
        return made(RECVMSG, fd, recvmsg(fd, message, flags));
    int answer = at_once(fd, flags, net_recvmsg(file, message, flags));
    if (!(flags & MSG_PEEK))
        sim_net_gave(file, answer, net_length(message));
    return told(RECVMSG, fd, answer);
}

int sim_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *name,
               socklen_t length)
{
    struct net_file *file = net(fd);
    if (file == NULL)
        return made(SENDTO, fd, sendto(fd, data, size, flags, name, length));
    struct iovec vector = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1,
                             .msg_name = (void *)(uintptr_t)name, .msg_namelen = length};
    return told(SENDTO, fd, at_once(fd, flags, net_sendmsg(file, &message, flags)));
}

int sim_recvfrom(int fd, void *memory, size_t size, int flags, struct sockaddr *name,
                 socklen_t *length)
{
    struct net_file *file = net(fd);
    if (file == NULL)
        return made(RECVFROM, fd, recvfrom(fd, memory, size, flags, name, length));
    struct iovec vector = {.iov_base = memory, .iov_len = size};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_name = name,
                             .msg_namelen = length != NULL ? *length : 0};
    int answer = at_once(fd, flags, net_recvmsg(file, &message, flags));
    if (!(flags & MSG_PEEK))
        sim_net_gave(file, answer, size);
    if (answer >= 0 && length != NULL)
        *length = message.msg_namelen;
    return told(RECVFROM, fd, answer);
}

int sim_accept4(int fd, struct sockaddr *name, socklen_t *length, int flags)
{
    struct net_file *file = net(fd);
    if (file != NULL)
        return told(ACCEPT4, fd, at_once(fd, 0, net_accept4(file, name, length, flags)));
    return made(ACCEPT4, fd, accept4(fd, name, length, flags));
}

int sim_connect(int fd, const struct sockaddr *name, socklen_t length)
{
    struct net_file *file = net(fd);
    if (file != NULL)
        return told(CONNECT, fd, net_connect(file, name, length));
    return made(CONNECT, fd, connect(fd, name, length));
}

int sim_shutdown(int fd, int how)
{
    struct net_file *file = net(fd);
    if (file != NULL)
        return told(SHUTDOWN, fd, net_shutdown(file, how));
    return made(SHUTDOWN, fd, shutdown(fd, how));
}

int sim_getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    struct net_file *file = net(fd);
    if (file != NULL)
        return told(GETSOCKOPT, fd, net_getsockopt(file, level, option, value, length));
    return made(GETSOCKOPT, fd, getsockopt(fd, level, option, value, length));
}

int sim_setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
    struct net_file *file = net(fd);
    if (file != NULL)
        return told(SETSOCKOPT, fd, net_setsockopt(file, level, option, value, length));
    return made(SETSOCKOPT, fd, setsockopt(fd, level, option, value, length));
}

int sim_getsockname(int fd, struct sockaddr *name, socklen_t *length)
{
    struct net_file *file = net(fd);
    if (file != NULL)
        return told(GETSOCKNAME, fd, net_getsockname(file, name, length));
    return made(GETSOCKNAME, fd, getsockname(fd, name, length));
}

int sim_getpeername(int fd, struct sockaddr *name, socklen_t *length)
{
    struct net_file *file = net(fd);
    if (file != NULL)
        return told(GETPEERNAME, fd, net_getpeername(file, name, length));
    return made(GETPEERNAME, fd, getpeername(fd, name, length));
}

int sim_read(int fd, void *memory, size_t size)
{
    struct net_file *file = net(fd);
    if (file == NULL)
        return made(READ, fd, read(fd, memory, size));
    struct iovec vector = {.iov_base = memory, .iov_len = size};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    int answer = net_recvmsg(file, &message, 0);
    sim_net_gave(file, answer, size);
    return told(READ, fd, answer);
}

int sim_write(int fd, const void *data, size_t size)
{
    struct net_file *file = net(fd);
    if (file == NULL)
        return made(WRITE, fd, write(fd, data, size));
    struct iovec vector = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    return told(WRITE, fd, net_sendmsg(file, &message, MSG_NOSIGNAL));
}

/* Whether a ring's eventfd is waited for; then time goes on until there is work for it. */
static bool is_event_fd(int fd, uint64_t *due_ns)
{
    *due_ns = SIM_NEVER;
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++) {
        const struct sim_ring *ring = sim.rings[i];
        if (ring != NULL && ring->is_open && ring->k.event_fd == fd) {
            *due_ns = sim_next_due(ring);
            return true;
        }
    }
    return false;
}

static uint64_t end_of_wait(int timeout_ms)
{
    return timeout_ms < 0 ? SIM_NEVER : sim.now_ns + (uint64_t)timeout_ms * 1000000;
}

/* A helper thread of a guest run sleeps on the eventfd of its ring. */
static int poll_event_fd(struct pollfd *file, int timeout_ms)
{
    sim_lock();
    uint64_t due_ns, until_ns = end_of_wait(timeout_ms);
    bool is_endless = until_ns - sim.now_ns >= SIM_ENDLESS_NS;
    unsigned slept_ms = 0;
    int count;
    for (;;) {
        sim_world_sweep();
        count = poll(file, 1, 0);
        if (count != 0 || !is_event_fd(file->fd, &due_ns) || sim.now_ns >= until_ns)
            break;
        if (sim_files_look(0) > 0)
            continue;
        if (due_ns <= until_ns && due_ns != SIM_NEVER) {
            sim_sleep(due_ns > sim.now_ns ? due_ns - sim.now_ns : 0);
        } else if (!is_endless) {
            sim_sleep(until_ns - sim.now_ns);
        } else if (slept_ms++ < sim.patience_ms) {
            sim_unlock();
            count = poll(file, 1, 1);
            sim_lock();
        } else {
            sim.books.never_ending++;
            sim_fault("this wait would never end");
            break;
        }
    }
    sim_unlock();
    return count;
}

/* Of a file of the network: until it has something, or the time is over. */
static int poll_net(struct net_file *file, struct pollfd *one, int timeout_ms)
{
    uint64_t until_ns = end_of_wait(timeout_ms);
    uint32_t wanted = (uint32_t)one->events | POLLERR | POLLHUP | POLLNVAL;
    uint32_t found;
    while ((found = net_poll(file, wanted) & wanted) == 0 && sim.now_ns < until_ns) {
        sim_world_sweep();
        uint64_t next_ns = sim_world_next_ns();
        if (next_ns > until_ns)
            next_ns = until_ns;
        if (next_ns == SIM_NEVER) {
            sim.books.never_ending++;
            sim_fault("this poll would never end");
            break;
        }
        sim_advance_to(next_ns);
    }
    one->revents = (short)found;
    return told(POLL, one->fd, found != 0);
}

int sim_poll(struct pollfd *files, unsigned count, int timeout_ms)
{
    uint64_t due_ns;
    struct net_file *file = count == 1 ? net(files->fd) : NULL;
    if (file != NULL)
        return poll_net(file, files, timeout_ms);
    sim_lock();
    bool is_helpers = count == 1 && timeout_ms != 0 && is_event_fd(files->fd, &due_ns);
    sim_unlock();
    if (is_helpers)
        return made(POLL, files->fd, poll_event_fd(files, timeout_ms));
    return made(POLL, files->fd, poll(files, count, timeout_ms));
}

int sim_status_flags(int fd)
{
    return made(STATUS_FLAGS, fd, fcntl(fd, F_GETFL));
}

int sim_queued(int fd)
{
    struct net_file *file = net(fd);
    if (file != NULL)
        return told(QUEUED, fd, net_queued(file));
    int bytes = 0;
    int error = made(QUEUED, fd, ioctl(fd, FIONREAD, &bytes));
    return error < 0 ? error : bytes;
}

int sim_mode(int fd)
{
    struct stat status;
    int error = made(MODE, fd, fstat(fd, &status));
    return error < 0 ? error : (int)status.st_mode;
}

int sim_close_file(int fd)
{
    struct net_file *file = net(fd);
    int result = file != NULL ? told(CLOSE, fd, net_close(fd)) : made(CLOSE, fd, close(fd));
    if (result == -EBADF)
        sim_fault("close of what is not open");
    return result;
}
