/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/call.h"

#include "daemon/admission.h"
#include "daemon/lora.h"
#include "daemon/model_files.h"
#include "daemon/residency.h"
#include "daemon/server.h"
#include "daemon/session.h"

#include <assert.h>

#define NSEC_PER_SEC UINT64_C(1000000000)
#define KEPT_MAX     1024u

/* --- tables --- */

static struct ds_list *engine_bucket(struct ds_server *server, uint64_t engine_id)
{
    return &server->by_engine[engine_id & (DS_BUCKETS - 1)];
}

static struct ds_list *key_bucket(struct ds_server *server, const uint8_t key[16])
{
    uint64_t hash;

    memcpy(&hash, key, sizeof hash); /* keys are random; who chooses them slows itself down */
    return &server->by_key[(hash ^ hash >> 32) & (DS_BUCKETS - 1)];
}

struct ds_call *ds_call_by_engine(struct ds_server *server, uint64_t engine_id)
{
    struct ds_call *call;

    ds_list_each(call, engine_bucket(server, engine_id), by_engine)
    {
        if (call->engine_id == engine_id)
            return call;
    }
    return NULL;
}

struct ds_call *ds_call_by_key(struct ds_server *server, uint32_t uid, const uint8_t key[16])
{
    struct ds_call *call;

    ds_list_each(call, key_bucket(server, key), by_key)
    {
        if (call->uid == uid && memcmp(call->key, key, 16) == 0)
            return call;
    }
    return NULL;
}

/* --- life --- */

static void on_deadline(void *owner)
{
    ds_call_end(owner, DS__REASON__REASON_DEADLINE);
}

static void on_grace(void *owner)
{
    struct ds_call *call = owner;

    if (call->state == DS_CALL_FINISHED)
        (void) ds_call_free(call);
    else
        ds_call_cancel(call);
}

static void join_session(struct ds_call *call, struct ds_session *session, uint64_t req_id)
{
    call->session = session;
    call->session_id = session->id;
    call->req_id = req_id;
    call->pid = session->peer.pid;
    call->seq = 0;
    call->accept_due = true;
    memcpy(call->program, session->program, sizeof call->program);
    ds_list_append(&session->calls, &call->in_session);
    session->n_calls++;
}

static void leave_session(struct ds_call *call)
{
    if (!call->session)
        return;
    ds_list_remove(&call->in_session);
    call->session->n_calls--;
    call->session = NULL;
}

int ds_call_new(struct ds_call **ret_call, struct ds_session *session, const struct ds_sqe *entry,
                const void *payload, Ds__Request__OpCase op, struct ds_error *error)
{
    static const uint8_t no_key[16];
    struct ds_server *server = session->server;
    struct ds_call *call;
    int r;

    r = ds_admission_charge_request(&server->admission, session->user, entry->payload_len, error);
    if (r != DS_ADMITTED)
        return r;
    call = calloc(1, sizeof(*call));
    if (call)
        call->packed = malloc(entry->payload_len + 1);
    if (!call || !call->packed) {
        ds_admission_release_request(&server->admission, session->user, entry->payload_len);
        free(call);
        return -ENOMEM;
    }
    memcpy(call->packed, payload, entry->payload_len);
    call->packed_size = entry->payload_len;
    call->server = server;
    call->user = session->user;
    call->uid = session->peer.uid;
    call->id = ++server->next_id;
    call->op = op;
    call->state = DS_CALL_WAITING;
    call->submitted_nsec = ds_now_nsec();
    memcpy(call->key, entry->idem_key, sizeof call->key);
    call->has_key = memcmp(call->key, no_key, sizeof no_key) != 0;
    ds_list_append(&server->calls, &call->link);
    ds_list_init(&call->in_session);
    ds_list_init(&call->in_resident);
    ds_list_init(&call->in_lora);
    ds_list_init(&call->in_draft);
    ds_list_init(&call->by_engine);
    ds_list_init(&call->by_key);
    if (call->has_key)
        ds_list_append(key_bucket(server, call->key), &call->by_key);
    join_session(call, session, entry->req_id);
    server->n_calls++;
    *ret_call = call;
    return DS_ADMITTED;
}

static void release_charge(struct ds_call *call)
{
    if (call->user)
        ds_admission_release_request(&call->server->admission, call->user, call->packed_size);
    call->user = NULL;
}

