/*
 * The engine on the kernel of this machine: what the fake claims, seen for real.
 *
 * Skipped, with the reason, where io_uring is not to be had.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../beside.h"
#include "../probe.h"
#include "engine_tools.h"

static struct ut_engine *engine;
static int pair[2];

static void set_up(unsigned sq_entries, unsigned cq_entries)
{
    struct ut_config config = tools_config;
    config.sq_entries = sq_entries;
    config.cq_entries = cq_entries;
    int error;
    const char *stage;
    engine = ut_engine_open(&ut_kernel_real, &config, &error, &stage);
    CHECK(engine != NULL);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
}

static void tear_down(void)
{
    close(pair[0]);
    close(pair[1]);
    while (tools_wait_through(engine, 5 * MS).answer != 0)
        ; /* cqes of cancels */
    /* The clock of a line outlives its members, by the longest pause (line.c). */
    uint64_t end_ns = ut_kernel_real.now_ns() + 1000 * MS;
    while (engine->ops.live > 0 && ut_kernel_real.now_ns() < end_ns)
        tools_wait_through(engine, 5 * MS);
    struct ut_statistics statistics = tools_statistics(engine);
    CHECK_EQ(statistics.in_flight, 0);
    CHECK_EQ(statistics.leases_out, 0);
    CHECK_EQ(statistics.stale_cqes, 0);
    CHECK_EQ(engine->ops.live, 0);
    CHECK_EQ(ut_engine_close(engine, 0), 0);
}

static void say(const char *text)
{
    CHECK_EQ(write(pair[1], text, strlen(text)), strlen(text));
}

static uint64_t now_ns(void)
{
    return ut_kernel_real.now_ns();
}

static void bytes_go_there_and_back(void)
{
    set_up(8, 32);
    char answer[10];
    int receive = ut_prep_recv(engine, pair[0], 1, 100, 1);
    int send = ut_prep_send(engine, pair[1], "hello", 5, MSG_NOSIGNAL);
    bool received = false, sent = false;
    while (!received || !sent) {
        CHECK(tools_wait_through(engine, 1000 * MS).answer > 0);
        const struct ut_record *record = tools_record(engine, receive);
        if (record != NULL) {
            CHECK_EQ(record->res, 5);
            CHECK(memcmp(engine->pool + record->offset, "hello", 5) == 0);
            received = true;
        }
        sent |= tools_record(engine, send) != NULL;
    }
    int into = ut_prep_recv_into(engine, pair[1], answer, sizeof answer, 0, 1);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(write(pair[0], "back", 4), 4);
    CHECK_EQ(tools_await(engine, into).res, 4);
    CHECK(memcmp(answer, "back", 4) == 0);
    tear_down();
}

static void end_of_file_is_nothing_in_no_buffer(void)
{
    set_up(8, 32);
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 1);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    shutdown(pair[1], SHUT_WR);
    CHECK_EQ(tools_await(engine, slot).res, 0);
    tear_down();
}

/* Whether a file can be told not to wait (FMODE_NOWAIT): what preadv2(2) says. */
static bool can_be_tried(int fd)
{
    char byte;
    struct iovec vector = {.iov_base = &byte, .iov_len = 1};
    CHECK_EQ(preadv2(fd, &vector, 1, -1, RWF_NOWAIT), -1); /* there is nothing to read */
    CHECK(errno == EAGAIN || errno == EOPNOTSUPP);
    return errno == EAGAIN;
}

