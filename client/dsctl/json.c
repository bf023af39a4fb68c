/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/json.h"

#include "client/dsctl/dsctl.h"

#include "proto/base.h"

/* Length of the UTF-8 character at bytes, 0 where there is none (Unicode 15, table 3-7). */
size_t dsctl_utf8_length(const uint8_t *bytes, size_t size)
{
    uint8_t first = bytes[0], second = size > 1 ? bytes[1] : 0;
    size_t length;

    if (first < 0x80)
        return 1;
    if (first < 0xc2 || first > 0xf4)
        return 0;
    length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (size < length)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ||
        (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f))
        return 0;
    return length;
}

static char *quote_ascii(char *out, uint8_t c)
{
    switch (c) {
    case '"':
        return stpcpy(out, "\\\"");
    case '\\':
        return stpcpy(out, "\\\\");
    case '\n':
        return stpcpy(out, "\\n");
    case '\r':
        return stpcpy(out, "\\r");
    case '\t':
        return stpcpy(out, "\\t");
    default:
        if (c < 0x20 || c == 0x7f)
            return out + sprintf(out, "\\u%04x", c);
        *out = (char) c;
        return out + 1;
    }
}

char *dsctl_json_quote(const void *bytes, size_t size)
{
    const uint8_t *in = bytes;
    char *text = malloc(size * 6 + 3), *out = text;

    if (!text)
        return NULL;
    *out++ = '"';
    for (size_t i = 0; i < size;) {
        size_t length = dsctl_utf8_length(in + i, size - i);

        if (length == 0) {
            out = stpcpy(out, "\xef\xbf\xbd");
            i++;
        } else if (length == 1) {
            out = quote_ascii(out, in[i++]);
        } else {
            memcpy(out, in + i, length);
            out += length;
            i += length;
        }
    }
    *out++ = '"';
    *out = '\0';
    return text;
}

void dsctl_json_text(cJSON *object, const char *name, const void *bytes, size_t size)
{
    ds_cleanup(ds_free_p) char *quoted = dsctl_json_quote(bytes, size);

    (void) cJSON_AddRawToObject(object, name, quoted ? quoted : "\"\"");
}

void dsctl_json_u64(cJSON *object, const char *name, uint64_t value)
{
    char digits[24];

    (void) snprintf(digits, sizeof digits, "%llu", (unsigned long long) value);
    (void) cJSON_AddRawToObject(object, name, digits);
}

void dsctl_json_ids(cJSON *object, const char *name, const uint32_t *ids, size_t n_ids)
{
    ds_cleanup(ds_free_p) char *text = malloc(n_ids * 11 + 3);
    char *end = text;

    if (!text)
        return;
    *end++ = '[';
    for (size_t i = 0; i < n_ids; i++)
        end += sprintf(end, i ? ",%u" : "%u", ids[i]);
    (void) stpcpy(end, "]");
    (void) cJSON_AddRawToObject(object, name, text);
}

void dsctl_json_print(cJSON *object)
{
    char *line = cJSON_PrintUnformatted(object);

    if (line)
        puts(line);
    cJSON_free(line);
    cJSON_Delete(object);
    (void) fflush(stdout);
}

cJSON *dsctl_json_tokens(const uint32_t *ids, size_t n_ids, const char *text, size_t size)
{
    cJSON *object = cJSON_CreateObject();

    (void) cJSON_AddStringToObject(object, "event", "tokens");
    dsctl_json_ids(object, "ids", ids, n_ids);
    dsctl_json_text(object, "text", text, size);
    return object;
}

void dsctl_json_parts(cJSON *object, const struct ds_event *event)
{
    static const char *const names[] = { "content", "reasoning", "tool_call", "markup" };
    cJSON *array = cJSON_AddArrayToObject(object, "parts");

    for (size_t i = 0; i < event->n_pieces; i++) {
        cJSON *pair = cJSON_CreateArray();

        (void) cJSON_AddItemToArray(pair, cJSON_CreateString(names[event->pieces[i].part & 3]));
        (void) cJSON_AddItemToArray(pair, cJSON_CreateNumber((double) event->pieces[i].size));
        (void) cJSON_AddItemToArray(array, pair);
    }
}

cJSON *dsctl_json_top(size_t n_top, Ds__TopToken *const *top)
{
    cJSON *array = cJSON_CreateArray();

    for (size_t i = 0; i < n_top; i++) {
        cJSON *object = cJSON_CreateObject();

        dsctl_json_u64(object, "id", top[i]->id);
        (void) cJSON_AddNumberToObject(object, "logprob", (double) top[i]->logprob);
        dsctl_json_text(object, "text", top[i]->text.data, top[i]->text.len);
        (void) cJSON_AddItemToArray(array, object);
    }
    return array;
}

cJSON *dsctl_json_logprobs(const Ds__TokenChunk *chunk)
{
    cJSON *array = cJSON_CreateArray();

    for (size_t i = 0; i < chunk->n_logprobs; i++) {
        cJSON *object = cJSON_CreateObject();

        (void) cJSON_AddNumberToObject(object, "logprob", (double) chunk->logprobs[i]->logprob);
        (void) cJSON_AddItemToObject(
            object, "top", dsctl_json_top(chunk->logprobs[i]->n_top, chunk->logprobs[i]->top));
        (void) cJSON_AddItemToArray(array, object);
    }
    return array;
}

