/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/adapter.h"

#include <assert.h>
#include <math.h>

#include "engine/format/quant.h"

#define PRODUCTS_MAX 8u /* of one call that are shrunk together */

struct site {
    char *name;
    const struct ds_weight *weight;
    uint64_t k, n;
    bool embedding;
};

struct pair {
    struct ds_weight *a, *b; /* {k, rank}, {rank, n}; an embedding's a {rank, n_vocab} */
    uint32_t rank;
    float scale;
};

struct ds_adapter {
    struct ds_adapters *adapters; /* borrowed */
    uint32_t serial, n_refs, rank, n_pairs;
    uint64_t bytes;
    struct pair *pairs; /* [n_sites]; a NULL: the site stays as it is */
    unsigned n_sites;
};

struct group { /* rows of the pass that share an adapter */
    const struct ds_adapter *adapter;
    uint32_t first, n; /* in rows */
};

struct ds_adapters {
    struct ds_backend *backend; /* borrowed */
    uint32_t batch_max, outputs_max;
    struct site *sites;
    unsigned n_sites;
    unsigned *by_weight; /* [n_sites] sites by the address of their weight */
    uint32_t next_serial;
    _Atomic uint32_t n_adapters; /* also made and given up by a loader thread */

    /* the pass */
    struct ds_adapter_use *uses; /* [batch_max] of each row */
    struct group *groups;        /* [batch_max] */
    unsigned n_groups;           /* 0: no row has an adapter */
    uint32_t *rows;              /* [batch_max] grouped, ascending in each group */
    float *scales;               /* [batch_max] of rows[i], as the request says it */
    float *row_scales;           /* [batch_max] times the pair's */
    uint32_t *tokens;            /* [batch_max] of rows[i] */
    uint32_t n_rows;             /* of the pass */

    /* activations, device; grown by ds_adapter_admit() */
    uint32_t k_max, rank_max;
    uint64_t y_max;
    struct ds_buffer *x;               /* [batch_max][k_max] gathered input */
    struct ds_buffer *u[PRODUCTS_MAX]; /* [batch_max][rank_max] */
    struct ds_buffer *y;               /* [batch_max][n] */
};

/* --- with the model --- */

int ds_adapters_new(struct ds_adapters **ret_adapters, struct ds_backend *backend,
                    uint32_t batch_max, uint32_t outputs_max)
{
    struct ds_adapters *adapters = calloc(1, sizeof *adapters);

    if (!adapters)
        return -ENOMEM;
    adapters->backend = backend;
    adapters->batch_max = batch_max;
    adapters->outputs_max = outputs_max;
    adapters->uses = calloc(batch_max, sizeof *adapters->uses);
    adapters->groups = calloc(batch_max, sizeof *adapters->groups);
    adapters->rows = calloc(batch_max, sizeof *adapters->rows);
    adapters->scales = calloc(batch_max, sizeof *adapters->scales);
    adapters->row_scales = calloc(batch_max, sizeof *adapters->row_scales);
    adapters->tokens = calloc(batch_max, sizeof *adapters->tokens);
    if (!adapters->uses || !adapters->groups || !adapters->rows || !adapters->scales ||
        !adapters->row_scales || !adapters->tokens) {
        (void) ds_adapters_free(adapters);
        return -ENOMEM;
    }
    *ret_adapters = adapters;
    return 0;
}

struct ds_adapters *ds_adapters_free(struct ds_adapters *adapters)
{
    if (!adapters)
        return NULL;
    assert(adapters->n_adapters == 0);
    adapters->backend->buffer_free(adapters->backend, adapters->x);
    adapters->backend->buffer_free(adapters->backend, adapters->y);
    for (unsigned i = 0; i < PRODUCTS_MAX; i++)
        adapters->backend->buffer_free(adapters->backend, adapters->u[i]);
    for (unsigned i = 0; i < adapters->n_sites; i++)
        free(adapters->sites[i].name);
    free(adapters->sites);
    free(adapters->by_weight);
    free(adapters->uses);
    free(adapters->groups);
    free(adapters->rows);
    free(adapters->scales);
    free(adapters->row_scales);
    free(adapters->tokens);
    free(adapters);
    return NULL;
}

