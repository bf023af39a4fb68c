/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link_convert.h"

#include <math.h>

#include "proto/base.h"
#include "proto/message.h"

#define LOGIT_BIAS_MAX 1024u
#define SCORE_TOP      8u

void ds_convert_sampling(const Ds__Sampling *message, const struct ds_sampling_advice *advice,
                         struct ds_sampling *ret_sampling)
{
    static const Ds__Sampling nothing_said = DS__SAMPLING__INIT;
    const Ds__Sampling *said = message ? message : &nothing_said;
    struct ds_sampling sampling = {
        .temperature = isnan(advice->temperature) ? 0.8f : advice->temperature,
        .top_k = advice->top_k < 0 ? 40 : (uint32_t) advice->top_k,
        .top_p = isnan(advice->top_p) ? 0.95f : advice->top_p,
        .min_p = isnan(advice->min_p) ? 0.05f : advice->min_p,
        .typical_p = 1,
        .repeat_penalty = isnan(advice->repeat_penalty) ? 1 : advice->repeat_penalty,
        .repeat_last_n = 64,
        .frequency_penalty = said->frequency_penalty,
        .presence_penalty = said->presence_penalty,
        .seed = said->seed,
    };

    if (said->has_temperature_case)
        sampling.temperature = said->temperature;
    if (said->has_top_k_case)
        sampling.top_k = said->top_k;
    if (said->has_top_p_case)
        sampling.top_p = said->top_p;
    if (said->has_min_p_case)
        sampling.min_p = said->min_p;
    if (said->has_typical_p_case)
        sampling.typical_p = said->typical_p;
    if (said->has_repeat_penalty_case)
        sampling.repeat_penalty = said->repeat_penalty;
    if (said->has_repeat_last_n_case)
        sampling.repeat_last_n = said->repeat_last_n;
    *ret_sampling = sampling;
}

/* --- chat --- */

static struct ds_bytes bytes_of(ProtobufCBinaryData data)
{
    return (struct ds_bytes){ .data = (const char *) data.data, .size = data.len };
}

static struct ds_bytes piece_or_nothing(const struct ds_tokenizer *tokenizer, uint32_t id)
{
    return id == DS_TOKEN_NONE ? (struct ds_bytes){ .data = "" }
                               : ds_tokenizer_piece(tokenizer, id);
}

static int render_chat(const Ds__ChatMessages *chat, const struct ds_link_text *text,
                       char **ret_text, size_t *ret_size, struct ds_error *error)
{
    ds_cleanup(ds_free_p) struct ds_chat_message *messages = NULL;
    struct ds_error reason = { "" };
    struct ds_chat rendering;
    int r;

    if (!text->tmpl)
        return ds_error_set(error, -ENOTSUP,
                            "model %s: %s; give the prompt as plain text (dsctl run --raw)",
                            text->name, text->template_reason);
    if (chat->n_messages == 0 || chat->n_messages > DS_MESSAGES_MAX)
        return ds_error_set(error, -EINVAL, "a chat has 1 to %u messages, this one has %zu",
                            DS_MESSAGES_MAX, chat->n_messages);
    messages = calloc(chat->n_messages, sizeof *messages);
    if (!messages)
        return -ENOMEM;
    for (size_t i = 0; i < chat->n_messages; i++)
        messages[i] = (struct ds_chat_message){
            .role = chat->messages[i]->role,
            .content = bytes_of(chat->messages[i]->content),
            .name = chat->messages[i]->name,
            .extra_json = bytes_of(chat->messages[i]->extra_json),
        };
    rendering = (struct ds_chat){
        .messages = messages,
        .n_messages = chat->n_messages,
        .tools_json = bytes_of(chat->tools_json),
        .variables_json = bytes_of(chat->variables_json),
        .add_generation_prompt = !chat->no_generation_prompt,
        .bos_text = piece_or_nothing(text->tokenizer, ds_tokenizer_bos(text->tokenizer)),
        .eos_text = piece_or_nothing(text->tokenizer, ds_tokenizer_eos(text->tokenizer)),
    };
    r = ds_template_render(text->tmpl, &rendering, ret_text, ret_size, &reason);
    if (r < 0)
        return ds_error_set(error, r, "model %s: its chat template refused the messages: %s",
                            text->name, *reason.text ? reason.text : strerror(-r));
    return 0;
}

