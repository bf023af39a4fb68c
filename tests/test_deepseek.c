/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the DeepSeek family computes what its papers say, whichever form its files and its
 * attention take.
 * Method: known values of its YaRN; golden models in both forms of attention and of the file, which
 * must agree with each other and in every greedy id. For what has no golden data (sparse attention,
 * the module that predicts a further token) a plain forward pass in double arithmetic, written from
 * the papers on floats and loops alone. And as for every family: no bit from cutting, batching or
 * the instruction set, and files that lack something are refused by name.
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/model/rope.h"
#include "engine/serve/sampler.h"
#include "tests/lib/deepseek_oracle.h"
#include "tests/lib/gguf_writer.h"
#include "tests/lib/golden.h"
#include "tests/lib/model_runner.h"
#include "tests/lib/naive_backend.h"

static struct ds_backend *cpu_backend(const char *isa)
{
    struct ds_cpu_options options = { .n_threads = 2, .spin_usec = 50, .isa = isa };
    struct ds_backend *backend = NULL;

    assert_int_equal(ds_backend_cpu(&backend, &options), 0);
    return backend;
}

/* --- YaRN --- */

static void yarn_sharpens_the_scores_and_leaves_cos_and_sin(void **state)
{
    static const struct {
        float multiplier, factor;
        double scale;
    } cases[] = { { 0.1f, 40.0f, 0.135234 },    /* R1 */
                  { 0.0707f, 40.0f, 0.114721 }, /* V2-Lite */
                  { 0.0f, 40.0f, 0.0721688 },   /* a file that does not say it */
                  { 0.1f, 1.0f, 0.0721688 } };  /* no scaling */
    float frequencies[32];

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct ds_hyper hyper = { .key_dim = 192,
                                  .kv_lora_rank = 512,
                                  .rope_dims = 64,
                                  .rope_base = 10000.0f,
                                  .rope_scaling = DS_ROPE_YARN,
                                  .rope_factor = cases[i].factor,
                                  .rope_original_context = 4096,
                                  .rope_beta_fast = 32.0f,
                                  .rope_beta_slow = 1.0f,
                                  .rope_attn_factor = 1.0f,
                                  .rope_log_multiplier = cases[i].multiplier };

        assert_true(fabs((double) ds_rope_score_scale(&hyper) - cases[i].scale) < 1e-6);
        assert_true(ds_rope_frequencies(&hyper, NULL, frequencies) == 1.0f);
        /* the ramp goes from pair 10 to pair 23 */
        for (unsigned j = 0; j < 32; j++) {
            double ratio = (double) frequencies[j] / pow(10000.0, -2.0 * j / 64.0);
            double share = j <= 10 ? 0.0 : j >= 23 ? 1.0 : (j - 10) / 13.0;

            assert_true(fabs(ratio - (1.0 - share + share / (double) cases[i].factor)) < 1e-5);
        }
    }
}

/* --- both forms --- */

enum { GREEDY = 24 };

struct answer {
    uint32_t ids[GREEDY];
    float *logits; /* [prompt][n_vocab] */
};

static struct answer run(struct ds_backend *backend, const char *path, bool naive,
                         const struct ds_golden_prompt *prompt, uint32_t n_vocab)
{
    struct answer answer = { .logits = calloc(prompt->n_ids * n_vocab, sizeof(float)) };
    struct ds_runner runner;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    const float *last;

    assert_true(fd >= 0 && answer.logits);
    ds_runner_init_form(&runner, backend, fd, 512, 64, naive);
    (void) close(fd);
    for (uint32_t at = 0; at < prompt->n_ids; at += 64) {
        uint32_t n = (uint32_t) prompt->n_ids - at < 64 ? (uint32_t) prompt->n_ids - at : 64;

        ds_runner_feed(&runner, prompt->ids + at, n, false);
        memcpy(answer.logits + (size_t) at * n_vocab, runner.logits,
               (size_t) n * n_vocab * sizeof(float));
    }
    last = answer.logits + (prompt->n_ids - 1) * n_vocab;
    for (unsigned i = 0; i < GREEDY; i++) {
        answer.ids[i] = ds_runner_argmax(last, n_vocab);
        ds_runner_feed(&runner, &answer.ids[i], 1, true);
        last = runner.logits;
    }
    ds_runner_deinit(&runner);
    return answer;
}

