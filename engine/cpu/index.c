/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sparse attention: index keys, the choice of positions by them, and attention to what was chosen.
 *
 * Scores are kept for some rows at a time, as many as fit into SCORES_BYTES. A row's choice is the
 * set above a threshold, found by its bits from the highest down, and the first of those that equal
 * it. The keys chosen are then laid side by side in a small cache of their own, each row's like a
 * sequence that ends there, and attended to as in any other model: so the order of operations
 * hangs on the row's choice alone.
 */
#include "engine/cpu/cpu.h"
#include "engine/format/quant.h"

#define SCORES_BYTES (32u << 20)
#define PICKED_BYTES (32u << 20)
#define ITEM_BLOCKS  16u /* of scores */

/* --- writing --- */

struct index_write {
    const struct ds_kv *kv;
    uint32_t layer;
    const float *k;
    const struct ds_batch *batch;
};

static void write_row(void *arg, uint32_t row, unsigned thread)
{
    const struct index_write *write = arg;
    const struct ds_kv_geometry *geometry = &write->kv->geometry;
    const uint32_t position = write->batch->positions[row], slot = position % DS_KV_BLOCK;
    void *at = ds_kv_index(write->kv, write->layer,
                           ds_kv_block(write->batch, row, position / DS_KV_BLOCK));
    const float *k = write->k + (size_t) row * geometry->index_dim;

    (void) thread;
    for (size_t d = 0; d < geometry->index_dim; d++) {
        if (geometry->type == DS_KV_F32)
            ((float *) at)[d * DS_KV_BLOCK + slot] = k[d];
        else
            ((uint16_t *) at)[d * DS_KV_BLOCK + slot] = ds_f32_to_f16(k[d]);
    }
}

int ds_cpu_index_write(struct ds_backend *backend, struct ds_kv *kv, uint32_t layer,
                       const struct ds_buffer *k, const struct ds_batch *batch)
{
    struct index_write write = { kv, layer, k->data, batch };

    if (!kv->index)
        return -EINVAL;
    ds_pool_run(ds_cpu(backend)->pool, write_row, &write, batch->n_tokens, 16);
    return 0;
}

/* --- choosing --- */

struct choose {
    struct ds_cpu *cpu;
    const struct ds_kv *kv;
    uint32_t layer, n_heads, top_k;
    const struct ds_batch *batch;
    const float *q, *weights;
    uint32_t *chosen;
    float *scores;      /* [rows][stride] */
    uint32_t stride;    /* positions, whole items */
    uint32_t first_row; /* of the batch: row 0 of scores */
};

static bool is_sparse(const struct ds_batch *batch, uint32_t row, uint32_t top_k)
{
    return batch->positions[row] >= top_k;
}

/* ITEM_BLOCKS blocks of one row */
static void score(void *arg, uint32_t item, unsigned thread)
{
    const struct choose *choose = arg;
    const struct ds_kv_geometry *geometry = &choose->kv->geometry;
    const struct ds_kernels *kernels = choose->cpu->kernels;
    const uint32_t items = choose->stride / (ITEM_BLOCKS * DS_KV_BLOCK);
    const uint32_t row = choose->first_row + item / items, dim = geometry->index_dim;
    float *to = choose->scores + (size_t) (item / items) * choose->stride;
    float *memory = choose->cpu->threads[thread].data;

    if (!is_sparse(choose->batch, row, choose->top_k))
        return;
    for (uint32_t i = 0; i < ITEM_BLOCKS; i++) {
        uint32_t logical = item % items * ITEM_BLOCKS + i;
        const void *keys;

        if (logical * DS_KV_BLOCK > choose->batch->positions[row])
            return;
        keys = ds_kv_index(choose->kv, choose->layer, ds_kv_block(choose->batch, row, logical));
        if (geometry->type != DS_KV_F32) {
            kernels->widen_f16(memory, keys, (size_t) DS_KV_BLOCK * dim);
            keys = memory;
        }
        kernels->index_scores(to + (size_t) logical * DS_KV_BLOCK, keys, dim,
                              choose->q + (size_t) row * choose->n_heads * dim,
                              choose->weights + (size_t) row * choose->n_heads, choose->n_heads);
    }
}

/* Numbers in the order of the scores; what is no number comes first. */
static uint32_t rank_of(float score)
{
    uint32_t bits;

    memcpy(&bits, &score, sizeof bits);
    if (score != score)
        return 0;
    if (bits == 0x80000000u)
        bits = 0; /* -0 is 0 */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The k-th largest rank of n scores, k <= n; *ret_ties: how many of those that have it belong to
 * the k largest. */
static uint32_t threshold_of(const float *scores, uint32_t n, uint32_t k, uint32_t *ret_ties)
{
    uint32_t prefix = 0, mask = 0;

    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t counts[256] = { 0 }, digit = 255;

        for (uint32_t i = 0; i < n; i++) {
            uint32_t rank = rank_of(scores[i]);

            if ((rank & mask) == prefix)
                counts[rank >> shift & 255]++;
        }
        for (; counts[digit] < k; digit--)
            k -= counts[digit];
        prefix |= digit << shift;
        mask |= 255u << shift;
    }
    *ret_ties = k;
    return prefix;
}

