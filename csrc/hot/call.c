/*
 * ``await stream.receive_some(...)`` and ``await stream.send_all(...)``: the methods of trio's
 * SocketStream, and what a call of one gives.
 *
 * A *call* is a coroutine to Python, trio and the user: it is awaited, sent to, thrown into and closed
 * like one, and says so where it never is. Its states:
 *
 *     FRESH    nothing was done. A first `send` begins: what is plain goes ASLEEP, all else is HANDED.
 *     ASLEEP   its operation is the ring's, and trio has its trap. The value that its task is woken
 *              with ends it, if it is what was asked for; what else it means, Python knows: an error
 *              and a cancel are raised by a function, and the rest of a short send is HANDED.
 *     HANDED   a coroutine of Python's does it, `inner`, and this one passes on whatever comes.
 *     OVER     it has ended, by a value, an exception or a closing.
 *
 * A call that sends holds the stream's guard from its beginning until it is OVER, whatever ends it,
 * as a ``with`` would, unless the coroutine that it is handed to from FRESH does that itself.
 *
 * `cr_frame` is None before the beginning: a task that is given one by ``start_soon`` wraps it then, as
 * it does with all coroutines that are no Python's. Later it is a frame of the method's name, so that
 * whoever walks over the frames of a task that sleeps is shown one.
 */
#include "hot.h"

enum state { FRESH, ASLEEP, HANDED, OVER };

struct call {
    PyObject_HEAD
    PyObject *stream, *argument, *operation, *inner, *guard;
    bool sends, running;
    enum state state;
};

static PyTypeObject *call_type;

static const char *name_of(const struct call *call)
{
    return call->sends ? "send_all" : "receive_some";
}

/* ---- the guard ---- */

/* 1: it is ours from now on; 0: another's; -1 with an exception. */
static int hold_guard(struct call *call)
{
    PyObject *guard = PyObject_GetAttr(call->stream, known.guard_name);
    PyObject *held = guard != NULL ? PyObject_GetAttr(guard, known.held_name) : NULL;
    int result = held == NULL ? -1 : held == Py_False;
    Py_XDECREF(held);
    if (result == 1 && PyObject_SetAttr(guard, known.held_name, Py_True) == 0)
        call->guard = guard;
    else {
        Py_XDECREF(guard);
        result = result == 1 ? -1 : result;
    }
    return result;
}

/* With an exception or without. */
static void let_go(struct call *call)
{
    if (call->guard == NULL)
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyObject_SetAttr(call->guard, known.held_name, Py_False) < 0)
        PyErr_WriteUnraisable(call->guard);
    Py_CLEAR(call->guard);
    PyErr_Restore(type, value, traceback);
}

/* ---- its states ---- */

static PySendResult end(struct call *call, PySendResult how)
{
    call->state = OVER;
    let_go(call);
    Py_CLEAR(call->operation);
    Py_CLEAR(call->inner);
    return how;
}

static PySendResult pass_on(struct call *call, PyObject *value, PyObject **result)
{
    PySendResult how = PyIter_Send(call->inner, value, result);
    return how == PYGEN_NEXT ? how : end(call, how);
}

/* Takes the coroutine over. */
static PySendResult hand_over(struct call *call, PyObject *coroutine, PyObject **result)
{
    if (coroutine == NULL)
        return end(call, PYGEN_ERROR);
    call->inner = coroutine;
    call->state = HANDED;
    return pass_on(call, Py_None, result);
}

static PySendResult begin(struct call *call, PyObject **result)
{
    PyObject *operation;
    if (!call->sends)
        operation = begin_receive(call->stream, call->argument);
    else {
        int held = hold_guard(call);
        if (held < 0)
            return end(call, PYGEN_ERROR);
        /* The guard has words for a stream that is another's, and Python says them. */
        operation = held ? begin_send(call->stream, call->argument) : Py_None;
        if (!held)
            Py_INCREF(operation);
    }
    if (operation == NULL)
        return end(call, PYGEN_ERROR);
    if (is_none(operation)) {
        Py_DECREF(operation);
        let_go(call);
        PyObject *method = call->sends ? known.send_all : known.receive_some;
        return hand_over(
            call, PyObject_CallFunctionObjArgs(method, call->stream, call->argument, NULL), result);
    }
    PyObject *trap = ((struct operation *)operation)->trap;
    Py_INCREF(trap);
    *result = trap;
    call->operation = operation;
    call->state = ASLEEP;
    return PYGEN_NEXT;
}

