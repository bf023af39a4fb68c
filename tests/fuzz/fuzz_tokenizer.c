/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_tokenizer.c - hostile vocabularies, texts and streams of tokens.
 *
 * sources: engine/text engine/format tests/lib/random_vocab.c
 *
 * The first byte of the input chooses what the rest is: a text for a sound vocabulary (its seed in
 * the second byte), or a vocabulary (its tokens, their types and its merges) with a text after it.
 * Whatever it is: ids lie in the vocabulary, a sound byte-level vocabulary gives the text back, and
 * a stream of tokens gives valid UTF-8.
 */
#include <stdbool.h>

#include "engine/text/detokenizer.h"
#include "engine/text/tokenizer.h"
#include "engine/text/unicode.h"
#include "tests/lib/random_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static const char *const pres[] = { "gpt-2",       "smollm",       "llama-bpe",
                                    "qwen2",       "deepseek-llm", "deepseek-coder",
                                    "deepseek-v3", "qwen35",       "default" };

struct input {
    const char *data;
    size_t size;
};

static unsigned take_byte(struct input *input)
{
    unsigned byte = input->size > 0 ? (uint8_t) *input->data : 0;

    input->data += input->size > 0;
    input->size -= input->size > 0;
    return byte;
}

/* A length in one byte, then so many bytes. */
static struct ds_bytes take_text(struct input *input)
{
    struct ds_bytes text;
    size_t size = take_byte(input) % 16;

    text = (struct ds_bytes){ input->data, size < input->size ? size : input->size };
    input->data += text.size;
    input->size -= text.size;
    return text;
}

static struct ds_random_vocab *take_vocab(struct input *input, unsigned choice)
{
    enum ds_vocab_kind kind = choice & 1 ? DS_VOCAB_BPE : DS_VOCAB_SPM;
    struct ds_random_vocab *made = ds_random_vocab_new(kind, pres[choice / 2 % 9]);

    made->vocab.add_bos = (int8_t) (take_byte(input) % 3 - 1);
    made->vocab.ignore_merges = (int8_t) (take_byte(input) % 3 - 1);
    made->vocab.bos = take_byte(input);
    made->vocab.unknown = take_byte(input);
    for (unsigned n = take_byte(input) % 64; n > 0; n--) {
        unsigned type = take_byte(input);

        ds_random_vocab_token(made, take_text(input), (enum ds_token_type)(type % 8),
                              (float) (type / 8));
    }
    for (unsigned n = kind == DS_VOCAB_BPE ? take_byte(input) % 64 : 0; n > 0; n--) {
        struct ds_bytes left = take_text(input);

        ds_random_vocab_merge(made, left, take_text(input));
    }
    return made;
}

static void check_stream(const struct ds_tokenizer *tokenizer, const uint32_t *ids, size_t n,
                         const char *text, size_t size)
{
    struct ds_bytes stops[2] = { { text, size < 3 ? size : 3 }, { text + size / 2, size % 7 / 2 } };
    struct ds_detokenizer *detokenizer = NULL;
    struct ds_bytes given;
    uint32_t code_point;
    int length;

    MUST(ds_detokenizer_new(&detokenizer, tokenizer, stops, size % 3, size % 2) == 0);
    for (size_t i = 0; i <= n; i++) {
        if (i < n)
            MUST(ds_detokenizer_push(detokenizer, ids[i], &given) >= 0);
        else
            MUST(ds_detokenizer_finish(detokenizer, &given) == 0);
        for (size_t at = 0; at < given.size; at += (size_t) length) {
            length = ds_utf8_decode(given.data + at, given.size - at, &code_point);
            MUST(length > 0);
        }
    }
    ds_detokenizer_free(detokenizer);
}

static void check_text(const struct ds_tokenizer *tokenizer, const char *text, size_t size,
                       unsigned flags, bool gives_back)
{
    uint32_t *ids = NULL;
    size_t n = 0, back_size = 0;
    char *back = NULL;

    MUST(ds_tokenizer_encode(tokenizer, text, size, flags, &ids, &n) == 0);
    for (size_t i = 0; i < n; i++)
        MUST(ids[i] < ds_tokenizer_n_tokens(tokenizer));
    MUST(ds_tokenizer_decode(tokenizer, ids, n, false, false, &back, &back_size) == 0);
    MUST(!gives_back || (back_size == size && memcmp(back, text, size) == 0));
    check_stream(tokenizer, ids, n, text, size);
    free(back);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = { (const char *) data, size };
    unsigned choice = take_byte(&input), flags = choice >> 6;
    struct ds_dice random = { choice & 32 ? 0 : take_byte(&input) };
    struct ds_random_vocab *made;
    struct ds_tokenizer *tokenizer = NULL;
    struct ds_error error;

    if (choice & 32)
        made = take_vocab(&input, choice);
    else if (choice & 1)
        made = ds_random_vocab_bpe(&random, pres[choice / 2 % 9]);
    else
        made = ds_random_vocab_spm(&random, choice & 2);
    if (ds_tokenizer_new(&tokenizer, &made->vocab, &error) == 0)
        check_text(tokenizer, input.data, input.size, flags, (choice & 33) == 1);
    else
        MUST(choice & 32); /* a sound vocabulary is never refused */
    ds_tokenizer_free(tokenizer);
    ds_random_vocab_free(made);
    return 0;
}
