/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/random_vocab.h"

#include "engine/text/byte_level.h"
#include "engine/text/unicode.h"

#define SPACE "\u2581"

uint64_t ds_dice_next(struct ds_dice *random)
{
    uint64_t z = random->state += 0x9E3779B97F4A7C15u;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

uint32_t ds_dice_below(struct ds_dice *random, uint32_t n)
{
    return (uint32_t) ((ds_dice_next(random) >> 32) * n >> 32);
}

static void *must(void *memory)
{
    if (!memory)
        abort();
    return memory;
}

static struct ds_bytes joined(struct ds_bytes left, struct ds_bytes right)
{
    char *copy = must(malloc(left.size + right.size + 1));

    memcpy(copy, left.data, left.size);
    memcpy(copy + left.size, right.data, right.size);
    return (struct ds_bytes){ copy, left.size + right.size };
}

static struct ds_bytes of(const char *text)
{
    return (struct ds_bytes){ text, strlen(text) };
}

struct ds_random_vocab *ds_random_vocab_new(enum ds_vocab_kind kind, const char *pre)
{
    struct ds_random_vocab *random_vocab = must(calloc(1, sizeof *random_vocab));

    random_vocab->vocab = (struct ds_vocab){
        .kind = kind,
        .pre = of(pre),
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
    return random_vocab;
}

struct ds_random_vocab *ds_random_vocab_free(struct ds_random_vocab *random_vocab)
{
    for (uint32_t i = 0; i < random_vocab->vocab.n_tokens; i++)
        free((char *) random_vocab->tokens[i].data);
    for (uint32_t i = 0; i < random_vocab->vocab.n_merges; i++)
        free((char *) random_vocab->merges[i].data);
    free(random_vocab->tokens);
    free(random_vocab->types);
    free(random_vocab->scores);
    free(random_vocab->merges);
    free(random_vocab);
    return NULL;
}

uint32_t ds_random_vocab_token(struct ds_random_vocab *random_vocab, struct ds_bytes text,
                               enum ds_token_type type, float score)
{
    struct ds_vocab *vocab = &random_vocab->vocab;
    uint32_t id = vocab->n_tokens, max = 2 * random_vocab->tokens_max + 64;

    if (id == random_vocab->tokens_max) {
        random_vocab->tokens =
            must(reallocarray(random_vocab->tokens, max, sizeof *random_vocab->tokens));
        random_vocab->types =
            must(reallocarray(random_vocab->types, max, sizeof *random_vocab->types));
        random_vocab->scores =
            must(reallocarray(random_vocab->scores, max, sizeof *random_vocab->scores));
        random_vocab->tokens_max = max;
        vocab->tokens = random_vocab->tokens;
        vocab->types = random_vocab->types;
        vocab->scores = vocab->kind == DS_VOCAB_SPM ? random_vocab->scores : NULL;
    }
    random_vocab->tokens[id] = joined(text, of(""));
    random_vocab->types[id] = type;
    random_vocab->scores[id] = score;
    vocab->n_tokens++;
    return id;
}

uint32_t ds_random_vocab_string(struct ds_random_vocab *random_vocab, const char *text,
                                enum ds_token_type type, float score)
{
    return ds_random_vocab_token(random_vocab, of(text), type, score);
}

void ds_random_vocab_merge(struct ds_random_vocab *random_vocab, struct ds_bytes left,
                           struct ds_bytes right)
{
    struct ds_vocab *vocab = &random_vocab->vocab;
    struct ds_bytes start = joined(left, of(" "));

    if (vocab->n_merges == random_vocab->merges_max) {
        random_vocab->merges_max = 2 * random_vocab->merges_max + 64;
        vocab->merges = random_vocab->merges = must(reallocarray(
            random_vocab->merges, random_vocab->merges_max, sizeof *random_vocab->merges));
    }
    random_vocab->merges[vocab->n_merges++] = joined(start, right);
    free((char *) start.data);
}

void ds_random_vocab_bytes(struct ds_random_vocab *random_vocab)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        unsigned size = ds_utf8_encode(ds_byte_level_code_point((uint8_t) byte), text);

        if (random_vocab->vocab.kind == DS_VOCAB_BPE) {
            ds_random_vocab_token(random_vocab, (struct ds_bytes){ text, size }, DS_TOKEN_NORMAL,
                                  0);
            continue;
        }
        (void) snprintf(text, sizeof text, "<0x%02X>", byte);
        ds_random_vocab_string(random_vocab, text, DS_TOKEN_BYTE, 0);
    }
}

