/*
 * The module: what it offers, and what Python has made known to it.
 */
#include "hot.h"

struct known known;
struct names names;

/* All descriptors of trio's fields are of one type. */
static descrgetfunc get_field;
static descrsetfunc set_field;

PyObject *get_by(PyObject *descriptor, PyObject *object)
{
    return get_field(descriptor, object, (PyObject *)Py_TYPE(object));
}

int set_by(PyObject *descriptor, PyObject *object, PyObject *value)
{
    return set_field(descriptor, object, value);
}

/* By name: an object, and whether it is a descriptor of a field of trio's. */
static const struct {
    const char *name;
    PyObject **place;
    bool is_field;
} OBJECTS[] = {
#define THING(name) {#name, &known.name, false}
#define FIELD(name) {#name, &known.name, true}
    THING(Receive),         THING(ReceiveInto),     THING(Send),
    THING(Receiver),        THING(Sender),          THING(Slots),
    THING(Endpoint),        THING(UringSocket),     THING(unpin),
    THING(unpin_memory),    THING(run_context),     THING(park_frame),
    THING(receive_frame),   THING(send_frame),      THING(receive_some),
    THING(send_all),        THING(end_receive),     THING(end_send),
    THING(guard_name),      THING(held_name),       THING(stdlib_name),
    THING(Inbound),         THING(Outbound),        THING(Life),
    THING(RingLink),        THING(Turn),            THING(Connection),
    THING(plain_input),      THING(plain_output),     THING(idle),
    THING(way_settled),     THING(way_small),       THING(way_large),
    THING(try_send),
    FIELD(task_coro),       FIELD(task_runner),     FIELD(task_next_send_fn),
    FIELD(task_next_send),  FIELD(task_abort_func), FIELD(task_sleep_data),
    FIELD(runner_io_manager),
};

static const struct {
    const char *name;
    long *place;
} NUMBERS[] = {
    {"smallest_buffer", &known.smallest_buffer},
    {"receive_size", &known.receive_size},
};

static int know_field(PyObject *descriptor)
{
    descrgetfunc get = (descrgetfunc)PyType_GetSlot(Py_TYPE(descriptor), Py_tp_descr_get);
    descrsetfunc set = (descrsetfunc)PyType_GetSlot(Py_TYPE(descriptor), Py_tp_descr_set);
    if (get == NULL || set == NULL || (get_field != NULL && get_field != get)) {
        PyErr_SetString(PyExc_TypeError, "a field of trio's is no slot");
        return -1;
    }
    get_field = get;
    set_field = set;
    return 0;
}

static int know_one(const char *name, PyObject *value)
{
    for (size_t i = 0; i < sizeof OBJECTS / sizeof *OBJECTS; i++)
        if (strcmp(name, OBJECTS[i].name) == 0) {
            if (OBJECTS[i].is_field && know_field(value) < 0)
                return -1;
            Py_INCREF(value);
            put(OBJECTS[i].place, value);
            return 0;
        }
    for (size_t i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++)
        if (strcmp(name, NUMBERS[i].name) == 0) {
            *NUMBERS[i].place = PyLong_AsLong(value);
            return PyErr_Occurred() ? -1 : 0;
        }
    if (strcmp(name, "table") == 0) { /* by its address */
        known.table = (const struct ut_table *)PyLong_AsVoidPtr(value);
        return PyErr_Occurred() ? -1 : 0;
    }
    PyErr_SetString(PyExc_TypeError, name);
    return -1;
}

int call_method(PyObject *object, PyObject *name, PyObject *argument)
{
    PyObject *done = PyObject_CallMethodObjArgs(object, name, argument, NULL);
    Py_XDECREF(done);
    return done != NULL ? 0 : -1;
}

/* know(**things) */
static PyObject *know(PyObject *module, PyObject *arguments, PyObject *things)
{
    (void)module;
    (void)arguments;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    while (things != NULL && PyDict_Next(things, &position, &key, &value)) {
        PyObject *name = PyUnicode_AsUTF8String(key);
        int result = name != NULL ? know_one(PyBytes_AsString(name), value) : -1;
        Py_XDECREF(name);
        if (result < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

/* claim(): whether it is to be had. What is known is there once in a process: a sub-interpreter
 * has classes of its own, and so has a package that is imported once more, while runs of before
 * go on with theirs. */
static PyObject *claim(PyObject *module, PyObject *unused)
{
    static bool is_taken;
    (void)module;
    (void)unused;
    bool is_first = !is_taken;
    is_taken = true;
    return PyBool_FromLong(is_first);
}

static PyObject *module_begin_receive(PyObject *module, PyObject *const *arguments,
                                      Py_ssize_t count)
{
    (void)module;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "begin_receive(stream, max_bytes)");
    return begin_receive(arguments[0], arguments[1]);
}

static PyObject *module_begin_send(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "begin_send(stream, data)");
    return begin_send(arguments[0], arguments[1]);
}

static PyMethodDef methods[] = {
    {"claim", claim, METH_NOARGS, NULL},
    {"know", (PyCFunction)(void (*)(void))know, METH_VARARGS | METH_KEYWORDS, NULL},
    {"deliver", (PyCFunction)(void (*)(void))deliver, METH_FASTCALL, NULL},
    {"route", (PyCFunction)(void (*)(void))route, METH_FASTCALL, NULL},
    {"begin_receive", (PyCFunction)(void (*)(void))module_begin_receive, METH_FASTCALL, NULL},
    {"begin_send", (PyCFunction)(void (*)(void))module_begin_send, METH_FASTCALL, NULL},
    {"park", park, METH_O, NULL},
    {"stream_methods", methods_of_stream, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "uring_trio._hot", .m_size = -1, .m_methods = methods,
};

static int intern_names(void)
{
    static const struct {
        PyObject **place;
        const char *name;
    } all[] = {
#define NAME(name) {&names.name, #name}
        NAME(attend),    NAME(calls),       NAME(close),     NAME(complete),     NAME(data),
        NAME(drop),      NAME(endpoint),    NAME(enter),     NAME(fd),           NAME(fit_buffers),
        NAME(intake),    NAME(look_at_more), NAME(max_bytes), NAME(on_read),     NAME(on_write),
        NAME(outlet),    NAME(pinned),      NAME(raised),    NAME(ready),        NAME(send),
        NAME(send_next), NAME(send_rest_of), NAME(settle),   NAME(socket),       NAME(soon),
        NAME(stash),     NAME(take_piece),  NAME(task),      NAME(task_scheduled), NAME(throw),
        NAME(watch),     NAME(way),         NAME(make_spare),
        {&names.keep_input, "_keep_input"},
        {&names.leaves, "_leaves"},
        {&names.serve_large, "_serve_large"},
        {&names.sweep_dirty, "_sweep_dirty"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        *all[i].place = PyUnicode_InternFromString(all[i].name);
        if (*all[i].place == NULL)
            return -1;
    }
    return 0;
}

PyMODINIT_FUNC PyInit__hot(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    if (intern_names() < 0 || add_fields(module) < 0 || add_door(module) < 0 ||
        add_waker(module) < 0 || add_parking(module) < 0 ||
        add_call(module) < 0 || add_methods(module) < 0 ||
        PyModule_AddIntConstant(module, "TABLE_VERSION", UT_TABLE_VERSION) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