/* --- input --- */

static bool opens_with_bos(const struct ds_tokenizer *tokenizer, const char *text, size_t size)
{
    struct ds_bytes bos = piece_or_nothing(tokenizer, ds_tokenizer_bos(tokenizer));

    return bos.size > 0 && size >= bos.size && memcmp(text, bos.data, bos.size) == 0;
}

static int encode(const struct ds_tokenizer *tokenizer, const char *text, size_t size,
                  uint32_t **ret_ids, size_t *ret_n_ids)
{
    unsigned flags = DS_ENCODE_SPECIAL;

    if (ds_tokenizer_adds_bos(tokenizer) && !opens_with_bos(tokenizer, text, size))
        flags |= DS_ENCODE_BOS;
    return ds_tokenizer_encode(tokenizer, text, size, flags, ret_ids, ret_n_ids);
}

static int copy_ids(const Ds__TokenIds *ids, uint32_t **ret_ids, size_t *ret_n_ids)
{
    uint32_t *copy = malloc((ids->n_ids ? ids->n_ids : 1) * sizeof *copy);

    if (!copy)
        return -ENOMEM;
    if (ids->n_ids)
        memcpy(copy, ids->ids, ids->n_ids * sizeof *copy);
    *ret_ids = copy;
    *ret_n_ids = ids->n_ids;
    return 0;
}

static int input_ids(const Ds__Input *input, const struct ds_link_text *text, uint32_t **ret_ids,
                     size_t *ret_n_ids, struct ds_error *error)
{
    ds_cleanup(ds_free_p) char *rendered = NULL;
    size_t size = 0;
    int r;

    switch (input ? input->kind_case : DS__INPUT__KIND__NOT_SET) {
    case DS__INPUT__KIND_TEXT:
        return encode(text->tokenizer, (const char *) input->text.data, input->text.len, ret_ids,
                      ret_n_ids);
    case DS__INPUT__KIND_TOKENS:
        return copy_ids(input->tokens, ret_ids, ret_n_ids);
    case DS__INPUT__KIND_CHAT:
        r = render_chat(input->chat, text, &rendered, &size, error);
        return r < 0 ? r : encode(text->tokenizer, rendered, size, ret_ids, ret_n_ids);
    default:
        return ds_error_set(error, -EINVAL, "the request has no input; give text, chat or tokens");
    }
}

int ds_convert_input(const Ds__Input *input, const struct ds_link_text *text, size_t extra,
                     uint32_t **ret_ids, size_t *ret_n_ids, struct ds_error *error)
{
    ds_cleanup(ds_free_p) uint32_t *ids = NULL;
    size_t n_ids = 0;
    uint32_t *grown;
    int r;

    r = input_ids(input, text, &ids, &n_ids, error);
    if (r < 0)
        return r;
    if (n_ids == 0)
        return ds_error_set(error, -EINVAL,
                            "model %s: the prompt is empty and the model has no opening token of "
                            "its own; give it some text",
                            text->name);
    if (n_ids > UINT32_MAX / 2 || extra > UINT32_MAX / 2)
        return ds_error_set(error, -EMSGSIZE, "model %s: a prompt of %zu tokens", text->name,
                            n_ids);
    if (extra > 0) {
        grown = realloc(ids, (n_ids + extra) * sizeof *ids);
        if (!grown)
            return -ENOMEM;
        ids = grown;
    }
    *ret_ids = ds_steal(ids);
    *ret_n_ids = n_ids;
    return 0;
}

/* --- jobs --- */

