/*
 * The smallest test runner that does: one process a file, one line a failure.
 *
 * A failed CHECK leaves its test at once. After each test `check_after_each` runs,
 * so that no test can pass with its books unbalanced.
 */
#ifndef UT_TESTS_CHECK_H
#define UT_TESTS_CHECK_H

#include <stdbool.h>
#include <stdint.h>

/* What the shell takes for "not possible here". */
#define CHECK_SKIP_STATUS 77

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition))                                                     \
            check_failed(__FILE__, __LINE__, #condition);                     \
    } while (0)

#define CHECK_EQ(actual, expected)                                            \
    check_equal(__FILE__, __LINE__, #actual, (int64_t)(actual), (int64_t)(expected))

/* A time in ns: as expected, or later by what a few looks at a clock take. */
#define CHECK_TIME(actual, expected)                                          \
    CHECK((actual) >= (uint64_t)(expected) && (actual) - (uint64_t)(expected) < 50000)

/* The statement must end the process by SIGABRT, with `text` on stderr. */
#define CHECK_ABORTS(statement, text)                                         \
    do {                                                                      \
        int check_fd = check_fork();                                          \
        if (check_fd < 0) {                                                   \
            statement;                                                        \
            check_child_lived();                                              \
        }                                                                     \
        check_abort(__FILE__, __LINE__, check_fd, #statement, text);          \
    } while (0)

_Noreturn void check_failed(const char *file, int line, const char *what);
void check_equal(const char *file, int line, const char *what, int64_t actual, int64_t expected);
int check_fork(void); /* -1 in the child; in the parent the child's stderr */
_Noreturn void check_child_lived(void);
void check_abort(const char *file, int line, int fd, const char *what, const char *text);

/* Runs a test; its failures are printed under `name`. */
#define RUN(test) check_run(#test, test)
void check_run(const char *name, void (*test)(void));

/* Runs after each test, before it counts as passed. */
extern void (*check_after_each)(void);

/* Said with each failure of the running test: which of many cases it is. */
void check_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *check_noted(void);

/* Between the two calls memory may leak: on purpose, where the kernel may still
 * write to it. */
void check_leak_begin(void);
void check_leak_end(void);

/* File descriptors that this process has open. */
unsigned check_open_fds(void);

/* Prints the counts; the exit status of the process. */
int check_summary(const char *file);
#define CHECK_SUMMARY() check_summary(__FILE__)

#endif
