/*
 * TCP
 *
 * What the kernel does. Bytes that a send has taken lie with the sender until the receiver's
 * kernel has them, and cost memory there (SO_SNDBUF); how many may be on their way or in the
 * receiver's queue its window says (SO_RCVBUF). A sender is writable while two thirds of its
 * limit are taken at most, and is told of room only after it was refused (SOCK_NOSPACE), by the
 * receiver's kernel taking more, which needs a reader that has made room for much: so a
 * reader's receives of a little wake nobody.
 *
 * An end (FIN) comes behind the bytes. A reset (RST) comes behind what is on its way, throws away
 * what the receiver was about to send, and leaves what it had received: data first, then the
 * error, once. What causes one: a close with bytes unread, or with SO_LINGER 0; bytes for
 * somebody who has closed, or has shut both directions. Who has seen the other's end is told
 * EPIPE by it, others ECONNRESET.
 *
 * An urgent byte (MSG_OOB: the last of that send) is one of the stream, with a mark before it. A
 * receive stops at the mark if it has something, and skips the byte if it begins there. There
 * is one mark: a newer one makes the older an ordinary byte. Each urgent segment wakes twice.
 *
 * What we chose. A segment is sent as soon as the window allows, acknowledged as soon as it
 * arrives, and delayed only where that is chosen (net_choices.delays), each direction in order.
 * A window is half of SO_RCVBUF, and moves by half of itself at least. The last step of a
 * handshake always finds room in the listener's queue if the first has.
 *
 * What it costs: figures. How much is taken of a first send, how much must be read until a
 * writer is woken, depend in Linux on the layout of buffers, on delayed acknowledgements and on
 * limits that grow; here they are simpler, and of the same kind. So limits that nobody has set
 * do not grow. Nagle, TCP_CORK, MSG_MORE, MSG_ZEROCOPY, fast open, keepalives and
 * TCP_DEFER_ACCEPT do nothing.
 */
#define _GNU_SOURCE
#include "net_inside.h"

#include <errno.h>
#include <limits.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../ut_assert.h"

#define SEGMENT_COST ((size_t)832) /* bytes of memory, besides the data's */
#define SEGMENT_LARGEST ((uint64_t)32741)
#define SEGMENT_SMALLEST ((uint64_t)536)
#define LIMIT_UNSET 16384           /* SO_SNDBUF of a socket that is not connected; */
#define LIMIT_GROWN ((size_t)2626560) /* and what it is as soon as it is, on the loopback */
#define FIRST_TRY_NS ((uint64_t)1000000000) /* of a SYN that was not answered */
#define TRIES 7u

static void push(struct net_file *file);

static bool is_connected(const struct net_file *file)
{
    return file->state != NET_CLOSED && file->state != NET_LISTENING &&
           file->state != NET_SYN_SENT;
}

static bool may_send(const struct net_file *file)
{
    return file->state == NET_ESTABLISHED || file->state == NET_CLOSE_WAIT;
}

/* ---- room -------------------------------------------------------------------- */

static size_t send_limit(struct net_file *file)
{
    int limit = net_option(file, SOL_SOCKET, SO_SNDBUF);
    return limit == LIMIT_UNSET && is_connected(file) ? LIMIT_GROWN : (size_t)limit;
}

static bool is_writable(struct net_file *file)
{
    size_t limit = send_limit(file);
    return file->memory < limit && limit - file->memory >= file->memory / 2;
}

static void wake_writers(struct net_file *file)
{
    if (is_writable(file)) {
        file->tcp.no_space = false;
        net_wake_up(file, NET_KEY_WRITE);
    }
}

static uint64_t window(struct net_file *file)
{
    return (uint64_t)net_option(file, SOL_SOCKET, SO_RCVBUF) / 2;
}

/* Moves the edge of what the other may send, if there is room for much. */
static bool announce(struct net_file *file)
{
    struct net_tcp *tcp = &file->tcp;
    uint64_t whole = window(file), queued = tcp->arrived - tcp->read;
    uint64_t room = whole > queued ? whole - queued : 0;
    if (room < whole / 2 || tcp->arrived + room <= tcp->announced)
        return false;
    tcp->announced = tcp->arrived + room;
    return true;
}

static bool is_readable(struct net_file *file, uint64_t target)
{
    uint64_t queued = file->tcp.arrived - file->tcp.read;
    /* Whoever waits for more than there is room for would wait for ever. */
    return queued > 0 && (queued >= target || file->tcp.announced == file->tcp.arrived);
}

