/*
 * A worker's turn, for connections that have the short way through it: three loops of gain/_turn.py,
 * which says what is told and sent when.
 *
 * A callback may do anything to anybody: close, write, abort, raise. So nothing that was read before
 * a call into Python is believed after it, and what is in hand is held. An exception leaves the lists
 * as they are where it comes from, as the loops in Python do.
 */
#include "hot.h"

/* ---- callbacks ---- */

/* What a callback has raised, if it is its connection's to tell of; else it goes on. */
static int tell_raised(PyObject *connection, PyObject *name)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyObject *type, *value, *traceback, *old_type, *old_value, *old_traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    /* It is what is handled now, as in an `except`. */
    PyErr_GetExcInfo(&old_type, &old_value, &old_traceback);
    Py_XINCREF(type);
    Py_XINCREF(value);
    Py_XINCREF(traceback);
    PyErr_SetExcInfo(type, value, traceback);
    PyObject *calls = PyObject_GetAttr(connection, names.calls);
    PyObject *done =
        calls != NULL ? PyObject_CallMethodObjArgs(calls, names.raised, name, value, NULL) : NULL;
    PyErr_SetExcInfo(old_type, old_value, old_traceback);
    Py_XDECREF(calls);
    Py_XDECREF(done);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return done != NULL ? 0 : -1;
}

static int call_back(PyObject *callback, struct connection *connection, PyObject *name,
                     Py_ssize_t size)
{
    PyObject *number = PyLong_FromSsize_t(size), *conn = connection->conn, *done = NULL;
    if (conn == NULL)
        PyErr_SetString(PyExc_AttributeError, "conn");
    else if (number != NULL) {
        Py_INCREF(conn);
        done = PyObject_CallFunctionObjArgs(callback, conn, number, NULL);
        Py_DECREF(conn);
    }
    Py_XDECREF(number);
    Py_XDECREF(done);
    return done != NULL ? 0 : tell_raised((PyObject *)connection, name);
}

/* ---- sending ---- */

/* As many of its bytes as the socket takes now, or an errno; *failed* with an exception. */
static long try_send(const struct turn *turn, PyObject *link, PyObject *data, Py_ssize_t size,
                     bool *failed)
{
    if (turn->try_send == known.try_send && known.table != NULL && is_of(link, known.RingLink)) {
        const char *bytes = PyBytes_AsString(data);
        int fd = (int)((struct link *)link)->fd, sent;
        Py_BEGIN_ALLOW_THREADS /* as cffi does: other threads have their go */
            sent = known.table->try_send(fd, bytes, (size_t)size);
        Py_END_ALLOW_THREADS
        return sent;
    }
    PyObject *fd = PyObject_GetAttr(link, names.fd), *answer = NULL;
    PyObject *whole = PyLong_FromSsize_t(size), *function = turn->try_send;
    Py_INCREF(function);
    if (fd != NULL && whole != NULL)
        answer = PyObject_CallFunctionObjArgs(function, fd, data, whole, NULL);
    Py_DECREF(function);
    Py_XDECREF(fd);
    Py_XDECREF(whole);
    long sent = answer != NULL ? PyLong_AsLong(answer) : -1;
    Py_XDECREF(answer);
    *failed = sent == -1 && PyErr_Occurred();
    return sent;
}

/* What to send next, off the queue; a new reference. */
static PyObject *take_piece(struct outbound *outbound)
{
    if (PyList_Size(outbound->pieces) != 1)
        return PyObject_CallMethodObjArgs((PyObject *)outbound, names.take_piece, NULL);
    PyObject *piece = PyList_GetItem(outbound->pieces, 0);
    Py_INCREF(piece);
    if (PyList_SetSlice(outbound->pieces, 0, 1, NULL) < 0)
        Py_CLEAR(piece);
    return piece;
}

static int send_rest_of(struct connection *connection, PyObject *data, long sent)
{
    PyObject *outlet = PyObject_GetAttr((PyObject *)connection, names.outlet);
    PyObject *number = PyLong_FromLong(sent), *done = NULL;
    if (outlet != NULL && number != NULL)
        done = PyObject_CallMethodObjArgs(outlet, names.send_rest_of, data, number, NULL);
    Py_XDECREF(outlet);
    Py_XDECREF(number);
    Py_XDECREF(done);
    return done != NULL ? 0 : -1;
}

