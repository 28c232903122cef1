/*
 * Rings, enters, and time
 *
 * Enter, as io_uring_enter() of Linux 6.18. It takes sqes one by one; with fewer than it was
 * given it returns at once, without a look at events. Then, asked for events, it runs deferred
 * work, at most 20 pieces (IO_LOCAL_TW_DEFAULT_MAX), and what overflowed goes into the CQ; with
 * enough cqes it returns, and else sleeps and runs work as it comes; why a wait was ended is told
 * only if there is no cqe at all. An enter that has taken sqes answers with their number,
 * whatever its wait would say. Deferred work is run nowhere else, and by the thread that made
 * the ring alone: others get -EEXIST. When the first piece comes to wait, SQ's flags say TASKRUN,
 * and the registered eventfd is written to.
 *
 * Time is virtual. It stands still while the program computes, but for a little with each look
 * at the clock (or who looks until it is late would look for ever), and moves on where an enter
 * sleeps: to the next thing that is due, or to the end of the wait. So a second costs nothing.
 *
 * Files of the network that were closed without a call of ours (os.close) are looked for before
 * anybody sleeps: who waits for their end is told while time stands still, as by Linux.
 *
 * Real time matters in two places. The machine's files are looked at with each enter. And where
 * nothing simulated is due and the wait has no end (trio's longest is a day: an hour counts as
 * none), somebody outside may be at work: another thread, a signal, a child. So the files are
 * waited for, for real, as long as the simulation has patience; a wait that nobody ends then is
 * a fault. Its time is over, once, so that the program can be told and come to an end in order;
 * a program that goes on waiting loses its ring. A wait with an end is over at once, in virtual
 * time: whoever is late in real time is late.
 *
 * Several threads with a ring each share the clock. It goes on when all of them sleep, to what
 * is next for any of them; one that does not come to sleep is waited for, in real time, as long
 * as the simulation has patience. So nobody is late because another computes. But who is first
 * to be awake is the machine's business, and cannot be replayed.
 *
 * Left out: SQPOLL, IOPOLL, R_DISABLED, resizing, registered waits, min_wait_usec.
 */
#define _GNU_SOURCE
#include "sim_inside.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define WORK_MAX 20         /* pieces of deferred work that an enter runs */
#define CLOCK_NS 40         /* what a look at the clock takes */
#define HELD_UP_NS 700000   /* ... where the processor was another's meanwhile */
#define STANDSTILL_NS 10000000
#define ENTERS_MAX 20000    /* while time stands still: ten times what any program makes */
#define ENDLESS_MAX 3            /* that are only told */
#define START_NS 1000000000u
#define SLICE_MS 1          /* of a real wait, where other rings' changes may be seen by us */
#define MAPPINGS_MAX 1024

struct mapping {
    void *address;
    size_t size;
    struct sim_ring *ring; /* whose memory it is; NULL: the application's */
};

struct sim sim;
static struct mapping mappings[MAPPINGS_MAX];
static pthread_mutex_t mutex;
static pthread_once_t mutex_once = PTHREAD_ONCE_INIT;

/* ---- one after the other ------------------------------------------------------------- */

static void make_mutex(void)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mutex, &attributes);
}

void sim_lock(void)
{
    pthread_once(&mutex_once, make_mutex);
    pthread_mutex_lock(&mutex);
}

void sim_unlock(void)
{
    pthread_mutex_unlock(&mutex);
}

/* ---- rings ----------------------------------------------------------------------------- */

static struct sim_ring *ring_of(int fd)
{
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++)
        if (sim.rings[i] != NULL && sim.rings[i]->is_open && sim.rings[i]->fd == fd)
            return sim.rings[i];
    return NULL;
}

static unsigned rings_open(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++)
        count += sim.rings[i] != NULL && sim.rings[i]->is_open;
    return count;
}

