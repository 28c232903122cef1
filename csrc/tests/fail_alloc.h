/*
 * malloc, calloc, realloc and posix_memalign, which fail on demand.
 *
 * What is tested is linked with --wrap, so that the engine's own calls come here, and those
 * of free. The fake kernel allocates by other means. They may come from several threads.
 */
#ifndef UT_TESTS_FAIL_ALLOC_H
#define UT_TESTS_FAIL_ALLOC_H

#include <stdint.h>

/* From now on the `nth` allocation fails (1: the next one), and no other; 0: none. */
void fail_alloc_at(unsigned nth);

/* From now on every allocation fails. */
void fail_alloc_always(void);

/* True if the allocation that was to fail was asked for. */
int fail_alloc_happened(void);

/* How many were asked for since fail_alloc_at(). */
unsigned fail_alloc_count(void);

/* Since the beginning: blocks that were had, and not given back. */
int64_t fail_alloc_live(void);

#endif
