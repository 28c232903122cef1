/*
 * A load generator for servers on this machine
 *
 * Written in C because a Python client is slower than the servers that it should
 * load. What is said on a connection is the kind's (loadgen.h); the usual one is a
 * ping-pong: N connections are N messages under way, and every byte is compared.
 *
 * Time goes in three parts: a warm-up that is not counted, the measured window,
 * and a drain that waits for replies still under way, so that no server sees a
 * connection reset. Each part has a bound, so a server that hangs is reported
 * as stalled and never hangs its caller.
 *
 * There is one thread and one epoll set.
 *
 *     loadgen PORT CONNECTIONS MESSAGE_BYTES WARMUP_NS DURATION_NS CPU SERVER_PID [KIND [FD...]]
 *
 * CPU is the core to run on, and -1 leaves that alone; SERVER_PID is the process
 * whose CPU time is measured over the same window, and 0 is none. KIND is the name
 * of one, and echo without it. Each FD is a counter of perf_event_open(2), open
 * here, of the server's system calls; they are read at both ends of the window. For
 * UNIX sockets PORT is the number in the abstract name, see connect_one(). The
 * output is the fields of `struct report`, a line with name and value for each, or
 * where the load could not be made at all one line: failed, the errno, at what.
 * Broken connections are no such failure; they are counted.
 */
#define _GNU_SOURCE /* cpu_set_t, sched_setaffinity */
#include "loadgen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
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

/*
 * Latencies: an octave is cut into 256 equal parts, which is 0.4 % at worst.
 * 40 octaves of nanoseconds are 18 minutes; nothing here lives as long.
 */
#define PARTS_LOG2 8
#define PARTS (1u << PARTS_LOG2)
#define OCTAVES 40
#define LATENCY_MAX_NS ((1ull << OCTAVES) - 1)
#define LATENCY_BUCKETS ((OCTAVES - PARTS_LOG2 + 1) * PARTS)

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        return 0;
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

uint64_t monotonic_ns(void)
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

/* A message has ended; it counts if that was inside the window. */
void count_message(struct load *load, struct connection *connection)
{
    struct report *report = &load->report;
    if (!load->counting)
        return;
    uint64_t latency_ns = monotonic_ns() - connection->started_ns;
    connection->messages++;
    report->messages++;
    report->bytes += load->options.message_bytes;
    load->latencies[latency_bucket(latency_ns)]++;
    if (latency_ns > report->max_ns)
        report->max_ns = latency_ns;
}

/* Connections. */

void give_up(struct load *load, struct connection *connection, uint64_t *reason)
{
    (*reason)++;
    if (connection->fd >= 0)
        close(connection->fd); /* takes it out of the epoll set too */
    connection->fd = -1;
    if (connection->waiting)
        load->waiting--;
    connection->waiting = false;
}

const uint8_t *expected_bytes(const struct load *load, const struct connection *connection)
{
    return load->pattern + connection->shift * BUFFER_ALIGN;
}

int watch(const struct load *load, struct connection *connection, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};
    return epoll_ctl(load->epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) == 0 ? 0 : -errno;
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
            load->options.kind->handle(load, events[i].data.ptr, events[i].events);
    }
}

/* Setting up. */

/* As connect(2), which an interrupted one is waited for by calling it again (Linux). */
static int connect_through(int fd, const struct sockaddr *address, socklen_t size,
                           uint64_t deadline_ns)
{
    int result;
    do
        result = connect(fd, address, size);
    while (result != 0 && errno == EINTR && monotonic_ns() < deadline_ns);
    return result;
}

union address {
    struct sockaddr any;
    struct sockaddr_in ip;
    struct sockaddr_un local;
};

