/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/mla_parts.h"
#include "engine/model/rope.h"

/* --- loading --- */

static int load_queries(struct ds_mla *mla, struct ds_weight_loader *loader,
                        const struct ds_hyper *h, int layer)
{
    uint64_t q = (uint64_t) h->n_heads * h->key_dim, rank = h->q_lora_rank;
    int r;

    if (rank == 0)
        return ds_load_matrix(loader, layer, "attn_q.weight", h->width, q, false, &mla->wq);
    if ((r = ds_load_matrix(loader, layer, "attn_q_a.weight", h->width, rank, false, &mla->wq_a)) <
            0 ||
        (r = ds_load_vector(loader, layer, "attn_q_a_norm.weight", rank, &mla->q_norm)) < 0)
        return r;
    return ds_load_matrix(loader, layer, "attn_q_b.weight", rank, q, false, &mla->wq_b);
}

int ds_mla_load(struct ds_mla *mla, struct ds_weight_loader *loader, const struct ds_hyper *h,
                int layer, bool naive)
{
    const uint64_t wide = (uint64_t) h->kv_lora_rank + h->rope_dims;
    int r;

    if ((r = load_queries(mla, loader, h, layer)) < 0 ||
        (r = ds_load_matrix(loader, layer, "attn_kv_a_mqa.weight", h->width, wide, false,
                            &mla->wkv_a)) < 0 ||
        (r = ds_load_vector(loader, layer, "attn_kv_a_norm.weight", h->kv_lora_rank,
                            &mla->kv_norm)) < 0 ||
        (r = ds_mla_load_heads(mla, loader, h, layer, naive)) < 0)
        return r;
    return h->index_heads ? ds_indexer_load(&mla->indexer, loader, h, layer) : 0;
}

void ds_mla_free(struct ds_mla *mla, struct ds_backend *backend)
{
    struct ds_weight *weights[] = { mla->wq,  mla->wq_a, mla->wq_b, mla->wkv_a,
                                    mla->k_b, mla->k_up, mla->v_b };

    for (unsigned i = 0; i < sizeof weights / sizeof weights[0]; i++)
        if (weights[i])
            backend->weight_free(backend, weights[i]);
    backend->buffer_free(backend, mla->q_norm);
    backend->buffer_free(backend, mla->kv_norm);
    ds_indexer_free(&mla->indexer, backend);
}

/* --- what layers share --- */

static int make_activations(struct ds_mla_memory *memory, struct ds_weight_loader *loader)
{
    const struct ds_hyper *h = &memory->hyper;
    const size_t rows = memory->rows, wide = (size_t) h->kv_lora_rank + h->rope_dims;
    const struct {
        struct ds_buffer **buffer;
        size_t n;
    } buffers[] = {
        { &memory->c_q, rows * h->q_lora_rank },
        { &memory->q, rows * h->n_heads * h->key_dim },
        { &memory->kv, rows * wide },
        { &memory->c, rows * h->kv_lora_rank },
        { &memory->q_wide, rows * h->n_heads * wide },
        { &memory->o_wide, rows * h->n_heads * h->kv_lora_rank },
        { &memory->mix, rows * h->n_heads * h->value_dim },
    };

    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        if (buffers[i].n == 0)
            continue;
        *buffers[i].buffer = memory->backend->buffer_new(memory->backend, buffers[i].n);
        if (!*buffers[i].buffer)
            return ds_error_set(loader->error, -ENOMEM,
                                "%s: no memory for the activations of %u rows: unload another "
                                "model",
                                ds_checkpoint_name(loader->checkpoint), memory->rows);
    }
    return 0;
}

int ds_mla_memory_init(struct ds_mla_memory *memory, struct ds_weight_loader *loader,
                       const struct ds_hyper *hyper, uint32_t rows, bool naive)
{
    int r;

    *memory = (struct ds_mla_memory){ .backend = loader->backend,
                                      .adapters = loader->adapters,
                                      .hyper = *hyper,
                                      .rows = rows,
                                      .nope = hyper->key_dim - hyper->rope_dims,
                                      .scale = ds_rope_score_scale(hyper) };
    memory->frequencies = calloc(hyper->rope_dims / 2 + 1, sizeof *memory->frequencies);
    if (!memory->frequencies)
        return ds_error_set(loader->error, -ENOMEM, "%s: no memory",
                            ds_checkpoint_name(loader->checkpoint));
    memory->q_rope = (struct ds_rope){ .frequencies = memory->frequencies,
                                       .first = memory->nope,
                                       .n_dims = hyper->rope_dims,
                                       .neox = hyper->rope_neox };
    memory->q_rope.magnitude = ds_rope_frequencies(hyper, NULL, memory->frequencies);
    memory->kv_rope = memory->q_rope;
    memory->kv_rope.first = hyper->kv_lora_rank;
    r = make_activations(memory, loader);
    if (r == 0 && hyper->index_heads)
        r = ds_indexer_memory_init(&memory->indexer, loader, hyper, rows, &memory->q_rope);
    if (r == 0 && naive) {
        memory->naive = ds_mla_naive_new(memory);
        if (!memory->naive)
            r = ds_error_set(loader->error, -ENOMEM, "%s: no memory",
                             ds_checkpoint_name(loader->checkpoint));
    }
    return r;
}

