/* What the files of the network without a kernel share; for users there is net.h. */
#ifndef UT_TESTS_NET_INSIDE_H
#define UT_TESTS_NET_INSIDE_H

#include <netinet/in.h>
#include <poll.h>
#include <sys/types.h>
#include <sys/un.h>

#include "net.h"

/* The keys of Linux's wake-ups. */
#define NET_KEY_READ (POLLIN | POLLPRI | POLLRDNORM | POLLRDBAND)
#define NET_KEY_WRITE (POLLOUT | POLLWRNORM | POLLWRBAND)
#define NET_KEY_ANY 0u

/* Bits of a file's `shut`. */
#define NET_SHUT_RECEIVE 1u
#define NET_SHUT_SEND 2u
#define NET_SHUT_BOTH (NET_SHUT_RECEIVE | NET_SHUT_SEND)

enum net_state {
    NET_CLOSED, /* also: not yet connected */
    NET_LISTENING,
    NET_SYN_SENT,
    NET_ESTABLISHED,
    NET_FIN_WAIT, /* our end has been sent, and perhaps not yet been taken */
    NET_FIN_TAKEN,
    NET_CLOSE_WAIT, /* theirs has come */
    NET_CLOSING,    /* and ours had been sent before, and is not yet taken */
    NET_LAST_ACK,   /* and ours was sent then, and is not yet taken */
};

union net_address {
    struct sockaddr any;
    struct sockaddr_un local;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_storage storage;
};

struct net_name {
    socklen_t length; /* 0: there is none */
    union net_address at;
};

/* Descriptors under way: duplicates, which are ours. */
#define NET_RIGHTS_MAX 253
struct net_rights {
    int count;
    int numbers[NET_RIGHTS_MAX];
};

/* What lies in a queue, or is under way: some bytes of a stream, a datagram, an entry of an
 * error queue, or a connection that nobody has accepted yet. */
struct net_piece {
    struct net_piece *next;
    struct net_file *from;  /* whose memory it takes until it is gone; or NULL */
    struct net_file *child; /* the connection */
    size_t size, start;     /* bytes; of them taken already */
    size_t cost;            /* bytes of memory */
    struct net_rights *rights;
    bool has_credentials;
    struct ucred credentials;
    struct net_name name; /* whom it is from */
    struct net_name to;   /* what it was sent to */
    /* TCP */
    uint64_t sequence; /* of its first byte */
    bool is_urgent;    /* its last byte */
    bool is_end;       /* the stream ends behind it */
    /* UDP */
    bool is_wrong; /* its checksum */
    /* of an error queue */
    int error;
    uint8_t origin, type, code;
    uint32_t info, data_number;
    bool is_stamp;
    char data[];
};

struct net_queue {
    struct net_piece *first, *last;
    unsigned count;
    size_t cost;
};

struct net_unix {
    struct net_piece *urgent;     /* in the receive queue */
    size_t queued;                /* bytes, as FIONREAD tells them */
    struct net_file *waits_for;   /* the full receiver that is to tell us of space */
    struct net_file *waiters;     /* and those who wait for us, the last comer first */
    struct net_file *next_waiter;
    uint64_t device, node; /* of the path that it is bound to; node 0: none */
};

enum net_urgent {
    NET_URGENT_NONE,
    NET_URGENT_HERE,
    NET_URGENT_READ, /* by MSG_OOB, and not yet passed by the stream */
};

enum net_attempt {
    NET_UNCONNECTED,
    NET_CONNECTING,
    NET_CONNECTED,
    NET_DISCONNECTING,
};

struct net_tcp {
    enum net_attempt attempt;
    bool no_space; /* somebody wants to be told when there is room */
    bool has_end;  /* their end is in the queue */
    uint64_t written, sent, taken; /* bytes: by the sender, on their way, in their queue */
    uint64_t arrived, read;        /* of theirs: in our queue, by the reader */
    uint64_t announced;            /* of theirs: as far as they may send */
    uint64_t edge;                 /* of ours: as far as we may, as far as we know */
    struct net_queue out;          /* what their window has no room for */
    struct net_queue untaken;      /* how far each segment went, and what it costs */
    bool end_sent;
    enum net_urgent urgent;
    uint64_t urgent_at;
    char urgent_byte;
    unsigned tries;       /* of the first segment */
    uint64_t epoch;       /* of the connection: what is under way for an older one is lost */
    struct linger linger; /* as last seen */
};

