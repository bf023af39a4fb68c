/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/hf_parts.h"

#define FILE_ DS_HF_TOKENIZER_JSON

/* "<0x0A>" */
static bool is_byte_name(struct ds_bytes text)
{
    return text.size == 6 && memcmp(text.data, "<0x", 3) == 0 && text.data[5] == '>' &&
           strspn(text.data + 3, "0123456789ABCDEFabcdef") == 2;
}

/* What the model may ask for and this build has not. */
static int check_model(const struct ds_hf_reader *reader, const cJSON *model)
{
    static const char *const affixes[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    const cJSON *type = ds_hf_json_get(model, "type"), *dropout = ds_hf_json_get(model, "dropout");

    if (!cJSON_IsObject(model))
        return ds_hf_bad(reader, FILE_, "field 'model' is missing");
    if (type && (!cJSON_IsString(type) || strcmp(type->valuestring, "BPE") != 0))
        return ds_hf_unsupported(
            reader, FILE_, "field 'model.type' is \"%s\", this build has BPE",
            cJSON_IsString(type) ? ds_hf_quote(type->valuestring, strlen(type->valuestring)).text
                                 : "?");
    if (cJSON_IsNumber(dropout) && dropout->valuedouble != 0)
        return ds_hf_unsupported(reader, FILE_, "field 'model.dropout' asks for random ids");
    for (size_t i = 0; i < sizeof affixes / sizeof affixes[0]; i++) {
        const cJSON *affix = ds_hf_json_get(model, affixes[i]);

        if (affix && !(cJSON_IsString(affix) && !*affix->valuestring))
            return ds_hf_unsupported(reader, FILE_, "field 'model.%s' is set", affixes[i]);
    }
    return 0;
}

static int read_tokens(struct ds_hf_reader *reader, const cJSON *tokenizer, const cJSON *vocab,
                       bool byte_fallback)
{
    const cJSON *added = ds_hf_json_get(tokenizer, "added_tokens"), *entry;
    int r;

    if (!cJSON_IsObject(vocab) || !vocab->child)
        return ds_hf_bad(reader, FILE_, "field 'model.vocab' is missing or empty");
    if (added && !cJSON_IsArray(added))
        return ds_hf_bad(reader, FILE_, "field 'added_tokens' is no array");
    r = ds_hf_tokens_init(reader, FILE_,
                          (size_t) cJSON_GetArraySize(vocab) + (size_t) cJSON_GetArraySize(added) +
                              ds_hf_tokens_of_config_max(reader));
    for (entry = vocab->child; r == 0 && entry; entry = entry->next) {
        struct ds_bytes text = { entry->string, strlen(entry->string) };
        struct ds_hf_token token = { .type = DS_TOKEN_NORMAL };
        uint32_t id;

        if (!ds_hf_json_id(entry, &id))
            return ds_hf_bad(reader, FILE_,
                             "field 'model.vocab': token \"%s\" has no whole number as its id",
                             ds_hf_quote(text.data, text.size).text);
        if (byte_fallback && is_byte_name(text))
            token.type = DS_TOKEN_BYTE;
        r = ds_hf_token_add(reader, FILE_, "model.vocab", id, text, token);
    }
    return r;
}

/* "left right", or ["left", "right"]. */
static bool split_merge(const cJSON *entry, struct ds_bytes *ret_left, struct ds_bytes *ret_right)
{
    const cJSON *left = cJSON_IsArray(entry) ? entry->child : NULL;
    const char *space;

    if (left) {
        if (!cJSON_IsString(left) || !cJSON_IsString(left->next) || left->next->next)
            return false;
        *ret_left = ds_hf_json_text(left);
        *ret_right = ds_hf_json_text(left->next);
        return true;
    }
    space = cJSON_IsString(entry) ? strchr(entry->valuestring, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return false;
    *ret_left = (struct ds_bytes){ entry->valuestring, (size_t) (space - entry->valuestring) };
    *ret_right = (struct ds_bytes){ space + 1, strlen(space + 1) };
    return true;
}

static int read_merges(struct ds_hf_reader *reader, const cJSON *merges)
{
    const struct ds_bytes nothing = { NULL, 0 };
    struct ds_vocab *vocab = &reader->made->vocab;
    struct ds_merge_rule *rules;
    uint32_t n = 0;

    if (!cJSON_IsArray(merges))
        return ds_hf_bad(reader, FILE_, "field 'model.merges' is missing");
    if (cJSON_GetArraySize(merges) > (int) DS_HF_TOKENS_MAX)
        return ds_hf_bad(reader, FILE_, "field 'model.merges' has more than %u entries",
                         DS_HF_TOKENS_MAX);
    rules = ds_hf_alloc(reader->made, ((size_t) cJSON_GetArraySize(merges) + 1) * sizeof *rules);
    if (!rules)
        return -ENOMEM;
    for (const cJSON *entry = merges->child; entry; entry = entry->next, n++) {
        struct ds_merge_rule *rule = &rules[n];
        struct ds_bytes left, right;

        if (!split_merge(entry, &left, &right))
            return ds_hf_bad(reader, FILE_, "field 'model.merges', entry %u, is no pair of texts",
                             n);
        rule->left = ds_hf_token_find(reader, left, nothing);
        rule->right = ds_hf_token_find(reader, right, nothing);
        rule->id = ds_hf_token_find(reader, left, right);
        if (rule->left == DS_TOKEN_NONE || rule->right == DS_TOKEN_NONE ||
            rule->id == DS_TOKEN_NONE)
            return ds_hf_bad(reader, FILE_,
                             "field 'model.merges', entry %u: \"%s\" and \"%s\" or what they make "
                             "is no token of 'model.vocab'",
                             n, ds_hf_quote(left.data, left.size).text,
                             ds_hf_quote(right.data, right.size).text);
    }
    vocab->rules = rules;
    vocab->n_merges = n;
    return 0;
}

static int read_added(struct ds_hf_reader *reader, const cJSON *tokenizer)
{
    const cJSON *added = ds_hf_json_get(tokenizer, "added_tokens");
    int r = 0;

    for (const cJSON *entry = added ? added->child : NULL; r == 0 && entry; entry = entry->next) {
        uint32_t id;

        if (!ds_hf_json_id(ds_hf_json_get(entry, "id"), &id))
            return ds_hf_bad(reader, FILE_, "field 'added_tokens': an entry without an id");
        r = ds_hf_token_added(reader, FILE_, "added_tokens", id, entry);
    }
    return r;
}

/* --- what a text is put between --- */

static const cJSON *template_processor(const cJSON *processor, unsigned depth)
{
    const cJSON *type = ds_hf_json_get(processor, "type"), *list, *found = NULL;

    if (!cJSON_IsString(type) || depth == 0)
        return NULL;
    if (strcmp(type->valuestring, "TemplateProcessing") == 0)
        return processor;
    list = ds_hf_json_get(processor, "processors");
    for (list = list ? list->child : NULL; list && !found; list = list->next)
        found = template_processor(list, depth - 1);
    return found;
}

/* BOS and EOS of the template of a single text: [SpecialToken, Sequence, SpecialToken]. What
 * tokenizer_config.json says of them comes later and counts more. */
static void read_post_processor(struct ds_hf_reader *reader, const cJSON *tokenizer)
{
    const cJSON *processor = template_processor(ds_hf_json_get(tokenizer, "post_processor"), 8);
    const cJSON *single = ds_hf_json_get(processor, "single");
    struct ds_vocab *vocab = &reader->made->vocab;
    bool text_seen = false;

    if (!cJSON_IsArray(single))
        return;
    vocab->add_bos = vocab->add_eos = 0;
    for (const cJSON *part = single->child; part; part = part->next) {
        const cJSON *id = ds_hf_json_get(ds_hf_json_get(part, "SpecialToken"), "id");
        struct ds_bytes nothing = { NULL, 0 };
        uint32_t token = cJSON_IsString(id) ? ds_hf_token_find(reader, ds_hf_json_text(id), nothing)
                                            : DS_TOKEN_NONE;

        text_seen = text_seen || ds_hf_json_get(part, "Sequence");
        if (token == DS_TOKEN_NONE)
            continue;
        if (text_seen) {
            vocab->add_eos = 1;
            vocab->eos = token;
        } else {
            vocab->add_bos = 1;
            vocab->bos = token;
        }
    }
}

static int read_tree(struct ds_hf_reader *reader, const cJSON *tokenizer)
{
    const cJSON *model = ds_hf_json_get(tokenizer, "model"), *flag, *unknown;
    struct ds_vocab *vocab = &reader->made->vocab;
    const struct ds_bytes nothing = { NULL, 0 };
    int r;

    r = check_model(reader, model);
    if (r == 0)
        r = ds_hf_read_pretokeniser(reader, tokenizer);
    if (r == 0)
        r = read_tokens(reader, tokenizer, ds_hf_json_get(model, "vocab"),
                        vocab->kind == DS_VOCAB_SPM);
    if (r == 0)
        r = read_merges(reader, ds_hf_json_get(model, "merges"));
    if (r < 0)
        return r;
    flag = ds_hf_json_get(model, "ignore_merges");
    if (cJSON_IsBool(flag))
        vocab->ignore_merges = cJSON_IsTrue(flag) ? 1 : 0;
    unknown = ds_hf_json_get(model, "unk_token");
    if (cJSON_IsString(unknown) && vocab->kind == DS_VOCAB_SPM) {
        vocab->unknown = ds_hf_token_find(reader, ds_hf_json_text(unknown), nothing);
        if (vocab->unknown == DS_TOKEN_NONE)
            return ds_hf_bad(reader, FILE_, "field 'model.unk_token' is no token of 'model.vocab'");
        reader->tokens[vocab->unknown].type = DS_TOKEN_UNKNOWN;
    }
    r = read_added(reader, tokenizer);
    if (r == 0)
        read_post_processor(reader, tokenizer);
    return r;
}

int ds_hf_read_tokenizer_json(struct ds_hf_reader *reader)
{
    cJSON *tokenizer;
    int r;

    tokenizer = ds_hf_json_parse(reader, FILE_, &r);
    if (!tokenizer)
        return r;
    r = read_tree(reader, tokenizer);
    cJSON_Delete(tokenizer);
    return r;
}
