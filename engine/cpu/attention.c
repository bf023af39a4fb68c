/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention over paged KV blocks, with a running softmax (Milakov, Gimelshein 2018; Dao et al.
 * 2022).
 *
 * The order of operations hangs on absolute positions alone: a query takes the tiles
 * (DS_ATTEND_POSITIONS positions) of one segment (SEGMENT_BLOCKS blocks) in order, each segment
 * from nothing, and the segments' results are merged in order. So neither the cut of a prompt into
 * batches nor who computes a segment changes a bit.
 *
 * An item is some consecutive rows of one sequence and one KV head: all its query heads share each
 * tile, widened to floats once. Where a batch has too few items for the threads (decoding a long
 * sequence), an item is one segment of that, and the parts are merged afterwards.
 */
#include <math.h>

#include "engine/cpu/cpu.h"

#define SEGMENT_BLOCKS 16u
#define SEGMENT        (SEGMENT_BLOCKS * DS_KV_BLOCK) /* positions */
#define QUERIES_MAX    128u                           /* of one pass over a segment */
#define LOG2_E         1.44269504f
#define MERGE_ALONE    32768u /* floats of parts that are not worth waking the threads for */

_Static_assert(SEGMENT_BLOCKS % DS_ATTEND_BLOCKS == 0, "tiles do not cross segments");

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
    float scale;                    /* log2 e included */
    uint32_t window;                /* UINT32_MAX: none */
    const float *q;
    float *out;
    const struct tile *tiles;
    uint32_t n_tiles;
    uint32_t n_queries; /* the most of a tile and KV head */
    size_t width;       /* of a query's state: DS_ATTEND_SUMS + value_stride */
    float *parts;       /* [part][kv head] of: maxima [n_queries, to 16], states [n_queries] */
};

/* What some queries have seen so far. */
struct seen {
    float *max;   /* [n] */
    float *state; /* [n][width] */
};

/* A pass: queries first .. + n of the tile's n_rows * group, in order of row. */
struct pass {
    const struct tile *tile;
    uint32_t kv_head, first, n;
    uint32_t position[QUERIES_MAX];
    struct ds_visible visible[QUERIES_MAX];
};

/* --- memory of a thread --- */

struct scratch {
    float *q;      /* as struct ds_attend has it */
    float *blocks; /* [DS_ATTEND_BLOCKS][block_floats] */
    struct seen part, total;
};

static size_t block_floats(const struct ds_kv *kv)
{
    const struct ds_kv_geometry *geometry = &kv->geometry;

    return DS_KV_BLOCK *
           (geometry->shared ? kv->key_stride : (size_t) geometry->key_dim + kv->value_stride);
}

/* Queries to whole groups, of either kind */
static size_t q_floats(const struct ds_kv *kv)
{
    return (size_t) (QUERIES_MAX + DS_ATTEND_LANES) * kv->geometry.key_dim;
}

static size_t scratch_bytes(const struct attention *attention)
{
    return (q_floats(attention->kv) + DS_ATTEND_BLOCKS * block_floats(attention->kv) +
            2 * QUERIES_MAX * (1 + attention->width)) *
           sizeof(float);
}

static struct scratch thread_scratch(const struct attention *attention, unsigned thread)
{
    float *data = attention->cpu->threads[thread].data;
    struct scratch scratch = { .blocks = data };

    data += DS_ATTEND_BLOCKS * block_floats(attention->kv);
    scratch.part = (struct seen){ data, data + QUERIES_MAX };
    data += QUERIES_MAX * (1 + attention->width);
    scratch.total = (struct seen){ data, data + QUERIES_MAX };
    data += QUERIES_MAX * (1 + attention->width);
    scratch.q = data;
    return scratch;
}

static void seen_init(struct seen seen, uint32_t n, size_t width)
{
    memset(seen.state, 0, n * width * sizeof *seen.state);
    for (uint32_t i = 0; i < n; i++)
        seen.max[i] = -INFINITY;
}

/* --- queries --- */

static size_t query_at(const struct attention *attention, const struct pass *pass, uint32_t i)
{
    uint32_t row = pass->tile->first_row + (pass->first + i) / attention->group;
    uint32_t head = pass->kv_head * attention->group + (pass->first + i) % attention->group;

    return (size_t) row * attention->n_heads + head;
}

