#include "prep.h"

#include <poll.h>
#include <sys/socket.h>

/* `wanted`, `poll_first`: see ut_engine_new_op(). */
static int prep_waiting(struct ut_engine *engine, struct io_uring_sqe **sqe, uint8_t opcode,
                        int fd, const void *address, uint32_t length, uint8_t wanted,
                        int poll_first)
{
    uint32_t slot;
    int error = ut_engine_new_op(engine, wanted, poll_first, sqe, &slot);
    if (error < 0)
        return error;
    (*sqe)->opcode = opcode;
    (*sqe)->fd = fd;
    (*sqe)->addr = (uint64_t)(uintptr_t)address;
    (*sqe)->len = length;
    return (int)slot;
}

static int prep(struct ut_engine *engine, struct io_uring_sqe **sqe, uint8_t opcode, int fd,
                const void *address, uint32_t length)
{
    return prep_waiting(engine, sqe, opcode, fd, address, length, 0, 0);
}

/* Somebody else waits for what was prepared: whether it is to leave now, see prep.h. */
static int sends(struct ut_engine *engine, int slot)
{
    return slot >= 0 && ut_engine_leaves(engine) ? slot | UT_SLOT_LEAVES : slot;
}

int ut_prep_recv(struct ut_engine *engine, int fd, unsigned group, uint32_t size, int poll_first)
{
    struct io_uring_sqe *sqe;
    int slot = prep_waiting(engine, &sqe, IORING_OP_RECV, fd, NULL, size, POLLIN, poll_first);
    if (slot >= 0) {
        sqe->flags = IOSQE_BUFFER_SELECT;
        sqe->buf_group = (uint16_t)group;
        sqe->op_flags = MSG_DONTWAIT;
    }
    return slot;
}

int ut_prep_recv_multishot(struct ut_engine *engine, int fd, unsigned group, int poll_first)
{
    /* Length 0: each cqe fills a buffer as far as there is data. */
    struct io_uring_sqe *sqe;
    int slot = prep(engine, &sqe, IORING_OP_RECV, fd, NULL, 0);
    if (slot >= 0) {
        sqe->flags = IOSQE_BUFFER_SELECT;
        sqe->buf_group = (uint16_t)group;
        sqe->ioprio =
            (uint16_t)(IORING_RECV_MULTISHOT | (poll_first ? IORING_RECVSEND_POLL_FIRST : 0));
    }
    return slot;
}

int ut_prep_recv_into(struct ut_engine *engine, int fd, void *memory, uint32_t size, int flags,
                      int poll_first)
{
    struct io_uring_sqe *sqe;
    int slot = prep_waiting(engine, &sqe, IORING_OP_RECV, fd, memory, size, POLLIN, poll_first);
    if (slot >= 0)
        sqe->op_flags = (uint32_t)flags | MSG_DONTWAIT;
    return slot;
}

static int prep_send(struct ut_engine *engine, int fd, const char *data, uint32_t size, int flags)
{
    struct io_uring_sqe *sqe;
    int slot = prep_waiting(engine, &sqe, IORING_OP_SEND, fd, data, size, POLLOUT, 0);
    if (slot >= 0)
        sqe->op_flags = (uint32_t)flags | MSG_DONTWAIT;
    return slot;
}

int ut_prep_send(struct ut_engine *engine, int fd, const char *data, uint32_t size, int flags)
{
    return sends(engine, prep_send(engine, fd, data, size, flags));
}

int ut_prep_send_from(struct ut_engine *engine, int fd, const char *data, size_t offset,
                      uint32_t size, int flags)
{
    /* The socket has just refused it: in this tick it would again. */
    return prep_send(engine, fd, data + offset, size, flags);
}

int ut_prep_read(struct ut_engine *engine, int fd, unsigned group, uint32_t size, int poll_first)
{
    struct io_uring_sqe *sqe;
    int slot = prep_waiting(engine, &sqe, IORING_OP_READ, fd, NULL, size, POLLIN, poll_first);
    if (slot >= 0) {
        sqe->op_flags = UT_RWF_NOWAIT;
        sqe->flags = IOSQE_BUFFER_SELECT;
        sqe->buf_group = (uint16_t)group;
        sqe->off = UINT64_MAX; /* the file's own position */
    }
    return slot;
}

