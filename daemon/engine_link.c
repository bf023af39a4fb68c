/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_link.c - requests to the engine and what it answers.
 */
#include "daemon/engine_process.h"

#include "daemon/call.h"
#include "daemon/log.h"
#include "daemon/lora.h"
#include "daemon/residency.h"
#include "daemon/server.h"

#define NSEC_PER_SEC     UINT64_C(1000000000)
#define COMPLETIONS_MAX  256 /* taken in one turn */
#define PIECES_BYTES_MAX (64u << 20)
#define RUNNING_MAX      4000u /* calls in the engine; its ring keeps an end for each */

/* --- hang --- */

static bool loading(const struct ds_server *server)
{
    const struct ds_resident *resident;
    const struct ds_lora *lora;

    ds_list_each(resident, &server->residents, link)
    {
        if (resident->state == DS_RESIDENT_LOADING)
            return true;
        ds_list_each(lora, &resident->loras, link)
        {
            if (lora->state == DS_LORA_LOADING)
                return true;
        }
    }
    return false;
}

static void on_hang_check(void *owner);

/* The timer runs only while the engine has work. */
static void watch_for_hang(struct ds_engine_process *engine)
{
    struct ds_server *server = engine->server;

    if (engine->hang.slot == 0)
        (void) ds_timer_set(server->loop, &engine->hang,
                            ds_now_nsec() + server->config.hang_sec * NSEC_PER_SEC / 4,
                            on_hang_check, engine);
}

static void on_hang_check(void *owner)
{
    struct ds_engine_process *engine = owner;
    struct ds_server *server = engine->server;
    bool loads = loading(server);
    uint64_t now = ds_now_nsec(), life, limit;

    if (engine->state != DS_ENGINE_RUNNING || (engine->n_running == 0 && !loads))
        return;
    life = ds_channel_heartbeat(engine->channel);
    if (life > now || life < engine->sign_of_life_nsec) /* it may not promise the future */
        life = engine->sign_of_life_nsec;
    limit = (loads && server->config.load_sec > server->config.hang_sec ? server->config.load_sec
                                                                        : server->config.hang_sec) *
            NSEC_PER_SEC;
    if (now - life > limit)
        ds_engine_process_condemn(engine, "no sign of life for hang_sec while work is queued");
    else
        watch_for_hang(engine);
}

/* --- out --- */

void ds_engine_link_ring(struct ds_engine_process *engine)
{
    if (!engine->ring_due)
        return;
    engine->ring_due = false;
    if (engine->channel && ds_channel_bell_due(engine->channel))
        ds_bell_ring(engine->bell);
    watch_for_hang(engine);
}

/* Packs message into the arena and submits it. */
static int submit(struct ds_engine_process *engine, const struct ds_sqe *entry, const void *message)
{
    size_t size = ds_message_size(message);
    void *payload;
    int r;

    r = ds_channel_reserve(engine->channel, size, &payload);
    if (r != 0)
        return r;
    r = ds_message_pack(message, payload, size, &size);
    if (r < 0)
        return r;
    r = ds_channel_submit(engine->channel, entry, size);
    if (r == 0)
        engine->ring_due = true;
    return r;
}

int ds_engine_link_cancel(struct ds_engine_process *engine, uint64_t engine_id)
{
    struct ds_sqe entry = { .op = DS_SQE_CANCEL, .req_id = engine_id };
    int r;

    if (engine->state != DS_ENGINE_RUNNING)
        return -ENOTCONN;
    r = ds_channel_submit(engine->channel, &entry, 0);
    if (r == 0)
        engine->ring_due = true;
    return r;
}

int ds_engine_link_unload(struct ds_engine_process *engine, uint32_t model_id, uint64_t engine_id)
{
    struct ds_sqe entry = { .op = DS_SQE_SUBMIT, .req_id = engine_id };
    Ds__LinkRequest request = DS__LINK_REQUEST__INIT;
    Ds__LinkUnload unload = DS__LINK_UNLOAD__INIT;

    if (engine->state != DS_ENGINE_RUNNING)
        return -ENOTCONN;
    request.model_id = model_id;
    request.op_case = DS__LINK_REQUEST__OP_UNLOAD;
    request.unload = &unload;
    return submit(engine, &entry, &request);
}