static int setup(unsigned entries, struct io_uring_params *params)
{
    unsigned slot = 0;
    while (slot < SIM_RINGS_MAX && sim.rings[slot] != NULL)
        slot++;
    unsigned refused = (sim.switches.no_defer_taskrun ? IORING_SETUP_DEFER_TASKRUN : 0) |
                       (sim.switches.no_single_issuer ? IORING_SETUP_SINGLE_ISSUER : 0);
    if (entries == 0 || params->flags & refused)
        return -EINVAL;
    if (slot == SIM_RINGS_MAX || !sim.is_open)
        return -ENOMEM;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); /* a number, and nothing else */
    if (fd < 0)
        return -errno;
    struct sim_ring *ring = calloc(1, sizeof *ring);
    ring->batch = malloc(SIM_BATCH_MAX * sizeof *ring->batch);
    if (ring->batch == NULL)
        abort();
    params->features = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE |
                       IORING_FEAT_FAST_POLL | IORING_FEAT_EXT_ARG | IORING_FEAT_NO_IOWAIT;
    if (sim.switches.small_cq)
        params->cq_entries = entries;
    kring_open(&ring->k, entries, params, sim_fault);
    ring->fd = fd;
    ring->is_open = true;
    ring->owner = pthread_self();
    ring->workers_max = UINT32_MAX;
    sim.rings[slot] = ring;
    sim_note(SIM_NOTE_SETUP, fd, 0, params->sq_entries, params->cq_entries);
    return fd;
}

/* A ring's memory lives as long as its fd or a mapping. */
static void free_if_unused(struct sim_ring *ring)
{
    for (unsigned i = 0; i < MAPPINGS_MAX; i++)
        if (mappings[i].address != NULL && mappings[i].ring == ring)
            return;
    if (ring->is_open)
        return;
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++)
        if (sim.rings[i] == ring)
            sim.rings[i] = NULL;
    sim.books.overflows += ring->k.overflows;
    kring_free(&ring->k);
    free(ring->batch);
    free(ring);
}

static void close_ring(struct sim_ring *ring)
{
    sim_requests_forget(ring);
    ring->is_open = false;
    close(ring->fd);
    free_if_unused(ring);
}

static int close_fd(int fd)
{
    if (!sim.is_open)
        return 0; /* a ring that has outlived its simulation: its number is another's */
    struct sim_ring *ring = ring_of(fd);
    if (ring == NULL)
        return sim_close_file(fd);
    sim_note(SIM_NOTE_CLOSED, fd, 0, (int)(ring->count - ring->strays), 0);
    close_ring(ring);
    return 0;
}

static int register_op(int ring_fd, unsigned opcode, void *arg, unsigned nr_args)
{
    struct sim_ring *ring = ring_of(ring_fd);
    if (ring == NULL)
        return -EBADF;
    if (!pthread_equal(ring->owner, pthread_self()))
        return -EEXIST;
    if (opcode == IORING_REGISTER_PROBE && sim.switches.no_probe)
        return -EINVAL;
    if (opcode == SIM_REGISTER_WORKERS) {
        unsigned *most = arg, before = ring->workers_max;
        ring->workers_max = most[1] > 0 ? most[1] : before;
        most[1] = before;
        return nr_args == 2 ? 0 : -EINVAL;
    }
    ring->signalled = ring->signalled && opcode != IORING_REGISTER_EVENTFD;
    return kring_register(&ring->k, opcode, arg, nr_args, 0);
}

/* ---- memory ------------------------------------------------------------------------------ */

static struct mapping *find_mapping(const void *address)
{
    for (unsigned i = 0; i < MAPPINGS_MAX; i++)
        if (mappings[i].address == address)
            return &mappings[i];
    return NULL;
}

static void add_mapping(void *address, size_t size, struct sim_ring *ring)
{
    struct mapping *mapping = find_mapping(NULL);
    if (mapping == NULL)
        abort();
    *mapping = (struct mapping){address, size, ring};
    sim.books.mappings++;
}

