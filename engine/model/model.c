/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/model.h"

#include <assert.h>

#include "engine/model/deepseek.h"
#include "engine/model/llama.h"

struct ds_model {
    struct ds_backend *backend;
    struct ds_hyper hyper;
    uint32_t batch_max, outputs_max;
    uint64_t weight_bytes;
    struct ds_model_cost cost;
    enum ds_kv_type kv_type;
    struct ds_adapters *adapters;
    struct ds_llama *llama; /* one of these */
    struct ds_deepseek *deepseek;
};

/* Of a walk through the model that only notes what is to be done: nothing is, but it may be ended.
 */
struct walk {
    int (*progress)(void *arg, double fraction);
    void *arg;
};

static int walk_progress(void *arg, double fraction)
{
    const struct walk *walk = arg;

    (void) fraction;
    return walk->progress ? walk->progress(walk->arg, 0) : 0;
}

static int load_family(struct ds_model *model, struct ds_weight_loader *loader, bool naive,
                       int (*progress)(void *arg, double fraction), void *arg)
{
    return model->hyper.kv_lora_rank ? ds_deepseek_load(&model->deepseek, loader, model->batch_max,
                                                        model->outputs_max, naive, progress, arg)
                                     : ds_llama_load(&model->llama, loader, model->batch_max,
                                                     model->outputs_max, progress, arg);
}

static int load_weights(struct ds_model *model, struct ds_weight_loader *loader, bool naive,
                        int (*progress)(void *arg, double fraction), void *arg)
{
    ds_cleanup(ds_filling_free_p) struct ds_filling *filling = NULL;
    const char *name = ds_checkpoint_name(loader->checkpoint);
    struct walk walk = { progress, arg };
    int r;

    if (!loader->backend->weight_alloc)
        return load_family(model, loader, naive, progress, arg);
    r = ds_filling_new(&filling, loader->backend);
    if (r < 0)
        return ds_error_set(loader->error, r, "%s: no memory", name);
    loader->filling = filling;
    r = load_family(model, loader, naive, walk_progress, &walk);
    if (r < 0)
        return r;
    r = ds_filling_run(filling, progress, arg);
    if (r == -ENOMEM)
        return ds_error_set(loader->error, r, "%s: no memory: unload another model", name);
    return r < 0 ? ds_error_set(loader->error, r, "%s: loading was given up", name) : 0;
}

static int load(struct ds_model **ret_model, struct ds_backend *backend,
                const struct ds_checkpoint *checkpoint, uint32_t batch_max, uint32_t outputs_max,
                bool naive, int (*progress)(void *arg, double fraction), void *arg,
                struct ds_error *error)
{
    struct ds_weight_loader loader = { .backend = backend,
                                       .checkpoint = checkpoint,
                                       .error = error };
    struct ds_model *model;
    int r;

    assert(batch_max > 0 && outputs_max > 0);
    if (outputs_max > batch_max)
        outputs_max = batch_max;
    model = calloc(1, sizeof *model);
    if (!model)
        return ds_error_set(error, -ENOMEM, "%s: no memory", ds_checkpoint_name(checkpoint));
    model->backend = backend;
    model->hyper = *ds_checkpoint_hyper(checkpoint);
    model->batch_max = batch_max;
    model->outputs_max = outputs_max;
    r = ds_adapters_new(&model->adapters, backend, batch_max, outputs_max);
    if (r < 0) {
        (void) ds_model_free(model);
        return ds_error_set(error, r, "%s: no memory", ds_checkpoint_name(checkpoint));
    }
    loader.adapters = model->adapters;
    r = load_weights(model, &loader, naive, progress, arg);
    if (r == 0 || r == -EBADMSG) { /* a file that was changed meanwhile is not a damaged one */
        int changed = ds_checkpoint_intact(checkpoint, error);

        r = changed < 0 ? changed : r;
    }
    if (r < 0) {
        (void) ds_model_free(model);
        return r;
    }
    model->weight_bytes = loader.size_bytes;
    model->cost = loader.cost;
    model->kv_type = loader.rounded ? DS_KV_F16 : DS_KV_F32;
    *ret_model = model;
    return 0;
}

int ds_model_load(struct ds_model **ret_model, struct ds_backend *backend,
                  const struct ds_checkpoint *checkpoint, uint32_t batch_max, uint32_t outputs_max,
                  int (*progress)(void *arg, double fraction), void *arg, struct ds_error *error)
{
    return load(ret_model, backend, checkpoint, batch_max, outputs_max, false, progress, arg,
                error);
}

