/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/llama.h"

#include <assert.h>
#include <math.h>

#include "engine/model/ffn.h"
#include "engine/model/rope.h"

struct layer {
    struct ds_buffer *attention_norm;  /* [width] */
    struct ds_weight *wq, *wk, *wv;    /* {width, heads * dim} */
    struct ds_buffer *bq, *bk, *bv;    /* NULL but in qwen2 */
    struct ds_buffer *q_norm, *k_norm; /* [key_dim], NULL but in qwen3, qwen3moe */
    struct ds_weight *wo;              /* {n_heads * value_dim, width} */
    struct ds_buffer *bo;              /* NULL nearly always */
    struct ds_buffer *ffn_norm;        /* [width] */
    struct ds_ffn ffn;
};

struct ds_llama {
    struct ds_backend *backend;
    struct ds_adapters *adapters; /* borrowed */
    struct ds_hyper hyper;
    uint32_t batch_max, outputs_max;
    struct ds_rope rope;
    float *frequencies; /* [rope_dims / 2] */
    struct ds_ffn_memory ffn;

    struct ds_weight *embedding; /* {width, n_vocab} */
    struct layer *layers;        /* [n_layers] */
    struct ds_buffer *norm;      /* [width] */
    struct ds_weight *head;      /* {width, n_vocab} */

    /* activations, device; B = batch_max, O = outputs_max */
    struct ds_buffer *x;         /* [B][width] residual stream */
    struct ds_buffer *h;         /* [B][width] normed */
    struct ds_buffer *q, *k, *v; /* [B][heads][dim] */
    struct ds_buffer *mix;       /* [B][n_heads][value_dim] what attention gives */
    struct ds_buffer *x_out;     /* [O][width] rows whose logits are wanted */
    struct ds_buffer *mix_out;   /* [O][n_heads][value_dim] */
    struct ds_buffer *logits;    /* [O][n_vocab] */
};

/* --- loading --- */

static int load_attention(struct ds_weight_loader *loader, const struct ds_hyper *h, int i,
                          struct layer *layer)
{
    uint64_t q = (uint64_t) h->n_heads * h->key_dim, k = (uint64_t) h->n_kv_heads * h->key_dim;
    uint64_t v = (uint64_t) h->n_kv_heads * h->value_dim;
    uint64_t mix = (uint64_t) h->n_heads * h->value_dim;
    const struct {
        const char *name;
        uint64_t n;
        struct ds_buffer **to;
        bool wanted; /* else taken where it is there */
    } biases[] = {
        { "attn_q.bias", q, &layer->bq, h->architecture == DS_ARCH_QWEN2 },
        { "attn_k.bias", k, &layer->bk, h->architecture == DS_ARCH_QWEN2 },
        { "attn_v.bias", v, &layer->bv, h->architecture == DS_ARCH_QWEN2 },
        { "attn_output.bias", h->width, &layer->bo, false },
    };
    int r;

    if ((r = ds_load_vector(loader, i, "attn_norm.weight", h->width, &layer->attention_norm)) < 0 ||
        (r = ds_load_matrix(loader, i, "attn_q.weight", h->width, q, false, &layer->wq)) < 0 ||
        (r = ds_load_matrix(loader, i, "attn_k.weight", h->width, k, false, &layer->wk)) < 0 ||
        (r = ds_load_matrix(loader, i, "attn_v.weight", h->width, v, false, &layer->wv)) < 0 ||
        (r = ds_load_matrix(loader, i, "attn_output.weight", mix, h->width, false, &layer->wo)) < 0)
        return r;
    for (unsigned b = 0; b < sizeof biases / sizeof biases[0]; b++) {
        r = (biases[b].wanted ? ds_load_vector : ds_load_optional_vector)(
            loader, i, biases[b].name, biases[b].n, biases[b].to);
        if (r < 0)
            return r;
    }
    if (h->architecture != DS_ARCH_QWEN3 && h->architecture != DS_ARCH_QWEN3MOE)
        return 0;
    r = ds_load_vector(loader, i, "attn_q_norm.weight", h->key_dim, &layer->q_norm);
    if (r < 0)
        return r;
    return ds_load_vector(loader, i, "attn_k_norm.weight", h->key_dim, &layer->k_norm);
}

