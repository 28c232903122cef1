/*
 * A look before the sleep
 *
 * With one busy connection the peer's next message arrives some 10 to 20 us after our
 * answer. Going to sleep for that, and being woken, costs as much again, in latency and
 * in CPU (on a virtual machine an idle core is given back to the host, and comes back by
 * an interrupt). Stock trio hardly ever sleeps there: it is so slow that the message has
 * come by the time it asks. So we would be beaten by being fast.
 *
 * Under DEFER_TASKRUN the kernel sets a flag in memory that we share when there is work,
 * and reading it costs a nanosecond and no system call. So before a sleep we look at it,
 * for as long as a sleep would cost, but only where that has paid lately: each short wait
 * gives credit, each look in vain takes several. Paced clients and an idle server lose a
 * few looks and then never look again until waits are short.
 *
 * Waits may be short and a look in vain all the same: for a thread of this process that
 * wants this very core (to_thread.run_sync on one CPU). So each further look in vain
 * doubles the credit that the next one needs, until one is worth it.
 */
#include "spin.h"

#define CREDIT_WANTED 4
#define CREDIT_MAX 16 /* one look in vain after many that were worth it stops nothing */
#define DOUBLINGS_MAX 10 /* of what a look needs: 4,096 short sleeps at most */
#define MISS_COSTS 4
/* More than a short sleep gives: an enter whose own send completed at once looks like
 * one, and a paced peer has one of each a message. */
#define LONG_SLEEP_COSTS 2
/* A sleep shorter than this would have been spared by a look: the sleep's own cost is in
 * it, measured as 25 us and more. */
#define SHORT_SLEEP_NS (2 * UT_SPIN_NS + 10000)

static unsigned wanted(const struct ut_spin *spin)
{
    unsigned doublings = spin->misses > 1 ? spin->misses - 1 : 0;
    return CREDIT_WANTED << (doublings < DOUBLINGS_MAX ? doublings : DOUBLINGS_MAX);
}

static void add(struct ut_spin *spin, int amount)
{
    int max = wanted(spin) > CREDIT_MAX ? (int)wanted(spin) : CREDIT_MAX;
    int credit = (int)spin->credit + amount;
    if (credit < 0)
        credit = 0;
    spin->credit = (unsigned)(credit < max ? credit : max);
}

bool ut_spin_is_wanted(const struct ut_spin *spin)
{
    return spin->credit >= wanted(spin);
}

void ut_spin_hit(struct ut_spin *spin)
{
    spin->misses = 0;
    add(spin, 1);
}

void ut_spin_miss(struct ut_spin *spin)
{
    if (++spin->misses == 1)
        add(spin, -MISS_COSTS);
    else
        spin->credit = 0;
}

void ut_spin_slept(struct ut_spin *spin, uint64_t slept_ns)
{
    add(spin, slept_ns <= SHORT_SLEEP_NS ? 1 : -LONG_SLEEP_COSTS);
}
