/*
 * How a program under callgrind tells it what to count; `counts.py` compiles this.
 */
#include <valgrind/callgrind.h>

/* From here on instructions are counted. Until then the program runs ten times as fast. */
void counted_start(void)
{
    CALLGRIND_START_INSTRUMENTATION;
}

void counted_zero(void)
{
    CALLGRIND_ZERO_STATS;
}

/* What was counted since, into a file of its own, under a name. */
void counted_dump(const char *name)
{
    CALLGRIND_DUMP_STATS_AT(name);
}
