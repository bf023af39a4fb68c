/* SPDX-License-Identifier: Apache-2.0 */
#include "client/internal.h"

/* Completion ring to events. Payloads are used where they lie as far as the promise of ds.h
 * allows: ids of raw tokens are; text is copied, because it has to end in a NUL; messages are,
 * because protobuf-c must not read what another process could change. */

static int keep_text(struct ds *ds, const void *text, size_t size, struct ds_event *event)
{
    ds->text.size = 0;
    if (ds_client_buffer_append(&ds->text, text, size) < 0 ||
        ds_client_buffer_append(&ds->text, "", 1) < 0)
        return -ENOMEM;
    event->text = (const char *) ds->text.bytes;
    event->text_size = size;
    return 0;
}

static int keep_message(struct ds *ds, const void *payload, size_t size, struct ds_event *event)
{
    int r;

    ds->message.size = 0;
    r = ds_client_buffer_append(&ds->message, payload, size);
    if (r < 0)
        return r;
    event->message = ds->message.bytes;
    event->message_size = size;
    return 0;
}

/* --- what the payloads say ---------------------------------------------------------------------
 */

static int raw_tokens(struct ds *ds, uint32_t n_tokens, const uint8_t *payload, size_t size,
                      struct ds_event *event)
{
    size_t ids_size = (size_t) n_tokens * sizeof(uint32_t);
    int r;

    if (ids_size > size)
        return -EPROTO;
    event->n_ids = n_tokens;
    event->ids = (const uint32_t *) (const void *) payload;
    if ((uintptr_t) payload % alignof(uint32_t)) {
        ds->message.size = 0;
        r = ds_client_buffer_append(&ds->message, payload, ids_size);
        if (r < 0)
            return r;
        event->ids = (const uint32_t *) (const void *) ds->message.bytes;
    }
    return keep_text(ds, payload + ids_size, size - ids_size, event);
}

static int keep_pieces(struct ds *ds, const uint32_t *parts, size_t n, size_t text_size,
                       struct ds_event *event)
{
    int r = 0;

    ds->pieces.size = 0;
    for (size_t i = 0; r == 0 && i < n; i++) {
        struct ds_event_piece piece = { (enum ds_event_part)(parts[i] & 3), parts[i] >> 2 };

        if (piece.size > text_size)
            return -EPROTO;
        text_size -= piece.size;
        r = ds_client_buffer_append(&ds->pieces, &piece, sizeof piece);
    }
    if (r == 0 && n > 0 && text_size > 0)
        return -EPROTO;
    event->pieces = n ? (const struct ds_event_piece *) (const void *) ds->pieces.bytes : NULL;
    event->n_pieces = n;
    return r;
}

static int keep_chat(struct ds *ds, const Ds__ChatReply *message, struct ds_event *event)
{
    int r = 0;

    if (!message)
        return 0;
    event->reasoning = (const char *) message->reasoning.data;
    event->reasoning_size = message->reasoning.len;
    event->content = message->content.len ? (const char *) message->content.data : "";
    event->content_size = message->content.len;
    ds->calls.size = 0;
    for (size_t i = 0; r == 0 && i < message->n_tool_calls; i++) {
        const Ds__ToolCall *from = message->tool_calls[i];
        struct ds_event_call call = { from->id, from->name,
                                      (const char *) from->arguments_json.data,
                                      from->arguments_json.len };

        r = ds_client_buffer_append(&ds->calls, &call, sizeof call);
    }
    event->calls = (const struct ds_event_call *) (const void *) ds->calls.bytes;
    event->n_calls = message->n_tool_calls;
    return r;
}

