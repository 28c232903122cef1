/*
 * Scripts for the simulated kernel and for the machine's
 *
 * A script makes requests, lets things happen, and says what came of it, as a line of text. What
 * several programs need of that is here: a ring on one of the two kernels, each kind of request,
 * and the scripts that show both a claim and an old kernel's fault.
 */
#ifndef UT_TESTS_SIM_SCRIPTS_H
#define UT_TESTS_SIM_SCRIPTS_H

#include <sys/un.h>

#include "../bufring.h"
#include "sim.h"

#define MS 1000000LL /* ns */
#define SQ 32
#define CQ 64
#define BUFFERS 4
#define BUFFER_SIZE 4096u
#define VERSION(major, minor, patch) ((major) * 1000000 + (minor) * 1000 + (patch))
#define SOON_MS 20000 /* what a busy machine may take for what comes without our doing */
#define CANCELS 1000 /* added to a token: its cancel's */
#define TOLD_SIZE 8192

extern const struct ut_kernel *kernel; /* the one of the two that is asked */
extern bool is_real;
extern bool has_network; /* on the simulator: of the network without a kernel */
extern struct ut_ring ring;
extern struct ut_bufring buffers;
extern int pair[2];
extern char told[TOLD_SIZE];

/* ---- one of the two kernels -------------------------------------------------------- */

/* Which Linux this is, as VERSION; and whether it has a ring for us, which is said if not. */
unsigned linux_release(void);
bool can_be_shown(void);

/* A ring, buffers, a pair of sockets; the simulation, if it is that, is open. And all of it away. */
void open_all(const struct ut_kernel *table);
void close_all(void);
void make_pair(int type);

/* That a script has told just this. */
void check_told(const char *expected);

/* ---- what is done and said ---------------------------------------------------------- */

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *name_of(int res);
struct io_uring_sqe *request(uint8_t opcode, int fd, uint64_t token);
void cancel(uint64_t token);
int enter(unsigned to_submit, unsigned wait, unsigned flags, int64_t timeout_ns);
void submit(void);
void run(void);
void say_cqes(void);
void submit_and_say(void);
void run_and_say(void);
void wait_and_say(void);
void let_time_pass(void); /* some, without an enter */
void await_worker(void);  /* that a thread of the kernel's sleeps in what was handed to it */

/* ---- requests ------------------------------------------------------------------------ */

void receive(uint64_t token, int flags, unsigned how);
void receive_into_buffers(uint64_t token, int flags, unsigned how);
void send_to_peer(uint64_t token, unsigned size, int flags);
void ask(uint64_t token, int fd, uint32_t events, bool multishot);
void timeout(uint64_t token, const struct ut_timespec *ts);
void peer_says(const char *text);
void say_what_is_left(void);
struct sockaddr_un own_name(int fd, socklen_t *length);
void fill_peer(void);
void connect_over_loopback(void);

/* ---- scripts that show more than one thing ---------------------------------------------- */

void refused_with_buffers(void);
void multishot_polls(void);
void multishot_receive(void);
void end_after(void);
void end_missed(void);
void pipes(void);
void reset_behind_data(void);
void hand_over(void);

#endif
