/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a model keeps telling the truth with each type of KV cache, the same bits however its
 * prompt is cut, and refuses a type that its heads do not allow.
 * Method: the default model reads the golden prompts; its nll and log-probabilities are compared
 * with transformers, within bounds that hold for this model (noted in RESULTS.md). What serving
 * does to be fast must not show with any type either: jobs of a tiny model through the scheduler,
 * compared with a plain loop over a cache of the same type.
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/serve/sampler.h"
#include "tests/lib/golden.h"
#include "tests/lib/model_runner.h"
#include "tests/lib/serving.h"

static const struct {
    enum ds_kv_type type;
    double nll, rms; /* of the deviation: per token, of the top log-probabilities */
} bounds[] = {
    { DS_KV_F32, 0.022, 0.046 },  { DS_KV_F16, 0.052, 0.056 }, { DS_KV_BF16, 0.012, 0.054 },
    { DS_KV_Q8_0, 0.018, 0.067 }, { DS_KV_Q4_0, 0.44, 0.72 },
};

/* Feeds all prompts; into ret_nll the worst deviation of a prompt, into ret_rms of all. */
static void read_prompts(struct ds_runner *runner, const struct ds_golden *golden, double *ret_nll,
                         double *ret_rms)
{
    double worst = 0, squares = 0;
    unsigned n = 0;

    for (size_t i = 0; i < golden->n_prompts; i++) {
        const struct ds_golden_prompt *prompt = &golden->prompts[i];
        const float *last = NULL;
        double nll;

        ds_runner_reset(runner);
        nll = ds_runner_prompt(runner, prompt->ids, (uint32_t) prompt->n_ids, 64, &last);
        if (prompt->n_ids > 1)
            worst = fmax(worst, fabs(nll - prompt->nll) / (double) (prompt->n_ids - 1));
        for (size_t j = 0; j < prompt->n_top; j++, n++) {
            double off = ds_logprob(last, runner->n_vocab, prompt->top_ids[j]);

            squares += (off - prompt->top_logprobs[j]) * (off - prompt->top_logprobs[j]);
        }
    }
    *ret_nll = worst;
    *ret_rms = sqrt(squares / n);
}

/* The last row of a prompt that is fed whole, and of one that is fed in threes, are one. */
static void check_cut(struct ds_runner *runner, const struct ds_golden_prompt *prompt)
{
    size_t bytes = runner->n_vocab * sizeof(float);
    ds_cleanup(ds_free_p) float *whole = malloc(bytes);
    const float *last = NULL;

    assert_non_null(whole);
    ds_runner_reset(runner);
    (void) ds_runner_prompt(runner, prompt->ids, (uint32_t) prompt->n_ids, 64, &last);
    memcpy(whole, last, bytes);
    ds_runner_reset(runner);
    (void) ds_runner_prompt(runner, prompt->ids, (uint32_t) prompt->n_ids, 3, &last);
    assert_memory_equal(whole, last, bytes);
}

static void each_type_keeps_the_default_model_near_the_truth(void **state)
{
    ds_cleanup(ds_free_p) char *path = ds_golden_file("default/SmolLM2-135M-Instruct.Q4_1.golden");
    const char *model = ds_default_model_path();
    struct ds_cpu_options options = { .n_threads = 2 };
    struct ds_backend *backend = NULL;
    struct ds_golden *golden;

    (void) state;
    if (!path || !model) {
        printf(
            "SKIP: no golden of the default model, or not that model: the deviation of the types "
            "of KV caches is not checked\n");
        skip();
    }
    golden = ds_golden_load(path);
    assert_non_null(golden);
    assert_int_equal(ds_backend_cpu(&backend, &options), 0);
    for (unsigned i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        struct ds_runner runner;
        double nll, rms;
        int fd = open(model, O_RDONLY | O_CLOEXEC);

        assert_true(fd >= 0);
        ds_runner_init(&runner, backend, fd, 512, 64);
        (void) close(fd);
        ds_runner_use_kv_type(&runner, bounds[i].type);
        read_prompts(&runner, golden, &nll, &rms);
        printf("note: KV cache %s: nll %.4f (bound %.3f), rms %.4f (bound %.3f)\n",
               ds_kv_type_name(bounds[i].type), nll, bounds[i].nll, rms, bounds[i].rms);
        assert_true(nll <= bounds[i].nll);
        assert_true(rms <= bounds[i].rms);
        check_cut(&runner, &golden->prompts[golden->n_prompts - 1]);
        ds_runner_deinit(&runner);
    }
    (void) ds_golden_free(golden);
    backend->close(backend);
}

/* --- serving --- */

enum { PROMPT = 100, ANSWER = 24 };

/* of 32 elements */
static const size_t group_bytes[] = {
    [DS_KV_F32] = 128, [DS_KV_F16] = 64, [DS_KV_BF16] = 64, [DS_KV_Q8_0] = 34, [DS_KV_Q4_0] = 18
};