static double worst_logprob(const float *a, const float *b, size_t rows, uint32_t n_vocab)
{
    double worst = 0.0;

    for (size_t row = 0; row < rows; row++)
        for (uint32_t id = 0; id < n_vocab; id++)
            worst = fmax(worst, fabs(ds_logprob(a + row * n_vocab, n_vocab, id) -
                                     ds_logprob(b + row * n_vocab, n_vocab, id)));
    return worst;
}

static void compare_forms(struct ds_backend *backend, const char *relative, double tolerance,
                          bool same_ids)
{
    ds_cleanup(ds_free_p) char *path = ds_golden_file(relative);
    struct ds_golden *golden = ds_golden_load(path);
    const struct ds_golden_prompt *prompt = NULL;
    struct answer first = { .logits = NULL };
    uint32_t n_vocab;

    assert_non_null(golden);
    n_vocab = golden->n_vocab;
    for (size_t i = 0; i < golden->n_prompts; i++)
        if (!prompt || golden->prompts[i].n_ids > prompt->n_ids)
            prompt = &golden->prompts[i];
    for (size_t i = 0; i < 2 * golden->n_gguf; i++) {
        struct answer answer = run(backend, golden->gguf[i / 2], i % 2 == 1, prompt, n_vocab);
        double worst;

        if (!first.logits) {
            first = answer;
            continue;
        }
        worst = worst_logprob(first.logits, answer.logits, prompt->n_ids, n_vocab);
        printf("note: %s on %s: %s form of file %zu: %.2e off\n", relative, backend->name,
               i % 2 ? "naive" : "absorbed", i / 2, worst);
        assert_true(worst <= tolerance);
        if (same_ids)
            assert_memory_equal(answer.ids, first.ids, sizeof first.ids);
        free(answer.logits);
    }
    free(first.logits);
    (void) ds_golden_free(golden);
}

static void both_forms_of_attention_and_of_the_file_agree(void **state)
{
    struct ds_backend *backends[2];

    (void) state;
    if (!ds_golden_path()) {
        ds_golden_skip("absorbed against naive latent attention");
        skip();
    }
    backends[0] = ds_naive_backend_new();
    backends[1] = cpu_backend(NULL);
    for (unsigned i = 0; i < 2; i++) {
        compare_forms(backends[i], "gguf/deepseek-v2-lite.golden", 2e-4, true);
        compare_forms(backends[i], "gguf/deepseek-v3.golden", 2e-4, true);
        compare_forms(backends[i], "quant/q-deepseek-v3-F16.golden", i ? 2e-2 : 5e-4, !i);
        compare_forms(backends[i], "quant/q-deepseek-v3-Q4_K_M.golden", i ? 5e-2 : 2e-3, !i);
        backends[i]->close(backends[i]);
    }
}

/* --- tiny models against the oracle --- */

enum {
    D = DS_TINY_WIDTH,
    H = DS_TINY_HEADS,
    ROPE = DS_TINY_ROPE,
    KEY = DS_TINY_NOPE + ROPE,
    VALUE = DS_TINY_VALUE,
    RANK = DS_TINY_RANK,
    I_HEADS = DS_TINY_INDEX_HEADS,
    N_VOCAB = DS_TINY_VOCAB,
    N = DS_ORACLE_TOKENS
};

static void start(struct ds_runner *runner, struct ds_backend *backend,
                  const struct ds_tiny_deepseek *model, bool naive)
{
    size_t size = 0;
    ds_cleanup(ds_free_p) uint8_t *bytes = ds_tiny_deepseek_file(model, NULL, &size);
    int fd = ds_memfd_of(bytes, size);

    assert_true(fd >= 0);
    ds_runner_init_form(runner, backend, fd, 128, N, naive);
    (void) close(fd);
}

static void fill_tokens(uint32_t *tokens, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (i * 7919u + 13u) % N_VOCAB;
}

static double off_by(const float *logits, double (*right)[N_VOCAB], int n)
{
    double worst = 0.0;

    for (int t = 0; t < n; t++) {
        double total = 0.0;

        for (int id = 0; id < N_VOCAB; id++)
            total += exp(right[t][id]);
        for (uint32_t id = 0; id < N_VOCAB; id++)
            worst = fmax(worst, fabs(ds_logprob(logits + (size_t) t * N_VOCAB, N_VOCAB, id) -
                                     (right[t][id] - log(total))));
    }
    return worst;
}