/* With something to send, no send in flight, and references in the caller's hands. What the kernel
 * has taken is added to *total*. */
static int send_now(struct turn *turn, struct connection *connection, struct outbound *outbound,
                    bool tells_of_writes, long long *total)
{
    PyObject *pieces = outbound->pieces, *link = connection->link;
    Py_INCREF(pieces);
    Py_INCREF(link);
    bool failed = false;
    int result = -1;
    PyObject *data = take_piece(outbound);
    if (data != NULL && !PyBytes_CheckExact(data))
        PyErr_SetString(PyExc_TypeError, "a piece is no bytes");
    else if (data != NULL) {
        Py_ssize_t size = PyBytes_Size(data);
        long sent = try_send(turn, link, data, size, &failed);
        if (!failed && sent != size)
            result = send_rest_of(connection, data, sent);
        else if (!failed) {
            outbound->size -= size;
            *total += size;
            result = 0;
            if (tells_of_writes) {
                result = PyList_Append(turn->wrote, (PyObject *)connection);
                outbound->written += size;
            }
            /* More than one send's worth: others have their turn first. */
            if (result == 0 && PyList_Size(pieces) > 0)
                result = PyList_Append(turn->dirty, (PyObject *)connection);
        }
    }
    Py_XDECREF(data);
    Py_DECREF(pieces);
    Py_DECREF(link);
    return result;
}

/* ---- whether it is plain ---- */

static bool is_plain_turn(const struct turn *turn)
{
    return turn->callbacks != NULL && is_list(turn->dirty) && is_list(turn->ready) &&
           is_list(turn->more) && is_list(turn->wrote) && turn->try_send != NULL &&
           !is_none(turn->try_send);
}

static bool is_ours(const struct connection *connection)
{
    return is_of((const PyObject *)connection, known.Connection) &&
           is_of(connection->inbound, known.Inbound) &&
           is_of(connection->outbound, known.Outbound) && connection->link != NULL &&
           is_list(((struct outbound *)connection->outbound)->pieces) &&
           ((struct inbound *)connection->inbound)->buffer != NULL &&
           ((struct outbound *)connection->outbound)->sending != NULL;
}

static bool are_ours(PyObject *connections)
{
    bool all = true;
    for (Py_ssize_t i = 0; all && i < PyList_Size(connections); i++)
        all = is_ours((struct connection *)PyList_GetItem(connections, i));
    return all;
}

/* Whether a worker's handler has an ``on_write``; -1 with an exception. */
static int has_callback(const struct turn *turn, PyObject *name)
{
    PyObject *callback = PyObject_GetAttr(turn->callbacks, name);
    int result = callback == NULL ? -1 : !is_none(callback);
    Py_XDECREF(callback);
    return result;
}

/* ---- what handlers are to be told, and what they answer ---- */

/* One of another kind, or with another way. */
static int see_to(struct turn *turn, PyObject *connection)
{
    if (PyObject_SetAttr(connection, names.ready, Py_False) < 0)
        return -1;
    PyObject *way = PyObject_GetAttr(connection, names.way);
    if (way == NULL)
        return -1;
    bool is_large = way == known.way_large;
    Py_DECREF(way);
    return is_large ? call_method((PyObject *)turn, names.serve_large, connection)
                    : call_method(connection, names.settle, NULL);
}

static Py_ssize_t buffered(const struct inbound *inbound)
{
    PyObject *buffer = inbound->buffer;
    return inbound->lease_size + (is_none(buffer) ? 0 : PyObject_Size(buffer));
}

static int drop_all(struct inbound *inbound)
{
    PyObject *size = PyLong_FromSsize_t(buffered(inbound));
    int result = size != NULL ? call_method((PyObject *)inbound, names.drop, size) : -1;
    Py_XDECREF(size);
    return result;
}

