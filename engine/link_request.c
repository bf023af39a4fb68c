/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link_state.h"

#include "proto/base.h"
#include "proto/message.h"

/* How long measured limits are good for. */
#define LIMITS_NSEC (10 * UINT64_C(1000000000))

/* One request on its way through the text thread. */
struct text_task {
    struct ds_task task; /* first */
    uint64_t req_id;
    uint64_t deadline_nsec;
    struct ds_link_model *model; /* counted in n_tasks */
    Ds__LinkRequest *message;    /* owned */
    bool is_job;                 /* generate or score */
    /* results */
    int status;
    struct ds_error error;
    struct ds_job job; /* owned while job_ready */
    bool job_ready;
    void *bytes; /* the packed LinkReply */
    size_t size;
};

static struct text_task *text_task_free(struct text_task *task)
{
    if (task->job_ready)
        ds_job_deinit(&task->job);
    free(task->bytes);
    ds_message_free(task->message);
    free(task);
    return NULL;
}

static void text_task_free_p(struct text_task **task)
{
    if (*task)
        (void) text_task_free(*task);
}

/* On the text thread, or here where there is nothing to tokenise. */
static void text_task_run(struct ds_task *base)
{
    struct text_task *task = (struct text_task *) base;

    if (task->is_job) {
        task->status = ds_convert_job(task->message, &task->model->text, task->req_id,
                                      task->deadline_nsec, &task->job, &task->error);
        task->job_ready = task->status == 0;
    } else {
        task->status = ds_convert_text(task->message, &task->model->text, &task->bytes, &task->size,
                                       &task->error);
    }
}

int ds_link_finish_unload(struct ds_link *link, struct ds_link_model *model)
{
    struct ds_link_request *request = ds_requests_find(&link->requests, model->unload_req_id);
    struct ds_link_model **at = &link->models;
    void *bytes = NULL;
    size_t size = 0;
    int r;

    while (*at != model)
        at = &(*at)->next;
    *at = model->next;
    (void) ds_link_model_free(model);
    r = ds_reply_done(&bytes, &size);
    return r < 0 ? r : ds_link_send_final(link, request, bytes, size);
}

static int schedule(struct ds_link *link, struct ds_link_request *request, struct text_task *task)
{
    uint32_t lora_id = task->message->lora_id, draft_id = task->message->draft_id;
    int r;

    if (lora_id) {
        task->job.adapter = ds_adapter_ref(ds_link_lora_find(task->model, lora_id));
        task->job.adapter_scale = task->message->lora_scale;
        if (!task->job.adapter)
            return ds_link_send_error(link, request, DS_REPLY_REQUEST, -ENOENT,
                                      "the adapter is not resident in this engine; load it first");
    }
    if (draft_id && request->kind == DS_REQUEST_GENERATE) {
        r = ds_link_draft_find(link, task->model, draft_id, &task->job.drafter, &task->error);
        if (r < 0)
            return ds_link_send_error(link, request, DS_REPLY_REQUEST, r, task->error.text);
        task->job.draft = DS_DRAFT_MODEL;
    }
    task->job_ready = false; /* the scheduler takes the job, even when it fails */
    r = ds_scheduler_add(task->model->scheduler, &task->job, &task->error);
    if (r < 0)
        return ds_link_send_error(link, request, DS_REPLY_REQUEST, r, task->error.text);
    request->scheduled = true;
    return 0;
}

static int answer(struct ds_link *link, struct ds_link_request *request, struct text_task *task)
{
    if (request->dropped) {
        ds_requests_remove(&link->requests, request);
        return 0;
    }
    if (request->cancelled || task->status == -ECANCELED)
        return ds_link_send_cancelled(link, request);
    if (task->status < 0)
        return ds_link_send_error(link, request, DS_REPLY_REQUEST, task->status, task->error.text);
    if (task->is_job)
        return schedule(link, request, task);
    return ds_link_send_final(link, request, ds_steal(task->bytes), task->size);
}

