/*
 * `uring_trio._hot`: the hot paths of the trio door in C.
 *
 * It is optional: where it is not, Python does all of it. So nothing here decides what Python does
 * not decide in the same way, and no state is kept that Python does not see. The *hot fields* of
 * operations, lines, endpoints and slots lie in C structs (fields.c), and the classes of Python
 * inherit them: both read and write the same ones. C takes only what is *plain*, and hands all else
 * to the Python that does it anyway (`deliver` in _operations.py, `Operation.complete`, the streams'
 * methods). tests/test_hot.py walks every combination of what plain depends on through both.
 *
 * An object is one of ours if its type is exactly the one that Python has made known (`know`): then
 * its struct may be looked into. A field that was never set is NULL; nothing is plain then.
 *
 * All of it runs with the GIL, which nothing here releases, and no Python code runs between two
 * stores but where a comment says so: a signal's handler cannot come in between.
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
    PyObject *table, *wake;
    long tick;
    unsigned long long records; /* address of the batch's; 0: gone */
    unsigned long long pool;    /* address of the receive buffers; 0: gone */
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
    long smallest_buffer, receive_size;
};
extern struct known known;

/* Names that are looked up. */
struct names {
    PyObject *close, *complete, *data, *endpoint, *enter, *fit_buffers, *max_bytes, *pinned;
    PyObject *send, *socket, *task, *task_scheduled, *throw;
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

/* What `send` of a coroutine returns or raises, for how it went; takes the result over. */
PyObject *as_yielded(PySendResult how, PyObject *result);

/* What `throw` of a coroutine was called with is raised. */
void raise_thrown(PyObject *arguments);

#endif