static int message_tokens(struct ds *ds, const void *payload, size_t size, struct ds_event *event)
{
    Ds__TokenChunk *chunk;
    int r;

    r = keep_message(ds, payload, size, event);
    if (r < 0)
        return r;
    r = ds_message_unpack(&ds__token_chunk__descriptor, event->message, size, &chunk);
    if (r < 0)
        return r;
    ds->unpacked = chunk;
    event->ids = chunk->ids;
    event->n_ids = chunk->n_ids;
    r = keep_pieces(ds, chunk->parts, chunk->n_parts, chunk->text.len, event);
    if (r < 0)
        return r;
    return keep_text(ds, chunk->text.data, chunk->text.len, event);
}

static int tokens(struct ds *ds, struct ds_client_request *request, const struct ds_cqe *entry,
                  const void *payload, struct ds_event *event)
{
    int r;

    event->type = DS_EVENT_TOKENS;
    if (entry->flags & DS_CQE_MESSAGE)
        r = message_tokens(ds, payload, entry->len, event);
    else
        r = raw_tokens(ds, entry->n_tokens, payload, entry->len, event);
    if (r < 0)
        return r;
    return ds_client_buffer_append(&request->ids, event->ids, event->n_ids * sizeof(uint32_t));
}

static int generate_result(struct ds *ds, const Ds__GenerateResult *result, struct ds_event *event)
{
    int r;

    event->reason = (enum ds_reason) result->reason;
    if (result->usage) {
        event->prompt_tokens = result->usage->prompt_tokens;
        event->cached_tokens = result->usage->cached_tokens;
        event->completion_tokens = result->usage->completion_tokens;
    }
    if (result->timing) {
        event->ttft_ms = result->timing->ttft_ms;
        event->decode_ms = result->timing->decode_ms;
    }
    r = keep_pieces(ds, result->parts, result->n_parts, result->text.len, event);
    if (r == 0)
        r = keep_chat(ds, result->message, event);
    if (r < 0)
        return r;
    return keep_text(ds, result->text.data, result->text.len, event);
}

static int final(struct ds *ds, struct ds_client_request *request, const struct ds_cqe *entry,
                 const void *payload, struct ds_event *event)
{
    Ds__Reply *reply;
    int r;

    event->type = DS_EVENT_FINAL;
    r = keep_message(ds, payload, entry->len, event);
    if (r < 0)
        return r;
    if (request->kind == DS_CLIENT_CONTROL)
        return keep_text(ds, "", 0, event);
    r = ds_message_unpack(&ds__reply__descriptor, event->message, event->message_size, &reply);
    if (r < 0)
        return r;
    ds->unpacked = reply;
    if (reply->result_case != DS__REPLY__RESULT_GENERATE || !reply->generate)
        return -EPROTO;
    return generate_result(ds, reply->generate, event);
}

/* 0, or DS_NONE where the request is kept for the next daemon instead. */
static int failure(struct ds *ds, struct ds_client_request *request, const struct ds_cqe *entry,
                   const void *payload, struct ds_event *event)
{
    Ds__Error *error;
    int r;

    event->type = DS_EVENT_ERROR;
    r = keep_message(ds, payload, entry->len, event);
    if (r < 0)
        return r;
    r = ds_message_unpack(&ds__error__descriptor, event->message, event->message_size, &error);
    if (r < 0)
        return r;
    ds->unpacked = error;
    event->error_code = error->code;
    event->message = NULL;
    event->message_size = 0;
    if (error->code == DS__ERROR__CODE__DRAINING && ds->reconnect_nsec && !request->once &&
        !request->cancel_wanted) {
        ds_client_hold(ds, request);
        return DS_NONE;
    }
    (void) ds_error_set(&ds->error, 0, "%s", error->text);
    return keep_text(ds, error->text, strlen(error->text), event);
}

static int progress(struct ds *ds, const struct ds_cqe *entry, const void *payload,
                    struct ds_event *event)
{
    struct ds_event copy = { 0 };
    Ds__Progress *news;
    int r;

    event->type = DS_EVENT_PROGRESS;
    r = keep_message(ds, payload, entry->len, &copy);
    if (r < 0)
        return r;
    r = ds_message_unpack(&ds__progress__descriptor, copy.message, copy.message_size, &news);
    if (r < 0)
        return r;
    ds->unpacked = news;
    event->fraction = news->fraction;
    return keep_text(ds, news->stage, strlen(news->stage), event);
}

