/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: encoding is what the definitions of BPE and SPM say, whatever the vocabulary and the text;
 * special tokens come from the text only where they should; hostile text costs n log n.
 * Method: random vocabularies and texts against a second implementation that follows the
 * definitions word for word, on strings, slowly; vocabularies made by hand for every rule; long
 * runs, timed.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/text/byte_level.h"
#include "engine/text/pretokenise.h"
#include "engine/text/tokenizer.h"
#include "engine/text/unicode.h"
#include "tests/lib/random_vocab.h"

static struct ds_tokenizer *make(const struct ds_random_vocab *random_vocab)
{
    struct ds_tokenizer *tokenizer = NULL;
    struct ds_error error = { "" };

    if (ds_tokenizer_new(&tokenizer, &random_vocab->vocab, &error) < 0)
        fail_msg("%s", error.text);
    return tokenizer;
}

static struct ds_bytes of(const char *text)
{
    return (struct ds_bytes){ text, strlen(text) };
}

static void expect(const struct ds_tokenizer *tokenizer, const char *text, unsigned flags,
                   const uint32_t *expected, size_t n_expected)
{
    uint32_t *ids = NULL;
    size_t n = 0;

    assert_int_equal(ds_tokenizer_encode(tokenizer, text, strlen(text), flags, &ids, &n), 0);
    assert_int_equal(n, n_expected);
    assert_memory_equal(ids, expected, n * sizeof *ids);
    free(ids);
}

#define EXPECT(tokenizer, text, flags, ...)                                                        \
    expect(tokenizer, text, flags, (const uint32_t[]){ __VA_ARGS__ },                              \
           sizeof((const uint32_t[]){ __VA_ARGS__ }) / sizeof(uint32_t))

/* --- a second implementation: symbols are strings, every search is linear --- */

#define SYMBOLS_MAX 512

struct oracle {
    const struct ds_vocab *vocab;
    const char *text;
    char *symbols[SYMBOLS_MAX]; /* own */
    size_t n_symbols;
    uint32_t ids[4096];
    size_t n_ids;
};

static uint32_t oracle_find(const struct oracle *oracle, const char *symbol)
{
    for (uint32_t id = oracle->vocab->n_tokens; id-- > 0;) {
        struct ds_bytes token = oracle->vocab->tokens[id];
        int32_t type = oracle->vocab->types[id];

        if (type != DS_TOKEN_CONTROL && type != DS_TOKEN_UNKNOWN && type != DS_TOKEN_BYTE &&
            token.size == strlen(symbol) && memcmp(token.data, symbol, token.size) == 0)
            return id;
    }
    return DS_TOKEN_NONE;
}

/* How good a pair is: larger is better, 0 = cannot be joined. */
static double pair_worth(const struct oracle *oracle, const char *left, const char *right)
{
    const struct ds_vocab *vocab = oracle->vocab;
    char both[1024];
    uint32_t id;

    (void) snprintf(both, sizeof both, "%s%s%s", left, vocab->kind == DS_VOCAB_BPE ? " " : "",
                    right);
    if (vocab->kind == DS_VOCAB_SPM) {
        id = oracle_find(oracle, both);
        return id == DS_TOKEN_NONE ? 0 : 1e6 + (double) vocab->scores[id];
    }
    for (uint32_t rank = 0; rank < vocab->n_merges; rank++)
        if (vocab->merges[rank].size == strlen(both) &&
            memcmp(vocab->merges[rank].data, both, strlen(both)) == 0)
            return 1e6 - rank;
    return 0;
}

static void oracle_merge(struct oracle *oracle)
{
    for (;;) {
        size_t best = 0;
        double worth = 0;
        char *both;

        for (size_t i = 0; i + 1 < oracle->n_symbols; i++) {
            double w = pair_worth(oracle, oracle->symbols[i], oracle->symbols[i + 1]);

            if (w > worth) {
                worth = w;
                best = i;
            }
        }
        if (worth == 0)
            return;
        assert_true(asprintf(&both, "%s%s", oracle->symbols[best], oracle->symbols[best + 1]) >= 0);
        free(oracle->symbols[best]);
        free(oracle->symbols[best + 1]);
        oracle->symbols[best] = both;
        oracle->n_symbols--;
        for (size_t i = best + 1; i < oracle->n_symbols; i++)
            oracle->symbols[i] = oracle->symbols[i + 1];
    }
}

