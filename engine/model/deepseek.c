/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/deepseek.h"

#include <assert.h>

#include "engine/model/ffn.h"
#include "engine/model/mla.h"

struct layer {
    struct ds_buffer *attention_norm; /* [width] */
    struct ds_mla attention;
    struct ds_weight *wo;       /* {n_heads * value_dim, width} */
    struct ds_buffer *ffn_norm; /* [width] */
    struct ds_ffn ffn;
};

/* The first of the modules that predict further tokens; there is none where eh is NULL. */
struct mtp {
    struct ds_buffer *embedding_norm, *hidden_norm; /* [width] */
    struct ds_weight *eh;                           /* {2 width, width} */
    struct layer layer;
    struct ds_buffer *norm;                       /* [width], NULL: the model's */
    struct ds_weight *embedding, *head;           /* {width, n_vocab}, NULL: the model's */
    struct ds_buffer *embedded, *hidden, *joined; /* [B][width], [B][width], [B][2 width] */
};

struct ds_deepseek {
    struct ds_backend *backend;
    struct ds_adapters *adapters; /* borrowed */
    struct ds_hyper hyper;
    uint32_t batch_max, outputs_max;
    uint32_t n_layers; /* without those of mtp */

    struct ds_weight *embedding; /* {width, n_vocab} */
    struct layer *layers;        /* [n_layers] */
    struct ds_buffer *norm;      /* [width] */
    struct ds_weight *head;      /* {width, n_vocab} */
    struct mtp mtp;

    /* activations, device; B = batch_max, O = outputs_max */
    struct ds_mla_memory attention;
    struct ds_ffn_memory ffn;
    struct ds_buffer *x;       /* [B][width] residual stream */
    struct ds_buffer *h;       /* [B][width] normed */
    struct ds_buffer *x_out;   /* [O][width] rows whose logits are wanted */
    struct ds_buffer *mix_out; /* [O][n_heads * value_dim] */
    struct ds_buffer *logits;  /* [O][n_vocab] */
};

/* --- loading --- */

static int load_layer(struct ds_deepseek *d, struct ds_weight_loader *loader, uint32_t i,
                      struct layer *layer)
{
    const struct ds_hyper *h = &d->hyper;
    const uint64_t mix = (uint64_t) h->n_heads * h->value_dim;
    const bool naive = d->attention.naive != NULL;
    int n = (int) i, r;

    if ((r = ds_load_vector(loader, n, "attn_norm.weight", h->width, &layer->attention_norm)) < 0 ||
        (r = ds_mla_load(&layer->attention, loader, h, n, naive)) < 0 ||
        (r = ds_load_matrix(loader, n, "attn_output.weight", mix, h->width, false, &layer->wo)) <
            0 ||
        (r = ds_load_vector(loader, n, "ffn_norm.weight", h->width, &layer->ffn_norm)) < 0)
        return r;
    return ds_ffn_load(&layer->ffn, loader, h, n);
}

static int load_optional_matrix(struct ds_deepseek *d, struct ds_weight_loader *loader, int layer,
                                const char *name, bool gather, struct ds_weight **ret_weight)
{
    if (!ds_has_tensor(loader, layer, name))
        return 0;
    return ds_load_matrix(loader, layer, name, d->hyper.width, d->hyper.n_vocab, gather,
                          ret_weight);
}

static int load_mtp(struct ds_deepseek *d, struct ds_weight_loader *loader)
{
    const uint64_t width = d->hyper.width;
    const int n = (int) d->n_layers;
    struct mtp *mtp = &d->mtp;
    int r;

    if ((r = ds_load_vector(loader, n, "nextn.enorm.weight", width, &mtp->embedding_norm)) < 0 ||
        (r = ds_load_vector(loader, n, "nextn.hnorm.weight", width, &mtp->hidden_norm)) < 0 ||
        (r = load_layer(d, loader, d->n_layers, &mtp->layer)) < 0 ||
        (r = ds_load_optional_vector(loader, n, "nextn.shared_head_norm.weight", width,
                                     &mtp->norm)) < 0 ||
        (r = load_optional_matrix(d, loader, n, "nextn.embed_tokens.weight", true,
                                  &mtp->embedding)) < 0 ||
        (r = load_optional_matrix(d, loader, n, "nextn.shared_head_head.weight", false,
                                  &mtp->head)) < 0)
        return r;
    return ds_load_matrix(loader, n, "nextn.eh_proj.weight", 2 * width, width, false, &mtp->eh);
}

