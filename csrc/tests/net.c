/*
 * Files, their placeholders, and time
 *
 * What the kernel does. A socket is found by a descriptor, dies with the last of them (and of
 * the requests that use it), and wakes whoever waits in its queue with a key that says for what.
 *
 * What follows. A file here is found by the inode of its placeholder, which is a socket's for
 * its whole life and no other's: so a duplicate finds the same file, and a number that has been
 * closed and given out again finds another one. That the last descriptor is gone nobody tells;
 * so each call first looks whether the descriptor that it knows of each file is still the
 * file's, and where it is not, whether the process has another one (/proc/self/fd).
 *
 * Options are not kept here: the placeholder has them, and refuses what Linux refuses. What
 * was seen last is remembered for a file that has lost its descriptors and is held.
 *
 * Time is told by the user. What is under way is one list, ordered by when it is due and then by
 * when it was sent; what has no delay never goes into it, but arrives within the call, as on
 * Linux's loopback. A file is never freed before net_reset(), so that what is under way may
 * name it: the dead are marked, and cost a kilobyte each.
 *
 * What it costs. A call that may meet any file is one fstat(2) for each, and for a TCP one a
 * getsockopt(2) more: 1 us each. One that only meets its file and that file's peer looks at
 * these alone, and who else was closed is found by the next net_advance(), before anybody is
 * told of anything, or by the net_sweep() of a user that is about to sleep.
 */
#define _GNU_SOURCE
#include "net_inside.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ut_assert.h"

void (*net_wake)(struct net_file *file, uint32_t key);
unsigned (*net_choose)(unsigned below);
struct net_choices net_choices;
struct net_file *net_files;

static struct net_file *last_file;
static struct net_under_way *under_way;
static uint64_t now_ns;
static struct net_books books;
static uint64_t calls; /* a number that was looked at in this one is the file's still */

/* ---- choices, wake-ups ------------------------------------------------------- */

unsigned net_draw(bool allowed, unsigned below)
{
    return allowed && net_choose != NULL && below > 1 ? net_choose(below) : 0;
}

size_t net_draw_size(size_t size, bool may_be_less)
{
    unsigned part = net_draw(net_choices.shorts && may_be_less && size > 1, 8);
    if (part == 0)
        return size;
    return size * part / 8 > 0 ? size * part / 8 : 1;
}

void net_draw_stranger(struct net_file *file, size_t size)
{
    if (net_draw(net_choices.strangers, 8) == 1 && !file->is_closed)
        net_stranger(file, size);
}

uint64_t net_delay_ns(void)
{
    static const uint32_t delays_us[] = {0, 0, 10, 100, 1000, 5000, 40000, 500000};
    return (uint64_t)delays_us[net_draw(net_choices.delays, 8)] * 1000;
}

void net_wake_up(struct net_file *file, uint32_t key)
{
    if (file->is_closed || file->is_waiting)
        return;
    books.wakes++;
    if (net_wake != NULL)
        net_wake(file, key);
}

int net_take_error(struct net_file *file)
{
    int error = file->error;
    file->error = 0;
    return -error;
}

/* ---- pieces ------------------------------------------------------------------ */

struct net_piece *net_new_piece(size_t size)
{
    struct net_piece *piece = calloc(1, sizeof *piece + size);
    UT_ASSERT(piece != NULL);
    piece->size = size;
    return piece;
}

void net_free_piece(struct net_piece *piece)
{
    net_drop_rights(piece->rights);
    free(piece);
}

void net_push(struct net_queue *queue, struct net_piece *piece)
{
    piece->next = NULL;
    if (queue->last != NULL)
        queue->last->next = piece;
    else
        queue->first = piece;
    queue->last = piece;
    queue->count++;
    queue->cost += piece->cost;
}

void net_unlink(struct net_queue *queue, struct net_piece *piece)
{
    struct net_piece **link = &queue->first, *before = NULL;
    while (*link != piece) {
        UT_ASSERT(*link != NULL);
        before = *link;
        link = &before->next;
    }
    *link = piece->next;
    if (queue->last == piece)
        queue->last = before;
    piece->next = NULL;
    queue->count--;
    queue->cost -= piece->cost;
}

