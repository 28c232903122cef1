/*
 * UDP
 *
 * What the kernel does. A datagram is lost where the receiver's memory (SO_RCVBUF) is full, and
 * nobody is told; only a sender whose own memory is full waits, which needs a slow line: here
 * where datagrams are under way for a time. As it leaves it gives its memory back, and that
 * wakes whoever waits to write on the sender, at each send.
 *
 * The checksum of a datagram of more than 68 bytes is looked at by whoever receives it; smaller
 * ones are thrown away as they come. So a wrong one wakes, and poll(2) tells POLLIN
 * until a receive has thrown it away and found nothing; only where the file is blocking does
 * poll(2) itself look.
 *
 * A port where nobody is answers (ICMP), and that is the error of the sender, if it is
 * connected or has asked by IP_RECVERR: told by the next call of any kind, once, whatever it
 * asks; a send that tells it does not send.
 *
 * Who gets it: of the sockets at that port the one that fits best; one that is connected takes
 * only what its peer sends.
 *
 * Not made: broadcast and multicast, fragments, GSO and GRO, corking, IP options, timestamps of
 * receives.
 */
#define _GNU_SOURCE
#include "net_inside.h"

#include <errno.h>
#include <linux/errqueue.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../ut_assert.h"

#define HEADERS 28u /* bytes: IPv4's and UDP's */
#define LARGEST 65507u
#define LARGEST_V6 65527u
#define LINEAR_LARGEST ((size_t)(4 * 4096 - 320))
#define SUMMED_AT_ONCE ((size_t)68) /* bytes */
#define SMALL_HEAD ((size_t)576)

static size_t cost_of(size_t size)
{
    size_t room = size + HEADERS + 31; /* and where a device puts its own header */
    size_t needed = (room + 63) / 64 * 64 + 320, cost = 1024;
    if (room >= LINEAR_LARGEST)
        return SMALL_HEAD + 256 + size;
    if (needed <= SMALL_HEAD)
        return SMALL_HEAD + 256;
    while (cost < needed)
        cost *= 2;
    return cost + 256;
}

static bool is_writable(struct net_file *file)
{
    return file->memory < (size_t)net_option(file, SOL_SOCKET, SO_SNDBUF) / 2;
}

static void wake_writers(struct net_file *file)
{
    if (is_writable(file))
        net_wake_up(file, NET_KEY_WRITE);
}

/* ---- who gets it ------------------------------------------------------------- */

/* How well a file fits a datagram to `to` from `from`; -1: not at all. */
static int fit(struct net_file *file, const struct net_name *to, const struct net_name *from)
{
    struct net_name own, own_to = *to, own_from = *from;
    bool is_v4 = net_is_v4(to);
    net_own_name(file, &own);
    if (own.length == 0 || own.at.v4.sin_port == 0 || !net_same_port(&own, to))
        return -1;
    if (file->family == AF_INET && !is_v4)
        return -1;
    if (file->family == AF_INET6 && is_v4 &&
        net_option(file, IPPROTO_IPV6, IPV6_V6ONLY) == 1)
        return -1;
    net_name_as(file->family, &own_to);
    net_name_as(file->family, &own_from);
    int score = (file->family == AF_INET) == is_v4;
    if (!net_is_any(&own)) {
        if (!net_same_name(&own, &own_to))
            return -1;
        score += 4;
    }
    if (file->udp.is_connected) {
        if (file->peer_name.at.v4.sin_port == 0)
            own_from.at.v4.sin_port = 0; /* any port of that address */
        if (!net_same_name(&file->peer_name, &own_from))
            return -1;
        score += 8;
    }
    return score;
}

static struct net_file *receiver_of(const struct net_name *to, const struct net_name *from)
{
    struct net_file *found[16];
    unsigned count = 0;
    int best = -1;
    for (struct net_file *file = net_files; file != NULL; file = file->next) {
        if (file->kind != &net_kind_udp || file->is_closed)
            continue;
        int score = fit(file, to, from);
        if (score > best) {
            best = score;
            count = 0;
        }
        if (score >= 0 && score == best && count < 16)
            found[count++] = file;
    }
    if (count == 0)
        return NULL;
    /* The last that was bound; or whoever a balancer names. */
    bool is_shared = net_option(found[0], SOL_SOCKET, SO_REUSEPORT) == 1;
    return found[is_shared ? net_draw(true, count) : count - 1];
}

/* ---- what comes -------------------------------------------------------------- */

