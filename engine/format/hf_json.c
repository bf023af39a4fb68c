/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cJSON reads a tokenizer.json of 11 MB in a quarter of the time that jansson takes. It has no
 * lengths for strings, so a NUL inside of one is refused before; it takes the first of several
 * members of one name, which for tokens is found out by their texts.
 */
#include "engine/format/hf_parts.h"

#define BYTES_MAX  (64u << 20)
#define VALUES_MAX (4u << 20) /* some 80 bytes of memory for each */

/* Every value but the first follows a comma or opens an array or an object. */
static bool too_many_values(struct ds_bytes file)
{
    size_t n = 0;

    for (size_t i = 0; i < file.size; i++)
        n += file.data[i] == ',' || file.data[i] == '[' || file.data[i] == '{';
    return n > VALUES_MAX;
}

/* A byte 0, or an escape that stands for one. */
static bool has_nul(struct ds_bytes file)
{
    const char *end = file.data + file.size;

    if (memchr(file.data, '\0', file.size))
        return true;
    for (const char *at = file.data; (at = memchr(at, '\\', (size_t) (end - at)));) {
        if (end - at >= 6 && memcmp(at, "\\u0000", 6) == 0)
            return true;
        at += end - at >= 2 ? 2 : 1; /* the escaped character is no escape itself */
    }
    return false;
}

static unsigned line_of(struct ds_bytes file, const char *at)
{
    unsigned line = 1;

    for (const char *c = file.data; c < at && c < file.data + file.size; c++)
        line += *c == '\n';
    return line;
}

cJSON *ds_hf_json_parse(const struct ds_hf_reader *reader, enum ds_hf_file file, int *ret_r)
{
    struct ds_bytes bytes = reader->files[file];
    const char *end = bytes.data;
    cJSON *json;

    if (bytes.size > BYTES_MAX || too_many_values(bytes)) {
        *ret_r = ds_hf_bad(reader, file, "larger than %u MiB, or of more than %u values",
                           BYTES_MAX >> 20, VALUES_MAX);
        return NULL;
    }
    if (has_nul(bytes)) {
        *ret_r = ds_hf_bad(reader, file, "holds a character NUL, which no token has");
        return NULL;
    }
    json = cJSON_ParseWithLengthOpts(bytes.data, bytes.size, &end, false);
    for (const char *c = end; json && c < bytes.data + bytes.size; c++)
        if (!strchr(" \t\r\n", *c)) {
            cJSON_Delete(ds_steal(json));
            end = c;
            break;
        }
    if (!json) {
        *ret_r = ds_hf_bad(reader, file, "no valid JSON in line %u", line_of(bytes, end));
        return NULL;
    }
    if (!cJSON_IsObject(json)) {
        cJSON_Delete(json);
        *ret_r = ds_hf_bad(reader, file, "no JSON object");
        return NULL;
    }
    *ret_r = 0;
    return json;
}

const cJSON *ds_hf_json_get(const cJSON *object, const char *name)
{
    const cJSON *item =
        cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, name) : NULL;

    return cJSON_IsNull(item) ? NULL : item;
}

bool ds_hf_json_id(const cJSON *item, uint32_t *ret_id)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) ||
        item->valuedouble >= (double) DS_TOKEN_NONE ||
        item->valuedouble != (double) (uint32_t) item->valuedouble)
        return false;
    *ret_id = (uint32_t) item->valuedouble;
    return true;
}
