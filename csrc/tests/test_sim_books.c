/*
 * The simulator's books, what it takes for a fault, and that what was drawn can be had again.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "sim_inside.h"
#include "sim_scripts.h"

static struct sim_books books(void)
{
    struct sim_books found;
    sim_read_books(&found);
    return found;
}

static void begin(void)
{
    sim_open(NULL, NULL, 0);
    open_all(&ut_kernel_sim);
}

static void the_books_balance(void)
{
    begin();
    peer_says("hello");
    receive_into_buffers(1, MSG_DONTWAIT, 0);
    receive(2, 0, 0);
    submit();
    CHECK_EQ(books().rings, 1);
    CHECK_EQ(books().in_flight, 1);
    CHECK_EQ(books().held, 1);
    CHECK_EQ(books().buffers_out, 1);
    CHECK_EQ(books().mappings, 4);
    CHECK_EQ(books().sqes, 2);
    ut_bufring_lease(&buffers, 0);
    ut_bufring_return(&buffers, 0);
    ut_bufring_commit(&buffers);
    cancel(2);
    submit();
    run();
    CHECK_EQ(books().in_flight, 0);
    CHECK_EQ(books().buffers_out, 0);
    close_all();
    CHECK_EQ(books().rings, 0);
    CHECK_EQ(books().mappings, 0);
    CHECK_EQ(books().held, 0);
    CHECK_EQ(books().given_up, 0);
    CHECK_EQ(books().faults, 0);
    sim_close();
}

static void a_ring_may_be_closed_too_early(void)
{
    begin();
    receive(1, 0, 0);
    submit();
    close_all();
    CHECK_EQ(books().given_up, 1);
    sim_close();
}

static void workers_are_counted(void)
{
    begin();
    hand_over();
    CHECK_EQ(books().handed_over, 1);
    close_all();
    sim_close();
}

static void what_is_left_to_the_kernels_own_poll_is_counted(void)
{
    begin();
    ask(1, pair[0], POLLIN, false);
    receive(2, 0, 0);
    submit();
    CHECK_EQ(books().left_waiting, 1);
    receive(3, MSG_DONTWAIT, 0);
    submit();
    CHECK_EQ(books().left_waiting, 1);
    close_all();
    sim_close();
}

static void expect_fault(const char *text)
{
    CHECK_EQ(books().faults, 1);
    CHECK(strcmp(sim_fault_text(0), text) == 0);
    CHECK(sim_fault_text(1) == NULL);
    sim_close();
}

static void two_operations_with_one_token(void)
{
    begin();
    receive(1, 0, 0);
    ask(1, pair[0], POLLIN, false);
    submit();
    close_all();
    expect_fault("two operations with one token");
}

static void a_buffer_returned_twice(void)
{
    begin();
    for (unsigned i = 0; i < 2; i++) {
        peer_says("hello");
        receive_into_buffers(i + 1, MSG_DONTWAIT, 0);
        submit();
        ut_bufring_lease(&buffers, (uint16_t)i);
    }
    ut_bufring_return(&buffers, 0);
    ut_bufring_return(&buffers, 0);
    ut_bufring_commit(&buffers);
    CHECK_EQ(books().buffers_out, 1);
    close_all();
    expect_fault("a buffer was returned twice");
}

static void what_is_not_ours(void)
{
    begin();
    kernel->unmap(&ring, sizeof ring);
    close_all();
    expect_fault("unmap of what is not mapped");
    begin();
    CHECK_EQ(kernel->close_fd(9999), -EBADF);
    close_all();
    expect_fault("close of what is not open");
    begin();
    request(IORING_OP_RECV, pair[0], 1)->off = 1;
    submit();
    close_all();
    expect_fault("an sqe that Linux refuses");
}

/* Whatever stops this process meanwhile. */
static int wait_through(int64_t timeout_ns)
{
    int result;
    do
        result = enter(0, 1, IORING_ENTER_GETEVENTS, timeout_ns);
    while (result == -EINTR);
    return result;
}

static void memory_that_is_not_there(void)
{
    begin();
    void *gone;
    CHECK_EQ(kernel->allocate(&gone, BUFFER_SIZE, 0), 0);
    kernel->unmap(gone, BUFFER_SIZE);
    struct io_uring_sqe *sqe = request(IORING_OP_RECV, pair[0], 1);
    sqe->addr = (uint64_t)(uintptr_t)gone;
    sqe->len = BUFFER_SIZE;
    submit();
    peer_says("hello");
    run_and_say();
    CHECK(strcmp(told, " 1=EFAULT |") == 0);
    close_all();
    expect_fault("a request's memory is not there");
}

static void a_ring_that_outlives_its_simulation(void)
{
    begin();
    struct ut_ring late = ring;
    close_all();
    sim_close();
    CHECK_EQ(kernel->close_fd(STDOUT_FILENO), 0);
    ut_ring_close(&late);
    CHECK(fcntl(STDOUT_FILENO, F_GETFD) >= 0);
}