/* Out of the kept ones, into the ones in flight. */
static void unkeep(struct ds_call *call)
{
    struct ds_server *server = call->server;

    if (!call->kept_bytes)
        return;
    server->kept_bytes -= call->kept_bytes;
    server->n_kept--;
    server->n_calls++;
    call->kept_bytes = 0;
    ds_list_move(&server->calls, &call->link);
}

struct ds_call *ds_call_free(struct ds_call *call)
{
    struct ds_server *server;

    if (!call)
        return NULL;
    server = call->server;
    unkeep(call);
    ds_call_recall(call);
    ds_lora_leave(call);
    ds_draft_leave(call);
    if (call->resident)
        ds_resident_leave(call->resident, call);
    leave_session(call);
    release_charge(call);
    ds_timer_clear(server->loop, &call->deadline);
    ds_timer_clear(server->loop, &call->grace);
    ds_list_remove(&call->link);
    ds_list_remove(&call->by_key);
    server->n_calls--;
    ds_token_log_deinit(&call->log);
    free(call->item.bytes);
    free(call->last.bytes);
    (void) ds_model_files_free(call->files);
    free(call->packed);
    free(call);
    ds_server_check_drained(server);
    return NULL;
}

void ds_call_sent(struct ds_call *call, uint64_t engine_id)
{
    struct ds_engine_process *engine = &call->server->engine;

    call->engine_id = engine_id;
    call->state = DS_CALL_RUNNING;
    call->progressed = false;
    ds_list_append(engine_bucket(call->server, engine_id), &call->by_engine);
    if (engine->n_running++ == 0)
        engine->sign_of_life_nsec = ds_now_nsec();
    ds_timer_clear(call->server->loop, &call->deadline); /* the engine's from here on */
}

void ds_call_recall(struct ds_call *call)
{
    struct ds_engine_process *engine = &call->server->engine;

    if (engine->probation == call)
        engine->probation = NULL;
    if (call->state != DS_CALL_RUNNING)
        return;
    ds_list_remove(&call->by_engine);
    call->engine_id = 0;
    call->cancel_due = false;
    call->state = DS_CALL_WAITING;
    engine->n_running--;
    ds_call_set_deadline(call, call->deadline_nsec);
}

void ds_call_set_deadline(struct ds_call *call, uint64_t at_nsec)
{
    call->deadline_nsec = at_nsec;
    if (at_nsec)
        (void) ds_timer_set(call->server->loop, &call->deadline, at_nsec, on_deadline, call);
}

/* --- ends --- */

/* The last completion is known; takes bytes. */
static void finish(struct ds_call *call, uint16_t type, void *bytes, size_t size)
{
    struct ds_server *server = call->server;

    assert(call->state != DS_CALL_FINISHED);
    ds_call_recall(call);
    ds_lora_leave(call);
    ds_draft_leave(call);
    if (call->resident)
        ds_resident_leave(call->resident, call);
    release_charge(call);
    ds_timer_clear(server->loop, &call->deadline);
    free(call->packed);
    call->packed = NULL;
    call->state = DS_CALL_FINISHED;
    call->notice_due = false;
    call->last = (struct ds_item){ .bytes = bytes, .size = size, .type = type };
    server->n_done++;
    if (call->session)
        ds_call_deliver(call);
    else if (!call->has_key || call->cancelled)
        (void) ds_call_free(call);
}

static void finish_packed(struct ds_call *call, uint16_t type, const void *message)
{
    size_t size = 0;
    void *bytes;

    if (ds_message_pack_new(message, &bytes, &size) < 0) {
        bytes = calloc(1, 1); /* no memory: an empty Error still ends the request */
        size = 0;
        type = DS_CQE_ERROR;
    }
    finish(call, type, bytes, size);
}

void ds_call_reply(struct ds_call *call, const Ds__Reply *reply)
{
    finish_packed(call, DS_CQE_FINAL, reply);
}

void ds_call_error(struct ds_call *call, const Ds__Error *error)
{
    finish_packed(call, DS_CQE_ERROR, error);
}

void ds_call_fail(struct ds_call *call, Ds__Error__Code code, uint32_t retry_after_ms,
                  const char *format, ...)
{
    Ds__Error error = DS__ERROR__INIT;
    char text[480];
    va_list ap;

    va_start(ap, format);
    (void) vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    error.code = code;
    error.text = text;
    error.retry_after_ms = retry_after_ms;
    ds_call_error(call, &error);
}

