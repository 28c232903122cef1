/*
 * What more than one thread touches: how a thread that sleeps for a ring is woken, and engines
 * of several threads beside each other. Built with ThreadSanitizer, too.
 *
 * A host owns the ring, and prepares for a sleep; a helper sleeps on the eventfd in its place,
 * and hands back to it (see _guest.py). Others make work for the ring meanwhile, or wake the
 * helper by hand. What a thread owns the others touch only after it was handed over.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../beside.h"
#include "../probe.h"
#include "engine_tools.h"

/* As CHECK, in any thread: there is no way back to the test from the others. */
#define MUST(condition)                                                                  \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);              \
            abort();                                                                     \
        }                                                                                \
    } while (0)

#define SLEEP_MS 5000 /* a signal that was put off comes after 32 ms at most */
#define BYTES 3000
#define ENGINES 4
#define ROUNDS 20

/* ---- a baton: whose turn it is ---------------------------------------------------- */

enum turn { OF_HOST, OF_HELPER, OF_NOBODY };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum turn turn;
} baton = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void hand_to(enum turn turn)
{
    pthread_mutex_lock(&baton.lock);
    baton.turn = turn;
    pthread_cond_broadcast(&baton.changed);
    pthread_mutex_unlock(&baton.lock);
}

/* False: there will be no more turns. */
static bool await_turn(enum turn turn)
{
    pthread_mutex_lock(&baton.lock);
    while (baton.turn != turn && baton.turn != OF_NOBODY)
        pthread_cond_wait(&baton.changed, &baton.lock);
    bool mine = baton.turn == turn;
    pthread_mutex_unlock(&baton.lock);
    return mine;
}

/* ---- a host and its helper ----------------------------------------------------------- */

static int event_fd;
static unsigned slept, slept_in_vain; /* the helper's, handed over with the baton */

static void *help(void *unused)
{
    (void)unused;
    while (await_turn(OF_HELPER)) {
        slept++;
        slept_in_vain += ut_poll(event_fd, POLLIN, SLEEP_MS) <= 0;
        hand_to(OF_HOST);
    }
    return NULL;
}

/* Sends a byte at a time: some while the host is awake, and some while it sleeps. */
static void *send_bytes(void *fd)
{
    for (int i = 0; i < BYTES; i++) {
        while (ut_try_send(*(int *)fd, "x", 1) != 1)
            usleep(100);
        if (i % 7 == 0)
            usleep((unsigned)i % 5 * 20);
    }
    return NULL;
}

/* As force_wakeup does. */
static void *wake_by_hand(void *unused)
{
    static const uint64_t one = 1;
    (void)unused;
    for (int i = 0; i < 200; i++) {
        MUST(ut_write(event_fd, (void *)&one, sizeof one) == sizeof one);
        usleep(300);
    }
    return NULL;
}

static bool prepare(struct ut_engine *engine)
{
    uint64_t count;
    if (ut_read(event_fd, &count, sizeof count) == sizeof count)
        MUST(ut_engine_register_eventfd(engine, event_fd) == 0);
    int found = ut_engine_look(engine);
    MUST(found >= 0);
    return found == UT_LOOK_NOTHING;
}

static void a_helper_that_sleeps_is_told_of_all(void)
{
    int pair[2];
    char memory[16];
    pthread_t helper, sender, waker;
    const char *stage;
    int error;
    struct ut_config config = tools_config;
    struct ut_engine *engine = ut_engine_open(&ut_kernel_real, &config, &error, &stage);
    MUST(engine != NULL);
    event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    MUST(ut_engine_register_eventfd(engine, event_fd) == 0);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    MUST(pthread_create(&helper, NULL, help, NULL) == 0);
    MUST(pthread_create(&sender, NULL, send_bytes, &pair[1]) == 0);
    MUST(pthread_create(&waker, NULL, wake_by_hand, NULL) == 0);

    int received = 0;
    int slot = ut_prep_recv_into(engine, pair[0], memory, sizeof memory, 0, 0);
    while (received < BYTES) {
        int64_t answer = ut_engine_wait(engine, 0);
        MUST(answer >= 0 || answer == -EINTR);
        const struct ut_record *record = answer > 0 ? tools_record(engine, slot) : NULL;
        if (record != NULL) {
            MUST(record->res > 0);
            received += record->res;
            slot = ut_prep_recv_into(engine, pair[0], memory, sizeof memory, 0, 0);
        } else if (prepare(engine)) {
            hand_to(OF_HELPER);
            MUST(await_turn(OF_HOST));
            MUST(slept_in_vain == 0);
        }
    }
    MUST(slept > 0);
    hand_to(OF_NOBODY);
    pthread_join(helper, NULL);
    pthread_join(sender, NULL);
    pthread_join(waker, NULL);
    ut_engine_cancel(engine, (uint32_t)slot);
    while (tools_statistics(engine).in_flight > 0)
        ut_engine_wait(engine, 10 * MS);
    MUST(ut_engine_close(engine, 0) == 0);
    close(pair[0]);
    close(pair[1]);
    close(event_fd);
}

/* ---- engines of several threads ---------------------------------------------------------- */

static void *use_an_engine(void *unused)
{
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        int pair[2], error;
        char memory[16];
        const char *stage;
        struct ut_probe probe;
        struct ut_config config = tools_config;
        ut_probe_run(&ut_kernel_real, &config, 1000 * MS, &probe);
        MUST(probe.error == 0);
        struct ut_engine *engine = ut_engine_open(ut_kernel_in_use, &config, &error, &stage);
        MUST(engine != NULL);
        MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        int slot = ut_prep_recv_into(engine, pair[0], memory, sizeof memory, 0, 0);
        ut_prep_send(engine, pair[1], "data", 4, 0);
        int32_t res = -EAGAIN;
        while (res == -EAGAIN && ut_engine_wait(engine, 1000 * MS) != 0) {
            const struct ut_record *record = tools_record(engine, slot);
            res = record != NULL ? record->res : -EAGAIN;
        }
        MUST(res == 4);
        while (tools_statistics(engine).in_flight > 0)
            ut_engine_wait(engine, 10 * MS);
        MUST(ut_engine_close(engine, 0) == 0);
        close(pair[0]);
        close(pair[1]);
    }
    return NULL;
}

static void engines_of_several_threads_share_nothing(void)
{
    pthread_t threads[ENGINES];
    for (int i = 0; i < ENGINES; i++)
        MUST(pthread_create(&threads[i], NULL, use_an_engine, NULL) == 0);
    for (int i = 0; i < ENGINES; i++)
        pthread_join(threads[i], NULL);
}

int main(void)
{
    struct ut_probe probe;
    ut_probe_run(&ut_kernel_real, NULL, 1000 * MS, &probe);
    if (probe.error != 0) {
        printf("test_threads.c: skipped: %s: %s\n", probe.stage, strerror(-probe.error));
        return CHECK_SKIP_STATUS;
    }
    RUN(a_helper_that_sleeps_is_told_of_all);
    RUN(engines_of_several_threads_share_nothing);
    return CHECK_SUMMARY();
}