int ds_engine_link_lora_unload(struct ds_engine_process *engine, uint32_t model_id,
                               uint32_t lora_id, uint64_t engine_id)
{
    struct ds_sqe entry = { .op = DS_SQE_SUBMIT, .req_id = engine_id };
    Ds__LinkRequest request = DS__LINK_REQUEST__INIT;
    Ds__LinkLoraUnload unload = DS__LINK_LORA_UNLOAD__INIT;

    if (engine->state != DS_ENGINE_RUNNING)
        return -ENOTCONN;
    unload.lora_id = lora_id;
    request.model_id = model_id;
    request.op_case = DS__LINK_REQUEST__OP_LORA_UNLOAD;
    request.lora_unload = &unload;
    return submit(engine, &entry, &request);
}

/* What the client had when it submitted, and then what the log has. */
static uint32_t *all_delivered(const struct ds_call *call, const Ds__TokenIds *given, size_t *ret_n)
{
    size_t n_given = given ? given->n_ids : 0;
    uint32_t *ids = calloc(n_given + call->log.n_ids + 1, sizeof(*ids));

    if (!ids)
        return NULL;
    if (n_given)
        memcpy(ids, given->ids, n_given * sizeof(*ids));
    if (call->log.n_ids)
        memcpy(ids + n_given, call->log.ids, call->log.n_ids * sizeof(*ids));
    *ret_n = n_given + call->log.n_ids;
    return ids;
}

static int submit_generate(struct ds_call *call, const struct ds_sqe *entry, Ds__LinkRequest *link,
                           Ds__Generate *generate)
{
    Ds__TokenIds delivered = DS__TOKEN_IDS__INIT, *given = generate->delivered;
    Ds__ModelRef *model = generate->model;
    ds_cleanup(ds_free_p) uint32_t *ids = all_delivered(call, given, &delivered.n_ids);
    int r;

    if (!ids)
        return -ENOMEM;
    delivered.ids = ids;
    generate->delivered = delivered.n_ids ? &delivered : NULL;
    generate->model = NULL;
    generate->deadline_nsec = call->deadline_nsec;
    link->op_case = DS__LINK_REQUEST__OP_GENERATE;
    link->generate = generate;
    r = submit(&call->server->engine, entry, link);
    generate->delivered = given; /* whoever unpacked it frees it */
    generate->model = model;
    return r;
}

/* The files of a model that is only to be looked at. */
static int submit_show(struct ds_call *call, uint64_t engine_id)
{
    struct ds_engine_process *engine = &call->server->engine;
    Ds__LinkLoad load = DS__LINK_LOAD__INIT;
    unsigned sent = 0;
    int r;

    load.req_id = engine_id;
    load.name = call->files->name;
    load.n_files = call->files->n_files;
    load.inspect_only = true;
    load.want_tensors = call->want_tensors;
    load.verify = call->verify;
    r = ds_engine_process_load(engine, &load, call->files, &sent);
    if (r == -EAGAIN && sent == 0)
        return DS_CHANNEL_FULL;
    return r < 0 ? -EPROTO : 0; /* half a load cannot be taken back */
}