int ds_adapters_add_site(struct ds_adapters *adapters, const char *name,
                         const struct ds_weight *weight, uint64_t k, uint64_t n, bool embedding)
{
    unsigned count = adapters->n_sites + 1, at = adapters->n_sites;
    struct site *sites = reallocarray(adapters->sites, count, sizeof *sites);
    unsigned *by_weight;
    char *copy;

    if (!sites)
        return -ENOMEM;
    adapters->sites = sites;
    by_weight = reallocarray(adapters->by_weight, count, sizeof *by_weight);
    if (!by_weight)
        return -ENOMEM;
    adapters->by_weight = by_weight;
    copy = strdup(name);
    if (!copy)
        return -ENOMEM;
    sites[adapters->n_sites] = (struct site){ copy, weight, k, n, embedding };
    for (; at > 0 && (uintptr_t) sites[by_weight[at - 1]].weight > (uintptr_t) weight; at--)
        by_weight[at] = by_weight[at - 1];
    by_weight[at] = adapters->n_sites++;
    return 0;
}

static unsigned site_of(const struct ds_adapters *adapters, const struct ds_weight *weight)
{
    unsigned low = 0, high = adapters->n_sites;

    while (low < high) {
        unsigned middle = (low + high) / 2;

        if ((uintptr_t) adapters->sites[adapters->by_weight[middle]].weight < (uintptr_t) weight)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < adapters->n_sites && adapters->sites[adapters->by_weight[low]].weight == weight)
        return adapters->by_weight[low];
    return adapters->n_sites;
}

/* --- one adapter --- */

struct making {
    struct ds_adapter *adapter;
    const struct ds_checkpoint *checkpoint;
    const struct ds_lora_file *file;
    const struct ds_lora_pair *pair; /* that is being made */
    struct ds_error *error;
};

static int no_memory(const struct making *making, const struct ds_tensor *tensor)
{
    return ds_error_set(making->error, -ENOMEM, "%s: no memory for tensor '%s'",
                        ds_lora_file_name(making->file), tensor->name);
}

/* Every number of a tensor as floats, each finite: free(). */
static int read_floats(const struct making *making, const struct ds_tensor *tensor,
                       float **ret_values)
{
    uint64_t n = tensor->dims[0] * tensor->dims[1];
    float *values = malloc(n * sizeof *values);

    if (!values)
        return no_memory(making, tensor);
    ds_type_traits(tensor->type)->dequantise(tensor->data, values, n);
    for (uint64_t i = 0; i < n; i++) {
        if (isfinite(values[i]))
            continue;
        free(values);
        return ds_error_set(making->error, -EBADMSG,
                            "%s: tensor '%s' holds a number that is not finite: the file is "
                            "damaged, fetch it again",
                            ds_lora_file_name(making->file), tensor->name);
    }
    *ret_values = values;
    return 0;
}

/* Rows of B as a llama GGUF has them: the halves of each head alternate. */
static void interleave(float *values, uint64_t rank, uint64_t n, uint32_t head_dim, float *scratch)
{
    for (uint64_t head = 0; head < n; head += head_dim) {
        memcpy(scratch, values + head * rank, head_dim * rank * sizeof *values);
        for (uint32_t i = 0; i < head_dim; i++)
            memcpy(values + (head + i) * rank,
                   scratch + (i / 2 + (uint64_t) (i % 2) * (head_dim / 2)) * rank,
                   rank * sizeof *values);
    }
}

/* Has the model's matrix other rows than the adapter was trained on? */
static bool wants_interleaving(const struct making *making, const struct ds_tensor *tensor)
{
    const struct ds_hyper *hyper = ds_checkpoint_hyper(making->checkpoint);

    return ds_lora_file_hf_rows(making->file) && hyper->architecture == DS_ARCH_LLAMA &&
           !hyper->rope_neox && tensor == &making->pair->b &&
           (strstr(making->pair->name, ".attn_q.weight") ||
            strstr(making->pair->name, ".attn_k.weight")) &&
           hyper->key_dim % 2 == 0 && tensor->dims[1] % hyper->key_dim == 0;
}