struct net_piece *net_shift(struct net_queue *queue)
{
    struct net_piece *piece = queue->first;
    if (piece != NULL)
        net_unlink(queue, piece);
    return piece;
}

void net_empty(struct net_queue *queue, bool counts)
{
    for (struct net_piece *piece; (piece = net_shift(queue)) != NULL;) {
        if (counts)
            net_count_lost(piece->size - piece->start);
        net_free_piece(piece);
    }
}

struct net_file *net_shift_connection(struct net_file *listener)
{
    struct net_piece *piece = net_shift(&listener->in);
    struct net_file *child = piece->child;
    net_free_piece(piece);
    return child;
}

/* ---- placeholders ------------------------------------------------------------ */

/* The inode of an open socket; 0: it is none. */
static uint64_t inode_of(int fd)
{
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISSOCK(status.st_mode))
        return 0;
    return status.st_ino;
}

/* Calls `look` with each open descriptor, until it answers true. */
static bool each_number(bool (*look)(int fd, void *argument), void *argument)
{
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL)
        return false;
    bool found = false;
    for (struct dirent *entry; !found && (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
            continue;
        int fd = atoi(entry->d_name);
        found = fd != dirfd(directory) && look(fd, argument);
    }
    closedir(directory);
    return found;
}

static bool is_number_of(int fd, void *argument)
{
    struct net_file *file = argument;
    if (inode_of(fd) != file->inode)
        return false;
    file->number = fd;
    return true;
}

/* Whether a descriptor of the file is open; `number` is one then. */
static bool has_number(struct net_file *file)
{
    if (file->inode == 0)
        return false;
    if (file->looked_at == calls)
        return true;
    if (inode_of(file->number) != file->inode && !each_number(is_number_of, file))
        return false;
    file->looked_at = calls;
    return true;
}

int net_number(const struct net_file *file)
{
    return inode_of(file->number) == file->inode && file->inode != 0 ? file->number : -1;
}

bool net_is_nonblocking(struct net_file *file)
{
    int flags = has_number(file) ? fcntl(file->number, F_GETFL) : 0;
    return flags >= 0 && (flags & O_NONBLOCK) != 0;
}

static void close_file(struct net_file *file)
{
    file->is_closed = true; /* nobody sleeps on it any more */
    file->kind->close(file); /* tells whoever is at the other end */
    if (file->family == AF_UNIX)
        net_collect();
}

static void note_linger(struct net_file *file)
{
    socklen_t length = sizeof file->tcp.linger;
    if (file->kind == &net_kind_tcp && file->number >= 0)
        getsockopt(file->number, SOL_SOCKET, SO_LINGER, &file->tcp.linger, &length);
}

/* A number that lies in a message is ours, not the program's. */
static bool is_in_message(int fd)
{
    for (struct net_file *file = net_files; file != NULL; file = file->next)
        for (struct net_piece *piece = file->in.first; piece != NULL; piece = piece->next)
            for (int i = 0; piece->rights != NULL && i < piece->rights->count; i++)
                if (piece->rights->numbers[i] == fd)
                    return true;
    return false;
}

static bool is_number_outside(int fd, void *argument)
{
    struct net_file *file = argument;
    return inode_of(fd) == file->inode && !is_in_message(fd);
}

bool net_is_root(struct net_file *file)
{
    if (file->holds > 0)
        return true;
    return file->inode != 0 && (is_number_outside(file->number, file) ||
                                each_number(is_number_outside, file));
}

/* Whether it was closed by this. */
static bool look_at(struct net_file *file)
{
    if (file == NULL || file->is_closed || file->is_waiting)
        return false;
    if (has_number(file)) {
        note_linger(file); /* a close cannot ask any more */
        return false;
    }
    if (file->holds > 0)
        return false;
    close_file(file);
    return true;
}

/* Looks at those whose end a call on `file` would show. */
static void look_near(struct net_file *file)
{
    calls++;
    look_at(file);
    look_at(file->peer);
    if (file->peer != NULL && file->peer->is_waiting)
        look_at(file->peer->queued_at);
}

void net_sweep(void)
{
    calls++;
    for (struct net_file *file = net_files; file != NULL; file = file->next)
        if (look_at(file))
            file = net_files; /* others may have been open in its queue only */
}