/* Puts the pass' queries into groups, scaled; turned is memory for one of them. */
static void pack_queries(const struct attention *attention, const struct pass *pass, float *out,
                         float *turned)
{
    uint32_t group = attention->kv->geometry.shared ? DS_ATTEND_LANES : DS_ATTEND_QUERIES;
    size_t dim = attention->kv->geometry.key_dim;

    for (uint32_t first = 0; first < pass->n; first += group, out += group * dim)
        for (uint32_t i = 0; i < group; i++) {
            const float *q;

            if (first + i >= pass->n) {
                for (size_t d = 0; d < dim; d++)
                    out[d * group + i] = 0;
                continue;
            }
            q = attention->q + query_at(attention, pass, first + i) * dim;
            if (attention->kv->key_rotation) {
                memcpy(turned, q, dim * sizeof *q);
                ds_kv_rotate(turned, (uint32_t) dim, attention->kv->key_rotation);
                q = turned;
            }
            for (size_t d = 0; d < dim; d++)
                out[d * group + i] = q[d] * attention->scale;
        }
}

static void pass_init(struct pass *pass, const struct attention *attention, const struct tile *tile,
                      uint32_t kv_head, uint32_t first)
{
    uint32_t n = tile->n_rows * attention->group - first;

    pass->tile = tile;
    pass->kv_head = kv_head;
    pass->first = first;
    pass->n = n < QUERIES_MAX ? n : QUERIES_MAX;
    for (uint32_t i = 0; i < pass->n; i++)
        pass->position[i] =
            attention->batch->positions[tile->first_row + (first + i) / attention->group];
}

/* The first position that query i of the pass sees */
static uint32_t first_seen(const struct attention *attention, const struct pass *pass, uint32_t i)
{
    uint32_t own = pass->position[i];

    return own < attention->window ? 0 : own - attention->window + 1;
}

/* Does query i of the pass see anything of the segment? */
static bool sees(const struct attention *attention, const struct pass *pass, uint32_t i,
                 uint32_t segment)
{
    return pass->position[i] / SEGMENT >= segment &&
           first_seen(attention, pass, i) / SEGMENT <= segment;
}

/* What the queries see of the tile of positions from start. Returns whether anything. */
static bool look(const struct attention *attention, struct pass *pass, uint32_t start)
{
    bool any = false;

    for (uint32_t i = 0; i < pass->n; i++) {
        uint32_t end = pass->position[i] + 1, first = first_seen(attention, pass, i);

        end = end < start ? 0 : end - start;
        first = first < start ? 0 : first - start;
        end = end < DS_ATTEND_POSITIONS ? end : DS_ATTEND_POSITIONS;
        if (first >= end)
            first = end = 0;
        pass->visible[i] = (struct ds_visible){ (uint8_t) first, (uint8_t) end };
        any |= end != 0;
    }
    return any;
}

/* --- segments --- */

/* The pass' KV head in the sequence's logical block */
static const char *block_at(const struct attention *attention, const struct pass *pass,
                            uint32_t logical)
{
    return ds_kv_head(attention->kv, attention->layer,
                      ds_kv_block(attention->batch, pass->tile->first_row, logical), pass->kv_head);
}

/* One block of the tile, as floats; memory holds what does not lie in the cache that way. next is
 * the block that will be wanted after this tile. */
static void load_block(const struct attention *attention, struct ds_attend *attend, unsigned i,
                       const char *at, const char *next, float *memory)
{
    const struct ds_kv *kv = attention->kv;
    const struct ds_kernels *kernels = attention->cpu->kernels;
    size_t n_keys = (size_t) kv->keys.n_rows * kv->keys.width, key_bytes = kv->keys.size_bytes;

    attend->keys[i] = kv->geometry.type == DS_KV_F32 ? (const float *) at : memory;
    attend->values[i] = attend->keys[i] + (kv->geometry.shared ? 0 : n_keys);
    if (kv->geometry.type == DS_KV_F32)
        return;
    kernels->widen(memory, &kv->keys, at, next);
    if (!kv->geometry.shared)
        kernels->widen(memory + n_keys, &kv->values, at + key_bytes, next + key_bytes);
}

/* One segment for all queries of a pass, packed in q; seen must be fresh. */
static void attend_segment(const struct attention *attention, struct pass *pass, uint32_t segment,
                           struct seen seen, const struct scratch *scratch)
{
    const struct ds_kv *kv = attention->kv;
    uint32_t last = pass->position[pass->n - 1];
    struct ds_attend attend = { .shared = kv->geometry.shared,
                                .key_dim = kv->geometry.key_dim,
                                .key_stride = kv->key_stride,
                                .value_stride = kv->value_stride,
                                .n_queries = pass->n,
                                .q = scratch->q,
                                .visible = pass->visible,
                                .max = seen.max,
                                .state = seen.state };

