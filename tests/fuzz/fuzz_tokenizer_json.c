/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_tokenizer_json.c - hostile tokeniser files of a Hugging Face folder.
 *
 * sources: engine/text engine/format tests/lib/hf_folder.c tests/lib/random_vocab.c
 *
 * The first byte says which file the rest is; the others are sound. What is read makes a tokeniser
 * (or is refused with one line that names the folder), whose ids lie in the vocabulary.
 */
#include <stdbool.h>
#include <stdio.h>

#include "engine/format/hf_vocab.h"
#include "engine/text/tokenizer.h"
#include "tests/lib/hf_folder.h"
#include "tests/lib/random_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static const char sound_tokenizer[] =
    "{\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true,\"lstrip\":true}],"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"use_regex\":true},"
    "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\u0120\":3},\"merges\":[\"a b\"]}}";

static const char *const sound_others[DS_HF_N_FILES] = {
    [DS_HF_TOKENIZER_CONFIG] = "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"b\"},"
                               "\"add_bos_token\":true,\"chat_template\":\"x\","
                               "\"added_tokens_decoder\":{\"5\":{\"content\":\"<e>\"}}}",
    [DS_HF_SPECIAL_TOKENS] = "{\"eos_token\":\"a\"}",
    [DS_HF_ADDED_TOKENS] = "{\"<f>\":6}",
    [DS_HF_CHAT_TEMPLATE] = "y",
    [DS_HF_GENERATION_CONFIG] = "{\"eos_token_id\":[1,2],\"temperature\":0.5,\"top_k\":3}",
};

/* tokenizer.model: <unk>, <s>, </s>, <0x61>, "\u2581a" and "a"; BPE. */
static const char sound_model[] = "\x0A\x09\x0A\x05<unk>\x18\x02"
                                  "\x0A\x07\x0A\x03<s>\x18\x03"
                                  "\x0A\x08\x0A\x04</s>\x18\x03"
                                  "\x0A\x0A\x0A\x06<0x61>\x18\x06"
                                  "\x0A\x0B\x0A\x04\xE2\x96\x81"
                                  "a\x15\x00\x00\x80\xBF"
                                  "\x0A\x08\x0A\x01"
                                  "a\x15\x00\x00\x00\xC0"
                                  "\x12\x02\x18\x02"
                                  "\x1A\x02\x18\x01";

static void write_seed(const char *folder, const char *name, char which, struct ds_bytes text)
{
    char path[512];
    FILE *file;

    (void) snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "we");
    MUST(file);
    (void) fputc(which, file);
    (void) fwrite(text.data, 1, text.size, file);
    MUST(fclose(file) == 0);
}

/* Before main(), so that it needs no word with whatever drives the target. */
__attribute__((constructor)) static void write_seeds(void)
{
    static const char *const pres[] = { "gpt-2", "llama-bpe", "deepseek-v3", "deepseek-llm" };
    const char *folder = getenv("DSD_FUZZ_SEEDS");
    struct ds_dice random = { 5 };

    if (!folder)
        return;
    for (size_t i = 0; i < 2 + sizeof pres / sizeof pres[0]; i++) {
        struct ds_random_vocab *made =
            i < 4 ? ds_random_vocab_bpe(&random, pres[i]) : ds_random_vocab_spm(&random, i == 4);
        struct ds_bytes json;
        char name[32];

        json.data = ds_hf_tokenizer_json(&made->vocab, i % 2, UINT32_MAX, &json.size);
        (void) snprintf(name, sizeof name, "vocab-%zu", i);
        write_seed(folder, name, DS_HF_TOKENIZER_JSON, json);
        free((char *) json.data);
        ds_random_vocab_free(made);
    }
    write_seed(folder, "model", DS_HF_TOKENIZER_MODEL,
               (struct ds_bytes){ sound_model, sizeof sound_model - 1 });
    for (unsigned i = 0; i < DS_HF_N_FILES; i++) {
        const char *text = i == DS_HF_TOKENIZER_JSON ? sound_tokenizer : sound_others[i];

        if (text)
            write_seed(folder, ds_hf_file_name(i), (char) i,
                       (struct ds_bytes){ text, strlen(text) });
    }
    exit(0);
}

static void check_vocab(const struct ds_vocab *vocab)
{
    static const char text[] = "ab <s> a<e>ab\u2581a \n<f>\xFF";
    struct ds_tokenizer *tokenizer = NULL;
    struct ds_error error = { "" };

    if (ds_tokenizer_new(&tokenizer, vocab, &error) < 0) {
        MUST(error.text[0]);
        return;
    }
    for (unsigned flags = 0; flags < 4; flags++) {
        uint32_t *ids = NULL;
        size_t n = 0;

        MUST(ds_tokenizer_encode(tokenizer, text, sizeof text - 1, flags, &ids, &n) == 0);
        for (size_t i = 0; i < n; i++)
            MUST(ids[i] < vocab->n_tokens);
        free(ids);
    }
    for (uint32_t i = 0; i < vocab->n_ends; i++)
        MUST(ds_tokenizer_is_end(tokenizer, vocab->ends[i]));
    ds_tokenizer_free(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ds_bytes files[DS_HF_N_FILES] = { 0 };
    struct ds_hf_model model = { .label = "folder", .bos = DS_TOKEN_NONE };
    struct ds_hf_vocab *vocab = NULL;
    struct ds_error error = { "" };
    unsigned which = size > 0 ? data[0] % DS_HF_N_FILES : 0;

    if (size == 0)
        return 0;
    for (unsigned i = DS_HF_TOKENIZER_CONFIG; i < DS_HF_N_FILES; i++)
        if (which >= DS_HF_TOKENIZER_CONFIG && sound_others[i])
            files[i] = (struct ds_bytes){ sound_others[i], strlen(sound_others[i]) };
    if (which != DS_HF_TOKENIZER_MODEL)
        files[DS_HF_TOKENIZER_JSON] = (struct ds_bytes){ sound_tokenizer, strlen(sound_tokenizer) };
    files[which] = (struct ds_bytes){ (const char *) data + 1, size - 1 };
    model.n_vocab = data[0] & 0x80 ? 300 : 0;
    if (ds_hf_vocab_read(&vocab, files, &model, &error) == 0)
        check_vocab(ds_hf_vocab_get(vocab));
    else
        MUST(strncmp(error.text, "folder", 6) == 0 && !strchr(error.text, '\n'));
    ds_hf_vocab_free(vocab);
    return 0;
}