/* The ends of a pipe, or of a FIFO, as O_NONBLOCK or not. */
static void read_and_write(int ends[2], int flags)
{
    set_up(8, 32);
    CHECK_EQ(fcntl(ends[0], F_SETFL, flags), 0);
    CHECK_EQ(fcntl(ends[1], F_SETFL, flags), 0);
    if (can_be_tried(ends[0])) {
        int reader = ut_prep_read(engine, ends[0], 0, 100, 0);
        CHECK_EQ(tools_wait(engine, 0).answer, 0); /* no -EAGAIN: it waits */
        int writer = ut_prep_write(engine, ends[1], "through", 7, 0);
        struct ut_record record = tools_await(engine, writer);
        CHECK_EQ(record.res, 7);
        const struct ut_record *seen = tools_record(engine, reader);
        record = seen != NULL ? *seen : tools_await(engine, reader);
        CHECK_EQ(record.res, 7);
        CHECK(memcmp(engine->pool + record.offset, "through", 7) == 0);
    } else {
        CHECK_EQ(tools_await(engine, ut_prep_read(engine, ends[0], 0, 100, 0)).res, -EAGAIN);
        CHECK_EQ(tools_await(engine, ut_prep_write(engine, ends[1], "x", 1, 0)).res, -EAGAIN);
        struct pollfd nothing = {.fd = ends[0], .events = POLLIN};
        CHECK_EQ(poll(&nothing, 1, 0), 0);
    }
    close(ends[0]);
    close(ends[1]);
    tear_down();
}

static void pipes_are_read_and_written(void)
{
    for (int flags = 0; flags <= O_NONBLOCK; flags += O_NONBLOCK) {
        int ends[2];
        CHECK_EQ(pipe2(ends, O_NONBLOCK), 0);
        read_and_write(ends, flags);
    }
}

static void fifos_are_not_left_to_the_kernel(void)
{
    for (int flags = 0; flags <= O_NONBLOCK; flags += O_NONBLOCK) {
        char folder[] = "/tmp/test_real.XXXXXX", path[sizeof folder + 5];
        CHECK(mkdtemp(folder) != NULL);
        snprintf(path, sizeof path, "%s/fifo", folder);
        CHECK_EQ(mkfifo(path, 0600), 0);
        int reading = open(path, O_RDONLY | O_NONBLOCK);
        read_and_write((int[]){reading, open(path, O_WRONLY | O_NONBLOCK)}, flags);
        CHECK_EQ(unlink(path), 0);
        CHECK_EQ(rmdir(folder), 0);
    }
}

static void a_message_brings_bytes_and_a_file(void)
{
    set_up(8, 32);
    struct ut_message *out = ut_message_new(1, CMSG_SPACE(sizeof(int)), 0);
    struct ut_message *in = ut_message_new(0, CMSG_SPACE(sizeof(int)), 100);
    ut_message_set_vector(out, 0, "file", 4);
    ut_message_set_name(out, "", 0);
    struct cmsghdr *control = CMSG_FIRSTHDR(&out->header);
    control->cmsg_level = SOL_SOCKET;
    control->cmsg_type = SCM_RIGHTS;
    control->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(control), &pair[1], sizeof(int));
    CHECK_EQ(tools_await(engine, ut_prep_sendmsg(engine, pair[1], out, MSG_NOSIGNAL)).res, 4);
    int slot = ut_prep_recvmsg(engine, pair[0], in, MSG_CMSG_CLOEXEC, 1);
    CHECK_EQ(tools_await(engine, slot).res, 4);
    struct ut_message_result result;
    ut_message_read(in, &result);
    CHECK_EQ(result.control_length, CMSG_SPACE(sizeof(int)));
    CHECK(memcmp(in->data, "file", 4) == 0);
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&in->header)), sizeof fd);
    CHECK_EQ(close(fd), 0);
    ut_message_free(in);
    ut_message_free(out);
    tear_down();
}