static int tell_of_input(struct connection *connection, struct inbound *inbound, PyObject *on_read)
{
    Py_ssize_t n = inbound->fresh;
    if (n == 0)
        return 0;
    if (n != inbound->lease_size) {
        Py_ssize_t there = buffered(inbound);
        n = n < there ? n : there;
    }
    inbound->fresh = 0;
    if (n == 0)
        return 0;
    return is_none(on_read) ? drop_all(inbound)
                            : call_back(on_read, connection, names.on_read, n);
}

static int watch(struct connection *connection)
{
    PyObject *intake = PyObject_GetAttr((PyObject *)connection, names.intake);
    int result = intake != NULL ? call_method(intake, names.watch, NULL) : -1;
    Py_XDECREF(intake);
    return result;
}

struct sweep {
    struct turn *turn;
    PyObject *on_read;
    bool tells_of_writes;
    long long sent;
};

/* With references in the caller's hands. */
static int serve_small(struct sweep *sweep, struct connection *connection, struct inbound *inbound,
                       struct outbound *outbound)
{
    if (tell_of_input(connection, inbound, sweep->on_read) < 0)
        return -1;
    connection->ready = false; /* until here a write relies on what follows */
    if (connection->way != known.way_small)
        return call_method((PyObject *)connection, names.settle, NULL);
    int result = 0;
    if (PyList_Size(outbound->pieces) > 0) {
        if (is_none(outbound->sending))
            result = send_now(sweep->turn, connection, outbound, sweep->tells_of_writes,
                              &sweep->sent);
    } else if (inbound->watch == known.idle && is_none(outbound->sending))
        result = watch(connection);
    if (result == 0 && (inbound->lease_size != 0 || !is_none(inbound->buffer)))
        result = call_method((PyObject *)sweep->turn, names.keep_input, (PyObject *)connection);
    return result;
}

static int serve(struct sweep *sweep, PyObject *each)
{
    struct connection *connection = (struct connection *)each;
    if (!is_ours(connection) || connection->way != known.way_small)
        return see_to(sweep->turn, each);
    struct inbound *inbound = (struct inbound *)connection->inbound;
    struct outbound *outbound = (struct outbound *)connection->outbound;
    Py_INCREF(inbound);
    Py_INCREF(outbound);
    int result = serve_small(sweep, connection, inbound, outbound);
    Py_DECREF(inbound);
    Py_DECREF(outbound);
    return result;
}

/* Where the turn is long, what was written is sent before the next has its callback. */
static int send_what_leaves(struct turn *turn)
{
    if (PyList_Size(turn->dirty) == 0)
        return 0;
    PyObject *leaves = PyObject_CallMethodObjArgs((PyObject *)turn, names.leaves, NULL);
    int result = leaves != NULL ? PyObject_IsTrue(leaves) : -1;
    Py_XDECREF(leaves);
    return result > 0 ? call_method((PyObject *)turn, names.sweep_dirty, NULL) : result;
}

static int look_at_more(struct turn *turn)
{
    PyObject *more = turn->more, *empty = PyList_New(0);
    if (empty == NULL)
        return -1;
    turn->more = empty; /* in the next turn */
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < PyList_Size(more); i++) {
        PyObject *connection, *told;
        if (!PyArg_ParseTuple(PyList_GetItem(more, i), "OO", &connection, &told))
            result = -1;
        else
            result = call_method(connection, names.look_at_more, told);
    }
    Py_DECREF(more);
    return result;
}

static int sweep_ready(struct sweep *sweep, PyObject *ready)
{
    int result = 0;
    /* It grows meanwhile: who is appended is seen to as well. */
    for (Py_ssize_t i = 0; result == 0 && i < PyList_Size(ready); i++) {
        PyObject *each = PyList_GetItem(ready, i);
        Py_INCREF(each);
        result = send_what_leaves(sweep->turn);
        if (result == 0)
            result = serve(sweep, each);
        Py_DECREF(each);
    }
    if (result < 0 || PyList_SetSlice(ready, 0, PyList_Size(ready), NULL) < 0)
        return -1;
    sweep->turn->bytes_out += sweep->sent;
    return PyList_Size(sweep->turn->more) > 0 ? look_at_more(sweep->turn) : 0;
}

