/* The load generator, as Python sees it; loadgen.h explains the fields. */

struct ut_load_options {
    uint16_t port;
    uint32_t connections;
    uint32_t message_bytes;
    uint64_t warmup_ns;
    uint64_t duration_ns;
    int cpu;
    int server_pid;
};

struct ut_load_report {
    uint64_t messages;
    uint64_t bytes;
    uint64_t mismatches;
    uint64_t disconnects;
    uint64_t stalled;
    uint64_t elapsed_ns;
    uint64_t load_cpu_ns;
    uint64_t server_cpu_ns;
    uint64_t p50_ns;
    uint64_t p99_ns;
    uint64_t max_ns;
    const char *failed_stage;
};

int ut_load_run(const struct ut_load_options *options, struct ut_load_report *report);
