/*
 * UNIX sockets: names, memory, connections, ends
 *
 * What the kernel does. Nothing is under way: a send puts its bytes into the receiver's queue,
 * and wakes the receiver. The memory stays the sender's until the receiver has taken it. There
 * are two limits. The sender's memory (SO_SNDBUF) counts what it costs, not the bytes; a sender
 * is writable while a quarter of it is taken at most, so one that was refused by it is not told
 * before three quarters are free. The receiver's queue has a limit of messages
 * (net.unix.max_dgram_qlen, 10), which one message more than that fits; it is no limit between
 * two who are connected to each other.
 *
 * Every piece that goes gives its memory back, and that wakes those who wait to write on its
 * sender, if it is writable: also where a refused datagram is thrown away, that is, by an
 * attempt in vain.
 *
 * What follows. Costs are reckoned as Linux reckons them (4 KiB pages; a head of 512 bytes or the
 * next power of two, and 256 for its description), so limits are hit at the same byte.
 *
 * A socket that is only reached through messages that lie in queues which are only reached
 * so is garbage: when the next UNIX socket is closed its messages are thrown away (by Linux a
 * moment later).
 *
 * Not made: SCM_PIDFD, SCM_SECURITY, SO_PEEK_OFF, SO_INQ.
 */
#define _GNU_SOURCE
#include "net_unix.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ut_assert.h"

#define PAGE ((size_t)4096)
#define HEAD_LARGEST (PAGE - 320) /* bytes of data in one page, without their description */
#define FRAGMENTS_LARGEST ((size_t)32768)
#define LINEAR_LARGEST (4 * PAGE - 320)
#define DATAGRAMS_QUEUED 10u /* where the machine does not say it */

/* ---- memory ------------------------------------------------------------------ */

static size_t head_cost(size_t size)
{
    size_t needed = (size + 63) / 64 * 64 + 320, cost = 512;
    while (cost < needed)
        cost *= 2;
    return cost + 256;
}

static size_t pages(size_t size)
{
    return (size + PAGE - 1) / PAGE * PAGE;
}

size_t unix_segment_cost(size_t size)
{
    size_t paged = size > HEAD_LARGEST ? pages(size - HEAD_LARGEST) : 0;
    size_t head = paged < size ? size - paged : 0;
    return head_cost(head) + paged;
}

size_t unix_message_cost(size_t size)
{
    size_t paged = size > LINEAR_LARGEST ? pages(size - LINEAR_LARGEST) : 0;
    if (paged > 17 * PAGE)
        paged = 17 * PAGE;
    return head_cost(size - paged) + paged;
}

bool unix_is_writable(const struct net_file *file)
{
    /* Linux counts one byte more, for the socket itself. */
    return file->state != NET_LISTENING &&
           (file->memory + 1) * 4 <=
               (size_t)net_option((struct net_file *)file, SOL_SOCKET, SO_SNDBUF);
}

bool unix_charge(struct net_file *file, struct net_piece *piece, int *error)
{
    if (file->error != 0)
        *error = net_take_error(file);
    else if (file->shut & NET_SHUT_SEND)
        *error = -EPIPE;
    else if (file->memory >= (size_t)net_option(file, SOL_SOCKET, SO_SNDBUF))
        *error = -EAGAIN;
    else if (net_draw(net_choices.no_buffers, 32) == 1)
        *error = -ENOBUFS;
    else
        *error = 0;
    if (*error != 0)
        return false;
    struct net_name name;
    net_own_name(file, &name); /* so that it is known when its placeholder is gone */
    piece->from = file;
    file->memory += piece->cost;
    return true;
}

void unix_free(struct net_piece *piece)
{
    struct net_file *from = piece->from;
    if (from != NULL) {
        UT_ASSERT(from->memory >= piece->cost);
        /* Linux gives the last byte back after the wake-up. */
        from->memory -= piece->cost - 1;
        if (unix_is_writable(from))
            net_wake_up(from, NET_KEY_WRITE);
        from->memory--;
    }
    net_free_piece(piece);
}

