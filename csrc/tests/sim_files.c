/*
 * Files of a simulation
 *
 * Which. A descriptor names what fstat(2) says is behind it: the inode, and for a pipe which
 * of its ends. Numbers are given out again, so that is looked at with each request. As in
 * Linux a request that waits holds its file: closed by the program, it lives until the last
 * request is gone, and another file may have its number meanwhile. We hold it by a duplicate,
 * far above the numbers that the program sees.
 *
 * The machine's files carry their bytes themselves: attempts are the real calls, with
 * MSG_DONTWAIT or RWF_NOWAIT. Who waits must be told as the kernel's wait queues tell: of each
 * wake-up, also in vain, and not of a bit that merely stays set. An epoll instance with EPOLLET
 * does just that, but merges what comes between two looks at it. It filters a wake-up's key by
 * the bits that were asked for, and then reports all that are set; so a file has two
 * duplicates in it, one for each direction, or a reader would be told of each change for
 * writers. (An anonymous inode, of an eventfd, is everybody's: such a file is known by its
 * number, as long as nobody holds it.)
 *
 * Files of the network without a kernel (net.h) are sockets that were not connected when they
 * were first used, where the simulation has one. Their wake-ups come as they happen, with
 * Linux's keys.
 *
 * An attempt that was refused by choice, though there is something, has its wake-up later: what
 * refuses in Linux has a cause that ends, and who waits is told of its end.
 *
 * What is left out: a file that is told of something twice between two looks is told once.
 */
#define _GNU_SOURCE
#include "sim_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

#define ECHO_NS 1000000u /* until a refusal's cause ends */
#define LOOK_MAX 64   /* changes that one look takes */
#define KEPT_MAX 256  /* files that nobody holds and we still know */

static struct sim_file *files;
static unsigned file_count;
static int epoll_fd = -1;
static int number_min; /* of our duplicates */

static int answer(long result)
{
    return result < 0 ? -errno : (int)result;
}

/* ---- which ------------------------------------------------------------------------ */

static int duplicate(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, number_min);
    if (copy < 0)
        sim_fault("no descriptor left for a duplicate");
    return copy;
}

static void wake_net(struct net_file *net, uint32_t key)
{
    for (struct sim_file *file = files; file != NULL; file = file->next)
        if (file->net == net)
            sim_wake(file, key);
}

static unsigned choose_net(unsigned below)
{
    return sim_choose(SIM_NETWORK, below);
}

void sim_files_open(void)
{
    net_reset();
    net_wake = wake_net;
    net_choose = choose_net;
    net_choices = (struct net_choices){0};
    net_advance(sim.now_ns);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    number_min = (int)(limit.rlim_cur < 8192 ? limit.rlim_cur : 8192) / 2;
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        abort();
    epoll_fd = duplicate(fd); /* out of the program's numbers */
    close(fd);
}

/* Closes our own descriptors of it. */
static void let_go(struct sim_file *file)
{
    for (unsigned side = 0; side < 2; side++) {
        int fd = file->sides[side].fd;
        file->sides[side].fd = -1;
        if (fd < 0)
            continue;
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL); /* it knows the file, not the number */
        close(fd);
    }
    if (file->held >= 0)
        close(file->held);
    file->held = -1;
}

static void close_file(struct sim_file *file)
{
    let_go(file);
    free(file);
}

void sim_files_close(void)
{
    while (files != NULL) {
        struct sim_file *file = files;
        files = file->next;
        close_file(file);
    }
    file_count = 0;
    if (epoll_fd >= 0)
        close(epoll_fd);
    epoll_fd = -1;
    net_reset();
}

unsigned sim_files_held(void)
{
    unsigned count = 0;
    for (const struct sim_file *file = files; file != NULL; file = file->next)
        count += file->holders > 0;
    return count;
}

/* Forgets files that nobody holds. */
static void sweep(void)
{
    struct sim_file **link = &files;
    while (*link != NULL) {
        struct sim_file *file = *link;
        if (file->holders > 0) {
            link = &file->next;
            continue;
        }
        *link = file->next;
        close_file(file);
        file_count--;
    }
}

static bool is_same(const struct sim_file *file, const struct stat *status, int access, int fd)
{
    if (file->device != status->st_dev || file->inode != status->st_ino ||
        file->status != access)
        return false;
    if ((status->st_mode & S_IFMT) != 0)
        return true;
    if (file->held < 0)
        return file->number == fd;
    long pid = getpid();
    return syscall(SYS_kcmp, pid, pid, 0 /* KCMP_FILE */, fd, file->held) == 0;
}

