/* SPDX-License-Identifier: Apache-2.0 */
#include "client/internal.h"

static int pack(struct ds *ds, const void *message, struct ds_client_buffer *buffer)
{
    size_t size = ds_message_size(message);
    int r;

    if (size > DS_PAYLOAD_BYTES_MAX)
        return ds_error_set(&ds->error, -EMSGSIZE,
                            "a request of %zu bytes is larger than dsd takes (%u)", size,
                            DS_PAYLOAD_BYTES_MAX);
    r = ds_client_buffer_reserve(buffer, size);
    if (r == 0)
        r = ds_message_pack(message, buffer->bytes, buffer->capacity, &buffer->size);
    if (r < 0)
        return ds_error_set(&ds->error, r, "a request cannot be packed: %s", strerror(-r));
    return 0;
}

static ProtobufCBinaryData bytes_of(const char *text)
{
    return (ProtobufCBinaryData){ .len = strlen(text), .data = (uint8_t *) text };
}

static int check(struct ds *ds, const struct ds_request *request)
{
    int inputs = (request->prompt != NULL) + (request->n_turns > 0) + (request->n_tokens > 0);

    if (inputs != 1)
        return ds_error_set(&ds->error, -EINVAL,
                            "a request takes exactly one of prompt, turns and tokens");
    if (!request->model == !request->attachment)
        return ds_error_set(&ds->error, -EINVAL,
                            "a request names a model or an attachment, and not both");
    if (request->lora && request->lora_attachment)
        return ds_error_set(&ds->error, -EINVAL,
                            "a request names one adapter: lora or lora_attachment");
    if (request->draft && request->draft_attachment)
        return ds_error_set(&ds->error, -EINVAL,
                            "a request names one draft model: draft or draft_attachment");
    if (request->n_turns > DS_MESSAGES_MAX)
        return ds_error_set(&ds->error, -EINVAL, "%zu chat turns are more than %u",
                            request->n_turns, DS_MESSAGES_MAX);
    if (request->n_stop > DS_STOP_STRINGS_MAX)
        return ds_error_set(&ds->error, -EINVAL, "%zu stop strings are more than %u",
                            request->n_stop, DS_STOP_STRINGS_MAX);
    if (request->logprobs > DS_LOGPROBS_MAX)
        return ds_error_set(&ds->error, -EINVAL, "%u log-probabilities a token are more than %u",
                            request->logprobs, DS_LOGPROBS_MAX);
    for (size_t i = 0; i < request->n_stop; i++)
        if (!request->stop[i][0] || strlen(request->stop[i]) > DS_STOP_BYTES_MAX)
            return ds_error_set(&ds->error, -EINVAL, "stop string %zu has not 1 to %u bytes", i + 1,
                                DS_STOP_BYTES_MAX);
    for (size_t i = 0; i < request->n_turns; i++)
        if (!request->turns[i].role || !request->turns[i].content)
            return ds_error_set(&ds->error, -EINVAL, "chat turn %zu lacks a role or a content",
                                i + 1);
    return 0;
}

static int fill_sampling(struct ds *ds, const struct ds_request *request, Ds__Sampling *sampling)
{
    int r = 0;

    if (request->set & DS_SET_TEMPERATURE) {
        sampling->has_temperature_case = DS__SAMPLING__HAS_TEMPERATURE_TEMPERATURE;
        sampling->temperature = request->temperature;
    }
    if (request->set & DS_SET_TOP_K) {
        sampling->has_top_k_case = DS__SAMPLING__HAS_TOP_K_TOP_K;
        sampling->top_k = request->top_k;
    }
    if (request->set & DS_SET_TOP_P) {
        sampling->has_top_p_case = DS__SAMPLING__HAS_TOP_P_TOP_P;
        sampling->top_p = request->top_p;
    }
    if (request->set & DS_SET_MIN_P) {
        sampling->has_min_p_case = DS__SAMPLING__HAS_MIN_P_MIN_P;
        sampling->min_p = request->min_p;
    }
    if (request->set & DS_SET_REPEAT_PENALTY) {
        sampling->has_repeat_penalty_case = DS__SAMPLING__HAS_REPEAT_PENALTY_REPEAT_PENALTY;
        sampling->repeat_penalty = request->repeat_penalty;
    }
    sampling->seed = request->seed;
    if (!(request->set & DS_SET_SEED))
        r = ds_client_random(&sampling->seed, sizeof sampling->seed);
    if (r < 0)
        return ds_error_set(&ds->error, r, "no random seed to be had: %s", strerror(-r));
    return 0;
}

/* What the turns of a request become; everything points into the request. */
struct chat {
    Ds__ChatMessage *messages; /* [n_turns] */
    Ds__ChatMessage **pointers;
};

static void chat_deinit(struct chat *chat)
{
    free(chat->messages);
    free(chat->pointers);
}

static int chat_init(struct chat *chat, const struct ds_request *request, Ds__ChatMessages *ret)
{
    chat->messages = calloc(request->n_turns, sizeof *chat->messages);
    chat->pointers = calloc(request->n_turns, sizeof(Ds__ChatMessage *));
    if (!chat->messages || !chat->pointers)
        return -ENOMEM;
    for (size_t i = 0; i < request->n_turns; i++) {
        ds__chat_message__init(&chat->messages[i]);
        chat->messages[i].role = (char *) request->turns[i].role;
        chat->messages[i].content = bytes_of(request->turns[i].content);
        chat->pointers[i] = &chat->messages[i];
    }
    ret->n_messages = request->n_turns;
    ret->messages = chat->pointers;
    return 0;
}