void unix_space(struct net_file *file)
{
    if (unix_is_writable(file))
        net_wake_up(file, NET_KEY_WRITE);
}

void unix_purge(struct net_file *file)
{
    for (struct net_piece *piece; (piece = net_shift(&file->in)) != NULL;) {
        net_count_lost(piece->size - piece->start);
        unix_free(piece);
    }
    file->un.urgent = NULL;
}

static unsigned datagrams_queued(void)
{
    static unsigned limit;
    FILE *said = limit == 0 ? fopen("/proc/sys/net/unix/max_dgram_qlen", "re") : NULL;
    if (said != NULL && fscanf(said, "%u", &limit) != 1)
        limit = 0;
    if (said != NULL)
        fclose(said);
    if (limit == 0)
        limit = DATAGRAMS_QUEUED;
    return limit;
}

bool unix_is_full(struct net_file *file)
{
    unsigned most = file->state == NET_LISTENING ? (unsigned)net_backlog(file)
                                                 : datagrams_queued();
    return file->in.count > most;
}

/* ---- names ------------------------------------------------------------------- */

int unix_check_name(const struct sockaddr *name, socklen_t length)
{
    if (length <= offsetof(struct sockaddr_un, sun_path) || length > sizeof(struct sockaddr_un) ||
        name->sa_family != AF_UNIX)
        return -EINVAL;
    return 0;
}

/* The open file that is bound to a path's inode, or to an abstract name. */
static struct net_file *look_up(const struct stat *status, const struct sockaddr *name,
                                socklen_t length, int type)
{
    for (struct net_file *file = net_files; file != NULL; file = file->next) {
        if (file->family != AF_UNIX || file->is_closed || file->inode == 0)
            continue;
        net_refresh(file);
        if (file->own.length > 0)
            continue; /* an accepted one only looks like its listener */
        if (status != NULL) {
            if (file->un.node == status->st_ino && file->un.device == status->st_dev)
                return file;
            continue;
        }
        struct net_name own;
        net_own_name(file, &own);
        if (file->type == type && own.length == length && memcmp(&own.at, name, length) == 0)
            return file;
    }
    return NULL;
}

struct net_file *unix_find(const struct sockaddr *name, socklen_t length, int type, int *error)
{
    const struct sockaddr_un *local = (const struct sockaddr_un *)name;
    size_t offset = offsetof(struct sockaddr_un, sun_path);
    struct stat status;
    char path[sizeof local->sun_path + 1] = "";
    bool is_path = local->sun_path[0] != '\0';
    if (is_path) {
        memcpy(path, local->sun_path, length - offset);
        if (stat(path, &status) < 0 || access(path, W_OK) < 0) {
            *error = -errno;
            return NULL;
        }
    }
    *error = -ECONNREFUSED;
    if (is_path && !S_ISSOCK(status.st_mode))
        return NULL;
    struct net_file *found = NULL;
    for (int round = 0; round < 2 && found == NULL; round++) {
        if (round == 1)
            net_learn_all();
        found = look_up(is_path ? &status : NULL, name, length, type);
    }
    if (found != NULL && found->type != type) {
        *error = -EPROTOTYPE;
        return NULL;
    }
    return found;
}

void unix_name_of(struct net_file *file, struct msghdr *message)
{
    struct net_name own = {.length = 0};
    if (file != NULL)
        net_own_name(file, &own);
    if (own.length <= sizeof(sa_family_t))
        own.length = 0; /* it has none */
    net_say_name(message, &own);
}

/* ---- what comes beside the bytes --------------------------------------------- */

bool unix_wants_credentials(struct net_file *file)
{
    return net_option(file, SOL_SOCKET, SO_PASSCRED) == 1;
}

