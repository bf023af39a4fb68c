/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention over paged KV blocks, with a running softmax (Milakov, Gimelshein 2018; Dao et al.
 * 2022).
 *
 * The order of operations hangs on absolute positions alone: a query takes the blocks of 32
 * positions of one segment (SEGMENT_BLOCKS blocks) in order, each segment from nothing, and the
 * segments' results are merged in order. So neither the cut of a prompt into batches nor who
 * computes a segment changes a bit.
 *
 * An item is up to TILE_ROWS consecutive rows of one sequence and one KV head: all its query heads
 * share each block, widened to floats once. Where a batch has too few items for the threads
 * (decoding a long sequence), an item is one segment of that, and the parts are merged afterwards.
 */
#include <math.h>

#include "engine/cpu/cpu.h"

#define SEGMENT_BLOCKS 16u
#define SEGMENT        (SEGMENT_BLOCKS * DS_KV_BLOCK) /* positions */
#define TILE_ROWS      16u
#define QUERIES_MAX    64u /* queries of one pass over a block */

struct tile {
    uint32_t first_row, n_rows; /* of the batch */
    uint32_t n_segments;
    uint32_t first_part; /* where its parts lie, if segments are items of their own */
};

struct attention {
    struct ds_cpu *cpu;
    const struct ds_kv *kv;
    const struct ds_batch *batch;
    uint32_t layer, n_heads, group; /* group: query heads of a KV head */
    float scale;
    uint32_t window; /* UINT32_MAX: none */
    const float *q;
    float *out;
    const struct tile *tiles;
    uint32_t n_tiles;
    float *parts; /* [part][kv head][TILE_ROWS * group][2 + value_stride], or NULL */
};

/* Scratch of a thread: one block as floats with its values, and the state of a pass' queries for
 * one segment and for all of them. */
struct scratch {
    float *block;
    float *part, *total; /* [QUERIES_MAX][value_stride] */
};

static size_t block_floats(const struct ds_kv *kv)
{
    return (size_t) DS_KV_BLOCK * (kv->geometry.key_dim + kv->value_stride);
}

static struct scratch thread_scratch(const struct attention *attention, unsigned thread)
{
    float *data = attention->cpu->threads[thread].data;
    size_t out = (size_t) QUERIES_MAX * attention->kv->value_stride;
    size_t block = block_floats(attention->kv);

    return (struct scratch){ data, data + block, data + block + out };
}

static size_t scratch_bytes(const struct ds_kv *kv)
{
    return (block_floats(kv) + 2 * (size_t) QUERIES_MAX * kv->value_stride) * sizeof(float);
}

/* A pass: queries first .. + n of the tile's n_rows * group, in order of row. */
struct pass {
    const struct tile *tile;
    uint32_t kv_head, first, n;
    uint32_t row[QUERIES_MAX];
    const float *q[QUERIES_MAX];
};

static void pass_init(struct pass *pass, const struct attention *attention, const struct tile *tile,
                      uint32_t kv_head, uint32_t first)
{
    uint32_t n = tile->n_rows * attention->group - first;

    pass->tile = tile;
    pass->kv_head = kv_head;
    pass->first = first;
    pass->n = n < QUERIES_MAX ? n : QUERIES_MAX;
    for (uint32_t i = 0; i < pass->n; i++) {
        uint32_t row = tile->first_row + (first + i) / attention->group;
        uint32_t head = kv_head * attention->group + (first + i) % attention->group;

        pass->row[i] = row;
        pass->q[i] = attention->q +
                     ((size_t) row * attention->n_heads + head) * attention->kv->geometry.key_dim;
    }
}

/* The first position that query i of the pass sees */
static uint32_t first_seen(const struct attention *attention, const struct pass *pass, uint32_t i)
{
    uint32_t own = attention->batch->positions[pass->row[i]];

    return own < attention->window ? 0 : own - attention->window + 1;
}

