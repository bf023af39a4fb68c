/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/text/spm.h"

#include "engine/text/bpe.h"
#include "engine/text/unicode.h"

static const struct ds_bytes nothing = { NULL, 0 };
static const struct ds_bytes space = { DS_SPM_SPACE, DS_SPM_SPACE_SIZE };

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int ds_spm_byte(struct ds_bytes text)
{
    if (text.size != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>' ||
        hex_digit(text.data[3]) < 0 || hex_digit(text.data[4]) < 0)
        return -1;
    return hex_digit(text.data[3]) * 16 + hex_digit(text.data[4]);
}

/* Higher scores rank lower. NAN ranks last. */
static uint32_t rank_of_score(float score)
{
    uint32_t bits;

    if (!(score == score))
        return DS_MERGE_RANK_MAX;
    score += 0.0f; /* -0 and 0 are one score */
    memcpy(&bits, &score, sizeof bits);
    bits = bits & 0x80000000u ? bits : ~bits & 0x7FFFFFFFu;
    return bits < DS_MERGE_RANK_MAX ? bits : DS_MERGE_RANK_MAX;
}

/* Token or symbol of a part of a token: a part of several characters counts only as a token. */
static int find_part(struct ds_spm *spm, struct ds_bytes part, bool is_character, uint32_t *ret_id)
{
    if (is_character)
        return ds_text_index_intern(&spm->index, part, nothing, ret_id);
    *ret_id = ds_text_index_find(&spm->index, part, nothing);
    return 0;
}

static bool ends_in_space(struct ds_bytes text)
{
    return text.size >= DS_SPM_SPACE_SIZE &&
           memcmp(text.data + text.size - DS_SPM_SPACE_SIZE, DS_SPM_SPACE, DS_SPM_SPACE_SIZE) == 0;
}

