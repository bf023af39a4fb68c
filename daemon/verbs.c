/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verbs.c - what dsd answers from its own knowledge: list, ps, status, requests, cancel, pin,
 * unload.
 */
#include "daemon/call.h"
#include "daemon/dispatch.h"
#include "daemon/log.h"
#include "daemon/lora.h"
#include "daemon/residency.h"
#include "daemon/server.h"
#include "daemon/session.h"

#include <inttypes.h>

#define USERS_MAX 64u

static void no_memory(struct ds_call *call)
{
    ds_call_fail(call, DS__ERROR__CODE__BUSY, 1000, "no memory for the answer");
}

static void done(struct ds_call *call)
{
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__Done nothing = DS__DONE__INIT;

    reply.result_case = DS__REPLY__RESULT_DONE;
    reply.done = &nothing;
    ds_call_reply(call, &reply);
}

static bool is_admin(const struct ds_call *call)
{
    return ds_config_is_admin(&call->server->config, call->uid);
}

/* --- list, ps --- */

struct infos { /* an array of messages, and of pointers to them, as protobuf-c wants it */
    Ds__ModelInfo *items;
    Ds__ModelInfo **pointers;
    uint32_t (*users)[USERS_MAX];
};

static bool infos_alloc(struct infos *infos, size_t n)
{
    infos->items = calloc(n + 1, sizeof(*infos->items));
    infos->pointers = calloc(n + 1, sizeof(*infos->pointers));
    infos->users = calloc(n + 1, sizeof(*infos->users));
    for (size_t i = 0; infos->items && infos->pointers && i < n; i++)
        infos->pointers[i] = &infos->items[i];
    return infos->items && infos->pointers && infos->users;
}

static void infos_free(struct infos *infos)
{
    free(infos->items);
    free(infos->pointers);
    free(infos->users);
}

static const struct ds_resident *resident_named(struct ds_server *server, const char *name)
{
    struct ds_resident *resident;

    ds_list_each(resident, &server->residents, link)
    {
        if (resident->from_registry && ds_resident_is_here(resident) &&
            strcmp(resident->files->name, name) == 0)
            return resident;
    }
    return NULL;
}

static void answer_list(struct ds_call *call)
{
    struct ds_server *server = call->server;
    const struct ds_registry_entry *entries;
    Ds__ListResult result = DS__LIST_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    struct infos infos = { 0 };
    unsigned n;

    ds_registry_refresh(server->registry);
    entries = ds_registry_entries(server->registry, &n);
    if (!infos_alloc(&infos, n)) {
        infos_free(&infos);
        no_memory(call);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        const struct ds_resident *resident = resident_named(server, entries[i].name);

        if (resident) {
            ds_resident_info(resident, &infos.items[i], infos.users[i]);
            continue;
        }
        ds__model_info__init(&infos.items[i]);
        infos.items[i].name = (char *) entries[i].name;
        infos.items[i].file_bytes = entries[i].bytes;
        infos.items[i].n_files = entries[i].n_files;
        infos.items[i].state = (char *) (entries[i].n_found != entries[i].n_files ? "incomplete"
                                         : entries[i].adapter                     ? "adapter"
                                                                                  : "available");
    }
    result.models = infos.pointers;
    result.n_models = n;
    reply.result_case = DS__REPLY__RESULT_LIST;
    reply.list = &result;
    ds_call_reply(call, &reply);
    infos_free(&infos);
}

static void answer_ps(struct ds_call *call)
{
    struct ds_server *server = call->server;
    Ds__ListResult result = DS__LIST_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    struct ds_resident *resident;
    struct infos infos = { 0 };
    size_t n = 0;

    ds_list_each(resident, &server->residents, link) n++;
    if (!infos_alloc(&infos, n)) {
        infos_free(&infos);
        no_memory(call);
        return;
    }
    n = 0;
    ds_list_each(resident, &server->residents, link)
    {
        if (!ds_resident_is_here(resident))
            continue;
        ds_resident_info(resident, &infos.items[n], infos.users[n]);
        n++;
    }
    result.models = infos.pointers;
    result.n_models = n;
    reply.result_case = DS__REPLY__RESULT_PS;
    reply.ps = &result;
    ds_call_reply(call, &reply);
    infos_free(&infos);
}

/* --- status, requests --- */