/* A server on UNIX sockets has an abstract name with a number where others have a port. */
static socklen_t server_address(const struct load *load, int family, union address *address)
{
    *address = (union address){.any.sa_family = (sa_family_t)family};
    if (family == AF_INET) {
        address->ip.sin_port = htons(load->options.port);
        address->ip.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return sizeof address->ip;
    }
    int length = snprintf(address->local.sun_path + 1, sizeof address->local.sun_path - 1,
                          "uring_trio-benchmark-%u", load->options.port);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

/* Connects, waiting for it, and leaves the socket non-blocking. */
int connect_one(const struct load *load, int family, int type, uint64_t deadline_ns, int *out_fd)
{
    uint64_t now = monotonic_ns();
    if (now >= deadline_ns)
        return -ETIMEDOUT;
    int fd = socket(family, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    /* connect(2) keeps to the send timeout; 1 ms more, because 0 would mean for ever. */
    uint64_t left_us = (deadline_ns - now) / 1000 + 1000;
    struct timeval limit = {.tv_sec = (time_t)(left_us / 1000000),
                            .tv_usec = (suseconds_t)(left_us % 1000000)};
    union address address;
    socklen_t size = server_address(load, family, &address);
    bool is_tcp = family == AF_INET && type == SOCK_STREAM;
    int one = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0 ||
        (is_tcp && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0) ||
        connect_through(fd, &address.any, size, deadline_ns) != 0 ||
        fcntl(fd, F_SETFL, O_NONBLOCK) != 0) {
        int error = errno == EINPROGRESS || errno == EAGAIN ? ETIMEDOUT : errno;
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
        connection->shift = i % PATTERN_SHIFTS;
        int result = load->options.kind->begin(load, connection, deadline_ns);
        if (result != 0)
            return result;
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

/* What is seen of the server. */

static uint64_t server_calls(const struct options *options)
{
    uint64_t total = 0;
    for (int i = 0; i < options->call_counters_count; i++) {
        uint64_t count;
        if (read(options->call_counters[i], &count, sizeof count) == sizeof count)
            total += count;
    }
    return total;
}

static uint64_t fewest_messages(const struct load *load)
{
    uint64_t fewest = UINT64_MAX;
    for (uint32_t i = 0; i < load->options.connections; i++)
        if (load->connections[i].messages < fewest)
            fewest = load->connections[i].messages;
    return fewest;
}

/* The run. */

static int measure(struct load *load)
{
    struct report *report = &load->report;
    load->sending = true;
    int result = serve_until(load, monotonic_ns() + load->options.warmup_ns);
    if (result != 0)
        return result;

    load->counting = true;
    uint64_t load_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t server_cpu = process_cpu_ns(load->options.server_pid);
    uint64_t calls = server_calls(&load->options);
    uint64_t started = monotonic_ns();
    result = serve_until(load, started + load->options.duration_ns);
    report->elapsed_ns = monotonic_ns() - started;
    report->server_calls = server_calls(&load->options) - calls;
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
    report->fewest = fewest_messages(load);
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

static const struct kind *find_kind(const char *name)
{
    const struct {
        const struct kind *kinds;
        size_t count;
    } tables[] = {
        {echo_kinds, sizeof echo_kinds / sizeof echo_kinds[0]},
        {bulk_kinds, sizeof bulk_kinds / sizeof bulk_kinds[0]},
        {short_kinds, sizeof short_kinds / sizeof short_kinds[0]},
    };
    for (size_t table = 0; table < sizeof tables / sizeof tables[0]; table++)
        for (size_t i = 0; i < tables[table].count; i++)
            if (strcmp(tables[table].kinds[i].name, name) == 0)
                return &tables[table].kinds[i];
    return NULL;
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

    if (count < COUNT || count > COUNT + 1 + CALL_COUNTERS_MAX)
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
        .kind = find_kind(count > COUNT ? words[COUNT] : "echo"),
    };
    for (int i = COUNT + 1; i < count; i++) {
        long long fd;
        if (!take_number(words[i], 0, INT_MAX, &fd))
            return -EINVAL;
        options->call_counters[options->call_counters_count++] = (int)fd;
    }
    return options->kind != NULL ? 0 : -EINVAL;
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
        {"fewest", report->fewest},
        {"server_calls", report->server_calls},
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