static void text_task_done(struct ds_task *base, void *arg)
{
    ds_cleanup(text_task_free_p) struct text_task *task = (struct text_task *) base;
    struct ds_link_model *model = task->model;
    struct ds_link *link = arg;
    int r;

    model->n_tasks--;
    r = answer(link, ds_requests_find(&link->requests, task->req_id), task);
    if (r == 0 && model->closing && model->n_tasks == 0)
        r = ds_link_finish_unload(link, model);
    if (r < 0 && link->failure == 0)
        link->failure = r;
}

struct ds_link_model *ds_link_find_model(struct ds_link *link, uint32_t id)
{
    struct ds_link_model *model = link->models;

    while (model && (model->id != id || model->closing))
        model = model->next;
    return model;
}

static int unload(struct ds_link *link, struct ds_link_request *request,
                  struct ds_link_model *model)
{
    model->closing = true;
    model->unload_req_id = request->id;
    model->scheduler = ds_scheduler_free(model->scheduler);
    ds_link_draft_forget(link, model);
    (void) ds_requests_drop_model(&link->requests, model, request);
    return model->n_tasks ? 0 : ds_link_finish_unload(link, model);
}

/* Nobody may hold the others up with it: what was measured lately is still true. */
static int tell_limits(struct ds_link *link, struct ds_link_request *request,
                       const struct ds_link_model *model)
{
    struct ds_backend *backend = link->environment.backend;
    struct ds_model_cost cost;
    void *bytes = NULL;
    size_t size = 0;
    int r = 0;

    if (!link->limits_nsec || ds_now_nsec() - link->limits_nsec > LIMITS_NSEC) {
        r = backend->limits(backend, &link->limits);
        link->limits_nsec = r < 0 ? 0 : ds_now_nsec();
    }
    if (r < 0)
        return ds_link_send_error(link, request, DS_REPLY_REQUEST, r,
                                  "there is no memory to measure the device's limits; unload a "
                                  "model");
    ds_model_cost(model->weights, &cost);
    r = ds_reply_limits(&link->limits, &cost, &bytes, &size);
    return r < 0 ? r : ds_link_send_final(link, request, bytes, size);
}

static enum ds_request_kind kind_of(const Ds__LinkRequest *message)
{
    switch (message->op_case) {
    case DS__LINK_REQUEST__OP_GENERATE:
        return DS_REQUEST_GENERATE;
    case DS__LINK_REQUEST__OP_SCORE:
        return DS_REQUEST_SCORE;
    case DS__LINK_REQUEST__OP_UNLOAD:
    case DS__LINK_REQUEST__OP_LORA_UNLOAD:
        return DS_REQUEST_UNLOAD;
    case DS__LINK_REQUEST__OP_LIMITS:
        return DS_REQUEST_LIMITS;
    default:
        return DS_REQUEST_TEXT;
    }
}

/* Nothing to render and nothing to tokenise: the way over the text thread would only cost. */
static bool is_quick(const Ds__LinkRequest *message)
{
    const Ds__Input *input = NULL;

    if (message->op_case == DS__LINK_REQUEST__OP_GENERATE)
        input = message->generate->input;
    else if (message->op_case == DS__LINK_REQUEST__OP_SCORE)
        input = message->score->input;
    return input && input->kind_case == DS__INPUT__KIND_TOKENS;
}

/* Takes message. */
static int start_text(struct ds_link *link, struct ds_link_request *request,
                      Ds__LinkRequest *message, uint64_t deadline_nsec)
{
    struct text_task *task = calloc(1, sizeof *task);

    if (!task) {
        ds_message_free(message);
        return -ENOMEM;
    }
    task->task.run = text_task_run;
    task->task.done = text_task_done;
    task->req_id = request->id;
    task->deadline_nsec = deadline_nsec;
    task->model = request->model;
    task->message = message;
    task->is_job = request->kind != DS_REQUEST_TEXT;
    task->status = -ECANCELED; /* until it has run */
    task->model->n_tasks++;
    if (is_quick(message)) {
        text_task_run(&task->task);
        text_task_done(&task->task, link);
        return link->failure;
    }
    ds_worker_post(link->texter, &task->task);
    return 0;
}

