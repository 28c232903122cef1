#define _GNU_SOURCE
#include "sim_scripts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "check.h"

const struct ut_kernel *kernel;
bool is_real;
bool has_network;
struct ut_ring ring;
struct ut_bufring buffers;
int pair[2];
char told[TOLD_SIZE];

static void *pool;
static size_t told_length;

/* ---- one of the two kernels -------------------------------------------------------- */

unsigned linux_release(void)
{
    struct utsname found;
    unsigned major = 0, minor = 0, patch = 0;
    uname(&found);
    sscanf(found.release, "%u.%u.%u", &major, &minor, &patch);
    return VERSION(major, minor, patch);
}

bool can_be_shown(void)
{
    static int error = 1;
    struct ut_ring probe;
    if (error <= 0)
        return error == 0;
    error = ut_ring_open(&probe, &ut_kernel_real, SQ, CQ, SQ);
    if (error == 0)
        ut_ring_close(&probe);
    else
        printf("no claim is shown: no io_uring here: %s\n", strerror(-error));
    return error == 0;
}

void make_pair(int type)
{
    type |= SOCK_CLOEXEC | SOCK_NONBLOCK;
    CHECK_EQ(has_network ? sim_pair(AF_UNIX, type, pair) : socketpair(AF_UNIX, type, 0, pair), 0);
}

void open_all(const struct ut_kernel *table)
{
    kernel = table;
    is_real = table == &ut_kernel_real;
    told_length = 0;
    told[0] = '\0';
    CHECK_EQ(ut_ring_open(&ring, kernel, SQ, CQ, SQ), 0);
    CHECK_EQ(kernel->allocate(&pool, BUFFERS * BUFFER_SIZE, 0), 0);
    CHECK_EQ(ut_bufring_open(&buffers, &ring, 0, BUFFERS, BUFFER_SIZE, pool, 0), 0);
    make_pair(SOCK_STREAM);
}

void close_all(void)
{
    close(pair[0]);
    close(pair[1]);
    ut_ring_close(&ring);
    ut_bufring_close(&buffers, kernel);
    kernel->unmap(pool, BUFFERS * BUFFER_SIZE);
}

void check_told(const char *expected)
{
    if (strcmp(told, expected) != 0)
        printf("%s said:%s\n", is_real ? "Linux" : has_network ? "the network" : "the simulator",
               told);
    CHECK(strcmp(told, expected) == 0);
}

/* ---- what is done and said ---------------------------------------------------------- */

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    told_length += (size_t)vsnprintf(told + told_length, sizeof told - told_length, format,
                                     arguments);
    va_end(arguments);
    CHECK(told_length < sizeof told);
}

const char *name_of(int res)
{
    return res < 0 ? strerrorname_np(-res) : "";
}

struct io_uring_sqe *request(uint8_t opcode, int fd, uint64_t token)
{
    struct io_uring_sqe *sqe = ut_ring_get_sqe(&ring);
    CHECK(sqe != NULL);
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->user_data = token;
    return sqe;
}

void cancel(uint64_t token)
{
    request(IORING_OP_ASYNC_CANCEL, -1, CANCELS + token)->addr = token;
}

int enter(unsigned to_submit, unsigned wait, unsigned flags, int64_t timeout_ns)
{
    struct ut_timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    struct io_uring_getevents_arg arg = {0};
    if (timeout_ns >= 0)
        arg.ts = (uint64_t)(uintptr_t)&ts;
    __atomic_store_n(ring.sq_tail, ring.sqe_tail, __ATOMIC_RELEASE);
    return kernel->enter(ring.fd, to_submit, wait, flags | IORING_ENTER_EXT_ARG, &arg, sizeof arg);
}

/* Submits what was prepared; nothing is run. */
void submit(void)
{
    unsigned count = ut_ring_unsubmitted(&ring);
    CHECK_EQ(enter(count, 0, 0, -1), count);
}

/* Runs deferred work. */
void run(void)
{
    CHECK_EQ(enter(0, 0, IORING_ENTER_GETEVENTS, -1), 0);
}

