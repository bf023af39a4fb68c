/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jinja_arena.h - memory that is taken piece by piece, bounded, and given back all at once.
 *
 * Not thread-safe. Pieces are aligned for any type. A failed arena stays failed.
 */
#pragma once

#include <stddef.h>

struct ds_arena_chunk;

struct ds_arena {
    struct ds_arena_chunk *chunks; /* newest first */
    size_t taken_bytes;            /* of all chunks */
    size_t limit_bytes;
    int code; /* 0, -E2BIG = beyond the limit, -ENOMEM */
};

void ds_arena_init(struct ds_arena *arena, size_t limit_bytes);
void ds_arena_deinit(struct ds_arena *arena);

/* Zeroed. NULL: arena->code says why. */
void *ds_arena_alloc(struct ds_arena *arena, size_t size);

/* Room for text: unaligned, not zeroed. */
char *ds_arena_text(struct ds_arena *arena, size_t size);