/* Symbols that are no tokens: their bytes, which in these vocabularies all have tokens. */
static void oracle_emit(struct oracle *oracle)
{
    for (size_t i = 0; i < oracle->n_symbols; i++) {
        const char *symbol = oracle->symbols[i];
        uint32_t id = oracle_find(oracle, symbol), code_point;
        size_t size = strlen(symbol);

        if (id != DS_TOKEN_NONE)
            oracle->ids[oracle->n_ids++] = id;
        for (size_t at = 0; id == DS_TOKEN_NONE && at < size;) {
            if (oracle->vocab->kind == DS_VOCAB_SPM) { /* bytes are tokens 3 to 258 */
                oracle->ids[oracle->n_ids++] = 3u + (uint8_t) symbol[at++];
                continue;
            }
            at += ds_utf8_step(symbol + at, size - at, &code_point);
            oracle->ids[oracle->n_ids++] = (uint32_t) ds_byte_level_byte(code_point);
        }
        free(oracle->symbols[i]);
    }
    oracle->n_symbols = 0;
}

static int oracle_word(void *context, size_t start, size_t end)
{
    struct oracle *oracle = context;

    for (size_t i = start; i < end; i++) {
        char text[8] = "";

        assert_true(oracle->n_symbols < SYMBOLS_MAX);
        (void) ds_utf8_encode(ds_byte_level_code_point((uint8_t) oracle->text[i]), text);
        oracle->symbols[oracle->n_symbols++] = strdup(text);
    }
    oracle_merge(oracle);
    oracle_emit(oracle);
    return 0;
}

static void oracle_spm(struct oracle *oracle, size_t start, size_t end)
{
    oracle->symbols[oracle->n_symbols++] = strdup("\u2581");
    while (start < end) {
        uint32_t code_point;
        unsigned size = ds_utf8_step(oracle->text + start, end - start, &code_point);

        assert_true(oracle->n_symbols < SYMBOLS_MAX);
        oracle->symbols[oracle->n_symbols++] =
            oracle->text[start] == ' ' ? strdup("\u2581") : strndup(oracle->text + start, size);
        start += size;
    }
    oracle_merge(oracle);
    oracle_emit(oracle);
}

/* The longest special token at text[at..size). */
static uint32_t oracle_special(const struct oracle *oracle, size_t at, size_t size, bool control)
{
    uint32_t found = DS_TOKEN_NONE;

    for (uint32_t id = 0; id < oracle->vocab->n_tokens; id++) {
        struct ds_bytes token = oracle->vocab->tokens[id];
        int32_t type = oracle->vocab->types[id];

        if (type != DS_TOKEN_USER &&
            !(control && (type == DS_TOKEN_CONTROL || type == DS_TOKEN_UNKNOWN)))
            continue;
        if (token.size <= size - at && memcmp(token.data, oracle->text + at, token.size) == 0 &&
            (found == DS_TOKEN_NONE || token.size > oracle->vocab->tokens[found].size))
            found = id;
    }
    return found;
}

static void oracle_encode(struct oracle *oracle, size_t size, unsigned flags)
{
    size_t start = 0, at = 0;

    while (at <= size) {
        uint32_t id =
            at < size ? oracle_special(oracle, at, size, flags & DS_ENCODE_SPECIAL) : DS_TOKEN_NONE;

        if (id == DS_TOKEN_NONE && at < size) {
            at++;
            continue;
        }
        if (at > start && oracle->vocab->kind == DS_VOCAB_SPM)
            oracle_spm(oracle, start, at);
        else if (at > start)
            (void) ds_pretokenise(ds_pretokeniser_find(oracle->vocab->pre), oracle->text, start, at,
                                  oracle_word, oracle);
        if (id == DS_TOKEN_NONE)
            return;
        oracle->ids[oracle->n_ids++] = id;
        start = at += oracle->vocab->tokens[id].size;
    }
}

