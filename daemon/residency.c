/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/residency.h"

#include "daemon/call.h"
#include "daemon/dispatch.h"
#include "daemon/log.h"
#include "daemon/lora.h"
#include "daemon/server.h"
#include "daemon/session.h"

#include <inttypes.h>

/* --- finding --- */

static bool same_name(const struct ds_resident *resident, const char *name)
{
    size_t length = strlen(resident->files->name);

    return strncmp(resident->files->name, name, length) == 0 &&
           (name[length] == 0 || strcmp(name + length, ".gguf") == 0);
}

static struct ds_resident *find_files(struct ds_server *server, const struct ds_model_files *files)
{
    struct ds_resident *resident;

    ds_list_each(resident, &server->residents, link)
    {
        if (ds_resident_is_here(resident) && ds_model_files_same(resident->files, files))
            return resident;
    }
    return NULL;
}

/* A name in the models directory is everybody's; the name of handed over files only their owner's:
 * nobody can slip a file of his own under a name that others use. */
static struct ds_resident *find_name(struct ds_server *server, const char *name, bool registry,
                                     uint32_t uid)
{
    struct ds_resident *resident;

    ds_list_each(resident, &server->residents, link)
    {
        if (ds_resident_is_here(resident) && resident->from_registry == registry &&
            (registry || resident->owner == uid) && same_name(resident, name))
            return resident;
    }
    return NULL;
}

static const char *effective_name(struct ds_server *server, const char *name)
{
    if (name && *name)
        return name;
    ds_registry_refresh(server->registry);
    return ds_registry_default(server->registry, server->config.default_model);
}

struct ds_resident *ds_resident_find(struct ds_server *server, struct ds_session *session,
                                     const Ds__ModelRef *reference)
{
    const struct ds_model_files *files;
    struct ds_resident *resident;
    const char *name;

    if (reference && reference->attachment) {
        files = ds_session_attachment(session, reference->attachment);
        return files ? find_files(server, files) : NULL;
    }
    name = effective_name(server, reference ? reference->name : NULL);
    if (!name)
        return NULL;
    resident = find_name(server, name, true, 0);
    return resident ? resident : find_name(server, name, false, session->peer.uid);
}

struct ds_resident *ds_resident_by_engine(struct ds_server *server, uint64_t engine_id)
{
    struct ds_resident *resident;

    ds_list_each(resident, &server->residents, link)
    {
        if (engine_id && resident->engine_id == engine_id)
            return resident;
    }
    return NULL;
}

int ds_resident_files(struct ds_server *server, struct ds_session *session,
                      const Ds__ModelRef *reference, struct ds_model_files **ret_files,
                      struct ds_error *error)
{
    const struct ds_model_files *handed;
    const char *name;
    int r;

    if (reference && reference->attachment) {
        handed = ds_session_attachment(session, reference->attachment);
        if (!handed) {
            (void) ds_error_set(error, 0, "attachment %" PRIu64 ": no files were handed over",
                                reference->attachment);
            return DS__ERROR__CODE__NOT_FOUND;
        }
        r = ds_model_files_copy(ret_files, handed);
    } else {
        name = effective_name(server, reference ? reference->name : NULL);
        if (!name) {
            (void) ds_error_set(error, 0,
                                "no model was named and there is no default_model; `dsctl list` "
                                "shows those there are");
            return DS__ERROR__CODE__NOT_FOUND;
        }
        r = ds_registry_open(server->registry, name, ret_files, error);
        if (r == DS_REGISTRY_UNKNOWN || r == DS_REGISTRY_INCOMPLETE)
            return DS__ERROR__CODE__NOT_FOUND;
        if (r < 0)
            return r == -EMFILE || r == -ENFILE ? DS__ERROR__CODE__BUSY
                                                : DS__ERROR__CODE__NOT_FOUND;
    }
    if (r < 0) {
        (void) ds_error_set(error, 0, "cannot hold the model's files: %s", strerror(-r));
        return DS__ERROR__CODE__BUSY;
    }
    return 0;
}

static void resident_free(struct ds_resident *resident)
{
    ds_list_remove(&resident->link);
    ds_loras_free(resident);
    (void) ds_model_files_free(resident->files);
    free(resident);
}

