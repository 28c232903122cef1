/*
 * The same calls on real sockets and on the network without a kernel.
 *
 * A slot is a socket on both sides. Each call here makes the system call on the real one and its
 * counterpart on ours, fails the test where the answers differ, and returns the answer. After
 * each call everything that can be seen of every slot must be the same: the bits of poll(2),
 * FIONREAD, and the wake-ups with their keys, which a multishot poll of io_uring's shows on the
 * real side: it tells the key of one wake-up, and of several what poll(2) then tells.
 */
#ifndef UT_TESTS_NET_SIDES_H
#define UT_TESTS_NET_SIDES_H

#include "net_inside.h"

#define SIDES_SLOTS 16
#define SIDES_EVENTS                                                          \
    (POLLIN | POLLOUT | POLLPRI | POLLERR | POLLHUP | POLLRDNORM | POLLWRNORM | POLLRDBAND |      \
     POLLWRBAND | POLLRDHUP)

struct sides_slot {
    bool is_open;
    int family, type;
    int real, ours;
    struct net_file *file;
    bool is_watched;
    bool was_connected, was_disconnected;
};
extern struct sides_slot sides_slots[SIDES_SLOTS];

/* What differs between the sides by design is not compared. */
struct sides_rules {
    bool no_wakes;   /* the wake-ups */
    bool no_writing; /* whether it can be written */
    bool no_watches; /* nothing is watched: so no look of io_uring's disturbs */
    bool no_bits;    /* poll(2)'s bits: a look for writing is a step of its own to Linux */
    bool no_queued;  /* FIONREAD, which throws a datagram with a wrong checksum away */
};
extern struct sides_rules sides_rules;

/* Why it cannot be run here; NULL: it can. */
const char *sides_obstacle(void);
void sides_forget(void); /* closes what a failed test has left */
/* -1: io_uring is not to be had here. */
int sides_begin(void);
void sides_end(void); /* closes everything; the books must be balanced */

void sides_open(int slot, int family, int type);
void sides_pair(int slot, int other, int family, int type);
int sides_bind(int slot);                  /* to a name of its own */
int sides_bind_to(int slot, int other);    /* to what another slot is bound to */
int sides_listen(int slot, int backlog);
int sides_connect(int slot, int other);    /* -1: AF_UNSPEC */
int sides_accept(int slot, int into);      /* the answer: 0 or -errno */
int sides_shutdown(int slot, int how);
void sides_close(int slot);
int sides_set(int slot, int level, int option, int value);
int sides_get(int slot, int level, int option);
int sides_linger(int slot, int seconds);
void sides_blocking(int slot, bool is_blocking);
int sides_mark(int slot); /* SIOCATMARK */
int sides_names(int slot);

struct sides_send {
    size_t size;
    int flags;
    int to;        /* a slot, or -1: nobody is named */
    int rights[4]; /* slots whose descriptors go with it; -1: one of no socket */
    int rights_count;
    bool has_credentials; /* our own go with it */
    const char *source;   /* the IPv4 address that it is to come from */
};
int sides_send(int slot, struct sides_send what);
int sides_write(int slot, size_t size); /* without flags */

struct sides_received {
    int result, flags;
    int from;   /* a slot; -1: somebody else; -2: no name */
    int rights; /* how many descriptors */
    size_t control;
    char messages[400]; /* the control messages, but for what is of one side only */
    char data[220000];
};
extern struct sides_received sides_received;
int sides_receive(int slot, size_t room, int flags);
/* With so much room for control messages. */
int sides_receive_with(int slot, size_t room, int flags, size_t control);

/* So much later: ours at once, the real side when that time has passed. */
void sides_later(uint64_t ns);

/* A datagram with a wrong checksum comes to it; false: we may not send one. */
bool sides_bad_datagram(int slot, size_t size);

/* One side by itself, where figures differ: 0 is the real one, 1 ours. */
int sides_one_send(int side, int slot, const char *data, size_t size);
int sides_one_receive(int side, int slot, char *data, size_t room);
unsigned sides_one_bits(int side, int slot);
int sides_one_queued(int side, int slot);
/* Bytes of memory that a sender has taken, and its limit. */
void sides_one_memory(int side, int slot, size_t *taken, size_t *limit);
/* The keys that have woken it since the last time; the real side is given time for it. */
unsigned sides_one_woken(int side, int slot);

/* The bits of a slot, which are those of both sides. */
unsigned sides_bits(int slot);
/* What the last call has woken on a slot: a key, or what was told of several; 0: nothing. */
unsigned sides_woken(int slot);

/* Bytes by their place in a stream, so that none can be lost, doubled or moved unseen. */
char sides_byte_at(size_t place);

/* What was done, for who reads a failure. */
void sides_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void sides_print(void);

#endif