static void compare_with_oracle(const struct ds_random_vocab *random_vocab, struct ds_dice *random)
{
    struct ds_tokenizer *tokenizer = make(random_vocab);

    for (int i = 0; i < 12; i++) {
        struct oracle *oracle = calloc(1, sizeof *oracle);
        unsigned flags = ds_dice_below(random, 2) ? DS_ENCODE_SPECIAL : 0;
        uint32_t *ids = NULL;
        size_t size, n = 0;
        char *text = ds_random_text(random, ds_dice_below(random, 320), &size);

        assert_non_null(oracle);
        oracle->vocab = &random_vocab->vocab;
        oracle->text = text;
        oracle_encode(oracle, size, flags);
        assert_int_equal(ds_tokenizer_encode(tokenizer, text, size, flags, &ids, &n), 0);
        assert_int_equal(n, oracle->n_ids);
        assert_memory_equal(ids, oracle->ids, n * sizeof *ids);
        free(ids);
        free(text);
        free(oracle);
    }
    ds_tokenizer_free(tokenizer);
}

static void random_byte_level_vocabularies_encode_as_defined(void **state)
{
    static const char *const pres[] = { "gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-llm" };
    struct ds_dice random = { 1 };

    (void) state;
    for (int round = 0; round < 25; round++) {
        struct ds_random_vocab *random_vocab = ds_random_vocab_bpe(&random, pres[round % 5]);

        random_vocab->vocab.ignore_merges = 0;
        compare_with_oracle(random_vocab, &random);
        ds_random_vocab_free(random_vocab);
    }
}

static void random_spm_vocabularies_encode_as_defined(void **state)
{
    struct ds_dice random = { 2 };

    (void) state;
    for (int round = 0; round < 25; round++) {
        struct ds_random_vocab *random_vocab = ds_random_vocab_spm(&random, round % 2);

        compare_with_oracle(random_vocab, &random);
        ds_random_vocab_free(random_vocab);
    }
}

/* --- properties --- */

/* Also through the memory of words: texts long enough to have one, and longer than its slots. */
static void decoding_gives_any_bytes_back(void **state)
{
    struct ds_dice random = { 3 };

    (void) state;
    for (int round = 0; round < 60; round++) {
        struct ds_random_vocab *random_vocab = round % 2 ? ds_random_vocab_bpe(&random, "qwen2")
                                                         : ds_random_vocab_spm(&random, round % 4);
        struct ds_tokenizer *tokenizer = make(random_vocab);
        size_t size = 0, n = 0, back_size = 0;
        char *text = ds_random_text(&random, ds_dice_below(&random, 6000), &size), *back = NULL;
        uint32_t *ids = NULL;

        for (size_t i = 0; i < size; i++) {
            if (ds_dice_below(&random, 50) == 0)
                text[i] = (char) ds_dice_next(&random);
            if (text[i] == (char) 0xE2) /* U+2581 would come back as a space */
                text[i] = '\0';
        }
        assert_int_equal(ds_tokenizer_encode(tokenizer, text, size, 0, &ids, &n), 0);
        for (size_t i = 0; i < n; i++)
            assert_false(ds_tokenizer_is_control(tokenizer, ids[i]));
        assert_int_equal(ds_tokenizer_decode(tokenizer, ids, n, true, true, &back, &back_size), 0);
        if (random_vocab->vocab.kind == DS_VOCAB_BPE) { /* SPM: a space after each [u] */
            assert_int_equal(back_size, size);
            assert_memory_equal(back, text, size);
        }
        assert_int_equal(back[back_size], '\0');
        free(ids);
        free(back);
        free(text);
        ds_tokenizer_free(tokenizer);
        ds_random_vocab_free(random_vocab);
    }
}

static struct ds_random_vocab *letters_only(const char *letters)
{
    struct ds_random_vocab *random_vocab = ds_random_vocab_new(DS_VOCAB_BPE, "gpt-2");

    for (; *letters; letters++)
        ds_random_vocab_token(random_vocab, (struct ds_bytes){ letters, 1 }, DS_TOKEN_NORMAL, 0);
    return random_vocab;
}

