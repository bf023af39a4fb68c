/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link_model.h"

#include "proto/base.h"

/* Rows of a batch whose logits can be had: a score wants one for each token, drafts some. */
enum { OUTPUTS_MIN = 64 };

static uint32_t outputs_max(const struct ds_link_environment *environment)
{
    uint32_t n = environment->sequences_max;

    if (n < OUTPUTS_MIN)
        n = OUTPUTS_MIN;
    return n < environment->batch_tokens_max ? n : environment->batch_tokens_max;
}

static void link_model_free_p(struct ds_link_model **model)
{
    (void) ds_link_model_free(*model);
}

struct ds_link_model *ds_link_model_free(struct ds_link_model *model)
{
    if (!model)
        return NULL;
    if (model->scheduler)
        (void) ds_scheduler_free(model->scheduler);
    (void) ds_drafter_free(model->drafter);
    ds_link_loras_free(model);
    if (model->weights)
        (void) ds_model_free(model->weights);
    if (model->tmpl)
        (void) ds_template_free(model->tmpl);
    if (model->tokenizer)
        (void) ds_tokenizer_free(model->tokenizer);
    if (model->checkpoint)
        (void) ds_checkpoint_free(model->checkpoint);
    free(model->name);
    free(model);
    return NULL;
}

/* A template that does not parse costs chat, not the model. */
static int open_template(struct ds_link_model *model)
{
    struct ds_bytes source = ds_checkpoint_vocab(model->checkpoint)->chat_template;
    struct ds_error reason = { "" };
    int r;

    if (source.size == 0) {
        (void) ds_error_set(&model->template_error, 0, "its file has no chat template");
        return 0;
    }
    r = ds_template_new(&model->tmpl, source, &reason);
    if (r == -ENOMEM)
        return r;
    if (r < 0)
        (void) ds_error_set(&model->template_error, 0, "its chat template does not parse: %.380s",
                            reason.text);
    return 0;
}

static int open_text(struct ds_link_model *model, struct ds_error *error)
{
    int r;

    r = ds_tokenizer_new(&model->tokenizer, ds_checkpoint_vocab(model->checkpoint), error);
    if (r < 0)
        return r;
    r = open_template(model);
    if (r < 0)
        return r;
    model->text = (struct ds_link_text){
        .name = model->name,
        .tokenizer = model->tokenizer,
        .tmpl = model->tmpl,
        .template_reason = model->template_error.text,
        .advice = ds_checkpoint_advice(model->checkpoint),
        .form = ds_reply_form_of(ds_checkpoint_vocab(model->checkpoint)),
    };
    return 0;
}

/* On the wire 0 is the model's own, the others follow. */
static int choose_kv_type(struct ds_link_model *model, const struct ds_link_model_spec *spec,
                          struct ds_error *error)
{
    struct ds_error refused = { "" };
    int r;

    if (spec->kv_type == DS__KV_TYPE__KV_AUTO)
        return 0;
    if ((unsigned) spec->kv_type > DS__KV_TYPE__KV_Q4_0)
        return ds_error_set(error, -EINVAL, "%s: kv_type %d: no such type", model->name,
                            (int) spec->kv_type);
    r = ds_model_use_kv_type(model->weights, (enum ds_kv_type)(spec->kv_type - 1), &refused);
    if (r == 0 || !spec->kv_type_strict)
        return 0;
    return ds_error_set(error, r, "%s: %s", model->name, refused.text);
}

