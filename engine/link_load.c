/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link_state.h"
#include "engine/link_verify.h"

#include <stdatomic.h>

#include "proto/base.h"
#include "proto/message.h"
#include "shm/handshake.h"

#define NEWS_STEP_PERMILLE 20u /* progress worth a message */

/* One load, from its last descriptor to its answer. */
struct ds_load_task {
    struct ds_task task;                           /* first */
    struct ds_load_task *next;                     /* ds_link::loads */
    const struct ds_link_environment *environment; /* borrowed */
    struct ds_results *results;                    /* borrowed; to wake the loop */
    uint64_t req_id;
    struct ds_load_parts parts; /* owned */
    uint64_t begun_nsec;
    _Atomic bool cancelled;    /* writer: loop; reader: loader */
    _Atomic uint32_t permille; /* writer: loader; reader: loop */
    uint32_t permille_told;    /* loader's */
    bool stand_back;           /* other models were resident when it was asked for */
    uint32_t permille_sent;    /* loop's */
    /* results */
    int status;
    struct ds_error error;
    struct ds_link_model *model; /* owned until the loop adopts it */
    struct ds_link_model *base;  /* of an adapter: counted in its n_tasks; NULL: a model's load */
    struct ds_adapter *adapter;  /* a reference */
    void *bytes;                 /* packed LinkReply of an inspection */
    size_t size;
};

void ds_load_parts_deinit(struct ds_load_parts *parts)
{
    for (unsigned i = 0; i < parts->n_fds; i++)
        (void) close(parts->fds[i]);
    for (unsigned i = 0; i < DS_MODEL_FILES_MAX; i++)
        free(parts->file_names[i]);
    ds_message_free(parts->message);
    *parts = (struct ds_load_parts){ 0 };
}

static void load_task_free(struct ds_load_task *load)
{
    ds_load_parts_deinit(&load->parts);
    (void) ds_link_model_free(load->model);
    (void) ds_adapter_free(load->adapter);
    free(load->bytes);
    free(load);
}

/* --- on the loader thread --- */

static int take_progress(void *arg, double fraction)
{
    struct ds_load_task *load = arg;
    uint32_t permille = fraction > 0 ? (uint32_t) (fraction * 1000) : 0;

    atomic_store_explicit(&load->permille, permille, memory_order_relaxed);
    if (permille >= load->permille_told + NEWS_STEP_PERMILLE) {
        load->permille_told = permille;
        ds_results_poke(load->results);
    }
    return atomic_load_explicit(&load->cancelled, memory_order_relaxed);
}

static int inspect(struct ds_load_task *load)
{
    ds_cleanup(ds_checkpoint_free_p) struct ds_checkpoint *checkpoint = NULL;
    ds_cleanup(ds_free_p) Ds__Verification *verification = NULL;
    const Ds__LinkLoad *message = load->parts.message;
    Ds__ModelInfo info;
    int r;

    r = ds_checkpoint_open_named(&checkpoint, load->parts.fds,
                                 (const char *const *) load->parts.file_names, load->parts.n_fds,
                                 message->name, true, &load->error);
    if (r < 0)
        return r;
    ds_link_checkpoint_info(checkpoint, &info);
    info.n_files = load->parts.n_fds;
    if (message->verify)
        r = ds_link_verify(checkpoint, load->parts.fds,
                           (const char *const *) load->parts.file_names, load->parts.n_fds,
                           take_progress, load, &verification, &load->error);
    if (r < 0)
        return r;
    return ds_reply_show(checkpoint, message->want_tensors, &info, verification, &load->bytes,
                         &load->size);
}

static void load_task_run(struct ds_task *base)
{
    struct ds_load_task *load = (struct ds_load_task *) base;
    const Ds__LinkLoad *message = load->parts.message;
    struct ds_link_model_spec spec = {
        .id = message->model_id,
        .name = message->name,
        .fds = load->parts.fds,
        .file_names = (const char *const *) load->parts.file_names,
        .n_fds = load->parts.n_fds,
        .stand_back = load->stand_back,
        .context = message->context,
        .demand_context = message->demand_context,
        .kv_bytes = message->kv_bytes,
        .kv_type = message->kv_type,
        .kv_type_strict = message->kv_type_strict,
    };

    if (atomic_load_explicit(&load->cancelled, memory_order_relaxed))
        load->status = -ECANCELED;
    else if (load->base)
        load->status = ds_link_lora_make(load->base, &load->parts, &load->adapter, &load->error);
    else if (message->inspect_only)
        load->status = inspect(load);
    else
        load->status = ds_link_model_open(&load->model, &spec, load->environment, take_progress,
                                          load, &load->error);
}