static void the_earlier_rule_wins_and_of_equals_the_leftmost(void **state)
{
    struct ds_random_vocab *random_vocab = letters_only("abc"); /* 0 1 2 */
    struct ds_tokenizer *tokenizer;

    (void) state;
    ds_random_vocab_string(random_vocab, "aa", DS_TOKEN_NORMAL, 0);  /* 3 */
    ds_random_vocab_string(random_vocab, "bc", DS_TOKEN_NORMAL, 0);  /* 4 */
    ds_random_vocab_string(random_vocab, "ab", DS_TOKEN_NORMAL, 0);  /* 5 */
    ds_random_vocab_string(random_vocab, "aaa", DS_TOKEN_NORMAL, 0); /* 6 */
    ds_random_vocab_merge(random_vocab, of("b"), of("c"));
    ds_random_vocab_merge(random_vocab, of("a"), of("b"));
    ds_random_vocab_merge(random_vocab, of("a"), of("a"));
    ds_random_vocab_merge(random_vocab, of("aa"), of("a"));
    ds_random_vocab_merge(random_vocab, of("b"), of("c")); /* said twice */
    tokenizer = make(random_vocab);
    EXPECT(tokenizer, "abc", 0, 0, 4);
    EXPECT(tokenizer, "aab", 0, 0, 5);
    EXPECT(tokenizer, "aaa", 0, 6);
    EXPECT(tokenizer, "aaaa", 0, 3, 3);
    EXPECT(tokenizer, "aaaaa", 0, 3, 6);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(random_vocab);
}

static void bytes_without_a_token_are_left_out_and_keep_their_neighbours_apart(void **state)
{
    struct ds_random_vocab *random_vocab = letters_only("ab");
    struct ds_tokenizer *tokenizer;

    (void) state;
    ds_random_vocab_string(random_vocab, "ab", DS_TOKEN_NORMAL, 0);
    ds_random_vocab_merge(random_vocab, of("a"), of("b"));
    tokenizer = make(random_vocab);
    EXPECT(tokenizer, "ab", 0, 2);
    EXPECT(tokenizer, "axb", 0, 0, 1);
    EXPECT(tokenizer, "xxabxx", 0, 2);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(random_vocab);
}

static void merges_lead_through_texts_that_are_no_tokens(void **state)
{
    struct ds_random_vocab *random_vocab = letters_only("abcd");
    struct ds_tokenizer *tokenizer;

    (void) state;
    ds_random_vocab_string(random_vocab, "abc", DS_TOKEN_NORMAL, 0); /* 4 */
    ds_random_vocab_merge(random_vocab, of("a"), of("b"));
    ds_random_vocab_merge(random_vocab, of("ab"), of("c"));
    tokenizer = make(random_vocab);
    EXPECT(tokenizer, "abc", 0, 4);
    EXPECT(tokenizer, "abd", 0, 0, 1, 3);
    EXPECT(tokenizer, "dabab", 0, 3, 0, 1, 0, 1);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(random_vocab);
}

static void whole_words_stay_whole_where_the_family_says_so(void **state)
{
    struct ds_random_vocab *random_vocab = letters_only("ab");
    struct ds_tokenizer *tokenizer;

    (void) state;
    ds_random_vocab_string(random_vocab, "abab", DS_TOKEN_NORMAL, 0); /* 2 */
    random_vocab->vocab.pre = of("llama-bpe");
    tokenizer = make(random_vocab);
    EXPECT(tokenizer, "abab", 0, 2);
    EXPECT(tokenizer, "ababa", 0, 0, 1, 0, 1, 0);
    ds_tokenizer_free(tokenizer);

    random_vocab->vocab.ignore_merges = 0;
    tokenizer = make(random_vocab);
    EXPECT(tokenizer, "abab", 0, 0, 1, 0, 1);
    ds_tokenizer_free(tokenizer);

    random_vocab->vocab.pre = of("qwen2");
    random_vocab->vocab.ignore_merges = 1;
    tokenizer = make(random_vocab);
    EXPECT(tokenizer, "abab", 0, 2);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(random_vocab);
}

/* --- special tokens --- */

