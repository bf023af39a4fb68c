/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/hf_folder.h"

#include <stdio.h>

#include "proto/base.h"

/* The pre_tokenizer of each way of cutting, as the models' own files have it. */
#define SPLIT(regex)                                                                               \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\","         \
    "\"invert\":false},"
#define BYTES                                                                                      \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"      \
    "false}"
#define DIGITS "{\"type\":\"Digits\",\"individual_digits\":true},"
#define REST                                                                                       \
    " ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|"                \
    "\\\\s+"
#define CASED   "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
#define EAST    SPLIT("[\\u4e00-\\u9fa5\\u0800-\\u4e00\\uac00-\\ud7ff]+")
#define LETTERS /* of deepseek-llm, as JSON */                                                     \
    "A-Za-z\\u00b5\\u00c0-\\u00d6\\u00d8-\\u00f6\\u00f8-\\u01ba\\u01bc-\\u01bf\\u01c4-\\u0293"     \
    "\\u0295-\\u02af\\u0370-\\u0373\\u0376\\u0377\\u037b-\\u037d\\u037f\\u0386\\u0388-\\u038a"     \
    "\\u038c\\u038e-\\u03a1\\u03a3-\\u03f5\\u03f7-\\u0481\\u048a-\\u052f\\u0531-\\u0556"           \
    "\\u10a0-\\u10c5\\u13a0-\\u13f5\\u13f8-\\u13fd\\u1c90-\\u1cba\\u1cbd-\\u1cbf\\u1d00-\\u1d2b"   \
    "\\u1d6b-\\u1d77\\u1d79-\\u1d9a\\u1e00-\\u1f15\\u1f18-\\u1f1d\\u1f20-\\u1f45\\u1f48-\\u1f4d"   \
    "\\u1f50-\\u1f57\\u1f59\\u1f5b\\u1f5d\\u1f5f-\\u1f7d\\u1f80-\\u1fb4\\u1fb6-\\u1fbc\\u1fbe"     \
    "\\u1fc2-\\u1fc4\\u1fc6-\\u1fcc\\u1fd0-\\u1fd3\\u1fd6-\\u1fdb\\u1fe0-\\u1fec\\u1ff2-\\u1ff4"   \
    "\\u1ff6-\\u1ffc\\u2102\\u2107\\u210a-\\u2113\\u2115\\u2119-\\u211d\\u2124\\u2126\\u2128"      \
    "\\u212a-\\u212d\\u212f-\\u2134\\u2139\\u213c-\\u213f\\u2145-\\u2149\\u214e\\u2183\\u2184"     \
    "\\u2c00-\\u2c7b\\u2c7e-\\u2ce4\\u2ceb-\\u2cee\\u2cf2\\u2cf3\\ua640-\\ua66d\\ua680-\\ua69b"    \
    "\\ua722-\\ua76f\\ua771-\\ua787\\ua78b-\\ua78e\\uab70-\\uabbf\\ufb00-\\ufb06\\ufb13-\\ufb17"   \
    "\\uff21-\\uff3a\\uff41-\\uff5a\\ud801\\udc00-\\ud801\\udc4f\\ud801\\udcb0-\\ud801\\udcd3"     \
    "\\ud801\\udcd8-\\ud801\\udcfb\\ud803\\udc80-\\ud803\\udcb2\\ud803\\udcc0-\\ud803\\udcf2"      \
    "\\ud806\\udca0-\\ud806\\udcdf\\ud83a\\udd00-\\ud83a\\udd43"

static const struct {
    const char *pre, *json;
} cutters[] = {
    { "gpt-2", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true}" },
    { "smollm", DIGITS "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}" },
    { "llama-bpe", SPLIT(CASED "\\\\p{N}{1,3}|" REST) BYTES },
    { "qwen2", SPLIT(CASED "\\\\p{N}|" REST) BYTES },
    { "deepseek-r1-qwen", SPLIT(CASED "\\\\p{N}|" REST) BYTES },
    { "qwen35",
      SPLIT("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?"
            "[\\\\p{L}\\\\p{M}]+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{M}\\\\p{N}]+[\\\\r\\\\n]*|"
            "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+") BYTES },
    { "deepseek-v3",
      SPLIT("\\\\p{N}{1,3}") SPLIT("[\\u4e00-\\u9fa5\\u3040-\\u309f\\u30a0-\\u30ff]+") SPLIT(
          "[!\\\"#$%&'()*+,\\\\-./:;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+|"
          "[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*|"
          "\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+") BYTES },
    { "deepseek-coder",
      SPLIT("[\\r\\n]") SPLIT("\\\\s?\\\\p{L}+") SPLIT("\\\\s?\\\\p{P}+") EAST DIGITS BYTES },
    { "deepseek-llm",
      SPLIT("[\\r\\n]") SPLIT("\\\\s?[" LETTERS "]+")
          SPLIT("\\\\s?[!-/:-~\\uff01-\\uff0f\\uff1a-\\uff5e\\u2018-\\u201f\\u3000-\\u3002]+")
              SPLIT("\\\\s+$") EAST DIGITS BYTES },
};

