/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "engine/format/hf_parts.h"

/* A token as a text, or as an object with the text as its content. */
static const cJSON *token_text(const cJSON *object, const char *name)
{
    const cJSON *item = ds_hf_json_get(object, name);

    if (cJSON_IsObject(item))
        item = ds_hf_json_get(item, "content");
    return cJSON_IsString(item) ? item : NULL;
}

/* The id of the token that object calls name; what is not said leaves *id as it is. */
static int name_token(const struct ds_hf_reader *reader, enum ds_hf_file file, const cJSON *object,
                      const char *name, bool required, uint32_t *id)
{
    const cJSON *text = token_text(object, name);
    const struct ds_bytes nothing = { NULL, 0 };
    uint32_t found;

    if (!text || !*text->valuestring)
        return 0;
    found = ds_hf_token_find(reader, ds_hf_json_text(text), nothing);
    if (found == DS_TOKEN_NONE && required)
        return ds_hf_bad(reader, file, "field '%s': \"%s\" is no token of the vocabulary", name,
                         ds_hf_quote(text->valuestring, strlen(text->valuestring)).text);
    if (found != DS_TOKEN_NONE)
        *id = found;
    return 0;
}

static int name_tokens(const struct ds_hf_reader *reader, enum ds_hf_file file, const cJSON *object)
{
    struct ds_vocab *vocab = &reader->made->vocab;
    int r;

    r = name_token(reader, file, object, "bos_token", true, &vocab->bos);
    if (r == 0)
        r = name_token(reader, file, object, "eos_token", true, &vocab->eos);
    if (r == 0)
        r = name_token(reader, file, object, "pad_token", false, &vocab->padding);
    if (r == 0 && vocab->kind == DS_VOCAB_SPM)
        r = name_token(reader, file, object, "unk_token", false, &vocab->unknown);
    return r;
}

static void read_flag(const cJSON *object, const char *name, int8_t *value)
{
    const cJSON *item = ds_hf_json_get(object, name);

    if (cJSON_IsBool(item))
        *value = cJSON_IsTrue(item) ? 1 : 0;
}

/* --- the chat template --- */

/* A text, or a list of {"name": ..., "template": ...} of which "default" is meant. */
static const cJSON *template_text(const cJSON *item)
{
    const cJSON *entry;

    if (!cJSON_IsArray(item))
        return cJSON_IsString(item) ? item : NULL;
    cJSON_ArrayForEach(entry, item)
    {
        const cJSON *name = ds_hf_json_get(entry, "name");
        const cJSON *text = ds_hf_json_get(entry, "template");

        if (cJSON_IsString(name) && strcmp(name->valuestring, "default") == 0)
            return cJSON_IsString(text) ? text : NULL;
    }
    return NULL;
}

static int read_template(struct ds_hf_reader *reader)
{
    struct ds_bytes file = reader->files[DS_HF_CHAT_TEMPLATE];
    struct ds_bytes *template = &reader->made->vocab.chat_template;
    const cJSON *text = template_text(ds_hf_json_get(reader->config, "chat_template"));

    if (file.size > 0)
        return ds_hf_copy(reader->made, file.data, file.size, template);
    if (text)
        return ds_hf_copy(reader->made, text->valuestring, strlen(text->valuestring), template);
    return 0;
}

/* --- ends and advice --- */

static int add_end(struct ds_hf_reader *reader, const char *where, uint32_t id, uint32_t *ends,
                   uint32_t *n)
{
    if (id >= reader->n_tokens)
        return ds_error_set(reader->error, -EBADMSG,
                            "%s/%s: field 'eos_token_id': %u is beyond the %u tokens of its "
                            "tokeniser: fetch the folder again",
                            reader->model->label, where, id, reader->n_tokens);
    for (uint32_t i = 0; i < *n; i++)
        if (ends[i] == id)
            return 0;
    ends[(*n)++] = id;
    return 0;
}

