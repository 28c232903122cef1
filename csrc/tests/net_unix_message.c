/*
 * UNIX datagrams and seqpackets
 *
 * What the kernel does. A datagram goes into the receiver's queue whole, or is refused: by the
 * sender's memory, or by a receiver whose queue is full and who is not connected back. Who was
 * refused by a full receiver that he is connected to is put in the receiver's line, also by a
 * look of poll(2) that asks for POLLOUT; the next receive there wakes all of that line at once,
 * and only one finds room. Who names the receiver with each datagram is in no line: poll(2) tells
 * that he can write, each attempt is refused, and nothing will tell him of room.
 *
 * A receiver that dies: who is connected to him is refused once (-ECONNREFUSED), and is then not
 * connected any more. Who connects elsewhere loses what his old peer had sent him, and his
 * old peer, if it was connected to him, is told by -ECONNRESET.
 *
 * A seqpacket is a datagram between two who are connected, with a stream's ends.
 */
#define _GNU_SOURCE
#include "net_unix.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>

static bool may_send(const struct net_file *file, const struct net_file *to)
{
    return to->peer == NULL || to->peer == file;
}

/* Puts `file` in the line of its full receiver; false: it is not full. */
static bool stand_in_line(struct net_file *file, struct net_file *other)
{
    bool was_none = file->un.waits_for == NULL;
    if (was_none) {
        file->un.waits_for = other;
        file->un.next_waiter = other->un.waiters;
        other->un.waiters = file;
    }
    if (unix_is_full(other) && !other->is_closed)
        return true;
    if (was_none)
        unix_wait_no_more(file);
    return false;
}

/* ---- who is connected to whom ------------------------------------------------ */

/* What its old peer had sent is lost, and he is told. */
static void lose_peer(struct net_file *file, struct net_file *old)
{
    if (file->in.first == NULL)
        return;
    unix_purge(file);
    unix_wake_senders(file, NET_KEY_ANY);
    if (!old->is_closed && old->peer == file) {
        old->error = ECONNRESET;
        net_wake_up(old, POLLERR);
    }
}

static void leave_line(struct net_file *file, struct net_file *other)
{
    if (file->un.waits_for == other)
        unix_wait_no_more(file);
    net_wake_up(file, NET_KEY_WRITE);
}

int unix_join_message(struct net_file *file, const struct sockaddr *name, socklen_t length)
{
    struct net_file *other = NULL, *old = file->peer;
    int error = -EINVAL;
    if (length < sizeof name->sa_family)
        return error;
    if (name->sa_family != AF_UNSPEC) {
        error = unix_check_name(name, length);
        if (error < 0)
            return error;
        if (unix_wants_credentials(file) && !net_bind_somewhere(file))
            return -ENOMEM;
        other = unix_find(name, length, file->type, &error);
        if (other == NULL)
            return error;
        if (!may_send(file, other))
            return -EPERM;
        file->state = other->state = NET_ESTABLISHED;
    }
    file->peer = other;
    if (old == NULL)
        return 0;
    if (other == NULL)
        file->state = NET_CLOSED;
    leave_line(file, old);
    if (other != old) {
        lose_peer(file, old);
        if (old->peer == NULL)
            old->state = NET_CLOSED;
    }
    return 0;
}

/* ---- sends ------------------------------------------------------------------- */

/* The receiver is dead: whose he was is nobody's now. */
static int send_to_dead(struct net_file *file, struct net_file *other)
{
    if (file->type == SOCK_SEQPACKET)
        return -EPIPE;
    if (file->peer != other)
        return -ECONNREFUSED;
    file->peer = NULL;
    leave_line(file, other);
    file->state = NET_CLOSED;
    lose_peer(file, other);
    return -ECONNREFUSED;
}

static int deliver(struct net_file *file, struct net_file *other, struct net_piece *piece)
{
    if (!may_send(file, other))
        return -EPERM;
    if (other->is_closed)
        return send_to_dead(file, other);
    if (other->shut & NET_SHUT_RECEIVE)
        return -EPIPE;
    if (other != file && other->peer != file && unix_is_full(other) &&
        (file->peer != other || stand_in_line(file, other)))
        return -EAGAIN;
    net_push(&other->in, piece);
    net_count_sent(piece->size);
    size_t size = piece->size;
    net_wake_up(other, NET_KEY_READ);
    net_draw_stranger(other, size);
    return 0;
}

