/*
 * A kernel's table in front of another one, of which some calls fail.
 *
 * Calls are told by their place in struct ut_kernel. All that run in the process are
 * counted, of whatever thread. A failing call is not made, but for close_fd: Linux has
 * closed a descriptor whatever its answer is.
 */
#ifndef UT_TESTS_FAIL_CALLS_H
#define UT_TESTS_FAIL_CALLS_H

#include <stdint.h>

#include "kernel.h"

/* The table, in front of `real`; there is one in a process. */
const struct ut_kernel *fail_calls_over(const struct ut_kernel *real);

/* From now on the counts begin anew, and of the calls at `place` the `nth` and those after it,
 * `times` in all, answer -`error` (1: the next one). 0 times: none fails. */
void fail_calls_at(unsigned place, unsigned nth, unsigned times, int error);

/* The same for some more, without a count that begins anew: FAIL_CALLS_MAX in all. */
#define FAIL_CALLS_MAX 4
void fail_calls_also(unsigned place, unsigned nth, unsigned times, int error);

/* Since then: how often that call was made, and how many of all failed. */
unsigned fail_calls_made(unsigned place);
unsigned fail_calls_failed(void);

/* Since the beginning: bytes that were mapped or allocated, and are not unmapped. */
int64_t fail_calls_mapped(void);

#endif
