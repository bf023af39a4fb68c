/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/indexer.h"

#define NORM_EPSILON 1e-6f

int ds_indexer_load(struct ds_indexer *indexer, struct ds_weight_loader *loader,
                    const struct ds_hyper *h, int layer)
{
    const uint64_t q = (uint64_t) h->index_heads * h->index_dim;
    int r;

    if ((r = ds_load_matrix(loader, layer, "indexer.attn_q_b.weight", h->q_lora_rank, q, false,
                            &indexer->wq)) < 0 ||
        (r = ds_load_matrix(loader, layer, "indexer.attn_k.weight", h->width, h->index_dim, false,
                            &indexer->wk)) < 0 ||
        (r = ds_load_vector(loader, layer, "indexer.k_norm.weight", h->index_dim,
                            &indexer->k_norm)) < 0 ||
        (r = ds_load_vector(loader, layer, "indexer.k_norm.bias", h->index_dim, &indexer->k_bias)) <
            0)
        return r;
    return ds_load_matrix(loader, layer, "indexer.proj.weight", h->width, h->index_heads, false,
                          &indexer->ww);
}

void ds_indexer_free(struct ds_indexer *indexer, struct ds_backend *backend)
{
    struct ds_weight *weights[] = { indexer->wq, indexer->wk, indexer->ww };

    for (unsigned i = 0; i < sizeof weights / sizeof weights[0]; i++)
        if (weights[i])
            backend->weight_free(backend, weights[i]);
    backend->buffer_free(backend, indexer->k_norm);
    backend->buffer_free(backend, indexer->k_bias);
}

int ds_indexer_memory_init(struct ds_indexer_memory *memory, struct ds_weight_loader *loader,
                           const struct ds_hyper *h, uint32_t rows, const struct ds_rope *rope)
{
    const struct {
        struct ds_buffer **buffer;
        size_t width;
    } buffers[] = {
        { &memory->q, (size_t) h->index_heads * h->index_dim },
        { &memory->k, h->index_dim },
        { &memory->w, h->index_heads },
        { &memory->chosen, h->index_top_k },
    };

    memory->backend = loader->backend;
    memory->adapters = loader->adapters;
    memory->hyper = *h;
    memory->rope = *rope;
    memory->rope.first = 0;
    memory->rope.neox = true;
    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        *buffers[i].buffer = memory->backend->buffer_new(memory->backend, rows * buffers[i].width);
        if (!*buffers[i].buffer)
            return ds_error_set(loader->error, -ENOMEM,
                                "%s: no memory for the indexer of %u rows: unload another model",
                                ds_checkpoint_name(loader->checkpoint), rows);
    }
    return 0;
}

void ds_indexer_memory_deinit(struct ds_indexer_memory *memory)
{
    struct ds_buffer *buffers[] = { memory->q, memory->k, memory->w, memory->chosen };

    if (!memory->backend)
        return;
    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        memory->backend->buffer_free(memory->backend, buffers[i]);
}

int ds_indexer_choose(const struct ds_indexer *indexer, struct ds_indexer_memory *m,
                      struct ds_kv *kv, uint32_t layer, const struct ds_batch *batch,
                      const struct ds_buffer *h, const struct ds_buffer *c_q)
{
    struct ds_backend *b = m->backend;
    const uint32_t n = batch->n_tokens, n_heads = m->hyper.index_heads, dim = m->hyper.index_dim;
    const struct ds_product q = { .out = m->q, .weight = indexer->wq };
    const struct ds_product k_w[] = { { .out = m->k, .weight = indexer->wk },
                                      { .out = m->w, .weight = indexer->ww } };
    int r;

    if ((r = ds_adapted_matmul(m->adapters, &q, 1, c_q, n)) < 0 ||
        (r = ds_adapted_matmul(m->adapters, k_w, 2, h, n)) < 0 ||
        (r = b->layer_norm(b, m->k, m->k, indexer->k_norm, indexer->k_bias, n, dim, NORM_EPSILON)) <
            0 ||
        (r = b->rope(b, m->q, &m->rope, batch->positions, n, n_heads, dim)) < 0 ||
        (r = b->rope(b, m->k, &m->rope, batch->positions, n, 1, dim)) < 0 ||
        (r = b->index_write(b, kv, layer, m->k, batch)) < 0)
        return r;
    return b->index_choose(b, m->chosen, m->q, m->w, kv, layer, batch, n_heads,
                           m->hyper.index_top_k);
}