/* Adapters of the same files, left behind by an eviction. */
static void inherit(struct ds_resident *resident)
{
    struct ds_resident *other;

    ds_list_each(other, &resident->server->residents, link)
    {
        bool left = other->state == DS_RESIDENT_AWAY ||
                    (other->state == DS_RESIDENT_UNLOADING && other->evicted);

        if (!left || !ds_model_files_same(other->files, resident->files))
            continue;
        ds_loras_lost(other, 0, UINT32_MAX);
        ds_loras_move(resident, other);
        if (other->state == DS_RESIDENT_AWAY)
            resident_free(other);
    }
}

static void as_configured(struct ds_resident *resident)
{
    resident->context = resident->server->config.context;
    resident->context_demanded = false;
    resident->kv_type = (Ds__KvType) resident->server->config.kv_type;
    resident->kv_type_strict = false;
}

static struct ds_resident *resident_new(struct ds_server *server, struct ds_model_files *files)
{
    struct ds_resident *resident = calloc(1, sizeof(*resident));

    if (!resident)
        return NULL;
    resident->server = server;
    resident->files = files;
    resident->id = ++server->next_model_id;
    resident->state = DS_RESIDENT_QUEUED;
    as_configured(resident);
    ds_list_init(&resident->calls);
    ds_list_init(&resident->loras);
    ds_list_init(&resident->drafts);
    inherit(resident);
    ds_list_append(&server->residents, &resident->link);
    return resident;
}

int ds_resident_resolve(struct ds_server *server, struct ds_session *session,
                        const Ds__ModelRef *reference, struct ds_resident **ret_resident,
                        struct ds_error *error)
{
    ds_cleanup(ds_model_files_free_p) struct ds_model_files *files = NULL;
    bool registry = !reference || !reference->attachment;
    struct ds_resident *resident = ds_resident_find(server, session, reference);
    int code;

    if (!resident || (registry && !resident->from_registry)) {
        code = ds_resident_files(server, session, reference, &files, error);
        if (code && !resident)
            return code;
        if (!code)
            resident = find_files(server, files);
    }
    if (!resident) {
        resident = resident_new(server, files);
        if (!resident) {
            (void) ds_error_set(error, 0, "no memory");
            return DS__ERROR__CODE__BUSY;
        }
        files = NULL;
        resident->owner = session->peer.uid;
        resident->from_registry = registry;
    } else if (registry && files && !resident->from_registry) {
        (void) snprintf(resident->files->name, sizeof resident->files->name, "%s", files->name);
        resident->from_registry = true;
    }
    *ret_resident = resident;
    return 0;
}

/* --- who uses it --- */

void ds_resident_join(struct ds_resident *resident, struct ds_call *call)
{
    call->resident = resident;
    ds_list_append(&resident->calls, &call->in_resident);
    resident->n_calls++;
}

/* Nobody waits for it any more, and the engine knows nothing of it. */
static bool is_unwanted(const struct ds_resident *resident)
{
    return resident->n_calls == 0 && resident->state == DS_RESIDENT_QUEUED && !resident->reload &&
           resident->files_sent == 0;
}

static void on_load_retry(void *owner)
{
    ds_residents_kick(owner);
}

/* Whoever ends a call that has two models may be going through the residents: then the next kick
 * frees what nobody wants. */
static void sweep_later(struct ds_server *server)
{
    (void) ds_timer_set(server->loop, &server->engine.retry, ds_now_nsec(), on_load_retry, server);
}

static void sweep(struct ds_server *server)
{
    struct ds_resident *resident;

    ds_list_each(resident, &server->residents, link)
    {
        if (is_unwanted(resident))
            resident_free(resident);
    }
}

void ds_resident_leave(struct ds_resident *resident, struct ds_call *call)
{
    call->resident = NULL;
    ds_list_remove(&call->in_resident);
    resident->n_calls--;
    resident->last_used_nsec = ds_now_nsec();
    if (is_unwanted(resident) && call->drafts)
        sweep_later(resident->server);
    else if (is_unwanted(resident))
        resident_free(resident);
}

