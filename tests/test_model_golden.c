/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the forward pass computes what the models' authors' own code computes.
 * Method: models of every family against log-probabilities and greedy continuations that
 * transformers gave in float32 (golden data): once with the naive backend, which rounds nothing and
 * so must meet the float tolerances on every type, and once with the CPU backend, with the
 * tolerances for its arithmetic. The default model likewise, judged by the root mean square of its
 * deviations against llama.cpp's. What needs no golden data: models made here agree between the two
 * backends, however their prompts are cut, and files that lack something are refused by name.
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "engine/format/quant.h"
#include "engine/model/rope.h"
#include "engine/serve/sampler.h"
#include "engine/text/tokenizer.h"
#include "tests/lib/golden.h"
#include "tests/lib/model_folder.h"
#include "tests/lib/model_runner.h"
#include "tests/lib/naive_backend.h"
#include "tests/lib/tiny_model.h"

struct tolerance {
    double logprob, nll; /* nll per predicted token */
    bool exact;          /* greedy ids whatever the gap */
};

struct deviation {
    double worst, squares; /* of the top log-probabilities */
    double nll;            /* worst, per predicted token */
    unsigned n, n_greedy;
};

static void compare_top(const struct ds_golden_prompt *prompt, const float *logits,
                        uint32_t n_vocab, struct deviation *d)
{
    for (size_t i = 0; i < prompt->n_top; i++) {
        double off =
            fabs(ds_logprob(logits, n_vocab, prompt->top_ids[i]) - prompt->top_logprobs[i]);

        assert_true(isfinite(off));
        d->worst = fmax(d->worst, off);
        d->squares += off * off;
        d->n++;
    }
}

static void compare_greedy(struct ds_runner *runner, const struct ds_golden_prompt *prompt,
                           const float *logits, const struct tolerance *tolerance,
                           struct deviation *d)
{
    for (size_t i = 0; i < prompt->n_greedy; i++) {
        if (!tolerance->exact && i < prompt->n_gaps && prompt->gaps[i] < 2.0 * tolerance->logprob)
            break; /* either may win: what follows differs */
        assert_int_equal(ds_runner_argmax(logits, runner->n_vocab), prompt->greedy[i]);
        d->n_greedy++;
        ds_runner_feed(runner, &prompt->greedy[i], 1, true);
        logits = runner->logits;
    }
}

/* A GGUF file, or a folder. */
static struct ds_checkpoint *open_model(const char *path)
{
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_model_folder folder = { .n = 0 };
    struct ds_error error = { "" };
    struct stat status;
    int fd;

    assert_int_equal(stat(path, &status), 0);
    if (S_ISDIR(status.st_mode)) {
        ds_model_folder_open(&folder, path);
    } else {
        fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        folder.fds[folder.n++] = fd;
    }
    if (ds_checkpoint_open_named(&checkpoint, folder.fds, (const char *const *) folder.names,
                                 folder.n, "model", false, &error) < 0)
        fail_msg("%s", error.text);
    ds_model_folder_close(&folder);
    return checkpoint;
}

/* Runs all prompts of a golden file through one form of its model. */
static struct deviation run_golden(struct ds_backend *backend, const struct ds_golden *golden,
                                   const char *path, uint32_t chunk, bool exact_kv,
                                   const struct tolerance *tolerance)
{
    struct deviation d = { 0 };
    struct ds_runner runner;

    ds_runner_init_checkpoint(&runner, backend, open_model(path), 512, chunk, exact_kv);
    assert_int_equal(runner.n_vocab, golden->n_vocab);
    for (size_t i = 0; i < golden->n_prompts; i++) {
        const struct ds_golden_prompt *prompt = &golden->prompts[i];
        const float *last = NULL;
        double nll;

        ds_runner_reset(&runner);
        nll = ds_runner_prompt(&runner, prompt->ids, (uint32_t) prompt->n_ids, chunk, &last);
        if (prompt->n_ids > 1)
            d.nll = fmax(d.nll, fabs(nll - prompt->nll) / (double) (prompt->n_ids - 1));
        compare_top(prompt, last, runner.n_vocab, &d);
        compare_greedy(&runner, prompt, last, tolerance, &d);
    }
    ds_runner_deinit(&runner);
    return d;
}