static struct ds_tiny_options tiny(uint32_t head_dim)
{
    struct ds_tiny_options model = ds_tiny_options(DS_ARCH_LLAMA, DS_TYPE_Q4_0);

    model.head_dim = head_dim;
    return model;
}

static struct ds_spec spec_of(uint32_t uid)
{
    struct ds_spec spec = { .uid = uid,
                            .n_prompt = PROMPT,
                            .max_tokens = ANSWER,
                            .ignore_eos = true,
                            .sampling = { .temperature = 1.0f,
                                          .top_p = 1.0f,
                                          .typical_p = 1.0f,
                                          .repeat_penalty = 1.0f,
                                          .seed = 5 } };

    for (uint32_t i = 0; i < PROMPT; i++)
        spec.tokens[i] = (i * 29 + 11) % 300;
    return spec;
}

static void check_prefix(struct ds_serving *serving, const struct ds_answer *expected)
{
    struct ds_spec spec = spec_of(1), other = spec_of(2);

    for (unsigned i = 0; i < 3; i++) {
        ds_serving_add(serving, i == 2 ? &other : &spec, i);
        ds_serving_run(serving);
        assert_int_equal(serving->answers[i].n_cached, i == 1 ? 96 : 0);
        ds_assert_same_answer(&serving->answers[i], expected);
    }
}

static void check_replay(struct ds_serving *serving, const struct ds_answer *expected)
{
    for (uint32_t k = 1; k < ANSWER; k += 5) {
        struct ds_spec spec = spec_of(3 + k); /* nothing of it is cached */
        const struct ds_answer *rest = &serving->answers[3 + k];

        memcpy(spec.tokens + PROMPT, expected->tokens, k * sizeof *spec.tokens);
        spec.n_delivered = k;
        ds_serving_add(serving, &spec, 3 + k);
        ds_serving_run(serving);
        assert_int_equal(rest->n_cached, 0);
        assert_int_equal(rest->n_tokens, ANSWER - k);
        assert_memory_equal(rest->tokens, expected->tokens + k,
                            rest->n_tokens * sizeof *rest->tokens);
        assert_string_equal(rest->text, expected->text + expected->text_size - rest->text_size);
    }
}

static void serving_does_not_show_with_any_type(void **state)
{
    struct ds_cpu_options cpu = { .n_threads = 2 };
    struct ds_tiny_options model = tiny(32);
    struct ds_scheduler_options options = ds_serving_options();
    struct ds_backend *backend = NULL;

    (void) state;
    assert_int_equal(ds_backend_cpu(&backend, &cpu), 0);
    for (enum ds_kv_type type = DS_KV_F32; type <= DS_KV_Q4_0; type++) {
        struct ds_spec spec = spec_of(1);
        struct ds_serving serving;
        struct ds_answer expected;
        size_t n;

        ds_serving_init(&serving, backend, &model);
        ds_runner_use_kv_type(&serving.runner, type);
        ds_serving_alone(&serving, &spec, &expected);
        assert_int_equal(expected.n_tokens, ANSWER);
        ds_serving_start(&serving, &options, 3 + ANSWER);
        n = (size_t) options.n_blocks * DS_KV_BLOCK * model.n_layers * model.n_kv_heads *
            (2 * model.head_dim);
        assert_int_equal(ds_scheduler_kv_bytes(serving.scheduler), n / 32 * group_bytes[type]);
        check_prefix(&serving, &expected);
        check_replay(&serving, &expected);
        ds_serving_deinit(&serving);
    }
    backend->close(backend);
}

/* What dsd.conf asks for and a model cannot have leaves the model's own. */
static void a_type_that_the_heads_forbid_is_refused_and_changes_nothing(void **state)
{
    struct ds_cpu_options cpu = { .n_threads = 1 };
    struct ds_tiny_options model = tiny(16);
    struct ds_backend *backend = NULL;
    struct ds_serving serving;

    (void) state;
    assert_int_equal(ds_backend_cpu(&backend, &cpu), 0);
    ds_serving_init(&serving, backend, &model);
    for (enum ds_kv_type type = DS_KV_Q8_0; type <= DS_KV_Q4_0; type++) {
        struct ds_kv_geometry geometry;
        struct ds_error error = { "" };

        assert_true(ds_model_use_kv_type(serving.runner.model, type, &error) < 0);
        assert_non_null(strstr(error.text, ds_kv_type_name(type)));
        ds_model_kv_geometry(serving.runner.model, &geometry);
        assert_int_equal(geometry.type, DS_KV_F16);
    }
    ds_serving_deinit(&serving);
    backend->close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_type_keeps_the_default_model_near_the_truth),
        cmocka_unit_test(serving_does_not_show_with_any_type),
        cmocka_unit_test(a_type_that_the_heads_forbid_is_refused_and_changes_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
