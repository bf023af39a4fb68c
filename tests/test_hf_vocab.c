/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the tokeniser files of a Hugging Face folder give the ids that the GGUF file of the same
 * model gives, and what is wrong with them is said with file and field.
 * Method: golden folders beside golden GGUF files; real vocabularies written as tokenizer.json and
 * read back; small files made wrong in one place each.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "engine/format/hf_vocab.h"
#include "engine/text/tokenizer.h"
#include "tests/lib/golden.h"
#include "tests/lib/hf_folder.h"
#include "tests/lib/random_vocab.h"

struct model { /* of a GGUF file, or of a folder */
    struct ds_checkpoint *checkpoint;
    struct ds_hf_vocab *folder;
    const struct ds_vocab *vocab;
    struct ds_tokenizer *tokenizer;
};

static const struct ds_hf_model plain_model = { .label = "folder", .bos = DS_TOKEN_NONE };

/* Fresh memory: free(). */
__attribute__((format(printf, 1, 2))) static char *path_of(const char *format, ...)
{
    char *path = NULL;
    va_list ap;

    va_start(ap, format);
    assert_true(vasprintf(&path, format, ap) >= 0);
    va_end(ap);
    return path;
}

static void tokenise_with(struct model *model, const char *what)
{
    struct ds_error error = { "" };

    if (ds_tokenizer_new(&model->tokenizer, model->vocab, &error) < 0)
        fail_msg("%s: %s", what, error.text);
}

static struct model open_gguf(const char *path)
{
    struct model model = { 0 };
    struct ds_error error = { "" };
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    if (ds_checkpoint_open(&model.checkpoint, &fd, 1, path, true, &error) < 0)
        fail_msg("%s: %s", path, error.text);
    (void) close(fd);
    model.vocab = ds_checkpoint_vocab(model.checkpoint);
    tokenise_with(&model, path);
    return model;
}

static struct model open_files(const struct ds_bytes files[DS_HF_N_FILES],
                               const struct ds_hf_model *said)
{
    struct model model = { 0 };
    struct ds_error error = { "" };

    if (ds_hf_vocab_read(&model.folder, files, said, &error) < 0)
        fail_msg("%s", error.text);
    model.vocab = ds_hf_vocab_get(model.folder);
    tokenise_with(&model, said->label);
    return model;
}

static struct model open_folder(const char *path, uint32_t n_vocab)
{
    struct ds_hf_model said = { .label = path, .n_vocab = n_vocab, .bos = DS_TOKEN_NONE };
    struct ds_bytes files[DS_HF_N_FILES] = { 0 };
    struct model model;

    for (unsigned i = 0; i < DS_HF_N_FILES; i++) {
        ds_cleanup(ds_free_p) char *name = path_of("%s/%s", path, ds_hf_file_name(i));

        files[i].data = ds_golden_read(name, &files[i].size);
    }
    model = open_files(files, &said);
    for (unsigned i = 0; i < DS_HF_N_FILES; i++)
        free((char *) files[i].data);
    return model;
}

static void close_model(struct model *model)
{
    ds_tokenizer_free(model->tokenizer);
    ds_checkpoint_free(model->checkpoint);
    ds_hf_vocab_free(model->folder);
}

static uint32_t *ids_of(const struct model *model, const char *text, size_t size, unsigned flags,
                        size_t *ret_n)
{
    uint32_t *ids = NULL;

    assert_int_equal(ds_tokenizer_encode(model->tokenizer, text, size, flags, &ids, ret_n), 0);
    return ids;
}

static void check_ids(const struct model *model, const char *text, size_t size, unsigned flags,
                      const uint32_t *wanted, size_t n_wanted)
{
    size_t n = 0;
    ds_cleanup(ds_free_p) uint32_t *ids = ids_of(model, text, size, flags, &n);

    if (n == n_wanted && memcmp(ids, wanted, n * sizeof *ids) == 0)
        return;
    for (size_t i = 0; i < n || i < n_wanted; i++)
        print_error("%zu: %d, wanted %d\n", i, i < n ? (int) ids[i] : -1,
                    i < n_wanted ? (int) wanted[i] : -1);
    fail_msg("\"%.*s\" became other ids", (int) size, text);
}