void ds_draft_join(struct ds_resident *resident, struct ds_call *call)
{
    call->draft = resident;
    call->drafts = true;
    resident->has_drafted = true;
    ds_list_append(&resident->drafts, &call->in_draft);
    resident->n_calls++;
}

void ds_draft_leave(struct ds_call *call)
{
    struct ds_resident *resident = call->draft;

    if (!resident)
        return;
    call->draft = NULL;
    ds_list_remove(&call->in_draft);
    resident->n_calls--;
    resident->last_used_nsec = ds_now_nsec();
    if (is_unwanted(resident))
        sweep_later(resident->server);
}

bool ds_draft_ready(const struct ds_call *call)
{
    return !call->draft || call->draft->state == DS_RESIDENT_RESIDENT;
}

/* --- memory --- */

/* Before the load has told: the files, and the cache where the configuration says how much. */
static uint64_t memory_of(const struct ds_resident *resident)
{
    uint64_t known = resident->weight_bytes + resident->kv_bytes;

    if (known == 0)
        known = resident->files->bytes + resident->server->config.kv_bytes;
    if (known < resident->files->bytes)
        known = resident->files->bytes;
    if (resident->has_drafted) /* half as large, see engine/link_draft.c */
        known += resident->kv_bytes / 2;
    return known + ds_loras_bytes(resident);
}

static uint64_t memory_limit(const struct ds_server *server)
{
    if (server->config.memory)
        return server->config.memory;
    return (uint64_t) sysconf(_SC_PHYS_PAGES) * (uint64_t) sysconf(_SC_PAGESIZE) / 5 * 4;
}

static uint64_t memory_used(struct ds_server *server, uint64_t *ret_leaving)
{
    struct ds_resident *resident;
    uint64_t used = 0;

    *ret_leaving = 0;
    ds_list_each(resident, &server->residents, link)
    {
        if (resident->state == DS_RESIDENT_UNLOADING)
            *ret_leaving += memory_of(resident);
        if (resident->state != DS_RESIDENT_QUEUED && resident->state != DS_RESIDENT_AWAY)
            used += memory_of(resident);
    }
    return used;
}

static struct ds_resident *least_recently_used(struct ds_server *server)
{
    struct ds_resident *resident, *oldest = NULL;

    ds_list_each(resident, &server->residents, link)
    {
        if (resident->state == DS_RESIDENT_RESIDENT && resident->n_calls == 0 &&
            !resident->pinned && (!oldest || resident->last_used_nsec < oldest->last_used_nsec))
            oldest = resident;
    }
    return oldest;
}

static void send_away(struct ds_resident *resident)
{
    struct ds_server *server = resident->server;
    uint64_t engine_id = ++server->next_id;

    if (ds_engine_link_unload(&server->engine, resident->id, engine_id) != 0)
        return; /* no room in the ring: the next kick tries again */
    resident->engine_id = engine_id;
    resident->state = DS_RESIDENT_UNLOADING;
}

static void evict(struct ds_resident *resident)
{
    send_away(resident);
    resident->evicted = resident->state == DS_RESIDENT_UNLOADING;
}

int ds_residents_make_room(struct ds_server *server, uint64_t need, const char *name)
{
    uint64_t limit = memory_limit(server), leaving, used;
    struct ds_resident *victim;

    for (;;) {
        used = memory_used(server, &leaving);
        if (need <= limit && used <= limit - need)
            return DS_ROOM_NOW;
        if (need > limit)
            return DS_ROOM_NEVER;
        if (used - leaving <= limit - need)
            return DS_ROOM_LATER;
        victim = least_recently_used(server);
        if (!victim)
            return DS_ROOM_NEVER;
        ds_log(LOG_INFO, "model %s goes to make room for %s", victim->files->name, name);
        evict(victim);
        if (victim->state != DS_RESIDENT_UNLOADING)
            return DS_ROOM_LATER;
    }
}

/* --- loading --- */

/* Fails everybody who waits for it, and forgets it. */
static void give_up(struct ds_resident *resident, const Ds__Error *error)
{
    struct ds_call *call;

    ds_log(LOG_WARNING, "%s", error->text);
    resident->files_sent = 1; /* the last to leave must not free it under us */
    while (!ds_list_empty(&resident->calls)) {
        call = ds_container(resident->calls.next, struct ds_call, in_resident);
        ds_call_error(call, error);
    }
    while (!ds_list_empty(&resident->drafts)) {
        call = ds_container(resident->drafts.next, struct ds_call, in_draft);
        ds_call_error(call, error);
    }
    resident_free(resident);
}