static void accept_and_connect_with_names(void)
{
    set_up(8, 32);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, length), 0);
    CHECK_EQ(listen(listener, 5), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    struct ut_message *who = ut_message_new(1, 0, 0), *where = ut_message_new(1, 0, 0);
    CHECK_EQ(ut_message_set_name(where, (char *)&address, length), 0);
    int accepting = ut_prep_accept(engine, listener, who, SOCK_CLOEXEC, 0);
    CHECK_EQ(tools_wait(engine, 0).records, 0); /* before 6.10 a cancel's cqe ends the wait */
    int connecting = ut_prep_connect(engine, client, where);
    int accepted = tools_await(engine, accepting).res;
    CHECK(accepted >= 0);
    if (tools_record(engine, connecting) == NULL && tools_statistics(engine).in_flight > 0)
        CHECK_EQ(tools_await(engine, connecting).res, 0);
    length = sizeof address;
    CHECK_EQ(getsockname(client, (struct sockaddr *)&address, &length), 0);
    CHECK_EQ(who->name_length, length);
    CHECK(memcmp(&who->name, &address, length) == 0);
    close(accepted);
    close(client);
    close(listener);
    ut_message_free(who);
    ut_message_free(where);
    tear_down();
}

static void polls_once_and_many_times(void)
{
    set_up(8, 32);
    int once = ut_prep_poll(engine, pair[0], POLLIN, 0);
    int many = ut_prep_poll(engine, pair[0], POLLIN, 1);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    say("x");
    bool first = false;
    int times = 0;
    while (!first || times < 2) {
        CHECK(tools_wait_through(engine, 1000 * MS).answer > 0);
        first |= tools_record(engine, once) != NULL;
        if (tools_record(engine, many) != NULL) {
            CHECK(tools_record(engine, many)->flags & IORING_CQE_F_MORE);
            times++;
            say("y");
        }
    }
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)many), 1);
    tools_await(engine, many);
    tear_down();
}

static void a_cancel_before_the_submission_is_no_system_call(void)
{
    set_up(8, 32);
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 1);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(tools_statistics(engine).enters, 0);
    tear_down();
}

static void a_cancel_in_flight(void)
{
    set_up(8, 32);
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 1);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
    tear_down();
}

/* Whatever wins: the byte is in the record or still in the socket. An attempt that has
 * found one ends with it, also when the cancel comes before anybody has looked. */
static void a_cancel_that_races_loses_no_byte(void)
{
    set_up(8, 32);
    int delivered = 0, canceled = 0;
    for (int round = 0; round < 300; round++) {
        int slot = ut_prep_recv(engine, pair[0], 0, 100, round & 1);
        if (round % 3 == 0 && round & 8)
            say("z");
        else
            CHECK_EQ(tools_wait(engine, 0).answer, 0);
        if (round % 3 == 0 && !(round & 8))
            say("z");
        if (round & 12)
            CHECK_EQ(ut_engine_flush(engine), 0); /* its cqe is in the CQ unread */
        CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
        if (round % 3 == 1)
            say("z");
        struct ut_record record = tools_await(engine, slot);
        if (record.res == 1) {
            CHECK_EQ(engine->pool[record.offset], 'z');
            delivered++;
        } else {
            char byte;
            CHECK_EQ(record.res, -ECANCELED);
            CHECK_EQ(read(pair[0], &byte, 1), round % 3 == 2 ? -1 : 1);
            canceled++;
        }
    }
    CHECK(delivered > 0 && canceled > 0);
    tear_down();
}

static void a_send_tells_how_much_has_gone_and_one_that_waits_sends_nothing(void)
{
    enum { SIZE = 8 << 20 };
    set_up(8, 32);
    char *data = calloc(1, SIZE);
    int slot = ut_prep_send(engine, pair[1], data, SIZE, MSG_NOSIGNAL | MSG_WAITALL);
    int32_t sent = tools_await(engine, slot).res; /* at once: what there is room for */
    CHECK(sent > 0 && sent < SIZE);
    slot = ut_prep_send(engine, pair[1], data, SIZE, MSG_NOSIGNAL | MSG_WAITALL);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
    close(pair[1]);
    int64_t arrived = 0;
    ssize_t count;
    while ((count = read(pair[0], data, SIZE)) > 0)
        arrived += count;
    CHECK_EQ(arrived, sent);
    pair[1] = -1;
    free(data);
    tear_down();
}

