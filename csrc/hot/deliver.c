/*
 * What came: the batch's records, told to those who stand at their slots.
 *
 * It is `deliver` of _operations.py, which says what is plain, and what is done then. There it is
 * for where this is not.
 */
#include "hot.h"

int complete(PyObject *occupant, const struct ut_record *record)
{
    PyObject *slot = PyLong_FromUnsignedLong(record->slot);
    PyObject *res = PyLong_FromLong(record->res);
    PyObject *flags = PyLong_FromUnsignedLong(record->flags);
    PyObject *offset = PyLong_FromUnsignedLong(record->offset);
    PyObject *done = NULL;
    if (slot != NULL && res != NULL && flags != NULL && offset != NULL)
        done = PyObject_CallMethodObjArgs(occupant, names.complete, slot, res, flags, offset, NULL);
    Py_XDECREF(slot);
    Py_XDECREF(res);
    Py_XDECREF(flags);
    Py_XDECREF(offset);
    Py_XDECREF(done);
    return done != NULL ? 0 : -1;
}

int empty_slot(struct slots *slots, uint32_t slot)
{
    Py_INCREF(Py_None);
    return PyList_SetItem(slots->table, (Py_ssize_t)slot, Py_None);
}

/* Whether its kind and its result are plain, and its last cqe is this one. */
static bool may_be_plain(PyObject *kind, const struct ut_record *record)
{
    if (record->flags & IORING_CQE_F_MORE)
        return false;
    return kind == known.Receive ? record->res > 0
                                 : (kind == known.Send || kind == known.ReceiveInto) &&
                                       record->res >= 0;
}

/* Whether somebody waits for it whom nobody has cancelled, and nobody stands behind. */
static bool is_plain(const struct operation *operation, PyObject *kind)
{
    PyObject *line = operation->line;
    return operation->task != NULL && !is_none(operation->task) &&
           operation->raise_cancel != NULL && is_none(operation->raise_cancel) && line != NULL &&
           (PyObject *)Py_TYPE(line) == (kind == known.Send ? known.Sender : known.Receiver) &&
           nobody_waits(((struct line *)line)->waiting);
}

/* The operation's task, which is the caller's from now on. */
static PyObject *end(struct operation *operation, struct line *line)
{
    PyObject *task = operation->task;
    operation->slot = -1;
    Py_INCREF(Py_None);
    operation->task = Py_None;
    put_none(&line->current);
    return task;
}

static int call_ignoring(PyObject *function, PyObject *argument)
{
    PyObject *done = PyObject_CallFunctionObjArgs(function, argument, NULL);
    Py_XDECREF(done);
    return done != NULL ? 0 : -1;
}

static int wake_last(struct slots *slots, PyObject *task, PyObject *value)
{
    int result = value != NULL ? wake(slots->wake, task, value) : -1;
    Py_DECREF(task);
    return result;
}

static int fit_buffers(struct receiver *receiver, int res)
{
    PyObject *size = PyLong_FromLong(res);
    if (size == NULL)
        return -1;
    PyObject *done =
        PyObject_CallMethodObjArgs((PyObject *)receiver, names.fit_buffers, size, NULL);
    Py_DECREF(size);
    Py_XDECREF(done);
    return done != NULL ? 0 : -1;
}

static int end_receive(struct slots *slots, struct operation *operation,
                       const struct ut_record *record, PyObject *data)
{
    struct receiver *receiver = (struct receiver *)operation->line;
    PyObject *task = end(operation, &receiver->line);
    Py_INCREF(operation);
    put(&receiver->line.spare, (PyObject *)operation);
    uint32_t had_to_wait = record->flags & (UT_RECORD_WAITED | IORING_CQE_F_SOCK_NONEMPTY);
    receiver->poll_first = had_to_wait == UT_RECORD_WAITED;
    if ((receiver->group != 0 || record->res >= known.smallest_buffer) &&
        fit_buffers(receiver, record->res) < 0) {
        Py_DECREF(task);
        Py_DECREF(data);
        return -1;
    }
    return wake_last(slots, task, data);
}

