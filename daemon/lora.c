/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/lora.h"

#include "daemon/call.h"
#include "daemon/dispatch.h"
#include "daemon/log.h"
#include "daemon/residency.h"
#include "daemon/server.h"
#include "daemon/session.h"

#include <inttypes.h>

/* --- finding --- */

static bool same_name(const struct ds_lora *lora, const char *name)
{
    size_t length = strlen(lora->files->name);

    return strncmp(lora->files->name, name, length) == 0 &&
           (name[length] == 0 || strcmp(name + length, ".gguf") == 0);
}

/* One's own first, then everybody's. */
static struct ds_lora *find_name(const struct ds_resident *resident, const char *name, uint32_t uid)
{
    struct ds_lora *lora, *found = NULL;

    ds_list_each(lora, &resident->loras, link)
    {
        if (lora->state == DS_LORA_UNLOADING || !same_name(lora, name))
            continue;
        if (!lora->shared && lora->owner == uid)
            return lora;
        if (lora->shared)
            found = lora;
    }
    return found;
}

static struct ds_lora *find_files(const struct ds_resident *resident,
                                  const struct ds_model_files *files, uint32_t uid)
{
    struct ds_lora *lora;

    ds_list_each(lora, &resident->loras, link)
    {
        if (lora->state != DS_LORA_UNLOADING && (lora->shared || lora->owner == uid) &&
            ds_model_files_same(lora->files, files))
            return lora;
    }
    return NULL;
}

struct ds_lora *ds_lora_by_engine(struct ds_server *server, uint64_t engine_id)
{
    struct ds_resident *resident;
    struct ds_lora *lora;

    if (!engine_id)
        return NULL;
    ds_list_each(resident, &server->residents, link)
    {
        ds_list_each(lora, &resident->loras, link)
        {
            if (lora->engine_id == engine_id)
                return lora;
        }
    }
    return NULL;
}

/* --- life --- */

static void lora_free(struct ds_lora *lora)
{
    ds_list_remove(&lora->link);
    (void) ds_model_files_free(lora->files);
    free(lora);
}

/* Takes files. NULL: no memory. */
static struct ds_lora *lora_new(struct ds_resident *resident, struct ds_model_files *files)
{
    struct ds_lora *lora = calloc(1, sizeof(*lora));

    if (!lora) {
        (void) ds_model_files_free(files);
        return NULL;
    }
    lora->resident = resident;
    lora->files = files;
    lora->id = ++resident->server->next_model_id;
    ds_list_init(&lora->calls);
    ds_list_append(&resident->loras, &lora->link);
    return lora;
}

static unsigned n_loras(const struct ds_resident *resident)
{
    const struct ds_lora *lora;
    unsigned n = 0;

    ds_list_each(lora, &resident->loras, link) n++;
    return n;
}

/* --- choosing --- */

/* The files of reference, opened afresh. Error.Code, or 0. */
static int open_files(struct ds_call *call, const Ds__LoraRef *reference,
                      struct ds_model_files **ret_files, struct ds_error *error)
{
    struct ds_server *server = call->server;
    const struct ds_model_files *handed;
    struct ds_error reason = { "" };
    int r;

    if (reference->attachment) {
        handed = ds_session_attachment(call->session, reference->attachment);
        if (!handed) {
            (void) ds_error_set(error, 0, "attachment %" PRIu64 ": no files were handed over",
                                reference->attachment);
            return DS__ERROR__CODE__NOT_FOUND;
        }
        r = ds_model_files_copy(ret_files, handed);
        if (r < 0)
            (void) ds_error_set(error, 0, "adapter %s: cannot hold its files: %s", handed->name,
                                strerror(-r));
        return r < 0 ? DS__ERROR__CODE__BUSY : 0;
    }
    r = ds_registry_open(server->registry, reference->name, ret_files, &reason);
    if (r == DS_REGISTRY_UNKNOWN)
        (void) ds_error_set(error, 0,
                            "adapter %s: neither loaded on model %s nor in the models directory; "
                            "`dsctl lora list` shows those that are loaded",
                            reference->name, call->resident->files->name);
    else if (r != DS_REGISTRY_FOUND)
        (void) ds_error_set(error, 0, "adapter %s: %s", reference->name, reason.text);
    if (r == -EMFILE || r == -ENFILE)
        return DS__ERROR__CODE__BUSY;
    return r == DS_REGISTRY_FOUND ? 0 : DS__ERROR__CODE__NOT_FOUND;
}