static struct sim_file *new_file(int fd, const struct stat *status, int access)
{
    if (file_count >= KEPT_MAX)
        sweep();
    struct sim_file *file = calloc(1, sizeof *file);
    if (file == NULL)
        abort();
    *file = (struct sim_file){.next = files, .device = status->st_dev, .inode = status->st_ino,
                              .status = access, .type = status->st_mode & S_IFMT, .number = fd,
                              .held = -1, .sides = {{-1}, {-1}}, .echo_ns = SIM_NEVER};
    if (file->type == S_IFSOCK) {
        socklen_t length = sizeof file->family;
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &file->family, &length);
        length = sizeof file->sock_type;
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &file->sock_type, &length);
        file->net = sim.has_network ? net_of(fd) : NULL;
    }
    files = file;
    file_count++;
    return file;
}

struct sim_file *sim_file_of(int fd)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return NULL;
    int access = 0;
    if (S_ISFIFO(status.st_mode))
        access = fcntl(fd, F_GETFL) & O_ACCMODE;
    struct sim_file *file = files;
    while (file != NULL && !is_same(file, &status, access, fd))
        file = file->next;
    if (file == NULL)
        file = new_file(fd, &status, access);
    file->number = fd;
    return file;
}

struct sim_file *sim_hold(struct sim_file *file)
{
    if (file->holders++ > 0)
        return file;
    if (file->net != NULL)
        net_hold(file->net);
    else
        file->held = duplicate(file->number);
    return file;
}

void sim_drop(struct sim_file *file)
{
    if (--file->holders > 0)
        return;
    let_go(file);
    if (file->net != NULL)
        net_drop(file->net);
}

/* A descriptor of it. */
static int open_of(const struct sim_file *file)
{
    return file->held >= 0 ? file->held : file->number;
}

bool sim_file_is_nonblocking(const struct sim_file *file)
{
    int flags = fcntl(file->net != NULL ? net_number(file->net) : open_of(file), F_GETFL);
    return flags >= 0 && flags & O_NONBLOCK;
}

/* ---- attempts ---------------------------------------------------------------------- */

static bool is_stream(const struct sim_file *file)
{
    return file->sock_type == SOCK_STREAM;
}

/* At most how much of a stream's bytes is moved now. */
static size_t cut(const struct sim_file *file, size_t size)
{
    if (!is_stream(file) || size < 2)
        return size;
    switch (sim_choose(SIM_SHORT, 4)) {
    case 1:
        return 1;
    case 2:
        return size / 2;
    case 3:
        return size - 1;
    default:
        return size;
    }
}

/* The same message with at most so many bytes; `vectors` has room for its own. */
static struct msghdr shortened(const struct msghdr *message, struct iovec *vectors, size_t size)
{
    struct msghdr cut_message = *message;
    cut_message.msg_iov = vectors;
    cut_message.msg_iovlen = 0;
    for (size_t i = 0; i < message->msg_iovlen && size > 0; i++) {
        struct iovec *vector = &vectors[cut_message.msg_iovlen++];
        *vector = message->msg_iov[i];
        if (vector->iov_len > size)
            vector->iov_len = size;
        size -= vector->iov_len;
    }
    return cut_message;
}

