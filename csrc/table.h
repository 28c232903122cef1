/*
 * What another extension calls of this engine.
 *
 * The engine is there once in a process: its fork counter is, and whoever else needs it must
 * not bring one of his own. So it gives out the address of a table, and `_hot` (csrc/hot)
 * calls through that. What may be called there is in prep.h and beside.h.
 */
#ifndef UT_TABLE_H
#define UT_TABLE_H

#include "prep.h"

/* Raised with every change of this file and of struct ut_record: an extension that was built
 * at another time is refused. */
#define UT_TABLE_VERSION 2

struct ut_table {
    int version;
    int (*recv)(struct ut_engine *engine, int fd, unsigned group, uint32_t size, int poll_first);
    int (*send)(struct ut_engine *engine, int fd, const char *data, uint32_t size, int flags);
    int (*try_send)(int fd, const char *data, size_t size);
};

const struct ut_table *ut_table(void);

#endif
