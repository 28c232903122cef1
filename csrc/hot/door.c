/*
 * The door of a ring: its engine's preparing functions, through the table of the one engine.
 *
 * A `Door` is what `Ring.recv` and `Ring.send` are methods of. A line holds such a method and calls
 * it; that it does, and not something that stands in between (a look at SO_RCVLOWAT, a test), is
 * seen by what is called, so nobody has to remember it. After `close` it answers -EBADF, whoever
 * still has it in his hands.
 */
#include <errno.h>

#include "hot.h"

static PyObject *door_recv(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct door *door = (struct door *)self;
    long values[4];
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "recv(fd, group, size, poll_first)");
        return NULL;
    }
    for (int i = 0; i < 4; i++) {
        values[i] = PyLong_AsLong(arguments[i]);
        if (values[i] == -1 && PyErr_Occurred())
            return NULL;
    }
    if (door->engine == NULL)
        return PyLong_FromLong(-EBADF);
    return PyLong_FromLong(door->table->recv(door->engine, (int)values[0], (unsigned)values[1],
                                             (uint32_t)values[2], values[3] != 0));
}

/* Of exactly bytes; for all else there is cffi. */
static PyObject *door_send(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    struct door *door = (struct door *)self;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "send(fd, data, size, flags)");
        return NULL;
    }
    if (door->engine == NULL)
        return PyLong_FromLong(-EBADF);
    if (!PyBytes_CheckExact(arguments[1]))
        return PyObject_CallFunctionObjArgs(door->send_others, arguments[0], arguments[1],
                                            arguments[2], arguments[3], NULL);
    long fd = PyLong_AsLong(arguments[0]), size = PyLong_AsLong(arguments[2]);
    long flags = PyLong_AsLong(arguments[3]);
    if (PyErr_Occurred())
        return NULL;
    if (size < 0 || size > PyBytes_Size(arguments[1]))
        return PyErr_Format(PyExc_ValueError, "the data has not %ld bytes", size);
    return PyLong_FromLong(door->table->send(door->engine, (int)fd, PyBytes_AsString(arguments[1]),
                                             (uint32_t)size, (int)flags));
}

static PyObject *door_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    ((struct door *)self)->engine = NULL;
    Py_RETURN_NONE;
}

static PyMethodDef door_methods[] = {
    {"recv", (PyCFunction)(void (*)(void))door_recv, METH_FASTCALL, NULL},
    {"send", (PyCFunction)(void (*)(void))door_send, METH_FASTCALL, NULL},
    {"close", door_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyObject *door_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    unsigned long long table_address, engine_address;
    PyObject *send_others;
    if (!PyArg_ParseTuple(arguments, "KKO", &table_address, &engine_address, &send_others))
        return NULL;
    const struct ut_table *table = (const struct ut_table *)(uintptr_t)table_address;
    if (table->version != UT_TABLE_VERSION) {
        PyErr_Format(PyExc_RuntimeError, "the engine has table %d, and not %d", table->version,
                     UT_TABLE_VERSION);
        return NULL;
    }
    struct door *door =
        (struct door *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (door == NULL)
        return NULL;
    door->table = table;
    door->engine = (struct ut_engine *)(uintptr_t)engine_address;
    Py_INCREF(send_others);
    door->send_others = send_others;
    return (PyObject *)door;
}

static int door_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct door *)self)->send_others);
    return 0;
}

static int door_clear(PyObject *self)
{
    Py_CLEAR(((struct door *)self)->send_others);
    return 0;
}

static void door_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    door_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyType_Slot door_slots[] = {
    {Py_tp_methods, door_methods}, {Py_tp_new, door_new},      {Py_tp_traverse, door_traverse},
    {Py_tp_clear, door_clear},     {Py_tp_dealloc, door_free}, {0, NULL},
};

static PyType_Spec door_spec = {
    .name = "uring_trio._hot.Door",
    .basicsize = sizeof(struct door),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = door_slots,
};

static struct door *door_of(PyObject *prepare, PyCFunction function)
{
    if (prepare == NULL || Py_TYPE(prepare) != &PyCFunction_Type ||
        PyCFunction_GetFunction(prepare) != function)
        return NULL;
    struct door *door = (struct door *)PyCFunction_GetSelf(prepare);
    return door->engine != NULL ? door : NULL;
}

struct door *receiving_door(PyObject *prepare)
{
    return door_of(prepare, (PyCFunction)(void (*)(void))door_recv);
}

struct door *sending_door(PyObject *prepare)
{
    return door_of(prepare, (PyCFunction)(void (*)(void))door_send);
}

int add_door(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&door_spec);
    if (type == NULL)
        return -1;
    int result = PyModule_AddObjectRef(module, "Door", type);
    Py_DECREF(type);
    return result;
}
