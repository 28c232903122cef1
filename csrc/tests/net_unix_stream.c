/*
 * UNIX streams
 *
 * What the kernel does. A send is cut into segments of at most half of the sender's limit, and
 * each is refused or taken whole; so a send is short where a segment is refused, and may go
 * beyond the limit by one segment. Descriptors go with the first segment; a receive that gets
 * some ends behind the segment that has brought them.
 *
 * An urgent byte is a segment of its own. A receive stops before it; one that begins there
 * throws it away and goes on, or begins with it (SO_OOBINLINE). A newer one makes the older
 * an ordinary byte. When MSG_OOB has taken it, its segment stays in the queue, empty, until the
 * stream has passed it: so poll(2) tells POLLIN where a receive finds nothing. And FIONREAD
 * counts for ever an urgent byte that was thrown away. That is 6.18's behaviour, and ours.
 */
#define _GNU_SOURCE
#include "net_unix.h"

#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>

#define SEGMENT_LARGEST ((size_t)(4096 - 320 + 32768)) /* bytes */

static size_t left_of(const struct net_piece *piece)
{
    return piece->size - piece->start;
}

/* ---- sends ------------------------------------------------------------------- */

/* One segment of it, from byte `from`. */
static int send_segment(struct net_file *file, const struct msghdr *message, size_t from,
                        size_t size, struct net_ancillary *ancillary, bool is_urgent)
{
    struct net_file *other = file->peer;
    struct net_piece *piece = net_new_piece(size);
    int error;
    piece->cost = unix_segment_cost(size);
    if (!unix_charge(file, piece, &error)) {
        net_free_piece(piece);
        return error;
    }
    net_gather(message, from, piece->data, size);
    unix_sign(file, other, piece, ancillary);
    if (other->is_closed || other->shut & NET_SHUT_RECEIVE) {
        unix_free(piece);
        return -EPIPE;
    }
    piece->rights = ancillary->rights; /* with the first segment only */
    ancillary->rights = NULL;
    net_push(&other->in, piece);
    other->un.queued += size;
    net_count_sent(size);
    if (is_urgent)
        other->un.urgent = piece;
    net_wake_up(other, NET_KEY_READ);
    net_draw_stranger(other, size);
    return (int)size;
}

static int send_all(struct net_file *file, const struct msghdr *message, int flags,
                    struct net_ancillary *ancillary)
{
    size_t size = net_length(message), sent = 0;
    if (flags & MSG_OOB) {
        if (size == 0)
            return -EOPNOTSUPP;
        size--;
    }
    if (message->msg_namelen > 0)
        return file->state == NET_ESTABLISHED ? -EISCONN : -EOPNOTSUPP;
    if (file->peer == NULL)
        return -ENOTCONN;
    if (file->shut & NET_SHUT_SEND)
        return -EPIPE;
    size = net_draw_size(size, !(flags & MSG_OOB));
    int result = 0;
    while (sent < size && result >= 0) {
        size_t most = (size_t)net_option(file, SOL_SOCKET, SO_SNDBUF) / 2 - 64;
        size_t segment = size - sent < most ? size - sent : most;
        if (segment > SEGMENT_LARGEST)
            segment = SEGMENT_LARGEST;
        result = send_segment(file, message, sent, segment, ancillary, false);
        if (result > 0)
            sent += (size_t)result;
    }
    if (flags & MSG_OOB && result >= 0) {
        result = send_segment(file, message, sent, 1, ancillary, true);
        if (result > 0)
            sent++;
    }
    return sent > 0 ? (int)sent : result;
}

static int stream_send(struct net_file *file, const struct msghdr *message, int flags)
{
    struct net_ancillary ancillary;
    int result = net_read_ancillary(message, true, &ancillary);
    if (result == 0)
        result = send_all(file, message, flags, &ancillary);
    net_drop_rights(ancillary.rights);
    return result;
}

/* ---- receives ---------------------------------------------------------------- */

static int receive_urgent(struct net_file *file, struct msghdr *message, int flags)
{
    struct net_piece *piece = file->un.urgent;
    if (net_option(file, SOL_SOCKET, SO_OOBINLINE) == 1 || piece == NULL)
        return -EINVAL;
    if (net_length(message) > 0)
        net_scatter(message, 0, piece->data + piece->start, 1);
    message->msg_flags |= MSG_OOB;
    if (!(flags & MSG_PEEK)) {
        file->un.urgent = NULL;
        for (struct net_piece *before = file->in.first; before != piece; before = before->next)
            if (before->next == piece && left_of(before) == 0) {
                net_unlink(&file->in, before);
                unix_free(before);
                break;
            }
        piece->start++;
        file->un.queued--;
        net_count_received(1);
    }
    return 1;
}

static void remove_piece(struct net_file *file, struct net_piece *piece)
{
    net_unlink(&file->in, piece);
    net_count_lost(left_of(piece));
    unix_free(piece);
}