static void pick(void *arg, uint32_t item, unsigned thread)
{
    const struct choose *choose = arg;
    const uint32_t row = choose->first_row + item, n = choose->batch->positions[row] + 1;
    const float *scores = choose->scores + (size_t) item * choose->stride;
    uint32_t *to = choose->chosen + (size_t) row * choose->top_k, threshold, ties;

    (void) thread;
    if (!is_sparse(choose->batch, row, choose->top_k))
        return;
    threshold = threshold_of(scores, n, choose->top_k, &ties);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t rank = rank_of(scores[i]);

        if (rank < threshold || (rank == threshold && ties == 0))
            continue;
        ties -= rank == threshold;
        *to++ = i;
    }
}

static uint32_t longest(const struct ds_batch *batch)
{
    uint32_t position = 0;

    for (uint32_t row = 0; row < batch->n_tokens; row++)
        position = batch->positions[row] > position ? batch->positions[row] : position;
    return position + 1;
}

int ds_cpu_index_choose(struct ds_backend *backend, struct ds_buffer *chosen,
                        const struct ds_buffer *q, const struct ds_buffer *weights,
                        const struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                        uint32_t n_heads, uint32_t top_k)
{
    struct ds_cpu *cpu = ds_cpu(backend);
    struct choose choose = { .cpu = cpu,
                             .kv = kv,
                             .layer = layer,
                             .n_heads = n_heads,
                             .top_k = top_k,
                             .batch = batch,
                             .q = q->data,
                             .weights = weights->data,
                             .chosen = (uint32_t *) chosen->data };
    const uint32_t item = ITEM_BLOCKS * DS_KV_BLOCK, n_positions = longest(batch);
    size_t row_bytes, block_bytes = (size_t) DS_KV_BLOCK * kv->geometry.index_dim * sizeof(float);
    uint32_t n_rows;

    if (!kv->index || top_k == 0)
        return -EINVAL;
    if (n_positions <= top_k)
        return 0; /* nobody has a choice */
    choose.stride = (n_positions + item - 1) / item * item;
    row_bytes = choose.stride * sizeof(float);
    n_rows = row_bytes < SCORES_BYTES ? (uint32_t) (SCORES_BYTES / row_bytes) : 1;
    n_rows = n_rows < batch->n_tokens ? n_rows : batch->n_tokens;
    choose.scores = ds_scratch_get(&cpu->scores, n_rows * row_bytes);
    if (!choose.scores)
        return -ENOMEM;
    for (unsigned i = 0; i < ds_pool_n_threads(cpu->pool); i++)
        if (!ds_scratch_get(&cpu->threads[i], block_bytes))
            return -ENOMEM;
    for (uint32_t first = 0; first < batch->n_tokens; first += n_rows) {
        uint32_t left = batch->n_tokens - first, n = left < n_rows ? left : n_rows;

        choose.first_row = first;
        ds_pool_run(cpu->pool, score, &choose, n * (choose.stride / item), 1);
        ds_pool_run(cpu->pool, pick, &choose, n, 1);
    }
    return 0;
}

/* --- attending --- */

struct gather {
    const struct ds_kv *from, *to;
    uint32_t layer, top_k, blocks; /* blocks: of one row in to */
    const struct ds_batch *batch;
    const uint32_t *chosen;
    uint32_t first_row;
};

/* One block of what a row has chosen */
static void gather_block(void *arg, uint32_t item, unsigned thread)
{
    const struct gather *gather = arg;
    const uint32_t row = gather->first_row + item / gather->blocks;
    const uint32_t first = item % gather->blocks * DS_KV_BLOCK;
    const uint32_t *chosen = gather->chosen + (size_t) row * gather->top_k;

    (void) thread;
    for (uint32_t i = first; i < gather->top_k && i < first + DS_KV_BLOCK; i++)
        ds_kv_copy_slot(gather->to, item, i - first, gather->from, gather->layer,
                        ds_kv_block(gather->batch, row, chosen[i] / DS_KV_BLOCK),
                        chosen[i] % DS_KV_BLOCK);
}