static void check_golden(struct ds_backend *backend, const char *relative, uint32_t chunk,
                         bool int8)
{
    ds_cleanup(ds_free_p) char *path = ds_golden_file(relative);
    struct tolerance tolerance;
    struct ds_golden *golden;

    assert_non_null(path);
    golden = ds_golden_load(path);
    assert_non_null(golden);
    int8 = int8 && golden->tol_logprob_int8 > 0.0;
    tolerance = (struct tolerance){
        .logprob = int8 ? golden->tol_logprob_int8 : golden->tol_logprob,
        .nll = int8 ? golden->tol_nll_int8 : golden->tol_nll,
        .exact = !int8,
    };
    for (size_t i = 0; i < golden->n_gguf + (golden->hf != NULL); i++) {
        /* The folder's weights are the same numbers in BF16 or F16, multiplied as floats; only
         * the cache would be rounded for their sake. */
        bool folder = i == golden->n_gguf;
        const char *path_i = folder ? golden->hf : golden->gguf[i];
        struct deviation d = run_golden(backend, golden, path_i, chunk, folder, &tolerance);

        printf("note: %s%s on %s: top %.2e (tolerance %.2e), nll %.2e (%.2e), %u greedy ids\n",
               relative, folder ? " (folder)" : "", backend->name, d.worst, tolerance.logprob,
               d.nll, tolerance.nll, d.n_greedy);
        assert_true(d.worst <= tolerance.logprob);
        assert_true(d.nll <= tolerance.nll);
    }
    (void) ds_golden_free(golden);
}

static const char *const plain_models[] = {
    "gguf/llama.golden",      "gguf/llama3rope.golden", "gguf/qwen2.golden",
    "gguf/qwen3.golden",      "gguf/qwen3moe.golden",   "gguf/deepseek-v2-lite.golden",
    "gguf/deepseek-v3.golden"
};

static const char *const quantised_models[] = {
    "quant/q-llama-F16.golden",          "quant/q-llama-BF16.golden",
    "quant/q-llama-Q8_0.golden",         "quant/q-llama-Q4_0.golden",
    "quant/q-llama-Q4_1.golden",         "quant/q-llama-Q5_0.golden",
    "quant/q-llama-Q5_1.golden",         "quant/q-llama-Q4_K_M.golden",
    "quant/q-llama-Q5_K_M.golden",       "quant/q-llama-Q6_K.golden",
    "quant/q-llama-Q2_K.golden",         "quant/q-llama-Q3_K_M.golden",
    "quant/q-llama-IQ4_NL.golden",       "quant/q-llama-IQ4_XS.golden",
    "quant/q-qwen2-F16.golden",          "quant/q-qwen2-Q8_0.golden",
    "quant/q-qwen2-Q4_K_M.golden",       "quant/q-qwen2-Q6_K.golden",
    "quant/q-deepseek-v3-F16.golden",    "quant/q-deepseek-v3-Q8_0.golden",
    "quant/q-deepseek-v3-Q4_K_M.golden", "quant/q-deepseek-v3-Q6_K.golden",
};

static void naive_models_meet_the_float_tolerances(void **state)
{
    struct ds_backend *backend = ds_naive_backend_new();

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("models against transformers, naive backend");
        backend->close(backend);
        skip();
    }
    for (unsigned i = 0; i < sizeof plain_models / sizeof plain_models[0]; i++)
        check_golden(backend, plain_models[i], 64, false);
    for (unsigned i = 0; i < sizeof quantised_models / sizeof quantised_models[0]; i++)
        check_golden(backend, quantised_models[i], 64, false);
    backend->close(backend);
}

static struct ds_backend *cpu_backend(void)
{
    struct ds_cpu_options options = { .n_threads = 2, .spin_usec = 50 };
    struct ds_backend *backend = NULL;

    assert_int_equal(ds_backend_cpu(&backend, &options), 0);
    return backend;
}

