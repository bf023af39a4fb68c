/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hf_parts.h - what the readers of a folder's tokeniser files share; nobody else includes it.
 *
 * Reading goes: the model's own tokens and merges (hf_tokenizer_json.c, hf_sentencepiece.c), then
 * the tokens that were added to them, then the configuration, which names tokens (hf_config.c),
 * then all becomes one struct ds_vocab (hf_vocab.c).
 */
#pragma once

#include <stdbool.h>

#include <cjson/cJSON.h>

#include "engine/format/hf_vocab.h"

#define DS_HF_TOKENS_MAX (1u << 22) /* tokens, and merges */

struct ds_hf_block; /* of memory */

struct ds_hf_vocab {
    struct ds_vocab vocab;
    struct ds_sampling_advice advice;
    struct ds_hf_block *blocks; /* own; everything above lies in them */
};

struct ds_hf_token {
    struct ds_bytes text;
    float score;
    uint8_t type;  /* enum ds_token_type; 0: a hole */
    uint8_t flags; /* enum ds_token_flag */
};

struct ds_hf_reader {
    const struct ds_bytes *files; /* [DS_HF_N_FILES] */
    const struct ds_hf_model *model;
    struct ds_error *error;
    struct ds_hf_vocab *made;
    struct ds_hf_token *tokens; /* own, [capacity] by id */
    uint32_t capacity;          /* as many ids as the files can fill */
    uint32_t n_tokens;          /* largest id + 1 */
    struct ds_hf_slot {
        uint32_t hash, id; /* DS_TOKEN_NONE: empty */
    } * slots;             /* own; open addressing by text */
    size_t mask;
    cJSON *config, *added; /* own; tokenizer_config.json, added_tokens.json; NULL: none */
};

/* Fills reader->error with "FOLDER/FILE: REASON: fetch the file again"; -EBADMSG. */
__attribute__((format(printf, 3, 4))) int ds_hf_bad(const struct ds_hf_reader *reader,
                                                    enum ds_hf_file file, const char *format, ...);
/* The same for what is in order and not supported; -ENOTSUP. */
__attribute__((format(printf, 3, 4))) int
ds_hf_unsupported(const struct ds_hf_reader *reader, enum ds_hf_file file, const char *format, ...);

/* A piece of a hostile text for an error: at most 40 bytes, nothing unprintable. */
struct ds_hf_quoted {
    char text[44];
};
struct ds_hf_quoted ds_hf_quote(const char *text, size_t size);

/* Memory that lives as long as made. NULL: none. */
void *ds_hf_alloc(struct ds_hf_vocab *made, size_t size);
int ds_hf_copy(struct ds_hf_vocab *made, const char *text, size_t size, struct ds_bytes *ret_copy);

/* --- tokens (hf_tokens.c) --- */

/* Room for n tokens, all of them holes. -EBADMSG: too many; -ENOMEM. */
int ds_hf_tokens_init(struct ds_hf_reader *reader, enum ds_hf_file file, size_t n);

/* text is copied. field names the place in errors. An id or a text that is there already: -EBADMSG,
 * as is an id that leaves holes whatever else comes. */
int ds_hf_token_add(struct ds_hf_reader *reader, enum ds_hf_file file, const char *field,
                    uint32_t id, struct ds_bytes text, struct ds_hf_token token);

/* The token of a text given in two parts, DS_TOKEN_NONE where there is none. */
uint32_t ds_hf_token_find(const struct ds_hf_reader *reader, struct ds_bytes first,
                          struct ds_bytes second);

/* An entry of added_tokens or added_tokens_decoder: content and flags. The token may be there
 * already, under the same id. */
int ds_hf_token_added(struct ds_hf_reader *reader, enum ds_hf_file file, const char *field,
                      uint32_t id, const cJSON *entry);

/* The tokens that tokenizer_config.json and added_tokens.json add, and how many at most. */
int ds_hf_tokens_of_config(struct ds_hf_reader *reader);
size_t ds_hf_tokens_of_config_max(const struct ds_hf_reader *reader);

/* --- JSON (hf_json.c) --- */

/* The whole file; cJSON_Delete() it. NULL: failed, *ret_r says how. */
cJSON *ds_hf_json_parse(const struct ds_hf_reader *reader, enum ds_hf_file file, int *ret_r);

/* A member of an object; NULL where it is missing or null, or object is no object. */
const cJSON *ds_hf_json_get(const cJSON *object, const char *name);

/* A whole number from 0 to DS_TOKEN_NONE - 1. */
bool ds_hf_json_id(const cJSON *item, uint32_t *ret_id);

static inline struct ds_bytes ds_hf_json_text(const cJSON *string)
{
    return (struct ds_bytes){ string->valuestring, strlen(string->valuestring) };
}

/* --- the parts --- */

int ds_hf_read_tokenizer_json(struct ds_hf_reader *reader);

/* Sets kind, pre and add_space_prefix. */
int ds_hf_read_pretokeniser(struct ds_hf_reader *reader, const cJSON *tokenizer);

int ds_hf_read_sentencepiece(struct ds_hf_reader *reader);

/* Names of special tokens, BOS and EOS, template, advice. */
int ds_hf_read_config(struct ds_hf_reader *reader);
