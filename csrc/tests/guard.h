/*
 * A kernel before the kernel, which gives memory to it that is nobody else's; see guard.c.
 */
#ifndef UT_TESTS_GUARD_H
#define UT_TESTS_GUARD_H

#include <stdbool.h>
#include <stddef.h>

/* How many requests had memory so far, how many provided buffers were filled, and how many
 * faults were found. */
struct guard_counts {
    unsigned requests, buffers, faults;
};
void guard_count(struct guard_counts *out);

/* A user's memory is pinned from here on: it may change while the kernel reads it, and is
 * not to be let go of before the kernel has. */
void guard_pin(const void *memory, size_t size);
void guard_unpin(const void *memory);

/* Has it stand before this kernel from here on, NULL: before the machine's. The table that calls
 * go through then. */
struct ut_kernel;
const struct ut_kernel *guard_over(const struct ut_kernel *kernel);

/* For the guard's own files. All that is below is called with the lock. */
void guard_lock(void);
void guard_unlock(void);
bool guard_is_pinned(const void *memory, size_t size);
void guard_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
