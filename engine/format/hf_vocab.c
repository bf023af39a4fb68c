/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "engine/format/hf_parts.h"

#define BLOCK_BYTES (1u << 20)

struct ds_hf_block {
    struct ds_hf_block *next;
    size_t used, size;
    char data[];
};

const char *ds_hf_file_name(enum ds_hf_file file)
{
    static const char *const names[DS_HF_N_FILES] = {
        [DS_HF_TOKENIZER_JSON] = "tokenizer.json",
        [DS_HF_TOKENIZER_MODEL] = "tokenizer.model",
        [DS_HF_TOKENIZER_CONFIG] = "tokenizer_config.json",
        [DS_HF_SPECIAL_TOKENS] = "special_tokens_map.json",
        [DS_HF_ADDED_TOKENS] = "added_tokens.json",
        [DS_HF_CHAT_TEMPLATE] = "chat_template.jinja",
        [DS_HF_GENERATION_CONFIG] = "generation_config.json",
    };

    return names[file];
}

/* --- errors --- */

static int report(const struct ds_hf_reader *reader, enum ds_hf_file file, int code,
                  const char *remedy, const char *format, va_list ap)
{
    char reason[320];

    (void) vsnprintf(reason, sizeof reason, format, ap);
    return ds_error_set(reader->error, code, "%s/%s: %s: %s", reader->model->label,
                        ds_hf_file_name(file), reason, remedy);
}

int ds_hf_bad(const struct ds_hf_reader *reader, enum ds_hf_file file, const char *format, ...)
{
    va_list ap;
    int r;

    va_start(ap, format);
    r = report(reader, file, -EBADMSG, "fetch the file again", format, ap);
    va_end(ap);
    return r;
}

int ds_hf_unsupported(const struct ds_hf_reader *reader, enum ds_hf_file file, const char *format,
                      ...)
{
    va_list ap;
    int r;

    va_start(ap, format);
    r = report(reader, file, -ENOTSUP, "use a GGUF file of the model", format, ap);
    va_end(ap);
    return r;
}

struct ds_hf_quoted ds_hf_quote(const char *text, size_t size)
{
    struct ds_hf_quoted quoted = { "" };
    size_t n = size < 40 ? size : 40;

    while (n < size && n > 0 && ((uint8_t) text[n] & 0xC0) == 0x80)
        n--; /* no part of a character */
    for (size_t i = 0; i < n; i++)
        quoted.text[i] = (uint8_t) text[i] < ' ' || text[i] == 0x7F ? '?' : text[i];
    quoted.text[n] = '\0';
    return quoted;
}

/* --- memory --- */

void *ds_hf_alloc(struct ds_hf_vocab *made, size_t size)
{
    struct ds_hf_block *block = made->blocks;
    size_t room;
    void *memory;

    size = (size + 7) & ~(size_t) 7;
    if (!block || block->size - block->used < size) {
        room = size < BLOCK_BYTES / 4 ? BLOCK_BYTES : size;
        block = malloc(sizeof *block + room);
        if (!block)
            return NULL;
        *block = (struct ds_hf_block){ made->blocks, 0, room };
        made->blocks = block;
    }
    memory = block->data + block->used;
    block->used += size;
    return memory;
}

int ds_hf_copy(struct ds_hf_vocab *made, const char *text, size_t size, struct ds_bytes *ret_copy)
{
    char *copy = ds_hf_alloc(made, size + 1);

    if (!copy)
        return -ENOMEM;
    memcpy(copy, text, size);
    copy[size] = '\0';
    *ret_copy = (struct ds_bytes){ copy, size };
    return 0;
}

/* --- all together --- */

static const cJSON *open_json(struct ds_hf_reader *reader, enum ds_hf_file file, cJSON **ret_json,
                              int *ret_r)
{
    *ret_r = 0;
    if (reader->files[file].size > 0)
        *ret_json = ds_hf_json_parse(reader, file, ret_r);
    return *ret_json;
}

static int check_ids(const struct ds_hf_reader *reader, enum ds_hf_file file)
{
    uint32_t wanted = reader->model->n_vocab;

    for (uint32_t id = 0; id < reader->n_tokens; id++)
        if (reader->tokens[id].type == 0)
            return ds_hf_bad(reader, file, "no token has the id %u, and one has the id %u", id,
                             reader->n_tokens - 1);
    if (wanted > DS_HF_TOKENS_MAX)
        return ds_error_set(reader->error, -EBADMSG,
                            "%s/config.json: field 'vocab_size' is %u, at most %u are allowed: "
                            "fetch the file again",
                            reader->model->label, wanted, DS_HF_TOKENS_MAX);
    if (wanted != 0 && reader->n_tokens > wanted)
        return ds_hf_bad(reader, file, "has %u tokens, but config.json's 'vocab_size' is %u",
                         reader->n_tokens, wanted);
    return 0;
}