/* A new one beside those there are. Error.Code, or 0. */
static int add(struct ds_call *call, const Ds__LoraRef *reference, const char *name,
               struct ds_lora **ret_lora, struct ds_error *error)
{
    ds_cleanup(ds_model_files_free_p) struct ds_model_files *files = NULL;
    struct ds_resident *resident = call->resident;
    struct ds_lora *lora, *known;
    bool renamed;
    int code;

    code = open_files(call, reference, &files, error);
    if (code)
        return code;
    renamed = *name && strcmp(name, files->name) != 0;
    known = find_files(resident, files, call->uid);
    if (known && (!renamed || same_name(known, name))) {
        *ret_lora = known;
        return 0;
    }
    if (renamed)
        (void) snprintf(files->name, sizeof files->name, "%s", name);
    known = find_name(resident, files->name, call->uid);
    if (known && !known->shared) {
        (void) ds_error_set(error, 0,
                            "adapter %s: another file is loaded under this name on model %s; "
                            "unload it or give this one another name",
                            files->name, resident->files->name);
        return DS__ERROR__CODE__INVALID;
    }
    if (n_loras(resident) >= DS_LORAS_MAX) {
        (void) ds_error_set(error, 0, "model %s has %u adapters, which is the limit; unload one",
                            resident->files->name, DS_LORAS_MAX);
        return DS__ERROR__CODE__BUSY;
    }
    lora = lora_new(resident, ds_steal(files));
    if (!lora) {
        (void) ds_error_set(error, 0, "no memory for another adapter");
        return DS__ERROR__CODE__BUSY;
    }
    lora->owner = call->uid;
    lora->shared = !reference->attachment && !renamed;
    *ret_lora = lora;
    return 0;
}

int ds_lora_choose(struct ds_call *call, const Ds__LoraRef *reference, const char *name,
                   struct ds_error *error)
{
    struct ds_resident *resident = call->resident;
    struct ds_lora *lora = NULL;
    int code = 0;

    if (!reference || (!*reference->name && !reference->attachment))
        return 0;
    if (strlen(name) > DS_MODEL_NAME_MAX || strchr(name, '/')) {
        (void) ds_error_set(error, 0, "an adapter's name has at most %u bytes and no slash",
                            DS_MODEL_NAME_MAX);
        return DS__ERROR__CODE__INVALID;
    }
    if (!reference->attachment && !*name)
        lora = find_name(resident, reference->name, call->uid);
    if (!lora)
        code = add(call, reference, name, &lora, error);
    if (code)
        return code;
    if (lora->leaving) {
        (void) ds_error_set(error, 0, "adapter %s: is being unloaded from model %s",
                            lora->files->name, resident->files->name);
        return DS__ERROR__CODE__BUSY;
    }
    call->lora = lora;
    ds_list_append(&lora->calls, &call->in_lora);
    lora->n_users += call->op != DS__REQUEST__OP_LORA_LOAD;
    return 0;
}

bool ds_lora_ready(const struct ds_call *call)
{
    if (call->op == DS__REQUEST__OP_LORA_LOAD || call->op == DS__REQUEST__OP_LORA_UNLOAD)
        return false; /* answered by dsd */
    return !call->lora || call->lora->state == DS_LORA_RESIDENT;
}

static void on_load_retry(void *owner)
{
    ds_residents_kick(owner);
}

/* Is an unload still asked for? Else the adapter stays. */
static void reconsider(struct ds_lora *lora)
{
    const struct ds_call *call;

    if (!lora->leaving || lora->state == DS_LORA_UNLOADING)
        return;
    ds_list_each(call, &lora->calls, in_lora)
    {
        if (call->op == DS__REQUEST__OP_LORA_UNLOAD)
            return;
    }
    lora->leaving = false;
}

