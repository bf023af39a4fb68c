/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/session.h"

#include "daemon/call.h"
#include "daemon/dispatch.h"
#include "daemon/log.h"
#include "daemon/model_files.h"
#include "daemon/server.h"
#include "daemon/session_socket.h"

#define NSEC_PER_SEC     UINT64_C(1000000000)
#define STALL_RETRY_NSEC UINT64_C(2000000)

static void on_handshake_late(void *owner)
{
    ds_session_drop(owner, "no handshake within handshake_sec", false);
}

static void on_socket(void *owner, int result)
{
    struct ds_session *session = owner;

    if (session->state == DS_SESSION_DEAD)
        return;
    if (result < 0)
        ds_session_drop(session, "its socket failed", false);
    else
        ds_session_read_socket(session);
}

int ds_session_new(struct ds_server *server, int socket)
{
    ds_cleanup(ds_close_p) int owned = socket;
    struct ds_session *session;
    struct ds_error error;
    struct ds_peer peer;
    struct ds_user *user;
    int r;

    r = ds_peer_of(socket, &peer);
    if (r < 0)
        return r;
    r = server->draining ? DS_REFUSED
                         : ds_admission_enter(&server->admission, peer.uid, &user, &error);
    if (r == DS_REFUSED) {
        if (server->draining)
            ds_session_reject(socket, DS__ERROR__CODE__DRAINING, 1000, "dsd is stopping");
        else
            ds_session_reject(socket, DS__ERROR__CODE__BUSY, 1000, error.text);
        return 0;
    }
    if (r < 0)
        return r;
    session = calloc(1, sizeof(*session));
    if (!session) {
        ds_admission_leave(&server->admission, user);
        return -ENOMEM;
    }
    session->server = server;
    session->id = ++server->next_id;
    session->socket = ds_steal_fd(&owned);
    session->peer = peer;
    session->user = user;
    ds_list_init(&session->hot);
    ds_list_init(&session->dirty);
    ds_list_init(&session->calls);
    ds_list_append(&server->sessions, &session->link);
    r = ds_loop_watch(server->loop, DS_WATCH_READ, session->socket, on_socket, session,
                      &session->on_socket);
    if (r < 0) {
        (void) ds_session_free(session);
        return r;
    }
    (void) ds_timer_set(server->loop, &session->handshake,
                        ds_now_nsec() + server->config.handshake_sec * NSEC_PER_SEC,
                        on_handshake_late, session);
    return 0;
}

struct ds_session *ds_session_free(struct ds_session *session)
{
    struct ds_server *server;
    struct ds_call *call;

    if (!session)
        return NULL;
    server = session->server;
    ds_list_each(call, &session->calls, in_session)
    {
        call->has_key = call->has_key && !session->goodbye; /* it will not come back for it */
        ds_call_orphan(call);
    }
    session->on_socket = ds_watch_remove(session->on_socket);
    session->on_bell = ds_watch_remove(session->on_bell);
    session->bell = ds_watch_remove(session->bell);
    ds_timer_clear(server->loop, &session->handshake);
    ds_timer_clear(server->loop, &session->stall);
    ds_list_remove(&session->link);
    ds_list_remove(&session->hot);
    ds_list_remove(&session->dirty);
    session->channel = ds_channel_free(session->channel);
    for (uint32_t i = 0; i < session->n_attachments; i++)
        (void) ds_model_files_free(session->attachments[i].files);
    free(session->attachments);
    if (session->socket >= 0)
        (void) close(session->socket);
    ds_admission_release_region(&server->admission, session->user, session->region_bytes);
    ds_admission_leave(&server->admission, session->user);
    free(session);
    return NULL;
}

void ds_session_drop(struct ds_session *session, const char *reason, bool goodbye)
{
    struct ds_server *server = session->server;

    if (session->state == DS_SESSION_DEAD)
        return;
    if (reason)
        ds_log(LOG_NOTICE, "client %s (pid %u, uid %u) dropped: %s", session->program,
               session->peer.pid, session->peer.uid, reason);
    session->state = DS_SESSION_DEAD;
    session->on_socket = ds_watch_remove(session->on_socket);
    session->on_bell = ds_watch_remove(session->on_bell);
    ds_list_remove(&session->hot);
    ds_list_remove(&session->dirty);
    ds_list_move(&server->dead, &session->link);
    session->goodbye = goodbye;
    ds_calls_forget(server, session->id, goodbye);
}