static int end_send(struct slots *slots, struct operation *operation,
                    const struct ut_record *record)
{
    struct line *line = (struct line *)operation->line;
    struct send *send = (struct send *)operation;
    PyObject *task = end(operation, line);
    Py_INCREF(operation);
    put(&line->spare, (PyObject *)operation);
    PyObject *pinned = send->pinned;
    send->pinned = PyBytes_FromStringAndSize(NULL, 0);
    int result = pinned == NULL || PyBytes_CheckExact(pinned) ? 0 : call_ignoring(known.unpin, pinned);
    Py_XDECREF(pinned);
    if (result < 0) {
        Py_DECREF(task);
        return -1;
    }
    return wake_last(slots, task, PyLong_FromLong(record->res));
}

static int end_receive_into(struct slots *slots, struct operation *operation,
                            const struct ut_record *record)
{
    PyObject *task = end(operation, (struct line *)operation->line);
    put_none(&operation->trap);
    PyObject *pinned = PyObject_GetAttr((PyObject *)operation, names.pinned);
    int result = pinned != NULL ? call_ignoring(known.unpin_memory, pinned) : -1;
    Py_XDECREF(pinned);
    if (result < 0) {
        Py_DECREF(task);
        return -1;
    }
    return wake_last(slots, task, PyLong_FromLong(record->res));
}

/* With a reference to the occupant in the caller's hands. */
static int tell(struct slots *slots, PyObject *occupant, const struct ut_record *record)
{
    if (!(record->flags & IORING_CQE_F_MORE) && empty_slot(slots, record->slot) < 0)
        return -1;
    PyObject *kind = (PyObject *)Py_TYPE(occupant);
    struct operation *operation = (struct operation *)occupant;
    if (!may_be_plain(kind, record) || !is_plain(operation, kind))
        return complete(occupant, record);
    if (kind == known.Send)
        return end_send(slots, operation, record);
    if (kind == known.ReceiveInto)
        return end_receive_into(slots, operation, record);
    const char *pool = (const char *)(uintptr_t)slots->pool;
    PyObject *data = PyBytes_FromStringAndSize(pool + record->offset, record->res);
    if (data == NULL) { /* the task is told: that, too, is not plain */
        PyErr_Clear();
        return complete(occupant, record);
    }
    return end_receive(slots, operation, record, data);
}

struct slots *batch_of(const char *name, PyObject *const *arguments, Py_ssize_t argument_count,
                       long *count)
{
    if (argument_count != 2 || (PyObject *)Py_TYPE(arguments[0]) != known.Slots) {
        PyErr_Format(PyExc_TypeError, "%s(slots, count)", name);
        return NULL;
    }
    *count = PyLong_AsLong(arguments[1]);
    if (*count >= 0)
        return (struct slots *)arguments[0];
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "count");
    return NULL;
}

PyObject *occupant_of(struct slots *slots, uint32_t slot)
{
    return slots->table == NULL ? PyErr_Format(PyExc_AttributeError, "table")
                                : PyList_GetItem(slots->table, (Py_ssize_t)slot);
}

/* deliver(slots, count) */
PyObject *deliver(PyObject *module, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)module;
    long count;
    struct slots *slots = batch_of("deliver", arguments, argument_count, &count);
    if (slots == NULL)
        return NULL;
    for (long i = 0; i < count; i++) {
        const struct ut_record *records = (const struct ut_record *)(uintptr_t)slots->records;
        if (records == NULL)
            break; /* somebody whom we have told has ended the run */
        struct ut_record record = records[i];
        if (record.flags & UT_RECORD_TAKEN)
            continue; /* by `route` */
        PyObject *occupant = occupant_of(slots, record.slot);
        if (occupant == NULL)
            return NULL;
        Py_INCREF(occupant);
        int result = tell(slots, occupant, &record);
        Py_DECREF(occupant);
        if (result < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}