/* Whoever ends a call may be going through the adapters: what follows waits for the next turn. */
void ds_lora_leave(struct ds_call *call)
{
    struct ds_lora *lora = call->lora;
    struct ds_server *server = call->server;

    if (!lora)
        return;
    call->lora = NULL;
    ds_list_remove(&call->in_lora);
    if (call->op == DS__REQUEST__OP_LORA_UNLOAD)
        reconsider(lora);
    else
        lora->n_users -= call->op != DS__REQUEST__OP_LORA_LOAD;
    if (lora->leaving || ds_list_empty(&lora->calls))
        (void) ds_timer_set(server->loop, &server->engine.retry, ds_now_nsec(), on_load_retry,
                            server);
}

/* --- ends --- */

/* Ends everybody who waits for lora; it is freed. */
static void give_up(struct ds_lora *lora, const Ds__Error *error)
{
    struct ds_call *call;

    ds_log(LOG_WARNING, "%s", error->text);
    lora->leaving = false;
    while (!ds_list_empty(&lora->calls)) {
        call = ds_container(lora->calls.next, struct ds_call, in_lora);
        ds_call_error(call, error);
    }
    lora_free(lora);
}

void ds_lora_failed(struct ds_lora *lora, const Ds__Error *error)
{
    Ds__Error copy = DS__ERROR__INIT;
    char text[480];

    if (strstr(error->text, lora->files->name))
        (void) snprintf(text, sizeof text, "%s", error->text);
    else
        (void) snprintf(text, sizeof text, "adapter %s: %s", lora->files->name, error->text);
    copy.code = error->code ? error->code : DS__ERROR__CODE__INTERNAL;
    copy.text = text;
    copy.retry_after_ms = error->retry_after_ms;
    give_up(lora, &copy);
}

static void refuse(struct ds_lora *lora)
{
    Ds__Error error = DS__ERROR__INIT;
    char text[480];

    (void) snprintf(text, sizeof text,
                    "adapter %s: its %" PRIu64 " MiB do not fit beside what is in use or pinned; "
                    "unload a model or an adapter, or set memory in dsd.conf",
                    lora->files->name, (lora->files->bytes >> 20) + 1);
    error.code = DS__ERROR__CODE__BUSY;
    error.text = text;
    error.retry_after_ms = 5000;
    give_up(lora, &error);
}

/* --- to the engine --- */

static void send_load(struct ds_lora *lora)
{
    struct ds_server *server = lora->resident->server;
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    int r;

    if (lora->engine_id == 0) {
        lora->engine_id = ++server->next_id;
        lora->load_began_nsec = ds_now_nsec();
    }
    load.req_id = lora->engine_id;
    load.model_id = lora->resident->id;
    load.lora_id = lora->id;
    load.name = lora->files->name;
    load.n_files = lora->files->n_files;
    r = ds_engine_process_load(&server->engine, &load, lora->files, &lora->files_sent);
    if (r == 0) {
        lora->state = DS_LORA_LOADING;
        server->engine.sign_of_life_nsec = ds_now_nsec();
    } else if (r == -EAGAIN) {
        (void) ds_timer_set(server->loop, &server->engine.retry, ds_now_nsec() + DS_LOAD_RETRY_NSEC,
                            on_load_retry, server);
    } else {
        ds_engine_process_condemn(&server->engine, "its socket does not take an adapter");
    }
}

static void send_away(struct ds_lora *lora)
{
    struct ds_server *server = lora->resident->server;
    uint64_t engine_id = ++server->next_id;

    if (ds_engine_link_lora_unload(&server->engine, lora->resident->id, lora->id, engine_id) != 0)
        return; /* no room in the ring: the next kick tries again */
    lora->engine_id = engine_id;
    lora->state = DS_LORA_UNLOADING;
}

/* Descriptors of one load must not come between those of another. */
static bool half_sent(const struct ds_server *server, const struct ds_lora *but)
{
    const struct ds_resident *resident;
    const struct ds_lora *lora;

    ds_list_each(resident, &server->residents, link)
    {
        if (resident->state == DS_RESIDENT_QUEUED && resident->files_sent)
            return true;
        ds_list_each(lora, &resident->loras, link)
        {
            if (lora != but && lora->state == DS_LORA_QUEUED && lora->files_sent)
                return true;
        }
    }
    return false;
}

