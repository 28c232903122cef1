/*
 * Memory between protected pages, at an address that is never given again.
 *
 * It comes from one range of addresses that is reserved for it. Its end is at a page that
 * cannot be touched, and so is the page before its first. What is retired cannot be touched
 * either, by us or by the kernel, until the process ends.
 */
#ifndef UT_TESTS_GUARD_MEMORY_H
#define UT_TESTS_GUARD_MEMORY_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

/* Zeroed memory that ends within `alignment` of a protected page; never NULL. */
void *guard_take(size_t size, size_t alignment);
void guard_retire(void *memory);

/* Whether it is of guard_take(), and whether it was not retired. */
bool guard_holds(const void *memory);
bool guard_is_open(const void *memory);
size_t guard_size(const void *memory);

/* A line in the file that UT_GUARD_LOG names, or else on stderr. */
void guard_report(const char *format, ...) __attribute__((format(printf, 1, 2)));
void guard_report_list(const char *format, va_list arguments);

/* The guard's own blocks, which are no part of any range. */
void *guard_own(size_t size);
void guard_drop(void *own);

#endif