/* Whether a TCP stream's peer has sent its end, as the socket's SOCK_DONE remembers it. */
static bool has_end(const struct sim_file *file)
{
    if (file->net != NULL)
        return net_has_end(file->net);
    struct tcp_info info;
    socklen_t length = sizeof info;
    if (getsockopt(open_of(file), IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
        return false;
    return info.tcpi_state == TCP_CLOSE_WAIT || info.tcpi_state == TCP_LAST_ACK ||
           info.tcpi_state == TCP_CLOSING || info.tcpi_state == TCP_TIME_WAIT;
}

/* Whether a TCP stream's next byte is an urgent one. */
static bool is_at_mark(const struct sim_file *file)
{
    int answer = 0;
    if (file->net != NULL)
        return net_ioctl(file->net, SIOCATMARK, &answer) == 0 && answer != 0;
    return ioctl(open_of(file), SIOCATMARK, &answer) == 0 && answer != 0;
}

/* Bytes that are left, as SO_INQ and TCP_INQ tell; -1: not told. */
static int left(struct sim_file *file)
{
    bool is_unix = file->family == AF_UNIX;
    if (!is_stream(file) || (is_unix && sim.switches.no_inq_of_unix))
        return -1;
    int bytes = 0;
    if (file->net != NULL)
        bytes = net_queued(file->net);
    else
        ioctl(open_of(file), FIONREAD, &bytes);
    if (bytes > 0 || is_unix)
        return bytes < 0 ? -1 : bytes;
    /* TCP: FIONREAD counts up to an urgent byte, and TCP_INQ that byte and what is behind it. Of a
     * stream whose peer has sent its end there is always something left: the end. */
    return is_at_mark(file) || has_end(file);
}

/* The network gave less of a stream than there is, as if the rest came later: so it is told of
 * later. */
void sim_net_gave(struct net_file *net, int result, size_t size)
{
    if (result <= 0 || (size_t)result >= size || net_queued(net) <= 0)
        return;
    for (struct sim_file *file = files; file != NULL; file = file->next)
        if (file->net == net && is_stream(file))
            sim_file_echo(file);
}

int sim_file_receive(struct sim_file *file, struct msghdr *message, int flags, int *inq)
{
    if (file->type != S_IFSOCK)
        return -ENOTSOCK;
    int result;
    if (file->net != NULL) {
        result = net_recvmsg(file->net, message, flags | MSG_DONTWAIT);
        *inq = result >= 0 ? left(file) : -1;
        if (!(flags & MSG_PEEK))
            sim_net_gave(file->net, result, net_length(message));
        return result;
    }
    size_t size = net_length(message), some = cut(file, size);
    if (some < size && !(flags & (MSG_PEEK | MSG_OOB | MSG_WAITALL))) {
        struct iovec vectors[message->msg_iovlen];
        struct msghdr less = shortened(message, vectors, some);
        result = answer(recvmsg(open_of(file), &less, flags | MSG_DONTWAIT));
        less.msg_iov = message->msg_iov;
        less.msg_iovlen = message->msg_iovlen;
        *message = less;
    } else {
        result = answer(recvmsg(open_of(file), message, flags | MSG_DONTWAIT));
    }
    *inq = result >= 0 ? left(file) : -1;
    return result;
}

int sim_file_send(struct sim_file *file, const struct msghdr *message, int flags)
{
    if (file->type != S_IFSOCK)
        return -ENOTSOCK;
    flags |= MSG_NOSIGNAL | MSG_DONTWAIT;
    if (file->net != NULL)
        return net_sendmsg(file->net, message, flags);
    size_t size = net_length(message), some = cut(file, size);
    if (some == size || flags & (MSG_OOB | MSG_WAITALL))
        return answer(sendmsg(open_of(file), message, flags));
    struct iovec vectors[message->msg_iovlen];
    struct msghdr less = shortened(message, vectors, some);
    return answer(sendmsg(open_of(file), &less, flags));
}

bool sim_file_was_copied(const struct sim_file *file)
{
    if (file->family != AF_UNIX || file->sock_type == SOCK_STREAM)
        return false;
    int fd = file->net != NULL ? net_number(file->net) : open_of(file);
    int queued = 0, limit = 0; /* with room for it, it was not its own buffer that refused */
    socklen_t length = sizeof limit;
    if (file->net != NULL)
        net_ioctl(file->net, SIOCOUTQ, &queued);
    else
        ioctl(fd, SIOCOUTQ, &queued);
    return getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &limit, &length) == 0 && queued < limit;
}

/* Whether preadv2 and pwritev2 would refuse RWF_NOWAIT on an older kernel. */
static bool refuses_nowait(const struct sim_file *file)
{
    return sim.switches.pipes_without_nowait &&
           (file->type == S_IFIFO || file->type == S_IFSOCK);
}

int sim_file_read(struct sim_file *file, void *memory, size_t size, bool nowait)
{
    if (refuses_nowait(file))
        return nowait ? -EOPNOTSUPP : -EAGAIN;
    struct iovec vector = {.iov_base = memory, .iov_len = cut(file, size)};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (file->net != NULL)
        return sim_file_receive(file, &message, MSG_DONTWAIT, &(int){0});
    int result = answer(preadv2(open_of(file), &vector, 1, -1, RWF_NOWAIT));
    return result == -EOPNOTSUPP && !nowait ? -EAGAIN : result;
}

int sim_file_write(struct sim_file *file, const void *data, size_t size, bool nowait)
{
    if (refuses_nowait(file))
        return nowait ? -EOPNOTSUPP : -EAGAIN;
    struct iovec vector = {.iov_base = (void *)(uintptr_t)data, .iov_len = cut(file, size)};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (file->net != NULL)
        return net_sendmsg(file->net, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    int result = answer(pwritev2(open_of(file), &vector, 1, -1, RWF_NOWAIT));
    return result == -EOPNOTSUPP && !nowait ? -EAGAIN : result;
}

/* Some calls have no flag that keeps them from waiting, but the file has. */
static bool become_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || flags & O_NONBLOCK)
        return false;
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    return true;
}

static void become_blocking(int fd, bool was)
{
    if (was)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
}

int sim_file_accept(struct sim_file *file, struct sockaddr *name, socklen_t *length, int flags)
{
    if (file->type != S_IFSOCK)
        return -ENOTSOCK;
    if (file->net != NULL)
        return net_accept4(file->net, name, length, flags);
    int fd = open_of(file);
    bool was = become_nonblocking(fd);
    int result = answer(accept4(fd, name, length, flags));
    become_blocking(fd, was);
    return result;
}