static int map(void **address, size_t size, int ring_fd, uint64_t offset)
{
    struct sim_ring *ring = ring_of(ring_fd);
    if (ring == NULL)
        return -EBADF;
    *address = kring_part(&ring->k, size, offset);
    if (*address == NULL)
        return -EINVAL;
    add_mapping(*address, size, ring);
    return 0;
}

static int allocate(void **address, size_t size, int dontfork)
{
    (void)dontfork; /* (no child goes on with a simulation) */
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    *address = memory;
    add_mapping(memory, size, NULL);
    return 0;
}

static void unmap(void *address, size_t size)
{
    struct mapping *mapping = address != NULL ? find_mapping(address) : NULL;
    if (!sim.is_open)
        return;
    if (mapping == NULL || mapping->size != size) {
        sim_fault("unmap of what is not mapped");
        return;
    }
    struct sim_ring *ring = mapping->ring;
    mapping->address = NULL;
    sim.books.mappings--;
    if (ring != NULL)
        free_if_unused(ring);
    else
        munmap(address, size);
}

/* ---- work that waits ----------------------------------------------------------------------- */

static void look_at_ring(struct sim_ring *ring)
{
    bool has_work = sim_next_due(ring) <= sim.now_ns;
    unsigned flags = kring_cq_has_overflow(&ring->k) ? IORING_SQ_CQ_OVERFLOW : 0;
    kring_set_sq_flags(&ring->k, has_work ? flags | IORING_SQ_TASKRUN : flags);
    if (has_work && !ring->signalled && ring->k.event_fd >= 0) {
        uint64_t one = 1;
        if (write(ring->k.event_fd, &one, sizeof one) < 0 && errno != EAGAIN)
            sim_fault("a registered eventfd that cannot be written");
    }
    ring->signalled = has_work;
}

void sim_signal(void)
{
    sim.next_due_ns = SIM_NEVER;
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++) {
        struct sim_ring *ring = sim.rings[i];
        if (ring == NULL || !ring->is_open)
            continue;
        look_at_ring(ring);
        uint64_t due_ns = sim_next_ns(ring);
        if (due_ns > sim.now_ns && due_ns < sim.next_due_ns)
            sim.next_due_ns = due_ns;
    }
}

void sim_advance_to(uint64_t now_ns)
{
    if (now_ns > sim.now_ns)
        sim.now_ns = now_ns;
    sim_note(SIM_NOTE_SLEPT, -1, sim.now_ns, 0, 0);
    sim_world_advance();
    sim_signal();
}

uint64_t sim_next_ns(const struct sim_ring *ring)
{
    uint64_t due_ns = sim_next_due(ring), world_ns = sim_world_next_ns();
    return due_ns < world_ns ? due_ns : world_ns;
}

void sim_sleep(uint64_t ns)
{
    sim_lock();
    uint64_t until_ns = sim.now_ns + ns, next_ns;
    while ((next_ns = sim_world_next_ns()) < until_ns)
        sim_advance_to(next_ns);
    sim_advance_to(until_ns);
    sim_unlock();
}

static uint64_t now_ns(void)
{
    sim_lock();
    uint64_t now = sim.now_ns += sim_choose(SIM_CLOCK, 4) == 1 ? HELD_UP_NS : CLOCK_NS;
    if (now >= sim.next_due_ns) {
        sim_world_advance();
        sim_signal();
    }
    sim_unlock();
    return now;
}

uint64_t sim_now_ns(void)
{
    return __atomic_load_n(&sim.now_ns, __ATOMIC_RELAXED);
}

/* ---- enter ------------------------------------------------------------------------------------ */

static unsigned submit(struct sim_ring *ring, unsigned wanted)
{
    unsigned taken = 0;
    struct io_uring_sqe sqe;
    while (taken < wanted && kring_next_sqe(&ring->k, &sqe)) {
        sim_request_start(ring, &sqe);
        taken++;
    }
    sim_flush_batch(ring);
    return taken;
}