static void refuse_load(struct ds_resident *resident)
{
    struct ds_server *server = resident->server;
    uint64_t leaving, used = memory_used(server, &leaving);
    Ds__Error error = DS__ERROR__INIT;
    char text[480];

    (void) snprintf(text, sizeof text,
                    "model %s: needs %" PRIu64 " MiB, but of %" PRIu64 " MiB for models %" PRIu64
                    " MiB are in use or pinned; unload one, or set memory in dsd.conf",
                    resident->files->name, memory_of(resident) >> 20, memory_limit(server) >> 20,
                    used >> 20);
    error.code = DS__ERROR__CODE__BUSY;
    error.text = text;
    error.retry_after_ms = 5000;
    give_up(resident, &error);
}

/* Sends the load, or the rest of it. */
static void send_load(struct ds_resident *resident)
{
    struct ds_server *server = resident->server;
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    int r;

    if (resident->engine_id == 0) {
        resident->engine_id = ++server->next_id;
        resident->load_began_nsec = ds_now_nsec();
        resident->fraction = 0;
    }
    load.req_id = resident->engine_id;
    load.model_id = resident->id;
    load.name = resident->files->name;
    load.n_files = resident->files->n_files;
    load.context = resident->context;
    load.demand_context = resident->context_demanded;
    load.kv_bytes = server->config.kv_bytes;
    load.kv_type = resident->kv_type;
    load.kv_type_strict = resident->kv_type_strict;
    r = ds_engine_process_load(&server->engine, &load, resident->files, &resident->files_sent);
    if (r == 0) {
        resident->state = DS_RESIDENT_LOADING;
        server->engine.sign_of_life_nsec = ds_now_nsec();
    } else if (r == -EAGAIN) {
        (void) ds_timer_set(server->loop, &server->engine.retry, ds_now_nsec() + DS_LOAD_RETRY_NSEC,
                            on_load_retry, server);
    } else {
        ds_engine_process_condemn(&server->engine, "its socket does not take a model");
    }
}

/* Twice there when an engine died: tried alone, so that the third time shows who it was. */
static bool is_suspect(const struct ds_resident *resident)
{
    return resident->crash_points > DS_CRASH_POINTS;
}

static bool suspect_is_tried(struct ds_server *server)
{
    struct ds_resident *resident;

    ds_list_each(resident, &server->residents, link)
    {
        if (resident->state == DS_RESIDENT_LOADING && is_suspect(resident))
            return true;
    }
    return false;
}

void ds_residents_kick(struct ds_server *server)
{
    struct ds_resident *resident;
    int room;

    sweep(server);
    ds_list_each(resident, &server->residents, link)
    {
        if (server->engine.state != DS_ENGINE_RUNNING)
            return;
        ds_loras_kick(resident);
        if (resident->state != DS_RESIDENT_QUEUED ||
            (is_suspect(resident) && suspect_is_tried(server)))
            continue;
        room = resident->reload || resident->files_sent
                   ? DS_ROOM_NOW
                   : ds_residents_make_room(server, memory_of(resident), resident->files->name);
        if (room == DS_ROOM_NOW)
            send_load(resident);
        else if (room == DS_ROOM_NEVER)
            refuse_load(resident);
    }
}

/* What a load needs besides its files is known only afterwards: idle ones make up for it. */
static void trim(struct ds_server *server, const struct ds_resident *kept)
{
    uint64_t limit = memory_limit(server), leaving, used;
    struct ds_resident *victim;

    while ((used = memory_used(server, &leaving)) - leaving > limit) {
        victim = least_recently_used(server);
        if (!victim || victim == kept)
            return;
        ds_log(LOG_INFO, "model %s goes: %s needs more than its files say", victim->files->name,
               kept->files->name);
        evict(victim);
        if (victim->state != DS_RESIDENT_UNLOADING)
            return;
    }
}

