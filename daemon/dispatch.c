/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/dispatch.h"

#include "daemon/call.h"
#include "daemon/log.h"
#include "daemon/lora.h"
#include "daemon/residency.h"
#include "daemon/server.h"
#include "daemon/session.h"

#include <inttypes.h>

/* --- before there is a call --- */

static bool id_taken(const struct ds_session *session, uint64_t req_id)
{
    const struct ds_call *call;

    ds_list_each(call, &session->calls, in_session)
    {
        if (call->req_id == req_id)
            return true;
    }
    return false;
}

static bool refused(struct ds_session *session, const struct ds_sqe *entry)
{
    const struct ds_config *config = &session->server->config;

    if (session->server->draining)
        ds_session_refuse(session, entry->req_id, DS__ERROR__CODE__DRAINING, 1000,
                          "dsd is stopping; connect again");
    else if (session->n_calls >= config->requests_per_client)
        ds_session_refuse(session, entry->req_id, DS__ERROR__CODE__BUSY, 100,
                          "%u requests are in flight on this connection, which is the limit "
                          "(requests_per_client)",
                          session->n_calls);
    else if (id_taken(session, entry->req_id))
        ds_session_refuse(session, entry->req_id, DS__ERROR__CODE__INVALID, 0,
                          "request number %" PRIu64 " is in use", entry->req_id);
    else
        return false;
    return true;
}

/* The same request, coming again after a reconnect: goes on where it was. */
static bool attached(struct ds_session *session, const struct ds_sqe *entry)
{
    static const uint8_t no_key[16];
    struct ds_call *call;

    if (memcmp(entry->idem_key, no_key, sizeof no_key) == 0)
        return false;
    call = ds_call_by_key(session->server, session->peer.uid, entry->idem_key);
    if (!call)
        return false;
    if (ds_call_attach(call, session, entry) == 0)
        return true;
    if (call->session) { /* still served elsewhere, and yet with other tokens: not the same */
        ds_session_refuse(session, entry->req_id, DS__ERROR__CODE__INVALID, 0,
                          "the idempotency key is in use");
        return true;
    }
    ds_list_remove(&call->by_key);
    call->has_key = false;
    ds_call_cancel(call); /* what the client has does not fit what we have: begin anew */
    return false;
}

/* --- what the engine answers --- */

static const Ds__ModelRef *model_of(const Ds__Request *request)
{
    switch (request->op_case) {
    case DS__REQUEST__OP_GENERATE:
        return request->generate->model;
    case DS__REQUEST__OP_LOAD:
        return request->load->model;
    case DS__REQUEST__OP_TOKENIZE:
        return request->tokenize->model;
    case DS__REQUEST__OP_DETOKENIZE:
        return request->detokenize->model;
    case DS__REQUEST__OP_TEMPLATE:
        return request->template_->model;
    case DS__REQUEST__OP_SCORE:
        return request->score->model;
    case DS__REQUEST__OP_LIMITS:
        return request->limits->model;
    case DS__REQUEST__OP_LORA_LOAD:
        return request->lora_load->model;
    default:
        return NULL;
    }
}

/* The adapter that the request names. Error.Code, or 0. */
static int choose_lora(struct ds_call *call, const Ds__Request *request, struct ds_error *error)
{
    const Ds__LoraRef *reference = NULL;
    const char *name = "";

    if (request->op_case == DS__REQUEST__OP_GENERATE) {
        reference = request->generate->lora;
    } else if (request->op_case == DS__REQUEST__OP_SCORE) {
        reference = request->score->lora;
    } else if (request->op_case == DS__REQUEST__OP_LORA_LOAD) {
        reference = request->lora_load->lora;
        name = request->lora_load->name;
        if (!reference || (!*reference->name && !reference->attachment)) {
            (void) ds_error_set(error, 0, "no adapter was named; name one, or hand its file over");
            return DS__ERROR__CODE__INVALID;
        }
    }
    call->lora_scale = reference && reference->has_scale_case ? reference->scale : 1.0f;
    return ds_lora_choose(call, reference, name, error);
}

/* May a load still say how the model is loaded? Not once it is being loaded, nor where others wait
 * for it or had it before the engine died: it comes back to them as it was. */
static bool nobody_chose(const struct ds_resident *resident)
{
    return resident->state == DS_RESIDENT_QUEUED && resident->files_sent == 0 &&
           resident->n_calls == 0 && !resident->reload;
}

/* The draft model that the request names. Error.Code, or 0. */
static int choose_draft(struct ds_call *call, const Ds__Request *request, struct ds_error *error)
{
    const Ds__ModelRef *reference = NULL;
    struct ds_resident *draft;
    int code;

    if (request->op_case == DS__REQUEST__OP_GENERATE)
        reference = request->generate->draft_model;
    if (!reference || (!*reference->name && !reference->attachment))
        return 0;
    if (request->generate->speculation != DS__SPECULATION__SPECULATION_DEFAULT) {
        (void) ds_error_set(error, 0,
                            "a draft model guesses in place of any other speculation: name one, or "
                            "say off, ngram or mtp, not both");
        return DS__ERROR__CODE__INVALID;
    }
    code = ds_resident_resolve(call->server, call->session, reference, &draft, error);
    if (code == 0)
        ds_draft_join(draft, call);
    return code;
}

