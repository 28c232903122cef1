/*
 * Choices, faults, and what happened
 *
 * A simulation has one stream of small integers. Whoever may do one thing or another asks for
 * the next: it is taken modulo the number of possibilities, and 0, as all past the end, is the
 * plain one. Who has one possibility, or may not choose, asks for none. So to cut the stream,
 * or to put 0 somewhere, is to take something out of the history, and the rest stays what it
 * was as far as it goes.
 *
 * Drawn from a seed, each kind gets odds of its own first, from never to every second time: a
 * history in which all goes wrong at once finds less than many in which a few things do. What
 * was drawn is recorded as it was used, and is given back as a list that replays it.
 */
#include "sim_inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "draw.h"

#define MADE_MAX 65536
#define FAULTS_MAX 16
#define FAULT_ROOM 160
#define TRACE_MAX (1u << 17) /* more than a program does that is not lost */

static uint32_t *given, given_count, given_at;
static uint32_t *made, made_count;
static uint64_t state; /* of the random numbers; 0: a list was given */
static uint32_t allowed;
static unsigned odds[SIM_CHOICES]; /* one of so many is not plain; 0: none */

static char faults[FAULTS_MAX][FAULT_ROOM];
static struct sim_event trace[TRACE_MAX];
static uint32_t trace_count;

/* ---- choices --------------------------------------------------------------------- */

/* What no kernel does that works, and what moves the time while nobody sleeps. */
#define ABNORMAL (1u << SIM_FATAL | 1u << SIM_STALE | 1u << SIM_CLOCK)

void sim_choices_open(const uint32_t *choices, uint32_t count)
{
    sim_choices_close();
    given = count > 0 ? malloc(count * sizeof *given) : NULL;
    made = malloc(MADE_MAX * sizeof *made);
    if (made == NULL || (count > 0 && given == NULL))
        abort();
    if (count > 0)
        memcpy(given, choices, count * sizeof *given);
    given_count = count;
    given_at = made_count = 0;
    state = 0;
    allowed = ((1u << SIM_CHOICES) - 1) & ~ABNORMAL;
}

void sim_choices_close(void)
{
    free(given);
    free(made);
    given = made = NULL;
}

void sim_draw_choices(uint64_t seed)
{
    static const unsigned all[] = {0, 128, 32, 8, 4, 2};
    state = draw_state(seed);
    for (unsigned kind = 0; kind < SIM_CHOICES; kind++)
        odds[kind] = all[draw_below(&state, sizeof all / sizeof *all)];
}

void sim_allow(uint32_t kinds)
{
    allowed = kinds;
}

unsigned sim_choose(enum sim_choice kind, unsigned below)
{
    if (below < 2 || !(allowed >> kind & 1) || made_count == MADE_MAX)
        return 0;
    uint32_t chosen = 0;
    if (state != 0)
        chosen = odds[kind] > 0 && draw_below(&state, odds[kind]) == 0
                     ? 1 + draw_below(&state, below - 1) : 0;
    else if (given_at < given_count)
        chosen = given[given_at++] % below;
    made[made_count++] = chosen;
    sim.books.choices++;
    if (chosen != 0)
        sim_note(SIM_NOTE_CHOSEN, -1, kind, chosen, below);
    return chosen;
}

uint32_t sim_choices_made(uint32_t *out, uint32_t room)
{
    uint32_t count = made_count;
    while (count > 0 && made[count - 1] == 0)
        count--; /* past the end all is plain */
    if (out != NULL && made != NULL)
        memcpy(out, made, (count < room ? count : room) * sizeof *out);
    return count;
}

/* ---- faults ---------------------------------------------------------------------- */

void sim_fault(const char *what)
{
    if (sim.books.faults < FAULTS_MAX)
        snprintf(faults[sim.books.faults], FAULT_ROOM, "%s", what);
    sim_note(SIM_NOTE_FAULT, -1, sim.books.faults, 0, 0);
    sim.books.faults++;
}

const char *sim_fault_text(uint32_t index)
{
    return index < sim.books.faults && index < FAULTS_MAX ? faults[index] : NULL;
}

/* ---- what happened --------------------------------------------------------------- */

void sim_trace_open(void)
{
    trace_count = 0;
}

void sim_note(enum sim_happening what, int fd, uint64_t token, int64_t a, int64_t b)
{
    trace[trace_count++ % TRACE_MAX] = (struct sim_event){
        .now_ns = sim.now_ns, .token = token, .what = what, .fd = fd,
        .a = (int32_t)a, .b = (int32_t)b};
}

uint32_t sim_trace_length(void)
{
    return trace_count < TRACE_MAX ? trace_count : TRACE_MAX;
}

uint32_t sim_read_trace(struct sim_event *events, uint32_t room)
{
    uint32_t count = sim_trace_length();
    uint32_t first = trace_count - count;
    if (count > room) {
        first += count - room;
        count = room;
    }
    for (uint32_t i = 0; i < count; i++)
        events[i] = trace[(first + i) % TRACE_MAX];
    return count;
}