static void answer_status(struct ds_call *call)
{
    static const char *const states[] = { "down", "starting", "running", "restarting" };
    struct ds_server *server = call->server;
    const struct ds_engine_process *process = &server->engine;
    Ds__EngineInfo engine = DS__ENGINE_INFO__INIT, *engines[] = { &engine };
    Ds__StatusInfo status = DS__STATUS_INFO__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    const struct ds_resident *resident;

    engine.pid = process->pid > 0 ? (uint32_t) process->pid : 0;
    engine.device = (char *) "cpu";
    ds_list_each(resident, &server->residents, link)
    {
        if (resident->device[0])
            engine.device = (char *) resident->device;
    }
    engine.state = (char *) states[process->state];
    if (process->state != DS_ENGINE_RUNNING && process->restarts > 0)
        engine.state = (char *) "restarting";
    engine.restarts = process->restarts;
    engine.description = (char *) process->description;
    status.version = (char *) DSD_VERSION;
    status.uptime_sec = (double) (ds_now_nsec() - server->started_nsec) / 1e9;
    status.clients = server->admission.n_clients;
    status.requests = server->n_calls - 1; /* besides this one */
    status.tokens = server->n_tokens;
    status.requests_done = server->n_done;
    status.loop = (char *) ds_loop_name(server->loop);
    status.engines = engines;
    status.n_engines = 1;
    status.models_directory = server->config.models;
    status.socket = server->config.socket;
    status.draining = server->draining;
    reply.result_case = DS__REPLY__RESULT_STATUS;
    reply.status = &status;
    ds_call_reply(call, &reply);
}

static void fill_request_info(const struct ds_call *call, Ds__RequestInfo *info)
{
    ds__request_info__init(info);
    info->id = call->id;
    info->uid = call->uid;
    info->pid = call->pid;
    info->program = (char *) call->program;
    info->model = (char *) (call->resident ? call->resident->files->name : "");
    info->state = (char *) (call->state == DS_CALL_LOADING   ? "loading"
                            : call->state == DS_CALL_WAITING ? "waiting"
                                                             : "running");
    info->prompt_tokens = call->prompt_tokens;
    info->completion_tokens = call->n_given + call->log.n_ids;
    info->age_sec = (double) (ds_now_nsec() - call->submitted_nsec) / 1e9;
}

static void answer_requests(struct ds_call *call, bool all_users)
{
    struct ds_server *server = call->server;
    Ds__RequestsResult result = DS__REQUESTS_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    ds_cleanup(ds_free_p) Ds__RequestInfo *items = NULL;
    ds_cleanup(ds_free_p) Ds__RequestInfo **pointers = NULL;
    const struct ds_call *other;
    size_t n = 0;

    if (all_users && !is_admin(call)) {
        ds_call_fail(call, DS__ERROR__CODE__PERMISSION, 0,
                     "only root and admin_users see the requests of others");
        return;
    }
    items = calloc(server->n_calls + 1, sizeof(*items));
    pointers = calloc(server->n_calls + 1, sizeof(*pointers));
    if (!items || !pointers) {
        no_memory(call);
        return;
    }
    ds_list_each(other, &server->calls, link)
    {
        if (other == call || other->state == DS_CALL_FINISHED ||
            (!all_users && other->uid != call->uid))
            continue;
        fill_request_info(other, &items[n]);
        pointers[n] = &items[n];
        n++;
    }
    result.requests = pointers;
    result.n_requests = n;
    reply.result_case = DS__REPLY__RESULT_REQUESTS;
    reply.requests = &result;
    ds_call_reply(call, &reply);
}

static void answer_cancel(struct ds_call *call, uint64_t id)
{
    Ds__CancelResult result = DS__CANCEL_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    struct ds_call *other, *found = NULL;

    ds_list_each(other, &call->server->calls, link)
    {
        if (other->id == id && other != call && other->state != DS_CALL_FINISHED)
            found = other;
    }
    if (found && found->uid != call->uid && !is_admin(call)) {
        ds_call_fail(call, DS__ERROR__CODE__PERMISSION, 0,
                     "request %" PRIu64 " belongs to another user; only root and admin_users may "
                     "cancel it",
                     id);
        return;
    }
    if (found)
        ds_call_cancel(found);
    result.found = found != NULL;
    reply.result_case = DS__REPLY__RESULT_CANCEL;
    reply.cancel = &result;
    ds_call_reply(call, &reply);
}

/* --- pin, unload, load --- */

static struct ds_resident *need_resident(struct ds_call *call, const Ds__ModelRef *reference)
{
    struct ds_resident *resident = ds_resident_find(call->server, call->session, reference);

    if (!resident)
        ds_call_fail(call, DS__ERROR__CODE__NOT_FOUND, 0,
                     "model %s: not resident; `dsctl ps` shows those that are",
                     reference && reference->name && *reference->name ? reference->name
                                                                      : "(default)");
    return resident;
}

static void answer_pin(struct ds_call *call, const Ds__PinRequest *request)
{
    struct ds_resident *resident;

    if (!is_admin(call)) {
        ds_call_fail(call, DS__ERROR__CODE__PERMISSION, 0,
                     "only root and admin_users may pin a model");
        return;
    }
    resident = need_resident(call, request->model);
    if (!resident)
        return;
    resident->pinned = request->pinned;
    done(call);
}

static bool others_use(const struct ds_resident *resident, uint32_t uid)
{
    const struct ds_call *call;

    ds_list_each(call, &resident->calls, in_resident)
    {
        if (call->uid != uid)
            return true;
    }
    ds_list_each(call, &resident->drafts, in_draft)
    {
        if (call->uid != uid)
            return true;
    }
    return false;
}

