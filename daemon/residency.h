/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residency.h - which models an engine holds, is loading, or must load again.
 *
 *   QUEUED -> LOADING -> RESIDENT -> UNLOADING -> freed, or AWAY
 *     ^-----------+----------+ engine died (UNLOADING ones are gone with it)
 *
 * AWAY is what is left of an evicted model that had adapters: no descriptors, no memory, only what
 * to load with it the next time, when it hands them on and is freed.
 *
 * Memory is counted while a model is LOADING, RESIDENT or UNLOADING. Where a load does not fit,
 * idle models that are not pinned go, least recently used first; where that is not enough the load
 * fails with BUSY. Calls of other models are never held up.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/list.h"
#include "daemon/model_files.h"
#include "proto/message.h"

struct ds_call;
struct ds_server;
struct ds_session;

enum ds_resident_state {
    DS_RESIDENT_QUEUED,
    DS_RESIDENT_LOADING,
    DS_RESIDENT_RESIDENT,
    DS_RESIDENT_UNLOADING,
    DS_RESIDENT_AWAY,
};

#define DS_LOAD_RETRY_NSEC UINT64_C(5000000) /* until the engine's socket has room again */

/* Is there room for so many bytes? */
enum { DS_ROOM_NOW, DS_ROOM_LATER, DS_ROOM_NEVER };

struct ds_resident {
    struct ds_list link;   /* ds_server::residents */
    struct ds_list calls;  /* ds_call::in_resident */
    struct ds_list loras;  /* ds_lora::link */
    struct ds_list drafts; /* ds_call::in_draft: it guesses for them */
    bool has_drafted;      /* then it has a cache for that as well */
    struct ds_server *server;
    uint32_t id; /* model_id on the link */
    enum ds_resident_state state;
    struct ds_model_files *files; /* owned; kept for the next load */
    bool from_registry;           /* named by the models directory: anybody may use the name */
    uint32_t owner;               /* uid of who attached it, where not from_registry */
    bool pinned;
    bool evict;            /* to be unloaded as soon as the last call is over */
    bool evicted;          /* UNLOADING to make room: its adapters are remembered */
    bool reload;           /* was resident when the engine died: fits, and waits for nothing */
    bool context_demanded; /* by a load that named it */
    uint32_t context;
    Ds__KvType kv_type;  /* asked for */
    bool kv_type_strict; /* by who loads it: nothing else will do */
    uint64_t engine_id;  /* of the load or unload under way, else 0 */
    unsigned files_sent;
    uint64_t load_began_nsec;
    double load_sec, fraction;
    uint32_t n_calls; /* in both lists */
    uint64_t last_used_nsec;
    uint32_t crash_points;
    /* from the engine, after the first load */
    char architecture[32], device[32], type[16];
    uint64_t weight_bytes, kv_bytes, n_parameters;
    uint32_t positions;
    Ds__KvType kv_type_used;
};

/* The model that reference means for a client, made QUEUED where it is not there yet. On failure
 * error code and text for the client: returns an Error.Code > 0, or 0. */
int ds_resident_resolve(struct ds_server *server, struct ds_session *session,
                        const Ds__ModelRef *reference, struct ds_resident **ret_resident,
                        struct ds_error *error);

/* The files that reference means, opened afresh (not loaded). As above. */
int ds_resident_files(struct ds_server *server, struct ds_session *session,
                      const Ds__ModelRef *reference, struct ds_model_files **ret_files,
                      struct ds_error *error);

/* Only what is resident, loading or queued; NULL where there is none. */
struct ds_resident *ds_resident_find(struct ds_server *server, struct ds_session *session,
                                     const Ds__ModelRef *reference);

struct ds_resident *ds_resident_by_engine(struct ds_server *server, uint64_t engine_id);

void ds_resident_join(struct ds_resident *resident, struct ds_call *call);
void ds_resident_leave(struct ds_resident *resident, struct ds_call *call); /* may free it */

/* The same for a draft model, which call has beside its own. */
void ds_draft_join(struct ds_resident *resident, struct ds_call *call);
void ds_draft_leave(struct ds_call *call); /* nothing where it has none */

/* May call be sent to the engine as far as its draft model goes? */
bool ds_draft_ready(const struct ds_call *call);

/* Resident, loading or queued? Else it cannot be used. */
static inline bool ds_resident_is_here(const struct ds_resident *resident)
{
    return resident->state != DS_RESIDENT_UNLOADING && resident->state != DS_RESIDENT_AWAY;
}

/* DS_ROOM_...: sends idle models away for need bytes more; name: what they are for. */
int ds_residents_make_room(struct ds_server *server, uint64_t need, const char *name);

/* Sends what loads and unloads can go out, of adapters too. */
void ds_residents_kick(struct ds_server *server);

/* The engine's answers. */
void ds_resident_loaded(struct ds_resident *resident, const Ds__ModelInfo *info);
void ds_resident_failed(struct ds_resident *resident, const Ds__Error *error);
void ds_resident_unloaded(struct ds_resident *resident);

/* Sends it away: cancels its calls where forced; those it only guesses for go on without.
 * Error.Code, or 0. */
int ds_resident_unload(struct ds_resident *resident, bool force, struct ds_error *error);

/* The engine is gone: everything must be loaded again; points go to the load under way. */
void ds_residents_lost(struct ds_server *server, uint32_t crash_points, uint32_t crash_limit);

void ds_residents_free(struct ds_server *server);

/* Fills info for ps; its strings belong to resident. users has room for 64. */
void ds_resident_info(const struct ds_resident *resident, Ds__ModelInfo *info, uint32_t *users);