static PySendResult wake_up(struct call *call, PyObject *value, PyObject **result)
{
    if (!call->sends) {
        if (PyBytes_CheckExact(value)) {
            Py_INCREF(value);
            *result = value;
            return end(call, PYGEN_RETURN);
        }
        *result = PyObject_CallFunctionObjArgs(known.end_receive, call->operation, value, NULL);
        return end(call, *result != NULL ? PYGEN_RETURN : PYGEN_ERROR);
    }
    if (PyLong_CheckExact(value)) {
        Py_ssize_t sent = PyLong_AsSsize_t(value);
        if (sent == PyBytes_Size(call->argument)) {
            Py_INCREF(Py_None);
            *result = Py_None;
            return end(call, PYGEN_RETURN);
        }
        PyErr_Clear();
    }
    return hand_over(call,
                     PyObject_CallFunctionObjArgs(known.end_send, call->stream, call->operation,
                                                  value, call->argument, NULL),
                     result);
}

/* True with an exception, if whoever it calls calls it: what it stands on is in use. */
static bool is_running(const struct call *call)
{
    if (call->running)
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
    return call->running;
}

static PySendResult step(struct call *call, PyObject *value, PyObject **result)
{
    switch (call->state) {
    case FRESH:
        if (!is_none(value)) {
            PyErr_SetString(PyExc_TypeError,
                            "can't send non-None value to a just-started coroutine");
            return PYGEN_ERROR;
        }
        return begin(call, result);
    case ASLEEP:
        return wake_up(call, value, result);
    case HANDED:
        return pass_on(call, value, result);
    default:
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
}

static PySendResult call_send(PyObject *self, PyObject *value, PyObject **result)
{
    struct call *call = (struct call *)self;
    *result = NULL;
    if (is_running(call))
        return PYGEN_ERROR;
    call->running = true;
    PySendResult how = step(call, value, result);
    call->running = false;
    return how;
}

/* ---- as Python calls it ---- */

static PyObject *call_next(PyObject *self)
{
    PyObject *result = NULL;
    PySendResult how = call_send(self, Py_None, &result);
    return as_yielded(how, result);
}

static PyObject *call_send_method(PyObject *self, PyObject *value)
{
    PyObject *result = NULL;
    PySendResult how = call_send(self, value, &result);
    return as_yielded(how, result);
}

static PyObject *call_throw(PyObject *self, PyObject *arguments)
{
    struct call *call = (struct call *)self;
    if (is_running(call))
        return NULL;
    if (call->state == OVER) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return NULL;
    }
    PyObject *result = NULL;
    if (call->state == HANDED) {
        PyObject *throw = PyObject_GetAttr(call->inner, names.throw);
        call->running = true;
        result = throw != NULL ? PyObject_CallObject(throw, arguments) : NULL;
        call->running = false;
        Py_XDECREF(throw);
    } else
        raise_thrown(arguments);
    if (result == NULL)
        end(call, PYGEN_ERROR);
    return result;
}

static PyObject *call_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct call *call = (struct call *)self;
    PyObject *result;
    if (is_running(call))
        return NULL;
    if (call->state == HANDED) {
        call->running = true;
        result = PyObject_CallMethodObjArgs(call->inner, names.close, NULL);
        call->running = false;
    } else {
        Py_INCREF(Py_None);
        result = Py_None;
    }
    end(call, PYGEN_ERROR);
    return result;
}

static PyObject *call_self(PyObject *self)
{
    Py_INCREF(self);
    return self;
}

/* Two who await one call would take each other's values. */
static PyObject *call_awaited(PyObject *self)
{
    struct call *call = (struct call *)self;
    if (!call->running && (call->state == ASLEEP || call->state == HANDED)) {
        PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
        return NULL;
    }
    return call_self(self);
}

static PyObject *call_frame(PyObject *self, void *unused)
{
    (void)unused;
    struct call *call = (struct call *)self;
    if (call->state == FRESH || call->state == OVER)
        Py_RETURN_NONE;
    return PyObject_CallNoArgs(call->sends ? known.send_frame : known.receive_frame);
}

static PyObject *call_await(PyObject *self, void *unused)
{
    (void)unused;
    PyObject *inner = ((struct call *)self)->inner;
    if (inner == NULL)
        Py_RETURN_NONE;
    Py_INCREF(inner);
    return inner;
}

static PyObject *call_name(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(name_of((struct call *)self));
}

static PyObject *call_qualname(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromFormat("SocketStream.%s", name_of((struct call *)self));
}

static PyObject *call_running(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((struct call *)self)->running);
}

static PyObject *call_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<coroutine object SocketStream.%s at %p>",
                                name_of((struct call *)self), (void *)self);
}

static int call_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct call *call = (struct call *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(call->stream);
    Py_VISIT(call->argument);
    Py_VISIT(call->operation);
    Py_VISIT(call->inner);
    Py_VISIT(call->guard);
    return 0;
}