void unix_sign(struct net_file *file, struct net_file *to, struct net_piece *piece,
               const struct net_ancillary *ancillary)
{
    if (ancillary->has_credentials) {
        piece->has_credentials = true;
        piece->credentials = ancillary->credentials;
    } else if (unix_wants_credentials(file) || unix_wants_credentials(to) || to->is_waiting) {
        piece->has_credentials = true;
        piece->credentials = (struct ucred){.pid = getpid(), .uid = getuid(), .gid = getgid()};
    }
}

void unix_control_out(struct net_file *file, struct msghdr *message, const struct net_piece *piece,
                      struct net_rights *rights, int flags)
{
    struct net_control control;
    bool wants = unix_wants_credentials(file);
    net_control_begin(&control, message);
    if (message->msg_control == NULL) {
        if (wants || rights != NULL)
            message->msg_flags |= MSG_CTRUNC;
        net_drop_rights(rights);
    } else {
        if (wants) {
            /* Of bytes without: pid 0, and the ids that are said for those without a name here;
             * of no bytes at all: zeros. */
            uint32_t nobody = piece != NULL ? 65534 : 0;
            struct ucred unknown = {.pid = 0, .uid = nobody, .gid = nobody};
            bool is_known = piece != NULL && piece->has_credentials;
            net_control_put(&control, SOL_SOCKET, SCM_CREDENTIALS,
                            is_known ? &piece->credentials : &unknown, sizeof unknown);
        }
        if (rights != NULL)
            net_control_put_rights(&control, rights, flags);
    }
    net_control_end(&control);
}

/* ---- who waits for whose queue ----------------------------------------------- */

void unix_wait_no_more(struct net_file *file)
{
    struct net_file *other = file->un.waits_for;
    if (other == NULL)
        return;
    struct net_file **link = &other->un.waiters;
    while (*link != file)
        link = &(*link)->un.next_waiter;
    *link = file->un.next_waiter;
    file->un.waits_for = NULL;
}

void unix_wake_senders(struct net_file *file, uint32_t key)
{
    while (file->un.waiters != NULL) {
        struct net_file *waiter = file->un.waiters;
        unix_wait_no_more(waiter);
        net_wake_up(waiter, key);
    }
}

/* ---- connections ------------------------------------------------------------- */

static int join_stream(struct net_file *file, const struct sockaddr *name, socklen_t length)
{
    int error = unix_check_name(name, length);
    if (error < 0)
        return error;
    if (unix_wants_credentials(file) && !net_bind_somewhere(file))
        return -ENOMEM;
    struct net_file *listener = unix_find(name, length, file->type, &error);
    if (listener == NULL)
        return error;
    if (!net_refresh(listener) || listener->shut & NET_SHUT_RECEIVE)
        return -ECONNREFUSED;
    if (unix_is_full(listener))
        return -EAGAIN;
    if (file->state != NET_CLOSED)
        return file->state == NET_ESTABLISHED ? -EISCONN : -EINVAL;
    struct net_file *child = net_make(AF_UNIX, file->type);
    child->is_waiting = true;
    child->queued_at = listener;
    child->state = file->state = NET_ESTABLISHED;
    child->peer = file;
    file->peer = child;
    net_own_name(listener, &child->own);
    struct net_piece *piece = net_new_piece(0);
    piece->child = child;
    net_push(&listener->in, piece);
    net_wake_up(listener, NET_KEY_READ);
    net_draw_stranger(listener, 0);
    return 0;
}

int unix_connect(struct net_file *file, const struct sockaddr *name, socklen_t length)
{
    return file->type == SOCK_DGRAM ? unix_join_message(file, name, length)
                                    : join_stream(file, name, length);
}

struct net_file *unix_accept(struct net_file *file, int *error)
{
    if (file->type == SOCK_DGRAM)
        *error = -EOPNOTSUPP;
    else if (file->state != NET_LISTENING)
        *error = -EINVAL;
    else if (file->error != 0)
        *error = net_take_error(file);
    else if (file->in.first == NULL)
        *error = -EAGAIN;
    else
        return net_shift_connection(file);
    return NULL;
}