static void cpu_models_meet_the_tolerances_of_their_arithmetic(void **state)
{
    struct ds_backend *backend;

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("models against transformers, CPU backend");
        skip();
    }
    backend = cpu_backend();
    for (unsigned i = 0; i < sizeof plain_models / sizeof plain_models[0]; i++)
        check_golden(backend, plain_models[i], 64, false);
    for (unsigned i = 0; i < sizeof quantised_models / sizeof quantised_models[0]; i++)
        check_golden(backend, quantised_models[i], 64, true);
    backend->close(backend);
}

static void the_default_model_is_no_further_off_than_llama_cpp(void **state)
{
    static const char relative[] = "default/SmolLM2-135M-Instruct.Q4_1.golden";
    ds_cleanup(ds_free_p) char *path = ds_golden_file(relative);
    const char *model = ds_default_model_path();
    struct ds_backend *backend;
    struct ds_golden *golden;
    struct tolerance tolerance;
    struct deviation d;
    double rms;

    (void) state;
    if (!path || !model) {
        if (!path)
            ds_golden_skip("the default model against transformers");
        else
            printf("skip: default model not found (make model fetches it): its log-probabilities "
                   "are not checked\n");
        skip();
    }
    golden = ds_golden_load(path);
    assert_non_null(golden);
    backend = cpu_backend();
    tolerance =
        (struct tolerance){ .logprob = golden->tol_logprob_int8, .nll = golden->tol_nll_int8 };
    d = run_golden(backend, golden, model, 128, false, &tolerance);
    rms = sqrt(d.squares / d.n);
    printf("note: default model: rms of %u top log-probabilities %.4f (llama.cpp %.4f), worst %.4f "
           "(tolerance %.4f), nll %.4f (%.4f), %u greedy ids\n",
           d.n, rms, golden->llamacpp_rms, d.worst, tolerance.logprob, d.nll, tolerance.nll,
           d.n_greedy);
    assert_true(rms <= golden->llamacpp_rms);
    assert_true(d.worst <= tolerance.logprob);
    assert_true(d.nll <= tolerance.nll);
    (void) ds_golden_free(golden);
    backend->close(backend);
}

/* --- trained stories --- */

struct story {
    uint32_t prompt[64], ids[128];
    double gaps[128];
    uint32_t n_prompt, n_ids;
    double nll;
    const char *text;
};

static uint32_t read_ids(const cJSON *array, uint32_t *ids, uint32_t most)
{
    uint32_t n = 0;
    const cJSON *item;

    cJSON_ArrayForEach(item, array)
    {
        assert_true(n < most);
        ids[n++] = (uint32_t) item->valuedouble;
    }
    return n;
}

static void read_story(const cJSON *line, struct story *story)
{
    const cJSON *item;
    uint32_t n = 0;

    story->n_prompt = read_ids(cJSON_GetObjectItem(line, "prompt_ids"), story->prompt, 64);
    story->n_ids = read_ids(cJSON_GetObjectItem(line, "ids"), story->ids, 128);
    story->nll = cJSON_GetObjectItem(line, "nll")->valuedouble;
    story->text = cJSON_GetObjectItem(line, "text")->valuestring;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(line, "gaps"))
    {
        assert_true(n < 128);
        story->gaps[n++] = item->valuedouble;
    }
    assert_int_equal(n, story->n_ids);
}

/* The continuation's ids as long as no gap is below min_gap; the whole text where none is. */
static uint32_t tell(struct ds_runner *runner, const struct ds_tokenizer *tokenizer,
                     const struct story *story, double min_gap, double tol_nll)
{
    ds_cleanup(ds_free_p) char *text = NULL;
    const float *logits = NULL;
    size_t size = 0;
    double nll;
    uint32_t n = 0;

    ds_runner_reset(runner);
    nll = ds_runner_prompt(runner, story->prompt, story->n_prompt, 64, &logits);
    assert_true(fabs(nll - story->nll) <= tol_nll * story->n_prompt);
    for (; n < story->n_ids && story->gaps[n] >= min_gap; n++) {
        assert_int_equal(ds_runner_argmax(logits, runner->n_vocab), story->ids[n]);
        ds_runner_feed(runner, &story->ids[n], 1, true);
        logits = runner->logits;
    }
    if (n < story->n_ids)
        return n;
    assert_int_equal(ds_tokenizer_decode(tokenizer, story->ids, n, true, false, &text, &size), 0);
    assert_string_equal(text, story->text);
    return n;
}