static int convert_bias(const Ds__Sampling *message, struct ds_job *job, struct ds_error *error)
{
    size_t n = message ? message->n_logit_bias : 0;

    if (n == 0)
        return 0;
    if (n > LOGIT_BIAS_MAX)
        return ds_error_set(error, -EINVAL, "logit_bias has %zu entries, the limit is %u", n,
                            LOGIT_BIAS_MAX);
    job->bias = calloc(n, sizeof *job->bias);
    if (!job->bias)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        job->bias[i].token = message->logit_bias[i]->token;
        job->bias[i].bias = message->logit_bias[i]->bias;
    }
    job->sampling.bias = job->bias;
    job->sampling.n_bias = (uint32_t) n;
    return 0;
}

/* One allocation: the array, then the strings. */
static int convert_stops(const Ds__Generate *generate, struct ds_job *job, struct ds_error *error)
{
    size_t size = generate->n_stop * sizeof *job->stops;
    char *at;

    if (generate->n_stop == 0)
        return 0;
    if (generate->n_stop > DS_STOP_STRINGS_MAX)
        return ds_error_set(error, -EINVAL, "%zu stop strings, the limit is %u", generate->n_stop,
                            DS_STOP_STRINGS_MAX);
    for (size_t i = 0; i < generate->n_stop; i++) {
        if (generate->stop[i].len == 0 || generate->stop[i].len > DS_STOP_BYTES_MAX)
            return ds_error_set(error, -EINVAL,
                                "stop string %zu has %zu bytes; it may have 1 to %u", i + 1,
                                generate->stop[i].len, DS_STOP_BYTES_MAX);
        size += generate->stop[i].len;
    }
    job->stops = malloc(size);
    if (!job->stops)
        return -ENOMEM;
    at = (char *) (job->stops + generate->n_stop);
    for (size_t i = 0; i < generate->n_stop; i++) {
        memcpy(at, generate->stop[i].data, generate->stop[i].len);
        job->stops[i] = (struct ds_bytes){ .data = at, .size = generate->stop[i].len };
        at += generate->stop[i].len;
    }
    job->n_stops = (uint32_t) generate->n_stop;
    return 0;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    if (a == 0 || b == 0)
        return a | b;
    return a < b ? a : b;
}

static int check_top(uint32_t n_top, struct ds_error *error)
{
    if (n_top > DS_LOGPROBS_MAX)
        return ds_error_set(error, -EINVAL, "%u alternatives per token, the limit is %u", n_top,
                            DS_LOGPROBS_MAX);
    return 0;
}

static int convert_speculation(Ds__Speculation said, enum ds_draft_source *ret_draft,
                               struct ds_error *error)
{
    switch (said) {
    case DS__SPECULATION__SPECULATION_DEFAULT:
        *ret_draft = DS_DRAFT_DEFAULT;
        return 0;
    case DS__SPECULATION__SPECULATION_OFF:
        *ret_draft = DS_DRAFT_OFF;
        return 0;
    case DS__SPECULATION__SPECULATION_NGRAM:
        *ret_draft = DS_DRAFT_NGRAM;
        return 0;
    case DS__SPECULATION__SPECULATION_MTP:
        *ret_draft = DS_DRAFT_MTP;
        return 0;
    default:
        return ds_error_set(error, -EINVAL,
                            "speculation %d is none this engine knows; leave it out or say off",
                            (int) said);
    }
}

/* Calls are looked for where tools were given, reasoning where the model's files know it. Whether
 * the prompt has opened it is seen in its last tokens. */
static int convert_reply(const Ds__Generate *generate, const struct ds_link_text *text,
                         struct ds_job *job, size_t n_prompt)
{
    const Ds__Input *input = generate->input;
    size_t n = n_prompt < 16 ? n_prompt : 16, size = 0;
    struct ds_reply_form form = text->form;
    ds_cleanup(ds_free_p) char *end = NULL;
    int r;

    if (input->kind_case != DS__INPUT__KIND_CHAT)
        return 0;
    if (input->chat->tools_json.len == 0)
        form.tools = DS_TOOLS_NONE;
    r = ds_tokenizer_decode(text->tokenizer, job->tokens + n_prompt - n, n, false, false, &end,
                            &size);
    if (r < 0)
        return r;
    return ds_reply_new(&job->reply, form,
                        form.reasons && ds_reply_opened_by((struct ds_bytes){ end, size }));
}

