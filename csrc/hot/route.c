/*
 * The first look at a batch: what came for a callback server's connections.
 *
 * It is `route` of gain/_ring.py, which says what has the short way there. The records lie where the
 * engine has written them, and are looked at there. They stay where they are, for by them, in this
 * order, the engine gives buffers home and slots free when the batch ends: what was taken is marked,
 * and `deliver` passes it over.
 */
#include "hot.h"

#define DATA_AND_MORE (IORING_CQE_F_BUFFER | IORING_CQE_F_MORE)

/* Whether there is a task that may be woken. */
static bool may_have_turn(const struct turn *turn)
{
    return is_list(turn->ready) && is_of(turn->slots, known.Slots) && turn->task != NULL;
}

/* Whether its fields may be looked into, and those of its parts. */
static bool is_ours(const struct connection *connection)
{
    return is_of((PyObject *)connection, known.Connection) &&
           is_of(connection->inbound, known.Inbound) && is_of(connection->turn, known.Turn) &&
           may_have_turn((struct turn *)connection->turn);
}

static bool is_input(const struct connection *connection, const struct ut_record *record)
{
    return (record->flags & DATA_AND_MORE) == DATA_AND_MORE &&
           record->res < known.smallest_buffer && connection->way == known.way_small;
}

/* The poll of a stream with large messages has told of input. */
static bool is_large_input(const struct connection *connection, const struct link *link,
                           const struct ut_record *record)
{
    return record->flags == IORING_CQE_F_MORE && record->res > 0 &&
           (long)record->slot == link->receive_slot && connection->way != known.way_settled;
}

static int have_turn(struct connection *connection, struct turn *turn)
{
    if (connection->ready)
        return 0;
    connection->ready = true;
    if (PyList_Append(turn->ready, (PyObject *)connection) < 0)
        return -1;
    if (!turn->parked)
        return 0;
    turn->parked = false;
    Py_INCREF(Py_None);
    return wake(((struct slots *)turn->slots)->wake, turn->task, Py_None);
}

/* What is leased still is copied by Python. */
static int stash(PyObject *inbound)
{
    Py_INCREF(inbound);
    int result = call_method(inbound, names.stash, NULL);
    Py_DECREF(inbound);
    return result;
}

/* With a reference in the caller's hands. 1: it is not ours any more. */
static int note_input(struct connection *connection, const struct ut_record *record)
{
    if (((struct inbound *)connection->inbound)->lease_size != 0) {
        if (stash(connection->inbound) < 0)
            return -1;
        if (!is_ours(connection))
            return 1;
    }
    struct inbound *inbound = (struct inbound *)connection->inbound;
    struct turn *turn = (struct turn *)connection->turn;
    inbound->lease_at = (Py_ssize_t)record->offset;
    inbound->lease_size = record->res;
    inbound->fresh += record->res;
    turn->bytes_in += record->res;
    return have_turn(connection, turn);
}

/* With a reference to the link in the caller's hands. */
static int take(struct slots *slots, struct link *link, const struct ut_record *record)
{
    struct connection *connection = (struct connection *)link->connection;
    if (is_ours(connection)) {
        int result = 1;
        Py_INCREF(connection);
        if (is_input(connection, record))
            result = note_input(connection, record);
        else if (is_large_input(connection, link, record)) {
            link->readable |= record->res;
            result = have_turn(connection, (struct turn *)connection->turn);
        }
        Py_DECREF(connection);
        if (result <= 0)
            return result;
    }
    if (!(record->flags & IORING_CQE_F_MORE) && empty_slot(slots, record->slot) < 0)
        return -1;
    return complete((PyObject *)link, record);
}

/* route(slots, count): of the first so many records, those of connections; 0: no others are left. */
PyObject *route(PyObject *module, PyObject *const *arguments, Py_ssize_t argument_count)
{
    (void)module;
    long count;
    bool others = false;
    struct slots *slots = batch_of("route", arguments, argument_count, &count);
    if (slots == NULL)
        return NULL;
    for (long i = 0; i < count; i++) {
        struct ut_record *records = (struct ut_record *)(uintptr_t)slots->records;
        if (records == NULL)
            break; /* as in `deliver` */
        struct ut_record record = records[i];
        if (record.flags & UT_RECORD_TAKEN)
            continue;
        PyObject *occupant = occupant_of(slots, record.slot);
        if (occupant == NULL)
            return NULL;
        if (!is_of(occupant, known.RingLink)) {
            others = true;
            continue;
        }
        records[i].flags |= UT_RECORD_TAKEN;
        Py_INCREF(occupant);
        int result = take(slots, (struct link *)occupant, &record);
        Py_DECREF(occupant);
        if (result < 0)
            return NULL;
    }
    return PyLong_FromLong(others ? count : 0);
}