static void tell_all(struct ds_backend *backend, const char *name, double min_gap, double tol_nll)
{
    ds_cleanup(ds_free_p) char *gguf = NULL, *jsonl = NULL, *data = NULL;
    struct ds_tokenizer *tokenizer = NULL;
    struct ds_error error = { "" };
    struct ds_runner runner;
    uint32_t n_told = 0, n_ids = 0;
    char path[64], *rest, *line;
    size_t size;
    int fd;

    (void) snprintf(path, sizeof path, "models/%s.gguf", name);
    gguf = ds_golden_file(path);
    (void) snprintf(path, sizeof path, "models/%s.jsonl", name);
    jsonl = ds_golden_file(path);
    assert_true(gguf && jsonl);
    data = ds_golden_read(jsonl, &size);
    fd = open(gguf, O_RDONLY | O_CLOEXEC);
    assert_true(data && fd >= 0);
    ds_runner_init(&runner, backend, fd, 256, 64);
    (void) close(fd);
    if (ds_tokenizer_new(&tokenizer, ds_checkpoint_vocab(runner.checkpoint), &error) != 0)
        fail_msg("%s", error.text);
    for (line = strtok_r(data, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        cJSON *object = cJSON_Parse(line);
        struct story story = { 0 };

        assert_non_null(object);
        read_story(object, &story);
        n_told += tell(&runner, tokenizer, &story, min_gap, tol_nll);
        n_ids += story.n_ids;
        cJSON_Delete(object);
    }
    printf("note: %s on %s: %u of %u ids told\n", name, backend->name, n_told, n_ids);
    assert_true(n_told > 0);
    ds_runner_deinit(&runner);
    (void) ds_tokenizer_free(tokenizer);
}

static void trained_models_tell_their_stories(void **state)
{
    struct ds_backend *naive, *cpu;

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("the texts of stories260K and stories15M");
        skip();
    }
    naive = ds_naive_backend_new();
    cpu = cpu_backend();
    tell_all(naive, "stories260K-f32", 0.0, 1e-4);
    tell_all(naive, "stories260K-Q4_0", 0.0, 1e-4);
    tell_all(cpu, "stories260K-f32", 0.0, 1e-4);
    tell_all(cpu, "stories260K-Q4_0", 0.5, 0.1);
    tell_all(cpu, "stories15M-Q8_0", 0.5, 0.1);
    naive->close(naive);
    cpu->close(cpu);
}

/* --- models made here --- */

static const enum ds_architecture architectures[] = { DS_ARCH_LLAMA, DS_ARCH_QWEN2, DS_ARCH_QWEN3,
                                                      DS_ARCH_QWEN3MOE };
enum { N_ARCHITECTURES = sizeof architectures / sizeof architectures[0] };

static void fill_tokens(uint32_t *tokens, uint32_t n, uint32_t n_vocab)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (i * 7919u + 13u) % n_vocab;
}

static void expect_no_bit_from_cutting(struct ds_backend *backend, uint32_t type)
{
    static const uint32_t chunks[] = { 1, 3, 32, 33 };
    uint32_t tokens[75];

    for (unsigned a = 0; a < N_ARCHITECTURES; a++) {
        struct ds_tiny_options options = ds_tiny_options(architectures[a], type);
        struct ds_runner runner;
        const float *last = NULL;
        float *whole;
        double nll;
        int fd;

        options.rope_factors = a == 0;
        options.window = a == 1 ? 37 : 0;
        fd = ds_tiny_model_fd(&options);
        ds_runner_init(&runner, backend, fd, 128, 75);
        (void) close(fd);
        fill_tokens(tokens, 75, runner.n_vocab);
        nll = ds_runner_prompt(&runner, tokens, 75, 75, &last);
        assert_true(isfinite(nll) && nll > 0.0);
        whole = malloc(runner.n_vocab * sizeof *whole);
        memcpy(whole, last, runner.n_vocab * sizeof *whole);
        for (unsigned c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
            ds_runner_reset(&runner);
            assert_true(ds_runner_prompt(&runner, tokens, 75, chunks[c], &last) == nll);
            assert_memory_equal(whole, last, runner.n_vocab * sizeof *whole);
        }
        /* and asking for the last row alone gives that row */
        ds_runner_reset(&runner);
        ds_runner_feed(&runner, tokens, 75, true);
        assert_memory_equal(whole, runner.logits, runner.n_vocab * sizeof *whole);
        free(whole);
        ds_runner_deinit(&runner);
    }
}