/* ---- ends -------------------------------------------------------------------- */

int unix_shutdown(struct net_file *file, int how)
{
    unsigned bits = (unsigned)how + 1;
    file->shut |= bits;
    net_wake_up(file, NET_KEY_ANY);
    struct net_file *other = file->peer;
    if (other == NULL || file->type == SOCK_DGRAM)
        return 0;
    if (bits & NET_SHUT_RECEIVE)
        other->shut |= NET_SHUT_SEND;
    if (bits & NET_SHUT_SEND)
        other->shut |= NET_SHUT_RECEIVE;
    net_wake_up(other, NET_KEY_ANY);
    return 0;
}

/* Who closes what he has not read resets. What is empty does not count, if it is the first: an
 * urgent byte's segment that was read beside the stream, and an empty message as well. */
static bool has_unread(const struct net_file *file)
{
    struct net_piece *piece = file->in.first;
    if (piece != NULL && piece->start == piece->size)
        piece = piece->next;
    return piece != NULL;
}

static void end(struct net_file *file, bool was_accepted)
{
    bool was_listening = file->state == NET_LISTENING;
    struct net_file *other = file->peer;
    bool is_reset = !was_accepted || (!was_listening && has_unread(file));
    file->is_closed = true;
    file->shut = NET_SHUT_BOTH;
    file->state = NET_CLOSED;
    file->un.urgent = NULL;
    file->peer = NULL;
    unix_wake_senders(file, NET_KEY_ANY);
    if (other != NULL && file->type != SOCK_DGRAM) {
        other->shut = NET_SHUT_BOTH;
        if (is_reset)
            other->error = ECONNRESET;
        net_wake_up(other, NET_KEY_ANY);
    }
    unix_wait_no_more(file);
    for (struct net_piece *piece; (piece = net_shift(&file->in)) != NULL;) {
        if (piece->child != NULL)
            end(piece->child, false);
        net_count_lost(piece->size - piece->start);
        unix_free(piece);
    }
}

void unix_close(struct net_file *file)
{
    end(file, true);
}

uint32_t unix_state_bits(const struct net_file *file)
{
    uint32_t bits = 0;
    if (file->shut == NET_SHUT_BOTH)
        bits |= POLLHUP;
    if (file->shut & NET_SHUT_RECEIVE)
        bits |= POLLRDHUP | POLLIN | POLLRDNORM;
    if (file->in.first != NULL)
        bits |= POLLIN | POLLRDNORM;
    if (file->type != SOCK_DGRAM && file->state == NET_CLOSED)
        bits |= POLLHUP;
    return bits;
}

/* ---- garbage ----------------------------------------------------------------- */

/* Marks what is reached from `file`: by descriptors in its queue, or as a connection there. */
static void reach(struct net_file *file)
{
    if (file == NULL || file->is_reached)
        return;
    file->is_reached = true;
    for (struct net_piece *piece = file->in.first; piece != NULL; piece = piece->next) {
        if (piece->child != NULL)
            reach(piece->child);
        for (int i = 0; piece->rights != NULL && i < piece->rights->count; i++)
            reach(net_known(piece->rights->numbers[i]));
    }
}

void net_collect(void)
{
    bool has_rights = false;
    for (struct net_file *file = net_files; file != NULL; file = file->next) {
        file->is_reached = false;
        for (struct net_piece *piece = file->in.first; piece != NULL; piece = piece->next)
            has_rights |= piece->rights != NULL;
    }
    if (!has_rights)
        return;
    for (struct net_file *file = net_files; file != NULL; file = file->next)
        if (!file->is_closed && !file->is_waiting && net_is_root(file))
            reach(file);
    for (struct net_file *file = net_files; file != NULL; file = file->next)
        if (!file->is_reached && !file->is_closed && file->family == AF_UNIX &&
            file->state != NET_LISTENING)
            unix_purge(file); /* all of it; so its end is no reset */
}
