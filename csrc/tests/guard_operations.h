/*
 * What operations work on, from prep to their last cqe; see guard_operations.c.
 */
#ifndef UT_TESTS_GUARD_OPERATIONS_H
#define UT_TESTS_GUARD_OPERATIONS_H

#include <stddef.h>

/* Somebody lets go of memory: a fault for each operation that has it. */
void guard_operations_let_go(const void *memory, size_t size, const char *how);

/* In a forked child there are none. */
void guard_operations_forget(void);

#endif