static int submit(struct ds_link *link, const struct ds_sqe *entry, const void *payload)
{
    Ds__LinkRequest *message = NULL;
    struct ds_link_request *request;
    struct ds_link_model *model;
    int r;

    r = ds_message_unpack(&ds__link_request__descriptor, payload, entry->payload_len, &message);
    if (r < 0)
        return ds_link_send_stray_error(link, entry->req_id, DS__ERROR__CODE__INVALID,
                                        "the request does not unpack: it is malformed or too deep");
    model = ds_link_find_model(link, message->model_id);
    r = ds_requests_add(&link->requests, entry->req_id, kind_of(message), model, &request);
    if (r < 0) {
        ds_message_free(message);
        return r == -EEXIST
                   ? ds_error_set(&link->error, -EPROTO, "request id %llu was submitted twice",
                                  (unsigned long long) entry->req_id)
                   : r;
    }
    if (!model) {
        ds_message_free(message);
        return ds_link_send_error(link, request, DS_REPLY_REQUEST, -ENOENT,
                                  "the model is not resident in this engine; load it first");
    }
    if (request->kind == DS_REQUEST_UNLOAD) {
        uint32_t lora_id = message->op_case == DS__LINK_REQUEST__OP_LORA_UNLOAD
                               ? message->lora_unload->lora_id
                               : 0;

        ds_message_free(message);
        return lora_id ? ds_link_lora_unload(link, request, model, lora_id)
                       : unload(link, request, model);
    }
    if (request->kind == DS_REQUEST_LIMITS) {
        ds_message_free(message);
        return tell_limits(link, request, model);
    }
    return start_text(link, request, message, entry->deadline_ns);
}

static void cancel(struct ds_link *link, uint64_t req_id)
{
    struct ds_link_request *request = ds_requests_find(&link->requests, req_id);

    if (!request || request->kind == DS_REQUEST_UNLOAD)
        return; /* it has ended meanwhile */
    request->cancelled = true;
    if (request->scheduled)
        ds_scheduler_cancel(request->model->scheduler, req_id);
    if (request->load)
        ds_link_load_cancel(request->load);
}

static int take_entry(struct ds_link *link, const struct ds_sqe *entry, const void *payload)
{
    switch (entry->op) {
    case DS_SQE_SUBMIT:
        return submit(link, entry, payload);
    case DS_SQE_CANCEL:
        cancel(link, entry->req_id);
        return 0;
    case DS_SQE_PING:
        return ds_link_send_pong(link, entry->req_id);
    case DS_SQE_CLOSE:
        link->closing = true;
        return 0;
    default:
        return 0; /* NOP; the channel refuses what it does not know */
    }
}

/* One entry that the channel could not hand over; the next ones may be fine. */
static int refuse_entry(struct ds_link *link, uint64_t req_id, int r)
{
    if (r == -EBADMSG)
        return ds_link_send_stray_error(link, req_id, DS__ERROR__CODE__INVALID,
                                        "the ring entry is malformed");
    if (r == -ENOMEM)
        return ds_link_send_stray_error(link, req_id, DS__ERROR__CODE__BUSY,
                                        "the engine has no memory for the request; try again");
    return ds_error_set(&link->error, r, "the submission ring is broken: %s", strerror(-r));
}

int ds_link_drain(struct ds_link *link)
{
    bool any = false;

    for (;;) {
        const void *payload = NULL;
        struct ds_sqe entry;
        int r;

        r = ds_channel_receive(link->channel, &entry, &payload);
        if (r == DS_CHANNEL_EMPTY)
            break;
        any = true;
        r = r < 0 ? refuse_entry(link, entry.req_id, r) : take_entry(link, &entry, payload);
        if (r < 0)
            return r;
    }
    if (any) {
        ds_channel_release(link->channel);
        ds_link_ring(link);
    }
    return 0;
}
