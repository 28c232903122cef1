#define _GNU_SOURCE
#include "check.h"

#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

void (*check_after_each)(void);

static jmp_buf out_of_test;
static const char *test_name;
static char note[100];
static unsigned passed, failed, fds_before;
static pid_t child;

void check_failed(const char *file, int line, const char *what)
{
    printf("FAILED %s%s: %s:%d: %s\n", test_name, note, file, line, what);
    longjmp(out_of_test, 1);
}

void check_note(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    strcpy(note, ", ");
    vsnprintf(note + 2, sizeof note - 2, format, arguments);
    va_end(arguments);
}

const char *check_noted(void)
{
    return note;
}

void check_equal(const char *file, int line, const char *what, int64_t actual, int64_t expected)
{
    if (actual == expected)
        return;
    char text[300];
    snprintf(text, sizeof text, "%s is %lld, not %lld", what, (long long)actual,
             (long long)expected);
    check_failed(file, line, text);
}

void check_run(const char *name, void (*test)(void))
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* what a killed program said is not lost */
    test_name = name;
    note[0] = '\0';
    fds_before = check_open_fds();
    if (setjmp(out_of_test) != 0) {
        failed++;
        return;
    }
    test();
    if (check_after_each != NULL)
        check_after_each();
    CHECK_EQ(check_open_fds(), fds_before);
    passed++;
}

int check_summary(const char *file)
{
    const char *name = strrchr(file, '/');
    printf("%s: %u passed, %u failed\n", name != NULL ? name + 1 : file, passed, failed);
    return failed > 0 || passed == 0;
}

unsigned check_open_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL)
        return 0;
    unsigned count = 0;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

void check_leak_begin(void)
{
#ifdef __SANITIZE_ADDRESS__
    __lsan_disable();
#endif
}

void check_leak_end(void)
{
#ifdef __SANITIZE_ADDRESS__
    __lsan_enable();
#endif
}

int check_fork(void)
{
    int ends[2];
    fflush(NULL);
    if (pipe(ends) < 0)
        check_failed(__FILE__, __LINE__, "pipe");
    child = fork();
    if (child < 0)
        check_failed(__FILE__, __LINE__, "fork");
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        return -1;
    }
    close(ends[1]);
    return ends[0];
}

void check_child_lived(void)
{
    _exit(0);
}

void check_abort(const char *file, int line, int fd, const char *what, const char *text)
{
    char said[2000] = "";
    size_t length = 0;
    ssize_t count;
    while (length < sizeof said - 1 &&
           (count = read(fd, said + length, sizeof said - 1 - length)) > 0)
        length += (size_t)count;
    close(fd);
    int status = 0;
    waitpid(child, &status, 0);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || strstr(said, text) == NULL) {
        printf("status %#x, said: %s\n", status, said);
        check_failed(file, line, what);
    }
}
