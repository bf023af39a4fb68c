/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: a model keeps telling the truth with each type of KV cache, the same bits however its
 * prompt is cut, and refuses a type that its heads do not allow.
 * Method: the default model reads the golden prompts; its nll and log-probabilities are compared
 * with transformers, within bounds that hold for this model (noted in RESULTS.md).
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

static const struct {
    enum ds_kv_type type;
    double nll, rms; /* of the deviation: per token, of the top log-probabilities */
} bounds[] = {
    { DS_KV_F32, 0.065, 0.12 },  { DS_KV_F16, 0.065, 0.12 }, { DS_KV_BF16, 0.065, 0.12 },
    { DS_KV_Q8_0, 0.065, 0.12 }, { DS_KV_Q4_0, 0.50, 1.0 },
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
        printf("note: KV cache %s: nll %.4f (bound %.3f), rms %.4f (bound %.2f)\n",
               ds_kv_type_name(bounds[i].type), nll, bounds[i].nll, rms, bounds[i].rms);
        assert_true(nll <= bounds[i].nll);
        assert_true(rms <= bounds[i].rms);
        check_cut(&runner, &golden->prompts[golden->n_prompts - 1]);
        ds_runner_deinit(&runner);
    }
    (void) ds_golden_free(golden);
    backend->close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_type_keeps_the_default_model_near_the_truth),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
