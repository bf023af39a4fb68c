/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the tokenisers agree, id for id, with two independent implementations on real vocabularies.
 * Method: every recorded text is encoded and compared with the recorded ids; ids decode back to
 * the text, at once and in a stream. The vectors are in the golden folder (its README says where
 * they come from); without it this file can only say what it skips.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "engine/text/detokenizer.h"
#include "engine/text/tokenizer.h"
#include "tests/lib/golden.h"

struct model {
    struct ds_checkpoint *checkpoint;
    struct ds_tokenizer *tokenizer;
};

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

static void model_open(struct model *model, const char *path)
{
    struct ds_error error = { "" };
    int fd = open(path, O_RDONLY | O_CLOEXEC), r;

    assert_true(fd >= 0);
    r = ds_checkpoint_open(&model->checkpoint, &fd, 1, path, true, &error);
    if (r == 0)
        r = ds_tokenizer_new(&model->tokenizer, ds_checkpoint_vocab(model->checkpoint), &error);
    if (r < 0)
        fail_msg("%s: %s", path, error.text);
    (void) close(fd);
}

static void model_close(struct model *model)
{
    ds_tokenizer_free(model->tokenizer);
    ds_checkpoint_free(model->checkpoint);
}

static void print_ids(const char *what, const uint32_t *ids, size_t n)
{
    print_error("%s:", what);
    for (size_t i = 0; i < n; i++)
        print_error(" %u", ids[i]);
    print_error("\n");
}

/* What the tokens give in a stream is what they give at once: the texts are UTF-8. */
static void check_stream(const struct ds_tokenizer *tokenizer, const uint32_t *ids, size_t n,
                         const char *whole, size_t whole_size)
{
    struct ds_detokenizer *detokenizer = NULL;
    struct ds_bytes text;
    size_t at = 0;

    assert_int_equal(ds_detokenizer_new(&detokenizer, tokenizer, NULL, 0, false), 0);
    for (size_t i = 0; i <= n; i++) {
        int r = i < n ? ds_detokenizer_push(detokenizer, ids[i], &text)
                      : ds_detokenizer_finish(detokenizer, &text);

        assert_int_equal(r, 0);
        assert_true(text.size <= whole_size - at);
        assert_memory_equal(text.data, whole + at, text.size);
        at += text.size;
    }
    assert_int_equal(at, whole_size);
    ds_detokenizer_free(detokenizer);
}

/* Returns 1 for a text that became other ids. decodes: the ids must give the text again. */
static int check_vector(const struct ds_tokenizer *tokenizer, const char *text, size_t size,
                        unsigned flags, const uint32_t *ids, size_t n_ids, bool decodes)
{
    uint32_t *got = NULL;
    char *back = NULL;
    size_t n_got = 0, back_size = 0;
    bool same;

    assert_int_equal(ds_tokenizer_encode(tokenizer, text, size, flags, &got, &n_got), 0);
    same = n_got == n_ids && memcmp(got, ids, n_ids * sizeof *ids) == 0;
    if (!same) {
        print_error("text: \"%.*s\"\n", (int) size, text);
        print_ids("  recorded", ids, n_ids);
        print_ids("  encoded ", got, n_got);
    }
    if (decodes) {
        assert_int_equal(ds_tokenizer_decode(tokenizer, got, n_got, false, true, &back, &back_size),
                         0);
        assert_int_equal(back_size, size);
        assert_memory_equal(back, text, size);
        free(back);
    }
    assert_int_equal(ds_tokenizer_decode(tokenizer, got, n_got, false, false, &back, &back_size),
                     0);
    check_stream(tokenizer, got, n_got, back, back_size);
    free(back);
    free(got);
    return !same;
}

/* One {"text": ..., "ids": [...]} per line. Returns the number of lines. */
static int check_jsonl(const struct ds_tokenizer *tokenizer, const char *path, unsigned flags,
                       bool decodes, int *n_wrong)
{
    char *file = ds_golden_read(path, NULL);
    int n = 0;

    assert_non_null(file);
    for (char *rest = file, *line; (line = strsep(&rest, "\n")) && *line; n++) {
        cJSON *object = cJSON_Parse(line), *item;
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(object, "text"));
        cJSON *array = cJSON_GetObjectItem(object, "ids");
        size_t n_ids = (size_t) cJSON_GetArraySize(array), i = 0;
        uint32_t *ids = calloc(n_ids + 1, sizeof *ids);

        assert_non_null(text);
        assert_non_null(ids);
        for (item = array->child; item; item = item->next)
            ids[i++] = (uint32_t) item->valuedouble;
        *n_wrong += check_vector(tokenizer, text, strlen(text), flags, ids, n_ids, decodes);
        free(ids);
        cJSON_Delete(object);
    }
    free(file);
    return n;
}