static int load_rope(struct ds_llama *llama, struct ds_weight_loader *loader)
{
    const struct ds_hyper *h = &llama->hyper;
    ds_cleanup(ds_free_p) float *factors = NULL;

    if (ds_has_tensor(loader, -1, "rope_freqs.weight")) {
        int r = ds_load_host_vector(loader, -1, "rope_freqs.weight", h->rope_dims / 2, &factors);

        if (r < 0)
            return r;
        for (uint32_t i = 0; i < h->rope_dims / 2; i++) {
            if (!(factors[i] > 0.0f))
                return ds_error_set(loader->error, -EBADMSG,
                                    "%s: factor %u of tensor 'rope_freqs.weight' is %g, it must be "
                                    "above 0: the file is damaged, fetch it again",
                                    ds_checkpoint_name(loader->checkpoint), i, (double) factors[i]);
        }
    }
    llama->frequencies = calloc(h->rope_dims / 2 + 1, sizeof *llama->frequencies);
    if (!llama->frequencies)
        return ds_error_set(loader->error, -ENOMEM, "%s: no memory",
                            ds_checkpoint_name(loader->checkpoint));
    llama->rope.magnitude = ds_rope_frequencies(h, factors, llama->frequencies);
    llama->rope.frequencies = llama->frequencies;
    llama->rope.n_dims = h->rope_dims;
    llama->rope.neox = h->rope_neox;
    return 0;
}

static int make_activations(struct ds_llama *llama, struct ds_weight_loader *loader)
{
    const struct ds_hyper *h = &llama->hyper;
    const size_t rows = llama->batch_max, outputs = llama->outputs_max;
    const size_t mix = (size_t) h->n_heads * h->value_dim;
    const struct {
        struct ds_buffer **buffer;
        size_t n;
    } buffers[] = {
        { &llama->x, rows * h->width },
        { &llama->h, rows * h->width },
        { &llama->q, rows * h->n_heads * h->key_dim },
        { &llama->k, rows * h->n_kv_heads * h->key_dim },
        { &llama->v, rows * h->n_kv_heads * h->value_dim },
        { &llama->mix, rows * mix },
        { &llama->x_out, outputs * h->width },
        { &llama->mix_out, outputs * mix },
        { &llama->logits, outputs * h->n_vocab },
    };

    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        *buffers[i].buffer = llama->backend->buffer_new(llama->backend, buffers[i].n);
        if (!*buffers[i].buffer)
            return ds_error_set(loader->error, -ENOMEM,
                                "%s: no memory for the activations of %u rows: unload another "
                                "model",
                                ds_checkpoint_name(loader->checkpoint), llama->batch_max);
    }
    return ds_ffn_memory_init(&llama->ffn, loader, h, llama->batch_max);
}