struct net_udp {
    bool is_connected;
};

struct net_kind {
    int (*sendmsg)(struct net_file *file, const struct msghdr *message, int flags);
    int (*recvmsg)(struct net_file *file, struct msghdr *message, int flags);
    int (*connect)(struct net_file *file, const struct sockaddr *name, socklen_t length);
    struct net_file *(*accept)(struct net_file *file, int *error);
    int (*shutdown)(struct net_file *file, int how);
    int (*ioctl)(struct net_file *file, unsigned long request, int *value);
    void (*space)(struct net_file *file); /* its limit has been set: wake who may write */
    uint32_t (*poll)(struct net_file *file, uint32_t events);
    void (*close)(struct net_file *file);
    void (*option)(struct net_file *file, int level, int option); /* has been set; or NULL */
};
extern const struct net_kind net_kind_unix_stream, net_kind_unix_message, net_kind_tcp,
    net_kind_udp;

#define NET_OPTIONS 16

struct net_file {
    struct net_file *next; /* of all, the oldest first */
    const struct net_kind *kind;
    uint64_t inode; /* of the placeholder; 0: it has none yet */
    int number;     /* a descriptor of it, when last looked: */
    uint64_t looked_at; /* in this call */
    unsigned holds;
    int family, type;
    bool is_closed, is_reached;
    bool is_waiting; /* in a queue of connections: nobody can sleep on it */
    enum net_state state;
    unsigned shut;
    int error; /* to be told once */
    struct net_name own;   /* where that is not what the placeholder is bound to: */
    struct net_name bound; /* as last seen */
    struct net_name peer_name;
    struct net_file *peer;
    struct net_file *queued_at; /* the listener of a connection that was not accepted yet */
    struct net_queue in, errors;
    size_t memory; /* bytes: what was sent and is not gone */
    uint64_t last_due_ns; /* of what is under way: to a TCP file, from a UDP one */
    uint32_t stamps;      /* sends that were stamped */
    struct {
        int level, option, value;
    } remembered[NET_OPTIONS];
    struct net_unix un;
    struct net_tcp tcp;
    struct net_udp udp;
};

extern struct net_file *net_files;

/* ---- files, options, names --------------------------------------------------- */

struct net_file *net_make(int family, int type);
void net_wake_up(struct net_file *file, uint32_t key);
unsigned net_draw(bool allowed, unsigned below); /* 0 where it is not allowed */
/* How much of so many bytes of a stream is moved; all, where it must not be less. */
size_t net_draw_size(size_t size, bool may_be_less);
/* Another process on the file may take what has just come: up to so many bytes of it. */
void net_draw_stranger(struct net_file *file, size_t size);
int net_option(struct net_file *file, int level, int option); /* an int, as last seen */
bool net_refresh(struct net_file *file);                      /* is it listening by now? */
int net_backlog(struct net_file *file);
bool net_bind_somewhere(struct net_file *file); /* a name that nobody else has */
void net_own_name(struct net_file *file, struct net_name *name);
bool net_is_root(struct net_file *file); /* held, or open elsewhere than in a message */
struct net_file *net_known(int fd);      /* its file, if it is one by now */
void net_collect(void);                  /* those that only messages reach, and no one reads */
void net_forget_numbers(void); /* some have been closed */
void net_learn_all(void); /* of sockets that no call has named yet */
bool net_is_nonblocking(struct net_file *file);
/* Writes who a message is from, as far as there is room. */
void net_say_name(struct msghdr *message, const struct net_name *name);

/* ---- pieces and queues ------------------------------------------------------- */

struct net_piece *net_new_piece(size_t size);
void net_free_piece(struct net_piece *piece); /* its memory is not given back */
void net_push(struct net_queue *queue, struct net_piece *piece);
struct net_piece *net_shift(struct net_queue *queue);
void net_unlink(struct net_queue *queue, struct net_piece *piece);
void net_empty(struct net_queue *queue, bool counts); /* as lost bytes, if it does */
/* The connection that has waited for longest in a listener's queue, which is not empty. */
struct net_file *net_shift_connection(struct net_file *listener);

