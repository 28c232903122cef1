/*
 * Error queues of TCP and UDP
 *
 * What the kernel does. What a network answers to a packet (ICMP), for who has asked by
 * IP_RECVERR, and when a packet left, for who has asked by SO_TIMESTAMPING, is put into a queue
 * that only MSG_ERRQUEUE reads. As long as it is not empty poll(2) tells POLLERR: for ever, where
 * a program does not know of it. An answer is also the socket's error, told once by the next
 * call of any kind.
 */
#define _GNU_SOURCE
#include "net_inside.h"

#include <errno.h>
#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <string.h>
#include <time.h>

#define ENTRY_COST ((size_t)832)

void net_queue_error(struct net_file *file, struct net_piece *entry)
{
    entry->cost = ENTRY_COST;
    size_t limit = (size_t)net_option(file, SOL_SOCKET, SO_RCVBUF);
    if (file->is_closed || file->in.cost + file->errors.cost + entry->cost >= limit) {
        net_free_piece(entry);
        return;
    }
    net_push(&file->errors, entry);
    net_wake_up(file, POLLERR);
}

void net_stamp(struct net_file *file, const char *data, size_t size, size_t headers)
{
    unsigned flags = (unsigned)net_option(file, SOL_SOCKET, SO_TIMESTAMPING);
    if (!(flags & SOF_TIMESTAMPING_TX_SOFTWARE))
        return;
    bool is_bare = (flags & SOF_TIMESTAMPING_OPT_TSONLY) != 0;
    /* The packet comes back as it left: whatever stands before the bytes is nobody's business. */
    struct net_piece *entry = net_new_piece(is_bare ? 0 : headers + size);
    if (!is_bare)
        memcpy(entry->data + headers, data, size);
    entry->is_stamp = true;
    entry->error = ENOMSG;
    entry->origin = SO_EE_ORIGIN_TIMESTAMPING;
    if (flags & SOF_TIMESTAMPING_OPT_ID)
        entry->data_number = file->stamps++;
    net_queue_error(file, entry);
}

static void put_stamp(struct net_file *file, struct net_control *control)
{
    unsigned flags = (unsigned)net_option(file, SOL_SOCKET, SO_TIMESTAMPING);
    uint64_t now = net_now_ns();
    struct timespec stamps[3] = {{.tv_sec = (time_t)(now / 1000000000),
                                  .tv_nsec = (long)(now % 1000000000)}};
    if (flags & SOF_TIMESTAMPING_SOFTWARE)
        net_control_put(control, SOL_SOCKET, SO_TIMESTAMPING, stamps, sizeof stamps);
}

int net_receive_error(struct net_file *file, struct msghdr *message)
{
    struct net_piece *entry = net_shift(&file->errors);
    struct net_control control;
    if (entry == NULL)
        return -EAGAIN;
    bool is_answer = !entry->is_stamp;
    struct net_piece *next = file->errors.first;
    if (next != NULL && !next->is_stamp)
        file->error = next->error;
    else if (is_answer)
        file->error = 0;
    if (next != NULL)
        net_wake_up(file, POLLERR);
    size_t room = net_length(message), size = entry->size < room ? entry->size : room;
    if (size < entry->size)
        message->msg_flags |= MSG_TRUNC;
    net_scatter(message, 0, entry->data, size);
    net_control_begin(&control, message);
    if (entry->is_stamp)
        put_stamp(file, &control);
    if (is_answer)
        net_say_name(message, &entry->to);
    struct {
        struct sock_extended_err error;
        union {
            struct sockaddr_in v4;
            struct sockaddr_in6 v6;
        } offender;
    } said;
    memset(&said, 0, sizeof said);
    said.error = (struct sock_extended_err){.ee_errno = (uint32_t)entry->error,
                                            .ee_origin = entry->origin, .ee_type = entry->type,
                                            .ee_code = entry->code, .ee_info = entry->info,
                                            .ee_data = entry->data_number};
    bool is_v4 = file->family == AF_INET;
    size_t length = sizeof said.error + (is_v4 ? sizeof said.offender.v4
                                               : sizeof said.offender.v6);
    if (is_answer) {
        memcpy(&said.offender, &entry->name.at, length - sizeof said.error);
        said.offender.v4.sin_port = 0;
    }
    net_control_put(&control, is_v4 ? SOL_IP : SOL_IPV6, is_v4 ? IP_RECVERR : IPV6_RECVERR, &said,
                    length);
    message->msg_flags |= MSG_ERRQUEUE;
    net_control_end(&control);
    net_free_piece(entry);
    return (int)size;
}