static int load_all(struct ds_llama *llama, struct ds_weight_loader *loader,
                    int (*progress)(void *arg, double fraction), void *arg)
{
    const struct ds_hyper *h = &llama->hyper;
    bool tied = !ds_has_tensor(loader, -1, "output.weight");
    int r;

    if ((r = load_rope(llama, loader)) < 0 || (r = make_activations(llama, loader)) < 0 ||
        (r = ds_load_matrix(loader, -1, "token_embd.weight", h->width, h->n_vocab, true,
                            &llama->embedding)) < 0)
        return r;
    for (uint32_t i = 0; i < h->n_layers; i++) {
        if ((r = load_attention(loader, h, (int) i, &llama->layers[i])) < 0 ||
            (r = ds_load_vector(loader, (int) i, "ffn_norm.weight", h->width,
                                &llama->layers[i].ffn_norm)) < 0 ||
            (r = ds_ffn_load(&llama->layers[i].ffn, loader, h, (int) i)) < 0)
            return r;
        if (progress && progress(arg, (i + 1.0) / (h->n_layers + 2.0)))
            return ds_error_set(loader->error, -ECANCELED, "%s: loading was given up",
                                ds_checkpoint_name(loader->checkpoint));
    }
    r = ds_load_vector(loader, -1, "output_norm.weight", h->width, &llama->norm);
    if (r < 0)
        return r;
    r = ds_load_matrix(loader, -1, tied ? "token_embd.weight" : "output.weight", h->width,
                       h->n_vocab, false, &llama->head);
    if (r == 0 && progress)
        (void) progress(arg, 1.0);
    return r;
}

int ds_llama_load(struct ds_llama **ret_llama, struct ds_weight_loader *loader, uint32_t batch_max,
                  uint32_t outputs_max, int (*progress)(void *arg, double fraction), void *arg)
{
    struct ds_llama *llama;
    int r;

    llama = calloc(1, sizeof *llama);
    if (!llama)
        return ds_error_set(loader->error, -ENOMEM, "%s: no memory",
                            ds_checkpoint_name(loader->checkpoint));
    llama->backend = loader->backend;
    llama->adapters = loader->adapters;
    llama->hyper = *ds_checkpoint_hyper(loader->checkpoint);
    llama->batch_max = batch_max;
    llama->outputs_max = outputs_max;
    llama->layers = calloc(llama->hyper.n_layers, sizeof *llama->layers);
    r = llama->layers ? load_all(llama, loader, progress, arg)
                      : ds_error_set(loader->error, -ENOMEM, "%s: no memory",
                                     ds_checkpoint_name(loader->checkpoint));
    if (r < 0) {
        (void) ds_llama_free(llama);
        return r;
    }
    *ret_llama = llama;
    return 0;
}

static void free_layer(struct ds_backend *backend, struct layer *layer)
{
    struct ds_weight *weights[] = { layer->wq, layer->wk, layer->wv, layer->wo };
    struct ds_buffer *buffers[] = {
        layer->attention_norm, layer->bq,     layer->bk,      layer->bv, layer->bo,
        layer->q_norm,         layer->k_norm, layer->ffn_norm
    };

    for (unsigned i = 0; i < sizeof weights / sizeof weights[0]; i++) {
        if (weights[i])
            backend->weight_free(backend, weights[i]);
    }
    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        backend->buffer_free(backend, buffers[i]);
    ds_ffn_deinit(&layer->ffn, backend);
}

struct ds_llama *ds_llama_free(struct ds_llama *llama)
{
    if (!llama)
        return NULL;
    struct ds_backend *backend = llama->backend;
    struct ds_buffer *buffers[] = { llama->norm,    llama->x,     llama->h,   llama->q,
                                    llama->k,       llama->v,     llama->mix, llama->x_out,
                                    llama->mix_out, llama->logits };

    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        backend->buffer_free(backend, buffers[i]);
    for (uint32_t i = 0; llama->layers && i < llama->hyper.n_layers; i++)
        free_layer(backend, &llama->layers[i]);
    if (llama->embedding)
        backend->weight_free(backend, llama->embedding);
    if (llama->head)
        backend->weight_free(backend, llama->head);
    ds_ffn_memory_deinit(&llama->ffn);
    free(llama->layers);
    free(llama->frequencies);
    free(llama);
    return NULL;
}

/* --- running --- */

