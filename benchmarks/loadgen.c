/*
 * A load generator for echo servers on 127.0.0.1
 *
 * Each connection sends one message, waits until all of it came back, compares
 * the bytes, and sends the next: N connections are N messages under way. Written
 * in C because a Python client is slower than the servers that it should load.
 *
 * Time goes in three parts: a warm-up that is not counted, the measured window,
 * and a drain that waits for replies still under way, so that no server sees a
 * connection reset. Each part has a bound, so a server that hangs is reported
 * as stalled and never hangs its caller.
 *
 * There is one thread and one epoll set, edge-triggered. A connection is
 * registered once, for both directions. At every event it sends until its
 * message is out or the socket is full, and receives until a read is short.
 * A read asks for one byte more than is missing: a whole reply is then a short
 * read, which under edge triggering means that the socket is empty, and a
 * server that sends too much is found out.
 *
 * Sending and receiving go on side by side, since a large message does not fit
 * into the two sockets' buffers and the echo comes back before all of it is out.
 *
 *     loadgen PORT CONNECTIONS MESSAGE_BYTES WARMUP_NS DURATION_NS CPU SERVER_PID
 *
 * CPU is the core to run on, and -1 leaves that alone; SERVER_PID is the process
 * whose CPU time is measured over the same window, and 0 is none. The output is
 * the fields of `struct report`, a line with name and value for each, or where
 * the load could not be made at all one line: failed, the errno, at what.
 * Broken connections are no such failure; they are counted.
 */
#define _GNU_SOURCE /* cpu_set_t, sched_setaffinity */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND 1000000000ull
#define NS_PER_MS 1000000ull

#define CONNECTIONS_MAX 16384u
#define MESSAGE_BYTES_MAX (64u << 20) /* far above any size that is compared */
#define TIME_MAX_NS (3600 * NS_PER_SECOND) /* no measurement takes an hour */

#define CONNECT_LIMIT_NS (10 * NS_PER_SECOND) /* 1,000 connections take well under 1 s */
#define DRAIN_LIMIT_NS (2 * NS_PER_SECOND)    /* 8 x 1 MiB take some 10 ms */
#define EVENTS_PER_WAIT 64
#define RECEIVE_BYTES (256u << 10) /* one hot buffer for all: replies are compared, not kept */

/* Alignment of whatever the kernel copies from or to; below 32 the copy is 3 to 4 times slower. */
#define BUFFER_ALIGN 64u
/* Each message starts at another line of the pattern, so that a stale or swapped reply shows. */
#define PATTERN_SHIFTS 61u

/*
 * Latencies: an octave is cut into 256 equal parts, which is 0.4 % at worst.
 * 40 octaves of nanoseconds are 18 minutes; nothing here lives as long.
 */
#define PARTS_LOG2 8
#define PARTS (1u << PARTS_LOG2)
#define OCTAVES 40
#define LATENCY_MAX_NS ((1ull << OCTAVES) - 1)
#define LATENCY_BUCKETS ((OCTAVES - PARTS_LOG2 + 1) * PARTS)

struct options {
    uint16_t port;
    uint32_t connections;
    uint32_t message_bytes;
    uint64_t warmup_ns;
    uint64_t duration_ns;
    int cpu;
    int server_pid;
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
};

struct connection {
    int fd; /* -1 once given up */
    bool waiting; /* a message is under way */
    uint32_t shift; /* which part of the pattern this message is, in units of BUFFER_ALIGN */
    uint32_t sent;
    uint32_t received;
    uint64_t started_ns;
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
    uint64_t *latencies; /* LATENCY_BUCKETS counts */
};

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        return 0;
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

static uint64_t monotonic_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* A process's own CPU clock sums user and system time of all of its threads, in nanoseconds. */
static uint64_t process_cpu_ns(int pid)
{
    clockid_t clock;
    if (pid <= 0 || clock_getcpuclockid(pid, &clock) != 0)
        return 0;
    return clock_ns(clock);
}

/* Latencies. */

static uint32_t latency_bucket(uint64_t ns)
{
    if (ns < PARTS)
        return (uint32_t)ns;
    if (ns > LATENCY_MAX_NS)
        ns = LATENCY_MAX_NS;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(ns) - PARTS_LOG2;
    return (shift + 1) * PARTS + (uint32_t)((ns >> shift) - PARTS);
}