/* How many of the file's layers are the model's own. The others are modules that predict further
 * tokens: some files count them and have left them out, others have left them out of both. */
static uint32_t count_layers(const struct ds_weight_loader *loader, const struct ds_hyper *h,
                             bool *ret_mtp)
{
    const uint32_t own = h->n_nextn < h->n_layers ? h->n_layers - h->n_nextn : h->n_layers;
    const int n = (int) own;

    *ret_mtp = own < h->n_layers && (ds_has_tensor(loader, n, "nextn.eh_proj.weight") ||
                                     ds_has_tensor(loader, n, "nextn.enorm.weight") ||
                                     ds_has_tensor(loader, n, "nextn.hnorm.weight"));
    return *ret_mtp || !ds_has_tensor(loader, n, "attn_norm.weight") ? own : h->n_layers;
}

static int make_activations(struct ds_deepseek *d, struct ds_weight_loader *loader, bool mtp)
{
    const struct ds_hyper *h = &d->hyper;
    const size_t rows = d->batch_max, outputs = d->outputs_max, width = h->width;
    const struct {
        struct ds_buffer **buffer;
        size_t n;
    } buffers[] = {
        { &d->x, rows * width },
        { &d->h, rows * width },
        { &d->x_out, outputs * width },
        { &d->mix_out, outputs * h->n_heads * h->value_dim },
        { &d->logits, outputs * h->n_vocab },
        { &d->mtp.embedded, mtp ? rows * width : 0 },
        { &d->mtp.hidden, mtp ? rows * width : 0 },
        { &d->mtp.joined, mtp ? 2 * rows * width : 0 },
    };

    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        if (buffers[i].n == 0)
            continue;
        *buffers[i].buffer = d->backend->buffer_new(d->backend, buffers[i].n);
        if (!*buffers[i].buffer)
            return ds_error_set(loader->error, -ENOMEM,
                                "%s: no memory for the activations of %u rows: unload another "
                                "model",
                                ds_checkpoint_name(loader->checkpoint), d->batch_max);
    }
    return 0;
}

static int load_all(struct ds_deepseek *d, struct ds_weight_loader *loader, bool naive,
                    int (*progress)(void *arg, double fraction), void *arg)
{
    const struct ds_hyper *h = &d->hyper;
    const bool tied = !ds_has_tensor(loader, -1, "output.weight");
    bool mtp;
    int r;

    d->n_layers = count_layers(loader, h, &mtp);
    d->layers = calloc(d->n_layers, sizeof *d->layers);
    if (!d->layers)
        return ds_error_set(loader->error, -ENOMEM, "%s: no memory",
                            ds_checkpoint_name(loader->checkpoint));
    if ((r = make_activations(d, loader, mtp)) < 0 ||
        (r = ds_mla_memory_init(&d->attention, loader, h, d->batch_max, naive)) < 0 ||
        (r = ds_ffn_memory_init(&d->ffn, loader, h, d->batch_max)) < 0 ||
        (r = ds_load_matrix(loader, -1, "token_embd.weight", h->width, h->n_vocab, true,
                            &d->embedding)) < 0)
        return r;
    for (uint32_t i = 0; i < d->n_layers; i++) {
        r = load_layer(d, loader, i, &d->layers[i]);
        if (r < 0)
            return r;
        if (progress && progress(arg, (i + 1.0) / (d->n_layers + 3.0)))
            return ds_error_set(loader->error, -ECANCELED, "%s: loading was given up",
                                ds_checkpoint_name(loader->checkpoint));
    }
    if ((r = ds_load_vector(loader, -1, "output_norm.weight", h->width, &d->norm)) < 0 ||
        (r = ds_load_matrix(loader, -1, tied ? "token_embd.weight" : "output.weight", h->width,
                            h->n_vocab, false, &d->head)) < 0)
        return r;
    r = mtp ? load_mtp(d, loader) : 0;
    if (r == 0 && progress)
        (void) progress(arg, 1.0);
    return r;
}

