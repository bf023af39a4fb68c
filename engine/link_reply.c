/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link_reply.h"

#include <math.h>

#include "engine/format/quant.h"
#include "proto/base.h"
#include "proto/message.h"

static ProtobufCBinaryData binary(struct ds_bytes bytes)
{
    return (ProtobufCBinaryData){ .len = bytes.size, .data = (uint8_t *) bytes.data };
}

/* --- records of a step --- */

/* Everything a record points to, in the record's own allocation. */
struct record {
    Ds__LinkTokens tokens; /* first: the caller frees it by this address */
    Ds__TokenChunk chunk;
    Ds__GenerateResult result;
    Ds__Usage usage;
    Ds__Timing timing;
    Ds__Error error;
    Ds__ChatReply message;
    char stop[DS_STOP_BYTES_MAX + 1];
};

#define CALL_ID_SIZE 24u /* "call_N" */

struct alternatives {            /* after the record, where log-probabilities are wanted */
    Ds__TokenLogprob *logprobs;  /* [n_tokens] */
    Ds__TokenLogprob **pointers; /* [n_tokens] */
    Ds__TopToken *top;           /* [n_tokens][n_top] */
    Ds__TopToken **top_pointers; /* [n_tokens][n_top] */
};

static void fill_top(Ds__TopToken *top, const struct ds_top_token *from,
                     const struct ds_tokenizer *tokenizer)
{
    ds__top_token__init(top);
    top->id = from->id;
    top->logprob = from->logprob;
    top->text = binary(ds_tokenizer_piece(tokenizer, from->id));
}

static void fill_logprobs(const struct ds_output *output, const struct ds_tokenizer *tokenizer,
                          const struct alternatives *to)
{
    uint32_t n_top = output->top ? output->n_top : 0;

    for (uint32_t i = 0; i < output->n_tokens; i++) {
        ds__token_logprob__init(&to->logprobs[i]);
        to->pointers[i] = &to->logprobs[i];
        to->logprobs[i].logprob = output->logprobs[i];
        to->logprobs[i].n_top = n_top;
        to->logprobs[i].top = to->top_pointers + (size_t) i * n_top;
        for (uint32_t j = 0; j < n_top; j++) {
            size_t at = (size_t) i * n_top + j;

            fill_top(&to->top[at], &output->top[at], tokenizer);
            to->top_pointers[at] = &to->top[at];
        }
    }
}

/* All of it content is what no parts mean. */
static size_t n_parts_said(const uint32_t *parts, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((parts[i] & 3) != DS_PART_CONTENT)
            return n;
    return 0;
}

/* after: memory for the calls, behind all else of the record. */
static void fill_message(struct record *record, const struct ds_reply_message *message, void *after)
{
    Ds__ToolCall *calls = after;
    Ds__ToolCall **pointers = (Ds__ToolCall **) (calls + message->n_calls);
    char *id = (char *) (pointers + message->n_calls);

    ds__chat_reply__init(&record->message);
    record->message.reasoning = binary(message->reasoning);
    record->message.content = binary(message->content);
    record->message.n_tool_calls = message->n_calls;
    record->message.tool_calls = pointers;
    for (size_t i = 0; i < message->n_calls; i++, id += CALL_ID_SIZE) {
        ds__tool_call__init(&calls[i]);
        (void) snprintf(id, CALL_ID_SIZE, "call_%u", (unsigned) i);
        calls[i].id = id;
        calls[i].name = message->calls[i].name;
        calls[i].arguments_json = binary(message->calls[i].arguments);
        pointers[i] = &calls[i];
    }
    record->result.message = &record->message;
}

static void fill_chunk(struct record *record, const struct ds_output *output)
{
    ds__token_chunk__init(&record->chunk);
    record->chunk.n_ids = output->n_tokens;
    record->chunk.ids = (uint32_t *) output->tokens;
    record->chunk.text = binary(output->text);
    record->chunk.n_parts = n_parts_said(output->parts, output->n_parts);
    record->chunk.parts = (uint32_t *) output->parts;
    record->tokens.chunk = &record->chunk;
}

static Ds__Reason reason_of(enum ds_finish finish)
{
    switch (finish) {
    case DS_FINISH_STOP:
        return DS__REASON__REASON_STOP;
    case DS_FINISH_LENGTH:
        return DS__REASON__REASON_LENGTH;
    case DS_FINISH_CANCELLED:
        return DS__REASON__REASON_CANCELLED;
    case DS_FINISH_DEADLINE:
        return DS__REASON__REASON_DEADLINE;
    default:
        return DS__REASON__REASON_ERROR;
    }
}