static int call_clear(PyObject *self)
{
    struct call *call = (struct call *)self;
    let_go(call);
    Py_CLEAR(call->stream);
    Py_CLEAR(call->argument);
    Py_CLEAR(call->operation);
    Py_CLEAR(call->inner);
    return 0;
}

static void warn(const struct call *call)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1,
                         "coroutine 'SocketStream.%s' was never awaited", name_of(call)) < 0) {
        /* A string, since the call itself is about to be freed. */
        PyObject *shown = PyUnicode_FromFormat("SocketStream.%s", name_of(call));
        PyErr_WriteUnraisable(shown);
        Py_XDECREF(shown);
    }
    PyErr_Restore(type, value, traceback);
}

static void call_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    struct call *call = (struct call *)self;
    PyObject_GC_UnTrack(self);
    if (call->state == FRESH)
        warn(call);
    call_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef call_methods[] = {
    {"send", call_send_method, METH_O, NULL},
    {"throw", call_throw, METH_VARARGS, NULL},
    {"close", call_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef call_attributes[] = {
    {"cr_frame", call_frame, NULL, NULL, NULL},
    {"cr_await", call_await, NULL, NULL, NULL},
    {"cr_running", call_running, NULL, NULL, NULL},
    {"__name__", call_name, NULL, NULL, NULL},
    {"__qualname__", call_qualname, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot call_slots[] = {
    {Py_tp_methods, call_methods},
    {Py_tp_getset, call_attributes},
    {Py_tp_repr, call_repr},
    {Py_tp_traverse, call_traverse},
    {Py_tp_clear, call_clear},
    {Py_tp_dealloc, call_free},
    {Py_tp_iternext, call_next},
    {Py_tp_iter, call_self},
    {Py_am_await, call_awaited},
    {Py_am_send, call_send},
    {0, NULL},
};

static PyType_Spec call_spec = {
    .name = "uring_trio._hot.Call",
    .basicsize = sizeof(struct call),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = call_slots,
};

/* ---- the methods ---- */

/* The one argument of a method that is called so; borrowed. */
static PyObject *argument_of(PyObject *const *arguments, Py_ssize_t count, PyObject *keywords,
                             PyObject *name, PyObject *missing)
{
    Py_ssize_t named = keywords != NULL ? PyTuple_Size(keywords) : 0;
    if (count + named == 0 && missing != NULL)
        return missing;
    if (count + named == 1 &&
        (count == 1 || PyUnicode_Compare(PyTuple_GetItem(keywords, 0), name) == 0))
        return arguments[0];
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "its only argument is '%U'", name);
    return NULL;
}

static PyObject *new_call(PyObject *stream, PyObject *argument, bool sends)
{
    struct call *call = argument != NULL ? PyObject_GC_New(struct call, call_type) : NULL;
    if (call == NULL)
        return NULL;
    Py_INCREF(stream);
    Py_INCREF(argument);
    call->stream = stream;
    call->argument = argument;
    call->operation = call->inner = call->guard = NULL;
    call->sends = sends;
    call->running = false;
    call->state = FRESH;
    PyObject_GC_Track(call);
    return (PyObject *)call;
}

static PyObject *receive_some(PyObject *stream, PyObject *const *arguments, Py_ssize_t count,
                              PyObject *keywords)
{
    return new_call(stream, argument_of(arguments, count, keywords, names.max_bytes, Py_None), false);
}

static PyObject *send_all(PyObject *stream, PyObject *const *arguments, Py_ssize_t count,
                          PyObject *keywords)
{
    return new_call(stream, argument_of(arguments, count, keywords, names.data, NULL), true);
}

static PyMethodDef stream_methods[] = {
    {"receive_some", (PyCFunction)(void (*)(void))receive_some, METH_FASTCALL | METH_KEYWORDS,
     "receive_some($self, max_bytes=None)\n--\n\n"},
    {"send_all", (PyCFunction)(void (*)(void))send_all, METH_FASTCALL | METH_KEYWORDS,
     "send_all($self, data)\n--\n\n"},
};

/* stream_methods(SocketStream): its receive_some and send_all. */
PyObject *methods_of_stream(PyObject *module, PyObject *type)
{
    (void)module;
    if (!PyType_Check(type))
        return PyErr_Format(PyExc_TypeError, "stream_methods(type)");
    return Py_BuildValue("NN", PyDescr_NewMethod((PyTypeObject *)type, &stream_methods[0]),
                         PyDescr_NewMethod((PyTypeObject *)type, &stream_methods[1]));
}

int add_call(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&call_spec);
    if (type == NULL)
        return -1;
    call_type = (PyTypeObject *)type; /* kept for good */
    return PyModule_AddObjectRef(module, "Call", type);
}
