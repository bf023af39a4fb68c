/* SPDX-License-Identifier: Apache-2.0 */
/*
 * iq_grids.h - the points that indices in IQ blocks stand for; iq_gen.c makes the tables and says
 * whose choice they are.
 *
 * Elements are levels, not yet values: superblock.c says what a level is worth in each type.
 */
#pragma once

#include <stdint.h>

extern const uint8_t ds_iq2_xxs_grid[256][8]; /* 0..2 */
extern const uint8_t ds_iq2_xs_grid[512][8];
extern const uint8_t ds_iq2_s_grid[1024][8];
extern const uint8_t ds_iq3_xxs_grid[256][4]; /* 0..7 */
extern const uint8_t ds_iq3_s_grid[512][4];
extern const uint8_t ds_iq1_grid[2048][8]; /* 0..2; of IQ1_S and IQ1_M */
