/* The fake's calls beside the ring: noted, and answered as the test has set. */
#include "fake_kernel.h"

#include <errno.h>
#include <string.h>

#include "../beside.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

static int answer(struct fake_made made)
{
    if (fake.made_count < FAKE_MADE_MAX)
        fake.made[fake.made_count] = made;
    fake.made_count++;
    return fake.answers[made.call];
}

/* The same, for a call that is given a name. */
static int answer_to(struct fake_made made, const struct sockaddr *name, socklen_t length)
{
    made.name_length = length;
    made.has_name = name != NULL;
    if (length > sizeof made.name)
        fake_fault("a name longer than any");
    else if (length > 0)
        memcpy(&made.name, name, length);
    return answer(made);
}

/* The same, for one that writes a name, cut to the room for it. */
static int answer_from(struct fake_made made, struct sockaddr *name, socklen_t *length)
{
    made.name_length = length != NULL ? *length : 0;
    int result = answer(made);
    if (result >= 0 && length != NULL) {
        memcpy(name, &fake.name, *length < fake.name_length ? *length : fake.name_length);
        *length = fake.name_length;
    }
    return result;
}

int fake_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *name,
                socklen_t length)
{
    struct fake_made made = {
        .call = FAKE_SENDTO, .fd = fd, .memory = data, .size = size, .flags = flags};
    return answer_to(made, name, length);
}

int fake_recvfrom(int fd, void *memory, size_t size, int flags, struct sockaddr *name,
                  socklen_t *length)
{
    struct fake_made made = {
        .call = FAKE_RECVFROM, .fd = fd, .memory = memory, .size = size, .flags = flags};
    return answer_from(made, name, length);
}

int fake_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return answer((struct fake_made){
        .call = FAKE_SENDMSG, .fd = fd, .memory = message, .flags = flags,
        .name_length = message->msg_namelen, .size = message->msg_controllen});
}

int fake_recvmsg(int fd, struct msghdr *message, int flags)
{
    struct fake_made made = {.call = FAKE_RECVMSG, .fd = fd, .memory = message, .flags = flags,
                             .size = message->msg_controllen};
    message->msg_controllen = 0;
    return answer_from(made, message->msg_name, &message->msg_namelen);
}

int fake_accept4(int fd, struct sockaddr *name, socklen_t *length, int flags)
{
    return answer_from((struct fake_made){.call = FAKE_ACCEPT4, .fd = fd, .flags = flags}, name,
                       length);
}

int fake_connect(int fd, const struct sockaddr *name, socklen_t length)
{
    return answer_to((struct fake_made){.call = FAKE_CONNECT, .fd = fd}, name, length);
}

int fake_shutdown(int fd, int how)
{
    return answer((struct fake_made){.call = FAKE_SHUTDOWN, .fd = fd, .flags = how});
}

int fake_getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    if (level == SOL_SOCKET && option == SO_NETNS_COOKIE && *length == sizeof(uint64_t)) {
        *(uint64_t *)value = 1 + (fd >= FAKE_FD_ELSEWHERE); /* what the engine asks by itself */
        return 0;
    }
    struct fake_made made = {
        .call = FAKE_GETSOCKOPT, .fd = fd, .level = level, .option = option, .size = *length};
    if (*length != sizeof fake.option)
        return answer_from(made, value, length);
    int result = answer(made);
    if (result >= 0)
        memcpy(value, &fake.option, sizeof fake.option);
    return result;
}

int fake_setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
    struct fake_made made = {.call = FAKE_SETSOCKOPT, .fd = fd, .level = level, .option = option,
                             .memory = value, .size = length};
    if (length == sizeof fake.option)
        memcpy(&fake.option, value, length);
    return answer(made);
}

int fake_getsockname(int fd, struct sockaddr *name, socklen_t *length)
{
    return answer_from((struct fake_made){.call = FAKE_GETSOCKNAME, .fd = fd}, name, length);
}

int fake_getpeername(int fd, struct sockaddr *name, socklen_t *length)
{
    return answer_from((struct fake_made){.call = FAKE_GETPEERNAME, .fd = fd}, name, length);
}

int fake_read(int fd, void *memory, size_t size)
{
    return answer((struct fake_made){.call = FAKE_READ, .fd = fd, .memory = memory, .size = size});
}

int fake_write(int fd, const void *data, size_t size)
{
    return answer((struct fake_made){.call = FAKE_WRITE, .fd = fd, .memory = data, .size = size});
}

int fake_poll(struct pollfd *files, unsigned count, int timeout_ms)
{
    if (count != 1)
        fake_fault("a poll of more than one file");
    files->revents = (short)fake.option;
    return answer((struct fake_made){
        .call = FAKE_POLL, .fd = files->fd, .option = files->events, .flags = timeout_ms});
}

int fake_status_flags(int fd)
{
    return answer((struct fake_made){.call = FAKE_STATUS_FLAGS, .fd = fd});
}

int fake_queued(int fd)
{
    return answer((struct fake_made){.call = FAKE_QUEUED, .fd = fd});
}

int fake_mode(int fd)
{
    return answer((struct fake_made){.call = FAKE_MODE, .fd = fd});
}

int fake_close_file(int fd)
{
    if (fd != fake.file || fd == 0) {
        fake_fault("close of what is not open");
        return -EBADF;
    }
    fake.file = 0;
    return answer((struct fake_made){.call = FAKE_CLOSE, .fd = fd});
}