static void answer_unloads(struct ds_lora *lora)
{
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__Done nothing = DS__DONE__INIT;
    struct ds_call *call;

    reply.result_case = DS__REPLY__RESULT_DONE;
    reply.done = &nothing;
    lora->leaving = false;
    while (!ds_list_empty(&lora->calls)) {
        call = ds_container(lora->calls.next, struct ds_call, in_lora);
        ds_call_reply(call, &reply);
    }
    lora_free(lora);
}

static void answer_load(struct ds_call *call)
{
    const struct ds_lora *lora = call->lora;
    Ds__LoraLoadResult result = DS__LORA_LOAD_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__LoraInfo info;

    ds_lora_info(lora, &info);
    result.adapter = &info;
    result.seconds = lora->load_began_nsec >= call->submitted_nsec ? lora->load_sec : 0;
    reply.result_case = DS__REPLY__RESULT_LORA_LOAD;
    reply.lora_load = &result;
    ds_call_reply(call, &reply);
}

/* Those who asked for the load alone. */
static void answer_loads(struct ds_lora *lora)
{
    struct ds_call *call;

    ds_list_each(call, &lora->calls, in_lora)
    {
        if (call->op == DS__REQUEST__OP_LORA_LOAD)
            answer_load(call);
    }
}

static void kick(struct ds_lora *lora)
{
    struct ds_server *server = lora->resident->server;
    bool loaded = lora->rank > 0; /* before: it has its place in memory */
    int room;

    if (lora->state == DS_LORA_RESIDENT)
        answer_loads(lora);
    if (lora->leaving && lora->n_users == 0 && lora->state == DS_LORA_RESIDENT) {
        send_away(lora);
    } else if (lora->leaving && lora->n_users == 0 && lora->state == DS_LORA_QUEUED &&
               lora->files_sent == 0) {
        answer_unloads(lora); /* the engine does not have it */
    } else if (lora->state == DS_LORA_QUEUED && ds_list_empty(&lora->calls) && !loaded &&
               lora->files_sent == 0) {
        lora_free(lora); /* nobody waits for it any more */
    } else if (lora->state == DS_LORA_QUEUED && !half_sent(server, lora)) {
        room = loaded || lora->files_sent
                   ? DS_ROOM_NOW
                   : ds_residents_make_room(server, lora->files->bytes, lora->files->name);
        if (room == DS_ROOM_NOW)
            send_load(lora);
        else if (room == DS_ROOM_NEVER)
            refuse(lora);
    }
}

void ds_loras_kick(struct ds_resident *resident)
{
    struct ds_lora *lora;

    if (resident->state != DS_RESIDENT_RESIDENT ||
        resident->server->engine.state != DS_ENGINE_RUNNING)
        return;
    ds_list_each(lora, &resident->loras, link) kick(lora);
}

/* --- from the engine --- */

static void loaded(struct ds_lora *lora, const Ds__LoraInfo *info)
{
    struct ds_server *server = lora->resident->server;

    lora->state = DS_LORA_RESIDENT;
    lora->engine_id = 0;
    lora->files_sent = 0;
    lora->crash_points = 0;
    lora->load_sec = (double) (ds_now_nsec() - lora->load_began_nsec) / 1e9;
    lora->rank = info && info->rank ? info->rank : 1;
    lora->n_matrices = info ? info->n_matrices : 0;
    lora->bytes = info ? info->bytes : 0;
    server->engine.failures = 0;
    ds_log(LOG_INFO, "adapter %s is resident on model %s after %.2f s", lora->files->name,
           lora->resident->files->name, lora->load_sec);
    ds_engine_link_pump(&server->engine);
}

void ds_lora_answered(struct ds_lora *lora, const Ds__LoraInfo *info)
{
    struct ds_resident *resident = lora->resident;

    if (lora->state == DS_LORA_UNLOADING)
        answer_unloads(lora);
    else if (lora->state == DS_LORA_LOADING)
        loaded(lora, info);
    ds_loras_kick(resident);
}

static void fail_crashing(struct ds_lora *lora)
{
    Ds__Error error = DS__ERROR__INIT;
    char text[480];

    (void) snprintf(text, sizeof text,
                    "adapter %s: the engine crashed again and again while loading it; the file is "
                    "damaged, or memory is short",
                    lora->files->name);
    error.code = DS__ERROR__CODE__BAD_MODEL;
    error.text = text;
    give_up(lora, &error);
}