static const struct ds_tiny_deepseek_options kinds[] = {
    { .compressed = true, .kv = DS_TINY_KV_ONE, .seed = 1 },
    { .compressed = true, .kv = DS_TINY_KV_SPLIT, .seed = 1 },
    { .compressed = true, .kv = DS_TINY_KV_ALL, .seed = 1, .mtp = true },
    { .compressed = false, .kv = DS_TINY_KV_SPLIT, .seed = 2 },
    { .sparse = true, .compressed = true, .kv = DS_TINY_KV_SPLIT, .top_k = 20, .seed = 3 },
    { .sparse = true, .compressed = true, .mtp = true, .top_k = 33, .seed = 4 },
    { .sparse = true, .compressed = true, .top_k = 1, .seed = 5 },
};
enum { N_KINDS = sizeof kinds / sizeof kinds[0] };

static void models_made_here_follow_the_papers(void **state)
{
    struct ds_backend *backends[2] = { ds_naive_backend_new(), cpu_backend(NULL) };
    uint32_t tokens[N];

    (void) state;
    fill_tokens(tokens, N);
    for (unsigned i = 0; i < N_KINDS; i++) {
        struct ds_tiny_deepseek *model = ds_tiny_deepseek_new(&kinds[i]);
        struct ds_truth *truth = ds_oracle_think(model, tokens);

        assert_true(kinds[i].sparse == (truth->n_left_out > 0));
        for (unsigned b = 0; b < 4; b++) {
            struct ds_runner runner;
            double off;

            if (b % 2 && kinds[i].sparse)
                continue; /* it has no naive form */
            start(&runner, backends[b / 2], model, b % 2);
            ds_runner_feed(&runner, tokens, N, false);
            off = off_by(runner.logits, truth->logits, N);
            printf("note: model %u on %s, %s form: %.1e off\n", i, backends[b / 2]->name,
                   b % 2 ? "naive" : "absorbed", off);
            assert_true(off < (b < 2 ? 5e-5 : 2e-4));
            ds_runner_deinit(&runner);
        }
        free(truth);
        (void) ds_tiny_deepseek_free(model);
    }
    backends[0]->close(backends[0]);
    backends[1]->close(backends[1]);
}

static void all_forms_of_a_file_give_the_same_bits(void **state)
{
    struct ds_backend *backend = cpu_backend(NULL);
    float *first = NULL;
    uint32_t tokens[N];

    (void) state;
    fill_tokens(tokens, N);
    for (unsigned kv = 0; kv < 3; kv++) {
        struct ds_tiny_deepseek_options options = { .compressed = true, .kv = kv, .seed = 6 };
        struct ds_tiny_deepseek *model = ds_tiny_deepseek_new(&options);
        struct ds_runner runner;

        start(&runner, backend, model, false);
        ds_runner_feed(&runner, tokens, N, false);
        if (!first)
            first = ds_steal(runner.logits);
        else
            assert_memory_equal(first, runner.logits, (size_t) N * N_VOCAB * sizeof *first);
        ds_runner_deinit(&runner);
        (void) ds_tiny_deepseek_free(model);
    }
    free(first);
    backend->close(backend);
}

/* --- no bit from the batch --- */

/* Two sequences, in turns: rows of both in one batch, a few at a time. */
static void feed_two(struct ds_runner *runner, const uint32_t *tokens, float *logits)
{
    uint32_t tables[2][2] = { { 3, 1 }, { 0, 2 } }, done[2] = { 0, 0 }, rows[2], step = 0;
    static const uint32_t length[2] = { 60, 50 };

    for (; done[0] < length[0] || done[1] < length[1]; step++) {
        uint32_t positions[64], sequences[64], ids[64], outputs[64], n = 0;

        for (uint32_t s = 0; s < 2; s++) {
            rows[s] = (s == 0 ? 7 + 5 * (step % 3) : 1 + 9 * (step % 2));
            rows[s] = rows[s] < length[s] - done[s] ? rows[s] : length[s] - done[s];
            for (uint32_t i = 0; i < rows[s]; i++, n++) {
                positions[n] = done[s] + i;
                sequences[n] = s;
                ids[n] = tokens[s * 3 + positions[n]];
                outputs[n] = n;
            }
        }
        const struct ds_batch batch = { .n_tokens = n,
                                        .n_sequences = 2,
                                        .n_outputs = n,
                                        .blocks_max = 2,
                                        .tokens = ids,
                                        .positions = positions,
                                        .sequences = sequences,
                                        .outputs = outputs,
                                        .block_tables = tables[0] };

        assert_int_equal(ds_model_forward(runner->model, runner->kv, &batch, runner->logits), 0);
        for (uint32_t i = 0; i < n; i++)
            memcpy(logits + (size_t) (sequences[i] * N + positions[i]) * N_VOCAB,
                   runner->logits + (size_t) i * N_VOCAB, N_VOCAB * sizeof *logits);
        done[0] += rows[0];
        done[1] += rows[1];
    }
}