/* The rules by which a token comes about. */
static int derive_merges(struct ds_spm *spm, uint32_t id, struct ds_error *error)
{
    const struct ds_vocab *vocab = spm->index.vocab;
    struct ds_bytes text = vocab->tokens[id];
    uint32_t rank = rank_of_score(vocab->scores ? vocab->scores[id] : 0.0f);
    uint32_t code_point, left, right;
    int r;

    if (text.size > DS_SPM_TOKEN_MAX && vocab->types && vocab->types[id] == DS_TOKEN_USER)
        return 0; /* found in the text before anything is merged */
    if (text.size > DS_SPM_TOKEN_MAX)
        return ds_error_set(error, -EBADMSG, "token %u is %zu bytes long, at most %u are allowed",
                            id, text.size, DS_SPM_TOKEN_MAX);
    for (size_t at = 0; at < text.size;) {
        unsigned length = ds_utf8_step(text.data + at, text.size - at, &code_point);
        struct ds_bytes before = { text.data, at }, after = { text.data + at, text.size - at };
        size_t second = ds_utf8_step(text.data, text.size, &code_point);

        at += length;
        if (before.size == 0)
            continue;
        if (after.size >= DS_SPM_SPACE_SIZE && ends_in_space((struct ds_bytes){ after.data, 3 }) &&
            !ends_in_space(before))
            spm->words = false;
        r = find_part(spm, before, before.size == second, &left);
        if (r < 0)
            return r;
        r = find_part(spm, after, after.size == length, &right);
        if (r < 0)
            return r;
        if (left == DS_TOKEN_NONE || right == DS_TOKEN_NONE)
            continue;
        r = ds_merge_table_add(&spm->merges, left, right, rank, id);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Byte tokens, and the characters that most text is made of. */
static void find_single_ids(struct ds_spm *spm)
{
    const struct ds_vocab *vocab = spm->index.vocab;
    uint32_t unknown = vocab->unknown < vocab->n_tokens ? vocab->unknown : DS_TOKEN_NONE;

    if (vocab->unknown == DS_TOKEN_NONE && vocab->types && vocab->types[0] == DS_TOKEN_UNKNOWN)
        unknown = 0;
    for (unsigned byte = 0; byte < 256; byte++)
        spm->byte_ids[byte] = unknown;
    for (uint32_t id = 0; id < vocab->n_tokens; id++) {
        int byte =
            vocab->types && vocab->types[id] == DS_TOKEN_BYTE ? ds_spm_byte(vocab->tokens[id]) : -1;

        if (byte >= 0)
            spm->byte_ids[byte] = id;
    }
    for (unsigned c = 0; c < 128; c++) {
        char text = (char) c;
        struct ds_bytes character = { &text, 1 };

        spm->ascii_ids[c] = ds_text_index_find(&spm->index, c == ' ' ? space : character, nothing);
    }
}

/* Does a blank stand after something else? */
static bool has_space_inside(struct ds_bytes text)
{
    for (size_t at = 1; at + DS_SPM_SPACE_SIZE <= text.size; at++)
        if (memcmp(text.data + at, DS_SPM_SPACE, DS_SPM_SPACE_SIZE) == 0 &&
            !ends_in_space((struct ds_bytes){ text.data, at }))
            return true;
    return false;
}

/* The file's own rules. */
static int take_rules(struct ds_spm *spm, struct ds_error *error)
{
    const struct ds_vocab *vocab = spm->index.vocab;
    int r;

    r = ds_bpe_add_rules(&spm->index, &spm->merges, error);
    for (uint32_t i = 0; r == 0 && spm->words && i < vocab->n_merges; i++)
        spm->words = !has_space_inside(vocab->tokens[vocab->rules[i].id]);
    return r;
}

int ds_spm_init(struct ds_spm *spm, const struct ds_vocab *vocab, struct ds_error *error)
{
    int r;

    *spm = (struct ds_spm){ .words = true };
    r = ds_text_index_init(&spm->index, vocab);
    if (r < 0)
        return r;
    r = ds_merge_table_init(&spm->merges,
                            vocab->rules ? vocab->n_merges : 4 * (size_t) vocab->n_tokens);
    if (r == 0 && vocab->rules)
        r = take_rules(spm, error);
    if (r < 0)
        return r;
    for (uint32_t id = 0; !vocab->rules && id < vocab->n_tokens; id++) {
        /* Of tokens with one text the index knows one; the others are never made. */
        if (ds_text_index_find(&spm->index, vocab->tokens[id], nothing) != id)
            continue;
        r = derive_merges(spm, id, error);
        if (r < 0)
            return r;
    }
    find_single_ids(spm);
    return 0;
}

void ds_spm_deinit(struct ds_spm *spm)
{
    ds_text_index_deinit(&spm->index);
    ds_merge_table_deinit(&spm->merges);
}

/* Spells bytes in byte tokens; how many. */
static size_t spell(const struct ds_spm *spm, struct ds_bytes bytes, uint32_t *ids)
{
    size_t n = 0;

    for (size_t i = 0; i < bytes.size; i++) {
        uint32_t id = spm->byte_ids[(uint8_t) bytes.data[i]];

        if (id != DS_TOKEN_NONE)
            ids[n++] = id;
    }
    return n;
}

/* Writes the symbol of one character, or the byte tokens that no merge touches; how many. */
static size_t add_character(const struct ds_spm *spm, const char *character, unsigned size,
                            uint32_t *ids)
{
    struct ds_bytes text = { character, size };
    uint32_t id = size == 1 && (uint8_t) *character < 128
                      ? spm->ascii_ids[(uint8_t) *character]
                      : ds_text_index_find(&spm->index, text, nothing);

    if (id == DS_TOKEN_NONE)
        return spell(spm, *character == ' ' ? space : text, ids);
    ids[0] = id;
    return 1;
}

/* Replaces characters that are no tokens by their bytes. Symbols are single characters: what came
 * from a merge is a token. */
static int spell_out(const struct ds_spm *spm, struct ds_encoding *encoding, size_t n)
{
    uint32_t *ids = encoding->ids + encoding->n;
    uint32_t n_tokens = spm->index.vocab->n_tokens;
    ds_cleanup(ds_free_p) uint32_t *merged = NULL;
    size_t i = 0, n_out = 0;

    while (i < n && ids[i] < n_tokens)
        i++;
    if (i == n) {
        encoding->n += n;
        return 0;
    }
    merged = malloc(n * sizeof *merged);
    if (!merged)
        return -ENOMEM;
    memcpy(merged, ids, n * sizeof *merged);
    ids = ds_encoding_room(encoding, 4 * n);
    if (!ids)
        return -ENOMEM;
    for (i = 0; i < n; i++) {
        if (merged[i] < n_tokens)
            ids[n_out++] = merged[i];
        else
            n_out += spell(spm, ds_text_index_text(&spm->index, merged[i]), ids + n_out);
    }
    encoding->n += n_out;
    return 0;
}

static int merge_piece(const struct ds_spm *spm, struct ds_encoding *encoding, size_t start,
                       size_t end, bool space_first)
{
    /* One symbol a byte at most, but three bytes for a space that has no token. */
    uint32_t *ids = ds_encoding_room(encoding, 3 * (end - start + 1));
    size_t n = 0;
    int r;

    if (!ids)
        return -ENOMEM;
    if (space_first)
        n = add_character(spm, " ", 1, ids);
    while (start < end) {
        uint32_t code_point;
        unsigned length = ds_utf8_step(encoding->text + start, end - start, &code_point);

        n += add_character(spm, encoding->text + start, length, ids + n);
        start += length;
    }
    r = ds_merge_run(&spm->merges, ids, &n, &encoding->scratch);
    if (r < 0)
        return r;
    return spell_out(spm, encoding, n);
}

/* Before the next blank that follows something else than a blank or U+2581. */
static size_t word_end(const char *text, size_t start, size_t end)
{
    for (size_t at = start + 1; at < end; at++)
        if (text[at] == ' ' && text[at - 1] != ' ' &&
            !ends_in_space((struct ds_bytes){ text + start, at - start }))
            return at;
    return end;
}

int ds_spm_encode(const struct ds_spm *spm, struct ds_encoding *encoding, size_t start, size_t end,
                  bool space_first)
{
    while (start < end) {
        size_t stop = spm->words ? word_end(encoding->text, start, end) : end;
        size_t first = encoding->n;
        struct ds_seen_word *slot = NULL;
        int r = DS_WORD_NEW;

        if (!space_first)
            r = ds_encoding_recall(encoding, start, stop, &slot);
        if (r == DS_WORD_NEW) {
            r = merge_piece(spm, encoding, start, stop, space_first);
            if (r == 0)
                ds_encoding_remember(encoding, slot, start, stop, first);
        }
        if (r < 0)
            return r;
        space_first = false;
        start = stop;
    }
    return 0;
}