/* A cache of n_blocks for what was chosen from kv. */
static int make_room(struct ds_cpu *cpu, const struct ds_kv *kv, uint32_t n_blocks)
{
    struct ds_kv_geometry geometry = kv->geometry, *has;

    geometry.n_layers = 1;
    geometry.n_blocks = n_blocks;
    geometry.index_dim = 0;
    if (cpu->picked_kv) {
        has = &cpu->picked_kv->geometry;
        if (has->n_blocks >= n_blocks && has->n_kv_heads == geometry.n_kv_heads &&
            has->key_dim == geometry.key_dim && has->value_dim == geometry.value_dim &&
            has->type == geometry.type)
            return 0;
        ds_cpu_kv_free(&cpu->backend, cpu->picked_kv);
        cpu->picked_kv = NULL;
    }
    return ds_cpu_kv_new(&cpu->backend, &geometry, &cpu->picked_kv);
}

struct attend {
    struct ds_backend *backend;
    struct ds_buffer *out;
    const struct ds_buffer *q;
    const struct ds_kv *kv;
    uint32_t layer, n_heads, top_k;
    const struct ds_batch *batch;
    float scale;
    const uint32_t *chosen;
};

/* Rows first .. + n of the batch as a batch of their own, against kv as batch describes it. */
static int attend_rows(const struct attend *attend, uint32_t first, const struct ds_batch *batch,
                       const struct ds_kv *kv, uint32_t layer)
{
    const struct ds_kv_geometry *geometry = &kv->geometry;
    struct ds_buffer q = *attend->q, out = *attend->out;

    q.data += (size_t) first * attend->n_heads * geometry->key_dim;
    out.data += (size_t) first * attend->n_heads * geometry->value_dim;
    return ds_cpu_attention(attend->backend, &out, &q, kv, layer, batch, attend->n_heads,
                            attend->scale, 0);
}

static int attend_dense(const struct attend *attend, uint32_t first, uint32_t n)
{
    struct ds_batch batch = *attend->batch;

    batch.n_tokens = n;
    batch.positions += first;
    batch.sequences += first;
    return attend_rows(attend, first, &batch, attend->kv, attend->layer);
}

static int attend_sparse(const struct attend *attend, uint32_t first, uint32_t n)
{
    struct ds_cpu *cpu = ds_cpu(attend->backend);
    const uint32_t blocks = (attend->top_k + DS_KV_BLOCK - 1) / DS_KV_BLOCK;
    uint32_t *positions =
        ds_scratch_get(&cpu->picked, (size_t) n * (2 + blocks) * sizeof(uint32_t));
    struct gather gather = { .from = attend->kv,
                             .layer = attend->layer,
                             .top_k = attend->top_k,
                             .blocks = blocks,
                             .batch = attend->batch,
                             .chosen = attend->chosen,
                             .first_row = first };
    int r;

    r = positions ? make_room(cpu, attend->kv, n * blocks) : -ENOMEM;
    if (r < 0)
        return r;
    gather.to = cpu->picked_kv;
    ds_pool_run(cpu->pool, gather_block, &gather, n * blocks, 4);

    const struct ds_batch batch = { .n_tokens = n,
                                    .n_sequences = n,
                                    .blocks_max = blocks,
                                    .positions = positions,
                                    .sequences = positions + n,
                                    .block_tables = positions + 2 * (size_t) n };

    for (uint32_t i = 0; i < n; i++) {
        positions[i] = attend->top_k - 1;
        positions[n + i] = i;
    }
    for (uint32_t i = 0; i < n * blocks; i++)
        positions[2 * (size_t) n + i] = i;
    return attend_rows(attend, first, &batch, gather.to, 0);
}

int ds_cpu_attention_chosen(struct ds_backend *backend, struct ds_buffer *out,
                            const struct ds_buffer *q, const struct ds_kv *kv, uint32_t layer,
                            const struct ds_batch *batch, uint32_t n_heads, float scale,
                            const struct ds_buffer *chosen, uint32_t top_k)
{
    const struct attend attend = { backend, out,   q,     kv,    layer,
                                   n_heads, top_k, batch, scale, (const uint32_t *) chosen->data };
    struct ds_kv_geometry row = kv->geometry;
    uint32_t n_rows;
    int r = 0;

    if (top_k == 0 || !kv->geometry.shared)
        return -EINVAL;
    row.n_layers = 1;
    row.n_blocks = (top_k + DS_KV_BLOCK - 1) / DS_KV_BLOCK;
    row.index_dim = 0;
    n_rows = (uint32_t) (PICKED_BYTES / ds_cpu_kv_bytes(&row)) + 1;
    for (uint32_t first = 0, end; first < batch->n_tokens && r == 0; first = end) {
        bool sparse = is_sparse(batch, first, top_k);

        for (end = first + 1; end < batch->n_tokens && is_sparse(batch, end, top_k) == sparse &&
                              (!sparse || end - first < n_rows);)
            end++;
        r = sparse ? attend_sparse(&attend, first, end - first)
                   : attend_dense(&attend, first, end - first);
    }
    return r;
}