/* --- on the loop thread --- */

static int send_loaded(struct ds_link *link, struct ds_link_request *request,
                       struct ds_load_task *load)
{
    Ds__LinkReply link_reply = DS__LINK_REPLY__INIT;
    Ds__LoadResult result = DS__LOAD_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    Ds__ModelInfo info;
    void *bytes = NULL;
    size_t size = 0;
    int r;

    ds_link_model_info(load->model, link->environment.backend, &info);
    info.n_files = load->parts.n_fds;
    result.model = &info;
    result.seconds = (double) (ds_now_nsec() - load->begun_nsec) / 1e9;
    reply.result_case = DS__REPLY__RESULT_LOAD;
    reply.load = &result;
    link_reply.reply = &reply;
    link_reply.model = &info;
    r = ds_message_pack_new(&link_reply, &bytes, &size);
    if (r < 0)
        return r;
    load->model->next = link->models;
    link->models = ds_steal(load->model);
    return ds_link_send_final(link, request, bytes, size);
}

/* The reader of an error sees which model it was, even where the reason does not say. */
static int send_failed(struct ds_link *link, struct ds_link_request *request,
                       struct ds_load_task *load)
{
    const char *name = load->parts.message->name;
    const char *reason = *load->error.text ? load->error.text : strerror(-load->status);
    struct ds_error named;

    if (strstr(reason, name))
        return ds_link_send_error(link, request, DS_REPLY_LOAD, load->status, reason);
    (void) ds_error_set(&named, 0, "%s %.200s cannot be loaded: %.240s",
                        load->base ? "adapter" : "model", name, reason);
    return ds_link_send_error(link, request, DS_REPLY_LOAD, load->status, named.text);
}

static int answer(struct ds_link *link, struct ds_link_request *request, struct ds_load_task *load)
{
    const Ds__LinkLoad *message = load->parts.message;

    if (request->cancelled)
        load->status = -ECANCELED;
    if (load->status == 0 && load->base && load->base->closing)
        load->status =
            ds_error_set(&load->error, -ENOENT, "%s: its model is being unloaded", message->name);
    if (load->status == 0 && load->base)
        load->status =
            ds_link_lora_adopt(load->base, message->lora_id, load->adapter, &load->error);
    if (load->status < 0)
        return send_failed(link, request, load);
    if (load->base)
        return ds_link_lora_send(link, request, load->adapter, message->name);
    if (load->bytes)
        return ds_link_send_final(link, request, ds_steal(load->bytes), load->size);
    return send_loaded(link, request, load);
}

static void load_task_done(struct ds_task *base, void *arg)
{
    struct ds_load_task *load = (struct ds_load_task *) base, **at;
    struct ds_link_model *model = load->base;
    struct ds_link *link = arg;
    int r;

    for (at = &link->loads; *at != load; at = &(*at)->next)
        ;
    *at = load->next;
    r = answer(link, ds_requests_find(&link->requests, load->req_id), load);
    load_task_free(load);
    if (model && --model->n_tasks == 0 && model->closing && r == 0)
        r = ds_link_finish_unload(link, model);
    if (r < 0 && link->failure == 0)
        link->failure = r;
}

void ds_link_load_cancel(struct ds_load_task *load)
{
    atomic_store_explicit(&load->cancelled, true, memory_order_relaxed);
}

void ds_link_load_cancel_all(struct ds_link *link)
{
    for (struct ds_load_task *load = link->loads; load; load = load->next)
        ds_link_load_cancel(load);
}

int ds_link_load_news(struct ds_link *link)
{
    for (struct ds_load_task *load = link->loads; load; load = load->next) {
        uint32_t permille = atomic_load_explicit(&load->permille, memory_order_relaxed);
        struct ds_link_request *request = ds_requests_find(&link->requests, load->req_id);
        void *bytes = NULL;
        size_t size = 0;
        int r;

        if (permille < load->permille_sent + NEWS_STEP_PERMILLE || ds_outbox_full(&link->outbox))
            continue;
        load->permille_sent = permille;
        r = ds_reply_progress(load->parts.message->verify ? "verifying" : "loading",
                              permille / 1000.0, &bytes, &size);
        if (r == 0)
            r = ds_link_send_bytes(link, request, DS_CQE_NOTICE, bytes, size);
        if (r < 0)
            return r;
    }
    return 0;
}