int sim_file_connect(struct sim_file *file, const struct sockaddr *name, socklen_t length)
{
    if (file->type != S_IFSOCK)
        return -ENOTSOCK;
    if (file->net != NULL)
        return net_connect(file->net, name, length);
    int fd = open_of(file);
    bool was = become_nonblocking(fd);
    int result = answer(connect(fd, name, length));
    become_blocking(fd, was);
    return result;
}

int sim_file_error(struct sim_file *file)
{
    if (file->net != NULL)
        return net_take_error(file->net);
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(open_of(file), SOL_SOCKET, SO_ERROR, &error, &length);
    return -error;
}

/* ---- waiting ------------------------------------------------------------------------ */

#define READS (POLLIN | POLLPRI | POLLRDHUP)
#define WRITES POLLOUT
#define ALL (READS | WRITES)
static const uint32_t side_events[2] = {READS, WRITES};

uint32_t sim_file_poll(struct sim_file *file, uint32_t events)
{
    if (file->net != NULL)
        return net_poll(file->net, events);
    struct pollfd look = {.fd = open_of(file), .events = ALL};
    poll(&look, 1, 0);
    return (uint32_t)look.revents;
}

bool sim_file_can_poll(const struct sim_file *file)
{
    return file->type != S_IFREG && file->type != S_IFDIR;
}

static int look(int timeout_ms, int but)
{
    struct epoll_event events[LOOK_MAX];
    int woken = 0, count;
    do {
        if (timeout_ms != 0)
            sim_unlock();
        count = epoll_wait(epoll_fd, events, LOOK_MAX, timeout_ms);
        int error = errno;
        if (timeout_ms != 0)
            sim_lock();
        if (count < 0)
            return error == EINTR ? -EINTR : 0;
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            struct sim_file *file = files;
            while (file != NULL && file->sides[0].fd != fd && file->sides[1].fd != fd)
                file = file->next;
            if (file == NULL || fd == but)
                continue;
            uint32_t key = events[i].events, ends = key & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
            if (ends != 0 && key != ends)
                sim_wake(file, key & ~ends); /* two changes, for who counts them */
            sim_wake(file, key);
            woken++;
        }
        timeout_ms = 0;
    } while (count == LOOK_MAX);
    return woken;
}

int sim_files_look(int timeout_ms)
{
    return look(timeout_ms, -1);
}

void sim_file_await(struct sim_file *file, uint32_t events)
{
    if (file->net != NULL)
        return; /* it tells everybody */
    for (unsigned side = 0; side < 2; side++) {
        /* Errors and hang-ups are told on both; the first is enough for who wants no more. */
        bool is_wanted = events & side_events[side] || (side == 0 && !(events & ALL));
        if (!is_wanted || file->sides[side].fd >= 0)
            continue;
        int fd = file->sides[side].fd = duplicate(file->held);
        struct epoll_event event = {.events = side_events[side] | EPOLLET, .data.fd = fd};
        if (fd >= 0 && epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
            sim_fault("a file that cannot be waited for");
        (void)look(0, fd); /* what is set already is no change */
    }
}

/* ---- what comes by itself -------------------------------------------------------------- */

void sim_file_tell(struct sim_file *file)
{
    uint32_t key = file->holders > 0 ? sim_file_poll(file, ALL) : 0;
    if (key != 0)
        sim_wake(file, key);
}

void sim_file_echo(struct sim_file *file)
{
    if (file->echo_ns == SIM_NEVER)
        file->echo_ns = sim.now_ns + ECHO_NS;
}

uint64_t sim_world_next_ns(void)
{
    uint64_t next_ns = sim.has_network ? net_next_ns() : SIM_NEVER;
    for (const struct sim_file *file = files; file != NULL; file = file->next)
        if (file->holders > 0 && file->echo_ns < next_ns)
            next_ns = file->echo_ns;
    return next_ns;
}

void sim_world_sweep(void)
{
    if (sim.has_network)
        net_sweep();
}

void sim_world_advance(void)
{
    if (sim.has_network)
        net_advance(sim.now_ns);
    for (struct sim_file *file = files; file != NULL; file = file->next) {
        if (file->echo_ns > sim.now_ns)
            continue;
        file->echo_ns = SIM_NEVER;
        sim_file_tell(file);
    }
}

/* ---- made here ------------------------------------------------------------------------- */

int sim_pair(int family, int type, int fds[2])
{
    sim_lock();
    int result = sim.has_network ? net_pair(family, type, fds)
                                 : answer(socketpair(family, type, 0, fds));
    sim_unlock();
    return result;
}