static void fill_lora(const struct ds_request *request, Ds__LoraRef *lora)
{
    if (request->lora)
        lora->name = (char *) request->lora;
    lora->attachment = request->lora_attachment;
    if (request->set & DS_SET_LORA_SCALE) {
        lora->has_scale_case = DS__LORA_REF__HAS_SCALE_SCALE;
        lora->scale = request->lora_scale;
    }
}

int ds_client_pack(struct ds *ds, const struct ds_request *request, struct ds_client_buffer *buffer)
{
    ds_cleanup(chat_deinit) struct chat turns = { 0 };
    ProtobufCBinaryData stop[DS_STOP_STRINGS_MAX];
    Ds__Request message = DS__REQUEST__INIT;
    Ds__Generate generate = DS__GENERATE__INIT;
    Ds__ModelRef model = DS__MODEL_REF__INIT, draft = DS__MODEL_REF__INIT;
    Ds__Sampling sampling = DS__SAMPLING__INIT;
    Ds__ChatMessages chat = DS__CHAT_MESSAGES__INIT;
    Ds__TokenIds tokens = DS__TOKEN_IDS__INIT;
    Ds__LoraRef lora = DS__LORA_REF__INIT;
    Ds__Input input;
    int r;

    ds__input__init(&input);
    r = check(ds, request);
    if (r < 0)
        return r;
    r = fill_sampling(ds, request, &sampling);
    if (r < 0)
        return r;
    if (request->model)
        model.name = (char *) request->model;
    model.attachment = request->attachment;
    if (request->prompt) {
        input.kind_case = DS__INPUT__KIND_TEXT;
        input.text = bytes_of(request->prompt);
    } else if (request->n_turns) {
        r = chat_init(&turns, request, &chat);
        if (r < 0)
            return ds_error_set(&ds->error, r, "out of memory");
        input.kind_case = DS__INPUT__KIND_CHAT;
        input.chat = &chat;
    } else {
        tokens.n_ids = request->n_tokens;
        tokens.ids = (uint32_t *) request->tokens;
        input.kind_case = DS__INPUT__KIND_TOKENS;
        input.tokens = &tokens;
    }
    for (size_t i = 0; i < request->n_stop; i++)
        stop[i] = bytes_of(request->stop[i]);
    generate.model = &model;
    generate.input = &input;
    generate.sampling = &sampling;
    generate.max_tokens = request->max_tokens;
    generate.n_stop = request->n_stop;
    generate.stop = stop;
    generate.ignore_eos = request->ignore_eos != 0;
    generate.logprobs = request->logprobs;
    generate.want_logprobs = request->logprobs > 0;
    generate.deadline_nsec = request->deadline_nsec;
    fill_lora(request, &lora);
    if (request->lora || request->lora_attachment)
        generate.lora = &lora;
    generate.speculation = (Ds__Speculation) request->speculation;
    if (request->draft)
        draft.name = (char *) request->draft;
    draft.attachment = request->draft_attachment;
    if (request->draft || request->draft_attachment)
        generate.draft_model = &draft;
    message.op_case = DS__REQUEST__OP_GENERATE;
    message.generate = &generate;
    return pack(ds, &message, buffer);
}

int ds_client_adopt(struct ds *ds, const void *bytes, size_t size,
                    struct ds_client_request *request)
{
    ds_cleanup(ds_message_free_p) Ds__Request *message = NULL;
    Ds__Sampling sampling = DS__SAMPLING__INIT;
    int r;

    r = ds_message_unpack(&ds__request__descriptor, bytes, size, &message);
    if (r < 0)
        return ds_error_set(&ds->error, r == -ENOMEM ? r : -EINVAL,
                            "ds_send: these bytes are no ds.Request (%s)", strerror(-r));
    request->kind = DS_CLIENT_CONTROL;
    request->once = message->op_case == DS__REQUEST__OP_CANCEL;
    if (message->op_case != DS__REQUEST__OP_GENERATE)
        return ds_client_buffer_append(&request->packed, bytes, size);

    request->kind = DS_CLIENT_GENERATE;
    request->deadline_nsec = message->generate->deadline_nsec;
    if (message->generate->delivered && message->generate->delivered->n_ids) {
        r = ds_client_buffer_append(&request->ids, message->generate->delivered->ids,
                                    message->generate->delivered->n_ids * sizeof(uint32_t));
        if (r < 0)
            return r;
    }
    if (message->generate->sampling && message->generate->sampling->seed)
        return ds_client_buffer_append(&request->packed, bytes, size);
    if (!message->generate->sampling)
        message->generate->sampling = &sampling;
    r = ds_client_random(&message->generate->sampling->seed, sizeof(uint64_t));
    if (r == 0)
        r = pack(ds, message, &request->packed);
    return r;
}

int ds_client_repack(const struct ds_client_request *request, const void **ret_bytes,
                     size_t *ret_size, void **ret_fresh)
{
    ds_cleanup(ds_message_free_p) Ds__Request *message = NULL;
    Ds__TokenIds delivered = DS__TOKEN_IDS__INIT;
    int r;

    *ret_fresh = NULL;
    if (request->ids.size == 0) {
        *ret_bytes = request->packed.bytes;
        *ret_size = request->packed.size;
        return 0;
    }
    r = ds_message_unpack(&ds__request__descriptor, request->packed.bytes, request->packed.size,
                          &message);
    if (r < 0)
        return r;
    delivered.n_ids = request->ids.size / sizeof(uint32_t);
    delivered.ids = (uint32_t *) request->ids.bytes;
    message->generate->delivered = &delivered;
    r = ds_message_pack_new(message, ret_fresh, ret_size);
    *ret_bytes = *ret_fresh;
    return r;
}
