/* SPDX-License-Identifier: Apache-2.0 */
/*
 * drafter.h - a second, smaller model that guesses what the first one will say.
 *
 * A drafter is a resident model with a KV cache of its own for this purpose. It reads the tokens of
 * the sequences that want its guesses, of any number of schedulers whose models have the same
 * vocabulary, and proposes what comes next. Each such sequence has a seat:
 *
 *      tokens   |  read: keys and values in the seat's blocks  |  not yet read  |  guesses
 *               0                                   n_read ^         n_tokens ^
 *
 * What it read of guesses that came out wrong is forgotten by setting n_read back: the next pass
 * writes over it. A sequence that finds no room goes on without guesses. One thread, the
 * schedulers'.
 */
#pragma once

#include <stdint.h>

#include "engine/backend.h"
#include "engine/model/model.h"
#include "engine/serve/kv_cache.h"
#include "engine/serve/pace.h"

struct ds_drafter_options {
    uint32_t n_blocks; /* of its KV cache */
    uint32_t context;  /* positions per sequence; no more than the blocks hold */
    uint32_t batch_tokens_max, sequences_max; /* of a pass; the model takes so many rows, outputs */
};

struct ds_drafter {
    struct ds_backend *backend; /* borrowed */
    struct ds_model *model;     /* borrowed */
    struct ds_drafter_options options;
    uint32_t n_vocab;
    struct ds_kv *kv;
    struct ds_kv_cache *cache; /* who holds which block; nothing is shared */
    struct ds_pace pace;       /* what a pass costs */
    uint64_t n_passes;
    /* a pass, host memory */
    uint32_t *tokens, *positions, *sequences; /* [batch_tokens_max] */
    uint32_t *outputs;                        /* [sequences_max] */
    uint32_t *block_tables;                   /* [sequences_max][blocks of the context] */
    float *logits;                            /* [sequences_max][n_vocab] */
};

/* backend and model are borrowed. -ENOMEM, also where the backend has no room for the cache. */
int ds_drafter_new(struct ds_drafter **ret_drafter, struct ds_backend *backend,
                   struct ds_model *model, const struct ds_drafter_options *options);
struct ds_drafter *ds_drafter_free(struct ds_drafter *drafter); /* all seats are empty */

struct ds_draft_seat {
    struct ds_drafter *drafter; /* borrowed; NULL: none */
    uint32_t *blocks;           /* [blocks of the drafter's context], once needed */
    uint32_t n_blocks;          /* held */
    uint32_t n_read;            /* positions whose keys and values lie in them */
};

/* Gives back the blocks: what was read must be read again. */
void ds_draft_seat_clear(struct ds_draft_seat *seat);
void ds_draft_seat_deinit(struct ds_draft_seat *seat); /* likewise, for good */

/* Holds room for n_positions in all, or none: false. */
bool ds_draft_seat_hold(struct ds_draft_seat *seat, uint32_t n_positions);

/* A pass over what was put into the arrays. Negative: the backend failed. */
int ds_drafter_pass(struct ds_drafter *drafter, uint32_t n_tokens, uint32_t n_sequences,
                    uint32_t n_outputs);