/* The middle of a bucket. */
static uint64_t latency_of_bucket(uint32_t bucket)
{
    if (bucket < PARTS)
        return bucket;
    uint32_t shift = bucket / PARTS - 1;
    uint64_t low = (uint64_t)(PARTS + bucket % PARTS) << shift;
    return low + ((1ull << shift) >> 1);
}

static uint64_t latency_percentile(const struct load *load, uint32_t percent)
{
    uint64_t wanted = (load->report.messages * percent + 99) / 100;
    uint64_t seen = 0;
    for (uint32_t bucket = 0; bucket < LATENCY_BUCKETS; bucket++) {
        seen += load->latencies[bucket];
        if (seen >= wanted && seen > 0)
            return latency_of_bucket(bucket);
    }
    return 0;
}

static void count_message(struct load *load, uint64_t latency_ns)
{
    struct report *report = &load->report;
    report->messages++;
    report->bytes += load->options.message_bytes;
    load->latencies[latency_bucket(latency_ns)]++;
    if (latency_ns > report->max_ns)
        report->max_ns = latency_ns;
}

/* Connections. */

static void give_up(struct load *load, struct connection *connection, uint64_t *reason)
{
    (*reason)++;
    close(connection->fd); /* takes it out of the epoll set too */
    connection->fd = -1;
    if (connection->waiting)
        load->waiting--;
    connection->waiting = false;
}

static void start_message(struct load *load, struct connection *connection)
{
    connection->shift = (connection->shift + 1) % PATTERN_SHIFTS;
    connection->sent = 0;
    connection->received = 0;
    connection->started_ns = monotonic_ns();
    if (!connection->waiting)
        load->waiting++;
    connection->waiting = true;
}

static const uint8_t *expected_bytes(const struct load *load, const struct connection *connection)
{
    return load->pattern + connection->shift * BUFFER_ALIGN;
}

/* Sends until the message is out or the socket is full. False: the connection was given up. */
static bool send_more(struct load *load, struct connection *connection)
{
    uint32_t size = load->options.message_bytes;
    const uint8_t *message = expected_bytes(load, connection);
    while (connection->waiting && connection->sent < size) {
        ssize_t count = send(connection->fd, message + connection->sent, size - connection->sent,
                             MSG_NOSIGNAL);
        if (count >= 0) {
            connection->sent += (uint32_t)count;
        } else if (errno == EAGAIN) {
            return true;
        } else if (errno != EINTR) {
            give_up(load, connection, &load->report.disconnects);
            return false;
        }
    }
    return true;
}

/* Takes bytes as part of the reply. False: they are not what was sent. */
static bool take_reply(struct load *load, struct connection *connection, uint32_t count)
{
    uint32_t missing = connection->waiting ? connection->sent - connection->received : 0;
    if (count > missing)
        return false;
    const uint8_t *expected = expected_bytes(load, connection) + connection->received;
    if (memcmp(expected, load->buffer, count) != 0)
        return false;
    connection->received += count;
    return true;
}

static void end_message(struct load *load, struct connection *connection)
{
    if (load->counting)
        count_message(load, monotonic_ns() - connection->started_ns);
    connection->waiting = false;
    load->waiting--;
}

/* Receives until the socket is empty. False: the connection was given up. */
static bool receive_more(struct load *load, struct connection *connection)
{
    for (;;) {
        uint32_t missing =
            connection->waiting ? load->options.message_bytes - connection->received : 0;
        uint32_t ask = missing < RECEIVE_BYTES ? missing + 1 : RECEIVE_BYTES;
        ssize_t count = recv(connection->fd, load->buffer, ask, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN)
            return true;
        if (count <= 0) {
            give_up(load, connection, &load->report.disconnects);
            return false;
        }
        if (!take_reply(load, connection, (uint32_t)count)) {
            give_up(load, connection, &load->report.mismatches);
            return false;
        }
        if (connection->received == load->options.message_bytes)
            end_message(load, connection);
        if ((uint32_t)count < ask)
            return true;
    }
}

static void handle_events(struct load *load, struct connection *connection, uint32_t events)
{
    if ((events & EPOLLOUT) && !send_more(load, connection))
        return;
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !receive_more(load, connection))
        return;
    if (!connection->waiting && load->sending) {
        start_message(load, connection);
        send_more(load, connection);
    }
}

