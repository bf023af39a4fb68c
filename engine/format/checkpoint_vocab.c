/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "engine/format/checkpoint_parts.h"

#define KEY(suffix) "tokenizer.ggml." suffix

static int bad(const struct ds_key_reader *reader, const char *what)
{
    return ds_error_set(reader->error, -EINVAL, "%s: %s: convert the model again",
                        reader->gguf->label, what);
}

static int no_memory(const struct ds_key_reader *reader)
{
    return ds_error_set(reader->error, -ENOMEM, "%s: no memory for its vocabulary",
                        reader->gguf->label);
}

static int read_kind(const struct ds_key_reader *reader, struct ds_vocab *vocab)
{
    struct ds_bytes model = { "", 0 };
    int r;

    r = ds_key_bytes(reader, KEY("model"), &model);
    if (r < 0)
        return r;
    if (model.size == 4 && memcmp(model.data, "gpt2", 4) == 0)
        vocab->kind = DS_VOCAB_BPE;
    else if (model.size == 5 && memcmp(model.data, "llama", 5) == 0)
        vocab->kind = DS_VOCAB_SPM;
    else if (model.size == 0)
        return bad(reader, "key 'tokenizer.ggml.model' is missing");
    else
        return ds_error_set(reader->error, -ENOTSUP,
                            "%s: its kind of tokeniser (key 'tokenizer.ggml.model') is not "
                            "supported: this build has gpt2 (BPE) and llama (SPM)",
                            reader->gguf->label);
    return ds_key_bytes(reader, KEY("pre"), &vocab->pre);
}

/* An array of strings; *ret_n 0 and NULL where the key is missing. */
static int read_strings(const struct ds_key_reader *reader, const char *name,
                        const struct ds_bytes **ret_strings, uint32_t *ret_n)
{
    const struct ds_gguf_key *key = ds_gguf_find(reader->gguf, name);
    struct ds_bytes *strings;

    *ret_n = 0;
    *ret_strings = NULL;
    if (!key)
        return 0;
    if (!key->is_array || key->type != DS_GGUF_STRING || key->n > DS_VOCABULARY_MAX)
        return ds_error_set(reader->error, -EINVAL,
                            "%s: key '%s' is no array of at most %u strings: "
                            "convert the model again",
                            reader->gguf->label, name, DS_VOCABULARY_MAX);
    strings = ds_gguf_strings(key);
    if (!strings)
        return no_memory(reader);
    *ret_strings = strings;
    *ret_n = (uint32_t) key->n;
    return 0;
}

static int read_types(const struct ds_key_reader *reader, struct ds_vocab *vocab)
{
    const struct ds_gguf_key *key = ds_gguf_find(reader->gguf, KEY("token_type"));
    int32_t *types;

    if (!key)
        return 0;
    if (!key->is_array || key->n != vocab->n_tokens)
        return bad(reader, "key 'tokenizer.ggml.token_type' has not one number for each token");
    types = calloc(key->n + 1, sizeof *types);
    vocab->types = types;
    if (!types)
        return no_memory(reader);
    for (uint32_t i = 0; i < vocab->n_tokens; i++) {
        int64_t type;

        if (!ds_gguf_i64(key, i, &type) || type < 0 || type > DS_TOKEN_BYTE)
            return bad(reader, "key 'tokenizer.ggml.token_type' holds an unknown token type");
        types[i] = type == 0 ? DS_TOKEN_NORMAL : (int32_t) type;
    }
    return 0;
}

static int read_scores(const struct ds_key_reader *reader, struct ds_vocab *vocab)
{
    const struct ds_gguf_key *key = ds_gguf_find(reader->gguf, KEY("scores"));
    float *scores;

    if (vocab->kind != DS_VOCAB_SPM)
        return 0;
    if (!key)
        return bad(reader, "key 'tokenizer.ggml.scores' is missing, which an SPM tokeniser needs");
    if (!key->is_array || key->n != vocab->n_tokens)
        return bad(reader, "key 'tokenizer.ggml.scores' has not one number for each token");
    scores = calloc(key->n + 1, sizeof *scores);
    vocab->scores = scores;
    if (!scores)
        return no_memory(reader);
    for (uint32_t i = 0; i < vocab->n_tokens; i++) {
        double score;

        if (!ds_gguf_f64(key, i, &score) || isnan(score))
            return bad(reader, "key 'tokenizer.ggml.scores' holds something that is no number");
        scores[i] = (float) score;
    }
    return 0;
}

