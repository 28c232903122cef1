/*
 * Methods of Python's whose plain part is C.
 *
 * A `Method` stands in a class in the place of a function, and has that. What is plain it does in C,
 * and calls the function for the rest, with the arguments as they came: the function does all of it
 * where there is no C. To whoever looks it is that function: its name, its words, its signature.
 *
 * Classes say that they want them (`quicken`), and are known by their names here. One that inherits
 * such a function gets it for itself: who else inherits it, as a datagram, has Python's alone.
 */
#include "hot.h"

/* In the stable ABI since 3.12, and the same ever since PEP 590 (3.8). */
#ifndef Py_TPFLAGS_HAVE_VECTORCALL
#define Py_TPFLAGS_HAVE_VECTORCALL (1UL << 11)
#endif
#define ARGUMENTS_OFFSET ((size_t)1 << (8 * sizeof(size_t) - 1)) /* PY_VECTORCALL_... */

typedef PyObject *(*vector_call)(PyObject *self, PyObject *const *arguments, size_t count,
                                 PyObject *names);

struct method {
    PyObject_HEAD
    PyObject *function, *kind;
    plain_way way;
    vector_call call;
};

static PyTypeObject *method_type;
static PyObject *bound_type; /* types.MethodType */
static PyObject *class_name, *wrapped_name;

static PyObject *call_function(struct method *method, PyObject *const *arguments, Py_ssize_t count,
                               PyObject *keywords)
{
    PyObject *positional = PyTuple_New(count), *named = NULL, *result = NULL;
    Py_ssize_t named_count = keywords != NULL ? PyTuple_Size(keywords) : 0;
    bool failed = positional == NULL;
    for (Py_ssize_t i = 0; !failed && i < count; i++) {
        Py_INCREF(arguments[i]);
        failed = PyTuple_SetItem(positional, i, arguments[i]) < 0;
    }
    if (!failed && named_count > 0)
        failed = (named = PyDict_New()) == NULL;
    for (Py_ssize_t i = 0; !failed && i < named_count; i++)
        failed = PyDict_SetItem(named, PyTuple_GetItem(keywords, i), arguments[count + i]) < 0;
    if (!failed)
        result = PyObject_Call(method->function, positional, named);
    Py_XDECREF(positional);
    Py_XDECREF(named);
    return result;
}

static PyObject *method_vectorcall(PyObject *self, PyObject *const *arguments, size_t flagged_count,
                                   PyObject *keywords)
{
    struct method *method = (struct method *)self;
    Py_ssize_t count = (Py_ssize_t)(flagged_count & ~ARGUMENTS_OFFSET);
    if (count > 0 && keywords == NULL &&
        PyObject_TypeCheck(arguments[0], (PyTypeObject *)method->kind)) {
        PyObject *result = method->way(arguments[0], arguments + 1, count - 1);
        if (result != NULL || PyErr_Occurred())
            return result;
    }
    return call_function(method, arguments, count, keywords);
}

/* From where no vector is: of the plain arguments alone. */
static PyObject *method_call(PyObject *self, PyObject *arguments, PyObject *named)
{
    return PyObject_Call(((struct method *)self)->function, arguments, named);
}

static PyObject *method_get(PyObject *self, PyObject *object, PyObject *type)
{
    (void)type;
    if (object == NULL || is_none(object)) {
        Py_INCREF(self);
        return self;
    }
    return PyObject_CallFunctionObjArgs(bound_type, self, object, NULL);
}

static PyObject *method_attribute(PyObject *self, PyObject *name)
{
    PyObject *function = ((struct method *)self)->function;
    if (PyUnicode_Compare(name, class_name) == 0)
        return PyObject_GenericGetAttr(self, name);
    if (PyUnicode_Compare(name, wrapped_name) == 0) { /* what `inspect` looks for */
        Py_INCREF(function);
        return function;
    }
    return PyObject_GetAttr(function, name);
}

static PyObject *method_repr(PyObject *self)
{
    return PyObject_Repr(((struct method *)self)->function);
}

static int method_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct method *)self)->function);
    Py_VISIT(((struct method *)self)->kind);
    return 0;
}

static int method_clear(PyObject *self)
{
    Py_CLEAR(((struct method *)self)->function);
    Py_CLEAR(((struct method *)self)->kind);
    return 0;
}

static void method_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    method_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMemberDef method_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(struct method, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot method_slots[] = {
    {Py_tp_members, method_members},   {Py_tp_call, method_call},
    {Py_tp_descr_get, method_get},     {Py_tp_getattro, method_attribute},
    {Py_tp_repr, method_repr},         {Py_tp_traverse, method_traverse},
    {Py_tp_clear, method_clear},       {Py_tp_dealloc, method_free},
    {0, NULL},
};

static PyType_Spec method_spec = {
    .name = "uring_trio._hot.Method",
    .basicsize = sizeof(struct method),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_METHOD_DESCRIPTOR |
             Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE, /* only then the interpreter remembers where one is */
    .slots = method_slots,
};

static const struct {
    const char *class, *name;
    plain_way way;
} METHODS[] = {
    {"Turn", "_sweep_ready", turn_sweep_ready}, {"Turn", "_sweep_dirty", turn_sweep_dirty},
    {"Turn", "_sweep_wrote", turn_sweep_wrote}, {"Turn", "_send_now", turn_send_now},
    {"Conn", "next", conn_next},                {"Conn", "read", conn_read},
    {"Conn", "write", conn_write},
};

static int give(PyObject *kind, const char *name, plain_way way)
{
    PyObject *function = PyObject_GetAttrString(kind, name);
    struct method *method = function != NULL ? PyObject_GC_New(struct method, method_type) : NULL;
    if (method == NULL) {
        Py_XDECREF(function);
        return -1;
    }
    Py_INCREF(kind);
    method->function = function;
    method->kind = kind;
    method->way = way;
    method->call = method_vectorcall;
    PyObject_GC_Track(method);
    int result = PyObject_SetAttrString(kind, name, (PyObject *)method);
    Py_DECREF(method);
    return result;
}

/* quicken(class): it gets those of its methods that are here. */
static PyObject *quicken(PyObject *module, PyObject *kind)
{
    (void)module;
    PyObject *shown = PyType_Check(kind) ? PyObject_GetAttrString(kind, "__name__") : NULL;
    if (shown == NULL)
        return PyErr_Format(PyExc_TypeError, "quicken(class)");
    int result = 0;
    for (size_t i = 0; result == 0 && i < sizeof METHODS / sizeof *METHODS; i++)
        if (PyUnicode_CompareWithASCIIString(shown, METHODS[i].class) == 0)
            result = give(kind, METHODS[i].name, METHODS[i].way);
    Py_DECREF(shown);
    if (result < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"quicken", quicken, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int add_methods(PyObject *module)
{
    PyObject *types = PyImport_ImportModule("types");
    bound_type = types != NULL ? PyObject_GetAttrString(types, "MethodType") : NULL;
    Py_XDECREF(types);
    class_name = PyUnicode_InternFromString("__class__");
    wrapped_name = PyUnicode_InternFromString("__wrapped__");
    method_type = (PyTypeObject *)PyType_FromSpec(&method_spec); /* all kept for good */
    if (bound_type == NULL || class_name == NULL || wrapped_name == NULL || method_type == NULL)
        return -1;
    if (PyModule_AddFunctions(module, functions) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Method", (PyObject *)method_type);
}
