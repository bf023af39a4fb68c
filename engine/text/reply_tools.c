/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/reply_tools.h"

#include <jansson.h>

#include "proto/base.h"

#define CALL_BEGIN "<\uFF5Ctool\u2581call\u2581begin\uFF5C>"
#define CALL_SEP   "<\uFF5Ctool\u2581sep\uFF5C>"
#define CALL_END   "<\uFF5Ctool\u2581call\u2581end\uFF5C>"
#define FENCE      "\n```json\n"
#define FENCE_END  "\n```"

static void cut(struct ds_tool_calls *calls, size_t n)
{
    while (calls->n > n) {
        struct ds_tool_call *call = &calls->calls[--calls->n];

        free(call->name);
        free((char *) call->arguments.data);
    }
}

void ds_tool_calls_deinit(struct ds_tool_calls *calls)
{
    cut(calls, 0);
    free(calls->calls);
    *calls = (struct ds_tool_calls){ 0 };
}

static int add_call(struct ds_tool_calls *calls, struct ds_bytes name, struct ds_bytes arguments)
{
    struct ds_tool_call call;

    if (calls->n == calls->capacity) {
        size_t capacity = 2 * calls->capacity + 4;
        struct ds_tool_call *bigger = reallocarray(calls->calls, capacity, sizeof *bigger);

        if (!bigger)
            return -ENOMEM;
        calls->calls = bigger;
        calls->capacity = capacity;
    }
    call.name = strndup(name.data, name.size);
    call.arguments = (struct ds_bytes){ strndup(arguments.data, arguments.size), arguments.size };
    if (!call.name || !call.arguments.data) {
        free(call.name);
        free((char *) call.arguments.data);
        return -ENOMEM;
    }
    calls->calls[calls->n++] = call;
    return DS_TOOLS_PARSED;
}

static struct ds_bytes trim(struct ds_bytes text)
{
    while (text.size > 0 && strchr(" \t\r\n", text.data[text.size - 1]) && text.data[text.size - 1])
        text.size--;
    while (text.size > 0 && strchr(" \t\r\n", *text.data) && *text.data) {
        text.data++;
        text.size--;
    }
    return text;
}

static bool skip(struct ds_bytes *text, const char *prefix)
{
    size_t size = strlen(prefix);

    if (text->size < size || memcmp(text->data, prefix, size) != 0)
        return false;
    text->data += size;
    text->size -= size;
    return true;
}

/* What stands before separator; text goes on behind it. */
static bool split(struct ds_bytes *text, const char *separator, struct ds_bytes *ret_before)
{
    const char *at =
        text->size ? memmem(text->data, text->size, separator, strlen(separator)) : NULL;

    if (!at)
        return false;
    *ret_before = (struct ds_bytes){ text->data, (size_t) (at - text->data) };
    text->data += ret_before->size;
    text->size -= ret_before->size;
    return skip(text, separator);
}

/* --- JSON: jansson says whether it is any, the text itself is kept as the model wrote it --- */

/* The JSON value that text starts with; text goes on behind it. NULL: none. */
static json_t *take_json(struct ds_bytes *text, struct ds_bytes *ret_source)
{
    json_error_t where;
    json_t *value =
        json_loadb(text->data, text->size,
                   JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK | JSON_DECODE_ANY, &where);

    if (!value)
        return NULL;
    *ret_source = (struct ds_bytes){ text->data, (size_t) where.position };
    text->data += where.position;
    text->size -= (size_t) where.position;
    return value;
}

/* Behind the value at `at`, in JSON that is valid. */
static size_t value_end(struct ds_bytes json, size_t at)
{
    unsigned depth = 0;

    for (; at < json.size; at++) {
        char c = json.data[at];

        if (c == '"') {
            for (at++; at < json.size && json.data[at] != '"'; at++)
                at += json.data[at] == '\\';
            if (depth == 0)
                return at + 1;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            if (depth <= 1)
                return depth == 1 ? at + 1 : at;
            depth--;
        } else if (depth == 0 && (c == ',' || c == ':')) {
            return at;
        }
    }
    return at;
}