/* A load that names a context gets it, or fails. false: call has failed. */
static bool demand_context(struct ds_call *call, struct ds_resident *resident, uint32_t context)
{
    uint32_t positions = resident->positions ? resident->positions : resident->context;

    if (nobody_chose(resident)) {
        resident->context = context;
        resident->context_demanded = true;
        return true;
    }
    if (positions >= context)
        return true;
    if (positions == 0) /* the model's own, which only the engine knows */
        ds_call_fail(call, DS__ERROR__CODE__BUSY, 0,
                     "model %s is being loaded with its own context for another request: ask for "
                     "%u positions when it is resident",
                     resident->files->name, context);
    else
        ds_call_fail(call, DS__ERROR__CODE__BUSY, 0,
                     "model %s is resident, or being loaded, with a context of %u positions, "
                     "which is less than %u: unload it first",
                     resident->files->name, positions, context);
    return false;
}

/* A number that no type of cache has comes from a newer client or a broken one. */
static bool known_kv_type(struct ds_call *call, const Ds__Request *request)
{
    int type = request->op_case == DS__REQUEST__OP_LOAD ? (int) request->load->kv_type : 0;

    if (protobuf_c_enum_descriptor_get_value(&ds__kv_type__descriptor, type))
        return true;
    ds_call_fail(call, DS__ERROR__CODE__INVALID, 0,
                 "load: kv_type %d is no type of KV cache that this dsd knows: leave it out, or "
                 "update dsd",
                 type);
    return false;
}

/* The type of cache that a load asks for: chosen now, or there already. */
static bool demand_kv_type(struct ds_call *call, struct ds_resident *resident, Ds__KvType type)
{
    Ds__KvType has = resident->positions ? resident->kv_type_used : resident->kv_type;

    if (nobody_chose(resident)) {
        resident->kv_type = type;
        resident->kv_type_strict = true;
        return true;
    }
    if (has == type)
        return true;
    ds_call_fail(call, DS__ERROR__CODE__BUSY, 0,
                 "model %s is resident, or being loaded, with another kv_type: unload it first",
                 resident->files->name);
    return false;
}

static void start_on_model(struct ds_call *call, const Ds__Request *request)
{
    struct ds_server *server = call->server;
    struct ds_error error = { 0 };
    struct ds_resident *resident;
    int code;

    if (!known_kv_type(call, request))
        return;
    code = ds_resident_resolve(server, call->session, model_of(request), &resident, &error);
    if (code) {
        ds_call_fail(call, (Ds__Error__Code) code, 0, "%s", error.text);
        return;
    }
    call->demanding = request->op_case == DS__REQUEST__OP_LOAD &&
                      (request->load->context || request->load->kv_type);
    if (request->op_case == DS__REQUEST__OP_LOAD && request->load->context &&
        !demand_context(call, resident, request->load->context))
        return;
    if (request->op_case == DS__REQUEST__OP_LOAD && request->load->kv_type &&
        !demand_kv_type(call, resident, request->load->kv_type))
        return;
    ds_resident_join(resident, call);
    call->state = DS_CALL_LOADING;
    code = choose_lora(call, request, &error);
    if (code == 0)
        code = choose_draft(call, request, &error);
    if (code) {
        ds_call_fail(call, (Ds__Error__Code) code, 0, "%s", error.text);
        return;
    }
    if (resident->state == DS_RESIDENT_RESIDENT) {
        call->state = DS_CALL_WAITING;
        if (request->op_case == DS__REQUEST__OP_LOAD)
            ds_verb_loaded(call);
        else if (call->lora || call->draft)
            ds_residents_kick(server);
        if (request->op_case != DS__REQUEST__OP_LOAD)
            ds_engine_link_pump(&server->engine);
        return;
    }
    ds_call_progress(call, resident->state == DS_RESIDENT_QUEUED ? "queued" : "loading",
                     resident->fraction);
    ds_residents_kick(server);
}

static void start_show(struct ds_call *call, const Ds__Request *request)
{
    struct ds_server *server = call->server;
    struct ds_error error = { 0 };
    int code;

    code = ds_resident_files(server, call->session, request->show->model, &call->files, &error);
    if (code) {
        ds_call_fail(call, (Ds__Error__Code) code, 0, "%s", error.text);
        return;
    }
    call->want_tensors = request->show->tensors;
    call->verify = request->show->verify;
    ds_engine_link_pump(&server->engine);
}

void ds_dispatch_submit(struct ds_session *session, const struct ds_sqe *entry, const void *payload)
{
    ds_cleanup(ds_message_free_p) Ds__Request *request = NULL;
    struct ds_error error = { 0 };
    struct ds_call *call;
    uint64_t deadline = entry->deadline_ns;
    int r;

    if (refused(session, entry) || attached(session, entry))
        return;
    r = ds_message_unpack(&ds__request__descriptor, payload, entry->payload_len, &request);
    if (r < 0 || request->op_case == DS__REQUEST__OP__NOT_SET) {
        ds_session_refuse(session, entry->req_id,
                          r == -ENOMEM ? DS__ERROR__CODE__BUSY : DS__ERROR__CODE__INVALID, 0,
                          r == 0 ? "the request asks for nothing that this dsd knows"
                                 : "malformed request: %s",
                          strerror(-r));
        return;
    }
    r = ds_call_new(&call, session, entry, payload, request->op_case, &error);
    if (r != 0) {
        ds_session_refuse(session, entry->req_id, DS__ERROR__CODE__BUSY, 100, "%s",
                          r < 0 ? "no memory" : error.text);
        return;
    }
    if (request->op_case == DS__REQUEST__OP_GENERATE) {
        const Ds__Generate *generate = request->generate;

        call->n_given = generate->delivered ? (uint32_t) generate->delivered->n_ids : 0;
        if (generate->deadline_nsec && (!deadline || generate->deadline_nsec < deadline))
            deadline = generate->deadline_nsec;
    }
    ds_call_set_deadline(call, deadline);
    if (request->op_case == DS__REQUEST__OP_SHOW)
        start_show(call, request);
    else if (model_of(request) || !ds_verb_answer(call, request))
        start_on_model(call, request);
}
