/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arena.h - 64-byte aligned memory for weights, in large anonymous slabs that may use huge pages.
 *
 * Many weights are far smaller than a huge page, so they share slabs; a slab returns to the system
 * with its last piece. Thread-safe: a loader takes memory while another thread gives some back.
 */
#pragma once

#include <stddef.h>

struct ds_arena;
struct ds_arena_slab;

struct ds_arena_piece {
    void *data; /* 64-byte aligned, zeroed; NULL: nothing */
    size_t size_bytes;
    struct ds_arena_slab *slab;
};

int ds_arena_new(struct ds_arena **ret_arena); /* -ENOMEM */

/* All pieces must have been given back. NULL is a no-op. */
struct ds_arena *ds_arena_free(struct ds_arena *arena);

int ds_arena_take(struct ds_arena *arena, size_t size_bytes, struct ds_arena_piece *ret_piece);
void ds_arena_give_back(struct ds_arena *arena, struct ds_arena_piece *piece); /* empties *piece */
