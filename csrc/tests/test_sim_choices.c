/*
 * The simulator's choices, and its kernels of other releases.
 *
 * What a choice does is a script with the choices of one kind. What another release does, or one
 * with a fault, is a script with a switch; and where this machine has that release, Linux must
 * say the same. (make kernels boots others.)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "sim_inside.h"
#include "sim_scripts.h"

/* ---- choices ------------------------------------------------------------------------ */

struct variant {
    const char *name;
    void (*script)(void);
    enum sim_choice kind;
    uint32_t choices[8]; /* until a 99 */
    const char *expected;
};
#define END 99

static void two_attempts(void)
{
    receive(1, MSG_DONTWAIT, 0);
    send_to_peer(2, 7, MSG_DONTWAIT);
    submit_and_say();
}

static void late_again(void)
{
    two_attempts();
    run_and_say();
    wait_and_say();
}

static void late(void)
{
    receive(1, 0, 0);
    submit();
    peer_says("hello");
    say(" %s", ut_ring_wants_enter(&ring) ? "work" : "no work");
    run_and_say();
    uint64_t before_ns = sim_now_ns();
    wait_and_say();
    say(" after %llu us", (unsigned long long)(sim_now_ns() - before_ns) / 1000);
}

static void refused(void)
{
    peer_says("hello");
    receive(1, MSG_DONTWAIT, 0);
    ask(2, pair[0], POLLIN, true);
    submit_and_say();
    run_and_say(); /* what is there */
    wait_and_say(); /* what had refused has ended */
}

static void refused_and_told(void)
{
    ask(2, pair[0], POLLIN, true);
    submit();
    peer_says("hello");
    run_and_say();
    receive(1, MSG_DONTWAIT, 0);
    submit_and_say();
    run_and_say();
}

static void waits(void)
{
    ask(1, pair[0], POLLIN, false);
    submit();
    for (unsigned i = 0; i < 3; i++)
        say(" %s", name_of(enter(0, 1, IORING_ENTER_GETEVENTS, 2 * MS)));
}

static void submissions(void)
{
    for (unsigned i = 0; i < 5; i++)
        ask(i + 1, pair[0], POLLOUT, false);
    for (unsigned i = 0; i < 3; i++) {
        int taken = enter(ut_ring_unsubmitted(&ring), 0, IORING_ENTER_GETEVENTS, -1);
        if (taken < 0)
            say(" %s", name_of(taken));
        else
            say(" %d", taken);
    }
    say_cqes();
}

static void fatal(void)
{
    say(" %s", name_of(enter(0, 1, IORING_ENTER_GETEVENTS, 1000000)));
}

static void fatal_beside_others(void)
{
    struct ut_timespec ts = {.tv_nsec = MS};
    timeout(1, &ts);
    submit();
    say(" %s", name_of(enter(0, 1, IORING_ENTER_GETEVENTS, 2 * MS)));
    say_cqes();
}

static void cancel_while_there_is_data(void)
{
    receive(1, 0, 0);
    submit();
    peer_says("hello");
    cancel(1);
    submit_and_say();
    run_and_say();
    say_what_is_left();
}

static void cancel_of_idle(void)
{
    receive(1, 0, 0);
    submit();
    cancel(1);
    submit_and_say();
    run_and_say();
}

static void cancel_of_woken_multishot(void)
{
    receive_into_buffers(1, 0, IORING_RECV_MULTISHOT);
    submit();
    peer_says("hello");
    cancel(1);
    submit_and_say();
    run_and_say();
    say_what_is_left();
}

static void accept_without_flag(void)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length;
    own_name(listener, &length);
    CHECK_EQ(listen(listener, 1), 0);
    request(IORING_OP_ACCEPT, listener, 1)->ioprio = IORING_ACCEPT_DONTWAIT;
    request(IORING_OP_ACCEPT, listener, 2);
    submit_and_say();
    cancel(2);
    submit_and_say();
    run_and_say();
    close(listener);
}

static const struct variant variants[] = {
    {"in order", two_attempts, SIM_ORDER, {END}, " 1=EAGAIN 2=7 |"},
    {"out of order", two_attempts, SIM_ORDER, {1, END}, " 2=7 1=EAGAIN |"},
    {"more than there is is less", two_attempts, SIM_ORDER, {3, END}, " 2=7 1=EAGAIN |"},
    {"late", late, SIM_DELAY, {3, END}, " no work | 1=5 | after 3000 us"},
    {"short", two_attempts, SIM_SHORT, {0, 2, END}, " 1=EAGAIN 2=3 |"},
    {"refused", refused, SIM_REFUSE, {1, END}, " 1=EAGAIN | 2=1+ | 2=1+ |"},
    {"refused, and told at once", refused_and_told, SIM_REFUSE, {2, END},
     " 2=1+ | 1=EAGAIN | 2=1+ |"},
    {"interrupted", waits, SIM_ENTER, {1, 2, END}, " EINTR EBUSY ETIME"},
    {"submitted in part", submissions, SIM_SUBMIT, {1, 3, 2, END},
     " EAGAIN 3 1 1=4 2=4 3=4 4=4 |"},
    {"no buffers", multishot_receive, SIM_BUFFERS, {0, 0, 1, END},
     " | 1=5b+ | 1=ENOBUFS | |"},
    {"a multishot that ends", multishot_receive, SIM_END, {1, END}, " | 1=5b | | |"},
    {"a poll that ends", multishot_polls, SIM_END, {0, 1, END},
     " | 1=1+ | | 1=1 | | |"},
    {"a cancel too late", cancel_while_there_is_data, SIM_CANCEL, {1, END},
     " c1=ENOENT | 1=5 | left: EAGAIN"},
    {"a cancel just in time", cancel_of_idle, SIM_CANCEL, {1, END},
     " c1=0 | 1=ECANCELED |"},
    {"a cancel of what runs", cancel_while_there_is_data, SIM_CANCEL, {2, END},
     " c1=EALREADY | 1=5 | left: EAGAIN"},
    {"a cancel that interrupts", cancel_of_idle, SIM_CANCEL, {2, END},
     " c1=EALREADY | 1=ECANCELED |"},
    {"the target first", cancel_of_idle, SIM_CANCEL, {3, END}, " 1=ECANCELED c1=0 | |"},
    {"a cancel after the work", cancel_of_woken_multishot, SIM_CANCEL, {4, END},
     " 1=5b+ c1=0 | 1=ECANCELED | left: EAGAIN"},
    {"no memory", fatal, SIM_FATAL, {1, END}, " ENOMEM"},
    {"a lost cqe", fatal, SIM_FATAL, {2, END}, " EBADR"},
    {"a cqe lost beside others", fatal_beside_others, SIM_FATAL, {0, 3, END},
     " EBADR 1=ETIME |"},
    {"a cqe again, later", late_again, SIM_STALE, {2, 2, END}, " 1=EAGAIN 2=7 | | 2=7 |"},
    {"a cqe twice", two_attempts, SIM_STALE, {1, END}, " 1=EAGAIN 1=EAGAIN 2=7 |"},
};

