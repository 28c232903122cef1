/* Messages of the network without a kernel: buffers, and what comes beside the bytes. */
#define _GNU_SOURCE
#include "net_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ut_assert.h"

/* ---- buffers ----------------------------------------------------------------- */

size_t net_length(const struct msghdr *message)
{
    size_t length = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++)
        length += message->msg_iov[i].iov_len;
    return length;
}

/* Walks over bytes from..from+size-1 of the buffers. */
static void move(const struct msghdr *message, size_t from, char *data, size_t size, bool into)
{
    for (size_t i = 0; i < message->msg_iovlen && size > 0; i++) {
        const struct iovec *part = &message->msg_iov[i];
        if (from >= part->iov_len) {
            from -= part->iov_len;
            continue;
        }
        size_t count = part->iov_len - from < size ? part->iov_len - from : size;
        char *at = (char *)part->iov_base + from;
        if (into)
            memcpy(at, data, count);
        else
            memcpy(data, at, count);
        data += count;
        size -= count;
        from = 0;
    }
    UT_ASSERT(size == 0);
}

void net_gather(const struct msghdr *message, size_t from, char *to, size_t size)
{
    move(message, from, to, size, false);
}

void net_scatter(const struct msghdr *message, size_t from, const char *data, size_t size)
{
    move(message, from, (char *)data, size, true);
}

/* ---- descriptors ------------------------------------------------------------- */

void net_drop_rights(struct net_rights *rights)
{
    for (int i = 0; rights != NULL && i < rights->count; i++)
        close(rights->numbers[i]);
    if (rights != NULL)
        net_forget_numbers();
    free(rights);
}

struct net_rights *net_copy_rights(const struct net_rights *rights)
{
    struct net_rights *copy = calloc(1, sizeof *copy);
    UT_ASSERT(copy != NULL);
    for (int i = 0; i < rights->count; i++) {
        copy->numbers[i] = fcntl(rights->numbers[i], F_DUPFD_CLOEXEC, 0);
        if (copy->numbers[i] < 0)
            break; /* what is missing is cut from the receiver's list */
        copy->count++;
    }
    return copy;
}

static int add_rights(const struct cmsghdr *header, struct net_rights **rights)
{
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    if (count == 0)
        return 0;
    if (*rights == NULL)
        *rights = calloc(1, sizeof **rights);
    UT_ASSERT(*rights != NULL);
    if (count > (size_t)(NET_RIGHTS_MAX - (*rights)->count))
        return -EINVAL;
    for (size_t i = 0; i < count; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (copy < 0)
            return -errno; /* -EBADF; and -EMFILE, where Linux needs no number */
        (*rights)->numbers[(*rights)->count++] = copy;
    }
    return 0;
}

static int read_credentials(const struct cmsghdr *header, struct net_ancillary *ancillary)
{
    struct ucred *given = &ancillary->credentials;
    if (header->cmsg_len != CMSG_LEN(sizeof *given))
        return -EINVAL;
    memcpy(given, CMSG_DATA(header), sizeof *given);
    bool is_own = given->pid == getpid() && given->uid == geteuid() && given->gid == getegid();
    if (!is_own && geteuid() != 0)
        return -EPERM;
    ancillary->has_credentials = true;
    return 0;
}

int net_read_ancillary(const struct msghdr *message, bool rights_allowed,
                       struct net_ancillary *ancillary)
{
    memset(ancillary, 0, sizeof *ancillary);
    if (message->msg_controllen < sizeof(struct cmsghdr))
        return 0;
    int result = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL && result == 0;) {
        size_t left = (size_t)((char *)message->msg_control + message->msg_controllen -
                               (char *)header);
        if (header->cmsg_len < sizeof *header || header->cmsg_len > left)
            result = -EINVAL;
        else if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
            result = rights_allowed ? add_rights(header, &ancillary->rights) : -EINVAL;
        else if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_CREDENTIALS)
            result = read_credentials(header, ancillary);
        else if (header->cmsg_level == SOL_SOCKET)
            result = -EINVAL;
        header = result == 0 ? CMSG_NXTHDR((struct msghdr *)message, header) : NULL;
    }
    if (result < 0) {
        net_drop_rights(ancillary->rights);
        ancillary->rights = NULL;
    }
    return result;
}

/* ---- a receive's control messages -------------------------------------------- */

void net_control_begin(struct net_control *control, struct msghdr *message)
{
    control->message = message;
    control->at = message->msg_control;
    control->left = net_control_room();
}

void net_control_put(struct net_control *control, int level, int type, const void *data,
                     size_t size)
{
    size_t length = CMSG_LEN(size);
    if (control->left < sizeof(struct cmsghdr)) {
        control->message->msg_flags |= MSG_CTRUNC;
        return;
    }
    if (control->left < length) {
        control->message->msg_flags |= MSG_CTRUNC;
        length = control->left;
    }
    struct cmsghdr header = {.cmsg_len = length, .cmsg_level = level, .cmsg_type = type};
    memcpy(control->at, &header, sizeof header);
    memcpy(control->at + sizeof header, data, length - sizeof header);
    size_t space = CMSG_SPACE(size) < control->left ? CMSG_SPACE(size) : control->left;
    control->at += space;
    control->left -= space;
}

void net_control_put_rights(struct net_control *control, struct net_rights *rights, int flags)
{
    int room = control->left > sizeof(struct cmsghdr)
                   ? (int)((control->left - sizeof(struct cmsghdr)) / sizeof(int))
                   : 0;
    int given = 0, numbers[NET_RIGHTS_MAX];
    int command = flags & MSG_CMSG_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD;
    while (given < rights->count && given < room) {
        /* The lowest free number, as on Linux: not the one that was held for it. */
        int fd = fcntl(rights->numbers[given], command, 0);
        if (fd < 0)
            break;
        numbers[given++] = fd;
    }
    if (given > 0)
        net_control_put(control, SOL_SOCKET, SCM_RIGHTS, numbers, (size_t)given * sizeof(int));
    if (given < rights->count)
        control->message->msg_flags |= MSG_CTRUNC;
    net_drop_rights(rights);
}

void net_control_end(struct net_control *control)
{
    struct msghdr *message = control->message;
    if (message->msg_control != NULL)
        message->msg_controllen = (size_t)(control->at - (char *)message->msg_control);
}
