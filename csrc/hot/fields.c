/*
 * Where the hot fields lie. What they mean is said where Python inherits them, by the same names:
 * `_operations`, `_lines`, `_endpoints`, `_slots`, and of `gain`: `_halves`, `_life`, `_ring`, `_turn`,
 * `_connection`, `_conn`.
 *
 * An operation, its trap and its task's frame hold each other, so all of these take part in
 * Python's garbage collection. A type's members are told once, in its table; what holds references
 * is found there.
 */
#include "hot.h"

#define OBJECT(type, field) {#field, T_OBJECT_EX, offsetof(struct type, field), 0, NULL}
#define PRIVATE(type, field) {"_" #field, T_OBJECT_EX, offsetof(struct type, field), 0, NULL}
#define END {NULL, 0, 0, 0, NULL}

static PyMemberDef operation_members[] = {
    OBJECT(operation, line),
    OBJECT(operation, raise_cancel),
    OBJECT(operation, task),
    OBJECT(operation, trap),
    {"slot", T_LONG, offsetof(struct operation, slot), 0, NULL},
    {"tick", T_LONG, offsetof(struct operation, tick), 0, NULL},
    END,
};

static PyMemberDef receive_members[] = {
    {"size", T_LONG, offsetof(struct receive, size), 0, NULL},
    END,
};

static PyMemberDef send_members[] = {
    OBJECT(send, pinned),
    {"flags", T_LONG, offsetof(struct send, flags), 0, NULL},
    END,
};

static PyMemberDef line_members[] = {
    OBJECT(line, backlog), OBJECT(line, current), OBJECT(line, fileno),
    OBJECT(line, slots),   OBJECT(line, spare),   OBJECT(line, waiting),
    END,
};

static PyMemberDef receiver_members[] = {
    OBJECT(receiver, plain_receive),
    OBJECT(receiver, prep_receive),
    {"group", T_INT, offsetof(struct receiver, group), 0, NULL},
    {"small_in_a_row", T_INT, offsetof(struct receiver, small_in_a_row), 0, NULL},
    {"poll_first", T_BOOL, offsetof(struct receiver, poll_first), 0, NULL},
    END,
};

static PyMemberDef sender_members[] = {
    OBJECT(sender, prep_send),
    END,
};

static PyMemberDef endpoint_members[] = {
    OBJECT(endpoint, manager),
    OBJECT(endpoint, owner),
    OBJECT(endpoint, receiver),
    OBJECT(endpoint, sender),
    END,
};

static PyMemberDef slots_members[] = {
    {"pool", T_OBJECT_EX, offsetof(struct slots, buffers), 0, NULL},
    OBJECT(slots, table),
    OBJECT(slots, wake),
    {"tick", T_LONG, offsetof(struct slots, tick), 0, NULL},
    {"record_address", T_ULONGLONG, offsetof(struct slots, records), 0, NULL},
    {"pool_address", T_ULONGLONG, offsetof(struct slots, pool), 0, NULL},
    END,
};

static PyMemberDef inbound_members[] = {
    OBJECT(inbound, buffer),
    OBJECT(inbound, pool),
    OBJECT(inbound, state),
    OBJECT(inbound, watch),
    {"fresh", T_PYSSIZET, offsetof(struct inbound, fresh), 0, NULL},
    {"lease_at", T_PYSSIZET, offsetof(struct inbound, lease_at), 0, NULL},
    {"lease_size", T_PYSSIZET, offsetof(struct inbound, lease_size), 0, NULL},
    END,
};

static PyMemberDef outbound_members[] = {
    OBJECT(outbound, pieces),
    OBJECT(outbound, sending),
    OBJECT(outbound, state),
    {"size", T_PYSSIZET, offsetof(struct outbound, size), 0, NULL},
    {"written", T_PYSSIZET, offsetof(struct outbound, written), 0, NULL},
    END,
};

static PyMemberDef life_members[] = {
    {"user", T_LONGLONG, offsetof(struct life, user), 0, NULL},
    END,
};

static PyMemberDef link_members[] = {
    OBJECT(link, connection),
    {"fd", T_LONG, offsetof(struct link, fd), 0, NULL},
    {"readable", T_LONG, offsetof(struct link, readable), 0, NULL},
    {"receive_slot", T_LONG, offsetof(struct link, receive_slot), 0, NULL},
    END,
};

static PyMemberDef turn_members[] = {
    PRIVATE(turn, callbacks),
    OBJECT(turn, dirty),
    PRIVATE(turn, more),
    OBJECT(turn, ready),
    PRIVATE(turn, slots),
    PRIVATE(turn, task),
    PRIVATE(turn, try_send),
    PRIVATE(turn, wrote),
    {"bytes_in", T_LONGLONG, offsetof(struct turn, bytes_in), 0, NULL},
    {"bytes_out", T_LONGLONG, offsetof(struct turn, bytes_out), 0, NULL},
    {"parked", T_BOOL, offsetof(struct turn, parked), 0, NULL},
    END,
};