/* A or B as a weight: float types as they are, others as F32, so that the small matrices round
 * nothing. gather: rows will be fetched. */
static int make_weight(const struct making *making, const struct ds_tensor *tensor, bool gather,
                       struct ds_weight **ret_weight)
{
    struct ds_backend *backend = making->adapter->adapters->backend;
    ds_cleanup(ds_free_p) float *values = NULL;
    struct ds_tensor floats = *tensor;
    bool is_float =
        tensor->type == DS_TYPE_F32 || tensor->type == DS_TYPE_F16 || tensor->type == DS_TYPE_BF16;
    int r;

    r = read_floats(making, tensor, &values);
    if (r < 0)
        return r;
    if (wants_interleaving(making, tensor)) {
        uint32_t head_dim = ds_checkpoint_hyper(making->checkpoint)->key_dim;
        ds_cleanup(ds_free_p) float *scratch = malloc(head_dim * tensor->dims[0] * sizeof *values);

        if (!scratch)
            return no_memory(making, tensor);
        interleave(values, tensor->dims[0], tensor->dims[1], head_dim, scratch);
        is_float = false;
    }
    floats.type = DS_TYPE_F32;
    floats.data = values;
    floats.size_bytes = tensor->dims[0] * tensor->dims[1] * sizeof *values;
    r = backend->weight_new(backend, gather || !is_float ? &floats : tensor, gather, ret_weight);
    if (r == -ENOMEM)
        return no_memory(making, tensor);
    if (r < 0)
        return ds_error_set(making->error, r, "%s: tensor '%s' is refused by the %s backend",
                            ds_lora_file_name(making->file), tensor->name, backend->name);
    making->adapter->bytes += backend->weight_bytes(*ret_weight);
    return 0;
}

static int wrong_shape(const struct making *making, const struct ds_tensor *tensor, uint64_t has,
                       const char *what, uint64_t wants)
{
    return ds_error_set(making->error, -EINVAL,
                        "%s: tensor '%s' is %llu x %llu, made for %llu %s where the model %s has "
                        "%llu: the adapter belongs to another model",
                        ds_lora_file_name(making->file), tensor->name,
                        (unsigned long long) tensor->dims[0], (unsigned long long) tensor->dims[1],
                        (unsigned long long) has, what, ds_checkpoint_name(making->checkpoint),
                        (unsigned long long) wants);
}

static int make_pair(struct making *making, const struct site *site,
                     const struct ds_lora_pair *from, struct pair *pair)
{
    struct ds_adapter *adapter = making->adapter;
    uint64_t k = site->embedding ? from->b.dims[1] : from->a.dims[0];
    uint64_t n = site->embedding ? from->a.dims[1] : from->b.dims[1];
    int r;

    if (k != site->k)
        return wrong_shape(making, site->embedding ? &from->b : &from->a, k,
                           site->embedding ? "outputs" : "inputs", site->k);
    if (n != site->n)
        return wrong_shape(making, site->embedding ? &from->a : &from->b, n,
                           site->embedding ? "tokens" : "outputs", site->n);
    making->pair = from;
    pair->rank = (uint32_t) from->b.dims[0];
    pair->scale = from->scale;
    if (!isfinite(pair->scale))
        return ds_error_set(making->error, -EINVAL, "%s: its scale (alpha / rank) is not finite",
                            ds_lora_file_name(making->file));
    r = make_weight(making, &from->a, site->embedding, &pair->a);
    if (r == 0)
        r = make_weight(making, &from->b, false, &pair->b);
    if (r == 0) {
        adapter->n_pairs++;
        adapter->rank = pair->rank > adapter->rank ? pair->rank : adapter->rank;
    }
    return r;
}

/* Matrices that exist under these names in some forms of a model, and are multiplied in a way that
 * takes no adapter along: experts, and what latent attention absorbs. */
static bool is_fused(const struct ds_lora_pair *pair)
{
    static const char *const parts[] = { ".attn_kv_b.", ".attn_k_b.", ".attn_v_b.", "_exps." };

    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(pair->name, parts[i]))
            return true;
    return strstr(pair->a.name, ".mlp.experts.") != NULL;
}