/* ---- messages ---------------------------------------------------------------- */

/* Bytes from..from+size-1 of a message's buffers: copied out of, or into them. */
void net_gather(const struct msghdr *message, size_t from, char *to, size_t size);
void net_scatter(const struct msghdr *message, size_t from, const char *data, size_t size);

/* A receive's control messages, written as Linux does: what does not fit is cut. */
struct net_control {
    struct msghdr *message;
    char *at;
    size_t left;
};
size_t net_control_room(void); /* of the running receive */
void net_control_begin(struct net_control *control, struct msghdr *message);
void net_control_put(struct net_control *control, int level, int type, const void *data,
                     size_t size);
void net_control_put_rights(struct net_control *control, struct net_rights *rights, int flags);
void net_control_end(struct net_control *control);

/* What a send's control messages carry. */
struct net_ancillary {
    struct net_rights *rights;
    bool has_credentials;
    struct ucred credentials;
};
int net_read_ancillary(const struct msghdr *message, bool rights_allowed,
                       struct net_ancillary *ancillary);
struct net_rights *net_copy_rights(const struct net_rights *rights);
void net_drop_rights(struct net_rights *rights); /* closes them */

/* ---- time -------------------------------------------------------------------- */

enum net_event {
    NET_EVENT_SEGMENT,
    NET_EVENT_TAKEN, /* it was taken, and how far the window goes */
    NET_EVENT_RESET,
    NET_EVENT_SYN,
    NET_EVENT_SYN_TAKEN,
    NET_EVENT_JOINED, /* the last of the three: the listener has a connection */
    NET_EVENT_GIVE_UP,
    NET_EVENT_DATAGRAM,
    NET_EVENT_UNREACHABLE,
};

struct net_under_way {
    struct net_under_way *next;
    uint64_t due_ns;
    enum net_event event;
    struct net_file *to, *from;
    struct net_piece *piece;
    uint64_t epoch_to, epoch_from;
    /* Of TCP, of the sender: */
    uint64_t arrived, announced;
    bool has_end;
};

uint64_t net_now_ns(void);
uint64_t net_delay_ns(void); /* drawn: 0 is plain */
void net_post(struct net_under_way event);
void net_tcp_event(struct net_under_way *event);
void net_tcp_join(struct net_file *one, struct net_file *other); /* connected from now on */
void net_udp_event(struct net_under_way *event);
void net_udp_join(struct net_file *one, struct net_file *other);

/* ---- errors ------------------------------------------------------------------ */

/* An entry of the error queue: wakes whoever waits, and stays until it is read. */
void net_queue_error(struct net_file *file, struct net_piece *entry);
int net_receive_error(struct net_file *file, struct msghdr *message);
/* A send of `piece`'s bytes is to be stamped, if somebody has asked for that. */
void net_stamp(struct net_file *file, const char *data, size_t size, size_t headers);

/* Addresses: what is here, what is nowhere. */
enum net_place { NET_PLACE_HERE, NET_PLACE_SILENT, NET_PLACE_NONE };
enum net_place net_place_of(const struct net_name *name);
/* The name that a packet to `to` comes from. */
void net_source_name(struct net_file *file, const struct net_name *to, struct net_name *name);
/* As a socket of this family says it: mapped, where IPv6 says an IPv4 address. */
void net_name_as(int family, struct net_name *name);
int net_check_name(struct net_file *file, const struct sockaddr *name, socklen_t length,
                   struct net_name *to);
bool net_same_port(const struct net_name *one, const struct net_name *other);
bool net_same_name(const struct net_name *one, const struct net_name *other);
bool net_is_any(const struct net_name *name);
bool net_is_v4(const struct net_name *name); /* also one that is mapped */

/* ---- books ------------------------------------------------------------------- */

void net_count_sent(size_t bytes);
void net_count_received(size_t bytes);
void net_count_lost(size_t bytes);

#endif