/* --- heat --- */

void ds_session_warm(struct ds_session *session)
{
    if (!ds_list_empty(&session->hot))
        return;
    ds_channel_wake(session->channel);
    session->last_traffic_nsec = session->server->now_nsec;
    ds_list_append(&session->server->hot, &session->hot);
}

bool ds_session_cool(struct ds_session *session)
{
    /* While an answer is held, what it submits must wait: the stall timer looks after it. */
    if (!ds_channel_sleep(session->channel) && !session->held)
        return false;
    ds_list_remove(&session->hot);
    return true;
}

/* --- completions --- */

static void on_stall(void *owner);

static void stall_begin(struct ds_session *session)
{
    uint64_t now = ds_now_nsec(), waited;

    if (session->stalled_since_nsec == 0)
        session->stalled_since_nsec = now;
    if (session->stall.slot)
        return;
    waited = now - session->stalled_since_nsec; /* the longer, the rarer the look */
    (void) ds_timer_set(session->server->loop, &session->stall,
                        now + STALL_RETRY_NSEC + waited / 16, on_stall, session);
}

static void mark_dirty(struct ds_session *session)
{
    if (ds_list_empty(&session->dirty))
        ds_list_append(&session->server->dirty, &session->dirty);
}

int ds_session_post(struct ds_session *session, const struct ds_cqe *entry, const void *payload,
                    size_t size, bool last)
{
    int r;

    if (session->state != DS_SESSION_ACTIVE)
        return -ENOTCONN;
    r = ds_channel_post(session->channel, entry, payload, size, last);
    if (r == DS_CHANNEL_FULL) {
        stall_begin(session);
        return r;
    }
    if (r < 0) {
        ds_session_drop(session, r == -EPROTO ? "it lied about its completion ring" : strerror(-r),
                        false);
        return r;
    }
    session->stalled_since_nsec = 0;
    mark_dirty(session);
    return 0;
}

void ds_session_publish(struct ds_session *session)
{
    ds_list_remove(&session->dirty);
    ds_channel_publish(session->channel);
    if (ds_channel_bell_due(session->channel))
        ds_bell_ring(session->bell);
}

static void post_held(struct ds_session *session)
{
    session->held = ds_session_post(session, &session->held_entry, session->held_bytes,
                                    session->held_size, false) == DS_CHANNEL_FULL;
}

/* Answers now, or as soon as there is room. */
static void answer(struct ds_session *session, const struct ds_cqe *entry, size_t size)
{
    session->held_entry = *entry;
    session->held_size = size;
    post_held(session);
}

/* The number of the next completion of req_id: not 0 where it is that of a call being ended. */
static uint32_t next_seq(const struct ds_session *session, uint64_t req_id)
{
    const struct ds_call *call;

    ds_list_each(call, &session->calls, in_session)
    {
        if (call->req_id == req_id)
            return call->seq;
    }
    return 0;
}

void ds_session_refuse(struct ds_session *session, uint64_t req_id, Ds__Error__Code code,
                       uint32_t retry_after_ms, const char *format, ...)
{
    struct ds_cqe entry = { .req_id = req_id,
                            .seq = next_seq(session, req_id),
                            .type = DS_CQE_ERROR };
    Ds__Error error = DS__ERROR__INIT;
    char text[400];
    size_t size = 0;
    va_list ap;

    if (session->held)
        return;
    va_start(ap, format);
    (void) vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    error.code = code;
    error.text = text;
    error.retry_after_ms = retry_after_ms;
    (void) ds_message_pack(&error, session->held_bytes, sizeof session->held_bytes, &size);
    answer(session, &entry, size);
}

/* --- stalls --- */

static bool anything_stalled(const struct ds_session *session)
{
    const struct ds_call *call;

    if (session->held)
        return true;
    ds_list_each(call, &session->calls, in_session)
    {
        if (call->stalled)
            return true;
    }
    return false;
}