static void data_ready(struct net_file *file)
{
    if (file->tcp.has_end ||
        is_readable(file, (uint64_t)net_option(file, SOL_SOCKET, SO_RCVLOWAT)))
        net_wake_up(file, NET_KEY_READ);
}

/* ---- what goes to the other end ---------------------------------------------- */

static void post(struct net_file *from, struct net_file *to, enum net_event event,
                 struct net_piece *piece)
{
    uint64_t due_ns = net_now_ns() + net_delay_ns();
    if (due_ns < to->last_due_ns)
        due_ns = to->last_due_ns;
    to->last_due_ns = due_ns;
    net_post((struct net_under_way){.due_ns = due_ns, .event = event, .to = to, .from = from,
                                    .piece = piece, .epoch_to = to->tcp.epoch,
                                    .epoch_from = from->tcp.epoch, .arrived = from->tcp.arrived,
                                    .announced = from->tcp.announced,
                                    .has_end = from->tcp.has_end});
}

static void send_reset(struct net_file *file)
{
    if (file->peer != NULL)
        post(file, file->peer, NET_EVENT_RESET, NULL);
}

/* A reset of nobody's: there is no connection, or no more. */
static void refuse(struct net_file *to)
{
    net_post((struct net_under_way){.due_ns = net_now_ns() + net_delay_ns(),
                                    .event = NET_EVENT_RESET, .to = to, .from = to,
                                    .epoch_to = to->tcp.epoch});
}

static void purge_out(struct net_file *file)
{
    net_empty(&file->tcp.out, true);
    net_empty(&file->tcp.untaken, false);
    file->memory = 0;
}

static void purge_in(struct net_file *file)
{
    net_empty(&file->in, true);
    file->tcp.read = file->tcp.arrived;
    file->tcp.urgent = NET_URGENT_NONE;
}

/* The connection is over, whatever was before. */
static void done(struct net_file *file)
{
    file->state = NET_CLOSED;
    file->shut = NET_SHUT_BOTH;
    file->tcp.epoch++;
    if (file->is_closed)
        purge_in(file);
    net_wake_up(file, NET_KEY_ANY);
}

static void be_reset(struct net_file *file)
{
    if (file->state == NET_CLOSED)
        return;
    file->error = ECONNRESET;
    if (file->state == NET_SYN_SENT)
        file->error = ECONNREFUSED;
    if (file->state == NET_CLOSE_WAIT)
        file->error = EPIPE;
    purge_out(file);
    done(file);
    net_wake_up(file, POLLERR);
}

/* Splits what is larger than the window has room for. */
static struct net_piece *fitting(struct net_file *file, uint64_t room)
{
    struct net_piece *piece = net_shift(&file->tcp.out);
    if (piece->size <= room)
        return piece;
    struct net_piece *head = net_new_piece(room);
    memcpy(head->data, piece->data, room);
    head->sequence = piece->sequence;
    head->cost = room;
    struct net_piece *rest = net_new_piece(piece->size - room);
    memcpy(rest->data, piece->data + room, rest->size);
    rest->sequence = piece->sequence + room;
    rest->cost = piece->cost - room;
    rest->is_urgent = piece->is_urgent;
    rest->next = file->tcp.out.first; /* it was the first, and is again */
    file->tcp.out.first = rest;
    if (file->tcp.out.last == NULL)
        file->tcp.out.last = rest;
    file->tcp.out.count++;
    file->tcp.out.cost += rest->cost;
    net_free_piece(piece);
    return head;
}

static void push(struct net_file *file)
{
    struct net_tcp *tcp = &file->tcp;
    uint64_t epoch = tcp->epoch;
    while (tcp->epoch == epoch && tcp->out.first != NULL && tcp->edge > tcp->sent) {
        struct net_piece *piece = fitting(file, tcp->edge - tcp->sent);
        tcp->sent += piece->size;
        tcp->end_sent |= piece->is_end;
        struct net_piece *mark = net_new_piece(0);
        mark->sequence = piece->sequence + piece->size;
        mark->cost = piece->cost;
        net_push(&tcp->untaken, mark);
        piece->cost = 0; /* it is the sender's */
        if (piece->size > 0 && !piece->is_end)
            net_stamp(file, piece->data, piece->size, 66);
        post(file, file->peer, NET_EVENT_SEGMENT, piece);
    }
}