/* Says all cqes. */
void say_cqes(void)
{
    unsigned count = ut_ring_cq_ready(&ring);
    for (unsigned i = 0; i < count; i++) {
        const struct io_uring_cqe *cqe = ut_ring_cqe(&ring, i);
        if (cqe->user_data >= CANCELS)
            say(" c%llu=", (unsigned long long)cqe->user_data - CANCELS);
        else
            say(" %llu=", (unsigned long long)cqe->user_data);
        if (cqe->res < 0)
            say("%s", name_of(cqe->res));
        else
            say("%d", cqe->res);
        say("%s%s%s", cqe->flags & IORING_CQE_F_BUFFER ? "b" : "",
            cqe->flags & IORING_CQE_F_SOCK_NONEMPTY ? "n" : "",
            cqe->flags & IORING_CQE_F_MORE ? "+" : "");
    }
    ut_ring_cq_advance(&ring, count);
    say(" |");
}

void submit_and_say(void)
{
    submit();
    say_cqes();
}

void run_and_say(void)
{
    run();
    say_cqes();
}

/* Waits for one cqe at least, however long the kernel takes, and says all. */
void wait_and_say(void)
{
    int result = enter(0, 1, IORING_ENTER_GETEVENTS, SOON_MS * MS);
    CHECK(result == 0 || result == -EINTR);
    say_cqes();
}

void let_time_pass(void)
{
    if (is_real)
        usleep(1000);
    else
        sim_sleep(MS);
}

/* What is in a file of a task's, in /proc. */
static void read_task(const char *task, const char *file, char *text, size_t size)
{
    char path[300];
    snprintf(path, sizeof path, "/proc/self/task/%s/%s", task, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
    text[length > 0 ? length : 0] = '\0';
    if (fd >= 0)
        close(fd);
}

/* Whether a thread of the kernel's for this process sleeps, and not for want of work. */
static bool has_sleeping_worker(void)
{
    bool found = false;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    for (struct dirent *task; !found && (task = readdir(tasks)) != NULL;) {
        char stat[100], where[100], state;
        read_task(task->d_name, "stat", stat, sizeof stat);
        read_task(task->d_name, "wchan", where, sizeof where);
        found = sscanf(stat, "%*d (iou-wrk-%*d) %c", &state) == 1 && state == 'S' &&
                strcmp(where, "0") != 0 && strcmp(where, "io_wq_worker") != 0;
    }
    closedir(tasks);
    return found;
}

void await_worker(void)
{
    for (unsigned ms = 0; is_real && !has_sleeping_worker(); ms++) {
        CHECK(ms < SOON_MS);
        usleep(1000);
    }
}

/* ---- requests ------------------------------------------------------------------------ */

void receive(uint64_t token, int flags, unsigned how)
{
    struct io_uring_sqe *sqe = request(IORING_OP_RECV, pair[0], token);
    static char memory[65536];
    sqe->addr = (uint64_t)(uintptr_t)memory;
    sqe->len = sizeof memory;
    sqe->op_flags = (uint32_t)flags;
    sqe->ioprio = (uint16_t)how;
}

void receive_into_buffers(uint64_t token, int flags, unsigned how)
{
    struct io_uring_sqe *sqe = request(IORING_OP_RECV, pair[0], token);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->op_flags = (uint32_t)flags;
    sqe->ioprio = (uint16_t)how;
}

void send_to_peer(uint64_t token, unsigned size, int flags)
{
    static const char data[1 << 20];
    struct io_uring_sqe *sqe = request(IORING_OP_SEND, pair[0], token);
    sqe->addr = (uint64_t)(uintptr_t)data;
    sqe->len = size;
    sqe->op_flags = (uint32_t)flags;
}

void ask(uint64_t token, int fd, uint32_t events, bool multishot)
{
    struct io_uring_sqe *sqe = request(IORING_OP_POLL_ADD, fd, token);
    sqe->op_flags = events;
    sqe->len = multishot ? IORING_POLL_ADD_MULTI : 0;
}

void timeout(uint64_t token, const struct ut_timespec *ts)
{
    struct io_uring_sqe *sqe = request(IORING_OP_TIMEOUT, -1, token);
    sqe->addr = (uint64_t)(uintptr_t)ts;
    sqe->len = 1;
}

void peer_says(const char *text)
{
    CHECK_EQ(kernel->write(pair[1], text, strlen(text)), strlen(text));
}

void say_what_is_left(void)
{
    char left[100];
    int size = kernel->recvfrom(pair[0], left, sizeof left, MSG_DONTWAIT, NULL, NULL);
    say(" left: %s%.*s", size == 0 ? "the end" : name_of(size), size > 0 ? size : 0, left);
}

struct sockaddr_un own_name(int fd, socklen_t *length)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    *length = sizeof name;
    CHECK_EQ(bind(fd, (struct sockaddr *)&name, sizeof name.sun_family), 0); /* any */
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&name, length), 0);
    return name;
}