static int submit_call(struct ds_call *call, uint64_t engine_id)
{
    ds_cleanup(ds_message_free_p) Ds__Request *request = NULL;
    Ds__LinkRequest link = DS__LINK_REQUEST__INIT;
    struct ds_sqe entry = { .op = DS_SQE_SUBMIT,
                            .req_id = engine_id,
                            .deadline_ns = call->deadline_nsec };
    int r;

    if (call->files)
        return submit_show(call, engine_id);
    r = ds_message_unpack(&ds__request__descriptor, call->packed, call->packed_size, &request);
    if (r < 0)
        return r;
    link.model_id = call->resident->id;
    link.uid = call->uid;
    link.submitted_nsec = call->submitted_nsec;
    if (call->lora) {
        link.lora_id = call->lora->id;
        link.lora_scale = call->lora_scale;
    }
    if (call->draft)
        link.draft_id = call->draft->id;
    switch (call->op) {
    case DS__REQUEST__OP_GENERATE:
        entry.resume_from = call->n_given + call->log.n_ids;
        return submit_generate(call, &entry, &link, request->generate);
    case DS__REQUEST__OP_TOKENIZE:
        link.op_case = DS__LINK_REQUEST__OP_TOKENIZE;
        link.tokenize = request->tokenize;
        break;
    case DS__REQUEST__OP_DETOKENIZE:
        link.op_case = DS__LINK_REQUEST__OP_DETOKENIZE;
        link.detokenize = request->detokenize;
        break;
    case DS__REQUEST__OP_TEMPLATE:
        link.op_case = DS__LINK_REQUEST__OP_TEMPLATE;
        link.template_ = request->template_;
        break;
    case DS__REQUEST__OP_SCORE:
        link.op_case = DS__LINK_REQUEST__OP_SCORE;
        link.score = request->score;
        break;
    case DS__REQUEST__OP_LIMITS:
        link.op_case = DS__LINK_REQUEST__OP_LIMITS;
        link.limits = request->limits;
        break;
    default:
        return -EINVAL;
    }
    return submit(&call->server->engine, &entry, &link);
}

static bool is_suspect(const struct ds_call *call)
{
    return call->crash_points > DS_CRASH_POINTS;
}

static bool may_go(const struct ds_engine_process *engine, const struct ds_call *call)
{
    bool model_there =
        call->files || (call->resident && call->resident->state == DS_RESIDENT_RESIDENT);

    return call->state == DS_CALL_WAITING && !call->withdrawn && model_there &&
           ds_lora_ready(call) && ds_draft_ready(call) && engine->n_running < RUNNING_MAX &&
           !(is_suspect(call) && engine->probation);
}

void ds_engine_link_pump(struct ds_engine_process *engine)
{
    struct ds_server *server = engine->server;
    struct ds_call *call;
    int r;

    server->n_waiting = 0;
    if (engine->state != DS_ENGINE_RUNNING)
        return;
    ds_list_each(call, &server->calls, link)
    {
        if (call->cancel_due)
            call->cancel_due = ds_engine_link_cancel(engine, call->engine_id) != 0;
        if (call->state == DS_CALL_WAITING || call->cancel_due)
            server->n_waiting++;
        if (!may_go(engine, call))
            continue;
        r = submit_call(call, server->next_id + 1);
        if (r == DS_CHANNEL_FULL)
            return;
        if (r == 0) {
            server->n_waiting--;
            ds_call_sent(call, ++server->next_id);
            if (is_suspect(call))
                engine->probation = call;
        } else if (r == -EPROTO) {
            ds_engine_process_condemn(engine, "it lied about its rings, or takes no files");
            return;
        } else {
            ds_call_fail(call, r == -EMSGSIZE ? DS__ERROR__CODE__TOO_LONG : DS__ERROR__CODE__BUSY,
                         0, "the request cannot be passed to the engine: %s", strerror(-r));
        }
    }
}

/* --- in: pieces --- */

static void piece_free(struct ds_engine_process *engine, struct ds_assembly *assembly)
{
    engine->assembly_bytes -= assembly->capacity;
    ds_list_remove(&assembly->link);
    free(assembly->bytes);
    free(assembly);
}

void ds_engine_link_forget_pieces(struct ds_engine_process *engine)
{
    struct ds_assembly *assembly;

    ds_list_each(assembly, &engine->assemblies, link) piece_free(engine, assembly);
}

static struct ds_assembly *piece_find(struct ds_engine_process *engine, const struct ds_cqe *entry)
{
    struct ds_assembly *assembly;

    ds_list_each(assembly, &engine->assemblies, link)
    {
        if (assembly->req_id == entry->req_id && assembly->type == entry->type)
            return assembly;
    }
    return NULL;
}

