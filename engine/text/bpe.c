/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/bpe.h"

#include "engine/text/byte_level.h"
#include "engine/text/unicode.h"

static const struct ds_bytes nothing = { NULL, 0 };

/* "left right": the first space at index 1 or later parts them. */
static int add_merge(struct ds_bpe *bpe, uint32_t rank, struct ds_bytes rule,
                     struct ds_error *error)
{
    const char *space = rule.size > 2 ? memchr(rule.data + 1, ' ', rule.size - 2) : NULL;
    struct ds_bytes left, right;
    uint32_t left_id, right_id, id;
    int r;

    if (!space)
        return ds_error_set(error, -EBADMSG,
                            "merge %u of the tokeniser is not a pair of texts: the file is damaged",
                            rank);
    left = (struct ds_bytes){ rule.data, (size_t) (space - rule.data) };
    right = (struct ds_bytes){ space + 1, rule.size - left.size - 1 };
    r = ds_text_index_intern(&bpe->index, left, nothing, &left_id);
    if (r < 0)
        return r;
    r = ds_text_index_intern(&bpe->index, right, nothing, &right_id);
    if (r < 0)
        return r;
    r = ds_text_index_intern(&bpe->index, left, right, &id);
    if (r < 0)
        return r;
    return ds_merge_table_add(&bpe->merges, left_id, right_id, rank, id);
}

int ds_bpe_add_rules(struct ds_text_index *index, struct ds_merge_table *merges,
                     struct ds_error *error)
{
    const struct ds_vocab *vocab = index->vocab;

    for (uint32_t rank = 0; rank < vocab->n_merges; rank++) {
        struct ds_merge_rule rule = vocab->rules[rank];
        int r;

        if (rule.left >= vocab->n_tokens || rule.right >= vocab->n_tokens ||
            rule.id >= vocab->n_tokens)
            return ds_error_set(error, -EBADMSG, "merge %u of the tokeniser is of no token", rank);
        r = ds_text_index_plain(index, rule.left, &rule.left);
        if (r == 0)
            r = ds_text_index_plain(index, rule.right, &rule.right);
        if (r == 0)
            r = ds_text_index_plain(index, rule.id, &rule.id);
        if (r == 0)
            r = ds_merge_table_add(merges, rule.left, rule.right, rank, rule.id);
        if (r < 0)
            return r;
    }
    return 0;
}

static int add_merges(struct ds_bpe *bpe, struct ds_error *error)
{
    const struct ds_vocab *vocab = bpe->index.vocab;
    int r = 0;

    if (vocab->rules)
        return ds_bpe_add_rules(&bpe->index, &bpe->merges, error);
    for (uint32_t i = 0; r == 0 && i < vocab->n_merges; i++)
        r = add_merge(bpe, i, vocab->merges[i], error);
    return r;
}

int ds_bpe_init(struct ds_bpe *bpe, const struct ds_vocab *vocab, struct ds_error *error)
{
    char known[256];
    int r;

    *bpe = (struct ds_bpe){ .pretokeniser = ds_pretokeniser_find(vocab->pre) };
    if (!bpe->pretokeniser) {
        ds_pretokeniser_list(known, sizeof known);
        return ds_error_set(error, -ENOTSUP, "pre-tokeniser \"%.*s\" is unknown; known are: %s",
                            (int) (vocab->pre.size < 64 ? vocab->pre.size : 64), vocab->pre.data,
                            known);
    }
    bpe->whole_words =
        vocab->ignore_merges < 0 ? bpe->pretokeniser->llama3 : vocab->ignore_merges > 0;
    r = ds_text_index_init(&bpe->index, vocab);
    if (r < 0)
        return r;
    r = ds_merge_table_init(&bpe->merges, vocab->n_merges);
    if (r < 0)
        return r;
    r = add_merges(bpe, error);
    if (r < 0)
        return r;
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[4];
        unsigned size = ds_utf8_encode(ds_byte_level_code_point((uint8_t) byte), text);

        bpe->byte_ids[byte] =
            ds_text_index_find(&bpe->index, (struct ds_bytes){ text, size }, nothing);
    }
    return 0;
}

void ds_bpe_deinit(struct ds_bpe *bpe)
{
    ds_text_index_deinit(&bpe->index);
    ds_merge_table_deinit(&bpe->merges);
}