static int convert_generate(const Ds__Generate *generate, const struct ds_link_text *text,
                            struct ds_job *job, struct ds_error *error)
{
    size_t n_delivered = generate->delivered ? generate->delivered->n_ids : 0, n_prompt;
    int r;

    r = check_top(generate->logprobs, error);
    if (r < 0)
        return r;
    ds_convert_sampling(generate->sampling, text->advice, &job->sampling);
    r = convert_bias(generate->sampling, job, error);
    if (r < 0)
        return r;
    r = convert_stops(generate, job, error);
    if (r < 0)
        return r;
    r = ds_convert_input(generate->input, text, n_delivered, &job->tokens, &n_prompt, error);
    if (r < 0)
        return r;
    if (n_delivered)
        memcpy(job->tokens + n_prompt, generate->delivered->ids, n_delivered * sizeof *job->tokens);
    r = convert_reply(generate, text, job, n_prompt);
    if (r < 0)
        return r;
    job->n_prompt = (uint32_t) n_prompt;
    job->n_delivered = (uint32_t) n_delivered;
    job->max_tokens = generate->max_tokens;
    r = convert_speculation(generate->speculation, &job->draft, error);
    if (r < 0)
        return r;
    job->ignore_eos = generate->ignore_eos;
    job->n_top = generate->logprobs;
    job->want_logprobs = generate->want_logprobs || generate->logprobs > 0;
    job->deadline_nsec = earlier(job->deadline_nsec, generate->deadline_nsec);
    return 0;
}

static int convert_score(const Ds__ScoreRequest *score, const struct ds_link_text *text,
                         struct ds_job *job, struct ds_error *error)
{
    size_t n_prompt;
    int r;

    r = check_top(score->top, error);
    if (r < 0)
        return r;
    ds_convert_sampling(NULL, text->advice, &job->sampling);
    r = ds_convert_input(score->input, text, 0, &job->tokens, &n_prompt, error);
    if (r < 0)
        return r;
    job->score = true;
    job->n_prompt = (uint32_t) n_prompt;
    job->n_top = score->top ? score->top : SCORE_TOP;
    if (job->n_top > ds_tokenizer_n_tokens(text->tokenizer))
        job->n_top = ds_tokenizer_n_tokens(text->tokenizer);
    return 0;
}

int ds_convert_job(const Ds__LinkRequest *request, const struct ds_link_text *text, uint64_t id,
                   uint64_t deadline_nsec, struct ds_job *ret_job, struct ds_error *error)
{
    struct ds_job job = {
        .id = id,
        .uid = request->uid,
        .deadline_nsec = deadline_nsec,
        .submitted_nsec = request->submitted_nsec,
    };
    int r;

    if (request->op_case == DS__LINK_REQUEST__OP_SCORE)
        r = convert_score(request->score, text, &job, error);
    else
        r = convert_generate(request->generate, text, &job, error);
    if (r < 0) {
        ds_job_deinit(&job);
        return r;
    }
    *ret_job = job;
    return 0;
}

/* --- text operations --- */

static int pack_reply(Ds__Reply *reply, void **ret_bytes, size_t *ret_size)
{
    Ds__LinkReply link_reply = DS__LINK_REPLY__INIT;

    link_reply.reply = reply;
    return ds_message_pack_new(&link_reply, ret_bytes, ret_size);
}