/* ---- what comes from there --------------------------------------------------- */

static void end_taken(struct net_file *file)
{
    if (file->state == NET_FIN_WAIT) {
        file->state = NET_FIN_TAKEN;
        net_wake_up(file, NET_KEY_ANY);
    } else if (file->state == NET_CLOSING || file->state == NET_LAST_ACK) {
        done(file);
    }
}

/* The other has what was sent up to `upto`, and our end if `has_end`. */
static void be_taken(struct net_file *file, uint64_t upto, uint64_t edge, bool has_end)
{
    struct net_tcp *tcp = &file->tcp;
    if (upto > tcp->taken)
        tcp->taken = upto;
    if (edge > tcp->edge)
        tcp->edge = edge;
    while (tcp->untaken.first != NULL && tcp->untaken.first->sequence <= tcp->taken) {
        struct net_piece *mark = net_shift(&tcp->untaken);
        file->memory -= mark->cost;
        net_free_piece(mark);
    }
    uint64_t epoch = tcp->epoch;
    if (has_end && tcp->end_sent)
        end_taken(file);
    if (tcp->epoch != epoch)
        return;
    push(file);
    if (tcp->epoch == epoch && tcp->no_space)
        wake_writers(file);
}

static void note_urgent(struct net_file *file, const struct net_piece *piece)
{
    struct net_tcp *tcp = &file->tcp;
    uint64_t at = piece->sequence + piece->size - 1;
    bool is_inline = net_option(file, SOL_SOCKET, SO_OOBINLINE) == 1;
    /* The last one lies where the reader is, and something behind it: it is passed over. */
    if (tcp->urgent != NET_URGENT_NONE && tcp->urgent_at == tcp->read && !is_inline &&
        tcp->read != tcp->arrived) {
        tcp->read++;
        file->in.first->start++;
        net_count_lost(1);
        if (file->in.first->start == file->in.first->size)
            net_free_piece(net_shift(&file->in));
    }
    tcp->urgent = NET_URGENT_HERE;
    tcp->urgent_at = at;
    tcp->urgent_byte = piece->data[piece->size - 1];
    net_wake_up(file, NET_KEY_READ);
}

static void come_to_end(struct net_file *file)
{
    file->shut |= NET_SHUT_RECEIVE;
    file->tcp.has_end = true;
    if (file->state == NET_ESTABLISHED)
        file->state = NET_CLOSE_WAIT;
    else if (file->state == NET_FIN_WAIT)
        file->state = NET_CLOSING;
    else if (file->state == NET_FIN_TAKEN)
        done(file);
    net_wake_up(file, NET_KEY_ANY);
}

static void receive_segment(struct net_file *file, struct net_file *from, struct net_piece *piece)
{
    bool has_sent_end = file->state == NET_FIN_WAIT || file->state == NET_FIN_TAKEN;
    if (piece->is_urgent)
        note_urgent(file, piece);
    if (piece->size > 0 && has_sent_end && file->shut & NET_SHUT_RECEIVE) {
        /* Nobody will read it. */
        net_count_lost(piece->size);
        net_free_piece(piece);
        be_reset(file);
        if (from->peer == file)
            refuse(from);
        return;
    }
    bool is_end = piece->is_end;
    size_t size = piece->size;
    UT_ASSERT(piece->sequence == file->tcp.arrived);
    if (size > 0) {
        file->tcp.arrived += size;
        net_push(&file->in, piece);
        announce(file);
    } else {
        net_free_piece(piece);
    }
    uint64_t epoch = file->tcp.epoch, epoch_from = from->tcp.epoch;
    if (is_end)
        come_to_end(file);
    data_ready(file);
    if (size > 0)
        net_draw_stranger(file, size);
    /* Also an end that ends all is answered. */
    if (from->tcp.epoch == epoch_from && (file->tcp.epoch == epoch || is_end))
        post(file, from, NET_EVENT_TAKEN, NULL);
}

/* ---- handshake --------------------------------------------------------------- */