static void answer_unload(struct ds_call *call, const Ds__UnloadRequest *request)
{
    struct ds_resident *resident = need_resident(call, request->model);
    struct ds_error error = { 0 };
    int code;

    if (!resident)
        return;
    if (!is_admin(call) && (resident->from_registry || resident->owner != call->uid ||
                            resident->pinned || others_use(resident, call->uid))) {
        ds_call_fail(call, DS__ERROR__CODE__PERMISSION, 0,
                     "model %s: only root and admin_users may unload it", resident->files->name);
        return;
    }
    code = ds_resident_unload(resident, request->force, &error);
    if (code)
        ds_call_fail(call, (Ds__Error__Code) code, 1000, "%s", error.text);
    else
        done(call);
}

/* --- adapters --- */

static void answer_lora_unload(struct ds_call *call, const Ds__LoraUnloadRequest *request)
{
    struct ds_resident *resident = need_resident(call, request->model);
    struct ds_error error = { 0 };
    int code;

    if (!resident)
        return;
    code = ds_lora_unload(call, resident, request->name, &error);
    if (code)
        ds_call_fail(call, (Ds__Error__Code) code, 0, "%s", error.text);
}

/* Fills pointers (NULL: only counts) with what call's user may see. */
static size_t list_loras(struct ds_call *call, const struct ds_resident *only, Ds__LoraInfo *items,
                         Ds__LoraInfo **pointers)
{
    const struct ds_resident *resident;
    const struct ds_lora *lora;
    size_t n = 0;

    ds_list_each(resident, &call->server->residents, link)
    {
        ds_list_each(lora, &resident->loras, link)
        {
            if ((only && resident != only) || !ds_lora_visible(lora, call->uid, is_admin(call)))
                continue;
            if (pointers) {
                ds_lora_info(lora, &items[n]);
                pointers[n] = &items[n];
            }
            n++;
        }
    }
    return n;
}

static void answer_lora_list(struct ds_call *call, const Ds__LoraListRequest *request)
{
    ds_cleanup(ds_free_p) Ds__LoraInfo *items = NULL;
    ds_cleanup(ds_free_p) Ds__LoraInfo **pointers = NULL;
    Ds__LoraListResult result = DS__LORA_LIST_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    const struct ds_resident *only = NULL;

    if (request->model) {
        only = need_resident(call, request->model);
        if (!only)
            return;
    }
    result.n_adapters = list_loras(call, only, NULL, NULL);
    items = calloc(result.n_adapters + 1, sizeof(*items));
    pointers = calloc(result.n_adapters + 1, sizeof(*pointers));
    if (!items || !pointers) {
        no_memory(call);
        return;
    }
    (void) list_loras(call, only, items, pointers);
    result.adapters = pointers;
    reply.result_case = DS__REPLY__RESULT_LORA_LIST;
    reply.lora_list = &result;
    ds_call_reply(call, &reply);
}

void ds_verb_loaded(struct ds_call *call)
{
    ds_cleanup(ds_message_free_p) Ds__Request *request = NULL;
    struct ds_resident *resident = call->resident;
    Ds__LoadResult result = DS__LOAD_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    uint32_t users[USERS_MAX];
    Ds__ModelInfo info;

    if (ds_message_unpack(&ds__request__descriptor, call->packed, call->packed_size, &request) ==
            0 &&
        request->load->pin) {
        if (is_admin(call))
            resident->pinned = true;
        else
            ds_log(LOG_NOTICE, "model %s: not pinned: user %u is not among admin_users",
                   resident->files->name, call->uid);
    }
    ds_resident_info(resident, &info, users);
    result.model = &info;
    result.seconds = resident->load_began_nsec >= call->submitted_nsec ? resident->load_sec : 0;
    reply.result_case = DS__REPLY__RESULT_LOAD;
    reply.load = &result;
    ds_call_reply(call, &reply);
}

bool ds_verb_answer(struct ds_call *call, const Ds__Request *request)
{
    switch (request->op_case) {
    case DS__REQUEST__OP_LIST:
        answer_list(call);
        return true;
    case DS__REQUEST__OP_PS:
        answer_ps(call);
        return true;
    case DS__REQUEST__OP_STATUS:
        answer_status(call);
        return true;
    case DS__REQUEST__OP_REQUESTS:
        answer_requests(call, request->requests->all_users);
        return true;
    case DS__REQUEST__OP_CANCEL:
        answer_cancel(call, request->cancel->id);
        return true;
    case DS__REQUEST__OP_PIN:
        answer_pin(call, request->pin);
        return true;
    case DS__REQUEST__OP_UNLOAD:
        answer_unload(call, request->unload);
        return true;
    case DS__REQUEST__OP_LORA_UNLOAD:
        answer_lora_unload(call, request->lora_unload);
        return true;
    case DS__REQUEST__OP_LORA_LIST:
        answer_lora_list(call, request->lora_list);
        return true;
    default:
        return false;
    }
}