/* Sleeps for real, while nothing simulated is due. 0, or -EINTR, or what a wait that would
 * never end answers. */
static int sleep_for_real(struct sim_ring *ring, uint64_t until_ns)
{
    unsigned slice = rings_open() > 1 ? SLICE_MS : sim.patience_ms;
    for (unsigned slept = 0; slept < sim.patience_ms; slept += slice) {
        int woken = sim_files_look((int)slice);
        if (woken != 0)
            return woken < 0 ? woken : 0;
        if (sim_next_due(ring) <= sim.now_ns)
            return 0;
    }
    sim_fault("this wait would never end");
    if (++sim.books.never_ending > ENDLESS_MAX || until_ns >= SIM_NEVER - 1)
        return -EDEADLK;
    sim_advance_to(until_ns);
    return -ETIME;
}

/* Whether time may go on to where this ring wakes: all others sleep, and wake later. */
static bool has_turn(const struct sim_ring *ring)
{
    bool is_behind = false; /* of two that wake together the first goes first */
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++) {
        const struct sim_ring *other = sim.rings[i];
        is_behind |= other == ring;
        if (other == NULL || !other->is_open || other->is_absent ||
            pthread_equal(other->owner, ring->owner))
            continue;
        if (!other->sleeps || other->wakes_ns < ring->wakes_ns ||
            (other->wakes_ns == ring->wakes_ns && !is_behind))
            return false;
    }
    return true;
}

/* Who has not slept for so long that others stop waiting for it. */
static void give_up_the_awake(const struct sim_ring *ring)
{
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++)
        if (sim.rings[i] != NULL && sim.rings[i] != ring)
            sim.rings[i]->is_absent |= !sim.rings[i]->sleeps;
}

/* Sleeps until something may have changed for this ring. 0, or -EINTR, -ETIME, or what a wait
 * that would never end answers. */
static int sleep_once(struct sim_ring *ring, uint64_t until_ns, bool is_endless, unsigned *waited)
{
    if (sim_next_due(ring) > sim.now_ns)
        sim_world_sweep(); /* it may make something due */
    uint64_t due_ns = sim_next_ns(ring);
    bool is_due = due_ns <= until_ns && due_ns != SIM_NEVER;
    ring->wakes_ns = is_due ? due_ns : is_endless ? SIM_NEVER : until_ns;
    ring->sleeps = true;
    if (!has_turn(ring) && (*waited)++ < sim.patience_ms) {
        int woken = sim_files_look(SLICE_MS);
        return woken < 0 ? woken : 0;
    }
    if (*waited > sim.patience_ms)
        give_up_the_awake(ring);
    *waited = 0;
    if (is_due) {
        sim_advance_to(due_ns);
        (void)sim_files_look(0);
        return 0;
    }
    if (is_endless)
        return sleep_for_real(ring, until_ns);
    if (sim_files_look(0) > 0)
        return 0;
    sim_advance_to(until_ns);
    return -ETIME;
}

static int wait_events(struct sim_ring *ring, unsigned submitted, unsigned min_complete,
                       uint64_t until_ns)
{
    bool is_endless = until_ns - sim.now_ns >= SIM_ENDLESS_NS, has_slept = false;
    unsigned waited = 0;
    int error = 0;
    (void)sim_files_look(0);
    for (;;) {
        sim_run_work(ring, WORK_MAX);
        kring_cq_flush(&ring->k);
        bool is_enough = kring_cq_ready(&ring->k) >= min_complete;
        if (is_enough && !(has_slept && ring->dropped))
            return 0;
        if (ring->dropped)
            return -EBADR; /* also where other cqes have come */
        if (error == 0 && !is_endless && sim.now_ns >= until_ns)
            error = -ETIME; /* others have moved the time on */
        if (error == 0 && waited == 0)
            error = (int[]){0, -EINTR, -EBUSY, 0, 0, 0, 0, 0}[sim_choose(SIM_ENTER, 8)];
        if (error < 0) /* told where there is nothing else */
            return kring_cq_ready(&ring->k) > 0 ? 0 : error;
        has_slept = true;
        error = sleep_once(ring, until_ns, is_endless, &waited);
        bool is_dropped = ring->drops && submitted == 0 && error == 0;
        ring->dropped |= is_dropped;
        ring->drops &= !is_dropped;
    }
}

