"""Rules of behaviour, each with a line that breaks it and the tests that must see it.

`mutations.py` makes and judges them, and says what the words mean. A rule is in its own
words, so that its line can be chosen anew when the text of the product changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

C_TESTS = "csrc/tests/"


@dataclass(frozen=True)
class Mutation:
    """A line that breaks a rule, and who must notice.

    Attributes:
      rule: what holds without it.
      path: the file, from the root of the project.
      text: what stands there, once.
      instead: what breaks the rule.
      caught_by: tests, as pytest names them, or ``csrc/tests/test_x.c::function``, or a file of
        either for all that is in it. One that fails is enough.
    """

    rule: str
    path: str
    text: str
    instead: str
    caught_by: tuple[str, ...]

    @property
    def is_c(self) -> bool:
        return self.path.endswith(".c")

    def apply(self, tree: Path) -> None:
        """Make it in a copy of the project.

        Raises:
          LookupError: its text is not there, or more than once.
        """
        edit(tree, self.path, self.text, self.instead)


def edit(tree: Path, path: str, text: str, instead: str) -> None:
    """Write another text in the place of one that stands in a file once.

    Raises:
      LookupError: it is not there, or more than once.
    """
    file = tree / path
    source = file.read_text(encoding="utf-8") if file.exists() else ""
    if source.count(text) != 1 or text == instead:
        raise LookupError(f"stands in {path} {source.count(text)} times: {text!r}")
    file.write_text(source.replace(text, instead), encoding="utf-8")


ENGINE = [
    Mutation(
        "A token of an earlier use of a slot is nobody's: its generation is compared.",
        "csrc/op.c",
        "if (op->state == UT_OP_FREE || op->sqe.user_data != token)",
        "if (op->state == UT_OP_FREE)",
        (
            "csrc/tests/test_op.c::a_token_names_one_use_of_a_slot",
            "csrc/tests/test_cancel.c::a_late_answer_does_not_reach_the_slots_next_user",
        ),
    ),
    Mutation(
        "A slot has a new generation each time that it is freed.",
        "csrc/op.c",
        "op->generation = (op->generation + 1) & GENERATION_MASK;",
        "op->generation = op->generation & GENERATION_MASK;",
        ("csrc/tests/test_op.c::a_token_names_one_use_of_a_slot",),
    ),
    Mutation(
        "An operation that was cancelled is over with its own last cqe, not with one before.",
        "csrc/op.c",
        "{REFUSED,         REFUSED,         UT_OP_CANCELING, UT_OP_DONE, REFUSED,    REFUSED},",
        "{REFUSED,         REFUSED,         UT_OP_IN_FLIGHT, UT_OP_DONE, REFUSED,    REFUSED},",
        (
            "csrc/tests/test_op.c",
            "csrc/tests/test_multishot.c::a_cancel_between_its_cqes",
        ),
    ),
    Mutation(
        "The buffers of a batch stay where they are until the next wait: a flush frees none.",
        "csrc/engine.c",
        "    bool no_memory = false; /* as in run_work() */",
        "    bool no_memory = false;\n    release_batch(engine);",
        ("csrc/tests/test_engine.c::a_flush_submits_and_does_not_touch_the_batch",),
    ),
    Mutation(
        "Each buffer of a batch goes home at its end, and the kernel is told.",
        "csrc/engine.c",
        "            dirty[group] = true;",
        "            dirty[group] = false;",
        (
            "csrc/tests/test_engine.c::no_buffer_is_an_answer_and_the_batchs_end_brings_them_back",
            "tests/test_sockets_edges.py::test_more_ready_receives_than_any_pool_has_buffers",
        ),
    ),
    Mutation(
        "An attempt that was refused with a buffer in its hand gives it back.",
        "csrc/engine.c",
        "    put_back(engine, op, cqe->flags);\n    if (canceling) {",
        "    (void)put_back;\n    if (canceling) {",
        ("csrc/tests/test_ladder.c::a_refusal_with_a_buffer_puts_it_back",),
    ),
    Mutation(
        "No enter that might find no small buffer, while the batch holds so many.",
        "csrc/engine.c",
        "small->entries - small->leased < WORK_MAX;",
        "small->leased > small->entries;",
        ("csrc/tests/test_prep.c::rounds_stop_while_there_are_buffers_for_one_more",),
    ),
    Mutation(
        "A receive is tried when there is a buffer for it, and stands until then.",
        "csrc/engine.c",
        "    if (supply != NULL && !has_buffer(engine, supply))",
        "    if (supply != NULL && supply->attempts > UINT16_MAX)",
        (
            "csrc/tests/test_standing.c::they_are_tried_as_buffers_come_home_oldest_first",
            "csrc/tests/test_standing.c::a_flush_tries_no_more_than_there_are_buffers",
        ),
    ),
    Mutation(
        "A receive that stood counts as one that has waited, for its stream's next.",
        "csrc/engine.c",
        "    op->waited = true;\n}\n\nstatic void stand_no_more",
        "}\n\nstatic void stand_no_more",
        ("csrc/tests/test_standing.c::one_that_stood_says_that_it_has_waited",),
    ),
    Mutation(
        "Those that stand are tried before those who come.",
        "csrc/engine.c",
        "    submit_standing(engine);\n    size_t moved = 0;",
        "    size_t moved = 0;",
        ("csrc/tests/test_standing.c::they_are_tried_as_buffers_come_home_oldest_first",),
    ),
    Mutation(
        "A thread does not sleep while a receive stands.",
        "csrc/engine.c",
        "engine->queue_length > 0 || anybody_stands(engine) ? UT_LOOK_SOMETHING",
        "engine->queue_length > 0 ? UT_LOOK_SOMETHING",
        ("csrc/tests/test_standing.c::a_thread_that_wants_to_sleep_is_told",),
    ),
    Mutation(
        "A cancel of what is in flight is sent to the kernel.",
        "csrc/engine.c",
        "    if (op->main == UT_REQUEST_SENT)\n        push(engine, token | UT_TOKEN_CANCEL);\n"
        "    if (op->watch",
        "    if (op->watch",
        (
            "csrc/tests/test_ladder.c::a_cancel_at_every_step_and_in_every_order",
            "tests/test_cancel.py::test_cancelled_in_flight",
        ),
    ),
    Mutation(
        "A watch is cancelled when its operation has its answer.",
        "csrc/engine.c",
        "        if (op->state != UT_OP_CANCELING)\n            push(",
        "        if (op->state == UT_OP_FREE)\n            push(",
        ("csrc/tests/test_ladder.c::a_watch_is_cancelled_when_its_operation_is_over",),
    ),
    Mutation(
        "A watch is armed once, and not beside one that is armed.",
        "csrc/engine.c",
        "if (ut_step_is_watched(step) && op->watch == UT_REQUEST_ABSENT && !of_watch) {",
        "if (ut_step_is_watched(step) && !of_watch) {",
        (
            "csrc/tests/test_ladder.c::a_bit_that_stays_set_ends_in_a_sleeping_watch",
            "csrc/tests/test_ladder.c::a_cancel_at_every_step_and_in_every_order",
        ),
    ),
    Mutation(
        "A watch is not armed again because of its own cqe: that might be a spin.",
        "csrc/engine.c",
        "if (ut_step_is_watched(step) && op->watch == UT_REQUEST_ABSENT && !of_watch) {",
        "if (ut_step_is_watched(step) && op->watch == UT_REQUEST_ABSENT &&\n"
        "        (of_watch || !of_watch)) {",
        (
            "csrc/tests/test_ladder.c::an_error_of_the_watch_beside_a_request_does_not_spin",
            "csrc/tests/test_ladder.c::a_watch_that_ends_is_armed_again",
        ),
    ),
    Mutation(
        "What a wait ends with lets go of files: watches that linger are cancelled at once.",
        "csrc/engine.c",
        "    if (engine->lingering > 0 &&\n",
        "    if (engine->lingering > 1000 &&\n",
        ("csrc/tests/test_ladder.c::a_watch_is_cancelled_at_once_though_buffers_are_short",),
    ),
    Mutation(
        "A lost cqe (-EBADR) is told by the next wait, though other cqes came with the error.",
        "csrc/engine.c",
        "    if (error == -EBADR)\n",
        "    if (error == -EBADF)\n",
        ("csrc/tests/test_wait.c::a_lost_cqe_is_told_though_others_came_with_it",),
    ),
    Mutation(
        "A submission hides a signal, and that is not taken for the end of the time.",
        "csrc/engine.c",
        "return over ? 0 : -EINTR; /* a submission hid what ended the wait */",
        "return over && false ? -EINTR : 0;",
        ("csrc/tests/test_wait.c::a_submission_hides_a_signal_and_it_is_not_taken_for_the_end",),
    ),
    Mutation(
        "Operations that found no memory are tried again after a millisecond.",
        "csrc/engine.c",
        "    if (timeout_ns < 0 || timeout_ns > RETRY_NS)\n",
        "    if (timeout_ns > RETRY_NS)\n",
        (
            "csrc/tests/test_wait.c::no_memory_and_a_wait",
            "csrc/tests/test_wait.c::no_memory_at_all_sleeps_and_does_not_spin",
            "csrc/tests/test_wait.c::no_memory_for_a_request_keeps_it_for_later",
        ),
    ),
    Mutation(
        "The kernel's work that is left is done before the wait ends, or 64 receives are 4 ticks.",
        "csrc/ring.c",
        "return (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;",
        "return (flags & IORING_SQ_CQ_OVERFLOW) != 0;",
        (
            "csrc/tests/test_wait.c::sixty_four_ready_receives_are_one_batch",
            "csrc/tests/test_real.c::sixty_four_ready_operations_are_one_batch",
        ),
    ),
    Mutation(
        "A completion queue that overflowed is emptied.",
        "csrc/ring.c",
        "return (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;",
        "return (flags & IORING_SQ_TASKRUN) != 0;",
        (
            "csrc/tests/test_engine.c::an_overflowing_CQ_loses_nothing",
            "csrc/tests/test_fuzz.c::a_block_of_seeds",
        ),
    ),
    Mutation(
        "A wait's time has nanoseconds.",
        "csrc/ring.c",
        "ts.tv_nsec = timeout_ns % 1000000000;",
        "ts.tv_nsec = 0;",
        (
            "csrc/tests/test_ring.c::the_wait_ends_with_its_time",
            "csrc/tests/test_wait.c::falsy_means_that_the_time_is_over",
        ),
    ),
    Mutation(
        "Memory that the kernel may still write to is given up and not freed.",
        "csrc/engine.c",
        "bool leaked = leak || engine->in_flight > 0;",
        "bool leaked = leak;",
        (
            "csrc/tests/test_engine.c::closing_with_operations_in_flight_leaks_and_says_so",
            "csrc/tests/test_real.c::closing_with_operations_in_flight_leaks",
        ),
    ),
    Mutation(
        "A forked child must not cancel on its parent's ring.",
        "csrc/engine.c",
        "int ut_engine_cancel(struct ut_engine *engine, uint32_t slot)\n{\n"
        "    if (ut_engine_is_foreign(engine))",
        "int ut_engine_cancel(struct ut_engine *engine, uint32_t slot)\n{\n    if (false)",
        ("csrc/tests/test_faults.c::a_forked_child_is_refused_and_may_open_its_own",),
    ),
    Mutation(
        "A look sees a lost cqe's error that is still to be told, and nobody sleeps over it.",
        "csrc/engine.c",
        "    if (result < 0 || engine->pending_error < 0 || ut_ring_cq_ready(ring) > 0 ||\n",
        "    if (result < 0 || ut_ring_cq_ready(ring) > 0 ||\n",
        ("csrc/tests/test_look.c::errors_are_told",),
    ),
    Mutation(
        "A pause doubles with each attempt in vain.",
        "csrc/ladder.c",
        "        pauses->length++;",
        "        pauses->length += 0;",
        (
            "csrc/tests/test_ladder.c::pauses_grow_to_32_ms_and_begin_again_after_a_sleep",
            "csrc/tests/test_line.c::a_line_pauses_as_the_ladder_does",
        ),
    ),
    Mutation(
        "The echo of an attempt in vain cuts no pause: a change while the pause is young.",
        "csrc/ladder.c",
        "return now_ns < pauses->half_ns;",
        "return now_ns + 1000000000 < pauses->half_ns;",
        (
            "csrc/tests/test_ladder.c::an_echo_does_not_spin",
            "csrc/tests/test_ladder.c::a_pause_is_young_for_its_first_half",
        ),
    ),
    Mutation(
        "After a poll that told the truth an attempt follows: ready is not the same as done.",
        "csrc/ladder.c",
        "    [UT_STEP_TRY_READY]       = {UT_STEP_WATCH, ",
        "    [UT_STEP_TRY_READY]       = {UT_STEP_POLL,  ",
        (
            "csrc/tests/test_ladder.c::a_bit_that_stays_set_ends_in_a_sleeping_watch",
            "csrc/tests/test_ladder.c",
        ),
    ),
    Mutation(
        "A line's clock runs from the first who is parked in it.",
        "csrc/engine.c",
        "    if (start_clock(engine, op->line))\n        return true;",
        "    if (op->line != NULL)\n        return true;",
        (
            "csrc/tests/test_line.c::many_have_one_clock",
            "csrc/tests/test_line.c::each_has_its_turn",
        ),
    ),
    Mutation(
        "Who has its answer gives two others of its line a turn.",
        "csrc/engine.c",
        "leave_line(engine, op, res >= 0, UT_LINE_TURNS_AFTER_ANSWER);",
        "leave_line(engine, op, res >= 0, 0);",
        ("csrc/tests/test_line.c::an_answer_gives_two_others_their_turn",),
    ),
    Mutation(
        "A look in vain takes credit, or an idle engine would look before each sleep.",
        "csrc/spin.c",
        "        add(spin, -MISS_COSTS);",
        "        add(spin, MISS_COSTS);",
        ("csrc/tests/test_spin.c::one_look_in_vain_costs_several_short_sleeps",),
    ),
    Mutation(
        "A receive never waits in the kernel: it says MSG_DONTWAIT.",
        "csrc/prep.c",
        "        sqe->op_flags = MSG_DONTWAIT;",
        "        sqe->op_flags = 0;",
        (
            "csrc/tests/test_ladder.c::every_kind_waits_by_the_ladder",
            "tests/test_kernel_workers.py",
        ),
    ),
    Mutation(
        "An old kernel's accept that would wait is cancelled as it is submitted.",
        "csrc/engine.c",
        "    if (needs_a_cancel(op))\n",
        "    if (needs_a_cancel(op) && engine->enters == 0)\n",
        ("csrc/tests/test_ladder.c::an_old_kernels_accept_goes_with_its_cancel",),
    ),
    Mutation(
        "A buffer ring that is closed leaves its memory.",
        "csrc/bufring.c",
        "        kernel->unmap(bufring->entries_memory, bufring->entries_size);",
        "        (void)kernel;",
        (
            "csrc/tests/test_bufring.c::a_failing_call_leaves_nothing_behind",
            "csrc/tests/test_engine.c::closing_inside_a_batch_leaks_nothing",
        ),
    ),
    Mutation(
        "A name that is longer than any address is refused, and not copied.",
        "csrc/message.c",
        "    if (length > sizeof message->name)\n        return -EINVAL;",
        "    if (length > 10 * sizeof message->name)\n        return -EINVAL;",
        ("csrc/tests/test_message.c::a_name_that_is_too_long_is_refused",),
    ),
]

DOOR = [
    Mutation(
        "Two trio sockets around one open file stand in one line.",
        "src/uring_trio/_endpoints.py",
        "            if endpoint.owner is owner:\n                return endpoint",
        "            if endpoint is owner:\n                return endpoint",
        ("tests/test_sockets_edges.py::test_two_sockets_around_one_open_file_share_a_line",),
    ),
    Mutation(
        "A wait that a signal interrupts goes on with the time that is left, in a thread too.",
        "src/uring_trio/_slots.py",
        "                timeout_ns = max(0, math.ceil((end - monotonic()) * 1e9))",
        "                timeout_ns = max(0, timeout_ns)",
        (
            "tests/test_signals.py::test_interrupted_waits_keep_their_timeout",
            "tests/test_signals.py::test_interrupted_waits_of_a_thread_keep_their_timeout",
        ),
    ),
    Mutation(
        "What the kernel has is not withdrawn: its slot and its memory are taken.",
        "src/uring_trio/_slots.py",
        "        if self.ring.cancel(slot) != 0:",
        "        if self.ring.cancel(slot) < 0:",
        (
            (
                "tests/test_slots.py::"
                "test_what_is_withdrawn_leaves_its_slot_and_what_is_asked_to_end_does_not"
            ),
            "tests/test_cancel.py::test_cancelled_in_flight",
        ),
    ),
    Mutation(
        "A slot is empty before its occupant is told: who is told may have it again.",
        "src/uring_trio/_slots.py",
        "                table[slot] = None\n            occupant.complete(slot, res, flags, offset)\n",
        "                pass\n            occupant.complete(slot, res, flags, offset)\n"
        "            table[slot] = None\n",
        (
            (
                "tests/test_slots.py::"
                "test_a_slot_is_empty_before_its_occupant_is_told_of_the_last_record"
            ),
        ),
    ),
    Mutation(
        "Who took the records of batches is taken off at its end.",
        "src/uring_trio/_slots.py",
        "            takers.remove(take)",
        "            takers.count(take)",
        (
            "tests/test_slots.py::test_takers_are_taken_off_also_by_an_error_and_in_any_order",
            "tests/test_gain_records.py::test_a_server_that_has_ended_has_no_batch_any_more",
        ),
    ),
    Mutation(
        "The manager's answer is falsy only when the time is over, and not when somebody is busy.",
        "src/uring_trio/_io_manager.py",
        "        if not answer and self._must_not_sleep():",
        "        if not answer and self.closed:",
        ("tests/test_io_manager.py::test_who_is_found_busy_is_not_the_end_of_the_time",),
    ),
    Mutation(
        "The fast way leaves behind what the plain way does: whether a receive waits first.",
        "src/uring_trio/_operations.py",
        "            line.poll_first = flags & HAD_TO_WAIT == RECORD_WAITED",
        "            line.poll_first = flags & RECORD_WAITED != 0",
        ("tests/test_fast_ways.py::test_one_record_chooses_the_same_next_receive",),
    ),
    Mutation(
        "A stream's fast receive asks for the buffers that the plain one asks for.",
        "src/uring_trio/_streams.py",
        "            group = receiver.group if max_bytes > SMALLEST_BUFFER else 0",
        "            group = receiver.group",
        ("tests/test_fast_ways.py::test_a_stream_begins_as_its_lines_do",),
    ),
    Mutation(
        "A record that C is told of leaves behind what it does in Python: how to receive next.",
        "csrc/hot/deliver.c",
        "    receiver->poll_first = had_to_wait == UT_RECORD_WAITED;",
        "    receiver->poll_first = had_to_wait != 0;",
        ("tests/test_fast_ways.py::test_one_record_chooses_the_same_next_receive",),
    ),
    Mutation(
        "An operation that somebody stands behind is none of C's.",
        "csrc/hot/deliver.c",
        "           nobody_waits(((struct line *)line)->waiting);",
        "           ((struct line *)line)->waiting != NULL;",
        ("tests/test_fast_ways.py::test_every_situation_is_left_the_same",),
    ),
    Mutation(
        "An operation that was cut off is none of C's.",
        "csrc/hot/deliver.c",
        "           operation->raise_cancel != NULL && is_none(operation->raise_cancel) && line",
        "           operation->raise_cancel != NULL && line",
        ("tests/test_fast_ways.py::test_every_situation_is_left_the_same",),
    ),
    Mutation(
        "A stream's receive in C asks for the buffers that Python asks for.",
        "csrc/hot/begin.c",
        "        unsigned group = size > known.smallest_buffer ? (unsigned)receiver->group : 0;",
        "        unsigned group = (unsigned)receiver->group;",
        ("tests/test_hot.py::test_what_is_plain_begins_as_in_python",),
    ),
    Mutation(
        "A socket whose file is another now is none of C's.",
        "csrc/hot/begin.c",
        "                stdlib != NULL && found->owner == stdlib;",
        "                stdlib != NULL && found->owner != NULL;",
        ("tests/test_hot.py::test_what_is_not_plain_is_left_alone",),
    ),
    Mutation(
        "A send in C lets the stream's guard go, whatever ends it.",
        "csrc/hot/call.c",
        "    call->state = OVER;\n    let_go(call);",
        "    call->state = OVER;",
        (
            "tests/test_hot.py::test_the_guard_of_a_stream_is_let_go_whatever_ends_a_send",
            "tests/test_hot.py::test_a_call_that_is_ended_from_without_lets_the_guard_go",
        ),
    ),
    Mutation(
        "An instrument hears of a task that C wakes.",
        "csrc/hot/wake.c",
        "    return hooked ? call_waker(waker->wake, task, value) : wake_plainly(waker, task, value);",
        "    return wake_plainly(waker, task, value);",
        ("tests/test_hot.py::test_an_instrument_hears_of_tasks_that_messages_wake",),
    ),
    Mutation(
        "A call in C that is never awaited says so.",
        "csrc/hot/call.c",
        "    if (call->state == FRESH)\n        warn(call);",
        "    if (call->state == OVER)\n        warn(call);",
        ("tests/test_hot.py::test_a_call_that_is_never_awaited_says_so",),
    ),
    Mutation(
        "A closed ring is asked for nothing.",
        "csrc/hot/door.c",
        "    ((struct door *)self)->engine = NULL;",
        "    (void)self;",
        ("tests/test_hot.py::test_a_door_refuses_what_it_cannot_do",),
    ),
    Mutation(
        "What C notes of a connection is noted once: who delivers the rest passes it over.",
        "csrc/hot/route.c",
        "        records[i].flags |= UT_RECORD_TAKEN;\n",
        "",
        ("tests/test_gain_fast_ways.py::test_a_batch_is_looked_at_as_in_python",),
    ),
    Mutation(
        "Input of a connection that has no short way is not noted.",
        "csrc/hot/route.c",
        "record->res < known.smallest_buffer && connection->way == known.way_small;",
        "record->res < known.smallest_buffer && connection->way != known.way_large;",
        ("tests/test_gain_fast_ways.py::test_a_batch_is_looked_at_as_in_python",),
    ),
    Mutation(
        "Input that is leased still is copied before more is noted.",
        "csrc/hot/route.c",
        "        if (stash(connection->inbound) < 0)",
        "        if (connection->inbound == NULL)",
        ("tests/test_gain_fast_ways.py::test_a_batch_is_looked_at_as_in_python",),
    ),
    Mutation(
        "A worker that sleeps is woken once for a batch.",
        "csrc/hot/route.c",
        "    turn->parked = false;\n",
        "",
        ("tests/test_gain_fast_ways.py::test_a_batch_is_looked_at_as_in_python",),
    ),
    Mutation(
        "Input is its thread's alone, in C, too.",
        "csrc/hot/conn.c",
        "    return may_use(handle->owner) && is_of(handle->inbound, known.Inbound) &&",
        "    return is_of(handle->inbound, known.Inbound) &&",
        ("tests/test_gain_fast_ways.py::test_input_is_taken_as_in_python",),
    ),
    Mutation(
        "C takes the input of the plain row alone.",
        "csrc/hot/conn.c",
        "                   inbound->state == known.plain_input && inbound->buffer",
        "                   inbound->state != NULL && inbound->buffer",
        (
            "tests/test_gain_fast_ways.py::test_c_takes_the_input_of_the_plain_row_alone",
            "tests/test_gain_fast_ways.py::test_input_is_taken_as_in_python",
        ),
    ),
    Mutation(
        "C takes the output of the plain row alone.",
        "csrc/hot/conn.c",
        "    if (outbound->state != known.plain_output || outbound->sending == NULL ||",
        "    if (outbound->sending == NULL ||",
        ("tests/test_gain_fast_ways.py::test_output_is_taken_as_in_python",),
    ),
    Mutation(
        "A number that is no plain integer is Python's to look at.",
        "csrc/hot/conn.c",
        "    if (count != 1 || !PyLong_CheckExact(arguments[0]))",
        "    if (count != 1 || !PyLong_Check(arguments[0]))",
        ("tests/test_gain_fast_ways.py::test_input_is_taken_as_in_python",),
    ),
    Mutation(
        "A ring that is closed is not read.",
        "csrc/hot/conn.c",
        "    PyObject *data = memory != NULL ? PyBytes_FromStringAndSize(memory + at, size) : NULL;",
        "    PyObject *data = PyBytes_FromStringAndSize(memory != NULL ? memory + at : NULL, size);",
        ("tests/test_gain_fast_ways.py::test_a_ring_that_is_gone_is_not_read",),
    ),
    Mutation(
        "What a callback has changed is looked at anew.",
        "csrc/hot/sweep.c",
        "    if (connection->way != known.way_small)\n"
        "        return call_method((PyObject *)connection, names.settle, NULL);\n",
        "",
        ("tests/test_gain_fast_ways.py::test_a_turn_is_taken_as_in_python",),
    ),
    Mutation(
        "An exception that is none of a callback's own ends the turn where it comes from.",
        "csrc/hot/sweep.c",
        "    if (!PyErr_ExceptionMatches(PyExc_Exception))\n        return -1;\n",
        "",
        ("tests/test_gain_fast_ways.py::test_a_turn_is_taken_as_in_python",),
    ),
    Mutation(
        "Who does not answer is watched for errors, by C, too.",
        "csrc/hot/sweep.c",
        "    } else if (inbound->watch == known.idle && is_none(outbound->sending))",
        "    } else if (inbound->watch != known.idle && is_none(outbound->sending))",
        ("tests/test_gain_fast_ways.py::test_a_turn_is_taken_as_in_python",),
    ),
    Mutation(
        "The kernel has a send until its completion: C begins no other.",
        "csrc/hot/sweep.c",
        "    if (!is_none(outbound->sending))\n        return 0;\n",
        "",
        ("tests/test_gain_fast_ways.py::test_a_turn_is_taken_as_in_python",),
    ),
    Mutation(
        "What the socket does not take at once is sent later.",
        "csrc/hot/sweep.c",
        "        if (!failed && sent != size)",
        "        if (!failed && sent < 0)",
        (
            "tests/test_gain_fast_ways.py::test_what_is_sent_at_once_is_sent_as_in_python",
            "tests/test_gain_fast_ways.py::test_a_turn_is_taken_as_in_python",
        ),
    ),
    Mutation(
        "In a long turn what was written leaves before the next callback.",
        "csrc/hot/sweep.c",
        "    return result > 0 ? call_method((PyObject *)turn, names.sweep_dirty, NULL) : result;",
        "    return result < 0 ? result : 0;",
        ("tests/test_gain_fast_ways.py::test_a_turn_is_taken_as_in_python",),
    ),
    Mutation(
        "A message leaves nothing behind.",
        "csrc/hot/sweep.c",
        "    Py_XDECREF(data);\n    Py_DECREF(pieces);",
        "    Py_DECREF(pieces);",
        ("tests/test_gain_fast_ways.py::test_nothing_is_left_of_many_messages",),
    ),
    Mutation(
        "Only the poll of large input tells of that.",
        "csrc/hot/route.c",
        "           (long)record->slot == link->receive_slot && connection",
        "           connection",
        ("tests/test_gain_fast_ways.py::test_a_batch_is_looked_at_as_in_python",),
    ),
    Mutation(
        "A method in C calls that of Python for what is not plain.",
        "csrc/hot/method.c",
        "    if (count > 0 && keywords == NULL &&",
        "    if (count > 0 &&",
        (("tests/test_gain_fast_ways.py::test_a_bound_method_looks_and_is_called_as_in_python"),),
    ),
    Mutation(
        "ENOBUFS of a receive into a provided buffer is back-pressure: it is armed again.",
        "src/uring_trio/_operations.py",
        "elif res == EINTR or (res == ENOBUFS and self.group() >= 0):",
        "elif res == EINTR:",
        ("tests/test_sockets_edges.py::test_more_ready_receives_than_any_pool_has_buffers",),
    ),
    Mutation(
        "ENOBUFS without a provided buffer is an error like any other.",
        "src/uring_trio/_operations.py",
        "elif res == EINTR or (res == ENOBUFS and self.group() >= 0):",
        "elif res in (EINTR, ENOBUFS):",
        ("tests/test_sockets_edges.py::test_sendmsg_with_too_much_control_data",),
    ),
    Mutation(
        "Memory of the user's is let go of with the last cqe.",
        "src/uring_trio/_operations.py",
        "        if type(pinned) is not bytes:\n            unpin(pinned)\n\n\ndef deliver",
        "        del pinned\n\n\ndef deliver",
        (
            "tests/test_sockets_args.py::test_buffers_are_released_after_every_outcome",
            "tests/test_stream_rules.py::test_buffer_can_be_resized_after_send_all",
        ),
    ),
    Mutation(
        "A second task in a line is busy when both would block, and not before that is known.",
        "src/uring_trio/_lines.py",
        "        submitted = current.tick != self.slots.tick and self.slots.all_submitted()",
        "        submitted = current.tick == self.slots.tick",
        (
            "tests/test_sockets_datagram.py::test_tasks_may_receive_when_the_data_is_there",
            "tests/test_sockets_stream.py::test_tasks_on_one_socket_receive_in_order",
        ),
    ),
    Mutation(
        "An operation that is about to leave makes nobody busy who comes to stand behind it.",
        "src/uring_trio/_lines.py",
        "        if submitted and current.is_waited_for():",
        "        if submitted and current.task is not None:",
        (
            "tests/test_lines.py::test_nobody_is_busy_while_the_first_is_about_to_leave",
            "tests/test_cancel.py::test_next_receive_is_held_back_while_the_first_is_cancelled",
        ),
    ),
    Mutation(
        "An operation that is about to leave makes nobody busy who stands behind it.",
        "src/uring_trio/_lines.py",
        "            and operation.is_waited_for()\n",
        "            and operation.task is not None\n",
        ("tests/test_lines.py::test_nobody_is_busy_while_the_first_is_about_to_leave",),
    ),
    Mutation(
        "Who cancels the clock of a full UNIX listener hands it on to another who waits.",
        "src/uring_trio/_socket_operations.py",
        "            if self.clock is not None:\n                self.clock.end_pause()",
        "            if self.clock is not None:\n                pass",
        ("tests/test_retries_accept.py::test_many_connects_wait_for_one_backlog",),
    ),
    Mutation(
        "A file that is dropped is closed at once, and not by some later collection.",
        "src/uring_trio/_lines.py",
        "        super().break_cycles()\n        self.prep_receive = None",
        "        super().break_cycles()",
        ("tests/test_low_water.py::test_a_stream_that_is_dropped_is_closed_at_once",),
    ),
    Mutation(
        "The end of a run waits for the kernel to finish.",
        "src/uring_trio/_draining.py",
        "        if not ring.in_flight() or not slots.occupants():",
        "        if ring.in_flight() or not slots.occupants():",
        ("tests/test_io_manager.py::test_a_crashed_run_leaves_nothing_behind",),
    ),
    Mutation(
        "The end of a run does not wait for a cqe that came, and that a signal handler has lost.",
        "src/uring_trio/_draining.py",
        "        if not ring.in_flight() or not slots.occupants():",
        "        if not slots.occupants():",
        ("tests/test_signals.py::test_closing_waits_for_no_cqe_that_a_handler_lost",),
    ),
    Mutation(
        "The end of a run frees nothing before the kernel has finished with it.",
        "src/uring_trio/_draining.py",
        "        if occupant is not None and slots.withdraw(slot):",
        "        if occupant is not None and (slots.withdraw(slot) or table[slot]):",
        ("tests/test_slots.py::test_at_the_end_each_slot_ends_once_and_nobody_is_told",),
    ),
    Mutation(
        "A poll that nobody waits for is taken out of the kernel at once: it holds its file.",
        "src/uring_trio/_polls.py",
        "            if not self.drop():\n                slots.release_files()\n"
        "        return Abort.SUCCEEDED",
        "            self.drop()\n        return Abort.SUCCEEDED",
        ("tests/test_close_after_wait.py::test_right_after_somebody_has_cancelled_it",),
    ),
    Mutation(
        "A poll that waits on after it was told is armed for what changes, or it would spin.",
        "src/uring_trio/_polls.py",
        "                res = self._go_on(multishot=half_closed)",
        "                res = self._go_on(multishot=False)",
        (
            (
                "tests/test_readiness.py::"
                "test_waiting_on_a_half_closed_full_socket_blocks_and_can_be_cancelled"
            ),
            "tests/test_readiness.py::test_waiting_on_a_half_closed_full_socket_costs_nothing",
        ),
    ),
    Mutation(
        "POLLRDHUP alone does not make a full socket writable.",
        "src/uring_trio/_polls.py",
        "            half_closed = not res & (self.events | POLLERR | POLLHUP)",
        "            half_closed = not res",
        ("tests/test_readiness.py::test_half_closed_peer_does_not_make_a_full_socket_writable",),
    ),
    Mutation(
        "What was there and is gone when its task would be woken is not told.",
        "src/uring_trio/_polls.py",
        "        return not beside.try_look(self.fd, self.events) and stays_ready(self.fd)",
        "        return self.fd < 0 and stays_ready(self.fd)",
        ("tests/test_readiness_taken.py::test_what_was_there_and_is_gone_is_not_told",),
    ),
    Mutation(
        "What is always ready is asked of epoll, which refuses what cannot be waited for.",
        "src/uring_trio/_polls.py",
        "    if found == ALL_READY:",
        "    if found == POLLNVAL:",
        (
            "tests/test_pollable_files.py::test_as_on_stock",
            "tests/test_pollable_files.py::test_wait_on_a_device_that_cannot_be_polled",
        ),
    ),
    Mutation(
        "A registration of the eventfd is good for one signal: after one it is made anew.",
        "src/uring_trio/_guest.py",
        "        else:\n            self._ring.register_eventfd(self._event_fd)",
        "        else:\n            pass",
        (
            "tests/test_guest_helper.py::test_registers_anew_only_after_a_signal",
            "tests/test_guest_wakeups.py::test_alone",
        ),
    ),
    Mutation(
        "A helper thread that nobody has prepared for does not sleep.",
        "src/uring_trio/_guest.py",
        "        if not self.prepared:\n            return True",
        "        if not self.prepared and self._starved:\n            return True",
        ("tests/test_guest_helper.py::test_does_not_sleep_unprepared",),
    ),
    Mutation(
        "A helper thread sees the eventfds that tasks wait for with its own eyes.",
        "src/uring_trio/_guest.py",
        "not in _SHOWN:",
        "in _SHOWN:",
        (
            "tests/test_guest_helper.py::test_sees_what_the_ring_might_be_late_with",
            "tests/test_guest_helper.py::test_looks_at_no_other_kind",
        ),
    ),
    Mutation(
        "The host's cancels wake its helper thread, which would sleep on.",
        "src/uring_trio/_guest.py",
        "            beside.write_some(self._event_fd, ONE_EVENT)",
        "            beside.write_some(self._event_fd, bytes(len(ONE_EVENT)))",
        (
            "tests/test_guest.py::test_wake_from_the_hosts_own_code",
            "tests/test_guest.py::test_host_cancels_while_the_helper_thread_waits",
        ),
    ),
    Mutation(
        "A datagram that somebody keeps is not used again.",
        "src/uring_trio/gain/_datagram.py",
        "            and getrefcount(conn) == conn_held\n",
        "",
        ("tests/test_gain_udp_kept.py::test_what_is_kept_stays_what_it_was",),
    ),
    Mutation(
        "A datagram with a context is not used again.",
        "src/uring_trio/gain/_datagram.py",
        "            and conn.context is None\n",
        "",
        ("tests/test_gain_udp_kept.py::test_a_context_stays_with_its_datagram_alone",),
    ),
    Mutation(
        "A datagram with a weak reference is not used again.",
        "src/uring_trio/gain/_datagram.py",
        "            and conn.__weakref__ is None\n",
        "",
        ("tests/test_gain_udp_kept.py::test_a_weak_reference_is_to_one_datagram",),
    ),
    Mutation(
        "What nobody keeps of a datagram is used again.",
        "src/uring_trio/gain/_datagram.py",
        "            self._spare = datagram, conn",
        "            self._spare = None",
        ("tests/test_gain_udp_kept.py::test_what_nobody_keeps_is_used_again",),
    ),
    Mutation(
        "What was left unread of a datagram is not the next one's.",
        "src/uring_trio/gain/_halves.py",
        "        self.pool = pool\n        self.lease_at = 0\n        self.lease_size = size\n",
        "        self.pool = pool\n        self.lease_size = size\n",
        ("tests/test_gain_udp_kept.py::test_what_was_left_unread_is_not_the_nexts",),
    ),
    Mutation(
        "Who is cancelled takes no datagram that is there.",
        "src/uring_trio/_sockets.py",
        "await trio.lowlevel.checkpoint_if_cancelled()\n        tells_peer",
        "tells_peer",
        ("tests/test_datagrams_at_once.py::test_who_is_cancelled_takes_nothing",),
    ),
    Mutation(
        "Who is cancelled sends no datagram.",
        "src/uring_trio/_sockets.py",
        "await trio.lowlevel.checkpoint_if_cancelled()\n                    pinned = data",
        "pinned = data",
        ("tests/test_datagrams_at_once.py::test_who_is_cancelled_sends_nothing",),
    ),
    Mutation(
        "A datagram at once is a schedule point.",
        "src/uring_trio/_sockets.py",
        "    await trio.lowlevel.cancel_shielded_checkpoint()\n    if answer < 0:",
        "    if answer < 0:",
        ("tests/test_datagrams_at_once.py::test_a_receive_is_one_checkpoint",),
    ),
    Mutation(
        "The error of a call at once is raised.",
        "src/uring_trio/_sockets.py",
        "    if answer < 0:\n        checked(answer)",
        "    del answer",
        ("tests/test_datagrams_at_once.py::test_an_error_of_a_send_is_told_once",),
    ),
    Mutation(
        "Who stands in the line is not overtaken by a datagram at once.",
        "src/uring_trio/_sockets.py",
        "if self.takes_datagrams and sender.current is None:\n                    to =",
        "if self.takes_datagrams:\n                    to =",
        ("tests/test_datagrams_at_once.py::test_who_stands_in_the_line_is_not_overtaken",),
    ),
    Mutation(
        "Who is cancelled before a datagram at once has its memory back.",
        "src/uring_trio/_sockets.py",
        "    except BaseException:\n        release()\n        raise",
        "    except BaseException:\n        raise",
        ("tests/test_datagrams_at_once.py::test_room_is_let_go_whatever_happens",),
    ),
    Mutation(
        "A cancel that meets a datagram leaves it in the socket.",
        "src/uring_trio/_socket_operations.py",
        "res = self._receive_now() if self.is_waited_for() else ECANCELED",
        "res = self._receive_now()",
        ("tests/test_datagrams_at_once.py::test_a_cancel_that_meets_a_datagram_leaves_it",),
    ),
    Mutation(
        "Where another was faster than the poll, a receive waits on.",
        "src/uring_trio/_socket_operations.py",
        "                self.message = Message(data_size=self.size)\n",
        "                res = ECANCELED\n",
        ("tests/test_datagrams_at_once.py::test_another_process_was_faster",),
    ),
    Mutation(
        "A datagram to nobody by name goes to the peer of a connected socket.",
        "csrc/beside.c",
        "const void *to = name_length > 0 ? name : NULL;",
        "const void *to = name;",
        ("csrc/tests/test_beside.c::without_a_receiver_a_datagram_goes_to_the_peer",),
    ),
    Mutation(
        "detach() gives EBADF to who waits, and ClosedResourceError to nobody: it is open.",
        "src/uring_trio/_sockets.py",
        "            let_go_everywhere(fd, detach=True)",
        "            let_go_everywhere(fd)",
        ("tests/test_sockets_origin.py::test_detach_wakes_those_who_wait_with_EBADF",),
    ),
    Mutation(
        "Leaving `with` lets go of the file, though stock closes it without a word.",
        "src/uring_trio/_sockets.py",
        "        if fd != -1:\n            let_go_everywhere(fd)\n",
        "        if fd == -1:\n            let_go_everywhere(fd)\n",
        ("tests/test_sockets_origin.py::test_leaving_with_while_a_receive_is_in_flight",),
    ),
    Mutation(
        "A connect that is cancelled closes its socket.",
        "src/uring_trio/_sockets.py",
        "            endpoint.manager.end_operations(endpoint)\n            close_socket(self._sock)",
        "            endpoint.manager.end_operations(endpoint)",
        ("tests/test_cancel.py::test_cancelled_connect_closes_the_socket",),
    ),
    Mutation(
        "Who sets SO_RCVLOWAT has all receivers look at it again.",
        "src/uring_trio/_sockets.py",
        "                if option == LOW_WATER:",
        "                if False:",
        ("tests/test_low_water.py::test_each_way_to_set_it",),
    ),
    Mutation(
        "A listener that was seen blocking is not trusted again.",
        "src/uring_trio/_sockets.py",
        "        if operation.might_block:\n            endpoint.try_no_more()",
        "        if operation.might_block:\n            pass",
        (
            (
                "tests/test_shared_listener.py::"
                "test_a_listener_that_was_seen_blocking_is_not_trusted_again"
            ),
        ),
    ),
    Mutation(
        "An orphaned message closes the descriptors that it has brought.",
        "src/uring_trio/_socket_operations.py",
        "                for fd in descriptors:\n                    close_fd(fd)",
        "                del descriptors",
        ("tests/test_sockets_unix.py::test_descriptors_that_nobody_receives_are_closed",),
    ),
    Mutation(
        "An accepted connection that nobody waits for any more is closed.",
        "src/uring_trio/_socket_operations.py",
        "        if self.on_ring and res >= 0:\n            close_fd(res)",
        "        if self.on_ring and res < -1000:\n            close_fd(res)",
        ("tests/test_shared_listener.py::test_an_accept_that_was_closed_keeps_no_connection",),
    ),
    Mutation(
        "A short send is followed by the rest.",
        "src/uring_trio/_streams.py",
        "        if value == len(data):\n            return",
        "        if type(value) is int and value > 0:\n            return",
        (
            "tests/test_streams.py::test_large_transfers_both_ways",
            "tests/test_stream_rules.py::test_half_done_send_all_ends_when_another_task_notifies",
        ),
    ),
    Mutation(
        "Closing a stream in a cancelled scope raises Cancelled.",
        "src/uring_trio/_streams.py",
        "        await trio.lowlevel.wait_task_rescheduled(_abort_at_once)",
        "        await trio.lowlevel.cancel_shielded_checkpoint()\n        return",
        (
            "tests/test_streams.py::test_closing_in_a_cancelled_scope_is_the_checkpoint_that_it_is_elsewhere",
        ),
    ),
    Mutation(
        "What sleeps on a file ends when it is closed, if it is only a sender, too.",
        "src/uring_trio/_io_manager.py",
        "receiver.current or receiver.waiting or sender.current or sender.waiting",
        "receiver.current or receiver.waiting",
        ("tests/test_close_after_wait.py", "tests/test_stream_rules.py"),
    ),
    Mutation(
        "Sending after send_eof() is ClosedResourceError, and not a broken connection.",
        "src/uring_trio/_streams.py",
        "    if exc.errno == errno.EPIPE and sock.did_shutdown_SHUT_WR:",
        "    if exc.errno == errno.EBADF and sock.did_shutdown_SHUT_WR:",
        ("tests/test_stream_rules.py::test_send_eof",),
    ),
    Mutation(
        "A message of a socket that has messages is never cut to our buffer.",
        "src/uring_trio/_streams.py",
        "        beside.getsockopt(fd, socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM\n"
        "        and beside",
        "        beside",
        ("tests/test_fd_stream_kinds.py::test_messages_of_a_socket",),
    ),
    Mutation(
        "A FIFO that was opened for the other way alone is not waited for.",
        "src/uring_trio/_streams.py",
        "    if mode == other:",
        "    if mode == -1:",
        ("tests/test_files_without_nowait.py",),
    ),
    Mutation(
        "The kernel is asked again after a fork.",
        "src/uring_trio/_probe.py",
        "    global _state\n    _state = ProcessState()",
        "    global _state\n    _state = _state or ProcessState()",
        ("tests/test_probe.py::test_kernel_is_asked_once_and_again_on_refresh_and_after_fork",),
    ),
    Mutation(
        "A forked child has locks that nobody holds before anything in it takes one.",
        "src/uring_trio/_process.py",
        "    for step in IN_CHILD:\n",
        "    for step in reversed(IN_CHILD):\n",
        ("tests/test_process.py::test_steps_are_made_in_the_order_that_is_stated",),
    ),
    Mutation(
        "The ring of a run has the sizes that were asked for.",
        "src/uring_trio/_hooks.py",
        "    sizes = RingSizes(ring)\n",
        "    sizes = RingSizes()\n",
        ("tests/test_ring_options.py::test_of_one_run",),
    ),
    Mutation(
        "A failure that may pass is asked about again by the next run.",
        "src/uring_trio/_probe.py",
        "        kernel_probe(again=_has_passing_error(_state.kernel_probe))\n"
        "        failure = kernel_failure()",
        "        failure = kernel_failure()",
        ("tests/test_probe.py::test_passing_failure_falls_back_and_is_forgotten_when_it_is_over",),
    ),
    Mutation(
        "A fallback is told of once for each cause.",
        "src/uring_trio/_probe.py",
        "        return  # in one step, because runs start in several threads at once",
        "        pass",
        (
            (
                "tests/test_probe.py::"
                "test_where_denied_auto_falls_back_with_one_warning_and_a_demand_fails"
            ),
        ),
    ),
    Mutation(
        "A signal handler may ask probe() while its own thread does: the lock is re-entrant.",
        "src/uring_trio/_process.py",
        "        self.kernel = threading.RLock()",
        "        self.kernel = threading.Lock()",
        ("tests/test_probe.py::test_handler_may_ask_while_its_own_thread_is_asking",),
    ),
]

# Of the callback servers.
GAIN = [
    Mutation(
        "Reading that stopped at high water goes on at low water, not before and not later.",
        "src/uring_trio/gain/_halves.py",
        "        self.low_water = high_water // 4",
        "        self.low_water = high_water // 2",
        ("tests/test_gain_backpressure.py::test_reading_goes_on_just_below_low_water",),
    ),
    Mutation(
        "drain() returns at low water, and not only when all was sent.",
        "src/uring_trio/gain/_connection.py",
        "        if self._drained is not None and outbound.size <= outbound.low_water:",
        "        if self._drained is not None and outbound.size == 0:",
        ("tests/test_gain_backpressure.py::test_drain_returns_just_below_low_water",),
    ),
    Mutation(
        "A send that takes a part is followed by the rest.",
        "src/uring_trio/gain/_halves.py",
        "        return self.sending is not None and self.send_at < len(self.sending)",
        "        return self.sending is not None and self.send_at < 0",
        (
            "tests/test_gain_engine.py::test_the_books_balance",
            "tests/test_gain_ends.py::test_write_and_close_of_32_mib_arrives_whole",
        ),
    ),
    Mutation(
        "An error before a worker is ready ends the other workers.",
        "src/uring_trio/gain/_serving.py",
        "                aborted = worker in self._aborted\n",
        "                aborted = worker in self._left_behind\n",
        ("tests/test_gain_serving.py::test_error_before_a_worker_is_ready_ends_the_others",),
    ),
    Mutation(
        "A deadline that moved earlier comes at its new time.",
        "src/uring_trio/gain/_deadlines.py",
        "            if deadline >= timer.filed_at:",
        "            if deadline >= 0:",
        ("tests/test_gain_timers.py",),
    ),
    Mutation(
        "A deadline that moved later does not come at its old time.",
        "src/uring_trio/gain/_deadlines.py",
        "            if timer.keys and timer.deadline > timer.filed_at:",
        "            if not timer.keys and timer.deadline > timer.filed_at:",
        ("tests/test_gain_timers.py",),
    ),
    Mutation(
        "What is no socket that somebody has left is never removed from its path.",
        "src/uring_trio/gain/_unix_path.py",
        "        if not stat.S_ISSOCK(os.lstat(path).st_mode):\n            return False",
        "        os.lstat(path)",
        ("tests/test_gain_listen_unix.py::test_what_is_no_socket_is_never_removed",),
    ),
    Mutation(
        "What another has put at a path is not removed with ours.",
        "src/uring_trio/gain/_unix_path.py",
        "            if _identity(self._path) == self._identity:\n                os.unlink",
        "            if _identity(self._path):\n                os.unlink",
        ("tests/test_gain_listen_unix.py::test_what_another_put_there_is_not_removed",),
    ),
    Mutation(
        "A balancer of the user's that names no worker is told so.",
        "src/uring_trio/gain/_accept.py",
        "        if not 0 <= index < len(counts):",
        "        if not index < len(counts):",
        (
            (
                "tests/test_gain_balancers.py::"
                "test_a_callable_that_returns_no_worker_is_told_which_there_are"
            ),
        ),
    ),
    Mutation(
        "What was on its way when reading was paused is not told before it goes on.",
        "src/uring_trio/gain/_halves.py",
        "    _I.PAUSED:       (_I.PAUSED,       _I.OPEN,  _I.PAUSED_FULL,  _I.PAUSED,       _I.ENDED_PAUSED,",
        "    _I.PAUSED:       (_I.PAUSED,       _I.OPEN,  _I.PAUSED_FULL,  _I.PAUSED,       _I.ENDED,",
        (
            (
                "tests/test_gain_turns.py::"
                "test_what_was_on_its_way_when_reading_was_paused_is_told_when_it_goes_on"
            ),
        ),
    ),
    Mutation(
        "Unread input after the last answer is thrown away: close(2) would answer with a reset.",
        "src/uring_trio/gain/_connection.py",
        "            self.life.step(Event.FLUSHED_UNREAD)\n            inbound.throw_away()\n",
        "            self.life.step(Event.FLUSHED_UNREAD)\n",
        (
            (
                "tests/test_gain_conn_api.py::"
                "test_close_with_unread_input_does_not_reset_the_answer_away"
            ),
        ),
    ),
    Mutation(
        "After close() the input is shut, by a step of its table.",
        "src/uring_trio/gain/_connection.py",
        "        self.inbound.step(InputEvent.SHUT)\n        outbound.step(OutputEvent.CLOSE)",
        "        outbound.step(OutputEvent.CLOSE)",
        ("tests/test_gain_engine.py::test_the_books_balance",),
    ),
    Mutation(
        "on_close is told once.",
        "src/uring_trio/gain/_life.py",
        "        return Due.CLOSED if life.told is Told.ACCEPT else Due.NOTHING",
        "        return Due.CLOSED if life.told is not Told.NOTHING else Due.NOTHING",
        ("tests/test_gain_tables.py::test_what_is_due_over_all_there_is",),
    ),
    Mutation(
        "One callback at a time: nobody else is called while one runs as a task.",
        "src/uring_trio/gain/_life.py",
        "    if life.holder:  # it is busy\n",
        "    if life.is_lent:\n",
        ("tests/test_gain_callbacks.py::test_callbacks_of_a_connection_never_overlap",),
    ),
    Mutation(
        "A connection whose two directions have ended is closed.",
        "src/uring_trio/gain/_life.py",
        "    if inbound.state is Input.TOLD and outbound.state is Output.ENDED:",
        "    if inbound.state is Input.GONE and outbound.state is Output.ENDED:",
        ("tests/test_gain_eof.py::test_a_connection_closes_when_both_directions_have_ended",),
    ),
    Mutation(
        "The end is told behind every byte before it.",
        "src/uring_trio/gain/_life.py",
        "        return Due.EOF if not inbound.unannounced() else Due.NOTHING\n",
        "        return Due.EOF\n",
        ("tests/test_gain_tables.py::test_what_is_due_over_all_there_is",),
    ),
    Mutation(
        "Receiving stops where as much is there as the limit allows.",
        "src/uring_trio/gain/_halves.py",
        "RECEIVING = frozenset({_I.OPEN, _I.LOST, _I.DISCARDING})",
        "RECEIVING = frozenset({_I.OPEN, _I.FULL, _I.LOST, _I.DISCARDING})",
        ("tests/test_gain_backpressure.py::test_input_that_nobody_consumes_is_bounded",),
    ),
    Mutation(
        "Who does not take our output is not read from: it stops the input.",
        "src/uring_trio/gain/_life.py",
        "    if inbound.state not in RECEIVING or outbound.is_full or life.state",
        "    if inbound.state not in RECEIVING or life.state",
        ("tests/test_gain_backpressure.py::test_echo_to_a_peer_that_does_not_read_is_bounded",),
    ),
    Mutation(
        "A connection is closed when its output is out, and not before.",
        "src/uring_trio/gain/_life.py",
        "    if state is State.FLUSHING and outbound.is_out and not (",
        "    if state is State.FLUSHING and not (",
        (
            "tests/test_gain_conn_api.py::test_close_sends_what_was_written_then_the_end",
            "tests/test_gain_ends.py::test_write_and_close_of_32_mib_arrives_whole",
        ),
    ),
    Mutation(
        "What was written before a callback asked for the end goes before the end.",
        "src/uring_trio/gain/_life.py",
        "    elif outbound.state is Output.ENDING and outbound.is_out and not life.is_lent:",
        "    elif outbound.state is Output.ENDING and not life.is_lent:",
        ("tests/test_gain_engine.py::test_the_books_balance",),
    ),
    Mutation(
        "close() sends what was written, and does not drop it.",
        "src/uring_trio/gain/_connection.py",
        "        outbound.step(OutputEvent.CLOSE)\n",
        "        outbound.cut()\n",
        ("tests/test_gain_conn_api.py::test_close_sends_what_was_written_then_the_end",),
    ),
    Mutation(
        "Of what a thread has the worker keeps what others ask for, in their order.",
        "src/uring_trio/gain/_connection.py",
        "        for fn, args in kept:\n",
        "        for fn, args in reversed(kept):\n",
        (
            (
                "tests/test_gain_async_handler.py::"
                "test_calls_from_other_threads_wait_until_it_is_given_back"
            ),
        ),
    ),
    Mutation(
        "What receives is armed once, and not beside itself.",
        "src/uring_trio/gain/_connection.py",
        "            if inbound.receive is Flight.IDLE:\n                self._arm()",
        "            if inbound.receive is not Flight.CANCELING:\n                self._arm()",
        ("tests/test_gain_engine.py::test_the_books_balance",),
    ),
    Mutation(
        "What receives is stopped where nothing more is wanted.",
        "src/uring_trio/gain/_connection.py",
        "            self.stop()\n        if want & Wanted.WATCH and",
        "            pass\n        if want & Wanted.WATCH and",
        (
            (
                "tests/test_gain_backpressure.py::"
                "test_what_trickles_in_while_reading_is_paused_stays_with_the_kernel"
            ),
        ),
    ),
    Mutation(
        "A short send counts for what it took, and not for what was asked.",
        "src/uring_trio/gain/_halves.py",
        "        self.send_at += size\n",
        "        self.send_at += self.send_size\n",
        ("tests/test_gain_engine.py::test_the_books_balance",),
    ),
    Mutation(
        "The kernel has a send until its completion: no other is begun.",
        "src/uring_trio/gain/_turn.py",
        "            if outbound.sending is not None:\n                continue\n",
        "            if outbound.sending is not None and not outbound.pieces:\n"
        "                continue\n",
        (
            (
                "tests/test_gain_turns.py::"
                "test_what_is_written_behind_a_send_that_began_in_this_turn_waits_for_it"
            ),
        ),
    ),
    Mutation(
        "A file is closed when the engine has nothing of it: no completion is of a file of before.",
        "src/uring_trio/gain/_connection.py",
        "            if self.link.is_quiet():\n",
        "            if self.link:\n",
        ("tests/test_gain_engine.py::test_the_books_balance",),
    ),
    Mutation(
        "The ring has something of a file as long as the poll for its errors is there.",
        "src/uring_trio/gain/_ring.py",
        "        return self.receive_slot < 0 and self.send_slot < 0 and self.watch_slot < 0",
        "        return self.receive_slot < 0 and self.send_slot < 0",
        (
            (
                "tests/test_gain_ends.py::"
                "test_on_close_comes_when_the_kernel_has_nothing_of_the_connection_any_more"
            ),
        ),
    ),
    Mutation(
        "A cancelled worker, which is late for its batch, has nothing of it noted.",
        "src/uring_trio/gain/_worker.py",
        "        await checkpoint_if_cancelled(self._short_ways.close)",
        "        await trio.lowlevel.checkpoint_if_cancelled()",
        ("tests/test_gain_batch_lost.py::test_a_cancelled_worker_leases_nothing_beyond_a_batch",),
    ),
    Mutation(
        "What an aborted worker has in its batch has ended already, and is not cancelled.",
        "src/uring_trio/gain/_worker.py",
        "        self.turn.lose_batch()\n        for connection",
        "        for connection",
        (
            (
                "tests/test_gain_batch_lost.py::"
                "test_a_cancelled_worker_cancels_nobody_elses_operation"
            ),
        ),
    ),
    Mutation(
        "What comes for a connection behind what its turn is to look at goes the same way.",
        "src/uring_trio/gain/_connection.py",
        "        self.way = Way.SETTLED\n        self.turn.add_happened(",
        "        self.turn.add_happened(",
        ("tests/test_gain_buffers.py::test_bytes_are_right_whatever_the_sizes",),
    ),
    Mutation(
        "What a handler leaves is copied before its batch ends.",
        "src/uring_trio/gain/_turn.py",
        "        inbound.stash()\n        inbound.judge()",
        "        inbound.judge()",
        ("tests/test_gain_buffers.py::test_what_is_left_stays_as_it_was_while_others_receive",),
    ),
    Mutation(
        "A connection that is to be looked at wakes the worker that sleeps.",
        "src/uring_trio/gain/_turn.py",
        "        self.ready.append(connection)\n        if self.parked:\n            self.wake()",
        "        self.ready.append(connection)",
        (
            (
                "tests/test_gain_async_handler.py::"
                "test_a_task_that_raises_beside_a_thread_ends_the_connection_at_once"
            ),
        ),
    ),
    Mutation(
        "That no buffer was left for a receive is no error: it is armed again.",
        "src/uring_trio/gain/_connection.py",
        "        elif res not in (ECANCELED, EINTR, ENOBUFS):\n",
        "        elif res not in (ECANCELED, EINTR):\n",
        ("tests/test_gain_engine.py::test_the_books_balance",),
    ),
    Mutation(
        "Who does not answer is watched for errors, by the fast way, too.",
        "src/uring_trio/gain/_turn.py",
        "            elif not inbound.watch and outbound.sending is None:\n",
        "            elif inbound.watch and outbound.sending is None:\n",
        ("tests/test_gain_turns.py::test_who_does_not_answer_is_watched_beside_its_receive",),
    ),
    Mutation(
        "A poll that has told of what stays set is armed for what changes.",
        "src/uring_trio/gain/_connection.py",
        "            self._link.watch(again=inbound.has_ended or inbound.noticed > 0)",
        "            self._link.watch(again=False)",
        ("tests/test_gain_odd_readiness.py",),
    ),
    Mutation(
        "A read deadline is met by what comes while a callback runs.",
        "src/uring_trio/gain/_connection.py",
        '        elif kind == "read" and self.intake.has_come_meanwhile():',
        '        elif kind == "read" and not self.life.is_busy:',
        (
            (
                "tests/test_gain_deadlines.py::"
                "test_read_deadline_is_met_by_what_comes_while_a_callback_runs"
            ),
        ),
    ),
    Mutation(
        "A read deadline is met by the next on_read.",
        "src/uring_trio/gain/_deadlines.py",
        '        if self.count:\n            self.cancel("read")',
        '        if not self.count:\n            self.cancel("read")',
        ("tests/test_gain_deadlines.py::test_a_read_deadline_is_met_by_the_next_on_read",),
    ),
    Mutation(
        "The timers of a connection that is over are cancelled.",
        "src/uring_trio/gain/_connection.py",
        "            self.deadlines.forget()\n        if life.state is State.RESETTING:",
        "            pass\n        if life.state is State.RESETTING:",
        ("tests/test_gain_engine.py::test_the_books_balance",),
    ),
    Mutation(
        "An async on_close runs to its end, whatever is cancelled.",
        "src/uring_trio/gain/_callbacks.py",
        "            with trio.CancelScope(shield=True) as scope:\n",
        "            with trio.CancelScope() as scope:\n",
        (
            "tests/test_gain_server_ends.py::test_an_async_on_close_runs_to_its_end",
            "tests/test_gain_handlers.py::test_cancelling_serve_still_calls_on_close_of_each",
        ),
    ),
    Mutation(
        "A shutdown waits for the callback that runs.",
        "src/uring_trio/gain/_connection.py",
        "        if life.is_busy and life.is_open:\n            life.step(Event.LEAVE)",
        "        if life.is_lent and life.is_open:\n            life.step(Event.LEAVE)",
        ("tests/test_gain_shutdown.py::test_shutdown_lets_a_running_async_callback_end",),
    ),
    Mutation(
        "An accepted connection is one worker's: its descriptor is not given to two.",
        "src/uring_trio/gain/_accept.py",
        "        elif not chosen.post(chosen.adopt,",
        "        if not chosen.post(chosen.adopt,",
        ("tests/test_gain_reactor.py::test_connections_are_counted_until_they_close",),
    ),
    Mutation(
        "As many connections as are allowed, and not one more.",
        "src/uring_trio/gain/_accept.py",
        "            allowed = self.is_free()\n",
        "            allowed = True\n",
        ("tests/test_gain_accepting.py::test_max_connections_holds_the_rest_back",),
    ),
    Mutation(
        "An answer leaves from the address that its datagram came to.",
        "src/uring_trio/gain/_came_to.py",
        "_INFO_OF_IPV4.pack(0, ours, NO_IPV4))",
        "_INFO_OF_IPV4.pack(0, NO_IPV4, ours))",
        ("tests/test_gain_udp_wildcard.py::test_answer_leaves_from_the_address_that_was_asked",),
    ),
    Mutation(
        "A UNIX socket that is bound and does not listen yet has an owner, and is not replaced.",
        "src/uring_trio/gain/_unix_path.py",
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking",
        "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking",
        (
            (
                "tests/test_gain_listen_unix.py::"
                "test_a_bound_socket_that_does_not_listen_yet_is_not_replaced"
            ),
        ),
    ),
    Mutation(
        "A datagram that waits keeps its place: none overtakes it.",
        "src/uring_trio/gain/_datagram.py",
        "        if self._queue:\n"
        "            self._enqueue(datagram, data, peer, source)\n"
        "            return\n"
        "        try",
        "        try",
        ("tests/test_gain_udp_queue.py",),
    ),
    Mutation(
        "A stream of TLS that ends without close_notify may be cut: that is an error.",
        "src/uring_trio/gain/_connection.py",
        "                life.blame(truncated or EndOfStream(",
        "                life.blame(EndOfStream(",
        ("tests/test_gain_tls_streams.py::test_end_that_may_be_a_cut_is_no_on_eof",),
    ),
    Mutation(
        "Input is not stuck while something of its connection runs that may take it.",
        "src/uring_trio/gain/_patience.py",
        "        and not connection.calls.running\n",
        "",
        ("tests/test_gain_stuck_input.py::test_something_of_the_connection_runs",),
    ),
    Mutation(
        "A place that was claimed for a connection that did not come is given back.",
        "src/uring_trio/gain/_accept.py",
        "            if res < 0:\n                self.admission.unclaim()\n",
        "            if res < 0:\n",
        (
            (
                "tests/test_gain_accepting.py::"
                "test_a_look_for_one_more_that_finds_none_takes_no_place"
            ),
        ),
    ),
    Mutation(
        "A thread that has closed its connection may not use it any more.",
        "src/uring_trio/gain/_connection.py",
        "                self.life.revoke()\n            self.when_mine(self.begin_close)",
        "                pass\n            self.when_mine(self.begin_close)",
        ("tests/test_gain_async_handler.py::test_closed_in_the_thread_refuses_as_ever",),
    ),
    Mutation(
        "What a peer that has gone had sent is measured once: its like may go on for ever.",
        "src/uring_trio/gain/_halves.py",
        "        self.rest = queued if self.rest < 0 else min(self.rest, queued)",
        "        self.rest = queued",
        (
            (
                "tests/test_gain_turns.py::"
                "test_a_peer_that_reads_no_more_and_sends_for_ever_is_let_go"
            ),
        ),
    ),
    Mutation(
        "An error of one peer's does not lose another's datagram.",
        "src/uring_trio/gain/_datagram.py",
        "            if to_blame or attempt == ATTEMPTS - 1:\n",
        "            if to_blame or attempt < ATTEMPTS:\n",
        ("tests/test_gain_udp_peers.py::test_icmp_errors_are_logged_and_fail_nothing",),
    ),
    Mutation(
        "What others ask for while a thread has a connection waits for the thread.",
        "src/uring_trio/gain/_connection.py",
        "        self.when_mine(self.worker.call, fn, args)",
        "        self.worker.call(fn, args)",
        (
            (
                "tests/test_gain_async_handler.py::"
                "test_calls_from_other_threads_wait_until_it_is_given_back"
            ),
        ),
    ),
]

MUTATIONS = [*ENGINE, *DOOR, *GAIN]