/* Which queries of the pass see anything of the block at position start, and what: those from
 * *first (where an earlier block left it) up to the one returned. */
static uint32_t visible_queries(const struct attention *attention, const struct pass *pass,
                                uint32_t start, uint32_t *first, struct ds_visible *visible)
{
    const uint32_t *positions = attention->batch->positions;
    uint32_t end;

    while (positions[pass->row[*first]] < start)
        (*first)++;
    for (end = *first; end < pass->n; end++) {
        uint32_t seen = positions[pass->row[end]] - start + 1;
        uint32_t low = first_seen(attention, pass, end);

        if (low >= start + DS_KV_BLOCK)
            break; /* and later rows see even less of it */
        visible[end].first = (uint8_t) (low > start ? low - start : 0);
        visible[end].end = (uint8_t) (seen < DS_KV_BLOCK ? seen : DS_KV_BLOCK);
    }
    return end;
}

/* One KV head of a block as floats; memory holds what does not lie in the cache that way. */
static void load_block(const struct attention *attention, const void *at, struct ds_attend *attend,
                       float *memory)
{
    const struct ds_kv *kv = attention->kv;
    const struct ds_kv_geometry *geometry = &kv->geometry;
    size_t n_keys = (size_t) DS_KV_BLOCK * geometry->key_dim;
    float *values = memory + n_keys;

    attend->keys = at;
    if (geometry->type == DS_KV_F16) {
        attention->cpu->kernels->widen_f16(memory, at, kv->head_elements);
        attend->keys = memory;
    }
    attend->values = attend->keys + n_keys;
    if (!geometry->shared)
        return;
    attend->values = values;
    for (uint32_t slot = 0; slot < DS_KV_BLOCK; slot++, values += kv->value_stride) {
        for (uint32_t d = 0; d < geometry->value_dim; d++)
            values[d] = attend->keys[(size_t) d * DS_KV_BLOCK + slot];
        for (uint32_t d = geometry->value_dim; d < kv->value_stride; d++)
            values[d] = 0.0f;
    }
}

/* One segment for all queries of a pass; state must be fresh. */
static void attend_segment(const struct attention *attention, const struct pass *pass,
                           uint32_t segment, struct ds_softmax *state, float *memory)
{
    const struct ds_kv *kv = attention->kv;
    const struct ds_batch *batch = attention->batch;
    const struct ds_kernels *kernels = attention->cpu->kernels;
    uint32_t last = batch->positions[pass->row[pass->n - 1]], first = 0, end;
    struct ds_attend attend = { .key_dim = kv->geometry.key_dim,
                                .value_stride = kv->value_stride,
                                .scale = attention->scale };
    struct ds_visible visible[QUERIES_MAX];

    for (uint32_t i = 0; i < SEGMENT_BLOCKS; i++) {
        uint32_t logical = segment * SEGMENT_BLOCKS + i, start = logical * DS_KV_BLOCK;
        const void *at;

        if (start > last)
            return;
        end = visible_queries(attention, pass, start, &first, visible);
        if (end == first)
            continue;
        at = ds_kv_head(kv, attention->layer, ds_kv_block(batch, pass->row[0], logical),
                        pass->kv_head);
        load_block(attention, at, &attend, memory);
        kernels->attend(&attend, pass->q + first, visible + first, state + first, end - first);
    }
}

static void state_init(struct ds_softmax *state, float *out, uint32_t n, uint32_t stride)
{
    memset(out, 0, (size_t) n * stride * sizeof *out);
    for (uint32_t i = 0; i < n; i++)
        state[i] = (struct ds_softmax){ -INFINITY, 0, out + (size_t) i * stride };
}

/* Does query i of the pass see anything of the segment? */
static bool sees(const struct attention *attention, const struct pass *pass, uint32_t i,
                 uint32_t segment)
{
    return attention->batch->positions[pass->row[i]] / SEGMENT >= segment &&
           first_seen(attention, pass, i) / SEGMENT <= segment;
}