/* Whether a program asks and asks, and no time goes by: it would never end. From then on the
 * ring does nothing: whoever closes it lets time pass, and would spin on. */
static bool spins(struct sim_ring *ring)
{
    if (ring->enters < ENTERS_MAX && sim.now_ns > ring->moved_ns + STANDSTILL_NS) {
        ring->moved_ns = sim.now_ns;
        ring->enters = 0;
    }
    if (ring->enters < ENTERS_MAX && ++ring->enters == ENTERS_MAX)
        sim_fault("a spin: too many enters within 10 ms");
    return ring->enters == ENTERS_MAX;
}

static int enter_ring(struct sim_ring *ring, unsigned to_submit, unsigned min_complete,
                      unsigned flags, const void *arg, size_t arg_size)
{
    if (!kring_is_acceptable_enter(flags, arg, arg_size))
        sim_fault("an enter that Linux refuses");
    if (!pthread_equal(ring->owner, pthread_self()))
        return -EEXIST;
    switch (sim_choose(SIM_FATAL, 4)) {
    case 1:
        return -ENOMEM;
    case 2:
        ring->dropped = true; /* a wait tells of it, and an enter that takes nothing */
        break;
    case 3:
        ring->drops = true; /* ... of one that comes when a wait has slept, as others do */
        break;
    default:
        break;
    }
    unsigned wanted = to_submit;
    switch (to_submit > 0 ? sim_choose(SIM_SUBMIT, 4) : 0) {
    case 1:
        return -EAGAIN; /* no memory for the first */
    case 2:
        wanted = 1;
        break;
    case 3:
        wanted = (to_submit + 1) / 2;
        break;
    default:
        break;
    }
    uint64_t until_ns =
        flags & IORING_ENTER_GETEVENTS ? kring_end_of_wait(&ring->k, arg, sim.now_ns) : 0;
    unsigned taken = submit(ring, wanted);
    if (taken != to_submit || !(flags & IORING_ENTER_GETEVENTS))
        return (int)taken;
    int ended = wait_events(ring, taken, min_complete, until_ns);
    ring->dropped = ring->dropped && (taken > 0 || ended != -EBADR);
    return taken > 0 ? (int)taken : ended;
}

static int enter(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                 const void *arg, size_t arg_size)
{
    sim_lock();
    struct sim_ring *ring = ring_of(ring_fd);
    int result = -EBADF;
    if (ring != NULL) {
        sim.books.enters++;
        sim_note(SIM_NOTE_ENTERED, ring_fd, sim.now_ns, to_submit, min_complete);
        ring->is_absent = false;
        result = spins(ring) ? -EDEADLK
                             : enter_ring(ring, to_submit, min_complete, flags, arg, arg_size);
        ring->sleeps = false;
        look_at_ring(ring);
        sim_note(SIM_NOTE_LEFT, ring_fd, sim.now_ns, result, 0);
    }
    sim_unlock();
    return result;
}

/* ---- the table ----------------------------------------------------------------------------------- */

static int locked_setup(unsigned entries, struct io_uring_params *params)
{
    sim_lock();
    int result = setup(entries, params);
    sim_unlock();
    return result;
}

static int locked_register(int ring_fd, unsigned opcode, void *arg, unsigned nr_args)
{
    sim_lock();
    int result = register_op(ring_fd, opcode, arg, nr_args);
    sim_unlock();
    return result;
}