/* Appends one piece. -ENOBUFS: more than an honest engine would send. */
static int piece_add(struct ds_engine_process *engine, const struct ds_cqe *entry,
                     const void *payload, struct ds_assembly **ret_assembly)
{
    struct ds_assembly *assembly = piece_find(engine, entry);
    size_t capacity;
    uint8_t *bytes;

    if (!assembly) {
        assembly = calloc(1, sizeof(*assembly));
        if (!assembly)
            return -ENOMEM;
        assembly->req_id = entry->req_id;
        assembly->type = entry->type;
        ds_list_append(&engine->assemblies, &assembly->link);
    }
    capacity = assembly->size + entry->len;
    if (capacity > assembly->capacity) {
        capacity = capacity * 2;
        if (engine->assembly_bytes + capacity > PIECES_BYTES_MAX)
            return -ENOBUFS;
        bytes = realloc(assembly->bytes, capacity);
        if (!bytes)
            return -ENOMEM;
        engine->assembly_bytes += capacity - assembly->capacity;
        assembly->bytes = bytes;
        assembly->capacity = capacity;
    }
    if (entry->len)
        memcpy(assembly->bytes + assembly->size, payload, entry->len);
    assembly->size += entry->len;
    *ret_assembly = assembly;
    return 0;
}

/* --- in: messages; negative: the engine lied --- */

static int take_output(struct ds_engine_process *engine, const Ds__LinkTokens *output)
{
    struct ds_server *server = engine->server;
    struct ds_call *call = ds_call_by_engine(server, output->req_id);
    Ds__Reply reply = DS__REPLY__INIT;

    if (!call)
        return 0; /* ended, cancelled or withdrawn meanwhile */
    if (call->op != DS__REQUEST__OP_GENERATE)
        return -EPROTO;
    if (output->prompt_tokens)
        call->prompt_tokens = output->prompt_tokens;
    engine->failures = 0;
    if (output->chunk) {
        ds_call_tokens(call, output->chunk);
        call = ds_call_by_engine(server, output->req_id);
    }
    if (call && call == engine->probation && call->crash_points == 0)
        engine->probation = NULL; /* acquitted: the next suspect may try */
    if (!call)
        return 0;
    if (output->error) {
        ds_call_error(call, output->error);
    } else if (output->result) {
        reply.result_case = DS__REPLY__RESULT_GENERATE;
        reply.generate = output->result;
        ds_call_reply(call, &reply);
    }
    return 0;
}

static int take_step(struct ds_engine_process *engine, const void *bytes, size_t size)
{
    ds_cleanup(ds_message_free_p) Ds__LinkStep *step = NULL;
    int r;

    r = ds_message_unpack(&ds__link_step__descriptor, bytes, size, &step);
    for (size_t i = 0; r == 0 && i < step->n_outputs; i++)
        r = take_output(engine, step->outputs[i]);
    return r;
}

static int take_final(struct ds_engine_process *engine, uint64_t req_id, const void *bytes,
                      size_t size)
{
    struct ds_server *server = engine->server;
    struct ds_resident *resident = ds_resident_by_engine(server, req_id);
    struct ds_call *call = ds_call_by_engine(server, req_id);
    struct ds_lora *lora = resident || call ? NULL : ds_lora_by_engine(server, req_id);
    ds_cleanup(ds_message_free_p) Ds__LinkReply *link = NULL;
    int r;

    if (!resident && !call && !lora)
        return 0;
    r = ds_message_unpack(&ds__link_reply__descriptor, bytes, size, &link);
    if (r < 0)
        return r;
    if (resident && resident->state == DS_RESIDENT_LOADING) {
        ds_resident_loaded(resident, link->model);
    } else if (resident && resident->state == DS_RESIDENT_UNLOADING) {
        ds_resident_unloaded(resident);
    } else if (lora) {
        ds_lora_answered(lora, link->lora);
    } else if (call) {
        if (!link->reply || link->reply->result_case == DS__REPLY__RESULT__NOT_SET)
            return -EPROTO;
        ds_call_reply(call, link->reply);
    }
    return 0;
}