void ds_call_end(struct ds_call *call, Ds__Reason reason)
{
    Ds__GenerateResult result = DS__GENERATE_RESULT__INIT;
    Ds__Usage usage = DS__USAGE__INIT;
    Ds__Timing timing = DS__TIMING__INIT;
    Ds__Reply reply = DS__REPLY__INIT;

    if (call->op != DS__REQUEST__OP_GENERATE) {
        if (reason == DS__REASON__REASON_DEADLINE)
            ds_call_fail(call, DS__ERROR__CODE__DEADLINE, 0, "the deadline has passed");
        else
            ds_call_fail(call, DS__ERROR__CODE__INVALID, 0, "cancelled");
        return;
    }
    usage.prompt_tokens = call->prompt_tokens;
    usage.completion_tokens = call->n_given + call->log.n_ids;
    timing.queue_ms = (double) (ds_now_nsec() - call->submitted_nsec) / 1e6;
    result.reason = reason;
    result.usage = &usage;
    result.timing = &timing;
    reply.result_case = DS__REPLY__RESULT_GENERATE;
    reply.generate = &result;
    ds_call_reply(call, &reply);
}

void ds_call_cancel(struct ds_call *call)
{
    struct ds_engine_process *engine = &call->server->engine;

    if (call->state == DS_CALL_FINISHED) {
        if (!call->session)
            (void) ds_call_free(call);
        return;
    }
    if (!call->session)
        ds_list_remove(&call->by_key); /* nobody may come back to it */
    if (call->cancelled && call->state == DS_CALL_RUNNING)
        return;
    call->cancelled = true;
    if (call->state == DS_CALL_RUNNING && call->op == DS__REQUEST__OP_GENERATE) {
        call->cancel_due = ds_engine_link_cancel(engine, call->engine_id) != 0;
        return;
    }
    if (call->state == DS_CALL_RUNNING && !call->files)
        (void) ds_engine_link_cancel(engine, call->engine_id);
    ds_call_end(call, DS__REASON__REASON_CANCELLED);
}

/* --- without a connection --- */

static void grace_begin(struct ds_call *call)
{
    uint64_t grace = call->server->config.reconnect_grace_sec * NSEC_PER_SEC;

    (void) ds_timer_set(call->server->loop, &call->grace, ds_now_nsec() + grace, on_grace, call);
}

void ds_call_orphan(struct ds_call *call)
{
    bool may_come_back = call->has_key && !call->cancelled && !call->server->draining &&
                         call->server->config.reconnect_grace_sec > 0;

    leave_session(call);
    if (may_come_back)
        grace_begin(call);
    else
        ds_call_cancel(call);
}

void ds_call_delivered(struct ds_call *call)
{
    struct ds_server *server = call->server;
    size_t bytes = sizeof(*call) + ds_token_log_bytes(&call->log) + call->last.size;
    struct ds_call *oldest;

    leave_session(call);
    if (!call->has_key || call->op != DS__REQUEST__OP_GENERATE || server->draining ||
        bytes > server->config.replay_bytes) {
        (void) ds_call_free(call);
        return;
    }
    ds_list_move(&server->kept, &call->link);
    call->kept_bytes = bytes;
    server->n_calls--;
    server->n_kept++;
    server->kept_bytes += bytes;
    ds_list_each(oldest, &server->kept, link)
    {
        if (server->kept_bytes <= server->config.replay_bytes && server->n_kept <= KEPT_MAX)
            break;
        (void) ds_call_free(oldest);
    }
    ds_server_check_drained(server);
}

void ds_calls_forget(struct ds_server *server, uint64_t session_id, bool goodbye)
{
    struct ds_call *call;

    ds_list_each(call, &server->kept, link)
    {
        if (call->session_id != session_id)
            continue;
        if (goodbye || server->config.reconnect_grace_sec == 0)
            (void) ds_call_free(call);
        else
            grace_begin(call);
    }
}

int ds_call_attach(struct ds_call *call, struct ds_session *session, const struct ds_sqe *entry)
{
    uint32_t record;

    if (call->cancelled || entry->resume_from < call->n_given ||
        ds_token_log_find(&call->log, entry->resume_from - call->n_given, &record) < 0)
        return -EINVAL;
    if (call->session) {
        ds_session_refuse(call->session, call->req_id, DS__ERROR__CODE__INVALID, 0,
                          "this request goes on where it was submitted again");
        leave_session(call);
    }
    unkeep(call);
    ds_timer_clear(call->server->loop, &call->grace);
    free(call->item.bytes);
    call->item = (struct ds_item){ 0 };
    call->next_record = record;
    call->last.sent = 0;
    join_session(call, session, entry->req_id);
    ds_call_deliver(call);
    return 0;
}
