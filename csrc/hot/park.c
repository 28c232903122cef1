/*
 * ``await park(trap)``: what the generator of that name in _trio_private.py does. It yields its trap
 * to trio, once, and answers with what it is sent.
 *
 * Python, trio and whoever looks at a sleeping task take it for a coroutine: it has `send`, `throw`
 * and `close`, and while it sleeps `cr_frame` is a frame to be shown and `cr_await` is None. Nothing
 * else can be there to be unwound: an exception that is thrown in comes out as it is.
 */
#include "hot.h"

enum state { FRESH, ASLEEP, OVER };

struct parked {
    PyObject_HEAD
    PyObject *trap;
    enum state state;
};

static PyTypeObject *parked_type;

static PySendResult parked_send(PyObject *self, PyObject *value, PyObject **result)
{
    struct parked *parked = (struct parked *)self;
    if (parked->state == FRESH) {
        parked->state = ASLEEP;
        *result = parked->trap;
        parked->trap = NULL;
        return PYGEN_NEXT;
    }
    if (parked->state == OVER) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    parked->state = OVER;
    Py_INCREF(value);
    *result = value;
    return PYGEN_RETURN;
}

PyObject *as_yielded(PySendResult how, PyObject *result)
{
    if (how == PYGEN_NEXT)
        return result;
    if (how == PYGEN_RETURN && (PyBytes_CheckExact(result) || is_none(result))) {
        PyErr_SetObject(PyExc_StopIteration, result);
        Py_DECREF(result);
    } else if (how == PYGEN_RETURN) {
        /* An instance: what was returned may be a tuple, or an exception. */
        PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
        Py_DECREF(result);
        if (stop != NULL) {
            PyErr_SetObject(PyExc_StopIteration, stop);
            Py_DECREF(stop);
        }
    }
    return NULL;
}

/* PEP 479: a StopIteration would be taken for the coroutine's end. */
static void replace_stop(void)
{
    PyObject *type, *stop, *error, *traceback;
    PyErr_Fetch(&type, &stop, &traceback);
    PyErr_NormalizeException(&type, &stop, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    PyErr_SetString(PyExc_RuntimeError, "coroutine raised StopIteration");
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    Py_INCREF(stop);
    PyException_SetCause(error, stop);
    PyException_SetContext(error, stop);
    PyErr_Restore(type, error, traceback);
}

static void raise_with(PyObject *traceback, PyObject *type, PyObject *value)
{
    PyErr_SetObject(type, value);
    if (traceback != NULL) {
        PyObject *own;
        PyErr_Fetch(&type, &value, &own);
        Py_XDECREF(own);
        Py_INCREF(traceback);
        PyErr_Restore(type, value, traceback);
    }
    if (PyErr_ExceptionMatches(PyExc_StopIteration))
        replace_stop();
}

/* In the order, and with the words, of a generator's throw. */
void raise_thrown(PyObject *arguments)
{
    PyObject *type, *value = NULL, *traceback = NULL;
    if (!PyArg_ParseTuple(arguments, "O|OO", &type, &value, &traceback))
        return;
    if (traceback != NULL && is_none(traceback))
        traceback = NULL;
    if (traceback != NULL && Py_TYPE(traceback) != &PyTraceBack_Type)
        PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback object");
    else if (PyExceptionInstance_Check(type) && value != NULL && !is_none(value))
        PyErr_SetString(PyExc_TypeError, "instance exception may not have a separate value");
    else if (PyExceptionInstance_Check(type))
        raise_with(traceback, (PyObject *)Py_TYPE(type), type);
    else if (PyExceptionClass_Check(type))
        raise_with(traceback, type, value);
    else {
        PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(type), "__name__");
        if (name != NULL)
            PyErr_Format(PyExc_TypeError,
                         "exceptions must be classes or instances deriving from "
                         "BaseException, not %S",
                         name);
        Py_XDECREF(name);
    }
}

static PyObject *parked_next(PyObject *self)
{
    PyObject *result = NULL;
    PySendResult how = parked_send(self, Py_None, &result);
    return as_yielded(how, result);
}

static PyObject *parked_send_method(PyObject *self, PyObject *value)
{
    PyObject *result = NULL;
    PySendResult how = parked_send(self, value, &result);
    return as_yielded(how, result);
}

static PyObject *parked_throw(PyObject *self, PyObject *arguments)
{
    ((struct parked *)self)->state = OVER;
    raise_thrown(arguments);
    return NULL;
}

static PyObject *parked_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    ((struct parked *)self)->state = OVER;
    Py_RETURN_NONE;
}

static PyObject *parked_self(PyObject *self)
{
    Py_INCREF(self);
    return self;
}

static PyObject *parked_frame(PyObject *self, void *unused)
{
    (void)unused;
    if (((struct parked *)self)->state != ASLEEP || known.park_frame == NULL)
        Py_RETURN_NONE;
    return PyObject_CallNoArgs(known.park_frame);
}

static PyObject *parked_await(PyObject *self, void *unused)
{
    (void)self;
    (void)unused;
    Py_RETURN_NONE;
}

static int parked_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct parked *)self)->trap);
    return 0;
}

static int parked_clear(PyObject *self)
{
    Py_CLEAR(((struct parked *)self)->trap);
    return 0;
}

static void parked_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    parked_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef parked_methods[] = {
    {"send", parked_send_method, METH_O, NULL},
    {"throw", parked_throw, METH_VARARGS, NULL},
    {"close", parked_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef parked_attributes[] = {
    {"cr_frame", parked_frame, NULL, NULL, NULL},
    {"cr_await", parked_await, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot parked_slots[] = {
    {Py_tp_methods, parked_methods},
    {Py_tp_getset, parked_attributes},
    {Py_tp_traverse, parked_traverse},
    {Py_tp_clear, parked_clear},
    {Py_tp_dealloc, parked_free},
    {Py_tp_iter, parked_self},
    {Py_tp_iternext, parked_next},
    {Py_am_await, parked_self},
    {Py_am_send, parked_send},
    {0, NULL},
};

static PyType_Spec parked_spec = {
    .name = "uring_trio._hot.Parked",
    .basicsize = sizeof(struct parked),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = parked_slots,
};

PyObject *park(PyObject *module, PyObject *trap)
{
    (void)module;
    struct parked *parked = PyObject_GC_New(struct parked, parked_type);
    if (parked == NULL)
        return NULL;
    Py_INCREF(trap);
    parked->trap = trap;
    parked->state = FRESH;
    PyObject_GC_Track(parked);
    return (PyObject *)parked;
}

int add_parking(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&parked_spec);
    if (type == NULL)
        return -1;
    parked_type = (PyTypeObject *)type; /* kept for good */
    return PyModule_AddObjectRef(module, "Parked", type);
}