/* The source of a member of a valid JSON object. */
static bool member_source(struct ds_bytes json, const char *name, struct ds_bytes *ret_source)
{
    json.size = json.size > 0 ? json.size - 1 : 0; /* without the brace */
    for (size_t at = 1; at < json.size;) {
        struct ds_bytes key = { json.data + at, 0 }, value;
        size_t colon = value_end(json, at), end;

        key.size = colon - at;
        while (colon < json.size && json.data[colon] != ':')
            colon++;
        if (colon >= json.size)
            return false;
        end = value_end(json, colon + 1);
        while (end < json.size && json.data[end] != ',')
            end++;
        key = trim(key);
        value = trim((struct ds_bytes){ json.data + colon + 1, end - colon - 1 });
        if (key.size == strlen(name) + 2 && memcmp(key.data + 1, name, strlen(name)) == 0) {
            *ret_source = value;
            return true;
        }
        at = end + 1;
    }
    return false;
}

/* Arguments are an object, or a text that is one. */
static int add_arguments(struct ds_tool_calls *calls, struct ds_bytes name, const json_t *value,
                         struct ds_bytes source)
{
    struct ds_bytes text, inner;
    json_t *object;
    int r = DS_TOOLS_MALFORMED;

    if (name.size == 0)
        return r;
    if (json_is_object(value))
        return add_call(calls, name, source);
    if (!json_is_string(value))
        return r;
    text = trim((struct ds_bytes){ json_string_value(value), json_string_length(value) });
    object = take_json(&text, &inner);
    if (json_is_object(object) && text.size == 0)
        r = add_call(calls, name, inner);
    json_decref(object);
    return r;
}

/* {"name": ..., "arguments" or "parameters": {...}} */
static int take_object(struct ds_tool_calls *calls, struct ds_bytes *text)
{
    static const char *const names[] = { "arguments", "parameters" };
    struct ds_bytes source, arguments = { "{}", 2 };
    json_t *object, *name, *value = NULL, *empty;
    int r = DS_TOOLS_MALFORMED;

    *text = trim(*text);
    object = take_json(text, &source);
    if (!object)
        return r;
    source = trim(source);
    name = json_object_get(object, "name");
    if (!json_is_string(name)) {
        json_decref(object);
        return r;
    }
    empty = json_object();
    for (unsigned i = 0; i < 2 && !value; i++) {
        value = json_object_get(object, names[i]);
        if (value && !member_source(source, names[i], &arguments))
            value = json_null();
    }
    if (empty)
        r = add_arguments(calls,
                          (struct ds_bytes){ json_string_value(name), json_string_length(name) },
                          value ? value : empty, arguments);
    json_decref(empty);
    json_decref(object);
    return empty ? r : -ENOMEM;
}

/* --- the forms --- */

static int parse_hermes(struct ds_tool_calls *calls, struct ds_bytes text)
{
    struct ds_bytes body, rest;
    int r;

    if (!skip(&text, DS_TOOL_OPEN_HERMES))
        return DS_TOOLS_MALFORMED;
    rest = text;
    if (split(&rest, DS_TOOL_CLOSE_HERMES, &body))
        text = body;
    r = take_object(calls, &text);
    return r == DS_TOOLS_PARSED && trim(text).size > 0 ? DS_TOOLS_MALFORMED : r;
}

/* One call: HEAD SEP BODY. */
static int parse_deepseek_call(struct ds_tool_calls *calls, struct ds_bytes call)
{
    struct ds_bytes head, name, source, body;
    json_t *value;
    int r;

    if (!split(&call, CALL_SEP, &head))
        return DS_TOOLS_MALFORMED;
    if (split(&call, FENCE, &name)) {
        if (!split(&call, FENCE_END, &body))
            return DS_TOOLS_MALFORMED;
    } else {
        name = head;
        body = call;
    }
    body = trim(body);
    value = take_json(&body, &source);
    r = value && body.size == 0 ? add_arguments(calls, trim(name), value, trim(source))
                                : DS_TOOLS_MALFORMED;
    json_decref(value);
    return r;
}

