/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The naive form: keys and values of every position in sight are expanded from the cache into a
 * second cache of one layer, and attended to as in any other model. Every layer of every batch does
 * it anew.
 */
#include "engine/model/mla_parts.h"

struct ds_mla_naive {
    struct ds_backend *backend;
    uint32_t rows;          /* expanded at a time */
    struct ds_kv *expanded; /* one layer, n_heads heads, n_blocks blocks */
    uint32_t n_blocks;
    struct ds_buffer *wide;          /* [rows][kv_lora_rank + rope_dims] */
    struct ds_buffer *k, *v;         /* [rows][n_heads][key_dim], [value_dim] */
    uint32_t *positions, *sequences; /* [rows] */
};

struct ds_mla_naive *ds_mla_naive_new(const struct ds_mla_memory *memory)
{
    const struct ds_hyper *h = &memory->hyper;
    struct ds_backend *b = memory->backend;
    const size_t rows = memory->rows;
    struct ds_mla_naive *naive = calloc(1, sizeof *naive);

    if (!naive)
        return NULL;
    naive->backend = b;
    naive->rows = memory->rows;
    naive->wide = b->buffer_new(b, rows * (h->kv_lora_rank + h->rope_dims));
    naive->k = b->buffer_new(b, rows * h->n_heads * h->key_dim);
    naive->v = b->buffer_new(b, rows * h->n_heads * h->value_dim);
    naive->positions = calloc(rows, sizeof *naive->positions);
    naive->sequences = calloc(rows, sizeof *naive->sequences);
    if (!naive->wide || !naive->k || !naive->v || !naive->positions || !naive->sequences)
        return ds_mla_naive_free(naive);
    return naive;
}

struct ds_mla_naive *ds_mla_naive_free(struct ds_mla_naive *naive)
{
    if (!naive)
        return NULL;
    if (naive->expanded)
        naive->backend->kv_free(naive->backend, naive->expanded);
    naive->backend->buffer_free(naive->backend, naive->wide);
    naive->backend->buffer_free(naive->backend, naive->k);
    naive->backend->buffer_free(naive->backend, naive->v);
    free(naive->positions);
    free(naive->sequences);
    free(naive);
    return NULL;
}

static int make_room(struct ds_mla_naive *naive, const struct ds_hyper *h, uint32_t n_blocks)
{
    const struct ds_kv_geometry geometry = { .n_layers = 1,
                                             .n_kv_heads = h->n_heads,
                                             .key_dim = h->key_dim,
                                             .value_dim = h->value_dim,
                                             .n_blocks = n_blocks,
                                             .type = DS_KV_F32 };

    if (n_blocks <= naive->n_blocks)
        return 0;
    if (naive->expanded)
        naive->backend->kv_free(naive->backend, naive->expanded);
    naive->expanded = NULL;
    naive->n_blocks = 0;
    int r = naive->backend->kv_new(naive->backend, &geometry, &naive->expanded);
    if (r == 0)
        naive->n_blocks = n_blocks;
    return r;
}

/* Positions first .. + n of one sequence, from kv (as batch places them) to where tables say. */
static int expand(const struct ds_mla *w, struct ds_mla_memory *m, const struct ds_kv *kv,
                  uint32_t layer, const struct ds_batch *batch, const uint32_t *tables,
                  uint32_t sequence, uint32_t first, uint32_t n)
{
    struct ds_mla_naive *naive = m->naive;
    struct ds_backend *b = m->backend;
    const struct ds_hyper *h = &m->hyper;
    const uint32_t n_heads = h->n_heads, wide = h->kv_lora_rank + h->rope_dims;
    const struct ds_slice c = { naive->wide, wide, 0, 0 };
    const struct ds_slice k_rope = { naive->wide, wide, 0, h->kv_lora_rank };
    const struct ds_slice key_nope = { naive->k, n_heads * h->key_dim, h->key_dim, 0 };
    const struct ds_slice key_rope = { naive->k, n_heads * h->key_dim, h->key_dim, m->nope };
    const struct ds_slice value = { naive->v, n_heads * h->value_dim, h->value_dim, 0 };
    struct ds_batch part = { .n_tokens = n,
                             .n_sequences = batch->n_sequences,
                             .blocks_max = batch->blocks_max,
                             .positions = naive->positions,
                             .sequences = naive->sequences,
                             .block_tables = batch->block_tables };
    int r;

    for (uint32_t i = 0; i < n; i++) {
        naive->positions[i] = first + i;
        naive->sequences[i] = sequence;
    }
    if ((r = b->kv_read(b, naive->wide, kv, layer, &part)) < 0 ||
        (r = b->matmul_heads(b, &key_nope, w->k_up, &c, n, n_heads)) < 0 ||
        (r = b->copy(b, &key_rope, &k_rope, n, n_heads, h->rope_dims)) < 0 ||
        (r = b->matmul_heads(b, &value, w->v_b, &c, n, n_heads)) < 0)
        return r;
    part.block_tables = tables;
    return b->kv_write(b, naive->expanded, 0, naive->k, naive->v, &part);
}

/* Positions of every sequence of the batch up to its last row. */
static uint32_t count_positions(const struct ds_batch *batch, uint32_t sequence)
{
    uint32_t n = 0;

    for (uint32_t row = 0; row < batch->n_tokens; row++)
        if (batch->sequences[row] == sequence)
            n = batch->positions[row] + 1;
    return n;
}

int ds_mla_naive_attend(const struct ds_mla *mla, struct ds_mla_memory *m, const struct ds_kv *kv,
                        uint32_t layer, const struct ds_batch *batch)
{
    struct ds_mla_naive *naive = m->naive;
    ds_cleanup(ds_free_p) uint32_t *tables =
        calloc((size_t) batch->n_sequences * batch->blocks_max, sizeof *tables);
    struct ds_batch expanded = *batch;
    uint32_t n_blocks = 0;
    int r;

    if (!tables)
        return -ENOMEM;
    for (uint32_t s = 0; s < batch->n_sequences; s++) {
        uint32_t n = (count_positions(batch, s) + DS_KV_BLOCK - 1) / DS_KV_BLOCK;

        for (uint32_t i = 0; i < n; i++)
            tables[(size_t) s * batch->blocks_max + i] = n_blocks++;
    }
    r = make_room(naive, &m->hyper, n_blocks);
    for (uint32_t s = 0; s < batch->n_sequences && r == 0; s++) {
        uint32_t end = count_positions(batch, s);

        for (uint32_t p = 0; p < end && r == 0; p += naive->rows)
            r = expand(mla, m, kv, layer, batch, tables, s, p,
                       end - p < naive->rows ? end - p : naive->rows);
    }
    if (r < 0)
        return r;
    expanded.block_tables = tables;
    return m->backend->attention(m->backend, m->mix, m->q, naive->expanded, 0, &expanded,
                                 m->hyper.n_heads, m->scale, 0);
}