static void copy_text(char *to, size_t size, const char *from)
{
    (void) snprintf(to, size, "%s", from ? from : "");
}

void ds_resident_loaded(struct ds_resident *resident, const Ds__ModelInfo *info)
{
    struct ds_server *server = resident->server;
    struct ds_call *call;

    resident->state = DS_RESIDENT_RESIDENT;
    resident->engine_id = 0;
    resident->files_sent = 0;
    resident->reload = false;
    resident->crash_points = 0;
    resident->last_used_nsec = ds_now_nsec();
    resident->load_sec = (double) (resident->last_used_nsec - resident->load_began_nsec) / 1e9;
    if (info) {
        copy_text(resident->architecture, sizeof resident->architecture, info->architecture);
        copy_text(resident->device, sizeof resident->device, info->device);
        copy_text(resident->type, sizeof resident->type, info->type);
        resident->weight_bytes = info->weight_bytes;
        resident->kv_bytes = info->kv_bytes;
        resident->n_parameters = info->n_parameters;
        resident->positions = info->context;
        resident->kv_type_used = info->kv_type;
    }
    server->engine.failures = 0;
    trim(server, resident);
    ds_log(LOG_INFO, "model %s is resident after %.2f s", resident->files->name,
           resident->load_sec);
    ds_list_each(call, &resident->calls, in_resident)
    {
        if (call->state != DS_CALL_LOADING)
            continue;
        call->state = DS_CALL_WAITING;
        if (call->op == DS__REQUEST__OP_LOAD)
            ds_verb_loaded(call);
    }
    ds_engine_link_pump(&server->engine);
    ds_residents_kick(server);
}

/* Where the first load was to be as some calls demanded, only they fail; is it due again, as
 * configured, for others who wait? */
static bool others_try(struct ds_resident *resident, const Ds__Error *error)
{
    struct ds_list *next;

    if (resident->reload || !(resident->context_demanded || resident->kv_type_strict))
        return false;
    resident->files_sent = 1; /* the last to leave must not free it under us */
    for (struct ds_list *at = resident->calls.next; at != &resident->calls; at = next) {
        struct ds_call *call = ds_container(at, struct ds_call, in_resident);

        next = at->next;
        if (call->demanding)
            ds_call_error(call, error);
    }
    if (resident->n_calls == 0)
        return false;
    as_configured(resident);
    resident->state = DS_RESIDENT_QUEUED;
    resident->engine_id = 0;
    resident->files_sent = 0;
    return true;
}

void ds_resident_failed(struct ds_resident *resident, const Ds__Error *error)
{
    struct ds_server *server = resident->server;
    Ds__Error copy = DS__ERROR__INIT;
    char text[480];

    if (strstr(error->text, resident->files->name))
        (void) snprintf(text, sizeof text, "%s", error->text);
    else
        (void) snprintf(text, sizeof text, "model %s: %s", resident->files->name, error->text);
    copy.code = error->code ? error->code : DS__ERROR__CODE__INTERNAL;
    copy.text = text;
    copy.retry_after_ms = error->retry_after_ms;
    if (!others_try(resident, &copy))
        give_up(resident, &copy);
    ds_residents_kick(server);
}

/* --- unloading --- */

/* The engine does not have it any more. */
static void unloaded(struct ds_resident *resident)
{
    resident->engine_id = 0;
    if (!resident->evicted || ds_list_empty(&resident->loras)) {
        resident_free(resident);
        return;
    }
    resident->state = DS_RESIDENT_AWAY;
    ds_model_files_close(resident->files);
    ds_loras_lost(resident, 0, UINT32_MAX);
}

void ds_resident_unloaded(struct ds_resident *resident)
{
    struct ds_server *server = resident->server;

    unloaded(resident);
    ds_residents_kick(server);
}