static void how_a_prompt_is_cut_changes_no_bit(void **state)
{
    struct ds_backend *naive = ds_naive_backend_new(), *cpu = cpu_backend();

    (void) state;
    expect_no_bit_from_cutting(naive, DS_TYPE_F32);
    expect_no_bit_from_cutting(cpu, DS_TYPE_F32);
    expect_no_bit_from_cutting(cpu, DS_TYPE_Q4_1);
    expect_no_bit_from_cutting(cpu, DS_TYPE_Q6_K);
    naive->close(naive);
    cpu->close(cpu);
}

static void the_cpu_backend_agrees_with_the_naive_one(void **state)
{
    static const struct {
        uint32_t type;
        double tolerance; /* of a log-probability; the models are small and steep */
    } types[] = { { DS_TYPE_F32, 2e-4 },   { DS_TYPE_F16, 0.05 }, { DS_TYPE_BF16, 0.05 },
                  { DS_TYPE_Q8_0, 0.5 },   { DS_TYPE_Q4_0, 0.5 }, { DS_TYPE_Q4_1, 0.5 },
                  { DS_TYPE_Q5_0, 0.5 },   { DS_TYPE_Q5_1, 0.5 }, { DS_TYPE_Q6_K, 0.5 },
                  { DS_TYPE_IQ4_NL, 0.5 }, { DS_TYPE_MXFP4, 0.5 } };
    struct ds_backend *backends[2] = { ds_naive_backend_new(), cpu_backend() };

    (void) state;
    for (unsigned i = 0; i < N_ARCHITECTURES * sizeof types / sizeof types[0]; i++) {
        uint32_t type = types[i / N_ARCHITECTURES].type, a = i % N_ARCHITECTURES;
        struct ds_tiny_options options = ds_tiny_options(architectures[a], type);
        uint32_t tokens[60];
        float *logits[2];
        double worst = 0.0;
        int fd;

        options.window = a == 1 ? 19 : 0;
        if (type != DS_TYPE_F32) /* where a router hesitates, rounding decides: no comparing that */
            options.n_experts_used = options.n_experts;
        fd = ds_tiny_model_fd(&options);

        for (unsigned b = 0; b < 2; b++) {
            struct ds_runner runner;

            ds_runner_init(&runner, backends[b], fd, 64, 60);
            fill_tokens(tokens, 60, runner.n_vocab);
            ds_runner_feed(&runner, tokens, 60, false);
            logits[b] = ds_steal(runner.logits);
            ds_runner_deinit(&runner);
        }
        for (unsigned row = 0; row < 60; row++) {
            const float *x = logits[0] + (size_t) row * options.n_vocab;
            const float *y = logits[1] + (size_t) row * options.n_vocab;
            uint32_t id = ds_runner_argmax(x, options.n_vocab);

            worst = fmax(worst, fabs(ds_logprob(x, options.n_vocab, id) -
                                     ds_logprob(y, options.n_vocab, id)));
        }
        assert_true(worst <= types[i / N_ARCHITECTURES].tolerance);
        free(logits[0]);
        free(logits[1]);
        (void) close(fd);
    }
    backends[0]->close(backends[0]);
    backends[1]->close(backends[1]);
}

/* With a window of 20 and two layers, the last row sees 39 positions; one outside changes nothing,
 * one inside does. */