/*
 * Serves the connections until a moment, or, while draining, until nothing is
 * under way. Returns 0 or -errno.
 */
static int serve_until(struct load *load, uint64_t until_ns)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    for (;;) {
        uint64_t now = monotonic_ns();
        if (now >= until_ns || (!load->sending && load->waiting == 0))
            return 0;
        int timeout_ms = (int)((until_ns - now + NS_PER_MS - 1) / NS_PER_MS);
        int count = epoll_wait(load->epoll_fd, events, EVENTS_PER_WAIT, timeout_ms);
        if (count < 0 && errno != EINTR) /* a signal, or it was stopped and went on */
            return -errno;
        for (int i = 0; i < count; i++)
            handle_events(load, events[i].data.ptr, events[i].events);
    }
}

/* Setting up. */

/* As connect(2), which an interrupted one is waited for by calling it again (Linux). */
static int connect_through(int fd, const struct sockaddr_in *address, uint64_t deadline_ns)
{
    int result;
    do
        result = connect(fd, (const struct sockaddr *)address, sizeof *address);
    while (result != 0 && errno == EINTR && monotonic_ns() < deadline_ns);
    return result;
}

static int connect_one(const struct load *load, uint64_t deadline_ns, int *out_fd)
{
    uint64_t now = monotonic_ns();
    if (now >= deadline_ns)
        return -ETIMEDOUT;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    /* connect(2) keeps to the send timeout; 1 ms more, because 0 would mean for ever. */
    uint64_t left_us = (deadline_ns - now) / 1000 + 1000;
    struct timeval limit = {.tv_sec = (time_t)(left_us / 1000000),
                            .tv_usec = (suseconds_t)(left_us % 1000000)};
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(load->options.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0 ||
        connect_through(fd, &address, deadline_ns) != 0 ||
        fcntl(fd, F_SETFL, O_NONBLOCK) != 0) {
        int error = errno == EINPROGRESS ? ETIMEDOUT : errno;
        close(fd);
        return -error;
    }
    *out_fd = fd;
    return 0;
}

static int connect_all(struct load *load)
{
    uint64_t deadline_ns = monotonic_ns() + CONNECT_LIMIT_NS;
    for (uint32_t i = 0; i < load->options.connections; i++) {
        struct connection *connection = &load->connections[i];
        int result = connect_one(load, deadline_ns, &connection->fd);
        if (result != 0)
            return result;
        connection->shift = i % PATTERN_SHIFTS;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET,
                                    .data.ptr = connection};
        if (epoll_ctl(load->epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) != 0)
            return -errno;
    }
    return 0;
}

static void *aligned_memory(size_t bytes)
{
    /* aligned_alloc() wants a multiple of the alignment. */
    return aligned_alloc(BUFFER_ALIGN, (bytes + BUFFER_ALIGN - 1) / BUFFER_ALIGN * BUFFER_ALIGN);
}

static void fill_with_noise(uint8_t *bytes, size_t size)
{
    uint32_t state = 0x9e3779b9u; /* xorshift32; the same noise in every run */
    for (size_t i = 0; i < size; i++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes[i] = (uint8_t)state;
    }
}

static int allocate(struct load *load)
{
    uint32_t connections = load->options.connections;
    size_t pattern_bytes = load->options.message_bytes + PATTERN_SHIFTS * BUFFER_ALIGN;
    load->connections = calloc(connections, sizeof(*load->connections));
    load->latencies = calloc(LATENCY_BUCKETS, sizeof(*load->latencies));
    load->pattern = aligned_memory(pattern_bytes);
    load->buffer = aligned_memory(RECEIVE_BYTES);
    if (load->connections == NULL || load->latencies == NULL || load->pattern == NULL ||
        load->buffer == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < connections; i++)
        load->connections[i].fd = -1;
    fill_with_noise(load->pattern, pattern_bytes);
    return 0;
}

static int pin_to_cpu(int cpu)
{
    cpu_set_t set;
    if (cpu < 0)
        return 0;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    return sched_setaffinity(0, sizeof(set), &set) == 0 ? 0 : -errno;
}

/* The run. */

