#include "draw.h"

unsigned draw_below(uint64_t *state, unsigned below)
{
    /* xorshift64* */
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * 2685821657736338717u) >> 33) % below;
}

uint64_t draw_state(uint64_t seed)
{
    uint64_t state = seed != 0 ? seed : 1;
    for (unsigned i = 0; i < 8; i++)
        draw_below(&state, 2);
    return state;
}