/* One {"text": ..., "ids": [...]} per line. Returns the number of lines. */
static int check_jsonl(const struct model *model, const char *path, unsigned flags)
{
    char *file = ds_golden_read(path, NULL);
    int n = 0;

    assert_non_null(file);
    for (char *rest = file, *line; (line = strsep(&rest, "\n")) && *line; n++) {
        cJSON *object = cJSON_Parse(line);
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(object, "text"));
        cJSON *array = cJSON_GetObjectItem(object, "ids"), *item;
        uint32_t ids[4096];
        size_t n_ids = 0;

        assert_non_null(text);
        cJSON_ArrayForEach(item, array)
        {
            assert_true(n_ids < 4096);
            ids[n_ids++] = (uint32_t) item->valuedouble;
        }
        check_ids(model, text, strlen(text), flags, ids, n_ids);
        cJSON_Delete(object);
    }
    free(file);
    return n;
}

static void check_alike(const struct model *one, const struct model *other, unsigned mask,
                        uint64_t seed)
{
    struct ds_dice random = { seed };

    for (int round = 0; round < 400; round++) {
        size_t size = 0, n = 0;
        ds_cleanup(ds_free_p) char *text =
            ds_random_text(&random, 1 + ds_dice_below(&random, 80), &size);
        unsigned flags = ds_dice_below(&random, 4) & mask;
        ds_cleanup(ds_free_p) uint32_t *ids = ids_of(one, text, size, flags, &n);

        check_ids(other, text, size, flags, ids, n);
    }
}

static void check_same_words(const struct model *gguf, const struct model *folder, bool templates)
{
    assert_int_equal(ds_tokenizer_bos(folder->tokenizer), ds_tokenizer_bos(gguf->tokenizer));
    assert_int_equal(ds_tokenizer_eos(folder->tokenizer), ds_tokenizer_eos(gguf->tokenizer));
    assert_int_equal(ds_tokenizer_adds_bos(folder->tokenizer),
                     ds_tokenizer_adds_bos(gguf->tokenizer));
    assert_int_equal(folder->vocab->n_tokens, gguf->vocab->n_tokens);
    for (uint32_t id = 0; id < gguf->vocab->n_tokens; id++) {
        struct ds_bytes a = ds_tokenizer_piece(gguf->tokenizer, id);
        struct ds_bytes b = ds_tokenizer_piece(folder->tokenizer, id);

        assert_int_equal(ds_tokenizer_is_end(gguf->tokenizer, id),
                         ds_tokenizer_is_end(folder->tokenizer, id));
        assert_int_equal(ds_tokenizer_is_control(gguf->tokenizer, id),
                         ds_tokenizer_is_control(folder->tokenizer, id));
        assert_int_equal(a.size, b.size);
        assert_memory_equal(a.data, b.data, a.size);
    }
    if (!templates)
        return;
    assert_int_equal(folder->vocab->chat_template.size, gguf->vocab->chat_template.size);
    assert_memory_equal(folder->vocab->chat_template.data, gguf->vocab->chat_template.data,
                        gguf->vocab->chat_template.size);
}

static void a_golden_folder_gives_the_ids_of_its_gguf_file(void **state)
{
    static const char *const names[] = { "llama",    "llama3rope",  "qwen2",           "qwen3",
                                         "qwen3moe", "deepseek-v3", "deepseek-v2-lite" };

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("the tokenisers of seven folders");
        skip();
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *golden = ds_golden_path();
        ds_cleanup(ds_free_p) char *gguf_path = path_of("%s/gguf/%s-F32.gguf", golden, names[i]);
        ds_cleanup(ds_free_p) char *folder_path = path_of("%s/hf/%s", golden, names[i]);
        ds_cleanup(ds_free_p) char *jsonl = path_of("%s/gguf/%s.tok.jsonl", golden, names[i]);
        struct model gguf = open_gguf(gguf_path), folder = open_folder(folder_path, 512);

        print_message("%s\n", names[i]);
        check_same_words(&gguf, &folder, true);
        check_alike(&gguf, &folder, DS_ENCODE_SPECIAL | DS_ENCODE_BOS, i);
        if (access(jsonl, R_OK) == 0)
            assert_true(check_jsonl(&folder, jsonl, DS_ENCODE_SPECIAL) > 20);
        close_model(&gguf);
        close_model(&folder);
    }
}

