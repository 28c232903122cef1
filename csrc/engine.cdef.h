/* All that Python may call of the engine; the comments are in the headers. */

typedef int... socklen_t;
struct sockaddr_storage { ...; };
struct ut_kernel { ...; };
const struct ut_kernel *ut_kernel_get_real(void);

struct ut_record { uint32_t slot; int32_t res; uint32_t flags; uint32_t offset; };

struct ut_group_config { unsigned entries; uint32_t buffer_size; };
struct ut_config {
    unsigned sq_entries, cq_entries, sq_entries_min;
    struct ut_group_config groups[3];
};

struct ut_ring { int fd; ...; };
struct ut_engine { struct ut_ring ring; struct ut_record *records; unsigned record_capacity;
                   char *pool; size_t pool_size; uint64_t failed_enters; ...; };

struct ut_statistics {
    uint64_t enters, cqes, stale_cqes;
    uint32_t queued, in_flight, leases_out, unread_cqes;
    uint64_t operations[32];
};

int ut_engine_open_boxed(const struct ut_kernel *, struct ut_config *,
                         struct ut_engine **box, const char **stage);
void ut_engine_close_boxed(struct ut_engine **box);
int ut_engine_close(struct ut_engine *, int leak);
int64_t ut_engine_wait(struct ut_engine *, int64_t timeout_ns);
int ut_engine_flush(struct ut_engine *);
int ut_engine_cancel(struct ut_engine *, uint32_t slot);
int ut_engine_register_eventfd(struct ut_engine *, int event_fd);
enum { UT_LOOK_NOTHING, UT_LOOK_SOMETHING, UT_LOOK_STARVED };
int ut_engine_look(struct ut_engine *);
void ut_engine_statistics(const struct ut_engine *, struct ut_statistics *out);

struct ut_message { socklen_t name_length; struct sockaddr_storage name; char *control, *data;
                    size_t control_size, data_size; ...; };
struct ut_message_result { size_t name_length, control_length; int flags; };
struct ut_message *ut_message_new(size_t vectors, size_t control_size, size_t data_size);
void ut_message_free(struct ut_message *);
void ut_message_set_vector(struct ut_message *, size_t index, const void *memory, size_t size);
int ut_message_set_name(struct ut_message *, const char *name, size_t length);
void ut_message_read(const struct ut_message *, struct ut_message_result *out);
void *ut_memory_new(size_t size);
void ut_memory_free(void *);

int ut_prep_recv(struct ut_engine *, int fd, unsigned group, uint32_t size, int poll_first);
int ut_prep_recv_multishot(struct ut_engine *, int fd, unsigned group, int poll_first);
int ut_prep_recv_into(struct ut_engine *, int fd, void *memory, uint32_t size, int flags,
                      int poll_first);
int ut_prep_send(struct ut_engine *, int fd, const char *data, uint32_t size, int flags);
int ut_try_send(int fd, const char *data, size_t size);
int ut_try_recv(int fd, void *memory, size_t size);
int ut_try_poll(int fd, int events);
uint64_t ut_network_of(const struct ut_engine *, int fd);
int ut_prep_send_from(struct ut_engine *, int fd, const char *data, size_t offset,
                      uint32_t size, int flags);
int ut_prep_read(struct ut_engine *, int fd, unsigned group, uint32_t size, int poll_first);
int ut_prep_write(struct ut_engine *, int fd, const char *data, uint32_t size, int unused);
int ut_prep_recvmsg(struct ut_engine *, int fd, struct ut_message *, int flags, int poll_first);
int ut_prep_sendmsg(struct ut_engine *, int fd, struct ut_message *, int flags);
int ut_prep_accept(struct ut_engine *, int fd, struct ut_message *, int flags, int poll_first);
int ut_prep_accept_fd(struct ut_engine *, int fd, int flags, int multishot);
int ut_try_accept(int fd, int flags);
int ut_prep_connect(struct ut_engine *, int fd, struct ut_message *);
int ut_prep_poll(struct ut_engine *, int fd, uint32_t events, int multishot);
int ut_prep_timeout(struct ut_engine *, int64_t timeout_ns);

struct ut_probe {
    int error;
    const char *stage;
    unsigned setup_flags, features, sq_entries, cq_entries;
    uint8_t opcodes[256];
    unsigned opcode_count;
};
void ut_probe_run(const struct ut_kernel *, struct ut_config *, int64_t timeout_ns,
                  struct ut_probe *out);
int ut_probe_setup(const struct ut_kernel *, unsigned sq_entries, unsigned cq_entries);
