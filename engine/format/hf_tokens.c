/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/hf_parts.h"

static uint32_t hash_text(struct ds_bytes first, struct ds_bytes second)
{
    uint64_t hash = 0xCBF29CE484222325u;

    for (size_t i = 0; i < first.size; i++)
        hash = (hash ^ (uint8_t) first.data[i]) * 0x100000001B3u;
    for (size_t i = 0; i < second.size; i++)
        hash = (hash ^ (uint8_t) second.data[i]) * 0x100000001B3u;
    hash = (hash ^ hash >> 32) * 0x9E3779B97F4A7C15u;
    return (uint32_t) (hash >> 32);
}

static bool same_text(struct ds_bytes text, struct ds_bytes first, struct ds_bytes second)
{
    return text.size == first.size + second.size &&
           (first.size == 0 || memcmp(text.data, first.data, first.size) == 0) &&
           (second.size == 0 || memcmp(text.data + first.size, second.data, second.size) == 0);
}

/* The slot that holds the text's id, or the empty one where it belongs. */
static struct ds_hf_slot *find_slot(const struct ds_hf_reader *reader, struct ds_bytes first,
                                    struct ds_bytes second, uint32_t hash)
{
    for (size_t at = hash & reader->mask;; at = (at + 1) & reader->mask) {
        struct ds_hf_slot *slot = &reader->slots[at];

        if (slot->id == DS_TOKEN_NONE ||
            (slot->hash == hash && same_text(reader->tokens[slot->id].text, first, second)))
            return slot;
    }
}

int ds_hf_tokens_init(struct ds_hf_reader *reader, enum ds_hf_file file, size_t n)
{
    size_t n_slots = 64;

    if (n > DS_HF_TOKENS_MAX)
        return ds_hf_bad(reader, file, "%zu tokens, at most %u are allowed", n, DS_HF_TOKENS_MAX);
    while (n_slots < 2 * n)
        n_slots *= 2;
    reader->tokens = calloc(n + 1, sizeof *reader->tokens);
    reader->slots = malloc(n_slots * sizeof *reader->slots);
    if (!reader->tokens || !reader->slots)
        return -ENOMEM;
    memset(reader->slots, 0xFF, n_slots * sizeof *reader->slots);
    reader->mask = n_slots - 1;
    reader->capacity = (uint32_t) n;
    return 0;
}

int ds_hf_token_add(struct ds_hf_reader *reader, enum ds_hf_file file, const char *field,
                    uint32_t id, struct ds_bytes text, struct ds_hf_token token)
{
    const struct ds_bytes nothing = { NULL, 0 };
    uint32_t hash = hash_text(text, nothing);
    struct ds_hf_slot *slot = find_slot(reader, text, nothing, hash);
    int r;

    if (id >= reader->capacity)
        return ds_hf_bad(reader, file,
                         "field '%s': token \"%s\" has id %u, and there are no %u tokens", field,
                         ds_hf_quote(text.data, text.size).text, id, id + 1);
    if (reader->tokens[id].type != 0)
        return ds_hf_bad(
            reader, file, "field '%s': id %u is token \"%s\" and token \"%s\"", field, id,
            ds_hf_quote(reader->tokens[id].text.data, reader->tokens[id].text.size).text,
            ds_hf_quote(text.data, text.size).text);
    if (slot->id != DS_TOKEN_NONE)
        return ds_hf_bad(reader, file, "field '%s': token \"%s\" has the ids %u and %u", field,
                         ds_hf_quote(text.data, text.size).text, slot->id, id);
    r = ds_hf_copy(reader->made, text.data, text.size, &token.text);
    if (r < 0)
        return r;
    reader->tokens[id] = token;
    *slot = (struct ds_hf_slot){ hash, id };
    if (id >= reader->n_tokens)
        reader->n_tokens = id + 1;
    return 0;
}

uint32_t ds_hf_token_find(const struct ds_hf_reader *reader, struct ds_bytes first,
                          struct ds_bytes second)
{
    return find_slot(reader, first, second, hash_text(first, second))->id;
}

/* --- added tokens --- */

static bool starts_and_ends(struct ds_bytes text, const char *start, const char *end)
{
    size_t n_start = strlen(start), n_end = strlen(end);

    return text.size >= n_start + n_end && memcmp(text.data, start, n_start) == 0 &&
           memcmp(text.data + text.size - n_end, end, n_end) == 0;
}

/* Some models do not mark tokens as special that are; llama.cpp's converter knows them by their
 * looks, and so must this. */
static bool looks_special(struct ds_bytes text)
{
    return starts_and_ends(text, "<|", "|>") || starts_and_ends(text, "<\uFF5C", "\uFF5C>") ||
           starts_and_ends(text, "<unused", ">") ||
           (text.size == 5 && memcmp(text.data, "<pad>", 5) == 0) ||
           (text.size == 6 && memcmp(text.data, "<mask>", 6) == 0);
}

