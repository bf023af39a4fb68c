/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/serve/drafter.h"

#include <assert.h>

static uint32_t blocks_of(uint32_t n_positions)
{
    return (n_positions + DS_KV_BLOCK - 1) / DS_KV_BLOCK;
}

static int make(struct ds_drafter *drafter)
{
    const struct ds_drafter_options *o = &drafter->options;
    struct ds_kv_geometry geometry;
    int r;

    ds_model_kv_geometry(drafter->model, &geometry);
    geometry.n_blocks = o->n_blocks;
    r = drafter->backend->kv_new(drafter->backend, &geometry, &drafter->kv);
    if (r == 0)
        r = ds_kv_cache_new(&drafter->cache, o->n_blocks, 0);
    if (r < 0)
        return r;
    drafter->tokens = calloc(o->batch_tokens_max, sizeof *drafter->tokens);
    drafter->positions = calloc(o->batch_tokens_max, sizeof *drafter->positions);
    drafter->sequences = calloc(o->batch_tokens_max, sizeof *drafter->sequences);
    drafter->outputs = calloc(o->sequences_max, sizeof *drafter->outputs);
    drafter->block_tables =
        calloc((size_t) o->sequences_max * blocks_of(o->context), sizeof *drafter->block_tables);
    drafter->logits = malloc((size_t) o->sequences_max * drafter->n_vocab * sizeof(float));
    return drafter->tokens && drafter->positions && drafter->sequences && drafter->outputs &&
                   drafter->block_tables && drafter->logits
               ? 0
               : -ENOMEM;
}

int ds_drafter_new(struct ds_drafter **ret_drafter, struct ds_backend *backend,
                   struct ds_model *model, const struct ds_drafter_options *options)
{
    struct ds_drafter *drafter = calloc(1, sizeof *drafter);
    int r;

    assert(options->n_blocks > 0 && options->batch_tokens_max >= options->sequences_max &&
           options->sequences_max > 0 && options->context > 1);
    if (!drafter)
        return -ENOMEM;
    drafter->backend = backend;
    drafter->model = model;
    drafter->options = *options;
    drafter->n_vocab = ds_model_n_vocab(model);
    if (blocks_of(options->context) > options->n_blocks)
        drafter->options.context = options->n_blocks * DS_KV_BLOCK;
    r = make(drafter);
    if (r < 0) {
        (void) ds_drafter_free(drafter);
        return r;
    }
    *ret_drafter = drafter;
    return 0;
}

struct ds_drafter *ds_drafter_free(struct ds_drafter *drafter)
{
    if (!drafter)
        return NULL;
    assert(!drafter->cache || ds_kv_cache_n_free(drafter->cache) == drafter->options.n_blocks);
    if (drafter->kv)
        drafter->backend->kv_free(drafter->backend, drafter->kv);
    (void) ds_kv_cache_free(drafter->cache);
    free(drafter->tokens);
    free(drafter->positions);
    free(drafter->sequences);
    free(drafter->outputs);
    free(drafter->block_tables);
    free(drafter->logits);
    free(drafter);
    return NULL;
}

/* --- seats --- */

void ds_draft_seat_clear(struct ds_draft_seat *seat)
{
    if (seat->n_blocks > 0)
        ds_kv_cache_release(seat->drafter->cache, seat->blocks, seat->n_blocks);
    seat->n_blocks = seat->n_read = 0;
}

void ds_draft_seat_deinit(struct ds_draft_seat *seat)
{
    ds_draft_seat_clear(seat);
    free(seat->blocks);
    *seat = (struct ds_draft_seat){ 0 };
}

bool ds_draft_seat_hold(struct ds_draft_seat *seat, uint32_t n_positions)
{
    const struct ds_drafter *drafter = seat->drafter;
    uint32_t n = blocks_of(n_positions);

    if (n_positions > drafter->options.context)
        return false;
    if (!seat->blocks)
        seat->blocks = calloc(blocks_of(drafter->options.context), sizeof *seat->blocks);
    if (!seat->blocks)
        return false;
    if (n <= seat->n_blocks)
        return true;
    if (ds_kv_cache_take(drafter->cache, n - seat->n_blocks, seat->blocks + seat->n_blocks) !=
        DS_KV_CACHE_OK)
        return false;
    seat->n_blocks = n;
    return true;
}

/* --- a pass --- */

int ds_drafter_pass(struct ds_drafter *drafter, uint32_t n_tokens, uint32_t n_sequences,
                    uint32_t n_outputs)
{
    const struct ds_batch batch = { .n_tokens = n_tokens,
                                    .n_sequences = n_sequences,
                                    .n_outputs = n_outputs,
                                    .blocks_max = blocks_of(drafter->options.context),
                                    .tokens = drafter->tokens,
                                    .positions = drafter->positions,
                                    .sequences = drafter->sequences,
                                    .outputs = drafter->outputs,
                                    .block_tables = drafter->block_tables };

    assert(n_tokens <= drafter->options.batch_tokens_max &&
           n_sequences <= drafter->options.sequences_max && n_outputs <= n_sequences);
    drafter->n_passes++;
    return ds_model_forward(drafter->model, drafter->kv, &batch, drafter->logits);
}