void net_forget_numbers(void)
{
    calls++;
}

/* ---- files ------------------------------------------------------------------- */

static const struct net_kind *kind_of(int family, int type)
{
    if (family == AF_UNIX)
        return type == SOCK_STREAM ? &net_kind_unix_stream : &net_kind_unix_message;
    return type == SOCK_STREAM ? &net_kind_tcp : &net_kind_udp;
}

struct net_file *net_make(int family, int type)
{
    struct net_file *file = calloc(1, sizeof *file);
    UT_ASSERT(file != NULL);
    file->family = family;
    file->type = type;
    file->kind = kind_of(family, type);
    file->number = -1;
    if (last_file != NULL)
        last_file->next = file;
    else
        net_files = file;
    last_file = file;
    return file;
}

static int placeholder_int(int fd, int option)
{
    int value = -1;
    socklen_t length = sizeof value;
    if (getsockopt(fd, SOL_SOCKET, option, &value, &length) < 0)
        return -1;
    return value;
}

/* The path that it is bound to is found again by its inode, as Linux does. */
static void note_path(struct net_file *file)
{
    struct net_name name;
    struct stat status;
    net_own_name(file, &name);
    if (file->un.node != 0 || name.length <= sizeof(sa_family_t) ||
        name.at.local.sun_path[0] == '\0')
        return;
    char path[sizeof name.at.local.sun_path + 1] = "";
    memcpy(path, name.at.local.sun_path, name.length - sizeof(sa_family_t));
    if (stat(path, &status) == 0) {
        file->un.device = status.st_dev;
        file->un.node = status.st_ino;
    }
}

static void give_placeholder(struct net_file *file, int fd)
{
    file->inode = inode_of(fd);
    file->number = fd;
    if (file->family == AF_UNIX)
        note_path(file);
}

struct net_file *net_known(int fd)
{
    uint64_t inode = inode_of(fd);
    for (struct net_file *file = net_files; file != NULL && inode != 0; file = file->next)
        if (file->inode == inode)
            return file;
    return NULL;
}

static struct net_file *find(int fd)
{
    if (inode_of(fd) == 0)
        return NULL;
    struct net_file *known = net_known(fd);
    if (known != NULL) {
        if (inode_of(known->number) != known->inode)
            known->number = fd;
        return known;
    }
    int family = placeholder_int(fd, SO_DOMAIN), type = placeholder_int(fd, SO_TYPE);
    int protocol = placeholder_int(fd, SO_PROTOCOL);
    bool is_known = family == AF_UNIX && (type == SOCK_STREAM || type == SOCK_DGRAM ||
                                          type == SOCK_SEQPACKET);
    if (family == AF_INET || family == AF_INET6)
        is_known = (type == SOCK_STREAM && protocol == IPPROTO_TCP) ||
                   (type == SOCK_DGRAM && protocol == IPPROTO_UDP);
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;
    if (!is_known || getpeername(fd, (struct sockaddr *)&peer, &length) == 0)
        return NULL;
    struct net_file *file = net_make(family, type);
    give_placeholder(file, fd);
    return file;
}

struct net_file *net_of(int fd)
{
    calls++;
    struct net_file *file = find(fd);
    if (file != NULL)
        net_refresh(file);
    return file;
}

static bool learn(int fd, void *argument)
{
    (void)argument;
    net_of(fd);
    return false;
}

void net_learn_all(void)
{
    each_number(learn, NULL);
}

void net_hold(struct net_file *file)
{
    file->holds++;
}

void net_drop(struct net_file *file)
{
    UT_ASSERT(file->holds > 0);
    file->holds--;
    net_sweep();
}

int net_close(int fd)
{
    struct net_file *file = find(fd);
    if (file != NULL)
        note_linger(file);
    int result = close(fd) < 0 ? -errno : 0;
    net_sweep();
    return result;
}

