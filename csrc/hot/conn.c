/*
 * What a handler asks of its connection most: `next`, `read` and `write` of gain/_conn.py.
 *
 * Plain is what is asked with exact integers and exact bytes, by the thread that may, of a connection
 * whose halves are open. No signal's handler comes in between, so these are protected from
 * KeyboardInterrupt as the methods in Python are; where they call Python, that protects itself.
 */
#include "hot.h"

static bool may_use(const PyObject *owner)
{
    return is_of(owner, known.Life) &&
           ((const struct life *)owner)->user == (long long)PyThread_get_thread_ident();
}

/* ---- reading ---- */

/* The one argument of `next` and `read`, -1 if it is negative or missing; -2: it is not plain. */
static Py_ssize_t size_asked(PyObject *const *arguments, Py_ssize_t count)
{
    if (count == 0)
        return -1;
    if (count != 1 || !PyLong_CheckExact(arguments[0]))
        return -2;
    Py_ssize_t size = PyLong_AsSsize_t(arguments[0]);
    if (size >= 0)
        return size;
    if (!PyErr_Occurred())
        return -1;
    PyErr_Clear(); /* it is huge */
    return -2;
}

/* Its input, if all that there is of it is leased, and whoever calls may take it. */
static struct inbound *leased(const struct handle *handle)
{
    struct inbound *inbound = (struct inbound *)handle->inbound;
    return may_use(handle->owner) && is_of(handle->inbound, known.Inbound) &&
                   inbound->state == known.plain_input && inbound->buffer != NULL &&
                   is_none(inbound->buffer)
               ? inbound
               : NULL;
}

/* Where the engine's buffers are, if these are what its leases are in. */
static const char *engine_memory(const struct handle *handle, const PyObject *pool)
{
    const struct connection *connection = (const struct connection *)handle->subject;
    if (!is_of(handle->subject, known.Connection) || !is_of(connection->turn, known.Turn))
        return NULL;
    const struct slots *slots = (const struct slots *)((struct turn *)connection->turn)->slots;
    if (!is_of((const PyObject *)slots, known.Slots) || slots->buffers != pool)
        return NULL;
    return (const char *)(uintptr_t)slots->pool;
}

/* What is leased, or the first of it: a new reference; NULL without an exception: not plain. */
static PyObject *cut(const struct handle *handle, const struct inbound *inbound, Py_ssize_t size)
{
    PyObject *pool = inbound->pool;
    Py_ssize_t at = inbound->lease_at;
    if (pool == NULL || at < 0)
        return NULL;
    const char *memory;
    if (PyBytes_CheckExact(pool)) {
        Py_ssize_t whole = PyBytes_Size(pool);
        if (size > whole || at > whole - size)
            return NULL;
        if (size == whole) { /* as a slice of all */
            Py_INCREF(pool);
            return pool;
        }
        memory = PyBytes_AsString(pool);
    } else
        memory = engine_memory(handle, pool);
    PyObject *data = memory != NULL ? PyBytes_FromStringAndSize(memory + at, size) : NULL;
    if (data == NULL)
        PyErr_Clear(); /* no memory: Python finds it again */
    return data;
}

PyObject *conn_next(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    const struct handle *handle = (const struct handle *)self;
    Py_ssize_t size = size_asked(arguments, count);
    struct inbound *inbound = size >= -1 ? leased(handle) : NULL;
    if (inbound == NULL || size > inbound->lease_size)
        return NULL;
    bool is_all = size < 0 || size == inbound->lease_size;
    if (is_all)
        size = inbound->lease_size;
    PyObject *data = cut(handle, inbound, size);
    if (data == NULL)
        return NULL;
    inbound->lease_size -= size;
    if (!is_all)
        inbound->lease_at += size;
    return data;
}

PyObject *conn_read(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    const struct handle *handle = (const struct handle *)self;
    Py_ssize_t size = size_asked(arguments, count);
    struct inbound *inbound = size >= -1 ? leased(handle) : NULL;
    if (inbound == NULL || (inbound->lease_size == 0 && size != 0))
        return NULL;
    if (size < 0 || size > inbound->lease_size)
        size = inbound->lease_size;
    PyObject *data = cut(handle, inbound, size);
    if (data == NULL)
        return NULL;
    inbound->lease_size -= size;
    inbound->lease_at += size;
    return data;
}

/* ---- writing ---- */

PyObject *conn_write(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    const struct handle *handle = (const struct handle *)self;
    struct connection *connection = (struct connection *)handle->subject;
    if (count != 1 || !PyBytes_CheckExact(arguments[0]) || !may_use(handle->owner) ||
        !is_of(handle->subject, known.Connection) ||
        !is_of(connection->outbound, known.Outbound))
        return NULL;
    struct outbound *outbound = (struct outbound *)connection->outbound;
    if (outbound->state != known.plain_output || outbound->sending == NULL ||
        !is_none(outbound->sending) || !is_list(outbound->pieces))
        return NULL;
    Py_ssize_t size = PyBytes_Size(arguments[0]);
    if (size > 0) {
        bool is_first = PyList_Size(outbound->pieces) == 0 && !connection->ready;
        if (PyList_Append(outbound->pieces, arguments[0]) < 0)
            return NULL;
        outbound->size += size;
        if (is_first) {
            PyObject *outlet = PyObject_GetAttr((PyObject *)connection, names.outlet);
            int result = outlet != NULL ? call_method(outlet, names.soon, NULL) : -1;
            Py_XDECREF(outlet);
            if (result < 0)
                return NULL;
        }
    }
    return PyLong_FromSsize_t(size);
}
