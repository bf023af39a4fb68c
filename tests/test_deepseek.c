/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: the DeepSeek family computes what its papers say, whichever form its files and its
 * attention take.
 * Method: known values of its YaRN; golden models in both forms of attention and of the file, which
 * must agree with each other and in every greedy id.
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/model/rope.h"
#include "engine/serve/sampler.h"
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(yarn_sharpens_the_scores_and_leaves_cos_and_sin),
        cmocka_unit_test(both_forms_of_attention_and_of_the_file_agree),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