/* `packet` could not be delivered; its sender is who would get an answer by a datagram. */
static void be_answered(struct net_piece *packet)
{
    struct net_file *file = receiver_of(&packet->name, &packet->to);
    if (file == NULL) {
        net_free_piece(packet);
        return;
    }
    bool is_v4 = file->family == AF_INET;
    bool asks = is_v4 ? net_option(file, IPPROTO_IP, IP_RECVERR) == 1
                      : net_option(file, IPPROTO_IPV6, IPV6_RECVERR) == 1;
    if (!asks && !file->udp.is_connected) {
        net_free_piece(packet);
        return;
    }
    if (asks) {
        packet->error = ECONNREFUSED;
        packet->origin = is_v4 ? SO_EE_ORIGIN_ICMP : SO_EE_ORIGIN_ICMP6;
        packet->type = is_v4 ? 3 : 1; /* unreachable: */
        packet->code = is_v4 ? 3 : 4; /* the port */
        packet->name = packet->to; /* who answers is who was asked */
        net_queue_error(file, packet);
    } else {
        net_free_piece(packet);
    }
    file->error = ECONNREFUSED;
    net_wake_up(file, POLLERR);
}

static void come(struct net_piece *piece)
{
    struct net_file *file = receiver_of(&piece->to, &piece->name);
    piece->from = NULL;
    if (file == NULL) {
        net_learn_all();
        file = receiver_of(&piece->to, &piece->name);
    }
    if (piece->is_wrong && (piece->size <= SUMMED_AT_ONCE || file == NULL)) {
        net_count_lost(piece->size);
        net_free_piece(piece);
        return;
    }
    if (file == NULL) {
        net_count_lost(piece->size);
        net_post((struct net_under_way){.due_ns = net_now_ns() + net_delay_ns(),
                                        .event = NET_EVENT_UNREACHABLE, .piece = piece});
        return;
    }
    size_t limit = (size_t)net_option(file, SOL_SOCKET, SO_RCVBUF);
    if (file->in.cost + file->errors.cost > 0 &&
        file->in.cost + file->errors.cost + piece->cost > limit) {
        net_count_lost(piece->size);
        net_free_piece(piece);
        return;
    }
    size_t size = piece->size;
    net_name_as(file->family, &piece->name);
    net_push(&file->in, piece);
    net_wake_up(file, NET_KEY_READ);
    net_draw_stranger(file, size);
}

/* It leaves the sender, whose memory it was. */
static void leave(struct net_piece *piece)
{
    struct net_file *from = piece->from;
    from->memory -= piece->cost;
    wake_writers(from);
    come(piece);
}

void net_udp_event(struct net_under_way *event)
{
    if (event->event == NET_EVENT_UNREACHABLE)
        be_answered(event->piece);
    else
        leave(event->piece);
}

void net_bad_datagram(struct net_file *file, size_t size)
{
    struct net_piece *piece = net_new_piece(size);
    piece->cost = cost_of(size);
    piece->is_wrong = true;
    net_count_sent(size);
    net_own_name(file, &piece->to);
    struct net_name any = {.at.any.sa_family = (sa_family_t)file->family};
    net_source_name(file, &any, &piece->name);
    if (file->udp.is_connected)
        piece->name = file->peer_name;
    if (net_is_any(&piece->to))
        net_source_name(file, &any, &piece->to);
    come(piece);
}

/* ---- sends ------------------------------------------------------------------- */

/* The source that a control message asks for. */
static int read_source(struct net_file *file, const struct msghdr *message, struct net_name *own)
{
    struct net_ancillary none;
    int error = net_read_ancillary(message, false, &none);
    if (error < 0 || message->msg_controllen < sizeof(struct cmsghdr))
        return error;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL;
         header = CMSG_NXTHDR((struct msghdr *)message, header)) {
        if (file->family == AF_INET && header->cmsg_level == IPPROTO_IP &&
            header->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo asked;
            if (header->cmsg_len != CMSG_LEN(sizeof asked))
                return -EINVAL;
            memcpy(&asked, CMSG_DATA(header), sizeof asked);
            if (asked.ipi_spec_dst.s_addr != 0)
                own->at.v4.sin_addr = asked.ipi_spec_dst;
        }
        if (file->family == AF_INET6 && header->cmsg_level == IPPROTO_IPV6 &&
            header->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo asked;
            if (header->cmsg_len < CMSG_LEN(sizeof asked))
                return -EINVAL;
            memcpy(&asked, CMSG_DATA(header), sizeof asked);
            if (!IN6_IS_ADDR_UNSPECIFIED(&asked.ipi6_addr))
                own->at.v6.sin6_addr = asked.ipi6_addr;
        }
    }
    return 0;
}