static struct net_file *listener_of(const struct net_name *name)
{
    struct net_file *found[16];
    unsigned count = 0;
    int best = -1;
    for (struct net_file *file = net_files; file != NULL; file = file->next) {
        if (file->type != SOCK_STREAM || file->family == AF_UNIX || file->is_closed ||
            file->is_waiting || !net_refresh(file))
            continue;
        struct net_name own;
        net_own_name(file, &own);
        struct net_name to = *name;
        bool is_v4 = net_is_v4(&to);
        if (file->family == AF_INET) {
            if (!is_v4)
                continue;
            net_name_as(AF_INET, &to);
        } else {
            net_name_as(AF_INET6, &to);
            if (is_v4 && net_option(file, IPPROTO_IPV6, IPV6_V6ONLY) == 1)
                continue;
        }
        if (!net_same_port(&own, &to))
            continue;
        int score = net_same_name(&own, &to) ? 4 : -1;
        if (score < 0 && net_is_any(&own))
            score = file->family == to.at.any.sa_family && (file->family == AF_INET) == is_v4;
        if (score > best) {
            best = score;
            count = 0;
        }
        if (score >= 0 && score == best && count < 16)
            found[count++] = file;
    }
    return count == 0 ? NULL : found[net_draw(true, count)];
}

static void open_window(struct net_file *file)
{
    file->tcp.announced = window(file);
}

void net_tcp_join(struct net_file *one, struct net_file *other)
{
    struct net_file *files[2] = {one, other};
    for (int i = 0; i < 2; i++) {
        net_bind_somewhere(files[i]);
        files[i]->peer = files[1 - i];
        files[i]->state = NET_ESTABLISHED;
        files[i]->tcp.attempt = NET_CONNECTED;
        files[i]->tcp.epoch++;
        open_window(files[i]);
        struct net_name any = {.at.any.sa_family = (sa_family_t)files[i]->family};
        net_source_name(files[i], &any, &files[i]->own);
    }
    for (int i = 0; i < 2; i++) {
        files[i]->peer_name = files[1 - i]->own;
        files[i]->tcp.edge = files[1 - i]->tcp.announced;
    }
}

static void receive_syn(struct net_file *client)
{
    struct net_file *listener = listener_of(&client->peer_name);
    if (listener == NULL) {
        net_learn_all();
        listener = listener_of(&client->peer_name);
    }
    if (listener == NULL) {
        refuse(client);
        return;
    }
    if ((int)listener->in.count > net_backlog(listener)) {
        /* It is dropped, and sent again later. */
        bool is_last = client->tcp.tries >= TRIES;
        net_post((struct net_under_way){.due_ns = net_now_ns() +
                                                  (FIRST_TRY_NS << client->tcp.tries),
                                        .event = is_last ? NET_EVENT_GIVE_UP : NET_EVENT_SYN,
                                        .to = client, .from = client,
                                        .epoch_to = client->tcp.epoch});
        client->tcp.tries++;
        return;
    }
    struct net_file *child = net_make(listener->family, SOCK_STREAM);
    child->is_waiting = true;
    child->state = NET_ESTABLISHED;
    child->tcp.attempt = NET_CONNECTED;
    child->peer = client;
    child->own = client->peer_name;
    net_own_name(client, &child->peer_name);
    net_name_as(child->family, &child->own);
    net_name_as(child->family, &child->peer_name);
    /* What its listener was told, before it has a placeholder. */
    child->remembered[0].level = SOL_SOCKET;
    child->remembered[0].option = SO_RCVBUF;
    child->remembered[0].value = net_option(listener, SOL_SOCKET, SO_RCVBUF);
    child->remembered[1].level = SOL_SOCKET;
    child->remembered[1].option = SO_SNDBUF;
    child->remembered[1].value = net_option(listener, SOL_SOCKET, SO_SNDBUF);
    child->remembered[2].level = SOL_SOCKET;
    child->remembered[2].option = SO_RCVLOWAT;
    child->remembered[2].value = 1;
    open_window(child);
    child->tcp.edge = client->tcp.announced;
    child->queued_at = listener;
    post(child, client, NET_EVENT_SYN_TAKEN, NULL);
}

static void be_joined(struct net_file *file)
{
    struct net_file *listener = file->queued_at;
    if (listener == NULL || listener->is_closed || listener->state != NET_LISTENING) {
        send_reset(file);
        purge_in(file);
        done(file);
        return;
    }
    struct net_piece *piece = net_new_piece(0);
    piece->child = file;
    net_push(&listener->in, piece);
    net_wake_up(listener, NET_KEY_READ);
    net_draw_stranger(listener, 0);
}