static void a_window_hides_what_lies_before_it(void **state)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_QWEN2, DS_TYPE_F32);
    struct ds_backend *backend = cpu_backend();
    struct ds_runner runner;
    uint32_t tokens[60];
    float *last;
    int fd;

    (void) state;
    options.window = 20;
    fd = ds_tiny_model_fd(&options);
    ds_runner_init(&runner, backend, fd, 64, 60);
    (void) close(fd);
    fill_tokens(tokens, 60, runner.n_vocab);
    ds_runner_feed(&runner, tokens, 60, true);
    last = malloc(runner.n_vocab * sizeof *last);
    memcpy(last, runner.logits, runner.n_vocab * sizeof *last);
    for (unsigned changed = 20; changed <= 21; changed++) {
        fill_tokens(tokens, 60, runner.n_vocab);
        tokens[changed] ^= 1;
        ds_runner_reset(&runner);
        ds_runner_feed(&runner, tokens, 60, true);
        assert_int_equal(memcmp(last, runner.logits, runner.n_vocab * sizeof *last) == 0,
                         changed == 20);
    }
    free(last);
    ds_runner_deinit(&runner);
    backend->close(backend);
}

static int load_bytes(const uint8_t *bytes, size_t size, struct ds_error *error)
{
    struct ds_backend *backend = ds_naive_backend_new();
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_model *model = NULL;
    int fd = ds_memfd_of(bytes, size), r;

    error->text[0] = '\0';
    r = ds_checkpoint_open(&checkpoint, &fd, 1, "tiny", false, error);
    if (r == 0)
        r = ds_model_load(&model, backend, checkpoint, 8, 4, NULL, NULL, error);
    (void) close(fd);
    (void) ds_model_free(model);
    (void) ds_checkpoint_free(checkpoint);
    backend->close(backend);
    return r;
}

static uint8_t *tiny_bytes(enum ds_architecture architecture, size_t *ret_size)
{
    struct ds_tiny_options options = ds_tiny_options(architecture, DS_TYPE_F32);
    struct ds_gguf_writer *writer = ds_gguf_writer_new();
    uint8_t *bytes;

    ds_tiny_model_write(writer, &options);
    bytes = ds_gguf_writer_finish(writer, ret_size);
    (void) ds_gguf_writer_free(writer);
    return bytes;
}

static void every_missing_tensor_is_named(void **state)
{
    unsigned n_named = 0;

    (void) state;
    for (unsigned a = 0; a < N_ARCHITECTURES; a++) {
        static const char *const names[] = {
            "token_embd.weight",        "output_norm.weight",         "blk.1.attn_norm.weight",
            "blk.0.attn_q.weight",      "blk.1.attn_k.weight",        "blk.0.attn_v.weight",
            "blk.1.attn_output.weight", "blk.0.ffn_norm.weight",      "blk.1.ffn_gate.weight",
            "blk.0.ffn_up.weight",      "blk.1.ffn_down.weight",      "blk.0.attn_q.bias",
            "blk.1.attn_k.bias",        "blk.0.attn_v.bias",          "blk.1.attn_q_norm.weight",
            "blk.0.attn_k_norm.weight", "blk.1.ffn_gate_inp.weight",  "blk.0.ffn_gate_exps.weight",
            "blk.1.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight",
        };

        for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
            ds_cleanup(ds_free_p) uint8_t *bytes = NULL;
            struct ds_error error = { "" };
            size_t size = 0;
            uint8_t *found;

            bytes = tiny_bytes(architectures[a], &size);
            assert_int_equal(load_bytes(bytes, size, &error), 0);
            found = memmem(bytes, size, names[i], strlen(names[i]));
            if (!found)
                continue; /* of another family */
            found[strlen(names[i]) - 1] = 'X';
            assert_int_equal(load_bytes(bytes, size, &error), -EINVAL);
            assert_non_null(strstr(error.text, names[i]));
            n_named++;
        }
    }
    assert_int_equal(n_named, 3 * 11 + 3 + 2 + (8 + 2 + 4));
}

static void a_misshapen_tensor_is_named_with_both_shapes(void **state)
{
    ds_cleanup(ds_free_p) uint8_t *bytes = NULL;
    static const char name[] = "blk.1.attn_k.weight"; /* {64, 32} */
    struct ds_error error = { "" };
    uint64_t dims[2], swapped[2];
    size_t size = 0;
    uint8_t *found;

    (void) state;
    bytes = tiny_bytes(DS_ARCH_LLAMA, &size);
    found = memmem(bytes, size, name, strlen(name));
    assert_non_null(found);
    found += strlen(name) + sizeof(uint32_t);
    memcpy(dims, found, sizeof dims);
    swapped[0] = dims[1];
    swapped[1] = dims[0];
    memcpy(found, swapped, sizeof swapped);
    assert_int_equal(load_bytes(bytes, size, &error), -EINVAL);
    assert_non_null(strstr(error.text, name));
    assert_non_null(strstr(error.text, "32 x 64"));
    assert_non_null(strstr(error.text, "64 x 32"));
}