static void check_batching(const struct ds_tiny_deepseek_options *options)
{
    static const char *const sets[] = { "portable", "avx2", "avx512" };
    struct ds_tiny_deepseek *model = ds_tiny_deepseek_new(options);
    const size_t row = N_VOCAB * sizeof(float);
    float *whole = NULL, *two = calloc(2 * (size_t) N, row);
    uint32_t tokens[N];

    assert_non_null(two);
    fill_tokens(tokens, N);
    for (unsigned i = 0; i < 3; i++) {
        static const uint32_t chunks[] = { 1, 3, 32, 33 };
        struct ds_cpu_options cpu = { .n_threads = 1 + i, .isa = sets[i] };
        struct ds_backend *backend;
        struct ds_runner runner;

        if (ds_backend_cpu(&backend, &cpu) < 0)
            continue; /* not on this machine: test_cpu_isa says so */
        start(&runner, backend, model, false);
        ds_runner_feed(&runner, tokens, N, false);
        if (!whole)
            whole = memcpy(malloc(N * row), runner.logits, N * row);
        assert_memory_equal(whole, runner.logits, N * row);
        for (unsigned c = 0; c < 4; c++) {
            ds_runner_reset(&runner);
            for (uint32_t at = 0; at < N; at += chunks[c]) {
                uint32_t n = N - at < chunks[c] ? N - at : chunks[c];

                ds_runner_feed(&runner, tokens + at, n, false);
                assert_memory_equal(whole + (size_t) at * N_VOCAB, runner.logits, n * row);
            }
        }
        ds_runner_reset(&runner);
        ds_runner_feed(&runner, tokens, N, true); /* the last row alone */
        assert_memory_equal(whole + (size_t) (N - 1) * N_VOCAB, runner.logits, row);
        feed_two(&runner, tokens, two);
        assert_memory_equal(whole, two, 60 * row);
        ds_runner_reset(&runner);
        ds_runner_feed(&runner, tokens + 3, 50, false);
        assert_memory_equal(runner.logits, two + (size_t) N * N_VOCAB, 50 * row);
        ds_runner_deinit(&runner);
        backend->close(backend);
    }
    free(whole);
    free(two);
    (void) ds_tiny_deepseek_free(model);
}

static void neither_cutting_nor_company_nor_instruction_set_changes_a_bit(void **state)
{
    (void) state;
    for (unsigned i = 0; i < N_KINDS; i++)
        for (unsigned type = 0; type < 2; type++) {
            struct ds_tiny_deepseek_options options = kinds[i];

            options.type = type ? DS_TYPE_Q8_0 : DS_TYPE_F32;
            check_batching(&options);
        }
}

/* --- further tokens --- */

static void feed_mtp(struct ds_runner *runner, const float *hidden, const uint32_t *next,
                     uint32_t first, uint32_t n, float *logits, float *hidden_out)
{
    uint32_t positions[N], sequences[N] = { 0 }, outputs[N];
    const struct ds_batch batch = { .n_tokens = n,
                                    .n_sequences = 1,
                                    .n_outputs = n,
                                    .blocks_max = 128 / DS_KV_BLOCK,
                                    .tokens = next,
                                    .positions = positions,
                                    .sequences = sequences,
                                    .outputs = outputs,
                                    .block_tables = runner->blocks };

    for (uint32_t i = 0; i < n; i++) {
        positions[i] = first + i;
        outputs[i] = i;
    }
    assert_int_equal(ds_model_mtp(runner->model, runner->kv, &batch, hidden, logits, hidden_out),
                     0);
}