static int no_site(const struct making *making, const struct ds_lora_pair *pair)
{
    if (ds_checkpoint_tensor(making->checkpoint, pair->name) || is_fused(pair))
        return ds_error_set(making->error, -ENOTSUP,
                            "%s: tensor '%s' changes a matrix of model %s that cannot be adapted "
                            "while it runs: merge the adapter into the model",
                            ds_lora_file_name(making->file), pair->a.name,
                            ds_checkpoint_name(making->checkpoint));
    return ds_error_set(making->error, -EINVAL,
                        "%s: tensor '%s' changes a matrix that model %s does not have: the adapter "
                        "belongs to another model",
                        ds_lora_file_name(making->file), pair->a.name,
                        ds_checkpoint_name(making->checkpoint));
}

static int make_pairs(struct making *making)
{
    struct ds_adapter *adapter = making->adapter;
    const struct ds_adapters *adapters = adapter->adapters;
    const struct ds_lora_pair *pairs;
    unsigned n;
    int r = 0;

    pairs = ds_lora_file_pairs(making->file, &n);
    for (unsigned i = 0; i < n && r == 0; i++) {
        unsigned site = 0;

        while (site < adapters->n_sites && strcmp(adapters->sites[site].name, pairs[i].name) != 0)
            site++;
        r = site == adapters->n_sites
                ? no_site(making, &pairs[i])
                : make_pair(making, &adapters->sites[site], &pairs[i], &adapter->pairs[site]);
    }
    return r;
}

int ds_adapter_new(struct ds_adapter **ret_adapter, struct ds_adapters *adapters,
                   const struct ds_checkpoint *checkpoint, const struct ds_lora_file *file,
                   struct ds_error *error)
{
    const char *wants = ds_lora_file_architecture(file);
    ds_cleanup(ds_adapter_free_p) struct ds_adapter *adapter = NULL;
    struct making making = { .checkpoint = checkpoint, .file = file, .error = error };
    int r;

    if (*wants && strcmp(wants, ds_checkpoint_architecture(checkpoint)) != 0)
        return ds_error_set(error, -EINVAL,
                            "%s: is made for architecture '%s' (key 'general.architecture'), but "
                            "model %s is '%s': take an adapter of this model",
                            ds_lora_file_name(file), wants, ds_checkpoint_name(checkpoint),
                            ds_checkpoint_architecture(checkpoint));
    adapter = calloc(1, sizeof *adapter);
    if (!adapter)
        return ds_error_set(error, -ENOMEM, "%s: no memory", ds_lora_file_name(file));
    adapter->adapters = adapters;
    adapter->n_refs = 1;
    adapter->n_sites = adapters->n_sites;
    adapters->n_adapters++;
    adapter->pairs = calloc(adapters->n_sites + 1, sizeof *adapter->pairs);
    if (!adapter->pairs)
        return ds_error_set(error, -ENOMEM, "%s: no memory", ds_lora_file_name(file));
    making.adapter = adapter;
    r = make_pairs(&making);
    if (r < 0)
        return r;
    *ret_adapter = ds_steal(adapter);
    return 0;
}

struct ds_adapter *ds_adapter_ref(struct ds_adapter *adapter)
{
    if (adapter)
        adapter->n_refs++;
    return adapter;
}

struct ds_adapter *ds_adapter_free(struct ds_adapter *adapter)
{
    struct ds_backend *backend;

    if (!adapter || --adapter->n_refs > 0)
        return NULL;
    backend = adapter->adapters->backend;
    for (unsigned i = 0; adapter->pairs && i < adapter->n_sites; i++) {
        if (adapter->pairs[i].a)
            backend->weight_free(backend, adapter->pairs[i].a);
        if (adapter->pairs[i].b)
            backend->weight_free(backend, adapter->pairs[i].b);
    }
    adapter->adapters->n_adapters--;
    free(adapter->pairs);
    free(adapter);
    return NULL;
}

void ds_adapter_free_p(struct ds_adapter **adapter)
{
    *adapter = ds_adapter_free(*adapter);
}

/* --- room to run --- */