int net_pair(int family, int type, int fds[2])
{
    int kind = type & ~(SOCK_CLOEXEC | SOCK_NONBLOCK);
    for (int i = 0; i < 2; i++) {
        fds[i] = socket(family, type, 0);
        if (fds[i] < 0) {
            int error = -errno;
            if (i > 0)
                close(fds[0]);
            return error;
        }
    }
    struct net_file *files[2] = {net_of(fds[0]), net_of(fds[1])};
    for (int i = 0; i < 2 && family == AF_UNIX; i++) {
        files[i]->peer = files[1 - i];
        files[i]->state = NET_ESTABLISHED;
    }
    if (family != AF_UNIX && kind == SOCK_STREAM)
        net_tcp_join(files[0], files[1]);
    else if (family != AF_UNIX)
        net_udp_join(files[0], files[1]);
    return 0;
}

/* ---- what the placeholder knows ---------------------------------------------- */

int net_option(struct net_file *file, int level, int option)
{
    unsigned i = 0;
    while (i < NET_OPTIONS && file->remembered[i].option != 0 &&
           (file->remembered[i].level != level || file->remembered[i].option != option))
        i++;
    UT_ASSERT(i < NET_OPTIONS);
    file->remembered[i].level = level;
    file->remembered[i].option = option;
    int value = 0;
    socklen_t length = sizeof value;
    if (has_number(file) && getsockopt(file->number, level, option, &value, &length) == 0)
        file->remembered[i].value = value;
    return file->remembered[i].value;
}

bool net_refresh(struct net_file *file)
{
    if (file->state == NET_CLOSED && file->type != SOCK_DGRAM && !file->is_closed &&
        net_option(file, SOL_SOCKET, SO_ACCEPTCONN) == 1)
        file->state = NET_LISTENING;
    if (file->family == AF_UNIX && file->un.node == 0 && !file->is_closed && has_number(file))
        note_path(file);
    return file->state == NET_LISTENING;
}

/* What listen(2) was told: of a UNIX listener only netlink tells it. */
static int unix_backlog(uint64_t inode)
{
    struct {
        struct nlmsghdr header;
        struct unix_diag_req request;
    } ask = {.header = {.nlmsg_len = sizeof ask, .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                        .nlmsg_flags = NLM_F_REQUEST},
             .request = {.sdiag_family = AF_UNIX, .udiag_states = ~0u,
                         .udiag_ino = (uint32_t)inode, .udiag_show = UDIAG_SHOW_RQLEN,
                         .udiag_cookie = {~0u, ~0u}}};
    union {
        struct nlmsghdr header;
        char bytes[1000];
    } answer;
    int backlog = 128, diag = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (diag < 0)
        return backlog;
    ssize_t size = -1;
    if (send(diag, &ask, sizeof ask, 0) == (ssize_t)sizeof ask)
        size = recv(diag, &answer, sizeof answer, 0);
    close(diag);
    if (size <= 0 || answer.header.nlmsg_type != SOCK_DIAG_BY_FAMILY)
        return backlog;
    struct unix_diag_msg *message = NLMSG_DATA(&answer.header);
    struct rtattr *attribute = (struct rtattr *)(message + 1);
    int left = (int)(answer.header.nlmsg_len - NLMSG_LENGTH(sizeof *message));
    for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left))
        if (attribute->rta_type == UNIX_DIAG_RQLEN)
            backlog = (int)((struct unix_diag_rqlen *)RTA_DATA(attribute))->udiag_wqueue;
    return backlog;
}

