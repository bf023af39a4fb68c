/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpu/arena.h"

#include <pthread.h>
#include <sys/mman.h>

#include "proto/base.h"

#define SLAB_BYTES ((size_t) 64 << 20)
#define HUGE_PAGE  ((size_t) 2 << 20)

struct ds_arena_slab {
    char *base; /* on a huge page boundary */
    void *mapping;
    size_t mapping_bytes;
    size_t size;
    size_t used;
    unsigned n_pieces;
};

struct ds_arena {
    pthread_mutex_t lock;
    struct ds_arena_slab *current; /* new pieces come from here; NULL: none */
};

int ds_arena_new(struct ds_arena **ret_arena)
{
    struct ds_arena *arena = calloc(1, sizeof *arena);

    if (!arena)
        return -ENOMEM;
    (void) pthread_mutex_init(&arena->lock, NULL);
    *ret_arena = arena;
    return 0;
}

static void slab_free(struct ds_arena_slab *slab)
{
    if (!slab)
        return;
    (void) munmap(slab->mapping, slab->mapping_bytes);
    free(slab);
}

struct ds_arena *ds_arena_free(struct ds_arena *arena)
{
    if (!arena)
        return NULL;
    slab_free(arena->current);
    (void) pthread_mutex_destroy(&arena->lock);
    free(arena);
    return NULL;
}

static struct ds_arena_slab *slab_new(size_t size)
{
    struct ds_arena_slab *slab = calloc(1, sizeof *slab);
    size_t bytes = size + HUGE_PAGE;
    char *mapping;

    if (!slab)
        return NULL;
    mapping = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
        free(slab);
        return NULL;
    }
    slab->mapping = mapping;
    slab->mapping_bytes = bytes;
    slab->base = mapping + (HUGE_PAGE - (uintptr_t) mapping % HUGE_PAGE) % HUGE_PAGE;
    slab->size = size;
    (void) madvise(slab->base, size, MADV_HUGEPAGE); /* a wish: without it all works, slower */
    return slab;
}

static int take(struct ds_arena *arena, size_t size, struct ds_arena_piece *ret_piece)
{
    struct ds_arena_slab *slab = arena->current;

    if (!slab || slab->size - slab->used < size) {
        struct ds_arena_slab *fresh = slab_new(size > SLAB_BYTES ? size : SLAB_BYTES);

        if (!fresh)
            return -ENOMEM;
        if (slab && slab->n_pieces == 0)
            slab_free(slab);
        slab = arena->current = fresh; /* the old one lives on in its pieces */
    }
    ret_piece->data = slab->base + slab->used;
    ret_piece->size_bytes = size;
    ret_piece->slab = slab;
    slab->used += size;
    slab->n_pieces++;
    return 0;
}

int ds_arena_take(struct ds_arena *arena, size_t size_bytes, struct ds_arena_piece *ret_piece)
{
    int r;

    if (size_bytes > SIZE_MAX / 2)
        return -ENOMEM;
    size_bytes = (size_bytes + 63) / 64 * 64;
    (void) pthread_mutex_lock(&arena->lock);
    r = take(arena, size_bytes, ret_piece);
    (void) pthread_mutex_unlock(&arena->lock);
    return r;
}

void ds_arena_give_back(struct ds_arena *arena, struct ds_arena_piece *piece)
{
    struct ds_arena_slab *slab = piece->slab;

    if (!slab)
        return;
    (void) pthread_mutex_lock(&arena->lock);
    if (--slab->n_pieces == 0) {
        if (arena->current == slab)
            arena->current = NULL;
        slab_free(slab);
    }
    (void) pthread_mutex_unlock(&arena->lock);
    memset(piece, 0, sizeof *piece);
}