static void fill_result(struct record *record, const struct ds_output *output)
{
    ds__generate_result__init(&record->result);
    ds__usage__init(&record->usage);
    ds__timing__init(&record->timing);
    record->usage.prompt_tokens = output->n_prompt;
    record->usage.cached_tokens = output->n_cached;
    record->usage.completion_tokens = output->n_completion;
    record->usage.drafted_tokens = output->n_drafted;
    record->usage.accepted_tokens = output->n_accepted;
    record->timing.queue_ms = output->queue_ms;
    record->timing.prefill_ms = output->prefill_ms;
    record->timing.ttft_ms = output->ttft_ms;
    record->timing.decode_ms = output->decode_ms;
    record->result.reason = reason_of(output->finish);
    record->result.usage = &record->usage;
    record->result.timing = &record->timing;
    record->result.text = binary(output->tail_text);
    record->result.n_parts = n_parts_said(output->tail_parts, output->n_tail_parts);
    record->result.parts = (uint32_t *) output->tail_parts;
    if (output->stop.size && output->stop.size <= DS_STOP_BYTES_MAX) {
        memcpy(record->stop, output->stop.data, output->stop.size);
        record->result.stop = record->stop;
    }
    record->tokens.result = &record->result;
}

static void fill_error(struct record *record, const struct ds_output *output)
{
    ds__error__init(&record->error);
    record->error.code = ds_reply_error_code(DS_REPLY_REQUEST, output->error_code);
    record->error.text = (char *) (output->error ? output->error : strerror(-output->error_code));
    record->tokens.error = &record->error;
}

int ds_reply_tokens_new(const struct ds_output *output, const struct ds_tokenizer *tokenizer,
                        Ds__LinkTokens **ret_record)
{
    size_t n = output->logprobs ? output->n_tokens : 0, m = output->top ? n * output->n_top : 0;
    size_t n_calls = output->message ? output->message->n_calls : 0;
    size_t alternatives = n * (sizeof(Ds__TokenLogprob) + sizeof(void *)) +
                          m * (sizeof(Ds__TopToken) + sizeof(void *));
    struct record *record =
        calloc(1, sizeof *record + alternatives +
                      n_calls * (sizeof(Ds__ToolCall) + sizeof(void *) + CALL_ID_SIZE));

    if (!record)
        return -ENOMEM;
    ds__link_tokens__init(&record->tokens);
    record->tokens.req_id = output->id;
    if (output->first)
        record->tokens.prompt_tokens = output->n_prompt;
    if (output->n_tokens || output->text.size)
        fill_chunk(record, output);
    if (n) {
        struct alternatives to;

        to.logprobs = (Ds__TokenLogprob *) (record + 1);
        to.top = (Ds__TopToken *) (to.logprobs + n);
        to.pointers = (Ds__TokenLogprob **) (to.top + m);
        to.top_pointers = (Ds__TopToken **) (to.pointers + n);
        fill_logprobs(output, tokenizer, &to);
        record->chunk.n_logprobs = n;
        record->chunk.logprobs = to.pointers;
    }
    if (output->finish == DS_FINISH_ERROR)
        fill_error(record, output);
    else if (output->finish)
        fill_result(record, output);
    if (record->tokens.result && output->message)
        fill_message(record, output->message, (char *) (record + 1) + alternatives);
    *ret_record = &record->tokens;
    return 0;
}

/* A record is field 1 of LinkStep: key 0x0a, length, bytes. */
static size_t varint(uint8_t *out, size_t value)
{
    size_t n = 0;

    while (value >= 0x80) {
        out[n++] = (uint8_t) (value | 0x80);
        value >>= 7;
    }
    out[n++] = (uint8_t) value;
    return n;
}

size_t ds_step_size(const Ds__LinkTokens *record)
{
    uint8_t length[10];
    size_t size = ds_message_size(record);

    return 1 + varint(length, size) + size;
}

