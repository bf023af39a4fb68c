/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/messages.h"

#include <cjson/cJSON.h>

#include "proto/base.h"

/* Prints item into memory that lives as long as messages. */
static int keep(struct dsctl_messages *messages, const cJSON *item, ProtobufCBinaryData *ret)
{
    char **grown = realloc(messages->printed, (messages->n_printed + 1) * sizeof *grown);
    char *text;

    if (!grown)
        return -ENOMEM;
    messages->printed = grown;
    text = cJSON_PrintUnformatted(item);
    if (!text)
        return -ENOMEM;
    messages->printed[messages->n_printed++] = text;
    *ret = (ProtobufCBinaryData){ .data = (uint8_t *) text, .len = strlen(text) };
    return 0;
}

static int take_message(struct dsctl_messages *messages, const cJSON *from, Ds__ChatMessage *to,
                        size_t index, struct ds_error *error)
{
    const cJSON *role = cJSON_GetObjectItemCaseSensitive(from, "role");
    const cJSON *content = cJSON_GetObjectItemCaseSensitive(from, "content");
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(from, "name");
    cJSON *rest;
    int r = 0;

    ds__chat_message__init(to);
    if (!cJSON_IsString(role))
        return ds_error_set(error, -EINVAL, "message %zu has no role", index + 1);
    if (content && !cJSON_IsString(content) && !cJSON_IsNull(content))
        return ds_error_set(error, -EINVAL, "the content of message %zu is no string", index + 1);
    to->role = role->valuestring;
    if (cJSON_IsString(content))
        to->content = (ProtobufCBinaryData){ .data = (uint8_t *) content->valuestring,
                                             .len = strlen(content->valuestring) };
    if (cJSON_IsString(name))
        to->name = name->valuestring;
    rest = cJSON_Duplicate(from, true);
    if (!rest)
        return -ENOMEM;
    cJSON_DeleteItemFromObjectCaseSensitive(rest, "role");
    cJSON_DeleteItemFromObjectCaseSensitive(rest, "content");
    cJSON_DeleteItemFromObjectCaseSensitive(rest, "name");
    if (rest->child)
        r = keep(messages, rest, &to->extra_json);
    cJSON_Delete(rest);
    return r;
}

static int take_array(struct dsctl_messages *messages, const cJSON *array, struct ds_error *error)
{
    int n = cJSON_GetArraySize(array), i = 0, r;
    Ds__ChatMessage *list;
    const cJSON *one;

    if (!cJSON_IsArray(array) || n < 1 || n > (int) DS_MESSAGES_MAX)
        return ds_error_set(error, -EINVAL, "it holds no array of 1 to %u messages",
                            DS_MESSAGES_MAX);
    list = messages->memory[1] = calloc((size_t) n, sizeof *list);
    messages->chat.messages = messages->memory[2] =
        calloc((size_t) n, sizeof *messages->chat.messages);
    if (!list || !messages->chat.messages)
        return -ENOMEM;
    cJSON_ArrayForEach(one, array)
    {
        r = take_message(messages, one, &list[i], (size_t) i, error);
        if (r < 0)
            return r;
        messages->chat.messages[i] = &list[i];
        i++;
    }
    messages->chat.n_messages = (size_t) n;
    return 0;
}

int dsctl_messages_parse(struct dsctl_messages *messages, const char *text, struct ds_error *error)
{
    const cJSON *root, *item, *array;
    int r;

    *messages = (struct dsctl_messages){ .n_printed = 0 };
    ds__chat_messages__init(&messages->chat);
    root = messages->memory[0] = cJSON_ParseWithOpts(text, NULL, true);
    if (!root)
        return ds_error_set(error, -EINVAL, "it is no JSON");
    array = cJSON_IsArray(root) ? root : cJSON_GetObjectItemCaseSensitive(root, "messages");
    r = take_array(messages, array, error);
    if (r < 0 || array == root)
        return r;
    item = cJSON_GetObjectItemCaseSensitive(root, "tools");
    if (cJSON_IsArray(item))
        r = keep(messages, item, &messages->chat.tools_json);
    item = cJSON_GetObjectItemCaseSensitive(root, "variables");
    if (r == 0 && cJSON_IsObject(item))
        r = keep(messages, item, &messages->chat.variables_json);
    item = cJSON_GetObjectItemCaseSensitive(root, "add_generation_prompt");
    messages->chat.no_generation_prompt = cJSON_IsFalse(item);
    return r;
}

void dsctl_messages_deinit(struct dsctl_messages *messages)
{
    cJSON_Delete(messages->memory[0]);
    free(messages->memory[1]);
    free(messages->memory[2]);
    for (size_t i = 0; i < messages->n_printed; i++)
        cJSON_free(messages->printed[i]);
    free(messages->printed);
}