/* llama.cpp's own test files: texts between marker lines, a line of ids for each. */
static int check_inp_out(const struct ds_tokenizer *tokenizer, const char *gguf, int *n_wrong)
{
    static const char marker[] = "\n__ggml_vocab_test__\n";
    ds_cleanup(ds_free_p) char *inp = path_of("%s.inp", gguf), *out = path_of("%s.out", gguf);
    char *texts = ds_golden_read(inp, NULL), *lines, *text, *rest;
    int n = 0;

    if (!texts)
        return 0;
    lines = rest = ds_golden_read(out, NULL);
    assert_non_null(lines);
    for (text = texts; text; n++) {
        char *end = strstr(text, marker), *line = strsep(&rest, "\n"), *number;
        uint32_t ids[512];
        size_t n_ids = 0;

        assert_non_null(line);
        while ((number = strsep(&line, " ")))
            if (*number && n_ids < 512)
                ids[n_ids++] = (uint32_t) strtoul(number, NULL, 10);
        *n_wrong += check_vector(tokenizer, text, end ? (size_t) (end - text) : strlen(text), 0,
                                 ids, n_ids, true);
        text = end ? end + sizeof marker - 1 : NULL;
    }
    free(texts);
    free(lines);
    return n;
}

static int check_vocabulary(const char *name, bool has_inp)
{
    /* SPM puts a space after special tokens, which decoding cannot tell from a written one. */
    bool decodes = strcmp(name, "llama-spm") != 0;
    const char *golden = ds_golden_path();
    ds_cleanup(ds_free_p) char *gguf = path_of("%s/vocab/ggml-vocab-%s.gguf", golden, name);
    ds_cleanup(ds_free_p) char *jsonl = path_of("%s/tok/%s.jsonl", golden, name);
    ds_cleanup(ds_free_p) char *plain = path_of("%s/tok/%s.nospecial.jsonl", golden, name);
    struct model model = { 0 };
    int n = 0, n_wrong = 0, m;

    model_open(&model, gguf);
    m = check_inp_out(model.tokenizer, gguf, &n_wrong);
    assert_int_equal(m > 40, has_inp);
    n += m;
    m = check_jsonl(model.tokenizer, jsonl, DS_ENCODE_SPECIAL, decodes, &n_wrong);
    assert_int_equal(m, 200);
    n += m;
    m = check_jsonl(model.tokenizer, plain, 0, decodes, &n_wrong);
    assert_true(m > 0);
    n += m;
    print_message("%s: %d of %d vectors differ\n", name, n_wrong, n);
    model_close(&model);
    return n_wrong;
}

static void every_recorded_vector_of_every_real_vocabulary_is_met(void **state)
{
    static const char *const names[] = {
        "gpt-2",        "llama-bpe",      "llama-spm",        "qwen2",
        "deepseek-llm", "deepseek-coder", "deepseek-r1-qwen", "deepseek-v3",
    };
    int n_wrong = 0;

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("tokenisation by eight real vocabularies");
        skip();
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        n_wrong += check_vocabulary(names[i], i < 6);
    assert_int_equal(n_wrong, 0);
}

static void every_recorded_vector_of_the_tiny_models_is_met(void **state)
{
    static const char *const names[] = { "llama", "llama3rope", "qwen2", "deepseek-v3" };
    int n_wrong = 0;

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("tokenisation by four tiny models");
        skip();
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *golden = ds_golden_path();
        ds_cleanup(ds_free_p) char *gguf = path_of("%s/gguf/%s-F32.gguf", golden, names[i]);
        ds_cleanup(ds_free_p) char *jsonl = path_of("%s/gguf/%s.tok.jsonl", golden, names[i]);
        struct model model = { 0 };

        model_open(&model, gguf);
        assert_true(check_jsonl(model.tokenizer, jsonl, DS_ENCODE_SPECIAL, i > 0, &n_wrong) > 20);
        model_close(&model);
    }
    assert_int_equal(n_wrong, 0);
}

static void every_recorded_vector_of_the_default_model_is_met(void **state)
{
    const char *gguf = ds_default_model_path();
    char *path = ds_golden_file("default/SmolLM2-135M-Instruct.Q4_1.tok.jsonl");
    struct model model = { 0 };
    int n_wrong = 0;

    (void) state;
    if (!path)
        ds_golden_skip("tokenisation by the default model");
    if (!gguf)
        print_message("skip: the default model is not here: its tokenisation is not checked\n");
    if (!path || !gguf) {
        free(path);
        skip();
    }
    model_open(&model, gguf);
    assert_int_equal(check_jsonl(model.tokenizer, path, DS_ENCODE_SPECIAL, true, &n_wrong), 204);
    assert_int_equal(n_wrong, 0);
    assert_true(ds_tokenizer_is_end(model.tokenizer, 0));
    assert_true(ds_tokenizer_is_end(model.tokenizer, 2));
    assert_false(ds_tokenizer_is_end(model.tokenizer, 1));
    assert_false(ds_tokenizer_adds_bos(model.tokenizer));
    model_close(&model);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_recorded_vector_of_every_real_vocabulary_is_met),
        cmocka_unit_test(every_recorded_vector_of_the_tiny_models_is_met),
        cmocka_unit_test(every_recorded_vector_of_the_default_model_is_met),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
