/*
 * The memory of a recvmsg, sendmsg, accept or connect, in one block.
 */
#ifndef UT_MESSAGE_H
#define UT_MESSAGE_H

#include <stddef.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* Owned by its operation until the last cqe, by the kernel while in flight. */
struct ut_message {
    struct msghdr header;
    struct sockaddr_storage name;
    socklen_t name_length; /* bytes; of accept: written by the kernel */
    size_t control_size, data_size;
    char *control, *data; /* behind the vectors, in the same block; data is 64-byte aligned */
    struct iovec vectors[];
};

/* A block with room for `vectors` iovecs, control data and data, all zeroed but
 * the data. With data_size > 0 vector 0 is the data. NULL if there is no memory. */
struct ut_message *ut_message_new(size_t vectors, size_t control_size, size_t data_size);
void ut_message_free(struct ut_message *message);

void ut_message_set_vector(struct ut_message *message, size_t index, const void *memory,
                           size_t size);
/* The name is at most sizeof(struct sockaddr_storage) bytes: -EINVAL else. */
int ut_message_set_name(struct ut_message *message, const char *name, size_t length);

/* After the last cqe. */
struct ut_message_result {
    size_t name_length; /* as the kernel gave it; may exceed the storage */
    size_t control_length;
    int flags;
};
void ut_message_read(const struct ut_message *message, struct ut_message_result *out);

/* Memory of `size` bytes on a 64-byte boundary, or NULL; see bufring.c for why. */
void *ut_memory_new(size_t size);
void ut_memory_free(void *memory);

#endif
