/*
 * `uring_trio._hot`: the hot paths of streams and of callback servers in C.
 *
 * It is optional: where it is not, Python does all of it. So nothing here decides what Python does
 * not decide in the same way, and no state is kept that Python does not see. The *hot fields* of
 * operations, lines, endpoints and slots, and of a callback server's connections, lie in C structs
 * (fields.c), and the classes of Python inherit them: both read and write the same ones. C takes
 * only what is *plain*, and hands all else to the Python that does it anyway (`deliver` in
 * _operations.py, `Operation.complete`, the streams' methods; `Connection.settle` and what a
 * `Method` is made of). The tests walk every combination of what plain depends on through both.
 *
 * An object is one of ours if its type is exactly the one that Python has made known (`know`): then
 * its struct may be looked into. A field that was never set is NULL; nothing is plain then.
 *
 * All of it runs with the GIL, which nothing here releases but the send of a worker's turn (sweep.c),
 * and no Python code runs between two stores but where a comment says so: a signal's handler cannot
 * come in between.
 */
#ifndef UT_HOT_H
#define UT_HOT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../table.h"

#include <structmember.h>

/* ---- hot fields (fields.c) ---- */

struct operation {
    PyObject_HEAD
    PyObject *line, *raise_cancel, *task, *trap;
    long slot, tick;
};

struct receive {
    struct operation operation;
    long size;
};

struct send {
    struct operation operation;
    PyObject *pinned;
    long flags;
};

struct line {
    PyObject_HEAD
    PyObject *backlog, *current, *fileno, *slots, *spare, *waiting;
};

struct receiver {
    struct line line;
    PyObject *plain_receive, *prep_receive;
    int group, small_in_a_row;
    char poll_first;
};

struct sender {
    struct line line;
    PyObject *prep_send;
};

struct endpoint {
    PyObject_HEAD
    PyObject *manager, *owner, *receiver, *sender;
};

struct slots {
    PyObject_HEAD
    PyObject *buffers, *table, *wake;
    long tick;
    unsigned long long records; /* address of the batch's; 0: gone */
    unsigned long long pool;    /* address of the receive buffers; 0: gone */
};

/* ---- those of a callback server ---- */

struct inbound {
    PyObject_HEAD
    PyObject *buffer, *pool, *state, *watch;
    Py_ssize_t fresh, lease_at, lease_size;
};

struct outbound {
    PyObject_HEAD
    PyObject *pieces, *sending, *state;
    Py_ssize_t size, written;
};

struct life {
    PyObject_HEAD
    long long user; /* a thread's ident, or none's: 0 or less */
};

struct link {
    PyObject_HEAD
    PyObject *connection;
    long fd, readable, receive_slot;
};

struct turn {
    PyObject_HEAD
    PyObject *callbacks, *dirty, *more, *ready, *slots, *task, *try_send, *wrote;
    long long bytes_in, bytes_out;
    char parked;
};

struct connection {
    PyObject_HEAD
    PyObject *conn, *inbound, *link, *outbound, *turn, *way;
    char ready;
};

struct handle {
    PyObject_HEAD
    PyObject *inbound, *owner, *subject;
};

int add_fields(PyObject *module);

/* Puts a value into a field; takes the reference over. What was there is let go of last. */
static inline void put(PyObject **field, PyObject *value)
{
    PyObject *before = *field;
    *field = value;
    Py_XDECREF(before);
}

static inline void put_none(PyObject **field)
{
    Py_INCREF(Py_None);
    put(field, Py_None);
}

static inline bool is_none(const PyObject *field)
{
    return field == Py_None;
}

/* Whether nobody stands behind the current operation. Python's `waiting` is empty, or (). */
static inline bool nobody_waits(PyObject *waiting)
{
    return waiting != NULL && PyObject_Size(waiting) == 0;
}

/* ---- what Python has made known (module.c) ---- */

struct known {
    PyObject *Receive, *ReceiveInto, *Send, *Receiver, *Sender, *Slots, *Endpoint, *UringSocket;
    PyObject *unpin, *unpin_memory; /* functions of `_memory` */
    PyObject *run_context;
    PyObject *park_frame, *receive_frame, *send_frame; /* functions: a frame to be shown of a sleeper */
    /* Of _streams.py: the methods, for what is not plain, and what its end means. */
    PyObject *receive_some, *send_all, *end_receive, *end_send;
    /* Descriptors of trio's Task and Runner. */
    PyObject *task_coro, *task_runner, *task_next_send_fn, *task_next_send, *task_abort_func;
    PyObject *task_sleep_data, *runner_io_manager;
    PyObject *guard_name, *held_name, *stdlib_name; /* of trio's attributes */
    /* Of a callback server: classes, and members of its tables. */
    PyObject *Inbound, *Outbound, *Life, *RingLink, *Turn, *Connection;
    PyObject *plain_input, *plain_output, *idle, *way_settled, *way_small, *way_large;
    PyObject *try_send; /* of _beside.py; in C it is the table's */
    const struct ut_table *table;
    long smallest_buffer, receive_size;
};
extern struct known known;