static int locked_map(void **address, size_t size, int ring_fd, uint64_t offset)
{
    sim_lock();
    int result = map(address, size, ring_fd, offset);
    sim_unlock();
    return result;
}

static int locked_allocate(void **address, size_t size, int dontfork)
{
    sim_lock();
    int result = allocate(address, size, dontfork);
    sim_unlock();
    return result;
}

static void locked_unmap(void *address, size_t size)
{
    sim_lock();
    unmap(address, size);
    sim_unlock();
}

static int locked_close(int fd)
{
    sim_lock();
    int result = close_fd(fd);
    sim_unlock();
    return result;
}

const struct ut_kernel ut_kernel_sim = {
    .setup = locked_setup,
    .enter = enter,
    .register_op = locked_register,
    .map = locked_map,
    .allocate = locked_allocate,
    .unmap = locked_unmap,
    .close_fd = locked_close,
    .now_ns = now_ns,
    .sendto = sim_sendto,
    .recvfrom = sim_recvfrom,
    .sendmsg = sim_sendmsg,
    .recvmsg = sim_recvmsg,
    .accept4 = sim_accept4,
    .connect = sim_connect,
    .shutdown = sim_shutdown,
    .getsockopt = sim_getsockopt,
    .setsockopt = sim_setsockopt,
    .getsockname = sim_getsockname,
    .getpeername = sim_getpeername,
    .read = sim_read,
    .write = sim_write,
    .poll = sim_poll,
    .status_flags = sim_status_flags,
    .queued = sim_queued,
    .mode = sim_mode,
};

const struct ut_kernel *sim_table(void)
{
    return &ut_kernel_sim;
}

/* ---- a simulation ----------------------------------------------------------------------------------- */

void sim_open(const struct sim_switches *switches, const uint32_t *choices, uint32_t count)
{
    sim_lock();
    if (sim.is_open)
        sim_close();
    memset(&sim, 0, sizeof sim);
    sim.now_ns = START_NS;
    sim.patience_ms = 1000;
    if (switches != NULL)
        sim.switches = *switches;
    sim_trace_open();
    sim_choices_open(choices, count);
    sim_files_open();
    sim.is_open = true;
    sim_unlock();
}

void sim_set_patience(unsigned ms)
{
    sim.patience_ms = ms;
}

void sim_use_network(uint32_t choices)
{
    sim_lock();
    sim.has_network = true;
    net_choices = (struct net_choices){
        .delays = choices & 1, .shorts = choices >> 1 & 1, .order = choices >> 2 & 1,
        .losses = choices >> 3 & 1, .strangers = choices >> 4 & 1, .no_buffers = choices >> 5 & 1};
    sim_unlock();
}

void sim_close(void)
{
    sim_lock();
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++)
        if (sim.rings[i] != NULL && sim.rings[i]->is_open)
            close_ring(sim.rings[i]);
    /* What is mapped may still be looked at: it is given up. */
    memset(mappings, 0, sizeof mappings);
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++)
        sim.rings[i] = NULL;
    sim_files_close();
    sim_choices_close();
    sim.is_open = false;
    sim_unlock();
}

void sim_read_books(struct sim_books *books)
{
    sim_lock();
    *books = sim.books;
    books->now_ns = sim.now_ns;
    books->rings = rings_open();
    books->held = sim_files_held();
    for (unsigned i = 0; i < SIM_RINGS_MAX; i++) {
        struct sim_ring *ring = sim.rings[i];
        if (ring == NULL)
            continue;
        books->overflows += ring->k.overflows;
        if (!ring->is_open)
            continue;
        books->in_flight += ring->count - ring->strays;
        for (unsigned group = 0; group < UT_GROUPS; group++)
            books->buffers_out += kring_buffers_out(&ring->k, group);
    }
    sim_unlock();
}
