/* SPDX-License-Identifier: Apache-2.0 */
/* Resident models that guess for other resident models. */
#include "engine/link_state.h"
#include "proto/base.h"

enum {
    TAIL_MAX = 1024, /* ids that one vocabulary may have more: padding of its matrices */
    SHARE = 2,       /* a drafter's cache has one block for so many of the model's own */
};

static bool same_bytes(struct ds_bytes a, struct ds_bytes b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

/* Do both mean the same by every id that both have? */
static int compare(const struct ds_link_model *model, const struct ds_link_model *draft,
                   struct ds_error *error)
{
    uint32_t n = ds_tokenizer_n_tokens(model->tokenizer);
    uint32_t n_draft = ds_tokenizer_n_tokens(draft->tokenizer);
    uint32_t n_common = n < n_draft ? n : n_draft;

    for (uint32_t i = 0; i < n_common; i++) {
        if (!same_bytes(ds_tokenizer_piece(model->tokenizer, i),
                        ds_tokenizer_piece(draft->tokenizer, i)) ||
            ds_tokenizer_is_control(model->tokenizer, i) !=
                ds_tokenizer_is_control(draft->tokenizer, i))
            return ds_error_set(error, -EINVAL,
                                "draft model %s has another vocabulary than model %s (they differ "
                                "at token %u): choose one of the same family",
                                draft->name, model->name, i);
    }
    if (n > n_common + TAIL_MAX || n_draft > n_common + TAIL_MAX)
        return ds_error_set(error, -EINVAL,
                            "draft model %s has another vocabulary than model %s (%u tokens, not "
                            "%u): choose one of the same family",
                            draft->name, model->name, n_draft, n);
    return 0;
}

/* Once for each pair, as long as the list is long enough. */
static int agree(struct ds_link_model *model, const struct ds_link_model *draft,
                 struct ds_error *error)
{
    int r;

    for (unsigned i = 0; i < DS_LINK_AGREED; i++) {
        if (model->agreed[i] == draft->id)
            return 0;
    }
    r = compare(model, draft, error);
    if (r == 0)
        model->agreed[model->n_agreed++ % DS_LINK_AGREED] = draft->id;
    return r;
}

/* A cache of its own, half as large as that for the model's own answers, where memory has room
 * for twice that. Nothing where it has not: then there are no guesses. */
static struct ds_drafter *make_drafter(const struct ds_link_environment *environment,
                                       const struct ds_link_model *draft)
{
    struct ds_drafter_options options = { .context = draft->context,
                                          .batch_tokens_max = environment->batch_tokens_max,
                                          .sequences_max = environment->sequences_max };
    struct ds_drafter *drafter = NULL;
    struct ds_kv_geometry geometry = { 0 };
    uint64_t bytes;

    ds_model_kv_geometry(draft->weights, &geometry);
    geometry.n_blocks = 1;
    bytes = environment->backend->kv_bytes(&geometry);
    options.n_blocks =
        (uint32_t) (ds_scheduler_kv_bytes(draft->scheduler) / SHARE / (bytes ? bytes : 1));
    if (options.n_blocks == 0)
        options.n_blocks = 1;
    if (options.sequences_max > options.batch_tokens_max)
        options.sequences_max = options.batch_tokens_max;
    if (bytes * options.n_blocks > ds_memory_available(environment->memory) / 2)
        return NULL;
    return ds_drafter_new(&drafter, environment->backend, draft->weights, &options) < 0 ? NULL
                                                                                        : drafter;
}

int ds_link_draft_find(struct ds_link *link, struct ds_link_model *model, uint32_t id,
                       struct ds_drafter **ret_drafter, struct ds_error *error)
{
    struct ds_link_model *draft = ds_link_find_model(link, id);
    int r;

    if (!draft)
        return ds_error_set(error, -ENOENT,
                            "the draft model is not resident in this engine; load it first");
    r = agree(model, draft, error);
    if (r < 0)
        return r;
    if (!draft->drafter)
        draft->drafter = make_drafter(&link->environment, draft);
    *ret_drafter = draft->drafter;
    return 0;
}

void ds_link_draft_forget(struct ds_link *link, const struct ds_link_model *draft)
{
    for (struct ds_link_model *model = link->models; model && draft->drafter; model = model->next) {
        if (model->scheduler)
            ds_scheduler_forget_drafter(model->scheduler, draft->drafter);
    }
}
