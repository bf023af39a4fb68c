/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link_state.h"

#include <assert.h>

#include "proto/base.h"

int ds_link_send_bytes(struct ds_link *link, struct ds_link_request *request, enum ds_cqe_type type,
                       void *bytes, size_t size)
{
    return ds_outbox_put(&link->outbox, request->id, type, &request->seq, bytes, size,
                         link->piece_max, type == DS_CQE_FINAL || type == DS_CQE_ERROR);
}

int ds_link_send_final(struct ds_link *link, struct ds_link_request *request, void *bytes,
                       size_t size)
{
    int r = ds_link_send_bytes(link, request, DS_CQE_FINAL, bytes, size);

    ds_requests_remove(&link->requests, request);
    return r;
}

/* --- generations: records of a step --- */

static int flush_step(struct ds_link *link)
{
    struct ds_step_bytes step = link->step;

    if (step.size == 0)
        return 0;
    link->step = (struct ds_step_bytes){ 0 };
    return ds_outbox_put(&link->outbox, 0, DS_CQE_STEP, &link->step_seq, step.bytes, step.size,
                         link->piece_max, false);
}

static int send_record(struct ds_link *link, const Ds__LinkTokens *record)
{
    if (link->step.size + ds_step_size(record) > link->piece_max) {
        int r = flush_step(link);

        if (r < 0)
            return r;
    }
    return ds_step_append(&link->step, record);
}

static int send_output(struct ds_link *link, struct ds_link_request *request,
                       const struct ds_output *output)
{
    ds_cleanup(ds_free_p) Ds__LinkTokens *record = NULL;
    int r;

    r = ds_reply_tokens_new(output, link->stepping->tokenizer, &record);
    if (r < 0)
        return r;
    r = send_record(link, record);
    if (output->finish)
        ds_requests_remove(&link->requests, request);
    return r;
}

/* A generation that ends before the scheduler has it. */
static int send_early_end(struct ds_link *link, struct ds_link_request *request,
                          Ds__GenerateResult *result, Ds__Error *error)
{
    Ds__LinkTokens record = DS__LINK_TOKENS__INIT;
    int r;

    record.req_id = request->id;
    record.result = result;
    record.error = error;
    ds_requests_remove(&link->requests, request);
    r = send_record(link, &record);
    return r < 0 ? r : flush_step(link);
}

/* --- ends --- */

int ds_link_send_error(struct ds_link *link, struct ds_link_request *request,
                       enum ds_reply_phase phase, int r, const char *text)
{
    Ds__Error__Code code = ds_reply_error_code(phase, r);
    void *bytes = NULL;
    size_t size = 0;

    if (!*text)
        text = strerror(-r);
    if (request->kind == DS_REQUEST_GENERATE) {
        Ds__Error error = DS__ERROR__INIT;

        error.code = code;
        error.text = (char *) text;
        return send_early_end(link, request, NULL, &error);
    }
    r = ds_reply_error(code, text, &bytes, &size);
    if (r == 0)
        r = ds_link_send_bytes(link, request, DS_CQE_ERROR, bytes, size);
    ds_requests_remove(&link->requests, request);
    return r;
}

int ds_link_send_cancelled(struct ds_link *link, struct ds_link_request *request)
{
    void *bytes = NULL;
    size_t size = 0;
    int r;

    if (request->kind == DS_REQUEST_GENERATE) {
        Ds__GenerateResult result = DS__GENERATE_RESULT__INIT;

        result.reason = DS__REASON__REASON_CANCELLED;
        return send_early_end(link, request, &result, NULL);
    }
    r = ds_reply_cancelled(&bytes, &size);
    return r < 0 ? r : ds_link_send_final(link, request, bytes, size);
}

int ds_link_send_stray_error(struct ds_link *link, uint64_t req_id, Ds__Error__Code code,
                             const char *text)
{
    void *bytes = NULL;
    size_t size = 0;
    uint32_t seq = 0;
    int r;

    r = ds_reply_error(code, text, &bytes, &size);
    return r < 0 ? r
                 : ds_outbox_put(&link->outbox, req_id, DS_CQE_ERROR, &seq, bytes, size,
                                 link->piece_max, true);
}

int ds_link_send_pong(struct ds_link *link, uint64_t req_id)
{
    uint32_t seq = 0;

    return ds_outbox_put(&link->outbox, req_id, DS_CQE_PONG, &seq, NULL, 0, link->piece_max, false);
}

/* --- steps --- */

static int finish_score(struct ds_link *link, struct ds_link_request *request,
                        const struct ds_output *output)
{
    void *bytes = NULL;
    size_t size = 0;
    int r;

    switch (output->finish) {
    case DS_FINISH_CANCELLED:
        return ds_link_send_cancelled(link, request);
    case DS_FINISH_DEADLINE:
        return ds_link_send_error(
            link, request, DS_REPLY_REQUEST, -ETIME,
            "the deadline passed before the text was scored; allow more time");
    case DS_FINISH_ERROR:
        return ds_link_send_error(link, request, DS_REPLY_REQUEST, output->error_code,
                                  output->error ? output->error : "");
    default:
        r = ds_reply_score(output, link->stepping->tokenizer, &bytes, &size);
        return r < 0 ? r : ds_link_send_final(link, request, bytes, size);
    }
}

static void take_output(void *arg, const struct ds_output *output)
{
    struct ds_link *link = arg;
    struct ds_link_request *request;
    int r = 0;

    if (link->failure < 0)
        return;
    request = ds_requests_find(&link->requests, output->id);
    assert(request);
    if (request->kind == DS_REQUEST_GENERATE)
        r = send_output(link, request, output);
    else if (output->finish)
        r = finish_score(link, request, output);
    link->failure = r;
}

int ds_link_step(struct ds_link *link, struct ds_link_model *model)
{
    int r;

    link->stepping = model;
    r = ds_scheduler_step(model->scheduler, take_output, link);
    link->stepping = NULL;
    if (r < 0)
        return ds_error_set(&link->error, r, "model %s: the %s backend failed: %s", model->name,
                            link->environment.backend->name, strerror(-r));
    if (link->failure < 0)
        return link->failure;
    return flush_step(link);
}

void ds_link_ring(struct ds_link *link)
{
    if (ds_channel_bell_due(link->channel))
        ds_channel_ring_bell(link->channel);
}

int ds_link_flush(struct ds_link *link)
{
    int r;

    if (ds_outbox_empty(&link->outbox))
        return 0;
    r = ds_outbox_flush(&link->outbox, link->channel);
    if (r < 0)
        return ds_error_set(&link->error, r, "the completion ring is broken: %s", strerror(-r));
    ds_link_ring(link);
    return 0;
}