static void a_wait_that_would_never_end(void)
{
    begin();
    sim_set_patience(5);
    receive(1, 0, 0);
    CHECK_EQ(enter(1, 1, IORING_ENTER_GETEVENTS, -1), 1); /* hides what its wait says */
    CHECK_EQ(wait_through(-1), -EDEADLK);
    CHECK(books().never_ending >= 1);
    /* One of a day is told, some times, as over. */
    uint64_t before_ns = sim_now_ns();
    CHECK_EQ(wait_through(86400000 * MS), -ETIME);
    CHECK(sim_now_ns() - before_ns >= 86400000 * MS);
    while (wait_through(86400000 * MS) == -ETIME)
        CHECK(books().never_ending < 10);
    CHECK_EQ(wait_through(86400000 * MS), -EDEADLK);
    close_all();
    sim_close();
}

static void *write_later(void *unused)
{
    usleep(20000);
    CHECK_EQ(write(pair[1], "x", 1), 1);
    return unused;
}

static void somebody_outside(void)
{
    begin();
    sim_set_patience(SOON_MS);
    pthread_t thread;
    receive(1, 0, 0);
    submit();
    CHECK_EQ(pthread_create(&thread, NULL, write_later, NULL), 0);
    uint64_t before_ns = sim_now_ns();
    CHECK_EQ(wait_through(-1), 0);
    CHECK_EQ(ut_ring_cq_ready(&ring), 1);
    CHECK_EQ(sim_now_ns(), before_ns);
    pthread_join(thread, NULL);
    close_all();
    CHECK_EQ(books().faults, 0);
    sim_close();
}

/* Its peer hangs up while time stands still: for a ring that sleeps, and for its eventfd. */
static void a_file_that_is_closed_without_us(void)
{
    for (unsigned beside = 0; beside < 2; beside++) {
        sim_open(NULL, NULL, 0);
        sim_use_network(0);
        has_network = true;
        open_all(&ut_kernel_sim);
        int told_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        struct pollfd helper = {.fd = told_fd, .events = POLLIN};
        CHECK_EQ(kernel->register_op(ring.fd, IORING_REGISTER_EVENTFD, &told_fd, 1), 0);
        receive(1, 0, 0);
        submit();
        close(pair[1]);
        pair[1] = -1;
        uint64_t before_ns = sim_now_ns();
        if (beside)
            CHECK_EQ(kernel->poll(&helper, 1, SOON_MS), 1);
        CHECK_EQ(wait_through(SOON_MS * MS), 0);
        CHECK_EQ(sim_now_ns() - before_ns, 0);
        say_cqes();
        CHECK(strcmp(told, " 1=0 |") == 0);
        close(told_fd);
        close_all();
        has_network = false;
        sim_close();
    }
}

static void two_rings_on_one_file(void)
{
    begin();
    struct ut_ring first = ring, second;
    CHECK_EQ(ut_ring_open(&second, kernel, SQ, CQ, SQ), 0);
    ask(1, pair[0], POLLIN, false);
    submit();
    first = ring;
    ring = second;
    ask(2, pair[0], POLLIN, false);
    submit();
    peer_says("x");
    CHECK(ut_ring_wants_enter(&first));
    CHECK(ut_ring_wants_enter(&ring));
    run_and_say();
    second = ring;
    ring = first;
    run_and_say();
    CHECK(strcmp(told, " 2=1 | 1=1 |") == 0);
    ut_ring_close(&second);
    close_all();
    CHECK_EQ(books().faults, 0);
    sim_close();
}

#define DRAWN 200

/* What was drawn is had again by its list; kinds that are not allowed take nothing from it. */
static void drawn_choices_are_recorded(void)
{
    uint32_t first[DRAWN], again[DRAWN];
    unsigned different = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        unsigned values[DRAWN];
        sim_open(NULL, NULL, 0);
        sim_draw_choices(seed);
        sim_allow(~(1u << SIM_END));
        for (unsigned i = 0; i < DRAWN; i++) {
            CHECK_EQ(sim_choose(SIM_END, 5), 0);
            values[i] = sim_choose(i % SIM_END, 2 + i % 5);
            CHECK(values[i] < 2 + i % 5);
        }
        uint32_t count = sim_choices_made(first, DRAWN);
        CHECK(count <= DRAWN);
        CHECK(count == 0 || first[count - 1] != 0);
        sim_close();
        sim_open(NULL, first, count);
        for (unsigned i = 0; i < DRAWN; i++)
            CHECK_EQ(sim_choose(i % SIM_END, 2 + i % 5), values[i]);
        CHECK_EQ(sim_choices_made(again, DRAWN), count);
        CHECK(memcmp(first, again, count * sizeof *first) == 0);
        sim_close();
        different += count > 0;
    }
    CHECK(different >= 18); /* a seed may allow nothing */
}

int main(void)
{
    RUN(the_books_balance);
    RUN(a_ring_may_be_closed_too_early);
    RUN(workers_are_counted);
    RUN(what_is_left_to_the_kernels_own_poll_is_counted);
    RUN(two_operations_with_one_token);
    RUN(a_buffer_returned_twice);
    RUN(what_is_not_ours);
    RUN(memory_that_is_not_there);
    RUN(a_ring_that_outlives_its_simulation);
    RUN(a_wait_that_would_never_end);
    RUN(somebody_outside);
    RUN(a_file_that_is_closed_without_us);
    RUN(two_rings_on_one_file);
    RUN(drawn_choices_are_recorded);
    return CHECK_SUMMARY();
}