static void finish(const struct attention *attention, const struct pass *pass, uint32_t i,
                   const struct ds_softmax *state)
{
    uint32_t dim = attention->kv->geometry.value_dim;
    uint32_t head = pass->kv_head * attention->group + (pass->first + i) % attention->group;
    float *out = attention->out + ((size_t) pass->row[i] * attention->n_heads + head) * dim;

    for (uint32_t d = 0; d < dim; d++)
        out[d] = state->out[d] / state->sum;
}

/* All segments of a tile, one after the other. */
static void attend_tile(void *arg, uint32_t item, unsigned thread)
{
    const struct attention *attention = arg;
    const struct tile *tile = &attention->tiles[item / attention->kv->geometry.n_kv_heads];
    uint32_t kv_head = item % attention->kv->geometry.n_kv_heads;
    uint32_t stride = attention->kv->value_stride;
    struct scratch scratch = thread_scratch(attention, thread);
    struct ds_softmax part[QUERIES_MAX], total[QUERIES_MAX];
    struct pass pass;

    for (uint32_t first = 0; first < tile->n_rows * attention->group; first += pass.n) {
        pass_init(&pass, attention, tile, kv_head, first);
        state_init(total, scratch.total, pass.n, stride);
        attend_segment(attention, &pass, 0, total, scratch.block);
        for (uint32_t segment = 1; segment < tile->n_segments; segment++) {
            if (segment < first_seen(attention, &pass, 0) / SEGMENT)
                continue;
            state_init(part, scratch.part, pass.n, stride);
            attend_segment(attention, &pass, segment, part, scratch.block);
            for (uint32_t i = 0; i < pass.n; i++)
                if (sees(attention, &pass, i, segment))
                    attention->cpu->kernels->merge(&total[i], &part[i], stride);
        }
        for (uint32_t i = 0; i < pass.n; i++)
            finish(attention, &pass, i, &total[i]);
    }
}

/* --- segments as items --- */

static float *part_at(const struct attention *attention, const struct tile *tile, uint32_t segment,
                      uint32_t kv_head, uint32_t query)
{
    size_t n_queries = (size_t) TILE_ROWS * attention->group;
    size_t index = (tile->first_part + segment) * attention->kv->geometry.n_kv_heads + kv_head;

    return attention->parts +
           (index * n_queries + query) * (16 + (size_t) attention->kv->value_stride);
}

static const struct tile *tile_of_part(const struct attention *attention, uint32_t part)
{
    const struct tile *tile = attention->tiles;

    while (part >= tile->first_part + tile->n_segments)
        tile++;
    return tile;
}

static void attend_part(void *arg, uint32_t item, unsigned thread)
{
    const struct attention *attention = arg;
    uint32_t n_kv_heads = attention->kv->geometry.n_kv_heads, kv_head = item % n_kv_heads;
    const struct tile *tile = tile_of_part(attention, item / n_kv_heads);
    uint32_t segment = item / n_kv_heads - tile->first_part;
    uint32_t stride = attention->kv->value_stride;
    struct scratch scratch = thread_scratch(attention, thread);
    struct ds_softmax state[QUERIES_MAX];
    struct pass pass;

    for (uint32_t first = 0; first < tile->n_rows * attention->group; first += pass.n) {
        pass_init(&pass, attention, tile, kv_head, first);
        state_init(state, scratch.part, pass.n, stride);
        attend_segment(attention, &pass, segment, state, scratch.block);
        for (uint32_t i = 0; i < pass.n; i++) {
            float *part = part_at(attention, tile, segment, kv_head, first + i);

            part[0] = state[i].max;
            part[1] = state[i].sum;
            memcpy(part + 16, state[i].out, stride * sizeof *part);
        }
    }
}