int net_backlog(struct net_file *file)
{
    if (!has_number(file))
        return 0;
    if (file->family == AF_UNIX)
        return unix_backlog(file->inode);
    struct tcp_info info;
    socklen_t length = sizeof info;
    if (getsockopt(file->number, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
        return 0;
    return (int)info.tcpi_sacked; /* of a listener: its backlog */
}

void net_own_name(struct net_file *file, struct net_name *name)
{
    *name = file->own;
    if (name->length > 0)
        return;
    if (has_number(file)) {
        file->bound.length = sizeof file->bound.at;
        if (getsockname(file->number, &file->bound.at.any, &file->bound.length) < 0)
            file->bound.length = 0;
    }
    *name = file->bound;
}

bool net_bind_somewhere(struct net_file *file)
{
    struct net_name name;
    net_own_name(file, &name);
    /* The port lies at the same place in both. */
    if (file->family != AF_UNIX && name.at.v4.sin_port == 0 && file->own.length == 0) {
        if (!has_number(file) || bind(file->number, &name.at.any, name.length) < 0)
            return false;
    }
    if (file->family == AF_UNIX && name.length <= sizeof(sa_family_t) && has_number(file)) {
        name.at.any.sa_family = AF_UNIX;
        return bind(file->number, &name.at.any, sizeof(sa_family_t)) == 0;
    }
    return true;
}

static int name_out(const struct net_name *name, struct sockaddr *to, socklen_t *length)
{
    if (to != NULL)
        memcpy(to, &name->at, *length < name->length ? *length : name->length);
    *length = name->length;
    return 0;
}

/* ---- calls ------------------------------------------------------------------- */

int net_sendmsg(struct net_file *file, const struct msghdr *message, int flags)
{
    /* Who names a receiver may meet any file. */
    if (file->type == SOCK_DGRAM)
        net_sweep();
    else
        look_near(file);
    return file->kind->sendmsg(file, message, flags);
}

static socklen_t name_room;
static size_t control_room;

size_t net_control_room(void)
{
    return control_room;
}

static int receive(struct net_file *file, struct msghdr *message, int flags)
{
    name_room = message->msg_name != NULL ? message->msg_namelen : 0;
    control_room = message->msg_control != NULL ? message->msg_controllen : 0;
    message->msg_namelen = 0;
    message->msg_controllen = 0;
    return file->kind->recvmsg(file, message, flags);
}

void net_say_name(struct msghdr *message, const struct net_name *name)
{
    message->msg_namelen = name_room;
    name_out(name, message->msg_name, &message->msg_namelen);
}

int net_recvmsg(struct net_file *file, struct msghdr *message, int flags)
{
    look_near(file);
    struct msghdr before = *message;
    message->msg_flags = flags & MSG_CMSG_CLOEXEC;
    int result = receive(file, message, flags);
    if (result < 0)
        *message = before; /* of an error Linux writes nothing */
    else if (message->msg_name == NULL)
        message->msg_namelen = before.msg_namelen;
    return result;
}

int net_connect(struct net_file *file, const struct sockaddr *name, socklen_t length)
{
    net_sweep();
    return file->kind->connect(file, name, length);
}

/* What Linux copies from a listener to its connections. */
static void inherit(struct net_file *listener, int fd)
{
    static const struct {
        int level, option;
    } tcp[] = {{SOL_SOCKET, SO_RCVLOWAT}, {SOL_SOCKET, SO_OOBINLINE}, {SOL_SOCKET, SO_KEEPALIVE},
               {IPPROTO_TCP, TCP_NODELAY}};
    bool is_local = listener->family == AF_UNIX;
    if (is_local) {
        int wants = net_option(listener, SOL_SOCKET, SO_PASSCRED);
        setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &wants, sizeof wants);
        return;
    }
    for (unsigned i = 0; i < sizeof tcp / sizeof *tcp; i++) {
        int value = net_option(listener, tcp[i].level, tcp[i].option);
        setsockopt(fd, tcp[i].level, tcp[i].option, &value, sizeof value);
    }
    for (int i = 0; i < 2; i++) {
        int option = i == 0 ? SO_RCVBUF : SO_SNDBUF;
        int value = net_option(listener, SOL_SOCKET, option), half = value / 2;
        if (placeholder_int(fd, option) != value)
            setsockopt(fd, SOL_SOCKET, option, &half, sizeof half); /* it is doubled */
    }
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &listener->tcp.linger, sizeof listener->tcp.linger);
}

static struct net_file *take_connection(struct net_file *listener, int *error)
{
    struct net_file *child = listener->kind->accept(listener, error);
    if (child != NULL) {
        child->is_waiting = false;
        child->queued_at = NULL;
    }
    return child;
}

/* The name of a UNIX socket; NULL: one that has gone. */
static void name_of_local(struct net_file *file, struct net_name *name)
{
    memset(name, 0, sizeof *name);
    if (file != NULL)
        net_own_name(file, name);
    if (name->length == 0) {
        name->at.any.sa_family = AF_UNIX;
        name->length = sizeof(sa_family_t);
    }
}