/* SPM's texts have U+2581 for blanks; a token that is found in raw text has blanks. */
static int with_blanks(struct ds_hf_reader *reader, struct ds_bytes *text)
{
    static const char blank[] = "\xE2\x96\x81";
    size_t n = 0;
    char *copy;

    if (text->size == 0 || !memmem(text->data, text->size, blank, 3))
        return 0;
    copy = ds_hf_alloc(reader->made, text->size);
    if (!copy)
        return -ENOMEM;
    for (size_t at = 0; at < text->size;) {
        bool is_blank = text->size - at >= 3 && memcmp(text->data + at, blank, 3) == 0;

        copy[n++] = is_blank ? ' ' : text->data[at];
        at += is_blank ? 3 : 1;
    }
    *text = (struct ds_bytes){ copy, n };
    return 0;
}

int ds_hf_token_added(struct ds_hf_reader *reader, enum ds_hf_file file, const char *field,
                      uint32_t id, const cJSON *entry)
{
    static const struct {
        const char *name;
        uint8_t flag;
    } flags[] = { { "lstrip", DS_TOKEN_LSTRIP },
                  { "rstrip", DS_TOKEN_RSTRIP },
                  { "single_word", DS_TOKEN_SINGLE_WORD } };
    const struct ds_bytes nothing = { NULL, 0 };
    const cJSON *content = cJSON_IsString(entry) ? entry : ds_hf_json_get(entry, "content");
    struct ds_hf_token token = { .type = DS_TOKEN_USER };
    struct ds_bytes text;
    uint32_t there;
    int r = 0;

    if (!cJSON_IsString(content) || !*content->valuestring)
        return ds_hf_bad(reader, file, "field '%s': token %u has no text (field 'content')", field,
                         id);
    text = ds_hf_json_text(content);
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        if (cJSON_IsTrue(ds_hf_json_get(entry, flags[i].name)))
            token.flags |= flags[i].flag;
    if (cJSON_IsTrue(ds_hf_json_get(entry, "special")) || looks_special(text))
        token.type = DS_TOKEN_CONTROL;
    there = ds_hf_token_find(reader, text, nothing);
    if (there != id) { /* a new one, or a contradiction */
        r = ds_hf_token_add(reader, file, field, id, text, token);
    } else if (reader->tokens[id].type != DS_TOKEN_UNKNOWN &&
               reader->tokens[id].type != DS_TOKEN_BYTE) {
        reader->tokens[id].type = token.type;
        reader->tokens[id].flags = token.flags;
    }
    return r;
}

static int add_decoder(struct ds_hf_reader *reader)
{
    static const char field[] = "added_tokens_decoder";
    const cJSON *decoder = ds_hf_json_get(reader->config, field), *entry;
    int r = 0;

    if (decoder && !cJSON_IsObject(decoder))
        return ds_hf_bad(reader, DS_HF_TOKENIZER_CONFIG, "field '%s' is no object", field);
    for (entry = decoder ? decoder->child : NULL; r == 0 && entry; entry = entry->next) {
        char *end = NULL;
        unsigned long id = strtoul(entry->string, &end, 10);

        if (end == entry->string || *end || id >= DS_TOKEN_NONE)
            return ds_hf_bad(reader, DS_HF_TOKENIZER_CONFIG, "field '%s': \"%s\" is no id", field,
                             ds_hf_quote(entry->string, strlen(entry->string)).text);
        r = ds_hf_token_added(reader, DS_HF_TOKENIZER_CONFIG, field, (uint32_t) id, entry);
    }
    return r;
}

/* added_tokens.json: {"text": id}. What tokenizer.json has already is as it is there. */
static int add_map(struct ds_hf_reader *reader, const cJSON *map)
{
    const struct ds_bytes nothing = { NULL, 0 };
    int r = 0;

    for (const cJSON *entry = map ? map->child : NULL; r == 0 && entry; entry = entry->next) {
        struct ds_bytes text = { entry->string, strlen(entry->string) };
        struct ds_hf_token token = { .type =
                                         looks_special(text) ? DS_TOKEN_CONTROL : DS_TOKEN_USER };
        uint32_t id;

        if (!ds_hf_json_id(entry, &id))
            return ds_hf_bad(reader, DS_HF_ADDED_TOKENS,
                             "token \"%s\" has no whole number as its id",
                             ds_hf_quote(text.data, text.size).text);
        if (ds_hf_token_find(reader, text, nothing) != id)
            r = ds_hf_token_add(reader, DS_HF_ADDED_TOKENS, entry->string, id, text, token);
    }
    return r;
}

size_t ds_hf_tokens_of_config_max(const struct ds_hf_reader *reader)
{
    const cJSON *decoder = ds_hf_json_get(reader->config, "added_tokens_decoder");

    return (size_t) cJSON_GetArraySize(decoder) + (size_t) cJSON_GetArraySize(reader->added);
}

int ds_hf_tokens_of_config(struct ds_hf_reader *reader)
{
    int r;

    r = add_decoder(reader);
    if (r == 0)
        r = add_map(reader, reader->added);
    for (uint32_t id = 0;
         r == 0 && reader->made->vocab.kind == DS_VOCAB_SPM && id < reader->n_tokens; id++)
        if (reader->tokens[id].type == DS_TOKEN_USER)
            r = with_blanks(reader, &reader->tokens[id].text);
    return r;
}