static int add_generation_ends(struct ds_hf_reader *reader, const cJSON *item, uint32_t *ends,
                               uint32_t *n)
{
    const char *file = ds_hf_file_name(DS_HF_GENERATION_CONFIG);
    const cJSON *entry = cJSON_IsArray(item) ? item->child : item;
    int r = 0;

    for (; r == 0 && entry; entry = cJSON_IsArray(item) ? entry->next : NULL) {
        uint32_t id;

        if (!ds_hf_json_id(entry, &id))
            return ds_hf_bad(reader, DS_HF_GENERATION_CONFIG,
                             "field 'eos_token_id' is neither a token nor a list of tokens");
        r = add_end(reader, file, id, ends, n);
    }
    return r;
}

static int read_ends(struct ds_hf_reader *reader, const cJSON *generation)
{
    const cJSON *item = ds_hf_json_get(generation, "eos_token_id");
    struct ds_vocab *vocab = &reader->made->vocab;
    size_t most = reader->model->n_ends + 1 + (size_t) cJSON_GetArraySize(item);
    uint32_t *ends = most <= 4096 ? ds_hf_alloc(reader->made, most * sizeof *ends) : NULL;
    uint32_t n = 0;
    int r = 0;

    if (!ends)
        return most > 4096 ? ds_hf_bad(reader, DS_HF_GENERATION_CONFIG,
                                       "field 'eos_token_id' has more than 4096 entries")
                           : -ENOMEM;
    for (size_t i = 0; r == 0 && i < reader->model->n_ends; i++)
        r = add_end(reader, "config.json", reader->model->ends[i], ends, &n);
    if (r == 0)
        r = add_generation_ends(reader, item, ends, &n);
    if (r < 0)
        return r;
    if (vocab->eos == DS_TOKEN_NONE && n > 0)
        vocab->eos = ends[0];
    vocab->ends = ends;
    vocab->n_ends = n;
    return 0;
}

static void read_number(const cJSON *object, const char *name, float *value)
{
    const cJSON *item = ds_hf_json_get(object, name);

    if (cJSON_IsNumber(item) && isfinite((float) item->valuedouble))
        *value = (float) item->valuedouble;
}

static void read_advice(struct ds_hf_reader *reader, const cJSON *generation)
{
    struct ds_sampling_advice *advice = &reader->made->advice;
    uint32_t top_k;

    read_number(generation, "temperature", &advice->temperature);
    read_number(generation, "top_p", &advice->top_p);
    read_number(generation, "min_p", &advice->min_p);
    read_number(generation, "repetition_penalty", &advice->repeat_penalty);
    if (ds_hf_json_id(ds_hf_json_get(generation, "top_k"), &top_k) && top_k <= INT32_MAX)
        advice->top_k = (int32_t) top_k;
}

static int read_generation(struct ds_hf_reader *reader)
{
    cJSON *generation = NULL;
    int r = 0;

    if (reader->files[DS_HF_GENERATION_CONFIG].size > 0) {
        generation = ds_hf_json_parse(reader, DS_HF_GENERATION_CONFIG, &r);
        if (!generation)
            return r;
    }
    r = read_ends(reader, generation);
    read_advice(reader, generation);
    cJSON_Delete(generation);
    return r;
}

static int read_special_tokens(struct ds_hf_reader *reader)
{
    cJSON *map;
    int r = 0;

    if (reader->files[DS_HF_SPECIAL_TOKENS].size == 0)
        return 0;
    map = ds_hf_json_parse(reader, DS_HF_SPECIAL_TOKENS, &r);
    if (!map)
        return r;
    r = name_tokens(reader, DS_HF_SPECIAL_TOKENS, map);
    cJSON_Delete(map);
    return r;
}

int ds_hf_read_config(struct ds_hf_reader *reader)
{
    struct ds_vocab *vocab = &reader->made->vocab;
    int r;

    if (reader->model->bos < reader->n_tokens && vocab->bos == DS_TOKEN_NONE)
        vocab->bos = reader->model->bos;
    r = read_special_tokens(reader);
    if (r == 0)
        r = name_tokens(reader, DS_HF_TOKENIZER_CONFIG, reader->config);
    if (r < 0)
        return r;
    read_flag(reader->config, "add_bos_token", &vocab->add_bos);
    read_flag(reader->config, "add_eos_token", &vocab->add_eos);
    if (vocab->kind == DS_VOCAB_SPM)
        read_flag(reader->config, "add_prefix_space", &vocab->add_space_prefix);
    r = read_template(reader);
    return r == 0 ? read_generation(reader) : r;
}