int net_accept4(struct net_file *file, struct sockaddr *name, socklen_t *length, int flags)
{
    net_sweep();
    if (flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK))
        return -EINVAL;
    net_refresh(file);
    if (file->kind->accept == NULL)
        return -EOPNOTSUPP;
    /* As in Linux the descriptor comes first, so that a connection is not lost for want of it. */
    int fd = socket(file->family, file->type | flags, 0);
    if (fd < 0)
        return -errno;
    int error = 0;
    struct net_file *child = take_connection(file, &error);
    if (child == NULL) {
        close(fd);
        return error;
    }
    give_placeholder(child, fd);
    inherit(file, fd);
    if (length != NULL) {
        struct net_name peer = child->peer_name;
        if (file->family == AF_UNIX)
            name_of_local(child->peer, &peer);
        name_out(&peer, name, length);
    }
    return fd;
}

int net_bind(struct net_file *file, const struct sockaddr *name, socklen_t length)
{
    net_sweep();
    if (!has_number(file))
        return -EBADF;
    if (file->own.length > 0) /* any name will do for it: it has one */
        return file->family == AF_UNIX && length == sizeof(sa_family_t) ? 0 : -EINVAL;
    int result = bind(file->number, name, length) < 0 ? -errno : 0;
    if (result == 0 && file->family == AF_UNIX)
        note_path(file);
    return result;
}

int net_listen(struct net_file *file, int backlog)
{
    net_sweep();
    bool was_connected = file->state != NET_CLOSED && file->state != NET_LISTENING;
    if (file->type != SOCK_DGRAM && (was_connected || file->tcp.attempt != NET_UNCONNECTED))
        return -EINVAL;
    if (!has_number(file))
        return -EBADF;
    int result = listen(file->number, backlog) < 0 ? -errno : 0;
    net_refresh(file);
    return result;
}

int net_shutdown(struct net_file *file, int how)
{
    look_near(file);
    if (how < SHUT_RD || how > SHUT_RDWR)
        return -EINVAL;
    net_refresh(file);
    return file->kind->shutdown(file, how);
}

int net_getsockopt(struct net_file *file, int level, int option, void *value, socklen_t *length)
{
    look_near(file);
    if (level == SOL_SOCKET && option == SO_ERROR) {
        int error = -net_take_error(file);
        memcpy(value, &error, *length < sizeof error ? *length : sizeof error);
        if (*length > sizeof error)
            *length = sizeof error;
        return 0;
    }
    if (!has_number(file))
        return -EBADF;
    if (level == SOL_SOCKET && option == SO_PEERCRED && file->state == NET_ESTABLISHED) {
        struct ucred own = {.pid = getpid(), .uid = geteuid(), .gid = getegid()};
        if (*length > sizeof own)
            *length = sizeof own;
        memcpy(value, &own, *length);
        return 0;
    }
    return getsockopt(file->number, level, option, value, length) < 0 ? -errno : 0;
}

int net_setsockopt(struct net_file *file, int level, int option, const void *value,
                   socklen_t length)
{
    look_near(file);
    if (!has_number(file))
        return -EBADF;
    if (setsockopt(file->number, level, option, value, length) < 0)
        return -errno;
    if (level == SOL_SOCKET && (option == SO_SNDBUF || option == SO_SNDBUFFORCE))
        file->kind->space(file);
    if (file->kind->option != NULL)
        file->kind->option(file, level, option);
    return 0;
}

int net_getsockname(struct net_file *file, struct sockaddr *name, socklen_t *length)
{
    struct net_name own;
    look_near(file);
    net_own_name(file, &own);
    return name_out(&own, name, length);
}

int net_getpeername(struct net_file *file, struct sockaddr *name, socklen_t *length)
{
    look_near(file);
    struct net_name peer = file->peer_name;
    if (file->family == AF_UNIX) {
        if (file->peer == NULL)
            return -ENOTCONN;
        name_of_local(file->peer, &peer);
    } else if (file->state == NET_CLOSED || file->state == NET_SYN_SENT || peer.length == 0 ||
               peer.at.v4.sin_port == 0) {
        return -ENOTCONN;
    }
    return name_out(&peer, name, length);
}

int net_ioctl(struct net_file *file, unsigned long request, int *value)
{
    look_near(file);
    net_refresh(file);
    return file->kind->ioctl(file, request, value);
}

