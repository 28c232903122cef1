/* All that Python may call of the engine; the comments are in the headers. */

typedef int... socklen_t;
struct sockaddr_storage { ...; };
struct sockaddr;
struct msghdr;
struct pollfd;
struct io_uring_params;
struct ut_kernel {
    int (*setup)(unsigned entries, struct io_uring_params *params);
    int (*enter)(int ring_fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                 const void *arg, size_t arg_size);
    int (*register_op)(int ring_fd, unsigned opcode, void *arg, unsigned nr_args);
    int (*map)(void **address, size_t size, int ring_fd, uint64_t offset);
    int (*allocate)(void **address, size_t size, int dontfork);
    void (*unmap)(void *address, size_t size);
    int (*close_fd)(int fd);
    uint64_t (*now_ns)(void);
    int (*sendto)(int fd, const void *data, size_t size, int flags, const struct sockaddr *name,
                  socklen_t length);
    int (*recvfrom)(int fd, void *memory, size_t size, int flags, struct sockaddr *name,
                    socklen_t *length);
    int (*sendmsg)(int fd, const struct msghdr *message, int flags);
    int (*recvmsg)(int fd, struct msghdr *message, int flags);
    int (*accept4)(int fd, struct sockaddr *name, socklen_t *length, int flags);
    int (*connect)(int fd, const struct sockaddr *name, socklen_t length);
    int (*shutdown)(int fd, int how);
    int (*getsockopt)(int fd, int level, int option, void *value, socklen_t *length);
    int (*setsockopt)(int fd, int level, int option, const void *value, socklen_t length);
    int (*getsockname)(int fd, struct sockaddr *name, socklen_t *length);
    int (*getpeername)(int fd, struct sockaddr *name, socklen_t *length);
    int (*read)(int fd, void *memory, size_t size);
    int (*write)(int fd, const void *data, size_t size);
    int (*poll)(struct pollfd *files, unsigned count, int timeout_ms);
    int (*status_flags)(int fd);
    int (*queued)(int fd);
    int (*mode)(int fd);
};
extern const struct ut_kernel *ut_kernel_in_use;

struct ut_record { uint32_t slot; int32_t res; uint32_t flags; uint32_t offset; };

struct ut_group_config { unsigned entries; uint32_t buffer_size; };
struct ut_config {
    unsigned sq_entries, cq_entries, sq_entries_min;
    struct ut_group_config groups[3];
    uint64_t long_tick_ns;
};

struct ut_ring { int fd; ...; };
struct ut_spin { unsigned credit, misses; };
struct ut_engine { struct ut_ring ring; struct ut_record *records; unsigned record_capacity;
                   char *pool; size_t pool_size; uint64_t failed_enters; struct ut_spin spin;
                   uint32_t in_flight, lingering;
                   ...; };

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
int ut_engine_leaves(struct ut_engine *);
void ut_engine_submit(struct ut_engine *);
int ut_engine_cancel(struct ut_engine *, uint32_t slot);
int ut_engine_register_eventfd(struct ut_engine *, int event_fd);
enum { UT_LOOK_NOTHING, UT_LOOK_SOMETHING, UT_LOOK_NO_MEMORY };
int ut_engine_look(struct ut_engine *);
size_t ut_engine_unsubmitted(const struct ut_engine *);
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
int ut_prep_send_from(struct ut_engine *, int fd, const char *data, size_t offset,
                      uint32_t size, int flags);
int ut_prep_read(struct ut_engine *, int fd, unsigned group, uint32_t size, int poll_first);
int ut_prep_write(struct ut_engine *, int fd, const char *data, uint32_t size, int unused);
int ut_prep_recvmsg(struct ut_engine *, int fd, struct ut_message *, int flags, int poll_first);
int ut_prep_sendmsg(struct ut_engine *, int fd, struct ut_message *, int flags);
int ut_prep_accept(struct ut_engine *, int fd, struct ut_message *, int flags, int poll_first);
int ut_prep_accept_fd(struct ut_engine *, int fd, int flags);
int ut_prep_connect(struct ut_engine *, int fd, struct ut_message *);
int ut_prep_poll(struct ut_engine *, int fd, uint32_t events, int multishot);
int ut_prep_timeout(struct ut_engine *, int64_t timeout_ns);

struct ut_name { socklen_t length; struct sockaddr_storage storage; ...; };
int ut_try_send(int fd, const char *data, size_t size);
int ut_try_send_to(int fd, const char *data, size_t size, int flags, const char *name,
                   size_t name_length);
int ut_try_recv(int fd, void *memory, size_t size);
int ut_try_recv_from(int fd, void *memory, size_t size, int flags, struct ut_name *from);
int ut_try_sendmsg(int fd, const struct ut_message *message, int flags);
int ut_try_send_with(int fd, const char *data, size_t size, const char *name, size_t name_length,
                     const char *control, size_t control_size);
int ut_try_recvmsg(int fd, struct ut_message *message, int flags);
int ut_read(int fd, void *memory, size_t size);
int ut_write(int fd, const char *data, size_t size);
int ut_try_accept(int fd, int flags, struct ut_name *peer);
int ut_connect(int fd, const char *name, size_t length);
int ut_shutdown(int fd, int how);
int ut_close(int fd);
int ut_try_poll(int fd, int events);
int ut_poll(int fd, int events, int timeout_ms);
int64_t ut_getsockopt(int fd, int level, int option);
int ut_setsockopt(int fd, int level, int option, int value);
int ut_setsockopt_bytes(int fd, int level, int option, const char *value, size_t size);
int ut_own_name(int fd, struct ut_name *name);
int ut_peer_name(int fd, struct ut_name *name);
int ut_status_flags(int fd);
int ut_queued(int fd);
int ut_mode(int fd);
uint64_t ut_network_of(const struct ut_kernel *kernel, int fd);

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

struct ut_table { int version; ...; };
const struct ut_table *ut_table(void);
