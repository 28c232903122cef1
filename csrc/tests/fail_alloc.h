/*
 * malloc, calloc, realloc and posix_memalign, which fail on demand.
 *
 * The tests are linked with --wrap, so that the engine's own calls come here.
 * The fake kernel uses none of the four.
 */
#ifndef UT_TESTS_FAIL_ALLOC_H
#define UT_TESTS_FAIL_ALLOC_H

/* From now on the `nth` allocation fails (1: the next one), and no other; 0: none. */
void fail_alloc_at(unsigned nth);

/* From now on every allocation fails. */
void fail_alloc_always(void);

/* True if the allocation that was to fail was asked for. */
int fail_alloc_happened(void);

#endif