static void no_buffer_loses_no_byte(void)
{
    enum { MANY = 6 };
    set_up(8, 32);
    int pairs[MANY][2], slots[MANY];
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pairs[i]), 0);
        CHECK_EQ(write(pairs[i][1], "data", 4), 4);
        slots[i] = ut_prep_recv(engine, pairs[i][0], 0, 100, 1);
    }
    int received = 0;
    while (received < MANY) {
        CHECK(tools_wait_through(engine, 1000 * MS).answer > 0);
        for (int i = 0; i < MANY; i++) {
            const struct ut_record *record = slots[i] < 0 ? NULL : tools_record(engine, slots[i]);
            if (record == NULL)
                continue;
            CHECK_EQ(record->res, 4); /* none was tried without a buffer */
            CHECK(memcmp(engine->pool + record->offset, "data", 4) == 0);
            slots[i] = -1;
            received++;
        }
    }
    CHECK_EQ(tools_statistics(engine).operations[IORING_OP_RECV], MANY);
    for (int i = 0; i < MANY; i++) {
        close(pairs[i][0]);
        close(pairs[i][1]);
    }
    tear_down();
}

static void more_operations_than_the_rings_hold(void)
{
    enum { MANY = 500 };
    set_up(4, 8);
    say("x");
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(ut_prep_poll(engine, pair[0], POLLIN, 0), i);
    for (int i = 0; i < 10; i++)
        CHECK_EQ(ut_engine_flush(engine), 0); /* nobody drains: the CQ overflows */
    CHECK(*engine->ring.sq_flags & IORING_SQ_CQ_OVERFLOW);
    unsigned ended = 0;
    while (ended < MANY) {
        struct tools_batch batch = tools_wait_through(engine, 1000 * MS);
        CHECK(batch.answer > 0);
        ended += batch.records;
    }
    CHECK_EQ(ended, MANY);
    tear_down();
}

static void sixty_four_ready_operations_are_one_batch(void)
{
    set_up(64, 128);
    for (int i = 0; i < 64; i++)
        ut_prep_poll(engine, pair[0], POLLIN, 0);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    say("x");
    CHECK_EQ(tools_wait_through(engine, 1000 * MS).records, 64);
    tear_down();
}

static void the_time_is_over(void)
{
    set_up(8, 32);
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 1);
    for (int round = 0; round < 2; round++) { /* with a submission, and without */
        uint64_t start = now_ns();
        CHECK_EQ(tools_wait_through(engine, 20 * MS).answer, 0);
        CHECK(now_ns() - start >= 20 * MS);
    }
    ut_engine_cancel(engine, (uint32_t)slot);
    tools_await(engine, slot);
    tear_down();
}

static void on_signal(int number)
{
    (void)number;
}

static void a_signal_ends_the_wait(void)
{
    set_up(8, 32);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    CHECK_EQ(sigaction(SIGALRM, &action, &before), 0);
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 1);
    for (int round = 0; round < 2; round++) { /* hidden behind a submission, and plain */
        struct itimerval in_10_ms = {.it_value.tv_usec = 10000};
        CHECK_EQ(setitimer(ITIMER_REAL, &in_10_ms, NULL), 0);
        CHECK_EQ(tools_wait(engine, 5000 * MS).answer, -EINTR);
    }
    sigaction(SIGALRM, &before, NULL);
    ut_engine_cancel(engine, (uint32_t)slot);
    tools_await(engine, slot);
    tear_down();
}

static void a_flush_lets_go_of_the_file(void)
{
    set_up(8, 32);
    char byte;
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 1);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_engine_cancel(engine, (uint32_t)slot), 1);
    CHECK_EQ(ut_engine_flush(engine), 0);
    close(pair[0]);
    pair[0] = -1;
    CHECK_EQ(read(pair[1], &byte, 1), 0); /* the peer sees the end at once */
    CHECK_EQ(tools_await(engine, slot).res, -ECANCELED);
    tear_down();
}