void ds_mla_memory_deinit(struct ds_mla_memory *memory)
{
    struct ds_buffer *buffers[] = { memory->c_q,    memory->q,      memory->kv, memory->c,
                                    memory->q_wide, memory->o_wide, memory->mix };

    if (!memory->backend)
        return;
    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        memory->backend->buffer_free(memory->backend, buffers[i]);
    ds_indexer_memory_deinit(&memory->indexer);
    (void) ds_mla_naive_free(memory->naive);
    free(memory->frequencies);
}

void ds_mla_kv_geometry(const struct ds_hyper *hyper, struct ds_kv_geometry *ret_geometry)
{
    ret_geometry->n_kv_heads = 1;
    ret_geometry->key_dim = hyper->kv_lora_rank + hyper->rope_dims;
    ret_geometry->value_dim = hyper->kv_lora_rank;
    ret_geometry->shared = true;
    ret_geometry->index_dim = hyper->index_heads ? hyper->index_dim : 0;
}

/* --- running --- */

/* memory->q and memory->kv, rotated; c_q where there is one; the cache has the keys. */
static int project(const struct ds_mla *w, struct ds_mla_memory *m, struct ds_kv *kv,
                   uint32_t layer, const struct ds_batch *batch, const struct ds_buffer *h)
{
    struct ds_backend *b = m->backend;
    const struct ds_hyper *hyper = &m->hyper;
    const uint32_t n = batch->n_tokens, rank = hyper->kv_lora_rank, wide = rank + hyper->rope_dims;
    const struct ds_product down[] = { { .out = w->wq ? m->q : m->c_q,
                                         .weight = w->wq ? w->wq : w->wq_a },
                                       { .out = m->kv, .weight = w->wkv_a } };
    const struct ds_product up = { .out = m->q, .weight = w->wq_b };
    const struct ds_slice kv_c = { m->kv, wide, 0, 0 }, c = { m->c, rank, 0, 0 };
    int r;

    r = ds_adapted_matmul(m->adapters, down, 2, h, n);
    if (r == 0 && w->wq_b) {
        r = b->rms_norm(b, m->c_q, m->c_q, w->q_norm, n, hyper->q_lora_rank, hyper->rms_epsilon);
        if (r == 0)
            r = ds_adapted_matmul(m->adapters, &up, 1, m->c_q, n);
    }
    if (r < 0 || (r = b->copy(b, &c, &kv_c, n, 1, rank)) < 0 ||
        (r = b->rms_norm(b, m->c, m->c, w->kv_norm, n, rank, hyper->rms_epsilon)) < 0 ||
        (r = b->copy(b, &kv_c, &c, n, 1, rank)) < 0 ||
        (r = b->rope(b, m->q, &m->q_rope, batch->positions, n, hyper->n_heads, hyper->key_dim)) <
            0 ||
        (r = b->rope(b, m->kv, &m->kv_rope, batch->positions, n, 1, wide)) < 0)
        return r;
    return b->kv_write(b, kv, layer, m->kv, NULL, batch);
}

/* m->mix in the absorbed form. */
static int attend(const struct ds_mla *w, struct ds_mla_memory *m, const struct ds_kv *kv,
                  uint32_t layer, const struct ds_batch *batch)
{
    struct ds_backend *b = m->backend;
    const struct ds_hyper *hyper = &m->hyper;
    const uint32_t n = batch->n_tokens, n_heads = hyper->n_heads, rank = hyper->kv_lora_rank;
    const uint32_t wide = rank + hyper->rope_dims, key = hyper->key_dim, value = hyper->value_dim;
    const struct ds_slice q_nope = { m->q, n_heads * key, key, 0 };
    const struct ds_slice q_rope = { m->q, n_heads * key, key, m->nope };
    const struct ds_slice wide_c = { m->q_wide, n_heads * wide, wide, 0 };
    const struct ds_slice wide_rope = { m->q_wide, n_heads * wide, wide, rank };
    const struct ds_slice o = { m->o_wide, n_heads * rank, rank, 0 };
    const struct ds_slice mix = { m->mix, n_heads * value, value, 0 };
    int r;

    if ((r = b->matmul_heads(b, &wide_c, w->k_b, &q_nope, n, n_heads)) < 0 ||
        (r = b->copy(b, &wide_rope, &q_rope, n, n_heads, hyper->rope_dims)) < 0)
        return r;
    r = hyper->index_heads
            ? b->attention_chosen(b, m->o_wide, m->q_wide, kv, layer, batch, n_heads, m->scale,
                                  m->indexer.chosen, hyper->index_top_k)
            : b->attention(b, m->o_wide, m->q_wide, kv, layer, batch, n_heads, m->scale, 0);
    return r < 0 ? r : b->matmul_heads(b, &mix, w->v_b, &o, n, n_heads);
}

int ds_mla_forward(const struct ds_mla *mla, struct ds_mla_memory *memory, struct ds_kv *kv,
                   uint32_t layer, const struct ds_batch *batch, const struct ds_buffer *h)
{
    int r;

    r = project(mla, memory, kv, layer, batch, h);
    if (r == 0 && memory->hyper.index_heads)
        r = ds_indexer_choose(&mla->indexer, &memory->indexer, kv, layer, batch, h, memory->c_q);
    if (r < 0)
        return r;
    return memory->naive ? ds_mla_naive_attend(mla, memory, kv, layer, batch)
                         : attend(mla, memory, kv, layer, batch);
}
