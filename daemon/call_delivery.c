/* SPDX-License-Identifier: Apache-2.0 */
/*
 * call_delivery.c - from the log of a call into the ring of its client.
 *
 * There is no queue of completions: the log is the queue, and next_record says how far the client
 * has been served. A client that lags finds several records in one entry when it comes back.
 */
#include "daemon/call.h"

#include "daemon/engine_process.h"
#include "daemon/log.h"
#include "daemon/server.h"
#include "daemon/session.h"

#include <inttypes.h>

#define COALESCE_BYTES 4096u

/* More than this unread, and the engine is told to stop until the client has caught up. */
#define BACKLOG_RECORDS 2048u

/* --- what comes in --- */

static void *pack_chunk(const Ds__TokenChunk *chunk, size_t *ret_size)
{
    void *bytes = NULL;

    if ((chunk->n_logprobs == 0 && chunk->n_parts == 0) ||
        ds_message_pack_new(chunk, &bytes, ret_size) < 0)
        return NULL;
    return bytes;
}

void ds_call_tokens(struct ds_call *call, const Ds__TokenChunk *chunk)
{
    size_t n_ids = chunk->ids ? chunk->n_ids : 0, size = 0;
    void *message = pack_chunk(chunk, &size);
    int r;

    if (n_ids == 0 && chunk->text.len == 0) {
        free(message);
        return;
    }
    r = ds_token_log_append(&call->log, chunk->ids, n_ids, chunk->text.data, chunk->text.len,
                            message, size);
    if (r < 0) {
        if (call->state == DS_CALL_RUNNING)
            (void) ds_engine_link_cancel(&call->server->engine, call->engine_id);
        ds_call_fail(call, DS__ERROR__CODE__BUSY, 1000, "no memory for the answer: %s",
                     strerror(-r));
        return;
    }
    call->progressed = true;
    call->crash_points = 0;
    call->server->n_tokens += n_ids;
    ds_call_deliver(call);
}

void ds_call_progress(struct ds_call *call, const char *stage, double fraction)
{
    if (call->state == DS_CALL_FINISHED)
        return;
    (void) snprintf(call->stage, sizeof call->stage, "%s", stage);
    call->fraction = fraction;
    call->notice_due = true;
    ds_call_deliver(call);
}

/* --- what goes out --- */

/* Posts the rest of item, in pieces where it is large. As ds_session_post(). */
static int post_item(struct ds_call *call, struct ds_item *item, bool last)
{
    size_t piece_max = ds_channel_post_max(call->session->channel);

    do {
        size_t left = item->size - item->sent;
        size_t size = left < piece_max ? left : piece_max;
        struct ds_cqe entry = {
            .req_id = call->req_id,
            .seq = call->seq,
            .type = item->type,
            .flags = (uint16_t) (item->flags | (size < left ? DS_CQE_MORE : 0)),
            .n_tokens = item->n_tokens,
        };
        int r = ds_session_post(call->session, &entry, (const uint8_t *) item->bytes + item->sent,
                                size, last && size == left);

        if (r != 0)
            return r;
        call->seq++;
        item->sent += size;
    } while (item->sent < item->size);
    return 0;
}

/* Lays the records first..end-1, which have no message, out as ids then text. */
static size_t lay_out(const struct ds_token_log *log, uint32_t first, uint32_t end, uint8_t *out)
{
    uint32_t ids_start = ds_token_log_ids_start(log, first);
    uint32_t text_start = ds_token_log_text_start(log, first);
    size_t ids_bytes = (ds_token_log_ids_start(log, end) - ids_start) * sizeof(*log->ids);
    size_t text_bytes = ds_token_log_text_start(log, end) - text_start;

    if (ids_bytes)
        memcpy(out, log->ids + ids_start, ids_bytes);
    if (text_bytes)
        memcpy(out + ids_bytes, log->text + text_start, text_bytes);
    return ids_bytes + text_bytes;
}

static size_t span_bytes(const struct ds_token_log *log, uint32_t first, uint32_t end)
{
    return (ds_token_log_ids_start(log, end) - ds_token_log_ids_start(log, first)) *
               sizeof(*log->ids) +
           ds_token_log_text_start(log, end) - ds_token_log_text_start(log, first);
}

/* A record too large for one entry, or one with log-probabilities, goes by way of call->item. */
static int post_large(struct ds_call *call)
{
    const struct ds_token_log *log = &call->log;
    const struct ds_token_record *record = &log->records[call->next_record];
    uint32_t n = record->ids_end - ds_token_log_ids_start(log, call->next_record);
    size_t size = record->message ? record->message_size
                                  : span_bytes(log, call->next_record, call->next_record + 1);
    uint8_t *bytes = malloc(size + 1);

    if (!bytes)
        return DS_CHANNEL_FULL; /* as if there were no room: tried again later */
    if (record->message)
        memcpy(bytes, record->message, size);
    else
        (void) lay_out(log, call->next_record, call->next_record + 1, bytes);
    call->item = (struct ds_item){ .bytes = bytes,
                                   .size = size,
                                   .type = DS_CQE_TOKENS,
                                   .flags = record->message ? DS_CQE_MESSAGE : 0,
                                   .n_tokens = n };
    call->next_record++;
    return 0;
}