static PyMemberDef connection_members[] = {
    OBJECT(connection, conn),
    OBJECT(connection, inbound),
    OBJECT(connection, link),
    OBJECT(connection, outbound),
    OBJECT(connection, turn),
    OBJECT(connection, way),
    {"ready", T_BOOL, offsetof(struct connection, ready), 0, NULL},
    END,
};

static PyMemberDef handle_members[] = {
    PRIVATE(handle, inbound),
    PRIVATE(handle, owner),
    PRIVATE(handle, subject),
    END,
};

static PyObject **reference(PyObject *self, const PyMemberDef *member)
{
    return member->type == T_OBJECT_EX ? (PyObject **)((char *)self + member->offset) : NULL;
}

static int visit_members(PyObject *self, const PyMemberDef *members, visitproc visit, void *arg)
{
    for (; members->name != NULL; members++) {
        PyObject **field = reference(self, members);
        if (field != NULL)
            Py_VISIT(*field);
    }
    return 0;
}

static void clear_members(PyObject *self, const PyMemberDef *members)
{
    for (; members->name != NULL; members++) {
        PyObject **field = reference(self, members);
        if (field != NULL)
            Py_CLEAR(*field);
    }
}

/* Of a type and its base, whose members it has as well. */
#define TYPE_OF(type, base, shown)                                                                 \
    static int traverse_##type(PyObject *self, visitproc visit, void *arg)                         \
    {                                                                                              \
        Py_VISIT(Py_TYPE(self));                                                                   \
        int stop = visit_members(self, base##_members, visit, arg);                                \
        return stop != 0 ? stop : visit_members(self, type##_members, visit, arg);                 \
    }                                                                                              \
    static int clear_##type(PyObject *self)                                                        \
    {                                                                                              \
        clear_members(self, base##_members);                                                       \
        clear_members(self, type##_members);                                                       \
        return 0;                                                                                  \
    }                                                                                              \
    static void free_##type(PyObject *self)                                                        \
    {                                                                                              \
        PyTypeObject *own = Py_TYPE(self);                                                         \
        PyObject_GC_UnTrack(self);                                                                 \
        clear_##type(self);                                                                        \
        ((freefunc)PyType_GetSlot(own, Py_tp_free))(self);                                         \
        Py_DECREF(own);                                                                            \
    }                                                                                              \
    static PyType_Slot type##_parts[] = {                                                          \
        {Py_tp_members, type##_members},                                                           \
        {Py_tp_traverse, traverse_##type},                                                         \
        {Py_tp_clear, clear_##type},                                                               \
        {Py_tp_dealloc, free_##type},                                                              \
        {Py_tp_new, PyType_GenericNew},                                                            \
        {0, NULL},                                                                                 \
    };                                                                                             \
    static PyType_Spec type##_spec = {                                                             \
        .name = "uring_trio._hot." shown,                                                          \
        .basicsize = sizeof(struct type),                                                          \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,                    \
        .slots = type##_parts,                                                                     \
    }

static PyMemberDef no_members[] = {END};

TYPE_OF(operation, no, "OperationFields");
TYPE_OF(receive, operation, "ReceiveFields");
TYPE_OF(send, operation, "SendFields");
TYPE_OF(line, no, "LineFields");
TYPE_OF(receiver, line, "ReceiverFields");
TYPE_OF(sender, line, "SenderFields");
TYPE_OF(endpoint, no, "EndpointFields");
TYPE_OF(slots, no, "SlotsFields");
TYPE_OF(inbound, no, "InboundFields");
TYPE_OF(outbound, no, "OutboundFields");
TYPE_OF(life, no, "LifeFields");
TYPE_OF(link, no, "LinkFields");
TYPE_OF(turn, no, "TurnFields");
TYPE_OF(connection, no, "ConnectionFields");
TYPE_OF(handle, no, "HandleFields");

/* A new reference. */
static PyObject *add(PyObject *module, PyType_Spec *spec, PyObject *base)
{
    PyObject *type = PyType_FromSpecWithBases(spec, base);
    if (type == NULL || PyModule_AddObjectRef(module, strrchr(spec->name, '.') + 1, type) < 0) {
        Py_XDECREF(type);
        return NULL;
    }
    return type;
}

int add_fields(PyObject *module)
{
    struct {
        PyType_Spec *spec, *heirs[2];
    } all[] = {
        {&operation_spec, {&receive_spec, &send_spec}},
        {&line_spec, {&receiver_spec, &sender_spec}},
        {&endpoint_spec, {NULL}},
        {&slots_spec, {NULL}},
        {&inbound_spec, {NULL}},
        {&outbound_spec, {NULL}},
        {&life_spec, {NULL}},
        {&link_spec, {NULL}},
        {&turn_spec, {NULL}},
        {&connection_spec, {NULL}},
        {&handle_spec, {NULL}},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        PyObject *base = add(module, all[i].spec, NULL);
        bool failed = base == NULL;
        for (size_t j = 0; !failed && j < 2 && all[i].heirs[j] != NULL; j++) {
            PyObject *heir = add(module, all[i].heirs[j], base);
            failed = heir == NULL;
            Py_XDECREF(heir);
        }
        Py_XDECREF(base);
        if (failed)
            return -1;
    }
    return 0;
}