static void an_eventfd_tells_of_deferred_work(void)
{
    set_up(8, 32);
    int event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK_EQ(ut_engine_register_eventfd(engine, event_fd), 0);
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 1);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    struct pollfd poll_fd = {.fd = event_fd, .events = POLLIN};
    CHECK_EQ(poll(&poll_fd, 1, 0), 0);
    say("x");
    CHECK_EQ(poll(&poll_fd, 1, 1000), 1);
    CHECK_EQ(tools_wait(engine, 0).records, 1);
    CHECK(tools_record(engine, slot) != NULL);
    close(event_fd);
    tear_down();
}

static void *wait_elsewhere(void *answer)
{
    *(int64_t *)answer = ut_engine_wait(engine, MS);
    return NULL;
}

static void another_thread_is_refused_by_the_kernel(void)
{
    set_up(8, 32);
    pthread_t thread;
    int64_t answer = 0;
    CHECK_EQ(pthread_create(&thread, NULL, wait_elsewhere, &answer), 0);
    pthread_join(thread, NULL);
    CHECK_EQ(answer, -EEXIST);
    tear_down();
}

static int refused_in_child(void)
{
    if (ut_prep_poll(engine, 0, POLLIN, 0) != -EOWNERDEAD ||
        ut_engine_wait(engine, -1) != -EOWNERDEAD || ut_engine_flush(engine) != -EOWNERDEAD)
        return 2;
    if (ut_engine_close(engine, 0) != 1) /* touches no mapping: they do not exist here */
        return 3;
    struct ut_probe probe;
    ut_probe_run(&ut_kernel_real, NULL, 1000 * MS, &probe);
    return probe.error == 0 ? 0 : 4;
}

static void a_forked_child_is_refused_and_may_have_its_own(void)
{
    set_up(8, 32);
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 1);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(refused_in_child());
    int status = 1;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    say("still");
    CHECK_EQ(tools_await(engine, slot).res, 5);
    tear_down();
}

static void closing_with_operations_in_flight_leaks(void)
{
    check_leak_begin();
    set_up(8, 32);
    ut_prep_recv(engine, pair[0], 0, 100, 1);
    CHECK_EQ(tools_wait(engine, 0).answer, 0);
    CHECK_EQ(ut_engine_close(engine, 0), 1);
    check_leak_end();
    close(pair[0]);
    close(pair[1]);
}

/* ---- what the kernel's own poll would give to a thread ---------------------- */