    for (uint32_t first = 0; first < SEGMENT_BLOCKS; first += DS_ATTEND_BLOCKS) {
        uint32_t start = (segment * SEGMENT_BLOCKS + first) * DS_KV_BLOCK, n_blocks;

        if (start > last)
            return;
        if (!look(attention, pass, start))
            continue;
        n_blocks = last / DS_KV_BLOCK + 1 - start / DS_KV_BLOCK;
        attend.n_blocks = n_blocks < DS_ATTEND_BLOCKS ? n_blocks : DS_ATTEND_BLOCKS;
        for (unsigned i = 0; i < attend.n_blocks; i++) {
            uint32_t block = start / DS_KV_BLOCK + i;
            uint32_t next = i + DS_ATTEND_BLOCKS < n_blocks ? block + DS_ATTEND_BLOCKS : block;

            load_block(attention, &attend, i, block_at(attention, pass, block),
                       block_at(attention, pass, next), scratch->blocks + i * block_floats(kv));
        }
        attention->cpu->kernels->attend(&attend);
    }
}

static void merge(const struct attention *attention, struct seen into, struct seen part, uint32_t i)
{
    attention->cpu->kernels->merge(&into.max[i], into.state + i * attention->width, part.max[i],
                                   part.state + i * attention->width, attention->kv->value_stride);
}

static void conclude(const struct attention *attention, const struct pass *pass, uint32_t i,
                     const float *state)
{
    uint32_t dim = attention->kv->geometry.value_dim;
    float *out = attention->out + query_at(attention, pass, i) * dim;

    attention->cpu->kernels->conclude(out, state, dim);
    if (attention->kv->value_rotation)
        ds_kv_rotate(out, dim, attention->kv->value_rotation);
}

/* All segments of a tile, one after the other. The longest come first: what is left at the end is
 * small. */
static void attend_tile(void *arg, uint32_t item, unsigned thread)
{
    const struct attention *attention = arg;
    uint32_t n_kv_heads = attention->kv->geometry.n_kv_heads;
    const struct tile *tile = &attention->tiles[attention->n_tiles - 1 - item / n_kv_heads];
    struct scratch scratch = thread_scratch(attention, thread);
    struct pass pass;

    for (uint32_t first = 0; first < tile->n_rows * attention->group; first += pass.n) {
        pass_init(&pass, attention, tile, item % n_kv_heads, first);
        pack_queries(attention, &pass, scratch.q, scratch.blocks);
        seen_init(scratch.total, pass.n, attention->width);
        attend_segment(attention, &pass, 0, scratch.total, &scratch);
        for (uint32_t segment = 1; segment < tile->n_segments; segment++) {
            if (segment < first_seen(attention, &pass, 0) / SEGMENT)
                continue;
            seen_init(scratch.part, pass.n, attention->width);
            attend_segment(attention, &pass, segment, scratch.part, &scratch);
            for (uint32_t i = 0; i < pass.n; i++)
                if (sees(attention, &pass, i, segment))
                    merge(attention, scratch.total, scratch.part, i);
        }
        for (uint32_t i = 0; i < pass.n; i++)
            conclude(attention, &pass, i, scratch.total.state + i * attention->width);
    }
}

/* --- segments as items --- */

static size_t part_floats(const struct attention *attention)
{
    return (attention->n_queries + 15) / 16 * 16 + attention->n_queries * attention->width;
}

/* Where queries first.. of a tile's segment lie */
static struct seen part_at(const struct attention *attention, const struct tile *tile,
                           uint32_t segment, uint32_t kv_head, uint32_t first)
{
    size_t index = (size_t) (tile->first_part + segment) * attention->kv->geometry.n_kv_heads;
    float *part = attention->parts + (index + kv_head) * part_floats(attention);

    return (struct seen){ part + first,
                          part + (attention->n_queries + 15) / 16 * 16 + first * attention->width };
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
    struct scratch scratch = thread_scratch(attention, thread);
    struct pass pass;

    for (uint32_t first = 0; first < tile->n_rows * attention->group; first += pass.n) {
        struct seen part = part_at(attention, tile, segment, kv_head, first);

        pass_init(&pass, attention, tile, kv_head, first);
        if (segment && segment < first_seen(attention, &pass, 0) / SEGMENT)
            continue; /* nobody will ask */
        pack_queries(attention, &pass, scratch.q, scratch.blocks);
        seen_init(part, pass.n, attention->width);
        attend_segment(attention, &pass, segment, part, &scratch);
    }
}

