/* What UNIX streams and UNIX messages share. */
#ifndef UT_TESTS_NET_UNIX_H
#define UT_TESTS_NET_UNIX_H

#include "net_inside.h"

/* Takes memory of the sender's: false, and the error, if it may not send. */
bool unix_charge(struct net_file *file, struct net_piece *piece, int *error);
/* The piece is gone: its memory is given back, which may wake its sender. */
void unix_free(struct net_piece *piece);
void unix_purge(struct net_file *file);
bool unix_is_writable(const struct net_file *file);
bool unix_is_full(struct net_file *file); /* its receive queue */
/* The file of a name, of this type: or -errno in `error`. */
struct net_file *unix_find(const struct sockaddr *name, socklen_t length, int type, int *error);
int unix_check_name(const struct sockaddr *name, socklen_t length);
size_t unix_message_cost(size_t size);
size_t unix_segment_cost(size_t size);
void unix_name_of(struct net_file *file, struct msghdr *message);
/* Credentials go with it if one of both asks for them, or the sender has given some. */
void unix_sign(struct net_file *file, struct net_file *to, struct net_piece *piece,
               const struct net_ancillary *ancillary);
bool unix_wants_credentials(struct net_file *file);
void unix_control_out(struct net_file *file, struct msghdr *message, const struct net_piece *piece,
                      struct net_rights *rights, int flags);
uint32_t unix_state_bits(const struct net_file *file);
int unix_connect(struct net_file *file, const struct sockaddr *name, socklen_t length);
struct net_file *unix_accept(struct net_file *file, int *error);
int unix_shutdown(struct net_file *file, int how);
void unix_space(struct net_file *file);
void unix_close(struct net_file *file);
/* Those who wait for space in the queue of `file` are woken, and wait no more. */
void unix_wake_senders(struct net_file *file, uint32_t key);
void unix_wait_no_more(struct net_file *file);
int unix_join_message(struct net_file *file, const struct sockaddr *name, socklen_t length);

#endif