static int tokenize(const Ds__TokenizeRequest *request, const struct ds_link_text *text,
                    void **ret_bytes, size_t *ret_size)
{
    unsigned flags =
        (request->no_special ? 0 : DS_ENCODE_SPECIAL) | (request->bos ? DS_ENCODE_BOS : 0);
    ds_cleanup(ds_free_p) ProtobufCBinaryData *pieces = NULL;
    ds_cleanup(ds_free_p) uint32_t *ids = NULL;
    Ds__TokenizeResult result = DS__TOKENIZE_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    size_t n_ids = 0;
    int r;

    r = ds_tokenizer_encode(text->tokenizer, (const char *) request->text.data, request->text.len,
                            flags, &ids, &n_ids);
    if (r < 0)
        return r;
    pieces = calloc(n_ids ? n_ids : 1, sizeof *pieces);
    if (!pieces)
        return -ENOMEM;
    for (size_t i = 0; i < n_ids; i++) {
        struct ds_bytes piece = ds_tokenizer_piece(text->tokenizer, ids[i]);

        pieces[i] = (ProtobufCBinaryData){ .len = piece.size, .data = (uint8_t *) piece.data };
    }
    result.n_ids = result.n_pieces = n_ids;
    result.ids = ids;
    result.pieces = pieces;
    reply.result_case = DS__REPLY__RESULT_TOKENIZE;
    reply.tokenize = &result;
    return pack_reply(&reply, ret_bytes, ret_size);
}

static int check_ids(const Ds__TokenIds *ids, const struct ds_link_text *text,
                     struct ds_error *error)
{
    uint32_t n_vocab = ds_tokenizer_n_tokens(text->tokenizer);

    for (size_t i = 0; i < ids->n_ids; i++)
        if (ids->ids[i] >= n_vocab)
            return ds_error_set(error, -EINVAL,
                                "model %s: token id %u (number %zu) is beyond its %u tokens",
                                text->name, ids->ids[i], i + 1, n_vocab);
    return 0;
}

static int detokenize(const Ds__DetokenizeRequest *request, const struct ds_link_text *text,
                      void **ret_bytes, size_t *ret_size, struct ds_error *error)
{
    static const Ds__TokenIds no_ids = DS__TOKEN_IDS__INIT;
    const Ds__TokenIds *ids = request->tokens ? request->tokens : &no_ids;
    Ds__DetokenizeResult result = DS__DETOKENIZE_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    ds_cleanup(ds_free_p) char *decoded = NULL;
    size_t size = 0;
    int r;

    r = check_ids(ids, text, error);
    if (r < 0)
        return r;
    r = ds_tokenizer_decode(text->tokenizer, ids->ids, ids->n_ids, request->no_special, true,
                            &decoded, &size);
    if (r < 0)
        return r;
    result.text = (ProtobufCBinaryData){ .len = size, .data = (uint8_t *) decoded };
    reply.result_case = DS__REPLY__RESULT_DETOKENIZE;
    reply.detokenize = &result;
    return pack_reply(&reply, ret_bytes, ret_size);
}

static int render(const Ds__TemplateRequest *request, const struct ds_link_text *text,
                  void **ret_bytes, size_t *ret_size, struct ds_error *error)
{
    Ds__TemplateResult result = DS__TEMPLATE_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;
    ds_cleanup(ds_free_p) char *rendered = NULL;
    size_t size = 0;
    int r;

    if (!request->chat)
        return ds_error_set(error, -EINVAL, "the request has no messages; give at least one");
    r = render_chat(request->chat, text, &rendered, &size, error);
    if (r < 0)
        return r;
    result.text = (ProtobufCBinaryData){ .len = size, .data = (uint8_t *) rendered };
    reply.result_case = DS__REPLY__RESULT_TEMPLATE;
    reply.template_ = &result;
    return pack_reply(&reply, ret_bytes, ret_size);
}

int ds_convert_text(const Ds__LinkRequest *request, const struct ds_link_text *text,
                    void **ret_bytes, size_t *ret_size, struct ds_error *error)
{
    switch (request->op_case) {
    case DS__LINK_REQUEST__OP_TOKENIZE:
        return tokenize(request->tokenize, text, ret_bytes, ret_size);
    case DS__LINK_REQUEST__OP_DETOKENIZE:
        return detokenize(request->detokenize, text, ret_bytes, ret_size, error);
    case DS__LINK_REQUEST__OP_TEMPLATE:
        return render(request->template_, text, ret_bytes, ret_size, error);
    default:
        return ds_error_set(error, -EINVAL, "the request names no operation this engine has");
    }
}
