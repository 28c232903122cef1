/*
 * Random scripts have the same answers on the simulator and on Linux, down to the order of cqes.
 *
 * With the network's sockets: of the machine's own the simulator is told by epoll, which merges.
 * (TCP's segments arrive a little later now and then, on a machine.) What the simulator does is
 * what Linux 6.18.44 does, so an older one is not asked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "draw.h"
#include "sim_scripts.h"

#define RANDOM_SCRIPTS 300
/* Of the seeds that are asked for (of test_fuzz, which is quicker) one of so many. */
#define SEEDS_A_SCRIPT 20
#define RANDOM_STEPS 60
#define TOKENS 200

static uint64_t random_state;
static unsigned leased[BUFFERS], leased_count;

static unsigned draw(unsigned below)
{
    return draw_below(&random_state, below);
}

/* Says all cqes, and notes the buffers that came. */
static void say_and_lease(void)
{
    unsigned count = ut_ring_cq_ready(&ring);
    for (unsigned i = 0; i < count; i++) {
        const struct io_uring_cqe *cqe = ut_ring_cqe(&ring, i);
        if (cqe->flags & IORING_CQE_F_BUFFER)
            leased[leased_count++] =
                ut_bufring_lease(&buffers, (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT));
    }
    say_cqes();
}

static void return_buffers(void)
{
    while (leased_count > 0)
        ut_bufring_return(&buffers, leased[--leased_count]);
    ut_bufring_commit(&buffers);
}

/* One thing that a program, or a peer, may do. */
static void random_step(uint64_t token)
{
    static const uint32_t events[] = {POLLIN, POLLOUT, POLLIN | POLLOUT, 0};
    static const unsigned how[] = {0, 0, IORING_RECVSEND_POLL_FIRST};
    char bytes[8];
    unsigned size = 1 + draw(3);
    switch (draw(14)) {
    case 0:
    case 1:
        say(" w%d", kernel->sendto(pair[1], "abcd", size, MSG_NOSIGNAL | MSG_DONTWAIT, NULL, 0));
        break;
    case 2:
        say(" r%d", kernel->recvfrom(pair[0], bytes, size, MSG_DONTWAIT, NULL, NULL));
        break;
    case 3:
        say(" p%d", kernel->recvfrom(pair[1], bytes, size, MSG_DONTWAIT, NULL, NULL));
        break;
    case 4:
        receive(token, draw(2) ? MSG_DONTWAIT : 0, how[draw(3)]);
        break;
    case 5:
        receive_into_buffers(token, draw(2) ? MSG_DONTWAIT : 0, how[draw(3)]);
        break;
    case 6:
        receive_into_buffers(token, 0, IORING_RECV_MULTISHOT | how[draw(3)]);
        break;
    case 7:
        ask(token, pair[0], events[draw(4)], false);
        break;
    case 8:
        ask(token, pair[0], events[draw(4)], true);
        break;
    case 9:
        cancel(draw((unsigned)token + 1));
        break;
    case 10:
        send_to_peer(token, size, draw(2) ? MSG_DONTWAIT : 0);
        break;
    case 11:
        if (draw(8) == 0)
            say(" s%d", kernel->shutdown(pair[draw(2)], draw(3)));
        break;
    case 12:
        return_buffers();
        break;
    default:
        submit();
        if (draw(2))
            run();
        say_and_lease();
    }
}

static void random_script(void)
{
    static const int types[] = {SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    close(pair[0]);
    close(pair[1]);
    make_pair(types[draw(4)]);
    leased_count = 0;
    for (uint64_t token = 1; token <= RANDOM_STEPS; token++) {
        random_step(token);
        if (ut_ring_sq_room(&ring) == 0)
            submit();
    }
    submit();
    run();
    say_and_lease();
    for (uint64_t token = 1; token <= RANDOM_STEPS; token++) {
        cancel(token);
        if (ut_ring_sq_room(&ring) == 0)
            submit();
    }
    submit();
    run();
    say_and_lease();
}

static uint64_t script_seed;

static void answers_are_the_same(void)
{
    static char expected[sizeof told];
    random_state = draw_state(script_seed);
    has_network = false;
    open_all(&ut_kernel_real);
    random_script();
    close_all();
    strcpy(expected, told);
    random_state = draw_state(script_seed);
    has_network = true;
    sim_open(NULL, NULL, 0);
    sim_use_network(0);
    open_all(&ut_kernel_sim);
    random_script();
    close_all();
    sim_close();
    if (strcmp(told, expected) != 0)
        printf("seed %llu, Linux:%s\nthe network:%s\n", (unsigned long long)script_seed,
               expected, told);
    CHECK(strcmp(told, expected) == 0);
}

int main(int argc, char **argv)
{
    uint64_t first = 1;
    unsigned count = RANDOM_SCRIPTS;
    if (!can_be_shown())
        return CHECK_SKIP_STATUS;
    if (linux_release() < VERSION(6, 18, 44)) {
        printf("test_sim_random.c: skipped: random scripts are those of Linux 6.18.44\n");
        return CHECK_SKIP_STATUS;
    }
    if (argc == 3 && strcmp(argv[1], "seed") == 0) {
        first = strtoul(argv[2], NULL, 10);
        count = 1;
    } else if (argc == 2) {
        count = 1 + (unsigned)strtoul(argv[1], NULL, 10) / SEEDS_A_SCRIPT;
    }
    for (script_seed = first; script_seed < first + count; script_seed++)
        check_run("random scripts", answers_are_the_same);
    return CHECK_SUMMARY();
}