static void special_tokens_are_found_longest_first_and_only_when_asked(void **state)
{
    struct ds_random_vocab *random_vocab = letters_only("<|>ab/"); /* 0 to 5 */
    struct ds_tokenizer *tokenizer;

    (void) state;
    ds_random_vocab_string(random_vocab, "<|a", DS_TOKEN_CONTROL, 0);   /* 6 */
    ds_random_vocab_string(random_vocab, "<|a|>", DS_TOKEN_CONTROL, 0); /* 7 */
    ds_random_vocab_string(random_vocab, "<b>", DS_TOKEN_USER, 0);      /* 8 */
    ds_random_vocab_string(random_vocab, "<bb>", DS_TOKEN_UNUSED, 0);   /* 9 */
    ds_random_vocab_string(random_vocab, "", DS_TOKEN_CONTROL, 0);      /* 10 */
    tokenizer = make(random_vocab);
    EXPECT(tokenizer, "<|a|>", DS_ENCODE_SPECIAL, 7);
    EXPECT(tokenizer, "<|a|", DS_ENCODE_SPECIAL, 6, 1);
    EXPECT(tokenizer, "<|<|a|>|>", DS_ENCODE_SPECIAL, 0, 1, 7, 1, 2);
    EXPECT(tokenizer, "<|a|>", 0, 0, 1, 3, 1, 2);
    EXPECT(tokenizer, "a<b>b", 0, 3, 8, 4);
    EXPECT(tokenizer, "<b><b>", DS_ENCODE_SPECIAL, 8, 8);
    EXPECT(tokenizer, "<bb>", DS_ENCODE_SPECIAL, 0, 4, 4, 2);
    expect(tokenizer, "", DS_ENCODE_SPECIAL, NULL, 0);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(random_vocab);
}

static void plain_text_never_becomes_a_control_token(void **state)
{
    struct ds_random_vocab *bpe = letters_only("end");
    struct ds_random_vocab *spm = ds_random_vocab_new(DS_VOCAB_SPM, "");
    struct ds_tokenizer *tokenizer;

    (void) state;
    ds_random_vocab_string(bpe, "end", DS_TOKEN_CONTROL, 0); /* 3: reachable by merging */
    ds_random_vocab_merge(bpe, of("e"), of("n"));
    ds_random_vocab_merge(bpe, of("en"), of("d"));
    bpe->vocab.ignore_merges = 1;
    tokenizer = make(bpe);
    EXPECT(tokenizer, "end", 0, 0, 1, 2);
    EXPECT(tokenizer, "end", DS_ENCODE_SPECIAL, 3);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(bpe);

    ds_random_vocab_string(spm, "<unk>", DS_TOKEN_UNKNOWN, 0);
    ds_random_vocab_string(spm, "<s>", DS_TOKEN_CONTROL, 0);
    ds_random_vocab_string(spm, "</s>", DS_TOKEN_CONTROL, 0);
    ds_random_vocab_string(spm, "<s", DS_TOKEN_NORMAL, -1); /* 3 */
    ds_random_vocab_string(spm, ">", DS_TOKEN_NORMAL, -2);  /* 4 */
    ds_random_vocab_string(spm, "<", DS_TOKEN_NORMAL, -3);
    ds_random_vocab_string(spm, "s", DS_TOKEN_NORMAL, -4);
    spm->vocab.add_space_prefix = 0;
    tokenizer = make(spm);
    EXPECT(tokenizer, "<s>", 0, 3, 4);
    EXPECT(tokenizer, "<s>", DS_ENCODE_SPECIAL, 1);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(spm);
}