static int grow(struct ds_adapters *adapters, struct ds_buffer **buffer, uint64_t n_floats)
{
    struct ds_buffer *fresh = adapters->backend->buffer_new(adapters->backend, n_floats);

    if (!fresh)
        return -ENOMEM;
    adapters->backend->buffer_free(adapters->backend, *buffer);
    *buffer = fresh;
    return 0;
}

static int make_room(struct ds_adapters *adapters, uint32_t k, uint32_t rank, uint64_t y)
{
    int r = 0;

    if (k > adapters->k_max) {
        r = grow(adapters, &adapters->x, (uint64_t) adapters->batch_max * k);
        if (r < 0)
            return r;
        adapters->k_max = k;
    }
    if (rank > adapters->rank_max) {
        for (unsigned i = 0; i < PRODUCTS_MAX && r == 0; i++)
            r = grow(adapters, &adapters->u[i], (uint64_t) adapters->batch_max * rank);
        if (r < 0)
            return r;
        adapters->rank_max = rank;
    }
    if (y > adapters->y_max) {
        r = grow(adapters, &adapters->y, y);
        if (r < 0)
            return r;
        adapters->y_max = y;
    }
    return 0;
}

int ds_adapter_admit(struct ds_adapter *adapter, struct ds_error *error)
{
    struct ds_adapters *adapters = adapter->adapters;
    uint32_t k = 0;
    uint64_t y = 0;
    int r;

    if (adapter->serial)
        return 0;
    for (unsigned i = 0; i < adapter->n_sites; i++) {
        const struct site *site = &adapters->sites[i];
        uint64_t width = site->embedding ? site->k : site->n;
        bool output = strcmp(site->name, "output.weight") == 0;

        if (!adapter->pairs[i].a)
            continue;
        width *= output ? adapters->outputs_max : adapters->batch_max;
        y = width > y ? width : y;
        k = site->k > k ? (uint32_t) site->k : k;
    }
    r = make_room(adapters, k, adapter->rank, y);
    if (r < 0)
        return ds_error_set(error, r, "no memory for the activations of the adapter");
    adapter->serial = ++adapters->next_serial;
    return 0;
}

uint64_t ds_adapter_bytes(const struct ds_adapter *adapter)
{
    return adapter->bytes;
}

uint32_t ds_adapter_rank(const struct ds_adapter *adapter)
{
    return adapter->rank;
}

uint32_t ds_adapter_n_pairs(const struct ds_adapter *adapter)
{
    return adapter->n_pairs;
}

uint32_t ds_adapter_serial(const struct ds_adapter *adapter)
{
    return adapter->serial;
}

/* --- in a forward pass --- */

/* Sorts the rows of the pass into groups. */
static void group_rows(struct ds_adapters *adapters)
{
    uint32_t at = 0;

    adapters->n_groups = 0;
    for (uint32_t row = 0; row < adapters->n_rows; row++) {
        const struct ds_adapter *adapter = adapters->uses[row].adapter;
        unsigned i = 0;

        while (i < adapters->n_groups && adapters->groups[i].adapter != adapter)
            i++;
        if (!adapter || i < adapters->n_groups)
            continue;
        adapters->groups[adapters->n_groups++] = (struct group){ adapter, at, 0 };
        for (uint32_t other = row; other < adapters->n_rows; other++) {
            if (adapters->uses[other].adapter != adapter)
                continue;
            adapters->rows[at] = other;
            adapters->scales[at++] = adapters->uses[other].scale;
            adapters->groups[i].n++;
        }
    }
}

void ds_adapters_begin(struct ds_adapters *adapters, const struct ds_batch *batch)
{
    adapters->n_groups = 0;
    adapters->n_rows = batch->n_tokens;
    if (!batch->adapters)
        return;
    assert(batch->n_tokens <= adapters->batch_max);
    for (uint32_t row = 0; row < batch->n_tokens; row++) {
        adapters->uses[row] = batch->adapters[batch->sequences[row]];
        if (adapters->uses[row].scale == 0.0f)
            adapters->uses[row].adapter = NULL;
        assert(!adapters->uses[row].adapter || adapters->uses[row].adapter->serial);
    }
    group_rows(adapters);
}