static void put_text(FILE *out, struct ds_bytes text)
{
    (void) fputc('"', out);
    for (size_t i = 0; i < text.size; i++) {
        uint8_t byte = (uint8_t) text.data[i];

        if (byte < ' ')
            (void) fprintf(out, "\\u%04x", byte);
        else if (byte == '"' || byte == '\\')
            (void) fprintf(out, "\\%c", byte);
        else
            (void) fputc(byte, out);
    }
    (void) fputc('"', out);
}

static bool is_added(const struct ds_vocab *vocab, uint32_t id)
{
    int32_t type = vocab->types ? vocab->types[id] : DS_TOKEN_NORMAL;

    return type == DS_TOKEN_CONTROL || type == DS_TOKEN_USER || type == DS_TOKEN_UNKNOWN;
}

static void put_added(FILE *out, const struct ds_vocab *vocab, uint32_t n)
{
    const char *comma = "";

    (void) fputs("\"added_tokens\":[", out);
    for (uint32_t id = 0; id < n; id++) {
        if (!is_added(vocab, id))
            continue;
        (void) fprintf(out, "%s\n{\"id\":%u,\"single_word\":false,\"lstrip\":false,", comma, id);
        (void) fprintf(out, "\"rstrip\":false,\"normalized\":false,\"special\":%s,\"content\":",
                       vocab->types[id] == DS_TOKEN_USER ? "false" : "true");
        put_text(out, vocab->tokens[id]);
        (void) fputc('}', out);
        comma = ",";
    }
    (void) fputs("],\n", out);
}

/* SPM's tokens are all in the model; of byte-level BPE the added ones are not. */
static void put_vocab(FILE *out, const struct ds_vocab *vocab, uint32_t n)
{
    const char *comma = "";

    (void) fputs("\"vocab\":{", out);
    for (uint32_t id = 0; id < n; id++) {
        if (vocab->kind == DS_VOCAB_BPE && is_added(vocab, id))
            continue;
        (void) fprintf(out, "%s\n", comma);
        put_text(out, vocab->tokens[id]);
        (void) fprintf(out, ":%u", id);
        comma = ",";
    }
    (void) fputs("},\n", out);
}

static void put_merge(FILE *out, struct ds_bytes left, struct ds_bytes right, bool pairs,
                      const char *comma)
{
    char *joined;

    (void) fprintf(out, "%s\n", comma);
    if (pairs) {
        (void) fputc('[', out);
        put_text(out, left);
        (void) fputc(',', out);
        put_text(out, right);
        (void) fputc(']', out);
        return;
    }
    joined = malloc(left.size + right.size + 1);
    if (!joined)
        abort();
    memcpy(joined, left.data, left.size);
    joined[left.size] = ' ';
    memcpy(joined + left.size + 1, right.data, right.size);
    put_text(out, (struct ds_bytes){ joined, left.size + right.size + 1 });
    free(joined);
}

static void put_bpe_merges(FILE *out, const struct ds_vocab *vocab, bool pairs)
{
    for (uint32_t i = 0; i < vocab->n_merges; i++) {
        struct ds_bytes rule = vocab->merges[i];
        const char *space = memchr(rule.data + 1, ' ', rule.size - 1);
        struct ds_bytes left = { rule.data, (size_t) (space - rule.data) };
        struct ds_bytes right = { space + 1, rule.size - left.size - 1 };

        put_merge(out, left, right, pairs, i ? "," : "");
    }
}

/* --- SPM: the merges that transformers derives from the scores --- */

struct derived {
    uint32_t left, right;
    float score;
};

struct sorted { /* ids by text, for look-up */
    const struct ds_vocab *vocab;
    uint32_t *ids;
    uint32_t n;
};

static int compare_texts(struct ds_bytes a, struct ds_bytes b)
{
    int order = memcmp(a.data, b.data, a.size < b.size ? a.size : b.size);

    return order ? order : (a.size > b.size) - (a.size < b.size);
}

static int compare_ids(const void *a, const void *b, void *vocab)
{
    const struct ds_bytes *tokens = ((const struct ds_vocab *) vocab)->tokens;

    return compare_texts(tokens[*(const uint32_t *) a], tokens[*(const uint32_t *) b]);
}