static int open_scheduler(struct ds_link_model *model, const struct ds_link_model_spec *spec,
                          const struct ds_link_environment *environment, struct ds_error *error)
{
    uint32_t trained = ds_checkpoint_hyper(model->checkpoint)->context;
    struct ds_scheduler_options options = {
        .batch_tokens_max = environment->batch_tokens_max,
        .sequences_max = environment->sequences_max,
        .outputs_max = outputs_max(environment),
        .step_usec_max = environment->step_usec_max,
        .draft = environment->draft,
        .prefix_salt = environment->prefix_salt,
    };
    struct ds_kv_geometry geometry = { 0 };
    struct ds_kv_demand demand;
    struct ds_kv_plan plan;
    int r;

    if (options.draft == DS_DRAFT_MTP && !ds_model_has_mtp(model->weights))
        options.draft = DS_DRAFT_NGRAM;
    ds_model_kv_geometry(model->weights, &geometry);
    geometry.n_blocks = 1;
    demand = (struct ds_kv_demand){
        .block_bytes = environment->backend->kv_bytes(&geometry),
        .context = spec->context && spec->context < trained ? spec->context : trained,
        .kv_bytes = spec->kv_bytes ? spec->kv_bytes : environment->kv_bytes,
        .available_bytes = ds_memory_available(environment->memory),
    };
    if (demand.context < 2)
        return ds_error_set(error, -EINVAL,
                            "%s: a context of 1 position holds no prompt with its answer: ask for "
                            "2 or more, or convert the model again",
                            model->name);
    r = ds_kv_plan(&demand, &plan, error);
    if (r < 0)
        return r;
    if (spec->demand_context && plan.context < demand.context)
        return ds_error_set(error, -ENOMEM,
                            "%s: there is memory for a context of %u positions, not for %u: ask "
                            "for less, raise kv_bytes or unload another model",
                            model->name, plan.context, demand.context);
    options.n_blocks = plan.n_blocks;
    options.context = model->context = plan.context;
    return ds_scheduler_new(&model->scheduler, environment->backend, model->weights,
                            model->tokenizer, &options, error);
}

int ds_link_model_open(struct ds_link_model **ret_model, const struct ds_link_model_spec *spec,
                       const struct ds_link_environment *environment,
                       int (*progress)(void *arg, double fraction), void *arg,
                       struct ds_error *error)
{
    ds_cleanup(link_model_free_p) struct ds_link_model *model = calloc(1, sizeof *model);
    int r;

    if (!model)
        return -ENOMEM;
    model->id = spec->id;
    model->name = strdup(spec->name);
    if (!model->name)
        return -ENOMEM;
    r = ds_checkpoint_open_named(&model->checkpoint, spec->fds, spec->file_names, spec->n_fds,
                                 model->name, false, error);
    if (r < 0)
        return r;
    r = open_text(model, error);
    if (r == 0 && spec->demand_context)
        r = ds_checkpoint_stretch(model->checkpoint, spec->context, error);
    if (r < 0)
        return r;
    environment->backend->stand_back = spec->stand_back;
    r = ds_model_load(&model->weights, environment->backend, model->checkpoint,
                      environment->batch_tokens_max, outputs_max(environment), progress, arg,
                      error);
    if (r < 0)
        return r;
    r = choose_kv_type(model, spec, error);
    if (r < 0)
        return r;
    r = open_scheduler(model, spec, environment, error);
    if (r < 0)
        return r;
    ds_checkpoint_unmap(model->checkpoint); /* the backend has its own copy of all of it */
    *ret_model = ds_steal(model);
    return 0;
}

void ds_link_checkpoint_info(const struct ds_checkpoint *checkpoint, Ds__ModelInfo *ret_info)
{
    ds__model_info__init(ret_info);
    ret_info->name = (char *) ds_checkpoint_name(checkpoint);
    ret_info->architecture = (char *) ds_checkpoint_architecture(checkpoint);
    ret_info->file_bytes = ds_checkpoint_file_bytes(checkpoint);
    ret_info->context = ds_checkpoint_hyper(checkpoint)->context;
    ret_info->state = (char *) "available";
    ret_info->type = (char *) ds_checkpoint_main_type(checkpoint);
    ret_info->n_parameters = ds_checkpoint_n_parameters(checkpoint);
}

void ds_link_model_info(const struct ds_link_model *model, const struct ds_backend *backend,
                        Ds__ModelInfo *ret_info)
{
    struct ds_kv_geometry geometry;

    ds_model_kv_geometry(model->weights, &geometry);
    ds_link_checkpoint_info(model->checkpoint, ret_info);
    ret_info->name = model->name;
    ret_info->weight_bytes = ds_model_weight_bytes(model->weights);
    ret_info->kv_bytes = ds_scheduler_kv_bytes(model->scheduler);
    ret_info->kv_type = (Ds__KvType) (geometry.type + 1);
    ret_info->context = model->context;
    ret_info->device = (char *) backend->name;
    ret_info->state = (char *) "resident";
}
