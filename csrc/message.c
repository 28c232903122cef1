#define _GNU_SOURCE
#include "message.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64u

static size_t aligned(size_t size)
{
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

struct ut_message *ut_message_new(size_t vectors, size_t control_size, size_t data_size)
{
    size_t count = vectors > 0 ? vectors : 1;
    if (count > SIZE_MAX / 4 / sizeof(struct iovec) || control_size > SIZE_MAX / 4 ||
        data_size > SIZE_MAX / 4)
        return NULL;
    size_t control_at = aligned(sizeof(struct ut_message) + count * sizeof(struct iovec));
    size_t data_at = aligned(control_at + control_size);
    struct ut_message *message = ut_memory_new(data_at + data_size);
    if (message == NULL)
        return NULL;
    memset(message, 0, data_at);
    message->control_size = control_size;
    message->data_size = data_size;
    message->control = (char *)message + control_at;
    message->data = (char *)message + data_at;
    message->name_length = sizeof message->name;
    message->header.msg_iov = message->vectors;
    message->header.msg_iovlen = vectors;
    if (control_size > 0) {
        message->header.msg_control = message->control;
        message->header.msg_controllen = control_size;
    }
    if (data_size > 0) {
        message->header.msg_iovlen = count;
        ut_message_set_vector(message, 0, message->data, data_size);
    }
    message->header.msg_name = &message->name;
    message->header.msg_namelen = sizeof message->name;
    return message;
}

void ut_message_free(struct ut_message *message)
{
    ut_memory_free(message);
}

void ut_message_set_vector(struct ut_message *message, size_t index, const void *memory,
                           size_t size)
{
    message->vectors[index].iov_base = (void *)(uintptr_t)memory;
    message->vectors[index].iov_len = size;
}

int ut_message_set_name(struct ut_message *message, const char *name, size_t length)
{
    if (length > sizeof message->name)
        return -EINVAL;
    if (length > 0)
        memcpy(&message->name, name, length);
    message->name_length = (socklen_t)length;
    message->header.msg_namelen = (socklen_t)length;
    message->header.msg_name = length > 0 ? &message->name : NULL;
    return 0;
}

void ut_message_read(const struct ut_message *message, struct ut_message_result *out)
{
    out->name_length = message->header.msg_namelen;
    out->control_length = message->header.msg_control ? message->header.msg_controllen : 0;
    out->flags = message->header.msg_flags;
}

void *ut_memory_new(size_t size)
{
    void *memory;
    if (posix_memalign(&memory, ALIGNMENT, size > 0 ? size : 1) != 0)
        return NULL;
    return memory;
}

void ut_memory_free(void *memory)
{
    free(memory);
}
