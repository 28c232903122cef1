/*
 * An assert that stays on.
 *
 * CPython's own compiler flags contain -DNDEBUG and setuptools passes them on,
 * so assert(3) is silently nothing in an extension. UT_ASSERT is for our own
 * invariants only; it never checks a peer, a user or the kernel's answer.
 */
#ifndef UT_ASSERT_H
#define UT_ASSERT_H

#include <stdio.h>
#include <stdlib.h>

#define UT_ASSERT(condition)                                                  \
    do {                                                                      \
        if (__builtin_expect(!(condition), 0)) {                              \
            fprintf(stderr, "uring_trio: %s:%d: %s: broken invariant: %s\n",  \
                    __FILE__, __LINE__, __func__, #condition);                \
            abort();                                                          \
        }                                                                     \
    } while (0)

#endif