void ds_loras_lost(struct ds_resident *resident, uint32_t points, uint32_t limit)
{
    struct ds_lora *lora;

    ds_list_each(lora, &resident->loras, link)
    {
        bool was_loading = lora->state == DS_LORA_LOADING;

        lora->engine_id = 0;
        lora->files_sent = 0;
        if (lora->state == DS_LORA_UNLOADING) {
            answer_unloads(lora);
            continue;
        }
        lora->state = DS_LORA_QUEUED;
        if (!was_loading)
            continue;
        lora->crash_points += points;
        if (lora->crash_points >= limit)
            fail_crashing(lora);
    }
}

/* --- unloading --- */

int ds_lora_unload(struct ds_call *call, struct ds_resident *resident, const char *name,
                   struct ds_error *error)
{
    struct ds_lora *lora = find_name(resident, name, call->uid);
    bool admin = ds_config_is_admin(&call->server->config, call->uid);
    char stage[24];

    if (!lora && admin) { /* anybody's, where only one has the name */
        struct ds_lora *other;

        ds_list_each(other, &resident->loras, link)
        {
            if (same_name(other, name) && other->state != DS_LORA_UNLOADING)
                lora = other;
        }
    }
    if (!lora) {
        (void) ds_error_set(error, 0,
                            "adapter %s: not loaded on model %s; `dsctl lora list` shows those "
                            "that are",
                            name, resident->files->name);
        return DS__ERROR__CODE__NOT_FOUND;
    }
    if (!admin && (lora->shared || lora->owner != call->uid)) {
        (void) ds_error_set(error, 0, "adapter %s: only root and admin_users may unload it",
                            lora->files->name);
        return DS__ERROR__CODE__PERMISSION;
    }
    ds_resident_join(resident, call);
    call->lora = lora;
    ds_list_append(&lora->calls, &call->in_lora);
    lora->leaving = true;
    if (lora->n_users > 0) {
        (void) snprintf(stage, sizeof stage, "waiting for %u", lora->n_users);
        ds_call_progress(call, stage, 0);
    }
    ds_loras_kick(resident);
    return 0;
}

/* --- with the model --- */

uint64_t ds_loras_bytes(const struct ds_resident *resident)
{
    const struct ds_lora *lora;
    uint64_t bytes = 0;

    ds_list_each(lora, &resident->loras, link)
    {
        if (lora->state != DS_LORA_QUEUED || lora->rank)
            bytes += lora->bytes > lora->files->bytes ? lora->bytes : lora->files->bytes;
    }
    return bytes;
}

void ds_loras_move(struct ds_resident *to, struct ds_resident *from)
{
    struct ds_lora *lora;

    ds_list_each(lora, &from->loras, link)
    {
        lora->resident = to;
        ds_list_move(&to->loras, &lora->link);
    }
}

void ds_loras_free(struct ds_resident *resident)
{
    struct ds_lora *lora;

    ds_list_each(lora, &resident->loras, link) lora_free(lora);
}

/* --- list --- */

bool ds_lora_visible(const struct ds_lora *lora, uint32_t uid, bool admin)
{
    return lora->shared || lora->owner == uid || admin;
}

void ds_lora_info(const struct ds_lora *lora, Ds__LoraInfo *info)
{
    bool away =
        lora->resident->state == DS_RESIDENT_AWAY || lora->resident->state == DS_RESIDENT_UNLOADING;

    ds__lora_info__init(info);
    info->name = lora->files->name;
    info->model = lora->resident->files->name;
    info->state = (char *) (away                              ? "available"
                            : lora->leaving                   ? "leaving"
                            : lora->state == DS_LORA_RESIDENT ? "resident"
                                                              : "loading");
    info->rank = lora->rank;
    info->n_matrices = lora->n_matrices;
    info->bytes = away ? 0 : lora->bytes;
    info->file_bytes = lora->files->bytes;
    info->requests = lora->n_users;
    info->uid = lora->owner;
    info->shared = lora->shared;
}