int ds_model_load_naive(struct ds_model **ret_model, struct ds_backend *backend,
                        const struct ds_checkpoint *checkpoint, uint32_t batch_max,
                        uint32_t outputs_max, struct ds_error *error)
{
    return load(ret_model, backend, checkpoint, batch_max, outputs_max, true, NULL, NULL, error);
}

struct ds_model *ds_model_free(struct ds_model *model)
{
    if (!model)
        return NULL;
    (void) ds_llama_free(model->llama);
    (void) ds_deepseek_free(model->deepseek);
    (void) ds_adapters_free(model->adapters);
    free(model);
    return NULL;
}

void ds_model_kv_geometry(const struct ds_model *model, struct ds_kv_geometry *ret_geometry)
{
    *ret_geometry = (struct ds_kv_geometry){ .n_layers = model->hyper.n_layers,
                                             .n_kv_heads = model->hyper.n_kv_heads,
                                             .key_dim = model->hyper.key_dim,
                                             .value_dim = model->hyper.value_dim,
                                             .type = model->kv_type };
    if (model->deepseek)
        ds_deepseek_kv_geometry(model->deepseek, ret_geometry);
}

int ds_model_use_kv_type(struct ds_model *model, enum ds_kv_type type, struct ds_error *error)
{
    enum ds_kv_type before = model->kv_type;
    struct ds_kv_geometry geometry;

    model->kv_type = type;
    ds_model_kv_geometry(model, &geometry);
    geometry.n_blocks = 1;
    if (model->backend->kv_bytes(&geometry) != 0)
        return 0;
    model->kv_type = before;
    return ds_error_set(error, -EINVAL,
                        "kv_type %s: needs heads of a multiple of 32 dimensions, and this model's "
                        "have %u and %u; take F16",
                        ds_kv_type_name(type), geometry.key_dim, geometry.value_dim);
}

const char *ds_kv_type_name(enum ds_kv_type type)
{
    static const char *const names[] = { [DS_KV_F32] = "F32",
                                         [DS_KV_F16] = "F16",
                                         [DS_KV_BF16] = "BF16",
                                         [DS_KV_Q8_0] = "Q8_0",
                                         [DS_KV_Q4_0] = "Q4_0" };

    return names[type];
}

uint64_t ds_model_weight_bytes(const struct ds_model *model)
{
    return model->weight_bytes;
}

void ds_model_cost(const struct ds_model *model, struct ds_model_cost *ret_cost)
{
    struct ds_kv_geometry one;

    ds_model_kv_geometry(model, &one);
    one.n_blocks = 1;
    *ret_cost = model->cost;
    ret_cost->position_bytes = model->backend->kv_bytes(&one) / DS_KV_BLOCK;
}

uint32_t ds_model_n_vocab(const struct ds_model *model)
{
    return model->hyper.n_vocab;
}

struct ds_adapters *ds_model_adapters(struct ds_model *model)
{
    return model->adapters;
}

int ds_model_forward(struct ds_model *model, struct ds_kv *kv, const struct ds_batch *batch,
                     float *logits)
{
    assert(batch->n_tokens > 0 && batch->n_tokens <= model->batch_max);
    assert(batch->n_outputs <= model->outputs_max);
    ds_adapters_begin(model->adapters, batch);
    return model->deepseek ? ds_deepseek_forward(model->deepseek, kv, batch, logits)
                           : ds_llama_forward(model->llama, kv, batch, logits);
}

uint32_t ds_model_width(const struct ds_model *model)
{
    return model->hyper.width;
}

bool ds_model_has_mtp(const struct ds_model *model)
{
    return model->deepseek && ds_deepseek_has_mtp(model->deepseek);
}

int ds_model_mtp(struct ds_model *model, struct ds_kv *kv, const struct ds_batch *batch,
                 const float *hidden, float *logits, float *hidden_out)
{
    assert(ds_model_has_mtp(model));
    assert(batch->n_tokens > 0 && batch->n_tokens <= model->batch_max);
    assert(batch->n_outputs <= model->outputs_max);
    ds_adapters_begin(model->adapters, batch);
    return ds_deepseek_mtp(model->deepseek, kv, batch, hidden, logits, hidden_out);
}
