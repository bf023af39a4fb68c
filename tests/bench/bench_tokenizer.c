/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_tokenizer.c - megabytes of text per second and core, by vocabulary.
 *
 * The text is wikitext-2's test part where the suites are there, else words made here. Beside each
 * rate stands how long the vocabulary took to load, and the rate on text that never repeats a word.
 */
#include <fcntl.h>

#include "engine/text/tokenizer.h"
#include "tests/lib/golden.h"

#define MADE_BYTES (1u << 20)

/* Letters at random, words of 1 to 12: hardly one comes twice. */
static char *make_text(size_t *ret_size)
{
    char *text = malloc(MADE_BYTES);
    uint64_t state = 1;

    if (!text)
        abort();
    for (size_t i = 0, left = 3; i < MADE_BYTES; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        text[i] = left-- > 0 ? (char) ('a' + (state >> 33) % 26) : ' ';
        if (text[i] == ' ')
            left = 1 + (state >> 40) % 12;
    }
    *ret_size = MADE_BYTES;
    return text;
}

/* The best of three. */
static double rate(const struct ds_tokenizer *tokenizer, const char *text, size_t size,
                   size_t *ret_n_ids)
{
    double best = 0;

    for (int i = 0; i < 3; i++) {
        uint64_t start = ds_now_nsec(), elapsed;
        uint32_t *ids = NULL;

        if (ds_tokenizer_encode(tokenizer, text, size, DS_ENCODE_SPECIAL, &ids, ret_n_ids) < 0)
            abort();
        elapsed = ds_now_nsec() - start;
        free(ids);
        if ((double) size * 1e3 / (double) elapsed > best)
            best = (double) size * 1e3 / (double) elapsed;
    }
    return best;
}

static void measure(const char *name, const char *path, const char *text, size_t size)
{
    ds_cleanup(ds_checkpoint_free_p) struct ds_checkpoint *checkpoint = NULL;
    ds_cleanup(ds_tokenizer_free_p) struct ds_tokenizer *tokenizer = NULL;
    ds_cleanup(ds_close_p) int fd = open(path, O_RDONLY | O_CLOEXEC);
    ds_cleanup(ds_free_p) char *made = NULL;
    struct ds_error error = { "" };
    size_t n_ids = 0, made_size, n_made;
    uint64_t start;
    double load_msec;

    if (fd < 0 || ds_checkpoint_open(&checkpoint, &fd, 1, name, true, &error) < 0) {
        printf("%-18s cannot be opened: %s\n", name, error.text);
        return;
    }
    start = ds_now_nsec();
    if (ds_tokenizer_new(&tokenizer, ds_checkpoint_vocab(checkpoint), &error) < 0) {
        printf("%-18s %s\n", name, error.text);
        return;
    }
    load_msec = (double) (ds_now_nsec() - start) / 1e6;
    made = make_text(&made_size);
    printf("%-18s %8.1f MB/s", name, rate(tokenizer, text, size, &n_ids));
    printf("  %5.2f bytes/token", (double) size / (double) n_ids);
    printf("  new words %6.1f MB/s", rate(tokenizer, made, made_size, &n_made));
    printf("  load %6.1f ms\n", load_msec);
}

int main(void)
{
    static const char *const names[] = {
        "qwen2",        "llama-bpe",      "gpt-2",       "llama-spm",
        "deepseek-llm", "deepseek-coder", "deepseek-v3", "deepseek-r1-qwen",
    };
    ds_cleanup(ds_free_p) char *path = ds_golden_file("../suites/text/wikitext-2-test.txt");
    const char *golden = ds_golden_path(), *model = ds_default_model_path();
    ds_cleanup(ds_free_p) char *text = NULL;
    size_t size = 0;

    text = path ? ds_golden_read(path, &size) : make_text(&size);
    if (!text)
        return 1;
    printf("%s, %zu bytes\n", path ? "wikitext-2 test" : "made words", size);
    for (size_t i = 0; golden && i < sizeof names / sizeof names[0]; i++) {
        char relative[128];
        ds_cleanup(ds_free_p) char *gguf = NULL;

        (void) snprintf(relative, sizeof relative, "vocab/ggml-vocab-%s.gguf", names[i]);
        gguf = ds_golden_file(relative);
        if (gguf)
            measure(names[i], gguf, text, size);
    }
    if (model)
        measure("smollm", model, text, size);
    if (!golden && !model)
        printf("skip: no vocabulary here\n");
    return 0;
}