static int take_error(struct ds_engine_process *engine, uint64_t req_id, const void *bytes,
                      size_t size)
{
    struct ds_server *server = engine->server;
    struct ds_resident *resident = ds_resident_by_engine(server, req_id);
    struct ds_call *call = ds_call_by_engine(server, req_id);
    struct ds_lora *lora = resident || call ? NULL : ds_lora_by_engine(server, req_id);
    ds_cleanup(ds_message_free_p) Ds__Error *error = NULL;
    int r;

    r = ds_message_unpack(&ds__error__descriptor, bytes, size, &error);
    if (r < 0)
        return r;
    if (resident && resident->state == DS_RESIDENT_UNLOADING)
        ds_resident_unloaded(resident);
    else if (resident)
        ds_resident_failed(resident, error);
    else if (lora && lora->state == DS_LORA_UNLOADING)
        ds_lora_answered(lora, NULL);
    else if (lora)
        ds_lora_failed(lora, error);
    else if (call)
        ds_call_error(call, error);
    return 0;
}

static int take_notice(struct ds_engine_process *engine, uint64_t req_id, const void *bytes,
                       size_t size)
{
    struct ds_server *server = engine->server;
    struct ds_resident *resident = ds_resident_by_engine(server, req_id);
    ds_cleanup(ds_message_free_p) Ds__Progress *progress = NULL;
    struct ds_call *call;
    int r;

    r = ds_message_unpack(&ds__progress__descriptor, bytes, size, &progress);
    if (r < 0)
        return r;
    if (!resident) {
        call = ds_call_by_engine(server, req_id);
        if (call)
            ds_call_progress(call, progress->stage, progress->fraction);
        return 0;
    }
    resident->fraction = progress->fraction;
    ds_list_each(call, &resident->calls, in_resident)
        ds_call_progress(call, progress->stage, progress->fraction);
    ds_list_each(call, &resident->drafts, in_draft)
        ds_call_progress(call, progress->stage, progress->fraction);
    return 0;
}

static int take(struct ds_engine_process *engine, uint16_t type, uint64_t req_id, const void *bytes,
                size_t size)
{
    switch (type) {
    case DS_CQE_STEP:
        return take_step(engine, bytes, size);
    case DS_CQE_FINAL:
        return take_final(engine, req_id, bytes, size);
    case DS_CQE_ERROR:
        return take_error(engine, req_id, bytes, size);
    case DS_CQE_NOTICE:
        return take_notice(engine, req_id, bytes, size);
    case DS_CQE_ACCEPTED:
    case DS_CQE_PONG:
        return 0;
    default:
        return -EPROTO;
    }
}

static int take_entry(struct ds_engine_process *engine, const struct ds_cqe *entry,
                      const void *payload)
{
    struct ds_assembly *assembly;
    int r;

    if (!(entry->flags & DS_CQE_MORE) && !piece_find(engine, entry))
        return take(engine, entry->type, entry->req_id, payload, entry->len);
    r = piece_add(engine, entry, payload, &assembly);
    if (r < 0 || (entry->flags & DS_CQE_MORE))
        return r;
    r = take(engine, entry->type, entry->req_id, assembly->bytes, assembly->size);
    piece_free(engine, assembly);
    return r;
}

bool ds_engine_link_drain(struct ds_engine_process *engine)
{
    const void *payload;
    struct ds_cqe entry;
    int n = 0, r = 0;

    while (n < COMPLETIONS_MAX && r == 0) {
        r = ds_channel_next(engine->channel, &entry, &payload);
        if (r != DS_CHANNEL_OK)
            break;
        r = take_entry(engine, &entry, payload);
        ds_channel_done(engine->channel);
        n++;
    }
    if (n > 0) {
        engine->sign_of_life_nsec = ds_now_nsec();
        engine->ring_due = true; /* it may wait for the room that this made */
    }
    if (r < 0) {
        ds_engine_process_condemn(engine, "it broke the protocol");
        engine->lied = true;
        return false;
    }
    if (n > 0 && engine->server->n_waiting > 0)
        ds_engine_link_pump(engine);
    return n > 0;
}