/* Kernel threads (io-wq) of this process. */
static unsigned workers(void)
{
    unsigned count = 0;
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *entry;
    while ((entry = readdir(tasks)) != NULL) {
        char path[300], name[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        FILE *file = fopen(path, "r");
        if (file == NULL)
            continue;
        if (fgets(name, sizeof name, file) != NULL && strncmp(name, "iou-wrk", 7) == 0)
            count++;
        fclose(file);
    }
    closedir(tasks);
    return count;
}

/* Waits for so long; nothing may come, few enters may be made, and no thread. */
static void nothing_comes_for(int64_t ns, unsigned enters_max)
{
    uint64_t end_ns = now_ns() + (uint64_t)ns, enters = engine->enters;
    int64_t left;
    while ((left = (int64_t)(end_ns - now_ns())) > 0)
        CHECK_EQ(tools_wait(engine, left).records, 0);
    CHECK(engine->enters - enters <= enters_max);
    CHECK_EQ(workers(), 0);
}

/* A TCP connection instead of the pair; its listener. */
static int connect_tcp(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    close(pair[0]);
    close(pair[1]);
    pair[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, length), 0);
    CHECK_EQ(listen(listener, 5), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    CHECK_EQ(connect(pair[1], (struct sockaddr *)&address, length), 0);
    pair[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    CHECK(pair[0] >= 0);
    return listener;
}

static void a_peer_that_half_closes_and_reads_late(void)
{
    enum { SIZE = 1 << 20 };
    static char data[SIZE];
    set_up(8, 32);
    close(connect_tcp());
    CHECK_EQ(shutdown(pair[1], SHUT_WR), 0); /* POLLRDHUP stays set */
    while (ut_try_send(pair[0], data, SIZE) > 0)
        ;
    int slot = ut_prep_send(engine, pair[0], data, SIZE, MSG_NOSIGNAL);
    nothing_comes_for(300 * MS, 30);
    while (recv(pair[1], data, SIZE, MSG_DONTWAIT) > 0)
        ;
    CHECK(tools_await(engine, slot).res > 0);
    CHECK_EQ(workers(), 0);
    tear_down();
}

static void urgent_bytes(void)
{
    set_up(8, 32);
    close(connect_tcp());
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 0);
    for (unsigned i = 0; i < 300; i++) {
        char urgent; /* one that nobody takes would become data with the next */
        struct pollfd waiting = {.fd = pair[0], .events = POLLPRI};
        CHECK_EQ(send(pair[1], "!", 1, MSG_OOB), 1);
        CHECK_EQ(poll(&waiting, 1, 1000), 1);
        CHECK_EQ(recv(pair[0], &urgent, 1, MSG_OOB), 1);
        CHECK_EQ(tools_wait(engine, MS).records, 0);
    }
    nothing_comes_for(50 * MS, 20);
    CHECK_EQ(write(pair[1], "x", 1), 1);
    struct ut_record record = tools_await(engine, slot);
    CHECK_EQ(record.res, 1);
    CHECK_EQ(engine->pool[record.offset], 'x');
    CHECK_EQ(workers(), 0);
    tear_down();
}

static void an_error_queue_that_nobody_reads(void)
{
    set_up(8, 32);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001)};
    socklen_t length = sizeof address;
    int sink = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(sink, (struct sockaddr *)&address, length), 0);
    CHECK_EQ(getsockname(sink, (struct sockaddr *)&address, &length), 0);
    close(pair[0]);
    pair[0] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK_EQ(connect(pair[0], (struct sockaddr *)&address, length), 0);
    /* What is queued counts as received, and must leave room: 300 of 1 KiB at most. */
    int stamps = SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE, room = 212992;
    CHECK_EQ(setsockopt(pair[0], SOL_SOCKET, SO_RCVBUF, &room, sizeof room), 0);
    CHECK_EQ(setsockopt(pair[0], SOL_SOCKET, SO_TIMESTAMPING, &stamps, sizeof stamps), 0);
    int slot = ut_prep_recv(engine, pair[0], 0, 100, 0);
    for (unsigned i = 0; i < 300; i++) {
        CHECK_EQ(send(pair[0], "ping", 4, 0), 4); /* one more in the error queue */
        CHECK_EQ(tools_wait(engine, MS / 2).records, 0);
    }
    nothing_comes_for(50 * MS, 20);
    CHECK_EQ(getsockname(pair[0], (struct sockaddr *)&address, &length), 0);
    CHECK_EQ(sendto(sink, "pong", 4, 0, (struct sockaddr *)&address, length), 4);
    CHECK_EQ(tools_await(engine, slot).res, 4);
    CHECK_EQ(workers(), 0);
    close(sink);
    tear_down();
}