/* There may be room now. */
static void retry(struct ds_session *session)
{
    struct ds_call *call;

    if (session->held) {
        post_held(session);
        if (session->held || session->state != DS_SESSION_ACTIVE)
            return;
        ds_session_warm(session);
    }
    ds_list_each(call, &session->calls, in_session)
    {
        if (call->stalled)
            ds_call_deliver(call);
        if (session->state != DS_SESSION_ACTIVE)
            return;
    }
}

static void on_stall(void *owner)
{
    struct ds_session *session = owner;
    uint64_t limit = session->server->config.stall_sec * NSEC_PER_SEC;
    struct ds_call *call;
    bool late;

    if (session->state != DS_SESSION_ACTIVE)
        return;
    retry(session);
    if (session->state != DS_SESSION_ACTIVE)
        return;
    late = session->stalled_since_nsec && ds_now_nsec() - session->stalled_since_nsec > limit;
    if (late && session->held) {
        ds_session_drop(session, "it does not read its completions", false);
        return;
    }
    ds_list_each(call, &session->calls, in_session)
    {
        if (late && call->stalled)
            ds_call_give_up(call);
        if (session->state != DS_SESSION_ACTIVE)
            return;
    }
    if (late && session->stalled_since_nsec && anything_stalled(session))
        ds_session_drop(session, "it does not read its completions", false);
    else if (anything_stalled(session))
        stall_begin(session);
}

/* --- submissions --- */

static void take_pong(struct ds_session *session, const struct ds_sqe *entry)
{
    struct ds_cqe pong = { .req_id = entry->req_id, .type = DS_CQE_PONG };

    session->held_entry = pong;
    session->held_size = 0;
    post_held(session);
}

static void take_cancel(struct ds_session *session, uint64_t req_id)
{
    struct ds_call *call;

    ds_list_each(call, &session->calls, in_session)
    {
        if (call->req_id == req_id) {
            ds_call_cancel(call);
            return;
        }
    }
}

static void take(struct ds_session *session, const struct ds_sqe *entry, const void *payload)
{
    switch ((enum ds_sqe_op) entry->op) {
    case DS_SQE_NOP:
        break;
    case DS_SQE_SUBMIT:
        ds_dispatch_submit(session, entry, payload);
        break;
    case DS_SQE_CANCEL:
        take_cancel(session, entry->req_id);
        break;
    case DS_SQE_PING:
        take_pong(session, entry);
        break;
    case DS_SQE_CLOSE:
        ds_session_drop(session, NULL, true);
        break;
    }
}

bool ds_session_drain(struct ds_session *session)
{
    const void *payload;
    struct ds_sqe entry;
    int n, r = DS_CHANNEL_EMPTY;

    if (session->stalled_since_nsec && session->state == DS_SESSION_ACTIVE)
        retry(session);
    if (session->state != DS_SESSION_ACTIVE)
        return true;
    for (n = 0; n < DS_DRAIN_MAX && !session->held; n++) {
        r = ds_channel_receive(session->channel, &entry, &payload);
        if (r == DS_CHANNEL_OK)
            take(session, &entry, payload);
        else if (r == -ENOMEM)
            ds_session_refuse(session, entry.req_id, DS__ERROR__CODE__BUSY, 1000, "no memory");
        else if (r == -EBADMSG)
            ds_session_refuse(session, entry.req_id, DS__ERROR__CODE__INVALID, 0,
                              "malformed submission entry");
        else
            break;
        if (session->state != DS_SESSION_ACTIVE)
            return true;
    }
    if (r < 0 && r != -EBADMSG && r != -ENOMEM) {
        ds_session_drop(session, "it lied about its submission ring", false);
        return true;
    }
    if (n > 0) {
        ds_channel_publish(session->channel); /* who spins for an answer has it a bit earlier */
        ds_channel_release(session->channel);
        mark_dirty(session); /* it may wait for the room that this made */
        session->last_traffic_nsec = session->server->now_nsec;
        ds_channel_beat(session->channel, session->server->now_nsec);
    }
    return n > 0;
}