static int udp_send(struct net_file *file, const struct msghdr *message, int flags)
{
    size_t size = net_length(message);
    struct net_name to = file->peer_name, own;
    bool is_v4 = file->family == AF_INET;
    int error;
    if (!net_bind_somewhere(file))
        return -EAGAIN;
    if (is_v4 && size > 0xffff)
        return -EMSGSIZE;
    if (is_v4 && flags & MSG_OOB)
        return -EOPNOTSUPP;
    if (message->msg_namelen > 0) {
        const struct sockaddr *name = message->msg_name;
        struct sockaddr_in plain;
        if (is_v4 && message->msg_namelen >= sizeof plain && name->sa_family == AF_UNSPEC) {
            memcpy(&plain, name, sizeof plain);
            plain.sin_family = AF_INET;
            name = (struct sockaddr *)&plain;
        }
        error = net_check_name(file, name, message->msg_namelen, &to);
        if (error < 0)
            return error;
        if (to.at.v4.sin_port == 0)
            return -EINVAL;
    } else if (!file->udp.is_connected) {
        return -EDESTADDRREQ;
    }
    net_source_name(file, &to, &own);
    error = read_source(file, message, &own);
    if (error < 0)
        return error;
    if (net_place_of(&to) == NET_PLACE_NONE)
        return -ENETUNREACH;
    if (size > (is_v4 ? LARGEST : LARGEST_V6))
        return -EMSGSIZE;
    if (file->error != 0)
        return net_take_error(file);
    if (file->shut & NET_SHUT_SEND)
        return -EPIPE;
    if (file->memory >= (size_t)net_option(file, SOL_SOCKET, SO_SNDBUF))
        return -EAGAIN;
    if (net_draw(net_choices.no_buffers, 32) == 1)
        return -ENOBUFS;
    net_count_sent(size);
    static const enum { ARRIVES, LOST, TWICE, WRONG } fates[] = {ARRIVES, ARRIVES, ARRIVES, ARRIVES,
                                                                 ARRIVES, LOST, TWICE, WRONG};
    unsigned fate = fates[net_draw(net_choices.losses, 8)];
    bool is_silent = fate == LOST || net_place_of(&to) == NET_PLACE_SILENT;
    uint64_t due_ns = net_now_ns() + net_delay_ns();
    if (!net_choices.order && due_ns < file->last_due_ns)
        due_ns = file->last_due_ns;
    file->last_due_ns = due_ns;
    for (unsigned copies = fate == TWICE ? 2 : 1; copies > 0; copies--) {
        struct net_piece *piece = net_new_piece(size);
        net_gather(message, 0, piece->data, size);
        piece->cost = cost_of(size);
        piece->name = own;
        piece->to = to;
        piece->from = file;
        piece->is_wrong = fate == WRONG;
        file->memory += piece->cost;
        if (copies == 1)
            net_stamp(file, piece->data, size, 42);
        else
            net_count_sent(size);
        if (is_silent) {
            file->memory -= piece->cost;
            wake_writers(file);
            net_count_lost(size);
            net_free_piece(piece);
        } else {
            net_post((struct net_under_way){.due_ns = due_ns, .event = NET_EVENT_DATAGRAM,
                                            .to = file, .piece = piece});
        }
    }
    return (int)size;
}

/* ---- receives ---------------------------------------------------------------- */

/* Throws away what has a wrong checksum; the first that is right, or NULL. */
static struct net_piece *first_right(struct net_file *file)
{
    while (file->in.first != NULL && file->in.first->is_wrong) {
        struct net_piece *piece = net_shift(&file->in);
        net_count_lost(piece->size);
        net_free_piece(piece);
    }
    return file->in.first;
}