static void check_mtp(struct ds_backend *backend, const struct ds_tiny_deepseek_options *options,
                      double tolerance)
{
    struct ds_tiny_deepseek *model = ds_tiny_deepseek_new(options);
    uint32_t tokens[N + 1], positions[N], sequences[N] = { 0 }, outputs[1] = { N - 1 };
    float *hidden = calloc((size_t) N * D, sizeof *hidden), *further = calloc((size_t) N * D, 4);
    float *logits = calloc((size_t) N * N_VOCAB, sizeof *logits), *again;
    struct ds_truth *truth, *guessed, *twice;
    struct ds_runner runner;

    assert_true(hidden && further && logits);
    fill_tokens(tokens, N + 1);
    truth = ds_oracle_think(model, tokens);
    guessed = ds_oracle_guess(model, truth->hidden, tokens + 1);
    twice = ds_oracle_guess(model, guessed->x, tokens + 1);
    start(&runner, backend, model, false);
    assert_true(ds_model_has_mtp(runner.model));
    assert_int_equal(ds_model_width(runner.model), D);

    ds_runner_feed(&runner, tokens, N, true);
    again = memcpy(malloc(N_VOCAB * sizeof *again), runner.logits, N_VOCAB * sizeof *again);
    for (uint32_t i = 0; i < N; i++)
        positions[i] = i;
    const struct ds_batch batch = { .n_tokens = N,
                                    .n_sequences = 1,
                                    .n_outputs = 1,
                                    .blocks_max = 128 / DS_KV_BLOCK,
                                    .tokens = tokens,
                                    .positions = positions,
                                    .sequences = sequences,
                                    .outputs = outputs,
                                    .block_tables = runner.blocks,
                                    .hidden = hidden };
    assert_int_equal(ds_model_forward(runner.model, runner.kv, &batch, runner.logits), 0);
    assert_memory_equal(again, runner.logits, N_VOCAB * sizeof *again); /* asking costs no bit */

    feed_mtp(&runner, hidden, tokens + 1, 0, N, logits, further);
    assert_true(off_by(logits, guessed->logits, N) < tolerance);
    for (uint32_t at = 0; at < N; at += 7) { /* the same bits in pieces */
        uint32_t n = N - at < 7 ? N - at : 7;

        feed_mtp(&runner, hidden + (size_t) at * D, tokens + 1 + at, at, n, runner.logits, NULL);
        assert_memory_equal(runner.logits, logits + (size_t) at * N_VOCAB,
                            (size_t) n * N_VOCAB * sizeof *logits);
    }
    feed_mtp(&runner, further, tokens + 1, 0, N, logits, NULL); /* its own state, fed again */
    assert_true(off_by(logits, twice->logits, N) < tolerance);

    ds_runner_reset(&runner); /* and the model's own layers were not touched */
    runner.n_past = N - 1;
    ds_runner_feed(&runner, tokens + N - 1, 1, true);
    assert_memory_equal(again, runner.logits, N_VOCAB * sizeof *again);
    ds_runner_deinit(&runner);
    (void) ds_tiny_deepseek_free(model);
    free(truth);
    free(guessed);
    free(twice);
    free(hidden);
    free(further);
    free(logits);
    free(again);
}

static void the_module_guesses_what_the_papers_say(void **state)
{
    struct ds_backend *backends[2] = { ds_naive_backend_new(), cpu_backend(NULL) };

    (void) state;
    for (unsigned b = 0; b < 2; b++) {
        for (unsigned i = 0; i < N_KINDS; i++)
            if (kinds[i].mtp)
                check_mtp(backends[b], &kinds[i], b ? 2e-4 : 5e-5);
        backends[b]->close(backends[b]);
    }
}

/* --- files that are not right --- */

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