int ds_step_append(struct ds_step_bytes *step, const Ds__LinkTokens *record)
{
    size_t size = ds_message_size(record), need = step->size + 11 + size, packed;
    int r;

    if (need > step->capacity) {
        size_t capacity = need > 2 * step->capacity ? need + 1024 : 2 * step->capacity;
        uint8_t *bytes = realloc(step->bytes, capacity);

        if (!bytes)
            return -ENOMEM;
        step->bytes = bytes;
        step->capacity = capacity;
    }
    step->bytes[step->size++] = 1 << 3 | 2;
    step->size += varint(step->bytes + step->size, size);
    r = ds_message_pack(record, step->bytes + step->size, step->capacity - step->size, &packed);
    if (r < 0)
        return r;
    step->size += packed;
    return 0;
}

/* --- whole replies --- */

static int pack(Ds__Reply *reply, Ds__ModelInfo *info, void **ret_bytes, size_t *ret_size)
{
    Ds__LinkReply link_reply = DS__LINK_REPLY__INIT;

    link_reply.reply = reply;
    link_reply.model = info;
    return ds_message_pack_new(&link_reply, ret_bytes, ret_size);
}

int ds_reply_score(const struct ds_output *output, const struct ds_tokenizer *tokenizer,
                   void **ret_bytes, size_t *ret_size)
{
    uint32_t n_top = output->top ? output->n_top : 0;
    Ds__TopToken top[DS_LOGPROBS_MAX], *pointers[DS_LOGPROBS_MAX];
    Ds__ScoreResult result = DS__SCORE_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;

    if (n_top > DS_LOGPROBS_MAX)
        n_top = DS_LOGPROBS_MAX;
    for (uint32_t i = 0; i < n_top; i++) {
        fill_top(&top[i], &output->top[i], tokenizer);
        pointers[i] = &top[i];
    }
    result.n_tokens = output->n_prompt;
    result.nll = output->nll;
    result.perplexity = output->n_prompt > 1 ? exp(output->nll / (output->n_prompt - 1)) : 1;
    result.n_next = n_top;
    result.next = pointers;
    reply.result_case = DS__REPLY__RESULT_SCORE;
    reply.score = &result;
    return pack(&reply, NULL, ret_bytes, ret_size);
}

int ds_reply_cancelled(void **ret_bytes, size_t *ret_size)
{
    Ds__GenerateResult result = DS__GENERATE_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;

    result.reason = DS__REASON__REASON_CANCELLED;
    reply.result_case = DS__REPLY__RESULT_GENERATE;
    reply.generate = &result;
    return pack(&reply, NULL, ret_bytes, ret_size);
}

int ds_reply_done(void **ret_bytes, size_t *ret_size)
{
    Ds__Done done = DS__DONE__INIT;
    Ds__Reply reply = DS__REPLY__INIT;

    reply.result_case = DS__REPLY__RESULT_DONE;
    reply.done = &done;
    return pack(&reply, NULL, ret_bytes, ret_size);
}

int ds_reply_limits(const struct ds_limits *limits, const struct ds_model_cost *cost,
                    void **ret_bytes, size_t *ret_size)
{
    Ds__LimitsResult result = DS__LIMITS_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;

    result.read_bytes = limits->read_bytes;
    result.int8_ops = limits->int8_ops;
    result.f32_ops = limits->f32_ops;
    result.int8_instruction = (char *) limits->int8_instruction;
    result.f32_instruction = (char *) limits->f32_instruction;
    result.token_bytes = cost->token_bytes;
    result.layer_ops = cost->layer_ops;
    result.head_ops = cost->head_ops;
    result.float_ops = cost->float_ops;
    result.position_bytes = cost->position_bytes;
    reply.result_case = DS__REPLY__RESULT_LIMITS;
    reply.limits = &result;
    return pack(&reply, NULL, ret_bytes, ret_size);
}

/* --- show --- */

/* The table, and the array of pointers to it that the message wants, in one allocation. */
#define TABLE_NEW(type, n, ret_pointers)                                                           \
    ({                                                                                             \
        type *table_ = calloc((n) ? (n) : 1, sizeof(type) + sizeof(type *));                       \
        if (table_) {                                                                              \
            *(ret_pointers) = (type **) (table_ + (n));                                            \
            for (size_t i_ = 0; i_ < (n); i_++)                                                    \
                (*(ret_pointers))[i_] = &table_[i_];                                               \
        }                                                                                          \
        table_;                                                                                    \
    })

