/*
 * The beginning of a stream's receive and send: what the streams' methods in _streams.py say flat.
 *
 * It is plain where the stream's socket is exactly ours, its endpoint is of this very run and
 * socket, nobody is in the kernel, an operation is there to be used again, the line calls the ring
 * itself, and the argument needs no look. Else nothing is done.
 */
#include <sys/socket.h>

#include "hot.h"

#define TRANSFER_MAX 0x7FFFF000L /* as in _kernel.py */

/* The endpoint of a stream that is plain so far, with its task: new references. */
static struct endpoint *find_endpoint(PyObject *stream, PyObject **task)
{
    PyObject *sock = PyObject_GetAttr(stream, names.socket);
    if (sock == NULL || (PyObject *)Py_TYPE(sock) != known.UringSocket) {
        Py_XDECREF(sock);
        return NULL;
    }
    PyObject *endpoint = PyObject_GetAttr(sock, names.endpoint);
    PyObject *stdlib = PyObject_GetAttr(sock, known.stdlib_name);
    Py_DECREF(sock);
    PyObject *runner = NULL, *manager = NULL;
    *task = NULL;
    struct endpoint *found = (struct endpoint *)endpoint;
    bool ours = endpoint != NULL && (PyObject *)Py_TYPE(endpoint) == known.Endpoint &&
                stdlib != NULL && found->owner == stdlib;
    if (ours)
        *task = PyObject_GetAttr(known.run_context, names.task);
    if (*task != NULL)
        runner = get_by(known.task_runner, *task);
    if (runner != NULL)
        manager = get_by(known.runner_io_manager, runner);
    ours = manager != NULL && found->manager == manager;
    Py_XDECREF(stdlib);
    Py_XDECREF(runner);
    Py_XDECREF(manager);
    if (ours)
        return found;
    Py_CLEAR(*task);
    Py_XDECREF(endpoint);
    return NULL;
}

/* The operation of a line in which it can begin at once; borrowed. */
static struct operation *spare_of(PyObject *line, PyObject *line_kind, PyObject *kind)
{
    if (line == NULL || (PyObject *)Py_TYPE(line) != line_kind)
        return NULL;
    struct line *found = (struct line *)line;
    if (found->current != NULL && is_none(found->current) && found->spare != NULL &&
        is_none(found->spare) && call_method(line, names.make_spare, NULL) < 0)
        PyErr_Clear(); /* no memory for the first of a connection: Python finds it again */
    PyObject *spare = found->spare;
    bool plain = found->current != NULL && is_none(found->current) && spare != NULL &&
                 (PyObject *)Py_TYPE(spare) == kind && found->fileno != NULL &&
                 found->slots != NULL && (PyObject *)Py_TYPE(found->slots) == known.Slots;
    return plain ? (struct operation *)spare : NULL;
}

/* Its file's number, -1 where it is closed; -2 with an exception. */
static int number(PyObject *fileno)
{
    PyObject *answer = PyObject_CallNoArgs(fileno);
    if (answer == NULL)
        return -2;
    long fd = PyLong_AsLong(answer);
    Py_DECREF(answer);
    return PyErr_Occurred() ? -2 : (int)fd;
}

/* It has a slot: a new reference to it, or NULL with an exception. */
static PyObject *enter(struct line *line, struct operation *operation, PyObject *task, int slot)
{
    struct slots *slots = (struct slots *)line->slots;
    Py_INCREF(operation); /* the caller's */
    put_none(&line->spare);
    Py_INCREF(operation);
    put(&line->current, (PyObject *)operation);
    Py_INCREF(task);
    put(&operation->task, task);
    operation->slot = slot;
    operation->tick = slots->tick;
    if (slots->table != NULL && PyList_CheckExact(slots->table) &&
        slot < PyList_Size(slots->table)) {
        Py_INCREF(operation);
        PyList_SetItem(slots->table, slot, (PyObject *)operation);
        return (PyObject *)operation;
    }
    PyObject *place = PyLong_FromLong(slot), *done = NULL;
    if (place != NULL) /* the table grows, or the tick is long */
        done = PyObject_CallMethodObjArgs((PyObject *)slots, names.enter, operation, place, NULL);
    Py_XDECREF(place);
    if (done != NULL)
        operation->slot = (int)PyLong_AsLong(done);
    else
        Py_CLEAR(operation);
    Py_XDECREF(done);
    return (PyObject *)operation;
}

static PyObject *not_plain(void)
{
    PyErr_Clear(); /* whatever it is, Python finds it again */
    Py_RETURN_NONE;
}

/* Bytes that a receive asks for; 0: it is not plain. */
static long size_of(PyObject *max_bytes)
{
    if (is_none(max_bytes))
        return known.receive_size;
    if (!PyLong_CheckExact(max_bytes))
        return 0;
    long size = PyLong_AsLong(max_bytes);
    if (size < 1 || size > TRANSFER_MAX)
        return 0;
    return size < known.receive_size ? size : known.receive_size;
}

PyObject *begin_receive(PyObject *stream, PyObject *max_bytes)
{
    long size = size_of(max_bytes);
    PyObject *task;
    struct endpoint *endpoint = size > 0 ? find_endpoint(stream, &task) : NULL;
    if (endpoint == NULL)
        return not_plain();
    struct receiver *receiver = (struct receiver *)endpoint->receiver;
    struct operation *operation =
        spare_of(endpoint->receiver, known.Receiver, known.Receive);
    struct door *door = operation != NULL ? receiving_door(receiver->prep_receive) : NULL;
    PyObject *begun = NULL;
    int fd = door != NULL ? number(receiver->line.fileno) : -2;
    if (fd != -2) {
        unsigned group = size > known.smallest_buffer ? (unsigned)receiver->group : 0;
        int slot =
            door->table->recv(door->engine, fd, group, (uint32_t)size, receiver->poll_first);
        if (slot >= 0) {
            ((struct receive *)operation)->size = size;
            begun = enter(&receiver->line, operation, task, slot);
        } else
            fd = -2;
    }
    Py_DECREF(task);
    Py_DECREF(endpoint);
    return fd != -2 ? begun : not_plain();
}

PyObject *begin_send(PyObject *stream, PyObject *data)
{
    Py_ssize_t size = PyBytes_CheckExact(data) ? PyBytes_Size(data) : 0;
    PyObject *task;
    struct endpoint *endpoint =
        size > 0 && size <= TRANSFER_MAX ? find_endpoint(stream, &task) : NULL;
    if (endpoint == NULL)
        return not_plain();
    struct sender *sender = (struct sender *)endpoint->sender;
    struct operation *operation = spare_of(endpoint->sender, known.Sender, known.Send);
    struct door *door = operation != NULL ? sending_door(sender->prep_send) : NULL;
    PyObject *begun = NULL;
    int fd = door != NULL ? number(sender->line.fileno) : -2;
    if (fd != -2) {
        int slot = door->table->send(door->engine, fd, PyBytes_AsString(data), (uint32_t)size,
                                     MSG_NOSIGNAL);
        if (slot >= 0) {
            struct send *send = (struct send *)operation;
            Py_INCREF(data);
            put(&send->pinned, data);
            send->flags = MSG_NOSIGNAL;
            begun = enter(&sender->line, operation, task, slot);
        } else
            fd = -2;
    }
    Py_DECREF(task);
    Py_DECREF(endpoint);
    return fd != -2 ? begun : not_plain();
}
