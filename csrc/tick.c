/*
 * Long ticks
 *
 * What tasks ask for is submitted by one enter, at the end of their tick. Where the tasks
 * of a tick compute for milliseconds each, the first one's answer would leave when the last
 * one is done: with 50 connections of 4 ms each a peer waits 200 ms for what took 4. On
 * epoll each send leaves at its call.
 *
 * So what somebody else waits for (a send, a write, a connect) does not wait for the end of
 * a tick that is long already. It is submitted by an enter that does only that: no work of
 * others is run and nothing is drained, so that everything completes when it always does.
 * Its price is that enter, about a microsecond, so it is made once in 1 ms: that is a
 * thousandth, and no peer sees 1 ms beside a tick of several.
 *
 * That alone would hold back what is queued just after an enter, when a task follows that
 * computes for long and asks for nothing: nobody looks at the time meanwhile. Who computes
 * so once does it again. So after each stretch of time that was long the next few sends
 * leave as they are queued, in this tick or a later one: at most 8 enters for each 1 ms.
 * Not where there were many sends in that time: then it was long because there are many
 * tasks, each of which is quick, and what the next one sends is followed by more at once.
 *
 * What it costs otherwise: a look at the clock for each send, and two for each wait, 28 ns
 * each where we measured.
 */
#include "tick.h"

void ut_tick_begin(struct ut_tick *tick, uint64_t now_ns)
{
    tick->since_ns = now_ns;
    tick->asked = 0;
}

bool ut_tick_is_long(const struct ut_tick *tick, uint64_t now_ns)
{
    return tick->long_ns > 0 && now_ns - tick->since_ns >= tick->long_ns;
}

/* Whether it is, and what follows for the next sends. */
static bool judge(struct ut_tick *tick, uint64_t now_ns)
{
    if (!ut_tick_is_long(tick, now_ns))
        return false;
    tick->sends = tick->asked < UT_TICK_SENDS ? UT_TICK_SENDS : 0;
    return true;
}

void ut_tick_end(struct ut_tick *tick, uint64_t now_ns)
{
    (void)judge(tick, now_ns);
}

bool ut_tick_leaves(struct ut_tick *tick, uint64_t now_ns)
{
    if (judge(tick, now_ns))
        return true;
    tick->asked++;
    if (tick->sends == 0)
        return false;
    tick->sends--;
    return true;
}