/* The token that a whole word is, if it is one. */
static uint32_t find_word(const struct ds_bpe *bpe, const char *word, size_t size)
{
    char text[512 + 4]; /* twice what the longest token of a known vocabulary has */
    size_t n = 0;
    uint32_t id;

    for (size_t i = 0; i < size; i++) {
        n += ds_utf8_encode(ds_byte_level_code_point((uint8_t) word[i]), text + n);
        if (n > sizeof text - 4)
            return DS_TOKEN_NONE;
    }
    id = ds_text_index_find(&bpe->index, (struct ds_bytes){ text, n }, nothing);
    return id < bpe->index.vocab->n_tokens ? id : DS_TOKEN_NONE;
}

/* Writes the tokens of the bytes that a symbol stands for; how many. */
static size_t spell_symbol(const struct ds_bpe *bpe, uint32_t id, uint32_t *ids)
{
    struct ds_bytes text = ds_text_index_text(&bpe->index, id);
    size_t n = 0;

    for (size_t at = 0; at < text.size;) {
        uint32_t code_point;
        int byte;

        at += ds_utf8_step(text.data + at, text.size - at, &code_point);
        byte = ds_byte_level_byte(code_point);
        if (byte >= 0 && bpe->byte_ids[byte] < bpe->index.vocab->n_tokens)
            ids[n++] = bpe->byte_ids[byte];
    }
    return n;
}

/* Replaces symbols that are no tokens by those of their bytes, which are at most as many as the
 * word had; drops bytes without a token. */
static int spell_out(const struct ds_bpe *bpe, uint32_t *ids, size_t *n)
{
    ds_cleanup(ds_free_p) uint32_t *merged = NULL;
    uint32_t n_tokens = bpe->index.vocab->n_tokens;
    size_t n_out = 0, i = 0;

    while (i < *n && ids[i] < n_tokens)
        i++;
    if (i == *n)
        return 0;
    merged = malloc(*n * sizeof *merged);
    if (!merged)
        return -ENOMEM;
    memcpy(merged, ids, *n * sizeof *merged);
    for (i = 0; i < *n; i++) {
        if (merged[i] < n_tokens)
            ids[n_out++] = merged[i];
        else if (merged[i] != DS_TOKEN_NONE)
            n_out += spell_symbol(bpe, merged[i], ids + n_out);
    }
    *n = n_out;
    return 0;
}

static int merge_word(const struct ds_bpe *bpe, struct ds_encoding *encoding, const char *word,
                      size_t size)
{
    uint32_t *ids = ds_encoding_room(encoding, size);
    size_t n = size;
    int r;

    if (!ids)
        return -ENOMEM;
    for (size_t i = 0; i < size; i++)
        ids[i] = bpe->byte_ids[(uint8_t) word[i]];
    r = ds_merge_run(&bpe->merges, ids, &n, &encoding->scratch);
    if (r < 0)
        return r;
    r = spell_out(bpe, ids, &n);
    if (r < 0)
        return r;
    encoding->n += n;
    return 0;
}

struct job {
    const struct ds_bpe *bpe;
    struct ds_encoding *encoding;
};

static int encode_word(void *context, size_t start, size_t end)
{
    const struct job *job = context;
    struct ds_encoding *encoding = job->encoding;
    const char *word = encoding->text + start;
    uint32_t id = DS_TOKEN_NONE;
    struct ds_seen_word *slot;
    size_t first = encoding->n;
    int r;

    r = ds_encoding_recall(encoding, start, end, &slot);
    if (r != DS_WORD_NEW)
        return r;
    if (job->bpe->whole_words)
        id = find_word(job->bpe, word, end - start);
    r = id != DS_TOKEN_NONE ? ds_encoding_push(encoding, id)
                            : merge_word(job->bpe, encoding, word, end - start);
    if (r < 0)
        return r;
    ds_encoding_remember(encoding, slot, start, end, first);
    return 0;
}

int ds_bpe_encode(const struct ds_bpe *bpe, struct ds_encoding *encoding, size_t start, size_t end)
{
    struct job job = { bpe, encoding };

    return ds_pretokenise(bpe->pretokeniser, encoding->text, start, end, encode_word, &job);
}