/* A token to merge with: mostly one of the few letters that texts are made of, or their merges. */
static struct ds_bytes some_token(struct ds_dice *random, const struct ds_random_vocab *vocab)
{
    static const uint8_t letters[] = "aabbc \n1\xE4\xBD\xA0\xC3\xA9";
    uint32_t n_merged = vocab->vocab.n_tokens - 256;

    if (n_merged > 0 && ds_dice_below(random, 2) == 0)
        return vocab->tokens[256 + ds_dice_below(random, n_merged)];
    return vocab->tokens[letters[ds_dice_below(random, sizeof letters - 1)]];
}

struct ds_random_vocab *ds_random_vocab_bpe(struct ds_dice *random, const char *pre)
{
    struct ds_random_vocab *random_vocab = ds_random_vocab_new(DS_VOCAB_BPE, pre);

    ds_random_vocab_bytes(random_vocab);
    for (int i = 0; i < 150; i++) {
        struct ds_bytes left = some_token(random, random_vocab);
        struct ds_bytes right = some_token(random, random_vocab);
        struct ds_bytes both = joined(left, right);

        if (both.size < 40) {
            ds_random_vocab_merge(random_vocab, left, right);
            if (ds_dice_below(random, 8) > 0)
                ds_random_vocab_token(random_vocab, both, DS_TOKEN_NORMAL, 0);
        }
        free((char *) both.data);
    }
    ds_random_vocab_string(random_vocab, "<|a|>", DS_TOKEN_CONTROL, 0);
    ds_random_vocab_string(random_vocab, "<|ab|>", DS_TOKEN_CONTROL, 0);
    ds_random_vocab_string(random_vocab, "[u]", DS_TOKEN_USER, 0);
    return random_vocab;
}

struct ds_random_vocab *ds_random_vocab_spm(struct ds_dice *random, bool spaces)
{
    static const char *const characters[] = { "a", "b", "c", SPACE, "1", "\n", "\u00e9", "\u4f60" };
    struct ds_random_vocab *random_vocab = ds_random_vocab_new(DS_VOCAB_SPM, "");

    ds_random_vocab_string(random_vocab, "<unk>", DS_TOKEN_UNKNOWN, 0);
    ds_random_vocab_string(random_vocab, "<s>", DS_TOKEN_CONTROL, 0);
    ds_random_vocab_string(random_vocab, "</s>", DS_TOKEN_CONTROL, 0);
    ds_random_vocab_bytes(random_vocab);
    for (int i = 0; i < 7; i++) /* not the last: merged from a character without a token */
        ds_random_vocab_string(random_vocab, characters[i], DS_TOKEN_NORMAL, -1000);
    for (int i = 0; i < 120; i++) {
        char text[64] = "";
        float score = -(float) ds_dice_below(random, 60);

        for (uint32_t n = spaces ? 0 : ds_dice_below(random, 3); n > 0; n--)
            strcat(text, SPACE);
        for (uint32_t n = 1 + ds_dice_below(random, 5); n > 0; n--) {
            uint32_t c = ds_dice_below(random, 3 * 8);

            c = c < 8 ? c : ds_dice_below(random, 3);
            strcat(text, c == 3 && !spaces ? "a" : characters[c]);
        }
        ds_random_vocab_string(random_vocab, text, DS_TOKEN_NORMAL, score);
    }
    ds_random_vocab_string(random_vocab, "[u]", DS_TOKEN_USER, 0);
    return random_vocab;
}

char *ds_random_text(struct ds_dice *random, size_t size, size_t *ret_size)
{
    static const char *const parts[] = {
        "a",      "b",      "c",          "a",     "b",        " ",    "  ",       "\n",
        "\r\n",   "1",      "23",         "'s",    "'LL",      ".",    "\u00e9",   "\u4f60",
        "\u597d", "\u2581", "\U0001F999", "<|a|>", "<|ab|>",   "[u]",  "<s>",      "</s>",
        "<|a",    "\u3000", "\u0301",     "\t",    "\xE4\xBD", "\x80", "\xF0\x9F", "\xFF",
    };
    char *text = must(malloc(size + 16));
    size_t n = 0;

    /* Now and then one letter only, for words that go through a heap. */
    bool dull = ds_dice_below(random, 4) == 0;

    while (n < size) {
        uint32_t i =
            dull ? ds_dice_below(random, 3) : ds_dice_below(random, sizeof parts / sizeof parts[0]);

        memcpy(text + n, parts[i], strlen(parts[i]));
        n += strlen(parts[i]);
    }
    *ret_size = size;
    return text;
}