static void spm_puts_a_space_first_and_after_special_tokens(void **state)
{
    struct ds_random_vocab *spm = ds_random_vocab_new(DS_VOCAB_SPM, "");
    struct ds_tokenizer *tokenizer;
    const uint32_t ids[] = { 1, 4, 0, 5, 6 };
    char *text = NULL;
    size_t size = 0;

    (void) state;
    ds_random_vocab_string(spm, "<unk>", DS_TOKEN_UNKNOWN, 0);
    ds_random_vocab_string(spm, "<s>", DS_TOKEN_CONTROL, 0);
    ds_random_vocab_string(spm, "</s>", DS_TOKEN_CONTROL, 0);
    ds_random_vocab_string(spm, "a", DS_TOKEN_NORMAL, -9);             /* 3 */
    ds_random_vocab_string(spm, "\u2581a", DS_TOKEN_NORMAL, -1);       /* 4 */
    ds_random_vocab_string(spm, "\u2581", DS_TOKEN_NORMAL, -9);        /* 5 */
    ds_random_vocab_string(spm, "<0xE4>", DS_TOKEN_BYTE, 0);           /* 6 */
    ds_random_vocab_string(spm, "\u2581\u2581a", DS_TOKEN_NORMAL, -2); /* 7 */
    tokenizer = make(spm);
    EXPECT(tokenizer, "a a", 0, 4, 4);
    EXPECT(tokenizer, " a", DS_ENCODE_BOS, 1, 7);
    EXPECT(tokenizer, "a</s>a<s>", DS_ENCODE_SPECIAL, 4, 2, 4, 1);
    EXPECT(tokenizer, "\u4f60", 0, 5, 6, 0, 0); /* bytes without a token: the unknown one */
    assert_true(ds_tokenizer_adds_bos(tokenizer));
    assert_int_equal(ds_tokenizer_bos(tokenizer), 1);
    assert_int_equal(ds_tokenizer_eos(tokenizer), 2);

    assert_int_equal(ds_tokenizer_decode(tokenizer, ids, 5, true, true, &text, &size), 0);
    assert_string_equal(text, "a \xE4");
    free(text);
    assert_int_equal(ds_tokenizer_decode(tokenizer, ids, 5, false, false, &text, &size), 0);
    assert_string_equal(text, "<s> a<unk> \xE4");
    free(text);
    ds_tokenizer_free(tokenizer);

    spm->vocab.add_space_prefix = 0;
    tokenizer = make(spm);
    EXPECT(tokenizer, "a a", 0, 3, 4);
    assert_int_equal(ds_tokenizer_decode(tokenizer, ids + 1, 1, true, true, &text, &size), 0);
    assert_string_equal(text, " a");
    free(text);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(spm);
}

static void answers_end_at_the_tokens_named_by_the_file_or_known_by_text(void **state)
{
    struct ds_random_vocab *random_vocab = letters_only("abcdef");
    struct ds_tokenizer *tokenizer;

    (void) state;
    ds_random_vocab_string(random_vocab, "<|im_end|>", DS_TOKEN_USER, 0);           /* 6 */
    ds_random_vocab_string(random_vocab, "<\uFF5Cend\u2581of\u2581sentence\uFF5C>", /* 7 */
                           DS_TOKEN_CONTROL, 0);
    ds_random_vocab_string(random_vocab, "<|im_start|>", DS_TOKEN_CONTROL, 0); /* 8 */
    ds_random_vocab_string(random_vocab, "<|fim_middle|>", DS_TOKEN_USER, 0);  /* 9 */
    random_vocab->vocab.eos = 0;
    random_vocab->vocab.eot = 1;
    random_vocab->vocab.fim_sep = 2;
    random_vocab->vocab.eom = 4711; /* beyond the vocabulary: no token, no end */
    tokenizer = make(random_vocab);
    for (uint32_t id = 0; id < 12; id++)
        assert_int_equal(ds_tokenizer_is_end(tokenizer, id), id < 3 || id == 6 || id == 7);
    for (uint32_t id = 0; id < 12; id++)
        assert_int_equal(ds_tokenizer_is_control(tokenizer, id), id >= 6 && id <= 9);
    assert_int_equal(ds_tokenizer_n_tokens(tokenizer), 10);
    assert_int_equal(ds_tokenizer_piece(tokenizer, 10).size, 0);
    assert_int_equal(ds_tokenizer_piece(tokenizer, UINT32_MAX).size, 0);
    assert_false(ds_tokenizer_adds_bos(tokenizer));
    assert_int_equal(ds_tokenizer_bos(tokenizer), DS_TOKEN_NONE);
    EXPECT(tokenizer, "a", DS_ENCODE_BOS, 0);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(random_vocab);
}

