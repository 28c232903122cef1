/*
 * A scripted kernel behind struct ut_kernel.
 *
 * It has a real SQ and CQ, laid out and checked as Linux does (kring.c), but nothing
 * is sent or received: each operation follows a plan. Time is its own, and moves
 * only while an enter sleeps, when a test calls fake_sleep() and, a little, when
 * the engine looks at the clock. So every order of events is had on demand, at
 * once, and again.
 *
 * Calls beside the ring are noted, and answer what the test has set.
 *
 * One ring at a time. What the engine must never do (two operations with one
 * token, a buffer returned twice, an sqe that Linux would refuse, a wait that
 * nothing can end) is a fault: printed, counted, and failed by fake_check_books().
 */
#ifndef UT_TESTS_FAKE_KERNEL_H
#define UT_TESTS_FAKE_KERNEL_H

#include <limits.h>
#include <stdbool.h>

#include "../engine.h"
#include "kring.h"

#define FAKE_NEVER KRING_NEVER
#define FAKE_ALWAYS UINT_MAX
#define FAKE_WORK_MAX 20 /* pieces of deferred work an enter runs, as on 6.18 */
#define FAKE_CLOCK_NS 40 /* what a look at the clock takes */
#define FAKE_REQUESTS_MAX 8192
#define FAKE_PLANS_MAX 8192
#define FAKE_ENTERS_MAX 64
#define FAKE_MADE_MAX 8
#define FAKE_FD_ELSEWHERE 10000 /* sockets from here on are of another network */

extern const struct ut_kernel ut_kernel_fake;

/* What becomes of one operation. All zero: it completes with res 0 at the next
 * enter that runs deferred work, and a cancel that finds it ends it.
 *
 * An operation may be several requests with one token: attempts that do not wait, polls
 * between them, a watch beside them. Its plan is taken by the first. Until `delay_ns` is
 * over attempts are refused (-EAGAIN); then polls tell what they ask for, and the next
 * attempt completes while it is submitted. */
struct fake_plan {
    int32_t res;       /* of each cqe; cut to the operation's length */
    uint64_t delay_ns; /* before each cqe; FAKE_NEVER: only a cancel ends it */
    unsigned more;     /* cqes with F_MORE before the last one */
    uint32_t flags;    /* of each cqe, besides F_MORE and F_BUFFER */
    const char *data;  /* what is received; NULL: fake_byte(fd, i) */
    bool at_once;      /* completes while it is submitted, not as deferred work */
    bool no_buffer;    /* this kernel does not know IOSQE_BUFFER_SELECT */
    unsigned copies;   /* further cqes with the same token: a broken kernel */

    /* Of an operation that is attempted without waiting: */
    bool slow;           /* attempts are under way for delay_ns, and not refused */
    unsigned refusals;   /* attempts refused although it is ready; FAKE_ALWAYS: all */
    bool refused_buffer; /* a refusal takes a buffer, and tells it */
    uint32_t echo;       /* bits that its watch tells after each refusal */
    uint32_t sticky;     /* bits that each of its polls tells at once, for ever */
    int32_t poll_error;  /* res of its polls instead; */
    int32_t watch_error; /* of its watch */

    /* When an async cancel finds it: */
    int32_t cancel_answer;  /* res of the cancel's own cqe */
    int32_t cancel_res;     /* res of the operation's last cqe; 0: -ECANCELED */
    bool cancel_too_late;   /* the operation goes on as planned */
    bool target_first;      /* the operation's cqe comes before the cancel's */
    uint64_t cancel_gap_ns; /* between the two cqes */
};

/* How the next enter goes wrong. -EAGAIN: no memory for the first sqe. -EINTR,
 * -EBUSY, -EBADR, -ETIME: from the wait, so hidden behind a submission. Others:
 * at once. */
struct fake_enter {
    int error;
    unsigned submit_max; /* sqes taken; 0: all */
    bool with_cqes;      /* from a wait that has found what it waited for, too */
};

/* The calls beside the ring. */
enum fake_call {
    FAKE_SENDTO,
    FAKE_RECVFROM,
    FAKE_SENDMSG,
    FAKE_RECVMSG,
    FAKE_ACCEPT4,
    FAKE_CONNECT,
    FAKE_SHUTDOWN,
    FAKE_GETSOCKOPT,
    FAKE_SETSOCKOPT,
    FAKE_GETSOCKNAME,
    FAKE_GETPEERNAME,
    FAKE_READ,
    FAKE_WRITE,
    FAKE_POLL,
    FAKE_STATUS_FLAGS,
    FAKE_QUEUED,
    FAKE_MODE,
    FAKE_CLOSE,
    FAKE_CALLS,
};

/* One of them, as it was made: what its system call does not have is 0. */
struct fake_made {
    enum fake_call call;
    int fd, flags, level, option; /* `flags` of shutdown: how; of poll: the timeout in ms */
    const void *memory;           /* of a message: itself */
    size_t size;
    struct sockaddr_storage name; /* that was given */
    socklen_t name_length;        /* of it, or of the room for one */
    bool has_name;                /* one was given, however long */
};