static int parse_deepseek(struct ds_tool_calls *calls, struct ds_bytes text)
{
    struct ds_bytes call;
    int r = DS_TOOLS_MALFORMED;

    if (!skip(&text, DS_TOOL_OPEN_DEEPSEEK))
        return r;
    for (;;) {
        text = trim(text);
        if (!skip(&text, CALL_BEGIN))
            break;
        if (!split(&text, CALL_END, &call))
            return DS_TOOLS_MALFORMED;
        r = parse_deepseek_call(calls, call);
        if (r != DS_TOOLS_PARSED)
            return r;
    }
    (void) skip(&text, DS_TOOL_CLOSE_DEEPSEEK);
    return text.size > 0 ? DS_TOOLS_MALFORMED : r;
}

static size_t word_size(struct ds_bytes text)
{
    size_t n = 0;

    while (n < text.size && ((text.data[n] >= 'a' && text.data[n] <= 'z') || text.data[n] == '_' ||
                             (text.data[n] >= 'A' && text.data[n] <= 'Z') ||
                             (text.data[n] >= '0' && text.data[n] <= '9')))
        n++;
    return n;
}

/* KEY=VALUE, ... ) as the members of a JSON object. */
static bool put_pairs(FILE *out, struct ds_bytes *text)
{
    for (bool first = true;; first = false) {
        struct ds_bytes source, key;
        json_t *value;

        *text = trim(*text);
        if (first && skip(text, ")"))
            return true;
        key = (struct ds_bytes){ text->data, word_size(*text) };
        text->data += key.size;
        text->size -= key.size;
        if (key.size == 0 || !skip(text, "="))
            return false;
        value = take_json(text, &source);
        if (!value)
            return false;
        json_decref(value);
        source = trim(source);
        (void) fprintf(out, "%s\"%.*s\": %.*s", first ? "" : ", ", (int) key.size, key.data,
                       (int) source.size, source.data);
        *text = trim(*text);
        if (skip(text, ")"))
            return true;
        if (!skip(text, ","))
            return false;
    }
}

/* NAME.call(KEY=VALUE, ...) */
static int parse_python(struct ds_tool_calls *calls, struct ds_bytes text)
{
    struct ds_bytes name, arguments = { NULL, 0 };
    int r = DS_TOOLS_MALFORMED;
    char *json = NULL;
    FILE *out;

    text = trim(text);
    name = (struct ds_bytes){ text.data, word_size(text) };
    text.data += name.size;
    text.size -= name.size;
    if (name.size == 0 || !skip(&text, ".call("))
        return r;
    out = open_memstream(&json, &arguments.size);
    if (!out)
        return -ENOMEM;
    (void) fputc('{', out);
    if (put_pairs(out, &text) && trim(text).size == 0)
        r = DS_TOOLS_PARSED;
    (void) fputc('}', out);
    if (fclose(out) != 0)
        r = -ENOMEM;
    arguments.data = json;
    if (r == DS_TOOLS_PARSED)
        r = add_call(calls, name, arguments);
    free(json);
    return r;
}

static int parse_llama(struct ds_tool_calls *calls, struct ds_bytes text)
{
    bool tagged = skip(&text, DS_TOOL_OPEN_LLAMA);
    int r;

    if (tagged && trim(text).size > 0 && *trim(text).data != '{')
        return parse_python(calls, text);
    do {
        r = take_object(calls, &text);
        text = trim(text);
    } while (r == DS_TOOLS_PARSED && skip(&text, ";"));
    return r == DS_TOOLS_PARSED && text.size > 0 ? DS_TOOLS_MALFORMED : r;
}

int ds_tool_calls_parse(struct ds_tool_calls *calls, enum ds_tool_form form, struct ds_bytes text)
{
    size_t before = calls->n;
    int r = DS_TOOLS_MALFORMED;

    if (form == DS_TOOLS_HERMES)
        r = parse_hermes(calls, text);
    else if (form == DS_TOOLS_DEEPSEEK)
        r = parse_deepseek(calls, text);
    else if (form == DS_TOOLS_LLAMA)
        r = parse_llama(calls, text);
    if (r != DS_TOOLS_PARSED)
        cut(calls, before);
    return r;
}