int ds_resident_unload(struct ds_resident *resident, bool force, struct ds_error *error)
{
    struct ds_call *call;

    if (resident->state != DS_RESIDENT_RESIDENT) {
        (void) ds_error_set(error, 0, "model %s: is being loaded; try again when it is resident",
                            resident->files->name);
        return DS__ERROR__CODE__BUSY;
    }
    if (resident->n_calls > 0 && !force) {
        (void) ds_error_set(error, 0, "model %s: in use by %u requests; --force cancels them",
                            resident->files->name, resident->n_calls);
        return DS__ERROR__CODE__BUSY;
    }
    send_away(resident);
    if (resident->state != DS_RESIDENT_UNLOADING) {
        (void) ds_error_set(error, 0, "the engine's queue is full");
        return DS__ERROR__CODE__BUSY;
    }
    ds_list_each(call, &resident->calls, in_resident)
    {
        ds_call_recall(call); /* the engine drops them silently */
        ds_call_end(call, DS__REASON__REASON_CANCELLED);
    }
    while (!ds_list_empty(&resident->drafts)) /* those go on without, in the engine too */
        ds_draft_leave(ds_container(resident->drafts.next, struct ds_call, in_draft));
    ds_engine_link_pump(&resident->server->engine);
    return 0;
}

/* --- the engine is gone --- */

static void fail_crashing(struct ds_resident *resident)
{
    Ds__Error error = DS__ERROR__INIT;
    char text[480];

    (void) snprintf(text, sizeof text,
                    "model %s: the engine crashed again and again while loading it; the file is "
                    "damaged, or memory is short",
                    resident->files->name);
    error.code = DS__ERROR__CODE__BAD_MODEL;
    error.text = text;
    give_up(resident, &error);
}

void ds_residents_lost(struct ds_server *server, uint32_t crash_points, uint32_t crash_limit)
{
    struct ds_resident *resident;

    ds_list_each(resident, &server->residents, link)
    {
        bool was_loading = resident->state == DS_RESIDENT_LOADING;

        if (resident->state == DS_RESIDENT_AWAY)
            continue;
        if (resident->state == DS_RESIDENT_UNLOADING) {
            unloaded(resident);
            continue;
        }
        if (resident->state == DS_RESIDENT_RESIDENT)
            resident->reload = true;
        resident->state = DS_RESIDENT_QUEUED;
        ds_loras_lost(resident, crash_points, crash_limit);
        resident->engine_id = 0;
        resident->files_sent = 0;
        if (!was_loading)
            continue;
        resident->crash_points += crash_points;
        if (resident->crash_points >= crash_limit)
            fail_crashing(resident);
        else if (resident->n_calls == 0 && !resident->reload)
            resident_free(resident);
    }
}

void ds_residents_free(struct ds_server *server)
{
    struct ds_resident *resident;

    ds_list_each(resident, &server->residents, link) resident_free(resident);
}

/* --- ps --- */

void ds_resident_info(const struct ds_resident *resident, Ds__ModelInfo *info, uint32_t *users)
{
    const struct ds_call *call;
    const struct ds_lora *lora;
    size_t n = 0, i;

    ds__model_info__init(info);
    info->name = (char *) resident->files->name;
    info->architecture = (char *) resident->architecture;
    info->file_bytes = resident->files->bytes;
    info->weight_bytes = resident->weight_bytes;
    info->kv_bytes = resident->kv_bytes;
    info->context = resident->positions;
    info->kv_type = resident->kv_type_used;
    info->device = (char *) resident->device;
    info->type = (char *) resident->type;
    info->n_parameters = resident->n_parameters;
    info->n_files = resident->files->n_files;
    info->state = (char *) (resident->state == DS_RESIDENT_RESIDENT ? "resident" : "loading");
    info->pinned = resident->pinned;
    ds_list_each(lora, &resident->loras, link) info->n_adapters++;
    info->adapter_bytes = ds_loras_bytes(resident);
    info->requests = resident->n_calls;
    if (resident->n_calls == 0 && resident->last_used_nsec)
        info->idle_sec = (double) (ds_now_nsec() - resident->last_used_nsec) / 1e9;
    ds_list_each(call, &resident->calls, in_resident)
    {
        for (i = 0; i < n && users[i] != call->uid; i++)
            ;
        if (i == n && n < 64)
            users[n++] = call->uid;
    }
    ds_list_each(call, &resident->drafts, in_draft)
    {
        for (i = 0; i < n && users[i] != call->uid; i++)
            ;
        if (i == n && n < 64)
            users[n++] = call->uid;
    }
    info->users = users;
    info->n_users = n;
}