void net_tcp_event(struct net_under_way *event)
{
    struct net_file *to = event->to, *from = event->from;
    bool is_for_this = to->tcp.epoch == event->epoch_to;
    switch (event->event) {
    case NET_EVENT_SEGMENT:
        if (is_for_this && is_connected(to)) {
            receive_segment(to, from, event->piece);
            return;
        }
        net_count_lost(event->piece->size);
        net_free_piece(event->piece);
        /* Nobody is there: who sends is reset. */
        if (from->tcp.epoch == event->epoch_from)
            refuse(from);
        return;
    case NET_EVENT_TAKEN:
        if (is_for_this)
            be_taken(to, event->arrived, event->announced, event->has_end);
        return;
    case NET_EVENT_RESET:
        if (is_for_this)
            be_reset(to);
        return;
    case NET_EVENT_SYN:
        if (is_for_this && to->state == NET_SYN_SENT)
            receive_syn(to);
        return;
    case NET_EVENT_GIVE_UP:
        if (is_for_this && to->state == NET_SYN_SENT) {
            to->error = ETIMEDOUT;
            done(to);
            net_wake_up(to, POLLERR);
        }
        return;
    case NET_EVENT_SYN_TAKEN:
        if (!is_for_this || to->state != NET_SYN_SENT) {
            done(from); /* who has called has gone */
            return;
        }
        to->peer = from;
        to->state = NET_ESTABLISHED;
        to->tcp.edge = from->tcp.announced;
        net_wake_up(to, NET_KEY_ANY);
        post(to, from, NET_EVENT_JOINED, NULL);
        return;
    case NET_EVENT_JOINED:
        if (is_for_this)
            be_joined(to);
        return;
    default:
        UT_ASSERT(!"an event of another protocol");
    }
}

/* ---- connect, disconnect, close ---------------------------------------------- */

static void refuse_waiting(struct net_file *listener)
{
    while (listener->in.first != NULL) {
        struct net_file *child = net_shift_connection(listener);
        send_reset(child);
        purge_out(child);
        purge_in(child);
        done(child);
    }
}

/* Back to a socket that was never connected. */
static void disconnect(struct net_file *file)
{
    enum net_state before = file->state;
    file->state = NET_CLOSED;
    if (before == NET_LISTENING) {
        refuse_waiting(file);
    } else if (before == NET_SYN_SENT) {
        file->error = ECONNRESET;
    } else if (before == NET_ESTABLISHED || before == NET_CLOSE_WAIT || before == NET_FIN_WAIT ||
               before == NET_FIN_TAKEN ||
               (before != NET_CLOSED && file->tcp.out.first != NULL)) {
        send_reset(file);
        file->error = ECONNRESET;
    }
    purge_in(file);
    purge_out(file);
    uint64_t epoch = file->tcp.epoch + 1;
    file->tcp = (struct net_tcp){.epoch = epoch};
    file->peer = NULL;
    file->peer_name.length = 0;
    file->own.length = 0; /* what it was bound to, the placeholder has */
    file->shut = 0;
    net_wake_up(file, POLLERR);
}

static int tcp_connect(struct net_file *file, const struct sockaddr *name, socklen_t length)
{
    if (length < sizeof name->sa_family)
        return -EINVAL;
    if (name->sa_family == AF_UNSPEC) {
        if (file->state == NET_LISTENING)
            shutdown(net_number(file), SHUT_RD); /* its placeholder does not listen any more */
        disconnect(file);
        return 0;
    }
    int result = -EINPROGRESS;
    switch (file->tcp.attempt) {
    case NET_CONNECTED:
        return -EISCONN;
    case NET_DISCONNECTING:
        return -EINVAL;
    case NET_CONNECTING:
        result = -EALREADY;
        break;
    case NET_UNCONNECTED: {
        struct net_name to;
        if (file->state != NET_CLOSED)
            return -EISCONN;
        int error = net_check_name(file, name, length, &to);
        if (error == 0 && net_place_of(&to) == NET_PLACE_NONE)
            error = -ENETUNREACH;
        if (error == 0 && !net_bind_somewhere(file))
            error = -EADDRNOTAVAIL;
        if (error < 0)
            return error;
        struct net_name own;
        net_source_name(file, &to, &own);
        file->own = own;
        file->peer_name = to;
        file->state = NET_SYN_SENT;
        file->tcp.attempt = NET_CONNECTING;
        file->error = 0;
        file->tcp.epoch++;
        open_window(file);
        bool is_silent = net_place_of(&to) == NET_PLACE_SILENT;
        net_post((struct net_under_way){
            .due_ns = net_now_ns() + (is_silent ? FIRST_TRY_NS << TRIES : net_delay_ns()),
            .event = is_silent ? NET_EVENT_GIVE_UP : NET_EVENT_SYN, .to = file, .from = file,
            .epoch_to = file->tcp.epoch});
        return -EINPROGRESS; /* even where the answer has come by now */
    }
    }
    if (file->state == NET_SYN_SENT)
        return result;
    if (file->state == NET_CLOSED) {
        int error = net_take_error(file);
        file->tcp.attempt = NET_UNCONNECTED;
        disconnect(file);
        return error != 0 ? error : -ECONNABORTED;
    }
    file->tcp.attempt = NET_CONNECTED;
    return 0;
}