/* --- entries -----------------------------------------------------------------------------------
 */

/* A payload in several entries: collects until the last one, then makes one of them. */
static int assemble(struct ds_client_request *request, struct ds_cqe *entry, const void **payload)
{
    int r;

    if (!request->part_type && !(entry->flags & DS_CQE_MORE))
        return 0;
    if (request->part_type && request->part_type != entry->type)
        return -EPROTO;
    if (request->part.size + entry->len > DS_PAYLOAD_BYTES_MAX)
        return -EPROTO;
    if (!request->part_type) {
        request->part.size = 0;
        request->part_tokens = 0;
        request->part_flags = entry->flags;
    }
    r = ds_client_buffer_append(&request->part, *payload, entry->len);
    if (r < 0)
        return r;
    request->part_type = entry->type;
    if (entry->n_tokens > request->part_tokens)
        request->part_tokens = entry->n_tokens; /* of the whole, in whichever piece says it */
    if (entry->flags & DS_CQE_MORE)
        return DS_NONE;
    request->part_type = 0;
    entry->len = (uint32_t) request->part.size;
    entry->flags = request->part_flags;
    entry->n_tokens = request->part_tokens;
    *payload = request->part.bytes;
    return 0;
}

static int dispatch(struct ds *ds, struct ds_client_request *request, struct ds_cqe *entry,
                    const void *payload, struct ds_event *event)
{
    switch (entry->type) {
    case DS_CQE_ACCEPTED:
        return DS_NONE;
    case DS_CQE_TOKENS:
        return request->kind == DS_CLIENT_GENERATE ? tokens(ds, request, entry, payload, event)
                                                   : -EPROTO;
    case DS_CQE_FINAL:
        return request->kind == DS_CLIENT_PING ? -EPROTO
                                               : final(ds, request, entry, payload, event);
    case DS_CQE_ERROR:
        return failure(ds, request, entry, payload, event);
    case DS_CQE_PONG:
        event->type = DS_EVENT_PONG;
        return request->kind == DS_CLIENT_PING ? 0 : -EPROTO;
    case DS_CQE_NOTICE:
        return progress(ds, entry, payload, event);
    default:
        return entry->flags & DS_CQE_CRITICAL ? -EPROTONOSUPPORT : DS_NONE;
    }
}

/* 0 = an event; DS_NONE = nothing for the caller; errno = the peer is not to be believed. */
static int decode(struct ds *ds, struct ds_cqe *entry, const void *payload, struct ds_event *event)
{
    struct ds_client_request *request = ds_client_find(ds, entry->req_id);
    int r;

    ds->heard = true;
    if (entry->req_id == DS_CLIENT_PROBE_ID)
        return DS_NONE;
    if (!request || request->state != DS_CLIENT_SENT)
        return entry->flags & DS_CQE_CRITICAL ? -EPROTONOSUPPORT : DS_NONE;
    if (entry->seq != request->next_seq++)
        return -EPROTO;
    r = assemble(request, entry, &payload);
    if (r != 0)
        return r;
    event->id = request->id;
    r = dispatch(ds, request, entry, payload, event);
    if (r != 0)
        return r;
    ds->lost_nsec = 0; /* what was lost is made good */
    ds->attempts = 0;
    if (event->type == DS_EVENT_FINAL || event->type == DS_EVENT_ERROR ||
        event->type == DS_EVENT_PONG)
        ds_client_request_free(ds, request);
    return 0;
}