static const struct variant *variant;

static void does_what_is_chosen(void)
{
    uint32_t count = 0;
    while (variant->choices[count] != END)
        count++;
    sim_open(NULL, variant->choices, count);
    sim_allow(0); /* what is before the script, and behind it, is no part of it */
    open_all(&ut_kernel_sim);
    sim_allow(1u << variant->kind);
    variant->script();
    sim_allow(0);
    close_all();
    sim_close();
    check_told(variant->expected);
}

/* ---- other kernels -------------------------------------------------------------------- */

struct release {
    const char *name;
    void (*script)(void);
    struct sim_switches switches;
    const char *expected;
    unsigned since, before; /* the releases of Linux that do so; 0, 0: none that has our rings */
};

static const struct release releases[] = {
    {"before 6.10", accept_without_flag, {.accept_waits = true},
     " 1=EINVAL | c2=0 | 2=ECANCELED |", 0, VERSION(6, 10, 0)},
    {"before 6.4", pipes, {.pipes_without_nowait = true},
     " 1=EOPNOTSUPP | 2=EOPNOTSUPP | 3=EOPNOTSUPP |", 0, VERSION(6, 4, 0)},
    {"before 6.0", multishot_receive, {.no_multishot_receive = true},
     " 1=EINVAL | | | |", 0, 0},
    {"before 6.17", end_missed, {.no_inq_of_unix = true},
     " | 1=5b+ 1=0 | | c1=ENOENT | |", 0, VERSION(6, 17, 0)},
    {"without the cure of 6.18", end_after, {.end_is_missed = true},
     " | 1=5b+ | |", VERSION(6, 17, 0), VERSION(6, 18, 44)},
    {"6.16 without a reset", multishot_receive, {.reset_is_missed = true},
     " | 1=5b+ | 1=2b+ | 1=0 |", VERSION(6, 16, 0), VERSION(6, 17, 0)},
    {"a reset behind data", reset_behind_data, {0},
     " 1=5b+ 1=ECONNRESET | |", VERSION(6, 17, 0), UINT32_MAX},
    {"6.16", reset_behind_data, {.reset_is_missed = true},
     " 1=5b+ | |", VERSION(6, 16, 0), VERSION(6, 17, 0)},
    {"6.11", cancel_of_woken_multishot, {.cancel_misses_multishot = true},
     " c1=ENOENT | 1=5b+ | left: EAGAIN", VERSION(6, 11, 0), VERSION(6, 12, 0)},
    {"a refusal with a buffer", refused_with_buffers, {.refusal_takes_buffer = true},
     " 1=EAGAINb | 2=0 |", 0, 0},
};

static const struct release *release;

static void simulates_it(void)
{
    sim_open(&release->switches, NULL, 0);
    sim_allow(0);
    open_all(&ut_kernel_sim);
    release->script();
    close_all();
    sim_close();
    check_told(release->expected);
}

static void is_so(void)
{
    open_all(&ut_kernel_real);
    release->script();
    close_all();
    check_told(release->expected);
}

static void an_old_kernel_refuses_rings(void)
{
    struct sim_switches switches = {.no_defer_taskrun = true};
    sim_open(&switches, NULL, 0);
    CHECK_EQ(ut_ring_open(&ring, &ut_kernel_sim, SQ, CQ, SQ), -EINVAL);
    sim_close();
}

int main(void)
{
    for (unsigned i = 0; i < sizeof variants / sizeof *variants; i++) {
        variant = &variants[i];
        check_run(variant->name, does_what_is_chosen);
    }
    for (unsigned i = 0; i < sizeof releases / sizeof *releases; i++) {
        release = &releases[i];
        check_run(release->name, simulates_it);
        if (linux_release() < release->since || linux_release() >= release->before ||
            !can_be_shown())
            continue;
        printf("test_sim_choices.c: shown here, too: %s\n", release->name);
        check_run(release->name, is_so);
    }
    RUN(an_old_kernel_refuses_rings);
    return CHECK_SUMMARY();
}