static struct net_file *tcp_accept(struct net_file *file, int *error)
{
    if (file->state != NET_LISTENING)
        *error = -EINVAL;
    else if (file->in.first == NULL)
        *error = -EAGAIN;
    else
        return net_shift_connection(file);
    return NULL;
}

static void send_end(struct net_file *file)
{
    if (file->state == NET_SYN_SENT) {
        file->state = NET_CLOSED;
        return;
    }
    if (!may_send(file))
        return;
    file->state = file->state == NET_ESTABLISHED ? NET_FIN_WAIT : NET_LAST_ACK;
    struct net_piece *piece = net_new_piece(0);
    piece->sequence = file->tcp.written;
    piece->is_end = true;
    net_push(&file->tcp.out, piece);
    push(file);
}

static void tcp_close(struct net_file *file)
{
    enum net_state before = file->state;
    file->shut = NET_SHUT_BOTH;
    net_empty(&file->errors, false);
    if (before == NET_LISTENING) {
        file->state = NET_CLOSED;
        refuse_waiting(file);
        return;
    }
    bool has_unread = file->tcp.read < file->tcp.arrived;
    purge_in(file);
    if (before == NET_CLOSED)
        return;
    struct linger linger = file->tcp.linger;
    if (has_unread || (linger.l_onoff != 0 && linger.l_linger == 0)) {
        if (before != NET_SYN_SENT)
            send_reset(file);
        purge_out(file);
        done(file);
        return;
    }
    send_end(file);
    if (file->state == NET_CLOSED)
        file->tcp.epoch++;
}

static int tcp_shutdown(struct net_file *file, int how)
{
    unsigned bits = (unsigned)how + 1;
    int result = 0;
    if (file->tcp.attempt == NET_CONNECTING)
        file->tcp.attempt = file->state == NET_SYN_SENT || file->state == NET_CLOSED
                                ? NET_DISCONNECTING
                                : NET_CONNECTED;
    if (file->state == NET_SYN_SENT ||
        (file->state == NET_LISTENING && bits & NET_SHUT_RECEIVE)) {
        if (file->state == NET_LISTENING)
            shutdown(net_number(file), SHUT_RD);
        disconnect(file);
        file->tcp.attempt = NET_UNCONNECTED;
    } else if (file->state != NET_LISTENING) {
        if (file->state == NET_CLOSED)
            result = -ENOTCONN;
        file->shut |= bits;
        if (bits & NET_SHUT_SEND)
            send_end(file);
    }
    net_wake_up(file, NET_KEY_ANY);
    return result;
}

/* ---- sends ------------------------------------------------------------------- */

static uint64_t segment_goal(struct net_file *file)
{
    uint64_t goal = (file->tcp.edge - file->tcp.taken) / 2;
    if (goal < SEGMENT_SMALLEST)
        goal = SEGMENT_SMALLEST;
    return goal < SEGMENT_LARGEST ? goal : SEGMENT_LARGEST;
}

static int broken(struct net_file *file)
{
    int error = net_take_error(file);
    return error != 0 ? error : -EPIPE;
}