/* The last token that is no padding. */
static uint32_t without_padding(const struct ds_vocab *vocab)
{
    uint32_t n = vocab->n_tokens;

    while (n > 0 && vocab->types[n - 1] == DS_TOKEN_UNUSED)
        n--;
    return n;
}

static void check_real_vocabulary(const char *name, bool pairs)
{
    const char *golden = ds_golden_path();
    ds_cleanup(ds_free_p) char *path = path_of("%s/vocab/ggml-vocab-%s.gguf", golden, name);
    ds_cleanup(ds_free_p) char *jsonl = path_of("%s/tok/%s.jsonl", golden, name);
    ds_cleanup(ds_free_p) char *plain = path_of("%s/tok/%s.nospecial.jsonl", golden, name);
    struct model gguf = open_gguf(path), folder;
    struct ds_hf_model said = { .label = name,
                                .n_vocab = gguf.vocab->n_tokens,
                                .bos = DS_TOKEN_NONE };
    struct ds_bytes files[DS_HF_N_FILES] = { 0 };
    char *json = ds_hf_tokenizer_json(gguf.vocab, pairs, without_padding(gguf.vocab),
                                      &files[DS_HF_TOKENIZER_JSON].size);
    clock_t start = clock(), read;

    files[DS_HF_TOKENIZER_JSON].data = json;
    folder.checkpoint = NULL;
    {
        struct ds_error error = { "" };

        if (ds_hf_vocab_read(&folder.folder, files, &said, &error) < 0)
            fail_msg("%s", error.text);
        folder.vocab = ds_hf_vocab_get(folder.folder);
        read = clock();
        tokenise_with(&folder, name);
    }
    print_message("%s: %zu bytes read in %.0f ms, tokeniser made in %.0f ms\n", name,
                  files[DS_HF_TOKENIZER_JSON].size, 1e3 * (double) (read - start) / CLOCKS_PER_SEC,
                  1e3 * (double) (clock() - read) / CLOCKS_PER_SEC);
    assert_int_equal(check_jsonl(&folder, jsonl, DS_ENCODE_SPECIAL), 200);
    /* Old converters called tokens user-defined that this calls control, as newer ones do. */
    if (strcmp(name, "deepseek-coder") != 0)
        assert_true(check_jsonl(&folder, plain, 0) > 0);
    check_alike(&gguf, &folder, DS_ENCODE_SPECIAL, 7);
    free(json);
    close_model(&gguf);
    close_model(&folder);
}

static void real_vocabularies_written_as_json_give_every_recorded_vector(void **state)
{
    static const char *const names[] = {
        "gpt-2",        "llama-bpe",      "llama-spm",        "qwen2",
        "deepseek-llm", "deepseek-coder", "deepseek-r1-qwen", "deepseek-v3",
    };

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("eight real vocabularies as tokenizer.json");
        skip();
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        check_real_vocabulary(names[i], i % 2 == 0);
        if (i == 3 || i == 2)
            check_real_vocabulary(names[i], i % 2 != 0);
    }
}

/* --- small files --- */

#define BYTE_LEVEL                                                                                 \
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define LETTERS "\"a\":0,\"b\":1,\"ab\":2,\"\u0120\":3"
#define MODEL   "\"model\":{\"type\":\"BPE\",\"vocab\":{" LETTERS "},\"merges\":[\"a b\"]}"
#define GOOD    "{" BYTE_LEVEL "," MODEL "}"

struct files {
    struct ds_bytes bytes[DS_HF_N_FILES];
};

static struct files with(const char *tokenizer, enum ds_hf_file other, const char *text)
{
    struct files files = { 0 };

    files.bytes[DS_HF_TOKENIZER_JSON] = (struct ds_bytes){ tokenizer, strlen(tokenizer) };
    if (text)
        files.bytes[other] = (struct ds_bytes){ text, strlen(text) };
    return files;
}

static void refuse(struct files files, int code, const char *expected)
{
    struct ds_hf_vocab *vocab = NULL;
    struct ds_error error = { "" };

    assert_int_equal(ds_hf_vocab_read(&vocab, files.bytes, &plain_model, &error), code);
    assert_null(vocab);
    if (!strstr(error.text, expected))
        fail_msg("says \"%s\", not \"%s\"", error.text, expected);
    assert_ptr_equal(strstr(error.text, "folder/"), error.text);
    for (const char *c = error.text; *c; c++)
        assert_true((unsigned char) *c >= ' ');
}