static int send_one(struct net_file *file, const struct msghdr *message, int flags,
                    struct net_ancillary *ancillary)
{
    const struct sockaddr *name = message->msg_name;
    socklen_t length = file->type == SOCK_DGRAM ? message->msg_namelen : 0;
    size_t size = net_length(message);
    int error = 0;
    if (flags & MSG_OOB)
        return -EOPNOTSUPP;
    if (length > 0)
        error = unix_check_name(name, length);
    if (error < 0)
        return error;
    if (unix_wants_credentials(file) && !net_bind_somewhere(file))
        return -ENOMEM;
    if (size > (size_t)net_option(file, SOL_SOCKET, SO_SNDBUF) - 32)
        return -EMSGSIZE;
    struct net_piece *piece = net_new_piece(size);
    piece->cost = unix_message_cost(size);
    if (!unix_charge(file, piece, &error)) {
        net_free_piece(piece);
        return error;
    }
    net_gather(message, 0, piece->data, size);
    piece->rights = ancillary->rights;
    ancillary->rights = NULL;
    struct net_file *other = file->peer;
    error = -ENOTCONN;
    if (length > 0)
        other = unix_find(name, length, file->type, &error);
    if (other != NULL) {
        unix_sign(file, other, piece, ancillary);
        error = deliver(file, other, piece);
    }
    if (error < 0) {
        unix_free(piece); /* which is an echo to whoever waits to write */
        return error;
    }
    return (int)size;
}

static int message_send(struct net_file *file, const struct msghdr *message, int flags)
{
    struct net_ancillary ancillary;
    int result = 0;
    if (file->type == SOCK_SEQPACKET) {
        if (file->error != 0)
            return net_take_error(file);
        if (file->state != NET_ESTABLISHED)
            return -ENOTCONN;
    }
    result = net_read_ancillary(message, true, &ancillary);
    if (result == 0)
        result = send_one(file, message, flags, &ancillary);
    net_drop_rights(ancillary.rights);
    return result;
}

/* ---- receives ---------------------------------------------------------------- */

static int message_receive(struct net_file *file, struct msghdr *message, int flags)
{
    bool is_peek = (flags & MSG_PEEK) != 0;
    if (file->type == SOCK_SEQPACKET && file->state != NET_ESTABLISHED)
        return -ENOTCONN;
    if (flags & MSG_OOB)
        return -EOPNOTSUPP;
    if (file->error != 0)
        return net_take_error(file);
    struct net_piece *piece = file->in.first;
    if (piece == NULL)
        return file->type == SOCK_SEQPACKET && file->shut & NET_SHUT_RECEIVE ? 0 : -EAGAIN;
    if (!is_peek)
        net_shift(&file->in);
    unix_wake_senders(file, NET_KEY_WRITE);
    unix_name_of(piece->from, message);
    size_t room = net_length(message), size = piece->size < room ? piece->size : room;
    if (size < piece->size)
        message->msg_flags |= MSG_TRUNC;
    net_scatter(message, 0, piece->data, size);
    struct net_rights *rights = piece->rights;
    if (is_peek && rights != NULL)
        rights = net_copy_rights(rights);
    else
        piece->rights = NULL;
    unix_control_out(file, message, piece, rights, flags);
    int result = (int)(flags & MSG_TRUNC ? piece->size : size);
    if (!is_peek) {
        net_count_received(size);
        net_count_lost(piece->size - size);
        unix_free(piece);
    }
    return result;
}

/* ---- looks ------------------------------------------------------------------- */

static int message_ioctl(struct net_file *file, unsigned long request, int *value)
{
    switch (request) {
    case SIOCOUTQ:
        *value = (int)file->memory;
        return 0;
    case FIONREAD:
        if (file->state == NET_LISTENING)
            return -EINVAL;
        *value = 0;
        for (struct net_piece *piece = file->in.first; piece != NULL; piece = piece->next) {
            *value += (int)piece->size;
            if (file->type == SOCK_DGRAM)
                break;
        }
        return 0;
    case SIOCATMARK:
        *value = 0;
        return 0;
    default:
        return -ENOTTY;
    }
}

static uint32_t message_poll(struct net_file *file, uint32_t events)
{
    uint32_t bits = unix_state_bits(file);
    if (file->error != 0)
        bits |= POLLERR;
    if (!(events & NET_KEY_WRITE))
        return bits;
    struct net_file *other = file->peer;
    bool is_writable = unix_is_writable(file);
    if (is_writable && other != NULL && other->peer != file && unix_is_full(other) &&
        stand_in_line(file, other))
        is_writable = false;
    return is_writable ? bits | NET_KEY_WRITE : bits;
}

const struct net_kind net_kind_unix_message = {
    .sendmsg = message_send,
    .recvmsg = message_receive,
    .connect = unix_connect,
    .accept = unix_accept,
    .shutdown = unix_shutdown,
    .space = unix_space,
    .ioctl = message_ioctl,
    .poll = message_poll,
    .close = unix_close,
};
