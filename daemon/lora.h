/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lora.h - LoRA adapters of resident models: loaded, chosen by requests, reloaded, unloaded.
 *
 *   QUEUED -> LOADING -> RESIDENT -> UNLOADING -> freed
 *     ^----------+----------+ engine died, or the model was evicted (UNLOADING ones are gone with
 * it)
 *
 * An adapter belongs to a ds_resident and goes with it when somebody unloads that; where the model
 * was evicted for another one, its adapters are remembered and loaded with it again, so that nobody
 * sees an eviction. One from the models directory, under its own name, is everybody's; files that a
 * client handed over are its user's alone: two users may have different adapters of one name. A
 * request's own come first.
 *
 * Unloading waits: an adapter that is leaving gets no new requests and goes when the last one of
 * those it has is over.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/list.h"
#include "daemon/model_files.h"
#include "proto/message.h"

struct ds_call;
struct ds_resident;
struct ds_server;

#define DS_LORAS_MAX 1024u /* of one model */

enum ds_lora_state {
    DS_LORA_QUEUED,
    DS_LORA_LOADING,
    DS_LORA_RESIDENT,
    DS_LORA_UNLOADING,
};

struct ds_lora {
    struct ds_list link;  /* ds_resident::loras */
    struct ds_list calls; /* ds_call::in_lora */
    struct ds_resident *resident;
    uint32_t id; /* on the link; never 0 */
    enum ds_lora_state state;
    struct ds_model_files *files; /* owned; .name is what requests call it */
    bool shared;                  /* from the models directory, under its own name */
    uint32_t owner;               /* uid of who loaded it */
    bool leaving;
    uint64_t engine_id; /* of the load or unload under way, else 0 */
    unsigned files_sent;
    uint32_t n_users; /* calls that run with it; the others load or unload it */
    uint32_t crash_points;
    uint64_t load_began_nsec;
    double load_sec;
    /* from the engine, after the first load */
    uint64_t bytes;
    uint32_t rank, n_matrices;
};

/* Gives call, which has joined its resident, the adapter that reference means, made QUEUED where it
 * is not there. name: what it is called from then on, "" for its own name. reference NULL or empty:
 * none. Error.Code > 0 with the line in error, or 0. */
int ds_lora_choose(struct ds_call *call, const Ds__LoraRef *reference, const char *name,
                   struct ds_error *error);
void ds_lora_leave(struct ds_call *call);

/* Sends what loads and unloads can go out. */
void ds_loras_kick(struct ds_resident *resident);

/* May call be sent to the engine as far as its adapter goes? */
bool ds_lora_ready(const struct ds_call *call);

/* call waits until the adapter of that name has left resident. Error.Code, or 0. */
int ds_lora_unload(struct ds_call *call, struct ds_resident *resident, const char *name,
                   struct ds_error *error);

/* The engine's answers. */
struct ds_lora *ds_lora_by_engine(struct ds_server *server, uint64_t engine_id);
void ds_lora_answered(struct ds_lora *lora, const Ds__LoraInfo *info);
void ds_lora_failed(struct ds_lora *lora, const Ds__Error *error);

/* The engine is gone, or (points 0) the model was evicted: all must be loaded again. */
void ds_loras_lost(struct ds_resident *resident, uint32_t points, uint32_t limit);

uint64_t ds_loras_bytes(const struct ds_resident *resident);
void ds_loras_move(struct ds_resident *to, struct ds_resident *from);
void ds_loras_free(struct ds_resident *resident); /* nobody uses them */

bool ds_lora_visible(const struct ds_lora *lora, uint32_t uid, bool admin);
/* Fills info; its strings belong to lora. */
void ds_lora_info(const struct ds_lora *lora, Ds__LoraInfo *info);