static void what_is_wrong_with_a_file_is_said_with_file_and_field(void **state)
{
    static const struct {
        const char *json;
        int code;
        const char *expected;
    } cases[] = {
        { "[", -EBADMSG, "tokenizer.json: no valid JSON in line 1" },
        { "{}\n x", -EBADMSG, "no valid JSON in line 2" },
        { "[]", -EBADMSG, "no JSON object" },
        { "{\"a\":\"\\u0000\"}", -EBADMSG, "NUL" },
        { "{}", -EBADMSG, "field 'model' is missing" },
        { "{\"model\":{\"type\":\"Unigram\"}}", -ENOTSUP, "field 'model.type' is \"Unigram\"" },
        { "{\"model\":{\"dropout\":0.1}}", -ENOTSUP, "field 'model.dropout'" },
        { "{\"model\":{\"end_of_word_suffix\":\"</w>\"}}", -ENOTSUP, "'model.end_of_word_suffix'" },
        { "{" MODEL "}", -ENOTSUP, "field 'pre_tokenizer'" },
        { "{\"pre_tokenizer\":{\"type\":\"Whitespace\"}," MODEL "}", -ENOTSUP, "Whitespace" },
        { "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true}," MODEL "}",
          -ENOTSUP, "field 'pre_tokenizer': ByteLevel" },
        { "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
          "\"pattern\":{\"Regex\":\"a|b\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\","
          "\"use_regex\":false}]}," MODEL "}",
          -ENOTSUP, "its way of cutting texts (/a|b/" },
        { "{\"normalizer\":{\"type\":\"Lowercase\"}," BYTE_LEVEL "," MODEL "}", -ENOTSUP,
          "field 'normalizer': Lowercase" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{},\"merges\":[]}}", -EBADMSG, "'model.vocab'" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", -EBADMSG,
          "id 0 is token \"a\" and token \"b\"" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", -EBADMSG,
          "token \"a\" has the ids 0 and 1" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0,\"b\":4000000},\"merges\":[]}}", -EBADMSG,
          "token \"b\" has id 4000000, and there are no 4000001 tokens" },
        { "{\"added_tokens\":[{\"id\":4,\"content\":\"a\"}]," BYTE_LEVEL "," MODEL "}", -EBADMSG,
          "token \"a\" has the ids 0 and 4" },
        { "{\"added_tokens\":[{\"id\":5,\"content\":\"x\"},{\"id\":1,\"content\":\"b\"}]"
          "," BYTE_LEVEL "," MODEL "}",
          -EBADMSG, "no token has the id 4, and one has the id 5" },
        { "{\"added_tokens\":[{\"id\":0,\"content\":\"z\"}]," BYTE_LEVEL "," MODEL "}", -EBADMSG,
          "'added_tokens': id 0 is token \"a\" and token \"z\"" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", -EBADMSG,
          "token \"a\" has no whole number" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0.5},\"merges\":[]}}", -EBADMSG,
          "token \"a\" has no whole number" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{" LETTERS "},\"merges\":[\"a z\"]}}", -EBADMSG,
          "field 'model.merges', entry 0: \"a\" and \"z\"" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{" LETTERS "},\"merges\":[\"a b\",[\"b\",\"a\"]]}}",
          -EBADMSG, "field 'model.merges', entry 1: \"b\" and \"a\"" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{" LETTERS "},\"merges\":[[\"a\"]]}}", -EBADMSG,
          "entry 0, is no pair of texts" },
        { "{" BYTE_LEVEL ",\"model\":{\"vocab\":{" LETTERS "}}}", -EBADMSG,
          "field 'model.merges' is missing" },
    };

    (void) state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse(with(cases[i].json, 0, NULL), cases[i].code, cases[i].expected);
    refuse(with(GOOD, DS_HF_TOKENIZER_CONFIG, "{\"eos_token\":\"</s>\"}"), -EBADMSG,
           "tokenizer_config.json: field 'eos_token': \"</s>\" is no token");
    refuse(with(GOOD, DS_HF_TOKENIZER_CONFIG, "{\"added_tokens_decoder\":{\"x\":{}}}"), -EBADMSG,
           "tokenizer_config.json: field 'added_tokens_decoder': \"x\" is no id");
    refuse(with(GOOD, DS_HF_GENERATION_CONFIG, "{\"eos_token_id\":[1,4]}"), -EBADMSG,
           "generation_config.json: field 'eos_token_id': 4 is beyond the 4 tokens");
    refuse(with(GOOD, DS_HF_GENERATION_CONFIG, "{"), -EBADMSG, "generation_config.json: no valid");
    refuse(with(GOOD, DS_HF_ADDED_TOKENS, "{\"q\":\"r\"}"), -EBADMSG, "added_tokens.json: token");
}

