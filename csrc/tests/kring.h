/*
 * A ring as its kernel sees it: what scripted kernels have in common.
 *
 * The SQ and CQ lie in memory as Linux lays them out, provided buffers are taken as Linux
 * takes them, and what Linux refuses is refused. What becomes of an sqe, and when, is the
 * business of the kernel that has this ring (fake_kernel.c, sim.c).
 *
 * What must never happen is a fault, told to its kernel: two entries for one buffer, an SQ
 * whose array is not the identity, an sqe that Linux would not take.
 */
#ifndef UT_TESTS_KRING_H
#define UT_TESTS_KRING_H

#include <stdbool.h>

#include "../engine.h"

#define KRING_PAGE 4096u
#define KRING_OVERFLOW_MAX 65536 /* cqes beside the CQ; more is a leak of ours */

struct kring_group {
    struct io_uring_buf *ring;
    unsigned entries;
    uint16_t head, tail; /* the kernel's; tail as far as it has looked */
    bool known[32768];   /* has been in the ring */
    bool out[32768];     /* taken by the kernel, not yet put back */
};

struct kring {
    bool open;
    unsigned sq_entries, cq_entries, setup_flags;
    struct io_uring_params params;
    char *rings;
    size_t rings_size;
    struct io_uring_sqe *sqes;
    size_t sqes_size;
    int event_fd; /* registered; -1: none */
    struct io_uring_cqe *overflow;
    unsigned overflow_first, overflow_count, overflow_capacity;
    unsigned overflows; /* cqes that have ever not fitted */
    struct kring_group *groups[UT_GROUPS];
    void (*fault)(const char *what);
};

/* Pages that are zero, and not from the allocators that tests fail. */
void *kring_pages(size_t size);

/* Sizes and memory, by what `params` asks for; its answer goes there too. */
void kring_open(struct kring *ring, unsigned entries, struct io_uring_params *params,
                void (*fault)(const char *what));

/* The memory that io_uring's mmap would map, or NULL; `size` may be less than it has. */
void *kring_part(struct kring *ring, size_t size, uint64_t offset);

/* Gives its shared memory back, as when it was closed and unmapped; or all of it. */
void kring_free_memory(struct kring *ring);
void kring_free(struct kring *ring);

void kring_set_sq_flags(struct kring *ring, unsigned flags);

/* io_uring_register(); `opcodes_missing`: bit n is set where opcode n is not there. */
int kring_register(struct kring *ring, unsigned opcode, void *arg, unsigned nr_args,
                   uint32_t opcodes_missing);

/* ---- the SQ ---------------------------------------------------------------- */

/* Takes the next sqe. False if there is none. */
bool kring_next_sqe(struct kring *ring, struct io_uring_sqe *sqe);

/* Linux's prep functions, for what we use: whether they would take it. */
bool kring_is_acceptable(const struct io_uring_sqe *sqe);
bool kring_is_multishot(const struct io_uring_sqe *sqe);

/* What every poll tells of (IO_POLL_UNMASK), asked or not. */
#define KRING_UNMASKED (POLLERR | POLLHUP | POLLNVAL | POLLRDHUP)

/* One of the attempts that say that they will not wait, or could. */
bool kring_is_attempt(const struct io_uring_sqe *sqe);

/* It does nothing but wait: a poll, or a timeout. */
bool kring_is_wait(const struct io_uring_sqe *sqe);

/* It waits until there is something to read, where it waits (Linux's table of opcodes: pollin). */
bool kring_takes_input(const struct io_uring_sqe *sqe);

/* Its addr and len are those of bytes, and not of a message's header or of a name. */
bool kring_has_bytes(const struct io_uring_sqe *sqe);

/* The time that a timespec means, in ns; one that Linux refuses is a fault. */
uint64_t kring_timespec(struct kring *ring, uint64_t address);

/* Whether Linux takes an enter, as far as we use it. */
bool kring_is_acceptable_enter(unsigned flags, const void *arg, size_t arg_size);

#define KRING_NEVER UINT64_MAX
/* When a wait ends that begins now, if nothing comes: what an enter asks for. */
uint64_t kring_end_of_wait(struct kring *ring, const struct io_uring_getevents_arg *arg,
                           uint64_t now_ns);

/* ---- the CQ ---------------------------------------------------------------- */

unsigned kring_cq_ready(const struct kring *ring);
bool kring_cq_has_overflow(const struct kring *ring);
bool kring_cq_has_room(const struct kring *ring);
void kring_cq_flush(struct kring *ring); /* what overflowed goes in, as far as there is room */
void kring_cq_post(struct kring *ring, uint64_t user_data, int32_t res, uint32_t flags);

/* ---- provided buffers ------------------------------------------------------- */

/* The next buffer of a group, which stays there, or is taken; NULL: there is none. */
const struct io_uring_buf *kring_peek_buffer(struct kring *ring, unsigned group);
const struct io_uring_buf *kring_take_buffer(struct kring *ring, unsigned group);

/* Buffers that lie in the ring of a group, and those that are out. */
unsigned kring_buffers_home(struct kring *ring, unsigned group);
unsigned kring_buffers_out(struct kring *ring, unsigned group);

#endif
