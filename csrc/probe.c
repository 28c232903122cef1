/*
 * Why a probe does the real thing
 *
 * A release number proves nothing: RHEL and WSL carry back-ports, and sandboxes
 * (seccomp, gVisor, some managed Kubernetes) answer EPERM, ENOSYS, EOPNOTSUPP
 * or EINVAL at any of set-up, register and enter. So a feature counts as there
 * only when an operation that needs it came to its end.
 */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "prep.h"

/* Waits of `end_operations`: one may tell of an error that was kept, and one may submit. */
#define END_ROUNDS 4

static const struct ut_config small_config = {
    .sq_entries = 8,
    .cq_entries = 32,
    .sq_entries_min = 8,
    .groups = {{1, 4096}, {1, 4096}, {1, 4096}},
};

static const uint8_t opcodes_required[] = {
    IORING_OP_POLL_ADD, IORING_OP_SENDMSG,      IORING_OP_RECVMSG, IORING_OP_ACCEPT,
    IORING_OP_CONNECT,  IORING_OP_ASYNC_CANCEL, IORING_OP_READ,    IORING_OP_WRITE,
    IORING_OP_SEND,     IORING_OP_RECV,         IORING_OP_TIMEOUT,
};

static int read_opcodes(struct ut_engine *engine, struct ut_probe *out)
{
    struct io_uring_probe answer;
    memset(&answer, 0, sizeof answer);
    int error = engine->ring.kernel->register_op(engine->ring.fd, IORING_REGISTER_PROBE, &answer,
                                                 UT_PROBE_OPS);
    if (error < 0)
        return error;
    for (unsigned i = 0; i < answer.ops_len; i++) {
        if (answer.ops[i].flags & IO_URING_OP_SUPPORTED) {
            out->opcodes[answer.ops[i].op] = 1;
            out->opcode_count++;
        }
    }
    for (unsigned i = 0; i < sizeof opcodes_required; i++)
        if (!out->opcodes[opcodes_required[i]])
            return -EOPNOTSUPP;
    return 0;
}

/* Waits for the last record of `slot` and copies it. When the time is over it looks once
 * more: a process that was stopped meanwhile, or got no CPU, is not a kernel that does
 * not answer. */
static int wait_for(struct ut_engine *engine, int slot, int64_t timeout_ns,
                    struct ut_record *record)
{
    const struct ut_kernel *kernel = engine->ring.kernel;
    uint64_t start_ns = kernel->now_ns();
    for (;;) {
        int64_t left = timeout_ns - (int64_t)(kernel->now_ns() - start_ns);
        int64_t result = ut_engine_wait(engine, left > 0 ? left : 0);
        if (result < 0 && result != -EINTR)
            return (int)result;
        for (unsigned i = 0; i < engine->record_count; i++) {
            if (engine->records[i].slot == (uint32_t)slot) {
                *record = engine->records[i];
                return 0;
            }
        }
        if (left <= 0)
            return -ETIME;
    }
}

static int try_receive(struct ut_engine *engine, const int pair[2], int64_t timeout_ns)
{
    struct ut_record record;
    int slot = ut_prep_recv(engine, pair[0], 0, 16, 1);
    if (slot < 0)
        return slot;
    if (ut_prep_send(engine, pair[1], "probe", 5, MSG_NOSIGNAL) < 0)
        return -ENOMEM;
    int error = wait_for(engine, slot, timeout_ns, &record);
    if (error < 0)
        return error;
    if (record.res < 0)
        return record.res;
    if (record.res != 5 || !(record.flags & IORING_CQE_F_BUFFER) ||
        memcmp(engine->pool + record.offset, "probe", 5) != 0)
        return -EOPNOTSUPP; /* it answered, and not with what was sent */
    return 0;
}

static int try_cancel(struct ut_engine *engine, const int pair[2], int64_t timeout_ns)
{
    struct ut_record record;
    int slot = ut_prep_recv(engine, pair[0], 0, 16, 1);
    if (slot < 0)
        return slot;
    int64_t result = ut_engine_wait(engine, 0);
    if (result < 0)
        return (int)result;
    int error = ut_engine_cancel(engine, (uint32_t)slot);
    if (error < 0)
        return error;
    error = wait_for(engine, slot, timeout_ns, &record);
    if (error < 0)
        return error;
    return record.res == -ECANCELED ? 0 : -EOPNOTSUPP;
}

/* Ends what a step that failed has left in flight: memory that the kernel may still write to
 * is given up, and a run that tries again, because the kernel had none to spare, would give up
 * more each time. What waits is cancelled within one enter or two; nobody sleeps for it. */
static void end_operations(struct ut_engine *engine)
{
    for (uint32_t slot = 0; slot < UT_OP_CHUNK; slot++)
        (void)ut_engine_cancel(engine, slot);
    for (int round = 0; round < END_ROUNDS && engine->in_flight > 0; round++)
        (void)ut_engine_wait(engine, 0);
}

void ut_probe_run(const struct ut_kernel *kernel, struct ut_config *config,
                  int64_t timeout_ns, struct ut_probe *out)
{
    int pair[2];
    memset(out, 0, sizeof *out);
    struct ut_config small = small_config;
    if (config == NULL)
        config = &small;
    struct ut_engine *engine = ut_engine_open(kernel, config, &out->error, &out->stage);
    if (engine == NULL)
        return;
    out->setup_flags = engine->ring.setup_flags;
    out->features = engine->ring.features;
    out->sq_entries = engine->ring.sq_entries;
    out->cq_entries = engine->ring.cq_entries;
    out->stage = "list the opcodes";
    out->error = read_opcodes(engine, out);
    if (out->error == 0) {
        out->stage = "make a socket pair";
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
            out->error = -errno;
    }
    if (out->error == 0) {
        out->stage = "receive into a provided buffer";
        out->error = try_receive(engine, pair, timeout_ns);
        if (out->error == 0) {
            out->stage = "async cancel";
            out->error = try_cancel(engine, pair, timeout_ns);
        }
        close(pair[0]);
        close(pair[1]);
    }
    end_operations(engine);
    ut_engine_close(engine, 0);
}

int ut_probe_setup(const struct ut_kernel *kernel, unsigned sq_entries, unsigned cq_entries)
{
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    params.flags = IORING_SETUP_CQSIZE;
    params.cq_entries = cq_entries;
    int fd = kernel->setup(sq_entries, &params);
    if (fd < 0)
        return fd;
    kernel->close_fd(fd);
    return 0;
}