/* Where a receive goes on that has come to `piece`; NULL: nowhere. */
static struct net_piece *past_mark(struct net_file *file, struct net_piece *piece, bool is_peek,
                                   bool has_some)
{
    if (left_of(piece) > 0 && piece != file->un.urgent)
        return piece;
    if (left_of(piece) == 0) {
        if (has_some && (file->un.urgent == NULL || file->un.urgent == piece))
            return NULL;
        struct net_piece *next = piece->next;
        if (!is_peek)
            remove_piece(file, piece);
        piece = next;
    }
    if (piece == NULL || piece != file->un.urgent)
        return piece;
    if (has_some)
        return NULL;
    bool is_inline = net_option(file, SOL_SOCKET, SO_OOBINLINE) == 1;
    if (is_peek)
        return is_inline ? piece : piece->next;
    file->un.urgent = NULL;
    if (is_inline)
        return piece;
    remove_piece(file, piece);
    return file->in.first;
}

static bool same_writer(const struct net_piece *piece, const struct net_piece *first)
{
    return piece->has_credentials == first->has_credentials &&
           (!piece->has_credentials ||
            memcmp(&piece->credentials, &first->credentials, sizeof piece->credentials) == 0);
}

static size_t low_water(struct net_file *file, size_t size)
{
    size_t bytes = (size_t)net_option(file, SOL_SOCKET, SO_RCVLOWAT);
    return bytes < size ? bytes : size;
}

/* Why a receive finds nothing. */
static int nothing(struct net_file *file)
{
    if (file->error != 0)
        return net_take_error(file);
    return file->shut & NET_SHUT_RECEIVE ? 0 : -EAGAIN;
}

static int stream_receive(struct net_file *file, struct msghdr *message, int flags)
{
    bool is_peek = (flags & MSG_PEEK) != 0, checks = unix_wants_credentials(file);
    size_t size = net_length(message), copied = 0;
    struct net_piece *piece, *next = file->in.first;
    struct net_piece first = {.size = 0};
    struct net_rights *rights = NULL;
    bool has_first = false, has_name = false;
    int result = 0;
    if (file->state != NET_ESTABLISHED)
        return -EINVAL;
    if (flags & MSG_OOB)
        return receive_urgent(file, message, flags);
    size = net_draw_size(size, true);
    size_t target = flags & MSG_WAITALL ? size : low_water(file, size);
    do {
        piece = is_peek ? next : file->in.first;
        if (piece != NULL) {
            piece = past_mark(file, piece, is_peek, copied > 0);
            if (piece == NULL && copied > 0)
                break;
        }
        while (piece != NULL && left_of(piece) == 0)
            piece = piece->next;
        if (piece == NULL) {
            if (copied == 0)
                result = nothing(file);
            else if (copied < target)
                net_take_error(file); /* it waits for more, and so loses the error */
            break;
        }
        if (has_first && !same_writer(piece, &first))
            break; /* what different writers have sent is never glued */
        if (checks && !has_first) {
            first.has_credentials = piece->has_credentials;
            first.credentials = piece->credentials;
            has_first = true;
        }
        if (!has_name)
            unix_name_of(piece->from, message);
        has_name = true;
        size_t count = left_of(piece) < size - copied ? left_of(piece) : size - copied;
        net_scatter(message, copied, piece->data + piece->start, count);
        copied += count;
        if (is_peek) {
            if (piece->rights != NULL) {
                net_drop_rights(rights);
                rights = net_copy_rights(piece->rights);
                break;
            }
            next = piece->next;
            if (next == NULL)
                break;
            continue;
        }
        piece->start += count;
        file->un.queued -= count;
        net_count_received(count);
        if (piece->rights != NULL) {
            rights = piece->rights;
            piece->rights = NULL;
        }
        if (left_of(piece) > 0)
            break;
        net_unlink(&file->in, piece);
        unix_free(piece);
    } while (is_peek || (copied < size && rights == NULL));
    unix_control_out(file, message, has_first ? &first : NULL, rights, flags);
    return copied > 0 ? (int)copied : result;
}

/* ---- looks ------------------------------------------------------------------- */

static int stream_ioctl(struct net_file *file, unsigned long request, int *value)
{
    struct net_piece *piece = file->in.first;
    switch (request) {
    case SIOCOUTQ:
        *value = (int)file->memory;
        return 0;
    case FIONREAD:
        if (file->state == NET_LISTENING)
            return -EINVAL;
        *value = (int)file->un.queued;
        return 0;
    case SIOCATMARK:
        *value = piece != NULL &&
                 (piece == file->un.urgent ||
                  (left_of(piece) == 0 &&
                   (file->un.urgent == NULL || piece->next == file->un.urgent)));
        return 0;
    default:
        return -ENOTTY;
    }
}

static uint32_t stream_poll(struct net_file *file, uint32_t events)
{
    (void)events;
    uint32_t bits = unix_state_bits(file);
    if (file->error != 0)
        bits |= POLLERR;
    if (file->un.urgent != NULL)
        bits |= POLLPRI;
    if (unix_is_writable(file))
        bits |= NET_KEY_WRITE;
    return bits;
}

const struct net_kind net_kind_unix_stream = {
    .sendmsg = stream_send,
    .recvmsg = stream_receive,
    .connect = unix_connect,
    .accept = unix_accept,
    .shutdown = unix_shutdown,
    .space = unix_space,
    .ioctl = stream_ioctl,
    .poll = stream_poll,
    .close = unix_close,
};