const char *dsctl_reason_name(Ds__Reason reason)
{
    switch (reason) {
    case DS__REASON__REASON_STOP:
        return "stop";
    case DS__REASON__REASON_LENGTH:
        return "length";
    case DS__REASON__REASON_CANCELLED:
        return "cancelled";
    case DS__REASON__REASON_DEADLINE:
        return "deadline";
    default:
        return "error";
    }
}

static cJSON *final_object(const char *reason, const Ds__Usage *usage, const Ds__Timing *timing)
{
    cJSON *object = cJSON_CreateObject();
    cJSON *part;

    (void) cJSON_AddStringToObject(object, "event", "final");
    (void) cJSON_AddStringToObject(object, "reason", reason);
    part = cJSON_AddObjectToObject(object, "usage");
    dsctl_json_u64(part, "prompt_tokens", usage ? usage->prompt_tokens : 0);
    dsctl_json_u64(part, "cached_tokens", usage ? usage->cached_tokens : 0);
    dsctl_json_u64(part, "completion_tokens", usage ? usage->completion_tokens : 0);
    dsctl_json_u64(part, "drafted_tokens", usage ? usage->drafted_tokens : 0);
    dsctl_json_u64(part, "accepted_tokens", usage ? usage->accepted_tokens : 0);
    part = cJSON_AddObjectToObject(object, "timing");
    (void) cJSON_AddNumberToObject(part, "queue_ms", timing ? timing->queue_ms : 0);
    (void) cJSON_AddNumberToObject(part, "prefill_ms", timing ? timing->prefill_ms : 0);
    (void) cJSON_AddNumberToObject(part, "ttft_ms", timing ? timing->ttft_ms : 0);
    (void) cJSON_AddNumberToObject(part, "decode_ms", timing ? timing->decode_ms : 0);
    return object;
}

static cJSON *chat_object(const Ds__ChatReply *message)
{
    cJSON *object = cJSON_CreateObject(), *calls;

    dsctl_json_text(object, "reasoning", message->reasoning.data, message->reasoning.len);
    dsctl_json_text(object, "content", message->content.data, message->content.len);
    calls = cJSON_AddArrayToObject(object, "tool_calls");
    for (size_t i = 0; i < message->n_tool_calls; i++) {
        const Ds__ToolCall *from = message->tool_calls[i];
        cJSON *call = cJSON_CreateObject();

        dsctl_json_text(call, "id", from->id, strlen(from->id));
        dsctl_json_text(call, "name", from->name, strlen(from->name));
        dsctl_json_text(call, "arguments", from->arguments_json.data, from->arguments_json.len);
        (void) cJSON_AddItemToArray(calls, call);
    }
    return object;
}

cJSON *dsctl_json_final(const Ds__GenerateResult *result)
{
    cJSON *object = final_object(dsctl_reason_name(result->reason), result->usage, result->timing);

    if (result->message)
        (void) cJSON_AddItemToObject(object, "message", chat_object(result->message));
    return object;
}

cJSON *dsctl_json_failed(const char *code, const char *text, uint32_t completion_tokens)
{
    Ds__Usage usage = DS__USAGE__INIT;
    cJSON *object, *error;

    usage.completion_tokens = completion_tokens;
    object = final_object("error", &usage, NULL);
    error = cJSON_AddObjectToObject(object, "error");
    (void) cJSON_AddStringToObject(error, "code", code);
    dsctl_json_text(error, "text", text, strlen(text));
    return object;
}

cJSON *dsctl_json_model(const Ds__ModelInfo *model)
{
    cJSON *object = cJSON_CreateObject();

    dsctl_json_text(object, "name", model->name, strlen(model->name));
    (void) cJSON_AddStringToObject(object, "state", model->state);
    (void) cJSON_AddStringToObject(object, "architecture", model->architecture);
    (void) cJSON_AddStringToObject(object, "type", model->type);
    dsctl_json_u64(object, "n_parameters", model->n_parameters);
    dsctl_json_u64(object, "context", model->context);
    dsctl_json_u64(object, "n_files", model->n_files);
    dsctl_json_u64(object, "file_bytes", model->file_bytes);
    dsctl_json_u64(object, "weight_bytes", model->weight_bytes);
    dsctl_json_u64(object, "kv_bytes", model->kv_bytes);
    if (model->kv_type)
        (void) cJSON_AddStringToObject(object, "kv_type", dsctl_kv_type(model->kv_type));
    (void) cJSON_AddStringToObject(object, "device", model->device);
    (void) cJSON_AddBoolToObject(object, "pinned", model->pinned);
    dsctl_json_u64(object, "requests", model->requests);
    (void) cJSON_AddNumberToObject(object, "idle_sec", model->idle_sec);
    dsctl_json_ids(object, "users", model->users, model->n_users);
    return object;
}
