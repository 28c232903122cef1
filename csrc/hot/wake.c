/*
 * How a task is woken: what `wake` of `_trio_private.make_waker` does, by the descriptors of trio's
 * own class.
 *
 * An instrument that wants to hear of it is told by the waker of Python, which does all of it then.
 * In guest mode there is no waker of these.
 */
#include "hot.h"

struct waker {
    PyObject_HEAD
    PyObject *append, *hooks, *wake; /* of the run's queue; of its instruments; Python's */
};

static int wake_plainly(struct waker *waker, PyObject *task, PyObject *value)
{
    PyObject *coro = get_by(known.task_coro, task);
    if (coro == NULL)
        return -1;
    PyObject *send = PyObject_GetAttr(coro, names.send);
    Py_DECREF(coro);
    if (send == NULL)
        return -1;
    int failed = set_by(known.task_next_send_fn, task, send) < 0 ||
                 set_by(known.task_next_send, task, value) < 0 ||
                 set_by(known.task_abort_func, task, Py_None) < 0 ||
                 set_by(known.task_sleep_data, task, Py_None) < 0;
    Py_DECREF(send);
    if (failed)
        return -1;
    PyObject *done = PyObject_CallFunctionObjArgs(waker->append, task, NULL);
    Py_XDECREF(done);
    return done != NULL ? 0 : -1;
}

static int call_waker(PyObject *wake, PyObject *task, PyObject *value)
{
    PyObject *done = PyObject_CallFunctionObjArgs(wake, task, value, NULL);
    Py_XDECREF(done);
    return done != NULL ? 0 : -1;
}

static int wake_by(struct waker *waker, PyObject *task, PyObject *value)
{
    int hooked = PyDict_Contains(waker->hooks, names.task_scheduled);
    if (hooked < 0)
        return -1;
    return hooked ? call_waker(waker->wake, task, value) : wake_plainly(waker, task, value);
}

static PyObject *waker_wake(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "wake(task, value)");
        return NULL;
    }
    if (wake_by((struct waker *)self, arguments[0], arguments[1]) < 0)
        return NULL;
    Py_RETURN_NONE;
}

int wake(PyObject *wake, PyObject *task, PyObject *value)
{
    int result;
    if (wake == NULL) {
        PyErr_SetString(PyExc_AttributeError, "wake");
        result = -1;
    } else if (Py_TYPE(wake) == &PyCFunction_Type &&
               PyCFunction_GetFunction(wake) == (PyCFunction)(void (*)(void))waker_wake)
        result = wake_by((struct waker *)PyCFunction_GetSelf(wake), task, value);
    else
        result = call_waker(wake, task, value);
    Py_DECREF(value);
    return result;
}

static PyObject *waker_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    PyObject *append, *hooks, *wake;
    if (!PyArg_ParseTuple(arguments, "OO!O", &append, &PyDict_Type, &hooks, &wake))
        return NULL;
    struct waker *waker =
        (struct waker *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (waker == NULL)
        return NULL;
    Py_INCREF(append);
    Py_INCREF(hooks);
    Py_INCREF(wake);
    waker->append = append;
    waker->hooks = hooks;
    waker->wake = wake;
    return (PyObject *)waker;
}

static int waker_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct waker *waker = (struct waker *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(waker->append);
    Py_VISIT(waker->hooks);
    Py_VISIT(waker->wake);
    return 0;
}

static int waker_clear(PyObject *self)
{
    struct waker *waker = (struct waker *)self;
    Py_CLEAR(waker->append);
    Py_CLEAR(waker->hooks);
    Py_CLEAR(waker->wake);
    return 0;
}

static void waker_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    waker_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef waker_methods[] = {
    {"wake", (PyCFunction)(void (*)(void))waker_wake, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot waker_slots[] = {
    {Py_tp_methods, waker_methods}, {Py_tp_new, waker_new},      {Py_tp_traverse, waker_traverse},
    {Py_tp_clear, waker_clear},     {Py_tp_dealloc, waker_free}, {0, NULL},
};

static PyType_Spec waker_spec = {
    .name = "uring_trio._hot.Waker",
    .basicsize = sizeof(struct waker),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = waker_slots,
};

int add_waker(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&waker_spec);
    if (type == NULL)
        return -1;
    int result = PyModule_AddObjectRef(module, "Waker", type);
    Py_DECREF(type);
    return result;
}