int net_queued(struct net_file *file)
{
    int value = 0, result = net_ioctl(file, FIONREAD, &value);
    return result < 0 ? result : value;
}

uint32_t net_poll(struct net_file *file, uint32_t events)
{
    look_near(file);
    net_refresh(file);
    return file->kind->poll(file, events);
}

/* ---- time -------------------------------------------------------------------- */

uint64_t net_now_ns(void)
{
    return now_ns;
}

static void arrive(struct net_under_way *event)
{
    if (event->event == NET_EVENT_DATAGRAM || event->event == NET_EVENT_UNREACHABLE)
        net_udp_event(event);
    else
        net_tcp_event(event);
}

void net_post(struct net_under_way event)
{
    bool is_behind = under_way != NULL && under_way->due_ns <= event.due_ns; /* within advance */
    if (event.due_ns <= now_ns && !is_behind) {
        arrive(&event);
        return;
    }
    struct net_under_way **link = &under_way, *copy = malloc(sizeof *copy);
    UT_ASSERT(copy != NULL);
    *copy = event;
    while (*link != NULL && (*link)->due_ns <= event.due_ns)
        link = &(*link)->next;
    copy->next = *link;
    *link = copy;
}

void net_advance(uint64_t to_ns)
{
    net_sweep();
    while (under_way != NULL && under_way->due_ns <= to_ns) {
        struct net_under_way *event = under_way;
        under_way = event->next;
        if (event->due_ns > now_ns)
            now_ns = event->due_ns;
        arrive(event);
        free(event);
    }
    if (to_ns > now_ns)
        now_ns = to_ns;
}

uint64_t net_next_ns(void)
{
    return under_way != NULL ? under_way->due_ns : NET_NEVER;
}

/* ---- strangers --------------------------------------------------------------- */

int net_stranger(struct net_file *file, size_t size)
{
    net_sweep();
    if (net_refresh(file)) {
        int error = 0;
        struct net_file *child = take_connection(file, &error);
        if (child == NULL)
            return error;
        close_file(child);
        return 1;
    }
    char *memory = malloc(size + 1);
    UT_ASSERT(memory != NULL);
    struct iovec part = {.iov_base = memory, .iov_len = size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    uint64_t received = books.bytes_received;
    int result = receive(file, &message, MSG_DONTWAIT);
    books.bytes_stolen += books.bytes_received - received;
    books.bytes_received = received;
    free(memory);
    return result;
}

/* ---- books ------------------------------------------------------------------- */

void net_count_sent(size_t bytes)
{
    books.bytes_sent += bytes;
}

void net_count_received(size_t bytes)
{
    books.bytes_received += bytes;
}

void net_count_lost(size_t bytes)
{
    books.bytes_lost += bytes;
}

static void count_queue(const struct net_queue *queue, struct net_books *to)
{
    for (struct net_piece *piece = queue->first; piece != NULL; piece = piece->next) {
        to->bytes_queued += piece->size - piece->start;
        to->rights += piece->rights != NULL ? (unsigned)piece->rights->count : 0;
    }
}

void net_read_books(struct net_books *to)
{
    net_sweep();
    *to = books;
    for (struct net_file *file = net_files; file != NULL; file = file->next) {
        count_queue(&file->in, to);
        count_queue(&file->tcp.out, to);
        if (file->is_closed || file->is_waiting)
            continue;
        to->files++;
        to->held += !has_number(file);
    }
    for (struct net_under_way *event = under_way; event != NULL; event = event->next)
        if (event->piece != NULL)
            to->bytes_queued += event->piece->size - event->piece->start;
}

void net_reset(void)
{
    while (under_way != NULL) {
        struct net_under_way *event = under_way;
        under_way = event->next;
        if (event->piece != NULL)
            net_free_piece(event->piece);
        free(event);
    }
    while (net_files != NULL) {
        struct net_file *file = net_files;
        net_files = file->next;
        net_empty(&file->in, false);
        net_empty(&file->errors, false);
        net_empty(&file->tcp.out, false);
        net_empty(&file->tcp.untaken, false);
        free(file);
    }
    last_file = NULL;
    now_ns = 0;
    memset(&books, 0, sizeof books);
}