static void bos_comes_first_where_it_is_asked_for_and_there_is_one(void **state)
{
    struct ds_random_vocab *random_vocab = letters_only("ab");
    struct ds_tokenizer *tokenizer;

    (void) state;
    random_vocab->vocab.bos = 1;
    random_vocab->vocab.pre = of("llama3");
    tokenizer = make(random_vocab);
    assert_true(ds_tokenizer_adds_bos(tokenizer));
    EXPECT(tokenizer, "a", DS_ENCODE_BOS, 1, 0);
    EXPECT(tokenizer, "a", 0, 0);
    EXPECT(tokenizer, "", DS_ENCODE_BOS, 1);
    ds_tokenizer_free(tokenizer);
    random_vocab->vocab.add_bos = 0;
    tokenizer = make(random_vocab);
    assert_false(ds_tokenizer_adds_bos(tokenizer));
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(random_vocab);
}

/* --- hostile input --- */

static void refuse(const struct ds_vocab *vocab, int expected, const char *part)
{
    struct ds_tokenizer *tokenizer = NULL;
    struct ds_error error = { "" };

    assert_int_equal(ds_tokenizer_new(&tokenizer, vocab, &error), expected);
    assert_null(tokenizer);
    if (!strstr(error.text, part))
        fail_msg("\"%s\" does not say \"%s\"", error.text, part);
    assert_int_equal(ds_tokenizer_new(&tokenizer, vocab, NULL), expected);
}

static void senseless_vocabularies_are_refused_with_a_reason(void **state)
{
    static const char *const no_merges[] = { "", " ", "a", "ab", "a ", " a", " b" };
    struct ds_random_vocab *random_vocab = letters_only("ab");
    struct ds_random_vocab *spm = ds_random_vocab_new(DS_VOCAB_SPM, "");
    struct ds_vocab vocab = random_vocab->vocab;
    char *long_text = malloc(70000);

    (void) state;
    vocab.pre = of("rwkv-world");
    refuse(&vocab, -ENOTSUP, "\"rwkv-world\" is unknown; known are: gpt-2, smollm, llama-bpe");
    vocab = random_vocab->vocab;
    vocab.n_tokens = 0;
    refuse(&vocab, -EBADMSG, "0 tokens");
    vocab = random_vocab->vocab;
    vocab.bos = 2;
    refuse(&vocab, -EBADMSG, "BOS token 2");
    vocab = random_vocab->vocab;
    vocab.eos = 77;
    refuse(&vocab, -EBADMSG, "EOS token 77");
    for (size_t i = 0; i < sizeof no_merges / sizeof no_merges[0]; i++) {
        struct ds_bytes merges[] = { of("a b"), of(no_merges[i]) };

        vocab = random_vocab->vocab;
        vocab.merges = merges;
        vocab.n_merges = 2;
        refuse(&vocab, -EBADMSG, "merge 1");
    }
    assert_non_null(long_text);
    memset(long_text, 'a', 70000);
    ds_random_vocab_token(spm, (struct ds_bytes){ long_text, 70000 }, DS_TOKEN_NORMAL, 0);
    refuse(&spm->vocab, -EBADMSG, "70000 bytes");
    free(long_text);
    ds_random_vocab_free(spm);
    ds_random_vocab_free(random_vocab);
}

static double seconds_for(const struct ds_tokenizer *tokenizer, const char *unit, size_t size)
{
    size_t unit_size = strlen(unit), n = 0;
    ds_cleanup(ds_free_p) char *text = malloc(size + unit_size);
    ds_cleanup(ds_free_p) uint32_t *ids = NULL;
    clock_t start;

    assert_non_null(text);
    for (size_t at = 0; at < size; at += unit_size)
        memcpy(text + at, unit, unit_size);
    start = clock();
    assert_int_equal(ds_tokenizer_encode(tokenizer, text, size, DS_ENCODE_SPECIAL, &ids, &n), 0);
    return (double) (clock() - start) / CLOCKS_PER_SEC;
}

