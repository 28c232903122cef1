/* What the files of the simulator have from each other; see sim.h. */
#ifndef UT_TESTS_SIM_INSIDE_H
#define UT_TESTS_SIM_INSIDE_H

#include <pthread.h>
#include <sys/stat.h>

#include "kring.h"
#include "net.h"
#include "sim.h"

#define SIM_RINGS_MAX 64
#define SIM_ENDLESS_NS 3600000000000u /* a wait of an hour has no end */
#define SIM_BATCH_MAX 32768 /* cqes of one enter that are not in the CQ yet */

struct sim_request;
struct sim_ring;

/* ---- files (sim_files.c) ------------------------------------------------------ */

/* One side of a file of the machine's, as its own epoll sees it. */
struct sim_side {
    int fd; /* a duplicate; -1: nobody waits */
};

struct sim_file {
    struct sim_file *next;
    uint64_t device, inode;
    int status; /* O_ACCMODE of a pipe: its ends are one inode */
    uint32_t type; /* S_IFMT of its mode */
    int family, sock_type; /* of a socket */
    int number; /* of the program's, as last used */
    int held;   /* our own descriptor while requests hold it; -1 */
    unsigned holders;
    struct sim_request *waiters, *last_waiter; /* the queue: who is told first is first */
    struct net_file *net; /* NULL: the machine's */
    struct sim_side sides[2];
    uint64_t echo_ns; /* when who waits is told once more of what there is; SIM_NEVER */
};

void sim_files_open(void);
void sim_files_close(void);
unsigned sim_files_held(void);

/* The file of a descriptor, or NULL: there is none. */
struct sim_file *sim_file_of(int fd);
struct sim_file *sim_hold(struct sim_file *file);
void sim_drop(struct sim_file *file);

/* Attempts: none waits. `inq`: bytes that are left, -1 if that is not told. */
int sim_file_receive(struct sim_file *file, struct msghdr *message, int flags, int *inq);
int sim_file_send(struct sim_file *file, const struct msghdr *message, int flags);
int sim_file_read(struct sim_file *file, void *memory, size_t size, bool nowait);
int sim_file_write(struct sim_file *file, const void *data, size_t size, bool nowait);
int sim_file_accept(struct sim_file *file, struct sockaddr *name, socklen_t *length, int flags);
int sim_file_connect(struct sim_file *file, const struct sockaddr *name, socklen_t length);
int sim_file_error(struct sim_file *file); /* SO_ERROR, once */
bool sim_file_was_copied(const struct sim_file *file); /* what its receiver has just refused */
bool sim_file_is_nonblocking(const struct sim_file *file);

/* What poll(2) tells of it now, and that a request will wait for these bits. */
uint32_t sim_file_poll(struct sim_file *file, uint32_t events);
void sim_file_await(struct sim_file *file, uint32_t events);
bool sim_file_can_poll(const struct sim_file *file);

/* Whoever waits on the file is told once more: of what there is now, or later, of what there is
 * then. */
void sim_file_tell(struct sim_file *file);
void sim_file_echo(struct sim_file *file);

void sim_net_gave(struct net_file *net, int result, size_t size); /* of a receive of so many */

/* When something comes from outside by itself, and that this time has come. */
uint64_t sim_world_next_ns(void);
void sim_world_advance(void);

/* Tells of files of the network that the program has closed without us: before anybody sleeps. */
void sim_world_sweep(void);

/* Looks which of the machine's files have changed, for at most `timeout_ms`, and wakes who
 * waits: how many, or -EINTR. */
int sim_files_look(int timeout_ms);

/* ---- requests (sim_requests.c) -------------------------------------------------- */

enum sim_stage {
    SIM_RUNNING, /* on the stack */
    SIM_ARMED,   /* its poll waits for a wake-up */
    SIM_WOKEN,   /* ... which has come: deferred work */
    SIM_QUEUED,  /* to be tried again: deferred work */
    SIM_ENDED,   /* its last cqe is decided: deferred work */
    SIM_TIMER,   /* a timeout */
    SIM_WORKER,  /* in a thread of the kernel's, or waiting for one */
};