static void control_out(struct net_file *file, struct msghdr *message,
                        const struct net_piece *piece)
{
    struct net_control control;
    int device = (int)if_nametoindex("lo");
    net_control_begin(&control, message);
    struct net_name to = piece->to;
    if (file->family == AF_INET && net_option(file, IPPROTO_IP, IP_PKTINFO) == 1) {
        struct in_pktinfo info = {.ipi_ifindex = device, .ipi_spec_dst = to.at.v4.sin_addr,
                                  .ipi_addr = to.at.v4.sin_addr};
        net_control_put(&control, IPPROTO_IP, IP_PKTINFO, &info, sizeof info);
    }
    if (file->family == AF_INET6 && net_option(file, IPPROTO_IPV6, IPV6_RECVPKTINFO) == 1) {
        net_name_as(AF_INET6, &to);
        struct in6_pktinfo info = {.ipi6_addr = to.at.v6.sin6_addr,
                                   .ipi6_ifindex = (unsigned)device};
        net_control_put(&control, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
    }
    net_control_end(&control);
}

static int udp_receive(struct net_file *file, struct msghdr *message, int flags)
{
    if (flags & MSG_ERRQUEUE)
        return net_receive_error(file, message);
    if (file->error != 0)
        return net_take_error(file);
    struct net_piece *piece = first_right(file);
    if (piece == NULL)
        return -EAGAIN;
    size_t room = net_length(message), size = piece->size < room ? piece->size : room;
    if (size < piece->size)
        message->msg_flags |= MSG_TRUNC;
    net_scatter(message, 0, piece->data, size);
    net_say_name(message, &piece->name);
    control_out(file, message, piece);
    int result = (int)(flags & MSG_TRUNC ? piece->size : size);
    if (!(flags & MSG_PEEK)) {
        net_count_received(size);
        net_count_lost(piece->size - size);
        net_free_piece(net_shift(&file->in));
    }
    return result;
}

/* ---- connections, ends, looks ------------------------------------------------ */

void net_udp_join(struct net_file *one, struct net_file *other)
{
    struct net_file *files[2] = {one, other};
    for (int i = 0; i < 2; i++) {
        struct net_name any = {.at.any.sa_family = (sa_family_t)files[i]->family};
        net_bind_somewhere(files[i]);
        net_source_name(files[i], &any, &files[i]->own);
        files[i]->udp.is_connected = true;
        files[i]->state = NET_ESTABLISHED;
    }
    one->peer_name = other->own;
    other->peer_name = one->own;
}

static int udp_connect(struct net_file *file, const struct sockaddr *name, socklen_t length)
{
    if (length < sizeof name->sa_family)
        return -EINVAL;
    if (name->sa_family == AF_UNSPEC) {
        file->udp.is_connected = false;
        file->state = NET_CLOSED;
        file->peer_name.length = 0;
        file->own.length = 0;
        /* A port that nobody has asked for is given back. */
        connect(net_number(file), name, length);
        return 0;
    }
    struct net_name to;
    if (!net_bind_somewhere(file))
        return -EAGAIN;
    int error = net_check_name(file, name, length, &to);
    if (error == 0 && net_place_of(&to) == NET_PLACE_NONE)
        error = -ENETUNREACH;
    if (error < 0)
        return error;
    struct net_name own;
    net_source_name(file, &to, &own);
    file->own = own;
    file->peer_name = to;
    file->udp.is_connected = true;
    file->state = NET_ESTABLISHED;
    return 0;
}

static int udp_shutdown(struct net_file *file, int how)
{
    file->shut |= (unsigned)how + 1;
    net_wake_up(file, NET_KEY_ANY);
    return file->udp.is_connected ? 0 : -ENOTCONN;
}

static void udp_close(struct net_file *file)
{
    net_empty(&file->in, true);
    net_empty(&file->errors, false);
}

static int udp_ioctl(struct net_file *file, unsigned long request, int *value)
{
    struct net_piece *piece;
    switch (request) {
    case FIONREAD:
        piece = first_right(file);
        *value = piece != NULL ? (int)piece->size : 0;
        return 0;
    case SIOCOUTQ:
        *value = (int)file->memory;
        return 0;
    default:
        return -ENOTTY;
    }
}

static uint32_t udp_poll(struct net_file *file, uint32_t events)
{
    (void)events;
    uint32_t bits = 0;
    if (file->error != 0 || file->errors.first != NULL)
        bits |= POLLERR;
    if (file->shut & NET_SHUT_RECEIVE)
        bits |= POLLRDHUP | POLLIN | POLLRDNORM;
    if (file->shut == NET_SHUT_BOTH)
        bits |= POLLHUP;
    if (is_writable(file))
        bits |= NET_KEY_WRITE;
    if (file->in.first != NULL && !(file->shut & NET_SHUT_RECEIVE) &&
        !net_is_nonblocking(file))
        first_right(file);
    if (file->in.first != NULL)
        bits |= POLLIN | POLLRDNORM;
    return bits;
}

const struct net_kind net_kind_udp = {
    .sendmsg = udp_send,
    .recvmsg = udp_receive,
    .connect = udp_connect,
    .shutdown = udp_shutdown,
    .ioctl = udp_ioctl,
    .space = wake_writers,
    .poll = udp_poll,
    .close = udp_close,
};