/* Posts as many of the next records as fit one entry. */
static int post_records(struct ds_call *call)
{
    const struct ds_token_log *log = &call->log;
    uint8_t bytes[COALESCE_BYTES];
    uint32_t first = call->next_record, end = first;
    size_t limit = ds_channel_post_max(call->session->channel);
    struct ds_cqe entry = { .req_id = call->req_id, .seq = call->seq, .type = DS_CQE_TOKENS };
    size_t size;
    int r;

    limit = limit < sizeof bytes ? limit : sizeof bytes;
    while (end < log->n_records && !log->records[end].message &&
           span_bytes(log, first, end + 1) <= limit)
        end++;
    if (end == first)
        return post_large(call);
    size = lay_out(log, first, end, bytes);
    entry.n_tokens = ds_token_log_ids_start(log, end) - ds_token_log_ids_start(log, first);
    entry.flags = end - first > 1 ? DS_CQE_COALESCED : 0;
    r = ds_session_post(call->session, &entry, bytes, size, false);
    if (r == 0) {
        call->seq++;
        call->next_record = end;
    }
    return r;
}

static int post_notice(struct ds_call *call)
{
    Ds__Progress progress = DS__PROGRESS__INIT;
    struct ds_cqe entry = { .req_id = call->req_id, .seq = call->seq, .type = DS_CQE_NOTICE };
    uint8_t bytes[64];
    size_t size;
    int r;

    progress.stage = call->stage;
    progress.fraction = call->fraction;
    r = ds_message_pack(&progress, bytes, sizeof bytes, &size);
    if (r == 0)
        r = ds_session_post(call->session, &entry, bytes, size, false);
    if (r == 0) {
        call->seq++;
        call->notice_due = false;
    }
    return r;
}

static int post_accepted(struct ds_call *call)
{
    struct ds_cqe entry = { .req_id = call->req_id, .seq = call->seq, .type = DS_CQE_ACCEPTED };
    int r = ds_session_post(call->session, &entry, NULL, 0, false);

    if (r == 0) {
        call->seq++;
        call->accept_due = false;
    }
    return r;
}

/* Everything but the last completion: 0 when all of it is in the ring. */
static int post_all(struct ds_call *call)
{
    int r = 0;

    if (call->accept_due)
        r = post_accepted(call);
    while (r == 0 && (call->item.bytes || call->next_record < call->log.n_records)) {
        if (!call->item.bytes) {
            r = post_records(call);
            continue;
        }
        r = post_item(call, &call->item, false);
        if (r == 0) {
            free(call->item.bytes);
            call->item = (struct ds_item){ 0 };
        }
    }
    if (r == 0 && call->notice_due)
        r = post_notice(call);
    return r;
}

/* The client has caught up: the engine may go on. */
static void resume(struct ds_call *call)
{
    call->stalled = false;
    if (!call->withdrawn)
        return;
    call->withdrawn = false;
    ds_engine_link_pump(&call->server->engine);
}

void ds_call_deliver(struct ds_call *call)
{
    int r;

    if (!call->session || call->session->state != DS_SESSION_ACTIVE)
        return;
    r = post_all(call);
    if (r == 0 && call->state == DS_CALL_FINISHED) {
        r = post_item(call, &call->last, true);
        if (r == 0) {
            ds_call_delivered(call);
            return;
        }
    }
    if (r == 0) {
        if (call->stalled)
            resume(call);
        return;
    }
    call->stalled = true;
    if (r == DS_CHANNEL_FULL && call->state == DS_CALL_RUNNING &&
        call->log.n_records - call->next_record > BACKLOG_RECORDS && !call->cancelled &&
        ds_engine_link_cancel(&call->server->engine, call->engine_id) == 0) {
        ds_log(LOG_DEBUG, "request %" PRIu64 " rests: client %s lags by %u records", call->id,
               call->program, call->log.n_records - call->next_record);
        ds_call_recall(call);
        call->withdrawn = true;
    }
}

void ds_call_give_up(struct ds_call *call)
{
    Ds__Error error = DS__ERROR__INIT;
    size_t size = 0;
    void *bytes;

    if (call->state != DS_CALL_FINISHED) {
        if (call->state == DS_CALL_RUNNING)
            (void) ds_engine_link_cancel(&call->server->engine, call->engine_id);
        call->next_record = call->log.n_records;
        free(call->item.bytes);
        call->item = (struct ds_item){ 0 };
        call->accept_due = false;
        /* Short enough to go into the entry itself: that room is kept for every request. */
        ds_call_fail(call, DS__ERROR__CODE__SLOW_CONSUMER, 0, "answers were not read");
        return;
    }
    error.code = DS__ERROR__CODE__SLOW_CONSUMER;
    error.text = (char *) "answers were not read";
    if (ds_message_pack_new(&error, &bytes, &size) < 0)
        return;
    free(call->last.bytes);
    free(call->item.bytes);
    call->item = (struct ds_item){ 0 };
    call->last = (struct ds_item){ .bytes = bytes, .size = size, .type = DS_CQE_ERROR };
    call->next_record = call->log.n_records;
    call->accept_due = false;
    ds_call_deliver(call);
}
