/*
 * Random numbers: the same from the same seed on every machine.
 */
#ifndef UT_TESTS_DRAW_H
#define UT_TESTS_DRAW_H

#include <stdint.h>

/* The state to begin with, which is not 0: seeds that are close give numbers that are not. */
uint64_t draw_state(uint64_t seed);

/* One of 0..below-1. */
unsigned draw_below(uint64_t *state, unsigned below);

#endif