void ds_adapters_gather(struct ds_adapters *adapters, const uint32_t *rows, uint32_t n)
{
    adapters->n_rows = n;
    if (adapters->n_groups == 0)
        return;
    for (uint32_t i = 0; i < n; i++)
        adapters->uses[i] = adapters->uses[rows[i]];
    group_rows(adapters);
}

/* out[rows of the group] += scale * B u. */
static int expand(struct ds_adapters *adapters, const struct group *group, const struct pair *pair,
                  const struct ds_buffer *u, struct ds_buffer *out, uint32_t width)
{
    const struct ds_product product = { .out = adapters->y, .weight = pair->b };
    struct ds_backend *b = adapters->backend;
    float *scales = adapters->row_scales;
    int r;

    r = b->matmul(b, &product, 1, u, group->n);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < group->n; i++)
        scales[i] = adapters->scales[group->first + i] * pair->scale;
    return b->add_rows(b, out, adapters->y, adapters->rows + group->first, scales, group->n, width);
}

int ds_adapted_embed(struct ds_adapters *adapters, struct ds_buffer *out,
                     const struct ds_weight *table, const uint32_t *tokens, uint32_t n)
{
    struct ds_backend *b = adapters->backend;
    unsigned site;
    int r;

    r = b->embed(b, out, table, tokens, n);
    if (r < 0 || adapters->n_groups == 0)
        return r;
    assert(n == adapters->n_rows);
    site = site_of(adapters, table);
    for (unsigned g = 0; g < adapters->n_groups && site < adapters->n_sites; g++) {
        const struct group *group = &adapters->groups[g];
        const struct pair *pair = &group->adapter->pairs[site];

        if (!pair->a)
            continue;
        for (uint32_t i = 0; i < group->n; i++)
            adapters->tokens[i] = tokens[adapters->rows[group->first + i]];
        if ((r = b->embed(b, adapters->u[0], pair->a, adapters->tokens, group->n)) < 0 ||
            (r = expand(adapters, group, pair, adapters->u[0], out,
                        (uint32_t) adapters->sites[site].k)) < 0)
            return r;
    }
    return 0;
}

/* Products sites[0..n) of one input for one group. */
static int add_group(struct ds_adapters *adapters, const struct group *group,
                     const struct ds_product *products, const unsigned *sites, unsigned n_products,
                     const struct ds_buffer *in)
{
    struct ds_product shrink[PRODUCTS_MAX];
    struct ds_backend *b = adapters->backend;
    unsigned which[PRODUCTS_MAX], n = 0;
    int r;

    for (unsigned i = 0; i < n_products; i++) {
        if (sites[i] == adapters->n_sites || !group->adapter->pairs[sites[i]].a)
            continue;
        shrink[n] = (struct ds_product){ .out = adapters->u[n],
                                         .weight = group->adapter->pairs[sites[i]].a };
        which[n++] = i;
    }
    if (n == 0)
        return 0;
    if (group->n < adapters->n_rows) {
        r = b->gather(b, adapters->x, in, adapters->rows + group->first, group->n,
                      (uint32_t) adapters->sites[sites[which[0]]].k);
        if (r < 0)
            return r;
        in = adapters->x;
    }
    r = b->matmul(b, shrink, n, in, group->n);
    for (unsigned i = 0; i < n && r == 0; i++) {
        unsigned site = sites[which[i]];

        r = expand(adapters, group, &group->adapter->pairs[site], adapters->u[i],
                   products[which[i]].out, (uint32_t) adapters->sites[site].n);
    }
    return r;
}

int ds_adapted_matmul(struct ds_adapters *adapters, const struct ds_product *products,
                      unsigned n_products, const struct ds_buffer *in, uint32_t n)
{
    unsigned sites[PRODUCTS_MAX];
    int r;

    r = adapters->backend->matmul(adapters->backend, products, n_products, in, n);
    if (r < 0 || adapters->n_groups == 0)
        return r;
    assert(n == adapters->n_rows && n_products <= PRODUCTS_MAX);
    for (unsigned i = 0; i < n_products; i++)
        sites[i] = site_of(adapters, products[i].weight);
    for (unsigned g = 0; g < adapters->n_groups && r == 0; g++)
        r = add_group(adapters, &adapters->groups[g], products, sites, n_products, in);
    return r;
}