/* The tokens as a GGUF file has them; ids up to vocab_size that no file names are unused. */
static int finish(struct ds_hf_reader *reader)
{
    struct ds_vocab *vocab = &reader->made->vocab;
    uint32_t n =
        reader->n_tokens > reader->model->n_vocab ? reader->n_tokens : reader->model->n_vocab;
    struct ds_bytes *texts = ds_hf_alloc(reader->made, n * sizeof *texts);
    int32_t *types = ds_hf_alloc(reader->made, n * sizeof *types);
    float *scores = ds_hf_alloc(reader->made, n * sizeof *scores);
    uint8_t *flags = ds_hf_alloc(reader->made, n), any = 0;
    uint32_t *const named[] = { &vocab->bos, &vocab->eos, &vocab->unknown, &vocab->padding };

    if (!texts || !types || !scores || !flags)
        return -ENOMEM;
    for (uint32_t id = 0; id < n; id++) {
        struct ds_hf_token token = { { "", 0 }, 0, DS_TOKEN_UNUSED, 0 };

        if (id < reader->n_tokens)
            token = reader->tokens[id];
        texts[id] = token.text;
        types[id] = token.type;
        scores[id] = token.score;
        flags[id] = token.flags;
        any |= token.flags;
    }
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++)
        if (*named[i] >= reader->n_tokens)
            *named[i] = DS_TOKEN_NONE;
    vocab->n_tokens = n;
    vocab->tokens = texts;
    vocab->types = types;
    vocab->scores = vocab->kind == DS_VOCAB_SPM ? scores : NULL;
    vocab->flags = any ? flags : NULL;
    return 0;
}

static int read_all(struct ds_hf_reader *reader)
{
    enum ds_hf_file file =
        reader->files[DS_HF_TOKENIZER_JSON].size > 0 ? DS_HF_TOKENIZER_JSON : DS_HF_TOKENIZER_MODEL;
    int r;

    if (reader->files[file].size == 0)
        return ds_error_set(reader->error, -ENOENT,
                            "%s: has neither tokenizer.json nor tokenizer.model: fetch the folder "
                            "again",
                            reader->model->label);
    (void) open_json(reader, DS_HF_TOKENIZER_CONFIG, &reader->config, &r);
    if (r == 0)
        (void) open_json(reader, DS_HF_ADDED_TOKENS, &reader->added, &r);
    if (r == 0)
        r = file == DS_HF_TOKENIZER_JSON ? ds_hf_read_tokenizer_json(reader)
                                         : ds_hf_read_sentencepiece(reader);
    if (r == 0)
        r = ds_hf_tokens_of_config(reader);
    if (r == 0)
        r = check_ids(reader, file);
    if (r == 0)
        r = ds_hf_read_config(reader);
    return r == 0 ? finish(reader) : r;
}

int ds_hf_vocab_read(struct ds_hf_vocab **ret_vocab, const struct ds_bytes files[DS_HF_N_FILES],
                     const struct ds_hf_model *model, struct ds_error *error)
{
    ds_cleanup(ds_hf_vocab_free_p) struct ds_hf_vocab *made = calloc(1, sizeof *made);
    struct ds_hf_reader reader = { .files = files, .model = model, .error = error, .made = made };
    int r = -ENOMEM;

    if (made) {
        made->vocab = (struct ds_vocab){
            .pre = { "", 0 },
            .chat_template = { "", 0 },
            .bos = DS_TOKEN_NONE,
            .eos = DS_TOKEN_NONE,
            .eot = DS_TOKEN_NONE,
            .eom = DS_TOKEN_NONE,
            .unknown = DS_TOKEN_NONE,
            .padding = DS_TOKEN_NONE,
            .fim_pad = DS_TOKEN_NONE,
            .fim_rep = DS_TOKEN_NONE,
            .fim_sep = DS_TOKEN_NONE,
            .add_bos = -1,
            .add_eos = -1,
            .add_space_prefix = -1,
            .ignore_merges = -1,
        };
        made->advice = (struct ds_sampling_advice){ NAN, NAN, NAN, NAN, -1 };
        r = read_all(&reader);
    }
    free(reader.tokens);
    free(reader.slots);
    cJSON_Delete(reader.config);
    cJSON_Delete(reader.added);
    if (r == -ENOMEM)
        return ds_error_set(error, r, "%s: no memory for its tokeniser", model->label);
    if (r == 0)
        *ret_vocab = ds_steal(made);
    return r;
}

struct ds_hf_vocab *ds_hf_vocab_free(struct ds_hf_vocab *vocab)
{
    while (vocab && vocab->blocks) {
        struct ds_hf_block *block = vocab->blocks;

        vocab->blocks = block->next;
        free(block);
    }
    free(vocab);
    return NULL;
}

void ds_hf_vocab_free_p(struct ds_hf_vocab **vocab)
{
    *vocab = ds_hf_vocab_free(*vocab);
}

const struct ds_vocab *ds_hf_vocab_get(const struct ds_hf_vocab *vocab)
{
    return &vocab->vocab;
}

const struct ds_sampling_advice *ds_hf_vocab_advice(const struct ds_hf_vocab *vocab)
{
    return &vocab->advice;
}
