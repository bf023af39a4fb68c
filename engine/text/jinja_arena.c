/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/jinja_arena.h"

#include <stdalign.h>

#include "proto/base.h"

#define CHUNK_BYTES (16u << 10)

struct ds_arena_chunk {
    struct ds_arena_chunk *next;
    size_t size, used; /* bytes of data */
    alignas(max_align_t) char data[];
};

void ds_arena_init(struct ds_arena *arena, size_t limit_bytes)
{
    *arena = (struct ds_arena){ .limit_bytes = limit_bytes };
}

void ds_arena_deinit(struct ds_arena *arena)
{
    while (arena->chunks) {
        struct ds_arena_chunk *next = arena->chunks->next;

        free(arena->chunks);
        arena->chunks = next;
    }
}

/* Chunks grow with what was taken, so that their number stays small. */
static struct ds_arena_chunk *add_chunk(struct ds_arena *arena, size_t need)
{
    size_t size = arena->taken_bytes / 4 > CHUNK_BYTES ? arena->taken_bytes / 4 : CHUNK_BYTES;
    size_t room = arena->limit_bytes - arena->taken_bytes;
    struct ds_arena_chunk *chunk;

    if (need > room) {
        arena->code = -E2BIG;
        return NULL;
    }
    if (size < need)
        size = need;
    if (size > room)
        size = room;
    chunk = malloc(sizeof *chunk + size);
    if (!chunk) {
        arena->code = -ENOMEM;
        return NULL;
    }
    *chunk = (struct ds_arena_chunk){ .next = arena->chunks, .size = size };
    arena->chunks = chunk;
    arena->taken_bytes += size;
    return chunk;
}

static char *take(struct ds_arena *arena, size_t size, size_t alignment)
{
    struct ds_arena_chunk *chunk = arena->chunks;
    size_t at;

    if (arena->code < 0)
        return NULL;
    at = chunk ? (chunk->used + alignment - 1) & ~(alignment - 1) : 0;
    if (!chunk || at > chunk->size || size > chunk->size - at) {
        chunk = add_chunk(arena, size);
        if (!chunk)
            return NULL;
        at = 0;
    }
    chunk->used = at + size;
    return chunk->data + at;
}

void *ds_arena_alloc(struct ds_arena *arena, size_t size)
{
    void *piece = take(arena, size, alignof(max_align_t));

    return piece ? memset(piece, 0, size) : NULL;
}

char *ds_arena_text(struct ds_arena *arena, size_t size)
{
    return take(arena, size, 1);
}