static int tcp_send(struct net_file *file, const struct msghdr *message, int flags)
{
    struct net_tcp *tcp = &file->tcp;
    struct net_ancillary ancillary;
    int error = net_read_ancillary(message, false, &ancillary);
    if (!may_send(file)) {
        bool is_waiting = file->error == 0 && file->state == NET_SYN_SENT;
        return is_waiting ? -EAGAIN : broken(file);
    }
    if (error < 0)
        return error;
    if (file->error != 0 || file->shut & NET_SHUT_SEND)
        return broken(file);
    size_t size = net_length(message), sent = 0;
    size = net_draw_size(size, !(flags & MSG_OOB));
    uint64_t epoch = tcp->epoch;
    while (sent < size && tcp->epoch == epoch) {
        bool is_short_of_memory = net_draw(net_choices.no_buffers, 32) == 1;
        if (file->memory >= send_limit(file) || is_short_of_memory) {
            tcp->no_space = true;
            break;
        }
        size_t goal = segment_goal(file), left = size - sent;
        struct net_piece *last = tcp->out.last, *piece = net_new_piece(left < goal ? left : goal);
        net_gather(message, sent, piece->data, piece->size);
        piece->sequence = tcp->written;
        /* What waits for the window is filled up first. */
        bool joins = last != NULL && last->size + piece->size <= goal;
        piece->cost = piece->size + (joins ? 0 : SEGMENT_COST);
        file->memory += piece->cost;
        tcp->written += piece->size;
        sent += piece->size;
        net_count_sent(piece->size);
        piece->is_urgent = flags & MSG_OOB && sent == size;
        net_push(&tcp->out, piece);
        push(file);
    }
    if (sent > 0 || size == 0)
        return (int)sent;
    if (file->memory == 0)
        wake_writers(file);
    return -EAGAIN;
}

/* ---- receives ---------------------------------------------------------------- */

static int receive_urgent(struct net_file *file, struct msghdr *message, int flags)
{
    struct net_tcp *tcp = &file->tcp;
    if (net_option(file, SOL_SOCKET, SO_OOBINLINE) == 1 || tcp->urgent != NET_URGENT_HERE)
        return -EINVAL;
    if (file->state == NET_CLOSED && !tcp->has_end)
        return -ENOTCONN;
    if (!(flags & MSG_PEEK))
        tcp->urgent = NET_URGENT_READ;
    message->msg_flags |= MSG_OOB;
    if (net_length(message) == 0) {
        message->msg_flags |= MSG_TRUNC;
        return 0;
    }
    if (!(flags & MSG_TRUNC))
        net_scatter(message, 0, &tcp->urgent_byte, 1);
    return 1;
}

/* Why a receive finds nothing. */
static int nothing(struct net_file *file)
{
    if (file->tcp.has_end)
        return 0;
    if (file->error != 0)
        return net_take_error(file);
    if (file->shut & NET_SHUT_RECEIVE)
        return 0;
    return file->state == NET_CLOSED ? -ENOTCONN : -EAGAIN;
}

/* The stream is read up to here. */
static void forget_read(struct net_file *file, uint64_t upto, size_t copied)
{
    struct net_tcp *tcp = &file->tcp;
    net_count_received(copied);
    net_count_lost(upto - tcp->read - copied); /* an urgent byte that was passed over */
    tcp->read = upto;
    while (file->in.first != NULL && file->in.first->sequence + file->in.first->size <= upto)
        net_free_piece(net_shift(&file->in));
    if (file->in.first != NULL && file->in.first->sequence < upto)
        file->in.first->start = upto - file->in.first->sequence;
    if (tcp->urgent != NET_URGENT_NONE && upto > tcp->urgent_at)
        tcp->urgent = NET_URGENT_NONE;
    if (copied == 0 || !is_connected(file))
        return;
    uint64_t left = tcp->announced - tcp->arrived;
    /* Who has shut it announces no more; then the sender's probes find the room. */
    if (file->shut & NET_SHUT_RECEIVE && left > 0)
        return;
    if (left <= window(file) / 2 && announce(file))
        post(file, file->peer, NET_EVENT_TAKEN, NULL);
}

