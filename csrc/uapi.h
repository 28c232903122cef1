/*
 * The part of the kernel's io_uring ABI that we use, and no more.
 *
 * Written from the ABI, not included from <linux/io_uring.h>: the headers of a
 * build machine (Debian 12: Linux 6.1) are older than kernels we run on, and a
 * wheel must not depend on them. Names are the kernel's. Sizes are asserted.
 * The first release of a thing stands behind it where it is later than 5.19.
 */
#ifndef UT_UAPI_H
#define UT_UAPI_H

#include <stdint.h>

struct io_uring_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio; /* for recv, send, accept: IORING_RECVSEND_* */
    int32_t fd;
    uint64_t off; /* connect: length of the address; accept: where its length goes */
    uint64_t addr;
    uint32_t len;
    uint32_t op_flags; /* msg_flags, accept_flags, cancel_flags, poll32_events */
    uint64_t user_data;
    uint16_t buf_group;
    uint16_t personality;
    int32_t file_index;
    uint64_t addr3;
    uint64_t pad;
};
_Static_assert(sizeof(struct io_uring_sqe) == 64, "sqe is 64 bytes");

struct io_uring_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};
_Static_assert(sizeof(struct io_uring_cqe) == 16, "cqe is 16 bytes");

struct io_sqring_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};

struct io_cqring_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};

struct io_uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle;
    uint32_t features, wq_fd, resv[3];
    struct io_sqring_offsets sq_off;
    struct io_cqring_offsets cq_off;
};
_Static_assert(sizeof(struct io_uring_params) == 120, "params is 120 bytes");

struct ut_timespec {
    int64_t tv_sec;
    int64_t tv_nsec;
};

struct io_uring_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz;
    uint32_t min_wait_usec;
    uint64_t ts;
};
_Static_assert(sizeof(struct io_uring_getevents_arg) == 24, "getevents_arg is 24 bytes");

struct io_uring_buf {
    uint64_t addr;
    uint32_t len;
    uint16_t bid;
    uint16_t resv; /* of entry 0: the ring's tail */
};
_Static_assert(sizeof(struct io_uring_buf) == 16, "buf is 16 bytes");

struct io_uring_buf_reg {
    uint64_t ring_addr;
    uint32_t ring_entries;
    uint16_t bgid;
    uint16_t flags;
    uint64_t resv[3];
};
_Static_assert(sizeof(struct io_uring_buf_reg) == 40, "buf_reg is 40 bytes");

struct io_uring_probe_op {
    uint8_t op;
    uint8_t resv;
    uint16_t flags;
    uint32_t resv2;
};

#define UT_PROBE_OPS 256
struct io_uring_probe {
    uint8_t last_op;
    uint8_t ops_len;
    uint16_t resv;
    uint32_t resv2[3];
    struct io_uring_probe_op ops[UT_PROBE_OPS];
};

#define IO_URING_OP_SUPPORTED (1U << 0)

#define IORING_OFF_SQ_RING 0ULL
#define IORING_OFF_SQES 0x10000000ULL

/* sqe->flags */
#define IOSQE_BUFFER_SELECT (1U << 5)

/* io_uring_setup() flags */
#define IORING_SETUP_CQSIZE (1U << 3)
#define IORING_SETUP_CLAMP (1U << 4)
#define IORING_SETUP_SUBMIT_ALL (1U << 7)
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)
#define IORING_SETUP_SINGLE_ISSUER (1U << 12) /* 6.0 */
#define IORING_SETUP_DEFER_TASKRUN (1U << 13) /* 6.1 */

/* io_uring_params.features */
#define IORING_FEAT_SINGLE_MMAP (1U << 0)
#define IORING_FEAT_NODROP (1U << 1)
#define IORING_FEAT_SUBMIT_STABLE (1U << 2)
#define IORING_FEAT_FAST_POLL (1U << 5)
#define IORING_FEAT_EXT_ARG (1U << 8)
#define IORING_FEAT_NO_IOWAIT (1U << 17) /* 6.15 */

/* the SQ's flags */
#define IORING_SQ_CQ_OVERFLOW (1U << 1)
#define IORING_SQ_TASKRUN (1U << 2)

/* io_uring_enter() flags */
#define IORING_ENTER_GETEVENTS (1U << 0)
#define IORING_ENTER_EXT_ARG (1U << 3)
#define IORING_ENTER_NO_IOWAIT (1U << 7) /* 6.15 */

/* io_uring_register() opcodes */
#define IORING_REGISTER_EVENTFD 4
#define IORING_UNREGISTER_EVENTFD 5
#define IORING_REGISTER_PROBE 8
#define IORING_REGISTER_PBUF_RING 22

enum io_uring_op {
    IORING_OP_NOP = 0,
    IORING_OP_POLL_ADD = 6,
    IORING_OP_SENDMSG = 9,
    IORING_OP_RECVMSG = 10,
    IORING_OP_TIMEOUT = 11,
    IORING_OP_ACCEPT = 13,
    IORING_OP_ASYNC_CANCEL = 14,
    IORING_OP_CONNECT = 16,
    IORING_OP_READ = 22,
    IORING_OP_WRITE = 23,
    IORING_OP_SEND = 26,
    IORING_OP_RECV = 27,
    UT_OPCODES = 32, /* our counters' size: above every opcode we use */
};

/* sqe->op_flags of READ and WRITE: RWF_NOWAIT */
#define UT_RWF_NOWAIT (1U << 3)

/* sqe->len of POLL_ADD */
#define IORING_POLL_ADD_MULTI (1U << 0)

/* sqe->ioprio of recv and send */
#define IORING_RECVSEND_POLL_FIRST (1U << 0)
#define IORING_RECV_MULTISHOT (1U << 1)   /* 6.0 */
#define IORING_ACCEPT_MULTISHOT (1U << 0) /* 5.19 */
#define IORING_ACCEPT_DONTWAIT (1U << 1)  /* 6.10 */

/* cqe->flags */
#define IORING_CQE_F_BUFFER (1U << 0)
#define IORING_CQE_F_MORE (1U << 1)
#define IORING_CQE_F_SOCK_NONEMPTY (1U << 2)
#define IORING_CQE_BUFFER_SHIFT 16

#endif