static uint32_t find_id(const struct sorted *sorted, struct ds_bytes text)
{
    uint32_t low = 0, high = sorted->n;

    while (low < high) {
        uint32_t middle = (low + high) / 2;
        int order = compare_texts(sorted->vocab->tokens[sorted->ids[middle]], text);

        if (order == 0)
            return sorted->ids[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return DS_TOKEN_NONE;
}

/* Higher score first; of one score the longer parts first, then the larger ids. */
static int compare_derived(const void *a, const void *b, void *vocab)
{
    const struct ds_bytes *tokens = ((const struct ds_vocab *) vocab)->tokens;
    const struct derived *x = a, *y = b;
    size_t x_left = tokens[x->left].size, y_left = tokens[y->left].size;

    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    if (x_left != y_left)
        return x_left > y_left ? -1 : 1;
    return x->left != y->left ? (x->left > y->left ? 1 : -1) : 0;
}

static void put_spm_merges(FILE *out, const struct ds_vocab *vocab, bool pairs)
{
    struct sorted sorted = { vocab, malloc(vocab->n_tokens * sizeof(uint32_t)), 0 };
    struct derived *rules = malloc(16 * (size_t) vocab->n_tokens * sizeof *rules);
    size_t n = 0;

    if (!sorted.ids || !rules)
        abort();
    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        if (vocab->types[id] == DS_TOKEN_NORMAL)
            sorted.ids[sorted.n++] = id;
    qsort_r(sorted.ids, sorted.n, sizeof *sorted.ids, compare_ids, (void *) vocab);
    for (uint32_t i = 0; i < sorted.n; i++) {
        struct ds_bytes text = vocab->tokens[sorted.ids[i]];

        for (size_t at = 1; at < text.size && n < 16 * (size_t) vocab->n_tokens; at++) {
            uint32_t left = find_id(&sorted, (struct ds_bytes){ text.data, at });
            uint32_t right = find_id(&sorted, (struct ds_bytes){ text.data + at, text.size - at });

            if (left != DS_TOKEN_NONE && right != DS_TOKEN_NONE)
                rules[n++] = (struct derived){ left, right, vocab->scores[sorted.ids[i]] };
        }
    }
    qsort_r(rules, n, sizeof *rules, compare_derived, (void *) vocab);
    for (size_t i = 0; i < n; i++)
        put_merge(out, vocab->tokens[rules[i].left], vocab->tokens[rules[i].right], pairs,
                  i ? "," : "");
    free(sorted.ids);
    free(rules);
}

static void put_cutter(FILE *out, const struct ds_vocab *vocab)
{
    if (vocab->kind == DS_VOCAB_SPM) {
        (void) fputs("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","
                     "\"prepend\":\"\u2581\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
                     "\"content\":\"\u2581\"}]},\"pre_tokenizer\":null,\n",
                     out);
        return;
    }
    for (size_t i = 0; i < sizeof cutters / sizeof cutters[0]; i++)
        if (vocab->pre.size == strlen(cutters[i].pre) &&
            memcmp(vocab->pre.data, cutters[i].pre, vocab->pre.size) == 0)
            (void) fprintf(out,
                           "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":"
                           "\"Sequence\",\"pretokenizers\":[%s]},\n",
                           cutters[i].json);
}

char *ds_hf_tokenizer_json(const struct ds_vocab *vocab, bool pairs, uint32_t n_listed,
                           size_t *ret_size)
{
    uint32_t n = n_listed < vocab->n_tokens ? n_listed : vocab->n_tokens;
    bool spm = vocab->kind == DS_VOCAB_SPM;
    char *text = NULL;
    FILE *out = open_memstream(&text, ret_size);

    if (!out)
        abort();
    (void) fputs("{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\n", out);
    put_added(out, vocab, n);
    put_cutter(out, vocab);
    (void) fprintf(out,
                   "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":%s,"
                   "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":%s,"
                   "\"byte_fallback\":%s,",
                   spm ? "\"<unk>\"" : "null", spm ? "true" : "false", spm ? "true" : "false");
    if (vocab->ignore_merges >= 0)
        (void) fprintf(out, "\"ignore_merges\":%s,", vocab->ignore_merges ? "true" : "false");
    put_vocab(out, vocab, n);
    (void) fputs("\"merges\":[", out);
    if (spm)
        put_spm_merges(out, vocab, pairs);
    else
        put_bpe_merges(out, vocab, pairs);
    (void) fputs("]}}\n", out);
    if (fclose(out) != 0)
        abort();
    return text;
}
