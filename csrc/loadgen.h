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
 */
#ifndef UT_LOADGEN_H
#define UT_LOADGEN_H

#include <stdint.h>

#define UT_LOAD_CONNECTIONS_MAX 16384u
#define UT_LOAD_MESSAGE_BYTES_MAX (64u << 20) /* far above any size that is compared */

struct ut_load_options {
    uint16_t port;
    uint32_t connections;
    uint32_t message_bytes;
    uint64_t warmup_ns;
    uint64_t duration_ns;
    int cpu;        /* pin the calling thread to this core; -1 leaves it alone */
    int server_pid; /* measure this process's CPU over the same window; 0 for none */
};

struct ut_load_report {
    uint64_t messages;      /* round trips that ended inside the window */
    uint64_t bytes;         /* of those messages, one direction */
    uint64_t mismatches;    /* connections given up: a byte came back changed, or one too many */
    uint64_t disconnects;   /* connections given up: closed or reset by the server */
    uint64_t stalled;       /* connections whose reply had not come when the drain ended */
    uint64_t elapsed_ns;    /* the window as it really was */
    uint64_t load_cpu_ns;   /* user + system of the calling thread, within the window */
    uint64_t server_cpu_ns; /* user + system of all of the server's threads, within the window */
    uint64_t p50_ns;        /* latencies are exact to 0.4 % */
    uint64_t p99_ns;
    uint64_t max_ns;
    const char *failed_stage; /* what ut_load_run() failed at; a static string, NULL on success */
};

/*
 * Runs the whole load and fills *report. Returns 0, or -errno if the load could
 * not be made at all: -EINTR after a signal, -ETIMEDOUT when connecting took
 * longer than its bound. Broken connections are no such failure; they are counted.
 */
int ut_load_run(const struct ut_load_options *options, struct ut_load_report *report);

#endif