struct sim_request {
    struct sim_request *next, *previous;
    struct sim_ring *ring;
    struct io_uring_sqe sqe;
    struct sim_file *file; /* held; NULL: it has none */
    struct msghdr *message; /* of a send or receive, with its vectors: read at submission */
    struct sockaddr_storage name; /* of a connect */
    enum sim_stage stage;
    uint32_t events; /* that its poll waits for */
    uint32_t key;    /* of its wake-up */
    unsigned wakes;  /* since its work was queued */
    uint64_t due_ns, order;
    struct sim_request *behind, *ahead; /* in its file's queue */
    bool is_queued;
    int32_t res;
    uint32_t flags;
    unsigned arms;   /* of its own poll, in its life */
    unsigned loops;  /* of a multishot receive without a pause */
    bool polled, canceled, in_progress;
    bool has_worker; /* in SIM_WORKER: its thread has begun with it */
    bool is_stray; /* a cqe, and nothing behind it */
};

struct sim_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
    bool is_stray, is_final;
};

struct sim_ring {
    struct kring k;
    int fd;
    bool is_open;
    pthread_t owner;
    struct sim_request *first, *last;
    unsigned count, strays; /* of requests; of them, strays */
    unsigned workers, workers_max; /* threads of the kernel's, for files that may wait for ever */
    struct sim_cqe *batch; /* completions that are flushed together */
    unsigned batch_count;
    bool signalled; /* the eventfd, for the work that waits */
    bool sleeps;    /* its thread, in an enter */
    bool is_absent; /* not waited for, until it enters again */
    bool dropped;   /* a cqe, for want of memory; not told yet */
    bool drops;     /* ... one of those that a wait sleeps for will be, where that can tell */
    uint64_t moved_ns; /* when time went by last, and */
    unsigned enters;   /* ... since then */
    uint64_t wakes_ns; /* when it will wake by itself; SIM_NEVER */
};

void sim_request_start(struct sim_ring *ring, const struct io_uring_sqe *sqe);
void sim_requests_forget(struct sim_ring *ring); /* the ring is closed */
void sim_flush_batch(struct sim_ring *ring);
unsigned sim_run_work(struct sim_ring *ring, unsigned pieces); /* how many were run */
uint64_t sim_next_due(const struct sim_ring *ring);
/* Wakes whoever waits on a file, on any ring. Key 0: everybody. */
void sim_wake(struct sim_file *file, uint32_t key);

/* ---- the rest ------------------------------------------------------------------- */

struct sim {
    bool is_open;
    struct sim_switches switches;
    struct sim_books books;
    uint64_t now_ns;
    uint64_t next_due_ns; /* when the first of what is not due yet is, at the latest */
    unsigned patience_ms;
    bool has_network;
    uint64_t order; /* of requests and their work */
    struct sim_ring *rings[SIM_RINGS_MAX];
};
extern struct sim sim;

void sim_lock(void);
void sim_unlock(void);

/* One of 0..below-1. */
unsigned sim_choose(enum sim_choice kind, unsigned below);
void sim_choices_open(const uint32_t *choices, uint32_t count);
void sim_choices_close(void);

void sim_fault(const char *what);
void sim_note(enum sim_happening what, int fd, uint64_t token, int64_t a, int64_t b);
void sim_trace_open(void);

void sim_advance_to(uint64_t now_ns);
uint64_t sim_next_ns(const struct sim_ring *ring); /* of it, or of the world */

/* Time has moved: signals eventfds of rings that have work now. */
void sim_signal(void);

/* ---- calls beside the ring (sim_beside.c) ---------------------------------------- */

int sim_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *name,
               socklen_t length);
int sim_recvfrom(int fd, void *memory, size_t size, int flags, struct sockaddr *name,
                 socklen_t *length);
int sim_sendmsg(int fd, const struct msghdr *message, int flags);
int sim_recvmsg(int fd, struct msghdr *message, int flags);
int sim_accept4(int fd, struct sockaddr *name, socklen_t *length, int flags);
int sim_connect(int fd, const struct sockaddr *name, socklen_t length);
int sim_shutdown(int fd, int how);
int sim_getsockopt(int fd, int level, int option, void *value, socklen_t *length);
int sim_setsockopt(int fd, int level, int option, const void *value, socklen_t length);
int sim_getsockname(int fd, struct sockaddr *name, socklen_t *length);
int sim_getpeername(int fd, struct sockaddr *name, socklen_t *length);
int sim_read(int fd, void *memory, size_t size);
int sim_write(int fd, const void *data, size_t size);
int sim_poll(struct pollfd *files, unsigned count, int timeout_ms);
int sim_status_flags(int fd);
int sim_queued(int fd);
int sim_mode(int fd);
int sim_close_file(int fd);

#endif