static int cancelled(struct ds *ds, const struct ds_client_request *request, struct ds_event *event)
{
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__GenerateResult result = DS__GENERATE_RESULT__INIT;
    Ds__Usage usage = DS__USAGE__INIT;
    Ds__Timing timing = DS__TIMING__INIT;
    int r;

    usage.completion_tokens = (uint32_t) (request->ids.size / sizeof(uint32_t));
    result.reason = DS__REASON__REASON_CANCELLED;
    result.usage = &usage;
    result.timing = &timing;
    reply.result_case = DS__REPLY__RESULT_GENERATE;
    reply.generate = &result;
    r = ds_client_buffer_reserve(&ds->message, ds_message_size(&reply));
    if (r == 0)
        r = ds_message_pack(&reply, ds->message.bytes, ds->message.capacity, &ds->message.size);
    if (r < 0)
        return r;
    event->type = DS_EVENT_FINAL;
    event->message = ds->message.bytes;
    event->message_size = ds->message.size;
    return generate_result(ds, &result, event);
}

/* The oldest last event that was made on this side. */
static int take_ended(struct ds *ds, struct ds_event *event)
{
    struct ds_client_request *request = ds->first;
    const char *text;
    int r;

    while (request->state != DS_CLIENT_ENDED)
        request = request->next;
    event->id = request->id;
    if (request->end_code == 0 && request->kind == DS_CLIENT_GENERATE) {
        r = cancelled(ds, request, event);
    } else {
        event->type = DS_EVENT_ERROR;
        event->error_code = request->end_code ? request->end_code : DS__ERROR__CODE__INTERNAL;
        text = request->end_text ? request->end_text : "cancelled before dsd took the request";
        (void) ds_error_set(&ds->error, 0, "%s", text);
        r = keep_text(ds, text, strlen(text), event);
    }
    ds_client_request_free(ds, request);
    return r;
}

void ds_client_release(struct ds *ds)
{
    if (ds->entry_held && ds->channel) {
        ds_channel_done(ds->channel);
        ds_client_ring(ds); /* dsd may be waiting for room */
    }
    ds->entry_held = false;
    if (ds->unpacked)
        ds_message_free(ds->unpacked);
    ds->unpacked = NULL;
}

int ds_client_take(struct ds *ds, struct ds_event *ret_event)
{
    struct ds_event event; /* cleared only where there is one: looking must stay cheap */
    const void *payload;
    int r;

    if (ds->n_ended) {
        event = (struct ds_event){ 0 };
        r = take_ended(ds, &event);
        if (r == 0)
            *ret_event = event;
        return r;
    }
    while (ds->state == DS_CLIENT_UP) {
        r = ds_channel_next(ds->channel, &ds->entry, &payload);
        if (r == DS_CHANNEL_EMPTY)
            return DS_NONE;
        if (r == DS_CHANNEL_OK) {
            ds->entry_held = true;
            event = (struct ds_event){ 0 };
            r = decode(ds, &ds->entry, payload, &event);
        }
        if (r == 0) {
            *ret_event = event;
            return 0;
        }
        if (r < 0) {
            ds_client_lose(ds, r == -ENOMEM ? "out of memory" : "it broke the protocol");
            return DS_NONE;
        }
        ds_client_release(ds);
    }
    return DS_NONE;
}

int ds_next(struct ds *ds, struct ds_event *ret_event, int timeout_ms)
{
    uint64_t deadline = timeout_ms < 0 ? UINT64_MAX : 0;
    int r;

    ds_client_release(ds);
    for (;;) {
        r = ds_client_take(ds, ret_event);
        if (r != DS_NONE) {
            if (ds->armed)
                ds_client_wake(ds);
            ds_client_kick(ds); /* there may be more: ds_fd() stays readable until DS_NONE */
            return r;
        }
        if (ds->given_up && ds->n_requests == 0)
            return ds_error_set(&ds->error, -ENOTCONN,
                                "dsd at %s went away and has not come back (%s): start it again",
                                ds->path, ds->why);
        if (timeout_ms > 0 && deadline == 0)
            deadline = ds_now_nsec() + (uint64_t) timeout_ms * 1000000u;
        r = ds_client_wait(ds, deadline);
        if (r != 0)
            return r;
    }
}