/* One special token; -1 (in whatever width) means none. */
static int read_special(const struct ds_key_reader *reader, const char *name, uint32_t n_tokens,
                        uint32_t *ret_id)
{
    const struct ds_gguf_key *key = ds_gguf_find(reader->gguf, name);
    int64_t id;

    *ret_id = DS_TOKEN_NONE;
    if (!key)
        return 0;
    if (key->is_array || !ds_gguf_i64(key, 0, &id) ||
        (id != -1 && id != UINT32_MAX && (id < 0 || id >= n_tokens)))
        return ds_error_set(reader->error, -EINVAL,
                            "%s: key '%s' is no token of its vocabulary (0 to %u): "
                            "convert the model again",
                            reader->gguf->label, name, n_tokens ? n_tokens - 1 : 0);
    *ret_id = id < 0 ? DS_TOKEN_NONE : (uint32_t) id;
    return 0;
}

static int read_specials(const struct ds_key_reader *reader, struct ds_vocab *vocab)
{
    const struct {
        const char *name;
        uint32_t *id;
    } specials[] = {
        { KEY("bos_token_id"), &vocab->bos },         { KEY("eos_token_id"), &vocab->eos },
        { KEY("eot_token_id"), &vocab->eot },         { KEY("eom_token_id"), &vocab->eom },
        { KEY("unknown_token_id"), &vocab->unknown }, { KEY("padding_token_id"), &vocab->padding },
        { KEY("fim_pad_token_id"), &vocab->fim_pad }, { KEY("fim_rep_token_id"), &vocab->fim_rep },
        { KEY("fim_sep_token_id"), &vocab->fim_sep },
    };
    int r = 0;

    for (unsigned i = 0; r == 0 && i < sizeof specials / sizeof specials[0]; i++)
        r = read_special(reader, specials[i].name, vocab->n_tokens, specials[i].id);
    return r;
}

static int read_flags(const struct ds_key_reader *reader, struct ds_vocab *vocab)
{
    int r;

    vocab->add_bos = vocab->add_eos = vocab->add_space_prefix = vocab->ignore_merges = -1;
    r = ds_key_flag(reader, KEY("add_bos_token"), &vocab->add_bos);
    if (r == 0)
        r = ds_key_flag(reader, KEY("add_eos_token"), &vocab->add_eos);
    if (r == 0)
        r = ds_key_flag(reader, KEY("add_space_prefix"), &vocab->add_space_prefix);
    if (r == 0)
        r = ds_key_flag(reader, KEY("ignore_merges"), &vocab->ignore_merges);
    return r;
}

static int read_advice(const struct ds_key_reader *reader, struct ds_sampling_advice *advice)
{
    uint32_t top_k = UINT32_MAX;
    int r;

    *advice = (struct ds_sampling_advice){ NAN, NAN, NAN, NAN, -1 };
    r = ds_key_f32(reader, "general.sampling.temp", false, &advice->temperature);
    if (r == 0)
        r = ds_key_f32(reader, "general.sampling.top_p", false, &advice->top_p);
    if (r == 0)
        r = ds_key_f32(reader, "general.sampling.min_p", false, &advice->min_p);
    if (r == 0)
        r = ds_key_f32(reader, "general.sampling.penalty_repeat", false, &advice->repeat_penalty);
    if (r == 0)
        r = ds_key_u32(reader, "general.sampling.top_k", false, &top_k);
    if (r == 0 && top_k <= INT32_MAX)
        advice->top_k = (int32_t) top_k;
    return r;
}

int ds_checkpoint_read_vocab(struct ds_checkpoint *checkpoint, struct ds_error *error)
{
    struct ds_key_reader reader = { &checkpoint->files[0], error };
    struct ds_vocab *vocab = &checkpoint->vocab;
    int r;

    vocab->pre = vocab->chat_template = (struct ds_bytes){ "", 0 };
    r = read_kind(&reader, vocab);
    if (r == 0)
        r = read_strings(&reader, KEY("tokens"), &vocab->tokens, &vocab->n_tokens);
    if (r == 0 && vocab->n_tokens == 0)
        r = bad(&reader, "key 'tokenizer.ggml.tokens' is missing or empty");
    if (r == 0)
        r = read_types(&reader, vocab);
    if (r == 0)
        r = read_scores(&reader, vocab);
    if (r == 0 && vocab->kind == DS_VOCAB_BPE)
        r = read_strings(&reader, KEY("merges"), &vocab->merges, &vocab->n_merges);
    if (r == 0)
        r = read_specials(&reader, vocab);
    if (r == 0)
        r = read_flags(&reader, vocab);
    if (r == 0)
        r = ds_key_bytes(&reader, "tokenizer.chat_template", &vocab->chat_template);
    if (r == 0)
        r = read_advice(&reader, &checkpoint->advice);
    return r;
}