static bool id_is_taken(const struct ds_link *link, uint32_t id)
{
    for (const struct ds_link_model *model = link->models; model; model = model->next)
        if (model->id == id)
            return true;
    for (const struct ds_load_task *load = link->loads; load; load = load->next)
        if (load->parts.message->model_id == id && !load->parts.message->inspect_only &&
            !load->base)
            return true;
    return false;
}

/* All descriptors are here. */
static int start_load(struct ds_link *link)
{
    const Ds__LinkLoad *message = link->parts.message;
    struct ds_link_request *request = NULL;
    struct ds_load_task *load;
    int r;

    if (!message->inspect_only && !message->lora_id && id_is_taken(link, message->model_id))
        return ds_error_set(&link->error, -EPROTO, "model id %u is in use already",
                            message->model_id);
    load = calloc(1, sizeof *load);
    if (!load)
        return -ENOMEM;
    r = ds_requests_add(&link->requests, message->req_id, DS_REQUEST_LOAD, NULL, &request);
    if (r < 0) {
        free(load);
        return r == -EEXIST
                   ? ds_error_set(&link->error, -EPROTO, "a load reuses the id of a request")
                   : r;
    }
    load->parts = link->parts;
    link->parts = (struct ds_load_parts){ 0 };
    if (message->lora_id && !(load->base = ds_link_find_model(link, message->model_id))) {
        load_task_free(load);
        return ds_link_send_error(link, request, DS_REPLY_LOAD, -ENOENT,
                                  "the adapter's model is not resident in this engine");
    }
    if (load->base)
        load->base->n_tasks++;
    request->load = load;
    load->task.run = load_task_run;
    load->task.done = load_task_done;
    load->environment = &link->environment;
    load->stand_back = link->models != NULL;
    load->results = link->results;
    load->req_id = message->req_id;
    load->status = -ECANCELED; /* until it has run */
    load->begun_nsec = ds_now_nsec();
    load->next = link->loads;
    link->loads = load;
    ds_worker_post(link->loader, &load->task);
    return 0;
}

/* The names of the descriptors that come with this message: for all or for none. */
static int join_names(struct ds_link *link, const Ds__LinkLoad *message, unsigned n_fds)
{
    struct ds_load_parts *parts = &link->parts;

    if (n_fds > parts->message->n_files - parts->n_fds)
        return ds_error_set(&link->error, -EPROTO, "a load has more descriptors than files");
    if (message->n_file_names != 0 && message->n_file_names != n_fds)
        return ds_error_set(&link->error, -EPROTO, "a load names %zu of its %u files",
                            message->n_file_names, n_fds);
    for (unsigned i = 0; i < message->n_file_names; i++) {
        parts->file_names[parts->n_fds + i] = strdup(message->file_names[i]);
        if (!parts->file_names[parts->n_fds + i])
            return -ENOMEM;
    }
    return 0;
}

/* The first datagram of a load says everything; the later ones must say the same. */
static int join_parts(struct ds_link *link, Ds__LinkLoad *message)
{
    struct ds_load_parts *parts = &link->parts;
    if (!parts->message) {
        parts->message = message; /* owned from now on */
        return message->n_files > 0 && message->n_files <= DS_MODEL_FILES_MAX
                   ? 0
                   : ds_error_set(&link->error, -EPROTO, "a load of %u files; 1 to %u are possible",
                                  message->n_files, DS_MODEL_FILES_MAX);
    }
    return message->req_id == parts->message->req_id && message->n_files == parts->message->n_files
               ? 0
               : ds_error_set(&link->error, -EPROTO, "a load began before the last one was whole");
}

int ds_link_load_datagram(struct ds_link *link, const void *bytes, size_t size, int *fds,
                          unsigned n_fds)
{
    struct ds_load_parts *parts = &link->parts;
    Ds__LinkLoad *message = NULL;
    int r;

    r = ds_message_unpack(&ds__link_load__descriptor,
                          (const uint8_t *) bytes + sizeof(struct ds_datagram),
                          size - sizeof(struct ds_datagram), &message);
    if (r < 0)
        r = ds_error_set(&link->error, -EPROTO, "a LOAD datagram does not unpack");
    else
        r = join_parts(link, message);
    if (r == 0)
        r = join_names(link, message, n_fds);
    if (message != parts->message)
        ds_message_free(message);
    if (r < 0) {
        for (unsigned i = 0; i < n_fds; i++)
            (void) close(fds[i]);
        return r;
    }
    memcpy(parts->fds + parts->n_fds, fds, n_fds * sizeof *fds);
    parts->n_fds += n_fds;
    return parts->n_fds < parts->message->n_files ? 0 : start_load(link);
}