static int measure(struct load *load)
{
    struct report *report = &load->report;
    load->sending = true; /* each connection's first EPOLLOUT starts its first message */
    int result = serve_until(load, monotonic_ns() + load->options.warmup_ns);
    if (result != 0)
        return result;

    load->counting = true;
    uint64_t load_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t server_cpu = process_cpu_ns(load->options.server_pid);
    uint64_t started = monotonic_ns();
    result = serve_until(load, started + load->options.duration_ns);
    report->elapsed_ns = monotonic_ns() - started;
    /* A server that died has no clock any more. */
    uint64_t server_cpu_now = process_cpu_ns(load->options.server_pid);
    report->server_cpu_ns = server_cpu_now > server_cpu ? server_cpu_now - server_cpu : 0;
    report->load_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - load_cpu;
    load->counting = false;
    if (result != 0)
        return result;

    load->sending = false;
    result = serve_until(load, monotonic_ns() + DRAIN_LIMIT_NS);
    report->stalled = load->waiting;
    report->p50_ns = latency_percentile(load, 50);
    report->p99_ns = latency_percentile(load, 99);
    return result;
}

/* Returns 0, or -errno: -ETIMEDOUT when connecting took too long. */
static int run(struct load *load)
{
    int result;

    load->stage = "pinning to a core";
    if ((result = pin_to_cpu(load->options.cpu)) != 0)
        return result;
    load->stage = "memory";
    if ((result = allocate(load)) != 0)
        return result;
    load->stage = "epoll_create1";
    if ((load->epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0)
        return -errno;
    load->stage = "connect";
    if ((result = connect_all(load)) != 0)
        return result;
    load->stage = "epoll_wait";
    if ((result = measure(load)) != 0)
        return result;
    return 0;
}

static void release(struct load *load)
{
    if (load->connections != NULL)
        for (uint32_t i = 0; i < load->options.connections; i++)
            if (load->connections[i].fd >= 0)
                close(load->connections[i].fd);
    if (load->epoll_fd >= 0)
        close(load->epoll_fd);
    free(load->connections);
    free(load->latencies);
    free(load->pattern);
    free(load->buffer);
}

/* The command line, and the output. */

static bool take_number(const char *text, long long least, long long most, long long *number)
{
    char *end;
    errno = 0;
    *number = strtoll(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && *number >= least && *number <= most;
}

static int take_options(char **words, int count, struct options *options)
{
    static const long long limits[][2] = {
        {1, UINT16_MAX},        {1, CONNECTIONS_MAX}, {1, MESSAGE_BYTES_MAX},
        {0, (long long)TIME_MAX_NS}, {0, (long long)TIME_MAX_NS}, {-1, CPU_SETSIZE - 1},
        {0, INT_MAX},
    };
    enum { COUNT = sizeof(limits) / sizeof(limits[0]) };
    long long numbers[COUNT];

    if (count != COUNT)
        return -EINVAL;
    for (int i = 0; i < COUNT; i++)
        if (!take_number(words[i], limits[i][0], limits[i][1], &numbers[i]))
            return -EINVAL;
    *options = (struct options){
        .port = (uint16_t)numbers[0],
        .connections = (uint32_t)numbers[1],
        .message_bytes = (uint32_t)numbers[2],
        .warmup_ns = (uint64_t)numbers[3],
        .duration_ns = (uint64_t)numbers[4],
        .cpu = (int)numbers[5],
        .server_pid = (int)numbers[6],
    };
    return 0;
}

static void print_report(const struct report *report)
{
    const struct {
        const char *name;
        uint64_t value;
    } lines[] = {
        {"messages", report->messages},
        {"bytes", report->bytes},
        {"mismatches", report->mismatches},
        {"disconnects", report->disconnects},
        {"stalled", report->stalled},
        {"elapsed_ns", report->elapsed_ns},
        {"load_cpu_ns", report->load_cpu_ns},
        {"server_cpu_ns", report->server_cpu_ns},
        {"p50_ns", report->p50_ns},
        {"p99_ns", report->p99_ns},
        {"max_ns", report->max_ns},
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        printf("%s %" PRIu64 "\n", lines[i].name, lines[i].value);
}

int main(int argc, char **argv)
{
    struct load load = {.epoll_fd = -1, .stage = "options"};
    int result = take_options(argv + 1, argc - 1, &load.options);
    if (result == 0)
        result = run(&load);
    release(&load);
    if (result < 0)
        printf("failed %d %s\n", -result, load.stage);
    else
        print_report(&load.report);
    return 0;
}