static int give_up_at_half(void *arg, double fraction)
{
    double *last = arg;

    assert_true(fraction >= *last && fraction <= 1.0);
    *last = fraction;
    return fraction >= 0.5;
}

static void a_load_can_be_given_up(void **state)
{
    struct ds_tiny_options options = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_Q8_0);
    struct ds_backend *backend = ds_naive_backend_new();
    struct ds_checkpoint *checkpoint = NULL;
    struct ds_model *model = NULL;
    struct ds_error error = { "" };
    double last = 0.0;
    int fd = ds_tiny_model_fd(&options);

    (void) state;
    assert_int_equal(ds_checkpoint_open(&checkpoint, &fd, 1, "tiny", false, &error), 0);
    assert_int_equal(
        ds_model_load(&model, backend, checkpoint, 8, 4, give_up_at_half, &last, &error),
        -ECANCELED);
    assert_null(model);
    (void) close(fd);
    (void) ds_checkpoint_free(checkpoint);
    backend->close(backend);
}

/* --- rotary frequencies --- */

static void rope_scaling_follows_its_papers(void **state)
{
    /* DeepSeek R1's settings, whose ramp is known: pairs up to 10 as trained, from 23 on 1/40. */
    struct ds_hyper hyper = { .rope_dims = 64,
                              .rope_base = 10000.0f,
                              .rope_scaling = DS_ROPE_YARN,
                              .rope_factor = 40.0f,
                              .rope_original_context = 4096,
                              .rope_beta_fast = 32.0f,
                              .rope_beta_slow = 1.0f,
                              .rope_attn_factor = 1.0f };
    float plain[32], scaled[32], factors[32], magnitude;

    (void) state;
    magnitude = ds_rope_frequencies(&hyper, NULL, scaled);
    assert_true(fabs((double) magnitude - (1.0 + 0.1 * log(40.0))) < 1e-6);
    hyper.rope_scaling = DS_ROPE_NONE;
    assert_true(ds_rope_frequencies(&hyper, NULL, plain) == 1.0f);
    for (unsigned i = 0; i < 32; i++) {
        double ratio = (double) scaled[i] / (double) plain[i];
        double share = i <= 10 ? 0.0 : i >= 23 ? 1.0 : (i - 10) / 13.0;

        assert_true(fabs((double) plain[i] - pow(10000.0, -2.0 * i / 64.0)) < 1e-7);
        assert_true(fabs(ratio - (1.0 - share + share / 40.0)) < 1e-6);
        factors[i] = 1.0f + (float) i;
    }
    hyper.rope_scaling = DS_ROPE_LINEAR;
    (void) ds_rope_frequencies(&hyper, factors, scaled);
    for (unsigned i = 0; i < 32; i++)
        assert_true(fabs((double) scaled[i] / (double) plain[i] * 40.0 * (i + 1.0) - 1.0) < 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rope_scaling_follows_its_papers),
        cmocka_unit_test(how_a_prompt_is_cut_changes_no_bit),
        cmocka_unit_test(every_missing_tensor_is_named),
        cmocka_unit_test(a_misshapen_tensor_is_named_with_both_shapes),
        cmocka_unit_test(a_load_can_be_given_up),
        cmocka_unit_test(the_cpu_backend_agrees_with_the_naive_one),
        cmocka_unit_test(a_window_hides_what_lies_before_it),
        cmocka_unit_test(naive_models_meet_the_float_tolerances),
        cmocka_unit_test(cpu_models_meet_the_tolerances_of_their_arithmetic),
        cmocka_unit_test(trained_models_tell_their_stories),
        cmocka_unit_test(the_default_model_is_no_further_off_than_llama_cpp),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