int ds_llama_forward(struct ds_llama *llama, struct ds_kv *kv, const struct ds_batch *batch,
                     float *logits)
{
    struct ds_backend *b = llama->backend;
    struct ds_adapters *a = llama->adapters;
    const struct ds_hyper *hyper = &llama->hyper;
    const uint32_t width = hyper->width, n_heads = hyper->n_heads, n_kv_heads = hyper->n_kv_heads;
    const uint32_t key_dim = hyper->key_dim, mix_width = hyper->n_heads * hyper->value_dim;
    const float epsilon = hyper->rms_epsilon;
    const float scale = 1.0f / sqrtf((float) key_dim);
    struct ds_buffer *x = llama->x, *mix = llama->mix, *h = llama->h;
    uint32_t n = batch->n_tokens;
    int r;

    r = ds_adapted_embed(a, x, llama->embedding, batch->tokens, n);
    if (r < 0)
        return r;

    for (uint32_t l = 0; l < hyper->n_layers; l++) {
        const struct layer *w = &llama->layers[l];
        const uint32_t window = l >= hyper->window_first_layer ? hyper->window : 0;
        const struct ds_product qkv[] = { { .out = llama->q, .weight = w->wq, .bias = w->bq },
                                          { .out = llama->k, .weight = w->wk, .bias = w->bk },
                                          { .out = llama->v, .weight = w->wv, .bias = w->bv } };

        if (b->pulse)
            b->pulse(b->pulse_arg);

        /* attention */
        if ((r = b->rms_norm(b, h, x, w->attention_norm, n, width, epsilon)) < 0 ||
            (r = ds_adapted_matmul(a, qkv, 3, h, n)) < 0)
            return r;
        if (w->q_norm) { /* each head by itself, before it is rotated */
            if ((r = b->rms_norm(b, llama->q, llama->q, w->q_norm, n * n_heads, key_dim, epsilon)) <
                    0 ||
                (r = b->rms_norm(b, llama->k, llama->k, w->k_norm, n * n_kv_heads, key_dim,
                                 epsilon)) < 0)
                return r;
        }
        if ((r = b->rope(b, llama->q, &llama->rope, batch->positions, n, n_heads, key_dim)) < 0 ||
            (r = b->rope(b, llama->k, &llama->rope, batch->positions, n, n_kv_heads, key_dim)) <
                0 ||
            (r = b->kv_write(b, kv, l, llama->k, llama->v, batch)) < 0)
            return r;

        /* After the last keys and values only the rows whose logits are wanted matter. */
        if (l + 1 == hyper->n_layers && batch->n_outputs == 0)
            return 0;
        r = b->attention(b, mix, llama->q, kv, l, batch, n_heads, scale, window);
        if (r < 0)
            return r;
        if (l + 1 == hyper->n_layers && batch->n_outputs < n) {
            if ((r = b->gather(b, llama->mix_out, mix, batch->outputs, batch->n_outputs,
                               mix_width)) < 0 ||
                (r = b->gather(b, llama->x_out, x, batch->outputs, batch->n_outputs, width)) < 0)
                return r;
            ds_adapters_gather(a, batch->outputs, batch->n_outputs);
            mix = llama->mix_out;
            x = llama->x_out;
            n = batch->n_outputs;
        }
        const struct ds_product out = {
            .out = x, .weight = w->wo, .bias = w->bo, .accumulate = true
        };
        if ((r = ds_adapted_matmul(a, &out, 1, mix, n)) < 0)
            return r;

        /* feed-forward */
        if ((r = b->rms_norm(b, h, x, w->ffn_norm, n, width, epsilon)) < 0 ||
            (r = ds_ffn_forward(&w->ffn, &llama->ffn, x, h, n)) < 0)
            return r;
    }

    const struct ds_product head = { .out = llama->logits, .weight = llama->head };
    if ((r = b->rms_norm(b, h, x, llama->norm, n, width, epsilon)) < 0 ||
        (r = ds_adapted_matmul(a, &head, 1, h, n)) < 0)
        return r;
    assert(n == batch->n_outputs);
    return b->read(b, logits, llama->logits, 0, (size_t) n * hyper->n_vocab);
}