/* Names that are looked up. */
struct names {
    PyObject *attend, *calls, *close, *complete, *data, *drop, *endpoint, *enter, *fd, *fit_buffers;
    PyObject *intake, *look_at_more, *make_spare, *max_bytes, *on_read, *on_write, *outlet, *pinned;
    PyObject *raised, *ready, *send, *send_next, *send_rest_of, *settle, *socket, *soon, *stash;
    PyObject *take_piece, *task, *task_scheduled, *throw, *watch, *way;
    PyObject *keep_input, *leaves, *serve_large, *sweep_dirty; /* private methods of a turn */
};
extern struct names names;

/* A field of trio's, by its descriptor. */
PyObject *get_by(PyObject *descriptor, PyObject *object);
int set_by(PyObject *descriptor, PyObject *object, PyObject *value);

/* ---- the engine (door.c) ---- */

int add_door(PyObject *module);

/* The engine that a preparing function is of; NULL if it is none of ours, or its ring is closed. */
struct door {
    PyObject_HEAD
    const struct ut_table *table;
    struct ut_engine *engine;
    PyObject *send_others;
};
struct door *receiving_door(PyObject *prepare);
struct door *sending_door(PyObject *prepare);

/* ---- how a task is woken (wake.c) ---- */

int add_waker(PyObject *module);

/* ``wake(task, value)``, with the value's reference taken over; -1 with an exception. */
int wake(PyObject *wake, PyObject *task, PyObject *value);

/* ---- what came, and what is begun ---- */

PyObject *deliver(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *route(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

/* The batch that ``name(slots, count)`` was called with: its slots, or NULL with an exception. */
struct slots *batch_of(const char *name, PyObject *const *arguments, Py_ssize_t argument_count,
                       long *count);
/* Who stands at a slot: borrowed; NULL with an exception. */
PyObject *occupant_of(struct slots *slots, uint32_t slot);
/* Nobody stands there any more. */
int empty_slot(struct slots *slots, uint32_t slot);
/* Not plain: the occupant's own `complete`. */
int complete(PyObject *occupant, const struct ut_record *record);

/* An operation of a stream's that was begun: a new reference; Py_None: it is not plain, and nothing
 * was done; NULL: an exception. */
PyObject *begin_receive(PyObject *stream, PyObject *max_bytes);
PyObject *begin_send(PyObject *stream, PyObject *data);

/* ---- what a task awaits (park.c) ---- */

int add_parking(PyObject *module);
PyObject *park(PyObject *module, PyObject *trap);

/* ---- the streams' methods (call.c) ---- */

int add_call(PyObject *module);
PyObject *methods_of_stream(PyObject *module, PyObject *type);

/* ---- methods that are C's where they are plain (method.c) ---- */

int add_methods(PyObject *module);

/* A new reference; NULL without an exception: it is not plain, and nothing was done. */
typedef PyObject *(*plain_way)(PyObject *self, PyObject *const *arguments, Py_ssize_t count);

PyObject *turn_sweep_ready(PyObject *self, PyObject *const *arguments, Py_ssize_t count);
PyObject *turn_sweep_dirty(PyObject *self, PyObject *const *arguments, Py_ssize_t count);
PyObject *turn_sweep_wrote(PyObject *self, PyObject *const *arguments, Py_ssize_t count);
PyObject *turn_send_now(PyObject *self, PyObject *const *arguments, Py_ssize_t count);
PyObject *conn_next(PyObject *self, PyObject *const *arguments, Py_ssize_t count);
PyObject *conn_read(PyObject *self, PyObject *const *arguments, Py_ssize_t count);
PyObject *conn_write(PyObject *self, PyObject *const *arguments, Py_ssize_t count);

static inline bool is_of(const PyObject *object, const PyObject *kind)
{
    return object != NULL && (const PyObject *)Py_TYPE(object) == kind;
}

static inline bool is_list(PyObject *object)
{
    return object != NULL && PyList_CheckExact(object);
}

/* Calls a method for what it does; -1 with an exception. */
int call_method(PyObject *object, PyObject *name, PyObject *argument);

/* What `send` of a coroutine returns or raises, for how it went; takes the result over. */
PyObject *as_yielded(PySendResult how, PyObject *result);

/* What `throw` of a coroutine was called with is raised. */
void raise_thrown(PyObject *arguments);

#endif