/* Sends, until there is no room. */
void fill_peer(void)
{
    int size = 8192;
    CHECK_EQ(kernel->setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    static char data[1 << 16];
    while (kernel->sendto(pair[0], data, sizeof data, MSG_DONTWAIT, NULL, 0) > 0)
        ;
}

void connect_over_loopback(void)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof name;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&name, length), 0);
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&name, &length), 0);
    close(pair[1]);
    pair[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int connected = kernel->connect(pair[1], (struct sockaddr *)&name, length);
    CHECK(connected == 0 || (has_network && connected == -EINPROGRESS));
    close(pair[0]);
    pair[0] = kernel->accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    CHECK(pair[0] >= 0);
    close(listener);
}

/* ---- scripts that show more than one thing ---------------------------------------------- */

/* A refusal takes no buffer, and neither does the end. */
void refused_with_buffers(void)
{
    receive_into_buffers(1, MSG_DONTWAIT, 0);
    submit_and_say();
    kernel->shutdown(pair[1], SHUT_WR);
    receive_into_buffers(2, MSG_DONTWAIT, 0);
    submit_and_say();
}

/* Armed with the bit set it is told by deferred work; then of each change, once. */
void multishot_polls(void)
{
    peer_says("x");
    ask(1, pair[0], POLLIN, true);
    submit_and_say();
    run_and_say();
    run_and_say();
    peer_says("x");
    peer_says("x");
    run_and_say();
    run_and_say();
    kernel->shutdown(pair[1], SHUT_WR);
    run_and_say();
}

void multishot_receive(void)
{
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit_and_say();
    peer_says("hello");
    run_and_say();
    peer_says("a");
    peer_says("b");
    run_and_say();
    kernel->shutdown(pair[1], SHUT_WR);
    run_and_say();
}

void end_after(void)
{
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit_and_say();
    peer_says("hello");
    kernel->shutdown(pair[1], SHUT_WR);
    run_and_say();
    run_and_say();
}

/* One that polls first never learns of an end that was there behind the data (6.17, which is
 * the first to know what is left in a UNIX stream). */
void end_missed(void)
{
    peer_says("hello");
    kernel->shutdown(pair[1], SHUT_WR);
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT | IORING_RECVSEND_POLL_FIRST);
    submit_and_say();
    run_and_say();
    run_and_say();
    cancel(1);
    submit_and_say();
    run_and_say();
}

void pipes(void)
{
    int ends[2];
    static char memory[10];
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    for (uint64_t token = 1; token <= 3; token++) {
        struct io_uring_sqe *sqe = request(IORING_OP_READ, ends[0], token);
        sqe->addr = (uint64_t)(uintptr_t)memory;
        sqe->len = sizeof memory;
        sqe->op_flags = UT_RWF_NOWAIT;
        sqe->off = UINT64_MAX;
        submit_and_say();
        if (token == 1)
            CHECK_EQ(write(ends[1], "hello", 5), 5);
        else if (token == 2)
            close(ends[1]);
    }
    close(ends[0]);
}

void reset_behind_data(void)
{
    struct linger at_once = {.l_onoff = 1};
    connect_over_loopback();
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit();
    peer_says("hello");
    CHECK_EQ(kernel->setsockopt(pair[1], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    kernel->close_fd(pair[1]);
    pair[1] = -1;
    struct pollfd look = {.fd = pair[0]};
    CHECK_EQ(kernel->poll(&look, 1, SOON_MS), 1);
    run_and_say();
    run_and_say();
}

/* A send to a full peer whose poll tells something at once, always: its end. */
void hand_over(void)
{
    fill_peer();
    kernel->shutdown(pair[1], SHUT_WR);
    send_to_peer(1, 5, 0);
    submit();
    for (unsigned i = 0; i < 200; i++)
        run();
    say_cqes();
    say(" %s", ut_ring_wants_enter(&ring) ? "work" : "no work");
    await_worker();
    cancel(1);
    submit_and_say();
    wait_and_say();
}