static void a_full_datagram_socket_that_is_not_connected_to(void)
{
    set_up(8, 32);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof address;
    int reader = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int writer = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK_EQ(bind(reader, (struct sockaddr *)&address, sizeof(sa_family_t)), 0); /* any name */
    CHECK_EQ(getsockname(reader, (struct sockaddr *)&address, &length), 0);
    while (sendto(writer, "fill", 4, 0, (struct sockaddr *)&address, length) == 4)
        ;
    CHECK_EQ(errno, EAGAIN);
    struct ut_message *message = ut_message_new(1, 0, 0);
    ut_message_set_vector(message, 0, "whole", 5);
    CHECK_EQ(ut_message_set_name(message, (char *)&address, length), 0);
    int slot = ut_prep_sendmsg(engine, writer, message, MSG_NOSIGNAL);
    nothing_comes_for(300 * MS, 200); /* an attempt every 32 ms, and what goes with it */
    char answer[10];
    ssize_t count, last = 0;
    while ((count = recv(reader, answer, sizeof answer, 0)) > 0)
        CHECK_EQ(count, 4);
    CHECK_EQ(tools_await(engine, slot).res, 5);
    while ((count = recv(reader, answer, sizeof answer, 0)) > 0)
        last = count;
    CHECK_EQ(last, 5); /* as it was sent, not empty */
    CHECK(memcmp(answer, "whole", 5) == 0);
    CHECK_EQ(workers(), 0);
    ut_message_free(message);
    close(reader);
    close(writer);
    tear_down();
}

static void an_accept_beside_somebody_who_is_faster(void)
{
    set_up(8, 32);
    int listener = connect_tcp();
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    int slot = ut_prep_accept_fd(engine, listener, SOCK_CLOEXEC);
    CHECK_EQ(tools_wait(engine, MS).records, 0);
    for (unsigned i = 0; i < 200; i++) {
        int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK_EQ(connect(client, (struct sockaddr *)&address, length), 0);
        int taken = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        CHECK(taken >= 0);
        CHECK_EQ(tools_wait(engine, MS).records, 0);
        struct linger now = {.l_onoff = 1};
        setsockopt(client, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(client);
        close(taken);
    }
    nothing_comes_for(50 * MS, 20);
    /* Its wait is not exclusive: another poller of the listener is told as well. */
    struct pollfd other = {.fd = listener, .events = POLLIN};
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(client, (struct sockaddr *)&address, length), 0);
    CHECK_EQ(poll(&other, 1, 1000), 1);
    int accepted = tools_await(engine, slot).res;
    CHECK(accepted >= 0);
    CHECK_EQ(workers(), 0);
    close(accepted);
    close(client);
    close(listener);
    tear_down();
}

int main(void)
{
    struct ut_probe probe;
    ut_probe_run(&ut_kernel_real, NULL, 1000 * MS, &probe);
    if (probe.error != 0) {
        printf("test_real.c: skipped: %s: %s\n", probe.stage, strerror(-probe.error));
        return CHECK_SKIP_STATUS;
    }
    RUN(bytes_go_there_and_back);
    RUN(end_of_file_is_nothing_in_no_buffer);
    RUN(pipes_are_read_and_written);
    RUN(fifos_are_not_left_to_the_kernel);
    RUN(a_message_brings_bytes_and_a_file);
    RUN(accept_and_connect_with_names);
    RUN(polls_once_and_many_times);
    RUN(a_cancel_before_the_submission_is_no_system_call);
    RUN(a_cancel_in_flight);
    RUN(a_cancel_that_races_loses_no_byte);
    RUN(a_send_tells_how_much_has_gone_and_one_that_waits_sends_nothing);
    RUN(no_buffer_loses_no_byte);
    RUN(more_operations_than_the_rings_hold);
    RUN(sixty_four_ready_operations_are_one_batch);
    RUN(the_time_is_over);
    RUN(a_signal_ends_the_wait);
    RUN(a_flush_lets_go_of_the_file);
    RUN(an_eventfd_tells_of_deferred_work);
    RUN(another_thread_is_refused_by_the_kernel);
    RUN(a_forked_child_is_refused_and_may_have_its_own);
    RUN(a_peer_that_half_closes_and_reads_late);
    RUN(urgent_bytes);
    RUN(an_error_queue_that_nobody_reads);
    RUN(a_full_datagram_socket_that_is_not_connected_to);
    RUN(an_accept_beside_somebody_who_is_faster);
    RUN(closing_with_operations_in_flight_leaks);
    return CHECK_SUMMARY();
}