/* 16 times the text may take little more than 16 times as long, not 256 times. */
static void hostile_text_costs_no_more_than_n_log_n(void **state)
{
    static const char *const units[] = {
        "a", " ", "ab", "<|", "<|a", "\n", "\u4f60", "\xFF", "[u]"
    };
    struct ds_dice random = { 5 };

    (void) state;
    for (int kind = 0; kind < 3; kind++) {
        struct ds_random_vocab *random_vocab = kind == 0 ? ds_random_vocab_bpe(&random, "qwen2")
                                                         : ds_random_vocab_spm(&random, kind == 1);
        struct ds_tokenizer *tokenizer;

        for (int i = 0; kind == 0 && i < 5; i++) { /* a vocabulary that joins runs of a and space */
            char run[64] = "", half[64] = "";

            for (int k = 0; k < 1 << i; k++)
                strcat(half, i % 2 ? "a" : "\u0120");
            (void) snprintf(run, sizeof run, "%s%s", half, half);
            if (strlen(run) < 60) {
                ds_random_vocab_merge(random_vocab, of(half), of(half));
                ds_random_vocab_string(random_vocab, run, DS_TOKEN_NORMAL, 0);
            }
        }
        tokenizer = make(random_vocab);
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            double small = seconds_for(tokenizer, units[u], 1u << 15);
            double large = seconds_for(tokenizer, units[u], 1u << 19);

            if (large > 0.1 + 64 * small)
                fail_msg("32 KiB of \"%s\" take %.3f s, 512 KiB %.3f s", units[u], small, large);
        }
        ds_tokenizer_free(tokenizer);
        ds_random_vocab_free(random_vocab);
    }
}

struct thread_job {
    const struct ds_tokenizer *tokenizer;
    const char *text;
    size_t size;
    const uint32_t *ids;
    size_t n;
    bool same;
};

static void *encode_again(void *context)
{
    struct thread_job *job = context;

    job->same = true;
    for (int i = 0; i < 20; i++) {
        uint32_t *ids = NULL;
        size_t n = 0;
        int r = ds_tokenizer_encode(job->tokenizer, job->text, job->size, 0, &ids, &n);

        job->same =
            job->same && r == 0 && n == job->n && memcmp(ids, job->ids, n * sizeof *ids) == 0;
        free(ids);
    }
    return NULL;
}

static void threads_share_one_tokenizer(void **state)
{
    struct ds_dice random = { 6 };
    struct ds_random_vocab *random_vocab = ds_random_vocab_bpe(&random, "qwen2");
    struct ds_tokenizer *tokenizer = make(random_vocab);
    struct thread_job jobs[4];
    pthread_t threads[4];
    uint32_t *ids = NULL;
    size_t size = 0, n = 0;
    char *text = ds_random_text(&random, 20000, &size);

    (void) state;
    assert_int_equal(ds_tokenizer_encode(tokenizer, text, size, 0, &ids, &n), 0);
    for (int i = 0; i < 4; i++) {
        jobs[i] = (struct thread_job){ tokenizer, text, size, ids, n, false };
        assert_int_equal(pthread_create(&threads[i], NULL, encode_again, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(jobs[i].same);
    }
    free(ids);
    free(text);
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(random_vocab);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_byte_level_vocabularies_encode_as_defined),
        cmocka_unit_test(random_spm_vocabularies_encode_as_defined),
        cmocka_unit_test(decoding_gives_any_bytes_back),
        cmocka_unit_test(the_earlier_rule_wins_and_of_equals_the_leftmost),
        cmocka_unit_test(bytes_without_a_token_are_left_out_and_keep_their_neighbours_apart),
        cmocka_unit_test(merges_lead_through_texts_that_are_no_tokens),
        cmocka_unit_test(whole_words_stay_whole_where_the_family_says_so),
        cmocka_unit_test(special_tokens_are_found_longest_first_and_only_when_asked),
        cmocka_unit_test(plain_text_never_becomes_a_control_token),
        cmocka_unit_test(spm_puts_a_space_first_and_after_special_tokens),
        cmocka_unit_test(answers_end_at_the_tokens_named_by_the_file_or_known_by_text),
        cmocka_unit_test(bos_comes_first_where_it_is_asked_for_and_there_is_one),
        cmocka_unit_test(senseless_vocabularies_are_refused_with_a_reason),
        cmocka_unit_test(hostile_text_costs_no_more_than_n_log_n),
        cmocka_unit_test(threads_share_one_tokenizer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