static PyObject *answer(int result)
{
    if (result < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *turn_sweep_ready(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    (void)arguments;
    struct sweep sweep = {.turn = (struct turn *)self};
    if (count != 0 || !is_plain_turn(sweep.turn))
        return NULL;
    int tells = has_callback(sweep.turn, names.on_write);
    sweep.on_read = tells < 0 ? NULL : PyObject_GetAttr(sweep.turn->callbacks, names.on_read);
    if (sweep.on_read == NULL)
        return NULL;
    sweep.tells_of_writes = tells;
    PyObject *ready = sweep.turn->ready;
    Py_INCREF(ready);
    int result = sweep_ready(&sweep, ready);
    Py_DECREF(ready);
    Py_DECREF(sweep.on_read);
    return answer(result);
}

/* ---- what was written by others ---- */

static int send_of(struct turn *turn, PyObject *each)
{
    struct connection *connection = (struct connection *)each;
    struct outbound *outbound = (struct outbound *)connection->outbound;
    if (!is_none(outbound->sending))
        return 0;
    int result = 0;
    Py_INCREF(outbound);
    if (connection->way == known.way_settled) {
        PyObject *outlet = PyObject_GetAttr(each, names.outlet);
        result = outlet != NULL ? call_method(outlet, names.send_next, NULL) : -1;
        Py_XDECREF(outlet);
    } else if (PyList_Size(outbound->pieces) > 0) {
        int tells = has_callback(turn, names.on_write);
        result = tells < 0 ? -1 : send_now(turn, connection, outbound, tells, &turn->bytes_out);
    }
    Py_DECREF(outbound);
    return result;
}

PyObject *turn_send_now(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct turn *turn = (struct turn *)self;
    if (count != 1 || !is_plain_turn(turn) || !is_ours((struct connection *)arguments[0]))
        return NULL;
    struct connection *connection = (struct connection *)arguments[0];
    struct outbound *outbound = (struct outbound *)connection->outbound;
    int tells = has_callback(turn, names.on_write);
    if (tells < 0)
        return NULL;
    Py_INCREF(outbound);
    int result = send_now(turn, connection, outbound, tells, &turn->bytes_out);
    Py_DECREF(outbound);
    return answer(result);
}

PyObject *turn_sweep_dirty(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    (void)arguments;
    struct turn *turn = (struct turn *)self;
    if (count != 0 || !is_plain_turn(turn) || !are_ours(turn->dirty))
        return NULL;
    Py_ssize_t size = PyList_Size(turn->dirty);
    PyObject *dirty = PyList_GetSlice(turn->dirty, 0, size);
    if (dirty == NULL)
        return NULL;
    int result = PyList_SetSlice(turn->dirty, 0, size, NULL);
    for (Py_ssize_t i = 0; result == 0 && i < size; i++)
        result = send_of(turn, PyList_GetItem(dirty, i));
    Py_DECREF(dirty);
    return answer(result);
}

/* ---- what the kernel has taken, to be told of once a tick ---- */

static int tell_of_output(PyObject *each, PyObject *on_write)
{
    struct connection *connection = (struct connection *)each;
    if (connection->way == known.way_settled)
        return call_method(each, names.attend, NULL);
    struct outbound *outbound = (struct outbound *)connection->outbound;
    Py_ssize_t written = outbound->written;
    if (written == 0 || is_none(on_write))
        return 0;
    outbound->written = 0;
    return call_back(on_write, connection, names.on_write, written);
}

PyObject *turn_sweep_wrote(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    (void)arguments;
    struct turn *turn = (struct turn *)self;
    if (count != 0 || !is_plain_turn(turn) || !are_ours(turn->wrote))
        return NULL;
    PyObject *on_write = PyObject_GetAttr(turn->callbacks, names.on_write);
    PyObject *wrote = turn->wrote, *empty = on_write != NULL ? PyList_New(0) : NULL;
    int result = empty != NULL ? 0 : -1;
    if (result == 0) {
        turn->wrote = empty;
        for (Py_ssize_t i = 0; result == 0 && i < PyList_Size(wrote); i++)
            result = tell_of_output(PyList_GetItem(wrote, i), on_write);
        Py_DECREF(wrote);
    }
    Py_XDECREF(on_write);
    return answer(result);
}