static void a_folder_without_a_tokeniser_and_one_too_small_are_refused(void **state)
{
    struct files files = { 0 };
    struct ds_hf_model small = { .label = "folder", .n_vocab = 3, .bos = DS_TOKEN_NONE };
    struct ds_hf_vocab *vocab = NULL;
    struct ds_error error = { "" };

    (void) state;
    assert_int_equal(ds_hf_vocab_read(&vocab, files.bytes, &small, &error), -ENOENT);
    assert_non_null(strstr(error.text, "folder: has neither tokenizer.json nor tokenizer.model"));
    files = with(GOOD, 0, NULL);
    assert_int_equal(ds_hf_vocab_read(&vocab, files.bytes, &small, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "has 4 tokens, but config.json's 'vocab_size' is 3"));
    files.bytes[DS_HF_TOKENIZER_JSON] = (struct ds_bytes){ NULL, 0 };
    files.bytes[DS_HF_TOKENIZER_MODEL] = (struct ds_bytes){ "\x0A\x7F", 2 };
    refuse(files, -EBADMSG, "tokenizer.model: no model of SentencePiece");
    /* one piece "a", then trainer_spec {model_type: 1} */
    files.bytes[DS_HF_TOKENIZER_MODEL] = (struct ds_bytes){ "\x0A\x03\x0A\x01"
                                                            "a\x12\x02\x18\x01",
                                                            9 };
    refuse(files, -ENOTSUP, "field 'trainer_spec.model_type' is unigram");
}

static void check_text(const struct model *model, const char *text, unsigned flags,
                       const char *expected)
{
    size_t n = 0, used = 0;
    ds_cleanup(ds_free_p) uint32_t *ids = ids_of(model, text, strlen(text), flags, &n);
    char got[256] = "";

    for (size_t i = 0; i < n; i++)
        used += (size_t) snprintf(got + used, sizeof got - used, "%s%u", i ? " " : "", ids[i]);
    if (strcmp(got, expected) != 0)
        fail_msg("\"%s\" became %s, not %s", text, got, expected);
}

/* As Hugging Face's tokenizers take the same file. */
static void added_tokens_take_spaces_and_keep_off_words_as_their_flags_say(void **state)
{
    static const char json[] =
        "{\"added_tokens\":["
        "{\"id\":4,\"content\":\"<l>\",\"lstrip\":true,\"special\":true},"
        "{\"id\":5,\"content\":\"<r>\",\"rstrip\":true,\"special\":true},"
        "{\"id\":6,\"content\":\"ww\",\"single_word\":true},"
        "{\"id\":7,\"content\":\"<u>\",\"special\":false}]," BYTE_LEVEL "," MODEL "}";
    struct files files = with(json, 0, NULL);
    struct model model = open_files(files.bytes, &plain_model);

    (void) state;
    check_text(&model, "ab  <l> a", DS_ENCODE_SPECIAL, "2 4 3 0");
    check_text(&model, "a\u3000<l>", DS_ENCODE_SPECIAL, "0 4");
    check_text(&model, " <l> <l>", DS_ENCODE_SPECIAL, "4 4");
    check_text(&model, "<r>  \n <l>b", DS_ENCODE_SPECIAL, "5 4 1");
    check_text(&model, "<r> a", DS_ENCODE_SPECIAL, "5 0");
    check_text(&model, "ww ww", DS_ENCODE_SPECIAL, "6 3 6");
    check_text(&model, "aww", DS_ENCODE_SPECIAL, "0");
    check_text(&model, "wwab", DS_ENCODE_SPECIAL, "2");
    check_text(&model, "\u00e9ww", DS_ENCODE_SPECIAL, "");
    check_text(&model, "a<u>b", 0, "0 7 1");
    check_text(&model, "a<l>b", 0, "0 1");
    close_model(&model);
}