static void merge_tile(void *arg, uint32_t item, unsigned thread)
{
    const struct attention *attention = arg;
    uint32_t n_kv_heads = attention->kv->geometry.n_kv_heads, kv_head = item % n_kv_heads;
    const struct tile *tile = &attention->tiles[item / n_kv_heads];
    struct pass pass;

    (void) thread;
    for (uint32_t first = 0; first < tile->n_rows * attention->group; first += pass.n) {
        struct seen total = part_at(attention, tile, 0, kv_head, first);

        pass_init(&pass, attention, tile, kv_head, first);
        for (uint32_t segment = 1; segment < tile->n_segments; segment++) {
            struct seen part = part_at(attention, tile, segment, kv_head, first);

            for (uint32_t i = 0; i < pass.n; i++)
                if (sees(attention, &pass, i, segment))
                    merge(attention, total, part, i);
        }
        for (uint32_t i = 0; i < pass.n; i++)
            conclude(attention, &pass, i, total.state + i * attention->width);
    }
}

/* --- the batch --- */

/* Cuts the batch into tiles: consecutive rows of one sequence. */
static void make_tiles(struct attention *attention, struct tile *tiles, uint32_t *ret_parts)
{
    const struct ds_batch *batch = attention->batch;
    uint32_t rows_max = attention->group < QUERIES_MAX ? QUERIES_MAX / attention->group : 1;
    uint32_t n_parts = 0;

    attention->tiles = tiles;
    for (uint32_t row = 0; row < batch->n_tokens;) {
        struct tile *tile = &tiles[attention->n_tiles++];
        uint32_t end = row + 1;

        while (end < batch->n_tokens && end - row < rows_max &&
               batch->sequences[end] == batch->sequences[row])
            end++;
        tile->first_row = row;
        tile->n_rows = end - row;
        tile->n_segments = batch->positions[end - 1] / SEGMENT + 1;
        tile->first_part = n_parts;
        n_parts += tile->n_segments;
        if (tile->n_rows * attention->group > attention->n_queries)
            attention->n_queries = tile->n_rows * attention->group;
        row = end;
    }
    *ret_parts = n_parts;
}

static int run(struct attention *attention, uint32_t n_parts)
{
    struct ds_cpu *cpu = attention->cpu;
    uint32_t n_kv_heads = attention->kv->geometry.n_kv_heads;
    uint32_t n_items = attention->n_tiles * n_kv_heads;
    size_t floats = (size_t) n_parts * n_kv_heads * part_floats(attention);

    for (unsigned i = 0; i < ds_pool_n_threads(cpu->pool); i++)
        if (!ds_scratch_get(&cpu->threads[i], scratch_bytes(attention)))
            return -ENOMEM;
    if (n_items >= 4 * ds_pool_n_threads(cpu->pool) || n_parts == attention->n_tiles) {
        ds_pool_run(cpu->pool, attend_tile, attention, n_items, 1);
        return 0;
    }
    attention->parts = ds_scratch_get(&cpu->parts, floats * sizeof(float));
    if (!attention->parts)
        return -ENOMEM;
    ds_pool_run(cpu->pool, attend_part, attention, n_parts * n_kv_heads, 1);
    if (floats < MERGE_ALONE)
        for (uint32_t i = 0; i < n_items; i++)
            merge_tile(attention, i, 0);
    else
        ds_pool_run(cpu->pool, merge_tile, attention, n_items, 1);
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
        .scale = scale * LOG2_E,
        .window = window ? window : UINT32_MAX,
        .q = q->data,
        .out = out->data,
        .width = DS_ATTEND_SUMS + (size_t) kv->value_stride,
    };
    struct tile *tiles = ds_scratch_get(&cpu->tiles, batch->n_tokens * sizeof *tiles);
    uint32_t n_parts;

    if (attention.group == 0 || n_heads % kv->geometry.n_kv_heads)
        return -EINVAL;
    if (!tiles)
        return -ENOMEM;
    make_tiles(&attention, tiles, &n_parts);
    return run(&attention, n_parts);
}