struct fake {
    /* For tests to set. */
    uint64_t now_ns;
    uint64_t random;           /* not 0: plans, orders and errors are drawn from it */
    struct fake_plan fallback; /* for operations without a plan of their own */
    unsigned features;
    unsigned setup_flags_refused; /* -EINVAL */
    unsigned setup_entries_max;   /* more: -ENOMEM */
    unsigned requests_max;        /* more in flight: no memory, -EAGAIN */
    bool faults_expected;         /* they are counted, and not printed */
    uint32_t opcodes_missing;     /* bit n: IORING_REGISTER_PROBE does not name opcode n */
    unsigned fail_call;           /* the nth of setup, register, map, allocate fails */
    int fail_error;
    bool accept_waits; /* this kernel does not know IORING_ACCEPT_DONTWAIT: before 6.10 */
    bool no_nowait;    /* reads and writes with RWF_NOWAIT answer -EOPNOTSUPP */
    bool is_calm;      /* no plan is drawn whose polls tell it always and whose refusals echo */
    int32_t watch_error; /* see fake_fail_watches() */
    bool watches_end;  /* each cqe of a watch is its last; drawn, if anything is */
    int answers[FAKE_CALLS];      /* of the calls beside the ring */
    struct sockaddr_storage name; /* that they write where one is asked for */
    socklen_t name_length;
    int option; /* the value of every socket option, and what poll() has found */
    int file;   /* an open one, that may be closed once; 0: none */

    /* For tests to read. */
    unsigned calls, enters, faults, mappings, fds, late_writes;
    unsigned submitted[UT_OPCODES];
    unsigned stale_injected;
    unsigned attempts, refused, watches; /* attempts that do not wait; multishot polls */
    unsigned made_count;
    struct fake_made made[FAKE_MADE_MAX]; /* the first calls beside the ring */
};
extern struct fake fake;

/* The one ring. */
extern struct kring fake_ring;

/* Forgets everything; what the last test left mapped is given back. */
void fake_reset(void);

/* Plans for the operations submitted next, oldest first, cancels not counted. */
void fake_plan_next(struct fake_plan plan);
void fake_enter_next(struct fake_enter enter);

/* Lets time pass: what becomes due is deferred work, and the SQ says so. */
void fake_sleep(uint64_t ns);

/* After `delay_ns`: whoever polls `fd` is told these bits. */
void fake_wake_later(uint64_t delay_ns, int fd, uint32_t bits);

/* All watches end with this error, those armed from now on as well; 0: no more. */
void fake_fail_watches(int32_t error);

/* A cqe out of nowhere. */
void fake_stray_cqe(uint64_t user_data, int32_t res, uint32_t flags);

/* What the last attempt of an operation gave; FAKE_NO_RESULT: none but refusals so far. */
#define FAKE_NO_RESULT INT32_MIN
int32_t fake_result_of(uint64_t token);

/* Byte i of what a receive on `fd` brings. */
uint8_t fake_byte(int fd, unsigned index);

/* Operations in flight. */
unsigned fake_in_flight(void);
unsigned fake_in_flight_of(uint8_t opcode);

/* Writes, as a kernel does that has not cancelled everything yet, into the memory
 * of all that was in flight when the ring was closed. */
void fake_write_late(void);

/* Gives back memory that was leaked on purpose; how many blocks there were. */
unsigned fake_reclaim(void);

/* No fault, nothing mapped, nothing open. */
void fake_check_books(void);

/* ---- between the fake's own files ---- */

int fake_enter_ring(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                    const void *arg, size_t arg_size);
int fake_close_file(int fd); /* one that is not the ring */
int fake_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *name,
                socklen_t length);
int fake_recvfrom(int fd, void *memory, size_t size, int flags, struct sockaddr *name,
                  socklen_t *length);
int fake_sendmsg(int fd, const struct msghdr *message, int flags);
int fake_recvmsg(int fd, struct msghdr *message, int flags);
int fake_accept4(int fd, struct sockaddr *name, socklen_t *length, int flags);
int fake_connect(int fd, const struct sockaddr *name, socklen_t length);
int fake_shutdown(int fd, int how);
int fake_getsockopt(int fd, int level, int option, void *value, socklen_t *length);
int fake_setsockopt(int fd, int level, int option, const void *value, socklen_t length);
int fake_getsockname(int fd, struct sockaddr *name, socklen_t *length);
int fake_getpeername(int fd, struct sockaddr *name, socklen_t *length);
int fake_read(int fd, void *memory, size_t size);
int fake_write(int fd, const void *data, size_t size);
int fake_poll(struct pollfd *files, unsigned count, int timeout_ms);
int fake_status_flags(int fd);
int fake_queued(int fd);
int fake_mode(int fd);
void fake_requests_reset(void);
void fake_requests_close(void); /* the ring's fd is gone */
void fake_fault(const char *what);
unsigned fake_draw(unsigned below); /* a random number in 0..below-1 */

#endif