static void what_lies_beside_the_tokeniser_is_read(void **state)
{
    struct files files = with(GOOD, DS_HF_TOKENIZER_CONFIG,
                              "{\"bos_token\":{\"content\":\"a\"},\"eos_token\":\"b\","
                              "\"add_bos_token\":true,\"add_eos_token\":false,"
                              "\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"T\"},"
                              "{\"name\":\"default\",\"template\":\"D\"}],"
                              "\"added_tokens_decoder\":{\"4\":{\"content\":\"<|x|>\"}}}");
    struct ds_hf_model said = { .label = "folder",
                                .n_vocab = 8,
                                .ends = (uint32_t[]){ 2 },
                                .n_ends = 1,
                                .bos = DS_TOKEN_NONE };
    const struct ds_sampling_advice *advice;
    struct model model;

    (void) state;
    files.bytes[DS_HF_GENERATION_CONFIG].data =
        "{\"eos_token_id\":[1,4],\"temperature\":0.6,\"top_p\":0.95,\"top_k\":20,"
        "\"repetition_penalty\":1.05}";
    files.bytes[DS_HF_GENERATION_CONFIG].size = strlen(files.bytes[DS_HF_GENERATION_CONFIG].data);
    model = open_files(files.bytes, &said);
    advice = ds_hf_vocab_advice(model.folder);
    assert_int_equal(ds_tokenizer_bos(model.tokenizer), 0);
    assert_int_equal(ds_tokenizer_eos(model.tokenizer), 1);
    assert_true(ds_tokenizer_adds_bos(model.tokenizer));
    for (uint32_t id = 0; id < 8; id++)
        assert_int_equal(ds_tokenizer_is_end(model.tokenizer, id), id == 1 || id == 2 || id == 4);
    assert_int_equal(model.vocab->n_tokens, 8);
    assert_true(ds_tokenizer_is_control(model.tokenizer, 4)); /* by its looks */
    assert_int_equal(model.vocab->chat_template.size, 1);
    assert_memory_equal(model.vocab->chat_template.data, "D", 1);
    assert_true(advice->temperature == 0.6f && advice->top_p == 0.95f && advice->top_k == 20);
    assert_true(advice->repeat_penalty == 1.05f && advice->min_p != advice->min_p);
    close_model(&model);
    files.bytes[DS_HF_CHAT_TEMPLATE] = (struct ds_bytes){ "J", 1 };
    model = open_files(files.bytes, &said);
    assert_memory_equal(model.vocab->chat_template.data, "J", 1);
    close_model(&model);
}

static void the_post_processor_says_whether_bos_comes_first(void **state)
{
    static const char format[] =
        "{\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true}],"
        "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
        "{\"type\":\"TemplateProcessing\",\"single\":[%s{\"Sequence\":{\"id\":\"A\"}}]}]}"
        "," BYTE_LEVEL "," MODEL "}";
    char json[1024];

    (void) state;
    for (int bos = 0; bos < 2; bos++) {
        struct files files;
        struct model model;

        (void) snprintf(json, sizeof json, format,
                        bos ? "{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}}," : "");
        files = with(json, 0, NULL);
        model = open_files(files.bytes, &plain_model);
        assert_int_equal(ds_tokenizer_adds_bos(model.tokenizer), bos);
        assert_int_equal(ds_tokenizer_bos(model.tokenizer), bos ? 4 : DS_TOKEN_NONE);
        close_model(&model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_golden_folder_gives_the_ids_of_its_gguf_file),
        cmocka_unit_test(real_vocabularies_written_as_json_give_every_recorded_vector),
        cmocka_unit_test(what_is_wrong_with_a_file_is_said_with_file_and_field),
        cmocka_unit_test(a_folder_without_a_tokeniser_and_one_too_small_are_refused),
        cmocka_unit_test(added_tokens_take_spaces_and_keep_off_words_as_their_flags_say),
        cmocka_unit_test(what_lies_beside_the_tokeniser_is_read),
        cmocka_unit_test(the_post_processor_says_whether_bos_comes_first),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