int ds_deepseek_load(struct ds_deepseek **ret_deepseek, struct ds_weight_loader *loader,
                     uint32_t batch_max, uint32_t outputs_max, bool naive,
                     int (*progress)(void *arg, double fraction), void *arg)
{
    const struct ds_hyper *hyper = ds_checkpoint_hyper(loader->checkpoint);
    struct ds_deepseek *d;
    int r;

    if (naive && hyper->index_heads)
        return ds_error_set(loader->error, -ENOTSUP,
                            "%s: sparse attention has no naive form: use the absorbed one",
                            ds_checkpoint_name(loader->checkpoint));
    d = calloc(1, sizeof *d);
    if (!d)
        return ds_error_set(loader->error, -ENOMEM, "%s: no memory",
                            ds_checkpoint_name(loader->checkpoint));
    d->backend = loader->backend;
    d->adapters = loader->adapters;
    d->hyper = *hyper;
    d->batch_max = batch_max;
    d->outputs_max = outputs_max;
    r = load_all(d, loader, naive, progress, arg);
    if (r < 0) {
        (void) ds_deepseek_free(d);
        return r;
    }
    *ret_deepseek = d;
    return 0;
}

static void free_layer(struct ds_backend *backend, struct layer *layer)
{
    backend->buffer_free(backend, layer->attention_norm);
    backend->buffer_free(backend, layer->ffn_norm);
    if (layer->wo)
        backend->weight_free(backend, layer->wo);
    ds_mla_free(&layer->attention, backend);
    ds_ffn_deinit(&layer->ffn, backend);
}

struct ds_deepseek *ds_deepseek_free(struct ds_deepseek *d)
{
    if (!d)
        return NULL;
    struct ds_backend *backend = d->backend;
    struct mtp *mtp = &d->mtp;
    struct ds_buffer *buffers[] = { d->norm,       d->x,        d->h,
                                    d->x_out,      d->mix_out,  d->logits,
                                    mtp->norm,     mtp->hidden, mtp->hidden_norm,
                                    mtp->embedded, mtp->joined, mtp->embedding_norm };
    struct ds_weight *weights[] = { d->embedding, d->head, mtp->embedding, mtp->head, mtp->eh };