int ut_prep_write(struct ut_engine *engine, int fd, const char *data, uint32_t size, int unused)
{
    (void)unused;
    struct io_uring_sqe *sqe;
    int slot = prep_waiting(engine, &sqe, IORING_OP_WRITE, fd, data, size, POLLOUT, 0);
    if (slot >= 0) {
        sqe->op_flags = UT_RWF_NOWAIT;
        sqe->off = UINT64_MAX;
    }
    return sends(engine, slot);
}

int ut_prep_recvmsg(struct ut_engine *engine, int fd, struct ut_message *message, int flags,
                    int poll_first)
{
    struct io_uring_sqe *sqe;
    int slot = prep_waiting(engine, &sqe, IORING_OP_RECVMSG, fd, &message->header, 1, POLLIN,
                            poll_first);
    if (slot >= 0)
        sqe->op_flags = (uint32_t)flags | MSG_DONTWAIT;
    return slot;
}

int ut_prep_sendmsg(struct ut_engine *engine, int fd, struct ut_message *message, int flags)
{
    struct io_uring_sqe *sqe;
    int slot =
        prep_waiting(engine, &sqe, IORING_OP_SENDMSG, fd, &message->header, 1, POLLOUT, 0);
    if (slot >= 0)
        sqe->op_flags = (uint32_t)flags | MSG_DONTWAIT;
    return sends(engine, slot);
}

int ut_prep_accept(struct ut_engine *engine, int fd, struct ut_message *message, int flags,
                   int poll_first)
{
    struct io_uring_sqe *sqe;
    int slot = prep_waiting(engine, &sqe, IORING_OP_ACCEPT, fd, &message->name, 0, POLLIN,
                            poll_first);
    if (slot >= 0) {
        sqe->off = (uint64_t)(uintptr_t)&message->name_length;
        sqe->op_flags = (uint32_t)flags;
        sqe->ioprio = engine->accept_waits ? 0 : IORING_ACCEPT_DONTWAIT;
    }
    return slot;
}

int ut_prep_accept_fd(struct ut_engine *engine, int fd, int flags)
{
    struct io_uring_sqe *sqe;
    int slot = prep_waiting(engine, &sqe, IORING_OP_ACCEPT, fd, NULL, 0, POLLIN, 0);
    if (slot >= 0) {
        sqe->ioprio = engine->accept_waits ? 0 : IORING_ACCEPT_DONTWAIT;
        sqe->op_flags = (uint32_t)flags;
    }
    return slot;
}

int ut_prep_connect(struct ut_engine *engine, int fd, struct ut_message *message)
{
    struct io_uring_sqe *sqe;
    int slot = prep(engine, &sqe, IORING_OP_CONNECT, fd, &message->name, 0);
    if (slot >= 0)
        sqe->off = message->name_length;
    return sends(engine, slot);
}

int ut_prep_poll(struct ut_engine *engine, int fd, uint32_t events, int multishot)
{
    struct io_uring_sqe *sqe;
    int slot = prep(engine, &sqe, IORING_OP_POLL_ADD, fd, NULL,
                    multishot ? IORING_POLL_ADD_MULTI : 0);
    if (slot >= 0)
        sqe->op_flags = ut_poll_events(events);
    return slot;
}

int ut_prep_timeout(struct ut_engine *engine, int64_t timeout_ns)
{
    struct io_uring_sqe *sqe;
    int slot = prep(engine, &sqe, IORING_OP_TIMEOUT, -1, NULL, 1);
    if (slot >= 0) {
        struct ut_op *op = ut_op_at(&engine->ops, (uint32_t)slot);
        op->timeout = (struct ut_timespec){.tv_sec = timeout_ns / 1000000000,
                                           .tv_nsec = timeout_ns % 1000000000};
        sqe->addr = (uint64_t)(uintptr_t)&op->timeout;
    }
    return slot;
}
