/*
 * What the load generator's files share: the load, and the seam between it and its kinds
 *
 * loadgen.c has the command line, the window and the figures. A kind of load says how a
 * connection begins and what its events mean: loadgen_echo.c, loadgen_bulk.c and
 * loadgen_short.c, the tables at their ends.
 */
#ifndef LOADGEN_H
#define LOADGEN_H

#include <stdbool.h>
#include <stdint.h>

#define RECEIVE_BYTES (256u << 10) /* one hot buffer for all: replies are compared, not kept */

/* Alignment of whatever the kernel copies from or to; below 32 the copy is 3 to 4 times slower. */
#define BUFFER_ALIGN 64u
/* Each message starts at another line of the pattern, so that a stale or swapped reply shows. */
#define PATTERN_SHIFTS 61u

#define CALL_COUNTERS_MAX 64 /* of the server, one for each of its threads */

struct load;
struct connection;

struct kind {
    const char *name;
    /* Begins a connection until a moment, and watches it. Returns 0 or -errno. */
    int (*begin)(struct load *load, struct connection *connection, uint64_t deadline_ns);
    void (*handle)(struct load *load, struct connection *connection, uint32_t events);
};

extern const struct kind echo_kinds[3];
extern const struct kind bulk_kinds[2];
extern const struct kind short_kinds[2];

struct options {
    uint16_t port;
    uint32_t connections;
    uint32_t message_bytes;
    uint64_t warmup_ns;
    uint64_t duration_ns;
    int cpu;
    int server_pid;
    const struct kind *kind;
    int call_counters[CALL_COUNTERS_MAX]; /* files whose sum is the server's system calls */
    int call_counters_count;
};

struct report {
    uint64_t messages;      /* round trips that ended inside the window */
    uint64_t bytes;         /* of those messages, one direction */
    uint64_t mismatches;    /* connections given up: a byte came back changed, or one too many */
    uint64_t disconnects;   /* connections given up: closed or reset by the server */
    uint64_t stalled;       /* connections whose reply had not come when the drain ended */
    uint64_t elapsed_ns;    /* the window as it really was */
    uint64_t load_cpu_ns;   /* user + system of this process, within the window */
    uint64_t server_cpu_ns; /* user + system of all of the server's threads, within the window */
    uint64_t p50_ns;        /* latencies are exact to 0.4 % */
    uint64_t p99_ns;
    uint64_t max_ns;
    uint64_t fewest;       /* messages of the connection that had the fewest */
    uint64_t server_calls; /* system calls of the server within the window, if they are counted */
};

struct connection {
    int fd; /* -1 once given up */
    bool waiting; /* a message is under way */
    uint32_t shift; /* which part of the pattern this message is, in units of BUFFER_ALIGN */
    uint32_t sent;
    uint32_t received;
    uint64_t started_ns;
    uint64_t messages; /* within the window */
};

struct load {
    struct options options;
    struct report report;
    const char *stage; /* what is being done, for the message if it fails */
    int epoll_fd;
    bool counting; /* inside the measured window */
    bool sending;  /* false from the end of the window: finish what is under way */
    uint32_t waiting; /* connections with a message under way */
    struct connection *connections;
    uint8_t *pattern; /* message_bytes + PATTERN_SHIFTS * BUFFER_ALIGN of noise */
    uint8_t *buffer;  /* RECEIVE_BYTES */
    uint64_t *latencies; /* counts */
};

/* loadgen.c */

uint64_t monotonic_ns(void);
const uint8_t *expected_bytes(const struct load *load, const struct connection *connection);
void count_message(struct load *load, struct connection *connection);
void give_up(struct load *load, struct connection *connection, uint64_t *reason);
int connect_one(const struct load *load, int family, int type, uint64_t deadline_ns, int *out_fd);
int watch(const struct load *load, struct connection *connection, uint32_t events);

/* loadgen_echo.c: also what a connection that asks once needs */

void start_message(struct load *load, struct connection *connection);
bool send_more(struct load *load, struct connection *connection);

#endif
