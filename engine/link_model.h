/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link_model.h - one resident model: its files, its words, its weights, its scheduler.
 *
 * Opened on the loader thread before anyone else sees it; from then on the loop thread's, except
 * that helper threads use it while n_tasks counts them: the text thread reads .text, the loader
 * makes adapters for .weights.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/format/checkpoint.h"
#include "engine/link_convert.h"
#include "engine/memory.h"
#include "engine/model/model.h"
#include "engine/serve/scheduler.h"

/* What every model of this engine shares. Borrowed by the models; immutable. */
struct ds_link_environment {
    struct ds_backend *backend;
    const struct ds_memory *memory;
    uint32_t batch_tokens_max;
    uint32_t sequences_max;
    uint32_t step_usec_max;     /* as of struct ds_scheduler_options */
    enum ds_draft_source draft; /* likewise; MTP: n-grams where the model has none */
    uint64_t kv_bytes;          /* per model where the load does not say; 0 = choose */
    uint64_t prefix_salt;
};

struct ds_link_model_spec {
    uint32_t id;
    bool stand_back; /* other models are resident: disturb them little */
    const char *name;
    const int *fds;
    const char *const *file_names; /* [n_fds], NULL where not said */
    unsigned n_fds;
    uint32_t context;    /* 0 = the model's own; the least of both */
    bool demand_context; /* context as it is, by ds_checkpoint_stretch(), or an error */
    uint64_t kv_bytes;   /* 0 = the environment's */
    Ds__KvType kv_type;
    bool kv_type_strict; /* else the model's own, where it cannot have that */
};

struct ds_link_lora; /* link_lora.c */

#define DS_LINK_AGREED 8u /* draft models remembered as fitting a model */

struct ds_link_model {
    struct ds_link_model *next; /* ds_link::models */
    uint32_t id;
    char *name;
    struct ds_checkpoint *checkpoint;
    struct ds_tokenizer *tokenizer;
    struct ds_template *tmpl;       /* NULL: none that works */
    struct ds_error template_error; /* why not */
    struct ds_model *weights;
    struct ds_scheduler *scheduler;
    struct ds_link_lora *loras;      /* owned */
    struct ds_drafter *drafter;      /* owned; NULL: it has not guessed for anybody yet */
    uint32_t agreed[DS_LINK_AGREED]; /* ids of models with the same vocabulary; 0: none */
    unsigned n_agreed;
    uint32_t context;         /* positions of one request */
    struct ds_link_text text; /* what conversions need; points into this */
    /* the loop thread's: */
    unsigned n_tasks; /* with helper threads */
    bool closing;     /* freed when n_tasks is 0 */
    uint64_t unload_req_id;
};

/* progress as ds_model_load(). Errors as ds_checkpoint_open() plus -ECANCELED; nothing stays
 * behind. The descriptors remain the caller's. */
int ds_link_model_open(struct ds_link_model **ret_model, const struct ds_link_model_spec *spec,
                       const struct ds_link_environment *environment,
                       int (*progress)(void *arg, double fraction), void *arg,
                       struct ds_error *error);
struct ds_link_model *ds_link_model_free(struct ds_link_model *model); /* accepts NULL */
void ds_link_loras_free(struct ds_link_model *model);                  /* link_lora.c */

/* Borrowed from model. */
void ds_link_model_info(const struct ds_link_model *model, const struct ds_backend *backend,
                        Ds__ModelInfo *ret_info);

/* The same of a file that is only being looked at. */
void ds_link_checkpoint_info(const struct ds_checkpoint *checkpoint, Ds__ModelInfo *ret_info);