static void every_missing_tensor_is_named(void **state)
{
    static const struct ds_tiny_deepseek_options options[] = {
        { .sparse = true, .compressed = true, .mtp = true, .kv = DS_TINY_KV_ONE, .top_k = 9 },
        { .compressed = false, .kv = DS_TINY_KV_ONE },
    };

    (void) state;
    for (unsigned o = 0; o < 2; o++) {
        struct ds_tiny_deepseek *model = ds_tiny_deepseek_new(&options[o]);

        for (unsigned i = 0; i < model->n_tensors; i++) {
            const char *name = model->tensors[i].name;
            ds_cleanup(ds_free_p) uint8_t *bytes = NULL;
            struct ds_error error;
            size_t size = 0;
            int r;

            bytes = ds_tiny_deepseek_file(model, name, &size);
            r = load_bytes(bytes, size, &error);
            if (strcmp(name, "output.weight") == 0 || strstr(name, "shared_head_norm")) {
                assert_int_equal(r, 0); /* a tied head, the model's own norm */
                continue;
            }
            assert_int_equal(r, -EINVAL);
            if (!strstr(error.text, name))
                fail_msg("%s is missing, but: %s", name, error.text);
        }
        (void) ds_tiny_deepseek_free(model);
    }
}

/* The file with the u32 value of a key changed. */
static void expect_refusal(const struct ds_tiny_deepseek *model, const char *key, uint32_t value,
                           const char *text)
{
    ds_cleanup(ds_free_p) uint8_t *bytes = NULL;
    struct ds_error error;
    size_t size = 0;
    uint8_t *found;
    int r;

    bytes = ds_tiny_deepseek_file(model, NULL, &size);
    found = memmem(bytes, size, key, strlen(key));
    assert_non_null(found);
    memcpy(found + strlen(key) + 4, &value, sizeof value);
    r = load_bytes(bytes, size, &error);
    if (r != -EINVAL || !strstr(error.text, text))
        fail_msg("%s = %u: %d, %s", key, value, r, error.text);
}

static void keys_that_contradict_are_named(void **state)
{
    const struct ds_tiny_deepseek_options options = {
        .sparse = true, .compressed = true, .mtp = true, .kv = DS_TINY_KV_SPLIT, .top_k = 9
    };
    struct ds_tiny_deepseek *model = ds_tiny_deepseek_new(&options);
    static const struct {
        const char *key;
        uint32_t value;
        const char *text;
    } cases[] = {
        { "attention.kv_lora_rank", 0, "attention.kv_lora_rank" },
        { "attention.kv_lora_rank", UINT32_MAX, "attention.kv_lora_rank" },
        { "attention.kv_lora_rank", RANK + 1, "attn_kv_a_mqa.weight" },
        { "attention.q_lora_rank", 0, "attention.q_lora_rank" },
        { "attention.q_lora_rank", UINT32_MAX, "attention.q_lora_rank" },
        { "attention.q_lora_rank", 32, "attn_q_a.weight" },
        { "attention.key_length_mla", ROPE, "rope.dimension_count" },
        { "attention.key_length_mla", KEY + 2, "attn_q_b.weight" },
        { "attention.value_length_mla", VALUE + 1, "attn_v_b.weight" },
        { "attention.value_length_mla", 0, "attention.value_length" },
        { "attention.head_count", H + 1, "attn_q_b.weight" },
        { "rope.dimension_count", ROPE + 2, "attn_kv_a_mqa.weight" },
        { "attention.indexer.head_count", 0, "indexer.head_count" },
        { "attention.indexer.head_count", I_HEADS + 1, "indexer.attn_q_b.weight" },
        { "attention.indexer.head_count", UINT32_MAX, "indexer.head_count" },
        { "attention.indexer.key_length", 8, "indexer.key_length" },
        { "attention.indexer.key_length", UINT32_MAX, "indexer.key_length" },
        { "attention.indexer.top_k", 0, "indexer.top_k" },
        { "attention.indexer.top_k", UINT32_MAX, "indexer.top_k" },
        { "nextn_predict_layers", DS_TINY_LAYERS + 1, "nextn_predict_layers" },
    };

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_refusal(model, cases[i].key, cases[i].value, cases[i].text);
    (void) ds_tiny_deepseek_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(yarn_sharpens_the_scores_and_leaves_cos_and_sin),
        cmocka_unit_test(models_made_here_follow_the_papers),
        cmocka_unit_test(all_forms_of_a_file_give_the_same_bits),
        cmocka_unit_test(neither_cutting_nor_company_nor_instruction_set_changes_a_bit),
        cmocka_unit_test(the_module_guesses_what_the_papers_say),
        cmocka_unit_test(every_missing_tensor_is_named),
        cmocka_unit_test(keys_that_contradict_are_named),
        cmocka_unit_test(both_forms_of_attention_and_of_the_file_agree),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