static int tcp_receive(struct net_file *file, struct msghdr *message, int flags)
{
    struct net_tcp *tcp = &file->tcp;
    bool is_inline = net_option(file, SOL_SOCKET, SO_OOBINLINE) == 1;
    size_t size = net_length(message), copied = 0;
    uint64_t at = tcp->read;
    int result = 0;
    if (flags & MSG_ERRQUEUE)
        return net_receive_error(file, message);
    if (file->state == NET_LISTENING)
        return -ENOTCONN;
    if (flags & MSG_OOB)
        return receive_urgent(file, message, flags);
    size = net_draw_size(size, true);
    do {
        bool has_mark = tcp->urgent != NET_URGENT_NONE && tcp->urgent_at >= at;
        if (has_mark && tcp->urgent_at == at && copied > 0)
            break;
        struct net_piece *piece = file->in.first;
        while (piece != NULL && piece->sequence + piece->size <= at)
            piece = piece->next;
        if (piece == NULL) {
            if (copied == 0)
                result = nothing(file);
            break;
        }
        uint64_t offset = at - piece->sequence;
        size_t count = piece->size - offset;
        if (count > size - copied)
            count = size - copied;
        if (has_mark && tcp->urgent_at - at < count) {
            if (tcp->urgent_at > at) {
                count = tcp->urgent_at - at;
            } else if (!is_inline) {
                at++;
                offset++;
                count--;
            }
        }
        if (!(flags & MSG_TRUNC))
            net_scatter(message, copied, piece->data + offset, count);
        at += count;
        copied += count;
        if (!(flags & MSG_PEEK) && tcp->urgent != NET_URGENT_NONE && at > tcp->urgent_at)
            tcp->urgent = NET_URGENT_NONE;
    } while (copied < size);
    if (!(flags & MSG_PEEK))
        forget_read(file, at, copied);
    return copied > 0 ? (int)copied : result;
}

/* ---- looks ------------------------------------------------------------------- */

static int tcp_ioctl(struct net_file *file, unsigned long request, int *value)
{
    struct net_tcp *tcp = &file->tcp;
    bool is_marked = tcp->urgent != NET_URGENT_NONE && tcp->urgent_at >= tcp->read &&
                     tcp->urgent_at < tcp->arrived &&
                     net_option(file, SOL_SOCKET, SO_OOBINLINE) != 1;
    switch (request) {
    case FIONREAD:
        if (file->state == NET_LISTENING)
            return -EINVAL;
        *value = (int)((is_marked ? tcp->urgent_at : tcp->arrived) - tcp->read);
        return 0;
    case SIOCOUTQ:
        if (file->state == NET_LISTENING)
            return -EINVAL;
        *value = (int)(tcp->written - tcp->taken);
        return 0;
    case SIOCATMARK:
        *value = tcp->urgent != NET_URGENT_NONE && tcp->urgent_at == tcp->read;
        return 0;
    default:
        return -ENOTTY;
    }
}

static uint32_t tcp_poll(struct net_file *file, uint32_t events)
{
    (void)events;
    struct net_tcp *tcp = &file->tcp;
    uint32_t bits = 0;
    if (file->state == NET_LISTENING)
        return file->in.first != NULL ? POLLIN | POLLRDNORM : 0;
    if (file->shut == NET_SHUT_BOTH || file->state == NET_CLOSED)
        bits |= POLLHUP;
    if (file->shut & NET_SHUT_RECEIVE)
        bits |= POLLIN | POLLRDNORM | POLLRDHUP;
    if (file->state != NET_SYN_SENT) {
        uint64_t target = (uint64_t)net_option(file, SOL_SOCKET, SO_RCVLOWAT);
        if (tcp->urgent != NET_URGENT_NONE && tcp->urgent_at == tcp->read &&
            net_option(file, SOL_SOCKET, SO_OOBINLINE) != 1)
            target++; /* the byte that a receive would skip */
        if (is_readable(file, target))
            bits |= POLLIN | POLLRDNORM;
        if (file->shut & NET_SHUT_SEND || is_writable(file))
            bits |= POLLOUT | POLLWRNORM;
        else
            tcp->no_space = true;
        if (tcp->urgent == NET_URGENT_HERE)
            bits |= POLLPRI;
    }
    if (file->error != 0 || file->errors.first != NULL)
        bits |= POLLERR;
    return bits;
}

static void tcp_option(struct net_file *file, int level, int option)
{
    if (level == SOL_SOCKET && option == SO_RCVLOWAT)
        data_ready(file);
}

void net_reset_by_peer(struct net_file *file)
{
    be_reset(file);
}

const struct net_kind net_kind_tcp = {
    .sendmsg = tcp_send,
    .recvmsg = tcp_receive,
    .connect = tcp_connect,
    .accept = tcp_accept,
    .shutdown = tcp_shutdown,
    .ioctl = tcp_ioctl,
    .space = wake_writers,
    .poll = tcp_poll,
    .close = tcp_close,
    .option = tcp_option,
};

bool net_has_end(const struct net_file *file)
{
    return file->tcp.has_end;
}