static void merge_tile(const struct attention *attention, const struct tile *tile, uint32_t kv_head)
{
    uint32_t stride = attention->kv->value_stride;
    struct pass pass;

    for (uint32_t first = 0; first < tile->n_rows * attention->group; first += pass.n) {
        pass_init(&pass, attention, tile, kv_head, first);
        for (uint32_t i = 0; i < pass.n; i++) {
            float *at = part_at(attention, tile, 0, kv_head, first + i);
            struct ds_softmax total = { at[0], at[1], at + 16 }, part;

            for (uint32_t segment = 1; segment < tile->n_segments; segment++) {
                if (!sees(attention, &pass, i, segment))
                    continue;
                at = part_at(attention, tile, segment, kv_head, first + i);
                part = (struct ds_softmax){ at[0], at[1], at + 16 };
                attention->cpu->kernels->merge(&total, &part, stride);
            }
            finish(attention, &pass, i, &total);
        }
    }
}

/* --- the batch --- */

/* Cuts the batch into tiles: consecutive rows of one sequence. */
static uint32_t make_tiles(struct tile *tiles, const struct ds_batch *batch, uint32_t *ret_parts)
{
    uint32_t n_tiles = 0, n_parts = 0;

    for (uint32_t row = 0; row < batch->n_tokens;) {
        struct tile *tile = &tiles[n_tiles++];
        uint32_t end = row + 1;

        while (end < batch->n_tokens && end - row < TILE_ROWS &&
               batch->sequences[end] == batch->sequences[row])
            end++;
        tile->first_row = row;
        tile->n_rows = end - row;
        tile->n_segments = batch->positions[end - 1] / SEGMENT + 1;
        tile->first_part = n_parts;
        n_parts += tile->n_segments;
        row = end;
    }
    *ret_parts = n_parts;
    return n_tiles;
}

static int run(struct attention *attention, uint32_t n_parts)
{
    struct ds_cpu *cpu = attention->cpu;
    uint32_t n_kv_heads = attention->kv->geometry.n_kv_heads;
    uint32_t n_items = attention->n_tiles * n_kv_heads;
    size_t part_floats =
        (size_t) n_kv_heads * TILE_ROWS * attention->group * (16 + attention->kv->value_stride);

    for (unsigned i = 0; i < ds_pool_n_threads(cpu->pool); i++)
        if (!ds_scratch_get(&cpu->threads[i], scratch_bytes(attention->kv)))
            return -ENOMEM;
    if (n_items >= 4 * ds_pool_n_threads(cpu->pool) || n_parts == attention->n_tiles) {
        ds_pool_run(cpu->pool, attend_tile, attention, n_items, 1);
        return 0;
    }
    attention->parts = ds_scratch_get(&cpu->parts, n_parts * part_floats * sizeof(float));
    if (!attention->parts)
        return -ENOMEM;
    ds_pool_run(cpu->pool, attend_part, attention, n_parts * n_kv_heads, 1);
    for (uint32_t i = 0; i < n_items; i++)
        merge_tile(attention, &attention->tiles[i / n_kv_heads], i % n_kv_heads);
    return 0;
}

int ds_cpu_attention(struct ds_backend *backend, struct ds_buffer *out, const struct ds_buffer *q,
                     const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                     uint32_t n_heads, float scale, uint32_t window)
{
    struct ds_cpu *cpu = ds_cpu(backend);
    struct attention attention = {
        .cpu = cpu,
        .kv = kv,
        .batch = batch,
        .layer = layer,
        .n_heads = n_heads,
        .group = n_heads / kv->geometry.n_kv_heads,
        .scale = scale,
        .window = window ? window : UINT32_MAX,
        .q = q->data,
        .out = out->data,
    };
    struct tile *tiles = ds_scratch_get(&cpu->tiles, batch->n_tokens * sizeof *tiles);
    uint32_t n_parts;

    if (attention.group == 0 || n_heads % kv->geometry.n_kv_heads)
        return -EINVAL;
    if (!tiles)
        return -ENOMEM;
    attention.tiles = tiles;
    attention.n_tiles = make_tiles(tiles, batch, &n_parts);
    return run(&attention, n_parts);
}