static Ds__KeyValue *metadata_new(const struct ds_checkpoint *checkpoint, Ds__KeyValue ***ret)
{
    const struct ds_metadata *metadata = ds_checkpoint_metadata(checkpoint);
    size_t n = ds_checkpoint_n_metadata(checkpoint);
    Ds__KeyValue *table = TABLE_NEW(Ds__KeyValue, n, ret);

    for (size_t i = 0; table && i < n; i++) {
        ds__key_value__init(&table[i]);
        table[i].key = (char *) metadata[i].key;
        table[i].value = (char *) metadata[i].value;
    }
    return table;
}

static Ds__TensorInfo *tensors_new(const struct ds_checkpoint *checkpoint, size_t n,
                                   Ds__TensorInfo ***ret)
{
    Ds__TensorInfo *table = TABLE_NEW(Ds__TensorInfo, n, ret);

    for (size_t i = 0; table && i < n; i++) {
        const struct ds_tensor *tensor = ds_checkpoint_tensor_at(checkpoint, (unsigned) i);
        const struct ds_type_traits *traits = ds_type_traits(tensor->type);

        ds__tensor_info__init(&table[i]);
        table[i].name = (char *) tensor->name;
        table[i].type = (char *) (traits ? traits->name : "?");
        table[i].n_shape = tensor->n_dims;
        table[i].shape = (uint64_t *) tensor->dims;
        table[i].bytes = tensor->size_bytes;
    }
    return table;
}

int ds_reply_show(const struct ds_checkpoint *checkpoint, bool tensors, Ds__ModelInfo *info,
                  Ds__Verification *verification, void **ret_bytes, size_t *ret_size)
{
    size_t n_tensors = tensors ? ds_checkpoint_n_tensors(checkpoint) : 0;
    ds_cleanup(ds_free_p) Ds__KeyValue *metadata = NULL;
    ds_cleanup(ds_free_p) Ds__TensorInfo *table = NULL;
    Ds__ShowResult result = DS__SHOW_RESULT__INIT;
    Ds__Reply reply = DS__REPLY__INIT;

    metadata = metadata_new(checkpoint, &result.metadata);
    table = tensors_new(checkpoint, n_tensors, &result.tensors);
    if (!metadata || !table)
        return -ENOMEM;
    result.model = info;
    result.verification = verification;
    result.n_metadata = ds_checkpoint_n_metadata(checkpoint);
    result.n_tensors = n_tensors;
    result.chat_template = binary(ds_checkpoint_vocab(checkpoint)->chat_template);
    reply.result_case = DS__REPLY__RESULT_SHOW;
    reply.show = &result;
    return pack(&reply, info, ret_bytes, ret_size);
}

/* --- news and errors --- */

int ds_reply_progress(const char *stage, double fraction, void **ret_bytes, size_t *ret_size)
{
    Ds__Progress progress = DS__PROGRESS__INIT;

    progress.stage = (char *) stage;
    progress.fraction = fraction;
    return ds_message_pack_new(&progress, ret_bytes, ret_size);
}

Ds__Error__Code ds_reply_error_code(enum ds_reply_phase phase, int r)
{
    switch (-r) {
    case EINVAL:
        return phase == DS_REPLY_LOAD ? DS__ERROR__CODE__BAD_MODEL : DS__ERROR__CODE__INVALID;
    case E2BIG:
    case EEXIST:
        return DS__ERROR__CODE__INVALID;
    case ENOENT:
        return DS__ERROR__CODE__NOT_FOUND;
    case EACCES:
    case EPERM:
        return DS__ERROR__CODE__PERMISSION;
    case ENOMEM:
    case EAGAIN:
    case EBUSY:
    case ECANCELED:
    case ENOSPC:
        return DS__ERROR__CODE__BUSY;
    case ENOTSUP:
        return DS__ERROR__CODE__UNSUPPORTED;
    case EBADMSG:
    case EIO:
        return DS__ERROR__CODE__BAD_MODEL;
    case EMSGSIZE:
        return DS__ERROR__CODE__TOO_LONG;
    case ETIME:
        return DS__ERROR__CODE__DEADLINE;
    default:
        return DS__ERROR__CODE__INTERNAL;
    }
}

int ds_reply_error(Ds__Error__Code code, const char *text, void **ret_bytes, size_t *ret_size)
{
    Ds__Error error = DS__ERROR__INIT;

    error.code = code;
    error.text = (char *) text;
    return ds_message_pack_new(&error, ret_bytes, ret_size);
}