    for (unsigned i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        backend->buffer_free(backend, buffers[i]);
    for (unsigned i = 0; i < sizeof weights / sizeof weights[0]; i++)
        if (weights[i])
            backend->weight_free(backend, weights[i]);
    for (uint32_t i = 0; d->layers && i < d->n_layers; i++)
        free_layer(backend, &d->layers[i]);
    free_layer(backend, &mtp->layer);
    ds_mla_memory_deinit(&d->attention);
    ds_ffn_memory_deinit(&d->ffn);
    free(d->layers);
    free(d);
    return NULL;
}

void ds_deepseek_kv_geometry(const struct ds_deepseek *d, struct ds_kv_geometry *ret_geometry)
{
    ds_mla_kv_geometry(&d->hyper, ret_geometry);
    ret_geometry->n_layers = d->n_layers + ds_deepseek_has_mtp(d);
}

bool ds_deepseek_has_mtp(const struct ds_deepseek *d)
{
    return d->mtp.eh != NULL;
}

/* --- running --- */

/* One layer on d->x, whose keys are layer l of kv. cut: only the outputs' rows are wanted after the
 * keys are written, and are in d->x_out then. */
static int layer_forward(struct ds_deepseek *d, const struct layer *w, struct ds_kv *kv, uint32_t l,
                         const struct ds_batch *batch, bool cut)
{
    struct ds_backend *b = d->backend;
    const uint32_t width = d->hyper.width, mix_width = d->hyper.n_heads * d->hyper.value_dim;
    const float epsilon = d->hyper.rms_epsilon;
    struct ds_buffer *x = d->x, *mix = d->attention.mix;
    uint32_t n = batch->n_tokens;
    int r;

    if (b->pulse)
        b->pulse(b->pulse_arg);

    /* attention */
    if ((r = b->rms_norm(b, d->h, x, w->attention_norm, n, width, epsilon)) < 0 ||
        (r = ds_mla_forward(&w->attention, &d->attention, kv, l, batch, d->h)) < 0)
        return r;
    if (cut) {
        if (batch->n_outputs == 0)
            return 0;
        if ((r = b->gather(b, d->mix_out, mix, batch->outputs, batch->n_outputs, mix_width)) < 0 ||
            (r = b->gather(b, d->x_out, x, batch->outputs, batch->n_outputs, width)) < 0)
            return r;
        ds_adapters_gather(d->adapters, batch->outputs, batch->n_outputs);
        mix = d->mix_out;
        x = d->x_out;
        n = batch->n_outputs;
    }
    const struct ds_product out = { .out = x, .weight = w->wo, .accumulate = true };
    if ((r = ds_adapted_matmul(d->adapters, &out, 1, mix, n)) < 0)
        return r;

    /* feed-forward */
    if ((r = b->rms_norm(b, d->h, x, w->ffn_norm, n, width, epsilon)) < 0)
        return r;
    return ds_ffn_forward(&w->ffn, &d->ffn, x, d->h, n);
}

/* logits of the outputs' rows of d->h (cut: the rows are the outputs already). */
static int logits_of(struct ds_deepseek *d, const struct ds_weight *head,
                     const struct ds_batch *batch, bool cut, float *logits)
{
    struct ds_backend *b = d->backend;
    const struct ds_product product = { .out = d->logits, .weight = head };
    const uint32_t n = batch->n_outputs;
    struct ds_buffer *h = d->h;
    int r;

    if (n == 0)
        return 0;
    if (!cut) {
        r = b->gather(b, d->x_out, h, batch->outputs, n, d->hyper.width);
        if (r < 0)
            return r;
        ds_adapters_gather(d->adapters, batch->outputs, n);
        h = d->x_out;
    }
    r = ds_adapted_matmul(d->adapters, &product, 1, h, n);
    return r < 0 ? r : b->read(b, logits, d->logits, 0, (size_t) n * d->hyper.n_vocab);
}

int ds_deepseek_forward(struct ds_deepseek *d, struct ds_kv *kv, const struct ds_batch *batch,
                        float *logits)
{
    struct ds_backend *b = d->backend;
    const uint32_t width = d->hyper.width, n = batch->n_tokens;
    const bool cut = !batch->hidden && batch->n_outputs < n;
    int r;

    r = ds_adapted_embed(d->adapters, d->x, d->embedding, batch->tokens, n);
    for (uint32_t l = 0; l < d->n_layers && r == 0; l++)
        r = layer_forward(d, &d->layers[l], kv, l, batch, cut && l + 1 == d->n_layers);
    if (r < 0 || (cut && batch->n_outputs == 0))
        return r;
    r = b->rms_norm(b, d->h, cut ? d->x_out : d->x, d->norm, cut ? batch->n_outputs : n, width,
                    d->hyper.rms_epsilon);
    if (r == 0 && batch->hidden)
        r = b->read(b, batch->hidden, d->h, 0, (size_t) n * width);
    return r < 0 ? r : logits_of(d, d->head, batch, cut, logits);
}

int ds_deepseek_mtp(struct ds_deepseek *d, struct ds_kv *kv, const struct ds_batch *batch,
                    const float *hidden, float *logits, float *hidden_out)
{
    struct ds_backend *b = d->backend;
    const struct mtp *mtp = &d->mtp;
    const uint32_t width = d->hyper.width, n = batch->n_tokens;
    const float epsilon = d->hyper.rms_epsilon;
    const bool cut = !hidden_out && batch->n_outputs < n;
    const struct ds_slice embedded = { mtp->embedded, width, 0, 0 };
    const struct ds_slice given = { mtp->hidden, width, 0, 0 };
    const struct ds_slice left = { mtp->joined, 2 * width, 0, 0 };
    const struct ds_slice right = { mtp->joined, 2 * width, 0, width };
    const struct ds_product join = { .out = d->x, .weight = mtp->eh };
    int r;

    assert(mtp->eh);
    if ((r = ds_adapted_embed(d->adapters, mtp->embedded,
                              mtp->embedding ? mtp->embedding : d->embedding, batch->tokens, n)) <
            0 ||
        (r = b->write(b, mtp->hidden, hidden, (size_t) n * width)) < 0 ||
        (r = b->rms_norm(b, mtp->embedded, mtp->embedded, mtp->embedding_norm, n, width, epsilon)) <
            0 ||
        (r = b->rms_norm(b, mtp->hidden, mtp->hidden, mtp->hidden_norm, n, width, epsilon)) < 0 ||
        (r = b->copy(b, &left, &embedded, n, 1, width)) < 0 ||
        (r = b->copy(b, &right, &given, n, 1, width)) < 0 ||
        (r = ds_adapted_matmul(d->adapters, &join, 1, mtp->joined, n)) < 0 ||
        (r = layer_forward(d, &mtp->layer, kv, d->n_layers, batch, cut)) < 0)
        return r;
    if (hidden_out && (r = b->read(b, hidden_out, d->x, 0, (size_t) n * width)) < 0)
        return r;
    if (cut && batch->n_outputs == 0)
        return 0;
    r = b->rms_norm(b, d->h, cut ? d->x_out : d->x, mtp->norm ? mtp->norm : d->norm,
                    cut ? batch->n_outputs : n, width, epsilon);
    return r < 0 ? r : logits_of(d, mtp->head ? mtp->head : d->head, batch, cut, logits);
}
